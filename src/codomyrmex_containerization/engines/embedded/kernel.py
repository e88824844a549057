"""Which doors to the kernel has Python not got? Mounts, by name and by descriptor, and a file opened so that no link leads astray.

Sources: https://man7.org/linux/man-pages/man2/mount.2.html, https://man7.org/linux/man-pages/man2/openat2.2.html,
https://man7.org/linux/man-pages/man2/mount_setattr.2.html and https://docs.kernel.org/filesystems/idmappings.html
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

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
_ATTR_IDMAP = 0x100000

# On all architectures.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_OPENAT2 = 437
_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_PR_SET_DUMPABLE = 4
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10
_TRIES = 32  # a rename elsewhere at the same time has the kernel ask to try again


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


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


def unshare(flags: int) -> None:
    """Give the calling thread alone namespaces of its own. Raises OSError."""
    if _libc().unshare(ctypes.c_int(flags)) != 0:
        raise _failure("")


def enter(namespace: int) -> None:
    """Move the calling thread into an open namespace; one of users takes a process without other threads. Raises OSError."""
    if _libc().setns(ctypes.c_int(namespace), ctypes.c_int(0)) != 0:
        raise _failure("")


def stay_visible() -> None:
    """Let processes of the same user look at this one again, though it has become somebody else. Raises OSError."""
    if _libc().prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0) != 0:
        raise _failure("")


def open_inside(root: Path, path: str, flags: int, mode: int = 0) -> int:
    """Open a path as a process would whose root is `root`: no link, no `..` leads out of it. Raises OSError."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_below(base, path, flags, mode)
    finally:
        os.close(base)


def open_below(base: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path below an open folder, which is its root. Raises OSError."""
    return _open(base, path, _How(flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS))


def open_without_links(path: str, flags: int) -> int:
    """Open a path of which no part is a link. Raises OSError: ELOOP where one is."""
    return _open(_AT_FDCWD, path, _How(flags | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS))


def copy_of_mount(descriptor: int, *, recursive: bool) -> int:
    """Return what is at an open place as a mount of its own that is nowhere yet, with or without what is below it. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    found = _libc().syscall(_OPEN_TREE, descriptor, b"", ctypes.c_uint(flags))
    if found < 0:
        raise _failure("")
    return int(found)


def set_attributes(descriptor: int, attributes: int, *, user_namespace: int | None = None) -> None:
    """Give a mount that is nowhere yet, and those below it, attributes, and the numbers of users that a namespace has. Raises OSError."""
    mapped = 0 if user_namespace is None else _ATTR_IDMAP
    wanted = _Attributes(attributes | mapped, 0, MS_PRIVATE, user_namespace or 0)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE)
    if _libc().syscall(_MOUNT_SETATTR, descriptor, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted)) != 0:
        raise _failure("")


def put_mount(descriptor: int, target: str) -> None:
    """Put a mount that is nowhere yet at a place. Raises OSError."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    if _libc().syscall(_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, os.fsencode(target), flags) != 0:
        raise _failure(target)


def _open(base: int, path: str, how: _How) -> int:
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


def syncfs(descriptor: int) -> None:
    """Wait until all that was written to the file system of an open file is on the disk. Raises OSError."""
    if _libc().syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
