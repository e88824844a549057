"""What do COPY and ADD bring into an image, from where, and as whose?"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from codomyrmex_containerization.engines.embedded import build_archive, build_files
from codomyrmex_containerization.engines.embedded.build_files import Meta, Owner, Tree
from codomyrmex_containerization.engines.embedded.build_words import Failed

_CHUNK_BYTES: Final = 1 << 20
_LARGEST_TABLE_BYTES: Final = 8 << 20
_LARGEST_ID: Final = (1 << 32) - 2


@dataclass(frozen=True, slots=True)
class Source:
    """A file or a folder to copy: its path in a tree, the name that it is to have."""

    tree: Tree
    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Request:
    """A COPY or ADD whose variables are replaced. `into`: the target is a folder, whether it is there or not."""

    sources: tuple[Source, ...]
    target: str
    into: bool
    owner: str = ""
    mode: int | None = None
    keeps_owner: bool = False
    unpacks: bool = False


# --- who -------------------------------------------------------------------------------------------------------------


def owner(tree: Tree, text: str) -> Owner:
    """Read the value of --chown with the image's own tables of users and groups. Raises Failed, OSError."""
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise Failed(f"--chown={text[:60]} names nobody: write it as user:group")
    uid, gid = _user(tree, user)
    return Owner(uid, _group(tree, group) if colon else gid)


def _user(tree: Tree, user: str) -> tuple[int, int]:
    if user.isascii() and user.isdecimal():
        return _id(user), _id(user)
    for fields in _table(tree, "/etc/passwd"):
        if fields[0] == user and len(fields) > 3:
            return _id(fields[2]), _id(fields[3])
    raise Failed(f"unable to find user {user[:60]}: no matching entries in passwd file")


def _group(tree: Tree, group: str) -> int:
    if group.isascii() and group.isdecimal():
        return _id(group)
    for fields in _table(tree, "/etc/group"):
        if fields[0] == group and len(fields) > 2:
            return _id(fields[2])
    raise Failed(f"unable to find group {group[:60]}: no matching entries in group file")


def _id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _LARGEST_ID):
        raise Failed(f"{text[:60]!r} is no id of a user or a group")
    return int(text)


def _table(tree: Tree, path: str) -> Iterator[list[str]]:
    data = tree.read(path, most_bytes=_LARGEST_TABLE_BYTES) or b""
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        yield line.strip().split(":")


# --- what ------------------------------------------------------------------------------------------------------------


def digest(request: Request, *, look: Callable[[], None]) -> str:
    """Return the digest of all that would be copied: names, kinds, modes, owners and content, but no times."""
    seen = hashlib.sha256()
    for source in request.sources:
        with source.tree.find(source.path) as place:
            name = "." if place.is_folder else source.name
            for record in _records(place.folder, place.name, place.status, name, request, look):
                seen.update(b"\0".join(record) + b"\0\n")
    return seen.hexdigest()


def _records(
    folder: int,
    name: str,
    status: os.stat_result | None,
    path: str,
    request: Request,
    look: Callable[[], None],
) -> Iterator[tuple[bytes, ...]]:
    look()
    if status is None:
        return
    who = f"{status.st_uid}:{status.st_gid}" if request.keeps_owner else ""
    head = (os.fsencode(path), f"{status.st_mode:o}".encode(), who.encode())
    if stat.S_ISDIR(status.st_mode):
        yield head
        inner = os.dup(folder) if name == "." else build_files.open_folder(folder, name)
        try:
            for one in build_files.names(inner):
                found = os.stat(one, dir_fd=inner, follow_symlinks=False)
                yield from _records(inner, one, found, f"{path}/{one}", request, look)
        finally:
            os.close(inner)
    elif stat.S_ISLNK(status.st_mode):
        yield (*head, os.fsencode(os.readlink(name, dir_fd=folder)))
    elif stat.S_ISREG(status.st_mode):
        with build_files.open_file(folder, name) as file:
            kept = build_files.attributes(file) if request.keeps_owner else {}
            yield (*head, _hashed(file, look), *(part for pair in kept.items() for part in (pair[0].encode(), pair[1])))
    else:
        yield head


def _hashed(file: int, look: Callable[[], None]) -> bytes:
    seen = hashlib.sha256()
    while data := os.read(file, _CHUNK_BYTES):
        look()
        seen.update(data)
    return seen.digest()


# --- copying ---------------------------------------------------------------------------------------------------------


def copy(request: Request, tree: Tree, *, look: Callable[[], None]) -> int:
    """Bring it all into a tree, but for devices: how many those are is returned. `look` may raise. Raises Failed, OSError."""
    who = owner(tree, request.owner) if request.owner else None
    copying = _Copying(tree, request, who, look)
    for source in request.sources:
        with source.tree.find(source.path) as place:
            copying.source(place, source.name)
    return copying.devices


@dataclass(slots=True)
class _Copying:
    tree: Tree
    request: Request
    owner: Owner | None
    look: Callable[[], None]
    devices: int = 0
    links: dict[tuple[int, int], str] = field(default_factory=dict)

    def source(self, place: build_files.Place, name: str) -> None:
        target = self.request.target
        if place.status is None:
            raise FileNotFoundError(2, "No such file or directory", name)
        if place.is_folder:
            self._folder(place.folder, place.status, target, is_top=True)
            return
        if self.request.unpacks and place.is_file and self._unpacked(place):
            return
        if self.request.into or self.tree.is_folder(target):
            target = posixpath.join(target, name)
        with self.tree.find(target, make=self._maker, last=False) as there:
            if there.is_folder:
                raise Failed(f"{target[:200]} is a folder: a file cannot take its place")
            self._single(place.folder, place.name, place.status, there.folder, there.name, target)

    @property
    def _maker(self) -> Owner:
        return self.owner or Owner()

    def _unpacked(self, place: build_files.Place) -> bool:
        with build_files.open_file(place.folder, place.name) as file:
            done = build_archive.unpack_file(
                file, self.tree, self.request.target, owner=self.owner, mode=self.request.mode, look=self.look
            )
        self.devices += done or 0
        return done is not None

    def _folder(self, folder: int, status: os.stat_result, target: str, *, is_top: bool) -> None:
        with self.tree.find(target, make=self._maker) as there:
            is_new = there.status is None
            if is_new:
                build_files.make_folder(there.folder, there.name, Meta(0o700, self._maker))
            elif not there.is_folder:
                raise Failed(f"{target[:200]} is a file: a folder cannot take its place")
            into = build_files.open_folder(there.folder, there.name)
        try:
            for name in build_files.names(folder):
                self._entry(folder, name, into, posixpath.join(target, name))
            if is_new or not is_top:
                build_files.give(into, self._meta(status))
        finally:
            os.close(into)

    def _entry(self, folder: int, name: str, into: int, target: str) -> None:
        self.look()
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            self._single(folder, name, status, into, name, target)
            return
        inner = build_files.open_folder(folder, name)
        try:
            self._folder(inner, status, target, is_top=False)
        finally:
            os.close(inner)

    def _single(self, folder: int, name: str, status: os.stat_result, into: int, new: str, target: str) -> None:
        meta = self._meta(status)
        if stat.S_ISREG(status.st_mode):
            if not self._linked(status, into, new, target):
                self._file(folder, name, into, new, meta)
        elif stat.S_ISLNK(status.st_mode):
            build_files.make_link(into, new, os.readlink(name, dir_fd=folder), meta)
        elif stat.S_ISFIFO(status.st_mode):
            build_files.make_pipe(into, new, meta)
        elif not stat.S_ISSOCK(status.st_mode):
            self.devices += 1

    def _file(self, folder: int, name: str, into: int, new: str, meta: Meta) -> None:
        with build_files.open_file(folder, name) as source:
            kept = build_files.attributes(source) if self.request.keeps_owner else {}
            with build_files.new_file(into, new, meta, attributes=kept) as file:
                build_files.pump(source, file, look=self.look)

    def _linked(self, status: os.stat_result, into: int, new: str, target: str) -> bool:
        """Make a hard link where the file was copied before under another name."""
        if status.st_nlink < 2:
            return False
        before = self.links.setdefault((status.st_dev, status.st_ino), target)
        if before == target:
            return False
        with self.tree.find(before, last=False) as place:
            if not place.is_file:
                return False
            build_files.clear(into, new)
            os.link(place.name, new, src_dir_fd=place.folder, dst_dir_fd=into, follow_symlinks=False)
        return True

    def _meta(self, status: os.stat_result) -> Meta:
        who = self.owner or (Owner(status.st_uid, status.st_gid) if self.request.keeps_owner else Owner())
        mode = stat.S_IMODE(status.st_mode) if self.request.mode is None else self.request.mode
        return Meta(mode, who, (status.st_mtime_ns, status.st_mtime_ns))
