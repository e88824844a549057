"""What does a command inside a running container say, how does it end, and how is it ended?"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import output
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import ContainerState
from codomyrmex_containerization.models.details import ExecSpec

_END_SECONDS = 10.0

_NOT_STARTED = "OCI runtime exec failed"
_NO_USER = re.compile(r"unable to find (user|group) |.*no matching entries in (passwd|group) file")
_NO_FOLDER = re.compile(r"chdir to cwd|Cwd must be an absolute path")


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended. After a time-out `exit_code` is None and `killed` says whether it was really ended."""

    exit_code: int | None
    stdout: str
    stderr: str
    timed_out: bool
    killed: bool
    seconds: float


async def execute(
    engine: base.Engine, state: ContainerState, spec: ExecSpec, *, stdin: bytes | None, timeout_seconds: float
) -> ExecResult:
    """Run a command in a container; at the time-out, and when the caller goes away, it is killed.

    Raises Conflict (the container does not run), CommandFailed (no such program).
    """
    if state.status != "running":
        raise errors.Conflict(
            f"Container {state.name} is {state.status}; commands run only in a running one.",
            hint=f"container_control(action={'unpause' if state.status == 'paused' else 'start'!r}) first",
        )
    began = time.monotonic()
    stdout, stderr = output.Capture(), output.Capture()
    exec_id = await engine.create_exec(state.id, spec)
    exit_code: int | None = None
    ended = killed = False
    try:
        with anyio.move_on_after(timeout_seconds):
            async with engine.start_exec(exec_id, stdin=stdin) as attachment:
                async for frame in attachment.frames():
                    (stdout if frame.stream == "stdout" else stderr).add(frame.data)
            exit_code = await _exit_code(engine, state.name, exec_id)
            ended = True
        if not ended:
            # What it left in the background may hold the output open when the command itself has ended.
            now = await engine.inspect_exec(exec_id)
            ended, exit_code = now.exit_code is not None, now.exit_code
    finally:
        if not ended:
            killed = await _end(engine, state.id, exec_id)
    _require_started(exit_code, stdout, spec)
    return ExecResult(
        exit_code=exit_code,
        stdout=stdout.text(),
        stderr=stderr.text(),
        timed_out=not ended,
        killed=killed,
        seconds=time.monotonic() - began,
    )


def _require_started(exit_code: int | None, stdout: output.Capture, spec: ExecSpec) -> None:
    # An engine that cannot start the program says so on its standard output, with the exit code of a shell.
    said = stdout.text().strip() if exit_code in (126, 127) else ""
    why = said.rpartition("exec failed: ")[2].removesuffix(": unknown")[:300]
    if spec.user is not None and _NO_USER.match(said):
        raise errors.InvalidArgument(
            f"There is no user {spec.user!r} in the container: {why}", hint="use a name in its /etc/passwd, or numbers"
        )
    if not said.startswith(_NOT_STARTED):
        return
    if spec.workdir is not None and _NO_FOLDER.search(why):
        raise errors.InvalidArgument(
            f"The command could not be started in {spec.workdir!r}: {why}",
            hint="workdir is an absolute path of a folder that is in the container",
        )
    raise errors.CommandFailed(
        f"{spec.command[0]!r} could not be started: {why}",
        hint="check that the program is in the container (its path, its shell) and executable",
        details={"exit_code": exit_code},
    )


async def _exit_code(engine: base.Engine, container: str, exec_id: str) -> int | None:
    # The output ends before the engine has noted the exit, and long before it when the program closes its output.
    pause = 0.005
    while True:
        try:
            now = await engine.inspect_exec(exec_id)
        except errors.NotFound as error:
            raise errors.CommandFailed(
                f"Container {container} went away while the command ran.", hint="look at what is there, container_list"
            ) from error
        if not now.running and now.exit_code is not None:
            return now.exit_code
        await anyio.sleep(pause)
        pause = min(pause * 2, 0.2)


async def _end(engine: base.Engine, container: str, exec_id: str) -> bool:
    with anyio.move_on_after(_END_SECONDS, shield=True):
        try:
            return await engine.end_exec(container, exec_id)
        except errors.ContainerizationError:
            return False
    return False
