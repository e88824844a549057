"""What does a Docker engine say while it pulls and pushes, and what is it told of credentials?"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.docker import errors as docker_errors
from codomyrmex_containerization.models import reference

if TYPE_CHECKING:
    from codomyrmex_containerization.clients.credentials import Credential

_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64})", re.IGNORECASE)
_HUB_SERVER = "https://index.docker.io/v1/"


def wanted(target: str) -> reference.ImageReference:
    """Return where a push goes. Raises InvalidArgument."""
    found = reference.parse(target)
    if found.digest is not None:
        raise errors.InvalidArgument(f"{target!r} is no tag: it has a digest.", hint="leave out what follows '@'")
    return found


def taken(engine: str, target: str) -> errors.Conflict:
    """Return the error for a name that another image has: a push goes by the name here."""
    return errors.Conflict(
        f"{engine} has another image named {target}.",
        hint="push under another name, or give that image another one with image_tag and take this one off with image_remove",
    )


def header(target: reference.ImageReference, credential: Credential | None) -> dict[str, str]:
    """Return the header of credentials; one must be there also where there are none."""
    said: dict[str, str] = {}
    if credential is not None:
        server = _HUB_SERVER if target.domain == reference.DEFAULT_DOMAIN else target.domain
        given = {
            "username": credential.user,
            "password": credential.password,
            "identitytoken": credential.identity_token,
            "registrytoken": credential.registry_token,
        }
        said = {"serveraddress": server} | {name: value for name, value in given.items() if value}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(said).encode()).decode()}


def pull_progress(lines: Iterator[Mapping[str, Any]], *, engine: str, what: str) -> Iterator[base.PullProgress]:
    """Read what is said while an image is pulled."""
    book = _Book("Downloading", moved=("Pull complete", "Download complete"), there=("Already exists",))
    yield from book.read(lines, engine, what, "pulled", "")


def progress(lines: Iterator[Mapping[str, Any]], *, engine: str, what: str, id: str) -> Iterator[base.PullProgress]:
    """Read what is said while an image is pushed."""
    book = _Book("Pushing", moved=("Pushed",), there=("Layer already exists",))
    yield from book.read(lines, engine, what, "pushed", id)


class _Book:
    """Counts layers by the words that an engine has for them."""

    def __init__(self, moving: str, *, moved: tuple[str, ...], there: tuple[str, ...]) -> None:
        self._moving, self._moved_words, self._there_words = moving, moved, there
        self._sizes: dict[str, tuple[int, int]] = {}
        self._moved: set[str] = set()
        self._there: set[str] = set()
        self._mounted: set[str] = set()
        self._digest = ""

    def read(
        self, lines: Iterator[Mapping[str, Any]], engine: str, what: str, word: str, id: str
    ) -> Iterator[base.PullProgress]:
        """Yield how far it is, and at the end what was done."""
        done = total = 0
        for line in lines:
            if "error" in line:
                raise docker_errors.from_message(str(line["error"]), engine=engine, what=what)
            self._note(line)
            done = sum(one for one, _ in self._sizes.values())
            total = sum(one for _, one in self._sizes.values())
            said = str(line.get("status") or line.get("stream") or "").strip()
            layer = str(line.get("id") or "")
            if said:
                yield base.PullProgress(f"layer {layer}: {said.lower()}" if layer in self._all else said, done, total)
        layers = bool(self._all)  # Podman tells of none
        yield base.PullProgress(
            word,
            done,
            total,
            base.Transfer(
                self._digest,
                id,
                len(self._moved) if layers else None,
                len(self._mounted),
                len(self._there) if layers else None,
                done
                if layers and word == "pulled"
                else None,  # a push tells of layers as they are before they are packed
            ),
        )

    @property
    def _all(self) -> set[str]:
        return self._moved | self._there | self._mounted | self._sizes.keys()

    def _note(self, line: Mapping[str, Any]) -> None:
        said, layer = str(line.get("status") or ""), str(line.get("id") or "")
        if found := _DIGEST.search(said):
            self._digest = found[1]
        detail = line.get("progressDetail") or {}
        if said == self._moving and detail.get("current"):
            self._sizes[layer] = (int(detail["current"]), int(detail.get("total") or detail["current"]))
        elif said in self._moved_words:
            self._moved.add(layer)
            if layer in self._sizes:
                size = max(self._sizes[layer])
                self._sizes[layer] = (size, size)
        elif said in self._there_words:
            self._there.add(layer)
        elif said.startswith("Mounted from"):
            self._mounted.add(layer)
