"""How is a tar unpacked into a tree that may hold links already: a build context, an archive that ADD unpacks?"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import build_expand, build_files, layer_streams, layer_tar
from codomyrmex_containerization.engines.embedded.build_files import Meta, Owner, Tree
from codomyrmex_containerization.engines.embedded.build_words import Failed

MOST_ENTRIES: Final = 2_000_000
MOST_BYTES: Final = 64 << 30
_PIECE_BYTES: Final = 1 << 20
_LARGEST_IGNORE_BYTES: Final = 1 << 20


def keep_context(pieces: Iterator[bytes], file: BinaryIO, *, look: Callable[[], None]) -> str:
    """Write a build context to a file as it comes and return the digest of what it holds, but for times.

    Raises OSError, InvalidArgument for what is no tar, and what reading the pieces raises.
    """
    seen = hashlib.sha256()
    stream = _Copied(layer_tar.FromPieces(lambda: next(pieces, b"")), file)
    reader = layer_tar.Reader(layer_streams.Measured(stream, most_bytes=MOST_BYTES, what="The build context"))
    while (entry := reader.next()) is not None:
        look()
        fields = (entry.name, entry.kind, entry.mode, entry.size_bytes, entry.target, sorted(entry.xattrs.items()))
        seen.update(repr(fields).encode("utf-8", "surrogateescape") + b"\n")
        while data := reader.read(_PIECE_BYTES):
            look()
            seen.update(data)
    return seen.hexdigest()


class _Copied:
    """Passes bytes on and writes them down."""

    def __init__(self, stream: layer_tar.Stream, file: BinaryIO) -> None:
        self._stream = stream
        self._file = file

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end."""
        piece = self._stream.read(count)
        self._file.write(piece)
        return piece


def unpack_context(pieces: Iterator[bytes], tree: Tree, *, look: Callable[[], None]) -> None:
    """Unpack a build context into an empty folder. Links stay links, and no entry may lie behind one.

    Raises Failed, OSError, InvalidArgument for what is no tar, and what reading the pieces raises.
    """
    stream = layer_tar.FromPieces(lambda: next(pieces, b""))
    reader = layer_tar.Reader(layer_streams.Measured(stream, most_bytes=MOST_BYTES, what="The build context"))
    work = _Unpacking(reader, tree, "/", build_files.own(), None, look, follow=False)
    while (entry := reader.next()) is not None:
        work.put(entry)


def unpack_file(
    file: int, tree: Tree, target: str, *, owner: Owner | None, mode: int | None, look: Callable[[], None]
) -> int | None:
    """Unpack a file into a folder of an image; None when the file is no archive. Raises Failed, OSError.

    Links of the image are followed inside it. `owner` and `mode` take the place of those of the archive. What is returned is how
    many devices were left out: a container gets its own.
    """
    stream = layer_tar.FromPieces(lambda: os.read(file, _PIECE_BYTES))
    try:
        reader = layer_tar.Reader(
            layer_streams.Measured(layer_streams.plain(stream), most_bytes=MOST_BYTES, what="The archive")
        )
        try:
            entry = reader.next()
        except errors.InvalidArgument:
            return None
        if entry is None:
            return None
        with tree.find(f"{target.rstrip('/')}/.", make=owner or Owner()):
            pass
        work = _Unpacking(reader, tree, target, owner, mode, look, follow=True)
        while entry is not None:
            work.put(entry)
            entry = reader.next()
    except (errors.InvalidArgument, errors.Unsupported) as error:
        raise Failed(error.message) from error
    return work.devices


@dataclass(slots=True)
class _Unpacking:
    reader: layer_tar.Reader
    tree: Tree
    target: str
    owner: Owner | None
    mode: int | None
    look: Callable[[], None]
    follow: bool
    entries: int = 0
    devices: int = 0

    def put(self, entry: layer_tar.Entry) -> None:
        self.look()
        self.entries += 1
        if self.entries > MOST_ENTRIES:
            raise Failed(f"an archive holds more than {MOST_ENTRIES} entries")
        name = self._inside(entry.name)
        if name == "/":
            return
        if entry.kind == "device":
            self.devices += 1
            return
        meta = Meta(
            entry.mode if self.mode is None else self.mode,
            self.owner or Owner(entry.uid, entry.gid),
            (entry.mtime_ns, entry.mtime_ns),
        )
        with self._find(name, last=entry.kind == "folder") as place:
            if entry.kind == "folder":
                _folder(place, meta)
            elif place.name == ".":
                raise Failed(f"the archive has {entry.name[:200]!r} in the place of a folder")
            elif entry.kind == "file":
                self._file(place, entry, meta)
            elif entry.kind == "link":
                build_files.make_link(place.folder, place.name, entry.target, meta)
            elif entry.kind == "hard link":
                self._hard_link(place, entry)
            else:
                build_files.make_pipe(place.folder, place.name, meta)

    def _find(self, name: str, *, last: bool = False, makes: bool = True) -> build_files.Place:
        make = (self.owner or Owner()) if makes else None
        return self.tree.find(f"{self.target.rstrip('/')}{name}", make=make, follow=self.follow, last=last)

    @staticmethod
    def _inside(name: str) -> str:
        """Return an entry's name from its root on. Raises Failed for one that would lead out."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise Failed(f"an archive names {name[:200]!r}, which lies outside of it")
        return "/" + "/".join(parts)

    def _file(self, place: build_files.Place, entry: layer_tar.Entry, meta: Meta) -> None:
        with build_files.new_file(place.folder, place.name, meta, attributes=entry.xattrs) as file:
            while data := self.reader.read(_PIECE_BYTES):
                self.look()
                build_files.write_all(file, data)

    def _hard_link(self, place: build_files.Place, entry: layer_tar.Entry) -> None:
        with self._find(self._inside(entry.target), makes=False) as other:
            if not other.is_file or other.status is None:
                raise Failed(
                    f"the archive links {entry.name[:200]!r} to {entry.target[:200]!r}, which is no file of it"
                )
            if place.status is not None and os.path.samestat(other.status, place.status):
                return
            build_files.clear(place.folder, place.name)
            os.link(other.name, place.name, src_dir_fd=other.folder, dst_dir_fd=place.folder, follow_symlinks=False)


def _folder(place: build_files.Place, meta: Meta) -> None:
    if place.name == ".":
        build_files.give(place.folder, meta)
        return
    if place.status is not None:
        build_files.clear(place.folder, place.name)
    build_files.make_folder(place.folder, place.name, meta)


# --- what the context leaves out -------------------------------------------------------------------------------------


def drop_hidden(tree: Tree, dockerfile_name: str) -> None:
    """Take the Dockerfile and `.dockerignore` away when the latter says so: they are sent for the builder's own use. Raises Failed."""
    text = tree.read(".dockerignore", most_bytes=_LARGEST_IGNORE_BYTES)
    if text is None:
        return
    rules = [rule for line in text.decode("utf-8-sig", "replace").splitlines() for rule in _rule(line)]
    for path in (".dockerignore", dockerfile_name):
        parts = build_files.normal(path).strip("/").split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        hits = [readmits for readmits, matches in rules if any(map(matches, above))]
        if hits and not hits[-1]:
            with tree.find(path, follow=False, last=False) as place:
                if place.status is not None and not place.is_folder:
                    build_files.clear(place.folder, place.name)


def _rule(line: str) -> Iterator[tuple[bool, Callable[[str], bool]]]:
    pattern = line.strip()
    if not pattern or line.startswith("#"):
        return
    readmits = pattern.startswith("!")
    pattern = posixpath.normpath(pattern.removeprefix("!").strip()).lstrip("/")
    yield readmits, build_expand.matcher(pattern, deep=True)
