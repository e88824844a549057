"""What do attacks get beside what every test gets? An engine of their own, whose whole content can be compared before and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import backends
from tests.server import engines
from tests.server.engines import OwnEngine


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_folders: Path) -> Path:
    """The server starts in a folder of the test's own; everything that it may touch on the host lies there."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def _attacked_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    engine = engines.open_own_engine(tmp_path_factory.mktemp("engine"))
    try:
        yield engine
    finally:
        engine.end()


@pytest.fixture
def attacked_engine(_attacked_engine: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> OwnEngine:
    """A running engine without a way to any network, with the one image; the server is pointed at it."""
    _attacked_engine.ensure_started()
    backends.ensure_busybox_image(_attacked_engine.docker)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{_attacked_engine.socket_path}")
    return _attacked_engine


@pytest.fixture(scope="session")
def buildx_program() -> Path:
    """The buildx program, to be named in the server's settings."""
    found = backends.find_buildx()
    if found is None:
        backends.missing("no buildx plug-in")
    return found
