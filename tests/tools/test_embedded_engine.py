"""Do the tools work on the embedded engine, with neither Docker nor Podman, and do its containers outlive the server?

SPEC B88, SPEC B89, SPEC B90, SPEC B91, SPEC B92.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from tests import embedded
from tests.dispatch import harness
from tests.server import faces

SETTINGS = {"engines": ("embedded",), "toolsets": ("all",)}


@pytest.fixture
def engine(private_folders: Path) -> Iterator[EmbeddedEngine]:
    """What the servers of a test work on, seen from beside them."""
    with embedded.own_folders() as engine:
        yield engine


@pytest.fixture
async def house(engine: EmbeddedEngine, tmp_path: Path) -> AsyncIterator[harness.House]:
    """An application with this engine alone, and its base image."""
    embedded.base_image(engine, tmp_path)
    async with harness.opened(**SETTINGS, policy__allowed_paths=(str(tmp_path),)) as house:
        yield house


def told(rows: list[dict[str, object]], *keys: str) -> list[tuple[object, ...]]:
    return [tuple(row[key] for key in keys) for row in rows]


async def test_it_is_the_default_where_nothing_else_is(house: harness.House) -> None:
    (status,) = (await house.ok("container_runtime_status"))["engines"]
    assert (status["name"], status["available"], status["default"]) == ("embedded", True, True)
    assert any(note.startswith("OCI runtime") for note in status["notes"])
    made = await house.ok("container_run", image=embedded.IMAGE, command="true")
    assert made["exit_code"] == 0


async def test_image_is_built_run_and_removed(house: harness.House, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {embedded.IMAGE}\nCOPY word /word\nRUN echo more >> /word\n")
    (tmp_path / "word").write_text("said\n")
    await house.ok("container_build", dockerfile_path=str(tmp_path), image_name="shop/web")
    ran = await house.ok("container_run", image="shop/web", command="cat /word")
    assert (ran["exit_code"], ran["stdout"]) == (0, "said\nmore\n")
    failing = await house.fails(
        "build_failed", "container_build", image_name="x", dockerfile_text=f"FROM {embedded.IMAGE}\nRUN exit 3\n"
    )
    assert "RUN exit 3" in failing.text
    await house.ok("image_remove", image="shop/web")


async def test_container_is_run_looked_into_and_removed(house: harness.House, tmp_path: Path) -> None:
    command = ["sh", "-c", "echo up; while true; do sleep 1; done"]
    made = await house.ok("container_run", image=embedded.IMAGE, name="web", command=command, detach=True, memory="64m")
    (row,) = (await house.ok("container_list"))["containers"]
    assert (row["id"], row["engine"], row["status"]) == (made["id"], "embedded", "running")
    assert 0 < row["memory_bytes"] < row["memory_limit_bytes"] == 64 * 1024 * 1024
    done = await house.ok("container_exec", container="web", command=["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done["exit_code"], done["stdout"], done["stderr"]) == (3, "out\n", "err\n")
    late = await house.ok("container_exec", container="web", command="sleep 100", timeout_seconds=0.2)
    assert (late["timed_out"], late["killed"]) == (True, True)
    (tmp_path / "sent").write_text("x" * 1000)
    await house.ok("container_copy", source=str(tmp_path / "sent"), target="web:/tmp/")
    await house.ok("container_copy", source="web:/tmp/sent", target=str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "x" * 1000
    assert [line["text"] for line in (await house.ok("container_logs", container="web"))["lines"]] == ["up"]
    assert (await house.ok("container_inspect", container="web"))["state"] == "running"
    assert (await house.ok("container_control", container="web", action="kill"))["exit_code"] == 137
    await house.ok("container_remove", container="web")
    assert (await house.ok("container_list", all=True))["containers"] == []


async def test_this_machines_programs_run_without_any_image(house: harness.House) -> None:
    ran = await house.ok("container_run", image="host", command=["sh", "-c", "ls /home /root; id -u; touch /usr/x"])
    assert ran["stdout"].splitlines()[-1] == "0"
    assert "Read-only file system" in ran["stderr"]
    assert ran["exit_code"] == 1
    await house.fails("build_failed", "container_build", image_name="x", dockerfile_text="FROM host\nRUN true\n")
    await house.fails("not_found", "image_tag", source="host", target="localhost/mine:1")
    await house.fails("command_failed", "container_run", image="host", command="nosuchprogram")


async def test_policy_holds_on_it(house: harness.House) -> None:
    await house.fails("refused", "container_run", image="host", command="true", mounts=["/etc:/host:ro"])
    await house.fails("refused", "container_run", image="host", command="true", privileged=True)
    await house.fails("refused", "container_run", image="host", command="true", network="host")


async def test_damaged_record_is_set_aside_and_the_others_go_on(house: harness.House, engine: EmbeddedEngine) -> None:
    ids = [
        (await house.ok("container_run", image=embedded.IMAGE, command="sleep 100", detach=True, name=name))["id"]
        for name in ("whole", "damaged")
    ]
    folder = next(one for one in engine.house.containers.ids() if one.startswith(ids[1]))
    record = engine.house.containers.folder(folder) / "container.json"
    record.write_bytes(record.read_bytes()[:100])
    rows = (await house.ok("container_list", all=True))["containers"]
    assert sorted(told(rows, "name", "status")) == [("damaged", "dead"), ("whole", "running")]
    assert record.with_name("container.json.damaged").exists()
    (status,) = (await house.ok("container_runtime_status"))["engines"]
    assert any("damaged" in note for note in status["notes"])
    for name in ("whole", "damaged"):
        await house.ok("container_remove", container=name, force=True)
    assert (await house.ok("container_list", all=True))["containers"] == []


async def test_containers_outlive_a_killed_server(engine: EmbeddedEngine, tmp_path: Path) -> None:
    environment = {**os.environ, "CODOMYRMEX_CONTAINERIZATION_ENGINES": "embedded"}
    parameters = StdioServerParameters(command=faces.COMMAND[0], args=list(faces.COMMAND[1:]), env=environment)
    with pytest.raises(BaseExceptionGroup):  # the server is gone in the middle of the session
        await _run_and_be_killed(parameters, environment["CODOMYRMEX_CONTAINERIZATION_DATA_DIR"])
    async with Client(stdio_client(parameters)) as client:
        rows = faces.answer_of(await client.call_tool("container_list", {}))["containers"]
        assert told(rows, "name", "status") == [("survivor", "running")]
        go = {"container": "survivor", "command": "touch /tmp/go"}
        assert faces.answer_of(await client.call_tool("container_exec", go))["exit_code"] == 0
        await engine.wait_container("survivor")
        state = faces.answer_of(await client.call_tool("container_inspect", {"container": "survivor"}))
        assert (state["state"], state["exit_code"]) == ("exited", 4)
        logs = faces.answer_of(await client.call_tool("container_logs", {"container": "survivor"}))
        assert [line["text"] for line in logs["lines"]] == ["one", "two"]


async def _run_and_be_killed(parameters: StdioServerParameters, data: str) -> None:
    script = ["sh", "-c", "echo one; until [ -e /tmp/go ]; do sleep 0.05; done; echo two; exit 4"]
    wanted = {"image": "host", "name": "survivor", "detach": True, "command": script}
    async with Client(stdio_client(parameters)) as client:
        made = faces.answer_of(await client.call_tool("container_run", wanted))
        assert made["state"] == "running"
        for pid in _servers(data):
            os.kill(pid, signal.SIGKILL)
        await client.call_tool("container_list", {})


def _servers(data: str) -> Iterator[int]:
    """The servers that were started with a data folder."""
    wanted = f"CODOMYRMEX_CONTAINERIZATION_DATA_DIR={data}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"codomyrmex_containerization" in words and wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:
            continue


def test_command_line_runs_on_it(engine: EmbeddedEngine) -> None:
    command = [str(Path(sys.executable).with_name("cxc")), "--engine", "embedded"]
    environment = {**os.environ, "CODOMYRMEX_CONTAINERIZATION_ENGINES": "embedded"}
    done = subprocess.run(
        [*command, "run", "host", "sh", "-c", "echo out; exit 3"], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.returncode) == ("out\n", 3), done.stderr
