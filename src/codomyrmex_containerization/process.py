"""How are external programs run? The one door to subprocesses: argv arrays, never a shell, never left behind.

Every program gets a session of its own, so that its whole process group can be ended; on Linux it is also told to die with this process
(`setpriv --pdeathsig`), because nobody else would stop it after a `kill -9`.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import anyio
from anyio.abc import ByteReceiveStream, Process

from codomyrmex_containerization import errors

_LONGEST_LINE_BYTES = 1_000_000
# Programs are looked for here too: a server started by a desktop client has an almost empty PATH.
_EXTRA_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin", "/opt/homebrew/bin")


@dataclass(slots=True)
class Running:
    """A program that runs: its output lines and, in the end, its return code."""

    process: Process
    program: str

    async def lines(self, stream: ByteReceiveStream | None) -> AsyncIterator[bytes]:
        """Yield the lines of a stream without their ends; a line longer than 1 MB comes in pieces."""
        if stream is None:
            return
        rest = b""
        async for chunk in stream:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line
            if len(rest) > _LONGEST_LINE_BYTES:
                yield rest
                rest = b""
        if rest:
            yield rest

    async def wait(self) -> int:
        """Wait for the end and return the return code (negative: the signal that ended it)."""
        return await self.process.wait()


def find(program: str, *, folders: Sequence[str] = ()) -> Path | None:
    """Find a program on PATH or in the usual folders; None when it is not installed."""
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath), *_EXTRA_FOLDERS])
    found = shutil.which(program, path=path)
    return Path(found) if found else None


@asynccontextmanager
async def run(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, stdin: bool = False
) -> AsyncIterator[Running]:
    """Run a program while the block lasts, with a pipe to its stdin if that is wanted; leaving the block ends its whole process group.

    Raises CommandFailed when it cannot be started.
    """
    given = subprocess.PIPE if stdin else subprocess.DEVNULL
    running = await _open(argv, env=env, cwd=cwd, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield running
    finally:
        await end(running)


def start_detached(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Callable[[], int | None]:
    """Start a program that outlives this process; its output goes to `log`. Blocks for no longer than the start takes.

    Only for a program that ends by itself when nobody needs it any more. What is returned says how it ended, None while it runs.
    Raises CommandFailed when it cannot be started.
    """
    try:
        with _private_log(log) as said:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        raise _not_started(argv) from error
    # Whoever starts a program also takes its end: otherwise a dead one stays in the table of processes.
    threading.Thread(target=child.wait, daemon=True, name="reaper").start()
    return lambda: child.returncode


async def start(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Running:
    """Start a program that runs until `end`, or until this process is gone; its output goes to `log`.

    Raises CommandFailed when it cannot be started.
    """
    try:
        said = _private_log(log)
    except OSError as error:
        raise _not_started(argv) from error
    with said:
        return await _open(argv, env=env, cwd=cwd, stdout=said, stderr=said)


async def _open(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    stdin: int = subprocess.DEVNULL,
) -> Running:
    # Not in a worker thread: the signal that ends it with us is bound to the thread that started it.
    try:
        process = await anyio.open_process(
            [*_death_wish(), *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise _not_started(argv) from error
    return Running(process, argv[0])


def _not_started(argv: Sequence[str]) -> errors.CommandFailed:
    return errors.CommandFailed(f"{argv[0]} could not be started.", hint="check that it is installed and executable")


def _private_log(path: Path) -> BinaryIO:
    return open(path, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))


async def end(running: Running) -> None:
    """End a program with its whole process group; may be called twice."""
    _end_group(running.process)
    with anyio.CancelScope(shield=True):
        await running.process.wait()
        await running.process.aclose()


def _end_group(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def _death_wish() -> tuple[str, ...]:
    setpriv = find("setpriv")
    return (str(setpriv), "--pdeathsig", "KILL", "--") if setpriv else ()
