"""Is the tier found by trying, is it told, and are the walls of the lowest the same as those of the highest?

SPEC B126, SPEC B127.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines import base, opening
from codomyrmex_containerization.engines.embedded import life, probe, state, tiers
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, Limits, RestartPolicy
from codomyrmex_containerization.models.details import ExecSpec
from tests import backends, embedded
from tests.engines.embedded import isolation_walls as walls
from tests.engines.embedded.test_probe import ALL, nothing_left, put, runtimes

__all__ = ["nothing_left", "runtimes"]

EVERY: tuple[Isolation, ...] = ("minimal", "standard", "strict")
SECONDS = 30.0


@pytest.fixture(scope="module")
def bare() -> Iterator[EmbeddedEngine]:
    """An engine that uses nobody's programs but our own."""
    embedded.require("bare")
    with tempfile.TemporaryDirectory(prefix="cxc-bare-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        engine = embedded.engine(folder, tier="bare")
        embedded.base_image(engine, folder)
        try:
            yield engine
        finally:
            embedded.swept(engine)


@asynccontextmanager
async def running(
    engine: EmbeddedEngine, *command: str, level: Isolation | None = None
) -> AsyncIterator[tuple[str, int]]:
    """A container that runs; gives its id and its first process."""
    spec = ContainerSpec(image=embedded.IMAGE, command=command or ("sleep", "1000"), network="none", isolation=level)
    id = await engine.create_container(spec)
    try:
        await engine.start_container(id)
        yield id, (await engine.container_details(id)).pid
    finally:
        await engine.remove_container(id, force=True, volumes=True)


async def said(engine: EmbeddedEngine, id: str, script: str) -> str:
    """What a command in a container says."""
    command = await engine.create_exec(id, ExecSpec(("sh", "-c", script), {}))
    async with engine.start_exec(command, stdin=None) as attachment:
        return b"".join([frame.data async for frame in attachment.frames()]).decode("utf-8", "replace")


def words_of(pid: int) -> list[str]:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


# --------------------------------------------------------------------------------------------------------- found


def test_lowest_tier_is_found_with_what_it_really_holds(runtimes: Path, tmp_path: Path) -> None:
    """SPEC B126."""
    found = probe.find_runtime(tmp_path / "state", tier="bare")
    assert (found.tier, found.kind, set(found.limits)) == ("bare", "own", ALL)
    assert any(tiers.REMEDY in note for note in found.notes)
    assert [one.name for one in (tmp_path / "state").iterdir()] == ["runtime-bare.json"]
    assert probe.find_runtime(tmp_path / "state", tier="bare") == found


def test_highest_tier_is_taken_where_it_works(runtimes: Path, tmp_path: Path) -> None:
    found = probe.find_runtime(tmp_path / "state")
    assert found.tier == "full"
    assert not any("tier" in note for note in found.notes)


def test_lower_tier_is_taken_with_the_reason_where_the_higher_fails(runtimes: Path, tmp_path: Path) -> None:
    for name in probe.KINDS:
        put(runtimes, name, f'case "$1" in --version) echo {name} 9.9;; *) echo {name} is broken >&2; exit 1;; esac')
    found = probe.find_runtime(tmp_path / "state")
    assert found.tier == "bare"
    assert all(any(f"{name} is broken" in note for note in found.notes) for name in probe.KINDS)
    # What is broken may be mended: it is tried again.
    assert not (tmp_path / "state/runtime.json").exists()


def test_tier_that_was_asked_for_is_not_replaced_by_another(runtimes: Path, tmp_path: Path) -> None:
    for name in probe.KINDS:
        put(runtimes, name, "exit 1")
    with pytest.raises(errors.EngineUnavailable):
        probe.find_runtime(tmp_path / "state", tier="full")


def test_monitor_of_our_own_watches_where_conmon_does_not(runtimes: Path) -> None:
    assert probe.find_monitor("bare")[0] == tiers.own_monitor_command()
    if process.find("conmon") is not None:
        assert probe.find_monitor("full")[0][0].endswith("conmon")
    put(runtimes, "conmon", "echo broken >&2; exit 3")
    command, version = probe.find_monitor("full")
    assert command == tiers.own_monitor_command()
    assert version.split(".")[0].isdigit()


def test_opener_says_that_it_may_work_where_it_does() -> None:
    if os.geteuid() != 0:
        backends.missing("not root", enable="sudo scripts/test")
    assert tiers.may_work()
    assert opening._has_runtime()


async def test_status_names_the_tier_and_the_command_that_raises_it(bare: EmbeddedEngine) -> None:
    notes = (await bare.info()).notes
    assert any(note.startswith("OCI runtime own ") for note in notes)
    assert any(note.startswith("tier bare") and tiers.REMEDY in note for note in notes)


# --------------------------------------------------------------------------------------------------------- the walls


@pytest.mark.parametrize("level", EVERY)
async def test_lowest_tier_has_the_walls_that_a_level_promises(bare: EmbeddedEngine, level: Isolation) -> None:
    """SPEC B127."""
    async with running(bare, level=level) as (id, pid):
        found = walls.seen(pid, await said(bare, id, walls.INSIDE))
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert tiers.own_monitor_command()[-1] in words_of(parent)
        stands = {name: wall.stands(found) for name, wall in walls.WALLS.items()}
    unsure = {"no_network", *walls.ASKED_FOR}
    sure = [name for name in stands if (name, level) not in walls.UNSURE and name not in unsure]
    assert {name: stands[name] for name in sure} == {name: level in walls.WALLS[name].levels for name in sure}
    assert found.inside["groups"] == "0", "the host's other control groups are seen"


async def test_memory_that_runs_out_is_told(bare: EmbeddedEngine) -> None:
    spec = ContainerSpec(
        image=embedded.IMAGE,
        command=("sh", "-c", "tail -c 100m /dev/zero"),
        network="none",
        limits=Limits(memory_bytes=16 * 1024**2),
    )
    id = await bare.create_container(spec)
    try:
        await bare.start_container(id)
        assert await bare.wait_container(id) == 137
        assert bare.house.look(id).oom_killed
    finally:
        await bare.remove_container(id, force=True, volumes=True)


async def test_smallest_memory_is_enough_to_start_in(bare: EmbeddedEngine) -> None:
    spec = ContainerSpec(
        image=embedded.IMAGE, command=("true",), network="none", limits=Limits(memory_bytes=6 * 1024**2, pids_limit=2)
    )
    id = await bare.create_container(spec)
    try:
        await bare.start_container(id)
        assert await bare.wait_container(id) == 0
    finally:
        await bare.remove_container(id, force=True, volumes=True)


# ------------------------------------------------------------------------------------------------------- other servers


async def test_container_outlives_its_tier(bare: EmbeddedEngine) -> None:
    """Whoever makes containers by then, those that there are obey who made them."""
    embedded.require()
    async with running(bare, "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.01; done") as (id, pid):
        house = life.House(bare.house.folders, engine=bare.name, tier="full")
        assert house.found.tier == "full"
        assert house.runtime.status(id) == "running"
        house.freeze(id, frozen=True)
        house.freeze(id, frozen=False)
        house.update(id, Limits(pids_limit=50))
        later = EmbeddedEngine(bare.endpoint, house.folders, timeout_seconds=SECONDS, tier="full")
        assert await said(later, id, "echo word") == "word\n"
        await later.stop_container(id, timeout_seconds=10)
        assert later.house.look(id).exit_code == 5
        assert state.process_start(pid) is None


async def test_state_that_the_runtime_keeps_is_for_this_user_alone(bare: EmbeddedEngine) -> None:
    async with running(bare) as (id, _):
        folder = bare.house.folders.runtime / id
        assert folder.stat().st_mode & 0o077 == 0
        assert json.loads((folder / tiers.MARK).read_text())["pid"] > 1
        for one in folder.iterdir():
            assert one.stat().st_mode & 0o077 == 0
    assert not folder.exists()


async def test_restart_is_made_by_the_program_that_the_monitor_starts(bare: EmbeddedEngine) -> None:
    spec = ContainerSpec(
        image=embedded.IMAGE,
        command=("sh", "-c", "echo again; exit 3"),
        network="none",
        restart=RestartPolicy("on-failure", 1),
    )
    id = await bare.create_container(spec)
    try:
        await bare.start_container(id)
        assert await bare.wait_container(id) == 3
        async with bare.container_logs(id, base.LogQuery(), tty=False) as frames:
            assert b"".join([frame.data async for frame in frames]).count(b"again") >= 1
    finally:
        await bare.remove_container(id, force=True, volumes=True)
