"""What is a container, before it runs (its specification) and after (its row, its state, its result)?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

ContainerStatus = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]
HealthStatus = Literal["none", "starting", "healthy", "unhealthy"]
Protocol = Literal["tcp", "udp", "sctp"]
MountType = Literal["bind", "volume", "tmpfs", "image"]
RestartName = Literal["no", "always", "unless-stopped", "on-failure"]
PullPolicy = Literal["always", "missing", "never"]
Lifetime = Literal["call", "detached", "created", "imported", "sandbox", "job"]
Stream = Literal["stdout", "stderr"]
Isolation = Literal["minimal", "standard", "strict"]

STATUSES: tuple[str, ...] = get_args(ContainerStatus)


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A container's port and where the host publishes it (`host_port` None: any free one)."""

    container_port: int
    protocol: Protocol = "tcp"
    host_ip: str | None = None
    host_port: int | None = None

    def __str__(self) -> str:
        inside = f"{self.container_port}/{self.protocol}"
        if self.host_ip is None:
            return inside
        host = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{host}:{self.host_port or '*'}->{inside}"


@dataclass(frozen=True, slots=True)
class Mount:
    """Something attached into a container: a host path, a volume, a tmpfs. A volume that is not there yet gets the labels."""

    type: MountType
    target: str
    source: str = ""
    read_only: bool = False
    size_bytes: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.type} {self.source or '-'}:{self.target}{':ro' if self.read_only else ''}"


@dataclass(frozen=True, slots=True)
class Ulimit:
    """One resource limit of the container's processes."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use; None is the engine's default. `disk_bytes` is what it may write, beside volumes and other mounts."""

    memory_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    pids_limit: int | None = None
    shm_bytes: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    disk_bytes: int | None = None
    disk_read_bytes_per_second: int | None = None
    disk_write_bytes_per_second: int | None = None


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What the engine does after the container's exit."""

    name: RestartName = "no"
    maximum_retry_count: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.maximum_retry_count}" if self.maximum_retry_count else self.name


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """The command that tells whether a container is well; durations in seconds."""

    test: tuple[str, ...]
    interval_seconds: float | None = None
    timeout_seconds: float | None = None
    retries: int | None = None
    start_period_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything an engine needs to create a container; `isolation` None is what the engine always does."""

    image: str
    name: str | None = None
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[PortMapping, ...] = ()
    mounts: tuple[Mount, ...] = ()
    network: str | None = None
    user: str | None = None
    workdir: str | None = None
    stdin_open: bool = False
    limits: Limits = Limits()
    read_only_rootfs: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    restart: RestartPolicy = RestartPolicy()
    healthcheck: Healthcheck | None = None
    platform: str | None = None
    lifetime: Lifetime = "call"
    isolation: Isolation | None = None


@dataclass(frozen=True, slots=True)
class ContainerRow:
    """A container as a list shows it; `pod` is the name of the pod that it belongs to, on engines that have such."""

    id: str
    name: str
    image: str
    status: ContainerStatus
    health: HealthStatus
    created: datetime
    ports: tuple[PortMapping, ...]
    labels: Mapping[str, str]
    engine: str
    pod: str = ""


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A mount of an existing container."""

    type: str
    source: str
    target: str
    read_only: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A container looked at closely: what the gate, the logs and a finished run need."""

    id: str
    name: str
    image: str
    image_id: str
    status: ContainerStatus
    exit_code: int | None
    oom_killed: bool
    error: str
    started_at: datetime | None
    finished_at: datetime | None
    created: datetime
    tty: bool
    env: tuple[str, ...]
    labels: Mapping[str, str]
    mounts: tuple[MountPoint, ...]
    ports: tuple[PortMapping, ...]
    privileged: bool
    host_namespaces: tuple[str, ...]
    health: HealthStatus
    writable_bytes: int | None
    engine: str
    auto_remove: bool = False


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """A piece of a container's output as the engine delivered it."""

    stream: Stream
    data: bytes
