"""Do the commands on single containers and images do their work on a real engine?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.backends import DockerCommandLine
from tests.cli.console import cxc

pytestmark = pytest.mark.usefixtures("docker_socket")

StartContainer = Callable[..., str]


def state_of(docker_cli: DockerCommandLine, name: str) -> str:
    return docker_cli(["container", "inspect", "--format", "{{.State.Status}}", name]).stdout.strip()


def test_exec_passes_streams_and_exit_code_on(start_container: StartContainer) -> None:
    ended = cxc("exec", "-e", "A=b", start_container(), "sh", "-c", "echo $A --json; echo no >&2; exit 4", "--json")
    assert (ended.status, ended.stdout, ended.stderr) == (4, "b --json\n", "no\n")


def test_exec_gives_the_command_our_stdin(start_container: StartContainer) -> None:
    assert cxc("exec", "-i", start_container(), "cat", stdin=b"given").stdout == "given"


def test_exec_whose_time_is_up_exits_with_124(start_container: StartContainer) -> None:
    ended = cxc("exec", "--timeout", "1", start_container(), "sh", "-c", "echo early; sleep 1000")
    assert (ended.status, ended.stdout) == (124, "early\n"), ended.stderr


@pytest.mark.parametrize(("command", "status"), [("no-such-program", 127), ("/etc", 126)])
def test_exec_of_what_is_no_program_exits_as_dockers(
    start_container: StartContainer, command: str, status: int
) -> None:
    assert cxc("exec", start_container(), command).status == status


def test_exec_in_an_unknown_container_exits_with_125() -> None:
    assert cxc("exec", "no-container-is-called-this", "true").status == 125
    assert cxc("exec", "no-container-is-called-this").status == 125


def test_inspect_shows_a_container(start_container: StartContainer) -> None:
    name = start_container()
    assert f"name: {name}" in cxc("inspect", name).stdout
    assert cxc("inspect", name, "--json").document["state"] == "running"


def test_containers_are_stopped_and_started_several_at_once(
    start_container: StartContainer, docker_cli: DockerCommandLine
) -> None:
    names = (start_container(), start_container())
    for command, wanted in (("pause", "paused"), ("unpause", "running"), ("kill", "exited"), ("start", "running")):
        ended = cxc(command, *names, "--yes")
        assert (ended.status, ended.stdout) == (0, f"{names[0]}\n{names[1]}\n"), ended.stderr
        assert {state_of(docker_cli, name) for name in names} == {wanted}
    assert cxc("stop", "-t", "0", names[0], "--yes", "--json").document["after"] == "exited"
    assert cxc("restart", "-t", "0", names[1], "--yes").status == 0


def test_copy_brings_a_file_out_of_a_container(start_container: StartContainer, tmp_path: Path) -> None:
    ended = cxc("cp", f"{start_container()}:/etc/passwd", tmp_path / "copied", "--yes")
    assert ended.status == 0, ended.stderr
    assert (tmp_path / "copied").read_text().startswith("root:")


@pytest.fixture
def tagged(docker_cli: DockerCommandLine, busybox_image: str, container_name: str) -> Iterator[str]:
    name = f"localhost/{container_name}:1"
    docker_cli(["tag", busybox_image, name])
    yield name
    docker_cli(["image", "rm", name], check=False)


def test_images_are_listed_and_shown(tagged: str) -> None:
    ended = cxc("images", "--name", tagged)
    assert tagged in ended.stdout.splitlines()[1]
    assert cxc("images", "--name", tagged, "--json").document["total"] == 1
    assert cxc("image", tagged, "--json").document["layers_count"] == 1
    assert cxc("images", "--name", "no-image-is-called-this").stdout == ""


def test_a_tag_is_given_and_taken_away(tagged: str, docker_cli: DockerCommandLine) -> None:
    other = f"{tagged}-other"
    assert cxc("tag", tagged, other).status == 0
    refused = cxc("rmi", other)
    assert (refused.status, refused.stdout) == (5, "")
    assert "--yes" in refused.stderr
    assert cxc("rmi", other, "--yes").status == 0
    assert docker_cli(["image", "inspect", other], check=False).returncode != 0


@pytest.mark.parametrize("command", ["list", "images"])
def test_engine_that_cannot_be_asked_is_a_warning_beside_the_rows_of_the_others(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "plain").write_text("")
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_ENGINES", "docker,podman")
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{tmp_path}/plain")
    ended = cxc(command)
    assert ended.status == 0
    assert "podman NOT asked" in ended.stderr
    assert "podman NOT asked" not in ended.stdout
    assert "podman NOT asked" in cxc(command, "--json").stdout
