"""What are images, volumes and networks here, and who keeps them?"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from codomyrmex_containerization.engines.memory import files
from codomyrmex_containerization.models.container import Healthcheck
from codomyrmex_containerization.models.details import Layer
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeSpec

_ADJECTIVES = (
    "amber brave calm deft eager fair glad keen kind lucid merry noble quiet rapid sunny tidy vivid warm".split()
)
_NOUNS = "ant bear crane deer eagle finch goose heron ibis jay kiwi lark mole newt otter puffin quail robin".split()


class Keeper(Protocol):
    """What a container knows of the engine that keeps it."""

    engine: str

    def note(self, kind: str, action: str, id: str, name: str, attributes: Mapping[str, str] | None = None) -> None:
        """Remember that something happened."""

    def keeps(self, container: str) -> bool:
        """Say whether a container is still there, by its full id."""


@dataclass(frozen=True, slots=True)
class Config:
    """What an image says of the containers made of it."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    stop_signal: str = "TERM"


@dataclass(slots=True)
class Image:
    """A tree, a configuration, and the instructions that made them (the oldest first); its id is their digest."""

    id: str
    parent: str
    created: datetime
    tree: files.Tree
    config: Config
    layers: tuple[Layer, ...]
    digests: tuple[str, ...]
    tags: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """The bytes of all layers."""
        return sum(layer.size_bytes for layer in self.layers)


@dataclass(slots=True)
class Volume:
    """A tree that containers share."""

    spec: VolumeSpec
    created: datetime
    tree: files.Tree


@dataclass(slots=True)
class Network:
    """Who belongs together; nothing is sent."""

    id: str
    spec: NetworkSpec
    created: datetime
    subnet: str
    own: bool = False
    given: int = 1


def new_name(taken: set[str]) -> str:
    """Return a name that no container has."""
    while True:
        name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}"
        if name in taken:
            name += secrets.token_hex(2)
        if name not in taken:
            return name


def new_id() -> str:
    """Return 64 hexadecimal digits that nobody has."""
    return secrets.token_hex(32)


def manifest(tree: files.Tree) -> dict[str, tuple[str, int, int, int, int, str]]:
    """Return what every path of a tree is: kind, mode, owner, size, content."""
    found: dict[str, tuple[str, int, int, int, int, str]] = {}
    seen: dict[int, str] = {}
    for path, node in files.walk(tree.root):
        size, content = 0, ""
        if isinstance(node, files.File):
            if id(node) not in seen:
                seen[id(node)], size = hashlib.sha256(node.data).hexdigest(), len(node.data)
            content = seen[id(node)]
        elif isinstance(node, files.Link):
            content = node.target
        found[path] = (type(node).__name__, node.mode, node.uid, node.gid, size, content)
    return found


def digest(value: object) -> str:
    """Return a digest of plain data."""
    return hashlib.sha256(json.dumps(value, default=str).encode("utf-8", "surrogatepass")).hexdigest()
