"""Which walls has a container of each level, and what does a level ask of the rest of its specification?

minimal: namespaces, few capabilities, no new privileges. standard: a filter of system calls, hidden and read-only paths and limits too.
strict: users of its own who are nobody outside, a read-only root, no capabilities, no network, and limits always.
"""

from __future__ import annotations

import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from codomyrmex_containerization.engines import levels
from codomyrmex_containerization.engines.embedded import limits
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, Limits

DEFAULT: Isolation = "standard"
OPEN_FILES = 65_536
PIDS, STRICT_LIMITS = levels.PIDS, levels.STRICT_LIMITS
missing_wall = levels.missing_wall


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
    levels.require_consistent(spec)
    if is_strict(spec):
        return levels.strict(spec, enforceable=enforceable)
    wants_default = is_filtered(spec) and spec.limits.pids_limit is None and "pids_limit" in enforceable
    return replace(spec, limits=replace(spec.limits, pids_limit=PIDS)) if wants_default else spec


def rlimits(spec: ContainerSpec, given: Limits) -> Sequence[Mapping[str, Any]]:
    """Return the limits of each of a container's processes, those of a command in it too. Raises InvalidArgument."""
    asked = limits.rlimits(given)
    if not is_filtered(spec) or any(one["type"] == "RLIMIT_NOFILE" for one in asked):
        return asked
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    return [*asked, {"type": "RLIMIT_NOFILE", "soft": most, "hard": most}]
