"""Does a container on a real Docker engine run as it was asked to, and end as it is said to have ended?"""

from __future__ import annotations

import json
import socket
import tempfile
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from codomyrmex_containerization.engines import guard
from tests.backends import DockerCommandLine
from tests.dispatch import harness

pytestmark = pytest.mark.usefixtures("docker_socket")


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def fresh_name() -> str:
    return f"cxc-test-{uuid.uuid4().hex[:8]}"


async def run(image: str, *command: str, **more: Any) -> dict[str, Any]:
    """Run a container to its end and return the answer."""
    async with harness.opened() as house:
        return await house.ok("container_run", image=image, command=list(command), **more)


async def shell(image: str, script: str, **more: Any) -> dict[str, Any]:
    return await run(image, "sh", "-c", script, **more)


# --------------------------------------------------------------------------------------------------- output and its end


@pytest.mark.parametrize("code", [0, 1, 42, 125, 126, 127, 255])
async def test_exit_code_is_the_programs_own(busybox_image: str, code: int) -> None:
    answer = await shell(busybox_image, f"exit {code}")
    assert answer["exit_code"] == code
    assert answer["status"] == "success"


async def test_program_that_a_signal_ended_has_its_exit_code(busybox_image: str) -> None:
    answer = await shell(busybox_image, "kill -KILL $$ || true; sleep 5 & kill -TERM $!; wait $!; exit $?")
    assert answer["exit_code"] == 143


async def test_output_is_kept_apart_and_in_order(busybox_image: str) -> None:
    answer = await shell(busybox_image, "for n in 1 2 3; do echo out $n; echo err $n >&2; done")
    assert answer["stdout"] == "out 1\nout 2\nout 3\n"
    assert answer["stderr"] == "err 1\nerr 2\nerr 3\n"


async def test_output_without_line_end_invalid_bytes_and_escapes_is_readable(busybox_image: str) -> None:
    answer = await shell(busybox_image, r"printf '\033[31mred\033[0m \377\376 \303\244 end'")
    assert answer["stdout"] == "red \\xff\\xfe ä end"


async def test_output_of_quick_programs_comes_exactly_once(busybox_image: str) -> None:
    said: list[str] = []
    async with harness.opened() as house:

        async def several() -> None:
            for _ in range(3):
                answer = await house.ok("container_run", image=busybox_image, command="echo once")
                said.append(answer["stdout"])

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(several)
    assert said == ["once\n"] * 24


async def test_megabytes_of_output_are_bounded_and_the_program_is_not_held_up(busybox_image: str) -> None:
    answer = await shell(busybox_image, "yes line | head -n 2000000; echo the very end")
    assert answer["exit_code"] == 0
    assert answer["stdout"].startswith("line\nline\n")
    assert answer["stdout"].endswith("the very end\n")
    assert "left out" in answer["stdout"]


async def test_string_command_is_split_and_not_run_by_a_shell(busybox_image: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_run", image=busybox_image, command="echo 'a b' $HOME ; exit 3 | cat")
    assert answer["stdout"] == "a b $HOME ; exit 3 | cat\n"


async def test_stdin_is_written_and_closed(busybox_image: str) -> None:
    text = "first\nsecond ä\n" + "x" * 200_000 + "\n"
    assert (await run(busybox_image, "wc", "-c", stdin=text))["stdout"].split() == [str(len(text.encode()))]
    assert (await run(busybox_image, "cat", stdin=""))["stdout"] == ""
    assert (await run(busybox_image, "cat"))["stdout"] == ""


async def test_program_that_does_not_read_its_stdin_ends_all_the_same(busybox_image: str) -> None:
    answer = await run(busybox_image, "true", stdin="x" * 1_000_000)
    assert answer["exit_code"] == 0


async def test_time_out_ends_the_container_and_returns_what_it_had_said(
    busybox_image: str, docker_cli: DockerCommandLine
) -> None:
    name = fresh_name()
    answer = await shell(busybox_image, "echo begun; sleep 60", timeout_seconds=1, name=name)
    assert answer["timed_out"] is True
    assert "exit_code" not in answer
    assert answer["stdout"] == "begun\n"
    assert docker_cli(["inspect", name], check=False).returncode != 0


async def test_time_out_of_a_kept_container_leaves_it_stopped(busybox_image: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_run", image=busybox_image, command="sleep 60", timeout_seconds=1, keep=True)
        assert (answer["timed_out"], answer["kept"]) == (True, True)
        found = await house.ok("container_inspect", container=answer["name"])
        assert found["state"] == "exited"


async def test_program_that_runs_out_of_memory_is_said_to_have(busybox_image: str) -> None:
    answer = await run(busybox_image, "tail", "/dev/zero", memory="16m", timeout_seconds=30)
    if answer["exit_code"] == 1:
        pytest.skip("this engine's host does not limit memory")
    assert answer["oom_killed"] is True
    assert answer["exit_code"] == 137


async def test_container_is_removed_at_its_end_unless_it_is_kept(
    busybox_image: str, docker_cli: DockerCommandLine
) -> None:
    removed, kept = fresh_name(), fresh_name()
    async with harness.opened() as house:
        await house.ok("container_run", image=busybox_image, command="true", name=removed)
        await house.ok("container_run", image=busybox_image, command="echo said", name=kept, keep=True)
        rows = docker_cli(["ps", "--all", "--format", "{{.Names}}"]).stdout.split()
        assert removed not in rows
        assert kept in rows
        answer = await house.ok("container_logs", container=kept)
        assert [line["text"] for line in answer["lines"]] == ["said"]
        await house.ok("container_remove", container=kept)


@pytest.mark.parametrize("command", ["/no/such/program", "/etc/passwd", "no-such-program"])
async def test_program_that_cannot_be_started_is_named_and_nothing_is_left(
    busybox_image: str, docker_cli: DockerCommandLine, command: str
) -> None:
    name = fresh_name()
    async with harness.opened() as house:
        for detach in (False, True):
            outcome = await house.fails(
                "command_failed", "container_run", {"image": busybox_image, "command": [command], "name": name},
                detach=detach,
            )  # fmt: skip
            assert command in outcome.text
            assert docker_cli(["inspect", name], check=False).returncode != 0


# ------------------------------------------------------------------------------------------------------------ detached


async def test_detached_container_goes_on_and_wears_our_labels(busybox_image: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_run", image=busybox_image, command="sleep 60", detach=True)
        assert (answer["detached"], answer["state"]) == (True, "running")
        state = await house.engine.inspect_container(answer["id"])
        assert state.labels[guard.LABEL_LIFETIME] == "detached"
        assert state.labels[guard.LABEL_RUN] == house.application.run.run


async def test_detached_container_that_ends_at_once_says_how_and_why(busybox_image: str) -> None:
    async with harness.opened() as house:
        for _ in range(3):
            answer = await house.ok(
                "container_run", image=busybox_image, command=["sh", "-c", "echo cannot go on; exit 7"], detach=True
            )
            if answer["state"] == "exited":
                break
        else:
            pytest.skip("it was looked at before it had ended, three times")
        assert answer["exit_code"] == 7
        assert "cannot go on" in answer["stdout"]


async def test_name_that_is_taken_is_a_conflict_and_the_first_one_stays(busybox_image: str) -> None:
    name = fresh_name()
    async with harness.opened() as house:
        arguments = {"image": busybox_image, "command": "sleep 60", "detach": True}
        first = await house.ok("container_run", arguments, name=name)
        outcome = await house.fails("conflict", "container_run", arguments, name=name)
        assert name in outcome.text
        assert (await house.engine.inspect_container(first["id"])).status == "running"


async def test_host_port_that_is_taken_is_a_conflict_and_nothing_is_left(
    busybox_image: str, docker_cli: DockerCommandLine
) -> None:
    name = fresh_name()
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with harness.opened() as house:
            await house.fails(
                "conflict", "container_run", image=busybox_image, command="sleep 9", ports=[f"{port}:80"], name=name,
                detach=True,
            )  # fmt: skip
    assert docker_cli(["inspect", name], check=False).returncode != 0


async def test_ports_are_published_on_loopback_as_the_answer_says(busybox_image: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok(
            "container_run",
            image=busybox_image,
            command=["sh", "-c", "while true; do echo hello | nc -l -p 80; done"],
            ports=["80", "53/udp"],
            detach=True,
        )
        tcp, udp = sorted(answer["ports"], key=lambda port: "udp" in port)
        assert tcp.startswith("127.0.0.1:")
        assert tcp.endswith("->80/tcp")
        assert udp.endswith("->53/udp")
        port = int(tcp.removeprefix("127.0.0.1:").partition("->")[0])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"x")
            assert port > 0


# --------------------------------------------------------------------------------------- what the engine was told to do


@pytest.fixture
def inspected(docker_cli: DockerCommandLine) -> Callable[[str], dict[str, Any]]:
    """What docker inspect says of a container."""

    def look(name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(docker_cli(["inspect", name]).stdout)
        return found[0]

    return look


async def test_every_limit_and_option_reaches_the_engine(
    busybox_image: str, inspected: Callable[[str], dict[str, Any]]
) -> None:
    async with harness.opened() as house:
        answer = await house.ok(
            "container_run",
            image=busybox_image,
            command="sleep 60",
            detach=True,
            memory="64m",
            cpus=0.5,
            pids_limit=50,
            limits={"memory_reservation": "32m", "cpu_shares": 512, "ulimits": {"nofile": "256:512"}, "shm_size": "8m"},
            read_only_rootfs=True,
            cap_drop=["ALL"],
            cap_add=["NET_BIND_SERVICE"],
            restart="on-failure:3",
            healthcheck={"command": "true", "interval": "30s", "timeout": "2s", "retries": 2, "start_period": "1s"},
            user="65534:65534",
            workdir="/tmp",
            env={"GREETING": "a=b c"},
            labels={"team": "x"},
            network="none",
        )
        found = inspected(answer["name"])
    host, config = found["HostConfig"], found["Config"]
    assert (host["Memory"], host["MemoryReservation"], host["ShmSize"]) == (64 << 20, 32 << 20, 8 << 20)
    assert (host["NanoCpus"], host["CpuShares"], host["PidsLimit"]) == (500_000_000, 512, 50)
    assert [(one["Name"], one["Soft"], one["Hard"]) for one in host["Ulimits"]] == [("nofile", 256, 512)]
    assert host["ReadonlyRootfs"] is True
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["NET_BIND_SERVICE"])
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert host["NetworkMode"] == "none"
    assert host["Privileged"] is False
    assert config["Healthcheck"] == {
        "Test": ["CMD-SHELL", "true"],
        "Interval": 30_000_000_000,
        "Timeout": 2_000_000_000,
        "Retries": 2,
        "StartPeriod": 1_000_000_000,
    }
    assert (config["User"], config["WorkingDir"]) == ("65534:65534", "/tmp")
    assert "GREETING=a=b c" in config["Env"]
    assert config["Labels"]["team"] == "x"


async def test_user_and_working_folder_are_the_ones_asked_for(busybox_image: str) -> None:
    answer = await shell(busybox_image, "id -u; pwd", user="nobody", workdir="/etc")
    assert answer["stdout"] == "65534\n/etc\n"


async def test_entrypoint_replaces_the_images(busybox_image: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_run", image=busybox_image, entrypoint="echo from", command="there to here")
    assert answer["stdout"] == "from there to here\n"


async def test_root_file_system_can_be_read_only_with_a_tmpfs_beside_it(busybox_image: str) -> None:
    answer = await shell(
        busybox_image,
        "echo x > /tmp/x && echo tmpfs written; echo x > /etc/x || echo refused; df -k /tmp | tail -n 1",
        read_only_rootfs=True,
        mounts=["tmpfs:/tmp:4m"],
    )
    assert "tmpfs written" in answer["stdout"]
    assert "refused" in answer["stdout"]
    assert "4096" in answer["stdout"]


async def test_bind_mount_can_be_read_only(busybox_image: str, project: Path) -> None:
    (project / "data").mkdir()
    script = "echo x > /mnt/file && echo written || echo refused"
    assert (await shell(busybox_image, script, mounts=["./data:/mnt:ro"]))["stdout"] == "refused\n"
    assert not (project / "data" / "file").exists()
    assert (await shell(busybox_image, script, mounts=["./data:/mnt"]))["stdout"] == "written\n"
    assert (project / "data" / "file").read_text() == "x\n"


async def test_volume_keeps_its_content_between_containers(
    busybox_image: str, docker_cli: DockerCommandLine, session_label: str
) -> None:
    volume = fresh_name()
    docker_cli(["volume", "create", "--label", session_label, volume])
    try:
        await shell(busybox_image, "echo kept > /mnt/file", mounts=[f"{volume}:/mnt"])
        assert (await shell(busybox_image, "cat /mnt/file", mounts=[f"{volume}:/mnt:ro"]))["stdout"] == "kept\n"
    finally:
        docker_cli(["volume", "rm", volume])


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("policy", "code"), [("never", "not_found"), ("missing", "engine_unavailable"), ("always", "engine_unavailable")]
)
async def test_absent_image_is_said_to_be_absent(policy: str, code: str) -> None:
    async with harness.opened() as house:
        outcome = await house.fails(
            code, "container_run", image="localhost:1/none:1", command="true", pull_policy=policy
        )
        assert "localhost:1/none:1" in outcome.text


async def test_absent_image_names_the_nearest_that_is_there(busybox_image: str) -> None:
    mistyped = busybox_image.replace("busybox", "busibox")
    async with harness.opened() as house:
        outcome = await house.fails("not_found", "container_run", image=mistyped, pull_policy="never")
        assert busybox_image in outcome.error_data["hint"]


async def test_image_is_found_by_its_id(busybox_image: str, docker_cli: DockerCommandLine) -> None:
    id = docker_cli(["image", "inspect", "--format", "{{.Id}}", busybox_image]).stdout.strip()
    for image in (id, id.removeprefix("sha256:"), id.removeprefix("sha256:")[:12]):
        assert (await run(image, "echo", "there"))["stdout"] == "there\n"


# ------------------------------------------------------------------------------------------------------------- together


async def test_one_slow_container_holds_no_other_call_up(busybox_image: str) -> None:
    async with harness.opened() as house:
        finished: list[str] = []

        async def slow() -> None:
            await house.ok("container_run", image=busybox_image, command="sleep 3")
            finished.append("slow")

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(slow)
            for _ in range(10):
                await house.ok("container_list")
            finished.append("lists")
        assert finished[0] == "lists"


async def test_cancelled_run_is_removed_from_the_engine(busybox_image: str, docker_cli: DockerCommandLine) -> None:
    name = fresh_name()
    async with harness.opened() as house:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.ok, "container_run", {"image": busybox_image, "command": "sleep 60", "name": name})
            with anyio.fail_after(20):
                while docker_cli(["inspect", "--format", "{{.State.Status}}", name], check=False).stdout != "running\n":  # noqa: ASYNC110  the state is the engine's
                    await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        assert docker_cli(["inspect", name], check=False).returncode != 0
        assert house.audit()[-1]["outcome"] == "cancelled"
