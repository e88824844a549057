"""How do files get in and out of a root that others have filled, and what of it leads out?"""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import file_trees, files, overlay
from codomyrmex_containerization.models.container import MountPoint
from codomyrmex_containerization.models.details import PathStat

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, overlays and devices")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    (made / "tmp").mkdir()
    (made / "etc" / "passwd").write_bytes(b"root:x:0:0\n")
    return made


def entry(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644,
          uid: int = 0, gid: int = 0, mtime: int = 1000) -> tuple[tarfile.TarInfo, bytes]:  # fmt: skip
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.gid, info.mtime = kind, link, mode, uid, gid, mtime
    info.size = len(data)
    return info, data


def packed(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write(tree: files.Tree, folder: str, *entries: tuple[tarfile.TarInfo, bytes]) -> None:
    data = packed(*entries)
    tree.write(folder, lambda: iter([data[start : start + 1000] for start in range(0, len(data), 1000)]))


def read(tree: files.Tree, path: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    data = tree.read(path, b"".join)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            found[member.name] = (member, content.read() if content else b"")
    return found


# ----------------------------------------------------------------------------------------------------------------- stat


def test_stat_tells_file_folder_link_and_what_a_link_leads_to(root: Path) -> None:
    (root / "tmp" / "link").symlink_to("/etc/../etc/passwd")
    (root / "tmp" / "nowhere").symlink_to("gone/deeper")
    tree = files.Tree(root)
    assert tree.stat("/etc/passwd") == PathStat("passwd", 11, False, "")
    assert tree.stat("/etc") == PathStat("etc", 0, True, "")
    assert tree.stat("/").is_folder
    assert tree.stat("/tmp/link").link_target == "/etc/passwd"
    assert tree.stat("/tmp/nowhere").link_target == "/tmp/gone/deeper"


def test_stat_of_links_in_a_circle_is_refused_and_of_nothing_not_found(root: Path) -> None:
    (root / "tmp" / "a").symlink_to("b")
    (root / "tmp" / "b").symlink_to("a")
    for path, kind in (("/tmp/a", errors.InvalidArgument), ("/etc/passwd/x", errors.InvalidArgument),
                       ("/none", errors.NotFound), ("/none/deeper", errors.NotFound)):  # fmt: skip
        with pytest.raises(kind):
            files.Tree(root).stat(path)


def test_stat_never_leaves_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    (root / "tmp" / "up").symlink_to("../../../../secret")
    (root / "tmp" / "out").symlink_to(str(tmp_path))
    for path in ("/../secret", "/tmp/out/secret", "/tmp/../../secret"):
        with pytest.raises(errors.NotFound):
            files.Tree(root).stat(path)
    assert files.Tree(root).stat("/tmp/up").link_target == "/secret"


# ----------------------------------------------------------------------------------------------------------------- read


def test_read_names_entries_from_the_last_part_on_and_keeps_what_they_are(root: Path) -> None:
    folder = root / "tmp" / "dir"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "big").write_bytes(os.urandom(3_000_001))
    os.link(folder / "in" / "big", folder / "other")
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    (folder / "in" / "big").chmod(0o4750)
    os.utime(folder / "in" / "big", (5, 5))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.close()
    found = read(files.Tree(root), "/tmp/dir")
    assert found.keys() == {"dir", "dir/in", "dir/in/big", "dir/other", "dir/link", "dir/pipe"}
    big, data = found["dir/in/big"]
    assert (data, big.mode, big.mtime) == ((folder / "other").read_bytes(), 0o4750, 5)
    assert (found["dir/other"][0].islnk(), found["dir/other"][0].linkname) == (True, "dir/in/big")
    assert (found["dir/link"][0].issym(), found["dir/link"][0].linkname) == (True, "/etc/passwd")
    assert found["dir/pipe"][0].isfifo()


def test_read_follows_a_link_only_before_a_slash(root: Path) -> None:
    (root / "tmp" / "link").symlink_to("/etc")
    tree = files.Tree(root)
    assert read(tree, "/tmp/link")["link"][0].issym()
    assert read(tree, "/tmp/link/").keys() == {"link", "link/passwd"}
    assert read(tree, "/tmp/link/.").keys() == {".", "./passwd"}
    with pytest.raises(errors.NotFound):
        read(tree, "/etc/passwd/")


def test_read_gives_back_what_the_reader_raises_and_leaves_nothing_open(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def refuse(pieces: Iterator[bytes]) -> None:
        next(pieces)
        raise errors.Refused("enough", hint="")

    with pytest.raises(errors.Refused, match="enough"):
        files.Tree(root).read("/", refuse)
    assert len(os.listdir("/proc/self/fd")) == before


def test_read_of_a_file_that_shrinks_is_a_conflict(root: Path) -> None:
    file = root / "tmp" / "big"
    file.write_bytes(bytes(5_000_000))

    def shrink(pieces: Iterator[bytes]) -> None:
        next(pieces)
        os.truncate(file, 10)
        for _ in pieces:
            pass

    with pytest.raises(errors.Conflict, match="shorter"):
        files.Tree(root).read("/tmp/big", shrink)


def test_read_of_names_that_are_no_text_keeps_their_bytes(root: Path) -> None:
    (Path(os.fsdecode(os.fsencode(root / "tmp") + b"/\xff\xfe"))).write_bytes(b"x")
    assert read(files.Tree(root), "/tmp").keys() == {"tmp", "tmp/\udcff\udcfe"}


# ---------------------------------------------------------------------------------------------------------------- write


@is_root
def test_write_keeps_owner_mode_and_time(root: Path) -> None:
    write(files.Tree(root), "/tmp",
          entry("dir", kind=tarfile.DIRTYPE, mode=0o750, uid=5, gid=6, mtime=7),
          entry("dir/file", b"data", mode=0o4711, uid=8, gid=9, mtime=10),
          entry("dir/link", kind=tarfile.SYMTYPE, link="/nowhere", uid=11, gid=12, mtime=13),
          entry("dir/pipe", kind=tarfile.FIFOTYPE, mode=0o600, uid=14),
          entry("dir/again", kind=tarfile.LNKTYPE, link="dir/file"))  # fmt: skip
    folder = root / "tmp" / "dir"

    def look(path: Path) -> tuple[int, int, int, float]:
        found = path.lstat()
        return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime

    assert look(folder) == (0o750, 5, 6, 7)
    assert look(folder / "file") == (0o4711, 8, 9, 10)
    assert look(folder / "link") == (0o777, 11, 12, 13)
    assert look(folder / "pipe")[:3] == (0o600, 14, 0)
    assert (folder / "again").samefile(folder / "file")
    assert {one.name for one in folder.iterdir()} == {"file", "link", "pipe", "again"}


def test_write_replaces_files_and_links_and_never_writes_through_them(root: Path) -> None:
    (root / "tmp" / "link").symlink_to("/etc/passwd")
    os.link(root / "etc" / "passwd", root / "tmp" / "second")
    write(files.Tree(root), "/tmp", entry("link", b"new"), entry("second", b"new"))
    assert (root / "etc" / "passwd").read_bytes() == b"root:x:0:0\n"
    assert not (root / "tmp" / "link").is_symlink()
    assert [(root / "tmp" / name).read_bytes() for name in ("link", "second")] == [b"new", b"new"]


def test_write_follows_links_to_folders_inside_the_root_only(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "tmp" / "in").symlink_to("/etc")
    (root / "tmp" / "out").symlink_to(str(outside))
    write(files.Tree(root), "/tmp", entry("in/file", b"1"), entry("in", kind=tarfile.DIRTYPE))
    assert (root / "etc" / "file").read_bytes() == b"1"
    with pytest.raises(errors.NotFound):
        write(files.Tree(root), "/tmp/out", entry("file", b"1"))
    with pytest.raises(errors.ContainerizationError):
        write(files.Tree(root), "/tmp", entry("out/file", b"1"))
    assert list(outside.iterdir()) == []


def test_write_refuses_a_link_in_the_archive_that_leads_out(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(errors.ContainerizationError):
        write(files.Tree(root), "/tmp",
              entry("out", kind=tarfile.SYMTYPE, link=str(outside)), entry("out/file", b"1"))  # fmt: skip
    with pytest.raises(errors.ContainerizationError):
        write(files.Tree(root), "/tmp",
              entry("up", kind=tarfile.SYMTYPE, link="../../outside"), entry("up/file", b"1"))  # fmt: skip
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("wrong", [
    entry("../file", b"x"), entry("a/../../file", b"x"), entry("hard", kind=tarfile.LNKTYPE, link="../etc/passwd"),
    entry("hard", kind=tarfile.LNKTYPE, link="missing"), entry("hard", kind=tarfile.LNKTYPE, link="/"),
    entry("device", kind=tarfile.CHRTYPE), entry("device", kind=tarfile.BLKTYPE),
], ids=lambda one: f"{one[0].name}->{one[0].linkname}")  # fmt: skip
def test_write_refuses_what_leads_out_and_devices(root: Path, wrong: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(errors.InvalidArgument):
        write(files.Tree(root), "/tmp", wrong)
    assert list((root / "tmp").iterdir()) == []


def test_write_keeps_absolute_names_inside(root: Path) -> None:
    write(files.Tree(root), "/tmp", entry("/etc/file", b"x"), entry("hard", kind=tarfile.LNKTYPE, link="/etc/file"))
    assert (root / "tmp" / "etc" / "file").read_bytes() == b"x"
    assert (root / "tmp" / "hard").read_bytes() == b"x"
    assert not (root / "etc" / "file").exists()


def test_write_where_file_and_folder_meet_is_a_conflict(root: Path) -> None:
    (root / "tmp" / "place").mkdir()
    (root / "tmp" / "file").touch()
    for wrong in (entry("place", b"x"), entry("file", kind=tarfile.DIRTYPE)):
        with pytest.raises(errors.Conflict):
            write(files.Tree(root), "/tmp", wrong)


def test_write_needs_a_folder_that_may_be_written(root: Path) -> None:
    for path in ("/none", "/etc/passwd"):
        with pytest.raises(errors.NotFound):
            write(files.Tree(root), path, entry("file", b"x"))
    with pytest.raises(errors.Conflict):
        write(files.Tree(root, read_only=True), "/tmp", entry("file", b"x"))
    assert list((root / "tmp").iterdir()) == []


def test_write_gives_back_what_the_sender_raises_and_leaves_no_half_file(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    failures: list[BaseException] = [errors.Refused("enough", hint=""), OSError(5, "of the sender"), ValueError("odd")]
    for failure in failures:

        def pieces(failure: BaseException = failure) -> Iterator[bytes]:
            yield packed(entry("file", bytes(3_000_000)))[:1_000_000]
            raise failure

        with pytest.raises(type(failure)) as caught:
            files.Tree(root).write("/tmp", pieces)
        assert caught.value is failure
    assert list((root / "tmp").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("data", [b"\x01" * 2000, packed(entry("file", bytes(5000)))[:3000], b"\x1f\x8b" + b"x" * 600])
def test_write_of_a_damaged_archive_is_refused(root: Path, data: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        files.Tree(root).write("/tmp", lambda: iter([data]))
    assert list((root / "tmp").iterdir()) == []


def test_write_of_nothing_does_nothing(root: Path) -> None:
    files.Tree(root).write("/tmp", lambda: iter([]))
    files.Tree(root).write("/tmp", lambda: iter([b"", bytes(1024)]))
    assert list((root / "tmp").iterdir()) == []


SWAP = """
import os, shutil, sys
top, outside = sys.argv[1:]
place, away = f"{top}/place", f"{top}/away"
print("ready", flush=True)
while True:
    for target in (outside, "../../outside"):
        try:
            os.rename(place, away)
            os.symlink(target, place)
            os.unlink(place)
            os.rename(away, place)
        except OSError:  # somebody made a folder there meanwhile
            for one in (place, away):
                if os.path.islink(one):
                    os.unlink(one)
                shutil.rmtree(one, ignore_errors=True)
            os.makedirs(place, exist_ok=True)
"""


def test_nothing_leaves_the_root_while_a_process_swaps_links(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "tmp" / "place").mkdir()
    done = 0
    with subprocess.Popen(
        [sys.executable, "-c", SWAP, str(root / "tmp"), str(outside)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            for number in range(500):
                with suppress(errors.ContainerizationError):
                    write(files.Tree(root), "/tmp", entry(f"place/{number}", b"x"), entry("place/dir/file", b"x"))
                    done += 1
                with suppress(errors.ContainerizationError):
                    assert not any("secret" in name for name in read(files.Tree(root), "/tmp/place/"))
        finally:
            process.kill()
    assert done > 0
    assert os.listdir(outside) == ["secret"]


# --------------------------------------------------------------------------------------------------------------- mounts


def test_mounts_are_gone_into_by_their_targets(root: Path, tmp_path: Path) -> None:
    volume, fixed, inner = tmp_path / "volume", tmp_path / "fixed", tmp_path / "inner"
    for one in (volume, fixed, inner):
        one.mkdir()
        (one / "of").write_text(one.name)
    (tmp_path / "single").write_text("single")
    (root / "run").mkdir()
    (root / "var").symlink_to("run")
    (volume / "out").symlink_to("/etc/passwd")
    mounts = (
        MountPoint("volume", str(inner), "/data/inner", False, "inner"),
        MountPoint("volume", str(volume), "/data", False, "volume"),
        MountPoint("bind", str(fixed), "/var/fixed", True),
        MountPoint("bind", str(tmp_path / "single"), "/etc/single", False),
        MountPoint("tmpfs", "", "/scratch", False),
    )
    tree = files.Tree(root, mounts=mounts, read_only=True)
    assert read(tree, "/data/of")["of"][1] == b"volume"
    assert read(tree, "/data/inner/of")["of"][1] == b"inner"
    assert read(tree, "/run/fixed/of")["of"][1] == b"fixed"
    assert read(tree, "/etc/single")["single"][1] == b"single"
    assert tree.stat("/data/out").link_target == "/etc/passwd"
    found = read(tree, "/")
    assert {"./data/of", "./data/inner/of", "./run/fixed/of", "./etc/single"} <= found.keys()
    write(tree, "/data", entry("new", b"1"), entry("inner/new", b"2"))
    assert [(volume / "new").read_text(), (inner / "new").read_text()] == ["1", "2"]
    for folder, name in (("/var/fixed", "x"), ("/etc", "x"), ("/", "run/fixed/x"), ("/", "x")):
        with pytest.raises(errors.Conflict):
            write(tree, folder, entry(name, b"x"))
    with pytest.raises(errors.Conflict):
        write(files.Tree(root, mounts=mounts), "/etc", entry("single", b"x"))


# -------------------------------------------------------------------------------------------------------------- running


@pytest.fixture
def running(root: Path) -> Iterator[tuple[int, Path]]:
    """A process of its own root, with /proc and a read-only place."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a root of its own")
    (root / "bin").mkdir()
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    for name in ("proc", "fixed"):
        (root / name).mkdir()
    script = (
        'mount -t proc proc "$0/proc" && mount --bind "$0/fixed" "$0/fixed" && mount -o remount,ro,bind "$0/fixed"'
        ' && exec chroot "$0" /bin/busybox sh -c "echo ready; read x"'
    )
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid, Path(f"/proc/{process.pid}/root")
        process.stdin.close()


def test_running_root_is_seen_with_its_mounts(running: tuple[int, Path], root: Path) -> None:
    tree = files.Tree(running[1])
    write(tree, "/tmp", entry("file", b"x"))
    assert (root / "tmp" / "file").read_bytes() == b"x"
    found = read(tree, "/")
    assert "./tmp/file" in found
    assert "./proc" in found
    assert not any(name.startswith("./proc/") for name in found)
    for path in ("/fixed", "/fixed/."):
        with pytest.raises(errors.Conflict):
            write(tree, path, entry("file", b"x"))


def test_running_roots_proc_is_no_way_out_and_is_not_copied(running: tuple[int, Path], root: Path) -> None:
    pid, place = running
    tree = files.Tree(place)
    (root / "tmp" / "sneaky").symlink_to(f"/proc/{os.getpid()}/root")
    for path in ("/proc/version", "/proc/kmsg", f"/proc/{pid}/environ"):
        with pytest.raises(errors.InvalidArgument):
            tree.read(path, b"".join)
    # Read as text, that link says "/": the container's own root.
    assert tree.stat("/tmp/sneaky").link_target == "/"
    with pytest.raises(errors.ContainerizationError):
        write(tree, "/proc/sys/kernel", entry("core_pattern", b"|/tmp/x"))


def test_root_of_an_ended_process_is_a_conflict() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(errors.Conflict):
        files.Tree(Path(f"/proc/{process.pid}/root")).stat("/")


# --------------------------------------------------------------------------------------------------- sizes and changes


def test_size_counts_hard_links_once(root: Path) -> None:
    (root / "tmp" / "one").write_bytes(bytes(1000))
    os.link(root / "tmp" / "one", root / "tmp" / "two")
    assert files.size(root) == 1011
    with pytest.raises(errors.NotFound):
        files.size(root / "none")


def _deep(folder: Path, depth: int) -> None:
    held = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=held)
        inner = os.open("d", os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = inner
    os.close(held)


def test_size_of_folders_too_deep_is_unsupported_and_they_can_be_removed(root: Path) -> None:
    _deep(root / "tmp", 5000)
    with pytest.raises(errors.Unsupported):
        files.size(root)
    with pytest.raises(errors.InvalidArgument):
        files.Tree(root).read("/tmp", b"".join)
    file_trees.remove(root / "tmp")
    assert not (root / "tmp").exists()


def test_removal_leaves_what_links_lead_to(root: Path) -> None:
    (root / "tmp" / "link").symlink_to("../etc")
    (root / "tmp" / "dir").mkdir()
    (root / "tmp" / "dir" / "link").symlink_to("/etc")
    file_trees.remove(root / "tmp")
    assert (root / "etc" / "passwd").exists()
    file_trees.remove(root / "tmp")


@is_root
def test_removal_does_not_go_into_what_is_mounted(root: Path, tmp_path: Path) -> None:
    low = tmp_path / "low"
    low.mkdir()
    (low / "kept").touch()
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    (root / "tmp" / "inner").mkdir()
    for target in (root / "tmp", root / "tmp" / "inner"):
        with overlay.mounted([low], upper=upper, work=work, target=target):
            with pytest.raises(OSError, match=r"mounted|busy"):
                file_trees.remove(root)
            assert (target / "kept").exists()


@is_root
def test_changes_are_those_that_the_kernels_overlay_leaves(tmp_path: Path) -> None:
    low, high, upper, work, merged = (tmp_path / name for name in ("low", "high", "upper", "work", "merged"))
    for one in (low, high, upper, work, merged):
        one.mkdir()
    for path in ("kept/file", "gone/file", "again/old", "again/deep/old", "again/same", "changed", "link-away/file"):
        (low / path).parent.mkdir(parents=True, exist_ok=True)
        (low / path).write_text("low")
    (high / "kept").mkdir()
    (high / "kept" / "second").write_text("high")
    (high / "link").symlink_to("/")
    os.mknod(high / "link-away", stat.S_IFCHR, os.makedev(0, 0))
    with overlay.mounted([low, high], upper=upper, work=work, target=merged):
        (merged / "kept" / "new").write_text("x")
        (merged / "kept" / "second").write_text("y")
        (merged / "changed").chmod(0o600)
        (merged / "gone" / "file").unlink()
        (merged / "gone").rmdir()
        for name in ("old", "same"):
            (merged / "again" / name).unlink()
        (merged / "again" / "deep" / "old").unlink()
        (merged / "again" / "deep").rmdir()
        (merged / "again").rmdir()
        (merged / "again").mkdir()
        (merged / "again" / "same").write_text("new")
        (merged / "link-away").mkdir()
        (merged / "link-away" / "file").write_text("new")
        (merged / "fresh").mkdir()
        (merged / "fresh" / "file").write_text("x")
        (merged / "link").unlink()
        assert files.changes(upper, [low, high]) == [
            ("C", "/again"), ("D", "/again/deep"), ("D", "/again/old"), ("C", "/again/same"), ("C", "/changed"),
            ("A", "/fresh"), ("A", "/fresh/file"), ("D", "/gone"), ("C", "/kept"), ("A", "/kept/new"),
            ("C", "/kept/second"), ("D", "/link"), ("A", "/link-away"), ("A", "/link-away/file"),
        ]  # fmt: skip
