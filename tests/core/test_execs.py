"""Does a command inside a container say what it said, end as it ended, and really end at its time-out?"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import containers, execs
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.details import ExecSpec
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.server import engines
from tests.server.engines import eventually, processes

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """A container that sleeps, made by others."""

    name: str
    docker: DockerCommandLine


@pytest.fixture(scope="module")
def place(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Place]:
    name = f"cxc-exec-{uuid.uuid4().hex[:8]}"
    docker_cli(["run", "--detach", "--name", name, "--label", session_label, busybox_image, "sleep", "3600"])
    yield Place(name, docker_cli)
    docker_cli(["rm", "--force", name])


@pytest.fixture
def own_place(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Place]:
    """One that a test may pause, stop and remove."""
    name = f"cxc-exec-{uuid.uuid4().hex[:8]}"
    docker_cli(["run", "--detach", "--name", name, "--label", session_label, busybox_image, "sleep", "3600"])
    yield Place(name, docker_cli)
    docker_cli(["rm", "--force", name], check=False)


@pytest.fixture
def marker() -> Iterator[str]:
    """Seconds to sleep, with digits of this test's own; whatever still sleeps so long is ended."""
    text = f"1{uuid.uuid4().int % 10**9:09d}"
    yield text
    for pid in processes(text):
        os.kill(pid, 9)


async def run(
    place: Place,
    *command: str,
    stdin: bytes | None = None,
    timeout_seconds: float = 30,
    user: str | None = None,
    workdir: str | None = None,
    env: Mapping[str, str] | None = None,
) -> execs.ExecResult:
    async with harness.opened() as house:
        return await execute(
            house.engine,
            place,
            *command,
            stdin=stdin,
            timeout_seconds=timeout_seconds,
            user=user,
            workdir=workdir,
            env=env,
        )


async def execute(
    engine: guard.GuardedEngine,
    place: Place,
    *command: str,
    stdin: bytes | None = None,
    timeout_seconds: float = 30,
    user: str | None = None,
    workdir: str | None = None,
    env: Mapping[str, str] | None = None,
) -> execs.ExecResult:
    state = await containers.find(engine, place.name)
    spec = ExecSpec(command, env or {}, user=user, workdir=workdir, stdin=stdin is not None)
    return await execs.execute(engine, state, spec, stdin=stdin, timeout_seconds=timeout_seconds)


# ----------------------------------------------------------------------------------------------------- what it says


async def test_exec_keeps_the_streams_apart_and_returns_the_exit_code(place: Place) -> None:
    result = await run(place, "sh", "-c", "echo out; echo err >&2; echo more; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\nmore\n", "err\n")
    assert not result.timed_out


async def test_exec_feeds_standard_input_and_closes_it(place: Place) -> None:
    result = await run(place, "cat", stdin="häll\n".encode() * 20_000 + b"the end")
    assert result.exit_code == 0
    assert result.stdout.startswith("häll\n")
    assert result.stdout.endswith("the end")


async def test_exec_without_standard_input_reads_its_end_at_once(place: Place) -> None:
    result = await run(place, "sh", "-c", "cat; echo read")
    assert (result.exit_code, result.stdout) == (0, "read\n")


async def test_exec_of_a_command_that_does_not_read_its_input_ends(place: Place) -> None:
    result = await run(place, "sh", "-c", "exec <&-; echo unread", stdin=bytes(8 * MEBIBYTE))
    assert (result.exit_code, result.stdout) == (0, "unread\n")


async def test_exec_honours_user_folder_and_environment(place: Place) -> None:
    script = 'echo "$(id -u):$(id -g) $(pwd) $COLOUR"'
    result = await run(place, "sh", "-c", script, user="65534:7", workdir="/tmp", env={"COLOUR": "a=b c\nd"})
    assert result.stdout == "65534:7 /tmp a=b c\nd\n"


async def test_exec_shows_bytes_that_are_no_text(place: Place) -> None:
    result = await run(place, "printf", r"a\377b\000c\033[31mred\033[0m\n")
    assert result.stdout.startswith("a\\xffb")
    assert "\0" not in result.stdout
    assert "\033" not in result.stdout


async def test_exec_with_huge_output_keeps_both_ends_and_little_memory(place: Place) -> None:
    async with harness.opened() as house:
        await execute(house.engine, place, "true")
        before = _resident_bytes()
        script = "echo first; yes 'a line of some length' | head -c 100000000; echo; echo last"
        result = await execute(house.engine, place, "sh", "-c", script, timeout_seconds=120)
    assert result.exit_code == 0
    assert result.stdout.startswith("first\n")
    assert result.stdout.endswith("last\n")
    assert "bytes left out" in result.stdout
    assert len(result.stdout) < 200_000
    assert _resident_bytes() - before < 40 * MEBIBYTE


async def test_exec_that_closes_its_output_is_waited_for(place: Place) -> None:
    result = await run(place, "sh", "-c", "exec >&- 2>&-; sleep 1; exit 5")
    assert result.exit_code == 5


async def test_exec_that_leaves_something_in_the_background_has_ended(place: Place, marker: str) -> None:
    result = await run(place, "sh", "-c", f"setsid sleep {marker} & echo left", timeout_seconds=1)
    assert (result.exit_code, result.stdout, result.timed_out) == (0, "left\n", False)
    assert len(processes(marker)) == 1


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ------------------------------------------------------------------------------------------------- how it is ended


@pytest.mark.parametrize(
    ("script", "user"),
    [
        ("exec sleep N", None),
        ("sleep N & sleep N", None),
        ("trap '' TERM HUP INT; sleep N & sleep N", None),
        ("(sleep N &); sleep N", None),
        ("(sleep N & sleep N &) & sleep N", "65534:65534"),
        ("setsid sleep N & wait", "nobody"),
        ("yes > /dev/null & sleep N", None),
    ],
    ids=["alone", "child", "ignores-signals", "orphan", "another-user", "own-session", "busy"],
)
async def test_exec_at_its_time_out_leaves_no_process(place: Place, marker: str, script: str, user: str | None) -> None:
    result = await run(place, "sh", "-c", script.replace("N", marker), timeout_seconds=0.7, user=user)
    assert (result.timed_out, result.killed, result.exit_code) == (True, True, None)
    assert processes(marker) == []


async def test_exec_at_its_time_out_leaves_the_container_and_other_commands_running(place: Place, marker: str) -> None:
    async with harness.opened() as house, anyio.create_task_group() as tasks:
        tasks.start_soon(execute, house.engine, place, "sleep", marker)
        await eventually(lambda: len(processes(marker)) == 1, "the other command runs")
        result = await execute(house.engine, place, "sleep", "3000", timeout_seconds=0.3)
        assert result.killed
        assert len(processes(marker)) == 1
        tasks.cancel_scope.cancel()
    await eventually(lambda: processes(marker) == [], "the other command is gone")


async def test_exec_that_floods_until_its_time_out_is_ended_with_what_it_said_first(place: Place) -> None:
    before = _resident_bytes()
    result = await run(place, "yes", timeout_seconds=2)
    assert (result.timed_out, result.killed) == (True, True)
    assert result.stdout.startswith("y\ny\n")
    assert len(result.stdout) < 200_000
    assert _resident_bytes() - before < 40 * MEBIBYTE
    assert "yes" not in [line.split()[-1] for line in place.docker(["top", place.name]).stdout.splitlines()]


@pytest.mark.parametrize("timeout_seconds", [0.1, 0.001])
async def test_exec_whose_time_out_comes_while_it_starts_leaves_no_process(
    place: Place, marker: str, timeout_seconds: float
) -> None:
    result = await run(place, "sleep", marker, timeout_seconds=timeout_seconds)
    assert (result.timed_out, result.killed) == (True, True)
    assert processes(marker) == []


async def test_exec_whose_call_is_cancelled_leaves_no_process(place: Place, marker: str) -> None:
    async with harness.opened() as house, anyio.create_task_group() as tasks:
        tasks.start_soon(execute, house.engine, place, "sh", "-c", f"trap '' TERM; sleep {marker} & sleep {marker}")
        await eventually(lambda: len(processes(f"\0{marker}")) == 2, "the command runs")
        tasks.cancel_scope.cancel()
    assert processes(marker) == []


async def test_exec_whose_start_the_engine_never_answers_does_not_claim_to_have_ended_it(
    place: Place, tmp_path: Path, docker_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = engines.Relay(docker_socket, b"/start")
    async with engines.listening(tmp_path / "relay.sock", relay.handle) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        async with harness.opened() as house:
            result = await execute(house.engine, place, "true", timeout_seconds=0.5)
    assert (result.timed_out, result.killed) == (True, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("program", ["busybox", "odd"])
def test_exec_by_a_server_that_is_not_root_is_ended_by_the_containers_own_kill(
    own_place: Place, marker: str, program: str, docker_socket: Path, tmp_path: Path
) -> None:
    docker = own_place.docker
    if program == "odd":
        docker(["exec", own_place.name, "sh", "-c", "mv /bin/busybox /bin/busybox-odd; rm -f /bin/kill"], check=False)
        command = ["/bin/busybox-odd", "sleep", marker]
    else:
        command = ["sh", "-c", f"(trap '' TERM; sleep {marker}) & sleep {marker}"]
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(docker_socket), own_place.name, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    has_kill = program == "busybox"
    assert done.stdout.split() == ["True", str(has_kill)], done.stderr
    assert (processes(marker) == []) is has_kill


_AS_NOBODY = """
import os, sys
import anyio, anyio._backends._asyncio, docker, requests, urllib3, encodings.idna
from codomyrmex_containerization.core import containers, execs
from codomyrmex_containerization.engines.docker import engine
from codomyrmex_containerization.models.details import ExecSpec
from codomyrmex_containerization.models.engine import Endpoint

socket, name, *command = sys.argv[1:]
made = engine.DockerEngine(Endpoint("docker", f"unix://{socket}", socket), timeout_seconds=20)

async def main():
    await made.info()
    os.setgroups([os.stat(socket).st_gid])
    os.setgid(65534)
    os.setuid(65534)
    state = await containers.find(made, name)
    result = await execs.execute(made, state, ExecSpec(tuple(command), {}), stdin=None, timeout_seconds=1)
    print(result.timed_out, result.killed)
    await made.aclose()

anyio.run(main)
"""


# -------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "/etc", "/etc/passwd"])
async def test_exec_of_what_is_no_program_is_command_failed(place: Place, program: str) -> None:
    with pytest.raises(errors.CommandFailed, match="could not be started") as caught:
        await run(place, program)
    assert program in caught.value.message
    assert caught.value.details["exit_code"] in (126, 127)


async def test_exec_of_a_program_that_says_the_engines_words_is_no_failure_of_the_engine(place: Place) -> None:
    result = await run(place, "sh", "-c", "echo a; echo 'OCI runtime exec failed: exec failed: x'; exit 126")
    assert result.exit_code == 126


@pytest.mark.parametrize("user", ["ghost", "0:ghosts"])
async def test_exec_as_an_unknown_user_is_an_invalid_argument(place: Place, user: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=user):
        await run(place, "true", user=user)


@pytest.mark.parametrize("workdir", ["/no/such/folder", "relative"])
async def test_exec_in_an_unknown_folder_is_an_invalid_argument(place: Place, workdir: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=workdir):
        await run(place, "true", workdir=workdir)


async def test_exec_in_a_container_that_does_not_run_is_a_conflict(own_place: Place) -> None:
    own_place.docker(["pause", own_place.name])
    with pytest.raises(errors.Conflict, match="is paused"):
        await run(own_place, "true")
    own_place.docker(["unpause", own_place.name])
    own_place.docker(["kill", own_place.name])
    with pytest.raises(errors.Conflict, match="is exited"):
        await run(own_place, "true")


async def test_exec_in_a_container_that_stops_after_it_was_looked_at_is_a_conflict(own_place: Place) -> None:
    async with harness.opened() as house:
        state = await containers.find(house.engine, own_place.name)
        own_place.docker(["kill", own_place.name])
        with pytest.raises(errors.Conflict, match="is not running"):
            await execs.execute(house.engine, state, ExecSpec(("true",), {}), stdin=None, timeout_seconds=10)


@pytest.mark.parametrize("end", [["kill"], ["rm", "--force"]], ids=["killed", "removed"])
async def test_exec_in_a_container_that_ends_meanwhile_ends_with_it(
    own_place: Place, marker: str, end: list[str]
) -> None:
    results: list[execs.ExecResult | errors.ContainerizationError] = []

    async def go(engine: guard.GuardedEngine) -> None:
        try:
            results.append(await execute(engine, own_place, "sh", "-c", f"echo said; sleep {marker}"))
        except errors.ContainerizationError as error:
            results.append(error)

    async with harness.opened() as house, anyio.create_task_group() as tasks:
        tasks.start_soon(go, house.engine)
        await eventually(lambda: bool(processes(f"\0{marker}")), "the command runs")
        await anyio.to_thread.run_sync(lambda: own_place.docker([*end, own_place.name]))
    (result,) = results
    if isinstance(result, execs.ExecResult):
        assert (result.exit_code, result.stdout, result.timed_out) == (137, "said\n", False)
    else:
        assert isinstance(result, errors.CommandFailed | errors.NotFound)


async def test_exec_in_a_container_without_shell_or_kill_is_ended_at_its_time_out(
    docker_cli: DockerCommandLine, session_label: str, busybox_image: str, marker: str, tmp_path: Path
) -> None:
    # An image with one file: busybox under another name.
    docker_cli(["run", "--name", f"cxc-{marker}", "--label", session_label, busybox_image, "true"])
    docker_cli(["cp", f"cxc-{marker}:/bin/busybox", tmp_path / "busybox-only"])
    docker_cli(["rm", f"cxc-{marker}"])
    dockerfile = b'FROM scratch\nCOPY busybox-only /\nCMD ["/busybox-only", "sleep", "3600"]\n'
    (tmp_path / "Dockerfile").write_bytes(dockerfile)
    image = f"localhost/cxc-test-only-{marker}:1"
    docker_cli(["build", "--tag", image, "--label", session_label, tmp_path])
    try:
        docker_cli(["run", "--detach", "--name", f"cxc-{marker}", "--label", session_label, image])
        result = await run(Place(f"cxc-{marker}", docker_cli), "/busybox-only", "sleep", marker, timeout_seconds=0.5)
        assert (result.timed_out, result.killed) == (True, True)
        assert processes(f"sleep\0{marker}") == []
        assert (await run(Place(f"cxc-{marker}", docker_cli), "/busybox-only", "echo", "well")).stdout == "well\n"
    finally:
        docker_cli(["rm", "--force", f"cxc-{marker}"], check=False)
        docker_cli(["rmi", image], check=False)
