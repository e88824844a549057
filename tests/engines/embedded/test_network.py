"""Do networks of the embedded engine lead where they should, and nowhere else, and is nothing left of them?"""

from __future__ import annotations

import ipaddress
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import netns, network, network_subnets, objects
from codomyrmex_containerization.models.container import PortMapping
from codomyrmex_containerization.models.storage import NetworkSpec
from tests import tally
from tests.engines.embedded import networking
from tests.engines.embedded.networking import LOOPBACK, Bench, dial


@pytest.fixture
def plain(tmp_path: Path) -> network.Networks:
    """Networks that only definitions are asked of."""
    return network.Networks(objects.Folders(tmp_path / "data", tmp_path / "run"), engine="embedded")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Networks on this host."""
    networking.need_namespaces()
    with networking.bench(tmp_path) as made:
        yield made


@pytest.fixture
def leading_out(bench: Bench) -> Bench:
    """Networks on this host with the program behind the network bridge."""
    networking.need("slirp4netns")
    return bench


@pytest.fixture
def bridges(bench: Bench) -> Bench:
    """Networks on this host with the programs behind created networks."""
    networking.need_bridges()
    return bench


# ---------------------------------------------------------------------------------------------------------- definitions


def test_three_networks_are_the_engines_own(plain: network.Networks) -> None:
    rows = plain.rows({"bridge": ["b", "a"]})
    assert [(one.name, one.driver, one.own) for one in rows] == [
        ("bridge", "bridge", True),
        ("host", "host", True),
        ("none", "null", True),
    ]
    assert rows[0].users == ("a", "b")
    assert plain.find(rows[0].id) == plain.find("bridge")


def test_networks_own_to_the_engine_are_not_removed(plain: network.Networks) -> None:
    for name in ("bridge", "host", "none"):
        with pytest.raises(errors.Conflict, match="engine's own"):
            plain.remove(name, users={})


def test_created_network_is_found_by_name_id_and_its_beginning(bridges: Bench) -> None:
    made = bridges.networks.create(NetworkSpec("some", labels={"odd": "ä b=c"}))
    assert (made.name, made.driver, made.labels, made.own) == ("some", "bridge", {"odd": "ä b=c"}, False)
    again = network.Networks(bridges.folders, engine="embedded")
    for text in ("some", made.id, made.id[:20]):
        assert again.find(text) == made


def test_missing_network_is_not_found(plain: network.Networks) -> None:
    with pytest.raises(errors.NotFound) as caught:
        plain.find("nobody-has-this")
    assert caught.value.details == {"missing": "network"}


def test_network_in_use_is_not_removed(bridges: Bench) -> None:
    bridges.networks.create(NetworkSpec("some"))
    with pytest.raises(errors.Conflict, match="in use by one"):
        bridges.networks.remove("some", users={"some": ["one"]})
    bridges.networks.remove("some", users={})
    with pytest.raises(errors.NotFound):
        bridges.networks.remove("some", users={})


def test_taken_names_and_subnets_are_conflicts(bridges: Bench) -> None:
    bridges.networks.create(NetworkSpec("some", subnet="10.213.8.0/24"))
    for name, subnet in (("some", None), ("bridge", None), ("other", "10.213.8.0/25"), ("other", "10.213.0.0/16")):
        with pytest.raises(errors.Conflict):
            bridges.networks.create(NetworkSpec(name, subnet=subnet))


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec("a", subnet="not a subnet"),
        NetworkSpec("a", subnet="10.213.9.0/99"),
        NetworkSpec("a", subnet="300.1.1.0/24"),
        NetworkSpec("a", subnet="10.213.9.1/24"),
        NetworkSpec("a", subnet="10.213.9.0/31"),
        NetworkSpec("a", subnet="0.0.0.0/0"),
        NetworkSpec("a", subnet="127.0.0.0/24"),
        NetworkSpec("a", subnet="10.213.9.0/24", gateway="10.213.10.1"),
        NetworkSpec("a", subnet="10.213.9.0/24", gateway="10.213.9.255"),
        NetworkSpec("a", gateway="10.213.9.1"),
        NetworkSpec("a", driver="odd"),
        NetworkSpec("../a"),
        NetworkSpec(""),
        NetworkSpec("default"),
    ],
    ids=str,
)
def test_impossible_network_is_refused(bridges: Bench, spec: NetworkSpec) -> None:
    with pytest.raises(errors.InvalidArgument):
        bridges.networks.create(spec)


def test_ipv6_and_options_are_not_supported(bridges: Bench) -> None:
    for spec in (
        NetworkSpec("a", ipv6=True),
        NetworkSpec("a", options={"a": "b"}),
        NetworkSpec("a", subnet="fd00::/64"),
    ):
        with pytest.raises(errors.Unsupported) as caught:
            bridges.networks.create(spec)
        assert "docker" in caught.value.hint


def test_chosen_subnets_overlap_nothing(bridges: Bench) -> None:
    made = [ipaddress.IPv4Network(bridges.networks.create(NetworkSpec(f"n{one}")).subnets[0]) for one in range(5)]
    others = [*network_subnets.of_host(), ipaddress.IPv4Network("172.17.0.0/16")]
    for number, one in enumerate(made):
        assert not any(one.overlaps(other) for other in [*made[:number], *others])


def _create(data: Path, run: Path, name: str) -> None:
    network.Networks(objects.Folders(data, run), engine="embedded").create(NetworkSpec(name))


def test_two_servers_never_give_one_subnet_twice(bridges: Bench) -> None:
    context = multiprocessing.get_context("spawn")
    folders = bridges.folders
    workers = [context.Process(target=_create, args=(folders.data, folders.run, f"n{one}")) for one in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    rows = [one for one in bridges.networks.rows({}) if not one.own]
    assert len({one.subnets for one in rows}) == 4


def test_damaged_definition_hides_no_other_network(bridges: Bench) -> None:
    first, second = (bridges.networks.create(NetworkSpec(name)) for name in ("first", "second"))
    (bridges.folders.networks / f"{first.id}.json").write_bytes(b'{"id":')
    assert [one.name for one in bridges.networks.rows({}) if not one.own] == [second.name]


# ----------------------------------------------------------------------------------------------------- none and bridge


def test_new_namespace_has_loopback_alone(bench: Bench) -> None:
    path = bench.folders.run / "netns" / "some"
    netns.make(path)
    try:
        attached = network.Attached(path, (), (), ())
        assert [line.split()[0] for line in bench.run(attached, "ip", "-br", "link").splitlines()] == ["lo"]
        assert "127.0.0.1/8" in bench.run(attached, "ip", "-br", "address")
    finally:
        netns.remove(path)


def test_network_none_leads_nowhere(bench: Bench) -> None:
    container, attached = bench.up("none")
    assert attached.netns is None
    assert ([one.name for one in attached.networks], attached.ports, attached.nameservers) == (["none"], (), ())
    assert bench.networks.attached(container) == attached


def test_network_that_leads_nowhere_publishes_no_ports(bench: Bench) -> None:
    with pytest.raises(errors.InvalidArgument):
        bench.up("none", ports=(PortMapping(80),))


@pytest.mark.attack("mounts of the host that a helper of ours would take along")
def test_mounts_that_the_host_shares_outlive_a_containers_network(leading_out: Bench, tmp_path: Path) -> None:
    """As Docker's are, and those of network namespaces; a sandbox that lets go of everything takes shared ones along everywhere."""
    place = tmp_path / "shared"
    (place / "inner").mkdir(parents=True)
    for words in (
        ("--bind", place, place),
        ("--make-shared", place),
        ("-t", "tmpfs", "none", place / "inner"),
    ):
        subprocess.run(["mount", *map(str, words)], check=True)
    try:
        (place / "inner" / "kept").touch()
        leading_out.up()
        leading_out.up()
        tally.tried()
        tally.got_through(int(not (place / "inner" / "kept").exists()))
        assert (place / "inner" / "kept").exists()
    finally:
        subprocess.run(["umount", "--recursive", str(place)], check=True)


def test_torn_down_container_leaves_nothing(leading_out: Bench) -> None:
    container, attached = leading_out.up(ports=(PortMapping(8080, host_ip=LOOPBACK),))
    assert networking.programs_of(leading_out.folders.run)
    for _ in range(2):
        leading_out.networks.tear_down(container)
        assert leading_out.networks.attached(container) is None
        assert not networking.kept(attached).exists()
        assert networking.programs_of(leading_out.folders.run) == []
        assert [one.name for one in (leading_out.folders.run / "net").iterdir() if one.name != "lock"] == []


def test_published_port_is_answered_by_the_container(leading_out: Bench) -> None:
    _, attached = leading_out.up(ports=(PortMapping(8080, host_ip=LOOPBACK), PortMapping(8081)))
    leading_out.serve(attached, 8080, "first")
    leading_out.serve(attached, 8081, "second")
    assert [(one.container_port, one.host_ip) for one in attached.ports] == [(8080, LOOPBACK), (8081, None)]
    assert [dial(one.host_port or 0) for one in attached.ports] == [b"first\n", b"second\n"]


def test_container_does_not_reach_the_hosts_loopback(leading_out: Bench) -> None:
    _, attached = leading_out.up()
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        for address in (LOOPBACK, attached.networks[0].gateway):
            leading_out.fetch(attached, address, port, seconds=1)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_that_is_taken_is_named_in_a_conflict(leading_out: Bench, protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind((LOOPBACK, 0))
        if protocol == "tcp":
            holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(errors.Conflict, match=str(port)):
            leading_out.up(ports=(PortMapping(80, protocol, LOOPBACK, port),))  # type: ignore[arg-type]
    assert networking.programs_of(leading_out.folders.run) == []


def test_port_published_twice_is_a_conflict(leading_out: Bench) -> None:
    _, first = leading_out.up(ports=(PortMapping(80, host_ip=LOOPBACK),))
    with pytest.raises(errors.Conflict, match=str(first.ports[0].host_port)):
        leading_out.up(ports=first.ports)
    with pytest.raises(errors.Conflict):
        leading_out.up(ports=(PortMapping(80, "tcp", LOOPBACK, 28471), PortMapping(81, "tcp", LOOPBACK, 28471)))


def test_address_of_another_host_is_refused(leading_out: Bench) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"198\.51\.100\.77"):
        leading_out.up(ports=(PortMapping(80, host_ip="198.51.100.77"),))


def test_ports_of_unknown_kinds_are_not_supported(leading_out: Bench) -> None:
    for port in (PortMapping(80, "sctp"), PortMapping(80, host_ip="::1")):
        with pytest.raises(errors.Unsupported):
            leading_out.up(ports=(port,))


def test_missing_network_is_not_found_before_anything_is_made(bench: Bench) -> None:
    with pytest.raises(errors.NotFound):
        bench.up("nobody-has-this")
    assert not bench.folders.run.exists()


# ------------------------------------------------------------------------------------------------------ created networks


def test_containers_of_a_created_network_know_each_other_by_name(bridges: Bench) -> None:
    bridges.networks.create(NetworkSpec("some"))
    container, first = bridges.up("some", name="first", alias="other-name")
    _, second = bridges.up("some", name="second")
    bridges.serve(first, 8080, "reached")
    address = first.networks[0].ip_address
    for name in ("first", "other-name", container[:12]):
        assert address in bridges.run(second, "busybox", "nslookup", "-type=a", name, second.nameservers[0])
    bridges.serve(second, 8080, "ready")
    assert dial_from(bridges, second, address) == "reached\n"


def dial_from(bench: Bench, attached: network.Attached, address: str) -> str:
    """What is answered at an address, once something is."""
    for _ in range(100):
        if (answer := bench.fetch(attached, address, 8080)) and "refused" not in answer:
            return answer
    return ""


def test_port_of_a_created_network_is_answered_on_loopback_and_held(bridges: Bench) -> None:
    bridges.networks.create(NetworkSpec("some"))
    container, attached = bridges.up("some", ports=(PortMapping(8080, host_ip=LOOPBACK), PortMapping(8080)))
    bridges.serve(attached, 8080, "reached")
    assert [dial(one.host_port or 0) for one in attached.ports] == [b"reached\n"] * 2
    with pytest.raises(errors.Conflict, match=str(attached.ports[0].host_port)):
        bridges.up("some", ports=attached.ports[:1])
    bridges.networks.tear_down(container)
    assert networking.rules_about(container, attached.networks[0].ip_address) == []
    with socket.create_server((LOOPBACK, attached.ports[0].host_port or 0)):
        pass


def test_created_networks_do_not_reach_each_other(bridges: Bench) -> None:
    for name in ("one", "two"):
        bridges.networks.create(NetworkSpec(name))
    _, first = bridges.up("one")
    _, neighbour = bridges.up("one")
    _, stranger = bridges.up("two")
    bridges.serve(first, 8080, "reached")
    address = first.networks[0].ip_address
    assert dial_from(bridges, neighbour, address) == "reached\n"
    assert "reached" not in bridges.fetch(stranger, address, 8080, seconds=1)


def test_internal_network_has_no_route_out(bridges: Bench) -> None:
    bridges.networks.create(NetworkSpec("inner", internal=True))
    _, first = bridges.up("inner")
    assert "default" not in bridges.run(first, "ip", "route")
    with pytest.raises(errors.InvalidArgument):
        bridges.up("inner", ports=(PortMapping(80),))


def test_container_is_connected_and_disconnected_while_it_runs(bridges: Bench) -> None:
    for name in ("one", "two"):
        bridges.networks.create(NetworkSpec(name))
    container, first = bridges.up("one", name="some")
    bridges.networks.connect(container, "two", aliases=("other",), name="some")
    found = bridges.networks.attached(container)
    assert found is not None
    assert [(one.name, one.aliases) for one in found.networks] == [("one", ()), ("two", ("other",))]
    assert found.networks[1].ip_address in bridges.run(first, "ip", "-br", "address")
    with pytest.raises(errors.Conflict):
        bridges.networks.connect(container, "two", aliases=(), name="some")
    bridges.networks.disconnect(container, "one")
    found = bridges.networks.attached(container)
    assert found is not None
    assert [one.name for one in found.networks] == ["two"]
    assert first.networks[0].ip_address not in bridges.run(first, "ip", "-br", "address")
    with pytest.raises(errors.Conflict):
        bridges.networks.disconnect(container, "one")


def test_full_network_is_a_conflict(bridges: Bench) -> None:
    bridges.networks.create(NetworkSpec("tiny", subnet="10.213.77.0/30"))
    bridges.up("tiny")
    with pytest.raises(errors.Conflict, match="no address left"):
        bridges.up("tiny")


def test_bridge_and_its_rules_go_with_the_last_container(bridges: Bench) -> None:
    row = bridges.networks.create(NetworkSpec("some"))
    containers = [bridges.up("some", ports=(PortMapping(80, host_ip=LOOPBACK),))[0] for _ in range(2)]
    interface = Path("/sys/class/net") / f"cxc{row.id[:12]}"
    subnet = row.subnets[0].removesuffix("0/24")
    assert interface.exists()
    bridges.networks.tear_down(containers[0])
    assert interface.exists()
    bridges.networks.tear_down(containers[1])
    assert not interface.exists()
    assert networking.rules_about(*containers, subnet, interface.name) == []
    assert [one for one in networking.programs_of(bridges.folders.run) if "defunct" not in one] == []


@pytest.mark.parametrize("damage", ["namespace", "interface", "bridge"])
def test_network_that_somebody_damaged_is_taken_down_with_its_rules(bridges: Bench, damage: str) -> None:
    row = bridges.networks.create(NetworkSpec("some"))
    container, attached = bridges.up("some", ports=(PortMapping(80, host_ip=LOOPBACK),))
    if damage == "namespace":
        netns.remove(networking.kept(attached))
    elif damage == "interface":
        bridges.run(attached, "ip", "link", "delete", "eth0")
    else:
        subprocess.run(["ip", "link", "delete", f"cxc{row.id[:12]}"], check=True)
    bridges.networks.tear_down(container)
    assert networking.rules_about(container, attached.networks[0].ip_address, f"cxc{row.id[:12]}") == []
    assert not (Path("/sys/class/net") / f"cxc{row.id[:12]}").exists()
    assert not networking.kept(attached).exists()


# ------------------------------------------------------------------------------------------------------------- recovery


def _set_up_and_die(data: Path, run: Path, container: str, name: str) -> None:
    networks = network.Networks(objects.Folders(data, run), engine="embedded")
    networks.set_up(container, name="some", networks=[(name, ())], ports=(PortMapping(8080, host_ip=LOOPBACK),))
    os.kill(os.getpid(), signal.SIGKILL)


def died_after_setting_up(bench: Bench, name: str) -> str:
    """The id of a container whose server was killed after it had set its network up."""
    container = secrets.token_hex(32)
    bench.ids.append(container)
    arguments = (bench.folders.data, bench.folders.run, container, name)
    worker = multiprocessing.get_context("spawn").Process(target=_set_up_and_die, args=arguments)
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    return container


def test_network_outlives_the_server_that_made_it(leading_out: Bench) -> None:
    container = died_after_setting_up(leading_out, "bridge")
    attached = leading_out.networks.attached(container)
    assert attached is not None
    leading_out.serve(attached, 8080, "reached")
    assert dial(attached.ports[0].host_port or 0) == b"reached\n"
    assert leading_out.networks.recover([container]) == []
    assert leading_out.networks.attached(container) == attached


@pytest.mark.parametrize("name", ["bridge", "some"])
def test_recovery_takes_down_what_belongs_to_dead_containers(bridges: Bench, name: str) -> None:
    networking.need("slirp4netns")
    bridges.networks.create(NetworkSpec("some"))
    container = died_after_setting_up(bridges, name)
    alive, kept = bridges.up(name)
    attached = bridges.networks.attached(container)
    assert attached is not None
    said = bridges.networks.recover([alive])
    assert len(said) == 1
    assert "some" in said[0]
    assert bridges.networks.attached(container) is None
    assert not networking.kept(attached).exists()
    assert networking.rules_about(container) == []
    assert bridges.networks.attached(alive) == kept
    assert bridges.networks.recover([alive]) == []


def test_recovery_removes_namespaces_that_nobody_noted(bench: Bench) -> None:
    left = bench.folders.run / "netns" / secrets.token_hex(32)
    netns.make(left)
    assert len(bench.networks.recover([])) == 1
    assert not left.exists()


# ------------------------------------------------------------------------------------------------------ missing programs


@pytest.fixture
def bare(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """A host with the base programs alone."""
    from codomyrmex_containerization import process
    from codomyrmex_containerization.engines.embedded import bridge

    tools = tmp_path / "tools"
    tools.mkdir()
    for one in ("ip", "unshare", "nsenter"):
        (tools / one).symlink_to(shutil.which(one) or one)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(process, "_EXTRA_FOLDERS", ())
    monkeypatch.setattr(bridge, "_FOLDERS", ())
    return bench


def test_host_with_all_programs_lacks_no_kind_of_network(bridges: Bench) -> None:
    networking.need("slirp4netns")
    assert bridges.networks.describe() == {"none": "", "bridge": "", "created": ""}


def test_missing_programs_are_named_with_the_command_that_brings_them(bare: Bench) -> None:
    bare.up("none")
    lacking = bare.networks.describe()
    assert lacking["none"] == ""
    assert "apt-get install slirp4netns" in lacking["bridge"]
    assert "apt-get install netavark" in lacking["created"]
    with pytest.raises(errors.Unsupported) as out:
        bare.up("bridge")
    with pytest.raises(errors.Unsupported) as created:
        bare.networks.create(NetworkSpec("some"))
    for caught, package in ((out, "slirp4netns"), (created, "netavark")):
        assert f"apt-get install {package}" in caught.value.hint
        assert "docker or podman" in caught.value.hint


# --------------------------------------------------------------------------------------------------------- side by side


@pytest.mark.parametrize("name", ["bridge", "some"])
def test_containers_side_by_side_get_addresses_and_ports_of_their_own(bridges: Bench, name: str) -> None:
    networking.need("slirp4netns")
    bridges.networks.create(NetworkSpec("some"))
    with futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: bridges.up(name, ports=(PortMapping(8080, host_ip=LOOPBACK),)), range(8)))
        assert len({one.ports[0].host_port for _, one in made}) == 8
        if name == "some":
            assert len({one.networks[0].ip_address for _, one in made}) == 8
        list(pool.map(bridges.networks.tear_down, [container for container, _ in made]))
    assert networking.rules_about(*[container for container, _ in made]) == []
    assert networking.programs_of(bridges.folders.run) == []
