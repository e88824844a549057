"""Which doors to the kernel has Python not got? mount, umount and a file opened below a root that no link leads out of.

Sources: https://man7.org/linux/man-pages/man2/mount.2.html, https://man7.org/linux/man-pages/man2/openat2.2.html
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from pathlib import Path

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_OPENAT2 = 437  # on all architectures
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_TRIES = 32  # a rename elsewhere at the same time has the kernel ask to try again


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount something. Raises OSError."""
    words = [os.fsencode(one) or None for one in (source, target, kind)]
    if _libc().mount(*words, ctypes.c_ulong(flags), os.fsencode(data) or None) != 0:
        raise _failure(target)


def unmount(target: str, flags: int = 0) -> None:
    """Unmount what is at a place. Raises OSError."""
    if _libc().umount2(os.fsencode(target), flags | _UMOUNT_NOFOLLOW) != 0:
        raise _failure(target)


def open_inside(root: Path, path: str, flags: int, mode: int = 0) -> int:
    """Open a path as a process would whose root is `root`: no link, no `..` leads out of it. Raises OSError."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_below(base, path, flags, mode)
    finally:
        os.close(base)


def open_below(base: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path below an open folder, which is its root. Raises OSError."""
    how = _How(flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    if b"\0" in name:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    for _ in range(_TRIES):
        found = _libc().syscall(_OPENAT2, base, name, ctypes.byref(how), ctypes.sizeof(how))
        if found >= 0:
            return int(found)
        if ctypes.get_errno() != errno.EAGAIN:
            break
    raise _failure(path)


def _failure(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
