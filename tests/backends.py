"""Which real back ends are there for the tests, and what is said when one is not?

A test that needs one never passes without it: it is skipped with the command that brings it, and fails where CI=true.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import pytest

BUILDX_VERSION = "v0.37.2"  # scripts/back-ends builds it
MODERN_DOCKER_VERSION = "v2.0.0-beta.24"  # likewise
BUSYBOX_IMAGE = "localhost/cxc-test-busybox:1"
TEST_LABEL = "localhost.cxc-test"  # on everything that tests make themselves; its value is the session's
OWNERSHIP_PREFIX = "codomyrmex.containerization."  # on everything that the package makes
SESSION_ID = uuid.uuid4().hex[:12]
ENABLE = "scripts/back-ends"

# The user's own folders, before any fixture replaces them.
_HOME = Path.home()
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or _HOME / ".cache")
_DOCKER_CONFIG = Path(os.environ.get("DOCKER_CONFIG") or _HOME / ".docker")
_DOCKER_HOST = os.environ.get("DOCKER_HOST", "")
_RUNTIME = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")

STANDARD_SOCKET = Path("/var/run/docker.sock")


def missing(what: str, *, enable: str = ENABLE) -> NoReturn:
    """Skip the test that asked, or fail it in CI, with the command that brings what is missing."""
    message = f"{what} (to run this: {enable})"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def find_docker_socket() -> Path | None:
    """The socket of a Docker engine that answers a ping: never one on another machine."""
    named = [Path(_DOCKER_HOST.removeprefix("unix://"))] if _DOCKER_HOST.startswith("unix://") else []
    candidates = [*named, STANDARD_SOCKET, _RUNTIME / "docker.sock", _HOME / ".docker/run/docker.sock"]
    return next((path for path in candidates if answers(path)), None)


def answers(path: Path) -> bool:
    """Whether something on this socket answers a ping as an engine does."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return connection.recv(64).split(b" ", 2)[1:2] == [b"200"]
    except OSError:
        return False


def find_buildx() -> Path | None:
    """The buildx plug-in: the one that is named, the one that scripts/back-ends built, or an installed one."""
    named = os.environ.get("CODOMYRMEX_TEST_BUILDX")
    if named:
        return Path(named) if os.access(named, os.X_OK) else None
    own = _CACHE / "codomyrmex-containerization/tools" / f"buildx-{BUILDX_VERSION}"
    installed = [Path(base) / part / "docker" for base in ("/usr/local", "/usr") for part in ("lib", "libexec")]
    plugins = [folder / "cli-plugins/docker-buildx" for folder in (own, _DOCKER_CONFIG, *installed)]
    return next((path for path in plugins if os.access(path, os.X_OK)), None)


def find_modern_docker() -> Path | None:
    """The folder with the programs of the newest Docker engine, which scripts/back-ends built."""
    named = os.environ.get("CODOMYRMEX_TEST_MODERN_DOCKER")
    own = _CACHE / "codomyrmex-containerization/tools" / f"modern-docker-{MODERN_DOCKER_VERSION}" / "bin"
    folder = Path(named) if named else own
    return folder if os.access(folder / "dockerd", os.X_OK) and os.access(folder / "runc", os.X_OK) else None


class CommandLine(Protocol):
    """A program with Docker's commands: docker itself, or podman."""

    def __call__(
        self,
        arguments: Sequence[str | Path],
        *,
        check: bool = True,
        stdin: bytes | None = None,
        timeout_seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command and return its output as text; with `check`, fail the test when it fails."""
        ...


@dataclass(frozen=True, slots=True)
class DockerCommandLine:
    """The docker program against the tests' engine: `docker_cli(["ps", "--all"])`.

    It knows neither the user's contexts and credentials nor buildx, so `docker build` is the engine's classic builder.
    """

    program: str
    socket_path: Path
    config_folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self,
        arguments: Sequence[str | Path],
        *,
        check: bool = True,
        stdin: bytes | None = None,
        timeout_seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command and return its output as text; with `check`, fail the test when it fails."""
        command = [self.program, "--host", f"unix://{self.socket_path}", *map(str, arguments)]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")},
            "DOCKER_CONFIG": str(self.config_folder),
            "DOCKER_BUILDKIT": "0",
            **self.environment,
        }
        done = subprocess.run(
            command, input=stdin or b"", capture_output=True, env=environment, timeout=timeout_seconds
        )
        stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            pytest.fail(
                f"docker {' '.join(map(str, arguments))} exited with {done.returncode}: {stderr.strip() or stdout}"
            )
        return subprocess.CompletedProcess(command, done.returncode, stdout, stderr)


def open_docker_command_line(socket_path: Path, config_folder: Path) -> DockerCommandLine:
    """The docker program on the PATH; skips the test without one."""
    program = shutil.which("docker")
    if program is None:
        missing("no docker program on the PATH")
    return DockerCommandLine(program, socket_path, config_folder)


# ------------------------------------------------------------------------------------------- sessions side by side


@dataclass(frozen=True, slots=True)
class Sharing:
    """What sessions that use the same thing agree through: a shared lock that each holds while it uses it."""

    file: io.TextIOBase

    def is_last(self) -> bool:
        """Whether no other session uses it now; then none can begin to before this one ends."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def sharing(name: str) -> Iterator[Sharing]:
    """Count this session among those that use `name` at the same time."""
    with _lock_file(name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield Sharing(file)


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Keep other sessions of this user out of a step that is not to be done twice at once."""
    with _lock_file(name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"cxc-tests-{os.getuid()}-{name}.lock"


# --------------------------------------------------------------------------------------------------- what was left


def container_ids(docker: DockerCommandLine) -> frozenset[str]:
    """The ids of all containers, running or not."""
    return frozenset(docker(["ps", "--all", "--quiet", "--no-trunc"]).stdout.split())


def containers_left(docker: DockerCommandLine, *, before: frozenset[str], alone: bool) -> list[str]:
    """What this session's tests made and did not remove, one readable line for each.

    A container of the package itself does not say which session it is of: those count only for one that is `alone`.
    """
    rows = docker(["ps", "--all", "--no-trunc", "--format", "{{json .}}"]).stdout.splitlines()
    return [
        f"{row['ID'][:12]} {row['Names']} ({row['Image']}, {row['Status']}) {row['Labels']}"
        for row in map(json.loads, rows)
        if row["ID"] not in before and row["State"] != "removing" and _is_ours(row["Labels"], alone=alone)
    ]


def _is_ours(labels: str, *, alone: bool) -> bool:
    names = labels.split(",")
    return f"{TEST_LABEL}={SESSION_ID}" in names or (alone and any(name.startswith(OWNERSHIP_PREFIX) for name in names))


# --------------------------------------------------------------------------------------------------- the one image


def ensure_busybox_image(docker: CommandLine) -> str:
    """Make the image that the tests run, unless it is there: a static busybox with a link for each of its applets."""
    busybox = static_busybox()
    with one_at_a_time("making-image"):
        if docker(["image", "inspect", BUSYBOX_IMAGE], check=False).returncode != 0:
            changes = ('CMD ["sh"]', "ENV PATH=/usr/local/bin:/usr/bin:/bin", f"LABEL {TEST_LABEL}=image")
            options = [option for change in changes for option in ("--change", change)]
            docker(["import", *options, "-", BUSYBOX_IMAGE], stdin=root_filesystem(busybox))
    return BUSYBOX_IMAGE


def static_busybox() -> Path:
    """A busybox that needs no library, of this machine."""
    found = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    if found is None or b"/ld-" in Path(found).read_bytes()[:4096]:  # the name of a dynamic loader
        missing("no statically linked busybox")
    return Path(found)


def root_filesystem(busybox: Path) -> bytes:
    """A tar of the base image's files: the busybox, a link for each of its applets, two accounts."""
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700)):
            archive.addfile(_entry(folder, kind=tarfile.DIRTYPE, mode=mode))
        _add_file(archive, "bin/busybox", busybox.read_bytes(), mode=0o755)
        _add_file(
            archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", mode=0o644
        )
        _add_file(archive, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", mode=0o644)
        for applet in listed:
            if applet != "busybox":
                link = _entry(f"bin/{applet}", kind=tarfile.SYMTYPE, mode=0o777)
                link.linkname = "busybox"
                archive.addfile(link)
    return buffer.getvalue()


def _entry(name: str, *, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    return entry


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int) -> None:
    entry = _entry(name, kind=tarfile.REGTYPE, mode=mode)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
