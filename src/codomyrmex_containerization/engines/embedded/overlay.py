"""How do read-only layers and a writable one become one file system? By the kernel's own overlay.

Source: https://docs.kernel.org/filesystems/overlayfs.html
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import kernel

MOST_LAYERS = 128
_EMPTY = ".empty"


def mount(
    layers: Sequence[Path], *, upper: Path | None, work: Path | None, target: Path, volatile: bool = False
) -> None:
    """Show layers, the lowest first, as one at `target`; without `upper` nothing can be written. Raises EngineUnavailable."""
    if len(layers) > MOST_LAYERS:
        raise errors.EngineUnavailable(
            f"The image has {len(layers)} layers, and the kernel takes {MOST_LAYERS}.", hint="build it with fewer steps"
        )
    try:
        _mount(layers, upper, work, target, volatile)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"The container's file system cannot be put together: {error.strerror}.",
            hint="the data folder must be on a file system that overlays work on (ext4, xfs, btrfs), and mounting be allowed",
        ) from error


def _mount(layers: Sequence[Path], upper: Path | None, work: Path | None, target: Path, volatile: bool) -> None:
    descriptors: list[int] = []
    try:
        # Numbers instead of paths: the kernel takes one page of options, and a path may hold its separators.
        # A layer that occurs twice counts where it lies uppermost; the kernel takes no folder twice.
        once = list(dict.fromkeys(reversed(_at_least(layers, target, 1 if upper is not None else 2))))
        for layer in once:
            descriptors.append(os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        options = ["lowerdir=" + ":".join(f"/proc/self/fd/{one}" for one in descriptors)]
        if upper is not None and work is not None:
            for name, folder in (("upperdir", upper), ("workdir", work)):
                descriptors.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                options.append(f"{name}=/proc/self/fd/{descriptors[-1]}")
        options += ["redirect_dir=off", "metacopy=off"]
        options += ["volatile"] if volatile else []
        options += ["userxattr"] if os.geteuid() != 0 else []
        kernel.mount("overlay", str(target), "overlay", kernel.MS_NODEV, ",".join(options))
    finally:
        for one in descriptors:
            os.close(one)
    kernel.mount("", str(target), "", kernel.MS_PRIVATE)


def _at_least(layers: Sequence[Path], target: Path, count: int) -> list[Path]:
    # An image made of nothing has no layer, and an overlay without an upper one wants two.
    found = list(layers)
    empty = target.parent / _EMPTY
    while len(found) < count:
        empty.mkdir(mode=0o755, exist_ok=True)
        found.insert(0, empty)
        empty = empty.with_name(f"{empty.name}.")
    return found


def unmount(target: Path) -> None:
    """Take a mount away; no error when there is none. What still uses it keeps it until it lets go."""
    while is_mounted(target):
        try:
            kernel.unmount(str(target))
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            with suppress(OSError):
                kernel.unmount(str(target), kernel.MNT_DETACH)


def is_mounted(target: Path) -> bool:
    """Whether a file system is mounted right at a folder."""
    try:
        here, above = target.lstat(), target.parent.lstat()
    except OSError:
        return False
    return here.st_dev != above.st_dev


@contextmanager
def mounted(layers: Sequence[Path], *, upper: Path | None, work: Path | None, target: Path) -> Iterator[Path]:
    """Show layers while the block lasts."""
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    mount(layers, upper=upper, work=work, target=target)
    try:
        yield target
    finally:
        unmount(target)
