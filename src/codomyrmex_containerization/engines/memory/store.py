"""What does this engine hold: images, containers, volumes, networks and what happened to them, and which one does a text mean?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.memory import files, objects
from codomyrmex_containerization.engines.memory.containers import Container
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.details import Layer
from codomyrmex_containerization.models.event import EngineEvent, EventQuery

T = TypeVar("T")
MOST_EVENTS = 10_000
_SHORT_ID = 12


class Store:
    """All of one engine."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.images: dict[str, objects.Image] = {}
        self.containers: dict[str, Container] = {}
        self.volumes: dict[str, objects.Volume] = {}
        self.networks: dict[str, objects.Network] = {}
        self.cache: dict[str, str] = {}
        self._events: deque[EngineEvent] = deque(maxlen=MOST_EVENTS)
        self._count = 0
        self._changed = anyio.Event()

    def keeps(self, container: str) -> bool:
        """Say whether a container is still there, by its full id."""
        return container in self.containers

    # ---------------------------------------------------------------- lookups

    def container(self, text: str) -> Container:
        """Return the container that a name, an id or the beginning of one means. Raises NotFound, Ambiguous."""
        name = text.removeprefix("/")
        for one in self.containers.values():
            if name == one.id or name == one.name:
                return one
        found = [one for one in self.containers.values() if name and one.id.startswith(name)]
        if len(found) > 1:
            raise errors.Ambiguous(
                f"{text!r} fits {len(found)} containers of {self.engine}.", hint="give more of the id, or the name"
            )
        if not found:
            raise self.missing("container", text)
        return found[0]

    def image(self, text: str) -> objects.Image:
        """Return the image that a reference, an id or the beginning of one means. Raises NotFound, Ambiguous."""
        id = text.removeprefix("sha256:")
        for image in self.images.values():
            if image.id == f"sha256:{id}" or text in image.tags:
                return image
        try:
            name = str(reference.parse(text))
        except errors.InvalidArgument:
            name = ""
        for image in self.images.values():
            if name and name in image.tags:
                return image
        found = [one for key, one in self.images.items() if id and key.startswith(f"sha256:{id}")]
        if len(found) > 1:
            raise errors.Ambiguous(f"{text!r} fits {len(found)} images of {self.engine}.", hint="give more of the id")
        if not found:
            raise self.missing("image", text)
        return found[0]

    def volume(self, text: str) -> objects.Volume:
        """Return a volume by name. Raises NotFound."""
        if text not in self.volumes:
            raise self.missing("volume", text)
        return self.volumes[text]

    def network(self, text: str) -> objects.Network:
        """Return a network by name, id or the beginning of one. Raises NotFound, Ambiguous."""
        for one in self.networks.values():
            if text in (one.spec.name, one.id):
                return one
        found = [one for key, one in self.networks.items() if text and key.startswith(text)]
        if len(found) > 1:
            raise errors.Ambiguous(f"{text!r} fits {len(found)} networks.", hint="give more of the id, or the name")
        if not found:
            raise self.missing("network", text)
        return found[0]

    def missing(self, kind: str, text: str) -> errors.NotFound:
        """Return the error for something that is not there."""
        hints = {
            "container": "check the name; container_list(all=true) shows the containers there are",
            "image": "check the image's name and tag; memory pulls nothing: build it, or use docker or podman",
            "volume": "check the volume's name",
            "network": "check the network's name",
        }
        return errors.NotFound(f"{self.engine} has no {kind} {text!r}.", hint=hints[kind], details={"missing": kind})

    # ----------------------------------------------------------------- images

    def add_image(
        self, *, parent: objects.Image | None, tree: files.Tree, config: objects.Config, instruction: str
    ) -> objects.Image:
        """Make an image of a tree: a layer on its parent. An image of just these contents and times is made once."""
        now = datetime.now(tz=UTC)
        before = {} if parent is None else objects.manifest(parent.tree)
        after = before if parent is not None and parent.tree is tree else objects.manifest(tree)
        changed = {path: one for path, one in after.items() if before.get(path) != one}
        gone = sorted(before.keys() - after.keys())
        digest = objects.digest([sorted(changed.items()), gone]) if changed or gone else ""
        layers = (*(parent.layers if parent else ()), Layer(sum(one[4] for one in changed.values()), instruction, now))
        digests = (*(parent.digests if parent else ()), *([digest] if digest else []))
        shown = [str(config), [(one.instruction, str(one.created)) for one in layers], digests]
        id = f"sha256:{objects.digest(shown)}"
        image = objects.Image(id, parent.id if parent else "", now, tree, config, layers, digests)
        self.images[id] = image
        return image

    def tag(self, image: objects.Image, name: str) -> None:
        """Give an image a name, which another one may lose."""
        wanted = str(reference.parse(name))
        for one in self.images.values():
            if wanted in one.tags:
                one.tags.remove(wanted)
        image.tags.append(wanted)
        self.note("image", "tag", image.id, wanted)

    def children(self, image: objects.Image) -> list[objects.Image]:
        """Return the images built right on this one."""
        return [one for one in self.images.values() if one.parent == image.id]

    def listed_images(self) -> list[objects.Image]:
        """Return images with a name, and those that no other is built on."""
        parents = {one.parent for one in self.images.values()}
        found = [one for one in self.images.values() if one.tags or one.id not in parents]
        return sorted(found, key=lambda one: one.created, reverse=True)

    def remove_image(self, text: str, *, force: bool) -> tuple[str, ...]:
        """Remove an image or a name. Raises NotFound, Conflict."""
        image = self.image(text)
        users = [one for one in self.containers.values() if one.image.id == image.id]
        by_id = image.id.removeprefix("sha256:").startswith(text.removeprefix("sha256:"))
        name = "" if by_id else str(reference.parse(text))
        if name and len(image.tags) > 1:
            image.tags.remove(name)
            self.note("image", "untag", image.id, name)
            return (name,)
        running = [one for one in users if one.is_alive]
        hint = "remove the containers that use it first or pass force=true"
        if len(image.tags) > 1 and not force:
            raise errors.Conflict(
                f"Image {text} has several names: {', '.join(image.tags)}.",
                hint="remove them by name, or pass force=true",
            )
        if (running and by_id) or (users and not force):
            state = "running " if running else ""
            raise errors.Conflict(
                f"Image {text} is being used by {state}container {(running or users)[0].name}.", hint=hint
            )
        if self.children(image) and (by_id and not image.tags):
            raise errors.Conflict(f"Image {text} has dependent child images.", hint="remove those first")
        gone = list(image.tags)
        image.tags.clear()
        for one in gone:
            self.note("image", "untag", image.id, one)
        return (*gone, *([] if users else self._drop(image)))

    def _drop(self, image: objects.Image) -> list[str]:
        """Remove an untagged image that nothing needs, and what it was built on likewise."""
        gone: list[str] = []
        now: objects.Image | None = image
        while now is not None and not now.tags and not self.children(now):
            if any(one.image is now for one in self.containers.values()):
                break
            del self.images[now.id]
            gone.append(now.id)
            self.note("image", "delete", now.id, now.id)
            now = self.images.get(now.parent)
        self.cache = {key: id for key, id in self.cache.items() if id in self.images}
        return gone

    # ----------------------------------------------------------------- events

    def note(self, kind: str, action: str, id: str, name: str, attributes: Mapping[str, str] | None = None) -> None:
        """Remember that something happened."""
        shown = {"name": name, **(attributes or {})}
        self._events.append(EngineEvent(datetime.now(tz=UTC), kind, action, id, name, shown, self.engine))
        self._count += 1
        self._changed.set()
        self._changed = anyio.Event()

    def events_after(self, number: int) -> tuple[int, list[EngineEvent], anyio.Event]:
        """Return the events from a number on, the number of the next one, and what is set when it happens."""
        held = list(self._events)
        first = self._count - len(held)
        return self._count, held[max(number - first, 0) :], self._changed


def is_wanted(event: EngineEvent, query: EventQuery) -> bool:
    """Say whether an event fits all filters of a query."""
    if (query.since and event.time < query.since) or (query.until and event.time > query.until):
        return False
    for name, values in query.filters.items():
        match name:
            case "type":
                fits = event.type in values
            case "event":
                fits = any(event.action == one or event.action.startswith(f"{one}:") for one in values)
            case "label":
                fits = any(_has_label(event.attributes, one) for one in values)
            case "container" | "volume" | "network":
                fits = event.type == name and any(event.name == one or event.id.startswith(one) for one in values)
            case "image":
                fits = any(one in (event.name, event.id, event.attributes.get("image")) for one in values)
            case _:
                raise errors.InvalidArgument(
                    f"There is no event filter {name!r}.",
                    hint="use container, image, volume, network, event, type or label",
                )
        if not fits:
            return False
    return True


def _has_label(attributes: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in attributes and (not equals or attributes[name] == value)


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Say whether an object wears all of the labels."""
    return all(_has_label(labels, one) for one in wanted)
