"""Which registries of images do the tests use? Real ones, started on loopback and ended again: distribution's, and crane's as another."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests import backends, tls

REGISTRY_VERSION = "v3.1.2"  # scripts/back-ends builds it
USER, PASSWORD = "someone", "opensesame-0815"
_HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuqcbfQmQcBaO7fvSsOauDQ8OwABv/RdC\n"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")  # before a fixture replaces the home folder
_LISTENS = re.compile(r"(?:listening on|serving on port) (?:[\d.\[\]:]*:)?(\d+)")
_END_SECONDS = 30.0


def program(name: str) -> Path:
    """Return the registry or crane, which scripts/back-ends built."""
    found = _CACHE / "codomyrmex-containerization/tools" / f"registry-{REGISTRY_VERSION}" / "bin" / name
    if not os.access(found, os.X_OK):
        backends.missing(f"no {name} program for a registry of images")
    return found


@dataclass(slots=True)
class Registry:
    """A registry that runs: its host and port, its folder, and the lines that it has logged."""

    authority: str
    folder: Path
    lines: list[str] = field(default_factory=list)


@contextmanager
def started(
    folder: Path, *, certificates: Path | None = None, with_password: bool = False, tokens: TokenServer | None = None
) -> Iterator[Registry]:
    """Run distribution's registry: plain or with TLS, for everybody, by htpasswd or by tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": "127.0.0.1:0", "secret": "only-for-the-tests"},
    }
    if certificates is not None:
        http = config["http"]
        assert isinstance(http, dict)
        http["tls"] = {"certificate": str(certificates / "cert.pem"), "key": str(certificates / "key.pem")}
    if with_password:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    if tokens is not None:
        bundle = str(tokens.certificates / "cert.pem")
        config["auth"] = {
            "token": {"realm": tokens.realm, "service": "tests", "issuer": "cxc-tests", "rootcertbundle": bundle}
        }
    file = folder / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    with _running([str(program("registry")), "serve", str(file)], folder, {"OTEL_TRACES_EXPORTER": "none"}) as found:
        yield found


@contextmanager
def crane_started(folder: Path) -> Iterator[Registry]:
    """Run crane's registry, another one's program, which keeps lists of referrers itself."""
    folder.mkdir(parents=True, exist_ok=True)
    with _running([str(program("crane")), "registry", "serve", "--address", "127.0.0.1:0"], folder, {}) as found:
        yield found


@contextmanager
def _running(argv: Sequence[str], folder: Path, environ: dict[str, str]) -> Iterator[Registry]:
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, **environ}, cwd=folder,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    try:
        port = ""
        for line in process.stdout:
            lines.append(line)
            if match := _LISTENS.search(line):
                port = match[1]
                break
        assert port, f"the registry does not start: {lines}"
        output = process.stdout
        reader = threading.Thread(target=lambda: lines.extend(output), name="registry-log", daemon=True)
        reader.start()
        yield Registry(f"127.0.0.1:{port}", folder, lines)
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if port:
            reader.join(_END_SECONDS)
        process.stdout.close()


def crane(*arguments: str | Path, stdin: bytes | None = None, environ: dict[str, str] | None = None) -> str:
    """Run crane, which judges from outside, and return what it says."""
    argv = [str(program("crane")), *map(str, arguments)]
    done = subprocess.run(argv, input=stdin, capture_output=True, timeout=120, env={**os.environ, **(environ or {})})
    assert done.returncode == 0, f"crane {arguments} ended with {done.returncode}: {done.stderr.decode()}"
    return done.stdout.decode()


# --------------------------------------------------------------------------------------------------------------- tokens


class TokenServer:
    """Gives the tokens that a registry wants, by https, to who knows the password; signed with the key of its certificate."""

    def __init__(self, folder: Path, authority: tls.Authority) -> None:
        """Listen on a free port of loopback."""
        self.certificates = authority.issue(folder / "tokens", "serverAuth")
        self.asked: list[tuple[str, dict[str, list[str]], str]] = []  # method, what was asked for, the header
        self.life_seconds = 300
        self.identity_token = "an-identity-token-4711"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                server.asked.append(("GET", query, self.headers.get("authorization", "")))
                wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                header = self.headers.get("authorization")
                self._answer(query, is_known=header == wanted, is_wrong=header not in (None, wanted))

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                server.asked.append(("POST", form, ""))
                is_known = form.get("refresh_token") == [server.identity_token]
                form["scope"] = form.get("scope", [""])[0].split()
                self._answer(form, is_known=is_known, is_wrong=not is_known)

            def _answer(self, query: dict[str, list[str]], *, is_known: bool, is_wrong: bool) -> None:
                if is_wrong:
                    data = b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}'
                    self.send_response(401)
                else:
                    data = json.dumps({"token": server.token(query.get("scope", []), is_known=is_known)}).encode()
                    self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = https_server(Handler, self.certificates)
        self.realm = f"https://127.0.0.1:{self._http.server_address[1]}/token"
        self.authority = f"127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()

    def token(self, scopes: Sequence[str], *, is_known: bool) -> str:
        """Return a token; who is not known may only read."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":", 2) if scope.count(":") == 2 else _split(scope)
            granted = [one for one in actions.split(",") if is_known or one == "pull"]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        certificate = _der(self.certificates / "cert.pem")
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate).decode()]}
        claims = {
            "iss": "cxc-tests", "sub": USER, "aud": "tests", "exp": now + self.life_seconds, "nbf": now - 5, "iat": now,
            "jti": hashlib.sha256(os.urandom(8)).hexdigest(), "access": access,
        }  # fmt: skip
        signed = f"{_packed(json.dumps(header).encode())}.{_packed(json.dumps(claims).encode())}"
        return f"{signed}.{_packed(self._sign(signed.encode()))}"

    def _sign(self, data: bytes) -> bytes:
        argv = [shutil.which("openssl") or "openssl", "dgst", "-sha256", "-sign", str(self.certificates / "key.pem")]
        done = subprocess.run(argv, input=data, capture_output=True, check=True)
        return _raw_signature(done.stdout)


def https_server(
    handler: type[BaseHTTPRequestHandler], certificates: Path | None, *, asks: tls.Authority | None = None
) -> ThreadingHTTPServer:
    """Serve by a handler on a free port of loopback, with TLS where there are certificates."""
    import ssl

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
        if asks is not None:
            context.load_verify_locations(asks.certificate)
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def _split(scope: str) -> tuple[str, str, str]:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return kind, name, actions


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _der(file: Path) -> bytes:
    body = re.sub(r"-----[A-Z ]+-----|\s", "", file.read_text())
    return base64.b64decode(body)


def _raw_signature(der: bytes) -> bytes:
    """Return the two numbers of an ECDSA signature side by side, as JWT wants them."""
    numbers, at = [], 2
    for _ in range(2):
        size = der[at + 1]
        numbers.append(int.from_bytes(der[at + 2 : at + 2 + size], "big"))
        at += 2 + size
    return b"".join(one.to_bytes(32, "big") for one in numbers)
