"""What is a tool given to do its work?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from codomyrmex_containerization import redact
from codomyrmex_containerization.engines import guard, selection
from codomyrmex_containerization.models.settings import Settings

Progress = Callable[[float, float | None, str], Awaitable[None]]


async def no_progress(done: float, total: float | None, message: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True)
class Context:
    """Settings, engines, the redactor, the host paths that may be used, and where to report progress."""

    settings: Settings
    engines: selection.Engines
    redactor: redact.Redactor
    paths: guard.PathRules
    progress: Progress = no_progress
