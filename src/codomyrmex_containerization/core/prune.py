"""What in an engine does nobody use, how much room does it take, and what came of removing it?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.core import storage
from codomyrmex_containerization.core.containers import Progress
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.container import ContainerRow
from codomyrmex_containerization.models.storage import PruneKind

_STOPPED = ("created", "exited", "dead")
# Between its create and its start a container looks like one that nobody wants.
_STARTING_SECONDS = 60.0
_MOST_MEASURED = 200
_SIDE_BY_SIDE = 8


@dataclass(frozen=True, slots=True)
class Unused:
    """An object that nobody uses; `bytes` is None when its size is not known or it has none."""

    id: str
    name: str
    detail: str
    created: datetime | None
    bytes: int | None = None
    own: bool = False


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What would be removed: just these objects. `older_than_seconds` is what the build cache is cut by."""

    kind: PruneKind
    objects: tuple[Unused, ...]
    older_than_seconds: float

    @property
    def digest(self) -> str:
        """A digest of the state that the plan describes."""
        seen = [f"{one.id}:{one.name}:{one.created}" for one in self.objects]
        sized = [str(one.bytes) for one in self.objects if self.kind == "build_cache"]
        return storage.digest(self.kind, *sorted(seen), *sized)

    @property
    def bytes(self) -> int | None:
        """How many bytes the objects hold, as far as that is known."""
        known = [one.bytes for one in self.objects if one.bytes is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that was to be removed and is still there."""

    object: Unused
    reason: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, what was not and why, and how many bytes that freed as far as they are known."""

    removed: tuple[Unused, ...]
    kept: tuple[Kept, ...]
    freed_bytes: int | None


async def plan(engine: guard.GuardedEngine, kind: PruneKind, *, older_than_seconds: float) -> PrunePlan:
    """Look for what nobody uses and is older than that. Raises Unsupported (an engine without a build cache)."""
    before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    found = await _FINDERS[kind](engine)
    if kind != "build_cache" and older_than_seconds > 0:
        found = [one for one in found if one.created is not None and one.created <= before]
    if kind == "containers":
        found = await _measured(engine, found)
    return PrunePlan(kind, tuple(found), older_than_seconds)


async def carry_out(engine: guard.GuardedEngine, what: PrunePlan, *, progress: Progress) -> Pruned:
    """Remove the objects of a plan one by one; one that came into use meanwhile stays."""
    if what.kind == "build_cache":
        if not what.objects:
            return Pruned((), (), 0)
        freed = await engine.prune_build_cache(older_than_seconds=what.older_than_seconds)
        return Pruned(what.objects, (), freed)
    used = await _used_networks(engine) if what.kind == "networks" else frozenset[str]()
    removed: list[Unused] = []
    kept: list[Kept] = []
    for number, one in enumerate(what.objects):
        await progress(number, len(what.objects), f"removing {one.name}")
        try:
            if one.id in used:
                raise errors.Conflict("A container uses it by now.")
            await _REMOVERS[what.kind](engine, one)
        except errors.NotFound:
            kept.append(Kept(one, "it was gone already"))
        except errors.EngineUnavailable as error:
            kept += [Kept(rest, error.message) for rest in what.objects[number:]]
            break
        except errors.ContainerizationError as error:
            kept.append(Kept(one, error.message))
        else:
            removed.append(one)
    return Pruned(tuple(removed), tuple(kept), PrunePlan(what.kind, tuple(removed), 0).bytes)


async def _find_containers(engine: guard.GuardedEngine) -> list[Unused]:
    rows = await engine.list_containers(all=True)
    return [
        Unused(row.id, row.name, f"{row.status}, {row.image}", row.created, own=engine.owns("container", row.id))
        for row in rows
        if _is_stopped(row)
    ]


def _is_stopped(row: ContainerRow) -> bool:
    if row.status not in _STOPPED:
        return False
    return row.status != "created" or (datetime.now(UTC) - row.created).total_seconds() > _STARTING_SECONDS


async def _measured(engine: guard.GuardedEngine, found: Sequence[Unused]) -> list[Unused]:
    """Put in what the containers have written; measuring takes the engine a while for each."""
    sizes: dict[str, int | None] = {}
    limit = anyio.CapacityLimiter(_SIDE_BY_SIDE)

    async def one(id: str) -> None:
        async with limit:
            try:
                sizes[id] = (await engine.inspect_container(id, size=True)).writable_bytes
            except (errors.NotFound, errors.DeadlineExceeded):
                sizes[id] = None

    async with threads.task_group() as tasks:
        for container in found[:_MOST_MEASURED]:
            tasks.start_soon(one, container.id)
    return [replace(container, bytes=sizes.get(container.id)) for container in found]


async def _find_images(engine: guard.GuardedEngine) -> list[Unused]:
    users = await engine.image_users()
    return [
        Unused(
            row.id,
            row.id.removeprefix("sha256:")[:12],
            "untagged",
            row.created,
            row.size_bytes,
            own=engine.owns("image", row.id),
        )
        for row in await engine.list_images()
        if not row.tags and not row.digests and not users.get(row.id)
    ]


async def _find_volumes(engine: guard.GuardedEngine) -> list[Unused]:
    rows = [row for row in await engine.list_volumes() if not row.users]
    held = await storage.sizes_if_known(engine) if rows else {}
    return [
        Unused(row.name, storage.short(row.name), row.driver, row.created, held.get(row.name), engine.owns_volume(row))
        for row in rows
    ]


async def _find_networks(engine: guard.GuardedEngine) -> list[Unused]:
    return [
        Unused(row.id, row.name, ", ".join((row.driver, *row.subnets)), row.created, own=engine.owns("network", row.id))
        for row in await engine.list_networks()
        if not row.users and not row.own
    ]


async def _find_build_cache(engine: guard.GuardedEngine) -> list[Unused]:
    cache = await engine.build_cache()
    if not cache.unused_bytes:
        return []
    detail = f"{cache.entries:,} entries in all"
    return [Unused("build_cache", "build cache", detail, None, cache.unused_bytes)]


async def _used_networks(engine: guard.GuardedEngine) -> frozenset[str]:
    # An engine removes a network that only stopped containers use, and they cannot be started any more.
    return frozenset(row.id for row in await engine.list_networks() if row.users)


async def _remove_container(engine: guard.GuardedEngine, one: Unused) -> None:
    await engine.remove_container(one.id, force=False, volumes=False)


async def _remove_image(engine: guard.GuardedEngine, one: Unused) -> None:
    if (await engine.inspect_image(one.id)).tags:
        raise errors.Conflict("It has got a name meanwhile.")
    await engine.remove_image(one.id, force=False)


async def _remove_volume(engine: guard.GuardedEngine, one: Unused) -> None:
    await engine.remove_volume(one.id, force=False)


async def _remove_network(engine: guard.GuardedEngine, one: Unused) -> None:
    await engine.remove_network(one.id)


_FINDERS: dict[PruneKind, Callable[[guard.GuardedEngine], Awaitable[list[Unused]]]] = {
    "containers": _find_containers,
    "images": _find_images,
    "volumes": _find_volumes,
    "networks": _find_networks,
    "build_cache": _find_build_cache,
}
_REMOVERS: dict[PruneKind, Callable[[guard.GuardedEngine, Unused], Awaitable[None]]] = {
    "containers": _remove_container,
    "images": _remove_image,
    "volumes": _remove_volume,
    "networks": _remove_network,
}
