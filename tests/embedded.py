"""Which embedded engine do the tests use? One with folders of its own, and a base image made of a static busybox."""

from __future__ import annotations

import os
import select
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codomyrmex_containerization import process
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import folders, objects, tiers
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.engine import Endpoint
from tests import backends

IMAGE = "localhost/cxc-embedded-base:1"
TIMEOUT_SECONDS = 60.0
_CONFIG = objects.ImageConfig(env=("PATH=/usr/local/bin:/usr/bin:/bin",), command=("sh",))


def require(tier: tiers.Tier | None = None) -> None:
    """Skip, loudly, where it cannot run."""
    if os.geteuid() != 0:
        backends.missing("the embedded engine's tests need root")
    for program in ("conmon", "crun") if tier != "bare" else ():
        if process.find(program) is None:
            backends.missing(f"no {program}")


def engine(folder: Path, *, tier: tiers.Tier | None = None) -> EmbeddedEngine:
    """Return an engine with folders of its own."""
    require(tier)
    data, run = folder / "embedded", folder / "run"
    endpoint = Endpoint("embedded", f"file://{data}", "the tests", kind="embedded")
    return EmbeddedEngine(endpoint, objects.Folders(data, run), timeout_seconds=TIMEOUT_SECONDS, tier=tier)


def base_image(engine: EmbeddedEngine, folder: Path) -> str:
    """Import the base image and return its name."""
    rootfs = folder / "rootfs.tar"
    rootfs.write_bytes(backends.root_filesystem(backends.static_busybox()))
    engine.house.images.import_rootfs(rootfs, tag=IMAGE, config=_CONFIG)
    return IMAGE


async def pushed(engine: base.Engine, image: str, target: str) -> base.Transfer:
    """Push an image and return what was done."""
    async with engine.push_image(image, target) as steps:
        found = [step.done async for step in steps]
    assert found[-1] is not None
    return found[-1]


@contextmanager
def own_folders() -> Iterator[EmbeddedEngine]:
    """The engine that a server of this test uses, by the folders of its environment; what it has left is taken away afterwards."""
    require()
    data = Path(os.environ["CODOMYRMEX_CONTAINERIZATION_DATA_DIR"]) / "embedded"
    found = folders.of(data, os.environ)
    engine = EmbeddedEngine(
        Endpoint("embedded", f"file://{data}", "the tests", kind="embedded"), found, timeout_seconds=TIMEOUT_SECONDS
    )
    try:
        yield engine
    finally:
        swept(engine)
        shutil.rmtree(found.run, ignore_errors=True)


def wait_for_revivals(engine: EmbeddedEngine) -> None:
    """Wait until what an engine had to start when it was opened runs."""
    asked = engine._revivals
    while asked is not None and asked() is None:
        select.select((), (), (), 0.005)


def swept(engine: EmbeddedEngine) -> None:
    """Take away whatever an engine of the tests has left, mounts before folders."""
    house = engine.house
    wait_for_revivals(engine)
    for record in house.containers.all():
        house.remove(record.id, force=True, with_volumes=True)
    for id in house.containers.ids():  # those whose records were damaged
        house.take_down(id, house.containers.folder(id))
    house.networks.recover(())
