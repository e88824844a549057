"""Is a command ended with everything that it started, and nothing else?"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codomyrmex_containerization.engines import processes

# Every line of /proc/PID/cgroup holds a slash: the processes of a test count as those of the container "/".
ANYWHERE = "/"
NOWHERE = "0" * 64
DEADLINE_SECONDS = 20.0
_PAUSE_SECONDS = 0.005

Start = Callable[..., int]


class Tree:
    """Processes that are known by a number in their arguments."""

    def __init__(self, folder: Path) -> None:
        # Seconds to sleep; their digits are this test's own.
        self.marker = f"1{uuid.uuid4().int % 10**9:09d}"
        self.sleep = folder / "sleep"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, script: str, *, expected: int) -> int:
        """Start a script in a session of its own, as an engine starts a command; wait until so many of it sleep."""
        text = script.replace("SLEEP", f"sleep {self.marker}")
        process = subprocess.Popen(["sh", "-c", text], start_new_session=True)
        self._started.append(process)
        self.wait_for(lambda: len(self.sleeping()) >= expected)
        return process.pid

    def sleeping(self) -> list[int]:
        """The processes that sleep, the dead left out."""
        return [
            pid for pid in _numbers() if _arguments(pid)[1:2] == [self.marker] and _state(pid) not in ("Z", "X", "")
        ]

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Look again until it holds."""
        until = time.monotonic() + DEADLINE_SECONDS
        while not holds():
            assert time.monotonic() < until, "it did not come to be so"
            time.sleep(_PAUSE_SECONDS)

    def end(self) -> None:
        """End whatever is left."""
        for process in self._started:
            process.kill()
            process.wait()
        for pid in self.sleeping():
            os.kill(pid, signal.SIGKILL)


def _numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exec SLEEP", 1),
        ("SLEEP & SLEEP", 2),
        ("sh -c 'sh -c \"SLEEP & SLEEP\" & SLEEP' & SLEEP", 4),
        ("trap '' TERM HUP INT; (trap '' TERM; SLEEP) & SLEEP", 2),
        ("(SLEEP &); SLEEP", 2),
        ("(SLEEP & SLEEP &) & SLEEP", 3),
        ("setsid -w SLEEP & SLEEP", 2),
    ],
    ids=["alone", "child", "grandchildren", "ignores-signals", "orphan", "orphans", "own-session"],
)
def test_end_tree_leaves_nothing_of_a_command(tree: Tree, script: str, expected: int) -> None:
    pid = tree.start(script, expected=expected)
    assert processes.end_tree(pid, ANYWHERE)
    assert tree.sleeping() == []


def test_end_tree_ends_a_command_that_is_stopped(tree: Tree) -> None:
    pid = tree.start("SLEEP & SLEEP", expected=2)
    for one in (pid, *tree.sleeping()):
        os.kill(one, signal.SIGSTOP)
    assert processes.end_tree(pid, ANYWHERE)
    assert tree.sleeping() == []


def test_end_tree_keeps_up_with_a_command_that_starts_more_all_the_time(tree: Tree) -> None:
    pid = tree.start("while :; do SLEEP & sleep 0.002; done", expected=5)
    assert processes.end_tree(pid, ANYWHERE)
    assert tree.sleeping() == []


def test_end_tree_leaves_others_alone(tree: Tree) -> None:
    other = tree.start("exec SLEEP", expected=1)
    pid = tree.start("SLEEP & SLEEP", expected=3)
    assert processes.end_tree(pid, ANYWHERE)
    assert tree.sleeping() == [other]
    assert _state(other) == "S"


def test_end_tree_does_not_touch_a_process_outside_the_container(tree: Tree) -> None:
    pid = tree.start("exec SLEEP", expected=1)
    assert not processes.end_tree(pid, NOWHERE)
    assert tree.sleeping() == [pid]
    assert _state(pid) == "S"


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_end_tree_refuses_numbers_that_are_no_commands(pid: int) -> None:
    assert not processes.end_tree(pid, ANYWHERE)


def test_end_tree_of_a_command_that_has_gone_is_false(tree: Tree) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not processes.end_tree(gone.pid, ANYWHERE)


def test_end_tree_reads_a_process_whose_name_looks_like_fields(tree: Tree, tmp_path: Path) -> None:
    odd = tmp_path / "x) Z 1 1 1 (y"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", odd)
    pid = tree.start(f"'{odd}' {tree.marker} & SLEEP", expected=2)
    assert processes.end_tree(pid, ANYWHERE)
    assert tree.sleeping() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process for another user")
def test_end_tree_of_another_users_command_is_false_and_leaves_it_running(tree: Tree) -> None:
    pid = tree.start("SLEEP & SLEEP", expected=2)
    script = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from codomyrmex_containerization.engines import processes\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(processes.end_tree(int(sys.argv[1]), '/'), len(processes.find_tree(int(sys.argv[1]), '/')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(pid), *sys.path], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "3"], done.stderr
    assert {_state(one) for one in tree.sleeping()} == {"S"}


def test_find_tree_leaves_dead_processes_out(tree: Tree) -> None:
    pid = tree.start("true & exec SLEEP", expected=1)
    tree.wait_for(lambda: processes.find_tree(pid, ANYWHERE) == [pid])


def test_inner_pids_are_those_of_the_innermost_namespace(tmp_path: Path) -> None:
    for pid, line in {
        7: "NSpid:\t7\t12\n",
        8: "NSpid:\t8\t40\t2\n",
        9: "NSpid:\t9\n",
        10: "",
        11: "NSpid:\tx\ty\n",
    }.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tsh\n{line}Threads:\t1\n")
    assert processes.inner_pids([7, 8, 9, 10, 11, 12], proc=str(tmp_path)) == [12, 2]
