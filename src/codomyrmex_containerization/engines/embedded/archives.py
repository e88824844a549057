"""Which images does an archive hold? docker-archive (`docker save`), OCI archive, OCI layout folder.

Sources: https://github.com/opencontainers/image-spec/blob/main/image-layout.md,
https://github.com/moby/docker-image-spec/blob/main/spec.md (combined image JSON + file system archive).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    content_blobs,
    content_config,
    content_errors,
    content_members,
    layer_tar,
)
from codomyrmex_containerization.engines.embedded.content_intake import SentImage, SentLayer

Format = Literal["docker-archive", "oci-archive", "oci"]
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MOST_IMAGES = 1000
_MOST_NAMES = 1000
Json = Mapping[str, Any]


def find(members: content_members.Members) -> list[SentImage]:
    """Return the images of an archive. Raises InvalidArgument (none of the forms, damaged), Unsupported."""
    if members.has("index.json"):
        return _oci(members)
    if members.has("manifest.json"):
        return _docker(members)
    if members.has("repositories"):
        raise errors.Unsupported(
            "The archive was written by a Docker before 1.10.", hint="load and save it with a Docker of this decade"
        )
    raise errors.InvalidArgument(
        "The archive holds no images: it has neither index.json nor manifest.json.",
        hint="a root file system becomes an image by image_import",
    )


# --------------------------------------------------------------------------------------------------------------- docker


def _docker(members: content_members.Members) -> list[SentImage]:
    raw = content_config.read_json(content_members.read_small(members, "manifest.json"), "manifest.json")
    found = []
    for one in _list(raw, "manifest.json", most=_MOST_IMAGES):
        table = _table(one, "manifest.json")
        names = _texts(table.get("RepoTags") or [], "manifest.json", most=_MOST_NAMES)
        files = _texts(table.get("Layers") or [], "manifest.json", most=content_config.MOST_LAYERS)
        config = content_members.read_small(members, _text(table.get("Config"), "manifest.json"))
        sent = tuple(_layer(members, name) for name in files)
        found.append(SentImage(None, config, sent, tuple(names)))
    return found


def _layer(
    members: content_members.Members, name: str, *, digest: str | None = None, media_type: str | None = None
) -> SentLayer:
    def opened() -> AbstractContextManager[layer_tar.Stream]:
        return members.open(name)

    size = members.size_bytes(name)  # now rather than after half of the image
    return SentLayer(digest, media_type, opened, file_bytes=size)


# ------------------------------------------------------------------------------------------------------------------ OCI


def _oci(members: content_members.Members) -> list[SentImage]:
    layout = _table(
        content_config.read_json(content_members.read_small(members, "oci-layout"), "oci-layout"), "oci-layout"
    )
    if layout.get("imageLayoutVersion") != "1.0.0":
        raise content_config.bad("oci-layout", "its version is not 1.0.0")
    index = _table(
        content_config.read_json(content_members.read_small(members, "index.json"), "index.json"), "index.json"
    )
    entries = [_table(one, "index.json") for one in _list(index.get("manifests"), "index.json", most=_MOST_IMAGES)]
    named: dict[str, list[str]] = {}
    for entry in _for_this_machine(entries):
        names = named.setdefault(_manifest_of(members, entry), [])
        names += [name for name in [_name(entry)] if name and name not in names]
    return [_image(members, digest, tuple(names)) for digest, names in named.items()]


def _name(entry: Json) -> str:
    notes = entry.get("annotations") or {}
    if not isinstance(notes, dict):
        return ""
    name, short = notes.get(IMAGE_NAME), notes.get(REF_NAME)
    if isinstance(name, str) and name:
        return name
    # A mere tag says nothing about what it is a tag of.
    return short if isinstance(short, str) and ("/" in short or ":" in short) else ""


def _for_this_machine(entries: list[Json]) -> list[Json]:
    """Return the entries that are images, and of those that say what machine they are for only this one's, where there are any."""
    images = [one for one in entries if _platform(one) != "unknown"]
    here = [one for one in images if _platform(one) in ("", content_config.host_architecture())]
    return here or images


def _platform(entry: Json) -> str:
    platform = entry.get("platform")
    architecture = platform.get("architecture") if isinstance(platform, dict) else ""
    return architecture if isinstance(architecture, str) else ""


def _manifest_of(members: content_members.Members, entry: Json) -> str:
    """Return the digest of the manifest that an entry of an index means, through the indexes in it."""
    for _ in range(4):
        digest = _digest(entry)
        if entry.get("mediaType") not in _INDEXES:
            return digest
        inner = _table(content_config.read_json(_blob(members, entry), "index"), "index")
        listed = [_table(one, "index") for one in _list(inner.get("manifests"), "index", most=_MOST_IMAGES)]
        there = [one for one in _for_this_machine(listed) if members.has(_path(_digest(one)))]
        if not there:
            raise content_config.bad("index", "the archive has none of its images for this machine")
        entry = there[0]
    raise content_config.bad("index", "it holds indexes of indexes of indexes")


def _image(members: content_members.Members, digest: str, names: tuple[str, ...]) -> SentImage:
    manifest = _blob(members, {"digest": digest})
    raw = _table(content_config.read_json(manifest, "manifest"), "manifest")
    config = _table(raw.get("config"), "manifest")
    sent = []
    for one in _list(raw.get("layers"), "manifest", most=content_config.MOST_LAYERS):
        layer = _table(one, "manifest")
        kind = layer.get("mediaType")
        if not isinstance(kind, str) or ".tar" not in kind:
            raise errors.Unsupported(
                f"The archive holds something else than an image: {content_errors.shown(str(kind))}.",
                hint="use an archive of images",
            )
        if kind.endswith("+encrypted"):
            raise errors.Unsupported("The image is encrypted.", hint="decrypt it first")
        sent.append(_layer(members, _path(_digest(layer)), digest=_digest(layer), media_type=kind))
    return SentImage(manifest, _blob(members, config), tuple(sent), names)


def _blob(members: content_members.Members, descriptor: Json) -> bytes:
    """Return a small blob. Raises InvalidArgument when it has another digest or size than it should."""
    wanted = _digest(descriptor)
    data = content_members.read_small(members, _path(wanted))
    if content_blobs.digest(data) != wanted or descriptor.get("size", len(data)) != len(data):
        raise errors.InvalidArgument(
            f"The archive's {wanted} has another digest or size than it should.",
            hint="it was changed or damaged on its way: make or fetch the archive again",
        )
    return data


def _digest(descriptor: Json) -> str:
    digest = descriptor.get("digest")
    if not content_config.is_digest(digest):
        raise content_config.bad("manifest", "it names something by no sha256 digest")
    return str(digest)


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


# ---------------------------------------------------------------------------------------------------------------- kinds


def _table(raw: object, what: str) -> Json:
    if not isinstance(raw, dict):
        raise content_config.bad(what, "something in it is no object")
    return raw


def _list(raw: object, what: str, *, most: int) -> list[Any]:
    if not isinstance(raw, list):
        raise content_config.bad(what, "something in it is no list")
    if len(raw) > most:
        raise content_config.bad(what, f"it has more than {most} entries")
    return raw


def _texts(raw: object, what: str, *, most: int) -> list[str]:
    return [_text(one, what) for one in _list(raw, what, most=most)]


def _text(raw: object, what: str) -> str:
    if not isinstance(raw, str):
        raise content_config.bad(what, "something in it is no text")
    return raw
