"""Do the commands that rename containers, look into them and make images and files of them work, without a toolset being switched on?

SPEC B120.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from tests import embedded
from tests.backends import DockerCommandLine
from tests.cli.console import cxc

StartContainer = Callable[..., str]


@pytest.fixture
def engine(private_folders: Path, tmp_path: Path) -> Iterator[EmbeddedEngine]:
    """What the commands of a test work on, with its base image."""
    with embedded.own_folders() as engine:
        embedded.base_image(engine, tmp_path)
        yield engine


@pytest.fixture
def tag(docker_cli: DockerCommandLine) -> Iterator[str]:
    """A name for an image that the test makes."""
    name = f"localhost/cxc-lifecycle-{uuid.uuid4().hex[:8]}:1"
    yield name
    docker_cli(["rmi", "--force", name], check=False)


def test_container_is_looked_into_and_made_an_image(
    start_container: StartContainer, tag: str, docker_socket: Path
) -> None:
    name = start_container("echo x > /root/one; rm /etc/group; while true; do sleep 1; done")
    shown = cxc("top", name)
    assert shown.status == 0, shown.stderr
    assert "while true" in shown.stdout
    assert cxc("top", name, "--json").document["container"] == name
    # Its program may only just have begun.
    assert cxc("exec", name, "sh", "-c", "until test -e /root/one; do sleep 0.1; done").status == 0
    assert "A /root/one\n" in cxc("diff", name).stdout
    assert cxc("diff", name, "--path", "/root").stdout == "C /root\nA /root/one\n"
    few = cxc("diff", name, "--limit", "1")
    assert (few.stdout.count("\n"), "--cursor" in few.stderr) == (1, True)
    made = cxc("commit", name, tag, "-m", "as it was")
    assert (made.status, tag in made.stdout) == (0, True), made.stderr


def test_stranger_is_renamed_when_somebody_agrees(start_container: StartContainer, docker_socket: Path) -> None:
    name = start_container()
    refused = cxc("rename", name, f"{name}-2")
    assert refused.status == 5
    assert "--yes" in refused.stderr
    agreed = cxc("rename", name, f"{name}-2", "--yes")
    assert agreed.status == 0, agreed.stderr
    assert cxc("rename", f"{name}-2", name, "--yes").status == 0  # under which it is taken away


def test_container_goes_through_a_file(engine: EmbeddedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_ENGINES", "embedded")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    script = "test -e /been && cat /been; echo before > /been"
    ran = cxc("run", "--keep", "--name", "shop", embedded.IMAGE, "sh", "-c", script)
    assert ran.status == 0, ran.stderr
    written = cxc("export", "--format", "state", "shop", "shop.tar")
    assert written.status == 0, written.stderr
    assert "not in it: its log" in written.stdout
    made = cxc("import", "shop.tar", "shop-2")
    assert (made.status, made.stdout) == (0, "shop-2\n"), made.stderr
    assert cxc("start", "shop-2", "--yes").status == 0
    assert anyio.run(engine.wait_container, "shop-2") == 0
    assert cxc("logs", "shop-2").stdout == "before\n"
    assert cxc("import", "shop.tar").status == 4
    plain = cxc("export", "shop", "root.tar")
    assert "rootfs" in plain.stdout, plain.stderr


def test_import_on_another_engine_names_the_one_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_ENGINES", "memory")
    monkeypatch.chdir(tmp_path)
    Path("none.tar").touch()
    ended = cxc("import", "--json", "none.tar")
    assert ended.status == 7, ended.stdout
    assert "embedded" in ended.document["message"]


def test_container_is_created_and_started(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC B147: also the next command, another run of the program, finds it as it was."""
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_ENGINES", '["embedded"]')
    made = cxc(
        "--engine", "embedded", "create", "--name", "waits", "--network", "none", embedded.IMAGE, "sleep", "1000"
    )
    assert (made.status, made.stdout) == (0, "waits\n"), made.stderr
    assert cxc("cleanup").status == 0
    listed = cxc("--engine", "embedded", "list", "--all", "--json")
    assert [row["status"] for row in listed.document["containers"]] == ["created"]
    assert cxc("start", "waits").status == 0
    stats = cxc("--engine", "embedded", "stats")
    assert "waits" in stats.stdout
    assert "CPU %" in stats.stdout


def test_doctor_says_what_holds_here(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC B148."""
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_ENGINES", '["embedded"]')
    shown = cxc("doctor", "--json")
    assert shown.status == 0
    (found,) = [one for one in shown.document["engines"] if one["name"] == "embedded"]
    checks = {one["what"]: one for one in found["checks"]}
    assert {"tier", "monitor", "limit memory", "limit disk", "isolation strict", "network bridge"} <= checks.keys()
    assert all(one["said"] for one in checks.values())
    assert all(one["holds"] or one.get("remedy") for one in checks.values())
    assert "isolation strict" in cxc("doctor").stdout
