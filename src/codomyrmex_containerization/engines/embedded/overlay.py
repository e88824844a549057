"""How do read-only layers and a writable one become one file system? By the kernel's own overlay.

Source: https://docs.kernel.org/filesystems/overlayfs.html
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import kernel
from codomyrmex_containerization.engines.embedded.layers import overlay_prefix

MOST_LAYERS = 128
_EMPTY = ".empty"


def mount(layers: Sequence[Path], *, upper: Path | None, work: Path | None, target: Path) -> None:
    """Show layers, the lowest first, as one at `target`; without `upper` nothing can be written. Raises EngineUnavailable."""
    if len(layers) > MOST_LAYERS:
        raise errors.EngineUnavailable(
            f"The image has {len(layers)} layers, and the kernel takes {MOST_LAYERS}.", hint="build it with fewer steps"
        )
    try:
        _mount(layers, upper, work, target)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"The container's file system cannot be put together: {error.strerror}.", hint=_hint(error)
        ) from error


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return "this user may not mount here: run as root, or use docker or podman"
        case errno.ENODEV:
            return "this kernel has no overlays: load the module overlay, or use docker or podman"
        case errno.ENOENT:
            return "a layer's folder is gone: remove the image and get it again"
        case _:
            return "the data folder must be on a file system that overlays work on (ext4, xfs, btrfs), with room left"


def _mount(layers: Sequence[Path], upper: Path | None, work: Path | None, target: Path) -> None:
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
        options += ["redirect_dir=nofollow", "metacopy=off"]
        # Root of a user namespace may not write the marks of the host's root, and has its own.
        options += ["userxattr"] if overlay_prefix(target.parent).startswith("user.") else []
        kernel.mount("overlay", str(target), "overlay", kernel.MS_NODEV, ",".join(options))
    finally:
        for one in descriptors:
            os.close(one)
    try:
        kernel.mount("", str(target), "", kernel.MS_PRIVATE)
    except OSError:
        unmount(target)
        raise


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
    """Take a mount away; no error when there is none. What still uses it keeps it until it lets go. Raises EngineUnavailable."""
    while is_mounted(target):
        try:
            _unmount(str(target))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # somebody else was faster
                continue
            raise errors.EngineUnavailable(
                f"The container's file system cannot be taken away: {error.strerror}.",
                hint=f"look what is mounted at {target}, and whether this user may unmount it",
            ) from error


def _unmount(target: str) -> None:
    try:
        kernel.unmount(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        kernel.unmount(target, kernel.MNT_DETACH)


def is_mounted(target: Path) -> bool:
    """Whether a file system of its own is mounted right at a folder. Raises EngineUnavailable when that cannot be told."""
    try:
        return target.lstat().st_dev != target.parent.lstat().st_dev
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise errors.EngineUnavailable(
            f"Whether something is mounted at {target} cannot be told: {error.strerror}.",
            hint="look at the engine's data folder: is it this user's?",
        ) from error


@contextmanager
def mounted(layers: Sequence[Path], *, upper: Path | None, work: Path | None, target: Path) -> Iterator[Path]:
    """Show layers while the block lasts."""
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    mount(layers, upper=upper, work=work, target=target)
    try:
        yield target
    finally:
        unmount(target)
