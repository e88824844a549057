"""What does a folder tree weigh, what does a container's writable layer change, and how does a tree go, however deep it is?"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import layer_folders

DEEPEST = layer_folders.MOST_DEPTH
Kind = Literal["A", "C", "D"]
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


# ----------------------------------------------------------------------------------------------------------------- size


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder; a file of several names counts once, what goes meanwhile does not count.

    Raises NotFound, EngineUnavailable, Unsupported (folders too deep in one another).
    """
    with _explained(folder):
        descriptor = os.open(folder, _FOLDER)
        try:
            return _size(descriptor, set(), 0)
        finally:
            os.close(descriptor)


def _size(folder: int, seen: set[tuple[int, int]], depth: int) -> int:
    _check(depth)
    total = 0
    for name in os.listdir(folder):
        found = layer_folders.look(folder, name)
        if found is None:
            continue
        if stat.S_ISDIR(found.st_mode):
            with _vanishing(), _opened(folder, name) as inner:
                total += _size(inner, seen, depth + 1)
        elif not stat.S_ISCHR(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            if found.st_nlink > 1:
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            total += found.st_size
    return total


# -------------------------------------------------------------------------------------------------------------- changes


def changes(upper: Path, layers: Sequence[Path]) -> list[tuple[Kind, str]]:
    """Return what an overlay's writable folder adds, changes and deletes in the layers (the lowest first), by path.

    A deleted folder stands for all that was in it. Raises NotFound, EngineUnavailable, Unsupported (folders too deep in one another).
    """
    with _explained(upper), ExitStack() as stack:
        below = []
        for layer in reversed(layers):
            below.append(os.open(layer, _FOLDER))
            stack.callback(os.close, below[-1])
        top = os.open(upper, _FOLDER)
        stack.callback(os.close, top)
        found = _Changes(below).within(top, "", list(range(len(below))), hides=False, depth=0)
        return sorted(found, key=lambda one: os.fsencode(one[1]))


class _Changes:
    """Compares one folder after the other with those of the layers, the topmost first, that have a real folder at that path."""

    def __init__(self, layers: list[int]) -> None:
        self._layers = layers

    def within(self, folder: int, path: str, here: list[int], *, hides: bool, depth: int) -> Iterator[tuple[Kind, str]]:
        """Yield the changes in a folder; one that `hides` shows nothing of the layers."""
        _check(depth)
        names = os.listdir(folder)
        for name in names:
            inner = f"{path}/{name}"
            found = layer_folders.look(folder, name)
            if found is None:
                continue
            was, below = self._below(inner, here)
            if layer_folders.is_whiteout(found):
                if was:
                    yield "D", inner
                continue
            yield ("C" if was else "A"), inner
            if stat.S_ISDIR(found.st_mode):
                with _vanishing(), _opened(folder, name) as opened:
                    yield from self.within(opened, inner, below, hides=hides or _is_opaque(opened), depth=depth + 1)
        if hides:
            for name in self._all(path, here) - set(names):
                yield "D", f"{path}/{name}"

    def _below(self, path: str, here: list[int]) -> tuple[bool, list[int]]:
        """Say whether the layers have a path whose folder is a real one in those of `here`, and which of them a folder there."""
        folders: list[int] = []
        for layer in here:
            found = layer_folders.look(self._layers[layer], path.lstrip("/"))
            if found is None:
                continue
            if layer_folders.is_whiteout(found):
                break
            if not stat.S_ISDIR(found.st_mode):
                return True, folders
            folders.append(layer)
            with _opened(self._layers[layer], path.lstrip("/")) as opened:
                if _is_opaque(opened):
                    break
        return bool(folders), folders

    def _all(self, path: str, here: list[int]) -> set[str]:
        names = set()
        for layer in here:
            with _opened(self._layers[layer], path.lstrip("/") or ".") as opened:
                names.update(os.listdir(opened))
        return {name for name in names if self._below(f"{path}/{name}", here)[0]}


def _is_opaque(folder: int) -> bool:
    for name in _OPAQUE:
        with suppress(OSError):
            if os.getxattr(folder, name) == b"y":
                return True
    return False


# -------------------------------------------------------------------------------------------------------------- removal


def remove(folder: Path) -> None:
    """Remove a folder with all in it, be it gone already. Raises OSError: EBUSY when something is mounted in it.

    Folders in it are first brought up to its top: they may be deeper in one another than a path, or a stack of calls, can be long.
    """
    try:
        top = _open_to_empty(folder.parent, folder.name)
    except FileNotFoundError:
        return
    try:
        _remove_files(top, top)
        waiting = os.listdir(top)
        while waiting:
            name = waiting.pop()
            with suppress(FileNotFoundError):
                inner = _open_to_empty(folder, name)
                try:
                    if os.fstat(inner).st_dev != os.fstat(top).st_dev:
                        raise OSError(errno.EBUSY, "something is mounted here", name)
                    waiting += _remove_files(inner, top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        folder.rmdir()


def _remove_files(folder: int, top: int) -> list[str]:
    """Empty a folder; return what its folders are called at the top."""
    moved = []
    for name in os.listdir(folder):
        found = layer_folders.look(folder, name)
        if found is None:
            continue
        if not stat.S_ISDIR(found.st_mode):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
        elif folder != top:
            if os.geteuid() != 0:
                os.chmod(name, 0o700, dir_fd=folder)
            moved.append(secrets.token_hex(16))
            os.rename(name, moved[-1], src_dir_fd=folder, dst_dir_fd=top)
    return moved


def _open_to_empty(parent: Path, name: str) -> int:
    path = parent / name
    if os.geteuid() != 0 and not path.is_symlink():
        with suppress(FileNotFoundError):
            path.chmod(0o700)
    return os.open(path, _FOLDER)


# -------------------------------------------------------------------------------------------------------------- details


@contextmanager
def _opened(folder: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _vanishing() -> Iterator[None]:
    """Let pass what a process of the container took away after it was seen."""
    try:
        yield
    except OSError as error:
        if error.errno not in _VANISHED:
            raise


def _check(depth: int) -> None:
    if depth > DEEPEST:
        raise errors.Unsupported(
            f"There are more than {DEEPEST} folders in one another.", hint="look at it with a command in the container"
        )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise errors.NotFound(f"The folder {folder.name} is gone.", hint="it was removed meanwhile") from error
    except OSError as error:
        raise errors.EngineUnavailable(
            f"The folder {folder.name} cannot be read: {error.strerror or error}.",
            hint="look at the engine's data folder: is it this user's?",
        ) from error
