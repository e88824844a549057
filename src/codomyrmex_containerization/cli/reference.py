"""What does docs/cli.md say? Every command with its options, written from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator

import click

from codomyrmex_containerization import errors
from codomyrmex_containerization.cli import app, options

_WIDTH = 100_000  # so that click breaks no line


def reference() -> str:
    """Return docs/cli.md."""
    root = app.root()
    lines = [
        "# The command line",
        "",
        "`cxc` is short for `codomyrmex-containerization`. With no argument and stdin not a terminal it serves MCP; on a terminal it",
        "prints help.",
        "",
        "Data goes to stdout, everything that is said about it to stderr. `--json` prints one JSON document instead, errors",
        'included: `{"status": "error", "code", "message", "error", "hint"}`. On a terminal there are tables, bars and colours',
        "(not with `NO_COLOR`).",
        "A command that destroys something asks on a terminal and wants `--yes` elsewhere.",
        "",
        "## Options of every command",
        "",
        "They may stand before or after the command's name.",
        "",
        *_options(root, click.Context(root, info_name=app.PROGRAM, max_content_width=_WIDTH, terminal_width=_WIDTH)),
        "## Exit statuses",
        "",
        *_statuses(),
        "`cxc run` and `cxc exec` exit with the command's own exit code; with 124 when its time was up, 125 when it could",
        "not be run, 126 when it could not be invoked and 127 when it was not found. A signal ends a command, cleaned up, with",
        "128 and its number (Ctrl-C: 130).",
        "",
        "## Commands",
        "",
        *_commands(root, click.Context(root, info_name=app.PROGRAM)),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _statuses() -> Iterator[str]:
    codes: dict[int, list[str]] = {}
    for one in errors.all_errors():
        codes.setdefault(one.exit_status, []).append(f"`{one.code}`")
    yield from ("| status | means |", "|---|---|", "| 0 | success |")
    for status in sorted(codes):
        yield f"| {status} | {', '.join(codes[status])} |"
    yield ""


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.commands[name]
        inner = click.Context(command, info_name=name, parent=context, max_content_width=_WIDTH, terminal_width=_WIDTH)
        yield f"### {inner.command_path}"
        yield ""
        yield f"    {_usage(command, inner)}"
        yield ""
        yield _escaped(command.help or "")
        yield ""
        yield from _options(command, inner)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _usage(command: click.Command, context: click.Context) -> str:
    return " ".join([context.command_path, *command.collect_usage_pieces(context)])


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    own = command.own_params if isinstance(command, options.Command | options.Group) else ()
    records = options.help_records(own, context)
    if not records:
        return
    yield "| option | meaning |"
    yield "|---|---|"
    for flags, meaning in records:
        yield f"| `{_in_cell(flags)}` | {_in_cell(_escaped(meaning))} |"
    yield ""


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def _in_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
