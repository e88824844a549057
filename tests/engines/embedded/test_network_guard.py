"""Do the walls between networks, their host and the world stand when a container has every right over its own network?"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.storage import NetworkSpec
from tests import backends
from tests.engines.embedded import networking, other_host
from tests.engines.embedded.networking import Bench

OPEN = {"published port", "way out", "names outside"}
SHUT = {"host's loopback", "container's own address from outside", "host's other address from inside"}


@pytest.fixture
def bridges(tmp_path: Path) -> Iterator[Bench]:
    """Networks on this host."""
    networking.need_bridges()
    with networking.bench(tmp_path) as made:
        yield made


def attacked(data: Path, wall: str) -> tuple[set[str], list[str]]:
    """What is reached on a host of our own, and what was left there in the end."""
    networking.need_bridges()
    if shutil.which("nft", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        backends.missing("no program nft", enable="apt-get install nftables")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=other_host.attack, args=(data, wall, there))
    worker.start()
    there.close()
    try:
        reached, left = here.recv(), here.recv()
    finally:
        worker.join()
    return {one for one, so in reached.items() if so}, left


@pytest.mark.attack("networks")
@pytest.mark.parametrize("wall", ["nft", "iptables"])
def test_container_that_rules_its_network_gets_no_further_and_nobody_gets_in(tmp_path: Path, wall: str) -> None:
    assert attacked(tmp_path, wall) == (OPEN, [])


def test_attacks_get_through_without_the_walls(tmp_path: Path) -> None:
    reached, _ = attacked(tmp_path, "none")
    assert reached == OPEN | SHUT


@pytest.mark.attack("networks")
@pytest.mark.parametrize(
    "alias", ["", " ", "a b", "a,b", "x\n0000 198.51.100.9  first", "ä", "..", "-x", "a\x00"], ids=repr
)
def test_alias_that_would_be_read_as_more_than_a_name_is_refused(bridges: Bench, alias: str) -> None:
    bridges.networks.create(NetworkSpec("some"))
    container, attached = bridges.up("none")
    with pytest.raises(errors.InvalidArgument):
        bridges.networks.connect(container, "some", aliases=(alias,), name="one")
    with pytest.raises(errors.InvalidArgument):
        bridges.networks.set_up("0" * 64, name="one", networks=[("some", (alias,))], ports=())
    assert bridges.networks.attached(container) == attached
    assert bridges.networks.attached("0" * 64) is None
