"""How does the rest of the program speak to registries? The door to the OCI distribution protocol: one repository at a time.

What one piece of work opens (connections, tokens) is closed at its end.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import (
    blobs,
    credentials,
    descriptors,
    manifests,
    registries,
    tokens,
    transport,
)
from codomyrmex_containerization.models.reference import ImageReference
from codomyrmex_containerization.models.settings import RegistrySettings

_CLOSE_SECONDS = 2.0
_MIRROR_LACKS = (errors.NotFound, errors.Unauthorized, errors.EngineUnavailable)


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository of one registry."""

    site: registries.Site
    path: str
    manifests: manifests.Manifests
    blobs: blobs.Blobs
    way: transport.Transport

    def __str__(self) -> str:
        return f"{self.site.name}/{self.path}"


class Client:
    """Speaks to registries with the user's settings and credentials; made without effort, it opens nothing itself."""

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        environ: Mapping[str, str],
        learn: Callable[[str], None],
        pace: registries.Pace | None = None,
        keyring: credentials.Keyring | None = None,
    ) -> None:
        self._settings = settings
        self._keyring = keyring
        self._environ = environ
        self._learn = learn
        self._pace = pace or registries.Pace()

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Work]:
        """Begin a piece of work; its connections are closed at the end of the block. Raises InvalidArgument (the settings)."""
        places = registries.Places(self._settings)
        connections = registries.Connections(self._settings, self._environ, self._pace)
        try:
            keyring = self._keyring or credentials.Keyring(self._environ, learn=self._learn)
            yield Work(places, connections, keyring, self._learn, self._pace)
        finally:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await connections.aclose()


class Work:
    """A piece of work with registries."""

    def __init__(
        self,
        places: registries.Places,
        connections: registries.Connections,
        keyring: credentials.Keyring,
        learn: Callable[[str], None],
        pace: registries.Pace,
    ) -> None:
        self._places = places
        self._connections = connections
        self._keyring = keyring
        self._learn = learn
        self._pace = pace
        self._open: dict[tuple[str, str], Repository] = {}

    def repository(self, reference: ImageReference) -> Repository:
        """Return the repository that a reference names."""
        return self._at(self._places.site(reference.domain), reference.path)

    def registry(self, name: str) -> transport.Transport:
        """Return the way to a whole registry."""
        return self._way(self._places.site(name), "")

    async def find(
        self, reference: ImageReference, platform: descriptors.Platform
    ) -> tuple[Repository, descriptors.Manifest]:
        """Return the image for a platform and where it was found: the registry's mirrors come first.

        Raises NotFound, Unauthorized, Unsupported, InvalidArgument, EngineUnavailable, Refused.
        """
        name = reference.digest or reference.tag or "latest"
        for mirror in self._places.mirrors(reference.domain):
            there = self._at(mirror, reference.path)
            try:
                return there, await there.manifests.pick(name, platform)
            except _MIRROR_LACKS:
                continue
        origin = self.repository(reference)
        async with _advised(origin, reference):
            return origin, await origin.manifests.pick(name, platform)

    async def get(self, reference: ImageReference) -> tuple[Repository, descriptors.Manifest | descriptors.Index]:
        """Return what a reference means at the registry itself. Raises as `find`."""
        origin = self.repository(reference)
        async with _advised(origin, reference):
            return origin, await origin.manifests.get(reference.digest or reference.tag or "latest")

    def _at(self, site: registries.Site, path: str) -> Repository:
        key = (site.name, path)
        if key not in self._open:
            way = self._way(site, path)
            self._open[key] = Repository(site, path, manifests.Manifests(way, path), blobs.Blobs(way, path), way)
        return self._open[key]

    def _way(self, site: registries.Site, path: str) -> transport.Transport:
        authority = tokens.Authority(site, path, keyring=self._keyring, places=self._places, learn=self._learn)
        return transport.Transport(site, connections=self._connections, authority=authority, pace=self._pace)


@asynccontextmanager
async def _advised(origin: Repository, reference: ImageReference) -> AsyncIterator[None]:
    """Have the error for a tag that is not there name those that are."""
    try:
        yield
    except errors.NotFound as error:
        if reference.tag and error.details.get("registry_code") == "MANIFEST_UNKNOWN":
            error.hint = await _nearest(origin, reference.tag) or error.hint
        raise


async def _nearest(repository: Repository, tag: str) -> str:
    """Say which tags there are that are like one that is not there; nothing when that cannot be told."""
    try:
        async with aclosing(repository.manifests.tags()) as pages:
            first: list[str] = await anext(pages, [])
    except errors.ContainerizationError:
        return ""  # the first error counts
    near = difflib.get_close_matches(tag, first, n=3, cutoff=0.3) or first[-3:]
    return f"tags of {repository}: {', '.join(near)}" if near else ""
