"""Is Podman's service started when it is needed, once, and with what this machine needs? (SPEC B80)"""

from __future__ import annotations

import os
import signal
import socket
import struct
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines.podman import service, settings
from codomyrmex_containerization.engines.podman.engine import PodmanEngine
from tests.podman import PodmanService

# The library leaves a socket to the collector when nobody takes its connection.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FREE = settings.Facts(
    rootless=False,
    may_raise_limits=True,
    most_files=1_000,
    most_processes=500,
    has_systemd=True,
    has_journal=True,
    has_hybrid_cgroups=False,
    has_runc=True,
    has_tun=True,
)


def process_of(path: Path) -> int:
    """The process that listens on a socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def end(path: Path) -> None:
    """Kill the service that listens on a socket and wait until nobody does."""
    descriptor = os.pidfd_open(process_of(path))
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOWAIT)
    finally:
        os.close(descriptor)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "s"
    yield folder
    with suppress(OSError):
        end(service.socket_path(folder))


async def test_service_is_started_once_and_found_afterwards(podman_service: PodmanService, folder: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: service.ensure(folder, podman_service.plain_environment), range(6)))
    assert sorted(one.started for one in found) == [False] * 5 + [True]
    assert {one.socket for one in found} == {service.socket_path(folder)}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not service.ensure(folder, podman_service.plain_environment).started


async def test_container_runs_through_a_service_that_was_started(podman_service: PodmanService, folder: Path) -> None:
    found = service.ensure(folder, podman_service.plain_environment)
    engine = PodmanEngine(found.endpoint, timeout_seconds=60, notes=found.notes)
    try:
        info = await engine.info()
        assert info.product == "podman"
        assert set(found.notes) <= set(info.notes)
        assert podman_service.image in await engine.list_image_names()
    finally:
        await engine.aclose()


async def test_service_that_was_killed_is_started_again_by_the_next_call(
    podman_service: PodmanService, folder: Path
) -> None:
    environ = podman_service.plain_environment

    async def revive() -> None:
        await threads.run(lambda: service.ensure(folder, environ), deadline_seconds=60, what="starting the service")

    found = service.ensure(folder, environ)
    engine = PodmanEngine(found.endpoint, timeout_seconds=60, revive=revive)
    try:
        before = await engine.list_image_names()
        first = process_of(found.socket)
        end(found.socket)
        assert await engine.list_image_names() == before
        assert process_of(found.socket) != first
    finally:
        await engine.aclose()


async def test_service_that_was_killed_is_an_error_for_one_who_does_not_revive_it(
    podman_service: PodmanService, folder: Path
) -> None:
    found = service.ensure(folder, podman_service.plain_environment)
    engine = PodmanEngine(found.endpoint, timeout_seconds=60)
    await engine.list_image_names()
    end(found.socket)
    with pytest.raises(errors.EngineUnavailable):
        await engine.list_image_names()
    await engine.aclose()


def test_folder_that_others_may_enter_is_refused(podman_service: PodmanService, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(errors.Refused):
        service.ensure(tmp_path / "open", podman_service.plain_environment)


def test_path_that_no_socket_can_have_is_said_to_be_too_long(podman_service: PodmanService, tmp_path: Path) -> None:
    with pytest.raises(errors.EngineUnavailable, match="too long"):
        service.ensure(tmp_path / ("x" * 120), podman_service.plain_environment)


def test_folder_that_cannot_be_made_is_an_error_of_ours(podman_service: PodmanService, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.EngineUnavailable, match="cannot be kept in"):
        service.ensure(tmp_path / "file" / "state", podman_service.plain_environment)


def test_environment_has_what_podman_needs_even_when_it_was_empty() -> None:
    made = service.environment({"SECRET_TOKEN": "x"})
    assert made["HOME"]
    assert "/usr/bin" in made["PATH"].split(":")
    assert "SECRET_TOKEN" not in made


def test_settings_are_none_where_nothing_is_restricted() -> None:
    assert settings.needed(FREE, {}) == settings.Settings({}, ())


def test_limits_are_those_that_may_be_set_and_smaller_ones_stay() -> None:
    facts = replace(FREE, may_raise_limits=False)
    configured = {"containers": {"default_ulimits": ["core=0:0", "nofile=64:128", "nproc=9999:9999"]}}
    found = settings.needed(facts, configured)
    assert found.tables == {"containers": {"default_ulimits": ["core=0:0", "nofile=64:128", "nproc=500:500"]}}
    assert settings.needed(replace(facts, rootless=True), configured).tables == {}


@pytest.mark.parametrize(("configured", "runtime"), [(None, "runc"), ("crun", "runc"), ("kata", None)])
def test_runc_is_chosen_where_crun_cannot_work(configured: str | None, runtime: str | None) -> None:
    engine = {"runtime": configured} if configured else {}
    found = settings.needed(replace(FREE, has_hybrid_cgroups=True), {"engine": engine})
    assert found.tables.get("engine", {}).get("runtime") == runtime


def test_what_is_left_to_systemd_is_taken_back_where_it_does_not_run() -> None:
    configured = {
        "engine": {"cgroup_manager": "systemd", "events_logger": "journald"},
        "containers": {"log_driver": "journald"},
    }
    found = settings.needed(replace(FREE, has_systemd=False, has_journal=False), configured)
    assert found.tables == {
        "engine": {"cgroup_manager": "cgroupfs", "events_logger": "file"},
        "containers": {"log_driver": "k8s-file"},
    }
    assert len(found.notes) == 3


@pytest.mark.parametrize(("version", "variable"), [((4, 3), "CONTAINERS_CONF"), ((5, 2), "CONTAINERS_CONF_OVERRIDE")])
def test_configuration_of_the_user_stays_under_the_settings(
    tmp_path: Path, version: tuple[int, int], variable: str
) -> None:
    theirs = tmp_path / "theirs.conf"
    theirs.write_text(
        '[containers]\nenv = ["A=\\"ä\\""]\npids_limit = 7\n[engine]\nruntime = "crun"\n[engine.runtimes]\n'
    )
    wanted = settings.Settings({"engine": {"runtime": "runc"}}, ())
    given = settings.hand_over(wanted, {variable: str(theirs)}, tmp_path, version=version)
    assert list(given) == [variable]
    merged = tomllib.loads(Path(given[variable]).read_text())
    assert merged["engine"]["runtime"] == "runc"
    assert merged["containers"] == {"env": ['A="ä"'], "pids_limit": 7}


def test_configuration_that_is_no_toml_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.conf"
    broken.write_text("[containers\n")
    with pytest.raises(errors.EngineUnavailable, match=r"broken\.conf"):
        settings.configured({"CONTAINERS_CONF": str(broken)}, rootless=False)


@pytest.mark.parametrize(("text", "version"), [("podman version 4.3.1\n", (4, 3)), ("5.2.0-rc1", (5, 2)), ("", (0, 0))])
def test_version_is_read_from_what_podman_says(text: str, version: tuple[int, int]) -> None:
    assert settings.parsed_version(text) == version
