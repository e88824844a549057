"""How are images built, listed, looked at, named and removed on every engine?"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import Mount
from codomyrmex_containerization.models.image import BuildEvent, BuildSecret
from tests.engines.contract import (
    LABELS,
    NOBODY_HAS,
    Bench,
    archive_of,
    behaviour,
    busy_threads,
    no_thread_left,
    or_elsewhere,
    raises,
)


def kinds(events: list[BuildEvent]) -> set[str]:
    return {event.kind for event in events}


def said(events: list[BuildEvent]) -> str:
    return "\n".join(event.text for event in events if event.kind == "log")


# --------------------------------------------------------------------------------------------------------------- builds


@behaviour("build", "build")
async def build_tells_its_steps_output_and_image(bench: Bench) -> None:
    """A build tells its steps, its output and its image"""
    tag, mark = bench.tag(), bench.fresh()
    text = (
        f'FROM {bench.image}\nRUN echo said by {mark}; echo to stderr >&2; echo {mark} > /made\nCMD ["cat", "/made"]\n'
    )
    events = await bench.build(text, tags=(tag,))
    assert "error" not in kinds(events)
    steps = [event for event in events if event.kind == "step"]
    assert any("RUN echo said by" in event.text for event in steps)
    assert [event.number for event in steps] == sorted(event.number or 0 for event in steps)
    assert all(event.total and event.number and 1 <= event.number <= event.total for event in steps)
    assert f"said by {mark}" in said(events)
    assert "to stderr" in said(events)
    image = await bench.engine.inspect_image(tag)
    last = [event.text for event in events if event.kind == "image"][-1]
    assert image.id.removeprefix("sha256:").startswith(last.removeprefix("sha256:"))
    made = await bench.engine.create_container(bench.spec(image=tag))
    try:
        assert (await bench.attached(made)).stdout == f"{mark}\n".encode()
    finally:
        await bench.engine.remove_container(made, force=True, volumes=True)


@behaviour("build", "build")
async def failing_step_is_an_error_event(bench: Bench) -> None:
    """A failing step is an error event with what it said"""
    tag = bench.tag()
    events = await bench.build(
        f"FROM {bench.image}\nRUN echo why it fails; exit 3\nRUN true\n", tags=(tag,), no_cache=True
    )
    failures = [event for event in events if event.kind == "error"]
    assert failures
    assert failures[-1].text.strip()
    assert 3 in [event.exit_code for event in failures]
    assert "why it fails" in said(events)
    async with raises(errors.NotFound):
        await bench.engine.inspect_image(tag)


@behaviour("build", "build")
async def missing_base_image_fails_the_build(bench: Bench) -> None:
    """A missing base image fails the build"""
    tag = bench.tag()
    events = await bench.build(f"FROM {NOBODY_HAS}\nRUN true\n", tags=(tag,))
    assert [event.text for event in events if event.kind == "error" and event.text.strip()], events
    async with raises(errors.NotFound):
        await bench.engine.inspect_image(tag)


@behaviour("build", "build")
async def context_arguments_labels_and_target_reach_the_build(bench: Bench) -> None:
    """Context, arguments, labels and target reach the build"""
    text = (
        f"FROM {bench.image} AS first\nARG WHO=nobody\nCOPY deep /copied\nADD one.txt /copied/\n"
        'RUN echo "$WHO" > /copied/who\nFROM first AS second\nRUN exit 9\n'
    )
    files = {"deep/er/ä file": b"deep\n", "one.txt": b"one\n", "Other.Dockerfile": text.encode()}
    tag = await bench.built(
        text, files=files, dockerfile_name="Other.Dockerfile", target="first",
        build_args={"WHO": "some one's"}, labels={"team": "a b=c ä"},
    )  # fmt: skip
    made = await bench.create("sh", "-c", "cat '/copied/er/ä file' /copied/one.txt /copied/who", image=tag)
    assert (await bench.attached(made)).stdout == b"deep\none\nsome one's\n"
    labels = (await bench.engine.inspect_image(tag)).labels
    assert dict(labels).items() >= {"team": "a b=c ä", **LABELS}.items()


@behaviour("build", "build")
async def configuration_of_the_build_is_in_the_image(bench: Bench) -> None:
    """The Dockerfile's configuration is in the image"""
    tag = await bench.built(
        f'FROM {bench.image}\nENV ONE="a b"\nWORKDIR /work\nUSER nobody\nEXPOSE 8080\nVOLUME /data\n'
        'LABEL mark=x\nENTRYPOINT ["sh", "-c"]\nCMD ["echo $ONE; pwd; id -u"]\n'
    )
    found = await bench.engine.image_details(tag)
    assert "ONE=a b" in found.env
    assert (found.workdir, found.user) == ("/work", "nobody")
    assert (found.entrypoint, found.command) == (("sh", "-c"), ("echo $ONE; pwd; id -u",))
    assert found.exposed_ports == ("8080/tcp",)
    assert found.volumes == ("/data",)
    assert found.labels["mark"] == "x"
    made = await bench.create(image=tag)
    assert (await bench.attached(made)).stdout == b"a b\n/work\n65534\n"


@behaviour("build", "build")
async def second_build_comes_from_the_cache(bench: Bench) -> None:
    """A second build comes from the cache unless it is not to"""
    text = f"FROM {bench.image}\nENV MARK={bench.fresh()}\nRUN echo one > /one\n"
    first, second, third = [
        await bench.build(text, tags=(bench.tag(),), no_cache=no_cache) for no_cache in (False, False, True)
    ]
    assert "cached" not in kinds([event for event in first if "RUN" in event.step])
    assert "cached" in kinds(second)
    assert not [event for event in third if event.kind == "cached" and "FROM" not in event.step + event.text], third


@behaviour("build", "build")
async def build_gives_every_tag(bench: Bench) -> None:
    """A build gives its image every tag"""
    one, two = bench.tag(), bench.tag()
    await bench.build(f"FROM {bench.image}\nENV MARK={one}\n", tags=(one, two))
    assert (await bench.engine.inspect_image(one)).id == (await bench.engine.inspect_image(two)).id
    assert {one, two} <= set((await bench.engine.inspect_image(one)).tags)


@behaviour("build", "build")
async def image_can_begin_with_nothing(bench: Bench) -> None:
    """An image can be made from scratch"""
    tag = await bench.built('FROM scratch\nCOPY file /file\nCMD ["/file"]\n', files={"file": b"x"})
    made = await bench.create(image=tag)
    async with raises(errors.CommandFailed):
        await bench.engine.start_container(made)


@behaviour("build", "build")
async def build_that_is_left_stops(bench: Bench) -> None:
    """A build that is left leaves no thread behind and no image"""
    before, tag = busy_threads(), bench.tag()
    with anyio.CancelScope() as scope:
        text = f"FROM {bench.image}\nENV MARK={tag}\nRUN echo begun; sleep 4321\n"
        async with bench.opened_build(text, tag) as events:
            async for event in events:
                if event.kind == "log" and "begun" in event.text:
                    scope.cancel()
    await no_thread_left(before)
    async with raises(errors.NotFound):
        await bench.engine.inspect_image(tag)


@behaviour("build", "build", "build_secrets")
async def secret_is_there_for_its_step_only(bench: Bench) -> None:
    """A build secret is there for its step only"""
    secret = bench.folder / bench.fresh("secret")
    secret.write_bytes(b"not for everybody\n")
    text = (
        f"FROM {bench.image}\nENV MARK={secret.name}\n"
        "RUN --mount=type=secret,id=s cat /run/secrets/s > /seen\nRUN test -s /run/secrets/s && exit 3; true\n"
    )
    tag = await bench.built(text, secrets=(BuildSecret("s", path=secret),))
    made = await bench.create("cat", "/seen", image=tag)
    assert (await bench.attached(made)).stdout == b"not for everybody\n"


# --------------------------------------------------------------------------------------------------------------- images


@behaviour("images", "pull")
async def pull_of_what_nobody_has_is_an_error(bench: Bench) -> None:
    """A pull that cannot be is an error, never an empty success"""
    async with (
        raises(errors.EngineUnavailable, errors.NotFound),
        bench.engine.pull_image(NOBODY_HAS, platform=None) as progress,
    ):
        async for _ in progress:
            pass


@behaviour("images")
async def image_is_listed_and_looked_at(bench: Bench) -> None:
    """An image is listed and looked at"""
    found = await bench.engine.inspect_image(bench.image)
    row = next(one for one in await bench.engine.list_images() if one.id == found.id)
    assert bench.image in row.tags
    assert bench.image in found.tags
    assert bench.image in await bench.engine.list_image_names()
    assert row.engine == bench.engine.name
    assert row.size_bytes > 0
    assert found.size_bytes > 0
    assert row.created.tzinfo is not None
    assert (found.os, bool(found.architecture)) == ("linux", True)
    assert found.layers >= 1
    assert any(one.startswith("PATH=") for one in found.env)
    assert (await bench.engine.inspect_image(found.id)).id == found.id


@behaviour("images", "build")
async def layers_are_told_newest_first(bench: Bench) -> None:
    """Layers are told with their instructions, the newest first"""
    tag = await bench.built(f"FROM {bench.image}\nENV FIRST={bench.fresh()}\nRUN echo 1 > /one\nRUN echo 2 > /two\n")
    found = await bench.engine.image_details(tag)
    steps = [one.instruction for one in found.layers]
    runs = [one for one in steps if one.startswith("RUN")]
    assert ["/two" in one or "/one" in one for one in runs[:2]] == [True, True]
    assert "/two" in runs[0]
    assert "/one" in runs[1]
    assert any(one.startswith("ENV") and "FIRST" in one for one in steps)
    assert found.os == "linux"
    assert found.size_bytes >= (await bench.engine.image_details(bench.image)).size_bytes > 0


@behaviour("images", "build")
async def tag_is_given_and_taken_away(bench: Bench) -> None:
    """A tag is given and taken away; the image goes with the last"""
    tag, other = await bench.built(f"FROM {bench.image}\nENV MARK={bench.fresh()}\n"), bench.tag()
    id = (await bench.engine.inspect_image(tag)).id
    await bench.engine.tag_image(tag, other)
    await bench.engine.tag_image(tag, other)
    assert (await bench.engine.inspect_image(other)).id == id
    assert other in await bench.engine.remove_image(other, force=False)
    assert (await bench.engine.inspect_image(tag)).id == id
    gone = await bench.engine.remove_image(tag, force=False)
    assert tag in gone
    assert id in gone
    async with raises(errors.NotFound):
        await bench.engine.inspect_image(id)
    assert tag not in await bench.engine.list_image_names()


@behaviour("images", "build")
async def tag_moves_to_another_image(bench: Bench) -> None:
    """A tag moves to another image"""
    one, two = [await bench.built(f"FROM {bench.image}\nENV MARK={bench.fresh()}\n") for _ in range(2)]
    await bench.engine.tag_image(one, two)
    found = await bench.engine.inspect_image(two)
    assert found.id == (await bench.engine.inspect_image(one)).id
    assert sorted(found.tags) == sorted((one, two))


@behaviour("images", "build")
async def image_in_use_is_a_conflict(bench: Bench) -> None:
    """An image in use is not removed: conflict; its users are told"""
    tag = await bench.built(f"FROM {bench.image}\nENV MARK={bench.fresh()}\n")
    id, name = (await bench.engine.inspect_image(tag)).id, bench.fresh()
    running = await bench.started(image=tag, name=name)
    assert (await bench.engine.image_users())[id] == [name]
    async with raises(errors.Conflict):
        await bench.engine.remove_image(tag, force=False)
    async with raises(errors.Conflict):
        await bench.engine.remove_image(id, force=False)
    assert (await bench.engine.inspect_image(tag)).id == id
    await bench.engine.remove_container(running, force=True, volumes=True)
    assert id not in await bench.engine.image_users()
    await bench.engine.remove_image(tag, force=False)


@behaviour("images")
async def missing_image_is_not_found_anywhere(bench: Bench) -> None:
    """A missing image is not found, whatever is asked"""
    async with raises(errors.NotFound):
        await bench.engine.inspect_image(NOBODY_HAS)
    async with raises(errors.NotFound):
        await bench.engine.image_details(NOBODY_HAS)
    async with raises(errors.NotFound):
        await bench.engine.tag_image(NOBODY_HAS, bench.tag())
    async with raises(errors.NotFound):
        await bench.engine.remove_image(NOBODY_HAS, force=False)


@behaviour("images")
async def name_that_cannot_be_an_images_is_refused(bench: Bench) -> None:
    """A name that cannot be an image's is refused"""
    for name in ("localhost/ä:1", "localhost/UPPER:1", "localhost/a b:1"):
        async with raises(errors.InvalidArgument):
            await bench.engine.tag_image(bench.image, name)


@behaviour("images", "build")
async def untagged_image_is_in_the_list(bench: Bench) -> None:
    """An image that lost its name stays in the list without one"""
    one, two = [await bench.built(f"FROM {bench.image}\nENV MARK={bench.fresh()}\n") for _ in range(2)]
    lost = (await bench.engine.inspect_image(two)).id
    await bench.engine.tag_image(one, two)
    try:
        row = next(row for row in await bench.engine.list_images() if row.id == lost)
        assert row.tags == ()
        parent = (await bench.engine.inspect_image(bench.image)).id
        assert all(row.tags == () for row in await bench.engine.untagged_children(parent))
    finally:
        await bench.engine.remove_image(lost, force=True)
    with pytest.raises(errors.NotFound):
        await bench.engine.inspect_image(lost)


# ------------------------------------------------------------------------------------------------------------- archives


@behaviour("archives", "build")
async def saved_image_is_loaded_again(bench: Bench) -> None:
    """An image that is saved, removed and loaded is the same image, with its name"""
    tag, file = await bench.built(f"FROM {bench.image}\nENV MARK={bench.fresh()}\n"), bench.folder / "saved.tar"
    before = await bench.engine.image_details(tag)
    heard: list[int] = []
    with or_elsewhere("archives of images"):
        size = await bench.engine.save_image(tag, file, format="docker-archive", passed=heard.append)
    assert (size, file.stat().st_mode & 0o777) == (file.stat().st_size, 0o600)
    await bench.engine.remove_image(tag, force=True)
    assert tag in await bench.engine.load_image(file, passed=heard.append)
    assert set(heard) <= set(range(size + 1))
    after = await bench.engine.image_details(tag)
    assert (after.id, after.env, after.command) == (before.id, before.env, before.command)
    made = await bench.create("sh", "-c", "echo runs", image=tag)
    assert (await bench.attached(made)).stdout == b"runs\n"
    assert [one.name for one in bench.folder.glob("*saved*")] == ["saved.tar"]


@behaviour("archives")
async def what_is_not_there_is_not_saved(bench: Bench) -> None:
    """What is not there is not saved, and leaves no file"""
    file = bench.folder / "missing.tar"
    with or_elsewhere("archives of images"):
        async with raises(errors.NotFound):
            await bench.engine.save_image(NOBODY_HAS, file, format="docker-archive")
        async with raises(errors.NotFound):
            await bench.engine.export_container(bench.fresh(), file)
        async with raises(errors.NotFound):
            await bench.engine.load_image(file)
    assert not list(bench.folder.glob("*missing*"))


@behaviour("archives")
async def image_in_another_form_is_saved_or_refused(bench: Bench) -> None:
    """An image is saved as an OCI archive and as an OCI folder, or the engine says which one can"""
    archive, folder = bench.folder / "oci.tar", bench.folder / "oci"
    with or_elsewhere("OCI archives"):
        assert await bench.engine.save_image(bench.image, archive, format="oci-archive") == archive.stat().st_size
        assert await bench.engine.save_image(bench.image, folder, format="oci") > 0
    id = (await bench.engine.inspect_image(bench.image)).id
    for file in (archive, folder):
        (name,) = await bench.engine.load_image(file)
        assert (await bench.engine.inspect_image(name)).id == id


def _named(names: Sequence[str]) -> list[str]:
    """Return those names that a behaviour has given: other tests give some at the same time."""
    return sorted(one for one in names if "cxc-contract" in one or "/none" in one)


@behaviour("archives")
async def damaged_archive_is_an_error(bench: Bench) -> None:
    """A damaged archive, and one of something else, are errors, never an empty success"""
    whole = bench.folder / "whole.tar"
    with or_elsewhere("archives of images"):
        size = await bench.engine.save_image(bench.image, whole, format="docker-archive")
    names = _named(await bench.engine.list_image_names())
    rubbish = {
        "empty": b"",
        "rubbish": b"no archive at all\n" * 1000,
        "cut": whole.read_bytes()[: size // 2],
        "other": archive_of({"file": b"x"}),
        "manifest": archive_of({"manifest.json": b"["}),
        "hollow": archive_of(
            {"manifest.json": b'[{"Config":"none.json","RepoTags":["localhost/none:1"],"Layers":[]}]'}
        ),
    }
    for name, data in rubbish.items():
        (bench.folder / name).write_bytes(data)
        async with raises(errors.InvalidArgument):
            await bench.engine.load_image(bench.folder / name)
    for name in ("empty", "rubbish", "cut"):
        async with raises(errors.InvalidArgument):
            await bench.engine.import_image(bench.folder / name, tag=bench.tag(), labels=LABELS)
    assert _named(await bench.engine.list_image_names()) == names


@behaviour("archives")
async def exported_container_becomes_an_image(bench: Bench) -> None:
    """A container's files, exported and imported, are an image that runs"""
    script = "echo kept > /kept; mkdir -p /deep/er; echo in the volume > /data/file"
    ended = await bench.ended(script, mounts=(Mount("tmpfs", "/data"),))
    file, tag = bench.folder / "root.tar", bench.tag()
    with or_elsewhere("exporting containers"):
        size = await bench.engine.export_container(ended, file)
    assert size == file.stat().st_size
    with tarfile.open(file) as archive:
        names = {name.removeprefix("./").rstrip("/") for name in archive.getnames()}
    assert {"kept", "deep/er", "bin/sh"} <= names
    assert "data/file" not in names
    id = await bench.engine.import_image(file, tag=tag, labels={**LABELS, "team": "a b ä"})
    found = await bench.engine.inspect_image(tag)
    assert (found.id, found.labels["team"]) == (id, "a b ä")
    made = await bench.create("/bin/sh", "-c", "cat /kept; pwd", image=tag)
    assert (await bench.attached(made)).stdout == b"kept\n/\n"


@behaviour("archives")
async def running_container_is_exported(bench: Bench) -> None:
    """A container that runs is exported too, and runs on"""
    running, file = await bench.started("sh", "-c", "sleep 100000"), bench.folder / "running.tar"
    assert (await bench.exec(running, "sh", "-c", "echo now > /now")).exit_code == 0
    with or_elsewhere("exporting containers"):
        await bench.engine.export_container(running, file)
    with tarfile.open(file) as archive:
        now = next(one for one in archive if one.name.removeprefix("./") == "now")
        content = archive.extractfile(now)
        assert content is not None
        assert content.read() == b"now\n"
    assert (await bench.engine.inspect_container(running)).status == "running"


@behaviour("archives")
async def folder_becomes_an_image(bench: Bench) -> None:
    """A folder with a root file system becomes an image, owners and modes kept"""
    top, tag = bench.folder / "root", bench.tag()
    (top / "etc").mkdir(parents=True)
    (top / "etc" / "name").write_text("folder\n")
    (top / "etc" / "name").chmod(0o640)
    (top / "link").symlink_to("etc/name")
    bench.hand_over(top / "etc" / "name")
    with or_elsewhere("images of folders"):
        await bench.engine.import_image(top, tag=tag, labels=LABELS)
    made = await bench.create("/none", image=tag)
    found = await bench.read(made, "/etc/name")
    assert found["name"].mode & 0o777 == 0o640
    assert (await bench.engine.stat_path(made, "/link")).link_target == "/etc/name"


@behaviour("archives")
async def folder_in_a_files_way_is_a_conflict(bench: Bench) -> None:
    """A file does not take a folder's place; one that is there is replaced whole"""
    (bench.folder / "taken").mkdir()
    old = bench.folder / "old.tar"
    old.write_bytes(b"old")
    with or_elsewhere("archives of images"):
        async with raises(errors.Conflict):
            await bench.engine.save_image(bench.image, bench.folder / "taken", format="docker-archive")
        await bench.engine.save_image(bench.image, old, format="docker-archive")
    with tarfile.open(old) as archive:
        assert archive.getnames()
