"""How does a folder, an overlay's upper or a plain one, become a layer's tar? Sorted, so that equal contents give equal digests."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import content_errors, layer_folders, layer_tar, layers

_PIECE_BYTES = 1024 * 1024
_USUAL_TOP = (0o755, 0, 0)


@dataclass(slots=True)
class Packing:
    """A folder that is being packed; `size_bytes` and `entries` grow meanwhile.

    `prefix` is that of overlay's marks (`layers.overlay_prefix`), which become whiteouts; None says that the folder is no overlay's.
    Devices are refused. Sockets are left out: nobody is behind them.
    """

    folder: Path
    prefix: str | None
    bounds: layers.Bounds = field(default_factory=layers.Bounds)
    left_out: frozenset[str] = frozenset()  # paths, with all in them
    size_bytes: int = 0
    entries: int = 0
    # An ordinary user's files are root's in the container: the user is root there, and nobody else.
    _tells_owners: bool = field(default_factory=lambda: os.geteuid() == 0)
    _device: int = 0
    _seen: dict[tuple[int, int], str] = field(default_factory=dict)

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the tar. Raises Conflict (changed meanwhile), Unsupported (cannot be in a layer), InvalidArgument (too large)."""
        with content_errors.explained("Reading the folder of a layer"):
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._device = os.fstat(fd).st_dev
                yield from self._top(os.fstat(fd))
                if self._is_opaque(fd, ""):
                    yield self._marked("", layers.OPAQUE)
                yield from self._inside(fd, "", 0)
            finally:
                os.close(fd)
        yield layer_tar.END

    def _top(self, found: os.stat_result) -> Iterator[bytes]:
        """Tell of the folder itself only where it is not as a layer's folder is anyway; its time means nothing."""
        top = self._entry("./", "folder", found)
        if self.prefix is not None and (top.mode, top.uid, top.gid) != _USUAL_TOP:
            self._count()
            yield layer_tar.header(dataclasses.replace(top, mtime_ns=0))

    def _inside(self, fd: int, path: str, depth: int) -> Iterator[bytes]:
        if depth > layer_folders.MOST_DEPTH:
            raise errors.InvalidArgument(
                f"{content_errors.shown(path)} lies deeper than {layer_folders.MOST_DEPTH} folders.",
                hint="use fewer folders in folders",
            )
        for name in sorted(os.listdir(fd), key=os.fsencode):
            inner = f"{path}/{name}" if path else name
            if inner not in self.left_out:
                yield from self._one(fd, name, inner, depth)

    def _one(self, at: int, name: str, path: str, depth: int) -> Iterator[bytes]:
        found = layer_folders.look(at, name)
        if found is None:
            raise self._changed(path)
        if name.startswith(layers.WHITEOUT):
            raise errors.Unsupported(
                f"{content_errors.shown(path)} cannot be in a layer: names that begin with .wh. have a meaning there.",
                hint="rename it",
            )
        self._count()
        mode = stat.S_IFMT(found.st_mode)
        if mode == stat.S_IFSOCK:
            return
        if mode in (stat.S_IFCHR, stat.S_IFBLK):
            if not (self.prefix and layer_folders.is_whiteout(found)):
                raise errors.Unsupported(
                    f"{content_errors.shown(path)} is a device, which no layer may hold.", hint="remove it first"
                )
            yield self._marked(path.rpartition("/")[0], layers.WHITEOUT + name)
        elif mode == stat.S_IFDIR:
            yield from self._folder(at, name, path, found, depth)
        elif found.st_nlink > 1 and (found.st_dev, found.st_ino) in self._seen:
            first = self._seen[found.st_dev, found.st_ino]
            yield layer_tar.header(self._entry(path, "hard link", found, target=first))
        else:
            if found.st_nlink > 1:
                self._seen[found.st_dev, found.st_ino] = path
            if mode == stat.S_IFREG:
                yield from self._file(at, name, path, found)
            elif mode == stat.S_IFLNK:
                yield layer_tar.header(self._entry(path, "link", found, target=os.readlink(name, dir_fd=at)))
            else:
                yield layer_tar.header(self._entry(path, "fifo", found))

    def _folder(self, at: int, name: str, path: str, found: os.stat_result, depth: int) -> Iterator[bytes]:
        fd = self._opened(at, name, path, found, os.O_DIRECTORY)
        try:
            yield layer_tar.header(self._entry(path, "folder", found, xattrs=self._xattrs(fd)))
            if self._is_opaque(fd, path):
                yield self._marked(path, layers.OPAQUE)
            if found.st_dev == self._device:  # what is mounted there is no part of the folder
                yield from self._inside(fd, path, depth + 1)
        finally:
            os.close(fd)

    def _file(self, at: int, name: str, path: str, found: os.stat_result) -> Iterator[bytes]:
        fd = self._opened(at, name, path, found, 0)
        try:
            self._refuse_partial(fd, path)
            size = found.st_size
            self.size_bytes += size
            if self.size_bytes > self.bounds.most_bytes:
                raise _too_large(self.bounds.most_bytes)
            yield layer_tar.header(self._entry(path, "file", found, size_bytes=size, xattrs=self._xattrs(fd)))
            left = size
            while left:
                piece = os.read(fd, min(left, _PIECE_BYTES))
                if not piece:
                    raise self._changed(path)
                left -= len(piece)
                yield piece
            if size % layer_tar.BLOCK_BYTES:
                yield bytes(-size % layer_tar.BLOCK_BYTES)
        finally:
            os.close(fd)

    # ----------------------------------------------------------------- details

    def _opened(self, at: int, name: str, path: str, found: os.stat_result, flags: int) -> int:
        """Open what was looked at, and nothing else: a process may put a link or another file there meanwhile."""
        try:
            fd = layer_folders.open_own(at, name, flags)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._changed(path) from error
        except OSError as error:
            raise content_errors.explanation(error, "Packing a layer", entry=path) from error
        now = os.fstat(fd)
        if (now.st_dev, now.st_ino) != (found.st_dev, found.st_ino):
            os.close(fd)
            raise self._changed(path)
        return fd

    def _entry(
        self,
        path: str,
        kind: layer_tar.Kind,
        found: os.stat_result,
        *,
        size_bytes: int = 0,
        target: str = "",
        xattrs: dict[str, bytes] | None = None,
    ) -> layer_tar.Entry:
        return layer_tar.Entry(
            name=path,
            kind=kind,
            size_bytes=size_bytes,
            mode=0o777 if kind == "link" else stat.S_IMODE(found.st_mode),
            uid=found.st_uid if self._tells_owners else 0,
            gid=found.st_gid if self._tells_owners else 0,
            mtime_ns=found.st_mtime_ns,
            target=target,
            xattrs=xattrs or {},
        )

    def _marked(self, folder: str, mark: str) -> bytes:
        self._count()
        return layer_tar.header(layer_tar.Entry(f"{folder}/{mark}" if folder else mark, "file", mode=0o600))

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self.bounds.most_entries:
            raise errors.InvalidArgument(
                f"The layer has more than {self.bounds.most_entries:,} entries.", hint="leave some of the files out"
            )

    def _xattrs(self, fd: int) -> dict[str, bytes]:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if layers.is_kept(name)}

    def _is_opaque(self, fd: int, path: str) -> bool:
        if self.prefix is None:
            return False
        names = os.listxattr(fd)
        if f"{self.prefix}redirect" in names:
            raise self._partial(path)
        name = f"{self.prefix}opaque"
        return name in names and os.getxattr(fd, name) == b"y"

    def _refuse_partial(self, fd: int, path: str) -> None:
        if self.prefix is not None and f"{self.prefix}metacopy" in os.listxattr(fd):
            raise self._partial(path)

    def _partial(self, path: str) -> errors.ContainerizationError:
        return errors.Unsupported(
            f"{content_errors.shown(path)} holds only a part: the overlay was mounted with redirect_dir or metacopy.",
            hint="mount it with redirect_dir=off,metacopy=off",
        )

    def _changed(self, path: str) -> errors.Conflict:
        return errors.Conflict(
            f"{content_errors.shown(path)} changed while it was read.",
            hint="pause or stop the container, then try again",
        )


def _too_large(most_bytes: int) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"The layer holds more than the {most_bytes:,} bytes that are allowed.",
        hint="leave some of the files out",
        details={"limit_bytes": most_bytes},
    )
