"""Do files come through whole, and does nothing ever get out of the folder that was named, whatever an archive holds?"""

from __future__ import annotations

import errno
import filecmp
import gzip
import io
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import hypothesis
import hypothesis.strategies as st
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import copies
from tests import tally
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.server.engines import eventually

MEBIBYTE = 1024 * 1024
BLOCK = 512
ARCHIVES = "hostile archives"


# ------------------------------------------------------------------------------------------------- hostile archives


@dataclass(slots=True)
class Tar:
    """An archive as an attacker writes it: whatever is put in is what is there."""

    pieces: list[bytes] = field(default_factory=list)

    def add(
        self,
        name: str,
        content: bytes = b"",
        *,
        kind: bytes = tarfile.REGTYPE,
        link: str = "",
        mode: int = 0o644,
        size: int | None = None,
        pax: dict[str, str] | None = None,
    ) -> Tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, link, mode
        info.size = len(content) if size is None else size
        info.pax_headers = pax or {}
        self.pieces.append(info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        self.pieces.append(content + bytes(-len(content) % BLOCK))
        return self

    def raw(self, data: bytes) -> Tar:
        self.pieces.append(data)
        return self

    def bytes(self, *, end: bool = True) -> bytes:
        return b"".join(self.pieces) + (bytes(2 * BLOCK) if end else b"")


@dataclass(frozen=True, slots=True)
class Ground:
    """A folder to unpack into, with things around it that must stay as they are."""

    base: Path

    @property
    def into(self) -> Path:
        return self.base / "work" / "target"

    def unpack(self, archive: bytes | Tar) -> copies.Copied:
        tally.tried()
        data = archive.bytes() if isinstance(archive, Tar) else archive
        before = self.outside()
        try:
            return copies.unpack(iter([data[at : at + 700] for at in range(0, len(data), 700)]), self.into)
        finally:
            tally.got_through(int(self.outside() != before))

    def outside(self) -> dict[str, tuple[object, ...]]:
        """Everything that is there but the target: kind, mode, content or link, time."""
        return {
            str(path.relative_to(self.base)): _described(path)
            for path in sorted(self.base.rglob("*"))
            if path != self.into and self.into not in path.parents
        }

    def inside(self) -> dict[str, bytes | str | None]:
        """The target: a file's content, a link's goal, None for a folder."""
        found: dict[str, bytes | str | None] = {}
        for path in sorted(self.into.rglob("*")):
            name = str(path.relative_to(self.into))
            found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
        return found

    def links_stay_inside(self) -> bool:
        top = os.path.realpath(self.into)
        # What goes in a circle leads nowhere, though realpath makes a root of some: `top -> top//`.
        links = [path for path in self.into.rglob("*") if path.is_symlink() and not _goes_in_a_circle(path)]
        return all(os.path.realpath(path) == top or os.path.realpath(path).startswith(top + "/") for path in links)


def _goes_in_a_circle(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _described(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    if path.is_symlink():
        return ("link", os.readlink(path))
    if path.is_dir():
        return ("folder", found.st_mode)
    return ("file", found.st_mode, found.st_nlink, found.st_mtime_ns, path.read_bytes())


def make_ground(base: Path) -> Ground:
    (base / "work").mkdir(parents=True)
    (base / "outside").mkdir()
    (base / "outside" / "secret").write_text("secret")
    (base / "work" / "neighbour").write_text("neighbour")
    return Ground(base)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return make_ground(tmp_path / "ground")


def folder() -> Tar:
    return Tar().add("top", kind=tarfile.DIRTYPE, mode=0o755).add("top/ok", b"ok")


HOSTILE_NAMES = {
    "absolute": "/top/x",
    "absolute-outside": "/etc/x",
    "double-slash": "//x",
    "parent": "top/../../outside/secret",
    "parent-alone": "..",
    "parent-first": "../outside/secret",
    "parent-last": "top/a/..",
    "parent-hidden": "top/./../x",
}


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_unpack_refuses_a_name_that_leads_out(ground: Ground, name: str, kind: bytes) -> None:
    before = ground.outside()
    with pytest.raises(errors.Refused, match="leads out"):
        ground.unpack(folder().add(name, b"evil" if kind == tarfile.REGTYPE else b"", kind=kind, link="top/ok"))
    assert ground.outside() == before


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_unpack_refuses_a_name_in_an_extended_header_that_leads_out(ground: Ground, name: str) -> None:
    before = ground.outside()
    with pytest.raises(errors.Refused, match="leads out"):
        ground.unpack(folder().add("top/harmless", b"evil", pax={"path": name}))
    assert ground.outside() == before


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("link", ["/outside/secret", "../outside/secret", "top/../../outside/secret", "top/none"])
def test_unpack_makes_no_hard_link_to_what_is_not_in_the_archive(ground: Ground, link: str) -> None:
    before = ground.outside()
    with pytest.raises((errors.Refused, errors.Conflict)):
        ground.unpack(folder().add("top/hard", kind=tarfile.LNKTYPE, link=link))
    assert ground.outside() == before


LINKS_OUT = {
    "absolute": ("top/l", "/etc/passwd"),
    "parent": ("top/l", ".."),
    "neighbour": ("top/l", "../neighbour"),
    "deep": ("top/a/b/l", "../../../neighbour"),
    "up-and-back": ("top/l", "../target/ok"),
    "behind-a-name": ("top/l", "a/../../neighbour"),
    "nul": ("top/l", "a\0b"),
}


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize(("name", "link"), LINKS_OUT.values(), ids=LINKS_OUT)
def test_unpack_leaves_out_and_names_a_link_that_leads_out(ground: Ground, name: str, link: str) -> None:
    before = ground.outside()
    pax = {"linkpath": link} if "\0" in link else None
    archive = folder().add(name, kind=tarfile.SYMTYPE, link="" if pax else link, pax=pax).add("top/z", b"z")
    copied = ground.unpack(archive)
    assert copied.skipped == (name.replace("top", "target", 1),)
    assert ground.outside() == before
    assert ground.inside()["z"] == b"z"
    assert ground.links_stay_inside()


@pytest.mark.attack(ARCHIVES)
def test_unpack_leaves_out_a_link_that_leads_out_through_another_link(ground: Ground) -> None:
    archive = folder().add("top/x/y/up", kind=tarfile.SYMTYPE, link="../..")
    archive.add("top/evil", kind=tarfile.SYMTYPE, link="x/y/up/../neighbour")
    assert ground.unpack(archive).skipped == ("target/evil",)
    assert ground.links_stay_inside()


@pytest.mark.attack(ARCHIVES)
def test_unpack_makes_no_hard_link_to_a_link_that_would_lead_out_from_there(ground: Ground) -> None:
    archive = folder().add("top/a/b/l", kind=tarfile.SYMTYPE, link="../..")
    with pytest.raises(errors.Refused):
        ground.unpack(archive.add("top/l2", kind=tarfile.LNKTYPE, link="top/a/b/l"))
    assert ground.links_stay_inside()


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("goal", ["..", "../outside", "/", "sub"])
def test_unpack_writes_nothing_through_a_link(ground: Ground, goal: str) -> None:
    before = ground.outside()
    archive = folder().add("top/sub/here", b"here").add("top/d", kind=tarfile.SYMTYPE, link=goal)
    try:
        ground.unpack(archive.add("top/d/evil", b"evil"))
    except errors.Refused:
        assert goal == "sub"
    assert ground.outside() == before
    assert "sub/evil" not in ground.inside()


@pytest.mark.attack(ARCHIVES)
def test_unpack_writes_nothing_through_a_link_that_is_there_already(ground: Ground) -> None:
    ground.into.mkdir()
    (ground.into / "d").symlink_to("../../outside")
    (ground.into / "f").symlink_to("../../outside/secret")
    before = ground.outside()
    with pytest.raises(errors.Refused):
        ground.unpack(folder().add("top/f", b"new").add("top/d/secret", b"evil"))
    assert ground.outside() == before
    assert (ground.into / "f").read_bytes() == b"new"
    assert not (ground.into / "f").is_symlink()


@pytest.mark.attack(ARCHIVES)
def test_unpack_replaces_a_hard_linked_file_and_leaves_its_other_name(ground: Ground) -> None:
    ground.into.mkdir()
    os.link(ground.base / "outside" / "secret", ground.into / "ok")
    tally.tried()
    copies.unpack(iter([folder().bytes()]), ground.into)
    assert (ground.into / "ok").read_bytes() == b"ok"
    assert (ground.base / "outside" / "secret").read_text() == "secret"


@pytest.mark.attack(ARCHIVES)
def test_unpack_leaves_out_devices_pipes_and_what_it_does_not_know(ground: Ground) -> None:
    archive = folder()
    kinds = {"char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE, "odd": b"Z"}
    for name, kind in kinds.items():
        archive.add(f"top/{name}", kind=kind)
    copied = ground.unpack(archive.add("top/last", b"last"))
    assert copied.skipped == tuple(f"target/{name}" for name in kinds)
    assert ground.inside() == {"ok": b"ok", "last": b"last"}


@pytest.mark.attack(ARCHIVES)
def test_unpack_drops_setuid_setgid_and_sticky_bits(ground: Ground) -> None:
    archive = Tar().add("top", kind=tarfile.DIRTYPE, mode=0o7755).add("top/s", b"s", mode=0o6755)
    ground.unpack(archive.add("top/d", kind=tarfile.DIRTYPE, mode=0o7700))
    assert stat.S_IMODE((ground.into / "s").stat().st_mode) == 0o755
    assert stat.S_IMODE((ground.into / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE(ground.into.stat().st_mode) == 0o755


@pytest.mark.attack(ARCHIVES)
def test_unpack_takes_the_last_of_entries_with_the_same_name(ground: Ground) -> None:
    ground.unpack(folder().add("top/ok", b"second").add("top/ok", kind=tarfile.SYMTYPE, link="z").add("top/ok", b"4th"))
    assert ground.inside() == {"ok": b"4th"}


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_unpack_puts_nothing_in_the_place_of_a_folder(ground: Ground, kind: bytes) -> None:
    archive = folder().add("top/d/keep", b"keep")
    with pytest.raises(errors.Conflict, match="cannot be written"):
        ground.unpack(archive.add("top/d", kind=kind, link="top/ok" if kind == tarfile.LNKTYPE else "ok"))
    assert ground.inside() == {"ok": b"ok", "d": None, "d/keep": b"keep"}


@pytest.mark.attack(ARCHIVES)
def test_unpack_puts_no_folder_in_the_place_of_a_file(ground: Ground) -> None:
    with pytest.raises(errors.Conflict, match="is no folder"):
        ground.unpack(folder().add("top/ok/x", b"x"))


def test_unpack_accepts_names_with_every_other_byte(ground: Ground) -> None:
    names = [
        "new\nline",
        "ta\tb",
        "ü",
        "\udcff\udcfe",
        " blank ",
        "\\",
        "-rf",
        "~",
        "a:b",
        "...",
        "con\x01trol",
        "é" * 120,
    ]
    archive = folder()
    for name in names:
        archive.add(f"top/{name}", name.encode("utf-8", "surrogateescape"))
    ground.unpack(archive)
    assert ground.inside() == {"ok": b"ok"} | {name: name.encode("utf-8", "surrogateescape") for name in names}


@pytest.mark.attack(ARCHIVES)
def test_unpack_refuses_a_name_with_nul(ground: Ground) -> None:
    with pytest.raises(errors.Refused):
        ground.unpack(folder().add("top/x", b"x", pax={"path": "top/a\0b"}))


@pytest.mark.attack(ARCHIVES)
def test_unpack_names_what_it_left_out_in_printable_characters(ground: Ground) -> None:
    copied = ground.unpack(folder().add("top/\udcff\n\033[31m", kind=tarfile.FIFOTYPE))
    assert copied.skipped == ("target/\\xff\\n\\x1b[31m",)


@pytest.mark.attack(ARCHIVES)
def test_unpack_names_a_bounded_number_of_what_it_left_out(ground: Ground) -> None:
    archive = folder()
    for number in range(1_000):
        archive.add(f"top/{number}{'x' * 3000}", kind=tarfile.FIFOTYPE)
    copied = ground.unpack(archive)
    assert len(copied.skipped) == 201
    assert copied.skipped[-1] == "and more"
    assert all(len(name) < 300 for name in copied.skipped)


@pytest.mark.attack(ARCHIVES)
def test_unpack_says_which_name_is_too_long_for_this_host(ground: Ground) -> None:
    with pytest.raises(errors.Conflict, match="File name too long"):
        ground.unpack(folder().add("top/" + "x" * 300 + "/y", b"y"))


@pytest.mark.attack(ARCHIVES)
def test_unpack_stops_at_too_many_entries(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_MOST_ENTRIES", 100)
    archive = folder()
    for number in range(200):
        archive.add(f"top/{number}")
    with pytest.raises(errors.Refused, match="more than 100 entries"):
        ground.unpack(archive)


@pytest.mark.attack(ARCHIVES)
def test_unpack_of_many_entries_does_not_remember_them(tmp_path: Path) -> None:
    # As Python's objects, so many headers would be more than 50 MB.
    script = """
import resource, sys, tarfile
from pathlib import Path
from codomyrmex_containerization.core import copies
def pieces():
    info = tarfile.TarInfo("top"); info.type = tarfile.DIRTYPE
    yield info.tobuf()
    info = tarfile.TarInfo("top/pipe"); info.type = tarfile.FIFOTYPE
    block = info.tobuf() * 1000
    for _ in range(50): yield block
    yield bytes(1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
copies.unpack(pieces(), Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    tally.tried()
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "into")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 20 * MEBIBYTE


def truncated(archive: bytes) -> Iterator[bytes]:
    yield from (archive[:cut] for cut in (0, 100, BLOCK, 700, 3 * BLOCK, len(archive) - 2 * BLOCK, len(archive) - 5000))


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("number", range(7))
def test_unpack_of_an_archive_that_breaks_off_is_an_error_and_leaves_no_half_file(ground: Ground, number: int) -> None:
    whole = folder().add("top/big", random.Random(1).randbytes(20_000)).bytes()
    with pytest.raises(errors.EngineUnavailable, match="broke off"):
        ground.unpack(list(truncated(whole))[number])
    assert set(ground.inside()) <= {"ok", "big"}
    assert ground.inside().get("big") in (None, random.Random(1).randbytes(20_000))


@pytest.mark.attack(ARCHIVES)
def test_unpack_of_an_archive_damaged_in_the_middle_is_an_error_not_its_end(ground: Ground) -> None:
    data = bytearray(folder().add("top/lost", b"lost").add("top/last", b"last").bytes())
    at = data.index(b"top/lost")
    data[at + 150] ^= 1
    with pytest.raises(errors.EngineUnavailable, match="damaged"):
        ground.unpack(bytes(data))


LYING_SIZES = {"huge": 2**40, "beyond": 60_000, "negative": -1}


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("size", LYING_SIZES.values(), ids=LYING_SIZES)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_unpack_does_not_believe_a_size(ground: Ground, size: int, kind: bytes) -> None:
    with pytest.raises(errors.EngineUnavailable):
        ground.unpack(folder().add("top/liar", b"x" * 1000, size=size, kind=kind))
    assert ground.inside() == {"ok": b"ok"}


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("size", ["-1", "99999999999999", "x", "1e3", ""])
def test_unpack_does_not_believe_a_size_in_an_extended_header(ground: Ground, size: str) -> None:
    archive = folder().add("top/liar", b"x" * 1000, pax={"size": size})
    before = ground.outside()
    with pytest.raises(errors.EngineUnavailable):
        ground.unpack(archive)
    assert set(ground.inside()) <= {"ok", "liar"}
    assert ground.outside() == before


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("mtime", ["nan", "inf", "-1e300", "1e300", "-5", "253402300800.5"])
def test_unpack_survives_impossible_times(ground: Ground, mtime: str) -> None:
    ground.unpack(folder().add("top/when", b"when", pax={"mtime": mtime}))
    assert ground.inside()["when"] == b"when"


SPARSE = {
    "1.0": {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "top/s",
        "GNU.sparse.realsize": str(2**50),
    },
    "0.1": {"GNU.sparse.map": f"0,1,{2**50},1", "GNU.sparse.size": str(2**50), "GNU.sparse.name": "../../x"},
    "0.0": {
        "GNU.sparse.size": str(2**50),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.offset": "0",
        "GNU.sparse.numbytes": "9",
    },
}


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize("pax", SPARSE.values(), ids=SPARSE)
def test_unpack_does_not_expand_sparse_files(ground: Ground, pax: dict[str, str]) -> None:
    before = ground.outside()
    try:
        copied = ground.unpack(folder().add("top/sparse", b"9\n" * 300, pax=pax))
        assert len(copied.skipped) == 1
    except (errors.EngineUnavailable, errors.Refused):
        pass
    assert ground.inside() == {"ok": b"ok"}
    assert ground.outside() == before


def test_unpack_writes_long_runs_of_zeros_as_holes(ground: Ground) -> None:
    content = b"begin" + bytes(8 * MEBIBYTE) + b"end" + bytes(4 * MEBIBYTE)
    ground.unpack(folder().add("top/holes", content))
    assert (ground.into / "holes").read_bytes() == content
    assert (ground.into / "holes").stat().st_blocks * 512 < 5 * MEBIBYTE


@pytest.mark.attack(ARCHIVES)
@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 1024, b"no archive at all" * 100, gzip.compress(folder().bytes()), b"\xff" * 2000],
    ids=["nothing", "zeros", "text", "gzip", "ones"],
)
def test_unpack_of_what_is_no_archive_writes_nothing(ground: Ground, data: bytes) -> None:
    before = ground.outside()
    try:
        copied = ground.unpack(data)
        assert (data, copied.files) == (bytes(1024), 0)
    except errors.EngineUnavailable:
        pass
    assert not ground.into.exists()
    assert ground.outside() == before


@pytest.mark.attack(ARCHIVES)
def test_unpack_survives_a_chain_of_extended_headers(ground: Ground) -> None:
    archive = folder()
    record = b"18 comment=nothing\n"
    for _ in range(3_000):
        archive.add("x", record, kind=tarfile.XHDTYPE)
    with pytest.raises(errors.EngineUnavailable):
        ground.unpack(archive.add("top/x", b"x"))


@pytest.mark.attack(ARCHIVES)
def test_unpack_raises_what_the_source_raises_and_leaves_no_half_file(ground: Ground) -> None:
    def pieces() -> Iterator[bytes]:
        data = folder().add("top/big", random.Random(1).randbytes(4 * MEBIBYTE)).bytes()
        yield data[: 3 * MEBIBYTE]
        raise ConnectionResetError("gone")

    tally.tried()
    with pytest.raises(ConnectionResetError, match="gone"):
        copies.unpack(pieces(), ground.into)
    assert set(ground.inside()) <= {"ok"}


@pytest.mark.attack(ARCHIVES)
def test_unpack_into_a_folder_that_became_a_link_is_a_conflict(ground: Ground) -> None:
    shutil.move(ground.base / "work", ground.base / "moved")
    (ground.base / "work").symlink_to("outside")
    before = ground.outside()
    with pytest.raises(errors.Conflict):
        ground.unpack(folder())
    assert ground.outside() == before


@pytest.mark.attack(ARCHIVES)
def test_unpack_writes_nothing_through_links_that_are_put_in_while_it_runs(ground: Ground) -> None:
    """Before each piece, every folder of the target is moved away and a link to the outside is put in its place."""
    names = [f"top/d{number}/e/f{other}" for number in range(20) for other in range(5)]
    archive = folder()
    for name in names:
        archive.add(name, random.Random(name).randbytes(100_000))
    data = archive.bytes()
    before = ground.outside()["outside/secret"]

    def pieces() -> Iterator[bytes]:
        for number, at in enumerate(range(0, len(data), 50_000)):
            for path in (ground.into, *ground.into.glob("d*")) if ground.into.is_dir() else ():
                if path.is_dir() and not path.is_symlink() and number % 3 == 0:
                    path.rename(path.with_name(f"{path.name}-moved-{number}"))
                    path.symlink_to(ground.base / "outside")
            yield data[at : at + 50_000]

    tally.tried()
    with pytest.raises((errors.Refused, errors.Conflict)):
        copies.unpack(pieces(), ground.into)
    assert sorted(os.listdir(ground.base / "outside")) == ["secret"]
    assert ground.outside()["outside/secret"] == before


NAMES = st.lists(
    st.sampled_from(["top", "a", "b", "..", ".", "", "/", "link", "ü", "\n", "x" * 120]), min_size=1, max_size=5
).map("/".join)
ENTRIES = st.tuples(
    NAMES,
    st.binary(max_size=600),
    st.sampled_from(
        [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"S", b"L", b"x"]
    ),
    NAMES,
    st.integers(0, 0o7777),
)


@pytest.mark.attack(ARCHIVES)
@hypothesis.settings(max_examples=300)
@hypothesis.given(
    entries=st.lists(ENTRIES, max_size=12),
    damage=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
)
def test_unpack_of_any_archive_stays_inside_and_raises_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, bytes, bytes, str, int]],
    damage: list[tuple[int, int]],
) -> None:
    ground = make_ground(tmp_path_factory.mktemp("any") / "ground")
    before = ground.outside()
    archive = Tar().add("top", kind=tarfile.DIRTYPE, mode=0o755)
    for name, content, kind, link, mode in entries:
        archive.add(name, content if kind in (b"0", b"L", b"x", b"S") else b"", kind=kind, link=link, mode=mode)
    data = bytearray(archive.bytes())
    for at, value in damage:
        data[at % len(data)] = value
    with suppress(errors.Refused, errors.Conflict, errors.EngineUnavailable):
        ground.unpack(bytes(data))
    assert ground.outside() == before
    assert ground.links_stay_inside()
    shutil.rmtree(ground.base)


# -------------------------------------------------------------------------------------------- into and out of a real one


@dataclass(frozen=True, slots=True)
class Place:
    """A container that sleeps, and a folder of this host."""

    name: str
    docker: DockerCommandLine
    host: Path

    def sh(self, script: str) -> str:
        return self.docker(["exec", self.name, "sh", "-c", script]).stdout


@pytest.fixture(scope="module")
def _container(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[str]:
    name = f"cxc-copy-{uuid.uuid4().hex[:8]}"
    docker_cli(["run", "--detach", "--name", name, "--label", session_label, busybox_image, "sleep", "3600"])
    yield name
    docker_cli(["rm", "--force", name])


@pytest.fixture
def place(_container: str, docker_cli: DockerCommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    host = tmp_path / "host"
    host.mkdir()
    monkeypatch.chdir(host)
    made = Place(_container, docker_cli, host)
    made.sh("rm -rf /d /e; mkdir /d /e")
    return made


async def copy_in(place: Place, source: Path, target: str, *, contents: bool = False) -> copies.Copied:
    async with harness.opened() as house:
        state = await house.engine.inspect_container(place.name)
        return await copies.copy_in(house.engine, state.id, source, target, contents=contents)


async def copy_out(place: Place, source: str, into: Path) -> copies.Copied:
    async with harness.opened() as house:
        state = await house.engine.inspect_container(place.name)
        return await copies.copy_out(house.engine, state.id, source, into)


def make_tree(top: Path) -> Path:
    """A folder with one of everything that may be copied."""
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (top / "run.sh").chmod(0o755)
    (top / "sub" / "private").write_bytes(bytes(range(256)) * 100)
    (top / "sub" / "private").chmod(0o600)
    (top / "ünï\ncode").write_text("ü")
    Path(os.fsdecode(os.fsencode(top) + b"/not-\xff-utf8")).write_text("bytes")
    (top / "link").symlink_to("sub/private")
    (top / "sub" / "up").symlink_to("../run.sh")
    (top / "x" / ("y" * 200)).mkdir(parents=True)
    (top / "x" / ("y" * 200) / ("z" * 200)).write_text("deep")
    for path in (top / "run.sh", top / "sub" / "private"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return top


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        name, status = str(path.relative_to(top)), path.lstat()
        if path.is_symlink():
            found[name] = (os.readlink(path),)
        elif path.is_dir():
            found[name] = ("folder",)
        else:
            found[name] = (status.st_mode, int(status.st_mtime), path.read_bytes())
    return found


async def test_copy_of_a_folder_in_and_out_again_keeps_everything(place: Place) -> None:
    source = make_tree(place.host / "source")
    went = await copy_in(place, source, "/d/there")
    assert place.sh("/d/there/run.sh; stat -c '%a %u %g %Y' /d/there/sub/private; readlink /d/there/sub/up") == (
        "ran\n600 0 0 1600000000\n../run.sh\n"
    )
    came = await copy_out(place, "/d/there", place.host / "back")
    assert listing(place.host / "back") == listing(source)
    assert (came.files, came.skipped) == (went.files, ())
    assert (
        came.bytes
        == went.bytes
        == sum(one.stat().st_size for one in source.rglob("*") if one.is_file() and not one.is_symlink())
    )


async def test_copy_of_a_file_in_gives_it_the_targets_name_or_puts_it_into_the_folder(place: Place) -> None:
    source = place.host / "one"
    source.write_text("1")
    assert (await copy_in(place, source, "/d/two")).target == "/d/two"
    assert (await copy_in(place, source, "/d")).target == "/d/one"
    assert (await copy_in(place, source, "/d/")).target == "/d/one"
    assert (await copy_in(place, source, "/../d/./x/../three")).target == "/d/three"
    assert place.sh("cat /d/one /d/two /d/three; ls /d | wc -l") == "1113\n"


async def test_copy_of_a_folder_in_merges_with_the_one_that_is_there(place: Place) -> None:
    source = place.host / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "new").write_text("new")
    place.sh("mkdir -p /d/source/sub; echo old > /d/source/sub/old; chmod 711 /d/source; chown 5:6 /d/source")
    assert (await copy_in(place, source, "/d")).target == "/d/source"
    assert place.sh("cd /d/source; cat sub/new sub/old; stat -c '%a %u %g' .") == "newold\n711 5 6\n"
    await copy_in(place, source, "/e", contents=True)
    assert place.sh("cat /e/sub/new") == "new"


async def test_copy_in_follows_links_inside_the_container(place: Place) -> None:
    (place.host / "one").write_text("1")
    place.sh("ln -s /d /e/folder; echo old > /d/f; ln -s ../d/f /e/file; ln -s /d/none /e/dangling; ln -s loop /e/loop")
    assert (await copy_in(place, place.host / "one", "/e/folder")).target == "/d/one"
    assert (await copy_in(place, place.host / "one", "/e/file")).target == "/d/f"
    assert (await copy_in(place, place.host / "one", "/e/dangling")).target == "/d/none"
    assert place.sh("cat /d/one /d/f /d/none; readlink /e/file") == "111../d/f\n"
    with pytest.raises(errors.InvalidArgument, match="cannot be looked at"):
        await copy_in(place, place.host / "one", "/e/loop")


async def test_copy_in_says_what_stands_in_the_way(place: Place) -> None:
    (place.host / "one").write_text("1")
    (place.host / "folder").mkdir()
    os.mkfifo(place.host / "pipe")
    place.sh("mkdir /d/one; echo f > /d/f; mkdir -p /e/folder/x")
    cases: list[tuple[str, str, type[errors.ContainerizationError], str]] = [
        ("one", "/d", errors.Conflict, "is a folder already"),
        ("folder", "/d/f", errors.Conflict, "is a file already"),
        ("one", "/d/f/", errors.Conflict, "is no folder"),
        ("one", "/d/none/", errors.NotFound, "/d/none"),
        ("one", "/d/none/x", errors.NotFound, "/d/none"),
        ("one", "/d/f/x", errors.ContainerizationError, "/d/f"),
        ("pipe", "/d/p", errors.InvalidArgument, "neither a file nor a folder"),
    ]
    for source, target, kind, said in cases:
        with pytest.raises(kind, match=said):
            await copy_in(place, place.host / source, target)
    (place.host / "folder" / "x").write_text("a file, and a folder there")
    with pytest.raises(errors.Conflict, match="overwrite"):
        await copy_in(place, place.host / "folder", "/e")


async def test_copy_in_does_not_follow_a_link_that_was_put_in_after_the_path_was_judged(place: Place) -> None:
    (place.host / "real").mkdir()
    (place.host / "real" / "f").write_text("secret")
    (place.host / "link").symlink_to("real")
    (place.host / "file").symlink_to("real/f")
    for source in ("link", "link/f", "file"):
        with pytest.raises(errors.Conflict):
            await copy_in(place, place.host / source, "/d/x")
    assert place.sh("ls /d") == ""


async def test_copy_out_of_a_file_and_of_what_a_link_leads_to(place: Place) -> None:
    place.sh(
        "cd /d; printf 1 > one; chmod 750 one; ln -s one link; ln -s /d /e/folder; ln -s /none dangling; ln -s loop loop"
    )
    for source in ("/d/one", "d/one", "/d/../d/./one", "/../../d/one", "/d/link", "/e/folder/one", "/d/one/"):
        copied = await copy_out(place, source, place.host / "got")
        assert (copied.files, copied.bytes) == (1, 1)
        assert stat.S_IMODE((place.host / "got").stat().st_mode) == 0o750
        (place.host / "got").unlink()
    await copy_out(place, "/e/folder", place.host / "folder")
    assert (place.host / "folder" / "one").read_text() == "1"
    for source in ("/d/none", "/d/dangling", "/d/one/x"):
        with pytest.raises((errors.NotFound, errors.InvalidArgument)):
            await copy_out(place, source, place.host / "none")
    with pytest.raises(errors.InvalidArgument):
        await copy_out(place, "/d/loop", place.host / "none")
    assert not (place.host / "none").exists()


@pytest.mark.parametrize("source", ["/", "", "/d/..", "/."])
async def test_copy_out_of_the_whole_file_system_is_refused(place: Place, source: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="whole file system"):
        await copy_out(place, source, place.host / "all")


async def test_copy_out_leaves_out_what_leads_out_and_names_it(place: Place) -> None:
    place.sh(
        "cd /d; echo 1 > one; mkdir sub; ln -s /etc/passwd abs; ln -s ../../etc up; ln -s ../one sub/in; mkfifo pipe; mknod null c 1 3"
    )
    copied = await copy_out(place, "/d", place.host / "got")
    assert sorted(copied.skipped) == ["got/abs", "got/null", "got/pipe", "got/up"]
    assert sorted(os.listdir(place.host / "got")) == ["one", "sub"]
    assert os.readlink(place.host / "got" / "sub" / "in") == "../one"


async def test_copy_out_keeps_hard_links_together(place: Place) -> None:
    place.sh("cd /d; echo 1 > a; ln a b; mkdir s; ln a s/c")
    await copy_out(place, "/d", place.host / "got")
    assert {(place.host / "got" / name).stat().st_ino for name in ("a", "b", "s/c")} == {
        (place.host / "got" / "a").stat().st_ino
    }


async def test_copy_out_gives_no_one_more_than_the_container_did(place: Place) -> None:
    place.sh("mkdir -p /d/shut; echo 1 > /d/shut/x; chmod 700 /d/shut; chmod 555 /d; chmod 4755 /d/shut/x")
    await copy_out(place, "/d", place.host / "got")
    assert stat.S_IMODE((place.host / "got" / "shut").stat().st_mode) == 0o700
    assert stat.S_IMODE((place.host / "got" / "shut" / "x").stat().st_mode) == 0o755


async def test_copy_from_and_to_a_container_that_does_not_run(
    place: Place, docker_cli: DockerCommandLine, busybox_image: str, session_label: str
) -> None:
    name = f"cxc-copy-{uuid.uuid4().hex[:8]}"
    docker_cli(["create", "--name", name, "--label", session_label, busybox_image, "true"])
    try:
        (place.host / "one").write_text("1")
        stopped = Place(name, docker_cli, place.host)
        await copy_in(stopped, place.host / "one", "/tmp/two")
        await copy_out(stopped, "/tmp/two", place.host / "back")
        assert (place.host / "back").read_text() == "1"
    finally:
        docker_cli(["rm", name])


async def test_copy_into_a_read_only_place_is_a_conflict_whatever_its_size(
    place: Place, docker_cli: DockerCommandLine, busybox_image: str, session_label: str
) -> None:
    name = f"cxc-copy-{uuid.uuid4().hex[:8]}"
    options = ["--detach", "--read-only", "--volume", f"{place.host}:/shut:ro", "--mount", "type=volume,target=/open"]
    docker_cli(["run", "--name", name, *options, "--label", session_label, busybox_image, "sleep", "3600"])
    try:
        shut = Place(name, docker_cli, place.host)
        (place.host / "small").write_text("1")
        (place.host / "large").write_bytes(bytes(16 * MEBIBYTE))
        (place.host / "folder").mkdir()
        (place.host / "folder" / "large").write_bytes(bytes(16 * MEBIBYTE))
        for source in ("small", "large", "folder"):
            for target in ("/tmp/x", "/shut/x"):
                with pytest.raises(errors.Conflict, match="read-only"):
                    await copy_in(shut, place.host / source, target)
        await copy_in(shut, place.host / "large", "/open/x")
        assert docker_cli(["exec", name, "stat", "-c", "%s", "/open/x"]).stdout == f"{16 * MEBIBYTE}\n"
    finally:
        docker_cli(["rm", "--force", "--volumes", name])


async def test_copy_out_that_fails_names_what_stays_and_leaves_no_half_file(place: Place) -> None:
    place.sh("cd /d; echo 1 > a; echo 1 > b; mkdir c; echo 1 > c/x")
    (place.host / "got").mkdir()
    (place.host / "got" / "c").write_text("in the way")
    with pytest.raises(
        errors.Conflict, match=r"c is there already.*2 files had been copied to .*got before; they stay"
    ):
        await copy_out(place, "/d", place.host / "got")
    assert sorted(os.listdir(place.host / "got")) == ["a", "b", "c"]


async def test_copy_of_200_mb_streams_and_needs_little_memory(place: Place) -> None:
    with (place.host / "big").open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(MEBIBYTE))
    async with harness.opened() as house:
        state = await house.engine.inspect_container(place.name)
        before = _resident_bytes()
        peak = before
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal peak
                while True:
                    peak = max(peak, _resident_bytes())
                    await anyio.sleep(0.01)

            tasks.start_soon(watch)
            await copies.copy_in(house.engine, state.id, place.host / "big", "/d/big")
            await copies.copy_out(house.engine, state.id, "/d/big", place.host / "back")
            tasks.cancel_scope.cancel()
    assert filecmp.cmp(place.host / "big", place.host / "back", shallow=False)
    assert peak - before < 40 * MEBIBYTE
    place.sh("rm /d/big")


async def test_copy_out_that_is_cancelled_stops_and_leaves_no_half_file(place: Place) -> None:
    place.sh("yes 0123456789abcdef | head -c 50000000 > /d/big")
    begun, go_on = threading.Event(), threading.Event()
    ended: list[object] = []

    def sink(pieces: Iterator[bytes]) -> None:
        def halting() -> Iterator[bytes]:
            read = 0
            for piece in pieces:
                read += len(piece)
                if read > 8 * MEBIBYTE and not begun.is_set():
                    begun.set()
                    go_on.wait()
                yield piece

        try:
            ended.append(copies.unpack(halting(), place.host / "got"))
        except Exception as error:  # noqa: BLE001  whatever it is is looked at below
            ended.append(error)

    async with harness.opened() as house:
        state = await house.engine.inspect_container(place.name)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.engine.read_archive, state.id, "/d", sink)
            try:
                await eventually(begun.is_set, "it has begun")
                tasks.cancel_scope.cancel()
            finally:
                go_on.set()
        await eventually(lambda: bool(ended), "it has stopped")
    assert isinstance(ended[0], Exception)
    assert os.listdir(place.host / "got") == []
    place.sh("rm /d/big")


async def test_copy_in_that_is_cancelled_stops_reading_and_lets_go_of_the_container(place: Place) -> None:
    sent = 0
    ended: list[bool] = []

    def endless() -> Iterator[bytes]:
        nonlocal sent
        info = tarfile.TarInfo("endless")
        info.size = 2**40
        try:
            yield info.tobuf()
            while True:
                sent += 1
                yield bytes(MEBIBYTE)
        finally:
            ended.append(True)

    async with harness.opened() as house:
        state = await house.engine.inspect_container(place.name)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.engine.write_archive, state.id, "/d", endless)
            await eventually(lambda: sent > 20, "it has begun")
            tasks.cancel_scope.cancel()
        await eventually(lambda: bool(ended), "nothing more is read")
    assert place.sh("rm /d/endless; echo well") == "well\n"


async def test_copy_in_of_a_file_that_becomes_shorter_is_a_conflict(place: Place) -> None:
    file = place.host / "shrinking"
    file.write_bytes(bytes(3 * MEBIBYTE))
    held = os.open(file, os.O_RDONLY)
    try:
        pieces = copies._file_tar(held, "shrinking")
        read = io.BytesIO()
        read.write(next(pieces))
        os.truncate(file, MEBIBYTE)
        with pytest.raises(errors.Conflict, match="became shorter"):
            read.writelines(pieces)
    finally:
        os.close(held)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
