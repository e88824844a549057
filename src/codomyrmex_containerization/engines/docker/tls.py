"""How is TLS spoken over a connection that one thread reads while another one writes, and whose directions end one by one?

An `ssl.SSLSocket` can do neither: its `shutdown` drops TLS, and what was never meant for two threads at once is not locked.
"""

from __future__ import annotations

import errno
import functools
import io
import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from codomyrmex_containerization.models.engine import Tls

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

T = TypeVar("T")

_CHUNK_BYTES = 65_536


class TlsSocket:
    """A connection with TLS, in the shape of a socket, as far as http.client and urllib3 need one.

    One lock guards the state of TLS and the order in which its records come and go. Nobody waits while holding it: the
    connection underneath never blocks, waiting is done by `poll`.
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, *, server_name: str) -> None:
        """Take a connection over, with its time limit; nothing is sent before `handshake`."""
        self._timeout_seconds = connection.gettimeout()
        connection.setblocking(False)
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        # Entered again when the garbage collector closes a file of this socket in the middle of a call.
        self._lock = threading.RLock()
        self._unsent = bytearray()  # records that the connection has not taken yet
        self._unread = bytearray()  # what came before our direction was ended
        self._unread_failure: OSError | None = None
        self._send_failure: OSError | None = None
        self._cut = False  # by this side, on purpose
        self._closed = False
        self._files = 0
        self._running = 0

    def handshake(self) -> None:
        """Agree with the server. Raises SSLError (SSLCertVerificationError when it is not trusted), TimeoutError, OSError."""
        with self._used():
            until = self._until()
            self._settle(self._tls.do_handshake, until)
            self._deliver(until)

    # ------------------------------------------------------------------------------------------------------- a socket

    def fileno(self) -> int:
        """Name the connection underneath, for waiting."""
        return self._connection.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """Bound every later read and handshake, and every piece that is sent."""
        self._timeout_seconds = seconds

    def gettimeout(self) -> float | None:
        """Return that bound."""
        return self._timeout_seconds

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Read what is there, waiting for something; empty when the other side has ended its direction."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.recv_into(buffer, size, flags)])

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """Read like `recv`. Raises ConnectionResetError when the connection ends without the word of TLS that all was said."""
        _no_flags(flags)
        with memoryview(buffer) as view, view.cast("B") as whole, whole[: nbytes or len(whole)] as target, self._used():
            return self._settle(lambda: self._read(target), self._until()) if target else 0

    def sendall(self, data: bytes | bytearray | memoryview, flags: int = 0) -> None:
        """Send all of it; the time limit is for each piece."""
        _no_flags(flags)
        with memoryview(data) as view, view.cast("B") as whole, self._used():
            for start in range(0, len(whole), _CHUNK_BYTES):
                until = self._until()
                with whole[start : start + _CHUNK_BYTES] as piece:
                    self._settle(functools.partial(self._tls.write, piece), until)
                self._deliver(until)

    def shutdown(self, how: int) -> None:
        """SHUT_WR: say with TLS's own word that no more comes; reading goes on. Else: cut the connection, for all threads."""
        if how == socket.SHUT_WR:
            with self._used():
                with self._lock:
                    self._say_end()
                self._deliver(self._until())
            return
        self._cut = True
        self._connection.shutdown(how)

    def makefile(self, mode: str = "r", buffering: int | None = None) -> io.BufferedReader:
        """Open a file to read from, which keeps the connection open until it is closed too."""
        if mode != "rb":
            raise ValueError(mode)
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering <= 0 else buffering
        with self._lock:
            self._files += 1
        return io.BufferedReader(socket.SocketIO(self, "r"), size)  # type: ignore[arg-type]  # it is one in shape

    def close(self) -> None:
        """Close it, once the files made of it are closed; whoever waits in it is set free then."""
        with self._lock:
            self._closed = True
            self._close_unused()

    def _decref_socketios(self) -> None:
        # What socket.SocketIO calls when it is closed.
        with self._lock:
            self._files -= 1
            self._close_unused()

    # -------------------------------------------------------------------------------------------- with the lock held

    def _read(self, target: memoryview) -> int:
        if self._unread:
            size = min(len(target), len(self._unread))
            target[:size] = self._unread[:size]
            del self._unread[:size]
            return size
        if self._unread_failure is not None:
            raise self._unread_failure
        try:
            return self._decrypt(target)
        except ssl.SSLZeroReturnError:
            return 0
        except ssl.SSLEOFError:
            if self._cut:
                return 0
        # Outside of the block above, so that nobody takes it for a failure of TLS.
        raise ConnectionResetError(errno.ECONNRESET, "The other side ended the connection in the middle.")

    def _decrypt(self, target: memoryview) -> int:
        size: Any = self._tls.read(len(target), target)  # with a buffer it returns a number, whatever its types say
        return int(size)

    def _say_end(self) -> None:
        # OpenSSL would take data that is still to be read for a mistake of the other side.
        piece = bytearray(_CHUNK_BYTES)
        with memoryview(piece) as target:
            try:
                while size := self._decrypt(target):
                    self._unread += target[:size]
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
                pass  # seen again by whoever reads next
            except ssl.SSLError as error:
                self._unread_failure = error
        # It would rather wait for the other side's word as well; that one is for whoever reads.
        with suppress(ssl.SSLError):
            self._tls.unwrap()

    def _push(self) -> None:
        """Send what the connection takes now."""
        self._unsent += self._outgoing.read()
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._send_failure = error
            self._unsent.clear()

    def _pull(self) -> bool:
        """Hand to TLS what has arrived; False when nothing has."""
        try:
            data = self._connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return True

    def _close_unused(self) -> None:
        if not self._closed or self._files > 0:
            return
        if self._running == 0:
            self._connection.close()
            return
        # The number of a closed connection may be another one's in a moment: the last one to leave closes it.
        self._cut = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------------------------------- waiting

    def _settle(self, act: Callable[[], T], until: float | None) -> T:
        """Do something in TLS, waiting for the other side as often as that needs it."""
        while True:
            with self._lock:
                try:
                    return act()
                except ssl.SSLWantReadError:
                    arrived = self._pull()
                finally:
                    self._push()  # what TLS has to say besides: its part of a handshake, an alert, a new key
                events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            self._wait(0 if arrived else events, until)

    def _deliver(self, until: float | None) -> None:
        """Wait until the connection has taken everything."""
        while True:
            with self._lock:
                self._push()
                if self._send_failure is not None:
                    raise self._send_failure
                if not self._unsent:
                    return
            self._wait(select.POLLOUT, until)

    def _wait(self, events: int, until: float | None) -> None:
        left = math.inf if until is None else until - time.monotonic()
        if left > 0 and not events:
            return
        waiting = select.poll()
        waiting.register(self._connection.fileno(), events)
        if left <= 0 or not waiting.poll(None if until is None else math.ceil(left * 1000)):
            raise TimeoutError("The other side of a connection with TLS took too long.")

    def _until(self) -> float | None:
        return None if self._timeout_seconds is None else time.monotonic() + self._timeout_seconds

    @contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            if self._connection.fileno() < 0:
                raise OSError(errno.EBADF, "The connection is closed.")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._close_unused()


def _no_flags(flags: int) -> None:
    if flags:
        raise ValueError(flags)


def make_context(tls: Tls) -> ssl.SSLContext:
    """Return what an endpoint's settings mean for a handshake. Raises SSLError that names PEM or X509 for unusable files."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.hostname_checks_common_name = False
    made.set_alpn_protocols(["http/1.1"])
    if not tls.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    try:
        if tls.ca is not None:
            made.load_verify_locations(tls.ca)
        else:
            made.load_default_certs()
        if tls.cert is not None:
            # Without a password OpenSSL would ask for that of an encrypted key on the terminal.
            made.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except ssl.SSLError:
        raise
    except OSError as error:
        raise ssl.SSLError(f"A PEM file cannot be read: {error.strerror}") from error
    return made


def adapter(tls: Tls, *, pool_size: int) -> HTTPAdapter:
    """Return what a session sends https:// requests with. Raises SSLError as `make_context` does."""
    return _adapter_class()(make_context(tls), pool_size)  # type: ignore[no-any-return]


@functools.cache
def _adapter_class() -> Any:
    # Made when first needed: starting the server must not load the libraries.
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPSConnection
    from urllib3.connectionpool import HTTPSConnectionPool

    class TlsConnection(HTTPSConnection):
        """A connection that speaks TLS through a TlsSocket; all that counts is in its context."""

        def connect(self) -> None:
            context: Any = self.ssl_context  # the adapter always gives one
            connection = self._new_conn()
            try:
                # The zone of an address is no part of what a certificate certifies.
                name = self.host.strip("[]").partition("%")[0]
                made = TlsSocket(connection, context, server_name=name)
                made.handshake()
            except BaseException:
                connection.close()
                raise
            self.sock = made
            self.is_verified = context.verify_mode is ssl.CERT_REQUIRED

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

        def _validate_conn(self, conn: Any) -> None:
            # Without the warning of the library's about an engine that is not verified: the settings say so themselves.
            if conn.sock is None:
                conn.connect()

    class TlsAdapter(HTTPAdapter):
        """Sends requests with one endpoint's TLS, whatever the request itself says of certificates."""

        def __init__(self, ssl_context: ssl.SSLContext, pool_size: int) -> None:
            self._ssl_context = ssl_context
            super().__init__(pool_maxsize=pool_size)

        def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
            super().init_poolmanager(connections, maxsize, block, ssl_context=self._ssl_context, **options)
            self.poolmanager.pool_classes_by_scheme = {"https": TlsPool}

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
            return None

    return TlsAdapter
