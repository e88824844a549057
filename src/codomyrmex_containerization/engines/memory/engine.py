"""How does an engine fulfil the contract that keeps everything in this process's memory?

Containers, images, volumes and networks live in this process's memory and end with it. File systems are trees in memory; commands
are run by a small shell and a small set of programs of its own on those trees, as tasks of this process's event loop. No host program is
started, no host file and no network is touched: it isolates nothing, because it runs nothing that is foreign. It is for tests of those
who have no other engine, and is never chosen unless it is named.

A program is found as elsewhere: on PATH, as an executable file of the container's tree. A file that has the name of one of
`programs.PROGRAMS` stands for that program, whatever its bytes are (so does a link of that name to a busybox), `#!` files are scripts,
and any other program is refused (Unsupported; an exec format error, 126, in its shell). An image made of nothing has no program at all.

What it cannot do is in `LACKS`; a call that needs it raises Unsupported. Networks are who belongs to whom: nothing is sent in them.
"""

from __future__ import annotations

import errno
import platform
import re
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from types import MappingProxyType
from typing import Self, TypeVar

import anyio
import anyio.lowlevel

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.memory import (
    archive,
    base_image,
    build,
    files,
    host,
    inside,
    kernel,
    log,
    objects,
    shapes,
    storage,
    store,
)
from codomyrmex_containerization.engines.memory.containers import Container, Exec
from codomyrmex_containerization.models.container import (
    ContainerRow,
    ContainerSpec,
    ContainerState,
    Limits,
    OutputFrame,
)
from codomyrmex_containerization.models.details import (
    ContainerDetails,
    ExecSpec,
    ExecState,
    ImageDetails,
    ImageRow,
    PathStat,
)
from codomyrmex_containerization.models.engine import Capability, Endpoint, EngineInfo
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSpec, ImageState
from codomyrmex_containerization.models.inside import FileChange, ProcessRow
from codomyrmex_containerization.models.storage import BuildCache, NetworkRow, NetworkSpec, VolumeRow, VolumeSpec
from codomyrmex_containerization.models.usage import Counters, Usage, usage_between

T = TypeVar("T")

ENDPOINT = Endpoint("memory", "memory://", "named", kind="memory")
VERSION = "1"
LACKS: MappingProxyType[Capability, str] = MappingProxyType(
    {
        "build_secrets": "its builder has no secret mounts",
        "pull": "it speaks to no registry",
        "limits": "it cannot hold the host's memory or processors back from its own process",
        "ports": "nothing in it listens",
        "update": "it has no limits that could be changed",
        "container_state": base.STATE_ELSEWHERE,
    }
)
_OTHERS = "use docker or podman"
_NOTES = (
    "containers, images, volumes and networks are in this server's memory and end with it",
    "commands are run by programs of its own; nothing is isolated, because nothing foreign runs",
    "memory use is the bytes of a container's tree, its changed files and its log",
)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_SYSTEM = "linux"


def unsupported(capability: Capability, what: str) -> errors.Unsupported:
    """Return the error for what this engine lacks."""
    return errors.Unsupported(f"memory cannot do this: {what} ({LACKS[capability]}).", hint=_OTHERS)


class MemoryEngine(base.Engine):
    """An engine in this process. It may be called from several tasks of one event loop."""

    def __init__(self, endpoint: Endpoint = ENDPOINT) -> None:
        self.name = endpoint.engine
        self.endpoint = endpoint
        self._store = store.Store(self.name)
        self._host = host.TaskHost()
        self._seen: dict[str, Counters] = {}
        storage.prepare(self._store)

    @property
    def is_local(self) -> bool:
        """It is in this very process; host paths mean nothing to it, and mounts of them are refused."""
        return True

    @property
    def base_image(self) -> str:
        """The name of an image with all programs of this engine, for those who have no busybox; made when first asked for."""
        return base_image.make(self._store)

    def stocked(self) -> Self:
        """Have the image `base_image` there from the start."""
        base_image.make(self._store)
        return self

    async def info(self, *, deadline_seconds: float | None = None) -> EngineInfo:
        """Say what it is and what it lacks."""
        await anyio.lowlevel.checkpoint()
        held = self._store
        return EngineInfo(
            name=self.name,
            version=VERSION,
            api_version="",
            endpoint=self.endpoint,
            rootless=True,
            cgroup_version=None,
            storage_driver="memory",
            os="in this process",
            architecture=platform.machine(),
            containers=len(held.containers),
            containers_running=sum(one.status in ("running", "paused") for one in held.containers.values()),
            images=len(held.listed_images()),
            builder="classic",
            product="memory",
            lacks=LACKS,
            notes=_NOTES,
        )

    # ----------------------------------------------------------------- containers

    async def list_containers(self, *, all: bool, labels: Sequence[str] = ()) -> list[ContainerRow]:
        """List containers, newest first."""
        await anyio.lowlevel.checkpoint()
        found = [one for one in self._store.containers.values() if all or one.is_alive]
        rows = [shapes.container_row(one, self.name) for one in reversed(found)]
        return [row for row in rows if store.has_labels(row.labels, labels)]

    async def inspect_container(self, container: str, *, size: bool = False) -> ContainerState:
        """Look at a container."""
        await anyio.lowlevel.checkpoint()
        return shapes.container_state(self._store.container(container), self.name, size=size)

    async def container_details(self, container: str) -> ContainerDetails:
        """Look at a container from all sides."""
        await anyio.lowlevel.checkpoint()
        return shapes.container_details(self._store.container(container), self.name)

    async def create_container(self, spec: ContainerSpec) -> str:
        """Create a container. What cannot be honoured is refused, never left out."""
        await anyio.lowlevel.checkpoint()
        _require_possible(spec)
        held = self._store
        image = held.image(spec.image)
        taken = {one.name for one in held.containers.values()}
        name = (spec.name or "").removeprefix("/") or objects.new_name(taken)
        self._require_free(name)
        container = Container(held, spec, image, name=name)
        if not (*container.entrypoint, *container.command):
            raise errors.InvalidArgument("No command was given, and the image has none.", hint="pass a command")
        network = spec.network if spec.network not in (None, "default") else "bridge"
        held.network(network or "bridge")
        with _file_errors("a mount of the container", kind=errors.InvalidArgument):
            storage.attach_mounts(held, container)
        held.containers[container.id] = container
        container.note("create")
        storage.connect(held, network or "bridge", container)
        return container.id

    async def start_container(self, container: str) -> None:
        """Start a container."""
        tasks = await self._host.tasks()
        self._store.container(container).start(tasks)

    @asynccontextmanager
    async def attach_container(self, container: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """Attach; `stdin` is what the first process reads when it starts."""
        await anyio.lowlevel.checkpoint()
        one = self._store.container(container)
        if stdin is not None:
            one.given = stdin
        feed = log.Feed()
        one.output.feeds.append(feed)
        try:
            yield feed
        finally:
            feed.leave()
            if feed in one.output.feeds:
                one.output.feeds.remove(feed)

    async def wait_container(self, container: str) -> int:
        """Wait until a container does not run."""
        await anyio.lowlevel.checkpoint()
        return await self._store.container(container).wait()

    async def stop_container(self, container: str, *, timeout_seconds: float) -> None:
        """Ask a container to end, then kill it."""
        await anyio.lowlevel.checkpoint()
        await self._store.container(container).stop(timeout_seconds)

    async def restart_container(self, container: str, *, timeout_seconds: float) -> None:
        """Stop and start a container."""
        tasks = await self._host.tasks()
        one = self._store.container(container)
        await one.stop(timeout_seconds)
        one.start(tasks)
        one.note("restart")

    async def pause_container(self, container: str) -> None:
        """Hold a container's processes back."""
        await anyio.lowlevel.checkpoint()
        self._store.container(container).freeze(True)

    async def unpause_container(self, container: str) -> None:
        """Let them go on."""
        await anyio.lowlevel.checkpoint()
        self._store.container(container).freeze(False)

    async def kill_container(self, container: str, signal: str) -> None:
        """Send a signal to the first process."""
        await anyio.lowlevel.checkpoint()
        await self._store.container(container).kill(signal)

    async def remove_container(self, container: str, *, force: bool, volumes: bool) -> None:
        """Remove a container, and with `volumes` those without a name."""
        await anyio.lowlevel.checkpoint()
        one = self._store.container(container)
        if one.is_alive:
            if not force:
                raise errors.Conflict(f"Container {one.name} is {one.status}.", hint="stop it first or pass force=true")
            await one.kill("KILL")
        if self._store.containers.pop(one.id, None) is None:
            return
        one.output.end()
        self._seen.pop(one.id, None)
        one.note("destroy")
        for mount in one.mounts:
            volume = self._store.volumes.get(mount.name)
            is_anonymous = re.fullmatch("[0-9a-f]{64}", mount.name) is not None
            if volumes and is_anonymous and volume is not None and not storage.volume_row(self._store, volume).users:
                storage.remove_volume(self._store, mount.name, force=True)

    @asynccontextmanager
    async def container_logs(
        self,
        container: str,
        query: base.LogQuery,
        *,
        tty: bool,
    ) -> AsyncIterator[AsyncIterator[OutputFrame]]:
        """Open a container's log."""
        await anyio.lowlevel.checkpoint()
        one = self._store.container(container)
        if query.follow and not one.is_alive:
            one.log.end()
        async with aclosing(one.log.read(query)) as frames:
            yield frames

    async def update_container(self, container: str, limits: Limits) -> None:
        """It has no limits to change."""
        await anyio.lowlevel.checkpoint()
        self._store.container(container)
        raise unsupported("update", "changing limits")

    async def rename_container(self, container: str, name: str) -> None:
        """Give a container another name."""
        await anyio.lowlevel.checkpoint()
        one = self._store.container(container)
        self._require_free(name)
        before, one.name = one.name, name
        one.note("rename", oldName=before)

    async def top(self, container: str) -> list[ProcessRow]:
        """List the tasks that are processes here."""
        await anyio.lowlevel.checkpoint()
        return inside.top(self._store.container(container))

    async def changes(self, container: str) -> list[FileChange]:
        """List what its tree has that the image's has not."""
        await anyio.lowlevel.checkpoint()
        return inside.changes(self._store.container(container))

    async def commit_container(self, container: str, *, tag: str, labels: Mapping[str, str], message: str = "") -> str:
        """Make an image of its tree; nothing else runs meanwhile."""
        await anyio.lowlevel.checkpoint()
        one = self._store.container(container)
        made = inside.commit(self._store, one, tag=tag, labels=labels, message=message)
        one.note("commit", imageID=made)
        return made

    def _require_free(self, name: str) -> None:
        if not _NAME.match(name):
            raise errors.InvalidArgument(
                f"{name!r} is no container name.", hint="use letters, digits, '_', '.', '-', at least two of them"
            )
        holder = next((one for one in self._store.containers.values() if one.name == name), None)
        if holder is not None:
            raise errors.Conflict(
                f"The name {name!r} is already in use by container {holder.id[:12]}.",
                hint="choose another name, or remove that container first",
            )

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Return the processor time of the containers' tasks, the bytes they hold, the number of processes."""
        await anyio.lowlevel.checkpoint()
        found: dict[str, Usage] = {}
        for id in ids:
            one = self._store.containers.get(id)
            if one is None or one.kernel is None or not one.is_alive:
                continue
            held_bytes = one.root.structure_bytes() + one.root.own_bytes() + one.log.held_bytes
            now = Counters(time.monotonic(), one.kernel.cpu_seconds, held_bytes, None, len(one.kernel.processes))
            found[id] = usage_between(self._seen.get(id), now)
            self._seen[id] = now
        return found

    # ------------------------------------------------------------------- commands

    async def create_exec(self, container: str, spec: ExecSpec) -> str:
        """Prepare a command."""
        await anyio.lowlevel.checkpoint()
        return self._store.container(container).prepare(spec).id

    @asynccontextmanager
    async def start_exec(self, exec_id: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """Start a prepared command."""
        tasks = await self._host.tasks()
        container, command = self._exec(exec_id)
        if command.process is not None or command.exit_code is not None:
            raise errors.Conflict("The command has been started before.", hint="prepare another one")
        feed = container.run(command, stdin=stdin, tasks=tasks)
        try:
            yield feed
        finally:
            feed.leave()

    async def inspect_exec(self, exec_id: str) -> ExecState:
        """Say how a command stands; it has no process on a host."""
        await anyio.lowlevel.checkpoint()
        command = self._exec(exec_id)[1]
        return ExecState(command.process is not None and command.exit_code is None, command.exit_code, 0)

    async def end_exec(self, container: str, exec_id: str) -> bool:
        """Kill a command and what it started."""
        await anyio.lowlevel.checkpoint()
        self._store.container(container)
        one, command = self._exec(exec_id)
        if command.process is None or one.kernel is None or command.exit_code is not None:
            return command.exit_code is not None
        command.process.kernel.end_tree(command.process)
        command.exit_code = await command.process.wait()
        return True

    def _exec(self, exec_id: str) -> tuple[Container, Exec]:
        for one in self._store.containers.values():
            if exec_id in one.execs:
                return one, one.execs[exec_id]
        raise errors.NotFound(
            f"{self.name} has no command {exec_id[:12]!r}.",
            hint="its container may be gone",
            details={"missing": "exec instance"},
        )

    # ---------------------------------------------------------------------- files

    async def stat_path(self, container: str, path: str) -> PathStat:
        """Look at a path; a link's target is the path that it leads to."""
        await anyio.lowlevel.checkpoint()
        one = self._store.container(container)
        try:
            place = one.view.find(path, follow=False)
            if place.node is None:
                raise files.failure(errno.ENOENT, path)
            target = ""
            if isinstance(place.node, files.Link):
                target = one.view.find(path).path
            size = len(place.node.data) if isinstance(place.node, files.File) else 0
            name = place.name or "/"
            return PathStat(name, size, isinstance(place.node, files.Folder), target)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise errors.NotFound(
                    f"There is no {path} in container {one.name}.", hint="check the path inside the container"
                ) from error
            raise errors.InvalidArgument(
                f"{path} in container {one.name} cannot be looked at: {error.strerror}.",
                hint="check the path: its links may lead in a circle, or a file stands where a folder is named",
            ) from error

    async def read_archive(self, container: str, path: str, sink: Callable[[Iterator[bytes]], T]) -> T:
        """Make a tar of a path as it is now."""
        await anyio.lowlevel.checkpoint()
        one = self._store.container(container)
        with _file_errors(f"copying {path}"):
            entries = archive.write(one.view, path)
        stopped = False
        try:
            return await threads.run(
                lambda: sink(archive.stream(entries, stopped=lambda: stopped)), deadline_seconds=None, what="copying"
            )
        finally:
            stopped = True

    async def write_archive(self, container: str, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        """Unpack a tar below a folder; it is read to its end before anything is written."""
        one = self._store.container(container)
        with _file_errors(f"copying to {folder}"):
            place = one.view.find(folder)
            one.view.folder(folder)
            if place.read_only:
                raise files.failure(errno.EROFS, folder)
        entries = await self._read(source)
        with _file_errors(f"copying to {folder}"):
            archive.unpack(one.view, folder, entries)

    async def _read(self, source: Callable[[], Iterator[bytes]]) -> list[archive.Entry]:
        stopped = False

        def pieces() -> Iterator[bytes]:
            for piece in source():
                if stopped:
                    raise errors.Cancelled("The copy was stopped.")
                yield piece

        try:
            return await threads.run(lambda: archive.read(pieces()), deadline_seconds=None, what="reading the archive")
        finally:
            stopped = True

    # --------------------------------------------------------------------- images

    async def inspect_image(self, image: str) -> ImageState:
        """Look at an image."""
        await anyio.lowlevel.checkpoint()
        return shapes.image_state(self._store.image(image), system=_SYSTEM, architecture=platform.machine())

    async def image_details(self, image: str) -> ImageDetails:
        """Look at an image and its layers."""
        await anyio.lowlevel.checkpoint()
        return shapes.image_details(self._store.image(image), system=_SYSTEM, architecture=platform.machine())

    async def list_images(self) -> list[ImageRow]:
        """List images, newest first."""
        await anyio.lowlevel.checkpoint()
        return [shapes.image_row(one, self.name) for one in self._store.listed_images()]

    async def untagged_children(self, image: str) -> list[ImageRow]:
        """List the images without a name that are built right on this one."""
        await anyio.lowlevel.checkpoint()
        found = self._store.children(self._store.image(image))
        return [shapes.image_row(one, self.name) for one in found if not one.tags]

    async def image_users(self) -> dict[str, list[str]]:
        """Return the names of the containers of each image."""
        await anyio.lowlevel.checkpoint()
        users: dict[str, list[str]] = {}
        for one in self._store.containers.values():
            users.setdefault(one.image.id, []).append(one.name)
        return users

    async def tag_image(self, source: str, target: str) -> None:
        """Give an image another name."""
        await anyio.lowlevel.checkpoint()
        self._store.tag(self._store.image(source), target)

    async def list_image_names(self) -> list[str]:
        """Return all names."""
        await anyio.lowlevel.checkpoint()
        return [tag for one in self._store.listed_images() for tag in one.tags]

    @asynccontextmanager
    async def pull_image(
        self,
        reference: str,
        *,
        platform: str | None,
    ) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
        """It speaks to no registry."""
        await anyio.lowlevel.checkpoint()
        raise errors.Unsupported(
            f"memory cannot pull {reference!r} ({LACKS['pull']}).",
            hint=f"build the image with container_build, or {_OTHERS}",
        )
        yield _no_progress()  # type: ignore[unreachable]  # makes this a generator

    async def remove_image(self, image: str, *, force: bool) -> tuple[str, ...]:
        """Remove an image or a name."""
        await anyio.lowlevel.checkpoint()
        return self._store.remove_image(image, force=force)

    def builder(self, spec: BuildSpec) -> BuilderName:
        """Its own, which has the forms of the classic builder."""
        if spec.secrets:
            raise unsupported("build_secrets", "a build with secrets")
        if spec.platforms or spec.entitlements:
            raise errors.Unsupported("memory builds for no other platform and has no entitlements.", hint=_OTHERS)
        return "classic"

    def build_image(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AbstractAsyncContextManager[AsyncIterator[BuildEvent]]:
        """Build an image of a context."""
        self.builder(spec)
        return self._build(spec, context, dockerfile_name)

    @asynccontextmanager
    async def _build(
        self, spec: BuildSpec, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AsyncIterator[AsyncIterator[BuildEvent]]:
        tasks = await self._host.tasks()
        with _file_errors("reading the build context"):
            tree, text = build.read_context(await self._read(context), dockerfile_name)
        running = build.Build(self._store, spec, tree, tasks)
        async with aclosing(running.events(text)) as events:
            yield events

    # -------------------------------------------------------------------- storage

    async def list_volumes(self) -> list[VolumeRow]:
        """List volumes by name."""
        await anyio.lowlevel.checkpoint()
        rows = [storage.volume_row(self._store, one) for one in self._store.volumes.values()]
        return sorted(rows, key=lambda row: row.name)

    async def create_volume(self, spec: VolumeSpec) -> VolumeRow:
        """Create a volume."""
        await anyio.lowlevel.checkpoint()
        return storage.volume_row(self._store, storage.create_volume(self._store, spec))

    async def remove_volume(self, volume: str, *, force: bool) -> None:
        """Remove a volume."""
        await anyio.lowlevel.checkpoint()
        storage.remove_volume(self._store, volume, force=force)

    async def volume_sizes(self) -> dict[str, int]:
        """Return how many bytes each volume holds."""
        await anyio.lowlevel.checkpoint()
        return {name: one.tree.used_bytes for name, one in self._store.volumes.items()}

    async def list_networks(self) -> list[NetworkRow]:
        """List networks by name."""
        await anyio.lowlevel.checkpoint()
        rows = [storage.network_row(self._store, one) for one in self._store.networks.values()]
        return sorted(rows, key=lambda row: row.name)

    async def create_network(self, spec: NetworkSpec) -> NetworkRow:
        """Create a network."""
        await anyio.lowlevel.checkpoint()
        return storage.create_network(self._store, spec)

    async def remove_network(self, network: str) -> None:
        """Remove a network."""
        await anyio.lowlevel.checkpoint()
        storage.remove_network(self._store, network)

    async def connect_network(self, network: str, container: str, *, aliases: Sequence[str] = ()) -> None:
        """Connect a container to a network."""
        await anyio.lowlevel.checkpoint()
        self._store.network(network)
        storage.connect(self._store, network, self._store.container(container), aliases)

    async def disconnect_network(self, network: str, container: str, *, force: bool) -> None:
        """Disconnect a container from a network."""
        await anyio.lowlevel.checkpoint()
        self._store.network(network)
        storage.disconnect(self._store, network, self._store.container(container))

    async def build_cache(self) -> BuildCache:
        """Its cache is in its images."""
        await anyio.lowlevel.checkpoint()
        raise errors.Unsupported("memory has no build cache apart from its images.", hint="remove images instead")

    async def prune_build_cache(self, *, older_than_seconds: float) -> int:
        """Its cache is in its images."""
        await anyio.lowlevel.checkpoint()
        raise errors.Unsupported("memory has no build cache apart from its images.", hint="remove images instead")

    @asynccontextmanager
    async def events(self, query: EventQuery) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Open the last 10,000 events, and with `until` those to come until then."""
        await anyio.lowlevel.checkpoint()
        async with aclosing(self._events(query)) as events:
            yield events

    async def _events(self, query: EventQuery) -> AsyncGenerator[EngineEvent, None]:
        number, first = 0, True
        began = time.time()
        follows = query.until is not None and query.until.timestamp() > began
        while True:
            number, found, changed = self._store.events_after(number)
            for event in found:
                # Without `since` only what is to come is wanted, where something is to come.
                is_past = follows and query.since is None and event.time.timestamp() < began
                if store.is_wanted(event, query) and not is_past:
                    yield event
            left = query.until.timestamp() - time.time() if query.until is not None else 0.0
            if left <= 0 and not (first and changed.is_set()):
                return
            first = False
            with anyio.move_on_after(left):
                await changed.wait()

    async def aclose(self) -> None:
        """End what runs. What it holds is gone when nobody holds it any more."""
        await self._host.aclose()


async def _no_progress() -> AsyncIterator[base.PullProgress]:
    for _ in range(0):
        yield base.PullProgress("", 0, 0)


class _file_errors:  # noqa: N801  reads as a statement
    """Turns errors of trees into ours."""

    def __init__(self, what: str, *, kind: type[errors.ContainerizationError] = errors.NotFound) -> None:
        self._what = what
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, OSError):
            return
        said = f"memory says, while {self._what}: {kernel.said(error)}"
        match error.errno:
            case errno.EROFS | errno.EBUSY:
                hint = "that place is read-only: copy to one of the container's writable folders or mounts"
                raise errors.Conflict(f"{said} (marked read-only)", hint=hint) from error
            case errno.ENOSPC:
                raise errors.EngineUnavailable(
                    said, hint="a file system in memory holds 256 MiB; remove files first"
                ) from error
            case errno.ENOENT | errno.ENOTDIR:
                raise self._kind(said, hint="check the path inside the container") from error
            case _:
                raise errors.InvalidArgument(said, hint="mend the path that the message names") from error


def _require_possible(spec: ContainerSpec) -> None:
    """Refuse what cannot be honoured: running it weaker than asked would be a lie."""
    if spec.ports:
        raise unsupported("ports", "publishing ports")
    if spec.limits != Limits():
        raise unsupported("limits", "limiting what a container uses")
    if any(mount.type not in ("volume", "tmpfs") for mount in spec.mounts):
        raise errors.Unsupported(
            "memory mounts nothing of the host: only volumes and tmpfs.", hint=f"copy files in, or {_OTHERS}"
        )
    if spec.isolation is not None:
        raise errors.Unsupported(
            f"memory has no isolation={spec.isolation!r}: its programs are no processes.", hint="use engine='embedded'"
        )
    if spec.privileged or spec.cap_add:
        raise errors.Unsupported("memory has no privileges to give: its programs reach no host.", hint=_OTHERS)
    if spec.network is not None and (spec.network == "host" or spec.network.startswith(("container:", "ns:"))):
        raise errors.Unsupported(f"memory cannot join the network {spec.network!r}.", hint=_OTHERS)
    if spec.platform is not None and not spec.platform.startswith(_SYSTEM):
        raise errors.Unsupported(f"memory has no platform {spec.platform!r}; it is {sys.platform}.", hint=_OTHERS)
