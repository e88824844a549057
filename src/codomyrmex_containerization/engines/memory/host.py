"""Where do the tasks of containers live, which outlast the call that started them?"""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup


class TaskHost:
    """A task group in a task of its own, on the event loop that asks first; when that loop ends, so does all that runs."""

    def __init__(self) -> None:
        self._tasks: TaskGroup | None = None
        self._loop: object = None
        self._closing = anyio.Event()
        self._closed = anyio.Event()
        self._task: asyncio.Task[None] | None = None

    async def tasks(self) -> TaskGroup:
        """Return the group, opened when there is none (any more)."""
        loop = anyio.lowlevel.current_token()
        if self._tasks is not None and self._loop is loop:
            return self._tasks
        ready = anyio.Event()
        self._closing, self._closed, self._loop = anyio.Event(), anyio.Event(), loop
        # anyio ties every task to the block that started it; a container belongs to no call.
        self._task = asyncio.get_running_loop().create_task(self._live(ready))
        await ready.wait()
        assert self._tasks is not None  # noqa: S101  set before `ready`
        return self._tasks

    async def _live(self, ready: anyio.Event) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                ready.set()
                await self._closing.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self._closed.set()

    async def aclose(self) -> None:
        """End all tasks."""
        if self._tasks is not None and self._loop is anyio.lowlevel.current_token():
            self._closing.set()
            await self._closed.wait()
