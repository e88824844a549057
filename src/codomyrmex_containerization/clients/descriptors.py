"""What do a registry's manifests and indexes say? OCI's and Docker's schema 2, read with suspicion.

Sources: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md and image-index.md,
https://github.com/distribution/distribution/blob/main/docs/content/spec/manifest-v2-2.md
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codomyrmex_containerization import errors

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_LIST)
MOST_MANIFEST_BYTES = 4 * 1024 * 1024  # what the specification tells registries to take at least

_OLD = re.compile(r"application/vnd\.docker\.distribution\.manifest\.v1\+(?:json|prettyjws)\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z|sha512:[0-9a-f]{128}\Z")
_MOST_ENTRIES = 1000
_MOST_BLOB_BYTES = 2**50
_MOST_TEXT_CHARACTERS = 1000
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9.]+)?\Z")
_VARIANTS = {"arm64": "v8", "arm": "v7"}  # what no variant means


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(one for one in (self.os, self.architecture, self.variant) if one)

    def runs(self, wanted: Platform) -> bool:
        """Say whether an image for this platform is one for the wanted one."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return False
        usual = _VARIANTS.get(self.architecture, "")
        return (self.variant or usual) == (wanted.variant or usual)


def platform_of(text: str) -> Platform:
    """Read `os/architecture[/variant]`. Raises InvalidArgument."""
    if not _PLATFORM.match(text):
        raise errors.InvalidArgument(f"{text[:80]!r} is no platform.", hint="write it as linux/amd64 or linux/arm/v7")
    return Platform(*text.split("/"))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to contents: what they are, their digest and their size."""

    media_type: str
    digest: str
    size_bytes: int
    platform: Platform | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in a manifest."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.platform is not None:
            names = ("os", "architecture", "variant")
            found["platform"] = {one: getattr(self.platform, one) for one in names if getattr(self.platform, one)}
        return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image, or another thing that is kept like one (a signature, an SBOM)."""

    data: bytes = field(repr=False)
    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str
    annotations: Mapping[str, str]

    @property
    def descriptor(self) -> Descriptor:
        """The pointer to it, as a list of referrers holds it."""
        kind = self.artifact_type or self.config.media_type
        return Descriptor(self.media_type, self.digest, len(self.data), None, kind, self.annotations)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Its layers and its configuration, each once."""
        return tuple({one.digest: one for one in (*self.layers, self.config)}.values())


@dataclass(frozen=True, slots=True)
class Index:
    """Images of several platforms, and what belongs to them, under one name."""

    data: bytes = field(repr=False)
    digest: str
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that it says it has images for."""
        known = [str(one.platform) for one in self.manifests if one.platform and one.platform.os != "unknown"]
        return tuple(dict.fromkeys(known))

    def pick(self, wanted: Platform) -> Descriptor | None:
        """Return the first image for a platform; one that does not say what it is for serves where no other does."""
        for one in self.manifests:
            if one.platform is not None and one.platform.runs(wanted):
                return one
        mute = [one for one in self.manifests if one.platform is None and one.media_type in (*MANIFESTS, *INDEXES)]
        return mute[0] if len(mute) == 1 and not self.platforms else None


def digest_of(data: bytes, *, like: str = "sha256:") -> str:
    """Return the digest of some bytes, by the algorithm of another one."""
    name = like.partition(":")[0]
    return f"{name}:{hashlib.new(name, data).hexdigest()}"


def is_digest(text: object) -> bool:
    """Say whether this is a digest that can be checked here."""
    return isinstance(text, str) and bool(_DIGEST.match(text))


def parse(data: bytes, media_type: str, *, where: str, digest: str = "") -> Manifest | Index:
    """Read a manifest or an index. Raises InvalidArgument (damaged, contradicts itself), Unsupported (schema 1, unknown kinds)."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise bad(where, "it is no JSON") from error
    table = _table(raw, where)
    kind = _kind(table, media_type, where)
    found = digest or digest_of(data)
    notes = _notes(table.get("annotations"), where)
    if kind in INDEXES:
        listed = _list(table.get("manifests"), where)
        return Index(data, found, kind, tuple(_descriptor(one, where) for one in listed), notes)
    layers = tuple(_descriptor(one, where) for one in _list(table.get("layers"), where))
    subject = table.get("subject")
    return Manifest(
        data=data,
        digest=found,
        media_type=kind,
        config=_descriptor(table.get("config"), where),
        layers=layers,
        subject=_descriptor(subject, where) if subject is not None else None,
        artifact_type=_text(table.get("artifactType", ""), where),
        annotations=notes,
    )


def index_of(entries: Sequence[Descriptor], *, annotations: Mapping[str, str] | None = None) -> bytes:
    """Write an index."""
    raw: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one.as_json() for one in entries]}
    if annotations:
        raw["annotations"] = dict(annotations)
    return json.dumps(raw, separators=(",", ":"), ensure_ascii=False).encode()


def bad(where: str, reason: str) -> errors.InvalidArgument:
    """Return the error for a manifest that cannot be used."""
    return errors.InvalidArgument(f"The manifest of {where} cannot be used: {reason}.", hint="have it pushed again")


def _kind(table: Mapping[str, Any], media_type: str, where: str) -> str:
    """Return what it is; what the registry says, what it says itself and what is in it must not contradict each other."""
    told = media_type.partition(";")[0].strip().lower()
    own = _text(table.get("mediaType", ""), where)
    if _OLD.match(told) or table.get("schemaVersion") == 1:
        raise errors.Unsupported(
            f"{where} has a manifest of Docker's schema 1, which names no contents.",
            hint="pull and push it once with a Docker of this decade, then try again",
        )
    known = (*MANIFESTS, *INDEXES)
    if told in known and own and own != told:
        raise bad(where, "it says of itself that it is something else than the registry says")
    kind = next((one for one in (told, own) if one in known), "")
    if not kind and own:
        raise errors.Unsupported(f"{where} is {own[:100]!r}, no image.", hint="name an image")
    is_index = "manifests" in table
    if is_index and ("layers" in table or "config" in table):
        raise bad(where, "it is a manifest and an index at once")
    kind = kind or (OCI_INDEX if is_index else OCI_MANIFEST)
    if is_index != (kind in INDEXES) or table.get("schemaVersion") != 2:
        raise bad(where, "what is in it is not what it is called")
    return kind


def _descriptor(raw: object, where: str) -> Descriptor:
    table = _table(raw, where)
    digest, size = table.get("digest"), table.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise bad(where, "it names something by no digest of sha256 or sha512")
    if type(size) is not int or not 0 <= size <= _MOST_BLOB_BYTES:
        raise bad(where, "it names something of no size")
    platform = table.get("platform")
    return Descriptor(
        media_type=_text(table.get("mediaType"), where),
        digest=digest,
        size_bytes=size,
        platform=_platform(platform, where) if platform is not None else None,
        artifact_type=_text(table.get("artifactType", ""), where),
        annotations=_notes(table.get("annotations"), where),
    )


def _platform(raw: object, where: str) -> Platform:
    table = _table(raw, where)
    return Platform(*(_text(table.get(one, ""), where) for one in ("os", "architecture", "variant")))


def _notes(raw: object, where: str) -> Mapping[str, str]:
    table = _table(raw if raw is not None else {}, where)
    return {name: value for name, value in table.items() if isinstance(value, str)}


def _table(raw: object, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise bad(where, "something in it is no object")
    return raw


def _list(raw: object, where: str) -> list[Any]:
    if not isinstance(raw, list):
        raise bad(where, "something in it is no list")
    if len(raw) > _MOST_ENTRIES:
        raise bad(where, f"it has more than {_MOST_ENTRIES} entries")
    return raw


def _text(raw: object, where: str) -> str:
    if not isinstance(raw, str) or len(raw) > _MOST_TEXT_CHARACTERS:
        raise bad(where, "something in it is no text, or a very long one")
    return raw
