"""Volumes, networks, images and containers as files, limits, and removing what nobody uses (toolset `storage`)."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from codomyrmex_containerization import policy
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.core import archives, containers, lifecycle, limits, prune, storage, stored_images
from codomyrmex_containerization.engines import base, guard
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.models.inside import ExportFormat
from codomyrmex_containerization.models.storage import NetworkSpec, PruneKind, VolumeSpec
from codomyrmex_containerization.tools import _archive_answers as archive_answers
from codomyrmex_containerization.tools import _arguments as arguments
from codomyrmex_containerization.tools import _storage_answers as answers
from codomyrmex_containerization.tools._decorator import Effect, Plan, mcp_tool

_PRUNE_SECONDS = 1800.0
_ARCHIVE_SECONDS = 1800.0
_MOST_NAMED = 100

Engine = Annotated[str | None, Field(description="If not the default", max_length=64)]
Volume = Annotated[str, Field(description="Name", max_length=256)]
Network = Annotated[str, Field(description="Name, id or short id", max_length=256)]
Container = Annotated[str, Field(description="Name, id or short id", max_length=256)]
Image = Annotated[str, Field(description="Reference or id", max_length=512)]
Tag = Annotated[str, Field(description="Its name, e.g. shop/web:1.2", max_length=512)]
HostFile = Annotated[str, Field(description="Host path", min_length=1, max_length=4096)]
Part = Annotated[str | None, Field(description="Part of the name", max_length=256)]
Label = Annotated[str | None, Field(description="NAME or NAME=VALUE", max_length=512)]
Unused = Annotated[bool | None, Field(description="Only those that no container uses (true) or some does (false)")]
Limit = Annotated[int, Field(description="Most rows", ge=1, le=500)]
Cursor = Annotated[str | None, Field(description="next_cursor of the page before", max_length=256)]
Options = Annotated[dict[str, str] | None, Field(description="The driver's options", max_length=50)]
Labels = Annotated[dict[str, str] | None, Field(description="Labels", max_length=200)]

# The plan that a person was shown, so that just what it names is removed and not what has become unused since.
_shown_plan: ContextVar[tuple[tuple[object, ...], prune.PrunePlan] | None] = ContextVar("_shown_plan", default=None)


@mcp_tool(title="Volumes: list", read_only=True, idempotent=True, essential=False)
async def volume_list(
    ctx: Context,
    *,
    name: Part = None,
    label: Label = None,
    unused: Unused = None,
    measure: Annotated[bool, Field(description="Also their sizes, which takes an engine a while")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
    engine: Engine = None,
) -> answers.VolumeListAnswer:
    """List volumes, newest first, with the containers that mount them."""
    given = {"name": name, "label": label, "unused": unused, "measure": measure, "engine": engine}
    chosen = await ctx.engines.pick(engine)
    page = await storage.list_volumes(
        chosen,
        storage.ObjectFilter(name, label, unused),
        limit=limit,
        after=cursors.decode(cursor, "volume_list", given) if cursor is not None else None,
    )
    held = await storage.volume_sizes(chosen) if measure else {}
    answer = answers.VolumeListAnswer(
        volumes=[
            answers.VolumeListRow(
                name=row.name,
                driver=row.driver,
                created=_time(row.created),
                size_bytes=held.get(row.name),
                used_by=list(row.users),
                options=dict(row.options) or None,
                labels=_labels(row.labels),
                own=chosen.owns_volume(row) or None,
                engine=row.engine,
            )
            for row in page.rows
        ],
        total=page.total,
        next_cursor=cursors.encode("volume_list", given, page.next_key) if page.next_key else None,
    )
    return answer.with_cursors(lambda index: cursors.encode("volume_list", given, storage.row_key(page.rows[index])))


@mcp_tool(title="Volumes: create", read_only=False, essential=False)
async def volume_create(
    ctx: Context,
    *,
    name: Annotated[str, Field(description="Name", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$")],
    driver: Annotated[str, Field(description="Driver", min_length=1, max_length=128)] = "local",
    options: Options = None,
    labels: Labels = None,
    engine: Engine = None,
) -> answers.VolumeAnswer:
    """Create a volume. Options that mount a host path are held to the paths that mounts may use."""
    chosen = await ctx.engines.pick(engine)
    row = await chosen.create_volume(VolumeSpec(name, driver, options or {}, labels or {}))
    return answers.VolumeAnswer(name=row.name, driver=row.driver, mountpoint=row.mountpoint or None, engine=chosen.name)


async def _plan_volume(ctx: Context, *, volume: str, engine: str | None) -> Plan | None:
    chosen = await ctx.engines.pick(engine)
    loss = await storage.plan_volume_removal(chosen, volume)
    if chosen.owns_volume(loss.row):
        return None
    return Plan(f"Remove volume {storage.short(loss.row.name)}", loss.lost, loss.digest)


@mcp_tool(title="Volumes: remove", read_only=False, destructive=True, essential=False, plan=_plan_volume)
async def volume_remove(ctx: Context, *, volume: Volume, engine: Engine = None) -> answers.ObjectRemoveAnswer:
    """Remove a volume that no container mounts, with all its data. One that this server run did not create needs a confirmation."""
    chosen = await ctx.engines.pick(engine)
    loss = await storage.plan_volume_removal(chosen, volume)
    await chosen.remove_volume(loss.row.name, force=False)
    return answers.ObjectRemoveAnswer(name=loss.row.name, removed=list(loss.lost))


@mcp_tool(title="Networks: list", read_only=True, idempotent=True, essential=False)
async def network_list(
    ctx: Context,
    *,
    name: Part = None,
    label: Label = None,
    unused: Unused = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    engine: Engine = None,
) -> answers.NetworkListAnswer:
    """List networks, newest first, with their subnets and the containers on them."""
    given = {"name": name, "label": label, "unused": unused, "engine": engine}
    chosen = await ctx.engines.pick(engine)
    page = await storage.list_networks(
        chosen,
        storage.ObjectFilter(name, label, unused),
        limit=limit,
        after=cursors.decode(cursor, "network_list", given) if cursor is not None else None,
    )
    answer = answers.NetworkListAnswer(
        networks=[
            answers.NetworkListRow(
                id=row.id[:12],
                name=row.name,
                driver=row.driver,
                created=_time(row.created),
                internal=row.internal or None,
                subnets=list(row.subnets),
                used_by=list(row.users),
                labels=_labels(row.labels),
                own=chosen.owns("network", row.id) or None,
                engine=row.engine,
            )
            for row in page.rows
        ],
        total=page.total,
        next_cursor=cursors.encode("network_list", given, page.next_key) if page.next_key else None,
    )
    return answer.with_cursors(lambda index: cursors.encode("network_list", given, storage.row_key(page.rows[index])))


@mcp_tool(title="Networks: create", read_only=False, essential=False)
async def network_create(
    ctx: Context,
    *,
    name: Annotated[str, Field(description="Name", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$")],
    driver: Annotated[str, Field(description="Driver", min_length=1, max_length=128)] = "bridge",
    internal: Annotated[bool, Field(description="Without a way out")] = False,
    subnet: Annotated[str | None, Field(description="e.g. 10.77.1.0/24; else a free one", max_length=64)] = None,
    gateway: Annotated[str | None, Field(description="Address in subnet", max_length=64)] = None,
    ipv6: Annotated[bool, Field(description="IPv6 too")] = False,
    options: Options = None,
    labels: Labels = None,
    engine: Engine = None,
) -> answers.NetworkAnswer:
    """Create a network; containers on it reach one another by name."""
    chosen = await ctx.engines.pick(engine)
    spec = NetworkSpec(name, driver, internal, subnet, gateway, ipv6, options or {}, labels or {})
    row = await chosen.create_network(spec)
    return answers.NetworkAnswer(
        id=row.id[:12],
        name=row.name,
        driver=row.driver,
        subnets=list(row.subnets),
        internal=row.internal,
        engine=chosen.name,
    )


async def _plan_network(ctx: Context, *, network: str, engine: str | None) -> Plan | None:
    chosen = await ctx.engines.pick(engine)
    loss = await storage.plan_network_removal(chosen, network)
    if chosen.owns("network", loss.row.id):
        return None
    return Plan(f"Remove network {loss.row.name}", loss.lost, loss.digest)


@mcp_tool(title="Networks: remove", read_only=False, destructive=True, essential=False, plan=_plan_network)
async def network_remove(ctx: Context, *, network: Network, engine: Engine = None) -> answers.ObjectRemoveAnswer:
    """Remove a network that no container uses. One that this server run did not create needs a confirmation."""
    chosen = await ctx.engines.pick(engine)
    loss = await storage.plan_network_removal(chosen, network)
    await chosen.remove_network(loss.row.id)
    return answers.ObjectRemoveAnswer(name=loss.row.name, removed=list(loss.lost))


async def _plan_connection(ctx: Context, *, network: str, container: str, engine: str | None, **_: Any) -> Plan | None:
    if ctx.settings.policy.foreign != "ask":
        return None
    chosen = await ctx.engines.holding(container, engine)
    state = await containers.find(chosen, container)
    if chosen.owns("container", state.id):
        return None
    lost = (f"the networks that {state.name} ({state.id[:12]}, image {state.image}, {state.status}) is on now",)
    action = f"Change the networks of container {state.name} (network {network}), which this server did not create"
    return Plan(action, lost, f"{state.id}:{state.status}")


@mcp_tool(title="Networks: connect", read_only=False, destructive=True, essential=False, plan=_plan_connection)
async def network_connect(
    ctx: Context,
    *,
    network: Network,
    container: Container,
    aliases: Annotated[list[str] | None, Field(description="Further names of it there", max_length=20)] = None,
    engine: Engine = None,
) -> answers.ConnectionAnswer:
    """Connect a container to a network, running or not."""
    chosen = await ctx.engines.holding(container, engine)
    found = await storage.find_connection(chosen, network, container)
    names = [str(arguments.word(one, name="aliases")) for one in aliases or ()]
    await chosen.connect_network(found.network.id, found.container.id, aliases=names)
    return await _connection(chosen, found, connected=True)


@mcp_tool(title="Networks: disconnect", read_only=False, destructive=True, essential=False, plan=_plan_connection)
async def network_disconnect(
    ctx: Context,
    *,
    network: Network,
    container: Container,
    force: Annotated[bool, Field(description="Even if the container does not answer")] = False,
    engine: Engine = None,
) -> answers.ConnectionAnswer:
    """Take a container off a network; its open connections there break."""
    chosen = await ctx.engines.holding(container, engine)
    found = await storage.find_connection(chosen, network, container)
    await chosen.disconnect_network(found.network.id, found.container.id, force=force)
    return await _connection(chosen, found, connected=False)


# ------------------------------------------------------------------------------------------ images and containers as files


async def _plan_load(ctx: Context, *, path: str, tag: str | None, engine: str | None) -> Plan | None:
    chosen = await ctx.engines.pick(engine)
    named = _tagged(tag) if tag is not None else None
    plan = await archives.plan_load(chosen, _host_path(path), named)
    return Plan(f"Load {path}, which moves names", plan.lost, plan.digest) if plan is not None else None


@mcp_tool(
    title="Images: load",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_load,
    deadline=lambda _: _ARCHIVE_SECONDS,
)
async def image_load(
    ctx: Context,
    *,
    path: HostFile,
    tag: Annotated[str | None, Field(description="One more name, for an archive of one image", max_length=512)] = None,
    engine: Engine = None,
) -> archive_answers.ImageLoadAnswer:
    """Load the images of an archive, as `docker load` does. Taking a name from another image needs a confirmation."""
    source = _host_path(path)
    named = _tagged(tag) if tag is not None else None
    chosen = await ctx.engines.pick(engine)
    made = await archives.load(chosen, source, named, progress=ctx.progress)
    rows = [
        archive_answers.LoadedRow(id=_short_id(one.id), tags=list(one.tags), size_bytes=one.size_bytes) for one in made
    ]
    return archive_answers.ImageLoadAnswer(path=str(source), images=rows, engine=chosen.name)


async def _plan_save(
    ctx: Context, *, image: str, path: str, format: base.ArchiveFormat, engine: str | None
) -> Plan | None:
    chosen, _ = await stored_images.locate(ctx.engines, image, engine=engine)
    return _plan_overwrite(chosen, path, purpose="the archive of an image")


@mcp_tool(
    title="Images: save",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_save,
    deadline=lambda _: _ARCHIVE_SECONDS,
)
async def image_save(
    ctx: Context,
    *,
    image: Image,
    path: HostFile,
    format: Annotated[
        base.ArchiveFormat, Field(description="The oci ones are the embedded engine's; oci is a folder")
    ] = "docker-archive",
    engine: Engine = None,
) -> archive_answers.ImageSaveAnswer:
    """Write an image to a host file, as `docker save` does, to be loaded elsewhere. Overwriting a file needs a confirmation."""
    chosen, found = await stored_images.locate(ctx.engines, image, engine=engine)
    name = archives.named_or_id(image, found.id, found.tags)
    target = _host_path(path)
    size = await archives.save(chosen, name, target, format=format, progress=ctx.progress)
    return archive_answers.ImageSaveAnswer(
        id=_short_id(found.id), image=image, path=str(target), format=format, bytes=size, engine=chosen.name
    )


async def _plan_import(ctx: Context, *, path: str, tag: str, engine: str | None) -> Plan | None:
    chosen = await ctx.engines.pick(engine)
    plan = await archives.plan_import(chosen, _host_path(path), _tagged(tag))
    return Plan(f"Move the name {tag}", plan.lost, plan.digest) if plan is not None else None


@mcp_tool(
    title="Images: import",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_import,
    deadline=lambda _: _ARCHIVE_SECONDS,
)
async def image_import(
    ctx: Context, *, path: HostFile, tag: Tag, engine: Engine = None
) -> archive_answers.ImageImportAnswer:
    """Make an image, without a command of its own, of a root file system: a tar or a folder. Taking a name from another asks first."""
    source, named = _host_path(path), _tagged(tag)
    chosen = await ctx.engines.pick(engine)
    made = await archives.import_root(chosen, source, named, progress=ctx.progress)
    return archive_answers.ImageImportAnswer(
        id=_short_id(made.id), tag=named, size_bytes=made.size_bytes, path=str(source), engine=chosen.name
    )


async def _plan_export(
    ctx: Context, *, container: str, path: str, format: ExportFormat, engine: str | None
) -> Plan | None:
    chosen = await ctx.engines.holding(container, engine)
    overwrite = _plan_overwrite(chosen, path, purpose="the archive of a container")
    if format != "state" or ctx.settings.policy.foreign != "ask":
        return overwrite
    state = await containers.find(chosen, container)
    if chosen.owns("container", state.id):
        return overwrite
    lost: tuple[str, ...] = (
        f"the moments that {state.name} ({state.id[:12]}, {state.status}), which others made, is paused",
    )
    seen = f"{state.id}:{state.status}"
    if overwrite is not None:
        lost, seen = (*lost, *overwrite.lost), f"{seen}:{overwrite.digest}"
    return Plan(f"Write container {state.name} to {path}", lost, seen)


@mcp_tool(
    title="Containers: export",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_export,
    deadline=lambda _: _ARCHIVE_SECONDS,
)
async def container_export(
    ctx: Context,
    *,
    container: Container,
    path: HostFile,
    format: Annotated[
        ExportFormat, Field(description="state, for container_import, has image and settings too (embedded only)")
    ] = "rootfs",
    engine: Engine = None,
) -> archive_answers.ContainerExportAnswer:
    """Write a container's root file system, without its mounts, to a tar on the host. Overwriting a file needs a confirmation."""
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    target = _host_path(path)
    left_out = None
    if format == "state":
        chosen.judge_foreign(state)  # it is paused meanwhile
        left_out = lifecycle.left_out(await chosen.container_details(state.id))
    size = await archives.export(chosen, state.id, target, name=state.name, format=format, progress=ctx.progress)
    return archive_answers.ContainerExportAnswer(
        container=state.name, path=str(target), format=format, bytes=size, left_out=left_out
    )


def _plan_overwrite(engine: guard.GuardedEngine, path: str, *, purpose: str) -> Plan | None:
    into = engine.resolve_new_path(_host_path(path), purpose=purpose)
    try:
        found = into.lstat()
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode):
        # None is ever replaced but an empty one, with nothing to be lost.
        return None
    seen = f"{into}:{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"
    return Plan(f"Overwrite {into}", (f"{into} ({found.st_size:,} bytes)",), seen)


_host_path = arguments.host_path
_tagged = arguments.tag


def _short_id(id: str) -> str:
    return id.removeprefix("sha256:")[:12]


# ------------------------------------------------------------------------------------------------------------------ limits


async def _plan_update(ctx: Context, *, container: str, engine: str | None, **_: Any) -> Plan | None:
    if ctx.settings.policy.foreign != "ask":
        return None
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    if chosen.owns("container", state.id):
        return None
    lost = (f"the limits that {state.name} ({state.id[:12]}, image {state.image}, {state.status}) has now",)
    action = f"Change the limits of container {state.name}, which this server did not create"
    return Plan(action, lost, f"{state.id}:{state.status}")


@mcp_tool(
    title="Containers: update", read_only=False, destructive=True, idempotent=True, essential=False, plan=_plan_update
)
async def container_update(
    ctx: Context,
    *,
    container: Container,
    memory: Annotated[str | int | None, Field(description="'512m' or bytes")] = None,
    cpus: Annotated[float | None, Field(description="Most CPUs", gt=0, le=1024)] = None,
    pids_limit: Annotated[int | None, Field(description="Most processes", ge=1, le=4_194_304)] = None,
    engine: Engine = None,
) -> archive_answers.ContainerUpdateAnswer:
    """Change the limits of a container, running or not; those that are not named stay."""
    wanted = arguments.limits(memory, cpus, pids_limit, {})
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    now = await limits.update(chosen, state, wanted)
    return archive_answers.ContainerUpdateAnswer(
        container=state.name, memory_bytes=now.memory_bytes, cpus=now.cpus, pids_limit=now.pids_limit
    )


# ----------------------------------------------------------------------------------------------------------------- pruning


def _prune_effect(given: Mapping[str, Any]) -> Effect:
    return "read" if given["dry_run"] else "destroy"


async def _plan_prune(
    ctx: Context, *, kind: PruneKind, older_than: str | None, engine: str | None, **_: Any
) -> Plan | None:
    chosen = await ctx.engines.pick(engine)
    plan = await prune.plan(chosen, kind, older_than_seconds=arguments.duration(older_than, name="older_than") or 0)
    _shown_plan.set(((chosen, kind, older_than), plan))
    if all(one.own for one in plan.objects):
        return None
    lost = [_lost(one) for one in plan.objects[:_MOST_NAMED]]
    if len(plan.objects) > _MOST_NAMED:
        lost.append(f"and {len(plan.objects) - _MOST_NAMED:,} more, which dry_run=true shows")
    return Plan(f"Remove {len(plan.objects)} {kind.replace('_', ' ')} on {chosen.name}", tuple(lost), plan.digest)


@mcp_tool(
    title="Engine: prune",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_prune,
    effect=_prune_effect,
    deadline=lambda _: _PRUNE_SECONDS,
)
async def engine_prune(
    ctx: Context,
    *,
    kind: Annotated[
        PruneKind, Field(description="Stopped containers, untagged images, volumes and so on without users")
    ],
    older_than: Annotated[
        str | None, Field(description="Only what was created before: 30m, 24h, 7d", max_length=32)
    ] = None,
    dry_run: Annotated[bool, Field(description="Only show it")] = True,
    engine: Engine = None,
) -> answers.PruneAnswer:
    """Show what nobody uses, or with dry_run=false remove just that. What others made needs a confirmation."""
    chosen = await ctx.engines.pick(engine)
    plan = await _planned(chosen, kind, older_than, shown=not dry_run)
    if dry_run:
        return _pruned(kind, plan.objects, plan.bytes, dry_run=True)
    done = await prune.carry_out(chosen, plan, progress=ctx.progress)
    answer = _pruned(kind, done.removed, done.freed_bytes, dry_run=False)
    kept = [answers.KeptRow(name=one.object.name, reason=one.reason) for one in done.kept]
    return answer.model_copy(update={"kept": kept})


async def _planned(
    engine: guard.GuardedEngine, kind: PruneKind, older_than: str | None, *, shown: bool
) -> prune.PrunePlan:
    held = _shown_plan.get()
    _shown_plan.set(None)
    if shown and held is not None and held[0] == (engine, kind, older_than):
        return held[1]
    return await prune.plan(engine, kind, older_than_seconds=arguments.duration(older_than, name="older_than") or 0)


def _pruned(
    kind: PruneKind, objects: tuple[prune.Unused, ...], size: int | None, *, dry_run: bool
) -> answers.PruneAnswer:
    return answers.PruneAnswer(
        kind=kind,
        dry_run=dry_run,
        objects=[
            answers.PruneRow(name=one.name, detail=one.detail, created=_time(one.created), size_bytes=one.bytes)
            for one in objects
        ],
        total=len(objects),
        freed_bytes=size,
        # Layers that another image is made of as well stay; an engine may keep cache that was used lately.
        at_most=kind == "images" or (kind == "build_cache" and dry_run),
    )


def _lost(one: prune.Unused) -> str:
    size = f", {sizes.show(one.bytes)}" if one.bytes is not None else ""
    return f"{one.name} ({one.detail}{size})"


async def _connection(
    engine: guard.GuardedEngine, found: storage.Connection, *, connected: bool
) -> answers.ConnectionAnswer:
    now = await engine.container_details(found.container.id)
    return answers.ConnectionAnswer(
        container=found.container.name,
        network=found.network.name,
        connected=connected,
        networks={one.name: one.ip_address for one in now.networks},
    )


def _labels(labels: Mapping[str, str]) -> dict[str, str] | None:
    return {name: value for name, value in labels.items() if not name.startswith(policy.LABEL_PREFIX)} or None


def _time(moment: datetime | None) -> str | None:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else None
