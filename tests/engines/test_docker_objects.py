"""Do the Engine API's volumes, networks, events and build cache become our models, old answers and new ones alike?"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker import objects
from codomyrmex_containerization.models.container import Limits, Ulimit
from codomyrmex_containerization.models.event import EventQuery
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeSpec

MOMENT = datetime(2026, 11, 21, 15, 10, 13, 123456, tzinfo=UTC)
VOLUME: dict[str, Any] = {
    "CreatedAt": "2026-11-21T15:10:13Z",
    "Driver": "local",
    "Labels": {"a": "b"},
    "Mountpoint": "/var/lib/docker/volumes/data/_data",
    "Name": "data",
    "Options": None,
    "Scope": "local",
}
NETWORK: dict[str, Any] = {
    "Name": "back",
    "Id": "31d6f5c193c5",
    "Created": "2026-11-21T15:10:13.123456789Z",
    "Driver": "bridge",
    "IPAM": {"Config": [{"Subnet": "10.77.1.0/24", "Gateway": "10.77.1.1"}, {"Subnet": "fd00::/64"}]},
    "Internal": True,
    "Ingress": False,
    "Containers": {},
    "Labels": {},
}


def container(name: str, *, volumes: tuple[str, ...] = (), networks: dict[str, str] | None = None) -> dict[str, Any]:
    """An entry of GET /containers/json."""
    return {
        "Id": f"id-of-{name}",
        "Names": [f"/other/link-to-{name}", f"/{name}"],
        "Mounts": [
            *({"Type": "volume", "Name": one} for one in volumes),
            {"Type": "bind", "Source": "/data"},
        ],
        "NetworkSettings": {"Networks": {name: {"NetworkID": id} for name, id in (networks or {}).items()}},
    }


# ------------------------------------------------------------------------------------------------------------ volumes


def test_volume_row_holds_what_the_engine_says() -> None:
    row = objects.volume_row(VOLUME, engine="docker")
    assert (row.name, row.driver, row.labels, row.options) == ("data", "local", {"a": "b"}, {})
    assert row.created == MOMENT.replace(microsecond=0)
    assert row.mountpoint.endswith("/_data")


def test_volume_of_an_engine_that_says_little_has_no_time_and_no_labels() -> None:
    row = objects.volume_row({"Name": "data"}, engine="docker")
    assert (row.created, row.labels, row.options, row.users) == (None, {}, {}, ())


def test_containers_that_mount_a_volume_are_its_users_each_once() -> None:
    listed = [container("web", volumes=("data", "data")), container("db", volumes=("data", "more"))]
    rows = objects.volume_rows({"Volumes": [{"Name": "more"}, VOLUME, {"Name": "free"}]}, listed, engine="docker")
    assert {row.name: row.users for row in rows} == {"data": ("web", "db"), "free": (), "more": ("db",)}
    assert [row.name for row in rows] == ["data", "free", "more"]


def test_engine_without_volumes_has_an_empty_list() -> None:
    assert objects.volume_rows({"Volumes": None}, [], engine="docker") == []


def test_volume_of_unknown_size_is_absent_from_the_sizes() -> None:
    usage = [
        {"Name": "a", "UsageData": {"Size": 12}},
        {"Name": "b", "UsageData": {"Size": -1}},
        {"Name": "c", "UsageData": None},
        {"Name": "d", "UsageData": {"Size": 0}},
    ]
    assert objects.volume_sizes({"Volumes": usage}) == {"a": 12, "d": 0}


def test_volume_body_says_everything() -> None:
    body = objects.volume_body(VolumeSpec("data", "local", {"type": "tmpfs"}, {"a": "b"}))
    assert body == {"Name": "data", "Driver": "local", "DriverOpts": {"type": "tmpfs"}, "Labels": {"a": "b"}}


# ----------------------------------------------------------------------------------------------------------- networks


def test_network_row_holds_what_the_engine_says() -> None:
    row = objects.network_row(NETWORK, engine="docker")
    assert (row.id, row.name, row.driver, row.internal, row.own) == ("31d6f5c193c5", "back", "bridge", True, False)
    assert row.subnets == ("10.77.1.0/24", "fd00::/64")
    assert row.created == MOMENT


@pytest.mark.parametrize(
    ("raw", "own"),
    [
        ({"Name": "bridge"}, True),
        ({"Name": "host"}, True),
        ({"Name": "none"}, True),
        ({"Name": "podman"}, True),
        ({"Name": "ingress", "Ingress": True}, True),
        ({"Name": "bridges"}, False),
    ],
)
def test_network_that_the_engine_made_for_itself_is_its_own(raw: dict[str, Any], own: bool) -> None:
    assert objects.network_row({"Id": "1", **raw}, engine="docker").own is own


def test_containers_on_a_network_are_its_users_also_when_they_were_never_started() -> None:
    listed = [
        container("web", networks={"back": NETWORK["Id"]}),
        container("new", networks={"back": ""}),
        container("alone", networks={"none": "x"}),
    ]
    (row,) = objects.network_rows([NETWORK], listed, engine="docker")
    assert row.users == ("web", "new")


def test_network_of_the_same_name_has_users_of_its_own() -> None:
    first, second = {**NETWORK, "Id": "1"}, {**NETWORK, "Id": "2"}
    rows = objects.network_rows([first, second], [container("web", networks={"back": "2"})], engine="docker")
    assert [row.users for row in rows] == [(), ("web",)]


def test_network_body_has_a_pool_only_when_one_is_asked_for() -> None:
    assert "IPAM" not in objects.network_body(NetworkSpec("back"))
    body = objects.network_body(NetworkSpec("back", subnet="10.77.1.0/24", gateway="10.77.1.1"))
    assert body["IPAM"] == {"Config": [{"Subnet": "10.77.1.0/24", "Gateway": "10.77.1.1"}]}
    assert body["CheckDuplicate"] is True


@pytest.mark.parametrize("more", [{"subnet": "10.77.1.5/24"}, {"subnet": "x"}, {"gateway": "10.77.1"}])
def test_subnet_or_gateway_that_is_none_is_refused_before_the_engine_sees_it(more: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument):
        objects.network_body(NetworkSpec("back", **more))


def test_connect_body_names_further_names_only_when_there_are_some() -> None:
    assert objects.connect_body("web", ()) == {"Container": "web"}
    assert objects.connect_body("web", ["db"])["EndpointConfig"] == {"Aliases": ["db"]}


# ------------------------------------------------------------------------------------------------------------- limits


def test_update_body_holds_only_what_changes() -> None:
    assert objects.update_body(Limits(cpus=0.5)) == {"NanoCpus": 500_000_000}
    assert objects.update_body(Limits(memory_bytes=100, pids_limit=7)) == {"Memory": 100, "PidsLimit": 7}
    assert objects.update_body(Limits(memory_bytes=100), with_swap=True) == {"Memory": 100, "MemorySwap": 200}


@pytest.mark.parametrize("limits", [Limits(shm_bytes=1), Limits(ulimits=(Ulimit("nofile", 1, 1),))])
def test_limit_that_holds_from_the_create_on_cannot_be_changed(limits: Limits) -> None:
    with pytest.raises(errors.Unsupported, match="cannot be changed"):
        objects.update_body(limits)


# -------------------------------------------------------------------------------------------------------- build cache


def test_build_cache_that_is_in_use_or_shared_is_not_unused() -> None:
    entries = [{"Size": 1, "InUse": False}, {"Size": 20, "InUse": True}, {"Size": 300, "Shared": True}]
    cache = objects.build_cache({"BuildCache": entries})
    assert (cache.entries, cache.bytes, cache.unused_bytes) == (3, 321, 1)
    assert objects.build_cache({"BuildCache": None}).entries == 0


def test_build_cache_is_pruned_by_age_only_when_an_age_is_given() -> None:
    assert objects.build_prune_params(0) == {"all": "true"}
    assert json.loads(objects.build_prune_params(3600)["filters"]) == {"until": ["3600s"]}


# ------------------------------------------------------------------------------------------------------------- events


def test_event_query_without_an_end_ends_now() -> None:
    params = objects.event_params(EventQuery(), now=MOMENT)
    assert params == {"until": f"{int(MOMENT.timestamp())}.123456000"}


def test_event_query_sends_its_bounds_and_filters() -> None:
    query = EventQuery(MOMENT, MOMENT.replace(second=20), {"event": ("die", "oom")})
    params = objects.event_params(query, now=MOMENT)
    assert params["since"].endswith(".123456000")
    assert int(params["until"].partition(".")[0]) - int(params["since"].partition(".")[0]) == 7
    assert json.loads(params["filters"]) == {"event": ["die", "oom"]}


def test_event_holds_its_time_to_the_microsecond() -> None:
    raw = {
        "Type": "container",
        "Action": "die",
        "Actor": {"ID": "0983f267ec2f", "Attributes": {"name": "web", "exitCode": "3"}},
        "time": int(MOMENT.timestamp()),
        "timeNano": int(MOMENT.timestamp()) * 1_000_000_000 + 123_456_789,
    }
    event = objects.event(raw, engine="docker")
    assert event.time == MOMENT
    assert (event.type, event.action, event.id, event.name) == ("container", "die", "0983f267ec2f", "web")
    assert event.attributes["exitCode"] == "3"


def test_event_in_the_old_form_is_read_as_well() -> None:
    event = objects.event({"status": "pull", "id": "busybox", "time": int(MOMENT.timestamp())}, engine="docker")
    assert (event.action, event.id, event.time) == ("pull", "busybox", MOMENT.replace(microsecond=0))


def test_event_of_a_volume_has_the_volumes_name() -> None:
    event = objects.event({"Type": "volume", "Action": "create", "Actor": {"ID": "data"}, "time": 1}, engine="docker")
    assert event.name == "data"
