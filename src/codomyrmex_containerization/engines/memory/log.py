"""What has a container said, and how is it read: as it comes, or later in part?"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
import anyio.lowlevel

from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import OutputFrame, Stream

MOST_LOG_BYTES = 16 * 1024 * 1024
_LONGEST_LINE_BYTES = 16 * 1024
_FEED_BYTES = 1024 * 1024
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """Whole lines that one stream said at one moment."""

    time_ns: int
    stream: Stream
    data: bytes


class Log:
    """The last 16 MiB of what was said, in lines, oldest first."""

    def __init__(self) -> None:
        self.first = 0
        self.ended = False
        self._entries: deque[Entry] = deque()
        self._partial: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._bytes = 0
        self._changed = anyio.Event()

    @property
    def held_bytes(self) -> int:
        """How many bytes are kept."""
        return self._bytes

    def put(self, stream: Stream, data: bytes) -> None:
        """Note what was said. The beginning of a line waits for its end."""
        waiting = self._partial[stream]
        cut = data.rfind(b"\n") + 1
        if cut:
            self._add(stream, bytes(waiting) + data[:cut])
            waiting.clear()
        waiting += data[cut:]
        if len(waiting) >= _LONGEST_LINE_BYTES:
            self._add(stream, bytes(waiting))
            waiting.clear()

    def flush(self) -> None:
        """Note what has no end of line, when its writer has ended."""
        for stream, waiting in self._partial.items():
            if waiting:
                self._add(stream, bytes(waiting))
                waiting.clear()

    def begin(self) -> None:
        """More will come."""
        self.ended = False

    def end(self) -> None:
        """Nothing more will come; those who follow may leave."""
        self.flush()
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _add(self, stream: Stream, data: bytes) -> None:
        self._entries.append(Entry(time.time_ns(), stream, data))
        self._bytes += len(data)
        while self._bytes > MOST_LOG_BYTES and len(self._entries) > 1:
            self._bytes -= len(self._entries.popleft().data)
            self.first += 1
        self._wake()

    def drain(self) -> list[Entry]:
        """Take out what is there."""
        found = list(self._entries)
        self.first += len(found)
        self._entries.clear()
        self._bytes = 0
        return found

    async def read(self, query: base.LogQuery) -> AsyncGenerator[OutputFrame, None]:
        """Yield what the query asks for. The tail is counted off all streams, before the times are looked at."""
        since = _nanoseconds(query.since)
        until = _nanoseconds(query.until)
        number, chosen = self._chosen(query.tail)
        for entry in chosen:
            if until is not None and entry.time_ns > until:
                return
            for frame in _frames(entry, query, since):
                yield frame
            await anyio.lowlevel.checkpoint()
        while query.follow and not (until is not None and time.time_ns() > until):
            while number - self.first < len(self._entries):
                number = max(number, self.first)
                entry = self._entries[number - self.first]
                number += 1
                if until is not None and entry.time_ns > until:
                    return
                for frame in _frames(entry, query, since):
                    yield frame
            if self.ended:
                return
            limit = (until - time.time_ns()) / _NANOSECONDS if until is not None else None
            with anyio.move_on_after(limit):
                await self._changed.wait()

    def _chosen(self, tail: int | None) -> tuple[int, list[Entry]]:
        """Return the number of the next entry, and those of now that hold the last `tail` lines."""
        entries, number = list(self._entries), self.first + len(self._entries)
        if tail is None:
            return number, entries
        found: list[Entry] = []
        for entry in reversed(entries):
            if tail <= 0:
                break
            lines = _lines(entry.data)[-tail:]
            tail -= len(lines)
            found.append(Entry(entry.time_ns, entry.stream, b"".join(lines)))
        return number, found[::-1]


def _frames(entry: Entry, query: base.LogQuery, since: int | None) -> Iterator[OutputFrame]:
    if (since is not None and entry.time_ns < since) or (query.stream not in (None, entry.stream)):
        return
    if not query.timestamps:
        yield OutputFrame(entry.stream, entry.data)
        return
    seconds, rest = divmod(entry.time_ns, _NANOSECONDS)
    stamp = f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z ".encode()
    yield OutputFrame(entry.stream, b"".join(stamp + line for line in _lines(entry.data)))


def _lines(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _nanoseconds(moment: datetime | None) -> int | None:
    return round(moment.timestamp() * 1_000_000) * 1_000 if moment is not None else None


class Feed(base.Attachment):
    """What one who is attached has not read yet; a writer waits while that is too much."""

    def __init__(self) -> None:
        self._held: deque[OutputFrame] = deque()
        self._bytes = 0
        self._ended = False
        self._left = False
        self._changed = anyio.Event()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def put(self, frame: OutputFrame) -> None:
        """Hand a frame over."""
        while self._bytes >= _FEED_BYTES and not self._left:
            await self._changed.wait()
        if not self._left:
            self._held.append(frame)
            self._bytes += len(frame.data)
            self._wake()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._wake()

    def leave(self) -> None:
        """Nobody reads any more."""
        self._left = True
        self._held.clear()
        self._wake()

    async def frames(self) -> AsyncIterator[OutputFrame]:
        """Yield what comes until its end."""
        while True:
            if self._held:
                frame = self._held.popleft()
                self._bytes -= len(frame.data)
                self._wake()
                yield frame
            elif self._ended:
                return
            else:
                await self._changed.wait()


class Output:
    """Where the output of a container or a command goes: to those attached, and to its log if it keeps one."""

    def __init__(self, log: Log | None = None) -> None:
        self.feeds: list[Feed] = []
        self._log = log

    async def put(self, stream: Stream, data: bytes) -> None:
        """Hand output on."""
        if self._log is not None:
            self._log.put(stream, data)
        for feed in list(self.feeds):
            await feed.put(OutputFrame(stream, data))

    def end(self) -> None:
        """Nothing more comes."""
        if self._log is not None:
            self._log.end()
        for feed in self.feeds:
            feed.end()
        self.feeds.clear()
