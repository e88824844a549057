"""What holds on this machine, and what does not? One line for each thing that containers here may want, and what would bring it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import (
    bandwidth,
    disk,
    fallback,
    idmaps,
    isolation,
    life,
    tiers,
    userns,
)
from codomyrmex_containerization.models.container import ContainerSpec, Limits
from codomyrmex_containerization.models.engine import Check

_RATE_BYTES = 1024**2
_LIMITS = {"memory_bytes": "memory", "cpus": "cpus", "pids_limit": "processes"}


def checks(house: life.House, *, ids: int | None) -> list[Check]:
    """Look at all of it; `ids` are the numbers for users that an ordinary user has, None for root. Raises EngineUnavailable."""
    return [
        *_tier(house),
        *_users(ids),
        *_limits(house),
        *_levels(house),
        *(_network(kind, missing) for kind, missing in house.networks.describe().items()),
    ]


def _tier(house: life.House) -> Iterator[Check]:
    found = house.found
    remedy = "" if found.tier == "full" else tiers.REMEDY
    groups = "no control groups" if found.cgroups == "none" else f"control groups {found.cgroups}"
    said = f"{found.tier}: {found.kind} {found.version}, {groups}, Linux {platform.release()}"
    yield Check("tier", found.tier == "full", said, remedy)
    conmon = process.find("conmon")
    yield Check(
        "monitor",
        conmon is not None,
        str(conmon) if conmon is not None else "our own, in place of conmon",
        "" if conmon is not None else tiers.REMEDY,
    )


def _users(ids: int | None) -> Iterator[Check]:
    if ids is None:
        yield Check("users", True, "root of this host")
    elif ids > 1:
        yield Check("users", True, f"an ordinary user, with {ids - 1} numbers for the users of containers")
    else:
        yield Check("users", False, "an ordinary user, without numbers for other users than root", userns.REMEDY)


def _limits(house: life.House) -> Iterator[Check]:
    by_rlimits = fallback.possible(ContainerSpec(""), house.powers)
    for name, shown in _LIMITS.items():
        if name in house.found.limits:
            yield Check(f"limit {shown}", True, "held by control groups")
        elif name in by_rlimits:
            yield Check(f"limit {shown}", True, "held by rlimit, each process by itself")
        else:
            yield Check(f"limit {shown}", False, f"refused: {life.NO_CGROUPS}", "run as root")
    folder = house.folders.containers
    yield _tried("limit disk", "a file system of its own", lambda: disk.require(folder, disk.LEAST_BYTES))
    rates = Limits(disk_read_bytes_per_second=_RATE_BYTES, disk_write_bytes_per_second=_RATE_BYTES)
    yield _tried("limit rates of the disk", "held by control groups", lambda: bandwidth.require(folder, rates))


def _levels(house: life.House) -> Iterator[Check]:
    yield Check("isolation standard", True, "filter of system calls, seen to hold")

    def strict() -> None:
        wanted = ContainerSpec("", isolation="strict")
        isolation.completed(wanted, enforceable=house.found.limits | fallback.possible(wanted, house.powers))
        idmaps.require(house.folders.data)

    yield _tried("isolation strict", "users of its own by idmapped layers", strict)


def _network(kind: str, missing: str) -> Check:
    said, _, remedy = missing.partition("\nNext: ")
    return Check(f"network {kind}", not missing, said or "there", remedy)


def _tried(what: str, said: str, attempt: Callable[[], None]) -> Check:
    try:
        attempt()
    except errors.ContainerizationError as error:
        return Check(what, False, f"refused: {error.message}", error.hint)
    return Check(what, True, said)
