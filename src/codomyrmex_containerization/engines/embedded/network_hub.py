"""Where do the bridges of an ordinary user lie, who may make none on the host? In a network namespace of theirs, the hub.

One network stack in a process leads from it to the outside, and publishes ports on the host. The hub is there while a container is in a
network that was created.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    netns,
    network_helpers,
    network_ports,
    network_subnets,
    slirp,
    state,
    userns,
)
from codomyrmex_containerization.engines.embedded.network_ground import Ground
from codomyrmex_containerization.engines.embedded.network_links import Link, Notes
from codomyrmex_containerization.models.container import PortMapping

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_NAME, _INTERFACE = "hub", "tap0"
_FIRST_PORT, _LAST_PORT = 1024, 65535


class Host:
    """The host itself, for root: nothing has to be made, and a program holds the ports that rules of the host's forward."""

    def __init__(self, run: Path) -> None:
        self._ground = Ground(run / "dns")

    def open(self, notes: Notes, *, taken: Collection[str]) -> None:
        """Have it ready for a bridge."""

    def do(self, work: Callable[[Ground], T]) -> T:
        """Do something there, by programs too."""
        return work(self._ground)

    def is_gone(self) -> bool:
        """Whether everything in it has gone with it."""
        return False

    def inner(self, ports: Sequence[PortMapping], notes: Notes) -> tuple[PortMapping, ...]:
        """Return what is forwarded to a container there, for each of its published ports; empty: the same."""
        return ()

    def publish(self, claims: Sequence[network_ports.Claim], link: Link) -> None:
        """Publish ports on the host where that is not done by rules there."""

    def hold(self, claims: Sequence[network_ports.Claim], *, folder: Path, name: str) -> state.Process | None:
        """Have ports that rules forward held by a program."""
        return network_ports.keep(claims, folder=folder, name=name)

    def withdraw(self, link: Link) -> None:
        """Take back what `publish` did."""

    def settle(self, notes: Notes) -> None:
        """Let go of it unless something in it is noted."""

    def is_left(self, notes: Notes) -> bool:
        """Whether something is there that `settle` would let go."""
        return False


class Hub(Host):
    """A network namespace of an ordinary user's, kept below `run`. Whoever calls a method that changes it keeps others from doing so."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self._folder = run / "hub"
        self._path = self._folder / "net"
        self._dns = run / "dns"

    def open(self, notes: Notes, *, taken: Collection[str]) -> None:
        """Make it, unless it is there. Raises Conflict (a port), Unsupported, EngineUnavailable."""
        is_new = not netns.is_there(self._path)
        if is_new:
            self._clear()
            netns.make(self._path)
        before = self._stack()
        if before is not None and before.program.is_alive:
            return
        # What was joined is still there, and knows its address.
        subnet = slirp.free_subnet(network_subnets.networks(sorted(taken))) if before is None else before.subnet
        stack = self._start(subnet)
        for links in () if is_new else notes.all():
            for link in links.links:
                self._publish(stack, link)

    def do(self, work: Callable[[Ground], T]) -> T:
        """Do something there, by programs too. Raises EngineUnavailable."""
        stack = self._stack()
        if stack is None:
            raise errors.EngineUnavailable(
                "The network that leads out of this user's networks has gone.",
                hint="start the containers in them again",
            )
        ground = Ground(self._dns, self._folder, stack.nameserver)
        return netns.inside(self._path, lambda: work(ground))

    def is_gone(self) -> bool:
        """Whether it has gone, with every bridge and rule in it: with the last process of the user's namespaces for one."""
        return not netns.is_there(self._path) or self._stack() is None

    def inner(self, ports: Sequence[PortMapping], notes: Notes) -> tuple[PortMapping, ...]:
        """Return what is forwarded to a container in the hub: all at its one address, so each port there is one container's."""
        stack = self._stack()
        address = stack.address if stack is not None else None
        taken = {(port.protocol, port.host_port) for each in notes.all() for one in each.links for port in one.inner}
        found = []
        for port in ports:
            numbers = (port.host_port or 0, *range(_LAST_PORT, _FIRST_PORT, -1))
            number = next(one for one in numbers if (port.protocol, one) not in taken)
            taken.add((port.protocol, number))
            found.append(replace(port, host_ip=address, host_port=number))
        return tuple(found)

    def hold(self, claims: Sequence[network_ports.Claim], *, folder: Path, name: str) -> state.Process | None:
        """Nothing has to: the stack itself listens at what it publishes."""
        return None

    def publish(self, claims: Sequence[network_ports.Claim], link: Link) -> None:
        """Publish a container's ports on the host, which are claimed until then. Raises Conflict, EngineUnavailable."""
        stack = self._stack()
        if stack is None:
            raise errors.InternalError("Ports are published before the hub is there.")
        for claim in claims:
            if claim.port.protocol == "udp":  # of the others two may be bound while nobody listens
                claim.socket.close()
        self._publish(stack, link)

    def withdraw(self, link: Link) -> None:
        """Give a container's ports on the host back."""
        stack = self._stack()
        if stack is not None and stack.program.is_alive:
            try:
                slirp.withdraw(stack, _outer(link), folder=self._folder, name=_NAME)
            except errors.EngineUnavailable:
                # It holds what nobody can have back any more: the next one publishes what is noted then.
                network_helpers.end(stack.program, word=str(self._path))

    def settle(self, notes: Notes) -> None:
        """Let the hub go unless a container is noted to be in a network that was created. Raises EngineUnavailable."""
        if self.is_left(notes):
            self._clear()

    def is_left(self, notes: Notes) -> bool:
        """Whether it is there for nobody."""
        return self._folder.exists() and not any(one.bridged for each in notes.all() for one in each.links)

    def _publish(self, stack: slirp.Stack, link: Link) -> None:
        for port in _outer(link):
            slirp.publish(stack, port, folder=self._folder, name=_NAME)

    def _start(self, subnet: ipaddress.IPv4Network) -> slirp.Stack:
        self._end_stacks()
        stack = slirp.start(self._path, interface=_INTERFACE, folder=self._folder, name=_NAME, subnet=subnet)
        state.write_whole(self._note, _adapter().dump_json(stack), forced=False)
        return stack

    def _stack(self) -> slirp.Stack | None:
        try:
            return _adapter().validate_json(self._note.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The note of this user's networks cannot be read: {error.strerror}.", hint=f"check {self._note}"
            ) from error
        except ValueError:
            return None  # it is made anew

    @property
    def _note(self) -> Path:
        return self._folder / "stack.json"

    def _clear(self) -> None:
        """Take away what there is of it: programs first, the server of names among them."""
        if netns.is_there(self._path):
            for program in _inside(self._path):
                network_helpers.end(program, word="")
        self._end_stacks()
        netns.remove(self._path)
        # What the server of names wrote there names a process that is none of ours by now.
        for folder in (self._dns, self._folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _end_stacks(self) -> None:
        # Found by where they write to: also one that its server had no time to note.
        for program, _ in network_helpers.strays(self._folder):
            network_helpers.end(program, word="")
        stack = self._stack()
        noted = None if stack is None else stack.program  # of namespaces that have gone it is not found that way
        slirp.stop(noted, self._path, folder=self._folder, name=_NAME)


def of(run: Path) -> Host:
    """Return where bridges lie whose notes are in a folder."""
    return Hub(run) if userns.is_inside() else Host(run)


def _outer(link: Link) -> list[PortMapping]:
    """What is published on the host for a container in the hub: ports of the hub's own."""
    pairs = zip(link.ports, link.inner, strict=False)  # without any inside: rules of the host's do it
    return [replace(port, container_port=inner.host_port or 0) for port, inner in pairs]


def _inside(path: Path) -> Iterator[state.Process]:
    wanted = path.stat().st_ino
    for pid in (int(one) for one in os.listdir("/proc") if one.isdigit()):
        with suppress(OSError):
            program = state.process(pid)
            if os.stat(f"/proc/{pid}/ns/net").st_ino == wanted and program is not None:
                yield program


@functools.cache
def _adapter() -> TypeAdapter[slirp.Stack]:
    from pydantic import TypeAdapter

    return TypeAdapter(slirp.Stack)
