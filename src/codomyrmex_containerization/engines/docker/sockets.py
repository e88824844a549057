"""How does docker-py speak to a Unix socket that nobody listens on, without leaving one of its own open?

Its connection makes a socket and forgets it when connecting fails: each call to an engine that is down would leave one to the garbage
collector.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter


def adapter(socket_path: str, *, timeout_seconds: float, pool_size: int) -> HTTPAdapter:
    """Return what carries requests to the socket, for the client to mount at `http+docker://`."""
    made: HTTPAdapter = _adapter_class()(socket_path, timeout_seconds, max_pool_size=pool_size)
    return made


@functools.cache
def _adapter_class() -> Any:
    # Made when first needed: starting the server must not load docker-py.
    import socket

    from docker.transport import unixconn

    class Connection(unixconn.UnixHTTPConnection):  # type: ignore[misc]  # docker-py has no types
        def connect(self) -> None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.settimeout(self.timeout)
                made.connect(self.unix_socket)
            except BaseException:
                made.close()
                raise
            self.sock = made

    class Pool(unixconn.UnixHTTPConnectionPool):  # type: ignore[misc]
        def _new_conn(self) -> Any:
            return Connection(self.base_url, self.socket_path, self.timeout)

    class Adapter(unixconn.UnixHTTPAdapter):  # type: ignore[misc]
        def get_connection(self, url: str, proxies: Any = None) -> Any:
            with self.pools.lock:
                pool = self.pools.get(url)
                if pool is None:
                    pool = self.pools[url] = Pool(url, self.socket_path, self.timeout, maxsize=self.max_pool_size)
                return pool

    return Adapter
