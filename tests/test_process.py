"""Do programs run as lists, never through a shell, and never outlive the block that ran them?"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors, process

ENV = {"PATH": os.environ["PATH"]}


async def lines(running: process.Running) -> list[bytes]:
    return [line async for line in running.lines(running.process.stdout)]


async def test_arguments_arrive_as_they_are() -> None:
    odd = ["a b", "$HOME", "`id`", ";", "", "ä", "*"]
    script = "import sys; [print(repr(one)) for one in sys.argv[1:]]"
    async with process.run([sys.executable, "-c", script, *odd], env=ENV) as running:
        assert [line.decode() for line in await lines(running)] == [repr(one) for one in odd]
        assert await running.wait() == 0


async def test_environment_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "1")
    async with process.run(["env"], env={**ENV, "ONE": "x"}) as running:
        found = await lines(running)
    assert b"ONE=x" in found
    assert not [line for line in found if line.startswith(b"OTHER=")]


async def test_lines_are_whole_and_the_last_needs_no_end() -> None:
    async with process.run(["printf", "a\\n\\nb\\r\\nc"], env=ENV) as running:
        assert await lines(running) == [b"a", b"", b"b\r", b"c"]


async def test_very_long_line_comes_in_pieces() -> None:
    async with process.run([sys.executable, "-c", "print('x' * 5_000_000)"], env=ENV) as running:
        found = await lines(running)
    assert len(found) > 1
    assert sum(map(len, found)) == 5_000_000


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)])
async def test_return_code_is_the_programs(script: str, code: int) -> None:
    async with process.run(["sh", "-c", script], env=ENV) as running:
        assert await running.wait() == code


async def test_leaving_the_block_ends_the_whole_group() -> None:
    async with process.run(["sh", "-c", "sleep 61.25 & echo $!; wait"], env=ENV) as running:
        async for line in running.lines(running.process.stdout):
            child = int(line)
            break
        os.kill(child, 0)
    with anyio.fail_after(10):
        while _is_running(child):  # noqa: ASYNC110  the program is no child of ours
            await anyio.sleep(0.01)


async def test_cancelled_block_ends_the_program() -> None:
    with anyio.move_on_after(0.2):
        async with process.run(["sleep", "61.5"], env=ENV) as running:
            pid = running.process.pid
            await running.wait()
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    if process._death_wish():
        async with process.run(["/no/such/program"], env=ENV) as running:
            assert await running.wait() == 127
        return
    with pytest.raises(errors.CommandFailed, match="/no/such/program"):
        async with process.run(["/no/such/program"], env=ENV):
            pass


def test_program_is_found_on_the_path_in_extra_folders_and_not_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cxc-test-program"
    program.write_text("#!/bin/sh\n")
    assert process.find("cxc-test-program", folders=[str(tmp_path)]) is None
    program.chmod(0o755)
    assert process.find("cxc-test-program", folders=[str(tmp_path)]) == program
    assert process.find("cxc-test-program") is None
    monkeypatch.setenv("PATH", "")
    assert process.find("sh") is not None
