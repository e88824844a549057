"""What was done, when, by whom it was allowed, and how did it end? One JSON line a call, mode 0600, rotated by size."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from codomyrmex_containerization.models.settings import AuditSettings

_LONGEST_ARGUMENTS = 4_000


class Audit:
    """The audit file of one process; several processes may append to it at once."""

    def __init__(self, folder: Path, settings: AuditSettings) -> None:
        self._path = folder / "audit.jsonl"
        self._settings = settings
        self._writing = threading.Lock()
        self._file = -1
        self._size = 0

    def write(self, *, tool: str, arguments: object, decision: str, outcome: str, seconds: float, face: str) -> None:
        """Append a line. `arguments` are redacted already. A full disk does not fail the call."""
        if not self._settings.enabled:
            return
        shown = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False, default=str)
        entry: Mapping[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "tool": tool,
            "face": face,
            "arguments": arguments if len(shown) <= _LONGEST_ARGUMENTS else shown[:_LONGEST_ARGUMENTS] + "...",
            "decision": decision,
            "outcome": outcome,
            "seconds": round(seconds, 4),
        }
        line = (
            json.dumps(entry, separators=(",", ":"), ensure_ascii=False, default=str).encode(
                "utf-8", "backslashreplace"
            )
            + b"\n"
        )
        with self._writing, suppress(OSError):
            self._open(len(line))
            os.write(self._file, line)
            self._size += len(line)

    def close(self) -> None:
        """Close the file; may be called twice."""
        with self._writing:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def let_go(self) -> None:
        """Close a forked process's copy of the file, without the lock, which a thread that was not forked may hold."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self, more: int) -> None:
        if self._file >= 0 and self._size + more <= self._settings.max_bytes:
            return
        if self._file < 0:
            self._file = os.open(
                self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            self._size = os.fstat(self._file).st_size
        if self._size + more > self._settings.max_bytes:
            os.close(self._file)
            self._file = -1
            self._rotate()
            self._file = os.open(
                self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            self._size = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        oldest = self._settings.files
        for number in range(oldest, 0, -1):
            source = self._path if number == 1 else self._path.with_name(f"audit.{number - 1}.jsonl")
            with suppress(OSError):
                source.replace(self._path.with_name(f"audit.{number}.jsonl"))
