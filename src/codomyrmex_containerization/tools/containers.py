"""Single containers, seen from all sides and acted upon: inspect, exec, control, copy (toolset `core`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from codomyrmex_containerization import errors
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.core import containers, copies, execs
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.models.container import ContainerState, Healthcheck, Limits
from codomyrmex_containerization.models.details import ContainerDetails, ExecSpec, SecurityOptions
from codomyrmex_containerization.tools import _arguments as arguments
from codomyrmex_containerization.tools import _container_answers as answers
from codomyrmex_containerization.tools._decorator import Effect, Plan, mcp_tool

_COPY_SECONDS = 1800.0

Engine = Annotated[str | None, Field(description="If not the default", max_length=64)]
Container = Annotated[str, Field(description="Name, id or short id", max_length=256)]
Place = Annotated[str, Field(description="container:/path, or a host path", max_length=4096)]

_IN_CONTAINER = re.compile(r"(?P<container>[a-zA-Z0-9][a-zA-Z0-9_.-]*):(?P<path>.*)\Z", re.DOTALL)


@mcp_tool(title="Containers: inspect", read_only=True, idempotent=True, toolset="core")
async def container_inspect(ctx: Context, *, container: Container, engine: Engine = None) -> answers.InspectAnswer:
    """Show one container: state and health, configuration, mounts, networks, ports, limits, security."""
    chosen = await ctx.engines.holding(container, engine)
    found = await containers.find_details(chosen, container)
    return _inspected(found, own=chosen.owns("container", found.state.id))


async def _plan_exec(ctx: Context, *, container: str, engine: str | None, **_: Any) -> Plan | None:
    return await _plan_foreign(ctx, container, engine, "Run a command in")


@mcp_tool(
    title="Containers: exec",
    read_only=False,
    destructive=True,
    open_world=True,
    plan=_plan_exec,
    deadline=lambda given: float(given["timeout_seconds"]) + 60.0,
    toolset="core",
)
async def container_exec(
    ctx: Context,
    *,
    container: Container,
    command: Annotated[list[str] | str, Field(description="A string is split, not run by a shell")],
    stdin: Annotated[str | None, Field(description="Standard input", max_length=4_000_000)] = None,
    user: Annotated[str | None, Field(description="User or UID[:GID]", max_length=128)] = None,
    workdir: Annotated[str | None, Field(description="Working folder", max_length=4096)] = None,
    env: Annotated[dict[str, str] | None, Field(description="Environment variables", max_length=500)] = None,
    timeout_seconds: Annotated[float, Field(description="Then it is killed", ge=0.1, le=3600)] = 30,
    engine: Engine = None,
) -> answers.ExecAnswer:
    """Run a command in a running container: exit code, stdout and stderr apart."""
    words = arguments.command(command, name="command")
    if not words:
        raise errors.InvalidArgument("command is empty.", hint="give at least the program")
    spec = ExecSpec(
        command=words,
        env=arguments.env(env or {}),
        user=arguments.word(user, name="user"),
        workdir=arguments.word(workdir, name="workdir"),
        stdin=stdin is not None,
    )
    chosen, state = await _writable(ctx, container, engine)
    ended = await execs.execute(
        chosen, state, spec, stdin=stdin.encode() if stdin is not None else None, timeout_seconds=timeout_seconds
    )
    return answers.ExecAnswer(
        container=state.name,
        exit_code=ended.exit_code,
        stdout=ended.stdout,
        stderr=ended.stderr,
        timed_out=ended.timed_out,
        killed=ended.killed if ended.timed_out else None,
        seconds=round(ended.seconds, 3),
    )


async def _plan_control(ctx: Context, *, container: str, action: str, engine: str | None, **_: Any) -> Plan | None:
    return await _plan_foreign(ctx, container, engine, f"{action.title()}")


@mcp_tool(
    title="Containers: control",
    read_only=False,
    destructive=True,
    plan=_plan_control,
    deadline=lambda given: float(given["timeout_seconds"]) + 150.0,
    toolset="core",
)
async def container_control(
    ctx: Context,
    *,
    container: Container,
    action: Annotated[containers.Action, Field(description="What to do")],
    timeout_seconds: Annotated[float, Field(description="stop, restart: then it is killed", ge=0, le=600)] = 10,
    signal: Annotated[str | None, Field(description="kill: e.g. TERM, HUP", pattern=r"^(SIG)?[A-Z0-9+]{1,12}$")] = None,
    engine: Engine = None,
) -> answers.ControlAnswer:
    """Start, stop, restart, pause, unpause or kill a container; answers its state before and after."""
    if signal is not None and action != "kill":
        raise errors.InvalidArgument(
            "signal goes with action='kill' only.", hint="leave signal out, or use action='kill'"
        )
    chosen, before = await _writable(ctx, container, engine)
    after = await containers.control(chosen, before, action, timeout_seconds=timeout_seconds, signal=signal)
    return answers.ControlAnswer(
        container=after.name, action=action, before=before.status, after=after.status, exit_code=after.exit_code
    )


def _copy_effect(given: Mapping[str, Any]) -> Effect:
    return "write" if _IN_CONTAINER.match(str(given["target"])) else "destroy"


async def _plan_copy(ctx: Context, *, source: str, target: str, engine: str | None) -> Plan | None:
    inside, outside = _IN_CONTAINER.match(target), _IN_CONTAINER.match(source)
    if inside is not None:
        return await _plan_foreign(ctx, inside["container"], engine, "Copy files into")
    if outside is None:
        return None
    into = _host_target(await ctx.engines.holding(outside["container"], engine), target, outside["path"])
    if not os.path.lexists(into):
        return None
    found = into.lstat()
    size = "files of the same names in it" if into.is_dir() else f"{found.st_size:,} bytes"
    seen = f"{into}:{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"
    return Plan(f"Overwrite {into}", (f"{into} ({size})",), seen)


@mcp_tool(
    title="Containers: copy",
    read_only=False,
    destructive=True,
    plan=_plan_copy,
    effect=_copy_effect,
    deadline=lambda _: _COPY_SECONDS,
    toolset="core",
)
async def container_copy(ctx: Context, *, source: Place, target: Place, engine: Engine = None) -> answers.CopyAnswer:
    """Copy a file or folder between a container and the host, as `docker cp` does."""
    inside, outside = _IN_CONTAINER.match(target), _IN_CONTAINER.match(source)
    if inside is not None and outside is None:
        chosen, state = await _writable(ctx, inside["container"], engine)
        place = chosen.resolve_path(_host_path(source), purpose="a copy")
        made = await copies.copy_in(chosen, state.id, place, inside["path"] or "/", contents=_is_contents(source))
    elif outside is not None and inside is None:
        chosen, state = await containers.locate(ctx.engines, outside["container"], engine=engine)
        made = await copies.copy_out(
            chosen, state.id, outside["path"] or "/", _host_target(chosen, target, outside["path"])
        )
    else:
        raise errors.InvalidArgument(
            "One of source and target must be container:/path, the other a host path.",
            hint="for example: container_copy(source='web:/var/log/app.log', target='./app.log')",
        )
    return answers.CopyAnswer(target=made.target, files=made.files, bytes=made.bytes, skipped=list(made.skipped))


async def _writable(ctx: Context, container: str, engine: str | None) -> tuple[guard.GuardedEngine, ContainerState]:
    """Find a container that may be written to. Raises Refused for one of others that the policy would not let us create."""
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    chosen.judge_foreign(state)
    return chosen, state


async def _plan_foreign(ctx: Context, container: str, engine: str | None, what: str) -> Plan | None:
    if ctx.settings.policy.foreign != "ask":
        return None
    chosen, state = await containers.locate(ctx.engines, container, engine=engine)
    if chosen.owns("container", state.id):
        return None
    lost = (f"whatever the call changes in {state.name} ({state.id[:12]}, image {state.image}, {state.status})",)
    return Plan(f"{what} container {state.name}, which this server did not create", lost, f"{state.id}:{state.status}")


def _is_contents(source: str) -> bool:
    """Say whether what a folder holds is meant, not the folder itself: `folder/.`, as `docker cp` has it."""
    return source == "." or source.endswith("/.")


def _host_path(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))


def _host_target(engine: guard.GuardedEngine, text: str, source: str) -> Path:
    """Return the host path that a copy becomes: the one that is named, or the source's name in a folder that is there."""
    path = _host_path(text)
    if os.path.isdir(path) and not _is_contents(source):
        name = os.path.basename(os.path.normpath(source)).strip("/.")
        if not name:
            raise errors.InvalidArgument(
                "The whole file system of a container is not copied.", hint="name a folder of it"
            )
        return engine.resolve_new_path(path / name, purpose="the target of a copy")
    if text.endswith("/"):
        raise errors.InvalidArgument(f"The folder {path} does not exist.", hint="create it first")
    return engine.resolve_new_path(path, purpose="the target of a copy")


def _inspected(found: ContainerDetails, *, own: bool) -> answers.InspectAnswer:
    state = found.state
    return answers.InspectAnswer(
        id=state.id[:12],
        name=state.name,
        engine=state.engine,
        image=state.image,
        image_id=state.image_id.removeprefix("sha256:")[:12],
        state=state.status,
        exit_code=state.exit_code,
        oom_killed=state.oom_killed or None,
        error=state.error or None,
        health=state.health if state.health != "none" else None,
        health_failures=found.health_failures or None,
        health_output=found.health_output,
        created=state.created.isoformat(timespec="seconds"),
        started=state.started_at.isoformat(timespec="seconds") if state.started_at else None,
        finished=state.finished_at.isoformat(timespec="seconds") if state.finished_at else None,
        restart_count=found.restart_count,
        restart=str(found.restart),
        command=list(found.command),
        entrypoint=list(found.entrypoint) or None,
        workdir=found.workdir or None,
        hostname=found.hostname or None,
        env=list(state.env),
        labels=dict(state.labels),
        mounts=[
            f"{one.type} {one.name or one.source}:{one.target}{':ro' if one.read_only else ''}" for one in state.mounts
        ],
        networks=[f"{one.name} {one.ip_address}".strip() for one in found.networks],
        ports=[str(port) for port in state.ports],
        limits=_limits(found.limits, found.limits_by),
        security=_security(found.security, state.host_namespaces),
        healthcheck=_healthcheck(found.healthcheck),
        log_driver=found.log_driver or None,
        own=own,
    )


def _limits(limits: Limits, by: Mapping[str, str]) -> dict[str, int | float | str]:
    shown: dict[str, int | float | str | None] = {
        "memory_bytes": limits.memory_bytes,
        "memory_reservation_bytes": limits.memory_reservation_bytes,
        "cpus": limits.cpus,
        "cpu_shares": limits.cpu_shares,
        "pids_limit": limits.pids_limit,
        "shm": sizes.show(limits.shm_bytes) if limits.shm_bytes else None,
        "ulimits": " ".join(f"{one.name}={one.soft}:{one.hard}" for one in limits.ulimits) or None,
        "disk_bytes": limits.disk_bytes,
        "disk_read_bytes_per_second": limits.disk_read_bytes_per_second,
        "disk_write_bytes_per_second": limits.disk_write_bytes_per_second,
        "held_by": " ".join(f"{name}={what}" for name, what in by.items()) or None,
    }
    return {key: value for key, value in shown.items() if value is not None}


def _security(found: SecurityOptions, namespaces: Sequence[str]) -> dict[str, bool | str | list[str]]:
    # Where cgroups are of version 1, every container shares the host's cgroup namespace.
    shared = [name for name in namespaces if name != "cgroup"]
    return {
        "user": found.user or "root",
        "privileged": found.privileged,
        "read_only_rootfs": found.read_only_rootfs,
        "no_new_privileges": found.no_new_privileges,
        "seccomp": found.seccomp,
        **({"apparmor": found.apparmor} if found.apparmor else {}),
        **({"cap_add": list(found.cap_add)} if found.cap_add else {}),
        **({"cap_drop": list(found.cap_drop)} if found.cap_drop else {}),
        **({"devices": list(found.devices)} if found.devices else {}),
        **({"host_namespaces": shared} if shared else {}),
    }


def _healthcheck(check: Healthcheck | None) -> str | None:
    if check is None:
        return None
    every = f" every {check.interval_seconds:g} s" if check.interval_seconds else ""
    return f"{' '.join(check.test[1:])}{every}"
