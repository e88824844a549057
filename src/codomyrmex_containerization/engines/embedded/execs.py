"""How does a command run in a container that runs? As a child of the runtime that this process talks to by pipes."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream
from anyio.streams.memory import MemoryObjectSendStream

from codomyrmex_containerization import process, threads
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import bundle, fallback, life, runtime, state, users
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import OutputFrame, Stream
from codomyrmex_containerization.models.details import ExecSpec, ExecState

_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.01
_FRAMES = 64
_CHUNK_BYTES = 65536
_WORDS_BYTES = 4096
_GRACE_SECONDS = 0.1
_KILLED = 137


@dataclass(slots=True)
class Command:
    """A command that was prepared."""

    id: str
    container: str
    spec: ExecSpec
    folder: Path
    pid: int = 0
    started: bool = False
    is_left: bool = False
    exit_code: int | None = None

    def state(self) -> ExecState:
        """How it stands."""
        if self.exit_code is None and self.pid and state.process_start(self.pid) is None and self.is_left:
            self.exit_code = _KILLED  # nobody was there to hear its own
        return ExecState(self.started and self.exit_code is None, self.exit_code, self.pid)


class _Frames(base.Attachment):
    def __init__(self, frames: AsyncIterator[OutputFrame]) -> None:
        self._frames = frames

    def frames(self) -> AsyncIterator[OutputFrame]:
        return self._frames


def prepare(house: life.House, record: Record, spec: ExecSpec) -> Command:
    """Write down what is to run; blocks. Raises CommandFailed or InvalidArgument for a user that there is not."""
    return Command(state.new_id(), record.id, spec, house.containers.folder(record.id) / "exec")


def _described(house: life.House, record: Record, command: Command) -> Path:
    pid = record.first.pid if record.first is not None else 0
    root = Path(f"/proc/{pid}/root")
    user = users.find(command.spec.user if command.spec.user is not None else record.user, root)
    env = {"HOSTNAME": record.hostname, "HOME": user.home, **record.env, **command.spec.env}
    workdir = command.spec.workdir or record.workdir
    users.require_program(command.spec.command, root, env=env, workdir=workdir)
    words = bundle.process(
        command.spec.command,
        user=user,
        env=env,
        workdir=workdir,
        powers=bundle.capabilities(record, house.powers),
        rlimits=fallback.rlimits(record, house.found.limits),
        privileged=record.spec.privileged,
    )
    folder = command.folder / command.id
    folder.mkdir(mode=0o700, parents=True)
    path = folder / "process.json"
    path.write_bytes(json.dumps(words).encode("utf-8", "surrogateescape"))
    return path


@asynccontextmanager
async def started(
    house: life.House, record: Record, command: Command, *, stdin: bytes | None
) -> AsyncIterator[base.Attachment]:
    """Run it while the block lasts, and after it. Raises CommandFailed (its program cannot be started)."""
    description = await threads.run(
        lambda: _described(house, record, command), deadline_seconds=60, what="preparing the command"
    )
    pid_file = description.with_name("pid")
    argv = house.runtime.exec_command(record.id, description, pid_file)
    command.started = True
    try:
        async with process.run(argv, env=house.runtime.environment, cwd=Path("/"), stdin=stdin is not None) as running:
            await _until_it_runs(house, record, command, running, pid_file)
            async with threads.task_group() as tasks:
                if stdin is not None:
                    tasks.start_soon(_feed, running, stdin)
                send, receive = anyio.create_memory_object_stream[OutputFrame](_FRAMES)
                tasks.start_soon(_gather, command, running, send)
                try:
                    async with receive:
                        yield _Frames(_each(receive))
                finally:
                    # Whoever leaves early leaves the command alone; nobody reads what it says any more.
                    tasks.cancel_scope.cancel()
    finally:
        command.is_left = True
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(description.parent, ignore_errors=True))


async def _each(receive: AsyncIterator[OutputFrame]) -> AsyncIterator[OutputFrame]:
    async for frame in receive:
        yield frame


async def _until_it_runs(
    house: life.House, record: Record, command: Command, running: process.Running, pid_file: Path
) -> None:
    """Wait until the program runs. Raises what kept it from running."""
    pause = _PAUSE_SECONDS
    while True:
        ended = running.process.returncode is not None
        with suppress(OSError, ValueError):
            command.pid = int(pid_file.read_text())
            return
        if ended:
            words = b""
            with suppress(anyio.EndOfStream):
                if running.process.stderr is not None:
                    words = await running.process.stderr.receive(_WORDS_BYTES)
            command.exit_code = running.process.returncode or 126
            raise house.refusal(runtime.plain(words.decode("utf-8", "replace")), f"starting a command in {record.name}")
        with anyio.move_on_after(pause):
            await running.wait()
        pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)


async def _feed(running: process.Running, stdin: bytes) -> None:
    if running.process.stdin is not None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            await running.process.stdin.send(stdin)
        with suppress(anyio.BrokenResourceError, OSError):
            await running.process.stdin.aclose()


async def _gather(command: Command, running: process.Running, send: MemoryObjectSendStream[OutputFrame]) -> None:
    readers = (
        _Reader("stdout", running.process.stdout, send),
        _Reader("stderr", running.process.stderr, send),
    )
    async with send, anyio.create_task_group() as tasks:
        for reader in readers:
            tasks.start_soon(reader.read)
        code = await running.wait()
        # What it left in the background may hold its output open for ever.
        for reader in readers:
            reader.hurry()
    command.exit_code = code if code >= 0 else 128 - code


class _Reader:
    """Passes one stream on, until its end; in a hurry until nothing more comes."""

    def __init__(
        self, stream: Stream, source: ByteReceiveStream | None, send: MemoryObjectSendStream[OutputFrame]
    ) -> None:
        self._stream: Stream = stream
        self._source = source
        self._send = send
        self._scope = anyio.CancelScope()
        self._hurried = False

    def hurry(self) -> None:
        self._hurried = True
        self._scope.deadline = anyio.current_time() + _GRACE_SECONDS

    async def read(self) -> None:
        while self._source is not None:
            data = b""
            with anyio.CancelScope() as self._scope:
                if self._hurried:
                    self.hurry()
                with suppress(anyio.EndOfStream):
                    data = await self._source.receive(_CHUNK_BYTES)
            if not data:
                return
            await self._send.send(OutputFrame(self._stream, data))
