"""Are volumes made once, kept whole, filled as images say, and removed only when nobody uses them?"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import objects, volumes
from codomyrmex_containerization.models.storage import VolumeSpec

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")


@pytest.fixture
def folders(tmp_path: Path) -> objects.Folders:
    return objects.Folders(tmp_path / "data", tmp_path / "run")


@pytest.fixture
def store(folders: objects.Folders) -> volumes.VolumeStore:
    return volumes.VolumeStore(folders, engine="embedded")


def test_volume_is_made_found_and_removed(store: volumes.VolumeStore, folders: objects.Folders) -> None:
    made = store.create(VolumeSpec("one", labels={"odd": "ä b=c"}))
    again = volumes.VolumeStore(folders, engine="embedded")
    assert again.find("one") == made
    assert (made.name, made.driver, made.labels, made.users, made.engine) == (
        "one", "local", {"odd": "ä b=c"}, (), "embedded",
    )  # fmt: skip
    assert made.created is not None
    data = Path(made.mountpoint)
    assert stat.S_IMODE(data.stat().st_mode) == 0o755
    (data / "file").write_text("x")
    store.remove("one", users={}, force=False)
    assert again.rows({}) == []
    assert [name for name in os.listdir(folders.volumes) if name != ".lock"] == []
    with pytest.raises(errors.NotFound) as caught:
        store.find("one")
    assert caught.value.details == {"missing": "volume"}


def test_taken_name_is_a_conflict_and_the_volume_stays(store: volumes.VolumeStore) -> None:
    (store.ensure("one", {"a": "1"}) / "file").write_text("kept")
    with pytest.raises(errors.Conflict):
        store.create(VolumeSpec("one"))
    assert (store.ensure("one", {"b": "2"}) / "file").read_text() == "kept"
    assert store.find("one").labels == {"a": "1"}


@pytest.mark.parametrize("wrong", ["ä", "a b", "../x", ".hidden", "a/b", "x\n", "n" * 256, "\0"])
def test_impossible_name_is_refused(store: volumes.VolumeStore, wrong: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        store.create(VolumeSpec(wrong))
    with pytest.raises(errors.InvalidArgument):
        store.ensure(wrong, {})
    with pytest.raises(errors.NotFound):
        store.remove(wrong, users={}, force=False)


def test_other_drivers_and_options_are_refused(store: volumes.VolumeStore) -> None:
    for spec in (VolumeSpec("one", driver="nfs"), VolumeSpec("one", options={"type": "tmpfs"})):
        with pytest.raises(errors.InvalidArgument):
            store.create(spec)
    assert store.rows({}) == []


def test_volumes_are_listed_by_name_with_their_users(store: volumes.VolumeStore) -> None:
    for name in ("b", "a", "c"):
        store.ensure(name, {})
    users: Mapping[str, list[str]] = {"b": ["second", "first"], "other": ["x"]}
    assert [(row.name, row.users) for row in store.rows(users)] == [("a", ()), ("b", ("first", "second")), ("c", ())]
    with pytest.raises(errors.Conflict, match="first, second"):
        store.remove("b", users=users, force=True)
    store.remove("none", users=users, force=True)


def test_anonymous_volume_has_64_digits(store: volumes.VolumeStore) -> None:
    name = store.anonymous({"a": "1"})
    assert len(name) == 64
    assert set(name) <= set("0123456789abcdef")
    assert store.find(name).labels == {"a": "1"}


def test_volume_whose_record_is_damaged_keeps_its_data(store: volumes.VolumeStore, folders: objects.Folders) -> None:
    data = store.ensure("one", {"a": "1"})
    (folders.volumes / "one" / "volume.json").write_text('{"created": 5')
    assert [(row.name, row.created, dict(row.labels)) for row in store.rows({})] == [("one", None, {})]
    assert data.is_dir()


def test_sizes_are_told_for_each_volume(store: volumes.VolumeStore) -> None:
    (store.ensure("one", {}) / "file").write_bytes(bytes(1234))
    store.ensure("two", {})
    assert store.sizes() == {"one": 1234, "two": 0}


def test_two_processes_make_one_volume(folders: objects.Folders, store: volumes.VolumeStore) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from codomyrmex_containerization import errors\n"
        "from codomyrmex_containerization.engines.embedded import objects, volumes\n"
        "from codomyrmex_containerization.models.storage import VolumeSpec\n"
        "folders = objects.Folders(Path(sys.argv[1]), Path(sys.argv[1]))\n"
        "for number in range(100):\n"
        "    try: volumes.VolumeStore(folders, engine='x').create(VolumeSpec(f'v{number}')); print(number)\n"
        "    except errors.Conflict: pass\n"
    )
    run = [sys.executable, "-c", program, str(folders.data)]
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [number for one in both for number in one.communicate()[0].split()]
    assert [one.returncode for one in both] == [0, 0]
    assert sorted(made, key=int) == [str(number) for number in range(100)]
    assert len(store.rows({})) == 100


def test_volume_is_removed_while_another_process_opens_the_store(
    folders: objects.Folders, store: volumes.VolumeStore
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from codomyrmex_containerization.engines.embedded import objects, volumes\n"
        "print('ready', flush=True)\n"
        "while True: volumes.VolumeStore(objects.Folders(Path(sys.argv[1]), Path(sys.argv[1])), engine='x')\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folders.data)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            for _ in range(50):
                data = store.ensure("one", {})
                for number in range(20):
                    (data / str(number) / "deeper").mkdir(parents=True)
                store.remove("one", users={}, force=False)
            assert other.poll() is None, "it failed"
        finally:
            other.kill()
    assert store.rows({}) == []


def test_two_processes_make_and_remove_one_volume_over_and_over(
    folders: objects.Folders, store: volumes.VolumeStore
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from codomyrmex_containerization import errors\n"
        "from codomyrmex_containerization.engines.embedded import objects, volumes\n"
        "store = volumes.VolumeStore(objects.Folders(Path(sys.argv[1]), Path(sys.argv[1])), engine='x')\n"
        "for _ in range(100):\n"
        "    store.ensure('one', {})\n"
        "    try: store.remove('one', users={}, force=False)\n"
        "    except errors.NotFound: pass\n"
    )
    run = [sys.executable, "-c", program, str(folders.data)]
    both = [subprocess.Popen(run, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate()[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert store.rows({}) == []
    assert os.listdir(folders.volumes) == [".lock"]


def test_what_a_killed_process_left_is_taken_away(folders: objects.Folders) -> None:
    for name in (".new-x", ".gone-y"):
        (folders.volumes / name / "_data" / "deep").mkdir(parents=True)
    store = volumes.VolumeStore(folders, engine="embedded")
    assert store.rows({}) == []
    assert os.listdir(folders.volumes) == [".lock"]


# ----------------------------------------------------------------------------------------------------------- first data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    data = made / "srv" / "data"
    (data / "in").mkdir(parents=True)
    (data / "in" / "file").write_text("x")
    (data / "in" / "file").chmod(0o640)
    os.utime(data / "in" / "file", (5, 5))
    os.link(data / "in" / "file", data / "again")
    (data / "out").symlink_to("/etc/passwd")
    (data / "up").symlink_to("../../../../etc")
    os.mkfifo(data / "pipe")
    data.chmod(0o1770)
    return made


def test_empty_volume_gets_what_the_image_has(store: volumes.VolumeStore, root: Path) -> None:
    data = store.ensure("one", {})
    store.fill("one", root, "/srv/data")
    assert {str(one.relative_to(data)) for one in data.rglob("*")} == {"in", "in/file", "again", "out", "up", "pipe"}
    assert (data / "in" / "file").read_text() == "x"
    assert (data / "again").samefile(data / "in" / "file")
    found = (data / "in" / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o640, 5)
    assert stat.S_IMODE(data.stat().st_mode) == 0o1770
    assert [os.readlink(data / "out"), os.readlink(data / "up")] == ["/etc/passwd", "../../../../etc"]
    assert set(os.listdir(data.parent)) == {"_data", "volume.json", ".lock"}


@is_root
def test_owners_are_kept_and_devices_left_out(store: volumes.VolumeStore, root: Path) -> None:
    for path, owner in (("srv/data", 5), ("srv/data/in", 6), ("srv/data/in/file", 7), ("srv/data/out", 8)):
        os.chown(root / path, owner, owner, follow_symlinks=False)
    os.mknod(root / "srv" / "data" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    data = store.ensure("one", {})
    store.fill("one", root, "/srv/data")
    assert [(data / one).lstat().st_uid for one in (".", "in", "in/file", "out")] == [5, 6, 7, 8]
    assert not (data / "null").exists()


def test_volume_with_content_stays_as_it_is(store: volumes.VolumeStore, root: Path) -> None:
    data = store.ensure("one", {})
    (data / "own").touch()
    store.fill("one", root, "/srv/data")
    assert os.listdir(data) == ["own"]


def test_missing_target_and_a_file_leave_a_volume_empty(store: volumes.VolumeStore, root: Path) -> None:
    data = store.ensure("one", {})
    for target in ("/none", "/none/deeper", "/srv/data/in/file", "/srv/data/out"):
        store.fill("one", root, target)
        assert os.listdir(data) == []
    with pytest.raises(errors.NotFound):
        store.fill("none", root, "/srv/data")


def test_link_in_the_targets_way_leads_nowhere_outside(store: volumes.VolumeStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (root / "link").symlink_to(str(tmp_path / "outside"))
    (root / "up").symlink_to("../outside")
    (root / "inside").symlink_to("/srv/data")
    data = store.ensure("one", {})
    for target in ("/link", "/up", "/../outside"):
        store.fill("one", root, target)
        assert os.listdir(data) == []
    store.fill("one", root, "/inside")
    assert "in" in os.listdir(data)
