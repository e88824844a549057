"""How does the user log in to a registry, and out again? Checked there, then kept where Docker and Podman look as well."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio

from codomyrmex_containerization import errors, process, threads
from codomyrmex_containerization.clients import credentials, distribution, transport
from codomyrmex_containerization.clients.credentials import Credential
from codomyrmex_containerization.models.settings import RegistrySettings

_HELPER_SECONDS = 30.0
_FILE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Place:
    """A file of credentials: what is in it, and the helper program that it names for a registry."""

    file: Path
    table: Mapping[str, Any]
    helper: Path | None
    entries: list[str]


class _Given(credentials.Keyring):
    """Credentials that somebody just typed."""

    def __init__(self, credential: Credential) -> None:
        super().__init__({}, learn=lambda secret: None)
        self._credential = credential

    async def find(self, registry: str, path: str) -> Credential | None:
        """Return them, whatever is asked for: they are used for one registry only."""
        return self._credential


async def login(registry: str, credential: Credential, settings: RegistrySettings, environ: Mapping[str, str]) -> str:
    """Try the credentials at their registry, keep them and say where.

    Raises Unauthorized (they are wrong), EngineUnavailable, InvalidArgument (a damaged file), CommandFailed (a helper program).
    """
    client = distribution.Client(settings, environ=environ, learn=lambda secret: None, keyring=_Given(credential))
    async with client.work() as work:
        way = work.registry(registry)
        async with way.send(transport.Call("GET", "/v2/", f"the login to {registry}")):
            pass
    place = await _place(registry, environ)
    server = credentials.server_of(registry)
    if place.helper is not None:
        said = {"ServerURL": server, "Username": credential.user, "Secret": credential.password}
        await _tell(place.helper, "store", json.dumps(said), environ)
        return f"the credential helper {place.helper.name}"
    packed = base64.b64encode(f"{credential.user}:{credential.password}".encode()).decode()
    kept = {name: entry for name, entry in (place.table.get("auths") or {}).items() if name not in place.entries}
    await _write(place.file, {**place.table, "auths": {**kept, server: {"auth": packed}}})
    return str(place.file)


async def logout(registry: str, environ: Mapping[str, str]) -> list[str]:
    """Forget the credentials of a registry wherever they are kept, and say where that was.

    Raises NotFound (there are none), InvalidArgument (a damaged file), CommandFailed (a helper program).
    """
    found: list[str] = []
    for place in await _places(registry, environ):
        if place.helper is not None and await _holds(place.helper, registry, environ):
            await _tell(place.helper, "erase", credentials.server_of(registry), environ)
            found.append(f"the credential helper {place.helper.name}")
        if place.entries:
            kept = {name: entry for name, entry in place.table["auths"].items() if name not in place.entries}
            await _write(place.file, {**place.table, "auths": kept})
            found.append(str(place.file))
    if not found:
        raise errors.NotFound(
            f"No credentials for {registry} are kept.", hint="check the registry's name: host or host:port"
        )
    return found


async def _places(registry: str, environ: Mapping[str, str]) -> list[_Place]:
    def look() -> list[_Place]:
        found = []
        for file in credentials.files(environ):
            table = credentials.read(file)
            if table is not None:
                entries = credentials.entries_of(table, file, registry)
                found.append(_Place(file, table, credentials.helper_of(table, file, registry), entries))
        return found

    return await threads.run(look, deadline_seconds=_FILE_SECONDS, what="reading the files of credentials")


async def _place(registry: str, environ: Mapping[str, str]) -> _Place:
    """Return where new credentials belong: where the registry is known already, else where Docker keeps its own."""
    places = await _places(registry, environ)
    known = next((one for one in places if one.helper is not None or one.entries), None)
    if known is not None:
        return known
    usual = list(credentials.files(environ))[-1]
    return next((one for one in places if one.file == usual), _Place(usual, {}, None, []))


async def _write(file: Path, table: Mapping[str, Any]) -> None:
    """Replace a file at once, readable by its owner alone."""
    data = json.dumps(table, indent="\t").encode()

    def write() -> None:
        target = Path(os.path.realpath(file))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")  # 0600
        try:
            with os.fdopen(made, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    try:
        await threads.run(write, deadline_seconds=_FILE_SECONDS, what=f"writing {file}")
    except OSError as error:
        raise errors.InvalidArgument(
            f"{file} cannot be written: {(error.strerror or str(error)).lower()}.",
            hint="mend its folder's permissions, or name another file with REGISTRY_AUTH_FILE",
        ) from error


async def _holds(helper: Path, registry: str, environ: Mapping[str, str]) -> bool:
    status, said = await _run(helper, "get", credentials.server_of(registry), environ)
    if status == 0:
        return True
    if b"credentials not found" in said:
        return False
    raise _failed(helper, status)


async def _tell(helper: Path, action: Literal["store", "erase"], said: str, environ: Mapping[str, str]) -> None:
    status, _ = await _run(helper, action, said, environ)
    if status != 0:
        raise _failed(helper, status)


def _failed(helper: Path, status: int) -> errors.CommandFailed:
    return errors.CommandFailed(
        f"The credential helper {helper.name} failed: it ended with {status}.",
        hint=f"run `{helper.name} list` in a terminal to see what it says",
    )


async def _run(helper: Path, action: str, said: str, environ: Mapping[str, str]) -> tuple[int, bytes]:
    """Run a helper; what is secret goes to its standard input, what it says is shown to nobody."""
    try:
        with anyio.fail_after(_HELPER_SECONDS):
            async with process.run([str(helper), action], env=environ, stdin=True) as running:
                given = running.process.stdin
                assert given is not None  # noqa: S101  it was asked for
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await given.send(said.encode())
                    await given.aclose()
                answer = await credentials.whole(running.process.stdout)
                return await running.wait(), answer or b""
    except TimeoutError as error:
        raise errors.DeadlineExceeded(
            f"The credential helper {helper.name} took longer than {_HELPER_SECONDS:g} seconds.",
            hint=f"run `{helper.name} list` in a terminal: does it wait for somebody?",
        ) from error
