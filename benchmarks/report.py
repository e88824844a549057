"""How are the numbers shown? As a table for a person, and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

Unit = Literal["ms", "MB", "bytes", "requests"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one side took."""

    median: float
    minimum: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Sum values up."""
        return cls(statistics.median(values), min(values), len(values))


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; without an aim it is there for the reader only."""

    measure: str
    case: str
    against: str
    unit: Unit
    ours: Sample
    theirs: Sample
    aim: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours by theirs, of the medians."""
        return self.ours.median / self.theirs.median

    def judged(self, aim: str, *, met: bool, note: str | None = None) -> Row:
        """Return the row with its aim, and whether it was met."""
        return replace(self, aim=aim, met=met, note=self.note if note is None else note)


@dataclass(frozen=True, slots=True)
class Failure:
    """A measure that could not be taken."""

    measure: str
    reason: str


def plain(
    measure: str,
    case: str,
    against: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    unit: Unit = "ms",
    note: str = "",
) -> Row:
    """Return a comparison without an aim."""
    return Row(measure, case, against, unit, Sample.of(ours), Sample.of(theirs), note=note)


def judged(
    measure: str,
    case: str,
    against: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    limit: float,
    unit: Unit = "ms",
    note: str = "",
) -> Row:
    """Return a comparison whose aim is a ratio of medians."""
    made = plain(measure, case, against, ours, theirs, unit=unit, note=note)
    return made.judged(f"<= {limit:g}x", met=made.ratio <= limit)


def table(rows: Sequence[Row], failures: Sequence[Failure]) -> str:
    """Return the table."""
    header = ("measure", "case", "against", "ours", "theirs", "ratio", "aim", "", "n")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shown.insert(1, "  ".join("-" * width for width in widths))
    shown += [f"note: {row.measure}, {row.case}: {row.note}" for row in rows if row.note]
    shown += [f"not measured: {one.measure}: {one.reason}" for one in failures]
    return "\n".join(shown)


def write(path: Path, rows: Sequence[Row], failures: Sequence[Failure], circumstances: Mapping[str, object]) -> None:
    """Write everything as JSON."""
    content = {
        **circumstances,
        "rows": [{**asdict(row), "ratio": round(row.ratio, 4)} for row in rows],
        "not_measured": [asdict(one) for one in failures],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    mark = {True: "met", False: "MISSED", None: ""}[row.met]
    return (
        row.measure,
        row.case,
        row.against,
        _shown(row.ours, row.unit),
        _shown(row.theirs, row.unit),
        _factor(row.ratio),
        row.aim,
        mark,
        f"{row.ours.count}/{row.theirs.count}",
    )


def _shown(sample: Sample, unit: Unit) -> str:
    digits = 0 if sample.median >= 100 else 1 if sample.median >= 10 else 2
    return f"{sample.median:.{digits}f} {unit} (min {sample.minimum:.{digits}f})"


def _factor(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"1/{1 / ratio:.0f}"
