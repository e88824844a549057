"""How do tests call tools? Through the dispatcher of an application of their own, with everything that leaves kept for a look."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio

from codomyrmex_containerization import config, errors
from codomyrmex_containerization.dispatch import application
from codomyrmex_containerization.dispatch.call import Caller, Outcome
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.container import ContainerSpec

_OPEN_SECONDS = 1.0  # an engine that hangs is opened by nobody, and wanted by its test

Reply = Literal["accept", "decline", "cancel"]


@dataclass(slots=True)
class House:
    """An application whose answers, questions and progress messages are written down."""

    application: application.Application
    state_folder: Path
    said: list[str] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)

    async def call(self, name: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> Outcome:
        """Call a tool as an MCP client without elicitation does."""
        return await self._call(name, {**(arguments or {}), **more}, None)

    async def call_asking(
        self, name: str, arguments: dict[str, Any], ask: Callable[[str], Awaitable[Reply]]
    ) -> Outcome:
        """Call a tool as a client does that can put questions to a person."""

        async def kept(question: str) -> Reply:
            self.said.append(question)
            return await ask(question)

        return await self._call(name, arguments, kept)

    async def ok(self, name: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> dict[str, Any]:
        """Call a tool that must succeed and return its structured answer."""
        outcome = await self.call(name, {**(arguments or {}), **more})
        assert outcome.error is None, outcome.text
        assert outcome.structured is not None
        return outcome.structured

    async def fails(self, code: str, name: str, arguments: dict[str, Any] | None = None, /, **more: Any) -> Outcome:
        """Call a tool that must fail with this code."""
        outcome = await self.call(name, {**(arguments or {}), **more})
        assert outcome.error_data.get("code") == code, outcome.text
        assert outcome.text.startswith(f"{code}: ")
        assert outcome.structured is None
        return outcome

    @property
    def engine(self) -> guard.GuardedEngine:
        """The guarded engine that tools get."""
        return self.application.engines.opened[0]

    @property
    def audit_file(self) -> Path:
        """Where the audit lines are."""
        return self.state_folder / "audit" / "audit.jsonl"

    def audit(self) -> list[dict[str, Any]]:
        """The audit lines, read back."""
        return [json.loads(line) for line in self.audit_file.read_text().splitlines()]

    def everything_that_left(self) -> str:
        """All bytes that went to the client or to a file."""
        files = [path.read_text(errors="replace") for path in self.state_folder.rglob("*") if path.is_file()]
        return "\n".join([*self.said, *self.progress, *files])

    async def _call(
        self, name: str, arguments: dict[str, Any], ask: Callable[[str], Awaitable[Reply]] | None
    ) -> Outcome:
        async def progress(done: float, total: float | None, message: str) -> None:
            self.progress.append(message)

        outcome = await self.application.dispatcher.call(name, arguments, Caller("mcp", progress=progress, ask=ask))
        self.said += [
            outcome.text,
            outcome.question or "",
            json.dumps(outcome.structured, ensure_ascii=False),
            json.dumps(outcome.error_data, ensure_ascii=False),
        ]
        return outcome


@asynccontextmanager
async def opened(**flags: Any) -> AsyncIterator[House]:
    """Open an application with these settings (`policy__foreign` is `policy.foreign`); what its run made is removed at the end."""
    loaded = config.load(flags={name.replace("__", "."): value for name, value in flags.items()})
    made = application.open_application(loaded)
    state = config.folders(os.environ).state
    with suppress(errors.ContainerizationError), anyio.move_on_after(_OPEN_SECONDS):
        await made.engines.pick()
    try:
        yield House(made, state)
    finally:
        await _remove_all(made)
        await made.aclose()


async def _remove_all(made: application.Application) -> None:
    for probe in await made.engines.probe(start=False):
        if probe.info is not None:
            engine = await made.engines.pick(probe.name)
            for row in await engine.list_containers(all=True, labels=[f"{guard.LABEL_RUN}={made.run.run}"]):
                await engine.remove_container(row.id, force=True, volumes=True)


def spec(image: str, *command: str) -> ContainerSpec:
    """A small specification."""
    return ContainerSpec(image=image, command=command)
