"""How does the builder run a step? In a container of this engine that is gone when the step has ended."""

from __future__ import annotations

import platform
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from codomyrmex_containerization.engines.embedded import life, objects, overlay, runtime, state
from codomyrmex_containerization.engines.embedded import mounts as mounting
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import ContainerSpec, Mount, MountPoint, Stream

_CHUNK_BYTES = 65536


class ContainerSteps:
    """The steps of one build, one after the other."""

    def __init__(self, house: life.House) -> None:
        self._house = house
        self._running = ""
        self._ended = False

    def overlay(self, layers: Sequence[Path], upper: Path) -> AbstractContextManager[Path]:
        """Show the layers and what was changed as one file system, to be changed."""
        return self._mounted(layers, upper, upper.with_name(f"{upper.name}.step"))

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
        """Run a command and return its exit code. Raises CommandFailed when it cannot be started."""
        house = self._house
        wanted = "none" if network == "none" else "bridge"
        spec = ContainerSpec(
            image="build", command=tuple(command), entrypoint=("",), env=dict(env), mounts=tuple(mounts)
        )
        points = tuple(MountPoint(one.type, one.source, one.target, one.read_only) for one in mounts)
        image = objects.Image("", "", None, "linux", platform.machine(), "", config, (), ())
        record = Record(
            state.new_id(), "build", state.now(), spec, image, mounts=points, networks=((house.networks.find(wanted).name, ()),)
        )  # fmt: skip
        folder = upper.with_name(f"{upper.name}.step")
        with self._mounted(layers, upper, folder):
            try:
                house.begun.write(record.id, folder)
                attached = house.connect_networks(record)
                house.write_bundle(record, folder, attached)
                return self._run(record.id, folder, output)
            finally:
                self._running = ""
                house.take_down(record.id, folder)
                house.begun.drop(record.id)

    def end(self) -> None:
        """Kill what runs now, and let nothing else begin; from another thread."""
        self._ended = True
        if self._running:
            with suppress(runtime.RuntimeFailed):
                self._house.runtime.kill(self._running, "9")

    def _run(self, container_id: str, folder: Path, output: Callable[[Stream, bytes], None]) -> int:
        house = self._house
        if self._ended:
            return 137
        self._running = container_id
        started = subprocess.Popen(
            house.runtime.run_command(container_id, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=house.runtime.environment,
            cwd="/",
            start_new_session=True,
        )
        reader = threading.Thread(target=_pass_on, args=(started.stderr, "stderr", output), daemon=True)
        reader.start()
        _pass_on(started.stdout, "stdout", output)
        reader.join()
        code = started.wait()
        return code if code >= 0 else 128 - code

    @contextmanager
    def _mounted(self, layers: Sequence[Path], upper: Path, folder: Path) -> Iterator[Path]:
        merged, work = folder / "merged", upper.with_name(f"{upper.name}.work")
        for one in (merged, work):
            one.mkdir(parents=True, exist_ok=True)
        overlay.mount(layers, upper=upper, work=work, target=merged)
        try:
            yield merged
        finally:
            overlay.unmount(merged)
            mounting.remove(folder)
            shutil.rmtree(work, ignore_errors=True)


def _pass_on(source: IO[bytes] | None, stream: Stream, output: Callable[[Stream, bytes], None]) -> None:
    if source is None:
        return
    with source:
        while data := source.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]  # a pipe's reader is buffered
            output(stream, data)
