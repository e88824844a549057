"""Who is told how far it is that an image is read or written, and who may stop that at the next piece?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.base import Passed
from codomyrmex_containerization.engines.embedded import layer_tar


class Watch:
    """One piece of work with bytes; several threads may do it."""

    def __init__(self, passed: Passed, *, is_stopped: Callable[[], bool]) -> None:
        self._passed = passed
        self._is_stopped = is_stopped
        self._guard = threading.Lock()
        self._count = 0
        self._has_counted = False

    def look(self) -> None:
        """Raise Cancelled once nobody wants the work any more."""
        if self._is_stopped():
            raise errors.Cancelled("The call was stopped.")

    def saw(self, count: int) -> None:
        """Count some more bytes. Raises Cancelled once nobody wants the work any more."""
        self.look()
        with self._guard:
            if not self._has_counted:
                self._count += count
                self._passed(self._count)

    def has_counted(self) -> None:
        """Say that all has gone by: what is read from now on was counted before."""
        self._has_counted = True

    def stream(self, stream: layer_tar.Stream) -> layer_tar.Stream:
        """Return a stream that counts what is read of it."""
        return _Watched(stream, self)

    def uncounted(self) -> Watch:
        """Return one that can be stopped likewise, for reading something again."""
        return Watch(lambda count: None, is_stopped=self._is_stopped)

    def part(self, *, is_stopped: Callable[[], bool]) -> Watch:
        """Return one that counts into this one, and can be stopped by itself too."""
        return _Part(self, is_stopped)


class _Part(Watch):
    def __init__(self, whole: Watch, is_stopped: Callable[[], bool]) -> None:
        super().__init__(lambda count: None, is_stopped=is_stopped)
        self._whole = whole

    def saw(self, count: int) -> None:
        self.look()
        self._whole.saw(count)


class _Watched:
    def __init__(self, stream: layer_tar.Stream, watch: Watch) -> None:
        self._stream = stream
        self._watch = watch

    def read(self, count: int, /) -> bytes:
        piece = self._stream.read(count)
        self._watch.saw(len(piece))
        return piece


def unwatched() -> Watch:
    """Return one that nobody looks at and nobody stops."""
    return Watch(lambda count: None, is_stopped=lambda: False)


@contextmanager
def stoppable(passed: Passed) -> Iterator[Watch]:
    """Yield a watch over what a thread does: with the end of the block it is stopped."""
    left = False
    try:
        yield Watch(passed, is_stopped=lambda: left)
    finally:
        left = True
