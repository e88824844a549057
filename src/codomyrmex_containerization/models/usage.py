"""How much CPU time, memory and how many tasks does a container use, counted since its start and between two looks?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a container has sent, received, read and written since its start; None is not known.

    Of networks that is all but loopback, and nothing in the host's own; of block devices what went past the page cache.
    """

    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    block_read_bytes: int | None = None
    block_written_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """One look at a container: totals and levels at one moment.

    `memory_bytes` is without the page cache that the kernel could drop, as `docker stats` shows it.
    `memory_limit_bytes` is the container's own limit, or the host's memory where it has none (or a higher one),
    again as `docker stats` shows it; None only where the host's memory is unknown too.
    `at_seconds` is a monotonic clock's; `pids` counts tasks: processes and their threads.
    """

    at_seconds: float
    cpu_seconds: float
    memory_bytes: int
    memory_limit_bytes: int | None
    pids: int
    traffic: Traffic = Traffic()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container uses now; `cpu_percent` 100 is one full CPU, None is not known (yet)."""

    cpu_percent: float | None
    memory_bytes: int
    memory_limit_bytes: int | None
    pids: int
    traffic: Traffic = Traffic()


def usage_between(earlier: Counters | None, later: Counters) -> Usage:
    """Return the usage at `later`, its CPU share averaged over the time since `earlier`.

    The share is None without an earlier look, without time between the two, and when the CPU time went back,
    which means that the container was restarted in between.
    """
    share = _cpu_percent(earlier, later)
    return Usage(share, later.memory_bytes, later.memory_limit_bytes, later.pids, later.traffic)


def _cpu_percent(earlier: Counters | None, later: Counters) -> float | None:
    if earlier is None:
        return None
    wall_seconds = later.at_seconds - earlier.at_seconds
    cpu_seconds = later.cpu_seconds - earlier.cpu_seconds
    if wall_seconds <= 0 or cpu_seconds < 0:
        return None
    return 100 * cpu_seconds / wall_seconds
