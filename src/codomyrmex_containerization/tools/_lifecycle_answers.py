"""What do the tools answer that rename containers, look into them, and make images and archives of them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.models.inside import ChangeKind
from codomyrmex_containerization.tools._answer import Answer, Keep, Row, table
from codomyrmex_containerization.tools._storage_answers import Listing

_LETTERS: Mapping[ChangeKind, str] = {"added": "A", "changed": "C", "deleted": "D"}


class CreateAnswer(Answer):
    """A container that waits to be started."""

    id: str
    container: str
    image: str
    engine: str

    def text(self) -> str:
        return f"{self.container} ({self.id}) made of {self.image}\nstart it with container_control"


class RenameAnswer(Answer):
    """A container and the name that it had."""

    id: str
    container: str
    before: str

    def text(self) -> str:
        return f"{self.before} is now called {self.container} ({self.id})"


class ProcessAnswerRow(Row):
    """A process; `pid` is that of the engine's host."""

    pid: int
    user: str
    cpu_seconds: float | None = None
    command: str


class TopAnswer(Answer):
    """The processes of a container."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"processes": "first"}

    container: str
    processes: list[ProcessAnswerRow]
    total: int

    def text(self) -> str:
        rows = [
            (str(one.pid), one.user, "-" if one.cpu_seconds is None else f"{one.cpu_seconds:.2f}", one.command)
            for one in self.processes
        ]
        shown = table(("PID", "USER", "CPU SECONDS", "COMMAND"), rows) if rows else "no processes"
        return shown if len(rows) == self.total else f"{shown}\n{len(rows)} of {self.total} shown; pass a larger limit"


class ChangeAnswerRow(Row):
    """A path that is not as the image has it."""

    kind: ChangeKind
    path: str


class DiffAnswer(Listing):
    """A page of what a container has changed, by path, and how many changes of each kind there are."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"changes": "first"}

    container: str
    changes: list[ChangeAnswerRow]
    counts: dict[str, int]

    def text(self) -> str:
        if not self.changes:
            return "no changes" if self.total == 0 else "no more changes"
        lines = [f"{_LETTERS[one.kind]} {one.path}" for one in self.changes]
        if self.next_cursor is not None:
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
            lines.append(
                f"{len(self.changes)} of {self.total} shown ({counted}); "
                f"next: the same arguments with cursor={self.next_cursor!r}"
            )
        return "\n".join(lines)


class CommitAnswer(Answer):
    """An image that was made of a container."""

    container: str
    id: str
    tag: str
    size_bytes: int
    engine: str

    def text(self) -> str:
        return f"{self.tag} is now image {self.id} ({sizes.show(self.size_bytes)}), made of {self.container}"


class ContainerImportAnswer(Answer):
    """A container that was made of an archive; `left_out` is what it had and the archive does not hold."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"mounts": "first", "left_out": "first"}

    id: str
    container: str
    state: str
    image: str
    image_id: str
    mounts: list[str] = []
    left_out: list[str] = []
    path: str
    engine: str

    def text(self) -> str:
        lines = [
            f"{self.container} ({self.id}) made of {self.path}, {self.state}; its image {self.image_id} was {self.image} there"
        ]
        lines += [f"mounted: {one}" for one in self.mounts]
        lines += [f"not in the archive: {one}" for one in self.left_out]
        return "\n".join([*lines, "start it with container_control"])
