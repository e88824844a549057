"""Where is Docker looked for, and what is said of one that is not there, not ours to open, or silent?"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import selection
from tests.dispatch import harness


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: False)


def context(home: Path, name: str, meta: object) -> None:
    folder = home / ".docker" / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))


def test_docker_host_comes_first(tmp_path: Path) -> None:
    found = selection.find_docker({"DOCKER_HOST": "unix:///x.sock", "DOCKER_CONTEXT": "y", "HOME": str(tmp_path)})
    assert found is not None
    assert (found.url, found.source, found.socket_path) == ("unix:///x.sock", "DOCKER_HOST", "/x.sock")


@pytest.mark.parametrize("how", ["variable", "file"])
def test_dockers_context_comes_next(tmp_path: Path, how: str) -> None:
    context(tmp_path, "mine", {"Endpoints": {"docker": {"Host": "unix:///mine.sock"}}})
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"currentContext": "mine" if how == "file" else ""}))
    environ = {"HOME": str(tmp_path)} | ({"DOCKER_CONTEXT": "mine"} if how == "variable" else {})
    found = selection.find_docker(environ)
    assert found is not None
    assert found.url == "unix:///mine.sock"
    assert "mine" in found.source


@pytest.mark.parametrize("meta", [{}, {"Endpoints": {}}, {"Endpoints": {"docker": {"Host": 3}}}, []])
def test_context_without_an_endpoint_is_named(tmp_path: Path, meta: object) -> None:
    context(tmp_path, "mine", meta)
    with pytest.raises(errors.EngineUnavailable, match="mine"):
        selection.find_docker({"HOME": str(tmp_path), "DOCKER_CONTEXT": "mine"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"currentContext": 3}', '{"currentContext": "default"}'])
def test_broken_or_plain_file_of_docker_is_no_context(tmp_path: Path, text: str, no_socket: None) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(text)
    assert selection.find_docker({"HOME": str(tmp_path)}) is None


@pytest.mark.parametrize(
    "url", ["tcp://192.0.2.1:2375", "http://example.invalid:2375", "tcp://127.0.0.1.example.invalid:1"]
)
def test_address_beyond_this_host_without_tls_is_refused(url: str) -> None:
    with pytest.raises(errors.Refused, match="not this host"):
        selection.find_docker({"DOCKER_HOST": url})


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:2375", "tcp://localhost:1", "tcp://[::1]:2375", "http://127.0.0.2:1"])
def test_loopback_is_allowed(url: str) -> None:
    found = selection.find_docker({"DOCKER_HOST": url})
    assert found is not None
    assert found.socket_path is None


@pytest.mark.parametrize("url", ["ssh://someone@host", "npipe:////./pipe/x", "x", "fd://"])
def test_other_schemes_are_unsupported(url: str) -> None:
    with pytest.raises(errors.Unsupported, match="DOCKER_HOST"):
        selection.find_docker({"DOCKER_HOST": url})


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
