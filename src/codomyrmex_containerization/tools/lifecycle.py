"""Containers created, renamed, looked into, made images, and brought from machine to machine (toolset `storage`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from codomyrmex_containerization.context import Context
from codomyrmex_containerization.core import containers, lifecycle
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, PullPolicy
from codomyrmex_containerization.models.inside import FileChange
from codomyrmex_containerization.tools import _arguments as arguments
from codomyrmex_containerization.tools import _lifecycle_answers as answers
from codomyrmex_containerization.tools._decorator import Plan, mcp_tool

_TOOLSET = "storage"
_ARCHIVE_SECONDS = 1800.0
_CREATE_SECONDS = 900.0  # a pull counts
_NAME = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$"

Engine = Annotated[str | None, Field(description="If not the default one", max_length=64)]
Container = Annotated[str, Field(description="Name, id or short id", max_length=256)]


@mcp_tool(
    title="Containers: create",
    read_only=False,
    open_world=True,
    essential=False,
    deadline=lambda _: _CREATE_SECONDS,
    toolset=_TOOLSET,
)
async def container_create(
    ctx: Context,
    *,
    image: Annotated[str, Field(description="Reference or id", max_length=512)],
    command: Annotated[list[str] | str | None, Field(description="As container_run's", max_length=100_000)] = None,
    name: Annotated[str | None, Field(description="Its name", pattern=_NAME)] = None,
    env: Annotated[dict[str, str] | None, Field(description="Environment", max_length=500)] = None,
    ports: Annotated[list[str] | None, Field(description="As container_run's", max_length=100)] = None,
    mounts: Annotated[list[str] | None, Field(description="As container_run's", max_length=50)] = None,
    network: Annotated[str | None, Field(description="none, or a network's name", max_length=128)] = None,
    user: Annotated[str | None, Field(description="User or UID[:GID]", max_length=128)] = None,
    workdir: Annotated[str | None, Field(description="Working folder", max_length=4096)] = None,
    entrypoint: Annotated[list[str] | str | None, Field(description="As command", max_length=100_000)] = None,
    memory: Annotated[str | int | None, Field(description="'512m' or bytes")] = None,
    cpus: Annotated[float | None, Field(description="Most CPUs", gt=0, le=1024)] = None,
    pids_limit: Annotated[int | None, Field(description="Most processes", ge=1, le=4_194_304)] = None,
    disk: Annotated[str | int | None, Field(description="As memory")] = None,
    read_only_rootfs: Annotated[bool, Field(description="Read-only root")] = False,
    cap_drop: Annotated[list[str] | None, Field(description="Capabilities, or ALL", max_length=64)] = None,
    restart: Annotated[str, Field(description="no, always, unless-stopped, on-failure[:N]", max_length=32)] = "no",
    labels: Annotated[dict[str, str] | None, Field(description="Labels", max_length=200)] = None,
    pull_policy: Annotated[PullPolicy, Field(description="When to fetch the image")] = "missing",
    isolation: Annotated[Isolation | None, Field(description="Its walls")] = None,
    engine: Engine = None,
) -> answers.CreateAnswer:
    """Make a container without starting it, to copy files into it first; container_control starts it. It stays until it is removed."""
    spec = ContainerSpec(
        image=str(reference.parse(image)) if not reference.is_image_id(image) else image,
        name=name,
        command=arguments.command(command, name="command"),
        entrypoint=arguments.command(entrypoint, name="entrypoint"),
        env=arguments.env(env or {}),
        labels=labels or {},
        ports=arguments.ports(ports or ()),
        mounts=arguments.mounts(mounts or ()),
        network=arguments.word(network, name="network"),
        user=arguments.word(user, name="user"),
        workdir=arguments.word(workdir, name="workdir"),
        limits=arguments.limits(memory, cpus, pids_limit, {}, disk=disk),
        read_only_rootfs=read_only_rootfs,
        cap_drop=tuple(cap_drop or ()),
        restart=arguments.restart(restart),
        isolation=isolation,
    )
    chosen = await ctx.engines.pick(engine)
    made = await containers.create(chosen, spec, pull_policy=pull_policy, progress=ctx.progress)
    return answers.CreateAnswer(id=made.id[:12], container=made.name, image=made.image, engine=chosen.name)


async def _plan_rename(ctx: Context, *, container: str, name: str, engine: str | None) -> Plan | None:
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    if chosen.owns("container", state.id):
        return None
    lost = (f"the name {state.name} ({state.id[:12]}, image {state.image}, {state.status})",)
    action = f"Rename container {state.name}, which this server did not create, to {name}"
    return Plan(action, lost, f"{state.id}:{state.name}")


@mcp_tool(
    title="Containers: rename",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_rename,
    toolset=_TOOLSET,
)
async def container_rename(
    ctx: Context,
    *,
    container: Container,
    name: Annotated[str, Field(description="New name", pattern=_NAME)],
    engine: Engine = None,
) -> answers.RenameAnswer:
    """Give a container another name. One that this server run did not create needs a confirmation: others call it by its name."""
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    now = await lifecycle.rename(chosen, state, name)
    return answers.RenameAnswer(id=now.id[:12], container=now.name, before=state.name)


@mcp_tool(title="Containers: processes", read_only=True, idempotent=True, essential=False, toolset=_TOOLSET)
async def container_top(
    ctx: Context,
    *,
    container: Container,
    limit: Annotated[int, Field(description="Most rows", ge=1, le=500)] = 50,
    engine: Engine = None,
) -> answers.TopAnswer:
    """List the processes of a running container: pid on the engine's host, user, processor time, command."""
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    rows = await lifecycle.top(chosen, state)
    return answers.TopAnswer(
        container=state.name,
        processes=[
            answers.ProcessAnswerRow(pid=row.pid, user=row.user, cpu_seconds=row.cpu_seconds, command=row.command)
            for row in rows[:limit]
        ],
        total=len(rows),
    )


@mcp_tool(title="Containers: diff", read_only=True, idempotent=True, essential=False, toolset=_TOOLSET)
async def container_diff(
    ctx: Context,
    *,
    container: Container,
    path: Annotated[str | None, Field(description="Only this path and what is in it", max_length=4096)] = None,
    limit: Annotated[int, Field(description="Most rows", ge=1, le=500)] = 100,
    cursor: Annotated[str | None, Field(description="next_cursor of the page before", max_length=256)] = None,
    engine: Engine = None,
) -> answers.DiffAnswer:
    """List by path what a container added, changed and deleted of its image's files, without what is mounted."""
    given = {"container": container, "path": path, "engine": engine}
    after = cursors.decode(cursor, "container_diff", given) if cursor is not None else None
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    page = await lifecycle.changes(chosen, state, below=path, limit=limit, after=after)
    answer = answers.DiffAnswer(
        container=state.name,
        changes=[answers.ChangeAnswerRow(kind=one.kind, path=one.path) for one in page.changes],
        counts={str(kind): count for kind, count in page.counts.items()},
        total=sum(page.counts.values()),
        next_cursor=cursors.encode("container_diff", given, page.next_key) if page.next_key else None,
    )

    def behind(index: int) -> str:
        one: FileChange = page.changes[index]
        return cursors.encode("container_diff", given, lifecycle.change_key(page.first + index, one))

    return answer.with_cursors(behind)


async def _plan_commit(ctx: Context, *, container: str, tag: str, engine: str | None, **_: Any) -> Plan | None:
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    taken = await lifecycle.plan_commit(chosen, state, arguments.tag(tag))
    asks = ctx.settings.policy.foreign == "ask" and not chosen.owns("container", state.id)
    if taken is None and not asks:
        return None
    action = f"Make the image {tag} of container {state.name}"
    pause = (f"the moments that {state.name} ({state.id[:12]}, {state.status}), which others made, is paused",)
    lost = (*(pause if asks else ()), *(taken.lost if taken is not None else ()))
    return Plan(action, lost, taken.digest if taken is not None else f"{state.id}:{state.status}")


@mcp_tool(
    title="Containers: commit",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_commit,
    deadline=lambda _: _ARCHIVE_SECONDS,
    toolset=_TOOLSET,
)
async def container_commit(
    ctx: Context,
    *,
    container: Container,
    tag: Annotated[str, Field(description="Its name, e.g. shop/web:1.2", max_length=512)],
    message: Annotated[str | None, Field(description="Why, for the image's history", max_length=1000)] = None,
    engine: Engine = None,
) -> answers.CommitAnswer:
    """Make an image of a container's files and settings, environment included; it is paused meanwhile. Taking a name asks first."""
    named = arguments.tag(tag)
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    made = await lifecycle.commit(chosen, state, tag=named, message=message or "")
    return answers.CommitAnswer(
        container=state.name,
        id=made.id.removeprefix("sha256:")[:12],
        tag=named,
        size_bytes=made.size_bytes,
        engine=chosen.name,
    )


async def _plan_import(ctx: Context, *, path: str, name: str | None, engine: str | None) -> Plan | None:
    chosen = await ctx.engines.pick(engine)
    plan = await lifecycle.plan_import(chosen, arguments.host_path(path))
    return Plan(f"Give the container of {path} what is this machine's", plan.lost, plan.digest) if plan else None


@mcp_tool(
    title="Containers: import",
    read_only=False,
    destructive=True,
    essential=False,
    plan=_plan_import,
    deadline=lambda _: _ARCHIVE_SECONDS,
    toolset=_TOOLSET,
)
async def container_import(
    ctx: Context,
    *,
    path: Annotated[str, Field(description="Host path", min_length=1, max_length=4096)],
    name: Annotated[str | None, Field(description="If not the one it had", pattern=_NAME)] = None,
    engine: Engine = None,
) -> answers.ContainerImportAnswer:
    """Make a container, not started, of a file that container_export wrote with format='state' (embedded). Host mounts ask first."""
    source = arguments.host_path(path)
    chosen = await ctx.engines.pick(engine)
    stored, made = await lifecycle.import_container(chosen, source, name, progress=ctx.progress)
    return answers.ContainerImportAnswer(
        id=made.state.id[:12],
        container=made.state.name,
        state=made.state.status,
        image=lifecycle.shown(stored.image),
        image_id=made.state.image_id.removeprefix("sha256:")[:12],
        mounts=[f"{one.type} {one.name or one.source}:{one.target}" for one in made.state.mounts],
        left_out=[f"what was mounted at {one.target}" for one in made.state.mounts],
        path=str(source),
        engine=chosen.name,
    )
