"""How is a container run with a bare OCI runtime, for tests of its walls and limits? With this host's programs, read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import backends

DEADLINE_SECONDS = 60.0
_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64")
_HIDE_UNIFIED = (
    "unshare",
    "--mount",
    "--propagation",
    "slave",
    "sh",
    "-c",
    'umount /sys/fs/cgroup/unified && exec "$@"',
    "sh",
)


@dataclass(frozen=True, slots=True)
class Done:
    """How a container ended and what it said."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(slots=True)
class Lab:
    """A folder with bundles and a runtime's state; `documents` are merged into each configuration."""

    program: tuple[str, ...]
    folder: Path
    made: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The runtime's own state."""
        return self.folder / "state"

    def runtime(self, *arguments: str, stdin: str = "", check: bool = True) -> Done:
        """Run the runtime with a command of its own."""
        said, failed = self.folder / f"out-{uuid.uuid4().hex}", self.folder / f"err-{uuid.uuid4().hex}"
        with said.open("wb") as stdout, failed.open("wb") as stderr:  # no pipe: a container would keep it open
            ended = subprocess.run(
                [*self.program, "--root", str(self.state), *arguments],
                input=stdin.encode(), stdout=stdout, stderr=stderr, timeout=DEADLINE_SECONDS, check=False,
            )  # fmt: skip
        done = Done(ended.returncode, said.read_text(), failed.read_text())
        assert not check or done.exit_code == 0, done
        return done

    def bundle(
        self,
        *command: str,
        linux: Mapping[str, Any],
        capabilities: Sequence[str] = (),
        annotations: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        id: str | None = None,
    ) -> tuple[str, Path]:
        """Make a container's bundle; returns its id and its folder."""
        id = id or uuid.uuid4().hex + uuid.uuid4().hex
        bundle = self.folder / id
        root = bundle / "rootfs"
        root.mkdir(parents=True)
        binds = []
        for name in _FOLDERS:
            outside = Path("/", name)
            if outside.is_symlink():
                (root / name).symlink_to(os.readlink(outside))
            elif outside.is_dir():
                binds.append(
                    {"destination": f"/{name}", "type": "bind", "source": f"/{name}", "options": ["rbind", "ro"]}
                )
        for name, content in (files or {}).items():
            (root / name).write_bytes(content)
            (root / name).chmod(0o755)
        document = _document(command, binds, capabilities, linux)
        (bundle / "config.json").write_text(json.dumps({**document, "annotations": dict(annotations or {})}))
        self.made.append(id)
        return id, bundle

    def run(self, *command: str, **parts: Any) -> Done:
        """Run a container to its end."""
        id, bundle = self.bundle(*command, **parts)
        done = self.runtime("run", "--bundle", str(bundle), id, check=False)
        self.runtime("delete", "--force", id, check=False)
        return done

    def start(self, *command: str, **parts: Any) -> tuple[str, int]:
        """Start a container; returns its id and its first process."""
        id, bundle = self.bundle(*command, **parts)
        self.runtime("create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), id)
        self.runtime("start", id)
        return id, int((bundle / "pid").read_text())

    def remove_all(self) -> None:
        """Remove what is left."""
        for id in self.made:
            self.runtime("delete", "--force", id, check=False)


@contextmanager
def lab(name: str, folder: Path) -> Iterator[Lab]:
    """A place to run containers by one runtime; removes them all."""
    if os.geteuid() != 0:
        backends.missing("not root", enable="sudo scripts/test")
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")
    if program is None:
        backends.missing(f"no {name}", enable=f"apt-get install {name}")
    controllers = Path("/sys/fs/cgroup/unified/cgroup.controllers")
    hidden = name == "crun" and controllers.is_file() and controllers.read_text().strip() != ""
    made = Lab((*(_HIDE_UNIFIED if hidden else ()), program), folder)
    try:
        yield made
    finally:
        made.remove_all()


def _document(
    command: Sequence[str], binds: list[dict[str, Any]], capabilities: Sequence[str], linux: Mapping[str, Any]
) -> dict[str, Any]:
    sets = ("bounding", "effective", "permitted")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": list(command), "cwd": "/", "noNewPrivileges": True,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "capabilities": {one: list(capabilities) for one in sets},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
            *binds,
        ],
        "linux": {"namespaces": [{"type": one} for one in ("pid", "ipc", "uts", "mount", "network")], **linux},
    }  # fmt: skip
