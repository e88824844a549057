"""How is a container looked into, renamed and made an image on every engine?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import ContainerSpec, Mount
from codomyrmex_containerization.models.inside import FileChange
from tests.engines.contract import FOREVER, LABELS, Bench, behaviour, eventually, raises

NOBODY = "cxc-contract-nobody"


async def found(bench: Bench, container: str) -> set[tuple[str, str]]:
    return {(one.kind, one.path) for one in await bench.engine.changes(container)}


# ------------------------------------------------------------------------------------------------------------ renaming


@behaviour("renaming")
async def renamed_container_has_its_new_name_alone(bench: Bench) -> None:
    """A container has its new name, and the old one means nothing"""
    before, after = bench.fresh(), bench.fresh()
    made = await bench.create(*FOREVER, name=before)
    await bench.engine.rename_container(before, after)
    assert (await bench.engine.inspect_container(after)).id == made
    assert (await bench.engine.inspect_container(made)).name == after
    async with raises(errors.NotFound):
        await bench.engine.inspect_container(before)
    other = await bench.create(*FOREVER, name=before)
    assert other != made


@behaviour("renaming")
async def running_container_can_be_renamed(bench: Bench) -> None:
    """One that runs goes on under its new name"""
    made = await bench.started(name=bench.fresh())
    after = bench.fresh()
    await bench.engine.rename_container(made, after)
    state = await bench.engine.inspect_container(after)
    assert (state.id, state.status) == (made, "running")
    assert (await bench.exec(after, "true")).exit_code == 0
    await bench.engine.stop_container(after, timeout_seconds=0)
    await bench.engine.start_container(after)
    assert (await bench.engine.inspect_container(made)).status == "running"


@behaviour("renaming")
async def taken_name_is_not_given_again(bench: Bench) -> None:
    """A name that is taken, its own too, is a conflict"""
    one, two = bench.fresh(), bench.fresh()
    made = await bench.create(*FOREVER, name=one)
    await bench.create(*FOREVER, name=two)
    for name in (one, two):
        async with raises(errors.Conflict):
            await bench.engine.rename_container(made, name)
    assert (await bench.engine.inspect_container(made)).name == one


@behaviour("renaming")
async def odd_name_is_refused(bench: Bench) -> None:
    """What is no name is refused, and who is not there is not found"""
    made = await bench.create(*FOREVER)
    for name in ("-x", "a b", "a/b"):
        async with raises(errors.InvalidArgument):
            await bench.engine.rename_container(made, name)
    async with raises(errors.NotFound):
        await bench.engine.rename_container(NOBODY, bench.fresh())


# ----------------------------------------------------------------------------------------------------------- processes


@behaviour("processes")
async def processes_are_listed(bench: Bench) -> None:
    """The processes of a container are listed with user and command"""
    made = await bench.started("sh", "-c", "sleep 99999 & while true; do sleep 0.05; done")
    rows = await eventually(
        lambda: bench.engine.top(made), lambda rows: any("sleep 99999" in row.command for row in rows)
    )
    assert len(rows) >= 2
    assert len({row.pid for row in rows}) == len(rows)
    assert all(row.pid > 0 and row.user == "root" for row in rows)
    assert any("while true" in row.command for row in rows)
    assert all(row.cpu_seconds is None or 0 <= row.cpu_seconds < 60 for row in rows)


@behaviour("processes")
async def processes_have_their_user(bench: Bench) -> None:
    """A process of another user says so"""
    made = await bench.started(user="65534")
    rows = await bench.engine.top(made)
    assert {row.user for row in rows} <= {"65534", "nobody"}
    assert any(row.command.endswith(" ".join(FOREVER)) for row in rows)


@behaviour("processes")
async def what_does_not_run_has_no_processes(bench: Bench) -> None:
    """One that does not run is a conflict, one that is not there is not found"""
    for made in (await bench.create(*FOREVER), await bench.ended("true")):
        async with raises(errors.Conflict):
            await bench.engine.top(made)
    async with raises(errors.NotFound):
        await bench.engine.top(NOBODY)


# ------------------------------------------------------------------------------------------------------------- changes


@behaviour("changes")
async def changes_are_told_by_kind(bench: Bench) -> None:
    """What was added, changed and deleted is listed with the folders above"""
    made = await bench.ended("mkdir -p /new/folder; echo x > /new/folder/file; echo x >> /etc/passwd; rm /etc/group")
    seen = await bench.engine.changes(made)
    assert [one.path for one in seen] == sorted(one.path for one in seen)
    assert set(seen) >= {
        FileChange("added", "/new"),
        FileChange("added", "/new/folder"),
        FileChange("added", "/new/folder/file"),
        FileChange("changed", "/etc"),
        FileChange("changed", "/etc/passwd"),
        FileChange("deleted", "/etc/group"),
    }
    assert not [one for one in seen if one.path.split("/")[1] not in ("new", "etc")]


@behaviour("changes")
async def container_that_wrote_nothing_has_no_changes(bench: Bench) -> None:
    """One that was never started, and one that wrote nothing, have none"""
    assert await bench.engine.changes(await bench.create(*FOREVER)) == []
    seen = await bench.engine.changes(await bench.ended("true"))
    assert seen == [], str(seen)
    async with raises(errors.NotFound):
        await bench.engine.changes(NOBODY)


@behaviour("changes")
async def changes_of_a_running_container_are_those_of_now(bench: Bench) -> None:
    """Those of one that runs are those of this moment, removed folders too"""
    made = await bench.started()
    await bench.exec(made, "sh", "-c", "echo x > /root/one; rm -r /tmp; mkdir /tmp")
    assert ("added", "/root/one") in await found(bench, made)
    await bench.exec(made, "sh", "-c", "rm /root/one; rm -r /tmp")
    now = await found(bench, made)
    assert ("added", "/root/one") not in now
    assert ("deleted", "/tmp") in now


@behaviour("changes", "volumes")
async def what_is_mounted_is_no_change(bench: Bench) -> None:
    """What is written to a volume is no change of the container"""
    mount = Mount("volume", "/root/data", bench.volume())
    made = await bench.ended("echo x > /root/data/file; echo x > /root/own", mounts=(mount,))
    now = await found(bench, made)
    assert ("added", "/root/own") in now
    assert "/root/data/file" not in {path for _, path in now}


# ---------------------------------------------------------------------------------------------------------- committing


@behaviour("committing")
async def image_of_a_container_has_its_changes(bench: Bench) -> None:
    """An image of an ended container has its files, and not what it deleted"""
    made = await bench.ended("echo kept > /root/kept; rm /etc/group; mkdir -p /deep/er")
    tag = bench.tag()
    id = await bench.engine.commit_container(made, tag=tag, labels={"made": "by commit", **LABELS}, message="as it was")
    image = await bench.engine.inspect_image(tag)
    assert image.id == id
    assert tag in image.tags
    assert image.labels["made"] == "by commit"
    script = "cat /root/kept; test -e /etc/group && echo still; test -d /deep/er && echo deep"
    ran = await bench.attached(await _of(bench, ContainerSpec(image=tag, command=("sh", "-c", script), labels=LABELS)))
    assert (ran.stdout, ran.exit_code) == (b"kept\ndeep\n", 0)


@behaviour("committing")
async def image_of_a_container_runs_as_it_did(bench: Bench) -> None:
    """It runs as the container did: command, variables, folder, user"""
    made = await bench.create(
        "sh",
        "-c",
        "echo $WORD; pwd; id -u",
        env={"WORD": "said"},
        workdir="/tmp",
        user="65534",
        labels={"own": "label"},
    )
    tag = bench.tag()
    await bench.engine.commit_container(made, tag=tag, labels=LABELS)
    assert (await bench.engine.inspect_image(tag)).labels["own"] == "label"
    ran = await bench.attached(await _of(bench, ContainerSpec(image=tag, labels=LABELS)))
    assert ran.stdout == b"said\n/tmp\n65534\n"


@behaviour("committing", "pause")
async def running_container_goes_on_after_a_commit(bench: Bench) -> None:
    """One that runs goes on afterwards"""
    made = await bench.started("sh", "-c", "echo x > /root/file; > /ready; while true; do sleep 0.05; done")
    await eventually(lambda: bench.exec(made, "test", "-e", "/ready"), lambda ran: ran.exit_code == 0)
    tag = bench.tag()
    await bench.engine.commit_container(made, tag=tag, labels=LABELS)
    assert (await bench.engine.inspect_container(made)).status == "running"
    assert (await bench.exec(made, "true")).exit_code == 0
    other = await _of(bench, ContainerSpec(image=tag, command=("cat", "/root/file"), labels=LABELS))
    assert (await bench.attached(other)).stdout == b"x\n"


@behaviour("committing", "pause")
async def paused_container_stays_paused_after_a_commit(bench: Bench) -> None:
    """One that is paused stays so"""
    made = await bench.started()
    await bench.engine.pause_container(made)
    await bench.engine.commit_container(made, tag=bench.tag(), labels=LABELS)
    assert (await bench.engine.inspect_container(made)).status == "paused"


@behaviour("committing")
async def committing_who_is_not_there_makes_nothing(bench: Bench) -> None:
    """Who is not there is not found, and nothing is made"""
    tag = bench.tag()
    async with raises(errors.NotFound):
        await bench.engine.commit_container(NOBODY, tag=tag, labels=LABELS)
    async with raises(errors.NotFound):
        await bench.engine.inspect_image(tag)


# ----------------------------------------------------------------------------------------------------------- the state


@behaviour("archives", "container_state")
async def container_is_written_with_its_state_and_made_again(bench: Bench) -> None:
    """A container is written to a file with its state and made of it again, not started"""
    made = await bench.ended("test -e /root/been && exit 5; echo x > /root/been", name=bench.fresh())
    path = bench.folder / f"{bench.fresh()}.tar"
    size = await bench.engine.export_container(made, path, format="state")
    assert size == path.stat().st_size
    stored = await bench.engine.stored_container(path)
    assert (stored.name, stored.image) == ((await bench.engine.inspect_container(made)).name, bench.image)
    again = await _imported(bench, path, stored.spec, name=bench.fresh())
    assert (await bench.engine.inspect_container(again)).status == "created"
    await bench.engine.start_container(again)
    assert await bench.engine.wait_container(again) == 5


async def _imported(bench: Bench, path: Path, spec: ContainerSpec, *, name: str) -> str:
    made = await bench.engine.import_container(path, replace(spec, name=name))
    bench._containers.append(made)
    return made


async def _of(bench: Bench, spec: ContainerSpec) -> str:
    made = await bench.engine.create_container(spec)
    bench._containers.append(made)
    return made
