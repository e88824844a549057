"""How does a container reach out, and how are its ports published, by a network stack in a process and no rule of the host's?

Source: https://github.com/rootless-containers/slirp4netns/blob/master/slirp4netns.1.md
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import socket
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import network_helpers, network_ports, network_subnets, state
from codomyrmex_containerization.models.container import PortMapping

PROGRAM = "slirp4netns"
REMEDY = "apt-get install slirp4netns, or use docker or podman"
_MTU = 65520
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - where all addresses were asked for
_READY_SECONDS = 15.0
_ANSWER_SECONDS = 10.0
_MOST_ANSWER_BYTES = 65536
_TRIES = 8
_CONTAINER, _GATEWAY, _NAMESERVER = 100, 2, 3  # in the subnet; the program's own choice
_PREFIX = 24
_SUBNETS = ("10.0.2.0/24", "10.41.2.0/24", "172.29.251.0/24", "192.168.251.0/24")


@dataclass(frozen=True, slots=True)
class Stack:
    """A network stack of one container."""

    program: state.Process
    address: str
    gateway: str
    nameserver: str

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """Its addresses."""
        return ipaddress.IPv4Network(f"{self.address}/{_PREFIX}", strict=False)


def require() -> Path:
    """Return the program. Raises Unsupported."""
    found = process.find(PROGRAM)
    if found is None:
        raise errors.Unsupported(f"embedded needs {PROGRAM} for the network bridge.", hint=REMEDY)
    return found


def _apart() -> Path:
    found = process.find("unshare")
    if found is None:
        raise errors.Unsupported("embedded needs unshare for the network bridge.", hint="apt-get install util-linux")
    return found


def start(
    netns: Path, *, interface: str, folder: Path, name: str, subnet: ipaddress.IPv4Network | None = None
) -> Stack:
    """Give a namespace an interface that leads out; `name` is that of its files in `folder`. Raises Unsupported, EngineUnavailable."""
    program = require()
    subnet = subnet or free_subnet()
    log = folder / f"{name}.log"
    with suppress(FileNotFoundError):
        (folder / _socket_name(name)).unlink()
    ready, told = os.pipe2(os.O_CLOEXEC)
    try:
        # Its sandbox lets go of all mounts that it finds. Run by root that takes along the host's, wherever they are shared (Docker's and
        # other network namespaces are): so it finds copies of its own.
        argv = [str(_apart()), "--mount", "--propagation", "private", "--"]
        argv += [str(program), "--configure", f"--mtu={_MTU}", f"--cidr={subnet}", "--disable-host-loopback"]
        argv += ["--enable-sandbox", "--enable-seccomp", f"--ready-fd={told}", "--netns-type=path"]
        # A name without a folder: the path of a socket must be short.
        argv += [f"--api-socket={_socket_name(name)}", str(netns), interface]
        try:
            running = network_helpers.start(argv, cwd=folder, log=log, descriptors=(told,))
        finally:
            os.close(told)
        if not _is_ready(ready):
            network_helpers.end(running, word=str(netns))
            raise errors.EngineUnavailable(
                f"{PROGRAM} does not start: {network_helpers.said(log)}",
                hint="see its message; the network none needs nothing",
            )
    finally:
        os.close(ready)
    return Stack(running, str(subnet[_CONTAINER]), str(subnet[_GATEWAY]), str(subnet[_NAMESERVER]))


def publish(stack: Stack, port: PortMapping, *, folder: Path, name: str) -> PortMapping:
    """Publish a port of the container, at a free port where none is named. Raises Conflict, EngineUnavailable."""
    for _ in range(_TRIES):
        with network_ports.claimed((port,)) as claims:
            chosen = claims[0].port
        answer = _ask(folder, name, _forwarding(chosen, stack.address))
        if "error" not in answer:
            return chosen
        if port.host_port is not None:
            with network_ports.claimed((port,)):  # says so when somebody was quicker
                pass
            break
    raise errors.EngineUnavailable(
        f"Port {chosen} is not published: {json.dumps(answer)[:300]}", hint="choose another host port"
    )


def withdraw(stack: Stack, ports: Sequence[PortMapping], *, folder: Path, name: str) -> None:
    """Take back ports that were published; does nothing about others. Raises EngineUnavailable."""
    wanted = [_arguments(port, stack.address) for port in ports]
    if not wanted:
        return
    answer = _ask(folder, name, {"execute": "list_hostfwd"})
    entries = answer.get("entries")
    if not isinstance(entries, list):
        raise errors.EngineUnavailable(f"{PROGRAM} does not say what it publishes.", hint="start the container again")
    for one in entries:
        if any(all(one.get(name) == value for name, value in each.items()) for each in wanted):
            answer = _ask(folder, name, {"execute": "remove_hostfwd", "arguments": {"id": one.get("id")}})
            if "error" in answer:
                raise errors.EngineUnavailable(
                    f"A port is not given back: {json.dumps(answer)[:300]}", hint="stop the containers with ports"
                )


def stop(program: state.Process | None, netns: Path, *, folder: Path, name: str) -> None:
    """End a namespace's network stack, and with it its published ports; quick when there is none."""
    network_helpers.end(program, word=str(netns))
    for file in (_socket_name(name), f"{name}.log"):
        with suppress(OSError):
            (folder / file).unlink()


def check(port: PortMapping) -> None:
    """Refuse a port that this way of publishing does not know. Raises Unsupported."""
    if port.protocol == "sctp" or (port.host_ip is not None and ":" in port.host_ip):
        raise errors.Unsupported(
            f"embedded does not publish {port}.", hint="use tcp or udp at an IPv4 address, or docker or podman"
        )


def _forwarding(port: PortMapping, address: str) -> dict[str, object]:
    return {"execute": "add_hostfwd", "arguments": _arguments(port, address)}


def _arguments(port: PortMapping, address: str) -> dict[str, object]:
    return {
        "proto": port.protocol,
        "host_addr": port.host_ip or _EVERYWHERE,
        "host_port": port.host_port,
        "guest_addr": address,
        "guest_port": port.container_port,
    }


def _ask(folder: Path, name: str, question: dict[str, object]) -> dict[str, object]:
    base = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(f"/proc/self/fd/{base}/{_socket_name(name)}")
            connection.sendall(json.dumps(question).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while len(answer) < _MOST_ANSWER_BYTES and (chunk := connection.recv(4096)):
                answer += chunk
        found = json.loads(answer)
    except (OSError, ValueError) as error:
        raise errors.EngineUnavailable(
            f"{PROGRAM} does not answer: {error}.", hint="start the container again"
        ) from error
    finally:
        os.close(base)
    return found if isinstance(found, dict) else {"error": found}


def _is_ready(descriptor: int) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(_READY_SECONDS * 1000)) and os.read(descriptor, 1) == b"1"


def free_subnet(others: Collection[ipaddress.IPv4Network] = ()) -> ipaddress.IPv4Network:
    """Return the addresses that a stack is best given: neither the host's nor others."""
    taken = [*network_subnets.of_host(), *others]
    wanted = [ipaddress.IPv4Network(one) for one in _SUBNETS]
    return next((one for one in wanted if not any(one.overlaps(other) for other in taken)), wanted[0])


def _socket_name(name: str) -> str:
    return f"{name}.sock"
