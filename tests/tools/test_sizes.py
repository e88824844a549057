"""How much of a model's attention does the list of the core tools take?"""

from __future__ import annotations

import json

import pytest

from codomyrmex_containerization.dispatch import application
from codomyrmex_containerization.server import adapter

CORE = """
    container_build container_control container_copy container_exec container_inspect container_list container_logs
    container_remove container_run container_runtime_status image_inspect image_list image_remove image_tag
""".split()


def listing(*, output_schemas: bool) -> list[dict[str, object]]:
    """The tools array of tools/list."""
    specs = [spec for spec in application.tools().values() if spec.toolset == "core"]
    shown = [adapter.tool(spec, output_schema=output_schemas) for spec in specs]
    return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in shown]


def test_the_core_toolset_is_fourteen_tools() -> None:
    assert sorted(str(tool["name"]) for tool in listing(output_schemas=False)) == CORE


@pytest.mark.parametrize(("output_schemas", "most_bytes"), [(False, 16_000), (True, 26_000)])
def test_the_list_of_the_core_tools_is_small(output_schemas: bool, most_bytes: int) -> None:
    text = json.dumps(listing(output_schemas=output_schemas), separators=(",", ":"), ensure_ascii=False)
    assert len(text.encode()) <= most_bytes
