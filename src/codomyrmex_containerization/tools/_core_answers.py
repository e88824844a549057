"""What do the core tools answer?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

from pydantic import Field, PrivateAttr

from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.tools._answer import Answer, Keep, Row, table


class EngineStatus(Row):
    """One engine: what it is, or why it is not available and what would help."""

    name: str
    available: bool
    default: bool = False
    reason: str | None = None
    remedy: str | None = None
    version: str | None = None
    api_version: str | None = None
    endpoint: str | None = None
    endpoint_source: str | None = None
    rootless: bool | None = None
    cgroup_version: int | None = None
    storage_driver: str | None = None
    builder: str | None = None
    containers: int | None = None
    containers_running: int | None = None
    images: int | None = None
    os: str | None = None
    architecture: str | None = None
    kernel_version: str | None = None
    product: str | None = None
    lacks: list[str] | None = None
    notes: list[str] | None = None


class BackEndStatus(Row):
    """A back end that is no engine."""

    state: str
    remedy: str | None = None


class StatusAnswer(Answer):
    """Every back end as it answered just now."""

    engines: list[EngineStatus]
    kubernetes: BackEndStatus
    registry: BackEndStatus
    scanners: BackEndStatus
    runtimes: dict[str, bool]
    read_only: bool
    allowed_paths: list[str]

    def text(self) -> str:
        lines = [line for engine in self.engines for line in _engine_lines(engine)]
        for name in ("kubernetes", "registry", "scanners"):
            lines.append(f"{name}: {getattr(self, name).state}")
        lines.append(f"host paths that may be used: {', '.join(self.allowed_paths) or 'none'}")
        if self.read_only:
            lines.append("read-only: calls that change something are refused")
        return "\n".join(lines)


def _engine_lines(engine: EngineStatus) -> list[str]:
    mark = " (default)" if engine.default else ""
    where = f" at {engine.endpoint} ({engine.endpoint_source})" if engine.endpoint else ""
    if not engine.available:
        return [f"{engine.name}{mark}: not available{where}: {engine.reason}", f"  Next: {engine.remedy}"]
    product = f"{engine.product} " if engine.product and engine.product != engine.name else ""
    api = f" (API {engine.api_version})" if engine.api_version else ""
    return [
        f"{engine.name}{mark}: {product}{engine.version}{api}{where}",
        f"  {'rootless, ' if engine.rootless else ''}cgroup v{engine.cgroup_version}, storage {engine.storage_driver}, "
        f"builds by {engine.builder}",
        f"  {engine.containers_running} of {engine.containers} containers running, {engine.images} images",
        f"  on {engine.os}, {engine.architecture}, kernel {engine.kernel_version}",
        *(f"  cannot: {what}" for what in engine.lacks or ()),
        *(f"  note: {note}" for note in engine.notes or ()),
    ]


class BuildAnswer(Answer):
    """A finished build."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"log": "last"}

    image: str
    image_id: str
    size_bytes: int
    layers: int
    seconds: float
    builder: str
    steps: int
    cached_steps: int
    warnings: list[str] = []
    log: list[str] = []

    def text(self) -> str:
        cached = f", {self.cached_steps} cached" if self.cached_steps else ""
        short = self.image_id.removeprefix("sha256:")[:12]
        size = f"{sizes.show(self.size_bytes)}, {self.layers} layers"
        lines = [
            f"built {self.image} ({short}): {size}, {self.steps} steps{cached}, {self.seconds:.1f} s, {self.builder}"
        ]
        lines += [f"warning: {one}" for one in self.warnings]
        return "\n".join([*lines, *self.log])

    def cut_note(self, field: str, kept: int, total: int) -> str:
        return f"the last {kept} of {total} lines of the log are shown"


class ContainerListRow(Row):
    """A container of a list; what it uses only when it runs and usage was asked for. Bytes since its start; 0 is left out."""

    id: str
    name: str
    image: str
    status: str
    health: str | None = None
    created: str
    ports: list[str] | None = None
    engine: str
    pod: str | None = None
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    pids: int | None = None
    network_in: int | None = None
    network_out: int | None = None
    block_in: int | None = None
    block_out: int | None = None


LIST_HEADER = tuple("ID NAME IMAGE STATUS CREATED CPU% MEM LIMIT PIDS NET BLOCK PORTS ENGINE POD".split())


class ContainerListAnswer(Answer):
    """A page of containers, newest first."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"containers": "first"}

    containers: list[ContainerListRow]
    total: int
    next_cursor: str | None = Field(None, description="Pass as cursor for the next page")
    failed: list[str] = []

    _cursor_behind: Callable[[int], str] | None = PrivateAttr(default=None)

    def with_cursors(self, behind: Callable[[int], str]) -> Self:
        """Remember how to make the cursor behind a row (its index), for when rows are cut."""
        self._cursor_behind = behind
        return self

    def text(self) -> str:
        if not self.containers:
            return "\n".join(["no containers" if self.total == 0 else "no more containers", *self.failed])
        engines = {row.engine for row in self.containers}
        lines = [table(LIST_HEADER, [_list_cells(row, show_engine=len(engines) > 1) for row in self.containers])]
        if self.next_cursor is not None:
            lines.append(
                f"{len(self.containers)} of {self.total} shown; next: the same arguments with cursor={self.next_cursor!r}"
            )
        return "\n".join([*lines, *self.failed])

    def cut(self, field: str, keep: int) -> Self:
        keep = max(keep, 1)
        shorter = super().cut(field, keep)
        if self._cursor_behind is None:
            return shorter
        return shorter.model_copy(update={"next_cursor": self._cursor_behind(keep - 1)})


def _list_cells(row: ContainerListRow, *, show_engine: bool) -> tuple[str, ...]:
    return (
        row.id,
        row.name,
        row.image,
        f"{row.status} ({row.health})" if row.health else row.status,
        row.created,
        f"{row.cpu_percent:.1f}" if row.cpu_percent is not None else "",
        sizes.show(row.memory_bytes) if row.memory_bytes is not None else "",
        sizes.show(row.memory_limit_bytes) if row.memory_limit_bytes is not None else "",
        str(row.pids) if row.pids is not None else "",
        in_out(row.network_in, row.network_out),
        in_out(row.block_in, row.block_out),
        ",".join(row.ports or ()),
        row.engine if show_engine else "",
        row.pod or "",
    )


def in_out(inward: int | None, outward: int | None) -> str:
    """Show bytes that came in and went out; nothing when there were none."""
    return "" if not inward and not outward else f"{sizes.show(inward or 0)}/{sizes.show(outward or 0)}"


class RunAnswer(Answer):
    """A container that was run to its end, or one that goes on (`detached`)."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"stdout": "both", "stderr": "both"}

    id: str
    name: str
    detached: bool = False
    state: str | None = None
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False
    oom_killed: bool = False
    seconds: float | None = None
    kept: bool = False
    ports: list[str] = []
    hint: str | None = None

    def text(self) -> str:
        lines = [self._headline()]
        lines += [f"ports: {', '.join(self.ports)}"] if self.ports else []
        lines += [self.hint] if self.hint else []
        lines += [f"--- stdout ---\n{self.stdout}".rstrip("\n")] if self.stdout else []
        lines += [f"--- stderr ---\n{self.stderr}".rstrip("\n")] if self.stderr else []
        return "\n".join(lines)

    def _headline(self) -> str:
        if self.detached:
            return f"container {self.name} ({self.id[:12]}) is {self.state}"
        kept = f"; container {self.name} kept" if self.kept else ""
        if self.timed_out:
            return f"timed out after {self.seconds:.1f} s and was stopped; what it had said so far follows{kept}"
        oom = ", killed because it ran out of memory" if self.oom_killed else ""
        return f"exit code {self.exit_code} in {self.seconds:.2f} s{oom}{kept}"

    def cut_note(self, field: str, kept: int, total: int) -> str:
        return f"{field}: {kept:,} of {total:,} characters shown; run with keep=true and read all of it with container_logs"


class LogRow(Row):
    """A line of a log."""

    stream: str
    text: str
    time: str | None = None


class LogsAnswer(Answer):
    """The last lines of a log; `total` counts all that fit the question (`at_least`: counting was given up)."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"lines": "last"}

    container: str
    state: str
    lines: list[LogRow]
    total: int
    at_least: bool = False

    _times: list[str] = PrivateAttr(default_factory=list)

    def with_times(self, times: list[str]) -> Self:
        """Remember the time of each line, for the call that shows what was cut."""
        self._times = times
        return self

    def text(self) -> str:
        if not self.lines:
            return f"no lines ({self.container} is {self.state})"
        return "\n".join(self._shown(line) for line in self.lines)

    def _shown(self, line: LogRow) -> str:
        time = f"{line.time} " if line.time else ""
        return f"{'stderr| ' if line.stream == 'stderr' else ''}{time}{line.text}"

    def cut_note(self, field: str, kept: int, total: int) -> str:
        return self.more(kept, self._times[-kept] if 0 < kept <= len(self._times) else "")

    def more(self, shown: int, first_time: str) -> str:
        """Say how many lines there are and how to ask for the rest."""
        until = f", or until={first_time!r} for the lines before" if first_time else ""
        count = f"at least {self.total:,}" if self.at_least else f"{self.total:,}"
        return f"the last {shown:,} of {count} lines are shown; ask with a larger tail, grep= or since={until}"


class RemoveAnswer(Answer):
    """A container that was removed, and what went with it."""

    id: str
    name: str
    removed: list[str]

    def text(self) -> str:
        return f"removed {'; '.join(self.removed)}"
