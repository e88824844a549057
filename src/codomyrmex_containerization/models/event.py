"""What happened in an engine, and what of it is wanted?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events are wanted; None is no bound. With `until` in the future the engine goes on until then.

    `filters` are the engine's own: container, image, volume, network, event (the action), type, label.
    """

    since: datetime | None = None
    until: datetime | None = None
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One thing that happened: `type` is what to (container, image, ...), `action` what (start, die, pull, ...)."""

    time: datetime
    type: str
    action: str
    id: str
    name: str
    attributes: Mapping[str, str]
    engine: str
