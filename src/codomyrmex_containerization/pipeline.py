"""What can a pipeline do with an import alone? Handlers by name that print a tool's answer; nothing heavy is loaded before a call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from codomyrmex_containerization import errors
from codomyrmex_containerization.dispatch import plain

if TYPE_CHECKING:
    from codomyrmex_containerization.dispatch.call import Outcome


_RUNS_A_COMMAND = ("container_run", "container_exec")


class CliCommand(TypedDict):
    """What `cli_commands()` says of a command: `handler(**arguments)` prints and returns None."""

    help: str
    handler: Callable[..., None]


class Handler:
    """Calls a tool and prints its answer. `fixed` are arguments that the command's name implies."""

    # No dataclass: importing what makes them takes a third of the time that importing this may take.
    __slots__ = ("fixed", "tool")

    def __init__(self, tool: str, fixed: Mapping[str, Any] | None = None) -> None:
        self.tool = tool
        self.fixed = fixed or {}

    def __call__(self, *, json: bool = False, yes: bool = False, **arguments: Any) -> None:
        """Call the tool with its own arguments, print text or JSON, and raise what failed, a failed command in a container included.

        `yes` says that a person has agreed to what the call destroys. Raises ContainerizationError; it has been printed on stderr then.
        """
        try:
            outcome = plain.carry_out(self.tool, {**arguments, **self.fixed}, yes=yes)
            _print(self._shown(outcome, json=json), sys.stdout)
            if self.tool in _RUNS_A_COMMAND:
                _require_success(outcome)
        except errors.ContainerizationError as error:
            _print(f"{error.code}: {error.text()}", sys.stderr)
            raise

    def _shown(self, outcome: Outcome, *, json: bool) -> str:
        if not json:
            return outcome.text
        import json as encoding

        return encoding.dumps(plain.document(self.tool, outcome), indent=2)


def cli_commands() -> dict[str, CliCommand]:
    """Return the commands by name. A handler takes the arguments of its tool, and `json=False`, `yes=False`."""
    return {name: {"help": help, "handler": handler} for name, (help, handler) in _COMMANDS.items()}


def _control(action: str) -> Handler:
    return Handler("container_control", {"action": action})


_COMMANDS: dict[str, tuple[str, Handler]] = {
    "status": ("Show which engines and back ends answer right now", Handler("container_runtime_status")),
    "build": ("Build an image (image_name, dockerfile_path, tag, ...)", Handler("container_build")),
    "list": ("List containers (all, name, label, image, status, ...)", Handler("container_list")),
    "run": ("Run a container to its end, or start one (image, command, detach, ...)", Handler("container_run")),
    "exec": ("Run a command in a running container (container, command, ...)", Handler("container_exec")),
    "logs": ("Show a container's log (container, tail, since, grep, ...)", Handler("container_logs")),
    "inspect": ("Show one container from all sides (container)", Handler("container_inspect")),
    "start": ("Start a container (container)", _control("start")),
    "stop": ("Stop a container (container, timeout_seconds)", _control("stop")),
    "restart": ("Restart a container (container, timeout_seconds)", _control("restart")),
    "pause": ("Pause a container (container)", _control("pause")),
    "unpause": ("Let a paused container go on (container)", _control("unpause")),
    "rm": ("Remove a container (container, force, volumes, yes)", Handler("container_remove")),
    "cp": ("Copy between a container and the host (source, target, yes)", Handler("container_copy")),
    "images": ("List images (name, dangling, limit, cursor)", Handler("image_list")),
    "image": ("Show an image, its layers and what could shrink it (image)", Handler("image_inspect")),
    "tag": ("Give an image another name (source, target, yes)", Handler("image_tag")),
    "rmi": ("Remove an image (image, force, yes)", Handler("image_remove")),
}


def _require_success(outcome: Outcome) -> None:
    """Raise when what ran in a container did not end well: a pipeline must notice."""
    found = outcome.structured or {}
    if found.get("timed_out"):
        raise errors.DeadlineExceeded(
            f"The command was stopped after {found['seconds']:.1f} seconds.", hint="raise timeout_seconds"
        )
    code = found.get("exit_code")
    if code:
        raise errors.CommandFailed(
            f"The command ended with exit code {code}.", hint="its output says why", details={"exit_code": code}
        )


def _print(text: str, to: Any) -> None:
    to.write(f"{text}\n")
    to.flush()
