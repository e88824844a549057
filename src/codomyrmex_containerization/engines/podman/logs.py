"""How are the last lines of a log found where the engine's own `tail` loses what it wrote in pieces?

Podman keeps a long line, and one that has no end yet, in pieces; counting lines off from the end it drops the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

from codomyrmex_containerization.models.container import OutputFrame


def last_lines(frames: Iterator[OutputFrame], count: int) -> Iterator[OutputFrame]:
    """Yield the frames of the last `count` lines; a line of several frames counts once."""
    lines: dict[int, list[OutputFrame]] = {}
    newest = 0
    for number, frame in _numbered(frames):
        newest = max(newest, number)
        lines.pop(newest - count, None)
        if number > newest - count:
            lines.setdefault(number, []).append(frame)
    for line in lines.values():
        yield from line


def count_lines(frames: Iterator[OutputFrame]) -> int:
    """Count the lines."""
    return max((number for number, _ in _numbered(frames)), default=0)


def without_first_lines(frames: Iterator[OutputFrame], count: int) -> Iterator[OutputFrame]:
    """Yield the frames after the first `count` lines."""
    return (frame for number, frame in _numbered(frames) if number > count)


def _numbered(frames: Iterator[OutputFrame]) -> Iterator[tuple[int, OutputFrame]]:
    """Yield each frame with the number of its line, from 1 on; the streams' lines may be intermingled."""
    count, unfinished = 0, dict[str, int]()
    for frame in frames:
        if frame.stream not in unfinished:
            count += 1
            unfinished[frame.stream] = count
        yield unfinished[frame.stream], frame
        if frame.data.endswith(b"\n"):
            del unfinished[frame.stream]
