"""Who runs the health checks of containers that have no daemon? This process, each as often as its container says, while it lives."""

from __future__ import annotations

import anyio
from anyio.abc import TaskGroup

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import Healthcheck
from codomyrmex_containerization.models.details import ExecSpec

LOOK_SECONDS = 1.0
_INTERVAL_SECONDS, _TIMEOUT_SECONDS, _RETRIES, _SHORTEST_SECONDS = 30.0, 30.0, 3, 0.2
_OUTPUT_BYTES = 4096


async def run_health_checks(engine: EmbeddedEngine) -> None:
    """Run the checks of the engine's running containers, and note who has ended, until cancelled."""
    running: dict[str, anyio.CancelScope] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.watch)
        while True:
            wanted: dict[str, Healthcheck] = {}
            try:
                wanted = await engine.health_checks()
            except errors.ContainerizationError:
                wanted = {}
            _follow(engine, wanted, running, tasks)
            await anyio.sleep(LOOK_SECONDS)


def _follow(
    engine: EmbeddedEngine, wanted: dict[str, Healthcheck], running: dict[str, anyio.CancelScope], tasks: TaskGroup
) -> None:
    for container in [one for one in running if one not in wanted]:
        running.pop(container).cancel()
    for container, check in wanted.items():
        if container not in running:
            running[container] = anyio.CancelScope()
            tasks.start_soon(_check, engine, container, check, running[container])


async def _check(engine: EmbeddedEngine, container: str, check: Healthcheck, scope: anyio.CancelScope) -> None:
    pause = max(check.interval_seconds or _INTERVAL_SECONDS, _SHORTEST_SECONDS)
    began, was_well = anyio.current_time(), False
    with scope:
        while True:
            await anyio.sleep(pause)
            try:
                is_well, output = await _ask(engine, container, check)
            except errors.NotFound:
                return
            except errors.ContainerizationError as error:
                is_well, output = False, error.message
            counts = was_well or anyio.current_time() - began >= (check.start_period_seconds or 0)
            was_well = was_well or is_well
            retries = check.retries or _RETRIES
            try:
                await engine.tell_health(container, is_well=is_well, output=output, retries=retries, counts=counts)
            except errors.ContainerizationError:
                return  # it ended meanwhile: the next look takes it off


async def _ask(engine: EmbeddedEngine, container: str, check: Healthcheck) -> tuple[bool, str]:
    words = check.test[1:] if check.test[0] == "CMD" else ("/bin/sh", "-c", " ".join(check.test[1:]))
    made = await engine.create_exec(container, ExecSpec(tuple(words), {}))
    said = bytearray()
    limit = check.timeout_seconds or _TIMEOUT_SECONDS
    with anyio.move_on_after(limit) as timer:
        async with engine.start_exec(made, stdin=None) as attachment:
            async for frame in attachment.frames():
                said += frame.data[: _OUTPUT_BYTES - len(said)]
    if timer.cancelled_caught:
        await engine.end_exec(container, made)
        return False, f"the check took longer than {limit:g} seconds"
    found = await engine.inspect_exec(made)
    engine.forget_exec(made)
    return found.exit_code == 0, said.decode("utf-8", "replace")
