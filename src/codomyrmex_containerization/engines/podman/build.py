"""What does the answer of Podman's builder mean? Its words are buildah's, in the frame of the classic builder's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from codomyrmex_containerization.models.image import BuildEvent

_STEP = re.compile(r"(?:\[\d+/\d+\] )?STEP (\d+)/(\d+): (.*)\Z", re.DOTALL)
_CACHED = re.compile(r"--> Using cache [0-9a-f]{11,64}\Z")
_IMAGE = re.compile(r"--> ([0-9a-f]{11,64})\Z")
_QUIET = re.compile(r"(?:\[\d+/\d+\] )?COMMIT |Successfully (?:built|tagged) |[0-9a-f]{64}\Z")
_EXIT = re.compile(r"exit status (\d+)")
_AT_STEP = re.compile(r'at STEP "(.*?)": ', re.DOTALL)


def events(lines: Iterator[dict[str, Any]]) -> Iterator[BuildEvent]:
    """Turn the builder's answer into events; steps are counted on over the stages."""
    before, latest = 0, (0, 0)
    for line in lines:
        if "error" in line:
            yield _failure(str(line["error"]))
        elif "stream" in line:
            for text in str(line["stream"]).rstrip("\n").split("\n"):
                if step := _STEP.match(text):
                    number, total = int(step[1]), int(step[2])
                    if number <= latest[0]:
                        before += latest[1]
                    latest = (number, total)
                    yield BuildEvent("step", text=step[3], number=before + number, total=before + total)
                else:
                    yield from _said(text)
        elif "aux" in line and "ID" in (line["aux"] or {}):
            yield BuildEvent("image", text=str(line["aux"]["ID"]))


def _said(text: str) -> Iterator[BuildEvent]:
    if not text.strip() or _QUIET.match(text):
        return
    if _CACHED.match(text):
        yield BuildEvent("cached")
    elif image := _IMAGE.match(text):
        yield BuildEvent("image", text=image[1])
    elif text.startswith("[Warning] "):
        yield BuildEvent("warning", text=text.removeprefix("[Warning] "))
    else:
        yield BuildEvent("log", text=text)


def _failure(text: str) -> BuildEvent:
    code, step = _EXIT.search(text), _AT_STEP.search(text)
    return BuildEvent(
        "error", text=text.strip(), exit_code=int(code[1]) if code else None, step=step[1] if step else ""
    )
