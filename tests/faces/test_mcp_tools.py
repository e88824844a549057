"""Are the tools plain functions that bridges find, with the tools' own arguments, and dictionaries as answers?"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from codomyrmex_containerization import mcp_tools
from codomyrmex_containerization.server import adapter
from codomyrmex_containerization.tools import _discovery
from codomyrmex_containerization.tools._decorator import ToolSpec
from tests.backends import DockerCommandLine
from tests.faces.conftest import Python, environment

ROOT = Path(__file__).parent.parent.parent
SOURCE = Path(mcp_tools.__file__)
TOOLS = _discovery.all_tools()
METADATA = {"name", "description", "schema", "category", "tags", "module", "version", "deprecated_in"}
ERROR_KEYS = {"status", "code", "message", "error", "hint", "retryable"}
HEAVY = (
    "docker",
    "mcp",
    "mcp_types",
    "rich",
    "click",
    "requests",
    "urllib3",
    "pydantic",
    "anyio",
    "dockerfile",
    "asyncio",
)

every_tool = pytest.mark.parametrize("spec", TOOLS.values(), ids=TOOLS.keys())


def function_of(spec: ToolSpec) -> Callable[..., dict[str, Any]]:
    """The plain function of a tool."""
    return typing.cast("Callable[..., dict[str, Any]]", getattr(mcp_tools, spec.name))


# ------------------------------------------------------------------------------------------------------------ discovery


def decorated_functions() -> list[str]:
    """What a bridge finds that scans the source: plain functions under a literal `@mcp_tool`."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            callees = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
            if any(isinstance(one, ast.Name) and one.id == "mcp_tool" for one in callees):
                names.append(node.name)
    return names


def test_scan_of_the_source_finds_a_decorated_function_for_every_tool() -> None:
    assert sorted(decorated_functions()) == sorted(TOOLS)


def test_scan_of_the_attributes_finds_the_same_functions_and_no_other() -> None:
    module = importlib.import_module("codomyrmex_containerization.mcp_tools")
    carrying = [name for name, value in vars(module).items() if hasattr(value, "_mcp_tool")]

    assert sorted(carrying) == sorted(TOOLS)


@every_tool
def test_function_carries_the_metadata_that_bridges_read(spec: ToolSpec) -> None:
    found = function_of(spec)._mcp_tool  # type: ignore[attr-defined]  # hung on it by the decorator

    assert found.keys() == METADATA
    assert found is function_of(spec)._mcp_tool_meta  # type: ignore[attr-defined]
    assert found["name"] == f"codomyrmex.{spec.name}"
    assert found["category"] == "containerization"
    assert found["module"] == "codomyrmex_containerization.mcp_tools"
    assert found["deprecated_in"] is None
    assert found["description"]
    assert spec.description.startswith(found["description"][:40])
    assert "mcp" in found["tags"]
    json.dumps(found)


@every_tool
def test_schema_is_the_one_that_the_server_publishes(spec: ToolSpec) -> None:
    schema = function_of(spec)._mcp_tool["schema"]  # type: ignore[attr-defined]

    assert schema == adapter.tool(spec, output_schema=False).input_schema


@every_tool
def test_function_takes_the_tools_arguments_with_their_defaults(spec: ToolSpec) -> None:
    expected = dict(list(inspect.signature(spec.function).parameters.items())[1:])
    found = dict(inspect.signature(function_of(spec)).parameters)
    token = found.pop("confirm_token", None)

    assert {name: one.default for name, one in found.items()} == {name: one.default for name, one in expected.items()}
    assert (token is not None) == (spec.plan is not None)
    assert not inspect.iscoroutinefunction(function_of(spec))


@every_tool
def test_annotations_are_the_tools_with_dictionaries_for_objects(spec: ToolSpec) -> None:
    expected = typing.get_type_hints(spec.function)
    found = typing.get_type_hints(function_of(spec))

    for name in set(found) - {"return", "confirm_token"}:
        holds_model = any(
            isinstance(one, type) and issubclass(one, BaseModel) for one in typing.get_args(expected[name])
        )
        assert found[name] == (dict[str, Any] | None if holds_model else expected[name]), name


def test_module_is_as_its_generator_writes_it() -> None:
    command = [sys.executable, str(ROOT / "scripts/generate_mcp_tools.py"), "--check"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "statement",
    [
        "import codomyrmex_containerization.mcp_tools",
        "from codomyrmex_containerization import cli_commands; cli_commands()",
        "from codomyrmex_containerization import DockerManager, ContainerConfig, build_containers; DockerManager()",
        "from codomyrmex_containerization import ContainerError, ImageBuildError, HAS_DOCKER_MANAGER",
    ],
)
def test_import_loads_nothing_heavy_begins_no_thread_and_writes_nothing(
    python: Python, statement: str, private_folders: Path
) -> None:
    before = sorted(private_folders.rglob("*"))
    done = python(
        f"import sys, threading\n{statement}\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], threading.active_count())"
    )

    assert (done.stdout, done.stderr) == ("[] 1\n", "")
    assert sorted(private_folders.rglob("*")) == before


# -------------------------------------------------------------------------------------------------------------- answers


def test_status_has_upstreams_keys(docker_socket: Path) -> None:
    found = mcp_tools.container_runtime_status()

    assert found["status"] == "success"
    assert found["runtimes"] == {
        "docker": True,
        "kubernetes": False,
        "registry": True,
        "security_scanner": False,
        "optimizer": False,
    }


def test_status_without_an_engine_says_that_docker_is_not_available(no_engine: None) -> None:
    assert mcp_tools.container_runtime_status()["runtimes"]["docker"] is False


def test_list_rows_have_upstreams_keys(foreign: str) -> None:
    found = mcp_tools.container_list(name=foreign)
    (row,) = found["containers"]

    assert found["status"] == "success"
    assert {"id", "name", "image", "status", "created", "ports"} <= row.keys()
    assert (row["name"], row["status"], row["ports"]) == (foreign, "running", [])


def test_list_without_an_engine_is_an_error_and_not_an_empty_list(no_engine: None) -> None:
    found = mcp_tools.container_list()

    assert found.keys() == ERROR_KEYS
    assert (found["status"], found["code"], found["retryable"]) == ("error", "engine_unavailable", True)
    assert found["message"] == found["error"] != ""
    assert found["hint"]


def test_build_answers_upstreams_keys(busybox_image: str, image: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox_image}\nRUN true\n")
    found = mcp_tools.container_build(image, str(tmp_path), "1")

    assert (found["status"], found["image"]) == ("success", f"{image}:1")
    assert found["result"].keys() == {"success", "image_id", "image_tags", "build_logs", "build_time"}
    assert found["result"]["image_id"] == found["image_id"]


def test_build_with_buildkit_works_from_the_portals_thread(
    busybox_image: str, image: str, tmp_path: Path, buildx: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox_image}\nRUN true\n")

    assert mcp_tools.container_build(image, str(tmp_path))["builder"] == "buildkit"


def test_failed_build_answers_where_it_failed(busybox_image: str, image: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox_image}\nRUN false\n")
    found = mcp_tools.container_build(image, str(tmp_path))

    assert (found["status"], found["code"], found["line"], found["exit_code"]) == ("error", "build_failed", 2, 1)


def test_run_answers_what_the_container_said(busybox_image: str) -> None:
    found = mcp_tools.container_run(busybox_image, command=["sh", "-c", "echo out; echo err >&2; exit 3"])

    assert (found["status"], found["exit_code"], found["stdout"], found["stderr"]) == ("success", 3, "out\n", "err\n")


def test_argument_of_a_wrong_type_is_an_answer(docker_socket: Path) -> None:
    found = mcp_tools.container_logs("web", tail="many")  # type: ignore[arg-type]  # what a bridge may pass

    assert found.keys() == ERROR_KEYS
    assert found["code"] == "invalid_argument"
    assert "tail" in found["message"]


def test_removing_others_container_takes_the_token_of_the_question(foreign: str, docker_cli: DockerCommandLine) -> None:
    asked = mcp_tools.container_remove(foreign, force=True)
    other = mcp_tools.container_remove(foreign, force=True, confirm_token="made-up")
    still_there = docker_cli(["ps", "--quiet", "--filter", f"name={foreign}"]).stdout
    done = mcp_tools.container_remove(foreign, force=True, confirm_token=asked["confirm_token"])

    assert (asked["status"], asked["code"]) == ("error", "confirmation_required")
    assert asked.keys() == ERROR_KEYS | {"confirm_token", "lost"}
    assert other["code"] == "confirmation_required"
    assert still_there != ""
    assert done["status"] == "success"
    assert docker_cli(["ps", "--all", "--quiet", "--filter", f"name={foreign}"]).stdout == ""


def test_removing_a_container_of_our_own_asks_nothing(busybox_image: str, name: str) -> None:
    mcp_tools.container_run(busybox_image, command=["sleep", "600"], name=name, detach=True)

    assert mcp_tools.container_remove(name, force=True)["status"] == "success"


def test_secret_of_a_container_is_masked(busybox_image: str, name: str) -> None:
    secret = "hunter2-hunter2-hunter2"
    mcp_tools.container_run(
        busybox_image,
        command=["sh", "-c", "echo $DB_PASSWORD; sleep 600"],
        name=name,
        detach=True,
        env={"DB_PASSWORD": secret},
    )
    seen = [mcp_tools.container_inspect(name), mcp_tools.container_logs(name), mcp_tools.container_exec(name, "env")]
    mcp_tools.container_remove(name, force=True)

    assert [one["status"] for one in seen] == ["success"] * 3
    assert secret not in json.dumps(seen)
