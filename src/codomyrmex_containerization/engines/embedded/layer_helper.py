"""Which program unpacks layers beside the server? This one: it loads little, and ends when nobody listens to it any more.

`python -m codomyrmex_containerization.engines.embedded.layer_helper`: a line of JSON that says for whom, then one for each layer. For each
it prints lines `+BYTES` while it reads, and a line of JSON with what it found or what went wrong.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import layer_intake, layer_tar, layers

_PIECE_BYTES = 1024 * 1024


class _Part:
    """A part of an open file that is this process's by inheritance."""

    def __init__(self, fd: int, place: int, size: int) -> None:
        self._fd, self._place, self._left = fd, place, size

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end; tells how many."""
        try:
            piece = os.pread(self._fd, min(count, self._left, _PIECE_BYTES), self._place) if self._left else b""
        except OSError as error:
            raise errors.EngineUnavailable(
                f"Reading the archive failed: {error.strerror}.", hint="check the disk that it is on"
            ) from error
        if self._left and not piece:
            raise layer_tar.damaged("it ends inside of a file")
        self._place += len(piece)
        self._left -= len(piece)
        _say(f"+{len(piece)}")
        return piece


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _done(job: dict[str, Any]) -> dict[str, Any]:
    try:
        found = layer_intake.prepare(
            _Part(job["fd"], job["place"], job["size"]),
            Path(job["stage"]),
            prefix=job["prefix"],
            bounds=layers.Bounds(**job["bounds"]),
            unpacks=job["unpacks"],
        )
    except errors.ContainerizationError as error:
        return {
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "details": error.details,
        }
    return asdict(found)


def main() -> int:
    """Unpack what is asked for until nothing more is."""
    begin = json.loads(sys.stdin.readline())
    # While it works nobody may throw away what nobody seems to need, also when the server is killed.
    held = os.open(begin["lock"], os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_SH)
    for line in sys.stdin:
        if os.getppid() != begin["server"]:
            return 1
        _say(json.dumps(_done(json.loads(line))))
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except (BrokenPipeError, KeyboardInterrupt):
        status = 1
        os.close(1)
        os.open(os.devnull, os.O_WRONLY)  # the interpreter would complain when it flushes
    sys.exit(status)
