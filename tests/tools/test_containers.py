"""What do inspect, exec, control and copy answer, ask and refuse?"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.server.engines import eventually

PASSWORD = "correct-horse-battery"
TOKEN = "f00dfacecafe1234567890abcdef"


@dataclass(slots=True)
class Yard:
    """Containers that others made."""

    docker: DockerCommandLine
    image: str
    label: str
    made: list[str]

    def run(self, *options: str, command: tuple[str, ...] = ("sleep", "3600"), check: bool = True) -> str:
        name = self._name()
        self.docker(
            ["run", "--detach", "--name", name, "--label", self.label, *options, self.image, *command], check=check
        )
        return name

    def create(self, *options: str, command: tuple[str, ...] = ("sleep", "3600")) -> str:
        name = self._name()
        self.docker(["create", "--name", name, "--label", self.label, *options, self.image, *command])
        return name

    def look(self, name: str, path: str) -> str:
        return self.docker(["inspect", "--format", f"{{{{{path}}}}}", name]).stdout.strip()

    def _name(self) -> str:
        self.made.append(f"cxc-tools-{uuid.uuid4().hex[:8]}")
        return self.made[-1]


@pytest.fixture
def yard(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Yard]:
    made = Yard(docker_cli, busybox_image, session_label, [])
    yield made
    if made.made:
        docker_cli(["rm", "--force", "--volumes", *made.made], check=False)


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The process stands in a folder of the test's own, which is therefore an allowed path."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ----------------------------------------------------------------------------------------------------------- inspect


async def test_inspect_shows_configuration_limits_and_security(yard: Yard, tmp_path: Path) -> None:
    name = yard.run(
        *["--restart", "on-failure:2", "--memory", "32m", "--cpus", "0.5", "--pids-limit", "50", "--shm-size", "3m"],
        *["--cap-drop", "ALL", "--cap-add", "KILL", "--security-opt", "no-new-privileges", "--read-only"],
        *["--user", "123:4", "--env", "COLOUR=red", "--label", "team=blue", "--hostname", "hh", "--workdir", "/tmp"],
        *["--volume", f"{tmp_path}:/h:ro", "--mount", "type=volume,target=/v", "--tmpfs", "/t"],
        *["--publish", "127.0.0.1::80", "--ulimit", "nofile=500:600", "--device", "/dev/null:/dev/nn"],
    )
    async with harness.opened() as house:
        found = await house.ok("container_inspect", container=name)
    port = yard.look(name, '(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort')
    volume = next(one["Name"] for one in json.loads(yard.look(name, "json .Mounts")) if one["Type"] == "volume")
    address = yard.look(name, ".NetworkSettings.IPAddress")
    expected: dict[str, Any] = {
        "name": name,
        "engine": "docker",
        "image": yard.image,
        "state": "running",
        "command": ["sleep", "3600"],
        "restart": "on-failure:2",
        "restart_count": 0,
        "hostname": "hh",
        "workdir": "/tmp",
        "ports": [f"127.0.0.1:{port}->80/tcp"],
        "networks": [f"bridge {address}"],
        "limits": {
            "memory_bytes": 32 * 1024**2,
            "cpus": 0.5,
            "pids_limit": 50,
            "shm": "3M",
            "ulimits": "nofile=500:600",
        },
        "log_driver": "json-file",
        "own": False,
    }
    assert {key: found[key] for key in expected} == expected
    assert sorted(found["mounts"]) == sorted([f"bind {tmp_path}:/h:ro", f"volume {volume}:/v", "tmpfs :/t"])
    assert "COLOUR=red" in found["env"]
    assert found["labels"]["team"] == "blue"
    assert found["id"] == yard.look(name, ".Id")[:12]
    assert found["image_id"] == yard.look(name, ".Image").removeprefix("sha256:")[:12]
    assert isinstance(found["limits"]["memory_bytes"], int)
    security = found["security"]
    assert [one.removeprefix("CAP_") for one in security.pop("cap_add")] == ["KILL"]
    assert security == {
        "user": "123:4",
        "privileged": False,
        "read_only_rootfs": True,
        "no_new_privileges": True,
        "seccomp": "default",
        "cap_drop": ["ALL"],
        "devices": ["/dev/null"],
        **({"apparmor": security["apparmor"]} if "apparmor" in security else {}),
    }


async def test_inspect_shows_what_reaches_the_host(yard: Yard) -> None:
    name = yard.create("--privileged", "--network", "host", "--pid", "host")
    async with harness.opened() as house:
        found = await house.ok("container_inspect", container=name)
    assert found["state"] == "created"
    assert "exit_code" not in found
    assert "started" not in found
    assert found["security"]["privileged"] is True
    assert found["security"]["seccomp"] == "unconfined"
    assert found["security"]["host_namespaces"] == ["network", "pid"]


async def test_inspect_shows_how_a_container_ended(yard: Yard) -> None:
    ended = yard.run(command=("sh", "-c", "exit 7"))
    starved = yard.run("--memory", "8m", command=("sh", "-c", "sleep 1; exec tail /dev/zero"))
    failed = yard.run(command=("no-such-program",), check=False)
    yard.docker(["wait", ended, starved])
    async with harness.opened() as house:
        found = await house.ok("container_inspect", container=ended)
        assert (found["state"], found["exit_code"]) == ("exited", 7)
        assert "oom_killed" not in found
        assert found["finished"] >= found["started"]
        with anyio.fail_after(20):
            # The engine notes the reason a moment after the exit.
            while "oom_killed" not in (found := await house.ok("container_inspect", container=starved)):  # noqa: ASYNC110  it is looked at from outside
                await anyio.sleep(0.05)
        assert (found["state"], found["exit_code"], found["oom_killed"]) == ("exited", 137, True)
        found = await house.ok("container_inspect", container=failed)
        assert found["state"] == "created"
        assert "no-such-program" in found["error"]


async def test_inspect_shows_health_and_the_last_thing_the_check_said(yard: Yard) -> None:
    options = ["--health-cmd", "echo unwell since $((1+1)); exit 1", "--health-interval", "1s", "--health-retries", "1"]
    name = yard.run(*options)
    await eventually(lambda: yard.look(name, ".State.Health.Status") == "unhealthy", "it is unhealthy")
    async with harness.opened() as house:
        outcome = await house.call("container_inspect", container=name)
    found = outcome.structured
    assert found is not None
    assert found["health"] == "unhealthy"
    assert found["health_failures"] >= 1
    assert found["health_output"] == "unwell since 2\n"
    assert found["healthcheck"] == "echo unwell since $((1+1)); exit 1 every 1 s"
    assert "unwell since 2" in outcome.text


async def test_inspect_counts_restarts(yard: Yard) -> None:
    name = yard.run("--restart", "on-failure:2", command=("false",))
    await eventually(lambda: yard.look(name, ".RestartCount") == "2", "it was restarted twice")
    async with harness.opened() as house:
        assert (await house.ok("container_inspect", container=name))["restart_count"] == 2


async def test_inspect_masks_secrets_wherever_they_stand(yard: Yard) -> None:
    name = yard.create(
        *["--env", f"DB_PASSWORD={PASSWORD}", "--label", f"api-token={TOKEN}", "--health-cmd", f"ping {PASSWORD}"],
        command=("serve", f"--password={PASSWORD}", "--with", TOKEN, f"https://user:{PASSWORD}@example.org/"),
    )
    async with harness.opened() as house:
        found = await house.ok("container_inspect", container=name)
        everything = house.everything_that_left()
    assert PASSWORD not in everything
    assert TOKEN not in everything
    assert "DB_PASSWORD=***" in found["env"]
    assert found["labels"]["api-token"] == "***"


async def test_inspect_takes_a_name_an_id_and_a_short_id(yard: Yard) -> None:
    name = yard.create()
    id = yard.look(name, ".Id")
    async with harness.opened() as house:
        for text in (name, f"/{name}", id, id[:12], id[:20]):
            assert (await house.ok("container_inspect", container=text))["name"] == name


async def test_inspect_of_what_is_not_there_names_what_is_near(yard: Yard) -> None:
    name = yard.create()
    async with harness.opened() as house:
        assert f"did you mean {name}" in (await house.fails("not_found", "container_inspect", container=name[:-1])).text
        for text in ("", " ", "-x", "../x", "a b", "a/b", "a\nb"):
            await house.fails("invalid_argument", "container_inspect", container=text)


async def test_inspect_of_a_beginning_that_fits_several_names_them(yard: Yard) -> None:
    by_digit: dict[str, str] = {}
    for _ in range(17):  # there are sixteen digits
        name = yard.create(command=("true",))
        digit = yard.look(name, ".Id")[0]
        if digit in by_digit:
            break
        by_digit[digit] = name
    async with harness.opened() as house:
        outcome = await house.fails("ambiguous", "container_inspect", container=digit)
    assert name in outcome.text
    assert by_digit[digit] in outcome.text


# -------------------------------------------------------------------------------------------------------------- exec


async def test_exec_answers_streams_and_exit_code(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened() as house:
        command = ["sh", "-c", "cat; echo bad >&2; exit 4"]
        outcome = await house.call("container_exec", container=name, command=command, stdin="in")
        assert outcome.structured is not None
        assert {**outcome.structured, "seconds": 0} == {
            "status": "success",
            "container": name,
            "exit_code": 4,
            "stdout": "in",
            "stderr": "bad\n",
            "timed_out": False,
            "seconds": 0,
        }
        assert "exit code 4" in outcome.text
        found = await house.ok("container_exec", container=name, command="echo 'one word' $HOME")
        assert found["stdout"] == "one word $HOME\n"


async def test_exec_at_its_time_out_says_that_it_was_killed(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened() as house:
        outcome = await house.call(
            "container_exec", container=name, command=["sh", "-c", "echo early; sleep 1000"], timeout_seconds=0.5
        )
        assert outcome.structured is not None
        assert (outcome.structured["timed_out"], outcome.structured["killed"]) == (True, True)
        assert "exit_code" not in outcome.structured
        assert "early" in outcome.text
        assert "was killed" in outcome.text


async def test_exec_with_huge_output_stays_in_the_budget(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened(answer_characters=5_000) as house:
        command = ["sh", "-c", "seq 1 200000; seq 1 200000 >&2"]
        outcome = await house.call("container_exec", container=name, command=command)
    assert outcome.structured is not None
    assert len(outcome.text) <= 5_000
    assert len(json.dumps(outcome.structured)) <= 5_000
    assert "head, tail, grep" in outcome.structured["truncated"]
    assert outcome.structured["stdout"].endswith("200000\n")


async def test_exec_masks_secrets_of_the_call_and_of_the_container(yard: Yard) -> None:
    name = yard.run("--env", f"DB_PASSWORD={PASSWORD}")
    async with harness.opened() as house:
        found = await house.ok(
            "container_exec", container=name, command=["sh", "-c", "env; env >&2"], env={"API_TOKEN": TOKEN}
        )
        assert "DB_PASSWORD=***" in found["stdout"]
        assert PASSWORD not in house.everything_that_left()
        assert TOKEN not in house.everything_that_left()


@pytest.mark.parametrize(
    "arguments",
    [
        {"command": []},
        {"command": ""},
        {"command": "'unclosed"},
        {"command": ["true"], "user": "--root"},
        {"command": ["true"], "user": ""},
        {"command": ["true"], "workdir": "-x"},
        {"command": ["true"], "env": {"A=B": "c"}},
        {"command": ["true"], "env": {"": "c"}},
        {"command": ["a\0b"]},
        {"command": ["true"], "timeout_seconds": 0},
        {"command": ["true"], "timeout_seconds": 1e9},
        {"command": ["true"], "privileged": True},
    ],
    ids=str,
)
async def test_exec_refuses_arguments_that_make_no_command(arguments: dict[str, Any], docker_socket: Path) -> None:
    async with harness.opened() as house:
        await house.fails("invalid_argument", "container_exec", container="any", **arguments)


async def test_exec_of_an_empty_word_is_command_failed(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened() as house:
        outcome = await house.call("container_exec", container=name, command=[""])
    assert outcome.error_data["code"] in ("command_failed", "invalid_argument")


# ----------------------------------------------------------------------------------------------------------- control

# State -> action -> the state after it, or the error.
CONFLICT = "conflict"
ACTIONS = ("start", "stop", "restart", "pause", "unpause", "kill")
TRANSITIONS: dict[str, tuple[str | None, ...]] = {
    "created": ("running", "created", "running", CONFLICT, CONFLICT, CONFLICT),
    "running": ("running", "exited", "running", "paused", CONFLICT, "exited"),
    "paused": (CONFLICT, "exited", "running", CONFLICT, "running", None),
    "exited": ("running", "exited", "running", CONFLICT, CONFLICT, CONFLICT),
}


def bring(yard: Yard, state: str) -> str:
    trapping = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    name = yard.create(command=trapping)
    steps = {"created": [], "running": ["start"], "paused": ["start", "pause"], "exited": ["start", "kill"]}[state]
    for step in steps:
        yard.docker([step, name])
    return name


@pytest.mark.parametrize("state", TRANSITIONS)
async def test_control_takes_each_state_to_the_next_or_says_why_not(yard: Yard, state: str) -> None:
    async with harness.opened() as house:
        for action, after in zip(ACTIONS, TRANSITIONS[state], strict=True):
            name = bring(yard, state)
            outcome = await house.call("container_control", container=name, action=action, timeout_seconds=3)
            really = yard.look(name, ".State.Status")
            if after is None:  # a frozen container: newer engines thaw it for that, older ones refuse
                after = "exited" if outcome.error is None else CONFLICT
            if after == CONFLICT:
                assert outcome.error_data.get("code") == CONFLICT, (action, outcome.text)
                assert really == state
                continue
            assert outcome.structured is not None, (action, outcome.text)
            assert (outcome.structured["before"], outcome.structured["after"]) == (state, after)
            assert really == after
            yard.docker(["rm", "--force", name])


async def test_control_answers_the_exit_code_of_what_ended(yard: Yard) -> None:
    name = yard.run(command=("sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"))
    async with harness.opened() as house:
        await eventually(lambda: "sleep" in yard.docker(["top", name]).stdout, "the trap is set")
        found = await house.ok("container_control", container=name, action="stop")
    assert (found["after"], found["exit_code"]) == ("exited", 9)


@pytest.mark.parametrize("timeout_seconds", [0, 2])
async def test_control_stop_kills_what_ignores_it_after_the_time_given(yard: Yard, timeout_seconds: int) -> None:
    name = yard.run(command=("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"))
    async with harness.opened() as house:
        await eventually(lambda: "sleep" in yard.docker(["top", name]).stdout, "the trap is set")
        began = time.monotonic()
        found = await house.ok("container_control", container=name, action="stop", timeout_seconds=timeout_seconds)
        assert time.monotonic() - began >= timeout_seconds
    assert (found["after"], found["exit_code"]) == ("exited", 137)


async def test_control_kill_sends_the_signal_and_does_not_wait_for_one_that_ends_nothing(yard: Yard) -> None:
    script = "trap 'echo got >> /tmp/got' HUP; while :; do sleep 0.05; done"
    name = yard.run(command=("sh", "-c", script))
    async with harness.opened() as house:
        await eventually(lambda: "sleep" in yard.docker(["top", name]).stdout, "the trap is set")
        for signal in ("HUP", "SIGHUP"):
            found = await house.ok("container_control", container=name, action="kill", signal=signal)
            assert (found["before"], found["after"]) == ("running", "running")
        await eventually(
            lambda: yard.docker(["exec", name, "cat", "/tmp/got"], check=False).stdout == "got\ngot\n", "it was told"
        )
        found = await house.ok("container_control", container=name, action="kill")
        assert (found["after"], found["exit_code"]) == ("exited", 137)


async def test_control_leaves_no_thread_behind_that_waits_for_an_end_that_does_not_come(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened() as house:
        await house.engine.inspect_container(name)
        before = threading.active_count()
        for number in range(30):
            with anyio.move_on_after(number * 0.002):
                await house.engine.wait_container(name)
        await eventually(lambda: threading.active_count() <= before + 12, "the threads are free again")


@pytest.mark.parametrize(
    "arguments",
    [
        {"action": "kill", "signal": "NOSUCH"},
        {"action": "kill", "signal": "hup"},
        {"action": "kill", "signal": "--all"},
        {"action": "stop", "signal": "HUP"},
        {"action": "remove"},
        {"action": "stop", "timeout_seconds": -1},
    ],
    ids=str,
)
async def test_control_refuses_arguments_that_mean_nothing(yard: Yard, arguments: dict[str, Any]) -> None:
    name = yard.run()
    async with harness.opened() as house:
        await house.fails("invalid_argument", "container_control", container=name, **arguments)
    assert yard.look(name, ".State.Status") == "running"


async def test_control_start_of_what_cannot_start_says_why(yard: Yard) -> None:
    name = yard.create(command=("no-such-program",))
    async with harness.opened() as house:
        outcome = await house.fails("command_failed", "container_control", container=name, action="start")
    assert "no-such-program" in outcome.text


# -------------------------------------------------------------------------------------------------------------- copy


async def test_copy_out_becomes_the_name_or_goes_into_the_folder(yard: Yard, working_folder: Path) -> None:
    name = yard.run(command=("sh", "-c", "mkdir -p /d/s; echo 1 > /d/s/f; touch /done; sleep 3600"))
    await eventually(lambda: yard.docker(["exec", name, "ls", "/done"], check=False).returncode == 0, "it is made")
    (working_folder / "folder").mkdir()
    async with harness.opened() as house:
        for source, target, becomes in (
            ("/d", "new", "new/s/f"),
            ("/d", "folder", "folder/d/s/f"),
            ("/d/s/", "folder/", "folder/s/f"),
            ("/d/s/f", ".", "f"),
            ("/d/s/f", str(working_folder / "absolute"), "absolute"),
        ):
            found = await house.ok("container_copy", source=f"{name}:{source}", target=target)
            assert (working_folder / becomes).read_text() == "1\n"
            assert found["files"] == 1
            assert found["bytes"] == 2
        for target in ("none/x", "none/"):
            await house.fails("invalid_argument", "container_copy", source=f"{name}:/d", target=target)


async def test_copy_of_what_a_folder_holds(yard: Yard, working_folder: Path) -> None:
    name = yard.run()
    (working_folder / "here").mkdir()
    (working_folder / "here" / "f").write_text("1")
    (working_folder / "there").mkdir()
    async with harness.opened(confirmation="never") as house:
        await house.ok("container_copy", source="here/.", target=f"{name}:/tmp")
        await house.ok("container_copy", source=f"{name}:/tmp/.", target="there")
    assert os.listdir(working_folder / "there") == ["f"]


async def test_copy_over_what_is_there_asks_and_says_what_would_be_lost(yard: Yard, working_folder: Path) -> None:
    name = yard.run()
    there = working_folder / "passwd"
    there.write_text("precious")
    async with harness.opened() as house:
        call = {"source": f"{name}:/etc/passwd", "target": "passwd"}
        outcome = await house.fails("confirmation_required", "container_copy", call)
        assert f"{there} (8 bytes)" in outcome.text
        assert there.read_text() == "precious"
        token = outcome.error_data["confirm_token"]
        there.write_text("changed meanwhile")
        again = await house.fails("confirmation_required", "container_copy", call, confirm_token=token)
        assert there.read_text() == "changed meanwhile"
        await house.ok("container_copy", call, confirm_token=again.error_data["confirm_token"])
        assert there.read_text().startswith("root:")


async def test_copy_over_a_link_replaces_the_link(yard: Yard, working_folder: Path) -> None:
    name = yard.run()
    (working_folder / "kept").write_text("kept")
    (working_folder / "link").symlink_to("kept")
    async with harness.opened() as house:
        call = {"source": f"{name}:/etc/passwd", "target": "link"}
        outcome = await house.fails("confirmation_required", "container_copy", call)
        await house.ok("container_copy", call, confirm_token=outcome.error_data["confirm_token"])
    assert not (working_folder / "link").is_symlink()
    assert (working_folder / "kept").read_text() == "kept"


async def test_copy_into_a_folder_that_has_such_a_folder_asks(yard: Yard, working_folder: Path) -> None:
    name = yard.run()
    (working_folder / "etc").mkdir()
    (working_folder / "etc" / "own").write_text("own")
    async with harness.opened() as house:
        call = {"source": f"{name}:/etc", "target": "."}
        outcome = await house.fails("confirmation_required", "container_copy", call)
        assert str(working_folder / "etc") in outcome.text
        await house.ok("container_copy", call, confirm_token=outcome.error_data["confirm_token"])
    assert {"own", "passwd"} <= set(os.listdir(working_folder / "etc"))


Prepare = Callable[[Path, Path], str]


def _link(folder: Path, outside: Path) -> str:
    (folder / "link").symlink_to(outside)
    return "link/x"


@pytest.mark.parametrize(
    "prepare",
    [
        lambda folder, outside: str(outside / "x"),
        lambda folder, outside: f"../{outside.name}/x",
        lambda folder, outside: "/etc/x",
        lambda folder, outside: "/",
        lambda folder, outside: "/proc/self/cwd/../x",
        lambda folder, outside: "~/.ssh/authorized_keys",
        lambda folder, outside: "/var/run/docker.sock",
        _link,
    ],
    ids=["outside", "parent", "etc", "root", "proc", "ssh", "socket", "link"],
)
@pytest.mark.parametrize("direction", ["in", "out"])
async def test_copy_from_or_to_a_host_path_that_is_not_allowed_is_refused(
    yard: Yard, working_folder: Path, private_folders: Path, prepare: Prepare, direction: str
) -> None:
    outside = working_folder.parent / "outside"
    outside.mkdir()
    (private_folders / ".ssh").mkdir()
    if direction == "in":
        (outside / "x").write_text("secret")
        (private_folders / ".ssh" / "authorized_keys").write_text("secret")
    path = prepare(working_folder, outside)
    name = yard.run()
    before = sorted(outside.iterdir()), sorted((private_folders / ".ssh").iterdir())
    source, target = (path, f"{name}:/tmp/x") if direction == "in" else (f"{name}:/etc/passwd", path)
    async with harness.opened(confirmation="never", policy__allowed_paths=(str(working_folder),)) as house:
        await house.fails("refused", "container_copy", source=source, target=target)
    assert (sorted(outside.iterdir()), sorted((private_folders / ".ssh").iterdir())) == before
    assert yard.docker(["exec", name, "ls", "/tmp"]).stdout == ""


async def test_copy_names_what_it_left_out(yard: Yard, working_folder: Path) -> None:
    name = yard.run()
    yard.docker(
        ["exec", name, "sh", "-c", "mkdir /d; ln -s /etc/passwd /d/out; mkfifo $'/d/\\377\\npipe'; echo 1 > /d/f"]
    )
    async with harness.opened() as house:
        outcome = await house.call("container_copy", source=f"{name}:/d", target="got")
    assert outcome.structured is not None, outcome.text
    assert sorted(outcome.structured["skipped"]) == ["got/\\xff\\npipe", "got/out"]
    assert "left out" in outcome.text
    assert os.listdir(working_folder / "got") == ["f"]


@pytest.mark.parametrize(("source", "target"), [("a:/x", "b:/y"), ("./x", "./y"), ("", ""), ("x", "-:/y")], ids=str)
async def test_copy_that_is_not_between_a_container_and_the_host_is_an_invalid_argument(
    source: str, target: str, docker_socket: Path
) -> None:
    async with harness.opened(confirmation="never") as house:
        await house.fails("invalid_argument", "container_copy", source=source, target=target)


async def test_copy_of_a_host_file_whose_name_has_a_colon(yard: Yard, working_folder: Path) -> None:
    name = yard.run()
    (working_folder / "a:b").write_text("1")
    async with harness.opened() as house:
        await house.ok("container_copy", source="./a:b", target=f"{name}:/tmp/c:d")
        await house.ok("container_copy", source=f"{name}:/tmp/c:d", target="./e:f")
    assert (working_folder / "e:f").read_text() == "1"
    assert stat.S_ISREG((working_folder / "e:f").stat().st_mode)


async def test_copy_shows_no_content(yard: Yard, working_folder: Path) -> None:
    name = yard.run()
    (working_folder / "secret").write_text(f"password={PASSWORD}")
    async with harness.opened() as house:
        await house.ok("container_copy", source="secret", target=f"{name}:/tmp/secret")
        await house.ok("container_copy", source=f"{name}:/tmp/secret", target="back")
        assert PASSWORD not in house.everything_that_left()
    assert (working_folder / "back").read_text() == f"password={PASSWORD}"


# --------------------------------------------------------------------------------------------- containers of others


def writing(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls that change a container."""
    return [
        ("container_exec", {"container": name, "command": ["true"]}),
        ("container_control", {"container": name, "action": "pause"}),
        ("container_control", {"container": name, "action": "unpause"}),
        ("container_copy", {"source": "file", "target": f"{name}:/tmp/file"}),
    ]


def reading(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls that do not."""
    return [
        ("container_inspect", {"container": name}),
        ("container_logs", {"container": name}),
        ("container_copy", {"source": f"{name}:/etc/passwd", "target": f"passwd-{uuid.uuid4().hex}"}),
    ]


@pytest.fixture
def file(working_folder: Path) -> None:
    (working_folder / "file").write_text("1")


@pytest.mark.usefixtures("file")
async def test_writing_to_containers_of_others_is_allowed_as_it_comes(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened() as house:
        for tool, arguments in [*writing(name), *reading(name)]:
            await house.ok(tool, arguments)


@pytest.mark.usefixtures("file")
async def test_writing_to_containers_of_others_is_refused_where_the_policy_says_so(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened(policy__foreign="refuse", confirmation="never") as house:
        for tool, arguments in writing(name):
            outcome = await house.fails("refused", tool, arguments)
            assert "policy.foreign" in outcome.text
        for tool, arguments in reading(name):
            await house.ok(tool, arguments)
    assert yard.docker(["exec", name, "ls", "/tmp"]).stdout == ""


@pytest.mark.usefixtures("file")
async def test_writing_to_containers_of_others_asks_where_the_policy_says_so(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened(policy__foreign="ask") as house:
        for tool, arguments in writing(name):
            outcome = await house.fails("confirmation_required", tool, arguments)
            assert name in outcome.text
            await house.ok(tool, arguments, confirm_token=outcome.error_data["confirm_token"])
        for tool, arguments in reading(name):
            await house.ok(tool, arguments)


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize("foreign", ["ask", "refuse"])
async def test_writing_to_containers_of_this_run_neither_asks_nor_is_refused(yard: Yard, foreign: str) -> None:
    async with harness.opened(policy__foreign=foreign) as house:
        made = await house.ok("container_run", image=yard.image, command=["sleep", "600"], detach=True)
        for tool, arguments in writing(made["id"]):
            await house.ok(tool, arguments)


@pytest.mark.usefixtures("file")
async def test_a_label_does_not_make_a_container_of_others_this_runs_own(yard: Yard) -> None:
    async with harness.opened(policy__foreign="refuse") as house:
        made = await house.ok("container_run", image=yard.image, command=["sleep", "600"], detach=True)
        labels = json.loads(yard.look(made["id"], "json .Config.Labels"))
        worn = [f"--label={name}={value}" for name, value in labels.items() if name.startswith("codomyrmex")]
        # It wears the lifetime of this run's container: whoever looks for what the tests left may see it.
        name = yard.run(*worn)
        for tool, arguments in writing(name):
            await house.fails("refused", tool, arguments)
        yard.docker(["rm", "--force", name])


DANGEROUS = {
    "privileged": (["--privileged"], "policy.allow_privileged", "policy__allow_privileged"),
    "network": (["--network", "host"], "policy.allow_host_namespaces", "policy__allow_host_namespaces"),
    "pid": (["--pid", "host"], "policy.allow_host_namespaces", "policy__allow_host_namespaces"),
    "ipc": (["--ipc", "host"], "policy.allow_host_namespaces", "policy__allow_host_namespaces"),
    "socket": (["--volume", "SOCKET:/s.sock"], "policy.allow_engine_socket", "policy__allow_engine_socket"),
    "socket-folder": (["--volume", "FOLDER:/run/host:ro"], "policy.allow_engine_socket", "policy__allow_engine_socket"),
}


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(("options", "named", "setting"), DANGEROUS.values(), ids=DANGEROUS)
async def test_writing_to_a_container_that_rules_the_host_is_refused_until_that_is_allowed(
    yard: Yard, docker_socket: Path, options: list[str], named: str, setting: str
) -> None:
    places = {"SOCKET": str(docker_socket), "FOLDER": str(docker_socket.parent)}
    for word, path in places.items():
        options = [option.replace(word, path) for option in options]
    name = yard.run(*options, check=False)
    async with harness.opened(confirmation="never") as house:
        for tool, arguments in writing(name):
            assert named in (await house.fails("refused", tool, arguments)).text
        for tool, arguments in reading(name):
            await house.ok(tool, arguments)
    runs = yard.look(name, ".State.Running") == "true"  # not every host lets a privileged one start
    async with harness.opened(**{setting: True}) as house:
        for tool, arguments in writing(name) if runs else writing(name)[-1:]:
            await house.ok(tool, arguments)


@pytest.mark.usefixtures("file")
async def test_a_read_only_server_reads_and_does_not_write(yard: Yard) -> None:
    name = yard.run()
    async with harness.opened(read_only=True) as house:
        for tool, arguments in writing(name):
            await house.fails("refused", tool, arguments)
        await house.ok("container_inspect", container=name)
        await house.fails("refused", "container_copy", source=f"{name}:/etc/passwd", target="new")
