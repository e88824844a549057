"""Who is a container's user, where is its program, and which number has a signal? Asked of the files that are inside."""

from __future__ import annotations

import os
import posixpath
import signal
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import bundle, kernel

PROGRAM_HINT = "check the command and the entrypoint: the program must exist and be executable in the image"
KILL = int(signal.SIGKILL)
_MOST_BYTES = 4 * 1024 * 1024


def find(text: str, root: Path) -> bundle.User:
    """Return the user that `NAME`, `UID`, `NAME:GROUP` or `UID:GID` means below a root. Raises InvalidArgument."""
    name, _, group = text.partition(":")
    accounts = _table(root, "/etc/passwd")
    groups = _table(root, "/etc/group")
    name = name or "0"
    account = next((one for one in accounts if len(one) > 5 and (one[0] == name or one[2] == name)), None)
    if account is None and not _is_number(name):
        raise errors.InvalidArgument(
            f"unable to find user {name}: no matching entries in passwd file.",
            hint="give a number, or a user of the image",
        )
    uid = int(account[2]) if account is not None else int(name)
    gid = int(account[3]) if account is not None and _is_number(account[3]) else 0
    more: tuple[int, ...] = ()
    if group:
        gid = _group(group, groups)
    elif account is not None:
        members = (one for one in groups if len(one) > 3 and account[0] in one[3].split(","))
        more = tuple(int(one[2]) for one in members if _is_number(one[2]) and int(one[2]) != gid)
    return bundle.User(uid, gid, more, (account[5] or "/") if account is not None else "/")


def _group(text: str, groups: Sequence[Sequence[str]]) -> int:
    found = next((one for one in groups if len(one) > 2 and one[0] == text), None)
    if found is not None and _is_number(found[2]):
        return int(found[2])
    if _is_number(text):
        return int(text)
    raise errors.InvalidArgument(
        f"unable to find group {text}: no matching entries in group file.",
        hint="give a number, or a group of the image",
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**32 - 1


def _table(root: Path, path: str) -> list[list[str]]:
    try:
        descriptor = kernel.open_inside(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return []
        text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    return [line.split(":") for line in text.splitlines()]


def require_program(
    words: Sequence[str], root: Path, *, env: Mapping[str, str], workdir: str, hidden: Sequence[str] = ()
) -> None:
    """Raise CommandFailed when the program of a command is not there, or cannot be one. Below `hidden` nothing can be seen from here."""
    word = words[0]
    folders = [""] if "/" in word else [one or workdir for one in env.get("PATH", "").split(":")]
    reason = "executable file not found in $PATH" if "/" not in word else "no such file or directory"
    for folder in folders:
        path = posixpath.normpath(posixpath.join("/", workdir, folder, word))
        if any(path == one or path.startswith(one.rstrip("/") + "/") for one in hidden):
            return
        with suppress(OSError):
            descriptor = kernel.open_inside(root, path, os.O_PATH)
            try:
                mode = os.fstat(descriptor).st_mode
            finally:
                os.close(descriptor)
            if stat.S_ISREG(mode) and mode & 0o111:
                return
            reason = "is a directory" if stat.S_ISDIR(mode) else "permission denied"
    raise errors.CommandFailed(f"{word!r} cannot be started: {reason}.", hint=PROGRAM_HINT)


def signal_number(text: str) -> int:
    """Return the number of `TERM`, `SIGTERM` or `15`. Raises InvalidArgument."""
    if text.isascii() and text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    name = text.upper().removeprefix("SIG")
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError as error:
        raise errors.InvalidArgument(
            f"{text!r} is no signal.", hint="name one as TERM, KILL, HUP, INT or USR1"
        ) from error
