"""What do programs read from and write to: pipes, files, devices, a container's log?

Every stream counts its users; the last one that closes it ends it. Reading returns b"" at the end; writing to a pipe that nobody reads
raises BrokenPipeError, which ends a program as SIGPIPE would.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel

from codomyrmex_containerization.engines.memory import files

CHUNK_BYTES = 64 * 1024
_PIPE_BYTES = 256 * 1024


class Stream:
    """An open file description. `share` adds a user, `close` takes one away."""

    def __init__(self) -> None:
        self._users = 1

    def share(self) -> Stream:
        """Return the same stream for one more user."""
        self._users += 1
        return self

    def close(self) -> None:
        """Give up one use."""
        self._users -= 1
        if self._users == 0:
            self._ended()

    def _ended(self) -> None:
        """Do what is due when nobody uses the stream any more."""

    async def read(self, most: int = CHUNK_BYTES) -> bytes:
        """Return some bytes, or b"" at the end. Raises OSError."""
        raise files.failure(errno.EBADF)

    async def write(self, data: bytes) -> None:
        """Write all bytes. Raises OSError."""
        raise files.failure(errno.EBADF)


class Pipe:
    """Two connected streams: what is written to one is read from the other."""

    def __init__(self) -> None:
        self._held: deque[bytes] = deque()
        self._bytes = 0
        self._changed = anyio.Event()
        self.is_read = self.is_written = True
        self.reader: Stream = _PipeEnd(self, reads=True)
        self.writer: Stream = _PipeEnd(self, reads=False)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def end(self, *, reads: bool) -> None:
        """Close one side."""
        if reads:
            self.is_read = False
            self._held.clear()
        else:
            self.is_written = False
        self._wake()

    async def take(self, most: int) -> bytes:
        """Return what is there, waiting for something."""
        while not self._held:
            if not self.is_written:
                return b""
            await self._changed.wait()
        data = self._held.popleft()
        if len(data) > most:
            self._held.appendleft(data[most:])
            data = data[:most]
        self._bytes -= len(data)
        self._wake()
        return data

    async def put(self, data: bytes) -> None:
        """Hand bytes over, waiting while too many are there."""
        while self.is_read and self._bytes >= _PIPE_BYTES:
            await self._changed.wait()
        if not self.is_read:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._held.append(bytes(data))
        self._bytes += len(data)
        self._wake()


class _PipeEnd(Stream):
    def __init__(self, pipe: Pipe, *, reads: bool) -> None:
        super().__init__()
        self._pipe = pipe
        self._reads = reads

    async def read(self, most: int = CHUNK_BYTES) -> bytes:
        if not self._reads:
            raise files.failure(errno.EBADF)
        return await self._pipe.take(most)

    async def write(self, data: bytes) -> None:
        if self._reads:
            raise files.failure(errno.EBADF)
        for start in range(0, len(data), CHUNK_BYTES):
            await self._pipe.put(data[start : start + CHUNK_BYTES])

    def _ended(self) -> None:
        self._pipe.end(reads=self._reads)


class Held(Stream):
    """Bytes to be read once."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data
        self._offset = 0

    async def read(self, most: int = CHUNK_BYTES) -> bytes:
        """Return the next bytes."""
        found = self._data[self._offset : self._offset + most]
        self._offset += len(found)
        return found


class Sink(Stream):
    """A stream whose bytes go to a function; `ended` is called when nobody writes any more."""

    def __init__(self, put: Callable[[bytes], Awaitable[None]], ended: Callable[[], None]) -> None:
        super().__init__()
        self._put = put
        self._when_ended = ended
        self._since_pause = 0

    async def write(self, data: bytes) -> None:
        """Hand the bytes on; others get their turn now and then."""
        if data:
            await self._put(bytes(data))
            self._since_pause += len(data)
        if self._since_pause >= CHUNK_BYTES:
            self._since_pause = 0
            await anyio.lowlevel.checkpoint()

    def _ended(self) -> None:
        self._when_ended()


class OpenFile(Stream):
    """A file of a tree, with an offset of its own."""

    def __init__(self, tree: files.Tree, file: files.File, *, reads: bool, writes: bool, appends: bool = False) -> None:
        super().__init__()
        self._tree = tree
        self._file = file
        self._reads = reads
        self._writes = writes
        self._appends = appends
        self._offset = 0

    async def read(self, most: int = CHUNK_BYTES) -> bytes:
        """Return the next bytes of the file."""
        if not self._reads:
            raise files.failure(errno.EBADF)
        found = bytes(self._file.data[self._offset : self._offset + most])
        self._offset += len(found)
        return found

    async def write(self, data: bytes) -> None:
        """Write at the offset, or at the end."""
        if not self._writes:
            raise files.failure(errno.EBADF)
        at = len(self._file.data) if self._appends else self._offset
        self._tree.write(self._file, at, data)
        self._offset = at + len(data)


class Special(Stream):
    """A device file: null, zero, full, random."""

    def __init__(self, name: files.DeviceName) -> None:
        super().__init__()
        self._name = name

    async def read(self, most: int = CHUNK_BYTES) -> bytes:
        """Return nothing, zeros, or random bytes."""
        match self._name:
            case "zero" | "full":
                return bytes(most)
            case "random":
                return os.urandom(most)
            case _:
                return b""

    async def write(self, data: bytes) -> None:
        """Forget the bytes; `full` has no room for them."""
        if self._name == "full" and data:
            raise files.failure(errno.ENOSPC)


def open_path(
    view: files.View, path: str, mode: str, *, cwd: str, who: files.User, standard: dict[int, Stream] | None = None
) -> Stream:
    """Open a path as open(2) does: `mode` is `r`, `w`, `a` or `r+`. Raises OSError."""
    place = view.find(path, cwd, who)
    node = place.node
    writes = mode != "r"
    if node is None:
        if mode not in ("w", "a", "r+"):
            raise files.failure(errno.ENOENT, path)
        node = view.add(place, files.File(0o644, who.uid, who.gid), who)
    elif isinstance(node, files.Folder) and writes:
        raise files.failure(errno.EISDIR, path)
    elif not who.may(node, 4 if mode == "r" else 2):
        raise files.failure(errno.EACCES, path)
    if isinstance(node, files.Device):
        numbers = {"stdin": 0, "stdout": 1, "stderr": 2}
        if node.name in numbers:
            held = (standard or {}).get(numbers[node.name])
            if held is None:
                raise files.failure(errno.ENXIO, path)
            return held.share()
        return Special(node.name)
    if not isinstance(node, files.File):
        raise files.failure(errno.EISDIR, path)
    if writes and place.read_only:
        raise files.failure(errno.EROFS, path)
    if mode == "w":
        place.tree.resize(node, 0)
    return OpenFile(place.tree, node, reads=mode in ("r", "r+"), writes=writes, appends=mode == "a")
