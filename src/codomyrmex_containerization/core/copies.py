"""How do files go into and out of containers, with nothing leaving the folder that was named?

What comes out of a container is a tar that its processes may have shaped: every entry is made relative to an open folder, no link is ever
followed. An absolute name or `..` ends the copy; devices, pipes and links that lead out are left out and named.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import build_context
from codomyrmex_containerization.engines import base

_CHUNK_BYTES = 1024 * 1024
_BLOCK = 512
_MOST_ENTRIES = 1_000_000
_NO_RULES = build_context.IgnoreRules()


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, and where to."""

    files: int
    bytes: int
    target: str
    skipped: tuple[str, ...] = ()


async def copy_in(engine: base.Engine, container: str, source: Path, target: str) -> Copied:
    """Copy a host file or folder (resolved and judged already) into a container; it belongs to root there.

    A target that is a folder there receives the source under its own name, else the source is given the target's name.
    Raises NotFound (the target's folder), Conflict (read-only).
    """
    folder, name = await _place(engine, container, source.name, target)
    if source.is_dir():
        size = build_context.measure(source, _NO_RULES)
        await engine.write_archive(container, folder, lambda: _entry_tar(name, source.stat().st_mode))
        await engine.write_archive(
            container, posixpath.join(folder, name), lambda: build_context.stream(source, ignore=_NO_RULES)
        )
        return Copied(size.files, size.bytes, posixpath.join(folder, name))
    if not source.is_file():
        raise errors.InvalidArgument(f"{source} is neither a file nor a folder.", hint="copy files or folders")
    await engine.write_archive(container, folder, lambda: _file_tar(source, name))
    return Copied(1, source.stat().st_size, posixpath.join(folder, name))


async def copy_out(engine: base.Engine, container: str, source: str, into: Path) -> Copied:
    """Copy a path out of a container so that it becomes `into` on the host (resolved and judged already).

    Raises NotFound, Refused (a hostile archive), Conflict (a folder in the way of a file, or the other way round).
    """
    found = await engine.stat_path(container, source)
    path = found.link_target or source
    return await engine.read_archive(container, path, lambda pieces: unpack(pieces, into))


def unpack(pieces: Iterator[bytes], into: Path) -> Copied:
    """Unpack a tar with one entry at its top, which becomes `into`. Raises Refused for an entry that leads out."""
    reader = io.BufferedReader(_Pieces(pieces), _CHUNK_BYTES)
    files = size = 0
    skipped: list[str] = []
    parent = os.open(into.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tarfile.open(fileobj=reader, mode="r|", errorlevel=1) as archive:
            for count, entry in enumerate(archive):
                if count >= _MOST_ENTRIES:
                    raise errors.Refused("The archive has more than a million entries.", hint="copy a smaller folder")
                parts = _inside(entry.name, into.name)
                if _leads_out(entry, parts):
                    skipped.append("/".join(parts))
                    continue
                written = _write(archive, entry, parts, parent)
                files += written >= 0
                size += max(written, 0)
    except tarfile.TarError as error:
        raise errors.EngineUnavailable("The engine's archive broke off.", hint="copy again") from error
    finally:
        os.close(parent)
    return Copied(files, size, str(into), tuple(skipped))


def _inside(name: str, top: str) -> list[str]:
    """Return the parts of an entry's path under the folder of the target, the archive's own top name replaced."""
    if name.startswith("/") or "\0" in name:
        raise _hostile(name)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _hostile(name)
    return [top, *parts[1:]]


def _write(archive: tarfile.TarFile, entry: tarfile.TarInfo, parts: list[str], parent: int) -> int:
    """Write an entry; return a file's bytes, -1 for what is no file."""
    folder = _open_folder(parts[:-1], parent)
    name = parts[-1]
    try:
        if entry.isdir():
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=folder)
            # A link where a folder is expected is not followed.
            os.close(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder))
            return -1
        if entry.issym():
            _remove_file(name, folder)
            os.symlink(entry.linkname, name, dir_fd=folder)
            return -1
        if entry.islnk():
            return _write_hard_link(entry, parts, parent, folder, name)
        return _write_file(archive, entry, name, folder)
    except (NotADirectoryError, OSError) as error:
        raise errors.Conflict(
            f"{'/'.join(parts)} cannot be written: {error.strerror or 'failed'}.", hint="check the target folder"
        ) from error
    finally:
        os.close(folder)


def _write_file(archive: tarfile.TarFile, entry: tarfile.TarInfo, name: str, folder: int) -> int:
    content = archive.extractfile(entry)
    _remove_file(name, folder)
    # setuid, setgid and sticky bits stay behind.
    mode = entry.mode & 0o777
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
    written = 0
    with os.fdopen(file, "wb", buffering=0) as out:
        while content is not None and (chunk := content.read(_CHUNK_BYTES)):
            out.write(chunk)
            written += len(chunk)
        os.fchmod(out.fileno(), mode)
        os.utime(out.fileno(), (entry.mtime, entry.mtime))
    return written


def _write_hard_link(entry: tarfile.TarInfo, parts: list[str], parent: int, folder: int, name: str) -> int:
    source = _inside(entry.linkname, parts[0])
    held = _open_folder(source[:-1], parent)
    try:
        _remove_file(name, folder)
        os.link(source[-1], name, src_dir_fd=held, dst_dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(held)
    return 0


def _leads_out(entry: tarfile.TarInfo, parts: list[str]) -> bool:
    """Say whether an entry is a device or pipe, or a symbolic link that leads out of what is copied."""
    if not entry.issym():
        return not (entry.isfile() or entry.isdir() or entry.islnk())
    if entry.linkname.startswith("/"):
        return True
    landed = posixpath.normpath(posixpath.join("/".join(parts[:-1]), entry.linkname))
    return landed.split("/")[0] != parts[0]


def _open_folder(parts: list[str], parent: int) -> int:
    now = os.dup(parent)
    for part in parts:
        with suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=now)
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=now)
        except OSError as error:
            raise _hostile("/".join(parts)) from error
        finally:
            os.close(now)
        now = below
    return now


def _remove_file(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)


def _hostile(name: str) -> errors.Refused:
    return errors.Refused(
        f"The archive holds {name[:160]!r}, which leads out of the target.",
        hint="nothing of that entry was written; copy the files that are needed one by one",
    )


async def _place(engine: base.Engine, container: str, name: str, target: str) -> tuple[str, str]:
    """Return the folder inside the container and the name there."""
    path = posixpath.normpath(posixpath.join("/", target))
    try:
        found = await engine.stat_path(container, path)
    except errors.NotFound:
        if target.endswith("/"):
            raise
        return posixpath.dirname(path), posixpath.basename(path)
    if found.link_target:
        path = found.link_target
        found = await engine.stat_path(container, path)
    return (path, name) if found.is_folder else (posixpath.dirname(path), posixpath.basename(path))


def _entry_tar(name: str, mode: int) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = stat.S_IMODE(mode)
    yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    yield b"\0" * (2 * _BLOCK)


def _file_tar(source: Path, name: str) -> Iterator[bytes]:
    with source.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime)
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        left = found.st_size
        while left > 0:
            chunk = file.read(min(_CHUNK_BYTES, left)) or b"\0" * min(_CHUNK_BYTES, left)
            left -= len(chunk)
            yield chunk
    yield b"\0" * (-found.st_size % _BLOCK) + b"\0" * (2 * _BLOCK)


class _Pieces(io.RawIOBase):
    """Reads an iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # whatever the buffered reader lends
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
