"""Who makes containers where there is neither crun nor runc? This program: an OCI runtime with crun's command line, of Python alone.

It becomes the container's program in the end. So that a container never gets at the file of the interpreter by `/proc/self/exe`, it begins
by being that file anew, where it cannot be written to. Run as a file, and with few imports.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys

_BECOMING = ("create", "run", "exec")
_SEALED = "--sealed"
_NEWNS, _BIND, _REMOUNT, _RDONLY, _REC, _SLAVE = 0x20000, 4096, 32, 1, 16384, 1 << 19
_EXECUTABLE = "/proc/self/exe"
_GET_SEALS, _ALL_SEALS, _SEAL_WRITE = 1034, 0xF, 8
_ADD_SEALS = 1033
_MOST_COPIED_BYTES = 1 << 30
_LEVELS_UP = 4


def _is_sealed() -> bool:
    if os.statvfs(_EXECUTABLE).f_flag & os.ST_RDONLY:
        return True
    opened = os.open(_EXECUTABLE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bool(fcntl.fcntl(opened, _GET_SEALS) & _SEAL_WRITE)
    except OSError:
        return False  # a usual file
    finally:
        os.close(opened)


def _seal(words: list[str]) -> None:
    """Be the same program again, from a read-only mount that only this process and its children see, or from a copy in memory."""
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__), _SEALED, *words]
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(os.path.realpath(_EXECUTABLE))
    flags = ctypes.c_ulong(_BIND | _REMOUNT | _RDONLY | os.statvfs(path).f_flag & 0x0E)
    if (
        libc.unshare(_NEWNS) == 0
        and libc.mount(None, b"/", None, ctypes.c_ulong(_REC | _SLAVE), None) == 0
        and libc.mount(path, path, None, ctypes.c_ulong(_BIND), None) == 0
        and libc.mount(None, path, None, flags, None) == 0
    ):
        os.execv(path, command)
    with open(_EXECUTABLE, "rb") as source:
        copy = os.memfd_create("runtime", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        while os.sendfile(copy, source.fileno(), None, _MOST_COPIED_BYTES):
            pass
    fcntl.fcntl(copy, _ADD_SEALS, _ALL_SEALS)
    os.execv(f"/proc/self/fd/{copy}", command)


def main(words: list[str]) -> int:
    """Do what a command line says."""
    sealed = words[:1] == [_SEALED]
    words = words[1:] if sealed else words
    verb = next((one for one in words if one in _BECOMING), None)
    if verb is not None and not _is_sealed():
        if sealed:
            sys.stderr.write("the interpreter's file cannot be kept from the container\n")
            return 1
        try:
            _seal(words)
        except OSError as error:
            sys.stderr.write(f"the interpreter's file cannot be kept from the container: {error.strerror}\n")
            return 1
    folder = os.path.abspath(__file__)
    for _ in range(_LEVELS_UP):
        folder = os.path.dirname(folder)
    sys.path.append(folder)
    from codomyrmex_containerization.engines.embedded import own_commands

    return own_commands.run(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
