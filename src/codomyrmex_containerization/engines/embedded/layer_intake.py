"""What is made of a layer as it is sent, before the store has it? Its blob, its unpacked folder, and the digests of both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from codomyrmex_containerization.engines.embedded import content_errors, layer_streams, layer_tar, layers

BLOB, LAYER = "blob", "layer"
_SUFFIXES: Mapping[bytes, str] = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a layer turned out to be; `size_bytes` are those of its files, None when it was not to be unpacked."""

    blob: str
    blob_bytes: int
    diff_id: str
    size_bytes: int | None
    suffix: str


def prepare(
    stream: layer_tar.Stream, stage: Path, *, prefix: str, bounds: layers.Bounds, unpacks: bool = True
) -> Prepared:
    """Write a layer into `stage`: its blob as it comes, and unpacked if that is wanted. What is there is not on the disk yet.

    Raises what `layers.unpack` raises.
    """
    with content_errors.explained("Writing a blob"):
        out = (stage / BLOB).open("wb")
    with out:
        packed = layer_streams.Measured(Tee(stream, out), most_bytes=bounds.most_tar_bytes, what="The layer")
        kind = _Peeked(packed)
        plain = layer_streams.Measured(
            layer_streams.plain(kind), most_bytes=bounds.most_tar_bytes, what="The layer, unpacked,"
        )
        size = None
        if unpacks:
            make_folder(stage / LAYER)
            size = layers.unpack(plain, stage / LAYER, prefix=prefix, bounds=bounds).size_bytes
        plain.drain()
        packed.drain()
        with content_errors.explained("Writing a blob"):
            out.flush()
    return Prepared(packed.digest, packed.count, plain.digest, size, kind.suffix)


def make_folder(folder: Path) -> None:
    """Make the folder that becomes a layer: its own rights are those of the root in the container."""
    with content_errors.explained("Making a folder"):
        folder.mkdir()
        os.chmod(folder, 0o755)  # noqa: S103  everybody in a container may look into its root


class Tee:
    """Passes bytes on and writes them to a file."""

    def __init__(self, stream: layer_tar.Stream, file: BinaryIO) -> None:
        self._stream = stream
        self._file = file

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end."""
        piece = self._stream.read(count)
        with content_errors.explained("Writing a blob"):
            self._file.write(piece)
        return piece


class _Peeked:
    """Passes bytes on and remembers how they began."""

    def __init__(self, stream: layer_tar.Stream) -> None:
        self._stream = stream
        self._begin = b""

    def read(self, count: int, /) -> bytes:
        piece = self._stream.read(count)
        if len(self._begin) < 4:
            self._begin += piece[:4]
        return piece

    @property
    def suffix(self) -> str:
        """What the media type of the layer ends with."""
        return next((one for magic, one in _SUFFIXES.items() if self._begin.startswith(magic)), "")
