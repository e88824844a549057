"""What does mcp_tools.py look like? This writes it from the tools; `--check` says whether it is as the tools say."""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from codomyrmex_containerization.dispatch import gate
from codomyrmex_containerization.tools import _discovery
from codomyrmex_containerization.tools._decorator import ToolSpec

ROOT = Path(__file__).resolve().parent.parent
NAME = "src/codomyrmex_containerization/mcp_tools.py"

# How many arguments may stand without their name beside the required ones: callers of old wrote them so.
_POSITIONAL = {"container_build": 3}
_TOKEN_SCHEMA = {"type": "string", "description": "From confirmation_required, if the user agrees"}

_HEAD = '''\
"""What are the tools to a program without an event loop? Plain functions that return dictionaries; bridges find them by their decorator.

Written by scripts/generate_mcp_tools.py: change the tools, not this file. A success has `status: "success"` and the tool's structured
answer; an error has `status: "error"`, `code`, `message`, `error` (the same) and `hint`, and nothing is raised. What asks for a
confirmation answers the code `confirmation_required` and a `confirm_token`, with which the call is repeated once the user has agreed.
"""

from __future__ import annotations

from typing import Any, Literal

from codomyrmex_containerization.dispatch import plain
from codomyrmex_containerization.dispatch.plain import mcp_tool
'''


def text() -> str:
    """Return the module's source, as the formatter leaves it."""
    tools = _discovery.all_tools()
    exported = "".join(f"    {name!r},\n" for name in tools)
    parts = [_HEAD, f"__all__ = [\n{exported}]\n", *(function(spec) for spec in tools.values())]
    return formatted("\n".join(parts))


def function(spec: ToolSpec) -> str:
    """Return the source of a tool's function."""
    signature = inspect.signature(spec.function)
    hints = typing.get_type_hints(spec.function)
    parameters = list(signature.parameters.values())[1:]
    required = sum(one.default is inspect.Parameter.empty for one in parameters)
    positional = max(required, _POSITIONAL.get(spec.name, 0))
    lines = [argument(one, hints) for one in parameters]
    if positional < len(lines) or spec.plan is not None:
        lines.insert(positional, "*")
    names = [one.name for one in parameters]
    if spec.plan is not None:
        lines.append(f"{gate.CONFIRM}: str | None = None")
        names.append(gate.CONFIRM)
    given = "".join(f"{name!r}: {name}, " for name in names)
    return (
        f"@mcp_tool(toolset={spec.toolset!r}, schema={schema(spec)!r})\n"
        f"def {spec.name}({', '.join(lines)}{',' if lines else ''}) -> dict[str, Any]:\n"
        f"{indented(quoted(spec.description))}\n"
        f"    return plain.answer({spec.name!r}, {{{given}}})\n"
    )


def schema(spec: ToolSpec) -> dict[str, Any]:
    """Return the schema of a tool's arguments, the token of a confirmation included."""
    found = spec.input_schema()
    if spec.plan is not None:
        found["properties"][gate.CONFIRM] = _TOKEN_SCHEMA
    return found


def argument(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> str:
    """Return `name: type = default`."""
    shown = f"{parameter.name}: {kind(hints[parameter.name])}"
    return shown if parameter.default is inspect.Parameter.empty else f"{shown} = {parameter.default!r}"


def kind(hint: Any) -> str:
    """Return a type as a reader of the function writes it; an object with fields is a dictionary."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(kind(one) for one in arguments)
    if origin is typing.Literal:
        return f"Literal[{', '.join(repr(one) for one in arguments)}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(kind(one) for one in arguments)}]"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "dict[str, Any]"
    return "Any" if hint is Any else str(hint.__name__)


def quoted(description: str) -> str:
    """Return a docstring."""
    closing = "\n" if "\n" in description else ""
    return f'"""{description}{closing}"""'


def indented(lines: str) -> str:
    """Return the lines as they stand in a function."""
    return "\n".join(f"    {line}".rstrip() for line in lines.split("\n"))


def formatted(source: str) -> str:
    """Return the source as the project's formatter writes it."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", NAME, "-"]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ruff format failed: {done.stderr}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the module when it has changed, or with --check say so; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something would change")
    check = parser.parse_args(arguments).check
    path, wanted = ROOT / NAME, text()
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{NAME} {'is out of date: run scripts/docs' if check else 'written'}")
    if check:
        return 1
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
