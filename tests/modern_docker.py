"""Which newest Docker engine do the tests use? One of their own, built from Go modules, with a containerd of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import backends, leftovers
from tests.backends import DockerCommandLine

KIND = "modern-docker"
START_SECONDS = 60.0
PAUSE_SECONDS = 0.05


class ModernDockerDoesNotStart(Exception):
    """Its last words are the message."""


@dataclass(slots=True)
class ModernDocker:
    """A Docker engine with the containerd image store, in a network and with mounts of its own."""

    folder: Path
    programs: Path
    docker: DockerCommandLine
    """The docker program against it."""
    _containerd: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _dockerd: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self.docker.socket_path

    @property
    def url(self) -> str:
        """Its address."""
        return f"unix://{self.socket_path}"

    @property
    def image(self) -> str:
        """The busybox image that it holds, the same as the tests' other engines have."""
        return backends.BUSYBOX_IMAGE

    @property
    def pid(self) -> int:
        """The engine's process."""
        assert self._dockerd is not None
        return self._dockerd.pid

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        """A command that runs in the engine's network, where its published ports are."""
        assert self._containerd is not None
        spaces = f"/proc/{self._containerd.pid}/ns"
        return ["nsenter", f"--net={spaces}/net", f"--mount={spaces}/mnt", "--", *map(str, command)]

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._dockerd is None
        if self._containerd is None:
            self._start_containerd()
        # Never without a bridge in the network of the host: the engine would remove the one of the host's own engine.
        command = [f"{self.programs}/dockerd", f"--config-file={self.folder}/dockerd.json", f"--host={self.url}"]
        command += [f"--data-root={self.folder}/docker", f"--exec-root={self.folder}/exec"]
        command += [f"--pidfile={self.folder}/dockerd.pid", f"--containerd={self.folder}/containerd.sock"]
        command += [f"--userland-proxy-path={self.programs}/docker-proxy", "--bip=172.31.77.1/24"]
        (self.folder / "dockerd.pid").unlink(missing_ok=True)
        self._dockerd = self._spawn(self.inside(command))
        self._wait(self._dockerd, lambda: backends.answers(self.socket_path))

    def _start_containerd(self) -> None:
        script = 'ip link set lo up && exec "$@"'
        containerd = [f"{self.programs}/containerd", "--config", f"{self.folder}/containerd.toml"]
        self._containerd = self._spawn(["unshare", "--net", "--mount", "sh", "-c", script, "sh", *containerd])
        self._wait(self._containerd, (self.folder / "containerd.sock").is_socket)

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = {"PATH": f"{self.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _wait(self, process: subprocess.Popen[bytes], is_ready: Callable[[], bool]) -> None:
        until = time.monotonic() + START_SECONDS
        while not is_ready():
            if process.poll() is not None or time.monotonic() > until:
                raise ModernDockerDoesNotStart((self.folder / "log").read_text(errors="replace")[-1000:])
            time.sleep(PAUSE_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the engine with a signal and wait until it is gone; its containerd stays."""
        if self._dockerd is not None:
            leftovers.end(self._dockerd, number)
            self._dockerd = None

    def ensure_started(self) -> None:
        """Start it again when a test has left it stopped."""
        if self._dockerd is None or self._dockerd.poll() is not None:
            self._dockerd = None
            self.start()

    def clear(self) -> None:
        """Remove all containers; images stay."""
        left = self.docker(["ps", "--all", "--quiet"], check=False).stdout.split()
        if left:
            self.docker(["rm", "--force", "--volumes", *left], check=False)

    def close(self) -> None:
        """Remove everything of it, whatever state it is in."""
        if self._dockerd is not None:
            self.clear()
        self.stop()
        if self._containerd is not None:
            leftovers.end(self._containerd)
            self._containerd = None
        _end_all_of(self.folder)


def _end_all_of(folder: Path) -> None:
    """End what has the folder in its arguments, or among its mounts: those are of its own, and so are containers."""
    marker = f"{folder}/".encode()

    def is_of_it(process: Path) -> bool:
        return marker in (process / "cmdline").read_bytes() or marker in (process / "mountinfo").read_bytes()

    leftovers.end_processes(is_of_it)
    leftovers.unmount_below(folder)


def sweep() -> None:
    """Remove what killed sessions have left."""
    leftovers.sweep(KIND, _end_all_of)


@contextmanager
def open_modern_docker(*, name: str = "") -> Iterator[ModernDocker]:
    """A running engine that holds the busybox image; skips without what it needs. `name` makes a further one."""
    if os.geteuid() != 0:
        backends.missing("only root may start an engine of the tests' own")
    programs = backends.find_modern_docker()
    if programs is None:
        backends.missing("no new Docker engine")
    for program in ("unshare", "nsenter", "ip", "iptables"):
        if shutil.which(program) is None:
            backends.missing(f"no {program} program on the PATH")
    with leftovers.own_folder(KIND, _end_all_of, name=name) as folder:
        (folder / "client").mkdir()
        docker = backends.open_docker_command_line(folder / "docker.sock", folder / "client")
        (folder / "dockerd.json").write_text("{}")
        places = f'root = "{folder}/containerd"\nstate = "{folder}/state"\n'
        (folder / "containerd.toml").write_text(
            f'version = 3\n{places}[grpc]\n  address = "{folder}/containerd.sock"\n'
        )
        engine = ModernDocker(folder, programs, docker)
        try:
            engine.start()
            backends.ensure_busybox_image(docker)
            yield engine
        except ModernDockerDoesNotStart as error:
            backends.missing(f"the new Docker engine does not start: {error}")
        finally:
            engine.close()


@pytest.fixture(scope="session")
def session_modern_docker() -> Iterator[ModernDocker]:
    """The engine behind `modern_docker`, for fixtures that live as long as the session."""
    with open_modern_docker() as engine:
        yield engine


@pytest.fixture
def modern_docker(session_modern_docker: ModernDocker) -> ModernDocker:
    """The newest Docker engine, with the busybox image; started once, and again when a test has ended it."""
    session_modern_docker.ensure_started()
    return session_modern_docker
