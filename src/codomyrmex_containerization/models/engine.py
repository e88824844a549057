"""What is an engine like when it answers, and where was it found?"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import urlsplit

EngineName = str  # `docker`, `podman`, `embedded`, `memory`, or the name of an endpoint from the settings
EngineKind = Literal["docker", "podman", "embedded", "memory"]
Capability = Literal[
    "build",
    "build_secrets",
    "pull",
    "exec",
    "exec_kill",
    "pause",
    "logs",
    "copy",
    "limits",
    "ports",
    "usage",
    "events",
    "volumes",
    "networks",
    "health",
    "update",
    "container_state",
]

KINDS: tuple[EngineKind, ...] = get_args(EngineKind)
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)


@dataclass(frozen=True, slots=True)
class Tls:
    """What a tcp endpoint with TLS is spoken to with: paths of PEM files; no `ca` means the system's authorities."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine may be reached: `url` such as unix:///var/run/docker.sock, and who said so.

    `engine` is the name that a call uses; `kind` is what is expected to answer. `host_paths` says whether paths of this
    host may be given to an engine on another one (a setting of the endpoint); `identity` is a key file for ssh,
    `via` the address on this host at which a tunnel to `url` listens; `searched` says that nobody
    named it: it was found at a well-known place, and another may be taken in its stead.
    """

    engine: EngineName
    url: str
    source: str
    kind: EngineKind = "docker"
    tls: Tls | None = None
    identity: str | None = None
    host_paths: bool = False
    insecure: bool = False
    via: str | None = None
    searched: bool = False

    @property
    def scheme(self) -> str:
        """The part of the address before `://`."""
        return self.url.partition("://")[0]

    @property
    def socket_path(self) -> str | None:
        """The path of a Unix socket, None for other schemes."""
        return self.url.removeprefix("unix://") if self.url.startswith("unix://") else None

    @property
    def is_loopback(self) -> bool:
        """Whether a tcp address is one of this host's own."""
        host = urlsplit(self.url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself, and what it cannot do: `lacks` maps a capability to the reason.

    `product` is what really answered, which may be another than the endpoint's kind (Podman behind DOCKER_HOST); `identity`
    is the same for one engine at two addresses, empty where it cannot be told.
    """

    name: EngineName
    version: str
    api_version: str
    endpoint: Endpoint
    rootless: bool
    cgroup_version: int | None
    storage_driver: str
    os: str
    architecture: str
    containers: int
    containers_running: int
    images: int
    builder: str
    kernel_version: str = ""
    product: EngineKind = "docker"
    identity: str = ""
    lacks: Mapping[Capability, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What the engine can do."""
        return tuple(one for one in CAPABILITIES if one not in self.lacks)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that containers may want: whether it holds here, what is known of it, and what would bring it."""

    what: str
    holds: bool
    said: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class EngineProbe:
    """The outcome of asking one engine: its info, or why it is not available and what would help."""

    name: EngineName
    endpoint: Endpoint | None
    info: EngineInfo | None
    reason: str = ""
    remedy: str = ""
