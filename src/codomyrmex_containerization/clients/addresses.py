"""Which hosts may a registry send us to? Loopback, private networks and other people's domains are not for it to choose."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import anyio

from codomyrmex_containerization import errors

Place = Literal["loopback", "forbidden", "private", "public"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_RESOLVE_SECONDS = 10.0
# Below these, each name is somebody else's: what follows them belongs to no common owner. A short list in place of the
# public suffix list: a registry whose tokens come from elsewhere is named in registries.token_hosts.
_SHARED = frozenset(
    "amazonaws.com azurecr.io azurewebsites.net azure-api.net cloudapp.net cloudfront.net cloudapp.azure.com github.io "
    "gitlab.io herokuapp.com appspot.com run.app web.app firebaseapp.com pages.dev workers.dev r2.dev netlify.app "
    "vercel.app fly.dev onrender.com ngrok.io ngrok.app ngrok-free.app trycloudflare.com duckdns.org dyndns.org "
    "no-ip.org ddns.net digitaloceanspaces.com ondigitalocean.app windows.net pkg.dev nip.io sslip.io "
    "railway.app deno.dev glitch.me repl.co surge.sh ts.net".split()
)
_SECOND_LEVEL = frozenset(
    "ac co com edu gob gouv gov gv id info ltd me mil ne net nhs nom or org plc police sch go gr lg ed ad".split()
)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\.?\Z")


def literal(host: str) -> Address | None:
    """Return the address that a host is written as, None for a name."""
    try:
        found = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found


def place_of(address: Address) -> Place:
    """Say where an address is; `forbidden` is link-local, multicast and what is nobody's."""
    if address.is_loopback:
        return "loopback"
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
        return "forbidden"
    return "public" if address.is_global else "private"


def is_loopback_name(host: str) -> bool:
    """Say whether a host, without its port, is this machine by its very name."""
    address = literal(host)
    return address.is_loopback if address is not None else host.lower().rstrip(".") == "localhost"


async def resolve(host: str, port: int) -> tuple[Address, ...]:
    """Return a host's addresses. Raises EngineUnavailable when it has none."""
    written = literal(host)
    if written is not None:
        return (written,)
    try:
        with anyio.fail_after(_RESOLVE_SECONDS):
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise errors.EngineUnavailable(
            f"The host {host} has no address.", hint="check its name and this machine's network"
        ) from error
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    known = tuple(address for address in map(literal, texts) if address is not None)
    if not known:
        raise errors.EngineUnavailable(f"The host {host} has no address.", hint="check its name")
    return known


def split(url: str) -> SplitResult:
    """Take a URL apart that a registry gave. Raises InvalidArgument for one that cannot be used."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise unusable() from error
    is_host = literal(host) is not None or bool(_HOST.match(host))
    if parts.scheme not in ("http", "https") or not is_host or parts.username or parts.password or port == 0:
        raise unusable()
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > 8000:
        raise unusable()
    return parts


def unusable() -> errors.InvalidArgument:
    """Return the error for an address that a registry gave and nobody can use."""
    return errors.InvalidArgument(
        "The registry names an address that cannot be used.", hint="tell whoever runs the registry"
    )


def authority(parts: SplitResult) -> str:
    """Return host and port as they stand in a URL, the port of the scheme left out."""
    host = (parts.hostname or "").lower().rstrip(".")
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}[parts.scheme]
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"


def host_of(authority: str) -> str:
    """Return the host of `host[:port]`."""
    return (urlsplit(f"//{authority}").hostname or "").rstrip(".")


def port_of(authority: str, scheme: str) -> int:
    """Return the port of `host[:port]`."""
    return urlsplit(f"//{authority}").port or {"http": 80, "https": 443}[scheme]


def registrable(host: str) -> str:
    """Return the part of a host's name that somebody has registered, as far as that can be told; an address is its own."""
    if literal(host) is not None:
        return host
    labels = host.lower().rstrip(".").split(".")
    if any(".".join(labels[-count:]) in _SHARED for count in (2, 3)):
        return ".".join(labels)  # regions and customers alike are labels there: only the very host is its owner's
    if len(labels) >= 3 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL:
        return ".".join(labels[-3:])
    return ".".join(labels[-2:])


def is_related(one: str, other: str) -> bool:
    """Say whether two hosts have the same owner, as far as names tell."""
    return one.lower() == other.lower() or ("." in one and registrable(one) == registrable(other))
