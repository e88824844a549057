"""Which walls does a daemon put round its containers, and do they make up the level of isolation that a call asks for?

Sources: https://docs.docker.com/reference/api/engine/ (GET /info), https://docs.docker.com/engine/security/userns-remap/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from codomyrmex_containerization.engines import levels
from codomyrmex_containerization.models.container import ContainerSpec

_LIMITS = {"memory_bytes": ("MemoryLimit",), "cpus": ("CpuCfsQuota", "CPUCfsQuota"), "pids_limit": ("PidsLimit",)}
# A daemon gives these by itself, and they reach past a container: raw packets, devices, the host's audit log.
_BEYOND = ("AUDIT_WRITE", "MKNOD", "NET_RAW")


@dataclass(frozen=True, slots=True)
class Walls:
    """What a daemon says of itself; `users`: root in its containers is nobody outside."""

    seccomp: bool
    users: bool
    rootless: bool
    limits: frozenset[str]


def of_info(raw: Mapping[str, Any]) -> Walls:
    """Make walls of GET /info."""
    options = [_words(str(one)) for one in raw.get("SecurityOptions") or ()]
    names = {one.get("name") for one in options}
    seccomp = any(one.get("name") == "seccomp" and one.get("profile") not in (None, "unconfined") for one in options)
    held = frozenset(name for name, keys in _LIMITS.items() if any(raw.get(key) is True for key in keys))
    return Walls(seccomp=seccomp, users="userns" in names, rootless="rootless" in names, limits=held)


def completed(spec: ContainerSpec, walls: Walls, *, engine: str) -> ContainerSpec:
    """Return a specification with all that its level brings on this daemon. Raises InvalidArgument, Unsupported.

    That programs get no new privileges is asked for with the specification itself, at every level.
    """
    levels.require_consistent(spec)
    if spec.isolation is None:
        return spec
    dropped = _dropped(spec)
    if spec.isolation == "minimal":
        return replace(spec, cap_drop=dropped)
    if not walls.seccomp:
        raise levels.missing_wall("a filter of system calls (seccomp)", level=spec.isolation, engine=engine)
    if spec.isolation == "strict":
        return _strict(spec, walls, engine)
    if "pids_limit" not in walls.limits:
        raise levels.missing_wall("a limit of processes", level="standard", engine=engine)
    pids = spec.limits.pids_limit or levels.PIDS
    return replace(spec, cap_drop=dropped, limits=replace(spec.limits, pids_limit=pids))


def _strict(spec: ContainerSpec, walls: Walls, engine: str) -> ContainerSpec:
    if not walls.users:
        why = "root inside is the user who runs the engine" if walls.rootless else "root inside is root outside"
        raise levels.missing_wall(
            f"users of its own ({why}; dockerd has them with userns-remap)", level="strict", engine=engine
        )
    return levels.strict(spec, enforceable=walls.limits)


def _dropped(spec: ContainerSpec) -> tuple[str, ...]:
    added = {one.upper().removeprefix("CAP_") for one in spec.cap_add}
    given = {one.upper().removeprefix("CAP_") for one in spec.cap_drop}
    if "ALL" in added or "ALL" in given:
        return spec.cap_drop
    return (*spec.cap_drop, *(one for one in _BEYOND if one not in added | given))


def _words(option: str) -> dict[str, str]:
    """Take `name=seccomp,profile=default` apart; older daemons say only `seccomp`."""
    if "=" not in option:
        return {"name": option, "profile": "default"}
    return dict(word.partition("=")[::2] for word in option.split(","))
