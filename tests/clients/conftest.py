"""What do the tests of the clients share? Real registries on loopback, and a client without anybody's credentials."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from codomyrmex_containerization.clients import distribution, registries
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.settings import RegistrySettings
from tests import registry, tls

QUICK = registries.Pace(
    connect_seconds=10.0, silence_seconds=10.0, attempts=3, first_wait_seconds=0.001, longest_wait_seconds=0.01
)


@dataclass(slots=True)
class Bench:
    """A client for tests: its settings, its environment, and the secrets that it told of."""

    home: Path
    environ: dict[str, str]
    settings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    learned: list[str] = field(default_factory=list)
    pace: registries.Pace = QUICK

    def client(self) -> distribution.Client:
        """Return a client."""
        settings = RegistrySettings.model_validate(self.settings)
        return distribution.Client(settings, environ=self.environ, learn=self.learned.append, pace=self.pace)

    @asynccontextmanager
    async def repository(self, text: str) -> AsyncIterator[distribution.Repository]:
        """Open the repository that a reference names."""
        async with self.client().work() as work:
            yield work.repository(reference.parse(text))

    def work(self) -> AbstractAsyncContextManager[distribution.Work]:
        """Begin a piece of work."""
        return self.client().work()

    def trust(self, authority: tls.Authority, *hosts: str) -> None:
        """Trust an authority of the tests for these hosts, by a folder as Docker has it."""
        for host in hosts:
            folder = self.home / ".docker" / "certs.d" / host
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())


@dataclass(frozen=True, slots=True)
class Bytes:
    """Contents to be sent."""

    data: bytes

    @contextmanager
    def open(self, offset: int) -> Iterator[io.BytesIO]:
        """Open them from a place on."""
        yield io.BytesIO(self.data[offset:])


@pytest.fixture
def bench(private_folders: Path) -> Bench:
    """A client that knows nobody's credentials."""
    return Bench(private_folders, {"HOME": str(private_folders), "PATH": "/usr/bin:/bin"})


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tls.Authority:
    """A certificate authority of the tests' own."""
    return tls.Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def certificates(authority: tls.Authority) -> Path:
    """A certificate of this machine's loopback."""
    return authority.issue(authority.folder / "server", "serverAuth")


@pytest.fixture(scope="session")
def plain_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    """A registry for everybody, without TLS."""
    with registry.started(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="session", params=["distribution", "crane"])
def any_registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[registry.Registry]:
    """Each of the registries, for everybody, without TLS."""
    start: Callable[[Path], object] = {"distribution": registry.started, "crane": registry.crane_started}[request.param]
    with start(tmp_path_factory.mktemp("registry")) as found:  # type: ignore[attr-defined]  # both are context managers
        yield found
