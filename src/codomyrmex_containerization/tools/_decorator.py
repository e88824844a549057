"""How does a plain async function become a tool? `@mcp_tool` attaches data to it and changes nothing."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

Effect = Literal["read", "write", "destroy"]

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

# Of all the tools that are imported most are not called by this process: their validators are built when they are.
_ARGUMENTS = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, defer_build=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a destructive call would do: the question's lines and a digest of the state that they describe."""

    action: str
    lost: tuple[str, ...]
    digest: str


PlanFunction = Callable[..., Awaitable[Plan | None]]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """Everything that is known of a tool without calling it."""

    name: str
    title: str
    description: str
    toolset: str
    essential: bool
    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool
    function: Callable[..., Awaitable[Any]]
    arguments: type[BaseModel]
    answer: type[BaseModel]
    plan: PlanFunction | None
    deadline: Callable[[Mapping[str, Any]], float]
    effect_of: Callable[[Mapping[str, Any]], Effect] | None

    def effect(self, arguments: Mapping[str, Any]) -> Effect:
        """Say what this call does; the annotations state the worst case of all calls."""
        if self.effect_of is not None:
            return self.effect_of(arguments)
        return "read" if self.read_only else "destroy" if self.destructive else "write"

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments, without what a reader does not need. Properties may be added to it."""
        made = _input_schema(self.arguments)
        return {**made, "properties": dict(made["properties"])}

    def output_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the structured answer."""
        return compact(self.answer.model_json_schema(mode="validation"), descriptions=False)


def mcp_tool(
    *,
    title: str,
    read_only: bool,
    destructive: bool = False,
    idempotent: bool = False,
    open_world: bool = False,
    essential: bool = True,
    plan: PlanFunction | None = None,
    deadline: Callable[[Mapping[str, Any]], float] = lambda arguments: 60.0,
    effect: Callable[[Mapping[str, Any]], Effect] | None = None,
    toolset: str | None = None,
) -> Callable[[F], F]:
    """Mark an async function `(context, *, arguments...) -> answer` as a tool; it stays directly callable.

    The tool's name is the function's, its toolset the module's (or `toolset`) and its description the docstring.
    `plan` says what a destructive call would do (None: nothing that needs a confirmation), `deadline` how many seconds
    a call may take, `effect` what a call does when that depends on its arguments.
    """

    def mark(function: F) -> F:
        hints = typing.get_type_hints(function, include_extras=True)
        description = inspect.cleandoc(function.__doc__ or "")
        spec = ToolSpec(
            name=function.__name__,
            title=title,
            description=description,
            toolset=toolset or function.__module__.rpartition(".")[2],
            essential=essential,
            read_only=read_only,
            destructive=destructive,
            idempotent=idempotent,
            open_world=open_world,
            function=function,
            arguments=_arguments_model(function, hints),
            answer=hints["return"],
            plan=plan,
            deadline=deadline,
            effect_of=effect,
        )
        function.__mcp_tool__ = spec  # type: ignore[attr-defined]  # data hung on a function
        return function

    return mark


def compact(schema: dict[str, Any], *, descriptions: bool = True) -> dict[str, Any]:
    """Shorten a schema: no titles, no `$ref`, no null alternatives of optional values."""
    definitions = schema.pop("$defs", {})
    return typing.cast("dict[str, Any]", _compact(schema, definitions, descriptions))


def _compact(node: Any, definitions: Mapping[str, Any], descriptions: bool, *, is_properties: bool = False) -> Any:
    if isinstance(node, list):
        return [_compact(one, definitions, descriptions) for one in node]
    if not isinstance(node, dict):
        return node
    if is_properties:
        return {name: _compact(value, definitions, descriptions) for name, value in node.items()}
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if "anyOf" in node:
        others = [one for one in node["anyOf"] if one.get("type") != "null"]
        if len(others) == 1:
            node = {**{key: value for key, value in node.items() if key != "anyOf"}, **others[0]}
            return _compact(node, definitions, descriptions)
        node = {**node, "anyOf": others}
    return {
        key: _compact(value, definitions, descriptions, is_properties=key == "properties")
        for key, value in node.items()
        if key != "title"
        and not (key == "default" and value in (None, False))
        and (descriptions or key != "description")
    }


@functools.cache
def _input_schema(arguments: type[BaseModel]) -> dict[str, Any]:
    # Asked for at least twice at every start: for the tool's own metadata and for the listing.
    return compact(arguments.model_json_schema(by_alias=True))


def _arguments_model(function: Callable[..., object], hints: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        # `all` and the like would shadow attributes of the model: stored under another name, asked for under their own.
        field = f"{name}_" if hasattr(BaseModel, name) else name
        fields[field] = (hints[name], Field(default, alias=name) if field != name else default)
    title = "".join(part.title() for part in function.__name__.split("_")) + "Arguments"
    return create_model(title, __config__=_ARGUMENTS, **fields)
