"""What is said of an endpoint at which something else answers, somebody else listens, or nothing may be sent?

SPEC B84.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream, Listener, SocketStream

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import endpoints
from codomyrmex_containerization.engines.docker.engine import DockerEngine
from codomyrmex_containerization.models.engine import Endpoint, Tls
from tests import backends
from tests.endpoints import TlsDocker

LIST = "/containers/json"
PATIENCE_SECONDS = 20.0

Handle = Callable[[ByteStream], Awaitable[None]]


def http(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """An HTTP answer, whose length may be a lie."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


PING = http(b"OK", headers="Api-Version: 1.41\r\nContent-Type: text/plain\r\n")
PAGE = http(b"<!DOCTYPE html><html><body>It works!</body></html>", headers="Content-Type: text/html\r\n")


def answering(answers: Mapping[str, bytes], otherwise: bytes = PING) -> Handle:
    """Say these bytes to whoever asks for a path that holds the key; an answer that is no whole one ends the connection."""

    async def handle(stream: ByteStream) -> None:
        while True:
            line = (await stream.receive()).split(b"\r\n", 1)[0].decode(errors="replace")
            answer = next((one for path, one in answers.items() if path in line), otherwise)
            await stream.send(answer)
            head, _, body = answer.partition(b"\r\n\r\n")
            if f"Content-Length: {len(body)}" not in head.decode():
                return

    return handle


@asynccontextmanager
async def serving(listener: Listener[SocketStream], handle: Handle, *, to_the_end: bool = False) -> AsyncIterator[None]:
    """Treat each connection so; with `to_the_end` let all of them end before leaving, as their clients are closed."""

    async def one(stream: ByteStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            async with stream:
                await handle(stream)

    async with listener, anyio.create_task_group() as accepting:
        async with anyio.create_task_group() as treating:
            accepting.start_soon(listener.serve, one, treating)
            yield
            if not to_the_end:
                treating.cancel_scope.cancel()
        accepting.cancel_scope.cancel()


@asynccontextmanager
async def on_socket(path: Path, handle: Handle) -> AsyncIterator[DockerEngine]:
    """An engine's client at a socket where each connection is treated so."""
    endpoint = Endpoint("docker", f"unix://{path}", "DOCKER_HOST")
    async with serving(await anyio.create_unix_listener(path), handle, to_the_end=True), opened(endpoint) as engine:
        yield engine


@asynccontextmanager
async def on_loopback(handle: Handle) -> AsyncIterator[int]:
    """A port of this host at which each connection is treated so."""
    several = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = several.extra(anyio.abc.SocketAttribute.local_port)
    (listener,) = several.listeners
    async with serving(listener, handle):
        yield port


@asynccontextmanager
async def opened(endpoint: Endpoint) -> AsyncIterator[DockerEngine]:
    engine = DockerEngine(endpoint, timeout_seconds=PATIENCE_SECONDS)
    try:
        yield engine
    finally:
        await engine.aclose()


async def failure(engine: DockerEngine) -> errors.ContainerizationError:
    """What listing says; it says something of ours, with a next step, and shows no page of others."""
    with pytest.raises(errors.ContainerizationError) as caught:
        await engine.list_containers(all=True)
    assert caught.value.hint
    assert "<html" not in caught.value.text()
    return caught.value


# --------------------------------------------------------------------------------------------------------- somebody else


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "301 Moved Permanently", "400 Bad Request"])
async def test_server_of_web_pages_is_no_engine(tmp_path: Path, status: str) -> None:
    page = PAGE.replace(b"200 OK", status.encode())
    async with on_socket(tmp_path / "s", answering({}, page)) as engine:
        error = await failure(engine)
    assert isinstance(error, errors.EngineUnavailable)
    assert "is not a container engine" in error.message
    assert "DOCKER_HOST" in error.message


@pytest.mark.parametrize("version", ["1.12", "1.39", "0.1"])
async def test_engine_that_is_too_old_is_unsupported(tmp_path: Path, version: str) -> None:
    ping = http(b"OK", headers=f"Api-Version: {version}\r\n")
    async with on_socket(tmp_path / "s", answering({}, ping)) as engine:
        error = await failure(engine)
    assert isinstance(error, errors.Unsupported)
    assert version in error.message
    assert "1.40" in error.hint


@pytest.mark.parametrize("version", ["x", "1", "-1.41", "1.41.0", "99999999.1", "1.41\u0660"])
async def test_version_that_is_none_is_no_engines(tmp_path: Path, version: str) -> None:
    ping = http(b"OK", headers=f"Api-Version: {version}\r\n")
    async with on_socket(tmp_path / "s", answering({}, ping)) as engine:
        error = await failure(engine)
    assert isinstance(error, errors.EngineUnavailable)


async def test_version_is_asked_for_when_a_proxy_drops_the_header(tmp_path: Path) -> None:
    told = http(b'{"ApiVersion": "1.41"}')
    async with on_socket(tmp_path / "s", answering({"/version": told, LIST: http(b"[]")}, http(b"OK"))) as engine:
        assert await engine.list_containers(all=True) == []


@pytest.mark.parametrize(
    "answer", [b"", b"{", http(b"[{", length=5000), b"HTTP/1.1 200 OK\r\nContent-Le", b"SSH-2.0-x\r\n"]
)
@pytest.mark.parametrize("where", ["/_ping", LIST])
async def test_engine_that_closes_half_way_does_not_answer(tmp_path: Path, answer: bytes, where: str) -> None:
    async with on_socket(tmp_path / "s", answering({where: answer})) as engine:
        error = await failure(engine)
    assert isinstance(error, errors.EngineUnavailable)


@pytest.mark.parametrize("body", [b"", b"[", b"{}", b"null", b"3", b'[{"Id": 3}]', b"[[]]", b"\xff", b"[" * 100_000])
async def test_list_that_is_none_is_no_empty_list(tmp_path: Path, body: bytes) -> None:
    async with on_socket(tmp_path / "s", answering({LIST: http(body)})) as engine:
        error = await failure(engine)
    assert isinstance(error, errors.EngineUnavailable)


async def test_object_in_place_of_a_list_is_no_empty_list(tmp_path: Path) -> None:
    async with on_socket(tmp_path / "s", answering({"json": http(b"{}"), "/networks": http(b"{}")})) as engine:
        for ask in (engine.list_images, engine.list_image_names, engine.list_networks):
            with pytest.raises(errors.EngineUnavailable):
                await ask()


async def test_list_of_a_hundred_megabytes_is_not_read_to_its_end(tmp_path: Path) -> None:
    size, sent = 100_000_000, 0

    async def endless(stream: ByteStream) -> None:
        nonlocal sent
        while LIST.encode() not in await stream.receive():
            await stream.send(PING)
        await stream.send(http(b"", length=size))
        while sent < size:
            await stream.send(b" " * 1_000_000)
            sent += 1_000_000

    async with on_socket(tmp_path / "s", endless) as engine:
        error = await failure(engine)
    assert isinstance(error, errors.EngineUnavailable)
    assert "longer than 64 MiB" in error.message
    assert sent < size


async def test_redirection_to_another_address_is_not_followed() -> None:
    asked: list[bytes] = []

    async def other(stream: ByteStream) -> None:
        asked.append(await stream.receive())

    async with on_loopback(other) as elsewhere:
        moved = http(b"", status="302 Found", headers=f"Location: http://127.0.0.1:{elsewhere}/\r\n")
        for answers, otherwise in (({}, moved), ({LIST: moved}, PING)):
            async with on_loopback(answering(answers, otherwise)) as port:
                endpoint = Endpoint("docker", f"tcp://127.0.0.1:{port}", "DOCKER_HOST")
                async with opened(endpoint) as engine:
                    assert isinstance(await failure(engine), errors.EngineUnavailable)
    assert asked == []


async def test_variables_of_a_proxy_do_not_lead_an_engines_requests_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(stream: ByteStream) -> None:
        asked.append(await stream.receive())

    async with on_loopback(proxy) as elsewhere, on_loopback(answering({LIST: http(b"[]")})) as port:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere}")
        async with opened(Endpoint("docker", f"tcp://127.0.0.1:{port}", "DOCKER_HOST")) as engine:
            assert await engine.list_containers(all=True) == []
    assert asked == []


# ----------------------------------------------------------------------------------------------------- what is no socket


@pytest.mark.parametrize("kind", ["file", "folder", "loop", "nothing"])
async def test_path_that_is_no_socket_is_named_with_its_remedy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "docker.sock"
    match kind:
        case "file":
            path.touch()
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
    async with opened(Endpoint("docker", f"unix://{path}", "DOCKER_HOST")) as engine:
        error = await failure(engine)
    assert isinstance(error, errors.EngineUnavailable)
    assert str(path) in error.message


AS_ANOTHER_USER = """
import sys, anyio
sys.path[:0] = {path!r}
from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker.engine import DockerEngine
from codomyrmex_containerization.models.engine import Endpoint
async def main():
    try:
        await DockerEngine(Endpoint("docker", "unix://" + sys.argv[1], "DOCKER_HOST"), timeout_seconds=20).list_containers(all=True)
    except errors.ContainerizationError as error:
        print(error.code, error.text())
anyio.run(main)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("closed", ["socket", "folder"])
async def test_socket_of_another_user_is_unauthorized_with_the_remedy(open_folder: Path, closed: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    inner = open_folder / "inner"
    inner.mkdir(mode=0o755)
    path = inner / "docker.sock"
    async with on_socket(path, answering({})):
        path.chmod(0o600 if closed == "socket" else 0o666)
        inner.chmod(0o755 if closed == "socket" else 0o700)
        code = AS_ANOTHER_USER.format(path=[one for one in sys.path if one])
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code, str(path)]
        done = await anyio.run_process(command, check=False, env={**os.environ, "HOME": "/nonexistent"})
    said = done.stdout.decode()
    assert said.startswith("unauthorized "), done.stderr.decode()
    assert str(path) in said
    assert "group" in said


# ------------------------------------------------------------------------------------------------------ what is refused


async def test_address_that_is_not_loopback_is_refused_before_anything_is_sent() -> None:
    # An address of this very host that is no loopback one: a connection would reach the listener.
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            backends.missing(f"no {program} program on the PATH")
    code = NETWORK_OF_ITS_OWN.format(path=[one for one in sys.path if one])
    done = await anyio.run_process(["unshare", "--net", "--map-root-user", sys.executable, "-c", code], check=False)
    assert done.stdout.decode().splitlines() == ["reached: True", "refused", "connections: 1"], done.stderr.decode()


NETWORK_OF_ITS_OWN = """
import socket, subprocess, sys
sys.path[:0] = {path!r}
from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import endpoints
for words in (["link", "set", "lo", "up"], ["addr", "add", "198.51.100.7/32", "dev", "lo"]):
    subprocess.run(["ip", *words], check=True)
listening = socket.create_server(("198.51.100.7", 2375))
listening.settimeout(1)
connections = 0
with socket.create_connection(("198.51.100.7", 2375), 5):
    listening.accept()
    connections += 1
print("reached:", connections == 1)
try:
    endpoints.candidates("docker", {{"DOCKER_HOST": "tcp://198.51.100.7:2375"}})
except errors.Refused:
    print("refused")
listening.setblocking(False)
try:
    listening.accept()
    connections += 1
except BlockingIOError:
    pass
print("connections:", connections)
"""


# -------------------------------------------------------------------------------------------------------------------- TLS


def client(folder: Path, *, shows: bool = True) -> Tls:
    """What a client with these certificates speaks TLS with; it may show none of its own."""
    own = (str(folder / "cert.pem"), str(folder / "key.pem")) if shows else (None, None)
    return Tls(str(folder / "ca.pem"), *own)


@pytest.mark.parametrize("scheme", ["tcp", "https", "http"])
async def test_engine_behind_tls_is_spoken_to_with_its_own_material(tls_docker: TlsDocker, scheme: str) -> None:
    url = tls_docker.url.replace("tcp", scheme)
    endpoint = endpoints.judge(Endpoint("docker", url, "x", tls=client(tls_docker.certificates)))
    async with opened(endpoint) as engine:
        info = await engine.info()
    assert info.version
    assert tls_docker.proxy.accepted > 0


async def test_variables_of_dockers_tls_lead_to_an_engine_that_answers(tls_docker: TlsDocker) -> None:
    (endpoint,) = endpoints.candidates("docker", tls_docker.environment)
    async with opened(endpoint) as engine:
        assert (await engine.info()).endpoint == endpoint


async def test_engine_whose_authority_is_unknown_is_not_spoken_to(tls_docker: TlsDocker) -> None:
    for tls in (client(tls_docker.distrusting_certificates), Tls()):
        async with opened(Endpoint("docker", tls_docker.url, "DOCKER_HOST", tls=tls)) as engine:
            error = await failure(engine)
        assert isinstance(error, errors.EngineUnavailable)
        assert "not to be trusted" in error.message
        assert "DOCKER_HOST" in error.message
        assert "ca.pem" in error.hint


async def test_engine_that_does_not_accept_the_certificate_is_unauthorized(tls_docker: TlsDocker) -> None:
    for tls in (client(tls_docker.strange_certificates), client(tls_docker.certificates, shows=False)):
        async with opened(Endpoint("docker", tls_docker.url, "DOCKER_HOST", tls=tls)) as engine:
            error = await failure(engine)
        assert isinstance(error, errors.Unauthorized), error.text()
        assert "cert.pem" in error.hint


async def test_engine_that_speaks_no_tls_is_told_so(tls_docker: TlsDocker) -> None:
    async with on_loopback(answering({}, http(b"no", status="400 Bad Request"))) as port:
        endpoint = Endpoint("docker", f"tcp://127.0.0.1:{port}", "x", tls=client(tls_docker.certificates))
        async with opened(endpoint) as engine:
            error = await failure(engine)
    assert isinstance(error, errors.EngineUnavailable)
    assert "TLS" in error.message


async def test_files_of_tls_that_are_none_are_an_error_with_a_next_step(tls_docker: TlsDocker, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    empty, own = str(tmp_path / "empty"), tls_docker.certificates
    for tls in (
        Tls(ca=empty),
        Tls(str(own / "ca.pem"), empty, empty),
        Tls(str(own / "ca.pem"), empty, str(own / "key.pem")),
    ):
        async with opened(Endpoint("docker", tls_docker.url, "DOCKER_HOST", tls=tls)) as engine:
            error = await failure(engine)
        assert isinstance(error, errors.EngineUnavailable), error.text()
        assert "certificate" in error.text()
