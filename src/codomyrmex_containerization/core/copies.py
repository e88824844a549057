"""How do files go into and out of containers, with nothing leaving the folder that was named?

What comes out of a container is a tar that its processes may have shaped: every entry is made relative to an open folder, no link is ever
followed. An absolute name or `..` ends the copy; devices, pipes and links that lead out are left out and named.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import IO, Literal, Self

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.core import build_context
from codomyrmex_containerization.engines import base

_CHUNK_BYTES = 1024 * 1024
_ZEROS = bytes(_CHUNK_BYTES)
_BLOCK = 512
_MOST_ENTRIES = 1_000_000
_MOST_NAMED = 200
_LONGEST_HEADER_BYTES = 1024 * 1024
_LONG_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# What reading a damaged archive raises: the library checks few of the numbers that a header holds.
_BROKEN = (tarfile.TarError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, EOFError)
_NO_RULES = build_context.IgnoreRules()
# Only passing through a folder needs no right to read it.
_PASSING = getattr(os, "O_PATH", os.O_RDONLY)


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, and where to."""

    files: int
    bytes: int
    target: str
    skipped: tuple[str, ...] = ()


async def copy_in(engine: base.Engine, container: str, source: Path, target: str, *, contents: bool = False) -> Copied:
    """Copy a host file or folder (resolved and judged already) into a container; it belongs to root there.

    A target that is a folder there receives the source under its own name (with `contents`: what the source holds), else the
    source is given the target's name. A folder that is there keeps its owner and mode. When the copy fails or is stopped, what
    was unpacked until then stays. Raises NotFound (the target's folder), Conflict (read-only, a folder in a file's way).
    """
    held = _open_source(source)
    try:
        found = os.fstat(held)
        is_folder = stat.S_ISDIR(found.st_mode)
        if not is_folder and not stat.S_ISREG(found.st_mode):
            raise errors.InvalidArgument(f"{source} is neither a file nor a folder.", hint="copy files or folders")
        place = await _place(engine, container, source.name, target, contents=contents and is_folder)
        path = posixpath.join(place.folder, place.name)
        if place.there == ("file" if is_folder else "folder"):
            raise errors.Conflict(
                f"{path} in the container is a {place.there} already, and {source} is none.", hint="name another target"
            )
        if not is_folder:
            await engine.write_archive(container, place.folder, lambda: _file_tar(held, place.name))
            return Copied(1, found.st_size, path)
        # The folder itself stays open: what is put in its place meanwhile is not copied.
        top = Path(f"/proc/self/fd/{held}") if os.path.isdir("/proc/self/fd") else source
        size = await threads.run(
            lambda: build_context.measure(top, _NO_RULES, limit_entries=_MOST_ENTRIES),
            deadline_seconds=None,
            what=f"looking through {source}",
        )
        if not size.complete:
            raise errors.Refused(f"{source} has more than {_MOST_ENTRIES:,} entries.", hint="copy a smaller folder")
        if place.there == "nothing":
            await engine.write_archive(container, place.folder, lambda: _entry_tar(place.name, found))
        await engine.write_archive(container, path, lambda: _folder_tar(top))
        return Copied(size.files, size.bytes, path)
    finally:
        os.close(held)


async def copy_out(engine: base.Engine, container: str, source: str, into: Path) -> Copied:
    """Copy a path out of a container so that it becomes `into` on the host (resolved and judged already).

    A link is followed inside the container. When the copy fails or is stopped, the files that were complete stay and the one
    that was being written is removed; the error says how many stay.
    Raises NotFound, Refused (a hostile archive), Conflict (a folder in the way of a file, or the other way round).
    """
    path = posixpath.normpath(posixpath.join("/", source))
    path = (await engine.stat_path(container, path)).link_target or path
    if path in ("/", "//"):
        raise errors.InvalidArgument("The whole file system of a container is not copied.", hint="name a folder of it")
    unpacking = _Unpacking(into)
    try:
        return await engine.read_archive(container, path, unpacking.run)
    except errors.ContainerizationError as error:
        if not unpacking.files:
            raise
        left = f"{unpacking.files:,} files had been copied to {into} before; they stay there."
        raise type(error)(f"{error.message} {left}", hint=error.hint, details=error.details) from error


def unpack(pieces: Iterator[bytes], into: Path) -> Copied:
    """Unpack a tar with one entry at its top, which becomes `into`. Raises Refused for an entry that leads out."""
    return _Unpacking(into).run(pieces)


class _Unpacking:
    """One archive on its way to a folder of this host; the files that are complete are counted."""

    def __init__(self, into: Path) -> None:
        self._into = into
        self._parent = -1
        self._folder: tuple[list[str], int] = ([], -1)
        self.files = 0
        self.bytes = 0
        self.skipped: list[str] = []

    def run(self, pieces: Iterator[bytes]) -> Copied:
        """Unpack. Errors of `pieces` are raised as they are."""
        reader = _Pieces(pieces)
        self._parent = _open_path(self._into.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._all(reader)
        except _BROKEN as error:
            if reader.failure is not None:
                raise reader.failure from error
            raise errors.EngineUnavailable(
                "The engine's archive broke off or is damaged.", hint="copy again"
            ) from error
        finally:
            for one in (self._parent, self._folder[1]):
                if one >= 0:
                    os.close(one)
        return Copied(self.files, self.bytes, str(self._into), tuple(self.skipped))

    def _all(self, reader: _Pieces) -> None:
        buffered = io.BufferedReader(reader, _CHUNK_BYTES)
        with tarfile.open(fileobj=buffered, mode="r|", bufsize=_CHUNK_BYTES, tarinfo=_Entry, errorlevel=1) as archive:
            count = 0
            while (entry := archive.next()) is not None:
                # The library would remember every entry of the archive.
                archive.members.clear()  # type: ignore[attr-defined]  # not in the library's stubs
                count += 1
                if count > _MOST_ENTRIES:
                    raise errors.Refused(
                        f"The archive has more than {_MOST_ENTRIES:,} entries.", hint="copy a smaller folder"
                    )
                parts = _inside(entry.name, self._into.name)
                if _is_left_out(entry, parts):
                    self._skip(parts)
                else:
                    self._write(archive, entry, parts)

    def _write(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, parts: list[str]) -> None:
        content = archive.extractfile(entry) if entry.isfile() else None
        try:
            if entry.isdir():
                self._open_folder(parts, mode=entry.mode)
                return
            folder, name = self._open_folder(parts[:-1]), parts[-1]
            if entry.issym():
                _replace(name, folder, lambda part: os.symlink(entry.linkname, part, dir_fd=folder))
            elif entry.islnk():
                self._hard_link(entry, parts, folder)
            elif content is not None:
                _replace(name, folder, lambda part: _write_file(content, entry, part, folder))
                self.bytes += entry.size
            self.files += 1
        except _Unwritable as error:
            problem = error.problem
            raise errors.Conflict(
                f"{_shown('/'.join(parts))} cannot be written: {problem.strerror or 'failed'}.",
                hint="check the target folder, or copy to another one",
            ) from problem

    def _hard_link(self, entry: tarfile.TarInfo, parts: list[str], folder: int) -> None:
        source = _inside(entry.linkname, parts[0])
        held = os.dup(folder)
        try:
            origin = self._open_folder(source[:-1])
            with _writing():
                found = os.stat(source[-1], dir_fd=origin, follow_symlinks=False)
            # A symbolic link that is harmless where it is may lead out from another place.
            if not stat.S_ISREG(found.st_mode):
                raise _hostile(entry.name)
            link = partial(os.link, source[-1], src_dir_fd=origin, dst_dir_fd=held, follow_symlinks=False)
            _replace(parts[-1], held, link)
        finally:
            os.close(held)

    def _open_folder(self, parts: list[str], *, mode: int | None = None) -> int:
        """Open a folder below the target, made where it is not there yet; no link is followed. It stays open for the next."""
        known, held = self._folder
        if known == parts and held >= 0:
            return held
        now = os.dup(self._parent)
        try:
            for depth, part in enumerate(parts, start=1):
                below = _enter(part, now, mode if depth == len(parts) else None)
                if below is None:
                    raise _in_the_way(part, now, "/".join(parts[:depth]))
                os.close(now)
                now = below
        except BaseException:
            os.close(now)
            raise
        if held >= 0:
            os.close(held)
        self._folder = (parts, now)
        return now

    def _skip(self, parts: list[str]) -> None:
        if len(self.skipped) < _MOST_NAMED:
            self.skipped.append(_shown("/".join(parts)))
        elif len(self.skipped) == _MOST_NAMED:
            self.skipped.append("and more")


class _Unwritable(Exception):
    """This host did not let an entry be written; kept apart from what the engine's connection raises."""

    def __init__(self, problem: OSError) -> None:
        super().__init__(problem)
        self.problem = problem


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise _Unwritable(problem) from problem


class _Entry(tarfile.TarInfo):
    """A header that is not believed: one that is damaged ends the copy with an error, not as if it were the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < _BLOCK:
            raise tarfile.ReadError("the archive has no end")
        try:
            made = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError("a header is damaged") from error
            raise
        if made.size < 0 or (made.type in _LONG_HEADERS and made.size > _LONGEST_HEADER_BYTES):
            raise tarfile.ReadError("a header's size is not possible")
        return made


def _inside(name: str, top: str) -> list[str]:
    """Return the parts of an entry's path under the folder of the target, the archive's own top name replaced."""
    if name.startswith("/") or "\0" in name:
        raise _hostile(name)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _hostile(name)
    return [top, *parts[1:]]


def _is_left_out(entry: tarfile.TarInfo, parts: list[str]) -> bool:
    """Say whether an entry is a device, a pipe, a sparse file, or a symbolic link that may lead out of what is copied."""
    if not entry.issym():
        return entry.issparse() or not (entry.isfile() or entry.isdir() or entry.islnk())
    if entry.linkname.startswith("/") or "\0" in entry.linkname:
        return True
    steps = [part for part in entry.linkname.split("/") if part not in ("", ".")]
    up = len(list(takewhile(lambda part: part == "..", steps)))
    # `..` behind a name would go up from wherever another link leads.
    return ".." in steps[up:] or up > len(parts) - 2


def _enter(name: str, parent: int, mode: int | None) -> int | None:
    """Open a folder, made when it is not there; None when something else is in its place."""
    made = False
    with _writing(), suppress(FileExistsError):
        os.mkdir(name, 0o700 if mode is not None else 0o755, dir_fd=parent)
        made = True
    try:
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as problem:
        if problem.errno in (errno.ENOTDIR, errno.ELOOP):
            return None
        raise _Unwritable(problem) from problem
    if made and mode is not None:
        with suppress(OSError):
            # Its owner, who unpacks, must be able to write into it; setuid, setgid and sticky bits stay behind.
            os.fchmod(folder, (mode & 0o777) | 0o700)
    return folder


def _replace(name: str, folder: int, make: Callable[[str], None]) -> None:
    """Have something made under another name and put it in its place when it is complete. A folder is not replaced."""
    part = f".{secrets.token_hex(6)}.part"
    try:
        with _writing():
            make(part)
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            # Two names of one file: to rename one to the other does nothing.
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise


def _write_file(content: IO[bytes], entry: tarfile.TarInfo, name: str, folder: int) -> None:
    file = _open_unnamed(folder)
    is_named = file < 0
    if is_named:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        while chunk := _read(content):
            if chunk == _ZEROS:
                os.lseek(file, len(chunk), os.SEEK_CUR)
                continue
            left = memoryview(chunk)
            while left:
                left = left[os.write(file, left) :]
        os.ftruncate(file, os.lseek(file, 0, os.SEEK_CUR))
        # setuid, setgid and sticky bits stay behind.
        os.fchmod(file, entry.mode & 0o777)
        with suppress(OverflowError, ValueError, OSError):
            os.utime(file, (entry.mtime, entry.mtime))
        if not is_named:
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(file)


def _open_unnamed(folder: int) -> int:
    """Open a file that has no name until it is complete, so that a `kill -9` leaves nothing; -1 where there is no such thing."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.isdir("/proc/self/fd"):
        return -1
    try:
        return os.open(".", flag | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError:
        return -1


def _read(content: IO[bytes]) -> bytes:
    try:
        return content.read(_CHUNK_BYTES)
    except OSError as problem:
        # Of the engine's connection, not of this host's disk.
        raise tarfile.ReadError("the archive broke off") from problem


def _in_the_way(name: str, parent: int, path: str) -> errors.ContainerizationError:
    with suppress(OSError):
        if not stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return errors.Conflict(
                f"{_shown(path)} is there already and is no folder.", hint="move it away, or name another target"
            )
    return _hostile(path)


def _hostile(name: str) -> errors.Refused:
    return errors.Refused(
        f"The archive holds {name[:160]!r}, which leads out of the target or through a link.",
        hint="nothing of that entry was written; copy the files that are needed one by one",
    )


def _shown(name: str) -> str:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-90:]}"


def _open_path(path: Path, flags: int) -> int:
    """Open a path whose links were resolved before, so that a link that was put in since then is not followed."""
    now = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for depth, part in enumerate(path.parts[1:], start=2):
            last = depth == len(path.parts)
            how = flags if last else _PASSING | os.O_DIRECTORY
            below = os.open(part, how | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=now)
            os.close(now)
            now = below
    except OSError as problem:
        os.close(now)
        raise errors.Conflict(
            f"{path} cannot be opened: {problem.strerror or 'failed'}.",
            hint="check that it is there and who may use it, then copy again",
        ) from problem
    return now


def _open_source(path: Path) -> int:
    # Without O_NONBLOCK a pipe put in its place would hang the copy.
    return _open_path(path, os.O_RDONLY | os.O_NONBLOCK)


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder inside a container, a name in it and what is there already."""

    folder: str
    name: str
    there: Literal["nothing", "file", "folder"]


async def _place(engine: base.Engine, container: str, name: str, target: str, *, contents: bool) -> _Place:
    path = posixpath.normpath(posixpath.join("/", target))
    try:
        found = await engine.stat_path(container, path)
        if found.link_target:
            path = found.link_target
            found = await engine.stat_path(container, path)
    except errors.NotFound:
        if target.endswith("/"):
            raise
        return _Place(posixpath.dirname(path), posixpath.basename(path), "nothing")
    if found.is_folder and not contents:
        return _Place(path, name, await _there(engine, container, posixpath.join(path, name)))
    if target.endswith("/") and not found.is_folder:
        raise errors.Conflict(f"{path} is no folder in the container.", hint="leave the slash at its end out")
    return _Place(posixpath.dirname(path), posixpath.basename(path), "folder" if found.is_folder else "file")


async def _there(engine: base.Engine, container: str, path: str) -> Literal["nothing", "file", "folder"]:
    try:
        found = await engine.stat_path(container, path)
    except errors.NotFound:
        return "nothing"
    return "folder" if found.is_folder else "file"


def _entry_tar(name: str, found: os.stat_result) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    yield b"\0" * (2 * _BLOCK)


def _folder_tar(folder: Path) -> Iterator[bytes]:
    try:
        yield from build_context.stream_all(folder)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(
            error.message.replace(" in the build context", ""), hint="make it readable, or copy the others one by one"
        ) from error


def _file_tar(file: int, name: str) -> Iterator[bytes]:
    found = os.fstat(file)
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime)
    yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    at = 0
    while at < info.size:
        chunk = os.pread(file, min(_CHUNK_BYTES, info.size - at), at)
        if not chunk:
            raise errors.Conflict(
                f"{name} became shorter while it was copied.", hint="copy it when nobody writes to it"
            )
        at += len(chunk)
        yield chunk
    yield b"\0" * (-info.size % _BLOCK) + b"\0" * (2 * _BLOCK)


class _Pieces(io.RawIOBase):
    """Reads an iterator of bytes as a file; keeps what the iterator raised."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # whatever the buffered reader lends
        while not self._rest:
            try:
                piece = next(self._pieces, None)
            except Exception as error:  # whatever the connection raised is raised again once the archive is given up
                self.failure = error
                raise tarfile.ReadError("the archive broke off") from error
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
