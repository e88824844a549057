"""What are the volumes and networks of an engine, what does it take to make one, and what was pruned?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

PruneKind = Literal["containers", "images", "volumes", "networks", "build_cache"]


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """Everything an engine needs to create a volume; `options` are its driver's."""

    name: str
    driver: str = "local"
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A volume as a list shows it; `users` are the names of the containers that mount it."""

    name: str
    driver: str
    created: datetime | None
    labels: Mapping[str, str]
    engine: str
    mountpoint: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Everything an engine needs to create a network; `subnet` in CIDR notation."""

    name: str
    driver: str = "bridge"
    internal: bool = False
    subnet: str | None = None
    gateway: str | None = None
    ipv6: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """A network as a list shows it; `users` are the names of the containers that are connected.

    `own` says that the engine made it for itself: nobody can remove it.
    """

    id: str
    name: str
    driver: str
    created: datetime | None
    internal: bool
    subnets: tuple[str, ...]
    labels: Mapping[str, str]
    engine: str
    users: tuple[str, ...] = ()
    own: bool = False


@dataclass(frozen=True, slots=True)
class BuildCache:
    """How much the engine's build cache holds, and how much of it nothing uses."""

    entries: int
    bytes: int
    unused_bytes: int
