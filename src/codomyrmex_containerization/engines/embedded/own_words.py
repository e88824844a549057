"""How do the runtime of our own and its files speak? JSON without the module that takes longer to import than a container to start."""

from __future__ import annotations

import os

# What types are made of takes longer to import than all that is done here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Json = dict[str, Any]
else:
    Json = dict

_MOST_BYTES = 16 * 1024 * 1024


class Refused(Exception):
    """What was asked for is not done; the message says why, in words that `life.py` understands."""


class _Reader:
    """What the interpreter's own reader of JSON has to be told."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo = dict[str, str]()


def parsed(data: bytes, what: str) -> Json:
    """Return a JSON object; bytes of no text stay what they were. Raises Refused."""
    text = data.decode("utf-8", "surrogateescape").strip()
    try:
        try:
            from _json import make_scanner  # what json is made of
        except ImportError:  # another interpreter
            import json

            found = json.loads(text)
        else:
            found, end = make_scanner(_Reader)(text, 0)  # type: ignore[arg-type]  # it takes whatever has these names
            if text[end:].strip():
                raise ValueError("there is something after its end")
    except (ValueError, StopIteration, RecursionError, SystemError) as error:
        raise Refused(f"{what} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"{what} is no JSON object")
    return found


def read(path: str) -> Json:
    """Return the object that a file holds. Raises Refused, OSError."""
    with open(path, "rb") as file:
        return parsed(file.read(_MOST_BYTES), path)


def written(value: object) -> str:
    """Return a value as JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return f'"{"".join(_escaped(one) for one in value)}"'
        case dict():
            return f"{{{', '.join(f'{written(str(name))}: {written(one)}' for name, one in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(written(one) for one in value)}]"
    raise TypeError(f"{type(value).__name__} is not for JSON")


def _escaped(sign: str) -> str:
    return f"\\u{ord(sign):04x}" if sign < " " or sign in '"\\' else sign


def write(path: str, text: str) -> None:
    """Write a file so that nobody ever sees a part of it. Raises OSError."""
    beside = f"{path}.{os.getpid()}.tmp"
    with open(beside, "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    os.rename(beside, path)


def require_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse what nobody would look at: a wall that was asked for must stand. Raises Refused."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise Refused(f"this runtime does not know {', '.join(unknown)} in {what}")
