"""Which calls of the kernel does the runtime of our own make that Python has not got? By libc alone, and with few imports.

Numbers and structures: https://man7.org/linux/man-pages/dir_section_2.html
"""

from __future__ import annotations

import ctypes
import errno
import os

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_MANDLOCK, MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME, MS_BIND = 64, 128, 256, 1024, 2048, 4096
MS_REC, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_RELATIME = (1 << one for one in (14, 17, 18, 19, 20, 21))
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 4, 8, 24
_PR_SET_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_SET_SECUREBITS = 36, 38, 47, 28
_AMBIENT_RAISE, _AMBIENT_CLEAR = 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_CLOSE_RANGE_CLOEXEC = 4
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_MOST_DESCRIPTORS = 0xFFFFFFFF
_TRIES = 32
# Those of both machines whose numbers differ, then those that are the same everywhere.
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "keyctl": 250},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "keyctl": 219},
}
_OPEN_TREE, _MOVE_MOUNT, _CLOSE_RANGE, _OPENAT2, _MOUNT_SETATTR = 428, 429, 436, 437, 442
_OPEN_TREE_CLONE, _MOVE_FROM_EMPTY, _MOVE_TO_EMPTY = 1, 4, 0x40
_JOIN_SESSION_KEYRING = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace"))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def number_of(name: str) -> int:
    """Return the number of a system call that machines number differently. Raises OSError."""
    machine = os.uname().machine
    if machine not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"the system calls of {machine} are not known")
    return _NUMBERS[machine][name]


def unshare(flags: int) -> None:
    """Leave namespaces for new ones. Raises OSError."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter(descriptor: int, flags: int, what: str) -> None:
    """Enter a namespace, or several of a process. Raises OSError."""
    _checked(_libc.setns(descriptor, flags), what)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount something, or change a mount. Raises OSError."""
    words = [os.fsencode(one) or None for one in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data) or None), f"mount {target}")


def unmount(target: str, flags: int) -> None:
    """Unmount. Raises OSError."""
    _checked(_libc.umount2(os.fsencode(target), flags), f"unmount {target}")


def copy_of_mount(descriptor: int, *, recursive: bool) -> int:
    """Return what is at an open place as a mount of its own that is nowhere yet. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return _checked(_libc.syscall(_OPEN_TREE, descriptor, b"", ctypes.c_uint(flags)), "open_tree")


def set_attributes(descriptor: int, attributes: int, *, recursive: bool, propagation: int = 0) -> None:
    """Give an open mount, and those below it, attributes. Raises OSError."""
    wanted = _Attributes(attributes, 0, propagation, 0)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0))
    result = _libc.syscall(_MOUNT_SETATTR, descriptor, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
    _checked(result, "mount_setattr")


def put_mount(descriptor: int, place: int) -> None:
    """Put a mount that is nowhere yet at an open place. Raises OSError."""
    flags = ctypes.c_uint(_MOVE_FROM_EMPTY | _MOVE_TO_EMPTY)
    _checked(_libc.syscall(_MOVE_MOUNT, descriptor, b"", place, b"", flags), "move_mount")


def pivot_root() -> None:
    """Make the working folder the root, the old one below it. Raises OSError."""
    _checked(_libc.syscall(number_of("pivot_root"), b".", b"."), "pivot_root")


def leave_keyring() -> None:
    """Have no longer the keys of whoever started this, but a ring of one's own. Raises OSError."""
    if _libc.syscall(number_of("keyctl"), _JOIN_SESSION_KEYRING, None) < 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EPERM):  # there are none, or nobody here gets at them
            raise OSError(number, os.strerror(number), "keyctl")


def open_in(root: int, path: str, flags: int, *, resolve: int = RESOLVE_IN_ROOT, mode: int = 0) -> int:
    """Open a path as a process whose root is `root` would. Raises OSError."""
    how = _How(flags | os.O_CLOEXEC, mode, resolve | RESOLVE_NO_MAGICLINKS)
    result = -1
    for _ in range(_TRIES):
        result = _libc.syscall(_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if result >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    return _checked(result, path)


def close_all(*, but: tuple[int, ...]) -> None:
    """Close all descriptors from 3 on but some."""
    for one in os.listdir("/proc/self/fd"):
        if int(one) > 2 and int(one) not in but:
            try:
                os.close(int(one))
            except OSError:
                pass  # that by which the folder was read


def close_all_at_exec() -> None:
    """Have all descriptors from 3 on closed when this process becomes another program. Raises OSError."""
    if _libc.syscall(_CLOSE_RANGE, 3, ctypes.c_uint(_MOST_DESCRIPTORS), _CLOSE_RANGE_CLOEXEC) == 0:
        return
    for one in os.listdir("/proc/self/fd"):
        if int(one) > 2:
            try:
                os.set_inheritable(int(one), False)
            except OSError:
                pass  # that by which the folder was read


def hide() -> None:
    """Keep other processes, but those that may trace all, from this one's memory, files and program. Raises OSError."""
    _control("dumpable", _PR_SET_DUMPABLE, 0)


def become_subreaper() -> None:
    """Be the parent of what one's children leave behind. Raises OSError."""
    _control("child subreaper", _PR_SET_SUBREAPER, 1)


def keep_powers(*, kept: bool) -> None:
    """Keep capabilities when the user changes, or not. Raises OSError."""
    _control("keepcaps", _PR_SET_KEEPCAPS, int(kept))


def no_new_privileges() -> None:
    """Get none by set-user-id programs, for ever. Raises OSError."""
    _control("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def may_be_bounded(capability: int) -> bool:
    """Whether the kernel has a capability."""
    return bool(_libc.prctl(23, ctypes.c_ulong(capability), 0, 0, 0) >= 0)


def drop_bound(capability: int) -> None:
    """Never have a capability again. Raises OSError."""
    _control("bounding set", _PR_CAPBSET_DROP, capability)


def set_ambient(capabilities: int) -> None:
    """Have just these capabilities in the ambient set. Raises OSError."""
    _control("ambient set", _PR_CAP_AMBIENT, _AMBIENT_CLEAR)
    for one in range(64):
        if capabilities >> one & 1:
            _control("ambient set", _PR_CAP_AMBIENT, _AMBIENT_RAISE, one)


def _control(what: str, *numbers: int) -> None:
    words = [ctypes.c_ulong(one) for one in numbers[1:]]
    words += [ctypes.c_ulong(0)] * (4 - len(words))
    _checked(_libc.prctl(numbers[0], *words), what)


def set_powers(*, effective: int, permitted: int, inheritable: int) -> None:
    """Have just these capabilities. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = ([one >> shift & 0xFFFFFFFF for one in (effective, permitted, inheritable)] for shift in (0, 32))
    data = (ctypes.c_uint32 * 6)(*low, *high)
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def filter_calls(instructions: bytes) -> None:
    """Have the kernel filter this process's system calls, for ever. Raises OSError."""
    program = _Program(len(instructions) // 8, instructions)
    _checked(_libc.syscall(number_of("seccomp"), _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)), "seccomp")


def name_host(name: str) -> None:
    """Have a name for the host in this namespace. Raises OSError."""
    text = os.fsencode(name)
    _checked(_libc.sethostname(text, ctypes.c_size_t(len(text))), "sethostname")
