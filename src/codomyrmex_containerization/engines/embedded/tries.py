"""What is left where a process was killed while it tried out a runtime? A container that waits to be started: it is ended."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codomyrmex_containerization.engines.embedded import begun, groups, state

_NAME = "try-"
_LONGEST_SECONDS = 2.0


@contextmanager
def place(folder: Path) -> Iterator[Path]:
    """Give a folder for one try; it goes with the block, and with whoever comes next where this process does not get that far."""
    made = Path(tempfile.mkdtemp(dir=folder, prefix=_NAME))
    held = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(held)


def sweep(folder: Path) -> None:
    """End what tries have left whose process is no more."""
    for left in folder.glob(f"{_NAME}*"):
        with suppress(OSError):
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end(left)
            finally:
                os.close(held)


def _end(left: Path) -> None:
    found = [one for pid in _named(left) if (one := state.process(pid)) is not None]
    for one in found:
        begun.kill(one)
    for one in found:
        state.wait_for_end(one, seconds=_LONGEST_SECONDS)
    with suppress(FileNotFoundError):
        for container in os.listdir(left / "state"):
            parent = f"{groups.PARENT}-{container}"
            groups.remove_cgroups(container, parent=parent)
            groups.remove_parent(parent)
    shutil.rmtree(left, ignore_errors=True)


def _named(left: Path) -> Iterator[int]:
    """Find the programs that were told of a try's folder: nobody else knows its name."""
    inside = os.fsencode(f"{left}/")
    for one in os.listdir("/proc"):
        if one.isdigit():
            with suppress(OSError):
                if inside in Path(f"/proc/{one}/cmdline").read_bytes():
                    yield int(one)
