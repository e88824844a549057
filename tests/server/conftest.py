"""What do tests of the server get beside what every test gets? An engine of their own that may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import backends
from tests.server import engines
from tests.server.engines import OwnEngine


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_folders: Path) -> Path:
    """The server starts in a folder of the test's own, not in the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def _engine_to_kill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    engine = engines.open_own_engine(tmp_path_factory.mktemp("engine"))
    try:
        yield engine
    finally:
        engine.end()


@pytest.fixture
def own_engine(_engine_to_kill: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> OwnEngine:
    """A running engine that is this test's alone and that it may end and start; the server is pointed at it."""
    _engine_to_kill.ensure_started()
    _engine_to_kill.clear()
    backends.ensure_busybox_image(_engine_to_kill.docker)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{_engine_to_kill.socket_path}")
    return _engine_to_kill


@pytest.fixture(scope="session")
def buildx_program() -> Path:
    """The buildx program, to be named in the server's settings."""
    found = backends.find_buildx()
    if found is None:
        backends.missing("no buildx plug-in")
    return found
