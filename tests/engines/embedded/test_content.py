"""Are images found, named, made, removed and kept whole, whoever else uses the store meanwhile?"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import content, content_config, objects
from codomyrmex_containerization.models.container import Healthcheck
from tests.engines.embedded.content_help import (
    CONFIG,
    config,
    digest,
    docker_archive,
    entry,
    images_folder,
    listing,
    oci_files,
    store,
    tar,
    write_files,
)

ONE = tar(entry("etc", kind=tarfile.DIRTYPE), ("etc/one", b"1"))
BEGIN = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


@pytest.fixture
def images(tmp_path: Path) -> content.ContentStore:
    """A store with one image, base:1."""
    made = store(tmp_path)
    path = tmp_path / "base.tar"
    path.write_bytes(docker_archive(ONE, names=["base:1"]))
    made.load(path)
    return made


def step(images: content.ContentStore, parent: str | None, mark: str, *, tag: str | None = None) -> objects.Image:
    """An image made by one more instruction, a minute later than the one before."""
    before = images.image(parent) if parent else None
    when = (before.created if before and before.created else BEGIN) + timedelta(minutes=1)
    made = images.commit(parent=before, upper=None, config=CONFIG, instruction=f"ENV MARK={mark}", created=when)
    if tag:
        images.tag(made.id, tag)
    return images.image(made.id)


# -------------------------------------------------------------------------------------------------------------- lookups


@pytest.mark.parametrize(
    "text", ["base:1", "docker.io/library/base:1", "docker.io/base:1", "{id}", "{hex}", "{short}", "sha256:{short}"]
)
def test_image_is_found_by_any_of_its_names(images: content.ContentStore, text: str) -> None:
    id = digest(config(ONE))
    assert images.image(text.format(id=id, hex=id[7:], short=id[7:19])).id == id


def test_name_with_a_digest_finds_the_image_of_that_name(images: content.ContentStore, tmp_path: Path) -> None:
    path = write_files(tmp_path / "layout", oci_files(ONE, names=("quay.io/team/app:2",)))
    (loaded,) = images.load(path)
    assert images.image(f"quay.io/team/app@{loaded.digest}").id == loaded.id
    assert images.image(f"quay.io/team/app:2@{loaded.digest}").id == loaded.id
    for other in (f"quay.io/team/other@{loaded.digest}", f"quay.io/team/app:1@{loaded.digest}"):
        with pytest.raises(errors.NotFound):
            images.image(other)


def test_latest_is_meant_where_no_tag_is_said(images: content.ContentStore) -> None:
    images.tag("base:1", "busybox")
    assert images.image("busybox").id == images.image("busybox:latest").id == images.image("base:1").id


@pytest.mark.parametrize("text", ["base", "none:1", "", "sha256:", "zz", "abc:def:ghi", "A B", "../x"])
def test_missing_image_is_not_found(images: content.ContentStore, text: str) -> None:
    with pytest.raises(errors.NotFound) as caught:
        images.image(text)
    assert caught.value.details == {"missing": "image"}


def test_beginning_of_several_ids_is_ambiguous(images: content.ContentStore) -> None:
    ids = [images.image("base:1").id, *(step(images, None, str(number)).id for number in range(17))]
    first = next(digit for digit in "0123456789abcdef" if sum(id[7] == digit for id in ids) > 1)
    with pytest.raises(errors.Ambiguous):
        images.image(first)


def test_list_is_newest_first_and_without_steps_in_between(images: content.ContentStore) -> None:
    between = step(images, "base:1", "between")
    last = step(images, between.id, "last")
    named = step(images, last.id, "named", tag="named:1")
    top = step(images, named.id, "top")
    assert [one.id for one in images.images()] == [top.id, named.id, images.image("base:1").id]
    assert [one.id for one in images.children(between.id)] == [last.id]
    assert last.parent == between.id
    assert [one.instruction for one in last.layers] == ["RUN step 0", "ENV MARK=between", "ENV MARK=last"]


# ---------------------------------------------------------------------------------------------------------------- names


def test_tag_moves_from_the_image_that_had_it(images: content.ContentStore) -> None:
    other = step(images, "base:1", "other", tag="other:1")
    images.tag("other:1", "base:1")
    assert images.image(other.id).tags == ("base:1", "other:1")
    assert images.image(digest(config(ONE))).tags == ()


@pytest.mark.parametrize(
    "name", ["A:1", "a b", "", "-x", "x:", "host", "host:2", "docker.io/library/host:1", f"x@sha256:{'1' * 64}"]
)
def test_name_that_no_image_can_have_is_refused(images: content.ContentStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        images.tag("base:1", name)
    with pytest.raises(errors.InvalidArgument):
        images.load(tmp_path / "base.tar", tag=name)
    with pytest.raises(errors.InvalidArgument):
        images.import_rootfs(tmp_path, tag=name)
    assert images.image("base:1").tags == ("base:1",)


def test_tag_of_a_missing_image_is_not_found(images: content.ContentStore) -> None:
    with pytest.raises(errors.NotFound):
        images.tag("none:1", "x:1")


# --------------------------------------------------------------------------------------------------------------- making


def test_commit_adds_a_layer_and_says_who_made_it(images: content.ContentStore, tmp_path: Path) -> None:
    base = images.image("base:1")
    upper = write_files(tmp_path / "upper", {"etc/two": b"22"})
    made = images.commit(parent=base, upper=upper, config=CONFIG, instruction="RUN two", created=BEGIN)
    assert made.diff_ids[:1] == base.diff_ids
    assert len(made.diff_ids) == 2
    assert (made.parent, made.created, made.config) == (base.id, BEGIN, CONFIG)
    assert [(one.instruction, one.size_bytes) for one in made.layers] == [("RUN step 0", 1), ("RUN two", 2)]
    assert sorted(listing(images.layer_folders(made)[1])) == ["etc", "etc/two"]
    assert (upper / "etc/two").read_bytes() == b"22"


def test_moved_folder_becomes_the_layer(images: content.ContentStore, tmp_path: Path) -> None:
    upper = write_files(tmp_path / "upper", {"file": b"1"})
    node = (upper / "file").stat().st_ino
    copied = images.commit(parent=None, upper=upper, config=CONFIG, instruction="COPY", created=BEGIN)
    images.remove(copied.id, force=True, users={})
    made = images.commit(parent=None, upper=upper, config=CONFIG, instruction="COPY", created=BEGIN, move=True)
    assert made.id == copied.id
    assert (images.layer_folders(made)[0] / "file").stat().st_ino == node
    assert not upper.exists()


def test_equal_contents_are_one_layer(images: content.ContentStore, tmp_path: Path) -> None:
    made = []
    for name in ("x", "y"):
        upper = write_files(tmp_path / name, {"b": b"1", "a": b"2"})
        for one in (upper / "a", upper / "b"):
            os.utime(one, (name == "x", 1_600_000_000.7))
        made.append(images.commit(parent=None, upper=upper, config=CONFIG, instruction=name, move=name == "y"))
    assert made[0].diff_ids == made[1].diff_ids
    assert made[0].id != made[1].id


def test_upper_folder_without_anything_changes_only_the_configuration(
    images: content.ContentStore, tmp_path: Path
) -> None:
    (tmp_path / "upper").mkdir(mode=0o755)
    base = images.image("base:1")
    made = images.commit(parent=base, upper=tmp_path / "upper", config=CONFIG, instruction="RUN true")
    assert made.diff_ids == base.diff_ids
    assert [one.size_bytes for one in made.layers] == [1, 0]


def test_commit_on_an_image_that_is_gone_is_a_conflict(images: content.ContentStore) -> None:
    base = images.image("base:1")
    images.remove("base:1", force=False, users={})
    with pytest.raises(errors.Conflict):
        images.commit(parent=base, upper=None, config=CONFIG, instruction="ENV X=1")
    assert images.images() == []


def test_too_many_layers_are_a_conflict(images: content.ContentStore, tmp_path: Path) -> None:
    made = None
    for number in range(content_config.MOST_LAYERS):
        upper = write_files(tmp_path / str(number), {"file": str(number).encode()})
        made = images.commit(parent=made, upper=upper, config=CONFIG, instruction="RUN", move=True)
    with pytest.raises(errors.Conflict, match="more than 127 layers"):
        images.commit(parent=made, upper=write_files(tmp_path / "u", {"f": b""}), config=CONFIG, instruction="RUN")


def test_configuration_says_all_that_it_was_given(images: content.ContentStore) -> None:
    whole = objects.ImageConfig(
        env=("A=1", "B=ä\ud800 \"x\""), entrypoint=("/e",), command=("c", ""), workdir="/w", user="1:2",
        labels={"b": "2", "a": ""}, exposed=("80/tcp", "81/udp"), volumes=("/v",),
        healthcheck=Healthcheck(("CMD", "true"), 30.0, 1.5, 3, 0.25), stop_signal="SIGINT", shell=("/bin/ash", "-c"),
    )  # fmt: skip
    made = images.commit(parent=None, upper=None, config=whole, instruction="x\udcff")
    assert made.config == whole
    assert store_again(images, made.id).config == whole


def store_again(images: content.ContentStore, id: str) -> objects.Image:
    images._described.clear()
    return images.image(id)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("/bin/sh -c #(nop)  CMD [\"sh\"]", 'CMD ["sh"]'),
        ("/bin/sh -c echo 1", "RUN echo 1"),
        ("|1 A=b /bin/sh -c echo 1", "RUN echo 1"),
        ("RUN /bin/sh -c echo 1 # buildkit", "RUN echo 1"),
        ("COPY a b # buildkit", "COPY a b"),
        ("", "(imported)"),
    ],
)  # fmt: skip
def test_history_is_told_as_a_dockerfile_has_it(written: str, shown: str) -> None:
    assert content_config.instruction(written) == shown


@pytest.mark.parametrize("created", [None, 7, "", "yesterday", "0001-01-01T00:00:00Z", "9999-99-99T00:00:00Z"])
def test_time_that_is_none_is_none(created: object) -> None:
    assert content_config.describe(config(ONE, created=created)).created is None


# -------------------------------------------------------------------------------------------------------------- removal


def test_removing_one_of_several_names_takes_only_that(images: content.ContentStore) -> None:
    images.tag("base:1", "other:1")
    id = images.image("base:1").id
    with pytest.raises(errors.Conflict, match="several names"):
        images.remove(id, force=False, users={})
    assert images.remove("base:1", force=False, users={id: ["one"]}) == ("base:1",)
    assert images.remove("other:1", force=False, users={}) == ("other:1", id)
    assert images.images() == []


def test_forced_removal_by_id_takes_all_names(images: content.ContentStore) -> None:
    images.tag("base:1", "other:1")
    id = images.image("base:1").id
    assert images.remove(id[7:20], force=True, users={}) == ("base:1", "other:1", id)


def test_image_that_a_container_uses_stays(images: content.ContentStore) -> None:
    base = images.image("base:1")
    for text in ("base:1", base.id):
        with pytest.raises(errors.Conflict, match="container one"):
            images.remove(text, force=False, users={base.id: ["one", "two"]})
    assert images.remove("base:1", force=True, users={base.id: ["one"]}) == ("base:1",)
    assert images.image(base.id).tags == ()
    assert images.layer_folders(base)[0].is_dir()
    with pytest.raises(errors.Conflict):
        images.remove(base.id, force=True, users={base.id: ["one"]})
    images.sweep()
    assert images.layer_folders(base)[0].is_dir()
    assert images.remove(base.id, force=False, users={}) == (base.id,)


def test_steps_in_between_go_with_the_last(images: content.ContentStore, tmp_path: Path) -> None:
    base = images.image("base:1")
    upper = write_files(tmp_path / "upper", {"big": b"1" * 10_000})
    first = images.commit(parent=base, upper=upper, config=CONFIG, instruction="RUN big")
    last = step(images, first.id, "last", tag="last:1")
    with pytest.raises(errors.Conflict, match="dependent child images"):
        images.remove(first.id, force=True, users={})
    layer = images.layer_folders(first)[1]
    assert images.remove("last:1", force=False, users={}) == ("last:1", last.id, first.id)
    assert not layer.exists()
    assert images.layer_folders(base)[0].is_dir()


def test_name_of_an_image_with_children_is_taken_and_the_image_stays(images: content.ContentStore) -> None:
    base = images.image("base:1")
    child = step(images, "base:1", "child", tag="child:1")
    assert images.remove("base:1", force=False, users={}) == ("base:1",)
    assert images.remove("child:1", force=False, users={}) == ("child:1", child.id, base.id)


def test_used_step_in_between_stays(images: content.ContentStore) -> None:
    between = step(images, "base:1", "between")
    last = step(images, between.id, "last", tag="last:1")
    assert images.remove("last:1", force=False, users={between.id: ["one"]}) == ("last:1", last.id)
    assert images.image(between.id)


def test_sweep_takes_what_crashes_left_and_nothing_else(images: content.ContentStore, tmp_path: Path) -> None:
    folder = images_folder(tmp_path)
    write_files(folder, {f"layers/{'1' * 64}/deep/file": b"1" * 50_000, f"blobs/sha256/{'2' * 64}": b"1" * 50_000})
    write_files(folder, {"tmp/left/layer/file": b"1" * 50_000})
    assert images.sweep() >= 150_000
    assert os.listdir(folder / "tmp") == []
    assert images.sweep() == 0
    assert listing(images.layer_folders(images.image("base:1"))[0])
    images.save(["base:1"], tmp_path / "saved", format="docker-archive")


# ------------------------------------------------------------------------------------------------------- what goes wrong


def test_missing_layer_is_unpacked_again(images: content.ContentStore, tmp_path: Path) -> None:
    base = images.image("base:1")
    (layer,) = images.layer_folders(base)
    before = listing(layer)
    layer.rename(tmp_path / "away")
    assert listing(images.layer_folders(base)[0]) == before


def test_layer_that_is_lost_is_a_conflict_that_names_it(images: content.ContentStore, tmp_path: Path) -> None:
    base = images.image("base:1")
    images.layer_folders(base)[0].rename(tmp_path / "away")
    blob = images_folder(tmp_path) / "blobs/sha256" / digest(ONE)[7:]
    for damage in (lambda: blob.write_bytes(tar(("etc/other", b"1"))), lambda: blob.write_bytes(b"junk"), blob.unlink):
        damage()
        with pytest.raises(errors.Conflict, match=digest(ONE)):
            images.layer_folders(base)
        assert os.listdir(images_folder(tmp_path) / "layers") == []


def test_damaged_configuration_or_index_is_an_error_never_an_empty_store(
    images: content.ContentStore, tmp_path: Path
) -> None:
    folder = images_folder(tmp_path)
    (folder / "blobs/sha256" / digest(config(ONE))[7:]).write_bytes(b"{}")
    with pytest.raises(errors.Conflict, match="damaged"):
        store(tmp_path).images()
    for text in (b"", b"{", b"[]", b'{"version": 99}', b'{"version": 1, "images": {"x": 1}}'):
        (folder / "index.json").write_bytes(text)
        with pytest.raises(errors.EngineUnavailable, match="damaged"):
            store(tmp_path).images()
        with pytest.raises(errors.EngineUnavailable, match="damaged"):
            images.tag("base:1", "x:1")
        assert (folder / "index.json").read_bytes() == text


def test_store_is_its_users_alone(tmp_path: Path) -> None:
    folder = images_folder(tmp_path)
    folder.mkdir(parents=True, mode=0o777)
    store(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# ---------------------------------------------------------------------------------------------------------- build cache


def test_build_cache_knows_images_while_they_are_there(images: content.ContentStore) -> None:
    assert images.cached("key") is None
    made = step(images, "base:1", "made", tag="made:1")
    images.remember("key", made)
    assert images.cached("key") == made
    images.remove("made:1", force=False, users={})
    assert images.cached("key") is None


# ------------------------------------------------------------------------------------------------------------- together


def _work(folder: Path, number: int) -> None:
    images = store(folder)
    for turn in range(5):
        images.load(folder / "base.tar")
        upper = write_files(folder / f"upper-{number}-{turn}", {"file": f"{number} {turn}".encode()})
        made = images.commit(parent=None, upper=upper, config=CONFIG, instruction=f"RUN {number} {turn}", move=True)
        images.tag(made.id, f"worker:{number}-{turn}")
        images.layer_folders(images.image("base:1"))
        if turn % 2:
            images.remove(f"worker:{number}-{turn}", force=False, users={})
        images.sweep()


def run_beside(target: Callable[..., None], arguments: list[tuple[object, ...]]) -> list[int | None]:
    """Run a function in processes of its own; return how they ended."""
    several = multiprocessing.get_context("fork")
    running = [several.Process(target=target, args=one) for one in arguments]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return [one.exitcode for one in running]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_use_one_store_at_the_same_time(images: content.ContentStore, tmp_path: Path) -> None:
    assert run_beside(_work, [(tmp_path, number) for number in range(4)]) == [0] * 4
    assert sorted(tag for one in images.images() for tag in one.tags) == sorted(
        ["base:1", *(f"worker:{number}-{turn}" for number in range(4) for turn in (0, 2, 4))]
    )
    for one in images.images():
        assert all(layer.is_dir() for layer in images.layer_folders(one))
    images.sweep()
    assert os.listdir(images_folder(tmp_path) / "tmp") == []
    assert len(os.listdir(images_folder(tmp_path) / "layers")) == 13


def _as_nobody(folder: Path) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    images = store(folder)
    images.load(folder / "layers.tar")
    lower, upper = images.layer_folders(images.image("made:1"))
    assert (lower / "etc/one").stat().st_uid == 65534
    assert stat.S_ISCHR((upper / "gone").lstat().st_mode)
    assert os.getxattr(upper / "etc", "user.overlay.opaque") == b"y"
    made = images.commit(parent=images.image("made:1"), upper=lower, config=CONFIG, instruction="RUN")
    assert stat.S_IMODE((lower / "etc/one").stat().st_mode) == 0
    images.save([made.id], folder / "saved.tar", format="oci-archive")
    images.remove("made:1", force=False, users={})
    images.remove(made.id, force=False, users={})
    assert os.listdir(images_folder(folder) / "layers") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ordinary_user_has_a_store_too(tmp_path: Path) -> None:
    folder = tmp_path
    for one in (folder, *folder.parents):
        if one.stat().st_mode & 0o011 != 0o011:  # a folder of this run, which was made private
            assert one.is_relative_to(tempfile.gettempdir())
            os.chmod(one, 0o711)
    home = folder / "home"
    home.mkdir()
    lower = tar(
        entry("./", kind=tarfile.DIRTYPE, mode=0o555),
        entry("etc", kind=tarfile.DIRTYPE, mode=0o100, uid=7, gid=8),
        (entry("etc/one", mode=0, uid=7, gid=8), b"1"),
    )
    upper = tar((".wh.gone", b""), ("etc/.wh..wh..opq", b""))
    (home / "layers.tar").write_bytes(docker_archive(lower, upper))
    os.chown(home, 65534, 65534)
    assert run_beside(_as_nobody, [(home,)]) == [0]
    again = store(tmp_path / "again")
    (loaded,) = again.load(home / "saved.tar")
    copied = again.layer_folders(loaded)[2]
    assert (copied / "etc").stat().st_uid == 0
    assert (copied / "etc/one").read_bytes() == b"1"
    assert stat.S_IMODE((copied / "etc/one").stat().st_mode) == 0


# -------------------------------------------------------------------------------------------------- ends in the middle

_TOUCHING = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "open")


def _die_at(folder: Path, moment: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in _TOUCHING:
            count += 1
            if count == moment:
                os._exit(9)

    sys.addaudithook(hook)
    images = store(folder)
    (loaded,) = images.load(folder / "other.tar")
    upper = write_files(folder / "upper", {"a/new": b"new"})
    made = images.commit(parent=loaded, upper=upper, config=CONFIG, instruction="RUN")
    images.tag(made.id, "base:1")
    images.remove("other:1", force=False, users={})
    images.remove("base:1", force=False, users={})
    os._exit(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_store_is_whole_whenever_its_user_dies(tmp_path: Path) -> None:
    two = tar(entry("d", kind=tarfile.DIRTYPE), ("d/f", b"1" * 2000), ("d/g", b"2"))
    ends: list[int | None] = []
    for moment in itertools.count(1, 3):
        folder = tmp_path / str(moment)
        folder.mkdir()
        (folder / "base.tar").write_bytes(docker_archive(ONE, names=["base:1"]))
        (folder / "other.tar").write_bytes(docker_archive(ONE, two, names=["other:1"]))
        store(folder).load(folder / "base.tar")
        ends += run_beside(_die_at, [(folder, moment)])
        images = store(folder)
        assert images.image(digest(config(ONE))) or ends[-1] == 0
        for one in images.images():
            for path, size in zip(images.layer_folders(one), (1, 2001, 3), strict=False):
                assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) == size
            images.save([one.id], folder / "saved.tar", format="docker-archive")
        images.sweep()
        known = {layer for one in images.images() for layer in one.diff_ids}
        assert {f"sha256:{one}" for one in os.listdir(images_folder(folder) / "layers")} == known
        assert os.listdir(images_folder(folder) / "tmp") == []
        shutil.rmtree(folder)
        if ends[-1] == 0:
            break
    assert ends.count(9) > 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place]).returncode:
        pytest.skip("no file system can be mounted here: run the tests as root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_full_disk_is_said_and_does_no_harm(small_disk: Path, tmp_path: Path) -> None:
    images = store(small_disk)
    (tmp_path / "base.tar").write_bytes(docker_archive(ONE, names=["base:1"]))
    (tmp_path / "large.tar").write_bytes(docker_archive(tar(("large", os.urandom(1_500_000)))))
    images.load(tmp_path / "base.tar")
    with pytest.raises(errors.EngineUnavailable, match="No space left on device"):
        images.load(tmp_path / "large.tar")
    with pytest.raises(errors.EngineUnavailable, match="No space left on device"):
        images.import_rootfs(write_files(tmp_path / "root", {"large": bytes(3_000_000)}), tag=None)
    assert [one.tags for one in images.images()] == [("base:1",)]
    assert os.listdir(images_folder(small_disk) / "tmp") == []
    images.tag("base:1", "other:1")


def test_folder_that_cannot_be_written_is_said(small_disk: Path) -> None:
    store(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(errors.EngineUnavailable, match="Read-only file system"):
        store(small_disk / "new")
    with pytest.raises(errors.EngineUnavailable, match="Read-only file system"):
        store(small_disk).commit(parent=None, upper=None, config=CONFIG, instruction="ENV A=1")
