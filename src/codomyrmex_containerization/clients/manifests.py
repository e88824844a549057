"""What images does a repository have under which names, and what refers to them? Manifests, tags, the catalogue, referrers.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import descriptors, replies, tokens, transport
from codomyrmex_containerization.clients.descriptors import Descriptor, Index, Manifest
from codomyrmex_containerization.models import reference

_ACCEPT = ", ".join((*descriptors.MANIFESTS, *descriptors.INDEXES))
_TAG = re.compile(r"[\w][\w.-]{0,127}\Z", re.ASCII)
_NEXT = re.compile(r'<([^<>]{1,4000})>\s*;[^,]*rel="?next"?')
_MOST_PAGE_BYTES = 8 * 1024 * 1024
_MOST_PAGES = 10_000
_PAGE_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """What a registry says of a manifest without sending it."""

    digest: str
    media_type: str
    size_bytes: int


class Manifests:
    """The manifests of one repository."""

    def __init__(self, way: transport.Transport, path: str) -> None:
        self._way = way
        self._path = path

    def _call(self, method: str, name: str, *actions: str) -> transport.Call:
        what = f"{self._way.site.name}/{self._path}{'@' if ':' in name else ':'}{name}"
        target = f"/v2/{self._path}/manifests/{name}"
        return transport.Call(
            method, target, what, scopes=(tokens.scope(self._path, *actions),), headers={"accept": _ACCEPT}
        )

    # ------------------------------------------------------------------------------------------------------- reading

    async def get(self, name: str) -> Manifest | Index:
        """Return what a tag or a digest means, checked.

        Raises NotFound, Unauthorized, Unsupported (schema 1, no image), InvalidArgument (damaged), EngineUnavailable.
        """
        call = self._call("GET", name, "pull")
        response, data = await self._way.body(call, most_bytes=descriptors.MOST_MANIFEST_BYTES)
        asked = self._way.asked(call.what)
        told = response.headers.get("docker-content-digest", "")
        wanted = name if ":" in name else told if descriptors.is_digest(told) else ""
        found = descriptors.digest_of(data, like=wanted or "sha256:")
        if wanted and found != wanted:
            raise replies.changed(asked, f"its digest is {found} where {wanted} was to come")
        return descriptors.parse(data, response.headers.get("content-type", ""), where=call.what, digest=found)

    async def look(self, name: str) -> Found | None:
        """Say what a tag or a digest means now; None when the repository does not have it."""
        call = replace(self._call("HEAD", name, "pull"), good=(200, 404))
        async with self._way.send(call) as response:
            if response.status_code == 404:
                return None
            digest, size = response.headers.get("docker-content-digest", ""), response.headers.get("content-length", "")
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if not descriptors.is_digest(digest) or not size.isdecimal() or (":" in name and digest != name):
            found = await self.get(name)  # a registry that is sparing with its headers
            return Found(found.digest, found.media_type, len(found.data))
        return Found(digest, kind, int(size))

    async def pick(self, name: str, platform: descriptors.Platform) -> Manifest:
        """Return the image for a platform. Raises NotFound naming the platforms that there are, and what `get` raises."""
        found = await self.get(name)
        seen = {found.digest}
        while isinstance(found, Index):
            one = found.pick(platform)
            if one is None:
                there = ", ".join(found.platforms) or "none"
                raise errors.NotFound(
                    f"{self._way.site.name}/{self._path}:{name} has no image for {platform}; it has: {there}.",
                    hint="pass one of those platforms, if this machine can run it",
                    details={"missing": "image", "platforms": list(found.platforms)},
                )
            if one.digest in seen or len(seen) > 4:
                raise descriptors.bad(f"{self._path}:{name}", "its indexes lead round in circles")
            seen.add(one.digest)
            found = await self.get(one.digest)
            if len(found.data) != one.size_bytes:
                raise descriptors.bad(f"{self._path}@{one.digest}", "it has another size than its index says")
        return found

    # ------------------------------------------------------------------------------------------------------- writing

    async def put(self, name: str, data: bytes, media_type: str) -> str:
        """Write a manifest under a tag or its digest; return its digest. All that it names must be there already.

        Raises InvalidArgument (the registry does not take it), Unauthorized, EngineUnavailable.
        """
        digest = descriptors.digest_of(data)
        call = replace(
            self._call("PUT", name, "pull", "push"),
            headers={"content-type": media_type},
            content=lambda: data,
            good=(201, 202),
        )
        async with self._way.send(call) as response:
            told = response.headers.get("docker-content-digest", digest)
            knows_subjects = bool(response.headers.get("oci-subject"))
        if told != digest and told.startswith("sha256:"):
            raise replies.nonsense(self._way.asked(call.what), f"it keeps {told} where {digest} was sent")
        found = descriptors.parse(data, media_type, where=call.what, digest=digest)
        if isinstance(found, Manifest) and found.subject is not None and not knows_subjects:
            await self._refer(found.subject.digest, found.descriptor)
        return digest

    async def delete(self, name: str) -> None:
        """Remove a manifest by its digest, with all its tags, or a tag alone where the registry can.

        Raises NotFound, Unsupported (switched off), Unauthorized, EngineUnavailable.
        """
        call = replace(self._call("DELETE", name, "pull", "delete"), good=(200, 202))
        try:
            async with self._way.send(call):
                pass
        except errors.InvalidArgument as error:
            if ":" in name or error.details.get("status") != 400:
                raise
            raise errors.Unsupported(
                f"{self._way.site.name} removes no tag alone.",
                hint="remove the image by its digest: all its tags go with it",
                details=error.details,
            ) from error

    # ----------------------------------------------------------------------------------------------------- referrers

    async def referrers(self, digest: str, *, artifact_type: str = "") -> list[Descriptor]:
        """Return what refers to a manifest (signatures, SBOMs, attestations), also where the registry keeps no such list itself."""
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        call = transport.Call(
            "GET",
            f"/v2/{self._path}/referrers/{digest}{query}",
            f"the referrers of {digest}",
            scopes=(tokens.scope(self._path, "pull"),),
            headers={"accept": descriptors.OCI_INDEX},
        )
        try:
            pages = [page async for page in self._pages(call)]
        except (errors.NotFound, errors.Unsupported):
            fallback = await self._fallback(digest)
            listed = fallback.manifests if fallback is not None else ()
        else:
            found = [self._index(json_, data, call.what) for json_, data in pages]
            listed = tuple(one for index in found for one in index.manifests)
        return [one for one in listed if not artifact_type or one.artifact_type == artifact_type]

    def _index(self, raw: object, data: bytes, what: str) -> Index:
        found = descriptors.parse(data, descriptors.OCI_INDEX, where=what)
        if not isinstance(found, Index):
            raise descriptors.bad(what, "it is no index")
        return found

    async def _fallback(self, digest: str) -> Index | None:
        try:
            found = await self.get(digest.replace(":", "-"))
        except errors.NotFound:
            return None
        return found if isinstance(found, Index) else None

    async def _refer(self, subject: str, made: Descriptor) -> None:
        """Keep the list of referrers by hand, as a tag, for a registry that does not."""
        before = await self._fallback(subject)
        listed = before.manifests if before is not None else ()
        if all(one.digest != made.digest for one in listed):
            await self.put(subject.replace(":", "-"), descriptors.index_of([*listed, made]), descriptors.OCI_INDEX)

    # ---------------------------------------------------------------------------------------------------------- tags

    async def tags(self) -> AsyncGenerator[list[str], None]:
        """Yield the tags, page by page. Raises NotFound, Unauthorized, EngineUnavailable (also for an answer without sense)."""
        call = transport.Call(
            "GET",
            f"/v2/{self._path}/tags/list?n={_PAGE_ENTRIES}",
            f"the tags of {self._way.site.name}/{self._path}",
            scopes=(tokens.scope(self._path, "pull"),),
        )
        async for raw, _ in self._pages(call):
            yield _names(raw, "tags", lambda one: bool(_TAG.match(one)), self._way.asked(call.what))

    async def _pages(self, call: transport.Call) -> AsyncIterator[tuple[Mapping[str, Any], bytes]]:
        async for one in pages(self._way, call):
            yield one


async def repositories(way: transport.Transport) -> AsyncIterator[list[str]]:
    """Yield the names of a registry's repositories, page by page. Raises as `Manifests.tags`; many registries do not tell."""
    call = transport.Call(
        "GET", f"/v2/_catalog?n={_PAGE_ENTRIES}", f"the catalogue of {way.site.name}", scopes=("registry:catalog:*",)
    )
    async for raw, _ in pages(way, call):
        yield _names(raw, "repositories", lambda one: _is_path(way.site.name, one), way.asked(call.what))


async def pages(way: transport.Transport, call: transport.Call) -> AsyncIterator[tuple[Mapping[str, Any], bytes]]:
    """Yield the pages of a list, each as JSON and as it came. Where the next one is, the registry says; its path stays."""
    seen = set[str]()
    while call.target not in seen and len(seen) < _MOST_PAGES:
        seen.add(call.target)
        response, data = await way.body(call, most_bytes=_MOST_PAGE_BYTES)
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise replies.nonsense(way.asked(call.what), "it is no JSON") from error
        if not isinstance(raw, dict):
            raise replies.nonsense(way.asked(call.what), "it is no object")
        yield raw, data
        link = _NEXT.search(response.headers.get("link", ""))
        if link is None:
            return
        path = urlsplit(call.target).path
        query = parse_qsl(urlsplit(urljoin(path, link[1])).query)
        call = replace(call, target=f"{path}?{urlencode(query, quote_via=quote)}")
    raise replies.nonsense(way.asked(call.what), "its pages lead round in circles")


def _names(raw: Mapping[str, Any], key: str, is_one: Any, asked: replies.Asked) -> list[str]:
    found: Sequence[object] = raw.get(key) or []
    if not isinstance(found, list) or not all(isinstance(one, str) and is_one(one) for one in found):
        raise replies.nonsense(asked, "it lists what cannot be a name")
    return [str(one) for one in found]


def _is_path(registry: str, path: str) -> bool:
    try:
        return reference.parse(f"{registry}/{path}").path == path or registry == reference.DEFAULT_DOMAIN
    except errors.InvalidArgument:
        return False
