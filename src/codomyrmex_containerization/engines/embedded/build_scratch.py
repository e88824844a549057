"""Where does a build keep what is its own, and what becomes of what builds left that were killed?"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import build_files, mounts

_PREFIX = "build-"
_LOCK = ".lock"


@contextmanager
def folder(scratch: Path, *, engine: str) -> Iterator[Path]:
    """Give a build a folder that goes with it; those of builds that are dead go too. Raises EngineUnavailable."""
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(scratch)
        with _alone(scratch):
            made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch))
            lock = _locked(made)
    except OSError as problem:
        raise errors.EngineUnavailable(
            f"{engine} cannot write below {scratch}: {problem.strerror}.", hint="mend that folder or make room"
        ) from problem
    try:
        yield made
    finally:
        # What cannot be removed now is tried again by the next build.
        with suppress(OSError):
            _remove(made)
        if lock is not None:
            os.close(lock)


def sweep(scratch: Path) -> None:
    """Remove what builds left that are dead. Raises OSError when the folder cannot be looked into."""
    with _alone(scratch):
        for one in scratch.glob(f"{_PREFIX}*"):
            with suppress(OSError):
                lock = _locked(one)
                if lock is not None:
                    try:
                        _remove(one)
                    finally:
                        os.close(lock)


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Keep others from looking at a folder that is not locked yet."""
    lock = os.open(scratch / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _locked(build: Path) -> int | None:
    """Return a lock that lasts as long as its process; None when somebody has it."""
    lock = os.open(build, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _remove(build: Path) -> None:
    # A folder of this host that is mounted there looks like any other.
    if not mounts.clear(build):
        raise OSError(errno.EBUSY, "something is mounted here", str(build))
    remove_tree(build)


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, however deep it is, be it gone already. Raises OSError: something is mounted in it, say."""
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _flatten(root)
    finally:
        os.close(root)
    with suppress(FileNotFoundError):
        os.rmdir(path)


def _flatten(root: int) -> None:
    """Empty a folder. Inner folders are moved up to the top first, so that none is too deep to be reached."""
    mark, count, device = f".gone-{secrets.token_hex(8)}", 0, os.fstat(root).st_dev
    ahead = [(root, name) for name in os.listdir(root)]
    while ahead:
        folder, name = ahead.pop()
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        if status.st_dev != device:
            raise OSError(errno.EBUSY, "something is mounted here", name)
        if stat.S_IMODE(status.st_mode) & 0o700 != 0o700:  # the working folder of an overlay, say
            os.chmod(name, 0o700, dir_fd=folder)
        inner = build_files.open_folder(folder, name)
        try:
            for one in os.listdir(inner):
                found = os.stat(one, dir_fd=inner, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    os.unlink(one, dir_fd=inner)
                    continue
                if stat.S_IMODE(found.st_mode) & 0o700 != 0o700:
                    os.chmod(one, 0o700, dir_fd=inner)
                count += 1
                os.rename(one, f"{mark}-{count}", src_dir_fd=inner, dst_dir_fd=root)
                ahead.append((root, f"{mark}-{count}"))
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=folder)
