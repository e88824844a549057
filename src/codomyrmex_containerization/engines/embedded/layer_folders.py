"""How does one reach places in a folder that others filled, without ever following a link? One folder descriptor at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from types import TracebackType

from codomyrmex_containerization import errors

MOST_DEPTH = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Chain:
    """The folder that was asked for last, and those above it, open: what is asked for next is mostly near."""

    def __init__(self, top: os.PathLike[str] | str) -> None:
        self._top = os.open(top, _FOLDER)
        self._names: list[str] = []
        self._fds: list[int] = []

    @property
    def top(self) -> int:
        """The descriptor of the topmost folder."""
        return self._top

    def open(self, parts: tuple[str, ...], *, make: Callable[[int, str], None] | None = None) -> int:
        """Return the descriptor of a folder, valid until the next call; `make` may make one that is missing or is no folder.

        Raises OSError: NotADirectoryError or ELOOP where a part is no folder.
        """
        if len(parts) > MOST_DEPTH:
            raise errors.InvalidArgument(
                f"{'/'.join(parts[:8])}/... lies deeper than {MOST_DEPTH} folders.", hint="use fewer folders in folders"
            )
        same = 0
        while same < min(len(parts), len(self._names)) and parts[same] == self._names[same]:
            same += 1
        self._close_below(same)
        for name in parts[same:]:
            at = self._fds[-1] if self._fds else self._top
            if make is not None:
                make(at, name)
            self._fds.append(os.open(name, _FOLDER, dir_fd=at))
            self._names.append(name)
        return self._fds[-1] if self._fds else self._top

    def _close_below(self, depth: int) -> None:
        while len(self._fds) > depth:
            os.close(self._fds.pop())
            self._names.pop()

    def __enter__(self) -> Chain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_below(0)
        os.close(self._top)


def look(at: int, name: str) -> os.stat_result | None:
    """Look at a name in a folder, not through a link; None when nothing has it."""
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_whiteout(found: os.stat_result) -> bool:
    """Say whether this is overlay's mark for something that is gone: a character device 0:0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def remove(at: int, name: str) -> None:
    """Remove what has the name, with all that is in it. Raises OSError."""
    found = look(at, name)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=at)
        return
    fd = _open_to_empty(at, name)
    try:
        for one in os.listdir(fd):
            remove(fd, one)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=at)


def _open_to_empty(at: int, name: str) -> int:
    fd = open_own(at, name, os.O_DIRECTORY)
    if os.geteuid() != 0:
        os.fchmod(fd, 0o700)
    return fd


def open_own(at: int, name: str, flags: int) -> int:
    """Open a file or a folder to be read, not through a link; an ordinary user's own also where its mode forbids that. Raises OSError."""
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=at)
    except PermissionError:
        if os.geteuid() == 0:
            raise
    # The descriptor is of the thing itself: by its name, a link put there meanwhile would be changed.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        own = f"/proc/self/fd/{fd}"
        os.chmod(own, mode | 0o500)
        try:
            return os.open(own, flags & ~os.O_NOFOLLOW)
        finally:
            os.chmod(own, mode)
    finally:
        os.close(fd)


def size_on_disk(place: os.PathLike[str]) -> int:
    """Return how many bytes a file, or a folder with all that is in it, takes; a file of several names counts once."""
    at = os.open(os.path.dirname(place), _FOLDER)
    try:
        return _size(at, os.path.basename(place), set())
    finally:
        os.close(at)


def _size(at: int, name: str, seen: set[tuple[int, int]], *, of_files: bool = False) -> int:
    found = look(at, name)
    if found is None or (found.st_dev, found.st_ino) in seen:
        return 0
    seen.add((found.st_dev, found.st_ino))
    if of_files:
        total = found.st_size if stat.S_ISREG(found.st_mode) else 0
    else:
        total = found.st_blocks * 512
    if stat.S_ISDIR(found.st_mode):
        fd = open_own(at, name, os.O_DIRECTORY)
        try:
            total += sum(_size(fd, one, seen, of_files=of_files) for one in os.listdir(fd))
        finally:
            os.close(fd)
    return total


def size_of_files(folder: os.PathLike[str]) -> int:
    """Return the bytes of all files in a folder, as they would be read; a file of several names counts once."""
    at = os.open(os.path.dirname(folder), _FOLDER)
    try:
        return _size(at, os.path.basename(folder), set(), of_files=True)
    finally:
        os.close(at)
