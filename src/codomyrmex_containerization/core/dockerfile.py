"""What does this Dockerfile say: its instructions with their lines, its stages, and what it asks of whoever builds it?

The text is read by BuildKit's own parser, the `dockerfile` package, a Go library inside a Python module. Three things
about it are handled here: it ends the whole process on text that is not valid UTF-8, it stops reading at a NUL byte,
and it knows no instruction's rules, only the shape of lines. It is imported when the first text is parsed.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from codomyrmex_containerization import errors

MAX_BYTES: Final = 1 << 20

_KNOWN: Final = frozenset({
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
})  # fmt: skip
_DIRECTIVE: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*", re.ASCII)
_HEREDOC: Final = re.compile(r"\d*<<-?[^<]+")
_DOCKERS_OWN: Final = re.compile(r"(?:docker\.io/)?docker/dockerfile(?:-upstream)?(?:[:@]|$)")
_GIT_OVER_SSH: Final = re.compile(r"git@([^:/]+):")
_REMOTE: Final = re.compile(r"(?:https?|git|ssh)://|git@[^:/]+:|github\.com/", re.IGNORECASE)


class _Heredoc(Protocol):
    """One here-document as the parser gives it."""

    name: str


class _Command(Protocol):
    """One instruction as the parser gives it."""

    cmd: str | None  # None for a line with nothing but a continuation
    original: str
    start_line: int
    end_line: int
    flags: Sequence[str]
    value: Sequence[str]
    heredocs: Sequence[_Heredoc]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `name` in capitals, `value` all that follows on one line, lines counted from 1.

    `arguments` are the words of `value` without flags; those of an ONBUILD are of the instruction inside it, as are its
    `flags`. `inline` are the arguments that stand for a here-document.
    """

    name: str
    value: str
    start_line: int
    end_line: int
    flags: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    inline: tuple[str, ...] = ()
    triggered: str | None = None

    @property
    def acts_as(self) -> str:
        """The instruction that will run: of `ONBUILD RUN` it is RUN."""
        return self.triggered or self.name

    def flag_values(self, flag: str) -> tuple[str, ...]:
        """Return the values of a flag such as `network`; one without a value has the empty one."""
        pairs = (text.removeprefix("--").partition("=") for text in self.flags)
        return tuple(value for name, _, value in pairs if name.lower() == flag)

    def mounts(self) -> tuple[dict[str, str], ...]:
        """Return the options of each `--mount`, names in lower case."""
        return tuple(_options(value) for value in self.flag_values("mount"))


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed Dockerfile.

    `frontend` is what a `syntax` line asks BuildKit to fetch and run in place of its own reader. `stages` has a name or
    None for each FROM, `base_images` the images that these name, as written: neither `scratch` nor an earlier stage.
    Without instructions it is text in a frontend's own language, of which nothing else is known.
    """

    instructions: tuple[Instruction, ...]
    frontend: str | None
    stages: tuple[str | None, ...]
    base_images: tuple[str, ...]

    def uses_context(self) -> bool:
        """Say whether the build reads files of its context; a base image's own ONBUILD is not known here."""
        return not self.instructions or any(map(_reads_context, self.instructions))

    @property
    def entitlements(self) -> tuple[str, ...]:
        """What the steps ask for beyond their sandbox, by BuildKit's names, sorted.

        They are device, network.host and security.insecure.

        A value that a variable decides counts as the worst it could be. ONBUILD counts, since the build that it will
        run in cannot show it.
        """
        return tuple(sorted({name for each in self.instructions for name in _entitlements(each)}))

    @property
    def lent(self) -> tuple[str, ...]:
        """What the steps ask to be lent by whoever builds, sorted: `secret` and `ssh` mounts."""
        return tuple(sorted({name for each in self.instructions for name in _lent(each)}))

    @property
    def network_hosts(self) -> tuple[str, ...]:
        """The hosts that ADD fetches from, sorted, as `host` or `host:port`."""
        adds = (each for each in self.instructions if each.acts_as == "ADD")
        return tuple(sorted({_host(source) for add in adds for source in _sources(add) if _REMOTE.match(source)}))

    @property
    def copied_images(self) -> tuple[str, ...]:
        """The images that COPY or a mount reads from (`from=`), as written: no stage of this file, no number."""
        return tuple(dict.fromkeys(name for each in self.instructions for name in _from(each) if self._is_image(name)))

    def _is_image(self, name: str) -> bool:
        return bool(name) and not name.isdecimal() and name.lower() not in self.stages and name != "scratch"

    def instruction_at(self, line: int) -> Instruction | None:
        """Return the instruction that a line belongs to, here-documents and continued lines included."""
        return next((each for each in self.instructions if each.start_line <= line <= each.end_line), None)

    def step(self, number: int, *, target: str | None = None) -> Instruction | None:
        """Return the instruction behind the classic builder's `Step <number>/<all>`.

        That counts every instruction up to the end of the target stage; behind them comes a LABEL when labels were
        given with the build, and for that there is None.
        """
        upto = self.instructions[: self._end_of(target)]
        return upto[number - 1] if 1 <= number <= len(upto) else None

    def _end_of(self, target: str | None) -> int:
        if not target:
            return len(self.instructions)
        starts = [place for place, each in enumerate(self.instructions) if each.name == "FROM"]
        names = [place for place, name in enumerate(self.stages) if name == target.lower()]
        stage = names[0] if names else int(target) if target.isdecimal() else len(starts)
        return starts[stage + 1] if stage + 1 < len(starts) else len(self.instructions)


def parse(text: str) -> Dockerfile:
    """Read the text of a Dockerfile.

    Raises `InvalidArgument`, with the line where there is one, for text that no builder would take: nothing in it, more
    than 1 MiB, NUL characters, no FROM, an unknown instruction, or what the parser refuses.
    """
    _check_text(text)
    frontend, other_language = _frontend(text)
    if other_language:
        return Dockerfile((), frontend, (), ())
    try:
        instructions = _instructions(text)
    except errors.InvalidArgument:
        if frontend is None or _DOCKERS_OWN.match(frontend):
            raise
        return Dockerfile((), frontend, (), ())
    froms = [each for each in instructions if each.name == "FROM"]
    stages = tuple(each.arguments[2].lower() if len(each.arguments) == 3 else None for each in froms)
    named = (each.arguments[0] for place, each in enumerate(froms) if not _is_stage(each.arguments[0], stages[:place]))
    return Dockerfile(instructions, frontend, stages, tuple(dict.fromkeys(named)))


def _is_stage(name: str, earlier: tuple[str | None, ...]) -> bool:
    return name == "scratch" or name.lower() in earlier


# --- reading ---------------------------------------------------------------------------------------------------------


def _check_text(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as problem:
        line = text.count("\n", 0, problem.start) + 1
        raise _wrong(line, "it is not valid UTF-8", "Save the Dockerfile as UTF-8.") from None
    if size > MAX_BYTES:
        raise errors.InvalidArgument(
            f"The Dockerfile has {size} bytes; at most {MAX_BYTES} are read.",
            hint="Move long content into files of the build context and COPY them.",
        )
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _wrong(line, "it has a NUL character", "Remove that character.")
    if not text.strip("\ufeff \t\r\n"):
        raise errors.InvalidArgument("The Dockerfile is empty.", hint=_BEGIN)


def _frontend(text: str) -> tuple[str | None, bool]:
    """Return the frontend that the text asks for, and whether its form shows that it is not a Dockerfile.

    The three forms are those of BuildKit's DetectSyntax: `# syntax=`, `// syntax=`, and JSON with that key. Releases
    differ in whether an unknown name ends the directives; here it does not, so that none fetches what was not judged.
    """
    text = text.removeprefix("\ufeff")
    for mark in ("#", "//"):
        found = [(line, value) for line, name, value in _directives(text, mark) if name == "syntax"]
        if len({value for _, value in found}) > 1:
            raise _wrong(found[1][0], "it has a second syntax directive", "Keep one of them.")
        if found:
            return found[0][1].partition(" ")[0], mark == "//"
    try:
        document = json.loads(text.partition("\n")[2] if text.startswith("#!") else text)
    except (ValueError, RecursionError):
        return None, False
    value = document.get("syntax") if isinstance(document, dict) else None
    return (value, True) if isinstance(value, str) else (None, False)


def _directives(text: str, mark: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if number == 1 and line.startswith("#!"):
            continue
        found = _DIRECTIVE.fullmatch(line.removeprefix(mark).strip()) if line.startswith(mark) else None
        if found is None:
            return
        yield number, found[1].lower(), found[2]


def _instructions(text: str) -> tuple[Instruction, ...]:
    _check_directives(text)
    instructions = tuple(_instruction(command) for command in _commands(text))
    _check_order(instructions)
    return instructions


def _check_directives(text: str) -> None:
    before = set()
    for line, name, _ in _directives(text.removeprefix("\ufeff"), "#"):
        if name == "escape" and "check" in before:
            # Older parsers, the one used here among them, stop at check: they would split the text in other places.
            raise _wrong(line, "builders disagree about escape behind check", "Put the escape directive first.")
        before.add(name)


def _commands(text: str) -> tuple[_Command, ...]:
    """Have the text parsed; the parser does not tell the line of an error, so it is found by parsing less."""
    commands, reason = _tried(text)
    if reason == "file with no instructions":
        raise errors.InvalidArgument("The Dockerfile has no instruction.", hint=_BEGIN)
    if reason:
        lines = text.split("\n")
        line = _first(lambda count: _tried("\n".join(lines[:count]))[1] == reason, len(lines))
        raise _wrong(line, *_in_our_words(reason))
    return commands


def _tried(text: str) -> tuple[tuple[_Command, ...], str]:
    """Return what the parser made of the text, or its reason for refusing it."""
    import dockerfile  # a Go library with threads of its own: loaded only where something is built

    try:
        return cast("tuple[_Command, ...]", dockerfile.parse_string(text)), ""
    except dockerfile.GoParseError as problem:
        return (), str(problem)
    except UnicodeDecodeError:
        return (), _TORN


def _first(holds: Callable[[int], bool], last: int) -> int:
    """Return the first number up to `last` from which on `holds`."""
    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


_BEGIN: Final = "Begin it with FROM and an image."
_TORN: Final = "torn"  # the parser takes the last byte of some characters for a space and hands out half of them
_OWN_WORDS: Final = (
    (_TORN, "a character that looks like a space is none", "Write plain spaces."),
    (r"unterminated heredoc", "a here-document has no end", "Add the closing word on a line of its own."),
    (r"dockerfile line greater than", "a line has more than 65535 bytes", "Move long content into a file and COPY it."),
    (r"invalid escape token", r"the escape directive must be ` or \\", "Correct or remove it."),
    (r"only one (\w+) parser directive", "it has a second \\1 directive", "Keep one of them."),
    (r"(\w+) must have two arguments", "\\1 needs a name and a value", "Write \\1 name=value."),
    (r"(\w+) names can not be blank", "\\1 has an empty name", "Write \\1 name=value."),
    (r"Syntax error - can't find = in (.+)\. Must be", "\\1 has no =", "Write name=value, with quotes round spaces."),
    (r"[Uu]nexpected end of statement", "a quote is not closed", "Add the missing quote."),
)  # fmt: skip


def _in_our_words(reason: str) -> tuple[str, str]:
    for pattern, ours, hint in _OWN_WORDS:
        if found := re.match(pattern, reason, re.DOTALL):
            return found.expand(ours), found.expand(hint)
    return f"the parser says: {reason}", "Correct that instruction."


def _instruction(command: _Command) -> Instruction:
    name = _name(command)
    _check_known(name, command.start_line)
    head = command.original.partition("\n")[0] if command.heredocs else command.original
    value = re.sub(r"\s*\n\s*", " ", head[len(name) :]).strip()
    inner = _trigger(command, value) if name == "ONBUILD" else command
    return Instruction(
        name=name,
        value=value,
        start_line=command.start_line,
        end_line=command.end_line,
        flags=tuple(inner.flags),
        arguments=tuple(inner.value),
        inline=tuple(word for word in inner.value if inner.heredocs and _HEREDOC.fullmatch(word)),
        triggered=_name(inner) if inner is not command else None,
    )


def _name(command: _Command) -> str:
    if command.cmd is None:
        raise _wrong(command.start_line, "a continued line has nothing in it", "Remove it, or what continues it.")
    return command.cmd.upper()


def _trigger(command: _Command, value: str) -> _Command:
    """Parse the instruction behind ONBUILD again: the parser leaves its flags out."""
    line = command.start_line
    name = value.split(maxsplit=1)[0].upper() if value else ""
    if name in ("", "ONBUILD", "FROM", "MAINTAINER"):
        raise _wrong(line, f"ONBUILD cannot trigger {name or 'nothing'}", "Write ONBUILD and another instruction.")
    _check_known(name, line)
    return _commands(command.original[len("ONBUILD") :].strip())[0]


def _check_known(name: str, line: int) -> None:
    if name in _KNOWN:
        return
    near = difflib.get_close_matches(name, _KNOWN, n=1)
    hint = f"Did you mean {near[0]}?" if near else "A line that continues the one before needs a \\ at that one's end."
    raise _wrong(line, f"{name[:40]} is not an instruction", hint)


def _check_order(instructions: tuple[Instruction, ...]) -> None:
    begun = False
    for each in instructions:
        if each.name == "FROM":
            begun = True
            words = each.arguments
            if len(words) != 1 and not (len(words) == 3 and words[1].lower() == "as"):
                raise _wrong(each.start_line, "FROM takes one image, or image AS name", "Write FROM image AS name.")
        elif not begun and each.name != "ARG":
            raise _wrong(each.start_line, f"{each.name} stands before the first FROM", "Begin with FROM and an image.")
    if not begun:
        raise errors.InvalidArgument("The Dockerfile has no FROM.", hint="Add FROM and an image.")


def _wrong(line: int, what: str, hint: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"Line {line} of the Dockerfile cannot be read: {what}.", hint=hint, details={"line": line}
    )


# --- judging ---------------------------------------------------------------------------------------------------------


def _options(mount: str) -> dict[str, str]:
    try:
        fields = next(csv.reader([mount]), [])
    except csv.Error:
        return {"type": "$"}  # as one that a variable decides: the worst it could be
    return {name.strip().lower(): value for name, _, value in (field.partition("=") for field in fields)}


def _sources(instruction: Instruction) -> tuple[str, ...]:
    """Return what COPY or ADD takes, here-documents aside."""
    return tuple(word for word in instruction.arguments[:-1] if word not in instruction.inline)


def _reads_context(instruction: Instruction) -> bool:
    match instruction.name:
        case "COPY":
            return not any(instruction.flag_values("from")) and bool(_sources(instruction))
        case "ADD":
            return any(not _REMOTE.match(source) for source in _sources(instruction))
        case "RUN":
            return any(_binds_context(mount) for mount in instruction.mounts())
        case _:
            return False


def _binds_context(mount: dict[str, str]) -> bool:
    kind = mount.get("type", "bind").lower()
    return not mount.get("from") and (kind == "bind" or "$" in kind)


def _entitlements(instruction: Instruction) -> Iterator[str]:
    if instruction.acts_as != "RUN":
        return
    if any(value.lower() == "host" or "$" in value for value in instruction.flag_values("network")):
        yield "network.host"
    if any(value.lower() == "insecure" or "$" in value for value in instruction.flag_values("security")):
        yield "security.insecure"
    if instruction.flag_values("device"):
        yield "device"


def _lent(instruction: Instruction) -> Iterator[str]:
    kinds = [mount.get("type", "").lower() for mount in instruction.mounts()] if instruction.acts_as == "RUN" else []
    for name in ("secret", "ssh"):
        if any(kind == name or "$" in kind for kind in kinds):
            yield name


def _from(instruction: Instruction) -> Iterator[str]:
    if instruction.acts_as == "COPY":
        yield from instruction.flag_values("from")
    if instruction.acts_as == "RUN":
        yield from (mount["from"] for mount in instruction.mounts() if "from" in mount)


def _host(source: str) -> str:
    if found := _GIT_OVER_SSH.match(source):
        return found[1].lower()
    return re.split(r"[/?#]", source.partition("://")[2] or source, maxsplit=1)[0].rpartition("@")[2].lower()
