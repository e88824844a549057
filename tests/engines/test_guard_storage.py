"""Does the guard judge volumes and networks, also those that are there already, and know which ones are this run's?"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.container import Mount
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeSpec
from tests import tally
from tests.backends import DockerCommandLine
from tests.dispatch import harness


@dataclass(slots=True)
class Yard:
    """An engine, a name that nobody else has, and the folder that mounts may use."""

    engine: guard.GuardedEngine
    docker: DockerCommandLine
    image: str
    name: str
    project: Path

    def bind(self, path: str | Path) -> VolumeSpec:
        return VolumeSpec(self.name, options={"type": "none", "o": "bind", "device": str(path)})

    async def read(self) -> str:
        """Mount the volume of this name and return what its file says."""
        spec = replace(
            harness.spec(self.image, "cat", "/mnt/file.txt"), mounts=(Mount("volume", "/mnt", source=self.name),)
        )
        id = await self.engine.create_container(spec)
        try:
            await self.engine.start_container(id)
            await self.engine.wait_container(id)
            return self.docker(["logs", id]).stdout
        finally:
            await self.engine.remove_container(id, force=True, volumes=True)


@pytest.fixture
async def yard(
    docker_cli: DockerCommandLine, busybox_image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Yard]:
    project, scratch, outside = tmp_path / "project", tmp_path / "scratch", tmp_path / "outside"
    for folder in (project / "data", scratch, outside):
        folder.mkdir(parents=True)
    (project / "data" / "file.txt").write_text("inside\n")
    (outside / "file.txt").write_text("outside\n")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(project)
    name = f"cxc-guard-{uuid.uuid4().hex[:8]}"
    async with harness.opened(engine="docker") as house:
        yield Yard(await house.application.engines.pick(), docker_cli, busybox_image, name, project)
    for kind in ("volume", "network"):
        docker_cli([kind, "rm", name], check=False)


def outside_of(yard: Yard) -> Path:
    return yard.project.parent / "outside"


# ------------------------------------------------------------------------------------------------------------ volumes


async def test_volume_that_binds_an_allowed_folder_is_made_and_mounted(yard: Yard) -> None:
    row = await yard.engine.create_volume(yard.bind(yard.project / "data"))
    assert row.options["device"] == str(yard.project / "data")
    assert await yard.read() == "inside\n"


@pytest.mark.attack(tally.PATHS)
@pytest.mark.parametrize("path", ["/etc", "/", "/var/run/docker.sock", "{outside}", "{link}", "{project}/../outside"])
async def test_volume_that_binds_a_folder_elsewhere_is_refused(yard: Yard, path: str) -> None:
    link = yard.project / "link"
    link.symlink_to(outside_of(yard))
    given = path.format(outside=outside_of(yard), link=link, project=yard.project)
    with tally.attempt(), pytest.raises(errors.Refused):
        await yard.engine.create_volume(yard.bind(given))
    assert yard.name not in {row.name for row in await yard.engine.list_volumes()}


async def test_volume_through_a_link_inside_is_made_of_the_path_that_it_leads_to(yard: Yard) -> None:
    (yard.project / "link").symlink_to(yard.project / "data")
    row = await yard.engine.create_volume(yard.bind(yard.project / "link"))
    assert row.options["device"] == str(yard.project / "data")


@pytest.mark.attack(tally.LINKS)
async def test_volume_whose_folder_became_a_link_to_elsewhere_is_not_mounted_any_more(yard: Yard) -> None:
    data = yard.project / "data"
    await yard.engine.create_volume(yard.bind(data))
    data.rename(yard.project / "before")
    data.symlink_to(outside_of(yard))
    with tally.attempt(), pytest.raises(errors.Refused):
        await yard.read()


@pytest.mark.attack(tally.PATHS)
async def test_volume_of_others_that_binds_a_folder_elsewhere_is_not_mounted(yard: Yard) -> None:
    device = f"device={outside_of(yard)}"
    yard.docker(["volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", device, yard.name])
    with tally.attempt(), pytest.raises(errors.Refused):
        await yard.read()


async def test_plain_volume_of_others_is_mounted(yard: Yard) -> None:
    yard.docker(["volume", "create", yard.name])
    assert await yard.read() == ""


async def test_volume_that_is_made_is_labelled_and_owned_until_it_is_gone(yard: Yard) -> None:
    row = await yard.engine.create_volume(VolumeSpec(yard.name, labels={"a": "b"}))
    assert row.labels["a"] == "b"
    assert row.labels[guard.LABEL_LIFETIME] == "detached"
    assert {guard.LABEL_HOST, guard.LABEL_RUN} <= set(row.labels)
    assert yard.engine.owns_volume(row)
    await yard.engine.remove_volume(row.name, force=False)
    assert not yard.engine.owns_volume(row)


async def test_volume_that_could_not_be_made_is_not_owned(yard: Yard) -> None:
    yard.docker(["volume", "create", yard.name])
    with pytest.raises(errors.Conflict):
        await yard.engine.create_volume(VolumeSpec(yard.name))
    assert not yard.engine.owns("volume", yard.name)


# ----------------------------------------------------------------------------------------------------------- networks


async def test_network_that_is_made_is_labelled_and_owned_until_it_is_gone(yard: Yard) -> None:
    row = await yard.engine.create_network(NetworkSpec(yard.name, internal=True))
    assert row.internal
    assert row.labels[guard.LABEL_LIFETIME] == "detached"
    assert yard.engine.owns("network", row.id)
    await yard.engine.remove_network(row.id)
    assert not yard.engine.owns("network", row.id)


@pytest.mark.parametrize("driver", ["host", "macvlan", "ipvlan", "overlay"])
async def test_network_of_the_hosts_cards_is_refused_before_the_engine_is_asked(yard: Yard, driver: str) -> None:
    with pytest.raises(errors.Refused):
        await yard.engine.create_network(NetworkSpec(yard.name, driver))
    assert yard.name not in {row.name for row in await yard.engine.list_networks()}
