"""How do files go in and out of a tree as a tar, and what does a bad tar do?"""

from __future__ import annotations

import errno
import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.memory import files

_CHUNK_BYTES = 1024 * 1024
_MOST_ENTRIES = 200_000
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tar: its header, and the bytes of a file."""

    header: tarfile.TarInfo
    data: bytes = b""


def read(pieces: Iterator[bytes]) -> list[Entry]:
    """Read a tar (compressed or not). Raises InvalidArgument (damaged), EngineUnavailable (too large), and what `pieces` raises."""
    reader = _Pieces(pieces)
    found: list[Entry] = []
    size = 0
    try:
        with tarfile.open(fileobj=io.BufferedReader(reader, _CHUNK_BYTES), mode="r|*") as archive:
            for header in archive:
                size += header.size
                if size > files.MOST_BYTES or len(found) >= _MOST_ENTRIES:
                    raise errors.EngineUnavailable(
                        "no space left on device: memory holds 256 MiB in a file system.",
                        hint="copy less, or use docker or podman",
                    )
                content = archive.extractfile(header) if header.isfile() else None
                found.append(Entry(header, content.read() if content is not None else b""))
    except (tarfile.TarError, EOFError, ValueError, LookupError) as error:
        if reader.failure is not None:
            raise reader.failure from error
        if (
            isinstance(error, tarfile.ReadError)
            and not found
            and reader.count <= _BLOCK * 20
            and not reader.has_content
        ):
            return []
        raise errors.InvalidArgument("The archive is damaged or is no tar.", hint="send a tar") from error
    for _ in pieces:  # whoever sends is let finish
        pass
    return found


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.count = 0
        self.has_content = False
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # a buffer, as the base class says
        while not self._rest:
            try:
                self._rest = next(self._pieces)
            except StopIteration:
                return 0
            except BaseException as error:
                self.failure = error
                raise
        part = self._rest[: len(view)]
        view[: len(part)] = part
        self._rest = self._rest[len(part) :]
        self.count += len(part)
        self.has_content = self.has_content or any(part)
        return len(part)


def write(view: files.View, path: str) -> list[Entry]:
    """Return the entries of a path, named as the engine's API does: from the path's own name on. Raises OSError."""
    place = view.find(path, follow=path.endswith(("/", "/.")))
    name = "." if path.endswith("/.") else place.name or "."
    found: list[Entry] = []
    seen: dict[int, str] = {}
    for relative, node in view.listing(place.path) if not isinstance(place.node, files.Link) else [("", place.node)]:
        found.append(_entry(posixpath.join(name, relative) if relative else name, node, seen))
    return found


def _entry(name: str, node: files.AnyNode, seen: dict[int, str]) -> Entry:
    header = tarfile.TarInfo(name)
    header.mode, header.uid, header.gid, header.mtime = node.mode & 0o7777, node.uid, node.gid, node.mtime
    data = b""
    if isinstance(node, files.Folder):
        header.type = tarfile.DIRTYPE
    elif isinstance(node, files.Link):
        header.type, header.linkname = tarfile.SYMTYPE, node.target
    elif isinstance(node, files.Device):
        header.type = tarfile.CHRTYPE
    elif id(node) in seen:
        header.type, header.linkname = tarfile.LNKTYPE, seen[id(node)]
    else:
        seen[id(node)] = name
        data = bytes(node.data)
        header.size = len(data)
    return Entry(header, data)


def stream(entries: list[Entry], *, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """Yield the tar of the entries."""
    for entry in entries:
        yield entry.header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        for start in range(0, len(entry.data), _CHUNK_BYTES):
            if stopped():
                raise errors.Cancelled("The copy was stopped.")
            yield entry.data[start : start + _CHUNK_BYTES]
        if len(entry.data) % _BLOCK:
            yield bytes(_BLOCK - len(entry.data) % _BLOCK)
    yield bytes(2 * _BLOCK)


def unpack(view: files.View, folder: str, entries: list[Entry]) -> None:
    """Put the entries below a folder; no name leads out of it, links are followed inside the tree only.

    Raises OSError, InvalidArgument (a name with `..`), Conflict (a file and a folder meet).
    """
    top = view.find(folder).path.rstrip("/")
    for entry in entries:
        parts = [one for one in entry.header.name.split("/") if one not in ("", ".")]
        if ".." in parts:
            raise errors.InvalidArgument(
                "The archive has a name that leads out of its folder.", hint="send another tar"
            )
        if not parts:
            continue
        view.make_folders(f"{top}/{'/'.join(parts[:-1])}", files.ROOT)
        _put(view, view.find(f"{top}/{'/'.join(parts)}", follow=False), entry, top)


def _put(view: files.View, place: files.Place, entry: Entry, top: str) -> None:
    header, there = entry.header, place.node
    is_folder = isinstance(there, files.Folder)
    if there is not None and is_folder != header.isdir():
        if not (header.isdir() and isinstance(there, files.Link) and isinstance(view.get(place.path), files.Folder)):
            kinds = "a directory with a non-directory" if is_folder else "a non-directory with a directory"
            raise errors.Conflict(
                f"memory cannot overwrite {kinds}: {place.path}.",
                hint="a file and a folder of the same name meet: name another target",
            )
        return
    mode, mtime = header.mode & 0o7777, float(header.mtime)
    if header.isdir():
        if isinstance(there, files.Folder):
            view.require_writable(place, files.ROOT)
            there.mode = header.mode & 0o7777
        else:
            view.add(place, files.Folder(mode, header.uid, header.gid, mtime))
        return
    if there is not None:
        view.remove(place)
    if header.issym():
        view.add(place, files.Link(0o777, header.uid, header.gid, mtime, target=header.linkname))
    elif header.islnk():
        node = view.get(f"{top}/{header.linkname}", follow=False)
        if isinstance(node, files.Folder):
            raise files.failure(errno.EPERM, header.linkname)
        view.add(place, node)
    elif header.isfile():
        file = files.File(mode, header.uid, header.gid, mtime)
        view.require_writable(place, files.ROOT)
        place.tree.write(file, 0, entry.data)
        file.data, file.mtime = entry.data, mtime
        view.add(place, file)
