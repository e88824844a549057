"""How does an image go from one registry to another without an engine? What is there already is not sent, the tag moves last."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.clients import blobs, descriptors, distribution
from codomyrmex_containerization.clients.descriptors import Descriptor, Index, Manifest
from codomyrmex_containerization.models.reference import DEFAULT_TAG, ImageReference

_AT_ONCE = 3
_MOST_MANIFESTS = 2000
_MOST_DEPTH = 4

Told = Callable[[str, int], None]  # what was done, and how many bytes were sent for it


@dataclass(slots=True)
class Copied:
    """What a copy did: the digest that the target has now, and how its blobs got there."""

    digest: str = ""
    manifests: int = 0
    uploaded: int = 0
    mounted: int = 0
    there: int = 0
    uploaded_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    """A blob that was fetched to be sent on."""

    file: BinaryIO

    @contextmanager
    def open(self, offset: int) -> Iterator[BinaryIO]:
        """Open it from a place on."""
        self.file.seek(offset)
        yield self.file


async def copy(
    work: distribution.Work,
    source: ImageReference,
    target: ImageReference,
    *,
    platform: descriptors.Platform | None = None,
    referrers: bool = False,
    told: Told = lambda text, sent: None,
) -> Copied:
    """Copy an image, or with `platform` None all that an index names; with `referrers` also its signatures and the like.

    Raises NotFound, Unauthorized, InvalidArgument (damaged, a target by digest), EngineUnavailable.
    """
    if target.digest is not None:
        raise errors.InvalidArgument(f"{target} is no tag: it has a digest.", hint="leave out what follows '@'")
    job = _Job(work.repository(source), work.repository(target), told)
    name = source.digest or source.tag or DEFAULT_TAG
    if platform is not None:
        found: Manifest | Index = await job.source.manifests.pick(name, platform)
    else:
        found = await job.source.manifests.get(name)
    await job.contents(found, depth=0)
    job.result.digest = await job.target.manifests.put(target.tag or DEFAULT_TAG, found.data, found.media_type)
    if referrers:
        await job.referrers(found.digest)
    return job.result


class _Job:
    """One copy."""

    def __init__(self, source: distribution.Repository, target: distribution.Repository, told: Told) -> None:
        self.source = source
        self.target = target
        self.result = Copied()
        self._told = told
        self._done: set[str] = set()
        self._places = anyio.Semaphore(_AT_ONCE)

    async def contents(self, found: Manifest | Index, *, depth: int) -> None:
        """Copy all that a manifest or an index names, but not itself."""
        self.result.manifests += 1
        if depth > _MOST_DEPTH or self.result.manifests > _MOST_MANIFESTS:
            raise descriptors.bad(str(self.source), "its indexes lead too deep")
        if isinstance(found, Manifest):
            async with threads.task_group() as tasks:
                for blob in found.blobs:
                    await self._places.acquire()
                    tasks.start_soon(self._blob, blob)
            return
        for entry in found.manifests:
            if entry.digest not in self._done:
                self._done.add(entry.digest)
                await self._manifest(entry.digest, depth=depth + 1)

    async def _manifest(self, digest: str, *, depth: int) -> None:
        found = await self.source.manifests.get(digest)
        await self.contents(found, depth=depth)
        await self.target.manifests.put(digest, found.data, found.media_type)

    async def referrers(self, digest: str) -> None:
        """Copy what refers to a manifest, and what refers to that."""
        waiting = [digest]
        while waiting:
            for one in await self.source.manifests.referrers(waiting.pop()):
                if one.digest not in self._done:
                    self._done.add(one.digest)
                    await self._manifest(one.digest, depth=1)
                    waiting.append(one.digest)

    async def _blob(self, blob: Descriptor) -> None:
        try:
            outcome = await self._give(blob)
        finally:
            self._places.release()
        sent = blob.size_bytes if outcome == "uploaded" else 0
        self.result.uploaded_bytes += sent
        if outcome == "uploaded":
            self.result.uploaded += 1
        elif outcome == "mounted":
            self.result.mounted += 1
        else:
            self.result.there += 1
        self._told(f"blob {blob.digest.partition(':')[2][:12]}: {outcome}", sent)

    async def _give(self, blob: Descriptor) -> blobs.Outcome:
        if await self.target.blobs.has(blob.digest):
            return "there"
        if self.source.site == self.target.site and await self.target.blobs.mount(blob, self.source.path):
            return "mounted"
        # By way of a file: what is sent can then be sent again from any place on, and memory holds none of it.
        with tempfile.TemporaryFile(prefix="cxc-copy-") as file:
            await self.source.blobs.fetch(blob, lambda piece: _write(file, piece))
            return await self.target.blobs.give(blob, _Kept(file))


def _write(file: BinaryIO, piece: bytes) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"A blob cannot be kept on its way: {error.strerror}.", hint="free space in the folder for temporary files"
        ) from error
