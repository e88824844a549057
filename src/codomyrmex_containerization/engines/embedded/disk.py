"""Where does a container write, and how is it held to the disk space that it was given?

Without a limit in a folder beside its record. With one in a file of that size, with holes, that is a disk with a file system of its own:
what is full is that file system, and nothing else. It goes with the last mount of it, also when whoever made it is killed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import kernel, loops, overlay, userns
from codomyrmex_containerization.models import sizes

LEAST_BYTES = 8 * 1024**2
_IMAGE, _PLACE = "disk.img", "disk"
_MAKE = "mkfs.ext4"
_FEW_BYTES, _MANY_BYTES = 512 * 1024**2, 4 * 1024**3
_SECONDS = 60.0
_WAY_OUT = "leave disk out, and give the container a tmpfs of that size to write to (mounts 'tmpfs:/scratch:64m') with a read-only root"


def require(folder: Path, disk_bytes: int | None) -> None:
    """Raise Unsupported or InvalidArgument unless a container whose folder is in this one can be held to that much."""
    if disk_bytes is None:
        return
    here = os.statvfs(folder)
    most = here.f_blocks * here.f_frsize
    if not LEAST_BYTES <= disk_bytes <= most:
        raise errors.InvalidArgument(
            f"disk = {sizes.show(disk_bytes)} cannot be had here.",
            hint=f"give {sizes.show(LEAST_BYTES)} to {sizes.show(most)}, which is what the disk of the data folder holds",
        )
    if userns.is_inside():
        raise _unsupported("only root may mount a file system of its own for it")
    if not loops.are_there():
        raise _unsupported("this machine has no loop devices (/dev/loop-control)")
    if process.find(_MAKE) is None:
        raise _unsupported(f"{_MAKE} (e2fsprogs) is not installed")


def _unsupported(why: str) -> errors.Unsupported:
    return errors.Unsupported(f"embedded cannot limit disk here: {why}.", hint=_WAY_OUT)


@contextmanager
def room(folder: Path, disk_bytes: int | None) -> Iterator[tuple[Path, Path]]:
    """Give the folders that an overlay writes to, those of a container's own disk where it has one.

    The disk stays mounted after the block, unless that fails. Raises EngineUnavailable.
    """
    place = folder if disk_bytes is None else folder / _PLACE
    is_new = disk_bytes is not None and _mount(folder, disk_bytes)
    try:
        upper, work = place / "upper", place / "work"
        for one in (folder / "merged", upper, work):
            one.mkdir(mode=0o755, exist_ok=True)
        yield upper, work
    except BaseException:
        if is_new:
            with suppress(errors.EngineUnavailable):
                overlay.unmount(place)
        raise


def is_up(folder: Path) -> bool:
    """Whether a container's file system, or its disk alone, is mounted. Raises EngineUnavailable."""
    return overlay.is_mounted(folder / "merged") or overlay.is_mounted(folder / _PLACE)


def take_down(folder: Path) -> None:
    """Take away a container's file system and its disk's; no error when there is none. Raises EngineUnavailable."""
    overlay.unmount(folder / "merged")
    overlay.unmount(folder / _PLACE)


def upper(folder: Path, disk_bytes: int | None) -> Path:
    """Return where a container's own files are while its file system is mounted."""
    return (folder if disk_bytes is None else folder / _PLACE) / "upper"


def _mount(folder: Path, disk_bytes: int) -> bool:
    """Mount a container's disk; False when it is mounted already."""
    place, image = folder / _PLACE, folder / _IMAGE
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        if overlay.is_mounted(place):
            return False
        if not image.exists():
            _make(image, disk_bytes)
        with loops.attached(image) as device:
            # What is removed inside is given back: the file gets holes again.
            kernel.mount(device, str(place), "ext4", kernel.MS_NODEV, "discard")
        kernel.mount("", str(place), "", kernel.MS_PRIVATE)
        return True
    except OSError as error:
        raise errors.EngineUnavailable(
            f"The container's disk cannot be mounted: {error.strerror or error}.",
            hint=f"look at {image}: e2fsck mends it; the kernel needs ext4 and loop devices",
        ) from error


def _make(image: Path, disk_bytes: int) -> None:
    made = image.with_suffix(".new")  # half of a file system is none
    made.unlink(missing_ok=True)
    with open(made, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.truncate(disk_bytes)
    program = process.find(_MAKE)
    if program is None:
        raise _unsupported(f"{_MAKE} (e2fsprogs) is not installed")
    journal = 1 if disk_bytes < _FEW_BYTES else (4 if disk_bytes < _MANY_BYTES else 16)
    command = [str(program), "-q", "-F", "-m", "0", "-i", "8192", "-J", f"size={journal}", "-O", "^resize_inode"]
    command += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", str(made)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, cwd="/", env={})
    except subprocess.TimeoutExpired as error:
        raise OSError(None, f"{_MAKE} took longer than {_SECONDS:g} seconds") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(None, f"{_MAKE} failed: {said[-1] if said else done.returncode}")
    made.rename(image)
