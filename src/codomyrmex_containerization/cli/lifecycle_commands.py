"""Which commands create and rename containers, look into them, and make images and files of them? One table entry each.

Their tools are of a toolset that is offered on demand: the command itself is the demand.
"""

from __future__ import annotations

import click

from codomyrmex_containerization.cli import arguments, commands
from codomyrmex_containerization.cli.entry import Answered, ToolCommand, flag, many, option
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


def _show_stats(one: Answered, to: Screen) -> None:
    from codomyrmex_containerization.tools._core_answers import in_out

    rows = one.data["containers"]
    commands.warn_of_failed(one.data, to)
    cells = [
        (
            row["name"],
            f"{row['cpu_percent']:.1f}" if "cpu_percent" in row else "",
            commands.size(row.get("memory_bytes")),
            commands.size(row.get("memory_limit_bytes")),
            str(row.get("pids", "")),
            in_out(row.get("network_in"), row.get("network_out")),
            in_out(row.get("block_in"), row.get("block_out")),
        )
        for row in rows
    ]
    to.table(("NAME", "CPU %", "MEMORY", "LIMIT", "PIDS", "NETWORK IN/OUT", "BLOCK IN/OUT"), cells)
    if not rows:
        to.note("no containers running")
    elif "next_cursor" in one.data:
        to.note(f"{len(rows)} of {one.data['total']} shown; the rest: add --cursor {one.data['next_cursor']}")


def _limit(rows: int) -> click.Option:
    return option("--limit", "limit", f"Rows of a page (default {rows}).", metavar="N", type=int)


_CREATE = ToolCommand(
    "create",
    "container_create",
    "Make a container without starting it. 'cxc start' starts it.\n\n"
    "Options stand before IMAGE; what follows it is the container's command.",
    (
        option("--name", "name", "Its name.", metavar="NAME"),
        many("-e/--env", "env", "NAME[=VALUE]", "Environment variable; without a value, our own.", arguments.variables),
        many(
            "-p/--publish",
            "ports",
            "[[ADDRESS:]HOST:]PORT",
            "Port to publish, on 127.0.0.1 unless an address is given.",
        ),
        many("-v/--mount", "mounts", "SOURCE:TARGET[:ro]", "Host path or volume; tmpfs:TARGET[:SIZE] for memory."),
        option("--network", "network", "none, or a network's name.", metavar="NAME"),
        option("-u/--user", "user", "User, or uid:gid.", metavar="USER"),
        option("-w/--workdir", "workdir", "Folder to start in.", metavar="PATH"),
        option("--entrypoint", "entrypoint", "Instead of the image's.", metavar="COMMAND"),
        option("-m/--memory", "memory", "Most memory: 512m, 2g.", metavar="SIZE"),
        option("--cpus", "cpus", "Most CPUs: 1.5.", metavar="N", type=float),
        option("--pids-limit", "pids_limit", "Most processes.", metavar="N", type=int),
        option("--disk", "disk", "Most that it may write, volumes aside: 256m.", metavar="SIZE"),
        flag("--read-only-rootfs", "read_only_rootfs", "Make its root file system read-only."),
        many("--cap-drop", "cap_drop", "NAME", "Capability to drop, or ALL."),
        option("--restart", "restart", "no, always, unless-stopped, on-failure[:N].", metavar="POLICY"),
        many("-l/--label", "labels", "NAME=VALUE", "Label of the container.", arguments.labels),
        option(
            "--pull",
            "pull_policy",
            "When to pull the image (default missing).",
            type=click.Choice(["always", "missing", "never"]),
        ),
        option(
            "--isolation",
            "isolation",
            "How strong its walls are (default: the engine's own, or the setting isolation).",
            type=click.Choice(["minimal", "standard", "strict"]),
        ),
        click.Argument(["image"]),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
    ),
    show=_show_container,
    on_demand=True,
    interspersed=False,
)
_STATS = ToolCommand(
    "stats",
    "container_list",
    "Show what running containers use, once.",
    (
        option("--name", "name", "Only those with this in their name.", metavar="TEXT"),
        option("--label", "label", "Only those with this label.", metavar="NAME[=VALUE]"),
        option("--limit", "limit", "Rows of a page (default 50).", metavar="N", type=int),
        option("--cursor", "cursor", "Where the page before this one ended.", metavar="CURSOR"),
    ),
    show=_show_stats,
)

TABLE: tuple[ToolCommand, ...] = (
    _CREATE,
    _STATS,
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
