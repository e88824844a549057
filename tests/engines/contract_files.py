"""How do files get in and out of a container on every engine, unchanged?"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.details import PathStat
from tests.engines.contract import (
    FOREVER,
    Bench,
    archive_of,
    behaviour,
    busy_threads,
    no_thread_left,
    raises,
    tar_folder,
    tar_link,
)

LONG_NAME = "long-" * 40 + "ä"


@behaviour("files", "copy")
async def path_is_looked_at(bench: Bench) -> None:
    """A path is looked at: file, folder, link"""
    made = await bench.create("true")
    await bench.write(
        made,
        "/tmp",
        tar_folder("folder"),
        tar_link("link", "/tmp/file"),
        file=b"12345",
    )
    assert await bench.engine.stat_path(made, "/tmp/file") == PathStat("file", 5, False, "")
    folder = await bench.engine.stat_path(made, "/tmp/folder")
    assert (folder.name, folder.is_folder, folder.link_target) == ("folder", True, "")
    link = await bench.engine.stat_path(made, "/tmp/link")
    assert (link.name, link.is_folder, link.link_target) == ("link", False, "/tmp/file")
    assert (await bench.engine.stat_path(made, "/")).is_folder


@behaviour("files", "copy")
async def missing_path_is_not_found(bench: Bench) -> None:
    """A missing path or container is not found"""
    made = await bench.create("true")
    for path in ("/nowhere", "/tmp/nowhere/deeper"):
        async with raises(errors.NotFound):
            await bench.engine.stat_path(made, path)
        async with raises(errors.NotFound):
            await bench.read(made, path)
        async with raises(errors.NotFound):
            await bench.write(made, path, file=b"x")
    missing = bench.fresh()
    async with raises(errors.NotFound):
        await bench.engine.stat_path(missing, "/tmp")
    async with raises(errors.NotFound):
        await bench.read(missing, "/tmp")
    async with raises(errors.NotFound):
        await bench.write(missing, "/tmp", file=b"x")


@behaviour("files", "copy")
async def files_go_in_and_out_unchanged(bench: Bench) -> None:
    """Files go in and out unchanged: bytes, names, modes"""
    data = bytes(range(256)) * 20_000  # 5 MB
    made = await bench.create("true")
    files = {"binary": data, "empty": b"", "dir/ä 日本.txt": b"unicode", LONG_NAME: b"long", "dir/-x y": b"odd"}
    program = tarfile.TarInfo("dir/program")
    program.mode = 0o750
    await bench.write(made, "/tmp", tar_folder("dir"), program, **files)
    for name, content in files.items():
        assert await bench.content(made, f"/tmp/{name}") == content, name
    members = await bench.read(made, "/tmp/dir")
    assert members.keys() == {"dir", "dir/ä 日本.txt", "dir/-x y", "dir/program"}
    assert members["dir/program"].mode & 0o777 == 0o750
    assert members["dir"].isdir()


@behaviour("files", "copy")
async def links_stay_links(bench: Bench) -> None:
    """Links stay links and lead nowhere else"""
    made = await bench.create("sh", "-c", "cat /tmp/dir/in")
    await bench.write(
        made,
        "/tmp",
        tar_folder("dir"),
        tar_link("dir/in", "file"),
        tar_link("dir/out", "/etc/passwd"),
        **{"dir/file": b"x\n"},
    )
    members = await bench.read(made, "/tmp/dir")
    assert members["dir/in"].issym()
    assert members["dir/in"].linkname == "file"
    assert members["dir/out"].issym()
    assert members["dir/out"].linkname == "/etc/passwd"
    assert (await bench.attached(made)).stdout == b"x\n"


@behaviour("files", "copy")
async def link_is_followed_by_its_target(bench: Bench) -> None:
    """A link leads to its file, one that leads nowhere to nothing"""
    made = await bench.create("true")
    await bench.write(made, "/tmp", tar_link("link", "file"), tar_link("dangling", "/nowhere"), file=b"x\n")
    target = (await bench.engine.stat_path(made, "/tmp/link")).link_target
    assert await bench.content(made, target) == b"x\n"
    async with raises(errors.NotFound):
        target = (await bench.engine.stat_path(made, "/tmp/dangling")).link_target
        await bench.content(made, target)


@behaviour("files", "copy", "exec")
async def running_container_sees_what_is_written(bench: Bench) -> None:
    """A running container sees what is written, and is read while it runs"""
    made = await bench.started()
    await bench.write(made, "/tmp", file=b"from outside\n")
    assert (await bench.exec(made, "cat", "/tmp/file")).stdout == b"from outside\n"
    await bench.exec(made, "sh", "-c", "echo from inside > /tmp/file")
    assert await bench.content(made, "/tmp/file") == b"from inside\n"


@behaviour("files", "copy")
async def ended_containers_files_are_there(bench: Bench) -> None:
    """An ended container's files are there"""
    made = await bench.ended("mkdir -p /made/deep; echo kept > /made/deep/file")
    assert await bench.content(made, "/made/deep/file") == b"kept\n"
    assert (await bench.read(made, "/made")).keys() == {"made", "made/deep", "made/deep/file"}


@behaviour("files", "copy")
async def file_is_replaced(bench: Bench) -> None:
    """A file is replaced; a folder is not overwritten by a file"""
    made = await bench.create("true")
    await bench.write(made, "/tmp", file=b"first, longer")
    await bench.write(made, "/tmp", file=b"second")
    assert await bench.content(made, "/tmp/file") == b"second"
    await bench.write(made, "/tmp", tar_folder("place"))
    async with raises(errors.Conflict):
        await bench.write(made, "/tmp", place=b"x")


@behaviour("files", "copy")
async def read_only_place_is_a_conflict(bench: Bench) -> None:
    """Writing to a read-only place is a conflict"""
    made = await bench.started(*FOREVER, read_only_rootfs=True)
    async with raises(errors.Conflict):
        await bench.write(made, "/etc", file=b"x")


@behaviour("files", "copy")
async def file_where_a_folder_is_needed_is_refused(bench: Bench) -> None:
    """A file in a folder's place is refused"""
    made = await bench.create("true")
    async with raises(errors.NotFound, errors.InvalidArgument, errors.Conflict):
        await bench.write(made, "/etc/passwd", file=b"x")


@behaviour("files", "copy")
async def error_of_the_reader_comes_back_as_it_is(bench: Bench) -> None:
    """An error of the reader comes back as it is; the engine stays usable"""
    before = busy_threads()
    made = await bench.create("true")

    def refuse(pieces: Iterator[bytes]) -> None:
        next(pieces)
        raise errors.Refused("enough", hint="read less")

    with pytest.raises(errors.Refused, match="enough"):
        await bench.engine.read_archive(made, "/bin", refuse)
    assert "etc/passwd" in await bench.read(made, "/etc")
    await no_thread_left(before)


@behaviour("files", "copy")
async def error_of_the_writer_comes_back_as_it_is(bench: Bench) -> None:
    """An error of the writer comes back as it is; the engine stays usable"""
    made = await bench.create("true")

    def pieces() -> Iterator[bytes]:
        yield archive_of({"file": bytes(3_000_000)})[:1_000_000]
        raise errors.Refused("enough", hint="write less")

    with pytest.raises(errors.Refused, match="enough"):
        await bench.engine.write_archive(made, "/tmp", pieces)
    await bench.write(made, "/tmp", other=b"x")
    assert await bench.content(made, "/tmp/other") == b"x"


@behaviour("files", "copy")
async def copy_that_is_left_leaves_no_thread(bench: Bench) -> None:
    """A copy that is left leaves no thread behind"""
    before = busy_threads()
    made = await bench.ended("dd if=/dev/zero of=/big bs=1M count=20 2> /dev/null")
    begun, gone_on = anyio.Event(), 0

    def slowly(pieces: Iterator[bytes]) -> None:
        nonlocal gone_on
        for _ in pieces:
            gone_on += 1
            anyio.from_thread.run_sync(begun.set)

    async def leave() -> None:
        await begun.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        await bench.engine.read_archive(made, "/big", slowly)
    await no_thread_left(before)
    assert (await bench.engine.stat_path(made, "/big")).size_bytes == 20 * 1024 * 1024
