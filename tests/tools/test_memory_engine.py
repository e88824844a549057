"""Do the tools work on the in-memory engine, which needs nothing and is used only by its name?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.dispatch import harness

BASE = "localhost/memory-base:1"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[harness.House]:
    """An application whose default engine is the one in memory; no other one is looked for."""
    async with harness.opened(engines=("memory",), toolsets=("all",), policy__allowed_paths=(str(tmp_path),)) as house:
        yield house


async def test_base_image_is_there_from_the_start(house: harness.House) -> None:
    (row,) = (await house.ok("image_list"))["images"]
    assert row["tags"] == [BASE]


async def test_image_is_built_run_and_removed(house: harness.House, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE}\nCOPY word /word\nRUN echo more >> /word\n")
    (tmp_path / "word").write_text("said\n")
    await house.ok("container_build", dockerfile_path=str(tmp_path), image_name="shop/web")
    ran = await house.ok("container_run", image="shop/web", command="cat /word")
    assert (ran["exit_code"], ran["stdout"]) == (0, "said\nmore\n")
    failing = await house.fails(
        "build_failed", "container_build", image_name="x", dockerfile_text=f"FROM {BASE}\nRUN exit 3\n"
    )
    assert "RUN exit 3" in failing.text
    await house.ok("image_remove", image="shop/web")


async def test_container_is_run_looked_into_and_removed(house: harness.House, tmp_path: Path) -> None:
    command = ["sh", "-c", "echo up; while true; do sleep 1; done"]
    made = await house.ok("container_run", image=BASE, name="web", command=command, detach=True)
    (row,) = (await house.ok("container_list"))["containers"]
    assert (row["id"], row["engine"], row["status"]) == (made["id"], "memory", "running")
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


async def test_what_it_cannot_do_is_refused_and_names_who_can(house: harness.House) -> None:
    (status,) = (await house.ok("container_runtime_status"))["engines"]
    assert {"ports", "limits", "pull"} <= {one.partition(" (")[0] for one in status["lacks"]}
    for given in ({"ports": ["80"]}, {"memory": "64m"}, {"cpus": 0.5}):
        outcome = await house.fails("unsupported", "container_run", image=BASE, **given)
        assert "docker" in outcome.text, outcome.text
    outcome = await house.fails("unsupported", "container_run", image="localhost:1/none:1")
    assert "docker" in outcome.text


async def test_volumes_networks_events_and_prune_work(house: harness.House) -> None:
    await house.ok("volume_create", name="data")
    await house.ok("network_create", name="inner")
    made = await house.ok(
        "container_run", image=BASE, command="true", mounts=["data:/data"], network="inner", keep=True
    )
    await house.ok("container_remove", container=made["name"])
    events = (await house.ok("container_events"))["events"]
    assert {"create", "start", "die"} <= {one["action"] for one in events}
    plan = await house.ok("engine_prune", kind="volumes")
    assert "data" in str(plan)
    await house.ok("network_remove", network="inner")
    await house.ok("volume_remove", volume="data")
