"""How are archives sent to an engine, and what does it say to them?"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base, host_files
from codomyrmex_containerization.engines.docker import errors as docker_errors

_LOADED = re.compile(r"Loaded image(?: ID)?(?:\(s\))?: *(.+)")
_OF_THE_HOST = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_NO_IMAGES = re.compile(
    r"(manifest\.json|repositories): no such file|does not match any of the supported", re.IGNORECASE
)


def sent(held: int, source: Path, *, passed: base.Passed, is_stopped: Callable[[], bool]) -> Iterator[bytes]:
    """Yield a file's bytes, or a folder as a tar. Raises InvalidArgument (it is empty), Cancelled, what packing a folder raises."""
    if not host_files.is_folder(held):
        if not os.fstat(held).st_size:
            raise errors.InvalidArgument(f"{source} is empty.", hint="make the archive again")
        yield from host_files.pieces(held, passed=passed, is_stopped=is_stopped)
        return
    if not hasattr(os, "listxattr"):
        raise errors.Unsupported("Folders are packed on Linux only.", hint="make a tar of the folder and name that")
    # Packed as the layer that it becomes: owners, modes and attributes stay, devices are refused.
    from codomyrmex_containerization.engines.embedded import layer_pack

    count = 0
    for piece in layer_pack.Packing(Path(f"/proc/self/fd/{held}"), None).pieces():
        if is_stopped():
            raise errors.Cancelled("The call was stopped.")
        count += len(piece)
        passed(count)
        yield piece


def changes(labels: Mapping[str, str]) -> list[str]:
    """Return the instructions that give an image labels."""
    return [f"LABEL {_quoted(name)}={_quoted(value)}" for name, value in labels.items()]


def _quoted(text: str) -> str:
    return '"' + re.sub(r'([\\"$])', r"\\\1", text) + '"'


def loaded(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names and ids that the answer to POST /images/load tells of. Podman tells several in one line."""
    said = [_LOADED.search(str(line.get("stream") or "")) for line in lines]
    return [name.strip() for found in said if found for name in found[1].split(",") if name.strip()]


def explanation(response: Any) -> str:
    """Return what an answer that is an error says."""
    text = response.content.decode("utf-8", "replace")
    try:
        raw = json.loads(text)
    except ValueError:
        return str(text)
    return str(raw.get("message") or raw.get("cause") or text) if isinstance(raw, dict) else text


def refusal(text: str, *, engine: str, what: str) -> errors.ContainerizationError:
    """Return our error for what an engine says of an archive: nearly always it is the archive's fault."""
    if _OF_THE_HOST.search(text):
        return docker_errors.from_message(text, engine=engine, what=what)
    hint = "the file is damaged or no such archive: make or fetch it again"
    if _NO_IMAGES.search(text):
        hint = "no archive of images that it reads: image_import takes a root file system, engine='embedded' OCI archives too"
    return errors.InvalidArgument(f"{engine} says, while {what}: {docker_errors.explanation(text)}", hint=hint)
