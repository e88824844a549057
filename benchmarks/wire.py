"""What does it cost to talk to an MCP server over stdio? One small synchronous client, the same for both sides of a comparison."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

Era = Literal["2025-11-25", "2026-07-28"]
ERAS: tuple[Era, ...] = ("2025-11-25", "2026-07-28")

_HANDSHAKE: Era = "2025-11-25"
_CLIENT = {"name": "bench", "version": "1"}
_CAPABILITIES: dict[str, Any] = {}
_PREFIX = "io.modelcontextprotocol/"
_REPLY_SECONDS = 120.0
_EXIT_SECONDS = 5.0
_CHUNK_BYTES = 1 << 20


class BenchmarkError(Exception):
    """What was to be measured did not happen."""


class Server:
    """A server process and the connection to it."""

    def __init__(self, command: Sequence[str], *, era: Era, environment: Mapping[str, str], folder: Path) -> None:
        self._era = era
        self._last_id = 0
        self._rest = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the server
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=dict(environment),
            cwd=folder,
            bufsize=0,
        )
        self._stdin, self._stdout = _pipe(self._process.stdin), _pipe(self._process.stdout)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def list_tools(self) -> list[dict[str, Any]]:
        """Do what a client does first: say who it is, ask who the server is, list the tools."""
        if self._era == _HANDSHAKE:
            hello = {"protocolVersion": self._era, "capabilities": _CAPABILITIES, "clientInfo": _CLIENT}
            self.request("initialize", hello)
            self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        else:
            self.request("server/discover", {})
        tools: list[dict[str, Any]] = self.request("tools/list", {})["tools"]
        return tools

    def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a tool and return the result. Raises BenchmarkError when it is an error."""
        result = self.request("tools/call", {"name": tool, "arguments": arguments})
        if result.get("isError"):
            raise BenchmarkError(f"{tool} failed: {text_of(result)}")
        return result

    def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its result; notifications that come before are passed over."""
        self._last_id += 1
        if self._era != _HANDSHAKE:
            params = {**params, "_meta": self._envelope()}
        self._send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params})
        while True:
            message = json.loads(self._line())
            if message.get("id") != self._last_id:
                continue
            if "error" in message:
                raise BenchmarkError(f"{method} was answered with {message['error']}")
            result: dict[str, Any] = message["result"]
            return result

    def _envelope(self) -> dict[str, Any]:
        return {
            f"{_PREFIX}protocolVersion": self._era,
            f"{_PREFIX}clientCapabilities": _CAPABILITIES,
            f"{_PREFIX}clientInfo": _CLIENT,
        }

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._stdin.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except BrokenPipeError as error:
            raise self._ended() from error

    def _line(self) -> bytes:
        pipe = self._stdout.fileno()
        until = time.monotonic() + _REPLY_SECONDS
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            if not select.select([pipe], [], [], max(until - time.monotonic(), 0))[0]:
                raise BenchmarkError(f"no reply in {_REPLY_SECONDS:g} seconds; stderr: {self._errors()}")
            chunk = os.read(pipe, _CHUNK_BYTES)
            if not chunk:
                raise self._ended()
            parts.append(chunk)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def _ended(self) -> BenchmarkError:
        return BenchmarkError(f"the server ended; stderr: {self._errors()}")

    def _errors(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:].strip() or "(empty)"

    def close(self) -> None:
        """Close its standard input and wait for its end; kill it when that takes too long."""
        self._stdin.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise BenchmarkError("the server has no pipe")
    return pipe


def text_of(result: Mapping[str, Any]) -> str:
    """Return the text of a tool's result."""
    return "\n".join(part["text"] for part in result["content"] if part["type"] == "text")
