"""How is an archive read that may be compressed, without it growing beyond a bound, and with its digest at the end?"""

from __future__ import annotations

import bz2
import hashlib
import importlib
import lzma
import zlib
from typing import Any, Protocol

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import layer_tar

_PIECE_BYTES = 256 * 1024
_MOST_XZ_MEMORY_BYTES = 256 * 1024 * 1024
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
}


class _Decompressor(Protocol):
    """What the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Measured:
    """Passes bytes on, counting and hashing them. Raises InvalidArgument when there are more than `most_bytes`."""

    def __init__(self, stream: layer_tar.Stream, *, most_bytes: int, what: str) -> None:
        self._stream = stream
        self._most = most_bytes
        self._what = what
        self._hash = hashlib.sha256()
        self.count = 0

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end."""
        piece = self._stream.read(count)
        self._hash.update(piece)
        self.count += len(piece)
        if self.count > self._most:
            raise too_large(self._what, self._most)
        return piece

    def drain(self) -> None:
        """Read the rest."""
        while self.read(_PIECE_BYTES):
            pass

    @property
    def digest(self) -> str:
        """The digest of what was read so far."""
        return f"sha256:{self._hash.hexdigest()}"


def too_large(what: str, most_bytes: int) -> errors.InvalidArgument:
    """Return the error for something that is larger than it may be."""
    return errors.InvalidArgument(
        f"{what} is larger than the {most_bytes:,} bytes that are allowed.",
        hint="use a smaller one",
        details={"limit_bytes": most_bytes},
    )


def plain(stream: layer_tar.Stream) -> layer_tar.Stream:
    """Return the stream unpacked, whatever packed it: nothing, gzip, zstd, xz or bzip2.

    Raises Unsupported for zstd where nothing here can read it, and, while being read, InvalidArgument for damaged data.
    """
    begin = b""
    while len(begin) < 6 and (piece := stream.read(6 - len(begin))):
        begin += piece
    rest = _Joined(begin, stream)
    for magic, name in _MAGIC.items():
        if begin.startswith(magic):
            return _Plain(rest, name)
    return rest


class _Joined:
    def __init__(self, begin: bytes, stream: layer_tar.Stream) -> None:
        self._begin = begin
        self._stream = stream

    def read(self, count: int, /) -> bytes:
        if self._begin:
            part, self._begin = self._begin[:count], self._begin[count:]
            return part
        return self._stream.read(count)


class _Gzip:
    """zlib's decompressor, looking as the others do."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max(max_length, 0))


class _Plain:
    def __init__(self, stream: layer_tar.Stream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._inner = _decompressor(name)
        self._ended = False
        self._bad: tuple[type[Exception], ...] = (
            zlib.error, OSError, EOFError, lzma.LZMAError, ValueError, *_zstd_errors(name),
        )  # fmt: skip

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end."""
        while not self._ended:
            piece = b"" if self._inner.eof or not self._inner.needs_input else self._stream.read(_PIECE_BYTES)
            if self._inner.eof:
                self._next_member()
                continue
            if not piece and self._inner.needs_input:
                raise layer_tar.damaged(f"its {self._name} data ends too early")
            try:
                found = self._inner.decompress(piece, count)
            except self._bad as error:
                raise layer_tar.damaged(f"its {self._name} data cannot be unpacked") from error
            if found:
                return found
        return b""

    def _next_member(self) -> None:
        """Go on with what follows the end of compressed data: more of it, or padding that means nothing."""
        rest = self._inner.unused_data or self._stream.read(_PIECE_BYTES)
        magic = next(magic for magic, name in _MAGIC.items() if name == self._name)
        if not rest.startswith(magic):
            self._ended = True
            while rest:
                if rest.strip(b"\0"):
                    raise layer_tar.damaged(f"something else follows its {self._name} data")
                rest = self._stream.read(_PIECE_BYTES)
            return
        self._stream = _Joined(rest, self._stream)
        self._inner = _decompressor(self._name)


def _decompressor(name: str) -> _Decompressor:
    if name == "gzip":
        return _Gzip()
    if name == "bzip2":
        return bz2.BZ2Decompressor()
    if name == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_XZ_MEMORY_BYTES)
    made: _Decompressor = _zstd().ZstdDecompressor()
    return made


def _zstd() -> Any:
    """Return a module with the decompressor that Python has since 3.14, or its like for older ones."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise errors.Unsupported(
        "The archive is packed with zstd, which this Python cannot read.",
        hint="use Python 3.14, install backports.zstd, or have it packed with gzip",
    )


def _zstd_errors(name: str) -> tuple[type[Exception], ...]:
    return (_zstd().ZstdError,) if name == "zstd" else ()


def is_packed(stream: layer_tar.Stream) -> bool:
    """Say whether what `plain` returned unpacks anything."""
    return isinstance(stream, _Plain)
