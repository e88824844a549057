"""What does `cxc` do with its arguments, and what does it exit with?"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from codomyrmex_containerization import __version__, errors
from codomyrmex_containerization.cli import (
    commands,
    entry,
    lifecycle_commands,
    local_commands,
    login_commands,
    object_commands,
    options,
    registry_commands,
    screen,
    session,
    words,
)
from codomyrmex_containerization.cli.screen import Screen

PROGRAM = "cxc"
DISTRIBUTION = "codomyrmex-containerization"

# In the order of the help.
TABLE: tuple[entry.ToolCommand, ...] = (
    *commands.TABLE,
    *object_commands.TABLE,
    *lifecycle_commands.TABLE,
    *registry_commands.TABLE,
)

_INTERRUPTED = 130
_PIPE_CLOSED = 141


def main(serve: options.Serve | None = None) -> NoReturn:
    """Run the command line of this process and end it. `serve` is how `cxc serve` starts the server."""
    screen.prepare()
    status = run(sys.argv[1:], serve=serve)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _PIPE_CLOSED
    except (OSError, ValueError):
        status = status or errors.InternalError.exit_status
    _leave(status)


def run(arguments: Sequence[str], *, serve: options.Serve | None = None) -> int:
    """Carry out a command line and return the exit status. What goes wrong is shown, never raised."""
    given = options.Given(serve=serve)
    try:
        result = root().main(args=list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=given)
    except click.UsageError as error:
        return _usage_error(error, given, arguments)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except session.Interrupted as error:
        return error.exit_status
    except _Failed as failed:
        return _failure(failed.error, given, failed.exit_status)
    except SystemExit as error:  # click's own answer to a pipe that nobody reads
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:  # noqa: BLE001 - the one place where a defect of this face becomes an answer
        return _failure(_defect(error), given, errors.InternalError.exit_status)
    return result if isinstance(result, int) else 0


def root() -> options.Group:
    """Return the tree of all commands."""
    version = click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Print the version.",
    )
    group = options.Group(
        PROGRAM,
        help="Build, run, watch and remove containers, through the same gate as agents do.\n\n"
        "Options of this list may stand before or after the command's name.",
        callback=_root,
        params=[version],
        is_root=True,
    )
    known = known_commands()
    for one in TABLE:
        _home(group, one).add_command(_guarded(entry.click_command(one, known), one.own_errors))
    for command in (*login_commands.all_commands(), *local_commands.all_commands()):
        group.add_command(_guarded(command, None))
    return group


def _home(root: options.Group, one: entry.ToolCommand) -> click.Group:
    """Return the group that a command belongs to."""
    name = one.name.rpartition(" ")[0]
    if not name:
        return root
    if name not in root.commands:
        root.add_command(options.Group(name, help=registry_commands.GROUPS[name], callback=_help_when_alone))
    found = root.commands[name]
    assert isinstance(found, click.Group)  # noqa: S101  it was made here
    return found


def _help_when_alone() -> int:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    return 0


def known_commands() -> words.Commands:
    """Return which command stands for which tool, for advice."""
    known: dict[str, tuple[str, dict[str, str]]] = {}
    for one in TABLE:
        known.setdefault(one.tool, (one.name, words.options_of(one.params)))
        for argument, value in one.fixed.items():
            known[f"{one.tool} {argument}={value}"] = (one.name, words.options_of(one.params))
    return known


def _root() -> int:
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        return 0
    given = options.given_in(context)
    if not options.is_terminal(sys.stdin) and (given.settings or given.config_file is not None):
        # What an MCP client starts with settings alone is meant to be the server.
        return _carried_out(local_commands.serve_now, None)
    click.echo(context.get_help())
    return 0


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{DISTRIBUTION} {__version__}")
        context.exit()


# --------------------------------------------------------------------------------------------------------------- errors


class _Failed(Exception):
    """An error of ours, with what to exit with."""

    def __init__(self, error: errors.ContainerizationError, exit_status: int) -> None:
        super().__init__(error.message)
        self.error = error
        self.exit_status = exit_status


def _guarded(command: click.Command, own_errors: int | None) -> click.Command:
    """Let a command's errors carry their exit status, and let a closed pipe be no error."""
    function = command.callback
    if function is not None:
        command.callback = lambda **values: _carried_out(lambda: function(**values), own_errors)
    for inner in getattr(command, "commands", {}).values():
        _guarded(inner, own_errors)
    return command


def _carried_out(function: Any, own_errors: int | None) -> int:
    try:
        return int(function())
    except errors.ContainerizationError as error:
        raise _Failed(error, error.exit_status if own_errors is None else own_errors) from error
    except BrokenPipeError:
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _PIPE_CLOSED
        raise


def _usage_error(error: click.UsageError, given: options.Given, arguments: Sequence[str]) -> int:
    path = error.ctx.command_path if error.ctx is not None else PROGRAM
    name = error.ctx.info_name or "" if error.ctx is not None else ""
    own = next((one.own_errors for one in TABLE if one.name == name), None)
    status = errors.InvalidArgument.exit_status if own is None else own
    given.json = given.json or options.wants_json(arguments)
    return _failure(errors.InvalidArgument(error.format_message(), hint=f"see '{path} --help'"), given, status)


def _failure(error: errors.ContainerizationError, given: options.Given, status: int) -> int:
    to = Screen(json=given.json)
    message, hint = session.redacted(error.message), session.redacted(error.hint)
    with suppress(BrokenPipeError):
        if to.json:
            details = {"code": error.code, "message": message, "hint": hint, "retryable": error.retryable}
            to.document(screen.error_document(details))
        else:
            to.failure(error.code, screen.with_next_step(message, hint))
    return status


def _defect(error: Exception) -> errors.InternalError:
    import secrets
    import traceback

    id = secrets.token_hex(4)
    sys.stderr.write(session.redacted(f"internal error {id}: {''.join(traceback.format_exception(error))}"))
    return errors.InternalError(
        f"A defect of this program stopped the command (id {id}; what is above says more).", hint="report it"
    )


def _leave(status: int) -> NoReturn:
    # Everything is closed and written. The interpreter would flush a closed pipe once more and complain; an abandoned call's
    # thread, or one that waits for a line of the terminal, would hold it; and to take it apart is a twentieth of a short command.
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)
