"""Which back ends are there, and what would make the others available?"""

from __future__ import annotations

from dataclasses import dataclass

from codomyrmex_containerization.engines import selection
from codomyrmex_containerization.models.engine import EngineProbe


@dataclass(frozen=True, slots=True)
class Status:
    """Every engine as it answered just now; `default` is the one that calls use when they name none."""

    engines: tuple[EngineProbe, ...]
    default: str

    def is_available(self, engine: str) -> bool:
        """Say whether an engine answered."""
        return any(probe.name == engine and probe.info is not None for probe in self.engines)


async def look(engines: selection.Engines, *, engine: str | None) -> Status:
    """Ask all engines, or one. Raises InvalidArgument for a name that is no engine."""
    return Status(tuple(await engines.probe(engine)), await engines.default())
