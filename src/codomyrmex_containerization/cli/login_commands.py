"""How does a person log in to a registry and out of it? `login` and `logout`; a password is never an argument."""

from __future__ import annotations

import os
import sys

import click

from codomyrmex_containerization import errors
from codomyrmex_containerization.cli import options, session
from codomyrmex_containerization.cli.screen import Screen

_LONGEST_PASSWORD_CHARACTERS = 64 * 1024


def all_commands() -> list[click.Command]:
    """Return the commands, in the order in which the help lists them."""
    registry = click.Argument(["registry"])
    user = click.Option(["-u", "--username"], metavar="NAME", help="Who logs in; asked for on a terminal.")
    piped = click.Option(["--password-stdin"], is_flag=True, help="Read the password from standard input.")
    return [
        options.Command(
            "login",
            help="Log in to a registry. The password is asked for or read from standard input, tried, and kept by the "
            "credential helper that is set up, else in the file that Docker has for it.",
            callback=_login,
            params=[registry, user, piped],
        ),
        options.Command(
            "logout",
            help="Forget the credentials of a registry.",
            callback=_logout,
            params=[click.Argument(["registry"])],
        ),
    ]


def _login(*, registry: str, username: str | None, password_stdin: bool) -> int:
    import anyio

    from codomyrmex_containerization.clients import credentials, logins
    from codomyrmex_containerization.registry import images

    given = options.given_in(click.get_current_context())
    to = Screen(json=given.json)
    name = images.registry_of(registry)
    settings = session.load(given, to).settings
    user = username or _asked("Username: ", password_stdin=password_stdin)
    if not user or ":" in user:
        raise errors.InvalidArgument("A user's name is not empty and has no colon.", hint="pass it with --username")
    password = _password(user, name, password_stdin=password_stdin)
    credential = credentials.Credential(user, password)
    where = anyio.run(logins.login, name, credential, settings.registries, os.environ)
    return _said(to, {"status": "success", "registry": name, "kept": where}, f"logged in to {name}; kept by {where}")


def _logout(*, registry: str) -> int:
    import anyio

    from codomyrmex_containerization.clients import logins
    from codomyrmex_containerization.registry import images

    to = Screen(json=options.given_in(click.get_current_context()).json)
    name = images.registry_of(registry)
    where = anyio.run(logins.logout, name, os.environ)
    said = f"logged out of {name}; forgotten by {', '.join(where)}"
    return _said(to, {"status": "success", "registry": name, "forgotten": where}, said)


def _said(to: Screen, document: dict[str, object], text: str) -> int:
    if to.json:
        to.document(document)
    else:
        to.line(text)
    return 0


def _asked(question: str, *, password_stdin: bool) -> str:
    if password_stdin or not options.can_ask():
        raise errors.InvalidArgument("Who logs in is not known.", hint="pass --username NAME")
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _password(user: str, registry: str, *, password_stdin: bool) -> str:
    if password_stdin:
        password = sys.stdin.read(_LONGEST_PASSWORD_CHARACTERS + 1).rstrip("\r\n")
    elif options.can_ask():
        password = _typed(f"Password of {user} at {registry}: ")
    else:
        raise errors.InvalidArgument(
            "There is no terminal to ask for the password.", hint="pipe it in and pass --password-stdin"
        )
    if not password or len(password) > _LONGEST_PASSWORD_CHARACTERS or "\0" in password:
        raise errors.InvalidArgument("That is no password.", hint="it is one line, not empty")
    return password


def _typed(question: str) -> str:
    """Read a line of the terminal that is our stdin, without showing it."""
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline().rstrip("\r\n")
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        sys.stderr.write("\n")
        sys.stderr.flush()
