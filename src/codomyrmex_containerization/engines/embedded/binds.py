"""How do folders of this host get into a container without anybody leading the mount elsewhere meanwhile?

Each is opened once, no link on the way, and what was opened is mounted at a place that only this engine can reach. The runtime is told
that place: what becomes of the names afterwards changes nothing. The places last only until the runtime has mounted them in turn, and lie
where nobody ever removes a folder with all that is in it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import kernel, state
from codomyrmex_containerization.models.container import MountPoint


class Places:
    """Where mounts are made that lead into containers; those of a process that died are taken away by `sweep`.

    `own` is the folder whose content only this engine changes: on the way to it there may be links.
    """

    def __init__(self, folder: Path, *, own: Path) -> None:
        self._top = folder
        self._own = own

    def new(self, container_id: str, name: str) -> Path:
        """Make a folder, empty, to mount at. Raises EngineUnavailable."""
        return self._made(self._folder(container_id) / name)

    def let_through(self, container_id: str, source: Path, *, group: int) -> Path:
        """Mount a container's root where a group of its own reaches it, though its folder is shut. Raises EngineUnavailable."""
        target = self.new(container_id, "root")
        try:
            self._top.chmod(0o711)
            os.chown(target.parent, 0, group)
            target.parent.chmod(0o710)
            opened = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                put(opened, target, 0, recursive=False, users=None)
            finally:
                os.close(opened)
        except OSError as error:
            raise errors.EngineUnavailable(
                f"The container's file system cannot be shown to its users: {error.strerror}.",
                hint=f"look at {self._top}",
            ) from error
        return target

    def put(
        self, container_id: str, mounts: Sequence[MountPoint], *, users: int | None = None
    ) -> tuple[MountPoint, ...]:
        """Mount what mounts name, and return them with that for their source.

        With `users`, a user namespace, volumes are owned as it has it: they are of containers alone. What is the host's stays whose it is.
        Raises Refused (a link on the way), Conflict (it is gone), EngineUnavailable.
        """
        found = []
        for number, one in enumerate(mounts):
            mapped = users if one.type == "volume" else None
            if one.type == "bind" or mapped is not None:
                target = self._folder(container_id) / str(number)
                _put(one, self._straight(one.source), target, mapped)
                one = replace(one, source=str(target))
            found.append(one)
        return tuple(found)

    def clear(self, container_id: str) -> None:
        """Take away what was mounted for a container; what has mounted it in turn keeps it."""
        for folder in self._top.glob(f"{container_id}.*"):
            _clear(folder)

    def sweep(self) -> None:
        """Take away what processes have left that are no more."""
        for folder in self._top.glob("*.*.*"):
            _, pid, ticks = folder.name.split(".")
            if not pid.isdigit() or str(state.process_start(int(pid))) != ticks:
                _clear(folder)

    def _straight(self, source: str) -> str:
        path = Path(source)
        return str(self._own.resolve() / path.relative_to(self._own)) if path.is_relative_to(self._own) else source

    def _folder(self, container_id: str) -> Path:
        pid = os.getpid()
        return self._top / f"{container_id}.{pid}.{state.process_start(pid)}"

    def _made(self, folder: Path) -> Path:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.EngineUnavailable(
                f"{folder} cannot be made: {error.strerror}.", hint="make room and check the rights of its folder"
            ) from error
        return folder


def require(source: str) -> None:
    """Raise unless a folder or file can be mounted: InvalidArgument (it is not there), Refused (a part of its name is a link)."""
    try:
        os.close(kernel.open_without_links(source, os.O_PATH))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise errors.Refused(
                f"{source} may not be mounted: a part of it is a link.", hint="name the folder that it leads to"
            ) from error
        raise errors.InvalidArgument(
            f"The bind source path does not exist: {source}.", hint="make it first, or name another one"
        ) from error


def _clear(folder: Path) -> None:
    # Whether anything is mounted cannot be seen: it may be of the file system that lies below it. What is not empty stays.
    with suppress(OSError):
        for one in folder.iterdir():
            with suppress(OSError):
                while True:
                    kernel.unmount(str(one), kernel.MNT_DETACH)
            with suppress(OSError):
                one.rmdir() if one.is_dir() else one.unlink()
        folder.rmdir()


def _put(one: MountPoint, source: str, target: Path, users: int | None) -> None:
    try:
        opened = kernel.open_without_links(source, os.O_PATH)
    except OSError as error:
        raise _failure(one, error) from error
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            target.mkdir(mode=0o700, exist_ok=True)
        else:
            target.touch(mode=0o600)
        # Read-only is what is mounted below it too, which the runtime would leave as it is.
        attributes = kernel.ATTR_NODEV | (kernel.ATTR_RDONLY if one.read_only else 0)
        put(opened, target, attributes, recursive=users is None, users=users)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"{one.source} cannot be mounted: {error.strerror}.", hint="look at the reason, or leave that mount out"
        ) from error
    finally:
        os.close(opened)


def put(opened: int, target: Path, attributes: int, *, recursive: bool, users: int | None) -> None:
    """Mount an open place somewhere else. Raises OSError."""
    copied = kernel.copy_of_mount(opened, recursive=recursive)
    try:
        kernel.set_attributes(copied, attributes, user_namespace=users)
        kernel.put_mount(copied, str(target))
    finally:
        os.close(copied)


def _failure(one: MountPoint, error: OSError) -> errors.ContainerizationError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return errors.Refused(
            f"{one.source} may not be mounted: a part of it was replaced by a link since it was looked at.",
            hint="find out who changed it, then create the container anew",
        )
    return errors.Conflict(
        f"The bind source path cannot be reached any more: {one.source}: {error.strerror}.",
        hint="put it back, or create the container anew",
    )
