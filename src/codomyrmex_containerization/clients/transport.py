"""How does a request get to a registry and its answer back, whatever fails between? Authorised, redirected with care, tried again."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import addresses, registries, replies, tokens

if TYPE_CHECKING:
    import httpx2

Content = Callable[[], bytes | AsyncIterable[bytes]]

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_MOST_HOPS = 6
_MOST_RENEWALS = 2
_PLAIN_SIGNS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_MESSAGE",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
)

# What they log has addresses with signatures in them, and the headers of answers.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Call:
    """One request: the right that it takes, what it is for in words, and which answers are fine."""

    method: str
    target: str
    what: str
    scopes: tuple[str, ...] = ()
    headers: Mapping[str, str] | None = None
    content: Content | None = None
    good: tuple[int, ...] = (200,)
    repeats: bool = True


class Transport:
    """The way to one registry, for one piece of work."""

    def __init__(
        self,
        site: registries.Site,
        *,
        connections: registries.Connections,
        authority: tokens.Authority,
        pace: registries.Pace,
    ) -> None:
        self.site = site
        self.pace = pace
        self._connections = connections
        self._authority = authority
        self._scheme = ""
        self._was_there = False
        self._finding = anyio.Lock()
        self._nearest: frozenset[addresses.Place] | None = None

    def asked(self, what: str) -> replies.Asked:
        """Return what errors say about a request."""
        return replies.Asked(self.site.name, what, self._authority.is_known)

    async def url(self, target: str) -> str:
        """Return the whole address of something on the registry, or of what it named itself."""
        if not self._scheme:
            async with self._finding:
                self._scheme = self._scheme or await self._find_scheme()
        return urljoin(f"{self._scheme}://{self.site.authority}/", target)

    @asynccontextmanager
    async def send(self, call: Call) -> AsyncIterator[httpx2.Response]:
        """Send a request and lend its answer, whose body is still to be read.

        Raises Unauthorized, NotFound, EngineUnavailable, Unsupported, InvalidArgument as the registry answers, Refused for a
        redirect to where nobody goes.
        """
        response = await self._answered(call)
        try:
            yield response
        finally:
            await response.aclose()

    async def body(self, call: Call, *, most_bytes: int) -> tuple[httpx2.Response, bytes]:
        """Send a request and return its answer with its short body; an answer that breaks off is asked for again."""

        for number in range(1, self.pace.attempts + 1):
            async with self.send(call) as response:
                try:
                    return response, await tokens.limited(response, most_bytes, self.asked(call.what))
                except broken() as error:
                    if number == self.pace.attempts:
                        raise replies.unreachable(self.asked(call.what), reason(error)) from error
            await self.pause(number)
        raise AssertionError  # the last round returns or raises

    # ------------------------------------------------------------------------------------------------------ attempts

    async def _answered(self, call: Call) -> httpx2.Response:
        failures = renewals = 0
        while True:
            used = await self._authority.header(call.scopes, self._send_for_token)
            response = await self._tried(call, used, failures)
            if response is None:
                failures += 1
                await self.pause(failures)
                continue
            if response.status_code in call.good:
                return response
            # What another host wants, where a redirect has led, is not for the registry's credentials.
            is_own = registries.is_own(str(response.request.url), self._scheme, self.site.authority)
            if response.status_code == 401 and is_own and renewals < _MOST_RENEWALS:
                renewals += 1
                headers = response.headers.get_list("www-authenticate")
                body = await self._error_body(response)
                if await self._authority.refused(headers, call.scopes, used):
                    continue
                raise replies.problem(self.asked(call.what), 401, body)
            failures += 1
            body = await self._error_body(response)
            if response.status_code not in _AGAIN or not call.repeats or failures >= self.pace.attempts:
                raise replies.problem(self.asked(call.what), response.status_code, body)
            await self.pause(failures, response.headers.get("retry-after"), call.what, response.status_code, body)

    async def _tried(self, call: Call, used: str | None, failures: int) -> httpx2.Response | None:
        """Send once; None: the connection broke, and it is worth another try."""
        try:
            response = await self._hop(call, used)
            self._was_there = True
            return response
        except broken() as error:
            if (found := certificate_problem(error)) is not None:
                raise replies.untrusted(self.asked(call.what), found) from error
            if not call.repeats or failures + 1 >= self._most_attempts(error):
                raise replies.unreachable(self.asked(call.what), reason(error)) from error
            return None

    def _most_attempts(self, error: Exception) -> int:
        """Say how often a failure is worth a try: who was never there is not waited for."""
        import httpx2

        if isinstance(error, httpx2.UnsupportedProtocol) or any(
            isinstance(one, socket.gaierror) for one in _chain(error)
        ):
            return 1
        is_out_of_reach = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError))
        return min(2, self.pace.attempts) if is_out_of_reach and not self._was_there else self.pace.attempts

    async def _error_body(self, response: httpx2.Response) -> bytes:
        try:
            return await tokens.limited(response, replies.MOST_ERROR_BYTES, self.asked("an error"))
        except errors.EngineUnavailable:
            return b""
        except broken():
            return b""

    async def pause(
        self, failures: int, retry_after: str | None = None, what: str = "", status: int = 0, body: bytes = b""
    ) -> None:
        """Wait before another try, as long as the registry wants. Raises EngineUnavailable when that is too long."""
        seconds = min(self.pace.first_wait_seconds * 2 ** (failures - 1), self.pace.longest_wait_seconds)
        wanted = _seconds(retry_after)
        if wanted is not None:
            if wanted > self.pace.longest_wait_seconds:
                error = replies.problem(self.asked(what), status, body)
                error.hint = f"it asks to be left alone for {wanted:.0f} seconds: try again then"
                raise error
            seconds = max(wanted, 0.0)
        await anyio.sleep(seconds)

    # ---------------------------------------------------------------------------------------------------------- hops

    async def _hop(self, call: Call, used: str | None) -> httpx2.Response:
        """Send a request, and follow where it leads. Credentials go to the registry alone."""
        url, method = await self.url(call.target), call.method
        for _ in range(_MOST_HOPS):
            headers = dict(call.headers or {})
            is_own = registries.is_own(url, self._scheme, self.site.authority)
            if is_own and used is not None:
                headers["authorization"] = used
            response = await self._request(method, url, headers, call, is_own=is_own)
            location = response.headers.get("location")
            if response.status_code not in _MOVED or method not in ("GET", "HEAD") or not location:
                return response
            await response.aclose()
            url = urljoin(url, location)
        raise replies.nonsense(self.asked(call.what), "it redirects without end")

    async def _request(
        self, method: str, url: str, headers: dict[str, str], call: Call, *, is_own: bool
    ) -> httpx2.Response:
        content = call.content() if call.content is not None else None
        if is_own:
            client = await self._connections.client(self._scheme, self.site.authority, verify=not self.site.is_insecure)
            return await client.send(client.build_request(method, url, headers=headers, content=content), stream=True)
        return await self._elsewhere(method, url, headers, content, call.what)

    async def _elsewhere(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        content: bytes | AsyncIterable[bytes] | None,
        what: str,
        *,
        is_trusted: bool = False,
    ) -> httpx2.Response:
        """Send a request to another host, at the very address that was judged. Raises Refused."""
        parts = addresses.split(url)
        authority, host = addresses.authority(parts), parts.hostname or ""
        if parts.scheme == "http" and self._scheme != "http":
            raise self._misled(what, f"http://{authority}", "from https nobody goes to http")
        is_unproven = self.site.is_insecure and self._is_host(host)
        client = await self._connections.client(parts.scheme, authority, verify=not is_unproven)
        if is_trusted or self._is_host(host):
            return await client.send(client.build_request(method, url, headers=headers, content=content), stream=True)
        if self._connections.proxy(parts.scheme, authority) is not None:
            # The proxy finds the address: what is written can be judged, what it resolves to cannot.
            written = addresses.literal(host)
            if written is not None or addresses.is_loopback_name(host):
                await self._judged(host, addresses.port_of(authority, parts.scheme), what)
            return await client.send(client.build_request(method, url, headers=headers, content=content), stream=True)
        return await self._pinned(client, method, parts, headers, content, what)

    async def _pinned(
        self,
        client: httpx2.AsyncClient,
        method: str,
        parts: SplitResult,
        headers: dict[str, str],
        content: bytes | AsyncIterable[bytes] | None,
        what: str,
    ) -> httpx2.Response:
        """Send a request to one of the addresses that were judged: nobody looks the name up again."""
        import httpx2

        authority, host = addresses.authority(parts), parts.hostname or ""
        found = await self._judged(host, addresses.port_of(authority, parts.scheme), what)
        port = f":{parts.port}" if parts.port else ""
        for address in found:
            shown = f"[{address}]" if address.version == 6 else str(address)
            request = client.build_request(
                method,
                parts._replace(netloc=f"{shown}{port}").geturl(),
                headers={**headers, "host": authority},
                content=content,
                extensions={"sni_hostname": host},
            )
            try:
                return await client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if address is found[-1] or certificate_problem(error) is not None:
                    raise
        raise AssertionError  # there is one address at least

    def _is_host(self, host: str) -> bool:
        return host.lower().rstrip(".") == self.site.host.lower()

    async def _judged(self, host: str, port: int, what: str) -> tuple[addresses.Address, ...]:
        """Return a host's addresses, if the registry may send us there. Raises Refused, EngineUnavailable."""
        found = await addresses.resolve(host, port)
        places = {addresses.place_of(one) for one in found}
        if not places <= {"public"}:
            near = await self._places_of_registry()
            allowed = {"public"} | ({"private"} if near & {"private", "loopback"} else set()) | (near & {"loopback"})
            for place in sorted(places - allowed):
                raise self._misled(what, host, f"it is at a {place} address, where the registry is not")
        return found

    async def _places_of_registry(self) -> frozenset[addresses.Place]:
        if self._nearest is None:
            found = await addresses.resolve(self.site.host, addresses.port_of(self.site.authority, self._scheme))
            self._nearest = frozenset(map(addresses.place_of, found))
        return self._nearest

    def _misled(self, what: str, where: str, why: str) -> errors.Refused:
        return replies.misled(self.asked(what), where, why, "tell whoever runs the registry, or use another")

    async def _send_for_token(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, is_trusted: bool
    ) -> httpx2.Response:
        """Send a request for a token; where to was judged by who asks."""

        for number in range(1, self.pace.attempts + 1):
            try:
                if registries.is_own(url, self._scheme, self.site.authority):
                    verify = not self.site.is_insecure
                    client = await self._connections.client(self._scheme, self.site.authority, verify=verify)
                    request = client.build_request(method, url, headers=dict(headers), content=body)
                    response = await client.send(request, stream=True)
                else:
                    response = await self._elsewhere(method, url, dict(headers), body, "a token", is_trusted=is_trusted)
            except broken() as error:
                if (found := certificate_problem(error)) is not None:
                    raise replies.untrusted(self.asked("a token"), found) from error
                if number >= self._most_attempts(error):
                    raise replies.unreachable(self.asked("a token"), reason(error)) from error
                await self.pause(number)
                continue
            if response.status_code not in _AGAIN or number == self.pace.attempts:
                return response
            retry_after = response.headers.get("retry-after")
            await response.aclose()
            await self.pause(number, retry_after, "a token", response.status_code)
        raise AssertionError  # the last round returns or raises

    # -------------------------------------------------------------------------------------------------------- scheme

    async def _find_scheme(self) -> str:
        """Say how the registry speaks: TLS always, except where it may be missing, and is."""
        if not self.site.is_loopback and not self.site.is_insecure:
            return "https"
        if self.site.is_loopback and self._connections.has_certificates(self.site.authority):
            return "https"
        import httpx2

        authority = self.site.authority
        client = await self._connections.client("https", authority, verify=not self.site.is_insecure)
        try:
            response = await client.send(client.build_request("GET", f"https://{authority}/v2/"), stream=True)
        except httpx2.ConnectError as error:
            return "http" if _is_plain(error) else "https"  # what else is wrong is said by the first request
        except broken() as error:
            return "http" if isinstance(error, (httpx2.RemoteProtocolError, httpx2.ReadError)) else "https"
        await response.aclose()
        return "https"


def broken() -> tuple[type[Exception], ...]:
    """Return what a connection raises that breaks; not all that TLS raises is made the library's own."""
    import httpx2

    return httpx2.TransportError, httpx2.StreamError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError


def _is_plain(error: BaseException) -> bool:
    return any(sign in str(one).upper() for one in _chain(error) for sign in _PLAIN_SIGNS) or any(
        isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError)) for one in _chain(error)
    )


def certificate_problem(error: BaseException) -> str | None:
    """Return why a certificate was not accepted; None when that is not what is wrong."""
    found = next((one for one in _chain(error) if isinstance(one, ssl.SSLCertVerificationError)), None)
    return None if found is None else replies.printable(found.verify_message or "it cannot be verified").rstrip(".")


def reason(error: BaseException) -> str:
    """Say in a few words what is wrong with a connection."""
    import httpx2

    words: Sequence[tuple[type[Exception], str]] = (
        (httpx2.ConnectTimeout, "connecting took too long"),
        (httpx2.TimeoutException, "it fell silent"),
        (httpx2.ProxyError, "the proxy does not let it through"),
    )
    for kind, text in words:
        if isinstance(error, kind):
            return text
    for one in _chain(error):
        if isinstance(one, ConnectionRefusedError) or "refused" in str(one).lower():
            return "the connection was refused"
        if isinstance(one, ssl.SSLError):
            return f"TLS failed ({replies.printable(one.reason) or 'no reason given'})"
        if isinstance(one, OSError) and one.errno is not None and one.strerror:
            return replies.printable(one.strerror).lower()
    return "no connection could be made" if isinstance(error, httpx2.ConnectError) else "the connection broke"


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an error, what it was made of, and the single ones of groups."""
    found: list[BaseException] = []
    waiting = [error] if error is not None else []
    while waiting and len(found) < 30:
        one = waiting.pop(0)
        if one in found:
            continue
        found.append(one)
        waiting += [inner for inner in (one.__cause__, one.__context__) if inner is not None]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    return found


def _seconds(retry_after: str | None) -> float | None:
    """Return how long a registry wants to be left alone, if it says so."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after.strip()[:9])
    try:
        then = parsedate_to_datetime(retry_after)
    except (ValueError, TypeError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max((then - datetime.now(tz=UTC)).total_seconds(), 0.0)
