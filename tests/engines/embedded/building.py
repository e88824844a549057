"""What do tests of the builder build with? A store of their own, one image, and steps that run by unshare and chroot."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codomyrmex_containerization.engines.embedded import build as builders
from codomyrmex_containerization.engines.embedded import content, objects
from codomyrmex_containerization.models.container import Mount, Stream
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec
from tests import backends

BASE = "localhost/base:1"
APPLETS = ("sh", "cat", "echo", "ls", "id", "pwd", "sleep", "env", "stat", "test", "true", "mkdir", "ln", "rm", "touch")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/home:/bin/sh\n"
GROUP = "root:x:0:\nstaff:x:50:\n"


@dataclass(slots=True)
class Entry:
    """One entry of a tar."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


def packed(*entries: Entry, mode: str = "w") -> bytes:
    """Return a tar of entries."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode=mode) as archive:  # type: ignore[call-overload]  # the mode is a parameter
        for one in entries:
            info = tarfile.TarInfo(one.name)
            info.type, info.linkname, info.mode, info.uid, info.gid = one.kind, one.target, one.mode, one.uid, one.gid
            info.size = len(one.content)
            archive.addfile(info, io.BytesIO(one.content))
    return held.getvalue()


def root_file_system() -> bytes:
    """Return the tar of a small system."""
    found = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    if found is None:
        backends.missing("no busybox")
    folders = [Entry(name, kind=tarfile.DIRTYPE, mode=0o755) for name in ("bin", "etc", "root")]
    folders.append(Entry("tmp", kind=tarfile.DIRTYPE, mode=0o1777))
    links = [Entry(f"bin/{name}", kind=tarfile.SYMTYPE, target="busybox") for name in APPLETS]
    files = [
        Entry("bin/busybox", Path(found).read_bytes(), mode=0o755),
        Entry("etc/passwd", PASSWD.encode()),
        Entry("etc/group", GROUP.encode()),
    ]
    return packed(*folders, *files, *links)


@dataclass(slots=True)
class Steps:
    """Runs steps in namespaces of their own, in a changed root."""

    ended: int = 0
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @contextmanager
    def overlay(self, layers: Sequence[Path], upper: Path) -> Iterator[Path]:
        """Mount the layers."""
        merged, work = upper.with_name("merged"), upper.with_name("work")
        for one in (merged, work):
            one.mkdir(exist_ok=True)
        lower = ":".join(str(one) for one in reversed(layers))
        options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off,metacopy=off"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", str(merged)], check=True)

    def run(
        self,
        *,
        layers: Sequence[Path],
        upper: Path,
        config: objects.ImageConfig,
        command: Sequence[str],
        env: Mapping[str, str],
        mounts: Sequence[Mount],
        network: str,
        output: Callable[[Stream, bytes], None],
    ) -> int:
        """Run one step."""
        with self.overlay(layers, upper) as root:
            lines = [line for mount in mounts for line in _mounting(root, mount)]
            enter = [
                "exec",
                str(shutil.which("chroot")),
                *(["--userspec", config.user] if config.user else []),
                str(root),
            ]
            inside = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', config.workdir or "/", *command]
            own = ["inner=$PATH", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *lines, "PATH=$inner"]
            script = "\n".join(["set -e", *own, shlex.join([*enter, *inside])])
            argv = [
                str(shutil.which("unshare")),
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
            ]
            argv += ["--net"] if network == "none" else []
            running = subprocess.Popen(
                [*argv, "/bin/sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=dict(env), start_new_session=True,
            )  # fmt: skip
            self._running.append(running)
            readers = [
                threading.Thread(target=_pass_on, args=(pipe, stream, output))
                for pipe, stream in ((running.stdout, "stdout"), (running.stderr, "stderr"))
            ]
            for one in readers:
                one.start()
            for one in readers:
                one.join()
            self._running.clear()
            return running.wait()

    def end(self) -> None:
        """Kill what runs."""
        self.ended += 1
        for one in list(self._running):
            with suppress(ProcessLookupError):
                os.killpg(one.pid, 9)


def _mounting(root: Path, mount: Mount) -> Iterator[str]:
    place = root / mount.target.lstrip("/")
    yield shlex.join(["mkdir", "-p", str(place.parent if Path(mount.source).is_file() else place)])
    if mount.type == "tmpfs":
        size = f",size={mount.size_bytes}" if mount.size_bytes else ""
        yield shlex.join(["mount", "-t", "tmpfs", "-o", f"mode=1777{size}", "tmpfs", str(place)])
        return
    yield shlex.join(["touch", str(place)])
    yield shlex.join(["mount", "--bind", mount.source, str(place)])
    if mount.read_only:
        yield shlex.join(["mount", "-o", "remount,bind,ro", str(place)])


def _pass_on(pipe: Any, stream: Stream, output: Callable[[Stream, bytes], None]) -> None:
    with pipe:
        while data := pipe.read1(65536):
            output(stream, data)


@dataclass(slots=True)
class Bench:
    """A store with one image, and a way to build."""

    store: content.ContentStore
    folder: Path
    steps: Steps = field(default_factory=Steps)

    @property
    def scratch(self) -> Path:
        """The builder's own folder."""
        return self.folder / "scratch"

    def builder(self) -> builders.Builder:
        """Return a builder for one build."""
        return builders.Builder(self.store, self.steps, scratch=self.scratch, engine="embedded")

    def build(self, text: str, *entries: Entry, tag: str = "localhost/made:1", **more: Any) -> list[BuildEvent]:
        """Build and return all events; the Dockerfile's text is in the context too."""
        return list(self.begin(self.builder(), text, *entries, tag=tag, **more))

    def begin(
        self, builder: builders.Builder, text: str, *entries: Entry, tag: str = "localhost/made:1", **more: Any
    ) -> Iterator[BuildEvent]:
        """Begin a build."""
        spec = replace(BuildSpec((tag,), None, None, text), **more)
        data = packed(Entry("Dockerfile", text.encode()), *entries)
        return builder.events(spec, context=lambda: iter([data[:700], data[700:]]), dockerfile_name="Dockerfile")

    def made(self, text: str, *entries: Entry, tag: str = "localhost/made:1", **more: Any) -> objects.Image:
        """Build what must succeed and return the image."""
        events = self.build(text, *entries, tag=tag, **more)
        assert not [event for event in events if event.kind == "error"], events
        return self.store.image(tag)

    def failure(self, text: str, *entries: Entry, **more: Any) -> BuildEvent:
        """Build what must fail and return the last event."""
        last = self.build(text, *entries, **more)[-1]
        assert last.kind == "error", last
        return last

    @contextmanager
    def root(self, image: objects.Image) -> Iterator[Path]:
        """Show an image's files."""
        upper = self.folder / f"look-{image.id[-12:]}" / "upper"
        upper.mkdir(parents=True, exist_ok=True)
        with self.steps.overlay(self.store.layer_folders(image), upper) as merged:
            yield merged

    def read(self, image: objects.Image, path: str) -> bytes:
        """Return a file of an image."""
        with self.root(image) as root:
            return (root / path.lstrip("/")).read_bytes()


def bench(folder: Path) -> Bench:
    """Return a bench in a folder; skips the test where overlays cannot be mounted."""
    if os.geteuid() != 0:
        backends.missing("the embedded engine's builder is tested as root", enable="sudo scripts/test")
    for program in ("unshare", "mount", "umount", "chroot"):
        if shutil.which(program) is None:
            backends.missing(f"no {program} program", enable="apt-get install util-linux coreutils")
    store = content.ContentStore(objects.Folders(folder / "data", folder / "run"), engine="embedded")
    archive = folder / "root.tar"
    archive.write_bytes(root_file_system())
    store.import_rootfs(archive, tag=BASE, config=objects.ImageConfig(env=("PATH=/bin",), command=("sh",)))
    return Bench(store, folder)
