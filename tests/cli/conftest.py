"""What do the tests of the command line share? Containers of their own, which go when the test is over."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.backends import DockerCommandLine

StartContainer = Callable[..., str]


@pytest.fixture
def container_name(docker_cli: DockerCommandLine) -> Iterator[str]:
    """A name for a container that the test makes, or not; it is gone afterwards."""
    name = f"cxc-test-{uuid.uuid4().hex[:12]}"
    yield name
    docker_cli(["rm", "--force", "--volumes", name], check=False)


@pytest.fixture
def start_container(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[StartContainer]:
    """Starts a container by docker itself, so that it is a stranger's for the command line; returns its name."""
    names: list[str] = []

    def start(script: str = "sleep 1000") -> str:
        name = f"cxc-test-{uuid.uuid4().hex[:12]}"
        names.append(name)
        docker_cli(["run", "--detach", "--name", name, "--label", session_label, busybox_image, "sh", "-c", script])
        return name

    yield start
    for name in names:
        docker_cli(["rm", "--force", "--volumes", name], check=False)
