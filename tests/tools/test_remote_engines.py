"""Does an engine behind TLS or ssh do what one on this host does, and are host paths kept from it?

SPEC B78, SPEC B79.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.endpoints import SshHost, TlsDocker

IMAGE = "localhost/cxc-test-busybox:1"
NAMED = "CODOMYRMEX_CONTAINERIZATION_ENDPOINTS"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> object:
    """Sets named endpoints: `named(lab={"url": ...})`."""

    def set_them(**endpoints: Mapping[str, object]) -> None:
        monkeypatch.setenv(NAMED, json.dumps(endpoints))

    return set_them


async def use(house: harness.House, engine: str | None, folder: Path) -> None:
    """Build, run, exec, copy both ways, read the log, list, remove."""
    given = {"engine": engine} if engine else {}
    reference = "localhost/cxc-remote:1"
    (folder / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY word /word\n")
    (folder / "word").write_text("from the context\n")
    await house.ok("container_build", dockerfile_path=str(folder), image_name=reference, **given)
    try:
        ran = await house.ok("container_run", image=reference, command="cat /word", **given)
        assert (ran["exit_code"], ran["stdout"]) == (0, "from the context\n")
        ran = await house.ok("container_run", image=IMAGE, command="cat", stdin="said to it\n", **given)
        assert ran["stdout"] == "said to it\n"
        command = ["sh", "-c", "echo up; exec sleep 1000"]
        made = await house.ok("container_run", image=IMAGE, command=command, detach=True, **given)
        name = made["name"]
        done = await house.ok(
            "container_exec", container=name, command=["sh", "-c", "echo out; echo err >&2; exit 3"], **given
        )
        assert (done["exit_code"], done["stdout"], done["stderr"]) == (3, "out\n", "err\n")
        (folder / "sent").write_text("x" * 100_000)
        await house.ok("container_copy", source=str(folder / "sent"), target=f"{name}:/tmp/", **given)
        await house.ok("container_copy", source=f"{name}:/tmp/sent", target=str(folder / "back"), **given)
        assert (folder / "back").read_text() == "x" * 100_000
        log = await house.ok("container_logs", container=name, **given)
        assert [line["text"] for line in log["lines"]] == ["up"]
        (row,) = (await house.ok("container_list", name=name, **given))["containers"]
        assert row["memory_bytes"] > 0
        await house.ok("container_remove", container=name, force=True, **given)
    finally:
        await house.ok("image_remove", image=reference, **given)


@pytest.mark.usefixtures("busybox_image")
async def test_engine_behind_tls_does_what_a_local_one_does(
    tls_docker: TlsDocker, docker_cli: DockerCommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in tls_docker.environment.items():
        monkeypatch.setenv(key, value)
    async with harness.opened(policy__allowed_paths=(str(tmp_path),)) as house:
        status = (await house.ok("container_runtime_status"))["engines"][0]
        assert (status["endpoint"], status["endpoint_source"]) == (tls_docker.url, "DOCKER_HOST")
        await use(house, None, tmp_path)


@pytest.mark.usefixtures("busybox_image")
async def test_named_endpoint_with_tls_is_used_by_its_name(
    tls_docker: TlsDocker, docker_cli: DockerCommandLine, named: object, tmp_path: Path
) -> None:
    assert callable(named)
    files = {name: str(tls_docker.certificates / f"{name}.pem") for name in ("ca", "cert", "key")}
    named(lab={"url": tls_docker.url, **files})
    async with harness.opened(policy__allowed_paths=(str(tmp_path),)) as house:
        await use(house, "lab", tmp_path)
        names = [one["name"] for one in (await house.ok("container_runtime_status"))["engines"]]
        assert names == ["docker", "lab"]


@pytest.mark.usefixtures("busybox_image")
async def test_engine_behind_ssh_does_what_a_local_one_does(
    ssh_host: SshHost, docker_cli: DockerCommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", ssh_host.path)
    monkeypatch.setenv("DOCKER_HOST", f"{ssh_host.url}{docker_cli.socket_path}")
    async with harness.opened(policy__allowed_paths=(str(tmp_path),)) as house:
        await use(house, None, tmp_path)


async def test_ssh_host_that_asks_for_a_password_says_what_to_do(
    password_ssh_host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", password_ssh_host.path)
    monkeypatch.setenv("DOCKER_HOST", password_ssh_host.url)
    async with harness.opened() as house:
        outcome = await house.fails("unauthorized", "container_list")
        assert "ssh" in outcome.error_data["hint"]


@pytest.mark.usefixtures("busybox_image")
async def test_host_paths_are_refused_on_another_host_unless_its_settings_allow_them(
    tls_docker: TlsDocker, named: object, tmp_path: Path
) -> None:
    assert callable(named)
    files = {name: str(tls_docker.certificates / f"{name}.pem") for name in ("ca", "cert", "key")}
    closed = {"url": tls_docker.url, **files}
    named(closed=closed, open={**closed, "host_paths": True})
    (tmp_path / "there").write_text("on that host\n")
    given = {"image": IMAGE, "command": "cat /there", "mounts": [f"{tmp_path}/there:/there:ro"]}
    async with harness.opened(policy__allowed_paths=(str(tmp_path),)) as house:
        outcome = await house.fails("refused", "container_run", **given, engine="closed")
        assert "host_paths" in outcome.error_data["hint"]
        ran = await house.ok("container_run", **given, engine="open")
        assert ran["stdout"] == "on that host\n"
        (tmp_path / "link").symlink_to("/etc")
        for path in ("/", "/etc", "/var/run/docker.sock", os.path.expanduser("~/.ssh"), tmp_path / "link"):
            await house.fails("refused", "container_run", image=IMAGE, mounts=[f"{path}:/x"], engine="open")


async def test_another_host_without_tls_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    async with harness.opened() as house:
        outcome = await house.fails("refused", "container_list")
        assert "nothing was sent" in outcome.text


@pytest.mark.usefixtures("busybox_image")
async def test_engine_under_two_names_is_listed_once_and_its_containers_are_found(
    tls_docker: TlsDocker, docker_cli: DockerCommandLine, named: object
) -> None:
    assert callable(named)
    files = {name: str(tls_docker.certificates / f"{name}.pem") for name in ("ca", "cert", "key")}
    named(lab={"url": tls_docker.url, **files}, link={"url": f"unix://{docker_cli.socket_path}"})
    async with harness.opened() as house:
        made = await house.ok("container_run", image=IMAGE, command="sleep 1000", detach=True, engine="lab")
        (row,) = (await house.ok("container_list", name=made["name"]))["containers"]
        assert row["engine"] == "docker"
        assert (await house.ok("container_inspect", container=made["name"]))["engine"] == "docker"
        assert (await house.ok("container_inspect", container=made["name"], engine="link"))["engine"] == "link"
        _, *others = (await house.ok("container_runtime_status"))["engines"]
        assert [one["name"] for one in others] == ["lab", "link"]
        assert all("same engine as docker" in one["notes"][-1] for one in others), others
        await house.ok("container_remove", container=made["name"], force=True, engine="lab")
