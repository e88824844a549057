"""What do the words of a Dockerfile mean: variables, quotes, patterns, durations?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from codomyrmex_containerization.engines.embedded.build_words import Failed

_NAME: Final = re.compile(r"[A-Za-z_]\w*|[0-9]+|[@*#?$!-]", re.ASCII)
_SIGNS: Final = (":-", ":+", ":?", "-", "+", "?")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")

# --- variables -------------------------------------------------------------------------------------------------------


def expand(word: str, values: Mapping[str, str], *, escape: str = "\\") -> str:
    """Replace the variables of a word, take its quotes and escapes away. Raises Failed."""
    try:
        return _Reader(word, values, escape).whole()
    except RecursionError:
        raise Failed(f"the variables of {word[:60]!r} are nested too deeply") from None


def expand_inline(text: str, values: Mapping[str, str]) -> str:
    """Replace the variables of a here-document as a shell does: quotes stay, and so do backslashes but those before $, ` and \\."""
    try:
        return _Reader(text, values, "\\").document()
    except RecursionError:
        raise Failed(f"the variables of {text[:60]!r} are nested too deeply") from None


class _Reader:
    """Reads one word from its beginning to its end."""

    def __init__(self, text: str, values: Mapping[str, str], escape: str) -> None:
        self._text = text
        self._values = values
        self._escape = escape
        self._at = 0

    def whole(self) -> str:
        return self._until("")

    def document(self) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            sign = self._next()
            if sign == "\\" and self._text[self._at : self._at + 1] in ("$", "`", "\\"):
                found.append(self._next())
            else:
                found.append(self._variable() if sign == "$" else sign)
        return "".join(found)

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _until(self, end: str) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            sign = self._next()
            if sign == end:
                return "".join(found)
            if sign == "'":
                found.append(self._single())
            elif sign == '"':
                found.append(self._double())
            elif sign == "$":
                found.append(self._variable())
            elif sign == self._escape and self._at < len(self._text):
                found.append(self._next())
            else:
                found.append(sign)
        if end:
            raise Failed(f"a {end} is missing in {self._text[:200]!r}")
        return "".join(found)

    def _single(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise Failed(f"a single quote is not closed in {self._text[:200]!r}")
        found, self._at = self._text[self._at : end], end + 1
        return found

    def _double(self) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            sign = self._next()
            if sign == '"':
                return "".join(found)
            if sign == "$":
                found.append(self._variable())
            elif sign == self._escape and self._text[self._at : self._at + 1] in ('"', "$", self._escape):
                found.append(self._next() if self._at < len(self._text) else sign)
            else:
                found.append(sign)
        raise Failed(f"a double quote is not closed in {self._text[:200]!r}")

    def _variable(self) -> str:
        is_braced = self._text[self._at : self._at + 1] == "{"
        name = _NAME.match(self._text, self._at + is_braced)
        if name is None:
            if is_braced:
                raise Failed(f"a variable has no name in {self._text[:200]!r}")
            return "$"
        self._at = name.end()
        if not is_braced:
            return self._values.get(name[0], "")
        return self._braced(name[0])

    def _braced(self, name: str) -> str:
        value = self._values.get(name)
        if self._text[self._at : self._at + 1] == "}":
            self._at += 1
            return value or ""
        sign = next((one for one in _SIGNS if self._text.startswith(one, self._at)), None)
        if sign is None:
            raise Failed(f"the modifier of ${{{name}}} is not supported in {self._text[:200]!r}")
        self._at += len(sign)
        other = self._until("}")
        is_there = bool(value) if sign.startswith(":") else value is not None
        match sign[-1]:
            case "+":
                return other if is_there else ""
            case "?" if not is_there:
                raise Failed(f"{name}: {other or 'is not set'}")
            case _:
                return (value or "") if is_there else other if sign[-1] == "-" else ""


# --- patterns --------------------------------------------------------------------------------------------------------


def has_pattern(text: str) -> bool:
    """Say whether a name is a pattern."""
    return any(sign in text for sign in "*?[\\")


def matcher(pattern: str, *, deep: bool = False) -> Callable[[str], bool]:
    """Return what says whether a path fits; with `deep` two stars fit any number of folders. Raises Failed."""
    try:
        compiled = re.compile(_deep(pattern) if deep else _joined(_pieces(pattern)), re.DOTALL)
    except (re.error, RecursionError, OverflowError) as problem:
        raise Failed(f"the pattern {pattern[:200]!r} cannot be read") from problem
    return lambda text: compiled.fullmatch(text) is not None


def _deep(pattern: str) -> str:
    found: list[str] = []
    for part in re.split(r"(\*\*+/?)", pattern):
        if part.startswith("**"):
            found.append("(?:.*/)?" if part.endswith("/") else ".*")
        else:
            found.append("[^/]*".join(_pieces(part)))
    return "".join(found)


def _joined(pieces: Sequence[str]) -> str:
    """Join what stands between stars. Each piece is taken where it first fits: no pattern makes this slow."""
    if len(pieces) == 1:
        return pieces[0]
    return pieces[0] + "".join(f"(?>[^/]*?{one})" for one in pieces[1:-1]) + "[^/]*" + pieces[-1]


def _pieces(pattern: str) -> list[str]:
    """Return expressions for what stands between the stars."""
    found = [""]
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "*":
            found.append("")
        elif sign == "?":
            found[-1] += "[^/]"
        elif sign == "\\" and at < len(pattern):
            found[-1] += re.escape(pattern[at])
            at += 1
        elif sign == "[":
            end = pattern.find("]", at + 1)
            inside = pattern[at:end] if end > 0 else ""
            body = re.sub(r"([\[\]&~|\\])", r"\\\1", inside.removeprefix("^"))
            found[-1] += f"[{'^/' if inside.startswith('^') else ''}{body}]"
            at = end + 1 if end > 0 else len(pattern)
        else:
            found[-1] += re.escape(sign)
    return found


# --- durations -------------------------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """Read a duration such as 1m30s. Raises Failed."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(count + unit for count, unit in parts) != text:
        raise Failed(f"{text[:60]!r} is no duration: write it as 30s or 1m30s")
    return float(sum(float(count) * _UNITS[unit] for count, unit in parts))
