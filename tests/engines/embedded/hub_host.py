"""How are the walls around an ordinary user's networks attacked without touching this host? On one of our own, by root of a namespace."""

from __future__ import annotations

import os
import shutil
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from codomyrmex_containerization import process
from codomyrmex_containerization.engines.embedded import bridge, kernel, netns, network
from codomyrmex_containerization.models.container import PortMapping
from codomyrmex_containerization.models.storage import NetworkSpec
from tests.engines.embedded import networking, other_host
from tests.engines.embedded.networking import LOOPBACK
from tests.engines.embedded.other_host import HOST, NEIGHBOUR

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_SLIRPS_HOST, _SLIRPS_ADDRESS = "10.0.2.2", "10.0.2.100"


def attack(data: Path, wall: str, tell: Connection) -> None:
    """Attack from all sides and tell what was reached, then what was left; `wall` is `nft`, `iptables` or `none`."""
    other_host._leave_this_host()
    far = data / "far"
    netns.make(far)
    with other_host._cable(far), ExitStack() as stack:
        # Made where an ordinary user's process may not go; a socket remembers where that was.
        outside = stack.enter_context(other_host._inside(far, socket.socket))
        names = stack.enter_context(other_host._inside(far, lambda: socket.socket(type=socket.SOCK_DGRAM)))
        names.bind((NEIGHBOUR, 53))
        server = other_host._inside(far, lambda: socket.create_server((NEIGHBOUR, 7003)))

        def attack_it() -> None:
            if wall == "iptables":
                other_host._forget_nft(data, "slirp4netns")
            with other_host._answering_at(server), networking.bench(data) as bench:
                tell.send(_attacks(bench, outside, names, walls=wall != "none"))
            tell.send(networking.programs_of(bench.folders.run))

        _as_root_of_a_namespace(attack_it)
    # What is mounted goes with this process.


def describe(data: Path, tell: Connection) -> None:
    """Tell what an ordinary user's networks lack on a host with the base programs alone."""
    tools = data / "tools"
    tools.mkdir()
    for one in ("ip", "unshare", "nsenter", "slirp4netns"):
        (tools / one).symlink_to(shutil.which(one) or one)
    os.environ["PATH"] = str(tools)
    setattr(process, "_EXTRA_FOLDERS", ())  # noqa: B010 - declared with its length
    setattr(bridge, "_FOLDERS", ())  # noqa: B010 - the same

    def look() -> None:
        with networking.bench(data) as bench:
            tell.send(bench.networks.describe())
            (tools / "netavark").symlink_to("/bin/true")
            (tools / "slirp4netns").unlink()
            tell.send(bench.networks.describe())

    _as_root_of_a_namespace(look)


def _as_root_of_a_namespace(work: Callable[[], None]) -> None:
    """Do something in a process that may do to the host's network what an ordinary user may: nothing."""
    child = os.fork()
    if child == 0:
        try:
            _become_root_of_a_namespace()
            work()
        except BaseException:  # noqa: BLE001  told here, since nobody else will
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _become_root_of_a_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(_CLONE_NEWUSER)
    for name, words in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(words)
    kernel.unshare(_CLONE_NEWNS)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)


def _attacks(bench: networking.Bench, outside: socket.socket, names: socket.socket, *, walls: bool) -> dict[str, bool]:
    rows = [
        bench.networks.create(NetworkSpec(name, internal=name == "inner")) for name in ("outer", "inner", "strange")
    ]
    ports = (PortMapping(8080, host_ip=LOOPBACK), PortMapping(8080), PortMapping(9000, "udp", LOOPBACK))
    _, outer = bench.up("outer", ports=ports)
    _, neighbour = bench.up("outer")
    _, inner = bench.up("inner")
    _, stranger = bench.up("strange")
    hub = bench.folders.run / "hub" / "net"
    if not walls:
        for row in rows:
            netns.run(hub, ["nft", "delete", "table", "ip", f"cxc{row.id[:12]}"])
    for attached in (outer, neighbour, inner, stranger):
        other_host._take_over(attached)
    own, published = outer.networks[0].ip_address, outer.ports[0].host_port or 0
    with ExitStack() as stack:
        for where, address, port in (
            (None, LOOPBACK, 7001),
            (None, HOST, 7002),
            (hub, LOOPBACK, 7004),
            (networking.kept(outer), own, 8080),
        ):
            stack.enter_context(other_host._answering(where, address, port))

        def reaches(attached: network.Attached, address: str, port: int, *, wanted: bool = False) -> bool:
            return other_host._reaches(networking.kept(attached), address, port, wanted=wanted)

        tried: dict[str, Callable[[], bool]] = {
            "published port": lambda: other_host._reaches(None, LOOPBACK, published),
            "port published everywhere": lambda: other_host._reaches(None, HOST, outer.ports[1].host_port or 0),
            "published datagrams": lambda: _datagram_comes(outer),
            "way out": lambda: reaches(outer, NEIGHBOUR, 7003, wanted=True),
            "names outside": lambda: other_host._asked(names, outer),
            "neighbour in the network": lambda: reaches(neighbour, own, 8080, wanted=True),
            "host's loopback": lambda: reaches(outer, LOOPBACK, 7001),
            "host's loopback by the stack": lambda: reaches(outer, _SLIRPS_HOST, 7001),
            "hub's loopback": lambda: reaches(outer, LOOPBACK, 7004, wanted=not walls),
            "port published on loopback, by a stranger": lambda: reaches(stranger, _SLIRPS_ADDRESS, published),
            "another network": lambda: reaches(stranger, own, 8080),
            "container's own address from outside": lambda: _connects(outside, own),
            "host's other address from inside": lambda: reaches(inner, HOST, 7002),
            "way out from inside": lambda: reaches(inner, NEIGHBOUR, 7003),
            "IPv6 of the hub": lambda: any(netns.inside(hub, lambda: [other_host._takes_ipv6(one.id) for one in rows])),
        }
        with ThreadPoolExecutor() as pool:  # what is refused takes its time
            outcomes = list(pool.map(lambda attempt: attempt(), tried.values()))
        # Afterwards: it listens where the other question for a name would arrive.
        return {
            **dict(zip(tried, outcomes, strict=True)),
            "names outside from inside": other_host._asked(names, inner, wanted=False),
        }


def _datagram_comes(attached: network.Attached) -> bool:
    def listen() -> socket.socket:
        made = socket.socket(type=socket.SOCK_DGRAM)
        made.bind((attached.networks[0].ip_address, 9000))
        return made

    with other_host._inside(networking.kept(attached), listen) as server:
        server.settimeout(other_host._SECONDS)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(other_host.REACHED, (LOOPBACK, attached.ports[2].host_port or 0))
            return server.recv(100) == other_host.REACHED


def _connects(outside: socket.socket, address: str) -> bool:
    outside.settimeout(other_host._REFUSED_SECONDS)
    try:
        outside.connect((address, 8080))
    except OSError:
        return False
    return True
