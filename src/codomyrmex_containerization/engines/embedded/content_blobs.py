"""Where do the image store's blobs and unpacked layers lie, and how do they get there whole or not at all?"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    content_config,
    content_errors,
    content_index,
    kernel,
    layer_folders,
)


def digest(data: bytes) -> str:
    """Return the digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Blobs:
    """The files and folders of one store, each named by its digest."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs" / "sha256"
        self._layers = folder / "layers"
        self._stages = folder / "tmp"
        self.use_lock = folder / "locks" / content_index.USE_LOCK
        with content_errors.explained("Making the folder of images"):
            for one in (folder, self._blobs, self._layers, self._stages, folder / "locks"):
                one.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(folder, 0o700)

    def blob(self, digest: str) -> Path:
        """Return where a blob lies, or would."""
        return self._blobs / digest.removeprefix("sha256:")

    def layer(self, diff_id: str) -> Path:
        """Return where an unpacked layer lies, or would."""
        return self._layers / diff_id.removeprefix("sha256:")

    def has_layer(self, diff_id: str) -> bool:
        """Say whether a layer is unpacked."""
        return self.layer(diff_id).is_dir()

    def open(self, digest: str) -> BinaryIO | None:
        """Open a blob; None when it is not there."""
        with content_errors.explained("Opening a blob"):
            try:
                return open(self.blob(digest), "rb")
            except FileNotFoundError:
                return None

    def read(self, digest: str, what: str) -> bytes:
        """Return a small blob (a manifest, a configuration). Raises Conflict when it is not there or is damaged."""
        file = self.open(digest)
        if file is None:
            raise lost(f"Its {what} {digest} is not in the store")
        with file, content_errors.explained("Reading a blob"):
            data = file.read(content_config.MOST_JSON_BYTES + 1)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise lost(f"Its {what} {digest} is damaged")
        return data

    def write(self, data: bytes) -> str:
        """Keep a small blob; return its digest."""
        name = digest(data)
        path = self.blob(name)
        if not path.exists():
            with content_errors.explained("Writing a blob"):
                content_index.write_atomically(path, data)
        return name

    # ------------------------------------------------------------------ stages

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """Make a folder to prepare contents in; what is left in it at the end of the block is thrown away."""
        place = self._stages / secrets.token_hex(8)
        with content_errors.explained("Making a folder"):
            place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            remove(place)

    def settle(self) -> None:
        """Wait until all that was prepared is on the disk: what is kept after that is whole, also after a power cut."""
        with content_errors.explained("Writing the images"):
            at = os.open(self._layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                kernel.syncfs(at)
            finally:
                os.close(at)

    def adopt_blob(self, file: Path, digest: str) -> None:
        """Keep a prepared file as a blob."""
        with content_errors.explained("Keeping a blob"):
            os.rename(file, self.blob(digest))
            content_index.sync_folder(self._blobs)

    def adopt_layer(self, folder: Path, diff_id: str) -> None:
        """Keep a prepared folder as an unpacked layer, unless that is there already. Raises EngineUnavailable, OSError(EXDEV)."""
        try:
            _rename(folder, self.layer(diff_id))
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise content_errors.explanation(error, "Keeping a layer") from error
            remove(folder)

    # ------------------------------------------------------------------ rubbish

    def clear(self, *, blobs: set[str], layers: set[str]) -> int:
        """Throw away all but these, and what stages left. Only for who is alone. Returns how many bytes came free."""
        with content_errors.explained("Removing what no image needs"):
            for folder, kept in ((self._blobs, blobs), (self._layers, layers)):
                for one in folder.iterdir():
                    if f"sha256:{one.name}" not in kept:
                        # Moved away first: a folder that is half removed must not be taken for a layer.
                        _rename(one, self._stages / secrets.token_hex(8))
        return self.clear_stages()

    def clear_stages(self) -> int:
        """Throw away what stages left. Only for who is alone. Returns how many bytes came free."""
        with content_errors.explained("Removing what no image needs"):
            return sum(_remove_measured(one) for one in self._stages.iterdir())


def lost(reason: str) -> errors.Conflict:
    """Return the error for an image that is not whole any more."""
    return errors.Conflict(
        f"The image cannot be used: {reason}.", hint="remove the image and load, pull or build it again"
    )


def remove(place: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there. Raises EngineUnavailable."""
    with content_errors.explained("Removing a folder"), suppress(FileNotFoundError):
        at = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            layer_folders.remove(at, place.name)
        finally:
            os.close(at)


def _rename(source: Path, target: Path) -> None:
    """Rename a file or a folder, also one that its owner may not write to. Raises OSError."""
    try:
        os.rename(source, target)
    except PermissionError:
        mode = stat.S_IMODE(source.lstat().st_mode)
        os.chmod(source, mode | 0o700)
        try:
            os.rename(source, target)
        except OSError:
            os.chmod(source, mode)
            raise
        os.chmod(target, mode)


def _remove_measured(place: Path) -> int:
    count = layer_folders.size_on_disk(place)
    remove(place)
    return count
