"""How do the layers of an image come in side by side? Large ones of a file by helpers, as many as there are processors; the others here.

A helper takes some hundredths of a second to begin, and a thread of ours would only wait for its turn: so small images have neither. What
comes from elsewhere has threads: most of the time it is waited for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import content_members, content_watch, layer_intake, layer_tar, layers

T = TypeVar("T")

_PROGRAM = f"{__package__}.layer_helper"
_WORTH_IT_BYTES = 8 * 1024 * 1024
_MOST_HELPERS = 7
_MOST_AT_ONCE = 3
_PASSED_ON = ("PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Task:
    """A layer that is to be prepared in a folder; `file_bytes` are its bytes where it is a part of a file, else 0."""

    open: Callable[[], AbstractContextManager[layer_tar.Stream]]
    file_bytes: int
    stage: Path
    unpacks: bool


@dataclass(frozen=True, slots=True)
class Way:
    """How layers are prepared here; `lock` keeps contents from being thrown away."""

    prefix: str
    bounds: layers.Bounds
    lock: Path
    watch: content_watch.Watch


def prepared(
    tasks: Sequence[Task], way: Way, *, check: Callable[[int, layer_intake.Prepared], None]
) -> list[layer_intake.Prepared]:
    """Prepare layers, each looked at by `check` as soon as it is there. Raises what `check` and `layer_intake.prepare` raise, Cancelled."""
    count = _helpers(tasks)
    waiting = min(_MOST_AT_ONCE, sum(not one.file_bytes for one in tasks)) - 1
    if count == 0 and waiting < 1:
        return [_here(task, way, number, check) for number, task in enumerate(tasks)]
    return _Party(tasks, way, check).done(count, max(waiting, 0))


def _helpers(tasks: Sequence[Task]) -> int:
    """Return how many helpers are worth their beginning: what is left beside the largest layer must keep them busy."""
    parts = sorted((one.file_bytes for one in tasks if one.file_bytes), reverse=True)
    wanted = min(len(os.sched_getaffinity(0)), len(parts), _MOST_HELPERS + 1) - 1
    return max(0, min(wanted, sum(parts[1:]) // _WORTH_IT_BYTES))


def _here(
    task: Task, way: Way, number: int, check: Callable[[int, layer_intake.Prepared], None]
) -> layer_intake.Prepared:
    with task.open() as stream:
        found = layer_intake.prepare(
            way.watch.stream(stream), task.stage, prefix=way.prefix, bounds=way.bounds, unpacks=task.unpacks
        )
    check(number, found)
    return found


class _Party:
    """The layers of one image and those who work on them."""

    def __init__(self, tasks: Sequence[Task], way: Way, check: Callable[[int, layer_intake.Prepared], None]) -> None:
        self._tasks = tasks
        self._check = check
        self._failure: BaseException | None = None
        self._found: dict[int, layer_intake.Prepared] = {}
        # The largest first: none begins when all others are done.
        self._waiting = deque(sorted(range(len(tasks)), key=lambda one: -tasks[one].file_bytes))
        watch = way.watch.part(is_stopped=lambda: self._failure is not None)
        self._way = Way(way.prefix, way.bounds, way.lock, watch)

    def done(self, count: int, waiting: int) -> list[layer_intake.Prepared]:
        """Share the work among so many helpers and threads, and this thread."""
        with ExitStack() as held:
            windows = {
                number: window
                for number, task in enumerate(self._tasks)
                if task.file_bytes and isinstance(window := held.enter_context(task.open()), content_members.Window)
            }
            descriptors = {one.fd for one in windows.values()}
            helpers = [held.enter_context(one) for one in [_helper(self._way, descriptors) for _ in range(count)]]
            threads = [
                threading.Thread(target=self._work, args=(self._by(one, windows),), name="layers")
                for one in helpers
                if one is not None
            ]
            threads += [threading.Thread(target=self._work, args=(self._do,), name="layers") for _ in range(waiting)]
            for one in threads:
                one.start()
            self._work(self._do)
            for one in threads:
                one.join()
        if self._failure is not None:
            raise self._failure
        return [self._found[number] for number in range(len(self._tasks))]

    def _do(self, number: int) -> layer_intake.Prepared:
        return _here(self._tasks[number], self._way, number, self._check)

    def _by(
        self, helper: subprocess.Popen[bytes], windows: dict[int, content_members.Window]
    ) -> Callable[[int], layer_intake.Prepared]:
        def ask(number: int) -> layer_intake.Prepared:
            window = windows.get(number)
            if window is None:
                return self._do(number)
            found = _asked(helper, self._tasks[number], window, self._way)
            self._check(number, found)
            return found

        return ask

    def _work(self, do: Callable[[int], layer_intake.Prepared]) -> None:
        while self._failure is None:
            try:
                number = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._found[number] = do(number)
            except BaseException as error:  # noqa: BLE001  raised where all of them come together
                self._failure = self._failure or error


@contextmanager
def _helper(way: Way, descriptors: set[int]) -> Iterator[subprocess.Popen[bytes] | None]:
    """Start a helper, and end it with the block; None where it cannot be started: the others do its work."""
    try:
        child = subprocess.Popen(
            (sys.executable, "-m", _PROGRAM),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=tuple(descriptors),
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            cwd="/",
        )
    except OSError:
        yield None
        return
    try:
        with suppress(OSError):
            _send(child, {"lock": str(way.lock), "server": os.getpid()})
        yield child
    finally:
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        child.wait()


def _asked(
    helper: subprocess.Popen[bytes], task: Task, window: content_members.Window, way: Way
) -> layer_intake.Prepared:
    job = {
        "fd": window.fd,
        "place": window.place,
        "size": window.left,
        "stage": str(task.stage),
        "prefix": way.prefix,
        "bounds": asdict(way.bounds),
        "unpacks": task.unpacks,
    }
    with suppress(OSError):  # one that has gone says nothing either
        _send(helper, job)
    while helper.stdout is not None and (line := helper.stdout.readline()):
        if line.startswith(b"+"):
            way.watch.saw(int(line))
            continue
        answer = json.loads(line)
        if "error" in answer:
            raise _error(answer)
        return layer_intake.Prepared(**answer)
    raise errors.EngineUnavailable(
        "The process that unpacked a layer ended before it was done.",
        hint="look whether memory is short, then try again",
    )


def _send(child: subprocess.Popen[bytes], document: dict[str, Any]) -> None:
    if child.stdin is not None:
        child.stdin.write(json.dumps(document).encode() + b"\n")
        child.stdin.flush()


def _error(answer: dict[str, Any]) -> errors.ContainerizationError:
    kind = getattr(errors, str(answer["error"]), errors.InternalError)
    made: errors.ContainerizationError = kind(answer["message"], hint=answer["hint"], details=answer["details"])
    return made
