"""How is each engine opened for the contract suite, and where does its base image come from?"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.engine import Endpoint
from tests import backends

TIMEOUT_SECONDS = 60.0
PARAMETERS = (
    "docker",
    "modern-docker",
    "podman",
    "podman-rootless",
    "embedded",
    "embedded-bare",
    "embedded-rootless",
    "memory",
)


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine and what belongs to it: the image of its containers and a folder of this host for it.

    `dial` reaches its published ports; `attend` is what the server does for it beside its calls; `sweep` empties its `folder`.
    """

    engine: base.Engine
    image: str
    folder: Path
    dial: Callable[[int], Awaitable[bytes]]
    attend: Callable[[], Coroutine[Any, Any, None]] | None = None
    sweep: Callable[[], None] = lambda: None


@contextmanager
def opened(name: str, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Open an engine by its name in the table; what is missing here skips the tests loudly."""
    with tempfile.TemporaryDirectory(prefix="cxc-contract-") as folder:
        Path(folder).chmod(0o755)  # a rootless engine is another user
        found = _OPEN[name](request, Path(folder))
        try:
            yield found
        finally:
            found.sweep()


async def dial(port: int) -> bytes:
    """Return what is said at a port of this host's loopback, nothing when nobody listens."""
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as connection:
            return await connection.receive()
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return b""


def _docker(request: pytest.FixtureRequest, folder: Path) -> Opened:
    socket, image = request.getfixturevalue("docker_socket"), request.getfixturevalue("busybox_image")
    return Opened(_docker_engine(socket, buildx="off"), image, folder, dial)


def _modern_docker(request: pytest.FixtureRequest, folder: Path) -> Opened:
    found = _fixture(request, "session_modern_docker", "tests.modern_docker")
    buildx = backends.find_buildx()
    engine = _docker_engine(found.socket_path, buildx=str(buildx) if buildx else "off")

    async def dial_inside(port: int) -> bytes:
        # It has a network of its own, and its ports are there.
        command = found.inside(["busybox", "nc", "-w", "10", "127.0.0.1", str(port)])
        return (await anyio.run_process(command, check=False)).stdout

    return Opened(engine, found.image, folder, dial_inside)


def _docker_engine(socket: Path, *, buildx: str) -> base.Engine:
    from codomyrmex_containerization.engines.docker.engine import DockerEngine

    endpoint = Endpoint("docker", f"unix://{socket}", "the contract suite")
    return DockerEngine(endpoint, timeout_seconds=TIMEOUT_SECONDS, buildx=buildx)


def _podman(request: pytest.FixtureRequest, folder: Path) -> Opened:
    return _podman_engine(_fixture(request, "session_podman", "tests.podman"), folder)


def _rootless_podman(request: pytest.FixtureRequest, folder: Path) -> Opened:
    return _podman_engine(_fixture(request, "session_rootless_podman", "tests.podman"), folder)


def _podman_engine(service: Any, folder: Path) -> Opened:
    from codomyrmex_containerization.engines.podman import health
    from codomyrmex_containerization.engines.podman.engine import PodmanEngine

    service.ensure_started()
    endpoint = Endpoint("podman", service.url, "the contract suite", kind="podman")
    engine = PodmanEngine(endpoint, timeout_seconds=TIMEOUT_SECONDS)
    return Opened(engine, service.image, folder, dial, attend=lambda: health.run_health_checks(engine))


def _embedded(request: pytest.FixtureRequest, folder: Path) -> Opened:
    return _embedded_engine(folder, None)


def _bare_embedded(request: pytest.FixtureRequest, folder: Path) -> Opened:
    return _embedded_engine(folder, "bare")


def _embedded_engine(folder: Path, tier: Literal["bare"] | None) -> Opened:
    from codomyrmex_containerization.engines.embedded import health
    from tests import embedded

    engine = embedded.engine(folder, tier=tier)
    image = embedded.base_image(engine, folder)
    return Opened(
        engine,
        image,
        folder,
        dial,
        attend=lambda: health.run_health_checks(engine),
        sweep=lambda: embedded.swept(engine),
    )


def _rootless_embedded(request: pytest.FixtureRequest, folder: Path) -> Opened:
    user = _fixture(request, "session_ordinary_user", "tests.ordinary_user")
    engine = user.engine(folder.name)
    return Opened(engine, user.base_image(engine), user.shared(folder.name), dial, attend=engine.attend)


def _memory(request: pytest.FixtureRequest, folder: Path) -> Opened:
    if importlib.util.find_spec("codomyrmex_containerization.engines.memory") is None:
        backends.missing("no engine in memory")
    from codomyrmex_containerization.engines.memory.engine import MemoryEngine

    engine = MemoryEngine()
    return Opened(engine, engine.base_image, folder, dial)


_OPEN: dict[str, Callable[[pytest.FixtureRequest, Path], Opened]] = {
    "docker": _docker,
    "modern-docker": _modern_docker,
    "podman": _podman,
    "podman-rootless": _rootless_podman,
    "embedded": _embedded,
    "embedded-rootless": _rootless_embedded,
    "embedded-bare": _bare_embedded,
    "memory": _memory,
}


def _fixture(request: pytest.FixtureRequest, name: str, module: str) -> Any:
    """Return what a fixture gives; without its module the engine cannot be had here."""
    try:
        return request.getfixturevalue(name)
    except pytest.FixtureLookupError:
        backends.missing(f"{module} gives no {name}")
