"""Are images loaded from every form of archive, saved so that others can load them, and hostile archives kept out?"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import content, content_config, layers
from codomyrmex_containerization.engines.embedded.archives import Format
from tests import backends, tally
from tests.engines.embedded.content_help import (
    CONFIG,
    HOSTILE,
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

ONE = tar(entry("etc", kind=tarfile.DIRTYPE, mode=0o755), ("etc/one", b"1"), ("both", b"from one"))
TWO = tar(("etc/two", b"2"), (".wh.both", b""))
FORMATS: tuple[Format, ...] = ("docker-archive", "oci-archive", "oci")


@pytest.fixture
def images(tmp_path: Path) -> content.ContentStore:
    """An empty store."""
    return store(tmp_path)


def stored(folder: Path, data: bytes) -> Path:
    path = folder / "archive.tar"
    path.write_bytes(data)
    return path


# -------------------------------------------------------------------------------------------------------------- loading


def check_loaded(images: content.ContentStore) -> None:
    found = images.image("made:1")
    assert found.id == digest(config(ONE, TWO))
    assert found.diff_ids == (digest(ONE), digest(TWO))
    assert [one.instruction for one in found.layers] == ["RUN step 0", "RUN step 1"] or found.layers[0].size_bytes == 9
    assert [one.size_bytes for one in found.layers] == [9, 1]
    assert found.size_bytes == 10
    assert (found.os, found.architecture) == ("linux", "amd64")
    assert found.created is not None
    assert found.created.isoformat() == "2024-01-02T03:04:05.678901+00:00"
    lower, upper = images.layer_folders(found)
    assert sorted(listing(lower)) == ["both", "etc", "etc/one"]
    assert (lower / "both").read_bytes() == b"from one"
    assert sorted(listing(upper)) == ["both", "etc", "etc/two"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_docker_archive_is_loaded(images: content.ContentStore, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (loaded,) = images.load(stored(tmp_path, pack(docker_archive(ONE, TWO))))
    assert loaded == images.image("made:1")
    check_loaded(images)


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, "+gzip"), (bytes, "")])
def test_oci_archive_and_layout_are_loaded(
    images: content.ContentStore, tmp_path: Path, pack: Callable[[bytes], bytes], suffix: str
) -> None:
    files = oci_files(ONE, TWO, pack=pack, suffix=suffix)
    images.load(stored(tmp_path, tar(*files.items())))
    check_loaded(images)
    first = images.image("made:1")
    images.remove("made:1", force=False, users={})
    images.load(write_files(tmp_path / "layout", files))
    check_loaded(images)
    assert images.image("made:1").digest == first.digest
    manifest = next(data for data in files.values() if digest(data) == first.digest)
    assert json.loads(manifest)["schemaVersion"] == 2


def test_links_between_layers_of_an_archive_are_followed_inside_of_it(
    images: content.ContentStore, tmp_path: Path
) -> None:
    manifest = [{"Config": "c.json", "RepoTags": ["made:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    images.load(
        stored(
            tmp_path,
            tar(
                ("a/layer.tar", ONE), entry("b/layer.tar", kind=tarfile.SYMTYPE, target="../a/layer.tar"),
                ("c.json", config(ONE, ONE)), ("manifest.json", json.dumps(manifest).encode()),
            ),
        )
    )  # fmt: skip
    found = images.image("made:1")
    assert found.diff_ids == (digest(ONE), digest(ONE))
    assert len(images.layer_folders(found)) == 2


def test_several_images_and_names_are_loaded(images: content.ContentStore, tmp_path: Path) -> None:
    about = config(ONE, created="2020-01-01T00:00:00Z")
    manifest = [
        {"Config": "1.json", "RepoTags": ["one:a", "docker.io/library/one:b"], "Layers": ["1.tar"]},
        {"Config": "2.json", "RepoTags": None, "Layers": ["1.tar"]},
    ]
    data = tar(
        ("1.tar", ONE), ("1.json", config(ONE)), ("2.json", about), ("manifest.json", json.dumps(manifest).encode())
    )
    path = stored(tmp_path, data)
    assert [one.tags for one in images.load(path)] == [("one:a", "one:b"), ()]
    with pytest.raises(errors.InvalidArgument, match="2 images"):
        images.load(path, tag="x:1")


def test_given_tag_is_the_images_only_name(images: content.ContentStore, tmp_path: Path) -> None:
    assert images.load(stored(tmp_path, docker_archive(ONE)), tag="mine")[0].tags == ("mine:latest",)
    with pytest.raises(errors.NotFound):
        images.image("made:1")


def test_layer_that_is_there_is_kept_once(images: content.ContentStore, tmp_path: Path) -> None:
    images.load(stored(tmp_path, docker_archive(ONE)))
    before = images.layer_folders(images.image("made:1"))[0].stat()
    images.load(stored(tmp_path, docker_archive(ONE, TWO, names=["other:1"])))
    after = images.layer_folders(images.image("other:1"))
    assert (after[0].stat().st_ino, after[0].stat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_index_of_several_machines_gives_this_ones_image(images: content.ContentStore, tmp_path: Path) -> None:
    here = content_config.host_architecture()
    mine, other = oci_files(ONE, names=()), oci_files(TWO, names=())
    entries = []
    for files, machine in ((other, "s390x"), (mine, here), (other, "unknown")):
        (listed,) = json.loads(files["index.json"])["manifests"]
        entries.append({**listed, "platform": {"architecture": machine, "os": "linux"}})
    inner = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    outer = {
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(inner), "size": len(inner),
        "annotations": {"org.opencontainers.image.ref.name": "made:1"},
    }  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "manifests": [outer]}).encode()
    files = {**mine, **other, f"blobs/sha256/{digest(inner)[7:]}": inner, "index.json": index}
    assert [one.tags for one in images.load(stored(tmp_path, tar(*files.items())))] == [("made:1",)]
    assert images.image("made:1").diff_ids == (digest(ONE),)


# ---------------------------------------------------------------------------------------------------------- what is bad


def broken_archives() -> list[tuple[str, bytes]]:
    def manifest(value: Any) -> bytes:
        return tar(("l.tar", ONE), ("c.json", config(ONE)), ("manifest.json", json.dumps(value).encode()))

    def oci(change: Callable[[dict[str, bytes]], None]) -> bytes:
        files = oci_files(ONE)
        change(files)
        return tar(*files.items())

    def swap(files: dict[str, bytes], found: Callable[[bytes], bool], new: bytes) -> None:
        name = next(name for name, data in files.items() if name.startswith("blobs") and found(data))
        files[name] = new

    good = {"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"]}
    return [
        ("no archive of images", ONE),
        ("no tar", b"hello, this is no archive at all" * 100),
        ("nothing", b""),
        ("a manifest that is no JSON", tar(("manifest.json", b"{"))),
        ("a manifest that nests without end", tar(("manifest.json", b"[" * 100_000))),
        ("a manifest of another kind", manifest({"Config": 1})),
        ("no images", manifest([])),
        ("a config that is not there", manifest([{**good, "Config": "x.json"}])),
        ("a config that leads out", manifest([{**good, "Config": "../../etc/passwd"}])),
        ("a config that is absolute", manifest([{**good, "Config": "/etc/passwd"}])),
        ("a config that is no text", manifest([{**good, "Config": 7}])),
        ("a layer that is not there", manifest([{**good, "Layers": ["x.tar"]}])),
        ("too few layers", manifest([{**good, "Layers": []}])),
        ("too many layers", manifest([{**good, "Layers": ["l.tar"] * 500}])),
        ("a name that is none", manifest([{**good, "RepoTags": ["A B"]}])),
        ("a name that is reserved", manifest([{**good, "RepoTags": ["host:latest"]}])),
        ("names that are no list", manifest([{**good, "RepoTags": "a:1"}])),
        ("a layer with another digest", docker_archive(TWO, about=config(ONE))),
        ("a config without rootfs", docker_archive(ONE, about=config(ONE, rootfs=None))),
        ("a digest that leads out", docker_archive(ONE, about=config(ONE, rootfs={"diff_ids": ["sha256:../../x"]}))),
        ("labels of another kind", docker_archive(ONE, about=config(ONE, config={"Labels": {"a": 1}}))),
        ("env of another kind", docker_archive(ONE, about=config(ONE, config={"Env": [1]}))),
        ("a hostile layer", docker_archive(tar(("../x", b"1")))),
        ("a layer that is no tar", docker_archive(b"x" * 2000)),
        ("links in a circle", tar(entry("manifest.json", kind=tarfile.SYMTYPE, target="manifest.json"))),
        ("a link to the host", tar(entry("manifest.json", kind=tarfile.SYMTYPE, target="/etc/passwd"))),
        ("a layer's blob changed", oci(lambda files: swap(files, lambda d: d[:2] == b"\x1f\x8b", gzip.compress(TWO)))),
        ("a config changed", oci(lambda files: swap(files, lambda d: b"rootfs" in d, config(TWO)))),
        ("a manifest changed", oci(lambda files: swap(files, lambda d: b"layers\"" in d and b"config\"" in d, b"{}"))),
        ("an index that names nothing", oci(lambda files: files.update({"index.json": b'{"manifests": [{}]}'}))),
        ("another version", oci(lambda files: files.update({"oci-layout": b'{"imageLayoutVersion": "2"}'}))),
        ("no layout", oci(lambda files: files.__delitem__("oci-layout"))),
        ("an artifact that is no image", tar(*oci_files(ONE, suffix="").items()).replace(b"layer.v1.tar", b"layer.v1.xyz")),
        ("gzip cut off", gzip.compress(docker_archive(ONE))[:-20]),
        ("tar cut off", docker_archive(ONE)[:3000]),
    ]  # fmt: skip


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize(("what", "data"), broken_archives(), ids=lambda one: one if isinstance(one, str) else "")
def test_bad_archive_is_an_error_and_leaves_nothing(
    images: content.ContentStore, tmp_path: Path, what: str, data: bytes
) -> None:
    with tally.attempt():
        with pytest.raises((errors.InvalidArgument, errors.Unsupported)) as caught:
            images.load(stored(tmp_path, data))
        assert caught.value.hint
        assert images.images() == []
        images.sweep()
        folder = images_folder(tmp_path)
        assert [os.listdir(folder / one) for one in ("layers", "tmp", "blobs/sha256")] == [[], [], []]


@pytest.mark.attack(HOSTILE)
def test_layout_with_links_is_refused(images: content.ContentStore, tmp_path: Path) -> None:
    layout = write_files(tmp_path / "layout", oci_files(ONE))
    blob = next(path for path in (layout / "blobs/sha256").iterdir() if b"rootfs" in path.read_bytes())
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with tally.attempt(), pytest.raises(errors.InvalidArgument, match="it is a link"):
        images.load(layout)


@pytest.mark.attack(HOSTILE)
def test_archive_that_grows_without_end_is_stopped(tmp_path: Path) -> None:
    images = store(tmp_path, bounds=layers.Bounds(most_bytes=1_000_000))
    bomb = tar(("zeros", bytes(2_000_000)))
    for data in (docker_archive(bomb), tar(*oci_files(bomb).items())):
        with tally.attempt(), pytest.raises(errors.InvalidArgument, match="1,000,000 bytes"):
            images.load(stored(tmp_path, data))


def test_path_that_is_no_archive_is_said(images: content.ContentStore, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        images.load(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.InvalidArgument, match="neither a file nor a folder"):
        images.load(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.InvalidArgument, match="no images"):
        images.load(tmp_path / "empty")


@pytest.mark.attack(HOSTILE)
def test_image_cannot_pass_off_its_blob_as_anothers_layer(images: content.ContentStore, tmp_path: Path) -> None:
    images.load(stored(tmp_path, tar(*oci_files(ONE).items())))
    files = oci_files(
        TWO, names=("evil:1",), about=config(ONE)
    )  # says that TWO's blob is the layer ONE, which is there
    with tally.attempt(), pytest.raises(errors.InvalidArgument, match="another digest"):
        images.load(stored(tmp_path, tar(*files.items())))


# --------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("format", FORMATS)
def test_saved_image_is_loaded_as_the_same(tmp_path: Path, format: Format) -> None:
    here, there = store(tmp_path / "here"), store(tmp_path / "there")
    (base,) = here.load(stored(tmp_path, tar(*oci_files(ONE, TWO).items())))
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "new").write_bytes(b"new")
    made = here.commit(parent=base, upper=upper, config=CONFIG, instruction="RUN new")
    here.tag(made.id, "made:2")
    here.save(["made:1", "made:2", base.id], tmp_path / "saved", format=format)
    there.load(tmp_path / "saved")
    assert {one.tags: one.id for one in there.images()} == {("made:1",): base.id, ("made:2",): made.id}
    if format != "docker-archive":
        assert there.image("made:1").digest == base.digest
        assert there.image("made:2").digest == made.digest
    assert [listing(one) for one in there.layer_folders(made)] == [listing(one) for one in here.layer_folders(made)]


def test_saved_file_is_private_and_replaces_what_was_there(images: content.ContentStore, tmp_path: Path) -> None:
    images.load(stored(tmp_path, docker_archive(ONE)))
    target = tmp_path / "saved.tar"
    target.write_bytes(b"before")
    images.save(["made:1"], target, format="docker-archive")
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        assert "manifest.json" in archive.getnames()


def test_failed_save_leaves_what_was_there(images: content.ContentStore, tmp_path: Path) -> None:
    (loaded,) = images.load(stored(tmp_path, docker_archive(ONE)))
    target = tmp_path / "out" / "saved"
    target.parent.mkdir()
    blob = images_folder(tmp_path) / "blobs/sha256" / digest(ONE)[7:]
    blob.write_bytes(TWO.ljust(len(ONE), b"\0"))
    for format in FORMATS:
        with pytest.raises(errors.Conflict, match="is damaged"):
            images.save([loaded.id], target, format=format)
    assert os.listdir(target.parent) == []


def test_save_onto_something_else_is_a_conflict(images: content.ContentStore, tmp_path: Path) -> None:
    images.load(stored(tmp_path, docker_archive(ONE)))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").write_bytes(b"kept")
    for format in FORMATS:
        with pytest.raises(errors.Conflict):
            images.save(["made:1"], folder, format=format)
    assert os.listdir(folder) == ["kept"]
    with pytest.raises(errors.Conflict):
        images.save(["made:1"], folder / "kept", format="oci")
    with pytest.raises(errors.NotFound):
        images.save(["none:1"], tmp_path / "x", format="oci")
    with pytest.raises(errors.EngineUnavailable):
        images.save(["made:1"], tmp_path / "no" / "folder", format="docker-archive")


# ------------------------------------------------------------------------------------------------------------ importing


def test_root_file_system_is_imported_from_a_tar_or_a_folder(images: content.ContentStore, tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", {"bin/sh": b"#!", "etc/passwd": b"root"})
    os.symlink("sh", root / "bin/bash")
    with tarfile.open(tmp_path / "root.tar.xz", "w:xz") as archive:
        archive.add(root, arcname=".")
    folder = images.import_rootfs(root, tag="folder", config=CONFIG)
    packed = images.import_rootfs(tmp_path / "root.tar.xz", tag="packed", config=CONFIG)
    assert folder.tags == ("folder:latest",)
    assert folder.diff_ids == packed.diff_ids
    assert folder.config == CONFIG
    assert folder.size_bytes == 6
    (layer,) = images.layer_folders(packed)
    assert sorted(listing(layer)) == ["bin", "bin/bash", "bin/sh", "etc", "etc/passwd"]


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize("data", [tar(("../x", b"")), tar(("a", b"1"))[:1024], b"junk" * 500, b"", bytes(1024)])
def test_bad_root_file_system_is_an_error(images: content.ContentStore, tmp_path: Path, data: bytes) -> None:
    with tally.attempt(), pytest.raises(errors.InvalidArgument):
        images.import_rootfs(stored(tmp_path, data), tag=None)
    assert images.images() == []


# --------------------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("program", ["docker", "podman"])
def test_others_load_what_is_saved_and_save_what_is_loaded(tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None or subprocess.run([program, "info"], capture_output=True).returncode:
        backends.missing(f"no {program} that answers")
    images = store(tmp_path)
    name = f"localhost/cxc-test-{os.getpid()}-{program}:1"
    images.load(stored(tmp_path, docker_archive(ONE, TWO)), tag=name)
    base = images.image(name)
    upper = write_files(tmp_path / "upper", {"new": b"new"})
    made = images.commit(parent=base, upper=upper, config=CONFIG, instruction="RUN new", comment="by a test")
    images.tag(made.id, name)
    formats: tuple[Format, ...] = ("docker-archive",) if program == "docker" else ("docker-archive", "oci-archive")
    for format in formats:
        images.save([name], tmp_path / "saved.tar", format=format)
        subprocess.run([program, "load", "--input", tmp_path / "saved.tar"], check=True, capture_output=True)
        try:
            shown = [program, "image", "inspect", "--format", "{{.Id}} {{json .RootFS.Layers}}", name]
            id, _, found = subprocess.run(shown, check=True, capture_output=True, text=True).stdout.partition(" ")
            assert id.removeprefix("sha256:") == made.id.removeprefix("sha256:")
            assert json.loads(found) == list(made.diff_ids)
            (tmp_path / "theirs.tar").unlink(missing_ok=True)
            subprocess.run(
                [program, "save", "--output", tmp_path / "theirs.tar", name], check=True, capture_output=True
            )
        finally:
            subprocess.run([program, "rmi", "--force", name], check=True, capture_output=True)
        other = store(tmp_path / format)
        (loaded,) = other.load(tmp_path / "theirs.tar")
        assert (loaded.id, loaded.tags, loaded.diff_ids) == (made.id, (name,), made.diff_ids)
