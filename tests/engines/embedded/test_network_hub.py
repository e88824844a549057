"""Do networks of an ordinary user's containers lead where root's do, and nowhere else, and is nothing left of them?"""

from __future__ import annotations

import functools
import multiprocessing
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import PortMapping
from codomyrmex_containerization.models.storage import NetworkSpec
from tests import backends, leftovers, podman_user
from tests.engines import contract_engines
from tests.engines.contract import LABELS, Bench, eventually
from tests.engines.embedded import hub_host, networking
from tests.engines.embedded.networking import LOOPBACK
from tests.ordinary_user import OrdinaryUser

OPEN = {
    "published port",
    "port published everywhere",
    "published datagrams",
    "way out",
    "names outside",
    "neighbour in the network",
}


def told(work: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
    """What a process of its own tells, in two parts."""
    networking.need_bridges()
    for program in ("nft", "slirp4netns"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            backends.missing(f"no program {program}", enable="apt-get install nftables slirp4netns")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=work, args=(*arguments, there))
    worker.start()
    there.close()
    try:
        return here.recv(), here.recv()
    finally:
        worker.join()


def attacked(data: Path, wall: str) -> tuple[set[str], list[str]]:
    """What is reached, and what programs are left in the end."""
    reached, left = told(hub_host.attack, data, wall)
    return {one for one, so in reached.items() if so}, left


@pytest.mark.attack("networks")
@pytest.mark.parametrize("wall", ["nft", "iptables"])
def test_container_of_an_ordinary_user_gets_no_further_and_nobody_gets_in(tmp_path: Path, wall: str) -> None:
    """SPEC B96."""
    assert attacked(tmp_path, wall) == (OPEN, [])


def test_attacks_on_an_ordinary_users_networks_get_through_without_the_walls(tmp_path: Path) -> None:
    reached, _ = attacked(tmp_path, "none")
    assert reached == OPEN | {"hub's loopback"}


def test_missing_programs_are_named_to_an_ordinary_user(tmp_path: Path) -> None:
    """SPEC B98."""
    without_netavark, without_slirp = told(hub_host.describe, tmp_path)
    assert without_netavark["bridge"] == ""
    assert "apt-get install netavark" in without_netavark["created"]
    assert "apt-get install slirp4netns" in without_slirp["created"]


# -------------------------------------------------------------------------------------------------------- by the engine

DATA = "hub"
ANSWERING = ("sh", "-c", "while true; do nc -l -p 8080 -e echo reached; done")


@pytest.fixture
async def user(session_ordinary_user: OrdinaryUser) -> OrdinaryUser:
    """The ordinary user."""
    networking.need_bridges()
    networking.need("slirp4netns")
    return session_ordinary_user


@pytest.fixture
async def bench(user: OrdinaryUser) -> AsyncIterator[Bench]:
    """An engine of the ordinary user's."""
    made = await opened(user)
    try:
        yield made
    finally:
        await made.aclose()


async def opened(user: OrdinaryUser) -> Bench:
    """One more server's engine of the same folders."""
    engine = user.engine(DATA)
    return Bench(engine, await engine.info(), user.base_image(engine), user.shared(DATA), contract_engines.dial)


async def network(bench: Bench, **more: Any) -> str:
    """Make a network; its name."""
    name = bench.network()
    await bench.engine.create_network(NetworkSpec(name, labels=LABELS, **more))
    return name


async def port_of(bench: Bench, container: str) -> int:
    """The host's port of a container that publishes one."""
    return (await bench.engine.inspect_container(container)).ports[0].host_port or 0


async def answers(port: int, *, host: str = LOOPBACK) -> bytes:
    """What is answered on a port of this host, once something is."""
    return await anyio.to_thread.run_sync(lambda: networking.dial(port, host=host))


def programs(user: OrdinaryUser) -> list[str]:
    """The user's programs behind networks that run now."""
    found = leftovers.processes(leftovers.naming(user.folder / "run" / DATA))
    names = [Path(f"/proc/{one}/comm").read_text().strip() for one in found]
    return sorted(one for one in names if one in ("slirp4netns", "aardvark-dns"))


def mounts(user: OrdinaryUser, bench: Bench) -> list[str]:
    """The network namespaces that are kept for the user."""
    worker = getattr(bench.engine, "_worker")._process.pid  # noqa: B009 - not declared with the contract
    lines = Path(f"/proc/{worker}/mountinfo").read_text().splitlines()
    return [line for line in lines if f"{user.folder}/run/{DATA}" in line and " - nsfs " in line]


async def test_containers_of_an_ordinary_user_meet_by_name_and_publish_ports(user: OrdinaryUser, bench: Bench) -> None:
    """SPEC B94, SPEC B95."""
    name = await network(bench)
    server = await bench.started(
        *ANSWERING, name=(called := bench.fresh()), network=name, ports=(PortMapping(8080, host_ip=LOOPBACK),)
    )
    client = await bench.started(network=name)
    await eventually(
        lambda: bench.exec(client, "nc", "-w", "5", called, "8080", stdin=b""), lambda ran: ran.stdout == b"reached\n"
    )
    port = await port_of(bench, server)
    assert await answers(port) == b"reached\n"
    assert programs(user) == ["aardvark-dns", "slirp4netns"]
    with pytest.raises(errors.Conflict, match=str(port)):
        await bench.started(network=name, ports=(PortMapping(8080, host_ip=LOOPBACK, host_port=port),))
    # The same number at another address of the host's is another port.
    other = await bench.started(
        *ANSWERING, network=name, ports=(PortMapping(8080, host_ip="127.0.0.2", host_port=port),)
    )
    assert await answers(port, host="127.0.0.2") == b"reached\n"
    for one in (client, server):
        await bench.engine.remove_container(one, force=True, volumes=True)
    with socket.create_server((LOOPBACK, port)):
        assert await answers(port, host="127.0.0.2") == b"reached\n"
    await bench.engine.remove_container(other, force=True, volumes=True)
    assert programs(user) == []
    assert mounts(user, bench) == []
    assert not (user.folder / "run" / DATA / "hub").exists()


async def test_containers_of_an_ordinary_user_come_and_go_side_by_side(user: OrdinaryUser, bench: Bench) -> None:
    """SPEC B94, SPEC B95."""
    names = [await network(bench), await network(bench, internal=True)]
    made = [await bench.create(*ANSWERING, network=names[number % 2]) for number in range(6)]
    async with anyio.create_task_group() as tasks:
        for one in made:
            tasks.start_soon(bench.engine.start_container, one)
    found = [(await bench.engine.container_details(one)).networks[0].ip_address for one in made]
    assert len(set(found)) == len(made)
    async with anyio.create_task_group() as tasks:
        for one in made:
            tasks.start_soon(functools.partial(bench.engine.remove_container, one, force=True, volumes=True))
    assert (programs(user), mounts(user, bench)) == ([], [])


async def test_stack_that_died_is_there_again_with_the_next_container(user: OrdinaryUser, bench: Bench) -> None:
    """SPEC B97."""
    name = await network(bench)
    server = await bench.started(*ANSWERING, network=name, ports=(PortMapping(8080, host_ip=LOOPBACK),))
    port = await port_of(bench, server)
    assert await answers(port) == b"reached\n"
    end(user, "slirp4netns")
    assert programs(user) == ["aardvark-dns"]
    await bench.started(network=name)
    assert await answers(port) == b"reached\n"
    assert programs(user) == ["aardvark-dns", "slirp4netns"]


async def test_networks_of_an_ordinary_user_outlive_the_server(user: OrdinaryUser, bench: Bench) -> None:
    """SPEC B95, SPEC B97."""
    first = await opened(user)
    name = await network(bench)
    server = await first.started(*ANSWERING, network=name, ports=(PortMapping(8080, host_ip=LOOPBACK),))
    end(user, "python")
    port = await port_of(bench, server)
    assert await answers(port) == b"reached\n"
    await bench.engine.remove_container(server, force=True, volumes=True)
    assert (programs(user), mounts(user, bench)) == ([], [])
    await first.aclose()


async def test_networks_whose_namespaces_have_gone_are_set_up_anew(user: OrdinaryUser, bench: Bench) -> None:
    """SPEC B95."""
    name = await network(bench)
    server = await bench.started(*ANSWERING, network=name, ports=(PortMapping(8080, host_ip=LOOPBACK),))
    end(user, "")  # the stack, which nobody's namespaces need, goes on
    assert programs(user) == ["slirp4netns"]
    again = await opened(user)
    assert programs(user) == []
    await again.engine.start_container(server)
    assert await answers(await port_of(again, server)) == b"reached\n"
    await again.engine.remove_container(server, force=True, volumes=True)
    assert (programs(user), mounts(user, again)) == ([], [])
    await again.aclose()


def end(user: OrdinaryUser, name: str) -> None:
    """Kill the user's programs of this name; with none, all but stacks."""

    def meant(process: Path) -> bool:
        if process.stat().st_uid not in {one for ids in podman_user.ids_of(user.user) for one in ids}:
            return False
        called = (process / "comm").read_text().strip()
        return called.startswith(name) if name else called != "slirp4netns"

    leftovers.end_processes(meant)
