"""How is a process of a local container ended from outside, with everything that it started?

What a command started is found by its parents and by its session: a child that was left to the container's first process still has the
session of the command. Only one that opened a session of its own and whose parent has ended (a daemon that detached itself on purpose)
cannot be told from the container's other processes and goes on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

_STOP_SECONDS = 2.0
_GONE_SECONDS = 2.0
_PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    session: int
    is_dead: bool


def end_tree(pid: int, container_id: str, *, namespace: int | None = None, proc: str = "/proc") -> bool:
    """Kill a process on this host and what it started; True when all of it is gone.

    False when it is not there, not ours to kill, or multiplies faster than it is ended. The processes count only when their
    cgroup names the container, or they are in its namespace of processes, so that a number that was used again is never hit.
    """
    try:
        stopped = _stop_tree(pid, container_id, namespace, proc)
        for one in stopped:
            _send(one, signal.SIGKILL)
    except PermissionError:
        return False
    until = time.monotonic() + _GONE_SECONDS
    while stopped & _alive(proc) or find_tree(pid, container_id, namespace=namespace, proc=proc):
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE_SECONDS)
    return bool(stopped)


def _stop_tree(pid: int, container_id: str, namespace: int | None, proc: str) -> set[int]:
    # What is stopped starts no further processes: it is looked again until no new ones appear.
    stopped: set[int] = set()
    until = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < until:
        tree = find_tree(pid, container_id, namespace=namespace, proc=proc)
        fresh = [one for one in tree if one not in stopped]
        if not fresh:
            break
        for one in fresh:
            _send(one, signal.SIGSTOP)
        stopped.update(fresh)
    return stopped


def find_tree(pid: int, container_id: str, *, namespace: int | None = None, proc: str = "/proc") -> list[int]:
    """Return a process of a container, its descendants and those of its session that are alive."""
    if pid <= 1:
        return []
    children: dict[int, list[_Process]] = {}
    waiting = []
    for process in _processes(proc):
        children.setdefault(process.parent, []).append(process)
        if pid in (process.pid, process.session):
            waiting.append(process)
    found: dict[int, None] = {}
    while waiting:
        one = waiting.pop()
        if one.pid in found or not _belongs(one.pid, container_id, namespace, proc):
            continue
        found[one.pid] = None
        waiting += children.get(one.pid, ())
    dead = {one.pid for ones in children.values() for one in ones if one.is_dead}
    return [one for one in found if one not in dead]


def members(container_id: str, *, namespace: int | None = None, proc: str = "/proc") -> list[int]:
    """Return the processes on this host that are a container's: by their control group, or their namespace of processes."""
    return [one.pid for one in _processes(proc) if _belongs(one.pid, container_id, namespace, proc)]


def inner_pids(pids: Sequence[int], *, proc: str = "/proc") -> list[int]:
    """Return the numbers that processes have in the innermost namespace, as far as they are to be found out."""
    found = []
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as file:
                numbers = next((line.split() for line in file if line.startswith("NSpid:")), ())
            # Only one number: it shares this host's namespace, where it is not for a program in the container to end.
            if len(numbers) > 2:
                found.append(int(numbers[-1]))
    return found


def _alive(proc: str) -> set[int]:
    return {process.pid for process in _processes(proc) if not process.is_dead}


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _belongs(pid: int, container_id: str, namespace: int | None, proc: str) -> bool:
    try:
        if namespace is not None and os.stat(f"{proc}/{pid}/ns/pid").st_ino == namespace:
            return True
        with open(f"{proc}/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return container_id in file.read()
    except OSError:
        return False


def _processes(proc: str) -> Iterator[_Process]:
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            with open(f"{proc}/{name}/stat", encoding="utf-8", errors="replace") as file:
                # The name in parentheses may hold anything, parentheses too: the fields follow the last one.
                fields = file.read().rpartition(")")[2].split()
            yield _Process(int(name), int(fields[1]), int(fields[3]), fields[0] in "ZX")
