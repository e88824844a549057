"""What may a container use, and does the kernel really hold it to that? Its limits, told to the OCI runtime and read back.

The runtime writes them into control groups; what stands there is what counts, so it is looked up before anybody is told that
a limit holds. Sources: https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md,
https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import groups
from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.models.container import Limits, Ulimit

Held = Literal["cgroup", "no"]

CPU_PERIOD_MICROSECONDS = 100_000
_LEAST_QUOTA_MICROSECONDS = 1_000
_LEAST_MEMORY_BYTES = 6 * 1024**2  # below it the runtime itself does not get a container started
_SHARES = range(2, 262_144 + 1)
_MOST_PIDS = 4_194_304  # PID_MAX_LIMIT
_UNLIMITED = 2**64 - 1
_CAP_SYS_RESOURCE = 1 << 24
# Those who set limits ask this one module for all of it.
cgroup_path = groups.cgroup_path
remove_cgroups = groups.remove_cgroups

_RLIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
    "sigpending", "stack",
)  # fmt: skip

# The kernel's own word for each of our limits, by cgroup version: controller and file.
_FILES_V1 = {
    "memory_bytes": ("memory", "memory.limit_in_bytes"),
    "memory_reservation_bytes": ("memory", "memory.soft_limit_in_bytes"),
    "cpus": ("cpu", "cpu.cfs_quota_us"),
    "cpu_shares": ("cpu", "cpu.shares"),
    "pids_limit": ("pids", "pids.max"),
}
_FILES_V2 = {
    "memory_bytes": ("memory", "memory.max"),
    "memory_reservation_bytes": ("memory", "memory.low"),
    "cpus": ("cpu", "cpu.max"),
    "cpu_shares": ("cpu", "cpu.weight"),
    "pids_limit": ("pids", "pids.max"),
}


def plain(limits: Limits) -> dict[str, Any]:
    """Return the limits by name, None for those that are not set."""
    return {one.name: getattr(limits, one.name) or None for one in fields(limits)}


def resources(limits: Limits) -> dict[str, Any]:
    """Return `linux.resources`. Memory and swap together may be twice the memory. Raises InvalidArgument."""
    document = {"memory": _memory(limits), "cpu": _cpu(limits), "pids": _pids(limits)}
    return {key: value for key, value in document.items() if value}


def update_document(limits: Limits) -> dict[str, Any]:
    """Return what `update --resources -` is given: those limits alone that change. Raises InvalidArgument, Unsupported."""
    given = {
        "shm_size": limits.shm_bytes,
        "ulimits": limits.ulimits,
        "disk": limits.disk_bytes,
        "disk_read": limits.disk_read_bytes_per_second,
        "disk_write": limits.disk_write_bytes_per_second,
    }
    fixed = [name for name, value in given.items() if value]
    if fixed:
        raise errors.Unsupported(
            f"{' and '.join(fixed)} cannot be changed once a container exists.", hint="create the container anew"
        )
    return resources(limits)


def rlimits(limits: Limits) -> list[dict[str, Any]]:
    """Return `process.rlimits`; -1 is unlimited. Raises InvalidArgument, also for one that may not be raised that high here."""
    return [_rlimit(one) for one in limits.ulimits]


def enforced(pid: int, wanted: Limits, *, proc: Path = Path("/proc")) -> dict[str, Held]:
    """Say for each wanted limit whether the control groups of a process hold it: `cgroup`, or `no`.

    `shm_bytes` and `ulimits` are no matter of control groups and are left out.
    """
    places = groups.of_process(pid, proc=proc)
    return {
        name: "cgroup" if _is_held(places, name, wanted) else "no"
        for name in _FILES_V2
        if getattr(wanted, name) is not None
    }


def oom_killed(container_id: str, persist: Path, *, parent: str = groups.PARENT) -> bool:
    """Say whether memory ran out in a container: conmon left a file in its folder, or the container's control group counted it."""
    if (persist / "oom").exists():
        return True
    for place in groups.of_container(container_id, parent=parent):
        # Once the group has gone nothing is known from it any more.
        for name in ("memory.events", "memory.oom_control"):
            words = _words(place.directory / name)
            if "oom_kill" in words and words[words.index("oom_kill") + 1] != "0":
                return True
    return False


def _memory(limits: Limits) -> dict[str, int]:
    memory, reservation = limits.memory_bytes, limits.memory_reservation_bytes
    for name, value in (("memory", memory), ("memory_reservation", reservation)):
        if value is not None and value < _LEAST_MEMORY_BYTES:
            raise errors.InvalidArgument(
                f"{name} = {sizes.show(value)} is too little for a container.",
                hint=f"give {sizes.show(_LEAST_MEMORY_BYTES)} or more",
            )
    if memory is not None and reservation is not None and reservation > memory:
        raise errors.InvalidArgument(
            f"memory_reservation = {sizes.show(reservation)} is more than memory = {sizes.show(memory)}.",
            hint="reserve at most the limit",
        )
    swap = 2 * memory if memory is not None and groups.limits_swap() else None
    return _given({"limit": memory, "swap": swap, "reservation": reservation})


def _cpu(limits: Limits) -> dict[str, int]:
    shares = limits.cpu_shares
    if shares is not None and shares not in _SHARES:
        raise errors.InvalidArgument(
            f"cpu_shares = {shares} is no weight.", hint=f"give {_SHARES[0]} to {_SHARES[-1]}; 1024 is normal"
        )
    if limits.cpus is None:
        return _given({"shares": shares})
    most = os.cpu_count() or 1
    if not math.isfinite(limits.cpus) or _quota(limits.cpus) < _LEAST_QUOTA_MICROSECONDS or limits.cpus > most:
        raise errors.InvalidArgument(f"cpus = {limits.cpus:g} cannot be had here.", hint=f"give 0.01 to {most}")
    return _given({"shares": shares, "quota": _quota(limits.cpus), "period": CPU_PERIOD_MICROSECONDS})


def _pids(limits: Limits) -> dict[str, int]:
    most = limits.pids_limit
    if most is not None and not 1 <= most <= _MOST_PIDS:
        raise errors.InvalidArgument(f"pids_limit = {most} is no number of processes.", hint=f"give 1 to {_MOST_PIDS}")
    return _given({"limit": most})


def _quota(cpus: float) -> int:
    return round(cpus * CPU_PERIOD_MICROSECONDS)


def _given(numbers: Mapping[str, int | None]) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number is not None}


# ----------------------------------------------------------------------------------------------------- process limits


def _rlimit(limit: Ulimit) -> dict[str, Any]:
    name = limit.name.lower().removeprefix("rlimit_")
    if name not in _RLIMITS:
        raise errors.InvalidArgument(f"There is no ulimit {limit.name!r}.", hint=f"these exist: {', '.join(_RLIMITS)}")
    soft, hard = (_UNLIMITED if value == -1 else value for value in (limit.soft, limit.hard))
    if not 0 <= soft <= hard <= _UNLIMITED:
        raise errors.InvalidArgument(
            f"The ulimit {name} = {limit.soft}:{limit.hard} makes no sense.",
            hint="give soft:hard, the soft one at most the hard one; -1 is unlimited",
        )
    most = _highest(name)
    if hard > most:
        raise errors.InvalidArgument(
            f"The ulimit {name} = {limit.hard} is more than this host lets us give.", hint=f"ask for {most} or less"
        )
    return {"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard}


def _highest(name: str) -> int:
    """Return up to where this process may raise a limit."""
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if name == "nofile" and _may_raise():
        return int("".join(_words(Path("/proc/sys/fs/nr_open"))) or _UNLIMITED)
    if number is None or _may_raise():
        return _UNLIMITED
    hard = resource.getrlimit(number)[1]
    return _UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _may_raise() -> bool:
    """Whether this process may go beyond its own hard limits: only the first user namespace's root may, with the capability."""
    words = _words(Path("/proc/self/status"))
    powers = int(words[words.index("CapEff:") + 1], 16) if "CapEff:" in words else 0
    return bool(powers & _CAP_SYS_RESOURCE) and _words(Path("/proc/self/uid_map"))[:3] == ["0", "0", str(2**32 - 1)]


# ------------------------------------------------------------------------------------------------------ what is held


def _is_held(places: Mapping[str, groups.Place], name: str, wanted: Limits) -> bool:
    place = places.get(_FILES_V2[name][0])
    if place is None:
        return False
    _, file = (_FILES_V2 if place.is_v2 else _FILES_V1)[name]
    words = _words(place.directory / file)
    if name == "cpus" and not place.is_v2:
        words += _words(place.directory / "cpu.cfs_period_us")
    value = getattr(wanted, name)
    match name:
        case "cpus":
            return words == [str(_quota(value)), str(CPU_PERIOD_MICROSECONDS)]
        case "cpu_shares" if place.is_v2:
            return bool(words) and int(words[0]) in _weights(value)
        case "memory_bytes" | "memory_reservation_bytes":
            page = resource.getpagesize()
            return words == [str(value // page * page)]
        case _:
            return words == [str(value)]


def _weights(shares: int) -> frozenset[int]:
    """Return what runtimes make of shares on cgroup version 2: the older of them linearly, the newer ones so that 1024 is 100."""
    power = math.log2(shares)
    return frozenset(
        {1 + (shares - 2) * 9999 // 262_142, math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))}
    )


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").split()
    except OSError:
        return []
