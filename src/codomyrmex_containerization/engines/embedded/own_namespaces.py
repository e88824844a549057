"""Which namespaces does a container get from the runtime of our own, and who is who in its own users' one?"""

from __future__ import annotations

import os

from codomyrmex_containerization.engines.embedded import own_calls as calls
from codomyrmex_containerization.engines.embedded.own_words import Json, Refused, require_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLAGS = {
    "mount": calls.NEWNS, "cgroup": calls.NEWCGROUP, "uts": calls.NEWUTS, "ipc": calls.NEWIPC, "user": calls.NEWUSER,
    "pid": calls.NEWPID, "network": calls.NEWNET,
}  # fmt: skip
_FILES = {"mount": "mnt", "network": "net"}
# In which a process enters those of another: who it is comes first, what it sees last.
_PROGRAMS = ("/usr/local/bin", "/usr/bin", "/bin")
_ORDER = ("user", "cgroup", "ipc", "uts", "network", "pid", "mount")


class Namespaces:
    """Those that a container's configuration names."""

    def __init__(self, linux: Json) -> None:
        """Refuse what is not known. Raises Refused."""
        named = linux.get("namespaces") or []
        for one in named:
            require_known("a namespace", one, ("type", "path"))
        kinds = [one["type"] for one in named]
        require_known("namespaces", kinds, _FLAGS)
        if not {"pid", "mount"} <= set(kinds):
            raise Refused("this runtime makes no container without processes and mounts of its own")
        self.kinds = frozenset(kinds)
        self._joined = {one["type"]: one["path"] for one in named if one.get("path")}
        if set(self._joined) - {"network", "ipc", "uts"}:
            raise Refused("this runtime enters only networks, queues and names of others")
        self._mappings = {name: linux.get(f"{name}Mappings") or [] for name in ("uid", "gid")}
        if self.has_users != all(self._mappings.values()):
            raise Refused("users of its own and their numbers belong together")

    @property
    def has_users(self) -> bool:
        """Whether its users are not those here."""
        return "user" in self.kinds

    def join(self) -> None:
        """Enter those that are there. Raises OSError."""
        for kind, path in self._joined.items():
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            calls.enter(opened, _FLAGS[kind], path)
            os.close(opened)

    def make_rest(self) -> None:
        """Make those of it that are not there, but for users, and control groups that this process is not in yet. Raises OSError."""
        calls.unshare(sum(_FLAGS[one] for one in self.kinds - set(self._joined) - {"user", "cgroup"}))

    def map_users(self, pid: int) -> None:
        """Say who is who in the namespace that a process has just made. Raises OSError, Refused."""
        rows = {name: [_row(one) for one in found] for name, found in self._mappings.items()}
        if os.geteuid() != 0 and any(len(one) > 1 or one[0][2] > 1 for one in rows.values()):
            for name, found in rows.items():
                _map_by_program(f"new{name}map", pid, found)
            return
        if os.geteuid() != 0:
            _write(f"/proc/{pid}/setgroups", "deny")
        for name, found in rows.items():
            _write(f"/proc/{pid}/{name}_map", "".join(f"{a} {b} {c}\n" for a, b, c in found))


def _row(one: dict[str, Any]) -> tuple[int, int, int]:
    return int(one["containerID"]), int(one["hostID"]), int(one["size"])


def _map_by_program(name: str, pid: int, rows: list[tuple[int, int, int]]) -> None:
    program = next((one for one in (f"{folder}/{name}" for folder in _PROGRAMS) if os.access(one, os.X_OK)), None)
    if program is None:
        raise Refused(f"{name} is not installed")
    words = [program, str(pid), *(str(number) for row in rows for number in row)]
    status = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(program, words, dict(os.environ)), 0)[1])
    if status != 0:
        raise Refused(f"{name} ended with {status}")


def _write(path: str, text: str) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(opened, text.encode())
    finally:
        os.close(opened)


def opened_of(pid: int) -> list[tuple[int, int]]:
    """Open the namespaces of a process that are not this one's, in the order in which they are entered. Raises OSError."""
    found = []
    for kind in _ORDER:
        name = _FILES.get(kind, kind)
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
            found.append((os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), _FLAGS[kind]))
    return found
