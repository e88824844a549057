"""How does an engine fulfil the contract without a daemon? The asynchronous face of `life.House`.

What blocks runs in threads; what lasts (waiting for an end, following a log, an attachment, a command) does not: it waits for file
descriptors. Several processes may use one data folder at once.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base, cgroups, host_files, process_counters, processes
from codomyrmex_containerization.engines.embedded import (
    attach,
    build,
    container_files,
    content_watch,
    disk,
    doctor,
    execs,
    fallback,
    files,
    host_image,
    inside,
    life,
    logs,
    objects,
    overlay,
    probe,
    revivals,
    shapes,
    steps,
    tiers,
    userns,
)
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import (
    ContainerRow,
    ContainerSpec,
    ContainerState,
    Healthcheck,
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
from codomyrmex_containerization.models.engine import Capability, Check, Endpoint, EngineInfo
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSpec, ImageState
from codomyrmex_containerization.models.inside import ExportFormat, FileChange, ProcessRow, StoredContainer
from codomyrmex_containerization.models.storage import BuildCache, NetworkRow, NetworkSpec, VolumeRow, VolumeSpec
from codomyrmex_containerization.models.usage import Usage

if TYPE_CHECKING:
    from codomyrmex_containerization.clients import distribution
    from codomyrmex_containerization.clients.credentials import Credential
    from codomyrmex_containerization.engines.embedded import pushing

T = TypeVar("T")

VERSION = "1"
_OTHERS = "use docker or podman"
_LACKS: dict[Capability, str] = {}
_EXEC_POLL_SECONDS = 0.005
_EXEC_END_SECONDS = 5.0
_STILL_PAUSE_SECONDS = 0.05
_WATCH_SECONDS = 0.05


class EmbeddedEngine(base.Engine):
    """An engine of the folders that it is given; opened without effort, it looks for a runtime when a container needs one."""

    def __init__(
        self,
        endpoint: Endpoint,
        folders: objects.Folders,
        *,
        timeout_seconds: float,
        sampler: cgroups.Sampler | None = None,
        world: userns.World | None = None,
        tier: tiers.Tier | None = None,
        registries: distribution.Client | None = None,
    ) -> None:
        self.name = endpoint.engine
        self._tier = tier
        self.endpoint = endpoint
        self._folders = folders
        self._timeout_seconds = timeout_seconds
        self._registries = registries
        self._made: life.House | None = None
        self._revivals: Callable[[], int | None] | None = None
        self._making = threading.Lock()
        self._sampler = sampler or cgroups.Sampler()
        self._execs: dict[str, execs.Command] = {}
        self._world = world

    @property
    def is_local(self) -> bool:
        """It is on this host."""
        return True

    @property
    def house(self) -> life.House:
        """What does the work; blocks when it is asked for the first time."""
        if os.geteuid() != 0:
            raise errors.EngineUnavailable(
                f"{self.name} needs root, or a namespace in which this user is root.", hint="open it by its name"
            )
        if self._made is None:
            with self._making:
                if self._made is None:
                    house = life.House(self._folders, engine=self.name, tier=self._tier)
                    house.recover()
                    self._made = house  # nobody uses it before it has set right what a crash left
                    self._revivals = revivals.begin(house.containers, self._folders, self.name)
        return self._made

    async def _call(self, function: Callable[[life.House], T], what: str, *, seconds: float | None = None) -> T:
        def call() -> T:
            try:
                return function(self.house)
            except OSError as error:
                raise errors.EngineUnavailable(
                    f"{self.name} failed while {what}: {error.strerror or error}.",
                    hint=f"make room and check the rights of {self._folders.data}",
                ) from error

        return await threads.run(call, deadline_seconds=seconds or self._timeout_seconds, what=what)

    async def info(self, *, deadline_seconds: float | None = None) -> EngineInfo:
        """Say which runtime works here and what it can do."""

        def ask(house: life.House) -> EngineInfo:
            found = house.found
            records = house.containers.all()
            return EngineInfo(
                name=self.name,
                version=VERSION,
                api_version="",
                endpoint=self.endpoint,
                rootless=self._world is not None,
                cgroup_version={"v1": 1, "hybrid": 1, "v2": 2}.get(found.cgroups),
                storage_driver="overlay",
                os=_distribution(),
                architecture=platform.machine(),
                containers=len(records),
                containers_running=sum(one.is_alive for one in records),
                images=len(house.images.images()),
                builder="classic",
                kernel_version=platform.release(),
                product="embedded",
                lacks=_lacks(found),
                notes=(
                    f"OCI runtime {found.kind} {found.version}",
                    *tiers.monitor_notes(found.tier),
                    *found.notes,
                    *fallback.notes(found.limits),
                    *_numbers(self._world),
                    *_damaged(house),
                ),
            )

        return await self._call(ask, "looking for an OCI runtime", seconds=deadline_seconds)

    async def checks(self) -> list[Check]:
        """Try what may be missing here."""
        ids = None if self._world is None else self._world.ids
        return await self._call(lambda house: doctor.checks(house, ids=ids), "looking at this machine")

    # ------------------------------------------------------------------------------------------------------ containers

    async def list_containers(self, *, all: bool, labels: Sequence[str] = ()) -> list[ContainerRow]:
        """List containers, newest first."""

        def rows(house: life.House) -> list[ContainerRow]:
            found = [shapes.container_row(one, self.name) for one in house.all() if all or one.is_alive]
            return [row for row in found if _has_labels(row, labels)]

        return await self._call(rows, "listing containers")

    async def inspect_container(self, container: str, *, size: bool = False) -> ContainerState:
        """Look at a container."""

        def look(house: life.House) -> ContainerState:
            record = house.look(container)
            written = _written(house, record) if size else None
            return shapes.container_state(record, self.name, writable_bytes=written)

        return await self._call(look, f"inspecting {container}")

    async def container_details(self, container: str) -> ContainerDetails:
        """Look at a container from all sides."""

        def look(house: life.House) -> ContainerDetails:
            record = house.look(container)
            by = fallback.held(record, house.containers.folder(record.id))
            return replace(shapes.container_details(record, self.name), limits_by=by)

        return await self._call(look, f"inspecting {container}")

    async def create_container(self, spec: ContainerSpec) -> str:
        """Create a container."""
        return await self._call(lambda house: house.create(spec).id, "creating a container")

    async def start_container(self, container: str) -> None:
        """Start a container."""
        await self._call(lambda house: house.start(container), f"starting {container}")

    @asynccontextmanager
    async def attach_container(self, container: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """Attach by the monitor's socket: nothing that is said after the start is lost."""
        record = await self._call(lambda house: house.look(container), f"attaching to {container}")
        if not record.is_alive:
            wanted = stdin is not None
            record = await self._call(lambda house: house.prepare(record.id, stdin=wanted), f"preparing {container}")
        path = self.house.containers.folder(record.id) / "attach"
        async with attach.attached(path, stdin=stdin) as attachment:
            yield attachment

    async def wait_container(self, container: str) -> int:
        """Wait for the end of the monitor, which comes after the last output and the exit code."""
        what, wanted = f"waiting for {container}", container
        while True:
            text = wanted
            record: Record = await self._call(lambda house, text=text: house.look(text), what)  # type: ignore[misc]  # the default binds it
            if record.status == "restarting":
                await anyio.sleep(_STILL_PAUSE_SECONDS)
                continue
            if not record.is_alive:
                if record.started_at is None and record.status != "dead":
                    await anyio.sleep(_STILL_PAUSE_SECONDS)
                    continue
                if record.exit_code is None:
                    raise errors.EngineUnavailable(
                        f"How container {record.name} ended is not known: {record.error}.", hint="look at its log"
                    )
                return record.exit_code
            wanted = record.id
            await _ended(record)

    async def stop_container(self, container: str, *, timeout_seconds: float) -> None:
        """Ask a container to end, then kill it."""
        record = await self._call(lambda house: house.look(container), f"stopping {container}")
        if not record.is_alive:
            if revivals.is_owed(record):
                await self._call(lambda house: house.stopped_by_hand(record), f"stopping {container}")
            return
        await self._call(lambda house: house.stopped_by_hand(record), f"stopping {container}")
        if record.status == "paused":
            await self._call(lambda house: house.freeze(record.id, frozen=False), f"unpausing {container}")
        wanted = record.image.config.stop_signal or "TERM"
        if timeout_seconds > 0:
            with suppress(errors.Conflict):
                await self._call(lambda house: house.signal(record.id, wanted), f"stopping {container}")
            with anyio.move_on_after(timeout_seconds):
                await _ended(record)
        now = await self._call(lambda house: house.look(record.id), f"stopping {container}")
        if now.is_alive:
            with suppress(errors.Conflict):
                await self._call(lambda house: house.signal(record.id, "KILL"), f"killing {container}")
            await _ended(record)
            now = await self._call(lambda house: house.look(record.id), f"stopping {container}")
        await self._call(lambda house: house.note(now, "stop"), f"stopping {container}")

    async def restart_container(self, container: str, *, timeout_seconds: float) -> None:
        """Stop and start a container."""
        await self.stop_container(container, timeout_seconds=timeout_seconds)
        record = await self._call(lambda house: house.start(container), f"starting {container}")
        await self._call(lambda house: house.note(record, "restart"), f"starting {container}")

    async def pause_container(self, container: str) -> None:
        """Freeze a container."""
        await self._call(lambda house: house.freeze(container, frozen=True), f"pausing {container}")

    async def unpause_container(self, container: str) -> None:
        """Let a frozen container go on."""
        await self._call(lambda house: house.freeze(container, frozen=False), f"unpausing {container}")

    async def kill_container(self, container: str, signal: str) -> None:
        """Send a signal to a container's program."""
        record = await self._call(lambda house: house.signal(container, signal), f"sending {signal} to {container}")
        if signal.upper().removeprefix("SIG") in ("KILL", "9"):
            await self._call(lambda house: house.stopped_by_hand(record), f"killing {container}")
            await _ended(record)

    async def remove_container(self, container: str, *, force: bool, volumes: bool) -> None:
        """Remove a container, and with `volumes` those without a name."""
        await self._call(
            lambda house: house.remove(container, force=force, with_volumes=volumes), f"removing {container}"
        )

    @asynccontextmanager
    async def container_logs(
        self, container: str, query: base.LogQuery, *, tty: bool
    ) -> AsyncIterator[AsyncIterator[OutputFrame]]:
        """Read the monitor's log, or follow it."""
        record = await self._call(lambda house: house.look(container), f"reading the log of {container}")
        path = life.log_file(self.house, record)
        if query.follow:
            # Whether it is over is asked about once the log has nothing more: no lock, no request.
            async with aclosing(logs.follow(path, query, is_over=lambda: _is_over(self.house, record.id))) as frames:
                yield frames
            return
        left = False

        def read() -> Iterator[OutputFrame]:
            for frame in logs.read(path, query):
                if left:
                    return
                yield frame

        def leave() -> None:
            nonlocal left
            left = True

        async with threads.iterate(read, stop=leave) as items:
            yield items

    async def update_container(self, container: str, limits: Limits) -> None:
        """Change a container's limits, now and for later starts."""
        await self._call(lambda house: house.update(container, limits), f"changing the limits of {container}")

    async def rename_container(self, container: str, name: str) -> None:
        """Give a container another name; its neighbours on a network know it by that from its next start on."""
        await self._call(lambda house: inside.rename(house, container, name), f"renaming {container}")

    async def top(self, container: str) -> list[ProcessRow]:
        """Read /proc."""
        return await self._call(lambda house: inside.top(house, container), f"listing the processes of {container}")

    async def changes(self, container: str) -> list[FileChange]:
        """Compare the overlay's upper folder with the layers."""
        return await self._call(lambda house: inside.changes(house, container), f"looking for changes in {container}")

    async def commit_container(self, container: str, *, tag: str, labels: Mapping[str, str], message: str = "") -> str:
        """Make a layer of the overlay's upper folder."""
        return await self._take(
            lambda house: inside.commit(house, container, tag=tag, labels=labels, message=message),
            f"making an image of {container}",
        )

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Read the control groups, or sum over the processes where there are none."""
        if not ids:
            return {}

        def read() -> dict[str, Usage]:
            reader: cgroups.Reader = self._sampler.reader
            if self._world is not None and self.house.found.cgroups == "none":
                reader = process_counters.ProcessReader(self.house.first_pids(ids))
            return cgroups.sample_usage(reader, self._sampler.history, ids)

        return await threads.run(read, deadline_seconds=self._timeout_seconds, what="reading usage")

    # --------------------------------------------------------------------------------------------------------- commands

    async def create_exec(self, container: str, spec: ExecSpec) -> str:
        """Prepare a command."""

        def prepare(house: life.House) -> execs.Command:
            record = house.look(container)
            if record.status != "running":
                raise errors.Conflict(f"Container {record.name} is {record.status}.", hint="start or unpause it first")
            return execs.prepare(house, record, spec)

        made = await self._call(prepare, f"preparing a command in {container}")
        self._execs[made.id] = made
        return made.id

    @asynccontextmanager
    async def start_exec(self, exec_id: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """Start a prepared command."""
        command = self._command(exec_id)
        if command.started:
            raise errors.Conflict("The command has been started before.", hint="prepare another one")
        record = await self._call(lambda house: house.look(command.container), "starting a command")
        async with execs.started(self.house, record, command, stdin=stdin) as attachment:
            yield attachment

    async def inspect_exec(self, exec_id: str) -> ExecState:
        """Say how a command stands."""
        return await self._call(lambda house: self._command(exec_id).state(), "looking at a command")

    async def end_exec(self, container: str, exec_id: str) -> bool:
        """Kill a command and what it started."""
        command = self._command(exec_id)
        if command.exit_code is not None or not command.pid:
            return command.exit_code is not None
        ended = await self._call(
            lambda house: processes.end_tree(
                command.pid, command.container, namespace=house.process_namespace(command.container)
            ),
            "ending the command",
        )
        until = anyio.current_time() + _EXEC_END_SECONDS
        while command.state().running and anyio.current_time() < until:  # noqa: ASYNC110  another process's end
            await anyio.sleep(_EXEC_POLL_SECONDS)
        return ended and not command.state().running

    def forget_exec(self, exec_id: str) -> None:
        """Know nothing of a command any more."""
        self._execs.pop(exec_id, None)

    async def health_checks(self) -> dict[str, Healthcheck]:
        """Return the health checks of the containers that run, by container id; none before the first call."""
        house = self._made
        if house is None:
            return {}

        def look() -> dict[str, Healthcheck]:
            running = [one for one in house.containers.all() if one.status == "running"]
            return {one.id: check for one in running if (check := shapes.healthcheck(one)) is not None}

        return await threads.run(look, deadline_seconds=self._timeout_seconds, what="looking for health checks")

    async def tell_health(self, container: str, *, is_well: bool, output: str, retries: int, counts: bool) -> None:
        """Note what a health check has found. Raises NotFound."""
        await self._call(
            lambda house: house.told_health(container, is_well=is_well, output=output, retries=retries, counts=counts),
            "noting a health check",
        )

    def _command(self, exec_id: str) -> execs.Command:
        if exec_id not in self._execs:
            raise errors.NotFound(
                f"{self.name} has no command {exec_id[:12]!r}.",
                hint="its container may be gone",
                details={"missing": "exec instance"},
            )
        return self._execs[exec_id]

    # ------------------------------------------------------------------------------------------------------------ files

    async def stat_path(self, container: str, path: str) -> PathStat:
        """Look at a path of a container, running or not."""
        return await self._call(
            lambda house: _in_tree(house, house.look(container), lambda tree: tree.stat(path)), f"looking at {path}"
        )

    async def read_archive(self, container: str, path: str, sink: Callable[[Iterator[bytes]], T]) -> T:
        """Make a tar of a path."""
        stopped = False

        def until_stopped(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                if stopped:
                    raise errors.Cancelled("The copy was stopped.")
                yield piece

        def read() -> T:
            record = self.house.look(container)
            return _in_tree(
                self.house, record, lambda tree: tree.read(path, lambda pieces: sink(until_stopped(pieces)))
            )

        try:
            return await threads.run(read, deadline_seconds=None, what=f"copying {path}")
        finally:
            stopped = True

    async def write_archive(self, container: str, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        """Unpack a tar into a folder of a container."""
        stopped = False

        def pieces() -> Iterator[bytes]:
            for piece in source():
                if stopped:
                    raise errors.Cancelled("The copy was stopped.")
                yield piece

        def write() -> None:
            record = self.house.look(container)
            _in_tree(self.house, record, lambda tree: tree.write(folder, pieces))

        try:
            await threads.run(write, deadline_seconds=None, what=f"copying to {folder}")
        finally:
            stopped = True

    # ----------------------------------------------------------------------------------------------------------- images

    async def inspect_image(self, image: str) -> ImageState:
        """Look at an image."""
        return await self._call(lambda house: shapes.image_state(house.image(image)), f"inspecting image {image}")

    async def image_details(self, image: str) -> ImageDetails:
        """Look at an image and its layers."""
        return await self._call(lambda house: shapes.image_details(house.image(image)), f"inspecting image {image}")

    async def list_images(self) -> list[ImageRow]:
        """List images, newest first."""
        return await self._call(
            lambda house: [shapes.image_row(one, self.name) for one in house.images.images()], "listing images"
        )

    async def untagged_children(self, image: str) -> list[ImageRow]:
        """List the images without a name that were built right on this one."""

        def rows(house: life.House) -> list[ImageRow]:
            parent = house.images.image(image)
            return [shapes.image_row(one, self.name) for one in house.images.children(parent.id) if not one.tags]

        return await self._call(rows, "listing images")

    async def image_users(self) -> dict[str, list[str]]:
        """Return the names of the containers made of each image."""
        return await self._call(lambda house: house.image_users(), "listing containers")

    async def tag_image(self, source: str, target: str) -> None:
        """Give an image another name."""

        def tag(house: life.House) -> None:
            house.images.tag(source, target)
            house.journal.note("image", "tag", house.images.image(target).id, target)

        await self._call(tag, f"tagging {source}")

    async def list_image_names(self) -> list[str]:
        """Return the tagged names of all images."""
        return await self._call(
            lambda house: [tag for one in house.images.images() for tag in one.tags], "listing images"
        )

    @asynccontextmanager
    async def pull_image(
        self, reference: str, *, platform: str | None
    ) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
        """Pull an image, its layers side by side, each unpacked while it comes."""
        from codomyrmex_containerization.engines.embedded import pulling

        house = await self._call(lambda house: house, f"pulling {reference}")

        def done(found: pulling.Pulled) -> None:
            if found.image is not None:
                house.journal.note("image", "pull", found.image.id, reference)

        async with pulling.pulling(
            lambda: house.images, self._client(), reference, platform=platform, done=done
        ) as steps:
            yield steps

    @asynccontextmanager
    async def push_image(
        self, image: str, target: str, *, credential: Credential | None = None, insecure: bool = False
    ) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
        """Push an image; credentials and TLS are seen to here, as they are for a pull."""
        from codomyrmex_containerization.engines.embedded import pushing

        house = await self._call(lambda house: house, f"pushing {image}")

        def done(found: pushing.Pushed) -> None:
            house.journal.note("image", "push", found.id, target)

        async with pushing.pushing(house.images, self._client(), image, target, done=done) as steps:
            yield steps

    def _client(self) -> distribution.Client:
        if self._registries is None:
            from codomyrmex_containerization.clients import distribution
            from codomyrmex_containerization.models.settings import RegistrySettings

            self._registries = distribution.Client(RegistrySettings(), environ=os.environ, learn=lambda secret: None)
        return self._registries

    async def remove_image(self, image: str, *, force: bool) -> tuple[str, ...]:
        """Remove an image or a tag."""

        def remove(house: life.House) -> tuple[str, ...]:
            id = house.images.image(image).id
            gone = house.images.remove(image, force=force, users=house.image_users())
            house.journal.note("image", "delete" if id in gone else "untag", id, image)
            return gone

        return await self._call(remove, f"removing image {image}")

    # --------------------------------------------------------------------------------------------------------- archives

    async def load_image(self, source: Path, *, passed: base.Passed = lambda count: None) -> tuple[str, ...]:
        """Load a docker-archive, an OCI archive or an OCI layout folder."""

        def load(house: life.House) -> tuple[str, ...]:
            with host_files.source(source) as held, _named(held, source) as path:
                made = house.images.load(path, watch=watch)
            for one in made:
                house.journal.note("image", "load", one.id, next(iter(one.tags), one.id))
            return tuple(name for one in made for name in one.tags or (one.id,))

        with content_watch.stoppable(passed) as watch:
            return await self._take(load, f"loading {source.name}")

    async def save_image(
        self, image: str, target: Path, *, format: base.ArchiveFormat, passed: base.Passed = lambda count: None
    ) -> int:
        """Write an image as a docker-archive, an OCI archive or an OCI layout folder."""

        def save(house: life.House) -> int:
            if host_image.is_meant(image):
                raise _is_this_machine(f"The image {image}")
            with host_files.folder_of(target) as folder, _named(folder, target.parent) as path:
                house.images.save([image], path / target.name, format=format, watch=watch)
                return host_files.size(target.name, folder)

        with content_watch.stoppable(passed) as watch:
            return await self._take(save, f"saving {image}")

    async def import_image(
        self, source: Path, *, tag: str, labels: Mapping[str, str], passed: base.Passed = lambda count: None
    ) -> str:
        """Make an image of a root file system, a tar or a folder."""

        def import_(house: life.House) -> str:
            with host_files.source(source) as held, _named(held, source) as path:
                config = objects.ImageConfig(labels=labels)
                made = house.images.import_rootfs(path, tag=tag, config=config, watch=watch)
            house.journal.note("image", "import", made.id, tag)
            return made.id

        with content_watch.stoppable(passed) as watch:
            return await self._take(import_, f"importing {source.name}")

    async def export_container(
        self,
        container: str,
        target: Path,
        *,
        format: ExportFormat = "rootfs",
        passed: base.Passed = lambda count: None,
    ) -> int:
        """Make a tar of a container's own layers, without what is mounted on them, or of all that is its own."""
        stopped = False

        def pieces(given: Iterator[bytes]) -> Iterator[bytes]:
            for piece in given:
                if stopped:
                    raise errors.Cancelled("The export was stopped.")
                yield piece

        def export(house: life.House) -> int:
            record = house.look(container)
            if record.image.id == host_image.ID:
                raise _is_this_machine(f"Container {record.name}")
            if format == "state":
                with host_files.folder_of(target) as folder, _named(folder, target.parent) as path:
                    container_files.write(
                        house, record.id, path / target.name, passed=passed, is_stopped=lambda: stopped
                    )
                    return host_files.size(target.name, folder)
            return _in_own_tree(
                house,
                record,
                lambda tree: tree.read("/.", lambda given: host_files.write(target, pieces(given), passed=passed)),
            )

        try:
            return await self._take(export, f"exporting {container}")
        finally:
            stopped = True

    async def stored_container(self, source: Path) -> StoredContainer:
        """Read what an archive says of its container."""

        def look(house: life.House) -> StoredContainer:
            with host_files.source(source) as held, _named(held, source) as path:
                return container_files.look(house, path)

        return await self._take(look, f"reading {source.name}")

    async def import_container(
        self, source: Path, spec: ContainerSpec, *, passed: base.Passed = lambda count: None
    ) -> str:
        """Make a container of an archive's image and layer."""

        def make(house: life.House) -> str:
            with host_files.source(source) as held, _named(held, source) as path:
                return container_files.make(house, path, spec)

        return await self._take(make, f"importing {source.name}")

    async def _take(self, function: Callable[[life.House], T], what: str) -> T:
        """Do what takes as long as it takes."""
        return await threads.run(lambda: function(self.house), deadline_seconds=None, what=what)

    # ----------------------------------------------------------------------------------------------------------- builds

    def builder(self, spec: BuildSpec) -> BuilderName:
        """There is one; what it cannot do it refuses. Raises Unsupported."""
        build.check(spec, engine=self.name)
        return "classic"

    @asynccontextmanager
    async def build_image(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AsyncIterator[AsyncIterator[BuildEvent]]:
        """Build in a thread; leaving the block ends a running step."""
        house = await self._call(lambda house: house, "preparing the build")
        scratch = self._folders.data / "builds"
        scratch.mkdir(mode=0o700, exist_ok=True)
        builder = build.Builder(house.images, steps.ContainerSteps(house), scratch=scratch, engine=self.name)
        async with threads.iterate(
            lambda: builder.events(spec, context=context, dockerfile_name=dockerfile_name), stop=builder.stop
        ) as events:
            yield events

    async def build_cache(self) -> BuildCache:
        """Raise Unsupported: the cache is images."""
        raise self._no_cache()

    async def prune_build_cache(self, *, older_than_seconds: float) -> int:
        """Raise Unsupported: the cache is images."""
        raise self._no_cache()

    def _no_cache(self) -> errors.Unsupported:
        return errors.Unsupported(
            f"{self.name} has no build cache to look at: the steps of its builds are untagged images.",
            hint="prune images instead; engine='docker' has a build cache",
        )

    # ------------------------------------------------------------------------------------------- volumes and networks

    async def list_volumes(self) -> list[VolumeRow]:
        """List volumes by name."""
        return await self._call(lambda house: house.volumes.rows(house.volume_users()), "listing volumes")

    async def create_volume(self, spec: VolumeSpec) -> VolumeRow:
        """Create a volume."""

        def create(house: life.House) -> VolumeRow:
            row = house.volumes.create(spec)
            house.journal.note("volume", "create", row.name, row.name, {"driver": row.driver})
            return row

        return await self._call(create, f"creating volume {spec.name}")

    async def remove_volume(self, volume: str, *, force: bool) -> None:
        """Remove a volume and what is in it."""

        def remove(house: life.House) -> None:
            house.volumes.remove(volume, users=house.volume_users(), force=force)
            house.journal.note("volume", "destroy", volume, volume)

        await self._call(remove, f"removing volume {volume}")

    async def volume_sizes(self) -> dict[str, int]:
        """Return the bytes of each volume."""
        return await self._call(lambda house: house.volumes.sizes(), "measuring volumes")

    async def list_networks(self) -> list[NetworkRow]:
        """List networks by name."""
        return await self._call(lambda house: house.networks.rows(house.network_users()), "listing networks")

    async def create_network(self, spec: NetworkSpec) -> NetworkRow:
        """Create a network."""

        def create(house: life.House) -> NetworkRow:
            row = house.networks.create(spec)
            house.journal.note("network", "create", row.id, row.name, {"name": row.name})
            return row

        return await self._call(create, f"creating network {spec.name}")

    async def remove_network(self, network: str) -> None:
        """Remove a network."""

        def remove(house: life.House) -> None:
            row = house.networks.find(network)
            house.networks.remove(network, users=house.network_users())
            house.journal.note("network", "destroy", row.id, row.name, {"name": row.name})

        await self._call(remove, f"removing network {network}")

    async def connect_network(self, network: str, container: str, *, aliases: Sequence[str] = ()) -> None:
        """Connect a container to a network."""
        await self._call(
            lambda house: house.connect(network, container, aliases=aliases), f"connecting {container} to {network}"
        )

    async def disconnect_network(self, network: str, container: str, *, force: bool) -> None:
        """Disconnect a container from a network."""
        await self._call(lambda house: house.disconnect(network, container, force=force), f"disconnecting {container}")

    # ----------------------------------------------------------------------------------------------------------- events

    @asynccontextmanager
    async def events(self, query: EventQuery) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Read what happened, and follow what happens until `until`."""
        house = await self._call(lambda house: house, "reading events")
        async with threads.task_group() as tasks:
            if query.until is not None:
                tasks.start_soon(self.watch)
            async with aclosing(house.journal.follow(query)) as found:
                yield found
            tasks.cancel_scope.cancel()

    async def watch(self) -> None:
        """Notice at once whose program has ended, though nobody looks at it, until cancelled."""
        seen = -1
        while True:
            house = self._made
            if house is not None:
                now = house.ends()
                if now != seen:
                    seen = now
                    await self._call(lambda house: house.all(), "looking at the containers")
            await anyio.sleep(_WATCH_SECONDS)

    async def aclose(self) -> None:
        """There is no connection: containers go on."""
        self._execs.clear()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _lacks(found: probe.Runtime) -> dict[Capability, str]:
    lacks = dict(_LACKS)
    if found.cgroups == "none":
        lacks |= dict.fromkeys(("limits", "pause", "update"), life.NO_CGROUPS)
    return lacks


def _numbers(world: userns.World | None) -> list[str]:
    if world is None or world.ids > 1:
        return []
    return [f"images may only hold files of root: this user has no numbers for others (run: {userns.REMEDY})"]


def _damaged(house: life.House) -> list[str]:
    found = house.containers.damaged()
    return [f"the record of container {id[:12]} is damaged: remove it by its id with force=true" for id in found]


def _has_labels(row: ContainerRow, wanted: Sequence[str]) -> bool:
    pairs = (one.partition("=") for one in wanted)
    return all(name in row.labels and (not sign or row.labels[name] == value) for name, sign, value in pairs)


def _is_over(house: life.House, container_id: str) -> bool:
    try:
        return not house.look(container_id).is_alive
    except errors.NotFound:
        return True


async def _ended(record: Record) -> None:
    """Wait until a container's monitor has ended, or its program where the monitor is gone."""
    # The monitor of one that is to run again lives until that is done.
    for one in (record.first, record.monitor if record.restart.name == "no" else None):
        if one is None:
            continue
        try:
            descriptor = os.pidfd_open(one.pid)
        except OSError:
            continue
        try:
            if one.is_alive:
                await anyio.wait_readable(descriptor)
        finally:
            with suppress(OSError):
                anyio.notify_closing(descriptor)
            os.close(descriptor)


@contextmanager
def _named(held: int, path: Path) -> Iterator[Path]:
    """Lend a path that leads to what is held open, whatever is put in its place; an error names the one that was given."""
    here = f"/proc/self/fd/{held}"
    try:
        yield Path(here)
    except errors.ContainerizationError as error:
        if here not in error.message:
            raise
        message = error.message.replace(here, str(path))
        raise type(error)(message, hint=error.hint, details=error.details) from error


def _is_this_machine(what: str) -> errors.Unsupported:
    return errors.Unsupported(
        f"{what} is this machine, which is never made a file.",
        hint="use another image; container_copy copies single files; engine='docker' has images of its own",
    )


def _written(house: life.House, record: Record) -> int:
    """Return how much a container has written."""
    folder = house.containers.folder(record.id)
    if record.limits.disk_bytes is None:
        return files.size(folder / "upper")
    with house.containers.hold(record.id):
        was_mounted = disk.is_up(folder)
        try:
            with disk.room(folder, record.limits.disk_bytes) as (upper, _):
                return files.size(upper)
        finally:
            if not was_mounted:
                disk.take_down(folder)


def _in_own_tree(house: life.House, record: Record, do: Callable[[files.Tree], T]) -> T:
    """Do something with a container's own file system, without what its program has mounted there."""
    merged = house.containers.folder(record.id) / "merged"
    if record.is_alive and overlay.is_mounted(merged):
        return do(files.Tree(merged))
    with house.containers.hold(record.id):
        was_mounted = overlay.is_mounted(merged)
        if not was_mounted:
            house.mount(record)
        try:
            return do(files.Tree(merged))
        finally:
            if not was_mounted:
                disk.take_down(merged.parent)


def _in_tree(house: life.House, record: Record, do: Callable[[files.Tree], T]) -> T:
    """Do something with a container's files: those that its program sees, or what would be there if it ran."""
    if record.first is not None and record.first.is_alive and record.is_alive:
        return do(files.Tree(Path(f"/proc/{record.first.pid}/root")))
    folder = house.containers.folder(record.id)
    with house.containers.hold(record.id):
        was_mounted = overlay.is_mounted(folder / "merged")
        if not was_mounted:
            house.mount(record)
        try:
            return do(files.Tree(folder / "merged", mounts=record.mounts, read_only=record.spec.read_only_rootfs))
        finally:
            if not was_mounted:
                disk.take_down(folder)
