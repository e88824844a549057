"""Does each command do its work on a real engine, and does it keep data and messages apart?"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backends import DockerCommandLine
from tests.cli.console import COMMAND, cxc, options_before

pytestmark = pytest.mark.usefixtures("docker_socket")

StartContainer = Callable[..., str]


def exists(docker_cli: DockerCommandLine, name: str) -> bool:
    return docker_cli(["container", "inspect", name], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------------------- status


def test_status_names_the_engine_that_answers() -> None:
    ended = cxc("status")
    assert ended.status == 0
    assert "docker (default)" in ended.stdout
    assert ended.stderr == ""


def test_status_as_json_is_the_structured_answer() -> None:
    document = cxc("status", "--json").document
    assert document["status"] == "success"
    assert document["engines"][0]["available"] is True
    assert document["runtimes"]["docker"] is True


# ---------------------------------------------------------------------------------------------------------------- build


@pytest.fixture
def build_folder(tmp_path: Path, busybox_image: str) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {busybox_image}\nARG WORD=none\nRUN echo built-with-$WORD > /word\n")
    (folder / "other.dockerfile").write_text(f"FROM {busybox_image}\nCOPY Dockerfile /copied\n")
    return folder


@pytest.fixture
def image_name(docker_cli: DockerCommandLine, container_name: str) -> object:
    name = f"localhost/{container_name}:1"
    yield name
    docker_cli(["image", "rm", "--force", name], check=False)


def test_build_makes_the_image_and_reports_its_steps_on_stderr(build_folder: Path, image_name: str) -> None:
    ended = cxc("build", build_folder, "-t", image_name, "--build-arg", "WORD=this")
    assert ended.status == 0, ended.stderr
    assert ended.stdout.startswith(f"built {image_name} (")
    assert ended.stdout.count("\n") == 1
    assert "RUN echo built-with-$WORD" in ended.stderr
    assert cxc(*options_before(image_name), "cat", "/word").stdout == "built-with-this\n"


def test_build_takes_a_build_argument_from_the_environment(build_folder: Path, image_name: str) -> None:
    cxc("build", build_folder, "-t", image_name, "--build-arg", "WORD", environment={"WORD": "ours"})
    assert cxc(*options_before(image_name), "cat", "/word").stdout == "built-with-ours\n"


def test_build_takes_the_working_folder_when_no_path_is_given(build_folder: Path, image_name: str) -> None:
    ended = cxc("build", "--tag", image_name, "--json", folder=build_folder)
    assert ended.document["image"] == image_name
    assert ended.stderr == ""


def test_build_with_another_dockerfile_keeps_the_path_as_context(build_folder: Path, image_name: str) -> None:
    ended = cxc("build", build_folder, "-f", build_folder / "other.dockerfile", "-t", image_name)
    assert ended.status == 0, ended.stderr


def test_build_reads_the_dockerfile_from_stdin(busybox_image: str, image_name: str) -> None:
    ended = cxc("build", "-", "-t", image_name, "--log", stdin=f"FROM {busybox_image}\nRUN echo said-so\n".encode())
    assert ended.status == 0, ended.stderr
    assert "said-so" in ended.stderr


def test_build_that_fails_says_where_and_exits_with_12(busybox_image: str, image_name: str) -> None:
    text = f"FROM {busybox_image}\nRUN echo oh-no && exit 9\n".encode()
    ended = cxc("build", "-", "-t", image_name, stdin=text)
    assert ended.status == 12
    assert ended.stdout == ""
    assert "build_failed: " in ended.stderr
    assert "oh-no" in ended.stderr


# ------------------------------------------------------------------------------------------------------------------ run


def test_run_passes_both_streams_on_and_exits_with_the_containers_code(busybox_image: str) -> None:
    script = "printf 'one\\ntwo'; echo three >&2; echo four >&2; exit 7"
    ended = cxc(*options_before(busybox_image), "sh", "-c", script)
    assert (ended.status, ended.stdout, ended.stderr) == (7, "one\ntwo", "three\nfour\n")


def test_run_leaves_what_follows_the_image_to_the_container(busybox_image: str) -> None:
    ended = cxc(*options_before(busybox_image), "echo", "--json", "--yes", "-h", "--", "-e")
    assert (ended.status, ended.stdout) == (0, "--json --yes -h -- -e\n")


def test_run_as_json_holds_the_streams_and_still_exits_with_the_containers_code(busybox_image: str) -> None:
    ended = cxc(*options_before(busybox_image, "--json"), "sh", "-c", "echo one; echo two >&2; exit 3")
    assert ended.status == 3
    assert ended.document | {"exit_code": 3, "stdout": "one\n", "stderr": "two\n"} == ended.document


def test_run_hands_its_options_over(busybox_image: str, tmp_path: Path, container_name: str) -> None:
    (tmp_path / "note").write_text("from the host")
    options = (
        *(
            "--name",
            container_name,
            "-e",
            "A=b=c",
            "-e",
            "TAKEN",
            "-e",
            "ABSENT_HERE",
            "-w",
            "/tmp",
            "-u",
            "65534:65534",
        ),
        *("-v", f"{tmp_path}:/host:ro", "-v", "tmpfs:/scratch:1m", "--network", "none", "-m", "64m", "--cpus", "0.5"),
        *("--pids-limit", "50", "--read-only-rootfs", "--cap-drop", "ALL", "-l", "mine=yes", "--entrypoint", "sh"),
    )
    os.chmod(tmp_path, stat.S_IRWXU | stat.S_IXOTH | stat.S_IROTH)
    script = (
        'echo "$A,$TAKEN,${ABSENT_HERE-unset},$PWD,$(id -u)"; cat /host/note; touch /here 2>/dev/null || echo " sealed"'
    )
    ended = cxc(*options_before(busybox_image, *options), "-c", script, environment={"TAKEN": "ours"})
    assert (ended.status, ended.stdout) == (0, "b=c,ours,unset,/tmp,65534\nfrom the host sealed\n")


def test_run_gives_the_container_our_stdin(busybox_image: str) -> None:
    ended = cxc(*options_before(busybox_image, "-i"), "wc", "-c", stdin="grün\n".encode())
    assert ended.stdout.strip() == "6"


def test_run_refuses_stdin_that_is_no_text(busybox_image: str) -> None:
    ended = cxc(*options_before(busybox_image, "-i"), "cat", stdin=b"\xff\xfe")
    assert (ended.status, ended.stdout) == (125, "")
    assert "UTF-8" in ended.stderr


def test_run_whose_time_is_up_exits_with_124_and_shows_what_was_said(
    busybox_image: str, container_name: str, docker_cli: DockerCommandLine
) -> None:
    command = options_before(busybox_image, "--timeout", "2", "--name", container_name)
    ended = cxc(*command, "sh", "-c", "echo early; sleep 1000")
    assert (ended.status, ended.stdout) == (124, "early\n")
    assert "timed out" in ended.stderr
    assert not exists(docker_cli, container_name)


def test_run_detached_prints_the_id_that_other_commands_take(
    busybox_image: str, container_name: str, docker_cli: DockerCommandLine
) -> None:
    ended = cxc(*options_before(busybox_image, "-d", "--name", container_name), "sleep", "1000")
    assert ended.status == 0
    assert f"container {container_name} is running" in ended.stderr
    assert cxc("rm", "--force", "--yes", ended.stdout.strip()).status == 0
    assert not exists(docker_cli, container_name)


def test_run_with_keep_leaves_the_container(
    busybox_image: str, container_name: str, docker_cli: DockerCommandLine
) -> None:
    ended = cxc(*options_before(busybox_image, "--keep", "--name", container_name), "echo", "kept")
    assert ended.stdout == "kept\n"
    assert container_name in ended.stderr
    assert exists(docker_cli, container_name)


def test_run_says_what_it_left_out_of_a_flood(busybox_image: str) -> None:
    ended = cxc(*options_before(busybox_image), "sh", "-c", "yes 0123456789 | head -n 60000")
    assert ended.status == 0
    assert len(ended.stdout) < 220_000
    assert "left out" in ended.stdout


def test_run_masks_a_secret_that_the_container_prints(busybox_image: str) -> None:
    secret = "planted-in-env-9f3b77c1"
    ended = cxc(*options_before(busybox_image, "-e", f"API_TOKEN={secret}"), "sh", "-c", "env; env >&2; exit 1")
    assert "API_TOKEN=***" in ended.stdout
    assert secret not in ended.stdout + ended.stderr


# --------------------------------------------------------------------------------------------------- list, logs, remove


def test_list_shows_a_running_container_as_plain_columns(start_container: StartContainer) -> None:
    name = start_container()
    ended = cxc("list", "--name", name)
    header, row = ended.stdout.splitlines()
    assert header.split()[:4] == ["ID", "NAME", "IMAGE", "STATUS"]
    assert row.split()[1] == name
    assert "running" in row
    assert "\x1b" not in ended.stdout


def test_list_as_json_holds_usage_unless_it_is_not_wanted(start_container: StartContainer) -> None:
    name = start_container()
    assert cxc("list", "--json", "--name", name).document["containers"][0]["pids"] >= 1
    assert "pids" not in cxc("list", "--json", "--name", name, "--no-usage").document["containers"][0]


def test_list_goes_on_where_the_page_before_ended(start_container: StartContainer, session_label: str) -> None:
    names = {start_container(), start_container()}
    first = cxc("list", "--limit", "1", "--label", session_label, "--filter-image", "busybox", "--status", "running")
    cursor = first.stderr.split("--cursor ")[1].strip()
    first_name = first.stdout.splitlines()[1].split()[1]
    second = cxc(
        *("list", "--limit", "1", "--label", session_label, "--filter-image", "busybox", "--status", "running"),
        *("--cursor", cursor),
    )
    assert {first_name, second.stdout.splitlines()[1].split()[1]} == names


def test_list_without_containers_prints_no_data() -> None:
    ended = cxc("list", "--name", "no-container-is-called-this")
    assert (ended.status, ended.stdout) == (0, "")
    assert "no containers running" in ended.stderr


def test_logs_keep_the_streams_apart(start_container: StartContainer, docker_cli: DockerCommandLine) -> None:
    name = start_container("echo one; echo two >&2; echo three")
    docker_cli(["wait", name])
    ended = cxc("logs", name)
    assert (ended.stdout, ended.stderr) == ("one\nthree\n", "two\n")
    assert cxc("logs", name, "--grep", "TWO", "--json").document["lines"] == [{"stream": "stderr", "text": "two"}]
    assert cxc("logs", "-n", "1", "--stream", "stdout", name).stdout == "three\n"
    assert cxc("logs", name, "--stream", "stdout", "-t").stdout.splitlines()[0].endswith("Z one")


def test_logs_follow_until_the_container_ends(start_container: StartContainer) -> None:
    name = start_container("echo one; sleep 1; echo two")
    assert cxc("logs", name, "-f", "30").stdout == "one\ntwo\n"


def test_logs_that_were_cut_say_how_to_get_the_rest(
    start_container: StartContainer, docker_cli: DockerCommandLine
) -> None:
    name = start_container("seq 1 30")
    docker_cli(["wait", name])
    ended = cxc("logs", name, "--tail", "2")
    assert ended.stdout == "29\n30\n"
    assert "of 30 lines" in ended.stderr


def test_remove_wants_yes_where_nobody_can_be_asked(
    start_container: StartContainer, docker_cli: DockerCommandLine
) -> None:
    name = start_container()
    ended = cxc("rm", "--force", name)
    assert (ended.status, ended.stdout) == (5, "")
    assert "--yes" in ended.stderr
    assert "token" not in ended.stderr
    assert exists(docker_cli, name)


def test_remove_with_yes_before_or_after_the_command_removes(
    start_container: StartContainer, docker_cli: DockerCommandLine
) -> None:
    first, second = start_container(), start_container()
    assert cxc("--yes", "rm", "--force", first).stdout == f"{first}\n"
    assert cxc("rm", second, "--force", "--yes").stdout == f"{second}\n"
    assert not exists(docker_cli, first)
    assert not exists(docker_cli, second)


def test_remove_goes_on_after_one_that_is_not_there(
    start_container: StartContainer, docker_cli: DockerCommandLine
) -> None:
    name = start_container()
    ended = cxc("rm", "--force", "--yes", "not-there-at-all", name, "--json")
    assert ended.status == 3
    assert [one["status"] for one in ended.document["results"]] == ["error", "success"]
    assert not exists(docker_cli, name)


def test_remove_of_a_running_container_names_the_option_that_helps(start_container: StartContainer) -> None:
    ended = cxc("rm", start_container(), "--yes")
    assert ended.status == 4
    assert "--force" in ended.stderr


# -------------------------------------------------------------------------------------------------- tools and cleanup


def test_tools_call_calls_any_tool(start_container: StartContainer) -> None:
    name = start_container()
    ended = cxc("tools", "call", "container_list", "--arg", f"name={name}", "--arg", "usage:=false", "--json")
    assert [row["name"] for row in ended.document["containers"]] == [name]
    ended = cxc("tools", "call", "container_list", "--args-json", json.dumps({"name": name}))
    assert name in ended.stdout


def test_tools_call_of_a_destructive_tool_passes_the_same_gate(start_container: StartContainer) -> None:
    name = start_container()
    arguments = ("tools", "call", "container_remove", "--arg", f"container={name}", "--arg", "force=true")
    assert cxc(*arguments).status == 5
    assert cxc(*arguments, "--yes").status == 0


def test_read_only_refuses_what_changes_something(
    start_container: StartContainer, busybox_image: str, docker_cli: DockerCommandLine
) -> None:
    name = start_container()
    assert cxc("rm", "--force", "--yes", "--read-only", name).status == 5
    assert cxc("--read-only", *options_before(busybox_image), "true").status == 125
    assert cxc("cleanup", "--read-only").status == 5
    assert cxc("list", "--read-only").status == 0
    assert exists(docker_cli, name)


def test_cleanup_takes_what_a_killed_run_left_and_nothing_before(
    busybox_image: str, container_name: str, docker_cli: DockerCommandLine, tmp_path: Path
) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    command = options_before(busybox_image, "--name", container_name, "-v", f"{fifo}:/started")
    process = subprocess.Popen([*COMMAND, *command, "sh", "-c", "echo up > /started; sleep 1000"])
    try:
        assert fifo.read_text() == "up\n"
    finally:
        process.kill()
        process.wait()
    assert container_name in cxc("cleanup", "--dry-run").stdout
    assert exists(docker_cli, container_name)
    assert any(container_name in line for line in cxc("cleanup", "--json").document["removed"])
    assert not exists(docker_cli, container_name)
    assert cxc("cleanup").stdout == ""


def test_a_reader_that_goes_away_is_no_error(start_container: StartContainer) -> None:
    start_container()
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*COMMAND, "list"], stdout=writing, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    finally:
        os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_list_loads_neither_the_server_nor_a_table_drawer() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "codomyrmex_containerization", "list"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "click" in loaded
    assert not loaded & {"mcp", "mcp_types", "rich", "pydantic_settings", "dockerfile"}
