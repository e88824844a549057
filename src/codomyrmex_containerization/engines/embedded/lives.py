"""Which servers work with a folder, and has one that was killed left a child that is not a program yet?

A server keeps a file locked by a mapping of it into memory. From its fork on a child has that mapping too, whatever descriptors it closes,
and it loses it by becoming a program: so long the lock lasts, and nobody has to look for such children.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import mmap
import os
import re
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization.engines.embedded import state

VARIABLE = "_CODOMYRMEX_STARTED_BY"
SETTLED_SECONDS = 5.0

_FOLDER = "servers"
_NAME = re.compile(r"(([0-9]{1,10})-([0-9]{1,20}))-[0-9]{1,10}\Z")
_PAUSE_SECONDS = 0.002
_numbers = itertools.count()


class Kept:
    """A file that is locked while this process lives, and any child of it that is not a program yet. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path, self._pid = path, os.getpid()
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(made, 1)
        finally:
            os.close(made)
        # Not open for writing any more: that would keep the file system from being made read-only.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._mapping = mmap.mmap(descriptor, 1, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        _kept.add(self)

    def close(self) -> None:
        """Let go of it, and remove it unless a child may still have it."""
        self._mapping.close()
        if os.getpid() == self._pid and not _has_children():
            with suppress(OSError):
                self._path.unlink()

    def drop(self) -> None:
        """Let go of it in a child that is to be none of those that are waited for."""
        self._mapping.close()


_kept: weakref.WeakSet[Kept] = weakref.WeakSet()


def _drop_all() -> None:
    for one in list(_kept):
        one.drop()


# One that is forked to go on as it is. Children that become programs are made otherwise, and keep the mapping until then.
os.register_at_fork(after_in_child=_drop_all)


@dataclass(frozen=True, slots=True)
class Gone:
    """A server that was killed: `name` is what the programs that it has started are marked with."""

    name: str
    path: Path


def show(run: Path, user: object) -> None:
    """Have this process known as a server of a folder while `user` is there.

    Where there is no room for that, what a kill leaves behind is found by its words alone: removing containers is what makes room.
    """
    path = run / _FOLDER / f"{own_name()}-{next(_numbers)}"
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        weakref.finalize(user, Kept(path).close)


def mark() -> dict[str, str]:
    """Return what to put into the environment of a program that is to end with this process."""
    return {VARIABLE: own_name()}


def own_name() -> str:
    """Return what tells this process from all others until the next boot."""
    return _name_of(os.getpid())


@functools.cache
def _name_of(pid: int) -> str:
    return f"{pid}-{state.process_start(pid) or 0}"


def gone(run: Path) -> list[Gone]:
    """Return the servers of a folder that were killed, until they are forgotten; quick."""
    try:
        names = os.listdir(run / _FOLDER)
    except OSError:
        return []
    parts = [match for match in map(_NAME.match, names) if match]
    return [Gone(one[1], run / _FOLDER / one[0]) for one in parts if state.process_start(int(one[2])) != int(one[3])]


def settle(those: Sequence[Gone]) -> bool:
    """Wait until no child of killed servers is about to become a program; False when that takes too long."""
    free = [is_free(one.path) for one in those]
    return all(free)


def forget(those: Sequence[Gone]) -> None:
    """Forget killed servers: nothing is left of them."""
    for one in those:
        with suppress(OSError):
            one.path.unlink()


def is_free(path: Path, *, seconds: float = SETTLED_SECONDS) -> bool:
    """Wait until nobody keeps a file any more; False when that takes too long."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    until = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(_PAUSE_SECONDS)
            else:
                return True
    finally:
        os.close(descriptor)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
