"""How does a container get users of its own who are nobody outside, and files that are theirs all the same?

Each container has 65,536 numbers that no user of the host has; a number inside is another one outside. What is mounted for it is mounted
through that mapping, so that nothing on the disk changes its owner. Source: https://docs.kernel.org/filesystems/idmappings.html
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import binds, isolation, kernel, overlay

SIZE = 65_536
# Within what systemd sets aside for containers: https://systemd.io/UIDS-GIDS/
_FIRST = 1 << 30
_RANGES = 8_192
_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Range:
    """A container's numbers: 0 inside is `first` outside, and so on."""

    first: int

    def mappings(self) -> list[dict[str, int]]:
        """Return the mapping as the runtime is told it."""
        return [{"containerID": 0, "hostID": self.first, "size": SIZE}]


def range_of(container_id: str) -> Range:
    """Return the numbers of a container: always the same, and seldom another's."""
    return Range(_FIRST + SIZE * (int(container_id[:8], 16) % _RANGES))


@contextmanager
def namespace(numbers: Range) -> Iterator[int]:
    """Make a user namespace with these numbers and give its descriptor while the block lasts. Raises Unsupported."""
    unshare, waiter = process.find("unshare"), process.find("cat")
    if unshare is None or waiter is None:
        raise isolation.missing_wall("users of its own: unshare (util-linux) is not installed")
    try:
        descriptor = _made([str(unshare), "--user", str(waiter)], numbers)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise isolation.missing_wall(f"users of its own: no user namespace can be made ({said})") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _made(command: Sequence[str], numbers: Range) -> int:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
    ) as held:
        try:
            if held.stdin is None or held.stdout is None:
                raise OSError("it has no pipes")
            # It answers once it is in its namespace.
            held.stdin.write(b"\n")
            held.stdin.flush()
            if held.stdout.readline() != b"\n":
                raise OSError("unshare failed")
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{held.pid}/{name}").write_text(f"0 {numbers.first} {SIZE}\n")
            return os.open(f"/proc/{held.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            with suppress(OSError):
                held.communicate(timeout=_SECONDS)


def mount(
    layers: Sequence[Path],
    *,
    upper: Path,
    work: Path,
    target: Path,
    numbers: Range,
    places: binds.Places,
    container_id: str,
) -> None:
    """Show layers as `overlay.mount` does, owned by a container's own users. Raises EngineUnavailable, Unsupported."""
    tops = dict.fromkeys(one.parent for one in layers)
    with namespace(numbers) as users:
        try:
            shown = {top: places.new(container_id, f"layers{number}") for number, top in enumerate(tops)}
            for top, where in shown.items():
                _put(top, where, users)
            # Of all that can be written there, these users make only what is mounted at: their root is read-only.
            os.chown(upper, numbers.first, numbers.first)
            overlay.mount([shown[one.parent] / one.name for one in layers], upper=upper, work=work, target=target)
        except OSError as error:
            raise _no_mapping(error) from error
        finally:
            places.clear(container_id)  # the kernel keeps what the overlay is made of


def require(folder: Path) -> None:
    """Raise Unsupported, naming what is missing, unless files below a folder can be shown to a container as its own."""
    if os.geteuid() != 0:
        raise isolation.missing_wall("users of its own: only root can give it some")
    with namespace(Range(_FIRST)) as users:
        try:
            opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                copied = kernel.copy_of_mount(opened, recursive=False)
            finally:
                os.close(opened)
            try:
                kernel.set_attributes(copied, kernel.ATTR_NODEV, user_namespace=users)
            finally:
                os.close(copied)
        except OSError as error:
            raise _no_mapping(error) from error


def _put(source: Path, target: Path, users: int) -> None:
    opened = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        binds.put(opened, target, kernel.ATTR_NODEV, recursive=False, users=users)
    finally:
        os.close(opened)


def _no_mapping(error: OSError) -> errors.Unsupported:
    return isolation.missing_wall(
        f"files that are its users' own: the file system of the data folder has no idmapped mounts ({error.strerror})"
    )
