"""What is left where a process was killed while it tried out a runtime? A container that waits to be started: it is ended."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from codomyrmex_containerization.engines.embedded import begun, groups, lives, state

_NAME = re.compile(r"try-([0-9]{1,10})-([0-9]{1,20})-([0-9a-f]{12,64})\Z")
_KEPT = "kept"


@contextmanager
def place(folder: Path, container: str) -> Iterator[Path]:
    """Give a folder for one try; it goes with the block, and with whoever comes next where this process does not get that far.

    Its name says whose it is and what the container is called, so that nothing has to be written down first. Raises OSError.
    """
    made = folder / f"try-{lives.own_name()}-{container}"
    made.mkdir(mode=0o700)
    try:
        kept = lives.Kept(made / _KEPT)
        try:
            yield made
        finally:
            kept.close()
    finally:
        shutil.rmtree(made, ignore_errors=True)


def parent_of(container: str) -> str:
    """Return the control group above a try's own: it can be removed without disturbing another try."""
    return f"{groups.PARENT}-{container}"


def sweep(folder: Path) -> None:
    """End what tries have left whose process is no more."""
    for left in folder.glob("try-*"):
        known = _NAME.match(left.name)
        if known is None or state.process_start(int(known[1])) == int(known[2]):
            continue
        if lives.is_free(left / _KEPT):
            _end(left, known[3])


def _end(left: Path, container: str) -> None:
    inside, name = os.fsencode(f"{left}/"), container.encode()

    def is_of_it(pid: int, words: Sequence[bytes]) -> bool:
        # The container's first process need not be told its name: it is mounted what lies in its folder.
        return any(inside in one for one in words) or name in _mounted(pid)

    begun.end_all(is_of_it, finishes=lambda _: False)
    parent = parent_of(container)
    begun.kill_group(container, parent=parent)
    groups.remove_cgroups(container, parent=parent)
    groups.remove_parent(parent)
    shutil.rmtree(left, ignore_errors=True)


def _mounted(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/mountinfo").read_bytes()
    except OSError:
        return b""
