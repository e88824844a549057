"""Which files does a COPY or ADD name, in the build context, a stage, an image or the Dockerfile itself?"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from codomyrmex_containerization.engines.embedded import build_copy, build_expand, build_files, build_words
from codomyrmex_containerization.engines.embedded.build_files import Tree
from codomyrmex_containerization.engines.embedded.build_words import Failed, Instruction

_ADDRESS: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*://|git@[^:/]+:)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Words:
    """A COPY or ADD with its variables replaced: its words, its flags."""

    step: Instruction
    words: tuple[str, ...]
    origin: str
    owner: str
    mode: str

    @classmethod
    def of(cls, step: Instruction, seen: Mapping[str, str]) -> Words:
        """Replace the variables. Raises Failed."""
        if len(step.words) < 2:
            raise Failed(f"{step.name} requires at least two arguments, a source and a target")

        def flag(name: str) -> str:
            return build_expand.expand(step.flag(name) or "", seen, escape=step.escape)

        words = tuple(build_expand.expand(one, seen, escape=step.escape) for one in step.words)
        # The name of a stage or an image is taken as it is written: that is what was judged.
        return cls(step, words, step.flag("from") or "", flag("chown"), flag("chmod"))

    @property
    def named(self) -> list[str]:
        """The sources that are files elsewhere."""
        pairs = zip(self.step.words[:-1], self.words[:-1], strict=True)
        return [word for raw, word in pairs if not (self.step.inline and build_words.is_inline(raw))]

    def request(
        self, workdir: str, *, files: Callable[[], Tree], inline: Sequence[build_copy.Source]
    ) -> build_copy.Request:
        """Look the sources up: `files` opens what they lie in, `inline` are those of the Dockerfile itself. Raises Failed, OSError."""
        named = self.named
        if self.step.name == "ADD":
            _refuse_addresses(named)
        target, is_folder = _target(workdir, self.words[-1])
        if len(self.words) > 2 and not is_folder:
            raise Failed(f"{self.step.name} of more than one source needs a folder as its target: end it with /")
        mode = _octal(self.mode) if self.mode else None
        sources = list(inline)
        if named:
            tree = files()
            for word in named:
                paths = matching(tree, word)
                sources += [build_copy.Source(tree, path, os.path.basename(path)) for path in paths]
        return build_copy.Request(
            sources=tuple(sources),
            target=target,
            into=is_folder or len(sources) > 1,
            owner=self.owner,
            mode=mode,
            keeps_owner=bool(self.origin),
            unpacks=self.step.name == "ADD",
        )


def inline(step: Instruction, seen: Mapping[str, str], tree: Tree) -> list[build_copy.Source]:
    """Write the here-documents of a COPY into an empty tree. Raises Failed, OSError."""
    found = []
    for place, one in enumerate(step.inline):
        text = one.text() if one.is_literal else build_expand.expand_inline(one.text(), seen)
        if "/" in one.name or one.name in (".", ".."):
            raise Failed(f"a here-document cannot be named {one.name[:60]!r}")
        tree.write(str(place), text.encode())
        found.append(build_copy.Source(tree, f"/{place}", one.name))
    return found


def _refuse_addresses(words: Sequence[str]) -> None:
    """Raise Failed for a source that lies on the network."""
    for word in words:
        if _ADDRESS.match(word):
            raise Failed("ADD of an address is not supported by this builder: fetch it in a RUN, or beforehand")


def _octal(text: str) -> int:
    """Read the value of --chmod. Raises Failed."""
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise Failed(f"--chmod={text[:60]} is not supported by this builder: write it as 755")
    return int(text, 8)


def _target(workdir: str, word: str) -> tuple[str, bool]:
    """Return where a target lies, and whether it is written as a folder is."""
    path = build_files.normal(posixpath.join(workdir or "/", word))
    return path, word.endswith("/") or posixpath.basename(word) in (".", "..") or path == "/"


def matching(tree: Tree, word: str) -> list[str]:
    """Return the paths of a tree that a word of COPY names. Raises Failed when there are none."""
    found = [""]
    for part in build_files.normal(word).strip("/").split("/"):
        if build_expand.has_pattern(part):
            fits = build_expand.matcher(part)
            found = [f"{folder}/{name}" for folder in found for name in _names(tree, folder) if fits(name)]
        else:
            found = [f"{folder}/{part}" for folder in found] if part else found
    found = [path or "/" for path in found if tree.has(path or "/")]
    if not found and not build_expand.has_pattern(word):
        raise Failed(f"{word[:200]}: no such file: it is not in the build context, or .dockerignore leaves it out")
    if not found:
        raise Failed(f"no source files were specified: {word[:200]} fits nothing")
    return found


def _names(tree: Tree, folder: str) -> list[str]:
    try:
        with tree.find(folder or "/") as place:
            return build_files.names(place.folder) if place.is_folder else []
    except (FileNotFoundError, NotADirectoryError):
        return []
