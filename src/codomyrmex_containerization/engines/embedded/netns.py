"""How does a network namespace come to be, how is it kept without a process in it, and how does it go?

Source: https://man7.org/linux/man-pages/man7/network_namespaces.7.html
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import kernel, lives

T = TypeVar("T")

_SECONDS = 20.0
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_REQUEST = "16sH22x"
_REMEDY = "apt-get install util-linux iproute2, or use docker or podman"


def missing() -> str:
    """Say what is missing to make namespaces; empty where nothing is, as far as is known without making one."""
    return (
        ""
        if os.geteuid() == 0
        else "Only root may keep network namespaces.\nNext: run as root, or use docker or podman"
    )


def make(path: Path) -> None:
    """Make a network namespace in which loopback alone is up, kept at `path`. Raises Unsupported, EngineUnavailable."""
    remove(path)
    failure: list[OSError] = []

    def made() -> None:
        try:
            kernel.unshare(_CLONE_NEWNET)
            _raise_loopback()
            kernel.mount("/proc/thread-self/ns/net", str(path), "", kernel.MS_BIND)
        except OSError as error:
            failure.append(error)

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        # A namespace is a thread's own: one that ends right after has it made, and nobody else is moved.
        maker = threading.Thread(target=made, name="netns")
        maker.start()
        maker.join()
    except (OSError, RuntimeError) as error:
        remove(path)
        raise _failed(str(error)) from error
    if failure or not is_there(path):
        remove(path)
        raise _failed(str(failure[0].strerror if failure else "it was not kept"))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(_REQUEST, b"lo", 0))
        flags = int(struct.unpack(_REQUEST, asked)[1])
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(_REQUEST, b"lo", flags | _IFF_UP))


def run(path: Path, argv: Sequence[str]) -> None:
    """Run a program of this host's in a namespace. Raises EngineUnavailable, OSError."""
    enter = process.find("nsenter")
    if enter is None:
        raise errors.Unsupported("embedded enters networks with the program nsenter.", hint=_REMEDY)
    words = [str(enter), f"--net={path}", "--", *argv]
    marked = {**os.environ, **lives.mark()}
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, env=marked, check=False
    )
    if done.returncode != 0:
        raise _failed(done.stderr.decode(errors="replace").strip())


def inside(path: Path, work: Callable[[], T]) -> T:
    """Do something in a namespace; the programs that it starts are there too. Raises EngineUnavailable, and what it raises."""
    outcome: Future[T] = Future()

    def there() -> None:
        try:
            with path.open("rb") as held:
                kernel.enter(held.fileno())
        except OSError as error:
            outcome.set_exception(_failed(error.strerror or str(error), "entered"))
            return
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised where the work was asked for
            outcome.set_exception(error)

    # A thread that ends right after: an ordinary user's may not come back to the host's network.
    thread = threading.Thread(target=there, name="netns")
    thread.start()
    thread.join()
    return outcome.result()


def is_there(path: Path) -> bool:
    """Whether a namespace is kept at this path."""
    try:
        return path.stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def remove(path: Path) -> None:
    """Let a namespace go; it ends with the last process in it. Does nothing when there is none. Raises EngineUnavailable."""
    while is_there(path):
        try:
            kernel.unmount(str(path), kernel.MNT_DETACH)
        except OSError as error:
            raise errors.EngineUnavailable(
                f"A network namespace cannot be let go: {error.strerror}.",
                hint=f"look what holds {path}, then try again",
            ) from error
    with suppress(OSError):
        path.unlink()


def _failed(why: str, what: str = "made") -> errors.ContainerizationError:
    if os.geteuid() != 0:
        return errors.Unsupported(
            f"This user may make no network namespace: {why}.", hint="run as root, or use docker or podman"
        )
    return errors.EngineUnavailable(
        f"A network namespace cannot be {what}: {why}.", hint="check that this host allows namespaces and mounts"
    )
