"""Which engine serves a call, and what is said of one that is not there, silent, or not to be used?

SPEC B74, SPEC B76.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import selection
from tests import backends
from tests.dispatch import harness


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda path: False)


async def test_no_engine_at_all_says_how_to_get_one(no_socket: None) -> None:
    async with harness.opened() as house:
        outcome = await house.fails("engine_unavailable", "container_list")
        assert "install" in outcome.error_data["hint"]
        answer = await house.ok("container_runtime_status")
        assert answer["engines"][0]["available"] is False
        assert "install" in answer["engines"][0]["remedy"]
        assert answer["runtimes"]["docker"] is False


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A socket that accepts connections and never answers."""
    path, held = tmp_path / "silent.sock", list[socket.socket]()
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        listening.listen()

        def accept() -> None:
            try:
                while True:
                    held.append(listening.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        yield path
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for one in held:
        one.close()


async def test_silent_engine_costs_its_deadline_and_is_named(monkeypatch: pytest.MonkeyPatch, silent: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{silent}")
    async with harness.opened(engine_timeout_seconds=0.3) as house:
        outcome = await house.fails("deadline_exceeded", "container_list")
        assert outcome.error_data["retryable"] is True
        assert "container_runtime_status" in outcome.error_data["hint"]


async def test_engine_that_nobody_named_so_is_unknown() -> None:
    async with harness.opened() as house:
        for name in ("container_list", "container_runtime_status"):
            outcome = await house.fails("invalid_argument", name, engine="dokcer")
            assert "docker" in outcome.error_data["hint"]


async def test_engine_that_the_settings_leave_out_is_refused() -> None:
    async with harness.opened(engines=("docker",)) as house:
        outcome = await house.fails("refused", "container_list", engine="podman")
        assert "engines" in outcome.text


async def test_hanging_engine_keeps_the_status_of_the_others_waiting_for_two_seconds_at_most(
    docker_socket: Path, monkeypatch: pytest.MonkeyPatch, silent: Path
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{silent}")
    async with harness.opened(engines=("docker", "podman")) as house:
        docker, podman = (await house.ok("container_runtime_status"))["engines"]
        assert (docker["available"], podman["available"]) == (True, False)
        assert f"{selection.PROBE_SECONDS:g} seconds" in podman["reason"]
        assert podman["remedy"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening.getsockname()[1]


async def test_hanging_way_to_an_engine_keeps_nobody_waiting_longer_than_a_hanging_engine(
    docker_socket: Path, monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    if shutil.which("ssh") is None:
        backends.missing("ssh")
    monkeypatch.setenv(
        "CODOMYRMEX_CONTAINERIZATION_ENDPOINTS", json.dumps({"lab": {"url": f"ssh://127.0.0.1:{silent_port}"}})
    )
    async with harness.opened(engines=("docker",)) as house:
        docker, lab = (await house.ok("container_runtime_status"))["engines"]
        assert (docker["available"], lab["available"]) == (True, False)
        assert f"{selection.PROBE_SECONDS:g} seconds" in lab["reason"]
        assert "engine='lab'" in lab["remedy"]
        assert lab["endpoint_source"] == "the setting endpoints.lab"


async def test_engine_that_fails_is_a_line_in_the_list_of_the_others(
    docker_socket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "plain").write_text("")
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/plain")
    async with harness.opened(engines=("docker", "podman")) as house:
        for tool in ("container_list", "image_list"):
            outcome = await house.call(tool)
            assert outcome.structured is not None, outcome.text
            (line,) = outcome.structured["failed"]
            assert line.startswith("podman NOT asked: engine_unavailable")
            assert "Next:" in line
            assert line in outcome.text


async def test_all_engines_failing_is_an_error_and_no_empty_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "plain").write_text("")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/plain")
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/plain")
    async with harness.opened(engines=("docker", "podman")) as house:
        await house.fails("engine_unavailable", "container_list")
        await house.fails("engine_unavailable", "image_list")
        await house.fails("engine_unavailable", "container_inspect", container="x")


async def test_first_engine_that_listens_is_the_default_one(
    docker_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness.opened(engines=("podman", "docker"), podman_service="never") as house:
        assert await house.application.engines.default() == "docker"
        status = await house.ok("container_runtime_status")
        assert [(one["name"], one.get("default", False)) for one in status["engines"]] == [
            ("podman", False),
            ("docker", True),
        ]


async def test_setting_names_the_default_engine() -> None:
    async with harness.opened(engines=("docker", "podman"), engine="podman", podman_service="never") as house:
        assert await house.application.engines.default() == "podman"


@pytest.mark.parametrize("setting", [{"engines": ("docker", "dokcer")}, {"engine": "dokcer"}])
async def test_setting_that_names_no_engine_keeps_the_program_from_starting(setting: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument, match="dokcer") as caught:
        async with harness.opened(**setting):
            pytest.fail("it was opened")
    assert "podman" in caught.value.hint
