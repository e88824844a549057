"""How do commands run, on every engine, in a container that runs already?"""

from __future__ import annotations

from contextlib import suppress

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.details import ExecSpec
from tests.engines.contract import (
    FOREVER,
    Bench,
    Ran,
    behaviour,
    busy_threads,
    eventually,
    no_thread_left,
    raises,
    same,
)
from tests.engines.contract_output import ALL_BYTES

ODD_TEXT = "a b=c, 'ä' \"日本\" \\ $HOME;\n\tend"


@behaviour("exec", "exec")
async def command_has_output_and_exit_code(bench: Bench) -> None:
    """A command has split output and its exit code"""
    keeper = await bench.keeper()
    for code in (0, 1, 42, 255):
        said = await bench.exec(keeper, "sh", "-c", f"echo out; echo err >&2; exit {code}")
        assert said == Ran(b"out\n", b"err\n", code)
    assert await bench.exec(keeper, "true") == Ran(b"", b"", 0)


@behaviour("exec", "exec")
async def commands_stdin_is_given_whole_and_closed(bench: Bench) -> None:
    """Its stdin is given whole and closed"""
    keeper, data = await bench.keeper(), ALL_BYTES * 8192
    assert await bench.exec(keeper, "cat", stdin=data) == Ran(data, b"", 0)
    assert await bench.exec(keeper, "cat", stdin=b"") == Ran(b"", b"", 0)


@behaviour("exec", "exec")
async def command_has_user_folder_and_environment(bench: Bench) -> None:
    """User, working folder and environment are as asked for"""
    keeper = await bench.keeper()
    said = await bench.exec(
        keeper,
        "sh",
        "-c",
        'id -u; pwd; printf %s "$ODD"',
        user="nobody",
        workdir="/tmp",
        env={"ODD": ODD_TEXT, "EMPTY": ""},
    )
    assert said == Ran(f"65534\n/tmp\n{ODD_TEXT}".encode(), b"", 0)
    assert (await bench.exec(keeper, "sh", "-c", "id -u; pwd")).stdout == b"0\n/\n"


@behaviour("exec", "exec")
async def command_sees_the_containers_own_environment(bench: Bench) -> None:
    """A command sees the container's own environment and folder"""
    made = await bench.started(env={"OF_THE_CONTAINER": "yes"}, workdir="/tmp", user="nobody")
    said = await bench.exec(made, "sh", "-c", "echo $OF_THE_CONTAINER; pwd; id -u")
    assert said.stdout == b"yes\n/tmp\n65534\n"


@behaviour("exec", "exec")
async def command_needs_a_container_that_runs(bench: Bench) -> None:
    """A command needs a container that runs: conflict"""
    spec = ExecSpec(("true",), {})
    for made in (await bench.create("true"), await bench.ended("true")):
        async with raises(errors.Conflict):
            await bench.engine.create_exec(made, spec)
    async with raises(errors.NotFound):
        await bench.engine.create_exec(bench.fresh(), spec)


@behaviour("exec", "exec", "pause")
async def paused_container_runs_no_command(bench: Bench) -> None:
    """A paused container runs no command: conflict"""
    made = await bench.started()
    await bench.engine.pause_container(made)
    async with raises(errors.Conflict):
        await bench.exec(made, "true")


@behaviour("exec", "exec")
async def program_that_is_not_there_fails(bench: Bench) -> None:
    """A program that is not there: command_failed, or 126 or 127"""
    keeper = await bench.keeper()
    for program in ("/no/such/program", "nosuchprogram", "/etc/passwd"):
        with suppress(errors.CommandFailed):
            assert (await bench.exec(keeper, program)).exit_code in (126, 127)
    assert await bench.exec(keeper, "echo", "usable") == Ran(b"usable\n", b"", 0)


@behaviour("exec", "exec")
async def state_of_a_command_is_told(bench: Bench) -> None:
    """How a command stands is told"""
    made = await bench.started()
    asked = await bench.engine.create_exec(
        made, ExecSpec(("sh", "-c", "echo up; until test -e /go; do sleep 0.05; done; exit 8"), {})
    )
    async with bench.engine.start_exec(asked, stdin=None) as attachment:
        async for frame in attachment.frames():
            assert frame.data == b"up\n"
            state = await bench.engine.inspect_exec(asked)
            assert (state.running, state.exit_code) == (True, None)
            await bench.touch(made, "/go")
    assert await bench.exec_code(asked) == 8
    assert not (await bench.engine.inspect_exec(asked)).running
    async with raises(errors.NotFound):
        await bench.engine.inspect_exec("0" * 64)


@behaviour("exec", "exec", "exec_kill")
async def command_can_be_killed(bench: Bench) -> None:
    """A command can be killed with what it started; the container goes on"""
    made = await bench.started()
    asked = await bench.engine.create_exec(made, ExecSpec(("sh", "-c", "echo up; sleep 4321; echo never"), {}))
    async with bench.engine.start_exec(asked, stdin=None) as attachment:
        async for frame in attachment.frames():
            assert frame.data == b"up\n"
            assert await bench.engine.end_exec(made, asked) is True
    state = await bench.engine.inspect_exec(asked)
    assert not state.running
    assert state.exit_code != 0
    assert await bench.engine.end_exec(made, asked) is True
    assert (await bench.engine.inspect_container(made)).status == "running"
    assert (await bench.exec(made, "echo", "usable")).stdout == b"usable\n"


@behaviour("exec", "exec", "exec_kill")
async def killing_an_unknown_command_is_not_found(bench: Bench) -> None:
    """Killing an unknown command is not found"""
    async with raises(errors.NotFound):
        await bench.engine.end_exec(await bench.keeper(), "0" * 64)


@behaviour("exec", "exec")
async def many_commands_run_side_by_side(bench: Bench) -> None:
    """Many commands run side by side"""
    keeper = await bench.keeper()
    said: dict[int, Ran] = {}

    async def one(number: int) -> None:
        said[number] = await bench.exec(keeper, "sh", "-c", f"echo {number}; exit {number}")

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(one, number)
    assert said == {number: Ran(b"%d\n" % number, b"", number) for number in range(10)}


@behaviour("exec", "exec")
async def ten_megabytes_of_a_command_arrive(bench: Bench) -> None:
    """10 MB and every byte of a command arrive"""
    keeper, last = await bench.keeper(), 1_500_000
    said = await bench.exec(keeper, "seq", "1", str(last))
    same(said.stdout, b"".join(b"%d\n" % number for number in range(1, last + 1)))
    said = await bench.exec(keeper, "cat", stdin=ALL_BYTES)
    assert said.stdout == ALL_BYTES


@behaviour("exec", "exec")
async def command_that_is_left_leaves_no_thread(bench: Bench) -> None:
    """A command that is left leaves no thread behind"""
    before = busy_threads()
    made = await bench.started()
    asked = await bench.engine.create_exec(made, ExecSpec(("sh", "-c", "echo up; sleep 4321"), {}))
    with anyio.CancelScope() as scope:
        async with bench.engine.start_exec(asked, stdin=None) as attachment:
            async for _frame in attachment.frames():
                scope.cancel()
    await no_thread_left(before)
    assert (await bench.exec(made, "echo", "usable")).stdout == b"usable\n"


@behaviour("exec", "exec")
async def commands_end_with_their_container(bench: Bench) -> None:
    """Commands end with their container"""
    made = await bench.started(*FOREVER)
    asked = await bench.engine.create_exec(made, ExecSpec(("sh", "-c", "echo up; sleep 4321"), {}))
    async with bench.engine.start_exec(asked, stdin=None) as attachment:
        async for _frame in attachment.frames():
            await bench.engine.kill_container(made, "KILL")
    assert await bench.engine.wait_container(made) == 137

    async def runs() -> bool:
        try:
            return (await bench.engine.inspect_exec(asked)).running
        except errors.NotFound:  # it may be forgotten with its container
            return False

    await eventually(runs, lambda running: not running)
