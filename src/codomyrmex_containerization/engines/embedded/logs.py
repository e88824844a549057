"""What has a container said, and what does it go on to say? Read from the log that conmon keeps for it.

A line of the file is `TIME STREAM F TEXT`, or `TIME STREAM P TEXT` for a piece of a line whose end had not come when conmon looked: it
reads 8 KiB at most, so a long line has many pieces, and one that never ends has only such. `TIME STREAM F` without a text closes such a
line. When the file is full (`--log-size-max`) conmon puts an empty one in its place, and what the old one held is gone for whoever had
not opened it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import OutputFrame, Stream

_BLOCK_BYTES = 64 * 1024
_LONGEST_LINE_BYTES = 1024 * 1024  # conmon writes a hundredth of that; more is damage
_TAIL_REACH_BYTES = 1024 * 1024  # how far before a line's oldest piece an older one is looked for
_SHORTEST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.1
_LONGER = 1.2
_DEADLINE_SECONDS = 30.0
_NANOSECONDS = 1_000_000_000
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_STREAMS: dict[bytes, Stream] = {b"stdout": "stdout", b"stderr": "stderr"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the file; `ends_line` says whether what was said there is the end of a line."""

    stamp: bytes
    stream: Stream
    ends_line: bool
    data: bytes


def read(path: Path, query: base.LogQuery) -> Iterator[OutputFrame]:
    """Yield what a log holds now of what the query asks for; the log of what never ran may be missing, it is empty.

    The tail is counted off all streams, from the end of the file, before the times are looked at. Raises EngineUnavailable.
    """
    reading = _Reading(path, query, follows=False)
    try:
        while (frames := reading.more()) is not None:
            yield from frames
    finally:
        reading.close()


async def follow(path: Path, query: base.LogQuery, *, is_over: Callable[[], bool]) -> AsyncGenerator[OutputFrame, None]:
    """Yield what a log holds and what comes, until `is_over` (asked in a thread) and all was told, or `query.until` has passed.

    `is_over` must not be true before conmon has written everything: its exit file comes after that. Raises EngineUnavailable.
    """
    reading = _Reading(path, query, follows=True)
    pause_seconds = _SHORTEST_PAUSE_SECONDS
    try:
        while True:
            frames, ended = await threads.run(
                lambda: reading.step(is_over), deadline_seconds=_DEADLINE_SECONDS, what="reading the log"
            )
            for frame in frames or ():
                yield frame
            if ended:
                return
            if frames is not None:
                pause_seconds = _SHORTEST_PAUSE_SECONDS
                continue
            await anyio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * _LONGER, _LONGEST_PAUSE_SECONDS)
    finally:
        reading.close()


class _Reading:
    """One pass over a log, block by block."""

    def __init__(self, path: Path, query: base.LogQuery, *, follows: bool) -> None:
        self._path = path
        self._query = query
        self._follows = follows
        self._chooser = _Chooser(query)
        self._descriptor = -1
        self._position = 0
        self._limit: int | None = None
        self._rest = b""
        self._begun = False
        self._closed = False
        # A call that was abandoned may still run in its thread when the file is closed.
        self._lock = threading.Lock()

    def more(self) -> list[OutputFrame] | None:
        """Return what the next block holds; None when there is nothing more now."""
        with self._lock, self._explained():
            return None if self._closed else self._more()

    def step(self, is_over: Callable[[], bool]) -> tuple[list[OutputFrame] | None, bool]:
        """Return what the next block holds, of whichever file is the log now, and whether nothing more comes."""
        frames = self._next()
        if frames is None and not self._chooser.ended:
            over = is_over() or self._chooser.is_past(time.time_ns())
            # What was written before it was over may have come after the first look.
            frames = self._next()
            return frames, over and frames is None
        return frames, self._chooser.ended

    def _next(self) -> list[OutputFrame] | None:
        with self._lock, self._explained():
            while not self._closed:
                frames = self._more()
                if frames is not None or self._chooser.ended or not self._moves_on():
                    return frames
            return None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._closed = True
            self._drop()

    def _more(self) -> list[OutputFrame] | None:
        if not self._begun:
            self._begin()
        if self._descriptor < 0 or self._chooser.ended:
            return None
        wanted = _BLOCK_BYTES if self._limit is None else min(_BLOCK_BYTES, self._limit - self._position)
        block = os.pread(self._descriptor, wanted, self._position)
        if not block:
            return None
        offset = self._position - len(self._rest)
        self._position += len(block)
        *lines, self._rest = (self._rest + block).split(b"\n")
        if len(self._rest) > _LONGEST_LINE_BYTES:
            self._rest = b""
        return self._chooser.frames(lines, offset)

    def _begin(self) -> None:
        self._begun = True
        if not self._open():
            return
        size = os.fstat(self._descriptor).st_size
        self._limit = None if self._follows else size
        if self._query.tail is not None:
            starts = _tail(self._descriptor, size, self._query.tail)
            self._chooser.starts = starts
            self._position = min(starts.values())

    def _moves_on(self) -> bool:
        """Say whether there is something new to read after all; turns to the file that has taken the log's place."""
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            return False
        if self._descriptor < 0:
            return self._open()
        held = os.fstat(self._descriptor)  # after the look at the path: nobody writes to a file that was replaced
        if os.path.samestat(now, held):
            if held.st_size < self._position:
                self._start_over()
            return held.st_size != self._position
        if held.st_size > self._position:
            return True
        self._drop()
        self._start_over()
        return self._open()

    def _start_over(self) -> None:
        self._position, self._rest = 0, b""
        self._chooser.starts = {}

    def _open(self) -> bool:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        return True

    def _drop(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The container's log cannot be read: {error.strerror}.",
                hint=f"check the rights of {self._path.parent}",
            ) from error


class _Chooser:
    """Makes frames of the entries that a query asks for."""

    def __init__(self, query: base.LogQuery) -> None:
        self._query = query
        self._since = _nanoseconds(query.since)
        self._until = _nanoseconds(query.until)
        self._unfinished: dict[Stream, bool] = {}  # whether the line that a stream is at is wanted
        self.starts: dict[Stream, int] = {}
        self.ended = False

    def is_past(self, time_ns: int) -> bool:
        """Say whether nothing that is said from now on is wanted."""
        return self._until is not None and time_ns > self._until

    def frames(self, lines: Sequence[bytes], offset: int) -> list[OutputFrame]:
        """Return the frames of lines that lie at `offset`; with timestamps each has one frame, else neighbours share one."""
        found: list[OutputFrame] = []
        stream: Stream = "stdout"
        said: list[bytes] = []
        for entry in self._entries(lines, offset):
            if self._query.timestamps:
                found.append(OutputFrame(entry.stream, _shown(entry.stamp) + b" " + entry.data))
                continue
            if said and entry.stream != stream:
                found.append(OutputFrame(stream, b"".join(said)))
                said = []
            stream = entry.stream
            said.append(entry.data)
        if said:
            found.append(OutputFrame(stream, b"".join(said)))
        return found

    def _entries(self, lines: Sequence[bytes], offset: int) -> Iterator[_Entry]:
        for line in lines:
            place, offset = offset, offset + len(line) + 1
            entry = _parsed(line)
            if entry is None or place < self.starts.get(entry.stream, 0):
                continue
            if self._until is not None and _time_ns(entry.stamp) > self._until:
                self.ended = True
                return
            if self._is_wanted(entry) and entry.data:
                yield entry

    def _is_wanted(self, entry: _Entry) -> bool:
        """Say whether a line is wanted; its first piece decides for all of it."""
        wanted = self._unfinished.pop(entry.stream, None)
        if wanted is None:
            late_enough = self._since is None or _time_ns(entry.stamp) >= self._since
            wanted = late_enough and self._query.stream in (None, entry.stream)
        if not entry.ends_line:
            self._unfinished[entry.stream] = wanted
        return wanted


def _tail(descriptor: int, size: int, count: int) -> dict[Stream, int]:
    """Return from where on each stream's entries belong to the last `count` lines of the file."""
    starts: dict[Stream, int] = dict.fromkeys(_STREAMS.values(), size)
    inside: dict[Stream, bool] = {}  # whether a stream is, going back, still in a line that counts
    oldest = size
    if count <= 0:
        return starts
    for place, entry in _backwards(descriptor, size):
        stream = entry.stream
        if entry.ends_line or stream not in inside:
            inside[stream] = count > 0
            count -= 1
        if inside[stream]:
            starts[stream] = oldest = place
        if count <= 0 and (not any(inside.values()) or place < oldest - _TAIL_REACH_BYTES):
            break
    return starts


def _backwards(descriptor: int, size: int) -> Iterator[tuple[int, _Entry]]:
    """Yield the entries of a file with their places, the last one first."""
    end, held = size, b""
    while end > 0 and len(held) <= _LONGEST_LINE_BYTES:
        start = max(0, end - _BLOCK_BYTES)
        held = os.pread(descriptor, end - start, start) + held
        whole = held.find(b"\n") + 1 if start else 0
        end = start
        if start and not whole:
            continue
        *lines, unfinished = held[whole:].split(b"\n")
        place = start + len(held) - len(unfinished)
        held = held[:whole]
        for line in reversed(lines):
            place -= len(line) + 1
            entry = _parsed(line)
            if entry is not None:
                yield place, entry


def _parsed(line: bytes) -> _Entry | None:
    """Return what a line of the file says; None when it is damaged."""
    parts = line.split(b" ", 3)
    if len(parts) < 3 or not _STAMP.fullmatch(parts[0]):
        return None
    stream, tag = _STREAMS.get(parts[1]), parts[2].partition(b":")[0]
    if stream is None or tag not in (b"F", b"P"):
        return None
    data = parts[3] if len(parts) == 4 else b""
    return _Entry(parts[0], stream, tag == b"F", data + b"\n" if tag == b"F" and len(parts) == 4 else data)


@lru_cache(maxsize=64)
def _time_ns(stamp: bytes) -> int:
    found = _STAMP.fullmatch(stamp)
    if found is None:
        return 0
    zone = "+00:00" if found[3] == b"Z" else found[3].decode()
    try:
        seconds = int(datetime.fromisoformat(found[1].decode() + zone).timestamp())
    except (ValueError, OverflowError):
        return 0
    return seconds * _NANOSECONDS + int((found[2] or b"").ljust(9, b"0"))


@lru_cache(maxsize=64)
def _shown(stamp: bytes) -> bytes:
    """Return a time as other engines write it: in UTC, with nine digits."""
    seconds, rest = divmod(_time_ns(stamp), _NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z".encode()


def _nanoseconds(moment: datetime | None) -> int | None:
    return round(moment.timestamp() * 1_000_000) * 1_000 if moment is not None else None
