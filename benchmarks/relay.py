"""Which requests does an engine get? A socket in front of it that passes everything on and notes them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer
from threading import Thread
from urllib.parse import urlsplit

_CHUNK_BYTES = 65_536
# Whoever sends over one connection waits for each answer, so that a request always begins what is received.
_REQUEST = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE) (\S+) HTTP/1\.[01]\r\n")
_VERSION = re.compile(r"/v[\d.]+(?=/)")


class Relay(ThreadingUnixStreamServer):
    """The socket `path`, and the paths that were asked for so far."""

    daemon_threads = True

    def __init__(self, path: Path, engine: Path) -> None:
        super().__init__(str(path), _Connection)
        self.path = path
        self.engine = engine
        self.asked: list[str] = []

    def note(self, data: bytes) -> None:
        """Note a request, when one begins here."""
        found = _REQUEST.match(data)
        if found is not None:
            self.asked.append(_VERSION.sub("", urlsplit(found[1].decode(errors="replace")).path))


class _Connection(BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(self.server.engine))
            answers = Thread(target=_pass_on, args=(engine, self.request), daemon=True)
            answers.start()
            with suppress(OSError):
                while data := self.request.recv(_CHUNK_BYTES):
                    self.server.note(data)
                    engine.sendall(data)
                engine.shutdown(socket.SHUT_WR)
            answers.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def relay(path: Path, engine: Path) -> Iterator[Relay]:
    """Open a relay at `path` to the engine's socket, and close it at the end."""
    with Relay(path, engine) as opened:
        thread = Thread(target=opened.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield opened
        finally:
            opened.shutdown()
            thread.join()
            path.unlink(missing_ok=True)
