"""Do the Podman services of the tests do what tests of the engines rely on?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests import backends
from tests.podman import PodmanService, sweep


@pytest.fixture(params=["podman_service", "rootless_podman_service"])
def service(request: pytest.FixtureRequest) -> Iterator[PodmanService]:
    one: PodmanService = request.getfixturevalue(request.param)
    yield one
    one.clear()


def test_service_answers_on_its_private_socket(service: PodmanService) -> None:
    client = docker.APIClient(base_url=service.url, version="auto")
    try:
        names = [component["Name"] for component in client.version()["Components"]]
    finally:
        client.close()
    assert "Podman Engine" in names
    rootless = service.podman(["--remote", "--url", service.url, "info", "--format={{.Host.Security.Rootless}}"]).stdout
    assert rootless.strip() == str(service.is_rootless).lower()


def test_command_line_sees_what_the_service_made(service: PodmanService) -> None:
    client = docker.APIClient(base_url=service.url, version="auto")
    try:
        made = client.create_container(service.image, ["sleep", "1000"], name="from-the-service")["Id"]
        client.start(made)
    finally:
        client.close()
    assert made in service.container_ids()
    assert service.podman(["exec", made, "echo", "hello"]).stdout == "hello\n"


def test_container_of_the_command_line_runs_with_a_network(service: PodmanService) -> None:
    shown = service.podman(["run", "--rm", service.image, "ip", "route"]).stdout
    assert shown.startswith("default via")


def test_published_port_is_reached_from_this_host(service: PodmanService) -> None:
    serve = ["nc", "-ll", "-p", "8080", "-e", "echo", "hello"]
    service.podman(["run", "--detach", "--name=web", "--publish=127.0.0.1::8080", service.image, *serve])
    port = service.podman(["port", "web", "8080/tcp"]).stdout.strip().rpartition(":")[2]
    assert service.podman.run(["busybox", "nc", "127.0.0.1", port]).stdout == "hello\n"


def test_service_that_was_killed_starts_again(service: PodmanService) -> None:
    service.stop(signal.SIGKILL)
    service.ensure_started()
    assert service.podman(["--remote", "--url", service.url, "images", "--quiet"]).stdout.split()


def test_rootless_service_runs_as_an_ordinary_user(rootless_podman_service: PodmanService) -> None:
    user = rootless_podman_service.user
    assert user is not None
    assert Path(f"/proc/{rootless_podman_service.pid}").stat().st_uid == user.pw_uid != 0
    assert rootless_podman_service.podman.run(["id", "-u"]).stdout.strip() == str(user.pw_uid)


def test_plain_settings_name_the_same_storage(service: PodmanService) -> None:
    plain = service.command_line(environment=service.plain_environment)
    assert service.image in plain(["images", "--format={{.Repository}}:{{.Tag}}"]).stdout.split()


def test_ordinary_user_can_run_the_package(rootless_podman_service: PodmanService) -> None:
    import_it = "import codomyrmex_containerization, docker, os; print(os.getuid())"
    shown = rootless_podman_service.podman.run([sys.executable, "-c", import_it]).stdout
    assert rootless_podman_service.user is not None
    assert shown.strip() == str(rootless_podman_service.user.pw_uid)


ABANDON = """
import os, signal
from tests import podman
with podman.open_podman(rootless={rootless}) as service:
    service.podman(["run", "--detach", service.image, "sleep", "1000"])
    print(service.folder, service.user and service.user.pw_name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("rootless", [False, True])
def test_service_of_a_killed_session_is_removed_by_the_next(podman_service: PodmanService, rootless: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(backends.__file__).parents[1])}
    killed = subprocess.run(
        [sys.executable, "-c", ABANDON.format(rootless=rootless)], capture_output=True, text=True, env=environment
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder, user = killed.stdout.split()
    assert list(_processes_of(folder))
    sweep()
    assert not Path(folder).exists()
    assert not list(_processes_of(folder))
    assert user not in [line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()]


def _processes_of(folder: str) -> list[str]:
    return subprocess.run(["pgrep", "--full", folder], capture_output=True, text=True).stdout.split()
