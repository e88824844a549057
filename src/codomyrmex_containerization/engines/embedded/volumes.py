"""Where are the volumes, who made them, and what does a new one begin with?

A volume is a folder `NAME` with its data in `_data` and what is known of it in `volume.json`. It appears and goes by one rename, so that
several processes may make and remove volumes of the same name and never see half of one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import build_files, file_trees, kernel, objects, state
from codomyrmex_containerization.models.storage import VolumeRow, VolumeSpec

DRIVER = "local"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}\Z")
_DATA = "_data"
_FILE = "volume.json"
_LOCK = ".lock"
_NEW = ".new-"
_GONE = ".gone-"
_BEGUN = "begun"
_MOST_FILE_BYTES = 4 * 1024 * 1024
_THERE = (errno.EEXIST, errno.ENOTEMPTY)


class VolumeStore:
    """The volumes of one data folder; usable from several threads and processes."""

    def __init__(self, folders: objects.Folders, *, engine: str) -> None:
        self._folder = folders.volumes
        self._engine = engine
        with _explained("opening the volumes"):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                self._sweep()

    # ------------------------------------------------------------------------------------------------------- one by one

    def create(self, spec: VolumeSpec) -> VolumeRow:
        """Create a volume; one without a name gets 64 hexadecimal digits. Raises Conflict (name taken), InvalidArgument."""
        if spec.driver != DRIVER or spec.options:
            raise errors.InvalidArgument(
                f"{self._engine} has no volume driver {spec.driver!r} and no options.",
                hint="leave both out, or use docker or podman",
            )
        name = spec.name or state.new_id()
        if not self._make(name, spec.labels):
            raise errors.Conflict(
                f"There is a volume {name!r} already.", hint="choose another name, or remove that one"
            )
        return self.find(name)

    def ensure(self, name: str, labels: Mapping[str, str], *, made_for: str = "") -> Path:
        """Return the folder of a volume's data; the volume is made, with these labels, when it is missing. Raises InvalidArgument.

        `made_for` is the container that it is to go with, if it is to go with one.
        """
        if not self._has(name):
            self._make(name, labels, made_for=made_for)
        return self._folder / name / _DATA

    def made_for(self, container_id: str) -> list[str]:
        """Return the volumes that were made to go with a container, for when nothing else tells of them."""
        return [name for name in self._names() if _maker(self._folder / name / _FILE) == container_id]

    def anonymous(self, labels: Mapping[str, str]) -> str:
        """Make a volume without a name of its own; return the one that it got."""
        return self.create(VolumeSpec("", labels=labels)).name

    def find(self, name: str) -> VolumeRow:
        """Return one volume. Raises NotFound."""
        if not self._has(name):
            raise errors.NotFound(
                f"{self._engine} has no volume {name!r}.",
                hint="check the name; volume_list shows the volumes there are",
                details={"missing": "volume"},
            )
        return self._row(name, ())

    def remove(self, name: str, *, users: Mapping[str, Sequence[str]], force: bool) -> None:
        """Remove a volume and what is in it. Raises NotFound (unless forced), Conflict (in use)."""
        if force and not self._has(name):
            return
        self.find(name)
        mounted = sorted(users.get(name, ()))
        if mounted:
            raise errors.Conflict(
                f"Volume {name} is in use by {', '.join(mounted[:5])}.", hint="remove those containers first"
            )
        place, gone = self._folder / name, self._folder / f"{_GONE}{secrets.token_hex(8)}"
        with _explained(f"removing volume {name}"), _own(place, wait=True) as is_ours:
            if is_ours:
                place.rename(gone)
                file_trees.remove(gone)

    # ------------------------------------------------------------------------------------------------------- all of them

    def rows(self, users: Mapping[str, Sequence[str]]) -> list[VolumeRow]:
        """Return all volumes by name; `users` are the names of the containers that mount each."""
        return [self._row(name, users.get(name, ())) for name in self._names()]

    def sizes(self) -> dict[str, int]:
        """Return how many bytes each volume holds; one that cannot be measured, or went meanwhile, is absent."""
        found = {}
        for name in self._names():
            with suppress(errors.ContainerizationError):
                found[name] = file_trees.size(self._folder / name / _DATA)
        return found

    # -------------------------------------------------------------------------------------------------------- first data

    def fill(self, name: str, root: Path, target: str) -> None:
        """Give an empty volume what a file system has at a path, with owners and modes; a volume with content stays as it is.

        Links are copied as links, devices and sockets left out. Raises NotFound, EngineUnavailable (no space).
        """
        self.find(name)
        place = self._folder / name
        with _explained(f"filling volume {name}"), _held(place / _LOCK):
            if os.listdir(place / _DATA):
                return
            try:
                source = kernel.open_inside(root, target, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return  # the image has no folder there
                raise
            try:
                self._fill(place, source)
            finally:
                os.close(source)

    @staticmethod
    def _fill(place: Path, source: int) -> None:
        begun = place / _BEGUN  # a copy that fails half way leaves the volume empty
        file_trees.remove(begun)
        begun.mkdir(mode=0o700)
        descriptor = os.open(begun, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _Copy(descriptor).folder(source, descriptor, "", 0)
            for one in os.listdir(descriptor):
                if not (place / _DATA / one).is_symlink() and not (place / _DATA / one).exists():
                    os.rename(one, place / _DATA / one, src_dir_fd=descriptor)
        finally:
            os.close(descriptor)
            file_trees.remove(begun)
        data = os.open(place / _DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _give(data, os.fstat(source), build_files.attributes(source))
        finally:
            os.close(data)

    # ----------------------------------------------------------------------------------------------------------- details

    def _names(self) -> list[str]:
        with _explained("listing the volumes"):
            return sorted(name for name in os.listdir(self._folder) if self._has(name))

    def _has(self, name: str) -> bool:
        return _NAME.match(name) is not None and (self._folder / name / _DATA).is_dir()

    def _row(self, name: str, users: Sequence[str]) -> VolumeRow:
        known = _known(self._folder / name / _FILE)
        return VolumeRow(
            name,
            DRIVER,
            known[0],
            known[1],
            self._engine,
            mountpoint=str(self._folder / name / _DATA),
            users=tuple(sorted(users)),
        )

    def _make(self, name: str, labels: Mapping[str, str], *, made_for: str = "") -> bool:
        """Make a volume; False when there is one of that name."""
        if not _NAME.match(name):
            raise errors.InvalidArgument(f"{name!r} is no volume name.", hint="use letters, digits, '_', '.', '-'")
        known: dict[str, object] = {
            "name": name,
            "created": datetime.now(tz=UTC).isoformat(),
            "labels": dict(labels),
            **({"made_for": made_for} if made_for else {}),
        }
        new = self._folder / f"{_NEW}{secrets.token_hex(8)}"
        with _explained(f"making volume {name}"), self._locked():
            try:
                new.mkdir(mode=0o700)
                (new / _DATA).mkdir()
                (new / _DATA).chmod(0o755)
                state.write_whole(new / _FILE, json.dumps(known).encode())
                new.rename(self._folder / name)
                return True
            except OSError as error:
                if error.errno in _THERE:
                    return False
                raise
            finally:
                file_trees.remove(new)

    def _sweep(self) -> None:
        """Take away what a killed process left."""
        for name in os.listdir(self._folder):
            if name.startswith((_NEW, _GONE)):
                with _own(self._folder / name, wait=False) as is_ours:
                    if is_ours:
                        file_trees.remove(self._folder / name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _held(self._folder / _LOCK):
            yield


class _Copy:
    """Copies folders into one that nobody else can reach."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._seen: dict[tuple[int, int], str] = {}

    def folder(self, source: int, target: int, path: str, depth: int) -> None:
        if depth > file_trees.DEEPEST:
            raise OSError(errno.ENAMETOOLONG, "too many folders in one another", path)
        for name in os.listdir(source):
            self._one(source, target, name, f"{path}/{name}" if path else name, depth)

    def _one(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        meta, kind = _meta(found), stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            self._inner(source, target, name, path, depth)
        elif found.st_nlink > 1 and (found.st_dev, found.st_ino) in self._seen:
            first = self._seen[found.st_dev, found.st_ino]
            os.link(first, name, src_dir_fd=self._top, dst_dir_fd=target, follow_symlinks=False)
        elif kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO):
            self._seen[found.st_dev, found.st_ino] = path
            if kind == stat.S_IFREG:
                self._file(source, target, name, meta)
            elif kind == stat.S_IFLNK:
                build_files.make_link(target, name, os.readlink(name, dir_fd=source), meta)
            else:
                build_files.make_pipe(target, name, meta)

    @staticmethod
    def _file(source: int, target: int, name: str, meta: build_files.Meta) -> None:
        with (
            build_files.open_file(source, name) as file,
            build_files.new_file(target, name, meta, attributes=build_files.attributes(file)) as new,
        ):
            build_files.pump(file, new, look=lambda: None)

    def _inner(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        inner = build_files.open_folder(source, name)
        try:
            os.mkdir(name, 0o700, dir_fd=target)
            made = build_files.open_folder(target, name)
            try:
                self.folder(inner, made, path, depth + 1)
                _give(made, os.fstat(inner), build_files.attributes(inner))
            finally:
                os.close(made)
        finally:
            os.close(inner)


def _meta(found: os.stat_result) -> build_files.Meta:
    owner = build_files.Owner(found.st_uid, found.st_gid)
    return build_files.Meta(stat.S_IMODE(found.st_mode), owner, (found.st_atime_ns, found.st_mtime_ns))


def _give(folder: int, found: os.stat_result, attributes: Mapping[str, bytes]) -> None:
    for name, value in attributes.items():
        with suppress(OSError):  # one that this file system does not know
            os.setxattr(folder, name, value)
    build_files.give(folder, _meta(found))


def _known(path: Path) -> tuple[datetime | None, dict[str, str]]:
    """Return when a volume was made and its labels; nothing where that cannot be read: the data is there all the same."""
    try:
        raw = _read(path)
        created = datetime.fromisoformat(raw["created"])
        return created, {str(key): str(value) for key, value in raw["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, {}


def _maker(path: Path) -> str:
    try:
        return str(_read(path).get("made_for", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        return json.loads(file.read(_MOST_FILE_BYTES))


@contextmanager
def _own(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a folder that is to be removed; False when somebody else removes it, or has."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever had the lock may have removed it, and another one may have the name now.
            is_ours = os.path.samestat(os.fstat(descriptor), folder.lstat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        yield is_ours
    finally:
        os.close(descriptor)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.EngineUnavailable(
            f"The engine failed while {what}: {error.strerror or error}.",
            hint="look at its data folder: is there room, and is it this user's?",
        ) from error
