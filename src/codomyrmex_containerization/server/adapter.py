"""How do our tools look on the MCP wire, and how does a call come in and go out, in both protocol eras?

The low-level `Server` of the MCP library is used: dispatch checks the arguments and shapes the answers itself, and the listing is exactly
what we publish. Until 2025-11-25 a question is a request to the client in the middle of the call; since 2026-07-28 it is the call's result
(`input_required`), and the client calls again with the answer (SEP-2322).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types.version import is_version_at_least

from codomyrmex_containerization.dispatch import gate
from codomyrmex_containerization.dispatch.call import Caller, Dispatcher, Outcome, Reply
from codomyrmex_containerization.tools._decorator import ToolSpec

NAME = "codomyrmex-containerization"
ERROR_KEY = "codomyrmex.containerization/error"

_QUESTIONS_AS_RESULTS = "2026-07-28"
_QUESTION = "confirm"
_CONFIRM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"confirm": {"type": "boolean", "title": "Yes, do it", "default": False}},
    "required": ["confirm"],
}
_TOKEN_SCHEMA = {"type": "string", "description": "From confirmation_required, if the user agrees"}


def make_server(dispatcher: Dispatcher, *, version: str, instructions: str, output_schemas: bool) -> Server[Any]:
    """Return a server that lists and calls the dispatcher's tools. What it lists depends on version and settings only."""
    listing = types.ListToolsResult(
        tools=[tool(spec, output_schema=output_schemas) for spec in dispatcher.listed.values()]
    )

    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return listing

    async def call_tool(
        ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        outcome = await dispatcher.call(params.name, params.arguments, _caller(ctx, params))
        return _result(outcome)

    return Server(
        NAME,
        version=version,
        title="Containers",
        instructions=instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def tool(spec: ToolSpec, *, output_schema: bool) -> types.Tool:
    """Return a tool as tools/list shows it; all five annotations are set."""
    schema = spec.input_schema()
    if spec.plan is not None:
        schema["properties"][gate.CONFIRM] = _TOKEN_SCHEMA
    return types.Tool(
        name=spec.name,
        title=spec.title,
        description=spec.description,
        input_schema=schema,
        output_schema=spec.output_schema() if output_schema else None,
        annotations=types.ToolAnnotations(
            title=spec.title,
            read_only_hint=spec.read_only,
            destructive_hint=spec.destructive,
            idempotent_hint=spec.idempotent,
            open_world_hint=spec.open_world,
        ),
    )


def instructions(offered: Mapping[str, ToolSpec]) -> str:
    """Return what a client tells its model about all tools together; under 2,048 characters."""
    lines = ["Build, run, watch and remove containers on the engines of this host."]
    if "container_build" in offered and "container_run" in offered:
        lines.append(
            "A Dockerfile just written: container_build(dockerfile_text=..., context=...), then container_run(image)."
        )
    if "container_run" in offered:
        lines.append(
            "container_run waits for the end and removes the container; detach=true leaves it running: see container_logs."
        )
        lines.append(
            "Ports are published on 127.0.0.1; host paths must lie under the allowed paths that container_runtime_status names."
        )
    if any(spec.destructive for spec in offered.values()):
        lines.append(
            "A destructive call on others' objects answers confirmation_required: ask the user, then repeat it with confirm_token."
        )
    lines.append("Errors say what to do next. Secrets are shown as ***. Answers that were cut say how to get the rest.")
    return "\n".join(lines)


def _caller(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> Caller:
    async def progress(done: float, total: float | None, message: str) -> None:
        await ctx.session.report_progress(done, total, message)

    if not _can_ask(ctx.session.client_capabilities):
        return Caller("mcp", progress=progress)
    if is_version_at_least(ctx.protocol_version, _QUESTIONS_AS_RESULTS):
        return Caller("mcp", progress=progress, can_defer=True, reply=_reply_of(params), pending=params.request_state)

    async def ask(question: str) -> Reply:
        try:
            answer = await ctx.session.elicit_form(question, _CONFIRM_SCHEMA, ctx.request_id)
        except MCPError:
            return "cancel"
        return _reply(answer)

    return Caller("mcp", progress=progress, ask=ask)


def _can_ask(capabilities: types.ClientCapabilities | None) -> bool:
    elicitation = capabilities.elicitation if capabilities is not None else None
    # A bare `elicitation: {}`, the only shape before there were modes, means forms.
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _reply_of(params: types.CallToolRequestParams) -> Reply | None:
    answer = (params.input_responses or {}).get(_QUESTION)
    if answer is None:
        return None
    return _reply(answer) if isinstance(answer, types.ElicitResult) else "cancel"


def _reply(answer: types.ElicitResult) -> Reply:
    if answer.action != "accept":
        return answer.action
    return "accept" if (answer.content or {}).get("confirm") is True else "decline"


def _result(outcome: Outcome) -> types.CallToolResult | types.InputRequiredResult:
    if outcome.question is not None:
        request = types.ElicitRequest(
            params=types.ElicitRequestFormParams(message=outcome.question, requested_schema=_CONFIRM_SCHEMA)
        )
        return types.InputRequiredResult(input_requests={_QUESTION: request}, request_state=outcome.pending)
    content: list[types.ContentBlock] = [types.TextContent(text=outcome.text)]
    if outcome.error is not None:
        # No structured content on errors: the TypeScript SDK 1.x checks it against the output schema and throws.
        return types.CallToolResult(is_error=True, content=content, _meta={ERROR_KEY: outcome.error_data})
    return types.CallToolResult(content=content, structured_content=outcome.structured)
