"""What happens when something under the embedded engine breaks: a record, a monitor, the runtime, the disk, the machine?

SPEC B122, SPEC B125.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import begun, groups, kernel, life, mounts, runtime, state
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import ContainerSpec, Mount, RestartPolicy
from tests import embedded

SHORT_SECONDS = 0.2
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
        embedded.swept(embedded.engine(tmp_path))
        mounts.clear(tmp_path)


@pytest.fixture
def house(engine: EmbeddedEngine) -> life.House:
    """What does the engine's work."""
    return engine.house


def _spec(
    name: str, *command: str, network: str = "none", restart: str = "no", mounts: tuple[Mount, ...] = ()
) -> ContainerSpec:
    policy = RestartPolicy(restart)  # type: ignore[arg-type]
    return ContainerSpec(
        embedded.IMAGE, name=name, command=command or LASTS, network=network, restart=policy, mounts=mounts
    )


def _started(house: life.House, name: str, *command: str, network: str = "none", restart: str = "no") -> Record:
    return house.start(house.create(_spec(name, *command, network=network, restart=restart)).id)


def _again(house: life.House) -> life.House:
    return life.House(house.folders, engine=house.engine)


def _cut(house: life.House, record: Record) -> None:
    path = house.containers.folder(record.id) / "container.json"
    path.write_bytes(path.read_bytes()[:100])


def _process(pid: int) -> state.Process:
    found = state.process(pid)
    assert found is not None
    return found


# --------------------------------------------------------------------------------------------------------- damaged records


def test_container_whose_record_was_cut_in_half_is_told_of_and_the_others_go_on(house: life.House) -> None:
    cut, whole = _started(house, "cut"), _started(house, "whole")
    _cut(house, cut)
    again = _again(house)
    assert [one for one in again.recover() if cut.id[:12] in one and "damaged" in one]
    assert {one.name: one.status for one in again.all()} == {"whole": "running", "cut": "dead"}
    assert again.containers.damaged() == [cut.id]
    assert whole.first is not None
    assert cut.first is not None
    assert whole.first.is_alive
    assert cut.first.is_alive  # nobody knows what it does: it is left alone until somebody removes it


async def test_engine_tells_of_a_damaged_record(engine: EmbeddedEngine) -> None:
    record = engine.house.create(_spec("cut"))
    _cut(engine.house, record)
    assert [(row.name, row.status) for row in await engine.list_containers(all=True)] == [("cut", "dead")]
    assert (await engine.inspect_container("cut")).id == record.id
    assert not (await engine.container_details("cut")).pid
    with pytest.raises(errors.EngineUnavailable, match="not known"):
        await engine.wait_container("cut")
    assert [note for note in (await engine.info()).notes if record.id[:12] in note]
    await engine.remove_container("cut", force=True, volumes=True)
    assert await engine.list_containers(all=True) == []


@pytest.mark.parametrize("wanted", ["id", "name", "beginning"])
def test_container_with_a_damaged_record_is_removed(house: life.House, wanted: str) -> None:
    record = _started(house, "cut", network="bridge")
    _cut(house, record)
    text = {"id": record.id, "name": "cut", "beginning": record.id[:12]}[wanted]
    assert "damaged" in house.look(text).error
    with pytest.raises(errors.NotFound, match="damaged") as caught:
        house.start(text)
    assert "force=true" in caught.value.hint
    with pytest.raises(errors.Conflict):
        house.remove(text, force=False, with_volumes=False)
    house.remove(text, force=True, with_volumes=False)
    assert record.first is not None
    assert not record.first.is_alive
    assert house.containers.ids() == []
    assert mounts.below(house.folders.data) == []
    assert house.create(_spec("cut")).name == "cut"


@pytest.mark.parametrize("with_volumes", [True, False])
def test_volumes_without_a_name_go_with_a_damaged_container_if_that_is_asked_for(
    house: life.House, with_volumes: bool
) -> None:
    """B122."""
    given = (Mount("volume", "/data"), Mount("volume", "/more"), Mount("volume", "/named", "named"))
    other = house.create(_spec("other", mounts=(Mount("volume", "/data"),)))
    record = house.create(_spec("cut", mounts=given))
    unnamed = {one.name for one in record.mounts} - {"named"}
    others = {one.name for one in other.mounts} | {"named"}
    _cut(house, record)
    _again(house).remove("cut", force=True, with_volumes=with_volumes)
    assert {row.name for row in house.volumes.rows({})} == (others if with_volumes else others | unnamed)


def test_volume_of_a_damaged_container_stays_when_another_mounts_it(house: life.House) -> None:
    """B122."""
    record = house.create(_spec("cut", mounts=(Mount("volume", "/data"),)))
    name = record.mounts[0].name
    house.create(_spec("other", mounts=(Mount("volume", "/borrowed", name),)))
    _cut(house, record)
    house.remove("cut", force=True, with_volumes=True)
    assert [row.name for row in house.volumes.rows({})] == [name]


# ------------------------------------------------------------------------------------------------------------- the monitor


def test_container_whose_monitor_was_killed_runs_on_and_ends_without_an_exit_code(house: life.House) -> None:
    record = _started(house, "watched")
    assert record.monitor is not None
    begun.kill(record.monitor)
    assert state.wait_for_end(record.monitor, seconds=10)
    assert house.look("watched").status == "running"
    house.signal("watched", "KILL")
    assert record.first is not None
    assert state.wait_for_end(record.first, seconds=10)
    ended = house.look("watched")
    assert (ended.status, ended.exit_code) == ("exited", None)
    assert "monitor" in ended.error


@pytest.mark.parametrize("ends", [False, True], ids=["runs_on", "has_ended"])
async def test_container_whose_monitor_was_killed_is_told_truly_and_removed_whole(
    engine: EmbeddedEngine, ends: bool
) -> None:
    """B125."""
    house = engine.house
    made = house.create(
        ContainerSpec(
            embedded.IMAGE,
            name="watched",
            command=("sleep", "100000"),
            network="bridge",
            mounts=(Mount("volume", "/data"),),
        )
    )
    record = house.start(made.id)
    assert record.monitor is not None
    assert record.first is not None
    begun.kill(record.monitor)
    assert state.wait_for_end(record.monitor, seconds=10)
    assert (await engine.inspect_container("watched")).status == "running"
    if ends:
        await engine.stop_container("watched", timeout_seconds=0)
        found = await engine.inspect_container("watched")
        assert (found.status, found.exit_code) == ("exited", None)
        with pytest.raises(errors.EngineUnavailable, match="its monitor ended with it"):
            await engine.wait_container("watched")
    await engine.remove_container("watched", force=True, volumes=True)
    assert not record.first.is_alive
    assert await engine.list_containers(all=True) == []
    assert await engine.list_volumes() == []
    assert mounts.below(house.folders.data) == []
    for name in ("netns", "net", "oci"):
        assert [one for one in os.listdir(house.folders.run / name) if record.id[:12] in one] == []
    assert os.listdir(house.folders.exits) == []
    assert groups.of_container(record.id) == []


def test_container_that_nobody_starts_again_is_told_as_ended(house: life.House) -> None:
    record = _started(house, "again", restart="always")
    assert record.monitor is not None
    assert record.first is not None
    begun.kill(record.monitor)
    begun.kill(record.first)
    assert state.wait_for_end(record.first, seconds=10)
    assert house.look("again").status == "exited"
    house.containers.write(replace(house.look("again"), status="restarting"))
    again = _again(house)
    again.recover()
    assert again.look("again").status == "exited"
    assert "its monitor has gone" in again.look("again").error


# ------------------------------------------------------------------------------------------------------------- the runtime


@pytest.fixture
def broken(house: life.House, tmp_path: Path) -> Callable[[str], life.House]:
    """Give a house a runtime that does what a script says."""
    conmon = process.find("conmon")
    assert conmon is not None

    def make(script: str) -> life.House:
        program = tmp_path / "broken"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        again = _again(house)
        again._found = house.found
        again._runtime = runtime.Runtime(program, conmon, house.folders, answer_seconds=SHORT_SECONDS)
        return again

    return make


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("head -c 5000 /dev/urandom; exit 0", errors.EngineUnavailable),
        ("head -c 5000 /dev/urandom >&2; exit 1", errors.EngineUnavailable),
        ("exec sleep 100000", errors.DeadlineExceeded),
    ],
    ids=["garbage", "garbage_and_failure", "hangs"],
)
def test_runtime_that_misbehaves_is_an_error_and_the_container_stays_usable(
    house: life.House, broken: Callable[[str], life.House], script: str, error: type[errors.ContainerizationError]
) -> None:
    running, waiting = _started(house, "running"), house.create(_spec("waiting"))
    bad = broken(script)
    with pytest.raises(error):
        bad.start("waiting")
    assert bad.look("waiting").status == "created"
    assert mounts.below(house.containers.folder(waiting.id)) == []
    with pytest.raises((runtime.RuntimeFailed, errors.DeadlineExceeded)):
        bad.runtime.status(running.id)
    assert [one.name for one in bad.all()] == ["waiting", "running"]
    bad.remove("running", force=True, with_volumes=False)
    assert running.first is not None
    assert not running.first.is_alive
    assert house.start("waiting").status == "running"


def test_program_of_somebody_else_that_names_a_container_is_left_alone(house: life.House) -> None:
    record = house.create(_spec("named"))
    words = ["sh", "-c", "read wait", record.id, str(house.containers.folder(record.id))]
    other = subprocess.Popen(words, stdin=subprocess.PIPE)
    try:
        begun.end_strays(house.folders, record.id, restarters=True)
        assert other.poll() is None
    finally:
        other.communicate(b"\n")


# ---------------------------------------------------------------------------------------------------------------- the disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    embedded.require()
    place = tmp_path / "small"
    place.mkdir()
    kernel.mount("none", str(place), "tmpfs", 0, "size=8m,mode=700")
    try:
        yield place
    finally:
        mounts.clear(place)


def _fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(place).f_bavail == 0
    return filler


def test_full_disk_is_an_error_and_what_runs_can_be_seen_and_removed(small: Path) -> None:
    engine = embedded.engine(small)
    embedded.base_image(engine, small)
    house = engine.house
    (small / "rootfs.tar").unlink()
    running, ending = _started(house, "running"), _started(house, "ending")
    try:
        filler = _fill(small)
        with pytest.raises(errors.EngineUnavailable, match="No space"):
            house.create(_spec("another"))
        assert len(house.containers.ids()) == 2
        assert ending.first is not None
        begun.kill(ending.first)
        assert state.wait_for_end(ending.first, seconds=10)
        assert {one.name: one.status for one in house.all()} == {"running": "running", "ending": "exited"}
        house.remove("running", force=True, with_volumes=False)
        assert running.first is not None
        assert not running.first.is_alive
        filler.unlink()
        assert house.look("ending").status == "exited"
        assert house.start("ending").status == "running"
    finally:
        (small / "filler").unlink(missing_ok=True)
        embedded.swept(engine)
    assert mounts.below(house.folders.data) == []


def test_file_that_was_written_in_part_is_no_record(small: Path) -> None:
    path = small / "record"
    state.write_whole(path, b"before")
    filler = _fill(small)
    with pytest.raises(errors.EngineUnavailable, match="No space"):
        state.write_whole(path, b"x" * 100_000)
    assert path.read_bytes() == b"before"
    assert sorted(os.listdir(small)) == [filler.name, "record"]


async def test_folder_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    embedded.require()
    place = tmp_path / "fixed"
    place.mkdir()
    kernel.mount("none", str(place), "tmpfs", 0, "size=1m")
    try:
        kernel.mount("none", str(place), "", kernel.MS_REMOUNT | kernel.MS_RDONLY, "")
        with pytest.raises(errors.EngineUnavailable, match="Read-only"):
            await embedded.engine(place).list_containers(all=True)
    finally:
        mounts.clear(place)


async def test_records_that_became_unwritable_can_be_read_and_not_changed(tmp_path: Path) -> None:
    embedded.require()
    place = tmp_path / "fixed"
    place.mkdir()
    kernel.mount("none", str(place), "tmpfs", 0, "size=8m")
    engine = embedded.engine(place)
    try:
        embedded.base_image(engine, place)
        engine.house.create(_spec("some"))
        kernel.mount("none", str(place), "", kernel.MS_REMOUNT | kernel.MS_RDONLY, "")
        assert [row.name for row in await engine.list_containers(all=True)] == ["some"]
        for change in (
            lambda: engine.start_container("some"),
            lambda: engine.create_container(_spec("other")),
            lambda: engine.remove_container("some", force=True, volumes=False),
        ):
            with pytest.raises(errors.EngineUnavailable, match="Read-only"):
                await change()
    finally:
        mounts.clear(place)


# ------------------------------------------------------------------------------------------------------------- two at once


def test_two_servers_may_do_things_to_one_container_at_once(house: life.House) -> None:
    house.create(_spec("shared"))
    strange: list[BaseException] = []

    def use(mine: life.House) -> None:
        steps: list[Callable[[], object]] = [
            lambda: mine.start("shared"),
            lambda: mine.freeze("shared", frozen=True),
            lambda: mine.freeze("shared", frozen=False),
            lambda: mine.signal("shared", "KILL"),
            lambda: mine.look("shared"),
            lambda: mine.recover(),
        ]
        for _ in range(4):
            for step in steps:
                try:
                    step()
                except errors.Conflict:
                    pass
                except Exception as error:  # noqa: BLE001  looked at by the test
                    strange.append(error)

    users = [threading.Thread(target=use, args=(_again(house),)) for _ in range(2)]
    for one in users:
        one.start()
    for one in users:
        one.join()
    assert strange == []
    record = house.look("shared")
    assert record.status in ("running", "paused", "exited")
    house.remove("shared", force=True, with_volumes=True)
    assert mounts.below(house.folders.data) == []
    assert list(house.folders.runtime.iterdir()) == []


def test_two_servers_remove_one_container_and_one_of_them_is_told_that_it_is_gone(house: life.House) -> None:
    for number in range(5):
        _started(house, f"shared{number}")
        said: list[str] = []

        def remove(mine: life.House, name: str = f"shared{number}", said: list[str] = said) -> None:
            try:
                mine.remove(name, force=True, with_volumes=False)
                said.append("removed")
            except errors.NotFound:
                said.append("gone")

        users = [threading.Thread(target=remove, args=(_again(house),)) for _ in range(2)]
        for one in users:
            one.start()
        for one in users:
            one.join()
        assert sorted(said) == ["gone", "removed"]
    assert os.listdir(house.folders.containers) == []


# ------------------------------------------------------------------------------------------------------------- the machine


def test_machine_that_was_started_anew_has_no_container_that_runs(house: life.House) -> None:
    record = _started(house, "before")
    house.signal("before", "KILL")
    assert record.first is not None
    assert state.wait_for_end(record.first, seconds=10)
    # As a reboot leaves it: numbers of processes that are others' now, and what should have been on a file system in memory.
    other = replace(_process(os.getpid()), boot_id="another")
    house.look("before")
    house.containers.write(replace(record, status="running", first=other, monitor=other, prepared=True))
    (house.folders.run / "boot").write_text("another")
    for stale in (house.folders.runtime / record.id / "status", house.folders.run / "netns" / record.id):
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_text(f'{{"pid": {os.getpid()}}}')
    house.begun.write(record.id, house.containers.folder(record.id))
    again = _again(house)
    again.recover()
    found = again.look("before")
    assert (found.status, found.exit_code) == ("exited", None)
    assert found.error
    assert os.listdir(house.folders.runtime) == []
    assert os.listdir(house.folders.run / "netns") == []
    assert again.start("before").status == "running"


def test_folder_of_the_host_outlives_the_leftovers_of_a_build(house: life.House, tmp_path: Path) -> None:
    precious, left = tmp_path / "precious", house.folders.data / "builds" / "build-left" / "step" / "binds" / "0"
    for one in (precious, left):
        one.mkdir(parents=True)
    (precious / "file").write_text("of the host\n")
    kernel.mount(str(precious), str(left), "", kernel.MS_BIND)
    _again(house).recover()
    assert (precious / "file").read_text() == "of the host\n"
    assert not (house.folders.data / "builds" / "build-left").exists()
    assert mounts.below(house.folders.data) == []


def test_folder_of_the_host_outlives_a_container_that_was_never_taken_down(house: life.House, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("of the host\n")
    record = house.create(_spec("bound", mounts=(Mount("bind", "/there", str(precious)),)))
    house.start("bound")
    (house.containers.folder(record.id) / "container.json").unlink()  # nobody's now, with all that is mounted in it
    again = _again(house)
    again.recover()
    assert again.containers.ids() == []
    assert (precious / "file").read_text() == "of the host\n"
    assert mounts.below(house.folders.data) == []
