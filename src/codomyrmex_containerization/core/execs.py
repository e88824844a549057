"""What does a command inside a running container say, how does it end, and how is it ended?"""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import output
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import ContainerState
from codomyrmex_containerization.models.details import ExecSpec

_END_SECONDS = 10.0
_SETTLE_SECONDS = 5.0


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
            hint="container_control(action='start') or 'unpause' first",
        )
    began = time.monotonic()
    stdout, stderr = output.Capture(), output.Capture()
    exec_id = await engine.create_exec(state.id, spec)
    ended = False
    killed = False
    try:
        with anyio.move_on_after(timeout_seconds):
            async with engine.start_exec(exec_id, stdin=stdin) as attachment:
                async for frame in attachment.frames():
                    (stdout if frame.stream == "stdout" else stderr).add(frame.data)
            exit_code = await _exit_code(engine, exec_id)
            ended = True
    finally:
        if not ended:
            killed = await _end(engine, state.id, exec_id)
    _require_started(exit_code if ended else None, stdout, spec)
    return ExecResult(
        exit_code=exit_code if ended else None,
        stdout=stdout.text(),
        stderr=stderr.text(),
        timed_out=not ended,
        killed=killed,
        seconds=time.monotonic() - began,
    )


def _require_started(exit_code: int | None, stdout: output.Capture, spec: ExecSpec) -> None:
    # An engine that cannot start the program says so on its standard output, with the exit code of a shell.
    said = stdout.text() if exit_code in (126, 127) else ""
    if said.startswith("OCI runtime exec failed"):
        raise errors.CommandFailed(
            f"{spec.command[0]!r} could not be started: {said.strip().rpartition('exec: ')[2][:300]}",
            hint="check that the program is in the container (its path, its shell) and executable",
            details={"exit_code": exit_code},
        )


async def _exit_code(engine: base.Engine, exec_id: str) -> int | None:
    # The output may end a moment before the engine has noted the exit.
    pause = 0.005
    with anyio.move_on_after(_SETTLE_SECONDS):
        while True:
            now = await engine.inspect_exec(exec_id)
            if not now.running:
                return now.exit_code
            await anyio.sleep(pause)
            pause = min(pause * 2, 0.2)
    raise errors.EngineUnavailable(
        f"{engine.name} closed the command's output and does not say how the command ended.",
        hint="the command may still run with its output closed; look with container_exec(['ps'])",
    )


async def _end(engine: base.Engine, container: str, exec_id: str) -> bool:
    with anyio.move_on_after(_END_SECONDS, shield=True):
        try:
            return await engine.end_exec(container, exec_id)
        except errors.ContainerizationError:
            return False
    return False
