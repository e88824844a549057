"""What goes on in a container, what has changed in it, and what does a file say that one was written to with its state?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from codomyrmex_containerization.models.container import ContainerSpec

ChangeKind = Literal["added", "changed", "deleted"]
ExportFormat = Literal["rootfs", "state"]


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process of a container: `pid` is its number on the engine's host (memory, which has no host: its own).

    `user` is its user inside, a name where the engine knows one; Docker tells the host's number, which is the same unless it
    maps users. `cpu_seconds` is None where the engine does not count them.
    """

    pid: int
    user: str
    command: str
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path of a container that is not as its image has it. A folder is changed when something in it is."""

    kind: ChangeKind
    path: str


@dataclass(frozen=True, slots=True)
class StoredContainer:
    """What an archive of a container says of itself: nothing of it is true of this machine, and all of it is to be judged.

    `image` is the name that its image had where it comes from, `image_id` the image's id, which is the same everywhere.
    """

    name: str
    image: str
    image_id: str
    spec: ContainerSpec
