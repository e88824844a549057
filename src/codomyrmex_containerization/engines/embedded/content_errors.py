"""What is said when the file system, or what someone sent, stops the image store?"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from codomyrmex_containerization import errors

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ODD = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EMLINK)


def refused(name: str, reason: str) -> errors.InvalidArgument:
    """Return the error for an entry of an archive that is not let in."""
    return errors.InvalidArgument(
        f"The archive's entry {shown(name)} is refused: {reason}.", hint="remove it from the archive, or use another"
    )


def shown(name: str) -> str:
    """Return a name that an archive holds, fit to be read."""
    text = name.encode("utf-8", "replace").decode()
    return repr(text if len(text) <= 200 else f"{text[:197]}...")


@contextmanager
def explained(what: str, *, entry: str | None = None) -> Iterator[None]:
    """Turn an error of the file system into one of ours; `what` says what was being done.

    Raises EngineUnavailable (no space, no right, a broken disk), InvalidArgument (the entry cannot be on this file system).
    """
    try:
        yield
    except OSError as error:
        raise explanation(error, what, entry=entry) from error


def explanation(error: OSError, what: str, *, entry: str | None = None) -> errors.ContainerizationError:
    """Return the error of ours for one of the file system."""
    reason = error.strerror or str(error)
    where = f" at {shown(entry)}" if entry is not None else ""
    if error.errno in _FULL:
        return errors.EngineUnavailable(
            f"{what} stopped{where}: {reason}.", hint="free space where the engine keeps its images: remove images"
        )
    if error.errno in _ODD and entry is not None:
        return refused(entry, reason)
    return errors.EngineUnavailable(
        f"{what} failed{where}: {reason}.",
        hint="look at the folder of the engine's images: is it this user's, and writable?",
    )
