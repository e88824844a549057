"""Which processes of this host are a container's, whose are they, and what do they do?"""

from __future__ import annotations

import os
from contextlib import suppress

from codomyrmex_containerization.engines import process_counters, processes
from codomyrmex_containerization.models.inside import ProcessRow

_MOST_COMMAND_BYTES = 64 * 1024


def rows(first: int, container_id: str, *, first_user: int = 0, proc: str = "/proc") -> list[ProcessRow]:
    """Return a container's processes by their numbers on this host, its first one among them; those that end meanwhile are absent.

    `first_user` is the host's number of the container's root.
    """
    namespace = process_counters.namespace(first, proc=proc)
    members = processes.members(container_id, namespace=namespace, proc=proc)
    found = []
    for pid in sorted({first, *members}):
        with suppress(OSError, ValueError, IndexError):
            found.append(_row(pid, first_user, proc))
    return found


def _row(pid: int, first_user: int, proc: str) -> ProcessRow:
    with open(f"{proc}/{pid}/stat", "rb") as file:
        text = file.read()
    # The name in parentheses may hold anything, parentheses too: the fields follow the last one.
    fields = text.rpartition(b")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    name = text[text.index(b"(") + 1 : text.rindex(b")")]
    with open(f"{proc}/{pid}/cmdline", "rb") as file:
        words = file.read(_MOST_COMMAND_BYTES).rstrip(b"\0").replace(b"\0", b" ")
    # A dead one that nobody waited for, and the kernel's own, have no words.
    command = words.decode("utf-8", "replace") if words else f"[{name.decode('utf-8', 'replace')}]"
    user = os.stat(f"{proc}/{pid}").st_uid
    with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as lines:
        user = next((int(line.split()[2]) for line in lines if line.startswith("Uid:")), user)
    inside = user - first_user if user >= first_user else user
    return ProcessRow(pid, "root" if inside == 0 else str(inside), command, ticks / os.sysconf("SC_CLK_TCK"))
