"""Which Podman do the tests use? Services of their own, of root and of an ordinary user, that share nothing with anybody's.

Everything is in one folder: storage, sockets, settings. It wears a lock while its session lives, so that the next
session knows what a killed one has left, and removes it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import backends, leftovers, podman_settings, podman_user
from tests.podman_user import NoMounts

START_SECONDS = 60.0
PAUSE_SECONDS = 0.05
KIND = "podman"

# ------------------------------------------------------------------------------------------------------ the program


@dataclass(frozen=True, slots=True)
class PodmanCommandLine:
    """The podman program on the storage of one service, as the user whose it is: `service.podman(["ps", "--all"])`."""

    prefix: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """The whole command; it needs no environment, only a working directory that the user may enter."""
        return [*self.prefix, *(f"{name}={value}" for name, value in self.environment.items()), *map(str, arguments)]

    def __call__(
        self,
        arguments: Sequence[str | Path],
        *,
        check: bool = True,
        stdin: bytes | None = None,
        timeout_seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run one podman command and return its output as text; with `check`, fail the test when it fails."""
        return self.run(["podman", *arguments], check=check, stdin=stdin, timeout_seconds=timeout_seconds)

    def run(
        self,
        arguments: Sequence[str | Path],
        *,
        check: bool = True,
        stdin: bytes | None = None,
        timeout_seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run any program as that user, with this service's settings in its environment."""
        command = self.command(arguments)
        done = subprocess.run(
            command, input=stdin or b"", capture_output=True, timeout=timeout_seconds, cwd=self.folder
        )
        stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(map(str, arguments))} exited with {done.returncode}: {stderr.strip() or stdout}")
        return subprocess.CompletedProcess(command, done.returncode, stdout, stderr)


# ------------------------------------------------------------------------------------------------------ the service


class PodmanDoesNotStart(Exception):
    """Its last words are the message."""


@dataclass(slots=True)
class PodmanService:
    """A Podman service of the tests' own: `podman system service` on a private socket and private storage."""

    folder: Path
    """Everything of it; the user may enter it."""
    user: pwd.struct_passwd | None
    """The ordinary user who runs it, or None for root."""
    _holder: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def home(self) -> Path:
        """The home of whoever runs it."""
        return self.folder / "home"

    @property
    def runtime_folder(self) -> Path:
        """What XDG_RUNTIME_DIR names for whoever runs it."""
        return self.folder / "run"

    @property
    def socket_path(self) -> Path:
        """Where it listens: for the ordinary user just where everybody looks, `$XDG_RUNTIME_DIR/podman/podman.sock`."""
        return self.runtime_folder / "podman/podman.sock"

    @property
    def url(self) -> str:
        """Its address."""
        return f"unix://{self.socket_path}"

    @property
    def is_rootless(self) -> bool:
        """Whether an ordinary user runs it."""
        return self.user is not None

    @property
    def pid(self) -> int:
        """The process that was started as the service."""
        assert self._process is not None
        return self._process.pid

    @property
    def image(self) -> str:
        """The busybox image that it holds, the same as the tests' Docker engine has."""
        return backends.BUSYBOX_IMAGE

    @property
    def environment(self) -> dict[str, str]:
        """What points any podman program at this storage, with the settings that a restricted machine needs."""
        return self._environment("containers.conf")

    @property
    def plain_environment(self) -> dict[str, str]:
        """The same storage without those settings: what a podman finds on this machine when nobody has helped."""
        return self._environment("plain.conf")

    def _environment(self, settings: str) -> dict[str, str]:
        return {
            "CONTAINERS_CONF": str(self.folder / settings),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime_folder),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    @property
    def podman(self) -> PodmanCommandLine:
        """The podman program on the same storage."""
        return self.command_line()

    def command_line(self, *, environment: Mapping[str, str] | None = None) -> PodmanCommandLine:
        """Programs of the same user; `environment` instead of the service's own."""
        # Only what is named here: TMPDIR, CONTAINER_HOST and the like of whoever runs the tests are not for it.
        return PodmanCommandLine((*self._as_user(), "env", "-i"), environment or self.environment, self.home)

    def _as_user(self) -> tuple[str, ...]:
        if self.user is None:
            return ()
        assert self._holder is not None
        namespace = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        who = (f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups")
        return ("nsenter", namespace, "--", "setpriv", *who)

    # ------------------------------------------------------------------------------------------------- its life

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None
        self.socket_path.unlink(missing_ok=True)
        command = self.podman.command(["podman", "system", "service", "--time=0", self.url])
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, start_new_session=True
            )
        until = time.monotonic() + START_SECONDS
        while not backends.answers(self.socket_path):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop(signal.SIGKILL)
                raise PodmanDoesNotStart(self.last_words())
            time.sleep(PAUSE_SECONDS)

    def ensure_started(self) -> None:
        """Start it again when a test has left it stopped."""
        if self._process is None or self._process.poll() is not None:
            self._process = None
            self.start()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the service with a signal and wait until it is gone; containers run on."""
        if self._process is None:
            return
        # An ordinary user's is two processes: one that waits, and one inside the user's namespace that serves.
        leftovers.end(self._process, number)
        self._process = None

    def clear(self) -> None:
        """Remove all pods, containers, volumes and networks; images stay."""
        for arguments in (
            ["pod", "rm", "--all", "--force", "--time=0"],
            ["rm", "--all", "--force", "--volumes", "--time=0"],
            ["volume", "rm", "--all", "--force"],
            ["network", "prune", "--force"],
        ):
            self.podman(arguments, check=False)

    def container_ids(self) -> frozenset[str]:
        """All containers that it holds, running or not."""
        return frozenset(self.podman(["ps", "--all", "--quiet", "--no-trunc"]).stdout.split())

    def last_words(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-1000:]

    # ----------------------------------------------------------------------------------------------- setting up

    def open(self) -> None:
        """Make its folders and settings, unless they are there, and the place where its programs run."""
        for folder in (self.home, self.runtime_folder, self.runtime_folder / "podman", self.folder / "networks"):
            folder.mkdir(mode=0o700, exist_ok=True)
            if self.user is not None:
                os.chown(folder, self.user.pw_uid, self.user.pw_gid)
        (self.folder / "storage.conf").write_text(podman_settings.storage_settings(self.folder))
        (self.folder / "plain.conf").write_text(
            podman_settings.settings(self.folder, rootless=self.is_rootless, restricted=False)
        )
        (self.folder / "containers.conf").write_text(
            podman_settings.settings(self.folder, rootless=self.is_rootless, restricted=True)
        )
        if self.user is None:
            # Two sessions side by side, or this one and the user's own Podman, would quarrel about the usual one.
            network = self.folder / f"networks/{podman_settings.network_name(self.folder)}.json"
            network.write_text(podman_settings.default_network(self.folder))
        else:
            for name in ("root", "tmp"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)
                os.chown(self.folder / name, self.user.pw_uid, self.user.pw_gid)
            self._holder = podman_user.hold_mounts(self.folder)

    def close(self) -> None:
        """Remove everything of it, whatever state it is in."""
        with suppress(subprocess.TimeoutExpired):
            self.clear()
        self.stop()
        self._end_processes()
        if self.user is None:
            # Already gone with its last container, but for one that was killed in the wrong moment.
            subprocess.run(
                ["ip", "link", "delete", podman_settings.network_name(self.folder)], check=False, capture_output=True
            )
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        leftovers.unmount_below(self.folder)
        if self.user is not None:
            with backends.one_at_a_time("users"):
                podman_user.remove_user(self.user)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_processes(self) -> None:
        """End whatever runs of it: told by its folder, an ordinary user's by whose they are as well."""
        owned = podman_user.ids_of(self.user) if self.user is not None else []
        leftovers.end_processes(leftovers.naming(self.folder))
        leftovers.end_processes(lambda process: any(process.stat().st_uid in ids for ids in owned))


# ------------------------------------------------------------------------------------------------- opening and closing


def sweep() -> None:
    """Remove what killed sessions have left."""
    leftovers.sweep(KIND, _remove_leftover)


def _remove_leftover(folder: Path) -> None:
    user = None
    with suppress(OSError, KeyError):
        user = pwd.getpwnam((folder / "user").read_text())
    service = PodmanService(folder, user)
    if user is not None:
        service._end_processes()  # They are in a namespace that is nobody's any more. Root's end in good order, below.
    with suppress(OSError, NoMounts):
        service.open()
    service.close()


@contextmanager
def open_podman(*, rootless: bool = False, kind: str = "") -> Iterator[PodmanService]:
    """A running Podman service of the tests' own that holds the busybox image; skips without what it needs.

    `kind` names a further one beside those of the session.
    """
    if os.geteuid() != 0:
        backends.missing("only root may start a Podman of the tests' own")
    for program in ("podman", "conmon", "nsenter", "setpriv", "useradd", *(["newuidmap", "slirp4netns"] * rootless)):
        if shutil.which(program) is None:
            backends.missing(f"no {program} program on the PATH")
    name = f"-{'user' if rootless else 'root'}{kind}"
    with leftovers.own_folder(KIND, _remove_leftover, name=name) as folder:
        user = None
        if rootless:
            user_name = f"{podman_user.USERS}{backends.SESSION_ID[:8]}{kind}"
            (folder / "user").write_text(user_name)
            user = podman_user.make_user(user_name, folder / "home")
        service = PodmanService(folder, user)
        try:
            service.open()
            service.start()
            backends.ensure_busybox_image(service.podman)
        except (PodmanDoesNotStart, NoMounts) as error:
            service.close()
            backends.missing(f"a Podman of the tests' own does not start: {error}")
        except BaseException:
            service.close()
            raise
        try:
            yield service
        finally:
            service.close()


# ---------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def session_podman() -> Iterator[PodmanService]:
    """The service behind `podman_service`, for fixtures that live as long as the session."""
    with open_podman() as service:
        yield service


@pytest.fixture(scope="session")
def session_rootless_podman() -> Iterator[PodmanService]:
    """The service behind `rootless_podman_service`, for fixtures that live as long as the session."""
    with open_podman(rootless=True) as service:
        yield service


@pytest.fixture
def podman_service(session_podman: PodmanService) -> PodmanService:
    """A Podman service that root runs, with the busybox image; started once, and again when a test has ended it."""
    session_podman.ensure_started()
    return session_podman


@pytest.fixture
def rootless_podman_service(session_rootless_podman: PodmanService) -> PodmanService:
    """A Podman service that an ordinary user runs, with the busybox image; started once, and again when it was ended."""
    session_rootless_podman.ensure_started()
    return session_rootless_podman
