"""What does an ordinary user get who has no Docker, but Podman? The real server over stdio, started as that user."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

import codomyrmex_containerization
from tests import leftovers
from tests.podman import PodmanService
from tests.server import faces

pytestmark = pytest.mark.anyio

NAME = "rootless-story"
IMAGE = "localhost/cxc-rootless-story"
REQUEST_SECONDS = 60.0


@pytest.fixture
def state_folder(rootless_podman_service: PodmanService) -> Iterator[Path]:
    """The server's folder for what it keeps; whatever it started there has ended afterwards."""
    folder = rootless_podman_service.home / "state"
    yield folder
    rootless_podman_service.podman(["rm", "--all", "--force", "--time=0"], check=False)
    rootless_podman_service.podman(["image", "rm", "--force", f"{IMAGE}:latest"], check=False)
    leftovers.end_processes(leftovers.naming(folder))
    rootless_podman_service.podman.run(["rm", "-rf", folder])


@asynccontextmanager
async def served(service: PodmanService, folder: Path) -> AsyncIterator[Client]:
    """A client of a server that this user started, without any settings for a restricted machine."""
    source = str(Path(codomyrmex_containerization.__file__).parents[1])
    environment = {
        **service.plain_environment,
        "PYTHONPATH": source,
        "PYTHONDONTWRITEBYTECODE": "1",
        "CODOMYRMEX_CONTAINERIZATION_STATE_DIR": str(folder),
    }
    command = service.command_line(environment=environment).command(
        [sys.executable, "-m", "codomyrmex_containerization"]
    )
    parameters = StdioServerParameters(command=command[0], args=command[1:], cwd=service.home)
    try:
        async with Client(stdio_client(parameters), read_timeout_seconds=REQUEST_SECONDS) as client:
            yield client
    except BaseExceptionGroup as group:
        raise faces.bare(group) from None


async def called(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a call that must succeed."""
    return faces.answer_of(await client.call_tool(tool, arguments))


@pytest.mark.parametrize("running", [True, False], ids=["service_runs", "service_is_started"])
async def test_ordinary_user_gets_build_run_logs_and_usage_from_podman(
    running: bool, rootless_podman_service: PodmanService, state_folder: Path
) -> None:
    if not running:
        rootless_podman_service.stop()
    dockerfile = f"FROM {rootless_podman_service.image}\nRUN echo built > /made\n"
    async with served(rootless_podman_service, state_folder) as client:
        podman = await _default_engine(client)
        assert podman["endpoint"].endswith(f"{state_folder}/podman/podman.sock") is not running

        built = await called(client, "container_build", image_name=IMAGE, dockerfile_text=dockerfile)
        assert built["image"] == f"{IMAGE}:latest"

        command = ["sh", "-c", "cat /made; echo a complaint >&2; exit 3"]
        ran = await called(client, "container_run", image=IMAGE, command=command)
        assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (3, "built\n", "a complaint\n")

        command = ["sh", "-c", "echo begun; exec sleep 600"]
        started = await called(client, "container_run", image=IMAGE, name=NAME, detach=True, command=command)
        assert started["state"] == "running"
        logs = await called(client, "container_logs", container=NAME)
        assert [(line["stream"], line["text"]) for line in logs["lines"]] == [("stdout", "begun")]

        listed = await called(client, "container_list", engine="podman")
        assert [(row["name"], row["status"]) for row in listed["containers"]] == [(NAME, "running")]
        _assert_usage_is_told(podman, listed)

        await called(client, "container_remove", container=NAME, force=True)
    assert NAME not in rootless_podman_service.podman(["ps", "--all", "--format", "{{.Names}}"]).stdout


async def _default_engine(client: Client) -> dict[str, Any]:
    status = await called(client, "container_runtime_status")
    engines = {row["name"]: row for row in status["engines"]}
    assert not engines["docker"]["available"], "this user has no Docker"
    assert engines["podman"]["available"], engines["podman"]
    assert engines["podman"]["default"]
    assert engines["podman"]["rootless"]
    return dict(engines["podman"])


def _assert_usage_is_told(podman: dict[str, Any], listed: dict[str, Any]) -> None:
    """Where control groups are of version 1 rootless Podman measures nothing: then it is read from the processes, and that is said."""
    (row,) = listed["containers"]
    assert listed["failed"] == []
    assert row["memory_bytes"] > 0
    assert row["cpu_percent"] >= 0
    assert row["pids"] == 1
    summed = [one for one in podman["notes"] if "summed over the processes" in one]
    assert len(summed) == (podman["cgroup_version"] == 1)
