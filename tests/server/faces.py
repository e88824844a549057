"""How do tests reach the real server? In memory or over stdio, in both protocol eras, with or without a person to ask."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mcp_types as types
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

import codomyrmex_containerization
from codomyrmex_containerization import __version__
from codomyrmex_containerization.server import adapter
from tests.dispatch import harness

Transport = Literal["memory", "stdio"]
Era = Literal["legacy", "modern"]
Action = Literal["accept", "decline", "cancel"]
Setting = str | bool | float

ERAS: tuple[Era, ...] = ("legacy", "modern")
PROTOCOL_VERSIONS = {"legacy": "2025-11-25", "modern": "2026-07-28"}
COMMAND = (sys.executable, "-m", "codomyrmex_containerization")


@dataclass(frozen=True, slots=True)
class Face:
    """One way to talk to the server."""

    transport: Transport
    era: Era

    def __str__(self) -> str:
        return f"{self.transport}-{self.era}"


FACES = tuple(Face(transport, era) for transport in ("memory", "stdio") for era in ERAS)
every_face = pytest.mark.parametrize("face", FACES, ids=str)


@dataclass(slots=True)
class Person:
    """Somebody behind the client: answers every question alike and remembers what was asked."""

    action: Action
    confirm: bool = True
    asked: list[str] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def answer(self, context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        """Answer a question; `meanwhile` is what happens while it is being thought about."""
        self.asked.append(params.message)
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.action != "accept":
            return types.ElicitResult(action=self.action)
        return types.ElicitResult(action="accept", content={"confirm": self.confirm})


@asynccontextmanager
async def connected(face: Face, *, person: Person | None = None, **settings: Setting) -> AsyncIterator[Client]:
    """A client of a real server; it declares elicitation when there is a person. `settings` are those of the environment."""
    try:
        async with _connected(face, person, settings) as client:
            yield client
    except BaseExceptionGroup as group:
        raise bare(group) from None


@asynccontextmanager
async def _connected(face: Face, person: Person | None, settings: Mapping[str, Setting]) -> AsyncIterator[Client]:
    ask = person.answer if person is not None else None
    mode = "legacy" if face.era == "legacy" else "auto"
    if face.transport == "memory":
        async with harness.opened(**settings) as house:
            dispatcher = house.application.dispatcher
            server = adapter.make_server(
                dispatcher,
                version=__version__,
                instructions=adapter.instructions(dispatcher.listed),
                output_schemas=house.application.settings.output_schemas,
            )
            async with Client(server, mode=mode, elicitation_callback=ask) as client:
                yield client
    else:
        parameters = StdioServerParameters(command=COMMAND[0], args=list(COMMAND[1:]), env=environment(**settings))
        async with Client(stdio_client(parameters), mode=mode, elicitation_callback=ask) as client:
            yield client


def environment(**settings: Setting) -> dict[str, str]:
    """This test's environment, with these settings of the server."""
    source = str(Path(codomyrmex_containerization.__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]),
        **{
            f"CODOMYRMEX_CONTAINERIZATION_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in settings.items()
        },
    }


def text_of(result: types.CallToolResult) -> str:
    """The text of an answer, which has just one block."""
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


def answer_of(result: types.CallToolResult) -> dict[str, Any]:
    """The structured answer of a call that must have succeeded."""
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    return result.structured_content


def error_of(result: types.CallToolResult) -> dict[str, Any]:
    """The details of a call that must have failed, in the form that every error has."""
    assert result.is_error, text_of(result)
    assert result.structured_content is None
    error = (result.meta or {})[adapter.ERROR_KEY]
    assert {"code", "message", "hint", "retryable"} <= set(error)
    assert isinstance(error["retryable"], bool)
    assert error["hint"], "an error names the next step"
    assert text_of(result).startswith(f"{error['code']}: ")
    assert error["hint"] in text_of(result)
    assert isinstance(error, dict)
    return error


def bare(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a test itself raised, without the task groups that it was raised in."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
