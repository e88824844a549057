"""Which program starts the containers that a reboot has ended? This one, beside the server that found them.

`python -m codomyrmex_containerization.engines.embedded.revive DATA RUN ENGINE`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import life, objects, revivals

_ARGUMENTS = 4


def main(arguments: Sequence[str]) -> int:
    """Start what is owed."""
    if len(arguments) != _ARGUMENTS:
        return 2
    data, run, engine = arguments[1:]
    try:
        house = life.House(objects.Folders(Path(data), Path(run)), engine=engine)
        return 1 if revivals.start(house.containers, house.begin) else 0
    except errors.ContainerizationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
