"""What images are there, what are they made of, and what could make them smaller?"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base, guard
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.details import ImageDetails, ImageRow, Layer

_MEGABYTE = 1_000_000
_LARGE_LAYER_BYTES = 50 * _MEGABYTE
_MANY_LAYERS = 20


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A row of a list and the containers made of the image."""

    row: ImageRow
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of a list; `next_key` is the last row's key when there is more."""

    images: tuple[ListedImage, ...]
    total: int
    next_key: cursors.Key | None


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that would make an image smaller or safer; `bytes` is the size of the layer it is about."""

    text: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ImageChange:
    """What removing an image or moving a tag would take away, and a digest of that state."""

    image_id: str
    lost: tuple[str, ...]
    digest: str


async def list_images(
    engine: base.Engine, *, name: str | None, dangling: bool | None, limit: int, after: cursors.Key | None
) -> ImagePage:
    """Return a page of images, newest first; which containers use them comes from one more request."""
    rows = [row for row in await engine.list_images() if _matches(row, name, dangling)]
    ordered = sorted(rows, key=_key)
    rest = [row for row in ordered if after is None or _key(row) > (-after[0], after[1] + "g")]
    page = rest[:limit]
    users = await engine.image_users() if page else {}
    return ImagePage(
        images=tuple(ListedImage(row, tuple(users.get(row.id, ()))) for row in page),
        total=len(ordered),
        next_key=image_key(page[-1]) if len(rest) > limit else None,
    )


def image_key(row: ImageRow) -> cursors.Key:
    """Return the key that a page goes on behind."""
    return (row.created.timestamp(), _hex(row.id))


async def find(engine: base.Engine, image: str) -> ImageDetails:
    """Return the image that a reference or id means. Raises InvalidArgument, NotFound with the nearest names."""
    if not reference.is_image_id(image):
        reference.parse(image)
    try:
        return await engine.image_details(image)
    except errors.NotFound as error:
        near = difflib.get_close_matches(image, await engine.list_image_names(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "image_list shows the images there are"
        raise errors.NotFound(f"{engine.name} has no image {image!r}.", hint=hint) from error


async def plan_tag(engine: guard.GuardedEngine, source: str, target: str) -> ImageChange | None:
    """Say what giving `target` to `source` would take the name from; None when the name is free or this run's own."""
    image = await find(engine, source)
    try:
        now = await engine.inspect_image(target)
    except errors.NotFound:
        return None
    if now.id == image.id or engine.owns("image", now.id):
        return None
    lost = f"the name {target}, which now means image {_short(now.id)} ({now.size_bytes:,} bytes)"
    last = " and would be its only name" if len(now.tags) <= 1 else ""
    return ImageChange(now.id, (lost + last,), _digest("tag", image.id, now.id, target))


async def plan_removal(engine: base.Engine, image: str, *, force: bool) -> ImageChange:
    """Say what a removal would take away. Raises Conflict when containers use the image and `force` is not given."""
    found = await find(engine, image)
    users = (await engine.image_users()).get(found.id, [])
    by_id = reference.is_image_id(image) and not any(tag.startswith(f"{image}:") for tag in found.tags)
    wanted = str(reference.parse(image)) if not by_id else ""
    others = [tag for tag in found.tags if tag != wanted]
    if wanted and others:
        lost = [f"the name {wanted} (the image stays as {', '.join(others)})"]
        return ImageChange(found.id, tuple(lost), _digest("untag", found.id, wanted))
    if users and not force:
        raise errors.Conflict(
            f"Image {image} is used by {', '.join(users[:5])}.",
            hint="remove those containers first, or pass force=true",
        )
    lost = [f"image {_short(found.id)} ({', '.join(found.tags) or 'untagged'}, {found.size_bytes:,} bytes)"]
    if users:
        lost.append(
            f"the image under the containers {', '.join(users[:5])}, which keep running but cannot be made again"
        )
    return ImageChange(found.id, tuple(lost), _digest("remove", found.id, *sorted(found.tags), *sorted(users)))


def largest_first(image: ImageDetails) -> list[Layer]:
    """Return the layers that have a size, the largest first."""
    return sorted((one for one in image.layers if one.size_bytes), key=lambda one: -one.size_bytes)


def advise(image: ImageDetails) -> list[Advice]:
    """Say what could shrink the image, from its instructions and sizes alone."""
    found = [advice for layer in image.layers for advice in _layer_advice(layer)]
    if len(image.layers) > _MANY_LAYERS:
        found.append(Advice(f"{len(image.layers)} layers: join RUN instructions that belong together", 0))
    if image.user in ("", "0", "root", "0:0", "root:root"):
        found.append(Advice("runs as root: add a USER instruction", 0))
    return found


def score(image: ImageDetails, found: list[Advice]) -> int:
    """Rate an image from 0 to 100: 100 less 10 for each advice, less the share of bytes (at most 30) that advice is about."""
    share = 1.0 - efficiency(image, found) / 100.0
    return max(0, 100 - 10 * len(found) - round(30 * share))


def efficiency(image: ImageDetails, found: list[Advice]) -> float:
    """Return the percentage of the image's bytes that no advice is about."""
    if not image.size_bytes:
        return 100.0
    touched = min(sum({one.text: one.bytes for one in found}.values()), image.size_bytes)
    return round(100.0 * (1 - touched / image.size_bytes), 1)


def _layer_advice(layer: Layer) -> list[Advice]:
    text, size = layer.instruction, layer.size_bytes
    short = text if len(text) <= 60 else text[:57] + "..."
    found = []
    if re.search(r"apt(-get)? install", text) and "/var/lib/apt/lists" not in text:
        found.append(Advice(f"{short}: remove /var/lib/apt/lists/* in the same RUN", size))
    if re.search(r"apk add", text) and "--no-cache" not in text:
        found.append(Advice(f"{short}: apk add --no-cache", size))
    if re.search(r"pip3? install", text) and "--no-cache-dir" not in text:
        found.append(Advice(f"{short}: pip install --no-cache-dir", size))
    if re.search(r"\b(build-essential|gcc|g\+\+|make|cargo|golang)\b", text) and "RUN" in text and size:
        found.append(
            Advice(f"{short}: build tools stay in the image: build in an earlier stage and copy the result", size)
        )
    if text.startswith(("COPY", "ADD")) and size > _LARGE_LAYER_BYTES:
        found.append(Advice(f"{short}: {size // _MEGABYTE} MB copied in: check .dockerignore", size))
    if re.match(r"RUN (rm|find .* -delete)\b", text) and size < _MEGABYTE:
        found.append(
            Advice(f"{short}: files removed in a later layer still count: remove them in the RUN that makes them", 0)
        )
    return found


def _matches(row: ImageRow, name: str | None, dangling: bool | None) -> bool:
    if dangling is not None and dangling == bool(row.tags):
        return False
    return name is None or any(name in one for one in (*row.tags, *row.digests))


def _key(row: ImageRow) -> tuple[float, str]:
    return (-row.created.timestamp(), _hex(row.id)[:16])


def _hex(id: str) -> str:
    return id.removeprefix("sha256:")


def _short(id: str) -> str:
    return _hex(id)[:12]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
