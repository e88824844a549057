"""Is a container held to the rates of the disk that it was given? Seen in the kernel's own counters.

SPEC B108.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import bandwidth, groups
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import ContainerSpec, Limits
from codomyrmex_containerization.models.details import ExecSpec
from tests import backends, embedded

MIB = 1024**2
RATES = Limits(disk_read_bytes_per_second=8 * MIB, disk_write_bytes_per_second=2 * MIB)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EmbeddedEngine]:
    """An engine of the test's own, where the kernel can hold it to rates."""
    embedded.require()
    try:
        bandwidth.require(tmp_path, RATES)
    except errors.Unsupported as error:
        backends.missing(error.message)
    engine = embedded.engine(tmp_path)
    try:
        embedded.base_image(engine, tmp_path)
        yield engine
    finally:
        embedded.swept(engine)


def counted(place: groups.Place, device: str) -> int:
    """How many bytes the kernel has let through to a disk for a group."""
    name = "io.stat" if place.is_v2 else "blkio.throttle.io_service_bytes"
    for line in (place.directory / name).read_text().splitlines():
        words = line.split()
        if words[0] == device and not place.is_v2 and words[1] == "Write":
            return int(words[2])
        if words[0] == device and place.is_v2:
            return next(int(one.removeprefix("wbytes=")) for one in words if one.startswith("wbytes="))
    return 0


async def run(engine: EmbeddedEngine, id: str, *command: str) -> str:
    """Run a command in a container and return what it said."""
    made = await engine.create_exec(id, ExecSpec(command, {}))
    async with engine.start_exec(made, stdin=None) as attachment:
        return b"".join([frame.data async for frame in attachment.frames()]).decode()


@pytest.mark.parametrize("disk_bytes", [None, 64 * MIB])
async def test_direct_writes_of_a_container_go_no_faster_than_its_rate(
    engine: EmbeddedEngine, disk_bytes: int | None
) -> None:
    """B108."""
    limits = Limits(disk_bytes=disk_bytes, disk_write_bytes_per_second=2 * MIB, disk_read_bytes_per_second=8 * MIB)
    spec = ContainerSpec(embedded.IMAGE, command=("sleep", "1000"), network="none", limits=limits)
    id = await engine.create_container(spec)
    await engine.start_container(id)
    details = await engine.container_details(id)
    folder = engine.house.containers.folder(id)

    places = groups.of_process(details.pid)
    place = places.get("io") or places["blkio"]
    said = await run(engine, id, "dd", "if=/dev/zero", "of=/file", "bs=256k", "count=24", "oflag=direct")

    assert "24+0 records out" in said
    assert bandwidth.is_held(details.pid, limits, folder)
    rates = bandwidth.resources(limits, folder)["blockIO"]["throttleWriteBpsDevice"]
    assert [one["rate"] for one in rates] == [2 * MIB] * (2 if disk_bytes else 1)
    nearest = f"{rates[-1]['major']}:{rates[-1]['minor']}"
    assert counted(place, nearest) >= 6 * MIB, "the kernel did not see the writes as this container's"


@pytest.mark.parametrize("limits", [Limits(disk_read_bytes_per_second=1), Limits(disk_write_bytes_per_second=1)])
async def test_rate_of_next_to_nothing_is_refused(engine: EmbeddedEngine, limits: Limits) -> None:
    spec = ContainerSpec(embedded.IMAGE, command=("true",), limits=limits)

    with pytest.raises(errors.InvalidArgument, match="too little"):
        await engine.create_container(spec)


async def test_rate_cannot_be_changed_later(engine: EmbeddedEngine) -> None:
    id = await engine.create_container(ContainerSpec(embedded.IMAGE, command=("true",), network="none"))

    with pytest.raises(errors.Unsupported, match="disk_read and disk_write cannot be changed"):
        await engine.update_container(id, RATES)


def test_rate_is_refused_where_the_data_lies_on_no_disk() -> None:
    """B108."""
    with pytest.raises(errors.Unsupported, match="cannot limit the rate of the disk here"):
        bandwidth.require(Path("/dev/shm"), RATES)
