"""Do layers become one file system, does it go again, and is it said when the kernel refuses?"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import overlay
from tests import backends


@dataclass(frozen=True)
class Place:
    """Folders for an overlay."""

    top: Path
    upper: Path
    work: Path
    target: Path

    def layer(self, name: str, **files: str) -> Path:
        folder = self.top / name
        folder.mkdir()
        for path, text in files.items():
            (folder / path).write_text(text)
        return folder


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if os.geteuid() != 0:
        backends.missing("mounting needs root", enable="run the tests as root")
    found = Place(tmp_path, tmp_path / "upper", tmp_path / "work", tmp_path / "merged")
    for one in (found.upper, found.work, found.target):
        one.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    yield found
    assert len(os.listdir("/proc/self/fd")) == before
    overlay.unmount(found.target)
    assert f" {tmp_path}/" not in Path("/proc/self/mounts").read_text()


def test_upper_layers_hide_lower_ones_and_changes_stay_in_the_writable_one(place: Place) -> None:
    low, high = place.layer("low", both="low", low="low"), place.layer("high", both="high")
    overlay.mount([low, high], upper=place.upper, work=place.work, target=place.target)
    assert overlay.is_mounted(place.target)
    assert {one.name: one.read_text() for one in place.target.iterdir()} == {"both": "high", "low": "low"}
    (place.target / "new").write_text("new")
    (place.target / "both").write_text("changed")
    (place.target / "low").unlink()
    overlay.unmount(place.target)
    assert not overlay.is_mounted(place.target)
    assert os.listdir(place.target) == []
    assert [(low / "low").read_text(), (high / "both").read_text()] == ["low", "high"]
    assert set(os.listdir(place.upper)) == {"new", "both", "low"}
    with overlay.mounted([low, high], upper=place.upper, work=place.work, target=place.target):
        assert {one.name: one.read_text() for one in place.target.iterdir()} == {"new": "new", "both": "changed"}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_without_a_writable_layer_nothing_can_be_written(place: Place, count: int) -> None:
    layers = [place.layer(f"l{number}", **{f"of{number}": "x"}) for number in range(count)]
    with overlay.mounted(layers, upper=None, work=None, target=place.target):
        assert set(os.listdir(place.target)) == {f"of{number}" for number in range(count)}
        with pytest.raises(OSError, match="Read-only") as caught:
            (place.target / "new").touch()
        assert caught.value.errno == errno.EROFS


def test_image_without_layers_can_be_written(place: Place) -> None:
    with overlay.mounted([], upper=place.upper, work=place.work, target=place.target):
        (place.target / "new").touch()
    assert os.listdir(place.upper) == ["new"]


def test_as_many_layers_as_promised_with_long_and_odd_names(place: Place) -> None:
    layers = [
        place.layer(f"{number}:,=\\ {'long' * 50}", common=str(number), **{f"of{number}": "x"})
        for number in range(overlay.MOST_LAYERS)
    ]
    with overlay.mounted(layers, upper=place.upper, work=place.work, target=place.target):
        assert (place.target / "common").read_text() == str(overlay.MOST_LAYERS - 1)
        assert len(os.listdir(place.target)) == overlay.MOST_LAYERS + 1


def test_more_layers_than_that_are_refused(place: Place) -> None:
    layers = [place.top / str(number) for number in range(overlay.MOST_LAYERS + 1)]
    with pytest.raises(errors.EngineUnavailable, match="129 layers") as caught:
        overlay.mount(layers, upper=place.upper, work=place.work, target=place.target)
    assert caught.value.hint


def test_layer_that_occurs_twice_counts_where_it_lies_uppermost(place: Place) -> None:
    one, two = place.layer("one", common="one"), place.layer("two", common="two")
    with overlay.mounted([one, two, one], upper=place.upper, work=place.work, target=place.target):
        assert (place.target / "common").read_text() == "one"


def test_layer_that_is_gone_is_told_in_the_kernels_words_and_nothing_is_mounted(place: Place) -> None:
    with pytest.raises(errors.EngineUnavailable, match="No such file or directory") as caught:
        overlay.mount([place.top / "none"], upper=place.upper, work=place.work, target=place.target)
    assert "image" in caught.value.hint
    assert not overlay.is_mounted(place.target)


def test_working_folder_on_another_file_system_is_refused(place: Place) -> None:
    work = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        with pytest.raises(errors.EngineUnavailable) as caught:
            overlay.mount([place.layer("low")], upper=place.upper, work=work, target=place.target)
        assert caught.value.hint
        assert not overlay.is_mounted(place.target)
    finally:
        work.rmdir()


def test_unmount_of_what_is_not_mounted_does_nothing(place: Place) -> None:
    for target in (place.target, place.top / "none", place.top / "none" / "deeper"):
        overlay.unmount(target)
        assert not overlay.is_mounted(target)


def test_unmount_takes_all_that_lies_on_one_another(place: Place) -> None:
    low = place.layer("low", file="x")
    for _ in range(2):
        overlay.mount([low], upper=None, work=None, target=place.target)
    overlay.unmount(place.target)
    assert os.listdir(place.target) == []


def test_unmount_while_a_file_is_open_leaves_it_readable(place: Place) -> None:
    overlay.mount([place.layer("low", file="text")], upper=place.upper, work=place.work, target=place.target)
    with (place.target / "file").open() as file:
        overlay.unmount(place.target)
        assert not overlay.is_mounted(place.target)
        assert file.read() == "text"


def test_mount_goes_with_a_block_that_fails(place: Place) -> None:
    target = place.top / "made" / "merged"
    with (
        pytest.raises(RuntimeError),
        overlay.mounted([place.layer("low")], upper=place.upper, work=place.work, target=target),
    ):
        raise RuntimeError
    assert not overlay.is_mounted(target)


def test_mount_is_seen_by_other_processes_and_shared_with_no_namespace(place: Place) -> None:
    with overlay.mounted([place.layer("low", file="x")], upper=place.upper, work=place.work, target=place.target):
        assert subprocess.run(["ls", place.target], capture_output=True, text=True, check=True).stdout == "file\n"
        rows = [one.split() for one in Path("/proc/self/mountinfo").read_text().splitlines()]
        row = next(one for one in rows if one[4] == str(place.target))
        assert row[6] == "-", "it has peers"


def test_files_in_it_are_no_devices(place: Place) -> None:
    low = place.layer("low")
    os.mknod(low / "null", 0o666 | 0o020000, os.makedev(1, 3))
    with (
        overlay.mounted([low], upper=place.upper, work=place.work, target=place.target),
        pytest.raises(PermissionError),
    ):
        (place.target / "null").read_bytes()


AS_NOBODY = """
import os, sys
from pathlib import Path
from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import overlay
top = Path(sys.argv[1])
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for do in (
    lambda: overlay.mount([top / "low"], upper=top / "upper", work=top / "work", target=top / "other" / "merged"),
    lambda: overlay.unmount(top / "merged"),
    lambda: overlay.is_mounted(top / "closed" / "merged"),
):
    try:
        do()
        print("nothing was said")
    except errors.EngineUnavailable as error:
        print(error.message, "|", error.hint)
"""


def test_ordinary_user_is_told_that_mounting_is_not_allowed(place: Place) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        top.chmod(0o755)
        for name in ("low", "upper", "work", "merged", "other", "other/merged", "closed", "closed/merged"):
            (top / name).mkdir()
        (top / "closed").chmod(0o700)
        shutil.chown(top / "other", 65534)
        with overlay.mounted([top / "low"], upper=top / "upper", work=top / "work", target=top / "merged"):
            said = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, folder], capture_output=True, text=True, check=True
            ).stdout.splitlines()
        assert len(said) == 3
        assert all("|" in one for one in said), said
        assert "Operation not permitted" in said[0]
        assert "root" in said[0].partition("|")[2]
        assert "Operation not permitted" in said[1]
        assert "Permission denied" in said[2]


IN_NAMESPACE = """
import os, sys
from pathlib import Path
from codomyrmex_containerization.engines.embedded import layers, overlay
top = Path(sys.argv[1])
low, high, upper, work, target = (top / name for name in ("low", "high", "upper", "work", "merged"))
for one in (low, high, upper, work, target):
    one.mkdir()
(low / "folder").mkdir()
(low / "folder" / "old").touch()
(high / "folder").mkdir()
(high / "folder" / "new").touch()
prefix = layers.overlay_prefix(top)
os.setxattr(high / "folder", prefix + "opaque", b"y")
with overlay.mounted([low, high], upper=upper, work=work, target=target):
    print(prefix, os.listdir(target / "folder"))
    (target / "folder" / "new").unlink()
    (target / "folder").rmdir()
    (target / "folder").mkdir()
    print(os.listdir(target / "folder"))
print(overlay.is_mounted(target))
"""


def test_root_of_a_user_namespace_has_marks_of_its_own(tmp_path: Path) -> None:
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode != 0:
        backends.missing("this host allows no user namespaces")
    done = subprocess.run(
        [*inside, sys.executable, "-c", IN_NAMESPACE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["user.overlay. ['new']", "[]", "False"], done.stderr
