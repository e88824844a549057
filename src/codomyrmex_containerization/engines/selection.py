"""Which engines are there, where were they found, and which one does a call mean?"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base, guard
from codomyrmex_containerization.models.engine import Endpoint, EngineProbe

ENGINES = ("docker",)
PROBE_SECONDS = 2.0
WELL_KNOWN_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
_INSTALL = (
    "install and start Docker (Debian, Ubuntu: apt-get install docker.io), or set DOCKER_HOST to the engine's socket"
)

MakeGuarded = Callable[[base.Engine], guard.GuardedEngine]


def find_docker(environ: Mapping[str, str]) -> Endpoint | None:
    """Find Docker's endpoint as its own client does: DOCKER_HOST, the current context, the usual sockets; None when there is none.

    Raises Refused for an address that is neither a socket nor loopback, Unsupported for another scheme.
    """
    if environ.get("DOCKER_HOST"):
        return _checked(Endpoint("docker", environ["DOCKER_HOST"], "DOCKER_HOST"))
    context = _docker_context(environ)
    if context is not None:
        return _checked(context)
    for path, source in _docker_sockets(environ):
        if os.path.exists(path):
            return Endpoint("docker", f"unix://{path}", source)
    return None


class Engines:
    """The engines of one process, opened when first asked for."""

    def __init__(
        self,
        *,
        default: str | None,
        timeout_seconds: float,
        buildx: str | None,
        guarded: MakeGuarded,
        scratch: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._default = default
        self._timeout_seconds = timeout_seconds
        self._buildx = buildx
        self._guarded = guarded
        self._scratch = scratch
        self._environ = os.environ if environ is None else environ
        self._open: dict[tuple[str, str], guard.GuardedEngine] = {}

    @property
    def default(self) -> str:
        """The engine of a call that names none."""
        return self._default or ENGINES[0]

    def get(self, name: str | None = None) -> guard.GuardedEngine:
        """Return an engine by name. Raises InvalidArgument (no such engine) and EngineUnavailable (nothing found)."""
        wanted = name or self.default
        _require_known(wanted)
        endpoint = find_docker(self._environ)
        if endpoint is None:
            raise errors.EngineUnavailable("Docker was not found: no socket at the usual places.", hint=_INSTALL)
        key = (wanted, endpoint.url)
        if key not in self._open:
            self._open[key] = self._guarded(_open_docker(endpoint, self._timeout_seconds, self._buildx, self._scratch))
        return self._open[key]

    async def probe(self, only: str | None = None) -> list[EngineProbe]:
        """Ask all engines (or one) side by side, each for at most two seconds."""
        names = [only] if only else list(ENGINES)
        for name in names:
            _require_known(name)
        found: dict[str, EngineProbe] = {}

        async def one(name: str) -> None:
            found[name] = await self._probe(name)

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(one, name)
        return [found[name] for name in names]

    async def _probe(self, name: str) -> EngineProbe:
        endpoint = None
        try:
            engine = self.get(name)
            endpoint = engine.endpoint
            info = await engine.info(deadline_seconds=PROBE_SECONDS)
        except errors.InvalidArgument:
            raise
        except errors.ContainerizationError as error:
            return EngineProbe(name, endpoint, None, reason=error.message, remedy=error.hint)
        return EngineProbe(name, endpoint, info)

    async def aclose(self) -> None:
        """Close all; may be called twice."""
        while self._open:
            _, engine = self._open.popitem()
            await engine.aclose()


def _require_known(name: str) -> None:
    if name not in ENGINES:
        raise errors.InvalidArgument(f"There is no engine {name[:80]!r}.", hint=f"use one of: {', '.join(ENGINES)}")


def _open_docker(endpoint: Endpoint, timeout_seconds: float, buildx: str | None, scratch: Path | None) -> base.Engine:
    # Imported when first needed: starting the server must not load docker-py.
    from codomyrmex_containerization.engines.docker.engine import DockerEngine

    return DockerEngine(endpoint, timeout_seconds=timeout_seconds, buildx=buildx, scratch=scratch)


def _checked(endpoint: Endpoint) -> Endpoint:
    parts = urlsplit(endpoint.url)
    match parts.scheme:
        case "unix":
            return endpoint
        case "tcp" | "http":
            if _is_loopback(parts.hostname or ""):
                return endpoint
            raise errors.Refused(
                f"{endpoint.source} names {parts.hostname}, which is not this host, without TLS.",
                hint="use the engine's unix socket",
            )
        case _:
            raise errors.Unsupported(
                f"{endpoint.source} has the scheme {parts.scheme!r}.",
                hint="unix:// sockets and tcp:// on loopback are supported",
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _docker_sockets(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    sockets = [("/var/run/docker.sock", "well-known socket")]
    if environ.get("XDG_RUNTIME_DIR"):
        sockets.append((f"{environ['XDG_RUNTIME_DIR']}/docker.sock", "rootless socket"))
    if environ.get("HOME"):
        sockets.append((f"{environ['HOME']}/.docker/run/docker.sock", "Docker Desktop"))
    return sockets


def _docker_context(environ: Mapping[str, str]) -> Endpoint | None:
    """Return the endpoint of DOCKER_CONTEXT or of the Docker CLI's current context; None for `default`."""
    folder = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or "/") / ".docker")
    name: object
    name, source = environ.get("DOCKER_CONTEXT"), "DOCKER_CONTEXT"
    if not name:
        name, source = _read(folder / "config.json").get("currentContext"), "Docker's current context"
    if not isinstance(name, str) or name in ("", "default"):
        return None
    meta = _read(folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json")
    endpoint = meta.get("Endpoints")
    host = endpoint.get("docker", {}).get("Host") if isinstance(endpoint, dict) else None
    if not isinstance(host, str):
        raise errors.EngineUnavailable(
            f"The Docker context {name!r} ({source}) has no endpoint.",
            hint="docker context ls shows the contexts there are",
        )
    return Endpoint("docker", host, f"{source} {name!r}")


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
