"""What did a container say? Frames become bounded text and whole lines, with nothing invisible left in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from codomyrmex_containerization import redact
from codomyrmex_containerization.models.container import OutputFrame, Stream

HEAD_BYTES = 16_384
TAIL_BYTES = 65_536
LONGEST_LINE_BYTES = 65_536
CUT_MARGIN_CHARACTERS = 8_192  # longer than any secret

_TIMESTAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) ")


def readable(data: bytes) -> str:
    """Decode output: invalid UTF-8 becomes visible as \\xNN, escape sequences and control characters go."""
    return redact.strip_controls(data.decode("utf-8", "backslashreplace"))


class Capture:
    """Keeps the beginning and the end of a stream, whatever its length."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0

    def add(self, data: bytes) -> None:
        """Take in the next piece."""
        self.total_bytes += len(data)
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]

    def text(self) -> str:
        """Return the text; where the middle was left out, whole lines are missing, so that no half of a secret stays."""
        tail = bytes(self._tail[-TAIL_BYTES:])
        if self.total_bytes == len(self._head) + len(tail):
            return readable(bytes(self._head) + tail)
        head = bytes(self._head).rpartition(b"\n")[0]
        tail = tail.partition(b"\n")[2]
        left_out = self.total_bytes - len(head) - len(tail)
        return f"{readable(head)}\n[... {left_out:,} bytes left out ...]\n{readable(tail)}"


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line of a log: its stream, its time as the engine wrote it, its bytes without the end."""

    stream: Stream
    timestamp: str
    data: bytes


class LineAssembler:
    """Joins the frames of a log with timestamps into lines, each stream for itself.

    An engine cuts a long line into several frames, each with a timestamp of its own: the later ones are taken off.
    """

    def __init__(self) -> None:
        self._open: dict[Stream, tuple[str, bytearray]] = {}

    def feed(self, frame: OutputFrame) -> Iterator[RawLine]:
        """Take in a frame and yield the lines that it completes."""
        for piece in frame.data.splitlines(keepends=True) if frame.data.count(b"\n") > 1 else (frame.data,):
            yield from self._piece(frame.stream, piece)

    def flush(self) -> Iterator[RawLine]:
        """Yield what has no line end yet."""
        for stream, (timestamp, data) in self._open.items():
            yield RawLine(stream, timestamp, bytes(data))
        self._open.clear()

    def _piece(self, stream: Stream, piece: bytes) -> Iterator[RawLine]:
        match = _TIMESTAMP.match(piece)
        body = piece[match.end() :] if match else piece
        timestamp, data = self._open.pop(stream, (match[1].decode() if match else "", bytearray()))
        if len(data) <= LONGEST_LINE_BYTES:
            data += body
        if body.endswith(b"\n"):
            yield RawLine(stream, timestamp, bytes(data).rstrip(b"\r\n"))
        else:
            self._open[stream] = (timestamp, data)
