"""What does every test get? Folders of its own, the real back ends, and a loud word where one is missing."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import backends
from tests.backends import DockerCommandLine

# No wall clock decides whether a property holds; in CI the same examples run every time.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("steady")

pytest_plugins = ["tests.podman", "tests.modern_docker", "tests.endpoints", "tests.ordinary_user", "tests.tally"]

OWN_VARIABLES = "CODOMYRMEX_CONTAINERIZATION_"
ENGINE_VARIABLES = ("DOCKER_", "BUILDX_", "BUILDKIT_", "CONTAINER_", "CONTAINERS_")


# A run that was started in the background ignores Control-C, and so would every program that a test starts.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def private_folders(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A home of the test's own: nothing of the user's is read or written, be it settings, state or Docker's files."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith((OWN_VARIABLES, *ENGINE_VARIABLES))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    # A test that is about another engine names it: no other one looks at this machine's Podman, let alone starts it.
    monkeypatch.setenv(f"{OWN_VARIABLES}ENGINES", "docker")
    monkeypatch.setenv("DOCKER_CONFIG", str(home / ".docker"))
    for kind in ("config", "state", "data", "cache"):
        monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", str(home / kind))
    for kind in ("state", "data", "cache"):
        monkeypatch.setenv(f"{OWN_VARIABLES}{kind.upper()}_DIR", str(home / kind / "codomyrmex-containerization"))
    if "docker_socket" in request.fixturenames:
        _point_at_engine(monkeypatch, request.getfixturevalue("docker_socket"))
    return home


def _point_at_engine(monkeypatch: pytest.MonkeyPatch, socket_path: Path) -> None:
    """Name the engine only when it is not where everybody looks first."""
    if socket_path != backends.STANDARD_SOCKET:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{socket_path}")


# --------------------------------------------------------------------------------------------------------- back ends


@pytest.fixture(scope="session")
def docker_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a real Docker engine. When the session ends, nothing that it made may be left there."""
    found = backends.find_docker_socket()
    if found is None:
        backends.missing("no Docker engine answers on a local socket")
    docker = backends.open_docker_command_line(found, tmp_path_factory.mktemp("docker-config"))
    with backends.sharing("engine") as sharing:
        before = backends.container_ids(docker)
        yield found
        left = backends.containers_left(docker, before=before, alone=sharing.is_last())
    if left:
        pytest.fail("these tests left containers behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def docker_cli(docker_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> DockerCommandLine:
    """The docker program, to make what a test starts from and to see what the engine really holds."""
    return backends.open_docker_command_line(docker_socket, tmp_path_factory.mktemp("docker-config"))


@pytest.fixture
def buildx(private_folders: Path, docker_socket: Path) -> Path:
    """The buildx plug-in, put where the docker program of this test finds it: with it, builds go through BuildKit."""
    found = backends.find_buildx()
    if found is None:
        backends.missing("no buildx plug-in")
    plugins = private_folders / ".docker" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-buildx").symlink_to(found)
    return found


@pytest.fixture(scope="session")
def busybox_image(docker_cli: DockerCommandLine) -> Iterator[str]:
    """A tiny image with sh, sleep, nc and the rest of busybox; the last session that uses the engine removes it."""
    with backends.sharing("image") as sharing:
        reference = backends.ensure_busybox_image(docker_cli)
        yield reference
        if sharing.is_last():
            docker_cli(["image", "rm", "--force", reference])


@pytest.fixture(scope="session")
def session_label() -> str:
    """`name=value` for what a test makes through docker_cli itself: `["run", "--label", session_label, ...]`."""
    return f"{backends.TEST_LABEL}={backends.SESSION_ID}"


# ----------------------------------------------------------------------------------------------- what did not run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once for each reason how many tests did not run: the reason names the command that would make them run."""
    reasons = Counter(_reason(report) for report in terminalreporter.getreports("skipped"))
    if reasons:
        terminalreporter.section("not run", yellow=True, bold=True)
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count} skipped: {reason}", yellow=True)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr
    return where[2].removeprefix("Skipped: ") if isinstance(where, tuple) else str(where)
