"""How are images written, so that Docker, Podman and we ourselves can load them again? docker-archive, OCI archive, OCI layout folder."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    archives,
    content_blobs,
    content_config,
    content_errors,
    content_index,
    content_intake,
    content_watch,
    layer_pack,
    layer_streams,
    layer_tar,
)
from codomyrmex_containerization.models import reference

_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Saved:
    """An image that is to be written, and the names to write with it."""

    id: str
    record: content_index.Record
    names: tuple[str, ...]


class Reader:
    """Reads what a store has of an image."""

    def __init__(
        self,
        blobs: content_blobs.Blobs,
        intake: content_intake.Intake,
        watch: content_watch.Watch | None = None,
    ) -> None:
        self._blobs = blobs
        self._intake = intake
        self._watch = watch or content_watch.unwatched()

    def small(self, digest: str, what: str) -> bytes:
        """Return a manifest or a configuration. Raises Conflict when it is lost."""
        return self._blobs.read(digest, what)

    @contextmanager
    def packed(
        self, layer: content_index.StoredLayer, *, watch: content_watch.Watch | None = None
    ) -> Iterator[layer_streams.Measured]:
        """Open a layer as its manifest names it; one made here is packed now. Raises Conflict when it is lost."""
        with ExitStack() as held:
            stream: layer_tar.Stream | None = None
            file = self._blobs.open(layer.blob)
            if file is not None:
                stream = held.enter_context(file)
            elif layer.blob == layer.diff_id and self._blobs.has_layer(layer.diff_id):
                pieces = layer_pack.Packing(self._blobs.layer(layer.diff_id), self._intake.prefix).pieces()
                held.callback(pieces.close)
                stream = layer_tar.FromPieces(lambda: next(pieces, b""))
            if stream is None:
                raise content_blobs.lost(f"its layer {layer.diff_id} is not in the store")
            stream = (watch or self._watch).stream(stream)
            yield layer_streams.Measured(stream, most_bytes=layer.blob_bytes, what=f"The layer {layer.diff_id}")

    @contextmanager
    def plain(self, layer: content_index.StoredLayer) -> Iterator[layer_streams.Measured]:
        """Open a layer as a plain tar. Raises Conflict when it is lost."""
        # What is written counts: that is the unpacked layer.
        with self.packed(layer, watch=self._watch.uncounted()) as packed:
            stream = self._watch.stream(layer_streams.plain(packed))
            yield layer_streams.Measured(stream, most_bytes=2**62, what=f"The layer {layer.diff_id}")


class Sink(Protocol):
    """Where files go."""

    def small(self, name: str, data: bytes) -> None:
        """Write a small file."""

    def stream(self, name: str, source: layer_tar.Stream) -> None:
        """Write a file of unknown size."""


def write(saved: Sequence[Saved], path: Path, *, format: archives.Format, reader: Reader) -> None:
    """Write images to a new file, replacing one that is there, or to a new or empty folder. What fails leaves nothing behind.

    Raises Conflict (something else is there, a layer is lost), EngineUnavailable.
    """
    if format == "oci":
        with _new_folder(path) as folder:
            write_oci(saved, _Folder(folder), reader)
        return
    with new_file(path) as file:
        sink = Tar(file)
        if format == "docker-archive":
            _write_docker(saved, sink, reader)
        else:
            write_oci(saved, sink, reader)
        file.write(layer_tar.END)


def _write_docker(saved: Sequence[Saved], sink: Sink, reader: Reader) -> None:
    manifest: list[dict[str, Any]] = []
    written: set[str] = set()
    for one in saved:
        config = f"{_hex(one.id)}.json"
        sink.small(config, reader.small(one.id, "configuration"))
        for layer in one.record.layers:
            if layer.diff_id not in written:
                written.add(layer.diff_id)
                with reader.plain(layer) as stream:
                    sink.stream(f"{_hex(layer.diff_id)}.tar", stream)
                    _require(layer.diff_id, stream.digest)
        files = [f"{_hex(layer.diff_id)}.tar" for layer in one.record.layers]
        manifest.append({"Config": config, "RepoTags": list(one.names) or None, "Layers": files})
    sink.small("manifest.json", content_config.encoded(manifest))


def write_oci(saved: Sequence[Saved], sink: Sink, reader: Reader) -> None:
    """Write images as an OCI layout. Raises Conflict (a layer is lost)."""
    entries: list[dict[str, Any]] = []
    written: set[str] = set()

    def small(digest: str, what: str) -> bytes:
        data = reader.small(digest, what)
        if digest not in written:
            written.add(digest)
            sink.small(f"blobs/sha256/{_hex(digest)}", data)
        return data

    for one in saved:
        small(one.id, "configuration")
        manifest = small(one.record.digest, "manifest")
        for layer in one.record.layers:
            if layer.blob not in written:
                written.add(layer.blob)
                with reader.packed(layer) as stream:
                    sink.stream(f"blobs/sha256/{_hex(layer.blob)}", stream)
                    _require(layer.blob, stream.digest)
        entry = {
            "mediaType": content_config.read_json(manifest, "manifest").get("mediaType", content_intake.OCI_MANIFEST),
            "digest": one.record.digest,
            "size": len(manifest),
        }
        notes = [{archives.REF_NAME: name, archives.IMAGE_NAME: _full(name)} for name in one.names]
        entries += [{**entry, "annotations": note} for note in notes] or [entry]
    sink.small("oci-layout", content_config.encoded({"imageLayoutVersion": "1.0.0"}))
    sink.small("index.json", content_config.encoded({"schemaVersion": 2, "manifests": entries}))


def _full(name: str) -> str:
    parsed = reference.parse(name)
    return f"{parsed.domain}/{parsed.path}:{parsed.tag}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _require(wanted: str, found: str) -> None:
    if wanted != found:
        raise content_blobs.lost(f"its layer {wanted} is damaged: its digest is {found} now")


# ------------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar that is written to a file that one can go back in."""

    file: BinaryIO
    otherwise: str = "save it as oci"  # what to do with what is too large for a tar

    def small(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self.file.write(layer_tar.header(layer_tar.Entry(name, "file", size_bytes=len(data))))
        self.file.write(data + bytes(-len(data) % layer_tar.BLOCK_BYTES))

    def stream(self, name: str, source: layer_tar.Stream) -> None:
        """Write a file of unknown size: its header is written again when that is known."""
        place = self.file.tell()
        header = layer_tar.header(layer_tar.Entry(name, "file"))
        self.file.write(header)
        size = _copied(source, self.file)
        self.file.write(bytes(-size % layer_tar.BLOCK_BYTES))
        end = self.file.tell()
        self.file.seek(place)
        again = layer_tar.header(layer_tar.Entry(name, "file", size_bytes=size))
        if len(again) != len(header):
            raise errors.Unsupported(
                "The image has a layer of 8 GiB or more, which this form cannot hold.", hint=self.otherwise
            )
        self.file.write(again)
        self.file.seek(end)


@dataclass(frozen=True, slots=True)
class _Folder:
    folder: Path
    made: set[str] = field(default_factory=set)

    def small(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with self._open(name) as file:
            file.write(data)

    def stream(self, name: str, source: layer_tar.Stream) -> None:
        """Write a file of unknown size."""
        with self._open(name) as file:
            _copied(source, file)

    def _open(self, name: str) -> BinaryIO:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _copied(source: layer_tar.Stream, file: BinaryIO) -> int:
    count = 0
    while piece := source.read(_PIECE_BYTES):
        count += file.write(piece)
    return count


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when all is written."""
    if path.is_dir():
        raise errors.Conflict(f"{path} is a folder.", hint="name a file, or use the format oci")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with content_errors.explained(f"Writing {path}"):
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w+b") as file:
                yield file
                file.flush()
                os.fsync(fd)
            os.rename(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that takes its name when all is in it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with content_errors.explained(f"Writing {path}"):
        beside.mkdir(mode=0o700)
        try:
            yield beside
            os.rename(beside, path)  # an empty folder gives way
        except OSError as error:
            content_blobs.remove(beside)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise errors.Conflict(
                    f"{path} is there already, and is no empty folder.", hint="name another"
                ) from error
            raise
        except BaseException:
            content_blobs.remove(beside)
            raise
