"""Does a layer's tar become the folder that overlay wants, and back, and does a hostile one stay out?"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import layer_folders, layer_pack, layer_streams, layer_tar, layers
from tests import tally
from tests.engines.embedded.content_help import HOSTILE, entry, listing, tar

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and overlay's marks are root's")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that a layer is unpacked into, beside one that it must not touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(b"kept")
    made = tmp_path / "layer"
    made.mkdir()
    return made


def unpack(data: bytes, folder: Path, *, bounds: layers.Bounds | None = None) -> layers.Contents:
    prefix = layers.overlay_prefix(folder.parent)
    return layers.unpack(io.BytesIO(data), folder, prefix=prefix, bounds=bounds or layers.Bounds())


def packed(folder: Path) -> bytes:
    return b"".join(layer_pack.Packing(folder, layers.overlay_prefix(folder.parent)).pieces())


def opaque(path: Path) -> bool:
    name = f"{layers.overlay_prefix(path.parent)}opaque"
    return name in os.listxattr(path) and os.getxattr(path, name) == b"y"


def is_whiteout(path: Path) -> bool:
    return layer_folders.is_whiteout(path.lstat())


# ------------------------------------------------------------------------------------------------------------ unpacking


@needs_root
def test_unpacking_keeps_owner_mode_time_and_attributes(folder: Path) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    pax = {
        "SCHILY.xattr.user.note": "a\nb = ä",
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "mtime": "1600000000.123456789",
    }
    unpack(
        tar(
            entry("d", kind=tarfile.DIRTYPE, mode=0o2750, uid=12, gid=34),
            (entry("d/f", mode=0o4755, uid=70_000, gid=3_000_000, pax=pax), b"data"),
            entry("d/l", kind=tarfile.SYMTYPE, target="/etc/passwd", uid=5, gid=6),
            entry("d/h", kind=tarfile.LNKTYPE, target="d/f"),
            entry("d/p", kind=tarfile.FIFOTYPE, mode=0o620),
        ),
        folder,
    )
    state = (folder / "d/f").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == (0o4755, 70_000, 3_000_000)
    assert state.st_mtime_ns == 1_600_000_000_123_456_789
    assert state.st_nlink == 2
    assert (folder / "d/h").stat().st_ino == state.st_ino
    assert os.getxattr(folder / "d/f", "user.note") == "a\nb = ä".encode()
    assert os.getxattr(folder / "d/f", "security.capability") == capability
    above = (folder / "d").stat()
    assert (stat.S_IMODE(above.st_mode), above.st_uid, above.st_gid, above.st_mtime) == (0o2750, 12, 34, 1.6e9)
    assert os.readlink(folder / "d/l") == "/etc/passwd"
    assert ((folder / "d/l").lstat().st_uid, (folder / "d/l").lstat().st_mtime) == (5, 1.6e9)
    assert stat.S_ISFIFO((folder / "d/p").stat().st_mode)


def test_unpacking_makes_folders_that_no_entry_names(folder: Path) -> None:
    found = unpack(tar(("a/b/c", b"123")), folder)
    assert (folder / "a/b/c").read_bytes() == b"123"
    assert stat.S_IMODE((folder / "a/b").stat().st_mode) == 0o755
    assert (found.size_bytes, found.entries) == (3, 1)


def test_later_entries_replace_earlier_ones(folder: Path) -> None:
    unpack(
        tar(
            ("a/b", b"1"), entry("a", kind=tarfile.SYMTYPE, target="/tmp"), ("a", b"2"),
            entry("c", kind=tarfile.SYMTYPE, target="/tmp"), entry("c", kind=tarfile.DIRTYPE), ("c/d", b"3"),
            ("e", b"4"), ("e", b"5"),
        ),
        folder,
    )  # fmt: skip
    assert (folder / "a").read_bytes() == b"2"
    assert (folder / "c/d").read_bytes() == b"3"
    assert (folder / "e").read_bytes() == b"5"


def test_whiteouts_become_overlays_marks(folder: Path) -> None:
    unpack(tar(("a/.wh.gone", b""), ("b/.wh..wh..opq", b""), ("b/new", b"1"), (".wh..wh.plnk", b"")), folder)
    assert is_whiteout(folder / "a/gone")
    assert not opaque(folder / "a")
    assert opaque(folder / "b")
    assert sorted(os.listdir(folder)) == ["a", "b"]


def test_folder_that_is_removed_and_made_anew_is_opaque(folder: Path) -> None:
    unpack(tar((".wh.a", b""), ("a/new", b"1"), ("b/new", b"1"), (".wh.b", b""), ("c", b"1"), (".wh.c", b"")), folder)
    assert opaque(folder / "a")
    assert opaque(folder / "b")
    assert (folder / "c").read_bytes() == b"1"


@needs_root
def test_overlay_shows_what_the_whiteouts_say(folder: Path, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    unpack(tar(("a/gone", b"1"), ("a/kept", b"1"), ("b/old", b"1"), ("c", b"1")), lower)
    unpack(tar(("a/.wh.gone", b""), ("b/.wh..wh..opq", b""), ("b/new", b"1"), (".wh.c", b"")), folder)
    merged = tmp_path / "merged"
    merged.mkdir()
    if os.system(f"mount -t overlay -o lowerdir={folder}:{lower} none {merged} 2>/dev/null"):
        pytest.skip("no overlay can be mounted here")
    try:
        assert sorted(listing(merged)) == ["a", "a/kept", "b", "b/new"]
    finally:
        os.system(f"umount {merged}")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_form_of_tar_is_read(folder: Path, form: int) -> None:
    long = "d" * 90 + "/" + "f" * 90
    unpack(tar((long, b"1" * 1000), entry("l", kind=tarfile.SYMTYPE, target="t" * 90), form=form), folder)
    assert (folder / long).read_bytes() == b"1" * 1000
    assert os.readlink(folder / "l") == "t" * 90


def test_names_of_any_bytes_and_length_are_kept(folder: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \xff")
    long = "/".join(["ä" * 60] * 5)
    unpack(tar((f"{long}/{odd}", b"1"), entry("l", kind=tarfile.SYMTYPE, target=f"{long}/{odd}")), folder)
    assert (folder / long / odd).read_bytes() == b"1"
    again = tmp_path / "again"
    again.mkdir()
    unpack(packed(folder), again)
    assert listing(again).keys() == listing(folder).keys()
    assert os.readlink(again / "l") == f"{long}/{odd}"


# ---------------------------------------------------------------------------------------------------------- what is bad


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("/etc/x", tar(("/etc/x", b"1"))),
        ("../outside/x", tar(("../outside/x", b"1"))),
        ("a/../../outside/x", tar(("a/../../outside/x", b"1"))),
        ("..", tar(entry("..", kind=tarfile.DIRTYPE))),
        ("a/kept", tar(entry("a", kind=tarfile.SYMTYPE, target="../outside"), ("a/kept", b"bad"))),
        ("a/b/kept", tar(entry("a/b", kind=tarfile.SYMTYPE, target="../../outside"), ("a/b/kept", b"bad"))),
        ("a/.wh.kept", tar(entry("a", kind=tarfile.SYMTYPE, target="../outside"), ("a/.wh.kept", b""))),
        ("a/.wh..wh..opq", tar(entry("a", kind=tarfile.SYMTYPE, target="../outside"), ("a/.wh..wh..opq", b""))),
        ("a/x", tar(("a", b"a file"), ("a/x", b"bad"))),
        ("h", tar(entry("h", kind=tarfile.LNKTYPE, target="../outside/kept"))),
        ("h", tar(entry("a", kind=tarfile.SYMTYPE, target="../outside"), entry("h", kind=tarfile.LNKTYPE, target="a/kept"))),
        ("h", tar(entry("h", kind=tarfile.LNKTYPE, target="not there"))),
        ("h", tar(entry("d", kind=tarfile.DIRTYPE), entry("h", kind=tarfile.LNKTYPE, target="d"))),
        ("h", tar((".wh.w", b""), entry("h", kind=tarfile.LNKTYPE, target="w"))),
        ("/h", tar(entry("/h", kind=tarfile.LNKTYPE, target="/etc/shadow"))),
        ("h", tar(entry("h", kind=tarfile.LNKTYPE, target="/etc/shadow"))),
        ("dev/sda", tar(entry("dev/sda", kind=tarfile.BLKTYPE))),
        ("dev/mem", tar(entry("dev/mem", kind=tarfile.CHRTYPE))),
        (".wh..", tar((".wh..", b""))),
        (".wh.", tar((".wh.", b""))),
        (".wh...", tar((".wh...", b""))),
        (".wh.a/b", tar((".wh.a/b", b""))),
        ("n" * 300, tar(("n" * 300, b"1"))),
        ("l", tar(entry("l", kind=tarfile.SYMTYPE, target="t" * 5000))),
    ],
)  # fmt: skip
def test_hostile_entry_is_refused_by_name(folder: Path, name: str, data: bytes) -> None:
    with tally.attempt():
        with pytest.raises(errors.InvalidArgument) as caught:
            unpack(data, folder)
        assert name[:100] in caught.value.message
        assert sorted(os.listdir(folder.parent / "outside")) == ["kept"]
        assert (folder.parent / "outside" / "kept").read_bytes() == b"kept"


@pytest.mark.attack(HOSTILE)
def test_overlays_marks_and_foreign_attributes_stay_out(folder: Path) -> None:
    names = (
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "trusted.x",
        "security.selinux",
        "user.overlay.redirect",
    )
    pax = {f"SCHILY.xattr.{name}": "/../../etc" for name in (*names, "user.kept")}
    unpack(tar(entry("d", kind=tarfile.DIRTYPE, pax=pax), (entry("f", pax=pax), b"")), folder)
    for one in ("d", "f"):
        with tally.attempt():
            assert set(os.listxattr(folder / one)) & {*names, "user.kept"} == {"user.kept"}


@pytest.mark.attack(HOSTILE)
def test_layer_with_too_many_entries_or_bytes_is_refused(folder: Path) -> None:
    many = tar(*[(f"f{number}", b"") for number in range(11)])
    with tally.attempt(), pytest.raises(errors.InvalidArgument, match="more than 10 entries"):
        unpack(many, folder, bounds=layers.Bounds(most_entries=10))
    with tally.attempt(), pytest.raises(errors.InvalidArgument, match="1,000 bytes"):
        unpack(tar(("a", b"1" * 600), ("b", b"1" * 600)), folder, bounds=layers.Bounds(most_bytes=1000))
    assert not (folder / "b").exists()


@pytest.mark.attack(HOSTILE)
def test_layer_deeper_than_folders_may_be_is_refused(folder: Path) -> None:
    with tally.attempt(), pytest.raises(errors.InvalidArgument, match="deeper than"):
        unpack(tar(("/".join(["d"] * 5000), b"")), folder)


def _number(place: int, length: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place : place + length] = value.ljust(length, b"\0")
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])

    return change


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize(
    "change",
    [
        _number(124, 12, b"\xff" * 12),  # a negative size
        _number(124, 12, b"\x80" + b"\xff" * 11),  # more than any disk
        _number(124, 12, b"77777777777"),  # 8 GiB that are not there
        _number(124, 12, b"12x"),
        _number(108, 8, b"\xff" * 8),  # a negative owner
        _number(156, 1, b"Q"),
        _number(156, 1, b"x"),  # an extended header that is none
        _number(156, 1, b"L"),
        lambda data: data.__setitem__(slice(0, 4), b"zzzz"),  # the checksum
        lambda data: data.__delitem__(slice(700, None)),
        lambda data: data.__delitem__(slice(300, None)),
    ],
)
def test_damaged_tar_is_an_error(folder: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(tar(("name", b"1" * 600), form=tarfile.USTAR_FORMAT))
    change(data)
    with tally.attempt(), pytest.raises(errors.InvalidArgument):
        unpack(bytes(data), folder)


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize(
    "record", [b"", b"1", b"9999 path=x\n", b"-5 path=x\n", b"0 path=x\n", b"9 path=x", b"7 pathx\n", b"1" * 100_000]
)
def test_damaged_extended_header_is_an_error(folder: Path, record: bytes) -> None:
    header = bytearray(layer_tar.header(layer_tar.Entry("p", "file", size_bytes=len(record))))
    _number(156, 1, b"x")(header)
    data = bytes(header) + record + bytes(-len(record) % 512) + (tar(("name", b"1")) if record else b"")
    with tally.attempt(), pytest.raises(errors.InvalidArgument):
        unpack(data, folder)


@pytest.mark.attack(HOSTILE)
def test_headers_without_end_are_an_error(folder: Path) -> None:
    header = bytearray(layer_tar.header(layer_tar.Entry("p", "file")))
    _number(156, 1, b"x")(header)
    with tally.attempt(), pytest.raises(errors.InvalidArgument):
        unpack(bytes(header) * 10_000, folder)
    huge = bytearray(layer_tar.header(layer_tar.Entry("p", "file", size_bytes=2 * 1024**3)))
    _number(156, 1, b"L")(huge)
    with tally.attempt(), pytest.raises(errors.InvalidArgument, match="1 MiB"):
        unpack(bytes(huge), folder)


def test_sparse_file_is_unsupported(folder: Path) -> None:
    with pytest.raises(errors.Unsupported, match="sparse"):
        unpack(tar((entry("s", pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), b"")), folder)


def test_empty_stream_is_no_layer(folder: Path) -> None:
    with pytest.raises(errors.InvalidArgument):
        unpack(b"", folder)
    assert unpack(bytes(1024), folder).entries == 0


# ---------------------------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_packed_stream_is_unpacked(pack: Callable[[bytes], bytes]) -> None:
    data = os.urandom(3_000_000) + bytes(3_000_000)
    stream = layer_streams.Measured(layer_streams.plain(io.BytesIO(pack(data))), most_bytes=len(data), what="it")
    stream.drain()
    assert (stream.count, stream.digest) == (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")


def test_members_of_gzip_are_read_one_after_the_other() -> None:
    stream = layer_streams.plain(io.BytesIO(gzip.compress(b"one") + gzip.compress(b"two") + bytes(100)))
    found = b""
    while piece := stream.read(2):
        assert len(piece) <= 2
        found += piece
    assert found == b"onetwo"


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize(
    "data",
    [gzip.compress(b"1" * 1000)[:-5], gzip.compress(b"1" * 1000)[:-8] + b"12345678", gzip.compress(b"1") + b"junk",
     b"\x1f\x8b" + b"\xff" * 100],
)  # fmt: skip
def test_damaged_gzip_is_an_error(data: bytes) -> None:
    stream = layer_streams.Measured(layer_streams.plain(io.BytesIO(data)), most_bytes=10_000, what="it")
    with tally.attempt(), pytest.raises(errors.InvalidArgument):
        stream.drain()


@pytest.mark.attack(HOSTILE)
def test_stream_that_grows_without_end_is_stopped() -> None:
    packed_zeros = gzip.compress(bytes(50_000_000))
    stream = layer_streams.Measured(layer_streams.plain(io.BytesIO(packed_zeros)), most_bytes=1_000_000, what="it")
    with tally.attempt(), pytest.raises(errors.InvalidArgument, match="1,000,000 bytes"):
        stream.drain()


def test_zstd_is_read_or_named_as_what_is_missing() -> None:
    # What zstd makes of `hello`.
    data = bytes.fromhex("28b52ffd200529000068656c6c6f")
    if not any(importlib.util.find_spec(name) for name in ("compression", "backports")):
        with pytest.raises(errors.Unsupported, match="zstd"):
            layer_streams.plain(io.BytesIO(data))
        return
    assert layer_streams.plain(io.BytesIO(data)).read(10) == b"hello"


# -------------------------------------------------------------------------------------------------------------- packing


def make_upper(folder: Path) -> None:
    (folder / "d/e").mkdir(parents=True)
    (folder / "d/f").write_bytes(b"1" * 1000)
    os.link(folder / "d/f", folder / "d/e/hard")
    os.symlink("../x", folder / "d/soft")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "d/gone", stat.S_IFCHR, 0)
    os.setxattr(folder / "d/e", f"{layers.overlay_prefix(folder.parent)}opaque", b"y")
    os.setxattr(folder / "d/f", "user.note", b"\xff\0=\n")
    if os.geteuid() == 0:
        os.chown(folder / "d/f", 3_000_000, 5)
        os.setxattr(folder / "d", "trusted.overlay.origin", b"x")
    for one in (folder / "d/f", folder / "d/e", folder / "d", folder / "pipe"):
        os.utime(one, (1, 1_500_000_000))
    os.utime(folder / "d/soft", (1, 1_500_000_000), follow_symlinks=False)


def test_packed_folder_is_a_tar_with_whiteouts(folder: Path) -> None:
    make_upper(folder)
    with tarfile.open(fileobj=io.BytesIO(packed(folder))) as archive:
        found = {one.name: one for one in archive}
    assert list(found) == ["d", "d/e", "d/e/.wh..wh..opq", "d/e/hard", "d/f", "d/.wh.gone", "d/soft", "pipe"]
    assert (found["d/f"].islnk(), found["d/f"].linkname) == (True, "d/e/hard")
    assert found["d/e/hard"].size == 1000
    assert found["d/soft"].linkname == "../x"
    assert found["d/e/hard"].pax_headers["SCHILY.xattr.user.note"].encode("utf-8", "surrogateescape") == b"\xff\0=\n"
    assert not [key for one in found.values() for key in one.pax_headers if "overlay" in key]


@needs_root
def test_packing_and_unpacking_give_the_same_again(folder: Path, tmp_path: Path) -> None:
    make_upper(folder)
    os.removexattr(folder / "d", "trusted.overlay.origin")
    first = packed(folder)
    again = tmp_path / "again"
    again.mkdir(mode=0o755)
    unpack(first, again)
    assert packed(again) == first
    marks = {"d/gone"}  # their time says nothing
    assert {k: v for k, v in listing(again).items() if k not in marks} == {
        k: v for k, v in listing(folder).items() if k not in marks
    }


@needs_root
def test_rights_of_the_root_are_part_of_a_layer(folder: Path, tmp_path: Path) -> None:
    os.chmod(folder, 0o1777)
    again = tmp_path / "again"
    again.mkdir()
    unpack(packed(folder), again)
    assert stat.S_IMODE(again.stat().st_mode) == 0o1777


@needs_root
def test_overlays_upper_folder_becomes_a_layer(folder: Path, tmp_path: Path) -> None:
    lower, work, merged = tmp_path / "lower", tmp_path / "work", tmp_path / "merged"
    for one in (lower, work, merged):
        one.mkdir()
    unpack(tar(("a/gone", b"1"), ("a/kept", b"1"), ("b/old", b"1"), ("c", b"1")), lower)
    if os.system(
        f"mount -t overlay -o lowerdir={lower},upperdir={folder},workdir={work},redirect_dir=off none {merged}"
    ):
        pytest.skip("no overlay can be mounted here")
    try:
        (merged / "a/gone").unlink()
        (merged / "b/old").unlink()
        (merged / "b").rmdir()
        (merged / "b").mkdir()
        (merged / "b/new").write_bytes(b"2")
        (merged / "c").write_bytes(b"changed")
    finally:
        os.system(f"umount {merged}")
    with tarfile.open(fileobj=io.BytesIO(packed(folder))) as archive:
        assert archive.getnames() == ["a", "a/.wh.gone", "b", "b/.wh..wh..opq", "b/new", "c"]


@needs_root
def test_folder_that_cannot_be_a_layer_is_refused(folder: Path) -> None:
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(errors.Unsupported, match="'null' is a device"):
        packed(folder)
    (folder / "null").unlink()
    (folder / "d").mkdir()
    os.setxattr(folder / "d", "trusted.overlay.redirect", b"/x")
    with pytest.raises(errors.Unsupported, match="redirect_dir"):
        packed(folder)
    (folder / "d").rmdir()
    (folder / ".wh.x").write_bytes(b"")
    with pytest.raises(errors.Unsupported, match=r"begin with \.wh\."):
        packed(folder)


def test_file_that_changes_while_it_is_packed_is_a_conflict(folder: Path) -> None:
    (folder / "a").write_bytes(b"1" * 100)
    (folder / "b").write_bytes(b"1" * 3_000_000)
    pieces = layer_pack.Packing(folder, None).pieces()
    assert next(pieces)
    os.truncate(folder / "b", 10)
    os.truncate(folder / "a", 0)
    with pytest.raises(errors.Conflict, match="changed while it was read"):
        list(pieces)


@pytest.mark.attack(HOSTILE)
def test_link_put_in_place_of_a_file_is_not_followed(folder: Path) -> None:
    (folder / "a").write_bytes(b"1")
    (folder / "d").mkdir()
    (folder / "z").write_bytes(b"1")
    packing = layer_pack.Packing(folder, None)
    pieces = packing.pieces()
    assert next(pieces)
    (folder / "d").rmdir()
    os.symlink("../outside", folder / "d")
    (folder / "z").unlink()
    os.symlink("../outside/kept", folder / "z")
    with tally.attempt():
        assert b"kept" not in b"".join(pieces).replace(b"../outside/kept", b"")


def test_socket_is_left_out(folder: Path) -> None:
    os.mknod(folder / "s", stat.S_IFSOCK | 0o600)
    (folder / "f").write_bytes(b"1")
    with tarfile.open(fileobj=io.BytesIO(packed(folder))) as archive:
        assert archive.getnames() == ["f"]
