"""What is sent to a build: which files of a folder `.dockerignore` leaves, and the tar of them as a stream.

The rules are those of the library that Docker and BuildKit use (https://github.com/moby/patternmatcher), its oddities
included, because a file that one of them sends and the other does not is a bug that nobody finds. Where the docker
command's own walk and BuildKit's differ (whether an excluded folder is entered for `!**/name`: BuildKit does), this
follows the docker command, whose builder is the one that takes such a tar.

A folder is walked by descriptors and no symbolic link is ever followed, so a tree that changes meanwhile cannot lead
the walk out of it. Nothing is held but one chunk and the names of the folders being walked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from codomyrmex_containerization import errors

DOCKERIGNORE: Final = ".dockerignore"
_IGNORE_LIMIT_BYTES: Final = 1 << 20
_GO_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))

Matcher = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Context:
    """A folder to send, what of it to leave out, and the Dockerfile's path inside the tar."""

    root: Path
    ignore: IgnoreRules
    dockerfile: str


@dataclass(frozen=True, slots=True)
class ContextSize:
    """How much would be sent: entries other than folders, their bytes, and whether all was looked at."""

    files: int
    bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: str
    readmits: bool
    matches: Matcher


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The rules of one ignore file: a path is out when the last rule that matches it, or a folder above it, says so."""

    rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> IgnoreRules:
        """Read the text of a `.dockerignore`.

        Raises `InvalidArgument`, naming the line, for a pattern that Docker refuses too.
        """
        lines = text.removeprefix("\ufeff").split("\n")
        rules = (_rule(line, number) for number, line in enumerate(lines, start=1))
        return cls(tuple(rule for rule in rules if rule is not None))

    def excludes(self, path: str) -> bool:
        """Say whether a path relative to the context (slashes, no leading one) is left out."""
        parts = [part for part in _clean(path).split("/") if part]
        if parts in ([], ["."]):
            return False
        excluded = False
        above: tuple[bool, ...] = ()
        for end in range(1, len(parts) + 1):
            excluded, above = self.step("/".join(parts[:end]), above)
        return excluded

    def step(self, path: str, above: Sequence[bool]) -> tuple[bool, tuple[bool, ...]]:
        """Judge a path, given which rules matched its folder; return also which match it, for what lies below."""
        excluded = False
        found = []
        for index, rule in enumerate(self.rules):
            hit = bool(above) and above[index]
            if not hit and rule.readmits == excluded:
                hit = rule.matches(path)
            if hit:
                excluded = not rule.readmits
            found.append(hit)
        return excluded, tuple(found)

    def may_descend(self, folder: str) -> bool:
        """Say whether an excluded folder must still be walked, because a `!` rule names something in it."""
        inside = folder + "/"
        return any(rule.readmits and (rule.pattern + "/").startswith(inside) for rule in self.rules)


def read_ignore(root: Path, dockerfile: Path | None) -> IgnoreRules:
    """Read `<Dockerfile>.dockerignore` beside the Dockerfile, else `.dockerignore` of the context, else no rules.

    `dockerfile` is absolute or relative to `root`; None (a Dockerfile given as text) reads only the latter.
    """
    if dockerfile is not None:
        own = root / dockerfile
        text = _ignore_text(own.with_name(own.name + DOCKERIGNORE), within=(root, own.parent))
        if text is not None:
            return IgnoreRules.parse(text)
    text = _ignore_text(root / DOCKERIGNORE, within=(root,))
    return IgnoreRules() if text is None else IgnoreRules.parse(text)


def locate(root: Path, dockerfile: Path | None = None) -> Context:
    """Find the Dockerfile of a folder (or the one named, inside it) and the rules that go with it.

    Links are resolved first. Raises `NotFound` when folder or Dockerfile is absent, `InvalidArgument` when the
    Dockerfile lies outside.
    """
    base = root.resolve()
    if not base.is_dir():
        raise errors.NotFound(f"The build context {root} is not a folder.", hint="Name the folder to build from.")
    named = base / (dockerfile or "Dockerfile")
    if dockerfile is None and not os.path.lexists(named) and os.path.lexists(base / "dockerfile"):
        named = base / "dockerfile"
    found = named.resolve()
    if not found.is_relative_to(base):
        raise errors.InvalidArgument(
            f"The Dockerfile {named} lies outside the build context {base}.",
            hint="Choose a context that holds it, or pass its text as dockerfile_text.",
        )
    if not found.is_file():
        raise errors.NotFound(
            f"There is no Dockerfile at {named}.", hint="Name the file with dockerfile_path, or pass dockerfile_text."
        )
    return Context(base, read_ignore(base, found), found.relative_to(base).as_posix())


def fresh_name(dockerfile_text: bytes) -> str:
    """Name a Dockerfile that is not in the context; the same text gets the same name, which keeps build caches."""
    return f".dockerfile.{hashlib.sha256(dockerfile_text).hexdigest()[:20]}"


def measure(
    root: Path, ignore: IgnoreRules, *, dockerfile_name: str = "Dockerfile", limit_entries: int = 200_000
) -> ContextSize:
    """Count what `stream` would send; after `limit_entries` entries stop and say so with `complete=False`."""
    files = size = 0
    for seen, entry in enumerate(_walk(root, ignore, frozenset({DOCKERIGNORE, dockerfile_name})), start=1):
        if seen > limit_entries:
            return ContextSize(files, size, complete=False)
        if not stat.S_ISDIR(entry.status.st_mode):
            files += 1
            size += entry.status.st_size if stat.S_ISREG(entry.status.st_mode) else 0
    return ContextSize(files, size, complete=True)


def stream(
    root: Path | None,
    *,
    ignore: IgnoreRules,
    dockerfile_text: bytes | None = None,
    dockerfile_name: str = "Dockerfile",
    chunk_bytes: int = 65536,
    max_bytes: int | None = None,
) -> Iterator[bytes]:
    """Return the tar of a build context, made while it is read; `root` None is a context of only the Dockerfile text.

    `dockerfile_name` is the Dockerfile's path in the tar. Like `.dockerignore` it is sent even when a rule leaves it
    out, since the engine reads it and then drops it by itself. `dockerfile_text` takes the place of such a file (so
    what was judged is what is built), or is added at the top and hidden from COPY; `fresh_name` gives a name for it.

    Owner and group are 0, times are whole seconds, as the docker command sends them. Links stay links, hard links
    become files; sockets, pipes and devices are left out. A file whose size changes while it is read is cut, or filled
    with zeros.

    Raises `NotFound` for a missing folder and `InvalidArgument` for a bad name, both at once; while it is read,
    `InvalidArgument` names a file that cannot be read, or says that the tar would exceed `max_bytes`.
    """
    _check_name(dockerfile_name)
    if chunk_bytes < 1:
        raise errors.InvalidArgument("chunk_bytes must be at least 1.", hint="Leave it out for 65536.")
    if root is None:
        pieces = _text_only(dockerfile_name, dockerfile_text or b"")
    else:
        if not root.is_dir():
            raise errors.NotFound(f"The build context {root} is not a folder.", hint="Name the folder to build from.")
        plan = _plan(root, ignore, dockerfile_name, dockerfile_text)
        pieces = _context(root, ignore, plan)
    return _chunks(pieces, chunk_bytes=chunk_bytes, max_bytes=max_bytes)


def stream_all(root: Path) -> Iterator[bytes]:
    """Return the tar of everything in a folder, made while it is read as `stream` makes it; no file in it is special."""
    pieces = _context(root, IgnoreRules(), _Plan(frozenset(), {}, {}))
    return _chunks(pieces, chunk_bytes=_READ_BYTES, max_bytes=None)


# --- the tar ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which paths are sent whatever the rules say, which with another content, and which are added."""

    kept: frozenset[str]
    replaced: dict[str, bytes]
    added: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    name: str
    folder: int
    status: os.stat_result


def _plan(root: Path, ignore: IgnoreRules, name: str, text: bytes | None) -> _Plan:
    ours = {} if text is None else {name: text}
    exists = _is_entry(root, name)
    if ours and not exists and "/" in name:
        raise errors.InvalidArgument(
            f"The context has no file {name} whose place the Dockerfile text could take.",
            hint="Name it without a folder.",
        )
    hiding = _hiding(root, ignore, name, added=bool(ours) and not exists)
    if hiding is not None:
        ours[DOCKERIGNORE] = hiding
    replaced = {path: content for path, content in ours.items() if _is_entry(root, path)}
    added = {path: content for path, content in ours.items() if path not in replaced}
    return _Plan(frozenset({DOCKERIGNORE, name}), replaced, added)


def _is_entry(root: Path, path: str) -> bool:
    try:
        status = os.lstat(root / path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    if stat.S_ISDIR(status.st_mode):
        raise errors.InvalidArgument(f"{path} in the build context is a folder.", hint="It has to be a file.")
    return True


def _hiding(root: Path, ignore: IgnoreRules, name: str, *, added: bool) -> bytes | None:
    """Return the `.dockerignore` to send so that the engine keeps the right files from COPY; None: the one there is.

    The engine needs Dockerfile and `.dockerignore` in the tar and afterwards removes them when `.dockerignore` says so.
    That file alone does not say it when the rules came from elsewhere or the Dockerfile is ours.
    """
    text = _ignore_text(root / DOCKERIGNORE, within=(root,))
    hide = {path for path in (DOCKERIGNORE, name) if ignore.excludes(path)} | ({name} if added else set())
    if text is None:
        return _lines(hide | {DOCKERIGNORE}) if name in hide else None
    try:
        there = IgnoreRules.parse(text)
    except errors.InvalidArgument:
        there = IgnoreRules()  # the engine takes a bad pattern here for one that matches nothing
    if hide == {path for path in (DOCKERIGNORE, name) if there.excludes(path)}:
        return None
    if DOCKERIGNORE in hide:
        return _lines(hide)
    last_word = f"!{DOCKERIGNORE}\n{'' if name in hide else '!'}{_literal(name)}\n"
    return os.fsencode(f"{text}\n{last_word}")


def _lines(paths: Iterable[str]) -> bytes:
    return os.fsencode("".join(f"{_literal(path)}\n" for path in sorted(paths)))


def _literal(path: str) -> str:
    """Write a path as a pattern that matches it; what cannot be escaped becomes `?`."""
    return "".join("?" if c in _GO_SPACE or c == "\ufeff" else f"\\{c}" if c in r"\*?[]!#^|{}" else c for c in path)


def _context(root: Path, ignore: IgnoreRules, plan: _Plan) -> Iterator[bytes | int]:
    """Yield the tar's pieces; before those of a file, as a number, how many bytes it will take."""
    missing = dict(plan.replaced)
    for entry in _walk(root, ignore, plan.kept):
        if entry.path in plan.added:
            continue
        if entry.path in missing:
            yield from _added(entry.path, missing.pop(entry.path), entry.status)
        elif stat.S_ISREG(entry.status.st_mode):
            yield from _file(entry)
        else:
            yield from _bare(entry)
    for path, content in (missing | plan.added).items():
        yield from _added(path, content, None)


def _text_only(name: str, text: bytes) -> Iterator[bytes | int]:
    yield from _added(name, text, None)


def _added(path: str, content: bytes, status: os.stat_result | None) -> Iterator[bytes | int]:
    info = tarfile.TarInfo(path)
    info.size = len(content)
    if status is None:
        info.mode = 0o644
    elif stat.S_ISREG(status.st_mode):
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns // 10**9
    yield info.size
    yield _header(info)
    yield content
    yield _padding(info.size)


def _bare(entry: _Entry) -> Iterator[bytes]:
    info = tarfile.TarInfo(entry.path)
    info.mode, info.mtime = stat.S_IMODE(entry.status.st_mode), entry.status.st_mtime_ns // 10**9
    if stat.S_ISDIR(entry.status.st_mode):
        info.type = tarfile.DIRTYPE
    else:
        info.type = tarfile.SYMTYPE
        try:
            info.linkname = os.readlink(entry.name, dir_fd=entry.folder)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.EINVAL):  # gone, or no link any more
                return
            raise _unreadable(entry.path, problem) from problem
    yield _header(info)


def _file(entry: _Entry) -> Iterator[bytes | int]:
    try:
        # Without O_NONBLOCK a pipe put in the file's place would hang the upload.
        file = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=entry.folder)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone, or now a link or a socket
            return
        raise _unreadable(entry.path, problem) from problem
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return
        info = tarfile.TarInfo(entry.path)
        info.size = status.st_size
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns // 10**9
        yield info.size
        yield _header(info)
        yield from _content(file, entry.path, info.size)
        yield _padding(info.size)
    finally:
        os.close(file)


_READ_BYTES: Final = 65536


def _content(file: int, path: str, size: int) -> Iterator[bytes]:
    left = size
    while left:
        try:
            data = os.read(file, min(left, _READ_BYTES))
        except OSError as problem:
            raise _unreadable(path, problem) from problem
        data = data or bytes(min(left, _READ_BYTES))  # it became shorter: the header's size has to hold
        left -= len(data)
        yield data


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _chunks(pieces: Iterator[bytes | int], *, chunk_bytes: int, max_bytes: int | None) -> Iterator[bytes]:
    """Join the pieces to chunks of about `chunk_bytes` and end the tar; numbers announce what is about to come."""
    held = bytearray()
    sent = 0
    for piece in pieces:
        coming = piece if isinstance(piece, int) else len(piece)
        if max_bytes is not None and sent + len(held) + coming > max_bytes:
            raise errors.InvalidArgument(
                f"The build context is larger than the {max_bytes} bytes that are allowed.",
                hint="Leave out what the build does not need with .dockerignore, or choose a smaller folder.",
            )
        if isinstance(piece, int):
            continue
        held += piece
        while len(held) >= chunk_bytes:
            sent += chunk_bytes
            yield bytes(held[:chunk_bytes])
            del held[:chunk_bytes]
    held += bytes(2 * tarfile.BLOCKSIZE)
    yield bytes(held)


# --- the walk --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Folder:
    descriptor: int
    prefix: str
    entries: Iterator[os.DirEntry[str]]
    matched: tuple[bool, ...]


def _walk(root: Path, ignore: IgnoreRules, kept: frozenset[str]) -> Iterator[_Entry]:
    """Yield what is sent, folders before their content, in the order of the names' bytes."""
    ways = frozenset(parent.as_posix() for path in kept for parent in PurePosixPath(path).parents)
    stack: list[_Folder] = []
    try:
        if top := _enter(root, None, "", ()):
            stack.append(top)
        while stack:
            folder = stack[-1]
            entry = next(folder.entries, None)
            if entry is None:
                os.close(stack.pop().descriptor)
                continue
            path = folder.prefix + entry.name
            excluded, matched = ignore.step(path, folder.matched)
            is_folder = entry.is_dir(follow_symlinks=False)
            if not excluded or (path in kept and not is_folder):
                found = _found(entry, path, folder.descriptor)
                if found is None:
                    continue
                yield found
            if not is_folder or (excluded and path not in ways and not ignore.may_descend(path)):
                continue
            if below := _enter(entry.name, folder.descriptor, path + "/", matched):
                stack.append(below)
    finally:
        for folder in stack:
            os.close(folder.descriptor)


def _found(entry: os.DirEntry[str], path: str, folder: int) -> _Entry | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    kind = stat.S_IFMT(status.st_mode)
    return _Entry(path, entry.name, folder, status) if kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) else None


def _enter(name: str | Path, parent: int | None, prefix: str, matched: tuple[bool, ...]) -> _Folder | None:
    """Open a folder and list it; None when it is gone or, below the root, has become something else meanwhile."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if parent is None else os.O_NOFOLLOW)
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except OSError as problem:
        if parent is not None and problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise _unreadable(prefix or str(name), problem) from problem
    try:
        with os.scandir(descriptor) as entries:
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as problem:
        os.close(descriptor)
        raise _unreadable(prefix or str(name), problem) from problem
    return _Folder(descriptor, prefix, iter(ordered), matched)


def _unreadable(path: str, problem: OSError) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"{_shown(path)} in the build context cannot be read: {problem.strerror or 'unknown reason'}.",
        hint="Make it readable, or leave it out with a line in .dockerignore.",
    )


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _check_name(name: str) -> None:
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise errors.InvalidArgument(
            f"{name!r} cannot be the Dockerfile's path in a build context.",
            hint="Give a path relative to the context, such as Dockerfile or docker/Dockerfile.",
        )


def _ignore_text(path: Path, *, within: tuple[Path, ...]) -> str | None:
    """Read an ignore file; one that is a link out of the given folders is refused, since errors quote its lines."""
    try:
        real = path.resolve(strict=True)
        if not any(real.is_relative_to(folder.resolve()) for folder in within):
            raise errors.InvalidArgument(
                f"{path} is a link that leads out of the build context.", hint="Put the file itself there."
            )
        with real.open("rb") as file:
            data = file.read(_IGNORE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as problem:  # pathlib of Python 3.11 and 3.12 tells a loop of links by RuntimeError
        reason = getattr(problem, "strerror", None) or "its links go in a circle"
        raise errors.InvalidArgument(
            f"{_shown(str(path))} cannot be read: {reason}.", hint="Make it a readable file, or remove it."
        ) from problem
    if len(data) > _IGNORE_LIMIT_BYTES:
        raise errors.InvalidArgument(
            f"{path} has more than {_IGNORE_LIMIT_BYTES} bytes.", hint="Write fewer, wider patterns."
        )
    return data.decode("utf-8", "surrogateescape")


# --- the patterns ----------------------------------------------------------------------------------------------------


class _BadPattern(Exception):
    """A pattern that Docker refuses, or one too odd to be worth its cost."""


def _clean(path: str) -> str:
    """Shorten a path as Go's `filepath.Clean` does."""
    short = posixpath.normpath(path)
    return short[1:] if short.startswith("//") else short


def _rule(line: str, number: int) -> _Rule | None:
    if line.startswith("#"):
        return None
    pattern = line.strip(_GO_SPACE)
    if not pattern:
        return None
    mark = "!" if pattern.startswith("!") else ""
    pattern = mark + _relative(pattern.removeprefix("!").strip(_GO_SPACE))
    pattern = _clean(pattern.strip(_GO_SPACE))
    readmits = pattern.startswith("!")
    pattern = pattern.removeprefix("!")
    try:
        if not pattern:
            raise _BadPattern("a ! needs a pattern behind it")
        _check_glob(pattern)
        return _Rule(pattern, readmits, _matcher(pattern))
    except _BadPattern as problem:
        raise errors.InvalidArgument(
            f"Line {number} of the ignore file is not a valid pattern: {_shown(line.strip())!r} ({problem}).",
            hint="Correct that line; https://docs.docker.com/build/concepts/context/#dockerignore-files has the rules.",
            details={"line": number},
        ) from None


def _relative(pattern: str) -> str:
    if not pattern:
        return pattern
    short = _clean(pattern)
    return short[1:] if len(short) > 1 and short.startswith("/") else short


def _check_glob(pattern: str) -> None:
    """Refuse what Go's `filepath.Match` calls a malformed pattern."""
    at = 0
    while at < len(pattern):
        match pattern[at]:
            case "[":
                at = _check_class(pattern, at + 1)
            case "\\":
                if at + 1 == len(pattern):
                    raise _BadPattern("nothing behind the last \\")
                at += 2
            case _:
                at += 1


def _check_class(pattern: str, at: int) -> int:
    if pattern.startswith("^", at):
        at += 1
    first = at
    while at == first or not pattern.startswith("]", at):
        at = _check_member(pattern, at)
        if pattern[at] == "-":
            at = _check_member(pattern, at + 1)
    return at + 1


def _check_member(pattern: str, at: int) -> int:
    if pattern.startswith("\\", at):
        at += 1
    elif pattern[at : at + 1] in ("-", "]"):
        raise _BadPattern("a set of characters that is empty or has a stray -")
    if at + 1 >= len(pattern):
        raise _BadPattern("a [ without its ]")
    return at + 1


def _matcher(pattern: str) -> Matcher:
    """Compile one pattern as patternmatcher's `compile` does: most need no regular expression."""
    kind, expression = "exact", ""
    at, first = 0, True
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and pattern.startswith("*", at):
            at += 1
            if pattern.startswith("/", at):
                at += 1
            if at < len(pattern):
                expression += "(.*/)?"
                kind = "regexp"
            elif kind == "exact":
                kind = "prefix"
            else:
                expression += ".*"
                kind = "regexp"
            if first:
                kind = "suffix"
        elif char in "*?":
            expression += "[^/]*" if char == "*" else "[^/]"
            kind = "regexp"
        elif char in ".+()$":
            expression += "\\" + char
        elif char == "\\":
            expression += char + pattern[at]
            at += 1
            kind = "regexp"
        else:
            expression += char
            if char in "[]":
                kind = "regexp"
        first = False
    match kind:
        case "exact":
            return pattern.__eq__
        case "prefix":
            return _starts_with(pattern[:-2])
        case "suffix":
            return _ends_with(pattern[2:])
        case _:
            return _expression(expression)


def _starts_with(prefix: str) -> Matcher:
    return lambda path: path.startswith(prefix)


def _ends_with(suffix: str) -> Matcher:
    if suffix.startswith("/"):
        return lambda path: path.endswith(suffix) or path == suffix[1:]
    return lambda path: path.endswith(suffix)


# What the translation above leaves is an expression in Go's syntax. Read atom by atom, it becomes one of Python's;
# one with many stars becomes a set of states instead: Python matches by trial, which would take for ever on some.
_ANY_FOLDERS: Final = "(.*/)?"
_TRIED_STARS: Final = 2
_REPEAT: Final = re.compile(r"\{(0|[1-9]\d{0,3})(?:(,)(0|[1-9]\d{0,3})?)?\}")
_GO_CLASSES: Final = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\f\r "}
_GO_CONTROLS: Final = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_POSIX: Final = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r"\t ", "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r"\t\n\v\f\r ",
    "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip


def _expression(go: str) -> Matcher:
    atoms = _atoms(go)
    stars = sum(atom in ("*", _ANY_FOLDERS) for atom in atoms)
    if stars > _TRIED_STARS:
        return _by_states(atoms)
    source = "".join(_repeatable(atoms))
    # Go searches, so with a | in it only the ends of the whole are anchored; \Z because $ would let a newline follow.
    try:
        compiled = re.compile(f"^{source}\\Z")
    except re.error:
        raise _BadPattern("not a pattern") from None
    return lambda path: compiled.search(path) is not None


def _repeatable(atoms: list[str]) -> Iterator[str]:
    before = "^"
    for atom in atoms:
        if atom.startswith("{") and (before in ("^", "|", "*", _ANY_FOLDERS) or before.startswith("{")):
            raise _BadPattern("{ } that repeats nothing")
        yield "(?:.*/)?" if atom == _ANY_FOLDERS else atom
        before = atom


def _atoms(go: str) -> list[str]:
    """Split an expression into: one character or set, `*`, `{n,m}`, `|`, `^`, and `(.*/)?` as a whole."""
    atoms = []
    at = 0
    while at < len(go):
        repeat = _REPEAT.match(go, at)
        if go.startswith(_ANY_FOLDERS, at):
            atom, at = _ANY_FOLDERS, at + len(_ANY_FOLDERS)
        elif repeat:
            atom, at = _checked_repeat(repeat), repeat.end()
        elif go[at] == "[":
            atom, at = _class(go, at + 1)
        elif go[at] == "\\":
            atom, at = _escape(go[at + 1]), at + 2
        elif go[at] in "*|^.":
            atom, at = go[at], at + 1
        else:
            atom, at = re.escape(go[at]), at + 1
        atoms.append(atom)
    return atoms


def _checked_repeat(repeat: re.Match[str]) -> str:
    least, most = int(repeat[1]), int(repeat[3] or repeat[1])
    if most > 1000 or least > most:
        raise _BadPattern("{ } with a count out of range")
    return repeat[0]


def _escape(char: str) -> str:
    if char in "bBAz":
        return {"b": r"(?a:\b)", "B": r"(?a:\B)", "A": r"\A", "z": r"\Z"}[char]
    return _members(char) if char.lower() in _GO_CLASSES else re.escape(_members(char))


def _members(char: str) -> str:
    """Return what `\\` and this character stand for: one character, or a set in brackets."""
    if char.lower() in _GO_CLASSES:
        return f"[{'^' if char.isupper() else ''}{_GO_CLASSES[char.lower()]}]"
    if char in _GO_CONTROLS:
        return _GO_CONTROLS[char]
    if char.isascii() and not char.isalnum():
        return char
    raise _BadPattern(f"\\{char} has no meaning")


def _class(go: str, at: int) -> tuple[str, int]:
    """Read a set from behind its `[`; return it for Python and where it ends."""
    negated = go.startswith("^", at)
    at += negated
    first, members = at, ""
    while at == first or not go.startswith("]", at):
        if at >= len(go):
            raise _BadPattern("a [ without its ]")
        named = go.find(":]", at + 2) if go.startswith("[:", at) else -1
        if named >= 0:
            members += _named(go[at + 2 : named])
            at = named + 2
        elif go[at] == "\\" and go[at + 1 : at + 2] in tuple("dws"):
            members += _GO_CLASSES[go[at + 1]]
            at += 2
        else:
            low, at = _member(go, at)
            high = low
            if go.startswith("-", at) and at + 1 < len(go) and go[at + 1] != "]":
                high, at = _member(go, at + 1)
            if high < low:
                raise _BadPattern("a range that runs backwards")
            members += f"{_in_set(low)}-{_in_set(high)}" if high != low else _in_set(low)
    return f"[{'^' if negated else ''}{members}]", at + 1


def _named(name: str) -> str:
    if name not in _POSIX:
        raise _BadPattern(f"[:{name}:] has no meaning")
    return _POSIX[name]


def _member(go: str, at: int) -> tuple[str, int]:
    if at >= len(go):
        raise _BadPattern("a [ without its ]")
    if go[at] != "\\":
        return go[at], at + 1
    if at + 1 >= len(go):
        raise _BadPattern("a [ without its ]")
    single = _members(go[at + 1])
    if len(single) != 1:
        raise _BadPattern("a set within a set")
    return single, at + 2


def _in_set(char: str) -> str:
    return char if char.isalnum() or not char.isascii() else f"\\x{ord(char):02x}"


def _by_states(atoms: list[str]) -> Matcher:
    """Match by following all possibilities at once: time grows with path times pattern, whatever the pattern is."""
    steps: list[tuple[re.Pattern[str], bool, bool]] = []  # one character or set; may repeat; any folders instead
    for atom in atoms:
        if atom == "*" and steps:
            steps[-1] = (steps[-1][0], True, False)
        elif atom == _ANY_FOLDERS:
            steps.append((_ANYTHING, True, True))
        elif atom in ("|", "^") or atom.startswith(("{", "(?a", r"\A", r"\Z")):
            raise _BadPattern(f"more than {_TRIED_STARS} stars together with {atom}")
        else:
            steps.append((re.compile(atom), False, False))
    return lambda path: _follow(steps, path)


_ANYTHING: Final = re.compile(".")


def _follow(steps: list[tuple[re.Pattern[str], bool, bool]], path: str) -> bool:
    def settle(place: int, into: set[int]) -> None:
        while place not in into:
            into.add(place)
            if place == len(steps) or not steps[place][1]:
                return
            place += 1

    places: set[int] = set()
    settle(0, places)
    inside: set[int] = set()  # the `(.*/)?` that are being read and can be left only behind a slash
    for char in path:
        after: set[int] = set()
        still: set[int] = set()
        for place in places | inside:
            if place == len(steps):
                continue
            accepts, repeats, folders = steps[place]
            if not accepts.match(char):
                continue
            if folders:
                still.add(place)
                if char == "/":
                    settle(place + 1, after)
            elif place in places:
                settle(place if repeats else place + 1, after)
        places, inside = after, still
        if not places and not inside:
            return False
    return len(steps) in places
