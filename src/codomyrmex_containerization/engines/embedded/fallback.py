"""What holds a container where control groups do not: limits of its processes (rlimits), and which of them hold for which container?

They are weaker, and who asks is told so: memory is what one process may map, not what all together use, and processes are counted for
each user of the container by itself. Root of the host is not held to them; users of a namespace of their own are, root among them.
Sources: https://man7.org/linux/man-pages/man2/getrlimit.2.html, https://man7.org/linux/man-pages/man7/user_namespaces.7.html
"""

from __future__ import annotations

import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from codomyrmex_containerization.engines.embedded import bandwidth, disk, isolation, limits, userns
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import ContainerSpec, Limits

Held = Literal["cgroup", "rlimit", "filesystem", "no"]

_RLIMITS = {"memory_bytes": "RLIMIT_AS", "pids_limit": "RLIMIT_NPROC"}
_LINES = {"memory_bytes": "Max address space", "pids_limit": "Max processes"}
_UNLIMITED = 2**64 - 1
_WHAT = {
    "memory_bytes": "memory (of each process; that one ran out of memory is not told)",
    "pids_limit": "processes (of each user inside, in all containers of an ordinary user)",
}


def possible(spec: ContainerSpec, powers: Sequence[str]) -> frozenset[str]:
    """Return the limits that rlimits hold for a container; `powers` are the capabilities that `ALL` means."""
    if isolation.is_strict(spec) or userns.is_inside():
        return frozenset(_RLIMITS)
    # Root of the host may have as many processes as it likes, and raise its limits with this capability.
    added = {one.upper().removeprefix("CAP_") for one in spec.cap_add}
    may_raise = spec.privileged or "SYS_RESOURCE" in added or ("ALL" in added and "SYS_RESOURCE" in powers)
    return frozenset() if may_raise else frozenset({"memory_bytes"})


def counted(wanted: Limits, by_groups: Collection[str]) -> Limits:
    """Return those limits that control groups are to hold; `by_groups` are those that they can."""
    memory = wanted.memory_bytes if "memory_bytes" in by_groups else None
    return replace(wanted, memory_bytes=memory, pids_limit=wanted.pids_limit if "pids_limit" in by_groups else None)


def rlimits(record: Record, by_groups: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """Return the limits of each of a container's processes, with those that control groups do not hold. Raises InvalidArgument."""
    found = {one["type"]: one for one in isolation.rlimits(record.spec, record.limits)}
    for name, kind in _RLIMITS.items():
        value = getattr(record.limits, name)
        if value is None or name in by_groups:
            continue
        value = min(value, _highest(kind))
        given = found.get(kind, {"soft": value, "hard": value})
        found[kind] = {"type": kind, **{which: min(given[which], value) for which in ("soft", "hard")}}
    return list(found.values())


def refused(names: Collection[str], *, is_running: bool, by_groups: Collection[str]) -> list[str]:
    """Return those limits that cannot be changed now: rlimits hold from a start on."""
    return sorted(set(names) & set(_RLIMITS) - set(by_groups)) if is_running else []


def held(record: Record, folder: Path) -> dict[str, Held]:
    """Say for each limit of a container that runs what holds it, as the kernel's files say; `no` for a usual one that nothing holds."""
    pid = record.first.pid if record.first is not None and record.is_alive else None
    if pid is None:
        return {}
    found: dict[str, Held] = dict(limits.enforced(pid, record.limits))
    lines = _limits_of(pid)
    for name, line in _LINES.items():
        value = getattr(record.limits, name)
        held_to = lines.get(line, "")
        if found.get(name) == "no" and held_to.isdigit() and int(held_to) <= value:
            found[name] = "rlimit"
    if record.limits.pids_limit is None and isolation.is_filtered(record.spec):
        found["pids_limit"] = "no"
    if record.limits.disk_bytes is not None:
        found["disk_bytes"] = "filesystem" if disk.is_up(folder) else "no"
    for name in ("disk_read_bytes_per_second", "disk_write_bytes_per_second"):
        if getattr(record.limits, name) is not None:
            found[name] = "cgroup" if bandwidth.is_held(pid, record.limits, folder) else "no"
    return found


def notes(by_groups: Collection[str]) -> tuple[str, ...]:
    """Say to people what holds containers where control groups do not."""
    missing = [name for name in _RLIMITS if name not in by_groups]
    if not missing:
        return ()
    usual = possible(ContainerSpec(""), ())
    by_rlimits = [_WHAT[name] for name in missing if name in usual]
    by_nothing = [name for name in missing if name not in usual]
    found = [f"limited by rlimits, for want of control groups: {' and '.join(by_rlimits)}"] if by_rlimits else []
    if by_nothing:
        found.append(f"not limited, for want of control groups, even by default: {' and '.join(by_nothing)}")
    return tuple(found)


def _highest(kind: str) -> int:
    """Return up to where this process may set a limit without more powers than an ordinary user's."""
    hard = resource.getrlimit(getattr(resource, kind))[1]
    return _UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _limits_of(pid: int) -> dict[str, str]:
    """Return the hard limits of a process by the name that the kernel shows."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text("ascii", "replace").splitlines()[1:]
    except OSError:
        return {}
    return {line[:26].strip(): line[26:].split()[1] for line in lines if len(line[26:].split()) > 1}
