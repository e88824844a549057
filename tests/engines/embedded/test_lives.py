"""Is what a killed server has just begun found by the next one, however early the kill came?"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from codomyrmex_containerization import process
from codomyrmex_containerization.engines.embedded import begun, lives, objects, state
from tests import backends, embedded

ANSWER_SECONDS = 60.0
VERB = "exec"
SERVER = """
import subprocess, sys
from pathlib import Path
from codomyrmex_containerization.engines.embedded import begun, lives, objects, runtime
data, run, program, id, verb, noted = sys.argv[1:]
folders = objects.Folders(Path(data), Path(run))
told = runtime.Runtime(Path(program), Path("/none"), folders)
lives.show(folders.run, told)
if noted == "noted":
    begun.Notes(folders.data / "begun").write(id, folders.data)
command = [program, "--root", str(folders.runtime), verb, id]
subprocess.run(command, env=told.environment, stdin=subprocess.DEVNULL, start_new_session=True)
"""
PROBER = """
import sys
from pathlib import Path
from codomyrmex_containerization.engines.embedded import probe
probe.find_runtime(Path(sys.argv[1]), tier="full")
"""


def _told_of(text: str) -> list[int]:
    """Return the programs whose words hold a text."""
    found = []
    for pid in (int(one) for one in os.listdir("/proc") if one.isdigit()):
        with suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@dataclass(slots=True)
class Held:
    """A program that cannot be begun: who tries to waits in the kernel, forked and not a program yet."""

    path: Path
    descriptor: int
    asked: int
    is_held: bool = field(default=True)

    def wait_for_start(self) -> None:
        """Wait until somebody tries."""
        assert select.select([self.asked], [], [], ANSWER_SECONDS)[0], "nobody starts the program"

    def release(self) -> None:
        """Let it be begun."""
        fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@contextmanager
def _held(path: Path) -> Iterator[Held]:
    asked, asking = os.pipe2(os.O_CLOEXEC)
    before = signal.signal(signal.SIGIO, lambda *_: os.write(asking, b"x"))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no file can be leased here: {error.strerror}")
        held = Held(path, descriptor, asked)
        yield held
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)
        os.close(asked)
        os.close(asking)


def _waiting_program(folder: Path) -> Path:
    """Make a program that waits for ever."""
    os.mkfifo(folder / "never")
    path = folder / "crun"
    path.write_text(f"#!/bin/sh\nread line <'{folder}/never'\n")
    path.chmod(0o700)
    return path


@contextmanager
def _server(
    folders: objects.Folders, program: Path, id: str, verb: str, *, noted: bool
) -> Iterator[subprocess.Popen[bytes]]:
    words = [str(folders.data), str(folders.run), str(program), id, verb, "noted" if noted else "unnoted"]
    server = subprocess.Popen([sys.executable, "-c", SERVER, *words])
    try:
        yield server
    finally:
        server.kill()
        server.wait()
        for pid in _told_of(id):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _folders(folder: Path) -> objects.Folders:
    folders = objects.Folders(folder / "data", folder / "run")
    for one in (folders.data, folders.run):
        one.mkdir()
    return folders


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not-noted"])
def test_a_child_of_a_killed_server_that_is_no_program_yet_is_waited_for_and_ended(tmp_path: Path, noted: bool) -> None:
    """SPEC B89: from the fork on what a killed server began is found."""
    folders, id = _folders(tmp_path), state.new_id()
    program = _waiting_program(tmp_path)
    with _held(program) as held, _server(folders, program, id, VERB, noted=noted) as server:
        held.wait_for_start()
        assert lives.gone(folders.run) == []  # it lives
        server.kill()
        server.wait()
        (gone,) = lives.gone(folders.run)
        assert not lives.is_free(gone.path, seconds=0)
        assert program.name.encode() not in b"".join(_programs_marked(gone.name))
        told: list[str] = []
        ending = threading.Thread(
            target=(lambda: begun.end_strays(folders, id))
            if noted
            else (lambda: told.extend(begun.end_orphans(folders)))
        )
        ending.start()
        held.release()
        ending.join()
        assert _told_of(id) == []
        assert noted or (told == ["1 programs of a server that was killed"] and lives.gone(folders.run) == [])


def _programs_marked(name: str) -> list[bytes]:
    found = []
    for pid in (one for one in os.listdir("/proc") if one.isdigit()):
        with suppress(OSError):
            if f"{lives.VARIABLE}={name}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def test_the_programs_of_a_server_that_lives_are_left_alone(tmp_path: Path) -> None:
    """SPEC B89: another server's are its own business."""
    folders, id = _folders(tmp_path), state.new_id()
    program = _waiting_program(tmp_path)
    with _server(folders, program, id, VERB, noted=False):
        writer = os.open(tmp_path / "never", os.O_WRONLY)  # waits until it is read, by the program
        try:
            assert begun.end_orphans(folders) == []
            assert len(_told_of(id)) == 2  # the server names it too
        finally:
            os.close(writer)


def test_a_server_that_ends_by_itself_leaves_no_trace(tmp_path: Path) -> None:
    """SPEC B89: nothing is looked for after a server that has ended well."""
    folders = _folders(tmp_path)
    words = (
        "import sys; from pathlib import Path; from codomyrmex_containerization.engines.embedded import life, objects; "
    )
    words += "house = life.House(objects.Folders(*map(Path, sys.argv[1:])), engine='one')"
    subprocess.run([sys.executable, "-c", words, str(folders.data), str(folders.run)], check=True)
    assert list((folders.run / "servers").iterdir()) == []


@pytest.mark.parametrize("kind", ["crun", "runc"])
def test_a_container_of_a_try_whose_server_was_killed_goes_at_the_next_start(tmp_path: Path, kind: str) -> None:
    """SPEC B89: a try that was cut short leaves no process, no control group, no folder."""
    embedded.require()
    real = process.find(kind)
    if real is None:
        backends.missing(f"no {kind}")
    folder, reached = tmp_path / "embedded" / "probe", tmp_path / "reached"
    os.mkfifo(reached)
    (tmp_path / "bin").mkdir()
    _script(tmp_path / "bin" / "crun", "exit 1")  # the one that is tried first
    _script(tmp_path / "bin" / kind, f'case " $* " in *" start "*) read line <"{reached}" ;; esac\nexec {real} "$@"')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    prober = subprocess.Popen([sys.executable, "-c", PROBER, str(folder)], env=environment)
    writer = os.open(reached, os.O_WRONLY)  # waits until the container is made, and its start asked for
    try:
        prober.kill()
        prober.wait()
        (left,) = folder.glob("try-*")
        container = left.name.rpartition("-")[2]
        # Others' groups go meanwhile: a walk takes no notice of those.
        walked = os.walk("/sys/fs/cgroup")
        groups = [Path(top, one) for top, names, _ in walked for one in names if one == f"codomyrmex-{container}"]
        assert groups
        first = int((left / "pid").read_text())
        assert state.process_start(first) is not None
        embedded.engine(tmp_path).house.recover()
        assert state.process_start(first) is None
        assert _told_of(str(left)) == []
        assert [one for one in groups if one.exists()] == []
        assert [*folder.glob("try-*")] == []
    finally:
        os.close(writer)
        prober.kill()
        prober.wait()


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
