"""What goes on in a container, what has it written, and how does it become an image while it stands still?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import process_table
from codomyrmex_containerization.engines.embedded import (
    build_run,
    disk,
    file_trees,
    host_image,
    idmaps,
    isolation,
    layer_folders,
    life,
    objects,
    state,
)
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.inside import ChangeKind, FileChange, ProcessRow

_KINDS: Mapping[file_trees.Kind, ChangeKind] = {"A": "added", "C": "changed", "D": "deleted"}


@dataclass(frozen=True, slots=True)
class Written:
    """What a container has changed, by path; `made_for_it` are paths (without a slash before) that only its runtime made."""

    changes: tuple[FileChange, ...]
    made_for_it: frozenset[str]


# ----------------------------------------------------------------------------------------------------- name and processes


def rename(house: life.House, text: str, name: str) -> None:
    """Give a container another name. Raises NotFound, Conflict (taken, or its own), InvalidArgument."""
    state.require_name(name)
    with house.containers.hold(house.look(text).id) as record:
        if record.name == name:
            raise errors.Conflict(f"The container is called {name!r} already.", hint="there is nothing to do")
        house.note(house.containers.rename(record, name), "rename", oldName=record.name)


def top(house: life.House, text: str) -> list[ProcessRow]:
    """List a container's processes. Raises NotFound, Conflict (not running)."""
    record = house.look(text)
    first = record.first
    if record.status not in ("running", "paused") or first is None:
        raise errors.Conflict(f"Container {record.name} is not running.", hint="start it first")
    numbers = idmaps.range_of(record.id).first if isolation.is_strict(record.spec) else 0
    found = process_table.rows(first.pid, record.id, first_user=numbers)
    # Looked at again afterwards: its number may have become another's.
    if not first.is_alive:
        raise errors.Conflict(f"Container {record.name} has just ended.", hint="see its state with container_inspect")
    return found


# -------------------------------------------------------------------------------------------------------------- changes


def changes(house: life.House, text: str) -> list[FileChange]:
    """List what a container has changed, as of now. Raises NotFound, EngineUnavailable, Unsupported (too deep)."""
    record = house.look(text)
    if record.status == "dead":  # of which image it was nobody knows
        record = house.containers.read(record.id)
    if record.limits.disk_bytes is None:
        return list(written(house, record).changes)
    with house.containers.hold(record.id) as record:
        return list(written(house, record).changes)


def written(house: life.House, record: Record) -> Written:
    """Tell what a container has written from what was made in its layer to be mounted on. Raises as `changes`."""
    with own_files(house, record) as upper:
        return _written(house, record, upper) if upper is not None else Written((), frozenset())


@contextmanager
def own_files(house: life.House, record: Record) -> Iterator[Path | None]:
    """Give the folder that a container writes to, None for one that was never prepared; one with a disk of its own is held."""
    folder = house.containers.folder(record.id)
    if record.limits.disk_bytes is None:
        upper = folder / "upper"
        yield upper if upper.is_dir() else None
        return
    was_mounted = disk.is_up(folder)
    try:
        with disk.room(folder, record.limits.disk_bytes) as (upper, _):
            yield upper
    finally:
        if not was_mounted:
            disk.take_down(folder)


def _written(house: life.House, record: Record, upper: Path) -> Written:
    layers = house.layers(record.image)
    raw = file_trees.changes(upper, layers)
    ways = _ways([*build_run.STUBS, *(mount.target for mount in record.mounts)])
    told: set[str] = set()
    kept: list[FileChange] = []
    # What is in a folder comes before the folder.
    for kind, path in sorted(raw, key=lambda one: os.fsencode(one[1]), reverse=True):
        if path in ways and path not in told and _is_stub(upper, layers, kind, path):
            continue
        kept.append(FileChange(_KINDS[kind], path))
        told.add(os.path.dirname(path))
        if path in told:
            told.discard(path)
    left = frozenset(path.lstrip("/") for _, path in raw) - {one.path.lstrip("/") for one in kept}
    return Written(tuple(reversed(kept)), left)


def _ways(paths: Sequence[str]) -> frozenset[str]:
    found = set()
    for path in paths:
        way = os.path.normpath(path)
        while way.strip("/"):
            found.add(way)
            way = os.path.dirname(way)
    return frozenset(found)


def _is_stub(upper: Path, layers: Sequence[Path], kind: file_trees.Kind, path: str) -> bool:
    """Say whether an entry without changes in it is what a runtime makes: an empty file or folder, or a folder as it was before."""
    now = _look(upper, path)
    if kind == "D" or now is None:
        return False
    if stat.S_ISREG(now.st_mode):
        return kind == "A" and now.st_size == 0
    if not stat.S_ISDIR(now.st_mode):
        return False
    before = next((one for layer in reversed(layers) if (one := _look(layer, path)) is not None), None)
    return before is None or _who(before) == _who(now)


def _look(top: Path, path: str) -> os.stat_result | None:
    parts = tuple(one for one in path.split("/") if one)
    with suppress(OSError), layer_folders.Chain(top) as chain:
        return layer_folders.look(chain.open(parts[:-1]), parts[-1])
    return None


def _who(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mode, found.st_uid, found.st_gid


# ------------------------------------------------------------------------------------------------------------ committing


@contextmanager
def still(house: life.House, text: str) -> Iterator[Record]:
    """Keep a container from changing while the block lasts; one that runs is paused and goes on afterwards. Raises NotFound, Conflict."""
    record = house.look(text)
    if record.status == "restarting":
        raise errors.Conflict(f"Container {record.name} is about to run again.", hint="stop it first, or try again")
    is_frozen = record.status == "running"
    if is_frozen:
        house.freeze(record.id, frozen=True)
    try:
        with house.containers.hold(record.id) as now:
            if now.status not in ("created", "exited", "paused"):
                raise errors.Conflict(f"Container {now.name} was started meanwhile.", hint="try again")
            yield now
    finally:
        if is_frozen:
            with suppress(errors.Conflict, errors.NotFound):  # somebody let it go on, or removed it
                house.freeze(record.id, frozen=False)


def require_own_files(record: Record, doing: str) -> None:
    """Raise Unsupported for a container whose file system is this machine's, or whose files belong to nobody else's users."""
    if record.image.id == host_image.ID:
        raise errors.Unsupported(
            f"Container {record.name} is this machine, which is never made a file.",
            hint=f"{doing} a container of another image; container_copy copies single files; engine='docker' has images of its own",
        )
    if isolation.is_strict(record.spec):
        raise errors.Unsupported(
            f"Container {record.name} has isolation='strict': its root is read-only, and holds nothing that its image has not.",
            hint="use its image; what it wrote is in its volumes (embedded, docker and podman copy with container_copy)",
        )


def commit(house: life.House, text: str, *, tag: str, labels: Mapping[str, str], message: str) -> str:
    """Make an image of a container and name it; return its id. Raises NotFound, Conflict, Unsupported, InvalidArgument (the name)."""
    with still(house, text) as record:
        require_own_files(record, "commit")
        with own_files(house, record) as upper:
            made = house.images.commit(
                parent=record.image,
                upper=upper,
                config=_config(record, labels),
                instruction=" ".join((*record.entrypoint, *record.command)),
                comment=message,
                left_out=written(house, record).made_for_it,
            )
        try:
            house.images.tag(made.id, tag)
        except errors.ContainerizationError:
            house.images.remove(made.id, force=False, users=house.image_users())
            raise
    house.note(record, "commit", imageID=made.id, imageRef=tag)
    return made.id


def _config(record: Record, labels: Mapping[str, str]) -> objects.ImageConfig:
    """Return what makes containers of the image run as this one did."""
    spec, config = record.spec, record.image.config
    env = {**dict(one.partition("=")[::2] for one in config.env), **spec.env}
    exposed = (*config.exposed, *(f"{one.container_port}/{one.protocol}" for one in spec.ports))
    return objects.ImageConfig(
        env=tuple(f"{name}={value}" for name, value in env.items()),
        entrypoint=record.entrypoint,
        command=record.command,
        workdir=spec.workdir or config.workdir,
        user=record.user,
        labels={**record.labels, **labels},
        exposed=tuple(dict.fromkeys(exposed)),
        volumes=config.volumes,
        healthcheck=spec.healthcheck or config.healthcheck,
        stop_signal=config.stop_signal,
        shell=config.shell,
    )
