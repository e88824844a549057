"""How is progress shown? A bar on a terminal, else a line for each new step; always on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from codomyrmex_containerization.cli import options
from codomyrmex_containerization.cli.screen import Screen, colours

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LONGEST_LINE_CHARACTERS = 160


class Reporter(Protocol):
    """Takes in progress until it is closed."""

    async def report(self, done: float, total: float | None, message: str) -> None:
        """Take in how far the work is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def reporter(screen: Screen) -> Reporter:
    """Return what shows progress here."""
    return _Bar() if options.is_terminal(sys.stderr) and not screen.json else _Lines(screen)


class _Lines:
    """One line for each step, and one for each image that is pulled, however many layers it has."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._last = ""

    async def report(self, done: float, total: float | None, message: str) -> None:
        line = _one_line(message)
        subject = line.partition(": ")[0]
        if subject != self._last and not self._screen.json:
            self._last = subject
            self._screen.note(line)

    def close(self) -> None:
        """Nothing is left on the terminal."""


class _Bar:
    """One bar whose text is the step of now; it goes when the work is done."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    async def report(self, done: float, total: float | None, message: str) -> None:
        if self._progress is None:
            self._progress = _new_progress()
            self._task = self._progress.add_task("", total=None)
            self._progress.start()
        if self._task is not None:
            self._progress.update(self._task, description=_one_line(message), completed=done, total=total)

    def close(self) -> None:
        """Stop drawing and take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    return Progress(
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=Console(
            stderr=True, highlight=False, markup=False, emoji=False, color_system="auto" if colours() else None
        ),
        transient=True,
    )


def _one_line(message: str) -> str:
    from codomyrmex_containerization import redact

    line = " ".join(redact.strip_controls(message).split())
    return line if len(line) <= _LONGEST_LINE_CHARACTERS else line[: _LONGEST_LINE_CHARACTERS - 3] + "..."
