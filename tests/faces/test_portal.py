"""Can tools be called from where there is no event loop, from where there is one, and from anywhere at once?"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codomyrmex_containerization import errors, mcp_tools
from codomyrmex_containerization.dispatch import portal
from tests.backends import DockerCommandLine
from tests.faces.conftest import NOBODY, Python, environment

STATE = "CODOMYRMEX_CONTAINERIZATION_STATE_DIR"


def threads_of_portal() -> list[threading.Thread]:
    """The threads that calls run in."""
    return [one for one in threading.enumerate() if one.name == "containerization"]


def test_call_inside_a_running_event_loop_answers(docker_socket: Path) -> None:
    async def inside() -> dict[str, object]:
        return mcp_tools.container_list()

    assert asyncio.run(inside())["status"] == "success"


def test_calls_from_several_threads_share_one_portal(docker_socket: Path) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: mcp_tools.container_list(usage=False), range(36)))

    assert {one["status"] for one in answers} == {"success"}
    assert len(threads_of_portal()) == 1


def test_closed_portal_is_begun_anew_by_the_next_call(docker_socket: Path) -> None:
    mcp_tools.container_list()
    portal.close()
    portal.close()

    assert threads_of_portal() == []
    assert mcp_tools.container_list()["status"] == "success"


def test_settings_that_cannot_be_read_are_an_answer_and_not_for_ever(
    docker_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_TOOLSETS", '["nonsense"]')
    refused = mcp_tools.container_list()
    monkeypatch.delenv("CODOMYRMEX_CONTAINERIZATION_TOOLSETS")

    assert refused["code"] == "invalid_argument"
    assert mcp_tools.container_list()["status"] == "success"


def test_read_only_setting_holds_for_the_python_face_too(
    docker_socket: Path, foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_READ_ONLY", "true")

    assert mcp_tools.container_remove(foreign, force=True)["code"] == "refused"


def test_large_answer_has_room_only_where_a_program_asked(docker_socket: Path, busybox_image: str) -> None:
    long = ["sh", "-c", "yes 0123456789 | head -c 60000"]
    narrow = portal.call("container_run", {"image": busybox_image, "command": long})
    wide = portal.call("container_run", {"image": busybox_image, "command": long}, roomy=True)

    assert narrow.structured is not None
    assert "truncated" in narrow.structured
    assert wide.structured is not None
    assert "truncated" not in wide.structured
    assert len(wide.structured["stdout"]) == 60_000


def test_engine_address_of_a_call_is_its_own(docker_socket: Path) -> None:
    elsewhere = portal.call("container_list", {}, docker_host=NOBODY)
    here = portal.call("container_list", {})

    assert isinstance(elsewhere.error, errors.EngineUnavailable)
    assert here.error is None


def test_process_that_called_ends_by_itself_and_leaves_no_run_behind(docker_socket: Path, python: Python) -> None:
    done = python(
        "from codomyrmex_containerization import mcp_tools\nprint(mcp_tools.container_list()['status'])",
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "success\n", "")
    assert list((Path(os.environ[STATE]) / "runs").iterdir()) == []


def test_forked_process_begins_its_own_portal_and_leaves_its_parents_alone(docker_socket: Path, python: Python) -> None:
    done = python(
        """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from codomyrmex_containerization import mcp_tools
from codomyrmex_containerization.dispatch import portal
assert mcp_tools.container_list()["status"] == "success"
runs = os.path.join(os.environ["CODOMYRMEX_CONTAINERIZATION_STATE_DIR"], "runs")
before = set(os.listdir(runs))
child = os.fork()
if child == 0:
    ok = mcp_tools.container_list()["status"] == "success"
    new = set(os.listdir(runs)) - before
    ok = ok and len([one for one in new if one.endswith(".lock")]) == 1
    portal.close()
    os._exit(0 if ok else 9)
assert os.waitpid(child, 0)[1] == 0, "child"
assert set(os.listdir(runs)) == before, (before, os.listdir(runs))
assert mcp_tools.container_list()["status"] == "success"
print("parent goes on")
"""
    )

    assert done.stdout == "parent goes on\n", done.stderr
    assert list((Path(os.environ[STATE]) / "runs").iterdir()) == []


def test_parents_run_counts_as_dead_once_the_parent_is_though_its_child_lives(
    docker_socket: Path, python: Python
) -> None:
    # A lock that the child kept open would make its dead parent's containers untouchable.
    done = python(
        """
import fcntl, os, signal, warnings
warnings.simplefilter("ignore")
from codomyrmex_containerization import mcp_tools
runs = os.path.join(os.environ["CODOMYRMEX_CONTAINERIZATION_STATE_DIR"], "runs")
reading, writing = os.pipe()
begun, beginning = os.pipe()
middle = os.fork()
if middle == 0:
    assert mcp_tools.container_list()["status"] == "success"
    os.close(writing)
    if os.fork() == 0:
        os.write(beginning, b"x")
        os.read(reading, 1)  # until the first process has looked, or is gone
        os._exit(0)
    os.read(begun, 1)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(middle, 0)
(lock,) = [one for one in os.listdir(runs) if one.endswith(".lock")]
fcntl.flock(os.open(os.path.join(runs, lock), os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
os.write(writing, b"x")
print("free")
"""
    )

    assert done.stdout == "free\n", done.stderr


RUN_UNTIL_TOLD = """
import sys, threading
from codomyrmex_containerization import mcp_tools
def run():
    mcp_tools.container_run({image!r}, command=["sh", "-c", "echo x > /sync/begun; sleep 600"], name={name!r},
                            mounts=[{folder!r} + ":/sync"], timeout_seconds=600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a named pipe: reading it waits until a container has begun."""
    os.mkfifo(tmp_path / "begun")
    (tmp_path / "begun").chmod(0o666)
    return tmp_path


def test_control_c_takes_back_what_the_call_had_begun(
    docker_cli: DockerCommandLine, busybox_image: str, name: str, folder: Path
) -> None:
    program = RUN_UNTIL_TOLD.format(image=busybox_image, name=name, folder=str(folder)) + "run()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )
    (folder / "begun").read_text()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert "KeyboardInterrupt" in stderr
    assert process.returncode != 0
    assert docker_cli(["ps", "--all", "--quiet", "--filter", f"name={name}"]).stdout == ""


def test_process_that_ends_during_a_call_takes_back_what_it_had_begun(
    docker_cli: DockerCommandLine, busybox_image: str, name: str, folder: Path
) -> None:
    program = RUN_UNTIL_TOLD.format(image=busybox_image, name=name, folder=str(folder)) + (
        f"threading.Thread(target=run, daemon=True).start()\nopen({str(folder / 'begun')!r}).read()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert docker_cli(["ps", "--all", "--quiet", "--filter", f"name={name}"]).stdout == ""
