"""What do the tools for volumes, networks and pruning answer?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

from pydantic import Field, PrivateAttr

from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.tools._answer import Answer, Keep, Row, table


class Listing(Answer):
    """A page of a list whose rows may be cut: the cursor then stands behind the last one shown."""

    total: int
    next_cursor: str | None = Field(None, description="Pass as cursor for the next page")

    _cursor_behind: Callable[[int], str] | None = PrivateAttr(default=None)

    def with_cursors(self, behind: Callable[[int], str]) -> Self:
        """Remember how to make the cursor behind a row (its index), for when rows are cut."""
        self._cursor_behind = behind
        return self

    def cut(self, field: str, keep: int) -> Self:
        keep = max(keep, 1)
        shorter = super().cut(field, keep)
        if self._cursor_behind is None:
            return shorter
        return shorter.model_copy(update={"next_cursor": self._cursor_behind(keep - 1)})

    def _shown(self, what: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
        if not rows:
            return f"no {what}" if self.total == 0 else f"no more {what}"
        lines = [table(header, rows)]
        if self.next_cursor is not None:
            lines.append(
                f"{len(rows)} of {self.total} shown; next: the same arguments with cursor={self.next_cursor!r}"
            )
        return "\n".join(lines)


class VolumeListRow(Row):
    """A volume of a list; `used_by` are the containers that mount it, running or not."""

    name: str
    driver: str
    created: str | None = None
    size_bytes: int | None = None
    used_by: list[str] = []
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    own: bool | None = None
    engine: str


class VolumeListAnswer(Listing):
    """A page of volumes, newest first."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"volumes": "first"}

    volumes: list[VolumeListRow]

    def text(self) -> str:
        header = ("NAME", "DRIVER", "CREATED", "SIZE", "USED BY", "OPTIONS", "OWN")
        rows = [
            (
                row.name,
                row.driver,
                row.created or "",
                sizes.show(row.size_bytes),
                ",".join(row.used_by),
                _pairs(row.options),
                "own" if row.own else "",
            )
            for row in self.volumes
        ]
        return self._shown("volumes", header, rows)


class VolumeAnswer(Answer):
    """A volume that was made."""

    name: str
    driver: str
    mountpoint: str | None = None
    engine: str

    def text(self) -> str:
        return f"volume {self.name} ({self.driver}) is there; mount it with mounts=['{self.name}:/path']"


class NetworkListRow(Row):
    """A network of a list; `used_by` are the containers that are connected, running or not."""

    id: str
    name: str
    driver: str
    created: str | None = None
    internal: bool | None = None
    subnets: list[str] = []
    used_by: list[str] = []
    labels: dict[str, str] | None = None
    own: bool | None = None
    engine: str


class NetworkListAnswer(Listing):
    """A page of networks, newest first."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"networks": "first"}

    networks: list[NetworkListRow]

    def text(self) -> str:
        header = ("ID", "NAME", "DRIVER", "CREATED", "SUBNETS", "INTERNAL", "USED BY", "OWN")
        rows = [
            (
                row.id,
                row.name,
                row.driver,
                row.created or "",
                ",".join(row.subnets),
                "internal" if row.internal else "",
                ",".join(row.used_by),
                "own" if row.own else "",
            )
            for row in self.networks
        ]
        return self._shown("networks", header, rows)


class NetworkAnswer(Answer):
    """A network that was made."""

    id: str
    name: str
    driver: str
    subnets: list[str] = []
    internal: bool = False
    engine: str

    def text(self) -> str:
        where = f", {', '.join(self.subnets)}" if self.subnets else ""
        inside = ", internal" if self.internal else ""
        return f"network {self.name} ({self.id}) is there: {self.driver}{where}{inside}"


class ConnectionAnswer(Answer):
    """The networks that a container is connected to now, with its addresses."""

    container: str
    network: str
    connected: bool
    networks: dict[str, str]

    def text(self) -> str:
        verb = "connected to" if self.connected else "disconnected from"
        now = ", ".join(f"{name} {address}".rstrip() for name, address in self.networks.items()) or "no network"
        return f"{self.container} was {verb} {self.network}; it is on {now}"


class ObjectRemoveAnswer(Answer):
    """What was removed."""

    name: str
    removed: list[str]

    def text(self) -> str:
        return f"removed {'; '.join(self.removed)}"


class PruneRow(Row):
    """An object that nobody uses."""

    name: str
    detail: str
    created: str | None = None
    size_bytes: int | None = None


class KeptRow(Row):
    """An object that is still there, and why."""

    name: str
    reason: str


class PruneAnswer(Answer):
    """What was removed, or with `dry_run` what would be; `freed_bytes` as far as sizes are known (`at_most`: layers may be shared)."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"objects": "first", "kept": "first"}

    kind: str
    dry_run: bool
    objects: list[PruneRow]
    total: int
    kept: list[KeptRow] = []
    freed_bytes: int | None = None
    at_most: bool = False

    def text(self) -> str:
        what = self.kind.replace("_", " ")
        if not self.total and not self.kept:
            return f"no {what} to remove"
        size = f", {'at most ' if self.at_most else ''}{sizes.show(self.freed_bytes)}" if self.freed_bytes else ""
        count = "" if self.kind == "build_cache" else f"{self.total} "
        head = f"{'would remove' if self.dry_run else 'removed'} {count}{what}{size}"
        lines = [f"{head} (dry_run=false does it)" if self.dry_run else head]
        header = ("NAME", "WHAT", "CREATED", "SIZE")
        rows = [(row.name, row.detail, row.created or "", sizes.show(row.size_bytes)) for row in self.objects]
        lines += [table(header, rows)] if rows else []
        lines += [f"kept {one.name}: {one.reason}" for one in self.kept]
        return "\n".join(lines)


def _pairs(given: Mapping[str, str] | None) -> str:
    return " ".join(f"{name}={value}" for name, value in (given or {}).items())
