"""What do the tools for volumes, networks, pruning and events show and change, and what do they ask before?

SPEC B85.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.dispatch import application
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House

STORAGE = """
    container_commit container_create container_diff container_export container_import container_rename container_top container_update
    engine_prune image_import image_load image_save
    network_connect network_create network_disconnect network_list network_remove
    volume_create volume_list volume_remove
""".split()


@dataclass(slots=True)
class Depot:
    """Names of their own for what is made, and what others made under them."""

    docker: DockerCommandLine
    image: str
    label: str
    name: str
    containers: list[str] = field(default_factory=list)

    def container(self, *options: str, start: bool = True) -> str:
        name = f"cxc-tools-{uuid.uuid4().hex[:8]}"
        how = ["run", "--detach"] if start else ["create"]
        self.docker([*how, "--name", name, "--label", self.label, *options, self.image, "sleep", "3600"])
        self.containers.append(name)
        return name

    def others(self, kind: str, *options: str) -> str:
        self.docker([kind, "create", "--label", self.label, *options, self.name])
        return self.name

    def is_there(self, kind: str) -> bool:
        return self.docker([kind, "inspect", self.name], check=False).returncode == 0

    def clear(self) -> None:
        if self.containers:
            self.docker(["rm", "--force", *self.containers], check=False)
        for kind in ("volume", "network"):
            found = self.docker([kind, "ls", "--quiet", "--filter", f"name={self.name}"]).stdout.split()
            if found:
                self.docker([kind, "rm", *found])


@pytest.fixture
def depot(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Depot]:
    made = Depot(docker_cli, busybox_image, session_label, f"cxc-tools-{uuid.uuid4().hex[:8]}")
    yield made
    made.clear()


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The process stands in a folder of the test's own, which is therefore an allowed path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def house(depot: Depot) -> AsyncIterator[House]:
    async with harness.opened(engine="docker", toolsets=["all"]) as opened:
        yield opened


async def confirmed(house: House, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool that asks, and once more with the token that it gives."""
    outcome = await house.fails("confirmation_required", tool, arguments)
    return await house.ok(tool, arguments, confirm_token=outcome.error_data["confirm_token"])


def test_the_toolset_is_nineteen_tools_none_of_them_offered_by_default() -> None:
    tools = application.tools()
    assert sorted(name for name, spec in tools.items() if spec.toolset == "storage") == STORAGE
    assert tools["container_events"].toolset == "monitoring"
    assert not [name for name in (*STORAGE, "container_events") if tools[name].essential]


# ------------------------------------------------------------------------------------------------------------ volumes


async def test_volume_is_made_mounted_listed_and_removed_without_a_question(house: House, depot: Depot) -> None:
    made = await house.ok("volume_create", {"name": depot.name, "labels": {"made": "here"}})
    assert made["driver"] == "local"
    ran = await house.ok(
        "container_run",
        image=depot.image,
        command="sh -c 'head -c 5000 /dev/zero > /data/file'",
        mounts=[f"{depot.name}:/data"],
        keep=True,
    )
    (row,) = (await house.ok("volume_list", {"name": depot.name, "measure": True}))["volumes"]
    assert (row["used_by"], row["size_bytes"], row["own"]) == ([ran["name"]], 5000, True)
    assert row["labels"] == {"made": "here"}
    await house.fails("conflict", "volume_remove", volume=depot.name)
    await house.ok("container_remove", container=ran["name"])
    removed = await house.ok("volume_remove", volume=depot.name)
    assert removed["name"] == depot.name
    assert not depot.is_there("volume")


async def test_volume_of_others_is_removed_only_after_its_loss_was_confirmed(house: House, depot: Depot) -> None:
    depot.others("volume")
    outcome = await house.fails("confirmation_required", "volume_remove", volume=depot.name)
    (lost,) = outcome.error_data["lost"]
    assert depot.name in lost
    assert "all that is in it" in lost
    assert depot.is_there("volume")
    await confirmed(house, "volume_remove", {"volume": depot.name})
    assert not depot.is_there("volume")


async def test_token_for_a_volume_is_worth_nothing_once_the_volume_was_made_anew(house: House, depot: Depot) -> None:
    depot.others("volume")
    outcome = await house.fails("confirmation_required", "volume_remove", volume=depot.name)
    depot.docker(["volume", "rm", depot.name])
    depot.others("volume", "--opt", "type=tmpfs", "--opt", "device=tmpfs")
    token = outcome.error_data["confirm_token"]
    await house.fails("confirmation_required", "volume_remove", volume=depot.name, confirm_token=token)
    assert depot.is_there("volume")


async def test_volume_that_binds_a_folder_outside_is_refused(house: House, depot: Depot) -> None:
    options = {"type": "none", "o": "bind", "device": "/etc"}
    outcome = await house.fails("refused", "volume_create", {"name": depot.name, "options": options})
    assert "policy.allowed_paths" in outcome.text


async def test_volumes_go_on_from_page_to_page(house: House, depot: Depot) -> None:
    for number in range(3):
        await house.ok("volume_create", {"name": f"{depot.name}-{number}"})
    given: dict[str, Any] = {"name": depot.name, "limit": 2}
    first = await house.ok("volume_list", given)
    second = await house.ok("volume_list", given, cursor=first["next_cursor"])
    names = [row["name"] for page in (first, second) for row in page["volumes"]]
    assert sorted(names) == [f"{depot.name}-{number}" for number in range(3)]
    assert first["total"] == 3
    await house.fails("cursor_mismatch", "volume_list", {"name": "x"}, cursor=first["next_cursor"])


# ----------------------------------------------------------------------------------------------------------- networks


async def test_containers_on_a_network_reach_one_another_by_name(house: House, depot: Depot) -> None:
    made = await house.ok("network_create", {"name": depot.name})
    assert made["subnets"]
    first = depot.container()
    joined = await house.ok("network_connect", network=depot.name, container=first, aliases=["db"])
    assert set(joined["networks"]) == {"bridge", depot.name}
    ran = await house.ok(
        "container_run",
        image=depot.image,
        command="ping -c 1 -w 5 db",
        network=depot.name,
    )
    assert ran["exit_code"] == 0, ran
    (row,) = (await house.ok("network_list", {"name": depot.name}))["networks"]
    assert row["used_by"] == [first]
    await house.fails("conflict", "network_remove", network=depot.name)
    left = await house.ok("network_disconnect", network=made["id"], container=first)
    assert set(left["networks"]) == {"bridge"}
    await house.ok("network_remove", network=made["id"])
    assert not depot.is_there("network")


async def test_network_of_others_is_removed_only_after_its_loss_was_confirmed(house: House, depot: Depot) -> None:
    depot.others("network")
    outcome = await house.fails("confirmation_required", "network_remove", network=depot.name)
    assert depot.name in outcome.error_data["lost"][0]
    await confirmed(house, "network_remove", {"network": depot.name})
    assert not depot.is_there("network")


async def test_networks_of_a_privileged_container_of_others_are_not_touched(house: House, depot: Depot) -> None:
    depot.others("network")
    strong = depot.container("--privileged", start=False)
    for tool in ("network_connect", "network_disconnect"):
        outcome = await house.fails("refused", tool, network=depot.name, container=strong)
        assert "policy.allow_privileged" in outcome.text


async def test_networks_of_a_container_of_others_are_changed_after_a_question_where_the_settings_ask(
    depot: Depot,
) -> None:
    depot.others("network")
    stranger = depot.container()
    async with harness.opened(engine="docker", toolsets=["all"], policy__foreign="ask") as house:
        given = {"network": depot.name, "container": stranger}
        joined = await confirmed(house, "network_connect", given)
        assert depot.name in joined["networks"]
        own = await house.ok("container_run", image=depot.image, command="sleep 60", detach=True)
        await house.ok("network_connect", network=depot.name, container=own["name"])


# -------------------------------------------------------------------------------------------------------------- prune


async def test_prune_shows_what_it_would_remove_and_removes_nothing(house: House, depot: Depot) -> None:
    depot.others("volume")
    found = await house.ok("engine_prune", kind="volumes")
    assert found["dry_run"] is True
    assert depot.name in {row["name"] for row in found["objects"]}
    assert depot.is_there("volume")


async def test_prune_of_what_others_made_names_it_in_its_question_and_does_nothing_without_an_answer(
    house: House, depot: Depot
) -> None:
    depot.others("volume")
    outcome = await house.fails("confirmation_required", "engine_prune", kind="volumes", dry_run=False)
    lost = outcome.error_data["lost"]
    assert any(depot.name in one for one in lost) or "more, which dry_run=true shows" in lost[-1]
    assert depot.is_there("volume")


async def test_prune_on_a_read_only_server_shows_and_does_not_remove(depot: Depot) -> None:
    depot.others("volume")
    async with harness.opened(engine="docker", toolsets=["all"], read_only=True) as house:
        await house.ok("engine_prune", kind="volumes")
        await house.fails("refused", "engine_prune", kind="volumes", dry_run=False)
    assert depot.is_there("volume")


async def test_prune_of_what_is_older_than_the_world_finds_nothing_and_asks_nothing(house: House) -> None:
    for kind in ("containers", "images", "volumes", "networks"):
        done = await house.ok("engine_prune", kind=kind, older_than="90000d", dry_run=False)
        assert (done["total"], done["objects"]) == (0, [])


@pytest.mark.parametrize("older_than", ["yesterday", "-1h", "1w"])
async def test_prune_refuses_an_age_that_is_none(house: House, older_than: str) -> None:
    await house.fails("invalid_argument", "engine_prune", kind="volumes", older_than=older_than)


# ------------------------------------------------------------------------------------------------------------- events


async def test_events_tell_how_a_container_ended(house: House, depot: Depot) -> None:
    ran = await house.ok("container_run", image=depot.image, command="sh -c 'exit 4'", keep=True)
    found = await house.ok("container_events", filters={"container": ran["name"], "event": ["die", "oom"]})
    (died,) = found["events"]
    assert (died["type"], died["action"], died["name"], died["exit_code"]) == ("container", "die", ran["name"], 4)
    assert died["image"] == depot.image


async def test_events_of_a_network_name_the_container(house: House, depot: Depot) -> None:
    depot.others("network")
    user = depot.container()
    await house.ok("network_connect", network=depot.name, container=user)
    found = await house.ok("container_events", filters={"network": depot.name, "event": "connect"})
    (row,) = found["events"]
    assert row["name"] == depot.name
    assert row["details"]["container"] in depot.docker(["inspect", "--format", "{{.Id}}", user]).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        {"until": "5m", "follow_seconds": 1},
        {"since": "1m", "until": "5m"},
        {"until": "2999-01-01T00:00:00Z"},
        {"since": "2999-01-01T00:00:00Z"},
        {"since": "soon"},
        {"filters": {"colour": "red"}},
        {"follow_seconds": 301},
    ],
)
async def test_events_of_no_time_or_kind_are_refused(house: House, arguments: dict[str, Any]) -> None:
    await house.fails("invalid_argument", "container_events", arguments)


async def test_events_that_do_not_fit_are_cut_at_their_beginning_with_a_note(depot: Depot) -> None:
    for _ in range(20):
        depot.docker(["tag", depot.image, depot.image])
    async with harness.opened(engine="docker", toolsets=["all"], answer_characters=1000) as house:
        outcome = await house.call("container_events", filters={"type": "image", "event": "tag"})
    assert outcome.structured is not None
    assert len(json.dumps(outcome.structured)) < 1200
    assert "until=" in outcome.structured["truncated"]
    assert outcome.structured["events"]
