"""Do a container's processes, summed up, say what its control group says, and nothing of other processes?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from codomyrmex_containerization.engines import cgroups, process_counters
from codomyrmex_containerization.engines.process_counters import ProcessReader
from codomyrmex_containerization.models.usage import Counters
from tests.backends import DockerCommandLine

MIB = 1024**2
HELD = 60 * MIB
DEADLINE_SECONDS = 30.0
Run = Callable[..., str]


@pytest.fixture
def run(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Run]:
    """Start a container and return its id: `run(["sleep", "1000"], "--pid", "host")`."""
    made: list[str] = []
    labels = ("--label", session_label, "--label", "codomyrmex.containerization.test=1")

    def one(command: Sequence[str], *options: str) -> str:
        arguments = ["run", "--detach", "--init=false", *labels, *options, busybox_image, "busybox", *command]
        made.append(docker_cli(arguments).stdout.strip())
        return made[-1]

    yield one
    for container in reversed(made):
        docker_cli(["rm", "--force", "--volumes", container], check=False)


def first_pid(docker_cli: DockerCommandLine, container: str) -> int:
    return int(docker_cli(["inspect", "--format", "{{.State.Pid}}", container]).stdout)


def look(docker_cli: DockerCommandLine, *containers: str) -> dict[str, Counters]:
    return ProcessReader({one: first_pid(docker_cli, one) for one in containers}).read_all(containers)


def until_there_are(tasks: int, container: str) -> None:
    """Wait until the container's control group counts so many tasks."""
    until = time.monotonic() + DEADLINE_SECONDS
    while (counted := cgroups.CgroupReader().read(container)) is None or counted.pids < tasks:
        assert time.monotonic() < until, f"there never were {tasks} tasks"
        time.sleep(0.02)


def test_processes_say_what_the_control_group_says_of_a_busy_container(docker_cli: DockerCommandLine, run: Run) -> None:
    burn = "sleep 1000 & while :; do :; done"
    container = run(["sh", "-c", burn], "--shm-size", "96m", "--memory", "128m")
    count = f"count={HELD // MIB}"
    docker_cli(["exec", container, "busybox", "dd", "if=/dev/zero", "of=/dev/shm/held", "bs=1M", count])
    until_there_are(2, container)
    before, reader = look(docker_cli, container)[container], cgroups.CgroupReader()
    time.sleep(1)  # of burning, so that the start, whose time went to other processes, does not count
    docker_cli(["pause", container])
    told, summed = reader.read(container), look(docker_cli, container)[container]
    docker_cli(["unpause", container])
    assert told is not None
    assert summed.cpu_seconds > before.cpu_seconds
    assert summed.cpu_seconds == pytest.approx(told.cpu_seconds, rel=0.05, abs=0.1)
    assert summed.memory_bytes == pytest.approx(told.memory_bytes, rel=0.05)
    assert summed.memory_bytes >= HELD
    assert summed.pids == told.pids == 2
    assert summed.memory_limit_bytes == cgroups.host_memory_bytes("/proc")
    received = (summed.traffic.network_received_bytes, told.traffic.network_received_bytes)
    assert received[0] == pytest.approx(received[1], rel=0.5, abs=1000)
    assert summed.traffic.block_read_bytes is None


def test_memory_that_processes_share_counts_once(docker_cli: DockerCommandLine, run: Run) -> None:
    # A shell that holds 30 MiB, and five copies of it.
    hold = "x=$(head -c 15000000 /dev/zero | tr '\\0' x); for _ in 1 2 3 4 5; do (sleep 1000; echo $x >/dev/null) & done; wait"
    container = run(["sh", "-c", hold])
    until_there_are(11, container)
    told, summed = cgroups.CgroupReader().read(container), look(docker_cli, container)[container]
    assert told is not None
    assert summed.memory_bytes == pytest.approx(told.memory_bytes, rel=0.15)


def test_children_that_were_waited_for_count(docker_cli: DockerCommandLine, run: Run) -> None:
    spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    container = run(["sh", "-c", f"sh -c '{spin}'; touch /done; exec sleep 1000"])
    docker_cli(["exec", container, "busybox", "sh", "-c", "until [ -e /done ]; do sleep 0.05; done"])
    told, summed = cgroups.CgroupReader().read(container), look(docker_cli, container)[container]
    assert told is not None
    assert summed.pids == 1
    assert summed.cpu_seconds >= 0.05
    assert summed.cpu_seconds <= told.cpu_seconds + 0.05


@pytest.mark.parametrize("shared", ["other", "host"])
def test_containers_of_one_namespace_count_what_descends_from_their_first_process(
    docker_cli: DockerCommandLine, run: Run, shared: str
) -> None:
    first = run(["sh", "-c", "sleep 1000 & sleep 1000 & wait"], *(() if shared == "other" else ("--pid", "host")))
    second = run(["sleep", "1000"], "--pid", f"container:{first}" if shared == "other" else "host")
    until_there_are(3, first)
    found = look(docker_cli, first, second)
    assert {one: counters.pids for one, counters in found.items()} == {first: 3, second: 1}


def test_process_of_something_else_is_nobodys(docker_cli: DockerCommandLine, run: Run) -> None:
    container, other = run(["sleep", "1000"]), run(["sleep", "1000"])
    pid = first_pid(docker_cli, container)
    for first in (os.getpid(), os.getppid(), first_pid(docker_cli, other), 2**22 + 1, 1, 0, -1):
        assert ProcessReader({container: first}).read_all([container, "0" * 64]) == {}
    assert ProcessReader({container: pid}).read_all([container, "0" * 64]).keys() == {container}
    assert not process_counters.is_first_process(os.getpid(), container)
    assert process_counters.namespace(os.getpid()) is None


def test_process_that_cannot_be_looked_into_counts_by_what_everybody_sees(
    docker_cli: DockerCommandLine, run: Run, tmp_path: Path
) -> None:
    """As an ordinary user sees root's: no namespace, no shares of memory, no mounts; only `stat`, `status` and the like."""
    container = run(["sleep", "1000"])
    pid = first_pid(docker_cli, container)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for number, files in ((pid, ("stat", "status")), (parent, ("stat", "cmdline"))):
        (tmp_path / str(number)).mkdir()
        for name in files:
            (tmp_path / str(number) / name).write_bytes(Path(f"/proc/{number}/{name}").read_bytes())
    found = ProcessReader({container: pid}, proc=str(tmp_path)).read_all([container])[container]
    assert found.pids == 1
    assert found.memory_bytes > 0
    assert found.memory_limit_bytes is None
    assert found.traffic.network_sent_bytes is None
