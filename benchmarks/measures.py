"""What is measured, and against what?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from anyio import from_thread

from benchmarks import bare, engine, report, wire
from benchmarks.lab import Lab, Turn, listed, take_turns, timed
from codomyrmex_containerization import config
from codomyrmex_containerization.core import containers
from codomyrmex_containerization.dispatch import application

ERA: wire.Era = "2026-07-28"
_BARE = "bare SDK server"
_BARE_RICH = "the same, with rich"
_NOOP_CALLS_A_ROUND = 20
_LIST_CALLS_A_ROUND = 20
_IDLE_SECONDS = 1.5
_LABEL = f"{engine.LABEL}={engine.LABEL_VALUE}"

Rows = Iterator[report.Row]


# ----------------------------------------------------------------------------------------------------------- the server


def start(lab: Lab) -> Rows:
    """From starting the process to the answer of tools/list."""
    for era in wire.ERAS:
        turns = [partial(_start_to_listing, make, era) for make in (lab.ours, lab.bare, lab.bare_with_rich)]
        ours, plain, rich = take_turns(lab.rounds, *turns)
        yield report.judged(_START, era, _BARE, ours, plain, limit=1.15)
        yield report.plain(_START, era, _BARE_RICH, ours, rich)


_START = "start to tools/list"


def _start_to_listing(make: Callable[[wire.Era], wire.Server], era: wire.Era) -> float:
    began = time.perf_counter()
    with make(era) as server:
        server.list_tools()
        return (time.perf_counter() - began) * 1000


def noop(lab: Lab) -> Rows:
    """One call of a tool that does nothing, through all of dispatch."""
    for era in wire.ERAS:
        with listed(lab.ours_with_noop(era)) as ours, listed(lab.bare(era)) as theirs:
            turns = [timed(partial(server.call, bare.NOOP, {"text": "hello"})) for server in (ours, theirs)]
            taken = take_turns(lab.rounds * _NOOP_CALLS_A_ROUND, *turns, warm_ups=2 * _NOOP_CALLS_A_ROUND)
        yield report.judged("no-op tool call", era, "bare SDK tool", *taken, limit=1.3)


def memory(lab: Lab) -> Rows:
    """What an idle server occupies, once its tools were listed."""
    makers = (lab.ours, lab.bare, lab.bare_with_rich)
    seen: list[list[Mapping[str, float]]] = [[] for _ in makers]
    # One at a time: servers that run side by side would share pages, and PSS would count a part of them only.
    for _ in range(lab.rounds):
        for side, make in enumerate(makers):
            with listed(make(ERA)) as server:
                time.sleep(
                    _IDLE_SECONDS
                )  # idle is what is measured: work that goes on after the listing has ended by then
                seen[side].append(_megabytes(server.pid))
    for kind in ("Rss", "Pss"):
        ours, plain, rich = ([one[kind] for one in side] for side in seen)
        yield report.judged("memory when idle", kind.upper(), _BARE, ours, plain, limit=1.2, unit="MB")
        yield report.plain("memory when idle", kind.upper(), _BARE_RICH, ours, rich, unit="MB")


def _megabytes(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines)}


# ------------------------------------------------------------------------------------------------------- the containers


def list_plain(lab: Lab, population: engine.Population) -> Rows:
    """A list without usage: the whole call, and the engine's part of it in this process."""
    kept = engine.Api(lab.engine())
    with listed(lab.ours(ERA)) as server, InProcess(lab, "docker") as inside:
        turns: list[Turn] = [
            timed(partial(server.call, "container_list", list_arguments(population, usage=False))),
            inside.list_containers,
            timed(partial(engine.list_fresh, lab.engine())),
            timed(partial(kept.ask, "GET", engine.list_path())),
        ]
        whole, part, fresh, alive = take_turns(lab.rounds * _LIST_CALLS_A_ROUND, *turns, warm_ups=3)
        note = rows_note(server.call("container_list", list_arguments(population, usage=False)), population)
    kept.close()
    measure = f"list {population.count}, no usage"
    yield report.judged(measure, "engine call", "raw request, fresh", part, fresh, limit=1.5)
    yield report.judged(measure, "engine call", "raw request, kept alive", part, alive, limit=1.5)
    yield report.judged(measure, "over MCP", "raw request, fresh", whole, fresh, limit=1.5, note=note)
    yield report.judged(measure, "over MCP", "raw request, kept alive", whole, alive, limit=1.5)


def list_usage(lab: Lab, population: engine.Population) -> Rows:
    """A list with usage, from the second call on."""
    with listed(lab.ours(ERA)) as server:
        arguments = list_arguments(population, usage=True)
        server.call("container_list", arguments)
        ours, theirs = take_turns(
            lab.rounds,
            timed(partial(server.call, "container_list", arguments)),
            timed(partial(lab.run_docker, "stats", "--no-stream")),
        )
        result = server.call("container_list", arguments)
    note = rows_note(result, population)
    with_usage = sum("memory_bytes" in row for row in result["structuredContent"]["containers"])
    note += f"; {with_usage} rows with usage"
    row = report.plain(f"list {population.count} with usage", "over MCP", "docker stats", ours, theirs, note=note)
    yield row.judged("<= 60 ms, <= 1/20", met=row.ours.median <= 60 and row.ratio <= 1 / 20 and with_usage > 0)


def run(lab: Lab, population: engine.Population) -> Rows:
    """Run `true` to its end and remove the container, the image being there."""
    with listed(lab.ours(ERA)) as server:
        ours, theirs = take_turns(
            lab.rounds,
            timed(partial(server.call, "container_run", {"image": population.image, "command": ["true"]})),
            timed(partial(lab.run_docker, "run", "--rm", population.image, "true")),
        )
    yield report.judged("run true and remove", "over MCP", "docker run --rm", ours, theirs, limit=1.2)


def row(lab: Lab, population: engine.Population) -> Rows:
    """How many bytes a row takes, the header's share included."""
    with listed(lab.ours(ERA)) as server:
        answers = {
            f"text, {name}": server.call("container_list", list_arguments(population, usage=usage))
            for name, usage in (("no usage", False), ("with usage", True))
        }
    lines = lab.run_docker("ps", "--format", "{{json .}}", "--filter", f"label={_LABEL}").splitlines()
    theirs = [len(line.encode()) + 1.0 for line in lines]
    for case, answer in answers.items():
        count = len(answer["structuredContent"]["containers"])
        text = len(wire.text_of(answer).encode()) / count
        made = report.plain("one list row", case, "docker ps, JSON", [text], theirs, unit="bytes")
        yield made.judged("<= 250 bytes", met=text <= 250)
    structured = json.dumps(answer["structuredContent"]["containers"], separators=(",", ":"), ensure_ascii=False)
    size = len(structured.encode()) / count
    yield report.plain("one list row", "structured, usage", "docker ps, JSON", [size], theirs, unit="bytes")


def list_arguments(population: engine.Population, *, usage: bool) -> dict[str, Any]:
    """Return what lists the population."""
    return {"usage": usage, "limit": population.count, "label": _LABEL}


def rows_note(result: Mapping[str, Any], population: engine.Population) -> str:
    """Say how many rows an answer holds. Raises BenchmarkError when it did not find the population."""
    found = result["structuredContent"]
    if found["total"] != population.count:
        raise wire.BenchmarkError(f"{found['total']} containers were listed instead of {population.count}")
    return f"the answer holds {len(found['containers'])} of {found['total']} rows"


class InProcess:
    """Our engine in this process, without MCP and dispatch."""

    def __init__(self, lab: Lab, engine_name: str) -> None:
        self._engine = engine_name
        loaded = config.load(environ=lab.environment, working_folder=lab.folder)
        self._application = application.open_application(loaded, environ=lab.environment)
        # One event loop for all calls, as in the server: its worker threads live as long as it does.
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(from_thread.start_blocking_portal())

    def list_containers(self) -> float:
        return self._portal.call(self._list)

    async def _list(self) -> float:
        began = time.perf_counter()
        engines = self._application.engines
        wanted = containers.ContainerFilter(label=_LABEL)
        await containers.list_containers(engines, wanted, engine=self._engine, usage=False, limit=500, after=None)
        return (time.perf_counter() - began) * 1000

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.call(self._application.aclose)
        self._stack.close()


WITHOUT_CONTAINERS: dict[str, Callable[[Lab], Rows]] = {"start": start, "noop": noop, "memory": memory}
WITH_CONTAINERS: dict[str, Callable[[Lab, engine.Population], Rows]] = {
    "list": list_plain,
    "usage": list_usage,
    "run": run,
    "row": row,
}
