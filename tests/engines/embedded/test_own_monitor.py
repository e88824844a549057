"""Does the monitor of our own do what conmon does, so that either may watch the same program and nobody sees which it was?

SPEC B128. `test_attach.py` tries both with who is attached.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.engines.embedded import state, tiers
from tests.engines.embedded.test_attach import DEADLINE_SECONDS, Watched, attended, monitor_command, monitored

KINDS = ("conmon", "own")
_ENTRY = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)", re.DOTALL)
LONGEST_PIECE_BYTES = 8192
# One write each, so that how it comes out does not depend on who is quicker.
SCRIPTS = {
    "lines": "printf 'one\\ntwo\\n\\n'; exit 0",
    "both": "echo out; echo err >&2; exit 3",
    "part": "printf 'no end'; exit 41",
    "returns": "printf 'a\\rb\\r\\n\\033[1m\\001\\377\\n'",
    "killed": "echo before; kill -9 $$",
    "silent": "exit 255",
}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[list[Watched]]:
    """Programs that are watched; what still runs is ended."""
    made: list[Watched] = []
    yield made
    for one in made:
        one.clean_up()


def begun(watched: list[Watched], folder: Path, script: str, *, kind: str, log_bytes: int = -1) -> Watched:
    """A script that waits, with its monitor."""
    monitored(monitor_command(kind), folder, script, stdin=False, log_bytes=log_bytes)
    watched.append(Watched(folder))
    return watched[-1]


def entries(log: Path) -> list[tuple[bytes, bytes, bytes]]:
    """The stream, kind and text of each entry of a log."""
    found = []
    for line in log.read_bytes().removesuffix(b"\n").split(b"\n"):
        entry = _ENTRY.fullmatch(line) if line else None
        assert entry is not None or log.stat().st_size == 0, line
        found += [(entry[2], entry[3], entry[4])] if entry else []
    return found


def left(folder: Path) -> dict[str, bytes]:
    """The files that a monitor leaves, with what they say where that is not of the moment."""
    own = {"runtime", "go", "pid", "conmon.pid", "conmon.log", "log"}
    own |= {"ctl", "winsz"}  # of terminals, which the one of our own has not
    names = sorted(str(one.relative_to(folder)) for one in folder.rglob("*"))
    return {
        name: (folder / name).read_bytes() if name.startswith("exits/") else b"" for name in names if name not in own
    }


@pytest.mark.parametrize("script", SCRIPTS)
async def test_both_monitors_leave_the_same_of_the_same_program(
    watched: list[Watched], tmp_path: Path, script: str
) -> None:
    """SPEC B128."""
    seen = []
    for kind in KINDS:
        one = begun(watched, tmp_path / kind, SCRIPTS[script], kind=kind)
        said = await attended(one)
        code = await one.exit_code()
        seen.append((said, code, entries(one.log), left(one.folder), one.log.stat().st_mode))
    assert seen[0] == seen[1]


async def test_both_monitors_begin_a_new_log_at_the_same_line(watched: list[Watched], tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("".join(f"{number:>40}\n" for number in range(90)))
    seen = []
    for kind in KINDS:
        one = begun(watched, tmp_path / kind, f"cat {tmp_path}/lines", kind=kind, log_bytes=3000)
        await attended(one)
        await one.exit_code()
        seen.append(entries(one.log))
    assert seen[0] == seen[1]
    assert 0 < len(seen[1]) < 90


async def test_long_line_comes_in_pieces_that_make_it_up(watched: list[Watched], tmp_path: Path) -> None:
    one = begun(watched, tmp_path / "own", "head -c 100000 /dev/zero | tr '\\0' x; echo", kind="own")
    await attended(one)
    await one.exit_code()
    found = entries(one.log)
    assert b"".join(text for _, _, text in found) == b"x" * 100_000
    assert [kind for _, kind, _ in found] == [b"P"] * (len(found) - 1) + [b"F"]
    assert all(len(text) <= LONGEST_PIECE_BYTES for _, _, text in found)


@pytest.mark.parametrize("kind", KINDS)
def test_runtime_that_refuses_is_told_in_its_own_words(tmp_path: Path, kind: str) -> None:
    told = created(tmp_path, kind, "echo 'it is refused: \"no\"' >&2; exit 1")
    assert told["data"] < 0
    assert 'it is refused: "no"' in told["message"]


def test_runtime_that_is_not_there_is_told(tmp_path: Path) -> None:
    told = created(tmp_path, "own", None)
    assert told["data"] < 0
    assert "No such file" in told["message"]


def created(folder: Path, kind: str, script: str | None, *more: str) -> dict[str, Any]:
    """What a monitor answers, of a runtime that is a script."""
    (folder / "exits").mkdir()
    if script is not None:
        (folder / "runtime").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "runtime").chmod(0o700)
    answer, answered = os.pipe()
    argv = [
        *(*monitor_command(kind), "--api-version", "1", "-c", "program", "-u", "program", "-n", "program"),
        *("-r", str(folder / "runtime"), "-b", str(folder), "-p", str(folder / "pid")),
        *("-P", str(folder / "conmon.pid"), "-l", f"k8s-file:{folder / 'log'}", "--exit-dir", str(folder / "exits")),
        *("--full-attach", "--socket-dir-path", str(folder), "--log-level", "error", "--no-sync-log", *more),
    ]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "_OCI_SYNCPIPE": str(answered)}
    with open(answer, "rb") as told:
        subprocess.run(argv, stdin=subprocess.DEVNULL, pass_fds=(answered,), env=environment, timeout=DEADLINE_SECONDS)
        os.close(answered)
        found: dict[str, Any] = json.loads(told.readline())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_exit_command_runs_when_all_else_is_written_and_the_monitor_stays_for_it(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "told")
    script = f"exec > {tmp_path}/told; cat {tmp_path}/exits/program; echo; echo $PPID"
    more = ("--exit-command", "/bin/sh", "--exit-command-arg", "-c", "--exit-command-arg", script)
    os.mkfifo(tmp_path / "go")
    program = f"sh -c 'read -r _ < {tmp_path}/go; exit 7' & echo $! > {tmp_path}/pid"
    assert created(tmp_path, kind, program, *more)["data"] > 0
    (tmp_path / "go").write_text("go\n")
    code, parent = (tmp_path / "told").read_text().split()
    assert code == "7"
    assert parent == (tmp_path / "conmon.pid").read_text().strip()


async def test_end_that_nobody_heard_is_told_as_unknown(watched: list[Watched], tmp_path: Path) -> None:
    ended = f"sh -c 'exit 7' & echo $! > {tmp_path}/pid; wait"
    assert created(tmp_path, "own", ended)["data"] > 0
    one = Watched(tmp_path)
    assert await one.exit_code() == -1


async def test_signal_to_the_monitor_is_one_to_the_program(watched: list[Watched], tmp_path: Path) -> None:
    one = begun(watched, tmp_path / "own", "sleep 1000", kind="own")
    os.kill(one.monitor_pid, signal.SIGTERM)
    assert await one.exit_code() == 128 + signal.SIGTERM


async def test_monitor_lives_in_a_session_of_its_own_and_takes_in_what_is_left(
    watched: list[Watched], tmp_path: Path
) -> None:
    one = begun(watched, tmp_path / "own", "sleep 1000", kind="own")
    program = int((one.folder / "pid").read_text())
    found = Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()
    assert int(found[1]) == one.monitor_pid
    assert os.getsid(one.monitor_pid) == one.monitor_pid
    assert state.process_start(one.monitor_pid) is not None


@pytest.mark.parametrize("words", [["--nothing"], ["-c"], ["-c", "x"], ["--log-size-max", "many"]])
def test_command_line_that_is_not_understood_is_an_error(words: list[str]) -> None:
    done = subprocess.run([*tiers.own_monitor_command(), *words], capture_output=True, timeout=DEADLINE_SECONDS)
    assert done.returncode != 0
    assert done.stderr
    assert b"Traceback" not in done.stderr


def test_monitor_imports_nothing_that_takes_long() -> None:
    program = tiers.own_monitor_command()[-1]
    script = f"""
import sys
sys.argv = ["x", "--version"]
try:
    exec(open({program!r}).read())
except SystemExit:
    print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert not {"re", "json", "pathlib", "enum", "typing", "signal", "socket", "subprocess"} & set(done.stdout.split())
