"""How is one attached to a container, or to a command in one, that conmon watches?

conmon listens on a socket of packets, `attach`, from before the program starts; each packet that it sends holds the number of a stream and
at most 8 KiB of what was said there, each that it gets goes to the program's stdin.

- conmon waits for whoever is attached: nothing is lost, however slowly it is read. It also waits with the exit file. So whoever is
  attached reads to the end, or leaves. One who attaches before the start hears the first word; a second one just then may miss it.
- The program has a stdin when conmon was started with `-i`. It ends when a client has closed its side, or has left; with
  `--leave-stdin-open` it would never end.
- A command in a container has a conmon of its own, with a folder of its own as `-b`, started with `-e --exec-process-spec FILE
  --exec-attach`. It says one line on `_OCI_ATTACHPIPE` when its socket is there, and starts the command when it is given a second byte
  on `_OCI_STARTPIPE`: one attaches in between.
- The end of the output comes just before the exit file; a conmon that was killed ends it likewise, and leaves no such file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.lowlevel

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import OutputFrame, Stream

_STREAMS: dict[int, Stream] = {2: "stdout", 3: "stderr"}
_LARGEST_PACKET_BYTES = 64 * 1024
_STDIN_PACKET_BYTES = 8 * 1024  # conmon cuts off what is longer than its own buffer
_TURN_BYTES = 1024 * 1024
_END_OF_TERMINAL_INPUT = b"\x04"


class SocketAttachment(base.Attachment):
    """What comes over one connection to conmon."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def frames(self) -> AsyncIterator[OutputFrame]:
        """Yield output until the program's end. Raises EngineUnavailable."""
        turn_bytes = 0
        while packet := await self._packet():
            turn_bytes += len(packet)
            if turn_bytes > _TURN_BYTES:
                turn_bytes = 0
                await anyio.lowlevel.checkpoint()
            stream = _STREAMS.get(packet[0])
            if stream is not None:
                yield OutputFrame(stream, packet[1:])

    async def _packet(self) -> bytes:
        """Return the next packet, waiting for it; nothing at the end."""
        while True:
            try:
                return self._connection.recv(_LARGEST_PACKET_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._connection)
            except ConnectionResetError:
                # It has ended and left some of its input unread. That is told before what it had said, and once.
                await anyio.lowlevel.checkpoint()
            except OSError as error:
                raise _lost(error) from error


@asynccontextmanager
async def attached(path: Path, *, stdin: bytes | None, tty: bool = False) -> AsyncIterator[SocketAttachment]:
    """Attach to the socket `path` and hand over `stdin`, after which the program's input ends; None leaves it alone.

    Leaving ends the input too, and nothing else. With `tty` the end is said as at a terminal. Raises EngineUnavailable (nobody is there).
    """
    connection = _connected(path)
    with connection:
        async with threads.task_group() as tasks:
            if stdin is not None:
                tasks.start_soon(_feed, connection, _typed(stdin) if tty else stdin)
            try:
                yield SocketAttachment(connection)
            finally:
                tasks.cancel_scope.cancel()


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        # An address has room for 107 bytes: less than many a path.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
    except OSError as error:
        connection.close()
        raise _lost(error) from error
    return connection


def _typed(stdin: bytes) -> bytes:
    """Return what is typed at a terminal; its end counts at the beginning of a line only, or twice."""
    return stdin + _END_OF_TERMINAL_INPUT * (1 if stdin.endswith(b"\n") or not stdin else 2)


async def _feed(connection: socket.socket, stdin: bytes) -> None:
    """Send everything, then close this side. A program that ends, or reads no further, is none of our business."""
    with suppress(OSError):
        for start in range(0, len(stdin), _STDIN_PACKET_BYTES):
            packet = stdin[start : start + _STDIN_PACKET_BYTES]
            while not _sent(connection, packet):
                await anyio.wait_writable(connection)
        connection.shutdown(socket.SHUT_WR)


def _sent(connection: socket.socket, packet: bytes) -> bool:
    try:
        connection.send(packet)  # whole or not at all: the socket is one of packets
    except BlockingIOError:
        return False
    return True


def _lost(error: OSError) -> errors.EngineUnavailable:
    return errors.EngineUnavailable(
        f"The container's monitor does not answer: {error.strerror or error}.",
        hint="look at the container with container_inspect; it may have ended or been removed meanwhile",
    )
