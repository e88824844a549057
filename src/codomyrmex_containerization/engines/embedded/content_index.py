"""Which images are there, what are they called, and who may change that now? One small file, replaced as a whole under a lock.

Two locks. `change` is held for the moment that a change takes. `use` is held together by all who bring contents in or read them, and alone
by who throws contents away: whatever is not in the index then belongs to nobody.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import content_errors

USE_LOCK = "use.lock"
_VERSION = 1
_LONGEST_WAIT_SECONDS = 30.0
_LONGEST_USE_SECONDS = 600.0
_STEP_SECONDS = 0.005
_SETTLED_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer: its digest unpacked, the blob that the manifest names for it (often packed), and the bytes of both."""

    diff_id: str
    blob: str
    media_type: str
    blob_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of an image beside its blobs."""

    digest: str
    parent: str
    layers: tuple[StoredLayer, ...]


@dataclass(slots=True)
class State:
    """All that the index says: images by id, ids by name, ids by build-cache key."""

    images: dict[str, Record] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    cache: dict[str, str] = field(default_factory=dict)

    def tags(self, image_id: str) -> tuple[str, ...]:
        """Return the names of an image, sorted."""
        return tuple(sorted(name for name, id in self.names.items() if id == image_id))

    def tags_by_image(self) -> dict[str, tuple[str, ...]]:
        """Return the names of every image that has one, sorted."""
        found: dict[str, tuple[str, ...]] = {}
        for name in sorted(self.names):
            found[self.names[name]] = (*found.get(self.names[name], ()), name)
        return found

    def children(self, image_id: str) -> list[str]:
        """Return the ids of the images made right from this one."""
        return [id for id, one in self.images.items() if one.parent == image_id]


class Index:
    """The index of one store."""

    def __init__(self, folder: Path, *, engine: str) -> None:
        self._folder = folder
        self._engine = engine
        self._path = folder / "index.json"
        self._known: tuple[tuple[int, int, int], State] | None = None

    def read(self) -> State:
        """Return what the index says now, not to be changed. Raises EngineUnavailable when it cannot be read: that is no empty index."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise content_errors.explanation(error, "Reading the index of images") from error
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        known = self._known
        if known is not None and known[0] == mark:
            return known[1]
        state = self._load()
        # A file that has just been written might be written again within the same tick of the clock.
        if abs(time.time_ns() - found.st_mtime_ns) > _SETTLED_NS:
            self._known = mark, state
        return state

    def _load(self) -> State:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise content_errors.explanation(error, "Reading the index of images") from error
        try:
            return _parse(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.EngineUnavailable(
                f"The index of images of {self._engine} is damaged: {self._path}.",
                hint="move the file away and load the images again",
            ) from error

    @contextmanager
    def change(self) -> Iterator[State]:
        """Change the index: what the block leaves in the state is kept, unless it raises."""
        with self._locked("change.lock", fcntl.LOCK_EX, _LONGEST_WAIT_SECONDS):
            state = self._load()
            before = _text(state)
            yield state
            after = _text(state)
            if after != before:
                with content_errors.explained("Writing the index of images"):
                    write_atomically(self._path, after)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep contents from being thrown away while the block lasts."""
        with self._locked(USE_LOCK, fcntl.LOCK_SH, _LONGEST_USE_SECONDS):
            yield

    @contextmanager
    def alone(self, *, wait: bool) -> Iterator[bool]:
        """Keep everybody else from bringing contents in. Yields False when others do so now and `wait` is False."""
        with ExitStack() as held:
            try:
                held.enter_context(self._locked(USE_LOCK, fcntl.LOCK_EX, _LONGEST_USE_SECONDS if wait else 0))
            except _BusyError:
                if wait:
                    raise
                is_alone = False
            else:
                is_alone = True
            yield is_alone

    @contextmanager
    def unpacking(self, diff_id: str) -> Iterator[None]:
        """Keep others from unpacking the same layer at the same time."""
        with self._locked(f"unpack-{diff_id.removeprefix('sha256:')[:2]}.lock", fcntl.LOCK_EX, _LONGEST_USE_SECONDS):
            yield

    @contextmanager
    def fetching(self, id: str) -> Iterator[None]:
        """Keep others from fetching the same image at the same time."""
        with self._locked(f"fetch-{id.removeprefix('sha256:')[:2]}.lock", fcntl.LOCK_EX, _LONGEST_USE_SECONDS):
            yield

    @contextmanager
    def _locked(self, name: str, kind: int, wait_seconds: float) -> Iterator[None]:
        with content_errors.explained("Locking the images"):
            fd = os.open(self._folder / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + wait_seconds
            while not _try(fd, kind):
                if time.monotonic() >= until:
                    raise _BusyError(
                        f"The images of {self._engine} are in use by another process for too long.",
                        hint="try again when it is done: it loads, builds or removes images",
                    )
                time.sleep(_STEP_SECONDS)
            yield
        finally:
            os.close(fd)


class _BusyError(errors.EngineUnavailable):
    """The lock is held by somebody else."""


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise content_errors.explanation(error, "Locking the images") from error
    return True


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put a file there as a whole or not at all. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """See to it that the names in a folder outlive a crash. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _text(state: State) -> bytes:
    images = {
        id: {
            "digest": one.digest,
            "parent": one.parent,
            "layers": [
                [layer.diff_id, layer.blob, layer.media_type, layer.blob_bytes, layer.size_bytes]
                for layer in one.layers
            ],
        }
        for id, one in state.images.items()
    }
    whole = {"version": _VERSION, "images": images, "names": state.names, "cache": state.cache}
    return json.dumps(whole, separators=(",", ":"), sort_keys=True).encode()


def _parse(raw: dict[str, Any]) -> State:
    if raw["version"] != _VERSION:
        raise ValueError(raw["version"])
    return State(
        images={
            id: Record(one["digest"], one["parent"], tuple(StoredLayer(*layer) for layer in one["layers"]))
            for id, one in raw["images"].items()
        },
        names=dict(raw["names"]),
        cache=dict(raw["cache"]),
    )
