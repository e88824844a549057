"""How are the limits of a container changed?"""

from __future__ import annotations

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.container import ContainerState, Limits


async def update(engine: guard.GuardedEngine, container: ContainerState, limits: Limits) -> Limits:
    """Change limits of a container and return those that hold now.

    Raises InvalidArgument (none is given), Refused (the policy would not let us create it), Unsupported.
    """
    if limits == Limits():
        raise errors.InvalidArgument("Nothing is to be changed.", hint="give memory, cpus or pids_limit")
    engine.judge_foreign(container)
    await engine.update_container(container.id, limits)
    return (await engine.container_details(container.id)).limits
