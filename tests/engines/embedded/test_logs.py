"""Is a log that conmon wrote read back as it was said, in whole, in part, and while it goes on?"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines.base import LogQuery
from codomyrmex_containerization.engines.embedded import attach, logs
from codomyrmex_containerization.models.container import OutputFrame, Stream
from tests.engines.embedded.test_attach import DEADLINE_SECONDS, EVERY_BYTE, Watch, attended, heard, open_files, watch

__all__ = ["watch"]

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
Said = list[tuple[Stream, bytes]]
THREE: Said = [("stdout", b"one\n"), ("stderr", b"two\n"), ("stdout", b"three\n")]


def written(said: Sequence[tuple[Stream, bytes]], *, most: int = 8192) -> bytes:
    """What conmon writes of what was said, a second apart, when it reads so many bytes at most."""
    lines = []
    for second, (stream, data) in enumerate(said):
        moment = f"{(BEGAN + timedelta(seconds=second)).isoformat()[:-6]}.123456789+00:00"
        for piece in (data[start : start + most] for start in range(0, len(data), most)):
            for line in piece.split(b"\n")[:-1]:
                lines.append(f"{moment} {stream} F ".encode() + line)
            if not piece.endswith(b"\n"):
                lines.append(f"{moment} {stream} P ".encode() + piece.rpartition(b"\n")[2])
    return b"".join(line + b"\n" for line in lines)


def split(frames: Iterator[OutputFrame]) -> tuple[bytes, bytes]:
    """All that is told of each stream."""
    said = {"stdout": b"", "stderr": b""}
    for frame in frames:
        said[frame.stream] += frame.data
    return said["stdout"], said["stderr"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of three lines, a second apart."""
    path = tmp_path / "log"
    path.write_bytes(written(THREE))
    return path


# ------------------------------------------------------------------------------------------------- what conmon wrote


async def test_log_of_a_program_is_what_it_said(watch: Watch) -> None:
    bytes_of_all_kinds = EVERY_BYTE * 500 + b"\n\n\r\nno end"
    watched = watch("cat >&2; seq 1 30000; head -c 300000 /dev/zero", stdin=True)
    said = await attended(watched, stdin=bytes_of_all_kinds)
    await watched.exit_code()
    assert said[1] == bytes_of_all_kinds
    assert split(logs.read(watched.log, LogQuery())) == said
    assert split(logs.read(watched.log, LogQuery(stream="stdout"))) == (said[0], b"")
    assert split(logs.read(watched.log, LogQuery(tail=1))) == (bytes(300_000), b"")
    assert split(logs.read(watched.log, LogQuery(tail=3)))[0] == b"29999\n30000\n" + bytes(300_000)


async def test_followed_log_survives_that_conmon_begins_it_anew(watch: Watch) -> None:
    # Each line goes in when the one before has come out: 300 KB by a log that holds 20 KB.
    watched, last = watch("exec cat", stdin=True, log_bytes=20_000), 3000
    seen, inodes = list[bytes](), set[int]()
    async with attach.attached(watched.socket, stdin=None) as attachment:
        await watched.begin()
        frames = logs.follow(watched.log, LogQuery(), is_over=watched.exit_file.exists)
        with anyio.fail_after(DEADLINE_SECONDS):
            async with aclosing(frames), anyio.create_task_group() as tasks:
                tasks.start_soon(heard, attachment.frames())
                for first in range(0, last, 30):
                    lines = [b"%099d\n" % number for number in range(first, first + 30)]
                    attachment._connection.send(b"".join(lines))
                    taken = b""
                    while len(taken) < 3000:
                        taken += (await anext(frames)).data
                    seen += taken.splitlines(keepends=True)
                    inodes.add(watched.log.stat().st_ino)
                tasks.cancel_scope.cancel()
    assert seen == [b"%099d\n" % number for number in range(last)]
    assert len(inodes) > 1
    assert watched.log.stat().st_size <= 20_000


async def test_followed_log_of_a_program_ends_with_it_and_holds_all(watch: Watch) -> None:
    watched = watch("seq 1 100000; head -c 1000000 /dev/zero >&2; printf end")
    await watched.begin()
    with anyio.fail_after(DEADLINE_SECONDS):
        said = await heard(logs.follow(watched.log, LogQuery(), is_over=watched.exit_file.exists))
    assert said == (b"".join(b"%d\n" % number for number in range(1, 100_001)) + b"end", bytes(1_000_000))


# ---------------------------------------------------------------------------------------------------------- the file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(
        st.tuples(
            st.sampled_from(["stdout", "stderr"]), st.lists(st.sampled_from([b"a", b"F", b"\n", b" "])).map(b"".join)
        )
    ),
    most=st.integers(1, 9),
    tail=st.integers(0, 8),
)
def test_last_lines_are_those_that_ended_last(
    tmp_path: Path, said: list[tuple[Stream, bytes]], most: int, tail: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(written(said, most=most))
    # A line ends where its last piece lies; the streams' lines may be intermingled.
    lines: list[tuple[int, Stream, bytes]] = []
    open_lines: dict[Stream, int] = {}
    for place, line in enumerate(path.read_bytes().split(b"\n")[:-1]):
        _, name, tag, data = line.split(b" ", 3)
        stream: Stream = "stdout" if name == b"stdout" else "stderr"
        number = open_lines.pop(stream, len(lines))
        before = lines[number][2] if number < len(lines) else b""
        lines[number : number + 1] = [(place, stream, before + data + (b"\n" if tag == b"F" else b""))]
        if tag == b"P":
            open_lines[stream] = number
    last = sorted(lines)[len(lines) - min(tail, len(lines)) :]
    wanted = tuple(b"".join(data for _, stream, data in last if stream == one) for one in ("stdout", "stderr"))
    assert split(logs.read(path, LogQuery(tail=tail))) == wanted
    assert split(logs.read(path, LogQuery())) == tuple(
        b"".join(data for stream, data in said if stream == one) for one in ("stdout", "stderr")
    )


def test_last_lines_of_a_gigantic_log_are_found_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    os.truncate(path, 1 << 40)  # a terabyte of nothing: read from the front, this would not end
    with path.open("ab") as file:
        file.write(b"\n" + written([("stdout", b"%d\n" % number) for number in range(50_000)]))
    assert split(logs.read(path, LogQuery(tail=2))) == (b"49998\n49999\n", b"")
    assert split(logs.read(path, LogQuery(tail=49_999)))[0].startswith(b"1\n2\n")


def test_line_that_began_long_before_another_streams_flood_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    flood: Said = [("stdout", b"%d\n" % number) for number in range(10_000)]
    path.write_bytes(written([("stderr", b"begun, "), *flood, ("stderr", b"ended\n")]))
    assert split(logs.read(path, LogQuery(tail=2))) == (b"9999\n", b"begun, ended\n")


def test_log_is_bounded_by_time(log: Path) -> None:
    first, second = BEGAN + timedelta(seconds=1), BEGAN + timedelta(seconds=2)
    assert split(logs.read(log, LogQuery(since=first))) == (b"three\n", b"two\n")
    assert split(logs.read(log, LogQuery(until=first))) == (b"one\n", b"")
    assert split(logs.read(log, LogQuery(since=first, until=second))) == (b"", b"two\n")
    assert split(logs.read(log, LogQuery(since=second, stream="stderr"))) == (b"", b"")
    assert split(logs.read(log, LogQuery(since=first, tail=1))) == (b"three\n", b"")
    assert split(logs.read(log, LogQuery(tail=1, stream="stderr"))) == (b"", b"")


def test_line_in_pieces_belongs_to_the_time_of_its_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(written([("stdout", b"be"), ("stdout", b"gun\nnext\n")]))
    assert split(logs.read(path, LogQuery(since=BEGAN + timedelta(seconds=1)))) == (b"next\n", b"")


def test_times_are_told_in_utc_with_nine_digits(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"2026-01-01T05:30:00.000000001+05:30 stdout F a\n2025-12-31T19:00:01.5-05:00 stderr P b\n")
    assert list(logs.read(path, LogQuery(timestamps=True))) == [
        OutputFrame("stdout", b"2026-01-01T00:00:00.000000001Z a\n"),
        OutputFrame("stderr", b"2026-01-01T00:00:01.500000000Z b"),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        b"\n",
        b"nonsense\n",
        b"\x00\x00\x00\n",
        b"2026-01-01T00:00:00.1+00:00 stdin F what\n",
        b"2026-01-01T00:00:00.1+00:00 stdout X what\n",
        b"2026-01-01T00:00:00.1+00:00 stdout\n",
        b"2026-01-01T00:00:00.1+00:00 std",
        b"yesterday stdout F what\n",
        b"x" * 3_000_000 + b"\n",
    ],
)
def test_damaged_line_is_skipped(log: Path, damage: bytes) -> None:
    whole = log.read_bytes()
    log.write_bytes(damage.rstrip(b"\n") + b"\n" + whole + damage)
    assert split(logs.read(log, LogQuery())) == (b"one\nthree\n", b"two\n")
    assert split(logs.read(log, LogQuery(tail=2))) in [(b"three\n", b"two\n"), (b"", b"")]
    assert split(logs.read(log, LogQuery(timestamps=True)))[1].endswith(b"Z two\n")


def test_end_of_a_line_without_a_line_end_adds_none(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(written([("stdout", b"no end")]) + b"2026-01-01T00:00:00.1+00:00 stdout F\n" + written(THREE[:1]))
    assert split(logs.read(path, LogQuery())) == (b"no endone\n", b"")
    assert split(logs.read(path, LogQuery(tail=1))) == (b"one\n", b"")


def test_log_that_nobody_wrote_is_empty(tmp_path: Path) -> None:
    assert list(logs.read(tmp_path / "absent", LogQuery(tail=3))) == []
    (tmp_path / "log").touch()
    assert list(logs.read(tmp_path / "log", LogQuery(tail=3))) == []


def test_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    for path in (tmp_path / "link", tmp_path):
        with pytest.raises(errors.EngineUnavailable, match="log cannot be read"):
            list(logs.read(path, LogQuery()))


def test_reading_a_log_closes_it(log: Path) -> None:
    before = open_files()
    list(logs.read(log, LogQuery()))
    frames = logs.read(log, LogQuery(timestamps=True))
    next(frames)
    del frames
    assert open_files() == before


# --------------------------------------------------------------------------------------------------------- following


async def rest(frames: AsyncIterator[OutputFrame]) -> list[OutputFrame]:
    """All frames that are left."""
    with anyio.fail_after(DEADLINE_SECONDS):
        return [frame async for frame in frames]


async def test_followed_log_tells_what_comes(log: Path) -> None:
    over: list[bool] = []
    async with aclosing(logs.follow(log, LogQuery(tail=1), is_over=lambda: bool(over))) as frames:
        assert await anext(frames) == OutputFrame("stdout", b"three\n")
        with log.open("ab") as file:
            line = written([("stderr", b"four\n")])
            file.write(line[:-3])
            file.flush()
            file.write(line[-3:])
        assert await anext(frames) == OutputFrame("stderr", b"four\n")
        log.rename(log.with_name("old"))
        log.write_bytes(written([("stdout", b"five\n")]))
        with log.with_name("old").open("ab") as file:
            file.write(written([("stdout", b"last of the old\n")]))
        assert [frame.data for frame in [await anext(frames), await anext(frames)]] == [b"last of the old\n", b"five\n"]
        over.append(True)
        assert await rest(frames) == []


async def test_followed_log_may_appear_later_and_be_cut_off(tmp_path: Path) -> None:
    path, over = tmp_path / "log", list[bool]()

    def is_over() -> bool:
        if not path.exists():  # asked after the first look
            path.write_bytes(written(THREE))
        return bool(over)

    async with aclosing(logs.follow(path, LogQuery(tail=0), is_over=is_over)) as frames:
        assert (await anext(frames)).data == b"one\n"
        assert [(await anext(frames)).data for _ in range(2)] == [b"two\n", b"three\n"]
        path.write_bytes(written(THREE[:1]))
        assert (await anext(frames)).data == b"one\n"
        over.append(True)
        assert await rest(frames) == []


async def test_followed_log_ends_with_what_came_just_before_the_end(log: Path) -> None:
    def is_over() -> bool:
        with log.open("ab") as file:
            file.write(written([("stdout", b"just before\n")]))
        return True

    frames = logs.follow(log, LogQuery(tail=0), is_over=is_over)
    assert OutputFrame("stdout", b"just before\n") in [await anext(frames)]
    await frames.aclose()


async def test_followed_log_ends_at_the_time_that_was_asked_for(log: Path) -> None:
    until = BEGAN + timedelta(seconds=1)
    assert [one.data for one in await rest(logs.follow(log, LogQuery(until=until), is_over=lambda: False))] == [
        b"one\n"
    ]
    soon = datetime.now(tz=UTC) + timedelta(milliseconds=50)
    assert len(await rest(logs.follow(log, LogQuery(until=soon), is_over=lambda: False))) == 3


async def test_cancelled_following_leaves_no_thread_and_no_file(log: Path) -> None:
    files, busy = open_files(), threads._limiter().borrowed_tokens
    with anyio.CancelScope() as scope:
        async with aclosing(logs.follow(log, LogQuery(), is_over=lambda: False)) as frames:
            async for frame in frames:
                if frame.data == b"three\n":
                    scope.cancel()
    assert scope.cancelled_caught
    with anyio.fail_after(DEADLINE_SECONDS):
        while threads._limiter().borrowed_tokens > busy:  # noqa: ASYNC110  a thread's end tells no event
            await anyio.sleep(0.005)
    assert open_files() == files
