"""What does a registry hold: which repositories and tags, and what is behind one of them?"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.clients import descriptors, distribution, manifests
from codomyrmex_containerization.clients.descriptors import Descriptor, Index, Manifest
from codomyrmex_containerization.engines.embedded import content_config
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.reference import DEFAULT_TAG, ImageReference
from codomyrmex_containerization.registry import transfers

_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_MOST_NAMES = 20_000
_MOST_LOOKED_AT = 500
_AT_ONCE = 8
_NUMBER = re.compile(r"(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a reference means: an index or one image, the image for a platform, and what refers to it."""

    found: Manifest | Index
    image: Manifest | None
    described: content_config.Described | None
    referrers: tuple[Descriptor, ...]


async def inspect(work: distribution.Work, wanted: ImageReference, *, platform: str | None, detail: bool) -> Inspected:
    """Look at an image without pulling it; of several platforms, at the asked one or this machine's, if there is that.

    Raises NotFound (with the nearest tags, or the platforms that there are), Unauthorized, InvalidArgument, EngineUnavailable.
    """
    asked = descriptors.platform_of(platform) if platform is not None else None
    repository, found = await work.get(wanted)
    image: Manifest | None = None
    if isinstance(found, Manifest):
        image = found
    elif asked is not None or found.pick(transfers.host_platform()) is not None:
        image = await repository.manifests.pick(found.digest, asked or transfers.host_platform())
    described = None
    if image is not None and image.config.media_type in _CONFIGS:
        data = await repository.blobs.small(image.config, most_bytes=content_config.MOST_JSON_BYTES)
        described = content_config.describe(data)
    if described is not None and asked is not None:
        _require(descriptors.Platform(described.os, described.architecture, described.variant), asked, wanted)
    refer: dict[str, Descriptor] = {}
    for digest in dict.fromkeys((found.digest, *((image.digest,) if image is not None else ()))) if detail else ():
        refer |= {one.digest: one for one in await repository.manifests.referrers(digest)}
    return Inspected(found, image, described, tuple(refer.values()))


def _require(own: descriptors.Platform, asked: descriptors.Platform, wanted: ImageReference) -> None:
    if not own.runs(asked):
        raise errors.NotFound(
            f"{wanted} has no image for {asked}; it has: {own}.",
            hint="pass that platform, or none",
            details={"missing": "image", "platforms": [str(own)]},
        )


# ---------------------------------------------------------------------------------------------------------------- lists


@dataclass(frozen=True, slots=True)
class Page:
    """A page of names; `first` is the place of the first one, `next_key` the last one's when there are more."""

    names: tuple[str, ...]
    first: int
    total: int
    is_whole: bool
    next_key: cursors.Key | None


async def list_tags(
    work: distribution.Work, wanted: ImageReference, *, filter: str | None, limit: int, after: cursors.Key | None
) -> Page:
    """Return a page of a repository's tags, the highest version first. Raises NotFound, Unauthorized, EngineUnavailable."""
    names, is_whole = await _all(work.repository(wanted).manifests.tags())
    return _page(sorted(names, key=_natural, reverse=True), is_whole, filter, limit, after)


async def list_repositories(
    work: distribution.Work, registry: str, *, filter: str | None, limit: int, after: cursors.Key | None
) -> Page:
    """Return a page of a registry's repositories by name. Raises NotFound, Unsupported, Unauthorized (many do not tell)."""
    names, is_whole = await _all(manifests.repositories(work.registry(registry)))
    return _page(sorted(names), is_whole, filter, limit, after)


def registry_of(text: str) -> str:
    """Return a registry's name as references have it. Raises InvalidArgument."""
    try:
        found = reference.parse(f"{text}/a").domain
    except errors.InvalidArgument:
        found = ""
    if not found or (found == reference.DEFAULT_DOMAIN and text not in (found, f"index.{found}")):
        raise errors.InvalidArgument(
            f"{text[:80]!r} is no registry.",
            hint="write it as host or host:port, without a scheme, e.g. localhost:5000",
        )
    return found


async def _all(pages: AsyncIterator[list[str]]) -> tuple[list[str], bool]:
    names: dict[str, None] = {}
    async with aclosing(pages) as opened:  # type: ignore[type-var]  # both are generators
        async for page in opened:
            names |= dict.fromkeys(page)
            if len(names) >= _MOST_NAMES:
                return list(names)[:_MOST_NAMES], False
    return list(names), True


def _page(names: Sequence[str], is_whole: bool, filter: str | None, limit: int, after: cursors.Key | None) -> Page:
    found = [one for one in names if _matches(one, filter)]
    first = 0
    if after is not None:
        same = (index + 1 for index, one in enumerate(found) if name_key(index, one)[1] == after[1])
        first = next(same, int(after[0]))
    page = found[first : first + limit]
    end = first + len(page)
    return Page(tuple(page), first, len(found), is_whole, name_key(end - 1, page[-1]) if end < len(found) else None)


def name_key(index: int, name: str) -> cursors.Key:
    """Return what a name of a list is found again by, or its place where it is there no more."""
    return float(index), hashlib.sha256(name.encode()).hexdigest()[:16]


def _matches(name: str, filter: str | None) -> bool:
    if not filter:
        return True
    return fnmatch.fnmatchcase(name, filter) if set(filter) & set("*?[") else filter in name


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return what sorts 1.9 before 1.10, and words before numbers."""
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in _NUMBER.split(name) if part)


# -------------------------------------------------------------------------------------------------------------- removal


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a removal would take: a manifest, the tags that mean it, and how many tags were not looked at."""

    digest: str
    size_bytes: int
    tags: tuple[str, ...]
    unseen: int


async def plan_deletion(work: distribution.Work, wanted: ImageReference) -> Deletion:
    """Say what removing an image would take. Raises NotFound, Unauthorized, EngineUnavailable."""
    repository = work.repository(wanted)
    found = await repository.manifests.look(wanted.digest or wanted.tag or DEFAULT_TAG)
    if found is None:
        await work.get(wanted)  # says what there is
        raise errors.NotFound(f"{wanted} is not there.", hint="registry_list shows the tags there are")
    names, _ = await _all(repository.manifests.tags())
    same: list[str] = []
    places = anyio.Semaphore(_AT_ONCE)

    async def look(tag: str) -> None:
        try:
            one = await repository.manifests.look(tag)
        finally:
            places.release()
        if one is not None and one.digest == found.digest:
            same.append(tag)

    async with threads.task_group() as tasks:
        for tag in names[:_MOST_LOOKED_AT]:
            await places.acquire()
            tasks.start_soon(look, tag)
    asked = [wanted.tag] if wanted.tag and not wanted.digest else []
    return Deletion(
        found.digest,
        found.size_bytes,
        tuple(sorted({*same, *asked}, key=_natural, reverse=True)),
        max(0, len(names) - _MOST_LOOKED_AT),
    )


async def delete(work: distribution.Work, wanted: ImageReference, found: Deletion) -> tuple[str, ...]:
    """Remove a manifest by its digest and all its tags; return those that the registry keeps all the same.

    Raises NotFound, Unsupported (switched off), Unauthorized, EngineUnavailable.
    """
    kept = work.repository(wanted).manifests
    await kept.delete(found.digest)
    left = []
    for tag in found.tags:
        now = await kept.look(tag)
        if now is not None and now.digest == found.digest:  # some registries keep a tag's manifest beside the digest's
            try:
                await kept.delete(tag)
            except (errors.NotFound, errors.Unsupported):
                left.append(tag)
    return tuple(left)
