"""What do the tools that look into and act on single containers answer?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.tools._answer import Answer, Keep


class InspectAnswer(Answer):
    """A container from all sides; what is empty or the engine's default is left out."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"env": "first", "mounts": "first", "health_output": "last"}

    id: str
    name: str
    engine: str
    image: str
    image_id: str
    state: str
    exit_code: int | None = None
    oom_killed: bool | None = None
    error: str | None = None
    health: str | None = None
    health_failures: int | None = None
    health_output: str = ""
    created: str
    started: str | None = None
    finished: str | None = None
    restart_count: int = 0
    restart: str
    command: list[str]
    entrypoint: list[str] | None = None
    workdir: str | None = None
    hostname: str | None = None
    env: list[str] = []
    labels: dict[str, str] = {}
    mounts: list[str] = []
    networks: list[str] = []
    ports: list[str] = []
    limits: dict[str, int | float | str] = {}
    security: dict[str, bool | str | list[str]] = {}
    healthcheck: str | None = None
    log_driver: str | None = None
    own: bool = Field(False, description="Created by this server run")

    def text(self) -> str:
        shown = self.model_dump(mode="json", exclude_none=True, exclude={"status", "truncated"})
        return "\n".join(f"{key}: {_shown(value)}" for key, value in shown.items() if value not in ("", [], {}, False))


class ExecAnswer(Answer):
    """How a command in a container ended."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"stdout": "both", "stderr": "both"}

    container: str
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False
    killed: bool | None = None
    seconds: float

    def text(self) -> str:
        lines = [self._headline()]
        lines += [f"--- stdout ---\n{self.stdout}".rstrip("\n")] if self.stdout else []
        lines += [f"--- stderr ---\n{self.stderr}".rstrip("\n")] if self.stderr else []
        return "\n".join(lines)

    def _headline(self) -> str:
        if not self.timed_out:
            return f"exit code {self.exit_code} in {self.seconds:.2f} s"
        if self.killed:
            return f"timed out after {self.seconds:.1f} s and was killed; what it had said so far follows"
        return (
            f"timed out after {self.seconds:.1f} s; it could NOT be killed from here and may still run in "
            f"{self.container}: container_control(action='restart') ends it"
        )

    def cut_note(self, field: str, kept: int, total: int) -> str:
        return f"{field}: {kept:,} of {total:,} characters shown; filter in the command (head, tail, grep) for the rest"


class ControlAnswer(Answer):
    """A container's state before and after."""

    container: str
    action: str
    before: str
    after: str
    exit_code: int | None = None

    def text(self) -> str:
        code = f" (exit code {self.exit_code})" if self.exit_code is not None else ""
        return f"{self.container}: {self.before} -> {self.after}{code}"


class CopyAnswer(Answer):
    """What was copied."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"skipped": "first"}

    target: str
    files: int
    bytes: int
    skipped: list[str] = []

    def text(self) -> str:
        left_out = f"\nleft out (links that lead out, devices): {', '.join(self.skipped)}" if self.skipped else ""
        files = "1 file" if self.files == 1 else f"{self.files} files"
        return f"copied {files}, {sizes.show(self.bytes)}, to {self.target}{left_out}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(_shown(one) for one in value)
    return str(value)
