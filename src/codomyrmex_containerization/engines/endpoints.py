"""Where may an engine be, who said so, and may it be spoken to there?

Nothing here opens a connection: files are read, and what an address may be is judged before anything is sent to it. What a
user said themselves (a variable, a context, a connection, a setting) is the only candidate: when it is wrong, that is an
error and no reason to turn to another engine.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import connections
from codomyrmex_containerization.models.engine import Endpoint, EngineKind, Tls
from codomyrmex_containerization.models.settings import EndpointSettings

LONGEST_SOCKET_PATH_BYTES = 107  # what the kernel takes as the address of a socket
_LONGEST_ADDRESS = 1000
_PLAIN_PORT, _TLS_PORT, _HTTPS_PORT = 2375, 2376, 443
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*|[0-9A-Fa-f:.]+")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_REMOTE_PATH = re.compile(r"/[A-Za-z0-9._/@+-]+")


@dataclass(frozen=True, slots=True)
class SshTarget:
    """What an ssh:// address names; `path` is the engine's socket on that host."""

    host: str
    user: str | None
    port: int | None
    path: str


def candidates(
    kind: EngineKind,
    environ: Mapping[str, str],
    *,
    uid: int | None = None,
    home: Path | None = None,
    root: Path = Path("/"),
) -> list[Endpoint]:
    """List where an engine of this kind may be, judged, in the order to try; empty when there is no trace of one.

    `home` defaults to HOME, then to the account's; `root` is where absolute paths begin, other than / in tests alone.
    Raises what `judge` raises, and EngineUnavailable for a context or connection that is named and not there.
    """
    if kind in ("memory", "embedded"):
        return []
    owner = os.getuid() if uid is None else uid
    place = connections.Place(environ, owner, home or connections.home_folder(environ, owner), root)
    said = connections.docker(place) if kind == "docker" else connections.podman(place)
    if said is not None:
        return [judge(said)]
    found = _docker_sockets(place) if kind == "docker" else _podman_sockets(place)
    return list(_existing(kind, found))


def named(name: str, setting: EndpointSettings, *, home: Path | None = None) -> Endpoint:
    """Return the endpoint of a setting, judged. Raises what `judge` raises."""
    base = home or connections.home_folder(os.environ, os.getuid())
    ca, cert, key = (connections.expanded(one, base) for one in (setting.ca, setting.cert, setting.key))
    return judge(
        Endpoint(
            name,
            setting.url,
            f"the setting endpoints.{name}",
            kind=setting.kind,
            tls=Tls(ca, cert, key) if ca or cert or key else None,
            identity=connections.expanded(setting.identity, base),
            host_paths=setting.host_paths,
            insecure=setting.insecure and not setting.url.startswith("ssh:"),
        )
    )


# -------------------------------------------------------------------------------------------------------------- judging


def judge(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its address made whole, or say why nothing is sent there.

    Raises Refused (another host without TLS, a password in the address), Unsupported (a scheme), InvalidArgument (no
    address) and EngineUnavailable (files of its TLS material that are missing). No error shows a password.
    """
    parts = _split(endpoint)
    match parts.scheme:
        case "unix":
            path = endpoint.url.removeprefix("unix:").removeprefix("//")
            if not path.startswith("/") or {"?", "#", "\0"} & set(path):
                raise _no_address(endpoint, "a socket needs an absolute path", "unix:///path/to.sock")
            return replace(endpoint, url=f"unix://{path}", tls=None)
        case "tcp" | "http" | "https":
            return _judged_tcp(endpoint, parts)
        case "ssh":
            ssh_target(endpoint)
            _require_files(endpoint, [endpoint.identity])
            return replace(endpoint, url=f"ssh{endpoint.url[len('ssh') :]}", tls=None)
        case _:
            raise errors.Unsupported(
                f"{endpoint.source} has the scheme {parts.scheme[:20]!r}.",
                hint="unix:///path, tcp://host:port (with TLS, or on loopback) and ssh://user@host are supported",
            )


def ssh_target(endpoint: Endpoint) -> SshTarget:
    """Take an ssh:// address apart. Raises Refused for a host or user that ssh could take for something else."""
    parts = _split(endpoint)
    host, user = _written_host(parts), parts.username
    if not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)):
        raise errors.Refused(
            f"{endpoint.source} names a host or user that is none.",
            hint="write ssh://user@host:port/path/to.sock, or a name from the ssh configuration in place of the host",
        )
    if parts.query or parts.fragment:
        raise _no_address(endpoint, "it ends in something that is no path", "ssh://user@host/path/to.sock")
    path = parts.path.rstrip("/") or _remote_default(endpoint, user)
    if not _REMOTE_PATH.fullmatch(path):
        raise _no_address(endpoint, "its path is none of a socket", "ssh://user@host/path/to.sock")
    return SshTarget(host, user, _port(endpoint, parts), path)


def _written_host(parts: SplitResult) -> str:
    # As it was written: urlsplit makes it lower case, and the ssh configuration may know it otherwise.
    place = parts.netloc.rpartition("@")[2]
    return place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]


def require_socket(endpoint: Endpoint) -> None:
    """Look at what stands where a unix socket should be. Raises EngineUnavailable and Unauthorized with the remedy."""
    path = endpoint.socket_path
    if path is None:
        return
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH_BYTES:
        raise errors.EngineUnavailable(
            f"{path} ({endpoint.source}) is too long for a socket's path.",
            hint=f"make a link of at most {LONGEST_SOCKET_PATH_BYTES} bytes to its folder and name that",
        )
    try:
        found = os.stat(path)
    except PermissionError as error:
        raise _closed(endpoint, path) from error
    except (OSError, ValueError) as error:
        reason, hint = _absence(path)
        raise errors.EngineUnavailable(f"{path} ({endpoint.source}) {reason}.", hint=hint) from error
    if not stat.S_ISSOCK(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a file"
        raise errors.EngineUnavailable(
            f"{path} ({endpoint.source}) is {what} and no socket.",
            hint="name the engine's socket, or remove what is in its place and start the engine again",
        )
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise _closed(endpoint, path)


def _closed(endpoint: Endpoint, path: str) -> errors.Unauthorized:
    return errors.Unauthorized(
        f"{path} ({endpoint.source}) may not be opened by this user.",
        hint="join the group that owns the socket (often 'docker') and log in again, or use a rootless engine",
    )


def _absence(path: str) -> tuple[str, str]:
    start = "start the engine (for Docker: 'systemctl start docker' or dockerd), or correct the address"
    if not os.path.islink(path):
        return "is not there", start
    try:
        os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return "is a link to nothing: the engine is not running", start
    except OSError:
        return "is a link that leads nowhere, in a circle", "remove the link, or name the engine's socket itself"
    return "cannot be looked at", start


def _judged_tcp(endpoint: Endpoint, parts: SplitResult) -> Endpoint:
    if parts.query or parts.fragment or not parts.hostname:
        raise _no_address(endpoint, "it needs a host and a port, and nothing after them", "tcp://host:2376")
    port = _port(endpoint, parts)
    tls = endpoint.tls or (Tls() if parts.scheme == "https" else None)
    if tls is None and not endpoint.is_loopback and not endpoint.insecure:
        raise errors.Refused(
            f"{endpoint.source} names {parts.hostname}, which is not this host, without TLS; nothing was sent.",
            hint="give it TLS material (DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, a Docker context, or ca, cert and key of "
            "an endpoint in the settings), or reach it with ssh://user@host",
        )
    if tls is not None:
        if bool(tls.cert) != bool(tls.key):
            raise errors.EngineUnavailable(
                f"{endpoint.source} has a certificate without its key, or a key without its certificate.",
                hint="name both, or neither",
            )
        _require_files(endpoint, [tls.ca, tls.cert, tls.key])
    if port is None:
        port = _HTTPS_PORT if parts.scheme == "https" else _TLS_PORT if tls else _PLAIN_PORT
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return replace(endpoint, url=f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}", tls=tls)


def _split(endpoint: Endpoint) -> SplitResult:
    """Take an address apart; one with a password, or with what no address holds, is refused here."""
    url = endpoint.url
    if not url.isprintable() or len(url) > _LONGEST_ADDRESS or (" " in url and not url.startswith("unix:")):
        raise _no_address(endpoint, "it holds blanks or control characters, or is too long", "unix:///path/to.sock")
    try:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError as error:
        raise _no_address(endpoint, "its host is none", "tcp://host:port") from error
    if password is not None or (user is not None and parts.scheme != "ssh"):
        raise errors.Refused(
            f"{endpoint.source} holds a user name or a password in its address.",
            hint="take it out: engines are told who calls by certificates (tcp) or keys (ssh)",
        )
    return parts


def _port(endpoint: Endpoint, parts: SplitResult) -> int | None:
    try:
        port = parts.port
    except ValueError as error:
        raise _no_address(endpoint, "its port is no number from 1 to 65535", "tcp://host:2376") from error
    if port == 0:
        raise _no_address(endpoint, "its port is 0", "tcp://host:2376")
    return port


def _remote_default(endpoint: Endpoint, user: str | None) -> str:
    if endpoint.kind == "docker":
        return "/var/run/docker.sock"
    if user == "root":
        return "/run/podman/podman.sock"
    raise _no_address(
        endpoint,
        "Podman's socket on that host is not named",
        f"ssh://{user or 'user'}@host/run/user/UID/podman/podman.sock ('podman info' on that host shows it)",
    )


def _no_address(endpoint: Endpoint, reason: str, example: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"{endpoint.source} is no address of an engine: {reason}.", hint=f"write it like this: {example}"
    )


def _require_files(endpoint: Endpoint, paths: Iterable[str | None]) -> None:
    for path in paths:
        if path is None:
            continue
        try:
            with open(path, "rb"):
                pass
        except PermissionError as error:
            raise errors.Unauthorized(
                f"{path}, which {endpoint.source} needs, may not be read by this user.", hint="make it readable for you"
            ) from error
        except (OSError, ValueError) as error:
            raise errors.EngineUnavailable(
                f"{path}, which {endpoint.source} needs, is missing.", hint="put it there, or correct the path"
            ) from error


def is_closed(endpoint: Endpoint) -> bool:
    """Whether it was found at a well-known place and this user may not open it: somebody else's engine."""
    if not endpoint.searched:
        return False
    try:
        require_socket(endpoint)
    except errors.Unauthorized:
        return True
    except errors.ContainerizationError:
        return False
    return False


# ----------------------------------------------------------------------------------------------------------- well known


def _docker_sockets(place: connections.Place) -> Iterator[tuple[Path, str]]:
    yield place.at("/var/run/docker.sock"), "well-known socket"
    for folder in place.runtime_folders():
        yield folder / "docker.sock", "rootless Docker's socket"
    for path, source in (
        (".docker/run/docker.sock", "Docker Desktop"),
        (".docker/desktop/docker.sock", "Docker Desktop"),
        (".colima/default/docker.sock", "Colima"),
        (".config/colima/default/docker.sock", "Colima"),
        (".rd/docker.sock", "Rancher Desktop"),
        (".orbstack/run/docker.sock", "OrbStack"),
    ):
        yield from ((one, source) for one in place.below_home(path))
    yield from _lima_sockets(place, "docker.sock")


def _podman_sockets(place: connections.Place) -> Iterator[tuple[Path, str]]:
    for folder in place.runtime_folders():
        yield folder / "podman" / "podman.sock", "rootless Podman's socket"
    yield place.at("/run/podman/podman.sock"), "well-known socket"
    yield from _lima_sockets(place, "podman.sock")


def _lima_sockets(place: connections.Place, name: str) -> Iterator[tuple[Path, str]]:
    folder = place.named("LIMA_HOME") or next(iter(place.below_home(".lima")), None)
    if folder is not None:
        yield from ((path, "Lima") for path in sorted(folder.glob(f"*/sock/{name}")))


def _existing(kind: EngineKind, sockets: Iterable[tuple[Path, str]]) -> Iterator[Endpoint]:
    """Keep what is there, be it a broken link: it says more than nothing. One socket under two names counts once."""
    seen = set[str]()
    for path, source in sockets:
        real = os.path.realpath(path)
        if os.path.lexists(path) and real not in seen:
            seen.add(real)
            yield Endpoint(kind, f"unix://{path}", source, kind=kind, searched=True)
