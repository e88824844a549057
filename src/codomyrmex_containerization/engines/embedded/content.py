"""Which images does this engine have, and what may be done with them? The content-addressed store of images.

Any number of processes may use one store: it is a folder, and what it holds changes whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    archives,
    content_blobs,
    content_config,
    content_index,
    content_intake,
    content_members,
    content_out,
    content_watch,
    layer_streams,
    layers,
    objects,
)
from codomyrmex_containerization.models import reference

RESERVED = "host"
_HEX = re.compile(r"[0-9a-f]{1,64}\Z")


class ContentStore:
    """The images of one engine."""

    def __init__(self, folders: objects.Folders, *, engine: str, bounds: layers.Bounds | None = None) -> None:
        self._engine = engine
        self._bounds = bounds or layers.Bounds()
        self._blobs = content_blobs.Blobs(folders.images)
        self._index = content_index.Index(folders.images, engine=engine)
        self._intake = content_intake.Intake(self._blobs, bounds=self._bounds)
        self._described: dict[str, content_config.Described] = {}

    # ---------------------------------------------------------------- lookups

    def image(self, text: str) -> objects.Image:
        """Return the image that a name, a name with a digest, an id or the beginning of one means. Raises NotFound, Ambiguous."""
        state = self._index.read()
        return self._image(state, self._find(state, text))

    def images(self) -> list[objects.Image]:
        """Return the images with a name and those that no other is made from, the newest first."""
        state = self._index.read()
        parents = {one.parent for one in state.images.values()}
        tags = state.tags_by_image()
        wanted = [id for id in state.images if id in tags or id not in parents]
        return _newest_first(self._image(state, id, tags=tags.get(id, ())) for id in wanted)

    def children(self, image_id: str) -> list[objects.Image]:
        """Return the images made right from this one, the newest first."""
        state = self._index.read()
        return _newest_first(self._image(state, id) for id in state.children(image_id))

    def layer_folders(self, image: objects.Image) -> tuple[Path, ...]:
        """Return the folders of an image's unpacked layers, the lowest first; those that are missing are unpacked.

        Raises Conflict naming a layer that is not in the store or is damaged.
        """
        for diff_id in image.diff_ids:
            if not self._blobs.has_layer(diff_id):
                self._restore(image.id, diff_id)
        return tuple(self._blobs.layer(one) for one in image.diff_ids)

    def _restore(self, image_id: str, diff_id: str) -> None:
        with self._index.use(), self._index.unpacking(diff_id):
            record = self._index.read().images.get(image_id)
            if record is None:
                raise self._missing(image_id)
            if not self._blobs.has_layer(diff_id):
                self._intake.restore(next(one for one in record.layers if one.diff_id == diff_id))

    def _find(self, state: content_index.State, text: str) -> str:
        """Return the id of the image that a text means."""
        hexadecimal = text.removeprefix("sha256:")
        if f"sha256:{hexadecimal}" in state.images:
            return f"sha256:{hexadecimal}"
        try:
            wanted = reference.parse(text)
        except errors.InvalidArgument:
            wanted = None
        if wanted is not None and str(wanted) in state.names:
            return state.names[str(wanted)]
        if wanted is not None and wanted.digest is not None:
            pinned = f"{wanted.name}@{wanted.digest}"
            if pinned in state.names:
                return state.names[pinned]
            return self._by_digest(state, text, wanted)
        if not _HEX.match(hexadecimal):
            raise self._missing(text)
        found = [id for id in state.images if id.startswith(f"sha256:{hexadecimal}")]
        if len(found) > 1:
            raise errors.Ambiguous(f"{text!r} fits {len(found)} images of {self._engine}.", hint="give more of the id")
        if not found:
            raise self._missing(text)
        return found[0]

    def _by_digest(self, state: content_index.State, text: str, wanted: reference.ImageReference) -> str:
        for id, record in state.images.items():
            if wanted.digest not in (record.digest, id):
                continue
            names = [reference.parse(one) for one in state.tags(id)]
            if any(one.name == wanted.name and wanted.tag in (None, one.tag) for one in names):
                return id
        raise self._missing(text)

    def _missing(self, text: str) -> errors.NotFound:
        return errors.NotFound(
            f"{self._engine} has no image {text!r}.",
            hint="check the image's name and tag; build, load or import it if it is not there",
            details={"missing": "image"},
        )

    def _image(self, state: content_index.State, id: str, *, tags: tuple[str, ...] | None = None) -> objects.Image:
        record = state.images[id]
        described = self._described.get(id)
        if described is None:
            described = self._described[id] = content_config.describe(self._blobs.read(id, "configuration"))
        return objects.Image(
            id=id,
            digest=record.digest,
            created=described.created,
            os=described.os,
            architecture=described.architecture,
            variant=described.variant,
            config=described.config,
            diff_ids=described.diff_ids,
            layers=described.layers([one.size_bytes for one in record.layers]),
            tags=state.tags(id) if tags is None else tags,
            parent=record.parent,
        )

    # ------------------------------------------------------------------ names

    def tag(self, source: str, target: str) -> None:
        """Give an image a name, which another one may lose. Raises NotFound, InvalidArgument (no name, or a reserved one)."""
        name = self._name(target)
        with self._index.change() as state:
            state.names[name] = self._find(state, source)

    def _name(self, text: str) -> str:
        """Return a name as it is kept."""
        wanted = reference.parse(text)
        if wanted.digest is not None:
            raise errors.InvalidArgument(f"{text!r} is no tag: it has a digest.", hint="leave out what follows '@'")
        if wanted.name == RESERVED:
            raise errors.InvalidArgument(
                f"The name {RESERVED!r} means this machine: no image can have it.", hint="choose another name"
            )
        return str(wanted)

    def _pinned(self, text: str) -> str:
        """Return the name of an image that was asked for by digest; nothing for one that was not."""
        wanted = reference.parse(text)
        return f"{wanted.name}@{wanted.digest}" if wanted.digest is not None else ""

    # ---------------------------------------------------------------- removal

    def remove(self, text: str, *, force: bool, users: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Remove a name, or an image with all of its names; `users` are the names of containers by the id of their image.

        What containers use stays, without a name, if it is forced. Returns the names and ids that are gone.
        Raises NotFound, Ambiguous, Conflict (several names, in use, others are made from it).
        """
        with self._index.change() as state:
            id = self._find(state, text)
            tags = state.tags(id)
            name = self._named(state, text, id)
            if name and len(tags) > 1:
                del state.names[name]
                return (name,)
            self._require_removable(state, text, id, force=force, used_by=users.get(id, ()))
            for tag in tags:
                del state.names[tag]
            gone = (*tags, *self._drop(state, id, users))
        self._collect(wait=False)
        return gone

    def _require_removable(
        self, state: content_index.State, text: str, id: str, *, force: bool, used_by: Sequence[str]
    ) -> None:
        tags = state.tags(id)
        if len(tags) > 1 and not force:
            raise errors.Conflict(
                f"Image {text} has several names: {', '.join(tags)}.", hint="remove them by name, or pass force=true"
            )
        if used_by and not force:
            raise errors.Conflict(
                f"Image {text} is being used by container {used_by[0]}.",
                hint="remove the containers that use it first or pass force=true",
            )
        if not tags and state.children(id):
            raise errors.Conflict(f"Image {text} has dependent child images.", hint="remove those first")
        if not tags and used_by:
            raise errors.Conflict(
                f"Image {text} is being used by container {used_by[0]}, and has no name to be taken away.",
                hint="remove the containers that use it first",
            )

    def _drop(self, state: content_index.State, id: str, users: Mapping[str, Sequence[str]]) -> list[str]:
        """Forget an image without a name that nothing needs, and what it was made from likewise."""
        gone: list[str] = []
        named = set(state.names.values())
        while id in state.images and id not in named and not state.children(id) and not users.get(id):
            gone.append(id)
            self._described.pop(id, None)
            id = state.images.pop(id).parent
        for key in [key for key, made in state.cache.items() if made not in state.images]:
            del state.cache[key]
        return gone

    def sweep(self, *, wait: bool = True) -> int:
        """Throw away what no image needs: what crashes left behind, mostly. Returns how many bytes came free.

        While others bring contents in it waits for them, or leaves it to the next one.
        """
        return self._collect(wait=wait)

    def tidy(self) -> int:
        """Throw away what was being brought in when its process died, unless others bring something in now. Returns the bytes."""
        with self._index.alone(wait=False) as is_alone:
            return self._blobs.clear_stages() if is_alone else 0

    def _collect(self, *, wait: bool) -> int:
        with self._index.alone(wait=wait) as is_alone:
            if not is_alone:
                return 0  # somebody brings contents in: the next removal or sweep takes this too
            state = self._index.read()
            stored = [layer for one in state.images.values() for layer in one.layers]
            return self._blobs.clear(
                blobs={*state.images, *(one.digest for one in state.images.values()), *(one.blob for one in stored)},
                layers={one.diff_id for one in stored},
            )

    # ----------------------------------------------------------------- making

    def commit(
        self,
        *,
        parent: objects.Image | None,
        upper: Path | None,
        config: objects.ImageConfig,
        instruction: str,
        comment: str = "",
        created: datetime | None = None,
        move: bool = False,
        left_out: frozenset[str] = frozenset(),
    ) -> objects.Image:
        """Make an image of another one, or of nothing, and an overlay's upper folder; None: only the configuration changes.

        The folder is copied, without the paths in `left_out`, or moved into the store: then nobody may have it mounted or change
        it any more.
        Raises Conflict (the parent is gone, a file changed meanwhile), Unsupported (what no layer can hold), EngineUnavailable.
        """
        with self._index.use():
            layer = None
            if upper is not None:
                layer = (
                    self._intake.move(upper) if move else self._intake.copy(upper, is_overlay=True, left_out=left_out)
                )
            return self._made(parent, layer, config, instruction, comment, created)

    def _made(
        self,
        parent: objects.Image | None,
        layer: content_index.StoredLayer | None,
        config: objects.ImageConfig,
        instruction: str,
        comment: str,
        created: datetime | None,
    ) -> objects.Image:
        written = content_config.write(
            parent=None if parent is None else self._blobs.read(parent.id, "configuration"),
            config=config,
            diff_id=layer.diff_id if layer else None,
            instruction=instruction,
            comment=comment,
            created=created or datetime.now(tz=UTC),
        )
        id = self._blobs.write(written)
        with self._index.change() as state:
            if parent is not None and parent.id not in state.images:
                raise errors.Conflict(
                    f"The image {parent.id} that this is made from was removed meanwhile.", hint="start again"
                )
            before = state.images[parent.id].layers if parent is not None else ()
            stored = (*before, *([layer] if layer else []))
            if id not in state.images:
                manifest = content_intake.make_manifest(id, len(written), stored)
                state.images[id] = content_index.Record(
                    self._blobs.write(manifest), parent.id if parent else "", stored
                )
        return self._image(self._index.read(), id)

    def import_rootfs(
        self,
        source: Path,
        *,
        tag: str | None,
        config: objects.ImageConfig | None = None,
        watch: content_watch.Watch | None = None,
    ) -> objects.Image:
        """Make an image of a root file system: a tar, packed or not, or a folder.

        Raises NotFound (no such file), InvalidArgument (no tar, hostile, too large), Unsupported (devices in a folder).
        """
        name = self._name(tag) if tag is not None else None
        with self._index.use():
            layer = self._root(source, watch or content_watch.unwatched())
            if layer is None:
                raise errors.InvalidArgument(f"{source} holds nothing.", hint="name a root file system")
            made = self._made(None, layer, config or objects.ImageConfig(), "", "Imported", None)
            if name is not None:
                self.tag(made.id, name)
        return self.image(made.id)

    def _root(self, source: Path, watch: content_watch.Watch) -> content_index.StoredLayer | None:
        with content_members.source(source) as (fd, is_folder):
            if is_folder:
                return self._intake.copy(Path(f"/proc/self/fd/{fd}"), is_overlay=False, watch=watch)
            stream = layer_streams.plain(watch.stream(content_members.whole(fd)))
            return self._intake.unpacked(stream, needs_end=True, watch=watch)

    # ---------------------------------------------------------- load and save

    def load(
        self, path: Path, *, tag: str | None = None, watch: content_watch.Watch | None = None
    ) -> list[objects.Image]:
        """Load the images of a docker-archive, an OCI archive or an OCI layout folder; `tag` names the only one, whatever it says itself.

        Raises NotFound (no such file), InvalidArgument (none of these, damaged, hostile), Unsupported, EngineUnavailable, and
        Cancelled where it is stopped; what was taken in by then of an image is thrown away.
        """
        try:
            return self._load(path, tag, watch or content_watch.unwatched())
        except BaseException:
            with suppress(errors.ContainerizationError):
                self._collect(wait=False)
            raise

    def _load(self, path: Path, tag: str | None, watch: content_watch.Watch) -> list[objects.Image]:
        name = self._name(tag) if tag is not None else None
        with (
            self._index.use(),
            self._blobs.stage() as stage,
            content_members.opened(path, scratch=stage, most_bytes=self._bounds.most_tar_bytes, watch=watch) as members,
        ):
            found = archives.find(members)
            if not found or (name is not None and len(found) != 1):
                raise errors.InvalidArgument(
                    f"The archive holds {len(found)} images.",
                    hint="leave out the tag: images keep their names" if found else "use an archive of images",
                )
            # All names before the first layer: a bad one is known at once.
            names = [(name,) if name is not None else tuple(map(self._name, sent.names)) for sent in found]
            return [self.add(sent, names=each, watch=watch) for sent, each in zip(found, names, strict=True)]

    def has_layer(self, diff_id: str, blob: str) -> bool:
        """Say whether a layer is here whole, unpacked and as the blob that was sent for it."""
        known = (layer for one in self._index.read().images.values() for layer in one.layers)
        return any((one.diff_id, one.blob) == (diff_id, blob) and self._intake.is_whole(one) for one in known)

    @contextmanager
    def taking(self, id: str) -> Iterator[None]:
        """Keep others from fetching the same image at the same time: who comes second finds it here."""
        with self._index.fetching(id):
            yield

    def add(
        self, sent: content_intake.SentImage, *, names: Sequence[str], watch: content_watch.Watch | None = None
    ) -> objects.Image:
        """Take in an image that somebody sends, under these names, which may be digests. Raises what `load` raises."""
        kept = [self._pinned(one) or self._name(one) for one in names]
        with self._index.use():
            known = {
                (layer.diff_id, layer.blob): layer for one in self._index.read().images.values() for layer in one.layers
            }
            id, record = self._intake.take(sent, known, watch)
            with self._index.change() as state:
                before = state.images.get(id)
                if before is None:
                    state.images[id] = record
                elif sent.manifest is not None:
                    state.images[id] = content_index.Record(record.digest, before.parent, record.layers)
                for name in kept:
                    state.names[name] = id
            return self._image(self._index.read(), id)

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """Give a folder beside the images that goes with the block; what comes in meanwhile is not thrown away."""
        with self._index.use(), self._blobs.stage() as stage:
            yield stage

    def has(self, image_id: str) -> bool:
        """Say whether there is an image of this id."""
        return image_id in self._index.read().images

    def take_layout(self, members: content_members.Members) -> objects.Image:
        """Take in the only image of an OCI layout, without a name of its own. Raises what `load` raises."""
        found = archives.find(members)
        if len(found) != 1:
            raise errors.InvalidArgument(f"The archive holds {len(found)} images, not one.", hint="make it again")
        return self.add(found[0], names=())

    def write_layout(self, image: objects.Image, sink: content_out.Sink) -> None:
        """Write an image as an OCI layout. Raises NotFound, Conflict (a layer is lost)."""
        with self._index.use():
            record = self._index.read().images.get(image.id)
            if record is None:
                raise self._missing(image.id)
            saved = content_out.Saved(image.id, record, ())
            content_out.write_oci([saved], sink, content_out.Reader(self._blobs, self._intake))

    def forget(self, image_id: str, *, users: Mapping[str, Sequence[str]]) -> None:
        """Remove an image without a name that nothing needs, and leave any other."""
        with self._index.change() as state:
            if image_id in state.images and not state.tags(image_id):
                self._drop(state, image_id, users)

    @property
    def prefix(self) -> str:
        """What overlay's marks are called in this engine's folders."""
        return self._intake.prefix

    @property
    def bounds(self) -> layers.Bounds:
        """How large a layer may be."""
        return self._bounds

    @contextmanager
    def outgoing(self, text: str) -> Iterator[tuple[str, content_index.Record, content_out.Reader]]:
        """Lend what the store has of an image, its id first; nothing of it is thrown away meanwhile. Raises NotFound, Ambiguous."""
        with self._index.use():
            state = self._index.read()
            id = self._find(state, text)
            yield id, state.images[id], content_out.Reader(self._blobs, self._intake)

    def pack(self, text: str) -> None:
        """Keep packed blobs of an image's layers, as registries want them, where its manifest is one of ours. Raises NotFound, Conflict."""
        with self._index.use():
            state = self._index.read()
            id = self._find(state, text)
            record = state.images[id]
            size = len(self._blobs.read(id, "configuration"))
            ours = content_blobs.digest(content_intake.make_manifest(id, size, record.layers))
            if record.digest != ours or all(one.blob != one.diff_id for one in record.layers):
                return
            stored = [layer for one in state.images.values() for layer in one.layers]
            known = {one.diff_id: one for one in stored if one.blob != one.diff_id and self._intake.is_whole(one)}
            reader = content_out.Reader(self._blobs, self._intake)
            for layer in record.layers:
                if layer.diff_id not in known:
                    known[layer.diff_id] = self._intake.gzipped(layer, partial(reader.packed, layer))
            packed = tuple(known[one.diff_id] for one in record.layers)
            manifest = self._blobs.write(content_intake.make_manifest(id, size, packed))
            with self._index.change() as changed:
                if id in changed.images:
                    changed.images[id] = content_index.Record(manifest, record.parent, packed)

    def names_with(self, blob: str) -> list[str]:
        """Return the names of the images that have a layer, by its blob."""
        state = self._index.read()
        having = {id for id, one in state.images.items() if any(layer.blob == blob for layer in one.layers)}
        return sorted(name for name, id in state.names.items() if id in having)

    def save(
        self,
        images: Sequence[str],
        path: Path,
        *,
        format: archives.Format,
        watch: content_watch.Watch | None = None,
    ) -> None:
        """Write images to a file (docker-archive, oci-archive) or to a new folder (oci), with the names they are given by.

        Raises NotFound, Ambiguous, Conflict (the folder is not empty, a layer is lost), EngineUnavailable.
        """
        with self._index.use():
            state = self._index.read()
            wanted: dict[str, list[str]] = {}
            for text in images:
                id = self._find(state, text)
                names = wanted.setdefault(id, [])
                names += [name for name in [self._named(state, text, id)] if name and name not in names]
            saved = [content_out.Saved(id, state.images[id], tuple(names)) for id, names in wanted.items()]
            content_out.write(saved, path, format=format, reader=content_out.Reader(self._blobs, self._intake, watch))

    def _named(self, state: content_index.State, text: str, id: str) -> str:
        try:
            name = str(reference.parse(text))
        except errors.InvalidArgument:
            return ""
        return name if state.names.get(name) == id and "@" not in name else ""  # an archive's names are tags

    # ------------------------------------------------------------ build cache

    def cached(self, key: str) -> objects.Image | None:
        """Return the image that was made before under this key, if it is still there."""
        state = self._index.read()
        id = state.cache.get(key)
        return self._image(state, id) if id in state.images and id is not None else None

    def remember(self, key: str, image: objects.Image) -> None:
        """Remember which image was made under a key."""
        with self._index.change() as state:
            if image.id in state.images:
                state.cache[key] = image.id


def _newest_first(images: Iterable[objects.Image]) -> list[objects.Image]:
    begin = datetime.fromtimestamp(0, tz=UTC)
    return sorted(images, key=lambda one: (one.created or begin, one.id), reverse=True)
