"""How does the server end, what does it take with it, and what does the next one find?"""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from tests import backends
from tests.backends import DockerCommandLine
from tests.server import engines, wire
from tests.server.engines import OwnEngine, eventually, processes
from tests.server.faces import ERAS, Era
from tests.server.wire import Wire, served

# Not a measurement: what is promised is half a second, on a machine that does nothing else.
END_SECONDS = 2.0

Ending = Literal["EOF", "SIGTERM", "SIGINT"]
Builder = Literal["classic", "buildkit"]
ENDINGS: dict[Ending, int] = {"EOF": 0, "SIGTERM": 143, "SIGINT": 130}

every_era = pytest.mark.parametrize("era", ERAS)
every_ending = pytest.mark.parametrize("ending", ENDINGS)
every_builder = pytest.mark.parametrize("builder", ["classic", "buildkit"])


@dataclass(frozen=True, slots=True)
class Scene:
    """An engine, and a text by which to know what a test has started in it."""

    docker: DockerCommandLine
    marker: str

    @property
    def busy(self) -> list[str]:
        """A command that goes on until it is killed."""
        return ["sh", "-c", f"while :; do sleep 0.1; : {self.marker}; done"]

    @property
    def dockerfile(self) -> str:
        """A build that makes a layer of its own and then goes on until it is killed."""
        return f"FROM {backends.BUSYBOX_IMAGE}\nRUN echo {self.marker[:-1]} > /layer\nRUN {self.busy[2]}\n"

    def is_running(self) -> bool:
        """Whether something of it runs: a container's process or a build's step."""
        return bool(processes(self.marker))

    def containers(self) -> list[str]:
        """Ids of the containers that this test's servers have made."""
        return self.docker(["ps", "--all", "--quiet", "--filter", f"label={engines.host_label()}"]).stdout.split()

    def is_gone(self) -> bool:
        """Whether nothing is left: no container, no process."""
        return not self.containers() and not self.is_running()


# -------------------------------------------------------------------------------------------------------- the end


@every_era
@every_ending
async def test_idle_server_ends_at_once(era: Era, ending: Ending) -> None:
    async with served(era) as server:
        await _end(server, ending)


@every_era
@every_ending
async def test_server_ends_at_once_during_a_run_and_nothing_is_left(era: Era, ending: Ending, scene: Scene) -> None:
    async with served(era) as server:
        await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=scene.busy)
        await eventually(scene.is_running, "the container runs")
        await _end(server, ending)
    await _next_start_leaves_nothing(era, scene)


@every_era
@every_ending
@every_builder
async def test_server_ends_at_once_during_a_build_and_nothing_is_left(
    era: Era, ending: Ending, builder: Builder, scene: Scene, request: pytest.FixtureRequest
) -> None:
    async with served(era, buildx=_buildx(builder, request)) as server:
        await server.start_call("container_build", image_name="localhost/life", dockerfile_text=scene.dockerfile)
        await eventually(scene.is_running, "the build's step runs")
        await _end(server, ending)
    await _next_start_leaves_nothing(era, scene)


@every_era
@every_ending
async def test_server_ends_at_once_while_it_follows_a_log(era: Era, ending: Ending, scene: Scene) -> None:
    async with served(era) as server:
        command = ["sh", "-c", f"while :; do echo tick; sleep 0.1; : {scene.marker}; done"]
        await _start_detached(server, scene.marker, command)
        await server.start_call("container_logs", container=scene.marker, follow_seconds=60)
        # A call that is answered after it was sent: the server has begun the other one.
        answer = await server.call("container_list")
        assert not answer["isError"], answer
        await _end(server, ending)
    assert scene.is_running(), "a detached container goes on without its server"


@every_era
@every_ending
async def test_server_ends_at_once_while_an_engine_hangs(
    era: Era, ending: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engines.listening(tmp_path / "silent.sock", engines.silent) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        async with served(era) as server:
            await server.start_call("container_list")
            await server.start_call("container_run", image="localhost/x:1")
            await server.request("tools/list", {})
            await _end(server, ending)


@every_era
async def test_second_signal_during_the_end_changes_nothing(era: Era, scene: Scene) -> None:
    async with served(era) as server:
        await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=scene.busy)
        await eventually(scene.is_running, "the container runs")
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGINT)
        assert await server.exit_code(within_seconds=END_SECONDS) in (143, 130)
        assert server.junk == []
    await _next_start_leaves_nothing(era, scene)


async def test_end_before_the_first_request_is_an_end_without_a_word() -> None:
    async with wire.launched("legacy") as server:
        await server.close_input()
        assert await server.exit_code(within_seconds=wire.DEADLINE_SECONDS) == 0
        assert server.junk == []
        assert server.answers == {}
        assert server.said() == ""


# --------------------------------------------------------------------------------------------------------- kill -9


@every_era
async def test_killed_server_leaves_nothing_of_its_run_to_the_next(era: Era, scene: Scene) -> None:
    async with served(era) as server:
        await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=scene.busy)
        await eventually(scene.is_running, "the container runs")
        await _kill(server)
    assert len(scene.containers()) == 1
    await _next_start_leaves_nothing(era, scene)


@every_era
async def test_killed_server_leaves_its_started_detached_container_alone(era: Era, scene: Scene) -> None:
    async with served(era) as server:
        await _start_detached(server, scene.marker, scene.busy)
        await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=["sleep", "600"])
        await eventually(lambda: len(scene.containers()) == 2, "the second container is there")
        await _kill(server)
    async with served(era) as server:
        await eventually(lambda: len(scene.containers()) == 1, "the attached one is gone")
        rows = (await server.call("container_list"))["structuredContent"]["containers"]
        assert [row["status"] for row in rows if row["name"] == scene.marker] == ["running"]
        # It is another server's now: removing it is to be confirmed.
        refused = await server.call("container_remove", container=scene.marker, force=True)
        assert refused["isError"]
        await _end(server, "EOF")


@every_era
@every_builder
async def test_killed_server_leaves_nothing_of_its_build_to_the_next(
    era: Era, builder: Builder, own_scene: Scene, request: pytest.FixtureRequest
) -> None:
    before = _images(own_scene.docker)
    async with served(era, buildx=_buildx(builder, request)) as server:
        await server.start_call("container_build", image_name="localhost/life", dockerfile_text=own_scene.dockerfile)
        await eventually(own_scene.is_running, "the build's step runs")
        programs = engines.children(server.process.pid)
        assert bool(programs) == (builder == "buildkit")
        await _kill(server)
    async with served(era, buildx=_buildx(builder, request)) as server:
        await eventually(lambda: not own_scene.is_running(), "the build's step has ended")
        await eventually(
            lambda: not own_scene.docker(["ps", "--all", "--quiet"]).stdout.split(), "no container is left"
        )
        await eventually(lambda: _images(own_scene.docker) == before, "no half-built image is left")
        await eventually(lambda: not any(map(engines.is_alive, programs)), "no buildx is left")
        await _end(server, "EOF")


@every_era
async def test_what_could_not_be_removed_while_the_engine_was_down_is_removed_by_a_later_start(
    era: Era, own_scene: Scene, own_engine: OwnEngine
) -> None:
    async with served(era) as server:
        await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=own_scene.busy)
        await eventually(own_scene.is_running, "the container runs")
        await _kill(server)
    await anyio.to_thread.run_sync(own_engine.stop, signal.SIGKILL)
    async with served(era) as server:
        # The status call asks the engine as the reaper does, and after it: both have seen that it is down.
        status = await server.call("container_runtime_status")
        assert status["structuredContent"]["runtimes"]["docker"] is False
        await _end(server, "EOF")
    await anyio.to_thread.run_sync(own_engine.start)
    assert len(own_scene.containers()) == 1
    await _next_start_leaves_nothing(era, own_scene)


# ------------------------------------------------------------------------------------------------- side by side


@every_era
async def test_second_server_takes_nothing_of_one_that_lives(era: Era, scene: Scene) -> None:
    async with served(era) as first:
        call = await first.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=scene.busy)
        await eventually(scene.is_running, "the container runs")
        (running,) = scene.containers()
        async with served(era) as killed:
            await killed.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=["sleep", "600"])
            await eventually(lambda: len(scene.containers()) == 2, "the second container is there")
            await _kill(killed)
        async with served(era) as second:
            await eventually(lambda: len(scene.containers()) == 1, "what the dead server left is gone")
            assert scene.containers() == [running]
            await _end(second, "EOF")
        assert scene.is_running()
        assert call not in first.answers
        await _end(first, "SIGTERM")
    await _next_start_leaves_nothing(era, scene)


@every_era
async def test_server_with_another_state_folder_takes_nothing(
    era: Era, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(era) as server:
        await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=scene.busy)
        await eventually(scene.is_running, "the container runs")
        (left,) = scene.containers()
        await _kill(server)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("CODOMYRMEX_CONTAINERIZATION_STATE_DIR", str(tmp_path / "other-state"))
        async with served(era) as server:
            await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=["sleep", "600"])
            await eventually(lambda: len(scene.containers()) == 1, "its own container is there")
            await _kill(server)
        async with served(era) as server:
            await eventually(lambda: not scene.containers(), "what the dead server of this folder left is gone")
            await _end(server, "EOF")
    assert scene.containers() == [left]
    await _next_start_leaves_nothing(era, scene)


# -------------------------------------------------------------------------------------------------- cancellation


@every_era
async def test_cancelled_run_is_stopped_in_the_engine_and_the_server_goes_on(era: Era, scene: Scene) -> None:
    async with served(era) as server:
        call = await server.start_call("container_run", image=backends.BUSYBOX_IMAGE, command=scene.busy)
        await eventually(scene.is_running, "the container runs")
        await server.cancel(call)
        await eventually(scene.is_gone, "the container is gone")
        await _goes_on(server, call)


@every_era
@every_builder
async def test_cancelled_build_is_stopped_in_the_engine_and_the_server_goes_on(
    era: Era, builder: Builder, scene: Scene, request: pytest.FixtureRequest
) -> None:
    async with served(era, buildx=_buildx(builder, request)) as server:
        call = await server.start_call("container_build", image_name="localhost/life", dockerfile_text=scene.dockerfile)
        await eventually(scene.is_running, "the build's step runs")
        await server.cancel(call)
        await eventually(scene.is_gone, "the build's step has ended")
        await _goes_on(server, call)


@every_era
async def test_cancelled_follow_of_a_log_leaves_the_container_alone(era: Era, scene: Scene) -> None:
    async with served(era) as server:
        await _start_detached(server, scene.marker, scene.busy)
        call = await server.start_call("container_logs", container=scene.marker, follow_seconds=60)
        await server.cancel(call)
        await _goes_on(server, call)
        assert scene.is_running()
        removed = await server.call("container_remove", container=scene.marker, force=True)
        assert not removed["isError"], removed


@every_era
async def test_exec_that_is_cancelled_is_ended_in_its_container(era: Era, scene: Scene) -> None:
    async with served(era) as server:
        await _start_detached(server, scene.marker, ["sleep", "600"])
        call = await server.start_call("container_exec", container=scene.marker, command=scene.busy)
        await eventually(scene.is_running, "the command runs")
        await server.cancel(call)
        await eventually(lambda: not scene.is_running(), "the command has ended")
        await _goes_on(server, call)
        removed = await server.call("container_remove", container=scene.marker, force=True)
        assert not removed["isError"], removed


# --------------------------------------------------------------------------------------------------------- helpers


@pytest.fixture
async def scene(docker_cli: DockerCommandLine, busybox_image: str) -> AsyncIterator[Scene]:
    """The tests' shared engine."""
    async with _cleared(Scene(docker_cli, _marker())) as made:
        yield made


@pytest.fixture
async def own_scene(own_engine: OwnEngine) -> AsyncIterator[Scene]:
    """An engine that holds nothing of others."""
    async with _cleared(Scene(own_engine.docker, _marker())) as made:
        yield made
        await anyio.to_thread.run_sync(own_engine.ensure_started)


@asynccontextmanager
async def _cleared(scene: Scene) -> AsyncIterator[Scene]:
    try:
        yield scene
    finally:
        left = scene.containers()
        if left:
            scene.docker(["rm", "--force", *left])
        engines.end_processes(scene.marker)


def _marker() -> str:
    return f"cxc-life-{uuid.uuid4().hex[:12]}"


def _buildx(builder: Builder, request: pytest.FixtureRequest) -> str:
    return "off" if builder == "classic" else str(request.getfixturevalue("buildx_program"))


def _images(docker: DockerCommandLine) -> set[str]:
    return set(docker(["images", "--all", "--quiet", "--no-trunc"]).stdout.split())


async def _start_detached(server: Wire, name: str, command: list[str]) -> None:
    result = await server.call("container_run", image=backends.BUSYBOX_IMAGE, command=command, detach=True, name=name)
    assert not result["isError"], result


async def _end(server: Wire, ending: Ending) -> None:
    """End a server and see that it was quick, said how, and wrote nothing that was no message."""
    match ending:
        case "EOF":
            await server.close_input()
        case "SIGTERM":
            server.send_signal(signal.SIGTERM)
        case "SIGINT":
            server.send_signal(signal.SIGINT)
    assert await server.exit_code(within_seconds=END_SECONDS) == ENDINGS[ending], server.said()
    assert server.junk == []
    assert "Traceback" not in server.said()


async def _kill(server: Wire) -> None:
    server.send_signal(signal.SIGKILL)
    assert await server.exit_code(within_seconds=wire.DEADLINE_SECONDS) == -signal.SIGKILL


async def _next_start_leaves_nothing(era: Era, scene: Scene) -> None:
    async with served(era) as server:
        await eventually(scene.is_gone, "nothing of the former server is left")
        answer = await server.call("container_list")
        assert not answer["isError"], answer
        await _end(server, "EOF")


async def _goes_on(server: Wire, cancelled: int) -> None:
    """A cancelled request gets no answer, and the next ones work."""
    ran: dict[str, Any] = await server.call("container_run", image=backends.BUSYBOX_IMAGE, command="echo well")
    assert not ran["isError"], ran
    assert ran["structuredContent"]["stdout"] == "well\n"
    assert "result" not in server.answers.get(cancelled, {})
