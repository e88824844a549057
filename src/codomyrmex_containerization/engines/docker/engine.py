"""How does a Docker engine fulfil the contract?"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base, cgroups, host_files, processes
from codomyrmex_containerization.engines.docker import (
    archives,
    buildkit,
    classic,
    inside,
    objects,
    pushing,
    shapes,
    streams,
    walls,
)
from codomyrmex_containerization.engines.docker import client as connecting
from codomyrmex_containerization.engines.docker import errors as docker_errors
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
from codomyrmex_containerization.models.engine import Endpoint, EngineInfo, EngineKind
from codomyrmex_containerization.models.event import EngineEvent, EventQuery
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSpec, ImageState
from codomyrmex_containerization.models.inside import ExportFormat, FileChange, ProcessRow
from codomyrmex_containerization.models.reference import ImageReference
from codomyrmex_containerization.models.storage import BuildCache, NetworkRow, NetworkSpec, VolumeRow, VolumeSpec
from codomyrmex_containerization.models.usage import Usage

if TYPE_CHECKING:
    from docker import APIClient

    from codomyrmex_containerization.clients.credentials import Credential

T = TypeVar("T")

_REMOVE_SECONDS = 60.0
_START_SECONDS = 120.0
_STATS_SECONDS = 10.0
_DISK_USAGE_SECONDS = 30.0
_COPY_CHUNK_BYTES = 1024 * 1024
_EXEC_STARTS_SECONDS = 4.0
_EXEC_ENDS_SECONDS = 4.0
_KILL_ROUNDS = 3
_NO_FOLDER = "loads images from files, not from folders"
_EVENT_MARGIN = timedelta(seconds=5)


class DockerEngine(base.Engine):
    """A Docker engine reached through docker-py; every blocking call runs in a thread with a deadline."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_seconds: float,
        buildx: str | None = None,
        scratch: Path | None = None,
        sampler: cgroups.Sampler | None = None,
    ) -> None:
        self.name = endpoint.engine
        self.endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self._buildx = buildx
        self._scratch = scratch
        self._cached: connecting.Connection | None = None
        sampler = sampler or cgroups.Sampler()
        self._reader, self._history = sampler.reader, sampler.history

    @property
    def is_local(self) -> bool:
        """Whether it is reached through a Unix socket."""
        return self.endpoint.socket_path is not None

    async def product(self) -> EngineKind:
        """Say what really answers, which may be Podman."""
        return await self._call(lambda: self._connection().product, "asking what it is")

    async def info(self, *, deadline_seconds: float | None = None) -> EngineInfo:
        """Ask GET /_ping and GET /info."""

        def ask() -> EngineInfo:
            connection = self._connection(deadline_seconds)
            return shapes.engine_info(
                connection.client.info(),
                engine=self.name,
                product=connection.product,
                api_version=connection.client.api_version,
                endpoint=self.endpoint,
                builder=self._builder_name(),
            )

        return await self._call(ask, "asking what it is", deadline_seconds=deadline_seconds)

    async def list_containers(self, *, all: bool, labels: Sequence[str] = ()) -> list[ContainerRow]:
        """One GET /containers/json."""
        filters = {"label": list(labels)} if labels else None

        def ask() -> list[ContainerRow]:
            rows = self._client().containers(all=all, filters=filters)
            return [shapes.container_row(row, engine=self.name) for row in rows]

        return await self._call(ask, "listing containers")

    async def inspect_container(self, container: str, *, size: bool = False) -> ContainerState:
        """One GET /containers/NAME/json."""

        def ask() -> ContainerState:
            client = self._client()
            url = client._url("/containers/{0}/json", container)
            raw = client._result(client._get(url, params={"size": "true"} if size else None), True)
            return shapes.container_state(raw, engine=self.name)

        return await self._call(ask, f"inspecting {container}", subject=f"container {container!r}")

    async def container_details(self, container: str) -> ContainerDetails:
        """One GET /containers/NAME/json."""
        return await self._call(
            lambda: shapes.container_details(self._client().inspect_container(container), engine=self.name),
            f"inspecting {container}",
            subject=f"container {container!r}",
        )

    async def create_container(self, spec: ContainerSpec) -> str:
        """One POST /containers/create."""
        spec = await self._walled(spec)
        body = shapes.create_body(spec)
        return await self._call(
            lambda: str(self._client().create_container_from_config(body, spec.name, spec.platform)["Id"]),
            "creating a container",
            subject=f"image {spec.image!r}",
            deadline_seconds=_START_SECONDS,
        )

    async def _walled(self, spec: ContainerSpec) -> ContainerSpec:
        """Return a specification with what its level of isolation brings here. Raises InvalidArgument, Unsupported."""
        objects.require_no_rates(spec.limits, engine=self.name)
        if spec.limits.disk_bytes is not None and await self.product() == "podman":
            raise errors.Unsupported(
                f"{self.name} cannot limit disk: Podman does not say whether it does.",
                hint="leave disk out, or use engine='embedded'",
            )
        if spec.isolation is None:
            return spec
        raw = await self._call(lambda: self._client().info(), "asking which walls it has")
        return walls.completed(spec, walls.of_info(raw), engine=self.name)

    async def start_container(self, container: str) -> None:
        """One POST /containers/ID/start."""
        await self._call(
            lambda: self._client(_START_SECONDS).start(container),
            "starting the container",
            subject=f"container {container!r}",
            deadline_seconds=_START_SECONDS,
        )

    @asynccontextmanager
    async def attach_container(self, container: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """POST /containers/ID/attach; the connection is closed when the block ends."""
        # Without the log: the daemon connects the streams before it answers, and would read the log only after that, so
        # that what a quick program says would come twice.
        params = {"stdout": 1, "stderr": 1, "stream": 1, "stdin": int(stdin is not None)}

        def attach() -> Any:
            client = self._client()
            headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
            url = client._url("/containers/{0}/attach", container)
            return client.post(url, None, params=params, stream=True, headers=headers, timeout=self._timeout_seconds)

        what = f"attaching to {container}"
        async with self._attached(attach, what, f"container {container!r}", stdin) as attachment:
            yield attachment

    @asynccontextmanager
    async def _attached(
        self,
        open_connection: Callable[[], Any],
        what: str,
        subject: str,
        stdin: bytes | None,
        *,
        exec_id: str = "",
    ) -> AsyncIterator[base.Attachment]:
        """Open a connection that output comes from and stdin goes to; it is closed when the block ends."""

        def connect() -> Any:
            response = open_connection()
            self._client()._raise_for_status(response)
            sock = streams.raw_socket(response)
            if sock is not None:
                sock.settimeout(None)
            return response

        response = await self._call(connect, what, subject=subject)
        sock = streams.raw_socket(response)
        if sock is None:
            streams.release(response)
            raise errors.Unsupported(
                f"{self.name}'s connection cannot be attached to.", hint="use a unix socket or tcp endpoint"
            )

        def pieces() -> Iterator[OutputFrame]:
            return self._output(streams.frames(response.raw._fp.fp.read1, tty=False))

        async with threads.task_group() as tasks:
            if stdin is not None:
                tasks.start_soon(self._feed, sock, stdin, exec_id)
            async with threads.iterate(pieces, stop=lambda: streams.release(response)) as items:
                yield _DockerAttachment(items, self.name)
            tasks.cancel_scope.cancel()

    def _output(self, frames: Iterator[OutputFrame]) -> Iterator[OutputFrame]:
        return frames

    def _build_events(self, lines: Iterator[dict[str, Any]]) -> Iterator[BuildEvent]:
        return classic.events(lines)

    async def _feed(self, sock: Any, data: bytes, exec_id: str) -> None:
        what = "writing to the container's stdin"
        with suppress(OSError):  # the container ended before it had read everything
            await threads.run(lambda: sock.sendall(data), deadline_seconds=None, what=what)
            if exec_id:
                # An end that comes before the command has a process may be lost, and the command then waits for it for ever:
                # https://github.com/moby/moby/pull/38001
                with suppress(errors.ContainerizationError):
                    await self._exec_when(exec_id, _has_started, _EXEC_STARTS_SECONDS)
            await threads.run(lambda: sock.shutdown(socket.SHUT_WR), deadline_seconds=None, what=what)

    async def wait_container(self, container: str) -> int:
        """POST /containers/ID/wait, without a time limit of its own."""

        held: list[Any] = []

        def wait() -> Any:
            client = self._client()
            response = client.post(client._url("/containers/{0}/wait", container), timeout=None, stream=True)
            held.append(response)
            return client._result(response, True)

        try:
            answer = await self._call(
                wait, f"waiting for {container}", subject=f"container {container!r}", deadline_seconds=None
            )
        finally:
            # One who waits no longer leaves no thread behind that does.
            for response in held:
                streams.release(response)
        return int(answer.get("StatusCode", -1))

    async def stop_container(self, container: str, *, timeout_seconds: float) -> None:
        """POST /containers/ID/stop."""
        await self._control("stop", container, {"t": math.ceil(timeout_seconds)}, timeout_seconds)

    async def restart_container(self, container: str, *, timeout_seconds: float) -> None:
        """POST /containers/ID/restart."""
        await self._control("restart", container, {"t": math.ceil(timeout_seconds)}, timeout_seconds + _START_SECONDS)

    async def pause_container(self, container: str) -> None:
        """POST /containers/ID/pause."""
        await self._control("pause", container, {}, 0)

    async def unpause_container(self, container: str) -> None:
        """POST /containers/ID/unpause."""
        await self._control("unpause", container, {}, 0)

    async def _control(self, action: str, container: str, params: dict[str, int], more_seconds: float) -> None:
        limit = self._timeout_seconds + more_seconds

        def ask() -> None:
            client = self._client()
            url = client._url("/containers/{0}/" + action, container)
            client._raise_for_status(client.post(url, params=params, timeout=limit))

        what = f"{action} of {container}"
        await self._call(ask, what, subject=f"container {container!r}", deadline_seconds=limit)

    async def create_exec(self, container: str, spec: ExecSpec) -> str:
        """POST /containers/ID/exec."""
        body = shapes.exec_body(spec)

        def ask() -> Any:
            client = self._client()
            return client._result(client._post_json(client._url("/containers/{0}/exec", container), data=body), True)

        made = await self._call(ask, f"preparing a command in {container}", subject=f"container {container!r}")
        return str(made["Id"])

    @asynccontextmanager
    async def start_exec(self, exec_id: str, *, stdin: bytes | None) -> AsyncIterator[base.Attachment]:
        """POST /exec/ID/start."""

        def start() -> Any:
            client = self._client()
            headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
            url = client._url("/exec/{0}/start", exec_id)
            return client._post_json(url, data={"Tty": False, "Detach": False}, headers=headers, stream=True)

        async with self._attached(start, "running the command", "", stdin, exec_id=exec_id) as attachment:
            yield attachment

    async def inspect_exec(self, exec_id: str) -> ExecState:
        """GET /exec/ID/json."""
        return await self._call(
            lambda: shapes.exec_state(self._client().exec_inspect(exec_id)), "looking at the command"
        )

    async def end_exec(self, container: str, exec_id: str) -> bool:
        """Kill the process from this host, since the Engine API cannot; else with a `kill` inside the container."""
        # A start that is still on its way cannot be called back: it is waited for.
        state = await self._exec_when(exec_id, _has_started, _EXEC_STARTS_SECONDS)
        if not state.running:
            return state.exit_code is not None
        if not self.is_local:
            raise errors.Unsupported(
                f"A command in a container of {self.name} cannot be killed from this host.",
                hint="stop the container, or kill it from inside; docker and podman on this host can do it",
            )
        if not state.pid:
            return False
        namespace = await self._namespace_of(container)
        ended = await threads.run(
            lambda: processes.end_tree(state.pid, container, namespace=namespace),
            deadline_seconds=self._timeout_seconds,
            what="ending the command",
        )
        if not ended and not await self._kill_inside(container, state.pid, namespace):
            return False
        return not (await self._exec_when(exec_id, lambda now: not now.running, _EXEC_ENDS_SECONDS)).running

    async def _exec_when(self, exec_id: str, holds: Callable[[ExecState], bool], seconds: float) -> ExecState:
        """Look at a command until it is so, or for some seconds; return how it stands then."""
        until, pause = anyio.current_time() + seconds, 0.005
        while True:
            now = await self.inspect_exec(exec_id)
            if holds(now) or anyio.current_time() >= until:
                return now
            await anyio.sleep(pause)
            pause = min(2 * pause, 0.2)

    async def _namespace_of(self, container: str) -> int | None:
        """Return the namespace by which a container's processes are known, for engines that give them no control group."""
        return None

    async def _kill_inside(self, container: str, pid: int, namespace: int | None) -> bool:
        """Kill with the container's own program, for a server that may not signal the container's processes."""
        killed = False
        for _ in range(_KILL_ROUNDS):
            found = await threads.run(
                lambda: processes.inner_pids(processes.find_tree(pid, container, namespace=namespace)),
                deadline_seconds=self._timeout_seconds,
                what="ending the command",
            )
            if not found:
                return killed
            spec = ExecSpec(("kill", "-s", "KILL", *map(str, found)), {}, user="0")
            killer = await self.create_exec(container, spec)
            async with self.start_exec(killer, stdin=None) as attachment:
                async for _frame in attachment.frames():
                    pass
            code = (await self._exec_when(killer, _has_started, _EXEC_STARTS_SECONDS)).exit_code
            if code in (126, 127):
                return False
            killed = killed or code == 0
        return killed

    async def stat_path(self, container: str, path: str) -> PathStat:
        """HEAD /containers/ID/archive."""

        def ask() -> PathStat:
            client = self._client()
            url = client._url("/containers/{0}/archive", container)
            response = client.head(url, params={"path": path}, timeout=self._timeout_seconds)
            told = response.headers.get("X-Docker-Container-Path-Stat")
            if response.status_code == 404 and told and (link := shapes.path_stat(told)).link_target:
                return link  # Podman's word for a link that leads nowhere
            if response.status_code == 404:
                raise errors.NotFound(
                    f"There is no {path} in container {container[:12]}.", hint="check the path inside the container"
                )
            if response.status_code == 500:  # an answer to HEAD cannot say why
                raise errors.InvalidArgument(
                    f"{path} in container {container[:12]} cannot be looked at.",
                    hint="check the path: its links may lead in a circle, or a file stands where a folder is named",
                )
            client._raise_for_status(response)
            return shapes.path_stat(told)

        return await self._call(ask, f"looking at {path}", subject=f"container {container!r}")

    async def read_archive(self, container: str, path: str, sink: Callable[[Iterator[bytes]], T]) -> T:
        """GET /containers/ID/archive."""
        held: list[Any] = []
        stopped = False

        def pieces(response: Any) -> Iterator[bytes]:
            for piece in response.iter_content(_COPY_CHUNK_BYTES):
                if stopped:
                    raise errors.Cancelled("The copy was stopped.")
                yield piece

        def ask() -> T:
            client = self._client()
            url = client._url("/containers/{0}/archive", container)
            # The daemon would compress it for a library that says it can read that.
            headers = {"Accept-Encoding": "identity"}
            response = client._get(url, params={"path": path}, stream=True, headers=headers)
            held.append(response)
            client._raise_for_status(response)
            return sink(pieces(response))

        try:
            return await self._call(ask, f"copying {path}", subject=f"container {container!r}", deadline_seconds=None)
        finally:
            stopped = True
            for response in held:
                streams.release(response)

    async def write_archive(self, container: str, folder: str, source: Callable[[], Iterator[bytes]]) -> None:
        """PUT /containers/ID/archive."""
        stopped = False

        def pieces() -> Iterator[bytes]:
            for piece in source():
                if stopped:
                    raise errors.Cancelled("The copy was stopped.")
                yield piece

        def ask() -> None:
            client = self._client()
            url = client._url("/containers/{0}/archive", container)
            params = {"path": folder, "noOverwriteDirNonDir": "1"}
            response = client.put(url, params=params, data=pieces(), timeout=(self._timeout_seconds, None))
            client._raise_for_status(response)

        try:
            await self._call(ask, f"copying to {folder}", subject=f"container {container!r}", deadline_seconds=None)
        finally:
            stopped = True

    async def kill_container(self, container: str, signal: str) -> None:
        """POST /containers/ID/kill."""
        await self._call(
            lambda: self._client().kill(container, signal), f"ending {container}", subject=f"container {container!r}"
        )

    async def remove_container(self, container: str, *, force: bool, volumes: bool) -> None:
        """DELETE /containers/ID."""

        def remove() -> None:
            client = self._client()
            url = client._url("/containers/{0}", container)
            response = client._delete(url, params={"force": force, "v": volumes}, timeout=_REMOVE_SECONDS)
            client._raise_for_status(response)

        await self._call(
            remove, f"removing {container}", subject=f"container {container!r}", deadline_seconds=_REMOVE_SECONDS
        )

    @asynccontextmanager
    async def container_logs(
        self, container: str, query: base.LogQuery, *, tty: bool
    ) -> AsyncIterator[AsyncIterator[OutputFrame]]:
        """GET /containers/ID/logs."""
        response = await self._open_log(container, query)
        read = response.raw.read1 if tty else response.raw.read
        async with self._stream(lambda: streams.frames(read, tty=tty), response, "reading the log") as items:
            yield items

    async def _open_log(self, container: str, query: base.LogQuery) -> Any:
        params = {
            "stdout": int(query.stream != "stderr"),
            "stderr": int(query.stream != "stdout"),
            "timestamps": int(query.timestamps),
            "follow": int(query.follow),
            "tail": "all" if query.tail is None else str(query.tail),
            "since": _epoch(query.since),
            "until": _epoch(query.until),
        }
        wanted = {name: value for name, value in params.items() if value is not None}

        def ask() -> Any:
            client = self._client()
            response = client._get(client._url("/containers/{0}/logs", container), params=wanted, stream=True)
            client._raise_for_status(response)
            sock = streams.raw_socket(response)
            if sock is not None and query.follow:
                sock.settimeout(None)
            return response

        return await self._call(ask, f"reading the log of {container}", subject=f"container {container!r}")

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Cgroup files where this host has them, else every stats request at once."""
        if not ids:
            return {}
        found: dict[str, Usage] = {}
        if self.is_local:
            found = await threads.run(
                lambda: cgroups.sample_usage(self._reader, self._history, ids),
                deadline_seconds=self._timeout_seconds,
                what="reading usage",
            )
        missing = [one for one in ids if one not in found]
        return found | (await self._usage_from_api(missing) if missing else {})

    async def _usage_from_api(self, ids: Sequence[str]) -> dict[str, Usage]:
        found: dict[str, Usage] = {}

        async def one(container: str) -> None:
            try:
                usage = await self._call(
                    lambda: shapes.usage(self._client().stats(container, stream=False)),
                    "reading usage",
                    deadline_seconds=_STATS_SECONDS,
                )
            except (errors.NotFound, errors.Conflict):
                return  # it ended meanwhile, or is just being removed
            if usage is not None:
                found[container] = usage

        async with threads.task_group() as tasks:
            for container in ids:
                tasks.start_soon(one, container)
        return found

    async def inspect_image(self, image: str) -> ImageState:
        """One GET /images/NAME/json."""
        return await self._call(
            lambda: shapes.image_state(self._client().inspect_image(image)),
            f"inspecting image {image}",
            subject=f"image {image!r}",
        )

    async def image_details(self, image: str) -> ImageDetails:
        """GET /images/NAME/json and GET /images/NAME/history, side by side."""
        subject = f"image {image!r}"
        found: dict[str, Any] = {}

        async def ask(key: str, function: Callable[[], Any]) -> None:
            found[key] = await self._call(function, f"inspecting image {image}", subject=subject)

        async with threads.task_group() as tasks:
            tasks.start_soon(ask, "image", lambda: self._client().inspect_image(image))
            tasks.start_soon(ask, "history", lambda: self._client().history(image))
        what = f"inspecting image {image}"
        return await self._call(lambda: shapes.image_details(found["image"], found["history"]), what)

    async def list_images(self) -> list[ImageRow]:
        """One GET /images/json."""

        def ask() -> list[ImageRow]:
            return [shapes.image_row(row, engine=self.name) for row in self._client().images()]

        return await self._call(ask, "listing images")

    async def untagged_children(self, image: str) -> list[ImageRow]:
        """One GET /images/json?all=1."""

        def ask() -> list[ImageRow]:
            wanted = image.removeprefix("sha256:")
            rows = [
                (shapes.image_row(row, engine=self.name), str(row.get("ParentId") or ""))
                for row in self._client().images(all=True)
            ]
            return [row for row, parent in rows if not row.tags and parent.removeprefix("sha256:").startswith(wanted)]

        return await self._call(ask, "listing images")

    async def image_users(self) -> dict[str, list[str]]:
        """One GET /containers/json."""
        rows = await self._call(lambda: self._client().containers(all=True), "listing containers")
        users: dict[str, list[str]] = {}
        for row in rows:
            names = row.get("Names") or [str(row["Id"])[:12]]
            users.setdefault(str(row.get("ImageID") or ""), []).append(str(names[0]).lstrip("/"))
        return users

    async def tag_image(self, source: str, target: str) -> None:
        """POST /images/NAME/tag."""
        name, _, tag = target.rpartition(":")
        await self._call(
            lambda: self._client().tag(source, name, tag, force=True), f"tagging {source}", subject=f"image {source!r}"
        )

    async def list_image_names(self) -> list[str]:
        """The tags of GET /images/json."""
        rows = await self._call(lambda: self._client().images(), "listing images")
        return [tag for row in rows for tag in row.get("RepoTags") or () if tag != "<none>:<none>"]

    @asynccontextmanager
    async def pull_image(
        self, reference: str, *, platform: str | None
    ) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
        """POST /images/create."""
        name, _, tag = reference.partition("@") if "@" in reference else reference.rpartition(":")
        params = {"fromImage": name, "tag": tag} | ({"platform": platform} if platform else {})

        def ask() -> Any:
            client = self._client()
            headers: dict[str, str] = {}
            _registry_credentials(client, reference, headers)
            response = client._post(client._url("/images/create"), params=params, headers=headers, stream=True)
            client._raise_for_status(response)
            _no_timeout(response)
            return response

        response = await self._call(ask, f"pulling {reference}", subject=f"image {reference!r}")
        what = f"pulling {reference}"
        async with self._stream(
            lambda: pushing.pull_progress(_json_lines(response), engine=self.name, what=what), response, what
        ) as items:
            yield items

    @asynccontextmanager
    async def push_image(
        self, image: str, target: str, *, credential: Credential | None = None, insecure: bool = False
    ) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
        """POST /images/NAME/push; the name is given to the image for as long as that takes, where it has not got it."""
        wanted, id = pushing.wanted(target), (await self.inspect_image(image)).id
        before = await self._id_of(target)
        if before not in (None, id):
            raise pushing.taken(self.name, target)
        try:
            if before is None:
                await self.tag_image(id, target)
            async with self._pushing(wanted.name, wanted, credential, {"tag": wanted.tag or ""}, id) as steps:
                yield steps
        finally:
            if before is None:
                with anyio.CancelScope(shield=True), suppress(errors.ContainerizationError):
                    await self.remove_image(target, force=False)

    @asynccontextmanager
    async def _pushing(
        self, name: str, wanted: ImageReference, credential: Credential | None, params: Mapping[str, str], id: str
    ) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
        what, headers = f"pushing {wanted}", pushing.header(wanted, credential)

        def ask() -> Any:
            client = self._client()
            url = client._url("/images/{0}/push", name)
            response = client._post(url, params=params, headers=headers, stream=True)
            client._raise_for_status(response)
            _no_timeout(response)
            return response

        response = await self._call(ask, what, subject=f"image {str(wanted)!r}")
        async with self._stream(
            lambda: pushing.progress(_json_lines(response), engine=self.name, what=what, id=id), response, what
        ) as items:
            yield items

    async def remove_image(self, image: str, *, force: bool) -> tuple[str, ...]:
        """DELETE /images/NAME."""

        def remove() -> Any:
            client = self._client()
            url = client._url("/images/{0}", image)
            return client._result(client._delete(url, params={"force": force}, timeout=_REMOVE_SECONDS), True)

        gone = await self._call(
            remove, f"removing image {image}", subject=f"image {image!r}", deadline_seconds=_REMOVE_SECONDS
        )
        return shapes.removed_image(gone or ())

    async def load_image(self, source: Path, *, passed: base.Passed = lambda count: None) -> tuple[str, ...]:
        """POST /images/load."""
        what = f"loading {source.name}"
        lines = await self._sent(
            source, lambda: self._client()._url("/images/load"), {}, what, passed, folder=_NO_FOLDER
        )
        return tuple(archives.loaded(lines))

    async def save_image(
        self, image: str, target: Path, *, format: base.ArchiveFormat, passed: base.Passed = lambda count: None
    ) -> int:
        """GET /images/get."""
        if format != "docker-archive":
            raise errors.Unsupported(
                f"{self.name} saves images as docker-archive only, not as {format}.",
                hint="leave format out, or use engine='embedded'",
            )
        await self.inspect_image(image)
        return await self._received("/images/get", (), {"names": image}, target, f"saving {image}", passed)

    async def import_image(
        self, source: Path, *, tag: str, labels: Mapping[str, str], passed: base.Passed = lambda count: None
    ) -> str:
        """POST the root file system."""
        params = self._import_parameters(tag, labels)
        before = await self._id_of(tag)
        try:
            await self._sent(source, self._import_url, params, f"importing {source.name}", passed)
        except errors.InvalidArgument:
            await self._taken_back(tag, before)
            raise
        return (await self.inspect_image(tag)).id

    async def _taken_back(self, tag: str, before: str | None) -> None:
        """Undo what an engine did before it found out that it could not: newer ones name an image that they cannot unpack."""
        with suppress(errors.ContainerizationError):
            now = await self._id_of(tag)
            if now is not None and now != before:
                await self.remove_image(tag, force=True)
                if before is not None:
                    await self.tag_image(before, tag)

    async def _id_of(self, image: str) -> str | None:
        try:
            return (await self.inspect_image(image)).id
        except errors.NotFound:
            return None

    def _import_url(self) -> str:
        return str(self._client()._url("/images/create"))

    def _import_parameters(self, tag: str, labels: Mapping[str, str]) -> dict[str, Any]:
        repository, _, version = tag.rpartition(":")
        return {"fromSrc": "-", "repo": repository, "tag": version, "changes": archives.changes(labels)}

    async def export_container(
        self,
        container: str,
        target: Path,
        *,
        format: ExportFormat = "rootfs",
        passed: base.Passed = lambda count: None,
    ) -> int:
        """GET /containers/NAME/export."""
        if format != "rootfs":
            raise self._no_state("export a container with its state")
        path, what = "/containers/{0}/export", f"exporting {container}"
        return await self._received(path, (container,), {}, target, what, passed, subject=f"container {container!r}")

    async def _sent(
        self,
        source: Path,
        url: Callable[[], str],
        params: dict[str, Any],
        what: str,
        passed: base.Passed,
        *,
        folder: str = "",
    ) -> list[dict[str, Any]]:
        """Send a file, or a folder as a tar unless `folder` says why not; return what the engine says to it, which is no error."""
        stopped = False

        def ask() -> list[dict[str, Any]]:
            with host_files.source(source) as held:
                if folder and host_files.is_folder(held):
                    raise errors.Unsupported(f"{self.name} {folder}.", hint="name a file, or use engine='embedded'")
                data = archives.sent(held, source, passed=passed, is_stopped=lambda: stopped)
                headers = {"Content-Type": "application/x-tar"}
                timeout = (self._timeout_seconds, None)
                response = self._client().post(
                    url(), params=params, data=data, headers=headers, stream=True, timeout=timeout
                )
                if response.status_code >= 400:
                    raise archives.refusal(archives.explanation(response), engine=self.name, what=what)
                lines = list(_json_lines(response))
            for line in lines:
                if "error" in line:
                    raise archives.refusal(str(line["error"]), engine=self.name, what=what)
            return lines

        try:
            return await self._call(ask, what, deadline_seconds=None)
        finally:
            stopped = True

    async def _received(
        self,
        path: str,
        names: tuple[str, ...],
        params: dict[str, str],
        target: Path,
        what: str,
        passed: base.Passed,
        *,
        subject: str = "",
    ) -> int:
        """Write what the engine answers to a file; return how many bytes that has."""
        held: list[Any] = []

        def ask() -> int:
            client = self._client()
            headers = {"Accept-Encoding": "identity"}
            response = client._get(client._url(path, *names), params=params, stream=True, headers=headers)
            held.append(response)
            client._raise_for_status(response)
            _no_timeout(response)
            return host_files.write(target, response.iter_content(_COPY_CHUNK_BYTES), passed=passed)

        try:
            return await self._call(ask, what, subject=subject, deadline_seconds=None)
        finally:
            for response in held:
                streams.release(response)

    def builder(self, spec: BuildSpec) -> BuilderName:
        """BuildKit through buildx where it is installed, else the engine's classic builder."""
        if buildkit.find_buildx(self._buildx) is not None:
            return "buildkit"
        if spec.secrets or spec.platforms or spec.entitlements:
            raise errors.Unsupported(
                "Build secrets, platforms and entitlements need BuildKit, and docker buildx is not installed.",
                hint="install buildx (for example: apt-get install docker-buildx-plugin, or docker-buildx)",
            )
        return "classic"

    def build_image(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AbstractAsyncContextManager[AsyncIterator[BuildEvent]]:
        """Build with the builder that `builder` names."""
        buildx = buildkit.find_buildx(self._buildx)
        if self.builder(spec) == "buildkit" and buildx is not None:
            return buildkit.build(spec, buildx=buildx, endpoint=self.endpoint, engine=self.name, scratch=self._scratch)
        return self._build_classic(spec, context, dockerfile_name)

    @asynccontextmanager
    async def _build_classic(
        self, spec: BuildSpec, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> AsyncIterator[AsyncIterator[BuildEvent]]:
        params, sent = classic.parameters(spec, dockerfile_name), classic.Upload(context)

        def events() -> Iterator[BuildEvent]:
            client = self._client()
            headers = {"Content-Type": "application/tar"}
            client._set_auth_headers(headers)
            response = client.post(
                client._url("/build"),
                data=iter(sent),
                params=params,
                headers=headers,
                stream=True,
                timeout=(self._timeout_seconds, None),
            )
            sent.response = response
            client._raise_for_status(response)
            yield from self._build_events(_json_lines(response))

        try:
            async with threads.iterate(events, stop=sent.stop) as items:
                yield self._translated(items, "building the image")
        except errors.ContainerizationError:
            raise
        except Exception as error:  # whatever the library raised becomes one of our errors here
            raise sent.failure or docker_errors.translate(error, engine=self.name, what="building the image") from error

    async def update_container(self, container: str, limits: Limits) -> None:
        """POST /containers/NAME/update."""

        def ask() -> None:
            client = self._client()
            url = client._url("/containers/{0}/update", container)
            answer = client._post_json(url, data=objects.update_body(limits))
            if answer.status_code in (400, 409, 500) and "memoryswap" in answer.text.lower():
                answer = client._post_json(url, data=objects.update_body(limits, with_swap=True))
            client._raise_for_status(answer)

        await self._call(ask, f"changing the limits of {container}", subject=f"container {container!r}")

    async def rename_container(self, container: str, name: str) -> None:
        """POST /containers/NAME/rename."""

        def ask() -> None:
            client = self._client()
            if client.inspect_container(container)["Name"].lstrip("/") == name:
                raise errors.Conflict(f"The container is called {name!r} already.", hint="there is nothing to do")
            client.rename(container, name)

        await self._call(ask, f"renaming {container}", subject=f"container {container!r}")

    async def top(self, container: str) -> list[ProcessRow]:
        """GET /containers/NAME/top."""
        return await self._call(
            lambda: inside.top(self._client(), container),
            f"listing the processes of {container}",
            subject=f"container {container!r}",
        )

    async def changes(self, container: str) -> list[FileChange]:
        """GET /containers/NAME/changes."""
        return await self._call(
            lambda: inside.changes(self._client().diff(container)),
            f"looking for changes in {container}",
            subject=f"container {container!r}",
        )

    async def commit_container(self, container: str, *, tag: str, labels: Mapping[str, str], message: str = "") -> str:
        """POST /commit, and a name for what that makes."""
        made = await self._call(
            lambda: inside.commit(self._client(), container, labels=labels, message=message),
            f"making an image of {container}",
            subject=f"container {container!r}",
            deadline_seconds=None,
        )
        try:
            await self.tag_image(made, tag)
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(errors.ContainerizationError):
                await self.remove_image(made, force=True)
            raise
        return (await self.inspect_image(made)).id

    async def list_volumes(self) -> list[VolumeRow]:
        """GET /volumes, and GET /containers/json for the users."""

        def ask() -> list[VolumeRow]:
            client = self._client()
            return objects.volume_rows(client.volumes(), client.containers(all=True), engine=self.name)

        return await self._call(ask, "listing volumes")

    async def create_volume(self, spec: VolumeSpec) -> VolumeRow:
        """POST /volumes/create, which takes a volume that is there for the one that is wanted: looked for before and after."""
        taken = errors.Conflict(
            f"{self.name} has a volume named {spec.name!r}.",
            hint="choose another name; volume_list shows what there is",
        )

        def ask() -> VolumeRow:
            client = self._client()
            if client.get(client._url("/volumes/{0}", spec.name), timeout=self._timeout_seconds).status_code == 200:
                raise taken
            made = client._result(
                client._post_json(client._url("/volumes/create"), data=objects.volume_body(spec)), True
            )
            row = objects.volume_row(made, engine=self.name)
            if dict(row.labels) != dict(spec.labels) or row.driver != spec.driver:
                raise taken
            return row

        return await self._call(ask, f"creating the volume {spec.name}")

    async def remove_volume(self, volume: str, *, force: bool) -> None:
        """DELETE /volumes/NAME."""
        await self._call(
            lambda: self._client().remove_volume(volume, force=force),
            f"removing the volume {volume}",
            subject=f"volume {volume!r}",
        )

    async def volume_sizes(self) -> dict[str, int]:
        """GET /system/df."""
        return await self._call(
            lambda: objects.volume_sizes(self._disk_usage("volume")),
            "measuring volumes",
            deadline_seconds=_DISK_USAGE_SECONDS,
        )

    async def list_networks(self) -> list[NetworkRow]:
        """GET /networks, and GET /containers/json for the users."""

        def ask() -> list[NetworkRow]:
            client = self._client()
            return objects.network_rows(client.networks(), client.containers(all=True), engine=self.name)

        return await self._call(ask, "listing networks")

    async def create_network(self, spec: NetworkSpec) -> NetworkRow:
        """POST /networks/create, and a look at what was made."""
        body = objects.network_body(spec)

        def ask() -> NetworkRow:
            client = self._client()
            made = client._result(client._post_json(client._url("/networks/create"), data=body), True)
            return objects.network_row(client.inspect_network(made["Id"]), engine=self.name)

        return await self._call(ask, f"creating the network {spec.name}")

    async def remove_network(self, network: str) -> None:
        """DELETE /networks/NAME."""
        await self._call(
            lambda: self._client().remove_network(network),
            f"removing the network {network}",
            subject=f"network {network!r}",
        )

    async def connect_network(self, network: str, container: str, *, aliases: Sequence[str] = ()) -> None:
        """POST /networks/NAME/connect."""
        body = objects.connect_body(container, aliases)
        await self._network_post(network, "connect", body, f"connecting {container} to {network}", container)

    async def disconnect_network(self, network: str, container: str, *, force: bool) -> None:
        """POST /networks/NAME/disconnect."""
        body = {"Container": container, "Force": force}
        await self._network_post(network, "disconnect", body, f"disconnecting {container} from {network}", container)

    async def _network_post(self, network: str, action: str, body: dict[str, Any], what: str, container: str) -> None:
        def ask() -> None:
            client = self._client()
            url = client._url("/networks/{0}/" + action, network)
            client._raise_for_status(client._post_json(url, data=body))

        await self._call(ask, what, subject=f"container {container!r}")

    async def build_cache(self) -> BuildCache:
        """GET /system/df."""
        return await self._call(
            lambda: objects.build_cache(self._disk_usage("build-cache")),
            "measuring the build cache",
            deadline_seconds=_DISK_USAGE_SECONDS,
        )

    async def prune_build_cache(self, *, older_than_seconds: float) -> int:
        """POST /build/prune."""
        params = objects.build_prune_params(older_than_seconds)

        def ask() -> int:
            client = self._client()
            answer = client.post(client._url("/build/prune"), params=params, timeout=_REMOVE_SECONDS)
            return int(client._result(answer, True).get("SpaceReclaimed") or 0)

        return await self._call(ask, "pruning the build cache", deadline_seconds=_REMOVE_SECONDS)

    def _disk_usage(self, part: str) -> Any:
        client = self._client()
        # An engine older than API 1.42 measures everything, whatever was asked for.
        url = client._url("/system/df")
        answer = client.get(url, params={"type": part}, timeout=_DISK_USAGE_SECONDS)
        return client._result(answer, True)

    @asynccontextmanager
    async def events(self, query: EventQuery) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """GET /events."""
        # Events may lie in the engine's memory out of order, and it stops at the first one that is too old.
        wider = replace(query, since=query.since - _EVENT_MARGIN) if query.since is not None else query
        params = objects.event_params(wider, now=datetime.now(UTC))

        def ask() -> Any:
            client = self._client()
            response = client._get(client._url("/events"), params=params, stream=True)
            client._raise_for_status(response)
            return response

        def read(response: Any) -> Iterator[EngineEvent]:
            found = (objects.event(line, engine=self.name) for line in _json_lines(response))
            return (one for one in found if query.since is None or one.time >= query.since)

        response = await self._call(ask, "reading events")
        async with self._stream(lambda: read(response), response, "reading events") as items:
            yield items

    async def aclose(self) -> None:
        """Close the connection pool."""
        held, self._cached = self._cached, None
        if held is not None:
            held.client.close()

    def _builder_name(self) -> str:
        return "buildkit" if buildkit.find_buildx(self._buildx) is not None else "classic"

    def _client(self, timeout_seconds: float | None = None) -> APIClient:
        """Return the client (made at first use, in a thread). Two threads may make one each; the later one is kept."""
        return self._connection(timeout_seconds).client

    def _connection(self, timeout_seconds: float | None = None) -> connecting.Connection:
        if self._cached is not None and timeout_seconds is None:
            return self._cached
        made = connecting.connect(
            self.endpoint, timeout_seconds=timeout_seconds or self._timeout_seconds, known=self._cached
        )
        if timeout_seconds is None:
            self._cached = made
        return made

    async def _call(
        self, function: Callable[[], T], what: str, *, subject: str = "", deadline_seconds: float | None = -1.0
    ) -> T:
        limit = self._timeout_seconds if deadline_seconds == -1.0 else deadline_seconds
        try:
            return await threads.run(function, deadline_seconds=limit, what=f"{self.name}: {what}")
        except errors.ContainerizationError:
            raise
        except Exception as error:  # whatever the library raised becomes one of our errors here
            raise docker_errors.translate(error, engine=self.name, what=what, subject=subject) from error

    @asynccontextmanager
    async def _stream(
        self, source: Callable[[], Iterator[T]], response: Any, what: str
    ) -> AsyncIterator[AsyncIterator[T]]:
        try:
            async with threads.iterate(source, stop=lambda: streams.release(response)) as items:
                yield self._translated(items, what)
        except errors.ContainerizationError:
            raise
        except Exception as error:  # whatever the library raised becomes one of our errors here
            raise docker_errors.translate(error, engine=self.name, what=what) from error

    async def _translated(self, items: AsyncIterator[T], what: str) -> AsyncIterator[T]:
        try:
            async for item in items:
                yield item
        except errors.ContainerizationError:
            raise
        except Exception as error:  # whatever the library raised becomes one of our errors here
            raise docker_errors.translate(error, engine=self.name, what=what) from error


class _DockerAttachment(base.Attachment):
    def __init__(self, items: AsyncIterator[OutputFrame], engine: str) -> None:
        self._items = items
        self._engine = engine

    async def frames(self) -> AsyncIterator[OutputFrame]:
        try:
            async for item in self._items:
                yield item
        except errors.ContainerizationError:
            raise
        except Exception as error:  # whatever the library raised becomes one of our errors here
            raise docker_errors.translate(error, engine=self._engine, what="reading the container's output") from error


def _has_started(state: ExecState) -> bool:
    # A command counts as running before it has a process.
    return state.pid > 0 or state.exit_code is not None


def _epoch(moment: datetime | None) -> str | None:
    return f"{moment.timestamp():.6f}" if moment is not None else None


def _no_timeout(response: Any) -> None:
    sock = streams.raw_socket(response)
    if sock is not None:
        sock.settimeout(None)


def _json_lines(response: Any) -> Iterator[dict[str, Any]]:
    _no_timeout(response)
    rest = b""
    for chunk in response.iter_content(None):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)


def _registry_credentials(client: APIClient, reference: str, headers: dict[str, str]) -> None:
    from docker import auth

    registry, _ = auth.resolve_repository_name(reference)
    header = auth.get_config_header(client, registry)
    if header:
        headers["X-Registry-Auth"] = header.decode() if isinstance(header, bytes) else header
