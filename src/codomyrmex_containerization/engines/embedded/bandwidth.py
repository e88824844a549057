"""How fast may a container read from and write to the disk, and does the kernel hold it to that?

The rates are those of the disk that the data folder lies on, and of the container's own where it has one. Version 1 of control groups
counts what is read and what is written directly; only version 2 counts what goes through the page cache too. Sources:
https://docs.kernel.org/admin-guide/cgroup-v1/blkio-controller.html and https://docs.kernel.org/admin-guide/cgroup-v2.html#io
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import disk, groups
from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.models.container import Limits

_LEAST_BYTES = 4096
_DEVICES = Path("/sys/dev/block")
_V1_FILES = {"read": "blkio.throttle.read_bps_device", "write": "blkio.throttle.write_bps_device"}
_V2_WORDS = {"read": "rbps", "write": "wbps"}
_WAY_OUT = "leave the rate out; cpus and timeout_seconds limit how much a container does too"


@dataclass(frozen=True, slots=True)
class _Rate:
    way: str
    device: tuple[int, int]
    bytes_per_second: int

    @property
    def described(self) -> dict[str, int]:
        return {"major": self.device[0], "minor": self.device[1], "rate": self.bytes_per_second}

    @property
    def name(self) -> str:
        return ":".join(map(str, self.device))


def require(folder: Path, wanted: Limits) -> None:
    """Raise Unsupported or InvalidArgument unless the kernel can hold a container whose folder is in this one to its rates."""
    for way, rate in _wanted(wanted).items():
        if rate < _LEAST_BYTES:
            raise errors.InvalidArgument(
                f"disk_{way} = {sizes.show(rate)} a second is too little.",
                hint=f"give {sizes.show(_LEAST_BYTES)} or more",
            )
    if not _wanted(wanted):
        return
    if not any(_is_possible(one) for one in groups.hierarchies()) or not groups.cgroup_path("0" * 64):
        raise _unsupported("there is no control group for it (blkio, or io of version 2)")
    if _disk_of(folder) is None:
        raise _unsupported("the data folder lies on no disk of its own (on a network, in memory or on several)")


def resources(wanted: Limits, folder: Path) -> dict[str, Any]:
    """Return what `linux.resources` says of it for a container whose file system is mounted."""
    found: dict[str, list[dict[str, int]]] = {}
    for one in _rates(wanted, folder):
        found.setdefault(f"throttle{one.way.capitalize()}BpsDevice", []).append(one.described)
    return {"blockIO": found} if found else {}


def require_held(pid: int, wanted: Limits, folder: Path) -> None:
    """Raise Unsupported unless the control groups of a process hold it to its rates."""
    if not is_held(pid, wanted, folder):
        raise _unsupported("the kernel did not take it")


def is_held(pid: int, wanted: Limits, folder: Path) -> bool:
    """Say whether the control groups of a process hold it to its rates; true where there are none."""
    rates = list(_rates(wanted, folder))
    places = groups.of_process(pid) if rates else {}
    for one in rates:
        place = places.get("io") or places.get("blkio")
        if place is None or not _stands(place, one):
            return False
    return True


def _wanted(limits: Limits) -> dict[str, int]:
    given = {"read": limits.disk_read_bytes_per_second, "write": limits.disk_write_bytes_per_second}
    return {way: rate for way, rate in given.items() if rate is not None}


def _rates(limits: Limits, folder: Path) -> Iterator[_Rate]:
    if not _wanted(limits):
        return
    for device in dict.fromkeys(_disk_of(one) for one in (folder, disk.upper(folder, limits.disk_bytes))):
        if device is None:
            raise _unsupported("the data folder lies on no disk of its own any more")
        for way, rate in _wanted(limits).items():
            yield _Rate(way, device, rate)


def _disk_of(path: Path) -> tuple[int, int] | None:
    """Return the number of the whole disk that a path lies on: the kernel takes no parts of one."""
    number = os.stat(path).st_dev
    here = _DEVICES / f"{os.major(number)}:{os.minor(number)}"
    try:
        if (here / "partition").exists():
            here = here.resolve().parent
        words = (here / "dev").read_text("ascii").strip().split(":")
    except OSError:
        return None
    return int(words[0]), int(words[1])


def _is_possible(one: groups.Hierarchy) -> bool:
    if one.is_v2:
        return "io" in one.controllers
    return "blkio" in one.controllers and (one.mount / _V1_FILES["write"]).exists()


def _stands(place: groups.Place, rate: _Rate) -> bool:
    if not place.is_v2:
        return [rate.name, str(rate.bytes_per_second)] in _lines(place.directory / _V1_FILES[rate.way])
    word = f"{_V2_WORDS[rate.way]}={rate.bytes_per_second}"
    return any(line[:1] == [rate.name] and word in line for line in _lines(place.directory / "io.max"))


def _lines(path: Path) -> Sequence[list[str]]:
    try:
        return [line.split() for line in path.read_text("ascii", "replace").splitlines()]
    except OSError:
        return []


def _unsupported(why: str) -> errors.Unsupported:
    return errors.Unsupported(f"embedded cannot limit the rate of the disk here: {why}.", hint=_WAY_OUT)
