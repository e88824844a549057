"""What is a file system in memory: its nodes, its size, and the view that a container has of several of them?

A tree holds nodes; a view is a root tree with other trees (volumes, tmpfs, /dev) at mount points. Errors are OSErrors with the errno that
a kernel would give: programs print them, the engine turns them into ours.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

MOST_BYTES = 256 * 1024 * 1024
_MOST_LINKS = 40
_LONGEST_NAME = 255

DeviceName = Literal["null", "zero", "full", "random", "stdin", "stdout", "stderr"]


def failure(number: int, path: str = "") -> OSError:
    """Return the error of a system call."""
    return OSError(number, os.strerror(number), path)


@dataclass(slots=True)
class Node:
    """What every entry of a tree has."""

    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = field(default_factory=time.time)


@dataclass(slots=True)
class File(Node):
    """A regular file; hard links are one object under several names. `own` is set when it differs from the image's."""

    data: bytes | bytearray = b""
    own: bool = True


@dataclass(slots=True)
class Link(Node):
    """A symbolic link."""

    target: str = ""


@dataclass(slots=True)
class Device(Node):
    """A special file that this package serves itself."""

    name: DeviceName = "null"


@dataclass(slots=True)
class Folder(Node):
    """A folder and what is in it."""

    entries: dict[str, AnyNode] = field(default_factory=dict)


AnyNode = File | Link | Device | Folder


@dataclass(frozen=True, slots=True)
class User:
    """On whose behalf something is done; 0 may do everything."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    name: str = "root"
    home: str = "/root"

    def may(self, node: Node, want: int) -> bool:
        """Say whether the mode bits allow `want` (4 read, 2 write, 1 execute or search)."""
        if self.uid == 0:
            return want != 1 or isinstance(node, Folder) or bool(node.mode & 0o111)
        if node.uid == self.uid:
            bits = node.mode >> 6
        elif node.gid == self.gid or node.gid in self.groups:
            bits = node.mode >> 3
        else:
            bits = node.mode
        return bits & want == want


ROOT = User()


class Tree:
    """One file system: a root folder and a bound on the bytes of its files."""

    def __init__(self, root: Folder | None = None, *, most_bytes: int = MOST_BYTES) -> None:
        self.root = root if root is not None else Folder(mode=0o755)
        self.most_bytes = most_bytes
        self.used_bytes = 0
        self.recount()

    def recount(self) -> None:
        """Count the bytes anew, when something was taken out of the tree: a file may have other names in it."""
        self.used_bytes = sum(len(one.data) for one in self.files())

    def copy(self) -> Tree:
        """Return a tree of its own with the same files; their bytes are shared until one of the two writes."""
        return Tree(_copy(self.root, {}), most_bytes=self.most_bytes)

    def files(self) -> Iterator[File]:
        """Yield every file once."""
        seen: set[int] = set()
        for _, node in walk(self.root):
            if isinstance(node, File) and id(node) not in seen:
                seen.add(id(node))
                yield node

    def structure_bytes(self) -> int:
        """Return the bytes of this process's memory that the tree's folders and nodes take, without what files hold."""
        nodes = [self.root, *(node for _, node in walk(self.root))]
        return sum(sys.getsizeof(one) + (sys.getsizeof(one.entries) if isinstance(one, Folder) else 0) for one in nodes)

    def own_bytes(self) -> int:
        """Return the bytes of the files that differ from the image's."""
        return sum(len(one.data) for one in self.files() if one.own)

    def resize(self, file: File, size: int) -> None:
        """Cut a file or fill it with zeros. Raises ENOSPC."""
        more = size - len(file.data)
        self._account(more)
        data = _writable(file)
        if more < 0:
            del data[size:]
        else:
            data.extend(bytes(more))

    def write(self, file: File, offset: int, data: bytes) -> None:
        """Put bytes into a file. Raises ENOSPC."""
        end = offset + len(data)
        self._account(max(end - len(file.data), 0))
        held = _writable(file)
        if offset > len(held):
            held.extend(bytes(offset - len(held)))
        held[offset:end] = data
        file.mtime = time.time()

    def _account(self, more: int) -> None:
        if more > 0 and self.used_bytes + more > self.most_bytes:
            raise failure(errno.ENOSPC)
        self.used_bytes += more


def _writable(file: File) -> bytearray:
    if isinstance(file.data, bytes):
        file.data = bytearray(file.data)
    file.own = True
    return file.data


def _copy(folder: Folder, seen: dict[int, File]) -> Folder:
    entries: dict[str, AnyNode] = {}
    for name, node in folder.entries.items():
        if isinstance(node, Folder):
            entries[name] = _copy(node, seen)
        elif isinstance(node, File):
            if id(node) not in seen:
                if isinstance(node.data, bytearray):
                    node.data = bytes(node.data)
                seen[id(node)] = File(node.mode, node.uid, node.gid, node.mtime, node.data, own=False)
            entries[name] = seen[id(node)]
        else:
            entries[name] = node
    return Folder(folder.mode, folder.uid, folder.gid, folder.mtime, entries)


def walk(folder: Folder, prefix: str = "") -> Iterator[tuple[str, AnyNode]]:
    """Yield every path below a folder, folders before what is in them, by name."""
    for name in sorted(folder.entries):
        node = folder.entries[name]
        path = f"{prefix}{name}"
        yield path, node
        if isinstance(node, Folder):
            yield from walk(node, f"{path}/")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A tree at a mount point."""

    tree: Tree
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path led: its canonical form, the folder and name it has, the node (None: nothing there yet)."""

    path: str
    folder: Folder
    name: str
    node: AnyNode | None
    tree: Tree
    read_only: bool


class View:
    """What a container sees: its root tree and what is mounted in it."""

    def __init__(self, root: Tree, *, read_only: bool = False) -> None:
        self.root = root
        self.read_only = read_only
        self.mounts: dict[str, Mounted] = {}

    def mount(self, path: str, tree: Tree, *, read_only: bool = False) -> None:
        """Put a tree at a path, whose folder is made when it is not there."""
        place = self.make_folders(path, ROOT, force=True)
        self.mounts[place] = Mounted(tree, read_only)

    def find(self, path: str, cwd: str = "/", who: User = ROOT, *, follow: bool = True) -> Place:
        """Walk a path. Raises ENOENT (a folder on the way), ENOTDIR, ELOOP, EACCES; the last part may be missing."""
        if not path:
            raise failure(errno.ENOENT, path)
        return self._walk(path if path.startswith("/") else f"{cwd}/{path}", path, who, follow)

    def _walk(self, full: str, shown: str, who: User, follow: bool) -> Place:
        parts = [one for one in full.split("/") if one not in ("", ".")][::-1]
        must_be_folder = full.endswith(("/", "/."))
        names: list[str] = []
        links = 0
        here = self._mounted("/", self.root.root, self.root, self.read_only)
        trail = [here]
        while parts:
            part = parts.pop()
            if part == "..":
                if names:
                    names.pop()
                    trail.pop()
                continue
            node, tree, read_only = trail[-1]
            if not isinstance(node, Folder):
                raise failure(errno.ENOTDIR, shown)
            if not who.may(node, 1):
                raise failure(errno.EACCES, shown)
            if len(part.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
                raise failure(errno.ENAMETOOLONG, shown)
            below = node.entries.get(part)
            if below is None:
                if any(one != "." for one in parts):
                    raise failure(errno.ENOENT, shown)
                return Place("/" + "/".join([*names, part]), node, part, None, tree, read_only)
            if isinstance(below, Link) and (parts or follow or must_be_folder):
                links += 1
                if links > _MOST_LINKS:
                    raise failure(errno.ELOOP, shown)
                if below.target.startswith("/"):
                    names, trail = [], trail[:1]
                parts.extend([one for one in below.target.split("/") if one not in ("", ".")][::-1])
                continue
            names.append(part)
            trail.append(self._mounted("/" + "/".join(names), below, tree, read_only))
        node, tree, read_only = trail[-1]
        if must_be_folder and not isinstance(node, Folder):
            raise failure(errno.ENOTDIR, shown)
        parent = trail[-2][0] if len(trail) > 1 else node
        if not isinstance(parent, Folder):
            raise failure(errno.ENOTDIR, shown)
        return Place("/" + "/".join(names), parent, names[-1] if names else "", node, tree, read_only)

    def _mounted(self, path: str, node: AnyNode, tree: Tree, read_only: bool) -> tuple[AnyNode, Tree, bool]:
        found = self.mounts.get(path)
        return (node, tree, read_only) if found is None else (found.tree.root, found.tree, found.read_only)

    def get(self, path: str, cwd: str = "/", who: User = ROOT, *, follow: bool = True) -> AnyNode:
        """Return the node at a path. Raises what `find` raises, and ENOENT."""
        node = self.find(path, cwd, who, follow=follow).node
        if node is None:
            raise failure(errno.ENOENT, path)
        return node

    def folder(self, path: str, cwd: str = "/", who: User = ROOT) -> Folder:
        """Return the folder at a path. Raises ENOTDIR besides."""
        node = self.get(path, cwd, who)
        if not isinstance(node, Folder):
            raise failure(errno.ENOTDIR, path)
        return node

    def add(self, place: Place, node: AnyNode, who: User = ROOT, *, force: bool = False) -> AnyNode:
        """Put a node where nothing is yet. Raises EROFS, EACCES."""
        if not force:
            self.require_writable(place, who)
        place.folder.entries[place.name] = node
        place.folder.mtime = time.time()
        return node

    def require_writable(self, place: Place, who: User) -> None:
        """Raise EROFS or EACCES unless the folder of a place may be changed."""
        if place.read_only:
            raise failure(errno.EROFS, place.path)
        if not who.may(place.folder, 3):
            raise failure(errno.EACCES, place.path)

    def remove(self, place: Place, who: User = ROOT) -> None:
        """Take a node out. Raises EROFS, EACCES, EBUSY (something is mounted there)."""
        self.require_writable(place, who)
        if any(one == place.path or one.startswith(place.path + "/") for one in self.mounts):
            raise failure(errno.EBUSY, place.path)
        sticky = place.folder.mode & 0o1000 and who.uid not in (0, place.folder.uid)
        if place.node is None or (sticky and place.node.uid != who.uid):
            raise failure(errno.ENOENT if place.node is None else errno.EPERM, place.path)
        del place.folder.entries[place.name]
        place.folder.mtime = time.time()
        if isinstance(place.node, File | Folder):
            place.tree.recount()

    def make_folders(self, path: str, who: User, *, mode: int = 0o755, cwd: str = "/", force: bool = False) -> str:
        """Make a folder and those above it; return its canonical path. Raises ENOTDIR, EROFS, EACCES."""
        full = path if path.startswith("/") else f"{cwd}/{path}"
        now = "/"
        for part in [one for one in full.split("/") if one not in ("", ".")]:
            place = self.find(f"{now}/{part}", "/", who)
            if place.node is None:
                self.add(place, Folder(mode, who.uid, who.gid), who, force=force)
            elif not isinstance(place.node, Folder):
                raise failure(errno.ENOTDIR, path)
            now = place.path
        return now

    def listing(self, path: str) -> Iterator[tuple[str, AnyNode]]:
        """Yield a node and, for a folder, all below it with paths relative to it, mounted trees included."""
        place = self.find(path)
        if place.node is None:
            raise failure(errno.ENOENT, path)
        yield "", place.node
        waiting: list[tuple[str, str, AnyNode]] = [(place.path, "", place.node)]
        while waiting:
            at, relative, node = waiting.pop()
            if not isinstance(node, Folder):
                continue
            for name in sorted(node.entries, reverse=True):
                full = f"{at.rstrip('/')}/{name}"
                below = self._mounted(full, node.entries[name], self.root, False)[0]
                inner = f"{relative}/{name}" if relative else name
                yield inner, below
                waiting.append((full, inner, below))


def device_tree() -> Tree:
    """Return a /dev of its own."""
    names: dict[str, DeviceName] = {
        "null": "null",
        "zero": "zero",
        "full": "full",
        "random": "random",
        "urandom": "random",
        "stdin": "stdin",
        "stdout": "stdout",
        "stderr": "stderr",
    }
    entries: dict[str, AnyNode] = {name: Device(0o666, name=kind) for name, kind in names.items()}
    entries["shm"] = Folder(0o1777)
    return Tree(Folder(0o755, entries=entries))
