"""How does a registry come to trust us? Basic, or a Bearer token that somebody gives who may be asked for it.

Source: https://distribution.github.io/distribution/spec/auth/token/ and .../auth/oauth/
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import addresses, credentials, registries, replies

if TYPE_CHECKING:
    import httpx2

_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9-]*)(?=[\s,]|\Z)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_MOST_HEADER_CHARACTERS = 8000
_MOST_TOKEN_BYTES = 256 * 1024
_SHORTEST_LIFE_SECONDS = 60.0
_MARGIN_SECONDS = 10.0
_MOST_SCOPES = 10
_CLIENT = "codomyrmex-containerization"
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")

Send = Callable[[str, str, Mapping[str, str], bytes | None, bool], Awaitable["httpx2.Response"]]


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry wants: the scheme, and what belongs to it."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Kept:
    token: str = field(repr=False)
    until: float


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read the headers of a refusal."""
    found: list[Challenge] = []
    for header in headers:
        text = header[:_MOST_HEADER_CHARACTERS]
        at = 0
        while match := _SCHEME.match(text, at):
            at = match.end()
            given: dict[str, str] = {}
            while pair := _PARAMETER.match(text, at):
                given[pair[1].lower()] = re.sub(r"\\(.)", r"\1", pair[2]) if pair[2] is not None else pair[3]
                at = pair.end()
            found.append(Challenge(match[1].lower(), given))
    return found


def scope(path: str, *actions: str) -> str:
    """Return how the right to do something with a repository is called."""
    return f"repository:{path}:{','.join(actions)}"


class Authority:
    """Authorises the requests to one registry."""

    def __init__(
        self,
        site: registries.Site,
        path: str,
        *,
        keyring: credentials.Keyring,
        places: registries.Places,
        learn: Callable[[str], None],
    ) -> None:
        self._site = site
        self._path = path
        self._keyring = keyring
        self._places = places
        self._learn = learn
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], _Kept] = {}
        self._asking = anyio.Lock()
        self.is_known = False  # whether credentials were found

    async def header(self, scopes: Sequence[str], send: Send) -> str | None:
        """Return what to send along, as far as it is known what the registry wants."""
        challenge = self._challenge
        if challenge is None:
            return None
        credential = await self._credential()
        if challenge.scheme == "basic":
            return credential.basic if credential is not None and credential.user else None
        if credential is not None and credential.registry_token:
            return f"Bearer {credential.registry_token}"
        key = tuple(sorted(scopes))
        async with self._asking:  # of many requests side by side one asks for the token of all
            kept = self._tokens.get(key)
            if kept is None or kept.until <= time.monotonic():
                kept = self._tokens[key] = await self._ask(challenge, key, credential, send)
        return f"Bearer {kept.token}"

    async def refused(self, headers: Iterable[str], scopes: Sequence[str], used: str | None) -> bool:
        """Hear that a request with this header was refused; say whether another try could do better."""
        found = {one.scheme: one for one in challenges(headers)}
        challenge = found.get("bearer") or found.get("basic")
        if challenge is None or (challenge.scheme == "bearer" and not challenge.parameters.get("realm")):
            return False
        self._challenge = challenge
        credential = await self._credential()
        if challenge.scheme == "basic":
            return used is None and credential is not None and bool(credential.user)
        if credential is not None and credential.registry_token:
            return used is None
        key = tuple(sorted(scopes))
        if key in self._tokens and used == f"Bearer {self._tokens[key].token}":
            del self._tokens[key]  # another one may have been asked for already
        return True

    async def _credential(self) -> credentials.Credential | None:
        found = await self._keyring.find(self._site.name, self._path)
        self.is_known = found is not None
        return found

    async def _ask(
        self, challenge: Challenge, scopes: Sequence[str], credential: credentials.Credential | None, send: Send
    ) -> _Kept:
        asked = replies.Asked(self._site.name, "a token", self.is_known)
        realm = challenge.parameters["realm"]
        is_owned = self._judge(realm, asked)
        pairs = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        pairs += [("scope", one) for one in self._scopes(challenge, scopes)]
        if credential is not None and credential.identity_token:
            form = {name: value for name, value in pairs if name == "service"}
            form |= {"grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": credential.identity_token}
            body = urlencode({**form, "scope": " ".join(self._scopes(challenge, scopes))}).encode()
            sent = {"content-type": "application/x-www-form-urlencoded"}
            response = await send("POST", realm, sent, body, is_owned)
        else:
            headers = {}
            if credential is not None and credential.user:
                headers["authorization"] = credential.basic
                pairs.append(("account", credential.user))
            mark = "&" if "?" in realm else "?"
            response = await send("GET", f"{realm}{mark}{urlencode(pairs)}", headers, None, is_owned)
        return self._read(response.status_code, await limited(response, _MOST_TOKEN_BYTES, asked), asked)

    def _judge(self, realm: str, asked: replies.Asked) -> bool:
        """Say whether who gives tokens is the registry itself, or one that the user named. Raises Refused, InvalidArgument."""
        parts = addresses.split(realm)
        host = (parts.hostname or "").rstrip(".")
        where = f"{parts.scheme}://{addresses.authority(parts)}"
        is_same = host.lower() == self._site.host.lower()
        is_near = self._site.is_loopback and addresses.is_loopback_name(host)
        if parts.scheme != "https" and not (is_near or (is_same and self._site.is_insecure)):
            raise replies.misled(
                asked,
                where,
                "credentials go nowhere without TLS",
                "tell whoever runs the registry to give tokens by https",
            )
        if not (is_near or self._places.gives_tokens(self._site, host)):
            raise replies.misled(
                asked,
                where,
                "it is another domain than the registry's",
                f"if that host is to have your credentials for {self._site.name}, list it: "
                f"registries.token_hosts = [{host!r}]",
            )
        return is_same or is_near or self._places.is_listed(host)

    def _scopes(self, challenge: Challenge, wanted: Sequence[str]) -> list[str]:
        """Return what to ask for: what is wanted, and what the registry says that takes for the same things."""
        told = challenge.parameters.get("scope", "").split()
        if not wanted:
            return told[:_MOST_SCOPES]
        own = {name: set(actions.split(",")) for name, _, actions in (one.rpartition(":") for one in wanted)}
        more = []
        for one in told:
            name, _, actions = one.rpartition(":")
            if name in own and not set(actions.split(",")) <= own[name]:
                more.append(one)
        return [*wanted, *more[:_MOST_SCOPES]]

    def _read(self, status: int, body: bytes, asked: replies.Asked) -> _Kept:
        if status != 200:
            raise _denied(asked, status, body)
        try:
            table = json.loads(body)
            token = table.get("token") or table.get("access_token")
            life = table.get("expires_in", _SHORTEST_LIFE_SECONDS)
        except (ValueError, RecursionError, AttributeError) as error:
            raise replies.nonsense(asked, "it is no token") from error
        if not isinstance(token, str) or not _TOKEN.match(token):
            raise replies.nonsense(asked, "it is no token")
        self._learn(token)
        seconds = float(life) if type(life) in (int, float) and 0 < life < 1e9 else _SHORTEST_LIFE_SECONDS
        return _Kept(token, time.monotonic() + max(seconds, _SHORTEST_LIFE_SECONDS) - _MARGIN_SECONDS)


def _denied(asked: replies.Asked, status: int, body: bytes) -> errors.ContainerizationError:
    if status in (400, 401, 403, 404):
        return replies.problem(asked, 401, body)
    return replies.problem(asked, status, body)


async def limited(response: httpx2.Response, most_bytes: int, asked: replies.Asked) -> bytes:
    """Read a short answer and close it. Raises EngineUnavailable for a long one."""
    found = bytearray()
    try:
        async for piece in response.aiter_raw():
            found += piece
            if len(found) > most_bytes:
                raise replies.nonsense(asked, f"it is longer than {most_bytes:,} bytes")
    finally:
        await response.aclose()
    return bytes(found)
