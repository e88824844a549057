"""Is a container started again when it has ended, and how long after? Its restart policy says so."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from codomyrmex_containerization.engines.embedded import objects
from codomyrmex_containerization.engines.embedded.state import Record

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 60.0
_PROGRAM = f"{__package__}.exits"
FORSAKEN = "its monitor has gone: the next server that opens the engine starts it again"


def command(folders: objects.Folders, engine: str, container_id: str) -> Sequence[str]:
    """Return the command that conmon is to run when the container has ended."""
    return (sys.executable, "-m", _PROGRAM, str(folders.data), str(folders.run), engine, container_id)


def is_to_run_again(record: Record, exit_code: int | None) -> bool:
    """Say whether a container's policy has it started again after it ended by itself."""
    policy = record.restart
    if record.stopped_by_hand or policy.name == "no":
        return False
    if policy.name == "on-failure":
        is_used_up = 0 < policy.maximum_retry_count <= record.restart_count
        return exit_code != 0 and not is_used_up
    return True


def why_ended(exit_code: int | None, *, is_forsaken: bool) -> str:
    """Return what there is to say of an end; nothing of an ordinary one."""
    if exit_code is None:
        return "its monitor ended with it: the exit code is not known"
    return FORSAKEN if is_forsaken else ""


def pause_seconds(record: Record) -> float:
    """Return how long to wait before the next start: twice as long each time."""
    doubled: float = _FIRST_PAUSE_SECONDS * 2 ** min(record.restart_count, 20)
    return min(doubled, _LONGEST_PAUSE_SECONDS)
