"""Do blocking functions run beside everything else, end on time for their caller, and leave no thread behind?"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterator

import anyio
import pytest

from codomyrmex_containerization import errors, threads


async def test_result_and_error_come_through() -> None:
    assert await threads.run(lambda: 42, deadline_seconds=5, what="counting") == 42

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await threads.run(fail, deadline_seconds=5, what="failing")


async def test_late_function_is_given_up_by_name_and_the_caller_is_free() -> None:
    release = threading.Event()
    try:
        with pytest.raises(errors.DeadlineExceeded, match=r"waiting took longer than 0\.05 seconds"):
            await threads.run(release.wait, deadline_seconds=0.05, what="waiting")
    finally:
        release.set()


async def test_cancelled_caller_is_free_at_once() -> None:
    release, begun = threading.Event(), anyio.Event()

    def block() -> None:
        anyio.from_thread.run_sync(begun.set)
        release.wait()

    try:
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                await threads.run(block, deadline_seconds=None, what="blocking")

            tasks.start_soon(wait)
            await begun.wait()
            tasks.cancel_scope.cancel()
    finally:
        release.set()


async def test_blocked_functions_hold_no_other_up() -> None:
    release = threading.Event()
    done: list[int] = []
    try:
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                await threads.run(release.wait, deadline_seconds=None, what="blocking")

            for _ in range(60):
                tasks.start_soon(wait)
            for number in range(10):
                done.append(await threads.run(functools.partial(int, number), deadline_seconds=10, what="quick"))
            release.set()
    finally:
        release.set()
    assert done == list(range(10))


class Source:
    """A blocking iterator that is fed by the test and freed by `stop`."""

    def __init__(self) -> None:
        self.items: queue.Queue[object] = queue.Queue()
        self.ended = threading.Event()
        self.stopped = 0

    def __call__(self) -> Iterator[object]:
        try:
            while (item := self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.ended.set()

    def stop(self) -> None:
        self.stopped += 1
        self.items.put(None)


async def ended(source: Source) -> bool:
    return await threads.run(lambda: source.ended.wait(10), deadline_seconds=20, what="waiting for the end")


async def test_items_come_in_order_to_the_end() -> None:
    source = Source()
    for item in [*range(1, 200), None]:
        source.items.put(item)
    async with threads.iterate(source, stop=source.stop) as items:
        assert [item async for item in items] == list(range(1, 200))
    assert source.stopped == 1


async def test_error_of_the_iterator_is_raised_behind_its_last_item() -> None:
    source = Source()
    source.items.put(1)
    source.items.put(KeyError("broken"))
    seen: list[object] = []
    with pytest.raises(KeyError, match="broken"):  # noqa: PT012  the block is what is tested
        async with threads.iterate(source, stop=source.stop) as items:
            async for item in items:
                seen.append(item)
    assert seen == [1]


async def test_leaving_early_frees_the_blocked_thread() -> None:
    source = Source()
    source.items.put(1)
    async with threads.iterate(source, stop=source.stop) as items:
        async for item in items:
            assert item == 1
            break
    assert source.stopped == 1
    assert await ended(source)


async def test_error_of_the_consumer_is_raised_as_it_is() -> None:
    source = Source()
    source.items.put(1)
    with pytest.raises(errors.Conflict):  # noqa: PT012  the block is what is tested
        async with threads.iterate(source, stop=source.stop) as items:
            async for _ in items:
                raise errors.Conflict("x")
    assert await ended(source)


async def test_cancelled_consumer_frees_the_blocked_thread() -> None:
    source = Source()
    source.items.put(1)
    with anyio.CancelScope() as scope:
        async with threads.iterate(source, stop=source.stop) as items:
            async for _ in items:
                scope.cancel()
    assert scope.cancelled_caught
    assert await ended(source)


async def test_slow_consumer_holds_a_fast_iterator_up() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10_000):
            made.append(number)
            yield number

    async with threads.iterate(source, stop=lambda: None, buffer=4) as items:
        async for _ in items:
            break
        assert len(made) < 100


async def test_task_group_raises_the_error_that_counts_and_no_group() -> None:
    async def fail() -> None:
        raise errors.NotFound("x")

    with pytest.raises(errors.NotFound):  # noqa: PT012  the block is what is tested
        async with threads.task_group() as tasks:
            tasks.start_soon(fail)
            tasks.start_soon(anyio.sleep_forever)
            await anyio.sleep_forever()
