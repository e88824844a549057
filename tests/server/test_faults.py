"""What does the server say when an engine is missing, misbehaves, hangs or is stopped in the middle, and does the next call work?"""

from __future__ import annotations

import gc
import re
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import backends
from tests.server import engines, wire
from tests.server.engines import OwnEngine, Relay, eventually, http, processes
from tests.server.faces import ERAS, Era, Face, answer_of, connected, error_of, every_face, text_of

# Not a measurement: far above what is promised, far below what a hang would take.
BOUND_SECONDS = 10.0
VERSION = b'{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64"}'

every_era = pytest.mark.parametrize("era", ERAS)
every_signal = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)


# ------------------------------------------------------------------------------------------------------------- hung


@every_face
async def test_status_of_a_silent_engine_is_said_in_its_own_row(
    face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engines.listening(tmp_path / "silent.sock", engines.silent) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        async with connected(face) as client:
            with anyio.fail_after(BOUND_SECONDS):
                result = await client.call_tool("container_runtime_status", {})
    answer = answer_of(result)
    row = _docker(answer)
    assert row["available"] is False
    assert row["endpoint"] == host
    assert row["endpoint_source"] == "DOCKER_HOST"
    assert re.search("2 seconds|in time", row["reason"])
    assert row["remedy"]
    assert answer["runtimes"]["docker"] is False
    assert row["reason"] in text_of(result)


@every_face
async def test_calls_to_a_silent_engine_end_with_an_error_that_says_so(
    face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("container_list", {}),
        ("container_run", {"image": "localhost/x:1", "command": "true"}),
        ("container_logs", {"container": "web"}),
        ("container_remove", {"container": "web"}),
        ("container_inspect", {"container": "web"}),
        ("container_exec", {"container": "web", "command": "true"}),
        ("image_list", {}),
    ]
    async with engines.listening(tmp_path / "silent.sock", engines.silent) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        async with connected(face, engine_timeout_seconds=0.5) as client:
            for tool, arguments in calls:
                with anyio.fail_after(BOUND_SECONDS):
                    error = error_of(await client.call_tool(tool, arguments))
                assert error["code"] in ("deadline_exceeded", "engine_unavailable"), tool
                assert error["retryable"] is True
                assert "docker" in error["message"]
                assert "HTTPConnectionPool" not in error["message"]


@every_face
async def test_stuck_calls_delay_no_other_call(face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engines.listening(tmp_path / "silent.sock", engines.silent) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        async with connected(face, engine_timeout_seconds=300) as client, anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(client.call_tool, "container_list", {})
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(BOUND_SECONDS):
                assert _docker(answer_of(await client.call_tool("container_runtime_status", {})))["available"] is False
                assert error_of(await client.call_tool("container_list", {"limit": 0}))["code"] == "invalid_argument"
                assert (await client.list_tools()).tools
            tasks.cancel_scope.cancel()


@every_era
async def test_many_requests_stuck_in_the_engine_leave_room_for_the_next(
    era: Era, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker_socket: Path
) -> None:
    relay = Relay(docker_socket, b"/containers/stuck/json")
    async with engines.listening(tmp_path / "relay.sock", relay.handle) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        async with connected(Face("memory", era), engine_timeout_seconds=300) as client:
            answer_of(await client.call_tool("container_list", {}))
            async with anyio.create_task_group() as tasks:
                for _ in range(60):
                    tasks.start_soon(client.call_tool, "container_logs", {"container": "stuck"})
                await relay.wait_for_held(60)
                with anyio.fail_after(BOUND_SECONDS):
                    answer_of(await client.call_tool("container_list", {}))
                    assert _docker(answer_of(await client.call_tool("container_runtime_status", {})))["available"]
                tasks.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------ absent or impostor


async def test_missing_socket_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    await _says_that_it_is_unavailable()


async def test_plain_file_in_place_of_the_socket_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.sock").write_text("not a socket\n")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/file.sock")
    await _says_that_it_is_unavailable()


async def test_socket_that_nobody_listens_on_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "stale.sock"))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/stale.sock")
        await _says_that_it_is_unavailable()


@pytest.mark.parametrize(
    ("version", "other"),
    [
        pytest.param(http(b"<html>It works!</html>", kind="text/html"), None, id="HTML"),
        pytest.param(http(b'{"ApiVersion": nonsense'), None, id="broken JSON"),
        pytest.param(http(b"[1, 2, 3]"), None, id="JSON of another shape"),
        pytest.param(http(b"{}"), None, id="an empty object"),
        pytest.param(http(b"null"), None, id="null"),
        pytest.param(http(b'{"ApiVersion": 7}'), None, id="a version that is a number"),
        pytest.param(http(b'{"ApiVersion": "latest"}'), None, id="a version that is a word"),
        pytest.param(http(VERSION), http(b'["a", 1]'), id="an engine's version, then another shape"),
        pytest.param(http(VERSION), http(b"[{}]"), id="an engine's version, then rows without keys"),
        pytest.param(http(VERSION), http(b"<html></html>", kind="text/html"), id="an engine's version, then HTML"),
        pytest.param(http(VERSION, length=9_999), None, id="closed half-way through the version"),
        pytest.param(http(VERSION), http(b'[{"Id":"ab', length=9_999), id="closed half-way through the answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", None, id="closed half-way through the head"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", None, id="another protocol"),
        pytest.param(b"\0" * 64, None, id="zeros"),
        pytest.param(b"", None, id="closed at once"),
    ],
)
async def test_impostor_on_the_socket_is_no_engine(
    version: bytes, other: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = engines.answering(version, version if other is None else other)
    async with engines.listening(tmp_path / "impostor.sock", handle) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        await _says_that_it_is_unavailable()


async def test_other_users_address_without_tls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    async with connected(Face("memory", "modern")) as client:
        row = _docker(answer_of(await client.call_tool("container_runtime_status", {})))
        error = error_of(await client.call_tool("container_list", {}))
    assert row["available"] is False
    assert "192.0.2.1" in row["reason"]
    assert error["code"] == "refused"


async def _says_that_it_is_unavailable() -> None:
    async with connected(Face("memory", "modern"), engine_timeout_seconds=2) as client:
        with anyio.fail_after(3 * BOUND_SECONDS):
            row = _docker(answer_of(await client.call_tool("container_runtime_status", {})))
            assert row["available"] is False, row
            assert row["reason"]
            assert row["remedy"]
            for tool, arguments in (
                ("container_list", {}),
                ("container_list", {"usage": False}),
                ("container_logs", {"container": "web"}),
                ("container_run", {"image": "localhost/x:1"}),
                ("image_list", {}),
            ):
                result = await client.call_tool(tool, arguments)
                error = error_of(result)
                assert error["code"] == "engine_unavailable", text_of(result)
                assert error["retryable"] is True
                for foreign in ("HTTPConnectionPool", "Traceback", "Errno", "urllib3", "KeyError"):
                    assert foreign not in text_of(result)
    gc.collect()


# ------------------------------------------------------------------------------------------- stopped in the middle


@every_signal
@every_era
async def test_engine_that_stops_in_the_middle_of_a_run_is_said_and_the_next_run_works(
    era: Era, number: signal.Signals, own_engine: OwnEngine
) -> None:
    async with wire.served(era) as server, _stopping(own_engine, number) as marker:
        command = ["sh", "-c", f"trap 'exit 0' TERM; echo said; while :; do sleep 0.1; : {marker}; done"]
        call = await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=command)
        await eventually(lambda: bool(processes(marker)), "the container runs")
        await anyio.to_thread.run_sync(own_engine.stop, number)
        _says_that_the_engine_is_gone(await server.result(call))
        await _is_well_again(server, own_engine)


@every_signal
@every_era
async def test_engine_that_stops_while_a_log_is_followed_is_said_and_the_next_look_works(
    era: Era, number: signal.Signals, own_engine: OwnEngine
) -> None:
    async with wire.served(era) as server, _stopping(own_engine, number) as marker:
        command = ["sh", "-c", f"trap 'exit 0' TERM; while :; do echo tick; sleep 0.1; : {marker}; done"]
        started = await server.call(
            "container_run", image=backends.BUSYBOX_IMAGE, command=command, detach=True, name=marker
        )
        assert not started["isError"], started
        call = await server.start_call("container_logs", container=marker, follow_seconds=60)
        # Another reader of the same log got lines: ours is being followed.
        await eventually(lambda: "tick" in own_engine.docker(["logs", marker]).stdout, "the container talks")
        await anyio.to_thread.run_sync(own_engine.stop, number)
        result = await server.result(call)
        if result["isError"] or number == signal.SIGKILL:
            _says_that_the_engine_is_gone(result)
        else:
            # An engine that is asked to stop ends its containers before itself.
            assert result["structuredContent"]["state"] == "exited"
        await _is_well_again(server, own_engine)
        again = await server.call("container_logs", container=marker)
        assert not again["isError"], again
        assert again["structuredContent"]["lines"][0]["text"] == "tick"
        removed = await server.call("container_remove", container=marker, force=True)
        assert not removed["isError"], removed


@every_signal
@pytest.mark.parametrize("builder", ["classic", "buildkit"])
@every_era
async def test_engine_that_stops_in_the_middle_of_a_build_is_said_and_the_next_build_works(
    era: Era, builder: str, number: signal.Signals, own_engine: OwnEngine, request: pytest.FixtureRequest
) -> None:
    buildx = "off" if builder == "classic" else str(request.getfixturevalue("buildx_program"))
    async with wire.served(era, buildx=buildx) as server, _stopping(own_engine, number) as marker:
        wait = f"trap 'exit 1' TERM; while :; do sleep 0.1; : {marker}; done"
        dockerfile = f"FROM {backends.BUSYBOX_IMAGE}\nRUN echo {uuid.uuid4().hex}\nRUN {wait}\n"
        call = await server.start_call("container_build", image_name="localhost/stopped", dockerfile_text=dockerfile)
        await eventually(lambda: bool(processes(marker)), "the build's step runs")
        await anyio.to_thread.run_sync(own_engine.stop, number)
        _says_that_the_engine_is_gone(await server.result(call))
        await _is_well_again(server, own_engine)
        dockerfile = f"FROM {backends.BUSYBOX_IMAGE}\nRUN echo {uuid.uuid4().hex}\n"
        again = await server.call("container_build", image_name="localhost/again", dockerfile_text=dockerfile)
        assert not again["isError"], again
        assert again["structuredContent"]["builder"] == builder
        await server.call("image_remove", image="localhost/again")


@asynccontextmanager
async def _stopping(engine: OwnEngine, number: signal.Signals) -> AsyncIterator[str]:
    """A text to put among a process's arguments; what has it and outlived its engine is ended."""
    marker = f"cxc-{number.name.lower()}-{uuid.uuid4().hex[:12]}"
    try:
        yield marker
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(engine.ensure_started)
            engines.end_processes(marker)


def _says_that_the_engine_is_gone(result: dict[str, Any]) -> None:
    assert result["isError"], result
    (error,) = (value for key, value in result["_meta"].items() if key.endswith("/error"))
    assert error["code"] == "engine_unavailable", result
    assert error["retryable"] is True
    assert error["hint"]
    assert "docker" in error["message"]


async def _is_well_again(server: wire.Wire, engine: OwnEngine) -> None:
    """While the engine is down that is what calls say; once it is up they work, and nothing of the broken call is left."""
    _says_that_the_engine_is_gone(await server.call("container_list"))
    status = await server.call("container_runtime_status")
    assert _docker(status["structuredContent"])["available"] is False
    await anyio.to_thread.run_sync(engine.start)
    ran = await server.call("container_run", image=backends.BUSYBOX_IMAGE, command="echo well")
    assert not ran["isError"], ran
    assert ran["structuredContent"]["stdout"] == "well\n"
    assert _docker((await server.call("container_runtime_status"))["structuredContent"])["available"] is True
    filters = [f"label={engines.host_label()}", "label=codomyrmex.containerization.lifetime=call"]
    options = [option for one in filters for option in ("--filter", one)]
    await eventually(
        lambda: not engine.docker(["ps", "--all", "--quiet", *options]).stdout.split(),
        "the container of the broken call is gone",
    )


def _docker(answer: dict[str, Any]) -> dict[str, Any]:
    (row,) = (one for one in answer["engines"] if one["name"] == "docker")
    assert isinstance(row, dict)
    return row
