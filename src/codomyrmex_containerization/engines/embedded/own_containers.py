"""What does the runtime of our own know of the containers it has made? A folder for each, with what later commands need."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module above it takes as long to import as all of this
import os
import time

from codomyrmex_containerization.engines.embedded import own_cgroups
from codomyrmex_containerization.engines.embedded.own_cgroups import Group
from codomyrmex_containerization.engines.embedded.own_words import Json, Refused, read, write, written

_STATE, BEGIN, ANSWER = "own.json", "exec.fifo", "answer.fifo"
_ROUNDS, _PAUSE_SECONDS = 2000, 0.005
_NAME = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-+")
_ENDED = "ZX"


def folder_of(root: str, name: str) -> str:
    """Return where a container's folder is. Raises Refused."""
    if not name or not set(name) <= _NAME or name in (".", ".."):
        raise Refused(f"{name!r} is no name of a container")
    return f"{root}/{name}"


def start_of(pid: int) -> str:
    """Return when a process began, which with its number says who it is; empty when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b") ")[2].split()
    except OSError:
        return ""
    return "" if words[0].decode() in _ENDED else words[19].decode()


class Container:
    """A container that was made."""

    def __init__(
        self, name: str, folder: str, pid: int, start: str, bundle: str, groups: list[Group], seccomp: Json | None
    ) -> None:
        self.name = name
        self.folder = folder
        self.pid = pid
        self.start = start
        self.bundle = bundle
        self.groups = groups
        self.seccomp = seccomp

    @classmethod
    def find(cls, root: str, name: str) -> Container:
        """Read what was written down. Raises Refused (there is none)."""
        folder = folder_of(root, name)
        try:
            found = read(f"{folder}/{_STATE}")
        except FileNotFoundError as error:
            raise Refused(f"container {name} does not exist") from error
        groups = [Group(one[0], one[1], tuple(one[2])) for one in found["groups"]]
        return cls(name, folder, found["pid"], found["start"], found["bundle"], groups, found["seccomp"])

    def keep(self) -> None:
        """Write it down. Raises OSError."""
        known = {"pid": self.pid, "start": self.start, "bundle": self.bundle, "seccomp": self.seccomp}
        write(
            f"{self.folder}/{_STATE}",
            written({**known, "groups": [[one.folder, one.is_v2, one.controllers] for one in self.groups]}),
        )

    @property
    def is_alive(self) -> bool:
        """Whether its first process runs."""
        return bool(self.start) and start_of(self.pid) == self.start

    @property
    def status(self) -> str:
        """How it stands."""
        if not self.is_alive:
            return "stopped"
        if own_cgroups.is_frozen(self.groups):
            return "paused"
        return "created" if os.path.exists(f"{self.folder}/{BEGIN}") else "running"

    def shown(self) -> str:
        """Return its state as the specification has it."""
        known = {"ociVersion": "1.0.2", "id": self.name, "pid": self.pid if self.is_alive else 0}
        return written({**known, "status": self.status, "bundle": self.bundle})

    def signal(self, number: int) -> None:
        """Send its first process a signal, and no other that has its number now. Raises Refused, OSError."""
        try:
            opened = os.pidfd_open(self.pid)
        except ProcessLookupError as error:
            raise Refused("the container is not running") from error
        try:
            if not self.is_alive:
                raise Refused("the container is not running")
            _signal.pidfd_send_signal(opened, number)
        finally:
            os.close(opened)

    def end(self) -> None:
        """Kill all of it, and wait until it has gone. Raises Refused."""
        if own_cgroups.is_frozen(self.groups):
            own_cgroups.freeze(self.groups, frozen=False)
        if self.is_alive:
            try:
                self.signal(_signal.SIGKILL)
            except (Refused, ProcessLookupError):
                pass  # it has ended meanwhile
        own_cgroups.kill(self.groups)
        for _ in range(_ROUNDS):
            if not self.is_alive:
                return
            time.sleep(_PAUSE_SECONDS)
        raise Refused("the container does not end")

    def forget(self) -> None:
        """Take away what is left of it."""
        own_cgroups.remove(self.groups)
        for name in os.listdir(self.folder):
            os.unlink(f"{self.folder}/{name}")
        os.rmdir(self.folder)
