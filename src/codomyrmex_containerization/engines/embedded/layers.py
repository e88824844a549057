"""How does a layer's tar become a folder that overlay can mount, with nothing in it able to touch anything else?

Names are looked up folder by folder, links are never followed; devices, names that lead out and hard links to what the layer does not
hold are refused. Source of the whiteouts: https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import content_errors, layer_folders, layer_tar

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_OTHER_MARKS = ".wh..wh."  # what AUFS kept for itself
_LONGEST_TARGET = 4096
_PIECE_BYTES = 1024 * 1024
Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a layer may be."""

    most_bytes: int = 20 * 1024**3
    most_entries: int = 1_000_000

    @property
    def most_tar_bytes(self) -> int:
        """How long its tar may be: headers and padding come on top."""
        return self.most_bytes + 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Contents:
    """What a layer holds: the bytes of its files, and how many entries; whether its tar had the mark of its end."""

    size_bytes: int
    entries: int
    has_end: bool


def overlay_prefix(folder: Path) -> str:
    """Return how overlay's marks are called in layers kept here: `trusted.overlay.` where that may be written, else `user.overlay.`.

    Raises EngineUnavailable when the file system keeps neither.
    """
    with content_errors.explained("Looking at the file system"), tempfile.TemporaryDirectory(dir=folder) as place:
        for prefix in ("trusted.overlay.", "user.overlay."):
            with suppress(OSError):
                os.setxattr(place, f"{prefix}opaque", b"y")
                return prefix
    raise errors.EngineUnavailable(
        f"The file system of {folder} keeps no extended attributes, which layers need.",
        hint="keep the engine's data on ext4, xfs or btrfs",
    )


def unpack(stream: layer_tar.Stream, folder: Path, *, prefix: str, bounds: Bounds) -> Contents:
    """Unpack a layer's tar into an empty folder that nobody else can reach yet; `prefix` is that of `overlay_prefix`.

    Raises InvalidArgument (damaged, hostile, too large; names the entry), Unsupported (sparse files), EngineUnavailable (no space).
    """
    reader = layer_tar.Reader(stream)
    with layer_folders.Chain(folder) as chain:
        layer = _Layer(reader, chain, prefix, bounds)
        while (entry := reader.next()) is not None:
            with content_errors.explained("Unpacking a layer", entry=entry.name):
                layer.put(entry)
        with content_errors.explained("Unpacking a layer"):
            layer.finish()
    if not reader.has_end and not layer.entries:
        raise layer_tar.damaged("it is empty")
    return Contents(layer.size_bytes, layer.entries, reader.has_end)


def parts_of(name: str) -> Parts:
    """Return the parts of a name in an archive, none for its top. Raises InvalidArgument for one that leads out."""
    if name.startswith("/"):
        raise content_errors.refused(name, "its name is absolute")
    if "\0" in name:
        raise content_errors.refused(name, "its name holds a zero byte")
    parts = tuple(one for one in name.split("/") if one not in ("", "."))
    if ".." in parts:
        raise content_errors.refused(name, "its name leads out of the archive")
    return parts


class _Layer:
    """A layer while it is unpacked."""

    def __init__(self, reader: layer_tar.Reader, chain: layer_folders.Chain, prefix: str, bounds: Bounds) -> None:
        self._reader = reader
        self._chain = chain
        self._opaque = f"{prefix}opaque"
        self._bounds = bounds
        self._is_root = os.geteuid() == 0
        self._folders: dict[Parts, layer_tar.Entry] = {}
        self.size_bytes = 0
        self.entries = 0

    def put(self, entry: layer_tar.Entry) -> None:
        """Put one entry where it belongs."""
        self.entries += 1
        self.size_bytes += entry.size_bytes
        if self.entries > self._bounds.most_entries:
            raise errors.InvalidArgument(
                f"The layer has more than {self._bounds.most_entries:,} entries.", hint="use a smaller image"
            )
        if self.size_bytes > self._bounds.most_bytes:
            raise errors.InvalidArgument(
                f"The layer is larger, unpacked, than the {self._bounds.most_bytes:,} bytes that are allowed.",
                hint="use a smaller image",
                details={"limit_bytes": self._bounds.most_bytes},
            )
        parts = parts_of(entry.name)
        if entry.kind == "device":
            raise content_errors.refused(entry.name, "it is a device")
        if not parts:
            if entry.kind != "folder":
                raise content_errors.refused(entry.name, "its name is empty")
            self._folders[()] = entry
        elif parts[-1].startswith(WHITEOUT):
            self._mark(parts, entry)
        else:
            if any(one.startswith(WHITEOUT) for one in parts):
                raise content_errors.refused(entry.name, "it lies in a folder that marks something as gone")
            self._make(parts, entry)

    # ------------------------------------------------------------------ places

    def _parent(self, parts: Parts, entry: layer_tar.Entry) -> int:
        if any(one.startswith(WHITEOUT) for one in parts[:-1]):
            raise content_errors.refused(entry.name, "it lies in a folder that marks something as gone")
        try:
            return self._chain.open(parts[:-1], make=self._make_folder)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise content_errors.refused(entry.name, "a part of its name is a link or a file") from error
            raise

    def _make_folder(self, at: int, name: str) -> None:
        """See to it that a folder is there, unless something else is that the layer itself put there."""
        try:
            os.mkdir(name, 0o755, dir_fd=at)
        except FileExistsError:
            found = layer_folders.look(at, name)
            if found is not None and layer_folders.is_whiteout(found):
                # Gone below and made anew here: nothing of the folder below is to be seen.
                os.unlink(name, dir_fd=at)
                os.mkdir(name, 0o755, dir_fd=at)
                self._make_opaque(at, name)

    def _make_opaque(self, at: int, name: str | None) -> None:
        if name is None:
            os.setxattr(at, self._opaque, b"y")
            return
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            os.setxattr(fd, self._opaque, b"y")
        finally:
            os.close(fd)

    # ----------------------------------------------------------------- entries

    def _mark(self, parts: Parts, entry: layer_tar.Entry) -> None:
        """Mark what a whiteout names as gone below."""
        if parts[-1] == OPAQUE:
            self._make_opaque(self._parent(parts, entry), None)
            return
        if parts[-1].startswith(_OTHER_MARKS):
            return
        name = parts[-1].removeprefix(WHITEOUT)
        if name in ("", ".", ".."):
            raise content_errors.refused(entry.name, "it marks nothing that can be gone")
        at = self._parent(parts, entry)
        found = layer_folders.look(at, name)
        if found is None:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=at)
        elif stat.S_ISDIR(found.st_mode):
            self._make_opaque(at, name)

    def _make(self, parts: Parts, entry: layer_tar.Entry) -> None:
        at, name = self._parent(parts, entry), parts[-1]
        if entry.kind == "folder":
            found = layer_folders.look(at, name)
            if found is not None and not stat.S_ISDIR(found.st_mode) and not layer_folders.is_whiteout(found):
                os.unlink(name, dir_fd=at)
            self._make_folder(at, name)
            self._folders[parts] = entry
            return
        layer_folders.remove(at, name)
        match entry.kind:
            case "file":
                self._write(at, name, entry)
            case "link":
                if not 0 < len(os.fsencode(entry.target)) < _LONGEST_TARGET or "\0" in entry.target:
                    raise content_errors.refused(entry.name, "it links to nothing, or its target is too long")
                os.symlink(entry.target, name, dir_fd=at)
                self._own(at, name, entry)
            case "hard link":
                self._link(parts, entry)
            case _:
                os.mkfifo(name, 0o600, dir_fd=at)
                self._own(at, name, entry)
                os.chmod(name, entry.mode, dir_fd=at)

    def _write(self, at: int, name: str, entry: layer_tar.Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=at)
        try:
            while piece := self._reader.read(_PIECE_BYTES):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            if self._is_root:
                os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            self._set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _link(self, parts: Parts, entry: layer_tar.Entry) -> None:
        source = parts_of(entry.target)
        if not source or source == parts:
            raise content_errors.refused(entry.name, "it is a hard link to nothing")
        # The chain holds one place open; here two are needed.
        at = os.dup(self._parent(parts, entry))
        try:
            below = self._chain.open(source[:-1])
            found = layer_folders.look(below, source[-1])
            if found is None or stat.S_ISDIR(found.st_mode) or stat.S_ISCHR(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, "")
            os.link(source[-1], parts[-1], src_dir_fd=below, dst_dir_fd=at, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                target = content_errors.shown(entry.target)
                reason = f"it is a hard link to {target}, which the archive does not hold as a file before it"
                raise content_errors.refused(entry.name, reason) from error
            raise
        finally:
            os.close(at)

    # -------------------------------------------------------------- attributes

    def _own(self, at: int, name: str, entry: layer_tar.Entry) -> None:
        if self._is_root:
            os.chown(name, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=at, follow_symlinks=False)

    def _set_xattrs(self, fd: int, entry: layer_tar.Entry) -> None:
        for name, value in entry.xattrs.items():
            if not is_kept(name):
                continue
            try:
                os.setxattr(fd, name, value)
            except PermissionError:
                if self._is_root:
                    raise

    def finish(self) -> None:
        """Give folders what they are to have: making something in one changes its time, and may not be allowed afterwards."""
        for parts in sorted(self._folders, key=len, reverse=True):
            entry = self._folders[parts]
            with content_errors.explained("Unpacking a layer", entry=entry.name):
                try:
                    fd = self._chain.open(parts)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        continue  # a later entry put something else there
                    raise
                if self._is_root:
                    os.fchown(fd, entry.uid, entry.gid)
                self._set_xattrs(fd, entry)
                os.fchmod(fd, entry.mode)
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def is_kept(name: str) -> bool:
    """Say whether an extended attribute is part of a layer: capabilities and the user's own; never overlay's marks."""
    return name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay."))
