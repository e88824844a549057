"""How is a wall between a network and its host attacked without touching this host? On one of its own, with a neighbour behind a cable."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from codomyrmex_containerization import process
from codomyrmex_containerization.engines.embedded import netns, network
from codomyrmex_containerization.models.container import PortMapping
from codomyrmex_containerization.models.storage import NetworkSpec
from tests.engines.embedded import networking
from tests.engines.embedded.networking import LOOPBACK

T = TypeVar("T")

HOST, NEIGHBOUR = "198.51.100.1", "198.51.100.2"
REACHED = b"reached"
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_REFUSED_SECONDS = 0.7  # for what must not arrive
_SECONDS = 10.0
_QUESTION = b"\x07\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x07example\x00\x00\x01\x00\x01"
_TOOLS = ("ip", "unshare", "nsenter", "iptables", "iptables-save", "sleep")


def attack(data: Path, wall: str, tell: Connection) -> None:
    """Attack from all sides and tell what was reached; `wall` is `nft`, `iptables` or `none`. For a process of its own."""
    _leave_this_host()
    before = os.environ["PATH"], process._EXTRA_FOLDERS
    if wall == "iptables":
        _forget_nft(data)
    with networking.bench(data) as bench:
        far = bench.folders.run / "far"
        netns.make(far)
        try:
            with _cable(far):
                tell.send(_attacks(bench, far, walls=wall != "none"))
            _remember(before)  # what one program put up, the other finds
        finally:
            netns.remove(far)
    left = [
        *Path("/sys/class/net").glob("cxc*"),
        *(line for line in (*_lines("nft", "list", "tables"), *_lines("iptables-save")) if "cxc" in line),
    ]
    tell.send([str(one) for one in left])


def _attacks(bench: networking.Bench, far: Path, *, walls: bool) -> dict[str, bool]:
    rows = [bench.networks.create(NetworkSpec(name, internal=name == "inner")) for name in ("outer", "inner")]
    _, outer = bench.up("outer", ports=(PortMapping(8080, host_ip=LOOPBACK),))
    _, inner = bench.up("inner")
    if not walls:
        for row in rows:
            _run("nft", "delete", "table", "ip", f"cxc{row.id[:12]}")
    for attached in (outer, inner):
        _take_over(attached)
    own = outer.networks[0].ip_address
    with ExitStack() as stack:
        for where, address, port in (
            (None, LOOPBACK, 7001),
            (None, HOST, 7002),
            (far, NEIGHBOUR, 7003),
            (networking.kept(outer), own, 8080),
        ):
            stack.enter_context(_answering(where, address, port))
        return {
            "published port": _reaches(None, LOOPBACK, outer.ports[0].host_port or 0),
            "way out": _reaches(networking.kept(outer), NEIGHBOUR, 7003),
            "names outside": _asks(outer, far),
            "host's loopback": _reaches(networking.kept(outer), LOOPBACK, 7001, wanted=not walls),
            "container's own address from outside": _reaches(far, own, 8080, wanted=not walls),
            "host's other address from inside": _reaches(networking.kept(inner), HOST, 7002, wanted=not walls),
            "way out from inside": _reaches(networking.kept(inner), NEIGHBOUR, 7003, wanted=False),
            "names outside from inside": _asks(inner, far, wanted=False),
            "IPv6 of the host": any(_takes_ipv6(one.id) for one in rows),
        }


def _takes_ipv6(id: str) -> bool:
    setting = Path(f"/proc/sys/net/ipv6/conf/cxc{id[:12]}/disable_ipv6")
    return setting.exists() and setting.read_text().strip() != "1"


def _take_over(attached: network.Attached) -> None:
    """Do what a container with all rights over its own network would: send packets for 127.0.0.1, and everything, to the host."""
    gateway, address = attached.networks[0].gateway, attached.networks[0].ip_address

    def allow() -> None:
        Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")

    _inside(networking.kept(attached), allow)
    ip = ("nsenter", f"--net={networking.kept(attached)}", "ip")
    _run(*ip, "address", "delete", "127.0.0.1/8", "dev", "lo")
    _run(*ip, "route", "add", "127.0.0.0/8", "via", gateway, "src", address)
    _run(*ip, "route", "replace", "default", "via", gateway)


def _reaches(where: Path | None, address: str, port: int, *, wanted: bool = True) -> bool:
    def connect() -> bool:
        try:
            seconds = _SECONDS if wanted else _REFUSED_SECONDS
            with socket.create_connection((address, port), seconds) as connection:
                return connection.recv(100) == REACHED
        except OSError:
            return False

    return _inside(where, connect)


def _asks(attached: network.Attached, far: Path, *, wanted: bool = True) -> bool:
    """Whether a question for a name outside gets to the server of names that the host asks."""
    with closing(_inside(far, lambda: socket.socket(type=socket.SOCK_DGRAM))) as server:
        server.bind((NEIGHBOUR, 53))
        return _asked(server, attached, wanted=wanted)


def _asked(server: socket.socket, attached: network.Attached, *, wanted: bool = True) -> bool:
    server.settimeout(_SECONDS if wanted else _REFUSED_SECONDS)
    with closing(_inside(networking.kept(attached), lambda: socket.socket(type=socket.SOCK_DGRAM))) as client:
        client.sendto(_QUESTION, (attached.nameservers[0], 53))
        try:
            return b"secret" in server.recv(500)
        except TimeoutError:
            return False


@contextmanager
def _answering(where: Path | None, address: str, port: int) -> Iterator[None]:
    with _answering_at(_inside(where, lambda: socket.create_server((address, port)))):
        yield


@contextmanager
def _answering_at(server: socket.socket) -> Iterator[None]:
    def serve() -> None:
        while True:
            try:
                with server.accept()[0] as connection:
                    connection.sendall(REACHED)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


@contextmanager
def _cable(far: Path) -> Iterator[None]:
    """Between the host of our own and its neighbour, who is also the way to everywhere and whom the host asks for names."""
    far_ip = ("nsenter", f"--net={far}", "ip")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "near0", "type", "veth", "peer", "name", "far0", "netns", str(far))
    for ip, name, address, gateway in ((("ip",), "near0", HOST, NEIGHBOUR), (far_ip, "far0", NEIGHBOUR, HOST)):
        _run(*ip, "address", "add", f"{address}/24", "dev", name)
        _run(*ip, "link", "set", name, "up")
        _run(*ip, "route", "add", "default", "via", gateway)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    resolv = far.parent / "resolv.conf"
    resolv.write_text(f"nameserver {NEIGHBOUR}\n")
    _run("mount", "--bind", str(resolv), os.path.realpath("/etc/resolv.conf"))
    try:
        yield
    finally:
        _run("umount", os.path.realpath("/etc/resolv.conf"))
        resolv.unlink()


def _leave_this_host() -> None:
    """Give this process a network and mounts of its own; both go with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "sysfs", "sysfs", "/sys")  # shows this network's interfaces


def _forget_nft(data: Path, *more: str) -> None:
    tools = data / "tools"
    tools.mkdir()
    for one in (*_TOOLS, *more):
        (tools / one).symlink_to(shutil.which(one) or one)
    os.environ["PATH"] = str(tools)
    setattr(process, "_EXTRA_FOLDERS", ())  # noqa: B010 - declared with its length


def _remember(before: tuple[str, object]) -> None:
    os.environ["PATH"] = before[0]
    setattr(process, "_EXTRA_FOLDERS", before[1])  # noqa: B010 - declared with its length


def _inside(where: Path | None, make: Callable[[], T]) -> T:
    """Do something in a network, this process's own if none is named: a thread goes there, a socket remembers where it was made."""
    made: list[T] = []

    def work() -> None:
        if where is not None:
            with where.open() as held:
                if ctypes.CDLL(None, use_errno=True).setns(held.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
        made.append(make())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


def _run(*argv: str) -> None:
    _lines(*argv)


def _lines(*argv: str) -> list[str]:
    program = shutil.which(argv[0], path="/usr/sbin:/usr/bin:/sbin:/bin") or argv[0]
    done = subprocess.run([program, *argv[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout.splitlines()
