"""What was set up for each container's network, noted before it is done, so that it can be taken down by anybody?"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import state
from codomyrmex_containerization.models.container import PortMapping
from codomyrmex_containerization.models.details import NetworkAttachment

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_ID_LENGTH = 64
_SHORT = 20


@dataclass(frozen=True, slots=True)
class Bridged:
    """What the bridge program was told of a network; the same is told again to take it down."""

    id: str
    bridge: str
    subnet: str
    internal: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A container's place in one network; `bridged` is None where a stack in a process, or nothing, leads out.

    `inner` is where its ports are forwarded from when that is not done on the host.
    """

    network: str
    interface: str
    address: str
    gateway: str
    aliases: tuple[str, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    nameservers: tuple[str, ...] = ()
    bridged: Bridged | None = None
    inner: tuple[PortMapping, ...] = ()

    @property
    def attachment(self) -> NetworkAttachment:
        """As a container's details show it."""
        return NetworkAttachment(self.network, self.address, self.gateway, self.aliases)


@dataclass(frozen=True, slots=True)
class Links:
    """Everything that belongs to one container's network. `maker` is the server that set it up."""

    container_id: str
    name: str
    maker: state.Process
    links: tuple[Link, ...] = ()
    stack: state.Process | None = None
    holder: state.Process | None = None

    @property
    def short(self) -> str:
        """The beginning of its files' names."""
        return self.container_id[:_SHORT]

    @property
    def ports(self) -> tuple[PortMapping, ...]:
        """The published ports with the host's real ones."""
        return tuple(port for link in self.links for port in link.ports)

    @property
    def nameservers(self) -> tuple[str, ...]:
        """Who answers for names: those of created networks know its neighbours, and come first."""
        ordered = sorted(self.links, key=lambda one: one.bridged is None)
        return tuple(dict.fromkeys(one for link in ordered for one in link.nameservers))


class Notes:
    """The notes of one folder, which a reboot empties."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ids(self) -> list[str]:
        """Return the containers that something was set up for."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return sorted(one[:_ID_LENGTH] for one in names if len(one) == _ID_LENGTH + 5 and one.endswith(".json"))

    def read(self, container_id: str) -> Links | None:
        """Return what was set up for a container; None when nothing was. Raises EngineUnavailable."""
        path = self.folder / f"{container_id}.json"
        try:
            return _adapter().validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The note of a container's network cannot be read: {error.strerror}.", hint=f"check {path}"
            ) from error
        except ValueError:
            with suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
            return None

    def all(self) -> list[Links]:
        """Return everything that was set up."""
        found = [self.read(one) for one in self.ids()]
        return [one for one in found if one is not None]

    def write(self, links: Links) -> Links:
        """Keep a note; returns it. Raises EngineUnavailable."""
        # Not forced to the disk: a reboot leaves nothing that it tells of.
        data = _adapter().dump_json(links, exclude_defaults=True)
        state.write_whole(self.folder / f"{links.container_id}.json", data, forced=False)
        return links

    def forget(self, container_id: str) -> None:
        """Strike a note out."""
        with suppress(OSError):
            (self.folder / f"{container_id}.json").unlink()


@functools.cache
def _adapter() -> TypeAdapter[Links]:
    from pydantic import TypeAdapter

    return TypeAdapter(Links)
