"""What must every engine be able to do? The contract that Docker, Podman, embedded and memory fulfil.

Containers and images are named by what a person may write: a name, an id, a short id, a reference. Every method may raise
EngineUnavailable (the engine does not answer, or stopped answering), DeadlineExceeded (it answers too slowly) and Unsupported (it cannot
do this at all). Nothing else than the errors listed leaves an engine: no exception of a library, no empty answer for a failure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import (
    ContainerRow,
    ContainerSpec,
    ContainerState,
    Limits,
    OutputFrame,
    Stream,
)
from codomyrmex_containerization.models.details import (
    ContainerDetails,
    ExecSpec,
    ExecState,
    ImageDetails,
    ImageRow,
    PathStat,
)
from codomyrmex_containerization.models.engine import Check, Endpoint, EngineInfo
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSpec, ImageState
from codomyrmex_containerization.models.inside import ExportFormat, FileChange, ProcessRow, StoredContainer
from codomyrmex_containerization.models.storage import BuildCache, NetworkRow, NetworkSpec, VolumeRow, VolumeSpec
from codomyrmex_containerization.models.usage import Usage

if TYPE_CHECKING:
    from codomyrmex_containerization.clients.credentials import Credential

T = TypeVar("T")

ArchiveFormat = Literal["docker-archive", "oci-archive", "oci"]
STATE_ELSEWHERE = "only the embedded engine writes containers to files with their state, and makes them of such"
Passed = Callable[[int], None]  # is told, in a thread, how many bytes have gone by so far


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a pull or a push did: how many layers were moved or needed not be. What an engine does not tell is empty or None."""

    digest: str = ""
    id: str = ""
    moved: int | None = None
    mounted: int = 0
    there: int | None = None
    moved_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull or a push is; sizes of the layers known so far. The last one says what was done."""

    text: str
    done_bytes: int
    total_bytes: int
    done: Transfer | None = None


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which part of a container's log is wanted; None is no bound."""

    tail: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    stream: Stream | None = None
    timestamps: bool = False
    follow: bool = False


class Attachment(ABC):
    """A container's output as it appears, from before its start to its end."""

    @abstractmethod
    def frames(self) -> AsyncIterator[OutputFrame]:
        """Yield output until the container ends or the connection does.

        Raises EngineUnavailable when the engine goes away.
        """


class Engine(ABC):
    """One engine at one endpoint."""

    name: str
    endpoint: Endpoint

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether the engine runs on this host, so that host paths mean the same to it and to us."""

    @abstractmethod
    async def info(self, *, deadline_seconds: float | None = None) -> EngineInfo:
        """Ask the engine what it is. Raises Unauthorized when its socket may not be opened."""

    async def checks(self) -> list[Check]:
        """Look closely at what holds here, for people; nothing where the engine tells all of it by `info`."""
        return []

    @abstractmethod
    async def list_containers(self, *, all: bool, labels: Sequence[str] = ()) -> list[ContainerRow]:
        """List containers, newest first, in one request; `labels` are `NAME` or `NAME=VALUE`."""

    @abstractmethod
    async def inspect_container(self, container: str, *, size: bool = False) -> ContainerState:
        """Look at one container closely. Raises NotFound, Ambiguous."""

    @abstractmethod
    async def container_details(self, container: str) -> ContainerDetails:
        """Look at one container from all sides. Raises NotFound, Ambiguous."""

    @abstractmethod
    async def create_container(self, spec: ContainerSpec) -> str:
        """Create a container and return its id. Raises NotFound (image, network), Conflict (name taken), InvalidArgument."""

    @abstractmethod
    async def start_container(self, container: str) -> None:
        """Start a container. Raises NotFound, Conflict (port taken), CommandFailed (its program cannot be started)."""

    @abstractmethod
    def attach_container(self, container: str, *, stdin: bytes | None) -> AbstractAsyncContextManager[Attachment]:
        """Attach before the start; `stdin` is written and closed. Raises NotFound."""

    @abstractmethod
    async def wait_container(self, container: str) -> int:
        """Wait until a container is not running and return its exit code. Raises NotFound."""

    @abstractmethod
    async def stop_container(self, container: str, *, timeout_seconds: float) -> None:
        """Ask a container to end, and kill it after `timeout_seconds`. Raises NotFound."""

    @abstractmethod
    async def restart_container(self, container: str, *, timeout_seconds: float) -> None:
        """Stop and start a container. Raises NotFound, and what a start raises."""

    @abstractmethod
    async def pause_container(self, container: str) -> None:
        """Freeze a container's processes. Raises NotFound, Conflict (not running)."""

    @abstractmethod
    async def unpause_container(self, container: str) -> None:
        """Let a frozen container go on. Raises NotFound, Conflict (not paused)."""

    @abstractmethod
    async def create_exec(self, container: str, spec: ExecSpec) -> str:
        """Prepare a command in a container that runs; return its id. Raises NotFound, Conflict (not running)."""

    @abstractmethod
    def start_exec(self, exec_id: str, *, stdin: bytes | None) -> AbstractAsyncContextManager[Attachment]:
        """Start a prepared command and attach to it. Raises CommandFailed (its program cannot be started)."""

    @abstractmethod
    async def inspect_exec(self, exec_id: str) -> ExecState:
        """Say how a command stands. Raises NotFound."""

    @abstractmethod
    async def end_exec(self, container: str, exec_id: str) -> bool:
        """Kill a command and what it started; False when that cannot be done here. Raises NotFound."""

    @abstractmethod
    async def stat_path(self, container: str, path: str) -> PathStat:
        """Look at a path inside a container, running or not. Raises NotFound."""

    @abstractmethod
    async def read_archive(self, container: str, path: str, sink: Callable[[Iterator[bytes]], T]) -> T:
        """Stream a path of a container as a tar to `sink`, which runs in a thread; return what it returns.

        Raises NotFound, and what `sink` raises.
        """

    @abstractmethod
    async def write_archive(self, container: str, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        """Unpack a tar, made while it is sent, into a folder of a container. Raises NotFound, Conflict (read-only)."""

    @abstractmethod
    async def kill_container(self, container: str, signal: str) -> None:
        """Send a signal to a container's first process. Raises NotFound, Conflict (not running)."""

    @abstractmethod
    async def remove_container(self, container: str, *, force: bool, volumes: bool) -> None:
        """Remove a container. Raises NotFound, Conflict (running and not forced)."""

    @abstractmethod
    async def rename_container(self, container: str, name: str) -> None:
        """Give a container another name. Raises NotFound, Conflict (name taken, or its own), InvalidArgument (no name)."""

    @abstractmethod
    async def top(self, container: str) -> list[ProcessRow]:
        """List the processes of a container that runs. Raises NotFound, Conflict (not running)."""

    @abstractmethod
    async def changes(self, container: str) -> list[FileChange]:
        """List by path what a container's writable layer changes of its image, without what is mounted. Raises NotFound."""

    @abstractmethod
    async def commit_container(self, container: str, *, tag: str, labels: Mapping[str, str], message: str = "") -> str:
        """Make an image of a container as it is, name it, label it beside its own labels and return its id.

        One that runs is paused meanwhile. Raises NotFound, Conflict (it changed meanwhile), Unsupported (what is no image).
        """

    @abstractmethod
    def container_logs(
        self, container: str, query: LogQuery, *, tty: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[OutputFrame]]:
        """Open a container's log. Raises NotFound, Unsupported (a log driver that cannot be read)."""

    @abstractmethod
    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Return what running containers use, by full id; those that have gone are absent."""

    @abstractmethod
    async def inspect_image(self, image: str) -> ImageState:
        """Look at one image. Raises NotFound."""

    @abstractmethod
    async def image_details(self, image: str) -> ImageDetails:
        """Look at an image and its layers. Raises NotFound."""

    @abstractmethod
    async def list_images(self) -> list[ImageRow]:
        """List images in one request, untagged ones that no other is built on included."""

    @abstractmethod
    async def untagged_children(self, image: str) -> list[ImageRow]:
        """List the images without a name that are built right on this one: what a classic builder leaves behind."""

    @abstractmethod
    async def image_users(self) -> dict[str, list[str]]:
        """Return the names of the containers made of each image, by image id, in one request."""

    @abstractmethod
    async def tag_image(self, source: str, target: str) -> None:
        """Give an image another name. Raises NotFound."""

    @abstractmethod
    async def list_image_names(self) -> list[str]:
        """Return the tagged names of all images."""

    @abstractmethod
    def pull_image(
        self, reference: str, *, platform: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[PullProgress]]:
        """Pull an image. Raises NotFound, Unauthorized, EngineUnavailable (the registry does not answer)."""

    def push_image(
        self, image: str, target: str, *, credential: Credential | None = None, insecure: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[PullProgress]]:
        """Push an image to a registry under another name; its name here stays.

        The credential, and whether TLS may be missing, are for engines that do not find them out themselves.
        Raises NotFound, Ambiguous (the image), Unauthorized, InvalidArgument, Conflict, EngineUnavailable.
        """
        raise errors.Unsupported(
            f"{self.name} cannot push {image!r}: it speaks to no registry.",
            hint="use an engine that can: engine='docker', 'podman' or 'embedded'",
        )

    @abstractmethod
    async def remove_image(self, image: str, *, force: bool) -> tuple[str, ...]:
        """Remove an image or a tag; return the names and the ids that are gone. Raises NotFound, Conflict (in use)."""

    # Archives are files of this host, wherever the engine is; paths are absolute, with their links resolved.

    async def load_image(self, source: Path, *, passed: Passed = lambda count: None) -> tuple[str, ...]:
        """Load the images of an archive under the names that it gives them; return those names, and the ids of images without.

        Raises NotFound (no such file), InvalidArgument (damaged, or no archive of images), Unsupported.
        """
        raise self._no_archives("load an image from an archive")

    async def save_image(
        self, image: str, target: Path, *, format: ArchiveFormat, passed: Passed = lambda count: None
    ) -> int:
        """Write an image, with the name that it is given by, to a file (`oci`: a new folder); return how many bytes that has.

        Raises NotFound, Conflict (a folder is there), Unsupported (the format).
        """
        raise self._no_archives("save an image")

    async def import_image(
        self, source: Path, *, tag: str, labels: Mapping[str, str], passed: Passed = lambda count: None
    ) -> str:
        """Make an image of a root file system, a tar or a folder, name and label it and return its id.

        Raises NotFound (no such file), InvalidArgument (damaged, no tar), Unsupported (what no layer can hold).
        """
        raise self._no_archives("make an image of a root file system")

    async def export_container(
        self,
        container: str,
        target: Path,
        *,
        format: ExportFormat = "rootfs",
        passed: Passed = lambda count: None,
    ) -> int:
        """Write a container to a tar, without what is mounted in it; return how many bytes that has.

        `rootfs` is its root file system. `state` is all that `import_container` needs to have it elsewhere: what it was made
        with, its image, its writable layer; one that runs is paused meanwhile.
        Raises NotFound, Conflict (a folder is there), Unsupported (the format).
        """
        raise self._no_archives("export a container")

    async def stored_container(self, source: Path) -> StoredContainer:
        """Say what the archive of a container holds. Raises NotFound, InvalidArgument (damaged, hostile), Unsupported."""
        raise self._no_state("read the archive of a container")

    async def import_container(self, source: Path, spec: ContainerSpec, *, passed: Passed = lambda count: None) -> str:
        """Make a container, not started, of an archive's image and layer, but by this specification, whose image is left aside.

        Raises NotFound (no such file; a network), InvalidArgument (damaged, hostile), Conflict (name taken), Unsupported.
        """
        raise self._no_state("make a container of an archive")

    def _no_state(self, what: str) -> errors.Unsupported:
        return errors.Unsupported(f"{self.name} cannot {what}: {STATE_ELSEWHERE}.", hint="use engine='embedded'")

    def _no_archives(self, what: str) -> errors.Unsupported:
        return errors.Unsupported(
            f"{self.name} cannot {what}.", hint="use an engine that can: engine='docker', 'podman' or 'embedded'"
        )

    @abstractmethod
    def builder(self, spec: BuildSpec) -> BuilderName:
        """Say which builder would carry the build out. Raises Unsupported when none can."""

    @abstractmethod
    def build_image(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AbstractAsyncContextManager[AsyncIterator[BuildEvent]]:
        """Build an image; `context` opens the build context as a tar in which `dockerfile_name` is the Dockerfile.

        A failing step is an event of kind `error`, not an exception.
        """

    @abstractmethod
    async def update_container(self, container: str, limits: Limits) -> None:
        """Change the limits of a container, running or not; those that are None stay. Raises NotFound, Unsupported."""

    @abstractmethod
    async def list_volumes(self) -> list[VolumeRow]:
        """List volumes with the names of the containers that mount them, by name."""

    @abstractmethod
    async def create_volume(self, spec: VolumeSpec) -> VolumeRow:
        """Create a volume. Raises Conflict (name taken), InvalidArgument (driver, options)."""

    @abstractmethod
    async def remove_volume(self, volume: str, *, force: bool) -> None:
        """Remove a volume and what is in it. Raises NotFound, Conflict (in use)."""

    async def volume_sizes(self) -> dict[str, int]:
        """Return how many bytes each volume holds, by name; those that the engine does not tell are absent."""
        return {}

    @abstractmethod
    async def list_networks(self) -> list[NetworkRow]:
        """List networks with the names of the containers that are connected, by name."""

    @abstractmethod
    async def create_network(self, spec: NetworkSpec) -> NetworkRow:
        """Create a network. Raises Conflict (name taken, subnet overlaps), InvalidArgument (driver, subnet)."""

    @abstractmethod
    async def remove_network(self, network: str) -> None:
        """Remove a network. Raises NotFound, Conflict (in use, or one of the engine's own)."""

    @abstractmethod
    async def connect_network(self, network: str, container: str, *, aliases: Sequence[str] = ()) -> None:
        """Connect a container to a network. Raises NotFound (either), Conflict (connected already)."""

    @abstractmethod
    async def disconnect_network(self, network: str, container: str, *, force: bool) -> None:
        """Disconnect a container from a network. Raises NotFound (either), Conflict (not connected)."""

    @abstractmethod
    async def build_cache(self) -> BuildCache:
        """Say what the build cache holds. Raises Unsupported (no cache of its own)."""

    @abstractmethod
    async def prune_build_cache(self, *, older_than_seconds: float) -> int:
        """Remove what nothing uses of the build cache; return how many bytes came free. Raises Unsupported."""

    @abstractmethod
    def events(self, query: EventQuery) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Open the engine's events, oldest first; without `until` they end with what has happened by now."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close connections; may be called twice."""
