"""Does one who is attached to a program that conmon watches hear all of it, and does the program hear all of them?

Everything is real but the runtime: a script of the test's own that starts a program in no container.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors, process, threads
from codomyrmex_containerization.engines.embedded import attach, own_monitor
from codomyrmex_containerization.models.container import OutputFrame
from tests import backends

DEADLINE_SECONDS = 60.0
EVERY_BYTE = bytes(range(256))
TWO_MEGABYTES = EVERY_BYTE * 8192
Watch = Callable[..., "Watched"]


@dataclass(frozen=True, slots=True)
class Watched:
    """A program with a monitor; it begins when it is told to."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Where one attaches."""
        return self.folder / "attach"

    @property
    def log(self) -> Path:
        """What conmon writes."""
        return self.folder / "log"

    @property
    def exit_file(self) -> Path:
        """What conmon writes when all else is written."""
        return self.folder / "exits" / "program"

    @property
    def monitor_pid(self) -> int:
        """conmon's number."""
        return int((self.folder / "conmon.pid").read_text())

    async def begin(self) -> None:
        """Let the program run."""
        await anyio.to_thread.run_sync(lambda: (self.folder / "go").write_text("go\n"))

    async def exit_code(self) -> int:
        """Wait for the program's end."""
        await until(self.exit_file.exists)
        return int(self.exit_file.read_text())

    def clean_up(self) -> None:
        """End what still runs."""
        if not self.exit_file.exists():
            for name in ("pid", "conmon.pid"):
                with suppress(OSError, ValueError):
                    os.kill(int((self.folder / name).read_text()), signal.SIGKILL)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(DEADLINE_SECONDS):
        while not is_so():  # noqa: ASYNC110  a file tells no event
            await anyio.sleep(0.005)


def open_files() -> set[str]:
    """What this process has open."""
    return {f"{name} {os.readlink(f'/proc/self/fd/{name}')}" for name in os.listdir("/proc/self/fd") if _is_open(name)}


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")


@pytest.fixture(params=["conmon", "own"])
def watch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watch]:
    """Make a monitor, conmon or the one of our own, for a shell script that does not run yet."""
    monitor = monitor_command(request.param)
    made: list[Watched] = []

    def one(script: str, *, stdin: bool = False, log_bytes: int = -1, name: str = "") -> Watched:
        folder = tmp_path / (name or f"watched-{len(made)}")
        made.append(Watched(folder))
        monitored(monitor, folder, script, stdin=stdin, log_bytes=log_bytes)
        return made[-1]

    yield one
    for watched in made:
        watched.clean_up()


def monitor_command(kind: str) -> list[str]:
    """The command of a monitor: conmon, or our own."""
    if kind == "own":
        return [sys.executable, "-I", "-S", own_monitor.__file__]
    conmon = process.find("conmon")
    if conmon is None:
        backends.missing("no conmon", enable="apt-get install conmon")
    return [str(conmon)]


def monitored(monitor: list[str], folder: Path, script: str, *, stdin: bool, log_bytes: int) -> None:
    """Have a monitor watch a script that waits until it is told to go on."""
    (folder / "exits").mkdir(parents=True)
    os.mkfifo(folder / "go")
    runtime = folder / "runtime"
    # What a shell starts in the background has no stdin but one that it is handed.
    program = f"( read -r _ < go; exec sh -c {shlex.quote(script)} 3<&- ) <&3 &"
    runtime.write_text(f"#!/bin/sh\ncd {shlex.quote(str(folder))}\nexec 3<&0\n{program}\necho $! > pid\n")
    runtime.chmod(0o700)
    answer, answered = os.pipe()
    argv = [
        *(*monitor, "--api-version", "1", "-c", "program", "-u", "program", "-n", "program", "-r", str(runtime)),
        *("-b", str(folder), "-p", str(folder / "pid"), "-P", str(folder / "conmon.pid")),
        *("-l", f"k8s-file:{folder / 'log'}", "--log-size-max", str(log_bytes), "--exit-dir", str(folder / "exits")),
        *("--full-attach", "--socket-dir-path", str(folder), "--log-level", "error", "--no-sync-log"),
        *(("-i",) if stdin else ()),
    ]
    with open(answer, "rb") as told, (folder / "conmon.log").open("wb") as said:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "_OCI_SYNCPIPE": str(answered)}
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
        subprocess.run(argv, **streams, pass_fds=(answered,), env=environment, timeout=DEADLINE_SECONDS, check=True)  # type: ignore[call-overload]
        os.close(answered)
        line = told.readline()
    assert json.loads(line)["data"] > 0, (line, (folder / "conmon.log").read_text())


async def heard(frames: AsyncIterator[OutputFrame]) -> tuple[bytes, bytes]:
    """All that is said on each stream."""
    said = {"stdout": bytearray(), "stderr": bytearray()}
    async for frame in frames:
        said[frame.stream] += frame.data
    return bytes(said["stdout"]), bytes(said["stderr"])


async def attended(watched: Watched, *, stdin: bytes | None = None) -> tuple[bytes, bytes]:
    """Attach, let the program run to its end, return what it said."""
    with anyio.fail_after(DEADLINE_SECONDS):
        async with attach.attached(watched.socket, stdin=stdin) as attachment:
            await watched.begin()
            return await heard(attachment.frames())


async def test_attached_output_comes_split_and_whole(watch: Watch) -> None:
    watched = watch("echo o1; echo e1 >&2; printf 'no end'; exit 42")
    assert await attended(watched) == (b"o1\nno end", b"e1\n")
    assert await watched.exit_code() == 42


async def test_attached_stdin_of_every_byte_comes_back_whole(watch: Watch) -> None:
    assert await attended(watch("exec cat", stdin=True), stdin=TWO_MEGABYTES) == (TWO_MEGABYTES, b"")


async def test_attached_empty_stdin_ends_at_once(watch: Watch) -> None:
    watched = watch("cat; echo ended", stdin=True)
    assert await attended(watched, stdin=b"") == (b"ended\n", b"")


async def test_stdin_that_nobody_reads_takes_nothing_from_the_output(watch: Watch) -> None:
    for _ in range(5):
        watched = watch("head -c 100000 /dev/zero; echo error >&2; exit 3", stdin=True)
        assert await attended(watched, stdin=TWO_MEGABYTES) == (bytes(100_000), b"error\n")
        assert await watched.exit_code() == 3


async def test_slow_listener_of_ten_megabytes_loses_nothing(watch: Watch) -> None:
    watched = watch("head -c 10000000 /dev/zero; head -c 5000000 /dev/zero >&2")
    with anyio.fail_after(DEADLINE_SECONDS):
        async with attach.attached(watched.socket, stdin=None) as attachment:
            await watched.begin()
            # By now the connection holds all that it can and the program waits.
            await until(lambda: watched.log.stat().st_size > 50_000)
            assert await heard(attachment.frames()) == (bytes(10_000_000), bytes(5_000_000))


async def test_leaving_an_attachment_leaves_the_program_alone(watch: Watch) -> None:
    watched = watch("echo said; until test -e left; do :; done; yes | head -n 300000; exit 6")
    files, busy = open_files(), threads._limiter().borrowed_tokens
    async with attach.attached(watched.socket, stdin=None) as attachment:
        await watched.begin()
        async for frame in attachment.frames():
            assert frame == OutputFrame("stdout", b"said\n")
            break
    (watched.folder / "left").touch()
    assert await watched.exit_code() == 6
    assert open_files() == files
    assert threads._limiter().borrowed_tokens == busy


async def test_cancelled_attachment_leaves_no_file_open(watch: Watch) -> None:
    watched = watch("echo said; exec sleep 100000", stdin=True)
    files = open_files()
    with anyio.CancelScope() as scope:
        async with attach.attached(watched.socket, stdin=TWO_MEGABYTES) as attachment:
            await watched.begin()
            async for _frame in attachment.frames():
                scope.cancel()
    assert scope.cancelled_caught
    assert open_files() == files


async def test_leaving_an_attachment_ends_the_programs_input(watch: Watch) -> None:
    watched = watch("cat; exit 7", stdin=True)
    async with attach.attached(watched.socket, stdin=None):
        await watched.begin()
    assert await watched.exit_code() == 7


async def test_socket_behind_a_long_path_is_reached(watch: Watch) -> None:
    watched = watch("echo far", name="/".join(["a" * 60] * 3))
    assert len(str(watched.socket)) > 107
    assert await attended(watched) == (b"far\n", b"")


async def test_two_attached_hear_the_same(watch: Watch) -> None:
    watched, said = watch("echo begun; until test -e left; do :; done; seq 1 20000"), list[tuple[bytes, bytes]]()

    async def listen(attachment: attach.SocketAttachment) -> None:
        said.append(await heard(attachment.frames()))

    async with attach.attached(watched.socket, stdin=None) as one:
        await watched.begin()
        assert await anext(aiter(one.frames())) == OutputFrame("stdout", b"begun\n")
        async with attach.attached(watched.socket, stdin=None) as two, anyio.create_task_group() as tasks:
            (watched.folder / "left").touch()
            tasks.start_soon(listen, one)
            tasks.start_soon(listen, two)
    assert said == [(b"".join(b"%d\n" % number for number in range(1, 20001)), b"")] * 2


async def test_killed_monitor_ends_an_attachment(watch: Watch) -> None:
    watched = watch("echo said; exec sleep 100000")
    async with attach.attached(watched.socket, stdin=None) as attachment:
        await watched.begin()
        said = [frame async for frame in _killing(attachment.frames(), watched)]
    assert said == [OutputFrame("stdout", b"said\n")]
    assert not watched.exit_file.exists()


async def _killing(frames: AsyncIterator[OutputFrame], watched: Watched) -> AsyncIterator[OutputFrame]:
    async for frame in frames:
        os.kill(watched.monitor_pid, signal.SIGKILL)
        yield frame


async def test_attaching_where_nobody_listens_says_so(watch: Watch, tmp_path: Path) -> None:
    ended = watch("true")
    await attended(ended)
    await ended.exit_code()
    for path in (ended.socket, tmp_path / "absent", tmp_path / "no folder" / "attach"):
        files = open_files()
        with pytest.raises(errors.EngineUnavailable, match="does not answer"):
            async with attach.attached(path, stdin=b"x"):
                pytest.fail("attached to nobody")
        assert open_files() == files


@pytest.mark.parametrize(("given", "typed"), [(b"", b"\x04"), (b"a\n", b"a\n\x04"), (b"a", b"a\x04\x04")])
async def test_stdin_of_a_terminal_ends_with_what_one_types(tmp_path: Path, given: bytes, typed: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "attach"))
        listener.listen()
        async with attach.attached(tmp_path / "attach", stdin=given, tty=True):
            monitor, _ = listener.accept()
            with monitor:
                await anyio.wait_readable(monitor)
                assert monitor.recv(100) == typed
                await anyio.wait_readable(monitor)
                assert monitor.recv(100) == b""
