"""How is an engine put behind TLS? By a proxy with certificates of an authority of the tests' own."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from tests import backends

LOOPBACK = "127.0.0.1"
END_SECONDS = 30.0
_CHUNK_BYTES = 65536
_HANDSHAKE_SECONDS = 10.0

# -------------------------------------------------------------------------------------------------------- certificates


class Authority:
    """A certificate authority of the tests' own."""

    def __init__(self, folder: Path) -> None:
        """Make it in a folder that is there."""
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca-key.pem"
        extensions = [
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]
        _openssl(
            "req",
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=cxc-test-ca",
            *extensions,
            *_new_key(self._key),
            "-out",
            self.certificate,
        )

    def issue(self, folder: Path, purpose: str) -> Path:
        """Put `ca.pem`, `cert.pem` and `key.pem` for `serverAuth` or `clientAuth` into a folder, named as Docker wants them."""
        folder.mkdir(mode=0o700)
        request, extensions = folder / "request.pem", folder / "extensions"
        extensions.write_text(f"subjectAltName=IP:{LOOPBACK},DNS:localhost\nextendedKeyUsage={purpose}\n")
        _openssl("req", "-new", "-subj", f"/CN=cxc-test-{purpose}", *_new_key(folder / "key.pem"), "-out", request)
        signing: list[str | Path] = [
            "-CA",
            self.certificate,
            "-CAkey",
            self._key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions,
        ]
        _openssl("x509", "-req", "-in", request, *signing, "-out", folder / "cert.pem")
        shutil.copy(self.certificate, folder / "ca.pem")
        return folder


def _new_key(path: Path) -> list[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]


def _openssl(*arguments: str | Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        backends.missing("no openssl program on the PATH")
    subprocess.run([program, *arguments], check=True, capture_output=True)


# ----------------------------------------------------------------------------------------------------------- TLS


class TlsProxy:
    """Ends TLS and passes everything on to a socket, each direction for as long as it lasts, as an engine with TLS would."""

    def __init__(self, target: Path, server_folder: Path) -> None:
        """Listen on a free port of loopback; clients must show a certificate of the authority."""
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(server_folder / "cert.pem", server_folder / "key.pem")
        self._context.load_verify_locations(server_folder / "ca.pem")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self._open: set[socket.socket] = set()
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        """How many connections were taken, whatever became of them."""
        self._thread = threading.Thread(target=self._accept, name="tls-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it and all its connections."""
        for one in (self._listener, *tuple(self._open)):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join(END_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(client,), name="tls-proxy-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX)
        self._open |= {client, engine}
        try:
            with suppress(OSError):
                end = _TlsEnd(client, self._context)
                client.settimeout(_HANDSHAKE_SECONDS)
                end.handshake()
                client.settimeout(None)
                engine.connect(str(self._target))
                back = threading.Thread(target=_to_client, args=(engine, end), name="tls-proxy-back", daemon=True)
                back.start()
                _to_engine(end, engine)
                back.join()
        finally:
            self._open -= {client, engine}
            client.close()
            engine.close()


class _TlsEnd:
    """One end of a TLS connection that one thread reads while another one writes; either direction may end first."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()  # of the state of TLS
        self._sending = threading.Lock()  # records leave in the order in which they were made

    def handshake(self) -> None:
        """Agree with the client; one that is refused is told so."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError:
                self._flush()
                raise
            else:
                self._flush()
                return

    def read(self) -> bytes:
        """What the client says next; empty when it has said all, with a word of TLS or without."""
        while True:
            try:
                with self._lock:
                    return self._tls.read(_CHUNK_BYTES)
            except ssl.SSLWantReadError:
                self._flush()  # an answer of TLS itself, as to a change of keys
                self._receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def write(self, data: bytes) -> None:
        """Say it to the client."""
        with self._lock:
            self._tls.write(data)
        self._flush()

    def end_writing(self) -> None:
        """Tell the client that no more comes."""
        with self._lock, suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()
        self._connection.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        data = self._connection.recv(_CHUNK_BYTES)
        with self._lock:
            self._incoming.write(data) if data else self._incoming.write_eof()

    def _flush(self) -> None:
        with self._sending:
            with self._lock:
                data = self._outgoing.read()
            self._connection.sendall(data)


def _to_engine(end: _TlsEnd, engine: socket.socket) -> None:
    with suppress(OSError):
        while data := end.read():
            engine.sendall(data)
    with suppress(OSError):
        engine.shutdown(socket.SHUT_WR)


def _to_client(engine: socket.socket, end: _TlsEnd) -> None:
    with suppress(OSError):
        while data := engine.recv(_CHUNK_BYTES):
            end.write(data)
    with suppress(OSError):
        end.end_writing()
