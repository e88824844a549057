"""Do calls reach the right one of several engines, and do listings show all of them? (SPEC B74, SPEC B75, SPEC B76)"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.podman import PodmanService

BOTH = ("docker", "podman")


@pytest.fixture
async def house(
    docker_cli: DockerCommandLine, busybox_image: str, podman_service: PodmanService, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[harness.House]:
    """An application that sees Docker and Podman; Docker is the default one."""
    monkeypatch.setenv("CONTAINER_HOST", podman_service.url)
    async with harness.opened(engines=BOTH) as house:
        yield house


@pytest.fixture
def name() -> str:
    return f"cxc-two-{uuid.uuid4().hex[:8]}"


async def run(house: harness.House, name: str, engine: str) -> str:
    image = "localhost/cxc-test-busybox:1"
    command = ["sh", "-c", "echo here; exec sleep 1000"]
    made = await house.ok("container_run", image=image, name=name, command=command, detach=True, engine=engine)
    return str(made["id"])


async def test_list_without_an_engine_shows_the_containers_of_both(house: harness.House, name: str) -> None:
    ids = {engine: await run(house, f"{name}-{engine}", engine) for engine in BOTH}
    rows = (await house.ok("container_list", name=name))["containers"]
    assert {row["engine"]: row["id"] for row in rows} == ids
    assert all(row["memory_bytes"] > 0 and row["pids"] >= 1 for row in rows), rows
    for engine in BOTH:
        (row,) = (await house.ok("container_list", name=name, engine=engine))["containers"]
        assert row["engine"] == engine


async def test_pages_of_two_engines_hold_every_container_once(house: harness.House, name: str) -> None:
    for number in range(2):
        for engine in BOTH:
            await run(house, f"{name}-{engine}-{number}", engine)
    seen, cursor = list[str](), None
    while True:
        page = await house.ok("container_list", name=name, limit=1, usage=False, cursor=cursor)
        seen += [row["name"] for row in page["containers"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert sorted(seen) == sorted(f"{name}-{engine}-{number}" for engine in BOTH for number in range(2))


@pytest.mark.parametrize("engine", BOTH)
async def test_container_named_without_an_engine_is_found_in_the_one_that_has_it(
    house: harness.House, name: str, engine: str
) -> None:
    await run(house, name, engine)
    assert (await house.ok("container_inspect", container=name))["engine"] == engine
    assert (await house.ok("container_exec", container=name, command="echo hello"))["stdout"] == "hello\n"
    assert [line["text"] for line in (await house.ok("container_logs", container=name))["lines"]] == ["here"]
    stopped = await house.ok("container_control", container=name, action="kill")
    assert stopped["after"] == "exited"
    await house.ok("container_remove", container=name)
    await house.fails("not_found", "container_inspect", container=name)


async def test_name_that_two_engines_know_is_ambiguous_until_one_is_named(house: harness.House, name: str) -> None:
    for engine in BOTH:
        await run(house, name, engine)
    outcome = await house.fails("ambiguous", "container_inspect", container=name)
    assert "docker and podman" in outcome.text
    assert "engine='docker'" in outcome.error_data["hint"]
    for engine in BOTH:
        assert (await house.ok("container_inspect", container=name, engine=engine))["engine"] == engine


async def test_call_that_changes_something_goes_to_the_default_engine(house: harness.House, name: str) -> None:
    made = await house.ok(
        "container_run", image="localhost/cxc-test-busybox:1", name=name, command="sleep 1000", detach=True
    )
    assert (await house.ok("container_inspect", container=made["id"]))["engine"] == "docker"


async def test_image_of_another_engine_is_not_found_but_named(house: harness.House, name: str) -> None:
    reference = f"localhost/{name}:1"
    text = "FROM scratch\nLABEL a=b\n"
    await house.ok("container_build", image_name=reference, dockerfile_text=text, engine="podman")
    try:
        (row,) = (await house.ok("image_list", name=name))["images"]
        assert row["engine"] == "podman"
        outcome = await house.fails("not_found", "image_inspect", image=reference)
        assert outcome.error_data["hint"] == "pass engine='podman'"
        assert (await house.ok("image_inspect", image=reference, engine="podman"))["labels"]["a"] == "b"
    finally:
        await house.ok("image_remove", image=reference, engine="podman")


async def test_status_shows_both_and_marks_the_default(house: harness.House) -> None:
    docker, podman = (await house.ok("container_runtime_status"))["engines"]
    assert (docker["name"], docker["available"], docker["default"]) == ("docker", True, True)
    assert (podman["name"], podman["available"], podman.get("default", False)) == ("podman", True, False)
    assert podman["endpoint_source"] == "CONTAINER_HOST"


async def test_podman_behind_docker_host_is_listed_once(
    podman_service: PodmanService, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("CONTAINER_HOST", "DOCKER_HOST"):
        monkeypatch.setenv(variable, podman_service.url)
    async with harness.opened(engines=BOTH, engine="podman") as house:
        await run(house, name, "podman")
        (row,) = (await house.ok("container_list", name=name))["containers"]
        assert row["engine"] == "podman"
        assert (await house.ok("container_inspect", container=name))["engine"] == "podman"
        await house.ok("container_remove", container=name, force=True)
