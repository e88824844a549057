"""What has happened in an engine, what happens while one waits, and how far back does it remember?"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import anyio

from codomyrmex_containerization import threads
from codomyrmex_containerization.core.containers import Progress
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.event import EngineEvent, EventQuery

# Source: eventsLimit in moby, daemon/events/events.go.
DOCKER_KEEPS = 256

_PAST_SECONDS = 15.0
_REPORT_SECONDS = 2.0
# An engine's clock may be somewhat behind ours.
_GRACE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class EventPage:
    """The last events that were asked for, oldest first, how many there were, and what is to be known of the rest."""

    events: tuple[EngineEvent, ...]
    total: int
    notes: tuple[str, ...]


async def read(
    engine: base.Engine, query: EventQuery, *, follow_seconds: float, most: int, progress: Progress
) -> EventPage:
    """Return what happened, and with `follow_seconds` what happens until then too; at most the last `most` events."""
    notes: list[str] = []
    if query.since is not None and engine.endpoint.kind == "docker":
        edge = await _edge(engine, query.since)
        # Only a note about a time that was asked for.
        if edge is not None and (query.until is None or query.since < edge):
            notes.append(_edge_note(edge))
    seen: _Seen = _Seen(deque(maxlen=most))
    if follow_seconds > 0:
        await _follow(engine, query, follow_seconds, seen, progress)
    else:
        with anyio.move_on_after(_PAST_SECONDS) as scope:
            await _collect(engine, query, seen)
        if scope.cancelled_caught:
            notes.append(f"{engine.name} had not ended its list after {_PAST_SECONDS:g} seconds: there may be more")
    return EventPage(tuple(seen.events), seen.total, tuple(notes))


@dataclass(slots=True)
class _Seen:
    events: deque[EngineEvent]
    total: int = 0


async def _collect(engine: base.Engine, query: EventQuery, seen: _Seen) -> None:
    async with engine.events(query) as items:
        async for item in items:
            seen.events.append(item)
            seen.total += 1


async def _follow(
    engine: base.Engine, query: EventQuery, follow_seconds: float, seen: _Seen, progress: Progress
) -> None:
    began = time.monotonic()
    until = datetime.now(UTC) + timedelta(seconds=follow_seconds)

    async def report() -> None:
        while True:
            last = f", the last: {shown(seen.events[-1])}" if seen.events else ""
            waited = min(time.monotonic() - began, follow_seconds)
            await progress(waited, follow_seconds, f"{seen.total} events{last}")
            await anyio.sleep(_REPORT_SECONDS)

    async with threads.task_group() as tasks:
        tasks.start_soon(report)
        with anyio.move_on_after(follow_seconds + _GRACE_SECONDS):
            await _collect(engine, replace(query, until=until), seen)
        tasks.cancel_scope.cancel()


async def _edge(engine: base.Engine, since: datetime) -> datetime | None:
    """Return the time of the oldest event that is kept, when the engine keeps just so many and may have forgotten some."""
    oldest: EngineEvent | None = None
    count = 0
    with anyio.move_on_after(_PAST_SECONDS):
        async with engine.events(EventQuery(since=since)) as items:
            async for item in items:
                oldest = oldest or item
                count += 1
    return oldest.time if oldest is not None and count == DOCKER_KEEPS else None


def _edge_note(oldest: datetime) -> str:
    return (
        f"the engine keeps its last {DOCKER_KEEPS} events only, the oldest of {oldest:%Y-%m-%dT%H:%M:%S.%fZ}: "
        "what happened before is not known"
    )


def shown(event: EngineEvent) -> str:
    """Return an event in a few words."""
    return f"{event.type} {event.action} {event.name or event.id[:12]}".rstrip()
