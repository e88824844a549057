"""How are files of an image or a build context found and written without ever leaving its root?

A path is gone along part by part, by folders that are held open; links are followed as a process inside the root would follow them. So
neither `..` nor a link leads out, whoever changes the tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_MOST_LINKS: Final = 40
_DEEPEST: Final = 200  # each open folder is a descriptor
_CHUNK_BYTES: Final = 1 << 20
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Others say what the file system itself is to do with a file, or are the host's own affair.
_KEPT_ATTRIBUTES: Final = ("security.capability", "user.")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a file."""

    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Meta:
    """What is written of a file beside its content; `times` are access and change in nanoseconds, None: now."""

    mode: int
    owner: Owner
    times: tuple[int, int] | None = None


@dataclass(slots=True)
class Place:
    """Where a path leads: a name in an open folder; "." when it is that folder itself. `status` None: nothing is there yet."""

    folders: list[int]
    name: str
    status: os.stat_result | None
    path: str

    @property
    def folder(self) -> int:
        """The descriptor of the folder that holds the name."""
        return self.folders[-1]

    @property
    def is_folder(self) -> bool:
        """Whether a folder is there."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether a regular file is there."""
        return self.status is not None and stat.S_ISREG(self.status.st_mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self.folders:
            os.close(one)
        self.folders.clear()


class Tree:
    """A folder of this host as a root of its own."""

    def __init__(self, path: Path) -> None:
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)

    def find(self, path: str, *, make: Owner | None = None, follow: bool = True, last: bool = True) -> Place:
        """Go along a path; what is missing of its folders is made for `make`. Raises OSError.

        Without `follow` a link on the way is an error; without `last` a link at the end is what is found.
        """
        place = Place([os.dup(self._root)], ".", None, "/")
        try:
            return self._go(place, path, make, follow=follow, last=last)
        except BaseException:
            with place:
                raise

    def _go(self, place: Place, path: str, make: Owner | None, *, follow: bool, last: bool) -> Place:
        ahead, links, here = deque(path.split("/")), 0, list[str]()
        while ahead:
            name = ahead.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                if here:
                    os.close(place.folders.pop())
                    here.pop()
                continue
            status = _looked(name, place.folder)
            is_last = not any(one not in ("", ".") for one in ahead)
            if status is None:
                if is_last:
                    return _ended(place, name, None, here)
                if make is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                make_folder(place.folder, name, Meta(0o755, make))
            elif stat.S_ISLNK(status.st_mode):
                if is_last and not last:
                    return _ended(place, name, status, here)
                links += 1
                if links > _MOST_LINKS or not follow:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(name, dir_fd=place.folder)
                if target.startswith("/"):
                    for one in place.folders[1:]:
                        os.close(one)
                    del place.folders[1:]
                    here.clear()
                ahead.extendleft(reversed(target.split("/")))
                continue
            elif not stat.S_ISDIR(status.st_mode):
                if not is_last:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                return _ended(place, name, status, here)
            place.folders.append(open_folder(place.folder, name))
            here.append(name)
            if len(here) > _DEEPEST:
                raise OSError(errno.ENAMETOOLONG, "too many folders in one another", path)
        return _ended(place, ".", os.fstat(place.folder), here)

    def has(self, path: str) -> bool:
        """Say whether something is at a path, links followed."""
        try:
            with self.find(path) as place:
                return place.status is not None
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_folder(self, path: str) -> bool:
        """Say whether a folder is at a path, links followed."""
        try:
            with self.find(path) as place:
                return place.is_folder
        except (FileNotFoundError, NotADirectoryError):
            return False

    def read(self, path: str, *, most_bytes: int) -> bytes | None:
        """Return the content of a small file; None when there is none. Raises OSError, for one that is too large too."""
        try:
            with self.find(path) as place:
                if not place.is_file:
                    return None
                with open_file(place.folder, place.name) as file:
                    data = os.read(file, most_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(data) > most_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return data

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a new file. Raises OSError."""
        with self.find(path) as place, new_file(place.folder, place.name, Meta(mode, own())) as file:
            write_all(file, data)


def _ended(place: Place, name: str, status: os.stat_result | None, here: list[str]) -> Place:
    place.name, place.status = name, status
    place.path = "/" + "/".join(here if name == "." else [*here, name])
    return place


def _looked(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def own() -> Owner:
    """Return who we are."""
    return Owner(os.geteuid(), os.getegid())


def normal(path: str) -> str:
    """Return an absolute path without `.`, `..` and double slashes."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


# --- single files ----------------------------------------------------------------------------------------------------


def open_folder(folder: int, name: str) -> int:
    """Open a folder in an open one; a link is none. Raises OSError."""
    return os.open(name, _FOLDER, dir_fd=folder)


@contextmanager
def open_file(folder: int, name: str) -> Iterator[int]:
    """Open a regular file for reading; a link or a pipe put in its place is an error. Raises OSError."""
    file = os.open(name, _FILE, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "no regular file", name)
        yield file
    finally:
        os.close(file)


@contextmanager
def new_file(folder: int, name: str, meta: Meta, *, attributes: Mapping[str, bytes] | None = None) -> Iterator[int]:
    """Make a file in the place of whatever is there but a folder; what it is to have gets it at the end. Raises OSError."""
    clear(folder, name)
    file = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        yield file
        give(file, meta)
        for one, value in (attributes or {}).items():  # behind the owner, a change of whom takes capabilities away
            if one.startswith(_KEPT_ATTRIBUTES):
                with suppress(OSError):  # one that this file system does not know, or that only root may give
                    os.setxattr(file, one, value)
        if meta.times is not None:
            os.utime(file, ns=meta.times)
    finally:
        os.close(file)


def clear(folder: int, name: str) -> None:
    """Take away a file or a link. Raises IsADirectoryError for a folder."""
    status = _looked(name, folder)
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder is in the place of a file", name)
    if status is not None:
        os.unlink(name, dir_fd=folder)


def give(file: int, meta: Meta) -> None:
    """Give an open file or folder its owner, mode and times. Raises OSError."""
    os.fchown(file, meta.owner.uid, meta.owner.gid)
    os.fchmod(file, meta.mode)
    if meta.times is not None:
        os.utime(file, ns=meta.times)


def make_folder(folder: int, name: str, meta: Meta) -> None:
    """Make a folder. Raises OSError."""
    os.mkdir(name, 0o700, dir_fd=folder)
    made = open_folder(folder, name)
    try:
        give(made, meta)
    finally:
        os.close(made)


def make_link(folder: int, name: str, target: str, meta: Meta) -> None:
    """Make a symbolic link in the place of whatever is there but a folder. Raises OSError."""
    clear(folder, name)
    os.symlink(target, name, dir_fd=folder)
    os.chown(name, meta.owner.uid, meta.owner.gid, dir_fd=folder, follow_symlinks=False)
    if meta.times is not None:
        os.utime(name, ns=meta.times, dir_fd=folder, follow_symlinks=False)


def make_pipe(folder: int, name: str, meta: Meta) -> None:
    """Make a named pipe in the place of whatever is there but a folder. Raises OSError."""
    clear(folder, name)
    os.mkfifo(name, 0o600, dir_fd=folder)
    os.chown(name, meta.owner.uid, meta.owner.gid, dir_fd=folder, follow_symlinks=False)
    os.chmod(name, meta.mode, dir_fd=folder)


def write_all(file: int, data: bytes) -> None:
    """Write all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def pump(source: int, target: int, *, look: Callable[[], None]) -> None:
    """Copy a file's content; `look` is called between pieces and may raise. Raises OSError."""
    while True:
        look()
        try:
            moved = os.copy_file_range(source, target, _CHUNK_BYTES)
        except OSError as problem:
            if problem.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
            break
        if moved == 0:
            break
    while data := os.read(source, _CHUNK_BYTES):
        look()
        write_all(target, data)


def attributes(file: int) -> dict[str, bytes]:
    """Return the attributes that belong to a file's content, such as the capabilities of a program."""
    try:
        found = [name for name in os.listxattr(file) if name.startswith(_KEPT_ATTRIBUTES)]
        return {name: os.getxattr(file, name) for name in sorted(found)}
    except OSError:  # this file system has none
        return {}


def names(folder: int) -> list[str]:
    """Return the names in a folder, sorted by their bytes. Raises OSError."""
    return sorted(os.listdir(folder), key=os.fsencode)
