"""What does a RUN run, how does its output come out while it runs, and what does a runtime leave in its layer?"""

from __future__ import annotations

import codecs
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from codomyrmex_containerization.engines.embedded import build_files, build_steps, build_words
from codomyrmex_containerization.engines.embedded.build_files import Tree
from codomyrmex_containerization.engines.embedded.build_words import Failed, Instruction
from codomyrmex_containerization.models.container import Mount, Stream

SCRIPTS: Final = "/dev/pipes"
# What a runtime puts into every root: its mount points do not belong into a layer.
STUBS: Final = (
    "/dev",
    "/proc",
    "/sys",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
)
_LONGEST_LINE_BYTES: Final = 32768
_WAITING_CHUNKS: Final = 64
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Script:
    """What a RUN runs: the command, and a file that it needs beside the image's, by name."""

    command: tuple[str, ...]
    file: tuple[str, str] | None = None


def script(step: Instruction, stage: build_steps.Stage) -> Script:
    """Return what is to be run: the shell reads here-documents itself, but for one that is the whole step."""
    if not step.inline:
        return Script(build_steps.command(step, stage))
    line, first = step.words[0], step.inline[0]
    if not build_words.is_inline(line):
        return Script((*stage.shell, line + "".join(f"\n{one.content}{one.name}" for one in step.inline)))
    if first.content.startswith("#!"):
        name = re.sub(r"[^\w.-]", "_", first.name) or "script"
        return Script((f"{SCRIPTS}/{name}",), (name, first.text()))
    return Script((*stage.shell, first.text()))


def network(step: Instruction, default: str | None) -> str:
    """Return the network that a RUN has: none or default. Raises Failed."""
    if (step.flag("security") or "sandbox") != "sandbox":
        raise Failed("--security=insecure is not supported by this builder")
    wanted = step.flag("network") or default or "default"
    if wanted not in ("none", "default"):
        raise Failed(f"--network={wanted[:60]} is not supported by this builder: it has none and default")
    return wanted


# --- stubs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stubs:
    """The places that a runtime mounts on: those that the image does not have, and what the folders are that lead there."""

    missing: tuple[str, ...]
    folders: tuple[tuple[str, tuple[int, int, int]], ...]

    @classmethod
    def before(cls, tree: Tree, mounts: Sequence[Mount]) -> Stubs:
        """Look what is there before the runtime makes the rest; the innermost come first."""
        wanted = [*STUBS, *(mount.target for mount in mounts)]
        ways = sorted({way for path in wanted for way in _ways(path)}, key=lambda way: (-way.count("/"), way))
        missing, folders = [], []
        for way in ways:
            try:
                with tree.find(way, last=False) as place:
                    if place.status is None:
                        missing.append(way)
                    elif place.is_folder and place.path == way:
                        folders.append((way, _who(place.status)))
            except (FileNotFoundError, NotADirectoryError):
                missing.append(way)
        return cls(tuple(missing), tuple(folders))

    def clear(self, upper: Path) -> None:
        """Take away, in the layer that was written, what was made to be mounted on and what shows nothing but that."""
        with Tree(upper) as tree:
            for path in self.missing:
                with suppress(OSError), tree.find(path, follow=False, last=False) as place:
                    _clear(place)
            for path, who in self.folders:
                with suppress(OSError), tree.find(path, follow=False, last=False) as place:
                    if place.is_folder and place.status is not None and _who(place.status) == who:
                        _clear(place)


def _who(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def _clear(place: build_files.Place) -> None:
    """Take away an empty folder or file; one that hides what is below it stays."""
    name = os.path.basename(place.path)
    if place.is_folder and len(place.folders) > 1:
        if not any(one.endswith("overlay.opaque") for one in os.listxattr(place.folder)):
            os.rmdir(name, dir_fd=place.folders[-2])
    elif place.is_file and place.status is not None and place.status.st_size == 0:
        os.unlink(name, dir_fd=place.folder)


def _ways(path: str) -> Iterator[str]:
    while path != "/":
        yield path
        path = os.path.dirname(path)


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Lines:
    """Cuts what comes in pieces into lines."""

    rest: bytes = b""

    def put(self, data: bytes) -> Iterator[str]:
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            yield _text(line)
        while len(self.rest) > _LONGEST_LINE_BYTES:
            cut, self.rest = self.rest[:_LONGEST_LINE_BYTES], self.rest[_LONGEST_LINE_BYTES:]
            yield _text(cut)

    def end(self) -> Iterator[str]:
        if self.rest:
            yield _text(self.rest)
        self.rest = b""


def _text(line: bytes) -> str:
    return codecs.decode(line.removesuffix(b"\r"), "utf-8", "replace")


@dataclass(slots=True)
class Running:
    """A step that runs in a thread of its own; `lines` yields its output and then its exit code is there."""

    run: Callable[[Callable[[Stream, bytes], None]], int]
    end: Callable[[], None]
    look: Callable[[], None]
    code: int | None = None
    _pieces: queue.Queue[tuple[Stream, bytes] | None] = field(default_factory=lambda: queue.Queue(_WAITING_CHUNKS))
    _is_left: threading.Event = field(default_factory=threading.Event)
    _failure: list[BaseException] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Run and yield the lines of both streams. Raises what `run` and `look` raise."""
        worker = threading.Thread(target=self._work, name="build-step", daemon=True)
        worker.start()
        partial: dict[Stream, _Lines] = {"stdout": _Lines(), "stderr": _Lines()}
        try:
            while (piece := self._next()) is not None:
                yield from partial[piece[0]].put(piece[1])
            worker.join()
            for one in partial.values():
                yield from one.end()
        finally:
            self._leave(worker)
        if self._failure:
            raise self._failure[0]

    def _work(self) -> None:
        try:
            self.code = self.run(self._put)
        except BaseException as error:  # noqa: BLE001  handed to whoever reads the lines, who raises it
            self._failure.append(error)
        finally:
            self._offer(None)

    def _put(self, stream: Stream, data: bytes) -> None:
        if data:
            self._offer((stream, data))

    def _offer(self, piece: tuple[Stream, bytes] | None) -> None:
        """Hand a piece over; waits while there are too many, unless nobody reads any more."""
        while not self._is_left.is_set():
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=_LOOK_SECONDS)
                return

    def _next(self) -> tuple[Stream, bytes] | None:
        while True:
            self.look()
            with suppress(queue.Empty):
                return self._pieces.get(timeout=_LOOK_SECONDS)

    def _leave(self, worker: threading.Thread) -> None:
        # Again and again: the step may just be about to begin, and what is to be ended not be there yet.
        self._is_left.set()
        while worker.is_alive():
            self.end()
            worker.join(_LOOK_SECONDS)
