"""The core toolset: what every agent needs of containers and images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from codomyrmex_containerization import errors
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.core import containers, images, status
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.container import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    Isolation,
    PullPolicy,
    Stream,
)
from codomyrmex_containerization.models.engine import EngineProbe
from codomyrmex_containerization.tools import _arguments as arguments
from codomyrmex_containerization.tools import _core_answers as answers
from codomyrmex_containerization.tools._decorator import Plan, mcp_tool

Engine = Annotated[str | None, Field(description="If not the default", max_length=64)]
Container = Annotated[str, Field(description="Name, id or short id", max_length=256)]

_NOT_SET_UP, _READY = "not set up", "ready: toolset registry"
_PULL_SECONDS = 600.0
_FIRST_LINES_SECONDS = 5.0


class HealthcheckArgument(BaseModel):
    """The command that tells whether the container is well."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, defer_build=True)

    command: Annotated[str | list[str], Field(description="A string runs in its shell", max_length=10_000)]
    interval: Annotated[str | None, Field(description="Seconds, or 30s, 5m")] = None
    timeout: Annotated[str | None, Field(description="As interval")] = None
    retries: Annotated[int | None, Field(description="Failures until unhealthy", ge=1, le=1000)] = None
    start_period: Annotated[str | None, Field(description="Grace at the start")] = None


class LimitsArgument(BaseModel):
    """Less common limits."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, defer_build=True)

    memory_reservation: Annotated[str | None, Field(description="As memory")] = None
    cpu_shares: Annotated[int | None, Field(description="Weight; usual: 1024", ge=2, le=262144)] = None
    ulimits: Annotated[dict[str, str] | None, Field(description="nofile: 1024 or '1024:2048'", max_length=20)] = None
    shm_size: Annotated[str | None, Field(description="As memory")] = None
    disk_read: Annotated[str | None, Field(description="A second")] = None
    disk_write: Annotated[str | None, Field(description="A second")] = None


@mcp_tool(title="Containers: runtime status", read_only=True, idempotent=True, deadline=lambda _: 10.0)
async def container_runtime_status(ctx: Context, *, engine: Engine = None) -> answers.StatusAnswer:
    """Show which engines and back ends answer right now, and what would make the others available.

    Also the default engine and usable host paths.
    """
    found = await status.look(ctx.engines, engine=engine)
    return answers.StatusAnswer(
        engines=[_engine_status(probe, default=probe.name == found.default) for probe in found.engines],
        kubernetes=answers.BackEndStatus(state=_NOT_SET_UP),
        registry=answers.BackEndStatus(state=_READY),
        scanners=answers.BackEndStatus(state=_NOT_SET_UP),
        runtimes={
            "docker": found.is_available("docker"),
            "kubernetes": False,
            "registry": True,
            "security_scanner": False,
            "optimizer": False,
        },
        read_only=ctx.settings.read_only,
        allowed_paths=[str(path) for path in ctx.paths.allowed],
    )


@mcp_tool(
    title="Containers: build image",
    read_only=False,
    open_world=True,
    deadline=lambda given: float(given["timeout_seconds"]) + 90.0,
)
async def container_build(
    ctx: Context,
    *,
    image_name: Annotated[str, Field(description="Repository, e.g. shop/web", max_length=512)],
    dockerfile_path: Annotated[
        str, Field(description="Folder (it is the context) or Dockerfile", max_length=4096)
    ] = ".",
    tag: Annotated[str, Field(description="Tag of the image", max_length=128)] = "latest",
    context: Annotated[
        str | None, Field(description="Context folder, if not the Dockerfile's", max_length=4096)
    ] = None,
    dockerfile_text: Annotated[
        str | None,
        Field(description="The Dockerfile itself; COPY then needs context", max_length=1_000_000),
    ] = None,
    target: Annotated[str | None, Field(description="Stage to build", max_length=128)] = None,
    build_args: Annotated[dict[str, str] | None, Field(description="Values of ARG", max_length=200)] = None,
    labels: Annotated[dict[str, str] | None, Field(description="Labels of the image", max_length=200)] = None,
    platforms: Annotated[list[str] | None, Field(description="e.g. linux/arm64; needs BuildKit", max_length=16)] = None,
    no_cache: Annotated[bool, Field(description="Run every step anew")] = False,
    pull: Annotated[bool, Field(description="Fetch newer base images")] = False,
    secrets: Annotated[
        dict[str, str] | None,
        Field(description="id: env:NAME or file:PATH", max_length=50),
    ] = None,
    timeout_seconds: Annotated[float, Field(description="Then the build is stopped", ge=1, le=7200)] = 1200,
    engine: Engine = None,
) -> answers.BuildAnswer:
    """Build an image from a Dockerfile: a folder, a file, or the text of one.

    A failing step answers with the instruction, its line, exit code and last output.
    """
    name = reference.parse(f"{image_name}:{tag}" if ":" not in image_name.rpartition("/")[2] else image_name)
    if name.digest is not None:
        raise errors.InvalidArgument(
            "An image is built under a name and a tag, not a digest.", hint="leave the part behind '@' out"
        )
    request = images.BuildRequest(
        reference=str(name),
        dockerfile=_home_path(dockerfile_path),
        text=dockerfile_text,
        context=_home_path(context) if context is not None else None,
        target=arguments.word(target, name="target"),
        build_args=arguments.env(build_args or {}),
        labels=labels or {},
        platforms=images.platforms(platforms or ()),
        no_cache=no_cache,
        pull=pull,
        secrets=images.secrets(secrets or {}),
    )
    chosen = await ctx.engines.pick(engine)
    made = await images.build(chosen, request, timeout_seconds=timeout_seconds, progress=ctx.progress)
    return answers.BuildAnswer(
        image=made.reference,
        image_id=made.image_id,
        size_bytes=made.size_bytes,
        layers=made.layers,
        seconds=round(made.seconds, 2),
        builder=made.builder,
        steps=made.steps,
        cached_steps=made.cached_steps,
        warnings=list(made.warnings),
        log=list(made.log[-40:]),
    )


@mcp_tool(title="Containers: list", read_only=True, idempotent=True)
async def container_list(
    ctx: Context,
    *,
    all: Annotated[bool, Field(description="Also those that do not run")] = False,
    name: Annotated[str | None, Field(description="Part of the name", max_length=256)] = None,
    label: Annotated[str | None, Field(description="NAME or NAME=VALUE", max_length=512)] = None,
    image: Annotated[str | None, Field(description="Part of the image", max_length=512)] = None,
    status: Annotated[ContainerStatus | None, Field(description="Only in this state")] = None,
    usage: Annotated[bool, Field(description="CPU, memory, processes of running ones")] = True,
    limit: Annotated[int, Field(description="Most rows", ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Field(description="next_cursor of the page before", max_length=256)] = None,
    engine: Engine = None,
) -> answers.ContainerListAnswer:
    """List containers of all engines, newest first, with what they use."""
    given = {"all": all, "name": name, "label": label, "image": image, "status": status, "engine": engine}
    wanted = containers.ContainerFilter(all=all, name=name, label=label, image=image, status=status)
    page = await containers.list_containers(
        ctx.engines,
        wanted,
        engine=engine,
        usage=usage,
        limit=limit,
        after=cursors.decode(cursor, "container_list", given) if cursor is not None else None,
    )
    keys = [(one.row.created.timestamp(), one.row.id) for one in page.containers]
    answer = answers.ContainerListAnswer(
        containers=[_list_row(one) for one in page.containers],
        total=page.total,
        next_cursor=cursors.encode("container_list", given, page.next_key) if page.next_key else None,
        failed=list(page.failed),
    )
    return answer.with_cursors(lambda index: cursors.encode("container_list", given, keys[index]))


def _run_deadline(given: Mapping[str, Any]) -> float:
    return float(given["timeout_seconds"]) + _PULL_SECONDS


@mcp_tool(title="Containers: run", read_only=False, open_world=True, deadline=_run_deadline)
async def container_run(
    ctx: Context,
    *,
    image: Annotated[str, Field(description="Reference or id", max_length=512)],
    command: Annotated[
        list[str] | str | None,
        Field(description="A string is split, not run by a shell", max_length=100_000),
    ] = None,
    name: Annotated[str | None, Field(description="Its name", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$")] = None,
    env: Annotated[dict[str, str] | None, Field(description="Environment", max_length=500)] = None,
    ports: Annotated[
        list[str] | None,
        Field(description="'80' (a free host port), '8080:80[/udp]'; on 127.0.0.1", max_length=100),
    ] = None,
    mounts: Annotated[
        list[str] | None,
        Field(description="'/path:/target[:ro]', 'VOLUME:/target', 'tmpfs:/target[:64m]'", max_length=50),
    ] = None,
    network: Annotated[str | None, Field(description="none, or a network's name", max_length=128)] = None,
    user: Annotated[str | None, Field(description="User or UID[:GID]", max_length=128)] = None,
    workdir: Annotated[str | None, Field(description="Working folder", max_length=4096)] = None,
    entrypoint: Annotated[list[str] | str | None, Field(description="As command", max_length=100_000)] = None,
    stdin: Annotated[str | None, Field(description="Standard input", max_length=4_000_000)] = None,
    detach: Annotated[bool, Field(description="Leave it running")] = False,
    timeout_seconds: Annotated[float, Field(description="Then it is stopped, unless detached", ge=0.1, le=3600)] = 60,
    memory: Annotated[str | int | None, Field(description="'512m' or bytes")] = None,
    cpus: Annotated[float | None, Field(description="Most CPUs", gt=0, le=1024)] = None,
    pids_limit: Annotated[int | None, Field(description="Most processes", ge=1, le=4_194_304)] = None,
    disk: Annotated[str | int | None, Field(description="As memory")] = None,
    limits: Annotated[LimitsArgument | None, Field(description="More limits")] = None,
    read_only_rootfs: Annotated[bool, Field(description="Read-only root")] = False,
    cap_drop: Annotated[list[str] | None, Field(description="Capabilities, or ALL", max_length=64)] = None,
    cap_add: Annotated[list[str] | None, Field(description="Capabilities", max_length=64)] = None,
    privileged: Annotated[bool, Field(description="If policy allows")] = False,
    restart: Annotated[str, Field(description="no, always, unless-stopped, on-failure[:N]", max_length=32)] = "no",
    healthcheck: Annotated[HealthcheckArgument | None, Field(description="Is it well?")] = None,
    labels: Annotated[dict[str, str] | None, Field(description="Labels", max_length=200)] = None,
    pull_policy: Annotated[PullPolicy, Field(description="When to fetch the image")] = "missing",
    platform: Annotated[str | None, Field(description="e.g. linux/arm64", max_length=64)] = None,
    isolation: Annotated[Isolation | None, Field(description="Its walls")] = None,
    keep: Annotated[bool, Field(description="Do not remove it")] = False,
    engine: Engine = None,
) -> answers.RunAnswer:
    """Run a container to its end (exit code, stdout, stderr) and remove it, or start one with detach=true."""
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
        stdin_open=stdin is not None,
        limits=arguments.limits(memory, cpus, pids_limit, limits.model_dump() if limits else {}, disk=disk),
        read_only_rootfs=read_only_rootfs,
        cap_add=tuple(cap_add or ()),
        cap_drop=tuple(cap_drop or ()),
        privileged=privileged,
        restart=arguments.restart(restart),
        healthcheck=arguments.healthcheck(healthcheck.model_dump() if healthcheck else None),
        platform=images.platforms([platform])[0] if platform is not None else None,
        isolation=isolation,
    )
    if not detach and spec.restart.name != "no":
        raise errors.InvalidArgument(
            "A restart policy needs detach=true.", hint="pass detach=true, or leave restart out"
        )
    if detach and stdin is not None:
        raise errors.InvalidArgument("stdin cannot be given to a detached container.", hint="leave stdin or detach out")
    chosen = await ctx.engines.pick(engine)
    if detach:
        state = await containers.run_detached(chosen, spec, pull_policy=pull_policy, progress=ctx.progress)
        return await _detached_answer(ctx, chosen, state)
    ended = await containers.run(
        chosen,
        spec,
        stdin=stdin.encode() if stdin is not None else None,
        timeout_seconds=timeout_seconds,
        pull_policy=pull_policy,
        keep=keep,
        progress=ctx.progress,
    )
    return answers.RunAnswer(
        id=ended.id[:12],
        name=ended.name,
        exit_code=ended.exit_code,
        stdout=ended.stdout,
        stderr=ended.stderr,
        timed_out=ended.timed_out,
        oom_killed=ended.oom_killed,
        seconds=round(ended.seconds, 3),
        kept=ended.kept,
    )


@mcp_tool(title="Containers: logs", read_only=True, deadline=lambda given: float(given["follow_seconds"]) + 60.0)
async def container_logs(
    ctx: Context,
    *,
    container: Container,
    tail: Annotated[int, Field(description="Last lines to show", ge=1, le=5000)] = 200,
    since: Annotated[str | None, Field(description="10m, 2h (ago) or a time", max_length=64)] = None,
    until: Annotated[str | None, Field(description="As since", max_length=64)] = None,
    grep: Annotated[
        str | None,
        Field(description="Only lines with this text, any case; 'a|b' finds either", max_length=500),
    ] = None,
    stream: Annotated[Stream | None, Field(description="Only this stream")] = None,
    timestamps: Annotated[bool, Field(description="Show each line's time")] = False,
    follow_seconds: Annotated[float, Field(description="Wait so long for more", ge=0, le=60)] = 0,
    engine: Engine = None,
) -> answers.LogsAnswer:
    """Read a container's log: its last lines, filtered."""
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    begin, end = arguments.moment(since, name="since"), arguments.moment(until, name="until")
    if begin is not None and end is not None and begin >= end:
        raise errors.InvalidArgument("since is not before until.", hint="swap them")
    return await _logs(
        ctx,
        chosen,
        state,
        tail=tail,
        since=begin,
        until=end,
        grep=grep,
        stream=stream,
        timestamps=timestamps,
        follow=follow_seconds,
    )


async def _plan_remove(ctx: Context, *, container: str, force: bool, volumes: bool, engine: str | None) -> Plan | None:
    chosen = await ctx.engines.holding(container, engine)
    removal = await containers.plan_removal(chosen, container, force=force, volumes=volumes)
    if chosen.owns("container", removal.state.id):
        return None
    return Plan(f"Remove container {removal.state.name}", removal.lost, removal.digest)


@mcp_tool(title="Containers: remove", read_only=False, destructive=True, plan=_plan_remove)
async def container_remove(
    ctx: Context,
    *,
    container: Container,
    force: Annotated[bool, Field(description="Also when it runs")] = False,
    volumes: Annotated[bool, Field(description="Also its anonymous volumes")] = False,
    engine: Engine = None,
) -> answers.RemoveAnswer:
    """Remove a container. One that this server run did not create needs a confirmation."""
    chosen = await ctx.engines.holding(container, engine)
    removal = await containers.plan_removal(chosen, container, force=force, volumes=volumes)
    await containers.remove(chosen, removal.state.id, force=force, volumes=volumes)
    return answers.RemoveAnswer(id=removal.state.id[:12], name=removal.state.name, removed=list(removal.lost))


def _home_path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _engine_status(probe: EngineProbe, *, default: bool) -> answers.EngineStatus:
    info, endpoint = probe.info, probe.endpoint
    where = {"endpoint": endpoint.url if endpoint else None, "endpoint_source": endpoint.source if endpoint else None}
    if info is None:
        return answers.EngineStatus(
            name=probe.name, available=False, default=default, reason=probe.reason, remedy=probe.remedy, **where
        )
    return answers.EngineStatus(
        name=probe.name,
        available=True,
        default=default,
        version=info.version,
        api_version=info.api_version,
        rootless=info.rootless,
        cgroup_version=info.cgroup_version,
        storage_driver=info.storage_driver,
        builder=info.builder,
        containers=info.containers,
        containers_running=info.containers_running,
        images=info.images,
        os=info.os,
        architecture=info.architecture,
        kernel_version=info.kernel_version,
        product=info.product if info.product != probe.name else None,
        lacks=[f"{what.replace('_', ' ')} ({why})" for what, why in info.lacks.items()] or None,
        notes=list(info.notes) or None,
        **where,
    )


def _list_row(one: containers.ListedContainer) -> answers.ContainerListRow:
    row, usage = one.row, one.usage
    traffic = usage.traffic if usage else None
    return answers.ContainerListRow(
        id=row.id[:12],
        name=row.name,
        image=row.image if not row.image.startswith("sha256:") else row.image[7:19],
        status=row.status,
        health=row.health if row.health != "none" else None,
        created=row.created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        ports=[str(port) for port in row.ports] or None,
        engine=row.engine,
        pod=row.pod or None,
        cpu_percent=round(usage.cpu_percent, 1) if usage and usage.cpu_percent is not None else None,
        memory_bytes=usage.memory_bytes if usage else None,
        memory_limit_bytes=usage.memory_limit_bytes if usage else None,
        pids=usage.pids if usage else None,
        network_in=(traffic.network_received_bytes if traffic else None) or None,
        network_out=(traffic.network_sent_bytes if traffic else None) or None,
        block_in=(traffic.block_read_bytes if traffic else None) or None,
        block_out=(traffic.block_written_bytes if traffic else None) or None,
    )


async def _detached_answer(ctx: Context, engine: base.Engine, state: ContainerState) -> answers.RunAnswer:
    ended = state.status in ("exited", "dead")
    said = ""
    if ended:
        log = await _logs(
            ctx, engine, state, tail=20, since=None, until=None, grep=None, stream=None, timestamps=False, follow=0
        )
        said = "\n".join(line.text for line in log.lines)
    return answers.RunAnswer(
        id=state.id[:12],
        name=state.name,
        detached=True,
        state=state.status,
        exit_code=state.exit_code if ended else None,
        oom_killed=state.oom_killed,
        stdout=said,
        kept=True,
        ports=[str(port) for port in state.ports if port.host_port],
        hint="it ended at once; its last lines follow" if ended else None,
    )


async def _logs(
    ctx: Context,
    engine: base.Engine,
    state: ContainerState,
    *,
    tail: int,
    since: datetime | None,
    until: datetime | None,
    grep: str | None,
    stream: Literal["stdout", "stderr"] | None,
    timestamps: bool,
    follow: float,
) -> answers.LogsAnswer:
    wanted = containers.LogRequest(
        base.LogQuery(since=since, until=until, stream=stream), tail=tail, grep=grep, follow_seconds=follow
    )
    page = await containers.logs(engine, state, wanted, ctx.redactor)
    if follow > 0:
        # It may have ended meanwhile, or its engine may have been stopped.
        with suppress(errors.NotFound):
            state = await engine.inspect_container(state.id)
    answer = answers.LogsAnswer(
        container=state.name,
        state=state.status,
        lines=[
            answers.LogRow(stream=line.stream, text=line.text, time=line.timestamp if timestamps else None)
            for line in page.lines
        ],
        total=page.total,
        at_least=not page.exact,
    )
    if page.total > len(page.lines):
        first = page.lines[0].timestamp if page.lines else ""
        answer = answer.model_copy(update={"truncated": answer.more(len(page.lines), first)})
    return answer.with_times([line.timestamp for line in page.lines])
