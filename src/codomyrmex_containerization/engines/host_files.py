"""How is a file of this host read or written for an engine? By a path that was judged before, with no link followed on the way to it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.base import Passed

_PIECE_BYTES = 1024 * 1024
# Only passing through a folder needs no right to read it.
_PASSING = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def source(path: Path) -> Iterator[int]:
    """Open a file or a folder (its links resolved before); yield its descriptor. Raises NotFound, InvalidArgument, Conflict."""
    # Without O_NONBLOCK a pipe put in its place would hang the call.
    held = _opened(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(held).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise errors.InvalidArgument(f"{path} is neither a file nor a folder.", hint="name an archive or a folder")
        yield held
    finally:
        os.close(held)


def is_folder(held: int) -> bool:
    """Say whether a descriptor is a folder's."""
    return stat.S_ISDIR(os.fstat(held).st_mode)


def pieces(held: int, *, passed: Passed, is_stopped: Callable[[], bool]) -> Iterator[bytes]:
    """Yield what an open file holds. Raises Cancelled once it is stopped, EngineUnavailable when the disk fails."""
    at = 0
    while True:
        if is_stopped():
            raise errors.Cancelled("The call was stopped.")
        try:
            piece = os.pread(held, _PIECE_BYTES, at)
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The file could not be read to its end: {error.strerror}.", hint="check the disk that it is on"
            ) from error
        if not piece:
            return
        at += len(piece)
        passed(at)
        yield piece


def write(path: Path, given: Iterator[bytes], *, passed: Passed) -> int:
    """Write pieces to a file, which takes its name (from one that is there too) when all is written; return how many bytes it has.

    What fails leaves nothing behind. Raises Conflict (a folder has the name), EngineUnavailable (no space), and what the pieces raise.
    """
    with folder_of(path) as folder:
        _refuse_folder(path, folder)
        part = f".{secrets.token_hex(6)}.part"
        try:
            with _writing(path):
                held = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            try:
                count = _written(path, held, given, passed)
            finally:
                os.close(held)
            with _writing(path):
                os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            return count
        finally:
            with suppress(OSError):
                os.unlink(part, dir_fd=folder)


def _written(path: Path, held: int, given: Iterator[bytes], passed: Passed) -> int:
    count = 0
    for piece in given:
        # Only what this host's disk says: a connection's errors are of the same kind.
        with _writing(path):
            left = memoryview(piece)
            while left:
                left = left[os.write(held, left) :]
        count += len(piece)
        passed(count)
    with _writing(path):
        os.fsync(held)
    return count


def _refuse_folder(path: Path, folder: int) -> None:
    with _writing(path):
        try:
            found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
    if stat.S_ISDIR(found.st_mode):
        raise errors.Conflict(f"{path} is a folder.", hint="name a file in it")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def size(name: str, folder: int) -> int:
    """Return how many bytes a file has, or all files of a folder together, that lies in an open folder."""
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    walked = os.fwalk(name, dir_fd=folder, follow_symlinks=False)
    return sum(os.stat(one, dir_fd=at, follow_symlinks=False).st_size for _, _, names, at in walked for one in names)


@contextmanager
def folder_of(path: Path) -> Iterator[int]:
    """Open the folder that a path lies in. Raises NotFound, Conflict."""
    held = _opened(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield held
    finally:
        os.close(held)


def _unwritable(path: Path, error: OSError) -> errors.ContainerizationError:
    """Return the error for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.EngineUnavailable(f"{path} could not be written: {error.strerror}.", hint="free disk space there")
    return errors.Conflict(
        f"{path} could not be written: {error.strerror or 'failed'}.", hint="check its folder, or name another file"
    )


def _opened(path: Path, flags: int) -> int:
    now = os.open("/", _PASSING)
    try:
        for depth, part in enumerate(path.parts[1:], start=2):
            below = os.open(
                part, _PASSING if depth < len(path.parts) else flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=now
            )
            os.close(now)
            now = below
    except OSError as error:
        os.close(now)
        if error.errno == errno.ENOENT:
            raise errors.NotFound(f"There is no {path}.", hint="check the path", details={"missing": "file"}) from error
        raise errors.Conflict(
            f"{path} cannot be opened: {error.strerror or 'failed'}.",
            hint="check that it is there and who may use it, then call again",
        ) from error
    return now
