"""What does a command exit with when something is wrong?"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.backends import DockerCommandLine
from tests.cli.console import cxc, options_before, started


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("list", "--no-such-option"), id="unknown option"),
        pytest.param(("lst",), id="unknown command"),
        pytest.param(("logs",), id="missing argument"),
        pytest.param(("logs", "name", "--tail", "many"), id="no number"),
        pytest.param(("logs", "-n", "0", "name"), id="out of bounds"),
        pytest.param(("list", "--toolsets", "nonsense"), id="unknown toolset"),
        pytest.param(("list", "--engine", "nonsense"), id="unknown engine"),
        pytest.param(("list", "--limit"), id="option without its value"),
        pytest.param(("stop", "nobody", "--timeout", "--yes"), id="option for a value"),
        pytest.param(("list", "--config", "/not/there.toml"), id="missing settings file"),
        pytest.param(("tools", "call", "container_list", "--arg", "nonsense"), id="malformed --arg"),
        pytest.param(("tools", "call", "container_list", "--args-json", "[1]"), id="arguments that are no object"),
        pytest.param(("build", "-t", "x", "--secret", "nonsense"), id="malformed secret"),
        pytest.param(("build", "-t", "x", "--build-arg", "=1"), id="malformed build argument"),
    ],
)
def test_a_wrong_argument_exits_with_2_and_prints_no_data(arguments: tuple[str, ...]) -> None:
    ended = cxc(*arguments)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("invalid_argument: ")
    ended = cxc(*arguments, "--json")
    assert ended.status == 2
    assert ended.document["status"] == "error"
    assert ended.document["code"] == "invalid_argument"
    assert ended.document["message"] == ended.document["error"] != ""
    assert ended.stderr == ""


@pytest.mark.parametrize(
    "arguments", [("list", "--engine"), ("list", "--name"), ("build", ".", "--tag"), ("rm", "x", "--config")]
)
def test_an_option_without_its_value_is_named_and_nothing_is_done(arguments: tuple[str, ...]) -> None:
    ended = cxc(*arguments)
    assert (ended.status, ended.stdout) == (2, "")
    assert "requires an argument" in ended.stderr
    assert f"cxc {arguments[0]} --help" in ended.stderr


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    assert "'list'" in cxc("lst").stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("ps",), "Try 'cxc list'."),
        (("version",), "Try 'cxc --version'."),
        (("volume", "ls"), "volume_list"),
        (("compose", "x"), "cannot do that yet"),
        (("run", "--rm", "x"), "removed at its end unless --keep"),
        (("run", "-it", "x"), "no terminal; -i"),
        (("exec", "-it", "x", "sh"), "no terminal; -i"),
    ],
)
def test_words_of_other_programs_are_answered_with_what_there_is(arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in cxc(*arguments).stderr


def test_an_error_about_an_argument_names_the_option_and_not_the_tool() -> None:
    said = cxc("list", "--status", "runing").stderr
    assert said.startswith("invalid_argument: --status: input should be ")


def test_an_unknown_engine_is_no_other_one() -> None:
    for arguments in (
        ("run", "--pull", "never", "localhost/none:1"),
        ("images",),
        ("status",),
        ("tools", "call", "image_list"),
    ):
        ended = cxc("--engine", "nonsense", *arguments)
        assert ended.status != 0
        assert ended.stdout == ""
        assert "'nonsense'" in ended.stderr


def test_engine_given_as_an_option_is_the_only_one_that_a_listing_asks() -> None:
    for name in ("list", "images"):
        ended = cxc("--engine", "memory", name, "--json")
        assert ended.status == 0
        assert {row["engine"] for row in ended.document["containers" if name == "list" else "images"]} <= {"memory"}
    assert [one["name"] for one in cxc("--engine", "memory", "status", "--json").document["engines"]] == ["memory"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "--name"),
        ("run", "--nonsense", "x"),
        ("run", "--config", "/not/there", "x"),
        ("run", "--cpus", "x", "y"),
    ],
)
def test_run_exits_with_125_for_errors_that_are_not_the_containers(arguments: tuple[str, ...]) -> None:
    ended = cxc(*arguments)
    assert (ended.status, ended.stdout) == (125, "")


def test_an_engine_that_does_not_answer_exits_with_6(tmp_path: Path) -> None:
    environment = {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    for arguments in (("list",), ("logs", "x"), ("rm", "x", "--yes"), ("cleanup",)):
        ended = cxc(*arguments, environment=environment)
        assert (ended.status, ended.stdout) == (6, ""), arguments
        assert "engine_unavailable" in ended.stderr
    assert cxc("run", "x", environment=environment).status == 125
    assert cxc("status", environment=environment).status == 0


def test_a_state_folder_that_others_may_write_to_exits_with_5(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    (state / "runs").mkdir()
    (state / "runs").chmod(0o777)
    ended = cxc("list", environment={"CODOMYRMEX_CONTAINERIZATION_STATE_DIR": str(state)})
    assert ended.status == 5
    assert "refused: " in ended.stderr


@pytest.mark.usefixtures("docker_socket")
class TestWithAnEngine:
    """Exit statuses that need one."""

    def test_an_unknown_container_exits_with_3(self) -> None:
        ended = cxc("logs", "no-container-is-called-this")
        assert (ended.status, ended.stdout) == (3, "")
        assert "cxc list --all" in ended.stderr

    def test_an_unknown_tool_exits_with_3_and_names_the_nearest(self) -> None:
        ended = cxc("tools", "call", "container_lst")
        assert ended.status == 3
        assert "container_list" in ended.stderr

    def test_a_tool_that_is_switched_off_exits_with_5(self) -> None:
        assert cxc("list", "--exclude-tools", "container_list").status == 5

    def test_an_image_that_is_not_there_is_no_exit_code_of_a_container(self) -> None:
        ended = cxc(*options_before("localhost/not-there:1"), "true")
        assert (ended.status, ended.stdout) == (125, "")
        assert "not_found" in ended.stderr

    @pytest.mark.parametrize(("command", "status"), [("no-such-program", 127), ("/etc", 126), ("/etc/passwd", 126)])
    def test_a_command_that_cannot_be_invoked_exits_as_dockers(
        self, busybox_image: str, command: str, status: int
    ) -> None:
        assert cxc(*options_before(busybox_image), command).status == status

    def test_a_policy_refusal_of_run_exits_with_125_and_names_the_setting(self, busybox_image: str) -> None:
        ended = cxc(*options_before(busybox_image, "--privileged"), "true")
        assert (ended.status, ended.stdout) == (125, "")
        assert "allow_privileged" in ended.stderr

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
    def test_a_signal_during_run_leaves_no_container(
        self,
        busybox_image: str,
        container_name: str,
        docker_cli: DockerCommandLine,
        tmp_path: Path,
        number: signal.Signals,
    ) -> None:
        fifo = tmp_path / "started"
        os.mkfifo(fifo)
        command = options_before(busybox_image, "--name", container_name, "-v", f"{fifo}:/started")
        with started(*command, "sh", "-c", "echo up > /started; sleep 1000") as process:
            assert fifo.read_text() == "up\n"
            process.send_signal(number)
            assert process.wait(60) == 128 + number
        assert docker_cli(["container", "inspect", container_name], check=False).returncode != 0
        assert cxc("cleanup", "--dry-run").stdout == ""
