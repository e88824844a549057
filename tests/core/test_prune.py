"""What does pruning find, and does it remove just what was planned? Never all that is found: others use this engine too."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from codomyrmex_containerization.context import no_progress
from codomyrmex_containerization.core import prune
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.storage import NetworkSpec, PruneKind, VolumeSpec
from tests.backends import DockerCommandLine
from tests.dispatch import harness


@dataclass(slots=True)
class Heap:
    """What others left behind in an engine, all of names with a beginning of their own."""

    docker: DockerCommandLine
    image: str
    label: str
    name: str
    engine: guard.GuardedEngine
    images: list[str] = field(default_factory=list)

    def container(self, name: str, *options: str, command: str = "true") -> str:
        arguments = ["--name", f"{self.name}-{name}", "--label", self.label, *options, self.image, "sh", "-c", command]
        return self.docker(["run", "--detach", *arguments]).stdout.strip()

    def ended(self, name: str, *options: str, command: str = "true") -> str:
        id = self.container(name, *options, command=command)
        self.docker(["wait", id])
        return id

    def untagged(self) -> str:
        text = f"FROM {self.image}\nLABEL made={uuid.uuid4().hex} {self.label}\n"
        made = self.docker(["build", "--quiet", "-"], stdin=text.encode()).stdout.strip()
        self.images.append(made)
        return made

    async def plan(self, kind: PruneKind, *, older_than_seconds: float = 0) -> prune.PrunePlan:
        """What pruning finds, without what is not of this heap."""
        found = await prune.plan(self.engine, kind, older_than_seconds=older_than_seconds)
        own = tuple(one for one in found.objects if one.name.startswith(self.name) or one.id in self.images)
        return replace(found, objects=own)

    async def carry_out(self, plan: prune.PrunePlan) -> prune.Pruned:
        assert all(one.name.startswith(self.name) or one.id in self.images for one in plan.objects)
        return await prune.carry_out(self.engine, plan, progress=no_progress)

    def clear(self) -> None:
        for kind, options in (("container", ["--all"]), ("volume", []), ("network", [])):
            found = self.docker([kind, "ls", "--quiet", *options, "--filter", f"name={self.name}"]).stdout.split()
            if found:
                self.docker([kind, "rm", "--force", *found] if kind == "container" else [kind, "rm", *found])
        for image in self.images:
            self.docker(["rmi", "--force", image], check=False)


@pytest.fixture
async def heap(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> AsyncIterator[Heap]:
    async with harness.opened(engine="docker") as house:
        engine = await house.application.engines.pick()
        made = Heap(docker_cli, busybox_image, session_label, f"cxc-prune-{uuid.uuid4().hex[:8]}", engine)
        yield made
        made.clear()


def names(objects: tuple[prune.Unused, ...], heap: Heap) -> set[str]:
    return {one.name.removeprefix(f"{heap.name}-") for one in objects}


# ---------------------------------------------------------------------------------------------------------- containers


async def test_stopped_containers_go_and_running_ones_stay(heap: Heap) -> None:
    heap.ended("done", command="head -c 4096 /dev/zero > /written")
    heap.container("runs", command="sleep 3600")
    plan = await heap.plan("containers")
    assert names(plan.objects, heap) == {"done"}
    assert plan.bytes is not None
    assert plan.bytes >= 4096
    done = await heap.carry_out(plan)
    assert names(done.removed, heap) == {"done"}
    assert done.freed_bytes == plan.bytes
    assert not (await heap.plan("containers")).objects


async def test_container_that_was_only_just_made_is_left_to_whoever_starts_it(heap: Heap) -> None:
    heap.docker(["create", "--name", f"{heap.name}-new", "--label", heap.label, heap.image, "true"])
    assert not (await heap.plan("containers")).objects


async def test_container_that_was_started_after_the_plan_stays(heap: Heap) -> None:
    id = heap.ended("again", command="[ -e /second ] && sleep 3600; touch /second")
    heap.ended("other")
    plan = await heap.plan("containers")
    heap.docker(["start", id])
    done = await heap.carry_out(plan)
    assert names(done.removed, heap) == {"other"}
    (kept,) = done.kept
    assert kept.object.id == id
    assert "running" in kept.reason
    assert heap.docker(["inspect", "--format", "{{.State.Running}}", id]).stdout.strip() == "true"


async def test_object_that_is_gone_meanwhile_is_said(heap: Heap) -> None:
    id = heap.ended("gone")
    plan = await heap.plan("containers")
    heap.docker(["rm", id])
    done = await heap.carry_out(plan)
    assert not done.removed
    assert [one.reason for one in done.kept] == ["it was gone already"]


async def test_container_of_this_run_is_known_as_its_own(heap: Heap) -> None:
    heap.ended("others")
    id = await heap.engine.create_container(replace(harness.spec(heap.image, "true"), name=f"{heap.name}-own"))
    await heap.engine.start_container(id)
    await heap.engine.wait_container(id)
    plan = await heap.plan("containers")
    assert {one.name.removeprefix(f"{heap.name}-"): one.own for one in plan.objects} == {"own": True, "others": False}
    await heap.carry_out(plan)
    assert not heap.engine.owns("container", id)


async def test_what_is_younger_than_asked_for_stays(heap: Heap) -> None:
    heap.ended("done")
    await heap.engine.create_volume(VolumeSpec(f"{heap.name}-data"))
    await heap.engine.create_network(NetworkSpec(f"{heap.name}-back"))
    heap.untagged()
    for kind in ("containers", "volumes", "networks"):
        assert not (await heap.plan(kind, older_than_seconds=3600)).objects
        assert (await heap.plan(kind)).objects


# -------------------------------------------------------------------------------------------------- images and the rest


async def test_untagged_images_without_users_go(heap: Heap) -> None:
    free, used, named = heap.untagged(), heap.untagged(), heap.untagged()
    heap.docker(["create", "--name", f"{heap.name}-user", "--label", heap.label, used, "true"])
    plan = await heap.plan("images")
    assert {one.id for one in plan.objects} == {free, named}
    heap.docker(["tag", named, f"localhost/{heap.name}:1"])
    done = await heap.carry_out(plan)
    assert [one.id for one in done.removed] == [free]
    assert [one.object.id for one in done.kept] == [named]


async def test_volumes_without_users_go_and_their_sizes_are_counted(heap: Heap) -> None:
    for name in ("free", "used"):
        await heap.engine.create_volume(VolumeSpec(f"{heap.name}-{name}"))
    fill = ["run", "--rm", "--label", heap.label, "--volume", f"{heap.name}-free:/data", heap.image]
    heap.docker([*fill, "sh", "-c", "head -c 10000 /dev/zero > /data/file"])
    heap.ended("user", "--volume", f"{heap.name}-used:/data")
    plan = await heap.plan("volumes")
    assert names(plan.objects, heap) == {"free"}
    assert plan.bytes == 10_000
    done = await heap.carry_out(plan)
    assert done.freed_bytes == 10_000
    assert not heap.engine.owns("volume", f"{heap.name}-free")


async def test_network_that_a_stopped_container_came_to_use_stays(heap: Heap) -> None:
    for name in ("free", "used"):
        await heap.engine.create_network(NetworkSpec(f"{heap.name}-{name}"))
    plan = await heap.plan("networks")
    assert names(plan.objects, heap) == {"free", "used"}
    heap.docker(["create", "--name", f"{heap.name}-user", "--network", f"{heap.name}-used", heap.image, "true"])
    done = await heap.carry_out(plan)
    assert names(done.removed, heap) == {"free"}
    assert names(tuple(one.object for one in done.kept), heap) == {"used"}


async def test_networks_of_the_engine_itself_are_not_found(heap: Heap) -> None:
    found = await prune.plan(heap.engine, "networks", older_than_seconds=0)
    assert not {one.name for one in found.objects} & {"bridge", "host", "none"}


async def test_build_cache_is_found_as_one_thing(heap: Heap) -> None:
    found = await prune.plan(heap.engine, "build_cache", older_than_seconds=0)
    assert [one.id for one in found.objects] in ([], ["build_cache"])
    cache = await heap.engine.build_cache()
    assert 0 <= cache.unused_bytes <= cache.bytes


async def test_empty_plan_removes_nothing(heap: Heap) -> None:
    for kind in ("containers", "images", "volumes", "networks", "build_cache"):
        done = await prune.carry_out(heap.engine, prune.PrunePlan(kind, (), 0), progress=no_progress)
        assert (done.removed, done.kept) == ((), ())


async def test_digest_changes_with_the_objects(heap: Heap) -> None:
    heap.ended("one")
    before = await heap.plan("containers")
    assert before.digest == (await heap.plan("containers")).digest
    heap.ended("two")
    assert before.digest != (await heap.plan("containers")).digest
