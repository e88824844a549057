"""Which commands bring images to registries and from them, and say what registries hold? One table entry each.

Their tools are of a toolset that is offered on demand: the command itself is the demand.
"""

from __future__ import annotations

from typing import Any

import click

from codomyrmex_containerization.cli.arguments import Values
from codomyrmex_containerization.cli.entry import Answered, ToolCommand, flag, given_arguments, option
from codomyrmex_containerization.cli.screen import Screen

GROUPS = {"registry": "Look at registries of images, copy in them and remove from them; no engine is needed."}

_PLATFORM = option("--platform", "platform", "Not this machine's, e.g. linux/arm64.", metavar="PLATFORM")


def _show_names(one: Answered, to: Screen) -> None:
    for name in one.data["names"]:
        to.line(name)
    if not one.data["names"]:
        to.note(f"no {one.data['kind']}")
    elif "next_cursor" in one.data:
        to.note(
            f"{len(one.data['names'])} of {one.data['total']} shown; the rest: add --cursor {one.data['next_cursor']}"
        )
    if not one.data["complete"]:
        to.note("the registry has more than were read")


def _list_arguments(values: Values) -> dict[str, Any]:
    """What is named is a repository, unless --registry says otherwise."""
    given = given_arguments(values)
    if given.pop("registry", False):
        given["registry"] = given.pop("repository")
    return given


def _copy_arguments(values: Values) -> dict[str, Any]:
    given = given_arguments(values)
    return {**given, "all_platforms": False} if given.pop("one_platform", False) else given


TABLE: tuple[ToolCommand, ...] = (
    ToolCommand(
        "pull",
        "registry_pull",
        "Pull an image from its registry into the engine.",
        (click.Argument(["image"]), _PLATFORM),
        on_demand=True,
    ),
    ToolCommand(
        "push",
        "registry_push",
        "Push an image to a registry. Asks before it pushes to one that the settings do not list; --yes agrees beforehand.",
        (click.Argument(["image"]), click.Argument(["target"], required=False)),
        on_demand=True,
    ),
    ToolCommand(
        "registry inspect",
        "registry_inspect",
        "Show an image in its registry, without pulling it.",
        (
            click.Argument(["reference"]),
            _PLATFORM,
            flag("--detail", "detail", "Also layers, configuration, annotations, signatures and the like."),
        ),
        on_demand=True,
    ),
    ToolCommand(
        "registry list",
        "registry_list",
        "List the tags of a repository, the highest version first.",
        (
            click.Argument(["repository"]),
            flag("--registry", "registry", "What is named is a registry: list its repositories."),
            option("--filter", "filter", "Part of the name, or a pattern such as '1.*'.", metavar="TEXT"),
            option("--limit", "limit", "Rows of a page (default 50).", metavar="N", type=int),
            option("--cursor", "cursor", "Where the page before this one ended.", metavar="CURSOR"),
        ),
        to_arguments=_list_arguments,
        show=_show_names,
        on_demand=True,
    ),
    ToolCommand(
        "registry copy",
        "registry_copy",
        "Copy an image from registry to registry. Asks as push does; --yes agrees beforehand.",
        (
            click.Argument(["source"]),
            click.Argument(["target"]),
            flag("--one-platform", "one_platform", "Only the image for this machine's platform."),
            flag("--referrers", "referrers", "Also its signatures, SBOMs and the like."),
        ),
        to_arguments=_copy_arguments,
        on_demand=True,
    ),
    ToolCommand(
        "registry delete",
        "registry_delete",
        "Remove an image from its registry with all tags that mean it. Asks first; --yes agrees beforehand.",
        (click.Argument(["reference"]),),
        on_demand=True,
    ),
)
