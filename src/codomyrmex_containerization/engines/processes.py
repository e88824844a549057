"""How is a process of a local container ended from outside, with everything that it started?"""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def end_tree(pid: int, container_id: str, *, proc: str = "/proc") -> bool:
    """Kill a process on this host and its descendants; False when it is not there, not ours to kill or not in the container.

    The process counts only when its cgroup names the container, so that a number that was used again is never hit.
    """
    if pid <= 1 or not _belongs(pid, container_id, proc):
        return False
    killed = False
    # Parents first stop, so that none starts new children while its children are looked for.
    tree = _descendants(pid, proc)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for one in tree:
            with suppress(ProcessLookupError):
                try:
                    os.kill(one, number)
                except PermissionError:
                    return False
                killed = True
        if number is signal.SIGSTOP:
            tree = _descendants(pid, proc)
    return killed


def inner_pid(pid: int, container_id: str, *, proc: str = "/proc") -> int | None:
    """Return the number that a process of a container has inside it; None when it is not to be found out."""
    if not _belongs(pid, container_id, proc):
        return None
    try:
        with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError):
        return None
    return None


def _belongs(pid: int, container_id: str, proc: str) -> bool:
    try:
        with open(f"{proc}/{pid}/cgroup", encoding="utf-8") as file:
            return container_id in file.read()
    except OSError:
        return False


def _descendants(pid: int, proc: str) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir(proc):
        if name.isdigit():
            children.setdefault(_parent(int(name), proc), []).append(int(name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += children.get(one, ())
    return found


def _parent(pid: int, proc: str) -> int:
    try:
        with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name in parentheses may hold anything, parentheses too: the fields follow the last one.
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return -1
