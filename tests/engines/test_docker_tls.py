"""Does a connection with TLS carry what is said both ways at once, each direction to its own end?"""

from __future__ import annotations

import errno
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker.engine import DockerEngine
from codomyrmex_containerization.engines.docker.tls import TlsSocket, make_context
from codomyrmex_containerization.models.details import ExecSpec
from codomyrmex_containerization.models.engine import Endpoint, Tls
from tests.endpoints import TlsDocker
from tests.engines.contract import FOREVER, Bench, Ran, busy_threads, no_thread_left, same
from tests.tls import LOOPBACK, Authority

PATIENCE_SECONDS = 20.0
SHORT_SECONDS = 0.05
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
MEGABYTE = random.Random(1).randbytes(1024 * 1024)

Serve = Callable[[ssl.SSLSocket], None]


# ----------------------------------------------------------------------------------------------------- a Docker engine


@pytest.fixture
async def bench(tls_docker: TlsDocker, busybox_image: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """The tests' Docker engine, reached through TLS."""
    engine = opened(tls_docker, tls_docker.certificates)
    made = Bench(engine, await engine.info(), busybox_image, tmp_path, nobody_listens)
    try:
        yield made
    finally:
        await made.aclose()


def opened(tls_docker: TlsDocker, folder: Path, *, verify: bool = True) -> DockerEngine:
    """A client that shows and trusts what is in the folder."""
    ca, cert, key = (str(folder / f"{name}.pem") for name in ("ca", "cert", "key"))
    endpoint = Endpoint("docker", tls_docker.url, "DOCKER_HOST", tls=Tls(ca, cert, key, verify=verify))
    return DockerEngine(endpoint, timeout_seconds=PATIENCE_SECONDS, buildx="off")


async def nobody_listens(_port: int) -> bytes:
    return b""


async def test_stdin_and_output_of_a_container_go_both_ways_at_once(bench: Bench) -> None:
    said = await bench.run("cat", stdin=MEGABYTE)
    same(said.stdout, MEGABYTE)
    assert (said.stderr, said.exit_code) == (b"", 0)


async def test_stdin_and_output_of_a_command_go_both_ways_at_once(bench: Bench) -> None:
    said = await bench.exec(await bench.keeper(), "cat", stdin=MEGABYTE)
    same(said.stdout, MEGABYTE)
    assert (said.stderr, said.exit_code) == (b"", 0)


async def test_what_is_said_after_the_end_of_stdin_comes(bench: Bench) -> None:
    script = "cat | wc -c; head -c 300000 /dev/zero; echo err >&2; exit 3"
    for stdin in (b"", b"x", MEGABYTE):
        wanted = Ran(b"%d\n" % len(stdin) + bytes(300_000), b"err\n", 3)
        assert await bench.run("sh", "-c", script, stdin=stdin) == wanted
        assert await bench.exec(await bench.keeper(), "sh", "-c", script, stdin=stdin) == wanted


async def test_ten_megabytes_come_whole(bench: Bench) -> None:
    keeper, data = await bench.keeper(), MEGABYTE * 10
    await bench.write(keeper, "/tmp", big=data)
    same((await bench.exec(keeper, "cat", "/tmp/big")).stdout, data)
    same(await bench.content(keeper, "/tmp/big"), data)


async def test_command_that_reads_no_stdin_is_left_without_a_thread(bench: Bench) -> None:
    before, keeper = busy_threads(), await bench.keeper()
    for stdin in (None, MEGABYTE * 10):
        made = await bench.engine.create_exec(
            keeper, ExecSpec(("sh", "-c", "echo up; exec sleep 1000"), {}, stdin=stdin is not None)
        )
        async with bench.engine.start_exec(made, stdin=stdin) as attachment:
            async for frame in attachment.frames():
                assert frame.data == b"up\n"
                break
        await no_thread_left(before)
    assert (await bench.exec(keeper, "echo", "still there")).stdout == b"still there\n"


async def test_wait_that_is_given_up_leaves_no_thread(bench: Bench) -> None:
    made, before = await bench.started(*FOREVER), busy_threads()
    with anyio.move_on_after(SHORT_SECONDS):
        await bench.engine.wait_container(made)
    await no_thread_left(before)


async def test_authority_that_is_unknown_is_refused_unless_nothing_is_to_be_verified(tls_docker: TlsDocker) -> None:
    engine = opened(tls_docker, tls_docker.distrusting_certificates)
    with pytest.raises(errors.EngineUnavailable, match="not to be trusted"):
        await engine.info()
    trusting = opened(tls_docker, tls_docker.distrusting_certificates, verify=False)
    try:
        assert (await trusting.info()).version
    finally:
        await engine.aclose()
        await trusting.aclose()


# ------------------------------------------------------------------------------------------------------- a connection


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of a server named localhost or 127.0.0.1, and that of its authority."""
    folder = tmp_path_factory.mktemp("authority")
    return Authority(folder).issue(folder / "server", "serverAuth")


@contextmanager
def connected(
    folder: Path, serve: Serve, *, version: ssl.TLSVersion = VERSIONS[-1], name: str = LOOPBACK
) -> Iterator[TlsSocket]:
    """A connection, after its handshake, to a server that does something; what that raises is raised here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    near, far = socket.socketpair()
    far.settimeout(PATIENCE_SECONDS)

    def run() -> None:
        with far:
            try:
                end = context.wrap_socket(far, server_side=True)
            except ssl.SSLError:
                return  # the client says what there is to say
            with end:
                serve(end)

    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(run)
        near.settimeout(PATIENCE_SECONDS)
        made = TlsSocket(near, make_context(Tls(str(folder / "ca.pem"))), server_name=name)
        try:
            made.handshake()
            yield made
        finally:
            made.close()
            with suppress(ConnectionError):  # it may still be talking
                served.result(PATIENCE_SECONDS)


def read_all(connection: TlsSocket | ssl.SSLSocket) -> bytes:
    pieces = []
    while piece := connection.recv(100_000):
        pieces.append(piece)
    return b"".join(pieces)


def ends(connection: ssl.SSLSocket) -> None:
    """Say that no more comes."""
    with suppress(OSError):
        connection.unwrap()


def idle(connection: ssl.SSLSocket) -> None:
    """Say nothing until the client is gone."""
    with suppress(OSError):
        read_all(connection)


@pytest.mark.parametrize("version", VERSIONS)
def test_end_of_one_direction_leaves_the_other_open(server_folder: Path, version: ssl.TLSVersion) -> None:
    def count(end: ssl.SSLSocket) -> None:
        end.sendall(b"%d" % len(read_all(end)))
        end.sendall(MEGABYTE)
        ends(end)

    with connected(server_folder, count, version=version) as connection:
        connection.sendall(MEGABYTE)
        connection.shutdown(socket.SHUT_WR)
        same(read_all(connection), b"%d" % len(MEGABYTE) + MEGABYTE)
        with pytest.raises(OSError, match="shutdown"):
            connection.sendall(b"more")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("read_before", [0, 1, 20_000, 100_001])
def test_what_came_before_the_end_of_a_direction_is_not_lost(
    server_folder: Path, version: ssl.TLSVersion, read_before: int
) -> None:
    said = threading.Event()

    def talk(end: ssl.SSLSocket) -> None:
        end.sendall(MEGABYTE[:100_001])
        said.set()
        assert read_all(end) == b"all"
        end.sendall(b"the end")
        ends(end)

    with connected(server_folder, talk, version=version) as connection:
        assert said.wait(PATIENCE_SECONDS)
        found = b""
        while len(found) < read_before:
            found += connection.recv(read_before - len(found))
        connection.sendall(b"all")
        connection.shutdown(socket.SHUT_WR)
        same(found + read_all(connection), MEGABYTE[:100_001] + b"the end")


@pytest.mark.parametrize("version", VERSIONS)
def test_one_thread_reads_while_another_one_writes(server_folder: Path, version: ssl.TLSVersion) -> None:
    data = MEGABYTE * 20

    def echo(end: ssl.SSLSocket) -> None:
        while piece := end.recv(30_000):
            end.sendall(piece)
        ends(end)

    with connected(server_folder, echo, version=version) as connection, ThreadPoolExecutor(1) as threads:
        connection.settimeout(None)
        reading = threads.submit(read_all, connection)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        same(reading.result(PATIENCE_SECONDS), data)


def test_server_that_goes_away_in_the_middle_is_no_end(server_folder: Path) -> None:
    def leave(end: ssl.SSLSocket) -> None:
        end.sendall(b"half")

    for ended in (False, True):
        with connected(server_folder, leave) as connection:
            if ended:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            assert connection.recv(10) == b"half"
            for _ in range(2):
                with pytest.raises(ConnectionResetError):
                    connection.recv(10)


def test_server_that_says_its_end_is_one(server_folder: Path) -> None:
    with connected(server_folder, ends) as connection, connection.makefile("rb") as file:
        assert file.read() == b""


def test_server_that_is_gone_is_not_written_to(server_folder: Path) -> None:
    gone = threading.Event()

    def leave(end: ssl.SSLSocket) -> None:
        end.close()
        gone.set()

    with connected(server_folder, leave) as connection:
        assert gone.wait(PATIENCE_SECONDS)
        with pytest.raises(ConnectionError):
            connection.sendall(MEGABYTE)


def test_time_limit_bounds_reading_and_writing(server_folder: Path) -> None:
    over = threading.Event()

    def hang(_end: ssl.SSLSocket) -> None:
        over.wait(PATIENCE_SECONDS)

    with connected(server_folder, hang) as connection:
        connection.settimeout(SHORT_SECONDS)
        assert connection.gettimeout() == SHORT_SECONDS
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with pytest.raises(TimeoutError):
            connection.sendall(MEGABYTE * 10)
        over.set()


def test_time_limit_bounds_the_handshake(server_folder: Path) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(SHORT_SECONDS)
        connection = TlsSocket(near, make_context(Tls(str(server_folder / "ca.pem"))), server_name=LOOPBACK)
        with pytest.raises(TimeoutError):
            connection.handshake()


@pytest.mark.parametrize("how", ["cut", "closed"])
def test_thread_that_is_blocked_is_set_free(server_folder: Path, how: str) -> None:
    def greet(end: ssl.SSLSocket) -> None:
        end.sendall(b"x")
        idle(end)

    with connected(server_folder, greet) as connection, ThreadPoolExecutor(1) as threads:
        connection.settimeout(None)
        reads = threading.Event()

        def read() -> bytes:
            assert connection.recv(10) == b"x"
            reads.set()
            return connection.recv(10)

        reading = threads.submit(read)
        assert reads.wait(PATIENCE_SECONDS)
        if how == "cut":
            connection.shutdown(socket.SHUT_RDWR)
        else:
            connection.close()
        failure = reading.exception(PATIENCE_SECONDS)
        if failure is None:
            assert reading.result() == b""
        else:  # it came to its second read only after the end
            assert how == "closed"
            assert isinstance(failure, OSError)
            assert failure.errno == errno.EBADF


def test_writer_that_is_blocked_is_set_free(server_folder: Path) -> None:
    over = threading.Event()

    def listen_little(end: ssl.SSLSocket) -> None:
        end.recv(1)
        over.wait(PATIENCE_SECONDS)

    with connected(server_folder, listen_little) as connection, ThreadPoolExecutor(1) as threads:
        connection.settimeout(None)
        writing = threads.submit(connection.sendall, MEGABYTE * 20)
        connection.shutdown(socket.SHUT_RDWR)
        assert isinstance(writing.exception(PATIENCE_SECONDS), OSError)
        over.set()


def test_file_keeps_the_connection_open_until_it_is_closed(server_folder: Path) -> None:
    def greet(end: ssl.SSLSocket) -> None:
        end.sendall(b"said\n")
        idle(end)

    with connected(server_folder, greet) as connection:
        with connection.makefile("rb") as file:
            connection.close()
            assert file.readline() == b"said\n"
            assert connection.fileno() >= 0
        assert connection.fileno() == -1
        with pytest.raises(OSError, match="closed"):
            connection.recv(1)


@pytest.mark.parametrize(("name", "is_it"), [(LOOPBACK, True), ("localhost", True), ("::1", False), ("x.test", False)])
def test_certificate_must_be_for_the_name_or_the_address(server_folder: Path, name: str, is_it: bool) -> None:
    if is_it:
        with connected(server_folder, idle, name=name):
            return
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate is not valid for"):
        connected(server_folder, idle, name=name).__enter__()


# ------------------------------------------------------------------------------------------------------------- files


def test_encrypted_key_is_an_error_and_asks_nobody(server_folder: Path, tmp_path: Path) -> None:
    encrypted = tmp_path / "key.pem"
    command = ["openssl", "pkcs8", "-topk8", "-in", str(server_folder / "key.pem"), "-passout", "pass:x", "-out"]
    subprocess.run([*command, str(encrypted)], check=True, capture_output=True)
    with pytest.raises(ssl.SSLError):
        make_context(Tls(cert=str(server_folder / "cert.pem"), key=str(encrypted)))


def test_file_that_cannot_be_read_is_an_error_of_tls(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="PEM"):
        make_context(Tls(ca=str(tmp_path / "gone.pem")))
