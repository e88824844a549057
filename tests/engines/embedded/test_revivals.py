"""Does a container with a restart policy run again after a reboot, or after everything was killed? SPEC B121."""

from __future__ import annotations

import select
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codomyrmex_containerization.engines.embedded import begun, life, mounts, restarts, state
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import ContainerSpec, RestartPolicy
from codomyrmex_containerization.models.event import EventQuery
from tests import embedded

LASTS = ("sh", "-c", "echo hello; exec sleep 100000")


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is known of this machine's runtimes, so that not every test looks for itself."""
    engine = embedded.engine(tmp_path_factory.mktemp("probed"))
    assert engine.house.found.path.exists()
    return engine.house.folders.data / "probe"


@pytest.fixture
def engine(tmp_path: Path, probed: Path) -> Iterator[EmbeddedEngine]:
    """An engine with folders of its own; what a test leaves is taken away."""
    shutil.copytree(probed, tmp_path / "embedded" / "probe")
    made = embedded.engine(tmp_path)
    embedded.base_image(made, tmp_path)
    try:
        yield made
    finally:
        last = embedded.engine(tmp_path)
        _opened(last)
        embedded.swept(last)
        mounts.clear(tmp_path)


def _opened(engine: EmbeddedEngine) -> life.House:
    """Open the engine as a server does, and wait until it has started what it had to."""
    house = engine.house
    embedded.wait_for_revivals(engine)
    return house


def _started(house: life.House, policy: str, *, maximum: int = 0) -> Record:
    spec = ContainerSpec(
        embedded.IMAGE,
        name=policy,
        command=LASTS,
        network="none",
        restart=RestartPolicy(policy, maximum),  # type: ignore[arg-type]
    )
    return house.start(house.create(spec).id)


def _all_killed(record: Record) -> None:
    """Kill the monitor before the program, so that nobody is left who hears of its end."""
    for one in (record.monitor, record.first):
        assert one is not None
        begun.kill(one)
        assert state.wait_for_end(one, seconds=10)


def _rebooted(house: life.House) -> None:
    """Leave the data folder as a reboot does: what only was while the machine ran has gone."""
    (house.folders.run / "boot").unlink()


@pytest.mark.parametrize(("policy", "status"), [("always", "running"), ("unless-stopped", "running"), ("no", "exited")])
async def test_next_server_starts_what_a_policy_keeps_running_after_all_was_killed(
    engine: EmbeddedEngine, tmp_path: Path, policy: str, status: str
) -> None:
    """B121."""
    record = _started(engine.house, policy)
    _all_killed(record)
    next_one = embedded.engine(tmp_path)
    now = _opened(next_one).look(policy)
    assert now.status == status
    assert now.restart_count == (status == "running")
    until = state.now()
    async with next_one.events(EventQuery(since=record.created, until=until)) as events:
        actions = [one.action async for one in events if one.id == record.id]
    assert actions[:3] == ["create", "start", "die"]
    assert actions[3:] == (["start"] if status == "running" else [])


def test_program_of_unknown_end_is_not_started_again_on_failure(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """B121."""
    _all_killed(_started(engine.house, "on-failure"))
    now = _opened(embedded.engine(tmp_path)).look("on-failure")
    assert (now.status, now.exit_code) == ("exited", None)


@pytest.mark.parametrize(
    ("code", "count", "status"),
    [(3, 0, "running"), (0, 0, "exited"), (3, 2, "exited")],
    ids=["failed", "well", "used_up"],
)
def test_program_that_is_known_to_have_failed_is_started_again_on_failure(
    engine: EmbeddedEngine, tmp_path: Path, code: int, count: int, status: str
) -> None:
    """B121."""
    record = _started(engine.house, "on-failure", maximum=2)
    _all_killed(record)
    # As it is when the monitor was killed while it waited to start the container again.
    engine.house.containers.write(replace(record, restart_count=count))
    engine.house.runtime.exit_file(record.id).write_text(str(code))
    now = _opened(embedded.engine(tmp_path)).look("on-failure")
    assert now.status == status
    assert now.restart_count == count + (status == "running")


@pytest.mark.parametrize(
    ("policy", "reboots", "status"),
    [
        ("always", True, "running"),
        ("always", False, "exited"),
        ("unless-stopped", True, "exited"),
        ("unless-stopped", False, "exited"),
    ],
)
async def test_container_that_was_stopped_by_hand_runs_again_only_after_a_reboot_and_only_if_always(
    engine: EmbeddedEngine, tmp_path: Path, policy: str, reboots: bool, status: str
) -> None:
    """B121."""
    _started(engine.house, policy)
    await engine.stop_container(policy, timeout_seconds=0)
    if reboots:
        _rebooted(engine.house)
    assert _opened(embedded.engine(tmp_path)).look(policy).status == status


async def test_container_that_waits_for_the_next_server_can_be_stopped(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """B121."""
    _all_killed(_started(engine.house, "always"))
    assert engine.house.look("always").status == "exited"
    await engine.stop_container("always", timeout_seconds=0)
    assert _opened(embedded.engine(tmp_path)).look("always").status == "exited"


def test_container_whose_restart_was_cut_short_is_started_by_the_next_server(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    """B121."""
    record = _started(engine.house, "always")
    _all_killed(record)
    house = engine.house
    house.containers.write(replace(house.look("always"), status="restarting", monitor=record.monitor))
    assert house.look("always").error == restarts.FORSAKEN
    assert _opened(embedded.engine(tmp_path)).look("always").status == "running"


def test_several_servers_that_are_opened_at_once_start_a_container_once(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """B121."""
    _all_killed(_started(engine.house, "always"))
    servers = [embedded.engine(tmp_path) for _ in range(4)]
    openers = [threading.Thread(target=_opened, args=(one,)) for one in servers]
    for one in openers:
        one.start()
    for one in openers:
        one.join()
    now = servers[0].house.look("always")
    assert (now.status, now.restart_count) == ("running", 1)


def test_container_that_was_never_started_stays_so(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """B121."""
    spec = ContainerSpec(embedded.IMAGE, name="new", command=LASTS, network="none", restart=RestartPolicy("always"))
    engine.house.create(spec)
    _rebooted(engine.house)
    assert _opened(embedded.engine(tmp_path)).look("new").status == "created"


def test_container_that_does_not_start_does_not_keep_others_from_it(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """B121."""
    house = engine.house
    records = [_started(house, "always"), _started(house, "unless-stopped")]
    for one in records:
        _all_killed(one)
        house.look(one.id)
    bad = house.look("unless-stopped")  # the newest: its turn comes first
    house.containers.write(replace(bad, spec=replace(bad.spec, command=("/none",))))
    now = _opened(embedded.engine(tmp_path))
    assert now.look("unless-stopped").status == "exited"
    assert "/none" in now.look("unless-stopped").error
    assert now.look("always").status == "running"


def test_container_that_somebody_holds_just_then_is_started_after_that(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """B121."""
    house = engine.house
    records = [_started(house, "always"), _started(house, "unless-stopped")]
    for one in records:
        _all_killed(one)
        house.look(one.id)
    server = embedded.engine(tmp_path)
    with house.containers.hold(house.look("unless-stopped").id):
        now = server.house
        while now.look("always").status != "running":
            select.select((), (), (), 0.005)
    embedded.wait_for_revivals(server)
    assert now.look("unless-stopped").status == "running"
