"""What files does an archive of images hold, and how is one of them read? A tar, packed or not, or a folder."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    content_config,
    content_errors,
    content_watch,
    layer_folders,
    layer_streams,
    layer_tar,
    layers,
)

_MOST_MEMBERS = 100_000
_MOST_LINKS = 8
_PIECE_BYTES = 1024 * 1024


class Members(Protocol):
    """The files of an archive, by the names they have in it."""

    def has(self, name: str) -> bool:
        """Say whether there is such a file."""

    def size_bytes(self, name: str) -> int:
        """Return the size of a file. Raises InvalidArgument when there is none."""

    def open(self, name: str) -> Window:
        """Open a file. Raises InvalidArgument when there is none."""


@dataclass(slots=True)
class Window:
    """A part of an open file, read from its beginning to its end."""

    fd: int
    place: int
    left: int
    closes: bool = False

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end."""
        with content_errors.explained("Reading the archive"):
            piece = os.pread(self.fd, min(count, self.left, _PIECE_BYTES), self.place) if self.left else b""
        if self.left and not piece:
            raise layer_tar.damaged("it ends inside of a file")
        self.place += len(piece)
        self.left -= len(piece)
        return piece

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        if self.closes:
            os.close(self.fd)


def read_small(members: Members, name: str) -> bytes:
    """Return all of a small file. Raises InvalidArgument when there is none, or it is not small."""
    if members.size_bytes(name) > content_config.MOST_JSON_BYTES:
        raise content_errors.refused(name, "it is too large for what it is")
    found = b""
    with members.open(name) as window:
        while piece := window.read(_PIECE_BYTES):
            found += piece
    return found


@contextmanager
def opened(
    path: Path, *, scratch: Path, most_bytes: int, watch: content_watch.Watch | None = None
) -> Iterator[Members]:
    """Open an archive, a tar or a folder; one that is packed is unpacked into `scratch` first.

    Raises NotFound, InvalidArgument (neither), EngineUnavailable (cannot be read).
    """
    with source(path) as (fd, is_folder):
        if is_folder:
            yield _Folder(Path(f"/proc/self/fd/{fd}"))
            return
        plain = _plain_file(fd, scratch, most_bytes, watch or content_watch.unwatched())
        with open(plain, "rb", buffering=0) as file:
            yield _Tar.of(file.fileno())


@contextmanager
def source(path: Path) -> Iterator[tuple[int, bool]]:
    """Open a file or a folder that somebody names; yield its descriptor, and whether it is a folder.

    Raises NotFound, InvalidArgument (is neither), EngineUnavailable.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise errors.NotFound(f"There is no {path}.", hint="check the path", details={"missing": "file"}) from error
        raise content_errors.explanation(error, f"Opening {path}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise errors.InvalidArgument(f"{path} is neither a file nor a folder.", hint="name an archive or a folder")
        yield fd, stat.S_ISDIR(mode)
    finally:
        os.close(fd)


def whole(fd: int) -> Window:
    """Return all of an open file as something to read from."""
    return Window(fd, 0, os.fstat(fd).st_size)


def _plain_file(fd: int, scratch: Path, most_bytes: int, watch: content_watch.Watch) -> int:
    """Return the descriptor of a file with the archive as a plain tar, which the caller closes."""
    if not layer_streams.is_packed(layer_streams.plain(whole(fd))):
        return os.dup(fd)
    plain = layer_streams.plain(watch.stream(whole(fd)))
    measured = layer_streams.Measured(plain, most_bytes=most_bytes, what="The archive, unpacked,")
    with content_errors.explained("Unpacking the archive"), tempfile.TemporaryFile(dir=scratch) as file:
        while piece := measured.read(_PIECE_BYTES):
            file.write(piece)
        file.flush()
        watch.has_counted()  # reading the copy is no progress any more
        return os.dup(file.fileno())


# ------------------------------------------------------------------------------------------------------------------ tar


@dataclass(slots=True)
class _Tar:
    fd: int
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, fd: int) -> _Tar:
        """Look at where each file of the tar lies."""
        made = cls(fd)
        window = Window(fd, 0, os.fstat(fd).st_size)

        def skip(count: int) -> None:
            if count > window.left:
                raise layer_tar.damaged("it ends inside of a file")
            window.place += count
            window.left -= count

        reader = layer_tar.Reader(window, skip=skip)
        while (entry := reader.next()) is not None:
            if len(made.files) + len(made.links) >= _MOST_MEMBERS:
                raise errors.InvalidArgument(
                    f"The archive has more than {_MOST_MEMBERS:,} files.", hint="is it an archive of images?"
                )
            name = "/".join(layers.parts_of(entry.name))
            if entry.kind == "file":
                made.files[name] = (reader.place, entry.size_bytes)
            elif entry.kind == "hard link":
                made.links[name] = "/".join(layers.parts_of(entry.target))
            elif entry.kind == "link":
                made.links[name] = os.path.normpath(os.path.join(os.path.dirname(name), entry.target))
        return made

    def _find(self, name: str) -> tuple[int, int] | None:
        # Links between the files of the archive are looked up in the archive, never anywhere else.
        for _ in range(_MOST_LINKS):
            if name in self.files:
                return self.files[name]
            if name not in self.links:
                return None
            name = self.links[name]
        return None

    def has(self, name: str) -> bool:
        """Say whether there is such a file."""
        return self._find(name) is not None

    def size_bytes(self, name: str) -> int:
        """Return the size of a file. Raises InvalidArgument when there is none."""
        return self._found(name)[1]

    def open(self, name: str) -> Window:
        """Open a file. Raises InvalidArgument when there is none."""
        place, size = self._found(name)
        return Window(self.fd, place, size)

    def _found(self, name: str) -> tuple[int, int]:
        found = self._find(name)
        if found is None:
            raise _missing(name)
        return found


# --------------------------------------------------------------------------------------------------------------- folder


@dataclass(frozen=True, slots=True)
class _Folder:
    folder: Path

    def has(self, name: str) -> bool:
        """Say whether there is such a file."""
        try:
            os.close(self._open(name))
        except errors.InvalidArgument:
            return False
        return True

    def size_bytes(self, name: str) -> int:
        """Return the size of a file. Raises InvalidArgument when there is none."""
        fd = self._open(name)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def open(self, name: str) -> Window:
        """Open a file. Raises InvalidArgument when there is none."""
        fd = self._open(name)
        return Window(fd, 0, os.fstat(fd).st_size, closes=True)

    def _open(self, name: str) -> int:
        parts = layers.parts_of(name)
        try:
            with layer_folders.Chain(f"{self.folder}/.") as chain:
                at = chain.open(parts[:-1])
                fd = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise _missing(name) from error
            if error.errno == errno.ELOOP:
                raise content_errors.refused(name, "it is a link") from error
            raise content_errors.explanation(error, "Opening the archive", entry=name) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise content_errors.refused(name, "it is no file")
        return fd


def _missing(name: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"The archive is not whole: it has no {content_errors.shown(name)}.", hint="make or fetch it again"
    )
