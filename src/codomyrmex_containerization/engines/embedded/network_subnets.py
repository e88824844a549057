"""Which addresses are taken on this host, and which does a new network get?"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.storage import NetworkSpec

_ROUTES = Path("/proc/thread-self/net/route")  # of where this thread is
_OTHERS = (ipaddress.IPv4Network("172.17.0.0/16"),)  # of a Docker that may start later
_FIRST = int(ipaddress.IPv4Address("10.89.0.0"))
_COUNT = (256 - 89) * 256  # from 10.89.0.0/24 to 10.255.255.0/24
_STARTS = _COUNT // 2
_SIZE = 256
_SHORTEST_PREFIX, _LONGEST_PREFIX = 8, 30  # the most there is of private addresses; a gateway and a container


def of_host(*, but: str = "") -> list[ipaddress.IPv4Network]:
    """Return the subnets that the host has routes to, its default aside; not those through the interface `but`."""
    try:
        lines = _ROUTES.read_text("ascii").splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in lines:
        interface, destination, *rest = line.split()
        mask = rest[5]
        if int(mask, 16) and interface != but:
            found.append(ipaddress.IPv4Network((_address(destination), _address(mask)), strict=False))
    return found


def free(taken: Collection[ipaddress.IPv4Network], *, start: Path) -> ipaddress.IPv4Network:
    """Return a subnet that neither the host nor `taken` overlaps. Raises Conflict.

    The search begins at a place of its own for each `start`: two data folders do not know of each other's networks.
    """
    used = [*taken, *_OTHERS, *of_host()]
    first = int.from_bytes(hashlib.sha256(os.fsencode(start)).digest()[:4]) % _STARTS
    for number in range(first, first + _COUNT):
        one = ipaddress.IPv4Network((_FIRST + number % _COUNT * _SIZE, 24))
        if not any(one.overlaps(other) for other in used):
            return one
    raise errors.Conflict("No address range is left for a network.", hint="remove networks that nothing uses")


def wanted(spec: NetworkSpec, taken: Collection[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """Return the subnet that was asked for. Raises InvalidArgument, Conflict."""
    try:
        subnet = ipaddress.ip_network(spec.subnet or "")
    except ValueError as problem:
        raise errors.InvalidArgument(
            f"{spec.subnet!r} is no subnet: {problem}.", hint="write it as 10.1.2.0/24"
        ) from problem
    if not isinstance(subnet, ipaddress.IPv4Network):
        raise errors.Unsupported("embedded has no IPv6 networks.", hint="give an IPv4 subnet, or use docker or podman")
    fits = _SHORTEST_PREFIX <= subnet.prefixlen <= _LONGEST_PREFIX
    if not fits or subnet.is_loopback or subnet.is_multicast or subnet.is_link_local:
        raise errors.InvalidArgument(
            f"The subnet {subnet} cannot hold containers.", hint="give a private one, such as 10.1.2.0/24"
        )
    if any(subnet.overlaps(one) for one in taken):
        raise errors.Conflict(f"The subnet {subnet} overlaps another network's.", hint="choose another subnet")
    return subnet


def gateway(spec: NetworkSpec, subnet: ipaddress.IPv4Network) -> str:
    """Return the host's own address in a network: the one that was asked for, else the first. Raises InvalidArgument."""
    if spec.gateway is None:
        return str(subnet[1])
    try:
        address = ipaddress.IPv4Address(spec.gateway)
    except ValueError:
        address = None
    if address is None or address not in subnet or address in (subnet[0], subnet[-1]):
        raise errors.InvalidArgument(
            f"{spec.gateway!r} is no address of {subnet}.", hint=f"give one of its addresses, such as {subnet[1]}"
        )
    return str(address)


def free_address(subnet: str, used: Collection[str], *, network: str) -> str:
    """Return an address of a network that nobody has. Raises Conflict."""
    found = next((str(one) for one in ipaddress.IPv4Network(subnet).hosts() if str(one) not in used), None)
    if found is None:
        raise errors.Conflict(
            f"Network {network} has no address left.", hint="use a network with a larger subnet, or remove containers"
        )
    return found


def check_bridge(subnet: str, *, interface: str, network: str) -> None:
    """Refuse to raise a bridge over a subnet that the host reaches another way. Raises Conflict."""
    own = ipaddress.IPv4Network(subnet)
    other = next((one for one in of_host(but=interface) if one.overlaps(own)), None)
    if other is not None:
        raise errors.Conflict(
            f"The subnet {subnet} of network {network} overlaps {other}, which this host has a route to.",
            hint="remove the network and create it with another subnet",
        )


def networks(subnets: Sequence[str]) -> list[ipaddress.IPv4Network]:
    """Return subnets as numbers."""
    return [ipaddress.IPv4Network(one) for one in subnets]


def _address(text: str) -> str:
    # The kernel prints the bytes of an address as one number of this machine's order.
    return socket.inet_ntoa(int(text, 16).to_bytes(4, "little" if socket.htons(1) != 1 else "big"))
