"""What does a Dockerfile say: its instructions, their words and flags?

The text is read by the parser that other builders use too. It knows the shape of lines only; what the words of a line mean is said here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

_MOST_BYTES: Final = 1 << 20
_KNOWN: Final = frozenset({
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
})  # fmt: skip
_FLAGS: Final[Mapping[str, frozenset[str]]] = {
    "FROM": frozenset({"platform"}),
    "RUN": frozenset({"mount", "network", "security"}),
    "COPY": frozenset({"from", "chown", "chmod", "link"}),
    "ADD": frozenset({"chown", "chmod", "link"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_DIRECTIVE: Final = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*", re.ASCII)
_INLINE: Final = re.compile(r"\d*<<(-?)([^<]+)")


class Failed(Exception):
    """A build cannot go on; `code` is a program's exit code, `line` the Dockerfile's where it is not the step's own."""

    def __init__(self, text: str, *, code: int | None = None, line: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.line = line


class _Heredoc(Protocol):
    name: str
    content: str


class _Command(Protocol):
    cmd: str | None
    json: bool
    original: str
    start_line: int
    flags: Sequence[str]
    value: Sequence[str]
    heredocs: Sequence[_Heredoc]


@dataclass(frozen=True, slots=True)
class Inline:
    """A file written in the Dockerfile itself; `is_literal`: its variables are not replaced, `is_chomped`: its tabs go."""

    name: str
    content: str
    is_literal: bool = False
    is_chomped: bool = False

    def text(self) -> str:
        """Return the content without the tabs at the lines' beginnings, where that was asked."""
        return re.sub(r"(?m)^\t+", "", self.content) if self.is_chomped else self.content


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its words as written, whether they were a JSON list, the line it begins at, what the builder shows of it."""

    name: str
    words: tuple[str, ...]
    is_json: bool
    flags: tuple[tuple[str, str], ...]
    inline: tuple[Inline, ...]
    line: int
    text: str
    escape: str = "\\"

    def flag(self, name: str) -> str | None:
        """Return the value of a flag, the last one where there are several; None without it."""
        values = self.flag_values(name)
        return values[-1] if values else None

    def flag_values(self, name: str) -> tuple[str, ...]:
        """Return all values of a flag."""
        return tuple(value for flag, value in self.flags if flag == name)


def parse(text: str) -> tuple[Instruction, ...]:
    """Read a Dockerfile. Raises Failed for what no builder would take."""
    import dockerfile  # a Go library with threads of its own: loaded only where something is built

    # The parser ends the whole process on text that is no UTF-8, and stops at a NUL.
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Failed("the Dockerfile is no UTF-8 text") from None
    if size > _MOST_BYTES or "\0" in text:
        raise Failed(f"the Dockerfile has {size} bytes, of which {text.count(chr(0))} are NUL: it cannot be read")
    try:
        commands = cast("Sequence[_Command]", dockerfile.parse_string(text))
    except (dockerfile.GoParseError, UnicodeDecodeError) as problem:
        raise Failed(f"the Dockerfile cannot be parsed: {problem}") from problem
    escape = _escape(text)
    return tuple(_instruction(command, escape) for command in commands)


def check(instructions: Sequence[Instruction]) -> None:
    """Raise Failed, naming the line, for an instruction or a flag that is not understood here, before anything is done."""
    begun = False
    for one in instructions:
        if one.name not in _KNOWN:
            raise Failed(f"the instruction {one.name[:40]} is not supported by this builder", line=one.line)
        for flag, _ in one.flags:
            if flag not in _FLAGS.get(one.name, frozenset()):
                raise Failed(f"the flag --{flag[:40]} of {one.name} is not supported by this builder", line=one.line)
        begun = begun or one.name == "FROM"
        if not begun and one.name != "ARG":
            raise Failed(f"no build stage in current context: {one.name} stands before FROM", line=one.line)
        if not one.words and not (one.is_json and one.name in ("CMD", "ENTRYPOINT")):
            raise Failed(f"{one.name} requires at least one argument", line=one.line)
    if not begun:
        raise Failed("the Dockerfile has no FROM instruction")


def _escape(text: str) -> str:
    for line in text.removeprefix("\ufeff").splitlines():
        found = _DIRECTIVE.fullmatch(line.strip())
        if found is None:
            break
        if found[1].lower() == "escape":
            return found[2]
    return "\\"


def _instruction(command: _Command, escape: str) -> Instruction:
    if command.cmd is None:
        raise Failed("a continued line has nothing in it", line=command.start_line)
    head = command.original.partition("\n")[0] if command.heredocs else command.original
    name = command.cmd.upper()
    marks = [found for word in command.value for found in [_INLINE.fullmatch(word)] if found]
    if command.heredocs and name in ("COPY", "ADD") and len(marks) != len(command.heredocs):
        raise Failed(f"the here-documents of {name} cannot be told apart", line=command.start_line)
    inline = tuple(
        Inline(one.name, one.content, _is_quoted(command, place), _is_dashed(command, place))
        for place, one in enumerate(command.heredocs)
    )
    pairs = (flag.removeprefix("--").partition("=") for flag in command.flags)
    return Instruction(
        name=name,
        words=tuple(command.value),
        is_json=command.json,
        flags=tuple((flag.lower(), value) for flag, _, value in pairs),
        inline=inline,
        line=command.start_line,
        text=re.sub(r"\s*\n\s*", " ", f"{name}{head[len(name) :]}").strip(),
        escape=escape,
    )


def _marks(command: _Command) -> list[re.Match[str]]:
    words = [word for value in command.value for word in value.split()]
    return [found for word in words for found in [_INLINE.fullmatch(word)] if found]


def _is_quoted(command: _Command, place: int) -> bool:
    marks = _marks(command)
    return place < len(marks) and any(sign in marks[place][2] for sign in "'\"\\")


def _is_dashed(command: _Command, place: int) -> bool:
    marks = _marks(command)
    return place < len(marks) and bool(marks[place][1])


def is_inline(word: str) -> bool:
    """Say whether a word of COPY stands for a here-document."""
    return _INLINE.fullmatch(word) is not None


def options(text: str) -> dict[str, str]:
    """Read `a=1,b,"c=2,3"`, the value of a --mount; names in lower case. Raises Failed."""
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as problem:
        raise Failed(f"--mount={text[:200]} cannot be read: {problem}") from problem
    return {name.strip().lower(): value for name, _, value in (field.partition("=") for field in fields)}
