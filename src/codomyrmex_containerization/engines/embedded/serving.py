"""How does a process serve an engine to another one? Each call comes on a connection of its own; whoever hangs up has cancelled it."""

from __future__ import annotations

import os
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from anyio import from_thread
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import distribution
from codomyrmex_containerization.engines.embedded import calls, health
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.engines.embedded.objects import Folders
from codomyrmex_containerization.engines.embedded.userns import World
from codomyrmex_containerization.models.engine import Endpoint
from codomyrmex_containerization.models.settings import RegistrySettings

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, anyio.IncompleteRead)
_MOST_PIECES = 8
_PASSED_SECONDS = 0.05


def serve(
    folders: Folders,
    world: World,
    *,
    engine: str,
    timeout_seconds: float,
    registries: str,
    say: Callable[..., None],
) -> None:
    """Serve the engine of these folders until stdin ends; `say` is told where, once somebody listens there.

    `registries` are the settings for registries as JSON. Raises EngineUnavailable.
    """
    endpoint = Endpoint(engine, f"file://{folders.data}", "built in", kind="embedded")
    known = RegistrySettings.model_validate_json(registries)
    client = distribution.Client(known, environ=os.environ, learn=lambda secret: None)
    served = EmbeddedEngine(endpoint, folders, timeout_seconds=timeout_seconds, world=world, registries=client)
    anyio.run(_serve, served, folders.run / f"s-{uuid.uuid4().hex[:8]}", say)


async def _serve(engine: EmbeddedEngine, path: Path, say: Callable[..., None]) -> None:
    try:
        listener = await anyio.create_unix_listener(path, mode=0o600)
    except (OSError, ValueError) as error:
        raise errors.EngineUnavailable(
            f"{path} cannot be listened on: {error}.",
            hint="set XDG_RUNTIME_DIR to a folder of this user's, its path short",
        ) from error
    try:
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, lambda connection: _answer(engine, connection))
            say(socket=str(path))
            # Whoever started this process holds the other end, and lets go of it at the latest by ending.
            await anyio.wait_readable(sys.stdin.fileno())
            tasks.cancel_scope.cancel()
    finally:
        path.unlink(missing_ok=True)


async def _answer(engine: EmbeddedEngine, connection: SocketStream) -> None:
    async with connection:
        incoming = BufferedByteReceiveStream(connection)
        with suppress(*GONE):
            call = await calls.receive(incoming)
            if isinstance(call, calls.Call):
                await _answer_call(_Answering(engine, connection), call, incoming)


async def _answer_call(answering: _Answering, call: calls.Call, incoming: BufferedByteReceiveStream) -> None:
    pieces, answering.pieces = anyio.create_memory_object_stream[calls.Frame](_MOST_PIECES)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_listen, incoming, pieces, tasks.cancel_scope)
        try:
            await answering.answer(call)
        except GONE:
            pass
        except Exception as error:  # noqa: BLE001  every error is the caller's to hear
            found = _bare(error)
            if not isinstance(found, errors.ContainerizationError):
                traceback.print_exception(found)
            with suppress(*GONE):
                await answering.send(calls.Failure.of(found))
        tasks.cancel_scope.cancel()


def _bare(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _listen(
    incoming: BufferedByteReceiveStream, pieces: MemoryObjectSendStream[calls.Frame], scope: anyio.CancelScope
) -> None:
    try:
        while True:
            await pieces.send(await calls.receive(incoming))
    except GONE:
        scope.cancel()


class _Answering:
    """One call being answered."""

    pieces: MemoryObjectReceiveStream[calls.Frame]

    def __init__(self, engine: EmbeddedEngine, connection: SocketStream) -> None:
        self._engine = engine
        self._connection = connection

    async def answer(self, call: calls.Call) -> None:
        """Do what is asked, and send what comes of it."""
        if call.method == "attend":
            await health.run_health_checks(self._engine)
            return
        method: Callable[..., Any] = getattr(self._engine, call.method)
        given, named = call.positional, dict(call.named)
        match call.kind:
            case "plain":
                await self.send(calls.Result(await method(*given, **named)))
            case "progress":
                await self.send(calls.Result(await method(*given, **named, passed=self._passed())))
            case "sent":
                await self.send(calls.Result(await method(*given, self._sent, **named)))
            case "received":
                await self.send(calls.Result(await method(*given, self._hand_over, **named)))
            case "stream":
                async with method(*given, **named) as items:
                    await self._send_all(items)
            case "build":
                async with method(*given, context=self._sent, **named) as items:
                    await self._send_all(items)
            case "attached":
                async with method(*given, **named) as attachment:
                    await self._send_all(attachment.frames())

    async def send(self, frame: calls.Frame) -> None:
        """Send a frame to whoever called."""
        await calls.send(self._connection, frame)

    async def _send_all(self, items: AsyncIterator[Any]) -> None:
        await self.send(calls.Ready())
        async for item in items:
            await self.send(calls.Item(item))
        await self.send(calls.Result())

    # What follows is called in threads.

    def _passed(self) -> Callable[[int], None]:
        said = 0.0

        def passed(count: int) -> None:
            nonlocal said
            if time.monotonic() - said >= _PASSED_SECONDS:
                said = time.monotonic()
                from_thread.run(self.send, calls.Passed(count))

        return passed

    def _sent(self) -> Iterator[bytes]:
        while True:
            match from_thread.run(self.pieces.receive):
                case calls.Item(bytes() as piece):
                    yield piece
                case calls.Failure() as failure:
                    raise failure.error()
                case _:
                    return

    def _hand_over(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            from_thread.run(self.send, calls.Item(piece))
