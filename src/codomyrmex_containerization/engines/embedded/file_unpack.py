"""How is a tar that nobody vouches for unpacked into a container's folder, while its processes may be at work there?

Each entry is made whole under a name of its own and then takes the place of what was there: nothing is ever written through a link or
into a file that exists.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    content_errors,
    file_places,
    layer_streams,
    layer_tar,
    layers,
)

MOST_ENTRIES = 2_000_000
MOST_BYTES = 64 << 30
_PIECE_BYTES = 1 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OFTEN = 8


class Sent:
    """The bytes that somebody sends, and the error that stopped them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.failure: BaseException | None = None

    def next(self) -> bytes:
        """Return the next piece, nothing at the end."""
        try:
            return next((one for one in self._pieces if one), b"")
        except BaseException as error:
            self.failure = error
            raise

    def drain(self) -> None:
        """Let the sender finish."""
        while self.next():
            pass

    def close(self) -> None:
        """Have a sender that is a generator end."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


class Unpacking:
    """Unpacks a tar below a folder of a view. Raises OSError, InvalidArgument, Conflict (a file and a folder meet)."""

    def __init__(self, view: file_places.View, folder: str, sent: Sent) -> None:
        self._view = view
        self._top = folder.rstrip("/")
        self._sent = sent
        self._entries = 0
        self._times: dict[str, int] = {}

    def run(self) -> None:
        """Unpack all of it."""
        stream = layer_streams.plain(layer_tar.FromPieces(self._sent.next))
        self._reader = layer_tar.Reader(_Bounded(stream))
        while (entry := self._reader.next()) is not None:
            self._put(entry)
        self._sent.drain()
        for path, mtime_ns in sorted(self._times.items(), reverse=True):  # what comes into a folder changes its time
            with suppress(FileNotFoundError, NotADirectoryError), self._view.find(path, follow=False) as place:
                if place.is_folder and place.held is not None:
                    os.utime(file_places.own_path(place.held), ns=(mtime_ns, mtime_ns))

    def _put(self, entry: layer_tar.Entry) -> None:
        self._entries += 1
        if self._entries > MOST_ENTRIES:
            raise errors.InvalidArgument(
                f"The archive has more than {MOST_ENTRIES:,} entries.", hint="copy it in several parts"
            )
        name = _inside(entry.name, entry.name)
        if not name:
            return
        if entry.kind == "device":
            raise content_errors.refused(entry.name, "it is a device")
        for _ in range(_OFTEN):
            try:
                with self._view.find(f"{self._top}/{name}", follow=False, make=True) as place:
                    self._make(place, entry)
                return
            except OSError as error:
                # A process of the container was at the same name; what was read of the entry's data is gone.
                if error.errno not in (errno.EAGAIN, errno.EEXIST) or entry.kind == "file":
                    raise
        raise file_places.failure(errno.EBUSY, name)

    def _make(self, place: file_places.Place, entry: layer_tar.Entry) -> None:
        if place.status is not None and place.is_folder != (entry.kind == "folder"):
            if entry.kind == "folder" and place.is_link and self._leads_to_folder(place):
                return
            kinds = "a directory with a non-directory" if place.is_folder else "a non-directory with a directory"
            raise errors.Conflict(
                f"The engine cannot overwrite {kinds}: {place.path}.",
                hint="a file and a folder of the same name meet: name another target",
            )
        file_places.require_writable(place.parent, place.path)
        parent = place.parent.descriptor
        if entry.kind == "folder":
            self._folder(place, entry)
        elif place.path in self._view.mounts:
            raise file_places.failure(errno.EBUSY, place.path)
        elif entry.kind == "file":
            self._replace(parent, place, lambda new: self._file(parent, new, entry))
        elif entry.kind == "link":
            self._replace(parent, place, lambda new: _link(parent, new, entry))
        elif entry.kind == "fifo":
            self._replace(parent, place, lambda new: _pipe(parent, new, entry))
        else:
            self._hard_link(place, entry)

    def _leads_to_folder(self, place: file_places.Place) -> bool:
        with self._view.find(place.path) as behind:
            return behind.is_folder

    def _folder(self, place: file_places.Place, entry: layer_tar.Entry) -> None:
        if place.held is None:
            place.held = file_places.make_folder(place.parent.descriptor, place.name)
        _give(place.held, entry, mode=entry.mode)
        self._times[place.path] = entry.mtime_ns

    def _file(self, parent: int, new: str, entry: layer_tar.Entry) -> None:
        file = os.open(new, _NEW, 0o600, dir_fd=parent)
        try:
            while data := self._reader.read(_PIECE_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            os.fchown(file, *_owner(entry))
            os.fchmod(file, entry.mode)
            _give_attributes(file, entry.xattrs)  # behind the owner, a change of whom takes capabilities away
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _hard_link(self, place: file_places.Place, entry: layer_tar.Entry) -> None:
        target = _inside(entry.target, entry.name)
        with self._view.find(f"{self._top}/{target}", follow=False) as other:
            if other.status is None:
                raise content_errors.refused(entry.name, "it links to a file that is not there")
            if other.is_folder or other.path in self._view.mounts:
                raise content_errors.refused(entry.name, "it links to a folder, or to what is mounted")
            source = other.parent.descriptor

            def link(new: str) -> None:
                try:
                    os.link(
                        other.name, new, src_dir_fd=source, dst_dir_fd=place.parent.descriptor, follow_symlinks=False
                    )
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    raise content_errors.refused(entry.name, "it links to a file that lies on another mount") from error

            self._replace(place.parent.descriptor, place, link)

    @staticmethod
    def _replace(parent: int, place: file_places.Place, make: Callable[[str], None]) -> None:
        new = f".{secrets.token_hex(8)}.new"
        try:
            make(new)
            os.rename(new, place.name, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            # After a rename of one name of a file onto another of the same file both are still there.
            with suppress(OSError):
                os.unlink(new, dir_fd=parent)


class _Bounded:
    def __init__(self, stream: layer_tar.Stream) -> None:
        self._stream = stream
        self._left = MOST_BYTES

    def read(self, count: int, /) -> bytes:
        piece = self._stream.read(count)
        self._left -= len(piece)
        if self._left < 0:
            raise layer_streams.too_large("The archive", MOST_BYTES)
        return piece


def _inside(name: str, entry: str) -> str:
    """Return a name from its folder on; an absolute one stays inside. Raises InvalidArgument for one that would lead out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise errors.InvalidArgument(
            f"The archive has a name that leads out of its folder: {content_errors.shown(entry)}.",
            hint="send another tar",
        )
    return "/".join(parts)


def _link(parent: int, new: str, entry: layer_tar.Entry) -> None:
    os.symlink(entry.target, new, dir_fd=parent)
    _given(file_places.adopted(parent, new, stat.S_IFLNK), entry, mode=None)


def _pipe(parent: int, new: str, entry: layer_tar.Entry) -> None:
    os.mkfifo(new, 0o600, dir_fd=parent)
    _given(file_places.adopted(parent, new, stat.S_IFIFO), entry, mode=entry.mode)


def _given(held: int, entry: layer_tar.Entry, *, mode: int | None) -> None:
    try:
        _give(held, entry, mode=mode)
        os.utime(file_places.own_path(held), ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(held)


def _give(held: int, entry: layer_tar.Entry, *, mode: int | None) -> None:
    path = file_places.own_path(held)
    os.chown(path, *_owner(entry))
    if mode is not None:
        os.chmod(path, mode)
        _give_attributes(path, entry.xattrs)


def _owner(entry: layer_tar.Entry) -> tuple[int, int]:
    # An ordinary user's files are root's in the container: the user is root there, and nobody else.
    return (entry.uid, entry.gid) if os.geteuid() == 0 else (-1, -1)


def _give_attributes(file: int | str, attributes: Mapping[str, bytes]) -> None:
    for name, value in attributes.items():
        if layers.is_kept(name):
            with suppress(OSError):  # one that this file system does not know
                os.setxattr(file, name, value)
