"""Are containers' counters found and read in every kind of cgroup tree, and do they agree with the engine's own?"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from codomyrmex_containerization.engines import cgroups
from codomyrmex_containerization.models import usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.backends import DockerCommandLine

A = "a1" * 32
B = "b2" * 32
C = "c3" * 32
HOST_MEMORY_BYTES = 16_000_000 * 1024
MIB = 1024**2
V1_FILES = {
    "memory/memory.usage_in_bytes": "5000000\n",
    "memory/memory.limit_in_bytes": "67108864\n",
    "memory/memory.stat": "cache 1\ninactive_file 7\ntotal_cache 2\ntotal_inactive_file 1000000\ntotal_unevictable 0\n",
    "cpuacct/cpuacct.usage": "2500000000\n",
    "pids/pids.current": "3\n",
}
V2_FILES = {
    "memory.current": "5000000\n",
    "memory.max": "67108864\n",
    "memory.stat": "anon 4\nfile 5\ninactive_anon 6\ninactive_file 1000000\nactive_file 8\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\nsystem_usec 1\n",
    "pids.current": "3\n",
}


class Clock:
    """A monotonic clock that only moves when told, and the sleep that goes with it."""

    def __init__(self) -> None:
        self.now_seconds = 1000.0
        self.slept_seconds: list[float] = []

    def __call__(self) -> float:
        return self.now_seconds

    def sleep(self, seconds: float) -> None:
        self.slept_seconds.append(seconds)
        self.now_seconds += seconds


class Host:
    """A machine's cgroup tree and /proc, written into a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.proc = folder / "proc"
        self.clock = Clock()
        self.root.mkdir()
        self.write(self.proc / "meminfo", f"MemTotal:       {HOST_MEMORY_BYTES // 1024} kB\nMemFree: 1 kB\n")

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def reader(self) -> cgroups.CgroupReader:
        return cgroups.CgroupReader(self.root, self.proc, clock=self.clock)

    def mount_v1(self, *controllers: str) -> None:
        for controller in controllers or ("memory", "cpuacct", "pids", "systemd"):
            self.write(self.root / controller / "cgroup.procs", "1\n")

    def mount_v2(self, at: str = "", controllers: str = "cpuset cpu io memory pids\n") -> None:
        self.write(self.root / at / "cgroup.controllers", controllers)

    def add_v1(self, place: str, **changes: str) -> None:
        """Write a container's files; `changes` maps a controller to the name of its mount."""
        for name, text in V1_FILES.items():
            controller, _, file = name.partition("/")
            self.write(self.root / changes.get(controller, controller) / place / file, text)

    def add_v2(self, place: str, at: str = "") -> None:
        for name, text in V2_FILES.items():
            self.write(self.root / at / place / name, text)

    def set_cpu(self, place: str, seconds: float) -> None:
        self.write(self.root / place / "cpu.stat", f"usage_usec {seconds * 1e6:.0f}\n")

    def add_process(self, pid: int, lines: str) -> None:
        self.write(self.proc / str(pid) / "cgroup", lines)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def v2(host: Host) -> Host:
    host.mount_v2()
    return host


def expected(host: Host) -> usage.Counters:
    return usage.Counters(host.clock.now_seconds, 2.5, 4_000_000, 64 * MIB, 3)


# ------------------------------------------------------------------------------------------------- where containers lie

PLACES = {
    "docker with cgroupfs": f"docker/{A}",
    "docker with systemd": f"system.slice/docker-{A}.scope",
    "docker under a parent of its own": f"ci.slice/builders/daemon-7/{A}",
    "docker in docker": f"docker/{B}/docker/{A}",
    "podman with cgroupfs": f"libpod_parent/libpod-{A}",
    "podman with systemd": f"machine.slice/libpod-{A}.scope",
    "podman pod": f"machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope",
    "rootless docker": f"user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
    "rootless podman": f"user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
    "kubernetes": f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-{A}.scope",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_counters_are_read_wherever_an_engine_puts_the_container_in_v1(host: Host, place: str) -> None:
    host.mount_v1()
    host.add_v1(place)
    assert host.reader().read(A) == expected(host)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_counters_are_read_wherever_an_engine_puts_the_container_in_v2(v2: Host, place: str) -> None:
    v2.add_v2(place)
    assert v2.reader().read(A) == expected(v2)


def test_counters_are_read_where_v1_mounts_cpu_and_cpuacct_together(host: Host) -> None:
    host.mount_v1("memory", "cpu,cpuacct", "pids")
    host.add_v1(f"docker/{A}", cpuacct="cpu,cpuacct")
    assert host.reader().read(A) == expected(host)


def test_hybrid_tree_is_read_from_v1_where_v1_has_the_controller(host: Host) -> None:
    host.mount_v1()
    host.mount_v2("unified", "hugetlb\n")
    host.add_v1(f"docker/{A}")
    host.set_cpu(f"unified/docker/{A}", 99)
    assert host.reader().read(A) == expected(host)


def test_hybrid_tree_is_read_from_v2_where_only_v2_has_the_controller(host: Host) -> None:
    host.mount_v1("cpuacct", "systemd")
    host.mount_v2("unified", "memory pids\n")
    host.add_v1(f"docker/{A}")
    host.add_v2(f"docker/{A}", at="unified")
    assert host.reader().read(A) == expected(host)


def test_v2_cgroup_called_like_a_v1_controller_is_no_mount(v2: Host) -> None:
    Host.write(v2.root / "memory/cgroup.procs", "")
    v2.add_v2(f"docker/{A}")
    assert v2.reader().read(A) == expected(v2)


def test_container_is_read_when_its_place_differs_between_v1_hierarchies(host: Host) -> None:
    host.mount_v1()
    for name, text in V1_FILES.items():
        controller, _, file = name.partition("/")
        Host.write(host.root / controller / ("session/x" if controller == "memory" else "") / A / file, text)
    assert host.reader().read(A) == expected(host)


@pytest.mark.parametrize(
    "name",
    [
        f"libpod-conmon-{A}.scope",
        f"conmon-{A}",
        f"{A}-5f3a.service",
        f"machine-libpod_pod_{A}.slice",
        f"docker-{A}.mount",
        f"x{A}",
    ],
)
def test_cgroup_that_is_not_the_container_itself_is_passed_over(v2: Host, name: str) -> None:
    v2.add_v2(f"system.slice/{name}")
    assert v2.reader().read(A) is None


def test_short_id_finds_the_container(v2: Host) -> None:
    v2.add_v2(f"system.slice/docker-{A}.scope")
    assert v2.reader().read(A[:12]) == expected(v2)


@pytest.mark.parametrize(
    "container_id", ["", "..", "../docker", A[:11], A + "0", A.upper(), f"{A}\n", f"docker/{A}", "web"]
)
def test_text_that_is_no_container_id_never_becomes_part_of_a_path(v2: Host, container_id: str) -> None:
    v2.add_v2(f"docker/{container_id or A}")
    reader = v2.reader()
    assert reader.find(container_id) is None
    assert reader.read_all([container_id]) == {}


def test_machine_without_cgroups_has_no_counters(tmp_path: Path) -> None:
    reader = cgroups.CgroupReader(tmp_path / "absent", tmp_path / "absent")
    assert reader.find(A, 1) is None
    assert reader.read_all([A, B]) == {}


# ---------------------------------------------------------------------------------------------- found without searching

DEEP = "/".join(f"level-{n}" for n in range(20))


def test_process_tells_the_place_that_a_bounded_walk_does_not_reach(v2: Host) -> None:
    v2.add_v2(f"{DEEP}/{A}")
    v2.add_process(77, f"0::/{DEEP}/{A}/payload\n")
    assert v2.reader().read(A) is None
    assert v2.reader().read(A, 77) == expected(v2)


def test_place_of_one_container_finds_its_neighbours_without_a_walk(v2: Host) -> None:
    v2.add_v2(f"{DEEP}/docker-{A}.scope")
    v2.add_v2(f"{DEEP}/docker-{B}.scope")
    v2.add_process(77, f"0::/{DEEP}/docker-{A}.scope\n")
    reader = v2.reader()
    assert reader.read(A, 77) is not None
    assert reader.read_all([A, B]) == {A: expected(v2), B: expected(v2)}


def test_process_in_v1_tells_the_place_in_each_hierarchy(host: Host) -> None:
    host.mount_v1()
    for name, text in V1_FILES.items():
        controller, _, file = name.partition("/")
        Host.write(host.root / controller / DEEP / controller / A / file, text)
    host.add_process(77, "".join(f"{n}:{c}:/{DEEP}/{c}/{A}\n" for n, c in enumerate(("memory", "cpuacct", "pids"))))
    assert host.reader().read(A, 77) == expected(host)


def test_process_path_fits_a_mount_that_shows_only_its_lower_part(v2: Host) -> None:
    v2.add_v2(f"{DEEP}/{A}")
    v2.add_process(77, f"0::/docker/{B}/{DEEP}/{A}\n")
    assert v2.reader().read(A, 77) == expected(v2)


@pytest.mark.parametrize(
    "lines", ["0::/user.slice\n", f"0::/docker/{B}\n", f"0::/../{A}\n", f"0::/docker/{A} (deleted)\n", "", "nonsense"]
)
def test_process_that_does_not_tell_the_container_s_place_is_not_taken_for_it(v2: Host, lines: str) -> None:
    v2.add_v2("user.slice")
    v2.add_v2(f"docker/{B}")
    v2.add_process(77, lines)
    assert v2.reader().read(A, 77) is None


def test_missing_container_is_searched_for_again_only_after_a_while(v2: Host) -> None:
    reader = v2.reader()
    assert reader.read(A) is None
    v2.add_v2(f"new.slice/{A}")
    assert reader.read(A) is None
    v2.clock.now_seconds += 5
    assert reader.read(A) == expected(v2)


def test_container_started_again_after_it_had_gone_is_read(v2: Host) -> None:
    v2.add_v2(f"docker/{A}")
    reader = v2.reader()
    assert reader.read(A) is not None
    shutil.rmtree(v2.root / "docker" / A)
    assert reader.read(A) is None
    assert reader.find(A) is None
    v2.add_v2(f"docker/{A}")
    assert reader.read(A) == expected(v2)


def test_only_containers_that_are_here_are_in_the_answer(v2: Host) -> None:
    v2.add_v2(f"docker/{A}")
    v2.add_v2(f"docker/{B}")
    reader = v2.reader()
    assert reader.read_all([A, B, C]).keys() == {A, B}
    shutil.rmtree(v2.root / "docker" / B)
    assert reader.read_all([A, B, C]).keys() == {A}


# --------------------------------------------------------------------------------------------------- what the files say


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n", f"{HOST_MEMORY_BYTES + 1}\n"])
def test_limit_above_the_host_s_memory_is_the_host_s_memory(v2: Host, limit: str) -> None:
    v2.add_v2(f"docker/{A}")
    Host.write(v2.root / "docker" / A / "memory.max", limit)
    counters = v2.reader().read(A)
    assert counters is not None
    assert counters.memory_limit_bytes == HOST_MEMORY_BYTES


@pytest.mark.parametrize(
    ("limit", "shown"), [("max\n", None), ("9223372036854771712\n", None), ("67108864\n", 64 * MIB)]
)
def test_no_limit_is_unknown_when_the_host_s_memory_is(v2: Host, limit: str, shown: int | None) -> None:
    v2.add_v2(f"docker/{A}")
    Host.write(v2.root / "docker" / A / "memory.max", limit)
    (v2.proc / "meminfo").unlink()
    counters = v2.reader().read(A)
    assert counters is not None
    assert counters.memory_limit_bytes == shown


def test_page_cache_larger_than_the_usage_is_not_subtracted(v2: Host) -> None:
    v2.add_v2(f"docker/{A}")
    Host.write(v2.root / "docker" / A / "memory.stat", "inactive_file 6000000\n")
    counters = v2.reader().read(A)
    assert counters is not None
    assert counters.memory_bytes == 5_000_000


def test_tasks_are_counted_where_the_pids_controller_is_not_delegated(v2: Host) -> None:
    v2.add_v2(f"user.slice/docker-{A}.scope")
    (v2.root / f"user.slice/docker-{A}.scope/pids.current").unlink()
    Host.write(v2.root / f"user.slice/docker-{A}.scope/cgroup.threads", "".join(f"{n}\n" for n in range(5000)))
    counters = v2.reader().read(A)
    assert counters is not None
    assert counters.pids == 5000


@pytest.mark.parametrize("text", ["", "\n", "garbage\n", "-1\n", "1.5\n", "0x10\n", "9" * 5000, "\0\0", "5 000\n", "é"])
@pytest.mark.parametrize("name", V2_FILES)
def test_file_without_a_number_leaves_the_container_out(v2: Host, name: str, text: str) -> None:
    v2.add_v2(f"docker/{A}")
    v2.add_v2(f"docker/{B}")
    Host.write(v2.root / "docker" / A / name, text)
    assert v2.reader().read_all([A, B]).keys() == {B}


@pytest.mark.parametrize("name", V2_FILES)
def test_missing_file_leaves_the_container_out(v2: Host, name: str) -> None:
    v2.add_v2(f"docker/{A}")
    v2.add_v2(f"docker/{B}")
    (v2.root / "docker" / A / name).unlink()
    assert v2.reader().read_all([A, B]).keys() == {B}


# ----------------------------------------------------------------------------------------------- from counters to usage


def counters_at(seconds: float, cpu_seconds: float) -> usage.Counters:
    return usage.Counters(seconds, cpu_seconds, 1, 2, 3)


@pytest.mark.parametrize(
    ("earlier", "percent"),
    [
        (None, None),
        (counters_at(9.0, 4.5), 50.0),
        (counters_at(8.0, 1.0), 200.0),
        (counters_at(9.0, 5.0), 0.0),
        (counters_at(10.0, 4.0), None),
        (counters_at(9.0, 6.0), None),
    ],
    ids=["no earlier look", "half a CPU", "two CPUs", "idle", "no time between", "restarted in between"],
)
def test_cpu_percent_is_cpu_time_by_wall_time(earlier: usage.Counters | None, percent: float | None) -> None:
    assert usage.usage_between(earlier, counters_at(10.0, 5.0)) == usage.Usage(percent, 1, 2, 3)


@pytest.mark.parametrize(
    ("age_seconds", "percent"), [(0.001, None), (0.01, 100.0), (60.0, 100.0), (60.1, None)], ids=lambda v: str(v)
)
def test_previous_look_counts_between_ten_milliseconds_and_a_minute(age_seconds: float, percent: float | None) -> None:
    history = cgroups.UsageHistory()
    assert history.sample({A: counters_at(0.0, 0.0)})[A].cpu_percent is None
    assert history.sample({A: counters_at(age_seconds, age_seconds)})[A].cpu_percent == percent


def test_look_right_after_another_is_measured_against_the_one_before() -> None:
    history = cgroups.UsageHistory()
    for seconds in (0.0, 10.0):
        history.sample({A: counters_at(seconds, seconds)})
    assert history.sample({A: counters_at(10.001, 10.0)})[A].cpu_percent == pytest.approx(100, rel=0.01)


def test_first_usage_waits_once_for_all_containers(v2: Host) -> None:
    for container_id in (A, B):
        v2.add_v2(f"docker/{container_id}")

    def work(seconds: float) -> None:
        v2.clock.sleep(seconds)
        v2.set_cpu(f"docker/{A}", 2.525)

    result = cgroups.sample_usage(v2.reader(), cgroups.UsageHistory(), [A, B, C], sleep=work)
    assert v2.clock.slept_seconds == [0.05]
    assert result.keys() == {A, B}
    assert result[A].cpu_percent == pytest.approx(50)
    assert result[B] == usage.Usage(0.0, 4_000_000, 64 * MIB, 3)


def test_second_usage_is_since_the_first_and_waits_for_nothing(v2: Host) -> None:
    v2.add_v2(f"docker/{A}")
    reader, history = v2.reader(), cgroups.UsageHistory()
    cgroups.sample_usage(reader, history, [A], sleep=v2.clock.sleep)
    v2.clock.now_seconds += 10
    v2.set_cpu(f"docker/{A}", 4.5)
    result = cgroups.sample_usage(reader, history, [A], sleep=v2.clock.sleep)
    assert result[A].cpu_percent == pytest.approx(20)
    assert len(v2.clock.slept_seconds) == 1


def test_new_container_waits_and_the_known_one_keeps_its_longer_look(v2: Host) -> None:
    v2.add_v2(f"docker/{A}")
    reader, history = v2.reader(), cgroups.UsageHistory()
    cgroups.sample_usage(reader, history, [A], sleep=v2.clock.sleep)
    v2.add_v2(f"docker/{B}")
    v2.clock.now_seconds += 10
    v2.set_cpu(f"docker/{A}", 4.5)
    result = cgroups.sample_usage(reader, history, [A, B], window_seconds=0.5, sleep=v2.clock.sleep)
    assert result[A].cpu_percent == pytest.approx(20)
    assert result[B].cpu_percent == 0.0
    assert v2.clock.slept_seconds == [0.05, 0.5]


def test_restarted_container_is_measured_from_its_restart(v2: Host) -> None:
    v2.add_v2(f"docker/{A}")
    reader, history = v2.reader(), cgroups.UsageHistory()
    cgroups.sample_usage(reader, history, [A], sleep=v2.clock.sleep)
    v2.clock.now_seconds += 10
    v2.set_cpu(f"docker/{A}", 0.1)
    assert cgroups.sample_usage(reader, history, [A], sleep=v2.clock.sleep)[A].cpu_percent == 0.0


def test_container_that_goes_while_it_is_measured_is_absent(v2: Host) -> None:
    for container_id in (A, B):
        v2.add_v2(f"docker/{container_id}")
    result = cgroups.sample_usage(
        v2.reader(), cgroups.UsageHistory(), [A, B], sleep=lambda _: shutil.rmtree(v2.root / "docker" / A)
    )
    assert result.keys() == {B}


def test_usage_of_no_containers_waits_for_nothing(v2: Host) -> None:
    assert cgroups.sample_usage(v2.reader(), cgroups.UsageHistory(), [], sleep=v2.clock.sleep) == {}
    assert v2.clock.slept_seconds == []


# ----------------------------------------------------------------------------------------------------- on a real engine


@pytest.fixture
def start(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Callable[..., str]]:
    """A function that starts a container from (options, program) and returns its id; they are removed in the end."""
    ids: list[str] = []
    labels = ["--label", session_label, "--label", "codomyrmex.containerization.test=1"]

    def start_one(*options: str, program: tuple[str, ...]) -> str:
        done = docker_cli(["run", "--detach", "--network", "none", *labels, *options, busybox_image, *program])
        ids.append(done.stdout.strip())
        return ids[-1]

    yield start_one
    if ids:
        docker_cli(["rm", "--force", "--volumes", *ids], check=False)  # the test may have removed some


SLEEP = ("busybox", "sleep", "3600")
SPIN = ("busybox", "sh", "-c", "while :; do :; done")


def test_counters_agree_with_docker_stats(docker_cli: DockerCommandLine, start: Callable[..., str]) -> None:
    busy = start("--memory", "64m", "--cpus", "0.5", program=SPIN)
    idle = start(program=SLEEP)
    for file in ("/dev/shm/memory", "/page-cache"):  # 16 MiB that count, and 16 MiB that do not
        docker_cli(["exec", idle, "busybox", "dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=16"])

    reader, history = cgroups.CgroupReader(), cgroups.UsageHistory()
    history.sample(reader.read_all([busy, idle]))
    for _ in range(8):
        # What the start itself took is given back bit by bit: both are read until it has been.
        shown = {container_id: stats_of(docker_cli, container_id) for container_id in (busy, idle)}
        ours = cgroups.sample_usage(reader, history, [busy, idle])
        if all(ours[one].memory_bytes == pytest.approx(shown[one].memory_bytes, rel=0.05) for one in (busy, idle)):
            break

    assert ours[busy].memory_limit_bytes == 64 * MIB
    assert ours[idle].memory_limit_bytes == int(docker_cli(["info", "--format", "{{.MemTotal}}"]).stdout)
    assert 16 * MIB < ours[idle].memory_bytes < 24 * MIB
    for container_id in (busy, idle):
        assert ours[container_id].pids == shown[container_id].pids
        assert ours[container_id].memory_bytes == pytest.approx(shown[container_id].memory_bytes, rel=0.05)
        assert ours[container_id].cpu_percent == pytest.approx(shown[container_id].cpu_percent, abs=15)
    assert (ours[busy].cpu_percent or 0) < 65
    assert (ours[idle].cpu_percent or 0) < 5


def test_place_told_by_the_process_is_the_place_found_by_searching(
    docker_cli: DockerCommandLine, start: Callable[..., str]
) -> None:
    container_id = start(program=SLEEP)
    pid = int(docker_cli(["inspect", "--format", "{{.State.Pid}}", container_id]).stdout)
    by_process = cgroups.CgroupReader().find(container_id, pid)
    assert by_process is not None
    assert cgroups.CgroupReader().find(container_id) == by_process
    assert cgroups.CgroupReader().find(container_id[:12]) == by_process
    assert cgroups.CgroupReader().find(container_id, os.getpid()) == by_process


@pytest.fixture
def cgroup_parent(docker_cli: DockerCommandLine) -> Iterator[str]:
    """The name of a cgroup that the engine makes for the test, removed after the containers in it."""
    if docker_cli(["info", "--format", "{{.CgroupDriver}}"]).stdout.strip() != "cgroupfs" or os.geteuid() != 0:
        pytest.skip("needs an engine with the cgroupfs driver, and root to remove a cgroup")
    name = f"cxc-test-{uuid.uuid4().hex[:8]}"
    yield name
    for folder in (*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup", name)):
        for leaf in (folder / "daemon", folder):
            with contextlib.suppress(FileNotFoundError):
                leaf.rmdir()


def test_container_under_another_parent_is_found(cgroup_parent: str, start: Callable[..., str]) -> None:
    container_id = start("--cgroup-parent", f"/{cgroup_parent}/daemon", program=SLEEP)
    reader = cgroups.CgroupReader()
    assert reader.read(container_id) is not None
    assert f"/{cgroup_parent}/daemon/{container_id}/" in str(reader.find(container_id))


def test_container_that_was_removed_has_no_counters(docker_cli: DockerCommandLine, start: Callable[..., str]) -> None:
    container_id = start(program=SLEEP)
    reader = cgroups.CgroupReader()
    assert reader.read(container_id) is not None
    docker_cli(["rm", "--force", container_id])
    assert reader.read(container_id) is None


def stats_of(docker_cli: DockerCommandLine, container_id: str) -> usage.Usage:
    """Return what the engine itself measures, which takes it a second or two."""
    row = json.loads(docker_cli(["stats", "--no-stream", "--format", "{{json .}}", container_id]).stdout)
    memory, limit = (_bytes(text) for text in row["MemUsage"].split(" / "))
    return usage.Usage(float(row["CPUPerc"].rstrip("%")), memory, limit, int(row["PIDs"]))


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([\d.]+)([KMG]?)i?B", text)
    assert match is not None, text
    return round(float(match[1]) * {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}[match[2]])


@pytest.mark.parametrize(
    "text",
    [
        "8:0 Read 4096\n8:0 Write 10\n8:0 Sync 4106\n8:0 Total 4106\n8:16 Read 4\n8:16 Write 0\nTotal 4110\n",
        "8:0 rbytes=4096 wbytes=10 rios=1 wios=1 dbytes=7 dios=0\n8:16 rbytes=4 wbytes=0 rios=1 wios=0\n",
    ],
    ids=["v1", "v2"],
)
def test_bytes_of_all_block_devices_are_summed_up(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert cgroups._block_bytes(str(tmp_path / "file")) == (4100, 10)
    assert cgroups._block_bytes(str(tmp_path / "none")) == (None, None)
