"""Is the finished specification allowed, and whose is what it creates? The guard round every engine.

It sees each specification after everything else was decided, judges it by the policy, writes the ownership labels and
tells the ledger what came to be. Host paths are resolved here, handed on resolved, and looked at again between create
and start; what an attacker changes after that moment and before the engine's own mount is not seen (see SECURITY.md).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from codomyrmex_containerization import errors, policy, redact
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import (
    ContainerRow,
    ContainerSpec,
    ContainerState,
    Isolation,
    Lifetime,
    Limits,
    Mount,
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
from codomyrmex_containerization.models.engine import Check, EngineInfo
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSpec, ImageState
from codomyrmex_containerization.models.inside import ExportFormat, FileChange, ProcessRow, StoredContainer
from codomyrmex_containerization.models.reference import parse as parse_reference
from codomyrmex_containerization.models.settings import PolicySettings
from codomyrmex_containerization.models.storage import BuildCache, NetworkRow, NetworkSpec, VolumeRow, VolumeSpec
from codomyrmex_containerization.models.usage import Usage

if TYPE_CHECKING:
    from codomyrmex_containerization.clients.credentials import Credential

# The id of an "exec" is that of its container, a slash and its own; that of a "step" its image, instruction and time; that
# of a "volume" its name, which another may get later: only with our label on it is it still the one that was made.
ObjectKind = Literal["container", "image", "exec", "step", "volume", "network"]
T = TypeVar("T")

LABEL_HOST = policy.LABEL_PREFIX + "host"
LABEL_RUN = policy.LABEL_PREFIX + "run"
LABEL_LIFETIME = policy.LABEL_PREFIX + "lifetime"
LABEL_EXPIRES = policy.LABEL_PREFIX + "expires"

_MOST_ENTRIES_SCANNED = 2_000


class Ledger(Protocol):
    """Who we are and what this run has created."""

    @property
    def host(self) -> str:
        """A name of this host that is the same in every run."""

    @property
    def run(self) -> str:
        """A name of this run."""

    def creating(self, engine: str) -> None:
        """Remember that an object may come to be, whose id is not known yet: `settled` follows, or nobody knows."""

    def settled(self, engine: str) -> None:
        """Forget that: what came of it is known."""

    def created(self, kind: ObjectKind, engine: str, id: str, lifetime: Lifetime) -> None:
        """Remember an object that this run created."""

    def removed(self, kind: ObjectKind, engine: str, id: str) -> None:
        """Forget an object that is gone."""

    def leftover(self, kind: ObjectKind, engine: str, id: str) -> None:
        """Remember an object of this run that could not be removed just now, so that it is tried again."""

    def owns(self, kind: ObjectKind, engine: str, id: str) -> bool:
        """Say whether this very run created the object: the only thing that spares a confirmation."""


@dataclass(frozen=True, slots=True)
class PathRules:
    """The host paths that may be used, resolved once per process."""

    allowed: tuple[Path, ...]
    named: bool
    protected: tuple[Path, ...]

    def resolve(self, path: Path, *, purpose: str) -> Path:
        """Return the path with all links resolved. Raises InvalidArgument (it is not there) and Refused."""
        try:
            resolved = Path(os.path.realpath(path, strict=True))
        except FileNotFoundError:
            policy.judge_path(
                Path(os.path.realpath(path)),
                allowed=self.allowed,
                named=self.named,
                protected=self.protected,
                purpose=purpose,
            )
            raise errors.InvalidArgument(f"{path} does not exist.", hint="create it first, or mend the path") from None
        except (OSError, ValueError) as error:
            raise errors.InvalidArgument(f"{path} cannot be resolved.", hint="mend the path") from error
        policy.judge_path(resolved, allowed=self.allowed, named=self.named, protected=self.protected, purpose=purpose)
        return resolved

    def resolve_new(self, path: Path, *, purpose: str) -> Path:
        """Return a path that may not exist yet, the links of its folder resolved. Raises InvalidArgument, Refused."""
        try:
            folder = Path(os.path.realpath(path.parent, strict=True))
        except (OSError, ValueError) as error:
            raise errors.InvalidArgument(f"The folder {path.parent} does not exist.", hint="create it first") from error
        resolved = folder / path.name
        policy.judge_path(resolved, allowed=self.allowed, named=self.named, protected=self.protected, purpose=purpose)
        return resolved


@dataclass(frozen=True, slots=True)
class _Seen:
    path: Path
    device: int
    inode: int


class GuardedEngine(base.Engine):
    """An engine that does only what the policy allows and labels what it makes."""

    def __init__(
        self,
        engine: base.Engine,
        *,
        rules: PolicySettings,
        paths: PathRules,
        ledger: Ledger,
        redactor: redact.Redactor,
        isolation: Isolation = "standard",
    ) -> None:
        self._engine = engine
        # What engines always do is no less than standard, and need not be asked for.
        self._isolation = isolation if isolation != "standard" else None
        self._redactor = redactor
        self._rules = rules
        self._paths = paths
        self._ledger = ledger
        self._seen: dict[str, list[_Seen]] = {}
        self._execs: dict[str, str] = {}
        self.name = engine.name
        self.endpoint = engine.endpoint

    @property
    def is_local(self) -> bool:
        return self._engine.is_local

    async def checks(self) -> list[Check]:
        return await self._engine.checks()

    async def info(self, *, deadline_seconds: float | None = None) -> EngineInfo:
        return await self._engine.info(deadline_seconds=deadline_seconds)

    async def list_containers(self, *, all: bool, labels: Sequence[str] = ()) -> list[ContainerRow]:
        rows = await self._engine.list_containers(all=all, labels=labels)
        for row in rows:
            self._redactor.learn_named(row.labels)
        return rows

    async def inspect_container(self, container: str, *, size: bool = False) -> ContainerState:
        state = await self._engine.inspect_container(container, size=size)
        self._learn(state.env, state.labels)
        return state

    async def container_details(self, container: str) -> ContainerDetails:
        details = await self._engine.container_details(container)
        self._learn(details.state.env, details.state.labels)
        return details

    async def create_container(self, spec: ContainerSpec) -> str:
        """Judge, label, create, remember. Raises Refused beside the engine's own errors."""
        return await self._created(spec, self._engine.create_container)

    async def _created(self, spec: ContainerSpec, create: Callable[[ContainerSpec], Awaitable[str]]) -> str:
        spec = replace(spec, isolation=spec.isolation or self._isolation)
        policy.judge_container(spec, self._rules)
        mounts, seen = self._resolve_mounts(spec.mounts)
        policy.judge_mount_paths(mounts)
        seen += await self._judge_volumes(spec.mounts)
        self._ledger.creating(self.name)
        try:
            id = await create(replace(spec, mounts=mounts, labels={**spec.labels, **self._labels(spec.lifetime)}))
        except (errors.DeadlineExceeded, errors.EngineUnavailable):
            raise  # the engine may make it yet
        except errors.ContainerizationError:
            self._ledger.settled(self.name)
            raise
        self._ledger.settled(self.name)
        self._ledger.created("container", self.name, id, spec.lifetime)
        if seen:
            self._seen[id] = seen
        return id

    async def start_container(self, container: str) -> None:
        """Start, after one more look at the host paths that were judged."""
        for one in self._seen.pop(container, ()):
            self._look_again(one)
        await self._engine.start_container(container)

    def attach_container(self, container: str, *, stdin: bytes | None) -> AbstractAsyncContextManager[base.Attachment]:
        return self._engine.attach_container(container, stdin=stdin)

    async def wait_container(self, container: str) -> int:
        return await self._engine.wait_container(container)

    async def stop_container(self, container: str, *, timeout_seconds: float) -> None:
        await self._engine.stop_container(container, timeout_seconds=timeout_seconds)

    async def restart_container(self, container: str, *, timeout_seconds: float) -> None:
        await self._engine.restart_container(container, timeout_seconds=timeout_seconds)

    async def pause_container(self, container: str) -> None:
        await self._engine.pause_container(container)

    async def unpause_container(self, container: str) -> None:
        await self._engine.unpause_container(container)

    async def create_exec(self, container: str, spec: ExecSpec) -> str:
        self._redactor.learn_named(spec.env)
        id = await self._engine.create_exec(container, spec)
        # Written down before it is started: nobody else would end it after a `kill -9`.
        self._execs[id] = f"{container}/{id}"
        self._ledger.created("exec", self.name, self._execs[id], "call")
        return id

    def start_exec(self, exec_id: str, *, stdin: bytes | None) -> AbstractAsyncContextManager[base.Attachment]:
        return self._engine.start_exec(exec_id, stdin=stdin)

    async def inspect_exec(self, exec_id: str) -> ExecState:
        state = await self._engine.inspect_exec(exec_id)
        if not state.running:
            self._exec_ended(exec_id)
        return state

    async def end_exec(self, container: str, exec_id: str) -> bool:
        ended = await self._engine.end_exec(container, exec_id)
        if ended:
            self._exec_ended(exec_id)
        return ended

    async def stat_path(self, container: str, path: str) -> PathStat:
        return await self._engine.stat_path(container, path)

    async def read_archive(self, container: str, path: str, sink: Callable[[Iterator[bytes]], T]) -> T:
        return await self._engine.read_archive(container, path, sink)

    async def write_archive(self, container: str, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        await self._engine.write_archive(container, folder, source)

    def judge_foreign(self, state: ContainerState) -> None:
        """Refuse to write to a container of others that the policy would not let us create. Raises Refused."""
        if self._ledger.owns("container", self.name, state.id):
            return
        sockets = [path for path in self._paths.protected if path.suffix == ".sock"]
        if self.endpoint.socket_path is not None:
            sockets += [Path(self.endpoint.socket_path), Path(os.path.realpath(self.endpoint.socket_path))]
        policy.judge_foreign(state, self._rules, sockets=sockets)

    async def kill_container(self, container: str, signal: str) -> None:
        await self._engine.kill_container(container, signal)

    async def remove_container(self, container: str, *, force: bool, volumes: bool) -> None:
        try:
            await self._engine.remove_container(container, force=force, volumes=volumes)
        except errors.NotFound:
            self._ledger.removed("container", self.name, container)
            raise
        except BaseException:
            self._ledger.leftover("container", self.name, container)
            raise
        self._ledger.removed("container", self.name, container)

    def container_logs(
        self, container: str, query: base.LogQuery, *, tty: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[OutputFrame]]:
        return self._engine.container_logs(container, query, tty=tty)

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        return await self._engine.usage(ids)

    async def inspect_image(self, image: str) -> ImageState:
        state = await self._engine.inspect_image(image)
        self._learn(state.env, state.labels)
        return state

    async def image_details(self, image: str) -> ImageDetails:
        details = await self._engine.image_details(image)
        self._learn(details.env, details.labels)
        return details

    async def list_images(self) -> list[ImageRow]:
        rows = await self._engine.list_images()
        for row in rows:
            self._redactor.learn_named(row.labels)
        return rows

    async def untagged_children(self, image: str) -> list[ImageRow]:
        return await self._engine.untagged_children(image)

    async def image_users(self) -> dict[str, list[str]]:
        return await self._engine.image_users()

    async def tag_image(self, source: str, target: str) -> None:
        await self._engine.tag_image(source, target)

    async def list_image_names(self) -> list[str]:
        return await self._engine.list_image_names()

    def pull_image(
        self, reference: str, *, platform: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[base.PullProgress]]:
        """Judge the registry and pull. Raises Refused, InvalidArgument beside the engine's own errors."""
        if "*" not in self._rules.pull_registries:
            policy.judge_pull(parse_reference(reference).domain, self._rules)
        return self._engine.pull_image(reference, platform=platform)

    def push_image(
        self, image: str, target: str, *, credential: Credential | None = None, insecure: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[base.PullProgress]]:
        return self._engine.push_image(image, target, credential=credential, insecure=insecure)

    async def remove_image(self, image: str, *, force: bool) -> tuple[str, ...]:
        gone = await self._engine.remove_image(image, force=force)
        for one in gone:
            self._ledger.removed("image", self.name, one)
        return gone

    async def load_image(self, source: Path, *, passed: base.Passed = lambda count: None) -> tuple[str, ...]:
        """Judge the path, load, remember what was not there before. Raises Refused beside the engine's own errors."""
        path = self.resolve_path(source, purpose="an archive of images")
        before = await self._image_ids()
        names = await self._engine.load_image(path, passed=passed)
        for id in {(await self.inspect_image(name)).id for name in names} - before:
            self.image_built(id)
        return names

    async def save_image(
        self, image: str, target: Path, *, format: base.ArchiveFormat, passed: base.Passed = lambda count: None
    ) -> int:
        """Judge the path and save. Raises Refused beside the engine's own errors."""
        path = self.resolve_new_path(target, purpose="the archive of an image")
        return await self._engine.save_image(image, path, format=format, passed=passed)

    async def import_image(
        self, source: Path, *, tag: str, labels: Mapping[str, str], passed: base.Passed = lambda count: None
    ) -> str:
        """Judge the path, label, import, remember. Raises Refused beside the engine's own errors."""
        path = self.resolve_path(source, purpose="a root file system")
        policy.judge_labels(labels)
        before = await self._image_ids()
        labels = {**labels, LABEL_HOST: self._ledger.host}
        id = await self._engine.import_image(path, tag=tag, labels=labels, passed=passed)
        if id not in before:
            self.image_built(id)
        return id

    async def export_container(
        self,
        container: str,
        target: Path,
        *,
        format: ExportFormat = "rootfs",
        passed: base.Passed = lambda count: None,
    ) -> int:
        """Judge the path and export. Raises Refused beside the engine's own errors."""
        path = self.resolve_new_path(target, purpose="the archive of a container")
        return await self._engine.export_container(container, path, format=format, passed=passed)

    async def stored_container(self, source: Path) -> StoredContainer:
        """Judge the path and read. Raises Refused beside the engine's own errors."""
        path = self.resolve_path(source, purpose="the archive of a container")
        stored = await self._engine.stored_container(path)
        self._redactor.learn_named({**stored.spec.env, **stored.spec.labels})
        return stored

    async def import_container(
        self, source: Path, spec: ContainerSpec, *, passed: base.Passed = lambda count: None
    ) -> str:
        """Judge the path, and the specification as any that a container is created by. Raises Refused beside the engine's own errors."""
        path = self.resolve_path(source, purpose="the archive of a container")
        before = await self._image_ids()
        id = await self._created(spec, lambda judged: self._engine.import_container(path, judged, passed=passed))
        image = (await self._engine.inspect_container(id)).image_id
        if image not in before:
            self.image_built(image)
        return id

    async def _image_ids(self) -> set[str]:
        return {row.id for row in await self._engine.list_images()}

    def builder(self, spec: BuildSpec) -> BuilderName:
        return self._engine.builder(spec)

    def build_image(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AbstractAsyncContextManager[AsyncIterator[BuildEvent]]:
        """Judge and label a build whose paths `resolve_build` has resolved already."""
        policy.judge_build(spec, self._rules)
        self._redactor.learn_named({**spec.build_args, **spec.labels})
        self._redactor.learn_arguments(spec.dockerfile_text)
        labels = {**spec.labels, LABEL_HOST: self._ledger.host}
        return self._engine.build_image(replace(spec, labels=labels), context=context, dockerfile_name=dockerfile_name)

    async def update_container(self, container: str, limits: Limits) -> None:
        await self._engine.update_container(container, limits)

    async def rename_container(self, container: str, name: str) -> None:
        await self._engine.rename_container(container, name)

    async def top(self, container: str) -> list[ProcessRow]:
        return await self._engine.top(container)

    async def changes(self, container: str) -> list[FileChange]:
        return await self._engine.changes(container)

    async def commit_container(self, container: str, *, tag: str, labels: Mapping[str, str], message: str = "") -> str:
        """Label, commit, remember: the image is no container, and wears none of what we wrote on that."""
        policy.judge_labels(labels)
        before = await self._image_ids()
        own = {LABEL_HOST: self._ledger.host, LABEL_RUN: "", LABEL_LIFETIME: "", LABEL_EXPIRES: ""}
        id = await self._engine.commit_container(container, tag=tag, labels={**labels, **own}, message=message)
        if id not in before:
            self.image_built(id)
        return id

    async def list_volumes(self) -> list[VolumeRow]:
        rows = await self._engine.list_volumes()
        for row in rows:
            self._redactor.learn_named(row.labels)
            self._learn_options(row.options)
        return rows

    async def create_volume(self, spec: VolumeSpec) -> VolumeRow:
        """Judge, label, create, remember. Raises Refused beside the engine's own errors."""
        policy.judge_volume(spec, self._rules)
        self._learn_options(spec.options)
        judged = replace(spec, options=self._judged_options(spec), labels={**spec.labels, **self._labels("detached")})
        row = await self._engine.create_volume(judged)
        self._ledger.created("volume", self.name, row.name, "detached")
        return row

    async def remove_volume(self, volume: str, *, force: bool) -> None:
        try:
            await self._engine.remove_volume(volume, force=force)
        except errors.NotFound:
            self._ledger.removed("volume", self.name, volume)
            raise
        self._ledger.removed("volume", self.name, volume)

    async def volume_sizes(self) -> dict[str, int]:
        return await self._engine.volume_sizes()

    async def list_networks(self) -> list[NetworkRow]:
        rows = await self._engine.list_networks()
        for row in rows:
            self._redactor.learn_named(row.labels)
        return rows

    async def create_network(self, spec: NetworkSpec) -> NetworkRow:
        """Judge, label, create, remember. Raises Refused beside the engine's own errors."""
        policy.judge_network(spec, self._rules)
        row = await self._engine.create_network(replace(spec, labels={**spec.labels, **self._labels("detached")}))
        self._ledger.created("network", self.name, row.id, "detached")
        return row

    async def remove_network(self, network: str) -> None:
        try:
            await self._engine.remove_network(network)
        except errors.NotFound:
            self._ledger.removed("network", self.name, network)
            raise
        self._ledger.removed("network", self.name, network)

    async def connect_network(self, network: str, container: str, *, aliases: Sequence[str] = ()) -> None:
        await self._engine.connect_network(network, container, aliases=aliases)

    async def disconnect_network(self, network: str, container: str, *, force: bool) -> None:
        await self._engine.disconnect_network(network, container, force=force)

    async def build_cache(self) -> BuildCache:
        return await self._engine.build_cache()

    async def prune_build_cache(self, *, older_than_seconds: float) -> int:
        return await self._engine.prune_build_cache(older_than_seconds=older_than_seconds)

    @asynccontextmanager
    async def events(self, query: EventQuery) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        async with self._engine.events(query) as items:
            yield self._learned(items)

    def owns_volume(self, row: VolumeRow) -> bool:
        """Say whether this run created the volume: one of its name that others made later is theirs."""
        return self.owns("volume", row.name) and row.labels.get(LABEL_RUN) == self._ledger.run

    def owns(self, kind: ObjectKind, id: str) -> bool:
        """Say whether this run created the object."""
        return self._ledger.owns(kind, self.name, id)

    def image_built(self, id: str) -> None:
        """Remember a finished image as this run's own."""
        self._ledger.created("image", self.name, id, "detached")

    def intermediate_image(self, id: str, *, finished: bool = False) -> None:
        """Remember what a build leaves behind until it has ended, so that a later start can take it away."""
        if finished:
            self._ledger.removed("image", self.name, id)
        else:
            self._ledger.created("image", self.name, id, "call")

    def build_step(self, image: str, instruction: str) -> str:
        """Remember that a step on this image may leave another one, whose id is not known yet; `build_step_ended` takes the key."""
        key = f"{image}/{instruction}/{time.time():.6f}"
        self._ledger.created("step", self.name, key, "call")
        return key

    def build_step_ended(self, key: str) -> None:
        """Forget that: what the step left is known."""
        self._ledger.removed("step", self.name, key)

    def resolve_path(self, path: Path, *, purpose: str) -> Path:
        """Resolve and judge a host path that is read or mounted here. Raises InvalidArgument, Refused."""
        return self._paths.resolve(path, purpose=purpose)

    def resolve_new_path(self, path: Path, *, purpose: str) -> Path:
        """Resolve and judge a host path that is going to be written. Raises InvalidArgument, Refused."""
        return self._paths.resolve_new(path, purpose=purpose)

    async def aclose(self) -> None:
        await self._engine.aclose()

    def _exec_ended(self, exec_id: str) -> None:
        key = self._execs.pop(exec_id, None)
        if key is not None:
            self._ledger.removed("exec", self.name, key)

    def _labels(self, lifetime: Lifetime) -> Mapping[str, str]:
        return {LABEL_HOST: self._ledger.host, LABEL_RUN: self._ledger.run, LABEL_LIFETIME: lifetime, LABEL_EXPIRES: ""}

    def _learn(self, env: Sequence[str], labels: Mapping[str, str]) -> None:
        """Have the secrets that an object carries masked from now on, wherever they turn up."""
        self._redactor.learn_named(dict(entry.split("=", 1) for entry in env if "=" in entry))
        self._redactor.learn_named(labels)

    def _resolve_mounts(self, mounts: Sequence[Mount]) -> tuple[tuple[Mount, ...], list[_Seen]]:
        resolved, seen = [], []
        for mount in mounts:
            if mount.type == "bind":
                path = self._resolve_host_path(mount.source)
                seen += self._seen_now(path)
                mount = replace(mount, source=str(path))
            elif mount.type == "volume":
                # The engine makes a volume that is not there: it outlives the container, so it says whose it is.
                mount = replace(mount, labels={LABEL_HOST: self._ledger.host, LABEL_RUN: self._ledger.run})
            resolved.append(mount)
        return tuple(resolved), seen

    def _resolve_host_path(self, source: str) -> Path:
        if not self.is_local:
            return self._judged_elsewhere(source)
        path = self._paths.resolve(Path(source), purpose="a mount")
        self._refuse_sockets(path)
        return path

    def _judged_elsewhere(self, source: str) -> Path:
        """Judge a path of another host, which cannot be looked at from here."""
        if not self.endpoint.host_paths:
            raise errors.Refused(
                f"{self.name} runs on another host, where {source} is not the path that was meant.",
                hint="use a volume, or copy files in; host_paths = true in the endpoint's settings allows that host's own paths",
            )
        path = Path(os.path.normpath(source))
        # What is reached through this host's loopback may well be this host: its links and sockets are looked at too.
        here = Path(os.path.realpath(path)) if self.endpoint.is_loopback else path
        for one in dict.fromkeys((path, here)):
            policy.judge_path(
                one, allowed=(Path("/"),), named=False, protected=self._paths.protected, purpose="a mount"
            )
        if self.endpoint.is_loopback and here.exists():
            self._refuse_sockets(here)
        return path

    def _seen_now(self, path: Path) -> list[_Seen]:
        if not self.is_local:
            return []
        found = path.stat()
        return [_Seen(path, found.st_dev, found.st_ino)]

    async def _judge_volumes(self, mounts: Sequence[Mount]) -> list[_Seen]:
        """Judge the volumes that are there already: their options may mount a host path, or lead elsewhere by now."""
        wanted = {mount.source for mount in mounts if mount.type == "volume" and mount.source}
        if not wanted:
            return []
        seen: list[_Seen] = []
        for row in await self._engine.list_volumes():
            if row.name not in wanted:
                continue
            policy.judge_volume_options(row.driver, row.options, self._rules)
            bound = policy.bound_path(row.driver, row.options)
            if bound is not None:
                path = self._resolve_host_path(str(bound))
                if path != bound:
                    raise errors.Refused(
                        f"The volume {row.name} mounts {bound}, which leads to {path}.",
                        hint="make a volume that names that path itself, or mount the path",
                    )
                seen += self._seen_now(path)
        return seen

    def _judged_options(self, spec: VolumeSpec) -> Mapping[str, str]:
        """Return a volume's options with the host path that they bind resolved."""
        bound = policy.bound_path(spec.driver, spec.options)
        if bound is None:
            return spec.options
        options = {name.lower(): value for name, value in spec.options.items()}
        return {**options, "device": str(self._resolve_host_path(str(bound)))}

    def _learn_options(self, options: Mapping[str, str]) -> None:
        words = [word.split("=", 1) for value in options.values() for word in value.split(",") if "=" in word]
        self._redactor.learn_named({**options, **{name.strip(): value for name, value in words}})

    async def _learned(self, items: AsyncIterator[EngineEvent]) -> AsyncIterator[EngineEvent]:
        async for item in items:
            self._redactor.learn_named(item.attributes)
            yield item

    def _refuse_sockets(self, path: Path) -> None:
        if self._rules.allow_engine_socket:
            return
        socket = _first_socket(path)
        if socket is not None:
            raise errors.Refused(
                f"{path} may not be mounted: {socket} is a socket, and whoever reaches it may rule this host.",
                hint="mount a folder without sockets; the person who runs this server can allow it with policy.allow_engine_socket = true",
            )

    def _look_again(self, seen: _Seen) -> None:
        try:
            now = os.stat(seen.path, follow_symlinks=False)
            same = (now.st_dev, now.st_ino) == (seen.device, seen.inode) and os.path.realpath(seen.path) == str(
                seen.path
            )
        except OSError:
            same = False
        if not same:
            raise errors.Refused(
                f"{seen.path} was replaced while the container was being created.",
                hint="find out who changed it, then call again",
            )


def _first_socket(path: Path) -> Path | None:
    """Return the path itself or the first socket below it (bounded look, nearest first)."""
    if stat.S_ISSOCK(path.stat().st_mode):
        return path
    waiting, seen = [path] if path.is_dir() else [], 0
    while waiting:
        folder = waiting.pop(0)
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > _MOST_ENTRIES_SCANNED:
                return None
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif (
                not entry.is_file(follow_symlinks=False)
                and not entry.is_symlink()
                and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
            ):
                return Path(entry.path)
    return None
