"""What does an ordinary user get who has neither Docker nor Podman? The real server over stdio, on the embedded engine."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.ordinary_user import OrdinaryUser
from tests.server import faces

pytestmark = pytest.mark.anyio

IMAGE = "localhost/cxc-ordinary-story"
REQUEST_SECONDS = 20.0
PAUSE_SECONDS = 0.05


@asynccontextmanager
async def served(user: OrdinaryUser) -> AsyncIterator[Client]:
    """A client of a server that this user started."""
    settings = {"ENGINES": '["embedded"]', "TOOLSETS": '["all"]', "DATA_DIR": f"{user.folder}/home/story"}
    given = [f"CODOMYRMEX_CONTAINERIZATION_{name}={value}" for name, value in settings.items()]
    command = user.command(["env", *given, sys.executable, "-m", "codomyrmex_containerization"])
    parameters = StdioServerParameters(command=command[0], args=command[1:], cwd=user.folder / "home")
    try:
        async with Client(stdio_client(parameters), read_timeout_seconds=REQUEST_SECONDS) as client:
            yield client
    except BaseExceptionGroup as group:
        raise faces.bare(group) from None


async def called(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a call that must succeed."""
    return faces.answer_of(await client.call_tool(tool, arguments))


async def _remove(client: Client, container: str) -> None:
    """Remove what another server made: that asks first."""
    asked = faces.error_of(await client.call_tool("container_remove", {"container": container, "force": True}))
    await called(client, "container_remove", container=container, force=True, confirm_token=asked["confirm_token"])


async def test_ordinary_user_builds_runs_and_reads_without_any_other_engine(
    session_ordinary_user: OrdinaryUser,
) -> None:
    """B100: for an ordinary user the embedded engine runs in a namespace of that user's, and containers outlive the server."""
    async with served(session_ordinary_user) as client:
        status = await called(client, "container_runtime_status")
        (embedded,) = [row for row in status["engines"] if row["name"] == "embedded"]
        assert embedded["default"]
        assert embedded["rootless"]

        ran = await called(client, "container_run", image="host", command=["sh", "-c", "id -u; echo no >&2; exit 3"])
        assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (3, "0\n", "no\n")

        dockerfile = "FROM scratch\nCOPY --chown=7:8 name /name\n"
        (session_ordinary_user.shared("story") / "name").write_text("made by the user\n")
        context = str(session_ordinary_user.shared("story"))
        built = await called(client, "container_build", image_name=IMAGE, dockerfile_text=dockerfile, context=context)
        assert built["image"] == f"{IMAGE}:latest"

        command = ["sh", "-c", "echo begun; exec sleep 600"]
        await called(client, "container_run", image="host", name="lasts", detach=True, command=command)
        listed = await called(client, "container_list")
        (row,) = listed["containers"]
        assert (row["name"], row["status"]) == ("lasts", "running")
        assert row["pids"] in (1, 2), "the program, and an init where there is one"
        assert row["memory_bytes"] > 0
    async with served(session_ordinary_user) as client:
        # Another server, in the same namespaces: the container is what it was.
        did = await called(client, "container_exec", container="lasts", command=["id", "-u"])
        assert did["stdout"] == "0\n"
        logs = await called(client, "container_logs", container="lasts")
        assert [line["text"] for line in logs["lines"]] == ["begun"]
        await _remove(client, "lasts")


async def test_stopped_container_is_there_after_the_users_last_process_has_gone(
    session_ordinary_user: OrdinaryUser,
) -> None:
    """B103: the namespaces go with their last process, and with them what is mounted; the next server makes new ones."""
    command = ["sh", "-c", "echo kept >> /root/file; cat /root/file"]
    async with served(session_ordinary_user) as client:
        made = await called(client, "container_run", image="host", name="kept", detach=True, command=command)
        await called(client, "container_control", container="kept", action="stop")
    with anyio.fail_after(REQUEST_SECONDS):
        while session_ordinary_user.processes():  # noqa: ASYNC110  other processes end when they do
            await anyio.sleep(PAUSE_SECONDS)
    async with served(session_ordinary_user) as client:
        await called(client, "container_control", container=made["id"], action="start")
        followed = await called(client, "container_logs", container="kept", follow_seconds=1)
        assert [line["text"] for line in followed["lines"]][-2:] == ["kept", "kept"]
        await _remove(client, "kept")


async def test_user_without_numbers_for_others_has_root_alone(plain_user: OrdinaryUser) -> None:
    """B104: where a user was given no numbers for containers' users, containers have root alone, and the status says so."""
    async with served(plain_user) as client:
        status = await called(client, "container_runtime_status")
        (embedded,) = [row for row in status["engines"] if row["name"] == "embedded"]
        assert any("apt-get install uidmap" in note for note in embedded["notes"])
        ran = await called(client, "container_run", image="host", command=["cat", "/proc/self/uid_map"])
        assert ran["stdout"].split() == ["0", str(plain_user.user.pw_uid), "1"]
        result = await client.call_tool("container_run", {"image": "host", "command": "true", "user": "7"})
        assert result.is_error


async def test_root_of_an_ordinary_users_container_is_that_user_outside(session_ordinary_user: OrdinaryUser) -> None:
    """B101: root of such a container has no more rights on this host than the user; what is the host's root's is nobody's."""
    async with served(session_ordinary_user) as client:
        shared = session_ordinary_user.shared("owned")
        command = ["sh", "-c", "touch /shared/made; stat -c %u /etc/hostname /usr; cat /proc/self/uid_map"]
        mounts = [f"{shared}:/shared"]
        ran = await called(client, "container_run", image="host", command=command, mounts=mounts)
    assert (shared / "made").stat().st_uid == session_ordinary_user.user.pw_uid
    lines = ran["stdout"].splitlines()
    assert lines[1] == "65534", "what is root's outside is nobody's inside"
    assert lines[2].split()[:2] == ["0", str(session_ordinary_user.user.pw_uid)]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"cpus": 0.5}, "cannot limit cpus here"),
        ({"disk": "16m"}, "cannot limit disk here: only root"),
        ({"limits": {"disk_write": "1m"}}, "cannot limit the rate of the disk here"),
        ({"isolation": "strict"}, "isolation='strict' cannot be had here"),
    ],
)
async def test_what_cannot_be_held_for_an_ordinary_user_is_refused(
    session_ordinary_user: OrdinaryUser, wanted: dict[str, Any], said: str
) -> None:
    """B102: where this user has no control groups, a limit that nothing else holds is refused, and nothing runs weaker."""
    async with served(session_ordinary_user) as client:
        status = await called(client, "container_runtime_status")
        (embedded,) = [row for row in status["engines"] if row["name"] == "embedded"]
        if embedded.get("cgroup_version"):
            pytest.skip("this user has control groups of their own")
        result = await client.call_tool("container_run", {"image": "host", "command": "true", **wanted})
        assert result.is_error
        assert said in result.content[0].text  # type: ignore[union-attr]


async def test_limits_of_single_processes_hold_an_ordinary_users_container(
    session_ordinary_user: OrdinaryUser,
) -> None:
    """B102, B109: where this user has no control groups, limits of single processes hold memory and processes, and it is told so."""
    forks = "ulimit -v; i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo all of them"
    async with served(session_ordinary_user) as client:
        status = await called(client, "container_runtime_status")
        (embedded,) = [row for row in status["engines"] if row["name"] == "embedded"]
        if embedded.get("cgroup_version"):
            pytest.skip("this user has control groups of their own")
        assert any("rlimits" in note for note in embedded["notes"])
        ran = await called(
            client, "container_run", image="host", command=["sh", "-c", forks], memory="64m", pids_limit=40
        )
        await called(
            client, "container_run", image="host", command=["sleep", "1000"], memory="64m", detach=True, name="held"
        )
        shown = await called(client, "container_inspect", container="held")
        await called(client, "container_remove", container="held", force=True)
    assert ran["stdout"].split()[0] == str(64 * 1024)
    assert "all of them" not in ran["stdout"]
    assert "fork" in ran["stderr"]
    assert shown["limits"]["held_by"] == "memory_bytes=rlimit pids_limit=rlimit"
