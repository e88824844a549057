"""How do images and containers become files of this host, and files images?"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.core.containers import Progress
from codomyrmex_containerization.engines import base, guard, host_files
from codomyrmex_containerization.models import reference, sizes
from codomyrmex_containerization.models.image import ImageState
from codomyrmex_containerization.models.inside import ExportFormat

if TYPE_CHECKING:
    from codomyrmex_containerization.engines.embedded import layer_tar

T = TypeVar("T")

_TELL_SECONDS = 1.0
_MOST_MEMBERS = 200_000
_MOST_NAMES = 1_000
_MOST_INDEX_BYTES = 8 * 1024 * 1024
# Files of an archive that say which names its images get. An engine may look for them through links, and take the last of several:
# whatever bears such a name counts here, wherever it lies.
_INDEXES = ("manifest.json", "index.json", "repositories")
_THIS_MACHINE = "host:latest"
_NAME_NOTES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What loading an archive would take from others: lines for a person, and a digest of what they are about."""

    lost: tuple[str, ...]
    digest: str


# ------------------------------------------------------------------------------------------------------- images from files


async def plan_load(engine: guard.GuardedEngine, source: Path, tag: str | None) -> LoadPlan | None:
    """Say which names would be taken from images of others; None when that is none.

    Raises InvalidArgument (no archive of images, damaged, a name that is none), Refused (the path).
    """
    path = engine.resolve_path(source, purpose="an archive of images")
    stopped = False
    try:
        names = await threads.run(
            lambda: _names_in(path, lambda: stopped), deadline_seconds=None, what=f"reading {path.name}"
        )
    finally:
        stopped = True
    return await plan_names(engine, [*names, *([tag] if tag is not None else [])], f"{path}:{seen(path)}")


async def plan_import(engine: guard.GuardedEngine, source: Path, tag: str) -> LoadPlan | None:
    """Say whether the name would be taken from an image of others; None when it would not. Raises InvalidArgument, Refused."""
    path = engine.resolve_path(source, purpose="a root file system")
    return await plan_names(engine, [tag], f"{path}:{seen(path)}")


async def load(
    engine: guard.GuardedEngine, source: Path, tag: str | None, *, progress: Progress
) -> tuple[ImageState, ...]:
    """Load an archive's images under the names that it gives them, and the only one under `tag` as well.

    Raises NotFound, InvalidArgument (damaged; several images and a tag), Refused, Unsupported.
    """
    path = engine.resolve_path(source, purpose="an archive of images")
    names = await watched(
        progress, f"loading {path.name}", size(path), lambda passed: engine.load_image(path, passed=passed)
    )
    made = {state.id: state for state in [await engine.inspect_image(name) for name in names]}
    if not made:
        raise errors.EngineUnavailable(
            f"{engine.name} does not say which images it loaded.", hint="see image_list, then load again if need be"
        )
    if tag is None:
        return tuple(made.values())
    if len(made) > 1:
        raise errors.InvalidArgument(
            f"The archive holds {len(made)} images, which are loaded under their own names: no tag can name them all.",
            hint="leave tag out; image_tag names one of them",
        )
    (only,) = made
    await engine.tag_image(only, tag)
    return (await engine.inspect_image(only),)


async def import_root(engine: guard.GuardedEngine, source: Path, tag: str, *, progress: Progress) -> ImageState:
    """Make an image of a root file system, a tar or a folder. Raises NotFound, InvalidArgument, Refused, Unsupported."""
    path = engine.resolve_path(source, purpose="a root file system")
    id = await watched(
        progress,
        f"importing {path.name}",
        size(path),
        lambda passed: engine.import_image(path, tag=tag, labels={}, passed=passed),
    )
    return await engine.inspect_image(id)


async def plan_names(engine: guard.GuardedEngine, names: Sequence[str], about: str) -> LoadPlan | None:
    """Say which names would be taken from images of others; None when that is none. Raises InvalidArgument (a reserved one)."""
    lost, state = [], []
    for name in dict.fromkeys(names):
        if engine.endpoint.kind == "embedded" and name == _THIS_MACHINE:
            raise errors.InvalidArgument(
                "The name 'host' means this machine there: no image can have it.", hint="choose another name"
            )
        try:
            now = await engine.inspect_image(name)
        except errors.NotFound:
            continue
        if engine.owns("image", now.id):
            continue
        last = " and is its only one" if len(now.tags) <= 1 else ""
        id = now.id.removeprefix("sha256:")[:12]
        lost.append(f"the name {name}, which now means image {id} ({now.size_bytes:,} bytes){last}")
        state.append(f"{name}={now.id}")
    return LoadPlan(tuple(lost), "\0".join([about, *state])) if lost else None


def seen(path: Path) -> str:
    """Return by what a file is known to be the same one, unchanged."""
    try:
        found = path.stat()
    except OSError:
        return "gone"
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"


def size(path: Path) -> int | None:
    """Return the bytes of a file; None for what is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    return None


# --------------------------------------------------------------------------------------------------- the names in a file


def _names_in(path: Path, is_stopped: Callable[[], bool]) -> list[str]:
    """Return the names that an archive gives its images, whichever of its indexes an engine goes by."""
    with host_files.source(path) as held:
        texts = _layout_index(held) if host_files.is_folder(held) else list(_archive_indexes(held, is_stopped))
    if not texts:
        raise errors.InvalidArgument(
            f"{path} holds no images: it has neither manifest.json nor index.json.",
            hint="a root file system becomes an image by image_import",
        )
    found = [name for index, text in texts for name in _named(index, text)]
    if len(found) > _MOST_NAMES:
        raise errors.InvalidArgument(f"{path} gives more than {_MOST_NAMES:,} names.", hint="use several archives")
    return found


def _layout_index(folder: int) -> list[tuple[str, bytes]]:
    try:
        held = os.open("index.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return []
    with open(held, "rb") as file:
        text = file.read(_MOST_INDEX_BYTES + 1)
    if len(text) > _MOST_INDEX_BYTES:
        raise _damaged("index.json", "it is too large for what it is")
    return [("index.json", text)]


def _archive_indexes(held: int, is_stopped: Callable[[], bool]) -> Iterator[tuple[str, bytes]]:
    from codomyrmex_containerization.engines.embedded import layer_tar

    reader = _reader(held, is_stopped)
    count = 0
    while (entry := reader.next()) is not None:
        count += 1
        if count > _MOST_MEMBERS:
            raise _damaged("the archive", f"it has more than {_MOST_MEMBERS:,} files")
        name = posixpath.basename(posixpath.normpath(entry.name))
        if name not in _INDEXES or entry.kind == "folder":
            continue
        if entry.kind != "file" or entry.size_bytes > _MOST_INDEX_BYTES:
            raise _damaged(name, "it is no plain file, or too large for what it is")
        text = b""
        while piece := reader.read(layer_tar.BLOCK_BYTES * 128):
            text += piece
        yield name, text


def _reader(held: int, is_stopped: Callable[[], bool]) -> layer_tar.Reader:
    """Return a reader of an archive, packed or not, that passes over the layers where it can."""
    from codomyrmex_containerization.engines.embedded import layer_streams, layer_tar

    size = os.fstat(held).st_size
    window = _Stoppable(held, 0, size, is_stopped=is_stopped)
    plain = layer_streams.plain(window)
    if layer_streams.is_packed(plain):
        return layer_tar.Reader(plain)
    window = _Stoppable(held, 0, size, is_stopped=is_stopped)
    return layer_tar.Reader(window, skip=window.skip)


class _Stoppable:
    """An open file, read from its beginning on until somebody says stop."""

    def __init__(self, held: int, at: int, end: int, *, is_stopped: Callable[[], bool]) -> None:
        self._held = held
        self._at = at
        self._end = end
        self._is_stopped = is_stopped

    def read(self, count: int, /) -> bytes:
        if self._is_stopped():
            raise errors.Cancelled("The call was stopped.")
        try:
            piece = os.pread(self._held, min(count, self._end - self._at), self._at)
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The archive could not be read: {error.strerror}.", hint="check the disk that it is on"
            ) from error
        self._at += len(piece)
        return piece

    def skip(self, count: int) -> None:
        if count > self._end - self._at:
            raise _damaged("the archive", "it ends inside of a file")
        self._at += count


def _named(index: str, text: bytes) -> Iterator[str]:
    """Yield the names that an index gives, as they are kept. Raises InvalidArgument."""
    try:
        raw = json.loads(text, object_pairs_hook=_Table)
    except (ValueError, RecursionError) as error:
        raise _damaged(index, "it is no JSON") from error
    for name in _texts_of(index, raw):
        try:
            parsed = reference.parse(name)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"The archive names an image {name[:200]!r}.", hint=error.hint) from error
        yield str(parsed)


class _Table(list[tuple[str, object]]):
    """An object of JSON, in which a name may occur twice."""


def _texts_of(index: str, raw: object) -> Iterator[str]:
    if index == "repositories":
        yield from _repositories(raw)
    elif index == "manifest.json":
        for one in raw if isinstance(raw, list) else ():
            for key, value in one if isinstance(one, _Table) else ():
                # Docker's reader does not mind the case of a field's name.
                if key.casefold() == "repotags" and isinstance(value, list):
                    yield from (name for name in value if isinstance(name, str))
    else:
        yield from _annotated(raw)


def _repositories(raw: object) -> Iterator[str]:
    for name, tags in raw if isinstance(raw, _Table) else ():
        for tag, _ in tags if isinstance(tags, _Table) else ():
            yield f"{name}:{tag}"


def _annotated(raw: object) -> Iterator[str]:
    for note, value in _all_pairs(raw):
        if note not in _NAME_NOTES or not isinstance(value, str):
            continue
        if ":" in value or "/" in value:
            yield value
        else:
            # A mere tag says nothing about what it is a tag of, but Podman takes it for a name where it can be one.
            with suppress(errors.InvalidArgument):
                yield from (str(reference.parse(value)), str(reference.parse(f"localhost/{value}")))


def _all_pairs(raw: object) -> Iterator[tuple[str, object]]:
    waiting = [raw]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Table):
            yield from one
            waiting += [value for _, value in one]
        elif isinstance(one, list):
            waiting += one


def _damaged(what: str, why: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"The archive is damaged: {what}: {why}.", hint="make or fetch it again")


# ------------------------------------------------------------------------------------------------------- files from engines


async def save(
    engine: guard.GuardedEngine, image: str, target: Path, *, format: base.ArchiveFormat, progress: Progress
) -> int:
    """Write an image to a file, or to a new folder; return how many bytes that has.

    Raises NotFound with the nearest names, Conflict (a folder is there), Refused (the path), Unsupported (the format).
    """
    return await watched(
        progress,
        f"saving {image}",
        None,
        lambda passed: engine.save_image(image, target, format=format, passed=passed),
    )


async def export(
    engine: guard.GuardedEngine,
    container: str,
    target: Path,
    *,
    name: str,
    format: ExportFormat,
    progress: Progress,
) -> int:
    """Write a container's root file system, or all that is its own, to a tar; return how many bytes that has. Raises as `save`."""
    return await watched(
        progress,
        f"exporting {name}",
        None,
        lambda passed: engine.export_container(container, target, format=format, passed=passed),
    )


def named_or_id(image: str, found_id: str, tags: Sequence[str]) -> str:
    """Return the name that an image is saved under: the one that it is called by, or none."""
    with suppress(errors.InvalidArgument):
        name = str(reference.parse(image))
        if name in tags:
            return name
    return found_id


async def watched(progress: Progress, what: str, total: int | None, work: Callable[[base.Passed], Awaitable[T]]) -> T:
    """Do the work and tell, again and again, how far it is."""
    count = 0

    def passed(now: int) -> None:
        nonlocal count
        count = now

    async def tell() -> None:
        while True:
            of = f" of {sizes.show(total)}" if total is not None else ""
            await progress(
                float(count), float(total) if total is not None else None, f"{what}: {sizes.show(count)}{of}"
            )
            await anyio.sleep(_TELL_SECONDS)

    async with threads.task_group() as tasks:
        tasks.start_soon(tell)
        try:
            return await work(passed)
        finally:
            tasks.cancel_scope.cancel()
