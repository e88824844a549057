"""Does a container come to another machine's engine as it was, and does a file that lies or is damaged make nothing?

SPEC B117, SPEC B118, SPEC B119.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import host_image
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import (
    ContainerSpec,
    Healthcheck,
    Limits,
    Mount,
    PortMapping,
    RestartPolicy,
)
from codomyrmex_containerization.models.storage import NetworkSpec
from tests import embedded

WRITES = "echo kept > /root/file; chmod 640 /root/file; chown 65534:65534 /root/file; rm /etc/group; mkdir -p /a/b; ln -s /b /a/link"
Parts = dict[str, bytes]


@dataclass(slots=True)
class Machines:
    """Two engines that know nothing of one another, and a folder between them."""

    here: EmbeddedEngine
    there: EmbeddedEngine
    image: str
    folder: Path

    async def written(self, script: str = WRITES, **more: Any) -> str:
        """Run a script to its end in a container here and return its id."""
        made = await self.here.create_container(ContainerSpec(self.image, command=("sh", "-c", script), **more))
        await self.here.start_container(made)
        await self.here.wait_container(made)
        return made

    async def made(self) -> str:
        """Create a container here that is not started and return its id."""
        return await self.here.create_container(ContainerSpec(self.image, command=("true",)))

    async def sent(self, container: str, name: str = "sent.tar") -> Path:
        """Write a container of here to a file."""
        path = self.folder / name
        await self.here.export_container(container, path, format="state")
        return path

    async def received(self, path: Path, **more: Any) -> str:
        """Make a container there of a file."""
        stored = await self.there.stored_container(path)
        return await self.there.import_container(path, replace(stored.spec, **more))

    def forged(self, path: Path, change: Callable[[Parts], None], *, honest: bool = True) -> Path:
        """Write the archive anew with other parts; an `honest` one has the digests that belong to them."""
        with tarfile.open(path) as archive:
            parts = {one.name: archive.extractfile(one).read() for one in archive if one.isfile()}  # type: ignore[union-attr]
        change(parts)
        if honest:
            digests = {one: digest(parts[one]) for one in ("container.json", "layer.tar") if one in parts}
            parts["digests.json"] = json.dumps(digests).encode()
        target = path.with_name("forged.tar")
        target.write_bytes(packed(parts))
        return target


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, there = embedded.engine(tmp_path / "here"), embedded.engine(tmp_path / "there")
    image = embedded.base_image(here, tmp_path)
    yield Machines(here, there, image, tmp_path)
    for one in (here, there):
        embedded.swept(one)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def packed(parts: Mapping[str, bytes], *entries: tarfile.TarInfo) -> bytes:
    """A tar of files and other entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for one in entries:
            archive.addfile(one)
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes, **more: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    for key, value in more.items():
        setattr(entry, key, value)
    return entry


async def said(engine: EmbeddedEngine, container: str, script: str) -> str:
    """What a script says in a container that is started for it."""
    await engine.start_container(container)
    assert await engine.wait_container(container) == 0

    def first(pieces: Any) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            assert file is not None
            return file.read()

    return (await engine.read_archive(container, script, first)).decode()


# ------------------------------------------------------------------------------------------------- from one to the other


async def test_container_is_there_with_its_files_and_runs(machines: Machines) -> None:
    script = (
        f"test -e /root/file || {{ {WRITES}; exit 0; }}; stat -c '%a %u:%g' /root/file > /out; cat /root/file >> /out"
    )
    script += "; test -e /etc/group && echo group >> /out; readlink /a/link >> /out"
    made = await machines.written(f"{script}; true", name="shop")
    path = await machines.sent(made)
    assert path.stat().st_mode & 0o777 == 0o600
    there = await machines.received(path)
    state = await machines.there.inspect_container("shop")
    assert (state.id, state.status, state.started_at) == (there, "created", None)
    assert there != made
    assert await machines.there.changes(there) == await machines.here.changes(made)
    assert await said(machines.there, there, "/out") == "640 65534:65534\nkept\n/b\n"


async def test_settings_come_along(machines: Machines) -> None:
    given: dict[str, Any] = {
        "env": {"WORD": "ä b"},
        "labels": {"own": "label"},
        "limits": Limits(memory_bytes=64 * 1024 * 1024, pids_limit=50),
        "restart": RestartPolicy("on-failure", 2),
        "healthcheck": Healthcheck(("CMD", "true"), interval_seconds=5.0),
        "ports": (PortMapping(80),),
        "mounts": (Mount("tmpfs", "/scratch"), Mount("volume", "/data", "kept"), Mount("volume", "/cache")),
        "user": "65534",
        "workdir": "/tmp",
        "read_only_rootfs": True,
        "cap_drop": ("CHOWN",),
    }
    made = await machines.here.create_container(
        ContainerSpec(machines.image, command=("sleep", "9"), name="full", **given)
    )
    await machines.here.update_container(made, Limits(memory_bytes=32 * 1024 * 1024))
    await machines.here.rename_container(made, "fuller")
    there = await machines.received(await machines.sent(made))
    one, two = (await machines.here.container_details(made), await machines.there.container_details(there))
    assert two.state.name == "fuller"
    assert two.limits == one.limits
    assert two.limits.memory_bytes == 32 * 1024 * 1024
    for name in ("command", "entrypoint", "workdir", "restart", "healthcheck", "security"):
        assert getattr(two, name) == getattr(one, name), name
    assert (two.state.env, two.state.labels) == (one.state.env, one.state.labels)
    assert [mount.target for mount in two.state.mounts] == ["/scratch", "/data", "/cache"]
    assert sorted(row.name == "kept" for row in await machines.there.list_volumes()) == [False, True]


async def test_running_container_is_paused_while_it_is_written_and_goes_on(machines: Machines) -> None:
    spec = ContainerSpec(machines.image, command=("sh", "-c", "echo x > /root/file; while true; do sleep 0.05; done"))
    made = await machines.here.create_container(spec)
    await machines.here.start_container(made)
    path = await machines.sent(made)
    assert (await machines.here.inspect_container(made)).status == "running"
    there = await machines.received(path)
    assert (await machines.there.inspect_container(there)).status == "created"


async def test_export_that_is_broken_off_leaves_no_file_and_lets_the_container_go_on(machines: Machines) -> None:
    made = await machines.here.create_container(ContainerSpec(machines.image, command=("sleep", "9999")))
    await machines.here.start_container(made)

    def stop(count: int) -> None:
        raise errors.Cancelled("enough")

    with pytest.raises(errors.Cancelled):
        await machines.here.export_container(made, machines.folder / "sent.tar", format="state", passed=stop)
    (machines.folder / "taken").mkdir()
    with pytest.raises(errors.Conflict, match="folder"):
        await machines.sent(made, "taken")
    assert sorted(one.name for one in machines.folder.iterdir()) == ["here", "rootfs.tar", "taken", "there"]
    assert (await machines.here.inspect_container(made)).status == "running"


async def test_image_arrives_without_a_name_and_is_not_taken_twice(machines: Machines) -> None:
    path = await machines.sent(await machines.written())
    one, two = await machines.received(path), await machines.received(path, name="second")
    (image,) = await machines.there.list_images()
    assert image.tags == ()
    assert image.id == (await machines.here.inspect_image(machines.image)).id
    assert {(await machines.there.inspect_container(id)).image_id for id in (one, two)} == {image.id}
    with pytest.raises(errors.Conflict):
        await machines.there.remove_image(image.id, force=False)


async def test_container_that_was_never_started_can_be_sent(machines: Machines) -> None:
    made = await machines.here.create_container(ContainerSpec(machines.image, command=("true",), name="new"))
    there = await machines.received(await machines.sent(made))
    assert await machines.there.changes(there) == []
    await machines.there.start_container(there)
    assert await machines.there.wait_container(there) == 0


async def test_imported_container_can_be_sent_on_and_made_an_image(machines: Machines) -> None:
    there = await machines.received(await machines.sent(await machines.written()))
    again = machines.folder / "again.tar"
    await machines.there.export_container(there, again, format="state")
    back = await machines.here.import_container(
        again, replace((await machines.here.stored_container(again)).spec, name="back")
    )
    assert await machines.here.changes(back) == await machines.there.changes(there)
    await machines.there.commit_container(there, tag="localhost/committed:1", labels={})
    assert (await machines.there.inspect_image("localhost/committed:1")).id


async def test_name_that_is_taken_leaves_nothing_behind(machines: Machines) -> None:
    path = await machines.sent(await machines.written(name="shop"))
    await machines.received(path)
    before = inventory(machines.there)
    with pytest.raises(errors.Conflict, match="in use"):
        await machines.received(path)
    assert inventory(machines.there) == before


async def test_network_that_is_not_there_is_named_and_nothing_is_left(machines: Machines) -> None:
    await machines.here.create_network(NetworkSpec("shopnet", internal=True))
    made = await machines.here.create_container(ContainerSpec(machines.image, command=("true",), network="shopnet"))
    path = await machines.sent(made)
    with pytest.raises(errors.NotFound, match="shopnet"):
        await machines.received(path)
    assert_empty(machines.there)


# -------------------------------------------------------------------------------------------------------------- refusals


async def test_this_machine_and_strict_containers_are_no_files(machines: Machines) -> None:
    strict = await machines.here.create_container(ContainerSpec(machines.image, command=("true",), isolation="strict"))
    own = await machines.here.create_container(ContainerSpec(host_image.NAMES[0], command=("true",)))
    for made in (own, strict):
        with pytest.raises(errors.Unsupported) as caught:
            await machines.sent(made)
        assert caught.value.hint
        with pytest.raises(errors.Unsupported):
            await machines.here.commit_container(made, tag="localhost/never:1", labels={})
    assert not (machines.folder / "sent.tar").exists()
    with pytest.raises(errors.NotFound):
        await machines.here.inspect_image("localhost/never:1")
    assert await machines.here.changes(strict) == await machines.here.changes(own) == []


def damage_layer(parts: Parts) -> None:
    parts["layer.tar"] = parts["layer.tar"].replace(b"kept", b"lost")


def damage_settings(parts: Parts) -> None:
    parts["container.json"] = parts["container.json"].replace(b"/bin", b"/bad")


def damage_image(parts: Parts) -> None:
    name = max((name for name in parts if name.startswith("image/blobs")), key=lambda one: len(parts[one]))
    half = len(parts[name]) // 2
    parts[name] = parts[name][:half] + bytes([parts[name][half] ^ 1]) + parts[name][half + 1 :]


@pytest.mark.parametrize("change", [damage_layer, damage_settings, damage_image])
async def test_wrong_digest_makes_nothing(machines: Machines, change: Callable[[Parts], None]) -> None:
    path = await machines.sent(await machines.written(env={"DEPTH": "/bin"}))
    with pytest.raises(errors.InvalidArgument, match="digest"):
        await machines.received(machines.forged(path, change, honest=False))
    assert_empty(machines.there)


@pytest.mark.parametrize(
    "missing", ["container.json", "layer.tar", "digests.json", "image/index.json", "image/oci-layout", "image/blobs"]
)
async def test_missing_part_makes_nothing(machines: Machines, missing: str) -> None:
    path = await machines.sent(await machines.made())

    def change(parts: Parts) -> None:
        for name in [name for name in parts if name.startswith(missing)]:
            del parts[name]

    with pytest.raises(errors.InvalidArgument):
        await machines.received(machines.forged(path, change, honest=missing != "digests.json"))
    assert_empty(machines.there)


async def test_image_of_another_is_not_taken_for_its_own(machines: Machines) -> None:
    made = await machines.written()
    await machines.here.commit_container(made, tag="localhost/other:1", labels={})
    other = await machines.here.create_container(ContainerSpec("localhost/other:1", command=("true",)))
    with tarfile.open(await machines.sent(other, "other.tar")) as archive:
        foreign = {one.name: archive.extractfile(one).read() for one in archive if one.name.startswith("image/")}  # type: ignore[union-attr]
    path = machines.forged(await machines.sent(made), lambda parts: parts.update(foreign))
    with pytest.raises(errors.InvalidArgument, match="its image is"):
        await machines.received(path)
    assert_empty(machines.there)


def with_layer(*entries: tarfile.TarInfo, **files: bytes) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts["layer.tar"] = packed(files, *entries)

    return change


HOSTILE_LAYERS = {
    "a name that leads out": with_layer(member("../../out", tarfile.REGTYPE)),
    "an absolute name": with_layer(member("/tmp/out", tarfile.REGTYPE)),
    "a file in a link": with_layer(member("link", tarfile.SYMTYPE, linkname="/tmp"), **{"link/out": b"x"}),
    "a hard link out": with_layer(member("hard", tarfile.LNKTYPE, linkname="../../../etc/passwd")),
    "a hard link to what is not there": with_layer(member("hard", tarfile.LNKTYPE, linkname="etc/passwd")),
    "a device": with_layer(member("disk", tarfile.BLKTYPE, devmajor=8, devminor=0)),
    "a whiteout of nothing": with_layer(member(".wh..", tarfile.REGTYPE)),
    "no tar": lambda parts: parts.update({"layer.tar": b"x" * 4096}),
    "nothing": lambda parts: parts.update({"layer.tar": b""}),
}


@pytest.mark.parametrize("what", HOSTILE_LAYERS)
async def test_hostile_layer_makes_nothing_and_touches_nothing(machines: Machines, what: str) -> None:
    path = machines.forged(await machines.sent(await machines.made()), HOSTILE_LAYERS[what])
    with pytest.raises(errors.InvalidArgument):
        await machines.received(path)
    assert_empty(machines.there)
    assert not list(machines.folder.rglob("out"))


async def test_link_in_the_layer_leads_nowhere_but_inside(machines: Machines) -> None:
    secret = machines.folder / "secret"
    secret.write_text("secret")
    change = with_layer(member("root/link", tarfile.SYMTYPE, linkname=f"../../../../../..{secret}"))
    path = machines.forged(await machines.sent(await machines.made()), change)
    there = await machines.received(path)
    with pytest.raises(errors.NotFound):
        await machines.there.read_archive(there, "/root/link/.", lambda pieces: b"".join(pieces))


@pytest.mark.parametrize("name", ["../container.json", "/container.json", "image/../../x"])
async def test_archive_with_a_name_that_leads_out_is_refused(machines: Machines, name: str) -> None:
    path = machines.forged(await machines.sent(await machines.made()), lambda parts: parts.update({name: b"x"}))
    with pytest.raises(errors.InvalidArgument):
        await machines.there.stored_container(path)


@pytest.mark.parametrize("part", ["container.json", "layer.tar", "image/index.json"])
async def test_part_that_is_a_link_to_a_file_of_the_host_is_not_read(machines: Machines, part: str) -> None:
    path = await machines.sent(await machines.made())
    with tarfile.open(path) as archive:
        parts = {one.name: archive.extractfile(one).read() for one in archive if one.isfile()}  # type: ignore[union-attr]
    (machines.folder / "host").write_bytes(parts.pop(part))
    path.write_bytes(packed(parts, member(part, tarfile.SYMTYPE, linkname=str(machines.folder / "host"))))
    with pytest.raises(errors.InvalidArgument):
        await machines.received(path)
    assert_empty(machines.there)


async def test_huge_sizes_are_refused_before_anything_is_read(machines: Machines) -> None:
    path = await machines.sent(await machines.made())
    data = path.read_bytes()
    entry = tarfile.TarInfo("layer.tar")
    entry.size = 1 << 50
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + data)
    with pytest.raises(errors.InvalidArgument):
        await machines.there.stored_container(path)
    large = machines.forged(await machines.sent(await machines.made()), lambda parts: None)
    with tarfile.open(large, "a") as archive:
        entry = tarfile.TarInfo("container.json")
        entry.size = 64 * 1024 * 1024
        archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    with pytest.raises(errors.InvalidArgument, match="too large"):
        await machines.there.stored_container(large)


def settings(**changed: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        raw = json.loads(parts["container.json"])
        spec = {**raw["spec"], **changed.pop("spec", {})}
        parts["container.json"] = json.dumps({**raw, **changed, "spec": spec}).encode()

    return change


UNKNOWN = {
    "a later form": (settings(format="codomyrmex-containerization/container/2"), errors.Unsupported),
    "a property that is not known": (settings(spec={"escape": True}), errors.Unsupported),
    "a mount with more to it": (
        settings(spec={"mounts": [{"type": "bind", "source": "/", "target": "/h", "propagation": "shared"}]}),
        errors.Unsupported,
    ),
    "a wall that it was not written with": (settings(spec={"isolation": "strict"}), errors.Unsupported),
    "more mounts than can be read": (
        settings(spec={"mounts": [{"type": "tmpfs", "target": f"/{number}"} for number in range(101)]}),
        errors.InvalidArgument,
    ),
    "no specification": (settings(spec={"image": None}), errors.InvalidArgument),
    "a number for a name": (settings(name=7), errors.InvalidArgument),
    "no image": (settings(image_id="host"), errors.InvalidArgument),
    "no object": (lambda parts: parts.update({"container.json": b"[]"}), errors.InvalidArgument),
    "no JSON": (lambda parts: parts.update({"container.json": b"{" * 5000}), errors.InvalidArgument),
}


@pytest.mark.parametrize("what", UNKNOWN)
async def test_settings_that_are_not_understood_are_refused_not_left_out(machines: Machines, what: str) -> None:
    change, kind = UNKNOWN[what]
    path = machines.forged(await machines.sent(await machines.made()), change)
    with pytest.raises(kind):
        await machines.received(path)
    assert_empty(machines.there)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, packed({"manifest.json": b"[]"}), packed({})])
async def test_what_is_no_archive_of_a_container_says_so(machines: Machines, content: bytes) -> None:
    path = machines.folder / "none.tar"
    path.write_bytes(content)
    with pytest.raises(errors.InvalidArgument):
        await machines.there.stored_container(path)
    with pytest.raises(errors.NotFound):
        await machines.there.stored_container(machines.folder / "nobody.tar")


# --------------------------------------------------------------------------------------------------------------- commits


async def test_image_holds_nothing_that_only_the_runtime_made(machines: Machines) -> None:
    made = await machines.written("echo x > /root/file", mounts=(Mount("volume", "/made/for/it"),))
    await machines.here.commit_container(made, tag="localhost/committed:1", labels={})
    layer = machines.here.house.images.layer_folders(machines.here.house.images.image("localhost/committed:1"))[-1]
    found = sorted(str(one.relative_to(layer)) for one in layer.rglob("*"))
    assert found == ["root", "root/file"]
    assert [one.path for one in await machines.here.changes(made)] == ["/root", "/root/file"]


async def test_folder_that_the_container_itself_changed_is_told(machines: Machines) -> None:
    made = await machines.written("chmod 700 /etc; mkdir /proc2; echo own > /etc/hostname2")
    seen = {(one.kind, one.path) for one in await machines.here.changes(made)}
    assert seen == {("changed", "/etc"), ("added", "/proc2"), ("added", "/etc/hostname2")}
    made = await machines.written("chmod 700 /etc")
    assert [(one.kind, one.path) for one in await machines.here.changes(made)] == [("changed", "/etc")]


async def test_processes_of_a_strict_container_have_the_users_inside(machines: Machines) -> None:
    for user in ("0", "65534"):
        spec = ContainerSpec(machines.image, command=("sleep", "9999"), user=user, isolation="strict")
        made = await machines.here.create_container(spec)
        await machines.here.start_container(made)
        rows = await machines.here.top(made)
        assert {row.user for row in rows} == {"root" if user == "0" else user}
        assert all(Path(f"/proc/{row.pid}").exists() for row in rows)


async def test_container_with_a_damaged_record_is_compared_with_nothing(machines: Machines) -> None:
    made = await machines.written()
    (machines.here.house.containers.folder(made) / "container.json").write_text("{")
    for call in (
        machines.here.changes(made),
        machines.here.rename_container(made, "other"),
        machines.here.commit_container(made, tag="localhost/never:1", labels={}),
        machines.here.export_container(made, machines.folder / "sent.tar", format="state"),
    ):
        with pytest.raises(errors.NotFound, match="damaged"):
            await call
    with pytest.raises(errors.Conflict):
        await machines.here.top(made)


async def test_renamed_container_keeps_its_name_after_a_crash_in_between(machines: Machines) -> None:
    """SPEC B114."""
    made = await machines.written(name="before")
    names = machines.here.house.containers._names
    # As if who renamed it had been killed before it could say so: the name leads to it, and it is called otherwise.
    os.symlink(made, names / "after")
    machines.here.house.containers.sweep()
    assert sorted(os.listdir(names)) == ["before"]
    await machines.here.rename_container(made, "after")
    assert sorted(os.listdir(names)) == ["after"]


# -------------------------------------------------------------------------------------------------------------- what is left


def inventory(engine: EmbeddedEngine) -> tuple[list[str], list[str], list[str], list[str]]:
    house = engine.house
    return (
        sorted(house.containers.ids()),
        sorted(one.id for one in house.images.images()),
        sorted(os.listdir(house.containers._names)),
        sorted(os.listdir(house.folders.images / "tmp")),
    )


def assert_empty(engine: EmbeddedEngine) -> None:
    assert inventory(engine) == ([], [], [], [])
    assert os.listdir(engine.house.folders.containers) == []
