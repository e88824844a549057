"""Which volume or network is meant, in which order are they shown, and what would be lost with one?"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import storage
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeRow, VolumeSpec
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House


@dataclass(slots=True)
class Store:
    """Volumes, networks and containers that others made, all of names with a beginning of their own."""

    docker: DockerCommandLine
    image: str
    label: str
    name: str
    containers: list[str] = field(default_factory=list)

    def volume(self, name: str) -> str:
        self.docker(["volume", "create", "--label", self.label, f"{self.name}-{name}"])
        return f"{self.name}-{name}"

    def network(self, name: str) -> str:
        return self.docker(["network", "create", "--label", self.label, f"{self.name}-{name}"]).stdout.strip()

    def container(self, *options: str, running: bool = False) -> str:
        name = f"cxc-core-{uuid.uuid4().hex[:8]}"
        how = ["run", "--detach"] if running else ["create"]
        self.docker([*how, "--name", name, "--label", self.label, *options, self.image, "sleep", "3600"])
        self.containers.append(name)
        return name

    def clear(self) -> None:
        if self.containers:
            self.docker(["rm", "--force", "--volumes", *self.containers], check=False)
        for kind in ("volume", "network"):
            found = self.docker([kind, "ls", "--quiet", "--filter", f"name={self.name}"]).stdout.split()
            if found:
                self.docker([kind, "rm", *found])


@pytest.fixture
def store(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Store]:
    made = Store(docker_cli, busybox_image, session_label, f"cxc-core-{uuid.uuid4().hex[:8]}")
    yield made
    made.clear()


@pytest.fixture
async def house(store: Store) -> AsyncIterator[House]:
    async with harness.opened(engine="docker") as opened:
        yield opened


# --------------------------------------------------------------------------------------------------------------- find


async def test_volume_is_found_by_its_whole_name_only(store: Store, house: House) -> None:
    engine = await house.application.engines.pick()
    name = store.volume("data")
    store.volume("data2")
    assert (await storage.find_volume(engine, name)).name == name
    with pytest.raises(errors.NotFound) as missing:
        await storage.find_volume(engine, name[:-1])
    assert name in missing.value.hint


async def test_volume_that_the_engine_named_is_found_by_the_beginning_of_its_name(store: Store, house: House) -> None:
    engine = await house.application.engines.pick()
    user = store.container("--volume", "/data")
    (made,) = [row for row in await engine.list_volumes() if row.users == (user,)]
    assert (await storage.find_volume(engine, made.name[:12])).name == made.name
    assert storage.short(made.name) == made.name[:12]


async def test_network_is_found_by_name_id_and_the_beginning_of_the_id(store: Store, house: House) -> None:
    engine = await house.application.engines.pick()
    id = store.network("back")
    for text in (f"{store.name}-back", id, id[:12]):
        assert (await storage.find_network(engine, text)).id == id
    with pytest.raises(errors.NotFound) as missing:
        await storage.find_network(engine, f"{store.name}-bakc")
    assert f"{store.name}-back" in missing.value.hint


async def test_list_goes_on_behind_a_row_that_is_gone(store: Store, house: House) -> None:
    engine = await house.application.engines.pick()
    names = {store.volume(str(number)) for number in range(5)}
    wanted = storage.ObjectFilter(name=store.name)
    first = await storage.list_volumes(engine, wanted, limit=2, after=None)
    assert first.total == 5
    store.docker(["volume", "rm", first.rows[-1].name])
    second = await storage.list_volumes(engine, wanted, limit=10, after=first.next_key)
    assert second.next_key is None
    assert {row.name for row in (*first.rows, *second.rows)} == names


@pytest.mark.parametrize(("unused", "shown"), [(None, {"a", "b"}), (True, {"a"}), (False, {"b"})])
async def test_list_shows_those_with_or_without_users(
    store: Store, house: House, unused: bool | None, shown: set[str]
) -> None:
    store.volume("a")
    user = store.container("--volume", f"{store.volume('b')}:/data")
    wanted = storage.ObjectFilter(name=store.name, label=store.label, unused=unused)
    engine = await house.application.engines.pick()
    page = await storage.list_volumes(engine, wanted, limit=10, after=None)
    assert {row.name.removeprefix(f"{store.name}-") for row in page.rows} == shown
    assert {row.name: row.users for row in page.rows}.get(f"{store.name}-b", (user,)) == (user,)


def test_volumes_of_one_second_have_keys_of_their_own() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [VolumeRow(name, "local", moment, {}, "docker") for name in ("a" * 40 + "1", "a" * 40 + "2")]
    assert storage.row_key(rows[0]) != storage.row_key(rows[1])


# ------------------------------------------------------------------------------------------------------------- removal


async def test_removal_of_what_containers_use_is_refused_with_their_names(store: Store, house: House) -> None:
    engine = await house.application.engines.pick()
    volume, network = store.volume("data"), store.network("back")
    user = store.container("--volume", f"{volume}:/data", "--network", network)
    with pytest.raises(errors.Conflict, match=user):
        await storage.plan_volume_removal(engine, volume)
    with pytest.raises(errors.Conflict, match=user):
        await storage.plan_network_removal(engine, network)


async def test_networks_of_the_engine_itself_stay(store: Store, house: House) -> None:
    engine = await house.application.engines.pick()
    for name in ("bridge", "host", "none"):
        with pytest.raises(errors.Conflict, match="own networks"):
            await storage.plan_network_removal(engine, name)


async def test_volume_that_others_made_anew_under_the_name_of_an_own_one_is_theirs(house: House, store: Store) -> None:
    engine = await house.application.engines.pick()
    row = await engine.create_volume(VolumeSpec(f"{store.name}-data"))
    before = await storage.plan_volume_removal(engine, row.name)
    assert engine.owns_volume(before.row)
    store.docker(["volume", "rm", row.name])
    store.docker(["volume", "create", row.name])
    after = await storage.plan_volume_removal(engine, row.name)
    assert not engine.owns_volume(after.row)


# ------------------------------------------------------------------------------------------------------------- contract


async def test_name_that_is_taken_is_a_conflict(house: House, store: Store) -> None:
    engine = await house.application.engines.pick()
    volume = store.volume("data")
    store.network("back")
    with pytest.raises(errors.Conflict, match=volume):
        await engine.create_volume(VolumeSpec(volume))
    with pytest.raises(errors.Conflict):
        await engine.create_network(NetworkSpec(f"{store.name}-back"))


async def test_container_is_connected_under_further_names_and_disconnected(house: House, store: Store) -> None:
    engine = await house.application.engines.pick()
    network = store.network("back")
    user = store.container(running=True)
    await engine.connect_network(network, user, aliases=["db"])
    details = await engine.container_details(user)
    (attached,) = [one for one in details.networks if one.name == f"{store.name}-back"]
    assert "db" in attached.aliases
    with pytest.raises(errors.Conflict):
        await engine.connect_network(network, user)
    await engine.disconnect_network(network, user, force=False)
    with pytest.raises(errors.Conflict):
        await engine.disconnect_network(network, user, force=False)
    with pytest.raises(errors.NotFound):
        await engine.connect_network(f"{network}x", user)
    with pytest.raises(errors.NotFound):
        await engine.connect_network(network, f"{user}x")
