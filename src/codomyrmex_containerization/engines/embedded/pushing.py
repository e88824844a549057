"""How does an image of the store get to a registry? What is there already is not sent, what the registry has elsewhere is mounted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.clients import blobs, descriptors, distribution
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import content, content_config, content_index, content_out, layer_tar
from codomyrmex_containerization.models import reference

_AT_ONCE = 3
_MOST_ORIGINS = 2
_PIECE_BYTES = 1024 * 1024
_MOST_REPORTS = 1000

Told = Callable[[str, int, int], None]  # what is done, bytes sent, bytes to send


@dataclass(slots=True)
class Pushed:
    """What a push did: the digest that the registry has now, the image's id, and how its layers got there."""

    digest: str
    id: str
    uploaded: int = 0
    mounted: int = 0
    there: int = 0
    uploaded_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the store, to be read from any place on."""

    reader: content_out.Reader
    stored: content_index.StoredLayer

    @contextmanager
    def open(self, offset: int) -> Iterator[layer_tar.Stream]:
        """Open it from a place on; what comes before is read over, as one made here is packed while it is read."""
        with self.reader.packed(self.stored) as stream:
            while offset:
                piece = stream.read(min(offset, _PIECE_BYTES))
                if not piece:
                    raise errors.Conflict(
                        f"The layer {self.stored.diff_id} is shorter than it was.",
                        hint="load, pull or build the image again",
                    )
                offset -= len(piece)
            yield stream


@dataclass(frozen=True, slots=True)
class _Small:
    """A configuration."""

    data: bytes

    @contextmanager
    def open(self, offset: int) -> Iterator[_Rest]:
        """Open it from a place on."""
        yield _Rest(self.data[offset:])


@dataclass(slots=True)
class _Rest:
    data: bytes

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end."""
        piece, self.data = self.data[:count], self.data[count:]
        return piece


@asynccontextmanager
async def pushing(
    store: content.ContentStore,
    client: distribution.Client,
    image: str,
    target: str,
    *,
    done: Callable[[Pushed], None] = lambda pushed: None,
) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
    """Push an image while the block lasts, telling how far it is; leaving the block earlier stops it. `done` is told in a thread.

    Raises what `push` raises.
    """
    send, receive = anyio.create_memory_object_stream[base.PullProgress](_MOST_REPORTS)

    def passed(text: str, sent: int, total: int) -> None:
        # Nobody may listen, or not so fast.
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            send.send_nowait(base.PullProgress(text, sent, total))

    async def work() -> None:
        async with send:
            found = await push(store, client, image, target, passed=passed)
            await threads.run(lambda: done(found), deadline_seconds=None, what="noting the push")
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await send.send(_last(found))

    async with threads.task_group() as tasks, receive:
        tasks.start_soon(work)
        try:
            yield receive
        finally:
            tasks.cancel_scope.cancel()


def _last(found: Pushed) -> base.PullProgress:
    done = base.Transfer(found.digest, found.id, found.uploaded, found.mounted, found.there, found.uploaded_bytes)
    return base.PullProgress("pushed", found.uploaded_bytes, found.uploaded_bytes, done)


async def push(
    store: content.ContentStore,
    client: distribution.Client,
    image: str,
    target: str,
    *,
    passed: Told = lambda text, done, total: None,
) -> Pushed:
    """Push an image under a name of a registry; the tag is moved when all it names is there.

    Raises NotFound, Ambiguous (the image), Conflict (it is not whole), Unauthorized, InvalidArgument, EngineUnavailable.
    """
    wanted = reference.parse(target)
    if wanted.digest is not None:
        raise errors.InvalidArgument(f"{target!r} is no tag: it has a digest.", hint="leave out what follows '@'")
    await threads.run(lambda: store.pack(image), deadline_seconds=None, what=f"packing {image}")
    held = store.outgoing(image)
    # Taken and given back in whatever thread: it is a lock of the file, not of the thread.
    id, record, reader = await threads.run(held.__enter__, deadline_seconds=None, what=f"opening {image}")
    try:
        manifest, config = await threads.run(
            lambda: (reader.small(record.digest, "manifest"), reader.small(id, "configuration")),
            deadline_seconds=None,
            what=f"reading {image}",
        )
        found = descriptors.parse(manifest, "", where=image, digest=record.digest)
        if not isinstance(found, descriptors.Manifest):
            raise content_config.bad("manifest", "it is an index")
        async with client.work() as opened:
            job = _Job(
                store, opened.repository(wanted), found, {one.blob: one for one in record.layers}, reader, passed
            )
            job.result.id = id
            await job.run(config, wanted.tag or reference.DEFAULT_TAG)
        return job.result
    finally:
        with anyio.CancelScope(shield=True):
            await threads.run(lambda: held.__exit__(None, None, None), deadline_seconds=None, what=f"closing {image}")


class _Job:
    """One push."""

    def __init__(
        self,
        store: content.ContentStore,
        repository: distribution.Repository,
        manifest: descriptors.Manifest,
        stored: dict[str, content_index.StoredLayer],
        reader: content_out.Reader,
        passed: Told,
    ) -> None:
        self._store = store
        self._repository = repository
        self._manifest = manifest
        self._stored = stored
        self._reader = reader
        self._passed = passed
        self._done_bytes = 0
        self._total_bytes = sum(one.size_bytes for one in manifest.blobs)
        self._places = anyio.Semaphore(_AT_ONCE)
        self.result = Pushed(manifest.digest, "")

    async def run(self, config: bytes, tag: str) -> None:
        """Send what the registry lacks, the manifest last."""
        async with threads.task_group() as tasks:
            for layer in {one.digest: one for one in self._manifest.layers}.values():
                await self._places.acquire()
                tasks.start_soon(self._layer, layer)
        await self._repository.blobs.give(self._manifest.config, _Small(config))
        await self._repository.manifests.put(tag, self._manifest.data, self._manifest.media_type)

    async def _layer(self, layer: descriptors.Descriptor) -> None:
        short = layer.digest.partition(":")[2][:12]

        def passed(count: int) -> None:
            self._done_bytes += count
            self._passed(f"layer {short}: uploading", self._done_bytes, self._total_bytes)

        try:
            stored = self._stored.get(layer.digest)
            if stored is None:
                raise content_config.bad("manifest", f"it names a layer that the image does not have: {layer.digest}")
            origins = await threads.run(
                lambda: self._origins(layer.digest), deadline_seconds=None, what="looking at the images"
            )
            outcome = await self._repository.blobs.give(
                layer, _Layer(self._reader, stored), origins=origins, passed=passed
            )
        finally:
            self._places.release()
        self._count(outcome, layer)
        self._passed(f"layer {short}: {outcome}", self._done_bytes, self._total_bytes)

    def _count(self, outcome: blobs.Outcome, layer: descriptors.Descriptor) -> None:
        if outcome == "uploaded":
            self.result.uploaded += 1
            self.result.uploaded_bytes += layer.size_bytes
            return
        self._total_bytes -= layer.size_bytes
        if outcome == "mounted":
            self.result.mounted += 1
        else:
            self.result.there += 1

    def _origins(self, blob: str) -> list[str]:
        """Return repositories of the same registry that had this layer when it came here."""
        named = [reference.parse(one) for one in self._store.names_with(blob)]
        paths = [one.path for one in named if one.domain == self._repository.site.name]
        return [one for one in dict.fromkeys(paths) if one != self._repository.path][:_MOST_ORIGINS]
