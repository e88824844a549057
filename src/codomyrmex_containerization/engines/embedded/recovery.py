"""What becomes of what a killed server, or a reboot, has left behind? Whoever opens the data folder next sets it right."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    begun,
    build_scratch,
    mounts,
    netns,
    revivals,
    runtime,
    shapes,
    state,
)

if TYPE_CHECKING:
    from codomyrmex_containerization.engines.embedded import binds, content, network, objects, volumes
    from codomyrmex_containerization.engines.embedded.state import Record

_BOOT = "boot"


class House(Protocol):
    """What recovery asks of the house whose stores it looks through."""

    folders: objects.Folders
    containers: state.Containers
    images: content.ContentStore
    volumes: volumes.VolumeStore
    networks: network.Networks
    begun: begun.Notes
    places: binds.Places
    passages: binds.Places

    @property
    def runtime(self) -> runtime.Runtime:
        """The OCI runtime."""

    def note(self, record: Record, action: str) -> None:
        """Remember that something happened to a container."""

    def needs_care(self, record: Record) -> bool:
        """Whether a record is not as things are."""

    def care_for(self, record: Record) -> Record:
        """Bring a record and what there is together; the container is held."""

    def take_down(self, container_id: str, folder: Path) -> None:
        """Take away a container's walls, network and mounts."""

    def volume_users(self) -> dict[str, list[str]]:
        """Return the names of the containers that mount each volume."""


def recover(house: House) -> list[str]:
    """Set right what servers left that are gone. Waits for nobody: what is held is the business of who holds it."""
    found = [*_of_another_boot(house), *begun.end_orphans(house.folders)]
    house.places.sweep()
    house.passages.sweep()
    for id in house.containers.ids():
        found += _container(house, id)
    found += _nobodys(house)
    for note in house.begun.all():
        if note.is_left and not house.containers.folder(note.id).exists():
            found += _unfinished(house, note)
    found += _networks(house)
    found += _scratch(house)
    return found


def pick_up(house: House, record: Record) -> Record:
    """Bring a record into line with its container, after a server was killed amid something; the container is held."""
    begun.end_orphans(house.folders)
    if record.first is not None and record.first.is_alive:
        try:
            status = house.runtime.status(record.id)
        except (runtime.RuntimeFailed, errors.DeadlineExceeded):
            return record  # looked at again when the runtime answers
        if status in ("running", "paused"):
            record = _running(house, record, status == "paused")
            house.begun.drop(record.id)
            return record
    if record.status not in ("running", "paused"):
        house.take_down(record.id, house.containers.folder(record.id))
        if record.prepared:
            record = house.containers.write(replace(record, prepared=False, first=None, monitor=None))
    house.begun.drop(record.id)
    return record


def _running(house: House, record: Record, is_frozen: bool) -> Record:
    wanted = "paused" if is_frozen else "running"
    record = _as_connected(house, record)
    if record.status == wanted:
        return house.containers.write(record)
    if record.status in ("running", "paused"):
        return house.containers.write(replace(record, status="paused" if is_frozen else "running"))
    begun_now = replace(
        record,
        status="paused" if is_frozen else "running",
        started_at=state.now(),
        finished_at=None,
        exit_code=None,
        oom_killed=False,
        error="",
        health="starting" if shapes.healthcheck(record) is not None else "none",
        health_failures=0,
        health_output="",
    )
    house.note(house.containers.write(begun_now), "start")
    return begun_now


def _as_connected(house: House, record: Record) -> Record:
    """Return a record with the networks that its container is really in."""
    attached = house.networks.attached(record.id)
    if attached is None:
        return record
    there = {one.name for one in attached.networks}
    wanted = {name for name, _ in record.networks}
    for name in there - wanted:  # nobody was told that it is connected
        house.networks.disconnect(record.id, name)
    left = tuple(one for one in record.networks if one[0] in there)
    now = house.networks.attached(record.id)
    return replace(
        record, networks=left or (("none", ()),), attachments=now.networks if now is not None else record.attachments
    )


# ---------------------------------------------------------------------------------------------------------- what there is


def _container(house: House, id: str) -> list[str]:
    try:
        record = house.containers.read(id)
        if not house.needs_care(record):
            return []
        with house.containers.hold_if_free(id) as is_free:
            if not is_free:
                return []
            before = house.containers.read(id)
            now = house.care_for(before)
    except errors.NotFound:
        is_damaged = house.containers.is_damaged(id)
        return [f"the record of container {id[:12]} is damaged: remove it by its id"] if is_damaged else []
    except errors.ContainerizationError as error:
        return [f"container {id[:12]} could not be set right: {error.message}"]
    if now.status == before.status:
        return [f"what was left of container {now.name}'s last start"] if not now.is_alive else []
    return [f"container {now.name} had {'ended' if not now.is_alive else 'started'}"]


def _unfinished(house: House, note: begun.Note) -> list[str]:
    """Take away what was begun for a container that there is not: a step of a build, one that was being made or removed."""
    try:
        # A damaged note does not say where: what is nowhere is not looked for in the working folder.
        house.take_down(note.id, Path(note.folder) if note.folder else house.containers.folder(note.id))
        for name in note.volumes:
            house.volumes.remove(name, users=house.volume_users(), force=True)
    except errors.ContainerizationError as error:
        return [f"what was begun for {note.id[:12]} cannot be taken back: {error.message}"]
    house.begun.drop(note.id)
    return [f"what was begun for {note.id[:12]}"]


def _nobodys(house: House) -> list[str]:
    found = []
    with suppress(errors.EngineUnavailable):
        for folder in house.containers.sweep():
            id = folder.name.removeprefix(".gone-")
            with suppress(errors.ContainerizationError):
                house.take_down(id, folder)
            if mounts.remove(folder):
                found.append(f"the folder of container {id[:12]}")
    for path in _entries(house.folders.exits):
        if not house.containers.folder(path.name).exists():
            with suppress(OSError):
                path.unlink()
    return found


def _networks(house: House) -> list[str]:
    # Those of containers were looked at one by one, and those of steps that still run are somebody's.
    kept = {*house.containers.ids(), *(note.id for note in house.begun.all() if not note.is_left)}
    return [*house.networks.recover(kept), *house.networks.end_strays()]


def _scratch(house: House) -> list[str]:
    folders = house.folders
    for folder in (folders.networks, folders.run / "net", folders.data / "begun", folders.images):
        state.sweep_beside(folder)
    with suppress(OSError):
        if (folders.data / "builds").is_dir():
            build_scratch.sweep(folders.data / "builds")
    freed = 0
    with suppress(errors.ContainerizationError):
        freed = house.images.sweep(wait=False)
    return [f"{freed} bytes of images that nobody needs"] if freed else []


# ------------------------------------------------------------------------------------------------------------- reboots


def _of_another_boot(house: House) -> list[str]:
    """Forget what only was while the machine ran: numbers of processes mean nothing any more, and mounts have gone."""
    run, marked = house.folders.run, house.folders.run / _BOOT
    with suppress(OSError):
        if marked.read_text("ascii") == state.boot_id():
            return []
    found = []
    with _alone(run):
        try:
            before = marked.read_text("ascii")
        except (OSError, ValueError):
            before = ""
        if before == state.boot_id():
            return []
        # Before the mark: whoever comes after a kill in between finds no other boot any more.
        revivals.forget_stops(house.containers)
        if before:
            for path in _entries(run / "netns"):
                with suppress(errors.ContainerizationError):
                    netns.remove(path)
            for name in ("oci", "net", "dns"):
                shutil.rmtree(run / name, ignore_errors=True)
            house.folders.runtime.mkdir(mode=0o700, exist_ok=True)
            found.append("the machine was started anew")
        state.write_whole(marked, state.boot_id().encode())
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder / f"{_BOOT}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"{folder} cannot be written to: {error.strerror}.", hint="make room and check its rights"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
