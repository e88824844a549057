"""Where are a container's control groups? On cgroup version 1, 2 and the hybrid of them, from this process's point of view."""

from __future__ import annotations

import errno
import functools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codomyrmex_containerization import errors

Layout = Literal["v1", "v2", "hybrid", "none"]

PARENT = "codomyrmex"
CONTROLLERS = ("memory", "cpu", "pids")

_NAME = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_.-]{0,63}")
_ID = re.compile(r"[0-9a-f]{12,64}")
_DEPTH = 16
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted tree of control groups; `root` is the part of the tree that the mount shows."""

    mount: Path
    root: str
    is_v2: bool
    controllers: frozenset[str]

    def directory(self, path: str) -> Path | None:
        """Return where a group is, None when the mount does not show it."""
        if ".." in path.split("/") or not f"{path}/".startswith(f"{self.root.rstrip('/')}/"):
            return None
        return self.mount / path.removeprefix(self.root.rstrip("/")).lstrip("/")


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of one group in one tree."""

    directory: Path
    is_v2: bool


def layout(*, proc: Path = Path("/proc")) -> Layout:
    """Return which versions of control groups are mounted here."""
    found = hierarchies(proc)
    v1 = any(not one.is_v2 and one.controllers & set(CONTROLLERS) for one in found)
    v2 = any(one.is_v2 for one in found)
    if v1:
        return "hybrid" if v2 else "v1"
    return "v2" if v2 else "none"


@functools.cache
def hierarchies(proc: Path = Path("/proc")) -> tuple[Hierarchy, ...]:
    """Return the mounted trees, of several mounts of the same the first one; what a mounted tree can do changes only with a reboot."""
    found: dict[tuple[bool, frozenset[str]], Hierarchy] = {}
    try:
        with open(proc / "self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                kind, _, options = after.split(" ", 2) if after.count(" ") >= 2 else ("", "", "")
                if kind in ("cgroup", "cgroup2"):
                    root, mount = before.split(" ")[3:5]
                    one = _hierarchy(Path(mount), root, options.strip(), is_v2=kind == "cgroup2")
                    found.setdefault((one.is_v2, frozenset() if one.is_v2 else one.controllers), one)
    except (OSError, ValueError):
        return ()
    return tuple(found.values())


def _hierarchy(mount: Path, root: str, options: str, *, is_v2: bool) -> Hierarchy:
    names = _read(mount / "cgroup.controllers").split() if is_v2 else set(options.split(",")) - {"rw", "ro"}
    return Hierarchy(mount, root, is_v2, frozenset(names))


def of_process(pid: int, *, proc: Path = Path("/proc")) -> dict[str, Place]:
    """Return a process's groups by controller; empty for a process that is not here."""
    places: dict[str, Place] = {}
    for hierarchy, path in _own(proc, str(pid)):
        directory = hierarchy.directory(path)
        if directory is not None:
            places |= dict.fromkeys(hierarchy.controllers, Place(directory, hierarchy.is_v2))
    return places


def of_container(container_id: str, *, parent: str = PARENT) -> list[Place]:
    """Return the groups of a container that are there now."""
    path = cgroup_path(container_id, parent=parent)
    places = [(one.directory(path), one.is_v2) for one in hierarchies()] if path else []
    return [Place(directory, is_v2) for directory, is_v2 in places if directory is not None and directory.is_dir()]


def cgroup_path(container_id: str, *, parent: str = PARENT, proc: Path = Path("/proc")) -> str:
    """Return what to give as `linux.cgroupsPath`; empty where this process may not make any group.

    Below the top where that may be written to, else below the highest group above our own that may.
    """
    if not _ID.fullmatch(container_id) or not _NAME.fullmatch(parent):
        raise errors.InvalidArgument(f"{container_id[:80]!r} is no container's id.", hint="give the full id")
    base = _base(proc)
    return "" if base is None else f"{base.rstrip('/')}/{parent}/{container_id}"


def _base(proc: Path) -> str | None:
    """Return the highest group in which groups may be made, the same in all trees that hold limits; None where there is none."""
    own = {one: path for one, path in _own(proc, "self") if one.controllers & set(CONTROLLERS)}
    if not own:
        return None
    candidates = ["/"]
    for name in next(iter(own.values())).strip("/").split("/"):
        candidates.append(f"{candidates[-1].rstrip('/')}/{name}")
    return next((path for path in candidates if all(_may_make_in(one.directory(path)) for one in own)), None)


def _may_make_in(directory: Path | None) -> bool:
    return (
        directory is not None
        and os.access(directory, os.W_OK | os.X_OK)
        and os.access(directory / "cgroup.procs", os.W_OK)
    )


def remove_cgroups(container_id: str, *, parent: str = PARENT) -> tuple[Path, ...]:
    """Take away the groups of a container whose runtime was killed; returns those that stay because processes are in them."""
    return tuple(
        place.directory
        for place in of_container(container_id, parent=parent)
        if not _remove_tree(place.directory, _DEPTH)
    )


def remove_parent(parent: str) -> None:
    """Take away the group above the containers' own. Only when nobody makes any in it: a runtime that just does so would fail."""
    if not _NAME.fullmatch(parent):
        return
    base = _base(Path("/proc"))
    for one in hierarchies() if base is not None else ():
        directory = one.directory(f"{(base or '').rstrip('/')}/{parent}")
        if directory is not None and directory.is_dir():
            _remove(directory)


def limits_swap() -> bool:
    """Whether the kernel counts swapped memory, so that it can be limited."""
    for one in hierarchies():
        if "memory" in one.controllers:
            return bool(one.is_v2 and _any_has(one.mount, "memory.swap.max")) or (
                not one.is_v2 and (one.mount / "memory.memsw.limit_in_bytes").exists()
            )
    return False


def _any_has(mount: Path, name: str) -> bool:
    # The top of version 2 has no such files.
    with os.scandir(mount) as entries:
        folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any(os.path.exists(f"{folder}/{name}") for folder in folders) or (mount / name).exists()


def _own(proc: Path, pid: str) -> Iterator[tuple[Hierarchy, str]]:
    """Yield the trees with the path of a process's group in each (lines `number:controllers:path`)."""
    for line in _read(proc / pid / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = frozenset(controllers.split(",")) if controllers else frozenset()
        for one in hierarchies(proc):
            if one.is_v2 != bool(names) and (one.is_v2 or names <= one.controllers):
                yield one, path


def _remove_tree(directory: Path, depth: int) -> bool:
    try:
        with os.scandir(directory) as entries:
            below = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return not directory.exists()
    emptied = [_remove_tree(one, depth - 1) for one in below] if depth else [not below]
    return all(emptied) and _remove(directory)


def _remove(directory: Path) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            # What has just ended still counts for a moment.
            if error.errno != errno.EBUSY or _read(directory / "cgroup.procs").strip():
                return False
            time.sleep(_PAUSE_SECONDS)
        else:
            return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
