"""What does a level of isolation ask of a container's specification, whichever engine it is for?

Which walls stand by themselves, and which must be asked for, is each engine's own business; what they add up to is the same.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, Limits

# Without one, a single program can take all numbers of processes that the host has.
PIDS = 2048
STRICT_LIMITS = Limits(memory_bytes=512 * 1024**2, cpus=1.0, pids_limit=256)
_ALWAYS = ("memory_bytes", "cpus", "pids_limit")
_NOT_STRICT = "leave that out, or ask for isolation='standard'"
_WAY_OUT: dict[Isolation, str] = {
    "strict": "ask for isolation='standard' if that is enough; docs/embedded.md says what strict needs",
    "standard": "mend the engine's settings, or use engine='embedded'; the person who runs this server can allow isolation='minimal'",
    "minimal": "use engine='embedded'",
}


def require_consistent(spec: ContainerSpec) -> None:
    """Raise InvalidArgument for what contradicts the level that was asked for."""
    if spec.isolation is None:
        return
    if spec.privileged:
        raise errors.InvalidArgument(
            f"isolation={spec.isolation!r} and privileged=true exclude each other.", hint="leave one of them out"
        )
    network = spec.network or ""
    if spec.isolation == "standard" and (network == "host" or network.startswith(("container:", "ns:"))):
        raise errors.InvalidArgument(
            f"isolation='standard' has a network of its own; network={network!r} is not.",
            hint="choose another network, or ask for isolation='minimal'",
        )
    if spec.isolation == "strict":
        _require_strict(spec)


def strict(spec: ContainerSpec, *, enforceable: Collection[str]) -> ContainerSpec:
    """Return a strict container's specification; `enforceable` are the limits that hold here. Raises Unsupported."""
    missing = [name for name in _ALWAYS if name not in enforceable]
    if missing:
        raise missing_wall(f"limits ({', '.join(missing)}): no control group holds them")
    cpus = min(STRICT_LIMITS.cpus or 1.0, float(os.cpu_count() or 1))
    given = {
        name: getattr(spec.limits, name) or getattr(STRICT_LIMITS, name) for name in ("memory_bytes", "pids_limit")
    }
    held = replace(spec.limits, **given, cpus=spec.limits.cpus or cpus)
    return replace(spec, network="none", read_only_rootfs=True, cap_drop=("ALL",), limits=held)


def missing_wall(wall: str, *, level: Isolation = "strict", engine: str = "") -> errors.Unsupported:
    """Return the error for a wall that cannot be had here."""
    where = f"on {engine}" if engine else "here"
    return errors.Unsupported(
        f"isolation={level!r} cannot be had {where}; what is missing: {wall}.", hint=_WAY_OUT[level]
    )


def _require_strict(spec: ContainerSpec) -> None:
    if spec.cap_add:
        raise _contradiction(f"cap_add={', '.join(spec.cap_add)}", "no capabilities at all")
    if spec.network not in (None, "none"):
        raise _contradiction(f"network={spec.network!r}", "no network")
    if spec.ports:
        raise _contradiction("publishing ports", "no network")


def _contradiction(asked: str, wall: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"isolation='strict' means {wall}: {asked} contradicts it.", hint=_NOT_STRICT)
