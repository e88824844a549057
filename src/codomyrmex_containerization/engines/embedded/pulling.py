"""How does an image come from a registry into the store? Its layers stream in side by side, each unpacked while it comes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.clients import descriptors, distribution
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import content, content_config, content_intake, layer_tar, objects
from codomyrmex_containerization.models import reference

_CONFIGS = (content_intake.OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
_MOST_PIECES = 4
_REPORT_SECONDS = 0.1
_MOST_REPORTS = 1000


@dataclass(slots=True)
class Pulled:
    """What a pull brought: the manifest's digest, the image, and how much of it had to come."""

    digest: str
    image: objects.Image | None = None
    layers_pulled: int = 0
    layers_there: int = 0
    pulled_bytes: int = 0


@asynccontextmanager
async def pulling(
    store: Callable[[], content.ContentStore],
    client: distribution.Client,
    text: str,
    *,
    platform: str | None,
    done: Callable[[Pulled], None] = lambda pulled: None,
) -> AsyncIterator[AsyncIterator[base.PullProgress]]:
    """Pull an image while the block lasts, telling how far it is; leaving the block earlier stops it, and nothing is kept.

    `done`, in a thread, hears what came. Raises InvalidArgument (damaged, not what it should be), NotFound, Unauthorized,
    Unsupported, Refused, EngineUnavailable.
    """
    send, receive = anyio.create_memory_object_stream[base.PullProgress](_MOST_REPORTS)

    async def work() -> None:
        async with send, client.work() as opened:
            images = await threads.run(store, deadline_seconds=None, what="opening the images")
            job = await _prepared(opened, images, text, platform, _Report(send))
            found = await job.run()
            await threads.run(lambda: done(found), deadline_seconds=None, what="noting the pull")
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await send.send(_last(found))

    async with threads.task_group() as tasks, receive:
        tasks.start_soon(work)
        try:
            yield receive
        finally:
            tasks.cancel_scope.cancel()


def _last(found: Pulled) -> base.PullProgress:
    id = found.image.id if found.image is not None else ""
    done = base.Transfer(found.digest, id, found.layers_pulled, 0, found.layers_there, found.pulled_bytes)
    return base.PullProgress("pulled", found.pulled_bytes, found.pulled_bytes, done)


class _Report:
    """Tells how far a pull is, not more often than somebody could look."""

    def __init__(self, told: MemoryObjectSendStream[base.PullProgress]) -> None:
        self._told = told
        self._next = 0.0
        self.done_bytes = 0
        self.total_bytes = 0

    def say(self, text: str) -> None:
        """Tell something that is not to be missed."""
        # Nobody may listen, or not so fast.
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._told.send_nowait(base.PullProgress(text, self.done_bytes, self.total_bytes))

    def passed(self, count: int, text: str) -> None:
        """Hear that bytes have come."""
        self.done_bytes += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REPORT_SECONDS
            self.say(text)


@dataclass(slots=True)
class _Job:
    """One image that is known, and whose layers are still to come."""

    store: content.ContentStore
    repository: distribution.Repository
    manifest: descriptors.Manifest
    config: bytes = field(repr=False)
    name: str
    report: _Report
    feeds: list[_Feed] = field(default_factory=list)
    stopped: bool = False

    async def run(self) -> Pulled:
        """Bring the layers in, and the image with them."""
        token = anyio.lowlevel.current_token()
        found = Pulled(self.manifest.digest)
        async with threads.task_group() as tasks:

            def opener(layer: descriptors.Descriptor) -> Callable[[], AbstractContextManager[layer_tar.Stream]]:
                @contextmanager
                def opened() -> Iterator[layer_tar.Stream]:
                    feed = _Feed()
                    found.layers_pulled += 1
                    anyio.from_thread.run_sync(self._start, tasks, layer, feed, token=token)
                    try:
                        yield feed
                    finally:
                        feed.close()

                return opened

            try:
                await threads.run(lambda: self._take(opener, found), deadline_seconds=None, what=f"pulling {self.name}")
            finally:
                self.stopped = True
                for feed in self.feeds:
                    feed.close()
            tasks.cancel_scope.cancel()
        found.pulled_bytes = self.report.done_bytes
        return found

    def _start(self, tasks: TaskGroup, layer: descriptors.Descriptor, feed: _Feed) -> None:
        if self.stopped:
            raise errors.Cancelled("The pull was stopped.")
        self.feeds.append(feed)
        tasks.start_soon(self._fetch, layer, feed)

    async def _fetch(self, layer: descriptors.Descriptor, feed: _Feed) -> None:
        short = layer.digest.partition(":")[2][:12]
        failure: BaseException | None = errors.Cancelled("The pull was stopped.")
        try:
            await self.repository.blobs.fetch(
                layer, feed.write, passed=lambda count: self.report.passed(count, f"layer {short}: downloading")
            )
            failure = None
            self.report.say(f"layer {short}: downloaded")
        except errors.ContainerizationError as error:
            failure = error
        finally:
            feed.end(failure)

    def _take(
        self,
        opener: Callable[[descriptors.Descriptor], Callable[[], AbstractContextManager[layer_tar.Stream]]],
        found: Pulled,
    ) -> None:
        layers = tuple(
            content_intake.SentLayer(one.digest, one.media_type, opener(one)) for one in self.manifest.layers
        )
        sent = content_intake.SentImage(self.manifest.data, self.config, layers)
        with self.store.taking(self.manifest.config.digest):
            if self.stopped:
                raise errors.Cancelled("The pull was stopped.")
            found.image = self.store.add(sent, names=(self.name,))
        found.layers_there = len(layers) - found.layers_pulled


async def _prepared(
    opened: distribution.Work, store: content.ContentStore, text: str, platform: str | None, report: _Report
) -> _Job:
    """Find the image; nothing of its layers yet."""
    wanted = reference.parse(text)
    here = descriptors.platform_of(platform or f"linux/{content_config.host_architecture()}")
    repository, manifest = await opened.find(wanted, here)
    where = str(wanted)
    _require_image(manifest, where)
    config = await repository.blobs.small(manifest.config, most_bytes=content_config.MOST_JSON_BYTES)
    described = content_config.describe(config)
    own = descriptors.Platform(described.os, described.architecture, described.variant)
    if platform is not None and not own.runs(here):
        raise errors.NotFound(
            f"{where} has no image for {here}; it has: {own}.",
            hint="pass that platform, if this machine can run it",
            details={"missing": "image", "platforms": [str(own)]},
        )
    if len(described.diff_ids) != len(manifest.layers):
        raise descriptors.bad(where, "its configuration names another number of layers")
    pairs = list(zip(described.diff_ids, manifest.layers, strict=True))
    lacking = await threads.run(
        lambda: {one.digest for diff_id, one in pairs if not store.has_layer(diff_id, one.digest)},
        deadline_seconds=None,
        what="looking at the images",
    )
    sizes = {one.digest: one.size_bytes for one in manifest.layers}
    report.total_bytes = sum(size for digest, size in sizes.items() if digest in lacking)
    report.say(f"{len(lacking)} of {len(sizes)} layers to download")
    return _Job(store, repository, manifest, config, where, report)


def _require_image(manifest: descriptors.Manifest, where: str) -> None:
    """Raise Unsupported for what is kept in registries and is no image, and for what this store cannot take."""
    if manifest.config.media_type not in _CONFIGS:
        kind = manifest.artifact_type or manifest.config.media_type
        raise errors.Unsupported(f"{where} is no image but {kind[:100]!r}.", hint="name an image")
    if len(manifest.layers) > content_config.MOST_LAYERS:
        raise descriptors.bad(where, f"it has more than {content_config.MOST_LAYERS} layers")
    for layer in manifest.layers:
        if layer.media_type.endswith("+encrypted"):
            raise errors.Unsupported(f"{where} is encrypted.", hint="have it pushed without encryption")
        if ".tar" not in layer.media_type:
            raise errors.Unsupported(
                f"{where} has a layer that is none: {layer.media_type[:100]!r}.", hint="name an image"
            )
    if any(not content_config.is_digest(one.digest) for one in manifest.blobs):
        raise errors.Unsupported(f"{where} is named by digests other than sha256.", hint="have it pushed with sha256")


class _Feed:
    """Hands a layer from the connection to the thread that unpacks it, a few pieces ahead."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._at = 0  # in the first piece
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._failure: BaseException | None = None

    def write(self, data: bytes) -> None:
        """Give the next piece, in a thread; waits while there are too many. Raises Cancelled when nobody wants it."""
        with self._changed:
            while len(self._pieces) >= _MOST_PIECES and not self._closed:
                self._changed.wait()
            if self._closed:
                raise errors.Cancelled("The pull was stopped.")
            self._pieces.append(data)
            self._changed.notify_all()

    def end(self, failure: BaseException | None) -> None:
        """Say that nothing more comes, and why."""
        with self._changed:
            self._ended, self._failure = True, failure
            self._changed.notify_all()

    def close(self) -> None:
        """Say that nobody wants any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def read(self, count: int, /) -> bytes:
        """Return at most so many of the next bytes, none at the end. Raises what the connection raised."""
        with self._changed:
            while not self._pieces and not self._ended and not self._closed:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            if not self._pieces:
                if self._closed and not self._ended:
                    raise errors.Cancelled("The pull was stopped.")
                return b""
            first = self._pieces[0]
            piece = first[self._at : self._at + count]
            self._at += len(piece)
            if self._at == len(first):
                self._pieces.popleft()
                self._at = 0
                self._changed.notify_all()
            return piece
