"""What does every test of the Python faces get? A process-wide portal of its own, closed behind it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import codomyrmex_containerization
from codomyrmex_containerization.dispatch import portal
from tests.backends import DockerCommandLine

# Not a socket's path: docker-py leaves a socket open that it could not connect.
NOBODY = "tcp://127.0.0.1:1"


@pytest.fixture(autouse=True)
def own_portal(private_folders: Path) -> Iterator[None]:
    """The thread of the calls is of this test, as its folders are."""
    portal.close()
    yield
    portal.close()


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's address at which nothing answers."""
    monkeypatch.setenv("DOCKER_HOST", NOBODY)


@pytest.fixture
def name() -> str:
    """A name for a container or an image that no other test uses."""
    return f"cxc-faces-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def foreign(docker_cli: DockerCommandLine, busybox_image: str, session_label: str, name: str) -> Iterator[str]:
    """A running container that this package did not create."""
    docker_cli(["run", "--detach", "--init", "--name", name, "--label", session_label, busybox_image, "sleep", "600"])
    yield name
    docker_cli(["rm", "--force", name], check=False)


@pytest.fixture
def image(docker_cli: DockerCommandLine, name: str) -> Iterator[str]:
    """The name of an image that a test is going to build."""
    yield name
    for tagged in docker_cli(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name]).stdout.split():
        docker_cli(["image", "rm", "--force", tagged])


Python = Callable[[str], "subprocess.CompletedProcess[str]"]


def environment() -> dict[str, str]:
    """The environment of another interpreter: it finds this very package, wherever it starts."""
    source = str(Path(codomyrmex_containerization.__file__).parent.parent)
    return {key: value for key, value in os.environ.items() if not key.startswith("COV")} | {"PYTHONPATH": source}


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Run a program in an interpreter of its own and return how it ended."""

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=120,
            check=False,
        )

    return run
