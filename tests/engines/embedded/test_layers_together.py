"""Are the layers of an image taken in side by side as they would be one by one, and can that be watched and stopped?

SPEC B123, SPEC B124.
"""

from __future__ import annotations

import gzip
import os
import random
import select
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import archives, content, content_watch, layers_together
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from tests import embedded
from tests.engines.embedded import content_help as help_

LARGE_BYTES = 9 * 1024 * 1024
BYTES = random.Random(5).randbytes(LARGE_BYTES)


def _large(number: int) -> bytes:
    """A layer that is worth a helper."""
    link = help_.entry(f"d{number}/link", kind=tarfile.LNKTYPE, target=f"d{number}/big")
    mark = help_.entry(f"d{number}/.wh.gone")
    folder = help_.entry(f"d{number}", kind=tarfile.DIRTYPE, mode=0o755)
    big = help_.entry(f"d{number}/big", mode=0o4750, uid=7, gid=8)
    return help_.tar(folder, (big, BYTES), link, mark, (f"f{number}", b"x"))


LARGE = [_large(number) for number in range(4)]


def _archive(folder: Path, *layers: bytes, form: str = "docker") -> Path:
    """The path of an archive with these layers."""
    path = folder / form
    if form == "docker":
        path.write_bytes(help_.docker_archive(*layers))
    elif form == "packed":
        path.write_bytes(gzip.compress(help_.docker_archive(*layers), 1))
    else:
        pack = (lambda one: gzip.compress(one, 1)) if form == "gzip" else gzip.compress
        help_.write_files(path, help_.oci_files(*layers, pack=pack))
    return path


def _listed(folder: Path) -> dict[str, tuple[object, ...]]:
    """What a layer holds; a mark for what is gone has no time that a tar gives."""
    return {name: (*mark[:3], *mark[4:]) if "gone" in name else mark for name, mark in help_.listing(folder).items()}


def _left(folder: Path) -> list[str]:
    own = help_.images_folder(folder)
    return [name for one in ("tmp", "layers", "blobs/sha256") for name in os.listdir(own / one)]


def _stopping(after_bytes: int) -> tuple[content_watch.Watch, list[int]]:
    """A watch that stops its work after some bytes, and what it was told."""
    told: list[int] = []
    return content_watch.Watch(told.append, is_stopped=lambda: bool(told) and told[-1] >= after_bytes), told


@pytest.mark.parametrize("form", ["docker", "gzip"])
def test_large_layers_are_unpacked_by_helpers_as_they_are_one_by_one(tmp_path: Path, form: str) -> None:
    """B124."""
    together, alone = help_.store(tmp_path / "together"), help_.store(tmp_path / "alone")
    together.load(_archive(tmp_path, *LARGE, help_.tar(("small", b"1")), form=form))
    for number, layer in enumerate([*LARGE, help_.tar(("small", b"1"))]):
        source = tmp_path / f"one{number}"
        source.mkdir()
        alone.load(_archive(source, layer))
        one = alone.image("made:1")
        found = together.layer_folders(together.image("made:1"))[number]
        assert _listed(found) == _listed(alone.layer_folders(one)[0])
    assert sorted(os.listdir(help_.images_folder(tmp_path / "together") / "tmp")) == []


def test_helpers_are_as_many_as_there_is_work_and_none_for_small_images(tmp_path: Path) -> None:
    """B124."""

    def task(size: int) -> layers_together.Task:
        return layers_together.Task(lambda: pytest.fail("not read"), size, tmp_path, unpacks=True)

    processors = len(os.sched_getaffinity(0))
    assert layers_together._helpers([task(10**9)]) == 0
    assert layers_together._helpers([task(10**6)] * 5) == 0
    assert layers_together._helpers([task(0)] * 5) == 0
    assert layers_together._helpers([task(10**8)] * 50) == min(processors - 1, 7)


@pytest.mark.parametrize("place", range(4))
def test_hostile_layer_among_large_ones_is_refused_and_nothing_is_left(tmp_path: Path, place: int) -> None:
    """B124."""
    images = help_.store(tmp_path)
    layers = [*LARGE]
    layers[place] = help_.tar((help_.entry("big"), BYTES), ("../out", b"x"))
    with pytest.raises(errors.InvalidArgument, match=r"\.\./out"):
        images.load(_archive(tmp_path, *layers))
    assert _left(tmp_path) == []
    assert not (tmp_path / "out").exists()


def test_large_layer_with_another_digest_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    """B124."""
    images = help_.store(tmp_path)
    other = help_.config(LARGE[0], LARGE[1], LARGE[3])
    path = tmp_path / "archive"
    path.write_bytes(help_.docker_archive(*LARGE[:3], about=other))
    with pytest.raises(errors.InvalidArgument, match="another digest"):
        images.load(path)
    assert _left(tmp_path) == []


LOADER = """
import sys
from pathlib import Path
from codomyrmex_containerization.engines.embedded import content, content_watch, objects

folders = objects.Folders(Path(sys.argv[1]), Path(sys.argv[2]))
watch = content_watch.Watch(lambda count: print(count, flush=True), is_stopped=lambda: False)
content.ContentStore(folders, engine="embedded").load(Path(sys.argv[3]), watch=watch)
"""


def test_helpers_end_with_a_server_that_is_killed_and_what_they_left_is_swept(tmp_path: Path) -> None:
    """B124."""
    path = _archive(tmp_path, *LARGE)
    words = [sys.executable, "-c", LOADER, str(tmp_path / "data"), str(tmp_path / "run"), str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        while int(server.stdout.readline()) < LARGE_BYTES:
            pass
        tasks = Path(f"/proc/{server.pid}/task").iterdir()
        children = [int(one) for task in tasks for one in (task / "children").read_text().split()]
        assert children or len(os.sched_getaffinity(0)) == 1
        watched = [os.pidfd_open(one) for one in children]
        server.kill()
    for one in watched:
        assert select.select([one], [], [], 30)[0], "a helper goes on"
        os.close(one)
    help_.store(tmp_path).sweep()
    assert _left(tmp_path) == []


def test_helper_that_ends_before_it_is_done_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B124."""
    if len(os.sched_getaffinity(0)) == 1:
        return  # one processor has no helpers
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # the helper's interpreter finds nothing and ends
    images = help_.store(tmp_path)
    with pytest.raises(errors.EngineUnavailable, match="ended before it was done"):
        images.load(_archive(tmp_path, *LARGE))
    assert _left(tmp_path) == []


@pytest.mark.parametrize("form", ["docker", "gzip", "packed"])
def test_loading_tells_the_bytes_that_went_by(tmp_path: Path, form: str) -> None:
    """B123."""
    path = _archive(tmp_path, *LARGE[:2], form=form)
    told: list[int] = []
    help_.store(tmp_path).load(path, watch=content_watch.Watch(told.append, is_stopped=lambda: False))
    whole = (
        path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    )
    assert told == sorted(told)
    assert whole * 0.99 < told[-1] <= whole


@pytest.mark.parametrize("form", ["docker", "gzip", "packed"])
@pytest.mark.parametrize("after_bytes", [0, LARGE_BYTES, 3 * LARGE_BYTES])
def test_stopped_load_ends_at_the_next_piece_and_leaves_nothing(tmp_path: Path, form: str, after_bytes: int) -> None:
    """B123."""
    images = help_.store(tmp_path)
    watch, told = _stopping(after_bytes)
    with pytest.raises(errors.Cancelled):
        images.load(_archive(tmp_path, *LARGE, form=form), watch=watch)
    assert told[-1] < after_bytes + 4 * 1024 * 1024
    assert _left(tmp_path) == []
    assert images.images() == []


def _import_tar(images: content.ContentStore, folder: Path, watch: content_watch.Watch) -> None:
    (folder / "root.tar").write_bytes(LARGE[0])
    images.import_rootfs(folder / "root.tar", tag="made:1", watch=watch)


def _import_folder(images: content.ContentStore, folder: Path, watch: content_watch.Watch) -> None:
    help_.write_files(folder / "root", {"big": BYTES})
    images.import_rootfs(folder / "root", tag="made:1", watch=watch)


@pytest.mark.parametrize("take", [_import_tar, _import_folder])
def test_import_tells_its_bytes_and_can_be_stopped(
    tmp_path: Path, take: Callable[[content.ContentStore, Path, content_watch.Watch], None]
) -> None:
    """B123."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    watch, told = _stopping(sys.maxsize)
    take(help_.store(tmp_path / "whole"), tmp_path / "whole", watch)
    assert LARGE_BYTES < told[-1] < LARGE_BYTES + 1024 * 1024
    watch, told = _stopping(1024 * 1024)
    with pytest.raises(errors.Cancelled):
        take(help_.store(tmp_path / "cut"), tmp_path / "cut", watch)
    assert told[-1] < LARGE_BYTES
    assert _left(tmp_path / "cut") == []


@pytest.mark.parametrize("format", ["docker-archive", "oci-archive", "oci"])
def test_save_tells_its_bytes_and_a_stopped_one_leaves_nothing(tmp_path: Path, format: archives.Format) -> None:
    """B123."""
    images = help_.store(tmp_path)
    images.load(_archive(tmp_path, *LARGE[:2]))
    target = tmp_path / "out" / "saved"
    target.parent.mkdir()
    watch, told = _stopping(LARGE_BYTES)
    with pytest.raises(errors.Cancelled):
        images.save(["made:1"], target, format=format, watch=watch)
    assert told[-1] < LARGE_BYTES + 4 * 1024 * 1024
    assert os.listdir(target.parent) == []
    watch, told = _stopping(sys.maxsize)
    images.save(["made:1"], target, format=format, watch=watch)
    assert told[-1] == sum(map(len, LARGE[:2]))


def _until_let_go(engine: EmbeddedEngine) -> None:
    """Wait for the thread that was left; the event loop goes on meanwhile, which that thread may need."""
    with engine.house.images._index.alone(wait=True):
        pass


async def test_cancelled_calls_of_the_engine_stop_and_leave_nothing(tmp_path: Path) -> None:
    """B123."""
    engine = embedded.engine(tmp_path)
    own = engine.house.folders.images
    path = _archive(tmp_path, *LARGE)

    def cancels(scope: anyio.CancelScope) -> Callable[[int], None]:
        def passed(count: int) -> None:
            if count > LARGE_BYTES and not scope.cancel_called:  # asked once: later nobody may wait for this thread
                anyio.from_thread.run_sync(scope.cancel)

        return passed

    with anyio.CancelScope() as scope:
        await engine.load_image(path, passed=cancels(scope))
    assert scope.cancelled_caught
    await anyio.to_thread.run_sync(_until_let_go, engine)
    assert os.listdir(own / "tmp") == []
    assert engine.house.images.images() == []
    names = await engine.load_image(path)
    target = tmp_path / "saved" / "file"
    target.parent.mkdir()
    with anyio.CancelScope() as scope:
        await engine.save_image(names[0], target, format="docker-archive", passed=cancels(scope))
    assert scope.cancelled_caught
    await anyio.to_thread.run_sync(_until_let_go, engine)
    assert os.listdir(target.parent) == []
