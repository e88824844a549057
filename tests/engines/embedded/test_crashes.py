"""Is everything as it was told, and nothing left, after a server was killed in the middle of something?"""

from __future__ import annotations

import fcntl
import io
import os
import random
import re
import select
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import mounts
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.details import ExecSpec
from tests import embedded
from tests.engines.embedded.crash_program import FOLDER_OF_THE_HOST

SEEDS, SOAK_SEEDS = range(1, 41), range(1000, 1200)
LONGEST_PLAY_SECONDS = 0.35
ANSWER_SECONDS = 60.0
REPOSITORY = Path(__file__).parents[3]


@dataclass(slots=True)
class Told:
    """What the killed server was told: a container's last certain state, None while something was being done to it."""

    ids: dict[str, str] = field(default_factory=dict)
    lasting: set[str] = field(default_factory=set)
    states: dict[str, str | None] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Told:
        """Read what the server wrote."""
        told = cls()
        for line in path.read_text().splitlines() if path.exists() else ():
            told.lines.append(line)
            match line.split():
                case ["created", name, id, lasts]:
                    told.ids[name], told.states[name] = id, "created"
                    told.lasting |= {name} if lasts == "lasts" else set()
                case ["asked", name, what]:
                    told.states[name] = None
                    told.leaving |= {name} if what == "remove" else set()
                case ["refused", "drop_volume" | "drop_network", *_]:
                    pass
                case ["started", name]:
                    told.states[name] = "running"
                case ["paused", name]:
                    told.states[name] = "paused"
                case ["stopped", name]:
                    told.states[name] = "exited"
                case ["removed", name]:
                    told.removed.add(name)
                case ["volume", name]:
                    told.volumes.add(name)
                case ["network", name]:
                    told.networks.add(name)
                case ["built", tag, *_]:
                    told.tags.add(tag)
                case ["crashed", *_]:
                    pytest.fail("the server ended by itself")
        return told


@dataclass(slots=True)
class Stage:
    """A data folder, and servers that use it until they are killed."""

    folder: Path
    program: subprocess.Popen[bytes]
    ids: set[str] = field(default_factory=set)

    @property
    def data(self) -> Path:
        """What outlives a reboot."""
        return self.folder / "embedded"

    @property
    def run(self) -> Path:
        """What does not."""
        return self.folder / "run"

    def engine(self) -> EmbeddedEngine:
        """Open the folder as the next server does."""
        return embedded.engine(self.folder)

    def _line(self) -> str:
        output = self.program.stdout
        assert output is not None
        assert select.select([output], [], [], ANSWER_SECONDS)[0], "the program does not answer"
        return output.readline().decode().strip()

    def crash(self, seed: int) -> Told:
        """Let a server play for a moment that the seed says, and kill it; return what it was told."""
        file = self.folder / f"told-{seed}"
        assert self.program.stdin is not None
        self.program.stdin.write(f"{seed} {file}\n".encode())
        self.program.stdin.flush()
        pid = int(self._line())
        select.select([], [], [], random.Random(seed).uniform(0.02, LONGEST_PLAY_SECONDS))
        os.kill(pid, signal.SIGKILL)
        assert self._line() == "gone"
        told = Told.read(file)
        for name in ("containers", "begun"):
            with suppress(FileNotFoundError):
                self.ids |= {one for one in os.listdir(self.data / name) if len(one) == 64}
        self.ids |= set(told.ids.values())
        return told

    def leaks(self) -> list[str]:
        """Return everything that should not be there when no container is."""
        found = [f"mount {one}" for one in mounts.below(self.folder)]
        found += [f"process {one}" for one in self._processes()]
        found += [f"group {one}" for one in self._groups()]
        found += [f"file {one}" for one in self._files()]
        found += [f"lock {one}" for one in self._locks()]
        found += [f"rule {one}" for one in self._rules()]
        return found

    def _processes(self) -> Iterator[str]:
        for pid in (one for one in os.listdir("/proc") if one.isdigit()):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                place = os.readlink(f"/proc/{pid}/cwd")
                if os.fsencode(self.folder) in words or place.startswith(f"{self.folder}/"):
                    yield f"{pid} {words!r} in {place}"

    def _groups(self) -> Iterator[str]:
        for parent in Path("/sys/fs/cgroup").glob("*/codomyrmex"):
            with suppress(FileNotFoundError):
                yield from (f"{parent}/{one}" for one in os.listdir(parent) if one in self.ids)

    def _files(self) -> Iterator[str]:
        empty = ["containers", "names", "begun", "exits", "volumes", "networks", "images/tmp"]
        places = [*(self.data / one for one in empty), *(self.run / one for one in ("netns", "net", "oci"))]
        places += [self.data / "builds"]
        for place in places:
            with suppress(FileNotFoundError):
                left = [one for one in os.listdir(place) if one not in (".lock", "lock", "mounts")]
                yield from (f"{place}/{one}" for one in left)
        for path in (*self.data.rglob("*.damaged"), *self.run.rglob("*.damaged")):
            yield str(path)
        yield from (str(path) for path in (self.data / "images").glob(".*"))

    def _locks(self) -> Iterator[str]:
        for path in (*self.data.rglob("*lock"), *self.run.rglob("*lock")):
            if not path.is_file() or "layers" in path.parts:
                continue
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield str(path)

    def _rules(self) -> Iterator[str]:
        with suppress(FileNotFoundError):
            said = subprocess.run(["iptables-save"], capture_output=True, check=False).stdout.decode()
            named = re.compile("|".join(self.ids) or r"\Z.")
            yield from (line for line in said.splitlines() if named.search(line))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One folder for all seeds: whatever one of them leaves is found by the next."""
    embedded.require()
    folder = tmp_path_factory.mktemp("crashes")
    engine = embedded.engine(folder)
    embedded.base_image(engine, folder)
    engine.house.found  # noqa: B018  the program does not look for a runtime each time
    (folder / FOLDER_OF_THE_HOST).mkdir()
    (folder / FOLDER_OF_THE_HOST / "precious").write_text("of the host\n")
    with tarfile.open(folder / "context.tar", "w") as tar:
        member = tarfile.TarInfo("file")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"text\n"))
    words = [sys.executable, "-m", "tests.engines.embedded.crash_program"]
    program = subprocess.Popen(words, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin is not None
    program.stdin.write(f"{folder / 'embedded'} {folder / 'run'}\n".encode())
    try:
        yield Stage(folder, program)
    finally:
        program.kill()
        program.communicate()
        embedded.swept(embedded.engine(folder))
        mounts.clear(folder)


async def _said(engine: EmbeddedEngine, container: str) -> bytes:
    made = await engine.create_exec(container, ExecSpec(("echo", "reachable"), {}))
    async with engine.start_exec(made, stdin=None) as attachment:
        return b"".join([frame.data async for frame in attachment.frames()])


async def _check(stage: Stage, told: Told) -> None:
    engine = stage.engine()
    house = engine.house
    embedded.wait_for_revivals(engine)
    records = {one.name: one for one in house.all()}
    for name, id in told.ids.items():
        if name in told.removed:
            assert name not in records
        elif name not in told.leaving:
            assert records[name].id == id
    reached = 0
    for name, record in records.items():
        wanted = told.states.get(name)
        if record.status in ("running", "paused"):
            assert record.first is not None
            assert record.first.is_alive, name
            assert house.runtime.status(record.id) == record.status, name
        elif record.status == "exited" and record.exit_code is None:
            assert record.error, name
        if name in told.lasting and wanted in ("running", "paused"):
            assert record.status == wanted, name
        if wanted == "exited":
            assert record.status in ("exited", "created"), name
        if record.status == "running" and name in told.lasting and reached < 2:
            reached += 1
            assert await _said(engine, name) == b"reachable\n", name
            assert b"hello" in (house.containers.folder(record.id) / "ctr.log").read_bytes()
    volumes = {row.name for row in await engine.list_volumes()}
    assert told.volumes - told.leaving <= volumes
    assert told.networks - told.leaving <= {row.name for row in await engine.list_networks()}
    tags = {tag for one in house.images.images() for tag in one.tags}
    assert told.tags <= tags
    for image in house.images.images():
        assert all(folder.is_dir() for folder in house.images.layer_folders(image))
    await _take_all_away(engine, told)


async def _take_all_away(engine: EmbeddedEngine, told: Told) -> None:
    house = engine.house
    for record in house.containers.all():
        await engine.remove_container(record.id, force=True, volumes=True)
    for row in await engine.list_volumes():
        assert not re.fullmatch("[0-9a-f]{64}", row.name), "a volume without a name was left"
        await engine.remove_volume(row.name, force=False)
    for network in await engine.list_networks():
        if not network.own:
            await engine.remove_network(network.name)
    for image in house.images.images():
        for tag in image.tags:
            if tag != embedded.IMAGE:
                house.images.remove(tag, force=True, users={})
    await engine.aclose()


@pytest.mark.parametrize("seed", SEEDS)
async def test_all_is_as_told_and_nothing_is_left_after_a_server_was_killed(stage: Stage, seed: int) -> None:
    await _one_crash(stage, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SOAK_SEEDS)
async def test_all_is_as_told_and_nothing_is_left_after_one_of_many_crashes(stage: Stage, seed: int) -> None:
    await _one_crash(stage, seed)


async def _one_crash(stage: Stage, seed: int) -> None:
    told = stage.crash(seed)
    try:
        await _check(stage, told)
        assert stage.leaks() == []
        assert (stage.folder / FOLDER_OF_THE_HOST / "precious").read_text() == "of the host\n"
    except BaseException:
        sys.stdout.write("\n".join(told.lines) + "\n")
        with suppress(errors.ContainerizationError):
            await _take_all_away(stage.engine(), told)
        raise
