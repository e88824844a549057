"""How does the name of an engine become an engine: where is it, must something be started first, and which class speaks to it?"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base, cgroups, endpoints
from codomyrmex_containerization.models.engine import Endpoint
from codomyrmex_containerization.models.settings import EndpointSettings, RegistrySettings

if TYPE_CHECKING:
    from codomyrmex_containerization.engines import tunnels
    from codomyrmex_containerization.engines.podman import service

MEMORY = "memory"
EMBEDDED = "embedded"
BUILT_IN = ("docker", "podman", EMBEDDED, MEMORY)
_CONNECT_SECONDS = 1.0
_LOOK_SECONDS = 10.0
_SERVICE_SECONDS = 30.0
_INSTALL: Mapping[str | None, str] = {
    None: "install Podman or Docker (Debian, Ubuntu: apt-get install podman), or, as root, what the embedded engine needs "
    "(apt-get install crun conmon slirp4netns), or set DOCKER_HOST to an engine's socket",
    "docker": "install and start Docker (Debian, Ubuntu: apt-get install docker.io), or set DOCKER_HOST to the engine's socket",
    "podman": "install Podman (Debian, Ubuntu: apt-get install podman), or set CONTAINER_HOST to its socket",
}


def not_found(name: str | None, names: Sequence[str]) -> errors.EngineUnavailable:
    """Return the error for an engine that is nowhere; `name` None: for all of them."""
    only = name if name is not None or len(names) > 1 else names[0]
    what = {"docker": "Docker was", "podman": "Podman was"}.get(only or "", "No engine was")
    hint = _INSTALL.get(only, _INSTALL[None])
    return errors.EngineUnavailable(f"{what} not found: no socket at the usual places.", hint=hint)


@dataclass(frozen=True, slots=True)
class Options:
    """What engines are opened with.

    `folder` is for the sockets of services and tunnels: private, with a short path; `data` is where the embedded engine keeps all it has.
    """

    timeout_seconds: float
    buildx: str | None
    scratch: Path | None
    folder: Path
    data: Path
    podman_service: bool = True
    named: Mapping[str, EndpointSettings] = field(default_factory=dict)
    registries: RegistrySettings = field(default_factory=RegistrySettings)
    learn: Callable[[str], None] = lambda secret: None  # hears credentials of registries, which nobody may see


@dataclass(frozen=True, slots=True)
class _Seen:
    candidates: Sequence[Endpoint]
    answering: Endpoint | None


class Opener:
    """Finds and opens engines by name; keeps what had to be started for them."""

    def __init__(self, options: Options, environ: Mapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self._tunnels: dict[tuple[str, str | None], tunnels.Tunnel] = {}
        self._service: service.ServiceEndpoint | None = None
        self._sampler = cgroups.Sampler()
        self._unattended: list[base.Engine] = []
        self._more = anyio.Event()

    def knows(self, name: str) -> bool:
        """Whether a name means an engine, be it there or not."""
        return name in BUILT_IN or name in self._options.named

    async def would_start(self, name: str) -> bool:
        """Say whether opening the engine would start its service."""
        return self._can_start(name) and self._service is None and (await self._look(name)).answering is None

    async def locate(self, name: str, *, was_named: bool = True) -> Endpoint | None:
        """Return where the engine is, what it takes started; None when there is no trace of one.

        Unless the call named it, an engine of somebody else's, at a well-known place that this user may not open, does not
        count. Raises what is wrong with an address that a user named, and EngineUnavailable when its service does not start.
        """
        if name == MEMORY:
            return Endpoint(MEMORY, "memory://", "built in", kind="memory")
        if name == EMBEDDED:
            # It is everywhere; listings ask it where it has ever held something.
            return self._embedded() if was_named or (self._options.data / EMBEDDED).is_dir() else None
        if name in self._options.named:
            return await self._reached(endpoints.named(name, self._options.named[name]))
        if name == "podman" and self._service is not None:
            return self._service.endpoint
        seen = await self._look(name)
        if seen.answering is not None:
            return await self._reached(seen.answering)
        if self._can_start(name):
            return await self._started()
        # Whatever is wrong with the first one that does not answer is worth more than "not found".
        return next((one for one in seen.candidates if was_named or not endpoints.is_closed(one)), None)

    async def address(self, name: str) -> Endpoint | None:
        """Return where the engine would be, without opening the way there. Raises what is wrong with the address."""
        if name in self._options.named:
            return endpoints.named(name, self._options.named[name])
        return next(iter((await self._look(name)).candidates), None)

    async def answers(self, name: str) -> bool:
        """Say whether the engine would take a call: somebody listens, its service can be started, or a user named it."""
        if name == MEMORY or name in self._options.named:
            return True
        if name == EMBEDDED:
            return _has_runtime()
        return (await self._look(name)).answering is not None or self._can_start(name)

    async def open(self, endpoint: Endpoint) -> base.Engine:
        """Open the engine at an endpoint, as what really answers there. Raises what a first request raises."""
        # Imported when first needed: starting the server must not load an engine's library.
        if endpoint.kind == "memory":
            from codomyrmex_containerization.engines.memory.engine import MemoryEngine

            return MemoryEngine(endpoint).stocked()
        if endpoint.kind == "embedded":
            return self._open_embedded(endpoint)
        is_ours = self._service is not None and endpoint.url == self._service.endpoint.url
        if not is_ours:
            from codomyrmex_containerization.engines.docker.engine import DockerEngine

            options = self._options
            engine = DockerEngine(
                endpoint,
                timeout_seconds=options.timeout_seconds,
                buildx=options.buildx,
                scratch=options.scratch,
                sampler=self._sampler,
            )
            if await engine.product() != "podman":
                return engine
            await engine.aclose()
        return self._open_podman(endpoint, is_ours=is_ours)

    def _embedded(self) -> Endpoint:
        return Endpoint(EMBEDDED, f"file://{self._options.data / EMBEDDED}", "built in", kind="embedded")

    def _open_embedded(self, endpoint: Endpoint) -> base.Engine:
        from codomyrmex_containerization.clients import distribution
        from codomyrmex_containerization.engines.embedded import folders
        from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
        from codomyrmex_containerization.engines.embedded.rootless import RootlessEngine

        timeout_seconds = self._options.timeout_seconds
        found = folders.of(self._options.data / EMBEDDED, self._environ)
        registries = distribution.Client(self._options.registries, environ=self._environ, learn=self._options.learn)
        embedded: base.Engine
        if os.geteuid() == 0:
            embedded = EmbeddedEngine(
                endpoint, found, timeout_seconds=timeout_seconds, sampler=self._sampler, registries=registries
            )
        else:
            embedded = RootlessEngine(
                endpoint, found, timeout_seconds=timeout_seconds, registries=self._options.registries
            )
        self._unattended.append(embedded)
        self._more.set()
        return embedded

    def _open_podman(self, endpoint: Endpoint, *, is_ours: bool) -> base.Engine:
        from codomyrmex_containerization.engines.podman.engine import PodmanEngine

        options = self._options
        podman = PodmanEngine(
            replace(endpoint, kind="podman"),
            timeout_seconds=options.timeout_seconds,
            scratch=options.scratch,
            revive=self._revive if is_ours else None,
            notes=self._service.notes if is_ours and self._service is not None else (),
            sampler=self._sampler,
        )
        self._unattended.append(podman)
        self._more.set()
        return podman

    async def look_ahead(self) -> None:
        """Have a first look at what containers on this host use, for a question that comes soon."""
        await threads.run(self._sampler.look_ahead, deadline_seconds=_LOOK_SECONDS, what="reading usage")

    async def attend(self) -> None:
        """Do what engines leave to their clients, until cancelled: only a process that lives long can."""
        async with anyio.create_task_group() as tasks:
            while True:
                while self._unattended:
                    tasks.start_soon(_attend, self._unattended.pop())
                self._more = anyio.Event()
                await self._more.wait()

    async def aclose(self) -> None:
        """End what was started for this process alone; may be called twice."""
        while self._tunnels:
            _, tunnel = self._tunnels.popitem()
            await tunnel.aclose()

    async def _look(self, name: str) -> _Seen:
        def look() -> _Seen:
            found = endpoints.candidates("podman" if name == "podman" else "docker", self._environ)
            # One that a user named is taken unseen: it is not replaced by another when it does not answer.
            return _Seen(found, next((one for one in found if not one.searched or _listens(one)), None))

        return await threads.run(look, deadline_seconds=_LOOK_SECONDS, what="looking for engines")

    def _can_start(self, name: str) -> bool:
        if name != "podman" or not self._options.podman_service:
            return False
        from codomyrmex_containerization.engines.podman import service

        return service.is_possible()

    async def _started(self) -> Endpoint:
        from codomyrmex_containerization.engines.podman import service

        self._service = await threads.run(
            lambda: service.ensure(self._options.folder / "podman", self._environ),
            deadline_seconds=_SERVICE_SECONDS,
            what="starting Podman's service",
        )
        return self._service.endpoint

    async def _revive(self) -> None:
        await self._started()

    async def _reached(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with the tunnel open that it takes. Raises what keeps it from opening."""
        if endpoint.scheme != "ssh":
            return endpoint
        key = (endpoint.url, endpoint.identity)
        tunnel = self._tunnels.get(key)
        if tunnel is None:
            from codomyrmex_containerization.engines import tunnels

            folder = await threads.run(self._tunnel_folder, deadline_seconds=_LOOK_SECONDS, what="making a folder")
            tunnel = self._tunnels[key] = tunnels.Tunnel(endpoint, folder=folder, environ=self._environ)
        return replace(endpoint, via=f"unix://{await tunnel.open()}")

    def _tunnel_folder(self) -> Path:
        folder = self._options.folder / "ssh"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


def _has_runtime() -> bool:
    from codomyrmex_containerization.engines.embedded import tiers

    return tiers.may_work()


async def _attend(engine: base.Engine) -> None:
    from codomyrmex_containerization.engines.podman import health
    from codomyrmex_containerization.engines.podman.engine import PodmanEngine

    if isinstance(engine, PodmanEngine):
        await health.run_health_checks(engine)
    elif engine.endpoint.kind == "embedded":
        from codomyrmex_containerization.engines.embedded import health as own_health
        from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
        from codomyrmex_containerization.engines.embedded.rootless import RootlessEngine

        if isinstance(engine, EmbeddedEngine):
            await own_health.run_health_checks(engine)
        elif isinstance(engine, RootlessEngine):
            await engine.attend()


def _listens(endpoint: Endpoint) -> bool:
    path = endpoint.socket_path
    if path is None:
        return True
    try:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(_CONNECT_SECONDS)
            connection.connect(path)
    except TimeoutError:
        return True  # too busy to take it, but there
    except (OSError, ValueError):
        return False
    return True
