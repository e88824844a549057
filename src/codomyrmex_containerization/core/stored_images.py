"""What images are there, what are they made of, and what could make them smaller?"""

from __future__ import annotations

import difflib
import hashlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import containers
from codomyrmex_containerization.engines import base, guard, selection
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.details import ImageDetails, ImageRow, Layer

_MEGABYTE = 1_000_000
_LARGE_LAYER_BYTES = 50 * _MEGABYTE
_MANY_LAYERS = 20
_FEW_DIGITS = re.compile(r"[0-9a-f]{1,11}")
_BUILD_TOOLS = frozenset("build-essential build-base gcc g++ clang make cmake cargo rustc golang golang-go go".split())
_SHELL = re.compile(
    r"""
    (?P<blank> [ \t\r]+ | \\\n )
    | (?P<comment> \# [^\n]* )
    | (?P<separator> [();|&\n]+ )
    | (?P<redirection> \d* [<>]+ &? [-]? )
    | (?P<word> (?: \\. | '[^']*' | "(?:\\.|[^"\\])*" | [^\s();|&<>'"\\] )+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(r"""\\(.)|'([^']*)'|"((?:\\.|[^"\\])*)\"""", re.DOTALL)
# What stands in front of a command's name: variables, and words that run what follows.
_BEFORE_COMMAND = re.compile(r"[A-Za-z_]\w*=.*|sudo|exec|env|time|then|do|else|if|while|!|\{", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A row of a list and the containers made of the image."""

    row: ImageRow
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of a list; `next_key` is the last row's key when there is more, `failed` says what could not be asked."""

    images: tuple[ListedImage, ...]
    total: int
    next_key: cursors.Key | None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that would make an image smaller or safer; `bytes` is the size of the layer it is about, if it is about one."""

    text: str
    bytes: int = 0
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class ImageChange:
    """What removing an image or moving a tag would take away, and a digest of that state."""

    image_id: str
    lost: tuple[str, ...]
    digest: str


async def list_images(
    engines: selection.Engines,
    *,
    engine: str | None,
    name: str | None,
    dangling: bool | None,
    limit: int,
    after: cursors.Key | None,
) -> ImagePage:
    """Return a page of the images of one engine or of all, newest first; which containers use them comes from one more request."""
    answers = await engines.ask(engine, lambda one: one.list_images())
    rows = [row for found in answers.found.values() for row in found if _matches(row, name, dangling)]
    ordered = sorted(rows, key=_key)
    rest = [row for row in ordered if after is None or _key(row) > (-after[0], after[1] + "g")]
    page = rest[:limit]
    users, unread = await _users(engines, tuple(dict.fromkeys(row.engine for row in page)))
    return ImagePage(
        images=tuple(ListedImage(row, tuple(users[row.engine].get(row.id, ()))) for row in page),
        total=len(ordered),
        next_key=image_key(page[-1]) if len(rest) > limit else None,
        failed=(*(containers.said_wrong(one, error) for one, error in answers.failed.items()), *unread),
    )


async def _users(
    engines: selection.Engines, names: Sequence[str]
) -> tuple[dict[str, dict[str, list[str]]], tuple[str, ...]]:
    """Read which containers use images; one of several engines that no longer tells is a line, not the end of the list."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    unread: list[str] = []
    for name in names:
        try:
            found[name] = await (await engines.pick(name)).image_users()
        except errors.ContainerizationError as error:
            if len(names) == 1:
                raise
            unread.append(f"users of images on {containers.said_wrong(name, error)}")
    return found, tuple(unread)


def image_key(row: ImageRow) -> cursors.Key:
    """Return the key that a page goes on behind."""
    return (row.created.timestamp(), _hex(row.id))


async def find(engine: base.Engine, image: str) -> ImageDetails:
    """Return the image that a reference or id means. Raises InvalidArgument, NotFound with the nearest names."""
    if not reference.is_image_id(image):
        reference.parse(image)
    try:
        found = await engine.image_details(image)
        # An engine takes a few digits for the beginning of an id: too few to say which image was meant.
        if not _FEW_DIGITS.fullmatch(image) or _name_of(found, image):
            return found
        raise errors.NotFound(f"{engine.name} has no image named {image!r}.")
    except errors.NotFound as error:
        near = difflib.get_close_matches(image, await engine.list_image_names(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "image_list shows the images there are"
        raise errors.NotFound(f"{engine.name} has no image {image!r}.", hint=hint) from error


async def locate(
    engines: selection.Engines, image: str, *, engine: str | None
) -> tuple[guard.GuardedEngine, ImageDetails]:
    """Return an image of the named engine or the default one, and that engine; raises as `find`, naming another engine that has it."""
    chosen = await engines.pick(engine)
    try:
        return chosen, await find(chosen, image)
    except errors.NotFound as error:
        elsewhere = await _holders(engines, image, other_than=chosen.name)
        if not elsewhere:
            raise
        raise errors.NotFound(
            f"{chosen.name} has no image {image!r}, but {' and '.join(elsewhere)} has.",
            hint=f"pass engine={elsewhere[0]!r}",
        ) from error


async def _holders(engines: selection.Engines, image: str, *, other_than: str) -> list[str]:
    if set(engines.names) <= {other_than}:
        return []

    async def has(engine: base.Engine) -> bool:
        try:
            await engine.inspect_image(image)
        except (errors.NotFound, errors.InvalidArgument):
            return False
        return True

    answers = await engines.ask(None, has)
    return [name for name, found in answers.found.items() if found and name != other_than]


async def plan_tag(engine: guard.GuardedEngine, image: ImageDetails, target: str) -> ImageChange | None:
    """Say what giving `target` to an image would take the name from; None when the name is free or this run's own."""
    try:
        now = await engine.inspect_image(target)
    except errors.NotFound:
        return None
    if now.id == image.id or engine.owns("image", now.id):
        return None
    lost = f"the name {target}, which now means image {_short(now.id)} ({now.size_bytes:,} bytes)"
    last = " and is its only one" if len(now.tags) <= 1 else ""
    return ImageChange(now.id, (lost + last,), _digest("tag", image.id, now.id, target))


async def plan_removal(engine: base.Engine, found: ImageDetails, image: str, *, force: bool) -> ImageChange:
    """Say what removing an image, which was found by the text `image`, would take away.

    Raises Conflict when it needs `force` and that is not given: containers use the image, or an id names one with several tags.
    """
    name = _name_of(found, image)
    others = [tag for tag in found.tags if tag != name]
    if name and others:
        lost = f"the name {name} (the image stays as {', '.join(others)})"
        return ImageChange(found.id, (lost,), _digest("untag", found.id, name))
    if len(found.tags) > 1 and not force:
        raise errors.Conflict(
            f"Image {_short(found.id)} has several names: {', '.join(found.tags)}.",
            hint="remove them one by one by name, or pass force=true to remove all of them and the image",
        )
    users = (await engine.image_users()).get(found.id, [])
    if users and not force:
        raise errors.Conflict(
            f"Image {image} is used by {', '.join(users[:5])}.",
            hint="remove those containers first, or pass force=true",
        )
    lost = f"image {_short(found.id)} ({', '.join(found.tags) or 'untagged'}, {found.size_bytes:,} bytes)"
    also = f"what the containers {', '.join(users[:5])} were made of: they cannot be made again" if users else ""
    return ImageChange(
        found.id,
        tuple(one for one in (lost, also) if one),
        _digest("remove", found.id, *sorted(found.tags), *sorted(users)),
    )


def _name_of(image: ImageDetails, text: str) -> str:
    """Return the name of an image that a text is; empty when it is an id."""
    with suppress(errors.InvalidArgument):
        name = str(reference.parse(text))
        if name in image.tags or name in image.digests:
            return name
    return ""


def largest_first(image: ImageDetails) -> list[Layer]:
    """Return the layers that have a size, the largest first."""
    return sorted((one for one in image.layers if one.size_bytes), key=lambda one: -one.size_bytes)


def advise(image: ImageDetails) -> list[Advice]:
    """Say what could shrink the image, from its instructions and sizes alone."""
    found = [
        Advice(text, layer.size_bytes, number)
        for number, layer in enumerate(image.layers)
        for text in _layer_advice(layer)
    ]
    if len(image.layers) > _MANY_LAYERS:
        found.append(Advice(f"{len(image.layers)} layers: join RUN instructions that belong together"))
    if image.user in ("", "0", "root", "0:0", "root:root"):
        found.append(Advice("runs as root: add a USER instruction"))
    return found


def score(image: ImageDetails, found: list[Advice]) -> int:
    """Rate an image from 0 to 100: 100 less 10 for each advice, less the share of bytes (at most 30) that advice is about."""
    share = 1.0 - efficiency(image, found) / 100.0
    return max(0, 100 - 10 * len(found) - round(30 * share))


def efficiency(image: ImageDetails, found: list[Advice]) -> float:
    """Return the percentage of the image's bytes that no advice is about."""
    if not image.size_bytes:
        return 100.0
    touched = min(sum({one.layer: one.bytes for one in found}.values()), image.size_bytes)
    return round(100.0 * (1 - touched / image.size_bytes), 1)


def _layer_advice(layer: Layer) -> list[str]:
    text, size = layer.instruction, layer.size_bytes
    short = text if len(text) <= 60 else text[:57] + "..."
    if text.startswith(("COPY", "ADD")):
        if size <= _LARGE_LAYER_BYTES:
            return []
        return [f"{short}: {size // _MEGABYTE} MB copied in: check .dockerignore"]
    if not text.startswith("RUN "):
        return []
    return [f"{short}: {one}" for one in _run_advice(_commands(text.removeprefix("RUN ")), size)]


def _run_advice(commands: list[list[str]], size: int) -> Iterator[str]:
    installed: set[str] = set()
    removed: set[str] = set()
    for words in commands:
        manager, verb, packages = _package_call(words)
        if verb in ("install", "add"):
            installed.update(packages)
        elif verb in ("remove", "purge", "del", "autoremove"):
            # A name that begins with a dot is one for all that was installed with `apk add --virtual`.
            removed.update(packages, installed if any(word.startswith(".") for word in packages) else ())
        if manager in ("apt", "apt-get") and verb == "install" and not _removes(commands, "/var/lib/apt/lists"):
            yield "remove /var/lib/apt/lists/* in the same RUN"
        if (
            manager == "apk"
            and verb == "add"
            and "--no-cache" not in words
            and not _removes(commands, "/var/cache/apk")
        ):
            yield "apk add --no-cache"
        if manager == "pip" and verb == "install" and "--no-cache-dir" not in words:
            yield "pip install --no-cache-dir"
    tools = (installed & _BUILD_TOOLS) - removed
    if tools and size:
        yield f"build tools ({', '.join(sorted(tools))}) stay in the image: build in an earlier stage and copy the result"
    if commands and size < _MEGABYTE and all(words[0] == "rm" or "-delete" in words for words in commands):
        yield "files removed in a later layer still count: remove them in the RUN that makes them"


def _package_call(words: list[str]) -> tuple[str, str, list[str]]:
    """Return the package manager, what it is to do and the packages; empty for a command that is none."""
    program = posixpath.basename(words[0])
    if re.fullmatch(r"python[\d.]*", program) and words[1:3] == ["-m", "pip"]:
        program, words = "pip", words[2:]
    manager = "pip" if re.fullmatch(r"pip[\d.]*", program) else program
    plain = [word for word in words[1:] if not word.startswith("-")]
    if manager not in ("apt", "apt-get", "apk", "pip") or not plain:
        return "", "", []
    return manager, plain[0], [re.split(r"[=<>~:/]", word)[0] for word in plain[1:]]


def _removes(commands: list[list[str]], path: str) -> bool:
    return any(words[0] in ("rm", "find") and any(path in word for word in words[1:]) for words in commands)


def _commands(script: str) -> list[list[str]]:
    """Split a shell script into its commands, the words of each; comments and what is quoted are no commands."""
    commands: list[list[str]] = [[]]
    redirected = False
    for found in _SHELL.finditer(script):
        match found.lastgroup:
            case "separator":
                commands.append([])
            case "redirection":
                redirected = True
            case "word":
                word = _QUOTED.sub(lambda one: one[1] or one[2] or one[3] or "", found[0])
                if not redirected and (commands[-1] or not _BEFORE_COMMAND.fullmatch(word)):
                    commands[-1].append(word)
                redirected = False
    return [words for words in commands if words]


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
