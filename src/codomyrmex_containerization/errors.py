"""What went wrong: one tree of errors, each with a stable code, an exit status and the next step.

ContainerizationError
  InvalidArgument, CursorMismatch, CursorExpired      the caller can mend the call
  NotFound, Ambiguous, Conflict                        the named thing is absent, not unique, or in the way
  Refused, ConfirmationRequired, Declined, Unauthorized  it may not be done (yet)
  EngineUnavailable, Unsupported, DeadlineExceeded, Cancelled  a back end could not do it
  CommandFailed, BuildFailed, ScanFailed               it was done and it failed
  InternalError                                        a defect of ours
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ContainerizationError(Exception):
    """Base of all errors that leave this package.

    `code` is stable and snake_case, `exit_status` is what the command line exits with, `hint` is the next step,
    `retryable` says whether the same call may succeed later, `details` is small JSON for machines.
    """

    code: ClassVar[str] = "internal_error"
    exit_status: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, object] = dict(details or {})

    def text(self) -> str:
        """Say what failed, what it means and what to do, on one or a few lines."""
        return f"{self.message}\nNext: {self.hint}" if self.hint else self.message


class InvalidArgument(ContainerizationError):
    """An argument has the wrong type, form or name."""

    code = "invalid_argument"
    exit_status = 2


class CursorMismatch(ContainerizationError):
    """A cursor was made by another tool or for other arguments."""

    code = "cursor_mismatch"
    exit_status = 2


class CursorExpired(ContainerizationError):
    """A cursor points at something that is gone."""

    code = "cursor_expired"
    exit_status = 2


class NotFound(ContainerizationError):
    """The named container, image, volume, network or file does not exist."""

    code = "not_found"
    exit_status = 3


class Ambiguous(ContainerizationError):
    """A name or short id fits more than one object."""

    code = "ambiguous"
    exit_status = 3


class Conflict(ContainerizationError):
    """The object's state or a name already taken stands in the way."""

    code = "conflict"
    exit_status = 4


class Refused(ContainerizationError):
    """Policy or access mode does not allow the call; the message names the setting."""

    code = "refused"
    exit_status = 5


class ConfirmationRequired(ContainerizationError):
    """A destructive call needs a person's confirmation; `details` carries the token."""

    code = "confirmation_required"
    exit_status = 5


class Declined(ContainerizationError):
    """The person who was asked said no."""

    code = "declined"
    exit_status = 5


class Unauthorized(ContainerizationError):
    """A registry or back end wants credentials that are absent or wrong."""

    code = "unauthorized"
    exit_status = 5


class EngineUnavailable(ContainerizationError):
    """A back end (engine, cluster, registry, scanner) does not answer."""

    code = "engine_unavailable"
    exit_status = 6
    retryable = True


class Unsupported(ContainerizationError):
    """The engine at hand cannot do this; the hint names one that can."""

    code = "unsupported"
    exit_status = 7


class DeadlineExceeded(ContainerizationError):
    """The call's own time limit passed."""

    code = "deadline_exceeded"
    exit_status = 8
    retryable = True


class Cancelled(ContainerizationError):
    """The caller cancelled the call."""

    code = "cancelled"
    exit_status = 9


class CommandFailed(ContainerizationError):
    """A program that was run for the caller failed."""

    code = "command_failed"
    exit_status = 12


class BuildFailed(ContainerizationError):
    """An image build failed at a step that the message names."""

    code = "build_failed"
    exit_status = 12


class ScanFailed(ContainerizationError):
    """A scan could not be carried out; nothing is known about the target."""

    code = "scan_failed"
    exit_status = 12


class InternalError(ContainerizationError):
    """A defect of this package; the message carries an id that the log has too."""


def all_errors() -> tuple[type[ContainerizationError], ...]:
    """Return every error class of this module below the base, in the order of their definition."""
    return tuple(one for one in ContainerizationError.__subclasses__() if one.__module__ == __name__)
