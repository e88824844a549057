"""Does the process that does an ordinary user's containers come back, and is anything lost or left when it is killed?"""

from __future__ import annotations

import os
import random
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.base import Engine
from codomyrmex_containerization.engines.embedded.rootless import RootlessEngine
from codomyrmex_containerization.models.container import ContainerSpec
from codomyrmex_containerization.models.details import ExecSpec
from tests import embedded, registry
from tests.ordinary_user import OrdinaryUser

pytestmark = pytest.mark.anyio

KILLS = 8
LATEST_SECONDS = 0.3
PAUSE_SECONDS = 0.02
END_SECONDS = 20.0


@pytest.fixture
async def engine(session_ordinary_user: OrdinaryUser, tmp_path: Path) -> AsyncIterator[RootlessEngine]:
    """An engine of the ordinary user's with a data folder of its own."""
    made = session_ordinary_user.engine(f"rootless-{tmp_path.name}")
    session_ordinary_user.base_image(made)
    yield made
    for row in await made.list_containers(all=True):
        await made.remove_container(row.id, force=True, volumes=True)
    await made.aclose()


def _workers(user: OrdinaryUser) -> list[int]:
    found = []
    for pid in user.processes():
        with suppress(OSError):
            if b"embedded.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


async def _kill_workers(user: OrdinaryUser) -> None:
    for pid in _workers(user):
        gone = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        await anyio.wait_readable(gone)
        os.close(gone)


def _spec(*command: str) -> ContainerSpec:
    return ContainerSpec(embedded.IMAGE, command=command, network="none")


async def test_killed_worker_is_started_again_and_containers_go_on(
    engine: RootlessEngine, session_ordinary_user: OrdinaryUser
) -> None:
    """B100: containers outlive the process that made them; the next call starts another one."""
    id = await engine.create_container(_spec("sleep", "600"))
    await engine.start_container(id)
    await _kill_workers(session_ordinary_user)
    assert (await engine.inspect_container(id)).status == "running"


@pytest.mark.parametrize("seed", range(KILLS))
async def test_kill_of_the_worker_at_any_moment_leaves_what_can_be_removed_and_nothing_else(
    seed: int, engine: RootlessEngine, session_ordinary_user: OrdinaryUser
) -> None:
    chance = random.Random(seed)
    told: list[str] = []
    removing: set[str] = set()

    async def use() -> None:
        with suppress(errors.EngineUnavailable):
            while True:
                id = await engine.create_container(_spec("sleep", "600"))
                await engine.start_container(id)
                told.append(id)
                await engine.create_exec(id, _exec())
                if chance.random() < 0.3:
                    removing.add(id)
                    await engine.remove_container(id, force=True, volumes=True)
                    told.remove(id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await anyio.sleep(chance.uniform(0, LATEST_SECONDS))
        await _kill_workers(session_ordinary_user)
    rows = {row.id: row for row in await engine.list_containers(all=True)}
    for id in told:
        if id not in removing:
            assert rows[id].status == "running", "what was told to run runs"
    for id in rows:
        await engine.remove_container(id, force=True, volumes=True)
    with anyio.fail_after(END_SECONDS):
        while set(session_ordinary_user.processes()) - set(_workers(session_ordinary_user)):  # noqa: ASYNC110
            await anyio.sleep(PAUSE_SECONDS)


def _exec() -> ExecSpec:
    return ExecSpec(("true",), {})


async def test_call_that_is_cancelled_is_cancelled_in_the_worker(engine: RootlessEngine) -> None:
    id = await engine.create_container(_spec("sleep", "600"))
    await engine.start_container(id)
    with anyio.move_on_after(0.2) as timer:
        await engine.wait_container(id)
    assert timer.cancelled_caught
    assert (await engine.inspect_container(id)).status == "running"


async def test_error_of_whoever_reads_an_archive_ends_the_copy_and_is_raised_as_it_is(engine: RootlessEngine) -> None:
    id = await engine.create_container(_spec("true"))

    def sink(pieces: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await engine.read_archive(id, "/bin/busybox", sink)
    assert (await engine.stat_path(id, "/bin/busybox")).size_bytes > 0


async def test_image_goes_to_a_registry_and_comes_back_as_an_ordinary_users(
    engine: RootlessEngine, tmp_path: Path
) -> None:
    """SPEC B141."""
    with registry.started(tmp_path / "registry") as found:
        name = f"{found.authority}/users/app:1"
        pushed = await embedded.pushed(engine, embedded.IMAGE, name)
        assert registry.crane("digest", name).strip() == pushed.digest
        async with engine.pull_image(name, platform=None) as steps:
            done = [step.done async for step in steps][-1]
    assert done is not None
    assert (done.digest, done.id, done.there) == (pushed.digest, pushed.id, 1)
    await engine.remove_image(name, force=False)


def test_every_method_of_the_contract_is_asked_of_the_worker() -> None:
    own = vars(RootlessEngine)
    of_the_contract = [name for name, one in vars(Engine).items() if callable(one) and not name.startswith("_")]
    assert [name for name in of_the_contract if name not in own] == []


async def test_folders_and_sockets_are_the_users_alone(
    engine: RootlessEngine, session_ordinary_user: OrdinaryUser, tmp_path: Path
) -> None:
    await engine.info()
    name = f"rootless-{tmp_path.name}"
    data, run = session_ordinary_user.folder / "home" / name, session_ordinary_user.folder / "run" / name
    assert [stat.S_IMODE(one.stat().st_mode) for one in (data, run)] == [0o700, 0o700]
    sockets = [one for one in run.iterdir() if one.is_socket()]
    assert sockets
    assert {stat.S_IMODE(one.stat().st_mode) for one in sockets} == {0o600}
