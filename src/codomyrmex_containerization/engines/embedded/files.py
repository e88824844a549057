"""What is in a container's file system, and how do files get in and out of it?"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import file_places, file_trees, file_unpack, layer_tar, layers
from codomyrmex_containerization.engines.embedded.file_trees import changes, size
from codomyrmex_containerization.models.container import MountPoint
from codomyrmex_containerization.models.details import PathStat

__all__ = ["Tree", "changes", "size"]

_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 512
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BUSY = (errno.EROFS, errno.EBUSY, errno.ETXTBSY)
_ELSEWHERE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
T = TypeVar("T")


class Tree:
    """A container's file system as this host sees it.

    Of one that runs, `root` is its first process's, with all that is mounted there; of one that does not, what its layers make
    together, with `mounts` of volumes and host folders on top.
    """

    def __init__(self, root: Path, *, mounts: Sequence[MountPoint] = (), read_only: bool = False) -> None:
        self._root = root
        self._mounts = mounts
        self._read_only = read_only

    def stat(self, path: str) -> PathStat:
        """Look at a path; a link's target is the path that it leads to. Raises NotFound, InvalidArgument."""
        with _said(f"looking at {path}", no_folder=errors.InvalidArgument), self._view() as view:
            with view.find(path, follow=False) as place:
                if place.status is None:
                    raise file_places.failure(errno.ENOENT, path)
                size_bytes = place.status.st_size if stat.S_ISREG(place.status.st_mode) else 0
                is_folder, name, here = place.is_folder, place.name or "/", place.path
                if not place.is_link or place.held is None:
                    return PathStat(name, size_bytes, is_folder, "")
                text = os.readlink("", dir_fd=place.held)
            try:
                with view.find(here) as behind:
                    return PathStat(name, size_bytes, is_folder, behind.path)
            except FileNotFoundError:  # it leads to nothing
                target = posixpath.normpath(posixpath.join(posixpath.dirname(here), text))
                return PathStat(name, size_bytes, is_folder, "/" + target.lstrip("/"))

    def read(self, path: str, sink: Callable[[Iterator[bytes]], T]) -> T:
        """Give a path as a tar, named from the path's last part on, to `sink`; return what it returns.

        A link is sent as a link, but followed when the path ends in a slash. Sockets are left out. Raises NotFound, InvalidArgument,
        Conflict (changed meanwhile), and what `sink` raises.
        """
        with ExitStack() as stack:
            with _said(f"copying {path}"):
                view = stack.enter_context(self._view())
                place = stack.enter_context(view.find(path, follow=False))
                _require_copyable(place, path)
            pieces = _Packing(view, f"copying {path}").pieces(place, _top_name(path, place))
            stack.callback(pieces.close)
            return sink(pieces)

    def write(self, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        """Unpack a tar, packed or not, into a folder. Owners, modes and times are the tar's.

        Raises NotFound (no such folder), Conflict (read-only, or a file and a folder of one name meet), InvalidArgument (damaged, or
        it would lead out), EngineUnavailable (no space), and what `source` raises.
        """
        what = f"copying to {folder}"
        with ExitStack() as stack:
            with _said(what):
                view = stack.enter_context(self._view())
                top = _require_writable_folder(view, folder)
            sent = file_unpack.Sent(source())
            stack.callback(sent.close)
            try:
                with _said(what):
                    file_unpack.Unpacking(view, top, sent).run()
            except BaseException as error:
                if sent.failure is not None:
                    raise sent.failure from None
                raise error

    def _view(self) -> file_places.View:
        try:
            return file_places.View(self._root, mounts=self._mounts, read_only=self._read_only)
        except OSError as error:
            raise errors.Conflict(
                f"The container's file system is gone: {error.strerror or error}.",
                hint="the container ended or was removed meanwhile; try again",
            ) from error


def _require_copyable(place: file_places.Place, path: str) -> None:
    if place.status is None or place.held is None:
        raise file_places.failure(errno.ENOENT, path)
    if not place.is_folder and file_places.is_kernels(place.held):
        raise errors.InvalidArgument(
            f"{path} is the kernel's own, no file that can be copied.", hint="read it with a command in the container"
        )
    if stat.S_ISSOCK(place.status.st_mode):
        raise errors.InvalidArgument(f"{path} is a socket, no file that can be copied.", hint="name a file or folder")


def _require_writable_folder(view: file_places.View, folder: str) -> str:
    with view.find(f"{folder}/.") as place:
        if place.held is None or not place.is_folder:
            raise file_places.failure(errno.ENOENT, folder)
        file_places.require_writable(file_places.Folder(place.held, place.read_only), folder)
        if os.fstatvfs(place.held).f_flag & os.ST_RDONLY:
            raise file_places.failure(errno.EROFS, folder)
        return place.path


def _top_name(path: str, place: file_places.Place) -> str:
    if path.endswith("/."):
        return "."
    last = posixpath.basename(path.rstrip("/"))
    return last if last not in ("", ".", "..") else place.name or "."


# -------------------------------------------------------------------------------------------------------------- packing


class _Packing:
    """Makes a tar of what is there, from what is held open."""

    def __init__(self, view: file_places.View, what: str) -> None:
        self._view = view
        self._what = what
        self._seen: dict[tuple[int, int], str] = {}

    def pieces(self, place: file_places.Place, name: str) -> Generator[bytes, None, None]:
        with _said(self._what):
            if place.held is not None:
                yield from self._one(place.held, place.path, name, 0)
            yield layer_tar.END

    def _one(self, held: int, path: str, name: str, device: int) -> Iterator[bytes]:
        found = os.fstat(held)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            yield from self._folder(held, path, name, found, device)
            return
        if kind == stat.S_IFSOCK:
            return
        first = self._seen.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
        if first is not None:
            yield layer_tar.header(_entry(name, "hard link", found, target=first))
            return
        if found.st_nlink > 1:
            self._seen[found.st_dev, found.st_ino] = name
        if kind == stat.S_IFREG:
            yield from self._file(held, path, name)
        elif kind == stat.S_IFLNK:
            yield layer_tar.header(_entry(name, "link", found, target=os.readlink("", dir_fd=held)))
        elif kind == stat.S_IFIFO:
            yield layer_tar.header(_entry(name, "fifo", found))
        else:
            yield _device(name, found)

    def _folder(self, held: int, path: str, name: str, found: os.stat_result, device: int) -> Iterator[bytes]:
        descriptor = os.open(file_places.own_path(held), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield layer_tar.header(_entry(name, "folder", found, xattrs=_attributes(descriptor)))
            if found.st_dev != device and file_places.is_kernels(descriptor):
                return
            if path.count("/") > file_trees.DEEPEST:
                raise file_places.failure(errno.ENAMETOOLONG, path)
            folder = file_places.Folder(descriptor, read_only=True)
            for one in sorted(os.listdir(descriptor), key=os.fsencode):
                inner = f"{path.rstrip('/')}/{one}"
                try:
                    child, _ = self._view.open_child(folder, inner, one)
                except FileNotFoundError:
                    if inner in self._view.mounts:
                        raise
                    continue  # a process of the container took it away
                try:
                    yield from self._one(child, inner, posixpath.join(name, one), found.st_dev)
                finally:
                    os.close(child)
        finally:
            os.close(descriptor)

    def _file(self, held: int, path: str, name: str) -> Iterator[bytes]:
        file = os.open(file_places.own_path(held), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            left = found.st_size
            piece = os.read(file, min(left, _PIECE_BYTES)) if left else b""
            if left <= _PIECE_BYTES:  # whatever it was when it was looked at, this is what it is now
                left = len(piece)
            yield layer_tar.header(_entry(name, "file", found, size_bytes=left, xattrs=_attributes(file)))
            padding = bytes(-left % _BLOCK_BYTES)
            while left:
                if not piece:
                    raise errors.Conflict(
                        f"{path} became shorter while it was read.",
                        hint="pause or stop the container, then try again",
                    )
                yield piece
                left -= len(piece)
                piece = os.read(file, min(left, _PIECE_BYTES)) if left else b""
            if padding:
                yield padding
        finally:
            os.close(file)


def _entry(
    name: str,
    kind: layer_tar.Kind,
    found: os.stat_result,
    *,
    size_bytes: int = 0,
    target: str = "",
    xattrs: Mapping[str, bytes] | None = None,
) -> layer_tar.Entry:
    return layer_tar.Entry(
        name=name,
        kind=kind,
        size_bytes=size_bytes,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        target=target,
        xattrs=xattrs or {},
    )


def _device(name: str, found: os.stat_result) -> bytes:
    header = tarfile.TarInfo(name)
    header.type = tarfile.CHRTYPE if stat.S_ISCHR(found.st_mode) else tarfile.BLKTYPE
    header.mode, header.uid, header.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
    header.mtime = int(found.st_mtime)
    header.devmajor, header.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _attributes(file: int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(file, name) for name in sorted(os.listxattr(file)) if layers.is_kept(name)}
    except OSError:  # this file system has none
        return {}


@contextmanager
def _said(what: str, *, no_folder: type[errors.ContainerizationError] = errors.NotFound) -> Iterator[None]:
    """Turn an error of the file system into one of ours."""
    try:
        yield
    except OSError as error:
        said = f"The engine failed while {what}: {error.strerror or error}."
        number = error.errno
        if number in _BUSY:
            raise errors.Conflict(
                f"{said[:-1]} (marked read-only or in use).",
                hint="that place is read-only: copy to one of the container's writable folders or mounts",
            ) from error
        if number in _FULL:
            raise errors.EngineUnavailable(said, hint="free space, then try again") from error
        if number in _ELSEWHERE:
            raise errors.EngineUnavailable(said, hint="the host is short of something; try again later") from error
        if number == errno.ENOENT or number == errno.ENOTDIR:
            kind = no_folder if number == errno.ENOTDIR else errors.NotFound
            raise kind(said, hint="check the path inside the container") from error
        raise errors.InvalidArgument(said, hint="mend the path that the message names") from error
