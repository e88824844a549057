"""Does a flood of output or of files stay outside: the answer within its budget, the server's memory near what it is when idle?"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.models.settings import Settings
from tests import backends, tally
from tests.attacks import driver
from tests.attacks.driver import answer_of, text_of
from tests.backends import DockerCommandLine
from tests.server import wire
from tests.server.engines import OwnEngine

IMAGE = backends.BUSYBOX_IMAGE
MEGABYTE = 1_000_000
MOST_KILOBYTES = 80 * 1024
LINE = "a line of the flood with a few words in it, 0123456789"

pytestmark = [
    pytest.mark.attack("floods (50 MB log, yes, 200 MB copy)"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc (to run this: Linux)"),
]


@dataclass(slots=True)
class Flooded:
    """A server whose answers are measured, and that may not have grown when it is left."""

    served: wire.Wire

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed within its budget."""
        result = await self.served.call(tool, **arguments)
        answer = answer_of(result)
        limit = Settings().answer_characters
        assert len(text_of(result)) <= limit
        assert len(json.dumps(answer, ensure_ascii=False, separators=(",", ":"))) <= limit
        return answer


@asynccontextmanager
async def flooded() -> AsyncIterator[Flooded]:
    """A server that has done one of each before: what it imports at first use is not what a flood costs."""
    async with wire.served("modern", buildx="off") as served:
        one = Flooded(served)
        await one.call("container_run", image=IMAGE, command="true")
        await one.call("container_list", all=True)
        pid = served.process.pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the most that it ever was counts from here
        idle = driver.memory_kilobytes(pid)["VmRSS"]
        with tally.attempt():
            yield one
            most = driver.memory_kilobytes(pid)["VmHWM"]
            tally.measured("the server's memory over idle: at most", (most - idle) * 1024)
            assert most - idle <= MOST_KILOBYTES, f"{idle} kB when idle, {most} kB in the flood"


@pytest.fixture
def docker(attacked_engine: OwnEngine) -> DockerCommandLine:
    return attacked_engine.docker


@pytest.fixture
def container(docker: DockerCommandLine, session_label: str) -> Iterator[str]:
    """A container that idles."""
    name = "flooded"
    docker(["run", "--detach", "--label", session_label, "--name", name, IMAGE, "sleep", "600"])
    yield name
    docker(["rm", "--force", name])


def _logged(docker: DockerCommandLine, label: str, command: str) -> str:
    id = docker(["run", "--detach", "--label", label, IMAGE, "sh", "-c", command]).stdout.strip()
    assert docker(["wait", id]).stdout.strip() == "0"
    return id


async def test_log_of_fifty_megabytes_is_read_but_not_held(docker: DockerCommandLine, session_label: str) -> None:
    id = _logged(docker, session_label, f"yes '{LINE}' | head -c {50 * MEGABYTE}; echo; echo the end")
    try:
        async with flooded() as server:
            last = await server.call("container_logs", container=id)
            assert last["lines"][-1]["text"] == "the end"
            assert last["total"] > 1000
            await server.call("container_logs", container=id, tail=5000, timestamps=True)
            found = await server.call("container_logs", container=id, grep="the end", tail=10)
            assert [line["text"] for line in found["lines"]] == ["the end"]
    finally:
        docker(["rm", "--force", id])


async def test_log_that_is_one_line_of_fifty_megabytes_is_read_but_not_held(
    docker: DockerCommandLine, session_label: str
) -> None:
    id = _logged(docker, session_label, f"head -c {50 * MEGABYTE} /dev/zero | tr '\\0' x; echo; echo the end")
    try:
        async with flooded() as server:
            for arguments in ({}, {"tail": 5000}, {"grep": "the end"}):
                shown = await server.call("container_logs", container=id, **arguments)
                assert shown["lines"][-1]["text"] == "the end"
    finally:
        docker(["rm", "--force", id])


async def test_endless_output_of_a_command_is_cut_and_the_command_ended(
    docker: DockerCommandLine, container: str
) -> None:
    async with flooded() as server:
        answer = await server.call("container_exec", container=container, command=["yes", LINE], timeout_seconds=3)
        assert answer["timed_out"] is True
        assert answer["killed"] is True
        assert LINE in answer["stdout"]
    assert "yes" not in docker(["exec", container, "ps", "-o", "comm"]).stdout.split()


async def test_run_that_prints_a_hundred_megabytes_keeps_its_beginning_and_its_end(docker: DockerCommandLine) -> None:
    async with flooded() as server:
        command = f"echo the start; yes '{LINE}' | head -c {100 * MEGABYTE}; echo; echo the end; exit 3"
        answer = await server.call("container_run", image=IMAGE, command=["sh", "-c", command], timeout_seconds=50)
        assert answer["exit_code"] == 3
        assert answer["stdout"].startswith("the start")
        assert "the end" in answer["stdout"]


async def test_two_hundred_megabytes_are_copied_in_and_out_whole(container: str, working_folder: Path) -> None:
    # No two megabytes are alike, and none is empty.
    with (working_folder / "large").open("wb") as file:
        for number in range(200):
            file.write(number.to_bytes(4, "big") * (MEGABYTE // 4))
    async with flooded() as server:
        copied = await server.call("container_copy", source="./large", target=f"{container}:/tmp/large")
        assert copied["bytes"] == 200 * MEGABYTE
        copied = await server.call("container_copy", source=f"{container}:/tmp/large", target="./again")
        assert copied["bytes"] == 200 * MEGABYTE
    with (working_folder / "large").open("rb") as one, (working_folder / "again").open("rb") as other:
        while piece := one.read(MEGABYTE):
            assert other.read(MEGABYTE) == piece
        assert other.read(1) == b""
    for name in ("large", "again"):
        (working_folder / name).unlink()


async def test_floods_side_by_side_do_not_add_up(docker: DockerCommandLine, container: str) -> None:
    async with flooded() as server:
        command = ["yes", LINE]
        calls = [
            await server.served.start_call("container_exec", container=container, command=command, timeout_seconds=3)
            for _ in range(4)
        ]
        await server.call("container_list")
        for call in calls:
            assert answer_of(await server.served.result(call))["killed"] is True
