"""Does a level of isolation mean the same on every engine, and is it refused where a wall of it is missing?

SPEC B111, B112, B113.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import levels
from codomyrmex_containerization.engines.docker import shapes, walls
from codomyrmex_containerization.engines.docker.engine import DockerEngine
from codomyrmex_containerization.engines.podman.engine import PodmanEngine
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, Limits
from codomyrmex_containerization.models.engine import Endpoint
from tests.dispatch import harness
from tests.podman import PodmanService

ALL = {"MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True}
REMAPPED = {"SecurityOptions": ["name=seccomp,profile=default", "name=userns"], **ALL}
USUAL = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"], **ALL}
ROOTLESS = {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"], **ALL}
UNFILTERED = {"SecurityOptions": ["name=seccomp,profile=unconfined", "name=userns"], **ALL}
LOOK = "grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status"
_NET_RAW, _MKNOD = 1 << 13, 1 << 27


def completed(info: dict[str, Any], level: Isolation | None, **more: Any) -> ContainerSpec:
    """What becomes of a specification on a daemon that says this of itself."""
    return walls.completed(ContainerSpec("x", isolation=level, **more), walls.of_info(info), engine="docker")


# ------------------------------------------------------------------------------------------------- what a daemon says


def test_strict_on_a_daemon_with_users_of_its_own_has_every_wall() -> None:
    """B112."""
    spec = completed(REMAPPED, "strict", limits=Limits(memory_bytes=64 * 1024**2))
    host = shapes.create_body(spec)["HostConfig"]

    assert (host["ReadonlyRootfs"], host["CapDrop"], host["NetworkMode"]) == (True, ["ALL"], "none")
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 * 1024**2, 10**9, 256)


@pytest.mark.parametrize(
    ("info", "wall"),
    [
        (USUAL, "users of its own"),
        (ROOTLESS, "users of its own"),
        (UNFILTERED, "a filter of system calls"),
        ({**REMAPPED, "PidsLimit": False}, "limits"),
        ({**REMAPPED, "MemoryLimit": None}, "limits"),
        ({}, "a filter of system calls"),
    ],
)
def test_strict_names_the_wall_that_a_daemon_has_not(info: dict[str, Any], wall: str) -> None:
    """B112."""
    with pytest.raises(errors.Unsupported, match=f"isolation='strict' cannot be had .*missing: {wall}") as caught:
        completed(info, "strict")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("info", "wall"),
    [(UNFILTERED, "a filter of system calls"), ({**USUAL, "PidsLimit": False}, "a limit of processes")],
)
def test_standard_names_the_wall_that_a_daemon_has_not(info: dict[str, Any], wall: str) -> None:
    """B112."""
    with pytest.raises(errors.Unsupported, match=f"isolation='standard' cannot be had on docker.*{wall}"):
        completed(info, "standard")


def test_standard_asks_for_the_walls_that_a_daemon_does_not_put_up_by_itself() -> None:
    """B112."""
    host = shapes.create_body(completed(USUAL, "standard", cap_add=("cap_net_raw",), cap_drop=("KILL",)))["HostConfig"]

    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["CapDrop"] == ["KILL", "AUDIT_WRITE", "MKNOD"]
    assert host["PidsLimit"] == levels.PIDS


def test_minimal_is_no_less_than_what_a_daemon_always_does() -> None:
    host = shapes.create_body(completed(UNFILTERED, "minimal"))["HostConfig"]

    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert "NET_RAW" in host["CapDrop"]


def test_without_a_level_nothing_is_asked_for() -> None:
    host = shapes.create_body(completed({}, None))["HostConfig"]

    assert not {"SecurityOpt", "StorageOpt"} & set(host)
    assert host["CapDrop"] == []


@pytest.mark.parametrize(
    ("level", "more", "said"),
    [
        ("minimal", {"privileged": True}, "exclude each other"),
        ("standard", {"privileged": True}, "exclude each other"),
        ("standard", {"network": "host"}, "a network of its own"),
        ("standard", {"network": "container:db"}, "a network of its own"),
        ("strict", {"network": "bridge"}, "no network"),
        ("strict", {"cap_add": ("CHOWN",)}, "no capabilities"),
    ],
)
def test_what_contradicts_a_level_is_refused_beside_it(level: Isolation, more: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said):
        completed(REMAPPED, level, **more)


def test_network_whose_name_begins_like_the_hosts_is_a_network() -> None:
    assert completed(USUAL, "standard", network="hosting").network == "hosting"


# ----------------------------------------------------------------------------------------------------------- real ones


@pytest.fixture
async def docker(docker_socket: Path) -> AsyncIterator[DockerEngine]:
    """The real engine."""
    made = DockerEngine(Endpoint("docker", f"unix://{docker_socket}", "tests"), timeout_seconds=60)
    yield made
    await made.aclose()


@pytest.fixture
async def podman(podman_service: PodmanService) -> AsyncIterator[PodmanEngine]:
    """The real engine."""
    made = PodmanEngine(Endpoint("podman", podman_service.url, "tests", kind="podman"), timeout_seconds=60)
    yield made
    await made.aclose()


async def seen(engine: DockerEngine, spec: ContainerSpec, look: Callable[[str], Awaitable[None]]) -> dict[str, str]:
    """Run a container and return what its program saw of itself."""
    from codomyrmex_containerization.engines import base

    id = await engine.create_container(spec)
    try:
        await engine.start_container(id)
        await engine.wait_container(id)
        await look(id)
        async with engine.container_logs(id, base.LogQuery(tail=20), tty=False) as frames:
            said = b"".join([frame.data async for frame in frames]).decode()
    finally:
        await engine.remove_container(id, force=True, volumes=True)
    return {name: value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}


async def _has_standards_walls(engine: DockerEngine, image: str) -> None:
    async def look(id: str) -> None:
        details = await engine.container_details(id)
        assert details.security.no_new_privileges
        assert details.limits.pids_limit == levels.PIDS

    spec = ContainerSpec(image, command=("sh", "-c", LOOK), network="none", isolation="standard")
    found = await seen(engine, spec, look)

    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")
    assert int(found["CapBnd"], 16) & (_NET_RAW | _MKNOD) == 0


async def test_standard_stands_on_docker(docker: DockerEngine, busybox_image: str) -> None:
    """B112."""
    await _has_standards_walls(docker, busybox_image)


async def test_standard_stands_on_podman(podman: PodmanEngine, podman_service: PodmanService) -> None:
    """B112."""
    await _has_standards_walls(podman, podman_service.image)


async def test_strict_on_docker_is_had_or_refused_by_what_the_daemon_says(
    docker: DockerEngine, busybox_image: str
) -> None:
    """B112."""
    spec = ContainerSpec(busybox_image, command=("true",), isolation="strict")
    raw = await docker._call(lambda: docker._client().info(), "looking")
    if walls.of_info(raw).users:
        await docker.remove_container(await docker.create_container(spec), force=True, volumes=True)
        return
    with pytest.raises(errors.Unsupported, match="users of its own"):
        await docker.create_container(spec)


async def test_strict_on_podman_is_refused(podman: PodmanEngine, podman_service: PodmanService) -> None:
    with pytest.raises(errors.Unsupported, match="isolation='strict' cannot be had on podman"):
        await podman.create_container(ContainerSpec(podman_service.image, command=("true",), isolation="strict"))


async def test_disk_space_is_held_by_docker_or_refused(docker: DockerEngine, busybox_image: str) -> None:
    """B106."""
    limits = Limits(disk_bytes=16 * 1024**2)
    spec = ContainerSpec(busybox_image, command=("dd", "if=/dev/zero", "of=/x", "bs=1M", "count=32"), limits=limits)
    try:
        id = await docker.create_container(spec)
    except errors.Unsupported as error:
        said = error.hint or ""
        id = ""
    if not id:
        assert "engine='embedded'" in said
        return
    try:
        await docker.start_container(id)
        assert await docker.wait_container(id) != 0, "Docker took the limit, and does not hold it"
    finally:
        await docker.remove_container(id, force=True, volumes=True)


async def test_disk_space_is_refused_on_podman(podman: PodmanEngine, podman_service: PodmanService) -> None:
    """B106."""
    spec = ContainerSpec(podman_service.image, command=("true",), limits=Limits(disk_bytes=16 * 1024**2))
    with pytest.raises(errors.Unsupported, match="cannot limit disk"):
        await podman.create_container(spec)


@pytest.mark.parametrize("limits", [Limits(disk_read_bytes_per_second=10**6), Limits(disk_bytes=10**8)])
async def test_neither_rate_nor_space_of_the_disk_is_silently_left_out_of_an_update(
    docker: DockerEngine, busybox_image: str, limits: Limits
) -> None:
    id = await docker.create_container(ContainerSpec(busybox_image, command=("true",), network="none"))
    try:
        with pytest.raises(errors.Unsupported, match="cannot be changed"):
            await docker.update_container(id, limits)
    finally:
        await docker.remove_container(id, force=True, volumes=True)


async def test_rates_of_the_disk_are_refused_on_docker(docker: DockerEngine, busybox_image: str) -> None:
    spec = ContainerSpec(busybox_image, command=("true",), limits=Limits(disk_write_bytes_per_second=10**6))
    with pytest.raises(errors.Unsupported, match="rates of the disk"):
        await docker.create_container(spec)


# ---------------------------------------------------------------------------------------------- the setting, the policy


async def test_setting_is_the_level_of_calls_that_name_none(docker_socket: Path, busybox_image: str) -> None:
    """B113."""
    async with harness.opened(isolation="strict") as house:
        refused = await house.fails("unsupported", "container_run", image=busybox_image, command=["true"])
        named = await house.ok(
            "container_run", image=busybox_image, command=["sh", "-c", LOOK], isolation="standard", network="none"
        )

    assert "isolation='strict' cannot be had" in refused.text
    assert "NoNewPrivs:\t1" in named["stdout"]


async def test_minimal_is_refused_until_the_policy_allows_it(docker_socket: Path, busybox_image: str) -> None:
    """B113."""
    call = {"image": busybox_image, "command": ["true"], "network": "none"}
    async with harness.opened() as house:
        refused = await house.fails("refused", "container_run", call, isolation="minimal")
    async with harness.opened(isolation="minimal") as house:
        by_setting = await house.fails("refused", "container_run", call)
    async with harness.opened(**{"policy.allow_minimal_isolation": True}) as house:
        allowed = await house.ok("container_run", call, isolation="minimal")

    for outcome in (refused, by_setting):
        assert outcome.error is not None
        assert "policy.allow_minimal_isolation" in (outcome.error.hint or "")
    assert allowed["exit_code"] == 0
