"""Which image does a text name? The grammar of distribution/reference, parsed once.

Source: https://github.com/distribution/reference (grammar in reference.go, normalisation in normalize.go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from codomyrmex_containerization import errors

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?\Z")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[\w][\w.-]{0,127}\Z", re.ASCII)
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,}\Z")
_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{12,64}\Z")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A parsed reference: `[domain/]path[:tag][@digest]`."""

    domain: str
    path: str
    tag: str | None
    digest: str | None

    @property
    def name(self) -> str:
        """The name as people write it: without Docker Hub's domain and its `library/`."""
        if self.domain != DEFAULT_DOMAIN:
            return f"{self.domain}/{self.path}"
        return self.path.removeprefix("library/")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def parse(text: str, *, default_tag: str | None = DEFAULT_TAG) -> ImageReference:
    """Parse a reference; without tag and digest it gets `default_tag`.

    Raises InvalidArgument that says which part is wrong.
    """
    _require_text(text)
    rest, digest = _split_digest(text)
    rest, tag = _split_tag(rest)
    domain, path = _split_domain(rest)
    if not _PATH.match(path):
        raise _invalid(text, _path_reason(path))
    if len(path) > 255:
        raise _invalid(text, "its path is longer than 255 characters")
    if tag is None and digest is None:
        tag = default_tag
    return ImageReference(domain=domain, path=path, tag=tag, digest=digest)


def is_image_id(text: str) -> bool:
    """Say whether the text has the form of an image id (12 to 64 hexadecimal digits, `sha256:` in front allowed)."""
    return bool(_IMAGE_ID.match(text))


def _require_text(text: str) -> None:
    if not text or text != text.strip():
        raise _invalid(text, "it is empty or has blanks around it")
    if text.startswith("-"):
        raise _invalid(text, "it starts with '-'")
    if "://" in text:
        raise _invalid(text, "it is a URL; a reference has no scheme")


def _split_digest(text: str) -> tuple[str, str | None]:
    name, at, digest = text.partition("@")
    if not at:
        return text, None
    if not _DIGEST.match(digest):
        raise _invalid(text, "the part behind '@' is no digest such as sha256:<64 hex digits>")
    return name, digest


def _split_tag(text: str) -> tuple[str, str | None]:
    head, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return text, None
    if not _TAG.match(tag):
        raise _invalid(text, "a tag has 1 to 128 letters, digits, '_', '.', '-', and starts with none of '.' '-'")
    return head, tag


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    is_domain = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    if not is_domain:
        return DEFAULT_DOMAIN, text if slash else f"library/{text}"
    if not _DOMAIN.match(first):
        raise _invalid(text, f"{first!r} is no registry domain")
    if first in ("docker.io", "index.docker.io"):
        return DEFAULT_DOMAIN, rest if "/" in rest else f"library/{rest}"
    return first, rest


def _path_reason(path: str) -> str:
    if path != path.lower():
        return "the repository must be lower case"
    return "a repository is lower-case letters and digits joined by '.', '_', '-' and '/'"


def _invalid(text: str, reason: str) -> errors.InvalidArgument:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return errors.InvalidArgument(
        f"{shown!r} is no image reference: {reason}.",
        hint="write it as [registry/]repository[:tag] or repository@sha256:...",
    )
