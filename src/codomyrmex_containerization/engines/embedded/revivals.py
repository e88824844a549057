"""Which containers would run if a reboot, or whoever killed their monitors, had not come between, and who starts them again?

The next server that opens the data folder does, beside its own work. What is decided is what Docker's daemon decides when it starts:
`always` and `unless-stopped` go on, and a reboot makes void that an `always` container was stopped by hand. `on-failure` goes on only where
it is known that the program failed and nobody was left to start it again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import objects, restarts
from codomyrmex_containerization.engines.embedded.state import Containers, Record

_PROGRAM = f"{__package__}.revive"
_PASSED_ON = ("PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "XDG_RUNTIME_DIR")


def is_owed(record: Record) -> bool:
    """Say whether a container should run by its policy, and nobody is left who would start it."""
    if record.status != "exited" or record.started_at is None:
        return False
    if record.restart.name == "on-failure" and (record.exit_code is None or record.error != restarts.FORSAKEN):
        return False
    return restarts.is_to_run_again(record, record.exit_code)


def forget_stops(containers: Containers) -> None:
    """Make void, after a reboot, that containers whose policy is `always` were stopped by hand."""
    for id in containers.ids():
        with suppress(errors.ContainerizationError):
            if not _is_void(containers.read(id)):
                continue
            with containers.hold_if_free(id) as is_free:
                now = containers.read(id)
                if is_free and _is_void(now):
                    containers.write(replace(now, stopped_by_hand=False))


def _is_void(record: Record) -> bool:
    return record.stopped_by_hand and record.restart.name == "always"


def begin(containers: Containers, folders: objects.Folders, engine: str) -> Callable[[], int | None] | None:
    """Have what is owed started by a process of its own, which is waited for by nobody; None when nothing is owed.

    What is returned says how that process ended, None while it runs.
    """
    if not any(is_owed(one) for one in containers.all()):
        return None
    # A process: a short command has answered, and ends, before they run.
    words = (sys.executable, "-m", _PROGRAM, str(folders.data), str(folders.run), engine)
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    with suppress(errors.ContainerizationError):  # one that cannot be started now is the next server's business
        return process.start_detached(words, env=environment, cwd=folders.run, log=folders.run / "revivals.log")
    return None


def start(containers: Containers, begin_one: Callable[[Record], object]) -> int:
    """Start what is owed, one after the other; return how many could not be. `begin_one` starts a container that is held."""
    failed, held = 0, []
    for id in [one.id for one in containers.all() if is_owed(one)]:
        with suppress(errors.NotFound), containers.hold_if_free(id) as is_free:  # not found: removed meanwhile
            if is_free:
                failed += not _started(containers.read(id), begin_one)
            else:
                held.append(id)
    for id in held:  # whoever held it did something else, perhaps: those nobody holds did not wait for that
        with suppress(errors.NotFound), containers.hold(id) as record:
            failed += not _started(record, begin_one)
    return failed


def _started(record: Record, begin_one: Callable[[Record], object]) -> bool:
    if not is_owed(record):  # under its lock, and looked at again: another server was quicker
        return True
    try:
        begin_one(replace(record, restart_count=record.restart_count + 1))
    except errors.ContainerizationError:
        return False  # its record says why
    return True
