"""How do layers come into the image store: checked against their digests, unpacked once, kept packed as they were sent?"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    content_blobs,
    content_config,
    content_errors,
    content_index,
    content_watch,
    layer_folders,
    layer_intake,
    layer_pack,
    layer_streams,
    layer_tar,
    layers,
    layers_together,
)

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_PIECE_BYTES = 1024 * 1024
_LEVEL = 4  # a tenth larger than the best, in a third of the time


@dataclass(frozen=True, slots=True)
class SentLayer:
    """A layer that somebody sends: the digest of its blob where that is known, and how to read it.

    `file_bytes` is how long it is where it is a part of a file, which another process can read as well.
    """

    digest: str | None
    media_type: str | None
    open: Callable[[], AbstractContextManager[layer_tar.Stream]]
    file_bytes: int = 0


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
        self,
        sent: SentImage,
        known: Mapping[tuple[str, str], content_index.StoredLayer],
        watch: content_watch.Watch | None = None,
    ) -> tuple[str, content_index.Record]:
        """Take an image in; `known` are layers of the store by (diff id, blob). Returns its id and what the index is to say of it.

        Raises InvalidArgument (hostile, damaged, a wrong digest), Unsupported, EngineUnavailable (no space).
        """
        described = content_config.describe(sent.config)
        if len(described.diff_ids) != len(sent.layers):
            raise content_config.bad("configuration", "it names another number of layers than there are")
        stored = self._taken(
            list(zip(described.diff_ids, sent.layers, strict=True)), known, watch or content_watch.unwatched()
        )
        id = self._blobs.write(sent.config)
        manifest = sent.manifest if sent.manifest is not None else make_manifest(id, len(sent.config), stored)
        return id, content_index.Record(self._blobs.write(manifest), "", stored)

    def _taken(
        self,
        wanted: Sequence[tuple[str, SentLayer]],
        known: Mapping[tuple[str, str], content_index.StoredLayer],
        watch: content_watch.Watch,
    ) -> tuple[content_index.StoredLayer, ...]:
        """Return layers, those that are not there taken in, each once and side by side; what fails stops the rest."""
        found = {
            number: there
            for number, (diff_id, layer) in enumerate(wanted)
            if (there := known.get((diff_id, layer.digest or diff_id))) is not None and self.is_whole(there)
        }
        missing = [number for number in range(len(wanted)) if number not in found]
        firsts = {(wanted[one][0], wanted[one][1].digest): one for one in reversed(missing)}
        found |= self._new({number: wanted[number] for number in sorted(firsts.values())}, watch)
        return tuple(
            found[number] if number in found else found[firsts[diff_id, layer.digest]]
            for number, (diff_id, layer) in enumerate(wanted)
        )

    def is_whole(self, layer: content_index.StoredLayer) -> bool:
        """Say whether all that belongs to a layer is there."""
        return self._blobs.has_layer(layer.diff_id) and self._blobs.blob(layer.blob).exists()

    def _new(
        self, wanted: Mapping[int, tuple[str, SentLayer]], watch: content_watch.Watch
    ) -> dict[int, content_index.StoredLayer]:
        """Take layers in: their blobs as they come, and their contents unpacked unless they are there."""
        numbers = list(wanted)
        unpacked = {diff_id: number for number, (diff_id, _) in reversed(list(wanted.items()))}

        def check(at: int, found: layer_intake.Prepared) -> None:
            diff_id, layer = wanted[numbers[at]]
            _require("blob", layer.digest, found.blob)
            _require("layer", diff_id, found.diff_id)

        with ExitStack() as held:
            tasks = []
            for number, (diff_id, layer) in wanted.items():
                unpacks = unpacked[diff_id] == number and not self._blobs.has_layer(diff_id)
                stage = held.enter_context(self._blobs.stage())
                tasks.append(layers_together.Task(layer.open, layer.file_bytes, stage, unpacks))
            way = layers_together.Way(self.prefix, self._bounds, self._blobs.use_lock, watch)
            prepared = layers_together.prepared(tasks, way, check=check)
            if tasks:
                # Once for all of them: a name of the store never means less than it says, whenever the power goes.
                watch.look()
                self._blobs.settle()
            for task, found in zip(tasks, prepared, strict=True):
                self._blobs.adopt_blob(task.stage / layer_intake.BLOB, found.blob)
                if task.unpacks:
                    self._blobs.adopt_layer(task.stage / layer_intake.LAYER, found.diff_id)
        return {
            number: content_index.StoredLayer(
                found.diff_id,
                found.blob,
                wanted[number][1].media_type or OCI_LAYER + found.suffix,
                found.blob_bytes,
                self.size_bytes(found.diff_id) if found.size_bytes is None else found.size_bytes,
            )
            for number, found in zip(numbers, prepared, strict=True)
        }

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
            layer_intake.make_folder(folder)
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

    def copy(
        self,
        source: Path,
        *,
        is_overlay: bool,
        left_out: frozenset[str] = frozenset(),
        watch: content_watch.Watch | None = None,
    ) -> content_index.StoredLayer | None:
        """Make a layer of a copy of a folder; None when there is nothing in it."""
        prefix = self.prefix if is_overlay else None
        packing = layer_pack.Packing(source, prefix, bounds=self._bounds, left_out=left_out)
        pieces = packing.pieces()
        stream: layer_tar.Stream = layer_tar.FromPieces(lambda: next(pieces, b""))
        return self.unpacked(stream if watch is None else watch.stream(stream), needs_end=False, watch=watch)

    def unpacked(
        self, stream: layer_tar.Stream, *, needs_end: bool, watch: content_watch.Watch | None = None
    ) -> content_index.StoredLayer | None:
        """Make a layer of a tar that need not be kept as it is; None when there is nothing in it.

        `needs_end`: the tar must have its end mark, as it has no digest that tells whether it is whole.
        """
        with self._blobs.stage() as stage:
            folder = stage / "layer"
            layer_intake.make_folder(folder)
            measured = layer_streams.Measured(stream, most_bytes=self._bounds.most_tar_bytes, what="The archive")
            contents = layers.unpack(measured, folder, prefix=self.prefix, bounds=self._bounds)
            if needs_end and not contents.has_end:
                raise layer_tar.damaged("it ends without the mark of its end")
            measured.drain()
            return self._adopted(folder, watch)

    def _adopted(self, folder: Path, watch: content_watch.Watch | None = None) -> content_index.StoredLayer | None:
        packing = layer_pack.Packing(folder, self.prefix, bounds=self._bounds)
        pieces = packing.pieces()
        stream: layer_tar.Stream = layer_tar.FromPieces(lambda: next(pieces, b""))
        if watch is not None:
            stream = watch.uncounted().stream(stream)
        measured = layer_streams.Measured(stream, most_bytes=self._bounds.most_tar_bytes, what="The layer")
        measured.drain()
        if not packing.entries:
            return None
        diff_id = measured.digest
        if watch is not None:
            watch.look()
            self._blobs.settle()
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
