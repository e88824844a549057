"""What is known of this engine's containers, where is it kept, and who may change it now?

One folder for each container with a file `container.json` that is written anew, whole, at each change; the folder's lock is held
meanwhile and dies with its holder. Names are links of their own, so that two servers never give one name twice.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import secrets
import select
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import objects
from codomyrmex_containerization.models.container import (
    ContainerSpec,
    ContainerStatus,
    HealthStatus,
    Limits,
    MountPoint,
    PortMapping,
    RestartPolicy,
)
from codomyrmex_containerization.models.details import NetworkAttachment

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_FILE = "container.json"
_LOCK = "lock"
_GONE = ".gone-"
_DAMAGED = f"{_FILE}.damaged"
_BESIDE = re.compile(r"\..+\.([0-9]+)\.[0-9a-f]+\Z")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_ID_LENGTH = 64
_SUFFIX_BYTES = 2
_STAT_BYTES = 4096
_ADJECTIVES = (
    "able bold clear dry easy fast firm fresh good green high light loud new plain pure rare red safe soft".split()
)
_NOUNS = (
    "ash bay birch brook cliff cove dale dune elm fern field ford glen grove heath hill lake marsh oak pine".split()
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is known again: numbers are used anew, a number together with its start is not."""

    pid: int
    started_ticks: int
    boot_id: str

    @property
    def is_alive(self) -> bool:
        """Whether it is still that very process, and no zombie."""
        return self.boot_id == boot_id() and process_start(self.pid) == self.started_ticks


@dataclass(frozen=True, slots=True)
class Record:
    """A container: what was asked for, what was made of it, and how it stands."""

    id: str
    name: str
    created: datetime
    spec: ContainerSpec
    image: objects.Image
    mounts: tuple[MountPoint, ...] = ()
    networks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    limits: Limits = field(default_factory=Limits)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    status: ContainerStatus = "created"
    first: Process | None = None
    monitor: Process | None = None
    prepared: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    restart_count: int = 0
    stopped_by_hand: bool = False
    health: HealthStatus = "none"
    health_failures: int = 0
    health_output: str = ""
    ports: tuple[PortMapping, ...] = ()
    attachments: tuple[NetworkAttachment, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether it runs, is frozen, or is about to run again."""
        return self.status in ("running", "paused", "restarting")

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """The words before the command."""
        given = self.spec.entrypoint if self.spec.entrypoint is not None else self.image.config.entrypoint
        return () if given == ("",) else given

    @property
    def command(self) -> tuple[str, ...]:
        """The command; an entrypoint of its own makes the image's command void."""
        if self.spec.command is not None:
            return self.spec.command
        return () if self.spec.entrypoint is not None else self.image.config.command

    @property
    def env(self) -> dict[str, str]:
        """The image's variables and its own."""
        found = dict(one.partition("=")[::2] for one in self.image.config.env)
        return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **found, **self.spec.env}

    @property
    def workdir(self) -> str:
        """The folder it starts in."""
        return self.spec.workdir or self.image.config.workdir or "/"

    @property
    def user(self) -> str:
        """On whose behalf it runs."""
        return self.spec.user if self.spec.user is not None else self.image.config.user

    @property
    def hostname(self) -> str:
        """What it is called inside."""
        return self.id[:12]


class Containers:
    """The records of one data folder; usable from several threads and processes."""

    def __init__(self, folders: objects.Folders, *, engine: str) -> None:
        self._folder = folders.containers
        self._names = folders.data / "names"
        self._engine = engine
        self._seen: dict[str, tuple[tuple[int, int, int], Record]] = {}
        self._held: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()
        for one in (self._folder, self._names):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, container_id: str) -> Path:
        """Where everything of one container lies."""
        return self._folder / container_id

    def ids(self) -> list[str]:
        """Return the ids of all containers, those with a damaged record too."""
        return [name for name in os.listdir(self._folder) if len(name) == _ID_LENGTH]

    def all(self) -> list[Record]:
        """Return all containers, the newest first; one whose record is damaged is set aside (see `damaged`)."""
        found = []
        for id in self.ids():
            with suppress(errors.NotFound):
                found.append(self.read(id))
        return sorted(found, key=lambda one: one.created, reverse=True)

    def damaged(self) -> list[str]:
        """Return the ids of containers whose record cannot be read."""
        return sorted(id for id in self.ids() if self.is_damaged(id))

    def is_damaged(self, container_id: str) -> bool:
        """Whether a container's record cannot be read."""
        folder = f"{self._folder}/{container_id}"
        return os.path.exists(f"{folder}/{_DAMAGED}") and not os.path.exists(f"{folder}/{_FILE}")

    def find_damaged(self, text: str) -> str | None:
        """Return the id of the container with a damaged record that a name, an id or the beginning of one means; None without."""
        name = text.removeprefix("/")
        found = [id for id in self.damaged() if name and (id.startswith(name) or self._id_of(name) == id)]
        return found[0] if len(found) == 1 else None

    def find(self, text: str) -> Record:
        """Return the container that a name, an id or the beginning of one means. Raises NotFound, Ambiguous."""
        name = text.removeprefix("/")
        if len(name) == _ID_LENGTH and (self.folder(name) / _FILE).exists():
            return self.read(name)
        id = self._id_of(name)
        if id is not None:
            with suppress(errors.NotFound):
                return self.read(id)
            if self.is_damaged(id):
                raise self._damaged(id)
        found = [one for one in self.ids() if name and one.startswith(name)]
        if len(found) > 1:
            raise errors.Ambiguous(
                f"{text!r} fits {len(found)} containers of {self._engine}.", hint="give more of the id, or the name"
            )
        if not found:
            raise self.missing(text)
        return self.read(found[0])

    def stand_in(self, container_id: str) -> Record:
        """Return what is still known of a container with a damaged record: enough to show it and to remove it."""
        names = [name for name in os.listdir(self._names) if self._id_of(name) == container_id]
        try:
            made = datetime.fromtimestamp(self.folder(container_id).stat().st_mtime, tz=UTC)
        except OSError as error:
            raise self.missing(container_id) from error
        return Record(
            id=container_id,
            name=names[0] if names else container_id[:12],
            created=made,
            spec=ContainerSpec("unknown"),
            image=objects.Image("", "", None, "linux", "", "", objects.ImageConfig(), (), ()),
            status="dead",
            error=f"its record is damaged: it can only be removed; what it wrote is in {self.folder(container_id) / 'upper'}",
        )

    def missing(self, text: str) -> errors.NotFound:
        """Return the error for a container that is not there."""
        return errors.NotFound(
            f"{self._engine} has no container {text!r}.",
            hint="check the name; container_list(all=true) shows the containers there are",
            details={"missing": "container"},
        )

    def _damaged(self, container_id: str) -> errors.NotFound:
        return errors.NotFound(
            f"The record of container {container_id[:12]} of {self._engine} is damaged: it can only be removed.",
            hint=f"remove it with force=true; what it wrote is in {self.folder(container_id) / 'upper'}",
            details={"damaged": container_id},
        )

    def read(self, container_id: str) -> Record:
        """Return one record. Raises NotFound, also for one that is damaged, which is then kept beside and named so."""
        # Words instead of paths: a list reads all of them.
        path = f"{self._folder}/{container_id}/{_FILE}"
        try:
            found = os.stat(path)
            key = (found.st_ino, found.st_mtime_ns, found.st_size)
            seen = self._seen.get(container_id)
            if seen is not None and seen[0] == key:
                return seen[1]
            data = Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise (self._damaged if self.is_damaged(container_id) else self.missing)(container_id) from error
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The record of container {container_id[:12]} cannot be read: {error.strerror}.",
                hint=f"check the rights of {path}",
            ) from error
        try:
            record = _adapter().validate_json(data)
        except ValueError as error:
            with suppress(OSError):
                os.rename(path, f"{self._folder}/{container_id}/{_DAMAGED}")
            raise self._damaged(container_id) from error
        self._seen[container_id] = (key, record)
        return record

    def write(self, record: Record) -> Record:
        """Keep a record, whole or not at all; returns it. The caller holds it. Raises EngineUnavailable (no space)."""
        path = self.folder(record.id) / _FILE
        write_whole(path, _adapter().dump_json(record, exclude_defaults=True))
        return record

    def add(self, record: Record, *, upper: Path | None = None) -> Record:
        """Enter a new container, under its name, with what is in `upper`, which is moved. Raises Conflict (name taken)."""
        with self._naming():
            self._take_name(record.name, record.id)
            folder = self.folder(record.id)
            try:
                folder.mkdir(mode=0o700)
                if upper is not None:
                    upper.rename(folder / "upper")
                return self.write(record)
            except BaseException as error:
                self._free_name(record.name)
                with suppress(OSError):
                    if upper is not None:
                        (folder / "upper").rename(upper)
                with suppress(OSError):
                    folder.rmdir()
                if isinstance(error, OSError):
                    raise self._unwritable(error) from error
                raise

    def rename(self, record: Record, name: str) -> Record:
        """Give a container another name. Raises Conflict (name taken)."""
        with self._naming():
            self._take_name(name, record.id)
            renamed = self.write(replace(record, name=name))
            self._free_name(record.name)
            return renamed

    def forget(self, container_id: str, *, name: str | None = None) -> Path:
        """Strike a container and its names out at once, also one with a damaged record; returns the folder that is left to remove.

        Its `name`, where that is known, spares the search for it among all.
        """
        folder, gone = self.folder(container_id), self._folder / f"{_GONE}{container_id}"
        self._seen.pop(container_id, None)
        with suppress(FileNotFoundError):
            try:
                folder.rename(gone)
            except FileExistsError as error:
                raise self._unwritable(error) from error
        for one in (name,) if name is not None else os.listdir(self._names):
            if self._id_of(one) == container_id:
                self._free_name(one)
        return gone

    def sweep(self) -> list[Path]:
        """Forget names and files that killed processes have left; returns the folders that are nobody's, for the caller to remove."""
        with self._naming():
            known = set(self.ids())
            whole = {id for id in known if any((self.folder(id) / one).exists() for one in (_FILE, _DAMAGED))}
            for name in os.listdir(self._names):
                if self._id_of(name) not in whole or self._is_former(name):
                    self._free_name(name)
        for id in whole:
            sweep_beside(self.folder(id))
        gone = [self._folder / name for name in os.listdir(self._folder) if name.startswith(_GONE)]
        return [*gone, *(self.folder(id) for id in known - whole)]

    @contextmanager
    def hold(self, container_id: str) -> Iterator[Record]:
        """Keep every other thread and process from changing a container; gives its record as it is now. Raises NotFound."""
        with self._guard:
            lock = self._held.setdefault(container_id, threading.RLock())
        with lock:
            descriptor = self._open_lock(container_id)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield self.read(container_id)
            finally:
                os.close(descriptor)

    @contextmanager
    def hold_if_free(self, container_id: str) -> Iterator[bool]:
        """Keep every other thread and process from changing a container, or of one without a record; False when somebody does so now."""
        with self._guard:
            lock = self._held.setdefault(container_id, threading.RLock())
        if not lock.acquire(blocking=False):
            yield False
            return
        try:
            descriptor = self._open_lock(container_id)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_free = True
            except BlockingIOError:
                is_free = False
            try:
                yield is_free
            finally:
                os.close(descriptor)
        finally:
            lock.release()

    def _open_lock(self, container_id: str) -> int:
        try:
            return os.open(self.folder(container_id) / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.missing(container_id) from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> errors.EngineUnavailable:
        return errors.EngineUnavailable(
            f"{self._engine} cannot keep its containers: {error.strerror}.",
            hint=f"make room and check the rights of {self._folder}",
        )

    def new_name(self) -> str:
        """Return a name that no container has."""
        while True:
            name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}_{secrets.token_hex(_SUFFIX_BYTES)}"
            if self._id_of(name) is None:
                return name

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            descriptor = os.open(self._names.with_name("names.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _id_of(self, name: str) -> str | None:
        try:
            return os.readlink(self._names / name)
        except (OSError, ValueError):
            return None

    def _is_former(self, name: str) -> bool:
        """Whether a name leads to a container that is called otherwise: who renamed it did not live to free the old one, or to tell."""
        id = self._id_of(name)
        try:
            return id is not None and self.read(id).name != name
        except errors.NotFound:
            return False

    def _take_name(self, name: str, id: str) -> None:
        while True:
            try:
                os.symlink(id, self._names / name)
                return
            except FileExistsError:
                holder = self._id_of(name)
                if holder is not None and (self.folder(holder) / _FILE).exists():
                    raise errors.Conflict(
                        f"The name {name!r} is already in use by container {holder[:12]}.",
                        hint="choose another name, or remove that container first",
                    ) from None
                self._free_name(name)  # of one that a killed process had not made yet, or had just removed

    def _free_name(self, name: str) -> None:
        with suppress(OSError):
            (self._names / name).unlink()


@functools.cache
def _adapter() -> TypeAdapter[Record]:
    from pydantic import TypeAdapter

    return TypeAdapter(Record)


def write_whole(path: Path, data: bytes, *, forced: bool = True) -> None:
    """Write a file so that it is whole whenever somebody reads it; if `forced`, after a power cut too. Raises EngineUnavailable."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:  # where room runs out the kernel takes a part first, and says so at the next one
                rest = rest[os.write(descriptor, rest) :]
            if forced:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        beside.rename(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise errors.EngineUnavailable(
            f"{path.name} cannot be written: {error.strerror}.", hint=f"make room and check the rights of {path.parent}"
        ) from error


def sweep_beside(folder: Path) -> int:
    """Remove what killed processes did not finish writing in a folder; returns how many files that were."""
    count = 0
    with suppress(OSError):
        for one in os.scandir(folder):
            maker = _BESIDE.match(one.name)
            if maker and process_start(int(maker[1])) is None:
                with suppress(OSError):
                    os.unlink(one.path)
                    count += 1
    return count


def require_name(name: str) -> None:
    """Raise InvalidArgument for what is no container's name."""
    if not _NAME.match(name):
        raise errors.InvalidArgument(
            f"{name!r} is no container name.", hint="use letters, digits, '_', '.', '-', at least two of them"
        )


def new_id() -> str:
    """Return 64 hexadecimal digits that nobody has."""
    return secrets.token_hex(_ID_LENGTH // 2)


def now() -> datetime:
    """Return the time."""
    return datetime.now(tz=UTC)


@functools.cache
def boot_id() -> str:
    """Return what tells this run of the kernel from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def process_start(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the boot; None when it is not there, or dead and only not waited for."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(descriptor, _STAT_BYTES).rpartition(b")")[2].split()
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def process(pid: int) -> Process | None:
    """Return a process by which it is known again; None when it has gone."""
    started = process_start(pid)
    return None if started is None else Process(pid, started, boot_id())


def wait_for_end(process: Process, *, seconds: float) -> bool:
    """Wait until a process has ended; False when it did not in that time."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        if not process.is_alive:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000)) or not process.is_alive
    finally:
        os.close(descriptor)
