"""How does a registry misbehave? A server that answers just as a test says, byte for byte, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from codomyrmex_containerization.clients import descriptors
from codomyrmex_containerization.clients.descriptors import Descriptor
from tests import registry, tls


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered; `length` is what is told of the body, `cut` ends the connection after so many bytes of it."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    cut: int | None = None
    silent: threading.Event | None = None  # says nothing of the body before this


Answer = Callable[[Request], Reply]


class Rogue:
    """A server that runs, with what it was asked."""

    def __init__(self, answer: Answer, certificates: Path | None, asks: tls.Authority | None) -> None:
        """Listen on a free port of loopback."""
        self.asked: list[Request] = []
        rogue = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                rogue.asked.append(request)
                with suppress(OSError):
                    self._write(answer(request))

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = _any  # noqa: N815  the library's names

            def _write(self, reply: Reply) -> None:
                whole = isinstance(reply.body, bytes)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if whole and self.command != "HEAD":
                    length = len(reply.body) if reply.length is None else reply.length  # type: ignore[arg-type]  # it is bytes
                    self.send_header("content-length", str(length))
                elif not whole:
                    self.send_header("connection", "close")
                self.end_headers()
                if reply.silent is not None:
                    self.wfile.flush()
                    reply.silent.wait(60)
                if self.command != "HEAD":
                    pieces = [reply.body] if isinstance(reply.body, bytes) else reply.body
                    for piece in pieces:
                        self.wfile.write(piece[: reply.cut] if reply.cut is not None else piece)
                if reply.cut is not None or not whole:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._http = registry.https_server(Handler, certificates, asks=asks)
        self.port: int = self._http.server_address[1]
        self.authority = f"127.0.0.1:{self.port}"

    def paths(self, method: str = "GET") -> list[str]:
        """Return what was asked for by a method, apart from the first look at how it speaks."""
        return [one.path for one in self.asked if one.method == method and one.path != "/v2/"]

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def running(answer: Answer, *, certificates: Path | None = None, asks: tls.Authority | None = None) -> Iterator[Rogue]:
    """Run a server while the block lasts; with `asks` clients must show a certificate of that authority."""
    found = Rogue(answer, certificates, asks)
    try:
        yield found
    finally:
        found.close()


def problem(status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error as registries write it."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Reply(status, body, headers or {})


def blob_of(data: bytes, kind: str = "application/vnd.oci.image.layer.v1.tar") -> Descriptor:
    """Return the descriptor of some bytes."""
    return Descriptor(kind, descriptors.digest_of(data), len(data))


CONFIG = b"{}"


def manifest_of(*layers: Descriptor, config: bytes = CONFIG, **more: object) -> bytes:
    """Return a manifest."""
    raw = {
        "schemaVersion": 2,
        "mediaType": descriptors.OCI_MANIFEST,
        "config": blob_of(config, "application/vnd.oci.image.config.v1+json").as_json(),
        "layers": [one.as_json() for one in layers],
        **more,
    }
    return json.dumps(raw).encode()
