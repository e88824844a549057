"""Which networks are there, and how does a container come into them and out again?

Created networks are bridges of the host's. The network `bridge` is a stack in a process for each container: quick to set up, without
rules of the host's, and nothing is left of it when the process ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    bridge,
    netns,
    network_ground,
    network_helpers,
    network_hub,
    network_links,
    network_ports,
    network_store,
    network_subnets,
    objects,
    slirp,
    state,
)
from codomyrmex_containerization.engines.embedded.network_links import Link, Links
from codomyrmex_containerization.engines.embedded.network_store import Network
from codomyrmex_containerization.models.container import PortMapping
from codomyrmex_containerization.models.details import NetworkAttachment
from codomyrmex_containerization.models.storage import NetworkRow, NetworkSpec

_SHOWN_USERS = 5
_NAME_THERE = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*\Z")


@dataclass(frozen=True, slots=True)
class Attached:
    """What a container has of networks: its namespace, its places in them, its ports with the host's real ones.

    Without a namespace it is in no network: its runtime is to make it an empty one.
    """

    netns: Path | None
    networks: tuple[NetworkAttachment, ...]
    ports: tuple[PortMapping, ...]
    nameservers: tuple[str, ...]


class Networks:
    """The networks of one data folder; usable from several threads and processes."""

    def __init__(self, folders: objects.Folders, *, engine: str) -> None:
        self._engine = engine
        self._definitions = network_store.Definitions(folders, engine=engine)
        self._notes = network_links.Notes(folders.run / "net")
        self._namespaces = folders.run / "netns"
        self._place = network_hub.of(folders.run)

    # ------------------------------------------------------------------------------------------------------ definitions

    def rows(self, users: Mapping[str, Sequence[str]]) -> list[NetworkRow]:
        """Return all networks by name; `users` are the names of the containers in each, by its name."""
        return [self._row(one, users.get(one.name, ())) for one in self._definitions.all()]

    def find(self, text: str) -> NetworkRow:
        """Return the network that a name, an id or the beginning of one means. Raises NotFound, Ambiguous."""
        return self._row(self._definitions.find(text), ())

    def create(self, spec: NetworkSpec) -> NetworkRow:
        """Create a network. Raises Conflict (name, subnet), InvalidArgument, Unsupported."""
        if spec.driver == "bridge":
            bridge.require()
        return self._row(self._definitions.create(spec), ())

    def remove(self, text: str, *, users: Mapping[str, Sequence[str]]) -> None:
        """Remove a network. Raises NotFound, Conflict (in use, the engine's own)."""
        network = self._definitions.find(text)
        named = users.get(network.name, ())
        if named and not network.own:
            raise errors.Conflict(
                f"Network {network.name} is in use by {', '.join(sorted(named)[:_SHOWN_USERS])}.",
                hint="disconnect those containers first",
            )
        self._definitions.remove(network)

    def describe(self) -> dict[str, str]:
        """Return the kinds of networks there are here, each with what is missing for it: nothing where it can be had."""
        return {
            kind: netns.missing() or _refusal(need)
            for kind, need in (("none", None), ("bridge", slirp.require), ("created", bridge.require))
        }

    def _row(self, network: Network, users: Sequence[str]) -> NetworkRow:
        spec = network.spec
        return NetworkRow(
            network.id,
            spec.name,
            spec.driver,
            network.created,
            spec.internal,
            (spec.subnet,) if spec.subnet else (),
            spec.labels,
            self._engine,
            tuple(sorted(users)),
            own=network.own,
        )

    # ------------------------------------------------------------------------------------------------------- containers

    def set_up(
        self,
        container_id: str,
        *,
        name: str,
        networks: Sequence[tuple[str, Sequence[str]]],
        ports: Sequence[PortMapping],
    ) -> Attached:
        """Make a container's network namespace and put it into networks, each with the container's aliases there.

        Raises NotFound, Conflict (a port that is taken), InvalidArgument, Unsupported, EngineUnavailable.
        """
        wanted = [(self._definitions.find(one), tuple(aliases)) for one, aliases in networks]
        check_names([name, *(alias for _, aliases in wanted for alias in aliases)])
        publisher = _publisher([one for one, _ in wanted], ports)
        self.tear_down(container_id)
        with network_ports.claimed(ports):  # says what is taken before anything is made
            pass
        with self._taken_back(container_id):
            maker = state.process(os.getpid())
            if maker is None:
                raise errors.InternalError("This process does not find itself.")
            self._notes.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            links = self._notes.write(Links(container_id, name, maker))
            if any(network.name != network_store.NONE for network, _ in wanted):
                netns.make(self._namespace(container_id))
            for number, (network, aliases) in enumerate(wanted):
                links = self._join(links, network, aliases, ports if number == publisher else ())
        return self._attached(links)

    def tear_down(self, container_id: str) -> None:
        """Take down everything that was set up for a container; quick when nothing was. Raises EngineUnavailable."""
        links, failure = self._notes.read(container_id), None
        if links is not None:
            for link in reversed([one for one in links.links if one.bridged is not None]):
                try:
                    links = self._leave(links, link)
                except errors.ContainerizationError as error:
                    failure = error
            slirp.stop(links.stack, self._namespace(container_id), folder=self._notes.folder, name=links.short)
            if failure is not None:
                raise failure  # what is left stays noted, so that it can be tried again
            network_ports.let_go(links.holder, folder=self._notes.folder, name=links.short)
        netns.remove(self._namespace(container_id))
        self._notes.forget(container_id)

    def connect(self, container_id: str, network: str, *, aliases: Sequence[str], name: str) -> None:
        """Put a container that runs into one more network.

        Raises NotFound, Conflict, InvalidArgument (an alias), Unsupported, EngineUnavailable.
        """
        found = self._definitions.find(network)
        check_names([name, *aliases])
        links = self._running(container_id, name)
        if any(one.network == found.name for one in links.links):
            raise errors.Conflict(f"Container {name} is connected to {found.name} already.", hint="disconnect it first")
        self._join(replace(links, name=name), found, tuple(aliases), ())

    def disconnect(self, container_id: str, network: str) -> None:
        """Take a container that runs out of a network. Raises NotFound, Conflict, EngineUnavailable."""
        links = self._running(container_id, container_id[:12])
        found = self._definitions.find(network)
        link = next((one for one in links.links if one.network == found.name), None)
        if link is None:
            raise errors.Conflict(
                f"Container {links.name} is not connected to {found.name}.", hint="look at its networks first"
            )
        self._leave(links, link)

    def attached(self, container_id: str) -> Attached | None:
        """Return what a container has of networks; None when nothing was set up for it."""
        links = self._notes.read(container_id)
        return None if links is None else self._attached(links)

    def recover(self, alive: Collection[str]) -> list[str]:
        """Take down what belongs to containers that are not alive; returns what was found."""
        found = []
        for id in self._notes.ids():
            links = self._notes.read(id) if id not in alive else None
            if links is None or _is_another_server(links.maker):
                continue  # another server may be about to start that container
            try:
                self.tear_down(id)
                found.append(f"the network of container {links.name} was left")
            except errors.ContainerizationError as error:
                found.append(
                    f"the network of container {links.name} was left, and cannot be taken down: {error.message}"
                )
        if self._place.is_left(self._notes):
            with suppress(errors.ContainerizationError), self._place_kept():
                found.append("the network that leads out of this user's networks was left")
        return found + self._bare_namespaces(alive)

    def end_strays(self) -> list[str]:
        """End the programs that nobody had noted yet when their server was killed; returns what was found."""
        found = []
        known = {links.short: links for links in self._notes.all()}
        for program, short in network_helpers.strays(self._notes.folder):
            links = known.get(short)
            if links is not None and (program in (links.stack, links.holder) or links.maker.is_alive):
                continue
            network_helpers.end(program, word="")
            found.append(f"a program of the network of container {short[:12]} was left")
        return found

    def _bare_namespaces(self, alive: Collection[str]) -> list[str]:
        found = []
        for path in sorted(self._namespaces.iterdir()) if self._namespaces.is_dir() else ():
            if path.name not in alive and self._notes.read(path.name) is None:
                with suppress(errors.ContainerizationError):
                    netns.remove(path)
                    found.append(f"a network namespace of container {path.name[:12]} was left")
        return found

    # ------------------------------------------------------------------------------------------------------- one network

    def _join(self, links: Links, network: Network, aliases: tuple[str, ...], ports: Sequence[PortMapping]) -> Links:
        if network.name == network_store.NONE:
            return self._note(links, Link(network.name, "", "", "", aliases))
        if network.own:
            return self._join_stack(links, network, aliases, ports)
        return self._join_bridge(links, network, aliases, ports)

    def _join_stack(
        self, links: Links, network: Network, aliases: tuple[str, ...], ports: Sequence[PortMapping]
    ) -> Links:
        for port in ports:
            slirp.check(port)
        folder, interface = self._notes.folder, _next_interface(links)
        stack = slirp.start(self._namespace(links.container_id), interface=interface, folder=folder, name=links.short)
        links = self._notes.write(replace(links, stack=stack.program))
        published = tuple(slirp.publish(stack, port, folder=folder, name=links.short) for port in ports)
        link = Link(network.name, interface, stack.address, stack.gateway, aliases, published, (stack.nameserver,))
        return self._note(links, link)

    def _join_bridge(
        self, links: Links, network: Network, aliases: tuple[str, ...], ports: Sequence[PortMapping]
    ) -> Links:
        bridge.require()
        subnet, gateway = network.spec.subnet or "", network.spec.gateway or ""
        namespace, before = self._namespace(links.container_id), links
        with self._place_kept(), network_ports.claimed(ports) as claims:
            self._place.open(self._notes, taken=[one.spec.subnet for one in self._definitions.all() if one.spec.subnet])
            network_subnets.check_bridge(subnet, interface=network.interface, network=network.name)
            address = network_subnets.free_address(subnet, self._used(network, gateway), network=network.name)
            holder = self._place.hold(claims, folder=self._notes.folder, name=links.short)
            made = network_links.Bridged(network.id, network.interface, subnet, network.spec.internal)
            real = tuple(one.port for one in claims)
            link = Link(
                network.name,
                _next_interface(links),
                address,
                gateway,
                aliases,
                real,
                (),
                made,
                self._place.inner(real, self._notes),
            )
            links = self._note(replace(links, holder=holder or links.holder), link)
            try:
                self._place.publish(claims, link)
                nameservers = self._place.do(lambda ground: _set_up(links, link, namespace, ground))
            except errors.ContainerizationError:
                if not self._tear_down(links, link):
                    network_ports.let_go(holder, folder=self._notes.folder, name=links.short)
                    self._notes.write(before)
                raise
            named = replace(link, nameservers=nameservers)
            return self._notes.write(replace(links, links=(*before.links, named)))

    def _leave(self, links: Links, link: Link) -> Links:
        """Take a container out of a network and strike that out. Raises EngineUnavailable."""
        namespace, folder = self._namespace(links.container_id), self._notes.folder
        if link.bridged is not None:
            self._leave_bridge(links, link)
            if link.ports:
                network_ports.let_go(links.holder, folder=folder, name=links.short)
                links = replace(links, holder=None)
        elif link.interface:
            slirp.stop(links.stack, namespace, folder=folder, name=links.short)
            links = replace(links, stack=None)
        rest = tuple(one for one in links.links if one.network != link.network)
        with self._place_kept():
            return self._notes.write(replace(links, links=rest))

    def _leave_bridge(self, links: Links, link: Link) -> None:
        if links.maker.boot_id != state.boot_id():
            return  # a reboot has emptied the host's rules
        with network_store.locked(self._notes.folder):
            failed = self._tear_down(links, link)
        if failed:
            raise errors.EngineUnavailable(
                f"Container {links.name} cannot be taken out of network {link.network}: {failed}",
                hint=f"see its message; where a program is missing: {bridge.REMEDY}",
            )

    def _tear_down(self, links: Links, link: Link) -> str:
        if self._place.is_gone():
            return ""
        namespace = self._namespace(links.container_id)
        self._place.withdraw(link)
        return self._place.do(lambda ground: bridge.tear_down(links, link, namespace, ground=ground))

    @contextmanager
    def _place_kept(self) -> Iterator[None]:
        """Keep others from changing what bridges lie in; afterwards it goes unless somebody needs it."""
        with network_store.locked(self._notes.folder):
            try:
                yield
            finally:
                self._place.settle(self._notes)

    def _used(self, network: Network, gateway: str) -> set[str]:
        every = [link for links in self._notes.all() for link in links.links]
        return {gateway, *(one.address for one in every if one.bridged is not None and one.bridged.id == network.id)}

    def _note(self, links: Links, link: Link) -> Links:
        return self._notes.write(replace(links, links=(*links.links, link)))

    def _running(self, container_id: str, name: str) -> Links:
        links = self._notes.read(container_id)
        if links is None:
            raise errors.Conflict(f"Container {name} has no network now.", hint="start it first")
        return links

    def _attached(self, links: Links) -> Attached:
        attachments = tuple(one.attachment for one in links.links)
        namespace = self._namespace(links.container_id)
        return Attached(namespace if netns.is_there(namespace) else None, attachments, links.ports, links.nameservers)

    def _namespace(self, container_id: str) -> Path:
        return self._namespaces / container_id

    @contextmanager
    def _taken_back(self, container_id: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(errors.ContainerizationError):
                self.tear_down(container_id)
            raise


def _set_up(links: Links, link: Link, namespace: Path, ground: network_ground.Ground) -> tuple[str, ...]:
    own = link.bridged
    if own is not None and ground.is_hub:
        network_subnets.check_bridge(own.subnet, interface=own.bridge, network=link.network)
    return bridge.set_up(links, link, namespace, ground=ground)


def _refusal(need: Callable[[], object] | None) -> str:
    try:
        if need is not None:
            need()
    except errors.ContainerizationError as error:
        return error.text()
    return ""


def check_names(names: Iterable[str]) -> None:
    """Refuse a name for a container's neighbours that is none: the server of names keeps them in lines. Raises InvalidArgument."""
    wrong = next((one for one in names if not _NAME_THERE.match(one)), None)
    if wrong is not None:
        raise errors.InvalidArgument(
            f"{wrong[:100]!r} is no name in a network.", hint="use letters, digits, '_', '.', '-' for aliases"
        )


def _publisher(networks: Sequence[Network], ports: Sequence[PortMapping]) -> int:
    """Return which of the networks publishes the ports. Raises InvalidArgument, Unsupported."""
    if any(one.name == network_store.HOST for one in networks):
        raise errors.InvalidArgument(
            "The host's own network cannot be had beside others.", hint="name the network host alone"
        )
    if not ports:
        return 0
    for port in ports:
        slirp.check(port)
    leading_out = [number for number, one in enumerate(networks) if one.name != network_store.NONE]
    open_ones = [number for number in leading_out if not networks[number].spec.internal]
    if not open_ones:
        raise errors.InvalidArgument(
            "A container without a network that leads out publishes no ports.",
            hint="leave the ports out, or use the network bridge",
        )
    # A stack in a process holds its ports itself, and leaves no rule on the host: the first choice.
    return next((number for number in open_ones if networks[number].own), open_ones[0])


def _next_interface(links: Links) -> str:
    taken = {one.interface for one in links.links}
    return next(name for number in range(len(taken) + 1) if (name := f"eth{number}") not in taken)


def _is_another_server(maker: state.Process) -> bool:
    return maker.pid != os.getpid() and maker.is_alive
