"""Does the journal tell what has happened, and what happens next, whoever wrote it?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines.embedded import events
from codomyrmex_containerization.engines.embedded.events import Journal
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from tests.engines.embedded.test_attach import DEADLINE_SECONDS, open_files

ID = "c0ffee" * 10 + "feed"
_WRITER = """
import sys
from pathlib import Path
from codomyrmex_containerization.engines.embedded.events import Journal
journal = Journal(Path(sys.argv[1]), engine="embedded")
for number in range(300):
    journal.note("container", "start", sys.argv[2], str(number), {"long": "x" * 4000})
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of four events."""
    made = Journal(tmp_path / "journal", engine="embedded")
    made.note("container", "create", ID, "web", {"image": "app:1", "mark": "ä\n"})
    made.note("container", "health_status: healthy", ID, "web", {"image": "app:1"})
    made.note("volume", "create", "data", "data")
    made.note("image", "tag", "sha256:beef", "app:1")
    return made


def later(journal: Journal) -> Journal:
    """The same journal as another process sees it."""
    return Journal(journal._folder, engine="embedded")


async def rest(found: AsyncIterator[EngineEvent]) -> list[str]:
    """The actions of all events that are left."""
    with anyio.fail_after(DEADLINE_SECONDS):
        return [event.action async for event in found]


def soon(seconds: float = 0.1) -> datetime:
    """A moment that comes."""
    return datetime.now(tz=UTC) + timedelta(seconds=seconds)


def test_past_events_are_told_oldest_first_with_what_belongs_to_them(journal: Journal) -> None:
    found = later(journal).read(EventQuery())
    assert [event.action for event in found] == ["create", "health_status: healthy", "create", "tag"]
    assert [event.time for event in found] == sorted(event.time for event in found)
    first = found[0]
    assert (first.type, first.id, first.name, first.engine) == ("container", ID, "web", "embedded")
    assert first.attributes == {"name": "web", "image": "app:1", "mark": "ä\n"}
    assert found == journal.read(EventQuery())


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"type": ("volume", "image")}, [2, 3]),
        ({"container": ("web",)}, [0, 1]),
        ({"container": (ID[:8],)}, [0, 1]),
        ({"container": ("other", ID)}, [0, 1]),
        ({"container": ("data",)}, []),
        ({"volume": ("data",)}, [2]),
        ({"network": ("data",)}, []),
        ({"image": ("app:1",)}, [0, 1, 3]),
        ({"image": ("sha256:beef",)}, [3]),
        ({"event": ("create",)}, [0, 2]),
        ({"event": ("health_status",)}, [1]),
        ({"label": ("mark",)}, [0]),
        ({"label": ("mark=ä\n",)}, [0]),
        ({"label": ("mark=b",)}, []),
        ({"type": ("container",), "event": ("create",)}, [0]),
    ],
)
def test_filters_choose_events(journal: Journal, filters: dict[str, tuple[str, ...]], expected: list[int]) -> None:
    everything = journal.read(EventQuery())
    assert journal.read(EventQuery(filters=filters)) == [everything[number] for number in expected]


def test_times_bound_events_and_belong_to_them(journal: Journal) -> None:
    times = [event.time for event in journal.read(EventQuery())]
    assert [event.time for event in journal.read(EventQuery(since=times[1], until=times[2]))] == times[1:3]
    assert journal.read(EventQuery(until=times[0] - timedelta(microseconds=1))) == []


def test_unknown_filter_is_refused(journal: Journal) -> None:
    for ask in (journal.read, journal.follow):
        with pytest.raises(errors.InvalidArgument, match="no event filter 'colour'"):
            ask(EventQuery(filters={"colour": ("red",)}))


def test_journal_that_nobody_wrote_is_empty(tmp_path: Path) -> None:
    assert Journal(tmp_path / "absent", engine="embedded").read(EventQuery()) == []
    assert not (tmp_path / "absent").exists()


def test_half_a_line_is_ignored_and_spoils_no_other(journal: Journal) -> None:
    path = journal._folder / "events.jsonl"
    whole = path.read_bytes()
    for damage in (b'{"time": "2026-01-01T00:00:00', b"\xff\x00", b"[1]\n", b'{"time": 5, "attributes": 1}\n', b"\n\n"):
        path.write_bytes(whole + damage)
        assert [event.action for event in journal.read(EventQuery())][3:] == ["tag"]
        journal.note("container", "die", ID, "web", {"exitCode": "3"})
        assert [event.action for event in later(journal).read(EventQuery())][3:] == ["tag", "die"]


def test_journal_keeps_between_half_and_all_of_the_last_events(tmp_path: Path) -> None:
    journal = Journal(tmp_path, engine="embedded")
    for number in range(events.MOST_EVENTS + events.MOST_EVENTS // 2 + 10):
        journal.note("container", "start", str(number), "name")
    kept = [int(event.id) for event in journal.read(EventQuery())]
    assert events.MOST_EVENTS // 2 <= len(kept) <= events.MOST_EVENTS
    assert kept == list(range(kept[0], events.MOST_EVENTS + events.MOST_EVENTS // 2 + 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "events.lock", "events.older.jsonl"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_several_processes_write_one_journal(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(number)]) for number in range(4)]
    assert [writer.wait(DEADLINE_SECONDS) for writer in writers] == [0] * 4
    found = Journal(tmp_path, engine="embedded").read(EventQuery())
    for number in range(4):
        assert [event.name for event in found if event.id == str(number)] == [str(one) for one in range(300)]
    assert [event.time for event in found] == sorted(event.time for event in found)


def test_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.EngineUnavailable, match="cannot be written"):
        Journal(tmp_path / "file" / "journal", engine="embedded").note("container", "start", ID, "web")
    (tmp_path / "events.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(errors.EngineUnavailable, match="cannot be read"):
        Journal(tmp_path, engine="embedded").read(EventQuery())


async def test_followed_events_without_an_end_are_those_of_the_past(journal: Journal) -> None:
    assert len(await rest(journal.follow(EventQuery()))) == 4
    past = EventQuery(until=datetime.now(tz=UTC), filters={"type": ("volume",)})
    assert await rest(journal.follow(past)) == ["create"]


async def test_followed_events_are_the_past_ones_then_the_new_until_the_end(journal: Journal) -> None:
    first = journal.read(EventQuery())[0].time
    async with aclosing(journal.follow(EventQuery(since=first, until=soon(600)))) as found:
        assert [(await anext(found)).action for _ in range(4)] == ["create", "health_status: healthy", "create", "tag"]
        later(journal).note("container", "start", ID, "web")
        assert (await anext(found)).action == "start"
        (journal._folder / "events.jsonl").rename(journal._folder / "events.older.jsonl")
        journal.note("container", "die", ID, "web")
        assert (await anext(found)).action == "die"
    assert len(await rest(journal.follow(EventQuery(since=first, until=soon())))) == 6


async def test_followed_events_without_a_beginning_are_those_to_come(journal: Journal) -> None:
    async with aclosing(journal.follow(EventQuery(until=soon(600)))) as found:
        journal.note("container", "start", ID, "web")
        assert (await anext(found)).action == "start"


async def test_followed_events_survive_that_the_journal_begins_anew(tmp_path: Path) -> None:
    journal, seen = Journal(tmp_path, engine="embedded"), list[int]()
    async with aclosing(journal.follow(EventQuery(until=soon(600)))) as found:
        for start in range(0, events.MOST_EVENTS, 1000):
            for number in range(start, start + 1000):
                journal.note("container", "start", str(number), "web")
            seen += [int((await anext(found)).id) for _ in range(1000)]
    assert seen == list(range(events.MOST_EVENTS))


async def test_cancelled_following_leaves_no_thread_and_no_file(journal: Journal) -> None:
    files, busy = open_files(), threads._limiter().borrowed_tokens
    query = EventQuery(since=journal.read(EventQuery())[0].time, until=soon(600))
    with anyio.CancelScope() as scope:
        async with aclosing(journal.follow(query)) as found:
            async for event in found:
                if event.action == "tag":
                    scope.cancel()
    assert scope.cancelled_caught
    with anyio.fail_after(DEADLINE_SECONDS):
        while threads._limiter().borrowed_tokens > busy:  # noqa: ASYNC110  a thread's end tells no event
            await anyio.sleep(0.005)
    assert open_files() == files
