"""Where is everything that is measured, how is it started, and how do the sides take turns?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import bare, wire

Turn = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Lab:
    """A home of the benchmark's own, and how often everything is done."""

    folder: Path
    environment: Mapping[str, str]
    rounds: int
    socket_path: Path | None
    docker: str | None

    def ours(self, era: wire.Era) -> wire.Server:
        """Start our server."""
        return self._start("codomyrmex_containerization", era)

    def ours_with_noop(self, era: wire.Era) -> wire.Server:
        """Start our server with a tool that does nothing."""
        return self._start("benchmarks.noop_server", era)

    def bare(self, era: wire.Era) -> wire.Server:
        """Start a bare SDK server."""
        return self._start("run_bare", era)

    def bare_with_rich(self, era: wire.Era) -> wire.Server:
        """Start a bare SDK server that finds rich installed, and loads it."""
        return self._start("run_bare_rich", era)

    def engine(self) -> Path:
        """Return the engine's socket. Raises BenchmarkError without one."""
        if self.socket_path is None:
            raise wire.BenchmarkError("no Docker engine answers on a local socket (scripts/back-ends starts one)")
        return self.socket_path

    def at(self, socket_path: Path) -> Lab:
        """Return the same lab with another socket as the engine's."""
        environment = {**self.environment, "DOCKER_HOST": f"unix://{socket_path}"}
        return replace(self, environment=environment, socket_path=socket_path)

    def with_environment(self, **more: str) -> Lab:
        """Return the same lab with these variables for the server."""
        return replace(self, environment={**self.environment, **more})

    def run_docker(self, *arguments: str) -> str:
        """Run the docker program against the engine that is measured. Raises BenchmarkError when it fails."""
        if self.docker is None:
            raise wire.BenchmarkError("no docker program on the PATH (scripts/back-ends installs it)")
        return self._run("docker", [self.docker, "--host", f"unix://{self.engine()}"], arguments)

    def run_cxc(self, *arguments: str) -> str:
        """Run our command line against the engine that is measured. Raises BenchmarkError when it fails."""
        return self._run("cxc", [sys.executable, "-m", "codomyrmex_containerization"], arguments)

    def _run(self, name: str, program: Sequence[str], arguments: Sequence[str]) -> str:
        command = [*program, *arguments]
        done = subprocess.run(
            command, capture_output=True, env=dict(self.environment), cwd=self.folder / "work", timeout=300
        )
        if done.returncode != 0:
            raise wire.BenchmarkError(f"{name} {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def _start(self, module: str, era: wire.Era) -> wire.Server:
        command = [sys.executable, "-m", module]
        return wire.Server(command, era=era, environment=self.environment, folder=self.folder / "work")


def prepare(folder: Path, *, rounds: int, socket_path: Path | None) -> Lab:
    """Write the bare server, and start every server once, so that all modules are compiled."""
    for name in ("work", "bare", "home/.docker"):
        (folder / name).mkdir(parents=True)
    made = Lab(folder, _environment(folder, socket_path), rounds, socket_path, shutil.which("docker"))
    with made.ours(wire.ERAS[-1]) as server:
        bare.write(folder / "bare", server.list_tools())
    for start in (made.ours_with_noop, made.bare, made.bare_with_rich):
        with start(wire.ERAS[-1]) as server:
            server.list_tools()
    return made


def _environment(folder: Path, socket_path: Path | None) -> dict[str, str]:
    own = ("CODOMYRMEX_CONTAINERIZATION_", "DOCKER_", "CONTAINER_", "CONTAINERS_", "XDG_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    home = folder / "home"
    paths = [str(folder / "bare"), str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        **({"DOCKER_HOST": f"unix://{socket_path}"} if socket_path is not None else {}),
        # What is compared with the docker program asks no other engine meanwhile.
        "CODOMYRMEX_CONTAINERIZATION_ENGINES": "docker",
        "HOME": str(home),
        "DOCKER_CONFIG": str(home / ".docker"),
        **{f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "STATE", "DATA", "CACHE")},
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def take_turns(rounds: int, *turns: Turn, warm_ups: int = 1) -> list[list[float]]:
    """Let the sides take turns, in reversed order every other round; return what each took, without the warm-ups."""
    taken: list[list[float]] = [[] for _ in turns]
    for number in range(-warm_ups, rounds):
        sides = list(range(len(turns)))
        for side in reversed(sides) if number % 2 else sides:
            value = turns[side]()
            if number >= 0:
                taken[side].append(value)
    return taken


def timed(work: Callable[[], object]) -> Turn:
    """Return a turn that says how many milliseconds the work takes."""

    def turn() -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) * 1000

    return turn


@contextmanager
def listed(server: wire.Server) -> Iterator[wire.Server]:
    """Open a server, the listing of its tools done, and close it at the end."""
    with server:
        server.list_tools()
        yield server
