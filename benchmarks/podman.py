"""What does Podman cost through the server, beside Podman by hand? On a Podman of the benchmark's own, with storage of its own."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from benchmarks import engine, measures, report, wire
from benchmarks.lab import Lab, Turn, listed, take_turns, timed
from benchmarks.measures import ERA, Rows
from tests import leftovers
from tests import podman as podmen

_LIST_CALLS_A_ROUND = 20
_USAGE_MS = 60
_STATUS_MS = 2200
_SETTING = "CODOMYRMEX_CONTAINERIZATION_"


@dataclass(frozen=True, slots=True)
class Place:
    """A Podman of the benchmark's own, and a lab whose servers know no other engine."""

    service: podmen.PodmanService
    lab: Lab

    @property
    def socket_path(self) -> Path:
        """Where its service listens."""
        return self.service.socket_path

    def populate(self, count: int) -> engine.Population:
        """Start so many idle containers; they go with the place."""
        self.service.ensure_started()
        return engine.start_idle(self.socket_path, count, prefix="cxc-bench", image=self.service.image)

    def run_podman(self, *arguments: str) -> str:
        """Run the podman program on this storage. Raises BenchmarkError when it fails."""
        command = self.service.podman.command(["podman", *arguments])
        done = subprocess.run(command, capture_output=True, cwd=self.service.home, timeout=300)
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip()
            raise wire.BenchmarkError(f"podman {' '.join(arguments)}: {words}")
        return done.stdout.decode()


@contextmanager
def opened(lab: Lab) -> Iterator[Place]:
    """Start a Podman, and remove it with all that it holds at the end. Raises BenchmarkError where none starts."""
    with engine.interrupted_by_signals(), ExitStack() as stack:
        try:
            service = stack.enter_context(podmen.open_podman(kind="bench"))
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            raise wire.BenchmarkError(str(error)) from error
        own = {"CONTAINER_HOST": service.url, f"{_SETTING}ENGINES": "podman"}
        try:
            yield Place(service, lab.with_environment(**own))
        finally:
            with engine.uninterrupted():
                stack.close()


def version() -> str | None:
    """Return the version of the podman program, if there is one."""
    try:
        done = subprocess.run(["podman", "--version"], capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    return done.stdout.split()[-1] if done.stdout.split() else None


# ------------------------------------------------------------------------------------------------------- no containers


def cold(place: Place) -> Rows:
    """The first call of a server that must start Podman's service first."""
    place.service.stop()
    try:
        for tool in ("container_runtime_status", "container_list"):
            first, theirs = take_turns(
                place.lab.rounds, partial(_first_call, place, tool), timed(partial(place.run_podman, "info"))
            )
            yield report.judged("cold Podman", f"first {tool}", "podman info", first, theirs, limit=1.5)
    finally:
        place.service.ensure_started()


def _first_call(place: Place, tool: str) -> float:
    """Measure it with a state folder that no server has used before; the service ends with the turn."""
    state = place.lab.folder / f"cold-{secrets.token_hex(4)}"
    # Without the settings that a restricted machine needs: to find them is part of what is measured.
    own = {**place.service.plain_environment, f"{_SETTING}STATE_DIR": str(state), "CONTAINER_HOST": ""}
    try:
        with listed(place.lab.with_environment(**own).ours(ERA)) as server:
            taken = timed(partial(server.call, tool, {"engine": "podman"}))()
            _require_own_service(server, state)
    finally:
        leftovers.end_processes(leftovers.naming(state))
    return taken


def _require_own_service(server: wire.Server, state: Path) -> None:
    (row,) = server.call("container_runtime_status", {"engine": "podman"})["structuredContent"]["engines"]
    if str(state) not in str(row.get("endpoint")):
        raise wire.BenchmarkError(f"not cold: a Podman service listens at {row.get('endpoint')}; {row.get('reason')}")


def status(place: Place) -> Rows:
    """A status with three engines of which one takes connections and never says a word."""
    place.lab.engine()  # Docker is one of the three
    silent, path = socket.socket(socket.AF_UNIX), place.lab.folder / "silent.sock"
    with closing(silent):
        silent.bind(str(path))
        silent.listen(1000)
        three = _with_endpoint(place, path)
        with listed(three.ours(ERA)) as hampered, listed(_with_docker(place).ours(ERA)) as free:
            turns = [timed(partial(one.call, "container_runtime_status", {})) for one in (hampered, free)]
            ours, theirs = take_turns(place.lab.rounds, *turns)
            rows = hampered.call("container_runtime_status", {})["structuredContent"]["engines"]
    path.unlink()
    answering = sum(row["available"] for row in rows)
    note = f"{answering} of {len(rows)} engines answered"
    row = report.plain("status, one of three hangs", "over MCP", "without that one", ours, theirs, note=note)
    met = row.ours.median <= _STATUS_MS and (answering, len(rows)) == (2, 3)
    yield row.judged(f"<= {_STATUS_MS / 1000:g} s", met=met)


def _with_endpoint(place: Place, path: Path) -> Lab:
    settings = place.lab.folder / "three.toml"
    settings.write_text(f'[endpoints.silent]\nurl = "unix://{path}"\n')
    settings.chmod(0o600)
    return _with_docker(place).with_environment(**{f"{_SETTING}CONFIG": str(settings)})


def _with_docker(place: Place) -> Lab:
    return place.lab.with_environment(**{f"{_SETTING}ENGINES": "docker,podman"})


# ----------------------------------------------------------------------------------------------------- with containers


def list_plain(place: Place, population: engine.Population) -> Rows:
    """A list without usage: the whole call, and the engine's part of it in this process."""
    kept = engine.Api(place.socket_path, prefix=engine.LIBPOD)
    arguments = measures.list_arguments(population, usage=False)
    with listed(place.lab.ours(ERA)) as server, measures.InProcess(place.lab, "podman") as inside:
        turns: list[Turn] = [
            timed(partial(server.call, "container_list", arguments)),
            inside.list_containers,
            timed(partial(engine.list_fresh, place.socket_path, prefix=engine.LIBPOD)),
            timed(partial(kept.ask, "GET", engine.list_path())),
        ]
        whole, part, fresh, alive = take_turns(place.lab.rounds * _LIST_CALLS_A_ROUND, *turns, warm_ups=3)
        note = measures.rows_note(server.call("container_list", arguments), population)
    kept.close()
    measure = f"Podman: list {population.count}, no usage"
    for case, ours in (("engine call", part), ("over MCP", whole)):
        yield report.judged(measure, case, "raw libpod request, fresh", ours, fresh, limit=1.5, note=note)
        yield report.judged(measure, case, "raw libpod request, kept alive", ours, alive, limit=1.5)
        note = ""


def list_usage(place: Place, population: engine.Population) -> Rows:
    """A list with usage, from the second call on."""
    arguments = measures.list_arguments(population, usage=True)
    with listed(place.lab.ours(ERA)) as server:
        server.call("container_list", arguments)
        ours, theirs = take_turns(
            place.lab.rounds,
            timed(partial(server.call, "container_list", arguments)),
            timed(partial(place.run_podman, "stats", "--no-stream")),
        )
        result = server.call("container_list", arguments)
    rows = result["structuredContent"]["containers"]
    with_usage = sum("memory_bytes" in row for row in rows)
    note = f"{measures.rows_note(result, population)}; {with_usage} rows with usage"
    measure = f"Podman: list {population.count} with usage"
    row = report.plain(measure, "over MCP", "podman stats", ours, theirs, note=note)
    yield row.judged(f"<= {_USAGE_MS} ms", met=row.ours.median <= _USAGE_MS and with_usage == len(rows) > 0)


def run(place: Place, population: engine.Population) -> Rows:
    """Run `true` to its end and remove the container, the image being there."""
    arguments = {"image": population.image, "command": ["true"]}
    with listed(place.lab.ours(ERA)) as server:
        ours, theirs = take_turns(
            place.lab.rounds,
            timed(partial(server.call, "container_run", arguments)),
            timed(partial(place.run_podman, "run", "--rm", population.image, "true")),
        )
    yield report.judged("Podman: run true and remove", "over MCP", "podman run --rm", ours, theirs, limit=1.2)


WITHOUT_CONTAINERS: dict[str, Callable[[Place], Rows]] = {"podman-cold": cold, "status": status}
WITH_CONTAINERS: dict[str, Callable[[Place, engine.Population], Rows]] = {
    "podman-list": list_plain,
    "podman-usage": list_usage,
    "podman-run": run,
}
