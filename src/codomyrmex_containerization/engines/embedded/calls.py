"""How are calls of the contract written on a socket between two processes of ours? As frames of pickled values, one call to a connection.

Both ends are the same program of the same user, in a folder that nobody else may enter: what is read here is as trusted as this code.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

from anyio.abc import ByteSendStream
from anyio.streams.buffered import BufferedByteReceiveStream

from codomyrmex_containerization import errors

# plain: one result; progress: one result, and counts before it; stream, attached: items; sent: one result, pieces come from us;
# received: pieces come from there; build: items, and pieces come from us.
Kind = Literal["plain", "progress", "stream", "attached", "sent", "received", "build"]
_LENGTH_BYTES = 8
_LARGEST = 1 << 30


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked: a method of the contract and its arguments, without those that are functions."""

    kind: Kind
    method: str
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One of several answers, or a piece of a stream of bytes in either direction."""

    value: Any


@dataclass(frozen=True, slots=True)
class Passed:
    """How many bytes have gone by so far."""

    count: int


@dataclass(frozen=True, slots=True)
class Result:
    """What the call returned; for several answers and pieces: that there are no more."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Ready:
    """What is asked for is open: items follow."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that ended the call."""

    name: str
    message: str
    hint: str = ""
    details: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Write an error down."""
        if isinstance(error, errors.ContainerizationError):
            return cls(type(error).__name__, error.message, error.hint, error.details)
        return cls("InternalError", f"{type(error).__name__}: {error}")

    def error(self) -> errors.ContainerizationError:
        """Return the error again."""
        kind = getattr(errors, self.name, errors.InternalError)
        if not (isinstance(kind, type) and issubclass(kind, errors.ContainerizationError)):
            kind = errors.InternalError
        return kind(self.message, hint=self.hint, details=self.details)


Frame = Call | Item | Passed | Result | Ready | Failure


def encoded(frame: Frame) -> bytes:
    """Return a frame with its length before it."""
    data = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


async def send(stream: ByteSendStream, frame: Frame) -> None:
    """Send a frame. Raises what anyio raises when the other end is gone."""
    await stream.send(encoded(frame))


async def receive(stream: BufferedByteReceiveStream) -> Frame:
    """Receive a frame. Raises what anyio raises when the other end is gone, or stops in the middle."""
    length = int.from_bytes(await stream.receive_exactly(_LENGTH_BYTES), "big")
    if length > _LARGEST:
        raise errors.InternalError("A frame is too long.", hint="report this")
    frame = pickle.loads(await stream.receive_exactly(length))  # noqa: S301  from a process of ours
    if not isinstance(frame, Call | Item | Passed | Result | Ready | Failure):
        raise errors.InternalError("A frame is none of ours.", hint="report this")
    return frame
