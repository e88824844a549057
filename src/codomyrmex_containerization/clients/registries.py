"""How is a registry reached? Its address, whether TLS may be missing, its authorities and certificates, its mirrors, the proxy."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.clients import addresses, credentials
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.settings import RegistrySettings

if TYPE_CHECKING:
    import httpx2

_HUB_HOST = "registry-1.docker.io"
_LOAD_SECONDS = 10.0
_MOST_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often something is tried."""

    connect_seconds: float = 15.0
    silence_seconds: float = 60.0  # a registry that says nothing for so long is taken for broken
    attempts: int = 5
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """A registry: its name in references, and where it is."""

    name: str
    authority: str
    is_insecure: bool

    @property
    def host(self) -> str:
        """The host without its port."""
        return addresses.host_of(self.authority)

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine by its very name."""
        return addresses.is_loopback_name(self.host)


class Places:
    """Where registries are, by the settings; read once."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._insecure = frozenset(one.lower() for one in settings.insecure)
        self._mirrors = [_mirror(one) for one in settings.mirrors]
        self._token_hosts = frozenset(one.lower() for one in settings.token_hosts)

    def site(self, name: str) -> Site:
        """Return the registry of this name."""
        found = name.lower()
        authority = _HUB_HOST if found == credentials.DOCKER_HUB else found
        return Site(found, authority, found in self._insecure or addresses.host_of(found) in self._insecure)

    def mirrors(self, name: str) -> tuple[Site, ...]:
        """Return where to look for a registry's images before asking itself."""
        return tuple(self.site(mirror) for registry, mirror in self._mirrors if registry == name.lower())

    def gives_tokens(self, site: Site, host: str) -> bool:
        """Say whether a host may be given a registry's credentials for a token."""
        return self.is_listed(host) or addresses.is_related(site.host, host)

    def is_listed(self, host: str) -> bool:
        """Say whether the user has named the host as one that gives tokens."""
        return host.lower() in self._token_hosts


def _mirror(text: str) -> tuple[str, str]:
    name, sign, mirror = text.lower().partition("=")
    try:
        if not sign:
            raise errors.InvalidArgument("")
        for one in (name, mirror):
            if reference.parse(f"{one}/a").domain != one:
                raise errors.InvalidArgument("")
    except errors.InvalidArgument:
        raise errors.InvalidArgument(
            f"registries.mirrors: {text[:80]!r} is no mirror.",
            hint="write it as REGISTRY=MIRROR, hosts without a scheme",
        ) from None
    return name, mirror


class Connections:
    """The connections of one piece of work; each host has its own, with what the user keeps for it."""

    def __init__(self, settings: RegistrySettings, environ: Mapping[str, str], pace: Pace) -> None:
        self._folders = tuple(_expanded(one, environ) for one in settings.certificates)
        self._environ = environ
        self._pace = pace
        self._clients: dict[tuple[str, str, bool], httpx2.AsyncClient] = {}
        self._making = anyio.Lock()

    async def client(self, scheme: str, authority: str, *, verify: bool = True) -> httpx2.AsyncClient:
        """Return what sends requests to a host. Raises InvalidArgument for certificates or a proxy that cannot be used."""
        key = (scheme, authority, verify)
        async with self._making:
            if key not in self._clients:
                self._clients[key] = await self._made(scheme, authority, verify=verify)
        return self._clients[key]

    async def _made(self, scheme: str, authority: str, *, verify: bool) -> httpx2.AsyncClient:
        import httpx2

        context: ssl.SSLContext | bool = False
        if scheme == "https":
            context = await threads.run(
                lambda: self._context(authority, verify=verify),
                deadline_seconds=_LOAD_SECONDS,
                what="loading certificates",
            )
        try:
            return httpx2.AsyncClient(
                verify=context,
                proxy=self.proxy(scheme, authority),
                trust_env=False,
                follow_redirects=False,
                timeout=httpx2.Timeout(self._pace.silence_seconds, connect=self._pace.connect_seconds, pool=None),
                limits=httpx2.Limits(max_connections=_MOST_CONNECTIONS, keepalive_expiry=30.0),
                headers={"accept-encoding": "identity", "user-agent": "codomyrmex-containerization"},
            )
        except (httpx2.InvalidURL, ValueError, ImportError) as error:
            raise errors.InvalidArgument(
                "The proxy that the environment names cannot be used.",
                hint="mend HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: http://host:port, or unset it",
            ) from error

    async def aclose(self) -> None:
        """Close them all."""
        while self._clients:
            await self._clients.popitem()[1].aclose()

    def has_certificates(self, authority: str) -> bool:
        """Say whether the user keeps something for a host: then it has TLS."""
        return any((folder / authority).is_dir() for folder in self._folders)

    def proxy(self, scheme: str, authority: str) -> str | None:
        """Return the proxy that the environment names for a host; this machine is reached without one."""
        host = addresses.host_of(authority)
        if addresses.is_loopback_name(host) or self._is_near(host, authority):
            return None
        # HTTP_PROXY in capitals could be a header of somebody's request where we run as a CGI program: Go and curl agree.
        names = ("https_proxy", "HTTPS_PROXY") if scheme == "https" else ("http_proxy",)
        return next((self._environ[one] for one in (*names, "all_proxy", "ALL_PROXY") if self._environ.get(one)), None)

    def _is_near(self, host: str, authority: str) -> bool:
        listed = self._environ.get("no_proxy") or self._environ.get("NO_PROXY") or ""
        for entry in (one.strip().lower().removeprefix("*") for one in listed.split(",")):
            bare = entry.removeprefix(".")
            if listed.strip() == "*" or (bare and (bare in (host, authority) or host.endswith(f".{bare}"))):
                return True
        return False

    def _context(self, authority: str, *, verify: bool) -> ssl.SSLContext:
        import httpx2

        context = httpx2.create_ssl_context(verify=verify)
        for folder in self._folders:
            place = folder / authority
            if place.is_dir():
                _load(context, place, verify=verify)
        return context


def _load(context: ssl.SSLContext, place: Path, *, verify: bool) -> None:
    """Take what a folder of `certs.d` holds: authorities as *.crt, own certificates as *.cert with *.key beside them."""
    now = place
    try:
        for now in sorted(place.iterdir()):
            if now.suffix == ".crt" and verify:
                context.load_verify_locations(now)
            elif now.suffix == ".cert":
                key = now.with_suffix(".key")
                # Without a password: nobody is asked for one here.
                context.load_cert_chain(now, key if os.path.lexists(key) else None, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise errors.InvalidArgument(
            f"The certificate {now} cannot be used.", hint="mend it or take it away: PEM, the key without a password"
        ) from error


def _expanded(text: str, environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME") or "/nonexistent"
    return Path(home) / text[2:] if text.startswith("~/") else Path(text)


def is_own(url: str, scheme: str, authority: str) -> bool:
    """Say whether an address belongs to a host: same scheme, name and port."""
    parts = urlsplit(url)
    return parts.scheme == scheme and addresses.authority(parts) == authority
