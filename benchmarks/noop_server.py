"""What does a call through all of dispatch cost when the tool does nothing? Our server with one more tool, over stdio."""

from __future__ import annotations

from typing import Annotated

import anyio
from mcp.server.stdio import stdio_server
from pydantic import Field

from codomyrmex_containerization import __version__, config
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.dispatch import application
from codomyrmex_containerization.dispatch.call import Dispatcher
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.server import adapter
from codomyrmex_containerization.tools._answer import Answer
from codomyrmex_containerization.tools._decorator import ToolSpec, mcp_tool


class NoopAnswer(Answer):
    """The text that was given."""

    given: str

    def text(self) -> str:
        return self.given


@mcp_tool(title="No operation", read_only=True, idempotent=True)
async def noop(ctx: Context, *, text: Annotated[str, Field(description="Given back", max_length=1000)]) -> NoopAnswer:
    """Give the text back."""
    return NoopAnswer(given=text)


def main() -> None:
    """Serve until the end of stdin."""
    opened = application.open_application(config.load())
    spec: ToolSpec = noop.__mcp_tool__  # type: ignore[attr-defined]  # data hung on a function
    context = Context(
        settings=opened.settings,
        engines=opened.engines,
        redactor=opened.redactor,
        paths=guard.PathRules(allowed=(), named=True, protected=()),
    )
    tools = {**application.tools(), spec.name: spec}
    settings = opened.settings.model_copy(update={"tools": (*opened.settings.tools, spec.name)})
    dispatcher = Dispatcher(tools=tools, settings=settings, context=context, audit=opened.audit, before=_before)
    try:
        anyio.run(_serve, dispatcher, settings.output_schemas)
    finally:
        opened.close_files()


async def _before() -> None:
    """Stand where the application looks for what is left to remove."""


async def _serve(dispatcher: Dispatcher, output_schemas: bool) -> None:
    server = adapter.make_server(
        dispatcher,
        version=__version__,
        instructions=adapter.instructions(dispatcher.offered),
        output_schemas=output_schemas,
    )
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


if __name__ == "__main__":
    main()
