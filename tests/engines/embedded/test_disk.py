"""Does a container write no more than the disk space that it was given, and does nothing of its disk stay behind?

SPEC B105.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import disk, loops, overlay
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, Limits
from tests import backends, embedded

MIB = 1024**2
GONE_SECONDS = 30.0
DISK = Limits(disk_bytes=16 * MIB)
FILL = "dd if=/dev/zero of=/big bs=1M count=64 2>&1; stat -c %s /big"


@dataclass(frozen=True, slots=True)
class Lab:
    """An engine and what its tests do with it."""

    engine: EmbeddedEngine
    folder: Path

    async def created(self, *script: str, limits: Limits = DISK, level: Isolation | None = None) -> str:
        """A container without a network."""
        command = ("sh", "-c", script[0]) if script else ("sleep", "1000")
        spec = ContainerSpec(embedded.IMAGE, command=command, network="none", limits=limits, isolation=level)
        return await self.engine.create_container(spec)

    async def ran(self, id: str) -> tuple[int, str]:
        """Run a container to its end; returns its exit code and all that it said."""
        await self.engine.start_container(id)
        code = await self.engine.wait_container(id)
        async with self.engine.container_logs(id, base.LogQuery(tail=20), tty=False) as frames:
            return code, b"".join([frame.data async for frame in frames]).decode("utf-8", "replace")

    def image(self, id: str) -> Path:
        """The file that is its disk."""
        return self.engine.house.containers.folder(id) / "disk.img"

    def mounts(self) -> list[str]:
        """What is mounted in the test's folder."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [line.split()[1] for line in lines if str(self.folder) in line]

    def require_gone(self) -> None:
        """Nothing is mounted, and no disk is left: the kernel takes it once the last copy of its mount has gone with a namespace."""
        assert self.mounts() == []
        deadline = time.monotonic() + GONE_SECONDS
        while self.disks():
            assert time.monotonic() < deadline, f"these are still there: {self.disks()}"
            time.sleep(0.01)

    def disks(self) -> list[str]:
        """The files of this test that are disks of the kernel's."""
        found = []
        for one in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # it has just gone
                found.append(one.read_text().strip())
        return [one for one in found if str(self.folder) in one]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An engine of the test's own; nothing stays mounted and no disk stays behind."""
    embedded.require()
    if not loops.are_there() or process.find("mkfs.ext4") is None:
        backends.missing("no loop devices, or no mkfs.ext4", enable="apt-get install e2fsprogs")
    engine = embedded.engine(tmp_path)
    made = Lab(engine, tmp_path)
    try:
        embedded.base_image(engine, tmp_path)
        yield made
    finally:
        embedded.swept(engine)
        made.require_gone()


async def test_container_sees_a_full_disk_at_its_limit_and_the_host_does_not(lab: Lab) -> None:
    """B105."""
    id = await lab.created(FILL)

    _, said = await lab.ran(id)

    assert "No space left on device" in said
    assert 8 * MIB < int(said.split()[-1]) < 16 * MIB
    assert lab.image(id).stat().st_blocks * 512 <= 16 * MIB
    lab.require_gone()


async def test_files_stay_from_one_start_to_the_next_and_are_reached_while_it_does_not_run(lab: Lab) -> None:
    id = await lab.created("echo one >>/kept; cat /kept")
    await lab.ran(id)

    assert (await lab.engine.stat_path(id, "/kept")).size_bytes == 4
    assert (await lab.engine.inspect_container(id, size=True)).writable_bytes == 4
    lab.require_gone()

    _, said = await lab.ran(id)
    assert said.endswith("one\none\n")


async def test_what_is_removed_inside_makes_room_again(lab: Lab) -> None:
    id = await lab.created(f"{FILL}; rm /big; dd if=/dev/zero of=/next bs=1M count=8 2>&1 && echo fits")

    assert "fits" in (await lab.ran(id))[1]


async def test_many_small_files_reach_the_limit_too(lab: Lab) -> None:
    id = await lab.created("i=0; while [ $i -lt 20000 ] && touch /f$i; do i=$((i+1)); done 2>&1; echo made $i")

    _, said = await lab.ran(id)

    assert "No space left on device" in said
    assert int(said.split()[-1]) < 10_000


@pytest.mark.parametrize("level", ["minimal", "strict"])
async def test_levels_keep_their_disk(lab: Lab, level: Isolation) -> None:
    id = await lab.created("touch /file && echo written; cat /proc/mounts | head -1", level=level)

    _, said = await lab.ran(id)

    assert ("written" in said) == (level == "minimal")


async def test_disk_of_one_that_runs_is_taken_away_with_it(lab: Lab) -> None:
    id = await lab.created()
    await lab.engine.start_container(id)
    assert lab.disks() == [str(lab.image(id))]

    await lab.engine.remove_container(id, force=True, volumes=False)

    lab.require_gone()


async def test_one_file_is_one_disk_however_often_it_is_mounted(lab: Lab, tmp_path: Path) -> None:
    id = await lab.created()
    await lab.engine.start_container(id)

    with loops.attached(lab.image(id)) as device:
        assert loops.of(lab.image(id)) == [device]


@pytest.mark.parametrize("disk_bytes", [0, MIB, 2**60])
async def test_disk_of_no_sensible_size_is_refused(lab: Lab, disk_bytes: int) -> None:
    """B106."""
    with pytest.raises(errors.InvalidArgument, match="disk = "):
        await lab.created(limits=Limits(disk_bytes=disk_bytes))
    assert lab.engine.house.containers.ids() == []


async def test_disk_cannot_be_changed_later(lab: Lab) -> None:
    id = await lab.created()

    with pytest.raises(errors.Unsupported, match="disk cannot be changed"):
        await lab.engine.update_container(id, Limits(disk_bytes=32 * MIB))


ORDINARY = """
import os, sys
from pathlib import Path
from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import disk
Path("/proc/self/uid_map").read_text("ascii")  # what that needs is loaded before it can no longer be read
os.setuid(65534)
try:
    disk.require(Path("/"), 16 * 1024**2)
except errors.Unsupported as error:
    print(error.message, error.hint)
"""


def test_where_no_file_system_can_be_mounted_the_limit_is_refused_with_the_way_out() -> None:
    """B106."""
    if os.geteuid() != 0:
        backends.missing("this test becomes another user, which only root may")

    done = subprocess.run([sys.executable, "-c", ORDINARY], capture_output=True, text=True, check=True)

    assert "cannot limit disk here: only root" in done.stdout
    assert "tmpfs" in done.stdout


SERVER = """
import asyncio, sys
from pathlib import Path
from codomyrmex_containerization.models.container import ContainerSpec, Limits
from tests import embedded

async def main():
    engine = embedded.engine(Path(sys.argv[1]))
    spec = ContainerSpec(embedded.IMAGE, command=("sleep", "1000"), network="none", limits=Limits(disk_bytes=16 * 1024**2))
    id = await engine.create_container(spec)
    await engine.start_container(id)
    if len(sys.argv) > 2:  # killed between the disk's mount and the overlay's
        other = await engine.create_container(spec)
        record = engine.house.containers.read(other)
        engine.house.begun.write(other, engine.house.containers.folder(other))
        from codomyrmex_containerization.engines.embedded import disk
        with disk.room(engine.house.containers.folder(other), record.limits.disk_bytes):
            pass
    print(id, flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


BUSY = """
import asyncio, sys
from pathlib import Path
from codomyrmex_containerization.models.container import ContainerSpec, Limits
from tests import embedded

async def main():
    engine = embedded.engine(Path(sys.argv[1]))
    limits = Limits(disk_bytes=16 * 1024**2)
    spec = ContainerSpec(embedded.IMAGE, command=("dd", "if=/dev/zero", "of=/big", "bs=1M"), network="none", limits=limits)
    print("begins", flush=True)
    while True:
        id = await engine.create_container(spec)
        await engine.start_container(id)
        await engine.stat_path(id, "/bin")
        await engine.wait_container(id)
        await engine.stat_path(id, "/big")
        await engine.remove_container(id, force=True, volumes=False)

asyncio.run(main())
"""


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
async def test_server_may_be_killed_at_any_moment_of_a_disks_life(lab: Lab, seed: int) -> None:
    """B107."""
    lab.engine.house.found  # noqa: B018  the server does not look for a runtime: killed at that, it would leave a try's container
    server = subprocess.Popen([sys.executable, "-c", BUSY, str(lab.folder)], stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"begins\n"
        select.select([], [], [], random.Random(seed).uniform(0.0, 0.6))  # the moment of the kill
    finally:
        server.kill()
        server.communicate()

    found = embedded.engine(lab.folder)
    for row in await found.list_containers(all=True):
        await found.remove_container(row.id, force=True, volumes=False)

    lab.require_gone()
    assert list((lab.folder / "embedded" / "containers").glob("*/*")) == []
    id = await lab.created("echo well")
    assert (await lab.ran(id))[1] == "well\n"


@pytest.mark.parametrize("more", [(), ("halfway",)])
async def test_nothing_stays_mounted_when_server_monitor_and_container_are_all_killed(
    lab: Lab, more: tuple[str, ...]
) -> None:
    """B107."""
    server = subprocess.Popen(  # noqa: ASYNC220  one that is killed
        [sys.executable, "-c", SERVER, str(lab.folder), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        id = server.stdout.readline().strip()
        record = lab.engine.house.containers.read(id)
        assert record.first is not None
        assert record.monitor is not None
        for one in (server.pid, record.monitor.pid, record.first.pid):
            os.kill(one, signal.SIGKILL)
    finally:
        server.kill()
        server.communicate()
    assert len(lab.disks()) == 1 + len(more)

    found = embedded.engine(lab.folder)
    assert (await found.inspect_container(id)).status == "exited"

    lab.require_gone()
    await found.start_container(id)
    assert overlay.is_mounted(lab.image(id).with_name("disk"))
    assert disk.is_up(lab.image(id).parent)
