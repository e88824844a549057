"""How is the OCI runtime told what to do, and who watches a container when it did it? crun or runc, and conmon.

conmon creates the container, stays its parent, writes its log and its exit code and outlives this process.
Sources: https://github.com/opencontainers/runtime-spec/blob/main/runtime.md, https://github.com/containers/conmon
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import objects

_ANSWER_SECONDS = 60.0
_LOG_BYTES = 256 * 1024 * 1024
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON = ("PYTHONPATH", "XDG_RUNTIME_DIR", "HOME")
_LONGEST_WORDS = 400
_WRAPPER = "runtime"


@dataclass(frozen=True, slots=True)
class Made:
    """What creating a container has brought: the numbers of its first process and of its monitor."""

    pid: int
    monitor_pid: int


class RuntimeFailed(Exception):
    """The runtime refused or failed; its last words are the message."""


class Runtime:
    """One OCI runtime with its state folder, and conmon."""

    def __init__(self, program: Path, conmon: Path, folders: objects.Folders, *, prefix: Sequence[str] = ()) -> None:
        self._folders = folders
        self._conmon = conmon
        for folder in (folders.run, folders.runtime, folders.exits):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._program = self._wrapped(program, prefix) if prefix else program

    @property
    def environment(self) -> dict[str, str]:
        """What the runtime and conmon are given of this process's environment."""
        return {"PATH": _PATH, **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}

    # ------------------------------------------------------------------------------------------------------ containers

    def create(self, container_id: str, bundle: Path, *, stdin: bool, exit_command: Sequence[str] = ()) -> Made:
        """Create a container of a bundle; its program does not run yet. Raises RuntimeFailed."""
        arguments = [
            *(str(self._conmon), "--api-version", "1", "-c", container_id, "-u", container_id, "-n", container_id),
            *("-r", str(self._program), "--runtime-arg", "--root", "--runtime-arg", str(self._folders.runtime)),
            *("-b", str(bundle), "-p", str(bundle / "pid"), "-P", str(bundle / "conmon.pid")),
            *("-l", f"k8s-file:{log_file(bundle)}", "--log-size-max", str(_LOG_BYTES)),
            *("--exit-dir", str(self._folders.exits), "--persist-dir", str(bundle)),
            *("--full-attach", "--socket-dir-path", str(bundle), "--log-level", "error", "--no-sync-log"),
            *(("-i",) if stdin else ()),
        ]
        if exit_command:
            arguments += ["--exit-command", exit_command[0]]
            for one in exit_command[1:]:
                arguments += ["--exit-command-arg", one]
        for name in ("pid", "conmon.pid", "oom", "attach"):
            with suppress(FileNotFoundError):
                (bundle / name).unlink()
        with suppress(FileNotFoundError):
            self.exit_file(container_id).unlink()
        pid = self._monitored(arguments, bundle)
        return Made(pid, int((bundle / "conmon.pid").read_text()))

    def _monitored(self, arguments: Sequence[str], bundle: Path) -> int:
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
        with os.fdopen(answer, "rb") as pipe:
            line = pipe.readline()
        started.wait()
        return self._pid_of(line, bundle)

    def _pid_of(self, line: bytes, bundle: Path) -> int:
        try:
            told: dict[str, Any] = json.loads(line) if line else {}
        except ValueError:
            told = {}
        pid = told.get("data", told.get("pid"))
        if isinstance(pid, int) and pid > 0:
            return pid
        words = str(told.get("message") or _last_words(bundle / "conmon.log") or "it said nothing")
        raise RuntimeFailed(plain(words))

    def start(self, container_id: str) -> None:
        """Let a container's program run. Raises RuntimeFailed."""
        self._tell("start", container_id)

    def kill(self, container_id: str, signal: str) -> None:
        """Send a signal to a container's first process. Raises RuntimeFailed."""
        self._tell("kill", container_id, signal)

    def pause(self, container_id: str) -> None:
        """Freeze a container. Raises RuntimeFailed."""
        self._tell("pause", container_id)

    def resume(self, container_id: str) -> None:
        """Let a frozen container go on. Raises RuntimeFailed."""
        self._tell("resume", container_id)

    def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change a container's limits. Raises RuntimeFailed."""
        self._tell("update", "--resources", "-", container_id, stdin=json.dumps(resources).encode())

    def delete(self, container_id: str) -> None:
        """Have the runtime forget a container, and kill what is left of it; no error when it knows none. Raises RuntimeFailed."""
        if not (self._folders.runtime / container_id).exists():
            return
        self._tell("delete", "--force", container_id)

    def exec_command(self, container_id: str, process: Path, pid_file: Path) -> list[str]:
        """Return the command that runs a program in a container: it writes `pid_file` once that runs, and ends with its exit code."""
        return [
            *(str(self._program), "--root", str(self._folders.runtime)),
            *("exec", "--process", str(process), "--pid-file", str(pid_file), container_id),
        ]

    def run_command(self, container_id: str, bundle: Path) -> list[str]:
        """Return the command that creates a container, runs it to its end and ends with its exit code."""
        return [str(self._program), "--root", str(self._folders.runtime), "run", "--bundle", str(bundle), container_id]

    def exit_file(self, container_id: str) -> Path:
        """Where conmon leaves the exit code."""
        return self._folders.exits / container_id

    def _tell(self, *arguments: str, stdin: bytes = b"") -> None:
        command = [str(self._program), "--root", str(self._folders.runtime), *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, timeout=_ANSWER_SECONDS, env=self.environment, cwd="/"
            )
        except subprocess.TimeoutExpired as error:
            raise errors.DeadlineExceeded(
                f"{self._program.name} {arguments[0]} took longer than {_ANSWER_SECONDS:g} seconds.",
                hint="look at the machine's load, then try again",
            ) from error
        except OSError as error:
            raise RuntimeFailed(f"{self._program.name} could not be started: {error.strerror}") from error
        if done.returncode != 0:
            raise RuntimeFailed(plain((done.stderr or done.stdout).decode("utf-8", "replace")))

    def _wrapped(self, program: Path, prefix: Sequence[str]) -> Path:
        """Make a program of the runtime and of what has to stand before it here: conmon takes one path only."""
        path = self._folders.run / _WRAPPER
        words = " ".join(_quoted(one) for one in [*prefix, str(program)])
        text = f'#!/bin/sh\nexec {words} "$@"\n'
        if not path.exists() or path.read_text() != text:
            beside = path.with_name(f".{_WRAPPER}.{os.getpid()}")
            beside.write_text(text)
            beside.chmod(0o700)
            beside.rename(path)
        return path


def log_file(bundle: Path) -> Path:
    """Where conmon writes a container's log."""
    return bundle / "ctr.log"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


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
