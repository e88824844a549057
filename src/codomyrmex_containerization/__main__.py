"""Which face is wanted? With no argument and stdin not a terminal the server, else the command line."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codomyrmex_containerization import config


_OBJECTS_BEFORE_COLLECTING = 200_000
_USUAL_THRESHOLDS = gc.get_threshold()


def main() -> None:
    """Run the console script."""
    # No plugin of another package gets to see or change what is validated here, nor is any looked for.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Completion scripts call the program without arguments: click knows them by these variables.
    completing = any(name.startswith("_") and name.endswith("_COMPLETE") for name in os.environ)
    if len(sys.argv) == 1 and not sys.stdin.isatty() and not completing:
        _serve_as_set_up()
        return
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTING)  # a command is over before there is much to collect
    from codomyrmex_containerization.cli import app

    app.main(serve=_serve)


def _serve(loaded: config.LoadedSettings) -> None:
    # Nothing that is imported or built now is ever garbage, and looking for it takes a tenth of the start. The server
    # enables it again.
    gc.disable()
    gc.set_threshold(*_USUAL_THRESHOLDS)
    # The faces know nothing of each other: this is where the command line gets the server from.
    from codomyrmex_containerization.server import app

    app.serve(loaded)


def _serve_as_set_up() -> None:
    from codomyrmex_containerization import config, errors

    try:
        _serve(config.load())
    except errors.ContainerizationError as error:
        sys.stderr.write(f"{error.code}: {error.text()}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
