"""What do the tests of the walls start from? A working folder of their own and images that hold secrets."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends import DockerCommandLine


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The process stands in a folder of the test's own, which is therefore an allowed path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def labelled_image(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[str]:
    """An image to build from: what failed builds leave inherits its label, and goes by that."""
    tag = f"localhost/cxc-test-{uuid.uuid4().hex[:8]}"
    docker_cli(["build", "--tag", tag, "-"], stdin=f"FROM {busybox_image}\nLABEL {session_label}\n".encode())
    yield tag
    left = docker_cli(["images", "--quiet", "--filter", f"label={session_label}", "--filter", "dangling=true"])
    docker_cli(["rmi", "--force", tag, *left.stdout.split()], check=False)


@pytest.fixture
def image_name(docker_cli: DockerCommandLine) -> Iterator[str]:
    """A name for an image that the test builds; the image and its untagged parents go afterwards."""
    name = f"localhost/cxc-test-{uuid.uuid4().hex[:8]}"
    yield name
    made = docker_cli(["images", "--quiet", "--filter", f"reference={name}"]).stdout.split()
    if made:
        docker_cli(["rmi", "--force", *dict.fromkeys(made)], check=False)
