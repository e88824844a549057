"""What does a registry's refusal mean? Its codes and status numbers as errors of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codomyrmex_containerization import errors

MOST_ERROR_BYTES = 64 * 1024
_MOST_TEXT_CHARACTERS = 200
_LOG_IN = "run `cxc login {0}`"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of which registry; `is_known` says whether credentials went along."""

    registry: str
    what: str
    is_known: bool = False


def problem(asked: Asked, status: int, body: bytes) -> errors.ContainerizationError:
    """Return the error for an answer that is none of the expected ones."""
    code, said = _first(body)
    shown = f" ({code}{': ' if code and said else ''}{said})" if code or said else f" (status {status})"
    details: dict[str, object] = {"registry": asked.registry, "status": status, "registry_code": code}
    begin = f"{asked.registry} refused {asked.what}{shown}."
    if status == 401 or code in ("UNAUTHORIZED", "DENIED") or status in (403, 407):
        return errors.Unauthorized(begin, hint=_way_in(asked), details=details)
    if status == 404 or code in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "BLOB_UPLOAD_UNKNOWN"):
        return errors.NotFound(
            f"{asked.registry} has nothing for {asked.what}{shown}.",
            hint="check the repository and the tag; a private repository looks so too without credentials",
            details={"missing": "image", **details},
        )
    if status == 429 or code == "TOOMANYREQUESTS":
        return errors.EngineUnavailable(
            f"{asked.registry} had too many requests for {asked.what}{shown}.",
            hint="try again later, or with credentials: they often allow more",
            details=details,
        )
    if status >= 500 or status in (408, 425):
        return errors.EngineUnavailable(
            f"{asked.registry} failed at {asked.what}{shown}.", hint="try again later", details=details
        )
    if status == 405 or code == "UNSUPPORTED":
        return errors.Unsupported(
            f"{asked.registry} does not offer {asked.what}{shown}.",
            hint="ask who runs the registry whether it is switched off",
            details=details,
        )
    return errors.InvalidArgument(begin, hint="see what the registry says", details=details)


def unreachable(asked: Asked, reason: str) -> errors.EngineUnavailable:
    """Return the error for a registry that cannot be reached, or whose connections break."""
    return errors.EngineUnavailable(
        f"{asked.registry} does not answer {asked.what}: {reason}.",
        hint="check the registry's name, this machine's network and its proxy variables",
        details={"registry": asked.registry},
    )


def untrusted(asked: Asked, reason: str) -> errors.EngineUnavailable:
    """Return the error for a registry whose certificate is not accepted."""
    return errors.EngineUnavailable(
        f"The certificate of {asked.registry} is not accepted: {reason}.",
        hint=f"put its authority's certificate into ~/.docker/certs.d/{asked.registry}/ca.crt, or name the registry in "
        "registries.insecure",
        details={"registry": asked.registry},
    )


def nonsense(asked: Asked, reason: str) -> errors.EngineUnavailable:
    """Return the error for an answer that no registry should give."""
    return errors.EngineUnavailable(
        f"{asked.registry} gave an answer to {asked.what} that cannot be used: {reason}.",
        hint="is it a registry? Then tell whoever runs it",
        details={"registry": asked.registry},
    )


def changed(asked: Asked, reason: str) -> errors.InvalidArgument:
    """Return the error for contents that are not what their digest or size says."""
    return errors.InvalidArgument(
        f"{asked.registry} sent something else than asked for as {asked.what}: {reason}.",
        hint="it was changed or damaged there or on its way: nothing of it was kept; have the image pushed again",
        details={"registry": asked.registry},
    )


def misled(asked: Asked, where: str, reason: str, hint: str) -> errors.Refused:
    """Return the error for a registry that sends us where we do not go."""
    return errors.Refused(
        f"{asked.registry} sends {asked.what} to {where}, which is refused: {reason}.",
        hint=hint,
        details={"registry": asked.registry},
    )


def _way_in(asked: Asked) -> str:
    way = _LOG_IN.format(asked.registry)
    if asked.is_known:
        return f"the known credentials do not allow it: {way} as somebody who may"
    return f"no credentials for {asked.registry} are known: {way}; check the name too"


def _first(body: bytes) -> tuple[str, str]:
    """Return the code and the words of the first error in an answer, as far as they are fit to be shown."""
    try:
        raw: Any = json.loads(body)
        first: Mapping[str, Any] = raw["errors"][0]
        code, said = first.get("code", ""), first.get("message", "")
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return "", ""
    code = code if isinstance(code, str) and code.replace("_", "").isalnum() and len(code) <= 60 else ""
    return code.upper(), printable(said)


def printable(text: object) -> str:
    """Return what somebody else wrote as one short line."""
    if not isinstance(text, str):
        return ""
    line = " ".join("".join(one if one.isprintable() else " " for one in text[:2000]).split())
    return line if len(line) <= _MOST_TEXT_CHARACTERS else f"{line[:_MOST_TEXT_CHARACTERS]}..."
