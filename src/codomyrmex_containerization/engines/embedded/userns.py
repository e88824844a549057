"""How does an ordinary user become root of a small world of their own? By namespaces of users and mounts that their processes here share.

They live as long as a process is in them, a container's monitor for one: nothing has to be kept running, and nothing stays mounted
behind the last one. A process enters before it has any thread.
Sources: https://man7.org/linux/man-pages/man7/user_namespaces.7.html, https://man7.org/linux/man-pages/man1/newuidmap.1.html
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import pwd
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import kernel

REMEDY = "apt-get install uidmap"
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_SLAVE = 1 << 19
_SECONDS = 20.0
_MOST_IDS = 65_536
_MOST = Path("/proc/sys/user/max_user_namespaces")
_KNOB = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


@dataclass(frozen=True, slots=True)
class World:
    """The namespaces that this process is in: how many numbers for users they have, and whether they were there before."""

    ids: int
    joined: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the namespaces of a folder are written down, and how they are recognised from inside."""

    folder: Path

    @property
    def record(self) -> Path:
        return self.folder / "world.json"

    @property
    def sign(self) -> Path:
        """A folder on which a file system in memory is mounted, inside only."""
        return self.folder / "world"


def enter(folder: Path) -> World:
    """Become root of the namespaces that belong to a folder, new ones where no process is left in any; call it without threads.

    Raises EngineUnavailable with the reason and what would help.
    """
    place = _Place(folder)
    try:
        place.sign.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder / "world.lock"):
            return _join(place) or _make(place)
    except OSError as error:
        raise _failed(error) from error


def is_inside() -> bool:
    """Whether this process is not root, or root of a namespace only."""
    try:
        numbers = Path("/proc/self/uid_map").read_text("ascii").split()
    except OSError:
        numbers = []
    return os.geteuid() != 0 or numbers != ["0", "0", str(2**32 - 1)]


def may_be_made() -> bool:
    """Say, without trying, whether an ordinary user may make a namespace of users."""
    try:
        return int(_MOST.read_text("ascii")) > 0 and _KNOB.read_text("ascii").strip() != "1"
    except FileNotFoundError as error:
        return str(error.filename) == str(_KNOB)  # which only some kernels have
    except (OSError, ValueError):
        return False


@functools.cache
def has_group(number: int) -> bool:
    """Whether a group's number means a group in the namespace that this process is in for good."""
    lines = [list(map(int, line.split())) for line in Path("/proc/self/gid_map").read_text("ascii").splitlines()]
    return any(first <= number < first + count for first, _, count in lines)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# --------------------------------------------------------------------------------------------------------------- joined


def _join(place: _Place) -> World | None:
    known = _known(place)
    if known is None:
        return None
    user, mount, name = known
    for pid in _inside(user, mount):
        try:
            spaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt")]
        except OSError:
            continue  # it has just ended
        try:
            found = [os.fstat(one).st_ino for one in spaces]
            if found != [user, mount]:
                continue
            for one in spaces:
                kernel.enter(one)
        finally:
            for one in spaces:
                os.close(one)
        _become_root()
        if not (place.sign / name).exists():
            raise _cannot("the namespaces that are written down are somebody else's")
        return World(_count(), joined=True)
    return None


def _known(place: _Place) -> tuple[int, int, str] | None:
    try:
        found = json.loads(place.record.read_text("utf-8"))
        user, mount, name = int(found["user"]), int(found["mount"]), str(found["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (user, mount, name) if name.isalnum() else None


def _inside(user: int, mount: int) -> Iterator[int]:
    """Find this user's processes in both namespaces."""
    for one in os.listdir("/proc"):
        if one.isdigit():
            with suppress(OSError):
                if _number(f"/proc/{one}/ns/user") == user and _number(f"/proc/{one}/ns/mnt") == mount:
                    yield int(one)


def _number(link: str) -> int:
    return os.stat(link).st_ino


# ----------------------------------------------------------------------------------------------------------------- made


def _make(place: _Place) -> World:
    uid, gid = os.geteuid(), os.getegid()
    ranges = _ranges(uid)
    if ranges is None:
        kernel.unshare(_CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
    else:
        _make_with(ranges, uid, gid)
    _become_root()
    kernel.unshare(_CLONE_NEWNS)
    kernel.mount("", "/", "", kernel.MS_REC | _MS_SLAVE)
    name = uuid.uuid4().hex
    kernel.mount("tmpfs", str(place.sign), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=700,size=64k")
    (place.sign / name).touch(mode=0o600)
    found = {"user": _number("/proc/self/ns/user"), "mount": _number("/proc/self/ns/mnt"), "name": name}
    temporary = place.record.with_suffix(".new")
    temporary.write_text(json.dumps(found), "utf-8")
    temporary.replace(place.record)
    return World(_count(), joined=False)


def _write(path: str, text: str) -> None:
    # In one go, as the kernel wants it.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _ranges(uid: int) -> tuple[tuple[Path, range], tuple[Path, range]] | None:
    """Return the programs that give this user more numbers, and which; None where there are none."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ""
    found = []
    for program, table in (("newuidmap", Path("/etc/subuid")), ("newgidmap", Path("/etc/subgid"))):
        path, numbers = process.find(program), _range(table, {name, str(uid)} - {""})
        if path is None or numbers is None:
            return None
        found.append((path, numbers))
    return found[0], found[1]


def _range(table: Path, names: set[str]) -> range | None:
    try:
        lines = table.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if name in names and first.isdecimal() and count.isdecimal() and int(count) > 0:
            return range(int(first), int(first) + min(int(count), _MOST_IDS))
    return None


def _make_with(ranges: tuple[tuple[Path, range], tuple[Path, range]], uid: int, gid: int) -> None:
    """Make a namespace of users whose numbers another process, still outside, enters by programs that may."""
    here = os.getpid()
    made, tell = os.pipe()
    answer, answered = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        _enter_numbers(here, ranges, (uid, gid), made, answered)
    for one in (made, answered):
        os.close(one)
    try:
        kernel.unshare(_CLONE_NEWUSER)
        os.write(tell, b"\0")
    finally:
        os.close(tell)
        with open(answer, "rb") as file:
            said = file.read()
        os.waitpid(child, 0)
    if said != b"done":
        raise _cannot(said.decode("utf-8", "replace") or "the numbers for users could not be entered")


def _enter_numbers(
    pid: int,
    ranges: tuple[tuple[Path, range], tuple[Path, range]],
    own: tuple[int, int],
    made: int,
    answered: int,
) -> NoReturn:
    said = b"done"
    try:
        if os.read(made, 1):
            for (program, numbers), number in zip(ranges, own, strict=True):
                words = [0, number, 1, 1, numbers.start, len(numbers)]
                command = [str(program), str(pid), *map(str, words)]
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
                if done.returncode != 0:
                    said = done.stderr.strip() or b"failed"
                    break
    except BaseException as error:  # noqa: BLE001  a forked process tells what it can, and ends
        said = str(error).encode()
    finally:
        with suppress(OSError):
            os.write(answered, said[:4000])
        os._exit(0)


def _become_root() -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    kernel.stay_visible()


def _count() -> int:
    lines = Path("/proc/self/uid_map").read_text("ascii").splitlines()
    return sum(int(line.split()[2]) for line in lines)


def _cannot(why: str) -> errors.EngineUnavailable:
    return errors.EngineUnavailable(
        f"Containers of an ordinary user need a user namespace, and there is none: {why}.",
        hint=f"run as root, or: {REMEDY}",
    )


def _failed(error: OSError) -> errors.EngineUnavailable:
    found = _cannot(error.strerror or str(error))
    if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC):
        with suppress(OSError):
            if _KNOB.read_text().strip() == "1":
                found.hint = (
                    "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (as root) allows them, or run as root"
                )
        found.hint = found.hint if "sysctl" in found.hint else "this kernel's settings forbid them: run as root"
    return found
