"""What has happened in this engine, and what happens next? A journal that all processes of this user share.

One line of JSON for each event. When the newer of two files is full it takes the place of the older one: between half and all of the
last `MOST_EVENTS` are kept. Files are written and opened under a lock; what is open is read without one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.models.event import EngineEvent, EventQuery

MOST_EVENTS = 10_000
_MOST_FILE_BYTES = 16 * 1024 * 1024
_LONGEST_VALUE_CHARACTERS = 4096
_PAUSE_SECONDS = 0.03
_DEADLINE_SECONDS = 30.0
_FILTERS = ("container", "volume", "network", "image", "type", "event", "label")


@dataclass(frozen=True, slots=True)
class _Place:
    """How far one has read: behind `offset` bytes of the file with this number."""

    file: int
    offset: int


class Journal:
    """The events of one data folder; usable from several threads and processes."""

    def __init__(self, folder: Path, *, engine: str) -> None:
        self._engine = engine
        self._folder = folder
        self._newer, self._older = folder / "events.jsonl", folder / "events.older.jsonl"
        self._counted = (_Place(0, 0), 0)

    def note(self, type: str, action: str, id: str, name: str, attributes: Mapping[str, str] | None = None) -> None:
        """Remember that something happened. Raises EngineUnavailable (no space, no right)."""
        shown = {key: value[:_LONGEST_VALUE_CHARACTERS] for key, value in (attributes or {}).items()}
        with self._explained("written"), self._locked(fcntl.LOCK_EX):
            self._make_room()
            # The time is taken under the lock: what is behind in the file never came before.
            event = {"time": datetime.now(tz=UTC).isoformat(), "type": type, "action": action, "id": id, "name": name}
            line = json.dumps({**event, "attributes": {"name": name, **shown}}, separators=(",", ":")).encode() + b"\n"
            with _opened(self._newer, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
                # A line that somebody could not finish stays alone with its damage.
                line = line if _is_complete(file) else b"\n" + line
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, query: EventQuery) -> list[EngineEvent]:
        """Return what has happened, oldest first. Raises InvalidArgument (a filter that there is not), EngineUnavailable."""
        check_filters(query)
        return [event for event in self._after(None)[0] if is_wanted(event, query)]

    def follow(self, query: EventQuery) -> AsyncGenerator[EngineEvent, None]:
        """Yield what has happened, then what happens until `query.until`; what is past only when `since` or nothing to come is wanted.

        Raises InvalidArgument (a filter that there is not), EngineUnavailable.
        """
        check_filters(query)
        return self._follow(query, datetime.now(tz=UTC))

    async def _follow(self, query: EventQuery, began: datetime) -> AsyncGenerator[EngineEvent, None]:
        skips_past = query.since is None and query.until is not None and query.until > began
        place: _Place | None = None
        while True:
            over = query.until is None or query.until <= datetime.now(tz=UTC)
            found, place = await self._next(place)
            for event in found:
                if is_wanted(event, query) and not (skips_past and event.time < began):
                    yield event
            if over:
                return
            await anyio.sleep(_PAUSE_SECONDS)

    async def _next(self, place: _Place | None) -> tuple[list[EngineEvent], _Place | None]:
        return await threads.run(
            lambda: self._after(place), deadline_seconds=_DEADLINE_SECONDS, what="reading the events"
        )

    def _after(self, place: _Place | None) -> tuple[list[EngineEvent], _Place | None]:
        """Return the events behind a place, and the place behind them."""
        found: list[EngineEvent] = []
        with self._explained("read"), ExitStack() as opened:
            files = [(os.fstat(file.fileno()).st_ino, file) for file in self._open(opened)]
            behind = [number for number, (inode, _) in enumerate(files) if place is not None and inode == place.file]
            for inode, file in files[behind[0] if behind else 0 :]:
                offset = place.offset if place is not None and place.file == inode else 0
                file.seek(offset)
                data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                found += [event for line in whole.split(b"\n") if (event := self._parsed(line)) is not None]
                place = _Place(inode, offset + len(whole))
        return found, place

    def _open(self, opened: ExitStack) -> list[IO[bytes]]:
        """Open the files there are, the older one first."""
        files: list[IO[bytes]] = []
        if not self._folder.is_dir():
            return files
        with self._locked(fcntl.LOCK_SH):
            for path in (self._older, self._newer):
                with suppress(FileNotFoundError):
                    files.append(opened.enter_context(_opened(path, os.O_RDONLY)))
        return files

    def _parsed(self, line: bytes) -> EngineEvent | None:
        try:
            one: Mapping[str, Any] = json.loads(line)
            return EngineEvent(
                time=datetime.fromisoformat(one["time"]),
                type=str(one["type"]),
                action=str(one["action"]),
                id=str(one["id"]),
                name=str(one["name"]),
                attributes={str(key): str(value) for key, value in one["attributes"].items()},
                engine=self._engine,
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _make_room(self) -> None:
        """Begin a new file when this one is full."""
        try:
            file = _opened(self._newer, os.O_RDONLY)
        except FileNotFoundError:
            return
        with file:
            now = os.fstat(file.fileno())
            place, count = self._counted
            if place.file != now.st_ino or place.offset > now.st_size:
                place, count = _Place(now.st_ino, 0), 0
            file.seek(place.offset)
            count += sum(block.count(b"\n") for block in iter(lambda: file.read(1024 * 1024), b""))
            self._counted = (_Place(now.st_ino, now.st_size), count)
        if count >= MOST_EVENTS // 2 or now.st_size >= _MOST_FILE_BYTES:
            os.replace(self._newer, self._older)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        if how == fcntl.LOCK_EX:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(self._folder / "events.lock", os.O_RDWR | os.O_CREAT) as lock:
            fcntl.flock(lock, how)
            yield

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The events of {self._engine} cannot be {done}: {error.strerror or error}.",
                hint=f"make room and check the rights of {self._folder}",
            ) from error


def check_filters(query: EventQuery) -> None:
    """Raise InvalidArgument when a query has a filter that there is not."""
    for name in query.filters:
        if name not in _FILTERS:
            raise errors.InvalidArgument(
                f"There is no event filter {name!r}.",
                hint="use container, image, volume, network, event, type or label",
            )


def is_wanted(event: EngineEvent, query: EventQuery) -> bool:
    """Say whether an event fits all filters of a query."""
    if (query.since and event.time < query.since) or (query.until and event.time > query.until):
        return False
    return all(_fits(event, name, values) for name, values in query.filters.items())


def _fits(event: EngineEvent, name: str, values: tuple[str, ...]) -> bool:
    match name:
        case "type":
            return event.type in values
        case "event":
            return any(event.action == one or event.action.startswith(f"{one}:") for one in values)
        case "label":
            return any(_has_label(event.attributes, one) for one in values)
        case "image":
            return any(one in (event.name, event.id, event.attributes.get("image")) for one in values)
        case _:
            return event.type == name and any(event.name == one or event.id.startswith(one) for one in values)


def _has_label(attributes: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in attributes and (not equals or attributes[name] == value)


def _is_complete(file: IO[bytes]) -> bool:
    end = file.seek(0, os.SEEK_END)
    return end == 0 or os.pread(file.fileno(), 1, end - 1) == b"\n"


def _opened(path: Path, flags: int) -> IO[bytes]:
    """Open a file of this user's; what is written is written at once."""
    mode = "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "ab" if flags & os.O_APPEND else "r+b"
    return open(
        path, mode, buffering=0, opener=lambda name, _: os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    )
