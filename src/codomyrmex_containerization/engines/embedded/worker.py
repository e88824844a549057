"""Who does an ordinary user's containers, if only root of a namespace can? This process: it enters one and serves the contract on a socket.

`python -m codomyrmex_containerization.engines.embedded.worker DATA RUN ENGINE TIMEOUT REGISTRIES` says in a line on stdout where it
listens, or what is wrong, and ends when its stdin does: with the process that started it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import userns
from codomyrmex_containerization.engines.embedded.objects import Folders

_ARGUMENTS = 6


def main(arguments: Sequence[str]) -> int:
    """Enter the namespaces, then serve until stdin ends."""
    if len(arguments) != _ARGUMENTS:
        return 2
    data, run, engine, timeout, registries = arguments[1:]
    folders = Folders(Path(data), Path(run))
    try:
        _make(folders)
        world = userns.enter(folders.run)
        # Only now: what is imported here may start threads, and a process with threads enters no namespace of users.
        from codomyrmex_containerization.engines.embedded import serving

        serving.serve(folders, world, engine=engine, timeout_seconds=float(timeout), registries=registries, say=_say)
    except errors.ContainerizationError as error:
        _say(error=[type(error).__name__, error.message, error.hint])
        return 1
    return 0


def _make(folders: Folders) -> None:
    """Make the folders that nobody else may enter, before anything makes them on its way to one below."""
    for folder in (folders.data, folders.run):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The folder {folder} cannot be made: {error.strerror}.", hint="make room and check the rights above it"
            ) from error


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
