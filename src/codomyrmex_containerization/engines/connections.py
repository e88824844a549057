"""Which engine did the user name to the Docker or Podman program: by a variable, a context or a connection?

Only files are read here, those that these programs write; what they say is judged by `endpoints`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.engine import Endpoint, Tls

_LONGEST_FILE_BYTES = 4 * 1024 * 1024
_TLS_FILES = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
_PODMAN_KEYS = {"ismachine": "is_machine", "tlsca": "tls_ca", "tlscert": "tls_cert", "tlskey": "tls_key"}


@dataclass(frozen=True, slots=True)
class Place:
    """Whose engines are looked for, and where."""

    environ: Mapping[str, str]
    uid: int
    home: Path | None
    root: Path

    def at(self, path: str) -> Path:
        """Return an absolute path of the system."""
        return self.root / path.lstrip("/")

    def below_home(self, *paths: str) -> list[Path]:
        """Return paths below the home folder, none when there is no home."""
        return [self.home / path for path in paths] if self.home is not None else []

    def named(self, variable: str) -> Path | None:
        """Return the path that a variable names, `~/` expanded; None when it is not set or relative."""
        path = Path(expanded(self.environ.get(variable, ""), self.home) or "")
        return path if path.is_absolute() else None

    def runtime_folders(self) -> list[Path]:
        """Return where sockets of this user are: a client started by a desktop may not say so in its environment."""
        return [*filter(None, [self.named("XDG_RUNTIME_DIR")]), self.at(f"/run/user/{self.uid}")]

    def configuration(self) -> Path | None:
        """Return the folder of the user's settings."""
        return self.named("XDG_CONFIG_HOME") or (self.home / ".config" if self.home is not None else None)


def home_folder(environ: Mapping[str, str], uid: int) -> Path | None:
    """Return HOME, else the account's home folder: a client started by a desktop may have an empty environment."""
    if environ.get("HOME", "").startswith("/"):
        return Path(environ["HOME"])
    import pwd

    try:
        recorded = pwd.getpwuid(uid).pw_dir
    except KeyError:
        return None
    return Path(recorded) if recorded.startswith("/") else None


def expanded(path: str | None, home: Path | None) -> str | None:
    """Return a path with its leading `~/` replaced; None for an empty one."""
    if path and path.startswith("~/") and home is not None:
        return str(home / path[2:])
    return path or None


def docker(place: Place) -> Endpoint | None:
    """Return DOCKER_HOST, or the current context of the docker program. Raises EngineUnavailable."""
    host = place.environ.get("DOCKER_HOST")
    if host:
        tls = None if host.lower().startswith(("unix:", "ssh:")) else _docker_tls(place)
        return Endpoint("docker", host, "DOCKER_HOST", tls=tls)
    return _docker_context(place)


def _docker_folder(place: Place) -> Path | None:
    return place.named("DOCKER_CONFIG") or next(iter(place.below_home(".docker")), None)


def _docker_tls(place: Place) -> Tls | None:
    """Return what goes with DOCKER_HOST: DOCKER_TLS_VERIFY, or DOCKER_TLS for TLS that trusts anybody."""
    verify = bool(place.environ.get("DOCKER_TLS_VERIFY"))
    if not verify and not place.environ.get("DOCKER_TLS"):
        return None
    folder = place.named("DOCKER_CERT_PATH")
    if folder is not None:
        ca, cert, key = (str(folder / file) for file in _TLS_FILES.values())
        return Tls(ca if verify else None, cert, key, verify)
    folder = _docker_folder(place)
    there = _tls_files(folder) if folder is not None else {}
    # As the docker program does: without a path the authority is needed, the own certificate is not.
    authority = str(folder / "ca.pem") if verify and folder is not None else None
    return Tls(ca=authority, cert=there.get("cert"), key=there.get("key"), verify=verify)


def _tls_files(folder: Path) -> dict[str, str]:
    return {key: str(folder / file) for key, file in _TLS_FILES.items() if (folder / file).is_file()}


def _docker_context(place: Place) -> Endpoint | None:
    """Return the endpoint of DOCKER_CONTEXT or of the Docker CLI's current context; None for `default`."""
    folder = _docker_folder(place)
    name: object
    name, source = place.environ.get("DOCKER_CONTEXT"), "DOCKER_CONTEXT"
    if not name and folder is not None:
        name, source = _json(folder / "config.json").get("currentContext"), "Docker's current context"
    if not isinstance(name, str) or name in ("", "default"):
        return None
    label, digest = f"{source} {name[:80]!r}", hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
    meta = _json(folder / "contexts" / "meta" / digest / "meta.json") if folder is not None else {}
    found = _table(_table(meta, "Endpoints"), "docker")
    host = found.get("Host")
    if folder is None or not isinstance(host, str) or not host:
        raise errors.EngineUnavailable(
            f"The Docker context {name[:80]!r} ({source}) has no endpoint.",
            hint="docker context ls shows the contexts there are",
        )
    tls = None
    if not host.startswith(("unix:", "ssh:", "npipe:", "fd:")):
        verify = found.get("SkipTLSVerify") is not True
        tls = _context_tls(Endpoint("docker", host, label), folder / "contexts" / "tls" / digest / "docker", verify)
    return Endpoint("docker", host, label, tls=tls)


def _context_tls(endpoint: Endpoint, folder: Path, verify: bool) -> Tls | None:
    there = _tls_files(folder)
    if ("cert" in there) != ("key" in there):
        missing = "key" if "cert" in there else "cert"
    elif there or not verify:
        return Tls(ca=there.get("ca") if verify else None, cert=there.get("cert"), key=there.get("key"), verify=verify)
    elif not folder.exists() and endpoint.is_loopback:
        return None
    else:
        missing = "ca"
    raise errors.EngineUnavailable(
        f"{endpoint.source} has TLS files that are missing: {folder / _TLS_FILES[missing]}.",
        hint="give the context its files again: docker context update NAME --docker host=...,ca=...,cert=...,key=...; "
        "docker context ls shows the others",
    )


def podman(place: Place) -> Endpoint | None:
    """Return CONTAINER_HOST, or the default connection of the podman program. Raises EngineUnavailable."""
    host = place.environ.get("CONTAINER_HOST")
    if host:
        identity = expanded(place.environ.get("CONTAINER_SSHKEY"), place.home)
        return Endpoint("podman", host, "CONTAINER_HOST", kind="podman", identity=identity)
    return _podman_connection(place)


def _podman_connection(place: Place) -> Endpoint | None:
    """Return CONTAINER_CONNECTION or Podman's default connection, from its connections file or containers.conf."""
    default, known = _podman_connections(place)
    name, source = place.environ.get("CONTAINER_CONNECTION"), "CONTAINER_CONNECTION"
    if not name:
        name, source = default, "Podman's default connection"
    if not name:
        return None
    found = known.get(name)
    uri = found.get("uri") if found is not None else None
    if found is None or not isinstance(uri, str) or not uri:
        raise errors.EngineUnavailable(
            f"The Podman connection {name[:80]!r} ({source}) has no address.",
            hint="podman system connection list shows the connections there are",
        )
    ca, cert, key, identity = (_text(found, one, place) for one in ("tls_ca", "tls_cert", "tls_key", "identity"))
    made = Endpoint(
        "podman",
        uri,
        f"{source} {name[:80]!r}",
        kind="podman",
        tls=Tls(ca, cert, key) if ca or cert or key else None,
        identity=identity,
    )
    # A machine of Podman's own has a new host key whenever it is made again, and is reached on loopback alone.
    is_machine = found.get("is_machine") is True and made.scheme == "ssh" and _is_loopback(made)
    return replace(made, insecure=is_machine)


def _is_loopback(endpoint: Endpoint) -> bool:
    try:
        return endpoint.is_loopback
    except ValueError:
        return False


def _podman_connections(place: Place) -> tuple[str | None, dict[str, Mapping[str, object]]]:
    """Return the default's name and all connections; the connections file (Podman 5) beats containers.conf."""
    default: object = None
    known: dict[str, Mapping[str, object]] = {}
    for path in _containers_conf(place):
        engine = _table(_toml(path), "engine")
        default = engine.get("active_service") or default
        known |= _tables(_table(engine, "service_destinations"))
    folder = place.configuration()
    file = place.named("PODMAN_CONNECTIONS_CONF") or (folder and folder / "containers" / "podman-connections.json")
    if file is not None:
        connection = _table(_podman_json(file), "Connection")
        default = connection.get("Default") or default
        for name, one in _tables(_table(connection, "Connections")).items():
            known[name] = {_PODMAN_KEYS.get(key.lower(), key.lower()): value for key, value in one.items()}
    return default if isinstance(default, str) else None, known


def _containers_conf(place: Place) -> Iterator[Path]:
    """Yield the files that Podman reads, weakest first."""
    own = place.named("CONTAINERS_CONF")
    if own is not None:
        yield own
    else:
        folders = [place.at("/usr/share/containers"), place.at("/etc/containers")]
        configuration = place.configuration()
        if configuration is not None:
            folders.append(configuration / "containers")
        for folder in folders:
            yield folder / "containers.conf"
            yield from sorted((folder / "containers.conf.d").glob("*.conf"))
    override = place.named("CONTAINERS_CONF_OVERRIDE")
    if override is not None:
        yield override


# ---------------------------------------------------------------------------------------------------------------- files


def _json(path: Path) -> Mapping[str, object]:
    """Read a file of the docker program; like that program, take one that is broken for an empty one."""
    try:
        found = json.loads(_bytes(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _podman_json(path: Path) -> Mapping[str, object]:
    return _podman_file(path, json.loads)


def _toml(path: Path) -> Mapping[str, object]:
    import tomllib

    return _podman_file(path, lambda data: tomllib.loads(data.decode()))


def _podman_file(path: Path, parse: Callable[[bytes], object]) -> Mapping[str, object]:
    """Read a file of Podman's. One that is broken stops Podman too, and might have named another engine."""
    try:
        found = parse(_bytes(path))
        if not isinstance(found, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise errors.EngineUnavailable(
            f"Podman's settings file {path} cannot be read, so where Podman is remains unknown.",
            hint="mend the file ('podman info' says what is wrong with it), or set CONTAINER_HOST",
        ) from error
    return found


def _bytes(path: Path) -> bytes:
    # Not waited for: a pipe in a file's place must stop nobody.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError
        return file.read(_LONGEST_FILE_BYTES)


def _table(found: Mapping[str, object], key: str) -> Mapping[str, object]:
    inner = found.get(key)
    return inner if isinstance(inner, dict) else {}


def _tables(found: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    return {name: one for name, one in found.items() if isinstance(one, dict)}


def _text(found: Mapping[str, object], key: str, place: Place) -> str | None:
    value = found.get(key)
    return expanded(value, place.home) if isinstance(value, str) else None
