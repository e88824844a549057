"""How do the small programs behind a container's network outlive this server, and how are they known and ended again?"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import state

_GRACE_SECONDS = 2.0
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_children: dict[int, subprocess.Popen[bytes]] = {}
_guard = threading.Lock()


def start(argv: Sequence[str], *, cwd: Path, log: Path, descriptors: Sequence[int] = ()) -> state.Process:
    """Start a program in a session of its own that goes on when this one ends. Raises EngineUnavailable."""
    _take_ends()
    try:
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as said:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=_ENVIRONMENT,
                cwd=cwd,
                start_new_session=True,
                pass_fds=tuple(descriptors),
            )
    except OSError as error:
        raise errors.EngineUnavailable(
            f"{Path(argv[0]).name} cannot be started: {error.strerror}.", hint="check that the program can be run"
        ) from error
    with _guard:
        _children[child.pid] = child
    found = state.process(child.pid)
    if found is None:
        raise errors.EngineUnavailable(f"{Path(argv[0]).name} ended at once: {_tail(log)}", hint="see the message")
    return found


def end(program: state.Process | None, *, word: str) -> None:
    """End a program unless it has gone, or its number is another's now: its command line must hold `word`."""
    if program is not None and program.is_alive and word in _command_line(program.pid):
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(program.pid)
            try:
                if program.is_alive:  # looked at again, now that the number can no longer become another's
                    _end(descriptor)
            finally:
                os.close(descriptor)
    _take_ends()


def strays(folder: Path) -> list[tuple[state.Process, str]]:
    """Return the programs that keep their log in a folder and still run, each with the beginning of its log's name."""
    found = []
    here = os.path.realpath(folder)
    for pid in (int(one) for one in os.listdir("/proc") if one.isdigit()):
        try:
            log = os.readlink(f"/proc/{pid}/fd/1").removesuffix(" (deleted)")
        except OSError:
            continue
        program = state.process(pid)
        if program is not None and os.path.dirname(log) == here:
            found.append((program, os.path.basename(log).partition(".")[0]))
    return found


def said(log: Path) -> str:
    """Return the last words of a program's log."""
    return _tail(log)


def _end(descriptor: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal.pidfd_send_signal(descriptor, number)
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        if waiting.poll(_GRACE_SECONDS * 1000):
            return


def _command_line(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return ""


def _take_ends() -> None:
    """Dead children stay in the table of processes until somebody asks for their end."""
    with _guard:
        for pid in [pid for pid, child in _children.items() if child.poll() is not None]:
            del _children[pid]


def _tail(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace").strip()[-500:] or "it said nothing"
    except OSError:
        return "it said nothing"
