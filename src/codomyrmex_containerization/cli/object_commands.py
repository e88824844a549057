"""Which commands look into containers, act on them, and see to images? One table entry each."""

from __future__ import annotations

from typing import Any

import click

from codomyrmex_containerization.cli import arguments, commands
from codomyrmex_containerization.cli.arguments import Values
from codomyrmex_containerization.cli.entry import Answered, Data, ToolCommand, flag, given_arguments, many, option
from codomyrmex_containerization.cli.screen import Screen


def _show_container(one: Answered, to: Screen) -> None:
    to.line(one.data["container"])


def _show_images(one: Answered, to: Screen) -> None:
    rows = one.data["images"]
    several = len({row["engine"] for row in rows}) > 1
    header = ("ID", "TAGS", "SIZE", "CREATED", "PLATFORM", "USED BY", "ENGINE")
    commands.warn_of_failed(one.data, to)
    to.table(header, [_image_cells(row, to, show_engine=several) for row in rows])
    if not rows:
        to.note("no images")
    elif "next_cursor" in one.data:
        to.note(f"{len(rows)} of {one.data['total']} shown; the rest: add --cursor {one.data['next_cursor']}")


def _image_cells(row: Data, to: Screen, *, show_engine: bool) -> tuple[str, ...]:
    return (
        row["id"],
        ",".join(row["tags"]) or "<untagged>",
        commands.size(row["size_bytes"]),
        commands.created(row["created"], to),
        row.get("platform", ""),
        ",".join(row.get("used_by", ())),
        row["engine"] if show_engine else "",
    )


def _show_removed(one: Answered, to: Screen) -> None:
    for line in one.data["removed"]:
        to.line(line)


def _exec_arguments(values: Values) -> dict[str, Any]:
    given = given_arguments({name: value for name, value in values.items() if name != "stdin"})
    return given | ({"stdin": arguments.standard_input(what="stdin")} if values["stdin"] else {})


def _control(name: str, help: str, *params: click.Parameter) -> ToolCommand:
    return ToolCommand(
        name,
        "container_control",
        help,
        (commands.containers(), *params),
        fixed={"action": name},
        show=_show_container,
        each="container",
    )


def _patience() -> click.Option:
    return option(
        "-t/--timeout", "timeout_seconds", "Then it is killed (default 10).", metavar="SECONDS", type=commands.SECONDS
    )


_EXEC = ToolCommand(
    "exec",
    "container_exec",
    "Run a command in a container.\n\n"
    "Options stand before CONTAINER; what follows it is the command. Exits with the command's exit code, 124 when its time was up, "
    "125 when it could not be run, 126 and 127 when it could not be invoked or was not found.",
    (
        flag("-i/--stdin", "stdin", "Give it our stdin, read to its end."),
        many("-e/--env", "env", "NAME[=VALUE]", "Environment variable; without a value, our own.", arguments.variables),
        option("-u/--user", "user", "User, or uid:gid.", metavar="USER"),
        option("-w/--workdir", "workdir", "Folder to start in.", metavar="PATH"),
        option(
            "--timeout",
            "timeout_seconds",
            "Kill it after so long (default 30).",
            metavar="SECONDS",
            type=commands.SECONDS,
        ),
        click.Argument(["container"]),
        click.Argument(["command"], nargs=-1, required=True, type=click.UNPROCESSED),
    ),
    to_arguments=_exec_arguments,
    show=commands.show_run,
    exit_status=commands.status_of_container,
    interspersed=False,
    own_errors=125,
)
_IMAGES = ToolCommand(
    "images",
    "image_list",
    "List images, newest first, with the containers made of them.",
    (
        option("--name", "name", "Only those with this in a tag.", metavar="TEXT"),
        flag("--dangling", "dangling", "Only untagged ones."),
        option("--limit", "limit", "Rows of a page (default 50).", metavar="N", type=int),
        option("--cursor", "cursor", "Where the page before this one ended.", metavar="CURSOR"),
    ),
    show=_show_images,
)

TABLE: tuple[ToolCommand, ...] = (
    _EXEC,
    ToolCommand("inspect", "container_inspect", "Show one container from all sides.", (click.Argument(["container"]),)),
    _control("start", "Start containers."),
    _control("stop", "Stop containers.", _patience()),
    _control("restart", "Restart containers.", _patience()),
    _control("pause", "Pause containers."),
    _control("unpause", "Let paused containers go on."),
    _control(
        "kill", "Kill containers.", option("-s/--signal", "signal", "Instead of KILL: TERM, HUP, ...", metavar="NAME")
    ),
    ToolCommand(
        "cp",
        "container_copy",
        "Copy a file or folder. One side is CONTAINER:PATH, the other a host path.",
        (click.Argument(["source"]), click.Argument(["target"])),
    ),
    _IMAGES,
    ToolCommand(
        "image",
        "image_inspect",
        "Show an image. Its configuration, its layers, and what could shrink it.",
        (click.Argument(["image"]),),
    ),
    ToolCommand(
        "tag", "image_tag", "Give an image another name.", (click.Argument(["source"]), click.Argument(["target"]))
    ),
    ToolCommand(
        "rmi",
        "image_remove",
        "Remove images, or names of them. Asks first; --yes agrees beforehand.",
        (
            click.Argument(["image"], nargs=-1, required=True, metavar="IMAGE..."),
            flag("-f/--force", "force", "Also when containers use it or it has several tags."),
        ),
        show=_show_removed,
        each="image",
    ),
)
