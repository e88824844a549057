"""What was begun and perhaps never finished, and which processes are left of it? Notes that outlive a server that is killed.

A note is there while something is done that a record does not tell of yet. One whose writer has gone is settled by whoever comes next.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import groups, lives, objects, state

_ID_LENGTH = 64
_END_SECONDS = 5.0
_ROUNDS = 10
_FINISHES_BY_ITSELF = ("netavark", "unshare", "nsenter", "ip")
_CHANGES_NETWORKS = ("netavark", "nsenter", "ip", "nft", "iptables", "iptables-save")
_SHORT_VERBS = frozenset({b"state", b"start", b"kill", b"pause", b"resume", b"update", b"delete"})
_OF_MONITORS = b"--runtime-arg"
_LOOKS = 20
_WORDLESS_SECONDS = 1.0
_PAUSE_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was begun for a container, or a step of a build, by a server; `folder` is where its mounts are."""

    id: str
    maker: state.Process
    folder: str
    volumes: tuple[str, ...] = ()

    @property
    def is_left(self) -> bool:
        """Whether the server that began it has gone."""
        return not self.maker.is_alive


class Notes:
    """The notes of one data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, id: str, folder: Path, *, volumes: Sequence[str] = ()) -> None:
        """Note that something begins. `volumes` are to go with it if no container has them then. Raises EngineUnavailable."""
        maker = state.process(os.getpid())
        if maker is None:
            raise errors.InternalError("This process does not find itself.")
        # Not forced to the disk: it is for servers that are killed, and each start would wait for it.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = json.dumps(asdict(Note(id, maker, str(folder), tuple(volumes)))).encode()
        state.write_whole(self._folder / id, data, forced=False)

    def drop(self, id: str) -> None:
        """Strike a note out: it was finished, or taken back."""
        with suppress(OSError):
            (self._folder / id).unlink()

    def has(self, id: str) -> bool:
        """Whether something was begun for a container: quick."""
        return os.path.lexists(f"{self._folder}/{id}")

    def read(self, id: str) -> Note | None:
        """Return a note; None when there is none."""
        try:
            raw = json.loads((self._folder / id).read_bytes())
            return Note(id, state.Process(**raw["maker"]), str(raw["folder"]), tuple(raw["volumes"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            return Note(id, state.Process(0, 0, ""), "")  # a damaged one says at least that something was begun

    def all(self) -> list[Note]:
        """Return every note."""
        try:
            names = os.listdir(self._folder)
        except OSError:
            return []
        found = [self.read(one) for one in names if len(one) == _ID_LENGTH]
        return [one for one in found if one is not None]


def end_strays(folders: objects.Folders, id: str, *, restarters: bool = False) -> None:
    """End what a killed server has left at work for a container: monitors, runtimes, network programs.

    With `restarters` also the program that waits to start it again: for one that is removed.
    """
    lives.settle(lives.gone(folders.run))

    def is_stray(_: int, words: Sequence[bytes]) -> bool:
        return _is_stray(words, folders, id) or (restarters and _is_restarter(words, folders, id))

    end_all(is_stray, finishes=lambda words: _program(words) in _FINISHES_BY_ITSELF)


def end_orphans(folders: objects.Folders) -> list[str]:
    """End what killed servers had just told runtimes and network programs, noted or not; returns what was found. Quick without any.

    Monitors stay, and with them what they watch: that goes on without a server.
    """
    those = lives.gone(folders.run)
    if not those:
        return []
    is_settled = lives.settle(those)
    marks = {f"{lives.VARIABLE}={one.name}".encode() for one in those}

    def is_orphan(pid: int, words: Sequence[bytes]) -> bool:
        return _is_brief(words, folders) and not marks.isdisjoint(_strings(pid, "environ"))

    found, is_done = end_all(
        is_orphan, finishes=lambda words: _program(words) in _CHANGES_NETWORKS or not _SHORT_VERBS.isdisjoint(words)
    )
    if is_settled and is_done:
        lives.forget(those)
    return [f"{found} programs of a server that was killed"] if found else []


def end_all(
    is_wanted: Callable[[int, Sequence[bytes]], bool], *, finishes: Callable[[Sequence[bytes]], bool]
) -> tuple[int, bool]:
    """End programs, told by number and words, and those that they start meanwhile; returns how many, and whether none is left.

    One that `finishes` is given some time to end by itself.
    """
    count = 0
    for _ in range(_ROUNDS):
        found = [(one, words) for one, words in _programs(is_wanted) if one.pid != os.getpid()]
        if not found:
            return count, True
        count += len(found)
        until = time.monotonic() + _END_SECONDS
        for one, words in found:
            # What changes the host's rules is let finish: half of its work would be left.
            left = max(0.0, until - time.monotonic())
            if not (finishes(words) and state.wait_for_end(one, seconds=left)):
                kill(one)
        for one, _ in found:
            state.wait_for_end(one, seconds=_END_SECONDS)
    return count, False


def _programs(is_wanted: Callable[[int, Sequence[bytes]], bool]) -> Iterator[tuple[state.Process, Sequence[bytes]]]:
    """Yield the programs that are wanted, those too that come while it looks: whoever forks and ends hands on what it does."""
    seen: set[int] = set()
    until = time.monotonic() + _WORDLESS_SECONDS
    for _ in range(_LOOKS):
        new = {*_pids()} - seen
        if not new:
            return
        for pid in new:
            words = _words(pid, until)
            found = state.process(pid) if is_wanted(pid, words) else None
            if found is not None:
                yield found, words
        seen |= new


def _is_brief(words: Sequence[bytes], folders: objects.Folders) -> bool:
    """Whether it does one thing and ends: a runtime that is no monitor's word for itself, or what changes networks."""
    is_runtime = os.fsencode(folders.runtime) in words and _OF_MONITORS not in words
    return is_runtime or _program(words) in _CHANGES_NETWORKS


def _is_stray(words: Sequence[bytes], folders: objects.Folders, id: str) -> bool:
    namespace = os.fsencode(folders.run / "netns" / id)
    if any(one in (namespace, b"--net=" + namespace) for one in words):
        return True
    return os.fsencode(id) in words and os.fsencode(folders.runtime) in words


def _is_restarter(words: Sequence[bytes], folders: objects.Folders, id: str) -> bool:
    wanted = (f"{__package__}.exits", str(folders.data), str(folders.run), id)
    return b"-m" in words[:3] and all(os.fsencode(one) in words for one in wanted)


def _pids() -> Iterator[int]:
    return (int(one) for one in os.listdir("/proc") if one.isdigit())


def _words(pid: int, until: float) -> list[bytes]:
    """Return a program's command line; one that has just become a program has none for a moment."""
    while True:
        words = _strings(pid, "cmdline")
        if words != [b""] or time.monotonic() >= until or not _has_memory(pid):
            return words
        time.sleep(_PAUSE_SECONDS)


def _has_memory(pid: int) -> bool:
    """Whether it is neither a thread of the kernel's nor one that has ended."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return True


def _strings(pid: int, what: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().split(b"\0")
    except OSError:
        return []


def _program(words: Sequence[bytes]) -> str:
    return os.fsdecode(words[0]).rpartition("/")[2] if words else ""


def kill_group(id: str, *, parent: str = groups.PARENT) -> None:
    """Kill what is in a container's control groups: for when its runtime does not do it."""
    found = [one for place in groups.of_container(id, parent=parent) for one in _members(place.directory)]
    for one in found:
        kill(one)
    for one in found:
        state.wait_for_end(one, seconds=_END_SECONDS)


def kill(program: state.Process) -> None:
    """Kill a process, and no other that has its number now."""
    with suppress(OSError):
        send(program, signal.SIGKILL)


def send(program: state.Process, number: int) -> None:
    """Send a signal to a process, and to no other that has its number now; does nothing when it has gone. Raises OSError."""
    try:
        descriptor = os.pidfd_open(program.pid)
    except ProcessLookupError:
        return
    try:
        if program.is_alive:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def _members(group: Path) -> list[state.Process]:
    numbers: set[int] = set()
    for folder, _, _ in os.walk(group):
        with suppress(OSError, ValueError):
            numbers |= {int(one) for one in Path(folder, "cgroup.procs").read_text("ascii").split()}
    return [one for number in numbers if (one := state.process(number)) is not None]
