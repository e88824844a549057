"""How is a container renamed, looked into, made an image, and brought from one machine to another?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import archives
from codomyrmex_containerization.core.containers import Progress
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models.container import ContainerState, Mount
from codomyrmex_containerization.models.details import ContainerDetails
from codomyrmex_containerization.models.image import ImageState
from codomyrmex_containerization.models.inside import ChangeKind, FileChange, ProcessRow, StoredContainer

_LONGEST_COMMAND_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class ChangePage:
    """A page of changes, how many of each kind there are in all, and the key of its last row when there is more."""

    changes: tuple[FileChange, ...]
    counts: dict[ChangeKind, int]
    first: int
    next_key: cursors.Key | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call would do to others: lines for a person, and a digest of what they are about."""

    lost: tuple[str, ...]
    digest: str


async def rename(engine: guard.GuardedEngine, state: ContainerState, name: str) -> ContainerState:
    """Give a container another name. Raises Conflict (taken, its own), InvalidArgument, Refused."""
    engine.judge_foreign(state)
    await engine.rename_container(state.id, name)
    return await engine.inspect_container(state.id)


async def top(engine: guard.GuardedEngine, state: ContainerState) -> list[ProcessRow]:
    """List the processes of a container that runs, as they can be shown. Raises Conflict."""
    rows = await engine.top(state.id)
    return [replace(row, user=shown(row.user), command=_bounded(shown(row.command))) for row in rows]


async def changes(
    engine: guard.GuardedEngine, state: ContainerState, *, below: str | None, limit: int, after: cursors.Key | None
) -> ChangePage:
    """Return a page of what a container has changed of its image, by path; `below` are those of one path and in it."""
    if below is not None and not below.startswith("/"):
        raise errors.InvalidArgument(f"{below!r} is no absolute path.", hint="begin it with /")
    place = (below or "/").rstrip("/")
    found = [replace(one, path=shown(one.path)) for one in await engine.changes(state.id)]
    found = [one for one in found if one.path == place or one.path.startswith(f"{place}/")]
    first = _behind(found, after) if after is not None else 0
    page = found[first : first + limit]
    counts: dict[ChangeKind, int] = {}
    for one in found:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    end = first + len(page)
    return ChangePage(tuple(page), counts, first, change_key(end - 1, page[-1]) if end < len(found) else None)


def change_key(index: int, change: FileChange) -> cursors.Key:
    """Return what a change is found again by, or its place where it is none any more."""
    return float(index), hashlib.sha256(change.path.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _behind(found: Sequence[FileChange], key: cursors.Key) -> int:
    same = (index + 1 for index, one in enumerate(found) if change_key(index, one)[1] == key[1])
    return next(same, int(key[0]))


async def plan_commit(engine: guard.GuardedEngine, state: ContainerState, tag: str) -> Plan | None:
    """Say whether the name would be taken from an image of others; None when it would not."""
    plan = await archives.plan_names(engine, [tag], state.id)
    return Plan(plan.lost, plan.digest) if plan is not None else None


async def commit(engine: guard.GuardedEngine, state: ContainerState, *, tag: str, message: str) -> ImageState:
    """Make an image of a container as it is. Raises Conflict, Refused, Unsupported."""
    engine.judge_foreign(state)
    return await engine.inspect_image(await engine.commit_container(state.id, tag=tag, labels={}, message=message))


# ------------------------------------------------------------------------------------------------ from machine to machine


async def plan_import(engine: guard.GuardedEngine, source: Path) -> Plan | None:
    """Say what of this machine the container of an archive would be given; None when that is nothing.

    Raises NotFound, InvalidArgument (damaged, hostile), Refused (the path), Unsupported.
    """
    stored = await engine.stored_container(source)
    there = {row.name for row in await engine.list_volumes()}
    lost = [line for mount in stored.spec.mounts if (line := _given(mount, there))]
    seen = archives.seen(engine.resolve_path(source, purpose="the archive of a container"))
    return Plan(tuple(lost), "\0".join([str(source), seen, *lost])) if lost else None


def _given(mount: Mount, volumes: set[str]) -> str:
    rights = "only to be read" if mount.read_only else "to be read and changed"
    if mount.type == "bind":
        return f"this host's {mount.source}, {rights} (mounted at {mount.target})"
    if mount.type == "volume" and mount.source in volumes:
        return f"the volume {mount.source}, which is there already, {rights} (mounted at {mount.target})"
    return ""


async def import_container(
    engine: guard.GuardedEngine, source: Path, name: str | None, *, progress: Progress
) -> tuple[StoredContainer, ContainerDetails]:
    """Make a container, not started, of an archive; its mounts are judged as those of any other.

    Raises NotFound, InvalidArgument (damaged, hostile), Conflict (name taken), Refused, Unsupported.
    """
    stored = await engine.stored_container(source)
    spec = replace(stored.spec, name=name or stored.name, lifetime="imported")
    id = await archives.watched(
        progress,
        f"importing {source.name}",
        archives.size(source),
        lambda passed: engine.import_container(source, spec, passed=passed),
    )
    return stored, await engine.container_details(id)


def left_out(found: ContainerDetails) -> list[str]:
    """Say what of a container is in no archive of it."""
    lines = [f"what is mounted at {one.target} ({one.type} {one.name or one.source})" for one in found.state.mounts]
    lines += [f"its place in network {one.name}" for one in found.networks[1:]]
    if found.state.status in ("running", "paused"):
        lines.append("its running processes")
    return [*lines, "its log"]


# --------------------------------------------------------------------------------------------------------------- showing


def shown(text: str) -> str:
    """Return a text of a container on one line, without what acts on a terminal, and with bytes that are no text written out."""
    return "".join(one if one.isprintable() else _written_out(one) for one in text)


def _written_out(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _bounded(command: str) -> str:
    if len(command) <= _LONGEST_COMMAND_CHARACTERS:
        return command
    more = len(command) - _LONGEST_COMMAND_CHARACTERS
    return f"{command[:_LONGEST_COMMAND_CHARACTERS]}[... {more:,} characters left out ...]"
