"""How does a connection to a real registry break? Through a proxy that cuts it after so many bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE_BYTES = 16384


class CuttingProxy:
    """Passes everything on; a connection that has carried more than `most` bytes one way is reset, as often as `times` says."""

    def __init__(self, authority: str, *, up: int | None, down: int | None, times: int) -> None:
        """Listen on a free port of loopback."""
        host, _, port = authority.rpartition(":")
        self._target = (host, int(port))
        self._up, self._down = up, down
        self._left = times
        self._lock = threading.Lock()
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.authority = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for one, other, most in ((client, server, self._up), (server, client, self._down)):
                    threading.Thread(target=self._pass, args=(one, other, most), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, most: int | None) -> None:
        count = 0
        with suppress(OSError):
            while piece := source.recv(_PIECE_BYTES):
                target.sendall(piece)
                count += len(piece)
                if most is not None and count > most and self._may_cut():
                    break
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _may_cut(self) -> bool:
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            self.cuts += 1
            return True


@contextmanager
def cutting(
    authority: str, *, up: int | None = None, down: int | None = None, times: int = 1
) -> Iterator[CuttingProxy]:
    """Run such a proxy while the block lasts."""
    found = CuttingProxy(authority, up=up, down=down, times=times)
    try:
        yield found
    finally:
        found.close()
