"""Whose are the objects in the engines, and which of them did a dead run leave behind?

A run is one life of this program. While it lives it holds a lock on its own file in the state folder; what it creates is written to its
journal there and wears its labels. The reaper, at the next start, takes away what dead runs of this same state folder left: containers with
the lifetime `call`, detached ones that were never started, commands that still run in containers, half-built images and working folders.
Two state folders never touch each other's objects, and labels that somebody else's container has from its image count for nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import guard, opening, selection
from codomyrmex_containerization.models.container import ContainerRow, Lifetime
from codomyrmex_containerization.models.engine import EngineProbe

_REMOVE_SECONDS = 30.0
_SCRATCH = ".scratch"
_STEP_SECONDS = 60.0
_KINDS: tuple[guard.ObjectKind, ...] = ("exec", "container", "step", "image")
_Key = tuple[guard.ObjectKind, str, str]


class Run:
    """This life of the program: its name, its lock, its journal. Fulfils `guard.Ledger`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._objects: dict[_Key, Lifetime] = {}
        self._leftovers: set[_Key] = set()
        self._unsure: dict[str, int] = {}
        self._writing = threading.Lock()
        self.host = host_name(folder)
        self.run = secrets.token_hex(8)
        # Locked before it has its name: another start's reaper would take an unlocked one for a dead run's.
        unnamed = folder / f"{self.run}.new"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(folder / f"{self.run}.lock")
        self._journal = os.open(
            folder / f"{self.run}.jsonl", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600
        )

    @property
    def scratch(self) -> Path:
        """A folder for what is needed during a call; whoever writes there makes it. It goes with the run."""
        return self._folder / f"{self.run}{_SCRATCH}"

    def creating(self, engine: str) -> None:
        """Remember that an object may come to be, whose id is not known yet."""
        if engine not in self._unsure:
            self._note({"uses": engine})
        self._unsure[engine] = self._unsure.get(engine, 0) + 1

    def settled(self, engine: str) -> None:
        """Forget that: what came of it is known."""
        self._unsure[engine] -= 1

    def created(self, kind: guard.ObjectKind, engine: str, id: str, lifetime: Lifetime) -> None:
        """Remember an object, in memory and in the journal."""
        self._objects[(kind, engine, id)] = lifetime
        self._note({"created": kind, "engine": engine, "id": id, "lifetime": lifetime})

    def removed(self, kind: guard.ObjectKind, engine: str, id: str) -> None:
        """Forget an object."""
        known = self._objects.pop((kind, engine, id), None)
        self._leftovers.discard((kind, engine, id))
        if known is not None:
            self._note({"removed": kind, "engine": engine, "id": id})

    def leftover(self, kind: guard.ObjectKind, engine: str, id: str) -> None:
        """Remember an object of a call that could not be removed just now."""
        if self._objects.get((kind, engine, id)) == "call":
            self._leftovers.add((kind, engine, id))

    def owns(self, kind: guard.ObjectKind, engine: str, id: str) -> bool:
        """Say whether this run created the object."""
        return (kind, engine, id) in self._objects

    @property
    def has_leftovers(self) -> bool:
        """Whether something is to be removed that could not be removed before."""
        return bool(self._leftovers)

    async def sweep(self, engines: selection.Engines) -> None:
        """Try again to remove what could not be removed."""
        for kind, engine, id in list(self._leftovers):
            with suppress(errors.ContainerizationError), anyio.move_on_after(_REMOVE_SECONDS):
                if kind == "container":
                    await (await engines.pick(engine)).remove_container(id, force=True, volumes=True)

    def close(self) -> None:
        """Give the lock up. The files go when nothing that this run made for one call is left, or may be."""
        if self._lock < 0:
            return
        shutil.rmtree(self.scratch, ignore_errors=True)
        if not any(self._unsure.values()) and not any(lifetime == "call" for lifetime in self._objects.values()):
            for suffix in ("jsonl", "lock"):
                with suppress(OSError):
                    (self._folder / f"{self.run}.{suffix}").unlink()
        os.close(self._journal)
        os.close(self._lock)
        self._lock = -1

    def let_go(self) -> None:
        """Close this process's copies of the files and leave the run to the process that it was forked from."""
        if self._lock >= 0:
            os.close(self._journal)
            os.close(self._lock)
            self._lock = -1

    def _note(self, entry: dict[str, str]) -> None:
        with self._writing, suppress(OSError):
            os.write(self._journal, json.dumps(entry, separators=(",", ":")).encode() + b"\n")


def host_name(folder: Path) -> str:
    """Return a name for this host and state folder that is the same in every run and tells nothing about them."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = os.uname().nodename
    return hashlib.sha256(f"codomyrmex\0{machine}\0{os.path.realpath(folder)}".encode()).hexdigest()[:16]


def any_dead(folder: Path, own_run: str) -> bool:
    """Say whether a run has ended without taking its files away: only such a one can have left something in an engine."""
    return any(lock.stem != own_run and not _is_alive(folder, lock.stem) for lock in folder.glob("*.lock"))


async def reap(
    engines: selection.Engines, folder: Path, host: str, own_run: str, *, dry_run: bool = False
) -> list[str]:
    """Remove what dead runs left in the engines that answer; return a line for each object.

    What could not be removed, or not be looked at, is a line that says so, and stays written down for the next time.
    """
    lines: list[str] = []
    all_done = True
    if not dry_run:
        _empty_dead(folder, own_run)
    mentioned = _mentioned(folder, own_run)
    probes = await _probes(engines, mentioned)
    for name in sorted(mentioned - {probe.name for probe in probes}):
        if _left_in(folder, name, own_run):
            lines.append(f"NOT looked at: {name}: the settings name no such engine any more")
            all_done = False
    for probe in probes:
        if probe.info is None:
            if probe.name in mentioned:
                lines.append(f"NOT looked at: {probe.name}: {probe.reason}")
                all_done = False
            continue
        try:
            engine = await engines.pick(probe.name)
            async for line, done in _reap_engine(engine, folder, host, own_run, dry_run=dry_run):
                lines.append(line)
                all_done = all_done and done
        except errors.ContainerizationError as error:
            lines.append(f"NOT looked at: {probe.name}: {error.message}")
            all_done = False
    if all_done and not dry_run:
        _forget_dead(folder, own_run)
    return lines


async def _probes(engines: selection.Engines, mentioned: Collection[str]) -> list[EngineProbe]:
    """Ask the engines that run, and start the service of one that does not only when a dead run used it."""
    probes = await engines.probe(start=False)
    waiting = [probe.name for probe in probes if probe.info is None and probe.name in mentioned]
    again = {name: (await engines.probe(name))[0] for name in waiting}
    return [again.get(probe.name, probe) for probe in probes]


def _mentioned(folder: Path, own_run: str) -> set[str]:
    """Return the names of the engines that dead runs have written down."""
    journals = [one for one in folder.glob("*.jsonl") if one.stem != own_run and not _is_alive(folder, one.stem)]
    return {str(entry.get("engine") or entry.get("uses") or "") for one in journals for entry in _entries(one)}


def _left_in(folder: Path, engine: str, own_run: str) -> bool:
    """Say whether dead runs have left something of a call in an engine that outlives them."""
    if engine == opening.MEMORY:
        return False
    return any(True for kind in _KINDS for _ in _journalled(folder, engine, own_run, kind, detached=False))


async def _reap_engine(
    engine: guard.GuardedEngine, folder: Path, host: str, own_run: str, *, dry_run: bool
) -> AsyncIterator[tuple[str, bool]]:
    for run, key in _journalled(folder, engine.name, own_run, "exec"):
        container, _, exec_id = key.partition("/")
        if await _still_runs(engine, exec_id):
            what = f"command {exec_id[:12]} in container {container[:12]} of run {run}"
            yield await _taken(what, None if dry_run else partial(_end_command, engine, container, exec_id))
    known = {id for _, id in _journalled(folder, engine.name, own_run, "container")}
    rows = await engine.list_containers(all=True, labels=[f"{guard.LABEL_HOST}={host}"])
    for row in rows:
        run = row.labels.get(guard.LABEL_RUN, "")
        if run == own_run or not _is_call_leftover(row) or not _is_dead(folder, run):
            continue
        # The kill may have come between the container and its line in the journal. But a container that somebody made
        # of an image with our labels (a committed one, or one whose Dockerfile sets them) wears them as well.
        if row.id not in known and await _wears_labels_of_its_image(engine, row.id):
            continue
        what = f"container {row.name} ({row.id[:12]}) of run {run}"
        yield await _taken(what, None if dry_run else partial(_remove_container, engine, row.id))
    for run, key in _journalled(folder, engine.name, own_run, "step"):
        async for id in _left_by_step(engine, key):
            what = f"half-built image {id[:19]} of run {run}"
            yield await _taken(what, None if dry_run else partial(_remove_untagged, engine, id))
    for run, id in _journalled(folder, engine.name, own_run, "image"):
        what = f"half-built image {id[:19]} of run {run}"
        yield await _taken(what, None if dry_run else partial(_remove_untagged, engine, id))


async def _taken(what: str, remove: Callable[[], Awaitable[None]] | None) -> tuple[str, bool]:
    try:
        if remove is not None:
            await remove()
    except errors.NotFound:
        return what, True
    except errors.ContainerizationError as error:
        return f"NOT removed: {what}: {error.message}", False
    return what, True


async def _remove_container(engine: guard.GuardedEngine, id: str) -> None:
    await engine.remove_container(id, force=True, volumes=True)


async def _left_by_step(engine: guard.GuardedEngine, key: str) -> AsyncIterator[str]:
    """Find what a step left that was under way at the kill, the last image first.

    The engine ends the step, and may do the next, before it sees that nobody listens. Such an image tells nothing of whose
    it is: it counts when it has no name, lies right on what the step was done to, says the same instruction, and was made
    within a minute from when the step began.
    """
    under, _, rest = key.partition("/")
    instruction, _, moment = rest.partition("/")
    began = datetime.fromtimestamp(float(moment), tz=UTC)
    found: list[str] = []
    with suppress(errors.NotFound):
        while rows := await engine.untagged_children(under):
            made = [row for row in rows if -1 <= (row.created - began).total_seconds() <= _STEP_SECONDS]
            if not found:
                made = [row for row in made if await _is_made_by(engine, row.id, instruction)]
            if not made:
                break
            under = made[-1].id
            found.append(under)
    for id in reversed(found):
        yield id


async def _is_made_by(engine: guard.GuardedEngine, image: str, instruction: str) -> bool:
    layers = (await engine.image_details(image)).layers
    return bool(layers) and layers[0].instruction.upper().startswith(f"{instruction} ")


async def _wears_labels_of_its_image(engine: guard.GuardedEngine, id: str) -> bool:
    try:
        state = await engine.inspect_container(id)
        # An image that we committed wears the label without a run: what is made of it has its own.
        of_image = (await engine.inspect_image(state.image_id)).labels.get(guard.LABEL_RUN)
        return of_image is not None and of_image == state.labels.get(guard.LABEL_RUN)
    except errors.NotFound:
        return True


async def _still_runs(engine: guard.GuardedEngine, exec_id: str) -> bool:
    try:
        return (await engine.inspect_exec(exec_id)).running
    except errors.NotFound:
        return False


async def _end_command(engine: guard.GuardedEngine, container: str, exec_id: str) -> None:
    if not await engine.end_exec(container, exec_id):
        raise errors.Unsupported("It cannot be ended from here.", hint="stop the container, or kill it from inside")


async def _remove_untagged(engine: guard.GuardedEngine, id: str) -> None:
    # Tagged meanwhile, or with another image or container on it: it has become somebody's.
    image = await engine.inspect_image(id)
    if not image.tags:
        with suppress(errors.Conflict):
            await engine.remove_image(id, force=False)


def _is_call_leftover(row: ContainerRow) -> bool:
    lifetime = row.labels.get(guard.LABEL_LIFETIME)
    return lifetime == "call" or (lifetime == "detached" and row.status == "created")


def _is_alive(folder: Path, run: str) -> bool:
    if not run or not all(char in "0123456789abcdef" for char in run):
        return True
    try:
        lock = os.open(folder / f"{run}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _is_dead(folder: Path, run: str) -> bool:
    """Say whether a run is one of this folder's that has ended: of a name that nobody wrote down here nothing is known."""
    return (folder / f"{run}.lock").exists() and not _is_alive(folder, run)


def _journalled(
    folder: Path, engine: str, own_run: str, kind: guard.ObjectKind, *, detached: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield the run and the id of each object of one call that dead runs have written down and not removed."""
    for journal in sorted(folder.glob("*.jsonl")):
        run = journal.stem
        if run == own_run or _is_alive(folder, run):
            continue
        left: dict[str, None] = {}
        for entry in _entries(journal):
            if entry.get("engine") != engine:
                continue
            # A detached container that was never started goes as well.
            if entry.get("created") == kind and (entry.get("lifetime") == "call" or (detached and kind == "container")):
                left[entry["id"]] = None
            elif entry.get("removed") == kind:
                left.pop(entry["id"], None)
        # The last layer first: an image goes only when none is built on it.
        for id in reversed(list(left)):
            yield run, id


def _entries(journal: Path) -> Iterator[dict[str, str]]:
    with suppress(OSError):
        for line in journal.read_bytes().splitlines():
            with suppress(ValueError):  # the last line of a killed run may be cut
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


def _empty_dead(folder: Path, own_run: str) -> None:
    for scratch in folder.glob(f"*{_SCRATCH}"):
        run = scratch.name.removesuffix(_SCRATCH)
        if run != own_run and not _is_alive(folder, run):
            shutil.rmtree(scratch, ignore_errors=True)


def _forget_dead(folder: Path, own_run: str) -> None:
    for lock in folder.glob("*.lock"):
        if lock.stem != own_run and not _is_alive(folder, lock.stem):
            for suffix in (".jsonl", ".lock"):
                with suppress(OSError):
                    lock.with_suffix(suffix).unlink()
