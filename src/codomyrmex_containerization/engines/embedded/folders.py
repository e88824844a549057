"""Where does this engine keep what it has, and where what a reboot may take?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from codomyrmex_containerization.engines.embedded import objects

_NAME = "codomyrmex-containerization"
_DIGITS = 8


def of(data: Path, environ: Mapping[str, str]) -> objects.Folders:
    """Return the folders that belong to a data folder; what runs is kept in memory where there is a place for that."""
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:_DIGITS]
    if os.geteuid() == 0:
        return objects.Folders(data, Path("/run") / _NAME / name)
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and os.access(runtime, os.W_OK):
        return objects.Folders(data, Path(runtime) / _NAME / name)
    return objects.Folders(data, data / "run")
