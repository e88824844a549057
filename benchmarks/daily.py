"""What do the calls of every day cost, beside the same by hand? Exec, copy, images, inspect, and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import engine, relay, report, wire
from benchmarks.lab import Lab, Turn, listed, take_turns, timed
from benchmarks.measures import Rows

_ERA: wire.Era = "2026-07-28"
_EXECS_A_ROUND = 3
_INSPECTS_A_ROUND = 20
_COPIED_BYTES = 200_000_000
_COPY_ROUNDS = 5
_IMAGES = 200
_INSPECT_MORE_MS = 5
_CLI_MORE_MS = 250


def exec_true(lab: Lab, population: engine.Population) -> Rows:
    """Run `true` in a running container."""
    with listed(lab.ours(_ERA)) as server:
        arguments = {"container": population.name, "command": ["true"]}
        ours, theirs = take_turns(
            lab.rounds * _EXECS_A_ROUND,
            timed(partial(server.call, "container_exec", arguments)),
            timed(partial(lab.run_docker, "exec", population.name, "true")),
            warm_ups=2,
        )
    yield report.judged("exec true", "over MCP", "docker exec", ours, theirs, limit=1.2)


def inspect(lab: Lab, population: engine.Population) -> Rows:
    """Inspect a container."""
    kept = engine.Api(lab.engine())
    with listed(lab.ours(_ERA)) as server:
        ours, theirs = take_turns(
            lab.rounds * _INSPECTS_A_ROUND,
            timed(partial(server.call, "container_inspect", {"container": population.name})),
            timed(partial(kept.ask, "GET", f"/containers/{population.name}/json")),
            warm_ups=3,
        )
    kept.close()
    row = report.plain("inspect", "over MCP", "raw request, kept alive", ours, theirs)
    yield _at_most_later(row, _INSPECT_MORE_MS)


def copy(lab: Lab, population: engine.Population) -> Rows:
    """Copy a file of 200 MB into a container, and out of it."""
    source = lab.folder / "200MB"
    source.write_bytes(os.urandom(_COPIED_BYTES))
    into, out = lab.folder / "copied", f"{population.name}:/{source.name}"
    rounds = min(_COPY_ROUNDS, lab.rounds)
    with listed(lab.ours(_ERA)) as server:

        def by_server(start: str, end: str) -> object:
            return server.call("container_copy", {"source": start, "target": end})

        def by_docker(start: str, end: str) -> object:
            return lab.run_docker("cp", "--quiet", start, end)

        inward = [partial(_copy_in, lab, population, copying, source) for copying in (by_server, by_docker)]
        ours, theirs = take_turns(rounds, *inward)
        yield report.judged("copy 200 MB", "in, over MCP", "docker cp", ours, theirs, limit=1.5)
        lab.run_docker("cp", "--quiet", str(source), out)
        outward = [partial(_copy_out, copying, out, into) for copying in (by_server, by_docker)]
        ours, theirs = take_turns(rounds, *outward)
        yield report.judged("copy 200 MB", "out, over MCP", "docker cp", ours, theirs, limit=1.5)
    _remove_inside(lab, population, f"/{source.name}")
    source.unlink()


Copy = Callable[[str, str], object]


def _copy_in(lab: Lab, population: engine.Population, copying: Copy, source: Path) -> float:
    taken = timed(lambda: copying(str(source), f"{population.name}:/copied"))()
    _remove_inside(lab, population, "/copied")
    return taken


def _copy_out(copying: Copy, source: str, into: Path) -> float:
    taken = timed(lambda: copying(source, str(into)))()
    size = into.stat().st_size
    into.unlink()
    if size != _COPIED_BYTES:
        raise wire.BenchmarkError(f"{size} bytes of {_COPIED_BYTES} came out of the container")
    return taken


def _remove_inside(lab: Lab, population: engine.Population, path: str) -> None:
    # Fails when it is not there, so that a copy that did nothing is found out.
    lab.run_docker("exec", population.name, "busybox", "rm", path)


def images(lab: Lab, population: engine.Population) -> Rows:
    """List 200 images: how many requests, and how long."""
    kept = engine.Api(lab.engine())
    socket = lab.folder / "relay.sock"
    with engine.images(lab.engine(), _IMAGES) as name, relay.relay(socket, lab.engine()) as between:
        arguments = {"name": name, "limit": _IMAGES}
        with listed(lab.at(socket).ours(_ERA)) as server:
            server.call("image_list", arguments)
            before = len(between.asked)
            answer = server.call("image_list", arguments)
            asked = between.asked[before:]
        if answer["structuredContent"]["total"] != _IMAGES:
            raise wire.BenchmarkError(f"{answer['structuredContent']['total']} images were listed, not {_IMAGES}")
        with listed(lab.ours(_ERA)) as server:
            turns: list[Turn] = [
                timed(partial(server.call, "image_list", arguments)),
                timed(partial(kept.ask, "GET", "/images/json")),
            ]
            ours, theirs = take_turns(lab.rounds, *turns, warm_ups=2)
    kept.close()
    measure = f"list {_IMAGES} images"
    of_images = [one for one in asked if one == "/images/json"]
    note = f"asked: {', '.join(asked)}"
    count = report.plain(measure, "for the images", "one", [len(of_images)], [1.0], unit="requests", note=note)
    yield count.judged("1 request", met=len(of_images) == 1)
    yield report.plain(measure, "for all it says", "one", [len(asked)], [1.0], unit="requests")
    yield report.plain(measure, "over MCP", "raw request, kept alive", ours, theirs)


def command_line(lab: Lab, population: engine.Population) -> Rows:
    """List containers on the command line: the whole process."""
    everything = ("list", "--limit", str(population.count), "--label", f"{engine.LABEL}={engine.LABEL_VALUE}")
    without, full, theirs = take_turns(
        lab.rounds,
        timed(partial(lab.run_cxc, *everything, "--no-usage")),
        timed(partial(lab.run_cxc, *everything)),
        timed(partial(lab.run_docker, "ps")),
    )
    for case, ours in (("list --no-usage", without), ("list", full)):
        yield _at_most_later(report.plain("command line", f"cxc {case}", "docker ps", ours, theirs), _CLI_MORE_MS)


def _at_most_later(row: report.Row, more_ms: float) -> report.Row:
    later = row.ours.median - row.theirs.median
    return row.judged(f"<= theirs + {more_ms:g} ms", met=later <= more_ms, note=f"{later:.1f} ms more")


WITH_CONTAINERS: dict[str, Callable[[Lab, engine.Population], Rows]] = {
    "exec": exec_true,
    "inspect": inspect,
    "copy": copy,
    "images": images,
    "cxc": command_line,
}
