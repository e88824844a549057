"""What was begun and perhaps never finished, and which processes are left of it? Notes that outlive a server that is killed.

A note is there while something is done that a record does not tell of yet. One whose writer has gone is settled by whoever comes next.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import groups, objects, state

_ID_LENGTH = 64
_END_SECONDS = 5.0
_ROUNDS = 10
_FINISHES_BY_ITSELF = ("netavark", "unshare", "nsenter", "ip")


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
    for _ in range(_ROUNDS):
        found = [one for one in _named(folders, id, restarters=restarters) if one.pid != os.getpid()]
        if not found:
            return
        for one in found:
            # What changes the host's rules is let finish: half of its work would be left.
            finishes = _program(one.pid) in _FINISHES_BY_ITSELF and state.wait_for_end(one, seconds=_END_SECONDS)
            if not finishes:
                kill(one)
        for one in found:
            state.wait_for_end(one, seconds=_END_SECONDS)


def _named(folders: objects.Folders, id: str, *, restarters: bool) -> Iterator[state.Process]:
    """Yield the programs of ours that were told of a container; others may name it too, and are left alone."""
    for pid in _pids():
        words = _words(pid)
        if _is_stray(words, folders, id) or (restarters and _is_restarter(words, folders, id)):
            found = state.process(pid)
            if found is not None:
                yield found


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


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _program(pid: int) -> str:
    words = _words(pid)
    return os.fsdecode(words[0]).rpartition("/")[2] if words else ""


def kill_group(id: str) -> None:
    """Kill what is in a container's control groups: for when its runtime does not do it."""
    found = [one for place in groups.of_container(id) for one in _members(place.directory)]
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
