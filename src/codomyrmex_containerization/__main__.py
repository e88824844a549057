"""Which face is wanted? With no argument and stdin not a terminal the server, else the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the console script."""
    if len(sys.argv) == 1 and not sys.stdin.isatty():
        _serve()
        return
    from codomyrmex_containerization.cli import app

    app.main()


def _serve() -> None:
    from codomyrmex_containerization import config, errors

    try:
        loaded = config.load()
        from codomyrmex_containerization.server import app

        app.serve(loaded)
    except errors.ContainerizationError as error:
        sys.stderr.write(f"{error.code}: {error.text()}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
