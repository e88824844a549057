"""How do tests drive the server as a process? Line by line over its pipes, so that how it begins and ends is seen as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import IO, Any

import anyio
from anyio.abc import Process

from tests.server import faces

DEADLINE_SECONDS = 60.0
_VERSION = "io.modelcontextprotocol/protocolVersion"
_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"


class Wire:
    """One server process. `answers` are its messages by request id, `junk` what it wrote that was no message."""

    def __init__(self, process: Process, era: faces.Era, errors: IO[bytes]) -> None:
        self.process = process
        self.era = era
        self.answers: dict[int, dict[str, Any]] = {}
        self.junk: list[bytes] = []
        self._errors = errors
        self._news = anyio.Event()
        self._ended = anyio.Event()
        self._last_id = 0

    async def begin(self) -> None:
        """Shake hands, as the era does it."""
        if self.era == "modern":
            await self.request("server/discover", {})
            return
        await self.request(
            "initialize",
            {
                "protocolVersion": faces.PROTOCOL_VERSIONS["legacy"],
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        )
        await self.notify("notifications/initialized", {})

    async def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Ask and wait for the answer."""
        return await self.answer(await self.ask(method, params))

    async def ask(self, method: str, params: Mapping[str, Any]) -> int:
        """Send a request and return its id."""
        self._last_id += 1
        await self._send({"id": self._last_id, "method": method, "params": self._enveloped(params)})
        return self._last_id

    async def start_call(self, tool: str, /, **arguments: Any) -> int:
        """Begin a tool call and return its id."""
        return await self.ask("tools/call", {"name": tool, "arguments": arguments})

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return its result, be it an answer or an error."""
        return await self.result(await self.start_call(tool, **arguments))

    async def result(self, id: int) -> dict[str, Any]:
        """Wait for a call's result."""
        answer = await self.answer(id)
        assert "result" in answer, answer
        result = answer["result"]
        assert isinstance(result, dict)
        return result

    async def cancel(self, id: int) -> None:
        """Say that an answer is not wanted any more."""
        await self.notify("notifications/cancelled", {"requestId": id, "reason": "the user stopped it"})

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification."""
        await self._send({"method": method, "params": self._enveloped(params)})

    async def answer(self, id: int) -> dict[str, Any]:
        """Wait for the answer to a request."""
        with anyio.fail_after(DEADLINE_SECONDS):
            while id not in self.answers:
                assert not self._ended.is_set(), f"the server ended: {self.said()}"
                await self._news.wait()
        return self.answers[id]

    async def close_input(self) -> None:
        """Send EOF."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def exit_code(self, *, within_seconds: float) -> int:
        """Wait for the end of the process and of its output."""
        with anyio.fail_after(within_seconds):
            code = await self.process.wait()
        with anyio.fail_after(DEADLINE_SECONDS):
            await self._ended.wait()
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def said(self) -> str:
        """What it wrote to stderr."""
        return os.pread(self._errors.fileno(), 1_000_000, 0).decode(errors="replace")

    async def read(self) -> None:
        """Read the output to its end."""
        assert self.process.stdout is not None
        rest = b""
        try:
            async for chunk in self.process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._note(line)
                self._news.set()
                self._news = anyio.Event()
            if rest:
                self.junk.append(rest)
        finally:
            self._ended.set()
            self._news.set()

    def _note(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            self.junk.append(line)
        elif "id" in message and "method" not in message:
            self.answers[message["id"]] = message

    def _enveloped(self, params: Mapping[str, Any]) -> dict[str, Any]:
        if self.era == "legacy":
            return dict(params)
        envelope = {_VERSION: faces.PROTOCOL_VERSIONS["modern"], _CAPABILITIES: {}}
        return {**params, "_meta": envelope}

    async def _send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


@asynccontextmanager
async def served(era: faces.Era, **settings: faces.Setting) -> AsyncIterator[Wire]:
    """A server that has shaken hands."""
    async with launched(era, **settings) as wire:
        await wire.begin()
        yield wire


@asynccontextmanager
async def launched(era: faces.Era, **settings: faces.Setting) -> AsyncIterator[Wire]:
    """A server that was only started. When the block ends without having ended it, it is killed."""
    with tempfile.TemporaryFile() as errors:
        process = await anyio.open_process(
            faces.COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=faces.environment(**settings),
        )
        wire = Wire(process, era, errors)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wire.read)
                yield wire
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise faces.bare(group) from None
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                await process.aclose()
