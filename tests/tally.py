"""How many attacks were made in this run, of each kind, and how many got through? Counted by the tests as they attack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

MARKER = "attack"
# Kinds that are attacked in more than one place.
TOKENS = "tokens forged, replayed, used for anything else"
LABELS = "own labels worn by strangers, or given as arguments"
LINKS = "links to what is shut, before or after the check"
PATHS = "paths and names that lead out"
REGISTRIES = "registries that lie, lead astray or never end"
_HEADINGS = ("attack", "tried", "got through")


@dataclass(slots=True)
class Row:
    """What is known of one kind of attack."""

    tried: int = 0
    through: Counter[str] = field(default_factory=Counter)
    most_bytes: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: int = 0

    def as_plain(self) -> dict[str, Any]:
        """What another process can be told."""
        return {**asdict(self), "through": dict(self.through)}

    def add(self, plain: dict[str, Any]) -> None:
        """Count what another process has counted."""
        self.tried += plain["tried"]
        self.through.update(plain["through"])
        self.most_bytes = {
            what: max(self.most_bytes.get(what, 0), plain["most_bytes"].get(what, 0))
            for what in {**self.most_bytes, **plain["most_bytes"]}
        }
        self.failed += plain["failed"]
        self.skipped += plain["skipped"]

    def outcome(self) -> str:
        """The right-hand column."""
        named = sorted(word for word in self.through if word)
        said = [f"{self.through[word]} {word}" for word in named] if named else [str(self.through.total())]
        said += [f"{text} {most / 1_000_000:.0f} MB" for text, most in self.most_bytes.items()]
        if self.skipped:
            said.append(f"{self.skipped} tests not run")
        if self.failed:
            said.append(f"FAILED: {', '.join(self.failed)}")
        return "; ".join(said)


class Tally:
    """The rows of this session. A test that wears `@pytest.mark.attack(kind)` counts for that kind."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.running: str | None = None

    def row(self, kind: str | None) -> Row:
        """The row of a kind, or of the kind of the test that runs; nobody's row where it is no attack."""
        kind = kind or self.running
        return Row() if kind is None else self.rows.setdefault(kind, Row())


_tally = Tally()


def tried(number: int = 1, *, kind: str | None = None) -> None:
    """Attacks are being made."""
    _tally.row(kind).tried += number


def got_through(number: int = 1, what: str = "", *, kind: str | None = None) -> None:
    """Some had an effect; 0 for a look that found none. `what` tells apart what is counted apart."""
    _tally.row(kind).through[what] += number


def measured(what: str, value_bytes: int) -> None:
    """Keep the largest value of a measurement."""
    most = _tally.row(None).most_bytes
    most[what] = max(value_bytes, most.get(what, value_bytes))


@contextmanager
def attempt() -> Iterator[None]:
    """Around one attack and the look at what came of it: what is not as it must be got through."""
    tried()
    try:
        yield
    except (AssertionError, pytest.fail.Exception):
        got_through()
        raise


# --------------------------------------------------------------------------------------------------------------- hooks


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Know whose attacks are counted."""
    _tally.running = _kind_of(item)
    try:
        return (yield)
    finally:
        _tally.running = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A kind with a test that failed, be it before it counted anything, is no kind that was fended off."""
    report = yield
    kind = _kind_of(item)
    if kind is not None and report.failed:
        _tally.row(kind).failed.append(f"{item.name} ({report.when})")
    elif kind is not None and report.skipped:
        _tally.row(kind).skipped += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What got through fails the run, though the test that counted it did not; one of several workers hands over what it counted."""
    handed_over = getattr(session.config, "workeroutput", None)
    if handed_over is not None:
        handed_over["tally"] = {kind: row.as_plain() for kind, row in _tally.rows.items()}
    elif session.exitstatus == pytest.ExitCode.OK and any(row.through.total() for row in _tally.rows.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended: what it counted counts here."""
    for kind, plain in getattr(node, "workeroutput", {}).get("tally", {}).items():
        _tally.row(kind).add(plain)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, whenever anything was counted."""
    if not _tally.rows:
        return
    terminalreporter.section("attacks", bold=True)
    lines = [_HEADINGS, *((kind, f"{row.tried:,}", row.outcome()) for kind, row in sorted(_tally.rows.items()))]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for kind, number, outcome in lines:
        row = _tally.rows.get(kind)
        bad = row is not None and (row.failed or row.through.total() > 0)
        terminalreporter.line(f"{kind:<{widths[0]}}  {number:>{widths[1]}} | {outcome}", red=bool(bad))


def _kind_of(item: pytest.Item) -> str | None:
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return None
    if len(marker.args) != 1 or not isinstance(marker.args[0], str):
        raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.{MARKER}('the kind of attack')")
    return marker.args[0]
