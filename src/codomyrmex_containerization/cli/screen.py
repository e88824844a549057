"""How does an answer look? Data on stdout and only there, everything that is said about it on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from codomyrmex_containerization.cli import options

_RED, _YELLOW, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"
# What JSON leaves as it is and a terminal obeys, or an editor takes for a line's end.
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
# Where a terminal is narrow, longer cells give way.
_NEVER_FOLDED = 12
_CELL_STYLES = {
    "running": "green",
    "available": "green",
    "not available": "red",
    "dead": "red",
    "paused": "yellow",
    "restarting": "yellow",
    "exited": "dim",
    "not set up": "dim",
    "default": "dim",
    "destroys": "red",
    "writes": "yellow",
    "reads": "green",
}


class Screen:
    """Where a command prints. What it is given is redacted already; control characters are taken out here once more."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.out, self.err = sys.stdout, sys.stderr

    def line(self, text: str) -> None:
        """Print a line of data."""
        self.out.write(_shown(text) + "\n")

    def raw(self, stream: str, text: str) -> None:
        """Print what a container said, to the same stream of ours, without adding anything."""
        wanted, other = (self.err, self.out) if stream == "stderr" else (self.out, self.err)
        if text:
            other.flush()
            wanted.write(_shown(text))

    def document(self, content: object) -> None:
        """Print one JSON document."""
        text = json.dumps(content, ensure_ascii=not _is_unicode(self.out), indent=2)
        self.out.write(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table: drawn on a terminal, else plain columns parted by two blanks; empty columns are left out."""
        used = [index for index in range(len(header)) if any(row[index] for row in rows)]
        cells = [[_one_line(row[index]) for index in used] for row in rows]
        names = [header[index] for index in used]
        if not cells:
            return
        if options.is_terminal(self.out):
            self._draw(names, cells)
            return
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        for row in (names, *cells):
            self.out.write("  ".join(map(str.ljust, row, widths)).rstrip() + "\n")

    def note(self, text: str) -> None:
        """Say something to the person on stderr."""
        self.out.flush()
        self.err.write(_shown(text) + "\n")

    def warning(self, text: str) -> None:
        """Say that something is not as it should be."""
        self._marked("warning", text, _YELLOW)

    def failure(self, code: str, text: str) -> None:
        """Say what failed."""
        self._marked(code, text, _RED)

    def flush(self) -> None:
        """Hand everything over to the system; raises BrokenPipeError when nobody reads it."""
        self.out.flush()
        self.err.flush()

    def _marked(self, mark: str, text: str, colour: str) -> None:
        self.out.flush()
        if options.is_terminal(self.err) and colours():
            mark = f"{colour}{mark}{_PLAIN}"
        self.err.write(f"{mark}: {_shown(text)}\n")

    def _draw(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(
            file=self.out, highlight=False, markup=False, emoji=False, color_system="auto" if colours() else None
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for index, name in enumerate(header):
            is_short = max(len(row[index]) for row in rows) <= _NEVER_FOLDED
            table.add_column(Text(name), overflow="fold", no_wrap=index == 0 or is_short)
        for row in rows:
            table.add_row(*(Text(cell, style=_CELL_STYLES.get(cell.partition(" (")[0], "")) for cell in row))
        console.print(table)


def colours() -> bool:
    """Say whether the person wants colours (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"


def error_document(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON document of an error: its message stands under `message` and `error`."""
    message = data.get("message", "")
    head = {"status": "error", "code": data["code"], "message": message, "error": message, "hint": data.get("hint", "")}
    return head | {name: value for name, value in data.items() if name not in head}


def with_next_step(message: str, hint: str) -> str:
    """Join what failed and what to do."""
    return f"{message}\nNext: {hint}" if hint else message


def prepare() -> None:
    """Let neither a character that a stream cannot write nor a closed stream end the program."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open for good
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open for good
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _shown(text: str) -> str:
    from codomyrmex_containerization import redact

    return redact.strip_controls(text)


def _one_line(text: str) -> str:
    return " ".join(_shown(text).split())


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")
