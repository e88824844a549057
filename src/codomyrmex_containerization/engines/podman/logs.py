"""How are the last lines of a log found where the engine's own `tail` loses what it wrote in pieces?

Podman keeps a long line, and one that has no end yet, in pieces; counting lines off from the end it drops the pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from codomyrmex_containerization.models.container import OutputFrame


def last_lines(frames: Iterator[OutputFrame], count: int) -> Iterator[OutputFrame]:
    """Yield the frames of the last `count` lines; a line of several frames counts once."""
    lines: deque[list[OutputFrame]] = deque(maxlen=max(count, 0))
    unfinished: dict[str, list[OutputFrame]] = {}
    for frame in frames:
        line = unfinished.get(frame.stream)
        if line is None:
            line = unfinished[frame.stream] = []
            lines.append(line)
        line.append(frame)
        if frame.data.endswith(b"\n"):
            del unfinished[frame.stream]
    for line in lines:
        yield from line


def count_lines(frames: Iterator[OutputFrame]) -> int:
    """Count the lines."""
    count, unfinished = 0, set[str]()
    for frame in frames:
        if frame.stream not in unfinished:
            count += 1
            unfinished.add(frame.stream)
        if frame.data.endswith(b"\n"):
            unfinished.discard(frame.stream)
    return count


def without_first_lines(frames: Iterator[OutputFrame], count: int) -> Iterator[OutputFrame]:
    """Yield the frames after the first `count` lines."""
    seen, unfinished = 0, dict[str, bool]()
    for frame in frames:
        if frame.stream not in unfinished:
            seen += 1
            unfinished[frame.stream] = seen > count
        if unfinished[frame.stream]:
            yield frame
        if frame.data.endswith(b"\n"):
            del unfinished[frame.stream]
