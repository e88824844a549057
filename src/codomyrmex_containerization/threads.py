"""How do blocking libraries run without stopping everything else? The one door to threads.

A cancelled or late call is abandoned: the caller is free at once, the thread runs on until its own socket time-out. Whoever starts a
mutating call therefore passes its deadline to the library as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar

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
    send, receive = anyio.create_memory_object_stream[T](buffer)
    failure: list[BaseException] = []
    left = False

    def pump() -> None:
        try:
            for item in source():
                anyio.from_thread.run(send.send, item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        except Exception as error:  # noqa: BLE001  handed to the consumer, who raises it
            if not left:
                failure.append(error)
        finally:
            with suppress(RuntimeError):  # the event loop may be gone when the thread was abandoned
                anyio.from_thread.run_sync(send.close)

    async def items() -> AsyncGenerator[T, None]:
        async for item in receive:
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
            receive.close()
            # A thread that never came to run does not close it.
            send.close()
            stop()
            tasks.cancel_scope.cancel()
