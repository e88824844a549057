"""What happens when a container's program has ended and no server of ours runs? conmon calls this, and restart policies are kept to.

`python -m codomyrmex_containerization.engines.embedded.exits DATA RUN ENGINE ID`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import life, objects, restarts

_ARGUMENTS = 5


def main(arguments: Sequence[str]) -> int:
    """Note the end; start the container again if its policy says so."""
    if len(arguments) != _ARGUMENTS:
        return 2
    data, run, engine, container_id = arguments[1:]
    house = life.House(objects.Folders(Path(data), Path(run)), engine=engine)
    try:
        record = house.look(container_id)
        if record.status != "restarting":
            return 0
        time.sleep(restarts.pause_seconds(record))
        with house.containers.hold(container_id) as now:
            if now.status == "restarting":
                house.begin(replace(now, restart_count=now.restart_count + 1))
    except errors.ContainerizationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
