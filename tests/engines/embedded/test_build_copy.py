"""What do COPY and ADD of the embedded engine's builder bring into an image, and what can no archive, link or context make them do?"""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from codomyrmex_containerization.models.image import BuildSpec
from tests.engines.embedded import building
from tests.engines.embedded.building import BASE, Bench, Entry, packed

FROM = f"FROM {BASE}\n"
FOLDER, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
TREE = (
    Entry("a.txt", b"a"),
    Entry("b.txt", b"b", mode=0o755),
    Entry(".hidden", b"h"),
    Entry("sub", kind=FOLDER, mode=0o750),
    Entry("sub/deep", kind=FOLDER, mode=0o755),
    Entry("sub/deep/ä file", b"deep"),
    Entry("sub/link", kind=LINK, target="deep/ä file"),
    Entry("way", kind=LINK, target="sub/deep"),
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return building.bench(tmp_path)


def listed(bench: Bench, text: str, *entries: Entry, below: str = "to") -> dict[str, str]:
    """Build and return what is below a folder: each path with its mode and owner."""
    image = bench.made(text, *entries)
    with bench.root(image) as root:
        found = {}
        for path in (root / below).rglob("*"):
            status = path.lstat()
            mark = f"{stat.S_IMODE(status.st_mode):o} {status.st_uid}:{status.st_gid}"
            found[str(path.relative_to(root / below))] = f"-> {os.readlink(path)}" if path.is_symlink() else mark
        return found


# ----------------------------------------------------------------------------------------------------------------- COPY


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("COPY a.txt /to/", {"a.txt"}),
        ("COPY a.txt /to/other", {"other"}),
        ("COPY *.txt /to/", {"a.txt", "b.txt"}),
        ("COPY ?.txt /to", {"a.txt", "b.txt"}),
        ("COPY [^b].txt /to/", {"a.txt"}),
        ("COPY .h* /to/", {".hidden"}),
        ("COPY a.txt sub /to/", {"a.txt", "deep", "deep/ä file", "link"}),
        ("COPY sub /to", {"deep", "deep/ä file", "link"}),
        ("COPY sub/*/* /to/", {"ä file"}),
        ("COPY sub/deep /to/x/y", {"x", "x/y", "x/y/ä file"}),
        ("COPY way /to", {"ä file"}),
        ("COPY sub/link /to/", {"link"}),
        ("COPY ./a.txt ../b.txt /to/", {"a.txt", "b.txt"}),
        ('COPY ["sub/deep/ä file", "/to/"]', {"ä file"}),
        ("WORKDIR /to\nCOPY a.txt .", {"a.txt"}),
        ("WORKDIR /to\nCOPY a.txt b", {"b"}),
        ("WORKDIR /to\nCOPY a.txt ../to/c/", {"c", "c/a.txt"}),
        ("ENV N=a D=/to\nCOPY $N.txt ${D}/$N", {"a"}),
        ("ADD a.txt /to/", {"a.txt"}),
    ],
)
def test_copy_puts_its_sources_where_docker_does(bench: Bench, line: str, names: set[str]) -> None:
    assert set(listed(bench, f"{FROM}{line}\n", *TREE)) == names


def test_copy_keeps_modes_links_and_gives_all_to_root(bench: Bench) -> None:
    entries = [Entry(one.name, one.content, one.kind, one.target, one.mode, uid=7, gid=8) for one in TREE]
    assert listed(bench, f"{FROM}COPY . /to/\n", *entries) == {
        ".hidden": "644 0:0", "Dockerfile": "644 0:0", "a.txt": "644 0:0", "b.txt": "755 0:0", "sub": "750 0:0",
        "sub/deep": "755 0:0", "sub/deep/ä file": "644 0:0", "sub/link": "-> deep/ä file", "way": "-> sub/deep",
    }  # fmt: skip


def test_copy_gives_the_owner_and_mode_that_are_asked_for(bench: Bench) -> None:
    text = f"{FROM}COPY --chown=user --chmod=0751 sub /to/x/\nCOPY --chown=user:staff a.txt /to/y\nCOPY --chown=7 a.txt /to/z\n"
    found = listed(bench, text, *TREE)
    assert found["x"] == found["x/deep"] == found["x/deep/ä file"] == "751 1000:1001"
    assert (found["y"], found["z"]) == ("644 1000:50", "644 7:7")


def test_copy_from_a_stage_keeps_owners_hard_links_and_attributes(bench: Bench) -> None:
    text = (
        f"FROM {BASE} AS one\nCOPY --chown=5:6 a.txt /x/one\nRUN ln /x/one /x/two && ln -s none /x/three\n"
        f"{FROM}COPY --from=one --link /x /to\n"
    )
    image = bench.made(text, *TREE)
    with bench.root(image) as root:
        one, two = (root / "to/one").stat(), (root / "to/two").stat()
        assert (one.st_uid, one.st_gid, one.st_nlink) == (5, 6, 2)
        assert os.path.samestat(one, two)
        assert os.readlink(root / "to/three") == "none"


def test_folders_that_are_there_already_keep_what_they_have(bench: Bench) -> None:
    text = f"{FROM}COPY sub /to\nRUN stat -c '%a' / /to > /seen\nCOPY other /to/\nCOPY top /\n"
    entries = (*TREE, Entry("other/deep/new", b""), Entry("top/new", b""), Entry("top", kind=FOLDER, mode=0o700))
    image = bench.made(text, *entries)
    with bench.root(image) as root:
        assert sorted(path.name for path in (root / "to/deep").iterdir()) == ["new", "ä file"]
        assert stat.S_IMODE((root / "to").stat().st_mode) == 0o750
        assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_file_takes_the_place_of_a_file_but_not_of_a_folder(bench: Bench) -> None:
    image = bench.made(f"{FROM}COPY a.txt /x\nCOPY b.txt /x\n", *TREE)
    assert bench.read(image, "/x") == b"b"
    assert "is a folder" in bench.failure(f"{FROM}RUN mkdir -p /x/a.txt\nCOPY a.txt /x/\n", *TREE).text
    assert "is a file" in bench.failure(f"{FROM}COPY sub /etc/passwd\n", *TREE).text
    assert "needs a folder" in bench.failure(f"{FROM}COPY a.txt b.txt /x\n", *TREE).text


def test_here_documents_become_files(bench: Bench) -> None:
    text = (
        f"{FROM}ENV V=value\n"
        "COPY --chmod=600 <<ONE <<-'TWO' /to/\n$V \"quoted\" \\$V \\n\nONE\n\tas $V is\n\tTWO\n"
        "COPY <<X /to/named\nx\nX\n"
    )
    image = bench.made(text)
    assert bench.read(image, "/to/ONE") == b'value "quoted" $V \\n\n'
    assert bench.read(image, "/to/TWO") == b"as $V is\n"
    assert bench.read(image, "/to/named") == b"x\n"
    with bench.root(image) as root:
        assert stat.S_IMODE((root / "to/ONE").stat().st_mode) == 0o600


def test_times_of_files_are_kept(bench: Bench) -> None:
    image = bench.made(f"{FROM}COPY a.txt /a\n", *TREE)
    with bench.root(image) as root:
        assert (root / "a").stat().st_mtime == 0


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ("", {".dockerignore", "Dockerfile", "a.txt"}),
        ("Dockerfile\n", {".dockerignore", "a.txt"}),
        ("# no\n*\n!a.txt\n", {"a.txt"}),
        ("**/Docker*\n.docker*\n", {"a.txt"}),
        ("*\n!Dockerfile\n!a.*\n", {"Dockerfile", "a.txt"}),
    ],
)
def test_dockerfile_and_ignore_file_are_not_copied_when_they_are_ignored(
    bench: Bench, rules: str, names: set[str]
) -> None:
    entries = (Entry("a.txt", b"a"), Entry(".dockerignore", rules.encode()))
    assert set(listed(bench, f"{FROM}COPY . /to/\n", *entries)) == names


def test_dockerfile_is_read_from_the_context_when_it_was_not_given_as_text(bench: Bench) -> None:
    data = packed(Entry("deep/Other", f"{FROM}ENV A=1\n".encode()))
    spec = BuildSpec(("localhost/made:1",), None, None, "")
    list(bench.builder().events(spec, context=lambda: iter([data]), dockerfile_name="deep/Other"))
    assert "A=1" in bench.store.image("localhost/made:1").config.env


# ------------------------------------------------------------------------------------------------------------------ ADD


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_add_unpacks_archives_with_their_owners(bench: Bench, mode: str) -> None:
    inner = packed(
        Entry("./d", kind=FOLDER, mode=0o711, uid=3, gid=4),
        Entry("./d/f", b"content", mode=0o4755, uid=1, gid=2),
        Entry("./d/l", kind=LINK, target="/etc/passwd"),
        Entry("./d/h", kind=HARD, target="./d/f"),
        Entry("null", kind=tarfile.CHRTYPE),
        Entry("pipe", kind=tarfile.FIFOTYPE, mode=0o600),
        mode=mode,
    )
    events = bench.build(f"{FROM}ADD x.data /to\n", Entry("x.data", inner))
    assert [event.text for event in events if event.kind == "warning"] == [
        "1 device files were left out: a container gets its own"
    ]
    assert listed(bench, f"{FROM}ADD x.data /to\n", Entry("x.data", inner)) == {
        "d": "711 3:4", "d/f": "4755 1:2", "d/l": "-> /etc/passwd", "d/h": "4755 1:2", "pipe": "600 0:0",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", bytes(20480), b"\x1f\x8bno gzip", b"plain text", b"\x28\xb5\x2f\xfd"])
def test_add_copies_what_is_no_archive(bench: Bench, content: bytes) -> None:
    events = bench.build(f"{FROM}ADD x.tar /to/\n", Entry("x.tar", content))
    if events[-1].kind == "error":  # zstd, which not every Python can look into
        assert "zstd" in events[-1].text
    else:
        assert bench.read(bench.store.image("localhost/made:1"), "/to/x.tar") == content


def test_add_follows_the_images_links_inside_of_it(bench: Bench) -> None:
    inner = packed(
        Entry("sbin", kind=FOLDER, mode=0o755), Entry("sbin/tool", b"t"), Entry("lib", kind=LINK, target="x")
    )
    text = f"{FROM}RUN mkdir /usr && ln -s /usr /sbin && ln -s usr /lib\nADD x.tar /\n"
    image = bench.made(text, Entry("x.tar", inner))
    with bench.root(image) as root:
        assert os.readlink(root / "sbin") == "/usr"
        assert (root / "usr/tool").read_bytes() == b"t"
        assert os.readlink(root / "lib") == "x"


# -------------------------------------------------------------------------------------------------------------- attacks


@pytest.mark.attack("files")
@pytest.mark.parametrize(
    "entries",
    [
        (Entry("../escaped", b"x"),),
        (Entry("a/../../escaped", b"x"),),
        (Entry("way", kind=LINK, target="/tmp"), Entry("way/escaped", b"x")),
        (Entry("way", kind=LINK, target=".."), Entry("way/escaped", b"x")),
        (Entry("hard", kind=HARD, target="/etc/passwd"),),
        (Entry("hard", kind=HARD, target="../../../../etc/passwd"),),
        (Entry("way", kind=LINK, target="/etc"), Entry("hard", kind=HARD, target="way/passwd")),
    ],
)
def test_hostile_context_is_refused(bench: Bench, entries: tuple[Entry, ...]) -> None:
    failure = bench.failure(f"{FROM}COPY . /to/\n", *entries)
    assert failure.text
    assert not Path("/tmp/escaped").exists()
    assert not list(bench.folder.rglob("escaped"))


@pytest.mark.attack("files")
@pytest.mark.parametrize("target", ["/etc/shadow", "../../../../../../../../etc/shadow", "/proc/self/root/etc/shadow"])
@pytest.mark.parametrize("instruction", ["COPY way /to/x", "RUN --mount=source=way,target=/m cat /m", "ADD way /to/"])
def test_link_of_the_context_leads_nowhere_outside(bench: Bench, target: str, instruction: str) -> None:
    failure = bench.failure(f"{FROM}{instruction}\n", Entry("way", kind=LINK, target=target))
    assert "no such file" in failure.text


@pytest.mark.attack("files")
def test_link_of_the_context_stays_inside_of_it(bench: Bench) -> None:
    entries = (Entry("etc/shadow", b"of the context"), Entry("way", kind=LINK, target="/../etc/shadow"))
    assert bench.read(bench.made(f"{FROM}COPY way /x\n", *entries), "/x") == b"of the context"


@pytest.mark.attack("files")
@pytest.mark.parametrize(
    "instruction", ["COPY a.txt /way/{name}", "COPY sub /way", "ADD x.tar /way", "WORKDIR /way/{name}"]
)
@pytest.mark.parametrize("up", ["", "../../../../../../../.."])
def test_link_of_the_image_leads_nowhere_outside(bench: Bench, instruction: str, up: str) -> None:
    outside = bench.folder / "outside"
    outside.mkdir()
    entries = (*TREE, Entry("x.tar", packed(Entry("inner", b"x"))))
    instruction = instruction.format(name="new")
    image = bench.made(f"{FROM}RUN ln -s {up}{outside} /way\n{instruction}\n", *entries)
    assert not list(outside.iterdir())
    with bench.root(image) as root:
        assert list((root / str(outside).lstrip("/")).iterdir())


@pytest.mark.attack("files")
@pytest.mark.parametrize("table", ["/etc/passwd", "/etc/group"])
def test_tables_of_users_are_read_inside_the_image(bench: Bench, table: str) -> None:
    text = f"{FROM}RUN rm {table} && ln -s /../../../../../..{table} {table}\nCOPY --chown=daemon:daemon a.txt /x\n"
    assert (
        "no matching entries" in bench.failure(text, *TREE).text or "symbolic links" in bench.failure(text, *TREE).text
    )


@pytest.mark.attack("files")
@pytest.mark.parametrize(
    "entries",
    [
        (Entry("../escaped", b"x"),),
        (Entry("hard", kind=HARD, target="../../etc/passwd"),),
        (Entry("hard", kind=HARD, target="none"),),
        (Entry("etc", b"a file in the place of a folder"),),
    ],
)
def test_hostile_archive_is_refused(bench: Bench, entries: tuple[Entry, ...]) -> None:
    failure = bench.failure(f"{FROM}ADD x.tar /\n", Entry("x.tar", packed(*entries)))
    assert failure.line == 2
    assert not list(bench.folder.rglob("escaped"))


@pytest.mark.attack("files")
def test_archive_cannot_write_through_its_own_link(bench: Bench) -> None:
    outside = bench.folder / "outside"
    outside.mkdir()
    inner = packed(Entry("way", kind=LINK, target=str(outside)), Entry("way/escaped", b"x"))
    bench.build(f"{FROM}ADD x.tar /to\n", Entry("x.tar", inner))
    assert not list(outside.iterdir())


@pytest.mark.attack("files")
def test_archive_that_ends_too_early_fails_the_step(bench: Bench) -> None:
    inner = packed(Entry("a", bytes(4096)), Entry("b", bytes(4096)))[:6000]
    assert "damaged" in bench.failure(f"{FROM}ADD x.tar /\n", Entry("x.tar", inner)).text


@pytest.mark.attack("resources")
@pytest.mark.parametrize("pattern", ["*a" * 60 + "b", "**" * 40 + "b", "?*" * 40 + "b"])
def test_pattern_made_to_be_slow_is_not(bench: Bench, pattern: str) -> None:
    assert "fits nothing" in bench.failure(f"{FROM}COPY {pattern} /to/\n", Entry("a" * 200, b"x")).text


@pytest.mark.attack("resources")
def test_folders_nested_without_end_fail_the_step(bench: Bench) -> None:
    deep = "/".join(["d"] * 1500)
    text = f"FROM {BASE} AS one\nRUN i=0; while test $i -lt 1200; do mkdir d && cd d || exit 1; i=$((i+1)); done\n"
    assert bench.failure(f"{FROM}COPY . /to/\n", Entry(f"{deep}/x", b"x")).line == 2
    assert "deeper than" in bench.failure(text).text
    assert not list(bench.scratch.glob("build-*"))
