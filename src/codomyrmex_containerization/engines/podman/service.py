"""How is Podman reached where it is installed and no service of it listens?

`podman system service` is started on a private socket. It ends by itself when nobody has asked it anything for a while, belongs to no
server in particular, and is there once for each user and folder: whoever needs it takes a lock, looks whether the socket answers, and
only then starts one. What it needs on a restricted machine is found by `settings`.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines import endpoints
from codomyrmex_containerization.engines.podman import settings
from codomyrmex_containerization.models.engine import Endpoint

IDLE_SECONDS = 300
START_SECONDS = 20.0

_SOCKET = "podman.sock"
_LOCK = "podman.lock"
_LOG = "podman.log"
_VERSION = "podman.version"
_PAUSE_SECONDS = 0.005
_PING_SECONDS = 5.0
_LONGEST_WORDS = 400
_INSTALL = "install it (Debian, Ubuntu: apt-get install podman), or name a Podman that runs by CONTAINER_HOST"
# What Podman and its helpers read; nothing else of this process's environment concerns them.
_PASSED_ON = (
    "LANG",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "REGISTRY_AUTH_FILE",
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
)
_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """A service of Podman that answers: its socket, whether this call started it, and what was set for it."""

    socket: Path
    started: bool
    notes: tuple[str, ...]

    @property
    def endpoint(self) -> Endpoint:
        """Where it is, as an engine's endpoint."""
        return Endpoint("podman", f"unix://{self.socket}", "podman system service, started when needed", kind="podman")


def is_possible() -> bool:
    """Whether a service could be started: this is Linux and Podman is installed."""
    return sys.platform == "linux" and process.find("podman") is not None


def socket_path(folder: Path) -> Path:
    """Return where the socket of the service for `folder` is, whether it listens or not."""
    return folder / _SOCKET


def ensure(folder: Path, environ: Mapping[str, str], *, deadline_seconds: float = START_SECONDS) -> ServiceEndpoint:
    """Return a service that answers, started if none does. Blocks: to be called through `threads.run`.

    `folder` is made with mode 0700 if need be. Raises EngineUnavailable (not installed, does not start),
    DeadlineExceeded, Refused (the folder is somebody else's), Unsupported (not Linux).
    """
    until = time.monotonic() + deadline_seconds
    program = _program()
    facts = settings.look()
    wanted = settings.needed(facts, settings.configured(environment(environ), rootless=facts.rootless))
    try:
        path = _private(folder)
        if _answers(path):
            return ServiceEndpoint(path, False, wanted.notes)
        with _alone(folder, until):
            if _answers(path):
                return ServiceEndpoint(path, False, wanted.notes)
            _start(program, folder, path, environ, wanted, until)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"What Podman's service needs cannot be kept in {folder}: {error.strerror}.",
            hint="name a state folder that this user may write to",
        ) from error
    return ServiceEndpoint(path, True, wanted.notes)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what Podman is given of an environment, and what it needs that is missing there."""
    given = {name: environ[name] for name in _PASSED_ON if environ.get(name)}
    try:
        user = pwd.getpwuid(os.geteuid())
    except KeyError as error:
        raise errors.EngineUnavailable(
            f"Podman needs an account, and the user {os.geteuid()} has none.",
            hint="run this server as a user with an account",
        ) from error
    given |= {"HOME": environ.get("HOME") or user.pw_dir, "USER": user.pw_name}
    # A server that a desktop application started has an almost empty PATH: Podman looks for its helpers there.
    given["PATH"] = ":".join(dict.fromkeys([*filter(None, environ.get("PATH", "").split(":")), *_FOLDERS.split(":")]))
    runtime = Path(f"/run/user/{user.pw_uid}")
    if "XDG_RUNTIME_DIR" not in given and user.pw_uid != 0 and _is_own(runtime):
        given["XDG_RUNTIME_DIR"] = str(runtime)
    return given


def _program() -> Path:
    if sys.platform != "linux":
        raise errors.Unsupported(
            "Podman's service is started by this server on Linux only.", hint="start it: podman machine start"
        )
    found = process.find("podman")
    if found is None:
        raise errors.EngineUnavailable("Podman is not installed.", hint=_INSTALL)
    return found


def _private(folder: Path) -> Path:
    path = socket_path(folder)
    if len(os.fsencode(path)) > endpoints.LONGEST_SOCKET_PATH_BYTES:
        raise errors.EngineUnavailable(
            f"The path of Podman's socket would be too long: {path}.", hint="name a shorter state folder"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_own(folder):
        raise errors.Refused(
            f"{folder} is not this user's own.", hint="remove it, or name another state folder: it must have mode 0700"
        )
    return path


def _is_own(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


@contextmanager
def _alone(folder: Path, until: float) -> Iterator[None]:
    """Keep other servers of this user out while a service is started."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(until)
        yield
    finally:
        os.close(descriptor)


def _start(
    program: Path, folder: Path, path: Path, environ: Mapping[str, str], wanted: settings.Settings, until: float
) -> None:
    env = environment(environ)
    version = _version(program, folder, env, until) if wanted.tables else (0, 0)
    env |= settings.hand_over(wanted, env, folder, version=version)
    with suppress(FileNotFoundError):
        path.unlink()
    argv = [str(program), "system", "service", f"--time={IDLE_SECONDS}", f"unix://{path}"]
    # Its containers' monitors leave files in the working directory: that is the private folder.
    ended = process.start_detached(argv, env=env, cwd=folder, log=folder / _LOG)
    while not _answers(path):
        if ended() is not None:
            raise errors.EngineUnavailable(
                f"Podman's service ended as soon as it was started: {_last_words(folder / _LOG)}",
                hint="run 'podman info' to see what is wrong",
            )
        _wait(until)


def _wait(until: float) -> None:
    if time.monotonic() >= until:
        raise errors.DeadlineExceeded(
            "Podman's service did not start in time.", hint="try again; 'podman info' shows whether Podman works"
        )
    time.sleep(_PAUSE_SECONDS)


def _version(program: Path, folder: Path, env: Mapping[str, str], until: float) -> tuple[int, int]:
    """Ask the program for its version, once for each that is installed."""
    known, installed = folder / _VERSION, program.stat()
    stamp = f"{program} {installed.st_mtime_ns} {installed.st_size}\n"
    with suppress(OSError):
        text = known.read_text("utf-8")
        if text.startswith(stamp):
            return settings.parsed_version(text.removeprefix(stamp))
    said = folder / f"{_VERSION}.new"
    ended = process.start_detached([str(program), "--version"], env=env, cwd=folder, log=said)
    while ended() is None:
        _wait(until)
    text = said.read_text("utf-8", "replace")
    said.write_text(stamp + text, "utf-8")
    said.replace(known)
    return settings.parsed_version(text)


def _answers(path: Path) -> bool:
    """Whether a service answers a ping on a socket that is this user's."""
    try:
        if not stat.S_ISSOCK((found := path.lstat()).st_mode) or found.st_uid != os.geteuid():
            return False
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PING_SECONDS)
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
            return connection.recv(64).split(b" ", 2)[1:2] == [b"200"]
    except OSError:
        return False


def _last_words(log: Path) -> str:
    try:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1][-_LONGEST_WORDS:] if lines else "it said nothing"
