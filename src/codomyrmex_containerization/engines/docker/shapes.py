"""How do the Engine API's JSON shapes and our models correspond? Pure functions.

Source: https://docs.docker.com/reference/api/engine/ (v1.40 and later; newer fields are optional).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast, get_args

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import (
    STATUSES,
    ContainerRow,
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    Healthcheck,
    HealthStatus,
    Limits,
    Mount,
    MountPoint,
    PortMapping,
    Protocol,
    RestartName,
    RestartPolicy,
    Ulimit,
)
from codomyrmex_containerization.models.details import (
    ContainerDetails,
    ExecSpec,
    ExecState,
    ImageDetails,
    ImageRow,
    Layer,
    NetworkAttachment,
    PathStat,
    SecurityOptions,
)
from codomyrmex_containerization.models.engine import Capability, Endpoint, EngineInfo, EngineKind
from codomyrmex_containerization.models.image import ImageState
from codomyrmex_containerization.models.usage import Traffic, Usage

Json = Mapping[str, Any]

_FRACTION = re.compile(r"\.(\d{1,6})\d*")
_HEALTH_IN_STATUS = re.compile(r"\((healthy|unhealthy|health: starting)\)")
_SHELL = re.compile(r"(?:RUN )?(?:\|\d+ .*?)?/bin/sh -c ", re.DOTALL)
_NANOSECONDS = 1_000_000_000
ELSEWHERE = "a command is killed from the engine's own host only"
# Podman has more words: `stopped` has ended and is not tidied up yet, `initialized` is ready to be started.
_PODMAN_STATUSES = {"stopped": "exited", "stopping": "running", "configured": "created", "initialized": "created"}
# ... and here: `reset` has no result since its log was emptied, `stopped` has none since its container has ended.
_HEALTH = {"": "none", "health: starting": "starting", "reset": "starting", "stopped": "none"}


def instant(text: str | None) -> datetime | None:
    """Parse a time such as 2026-11-21T11:46:44.584967870Z; the zero time of Go is None."""
    if not text or text.startswith("0001-"):
        return None
    trimmed = _FRACTION.sub(lambda match: f".{match[1]:0<6}", text.replace("Z", "+00:00"))
    try:
        return datetime.fromisoformat(trimmed)
    except ValueError:
        return None


def status(text: str, *, engine: str) -> ContainerStatus:
    """Return the status, or raise EngineUnavailable naming one that is not known: never a guess."""
    text = _PODMAN_STATUSES.get(text, text)
    if text not in STATUSES:
        raise errors.EngineUnavailable(
            f"{engine} reports a container status that is not known here: {text!r}.",
            hint="a newer version of this server may know it",
        )
    return cast("ContainerStatus", text)


def health(text: str, *, engine: str) -> HealthStatus:
    """Return the health, or raise EngineUnavailable naming one that is not known: never a guess."""
    text = _HEALTH.get(text, text)
    if text not in get_args(HealthStatus):
        raise errors.EngineUnavailable(
            f"{engine} reports a container health that is not known here: {text!r}.",
            hint="a newer version of this server may know it",
        )
    return cast("HealthStatus", text)


def _listed_health(raw: Json) -> str:
    if raw.get("Health"):  # since API 1.52
        return str(raw["Health"].get("Status") or "")
    match = _HEALTH_IN_STATUS.search(raw.get("Status") or "")
    return match[1] if match else ""


def container_row(raw: Json, *, engine: str) -> ContainerRow:
    """Make a row of one entry of GET /containers/json."""
    names = raw.get("Names") or [""]
    return ContainerRow(
        id=raw["Id"],
        name=min((name.lstrip("/") for name in names), key=lambda name: name.count("/")),
        image=raw.get("Image") or "",
        status=status(raw.get("State") or "", engine=engine),
        health=health(_listed_health(raw), engine=engine),
        created=datetime.fromtimestamp(raw.get("Created") or 0, tz=UTC),
        ports=_listed_ports(raw.get("Ports") or []),
        labels=raw.get("Labels") or {},
        engine=engine,
    )


def container_state(raw: Json, *, engine: str) -> ContainerState:
    """Make a state of GET /containers/ID/json."""
    state, config, host = raw.get("State") or {}, raw.get("Config") or {}, raw.get("HostConfig") or {}
    now = status(state.get("Status") or "", engine=engine)
    started = instant(state.get("StartedAt"))
    return ContainerState(
        id=raw["Id"],
        name=(raw.get("Name") or "").lstrip("/"),
        image=config.get("Image") or "",
        image_id=raw.get("Image") or "",
        status=now,
        exit_code=state.get("ExitCode")
        if started is not None and now not in ("running", "paused", "restarting")
        else None,
        oom_killed=bool(state.get("OOMKilled")),
        error=state.get("Error") or "",
        started_at=started,
        finished_at=instant(state.get("FinishedAt")),
        created=instant(raw.get("Created")) or datetime.fromtimestamp(0, tz=UTC),
        tty=bool(config.get("Tty")),
        env=tuple(config.get("Env") or ()),
        labels=config.get("Labels") or {},
        mounts=(
            *(_mount_point(mount) for mount in raw.get("Mounts") or ()),
            *(MountPoint("tmpfs", "", target, False) for target in host.get("Tmpfs") or ()),
        ),
        ports=_bound_ports((raw.get("NetworkSettings") or {}).get("Ports") or {}),
        privileged=bool(host.get("Privileged")),
        host_namespaces=_host_namespaces(host),
        health=health(str((state.get("Health") or {}).get("Status") or ""), engine=engine),
        writable_bytes=raw.get("SizeRw"),
        engine=engine,
        auto_remove=bool(host.get("AutoRemove")),
    )


def image_state(raw: Json) -> ImageState:
    """Make an image of GET /images/NAME/json."""
    config = raw.get("Config") or {}
    return ImageState(
        id=raw["Id"],
        tags=tuple(raw.get("RepoTags") or ()),
        size_bytes=int(raw.get("Size") or 0),
        created=instant(raw.get("Created")),
        os=raw.get("Os") or "",
        architecture=raw.get("Architecture") or "",
        layers=len((raw.get("RootFS") or {}).get("Layers") or ()),
        labels=config.get("Labels") or {},
        env=tuple(config.get("Env") or ()),
    )


def engine_info(
    raw: Json, *, engine: str, product: EngineKind, api_version: str, endpoint: Endpoint, builder: str
) -> EngineInfo:
    """Make the engine's description of GET /info."""
    cgroup = str(raw.get("CgroupVersion") or "")
    return EngineInfo(
        name=engine,
        version=str(raw.get("ServerVersion") or ""),
        api_version=api_version,
        endpoint=endpoint,
        rootless=any("rootless" in str(option) for option in raw.get("SecurityOptions") or ()),
        cgroup_version=int(cgroup) if cgroup.isdigit() else None,
        storage_driver=str(raw.get("Driver") or ""),
        os=str(raw.get("OperatingSystem") or raw.get("OSType") or ""),
        architecture=str(raw.get("Architecture") or ""),
        containers=int(raw.get("Containers") or 0),
        containers_running=int(raw.get("ContainersRunning") or 0),
        images=int(raw.get("Images") or 0),
        builder=builder,
        kernel_version=str(raw.get("KernelVersion") or ""),
        product=product,
        # The name beside the id: machines that were made as copies of one share the id.
        identity=f"{raw['ID']} {raw.get('Name')}" if raw.get("ID") else "",
        lacks=_lacks(endpoint, builder),
    )


def _lacks(endpoint: Endpoint, builder: str) -> dict[Capability, str]:
    lacks: dict[Capability, str] = {"container_state": base.STATE_ELSEWHERE}
    if builder != "buildkit":
        lacks["build_secrets"] = "docker buildx is not installed"
    if endpoint.socket_path is None:
        lacks["exec_kill"] = ELSEWHERE
    return lacks


def container_details(raw: Json, *, engine: str) -> ContainerDetails:
    """Make details of GET /containers/ID/json."""
    config, host, state = raw.get("Config") or {}, raw.get("HostConfig") or {}, raw.get("State") or {}
    checks = (state.get("Health") or {}).get("Log") or ()
    restart = host.get("RestartPolicy") or {}
    options = [str(one) for one in host.get("SecurityOpt") or ()]
    return ContainerDetails(
        state=container_state(raw, engine=engine),
        entrypoint=_words(config.get("Entrypoint")),
        command=_words(config.get("Cmd")),
        workdir=config.get("WorkingDir") or "",
        hostname=config.get("Hostname") or "",
        pid=int(state.get("Pid") or 0),
        restart=RestartPolicy(
            cast("RestartName", restart.get("Name") or "no"), int(restart.get("MaximumRetryCount") or 0)
        ),
        restart_count=int(raw.get("RestartCount") or 0),
        healthcheck=_read_healthcheck(config.get("Healthcheck")),
        health_failures=int((state.get("Health") or {}).get("FailingStreak") or 0),
        health_output=str(checks[-1].get("Output") or "") if checks else "",
        networks=tuple(
            NetworkAttachment(
                name, one.get("IPAddress") or "", one.get("Gateway") or "", tuple(one.get("Aliases") or ())
            )
            for name, one in ((raw.get("NetworkSettings") or {}).get("Networks") or {}).items()
        ),
        limits=_read_limits(host),
        security=SecurityOptions(
            user=config.get("User") or "",
            privileged=bool(host.get("Privileged")),
            cap_add=tuple(host.get("CapAdd") or ()),
            cap_drop=tuple(host.get("CapDrop") or ()),
            seccomp=_security_option(options, "seccomp") or ("unconfined" if host.get("Privileged") else "default"),
            apparmor=_security_option(options, "apparmor") or str(raw.get("AppArmorProfile") or ""),
            read_only_rootfs=bool(host.get("ReadonlyRootfs")),
            no_new_privileges=any(one.startswith("no-new-privileges") and not one.endswith("false") for one in options),
            devices=tuple(str(one.get("PathOnHost") or "") for one in host.get("Devices") or ()),
        ),
        log_driver=str((host.get("LogConfig") or {}).get("Type") or ""),
    )


def image_row(raw: Json, *, engine: str) -> ImageRow:
    """Make a row of one entry of GET /images/json."""
    return ImageRow(
        id=raw["Id"],
        tags=tuple(tag for tag in raw.get("RepoTags") or () if tag != "<none>:<none>"),
        digests=tuple(one for one in raw.get("RepoDigests") or () if not one.startswith("<none>")),
        size_bytes=int(raw.get("Size") or 0),
        created=datetime.fromtimestamp(raw.get("Created") or 0, tz=UTC),
        labels=raw.get("Labels") or {},
        engine=engine,
    )


def image_details(raw: Json, history: Sequence[Json]) -> ImageDetails:
    """Make details of GET /images/NAME/json and GET /images/NAME/history."""
    config = raw.get("Config") or {}
    return ImageDetails(
        id=raw["Id"],
        tags=tuple(raw.get("RepoTags") or ()),
        digests=tuple(raw.get("RepoDigests") or ()),
        size_bytes=int(raw.get("Size") or 0),
        created=instant(raw.get("Created")),
        os=raw.get("Os") or "",
        architecture=raw.get("Architecture") or "",
        variant=raw.get("Variant") or "",
        user=config.get("User") or "",
        env=tuple(config.get("Env") or ()),
        entrypoint=_words(config.get("Entrypoint")),
        command=_words(config.get("Cmd")),
        workdir=config.get("WorkingDir") or "",
        exposed_ports=tuple(sorted(config.get("ExposedPorts") or ())),
        volumes=tuple(sorted(config.get("Volumes") or ())),
        labels=config.get("Labels") or {},
        healthcheck=_read_healthcheck(config.get("Healthcheck")),
        layers=tuple(
            Layer(
                size_bytes=int(one.get("Size") or 0),
                instruction=_instruction(str(one.get("CreatedBy") or "")),
                created=datetime.fromtimestamp(one["Created"], tz=UTC) if one.get("Created") else None,
            )
            for one in history
        ),
    )


def removed_image(raw: Sequence[Json]) -> tuple[str, ...]:
    """Return the names and the ids that DELETE /images/NAME took away."""
    return tuple(str(value) for one in raw for key, value in one.items() if key in ("Untagged", "Deleted"))


def exec_state(raw: Json) -> ExecState:
    """Make a state of GET /exec/ID/json."""
    running = bool(raw.get("Running"))
    return ExecState(running, None if running else raw.get("ExitCode"), int(raw.get("Pid") or 0))


def path_stat(header: str | None) -> PathStat:
    """Make a path's state of the header X-Docker-Container-Path-Stat; the mode bits are Go's (os.ModeDir is 1 << 31)."""
    raw = json.loads(base64.b64decode(header or "") or b"{}")
    mode = int(raw.get("mode") or 0)
    # Podman names a target for everything: its own path for what is no link (os.ModeSymlink is 1 << 27).
    target = str(raw.get("linkTarget") or "") if mode & 1 << 27 else ""
    return PathStat(str(raw.get("name") or ""), int(raw.get("size") or 0), bool(mode & 1 << 31), target)


def exec_body(spec: ExecSpec) -> dict[str, Any]:
    """Make the body of POST /containers/ID/exec."""
    body: dict[str, Any] = {
        "AttachStdin": spec.stdin,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "Cmd": list(spec.command),
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "User": spec.user,
        "WorkingDir": spec.workdir,
    }
    return {key: value for key, value in body.items() if value is not None}


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(one) for one in value) if isinstance(value, list) else ()


def _instruction(created_by: str) -> str:
    """Return the instruction behind a layer as a Dockerfile has it, whichever builder wrote the history."""
    if not created_by:
        return "(imported)"
    text = created_by.removesuffix("# buildkit").strip()
    if text.startswith("/bin/sh -c #(nop) "):
        return text.removeprefix("/bin/sh -c #(nop) ").strip()
    # Build arguments stand in front of the shell: `|2 NAME=value NAME=value /bin/sh -c ...`.
    shell = _SHELL.match(text)
    return f"RUN {text[shell.end() :]}" if shell else text


def _security_option(options: Sequence[str], name: str) -> str:
    for one in options:
        key, _, value = one.replace(":", "=", 1).partition("=")
        if key == name:
            return "custom" if value.startswith("{") else value
    return ""


def _read_healthcheck(raw: Json | None) -> Healthcheck | None:
    test = _words((raw or {}).get("Test"))
    if raw is None or not test or test == ("NONE",):
        return None

    def seconds(key: str) -> float | None:
        return raw[key] / _NANOSECONDS if raw.get(key) else None

    return Healthcheck(
        test, seconds("Interval"), seconds("Timeout"), raw.get("Retries") or None, seconds("StartPeriod")
    )


def _read_limits(host: Json) -> Limits:
    pids = host.get("PidsLimit")
    quota, period = host.get("CpuQuota") or 0, host.get("CpuPeriod") or 100_000
    cpus = host["NanoCpus"] / _NANOSECONDS if host.get("NanoCpus") else quota / period if quota > 0 else None
    return Limits(
        memory_bytes=host.get("Memory") or None,
        memory_reservation_bytes=host.get("MemoryReservation") or None,
        cpus=cpus,
        cpu_shares=host.get("CpuShares") or None,
        pids_limit=pids if pids and pids > 0 else None,
        shm_bytes=host.get("ShmSize") or None,
        ulimits=tuple(Ulimit(one["Name"], one["Soft"], one["Hard"]) for one in host.get("Ulimits") or ()),
    )


def usage(raw: Json) -> Usage | None:
    """Make usage of GET /containers/ID/stats as `docker stats` computes it; None when the container does not run."""
    memory, cpu, before = raw.get("memory_stats") or {}, raw.get("cpu_stats") or {}, raw.get("precpu_stats") or {}
    if "usage" not in memory:
        return None
    details = memory.get("stats") or {}
    # With control groups of version 1 the first, of version 2 the second.
    used, cache = int(memory["usage"]), int(details.get("total_inactive_file", details.get("inactive_file", 0)))
    spent = (cpu.get("cpu_usage") or {}).get("total_usage", 0) - (before.get("cpu_usage") or {}).get("total_usage", 0)
    elapsed = cpu.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    cpus = cpu.get("online_cpus") or len((cpu.get("cpu_usage") or {}).get("percpu_usage") or ()) or 1
    percent = 100.0 * spent / elapsed * cpus if elapsed > 0 and before.get("system_cpu_usage") else None
    return Usage(
        cpu_percent=percent,
        memory_bytes=used - cache if cache < used else used,
        memory_limit_bytes=memory.get("limit"),
        pids=int((raw.get("pids_stats") or {}).get("current") or 0),
        traffic=_traffic(raw),
    )


def _traffic(raw: Json) -> Traffic:
    networks, devices = raw.get("networks"), (raw.get("blkio_stats") or {}).get("io_service_bytes_recursive")

    def moved(key: str) -> int | None:
        return sum(int(one.get(key) or 0) for one in networks.values()) if networks else None

    def block(word: str) -> int | None:
        if devices is None:
            return None
        return sum(int(one.get("value") or 0) for one in devices if str(one.get("op")).lower() == word)

    return Traffic(moved("rx_bytes"), moved("tx_bytes"), block("read"), block("write"))


def create_body(spec: ContainerSpec) -> dict[str, Any]:
    """Make the body of POST /containers/create; what the spec leaves open is left to the engine."""
    body: dict[str, Any] = {
        "Image": spec.image,
        "Cmd": list(spec.command) if spec.command is not None else None,
        "Entrypoint": list(spec.entrypoint) if spec.entrypoint is not None else None,
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "Labels": dict(spec.labels),
        "User": spec.user,
        "WorkingDir": spec.workdir,
        "OpenStdin": spec.stdin_open,
        "StdinOnce": spec.stdin_open,
        "AttachStdin": spec.stdin_open,
        "AttachStdout": True,
        "AttachStderr": True,
        "ExposedPorts": {f"{port.container_port}/{port.protocol}": {} for port in spec.ports},
        "Healthcheck": _healthcheck(spec.healthcheck) if spec.healthcheck else None,
        "HostConfig": _host_config(spec),
    }
    return {key: value for key, value in body.items() if value is not None}


def _host_config(spec: ContainerSpec) -> dict[str, Any]:
    body: dict[str, Any] = {
        **_limits(spec.limits),
        "NetworkMode": spec.network,
        "PortBindings": _port_bindings(spec.ports),
        "Mounts": [_mount(mount) for mount in spec.mounts],
        "ReadonlyRootfs": spec.read_only_rootfs,
        "CapAdd": list(spec.cap_add),
        "CapDrop": list(spec.cap_drop),
        "Privileged": spec.privileged,
        "SecurityOpt": ["no-new-privileges"] if spec.isolation is not None else None,
        "StorageOpt": {"size": str(spec.limits.disk_bytes)} if spec.limits.disk_bytes is not None else None,
        "RestartPolicy": {"Name": spec.restart.name, "MaximumRetryCount": spec.restart.maximum_retry_count},
    }
    return {key: value for key, value in body.items() if value is not None}


def _limits(limits: Limits) -> dict[str, Any]:
    return {
        "Memory": limits.memory_bytes,
        "MemoryReservation": limits.memory_reservation_bytes,
        "NanoCpus": round(limits.cpus * _NANOSECONDS) if limits.cpus is not None else None,
        "CpuShares": limits.cpu_shares,
        "PidsLimit": limits.pids_limit,
        "ShmSize": limits.shm_bytes,
        "Ulimits": [{"Name": one.name, "Soft": one.soft, "Hard": one.hard} for one in limits.ulimits] or None,
    }


def _mount(mount: Mount) -> dict[str, Any]:
    body: dict[str, Any] = {"Type": mount.type, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.source:
        body["Source"] = mount.source
    if mount.type == "tmpfs" and mount.size_bytes is not None:
        body["TmpfsOptions"] = {"SizeBytes": mount.size_bytes}
    if mount.type == "volume" and mount.labels:
        body["VolumeOptions"] = {"Labels": dict(mount.labels)}
    return body


def _port_bindings(ports: Sequence[PortMapping]) -> dict[str, list[dict[str, str]]]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        binding = {"HostIp": port.host_ip or "", "HostPort": str(port.host_port) if port.host_port else ""}
        bindings.setdefault(f"{port.container_port}/{port.protocol}", []).append(binding)
    return bindings


def _healthcheck(check: Healthcheck) -> dict[str, Any]:
    def nanoseconds(seconds: float | None) -> int | None:
        return round(seconds * _NANOSECONDS) if seconds is not None else None

    body = {
        "Test": list(check.test),
        "Interval": nanoseconds(check.interval_seconds),
        "Timeout": nanoseconds(check.timeout_seconds),
        "Retries": check.retries,
        "StartPeriod": nanoseconds(check.start_period_seconds),
    }
    return {key: value for key, value in body.items() if value is not None}


def _listed_ports(entries: Sequence[Json]) -> tuple[PortMapping, ...]:
    ports = {
        PortMapping(
            container_port=int(entry["PrivatePort"]),
            protocol=cast("Protocol", entry.get("Type") or "tcp"),
            host_ip=(entry.get("IP") or "0.0.0.0") if entry.get("PublicPort") else None,  # noqa: S104  an answer of the engine, not a bind
            host_port=entry.get("PublicPort"),
        )
        for entry in entries
    }
    return _sorted_ports(ports)


def _bound_ports(entries: Mapping[str, Sequence[Mapping[str, str]] | None]) -> tuple[PortMapping, ...]:
    ports: set[PortMapping] = set()
    for key, bindings in entries.items():
        number, _, protocol = key.partition("/")
        for binding in bindings or [{}]:
            ports.add(
                PortMapping(
                    container_port=int(number),
                    protocol=cast("Protocol", protocol or "tcp"),
                    host_ip=(binding.get("HostIp") or "0.0.0.0") if binding else None,  # noqa: S104  an answer of the engine
                    host_port=int(binding["HostPort"]) if binding.get("HostPort") else None,
                )
            )
    return _sorted_ports(ports)


def _sorted_ports(ports: set[PortMapping]) -> tuple[PortMapping, ...]:
    # The engine names a port published on all addresses twice, for IPv4 and IPv6: one of them says it.
    kept = {
        port
        for port in ports
        if port.host_ip != "::"
        or PortMapping(port.container_port, port.protocol, "0.0.0.0", port.host_port) not in ports  # noqa: S104
    }
    return tuple(
        sorted(kept, key=lambda port: (port.container_port, port.protocol, port.host_ip or "", port.host_port or 0))
    )


def _mount_point(raw: Json) -> MountPoint:
    return MountPoint(
        type=raw.get("Type") or "bind",
        source=raw.get("Source") or "",
        target=raw.get("Destination") or "",
        read_only=not raw.get("RW", True),
        name=raw.get("Name") or "",
    )


def _host_namespaces(host: Json) -> tuple[str, ...]:
    modes = {
        "network": "NetworkMode",
        "pid": "PidMode",
        "ipc": "IpcMode",
        "uts": "UTSMode",
        "user": "UsernsMode",
        "cgroup": "CgroupnsMode",
    }
    return tuple(name for name, key in modes.items() if host.get(key) == "host")
