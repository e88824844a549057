"""What is an image, and what is asked of a build?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

BuilderName = Literal["buildkit", "classic"]


@dataclass(frozen=True, slots=True)
class ImageState:
    """An image of an engine, looked at closely. `id` is the engine's own id of it."""

    id: str
    tags: tuple[str, ...]
    size_bytes: int
    created: datetime | None
    os: str
    architecture: str
    layers: int
    labels: Mapping[str, str]
    env: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BuildSecret:
    """A secret that a build step may read: from an environment variable of this process or from a file."""

    id: str
    env: str | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """Everything a builder needs. `context` None is an empty context.

    `dockerfile` is the path of the Dockerfile on this host, None when `dockerfile_text` holds it.
    `frontend`, `entitlements` and `network` say what the Dockerfile asks for, for the policy to judge; so do `step_mounts`
    (each `RUN --mount` as written) and `images` (what FROM and `from=` name) for a builder that does not keep them inside.
    """

    tags: tuple[str, ...]
    context: Path | None
    dockerfile: Path | None
    dockerfile_text: str
    target: str | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    secrets: tuple[BuildSecret, ...] = ()
    frontend: str | None = None
    entitlements: tuple[str, ...] = ()
    network: str | None = None
    step_mounts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildEvent:
    """Something a running build said.

    `kind`: `step` (number of total began, with its text), `log` (a line of output), `cached` (the step came from the cache),
    `image` (an intermediate or final image id), `warning`, `error` (the engine's reason). `step` is the instruction it belongs to, where
    the builder says so.
    """

    kind: Literal["step", "log", "cached", "image", "warning", "error"]
    text: str = ""
    number: int | None = None
    total: int | None = None
    exit_code: int | None = None
    line: int | None = None
    step: str = ""
