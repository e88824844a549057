"""Does a list show what a real Docker engine holds, with what it uses?"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.backends import DockerCommandLine
from tests.dispatch import harness

LABEL = f"listed={uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def crew(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[dict[str, str]]:
    """One container in each state, with names that end in the state's."""
    prefix = f"cxc-test-{uuid.uuid4().hex[:8]}"
    common = ["--label", session_label, "--label", LABEL]
    names = {
        state: f"{prefix}-{state}" for state in ("created", "running", "paused", "exited", "restarting", "healthy")
    }

    def make(state: str, *options: str) -> None:
        docker_cli([*options[:1], "--name", names[state], *common, *options[1:]])

    make("created", "create", busybox_image, "true")
    make(
        "running",
        "run",
        "--detach",
        "--publish=127.0.0.1::80",
        "--publish=127.0.0.1::53/udp",
        "--expose=99",
        busybox_image,
        "sleep",
        "300",
    )
    make("paused", "run", "--detach", busybox_image, "sleep", "300")
    docker_cli(["pause", names["paused"]])
    make("exited", "run", busybox_image, "true")
    make("restarting", "run", "--detach", "--restart=always", busybox_image, "false")
    make("healthy", "run", "--detach", "--health-cmd=true", "--health-interval=1s", busybox_image, "sleep", "300")
    yield names
    docker_cli(["rm", "--force", *names.values()])


async def rows(**arguments: Any) -> list[dict[str, Any]]:
    async with harness.opened() as house:
        answer = await house.ok("container_list", {"label": LABEL, **arguments})
        found: list[dict[str, Any]] = answer["containers"]
        return found


def names_of(found: list[dict[str, Any]]) -> set[str]:
    return {row["name"].rpartition("-")[2] for row in found}


async def test_only_what_runs_is_listed_unless_all_is_asked_for(crew: dict[str, str]) -> None:
    assert names_of(await rows()) >= {"running", "paused", "healthy"}
    assert not names_of(await rows()) & {"created", "exited"}
    assert names_of(await rows(all=True)) == set(crew)


@pytest.mark.parametrize("status", ["created", "running", "paused", "exited"])
async def test_status_finds_what_is_in_it_without_all(crew: dict[str, str], status: str) -> None:
    found = await rows(status=status)
    assert status in names_of(found)
    assert {row["status"] for row in found} == {status}


async def test_other_filters_hold_together(crew: dict[str, str], busybox_image: str) -> None:
    assert names_of(await rows(all=True, name=crew["exited"][9:])) == {"exited"}
    assert names_of(await rows(all=True, image="busybox")) == set(crew)
    assert names_of(await rows(all=True, image="no-such-image")) == set()
    assert names_of(await rows(all=True, label=LABEL.partition("=")[0])) == set(crew)
    assert await rows(all=True, label=f"{LABEL}x") == []


async def test_health_is_the_engines(crew: dict[str, str]) -> None:
    with anyio.fail_after(30):
        while True:
            (row,) = await rows(name=crew["healthy"])
            if row["health"] == "healthy":
                return
            assert row["health"] == "starting"


async def test_ports_are_shown_as_published(crew: dict[str, str], docker_cli: DockerCommandLine) -> None:
    (row,) = await rows(name=crew["running"])
    published = json.loads(
        docker_cli(["inspect", "--format", "{{json .NetworkSettings.Ports}}", crew["running"]]).stdout
    )
    assert set(row["ports"]) == {
        f"127.0.0.1:{published['80/tcp'][0]['HostPort']}->80/tcp",
        f"127.0.0.1:{published['53/udp'][0]['HostPort']}->53/udp",
        "99/tcp",
    }


async def test_usage_is_that_of_docker_stats(crew: dict[str, str], docker_cli: DockerCommandLine) -> None:
    async with harness.opened() as house:
        for _ in range(2):
            answer = await house.ok("container_list", {"name": crew["running"]})
        (row,) = answer["containers"]
    stats = json.loads(docker_cli(["stats", "--no-stream", "--format", "{{json .}}", crew["running"]]).stdout)
    assert row["pids"] == int(stats["PIDs"]) == 1
    shown = stats["MemUsage"].split("/")[0].strip()
    unit = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}[shown.lstrip("0123456789.")]
    said = float(shown.rstrip("BKMGTi")) * unit
    assert abs(row["memory_bytes"] - said) <= max(0.05 * said, 65_536)
    assert 0 <= row["cpu_percent"] < 50


async def test_processor_time_that_is_burnt_is_seen(busybox_image: str) -> None:
    async with harness.opened() as house:
        made = await house.ok(
            "container_run", image=busybox_image, command=["sh", "-c", "while true; do :; done"], detach=True, cpus=0.5
        )
        with anyio.fail_after(30):
            while True:
                answer = await house.ok("container_list", {"name": made["name"]})
                if (answer["containers"][0].get("cpu_percent") or 0) > 5:
                    break


async def test_list_without_usage_has_none_and_those_that_do_not_run_have_none(crew: dict[str, str]) -> None:
    for row in await rows(all=True, usage=False):
        assert "memory_bytes" not in row
    for row in await rows(all=True):
        assert ("memory_bytes" in row) is (row["status"] in ("running", "paused")) or row["status"] == "restarting"


async def test_newest_is_listed_first(crew: dict[str, str]) -> None:
    created = [row["created"] for row in await rows(all=True)]
    assert created == sorted(created, reverse=True)


async def test_list_is_one_request_whatever_it_holds(crew: dict[str, str], docker_cli: DockerCommandLine) -> None:
    async with harness.opened() as house:
        outcome = await house.call("container_list", {"label": LABEL, "all": True, "usage": False})
        header = outcome.text.splitlines()[0].split()
        assert header[:4] == ["ID", "NAME", "IMAGE", "STATUS"]
        assert "ENGINE" not in header  # there is one


async def test_status_of_the_runtime_names_the_engine_and_its_counts(docker_cli: DockerCommandLine) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_runtime_status")
        (engine,) = [one for one in answer["engines"] if one["name"] == "docker"]
        assert engine["available"] is True
        assert engine["version"] == docker_cli(["version", "--format", "{{.Server.Version}}"]).stdout.strip()
        assert all(engine[name] for name in ("api_version", "storage_driver", "endpoint_source"))
        assert answer["runtimes"]["docker"] is True
        assert {answer[name]["state"] for name in ("kubernetes", "scanners")} == {"not set up"}
        await house.fails("invalid_argument", "container_runtime_status", engine="dokcer")
