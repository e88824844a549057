"""Which containers would run if a reboot, or whoever killed their monitors, had not come between, and who starts them again?

The next server that opens the data folder does, beside its own work. What is decided is what Docker's daemon decides when it starts:
`always` and `unless-stopped` go on, and a reboot makes void that an `always` container was stopped by hand. `on-failure` goes on only where
it is known that the program failed and nobody was left to start it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import restarts
from codomyrmex_containerization.engines.embedded.state import Containers, Record


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


def begin(containers: Containers, start: Callable[[Record], object]) -> threading.Thread | None:
    """Start what is owed, one after the other, in a thread that the process outlasts no sooner than it is done; None when nothing is.

    `start` starts a container that is held.
    """
    owed = [one.id for one in containers.all() if is_owed(one)]
    if not owed:
        return None
    # No daemon: a short command has answered, and ends when these run.
    worker = threading.Thread(target=lambda: _start(containers, owed, start), name="revivals")
    worker.start()
    return worker


def _start(containers: Containers, owed: list[str], start: Callable[[Record], object]) -> None:
    for id in owed:
        try:
            # Under its lock, and looked at again: another server may have been quicker, or is about to be.
            with containers.hold_if_free(id) as is_free:
                record = containers.read(id)
                if is_free and is_owed(record):
                    start(replace(record, restart_count=record.restart_count + 1))
        except errors.DeadlineExceeded:
            return  # the machine has no time now: the next server goes on
        except errors.ContainerizationError:
            continue  # its record says why it did not start, or it was removed meanwhile
