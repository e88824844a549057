"""How do volumes, networks, events and usage answer on every engine?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.models.container import Limits, Mount, PortMapping
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeSpec
from tests.engines.contract import (
    FOREVER,
    LABELS,
    Bench,
    behaviour,
    busy_threads,
    eventually,
    no_thread_left,
    or_elsewhere,
    raises,
)

MIB = 1024 * 1024


# --------------------------------------------------------------------------------------------------------------- volumes


@behaviour("volumes", "volumes")
async def volume_is_made_listed_and_removed(bench: Bench) -> None:
    """A volume is made, listed and removed"""
    name = bench.volume()
    made = await bench.engine.create_volume(VolumeSpec(name, labels={**LABELS, "odd": "ä b=c"}))
    row = next(one for one in await bench.engine.list_volumes() if one.name == name)
    for found in (made, row):
        assert (found.name, found.driver, found.users, found.engine) == (name, "local", (), bench.engine.name)
        assert found.labels["odd"] == "ä b=c"
    await bench.engine.remove_volume(name, force=False)
    assert name not in [one.name for one in await bench.engine.list_volumes()]
    async with raises(errors.NotFound):
        await bench.engine.remove_volume(name, force=False)


@behaviour("volumes", "volumes")
async def volumes_are_listed_by_name(bench: Bench) -> None:
    """Volumes are listed by name"""
    for _ in range(3):
        await bench.engine.create_volume(VolumeSpec(bench.volume(), labels=LABELS))
    names = [one.name for one in await bench.engine.list_volumes()]
    assert names == sorted(names)


@behaviour("volumes", "volumes")
async def volume_keeps_what_is_written(bench: Bench) -> None:
    """A volume keeps what is written, from one container to the next"""
    name = bench.volume()
    await bench.engine.create_volume(VolumeSpec(name, labels=LABELS))
    assert (await bench.shell("echo kept > /data/file", mounts=(Mount("volume", "/data", name),))).exit_code == 0
    read_only = Mount("volume", "/data", name, read_only=True)
    made = await bench.create(
        "sh", "-c", "cat /data/file; echo x 2> /dev/null > /data/no && exit 3; exit 0", mounts=(read_only,)
    )
    said = await bench.attached(made)
    assert (said.stdout, said.exit_code) == (b"kept\n", 0)
    found = (await bench.engine.inspect_container(made)).mounts
    assert [(one.type, one.name, one.target, one.read_only) for one in found] == [("volume", name, "/data", True)]


@behaviour("volumes", "volumes")
async def volume_in_use_is_a_conflict(bench: Bench) -> None:
    """A volume in use is not removed: conflict; its users are told"""
    name, user = bench.volume(), bench.fresh()
    await bench.engine.create_volume(VolumeSpec(name, labels=LABELS))
    made = await bench.create("true", name=user, mounts=(Mount("volume", "/data", name),))
    row = next(one for one in await bench.engine.list_volumes() if one.name == name)
    assert row.users == (user,)
    async with raises(errors.Conflict):
        await bench.engine.remove_volume(name, force=False)
    await bench.engine.remove_container(made, force=False, volumes=True)
    row = next(one for one in await bench.engine.list_volumes() if one.name == name)
    assert row.users == ()
    await bench.engine.remove_volume(name, force=False)


@behaviour("volumes", "volumes")
async def volume_name_that_is_taken_is_a_conflict(bench: Bench) -> None:
    """A taken volume name is a conflict, an impossible one refused"""
    name = bench.volume()
    await bench.engine.create_volume(VolumeSpec(name, labels=LABELS))
    async with raises(errors.Conflict):
        await bench.engine.create_volume(VolumeSpec(name, labels=LABELS))
    for wrong in ("ä", "a b", "../x"):
        async with raises(errors.InvalidArgument):
            await bench.engine.create_volume(VolumeSpec(wrong, labels=LABELS))


@behaviour("volumes", "volumes")
async def volume_that_is_not_there_is_made_by_its_container(bench: Bench) -> None:
    """A volume that is not there is made by its container, with labels"""
    name = bench.volume()
    made = await bench.create("true", mounts=(Mount("volume", "/data", name, labels={**LABELS, "mark": "x"}),))
    row = next(one for one in await bench.engine.list_volumes() if one.name == name)
    assert row.labels["mark"] == "x"
    await bench.engine.remove_container(made, force=True, volumes=True)
    assert name in [one.name for one in await bench.engine.list_volumes()]


# -------------------------------------------------------------------------------------------------------------- networks


@behaviour("networks", "networks")
async def network_is_made_listed_and_removed(bench: Bench) -> None:
    """A network is made, listed and removed"""
    name = bench.network()
    made = await bench.engine.create_network(
        NetworkSpec(name, internal=True, subnet="10.213.7.0/24", labels={**LABELS, "odd": "ä b=c"})
    )
    row = next(one for one in await bench.engine.list_networks() if one.name == name)
    for found in (made, row):
        assert (found.name, found.driver, found.internal, found.users) == (name, "bridge", True, ())
        assert found.subnets == ("10.213.7.0/24",)
        assert found.labels["odd"] == "ä b=c"
        assert found.engine == bench.engine.name
    assert made.id == row.id
    await bench.engine.remove_network(name)
    assert name not in [one.name for one in await bench.engine.list_networks()]
    async with raises(errors.NotFound):
        await bench.engine.remove_network(name)


@behaviour("networks", "networks")
async def networks_are_listed_by_name(bench: Bench) -> None:
    """Networks are listed by name"""
    for _ in range(2):
        await bench.engine.create_network(NetworkSpec(bench.network(), labels=LABELS))
    names = [one.name for one in await bench.engine.list_networks()]
    assert names == sorted(names)


@behaviour("networks", "networks")
async def container_is_connected_and_disconnected(bench: Bench) -> None:
    """A container is connected and disconnected, with its aliases"""
    first, second, user = bench.network(), bench.network(), bench.fresh()
    for name in (first, second):
        await bench.engine.create_network(NetworkSpec(name, labels=LABELS))
    made = await bench.started(name=user, network=first)
    await bench.engine.connect_network(second, made, aliases=("other-name",))
    found = {one.name: one for one in (await bench.engine.container_details(made)).networks}
    assert found.keys() == {first, second}
    assert all(one.ip_address for one in found.values())
    assert "other-name" in found[second].aliases
    users = {one.name: one.users for one in await bench.engine.list_networks()}
    assert users[first] == users[second] == (user,)
    async with raises(errors.Conflict):
        await bench.engine.connect_network(second, made)
    await bench.engine.disconnect_network(second, made, force=False)
    assert [one.name for one in (await bench.engine.container_details(made)).networks] == [first]
    async with raises(errors.Conflict):
        await bench.engine.disconnect_network(second, made, force=False)


@behaviour("networks", "networks")
async def network_in_use_is_a_conflict(bench: Bench) -> None:
    """A network in use is not removed: conflict"""
    name = bench.network()
    await bench.engine.create_network(NetworkSpec(name, labels=LABELS))
    made = await bench.started(network=name)
    async with raises(errors.Conflict):
        await bench.engine.remove_network(name)
    await bench.engine.remove_container(made, force=True, volumes=True)
    await bench.engine.remove_network(name)


@behaviour("networks", "networks")
async def network_name_or_subnet_that_is_taken_is_a_conflict(bench: Bench) -> None:
    """A taken network name or subnet is a conflict"""
    name = bench.network()
    await bench.engine.create_network(NetworkSpec(name, subnet="10.213.8.0/24", labels=LABELS))
    async with raises(errors.Conflict):
        await bench.engine.create_network(NetworkSpec(name, labels=LABELS))
    async with raises(errors.Conflict):
        await bench.engine.create_network(NetworkSpec(bench.network(), subnet="10.213.8.0/25", labels=LABELS))


@behaviour("networks", "networks")
async def impossible_subnet_is_refused(bench: Bench) -> None:
    """An impossible subnet is refused"""
    for subnet in ("not a subnet", "10.213.9.0/99", "300.1.1.0/24"):
        async with raises(errors.InvalidArgument):
            await bench.engine.create_network(NetworkSpec(bench.network(), subnet=subnet, labels=LABELS))


@behaviour("networks", "networks", "volumes")
async def unknown_driver_is_refused(bench: Bench) -> None:
    """An unknown driver is refused, of networks and of volumes"""
    driver = "cxc-no-such-driver"

    async def network() -> None:
        async with raises(errors.InvalidArgument):
            await bench.engine.create_network(NetworkSpec(bench.network(), driver=driver, labels=LABELS))

    async def volume() -> None:
        async with raises(errors.InvalidArgument):
            await bench.engine.create_volume(VolumeSpec(bench.volume(), driver=driver, labels=LABELS))

    # Side by side, since an engine may look for one for a while.
    async with threads.task_group() as tasks:
        tasks.start_soon(network)
        tasks.start_soon(volume)


@behaviour("networks", "networks")
async def missing_network_or_container_is_not_found(bench: Bench) -> None:
    """A missing network or container is not found"""
    name, keeper, nobody = bench.network(), await bench.keeper(), bench.fresh()
    await bench.engine.create_network(NetworkSpec(name, labels=LABELS))
    async with raises(errors.NotFound):
        await bench.engine.connect_network(nobody, keeper)
    async with raises(errors.NotFound):
        await bench.engine.connect_network(name, nobody)
    async with raises(errors.NotFound):
        await bench.engine.disconnect_network(nobody, keeper, force=False)
    async with raises(errors.NotFound):
        await bench.engine.disconnect_network(name, nobody, force=False)
    async with raises(errors.NotFound):
        await bench.started(network=nobody)


@behaviour("networks", "networks", "ports")
async def containers_of_a_network_reach_each_other(bench: Bench) -> None:
    """Containers of one network reach each other"""
    name = bench.network()
    await bench.engine.create_network(NetworkSpec(name, labels=LABELS))
    script, port = "while true; do nc -l -p 8080 -e echo reached; done", PortMapping(8080, host_ip="127.0.0.1")
    server = await bench.started("sh", "-c", script, network=name, ports=(port,))
    address = (await bench.engine.container_details(server)).networks[0].ip_address
    client = await bench.started(network=name)
    await eventually(
        lambda: bench.exec(client, "nc", "-w", "5", address, "8080", stdin=b""), lambda ran: ran.stdout == b"reached\n"
    )


# ---------------------------------------------------------------------------------------------------------------- events


async def happened(bench: Bench, query: EventQuery) -> list[EngineEvent]:
    async with bench.engine.events(query) as events:
        return [event async for event in events]


def _is(actions: list[str], *wanted: str) -> bool:
    """Whether these actions are among those that happened, in this order."""
    left = iter(actions)
    return all(one in left for one in wanted)


@behaviour("events", "events")
async def past_events_are_told_oldest_first(bench: Bench) -> None:
    """Past events are told, oldest first, with names and attributes"""
    name, before = bench.fresh(), datetime.now(UTC) - timedelta(seconds=1)
    made = await bench.create("sh", "-c", "exit 3", name=name, labels={"mark": "ä"})
    await bench.engine.start_container(made)
    await bench.engine.wait_container(made)
    query = EventQuery(since=before, filters={"container": (made,)})
    found = await eventually(lambda: happened(bench, query), lambda events: "die" in [one.action for one in events])
    assert _is([one.action for one in found], "create", "start", "die"), [one.action for one in found]
    assert all((one.type, one.id, one.engine) == ("container", made, bench.engine.name) for one in found)
    assert [one.time for one in found] == sorted(one.time for one in found)
    assert all(before <= one.time for one in found)
    assert found[0].name == name
    assert found[0].attributes["mark"] == "ä"
    assert next(one for one in found if one.action == "die").attributes["exitCode"] == "3"


@behaviour("events", "events")
async def events_are_bounded_and_filtered(bench: Bench) -> None:
    """Events are bounded by time and filtered"""
    before = datetime.now(UTC) - timedelta(seconds=1)
    one, two = await bench.ended("true"), await bench.ended("true")
    everything = EventQuery(since=before, filters={"container": (one, two)})
    found = await eventually(
        lambda: happened(bench, everything), lambda events: [event.action for event in events].count("die") == 2
    )
    assert {event.id for event in found} == {one, two}
    starts = await happened(bench, EventQuery(since=before, filters={"container": (one,), "event": ("start",)}))
    assert [(event.id, event.action) for event in starts] == [(one, "start")]
    later = await happened(bench, EventQuery(since=starts[0].time, filters={"container": (one,)}))
    assert "create" not in [event.action for event in later]
    assert "start" in [event.action for event in later]
    nothing = EventQuery(
        since=before - timedelta(hours=2), until=before - timedelta(hours=1), filters={"container": (one,)}
    )
    assert await happened(bench, nothing) == []


@behaviour("events", "events")
async def events_are_followed_until_a_moment(bench: Bench) -> None:
    """Events are followed as they happen, and can be left"""
    before, made = busy_threads(), await bench.create("true")
    query = EventQuery(
        since=datetime.now(UTC), until=datetime.now(UTC) + timedelta(minutes=5), filters={"container": (made,)}
    )
    seen: list[str] = []
    async with bench.engine.events(query) as events:
        await bench.engine.start_container(made)
        async for event in events:
            seen.append(event.action)
            if event.action == "die":
                break
    assert _is(seen, "start", "die")
    await no_thread_left(before)


@behaviour("events", "events", "volumes")
async def events_of_images_and_volumes_are_told(bench: Bench) -> None:
    """Events of images and volumes are told"""
    before = datetime.now(UTC) - timedelta(seconds=1)
    volume, tag = bench.volume(), bench.tag()
    await bench.engine.create_volume(VolumeSpec(volume, labels=LABELS))
    await bench.engine.tag_image(bench.image, tag)

    async def types() -> set[str]:
        found = await happened(bench, EventQuery(since=before))
        return {one.type for one in found if {one.name, one.id} & {volume, tag}}

    await eventually(types, lambda seen: {"image", "volume"} <= seen)


# ----------------------------------------------------------------------------------------------------------------- usage


@behaviour("usage", "usage", "limits")
async def busy_containers_usage_is_told(bench: Bench) -> None:
    """A busy container's usage is told: CPU, memory, its limit, tasks"""
    limits = Limits(memory_bytes=64 * MIB, cpus=0.5)
    made = await bench.started("sh", "-c", "sleep 100000 & while true; do true; done", limits=limits)

    async def look() -> float | None:
        usage = (await bench.engine.usage([made]))[made]
        assert usage.memory_limit_bytes == 64 * MIB
        assert 0 < usage.memory_bytes <= 64 * MIB
        return usage.cpu_percent if usage.pids >= 2 else None

    percent = await eventually(look, lambda found: found is not None and found > 10)
    assert percent is not None
    assert percent < 150


@behaviour("usage", "usage")
async def usage_without_a_limit_is_told(bench: Bench) -> None:
    """The usage of a busy container without limits is told; its limit is the host's memory"""
    made = await bench.started("sh", "-c", "sleep 100000 & while true; do true; done")

    async def look() -> float | None:
        usage = (await bench.engine.usage([made]))[made]
        assert usage.memory_bytes > 0
        assert usage.memory_limit_bytes is None or usage.memory_limit_bytes > usage.memory_bytes
        return usage.cpu_percent if usage.pids >= 2 else None

    percent = await eventually(look, lambda found: found is not None and found > 10)
    assert percent is not None
    assert percent < 150


@behaviour("usage", "usage")
async def usage_of_what_is_gone_is_absent(bench: Bench) -> None:
    """What has ended or gone is absent from the usage"""
    running, ended, gone = await bench.keeper(), await bench.ended("true"), await bench.create("true")
    await bench.engine.remove_container(gone, force=True, volumes=True)
    found = await bench.engine.usage([running, ended, gone, "0" * 64])
    assert found.keys() == {running}
    assert found[running].pids >= 1
    assert found[running].memory_bytes >= 0
    assert await bench.engine.usage([]) == {}


@behaviour("usage", "usage")
async def usage_is_read_while_others_come_and_go(bench: Bench) -> None:
    """Usage is read while containers come and go"""
    keeper = await bench.keeper()

    async def come_and_go() -> None:
        made = await bench.started(*FOREVER)
        await bench.engine.usage([keeper, made])
        await bench.engine.remove_container(made, force=True, volumes=True)

    async with threads.task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(come_and_go)
        for _ in range(5):
            assert keeper in await bench.engine.usage([keeper])


@behaviour("build", "build")
async def build_cache_is_counted_and_pruned(bench: Bench) -> None:
    """The build cache is counted and pruned, or it is said that there is none"""
    await bench.built(f"FROM {bench.image}\nRUN echo {bench.fresh()} > /made\n")
    with or_elsewhere("a build cache"):
        found = await bench.engine.build_cache()
    assert found.entries >= 0
    assert found.bytes >= found.unused_bytes >= 0
    assert await bench.engine.prune_build_cache(older_than_seconds=10 * 365 * 86_400) >= 0
