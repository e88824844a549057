"""What is done with containers: find, list, run, read their logs, remove, on any engine."""

from __future__ import annotations

import difflib
import hashlib
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, assert_never

import anyio

from codomyrmex_containerization import errors, redact, threads
from codomyrmex_containerization.core import output
from codomyrmex_containerization.engines import base, guard, selection
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models.container import (
    ContainerRow,
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    OutputFrame,
    PullPolicy,
    Stream,
)
from codomyrmex_containerization.models.details import ContainerDetails
from codomyrmex_containerization.models.usage import Usage

Progress = Callable[[float, float | None, str], Awaitable[None]]

Action = Literal["start", "stop", "restart", "pause", "unpause", "kill"]

CLEANUP_SECONDS = 20.0
# A signal that does not end the container is not waited for any longer.
_SIGNAL_SECONDS = 1.0
_KILL_SECONDS = 10.0
_DEADLY = (None, "KILL", "SIGKILL", "9")
# A private key is at most about 100 lines long: so many lines before the first one shown are read to know whether it lies inside one.
_CONTEXT_LINES = 120
_CONTEXT_SECONDS = 5.0
_MOST_WAITING_BYTES = 16_000_000
_COUNT_SECONDS = 1.5
_KILLED = 137
_OOM_LOOKS = 10
_OOM_PAUSE_SECONDS = 0.03
_LONGEST_LINE_CHARACTERS = 4_000

_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")


@dataclass(frozen=True, slots=True)
class ListedContainer:
    """A row of a list with what the container uses (None: not asked for, or not running)."""

    row: ContainerRow
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class ContainerPage:
    """A page of a list; `next_key` is the last row's key when there is more, `failed` says what could not be asked."""

    containers: tuple[ListedContainer, ...]
    total: int
    next_key: cursors.Key | None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """Which containers a list shows; None is no condition."""

    all: bool = False
    name: str | None = None
    label: str | None = None
    image: str | None = None
    status: ContainerStatus | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a container ended that was run to its end. `exit_code` is None after a time-out."""

    id: str
    name: str
    exit_code: int | None
    stdout: str
    stderr: str
    timed_out: bool
    oom_killed: bool
    seconds: float
    kept: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """One readable, redacted line."""

    stream: Stream
    timestamp: str
    text: str


@dataclass(frozen=True, slots=True)
class LogPage:
    """The last lines that were asked for, how many there are, and whether that count is exact."""

    lines: tuple[LogLine, ...]
    total: int
    exact: bool


@dataclass(frozen=True, slots=True)
class LogRequest:
    """What is wanted of a log. `grep` finds any of its alternatives (`a|b`), whatever the case."""

    query: base.LogQuery
    tail: int
    grep: str | None = None
    follow_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal would take away: lines for a person, a digest of the state they describe."""

    state: ContainerState
    lost: tuple[str, ...]
    digest: str


async def find(engine: base.Engine, container: str, *, size: bool = False) -> ContainerState:
    """Return the container that a name, id or short id means.

    Raises InvalidArgument (no such form), NotFound with the nearest names, Ambiguous with the candidates.
    """
    _require_name(container)
    try:
        return await engine.inspect_container(container.lstrip("/"), size=size)
    except (errors.NotFound, errors.Ambiguous, errors.InvalidArgument) as error:
        raise await _not_found(engine, container.lstrip("/")) from error


async def locate(
    engines: selection.Engines, container: str, *, engine: str | None
) -> tuple[guard.GuardedEngine, ContainerState]:
    """Return a container and the engine that has it, the named one or any; raises as `find`."""
    _require_name(container)
    holder, state = await engines.find(container, engine)
    return holder, state or await find(holder, container)


async def find_details(engine: base.Engine, container: str) -> ContainerDetails:
    """Return everything about the container that a name, id or short id means; raises as `find`."""
    _require_name(container)
    try:
        return await engine.container_details(container.lstrip("/"))
    except (errors.NotFound, errors.Ambiguous, errors.InvalidArgument) as error:
        raise await _not_found(engine, container.lstrip("/")) from error


async def list_containers(
    engines: selection.Engines,
    wanted: ContainerFilter,
    *,
    engine: str | None,
    usage: bool,
    limit: int,
    after: cursors.Key | None,
) -> ContainerPage:
    """Return a page of the containers of one engine or of all, newest first; usage is read for the running ones of the page only."""

    async def listed(one: base.Engine) -> list[ContainerRow]:
        return await one.list_containers(
            all=wanted.all or wanted.status not in (None, "running", "paused", "restarting"),
            labels=[wanted.label] if wanted.label else [],
        )

    if usage:
        await engines.look_ahead()
    answers = await engines.ask(engine, listed)
    rows = [row for found in answers.found.values() for row in found]
    matching = sorted((row for row in rows if _matches(row, wanted)), key=_key)
    rest = [row for row in matching if after is None or _key(row) > _after(after)]
    page = rest[:limit]
    used, unread = await _usage(engines, page) if usage else ({}, [])
    return ContainerPage(
        containers=tuple(ListedContainer(row, used.get(row.id)) for row in page),
        total=len(matching),
        next_key=(page[-1].created.timestamp(), page[-1].id) if len(rest) > limit else None,
        failed=(*(said_wrong(name, error) for name, error in answers.failed.items()), *unread),
    )


def said_wrong(name: str, error: errors.ContainerizationError) -> str:
    """Return a line on an engine that could not be asked beside others that could."""
    return f"{name} NOT asked: {error.code}: {' '.join(error.text().split())}"


async def _usage(engines: selection.Engines, rows: Sequence[ContainerRow]) -> tuple[dict[str, Usage], list[str]]:
    """Read what containers use, engine by engine side by side; one that cannot tell is a line, not the end of the list."""
    used: dict[str, Usage] = {}
    unread: list[str] = []

    async def one(name: str, ids: list[str]) -> None:
        try:
            used.update(await (await engines.pick(name)).usage(ids))
        except errors.Unsupported as error:
            unread.append(" ".join(error.text().split()))
        except errors.ContainerizationError as error:
            if len(running) == 1:
                raise
            unread.append(f"usage on {said_wrong(name, error)}")

    running: dict[str, list[str]] = {}
    for row in rows:
        if row.status in ("running", "paused"):
            running.setdefault(row.engine, []).append(row.id)
    async with threads.task_group() as tasks:
        for name, ids in running.items():
            tasks.start_soon(one, name, ids)
    return used, unread


async def run(
    engine: base.Engine,
    spec: ContainerSpec,
    *,
    stdin: bytes | None,
    timeout_seconds: float,
    pull_policy: PullPolicy,
    keep: bool,
    progress: Progress,
) -> RunResult:
    """Run a container to its end and remove it unless it is to be kept.

    At the time-out it is ended and what it had said is returned. Raises NotFound (image), Conflict, CommandFailed, Refused.
    """
    id = await _create(engine, replace(spec, lifetime="detached" if keep else "call"), pull_policy, progress)
    try:
        stdout, stderr = output.Capture(), output.Capture()
        began = time.monotonic()
        timed_out = True
        with anyio.move_on_after(timeout_seconds):
            await _run_attached(engine, id, stdin, stdout, stderr)
            await engine.wait_container(id)
            timed_out = False
        seconds = time.monotonic() - began
        if timed_out and keep:
            await engine.kill_container(id, "KILL")
        state = await _ended(engine, id, has_memory_limit=spec.limits.memory_bytes is not None)
    except BaseException:
        await _remove_quietly(engine, id)
        raise
    if not keep:
        await _remove_quietly(engine, id)
    return RunResult(
        id=id,
        name=state.name,
        exit_code=None if timed_out else state.exit_code,
        stdout=stdout.text(),
        stderr=stderr.text(),
        timed_out=timed_out,
        oom_killed=state.oom_killed,
        seconds=seconds,
        kept=keep,
    )


async def create(
    engine: base.Engine, spec: ContainerSpec, *, pull_policy: PullPolicy, progress: Progress
) -> ContainerState:
    """Make a container that waits to be started, by whomever."""
    id = await _create(engine, replace(spec, lifetime="created"), pull_policy, progress)
    return await engine.inspect_container(id)


async def run_detached(
    engine: base.Engine, spec: ContainerSpec, *, pull_policy: PullPolicy, progress: Progress
) -> ContainerState:
    """Start a container that goes on after the call; one that cannot be started is removed again."""
    id = await _create(engine, replace(spec, lifetime="detached"), pull_policy, progress)
    try:
        await engine.start_container(id)
    except BaseException:
        await _remove_quietly(engine, id)
        raise
    return await engine.inspect_container(id)


async def logs(engine: base.Engine, state: ContainerState, wanted: LogRequest, redactor: redact.Redactor) -> LogPage:
    """Return the last lines of a log, redacted before they are searched or counted off.

    `follow_seconds` waits that long for more, or until the container ends.
    """
    reader = _LogReader(wanted, redactor)
    asked = wanted.query
    # An engine counts the tail off first and looks at streams and times only then: these are counted off here.
    margin = None if wanted.grep or asked.until or asked.stream else wanted.tail + _CONTEXT_LINES
    following = wanted.follow_seconds > 0 and state.status in ("running", "paused", "restarting")
    since = asked.since - timedelta(seconds=_CONTEXT_SECONDS) if asked.since is not None else None
    query = replace(asked, tail=margin, since=since, timestamps=True, follow=following)
    with anyio.move_on_after(wanted.follow_seconds if following else None):
        async with engine.container_logs(state.id, query, tty=state.tty) as frames:
            async for frame in frames:
                reader.feed(frame)
    reader.finish()
    if margin is None or reader.read < margin:
        return reader.page(reader.matched, exact=True)
    count, exact = await _count_lines(engine, state, replace(query, tail=None, since=asked.since, follow=False))
    return reader.page(max(count, reader.matched), exact=exact)


async def plan_removal(engine: base.Engine, container: str, *, force: bool, volumes: bool) -> Removal:
    """Say what a removal would take away. Raises Conflict when the container runs and `force` is not given."""
    state = await find(engine, container, size=True)
    if state.status in ("running", "paused", "restarting") and not force:
        raise errors.Conflict(
            f"Container {state.name} is {state.status}.", hint="stop it first, or pass force=true to end and remove it"
        )
    lost = [f"container {state.name} ({state.id[:12]}, image {state.image}, {state.status})"]
    if state.status in ("running", "paused", "restarting"):
        lost.append("its running processes, which are killed")
    if state.writable_bytes:
        lost.append(f"its changed files ({state.writable_bytes:,} bytes) and its log")
    else:
        lost.append("its log")
    kept = [mount for mount in state.mounts if mount.type == "volume"]
    anonymous = [mount.name for mount in kept if re.fullmatch(r"[0-9a-f]{64}", mount.name)]
    if volumes and anonymous:
        lost.append(f"its anonymous volumes: {', '.join(name[:12] for name in anonymous)}")
    seen = [state.id, state.status, str(state.started_at), str(force), str(volumes), *sorted(anonymous)]
    return Removal(state, tuple(lost), hashlib.sha256("\0".join(seen).encode()).hexdigest())


async def remove(engine: base.Engine, id: str, *, force: bool, volumes: bool) -> None:
    """Remove a container by its full id."""
    await engine.remove_container(id, force=force, volumes=volumes)


async def control(
    engine: base.Engine, state: ContainerState, action: Action, *, timeout_seconds: float, signal: str | None
) -> ContainerState:
    """Start, stop, restart, pause, unpause or kill a container and return its state after that. Raises Conflict."""
    match action:
        case "start":
            await engine.start_container(state.id)
        case "stop":
            await engine.stop_container(state.id, timeout_seconds=timeout_seconds)
        case "restart":
            await engine.restart_container(state.id, timeout_seconds=timeout_seconds)
        case "pause":
            await engine.pause_container(state.id)
        case "unpause":
            await engine.unpause_container(state.id)
        case "kill":
            await engine.kill_container(state.id, signal or "KILL")
            with anyio.move_on_after(_SIGNAL_SECONDS if signal not in _DEADLY else _KILL_SECONDS):
                await engine.wait_container(state.id)
        case _:
            assert_never(action)
    return await engine.inspect_container(state.id)


async def ensure_image(
    engine: base.Engine, reference: str, *, pull_policy: PullPolicy, platform: str | None, progress: Progress
) -> None:
    """Pull the image if the policy says so. Raises NotFound with the nearest names for `never`."""
    if pull_policy == "never":
        names = await engine.list_image_names()
        near = difflib.get_close_matches(reference, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise errors.NotFound(
            f"{engine.name} has no image {reference!r}.",
            hint=f"{hint}build it with container_build or pass pull_policy='missing'",
        )
    try:
        async with engine.pull_image(reference, platform=platform) as steps:
            async for step in steps:
                await progress(step.done_bytes, step.total_bytes or None, f"pulling {reference}: {step.text}")
    except errors.ContainerizationError as error:
        near = difflib.get_close_matches(reference, await engine.list_image_names(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? It is there already. Else: {error.hint}" if near else error.hint
        raise type(error)(
            f"{engine.name} has no image {reference!r}, and pulling it failed. {error.message}", hint=hint
        ) from error


async def _create(engine: base.Engine, spec: ContainerSpec, pull_policy: PullPolicy, progress: Progress) -> str:
    if pull_policy == "always":
        await ensure_image(engine, spec.image, pull_policy="always", platform=spec.platform, progress=progress)
    try:
        return await engine.create_container(spec)
    except errors.NotFound as error:
        if error.details.get("missing") != "image" or pull_policy == "always":
            raise
    await ensure_image(engine, spec.image, pull_policy=pull_policy, platform=spec.platform, progress=progress)
    return await engine.create_container(spec)


async def _ended(engine: base.Engine, id: str, *, has_memory_limit: bool) -> ContainerState:
    """Return the state of a container that has ended; the engine may note a moment later that it ran out of memory."""
    state = await engine.inspect_container(id)
    for _ in range(_OOM_LOOKS):
        if not has_memory_limit or state.exit_code != _KILLED or state.oom_killed:
            break
        await anyio.sleep(_OOM_PAUSE_SECONDS)
        state = await engine.inspect_container(id)
    return state


async def _run_attached(
    engine: base.Engine, id: str, stdin: bytes | None, stdout: output.Capture, stderr: output.Capture
) -> None:
    async with engine.attach_container(id, stdin=stdin) as attachment:
        await engine.start_container(id)
        async for frame in attachment.frames():
            (stdout if frame.stream == "stdout" else stderr).add(frame.data)


async def _remove_quietly(engine: base.Engine, id: str) -> None:
    # What cannot be removed now stays in the ledger and wears its label: a later call or start takes it away.
    with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
        try:
            await engine.remove_container(id, force=True, volumes=True)
        except errors.ContainerizationError:
            return


async def _not_found(engine: base.Engine, container: str) -> errors.ContainerizationError:
    rows = await engine.list_containers(all=True)
    candidates = [row for row in rows if row.id.startswith(container)]
    if len(candidates) > 1:
        shown = ", ".join(f"{row.id[:16]} ({row.name})" for row in candidates[:8])
        return errors.Ambiguous(
            f"{container!r} fits {len(candidates)} containers: {shown}.", hint="give more of the id, or the name"
        )
    near = difflib.get_close_matches(container, [row.name for row in rows], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "container_list(all=true) shows the containers there are"
    return errors.NotFound(f"{engine.name} has no container {container!r}.", hint=hint)


def _require_name(container: str) -> None:
    if not _NAME.match(container):
        raise errors.InvalidArgument(
            f"{container[:80]!r} is no container name or id.", hint="use a name or an id from container_list"
        )


def _matches(row: ContainerRow, wanted: ContainerFilter) -> bool:
    if wanted.status is not None and row.status != wanted.status:
        return False
    if wanted.name is not None and wanted.name not in row.name:
        return False
    return wanted.image is None or wanted.image in row.image


def _key(row: ContainerRow) -> tuple[float, str]:
    return (-row.created.timestamp(), row.id)


def _after(key: cursors.Key) -> tuple[float, str]:
    # A cursor holds the first 16 digits of the id; `g` sorts behind every hexadecimal digit that may follow.
    return (-key[0], key[1][:16] + "g")


async def _count_lines(engine: base.Engine, state: ContainerState, query: base.LogQuery) -> tuple[int, bool]:
    count = 0
    with anyio.move_on_after(_COUNT_SECONDS) as scope:
        async with engine.container_logs(state.id, query, tty=state.tty) as frames:
            async for frame in frames:
                count += frame.data.count(b"\n")
    return count, not scope.cancelled_caught


class _LogReader:
    """Turns frames into redacted lines and keeps the last ones that match."""

    def __init__(self, wanted: LogRequest, redactor: redact.Redactor) -> None:
        self._redactors: dict[Stream, redact.LineRedactor] = {"stdout": redactor.lines(), "stderr": redactor.lines()}
        self._needles = [one.casefold() for one in wanted.grep.split("|") if one] if wanted.grep else []
        self._kept: deque[LogLine] = deque(maxlen=wanted.tail)
        self._assembler = output.LineAssembler()
        self._since = wanted.query.since
        # Without a search only the last lines are looked at: the others would be redacted for nothing.
        self._waiting: deque[tuple[output.RawLine, bool]] = deque()
        self._waiting_bytes = 0
        self._most_waiting = wanted.tail + _CONTEXT_LINES
        self.read = 0
        self.matched = 0

    def feed(self, frame: OutputFrame) -> None:
        for line in self._assembler.feed(frame):
            self._line(line)

    def finish(self) -> None:
        for line in self._assembler.flush():
            self._line(line)
        while self._waiting:
            self._take(*self._next())

    def page(self, total: int, *, exact: bool) -> LogPage:
        return LogPage(tuple(self._kept), total, exact)

    def _line(self, line: output.RawLine) -> None:
        self.read += 1
        # Lines from before the time that was asked for only tell whether it lies inside a key.
        wanted = self._since is None or not _is_before(line.timestamp, self._since)
        if self._needles:
            self._take(line, wanted)
            return
        self.matched += wanted
        self._waiting.append((line, wanted))
        self._waiting_bytes += len(line.data)
        while len(self._waiting) > self._most_waiting:
            self._next()
        while self._waiting_bytes > _MOST_WAITING_BYTES:
            self._take(*self._next())

    def _next(self) -> tuple[output.RawLine, bool]:
        line, wanted = self._waiting.popleft()
        self._waiting_bytes -= len(line.data)
        return line, wanted

    def _take(self, line: output.RawLine, wanted: bool) -> None:
        text = self._redactors[line.stream].line(output.readable(line.data))
        if not wanted:
            return
        if len(line.data) > output.LONGEST_LINE_BYTES:
            # The rest of such a line was not kept: where it breaks off, half of a secret may stand.
            text = f"{text[: -output.CUT_MARGIN_CHARACTERS]}[... the rest of this line is left out ...]"
        folded = text.casefold()
        if self._needles:
            if not any(needle in folded for needle in self._needles):
                return
            self.matched += 1
        self._kept.append(LogLine(line.stream, line.timestamp, _bounded(text)))


def _is_before(timestamp: str, moment: datetime) -> bool:
    """Say whether a line's time (`2026-11-21T13:01:41.857666320Z`) lies before the moment; a line without one does not."""
    try:
        written = datetime.fromisoformat(re.sub(r"\.(\d{6})\d*", r".\1", timestamp))
    except ValueError:
        return False
    return written < moment


def _bounded(text: str) -> str:
    if len(text) <= _LONGEST_LINE_CHARACTERS:
        return text
    kept = _LONGEST_LINE_CHARACTERS // 2
    return f"{text[:kept]}[... {len(text) - 2 * kept:,} characters left out ...]{text[-kept:]}"
