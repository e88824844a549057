"""How does the command line behave towards a person: questions, tables, colours, bars?"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backends import DockerCommandLine
from tests.cli.console import on_terminal, without_escapes

StartContainer = Callable[..., str]


def exists(docker_cli: DockerCommandLine, name: str) -> bool:
    return docker_cli(["container", "inspect", name], check=False).returncode == 0


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("YES", 0), ("n", 5), ("", 5), ("yesterday", 5)])
def test_remove_asks_and_does_what_the_person_says(
    start_container: StartContainer, docker_cli: DockerCommandLine, answer: str, status: int
) -> None:
    name = start_container()
    with on_terminal("rm", "--force", name) as terminal:
        question = terminal.read_until("[y/N]")
        terminal.type(f"{answer}\n")
        assert terminal.end().status == status
    assert f"container {name}" in question
    assert exists(docker_cli, name) is (status != 0)


def test_end_of_input_at_a_question_declines(start_container: StartContainer, docker_cli: DockerCommandLine) -> None:
    name = start_container()
    with on_terminal("rm", "--force", name) as terminal:
        terminal.read_until("[y/N]")
        terminal.type("\x04")
        assert terminal.end().status == 5
    assert exists(docker_cli, name)


def test_interrupt_at_a_question_ends_the_command_and_removes_nothing(
    start_container: StartContainer, docker_cli: DockerCommandLine
) -> None:
    name = start_container()
    with on_terminal("rm", "--force", name) as terminal:
        terminal.read_until("[y/N]")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end().status == 130
    assert exists(docker_cli, name)


def test_yes_asks_nothing_on_a_terminal(start_container: StartContainer, docker_cli: DockerCommandLine) -> None:
    name = start_container()
    with on_terminal("rm", "--force", "--yes", name) as terminal:
        ended = terminal.end()
    assert (ended.status, ended.stdout) == (0, f"{name}\n")
    assert not exists(docker_cli, name)


@pytest.mark.usefixtures("docker_socket")
def test_tables_are_drawn_with_colours(start_container: StartContainer) -> None:
    name = start_container()
    with on_terminal("list", "--name", name) as terminal:
        ended = terminal.end()
    assert "\x1b[32m" in ended.stdout
    assert name in without_escapes(ended.stdout)
    assert "─" in ended.stdout


def test_narrow_tables_fold_long_cells_and_no_short_ones(start_container: StartContainer) -> None:
    name = start_container()
    with on_terminal("list", "--name", name, "--no-usage", environment={"COLUMNS": "72"}) as terminal:
        shown = without_escapes(terminal.end().stdout)
    assert "running" in shown
    assert " ago " in shown
    assert max(map(len, shown.splitlines())) <= 72


def test_who_said_no_is_given_no_advice(start_container: StartContainer) -> None:
    with on_terminal("rm", "--force", start_container()) as terminal:
        terminal.read_until("[y/N]")
        terminal.type("n\n")
        ended = terminal.end()
    assert "declined" in ended.stdout
    assert "Next:" not in ended.stdout


@pytest.mark.usefixtures("docker_socket")
@pytest.mark.parametrize("command", ["list", "status", "tools", "config", "logs nobody-is-called-this"])
def test_no_color_means_no_escape_at_all(start_container: StartContainer, command: str) -> None:
    start_container()
    with on_terminal(*command.split(), environment={"NO_COLOR": "1"}) as terminal:
        ended = terminal.end()
    assert ended.stdout != ""
    assert "\x1b" not in ended.stdout


def test_errors_are_coloured_on_a_terminal_only() -> None:
    with on_terminal("list", "--nonsense") as terminal:
        ended = terminal.end()
    assert ended.status == 2
    assert "\x1b[31minvalid_argument\x1b[0m: " in ended.stdout


def test_no_argument_on_a_terminal_prints_help() -> None:
    with on_terminal() as terminal:
        ended = terminal.end()
    assert ended.status == 0
    assert ended.stdout.startswith("Usage: cxc ")


@pytest.mark.usefixtures("docker_socket")
def test_build_shows_a_bar_and_takes_it_away(
    tmp_path: Path, busybox_image: str, container_name: str, docker_cli: DockerCommandLine
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox_image}\nRUN echo {container_name}\n")
    image = f"localhost/{container_name}:1"
    try:
        with on_terminal("build", str(tmp_path), "-t", image) as terminal:
            ended = terminal.end()
    finally:
        docker_cli(["image", "rm", "--force", image], check=False)
    assert ended.status == 0
    assert "step " in without_escapes(ended.stdout)
    assert "\x1b[?25h" in ended.stdout
    assert without_escapes(ended.stdout).splitlines()[-1].startswith(f"built {image}")


def test_container_output_cannot_command_the_terminal(busybox_image: str) -> None:
    script = r"printf 'a\033]0;owned\007b\033[2Jc\n'"
    with on_terminal("run", "--pull", "never", busybox_image, "sh", "-c", script) as terminal:
        ended = terminal.end()
    assert ended.stdout == "abc\n"
