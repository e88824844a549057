"""How does a file become a disk of the kernel's, and one that goes by itself when nobody uses it any more?

Sources: https://man7.org/linux/man-pages/man4/loop.4.html and include/uapi/linux/loop.h
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONTROL = "/dev/loop-control"
_BLOCKS = Path("/sys/block")
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_GET_STATUS64 = 0x4C05
_AUTOCLEAR = 4
_STATUS = struct.Struct("=QQQQQIIII64s64s32sQQ")  # struct loop_info64
_CONFIG = struct.Struct(f"=II{_STATUS.size}s64x")  # struct loop_config
_SECTOR_BYTES = 512
_GONE = (errno.ENXIO, errno.ENODEV, errno.ENOENT)
_TRIES = 32  # somebody else may take the device that was free a moment ago


def are_there() -> bool:
    """Whether this process may make such disks."""
    return os.access(_CONTROL, os.R_OK | os.W_OK)


@contextmanager
def attached(file: Path) -> Iterator[str]:
    """Give the path of the disk that a file is while the block lasts; a mount made meanwhile keeps it. Raises OSError.

    A file that is a disk already stays that one: two would each write over what the other has written.
    """
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        device, path = _existing(backing) or _new(backing)
    finally:
        os.close(backing)
    try:
        yield path
    finally:
        os.close(device)


def of(file: Path) -> list[str]:
    """Return the disks that a file is. Raises OSError."""
    wanted, found = file.stat(), []
    for path in _bound():
        device = _opened(path)
        if device is not None:
            try:
                found += [path] if _is_held_of(device, wanted) else []
            finally:
                os.close(device)
    return found


def _new(backing: int) -> tuple[int, str]:
    with open(_CONTROL, "rb", buffering=0) as control:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                info = _STATUS.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, b"", b"", b"", 0, 0)
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, _SECTOR_BYTES, info))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), _CONTROL)


def _existing(backing: int) -> tuple[int, str] | None:
    wanted = os.fstat(backing)
    for path in _bound():
        device = _opened(path)
        # Held open it does not go any more; before, it may have.
        if device is not None and _is_held_of(device, wanted):
            return device, path
        if device is not None:
            os.close(device)
    return None


def _bound() -> list[str]:
    """Return the disks that are files, of whoever."""
    return [f"/dev/{one.name}" for one in sorted(_BLOCKS.glob("loop*")) if (one / "loop").is_dir()]


def _opened(path: str) -> int | None:
    """Open somebody's disk so that nobody takes it for changed; None when it has just gone. Raises OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _is_held_of(device: int, wanted: os.stat_result) -> bool:
    try:
        found = _STATUS.unpack(fcntl.ioctl(device, _GET_STATUS64, bytes(_STATUS.size)))
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return found[1] == wanted.st_ino and (os.major(found[0]), os.minor(found[0])) == (
        os.major(wanted.st_dev),
        os.minor(wanted.st_dev),
    )
