"""Who runs the health checks of containers where Podman has nobody to do it?

Podman leaves them to systemd's timers. Where systemd does not run they are run from here, each as often as its container says, while this
server lives. A service that nobody uses is left to end: only an engine that was used lately, or that has checks to run, is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio
from anyio.abc import TaskGroup

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.podman import settings
from codomyrmex_containerization.engines.podman.engine import PodmanEngine

LOOK_SECONDS = 2.0
_USED_LATELY_SECONDS = 30.0
_DEFAULT_INTERVAL_SECONDS = 30.0
_SHORTEST_INTERVAL_SECONDS = 0.2


def is_needed(engine: PodmanEngine) -> bool:
    """Whether nobody else runs the checks: the engine is on this host, and systemd is not."""
    return engine.is_local and not settings.look().has_systemd


async def run_health_checks(engine: PodmanEngine) -> None:
    """Run the checks of the engine's running containers until cancelled; what fails is tried again at the next look."""
    if not is_needed(engine):
        return
    running: dict[str, anyio.CancelScope] = {}
    engine.runs_health_checks = True
    async with anyio.create_task_group() as tasks:
        while True:
            if running or engine.idle_seconds < _USED_LATELY_SECONDS:
                try:
                    _follow(engine, await engine.health_intervals(), running, tasks)
                except errors.ContainerizationError:
                    _follow(engine, {}, running, tasks)
            await anyio.sleep(LOOK_SECONDS)


def _follow(
    engine: PodmanEngine, wanted: Mapping[str, float | None], running: dict[str, anyio.CancelScope], tasks: TaskGroup
) -> None:
    """Begin with the checks that are new, and leave those whose containers do not run any more."""
    for container in [one for one in running if one not in wanted]:
        running.pop(container).cancel()
    for container, interval_seconds in wanted.items():
        if container not in running:
            running[container] = anyio.CancelScope()
            pause = max(interval_seconds or _DEFAULT_INTERVAL_SECONDS, _SHORTEST_INTERVAL_SECONDS)
            tasks.start_soon(_check, engine, container, pause, running[container])


async def _check(engine: PodmanEngine, container: str, pause_seconds: float, scope: anyio.CancelScope) -> None:
    with scope:
        while True:
            await anyio.sleep(pause_seconds)
            try:
                await engine.run_health_check(container)
            except errors.ContainerizationError:
                continue  # it ended meanwhile: the next look takes it off
