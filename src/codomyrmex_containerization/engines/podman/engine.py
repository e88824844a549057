"""How does a Podman engine fulfil the contract?

Through the same client as Docker: Podman's socket speaks the Engine API and, beside it, its own (libpod), so that one library
serves both. What the compatible API lacks or does worse goes to libpod on the same connections.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base, cgroups, process_counters
from codomyrmex_containerization.engines.docker import archives, inside, objects, pushing, shapes, streams
from codomyrmex_containerization.engines.docker import client as client_module
from codomyrmex_containerization.engines.docker import engine as docker_engine
from codomyrmex_containerization.engines.docker import errors as docker_errors
from codomyrmex_containerization.engines.podman import build, libpod, logs, settings
from codomyrmex_containerization.models.container import (
    ContainerRow,
    ContainerSpec,
    ContainerState,
    Limits,
    Mount,
    OutputFrame,
    Ulimit,
)
from codomyrmex_containerization.models.details import ContainerDetails, ImageDetails, ImageRow, PathStat
from codomyrmex_containerization.models.engine import Capability, Endpoint, EngineInfo
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSpec, ImageState
from codomyrmex_containerization.models.inside import FileChange, ProcessRow
from codomyrmex_containerization.models.storage import BuildCache, VolumeSpec
from codomyrmex_containerization.models.usage import Counters, Usage

if TYPE_CHECKING:
    from codomyrmex_containerization.clients.credentials import Credential

T = TypeVar("T")

Revive = Callable[[], Awaitable[None]]

_REVIVE_SECONDS = 30.0
_REMOVE_SECONDS = 60.0
_STATS_WINDOW_SECONDS = 0.1
_STATS_ROUNDS = 3
_LIBPOD = "v4.0.0/libpod"
_WAIT = {"interval": "5ms", "condition": ["created", "initialized", "stopped", "exited"]}
_COLUMNS = "hpid,user,time,args"
_UPDATES_SINCE = (5, 1)
_NO_UPDATE = "Podman before 5.1 changes limits only until the next start, and does not show what it changed"
_CHECKED_HERE = "health checks are run by this server while it lives: Podman leaves them to systemd, which is not there"
_UNCHECKED = "health checks are not run: Podman leaves them to systemd, which is not there"
_NO_SECRETS = "Podman's service takes no build secrets: docker has them with buildx"
_NO_CGROUPS = "rootless Podman has no control groups on this host (version 2 is needed)"
_SUMMED = (
    "usage is summed over the processes, without block traffic: rootless Podman has no control groups on this host"
)
_NO_OOM = "this version of Podman does not say of a container that it ran out of memory"
_OOM_SINCE = (4, 4)


class PodmanEngine(docker_engine.DockerEngine):
    """A Podman engine reached through its service's socket.

    `revive` is called when the socket is gone or nobody listens on it; it starts the service again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_seconds: float,
        scratch: Path | None = None,
        revive: Revive | None = None,
        notes: tuple[str, ...] = (),
        sampler: cgroups.Sampler | None = None,
    ) -> None:
        super().__init__(endpoint, timeout_seconds=timeout_seconds, buildx="off", scratch=scratch, sampler=sampler)
        self._revive = revive
        self._notes = notes
        self.runs_health_checks = False
        self._has_cgroups: bool | None = None
        self._reviving = anyio.Lock()
        self._used_at_seconds = time.monotonic()
        self._intervals: dict[str, float | None] = {}

    async def info(self, *, deadline_seconds: float | None = None) -> EngineInfo:
        """Ask GET /libpod/info."""

        def ask() -> EngineInfo:
            client = self._client(deadline_seconds)
            raw = client._result(client._get(self._libpod("/info")), True)
            found = libpod.engine_info(raw, engine=self.name, endpoint=self.endpoint, api_version=client.api_version)
            return self._described(found, raw)

        return await self._call(ask, "asking what it is", deadline_seconds=deadline_seconds)

    def _described(self, found: EngineInfo, raw: dict[str, Any]) -> EngineInfo:
        parsed = settings.parsed_version(found.version)
        lacks: dict[Capability, str] = {"build_secrets": _NO_SECRETS, "container_state": base.STATE_ELSEWHERE}
        self._has_cgroups = not (found.rootless and found.cgroup_version == 1)
        if not self._has_cgroups:
            lacks |= dict.fromkeys(("limits", "pause"), _NO_CGROUPS)
            if not self.is_local:
                lacks["usage"] = _NO_CGROUPS
        if not self.is_local:
            lacks["exec_kill"] = shapes.ELSEWHERE
        if parsed < _UPDATES_SINCE:
            lacks["update"] = _NO_UPDATE
        elif not self._has_cgroups:
            lacks["update"] = _NO_CGROUPS
        notes = [*self._notes, *libpod.warnings(raw)]
        if not self._has_cgroups and self.is_local:
            notes.append(_SUMMED)
        if parsed < _OOM_SINCE:
            notes.append(_NO_OOM)
        if self.is_local and not settings.look().has_systemd:
            notes.append(_CHECKED_HERE if self.runs_health_checks else _UNCHECKED)
        return replace(found, lacks=lacks, notes=tuple(notes))

    async def remove_container(self, container: str, *, force: bool, volumes: bool) -> None:
        """DELETE /libpod/containers/ID by force, which the compatible one waits ten seconds for."""
        if not force:
            await super().remove_container(container, force=force, volumes=volumes)
            return

        def remove() -> None:
            client = self._client()
            params = {"force": "true", "v": str(volumes).lower(), "timeout": "0"}
            url = self._libpod("/containers/{0}", container)
            answer = client._result(client._delete(url, params=params, timeout=_REMOVE_SECONDS), True)
            failed = [str(one.get("Err")) for one in answer or () if isinstance(one, dict) and one.get("Err")]
            if failed:
                raise docker_errors.from_message(failed[0], engine=self.name, what=f"removing {container}")

        what = f"removing {container}"
        await self._call(remove, what, subject=f"container {container!r}", deadline_seconds=_REMOVE_SECONDS)

    async def list_containers(self, *, all: bool, labels: Sequence[str] = ()) -> list[ContainerRow]:
        """One GET /libpod/containers/json, which the compatible one asks several questions for and leaves the health out of."""
        # Unlike Docker, Podman counts a paused container among those that do not run.
        filters = {} if all else {"status": ["running", "paused"]}
        if labels:
            filters["label"] = list(labels)
        params = {"all": "true", "pod": "true"} | ({"filters": _filters(filters)} if filters else {})

        def ask() -> list[ContainerRow]:
            client = self._client()
            rows = client._result(client._get(self._libpod("/containers/json"), params=params), True)
            made = [libpod.container_row(row, engine=self.name) for row in rows or ()]
            return sorted(made, key=lambda row: row.created, reverse=True)

        return await self._call(ask, "listing containers")

    async def inspect_container(self, container: str, *, size: bool = False) -> ContainerState:
        """GET /containers/NAME/json."""
        return libpod.state(await super().inspect_container(container, size=size))

    async def container_details(self, container: str) -> ContainerDetails:
        """GET /containers/NAME/json."""
        return libpod.container_details(await super().container_details(container))

    async def create_container(self, spec: ContainerSpec) -> str:
        """POST /containers/create, with limits that this process may set where the spec leaves them open."""
        spec = await self._walled(spec)
        limits = replace(spec.limits, shm_bytes=None, ulimits=())
        if limits != Limits():
            await self._require_cgroups("limits memory, CPUs and processes")
        made = [one for mount in spec.mounts if (one := await self._made_volume(mount))]
        try:
            return await super().create_container(self._with_possible_limits(spec))
        except BaseException:
            with anyio.CancelScope(shield=True):
                for volume in made:
                    await self._removed_quietly(volume)
            raise

    async def wait_container(self, container: str) -> int:
        """POST /libpod/containers/NAME/wait: the compatible one looks only four times a second."""
        held: list[Any] = []

        def wait() -> int:
            client = self._client()
            url = self._libpod("/containers/{0}/wait", container)
            response = client.post(url, params=_WAIT, timeout=None, stream=True)
            held.append(response)
            client._raise_for_status(response)
            return int(response.text)

        what = f"waiting for {container}"
        try:
            code = await self._call(wait, what, subject=f"container {container!r}", deadline_seconds=None)
        finally:
            for response in held:
                streams.release(response)
        # One that was never started has no code there.
        return code if code >= 0 else await super().wait_container(container)

    async def pause_container(self, container: str) -> None:
        """POST /containers/ID/pause. Raises Unsupported without control groups."""
        await self._require_cgroups("pauses containers")
        await super().pause_container(container)

    async def top(self, container: str) -> list[ProcessRow]:
        """GET /libpod/containers/ID/top: Podman looks itself, and needs no `ps` in the container or on the host."""
        state = await self.inspect_container(container)
        if state.status not in ("running", "paused"):  # of which it would tell nothing, and no error
            raise errors.Conflict(f"Container {state.name} is not running.", hint="start it first")

        def ask() -> list[ProcessRow]:
            client = self._client()
            url = self._libpod("/containers/{0}/top", container)
            return inside.processes(client._result(client._get(url, params={"ps_args": _COLUMNS}), True))

        what = f"listing the processes of {container}"
        return await self._call(ask, what, subject=f"container {container!r}")

    async def changes(self, container: str) -> list[FileChange]:
        """GET /containers/ID/changes, without the folder in which Podman makes files of its own at every start."""
        # Asked by a name, it would take an image's as well.
        found = await super().changes((await self.inspect_container(container)).id)
        is_own = not any(one.path.startswith("/etc/") for one in found)
        return [one for one in found if not (is_own and one == FileChange("changed", "/etc"))]

    async def commit_container(self, container: str, *, tag: str, labels: Mapping[str, str], message: str = "") -> str:
        """POST /commit. Raises Unsupported for one that runs where it cannot be paused."""
        if (await self.inspect_container(container)).status == "running":
            await self._require_cgroups("pauses containers, which those that run are while an image is made of them")
        return await super().commit_container(container, tag=tag, labels=labels, message=message)

    async def _namespace_of(self, container: str) -> int | None:
        if await self._knows_cgroups():
            return None
        first = (await self._first_pids()).get(container, 0)
        return process_counters.namespace(first) if process_counters.is_first_process(first, container) else None

    async def _knows_cgroups(self) -> bool:
        if self._has_cgroups is None:
            await self.info()
        return bool(self._has_cgroups)

    async def _require_cgroups(self, what: str) -> None:
        if not await self._knows_cgroups():
            raise errors.Unsupported(
                f"{self.name} never {what}: {_NO_CGROUPS}.",
                hint="do without, or use docker, or podman as root",
            )

    async def _made_volume(self, mount: Mount) -> str | None:
        """Make a volume that is to get labels: Podman gives none to one that a container brings."""
        if mount.type != "volume" or not mount.source or not mount.labels:
            return None
        try:
            return (await self.create_volume(VolumeSpec(mount.source, labels=mount.labels))).name
        except errors.Conflict:
            return None  # it was there before

    async def _removed_quietly(self, volume: str) -> None:
        with suppress(errors.ContainerizationError):
            await self.remove_volume(volume, force=False)

    async def stat_path(self, container: str, path: str) -> PathStat:
        """HEAD /containers/ID/archive; Podman names a link after what it leads to."""
        found = await super().stat_path(container, path)
        return replace(found, name=posixpath.basename(path.rstrip("/"))) if found.link_target else found

    async def write_archive(self, container: str, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        """PUT /containers/ID/archive, once it is clear that the folder is there and may be written to."""

        def look() -> None:
            if libpod.refuses_writing(self._client().inspect_container(container), folder):
                raise errors.Conflict(
                    f"{folder} in container {container[:12]} is read-only.",
                    hint="copy to one of the container's writable folders or mounts",
                )

        await self._call(look, f"copying to {folder}", subject=f"container {container!r}")
        await self.stat_path(container, folder)
        await super().write_archive(container, folder, source)

    async def inspect_image(self, image: str) -> ImageState:
        """GET /images/NAME/json."""
        found = await super().inspect_image(image)
        return replace(found, tags=tuple(map(libpod.familiar, found.tags)))

    async def image_details(self, image: str) -> ImageDetails:
        """GET /images/NAME/json and GET /images/NAME/history, side by side."""
        found = await super().image_details(image)
        return replace(
            found,
            tags=tuple(map(libpod.familiar, found.tags)),
            digests=tuple(map(libpod.familiar, found.digests)),
        )

    async def list_images(self) -> list[ImageRow]:
        """GET /images/json."""
        return [libpod.image_row(row) for row in await super().list_images()]

    async def list_image_names(self) -> list[str]:
        """The tags of GET /images/json."""
        return [libpod.familiar(name) for name in await super().list_image_names()]

    async def remove_image(self, image: str, *, force: bool) -> tuple[str, ...]:
        """DELETE /images/NAME."""
        return libpod.removed(await super().remove_image(image, force=force))

    async def load_image(self, source: Path, *, passed: base.Passed = lambda count: None) -> tuple[str, ...]:
        """POST /images/load."""
        return tuple(map(libpod.familiar, await super().load_image(source, passed=passed)))

    def _import_url(self) -> str:
        # The compatible path does not heed the tag.
        return self._libpod("/images/import")

    def _import_parameters(self, tag: str, labels: Mapping[str, str]) -> dict[str, Any]:
        return {"reference": tag, "changes": archives.changes(labels)}

    async def build_cache(self) -> BuildCache:
        """Raise Unsupported: Podman's cache is images."""
        raise self._no_cache()

    async def prune_build_cache(self, *, older_than_seconds: float) -> int:
        """Raise Unsupported: Podman's cache is images."""
        raise self._no_cache()

    def _no_cache(self) -> errors.Unsupported:
        return errors.Unsupported(
            f"{self.name} has no build cache to look at: the steps of its builds are untagged images.",
            hint="prune images instead; engine='docker' has a build cache",
        )

    def _output(self, frames: Iterator[OutputFrame]) -> Iterator[OutputFrame]:
        try:
            yield from (frame for frame in frames if not libpod.is_own_trouble(frame))
        except ConnectionResetError:
            # Podman closes on stdin that nobody read; on a Unix socket everything that was said has come before that.
            if self.endpoint.socket_path is None:
                raise

    def _build_events(self, lines: Iterator[dict[str, Any]]) -> Iterator[BuildEvent]:
        return build.events(lines)

    def _with_possible_limits(self, spec: ContainerSpec) -> ContainerSpec:
        # Limits that are given take the place of all that are configured; Podman then sets the others as high as the kernel allows.
        given = spec.limits.ulimits
        if not given or not self.is_local:
            return spec
        facts = settings.look()
        if facts.rootless or facts.may_raise_limits:
            return spec
        named = {one.name for one in given}
        most = {"nofile": facts.most_files, "nproc": facts.most_processes}
        more = tuple(Ulimit(name, limit, limit) for name, limit in most.items() if name not in named)
        return replace(spec, limits=replace(spec.limits, ulimits=given + more))

    async def update_container(self, container: str, limits: Limits) -> None:
        """POST /libpod/containers/NAME/update."""
        body = libpod.update_body(limits)

        def ask() -> None:
            connection = self._connection()
            if settings.parsed_version(connection.libpod_version) < _UPDATES_SINCE:
                raise errors.Unsupported(
                    f"{self.name} cannot change the limits of a container: {_NO_UPDATE}.",
                    hint="create the container anew with other limits, or use docker",
                )
            client = connection.client
            url = self._libpod("/containers/{0}/update", container)
            client._raise_for_status(client._post_json(url, data=body))

        await self._call(ask, f"changing the limits of {container}", subject=f"container {container!r}")

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Cgroup files where there are some, else the processes of containers on this host, else one request for all."""
        if not ids or not self.is_local or await self._knows_cgroups():
            return await super().usage(ids)
        first_pids = await self._first_pids()
        return await threads.run(
            lambda: cgroups.sample_usage(process_counters.ProcessReader(first_pids), self._history, ids),
            deadline_seconds=self._timeout_seconds,
            what="reading usage",
        )

    async def _first_pids(self) -> dict[str, int]:
        """The number of each running container's first process: one GET /libpod/containers/json."""

        def ask() -> dict[str, int]:
            client = self._client()
            rows = client._result(client._get(self._libpod("/containers/json")), True)
            return {str(row["Id"]): int(row.get("Pid") or 0) for row in rows or ()}

        return await self._call(ask, "listing containers")

    async def _usage_from_api(self, ids: Sequence[str]) -> dict[str, Usage]:
        """One GET /libpod/containers/stats for all."""
        await self._require_cgroups("measures containers")
        looked = self._history.sample(await self._counters_from_libpod(ids))
        fresh = [one for one, now in looked.items() if now.cpu_percent is None]
        if fresh:
            await anyio.sleep(_STATS_WINDOW_SECONDS)
            looked |= self._history.sample(await self._counters_from_libpod(fresh))
        return looked

    async def _counters_from_libpod(self, ids: Sequence[str]) -> dict[str, Counters]:
        def ask() -> dict[str, Counters]:
            client = self._client()
            version = settings.parsed_version(self._connection().libpod_version)
            said = ""
            # When one of them has ended meanwhile Podman says nothing of the others either: those that still run are asked again.
            for _ in range(_STATS_ROUNDS):
                running = self._running(ids)
                if not running:
                    return {}
                params = {"stream": "false", "containers": running}
                answer = client._get(self._libpod("/containers/stats"), params=params)
                client._raise_for_status(answer)
                raw = answer.json()
                if not raw.get("Error"):
                    return libpod.counters(raw.get("Stats"), at_seconds=time.monotonic(), version=version)
                said = str(raw["Error"])
            raise docker_errors.from_message(said, engine=self.name, what="reading usage")

        return await self._call(ask, "reading usage")

    def _running(self, ids: Sequence[str]) -> list[str]:
        client = self._client()
        params = {"all": "true", "filters": _filters({"status": ["running", "paused"]})}
        rows = client._result(client._get(self._libpod("/containers/json"), params=params), True)
        there = {str(row["Id"]) for row in rows or ()}
        return [one for one in ids if one in there]

    @asynccontextmanager
    async def container_logs(
        self, container: str, query: base.LogQuery, *, tty: bool
    ) -> AsyncIterator[AsyncIterator[OutputFrame]]:
        """GET /containers/ID/logs; the last lines are counted off here (see `logs`)."""
        whole = replace(query, tail=None, follow=False)
        skipped, tail = 0, query.tail
        if query.follow and tail is not None:
            skipped = max(await self._with_log(container, whole, tty, logs.count_lines) - tail, 0)

        def cut(frames: Iterator[OutputFrame]) -> Iterator[OutputFrame]:
            timed = map(libpod.log_frame, frames) if query.timestamps else frames
            if tail is None:
                return timed
            return logs.without_first_lines(timed, skipped) if query.follow else logs.last_lines(timed, tail)

        response = await self._open_log(container, replace(query, tail=None))
        read = response.raw.read1 if tty else response.raw.read
        async with self._stream(lambda: cut(streams.frames(read, tty=tty)), response, "reading the log") as items:
            yield items

    async def _with_log(
        self, container: str, query: base.LogQuery, tty: bool, function: Callable[[Iterator[OutputFrame]], T]
    ) -> T:
        response = await self._open_log(container, query)
        read = response.raw.read1 if tty else response.raw.read
        try:
            what = f"reading the log of {container}"
            return await self._call(lambda: function(streams.frames(read, tty=tty)), what, deadline_seconds=None)
        finally:
            streams.release(response)

    @asynccontextmanager
    async def events(self, query: EventQuery) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """GET /libpod/events.

        Podman answers nothing for an `until` that has passed: then all that it kept is asked for and cut off here.
        """
        params, until = _event_params(query)
        actions = query.filters.get("event")

        def ask() -> Any:
            client = self._client()
            response = client._get(self._libpod("/events"), params=params, stream=True)
            client._raise_for_status(response)
            return response

        def read(response: Any) -> Iterator[EngineEvent]:
            for line in docker_engine._json_lines(response):
                made = libpod.event(objects.event(line, engine=self.name))
                if made.time > until:
                    return
                if actions is None or made.action in actions:
                    yield made

        response = await self._call(ask, "reading events")
        async with self._stream(lambda: read(response), response, "reading events") as items:
            yield items

    def builder(self, spec: BuildSpec) -> BuilderName:
        """Podman's own builder, through the compatible API."""
        for wanted, what in ((spec.secrets, "build secrets"), (spec.entitlements, "entitlements")):
            if wanted:
                raise errors.Unsupported(
                    f"{self.name}'s builder takes no {what} through its service.",
                    hint="build with engine='docker', which has them through buildx",
                )
        if len(spec.platforms) > 1:
            raise errors.Unsupported(
                f"{self.name} builds for one platform at a time.", hint="build for each platform on its own"
            )
        return "classic"

    @asynccontextmanager
    async def push_image(
        self, image: str, target: str, *, credential: Credential | None = None, insecure: bool = False
    ) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
        """POST /images/ID/push with a destination: no name is given to the image for it."""
        wanted, id = pushing.wanted(target), (await self.inspect_image(image)).id
        params = {"destination": str(wanted), "tlsVerify": "false" if insecure else "true"}
        async with self._pushing(id.removeprefix("sha256:"), wanted, credential, params, id) as steps:
            yield steps

    def build_image(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AbstractAsyncContextManager[AsyncIterator[BuildEvent]]:
        """Build with Podman's own builder."""
        self.builder(spec)
        return self._build(spec, context, dockerfile_name)

    @asynccontextmanager
    async def _build(
        self, spec: BuildSpec, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AsyncIterator[AsyncIterator[BuildEvent]]:
        def look() -> str:
            self._client().ping()  # a service that has ended is started before
            return self._connection().libpod_version

        version = await self._call(look, "building the image")
        build.judge(spec, engine=self.name, version=settings.parsed_version(version))
        async with self._build_classic(spec, context, dockerfile_name) as events:
            yield events

    @property
    def idle_seconds(self) -> float:
        """How long ago this engine was last asked anything by a call."""
        return time.monotonic() - self._used_at_seconds

    async def health_intervals(self) -> dict[str, float | None]:
        """Return the running containers that have a health check, with its interval; starts no service."""

        def ask() -> dict[str, float | None]:
            client = self._client()
            rows = client._result(client._get(self._libpod("/containers/json")), True)
            there = {str(row["Id"]): str(row.get("Status") or "") for row in rows or ()}
            self._intervals = {one: known for one, known in self._intervals.items() if one in there}
            for one, health in there.items():
                if health and one not in self._intervals:
                    check = shapes.container_details(client.inspect_container(one), engine=self.name).healthcheck
                    self._intervals[one] = check.interval_seconds if check else None
            return dict(self._intervals)

        return await super()._call(ask, "looking for health checks")

    async def run_health_check(self, container: str) -> None:
        """GET /libpod/containers/NAME/healthcheck: run a check once. Raises NotFound, Conflict (not running, no check)."""

        def ask() -> None:
            client = self._client()
            client._raise_for_status(client.get(self._libpod("/containers/{0}/healthcheck", container), timeout=None))

        await super()._call(ask, f"checking {container}", subject=f"container {container!r}", deadline_seconds=None)

    def _libpod(self, path: str, *names: str) -> str:
        client_module.require_names(names)
        return f"{self._client().base_url}/{_LIBPOD}" + path.format(*(quote(name, safe="/:") for name in names))

    async def _call(
        self, function: Callable[[], T], what: str, *, subject: str = "", deadline_seconds: float | None = -1.0
    ) -> T:
        self._used_at_seconds = time.monotonic()
        try:
            return await super()._call(function, what, subject=subject, deadline_seconds=deadline_seconds)
        except errors.EngineUnavailable as error:
            if self._revive is None or not _may_be_repeated(error):
                raise
        await self._revived()
        return await super()._call(function, what, subject=subject, deadline_seconds=deadline_seconds)

    async def _revived(self) -> None:
        if self._revive is None:
            return
        async with self._reviving:
            try:
                with anyio.fail_after(_REVIVE_SECONDS):
                    await self._revive()
            except TimeoutError as error:
                raise errors.DeadlineExceeded(
                    f"{self.name}'s service could not be started within {_REVIVE_SECONDS:g} seconds.",
                    hint="run 'podman info' to see what is wrong",
                ) from error


def _may_be_repeated(error: BaseException) -> bool:
    """Whether a request never reached the engine, or only reads."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError | FileNotFoundError):
            return True
        if getattr(getattr(cause, "request", None), "method", "") in ("GET", "HEAD"):
            return isinstance(cause, OSError) and getattr(cause, "response", None) is None
        cause = docker_errors._inner(cause)
    return False


def _event_params(query: EventQuery) -> tuple[dict[str, str], datetime]:
    now = datetime.now(UTC)
    until = query.until or now
    params = {"since": f"{query.since.timestamp():.6f}" if query.since else "1"}
    if until > now + timedelta(seconds=1):
        params |= {"stream": "true", "until": f"{until.timestamp():.6f}"}
    else:
        params["stream"] = "false"
    filters = {name: list(values) for name, values in query.filters.items() if name != "event"}
    return params | ({"filters": _filters(filters)} if filters else {}), until


def _filters(filters: dict[str, list[str]]) -> str:
    import json

    return json.dumps(filters)
