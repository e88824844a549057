"""How do the shapes of Podman's own API (libpod) and our models correspond? Pure functions.

Source: https://docs.podman.io/en/latest/_static/api.html (4.0 and later; newer fields are optional).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

from codomyrmex_containerization.engines.docker import objects, shapes
from codomyrmex_containerization.models.container import (
    ContainerRow,
    ContainerState,
    Limits,
    OutputFrame,
    PortMapping,
    Protocol,
    Ulimit,
)
from codomyrmex_containerization.models.details import ContainerDetails, ImageRow
from codomyrmex_containerization.models.engine import Endpoint, EngineInfo
from codomyrmex_containerization.models.event import EngineEvent
from codomyrmex_containerization.models.usage import Counters, Traffic

Json = Mapping[str, Any]

_ID = re.compile(r"[0-9a-f]{64}")
_WHOLE_SECONDS = re.compile(rb"\A(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(Z|[+-]\d\d:\d\d) ")
_OWN_TROUBLE = re.compile(rb"Error: (?:read|write) unixpacket [^\n]*/attach: [^\n]*\n?")
_CPU_PERIOD = 100_000
_NETWORK_THE_RIGHT_WAY_ROUND_SINCE = (4, 4)  # containers/podman, pull request 16628
# Podman's word for what happened -> Docker's, by the kind of thing it happened to.
_ACTIONS = {
    ("container", "died"): "die",
    ("container", "remove"): "destroy",
    ("container", "exec_died"): "exec_die",
    ("image", "remove"): "delete",
    ("volume", "remove"): "destroy",
    ("network", "remove"): "destroy",
}


def engine_info(raw: Json, *, engine: str, endpoint: Endpoint, api_version: str) -> EngineInfo:
    """Make the engine's description of GET /libpod/info."""
    host, store = raw.get("host") or {}, raw.get("store") or {}
    containers, system = store.get("containerStore") or {}, host.get("distribution") or {}
    root = store.get("graphRoot")
    return EngineInfo(
        name=engine,
        version=str((raw.get("version") or {}).get("Version") or ""),
        api_version=api_version,
        endpoint=endpoint,
        rootless=bool((host.get("security") or {}).get("rootless")),
        cgroup_version={"v1": 1, "v2": 2}.get(str(host.get("cgroupVersion") or "")),
        storage_driver=str(store.get("graphDriverName") or ""),
        os=f"{system.get('distribution') or host.get('os') or ''} {system.get('version') or ''}".strip(),
        architecture=str(host.get("arch") or ""),
        containers=int(containers.get("number") or 0),
        containers_running=int(containers.get("running") or 0),
        images=int((store.get("imageStore") or {}).get("number") or 0),
        builder="classic",
        kernel_version=str(host.get("kernel") or ""),
        product="podman",
        # Podman has no id: on this host it is the one that keeps its containers in that folder.
        identity=f"{host.get('hostname')} {root}" if root and endpoint.socket_path is not None else "",
    )


def container_row(raw: Json, *, engine: str) -> ContainerRow:
    """Make a row of one entry of GET /libpod/containers/json."""
    names = raw.get("Names") or [""]
    return ContainerRow(
        id=raw["Id"],
        name=str(names[0]),
        image=familiar(str(raw.get("Image") or "")),
        status=shapes.status(str(raw.get("State") or ""), engine=engine),
        health=shapes.health(str(raw.get("Status") or ""), engine=engine),
        created=shapes.instant(str(raw.get("Created") or "")) or datetime.fromtimestamp(0, tz=UTC),
        pod=str(raw.get("PodName") or str(raw.get("Pod") or "")[:12]),
        ports=_ports(raw.get("Ports") or ()),
        labels=raw.get("Labels") or {},
        engine=engine,
    )


def container_details(details: ContainerDetails) -> ContainerDetails:
    """Name limits and capabilities as Docker does."""
    limits = replace(
        details.limits,
        ulimits=tuple(
            Ulimit(one.name.removeprefix("RLIMIT_").lower(), one.soft, one.hard) for one in details.limits.ulimits
        ),
    )
    return replace(details, limits=limits, state=state(details.state))


def state(made: ContainerState) -> ContainerState:
    """Mend the times of a program that ended before Podman had noted its start, and the image's name."""
    started, finished = made.started_at, made.finished_at
    if made.status == "exited" and started is not None and finished is not None and finished < started:
        started = finished
    return replace(made, started_at=started, image=familiar(made.image))


def familiar(name: str) -> str:
    """Return an image's name as it was given: Podman keeps a short one as one of Docker's registry."""
    return name.removeprefix("docker.io/").removeprefix("library/") if name.startswith("docker.io/") else name


def image_row(row: ImageRow) -> ImageRow:
    """Name an image as it was given."""
    return replace(row, tags=tuple(map(familiar, row.tags)), digests=tuple(map(familiar, row.digests)))


def removed(names: Sequence[str]) -> tuple[str, ...]:
    """Return what a removal took away as Docker does: ids say which digest they are."""
    return tuple(f"sha256:{one}" if _ID.fullmatch(one) else familiar(one) for one in names)


def refuses_writing(raw: Json, folder: str) -> bool:
    """Say from GET /containers/ID/json whether a folder is read-only to the container: Podman writes there all the same."""
    path = posixpath.normpath(f"/{folder.lstrip('/')}")
    host = raw.get("HostConfig") or {}
    places = {str(one.get("Destination") or ""): bool(one.get("RW", True)) for one in raw.get("Mounts") or ()}
    places |= dict.fromkeys(host.get("Tmpfs") or (), True)
    places = {"/": not host.get("ReadonlyRootfs"), **places}
    above = [place for place in places if path == place or path.startswith(f"{place.rstrip('/')}/")]
    return not places[max(above, key=len)]


def log_frame(frame: OutputFrame) -> OutputFrame:
    """Give a log line's time, which Podman tells in whole seconds, the form that it has elsewhere."""
    return replace(frame, data=_WHOLE_SECONDS.sub(rb"\1.000000000\2 ", frame.data, count=1))


def is_own_trouble(frame: OutputFrame) -> bool:
    """Whether a piece of output is not the program's: Podman writes there when it could not pass stdin on."""
    return frame.stream == "stderr" and _OWN_TROUBLE.fullmatch(frame.data) is not None


def _traffic(raw: Json, version: tuple[int, int]) -> Traffic:
    # Version 5 tells the networks one by one, those before it their sum.
    networks = raw.get("Network")
    if isinstance(networks, Mapping):
        received = sum(int(one.get("RxBytes") or 0) for one in networks.values())
        sent = sum(int(one.get("TxBytes") or 0) for one in networks.values())
    else:
        received, sent = int(raw.get("NetInput") or 0), int(raw.get("NetOutput") or 0)
        if version < _NETWORK_THE_RIGHT_WAY_ROUND_SINCE:
            received, sent = sent, received
    return Traffic(received, sent, int(raw.get("BlockInput") or 0), int(raw.get("BlockOutput") or 0))


def counters(raw: Sequence[Json] | None, *, at_seconds: float, version: tuple[int, int]) -> dict[str, Counters]:
    """Make counters of GET /libpod/containers/stats?stream=false (its own CPU share is one since the container's start)."""
    return {
        str(one["ContainerID"]): Counters(
            at_seconds=at_seconds,
            cpu_seconds=int(one.get("CPUNano") or 0) / 1e9,
            # With control groups of version 1 Podman counts the page cache too, and nothing here says how much that is.
            memory_bytes=int(one.get("MemUsage") or 0),
            memory_limit_bytes=int(one.get("MemLimit") or 0) or None,
            pids=int(one.get("PIDs") or 0),
            traffic=_traffic(one, version),
        )
        for one in raw or ()
        # A container that has ended is answered with zeros.
        if one.get("PIDs")
    }


def update_body(limits: Limits) -> dict[str, Any]:
    """Make the body of POST /libpod/containers/NAME/update. Raises Unsupported for what holds from the create on."""
    objects.require_changeable(limits)
    memory = {"limit": limits.memory_bytes, "reservation": limits.memory_reservation_bytes}
    if limits.memory_bytes is not None:
        memory["swap"] = 2 * limits.memory_bytes  # as a create sets it
    cpu = {"shares": limits.cpu_shares}
    if limits.cpus is not None:
        cpu |= {"quota": round(limits.cpus * _CPU_PERIOD), "period": _CPU_PERIOD}
    body = {"memory": _given(memory), "cpu": _given(cpu), "pids": _given({"limit": limits.pids_limit})}
    return {name: value for name, value in body.items() if value}


def event(made: EngineEvent) -> EngineEvent:
    """Call what happened as Docker does, without attributes that say nothing."""
    attributes = {name: value for name, value in made.attributes.items() if value}
    if made.action in ("died", "exec_died") and "containerExitCode" in attributes:
        attributes["exitCode"] = attributes["containerExitCode"]
    attributes.pop("containerExitCode", None)
    return replace(made, action=_ACTIONS.get((made.type, made.action), made.action), attributes=attributes)


def warnings(raw: Json) -> Iterator[str]:
    """Yield what of GET /libpod/info a person should know."""
    host = raw.get("host") or {}
    runtime = (host.get("ociRuntime") or {}).get("name")
    if runtime:
        yield f"containers are run by {runtime}, networks are made by {host.get('networkBackend') or 'cni'}"


def _given(values: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def _ports(entries: Sequence[Json]) -> tuple[PortMapping, ...]:
    found = [
        PortMapping(
            container_port=int(entry["container_port"]) + more,
            protocol=cast("Protocol", protocol),
            host_ip=entry.get("host_ip") or "0.0.0.0",  # noqa: S104  an answer of the engine, not a bind
            host_port=int(entry.get("host_port") or 0) + more or None,
        )
        for entry in entries
        for protocol in str(entry.get("protocol") or "tcp").split(",")
        for more in range(int(entry.get("range") or 1))
    ]
    return tuple(
        sorted(found, key=lambda one: (one.container_port, one.protocol, one.host_ip or "", one.host_port or 0))
    )
