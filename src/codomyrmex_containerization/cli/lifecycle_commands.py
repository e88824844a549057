"""Which commands rename containers, look into them, and make images and files of them? One table entry each.

Their tools are of a toolset that is offered on demand: the command itself is the demand.
"""

from __future__ import annotations

import click

from codomyrmex_containerization.cli.entry import Answered, ToolCommand, option
from codomyrmex_containerization.cli.screen import Screen


def _show_top(one: Answered, to: Screen) -> None:
    rows = one.data["processes"]
    cells = [(str(row["pid"]), row["user"], _seconds(row.get("cpu_seconds")), row["command"]) for row in rows]
    to.table(("PID", "USER", "CPU", "COMMAND"), cells)
    if len(rows) < one.data["total"]:
        to.note(f"{len(rows)} of {one.data['total']} shown; --limit shows more")


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}s"


def _show_diff(one: Answered, to: Screen) -> None:
    for row in one.data["changes"]:
        to.line(f"{row['kind'][0].upper()} {row['path']}")
    if not one.data["changes"]:
        to.note("no changes")
    elif "next_cursor" in one.data:
        to.note(
            f"{len(one.data['changes'])} of {one.data['total']} shown; the rest: add --cursor {one.data['next_cursor']}"
        )


def _show_container(one: Answered, to: Screen) -> None:
    to.line(one.data["container"])
    for line in one.data.get("left_out", ()):
        to.note(f"not in the archive: {line}")


def _limit(rows: int) -> click.Option:
    return option("--limit", "limit", f"Rows of a page (default {rows}).", metavar="N", type=int)


TABLE: tuple[ToolCommand, ...] = (
    ToolCommand(
        "rename",
        "container_rename",
        "Give a container another name.",
        (click.Argument(["container"]), click.Argument(["name"])),
        on_demand=True,
    ),
    ToolCommand(
        "top",
        "container_top",
        "List the processes of a container.",
        (click.Argument(["container"]), _limit(50)),
        show=_show_top,
        on_demand=True,
    ),
    ToolCommand(
        "diff",
        "container_diff",
        "List what a container added (A), changed (C) and deleted (D) of its image's files.",
        (
            click.Argument(["container"]),
            option("--path", "path", "Only this path and what is in it.", metavar="PATH"),
            _limit(100),
            option("--cursor", "cursor", "Where the page before this one ended.", metavar="CURSOR"),
        ),
        show=_show_diff,
        on_demand=True,
    ),
    ToolCommand(
        "commit",
        "container_commit",
        "Make an image of a container, which is paused meanwhile.",
        (
            click.Argument(["container"]),
            click.Argument(["tag"]),
            option("-m/--message", "message", "Why, for the image's history.", metavar="TEXT"),
        ),
        on_demand=True,
    ),
    ToolCommand(
        "export",
        "container_export",
        "Write a container to a tar. Asks before it overwrites a file; --yes agrees beforehand.",
        (
            click.Argument(["container"]),
            click.Argument(["path"]),
            option(
                "--format",
                "format",
                "rootfs (the default), or state: all that 'cxc import' needs (embedded engine).",
                type=click.Choice(["rootfs", "state"]),
            ),
        ),
        on_demand=True,
    ),
    ToolCommand(
        "import",
        "container_import",
        "Make a container of a file that 'cxc export --format state' wrote (embedded engine). It is not started.",
        (click.Argument(["path"]), click.Argument(["name"], required=False)),
        show=_show_container,
        on_demand=True,
    ),
)
