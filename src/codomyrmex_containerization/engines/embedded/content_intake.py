"""How do layers come into the image store: checked against their digests, unpacked once, kept packed as they were sent?"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    content_blobs,
    content_config,
    content_errors,
    content_index,
    layer_folders,
    layer_pack,
    layer_streams,
    layer_tar,
    layers,
)

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SUFFIXES: Mapping[bytes, str] = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}
_AT_ONCE = 3
_PIECE_BYTES = 1024 * 1024
_LEVEL = 4  # a tenth larger than the best, in a third of the time


@dataclass(frozen=True, slots=True)
class SentLayer:
    """A layer that somebody sends: the digest of its blob where that is known, and how to read it."""

    digest: str | None
    media_type: str | None
    open: Callable[[], AbstractContextManager[layer_tar.Stream]]


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image that somebody sends; without a manifest one is made."""

    manifest: bytes | None
    config: bytes
    layers: tuple[SentLayer, ...]
    names: tuple[str, ...] = ()


class Intake:
    """Takes contents into a store. Whoever calls keeps `Index.use` meanwhile."""

    def __init__(self, blobs: content_blobs.Blobs, *, bounds: layers.Bounds) -> None:
        self._blobs = blobs
        self._bounds = bounds
        self._prefix = ""

    @property
    def prefix(self) -> str:
        """What overlay's marks are called in the layers kept here."""
        if not self._prefix:
            with self._blobs.stage() as stage:
                self._prefix = layers.overlay_prefix(stage)
        return self._prefix

    def take(
        self, sent: SentImage, known: Mapping[tuple[str, str], content_index.StoredLayer]
    ) -> tuple[str, content_index.Record]:
        """Take an image in; `known` are layers of the store by (diff id, blob). Returns its id and what the index is to say of it.

        Raises InvalidArgument (hostile, damaged, a wrong digest), Unsupported, EngineUnavailable (no space).
        """
        described = content_config.describe(sent.config)
        if len(described.diff_ids) != len(sent.layers):
            raise content_config.bad("configuration", "it names another number of layers than there are")
        found = self._layers(list(zip(described.diff_ids, sent.layers, strict=True)), known)
        id = self._blobs.write(sent.config)
        manifest = sent.manifest if sent.manifest is not None else make_manifest(id, len(sent.config), found)
        return id, content_index.Record(self._blobs.write(manifest), "", tuple(found))

    def _layers(
        self,
        wanted: Sequence[tuple[str, SentLayer]],
        known: Mapping[tuple[str, str], content_index.StoredLayer],
    ) -> list[content_index.StoredLayer]:
        """Take in the layers that are not there, several side by side; what fails stops the rest."""
        jobs: dict[tuple[str, str | None], Future[content_index.StoredLayer]] = {}
        found: dict[tuple[str, str | None], content_index.StoredLayer] = {}
        stopped = threading.Event()
        pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="layer")
        try:
            for diff_id, layer in wanted:
                key, there = (diff_id, layer.digest), known.get((diff_id, layer.digest or diff_id))
                if there is not None and self.is_whole(there):
                    found[key] = there
                elif key not in jobs:
                    jobs[key] = pool.submit(self._layer, diff_id, layer, stopped)
            for job in as_completed(jobs.values()):
                job.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
        return [
            found[key] if key in found else jobs[key].result() for key in ((one, sent.digest) for one, sent in wanted)
        ]

    def is_whole(self, layer: content_index.StoredLayer) -> bool:
        """Say whether all that belongs to a layer is there."""
        return self._blobs.has_layer(layer.diff_id) and self._blobs.blob(layer.blob).exists()

    def _layer(self, diff_id: str, sent: SentLayer, stopped: threading.Event) -> content_index.StoredLayer:
        """Take one layer in: its blob as it comes, and its contents unpacked unless they are there."""
        with self._blobs.stage() as stage, sent.open() as stream:
            file, folder = stage / "blob", stage / "layer"
            with content_errors.explained("Writing a blob"):
                out = file.open("wb")
            with out:
                packed = layer_streams.Measured(
                    content_blobs.Tee(stream, out), most_bytes=self._bounds.most_tar_bytes, what="The layer"
                )
                kind = _Peeked(packed, stopped)
                plain = layer_streams.Measured(
                    layer_streams.plain(kind), most_bytes=self._bounds.most_tar_bytes, what="The layer, unpacked,"
                )
                size = self._unpacked(plain, folder, diff_id)
                packed.drain()
                with content_errors.explained("Writing a blob"):
                    out.flush()
                    os.fsync(out.fileno())
            _require("blob", sent.digest, packed.digest)
            _require("layer", diff_id, plain.digest)
            self._blobs.adopt_blob(file, packed.digest)
            if folder.exists():
                self._blobs.adopt_layer(folder, diff_id)
        media_type = sent.media_type or OCI_LAYER + kind.suffix
        return content_index.StoredLayer(diff_id, packed.digest, media_type, packed.count, size)

    def _unpacked(self, plain: layer_streams.Measured, folder: Path, diff_id: str) -> int:
        if self._blobs.has_layer(diff_id):
            plain.drain()
            return self.size_bytes(diff_id)
        make_folder(folder)
        contents = layers.unpack(plain, folder, prefix=self.prefix, bounds=self._bounds)
        plain.drain()
        return contents.size_bytes

    def size_bytes(self, diff_id: str) -> int:
        """Return the bytes of an unpacked layer's files."""
        with content_errors.explained("Looking at a layer"):
            return layer_folders.size_of_files(self._blobs.layer(diff_id))

    def restore(self, layer: content_index.StoredLayer) -> None:
        """Unpack a layer from its blob. Raises Conflict when the blob is not there or is not what it should be."""
        file = self._blobs.open(layer.blob)
        if file is None:
            raise content_blobs.lost(f"its layer {layer.diff_id} is not in the store, neither packed nor unpacked")
        with file, self._blobs.stage() as stage:
            folder = stage / "layer"
            make_folder(folder)
            plain = layer_streams.Measured(
                layer_streams.plain(file), most_bytes=self._bounds.most_tar_bytes, what="The layer, unpacked,"
            )
            try:
                layers.unpack(plain, folder, prefix=self.prefix, bounds=self._bounds)
                plain.drain()
            except errors.InvalidArgument as error:
                raise content_blobs.lost(f"the blob of its layer {layer.diff_id} is damaged") from error
            if plain.digest != layer.diff_id:
                raise content_blobs.lost(f"the blob of its layer {layer.diff_id} is damaged")
            self._blobs.adopt_layer(folder, layer.diff_id)

    def gzipped(
        self, layer: content_index.StoredLayer, open_: Callable[[], AbstractContextManager[layer_tar.Stream]]
    ) -> content_index.StoredLayer:
        """Keep a packed blob of a layer that has none, as registries want them. Raises Conflict when the layer is damaged."""
        with self._blobs.stage() as stage, open_() as stream:
            plain = layer_streams.Measured(stream, most_bytes=layer.blob_bytes, what=f"The layer {layer.diff_id}")
            file = stage / "blob"
            packer, hash_, count = zlib.compressobj(_LEVEL, wbits=31), hashlib.sha256(), 0
            with content_errors.explained("Packing a layer"), file.open("wb") as out:
                for piece in _gzip(plain, packer):
                    hash_.update(piece)
                    count += out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            if plain.digest != layer.diff_id:
                raise content_blobs.lost(f"its layer {layer.diff_id} is damaged")
            digest = f"sha256:{hash_.hexdigest()}"
            self._blobs.adopt_blob(file, digest)
        return content_index.StoredLayer(layer.diff_id, digest, f"{OCI_LAYER}+gzip", count, layer.size_bytes)

    # ----------------------------------------------------------- made here

    def move(self, upper: Path) -> content_index.StoredLayer | None:
        """Make an overlay's upper folder a layer by moving it; None when there is nothing in it."""
        try:
            return self._adopted(upper)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise content_errors.explanation(error, "Keeping a layer") from error
        made = self.copy(upper, is_overlay=True)
        content_blobs.remove(upper)
        return made

    def copy(self, source: Path, *, is_overlay: bool) -> content_index.StoredLayer | None:
        """Make a layer of a copy of a folder; None when there is nothing in it."""
        packing = layer_pack.Packing(source, self.prefix if is_overlay else None, bounds=self._bounds)
        pieces = packing.pieces()
        return self.unpacked(layer_tar.FromPieces(lambda: next(pieces, b"")), needs_end=False)

    def unpacked(self, stream: layer_tar.Stream, *, needs_end: bool) -> content_index.StoredLayer | None:
        """Make a layer of a tar that need not be kept as it is; None when there is nothing in it.

        `needs_end`: the tar must have its end mark, as it has no digest that tells whether it is whole.
        """
        with self._blobs.stage() as stage:
            folder = stage / "layer"
            make_folder(folder)
            measured = layer_streams.Measured(stream, most_bytes=self._bounds.most_tar_bytes, what="The archive")
            contents = layers.unpack(measured, folder, prefix=self.prefix, bounds=self._bounds)
            if needs_end and not contents.has_end:
                raise layer_tar.damaged("it ends without the mark of its end")
            measured.drain()
            return self._adopted(folder)

    def _adopted(self, folder: Path) -> content_index.StoredLayer | None:
        packing = layer_pack.Packing(folder, self.prefix, bounds=self._bounds)
        pieces = packing.pieces()
        measured = layer_streams.Measured(
            layer_tar.FromPieces(lambda: next(pieces, b"")), most_bytes=self._bounds.most_tar_bytes, what="The layer"
        )
        measured.drain()
        if not packing.entries:
            return None
        diff_id = measured.digest
        self._blobs.adopt_layer(folder, diff_id)
        return content_index.StoredLayer(diff_id, diff_id, OCI_LAYER, measured.count, packing.size_bytes)


def _gzip(plain: layer_tar.Stream, packer: zlib._Compress) -> Iterator[bytes]:
    while piece := b"".join(_some(plain)):
        yield packer.compress(piece)
    yield packer.flush()


def _some(stream: layer_tar.Stream) -> Iterator[bytes]:
    """Yield pieces of about a megabyte together: a layer that is packed here comes in very small ones."""
    left = _PIECE_BYTES
    while left > 0 and (piece := stream.read(left)):
        left -= len(piece)
        yield piece


class _Peeked:
    """Passes bytes on and remembers how they began; stops when another layer of the image cannot be had."""

    def __init__(self, stream: layer_tar.Stream, stopped: threading.Event) -> None:
        self._stream = stream
        self._stopped = stopped
        self._begin = b""

    def read(self, count: int, /) -> bytes:
        if self._stopped.is_set():
            raise errors.Cancelled("Another layer of the image could not be had.")
        piece = self._stream.read(count)
        if len(self._begin) < 4:
            self._begin += piece[:4]
        return piece

    @property
    def suffix(self) -> str:
        """What the media type of the layer ends with."""
        return next((one for magic, one in _SUFFIXES.items() if self._begin.startswith(magic)), "")


def make_folder(folder: Path) -> None:
    """Make the folder that becomes a layer: its own rights are those of the root in the container."""
    with content_errors.explained("Making a folder"):
        folder.mkdir()
        os.chmod(folder, 0o755)  # noqa: S103  everybody in a container may look into its root


def make_manifest(config_digest: str, config_bytes: int, layers_: Sequence[content_index.StoredLayer]) -> bytes:
    """Return the manifest of an image that came without one, or was made here."""
    return content_config.encoded(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config_bytes},
            "layers": [
                {
                    "mediaType": one.media_type.replace(DOCKER_LAYER, OCI_LAYER).replace(".tar.gzip", ".tar+gzip"),
                    "digest": one.blob,
                    "size": one.blob_bytes,
                }
                for one in layers_
            ],
        }
    )


def _require(what: str, wanted: str | None, found: str) -> None:
    if wanted is not None and wanted != found:
        raise errors.InvalidArgument(
            f"The image's {what} {wanted} has another digest: {found}.",
            hint="it was changed or damaged on its way: make or fetch the image again",
        )
