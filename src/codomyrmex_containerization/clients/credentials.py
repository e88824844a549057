"""Which credentials does the user have for a registry? As Docker and Podman keep them: in files, or with helper programs.

Sources: https://docs.docker.com/reference/cli/docker/login/, containers-auth.json(5),
https://github.com/docker/docker-credential-helpers
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream

from codomyrmex_containerization import errors, process, threads

DOCKER_HUB = "docker.io"
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
_TOKEN_USER = "<token>"  # noqa: S105  how helpers mark an identity token
_MOST_FILE_BYTES = 1024 * 1024
_MOST_HELPER_BYTES = 64 * 1024
_HELPER_SECONDS = 30.0
_READ_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Credential:
    """What opens a registry: a user and a password, an identity token, or a token that is used as it is."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of a header with user and password."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def secrets(self) -> Iterator[str]:
        """Return every text that nobody may see."""
        yield from (one for one in (self.password, self.identity_token, self.registry_token) if one)
        if self.password:
            yield self.basic.removeprefix("Basic ")


class Keyring:
    """The user's credentials; looked up when a registry asks for them."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        learn: Callable[[str], None],
        helper_seconds: float = _HELPER_SECONDS,
    ) -> None:
        self._environ = environ
        self._learn = learn
        self._helper_seconds = helper_seconds
        self._known: dict[str, Credential | None] = {}
        self._looking = anyio.Lock()

    async def find(self, registry: str, path: str) -> Credential | None:
        """Return the credentials for a repository; None when there are none.

        Raises InvalidArgument (a damaged file), CommandFailed, DeadlineExceeded (a helper program).
        """
        key = f"{registry}/{path}"
        async with self._looking:  # of many requests side by side one asks the helper
            if key not in self._known:
                found = await self._look(registry, path)
                for one in found.secrets() if found is not None else ():
                    self._learn(one)
                self._known[key] = found
        return self._known[key]

    async def _look(self, registry: str, path: str) -> Credential | None:
        for file in files(self._environ):
            table = await threads.run(
                functools.partial(read, file), deadline_seconds=_READ_SECONDS, what=f"reading {file}"
            )
            if table is None:
                if str(file) == self._environ.get("REGISTRY_AUTH_FILE"):
                    raise _damaged(file, "it is not there")
                continue
            found = await self._in_file(file, table, registry, path)
            if found is not None:
                return found
        return None

    async def _in_file(self, file: Path, table: Mapping[str, Any], registry: str, path: str) -> Credential | None:
        helper = _for_registry(_table(table.get("credHelpers"), file), registry)
        store = table.get("credsStore")
        for one in (helper, store):
            if one:
                found = await self._ask(one, registry, file)
                if found is not None or one is helper:
                    return found
        auths = {_normal(name): entry for name, entry in _table(table.get("auths"), file).items()}
        for key in _keys(registry, path):
            if key in auths:
                found = _credential(_table(auths[key], file), file)
                if found is not None:
                    return found
        return None

    async def _ask(self, helper: object, registry: str, file: Path) -> Credential | None:
        """Ask a helper program; the registry's name goes to its standard input, the answer is shown to nobody."""
        program = _helper(helper, file)
        name, server = program.name, server_of(registry)
        try:
            with anyio.fail_after(self._helper_seconds):
                status, said = await self._run(str(program), server)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"The credential helper {name} took longer than {self._helper_seconds:g} seconds.",
                hint=f"run `echo {server} | {name} get` in a terminal: does it wait for somebody?",
            ) from error
        if status != 0:
            if b"credentials not found" in said:
                return None
            raise _failed(name, f"it ended with {status}", server)
        try:
            answer = json.loads(said)
            user, secret = answer["Username"], answer["Secret"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise _failed(name, "its answer is none", server) from error
        if not isinstance(user, str) or not isinstance(secret, str):
            raise _failed(name, "its answer is none", server)
        if not secret:
            return None
        return Credential(identity_token=secret) if user == _TOKEN_USER else Credential(user, secret)

    async def _run(self, program: str, server: str) -> tuple[int, bytes]:
        async with process.run([program, "get"], env=self._environ, stdin=True) as running:
            given = running.process.stdin
            assert given is not None  # noqa: S101  it was asked for
            try:
                await given.send(f"{server}\n".encode())
                await given.aclose()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # one that does not read may answer all the same
            said = await whole(running.process.stdout)
            return (await running.wait(), said) if said is not None else (0, b"")


def _failed(name: str, reason: str, server: str) -> errors.CommandFailed:
    return errors.CommandFailed(
        f"The credential helper {name} failed: {reason}.",
        hint=f"run `echo {server} | {name} get` in a terminal to see what it says",
    )


async def whole(stream: ByteReceiveStream | None) -> bytes | None:
    """Return all of a short answer; None for a long one, which is none."""
    found = b""
    if stream is not None:
        async for piece in stream:
            found += piece
            if len(found) > _MOST_HELPER_BYTES:
                return None
    return found


# ---------------------------------------------------------------------------------------------------------------- files


def files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Return where credentials may be, the strongest first."""
    named = environ.get("REGISTRY_AUTH_FILE")
    if named:
        yield Path(named)
        return
    home = Path(environ.get("HOME") or "/nonexistent")
    runtime = environ.get("XDG_RUNTIME_DIR")
    yield (Path(runtime) if runtime else Path(f"/run/containers/{os.getuid()}")) / (
        "containers/auth.json" if runtime else "auth.json"
    )
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json"
    yield Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def read(file: Path) -> Mapping[str, Any] | None:
    """Read a file of credentials; None when there is none. Nothing of what is in it gets into an error."""
    try:
        with open(
            file, "rb", opener=lambda name, _: os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        ) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise _damaged(file, "it is no regular file")
            data = opened.read(_MOST_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _damaged(file, (error.strerror or "it cannot be opened").lower()) from error
    if len(data) > _MOST_FILE_BYTES:
        raise _damaged(file, "it is too large")
    if not data.strip():
        return {}
    try:
        return _table(json.loads(data), file)
    except (ValueError, RecursionError):
        raise _damaged(file, "it is no JSON") from None


def _credential(entry: Mapping[str, Any], file: Path) -> Credential | None:
    user, password = _text(entry, "username", file), _text(entry, "password", file)
    packed = _text(entry, "auth", file)
    if packed:
        try:
            plain = base64.b64decode(packed, validate=False).decode().rstrip("\0")
        except (binascii.Error, ValueError):
            raise _damaged(file, "an entry's auth in it is none") from None
        user, _, password = plain.partition(":")
    found = Credential(user, password, _text(entry, "identitytoken", file), _text(entry, "registrytoken", file))
    if found.identity_token or found.registry_token or (found.user and found.password):
        return found
    return None  # an empty entry says that a helper has it


def _keys(registry: str, path: str) -> Iterator[str]:
    """Return what an entry for a repository may be called, the closest first."""
    parts = path.split("/")
    for name in _HUB_NAMES if registry == DOCKER_HUB else (registry,):
        for count in range(len(parts), -1, -1):
            yield "/".join((name, *parts[:count]))


def _normal(name: str) -> str:
    """Return a key of `auths` without what says nothing."""
    bare = name.partition("://")[2] if "://" in name else name
    bare = bare.rstrip("/")
    return re.sub(r"/v[12]\Z", "", bare)


def _for_registry(helpers: Mapping[str, Any], registry: str) -> object:
    wanted = _HUB_NAMES if registry == DOCKER_HUB else (registry,)
    return next((helper for name, helper in helpers.items() if _normal(name) in wanted), None)


def server_of(registry: str) -> str:
    """Return what files and helper programs call a registry."""
    return _HUB_KEY if registry == DOCKER_HUB else registry


def helper_of(table: Mapping[str, Any], file: Path, registry: str) -> Path | None:
    """Return the helper program that a file of credentials names for a registry. Raises InvalidArgument, CommandFailed."""
    named = _for_registry(_table(table.get("credHelpers"), file), registry) or table.get("credsStore")
    return _helper(named, file) if named else None


def entries_of(table: Mapping[str, Any], file: Path, registry: str) -> list[str]:
    """Return the names of the entries that a file of credentials has for a whole registry."""
    wanted = _HUB_NAMES if registry == DOCKER_HUB else (registry,)
    return [name for name in _table(table.get("auths"), file) if _normal(name) in wanted]


def _helper(named: object, file: Path) -> Path:
    if not isinstance(named, str) or not _HELPER_NAME.match(named):
        raise _damaged(file, "the name of a credential helper in it is none")
    program = process.find(f"docker-credential-{named}")
    if program is None:
        raise errors.CommandFailed(
            f"The credential helper docker-credential-{named}, which {file} names, is not installed.",
            hint="install it, or take it out of that file and log in again",
        )
    return program


def _table(raw: object, file: Path) -> Mapping[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise _damaged(file, "something in it is no object")
    return raw


def _text(entry: Mapping[str, Any], name: str, file: Path) -> str:
    value = entry.get(name) or ""
    if not isinstance(value, str):
        raise _damaged(file, f"the {name} of an entry in it is no text")
    return value


def _damaged(file: Path, reason: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"The file of credentials {file} cannot be used: {reason}.", hint="mend it, or log in again"
    )
