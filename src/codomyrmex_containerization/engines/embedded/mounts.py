"""What is mounted below a folder, and how does the folder go without taking along what is mounted there?

Source: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from codomyrmex_containerization.engines.embedded import file_trees, kernel

_TABLE = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")
_UNESCAPED = re.compile(rb"[\s\\#]")  # what a path has another form for there


def below(folder: Path) -> list[Path]:
    """Return the mounts at and below a folder, the innermost first. Raises OSError where they cannot be known."""
    top = os.fsencode(os.path.realpath(folder))
    table = _TABLE.read_bytes()
    if _UNESCAPED.search(top) is None and top not in table:
        return []  # quick where there are many containers
    places = [line.split(b" ", 5)[4] for line in table.splitlines()]
    names = [_ESCAPED.sub(lambda one: bytes([int(one[1], 8)]), place) for place in places]
    found = [name for name in names if name == top or name.startswith(top + b"/")]
    return [Path(os.fsdecode(name)) for name in sorted(found, key=lambda name: -name.count(b"/"))]


def clear(folder: Path) -> bool:
    """Take away all mounts at and below a folder; False when some stay. What still uses one keeps it until it lets go."""
    try:
        found = below(folder)
        for place in found:
            with suppress(OSError):
                kernel.unmount(str(place), kernel.MNT_DETACH)
        return not found or not below(folder)
    except OSError:
        return False


def remove(folder: Path) -> bool:
    """Remove a folder with all in it, mounts first; False when it stays. Nothing is touched while something is mounted in it:

    it might be a folder of this host, which looks like any other.
    """
    if not clear(folder):
        return False
    with suppress(OSError):
        file_trees.remove(folder)  # as deep as a container's program has made it
    return not folder.exists()
