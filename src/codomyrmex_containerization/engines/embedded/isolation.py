"""Which walls has a container of each level, and what does a level ask of the rest of its specification?

minimal: namespaces, few capabilities, no new privileges. standard: a filter of system calls, hidden and read-only paths and limits too.
strict: users of its own who are nobody outside, a read-only root, no capabilities, no network, and limits always.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import limits
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, Limits

DEFAULT: Isolation = "standard"
# Without one, a single program can take all numbers of processes that the host has.
PIDS = 2048
OPEN_FILES = 65_536
STRICT_LIMITS = Limits(memory_bytes=512 * 1024**2, cpus=1.0, pids_limit=256)
_ALWAYS = ("memory_bytes", "cpus", "pids_limit")
_NOT_STRICT = "leave that out, or ask for isolation='standard'"


def level(spec: ContainerSpec) -> Isolation:
    """Return a container's level."""
    return spec.isolation or DEFAULT


def is_strict(spec: ContainerSpec) -> bool:
    """Whether a container's users are nobody outside."""
    return spec.isolation == "strict"


def is_filtered(spec: ContainerSpec) -> bool:
    """Whether a container's system calls are filtered, and what tells of the host is hidden from it."""
    return not spec.privileged and level(spec) != "minimal"


def completed(spec: ContainerSpec, *, enforceable: Collection[str]) -> ContainerSpec:
    """Return a specification with all that its level brings; `enforceable` are the limits that hold here.

    Raises InvalidArgument for what contradicts the level, and Unsupported naming the wall that cannot be had here.
    """
    if spec.isolation is not None and spec.privileged:
        raise errors.InvalidArgument(
            f"isolation={spec.isolation!r} and privileged=true exclude each other.", hint="leave one of them out"
        )
    if is_strict(spec):
        return _strict(spec, enforceable)
    if spec.isolation == "standard" and spec.network == "host":
        raise errors.InvalidArgument(
            "isolation='standard' has a network of its own; network='host' is the host's.",
            hint="choose another network, or ask for isolation='minimal'",
        )
    wants_default = is_filtered(spec) and spec.limits.pids_limit is None and "pids_limit" in enforceable
    return replace(spec, limits=replace(spec.limits, pids_limit=PIDS)) if wants_default else spec


def _strict(spec: ContainerSpec, enforceable: Collection[str]) -> ContainerSpec:
    if spec.cap_add:
        raise _contradiction(f"cap_add={', '.join(spec.cap_add)}", "no capabilities at all")
    if spec.network not in (None, "none"):
        raise _contradiction(f"network={spec.network!r}", "no network")
    if spec.ports:
        raise _contradiction("publishing ports", "no network")
    missing = [name for name in _ALWAYS if name not in enforceable]
    if missing:
        raise missing_wall(f"limits ({', '.join(missing)}): no control group holds them")
    cpus = min(STRICT_LIMITS.cpus or 1.0, float(os.cpu_count() or 1))
    given = {
        name: getattr(spec.limits, name) or getattr(STRICT_LIMITS, name) for name in ("memory_bytes", "pids_limit")
    }
    held = replace(spec.limits, **given, cpus=spec.limits.cpus or cpus)
    return replace(spec, network="none", read_only_rootfs=True, cap_drop=("ALL",), limits=held)


def _contradiction(asked: str, wall: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"isolation='strict' means {wall}: {asked} contradicts it.", hint=_NOT_STRICT)


def missing_wall(wall: str) -> errors.Unsupported:
    """Return the error for a wall of `strict` that cannot be had here."""
    return errors.Unsupported(
        f"isolation='strict' cannot be had here; what is missing: {wall}.",
        hint="ask for isolation='standard' if that is enough; docs/embedded.md says what strict needs",
    )


def rlimits(spec: ContainerSpec, given: Limits) -> Sequence[Mapping[str, Any]]:
    """Return the limits of each of a container's processes, those of a command in it too. Raises InvalidArgument."""
    asked = limits.rlimits(given)
    if not is_filtered(spec) or any(one["type"] == "RLIMIT_NOFILE" for one in asked):
        return asked
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    return [*asked, {"type": "RLIMIT_NOFILE", "soft": most, "hard": most}]
