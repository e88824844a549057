"""Do disk space, rates and levels reach the embedded engine by tools, settings and the command line, and is it told what holds them?

SPEC B105, B109, B113.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import bandwidth, idmaps, loops
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import Limits
from tests import backends, embedded
from tests.dispatch import harness

FILL = ["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=64; true"]


@pytest.fixture
def engine(
    private_folders: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedEngine]:
    """The engine that the tools use, with a base image."""
    if not loops.are_there():
        backends.missing("no loop devices")
    with embedded.own_folders() as made:
        folder = tmp_path_factory.mktemp("image")
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        embedded.base_image(made, folder)
        yield made


def call(**more: Any) -> dict[str, Any]:
    """The arguments of a container without a network."""
    return {"image": embedded.IMAGE, "network": "none", "engine": "embedded", **more}


async def test_disk_is_an_argument(engine: EmbeddedEngine) -> None:
    """B105."""
    async with harness.opened(engines=("embedded",)) as house:
        answer = await house.ok("container_run", call(command=FILL, disk="16m"))

    assert "No space left on device" in answer["stderr"]


@pytest.mark.parametrize("disk", ["none", "-1", "1k", 0])
async def test_disk_that_is_no_size_is_refused(engine: EmbeddedEngine, disk: object) -> None:
    async with harness.opened(engines=("embedded",)) as house:
        refused = await house.fails("invalid_argument", "container_run", call(command=FILL, disk=disk))

    assert "disk" in refused.text


async def test_inspection_tells_what_holds_each_limit(engine: EmbeddedEngine) -> None:
    """B109."""
    rates = {"disk_read": "8m", "disk_write": "4m"}
    try:
        bandwidth.require(engine.house.folders.data, Limits(disk_read_bytes_per_second=10**6))
    except errors.Unsupported:
        rates = {}
    async with harness.opened(engines=("embedded",)) as house:
        wanted = call(command=["sleep", "1000"], detach=True, disk="16m", pids_limit=20, limits=rates)
        made = await house.ok("container_run", wanted)
        shown = (await house.ok("container_inspect", container=made["id"], engine="embedded"))["limits"]

    assert (shown["disk_bytes"], shown["pids_limit"]) == (16 * 1024**2, 20)
    held = dict(one.split("=") for one in shown["held_by"].split())
    assert held.pop("disk_bytes") == "filesystem"
    assert set(held.values()) == {"cgroup"}
    assert len(held) == 1 + len(rates)


async def test_setting_strict_holds_for_a_call_that_names_no_level(engine: EmbeddedEngine) -> None:
    """B113."""
    try:
        idmaps.require(engine.house.folders.data)
    except errors.Unsupported as error:
        backends.missing(error.message)
    look = ["sh", "-c", "cat /proc/self/uid_map; grep CapEff /proc/self/status"]
    async with harness.opened(engines=("embedded",), isolation="strict") as house:
        strict = await house.ok("container_run", call(command=look))
        standard = await house.ok("container_run", call(command=look, isolation="standard"))

    assert int(strict["stdout"].split()[1]) >= 1 << 30
    assert strict["stdout"].split()[-1] == "0" * 16
    assert standard["stdout"].split()[1] == "0"
