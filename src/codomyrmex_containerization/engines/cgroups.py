"""What does a container on this machine use, read straight from the kernel's cgroup files?

Asking a daemon for statistics costs a second or two, reading five small files a twentieth of a millisecond.
Both cgroup versions and the hybrid of them are read. No files for a container means that it is not here (its engine
is remote, in a virtual machine or behind a namespace) or that it has gone: the answer is then None or the id is
absent, and the caller asks the engine instead.

Files: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html and https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import collections
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from codomyrmex_containerization.models import usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}")
# `ID`, `libpod-ID`, `docker-ID.scope`, `cri-containerd-ID.scope`; not a pod's `.slice` or a health check's `.service`
_DIRECTORY_NAME = re.compile(r"(?!.*conmon)(?:.*[-_:])?([0-9a-f]{12,64})(?:\.scope)?")

_BLOCK = re.compile(rb"(Read |Write |rbytes=|wbytes=)(\d+)")

_WALK_DIRECTORIES = 4096
_WALK_DEPTH = 9
_WALK_AGAIN_SECONDS = 5.0
_TEMPLATES = 16
_READ_BYTES = 16384  # the longest of the files, memory.stat, has 1 to 3 KiB
_KNOWN_CONTAINERS = 4096
_PRESENT_DEPTH = 1
_MOST_PRESENT = 256
_ID_LENGTH = 64
_UNLIMITED_BYTES = 2**62

_OLDEST_LOOK_SECONDS = 60.0
_YOUNGEST_LOOK_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class CgroupPaths:
    """The files of one container, and how to read those that differ between the cgroup versions."""

    memory_usage: str
    memory_limit: str
    memory_stat: str
    memory_stat_key: bytes
    cpu: str
    cpu_key: bytes
    cpu_units_per_second: float
    pids: str
    pids_are_lines: bool
    processes: str
    block: str | None


class CgroupReader:
    """Finds containers' cgroups, remembers where they were and reads them; usable from several threads."""

    def __init__(
        self,
        root: Path = Path("/sys/fs/cgroup"),
        proc: Path = Path("/proc"),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = str(root)
        self._proc = str(proc)
        self._clock = clock
        self._lock = threading.Lock()
        self._machine: _Machine | None = None
        self._known: dict[str, CgroupPaths] = {}
        self._walked_for: dict[str, float] = {}
        self._templates: list[_Template] = []

    def find(self, container_id: str, pid: int | None = None) -> CgroupPaths | None:
        """Return where the container's files are, or None when there are none here.

        `pid`, a process of the container, says it exactly; a process of something else (the engine is elsewhere)
        is noticed. Otherwise the places where other containers were found are tried, then the tree is walked, which
        is bounded and not repeated for the same container within seconds. A known place is not checked again: only
        reading tells that the container has gone.
        """
        return self._known.get(container_id) or self._locate([container_id], pid).get(container_id)

    def read(self, container_id: str, pid: int | None = None) -> usage.Counters | None:
        """Return the container's counters, or None when there are no files for it here."""
        return self._read([container_id], pid).get(container_id)

    def read_all(self, ids: Sequence[str]) -> dict[str, usage.Counters]:
        """Return the counters of those containers that have files here."""
        return self._read(ids, None)

    def read_present(self) -> dict[str, usage.Counters]:
        """Return the CPU time, and nothing else, of what looks like a container near the top of the tree."""
        trees = self._look_at_machine().trees
        if trees is None:
            return {}
        found = []
        for parent, name in _directories(trees.mounts[0], depth=_PRESENT_DEPTH):
            match = _DIRECTORY_NAME.fullmatch(name)
            if match is not None and len(match[1]) == _ID_LENGTH:
                self._remember(_template(parent, match))
                found.append(match[1])
        now = {one: _read_cpu(paths, self._clock) for one, paths in self._locate(found[:_MOST_PRESENT], None).items()}
        return {one: counters for one, counters in now.items() if counters is not None}

    def _read(self, ids: Sequence[str], pid: int | None) -> dict[str, usage.Counters]:
        counters = self._read_at(self._known, ids)
        unread = [container_id for container_id in ids if container_id not in counters]
        if unread:
            counters |= self._read_at(self._locate(unread, pid), unread)
        return counters

    def _read_at(self, places: Mapping[str, CgroupPaths], ids: Iterable[str]) -> dict[str, usage.Counters]:
        host_memory_bytes = self._look_at_machine().memory_bytes
        result = {}
        for container_id in ids:
            paths = places.get(container_id)
            counters = None if paths is None else _read_counters(paths, host_memory_bytes, self._clock, self._proc)
            if counters is not None:
                result[container_id] = counters
        return result

    def _look_at_machine(self) -> _Machine:
        if self._machine is None:
            self._machine = _Machine(_find_trees(self._root), host_memory_bytes(self._proc))
        return self._machine

    def _locate(self, ids: Iterable[str], pid: int | None) -> dict[str, CgroupPaths]:
        """Look for containers that are not known yet, or whose known files could not be read."""
        trees = self._look_at_machine().trees
        if trees is None:
            return {}
        wanted = [container_id for container_id in ids if _CONTAINER_ID.fullmatch(container_id)]
        with self._lock:
            found: dict[str, CgroupPaths] = {}
            for container_id in wanted:
                was_known = self._known.pop(container_id, None) is not None
                paths = self._by_process(trees, container_id, pid) or self._by_template(trees, container_id)
                if paths is not None:
                    found[container_id] = paths
                elif was_known:  # it has gone: no reason to walk
                    self._walked_for[container_id] = self._clock()
            found |= self._by_walk(trees, [container_id for container_id in wanted if container_id not in found])
            if len(self._known) > _KNOWN_CONTAINERS:
                self._known.clear()
            self._known |= found
            return found

    def _by_process(self, trees: _Trees, container_id: str, pid: int | None) -> CgroupPaths | None:
        if pid is None:
            return None
        full_id = None
        for path in _cgroups_of_process(self._proc, pid):
            for template, name in _templates_in(path, container_id):
                if any(os.path.isdir(template.directory(tree, name)) for tree in trees.mounts):
                    self._remember(template)
                    full_id = name
        return None if full_id is None else self._by_template(trees, full_id)

    def _by_template(self, trees: _Trees, full_id: str) -> CgroupPaths | None:
        directories: dict[str, str] = {}
        for mount in trees.mounts:
            for template in self._templates:
                directory = template.directory(mount, full_id)
                if os.path.isdir(directory):
                    directories[mount] = directory
                    break
        return trees.paths(directories)

    def _by_walk(self, trees: _Trees, ids: Iterable[str]) -> dict[str, CgroupPaths]:
        """Walk the memory tree for all ids at once, and the others for what lies elsewhere in them."""
        now = self._clock()
        self._walked_for = {i: at for i, at in self._walked_for.items() if now - at < _WALK_AGAIN_SECONDS}
        pending = {container_id for container_id in ids if container_id not in self._walked_for}
        self._walked_for |= dict.fromkeys(pending, now)
        found: dict[str, CgroupPaths] = {}
        for mount in trees.mounts:
            names = {}
            for container_id, template, name in _walk(mount, pending) if pending else ():
                self._remember(template)
                names[container_id] = name
            for container_id, name in names.items():
                paths = self._by_template(trees, name)
                if paths is not None:
                    found[container_id] = paths
            pending = names.keys() - found.keys()
        for container_id in found:
            del self._walked_for[container_id]
        return found

    def _remember(self, template: _Template) -> None:
        self._templates = [template, *(known for known in self._templates if known != template)][:_TEMPLATES]


class UsageHistory:
    """The previous looks of this process, so that a CPU share needs no waiting; usable from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks: dict[str, tuple[usage.Counters, ...]] = {}

    def sample(self, reader_result: Mapping[str, usage.Counters]) -> dict[str, usage.Usage]:
        """Remember these looks and return the usage since the previous ones.

        `cpu_percent` is None where there is no previous look between 10 ms and 60 s old.
        """
        with self._lock:
            result = {
                container_id: usage.usage_between(_baseline(self._looks.get(container_id, ()), now), now)
                for container_id, now in reader_result.items()
            }
            for container_id, now in reader_result.items():
                self._looks[container_id] = _with_look(self._looks.get(container_id, ()), now)
            self._forget_before(max((now.at_seconds for now in reader_result.values()), default=0.0))
        return result

    def _forget_before(self, now_seconds: float) -> None:
        oldest_seconds = now_seconds - _OLDEST_LOOK_SECONDS
        self._looks = {i: looks for i, looks in self._looks.items() if looks[-1].at_seconds >= oldest_seconds}


class Reader(Protocol):
    """Whatever tells what containers have used until now."""

    def read_all(self, ids: Sequence[str]) -> dict[str, usage.Counters]:
        """Return the counters of those containers that are here."""
        ...


class Sampler:
    """A reader and what it saw, shared by the engines of one process: they are all on this host."""

    def __init__(self) -> None:
        self.reader = CgroupReader()
        self.history = UsageHistory()

    def look_ahead(self) -> None:
        """Take a first look at what runs, so that a CPU share that is asked for soon needs no waiting. Blocks."""
        self.history.sample(self.reader.read_present())


def sample_usage(
    reader: Reader,
    history: UsageHistory,
    ids: Sequence[str],
    *,
    window_seconds: float = 0.05,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, usage.Usage]:
    """Return what the containers use now; those without files here, or gone meanwhile, are absent. Blocks.

    The CPU share is over the time since this process's previous look if that is at most 60 s old; the containers
    without one share a single wait of `window_seconds`.
    """
    first = reader.read_all(ids)
    result = history.sample(first)
    pending = [container_id for container_id, now in result.items() if now.cpu_percent is None]
    if not pending:
        return result
    sleep(window_seconds)
    second = reader.read_all(pending)
    history.sample(second)
    for container_id in pending:
        later = second.get(container_id)
        if later is None:
            del result[container_id]
        else:
            result[container_id] = usage.usage_between(first[container_id], later)
    return result


class _Template(NamedTuple):
    """Where in a tree containers of one kind lie: what stands before and after the id."""

    before: str
    after: str

    def directory(self, mount: str, full_id: str) -> str:
        return f"{mount}/{self.before}{full_id}{self.after}"


class _Tree(NamedTuple):
    """A mounted cgroup hierarchy."""

    mount: str
    is_v2: bool


@dataclass(frozen=True, slots=True)
class _Trees:
    """Which hierarchy accounts for what."""

    memory: _Tree
    cpu: _Tree
    pids: _Tree | None
    block: _Tree | None

    @property
    def mounts(self) -> tuple[str, ...]:
        """The different mounts, that of the memory first."""
        trees = (self.memory, self.cpu, self.pids, self.block)
        return tuple(dict.fromkeys(tree.mount for tree in trees if tree is not None))

    def paths(self, directories: Mapping[str, str]) -> CgroupPaths | None:
        """Return the files in a container's directories, given by mount; None if memory or CPU time has none."""
        memory, cpu = directories.get(self.memory.mount), directories.get(self.cpu.mount)
        if memory is None or cpu is None:
            return None
        pids, pids_are_lines = self._pids_file(memory, directories)
        return CgroupPaths(
            memory_usage=f"{memory}/memory.{'current' if self.memory.is_v2 else 'usage_in_bytes'}",
            memory_limit=f"{memory}/memory.{'max' if self.memory.is_v2 else 'limit_in_bytes'}",
            memory_stat=f"{memory}/memory.stat",
            memory_stat_key=b"\ninactive_file " if self.memory.is_v2 else b"\ntotal_inactive_file ",
            cpu=f"{cpu}/{'cpu.stat' if self.cpu.is_v2 else 'cpuacct.usage'}",
            cpu_key=b"\nusage_usec " if self.cpu.is_v2 else b"\n",
            cpu_units_per_second=1e6 if self.cpu.is_v2 else 1e9,
            pids=pids,
            pids_are_lines=pids_are_lines,
            processes=f"{memory}/cgroup.procs",
            block=self._block_file(directories),
        )

    def _block_file(self, directories: Mapping[str, str]) -> str | None:
        if self.block is None or self.block.mount not in directories:
            return None
        return f"{directories[self.block.mount]}/{'io.stat' if self.block.is_v2 else 'blkio.throttle.io_service_bytes_recursive'}"

    def _pids_file(self, memory: str, directories: Mapping[str, str]) -> tuple[str, bool]:
        if self.pids is not None and self.pids.mount in directories:
            path = f"{directories[self.pids.mount]}/pids.current"
            if os.path.exists(path):
                return path, False
        # the controller is absent or not delegated: the list of tasks has as many lines
        return f"{memory}/{'cgroup.threads' if self.memory.is_v2 else 'tasks'}", True


class _Machine(NamedTuple):
    trees: _Trees | None
    memory_bytes: int | None


def _find_trees(root: str) -> _Trees | None:
    """Return the hierarchies under `root` (v2, v1, or each from where it is), None without memory or CPU accounting."""
    is_v2 = os.path.exists(f"{root}/cgroup.controllers")
    found = {} if is_v2 else _v1_mounts(root)
    unified = _Tree(root if is_v2 else f"{root}/unified", is_v2=True)
    try:
        controllers = _contents(f"{unified.mount}/cgroup.controllers").decode("ascii", "replace").split()
    except OSError:
        pass
    else:
        # v2 accounts for CPU time without any controller
        found = dict.fromkeys(["cpuacct", *controllers], unified) | found
    memory, cpu = found.get("memory"), found.get("cpuacct")
    block = found.get("blkio") or found.get("io")
    return None if memory is None or cpu is None else _Trees(memory, cpu, found.get("pids"), block)


def _v1_mounts(root: str) -> dict[str, _Tree]:
    """Return the v1 hierarchies by controller; one for two of them is called `cpu,cpuacct`."""
    mounts: dict[str, _Tree] = {}
    try:
        names = os.listdir(root)
    except OSError:
        return mounts
    for name in sorted(names):
        for controller in name.split(","):
            if os.path.exists(f"{root}/{name}/cgroup.procs"):
                mounts[controller] = _Tree(f"{root}/{name}", is_v2=False)
    return mounts


def host_memory_bytes(proc: str) -> int | None:
    """Return this host's memory, None where it is not told."""
    try:
        fields = _after(_contents(f"{proc}/meminfo"), b"\nMemTotal:").split()
        return _number(fields[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _read_cpu(paths: CgroupPaths, clock: Callable[[], float]) -> usage.Counters | None:
    """Read one container's CPU time alone, to measure against later."""
    try:
        at_seconds = clock()
        cpu = _number(_after(_contents(paths.cpu), paths.cpu_key))
    except (OSError, ValueError):
        return None
    return usage.Counters(at_seconds, cpu / paths.cpu_units_per_second, 0, None, 0)


def _read_traffic(paths: CgroupPaths, proc: str) -> usage.Traffic:
    try:
        received, sent = network_bytes(_number(_contents(paths.processes).partition(b"\n")[0]), proc)
    except (OSError, ValueError):
        received = sent = None
    read, written = _block_bytes(paths.block)
    return usage.Traffic(received, sent, read, written)


def network_bytes(pid: int, proc: str) -> tuple[int | None, int | None]:
    """Sum up what a process has received and sent by its network, loopback left out; None for the host's own."""
    try:
        if os.stat(f"{proc}/{pid}/ns/net").st_ino == os.stat(f"{proc}/self/ns/net").st_ino:
            return None, None
        lines = _contents(f"{proc}/{pid}/net/dev").splitlines()[2:]
        fields = [line.partition(b":")[2].split() for line in lines if not line.lstrip().startswith(b"lo:")]
        return sum(int(one[0]) for one in fields), sum(int(one[8]) for one in fields)
    except (OSError, ValueError, IndexError):
        return None, None


def _block_bytes(path: str | None) -> tuple[int | None, int | None]:
    """Sum up the devices of `8:0 Read 4096` (v1) or `8:0 rbytes=4096 wbytes=0 ...` (v2)."""
    if path is None:
        return None, None
    read = written = 0
    try:
        for line in _contents(path).splitlines():
            for word, number in _BLOCK.findall(line):
                if word.lower() in (b"read ", b"rbytes="):
                    read += int(number)
                else:
                    written += int(number)
    except OSError:
        return None, None
    return read, written


def _read_counters(
    paths: CgroupPaths, host_memory_bytes: int | None, clock: Callable[[], float], proc: str
) -> usage.Counters | None:
    """Read one container's files; None when one is gone or makes no sense."""
    try:
        at_seconds = clock()
        cpu = _number(_after(_contents(paths.cpu), paths.cpu_key))
        memory_bytes = _number(_contents(paths.memory_usage))
        cache_bytes = _number(_after(_contents(paths.memory_stat), paths.memory_stat_key))
        limit_bytes = _limit(_contents(paths.memory_limit), host_memory_bytes)
        pids = _count_lines(paths.pids) if paths.pids_are_lines else _number(_contents(paths.pids))
    except (OSError, ValueError):
        return None
    if cache_bytes < memory_bytes:
        memory_bytes -= cache_bytes
    cpu_seconds = cpu / paths.cpu_units_per_second
    return usage.Counters(at_seconds, cpu_seconds, memory_bytes, limit_bytes, pids, _read_traffic(paths, proc))


def _limit(text: bytes, host_memory_bytes: int | None) -> int | None:
    """Return the limit; the host's memory for `max` (v2) and numbers near 2^63 (v1), which mean unlimited."""
    if text.strip() == b"max":
        return host_memory_bytes
    limit_bytes = _number(text)
    if host_memory_bytes is None:
        return limit_bytes if limit_bytes < _UNLIMITED_BYTES else None
    return min(limit_bytes, host_memory_bytes)


def _after(text: bytes, key: bytes) -> bytes:
    """Return the rest of the line that starts with `key` (given with the line feed before it)."""
    _, found, rest = (b"\n" + text).partition(key)
    if not found:
        raise ValueError(key)
    return rest.partition(b"\n")[0]


def _number(text: bytes) -> int:
    digits = text.strip()
    if not digits.isdigit():
        raise ValueError(digits)
    return int(digits)


def _count_lines(path: str) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _contents(path: str) -> bytes:
    """Return a short file whole; the kernel gives those in one piece."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)


def _cgroups_of_process(proc: str, pid: int) -> set[str]:
    """Return the paths in `/proc/PID/cgroup` (lines `number:controllers:path`); none for a process not here."""
    try:
        lines = _contents(f"{proc}/{pid:d}/cgroup").decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return set()
    return {line.split(":", 2)[2] for line in lines if line.count(":") >= 2}


def _templates_in(path: str, container_id: str) -> Iterator[tuple[_Template, str]]:
    """Yield what a cgroup's path tells about the container's place, with its full id; the whole path last.

    Inside a container the mount may show only the lower part of the path, so every lower part is a candidate.
    """
    names = [name for name in path.split("/") if name]
    for depth in reversed(range(len(names))):
        match = _DIRECTORY_NAME.fullmatch(names[depth])
        if match is not None and match[1].startswith(container_id) and ".." not in names:
            for first in reversed(range(depth + 1)):
                yield _template("".join(f"{name}/" for name in names[first:depth]), match), match[1]
            return


def _template(parent: str, match: re.Match[str]) -> _Template:
    return _Template(parent + match.string[: match.start(1)], match.string[match.end(1) :])


def _walk(mount: str, ids: Iterable[str]) -> Iterator[tuple[str, _Template, str]]:
    """Yield each id found in the tree with its template and its full id; level by level, within bounds."""
    missing = set(ids)
    for parent, name in _directories(mount):
        match = _DIRECTORY_NAME.fullmatch(name)
        if match is None:
            continue
        for container_id in [i for i in missing if match[1].startswith(i)]:
            missing.discard(container_id)
            yield container_id, _template(parent, match), match[1]
        if not missing:
            return


def _directories(mount: str, *, depth: int = _WALK_DEPTH) -> Iterator[tuple[str, str]]:
    """Yield parent (empty, or with a slash at its end) and name of the directories in a tree, level by level."""
    queue = collections.deque([("", 0)])
    for _ in range(_WALK_DIRECTORIES):
        if not queue:
            return
        parent, level = queue.popleft()
        for name in _subdirectories(f"{mount}/{parent}"):
            yield parent, name
            if level < depth:
                queue.append((f"{parent}{name}/", level + 1))


def _subdirectories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _baseline(looks: tuple[usage.Counters, ...], now: usage.Counters) -> usage.Counters | None:
    """Return the newest look that is neither too young nor too old to measure against."""
    for look in reversed(looks):
        if _YOUNGEST_LOOK_SECONDS <= now.at_seconds - look.at_seconds <= _OLDEST_LOOK_SECONDS:
            return look
    return None


def _with_look(looks: tuple[usage.Counters, ...], now: usage.Counters) -> tuple[usage.Counters, ...]:
    """Return the two looks to keep: with one that is old enough, a call right after this one need not wait."""
    if looks and now.at_seconds - looks[-1].at_seconds < _YOUNGEST_LOOK_SECONDS:
        return looks
    return (*looks[-1:], now)
