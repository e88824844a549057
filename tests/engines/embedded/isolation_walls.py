"""Which walls are looked for in a container, and how is it seen from inside and from the kernel's files whether one stands?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codomyrmex_containerization.engines.embedded import groups

DISK_BYTES, DISK_RATE = 64 * 1024**2, 64 * 1024**2
LEVELS = ("minimal", "standard", "strict")
# Said by a shell in the container, a word and what was found in each line.
INSIDE = """
say() { echo "$1 $2"; }
tries() { what=$1; shift; if "$@" >/dev/null 2>&1; then say "$what" got; else say "$what" refused; fi; }
mkdir -p /tmp/at 2>/dev/null
say links "$(ls /sys/class/net | tr '\\n' ' ')"
say devices "$(ls /dev | tr '\\n' ' ')"
say keys "$(wc -c </proc/keys)"
say timers "$(wc -c </proc/timer_list)"
say groups "$(find /sys/fs/cgroup -type d 2>/dev/null | grep -c -E '[0-9a-f]{64}|docker|process_api')"
tries mount mount -t tmpfs none /proc/fs
tries remount mount -o remount,rw /proc/sys
tries umount umount /proc/sys
tries mknod mknod /dev/made b 8 0
tries sysctl sh -c 'echo core >/proc/sys/kernel/core_pattern'
tries sysrq sh -c 'echo h >/proc/sysrq-trigger'
tries sysfs sh -c 'echo 1 >/sys/kernel/uevent_seqnum'
tries users unshare -U true
tries root touch /made
tries hostname hostname other
tries chroot chroot / true
tries raw ping -c 1 -W 1 127.0.0.1
tries log dmesg
say end .
"""
_USUAL_DEVICES = frozenset(
    "core fd full init mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero console".split()
)
_SYS_ADMIN, _MKNOD, _NET_RAW, _SYS_PTRACE, _SYS_MODULE = (1 << number for number in (21, 27, 13, 19, 16))
_DANGEROUS = _SYS_ADMIN | _MKNOD | _NET_RAW | _SYS_PTRACE | _SYS_MODULE


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one container."""

    pid: int
    inside: Mapping[str, str]
    status: Mapping[str, str]
    uid_map: tuple[int, ...]
    open_files: int
    root_bytes: int

    def has_rate(self) -> bool:
        """Whether its control group limits how much it writes to a disk in a second."""
        places = groups.of_process(self.pid)
        place = places.get("io") or places.get("blkio")
        file = "blkio.throttle.write_bps_device" if place is not None and not place.is_v2 else "io.max"
        return place is not None and str(DISK_RATE) in (place.directory / file).read_text()

    def own(self, kind: str) -> bool:
        """Whether it has a namespace of its own."""
        return os.readlink(f"/proc/{self.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")

    def refused(self, *attempts: str) -> bool:
        """Whether all of these were refused."""
        return all(self.inside[one] == "refused" for one in attempts)

    def powers(self) -> int:
        """All capabilities that it has or could get."""
        return int(self.status["CapBnd"], 16) | int(self.status["CapEff"], 16) | int(self.status["CapInh"], 16)

    def limit(self, controller: str, *names: str) -> int | None:
        """What stands in its control group; None is no limit."""
        place = groups.of_process(self.pid)[controller]
        for name in names:
            path = place.directory / name
            if path.exists():
                first = path.read_text().split()[0]
                return int(first) if first.isdigit() and int(first) < 2**60 else None
        raise AssertionError(f"{controller} has none of {names}")


@dataclass(frozen=True, slots=True)
class Wall:
    """One wall, and the levels that have it."""

    title: str
    stands: Callable[[Seen], bool]
    levels: tuple[str, ...] = LEVELS


def seen(pid: int, said: str) -> Seen:
    """Gather what a container's shell said and what the kernel says of its first process."""
    inside = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    assert "end" in inside, said
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    files = next(line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max open files"))
    root = os.statvfs(proc / "root")
    return Seen(
        pid,
        inside,
        {name: value.strip() for name, value in status.items()},
        tuple(int(word) for word in (proc / "uid_map").read_text().split()),
        int(files.split()[4]),
        root.f_blocks * root.f_frsize,
    )


WALLS: dict[str, Wall] = {
    "processes": Wall("Its own processes, mounts, hostname, queues and view of control groups",
                      lambda one: all(one.own(kind) for kind in ("pid", "mnt", "uts", "ipc", "cgroup"))),
    "network": Wall("Its own network", lambda one: one.own("net")),
    "few_powers": Wall("Nothing that rules the host: no mounting, devices, raw packets, tracing, modules",
                       lambda one: one.powers() & _DANGEROUS == 0),
    "new_privileges": Wall("No new privileges by set-user-id", lambda one: one.status["NoNewPrivs"] == "1"),
    "settings": Wall("The kernel's settings read-only",
                     lambda one: one.refused("sysctl", "sysrq", "sysfs", "remount", "umount")),
    "mounting": Wall("Mounting refused", lambda one: one.refused("mount")),
    "devices": Wall("The harmless devices only, none can be made",
                    lambda one: one.refused("mknod") and set(one.inside["devices"].split()) <= _USUAL_DEVICES),
    "log": Wall("The kernel's log and raw packets refused", lambda one: one.refused("log", "raw", "hostname")),
    "filter": Wall("System calls filtered", lambda one: one.status["Seccomp"] == "2", ("standard", "strict")),
    "users": Wall("No user namespaces inside", lambda one: one.refused("users"), ("standard", "strict")),
    "masked": Wall("Paths that tell of the host hidden",
                   lambda one: one.inside["keys"] == "0" and one.inside["timers"] == "0", ("standard", "strict")),
    "tasks": Wall("A limit of processes, asked for or not",
                  lambda one: one.limit("pids", "pids.max") is not None, ("standard", "strict")),
    "files": Wall("A limit of open files, asked for or not",
                  lambda one: one.open_files <= 65_536, ("standard", "strict")),
    "memory": Wall("Limits of memory and processors, asked for or not",
                   lambda one: one.limit("memory", "memory.max", "memory.limit_in_bytes") is not None
                   and one.limit("cpu", "cpu.max", "cpu.cfs_quota_us") is not None, ("strict",)),
    "disk_space": Wall("Disk space, where it was asked for",
                       lambda one: one.root_bytes <= DISK_BYTES),
    "disk_rate": Wall("Rates of the disk, where they were asked for",
                      lambda one: one.has_rate()),
    "nobody": Wall("Root inside is nobody outside",
                   lambda one: one.own("user") and one.uid_map[1] >= 1 << 30
                   and int(one.status["Uid"].split()[0]) == one.uid_map[1], ("strict",)),
    "powerless": Wall("No capabilities at all", lambda one: one.powers() == 0, ("strict",)),
    "read_only": Wall("A read-only root", lambda one: one.refused("root"), ("strict",)),
    "no_network": Wall("No network but loopback", lambda one: one.inside["links"].split() == ["lo"], ("strict",)),
}  # fmt: skip
# What no level brings by itself.
ASKED_FOR = frozenset({"disk_space", "disk_rate"})
# Without a limit of its own the server's holds, whatever that is.
UNSURE = frozenset({("files", "minimal")})


@dataclass(frozen=True, slots=True)
class Results:
    """A JSON file of what was seen: wall by wall, level by level."""

    file: Path

    def read(self) -> dict[str, Any]:
        """Return what was written so far."""
        return json.loads(self.file.read_text("utf-8")) if self.file.exists() else {}

    def add(self, level: str, stands: Mapping[str, bool]) -> None:
        """Write down a level's walls."""
        self.file.write_text(json.dumps({**self.read(), level: dict(stands)}, indent=1), "utf-8")
