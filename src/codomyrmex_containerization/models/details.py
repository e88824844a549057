"""What can be known of one container or one image, in full?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from codomyrmex_containerization.models.container import ContainerState, Healthcheck, Limits, RestartPolicy


@dataclass(frozen=True, slots=True)
class NetworkAttachment:
    """A container's place in a network."""

    name: str
    ip_address: str
    gateway: str
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SecurityOptions:
    """What a container may do beyond or below the engine's defaults."""

    user: str
    privileged: bool
    cap_add: tuple[str, ...]
    cap_drop: tuple[str, ...]
    seccomp: str
    apparmor: str
    read_only_rootfs: bool
    no_new_privileges: bool
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContainerDetails:
    """A container looked at from all sides; `limits_by` says of a limit what holds it, where the engine tells."""

    state: ContainerState
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    workdir: str
    hostname: str
    pid: int
    restart: RestartPolicy
    restart_count: int
    healthcheck: Healthcheck | None
    health_failures: int
    health_output: str
    networks: tuple[NetworkAttachment, ...]
    limits: Limits
    security: SecurityOptions
    log_driver: str
    limits_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image as a list shows it; `containers` counts those made of it, None where the engine does not say."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size_bytes: int
    created: datetime
    labels: Mapping[str, str]
    engine: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image and the instruction that made it."""

    size_bytes: int
    instruction: str
    created: datetime | None


@dataclass(frozen=True, slots=True)
class ImageDetails:
    """An image's configuration and layers, the newest layer first."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size_bytes: int
    created: datetime | None
    os: str
    architecture: str
    variant: str
    user: str
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    workdir: str
    exposed_ports: tuple[str, ...]
    volumes: tuple[str, ...]
    labels: Mapping[str, str]
    healthcheck: Healthcheck | None
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A command to run in a container that runs."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    user: str | None = None
    workdir: str | None = None
    stdin: bool = False


@dataclass(frozen=True, slots=True)
class ExecState:
    """How a command in a container stands. `pid` is its process on the engine's host, 0 when unknown."""

    running: bool
    exit_code: int | None
    pid: int


@dataclass(frozen=True, slots=True)
class PathStat:
    """A path inside a container."""

    name: str
    size_bytes: int
    is_folder: bool
    link_target: str
