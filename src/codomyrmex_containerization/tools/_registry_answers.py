"""What do the tools for registries of images answer?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.tools._answer import Answer, Keep, Row, table
from codomyrmex_containerization.tools._storage_answers import Listing

_SHORT = 19  # of a digest: `sha256:` and twelve digits


class PullAnswer(Answer):
    """An image that was pulled; layers and bytes where the engine tells of them."""

    image: str
    id: str
    digest: str
    layers_pulled: int | None = None
    layers_there: int | None = None
    pulled_bytes: int | None = None
    seconds: float
    engine: str

    def text(self) -> str:
        counted = _counted(
            (self.layers_pulled, "pulled"), (self.layers_there, "there already"), bytes=self.pulled_bytes
        )
        return f"{self.image} is image {self.id} on {self.engine}, {self.digest}{counted}, {self.seconds:.1f}s"


class PushAnswer(Answer):
    """An image that was pushed; layers and bytes where the engine tells of them."""

    image: str
    target: str
    digest: str
    layers_uploaded: int | None = None
    layers_mounted: int | None = None
    layers_there: int | None = None
    uploaded_bytes: int | None = None
    seconds: float
    engine: str

    def text(self) -> str:
        counted = _counted(
            (self.layers_uploaded, "uploaded"),
            (self.layers_mounted, "mounted"),
            (self.layers_there, "there already"),
            bytes=self.uploaded_bytes,
        )
        return f"{self.target} is now {self.digest}{counted}, {self.seconds:.1f}s"


class PlatformRow(Row):
    """One of the images of an index; `kind` of what is none, such as an attestation."""

    platform: str
    digest: str
    kind: str | None = None


class BlobRow(Row):
    """A layer."""

    digest: str
    size_bytes: int
    media_type: str


class ReferrerRow(Row):
    """What refers to the image: a signature, an SBOM, an attestation."""

    artifact_type: str
    digest: str
    size_bytes: int


class ConfigurationRow(Row):
    """How containers of the image are run."""

    user: str
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    workdir: str | None = None
    env: list[str] = []
    exposed_ports: list[str] = []
    volumes: list[str] = []
    labels: dict[str, str] = {}
    history: list[str] = []


class RegistryInspectAnswer(Answer):
    """What a reference means; `digest` is its own, `image_digest` and what follows are those of the image for `platform`."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"layers": "first", "referrers": "first", "platforms": "first"}

    reference: str
    digest: str
    media_type: str
    kind: str
    platforms: list[PlatformRow] = []
    platform: str | None = None
    image_digest: str | None = None
    image_id: str | None = None
    size_bytes: int | None = None
    layers_count: int | None = None
    created: str | None = None
    annotations: dict[str, str] | None = None
    layers: list[BlobRow] = []
    configuration: ConfigurationRow | None = None
    referrers: list[ReferrerRow] = []

    def text(self) -> str:
        lines = [f"{self.reference}: {self.kind}, {self.digest}"]
        if self.platforms:
            rows = [(one.platform, one.digest[:_SHORT], one.kind or "") for one in self.platforms]
            lines.append(table(("PLATFORM", "DIGEST", "KIND"), rows))
        if self.size_bytes is not None:
            lines.append(
                f"{self.platform or 'the image'}: {sizes.show(self.size_bytes)} in {self.layers_count} layers"
                + (f", id {self.image_id}" if self.image_id else "")
                + (f", created {self.created}" if self.created else "")
            )
        if self.layers:
            lines += ["layers:", *(f"  {one.digest[:_SHORT]}  {sizes.show(one.size_bytes)}" for one in self.layers)]
        if self.configuration is not None:
            lines.append("configuration:")
            for name, value in self.configuration.model_dump(exclude_none=True).items():
                if isinstance(value, dict):
                    value = [f"{key}={one}" for key, one in value.items()]
                shown = " | ".join(value) if isinstance(value, list) else str(value)
                lines += [f"  {name}: {shown}"] if shown else []
        if self.annotations:
            lines += ["annotations:", *(f"  {name}={value}" for name, value in self.annotations.items())]
        if self.referrers:
            rows = [(one.artifact_type, one.digest[:_SHORT], sizes.show(one.size_bytes)) for one in self.referrers]
            lines += ["referrers:", table(("TYPE", "DIGEST", "SIZE"), rows)]
        return "\n".join(lines)


class RegistryListAnswer(Listing):
    """A page of tags, the highest version first, or of repositories by name; `complete` false: the registry has more than were read."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"names": "first"}

    kind: Literal["tags", "repositories"]
    names: list[str]
    complete: bool = True

    def text(self) -> str:
        if not self.names:
            return f"no {self.kind}" if self.total == 0 else f"no more {self.kind}"
        lines = list(self.names)
        if self.next_cursor is not None:
            lines.append(
                f"{len(lines)} of {self.total} shown; next: the same arguments with cursor={self.next_cursor!r}"
            )
        if not self.complete:
            lines.append("the registry has more than were read: narrow it down with a repository")
        return "\n".join(lines)


class RegistryCopyAnswer(Answer):
    """What a copy from registry to registry did."""

    source: str
    target: str
    digest: str
    manifests: int
    blobs_uploaded: int
    blobs_mounted: int
    blobs_there: int
    uploaded_bytes: int
    seconds: float

    def text(self) -> str:
        return (
            f"{self.target} is now {self.digest}, a copy of {self.source}: {self.manifests} manifests; blobs: "
            f"{self.blobs_uploaded} uploaded ({sizes.show(self.uploaded_bytes)}), {self.blobs_mounted} mounted, "
            f"{self.blobs_there} there already, {self.seconds:.1f}s"
        )


class RegistryDeleteAnswer(Answer):
    """What was removed of a registry; `tags_left` are those that it would not remove."""

    reference: str
    digest: str
    tags: list[str] = []
    tags_left: list[str] = []

    def text(self) -> str:
        tags = f" with the tags {', '.join(self.tags)}" if self.tags else ""
        left = f"; the registry keeps the tags {', '.join(self.tags_left)}" if self.tags_left else ""
        return f"removed {self.digest}{tags}{left}; its layers go when the registry next collects its garbage"


def _counted(*counts: tuple[int | None, str], bytes: int | None) -> str:
    known = [f"{count} {word}" for count, word in counts if count is not None]
    size = f" ({sizes.show(bytes)})" if bytes is not None else ""
    return f"; layers: {', '.join(known)}{size}" if known else ""
