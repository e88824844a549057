"""Which tools are there, and is every one of them described and bounded?"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from codomyrmex_containerization.context import Context
from codomyrmex_containerization.tools import _discovery
from codomyrmex_containerization.tools._answer import Answer
from codomyrmex_containerization.tools._decorator import ToolSpec, mcp_tool

TOOLS = _discovery.all_tools()


class Nothing(Answer):
    def text(self) -> str:
        return ""


def module_with(name: str, *functions: Any) -> ModuleType:
    module = ModuleType(name)
    for number, function in enumerate(functions):
        function.__module__ = name
        setattr(module, f"f{number}", function)
    return module


def make(name: str) -> Any:
    async def function(ctx: Context, *, word: str = "x") -> Nothing:
        """Do nothing.

        More of it.
        """
        return Nothing()

    function.__name__ = name
    return mcp_tool(title="X", read_only=True)(function)


def test_tools_are_sorted_by_name_and_found_once() -> None:
    assert list(TOOLS) == sorted(TOOLS)
    assert all(name == spec.name == spec.function.__name__ for name, spec in TOOLS.items())


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tools are named twin"):
        _discovery.collect([module_with("a", make("twin")), module_with("b", make("twin"))])


def test_function_that_came_from_another_module_is_no_tool_of_this_one() -> None:
    tool = make("visitor")
    home = module_with("home", tool)
    other = ModuleType("other")
    other.visitor = tool  # type: ignore[attr-defined]  # a re-export
    assert list(_discovery.collect([other])) == []
    assert list(_discovery.collect([home, other])) == ["visitor"]


def test_toolsets_on_demand_are_those_that_no_default_listing_holds() -> None:
    optional = {spec.toolset for spec in TOOLS.values()} - {spec.toolset for spec in TOOLS.values() if spec.essential}
    modules = {spec.function.__module__.rpartition(".")[2] for spec in TOOLS.values() if spec.toolset in optional}
    assert modules == set(_discovery.ON_DEMAND)
    assert not [
        spec.name
        for spec in TOOLS.values()
        if spec.function.__module__.rpartition(".")[2] in modules and spec.toolset not in optional
    ]


def test_toolsets_on_demand_are_not_imported_before_somebody_looks() -> None:
    code = (
        "import sys\n"
        "from codomyrmex_containerization.tools import _discovery as d\n"
        "tools = d.all_tools()\n"
        "assert 'container_run' in d.enabled(tools, wanted=['default'], extra=[], excluded=[])\n"
        "loaded = [one for one in d.ON_DEMAND if f'codomyrmex_containerization.tools.{one}' in sys.modules]\n"
        "assert loaded == [], loaded\n"
        "assert 'volume_list' in tools and list(tools) == sorted(tools)\n"
        "assert 'volume_list' in d.enabled(tools, wanted=['storage'], extra=[], excluded=[])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_decorated_function_stays_directly_callable() -> None:
    tool = make("plain")
    assert inspect.iscoroutinefunction(tool)
    assert isinstance(await tool(None, word="y"), Nothing)


def test_async_function_carries_nothing_that_bridges_would_call_it_for() -> None:
    # Bridges call what they find without a context: they find the plain functions of `mcp_tools`.
    assert not hasattr(make("bridged"), "_mcp_tool")


@pytest.mark.parametrize("spec", TOOLS.values(), ids=lambda spec: spec.name)
def test_every_tool_and_every_argument_is_described_and_bounded(spec: ToolSpec) -> None:
    schema = spec.input_schema()
    assert spec.title
    assert 20 < len(spec.description) < 600
    assert schema["additionalProperties"] is False
    for name, one in schema["properties"].items():
        assert one.get("description"), name
        assert "$ref" not in json.dumps(one)
        if one.get("type") == "string":
            assert {"maxLength", "enum", "pattern", "const"} & set(one), name
        if one.get("type") in ("integer", "number"):
            assert {"maximum", "exclusiveMaximum"} & set(one), name


@pytest.mark.parametrize("spec", TOOLS.values(), ids=lambda spec: spec.name)
def test_schema_of_the_answer_has_a_status_and_names_its_fields(spec: ToolSpec) -> None:
    schema = spec.output_schema()
    assert schema["type"] == "object"
    assert schema["properties"]["status"]["const"] == "success"
    assert "$ref" not in json.dumps(schema)


@pytest.mark.parametrize("spec", TOOLS.values(), ids=lambda spec: spec.name)
def test_asking_for_a_schema_twice_gives_the_same(spec: ToolSpec) -> None:
    first = spec.input_schema()
    first["properties"]["added"] = {}
    assert "added" not in spec.input_schema()["properties"]
