"""What volumes and networks are there, which one is meant, and what would be lost with it?"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import containers
from codomyrmex_containerization.engines import base, guard
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.models.container import ContainerState
from codomyrmex_containerization.models.storage import NetworkRow, VolumeRow

R = TypeVar("R", VolumeRow, NetworkRow)

_MEASURE_SECONDS = 15.0
_SHORT = 12
_ANONYMOUS = re.compile(r"[0-9a-f]{64}\Z")
_FEWEST_DIGITS = 4


@dataclass(frozen=True, slots=True)
class ObjectFilter:
    """Which volumes or networks a list shows; None is no condition."""

    name: str | None = None
    label: str | None = None
    unused: bool | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """A page of a list; `next_key` is the last row's key when there is more."""

    rows: tuple[R, ...]
    total: int
    next_key: cursors.Key | None


@dataclass(frozen=True, slots=True)
class Loss(Generic[R]):
    """What removing an object would take away, and a digest of that state."""

    row: R
    lost: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Connection:
    """A container and a network."""

    network: NetworkRow
    container: ContainerState


async def list_volumes(
    engine: base.Engine, wanted: ObjectFilter, *, limit: int, after: cursors.Key | None
) -> Page[VolumeRow]:
    """Return a page of volumes, newest first."""
    return _page([row for row in await engine.list_volumes() if _matches(row, wanted)], limit, after)


async def list_networks(
    engine: base.Engine, wanted: ObjectFilter, *, limit: int, after: cursors.Key | None
) -> Page[NetworkRow]:
    """Return a page of networks, newest first."""
    return _page([row for row in await engine.list_networks() if _matches(row, wanted)], limit, after)


def row_key(row: VolumeRow | NetworkRow) -> cursors.Key:
    """Return the key that a page goes on behind."""
    return (_seconds(row.created), hashlib.sha256(_id(row).encode()).hexdigest()[:16])


async def volume_sizes(engine: base.Engine) -> dict[str, int]:
    """Return the bytes of the volumes whose size the engine tells. Raises DeadlineExceeded."""
    try:
        with anyio.fail_after(_MEASURE_SECONDS):
            return await engine.volume_sizes()
    except (TimeoutError, errors.DeadlineExceeded) as error:
        raise errors.DeadlineExceeded(
            f"{engine.name} had not measured its volumes after {_MEASURE_SECONDS:g} seconds.",
            hint="list them without measure",
        ) from error


async def sizes_if_known(engine: base.Engine) -> dict[str, int]:
    """Return the bytes of volumes for what can be said without them too: those not told in reasonable time are absent."""
    try:
        return await volume_sizes(engine)
    except (errors.DeadlineExceeded, errors.Unsupported):
        return {}


async def find_volume(engine: base.Engine, volume: str) -> VolumeRow:
    """Return the volume of a name; the beginning is enough for one that the engine named.

    Raises NotFound with the nearest names, Ambiguous.
    """
    rows = await engine.list_volumes()
    named = [row for row in rows if row.name == volume]
    begun = [row for row in rows if _ANONYMOUS.match(row.name) and _begins(row.name, volume)]
    return _only(named or begun, rows, volume, kind="volume", engine=engine.name)


async def find_network(engine: base.Engine, network: str) -> NetworkRow:
    """Return the network of a name, an id or the beginning of one. Raises NotFound with the nearest names, Ambiguous."""
    rows = await engine.list_networks()
    exact = [row for row in rows if row.id == network] or [row for row in rows if row.name == network]
    begun = [row for row in rows if _begins(row.id, network)]
    return _only(exact or begun, rows, network, kind="network", engine=engine.name)


async def plan_volume_removal(engine: base.Engine, volume: str) -> Loss[VolumeRow]:
    """Say what removing a volume would take away. Raises NotFound, Ambiguous, Conflict (containers mount it)."""
    row = await find_volume(engine, volume)
    if row.users:
        raise errors.Conflict(
            f"Volume {short(row.name)} is mounted by {_some(row.users)}.", hint="remove those containers first"
        )
    size = (await sizes_if_known(engine)).get(row.name)
    shown = f", {sizes.show(size)}" if size is not None else ""
    lost = f"volume {row.name} ({row.driver}{shown}{_age(row.created)}) and all that is in it"
    return Loss(
        row,
        (lost,),
        digest("volume", row.name, row.driver, str(row.created), *_pairs(row.options), *_pairs(row.labels)),
    )


async def plan_network_removal(engine: base.Engine, network: str) -> Loss[NetworkRow]:
    """Say what removing a network would take away. Raises NotFound, Ambiguous, Conflict (in use, or the engine's own)."""
    row = await find_network(engine, network)
    if row.own:
        raise errors.Conflict(f"{row.name} is one of the engine's own networks.", hint="it stays")
    if row.users:
        raise errors.Conflict(
            f"Network {row.name} is used by {_some(row.users)}.",
            hint="disconnect them with network_disconnect, or remove those containers first",
        )
    where = ", ".join((row.driver, *row.subnets))
    lost = f"network {row.name} ({where}{_age(row.created)})"
    return Loss(row, (lost,), digest("network", row.id, row.name))


async def find_connection(engine: guard.GuardedEngine, network: str, container: str) -> Connection:
    """Return a network and a container that may be written to. Raises NotFound, Ambiguous, Refused."""
    state = await containers.find(engine, container)
    engine.judge_foreign(state)
    return Connection(await find_network(engine, network), state)


def short(name: str) -> str:
    """Return a name as it is shown: one that the engine made up is shortened."""
    return name[:_SHORT] if _ANONYMOUS.match(name) else name


def digest(*parts: str) -> str:
    """Return a digest of a state."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _page(rows: Iterable[R], limit: int, after: cursors.Key | None) -> Page[R]:
    def order(key: cursors.Key) -> tuple[float, str]:
        return (-key[0], key[1])

    ordered = sorted(rows, key=lambda row: order(row_key(row)))
    rest = [row for row in ordered if after is None or order(row_key(row)) > order(after)]
    page = rest[:limit]
    return Page(tuple(page), len(ordered), row_key(page[-1]) if len(rest) > limit else None)


def _matches(row: VolumeRow | NetworkRow, wanted: ObjectFilter) -> bool:
    if wanted.name is not None and wanted.name not in row.name:
        return False
    if wanted.unused is not None and wanted.unused == bool(row.users):
        return False
    if wanted.label is None:
        return True
    name, equals, value = wanted.label.partition("=")
    return name in row.labels and (not equals or row.labels[name] == value)


def _only(found: Sequence[R], rows: Sequence[R], text: str, *, kind: str, engine: str) -> R:
    if len(found) == 1:
        return found[0]
    if found:
        raise errors.Ambiguous(
            f"{text!r} fits {len(found)} {kind}s: {', '.join(_id(row)[:_SHORT] for row in found[:5])}.",
            hint="give more of the id",
        )
    near = difflib.get_close_matches(text, [row.name for row in rows], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"{kind}_list shows the {kind}s there are"
    raise errors.NotFound(f"{engine} has no {kind} {text!r}.", hint=hint)


def _begins(id: str, text: str) -> bool:
    return len(text) >= _FEWEST_DIGITS and id.startswith(text)


def _id(row: VolumeRow | NetworkRow) -> str:
    return row.name if isinstance(row, VolumeRow) else row.id


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment is not None else 0.0


def _age(created: datetime | None) -> str:
    return f", made {created:%Y-%m-%d %H:%M}" if created is not None else ""


def _pairs(given: Mapping[str, str]) -> list[str]:
    return [f"{name}={given[name]}" for name in sorted(given)]


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
