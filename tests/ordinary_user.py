"""Who is the ordinary user whose containers the embedded engine runs in the tests? One made for it, with folders of their own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

import codomyrmex_containerization
from codomyrmex_containerization import process
from codomyrmex_containerization.engines.embedded import objects
from codomyrmex_containerization.engines.embedded.rootless import RootlessEngine
from codomyrmex_containerization.models.engine import Endpoint
from tests import backends, embedded, leftovers, podman_user

KIND = "ordinary"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class OrdinaryUser:
    """A user, everything of theirs in one folder, and a process that holds mounts by which they can run this Python."""

    folder: Path
    user: pwd.struct_passwd
    holder: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What the user's programs get."""
        source = Path(codomyrmex_containerization.__file__).parents[1]
        return {
            "PATH": _PATH,
            "HOME": str(self.folder / "home"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "PYTHONPATH": str(source),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """Return a command as this user's."""
        who = (f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups")
        words = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--", "setpriv", *who, "env", "-i"]
        return [*words, *(f"{name}={value}" for name, value in self.environment.items()), *map(str, arguments)]

    def processes(self) -> list[int]:
        """Return the processes that run as this user, or as the user's containers."""
        owned = podman_user.ids_of(self.user)
        found = []
        for one in Path("/proc").iterdir():
            with suppress(OSError):
                if one.name.isdigit() and any(one.stat().st_uid in ids for ids in owned):
                    found.append(int(one.name))
        return found

    def engine(self, name: str = "data") -> RootlessEngine:
        """Return an engine of this user's, with a data folder of that name."""
        data = self.folder / "home" / name
        endpoint = Endpoint("embedded", f"file://{data}", "the tests", kind="embedded")
        folders = objects.Folders(data, self.folder / "run" / name)
        seconds = embedded.TIMEOUT_SECONDS
        return RootlessEngine(endpoint, folders, timeout_seconds=seconds, before=self.command([]))

    def shared(self, name: str) -> Path:
        """Return a folder that the user and the tests write to."""
        folder = self.folder / "shared" / name
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, self.user.pw_uid, self.user.pw_gid)
        return folder

    def base_image(self, engine: RootlessEngine) -> str:
        """Give an engine the base image and return its name."""
        archive = self.folder / "base.tar"
        if not archive.exists():
            root = embedded.engine(self.folder / "images")
            embedded.base_image(root, self.folder)
            root.house.images.save([embedded.IMAGE], archive, format="oci-archive")
            archive.chmod(0o644)

        async def bring() -> None:
            await engine.load_image(archive)

        with ThreadPoolExecutor(1) as other:  # an event loop may be running in this thread
            other.submit(anyio.run, bring).result()
        return embedded.IMAGE


def require() -> None:
    """Skip, loudly, where there can be no such user."""
    if os.geteuid() != 0:
        backends.missing("only root may make an ordinary user for the embedded engine")
    for program in ("conmon", "crun", "nsenter", "setpriv", "useradd", "newuidmap"):
        if process.find(program) is None:
            backends.missing(f"no {program}")


@contextmanager
def ordinary_user(*, has_numbers: bool = True) -> Iterator[OrdinaryUser]:
    """A user of the tests' own, with numbers for containers' users or without; whatever runs of theirs has ended afterwards."""
    require()
    kind = "e" if has_numbers else "p"
    with leftovers.own_folder(KIND, _remove_leftover, name=f"-{kind}") as folder:
        name = f"{podman_user.USERS}{backends.SESSION_ID[:8]}{kind}"
        (folder / "user").write_text(name)
        user = podman_user.make_user(name, folder / "home")
        if not has_numbers:
            _take_numbers(user)
        for one in (folder / "home", folder / "run"):
            one.mkdir(mode=0o700)
            os.chown(one, user.pw_uid, user.pw_gid)
        try:
            holder = podman_user.hold_mounts(folder)
        except podman_user.NoMounts as error:
            _remove(folder, user)
            backends.missing(f"no mounts for an ordinary user: {error}")
        try:
            yield OrdinaryUser(folder, user, holder)
        finally:
            _end_processes(user)
            holder.kill()
            holder.wait()
            _remove(folder, user)


def _take_numbers(user: pwd.struct_passwd) -> None:
    with backends.one_at_a_time("users"):
        for ids in podman_user.ids_of(user)[1:]:
            for kind in ("uids", "gids"):
                words = ["usermod", f"--del-sub{kind}", f"{ids.start}-{ids.stop - 1}", user.pw_name]
                subprocess.run(words, check=True, capture_output=True)


def _end_processes(user: pwd.struct_passwd) -> None:
    owned = podman_user.ids_of(user)
    leftovers.end_processes(lambda process: any(process.stat().st_uid in ids for ids in owned))


def _remove(folder: Path, user: pwd.struct_passwd) -> None:
    with backends.one_at_a_time("users"):
        podman_user.remove_user(user)
    leftovers.unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftover(folder: Path) -> None:
    leftovers.end_processes(leftovers.naming(folder))
    with suppress(OSError, KeyError):
        user = pwd.getpwnam((folder / "user").read_text())
        _end_processes(user)
        _remove(folder, user)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_ordinary_user() -> Iterator[OrdinaryUser]:
    """The user behind `ordinary_user`, for fixtures that live as long as the session."""
    with ordinary_user() as user:
        yield user


@pytest.fixture
def plain_user() -> Iterator[OrdinaryUser]:
    """A user who was given no numbers for containers' users."""
    with ordinary_user(has_numbers=False) as user:
        yield user
