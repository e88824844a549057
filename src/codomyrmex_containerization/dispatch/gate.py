"""May this call be made? Is the tool enabled, and does the access mode allow what the call does?

The gate looks at the call, never at the listing: a tool that is not offered and is called by name is refused with the reason.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.settings import Settings
from codomyrmex_containerization.tools import _discovery
from codomyrmex_containerization.tools._decorator import ToolSpec

CONFIRM = "confirm_token"
_LARGEST_ARGUMENTS_CHARACTERS = 8_000_000
_DEEPEST_ARGUMENT = 32


def find_tool(
    name: str, tools: Mapping[str, ToolSpec], offered: Mapping[str, ToolSpec], settings: Settings
) -> ToolSpec:
    """Return the tool. Raises NotFound (no such tool, with the nearest) and Refused (switched off)."""
    spec = tools.get(name)
    if spec is None:
        near = difflib.get_close_matches(name, offered, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(offered)}"
        raise errors.NotFound(f"There is no tool {name[:80]!r}.", hint=hint)
    if name not in offered:
        why = (
            "exclude_tools names it"
            if name in settings.exclude_tools
            else f"its toolset {spec.toolset!r} is not among the enabled ones"
        )
        raise errors.Refused(
            f"The tool {name} is switched off: {why}.",
            hint="the person who runs this server can enable it with --toolsets or --tools",
        )
    return spec


def parse(spec: ToolSpec, arguments: Mapping[str, Any]) -> BaseModel:
    """Check the arguments. Raises InvalidArgument that names what is wrong and, for an unknown one, the nearest known."""
    model = spec.arguments
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(known)}"
            raise errors.InvalidArgument(f"{spec.name} has no argument {name[:80]!r}.", hint=hint)
    given = {name: _unpacked(value, known[name].annotation) for name, value in arguments.items()}
    _refuse_unwritable(given)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _invalid(spec, error) from error


def judge_access(spec: ToolSpec, given: Mapping[str, Any], settings: Settings) -> None:
    """Raise Refused when the server is read-only and the call would change something."""
    if settings.read_only and spec.effect(given) != "read":
        raise errors.Refused(
            f"{spec.name} changes something, and this server is read-only.",
            hint="the person who runs it can start it without --read-only",
        )


def offered(tools: Mapping[str, ToolSpec], settings: Settings) -> dict[str, ToolSpec]:
    """Return the tools that the settings enable: calling another one is refused."""
    return _discovery.enabled(tools, wanted=settings.toolsets, extra=settings.tools, excluded=settings.exclude_tools)


def listed(offered: Mapping[str, ToolSpec], settings: Settings) -> dict[str, ToolSpec]:
    """Return the tools to show: a read-only server leaves out those that no call of may pass."""
    return {
        name: spec
        for name, spec in offered.items()
        if not settings.read_only or spec.read_only or spec.effect_of is not None
    }


def _unpacked(value: Any, annotation: Any) -> Any:
    # Some clients send lists and objects as JSON texts.
    if isinstance(value, str) and value[:1] in ("[", "{") and "str" not in _plain_alternatives(annotation):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _plain_alternatives(annotation: Any) -> set[str]:
    alternatives = (
        getattr(annotation, "__args__", ()) if getattr(annotation, "__origin__", None) not in (list, dict) else ()
    )
    return {
        one.__name__
        for one in (annotation, *alternatives)
        if isinstance(one, type) and getattr(one, "__origin__", None) is None
    }


def _refuse_unwritable(given: Mapping[str, Any]) -> None:
    """Refuse characters that no name, path or variable can hold: NUL, and halves of surrogate pairs; and what is nested too deeply."""
    left = _LARGEST_ARGUMENTS_CHARACTERS
    waiting: list[tuple[str, Any, int]] = [(name, value, 0) for name, value in given.items()]
    while waiting:
        name, value, depth = waiting.pop()
        if depth > _DEEPEST_ARGUMENT:
            raise errors.InvalidArgument(f"{name} is nested too deeply.", hint="mend the argument and call again")
        if isinstance(value, str):
            left -= len(value)
            if "\0" in value:
                raise errors.InvalidArgument(f"{name} holds a NUL character.", hint="leave it out")
            if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
                raise errors.InvalidArgument(
                    f"{name} holds half a surrogate pair, which is no character.", hint="send valid Unicode"
                )
        elif isinstance(value, Mapping):
            waiting += [(name, one, depth + 1) for pair in value.items() for one in pair]
        elif isinstance(value, list | tuple):
            waiting += [(name, one, depth + 1) for one in value]
        if left < 0:
            raise errors.InvalidArgument(
                "The arguments are larger than 8 million characters.", hint="put large content into a file"
            )


def _invalid(spec: ToolSpec, error: ValidationError) -> errors.InvalidArgument:
    found = error.errors(include_url=False, include_context=False, include_input=True)
    lines = []
    for one in found[:3]:
        place = ".".join(
            str(part)
            for part in one["loc"]
            if not (isinstance(part, str) and ("[" in part or part in ("str", "int", "float")))
        )
        if one["type"] == "missing":
            lines.append(f"{place} is required")
        elif one["type"] == "extra_forbidden":
            lines.append(f"{place} is not known")
        else:
            lines.append(f"{place}: {one['msg'].lower()} (got {_shown(one.get('input'))})")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return errors.InvalidArgument(
        f"{spec.name}: {'; '.join(dict.fromkeys(lines))}{more}.", hint="mend the argument and call again"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
