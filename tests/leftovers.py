"""How is it known what a killed session of the tests has left? Its folder wears a lock that nobody holds any more."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests import backends

DEADLINE_SECONDS = 60.0
PAUSE_SECONDS = 0.05


@contextmanager
def own_folder(kind: str, remove_leftover: Callable[[Path], None], *, name: str = "") -> Iterator[Path]:
    """A folder of this session's own that other users may enter; what killed sessions left of this kind is removed first."""
    folder = Path(tempfile.gettempdir()) / f"cxc-{kind}-{backends.SESSION_ID}{name}"
    with ExitStack() as stack:
        with backends.one_at_a_time("leftovers"):
            _sweep(kind, remove_leftover)
            folder.mkdir()
            lock = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder.chmod(0o711)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(kind: str, remove_leftover: Callable[[Path], None]) -> None:
    """Remove what killed sessions have left of a kind, each folder by `remove_leftover`."""
    with backends.one_at_a_time("leftovers"):
        _sweep(kind, remove_leftover)


def _sweep(kind: str, remove_leftover: Callable[[Path], None]) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"cxc-{kind}-*"):
        with suppress(FileNotFoundError):
            _sweep_one(folder, remove_leftover)


def _sweep_one(folder: Path, remove_leftover: Callable[[Path], None]) -> None:
    if folder.stat().st_uid != os.geteuid() or not (folder / "lock").is_file():
        return
    with (folder / "lock").open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        remove_leftover(folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_processes(of: Callable[[Path], bool]) -> None:
    """End all processes that are so, told by their folders in /proc, and wait until none is left."""
    until = time.monotonic() + DEADLINE_SECONDS
    while (running := list(processes(of))) and time.monotonic() < until:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def processes(of: Callable[[Path], bool]) -> Iterator[int]:
    """The processes that are so, told by their folders in /proc, but for this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if is_running(int(entry.name)) and of(entry):
                    yield int(entry.name)


def naming(folder: Path) -> Callable[[Path], bool]:
    """Whether a process has something in this folder among its arguments or in its environment."""
    marker = f"{folder}/".encode()
    return lambda process: marker in (process / "cmdline").read_bytes() or marker in (process / "environ").read_bytes()


def is_running(pid: int) -> bool:
    """Whether a process is there and does not only wait for whoever adopted it."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def unmount_below(folder: Path) -> None:
    """Unmount whatever is mounted in a folder: it could not be removed."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    mounts = [line.split(" ")[1] for line in lines if f" {folder}/" in line]
    if mounts:
        subprocess.run(["umount", "--lazy", *reversed(mounts)], check=False, capture_output=True)


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    """End a process and its group with a signal, in the end with SIGKILL, and wait until it is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
