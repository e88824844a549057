"""How is docker-py opened for an endpoint, which API version is spoken, and what really answers there?"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codomyrmex_containerization import errors
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

    Raises Unsupported (an API that is too old), EngineUnavailable (something else answers), and what docker-py raises.
    """
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
    if known is not None:
        return Connection(client, known.product, known.libpod_version)
    try:
        return _agreed(client, endpoint)
    except BaseException:
        client.close()
        raise


def _agreed(client: APIClient, endpoint: Endpoint) -> Connection:
    answer = client.get(f"{client.base_url}/_ping", timeout=client.timeout)
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
    told = client.version(api_version=False)
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


def _base_url(endpoint: Endpoint) -> str:
    return endpoint.url


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
        """A client that reads no answer without a bound: whoever is at the other end may send any amount."""

        def send(self, request: Any, **kwargs: Any) -> Any:
            whole = not kwargs.get("stream")
            response = super().send(request, **{**kwargs, "stream": True})
            if whole:
                response._content = _read(response)
                response._content_consumed = True
            return response

    return BoundedClient


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
