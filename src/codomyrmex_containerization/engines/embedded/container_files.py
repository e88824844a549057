"""How does a container become one file with all that is its own, and such a file a container?

A tar: `container.json` (what it was made with), `layer.tar` (its writable layer), `image/` (its image, an OCI layout) and `digests.json`.
What it says of itself is only a wish: a container is made by a specification that was judged here, from parts whose digests are right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codomyrmex_containerization import errors, policy
from codomyrmex_containerization.engines.embedded import (
    content_blobs,
    content_config,
    content_members,
    content_out,
    inside,
    isolation,
    layer_intake,
    layer_pack,
    layer_streams,
    layer_tar,
    layers,
    life,
)
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import ContainerSpec
from codomyrmex_containerization.models.inside import StoredContainer

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT = "codomyrmex-containerization/container/1"
_CONTAINER = "container.json"
_LAYER = "layer.tar"
_DIGESTS = "digests.json"
_IMAGE = "image/"
_TOO_LARGE = "have it write to a volume instead, or commit it and save the image as oci"
_MOST_MOUNTS = 100  # so many that a person who is asked about them can read
Passed = Callable[[int], None]


def _require_no_disk(disk_bytes: int | None) -> None:
    if disk_bytes is not None:
        raise errors.Unsupported(
            "A container with disk space of its own is no such file: what it wrote is on that disk.",
            hint="make an image of it with container_commit (embedded), and run that",
        )


# -------------------------------------------------------------------------------------------------------------- writing


def write(house: life.House, text: str, path: Path, *, passed: Passed, is_stopped: Callable[[], bool]) -> None:
    """Write a container to a file, which takes its name when all is written; one that runs is paused meanwhile.

    Raises NotFound, Conflict (a folder is there, a layer is lost), Unsupported (this machine, strict isolation), Cancelled.
    """
    if path.is_dir():
        raise errors.Conflict(f"{path} is a folder.", hint="name a file in it")
    with inside.still(house, text) as record:
        inside.require_own_files(record, "export")
        _require_no_disk(record.limits.disk_bytes)
        upper = house.containers.folder(record.id) / "upper"
        upper.mkdir(mode=0o755, exist_ok=True)
        with content_out.new_file(path) as file:
            tar = content_out.Tar(file, otherwise=_TOO_LARGE)
            described = content_config.encoded(_described(record))
            tar.small(_CONTAINER, described)
            left_out = inside.written(house, record).made_for_it
            packing = layer_pack.Packing(upper, house.images.prefix, bounds=house.images.bounds, left_out=left_out)
            pieces = packing.pieces()
            watch = _Watch(passed, is_stopped)
            layer = layer_streams.Measured(
                layer_tar.FromPieces(lambda: next(pieces, b"")), most_bytes=2**62, what="The container's layer"
            )
            tar.stream(_LAYER, watch.over(layer))
            house.images.write_layout(record.image, _InFolder(tar, watch))
            digests = {_CONTAINER: content_blobs.digest(described), _LAYER: layer.digest}
            tar.small(_DIGESTS, content_config.encoded(digests))
            file.write(layer_tar.END)
    house.note(record, "export")


def _described(record: Record) -> dict[str, Any]:
    network = record.networks[0][0] if record.networks else "none"
    usual = record.spec.network in (None, "default") and network == "bridge"
    spec = replace(
        record.spec,
        name=record.name,
        labels={name: text for name, text in record.spec.labels.items() if not name.startswith(policy.LABEL_PREFIX)},
        mounts=tuple(replace(one, labels={}) for one in record.spec.mounts),
        limits=record.limits,
        restart=record.restart,
        network=record.spec.network if usual else network,
    )
    return {
        "format": FORMAT,
        "name": record.name,
        "image": record.spec.image,
        "image_id": record.image.id,
        "spec": _adapter().dump_python(spec, mode="json"),
    }


@dataclass(slots=True)
class _Watch:
    """Counts what was read, over all parts, and ends it when somebody says stop."""

    passed: Passed
    is_stopped: Callable[[], bool]
    count: int = 0

    def over(self, stream: layer_tar.Stream) -> layer_tar.Stream:
        """Return a stream that is watched."""
        return _Watched(stream, self)


@dataclass(frozen=True, slots=True)
class _Watched:
    stream: layer_tar.Stream
    watch: _Watch

    def read(self, count: int, /) -> bytes:
        """Return the next bytes. Raises Cancelled."""
        if self.watch.is_stopped():
            raise errors.Cancelled("The export was stopped.")
        piece = self.stream.read(count)
        self.watch.count += len(piece)
        self.watch.passed(self.watch.count)
        return piece


@dataclass(frozen=True, slots=True)
class _InFolder:
    """Where the image's files go: a folder of the archive."""

    tar: content_out.Tar
    watch: _Watch

    def small(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self.tar.small(_IMAGE + name, data)

    def stream(self, name: str, source: layer_tar.Stream) -> None:
        """Write a file of unknown size."""
        self.tar.stream(_IMAGE + name, self.watch.over(source))


# -------------------------------------------------------------------------------------------------------------- reading


def look(house: life.House, path: Path) -> StoredContainer:
    """Say what an archive holds. Raises NotFound, InvalidArgument (no such archive, damaged, hostile), Unsupported (a newer one)."""
    with (
        house.images.receiving() as stage,
        content_members.opened(path, scratch=stage, most_bytes=house.images.bounds.most_tar_bytes) as members,
    ):
        return _stored(members)


def make(house: life.House, path: Path, spec: ContainerSpec) -> str:
    """Make a container by a specification, with the image and the layer of an archive; return its id.

    Nothing is there before all of it was found to be right. Raises what `look` and `House.create` raise.
    """
    if isolation.is_strict(spec):
        raise errors.Unsupported(
            "A container with isolation='strict' has no files of its own to be imported.",
            hint="run its image with isolation='strict' (embedded)",
        )
    _require_no_disk(spec.limits.disk_bytes)
    images = house.images
    with (
        images.receiving() as stage,
        content_members.opened(path, scratch=stage, most_bytes=images.bounds.most_tar_bytes) as members,
    ):
        stored = _stored(members)
        upper = stage / "upper"
        _unpack(house, members, upper)
        is_known = images.has(stored.image_id)
        image = images.take_layout(_Below(members, _IMAGE))
        try:
            if image.id != stored.image_id:
                raise _bad(f"its image is {image.id}, not {stored.image_id} as it says")
            if image.architecture not in ("", content_config.host_architecture()):
                raise errors.Unsupported(
                    f"The container is one for {image.architecture}, this machine is {content_config.host_architecture()}.",
                    hint="import it on a machine of that kind with engine='embedded'",
                )
            return house.create(replace(spec, image=image.id), upper=upper).id
        except BaseException:
            if not is_known:
                images.forget(image.id, users=house.image_users())
            raise


def _stored(members: content_members.Members) -> StoredContainer:
    if not members.has(_CONTAINER) or not members.has(_DIGESTS):
        raise errors.InvalidArgument(
            "The archive holds no container: it has no container.json or no digests.json.",
            hint="container_export with format='state' writes such; a root file system becomes an image by image_import",
        )
    data = content_members.read_small(members, _CONTAINER)
    if content_blobs.digest(data) != _digest(members, _CONTAINER):
        raise _bad("its container.json has another digest than it should")
    raw = content_config.read_json(data, _CONTAINER)
    if not isinstance(raw, dict):
        raise _bad("its container.json is no object")
    if raw.get("format") != FORMAT:
        raise errors.Unsupported(
            "The archive is of a form that is not known here.",
            hint="import it with the release that wrote it (embedded)",
        )
    name, image, image_id = (raw.get(one) for one in ("name", "image", "image_id"))
    if not isinstance(name, str) or not isinstance(image, str) or not content_config.is_digest(image_id):
        raise _bad("its container.json lacks a name or an image")
    return StoredContainer(name, image, str(image_id), _spec(raw.get("spec")))


def _spec(raw: object) -> ContainerSpec:
    try:
        spec = _adapter().validate_python(raw)
    except ValueError as error:
        raise _bad("its container.json describes no container") from error
    if len(spec.mounts) > _MOST_MOUNTS:
        raise _bad(f"it has more than {_MOST_MOUNTS} mounts")
    if not _is_all_of(raw, _adapter().dump_python(spec, mode="json")):
        raise errors.Unsupported(
            "The archive's container has properties that are not known here, or not in this form.",
            hint="import it with the release that wrote it (embedded)",
        )
    return spec


def _is_all_of(raw: object, understood: object) -> bool:
    """Say whether everything that was said was understood: nothing is left out in silence."""
    if isinstance(raw, dict) and isinstance(understood, dict):
        return all(name in understood and _is_all_of(value, understood[name]) for name, value in raw.items())
    if isinstance(raw, list) and isinstance(understood, list):
        return len(raw) == len(understood) and all(map(_is_all_of, raw, understood))
    return type(raw) is type(understood) and raw == understood


def _digest(members: content_members.Members, name: str) -> str:
    raw = content_config.read_json(content_members.read_small(members, _DIGESTS), _DIGESTS)
    found = raw.get(name) if isinstance(raw, dict) else None
    if not content_config.is_digest(found):
        raise _bad(f"its digests.json has none for {name}")
    return str(found)


def _unpack(house: life.House, members: content_members.Members, folder: Path) -> None:
    """Unpack the writable layer into a new folder. Raises InvalidArgument."""
    bounds = house.images.bounds
    wanted = _digest(members, _LAYER)
    layer_intake.make_folder(folder)
    with members.open(_LAYER) as window:
        layer = layer_streams.Measured(window, most_bytes=bounds.most_tar_bytes, what="The container's layer")
        layers.unpack(layer, folder, prefix=house.images.prefix, bounds=bounds)
        layer.drain()
    if layer.digest != wanted:
        raise _bad("its layer.tar has another digest than it should")


@dataclass(frozen=True, slots=True)
class _Below:
    """The files in one folder of an archive."""

    members: content_members.Members
    folder: str

    def has(self, name: str) -> bool:
        """Say whether there is such a file."""
        return self.members.has(self.folder + name)

    def size_bytes(self, name: str) -> int:
        """Return the size of a file."""
        return self.members.size_bytes(self.folder + name)

    def open(self, name: str) -> content_members.Window:
        """Open a file."""
        return self.members.open(self.folder + name)


def _bad(reason: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"The archive of the container cannot be used: {reason}.",
        hint="it was changed or damaged on its way: export the container again, or fetch the archive again",
    )


@functools.cache
def _adapter() -> TypeAdapter[ContainerSpec]:
    from pydantic import TypeAdapter

    return TypeAdapter(ContainerSpec)
