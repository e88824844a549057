"""What are images here, and where does this engine keep what it has?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from codomyrmex_containerization.models.container import Healthcheck
from codomyrmex_containerization.models.details import Layer

NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)  # of what does not say when it was made


@dataclass(frozen=True, slots=True)
class ImageConfig:
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
    stop_signal: str = ""
    shell: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store. `id` is the digest of its configuration, `diff_ids` those of its unpacked layers, the lowest first.

    `layers` are the instructions that made it, the oldest first, with the bytes that each added; `parent` is the id of the image
    that a build step went on from, empty where nobody knows.
    """

    id: str
    digest: str
    created: datetime | None
    os: str
    architecture: str
    variant: str
    config: ImageConfig
    diff_ids: tuple[str, ...]
    layers: tuple[Layer, ...]
    tags: tuple[str, ...] = ()
    parent: str = ""

    @property
    def size_bytes(self) -> int:
        """The bytes of all layers, unpacked."""
        return sum(layer.size_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Folders:
    """Where everything lies: `data` outlives a reboot, `run` (on a file system in memory, its path short) does not."""

    data: Path
    run: Path

    @property
    def images(self) -> Path:
        """The content store's: blobs, unpacked layers, names."""
        return self.data / "images"

    @property
    def containers(self) -> Path:
        """One folder for each container, by its full id."""
        return self.data / "containers"

    @property
    def volumes(self) -> Path:
        """One folder for each volume, by its name."""
        return self.data / "volumes"

    @property
    def networks(self) -> Path:
        """One file for each network."""
        return self.data / "networks"

    @property
    def exits(self) -> Path:
        """The exit codes that conmon leaves, by container id."""
        return self.data / "exits"

    @property
    def runtime(self) -> Path:
        """The OCI runtime's own state."""
        return self.run / "oci"
