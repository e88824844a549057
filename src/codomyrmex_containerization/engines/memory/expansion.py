"""What do the words of a command become: parameters, substitutions, fields, names that fit a pattern?"""

from __future__ import annotations

import fnmatch
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from codomyrmex_containerization.engines.memory import arithmetic, kernel, syntax

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Expander(ABC):
    """The part of a shell that expands words."""

    def __init__(self, process: kernel.Process, *, name: str, arguments: Sequence[str]) -> None:
        self.process = process
        self.name = name
        self.arguments = list(arguments)
        self.variables: dict[str, str] = dict(process.env)
        self.code = 0
        self.exits_on_failure = False
        self.unset_fails = False
        self.last_background = 0

    @abstractmethod
    async def substituted(self, script: syntax.Script) -> str:
        """Return what a script prints, without the ends of lines at its end."""

    async def fields(self, words: Sequence[syntax.Word]) -> list[str]:
        """Expand words as a command gets them: split at blanks, patterns replaced by the names that fit."""
        found: list[str] = []
        for word in words:
            plain = word.plain
            if plain is not None and not any(one in plain for one in "*?[~"):
                found.append(plain)
            else:
                found.extend(await self._split(word))
        return found

    async def _split(self, word: syntax.Word) -> list[str]:
        # Each field is a list of (text, quoted); None stands for "no field yet".
        done: list[list[tuple[str, bool]]] = []
        now: list[tuple[str, bool]] | None = None
        for index, part in enumerate(word.parts):
            if isinstance(part, syntax.Parameter) and part.name == "@" and part.quoted and not part.operator:
                for number, argument in enumerate(self.arguments):
                    if number and now is not None:
                        done.append(now)
                        now = None
                    now = [*(now or []), (argument, True)]
                continue
            text = await self._part(part)
            if isinstance(part, syntax.Text):
                text = self._home(text) if index == 0 and not part.quoted else text
                now = [*(now or []), (text, part.quoted)]
            elif part.quoted:
                now = [*(now or []), (text, True)]
            else:
                separators = self.variables.get("IFS", " \t\n")
                pieces = re.split(f"[{re.escape(separators)}]+", text) if separators else [text]
                for number, piece in enumerate(pieces):
                    if number and now is not None:
                        done.append(now)
                        now = None
                    if piece:
                        now = [*(now or []), (piece, False)]
        if now is not None:
            done.append(now)
        names: list[str] = []
        for field in done:
            names.extend(self._globbed(field))
        return names

    def _home(self, text: str) -> str:
        if text == "~" or text.startswith("~/"):
            return self.variables.get("HOME", "/") + text[1:]
        return text

    def _globbed(self, field: Sequence[tuple[str, bool]]) -> list[str]:
        text = "".join(one for one, _ in field)
        if not any(mark in one for one, quoted in field if not quoted for mark in "*?["):
            return [text]
        pattern = "".join(_escaped(one) if quoted else one for one, quoted in field)
        found = [("/" if pattern.startswith("/") else "")]
        for part in [one for one in pattern.split("/") if one]:
            found = [name for base in found for name in self._matching(base, part)]
        return sorted(one for one in found if one) or [text]

    def _matching(self, base: str, pattern: str) -> list[str]:
        process = self.process
        prefix = base if base.endswith("/") or not base else f"{base}/"
        try:
            entries = process.view.folder(base or ".", process.cwd, process.who).entries
        except OSError:
            return []
        if pattern in (".", ".."):
            return [prefix + pattern]
        hidden = pattern.startswith(".")
        return [
            prefix + one for one in entries if fnmatch.fnmatchcase(one, pattern) and (hidden or not one.startswith("."))
        ]

    async def joined(self, word: syntax.Word) -> str:
        """Expand a word to one text."""
        text = "".join([await self._part(part) for part in word.parts])
        first = word.parts[0] if word.parts else None
        return self._home(text) if isinstance(first, syntax.Text) and not first.quoted else text

    async def pattern(self, word: syntax.Word) -> str:
        """Expand a word to a pattern, in which what was quoted means itself."""
        return "".join(
            [_escaped(text) if part.quoted else text for part in word.parts for text in [await self._part(part)]]
        )

    async def _part(self, part: syntax.Part) -> str:
        match part:
            case syntax.Text(text):
                return text
            case syntax.Parameter():
                return await self._parameter(part)
            case syntax.Substitution(script):
                return await self.substituted(script)
            case syntax.Arithmetic(word):
                text = await self.joined(word)
                try:
                    return str(arithmetic.evaluate(text, self.variables))
                except arithmetic.Problem as problem:
                    await self.process.err(f"{self.name}: {problem}\n")
                    raise kernel.Exit(2) from None

    def value(self, name: str) -> str | None:
        """Return a variable or a special parameter; None when it is not set."""
        match name:
            case "?":
                return str(self.code)
            case "$":
                return str(self.process.pid)
            case "!":
                return str(self.last_background) if self.last_background else ""
            case "#":
                return str(len(self.arguments))
            case "@" | "*":
                return " ".join(self.arguments)
            case "-":
                return "e" if self.exits_on_failure else ""
            case "0":
                return self.name
        if name.isdigit():
            return self.arguments[int(name) - 1] if int(name) <= len(self.arguments) else None
        return self.variables.get(name)

    async def _parameter(self, part: syntax.Parameter) -> str:
        value = self.value(part.name)
        operator = part.operator
        if operator == "#" and part.word is None:
            return str(len(self.arguments) if part.name in "@*" else len(value or ""))
        if not operator or part.word is None:
            if value is None and self.unset_fails and _NAME.match(part.name):
                await self.process.err(f"{self.name}: {part.name}: parameter not set\n")
                raise kernel.Exit(2)
            return value or ""
        missing = value is None or (operator.startswith(":") and not value)
        match operator[-1]:
            case "-":
                return await self.joined(part.word) if missing else value or ""
            case "+":
                return "" if missing else await self.joined(part.word)
            case "=":
                if missing:
                    value = self.variables[part.name] = await self.joined(part.word)
                return value or ""
            case "?":
                if missing:
                    why = await self.joined(part.word) or "parameter not set"
                    await self.process.err(f"{self.name}: {part.name}: {why}\n")
                    raise kernel.Exit(2)
                return value or ""
        return _trimmed(value or "", operator, await self.joined(part.word))


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _trimmed(value: str, operator: str, pattern: str) -> str:
    lengths = range(len(value) + 1)
    longest = len(operator) == 2
    for length in reversed(lengths) if longest else lengths:
        if operator[0] == "#" and fnmatch.fnmatchcase(value[:length], pattern):
            return value[length:]
        if operator[0] == "%" and fnmatch.fnmatchcase(value[len(value) - length :], pattern):
            return value[: len(value) - length]
    return value
