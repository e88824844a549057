"""How does a call look to plain Python: a dictionary or an exception, and the data that bridges look for on a function?

Nothing heavy is imported before the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from codomyrmex_containerization import errors

if TYPE_CHECKING:
    from codomyrmex_containerization.dispatch.call import Outcome

F = TypeVar("F", bound=Callable[..., dict[str, Any]])

CATEGORY = "containerization"
_PREFIX = "codomyrmex."
_AGREE = "ask the user; if they agree, repeat the call with yes=True"


def mcp_tool(*, toolset: str, schema: Mapping[str, Any]) -> Callable[[F], F]:
    """Hang on a plain function what bridges of the codomyrmex project look for; it stays the function that it was."""

    def mark(function: F) -> F:
        metadata = {
            "name": _PREFIX + function.__name__,
            "description": " ".join((function.__doc__ or "").partition("\n\n")[0].split()),
            "schema": dict(schema),
            "category": CATEGORY,
            "tags": [CATEGORY, toolset, "mcp"],
            "module": function.__module__,
            "version": "1.0",
            "deprecated_in": None,
        }
        function._mcp_tool = metadata  # type: ignore[attr-defined]  # data hung on a function
        function._mcp_tool_meta = metadata  # type: ignore[attr-defined]
        return function

    return mark


def answer(tool: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Call a tool and return its answer, or its error, as a dictionary. Never raises but for Control-C."""
    try:
        outcome = _call(tool, given)
    except errors.ContainerizationError as error:
        return error_document(error, {})
    except Exception as error:  # noqa: BLE001  the one place where a defect of this face becomes an answer
        return error_document(_defect(tool, error), {})
    if outcome.error is not None:
        return error_document(outcome.error, outcome.error_data)
    return document(tool, outcome)


def carry_out(tool: str, given: Mapping[str, Any], *, yes: bool = False, docker_host: str | None = None) -> Outcome:
    """Call a tool with room for a large answer. Raises the error that it answers, its secrets masked."""
    outcome = _call(tool, given, agreed=yes, roomy=True, docker_host=docker_host)
    if outcome.error is not None:
        raise _public(outcome) from None
    return outcome


def document(tool: str, outcome: Outcome) -> dict[str, Any]:
    """Return a success as a dictionary: the structured answer, and the keys beside it that callers of old rely on."""
    found = dict(outcome.structured or {})
    if tool == "container_list":
        # Documented as always there; an answer leaves out what is empty.
        found["containers"] = [{**row, "ports": row.get("ports", [])} for row in found["containers"]]
    if tool == "container_build":
        found["result"] = build_result(found)
    return found


def build_result(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a build made, as `DockerManager.build_image` answers it."""
    return {
        "success": True,
        "image_id": found["image_id"],
        "image_tags": [found["image"]],
        "build_logs": list(found.get("log", ())),
        "build_time": now(),
    }


def error_document(error: errors.ContainerizationError, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return an error as a dictionary: its message stands under `message` and `error`. `data` is its redacted form, where there is one."""
    message = data.get("message", error.message)
    head = {
        "status": "error",
        "code": error.code,
        "message": message,
        "error": message,
        "hint": data.get("hint", error.hint),
        "retryable": error.retryable,
    }
    return head | {name: value for name, value in data.items() if name not in head}


def now() -> str:
    """Return the time of day as ISO 8601 writes it."""
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _call(
    tool: str,
    given: Mapping[str, Any],
    *,
    agreed: bool = False,
    roomy: bool = False,
    docker_host: str | None = None,
) -> Outcome:
    from codomyrmex_containerization.dispatch import portal

    # None is every optional argument's default.
    arguments = {name: value for name, value in given.items() if value is not None}
    return portal.call(tool, arguments, agreed=agreed, roomy=roomy, docker_host=docker_host)


def _public(outcome: Outcome) -> errors.ContainerizationError:
    """Return the error without what has not been redacted: its cause, its details as they were."""
    assert outcome.error is not None  # noqa: S101  for the type checker
    data = outcome.error_data
    kind = type(outcome.error)
    hint = _AGREE if kind is errors.ConfirmationRequired else data["hint"]
    details = {name: value for name, value in data.items() if name not in ("code", "message", "hint", "retryable")}
    return kind(data["message"], hint=hint, details=details)


def _defect(tool: str, error: Exception) -> errors.InternalError:
    import logging
    import secrets

    id = secrets.token_hex(4)
    logging.getLogger(__name__).error("internal error %s in %s", id, tool, exc_info=error)
    return errors.InternalError(f"A defect stopped {tool} (id {id}; the log says more).", hint="report the id")
