"""How does the engine's classic builder take a build, and what does its answer mean?

Source: POST /build of the Engine API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker import streams
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec

_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)\Z", re.DOTALL)
_IMAGE = re.compile(r" ---> ([0-9a-f]{12,64})\Z")
_BUILT = re.compile(r"Successfully built ([0-9a-f]{12,64})\Z")
_QUIET = re.compile(r"Successfully tagged |Removing intermediate container | ---> Running in |Sending build context")


class Upload:
    """A context on its way: iterating sends it, `stop` ends it, `failure` is what went wrong on our side."""

    def __init__(self, context: Callable[[], Iterator[bytes]]) -> None:
        self._context = context
        self._stopped = False
        self.response: Any = None
        self.failure: errors.ContainerizationError | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._context():
                if self._stopped:
                    raise errors.Cancelled("The build was stopped.")
                yield chunk
        except errors.ContainerizationError as error:
            self.failure = error
            raise

    def stop(self) -> None:
        """End the upload or the answer, whichever is going on; the engine then stops the build."""
        self._stopped = True
        if self.response is not None:
            streams.release(self.response)


def parameters(spec: BuildSpec, dockerfile_name: str) -> list[tuple[str, str]]:
    """Return the query of POST /build."""
    query = [("t", tag) for tag in spec.tags]
    query += [("dockerfile", dockerfile_name), ("rm", "1"), ("forcerm", "1")]
    if spec.no_cache:
        query.append(("nocache", "1"))
    if spec.pull:
        query.append(("pull", "1"))
    if spec.target:
        query.append(("target", spec.target))
    if spec.build_args:
        query.append(("buildargs", json.dumps(dict(spec.build_args))))
    if spec.labels:
        query.append(("labels", json.dumps(dict(spec.labels))))
    return query


def events(lines: Iterator[dict[str, Any]]) -> Iterator[BuildEvent]:
    """Turn the builder's answer into events."""
    for line in lines:
        if "error" in line:
            detail = line.get("errorDetail") or {}
            yield BuildEvent("error", text=str(line["error"]), exit_code=detail.get("code"))
        elif "stream" in line:
            for text in str(line["stream"]).rstrip("\n").split("\n"):
                yield from _stream_event(text)
        elif "aux" in line and "ID" in (line["aux"] or {}):
            yield BuildEvent("image", text=str(line["aux"]["ID"]))
        elif "status" in line and "progressDetail" not in line:
            yield BuildEvent("log", text=str(line["status"]))


def _stream_event(text: str) -> Iterator[BuildEvent]:
    if not text.strip() or _QUIET.match(text):
        return
    if step := _STEP.match(text):
        # The last step is the builder's own, for the labels that it was given beside the Dockerfile.
        yield BuildEvent("step", text=step[3], number=int(step[1]), total=max(int(step[2]) - 1, int(step[1])))
    elif text == " ---> Using cache":
        yield BuildEvent("cached")
    elif image := _IMAGE.match(text) or _BUILT.match(text):
        yield BuildEvent("image", text=image[1])
    elif text.startswith("[Warning] "):
        yield BuildEvent("warning", text=text.removeprefix("[Warning] "))
    else:
        yield BuildEvent("log", text=text)
