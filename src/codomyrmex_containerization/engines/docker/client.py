"""How is docker-py opened for an endpoint, which API version is spoken, and what really answers there?"""

from __future__ import annotations

import functools
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import endpoints
from codomyrmex_containerization.engines.docker import sockets
from codomyrmex_containerization.engines.docker import tls as tls_sockets
from codomyrmex_containerization.models.engine import Endpoint, EngineKind

if TYPE_CHECKING:
    from docker import APIClient

OLDEST_API = (1, 40)  # Docker Engine 19.03, Podman 3
NEWEST_API = (1, 45)  # what docker-py 7 knows
LONGEST_ANSWER_BYTES = 64 * 1024 * 1024

_POOL_SIZE = 32
_CHUNK_BYTES = 256 * 1024
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Connection:
    """An open client and what is at its other end."""

    client: APIClient
    product: EngineKind
    libpod_version: str = ""


def connect(endpoint: Endpoint, *, timeout_seconds: float, known: Connection | None = None) -> Connection:
    """Open a client and agree on an API version by GET /_ping; `known` spares asking again.

    Raises Unsupported (an API that is too old), EngineUnavailable (no socket, or something else answers), Unauthorized, and
    what docker-py raises.
    """
    endpoints.require_socket(endpoint)
    version = known.client.api_version if known is not None else _dotted(OLDEST_API)
    client = _client_class()(
        base_url=_base_url(endpoint),
        version=version,
        timeout=timeout_seconds,
        max_pool_size=_POOL_SIZE,
        tls=_tls(endpoint),
    )
    # Engines are reached directly: a proxy of the environment is for registries.
    client.trust_env = False
    try:
        if endpoint.tls is not None:
            client.mount("https://", tls_sockets.adapter(endpoint.tls, pool_size=_POOL_SIZE))
        path = _base_url(endpoint).partition("unix://")[2]
        if path:
            unix = sockets.adapter(path, timeout_seconds=timeout_seconds, pool_size=_POOL_SIZE)
            client._custom_adapter = unix
            client.mount("http+docker://", unix)
        if known is not None:
            return Connection(client, known.product, known.libpod_version)
        return _agreed(client, endpoint)
    except BaseException as error:
        client.close()
        broken = _ssl_error(error)
        if broken is None:
            raise
        raise _no_trust(endpoint, broken) from error


def _agreed(client: APIClient, endpoint: Endpoint) -> Connection:
    answer = client.get(f"{client.base_url}/_ping", timeout=client.timeout)
    if answer.status_code < 500 and answer.status_code != 200:
        raise _no_engine(endpoint)
    client._raise_for_status(answer)
    spoken = _parsed(answer.headers.get("Api-Version") or _told_version(client, endpoint), endpoint)
    if spoken < OLDEST_API:
        raise errors.Unsupported(
            f"The engine at {endpoint.source} speaks API {_dotted(spoken)}, which is too old.",
            hint=f"API {_dotted(OLDEST_API)} or newer is needed: Docker Engine 19.03, Podman 3 or later",
        )
    client._version = _dotted(min(spoken, NEWEST_API))
    libpod = answer.headers.get("Libpod-Api-Version") or ""
    return Connection(client, "podman" if libpod else "docker", libpod)


def _told_version(client: APIClient, endpoint: Endpoint) -> str:
    # An engine behind a proxy that drops the header still says it in the body of another request.
    try:
        told = client.version(api_version=False)
    except ValueError as error:  # no JSON
        raise _no_engine(endpoint) from error
    if not isinstance(told, dict) or not isinstance(told.get("ApiVersion"), str):
        raise _no_engine(endpoint)
    return str(told["ApiVersion"])


def _parsed(text: str, endpoint: Endpoint) -> tuple[int, int]:
    match = _VERSION.fullmatch(text)
    if match is None:
        raise _no_engine(endpoint)
    return int(match[1]), int(match[2])


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _no_engine(endpoint: Endpoint) -> errors.EngineUnavailable:
    return errors.EngineUnavailable(
        f"What answers at {endpoint.url} ({endpoint.source}) is not a container engine.",
        hint="check the address: it must be the engine's own API",
    )


def _ssl_error(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        # requests and urllib3 keep the cause in their arguments.
        inner = [getattr(error, "reason", None), *error.args, error.__cause__, error.__context__]
        error = next((one for one in inner if isinstance(one, BaseException) and one is not error), None)
    return error


def _no_trust(endpoint: Endpoint, error: ssl.SSLError) -> errors.ContainerizationError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return errors.EngineUnavailable(
            f"The engine at {endpoint.url} ({endpoint.source}) shows a certificate that is not to be trusted: "
            f"{error.verify_message}",
            hint="check the address, and that ca.pem is of the authority that signed the engine's certificate",
        )
    if re.search(r"PEM|X509|KEY_VALUES|NO_CERTIFICATE", str(error)):
        return errors.EngineUnavailable(
            f"The TLS files of {endpoint.source} hold no usable certificate or key.",
            hint="check ca.pem, cert.pem and key.pem: each is a PEM file, and the key belongs to the certificate",
        )
    if "alert" in str(error).lower():
        return errors.Unauthorized(
            f"The engine at {endpoint.url} ({endpoint.source}) does not accept the certificate it was shown, or was shown "
            "none.",
            hint="check cert.pem and key.pem: they must be signed by the authority that the engine trusts",
        )
    return errors.EngineUnavailable(
        f"What answers at {endpoint.url} ({endpoint.source}) does not speak TLS as it should.",
        hint="check the port: 2376 is usual with TLS, 2375 without",
    )


def _base_url(endpoint: Endpoint) -> str:
    if endpoint.via is not None:
        return endpoint.via
    if endpoint.scheme == "ssh":
        raise errors.InternalError("An ssh:// endpoint was opened without its tunnel.")
    # docker-py would take http:// at its word and speak it without TLS.
    return f"https://{endpoint.url.partition('://')[2]}" if endpoint.tls is not None else endpoint.url


def _tls(endpoint: Endpoint) -> Any:
    if endpoint.tls is None:
        return False
    from docker.tls import TLSConfig

    tls = endpoint.tls
    pair = (tls.cert, tls.key) if tls.cert and tls.key else None
    return TLSConfig(client_cert=pair, ca_cert=tls.ca, verify=tls.verify)


@functools.cache
def _client_class() -> type[APIClient]:
    # Made when first needed: starting the server must not load docker-py.
    import docker

    class BoundedClient(docker.APIClient):  # type: ignore[misc]  # docker-py has no types
        """A client that reads no answer without a bound: whoever is at the other end may send any amount.

        Nor is it sent elsewhere: only the address that was judged is spoken to.
        """

        def containers(self, **options: Any) -> list[Any]:
            return _listed(super().containers(**options))

        def images(self, **options: Any) -> list[Any]:
            return _listed(super().images(**options))

        def networks(self, **options: Any) -> list[Any]:
            return _listed(super().networks(**options))

        def get_redirect_target(self, resp: Any) -> None:
            return None

        def _url(self, pathfmt: str, *args: Any, **kwargs: Any) -> str:
            require_names(args)
            return str(super()._url(pathfmt, *args, **kwargs))

        def send(self, request: Any, **kwargs: Any) -> Any:
            whole = not kwargs.get("stream")
            response = super().send(request, **{**kwargs, "stream": True})
            if whole:
                response._content = _read(response)
                response._content_consumed = True
            return response

    return BoundedClient


def require_names(names: Iterable[object]) -> None:
    """Refuse what would lead to another object: servers shorten a path before they look at it. Raises InvalidArgument."""
    for name in names:
        if {".", ".."} & set(str(name).split("/")):
            raise errors.InvalidArgument(f"{name!r} is no name of anything.", hint="give its name or its id")


def _listed(answer: Any) -> list[Any]:
    # What is no list could otherwise be gone through like an empty one.
    if not isinstance(answer, list):
        raise TypeError
    return answer


def _read(response: Any) -> bytes:
    pieces: list[bytes] = []
    length = 0
    for piece in response.iter_content(_CHUNK_BYTES):
        length += len(piece)
        if length > LONGEST_ANSWER_BYTES:
            response.close()
            raise errors.EngineUnavailable(
                f"The engine's answer is longer than {LONGEST_ANSWER_BYTES // 2**20} MiB.",
                hint="check what answers at this address; an engine that holds this much needs its objects pruned",
            )
        pieces.append(piece)
    return b"".join(pieces)
