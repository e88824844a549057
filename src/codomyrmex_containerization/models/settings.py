"""What can be set: the one settings model, with its defaults.

Where the values come from is `config`'s business; what the policy part means is `policy`'s.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from codomyrmex_containerization.models.container import Isolation

ENDPOINT_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
RESERVED_ENGINES = ("docker", "podman", "memory", "embedded")

Confirmation = Literal["auto", "elicit", "token", "never"]
Foreign = Literal["allow", "ask", "refuse"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PolicySettings(_Section):
    """What calls may do to this machine: everything here is off until allowed."""

    allowed_paths: tuple[str, ...] | None = Field(
        None,
        description="Host folders that mounts, build contexts and copies may use; default: the working folder and "
        "the temporary folder (only the latter when started in / or in the home folder)",
    )
    allow_engine_socket: bool = Field(False, description="Mounting an engine's socket into a container")
    allow_privileged: bool = Field(False, description="Privileged containers")
    allow_minimal_isolation: bool = Field(
        False, description="isolation=minimal: containers whose system calls are not filtered"
    )
    allow_host_namespaces: bool = Field(False, description="network=host, and joining other containers' namespaces")
    allowed_capabilities: tuple[str, ...] = Field(
        (), description="Capabilities that may be added beyond Docker's defaults"
    )
    publish_addresses: tuple[str, ...] = Field(
        ("127.0.0.1", "::1"), description="Host addresses ports may be published on"
    )
    allowed_frontends: tuple[str, ...] = Field(
        ("docker/dockerfile",), description="BuildKit frontends that '# syntax=' may name"
    )
    volume_drivers: tuple[str, ...] = Field(
        ("local",),
        description="Volume drivers that may be used; 'local:nfs' and the like let the local driver mount that type",
    )
    secret_env: tuple[str, ...] = Field((), description="Environment variables that a build secret may read")
    pull_registries: tuple[str, ...] = Field(
        ("*",), description="Registries that images may be pulled from, as host or host:port; '*' is any"
    )
    push_registries: tuple[str, ...] = Field(
        (), description="Registries that images may be pushed to without being asked about; '*' is any"
    )
    foreign: Foreign = Field("allow", description="Writing calls on containers that this server did not create")


class RegistrySettings(_Section):
    """How registries of images are reached."""

    insecure: tuple[str, ...] = Field(
        (),
        description="Registries, as host or host:port, that may have no TLS or a certificate that nobody vouches for",
    )
    mirrors: tuple[str, ...] = Field(
        (), description="Where to look first when pulling: 'REGISTRY=MIRROR', such as 'docker.io=mirror.example:5000'"
    )
    token_hosts: tuple[str, ...] = Field(
        (), description="Hosts beyond a registry's own domain that may be given its credentials for a token"
    )
    certificates: tuple[str, ...] = Field(
        ("~/.config/containers/certs.d", "~/.docker/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d"),
        description="Folders with a folder HOST:PORT each: its authorities (*.crt), own certificates (*.cert, *.key)",
    )


class AuditSettings(_Section):
    """The audit file: one JSON line per call."""

    enabled: bool = Field(True, description="Write the audit file")
    max_bytes: int = Field(5_000_000, ge=10_000, description="Size at which the file is rotated")
    files: int = Field(4, ge=1, le=100, description="How many rotated files are kept")


class EndpointSettings(_Section):
    """An engine elsewhere, used by its name: a table [endpoints.NAME]."""

    url: str = Field(description="Its address: unix:///path, tcp://host:port or ssh://user@host/path")
    kind: Literal["docker", "podman"] = Field("docker", description="What answers there")
    ca: str | None = Field(None, description="Authority that signed its certificate, a PEM file (tcp)")
    cert: str | None = Field(None, description="Own certificate, a PEM file (tcp)")
    key: str | None = Field(None, description="Key of the own certificate, a PEM file (tcp)")
    identity: str | None = Field(None, description="Key file for ssh")
    insecure: bool = Field(False, description="Allow tcp to another host without TLS")
    host_paths: bool = Field(False, description="Allow mounting that host's own paths")


class Settings(_Section):
    """All settings of one process."""

    engine: str | None = Field(None, description="Engine that calls use when they name none")
    engines: tuple[str, ...] = Field(
        ("docker", "podman", "embedded"),
        description="Engines that may be used; listings without an engine ask all of them",
    )
    podman_service: Literal["auto", "never"] = Field(
        "auto", description="Whether 'podman system service' is started when Podman is installed and no socket answers"
    )
    endpoints: dict[str, EndpointSettings] = Field(
        default_factory=dict, description="Engines elsewhere by name, each a table [endpoints.NAME] with an url"
    )
    isolation: Isolation = Field(
        "standard",
        description="Level of isolation of containers for which a call names none; with 'standard' engines keep their own walls",
    )
    read_only: bool = Field(False, description="Refuse every call that changes something")
    toolsets: tuple[str, ...] = Field(("default",), description="Toolsets to offer: names, 'default' or 'all'")
    tools: tuple[str, ...] = Field((), description="Single tools to offer beside the toolsets")
    exclude_tools: tuple[str, ...] = Field((), description="Tools never to offer")
    confirmation: Confirmation = Field("auto", description="How destructive calls are confirmed")
    answer_characters: int = Field(20_000, ge=1_000, le=200_000, description="Most characters of text in one answer")
    output_schemas: bool = Field(True, description="Publish output schemas in tools/list")
    engine_timeout_seconds: float = Field(20.0, gt=0, le=600, description="Time limit of one short engine request")
    buildx: str | None = Field(
        None, description="Path of the buildx program; default: where docker looks for it; 'off': do without"
    )
    reap_at_start: bool = Field(True, description="Remove what dead runs of this server left behind")
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="Messages on stderr")
    policy: PolicySettings = PolicySettings()
    registries: RegistrySettings = RegistrySettings()
    audit: AuditSettings = AuditSettings()

    @field_validator("endpoints")
    @classmethod
    def _usable_names(cls, endpoints: dict[str, EndpointSettings]) -> dict[str, EndpointSettings]:
        if not all(ENDPOINT_NAME.fullmatch(name) and name not in RESERVED_ENGINES for name in endpoints):
            raise ValueError
        return endpoints
