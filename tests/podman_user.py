"""Who is the ordinary user of the tests, and what may they open? One made for a session, with mounts that allow it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import backends

USERS = "cxct"
_TUN = Path("/dev/net/tun")


class NoMounts(Exception):
    """The last words of what should have made them are the message."""


def make_user(name: str, home: Path) -> pwd.struct_passwd:
    """Make one with numbers for containers; the home is made by others."""
    with backends.one_at_a_time("users"):
        for user in pwd.getpwall():
            if user.pw_name.startswith(USERS) and not Path(user.pw_dir).parent.exists():
                remove_user(user)  # Somebody has emptied the folder of temporary files.
        done = subprocess.run(
            ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", name],
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        backends.missing(f"no user could be made: {done.stderr.strip()}")
    return pwd.getpwnam(name)


def remove_user(user: pwd.struct_passwd) -> None:
    """Remove one; call it in turn with others, as `make_user` does itself."""
    subprocess.run(["userdel", "--force", user.pw_name], check=False, capture_output=True)


def ids_of(user: pwd.struct_passwd) -> list[range]:
    """The user's own number and those that containers of the user run as."""
    ids = [range(user.pw_uid, user.pw_uid + 1)]
    for line in Path("/etc/subuid").read_text().splitlines():
        name, first, count = line.split(":")
        if name == user.pw_name:
            ids.append(range(int(first), int(first) + int(count)))
    return ids


def _showing_python(folder: Path) -> Iterator[str]:
    """Shell commands that let an ordinary user run the tests' Python where it is in root's closed home.

    The closed folder is covered by an empty one with nothing in it but what is needed.
    """
    needed = {Path(sys.base_prefix), Path(sys.prefix), Path(backends.__file__).parents[1]}
    for number, path in enumerate(sorted(needed)):
        closed = next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None)
        if closed is not None:
            kept = folder / f"kept-{number}"
            yield f"mkdir -p {kept} && mount --bind {path} {kept}"
            yield f"[ -e {closed}/.cxc-covered ] || {{ mount -t tmpfs -o mode=755,size=1m none {closed} && touch {closed}/.cxc-covered; }}"
            yield f"mkdir -p {path} && mount --bind {kept} {path}"


def hold_mounts(folder: Path) -> subprocess.Popen[bytes]:
    """A process with mounts of its own, where an ordinary user may open the tun device, as on most machines."""
    script = ["set -e", *_showing_python(folder)]
    if _TUN.exists() and _TUN.stat().st_mode & 0o666 != 0o666:
        device = folder / "tun"
        script += [f"[ -e {device} ] || mknod -m 666 {device} c 10 200", f"mount --bind {device} {_TUN}"]
    script += ["echo ready", "exec sleep infinity"]
    command = ["unshare", "--mount", "--propagation=slave", "sh", "-c", "\n".join(script)]
    environment = {"PATH": os.environ["PATH"], "CONTAINERS_CONF": f"{folder}/containers.conf"}  # by which it is found
    with (folder / "log").open("ab") as log:
        holder = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    assert holder.stdout is not None
    with holder.stdout as ready:
        if ready.readline() != b"ready\n":
            holder.kill()
            holder.wait()
            raise NoMounts((folder / "log").read_text(errors="replace"))
    return holder
