"""What is an engine like when it answers, and where was it found?"""

from __future__ import annotations

from dataclasses import dataclass

EngineName = str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine may be reached: `url` such as unix:///var/run/docker.sock, and who said so."""

    engine: EngineName
    url: str
    source: str

    @property
    def socket_path(self) -> str | None:
        """The path of a Unix socket, None for other schemes."""
        return self.url.removeprefix("unix://") if self.url.startswith("unix://") else None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself."""

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


@dataclass(frozen=True, slots=True)
class EngineProbe:
    """The outcome of asking one engine: its info, or why it is not available and what would help."""

    name: EngineName
    endpoint: Endpoint | None
    info: EngineInfo | None
    reason: str = ""
    remedy: str = ""
