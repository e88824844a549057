"""How is a container's file system put together by the runtime of our own? Every place in it is found as from inside, by descriptors.

An image's links lead nowhere else than where the container's own processes would get. Sources:
https://github.com/opencontainers/runtime-spec/blob/main/config.md#mounts and https://man7.org/linux/man-pages/man2/pivot_root.2.html
"""

from __future__ import annotations

import errno
import os
import stat

from codomyrmex_containerization.engines.embedded import own_calls as calls
from codomyrmex_containerization.engines.embedded.own_words import Refused, require_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLAGS = {
    "ro": (calls.MS_RDONLY, True), "rw": (calls.MS_RDONLY, False), "nosuid": (calls.MS_NOSUID, True),
    "suid": (calls.MS_NOSUID, False), "nodev": (calls.MS_NODEV, True), "dev": (calls.MS_NODEV, False),
    "noexec": (calls.MS_NOEXEC, True), "exec": (calls.MS_NOEXEC, False), "relatime": (calls.MS_RELATIME, True),
    "strictatime": (calls.MS_STRICTATIME, True), "noatime": (calls.MS_NOATIME, True),
    "nodiratime": (calls.MS_NODIRATIME, True), "bind": (calls.MS_BIND, True),
    "rbind": (calls.MS_BIND | calls.MS_REC, True),
}  # fmt: skip
_OF_ALL_BELOW = {
    "rro": calls.ATTR_RDONLY, "rnosuid": calls.ATTR_NOSUID, "rnodev": calls.ATTR_NODEV, "rnoexec": calls.ATTR_NOEXEC,
}  # fmt: skip
_PROPAGATION = {
    "private": calls.MS_PRIVATE,
    "rprivate": calls.MS_PRIVATE,
    "rslave": calls.MS_SLAVE,
    "slave": calls.MS_SLAVE,
}
_ATTRIBUTES = (
    calls.MS_RDONLY | calls.MS_NOSUID | calls.MS_NODEV | calls.MS_NOEXEC
)  # the same numbers in both of their ways
_KINDS = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "bind")
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore", "ptmx": "pts/ptmx",
}  # fmt: skip
_NULL = "/dev/null"
_REFUSED = (errno.EPERM, errno.EACCES)


class _Options:
    __slots__ = ("below", "data", "flags", "propagation")

    def __init__(self, flags: int, data: str = "", below: int = 0, propagation: int = 0) -> None:
        self.flags = flags
        self.data = data
        self.below = below
        self.propagation = propagation

    @property
    def attributes(self) -> int:
        return self.flags & _ATTRIBUTES


class Bound:
    """A folder or file of the host, as a mount that is nowhere yet."""

    __slots__ = ("is_folder", "tree")

    def __init__(self, tree: int, *, is_folder: bool) -> None:
        self.tree = tree
        self.is_folder = is_folder


def _options(words: list[str]) -> _Options:
    flags = below = propagation = 0
    data = []
    for word in words:
        if word in _FLAGS:
            flag, is_set = _FLAGS[word]
            flags = flags | flag if is_set else flags & ~flag
        elif word in _OF_ALL_BELOW:
            below |= _OF_ALL_BELOW[word]
        elif word in _PROPAGATION:
            propagation = _PROPAGATION[word]
        elif "=" in word or word == "newinstance":
            data.append(word)
        else:
            raise Refused(f"this runtime does not know the option {word} of a mount")
    return _Options(flags, ",".join(data), below, propagation)


def check(mounts: list[dict[str, Any]]) -> None:
    """Refuse mounts that are not known here. Raises Refused."""
    for one in mounts:
        require_known("a mount", one, ("destination", "type", "source", "options"))
        if one.get("type") not in _KINDS:
            raise Refused(f"this runtime mounts no {one.get('type')}")
        if not str(one.get("destination", "")).startswith("/"):
            raise Refused(f"{one.get('destination')} is no place to mount at")
        _options(one.get("options") or [])


def bound(mounts: list[dict[str, Any]], bundle: str) -> dict[int, Bound]:
    """Open what is to be shown of the host, by the place in the list: as long as this process may still reach it. Raises OSError."""
    found = {}
    for number, one in enumerate(mounts):
        if one["type"] != "bind":
            continue
        opened = os.open(os.path.join(bundle, one["source"]), os.O_PATH | os.O_CLOEXEC)
        try:
            found[number] = _copied(opened, _options(one.get("options") or []))
        finally:
            os.close(opened)
    return found


def _copied(opened: int, options: _Options) -> Bound:
    tree = calls.copy_of_mount(opened, recursive=bool(options.flags & calls.MS_REC))
    if options.attributes:
        calls.set_attributes(tree, options.attributes, recursive=False)
    # A mount on the host is never to be seen here afterwards, nor one of here on the host.
    calls.set_attributes(tree, options.below, recursive=True, propagation=options.propagation or calls.MS_PRIVATE)
    return Bound(tree, is_folder=stat.S_ISDIR(os.fstat(opened).st_mode))


class Root:
    """A container's root, seen from outside until it is gone into."""

    def __init__(self, path: str) -> None:
        """Make a mount of it that no other namespace sees. Raises OSError."""
        calls.mount("", "/", "", calls.MS_SLAVE | calls.MS_REC)
        calls.mount(path, path, "", calls.MS_BIND | calls.MS_REC)
        calls.mount("", path, "", calls.MS_PRIVATE | calls.MS_REC)
        self._top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._null = os.open(_NULL, os.O_PATH | os.O_CLOEXEC)
        if os.fstat(self._null).st_rdev != os.makedev(*_DEVICES["null"]):
            raise Refused(f"{_NULL} of this host is not what it should be")

    def mount(self, one: dict[str, Any], shown: Bound | None, *, groups: list[tuple[str, ...]]) -> None:
        """Mount one thing. Raises OSError, Refused."""
        options, kind, target = _options(one.get("options") or []), one["type"], one["destination"]
        # A link there could have another file system shown as that of the processes.
        resolve = calls.RESOLVE_NO_SYMLINKS if kind in ("proc", "sysfs") else 0
        place = self._place(target, is_folder=shown.is_folder if shown else True, resolve=resolve)
        try:
            if shown is not None:
                calls.put_mount(shown.tree, place)
                os.close(shown.tree)
            elif kind == "cgroup":
                self._mount_groups(place, target, options, groups)
            elif kind == "sysfs":
                self._mount_sysfs(place, options)
            else:
                self._mount_new(kind, one.get("source") or kind, place, options)
        except OSError as error:
            raise OSError(error.errno, f"{kind} cannot be mounted at {target}: {error.strerror}") from error
        finally:
            os.close(place)

    def _mount_new(self, kind: str, source: str, place: int, options: _Options) -> None:
        flags = options.flags & ~(calls.MS_BIND | calls.MS_REC)
        try:
            calls.mount(source, _name(place), kind, flags, options.data)
        except OSError as error:
            if kind != "devpts" or error.errno != errno.EINVAL:
                raise
            # Among users of its own there may be no such group.
            data = ",".join(one for one in options.data.split(",") if not one.startswith("gid="))
            calls.mount(source, _name(place), kind, flags, data)

    def _mount_sysfs(self, place: int, options: _Options) -> None:
        try:
            self._mount_new("sysfs", "sysfs", place, options)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            # Only the network's own users may have one anew: the host's then, and nothing of it can be changed.
            opened = os.open("/sys", os.O_PATH | os.O_CLOEXEC)
            shown = _copied(opened, _Options(calls.MS_BIND | calls.MS_REC, "", _ATTRIBUTES, calls.MS_PRIVATE))
            os.close(opened)
            calls.put_mount(shown.tree, place)
            os.close(shown.tree)

    def _mount_groups(self, place: int, target: str, options: _Options, trees: list[tuple[str, ...]]) -> None:
        """Show a container its own groups: a namespace of its own makes them the top."""
        if trees == [()]:
            self._mount_new("cgroup2", "cgroup", place, options)
            return
        calls.mount("tmpfs", _name(place), "tmpfs", options.flags & ~calls.MS_RDONLY, "mode=755")
        for names in trees:
            name = ",".join(names)
            inner = self._place(f"{target}/{name}", is_folder=True)
            try:
                calls.mount("cgroup", _name(inner), "cgroup", options.flags, name)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise  # who may not mount it is shown nothing
            finally:
                os.close(inner)
        top = self._place(target, is_folder=True)
        calls.set_attributes(top, options.attributes, recursive=False)
        os.close(top)

    def devices(self) -> None:
        """Put the harmless devices there, of the host where none may be made. Raises OSError."""
        folder = self._place("/dev", is_folder=True)
        real = calls.open_in(self._top, "/dev", os.O_RDONLY | os.O_DIRECTORY)
        for name, (major, minor) in _DEVICES.items():
            try:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=real)
                os.chmod(f"{_name(real)}/{name}", 0o666)  # noqa: S103  as it is everywhere
            except FileExistsError:
                continue
            except PermissionError:
                self._show_device(name, (major, minor))
        for name, target in _LINKS.items():
            try:
                os.symlink(target, name, dir_fd=real)
            except FileExistsError:
                continue
        os.close(real)
        os.close(folder)

    def _show_device(self, name: str, numbers: tuple[int, int]) -> None:
        opened = os.open(f"/dev/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(opened)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(*numbers):
            raise Refused(f"/dev/{name} of this host is not what it should be")
        shown = _copied(opened, _Options(calls.MS_BIND | calls.MS_NOSUID | calls.MS_NOEXEC, "", 0, calls.MS_PRIVATE))
        place = self._place(f"/dev/{name}", is_folder=False)
        calls.put_mount(shown.tree, place)
        for one in (opened, shown.tree, place):
            os.close(one)

    def mask(self, path: str) -> None:
        """Hide what is at a path, when there is something. Raises OSError."""
        place = self._found(path)
        if place is None:
            return
        if stat.S_ISDIR(os.fstat(place).st_mode):
            calls.mount("tmpfs", _name(place), "tmpfs", calls.MS_RDONLY | _ATTRIBUTES, "size=0k,mode=755")
        else:
            shown = _copied(self._null, _Options(calls.MS_BIND | calls.MS_NOSUID | calls.MS_NOEXEC, "", 0, 0))
            calls.put_mount(shown.tree, place)
            os.close(shown.tree)
        os.close(place)

    def make_read_only(self, path: str) -> None:
        """Let nothing be changed at a path and below it, when there is something. Raises OSError."""
        place = self._found(path)
        if place is None:
            return
        shown = _copied(place, _Options(calls.MS_BIND | calls.MS_REC, "", calls.ATTR_RDONLY, calls.MS_PRIVATE))
        calls.put_mount(shown.tree, place)
        os.close(shown.tree)
        os.close(place)

    def enter(self, *, read_only: bool) -> None:
        """Go in, and leave no way back. Raises OSError."""
        before = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchdir(self._top)
        calls.pivot_root()
        os.fchdir(before)
        calls.mount("", ".", "", calls.MS_SLAVE | calls.MS_REC)  # what is unmounted here stays on the host
        calls.unmount(".", calls.MNT_DETACH)
        os.chdir("/")
        for one in (before, self._top, self._null):
            os.close(one)
        if read_only:
            top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            calls.set_attributes(top, calls.ATTR_RDONLY, recursive=False)
            os.close(top)

    def _found(self, path: str) -> int | None:
        try:
            return calls.open_in(self._top, path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _place(self, path: str, *, is_folder: bool, resolve: int = 0) -> int:
        """Open a place to mount at; one that is missing is made. Raises OSError."""
        try:
            return calls.open_in(self._top, path, os.O_PATH, resolve=calls.RESOLVE_IN_ROOT | resolve)
        except FileNotFoundError:
            pass
        above, _, name = path.rstrip("/").rpartition("/")
        folder = self._place(above or "/", is_folder=True, resolve=resolve)
        try:
            if is_folder:
                os.mkdir(name, 0o755, dir_fd=folder)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=folder))
        except FileExistsError:
            pass  # a link to what is missing: that is told next
        finally:
            os.close(folder)
        return calls.open_in(self._top, path, os.O_PATH, resolve=calls.RESOLVE_IN_ROOT | resolve)


def _name(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
