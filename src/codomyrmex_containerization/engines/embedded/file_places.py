"""Where does a path in a container lead, with its mounts, while its own processes may swap links and folders?

A path is gone along part by part, by folders that are held open, and links are followed as a process in the container would follow
them. What was reached is held open too: whoever looks, reads or changes then means that very thing.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import posixpath
import stat
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from codomyrmex_containerization.engines.embedded import file_trees
from codomyrmex_containerization.models.container import MountPoint

_MOST_LINKS: Final = 40
_HELD: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# proc, sysfs, cgroup, cgroup2, devpts, debugfs, tracefs, securityfs, bpf, mqueue: reading and writing there does other things than
# reading and writing files.
_KERNELS_OWN: Final = frozenset(
    (0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x64626720, 0x74726163, 0x73636673, 0xCAFE4A11, 0x19800202)
)
_STATFS_BYTES: Final = 256
_USUAL_MODE: Final = 0o755


@dataclass(frozen=True, slots=True)
class Folder:
    """An open folder on the way; `read_only` where its mount is."""

    descriptor: int
    read_only: bool


@dataclass(slots=True)
class Place:
    """Where a path leads: `folders` from the root on, and what is there (`held`, `status`), None when nothing is yet.

    `path` is the way without links, `name` its last part, empty for the root; `read_only` says of what is there what its mount says.
    """

    folders: list[Folder]
    names: list[str]
    held: int | None = None
    status: os.stat_result | None = None
    read_only: bool = False

    @property
    def path(self) -> str:
        """The way without links."""
        return "/" + "/".join(self.names)

    @property
    def name(self) -> str:
        """The last part of the way."""
        return self.names[-1] if self.names else ""

    @property
    def parent(self) -> Folder:
        """The folder that holds the name; the root holds itself."""
        return self.folders[-1]

    @property
    def is_folder(self) -> bool:
        """Whether a folder is there."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        """Whether a symbolic link is there."""
        return self.status is not None and stat.S_ISLNK(self.status.st_mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self.folders:
            os.close(one.descriptor)
        self.folders.clear()
        if self.held is not None:
            os.close(self.held)
            self.held = None


class View:
    """A container's root with what is mounted in it. Raises OSError."""

    def __init__(self, root: Path, *, mounts: Sequence[MountPoint] = (), read_only: bool = False) -> None:
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._read_only = read_only
        self._mounts: dict[str, MountPoint] = {}
        try:
            for mount in sorted(mounts, key=lambda one: one.target.count("/")):
                if mount.type in ("volume", "bind"):
                    self._mounts[self._mount_place(mount)] = mount
        except BaseException:
            os.close(self._root)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)

    @property
    def mounts(self) -> Mapping[str, MountPoint]:
        """What is mounted where, by the way without links."""
        return self._mounts

    def find(self, path: str, *, follow: bool = True, make: bool = False) -> Place:
        """Go along a path; with `make` missing folders before its last part are made. Without `follow` a link at the end is found.

        Raises OSError: ENOENT only for what is missing before the last part.
        """
        place = Place([self._top()], [])
        try:
            self._go(place, deque(path.split("/")), path, follow=follow, make=make)
        except BaseException:
            with place:
                raise
        return place

    def open_child(self, folder: Folder, path: str, name: str) -> tuple[int, bool]:
        """Hold what has a name in an open folder, or is mounted there (`path` is the way without links); and whether it is read-only."""
        mount = self._mounts.get(path)
        if mount is not None:
            return os.open(mount.source, os.O_PATH | os.O_CLOEXEC), mount.read_only
        return os.open(name, _HELD, dir_fd=folder.descriptor), folder.read_only

    def _top(self) -> Folder:
        mount = self._mounts.get("/")
        if mount is not None:
            return Folder(os.open(mount.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), mount.read_only)
        return Folder(os.dup(self._root), self._read_only)

    def _go(self, place: Place, ahead: deque[str], path: str, *, follow: bool, make: bool) -> None:
        links = of_links = 0  # how many parts ahead are a link's text: nothing is made behind one that leads nowhere
        while ahead:
            name = ahead.popleft()
            is_links, of_links = of_links > 0, max(of_links - 1, 0)
            if name in ("", "."):
                continue
            if name == "..":
                self._up(place)
                continue
            is_last = all(one in ("", ".") for one in ahead)
            held, read_only = self._held(place, name, make=make and not is_last and not is_links)
            if held is None:
                if not is_last:
                    raise failure(errno.ENOENT, path)
                place.names.append(name)
                return
            status = os.fstat(held)
            if stat.S_ISLNK(status.st_mode) and (follow or bool(ahead)):
                try:
                    links += 1
                    if links > _MOST_LINKS:
                        raise failure(errno.ELOOP, path)
                    target = os.readlink("", dir_fd=held)
                finally:
                    os.close(held)
                while target.startswith("/") and place.names:
                    self._up(place)
                parts = target.split("/")
                ahead.extendleft(reversed(parts))
                of_links += len(parts)
                continue
            place.names.append(name)
            if not stat.S_ISDIR(status.st_mode):
                place.held, place.status, place.read_only = held, status, read_only
                if ahead:
                    raise failure(errno.ENOTDIR, path)
                return
            place.folders.append(Folder(held, read_only))
            if len(place.names) > file_trees.DEEPEST:
                raise failure(errno.ENAMETOOLONG, path)
        place.read_only = place.parent.read_only
        place.held = place.folders.pop().descriptor if place.names else os.dup(place.parent.descriptor)
        place.status = os.fstat(place.held)

    @staticmethod
    def _up(place: Place) -> None:
        if place.names:
            os.close(place.folders.pop().descriptor)
            place.names.pop()

    def _held(self, place: Place, name: str, *, make: bool) -> tuple[int | None, bool]:
        path = f"{place.path.rstrip('/')}/{name}"
        try:
            return self.open_child(place.parent, path, name)
        except FileNotFoundError:
            if path in self._mounts:
                raise
        if not make:
            return None, place.parent.read_only
        require_writable(place.parent, path)
        try:
            made = make_folder(place.parent.descriptor, name)
        except FileExistsError:  # a process of the container was faster
            return self.open_child(place.parent, path, name)
        os.chmod(own_path(made), _USUAL_MODE)
        return made, place.parent.read_only

    def _mount_place(self, mount: MountPoint) -> str:
        """Return where something is mounted; what it is mounted on is made when it is missing, as a runtime does."""
        try:
            with self.find(mount.target, make=True) as place:
                if place.status is None:
                    if os.path.isdir(mount.source):
                        os.mkdir(place.name, 0o755, dir_fd=place.parent.descriptor)
                    else:
                        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                        os.close(os.open(place.name, flags, 0o644, dir_fd=place.parent.descriptor))
                return place.path
        except OSError:
            return "/" + posixpath.normpath("/" + mount.target).strip("/")


def failure(number: int, path: str) -> OSError:
    """Return the error for a path."""
    return OSError(number, os.strerror(number), path)


def own_path(held: int) -> str:
    """Return a path that means just what is held open, whatever has its name meanwhile."""
    return f"/proc/self/fd/{held}"


def require_writable(folder: Folder, path: str) -> None:
    """Raise EROFS, or EACCES for the kernel's own file systems."""
    if folder.read_only:
        raise failure(errno.EROFS, path)
    if is_kernels(folder.descriptor):
        raise failure(errno.EACCES, path)


def make_folder(parent: int, name: str) -> int:
    """Make a folder only for its owner, and hold it. Raises OSError."""
    os.mkdir(name, 0o700, dir_fd=parent)
    return adopted(parent, name, stat.S_IFDIR)


def adopted(parent: int, name: str, kind: int) -> int:
    """Hold what was just made, and nothing that a process of the container put in its place. Raises OSError."""
    held = os.open(name, _HELD, dir_fd=parent)
    status = os.fstat(held)
    alone = kind == stat.S_IFDIR or status.st_nlink == 1
    if stat.S_IFMT(status.st_mode) != kind or status.st_uid != os.geteuid() or not alone:
        os.close(held)
        raise failure(errno.EAGAIN, name)
    return held


def is_kernels(held: int) -> bool:
    """Say whether this lies on a file system such as /proc, where reading and writing does other things than with files."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc().fstatfs(held, buffer) != 0:
        raise failure(ctypes.get_errno(), own_path(held))
    return ctypes.c_long.from_buffer(buffer).value in _KERNELS_OWN


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
