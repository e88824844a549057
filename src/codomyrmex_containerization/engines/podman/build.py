"""What does Podman's builder keep inside, and what does its answer mean? Its words are buildah's, in the frame of the classic builder's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec

_STEP = re.compile(r"(?:\[\d+/\d+\] )?STEP (\d+)/(\d+): (.*)\Z", re.DOTALL)
_CACHED = re.compile(r"--> Using cache [0-9a-f]{11,64}\Z")
_IMAGE = re.compile(r"--> ([0-9a-f]{11,64})\Z")
_QUIET = re.compile(r"(?:\[\d+/\d+\] )?COMMIT |Successfully (?:built|tagged) |[0-9a-f]{64}\Z")
_EXIT = re.compile(r"exit status (\d+)")
_AT_STEP = re.compile(r'at STEP "(.*?)": ', re.DOTALL)
_ARG = re.compile(r"^[ \t]*ARG[ \t]+(.+)$", re.IGNORECASE | re.MULTILINE)
_VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?::(?P<sign>[-+])(?P<word>[^{}$]*))?\})")
_DEEPEST = 10
_ROOTS = ("", ".", "./", "/")
# Fixed in 5.3.2 and before: CVE-2024-1753, CVE-2024-9407, CVE-2024-9675, CVE-2024-11218.
_KEEPS_MOUNTS_INSIDE_SINCE = (5, 4)
_TRANSPORT = re.compile(
    r"(?:containers-storage|dir|docker|docker-archive|docker-daemon|oci|oci-archive|ostree|sif|tarball):", re.IGNORECASE
)


def judge(spec: BuildSpec, *, engine: str, version: tuple[int, int]) -> None:
    """Raise Refused for what would lead the builder to this host's own files or to another engine's images."""
    images = [_expanded(name, spec, engine=engine) for name in spec.images]
    for name in (*images, *spec.build_args.values()):
        # Of references none has a slash right behind a colon, and none of these has a tag that begins with one.
        if (name in images and ":/" in name) or (_TRANSPORT.match(name) and ("/" in name or name in images)):
            raise errors.Refused(
                f"{engine} would read {name[:80]!r} past its own images and registries.",
                hint="name an image of this engine or of a registry: registry/repository:tag",
            )
    if version >= _KEEPS_MOUNTS_INSIDE_SINCE:
        return
    for mount in spec.step_mounts:
        if not _is_kept_inside(mount, spec.context):
            raise errors.Refused(
                f"RUN --mount={mount[:120]} could reach this host's own files: {engine}'s builder before "
                f"{'.'.join(map(str, _KEEPS_MOUNTS_INSIDE_SINCE))} does not keep such mounts inside.",
                hint="use COPY (with --from for another stage), a cache without id, source and from, or build with docker",
            )


def _expanded(name: str, spec: BuildSpec, *, engine: str) -> str:
    """Return an image's name with its variables replaced, as the builder will. Raises Refused for one that cannot be read so."""
    values = dict(_defaults(spec.dockerfile_text)) | dict(spec.build_args)
    for _ in range(_DEEPEST):
        if "$" not in name:
            return name
        name = _VARIABLE.sub(lambda match: _value(match, values), name)
    raise errors.Refused(
        f"Which image {name[:80]!r} names is not known before {engine} builds.",
        hint="name it plainly, or by ARG with a default or a value in build_args",
    )


def _value(match: re.Match[str], values: Mapping[str, str]) -> str:
    name, sign, word = match["plain"] or match["name"], match["sign"], match["word"] or ""
    value = values.get(name, "")
    if sign == "+":
        return word if value else ""
    return value or word


def _defaults(text: str) -> Iterator[tuple[str, str]]:
    joined = re.sub(r"[\\`][ \t]*\r?\n", " ", text)
    for line in _ARG.findall(joined):
        for word in re.findall(r"""[A-Za-z_]\w*=(?:"[^"]*"|'[^']*'|\\.|[^\s"'\\])*""", line):
            name, _, value = word.partition("=")
            yield name, re.sub(r"""["'\\]""", "", value)


def _is_kept_inside(mount: str, context: Path | None) -> bool:
    if ".." in mount or {"$", '"', "\\"} & set(mount):
        return False
    pairs = [field.partition("=")[::2] for field in mount.split(",")]
    given = {name.strip().lower(): value for name, value in pairs}
    if len(given) != len(pairs) or "bind-propagation" in given or ("source" in given and "src" in given):
        return False
    source = given.get("source", given.get("src", ""))
    match given.get("type", "bind"):
        case "tmpfs":
            return True
        case "cache":
            return not source and "from" not in given and "/" not in given.get("id", "")
        case "bind" if source in _ROOTS:
            return True
        case "bind":
            # What a stage holds is not known before it is built; what the context holds is.
            return "from" not in given and context is not None and _lies_in(context, source)
        case _:
            return False


def _lies_in(context: Path, source: str) -> bool:
    try:
        return (context / source.lstrip("/")).resolve().is_relative_to(context.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


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
