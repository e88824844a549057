"""Does a container get the limits that it was given, does the kernel hold it to them, and is nothing left of them?"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import cgroups
from codomyrmex_containerization.engines.embedded import groups, limits
from codomyrmex_containerization.models.container import Limits, Ulimit
from tests import backends, tally
from tests.engines.embedded import oci

MIB = 1024**2
LIMITS = "programs that want more than their limits"
GIVEN = Limits(memory_bytes=64 * MIB, memory_reservation_bytes=32 * MIB, cpus=0.5, cpu_shares=512, pids_limit=50)
HELD = dict.fromkeys(("memory_bytes", "memory_reservation_bytes", "cpus", "cpu_shares", "pids_limit"), "cgroup")
HOG = "x = bytearray(200 * 1024**2); print(len(x))"


@pytest.fixture
def parent() -> Iterator[str]:
    """A group of the test's own for its containers' groups."""
    name = f"cxc-test-{uuid.uuid4().hex[:12]}"
    yield name
    groups.remove_parent(name)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{name}"))


@pytest.fixture(params=["crun", "runc"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, parent: str) -> Iterator[oci.Lab]:
    """Each runtime, where control groups can be made."""
    if not limits.cgroup_path("0" * 64):
        backends.missing("no control group may be made here", enable="sudo scripts/test")
    with oci.lab(request.param, tmp_path) as made:
        yield made


def started(lab: oci.Lab, parent: str, given: Limits, *command: str) -> tuple[str, int]:
    """A running container with limits."""
    id = new_id()
    linux = {"cgroupsPath": limits.cgroup_path(id, parent=parent), "resources": limits.resources(given)}
    return lab.start(*(command or ("sleep", "1000")), linux=linux, id=id)


def new_id() -> str:
    """An id such as containers have."""
    return uuid.uuid4().hex + uuid.uuid4().hex


# ------------------------------------------------------------------------------------------------------- the documents


def test_resources_hold_what_was_given_and_nothing_else() -> None:
    memory = {"limit": 64 * MIB, **({"swap": 128 * MIB} if groups.limits_swap() else {})}

    assert limits.resources(Limits()) == {}
    assert limits.resources(Limits(memory_bytes=64 * MIB)) == {"memory": memory}
    assert limits.resources(Limits(cpus=0.25)) == {"cpu": {"quota": 25_000, "period": 100_000}}
    assert limits.resources(Limits(cpu_shares=2)) == {"cpu": {"shares": 2}}
    assert limits.resources(Limits(pids_limit=7)) == {"pids": {"limit": 7}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Limits(memory_bytes=4096), "too little"),
        (Limits(memory_bytes=0), "too little"),
        (Limits(memory_reservation_bytes=1), "too little"),
        (Limits(memory_bytes=64 * MIB, memory_reservation_bytes=65 * MIB), "is more than memory"),
        (Limits(cpus=0), "cpus = 0"),
        (Limits(cpus=0.001), "cpus = 0.001"),
        (Limits(cpus=-1), "cpus = -1"),
        (Limits(cpus=float("nan")), "cpus = nan"),
        (Limits(cpus=float("inf")), "cpus = inf"),
        (Limits(cpus=100_000), "cannot be had here"),
        (Limits(cpu_shares=1), "cpu_shares = 1"),
        (Limits(cpu_shares=262_145), "cpu_shares = 262145"),
        (Limits(pids_limit=0), "pids_limit = 0"),
        (Limits(pids_limit=-1), "pids_limit = -1"),
        (Limits(pids_limit=2**31), "pids_limit"),
    ],
)
def test_limit_that_cannot_be_is_refused_by_name(given: Limits, said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said) as caught:
        limits.resources(given)
    assert caught.value.hint


def test_process_limits_are_told_as_the_runtime_wants_them() -> None:
    given = Limits(
        ulimits=(Ulimit("nofile", 512, 1024), Ulimit("core", 0, 0), Ulimit("RLIMIT_STACK", 8 * MIB, 8 * MIB))
    )

    assert limits.rlimits(given) == [
        {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 8 * MIB, "hard": 8 * MIB},
    ]


def test_process_limit_without_end_is_minus_one() -> None:
    if resource.getrlimit(resource.RLIMIT_CPU)[1] != resource.RLIM_INFINITY:
        pytest.skip("this process's own time is limited")

    assert limits.rlimits(Limits(ulimits=(Ulimit("cpu", 5, -1),))) == [
        {"type": "RLIMIT_CPU", "soft": 5, "hard": 2**64 - 1}
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Ulimit("files", 1, 1), "no ulimit 'files'"),
        (Ulimit("nofile", 2, 1), "makes no sense"),
        (Ulimit("nofile", -2, 1), "makes no sense"),
        (Ulimit("nofile", 1, 2**62), "more than this host"),
    ],
)
def test_process_limit_that_cannot_be_is_refused(given: Ulimit, said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said):
        limits.rlimits(Limits(ulimits=(given,)))


@pytest.mark.parametrize(
    "given", [Limits(shm_bytes=MIB), Limits(memory_bytes=64 * MIB, ulimits=(Ulimit("core", 0, 0),))]
)
def test_what_holds_from_the_create_on_cannot_be_updated(given: Limits) -> None:
    with pytest.raises(errors.Unsupported, match="cannot be changed"):
        limits.update_document(given)


def test_limits_that_are_not_set_are_plainly_nothing() -> None:
    assert {name for name, value in limits.plain(Limits(cpus=1)).items() if value is not None} == {"cpus"}
    assert Limits(**limits.plain(GIVEN) | {"ulimits": ()}) == GIVEN


# ------------------------------------------------------------------------------------------------------ what is held


def test_limits_are_held_by_the_kernel(lab: oci.Lab, parent: str) -> None:
    _, pid = started(lab, parent, GIVEN)

    assert limits.enforced(pid, GIVEN) == HELD


def test_limits_that_were_not_given_are_not_claimed(lab: oci.Lab, parent: str) -> None:
    _, pid = started(lab, parent, Limits(pids_limit=50))

    assert limits.enforced(pid, GIVEN) == {**dict.fromkeys(HELD, "no"), "pids_limit": "cgroup"}
    assert limits.enforced(os.getpid(), GIVEN) == dict.fromkeys(HELD, "no")


def test_nothing_is_claimed_of_a_process_that_is_not_here() -> None:
    assert limits.enforced(2**22 + 1, Limits(pids_limit=1)) == {"pids_limit": "no"}


@pytest.mark.parametrize("memory_bytes", [96 * MIB, 256 * MIB, 32 * MIB])
def test_limits_are_changed_while_the_others_stay(lab: oci.Lab, parent: str, memory_bytes: int) -> None:
    given, changed = Limits(memory_bytes=64 * MIB, cpus=0.5), Limits(memory_bytes=memory_bytes, pids_limit=77)
    id, pid = started(lab, parent, given)

    lab.runtime("update", "--resources", "-", id, stdin=json.dumps(limits.update_document(changed)))

    both = Limits(memory_bytes=memory_bytes, pids_limit=77, cpus=0.5)
    assert limits.enforced(pid, both) == {"memory_bytes": "cgroup", "pids_limit": "cgroup", "cpus": "cgroup"}


def test_limits_are_given_to_a_container_that_had_none(lab: oci.Lab, parent: str) -> None:
    id, pid = started(lab, parent, Limits())
    assert limits.enforced(pid, GIVEN) == dict.fromkeys(HELD, "no")

    lab.runtime("update", "--resources", "-", id, stdin=json.dumps(limits.update_document(GIVEN)))

    assert limits.enforced(pid, GIVEN) == HELD


@pytest.mark.parametrize("name", ["cpus", "cpu_shares", "pids_limit", "memory_reservation_bytes"])
def test_single_limit_is_changed(lab: oci.Lab, parent: str, name: str) -> None:
    others = Limits(cpus=1, cpu_shares=2048, pids_limit=99, memory_reservation_bytes=16 * MIB)
    changed = replace(Limits(), **{name: getattr(others, name)})
    id, pid = started(lab, parent, GIVEN)

    lab.runtime("update", "--resources", "-", id, stdin=json.dumps(limits.update_document(changed)))

    assert limits.enforced(pid, changed) == {name: "cgroup"}
    assert limits.enforced(pid, GIVEN) == {**HELD, name: "no"}


@pytest.mark.attack(LIMITS)
def test_program_beyond_its_memory_is_killed_and_that_is_told(lab: oci.Lab, parent: str, tmp_path: Path) -> None:
    id, pid = started(lab, parent, Limits(memory_bytes=32 * MIB), "/usr/bin/python3", "-c", HOG)
    ended(pid)

    with tally.attempt():
        assert limits.oom_killed(id, tmp_path, parent=parent)
        assert "209715200" not in "".join(path.read_text() for path in tmp_path.glob("out-*"))


def test_program_that_ended_by_itself_did_not_lack_memory(lab: oci.Lab, parent: str, tmp_path: Path) -> None:
    id, pid = started(lab, parent, Limits(memory_bytes=32 * MIB), "true")
    ended(pid)

    assert not limits.oom_killed(id, tmp_path, parent=parent)


def test_lack_of_memory_that_the_monitor_noted_is_told(tmp_path: Path) -> None:
    assert not limits.oom_killed(new_id(), tmp_path)
    (tmp_path / "oom").touch()
    assert limits.oom_killed(new_id(), tmp_path)


@pytest.mark.attack(LIMITS)
def test_more_processes_than_allowed_cannot_be_had(lab: oci.Lab, parent: str) -> None:
    id = new_id()
    linux = {"cgroupsPath": limits.cgroup_path(id, parent=parent), "resources": limits.resources(Limits(pids_limit=8))}
    fork = "import os\ntry:\n  while os.fork(): pass\n  import signal; signal.pause()\nexcept OSError as e: print('refused', flush=True)"
    done = lab.run("/usr/bin/python3", "-c", fork, linux=linux, id=id)

    with tally.attempt():
        assert "refused" in done.stdout


# --------------------------------------------------------------------------------------------------- the groups' place


def test_usage_is_read_at_the_containers_place(lab: oci.Lab, parent: str) -> None:
    first, first_pid = started(lab, parent, GIVEN)
    second, _ = started(lab, parent, GIVEN)

    counters = cgroups.CgroupReader().read(first, first_pid)
    found = cgroups.CgroupReader().read_all([first, second, new_id()])
    present = cgroups.CgroupReader().read_present()

    assert counters is not None
    assert (counters.memory_limit_bytes, counters.pids) == (64 * MIB, 1)
    assert found.keys() == {first, second}
    assert {first, second} <= present.keys()


def test_groups_that_a_killed_container_left_are_removed(lab: oci.Lab, parent: str) -> None:
    id, pid = started(lab, parent, GIVEN)
    places = groups.of_container(id, parent=parent)
    (places[0].directory / "made-inside" / "deeper").mkdir(parents=True)
    ended(pid, with_signal=signal.SIGKILL)

    assert limits.remove_cgroups(id, parent=parent) == ()
    assert places
    assert not any(place.directory.exists() for place in places)


def test_groups_of_a_living_container_stay(lab: oci.Lab, parent: str) -> None:
    id, pid = started(lab, parent, GIVEN)

    assert {place.name for place in limits.remove_cgroups(id, parent=parent)} == {id}
    assert limits.enforced(pid, GIVEN) == HELD


@pytest.mark.parametrize(
    "id", ["", "..", "../docker", "a" * 11, "A" * 64, "0" * 65, f"{'0' * 32}/{'0' * 31}", "docker"]
)
def test_only_an_id_leads_to_groups(id: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="no container's id"):
        limits.cgroup_path(id)
    with pytest.raises(errors.InvalidArgument, match="no container's id"):
        limits.remove_cgroups(id)


def test_removing_groups_that_are_not_there_is_no_error() -> None:
    assert limits.remove_cgroups(new_id()) == ()


# ------------------------------------------------------------------------------------------------ other machines' trees


def machine(folder: Path, *, mounts: dict[str, str], own: str, writable: tuple[str, ...]) -> Path:
    """A machine's /proc that tells of trees below `folder`; returns it. A group without `cgroup.procs` may not be written to."""
    proc, tree = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    lines = []
    for number, (name, after) in enumerate(mounts.items(), 30):
        (tree / name).mkdir(parents=True, exist_ok=True)
        lines.append(f"{number} 23 0:{number} / {tree / name} rw,relatime shared:9 - {after}\n")
    (proc / "self" / "mountinfo").write_text("".join(lines))
    (proc / "self" / "cgroup").write_text(own)
    for path in writable:
        (tree / path).mkdir(parents=True, exist_ok=True)
        (tree / path / "cgroup.procs").touch()
    return proc


def test_containers_lie_at_the_top_where_that_may_be_written_to(tmp_path: Path) -> None:
    proc = machine(tmp_path, mounts={"": "cgroup2 cgroup2 rw"}, own="0::/system.slice/x.service\n", writable=("",))
    (tmp_path / "cgroup/cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")

    assert groups.cgroup_path("a" * 64, proc=proc) == f"/codomyrmex/{'a' * 64}"
    assert groups.layout(proc=proc) == "v2"


def test_containers_lie_below_the_highest_group_that_was_given_to_us(tmp_path: Path) -> None:
    service = "user.slice/user-1000.slice/user@1000.service"
    own = f"{service}/app.slice/terminal.scope"
    proc = machine(
        tmp_path, mounts={"": "cgroup2 cgroup2 rw"}, own=f"0::/{own}\n", writable=(own, f"{service}/app.slice", service)
    )
    (tmp_path / "cgroup/cgroup.controllers").write_text("cpu memory pids\n")

    assert groups.cgroup_path("a" * 64, proc=proc) == f"/{service}/codomyrmex/{'a' * 64}"


def test_there_is_no_place_where_nothing_may_be_made(tmp_path: Path) -> None:
    mounts = {
        "memory": "cgroup cgroup rw,memory",
        "cpu,cpuacct": "cgroup cgroup rw,cpu,cpuacct",
        "pids": "cgroup cgroup rw,pids",
    }
    proc = machine(tmp_path, mounts=mounts, own="4:memory:/\n3:cpu,cpuacct:/\n2:pids:/\n", writable=("memory",))

    assert groups.cgroup_path("a" * 64, proc=proc) == ""
    assert groups.layout(proc=proc) == "v1"


def test_machine_without_control_groups_is_told_apart(tmp_path: Path) -> None:
    proc = machine(tmp_path, mounts={}, own="", writable=())

    assert groups.cgroup_path("a" * 64, proc=proc) == ""
    assert groups.layout(proc=proc) == "none"


@pytest.mark.parametrize(("weight", "held"), [("20", "cgroup"), ("59", "cgroup"), ("100", "no")])
def test_limits_are_read_as_version_2_writes_them(tmp_path: Path, weight: str, held: str) -> None:
    proc = machine(tmp_path, mounts={"": "cgroup2 cgroup2 rw"}, own="0::/\n", writable=("box",))
    (tmp_path / "cgroup/cgroup.controllers").write_text("cpu memory pids\n")
    (proc / "77").mkdir()
    (proc / "77/cgroup").write_text("0::/box\n")
    files = {"memory.max": str(64 * MIB), "memory.low": str(32 * MIB), "cpu.max": "50000 100000", "cpu.weight": weight,
             "pids.max": "50"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / "cgroup/box" / name).write_text(f"{content}\n")

    assert limits.enforced(77, GIVEN, proc=proc) == {**HELD, "cpu_shares": held}


def ended(pid: int, *, with_signal: signal.Signals | None = None) -> None:
    """Wait until a process has ended."""
    watched = os.pidfd_open(pid)
    try:
        if with_signal is not None:
            signal.pidfd_send_signal(watched, with_signal)
        assert select.select([watched], [], [], oci.DEADLINE_SECONDS)[0]
    finally:
        os.close(watched)
