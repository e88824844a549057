"""Does the server end on Podman as it does on Docker: nothing left of a call, whatever stopped it?

SPEC B80, SPEC B83.
"""

from __future__ import annotations

import json
import signal

import pytest

from tests.podman import PodmanService
from tests.server.engines import eventually, host_label, processes
from tests.server.wire import served

MARKER = "cxc-podman-life"
BUSY = ["sh", "-c", f"while :; do sleep 0.1; : {MARKER}; done"]


@pytest.fixture(autouse=True)
def podman(podman_service: PodmanService, monkeypatch: pytest.MonkeyPatch) -> PodmanService:
    """Podman alone, where the user named it."""
    monkeypatch.setenv("CONTAINER_HOST", podman_service.url)
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_ENGINES", "podman")
    return podman_service


def containers(podman: PodmanService) -> list[str]:
    """The ids of what these servers have made."""
    said = podman.podman(["ps", "--all", "--quiet", "--filter", f"label={host_label()}"])
    return said.stdout.split()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
async def test_run_that_is_cut_off_leaves_nothing_after_the_next_start(
    podman: PodmanService, number: signal.Signals
) -> None:
    async with served("legacy") as server:
        await server.start_call("container_run", image=podman.image, command=BUSY)
        await eventually(lambda: bool(processes(MARKER)), "the container runs")
        server.send_signal(number)
        await server.exit_code(within_seconds=30)
    async with served("legacy") as server:
        await server.call("container_list")
        await eventually(lambda: not containers(podman) and not processes(MARKER), "nothing is left")


async def test_detached_container_survives_its_server(podman: PodmanService) -> None:
    async with served("legacy") as server:
        answer = await server.call("container_run", image=podman.image, command=BUSY, detach=True, name=MARKER)
        assert not answer["isError"], answer
        server.send_signal(signal.SIGKILL)
        await server.exit_code(within_seconds=30)
    async with served("legacy") as server:
        answer = await server.call("container_list", name=MARKER)
        (row,) = answer["structuredContent"]["containers"]
        assert row["status"] == "running"
    podman.podman(["rm", "--force", "--time=0", MARKER])


async def test_service_that_is_killed_during_a_call_is_there_for_the_next_one(podman: PodmanService) -> None:
    async with served("legacy") as server:
        call = await server.start_call("container_run", image=podman.image, command=BUSY)
        await eventually(lambda: bool(processes(MARKER)), "the container runs")
        podman.stop(signal.SIGKILL)
        answer = await server.result(call)
        assert answer["isError"], json.dumps(answer)
        podman.ensure_started()
        answer = await server.call("container_list")
        assert not answer["isError"], answer
        await eventually(
            lambda: not containers(podman) and not processes(MARKER), "what could not be removed is removed"
        )
