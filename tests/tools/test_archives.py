"""What do the tools do that make files of images and containers, and images of files, and what do they ask before?

SPEC B99.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.engines import guard
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House

MIB = 1024 * 1024


@dataclass(slots=True)
class Shelf:
    """Names of a test's own, and what others made under them."""

    docker: DockerCommandLine
    base: str
    label: str
    containers: list[str] = field(default_factory=list)
    name: str = field(default_factory=lambda: f"localhost/cxc-archives-{uuid.uuid4().hex[:8]}")

    def others(self, tag: str, *instructions: str) -> str:
        """Build an image that is a stranger's and return its name."""
        lines = [f"FROM {self.base}", f"LABEL made={uuid.uuid4().hex} {self.label}", *instructions]
        self.docker(["build", "--tag", f"{self.name}:{tag}", "-"], stdin="\n".join(lines).encode())
        return f"{self.name}:{tag}"

    def id(self, image: str) -> str:
        """The id of an image, empty when there is none."""
        return self.docker(["image", "inspect", "--format", "{{.Id}}", image], check=False).stdout.strip()

    def container(self, *command: str) -> str:
        """Run a stranger's container to its end."""
        name = f"cxc-archives-{uuid.uuid4().hex[:8]}"
        self.docker(["run", "--name", name, "--label", self.label, self.base, *command])
        self.containers.append(name)
        return name

    def clear(self) -> None:
        """Remove what there is of these names, and what lost them."""
        if self.containers:
            self.docker(["rm", "--force", *self.containers])
        named = self.docker(["images", "--quiet", "--filter", f"reference={self.name}"]).stdout.split()
        marks = (self.label, "made-by=test_archives")
        lost = [
            one
            for mark in marks
            for one in self.docker(
                ["images", "--quiet", "--filter", "dangling=true", "--filter", f"label={mark}"]
            ).stdout.split()
        ]
        left = list(dict.fromkeys([*named, *lost]))
        if left:
            self.docker(["rmi", "--force", *left], check=False)


@pytest.fixture
def shelf(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Shelf]:
    made = Shelf(docker_cli, busybox_image, session_label)
    yield made
    made.clear()


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The process stands in a folder of the test's own, which is therefore an allowed path."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
async def house(shelf: Shelf) -> AsyncIterator[House]:
    rules = {"policy__allowed_paths": [str(Path.cwd())]}
    async with harness.opened(engine="docker", toolsets=["all"], buildx="off", **rules) as opened:
        yield opened
        for row in await opened.engine.list_images():
            if not row.tags and opened.engine.owns("image", row.id):
                await opened.engine.remove_image(row.id, force=True)


async def confirmed(house: House, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool that asks, and once more with the token that it gives."""
    outcome = await house.fails("confirmation_required", tool, arguments)
    return await house.ok(tool, arguments, confirm_token=outcome.error_data["confirm_token"])


def packed(files: Mapping[str, bytes], *, mode: str = "w") -> bytes:
    """A tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]  # any mode that writes
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def root_filesystem(folder: Path, mark: str) -> Path:
    """A root file system that holds one file."""
    path = folder / f"{mark}.tar"
    path.write_bytes(packed({"mark": mark.encode()}))
    return path


def short(id: str) -> str:
    return id.removeprefix("sha256:")[:12]


# ------------------------------------------------------------------------------------------------------- save and load


async def test_own_image_is_saved_removed_and_loaded_without_a_question(house: House, shelf: Shelf) -> None:
    tag = f"{shelf.name}:own"
    text = f"FROM {shelf.base}\nLABEL {shelf.label}\nENV MARK={tag}\n"
    await house.ok("container_build", image_name=tag, dockerfile_text=text)
    id = shelf.id(tag)
    saved = await house.ok("image_save", image=tag, path="own.tar")
    assert (saved["id"], saved["format"], saved["path"]) == (
        short(id),
        "docker-archive",
        str(Path("own.tar").resolve()),
    )
    assert saved["bytes"] == Path("own.tar").stat().st_size > 500_000
    assert Path("own.tar").stat().st_mode & 0o777 == 0o600
    await house.ok("image_remove", image=tag)
    loaded = await house.ok("image_load", path="own.tar", tag=f"{shelf.name}:also")
    (row,) = loaded["images"]
    assert (row["id"], sorted(row["tags"])) == (short(id), [f"{shelf.name}:also", tag])
    assert loaded["engine"] == "docker"
    assert any("saving" in one for one in house.progress)
    assert any("loading own.tar" in one for one in house.progress)
    assert house.engine.owns("image", id)
    await house.ok("image_load", path="own.tar")


async def test_loading_asks_before_it_takes_a_name_from_an_image_of_others(house: House, shelf: Shelf) -> None:
    tag = shelf.others("1")
    await house.ok("image_save", image=tag, path="one.tar")
    first, second = shelf.id(tag), shelf.id(shelf.others("1"))
    outcome = await house.fails("confirmation_required", "image_load", path="one.tar")
    (lost,) = outcome.error_data["lost"]
    assert tag in lost
    assert short(second) in lost
    assert shelf.id(tag) == second
    await confirmed(house, "image_load", {"path": "one.tar"})
    assert shelf.id(tag) == first
    assert not house.engine.owns("image", first), "it was there before"


async def test_token_for_a_load_is_worth_nothing_for_another_archive(house: House, shelf: Shelf) -> None:
    tag = shelf.others("1")
    await house.ok("image_save", image=tag, path="one.tar")
    outcome = await house.fails("confirmation_required", "image_load", path="one.tar")
    data = Path("one.tar").read_bytes()
    Path("other.tar").write_bytes(data)
    os.rename("other.tar", "one.tar")
    token = outcome.error_data["confirm_token"]
    await house.fails("confirmation_required", "image_load", path="one.tar", confirm_token=token)


async def test_extra_name_of_a_loaded_image_is_asked_about_too(house: House, shelf: Shelf) -> None:
    tag = shelf.others("1")
    (config,) = json.loads(shelf.docker(["image", "inspect", tag]).stdout)
    shelf.docker(["save", "--output", "nameless.tar", config["Id"]])
    outcome = await house.fails("confirmation_required", "image_load", path="nameless.tar", tag=tag)
    assert tag in outcome.error_data["lost"][0]
    (row,) = (await house.ok("image_load", path="nameless.tar"))["images"]
    assert row["id"] == short(config["Id"])


HIDDEN_NAMES: dict[str, dict[str, object]] = {
    "in a folder": {"x/manifest.json": [{"RepoTags": ["NAME"]}], "manifest.json": []},
    "in another case": {"manifest.json": [{"repotags": ["NAME"]}]},
    "in an index": {"manifest.json": [], "index.json": {"manifests": [{"annotations": {"io.containerd.image.name": "NAME"}}]}},
    "in what old ones have": {"repositories": {"REPOSITORY": {"1": "id"}}},
}  # fmt: skip


@pytest.mark.parametrize("hidden", HIDDEN_NAMES)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
async def test_name_is_asked_about_wherever_an_archive_hides_it(
    hidden: str, mode: str, house: House, shelf: Shelf
) -> None:
    tag = shelf.others("1")
    texts = {name: json.dumps(raw).replace("NAME", tag) for name, raw in HIDDEN_NAMES[hidden].items()}
    files = {name: text.replace("REPOSITORY", shelf.name).encode() for name, text in texts.items()}
    Path("hidden.tar").write_bytes(packed(files, mode=mode))
    outcome = await house.fails("confirmation_required", "image_load", path="hidden.tar")
    assert tag in outcome.error_data["lost"][0]


async def test_damaged_archives_are_invalid_arguments(house: House, shelf: Shelf) -> None:
    await house.ok("image_save", image=shelf.base, path="whole.tar")
    whole = Path("whole.tar").read_bytes()
    link = tarfile.TarInfo("manifest.json")
    link.type, link.linkname = tarfile.SYMTYPE, "other"
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w") as archive:
        archive.addfile(link)
    broken = {
        "empty": b"",
        "rubbish": os.urandom(3000),
        "cut": whole[: len(whole) // 2],
        "other": packed({"a": b"x"}),
        "no json": packed({"manifest.json": b"[" * 100_000}),
        "no name": packed({"manifest.json": b'[{"RepoTags":["UPPER:1"]}]'}),
        "linked": linked.getvalue(),
    }
    for name, data in broken.items():
        Path("broken.tar").write_bytes(data)
        outcome = await house.fails("invalid_argument", "image_load", path="broken.tar")
        assert outcome.error_data["hint"], name
    await house.fails("invalid_argument", "image_load", path="missing.tar")
    await house.fails("invalid_argument", "image_load", path=".")


async def test_forms_of_other_engines_are_named(house: House, shelf: Shelf) -> None:
    for form in ("oci-archive", "oci"):
        outcome = await house.fails("unsupported", "image_save", image=shelf.base, path="x", format=form)
        assert "embedded" in outcome.error_data["hint"]
    assert os.listdir() == []


# ---------------------------------------------------------------------------------------------------------- host paths


@pytest.mark.parametrize(
    ("tool", "more"),
    [("image_load", {}), ("image_import", {"tag": "localhost/x"}), ("image_save", {"image": ""}), ("container_export", {})],
)  # fmt: skip
async def test_paths_outside_the_allowed_ones_are_refused(
    tool: str, more: dict[str, str], house: House, shelf: Shelf, tmp_path: Path, private_folders: Path
) -> None:
    outside = tmp_path / "outside.tar"
    outside.write_bytes(b"x")
    (private_folders / ".ssh").mkdir()
    Path("link.tar").symlink_to(outside)
    Path("folder").symlink_to(tmp_path)
    given = {**more, **({"image": shelf.base} if "image" in more else {})}
    if tool == "container_export":
        given["container"] = shelf.container("true")
    reads = tool in ("image_load", "image_import")
    paths = [str(outside), "../outside.tar", "folder/outside.tar", "~/.ssh/id", "/etc/passwd", "/"]
    for path in [*paths, "link.tar"] if reads else paths:
        outcome = await house.call(tool, {**given, "path": path})
        assert outcome.error_data.get("code") == "refused", (path, outcome.text)
    assert outside.read_bytes() == b"x"


async def test_overwriting_asks_and_replaces_the_link_not_what_it_leads_to(
    house: House, shelf: Shelf, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.tar"
    outside.write_bytes(b"precious")
    Path("link.tar").symlink_to(outside)
    Path("old.tar").write_bytes(b"old")
    for path in ("old.tar", "link.tar"):
        await confirmed(house, "image_save", {"image": shelf.base, "path": path})
        assert tarfile.is_tarfile(path)
        assert not Path(path).is_symlink()
    assert outside.read_bytes() == b"precious"
    Path("folder").mkdir()
    await house.fails("conflict", "image_save", image=shelf.base, path="folder")
    assert sorted(os.listdir()) == ["folder", "link.tar", "old.tar"]


# ---------------------------------------------------------------------------------------------------- import and export


async def test_exported_container_becomes_an_image_of_this_run(house: House, shelf: Shelf) -> None:
    container = shelf.container("sh", "-c", "echo kept > /kept")
    exported = await house.ok("container_export", container=container, path="root.tar")
    assert (exported["container"], exported["bytes"]) == (container, Path("root.tar").stat().st_size)
    await confirmed(house, "container_export", {"container": container, "path": "root.tar"})
    made = await house.ok("image_import", path="root.tar", tag=f"{shelf.name}:imported")
    assert made["tag"] == f"{shelf.name}:imported"
    id = shelf.id(made["tag"])
    assert made["id"] == short(id)
    assert house.engine.owns("image", id)
    assert guard.LABEL_HOST in (await house.engine.inspect_image(id)).labels
    ran = await house.ok("container_run", image=made["tag"], command=["/bin/cat", "/kept"])
    assert ran["stdout"] == "kept\n"
    await house.ok("image_remove", image=made["tag"])


async def test_import_asks_before_it_takes_a_name_from_an_image_of_others(
    house: House, shelf: Shelf, working_folder: Path
) -> None:
    tag, path = shelf.others("1"), str(root_filesystem(working_folder, "one"))
    before = shelf.id(tag)
    await house.fails("confirmation_required", "image_import", path=path, tag=tag)
    assert shelf.id(tag) == before
    await confirmed(house, "image_import", {"path": path, "tag": tag})
    assert shelf.id(tag) != before
    await house.ok("image_import", path=str(root_filesystem(working_folder, "two")), tag=tag)


async def test_folder_becomes_an_image(house: House, shelf: Shelf) -> None:
    Path("root/etc").mkdir(parents=True)
    Path("root/etc/mark").write_text("here\n")
    made = await house.ok("image_import", path="root", tag=f"{shelf.name}:folder")
    assert made["size_bytes"] == 5
    await house.fails("invalid_argument", "image_import", path="none", tag=f"{shelf.name}:folder")
    await house.fails("invalid_argument", "image_import", path="root", tag="UPPER")
    await house.fails("invalid_argument", "image_import", path="root", tag="x@sha256:" + "0" * 64)


# -------------------------------------------------------------------------------------------------------------- limits


async def test_limits_are_changed_and_the_others_stay(house: House, shelf: Shelf) -> None:
    made = await house.ok("container_run", image=shelf.base, command="sleep 1000", detach=True, memory="64m", cpus=0.5)
    outcome = await house.call("container_update", container=made["name"], memory="96m", pids_limit=77)
    assert outcome.structured is not None
    now = {name: outcome.structured[name] for name in ("memory_bytes", "cpus", "pids_limit")}
    assert now == {"memory_bytes": 96 * MIB, "cpus": 0.5, "pids_limit": 77}
    assert outcome.text == f"{made['name']}: memory 96M, cpus 0.5, pids_limit 77"
    for wrong in ({}, {"memory": "much"}, {"cpus": 0}, {"pids_limit": -1}):
        await house.fails("invalid_argument", "container_update", {"container": made["name"], **wrong})


async def test_limits_of_others_are_asked_about_where_the_policy_says_so(shelf: Shelf) -> None:
    container = shelf.container("true")
    async with harness.opened(engine="docker", toolsets=["all"], policy__foreign="ask") as house:
        outcome = await house.fails("confirmation_required", "container_update", container=container, cpus=0.5)
        assert container in outcome.text
    async with harness.opened(engine="docker", toolsets=["all"], policy__foreign="refuse") as house:
        await house.fails("refused", "container_update", container=container, cpus=0.5)


# ------------------------------------------------------------------------------------------------- engines of their own


async def test_engine_in_memory_names_those_that_can(working_folder: Path) -> None:
    path = root_filesystem(working_folder, "one")
    manifest = packed({"manifest.json": b'[{"Config":"x.json","RepoTags":null,"Layers":[]}]'})
    Path("image.tar").write_bytes(manifest)
    async with harness.opened(engines=("memory",), toolsets=("all",)) as house:
        for tool, given in {
            "image_load": {"path": "image.tar"},
            "image_import": {"path": str(path), "tag": "x"},
            "image_save": {"image": "localhost/memory-base:1", "path": "out.tar"},
        }.items():
            outcome = await house.fails("unsupported", tool, given)
            assert "docker" in outcome.error_data["hint"]
    assert not Path("out.tar").exists()


async def test_embedded_engine_saves_and_loads_every_form(working_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the embedded engine's tests need root")
    Path("root").mkdir()
    Path("root/mark").write_text("here\n")
    async with harness.opened(engines=("embedded",), toolsets=("all",)) as house:
        made = await house.ok("image_import", path="root", tag="shop/web:1")
        for number, form in enumerate(("docker-archive", "oci-archive", "oci")):
            saved = await house.ok("image_save", image="shop/web:1", path=f"saved-{number}", format=form)
            assert saved["bytes"] > 0
            (row,) = (await house.ok("image_load", path=f"saved-{number}"))["images"]
            assert (row["id"], row["tags"]) == (made["id"], ["shop/web:1"])
        outcome = await house.fails("conflict", "image_save", image="shop/web:1", path="saved-2", format="oci")
        assert "/proc/" not in outcome.text
        assert str(working_folder) in outcome.text
        await house.fails("invalid_argument", "image_import", path="root", tag="host")
        await house.fails("unsupported", "image_save", image="host", path="host.tar")
        assert sorted(os.listdir()) == ["root", "saved-0", "saved-1", "saved-2"]
