"""Do the commands of an import print what they were asked for, and does a pipeline notice what failed?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codomyrmex_containerization import cli_commands, errors
from tests.backends import DockerCommandLine

PROMISED = {"build", "run", "stop", "inspect", "images", "status", "list", "logs", "rm", "exec"}

Capture = pytest.CaptureFixture[str]


def test_every_command_has_a_help_and_a_handler() -> None:
    commands = cli_commands()

    assert commands.keys() >= PROMISED
    for command in commands.values():
        assert command.keys() == {"help", "handler"}
        assert command["help"]
        assert callable(command["handler"])


def test_table_of_commands_is_the_callers_own() -> None:
    cli_commands().clear()

    assert cli_commands()


def test_status_prints_text_for_a_reader(docker_socket: Path, capsys: Capture) -> None:
    cli_commands()["status"]["handler"]()

    assert capsys.readouterr().out.startswith("docker (default)")


def test_images_prints_real_images_as_json(busybox_image: str, capsys: Capture) -> None:
    cli_commands()["images"]["handler"](name=busybox_image, json=True)
    found = json.loads(capsys.readouterr().out)

    assert found["status"] == "success"
    assert [row["tags"] for row in found["images"]] == [[busybox_image]]


def test_images_without_an_engine_prints_the_error_and_raises(no_engine: None, capsys: Capture) -> None:
    with pytest.raises(errors.EngineUnavailable):
        cli_commands()["images"]["handler"]()
    out, err = capsys.readouterr()

    assert out == ""
    assert err.startswith("engine_unavailable: ")
    assert "Next: " in err


def test_build_and_run_work_together(busybox_image: str, image: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox_image}\nCMD echo from the image\n")
    cli_commands()["build"]["handler"](image_name=image, dockerfile_path=str(tmp_path))
    cli_commands()["run"]["handler"](image=image)

    assert "from the image" in capsys.readouterr().out


def test_command_that_fails_in_a_container_is_printed_and_raised(busybox_image: str, capsys: Capture) -> None:
    with pytest.raises(errors.CommandFailed) as caught:
        cli_commands()["run"]["handler"](image=busybox_image, command=["sh", "-c", "echo why; exit 4"])
    out, err = capsys.readouterr()

    assert caught.value.details == {"exit_code": 4}
    assert "why" in out
    assert "exit code 4" in err


def test_command_that_takes_too_long_is_raised(busybox_image: str, capsys: Capture) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        cli_commands()["run"]["handler"](image=busybox_image, command=["sleep", "60"], timeout_seconds=0.3)


def test_unknown_argument_names_the_nearest_known_one(docker_socket: Path, capsys: Capture) -> None:
    with pytest.raises(errors.InvalidArgument):
        cli_commands()["logs"]["handler"](container="web", tial=5)

    assert "tail" in capsys.readouterr().err


def test_rm_of_others_container_needs_yes(foreign: str, docker_cli: DockerCommandLine, capsys: Capture) -> None:
    with pytest.raises(errors.ConfirmationRequired) as caught:
        cli_commands()["rm"]["handler"](container=foreign, force=True)
    still_there = docker_cli(["ps", "--quiet", "--filter", f"name={foreign}"]).stdout
    cli_commands()["rm"]["handler"](container=foreign, force=True, yes=True)

    assert "yes=True" in caught.value.hint
    assert still_there != ""
    assert docker_cli(["ps", "--all", "--quiet", "--filter", f"name={foreign}"]).stdout == ""


def test_stop_inspect_logs_exec_and_list_show_the_container(foreign: str, capsys: Capture) -> None:
    commands = cli_commands()
    commands["exec"]["handler"](container=foreign, command=["echo", "inside"])
    commands["inspect"]["handler"](container=foreign)
    commands["list"]["handler"](name=foreign)
    commands["logs"]["handler"](container=foreign)
    commands["stop"]["handler"](container=foreign)
    shown = capsys.readouterr().out

    assert "inside" in shown
    assert f"name: {foreign}" in shown
    assert "running -> exited" in shown


def test_raised_error_holds_no_secret(docker_socket: Path, capsys: Capture) -> None:
    token = "ghp_" + "a1B2c3D4e5" * 4
    with pytest.raises(errors.ContainerizationError) as caught:
        cli_commands()["inspect"]["handler"](container=token)
    shown = capsys.readouterr()

    assert token not in str(caught.value) + repr(caught.value.details) + shown.out + shown.err
    assert caught.value.__cause__ is None
