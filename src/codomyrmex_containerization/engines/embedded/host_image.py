"""What is the image `host`? This machine's own programs, to be run isolated where there is no image at all.

Programs and libraries are mounted read-only and without set-user-id; accounts and the rest of /etc are made here. Nothing of a user's
is in it: no home, no settings, no /opt, no /srv. It is never exported, pushed or built upon.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import objects
from codomyrmex_containerization.engines.embedded.content_config import host_architecture

NAMES = ("host", "host:latest")
ID = "host"
_VERSION = "1"
_PROGRAMS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What programs of a distribution need to find their libraries, each other and the authorities of TLS; the same for every user.
_SETTINGS = ("etc/ld.so.cache", "etc/alternatives", "etc/ssl/certs")
_FOLDERS = {
    "dev": 0o755,
    "etc": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "var": 0o755,
    "var/tmp": 0o1777,
}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def is_meant(reference: str) -> bool:
    """Whether a reference means this image."""
    return reference in NAMES


def image() -> objects.Image:
    """Return the image; it has no layers of its own."""
    config = objects.ImageConfig(
        env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"), command=("/bin/sh",)
    )
    return objects.Image(ID, "", None, "linux", host_architecture(), "", config, (), (), NAMES[1:])


def folder(data: Path) -> Path:
    """Return the folder that is its file system where nothing is mounted; made when it is not there. Raises EngineUnavailable."""
    wanted = data / f"host-{_VERSION}"
    if wanted.is_dir():
        return wanted
    beside = data / f".host.{secrets.token_hex(4)}"
    try:
        _make(beside)
        beside.rename(wanted)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if not wanted.is_dir():
            raise errors.EngineUnavailable(
                f"The image of this machine cannot be made: {error.strerror}.", hint=f"make room in {data}"
            ) from error
    return wanted


def binds() -> list[tuple[str, str]]:
    """Return what is mounted read-only: places here and in a container."""
    found = [(f"/{name}", f"/{name}") for name in _PROGRAMS if _is_own_folder(Path("/") / name)]
    return found + [(f"/{name}", f"/{name}") for name in _SETTINGS if (Path("/") / name).exists()]


def _make(top: Path) -> None:
    top.mkdir(mode=0o755)
    for name, mode in _FOLDERS.items():
        (top / name).mkdir(parents=True, exist_ok=True)
        (top / name).chmod(mode)
    for name, text in _FILES.items():
        (top / name).write_text(text)
        (top / name).chmod(0o644)
    for name in _PROGRAMS:
        here = Path("/") / name
        if here.is_symlink():  # as where /bin is in /usr
            (top / name).symlink_to(os.readlink(here))
        elif here.is_dir():
            (top / name).mkdir(exist_ok=True)
    for name in _SETTINGS:
        here = Path("/") / name
        with suppress(OSError):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).mkdir() if here.is_dir() else (top / name).touch()


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
