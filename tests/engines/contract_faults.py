"""What does every engine answer when something is missing, is left or takes too long, and does it say truly what it can?"""

from __future__ import annotations

from contextlib import suppress

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.details import ExecSpec
from codomyrmex_containerization.models.engine import CAPABILITIES, KINDS
from tests.engines.contract import Bench, Ran, behaviour, busy_threads, no_thread_left, raises


@behaviour("faults")
async def missing_container_is_not_found_whatever_is_asked(bench: Bench) -> None:
    """A missing container is not found, whatever is asked"""
    engine, nobody = bench.engine, bench.fresh()
    calls = {
        "inspect": engine.inspect_container(nobody),
        "details": engine.container_details(nobody),
        "start": engine.start_container(nobody),
        "stop": engine.stop_container(nobody, timeout_seconds=0),
        "restart": engine.restart_container(nobody, timeout_seconds=0),
        "kill": engine.kill_container(nobody, "KILL"),
        "wait": engine.wait_container(nobody),
        "remove": engine.remove_container(nobody, force=False, volumes=False),
        "remove by force": engine.remove_container(nobody, force=True, volumes=True),
    }
    for call in calls.values():
        async with raises(errors.NotFound):
            await call
    async with raises(errors.NotFound), engine.attach_container(nobody, stdin=None):
        pass


@behaviour("faults", "pause")
async def missing_container_cannot_be_paused(bench: Bench) -> None:
    """A missing container cannot be paused: not found"""
    async with raises(errors.NotFound):
        await bench.engine.pause_container(bench.fresh())
    async with raises(errors.NotFound):
        await bench.engine.unpause_container(bench.fresh())


@behaviour("faults")
async def odd_name_is_not_found_and_does_no_harm(bench: Bench) -> None:
    """A name of odd characters is not found and does no harm"""
    for name in ("ä", "a b", "../../info", "x?all=1", "a%2fb", "x#y", "日本"):
        async with raises(errors.NotFound, errors.InvalidArgument):
            await bench.engine.inspect_container(name)
        async with raises(errors.NotFound, errors.InvalidArgument):
            await bench.engine.remove_container(name, force=True, volumes=True)


@behaviour("faults")
async def wait_that_is_left_leaves_no_thread(bench: Bench) -> None:
    """A wait that is left leaves no thread behind"""
    before, made = busy_threads(), await bench.started()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(bench.engine.wait_container, made)
        await anyio.wait_all_tasks_blocked()
        assert (await bench.engine.inspect_container(made)).status == "running"
        tasks.cancel_scope.cancel()
    await no_thread_left(before)
    assert (await bench.engine.inspect_container(made)).status == "running"
    await bench.engine.kill_container(made, "KILL")
    assert await bench.engine.wait_container(made) == 137


@behaviour("faults")
async def deadline_that_passes_leaves_the_engine_usable(bench: Bench) -> None:
    """A deadline that passes leaves the engine usable and no thread behind"""
    before, made = busy_threads(), await bench.create("sh", "-c", "echo said; sleep 100000")
    said = []
    with anyio.move_on_after(1) as scope:
        async with bench.engine.attach_container(made, stdin=None) as attachment:
            await bench.engine.start_container(made)
            async for frame in attachment.frames():
                said.append(frame.data)
    assert scope.cancelled_caught
    await no_thread_left(before)
    state = await bench.engine.inspect_container(made)
    assert state.status in ("created", "running")
    assert await bench.shell("echo usable") == Ran(b"usable\n", b"", 0)


@behaviour("faults", "exec")
async def many_calls_side_by_side_are_answered(bench: Bench) -> None:
    """40 calls side by side are answered"""
    keeper, answered = await bench.keeper(), []

    async def look() -> None:
        answered.append((await bench.engine.inspect_container(keeper)).status)
        await bench.engine.list_containers(all=True)
        await bench.engine.create_exec(keeper, ExecSpec(("true",), {}))

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(look)
    assert answered == ["running"] * 40


@behaviour("faults")
async def removal_under_way_is_told_truly(bench: Bench) -> None:
    """Two who remove one container: it is gone, and each is told truly"""
    made, told = await bench.started(), []

    async def remove() -> None:
        try:
            await bench.engine.remove_container(made, force=True, volumes=True)
            told.append("removed")
        except errors.ContainerizationError as error:
            told.append(error.code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(remove)
        tasks.start_soon(remove)
    assert "removed" in told
    assert set(told) <= {"removed", "conflict", "not_found"}
    async with raises(errors.NotFound):
        await bench.engine.inspect_container(made)


@behaviour("declaration")
async def engine_says_what_it_is(bench: Bench) -> None:
    """It says what it is"""
    info = await bench.engine.info(deadline_seconds=10)
    assert info.name == bench.engine.name
    assert info.product in KINDS
    assert info.version
    assert info.architecture
    assert info.storage_driver
    assert info.endpoint == bench.engine.endpoint
    assert (info.containers >= info.containers_running >= 0, info.images >= 1) == (True, True)


@behaviour("declaration")
async def what_it_lacks_has_a_reason(bench: Bench) -> None:
    """What it lacks it declares, with the reason"""
    assert set(bench.info.lacks) <= set(CAPABILITIES)
    assert set(bench.info.capabilities) == set(CAPABILITIES) - set(bench.info.lacks)
    assert all(reason.strip() for reason in bench.info.lacks.values())


@behaviour("declaration")
async def closing_twice_does_no_harm(bench: Bench) -> None:
    """Closing twice does no harm, and a later call opens it again or is refused clearly"""
    await bench.engine.aclose()
    await bench.engine.aclose()
    with suppress(errors.EngineUnavailable):
        assert (await bench.engine.info()).product == bench.info.product
