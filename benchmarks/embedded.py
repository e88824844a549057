"""What does the embedded engine cost, beside Docker doing the same? In data folders of the benchmark's own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import from_thread

from benchmarks import engine, report, wire
from benchmarks.lab import Lab, Turn, listed, take_turns, timed
from benchmarks.measures import ERA, Rows
from codomyrmex_containerization import config, errors
from codomyrmex_containerization.engines.embedded import folders
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import ContainerSpec
from codomyrmex_containerization.models.details import ExecSpec
from codomyrmex_containerization.models.engine import Endpoint
from tests import embedded as embeddeds

T = TypeVar("T")

_TIMEOUT_SECONDS = 120.0
_SETTING = "CODOMYRMEX_CONTAINERIZATION_"
_ENDLESS = ("sleep", "2147483647")
_SIDE_BY_SIDE = 4
_SHARE = 0.35
_EXECS_A_ROUND = 3
_READS_A_ROUND = 10
_AIMS_MS = {"create": 22, "start": 8, "run": 45, "run over MCP": 60, "exec": 12, "list": 40}
_USAGE_MS_EACH = 0.15
_MEGABYTES_EACH = 2
_GROWTH_AIMED_AT = 1000
_GROWN_MS, _GONE_MS = 45_000, 15_000
_DOCKER_RUN = "docker run --rm"


@dataclass(frozen=True, slots=True)
class Place:
    """An embedded engine of the benchmark's own, a lab whose servers use the same one, and the event loop that it runs in."""

    engine: EmbeddedEngine
    lab: Lab
    image: str
    portal: from_thread.BlockingPortal

    def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something with the engine."""
        return self.portal.call(work)

    def taken(self, work: Callable[[], Awaitable[object]]) -> Turn:
        """Return a turn that says how many milliseconds something takes in the engine's loop."""

        async def turn() -> float:
            began = time.perf_counter()
            await work()
            return _since(began)

        return lambda: self.portal.call(turn)


@contextmanager
def opened(lab: Lab) -> Iterator[Place]:
    """Open an engine with one image, and take away all that it holds at the end. Raises BenchmarkError where there is none."""
    data = lab.folder / "embedded-data"
    own = folders.of(data / "embedded", {})
    variables = {config.DATA_VARIABLE: str(data), f"{_SETTING}ENGINES": "embedded"}
    endpoint = Endpoint("embedded", f"file://{data}", "the benchmark", kind="embedded")
    made = EmbeddedEngine(endpoint, own, timeout_seconds=_TIMEOUT_SECONDS)
    with engine.interrupted_by_signals(), ExitStack() as stack:
        portal = stack.enter_context(from_thread.start_blocking_portal())
        try:
            if os.geteuid() != 0:
                raise wire.BenchmarkError("the embedded engine is measured as root")
            yield Place(made, lab.with_environment(**variables), embeddeds.base_image(made, lab.folder), portal)
        except errors.ContainerizationError as error:
            raise wire.BenchmarkError(f"{error.message} {error.hint}") from error
        finally:
            with engine.uninterrupted():
                embeddeds.swept(made)
                shutil.rmtree(own.run, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------- one at a time


@dataclass(slots=True)
class _Parts:
    """What the parts of runs took."""

    create: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)


def run(place: Place, population: engine.Population) -> Rows:
    """Run `true` without a network to its end and remove the container, the image being there; and the parts of that."""
    parts = _Parts()
    arguments = {"image": place.image, "command": ["true"], "network": "none", "engine": "embedded"}
    by_docker = ("run", "--rm", "--network", "none", population.image, "true")
    with listed(place.lab.ours(ERA)) as server:
        whole, over_mcp, theirs = take_turns(
            place.lab.rounds,
            place.taken(partial(_run_true, place, parts)),
            timed(partial(server.call, "container_run", arguments)),
            timed(partial(place.lab.run_docker, *by_docker)),
        )
    rows = (
        ("create", "engine call", parts.create[-place.lab.rounds :]),
        ("start", "engine call", parts.start[-place.lab.rounds :]),
        ("run", "engine call", whole),
        ("run over MCP", "over MCP", over_mcp),
    )
    for name, case, ours in rows:
        measure = "embedded: run true and remove" if name.startswith("run") else f"embedded: {name}"
        yield _at_most(report.plain(measure, case, _DOCKER_RUN, ours, theirs), _AIMS_MS[name], share=_SHARE)


async def _run_true(place: Place, parts: _Parts) -> None:
    began = time.perf_counter()
    spec = ContainerSpec(image=place.image, command=("true",), network="none")
    id = await place.engine.create_container(spec)
    # Made is one whose processes wait: that is what Docker has made, too, before it starts one.
    async with place.engine.attach_container(id, stdin=None) as attachment:
        parts.create.append(_since(began))
        began = time.perf_counter()
        await place.engine.start_container(id)
        parts.start.append(_since(began))
        async for _ in attachment.frames():
            pass
    if await place.engine.wait_container(id) != 0:
        raise wire.BenchmarkError("true did not succeed")
    await place.engine.remove_container(id, force=False, volumes=True)


def exec_true(place: Place, population: engine.Population) -> Rows:
    """Run `true` in a running container."""
    with _idle(place, 1) as (id,):
        ours, theirs = take_turns(
            place.lab.rounds * _EXECS_A_ROUND,
            place.taken(partial(_exec_true, place, id)),
            timed(partial(place.lab.run_docker, "exec", population.name, "true")),
        )
    yield _at_most(report.plain("embedded: exec true", "engine call", "docker exec", ours, theirs), _AIMS_MS["exec"])


async def _exec_true(place: Place, id: str) -> None:
    exec_id = await place.engine.create_exec(id, ExecSpec(("true",), {}))
    async with place.engine.start_exec(exec_id, stdin=None) as attachment:
        async for _ in attachment.frames():
            pass
    state = await place.engine.inspect_exec(exec_id)
    place.engine.forget_exec(exec_id)
    if state.exit_code != 0:
        raise wire.BenchmarkError("true did not succeed")


# ------------------------------------------------------------------------------------------------------ many of them


def growth(place: Place, counts: Sequence[int]) -> Rows:
    """Start idle containers four at a time, look at all of them, remove them: ever more of them."""
    for count in counts:
        began = time.perf_counter()
        with _idle(place, count) as ids:
            yield _judged_when_many("started, 4 at a time", count, _since(began), _GROWN_MS)
            running = [row for row in place.do(partial(place.engine.list_containers, all=False)) if row.id in ids]
            if len(running) != count:
                raise wire.BenchmarkError(f"{count - len(running)} of {count} containers were lost")
            yield from _looked_at(place, ids)
            began = time.perf_counter()
            place.do(partial(_remove, place, ids))
            yield _judged_when_many("removed, 4 at a time", count, _since(began), _GONE_MS)
        if place.do(partial(place.engine.list_containers, all=True)):
            raise wire.BenchmarkError("something is left of the removed containers")


def _looked_at(place: Place, ids: Sequence[str]) -> Rows:
    many, measure = place.lab.rounds * _READS_A_ROUND, f"embedded: {len(ids)} containers"
    (took,) = take_turns(many, place.taken(partial(place.engine.list_containers, all=True)))
    yield _at_most(report.plain(measure, "list of all", "aim", took, [_AIMS_MS["list"]]), _AIMS_MS["list"])
    for wanted in ids[:1], ids:
        place.do(partial(place.engine.usage, wanted))
        (took,) = take_turns(many, place.taken(partial(place.engine.usage, wanted)))
        aim = _USAGE_MS_EACH * len(wanted)
        row = report.plain(measure, f"usage of {len(wanted)}", "aim", took, [aim])
        yield _at_most(row, aim) if len(wanted) > 1 else row
    megabytes = [_megabytes(place, id) for id in ids]
    row = report.plain(measure, "memory of each, PSS", "aim", megabytes, [_MEGABYTES_EACH], unit="MB")
    yield row.judged(f"<= {_MEGABYTES_EACH} MB", met=row.ours.median <= _MEGABYTES_EACH)


def _judged_when_many(what: str, count: int, took: float, aim: int) -> report.Row:
    share = aim * count / _GROWTH_AIMED_AT
    row = report.plain(f"embedded: {count} containers", what, "aim", [took], [share])
    return _at_most(row, share) if count >= _GROWTH_AIMED_AT else row


@contextmanager
def _idle(place: Place, count: int) -> Iterator[list[str]]:
    ids: list[str] = []
    try:
        place.do(partial(_start, place, count, ids))
        yield ids
    finally:
        with engine.uninterrupted():
            left = {row.id for row in place.do(partial(place.engine.list_containers, all=True))}
            place.do(partial(_remove, place, [id for id in ids if id in left]))


async def _start(place: Place, count: int, ids: list[str]) -> None:
    spec = ContainerSpec(image=place.image, command=_ENDLESS, network="none")

    async def start() -> None:
        id = await place.engine.create_container(spec)
        ids.append(id)
        await place.engine.start_container(id)

    await _side_by_side([start] * count)


async def _remove(place: Place, ids: Sequence[str]) -> None:
    await _side_by_side([partial(place.engine.remove_container, id, force=True, volumes=True) for id in ids])


async def _side_by_side(work: Sequence[Callable[[], Awaitable[object]]]) -> None:
    rest = iter(work)

    async def worker() -> None:
        for one in rest:
            await one()

    async with anyio.create_task_group() as tasks:
        for _ in range(_SIDE_BY_SIDE):
            tasks.start_soon(worker)


def _megabytes(place: Place, id: str) -> float:
    """Return what the processes of a container and its monitor occupy."""
    record = place.engine.house.look(id)
    found = [one.pid for one in (record.first, record.monitor) if one is not None]
    if len(found) != 2:
        raise wire.BenchmarkError(f"container {id[:12]} does not run")
    return sum(_pss_bytes(pid) for pid in found) / 1024**2


def _pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _at_most(row: report.Row, most_ms: float, *, share: float | None = None) -> report.Row:
    aim = f"<= {most_ms:g} ms" + ("" if share is None else f", {share:g}x")
    return row.judged(aim, met=row.ours.median <= most_ms and (share is None or row.ratio <= share))


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def measured(lab: Lab, containers: int) -> Rows:
    """Measure all of it, with up to ten times as many containers as elsewhere."""
    counts = [count for count in (10, 100, 1000) if count <= 10 * containers] if containers > 10 else [10]
    with engine.idle_containers(lab.engine(), 1) as population, opened(lab) as place:
        yield from run(place, population)
        yield from exec_true(place, population)
        yield from growth(place, counts)
