"""What does a container on this machine use where no control group counts it? The sum over its processes.

Rootless engines on cgroup version 1 have no control groups at all and measure nothing. A container's processes are
those in the process namespace of its first one; where that namespace is the host's or another container's as well,
those that descend from the first one.

What is summed: the CPU time of each process with all its threads, and of the children it waited for
(https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html); the memory that is its own, shared pages by their share
(https://docs.kernel.org/filesystems/proc.html, smaps_rollup), and what the container's temporary file systems hold:
as processes share memory by files in those too, the larger of the shared memory and the files counts. The page cache
is left out. Nobody knows what ended processes read from and wrote to block devices.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from codomyrmex_containerization.engines import cgroups
from codomyrmex_containerization.models import usage

_KIB = 1024
_CPU_CLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED: https://man7.org/linux/man-pages/man3/clock_getcpuclockid.3.html
_TMPFS = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    threads: int
    waited_ticks: int
    is_dead: bool


class ProcessReader:
    """Reads the counters of containers by the numbers of their first processes, as a CgroupReader does by their files."""

    def __init__(
        self,
        first_pids: Mapping[str, int],
        *,
        proc: str = "/proc",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_pids = first_pids
        self._proc = proc
        self._clock = clock
        self._host_memory_bytes = cgroups.host_memory_bytes(proc)

    def read_all(self, ids: Sequence[str]) -> dict[str, usage.Counters]:
        """Return the counters of those containers whose first process lives here."""
        wanted = {one: self._first_pids[one] for one in ids if self._first_pids.get(one, 0) > 1}
        return {container: self._counters(found) for container, found in self._members(wanted).items()}

    def _members(self, first_pids: Mapping[str, int]) -> dict[str, list[_Process]]:
        """Return each container's processes, its first one first."""
        everyone = {pid: found for pid in _pids(self._proc) if (found := _look(self._proc, pid)) is not None}
        members = {
            container: [everyone[pid]]
            for container, pid in first_pids.items()
            if pid in everyone and is_first_process(pid, container, proc=self._proc)
        }
        owners: dict[int | None, list[str]] = {}
        for container, (first,) in members.items():
            owners.setdefault(namespace(first.pid, proc=self._proc), []).append(container)
        alone: dict[int | None, str] = {
            own: there[0] for own, there in owners.items() if own is not None and len(there) == 1
        }
        for process in everyone.values() if alone else ():
            owner = alone.get(_namespace(self._proc, process.pid))
            if owner is not None and process != members[owner][0]:
                members[owner].append(process)
        for container in members.keys() - alone.values():
            members[container] = _descendants(members[container][0], everyone.values())
        return members

    def _counters(self, processes: Sequence[_Process]) -> usage.Counters:
        first = processes[0].pid
        received, sent = cgroups.network_bytes(first, self._proc)
        own, shared = zip(*(_memory_bytes(self._proc, one.pid) for one in processes), strict=True)
        at_seconds = self._clock()
        waited = sum(one.waited_ticks for one in processes) / os.sysconf("SC_CLK_TCK")
        return usage.Counters(
            at_seconds=at_seconds,
            cpu_seconds=waited + sum(_cpu_seconds(one.pid) for one in processes),
            memory_bytes=sum(own) + max(sum(shared), _tmpfs_bytes(self._proc, first)),
            memory_limit_bytes=self._host_memory_bytes,
            pids=sum(one.threads for one in processes if not one.is_dead),
            traffic=usage.Traffic(network_received_bytes=received, network_sent_bytes=sent),
        )


def is_first_process(pid: int, container_id: str, *, proc: str = "/proc") -> bool:
    """Whether a living process was started for a container: its parent is the monitor that was told the container's id."""
    process = _look(proc, pid)
    if process is None or process.is_dead:
        return False
    try:
        with open(f"{proc}/{process.parent}/cmdline", "rb") as file:
            return os.fsencode(container_id) in file.read().split(b"\0")
    except OSError:
        return False


def namespace(pid: int, *, proc: str = "/proc") -> int | None:
    """Return the number of a process's namespace of processes; None when it is this one's own, or not to be found out."""
    found = _namespace(proc, pid)
    return None if found == _namespace(proc, "self") else found


def _namespace(proc: str, pid: int | str) -> int | None:
    try:
        return os.stat(f"{proc}/{pid}/ns/pid").st_ino
    except OSError:
        return None


def _pids(proc: str) -> list[int]:
    return [int(name) for name in os.listdir(proc) if name.isdigit()]


def _look(proc: str, pid: int) -> _Process | None:
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything, parentheses too: the fields follow the last one.
            fields = file.read().rpartition(b")")[2].split()
        waited = int(fields[13]) + int(fields[14])
        return _Process(pid, int(fields[1]), int(fields[17]), waited, fields[0] in (b"Z", b"X"))
    except (OSError, ValueError, IndexError):
        return None


def _descendants(first: _Process, everyone: Iterable[_Process]) -> list[_Process]:
    children: dict[int, list[_Process]] = {}
    for process in everyone:
        children.setdefault(process.parent, []).append(process)
    found = [first]
    for process in found:
        found += children.get(process.pid, ())
    return found


def _cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)
    except OSError:
        return 0.0  # it ended meanwhile


def _memory_bytes(proc: str, pid: int) -> tuple[int, int]:
    """Return a process's own memory and its share of the shared one."""
    for file, own, shared in (("smaps_rollup", b"Pss_Anon:", b"Pss_Shmem:"), ("status", b"RssAnon:", b"RssShmem:")):
        with suppress(OSError, ValueError, KeyError):
            with open(f"{proc}/{pid}/{file}", "rb") as lines:
                found = {words[0]: words[1] for line in lines if len(words := line.split()) > 1}
            return int(found[own]) * _KIB, int(found[shared]) * _KIB
    return 0, 0  # it ended meanwhile


def _tmpfs_bytes(proc: str, pid: int) -> int:
    """Sum up what the temporary file systems hold that a container has and this process has not."""
    ours = {device for device, _ in _mounts(proc, "self")}
    held: dict[bytes, int] = {}
    for device, path in _mounts(proc, pid):
        if device not in ours and device not in held:
            with suppress(OSError):
                found = os.statvfs(os.fsencode(f"{proc}/{pid}/root") + path)
                held[device] = (found.f_blocks - found.f_bfree) * found.f_frsize
    return sum(held.values())


def _mounts(proc: str, pid: int | str) -> list[tuple[bytes, bytes]]:
    """Return device and place of the temporary file systems that a process sees whole."""
    try:
        with open(f"{proc}/{pid}/mountinfo", "rb") as file:
            lines = [line.split(b" ") for line in file]
    except OSError:
        return []
    kinds = [kind.encode() for kind in _TMPFS]
    return [
        (fields[2], _unescaped(fields[4]))
        for fields in lines
        if b"-" in fields[6:] and fields[3] == b"/" and fields[fields.index(b"-", 6) + 1] in kinds
    ]


def _unescaped(path: bytes) -> bytes:
    for escape, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(escape, byte)
    return path
