"""What is a bare SDK server? One module as users write it: `MCPServer` and plain functions that take the arguments our tools take.

It is written anew from our own listing each time, so that both sides always have as many tools with the same arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULE = "bare_server"
NOOP = "noop"

_HEAD = '''"""Written by the benchmark."""
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from pydantic import BaseModel, Field

mcp = MCPServer("bare")
'''
_NOOP = f'''
@mcp.tool()
async def {NOOP}(text: Annotated[str, Field(description="Given back", max_length=1000)]) -> str:
    """Give the text back."""
    return text
'''
# The library loads rich wherever it is installed. Here it is for our command line alone; where only the library is, there is none.
_WITHOUT_RICH = "import sys\n\nsys.modules['rich'] = None\n"
_RUN = f"from {MODULE} import mcp\n\nmcp.run()\n"

_PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_BOUNDS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "minLength": "min_length",
    "maxLength": "max_length",
    "maxItems": "max_length",
    "maxProperties": "max_length",
    "pattern": "pattern",
}


def write(folder: Path, tools: Sequence[Mapping[str, Any]]) -> None:
    """Write the module, and two programs that run it: `run_bare` without rich and `run_bare_rich` with it, where it is installed."""
    writer = _Writer()
    functions = [writer.function(tool) for tool in tools]
    (folder / f"{MODULE}.py").write_text("\n\n".join([_HEAD, *writer.models, *functions, _NOOP]))
    (folder / "run_bare.py").write_text(_WITHOUT_RICH + _RUN)
    (folder / "run_bare_rich.py").write_text(_RUN)


class _Writer:
    """Turns JSON schemas into Python, and collects the models that the functions need."""

    def __init__(self) -> None:
        self.models: list[str] = []

    def function(self, tool: Mapping[str, Any]) -> str:
        schema = tool["inputSchema"]
        arguments = self._fields(schema, tool["name"])
        # Keyword-only, so that those with a default may stand first.
        given = f"*, {', '.join(arguments)}" if arguments else ""
        return f"@mcp.tool()\nasync def {tool['name']}({given}) -> str:\n    {json.dumps(tool['description'])}\n    return ''\n"

    def _fields(self, schema: Mapping[str, Any], place: str) -> list[str]:
        required = schema.get("required", ())
        return [
            self._field(name, one, place, required=name in required)
            for name, one in schema.get("properties", {}).items()
        ]

    def _field(self, name: str, schema: Mapping[str, Any], place: str, *, required: bool) -> str:
        annotation = self._type(schema, f"{place}_{name}")
        details = {"description": schema.get("description", ""), **_bounds(schema)}
        shown = ", ".join(f"{key}={value!r}" for key, value in details.items())
        if required:
            return f"{name}: Annotated[{annotation}, Field({shown})]"
        default = schema.get("default", False if annotation == "bool" else None)
        optional = " | None" if default is None else ""
        return f"{name}: Annotated[{annotation}{optional}, Field({shown})] = {default!r}"

    def _type(self, schema: Mapping[str, Any], place: str) -> str:
        if "enum" in schema:
            return f"Literal[{', '.join(map(repr, schema['enum']))}]"
        if "anyOf" in schema:
            return " | ".join(self._type(one, place) for one in schema["anyOf"])
        kind = schema.get("type")
        if kind == "array":
            return f"list[{self._type(schema.get('items', {}), place)}]"
        if kind == "object" and "properties" in schema:
            return self._model(schema, place)
        if kind == "object":
            values = schema.get("additionalProperties")
            return f"dict[str, {self._type(values, place) if isinstance(values, Mapping) else 'Any'}]"
        return _PLAIN.get(str(kind), "Any")

    def _model(self, schema: Mapping[str, Any], place: str) -> str:
        name = "".join(part.title() for part in place.split("_"))
        lines = [f"    {field}" for field in self._fields(schema, place)]
        self.models.append(f"class {name}(BaseModel):\n" + "\n".join(lines))
        return name


def _bounds(schema: Mapping[str, Any]) -> dict[str, Any]:
    found = {_BOUNDS[key]: value for key, value in schema.items() if key in _BOUNDS}
    if "anyOf" in schema:
        return {}  # each alternative has its own, and not every one fits the others
    return found
