"""What is the embedded engine to an ordinary user? The same engine, in a process of that user's that is root of a namespace of its own.

That process is started when something is first asked of the engine, and ends with this one; containers go on without it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import build, calls, objects
from codomyrmex_containerization.models.container import OutputFrame
from codomyrmex_containerization.models.engine import Endpoint, EngineInfo
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSpec
from codomyrmex_containerization.models.settings import RegistrySettings

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

_WORKER = "codomyrmex_containerization.engines.embedded.worker"
_PASSED_ON = (
    *("PATH", "HOME", "PYTHONPATH", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "TMPDIR", "LANG"),
    *("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
)
_START_SECONDS = 30.0
_END_SECONDS = 5.0
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, anyio.IncompleteRead)


class Worker:
    """The process that does it, started when it is first needed and again when it has gone; every method blocks."""

    def __init__(
        self,
        folders: objects.Folders,
        *,
        engine: str,
        timeout_seconds: float,
        registries: RegistrySettings,
        before: Sequence[str] = (),
    ) -> None:
        self._folders = folders
        self._command = [*before, sys.executable, "-P", "-m", _WORKER, str(folders.data), str(folders.run), engine]
        self._command += [f"{timeout_seconds:g}", registries.model_dump_json()]
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = ""

    def socket(self, *, deaf: str = "") -> str:
        """Return where it listens; not at `deaf`, where nobody does any more. Raises EngineUnavailable when it does not start."""
        with self._starting:
            if self._process is None or self._process.poll() is not None or self._socket == deaf:
                self.end()
                self._start()
            return self._socket

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            with tempfile.TemporaryFile() as said:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                )
                timer = threading.Timer(_START_SECONDS, self._process.kill)
                timer.start()
                assert self._process.stdout is not None  # noqa: S101  a pipe was asked for
                with self._process.stdout as out:
                    line = out.readline()
                timer.cancel()
                self._socket = self._told(line, said.fileno())
        except OSError as error:
            raise _unavailable(error.strerror or str(error)) from error

    def _told(self, line: bytes, said: int) -> str:
        try:
            told = json.loads(line)
        except ValueError:
            told = {}
        if isinstance(told, dict) and isinstance(told.get("socket"), str):
            return str(told["socket"])
        self.end()
        if isinstance(told, dict) and isinstance(told.get("error"), list):
            name, message, hint = map(str, told["error"])
            raise calls.Failure(name, message, hint).error()
        words = os.pread(said, 65_536, 0).decode("utf-8", "replace").strip().splitlines()
        raise _unavailable(words[-1] if words else "it said nothing")

    def end(self) -> None:
        """End it; containers go on."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unavailable(why: str) -> errors.EngineUnavailable:
    return errors.EngineUnavailable(
        f"The process that does containers for this user does not start: {why}.",
        hint="look at the reason; as root, or with docker or podman, it is not needed",
    )


def _lost() -> errors.EngineUnavailable:
    return errors.EngineUnavailable(
        "The process that does containers for this user has gone.",
        hint="try again: it is started anew, and containers have gone on",
    )


class _Connection:
    """One call on its way."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._incoming = BufferedByteReceiveStream(stream)

    async def send(self, frame: calls.Frame) -> None:
        await calls.send(self._stream, frame)

    async def receive(self) -> calls.Frame:
        """Return the next frame. Raises the error that it tells of."""
        frame = await calls.receive(self._incoming)
        if isinstance(frame, calls.Failure):
            raise frame.error()
        return frame

    async def items(self) -> AsyncIterator[Any]:
        while isinstance(frame := await self.receive(), calls.Item):
            yield frame.value

    def send_now(self, frame: calls.Frame) -> None:
        """Send a frame, from a thread."""
        anyio.from_thread.run(self.send, frame)

    def pieces(self) -> Iterator[bytes]:
        """Receive pieces, in a thread, until the call has its result."""
        while isinstance(frame := anyio.from_thread.run(self.receive), calls.Item):
            yield frame.value


def plain(method: Method) -> Method:
    """Have a method of the contract done there: it takes and returns plain values."""
    name = method.__name__

    @functools.wraps(method)
    async def call(self: RootlessEngine, *given: object, **named: object) -> object:
        async with self.call(calls.Call("plain", name, given, dict(named))) as connection:
            return _result(await connection.receive())

    return _made(method, call)


def progress(method: Method) -> Method:
    """The same for a method that says how far it is."""
    name = method.__name__

    @functools.wraps(method)
    async def call(
        self: RootlessEngine, *given: object, passed: base.Passed = lambda count: None, **named: object
    ) -> object:
        async with self.call(calls.Call("progress", name, given, dict(named))) as connection:
            while isinstance(frame := await connection.receive(), calls.Passed):
                count = frame.count
                await threads.run(lambda count=count: passed(count), deadline_seconds=None, what="")  # type: ignore[misc]  # the default binds it
            return _result(frame)

    return _made(method, call)


def stream(method: Method) -> Method:
    """The same for a method that opens a stream of items."""
    name = method.__name__

    @functools.wraps(method)
    @asynccontextmanager
    async def call(self: RootlessEngine, *given: object, **named: object) -> AsyncIterator[AsyncIterator[Any]]:
        async with self.call(calls.Call("stream", name, given, dict(named))) as connection:
            await connection.receive()
            yield connection.items()

    return _made(method, call)


def _made(method: Method, call: Callable[..., Any]) -> Method:
    call.__isabstractmethod__ = False  # type: ignore[attr-defined]  # taken over with the name and the words
    return cast("Method", call)


def _result(frame: calls.Frame) -> Any:
    if not isinstance(frame, calls.Result):
        raise errors.InternalError("An answer came in no order.", hint="report this")
    return frame.value


class _Attachment(base.Attachment):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def frames(self) -> AsyncIterator[OutputFrame]:
        async for item in self._connection.items():
            yield item


class RootlessEngine(base.Engine):
    """The embedded engine of an ordinary user."""

    def __init__(
        self,
        endpoint: Endpoint,
        folders: objects.Folders,
        *,
        timeout_seconds: float,
        registries: RegistrySettings | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.name = endpoint.engine
        self.endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self._worker = Worker(
            folders,
            engine=endpoint.engine,
            timeout_seconds=timeout_seconds,
            registries=registries or RegistrySettings(),
            before=before,
        )

    @property
    def is_local(self) -> bool:
        """It is on this host."""
        return True

    @asynccontextmanager
    async def call(self, call: calls.Call) -> AsyncIterator[_Connection]:
        """Ask for something; leaving the block before its end cancels it there. Raises EngineUnavailable."""
        opened = await self._connected()
        try:
            async with opened:
                connection = _Connection(opened)
                await connection.send(call)
                yield connection
        except _GONE as error:
            raise _lost() from error

    async def _connected(self) -> SocketStream:
        path = await threads.run(self._worker.socket, deadline_seconds=None, what="starting the worker")
        with suppress(OSError):
            return await anyio.connect_unix(path)
        # It was just ending: nothing has been asked of it yet.
        path = await threads.run(lambda: self._worker.socket(deaf=path), deadline_seconds=None, what="starting it")
        try:
            return await anyio.connect_unix(path)
        except OSError as error:
            raise _lost() from error

    async def attend(self) -> None:
        """Have health checks run and ends noticed, until cancelled."""
        while True:
            with suppress(errors.EngineUnavailable):
                async with self.call(calls.Call("plain", "attend")) as connection:
                    await connection.receive()
            await anyio.sleep(1)

    async def info(self, *, deadline_seconds: float | None = None) -> EngineInfo:
        """Say which runtime works here and what it can do."""
        found = await self._info(deadline_seconds=deadline_seconds)
        return replace(found, endpoint=self.endpoint)

    _info = plain(base.Engine.info)
    checks = plain(base.Engine.checks)
    list_containers = plain(base.Engine.list_containers)
    inspect_container = plain(base.Engine.inspect_container)
    container_details = plain(base.Engine.container_details)
    create_container = plain(base.Engine.create_container)
    start_container = plain(base.Engine.start_container)
    wait_container = plain(base.Engine.wait_container)
    stop_container = plain(base.Engine.stop_container)
    restart_container = plain(base.Engine.restart_container)
    pause_container = plain(base.Engine.pause_container)
    unpause_container = plain(base.Engine.unpause_container)
    kill_container = plain(base.Engine.kill_container)
    remove_container = plain(base.Engine.remove_container)
    rename_container = plain(base.Engine.rename_container)
    top = plain(base.Engine.top)
    changes = plain(base.Engine.changes)
    commit_container = plain(base.Engine.commit_container)
    stored_container = plain(base.Engine.stored_container)
    import_container = progress(base.Engine.import_container)
    update_container = plain(base.Engine.update_container)
    container_logs = stream(base.Engine.container_logs)
    usage = plain(base.Engine.usage)
    create_exec = plain(base.Engine.create_exec)
    inspect_exec = plain(base.Engine.inspect_exec)
    end_exec = plain(base.Engine.end_exec)
    stat_path = plain(base.Engine.stat_path)
    inspect_image = plain(base.Engine.inspect_image)
    image_details = plain(base.Engine.image_details)
    list_images = plain(base.Engine.list_images)
    untagged_children = plain(base.Engine.untagged_children)
    image_users = plain(base.Engine.image_users)
    tag_image = plain(base.Engine.tag_image)
    list_image_names = plain(base.Engine.list_image_names)
    pull_image = stream(base.Engine.pull_image)
    push_image = stream(base.Engine.push_image)
    remove_image = plain(base.Engine.remove_image)
    load_image = progress(base.Engine.load_image)
    save_image = progress(base.Engine.save_image)
    import_image = progress(base.Engine.import_image)
    export_container = progress(base.Engine.export_container)
    list_volumes = plain(base.Engine.list_volumes)
    create_volume = plain(base.Engine.create_volume)
    remove_volume = plain(base.Engine.remove_volume)
    volume_sizes = plain(base.Engine.volume_sizes)
    list_networks = plain(base.Engine.list_networks)
    create_network = plain(base.Engine.create_network)
    remove_network = plain(base.Engine.remove_network)
    connect_network = plain(base.Engine.connect_network)
    disconnect_network = plain(base.Engine.disconnect_network)
    build_cache = plain(base.Engine.build_cache)
    prune_build_cache = plain(base.Engine.prune_build_cache)
    events = stream(base.Engine.events)

    @asynccontextmanager
    async def attach_container(self, container: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """Attach before the start."""
        async with self._attached("attach_container", container, stdin) as attachment:
            yield attachment

    @asynccontextmanager
    async def start_exec(self, exec_id: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """Start a prepared command."""
        async with self._attached("start_exec", exec_id, stdin) as attachment:
            yield attachment

    @asynccontextmanager
    async def _attached(self, method: str, what: str, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        async with self.call(calls.Call("attached", method, (what,), {"stdin": stdin})) as connection:
            await connection.receive()
            yield _Attachment(connection)

    async def read_archive(self, container: str, path: str, sink: Callable[[Iterator[bytes]], T]) -> T:
        """Stream a path of a container as a tar."""
        async with self.call(calls.Call("received", "read_archive", (container, path))) as connection:
            # Leaving the block closes the connection: a thread that still waits on it hears so.
            return await threads.run(lambda: sink(connection.pieces()), deadline_seconds=None, what=f"copying {path}")

    async def write_archive(self, container: str, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        """Unpack a tar into a folder of a container."""
        async with (
            self.call(calls.Call("sent", "write_archive", (container, folder))) as connection,
            threads.task_group() as tasks,
        ):
            tasks.start_soon(self._upload, connection, source)
            _result(await connection.receive())
            tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def build_image(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AsyncIterator[AsyncIterator[BuildEvent]]:
        """Build an image; the context is made here."""
        named = {"dockerfile_name": dockerfile_name}
        async with (
            self.call(calls.Call("build", "build_image", (spec,), named)) as connection,
            threads.task_group() as tasks,
        ):
            tasks.start_soon(self._upload, connection, context)
            await connection.receive()
            yield connection.items()
            tasks.cancel_scope.cancel()

    async def _upload(self, connection: _Connection, source: Callable[[], Iterator[bytes]]) -> None:
        stopped = False

        def upload() -> None:
            try:
                for piece in source():
                    if stopped:
                        return
                    connection.send_now(calls.Item(piece))
            except errors.ContainerizationError as error:
                connection.send_now(calls.Failure.of(error))
            else:
                connection.send_now(calls.Result())

        try:
            # An error of the other end is told by its answer, not by the upload that it stops.
            with suppress(*_GONE):
                await threads.run(upload, deadline_seconds=None, what="uploading")
        finally:
            stopped = True

    def builder(self, spec: BuildSpec) -> BuilderName:
        """There is one; what it cannot do it refuses. Raises Unsupported."""
        build.check(spec, engine=self.name)
        return "classic"

    async def aclose(self) -> None:
        """End the process; containers go on."""
        await threads.run(self._worker.end, deadline_seconds=None, what="ending the worker")
