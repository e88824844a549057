"""Which networks are there? The engine's own three, and one file for each that was created."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import network_subnets, objects, state
from codomyrmex_containerization.models.storage import NetworkSpec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

BRIDGE, NONE, HOST = "bridge", "none", "host"
_OWN = ((BRIDGE, "bridge"), (HOST, "host"), (NONE, "null"))
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
_OTHERS = "leave it out, or use docker or podman"
_INTERFACE_DIGITS = 12  # with three letters before, the most that an interface's name may have


@dataclass(frozen=True, slots=True)
class Network:
    """A network: what was asked for and what was made of it; the spec's subnet and gateway are the real ones."""

    id: str
    spec: NetworkSpec
    created: datetime | None
    own: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        return self.spec.name

    @property
    def interface(self) -> str:
        """The name of its bridge on the host."""
        return f"cxc{self.id[:_INTERFACE_DIGITS]}"


class Definitions:
    """The networks of one data folder; usable from several threads and processes."""

    def __init__(self, folders: objects.Folders, *, engine: str) -> None:
        self._folder = folders.networks
        self._data = folders.data
        self._engine = engine
        self._seen: dict[str, tuple[tuple[int, int, int], Network]] = {}

    def all(self) -> list[Network]:
        """Return all networks by name."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            names = []
        created = [self._read(self._folder / one) for one in names if one.endswith(".json") and not one.startswith(".")]
        found = [*self._own(), *(one for one in created if one is not None)]
        return sorted(found, key=lambda one: one.name)

    def find(self, text: str) -> Network:
        """Return the network that a name, an id or the beginning of one means. Raises NotFound, Ambiguous."""
        every = self.all()
        for one in every:
            if text in (one.name, one.id):
                return one
        found = [one for one in every if text and one.id.startswith(text)]
        if len(found) > 1:
            raise errors.Ambiguous(
                f"{text!r} fits {len(found)} networks of {self._engine}.", hint="give more of the id, or the name"
            )
        if not found:
            raise errors.NotFound(
                f"{self._engine} has no network {text!r}.",
                hint="check the name; network_list shows the networks there are",
                details={"missing": "network"},
            )
        return found[0]

    def create(self, spec: NetworkSpec) -> Network:
        """Enter a network. Raises Conflict (name, subnet), InvalidArgument, Unsupported."""
        self._check(spec)
        with self._changing():
            every = self.all()
            if any(one.name == spec.name for one in every):
                raise errors.Conflict(
                    f"There is a network {spec.name!r} already.", hint="choose another name, or remove that one"
                )
            taken = [ipaddress.IPv4Network(one.spec.subnet) for one in every if one.spec.subnet]
            if spec.subnet is None and spec.gateway is None:
                subnet = network_subnets.free(taken, start=self._data)
            else:
                subnet = network_subnets.wanted(spec, taken)
            full = replace(spec, subnet=str(subnet), gateway=network_subnets.gateway(spec, subnet))
            network = Network(state.new_id(), full, state.now())
            state.write_whole(self._folder / f"{network.id}.json", _adapter().dump_json(network))
        return network

    def remove(self, network: Network) -> None:
        """Strike a network out. Raises NotFound, Conflict (the engine's own)."""
        if network.own:
            raise errors.Conflict(
                f"Network {network.name} is the engine's own.", hint="only networks that were created can be removed"
            )
        with self._changing():
            self.find(network.id)
            (self._folder / f"{network.id}.json").unlink(missing_ok=True)

    def _own(self) -> list[Network]:
        # Ids that stay: whoever noted one finds the network again.
        return [
            Network(
                hashlib.sha256(os.fsencode(self._data) + b"\0" + name.encode()).hexdigest(),
                NetworkSpec(name, driver),
                None,
                own=True,
            )
            for name, driver in _OWN
        ]

    def _read(self, path: Path) -> Network | None:
        try:
            found = path.stat()
            key = (found.st_ino, found.st_mtime_ns, found.st_size)
            seen = self._seen.get(path.name)
            if seen is not None and seen[0] == key:
                return seen[1]
            network = _adapter().validate_json(path.read_bytes())
        except FileNotFoundError:
            return None  # removed meanwhile
        except OSError as error:
            raise errors.EngineUnavailable(
                f"A network cannot be read: {error.strerror}.", hint=f"check the rights of {path}"
            ) from error
        except ValueError:
            with suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
            return None
        self._seen[path.name] = (key, network)
        return network

    def _check(self, spec: NetworkSpec) -> None:
        if not _NAME.match(spec.name):
            raise errors.InvalidArgument(
                f"{spec.name!r} is no network name.", hint="use letters, digits, '_', '.', '-'"
            )
        if spec.name == "default":
            raise errors.InvalidArgument("'default' means the network bridge.", hint="choose another name")
        if spec.driver != "bridge":
            raise errors.InvalidArgument(
                f"{self._engine} has no network driver {spec.driver!r}; it has bridge.", hint=_OTHERS
            )
        if spec.options or spec.ipv6:
            raise errors.Unsupported(
                f"{self._engine} has no {'IPv6' if spec.ipv6 else 'options'} for networks.", hint=_OTHERS
            )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with locked(self._folder):
            yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other thread and process from changing what a folder holds; makes it if need be. Raises EngineUnavailable."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"Networks cannot be kept: {error.strerror}.", hint=f"make room and check the rights of {folder}"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@functools.cache
def _adapter() -> TypeAdapter[Network]:
    from pydantic import TypeAdapter

    return TypeAdapter(Network)
