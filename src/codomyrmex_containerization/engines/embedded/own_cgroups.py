"""How are a container's control groups made, limited, frozen and removed by the runtime of our own? By their files alone.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/
"""

from __future__ import annotations

import errno
import os
import time

from codomyrmex_containerization.engines.embedded.own_words import Refused, require_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CONTROLLERS = frozenset({"memory", "cpu", "cpuacct", "pids", "freezer", "devices", "blkio"})
# What each program may have: nothing, zeros, randomness and terminals of its own. A node may be made, but not opened.
_DEVICES = (
    "c *:* m",
    "b *:* m",
    *(f"c {one} rwm" for one in ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*")),
)
_RATES = {"throttleReadBpsDevice": "read", "throttleWriteBpsDevice": "write"}
_MKNOD = "CAP_MKNOD"
_FIRST_USERS = ["0", "0", str(2**32 - 1)]  # among all others nobody makes a device that opens
_ROUNDS, _PAUSE_SECONDS = 400, 0.005
_KILL = 9


class Group:
    """A container's folder in one tree."""

    __slots__ = ("controllers", "folder", "is_v2")

    def __init__(self, folder: str, is_v2: bool, controllers: tuple[str, ...]) -> None:
        self.folder = folder
        self.is_v2 = is_v2
        self.controllers = controllers


def planned(path: str) -> list[Group]:
    """Return the groups that a path means, whether they are there or not. Raises Refused."""
    if not path.startswith("/") or ".." in path.split("/"):
        raise Refused(f"{path} is no path of a control group")
    found: dict[tuple[bool, tuple[str, ...]], Group] = {}
    for mount, root, is_v2, options in _trees():
        names = _read(f"{mount}/cgroup.controllers").split() if is_v2 else options.split(",")
        controllers = tuple(one for one in names if one in _CONTROLLERS or (is_v2 and one == "io"))
        inside = path.removeprefix(root.rstrip("/"))
        if controllers and f"{path}/".startswith(f"{root.rstrip('/')}/"):
            group = Group(f"{mount.rstrip('/')}/{inside.strip('/')}", is_v2, controllers)
            found.setdefault((is_v2, controllers), group)
    return list(found.values())


def _trees() -> Iterator[tuple[str, str, bool, str]]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            kind, _, options = after.rstrip("\n").split(" ", 2)
            if kind in ("cgroup", "cgroup2"):
                root, mount = before.split(" ")[3:5]
                yield mount, root, kind == "cgroup2", options


def make(groups: list[Group]) -> None:
    """Make them, and have what is above them hand its controllers down. Raises OSError."""
    for group in groups:
        missing, folder = list[str](), group.folder
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for one in reversed(missing):
            if group.is_v2:
                _hand_down(os.path.dirname(one), group.controllers)
            try:
                os.mkdir(one, 0o755)
            except FileExistsError:
                pass  # made for another container just now


def _hand_down(folder: str, controllers: tuple[str, ...]) -> None:
    for one in controllers:
        try:
            _write(f"{folder}/cgroup.subtree_control", f"+{one}")
        except OSError:
            pass  # a limit that needs it cannot be written then, which is told


def limit(groups: list[Group], resources: dict[str, Any]) -> None:
    """Hold a container to its limits; one that cannot be held is refused. Raises Refused."""
    require_known("resources", resources, ("memory", "cpu", "pids", "devices", "blockIO"))
    memory, cpu, pids = (resources.get(one) or {} for one in ("memory", "cpu", "pids"))
    require_known("memory", memory, ("limit", "swap", "reservation"))
    require_known("cpu", cpu, ("shares", "quota", "period"))
    require_known("pids", pids, ("limit",))
    for controller, wanted, on_v1, on_v2 in (
        ("memory", memory, _memory_v1, _memory_v2),
        ("cpu", cpu, _cpu_v1, _cpu_v2),
        ("pids", pids, _pids, _pids),
    ):
        if not wanted:
            continue
        group = next((one for one in groups if controller in one.controllers), None)
        if group is None:
            raise Refused(f"no control group holds {controller} here")
        files = (on_v2 if group.is_v2 else on_v1)(wanted)
        try:
            _write_all(group.folder, files)
        except OSError as error:
            raise Refused(f"the limit of {controller} cannot be set: {error.strerror}") from error
    _limit_rates(groups, resources.get("blockIO") or {})


def _limit_rates(groups: list[Group], wanted: dict[str, Any]) -> None:
    require_known("blockIO", wanted, _RATES)
    if not wanted:
        return
    group = next((one for one in groups if {"blkio", "io"} & set(one.controllers)), None)
    if group is None:
        raise Refused("no control group holds rates of the disk here")
    try:
        for name, on_v1 in _RATES.items():
            for one in wanted.get(name, ()):
                device = f"{one['major']}:{one['minor']}"
                if group.is_v2:
                    _write(f"{group.folder}/io.max", f"{device} {on_v1[0]}bps={one['rate']}")
                else:
                    _write(f"{group.folder}/blkio.throttle.{on_v1}_bps_device", f"{device} {one['rate']}")
    except OSError as error:
        raise Refused(f"the rates of the disk cannot be set: {error.strerror}") from error


def _write_all(folder: str, files: dict[str, str]) -> None:
    try:
        for name, text in files.items():
            _write(f"{folder}/{name}", text)
    except OSError as error:
        # Memory alone may not be more than memory and swap: one order is right when they grow, the other when they shrink.
        if error.errno not in (errno.EINVAL, errno.EBUSY):
            raise
        for name, text in reversed(files.items()):
            _write(f"{folder}/{name}", text)


def _memory_v1(wanted: dict[str, int]) -> dict[str, str]:
    names = {"limit": "memory.limit_in_bytes", "swap": "memory.memsw.limit_in_bytes"}
    files = {file: str(wanted[name]) for name, file in names.items() if name in wanted}
    return files | ({"memory.soft_limit_in_bytes": str(wanted["reservation"])} if "reservation" in wanted else {})


def _memory_v2(wanted: dict[str, int]) -> dict[str, str]:
    files = {"memory.max": str(wanted["limit"])} if "limit" in wanted else {}
    if "swap" in wanted:  # there it is counted with the memory, here for itself
        files["memory.swap.max"] = str(max(wanted["swap"] - wanted.get("limit", 0), 0))
    return files | ({"memory.low": str(wanted["reservation"])} if "reservation" in wanted else {})


def _cpu_v1(wanted: dict[str, int]) -> dict[str, str]:
    names = {"shares": "cpu.shares", "period": "cpu.cfs_period_us", "quota": "cpu.cfs_quota_us"}
    return {file: str(wanted[name]) for name, file in names.items() if name in wanted}


def _cpu_v2(wanted: dict[str, int]) -> dict[str, str]:
    files = {"cpu.weight": str(1 + (wanted["shares"] - 2) * 9999 // 262_142)} if "shares" in wanted else {}
    return files | ({"cpu.max": f"{wanted['quota']} {wanted.get('period', 100_000)}"} if "quota" in wanted else {})


def _pids(wanted: dict[str, int]) -> dict[str, str]:
    return {"pids.max": str(wanted["limit"])}


def limit_devices(groups: list[Group], rules: list[dict[str, Any]], *, powers: list[str], has_own_users: bool) -> None:
    """Allow all devices, or the harmless ones. Raises Refused, where nothing else keeps a container from the others."""
    if not rules:
        return
    if len(rules) > 1 or set(rules[0]) != {"allow", "access"} or rules[0]["access"] != "rwm":
        raise Refused("this runtime knows two rules for devices: all, or the harmless ones")
    if rules[0]["allow"]:
        return
    group = next((one for one in groups if "devices" in one.controllers and not one.is_v2), None)
    if group is None:
        # Nobody makes a node without that power, and what is mounted has none.
        if _MKNOD in powers and not has_own_users and _read("/proc/self/uid_map").split() == _FIRST_USERS:
            raise Refused(f"{_MKNOD} cannot be had here: no control group would keep the host's devices shut")
        return
    try:
        _write(f"{group.folder}/devices.deny", "a")
        for rule in _DEVICES:
            _write(f"{group.folder}/devices.allow", rule)
    except OSError as error:
        raise Refused(f"the rules for devices cannot be set: {error.strerror}") from error


def enter(groups: list[Group], pid: int) -> None:
    """Move a process into its groups. Raises OSError."""
    for group in groups:
        _write(f"{group.folder}/cgroup.procs", str(pid))


def freeze(groups: list[Group], *, frozen: bool) -> None:
    """Stop a container's processes where they are, or let them go on. Raises Refused, OSError."""
    group = next((one for one in groups if one.is_v2 or "freezer" in one.controllers), None)
    if group is None or not os.path.exists(f"{group.folder}/{'cgroup.freeze' if group.is_v2 else 'freezer.state'}"):
        raise Refused("no control group can freeze a container here")
    if group.is_v2:
        _write(f"{group.folder}/cgroup.freeze", "1" if frozen else "0")
    for _ in range(_ROUNDS):
        if not group.is_v2:  # again and again: what was just begun may have been missed
            _write(f"{group.folder}/freezer.state", "FROZEN" if frozen else "THAWED")
        if is_frozen([group]) == frozen:
            return
        time.sleep(_PAUSE_SECONDS)
    raise Refused(f"the container does not {'freeze' if frozen else 'go on'}")


def is_frozen(groups: list[Group]) -> bool:
    """Whether a container stands still."""
    for group in groups:
        if group.is_v2 and "frozen 1" in _read(f"{group.folder}/cgroup.events"):
            return True
        if not group.is_v2 and "freezer" in group.controllers:
            return _read(f"{group.folder}/freezer.state").strip() == "FROZEN"
    return False


def kill(groups: list[Group]) -> None:
    """Kill what is in a container's groups."""
    for _ in range(_ROUNDS):
        found = {int(one) for group in groups for one in _read(f"{group.folder}/cgroup.procs").split()}
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, _KILL)
            except ProcessLookupError:
                pass  # it has ended by itself
        time.sleep(_PAUSE_SECONDS)


def remove(groups: list[Group]) -> None:
    """Take a container's groups away, with what the container has made in them."""
    for group in groups:
        for folder, _, _ in os.walk(group.folder, topdown=False):
            _remove(folder)


def _remove(folder: str) -> None:
    for _ in range(_ROUNDS):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            # What has just ended still counts for a moment.
            if error.errno != errno.EBUSY or _read(f"{folder}/cgroup.procs").strip():
                return
            time.sleep(_PAUSE_SECONDS)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
