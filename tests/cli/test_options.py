"""Do global options and settings reach the program, whatever their place? No engine is needed for any of this."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codomyrmex_containerization import __version__, config
from codomyrmex_containerization.cli import app
from tests.cli.console import cxc


def settings(*arguments: str | Path) -> dict[str, tuple[object, str]]:
    """What `config show` says: value and source of each key."""
    rows = cxc("config", "show", "--json", *arguments).document["settings"]
    return {row["key"]: (row["value"], row["source"]) for row in rows}


def test_flags_after_the_command_become_settings_with_their_source() -> None:
    shown = settings("--read-only", "--engine", "docker", "--log-level", "error", "--tools", "container_list")
    assert shown["read_only"] == (True, "flag --read-only")
    assert shown["engine"] == ("docker", "flag --engine")
    assert shown["log_level"] == ("error", "flag --log-level")
    assert shown["tools"] == (["container_list"], "flag --tools")
    assert shown["toolsets"] == (["default"], "default")


def test_flags_before_the_command_count_and_those_after_it_are_stronger() -> None:
    rows = cxc("--log-level", "error", "--json", "--read-only", "config", "show", "--log-level", "debug").document
    shown = {row["key"]: row["value"] for row in rows["settings"]}
    assert shown["log_level"] == "debug"
    assert shown["read_only"] is True


def test_lists_are_given_with_commas_or_several_times() -> None:
    names = "container_list,container_run"
    shown = settings("--exclude-tools", names, "--exclude-tools", "container_build")
    assert shown["exclude_tools"][0] == ["container_list", "container_run", "container_build"]


def test_a_settings_file_is_named_with_config(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("read_only = true\n")
    file.chmod(0o600)
    assert settings("--config", file)["read_only"] == (True, f"user file {file}")
    assert cxc("config", "path", "--config", file).stdout == f"{file}\n"


def test_what_is_ignored_in_the_working_folder_is_said_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "containerization.toml").write_text("[policy]\nallow_privileged = true\n")
    ended = cxc("config", folder=tmp_path)
    assert ended.status == 0
    assert ended.stderr.startswith("warning: ")
    assert "allow_privileged" in ended.stderr


def test_config_show_masks_secrets() -> None:
    secret = "planted-9f3b77c1e2"
    environment = {"CODOMYRMEX_CONTAINERIZATION_BUILDX": f"https://user:{secret}@localhost/x"}
    for arguments in (("config",), ("config", "--json"), ("config", "show")):
        ended = cxc(*arguments, environment=environment)
        assert ended.status == 0
        assert secret not in ended.stdout + ended.stderr


def test_an_error_about_a_setting_masks_secrets() -> None:
    secret = "ghp_" + "a1B2" * 9
    ended = cxc("list", environment={"CODOMYRMEX_CONTAINERIZATION_READ_ONLY": secret})
    assert ended.status == 2
    assert secret not in ended.stdout + ended.stderr


def test_config_example_is_a_file_that_can_be_used(tmp_path: Path) -> None:
    file = tmp_path / "example.toml"
    file.write_text(cxc("config", "example").stdout)
    file.chmod(0o600)
    assert file.read_text() == config.example()
    assert cxc("config", "show", "--config", file).status == 0


def test_config_path_is_in_the_users_own_folder(private_folders: Path) -> None:
    ended = cxc("config", "path")
    assert ended.stdout.startswith(str(private_folders))
    assert "does not exist" in ended.stderr
    assert cxc("config", "path", "--json").document["exists"] is False


def test_tools_are_listed_with_their_annotations() -> None:
    tools = {tool["name"]: tool for tool in cxc("tools", "list", "--json").document["tools"]}
    assert tools["container_remove"]["annotations"]["destructiveHint"] is True
    assert tools["container_list"]["annotations"]["readOnlyHint"] is True
    rows = [line.split() for line in cxc("tools").stdout.splitlines()]
    assert rows[0][:3] == ["TOOL", "TOOLSET", "EFFECT"]
    assert next(row for row in rows if row[0] == "container_remove")[2] == "destroys"


def test_tools_that_are_switched_off_are_listed_only_with_all() -> None:
    listed = cxc("tools", "list", "--exclude-tools", "container_run").stdout
    assert "container_run" not in listed.split()
    shown = cxc("tools", "list", "--all", "--json", "--toolsets", "all", "--exclude-tools", "container_run").document[
        "tools"
    ]
    assert {tool["name"] for tool in shown if not tool["enabled"]} == {"container_run"}


def test_tools_schema_is_the_json_schema_of_the_arguments() -> None:
    schema = cxc("tools", "schema", "container_logs").document
    assert schema["additionalProperties"] is False
    assert "tail" in schema["properties"]
    assert cxc("tools", "schema", "container_log").status == 3


def test_version_is_printed() -> None:
    assert cxc("--version").stdout == f"codomyrmex-containerization {__version__}\n"


@pytest.mark.parametrize("name", ["-h", "--help"])
@pytest.mark.parametrize(
    "command", [(), *((name,) for name in app.root().commands), ("tools", "call"), ("config", "show")]
)
def test_every_command_has_help(command: tuple[str, ...], name: str) -> None:
    assert app.run([*command, name]) == 0


def test_help_loads_nothing_but_the_parser() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "codomyrmex_containerization", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "click" in loaded
    assert not loaded & {"mcp", "mcp_types", "rich", "pydantic", "docker", "requests", "anyio", "dockerfile"}


def test_serve_is_given_the_settings_of_the_command_line() -> None:
    served: list[config.LoadedSettings] = []
    assert app.run(["--read-only", "serve", "--log-level", "error"], serve=served.append) == 0
    assert served[0].settings.read_only is True
    assert served[0].settings.log_level == "error"


def test_serve_serves_until_stdin_ends() -> None:
    ended = cxc("serve", "--read-only")
    assert (ended.status, ended.stdout) == (0, "")


def test_settings_alone_without_a_terminal_serve_too() -> None:
    ended = cxc("--read-only")
    assert (ended.status, ended.stdout) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_the_program(shell: str) -> None:
    ended = cxc("completion", shell)
    assert ended.status == 0
    assert "_CXC_COMPLETE" in ended.stdout


def test_completion_knows_the_commands() -> None:
    words = {"COMP_WORDS": "cxc l", "COMP_CWORD": "1", "_CXC_COMPLETE": "bash_complete"}
    command = [sys.executable, "-c", "from codomyrmex_containerization.cli import app; app.main()"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **words})
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == {"list", "login", "logout", "logs"}
