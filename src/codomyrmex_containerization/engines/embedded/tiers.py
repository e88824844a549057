"""With whose programs are containers made here: those of a distribution, or our own alone?

full: crun, runc or youki. bare: a runtime of our own, which is Python and nothing else. conmon watches where it is installed and the
runtime is another's, else a monitor of our own does.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from codomyrmex_containerization import process
from codomyrmex_containerization.engines.embedded import own_syscalls, userns

Tier = Literal["full", "bare"]
Kind = Literal["crun", "runc", "youki", "own"]

TIERS: tuple[Tier, ...] = get_args(Tier)
INSTALLED: tuple[Kind, ...] = ("crun", "runc", "youki")
REMEDY = "apt-get install crun conmon slirp4netns uidmap"

MARK = "own.json"  # in the folder of a container that the runtime of our own has made: nobody else knows what to do with it

# They are run as programs, not imported.
_RUNTIME, _MONITOR = (Path(__file__).with_name(f"own_{name}.py") for name in ("runtime", "monitor"))
_ALONE = ("-I", "-S")  # nothing of the user's or the environment's is imported
_SYS_ADMIN = 1 << 21


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime that may work here; `starter` is what runs its file."""

    kind: Kind
    path: Path
    starter: tuple[str, ...] = ()


def candidates(tier: Tier) -> list[Candidate]:
    """Return the runtimes of a tier that are here."""
    if tier == "bare":
        return [Candidate("own", _RUNTIME, (sys.executable, *_ALONE))]
    return [Candidate(kind, path) for kind in INSTALLED if (path := process.find(kind)) is not None]


def own_monitor_command() -> tuple[str, ...]:
    """Return the command of the monitor of our own."""
    return (sys.executable, *_ALONE, str(_MONITOR))


def own_runtime_command() -> tuple[str, ...]:
    """Return the command of the runtime of our own."""
    return (sys.executable, *_ALONE, str(_RUNTIME))


def note(tier: Tier, held: Collection[str]) -> str:
    """Return what people are told of a tier that is not the highest, and of the limits that hold there; empty for the highest."""
    if tier == "full":
        return ""
    limits = f"the kernel holds {', '.join(sorted(held))}" if held else "no limits hold"
    return (
        f"tier {tier}: containers are made and watched by programs of our own, {limits}; the next higher tier: {REMEDY}"
    )


def monitor_notes(tier: Tier) -> tuple[str, ...]:
    """Return what people are told of who watches containers, where it is not who they would expect."""
    if tier != "full" or process.find("conmon") is not None:
        return ()
    return (f"conmon is not installed: a monitor of our own watches containers; {REMEDY}",)


def may_work() -> bool:
    """Say, without trying, whether a container could run here: what `probe` then really does."""
    may_mount = _may_mount() if os.geteuid() == 0 else userns.may_be_made()
    is_known = bool(own_syscalls.numbers(platform.machine())) and may_mount
    return is_known or (any(map(process.find, INSTALLED)) and (os.geteuid() == 0 or may_mount))


def _may_mount() -> bool:
    try:
        words = Path("/proc/self/status").read_text("ascii", "replace").split()
        return bool(int(words[words.index("CapEff:") + 1], 16) & _SYS_ADMIN)
    except (OSError, ValueError):
        return False  # no Linux, or none that shows itself
