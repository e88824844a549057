"""How does a command run here: which processes has a container, how are they started, measured, frozen and ended?

A process is a task; no program of the host is involved. What a container's program would be is looked up in its tree, and must be one of
this package's own (see `programs.py`). Each resumption of a task is timed, and held back while the container is frozen.
"""

from __future__ import annotations

import errno
import posixpath
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from codomyrmex_containerization.engines.memory import files, streams

SIGNALS = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "TRAP": 5,
    "ABRT": 6,
    "BUS": 7,
    "FPE": 8,
    "KILL": 9,
    "USR1": 10,
    "SEGV": 11,
    "USR2": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "STKFLT": 16,
    "CHLD": 17,
    "CONT": 18,
    "STOP": 19,
    "TSTP": 20,
    "TTIN": 21,
    "TTOU": 22,
    "URG": 23,
    "XCPU": 24,
    "XFSZ": 25,
    "VTALRM": 26,
    "PROF": 27,
    "WINCH": 28,
    "IO": 29,
    "PWR": 30,
    "SYS": 31,
}
_HARMLESS = frozenset((17, 18, 20, 21, 22, 23, 28))
_KILL, _CONT, _STOP = 9, 18, 19
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A task gives the others their turn after so long at the latest.
_SLICE_SECONDS = 0.002
_MOST_PROCESSES = 1_000
_MOST_INTERPRETERS = 4

Program = Callable[["Process"], Awaitable[int]]


class Exit(Exception):
    """A process ends with a code, from wherever it is."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class CannotStart(Exception):
    """A program cannot be started; `code` is 126 (found, not runnable) or 127 (not found)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Usage(OSError):
    """Words that a program does not understand."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EINVAL, text)


class Foreign(CannotStart):
    """A program that is there and that another engine would run."""


def signal_number(text: str) -> int | None:
    """Return the number of `TERM`, `SIGTERM` or `15`; None when there is no such signal."""
    if text.isdigit():
        return int(text) if 0 <= int(text) <= 64 else None
    return SIGNALS.get(text.upper().removeprefix("SIG"))


class Process:
    """One running command: its words, environment, folder, user and open streams."""

    def __init__(
        self,
        kernel: Kernel,
        pid: int,
        parent: Process | None,
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        who: files.User,
        fds: Mapping[int, streams.Stream],
    ) -> None:
        self.kernel = kernel
        self.pid = pid
        self.parent = parent
        self.argv = list(argv)
        self.env = dict(env)
        self.cwd = cwd
        self.who = who
        self.fds = dict(fds)
        self.exit_code: int | None = None
        self.done = anyio.Event()
        self.traps: dict[int, str] = {}
        self.pending: list[int] = []
        self.signalled = anyio.Event()
        self.killed_by = 0
        self.stopped = False
        self.slice_began = 0.0
        self.scope = anyio.CancelScope()

    @property
    def view(self) -> files.View:
        """The file system that the process sees."""
        return self.kernel.view

    async def read(self, most: int = streams.CHUNK_BYTES) -> bytes:
        """Read from the standard input."""
        return await self._fd(0).read(most)

    async def out(self, data: bytes | str) -> None:
        """Write to the standard output."""
        await self._fd(1).write(data if isinstance(data, bytes) else encoded(data))

    async def err(self, text: str) -> None:
        """Write to the standard error, which may be closed."""
        try:
            await self._fd(2).write(encoded(text))
        except OSError:
            return

    def _fd(self, number: int) -> streams.Stream:
        found = self.fds.get(number)
        if found is None:
            raise files.failure(errno.EBADF)
        return found

    def open(self, path: str, mode: str) -> streams.Stream:
        """Open a path relative to the process's folder. Raises OSError."""
        return streams.open_path(self.view, path, mode, cwd=self.cwd, who=self.who, standard=self.fds)

    async def tick(self) -> None:
        """Give others their turn when this process has had its own."""
        if time.perf_counter() - self.slice_began > _SLICE_SECONDS:
            await anyio.lowlevel.checkpoint()

    async def wait(self) -> int:
        """Wait until the process has ended."""
        await self.done.wait()
        return self.exit_code or 0

    def signal(self, number: int) -> None:
        """Deliver a signal: to a trap, or with the effect that the kernel gives it."""
        if number == 0 or self.exit_code is not None:
            return
        if number in (_STOP, _CONT):
            self.stopped = number == _STOP
            self.kernel.changed()
        elif number != _KILL and number in self.traps:
            if self.traps[number]:
                self.pending.append(number)
                self.signalled.set()
        elif number == _KILL or (self.pid != 1 and number not in _HARMLESS):
            # A container's first process ignores what it has no trap for.
            self.killed_by = number
            self.stopped = False
            self.kernel.changed()
            self.scope.cancel()


class Kernel:
    """The processes of one container, from the start of the first to its end."""

    def __init__(self, view: files.View, tasks: TaskGroup, programs: Mapping[str, Program], *, hostname: str) -> None:
        self.view = view
        self.hostname = hostname
        self.programs = programs
        self.processes: dict[int, Process] = {}
        self.cpu_seconds = 0.0
        self.ended = False
        self._tasks = tasks
        self._frozen = False
        self._thawed = anyio.Event()
        self._next_pid = 1

    def freeze(self, frozen: bool) -> None:
        """Hold all processes back, or let them go on."""
        self._frozen = frozen
        self.changed()

    def changed(self) -> None:
        """Have the processes that are held back look again."""
        self._thawed.set()
        self._thawed = anyio.Event()

    def is_held(self, process: Process) -> bool:
        """Say whether a process may not go on now."""
        return (self._frozen or process.stopped) and not process.killed_by

    async def released(self) -> None:
        """Wait until something about that has changed."""
        await self._thawed.wait()

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        who: files.User,
        fds: Mapping[int, streams.Stream],
        parent: Process | None = None,
    ) -> Process:
        """Start a program of the container. The process closes the streams. Raises CannotStart."""
        program, words = self.find(argv, env=env, cwd=cwd, who=who)
        return self.fork(program, argv=words, env=env, cwd=cwd, who=who, fds=fds, parent=parent)

    def fork(
        self,
        main: Program,
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        who: files.User,
        fds: Mapping[int, streams.Stream],
        parent: Process | None = None,
    ) -> Process:
        """Start a process that runs `main`. Raises CannotStart (too many)."""
        if self.ended or len(self.processes) >= _MOST_PROCESSES:
            raise CannotStart(126, "cannot fork: resource temporarily unavailable")
        process = Process(self, self._next_pid, parent, argv=argv, env=env, cwd=cwd, who=who, fds=fds)
        self._next_pid += 1
        self.processes[process.pid] = process
        self._tasks.start_soon(self._live, process, main)
        return process

    async def _live(self, process: Process, main: Program) -> None:
        code = 128 + _KILL
        try:
            with process.scope:
                code = await _Driven(_exit_code(process, main), process)
            if process.killed_by:
                code = 128 + process.killed_by
        finally:
            # Also when the event loop ends: nobody may wait for it for ever.
            for stream in process.fds.values():
                stream.close()
            process.fds.clear()
            process.exit_code = code
            self.processes.pop(process.pid, None)
            process.done.set()

    def end(self) -> None:
        """Kill all that runs: the first process has ended."""
        self.ended = True
        for process in list(self.processes.values()):
            process.signal(_KILL)

    def end_tree(self, top: Process) -> None:
        """Kill a process and what it started."""
        for process in list(self.processes.values()):
            ancestor: Process | None = process
            while ancestor is not None:
                if ancestor is top:
                    process.signal(_KILL)
                    break
                ancestor = ancestor.parent

    def find(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, who: files.User
    ) -> tuple[Program, list[str]]:
        """Return the program that the words mean, and the words that it gets. Raises CannotStart."""
        words = list(argv)
        for _ in range(_MOST_INTERPRETERS):
            if not words or not words[0]:
                raise CannotStart(127, "no command specified")
            path = self._locate(words[0], env.get("PATH", DEFAULT_PATH), cwd, who)
            node = self.view.get(path, cwd, who)
            data = bytes(node.data[:256]) if isinstance(node, files.File) else b""
            if data.startswith(b"#!"):
                line = data[2:].split(b"\n", 1)[0].decode("utf-8", "surrogateescape").strip()
                words = [*line.split(None, 1), path, *words[1:]]
                continue
            name = posixpath.basename(words[0])
            if name == "busybox" and len(words) > 1 and words[1] in self.programs:
                name, words = words[1], words[1:]
            if name not in self.programs:
                raise Foreign(
                    126, f'exec: "{words[0]}": exec format error (not one of the programs that memory itself has)'
                )
            return self.programs[name], words
        raise CannotStart(126, f'exec: "{argv[0]}": too many levels of interpreters')

    def _locate(self, word: str, path: str, cwd: str, who: files.User) -> str:
        denied = False
        for folder in [""] if "/" in word else path.split(":"):
            full = word if "/" in word else posixpath.join(folder or cwd, word)
            try:
                node = self.view.get(full, cwd, who)
            except OSError as error:
                denied = denied or error.errno == errno.EACCES
                continue
            if isinstance(node, files.File) and who.may(node, 1):
                return full
            denied = True
        if denied:
            raise CannotStart(126, f'exec: "{word}": permission denied')
        if "/" in word:
            raise CannotStart(127, f'exec: "{word}": stat {word}: no such file or directory')
        raise CannotStart(127, f'exec: "{word}": executable file not found in $PATH')


async def _exit_code(process: Process, main: Program) -> int:
    try:
        return await main(process)
    except Exit as ended:
        return ended.code
    except BrokenPipeError:
        return 128 + SIGNALS["PIPE"]
    except OSError as error:
        await process.err(f"{posixpath.basename(process.argv[0])}: {said(error)}\n")
        return 1
    except RecursionError:
        await process.err(f"{posixpath.basename(process.argv[0])}: too deeply nested\n")
        return 2
    except Exception as defect:  # noqa: BLE001  a defect of one program must not end the others
        await process.err(f"{posixpath.basename(process.argv[0])}: failed for a reason of its own: {defect!r}\n")
        return 70


class _Driven:
    """A coroutine whose every resumption is timed, and held back while its process is."""

    def __init__(self, coroutine: Coroutine[Any, Any, int], process: Process) -> None:
        self._coroutine = coroutine
        self._process = process

    def __await__(self) -> Generator[Any, Any, int]:
        process, kernel, thrown = self._process, self._process.kernel, None
        while True:
            while thrown is None and kernel.is_held(process):
                try:
                    yield from kernel.released().__await__()
                except GeneratorExit:
                    self._coroutine.close()
                    raise
                except BaseException as error:  # noqa: BLE001  handed to the coroutine
                    thrown = error
            process.slice_began = time.perf_counter()
            began = time.thread_time()
            try:
                waiting = self._coroutine.throw(thrown) if thrown is not None else self._coroutine.send(None)
            except StopIteration as stop:
                return int(stop.value)
            finally:
                kernel.cpu_seconds += time.thread_time() - began
            thrown = None
            try:
                yield waiting
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001  handed to the coroutine
                thrown = error


def encoded(text: str) -> bytes:
    """Return text as the bytes it was made of."""
    return text.encode("utf-8", "surrogateescape")


def said(error: OSError) -> str:
    """Return an error as programs print it."""
    text = error.strerror or "failed"
    return f"{error.filename}: {text}" if error.filename else text


def find_user(view: files.View, text: str) -> files.User:
    """Return the user that `name`, `uid`, `user:group` means. Raises LookupError with the runtime's words."""
    name, _, group = text.partition(":")
    users, groups = _table(view, "/etc/passwd", 6), _table(view, "/etc/group", 3)
    row = next((one for one in users if name in (one[0], one[2])), None)
    if row is None and not (name or "0").isdigit():
        raise LookupError(f"unable to find user {name}: no matching entries in passwd file")
    uid = int(row[2]) if row is not None else int(name or 0)
    gid = int(row[3]) if row is not None else 0
    login = row[0] if row is not None else ("root" if uid == 0 else "")
    if group:
        found = next((one for one in groups if group in (one[0], one[2])), None)
        if found is None and not group.isdigit():
            raise LookupError(f"unable to find group {group}: no matching entries in group file")
        gid = int(found[2]) if found is not None else int(group)
    more = tuple(int(one[2]) for one in groups if len(one) > 3 and login and login in one[3].split(","))
    home = row[5] if row is not None else ("/root" if uid == 0 else "/")
    return files.User(uid, gid, more, login, home)


def _table(view: files.View, path: str, least: int) -> list[list[str]]:
    try:
        node = view.get(path)
    except OSError:
        return []
    text = bytes(node.data).decode("utf-8", "replace") if isinstance(node, files.File) else ""
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= least and row[2].isdigit() and (least < 4 or row[3].isdigit())]
