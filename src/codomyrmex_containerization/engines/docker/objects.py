"""How do the Engine API's volumes, networks, events and build cache correspond to our models? Pure functions.

Source: https://docs.docker.com/reference/api/engine/ (v1.40 and later; newer fields are optional).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker import shapes
from codomyrmex_containerization.models.container import Limits
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.storage import BuildCache, NetworkRow, NetworkSpec, VolumeRow, VolumeSpec

Json = Mapping[str, Any]
Users = Mapping[str, Sequence[str]]

# What engines make for themselves; nobody can remove it.
_OWN_NETWORKS = frozenset({"bridge", "host", "none", "podman"})
_NANOSECONDS = 1_000_000_000


def volume_row(raw: Json, *, engine: str, users: Users | None = None) -> VolumeRow:
    """Make a row of one entry of GET /volumes."""
    name = str(raw["Name"])
    return VolumeRow(
        name=name,
        driver=str(raw.get("Driver") or ""),
        created=shapes.instant(raw.get("CreatedAt")),
        labels=raw.get("Labels") or {},
        engine=engine,
        mountpoint=str(raw.get("Mountpoint") or ""),
        options=raw.get("Options") or {},
        users=tuple((users or {}).get(name, ())),
    )


def volume_rows(raw: Json, containers: Iterable[Json], *, engine: str) -> list[VolumeRow]:
    """Make rows of GET /volumes and GET /containers/json."""
    users = volume_users(containers)
    rows = [volume_row(one, engine=engine, users=users) for one in raw.get("Volumes") or ()]
    return sorted(rows, key=lambda row: row.name)


def volume_users(containers: Iterable[Json]) -> dict[str, list[str]]:
    """Return the names of the containers that mount each volume, of GET /containers/json."""
    users: dict[str, list[str]] = {}
    for one in containers:
        mounts = (mount for mount in one.get("Mounts") or () if mount.get("Type") == "volume")
        for volume in sorted({str(mount.get("Name") or "") for mount in mounts}):
            users.setdefault(volume, []).append(_container_name(one))
    return users


def volume_sizes(raw: Json) -> dict[str, int]:
    """Return the bytes of each volume, of GET /system/df; those that are not known are absent."""
    volumes = raw.get("Volumes") or _items(raw, "VolumeUsage") or _items(raw, "VolumesUsage")
    sizes = {str(one["Name"]): (one.get("UsageData") or {}).get("Size") for one in volumes}
    return {name: int(size) for name, size in sizes.items() if size is not None and size >= 0}


def volume_body(spec: VolumeSpec) -> dict[str, Any]:
    """Make the body of POST /volumes/create."""
    return {
        "Name": spec.name,
        "Driver": spec.driver,
        "DriverOpts": dict(spec.options),
        "Labels": dict(spec.labels),
    }


def network_row(raw: Json, *, engine: str, users: Sequence[str] = ()) -> NetworkRow:
    """Make a row of one entry of GET /networks; `users` are the containers that are configured for it, running or not."""
    subnets = [one.get("Subnet") for one in (raw.get("IPAM") or {}).get("Config") or ()]
    connected = [str(one.get("Name") or "") for one in (raw.get("Containers") or {}).values()]
    return NetworkRow(
        id=str(raw["Id"]),
        name=str(raw.get("Name") or ""),
        driver=str(raw.get("Driver") or ""),
        created=shapes.instant(raw.get("Created")),
        internal=bool(raw.get("Internal")),
        subnets=tuple(str(one) for one in subnets if one),
        labels=raw.get("Labels") or {},
        engine=engine,
        users=tuple(dict.fromkeys([*users, *(name for name in connected if name)])),
        own=str(raw.get("Name") or "") in _OWN_NETWORKS or bool(raw.get("Ingress")),
    )


def network_rows(raw: Iterable[Json], containers: Iterable[Json], *, engine: str) -> list[NetworkRow]:
    """Make rows of GET /networks and GET /containers/json."""
    users: dict[str, list[str]] = {}
    for one in containers:
        networks = (one.get("NetworkSettings") or {}).get("Networks") or {}
        for name, attached in networks.items():
            # One that was never started knows its networks by name only.
            users.setdefault(str((attached or {}).get("NetworkID") or name), []).append(_container_name(one))
    rows = [
        network_row(
            one, engine=engine, users=[*users.get(str(one["Id"]), ()), *users.get(str(one.get("Name") or ""), ())]
        )
        for one in raw
    ]
    return sorted(rows, key=lambda row: (row.name, row.id))


def network_body(spec: NetworkSpec) -> dict[str, Any]:
    """Make the body of POST /networks/create. Raises InvalidArgument for a subnet or gateway that is none."""
    pool = {"Subnet": _subnet(spec.subnet), "Gateway": _address(spec.gateway)}
    given = {key: value for key, value in pool.items() if value is not None}
    body: dict[str, Any] = {
        "Name": spec.name,
        "CheckDuplicate": True,
        "Driver": spec.driver,
        "Internal": spec.internal,
        "EnableIPv6": spec.ipv6,
        "Options": dict(spec.options),
        "Labels": dict(spec.labels),
    }
    return {**body, "IPAM": {"Config": [given]}} if given else body


def connect_body(container: str, aliases: Sequence[str]) -> dict[str, Any]:
    """Make the body of POST /networks/NAME/connect."""
    body: dict[str, Any] = {"Container": container}
    return {**body, "EndpointConfig": {"Aliases": list(aliases)}} if aliases else body


def update_body(limits: Limits, *, with_swap: bool = False) -> dict[str, Any]:
    """Make the body of POST /containers/NAME/update; `with_swap` moves the limit of memory and swap along, as a create does.

    Raises Unsupported for what holds from the create on.
    """
    require_changeable(limits)
    body: dict[str, Any] = {
        "Memory": limits.memory_bytes,
        "MemorySwap": 2 * limits.memory_bytes if with_swap and limits.memory_bytes is not None else None,
        "MemoryReservation": limits.memory_reservation_bytes,
        "NanoCpus": round(limits.cpus * _NANOSECONDS) if limits.cpus is not None else None,
        "CpuShares": limits.cpu_shares,
        "PidsLimit": limits.pids_limit,
    }
    return {key: value for key, value in body.items() if value is not None}


def require_changeable(limits: Limits) -> None:
    """Raise Unsupported for limits that hold from the create on."""
    given = (
        ("shm_size", limits.shm_bytes),
        ("ulimits", limits.ulimits),
        ("disk", limits.disk_bytes),
        ("disk_read", limits.disk_read_bytes_per_second),
        ("disk_write", limits.disk_write_bytes_per_second),
    )
    fixed = [name for name, value in given if value]
    if fixed:
        raise errors.Unsupported(
            f"{' and '.join(fixed)} cannot be changed once a container exists.", hint="create the container anew"
        )


def require_no_rates(limits: Limits, *, engine: str) -> None:
    """Raise Unsupported for rates of the disk: which of its host's disks a daemon writes to is not known here."""
    if limits.disk_read_bytes_per_second or limits.disk_write_bytes_per_second:
        raise errors.Unsupported(
            f"{engine} cannot be asked for rates of the disk.",
            hint="leave disk_read and disk_write out, or use engine='embedded'",
        )


def build_cache(raw: Json) -> BuildCache:
    """Make a build cache of GET /system/df."""
    # A shared entry's bytes are counted with the image that holds them too.
    entries = list(raw.get("BuildCache") or _items(raw, "BuildCacheUsage"))
    told = raw.get("BuildCacheUsage")
    if told and not entries:
        return BuildCache(
            entries=int(told.get("TotalCount") or 0),
            bytes=int(told.get("TotalSize") or 0),
            unused_bytes=int(told.get("Reclaimable") or 0),
        )
    return BuildCache(
        entries=len(entries),
        bytes=sum(int(one.get("Size") or 0) for one in entries),
        unused_bytes=sum(
            int(one.get("Size") or 0) for one in entries if not one.get("InUse") and not one.get("Shared")
        ),
    )


def _items(raw: Json, part: str) -> Sequence[Json]:
    """Return what GET /system/df lists since API 1.52, when it was asked for a verbose answer."""
    items: Sequence[Json] = (raw.get(part) or {}).get("Items") or ()
    return items


def build_prune_params(older_than_seconds: float) -> dict[str, str]:
    """Make the query of POST /build/prune."""
    if older_than_seconds <= 0:
        return {"all": "true"}
    return {"all": "true", "filters": json.dumps({"until": [f"{older_than_seconds:.0f}s"]})}


def event_params(query: EventQuery, *, now: datetime) -> dict[str, str]:
    """Make the query of GET /events: without `until` it ends now, so that it ends at all."""
    params = {"until": _stamp(query.until or now)}
    if query.since is not None:
        params["since"] = _stamp(query.since)
    if query.filters:
        params["filters"] = json.dumps({name: list(values) for name, values in query.filters.items()})
    return params


def event(raw: Json, *, engine: str) -> EngineEvent:
    """Make an event of one line of GET /events."""
    actor = raw.get("Actor") or {}
    attributes = {str(key): str(value) for key, value in (actor.get("Attributes") or {}).items()}
    kind, id = str(raw.get("Type") or ""), str(actor.get("ID") or raw.get("id") or "")
    return EngineEvent(
        time=_event_time(raw),
        type=kind,
        action=str(raw.get("Action") or raw.get("status") or ""),
        id=id,
        # A volume has no other name than its id; a container of a network's event is among the attributes.
        name=attributes.get("name") or (id if kind == "volume" else ""),
        attributes=attributes,
        engine=engine,
    )


def _event_time(raw: Json) -> datetime:
    nanoseconds = raw.get("timeNano") or int(raw.get("time") or 0) * _NANOSECONDS
    # In whole numbers: a float holds no nanoseconds of this century.
    seconds, rest = divmod(int(nanoseconds), _NANOSECONDS)
    return datetime.fromtimestamp(seconds, tz=UTC).replace(microsecond=rest // 1000)


def _stamp(moment: datetime) -> str:
    return f"{int(moment.timestamp())}.{moment.microsecond:06d}000"


def _container_name(raw: Json) -> str:
    names = [str(name).lstrip("/") for name in raw.get("Names") or ()]
    # Links give a container further names, with a slash in them.
    return min(names, key=lambda name: name.count("/")) if names else str(raw.get("Id") or "")[:12]


def _subnet(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise errors.InvalidArgument(
            f"subnet = {text[:60]!r} is no network.", hint="write it as 10.77.1.0/24, without bits behind the prefix"
        ) from error


def _address(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise errors.InvalidArgument(f"gateway = {text[:60]!r} is no address.", hint="write e.g. 10.77.1.1") from error
