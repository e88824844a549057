"""How do blobs come from a registry and get to it? In streams, checked, going on where a broken connection left off.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Literal, Protocol

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.clients import replies, tokens, transport
from codomyrmex_containerization.clients.descriptors import Descriptor

if TYPE_CHECKING:
    import httpx2

Outcome = Literal["there", "mounted", "uploaded"]
Write = Callable[[bytes], None]  # takes the next piece, in a thread; may block
Passed = Callable[[int], None]  # is told how many bytes more have gone by; negative: they come again

_PIECE_BYTES = 1024 * 1024
# All in one request, as Docker and Podman do: some registries take no second one, nor one that names its range.
_CHUNK_BYTES = 2**50
_MOST_BREAKS = 100
_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?\Z")


class Source(Protocol):
    """Contents that are to be sent: read in a thread, from any place on."""

    def open(self, offset: int) -> AbstractContextManager[Readable]:
        """Open the contents from a place on."""


class Readable(Protocol):
    """Something to read from."""

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end."""


class Blobs:
    """The blobs of one repository."""

    def __init__(self, way: transport.Transport, path: str) -> None:
        self._way = way
        self._path = path

    def _target(self, rest: str) -> str:
        return f"/v2/{self._path}/blobs/{rest}"

    # ------------------------------------------------------------------------------------------------------ download

    async def small(self, blob: Descriptor, *, most_bytes: int) -> bytes:
        """Return a short blob, such as a configuration. Raises what `fetch` raises, and InvalidArgument for a long one."""
        asked = self._way.asked(_named(blob))
        if blob.size_bytes > most_bytes:
            raise replies.changed(asked, f"it would have {blob.size_bytes:,} bytes, which is too large for what it is")
        found = bytearray()
        await self.fetch(blob, found.extend)
        return bytes(found)

    async def fetch(self, blob: Descriptor, write: Write, *, passed: Passed = lambda count: None) -> None:
        """Hand a blob to `write`, piece by piece, in order; it is checked when the last piece has gone there.

        Raises InvalidArgument (another digest or size), NotFound, Unauthorized, EngineUnavailable.
        """
        download = _Download(blob, write, passed, self._way.asked(_named(blob)))
        breaks = stuck = 0
        while not download.is_complete:
            before = download.count
            problem = await self._fetch_on(download)
            if problem is None:
                continue
            breaks += 1
            # One that gets on is followed for long, one that does not for a few tries.
            stuck = stuck + 1 if download.count == before else 1
            if breaks >= _MOST_BREAKS or stuck >= self._way.pace.attempts:
                raise replies.unreachable(
                    download.asked, f"{problem} after {download.count:,} of {blob.size_bytes:,} bytes"
                )
            await self._way.pause(stuck)
        download.finish()

    async def _fetch_on(self, download: _Download) -> str | None:
        """Fetch from where we are; return what broke the connection."""
        blob, offset = download.blob, download.count
        call = transport.Call(
            "GET",
            self._target(blob.digest),
            _named(blob),
            scopes=(tokens.scope(self._path, "pull"),),
            headers={"range": f"bytes={offset}-{blob.size_bytes - 1}"} if offset else None,
            good=(200, 206) if offset else (200,),
        )
        async with self._way.send(call) as response:
            download.begin(response)
            async with aclosing(response.aiter_raw()) as pieces:
                while True:
                    try:
                        piece = await anext(pieces, b"")
                    except transport.broken() as error:
                        await download.flush()
                        return transport.reason(error)
                    if not piece:
                        break
                    await download.add(piece)
            await download.flush()
        return None if download.is_complete else "the connection ended early"

    # -------------------------------------------------------------------------------------------------------- upload

    async def has(self, digest: str) -> bool:
        """Say whether the repository has a blob."""
        call = transport.Call(
            "HEAD",
            self._target(digest),
            f"blob {digest}",
            scopes=(tokens.scope(self._path, "pull"),),
            good=(200, 404),
        )
        async with self._way.send(call) as response:
            return response.status_code == 200

    async def give(
        self, blob: Descriptor, source: Source, *, origins: Sequence[str] = (), passed: Passed = lambda count: None
    ) -> Outcome:
        """See to it that the repository has a blob; `origins` are repositories of the same registry that may have it.

        Raises InvalidArgument (another digest than it says), Unauthorized, EngineUnavailable.
        """
        if await self.has(blob.digest):
            return "there"
        session = ""
        for origin in (one for one in origins if one != self._path):
            session = await self._begin(blob, origin)
            if not session:
                return "mounted"
        await self._upload(blob, session or await self._begin(blob, None), source, passed)
        return "uploaded"

    async def mount(self, blob: Descriptor, origin: str) -> bool:
        """Take a blob over from another repository of the same registry, if that can be done without sending it."""
        session = await self._begin(blob, origin)
        if session:
            await self._cancel(session)
        return not session

    async def _begin(self, blob: Descriptor, origin: str | None) -> str:
        """Begin an upload and return where it goes; nothing when the blob was mounted instead."""
        query = f"?mount={blob.digest}&from={origin}" if origin else ""
        scopes = [tokens.scope(self._path, "pull", "push")]
        scopes += [tokens.scope(origin, "pull")] if origin else []
        call = transport.Call(
            "POST",
            self._target("uploads/") + query,
            f"the upload of blob {blob.digest}",
            scopes=tuple(scopes),
            headers={"content-length": "0"},
            good=(201, 202) if origin else (202,),
        )
        async with self._way.send(call) as response:
            return "" if response.status_code == 201 else await self._next(response, call)

    async def _next(self, response: httpx2.Response, call: transport.Call) -> str:
        location = response.headers.get("location")
        if not location:
            raise replies.nonsense(self._way.asked(call.what), "it does not say where the upload goes")
        return await self._way.url(location)

    async def _upload(self, blob: Descriptor, session: str, source: Source, passed: Passed) -> None:
        offset = begun = stuck = 0
        while True:
            try:
                while offset < blob.size_bytes:
                    session, offset = await self._chunk(blob, session, source, offset, passed)
                return await self._finish(blob, session)
            except (errors.EngineUnavailable, errors.NotFound):  # not found: the upload, which was forgotten
                stuck += 1
                if stuck >= self._way.pace.attempts:
                    raise
            await self._way.pause(stuck)
            if await self.has(blob.digest):
                return None  # the answer was lost, not the request
            session, arrived = await self._resume(blob, session)
            passed(arrived - offset)
            # One that gets on is followed for long; the end of it is no end when it cannot be reached.
            stuck = 0 if begun < arrived < blob.size_bytes else stuck
            offset, begun = arrived, max(begun, arrived)

    async def _chunk(
        self, blob: Descriptor, session: str, source: Source, offset: int, passed: Passed
    ) -> tuple[str, int]:
        """Send the next chunk; return where the following one goes, and how much has arrived."""
        end = min(offset + _CHUNK_BYTES, blob.size_bytes)
        sent = 0

        async def content() -> AsyncIterator[bytes]:
            nonlocal sent
            passed(-sent)  # it is begun again
            sent = 0
            async for piece in _pieces(source, offset, end - offset):
                yield piece
                sent += len(piece)
                passed(len(piece))

        headers = {"content-type": "application/octet-stream", "content-length": str(end - offset)}
        if (offset, end) != (0, blob.size_bytes):
            headers["content-range"] = f"{offset}-{end - 1}"
        call = transport.Call(
            "PATCH",
            session,
            f"the upload of blob {blob.digest}",
            scopes=(tokens.scope(self._path, "pull", "push"),),
            headers=headers,
            content=content,
            good=(201, 202, 204),
            repeats=False,
        )
        try:
            async with self._way.send(call) as response:
                arrived = _arrived(response)
                if arrived is not None and arrived != end:
                    raise replies.nonsense(self._way.asked(call.what), "it counts other bytes than were sent")
                return await self._next(response, call), end
        except errors.ContainerizationError:
            passed(-sent)
            raise

    async def _finish(self, blob: Descriptor, session: str) -> None:
        mark = "&" if "?" in session else "?"
        call = transport.Call(
            "PUT",
            f"{session}{mark}digest={blob.digest}",
            f"the end of the upload of blob {blob.digest}",
            scopes=(tokens.scope(self._path, "pull", "push"),),
            headers={"content-length": "0"},
            good=(201, 204),
            repeats=False,
        )
        async with self._way.send(call):
            pass

    async def _resume(self, blob: Descriptor, session: str) -> tuple[str, int]:
        """Ask how much has arrived; an upload that the registry has forgotten is begun again."""
        call = transport.Call(
            "GET",
            session,
            f"the upload of blob {blob.digest}",
            scopes=(tokens.scope(self._path, "pull", "push"),),
            good=(204, 400, 404, 405, 416),  # not all can be asked
        )
        async with self._way.send(call) as response:
            if response.status_code == 204:
                arrived = _arrived(response)
                if arrived is not None and arrived <= blob.size_bytes:
                    return await self._next(response, call) if response.headers.get("location") else session, arrived
        return await self._begin(blob, None), 0

    async def _cancel(self, session: str) -> None:
        call = transport.Call(
            "DELETE",
            session,
            "the end of an upload",
            scopes=(tokens.scope(self._path, "pull", "push"),),
            good=(200, 202, 204, 404, 405),
        )
        async with self._way.send(call):
            pass


class _Download:
    """What has come of a blob."""

    def __init__(self, blob: Descriptor, write: Write, passed: Passed, asked: replies.Asked) -> None:
        self.blob = blob
        self.asked = asked
        self.count = 0
        self._write = write
        self._passed = passed
        self._hash = hashlib.new(blob.digest.partition(":")[0])
        self._waiting = bytearray()
        self._skip = 0
        self._is_begun = False

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come."""
        return self._is_begun and self.count == self.blob.size_bytes

    def begin(self, response: httpx2.Response) -> None:
        """Look at how an answer begins. Raises InvalidArgument when it cannot be what was asked for."""
        self._is_begun = True
        if response.headers.get("content-encoding", "identity") != "identity":
            raise replies.changed(self.asked, "it is packed on the way, which was not asked for")
        self._skip = 0
        expected = self.blob.size_bytes
        if response.status_code == 206:
            found = _RANGE.match(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != self.count:
                raise replies.nonsense(self.asked, "it goes on at another place than asked for")
            expected -= self.count
        else:
            self._skip = self.count  # it begins anew: what is known is passed over
        told = response.headers.get("content-length")
        if told is not None and told.isdecimal() and int(told) != expected:
            raise replies.changed(self.asked, f"it has {told} bytes where {expected} were to come")

    async def add(self, piece: bytes) -> None:
        """Take the next bytes. Raises InvalidArgument when there are more than there should be."""
        if self._skip:
            skipped = min(self._skip, len(piece))
            self._skip -= skipped
            piece = piece[skipped:]
        if self.count + len(self._waiting) + len(piece) > self.blob.size_bytes:
            raise replies.changed(self.asked, f"it is longer than its {self.blob.size_bytes:,} bytes")
        self._waiting += piece
        if len(self._waiting) >= _PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Hand on what has come."""
        data = bytes(self._waiting)
        self._waiting.clear()
        if not data:
            return

        def hand_on() -> None:
            self._hash.update(data)
            self._write(data)

        await threads.run(hand_on, deadline_seconds=None, what="keeping a blob")
        self.count += len(data)
        self._passed(len(data))

    def finish(self) -> None:
        """Check the digest. Raises InvalidArgument."""
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != self.blob.digest:
            raise replies.changed(self.asked, f"its digest is {found}")


async def _pieces(source: Source, offset: int, count: int) -> AsyncIterator[bytes]:
    """Yield so many bytes of what is to be sent. Raises InvalidArgument when there are fewer."""
    held = source.open(offset)
    stream = await threads.run(held.__enter__, deadline_seconds=None, what="opening a blob")
    try:
        while count:
            most = min(_PIECE_BYTES, count)
            piece = await threads.run(
                functools.partial(stream.read, most), deadline_seconds=None, what="reading a blob"
            )
            if not piece:
                raise errors.InvalidArgument("A blob is shorter than it should be.", hint="make the image again")
            count -= len(piece)
            yield piece
    finally:
        held.__exit__(None, None, None)


def _read(stream: Readable, count: int) -> bytes:
    """Read so many bytes, also from what gives them in very small pieces."""
    found = bytearray()
    while len(found) < count and (piece := stream.read(count - len(found))):
        found += piece
    return bytes(found)


def _arrived(response: httpx2.Response) -> int | None:
    """Return how many bytes a registry says that it has; `0-0` is none or one."""
    found = _RANGE.match(response.headers.get("range", ""))
    if found is None or int(found[1]) != 0:
        return None
    return int(found[2]) + 1 if int(found[2]) else None


def _named(blob: Descriptor) -> str:
    return f"blob {blob.digest}"
