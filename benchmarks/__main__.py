"""Which measures are wanted, how often, and where do the numbers go?"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks import daily, embedded, engine, measures, podman, report, wire
from benchmarks.lab import Lab, prepare
from tests import backends

_WITH_CONTAINERS = {**measures.WITH_CONTAINERS, **daily.WITH_CONTAINERS}
_OF_PODMAN = {**podman.WITHOUT_CONTAINERS, **podman.WITH_CONTAINERS}
_EMBEDDED = "embedded"
_KNOWN = [*measures.WITHOUT_CONTAINERS, *_WITH_CONTAINERS, *_OF_PODMAN, _EMBEDDED]
_FULL = (12, 100)
_QUICK = (3, 10)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 1 when something that was asked for could not be measured."""
    given = _parser().parse_args(arguments)
    rounds, containers = _QUICK if given.quick else _FULL
    wanted = given.only or _KNOWN
    today = datetime.now(UTC).date().isoformat()
    sys.dont_write_bytecode = False
    rows: list[report.Row] = []
    failures: list[report.Failure] = []
    # The lock that the tests hold too: their search for what was left behind must not take our containers for theirs.
    with tempfile.TemporaryDirectory(prefix="cxc-bench-") as folder, backends.sharing("engine"):
        lab = prepare(Path(folder), rounds=rounds, socket_path=backends.find_docker_socket())
        try:
            _measure(lab, wanted, containers, rows, failures)
        except KeyboardInterrupt:
            failures.append(report.Failure("the rest", "interrupted"))
    sys.stdout.write(report.table(rows, failures) + "\n")
    path = Path(given.json or f"bench-{today}.json")
    report.write(path, rows, failures, _circumstances(today, rounds, containers, lab))
    sys.stdout.write(f"written: {path}\n")
    return 1 if failures else 0


def _measure(
    lab: Lab, wanted: Sequence[str], containers: int, rows: list[report.Row], failures: list[report.Failure]
) -> None:
    for name in wanted:
        if name in measures.WITHOUT_CONTAINERS:
            with _reported(name, failures):
                rows.extend(_each(measures.WITHOUT_CONTAINERS[name](lab)))
    _measure_docker(lab, [name for name in wanted if name in _WITH_CONTAINERS], containers, rows, failures)
    _measure_podman(lab, [name for name in wanted if name in _OF_PODMAN], containers, rows, failures)
    if _EMBEDDED in wanted:
        _say("starting containers on the embedded engine")
        with _reported(_EMBEDDED, failures):
            rows.extend(_each(embedded.measured(lab, containers)))


def _measure_docker(
    lab: Lab, with_containers: Sequence[str], containers: int, rows: list[report.Row], failures: list[report.Failure]
) -> None:
    if not with_containers:
        return
    with _reported(", ".join(with_containers), failures), ExitStack() as stack:
        _say(f"starting {containers} containers")
        population = stack.enter_context(engine.idle_containers(lab.engine(), containers))
        for name in with_containers:
            with _reported(name, failures):
                rows.extend(_each(_WITH_CONTAINERS[name](lab, population)))
        _say("removing them")


def _measure_podman(
    lab: Lab, wanted: Sequence[str], containers: int, rows: list[report.Row], failures: list[report.Failure]
) -> None:
    if not wanted:
        return
    with _reported(", ".join(wanted), failures), podman.opened(lab) as place:
        for name in wanted:
            if name in podman.WITHOUT_CONTAINERS:
                with _reported(name, failures):
                    rows.extend(_each(podman.WITHOUT_CONTAINERS[name](place)))
        with_containers = [name for name in wanted if name in podman.WITH_CONTAINERS]
        if not with_containers:
            return
        _say(f"starting {containers} containers on Podman")
        population = place.populate(containers)
        for name in with_containers:
            with _reported(name, failures):
                rows.extend(_each(podman.WITH_CONTAINERS[name](place, population)))
        _say("removing them")


def _each(found: Iterator[report.Row]) -> Iterator[report.Row]:
    for row in found:
        _say(f"{row.measure}, {row.case}, against {row.against}: {row.ratio:.2f}")
        yield row


@contextmanager
def _reported(name: str, failures: list[report.Failure]) -> Iterator[None]:
    try:
        yield
    except (wire.BenchmarkError, OSError) as error:
        failures.append(report.Failure(name, str(error)))


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")


def _circumstances(today: str, rounds: int, containers: int, lab: Lab) -> dict[str, object]:
    return {
        "date": today,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "mcp": metadata.version("mcp"),
        "engine": _engine_version(lab),
        "podman": podman.version(),
        "rounds": rounds,
        "containers": containers,
    }


def _engine_version(lab: Lab) -> str | None:
    try:
        return str(engine.Api(lab.engine()).ask("GET", "/version")["Version"])
    except (wire.BenchmarkError, OSError):
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 containers and 3 rounds: to see that it works")
    parser.add_argument(
        "--only", action="append", choices=_KNOWN, metavar="NAME", help=f"one of {', '.join(_KNOWN)}; may be repeated"
    )
    parser.add_argument("--json", metavar="FILE", help="default: bench-DATE.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
