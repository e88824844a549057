"""How do blocking libraries run without stopping everything else? The one door to threads.

A cancelled or late call is abandoned: the caller is free at once, the thread runs on until its own socket time-out. Whoever starts a
mutating call therefore passes its deadline to the library as well.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from codomyrmex_containerization import errors

T = TypeVar("T")

MOST_THREADS = 128
_limiters: dict[object, CapacityLimiter] = {}


def _limiter() -> CapacityLimiter:
    token = anyio.lowlevel.current_token()
    found = _limiters.get(token)
    if found is None:
        _limiters.clear()
        found = _limiters[token] = CapacityLimiter(MOST_THREADS)
    return found


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """Open a task group whose block's error is raised as it is, not inside an exception group."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        first = _first(group)
        if first is None:
            raise
        raise first from first.__cause__


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return the error that counts: the first one that is no cancellation."""
    cancelled = anyio.get_cancelled_exc_class()
    for one in group.exceptions:
        found = _first(one) if isinstance(one, BaseExceptionGroup) else one
        if found is not None and not isinstance(found, cancelled):
            return found
    return None


async def run(function: Callable[[], T], *, deadline_seconds: float | None, what: str) -> T:
    """Run a blocking function in a thread and return its result.

    Raises DeadlineExceeded naming `what` when it takes longer than `deadline_seconds` (None: no limit).
    """
    try:
        with anyio.fail_after(deadline_seconds):
            return await to_thread.run_sync(function, abandon_on_cancel=True, limiter=_limiter())
    except TimeoutError as error:
        raise errors.DeadlineExceeded(
            f"{what} took longer than {deadline_seconds:g} seconds.",
            hint="try again, or ask container_runtime_status whether the engine answers",
        ) from error


@asynccontextmanager
async def iterate(
    source: Callable[[], Iterator[T]], *, stop: Callable[[], None], buffer: int = 64
) -> AsyncIterator[AsyncIterator[T]]:
    """Iterate a blocking iterator from async code: `async with iterate(...) as items: async for item in items`.

    `source` is called in the thread. `stop` is called when the consumer leaves, whatever the reason; it must make a blocked
    `next()` return or raise (close the socket), so that no thread stays behind. Errors of the iterator are raised to the consumer.
    """
    pipe: _Pipe[T] = _Pipe(buffer)
    failure: list[BaseException] = []
    left = False

    def pump() -> None:
        try:
            for item in source():
                if not pipe.put(item):
                    return
        except Exception as error:  # noqa: BLE001  handed to the consumer, who raises it
            if not left:
                failure.append(error)
        finally:
            pipe.end()

    async def items() -> AsyncGenerator[T, None]:
        while some := await pipe.take():
            for item in some:
                yield item
        if failure:
            raise failure[0]

    async with task_group() as tasks:
        tasks.start_soon(lambda: to_thread.run_sync(pump, abandon_on_cancel=True, limiter=_limiter()))
        try:
            async with aclosing(items()) as stream:
                yield stream
        finally:
            left = True
            pipe.close()
            stop()
            tasks.cancel_scope.cancel()


class _Pipe(Generic[T]):
    """Hands items from a thread to the event loop, as many at once as there are: each way over costs more than most items do."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._waiting: anyio.Event | None = None
        self._ended = False
        self._closed = False

    def put(self, item: T) -> bool:
        """Hand an item over, from the thread; waits while there are too many. False: nobody wants any more."""
        with self._changed:
            while len(self._items) >= self._most and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._items.append(item)
            waiting, self._waiting = self._waiting, None
        _wake(waiting)
        return True

    def end(self) -> None:
        """Say, from the thread, that nothing more comes."""
        with self._changed:
            self._ended = True
            waiting, self._waiting = self._waiting, None
        _wake(waiting)

    async def take(self) -> list[T]:
        """Return what is there, waiting for something; nothing means that nothing more comes."""
        await anyio.lowlevel.checkpoint()
        while True:
            with self._changed:
                found = list(self._items)
                self._items.clear()
                self._changed.notify()
                if found or self._ended:
                    return found
                waiting = self._waiting = anyio.Event()
            await waiting.wait()

    def close(self) -> None:
        """Say that nobody wants any more."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify()


def _wake(waiting: anyio.Event | None) -> None:
    if waiting is not None:
        with suppress(RuntimeError):  # the event loop may be gone when the thread was abandoned
            anyio.from_thread.run_sync(waiting.set)
