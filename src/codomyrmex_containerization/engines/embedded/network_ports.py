"""Which ports of the host are free, and who takes them for a container?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import network_helpers, state
from codomyrmex_containerization.models.container import PortMapping

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_HOLDER = "sleep"


@dataclass(frozen=True, slots=True)
class Claim:
    """A port that is ours while its socket is open; the host's port is a real one."""

    port: PortMapping
    socket: socket.socket


@contextmanager
def claimed(ports: Sequence[PortMapping]) -> Iterator[list[Claim]]:
    """Hold ports of the host while the block lasts, free ones where none is named. Raises Conflict, InvalidArgument."""
    with ExitStack() as stack:
        yield [_claim(port, stack) for port in ports]


def keep(claims: Sequence[Claim], *, folder: Path, name: str) -> state.Process | None:
    """Have a program that does nothing hold ports which rules of the host's forward, so that nobody else takes them."""
    program = process.find(_HOLDER)
    if not claims or program is None:
        return None
    for claim in claims:
        if claim.port.protocol == "tcp":
            claim.socket.listen(1)  # a port that nobody listens at can be taken a second time
    descriptors = [claim.socket.fileno() for claim in claims]
    return network_helpers.start(
        [str(program), "infinity"], cwd=folder, log=folder / f"{name}.ports", descriptors=descriptors
    )


def let_go(holder: state.Process | None, *, folder: Path, name: str) -> None:
    """Give back the ports that are held."""
    network_helpers.end(holder, word=_HOLDER)
    (folder / f"{name}.ports").unlink(missing_ok=True)


def _claim(port: PortMapping, stack: ExitStack) -> Claim:
    address = port.host_ip or "0.0.0.0"  # noqa: S104 - all addresses were asked for
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        one = stack.enter_context(socket.socket(family, _KINDS[port.protocol]))
        if port.protocol == "tcp":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended hold no port
        one.bind((address, port.host_port or 0))
    except OSError as error:
        raise _refusal(port, address, error) from error
    return Claim(replace(port, host_port=int(one.getsockname()[1])), one)


def _refusal(port: PortMapping, address: str, error: OSError) -> errors.ContainerizationError:
    where = f"Port {port.host_port or '*'}/{port.protocol} at {address}"
    if error.errno == errno.EADDRINUSE:
        return errors.Conflict(
            f"{where} is taken on this host.", hint="choose another host port, or none for any free one"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return errors.InvalidArgument(f"{where} may not be used by this user.", hint="choose a port from 1024 on")
    return errors.InvalidArgument(
        f"{where} cannot be used: {error.strerror or error}.", hint="give an address of this host, such as 127.0.0.1"
    )
