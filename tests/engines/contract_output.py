"""What does one see, on every engine, of what a program says: attached to it, and later in its log?"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import OutputFrame
from tests.engines.contract import Bench, Ran, behaviour, busy_threads, gathered, no_thread_left, raises, same

ALL_BYTES = bytes(range(256))
PRINT_ALL_BYTES = "".join(f"\\{one:03o}" for one in ALL_BYTES)
PRINT_ASCII = "".join(
    f"\\{one:03o}" for one in range(128)
)  # a log may be kept as text: other bytes are not its promise
TEN_MEGABYTES = b"".join(b"%099d\n" % number for number in range(105_000))
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
THREE_LINES = "echo one; sleep {0}; echo two >&2; sleep {0}; echo three"


@behaviour("output")
async def output_comes_split_with_the_exit_code(bench: Bench) -> None:
    """Output comes split, in order, with the exit code"""
    said = await bench.shell("echo o1; echo e1 >&2; echo o2; echo e2 >&2; printf 'no end'; exit 42")
    assert said == Ran(b"o1\no2\nno end", b"e1\ne2\n", 42)


@behaviour("output")
async def quick_programs_are_heard_whole_and_once(bench: Bench) -> None:
    """What a quick program says comes whole and once"""
    said: list[Ran] = []

    async def one() -> None:
        said.append(await bench.shell("echo out; echo err >&2"))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(one)
    assert said == [Ran(b"out\n", b"err\n", 0)] * 8


@behaviour("output")
async def silent_program_ends_without_output(bench: Bench) -> None:
    """A silent program ends without output"""
    assert await bench.run("true") == Ran(b"", b"", 0)
    assert await bench.run("false") == Ran(b"", b"", 1)


@behaviour("output")
async def stdin_is_given_whole_and_closed(bench: Bench) -> None:
    """Stdin is given whole and closed"""
    data = ALL_BYTES * 8192  # 2 MiB: more than any pipe holds
    assert await bench.run("cat", stdin=data) == Ran(data, b"", 0)
    assert await bench.run("cat", stdin=b"") == Ran(b"", b"", 0)
    assert (await bench.run("cat")).exit_code == 0


@behaviour("output")
async def stdin_that_nobody_reads_holds_nothing_up(bench: Bench) -> None:
    """Stdin that nobody reads holds nothing up"""
    assert await bench.run("true", stdin=b"x" * 2_000_000) == Ran(b"", b"", 0)


@behaviour("output", "copy")
async def ten_megabytes_arrive(bench: Bench) -> None:
    """10 MB on each stream arrive, nothing lost, in order"""
    made = await bench.create("sh", "-c", "cat /tmp/lines; cat /tmp/lines >&2")
    await bench.write(made, "/tmp", lines=TEN_MEGABYTES)
    said = await bench.attached(made)
    same(said.stdout, TEN_MEGABYTES)
    same(said.stderr, TEN_MEGABYTES)


@behaviour("output")
async def bytes_are_not_changed(bench: Bench) -> None:
    """All 256 bytes arrive unchanged"""
    assert (await bench.shell(f"printf '{PRINT_ALL_BYTES}'")).stdout == ALL_BYTES
    assert (await bench.shell("head -c 300000 /dev/zero")).stdout == bytes(300_000)


@behaviour("output")
async def leaving_an_attachment_leaves_the_program_alone(bench: Bench) -> None:
    """Leaving an attachment leaves the program alone and no thread behind"""
    before = busy_threads()
    made = await bench.create("sh", "-c", "echo said; until test -e /go; do sleep 0.05; done; exit 6")
    async with bench.engine.attach_container(made, stdin=None) as attachment:
        await bench.engine.start_container(made)
        async for frame in attachment.frames():
            assert frame == OutputFrame("stdout", b"said\n")
            break
    await no_thread_left(before)
    assert (await bench.engine.inspect_container(made)).status == "running"
    await bench.touch(made, "/go")
    assert await bench.engine.wait_container(made) == 6


# ------------------------------------------------------------------------------------------------------------- the log


@behaviour("logs", "logs")
async def log_holds_what_was_said(bench: Bench) -> None:
    """The log holds what was said, split"""
    made = await bench.ended("echo o1; echo e1 >&2; echo o2; printf last >&2")
    assert await bench.logs(made) == Ran(b"o1\no2\n", b"e1\nlast", None)
    assert await bench.logs(made, stream="stdout") == Ran(b"o1\no2\n", b"", None)
    assert await bench.logs(made, stream="stderr") == Ran(b"", b"e1\nlast", None)


@behaviour("logs", "logs")
async def last_lines_of_the_log_can_be_asked_for(bench: Bench) -> None:
    """The last lines can be asked for"""
    made = await bench.ended("seq 1 200")
    assert (await bench.logs(made, tail=3)).stdout == b"198\n199\n200\n"
    assert (await bench.logs(made, tail=0)).stdout == b""
    assert (await bench.logs(made, tail=1000)).stdout.count(b"\n") == 200


@behaviour("logs", "logs")
async def log_can_be_bounded_by_time(bench: Bench) -> None:
    """The log can be bounded by time"""
    # Whole seconds between the lines: an engine may tell and compare no parts of them.
    made = await bench.ended(THREE_LINES.format(1.1))
    _, first, second = (moment.replace(microsecond=0) for moment in await moments(bench, made))
    assert await bench.logs(made, since=first) == Ran(b"three\n", b"two\n", None)
    assert await bench.logs(made, until=first) == Ran(b"one\n", b"", None)
    assert await bench.logs(made, since=first, until=second) == Ran(b"", b"two\n", None)
    assert await bench.logs(made, since=second, stream="stderr") == Ran(b"", b"", None)
    assert await bench.logs(made, since=first, tail=1) == Ran(b"three\n", b"", None)
    assert await bench.logs(made, since=second + timedelta(hours=1)) == Ran(b"", b"", None)
    assert await bench.logs(made, until=first - timedelta(hours=1)) == Ran(b"", b"", None)


@behaviour("logs", "logs")
async def lines_have_times_when_asked_for(bench: Bench) -> None:
    """Lines have times when asked for"""
    made = await bench.ended(THREE_LINES.format(0))
    one, _, three = await moments(bench, made)
    state = await bench.engine.inspect_container(made)
    assert state.created.replace(microsecond=0) <= one <= three


async def moments(bench: Bench, container: str) -> list[datetime]:
    """The times of the lines of THREE_LINES."""
    said = await bench.logs(container, timestamps=True)
    lines = [*said.stdout.splitlines(), *said.stderr.splitlines()]
    found = {text: _moment(stamp.decode()) for stamp, _, text in (line.partition(b" ") for line in lines)}
    assert found.keys() == {b"one", b"two", b"three"}
    return [found[text] for text in (b"one", b"two", b"three")]


def _moment(text: str) -> datetime:
    found = _STAMP.fullmatch(text)
    assert found, f"not a time: {text}"
    fraction, zone = (found[2] or "")[:6], found[3].replace("Z", "+00:00")
    return datetime.fromisoformat(f"{found[1]}.{fraction:0<6}{zone}").astimezone(UTC)


@behaviour("logs", "logs")
async def log_can_be_followed_to_the_end(bench: Bench) -> None:
    """A log can be followed to the program's end"""
    made = await bench.started("sh", "-c", "echo one; until test -e /go; do sleep 0.05; done; echo two >&2; exit 3")
    said: list[OutputFrame] = []
    async with bench.engine.container_logs(made, base.LogQuery(follow=True), tty=False) as frames:
        async for frame in frames:
            said.append(frame)
            if len(said) == 1:
                await bench.touch(made, "/go")
    assert said == [OutputFrame("stdout", b"one\n"), OutputFrame("stderr", b"two\n")]


@behaviour("logs", "logs")
async def followed_log_can_be_left(bench: Bench) -> None:
    """A followed log can be left: no thread stays behind"""
    before = busy_threads()
    made = await bench.started("sh", "-c", "echo one; sleep 100000")
    async with bench.engine.container_logs(made, base.LogQuery(follow=True), tty=False) as frames:
        async for frame in frames:
            assert frame.data == b"one\n"
            break
    await no_thread_left(before)
    assert (await bench.logs(made)).stdout == b"one\n"


@behaviour("logs", "logs")
async def log_of_what_never_ran_is_empty(bench: Bench) -> None:
    """The log of what never ran is empty, of what is not there an error"""
    assert await bench.logs(await bench.create("true")) == Ran(b"", b"", None)
    async with raises(errors.NotFound):
        await bench.logs(bench.fresh())


@behaviour("logs", "logs", "copy")
async def log_keeps_ten_megabytes_and_every_byte(bench: Bench) -> None:
    """The log keeps 10 MB and every character, NUL and control characters too"""
    made = await bench.create(
        "sh", "-c", f"cat /tmp/lines; printf '{PRINT_ASCII}ä日本' >&2; head -c 100000 /dev/zero >&2"
    )
    await bench.write(made, "/tmp", lines=TEN_MEGABYTES)
    await bench.engine.start_container(made)
    await bench.engine.wait_container(made)
    said = await bench.logs(made)
    same(said.stdout, TEN_MEGABYTES)
    same(said.stderr, ALL_BYTES[:128] + "ä日本".encode() + bytes(100_000))


@behaviour("logs", "logs")
async def flood_that_is_left_early_holds_nothing_up(bench: Bench) -> None:
    """A flood that is left early holds nothing up"""
    before = busy_threads()
    made = await bench.create("yes")
    async with bench.engine.attach_container(made, stdin=None) as attachment:
        await bench.engine.start_container(made)
        async for _frame in attachment.frames():
            break
    await bench.engine.kill_container(made, "KILL")
    assert await bench.engine.wait_container(made) == 137
    await no_thread_left(before)


@behaviour("logs", "logs")
async def restarted_containers_log_goes_on(bench: Bench) -> None:
    """The log goes on when a container is started again"""
    made = await bench.ended("test -e /been && echo again; echo x > /been; echo said")
    await bench.engine.start_container(made)
    await bench.engine.wait_container(made)
    async with bench.engine.container_logs(made, base.LogQuery(), tty=False) as frames:
        assert await gathered(frames) == (b"said\nagain\nsaid\n", b"")
