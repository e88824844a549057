"""What happens in the engines (toolset `monitoring`)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from codomyrmex_containerization import errors
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.core import events, output
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.tools import _arguments as arguments
from codomyrmex_containerization.tools import _monitoring_answers as answers
from codomyrmex_containerization.tools._decorator import mcp_tool

_MOST_EVENTS = 500
_LONGEST_WORDS_CHARACTERS = 200
_SHORT = 12
_DETAILS = ("signal", "container", "destination", "driver", "oldName", "health_status")

Engine = Annotated[str | None, Field(description="If not the default", max_length=64)]
FilterName = Literal["container", "image", "volume", "network", "type", "event", "label"]


@mcp_tool(
    title="Containers: events",
    read_only=True,
    essential=False,
    deadline=lambda given: float(given["follow_seconds"]) + 60.0,
)
async def container_events(
    ctx: Context,
    *,
    since: Annotated[str, Field(description="10m, 2h (ago) or a time", max_length=64)] = "10m",
    until: Annotated[str | None, Field(description="As since", max_length=64)] = None,
    follow_seconds: Annotated[float, Field(description="Wait this long for more events", ge=0, le=300)] = 0,
    filters: Annotated[
        dict[FilterName, str | list[str]] | None,
        Field(description="{container: 'web', event: ['die', 'oom']}: all of them, any of a list"),
    ] = None,
    engine: Engine = None,
) -> answers.EventsAnswer:
    """Show what happened to containers, images, volumes and networks: starts, ends with exit codes, out of memory, pulls, removals."""
    begin, end = arguments.moment(since, name="since"), arguments.moment(until, name="until")
    _require_order(begin, end, follow_seconds)
    chosen = await ctx.engines.pick(engine)
    wanted = {
        str(name): (value,) if isinstance(value, str) else tuple(value) for name, value in (filters or {}).items()
    }
    page = await events.read(
        chosen,
        EventQuery(begin, end, wanted),
        follow_seconds=follow_seconds,
        most=_MOST_EVENTS,
        progress=ctx.progress,
    )
    answer = answers.EventsAnswer(
        events=[_row(ctx, one) for one in page.events],
        total=page.total,
        engine=chosen.name,
        notes=list(page.notes),
    )
    if page.total > len(page.events):
        note = answer.more(len(page.events), answer.events[0].time)
        return answer.model_copy(update={"truncated": note})
    return answer


def _require_order(begin: datetime | None, end: datetime | None, follow_seconds: float) -> None:
    now = datetime.now(UTC)
    if end is not None and follow_seconds > 0:
        raise errors.InvalidArgument(
            "until and follow_seconds do not go together.", hint="leave one of them out: following begins with now"
        )
    if end is not None and end > now:
        raise errors.InvalidArgument("until lies in the future.", hint="use follow_seconds to wait for events")
    if begin is not None and begin > now:
        raise errors.InvalidArgument("since lies in the future.", hint="write 10m, or a time that has passed")
    if begin is not None and end is not None and begin >= end:
        raise errors.InvalidArgument("since is not before until.", hint="swap them")


def _row(ctx: Context, one: EngineEvent) -> answers.EventRow:
    given = one.attributes
    code = given.get("exitCode", "")
    details = {name: _shown(ctx, given[name]) for name in _DETAILS if given.get(name)}
    if "container" in details:
        details["container"] = details["container"][:_SHORT]
    image = given.get("image", "") if one.type == "container" else ""
    return answers.EventRow(
        time=one.time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        type=one.type,
        action=_shown(ctx, one.action),
        name=_shown(ctx, _short(one.name)),
        id=_short(one.id),
        image=_shown(ctx, _short(image)) or None,
        exit_code=int(code) if code.lstrip("-").isdigit() else None,
        details=details or None,
    )


def _shown(ctx: Context, text: str) -> str:
    """Return others' words on one short line: redacted before they are cut, so that no half of a secret stays."""
    line = " ".join(output.readable(text.encode("utf-8", "replace")).split())
    redacted = ctx.redactor.text(line)
    return redacted if len(redacted) <= _LONGEST_WORDS_CHARACTERS else f"{redacted[:_LONGEST_WORDS_CHARACTERS]}..."


def _short(id: str) -> str:
    bare = id.removeprefix("sha256:")
    return bare[:_SHORT] if len(bare) == 64 and all(char in "0123456789abcdef" for char in bare) else id
