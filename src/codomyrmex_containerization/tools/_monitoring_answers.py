"""What do the monitoring tools answer?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from codomyrmex_containerization.tools._answer import Answer, Keep, Row, table


class EventRow(Row):
    """One thing that happened: to what (`type`, `name`, `id`) and what (`action`)."""

    time: str
    type: str
    action: str
    name: str
    id: str
    image: str | None = None
    exit_code: int | None = None
    details: dict[str, str] | None = None


class EventsAnswer(Answer):
    """The last events, oldest first; `total` counts all that fit the question."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"events": "last"}

    events: list[EventRow]
    total: int
    engine: str
    notes: list[str] = []

    def text(self) -> str:
        lines = [
            table(("TIME", "TYPE", "ACTION", "NAME", "ID", "IMAGE", "EXIT", "DETAILS"), [*map(_cells, self.events)])
        ]
        return "\n".join([*(lines if self.events else ["no events"]), *(f"[{note}]" for note in self.notes)])

    def cut_note(self, field: str, kept: int, total: int) -> str:
        return self.more(kept, self.events[-kept].time if 0 < kept <= len(self.events) else "")

    def more(self, shown: int, first_time: str) -> str:
        """Say how many events there were and how to ask for the rest."""
        until = f", or until={first_time!r} for those before" if first_time else ""
        return f"the last {shown:,} of {self.total:,} events are shown; ask with filters or a later since{until}"


def _cells(row: EventRow) -> tuple[str, ...]:
    details = " ".join(f"{name}={value}" for name, value in (row.details or {}).items())
    code = "" if row.exit_code is None else str(row.exit_code)
    return (row.time, row.type, row.action, row.name, row.id, row.image or "", code, details)
