"""Which engines do fault tests need? One of their own that may be killed, and stand-ins that misbehave on a socket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import SocketStream

from codomyrmex_containerization import config
from codomyrmex_containerization.dispatch import runs
from codomyrmex_containerization.engines import guard
from tests import backends
from tests.backends import DockerCommandLine

START_SECONDS = 60.0
DEADLINE_SECONDS = 60.0
PAUSE_SECONDS = 0.05


# ------------------------------------------------------------------------------------------------ a real one to kill


class EngineDoesNotStart(Exception):
    """Its last words are the message."""


@dataclass(slots=True)
class OwnEngine:
    """A Docker engine of the tests' own, in a network namespace of its own."""

    folder: Path
    docker: DockerCommandLine
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self.docker.socket_path

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None
        unshare, dockerd = shutil.which("unshare"), shutil.which("dockerd")
        assert unshare is not None
        assert dockerd is not None
        # The network is private: the engine's bridge and its addresses are not those of this host. So are its mounts: what
        # a killed engine leaves mounted would keep its folder from being removed.
        command = [unshare, "--net", "--mount", dockerd, f"--host=unix://{self.socket_path}", "--bip=172.31.78.1/24"]
        command += [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec"]
        command += [f"--pidfile={self.folder}/pid", "--iptables=false", "--ip6tables=false"]
        command += ["--containerd-namespace=cxc-tests", "--containerd-plugins-namespace=cxc-tests-plugins"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + START_SECONDS
        while self.docker(["version"], check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > until:
                self.end()
                raise EngineDoesNotStart(self.last_words())
            time.sleep(PAUSE_SECONDS)

    def ensure_started(self) -> None:
        """Start it again when a test has left it stopped."""
        if self._process is None or self._process.poll() is not None:
            self._process = None
            self.start()

    def stop(self, number: signal.Signals) -> None:
        """End it with a signal and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(DEADLINE_SECONDS)
        self._process = None
        self._wait_for_containerd()

    def end(self) -> None:
        """End it for good."""
        if self._process is None:
            return
        self.clear()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._wait_for_containerd()
        # A shim of a container that was made in the moment of a kill is known to nobody any more.
        end_processes(str(self.folder))
        self._unmount()

    def _unmount(self) -> None:
        # An engine that was killed did not: the folder could not be removed.
        lines = Path("/proc/self/mounts").read_text().splitlines()
        left = [line.split(" ")[1] for line in lines if f" {self.folder}/" in line]
        if left:
            subprocess.run(["umount", "--lazy", *reversed(left)], check=False, capture_output=True)

    def clear(self) -> None:
        """Remove all containers: a build whose engine was killed leaves the one of its step behind."""
        left = self.docker(["ps", "--all", "--quiet"], check=False).stdout.split()
        if left:
            self.docker(["rm", "--force", *left], check=False)

    def _wait_for_containerd(self) -> None:
        # It dies with its parent, but not at once: the next start would take the dying one for a living one.
        pid_file = self.folder / "exec/containerd/containerd.pid"
        with suppress(OSError, ValueError):
            running = Path("/proc") / str(int(pid_file.read_text()))
            until = time.monotonic() + DEADLINE_SECONDS
            while str(self.folder).encode() in (running / "cmdline").read_bytes() and time.monotonic() < until:
                time.sleep(PAUSE_SECONDS)
        pid_file.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-1000:]


def open_own_engine(folder: Path) -> OwnEngine:
    """A running engine of the tests' own; skips without what it needs."""
    if os.geteuid() != 0:
        backends.missing("only root may start an engine of the tests' own")
    for program in ("dockerd", "unshare"):
        if shutil.which(program) is None:
            backends.missing(f"no {program} program on the PATH")
    config = folder / "docker-config"
    config.mkdir()
    engine = OwnEngine(folder, backends.open_docker_command_line(folder / "engine.sock", config))
    try:
        engine.start()
    except EngineDoesNotStart as error:
        backends.missing(f"an engine of the tests' own does not start: {error}")
    return engine


# ------------------------------------------------------------------------------------------------------- stand-ins

Handle = Callable[[SocketStream], Awaitable[None]]


@asynccontextmanager
async def listening(path: Path, handle: Handle) -> AsyncIterator[str]:
    """Listen on a socket and treat each connection so; yields what DOCKER_HOST is to be."""
    listener = await anyio.create_unix_listener(path)

    async def one(stream: SocketStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            async with stream:
                await handle(stream)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, one)
        yield f"unix://{path}"
        tasks.cancel_scope.cancel()


async def silent(stream: SocketStream) -> None:
    """Accept and say nothing."""
    await anyio.sleep_forever()


def answering(version: bytes, other: bytes) -> Handle:
    """Say these bytes to whoever asks for the version or for anything else; an answer that is no whole one ends the connection."""

    async def handle(stream: SocketStream) -> None:
        while True:
            asked = await stream.receive()
            answer = version if b"/version" in asked.split(b"\r\n", 1)[0] else other
            await stream.send(answer)
            if not _is_whole(answer):
                return

    return handle


def _is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.endswith(f"Content-Length: {len(body)}".encode())


def http(body: bytes, *, kind: str = "application/json", length: int | None = None) -> bytes:
    """An HTTP answer, whose length may be a lie."""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Relay:
    """Passes everything on to a real engine, but for requests that hold a text: those it keeps without an answer."""

    engine: Path
    holding: bytes
    held: int = 0
    _news: anyio.Event = field(default_factory=anyio.Event)

    async def handle(self, stream: SocketStream) -> None:
        """Treat one connection."""
        async with await anyio.connect_unix(self.engine) as engine, anyio.create_task_group() as tasks:
            tasks.start_soon(self._pump, engine, stream)
            async for chunk in stream:
                if self.holding in chunk.split(b"\r\n", 1)[0]:
                    self.held += 1
                    self._news.set()
                    self._news = anyio.Event()
                    await anyio.sleep_forever()
                await engine.send(chunk)
            tasks.cancel_scope.cancel()

    async def wait_for_held(self, count: int) -> None:
        """Wait until so many requests are kept."""
        with anyio.fail_after(DEADLINE_SECONDS):
            while self.held < count:
                await self._news.wait()

    async def _pump(self, engine: SocketStream, stream: SocketStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for chunk in engine:
                await stream.send(chunk)
            await stream.aclose()


# -------------------------------------------------------------------------------------------------- what is going on


def host_label() -> str:
    """The label of everything that servers with this test's state folder make."""
    return f"{guard.LABEL_HOST}={runs.host_name(config.folders().state / 'runs')}"


async def eventually(holds: Callable[[], bool], what: str) -> None:
    """Look again and again until it holds; the engine's state has no other way to be waited for."""
    try:
        with anyio.fail_after(DEADLINE_SECONDS):
            while not await anyio.to_thread.run_sync(holds):  # noqa: ASYNC110  the engine sets no event of ours
                await anyio.sleep(PAUSE_SECONDS)
    except TimeoutError:
        raise AssertionError(f"after {DEADLINE_SECONDS:g} seconds still not: {what}") from None


def processes(marker: str) -> list[int]:
    """The processes on this host, in containers or not, that have a text among their arguments."""
    return list(_processes(marker.encode()))


def _processes(marker: bytes) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if marker in (entry / "cmdline").read_bytes():
                    yield int(entry.name)


def children(parent: int) -> set[int]:
    """The processes that a process has started itself and that run."""
    listed = Path(f"/proc/{parent}/task").glob("*/children")
    return {int(pid) for one in listed for pid in one.read_text().split()}


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def end_processes(marker: str) -> None:
    """End what a test has started and what outlived its engine."""
    for pid in processes(marker):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
