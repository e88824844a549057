"""How are the Engine API's output streams read, and how is a blocked reader set free?

Source: "Stream format" of POST /containers/ID/attach: 8 bytes of header (stream, 0, 0, 0, big-endian length), then the payload.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker.tls import TlsSocket
from codomyrmex_containerization.models.container import OutputFrame

_HEADER = struct.Struct(">BxxxL")
_CHUNK_BYTES = 65_536
# A frame is one write or one log line; a length beyond this means that the bytes are no frames.
_LARGEST_FRAME_BYTES = 64 * 1024 * 1024

Read = Callable[[int], bytes]


def raw_socket(response: Any) -> socket.socket | TlsSocket | None:
    """Find the socket under a streamed response, to set its time limit and to end a blocked read."""
    candidate = response
    for name in ("raw", "_fp", "fp", "raw", "_sock"):
        candidate = getattr(candidate, name, None)
        if candidate is None:
            return None
    return candidate if isinstance(candidate, socket.socket | TlsSocket) else None


def release(response: Any) -> None:
    """Make a read that blocks on the response return, and give the connection up."""
    sock = raw_socket(response)
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    with suppress(Exception):  # the library may fail in any way on a connection that was just cut
        # The thread that was set free gives the connection back as well: twice in the pool, two calls would share it.
        response.raw._pool = None
        response.close()


def frames(read: Read, *, tty: bool) -> Iterator[OutputFrame]:
    """Yield the frames of a stream; with a terminal everything is stdout. Raises EngineUnavailable for bytes that are no frames."""
    if tty:
        while data := read(_CHUNK_BYTES):
            yield OutputFrame("stdout", data)
        return
    while header := _exactly(read, _HEADER.size):
        kind, length = _HEADER.unpack(header)
        if kind > 3 or length > _LARGEST_FRAME_BYTES:
            raise errors.EngineUnavailable(
                "The engine sent output in an unknown format.", hint="try again; check the engine's version"
            )
        while length > 0:
            data = read(min(length, _CHUNK_BYTES))
            if not data:
                return
            length -= len(data)
            yield OutputFrame("stderr" if kind == 2 else "stdout", data)


def _exactly(read: Read, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = read(count - len(data))
        if not more:
            return b""
        data += more
    return data
