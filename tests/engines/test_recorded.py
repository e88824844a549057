"""Do the published answers of engines that are not run here become our models, newer fields and all?

Each file in `recorded` is one answer, with the document and the version that it was made from.
"""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker import objects, shapes
from codomyrmex_containerization.engines.podman import libpod
from codomyrmex_containerization.models.container import HealthStatus, Limits, PortMapping, Ulimit
from codomyrmex_containerization.models.engine import Endpoint
from codomyrmex_containerization.models.storage import BuildCache
from codomyrmex_containerization.models.usage import Counters, Traffic, Usage

FOLDER = Path(__file__).parent / "recorded"
FILES = sorted(FOLDER.glob("*.json"))
HERE = Endpoint("here", "unix:///run/engine.sock", "tests")
FIRST = f"{1:064x}"
TRAFFIC = Traffic(5338, 648, 7593984, 100)


def recorded(name: str) -> Any:
    """The answer in one of the files."""
    return json.loads((FOLDER / f"{name}.json").read_text())["answer"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_answer_names_its_document_and_version(path: Path) -> None:
    made = json.loads(path.read_text())
    assert set(made) == {"source", "answer"}
    assert set(made["source"]) == {"request", "document", "urls", "version", "values"}
    assert all(made["source"].values())
    assert all(url.startswith("https://") for url in made["source"]["urls"])


# --------------------------------------------------------------------------------------- Docker Desktop, Engine 27 to 29


def test_docker_desktop_is_described() -> None:
    info = shapes.engine_info(
        recorded("docker-desktop-info"),
        engine="docker",
        product="docker",
        api_version="1.45",
        endpoint=HERE,
        builder="buildkit",
    )
    assert (info.os, info.version, info.cgroup_version) == ("Docker Desktop", "29.0.0", 2)
    assert (info.storage_driver, info.architecture, info.rootless) == ("overlayfs", "aarch64", False)
    assert (info.containers, info.containers_running, info.images) == (14, 3, 508)
    assert info.identity.endswith(" docker-desktop")


def test_list_with_health_of_its_own_says_the_health() -> None:
    running, ended = (shapes.container_row(one, engine="docker") for one in recorded("docker-containers"))
    assert (running.name, running.status, running.health) == ("funny_chatelet", "running", "healthy")
    assert running.ports == (PortMapping(8080, "tcp", "0.0.0.0", 80),)
    assert running.created == datetime(2025, 2, 17, 16, 51, 36, tzinfo=UTC)
    assert (ended.name, ended.status, ended.health) == ("boring_wozniak", "exited", "none")


def test_list_without_health_of_its_own_says_it_in_its_words() -> None:
    raw = {key: value for key, value in recorded("docker-containers")[0].items() if key != "Health"}
    for words, health in (("(unhealthy)", "unhealthy"), ("(health: starting)", "starting"), ("", "none")):
        assert shapes.container_row(raw | {"Status": f"Up 4 days {words}"}, engine="docker").health == health


def test_inspected_container_without_old_network_fields_is_described() -> None:
    details = shapes.container_details(recorded("docker-container"), engine="docker")
    state = details.state
    assert (state.name, state.status, state.health, state.exit_code) == ("funny_chatelet", "running", "unhealthy", None)
    assert (details.health_failures, details.health_output) == (3, "connection refused")
    assert (details.limits.memory_bytes, details.limits.cpus, details.limits.pids_limit) == (67108864, 0.5, None)
    assert [(one.name, one.ip_address, one.aliases) for one in details.networks] == [
        ("mynetwork", "172.17.0.4", ("server_x",))
    ]
    assert state.ports == (PortMapping(443, "tcp", "127.0.0.1", 4443), PortMapping(2377, "tcp", None, None))
    assert (state.mounts[0].name, state.mounts[0].read_only) == ("myvolume", False)
    assert (details.restart.name, details.restart.maximum_retry_count) == ("on-failure", 3)


def test_memory_on_cgroup_v2_is_without_the_page_cache_that_can_go() -> None:
    # usage - inactive_file, as the document says; one look holds no CPU share.
    assert shapes.usage(recorded("docker-stats-one-shot")) == Usage(None, 10178560 - 2510848, 8217579520, 5, TRAFFIC)


def test_cpu_share_is_that_of_the_documents_formula() -> None:
    used = shapes.usage(recorded("docker-stats"))
    assert used is not None
    assert used.cpu_percent == pytest.approx(100 * 500_000_000 / 5_000_000_000 * 5)


def test_cpus_are_counted_where_their_number_is_not_told() -> None:
    raw = copy.deepcopy(recorded("docker-stats"))
    del raw["cpu_stats"]["online_cpus"]
    raw["cpu_stats"]["cpu_usage"]["percpu_usage"] = [1, 2, 3, 4]
    used = shapes.usage(raw)
    assert used is not None
    assert used.cpu_percent == pytest.approx(40)


def test_more_cache_than_memory_is_not_taken_off() -> None:
    raw = copy.deepcopy(recorded("docker-stats"))
    raw["memory_stats"]["stats"]["inactive_file"] = raw["memory_stats"]["usage"] + 1
    used = shapes.usage(raw)
    assert used is not None
    assert used.memory_bytes == 10178560


def test_images_of_several_platforms_are_one_row_each() -> None:
    tagged, bare = (shapes.image_row(one, engine="docker") for one in recorded("docker-images"))
    assert tagged.tags == ("example:1.0", "example:latest")
    assert (tagged.size_bytes, tagged.labels) == (172064416, {})
    assert len(tagged.digests) == 1
    assert (bare.tags, bare.digests, bare.labels) == ((), (), {"a": "b"})


@pytest.mark.parametrize("name", ["docker-df-transition", "docker-df-verbose"])
def test_disk_usage_is_read_from_the_old_fields_and_from_the_new(name: str) -> None:
    raw = recorded(name)
    assert objects.volume_sizes(raw) == {"my-volume": 10920104}
    assert objects.build_cache(raw) == BuildCache(entries=2, bytes=51, unused_bytes=51)


def test_disk_usage_in_brief_is_told_without_its_entries() -> None:
    raw = recorded("docker-df-brief")
    assert objects.build_cache(raw) == BuildCache(entries=4, bytes=98765432, unused_bytes=12345678)
    assert objects.volume_sizes(raw) == {}


def test_event_without_the_old_fields_is_told() -> None:
    event = objects.event(recorded("docker-event"), engine="docker")
    assert (event.type, event.action, event.name) == ("container", "create", "my-container")
    assert event.id.startswith("ede54ee1afda")
    assert event.time == datetime(2021, 8, 21, 19, 38, 15, 515050, tzinfo=UTC)


def test_network_with_newer_fields_is_described() -> None:
    row = objects.network_row(recorded("docker-network"), engine="docker")
    assert (row.name, row.driver, row.subnets, row.own) == ("bridge", "bridge", ("172.17.0.0/16",), True)


def test_ping_and_version_agree_on_the_api() -> None:
    version = recorded("docker-version")
    assert recorded("docker-ping")["headers"]["Api-Version"] == version["ApiVersion"]
    assert version["Components"][0]["Details"]["ApiVersion"] == version["ApiVersion"]


# --------------------------------------------------------------------------------------------------------- Podman 5


def test_podman_5_is_described() -> None:
    raw = recorded("podman-info")
    info = libpod.engine_info(raw, engine="podman", endpoint=HERE, api_version="1.41")
    assert (info.version, info.os, info.architecture, info.product) == ("5.4.0", "fedora 41", "amd64", "podman")
    assert (info.cgroup_version, info.rootless, info.storage_driver) == (2, True, "overlay")
    assert (info.containers, info.containers_running, info.images) == (4, 1, 7)
    assert list(libpod.warnings(raw)) == ["containers are run by crun, networks are made by netavark"]


def test_each_of_podmans_states_is_one_of_ours() -> None:
    rows = [libpod.container_row(one, engine="podman") for one in recorded("podman-containers")]
    assert [(row.name, row.status, row.health) for row in rows] == [
        ("c-running", "running", "healthy"),
        ("c-stopped", "exited", "none"),
        ("c-stopping", "running", "unhealthy"),
        ("c-created", "created", "none"),
        ("c-initialized", "created", "starting"),
        ("c-exited", "exited", "starting"),
        ("c-paused", "paused", "none"),
        ("c-removing", "removing", "none"),
    ]
    assert {row.image for row in rows} == {"alpine:latest"}
    assert rows[0].created == datetime(2025, 2, 17, 16, 43, 39, 640013, tzinfo=UTC)
    assert [(one.container_port, one.protocol, one.host_port) for one in rows[0].ports] == [
        (80, "tcp", 8080),
        (80, "udp", 8080),
        (81, "tcp", 8081),
        (81, "udp", 8081),
    ]


def test_podman_5_container_is_described() -> None:
    details = libpod.container_details(shapes.container_details(recorded("podman-container"), engine="podman"))
    assert (details.state.status, details.state.health, details.state.image) == ("running", "healthy", "alpine:latest")
    assert (details.health_output, details.restart.name) == ("ok", "no")
    assert details.limits == Limits(pids_limit=2048, ulimits=(Ulimit("nofile", 1024, 2048),))
    assert details.healthcheck is not None
    assert details.healthcheck.interval_seconds == 30


def test_podman_5_counters_are_read_and_what_has_ended_is_left_out() -> None:
    found = libpod.counters(recorded("podman-stats")["Stats"], at_seconds=7, version=(5, 7))
    assert found == {FIRST: Counters(7, 2.5, 7667712, 8217579520, 5, TRAFFIC)}


def test_podman_5_event_is_called_as_dockers_is() -> None:
    event = libpod.event(objects.event(recorded("podman-event"), engine="podman"))
    assert (event.type, event.action, event.name, event.id) == ("container", "die", "web", FIRST)
    assert event.attributes["exitCode"] == "3"
    assert event.time == datetime(2025, 2, 17, 16, 43, 40, 515050, tzinfo=UTC)


def test_podman_5_image_is_named_as_it_was_given() -> None:
    row = libpod.image_row(shapes.image_row(recorded("podman-images")[0], engine="podman"))
    assert (row.tags, row.size_bytes) == (("alpine:latest",), 8100000)


# ------------------------------------------------------------------------------------------------------ what nobody knows


@pytest.mark.parametrize("state", ["unknown", "bad state", "storage", "hibernating", ""])
def test_state_that_is_not_known_is_an_error_that_names_it(state: str) -> None:
    listed = recorded("docker-containers")[0] | {"State": state}
    inspected = recorded("docker-container")
    inspected["State"]["Status"] = state
    with pytest.raises(errors.EngineUnavailable, match=f"docker .* {state!r}"):
        shapes.container_row(listed, engine="docker")
    with pytest.raises(errors.EngineUnavailable, match=f"docker .* {state!r}"):
        shapes.container_state(inspected, engine="docker")
    with pytest.raises(errors.EngineUnavailable, match=f"podman .* {state!r}"):
        libpod.container_row(recorded("podman-containers")[0] | {"State": state}, engine="podman")


def test_health_that_is_not_known_is_an_error_that_names_it() -> None:
    listed = recorded("docker-containers")[0] | {"Health": {"Status": "poorly"}}
    inspected = recorded("docker-container")
    inspected["State"]["Health"]["Status"] = "poorly"
    with pytest.raises(errors.EngineUnavailable, match=r"docker .* 'poorly'"):
        shapes.container_row(listed, engine="docker")
    with pytest.raises(errors.EngineUnavailable, match=r"docker .* 'poorly'"):
        shapes.container_state(inspected, engine="docker")
    with pytest.raises(errors.EngineUnavailable, match=r"podman .* 'poorly'"):
        libpod.container_row(recorded("podman-containers")[0] | {"Status": "poorly"}, engine="podman")


@pytest.mark.parametrize(("said", "health"), [("stopped", "none"), ("reset", "starting"), ("", "none")])
def test_podmans_further_words_for_health_are_understood(said: str, health: HealthStatus) -> None:
    row = libpod.container_row(recorded("podman-containers")[0] | {"Status": said}, engine="podman")
    assert row.health == health
