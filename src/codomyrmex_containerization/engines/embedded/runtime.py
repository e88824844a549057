"""How is the OCI runtime told what to do, and who watches a container when it did it? crun or runc, and conmon.

conmon creates the container, stays its parent, writes its log and its exit code and outlives this process.
Sources: https://github.com/opencontainers/runtime-spec/blob/main/runtime.md, https://github.com/containers/conmon
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import lives, objects, tiers
from codomyrmex_containerization.engines.embedded.begun import end_strays

_ANSWER_SECONDS = 60.0
_LOG_BYTES = 256 * 1024 * 1024
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON = ("PYTHONPATH", "XDG_RUNTIME_DIR", "HOME")
_LONGEST_WORDS = 400
_MOST_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Made:
    """What creating a container has brought: the numbers of its first process and of its monitor."""

    pid: int
    monitor_pid: int


class RuntimeFailed(Exception):
    """The runtime refused or failed; its last words are the message."""


class Runtime:
    """One OCI runtime with its state folder, and conmon or the command of another monitor that does the same.

    `prefix` is what has to stand before the runtime to make a container; with `is_always_prefixed` before everything it is told.
    """

    def __init__(
        self,
        program: Path,
        conmon: Path | Sequence[str],
        folders: objects.Folders,
        *,
        prefix: Sequence[str] = (),
        is_always_prefixed: bool = False,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._folders = folders
        self._conmon = [str(conmon)] if isinstance(conmon, Path) else list(conmon)
        self._answer_seconds = answer_seconds
        try:
            for folder in (folders.run, folders.runtime, folders.exits):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The runtime's folder {folder} cannot be made: {error.strerror}.",
                hint="make room and check its rights",
            ) from error
        self._program = program
        self._maker = [*prefix, str(program)]
        self._teller = self._maker if is_always_prefixed else [str(program)]

    @property
    def environment(self) -> dict[str, str]:
        """What the runtime and conmon are given of this process's environment."""
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {"PATH": _PATH, **passed, **lives.mark()}

    # ------------------------------------------------------------------------------------------------------ containers

    def create(self, container_id: str, bundle: Path, *, stdin: bool, exit_command: Sequence[str] = ()) -> Made:
        """Create a container of a bundle; its program does not run yet. Raises RuntimeFailed."""
        arguments = [
            *(*self._conmon, "--api-version", "1", "-c", container_id, "-u", container_id, "-n", container_id),
            *("-r", self._maker[0], *_each("--runtime-arg", [*self._maker[1:], "--root", str(self._folders.runtime)])),
            *("-b", str(bundle), "-p", str(bundle / "pid"), "-P", str(bundle / "conmon.pid")),
            *("-l", f"k8s-file:{log_file(bundle)}", "--log-size-max", str(_LOG_BYTES)),
            *("--exit-dir", str(self._folders.exits), "--persist-dir", str(bundle)),
            *("--full-attach", "--socket-dir-path", str(bundle), "--log-level", "error", "--no-sync-log"),
            *(("-i",) if stdin else ()),
        ]
        if exit_command:
            arguments += ["--exit-command", exit_command[0], *_each("--exit-command-arg", exit_command[1:])]
        for name in ("pid", "conmon.pid", "oom", "attach"):
            with suppress(FileNotFoundError):
                (bundle / name).unlink()
        with suppress(FileNotFoundError):
            self.exit_file(container_id).unlink()
        pid = self._monitored(arguments, bundle, container_id)
        try:
            return Made(pid, int((bundle / "conmon.pid").read_text()))
        except (OSError, ValueError) as error:
            raise RuntimeFailed("conmon did not leave its number") from error

    def _monitored(self, arguments: Sequence[str], bundle: Path, container_id: str) -> int:
        answer, answered = os.pipe()
        begin, begun = os.pipe()
        try:
            environment = {**self.environment, "_OCI_SYNCPIPE": str(answered), "_OCI_STARTPIPE": str(begin)}
            with (bundle / "conmon.log").open("wb") as said:
                started = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=(answered, begin),
                    env=environment,
                    start_new_session=True,
                    cwd=bundle,
                )
        except OSError as error:
            for one in (answer, answered, begin, begun):
                os.close(one)
            raise RuntimeFailed(f"conmon could not be started: {error.strerror}") from error
        os.close(answered)
        os.close(begin)
        with suppress(BrokenPipeError):
            os.write(begun, b"\0")
        os.close(begun)
        try:
            line = _line(answer, seconds=self._answer_seconds)
        finally:
            os.close(answer)
        if line is None:
            end_strays(self._folders, container_id)
            started.wait()
            raise self._late("create")
        started.wait()
        return self._pid_of(line, bundle)

    def _late(self, verb: str) -> errors.DeadlineExceeded:
        return errors.DeadlineExceeded(
            f"{self._program.name} {verb} took longer than {self._answer_seconds:g} seconds.",
            hint="look at the machine's load, then try again",
        )

    def _pid_of(self, line: bytes, bundle: Path) -> int:
        told = _document(line)
        pid = told.get("data", told.get("pid"))
        if isinstance(pid, int) and pid > 1:
            return pid
        words = str(told.get("message") or _last_words(bundle / "conmon.log") or "it said nothing")
        raise RuntimeFailed(plain(words))

    def status(self, container_id: str) -> str:
        """Return how the runtime says that a container stands: creating, created, running, paused, stopped; empty when it knows none.

        Raises RuntimeFailed.
        """
        if not (self._folders.runtime / container_id).exists():
            return ""
        said = self._tell(container_id, "state", container_id)
        status = _document(said).get("status")
        if not isinstance(status, str):
            raise RuntimeFailed(f"{self._program.name} does not say how the container stands: {plain(_text(said))}")
        return status

    def start(self, container_id: str) -> None:
        """Let a container's program run. Raises RuntimeFailed."""
        self._tell(container_id, "start", container_id)

    def kill(self, container_id: str, signal: str) -> None:
        """Send a signal to a container's first process. Raises RuntimeFailed."""
        self._tell(container_id, "kill", container_id, signal)

    def pause(self, container_id: str) -> None:
        """Freeze a container. Raises RuntimeFailed."""
        self._tell(container_id, "pause", container_id)

    def resume(self, container_id: str) -> None:
        """Let a frozen container go on. Raises RuntimeFailed."""
        self._tell(container_id, "resume", container_id)

    def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change a container's limits. Raises RuntimeFailed."""
        self._tell(container_id, "update", "--resources", "-", container_id, stdin=json.dumps(resources).encode())

    def delete(self, container_id: str) -> None:
        """Have the runtime forget a container, and kill what is left of it; no error when it knows none. Raises RuntimeFailed."""
        if not (self._folders.runtime / container_id).exists():
            return
        self._tell(container_id, "delete", "--force", container_id)

    def exec_command(self, container_id: str, process: Path, pid_file: Path) -> list[str]:
        """Return the command that runs a program in a container: it writes `pid_file` once that runs, and ends with its exit code."""
        return [
            *(*self._maker_of(container_id), "--root", str(self._folders.runtime)),
            *("exec", "--process", str(process), "--pid-file", str(pid_file), container_id),
        ]

    def run_command(self, container_id: str, bundle: Path) -> list[str]:
        """Return the command that creates a container, runs it to its end and ends with its exit code."""
        return [*self._maker, "--root", str(self._folders.runtime), "run", "--bundle", str(bundle), container_id]

    def exit_file(self, container_id: str) -> Path:
        """Where conmon leaves the exit code."""
        return self._folders.exits / container_id

    def _maker_of(self, container_id: str) -> list[str]:
        """Return who is told something about a container that there is: who has made it, whoever would make it now."""
        is_own = (self._folders.runtime / container_id / tiers.MARK).exists()
        return list(tiers.own_runtime_command()) if is_own else self._teller

    def _tell(self, container_id: str, *arguments: str, stdin: bytes = b"") -> bytes:
        command = [*self._maker_of(container_id), "--root", str(self._folders.runtime), *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, timeout=self._answer_seconds, env=self.environment, cwd="/"
            )
        except subprocess.TimeoutExpired as error:
            raise self._late(arguments[0]) from error
        except OSError as error:
            raise RuntimeFailed(f"{self._program.name} could not be started: {error.strerror}") from error
        if done.returncode != 0:
            raise RuntimeFailed(plain(_text(done.stderr or done.stdout)))
        return done.stdout


def log_file(bundle: Path) -> Path:
    """Where conmon writes a container's log."""
    return bundle / "ctr.log"


def _line(pipe: int, *, seconds: float) -> bytes | None:
    """Read the first line of a pipe, or all there is until it is closed; None when that takes too long."""
    poll, data, until = select.poll(), b"", time.monotonic() + seconds
    poll.register(pipe, select.POLLIN)
    while b"\n" not in data and len(data) < _MOST_ANSWER_BYTES:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            return None
        piece = os.read(pipe, 65536)
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0]


def _document(data: bytes) -> dict[str, Any]:
    """Return the object that a program has printed; an empty one where it printed something else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _each(option: str, words: Sequence[str]) -> list[str]:
    return [one for word in words for one in (option, word)]


def _last_words(path: Path) -> str:
    try:
        lines = path.read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else ""


def plain(words: str) -> str:
    """Take off what runtimes put before the reason: levels, times, their own names."""
    line = next((one for one in reversed(words.strip().splitlines()) if one.strip()), "it said nothing")
    if line.startswith("{"):
        with suppress(ValueError):
            line = str(json.loads(line).get("msg", line))
    if 'msg="' in line:
        line = line.partition('msg="')[2].rstrip('"').replace('\\"', '"')
    for prefix in ("runc create failed: ", "crun: ", "runc: "):
        line = line.removeprefix(prefix)
    return line.strip()[:_LONGEST_WORDS]
