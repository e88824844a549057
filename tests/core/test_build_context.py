"""Is what we send to a build what the docker command sends, and is it sent as a stream?"""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
from hypothesis import strategies

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import build_context
from codomyrmex_containerization.core.build_context import IgnoreRules
from tests.backends import DockerCommandLine

COPY_ALL = "FROM scratch\nCOPY . /ctx/\n"


class Entry(NamedTuple):
    """What is compared of one entry of a tar."""

    type: bytes
    mode: int
    mtime: float
    target: str
    content: bytes


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with what makes contexts hard: depth, links, odd names, empty folders, modes."""
    root = tmp_path / "context"
    files = (
        "Dockerfile", "README.md", "a.go", "b.txt", "foo", "foo.pyc", "docker/Dockerfile", "docker/x.txt", "src/a.go",
        "src/foo.pyc", "src/deep/er/b.txt", "src/deep/er/keep.txt", "src/deep/secret.key", "src/.hidden", ".env",
        ".git/config", ".git/objects/aa/bb", "node_modules/x/index.js", "src/node_modules/y.js", "with space/a b.txt",
        "ünï/ço dé.txt", "日本/語.txt", "[x]/1", "a{2}", "aa", "x#y", "#hash", "!bang", "build/out/keep/k1",
        "build/out/o1", "build/o2", "tail\\", "doc/one/two/three.md", "doc/three.md", "foo bar", "café",
    )  # fmt: skip
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n" * number)
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number + 0.75))
    (root / "Dockerfile").write_text(COPY_ALL)
    (root / "docker" / "Dockerfile").write_text(COPY_ALL)
    (root / "foo").chmod(0o755)
    (root / "aa").chmod(0o4711)
    (root / "empty" / "within").mkdir(parents=True)
    (root / "empty").chmod(0o700)
    (root / "link-to-file").symlink_to("b.txt")
    (root / "link-to-folder").symlink_to("src")
    (root / "link-out").symlink_to("../../../etc/passwd")
    (root / "link-absolute").symlink_to("/etc")
    (root / "link-nowhere").symlink_to("nowhere/" + "long" * 40)
    (root / "src" / "link-up").symlink_to("..")
    long = root / ("long" * 30) / ("name" * 30)
    long.mkdir(parents=True)
    (long / ("file" * 40)).write_text("far away")
    return root


def entries(tar: bytes) -> dict[str, Entry]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        for info in opened:
            file = opened.extractfile(info) if info.isfile() else None
            found[info.name] = Entry(
                info.type, info.mode, info.mtime, info.linkname if info.issym() else "", file.read() if file else b""
            )
    return found


def sent(root: Path, **options: str) -> dict[str, Entry]:
    name = options.get("dockerfile_name", "Dockerfile")
    ignore = build_context.read_ignore(root, root / name)
    return entries(b"".join(build_context.stream(root, ignore=ignore, dockerfile_name=name)))


def names(ignore: str, root: Path) -> set[str]:
    return set(entries(b"".join(build_context.stream(root, ignore=IgnoreRules.parse(ignore)))))


@contextmanager
def built(docker: DockerCommandLine, label: str, argv: list[str | Path], stdin: bytes | None = None) -> Iterator[str]:
    """Build with the engine's classic builder and remove the image afterwards."""
    image = docker(["build", "--quiet", "--force-rm", "--label", label, *argv], stdin=stdin).stdout.split()[-1]
    try:
        yield image
    finally:
        docker(["image", "rm", "--force", image], check=False)


def copied(
    docker: DockerCommandLine, label: str, argv: list[str | Path], stdin: bytes | None = None
) -> dict[str, Entry]:
    """Return what `COPY . /ctx/` put into the image."""
    with built(docker, label, argv, stdin) as image, tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "image.tar")
        docker(["image", "save", "--output", archive, image])
        found = {}
        with tarfile.open(archive) as opened:
            manifest = opened.extractfile("manifest.json")
            assert manifest is not None
            for layer in json.load(manifest)[0]["Layers"]:
                content = opened.extractfile(layer)
                assert content is not None
                found.update(entries(content.read()))
    return {name.removeprefix("ctx/"): entry for name, entry in found.items() if name.startswith("ctx/")}


IGNORE_FILES = {
    "none": None,
    "nothing in it": "",
    "comment and blank lines": "# comment\n\n   \n\t\n  # not a comment\nfoo\n",
    "a name at the top only": "foo.pyc\n",
    "a name anywhere": "**/foo.pyc\n",
    "anywhere without a slash": "**foo.pyc\n",
    "a star is of one folder": "*.go\n",
    "two folders deep": "*/*/b.txt\n*/*/*/b.txt\n",
    "a question mark": "?.go\nf?o\nsrc/?eep\n",
    "a set": "[ab].*\n[^a-z]*\n",
    "a folder": "src\n",
    "a folder with a slash behind it": "src/\nnode_modules/\n",
    "a slash before it": "/src\n/foo\n//b.txt\n",
    "needs shortening": "./src/../src/./deep\nfoo/../b.txt\n../foo\n",
    "all but": "*\n!src\n",
    "all but, deep within": "*\n!src/deep/er/keep.txt\n",
    "all but, folder again left out": "*\n!src\nsrc/deep\n",
    "the last rule wins": "src\n!src\nsrc\n!src/deep\n",
    "the order the other way": "!src/deep\nsrc\n",
    "readmitted by a pattern with stars": "src\n!src/**/*.txt\n",
    "readmitted anywhere": "*\n!**/keep.txt\n",
    "readmitted by a star": "build/*\n!build/out/keep\n!build/o*\n",
    "a parent readmits no child of its own": "build/out/keep\n!build\n",
    "everything within": "src/**\n",
    "everything": "**\n",
    "everything, then one": "**\n!b.txt\n",
    "in between": "src/**/keep.txt\ndoc/**/three.md\n",
    "doubled stars": "**/**/b.txt\n**/er/**\n",
    "three stars": "***/deep\n",
    "the files of the build": "Dockerfile\n.dockerignore\n",
    "the files of the build, by a star": "D*\n.d*\n",
    "all but the Dockerfile": "*\n!Dockerfile\n",
    "hidden ones": ".*\n!.git/config\n",
    "windows line ends": "foo\r\n*.go\r\n!a.go\r\n",
    "a byte order mark": "\ufefffoo\nb.txt\n",
    "spaces round and within": "  foo bar  \nwith space\n! foo bar\n",
    "other alphabets": "日本\nünï/*.txt\ncaf?\n",
    "escaped": "\\[x\\]\nfo\\.pyc\n\\#hash\n\\!bang\n",
    "hash and bang within": "x#y\n*\\!*\n",
    "braces are no choice": "{foo,b.txt}\na{2}\n",
    "braces repeat next to a star": "a{2}*\n",
    "a bar chooses next to a star": "foo|nothing*\n",
    "links": "link-to-folder/a.go\nlink-out\nlink-a*\n",
    "dot and slash": ".\n/\n",
    "many stars": "*s*r*c*/*e*e*p*\n**/*k*e*e*p*/**/*1*\n",
    "a folder that is a link's name": "link-to-folder\n!link-to-folder/a.go\n",
}


@pytest.mark.parametrize("text", IGNORE_FILES.values(), ids=IGNORE_FILES.keys())
def test_the_image_gets_the_same_files_from_our_stream_as_from_the_docker_command(
    docker_cli: DockerCommandLine, session_label: str, tree: Path, text: str | None
) -> None:
    if text is not None:
        (tree / ".dockerignore").write_text(text, newline="")
    theirs = copied(docker_cli, session_label, ["--no-cache", tree])
    ignore = build_context.read_ignore(tree, tree / "Dockerfile")
    tar = b"".join(build_context.stream(tree, ignore=ignore))
    ours = copied(docker_cli, session_label, ["--no-cache", "-"], tar)
    assert ours.keys() == theirs.keys()
    assert ours == without_times_of_made_folders(theirs, ours, entries(tar))
    expected = with_folders({name for name in entries(tar) if name in theirs or not ignore.excludes(name)})
    assert expected - set(theirs) <= {"Dockerfile", ".dockerignore"}
    assert set(theirs) <= with_folders(set(entries(tar)))


def with_folders(paths: set[str]) -> set[str]:
    return paths | {parent.as_posix() for path in paths for parent in Path(path).parents if parent != Path()}


def without_times_of_made_folders(
    theirs: dict[str, Entry], ours: dict[str, Entry], tar: dict[str, Entry]
) -> dict[str, Entry]:
    """A folder that is not in the tar is made by the engine, now."""
    return {name: entry if name in tar else entry._replace(mtime=ours[name].mtime) for name, entry in theirs.items()}


@pytest.mark.parametrize("ignored", ["", "docker\n", "docker\n.dockerignore\n", "*\n!docker/x.txt\n"])
def test_a_dockerfile_in_an_excluded_folder_is_sent_all_the_same(
    docker_cli: DockerCommandLine, session_label: str, tree: Path, ignored: str
) -> None:
    (tree / ".dockerignore").write_text(ignored)
    theirs = copied(docker_cli, session_label, ["--no-cache", "-f", tree / "docker/Dockerfile", tree])
    ignore = build_context.read_ignore(tree, Path("docker/Dockerfile"))
    tar = b"".join(build_context.stream(tree, ignore=ignore, dockerfile_name="docker/Dockerfile"))
    ours = copied(docker_cli, session_label, ["--no-cache", "-f", "docker/Dockerfile", "-"], tar)
    assert "docker/Dockerfile" in entries(tar)
    assert ours.keys() == theirs.keys()


# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"), [("!", 1), ("ok\n! \n", 2), ("\n\na[", 3), ("[]a]", 1), ("[-x]", 1), ("a\\", 1), ("[b-a]*", 1)]
)
def test_a_malformed_pattern_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        IgnoreRules.parse(text)
    assert f"Line {line} " in caught.value.message
    assert caught.value.details["line"] == line


def test_the_docker_command_refuses_malformed_patterns_too(
    docker_cli: DockerCommandLine, session_label: str, tree: Path
) -> None:
    for text in ("!", "a[", "[]a]", "[-x]", "a\\"):
        (tree / ".dockerignore").write_text(text)
        assert docker_cli(["build", "--label", session_label, tree], check=False).returncode != 0


@pytest.mark.parametrize(
    ("text", "path", "excluded"),
    [
        ("a", "a/b/c", True),
        ("a", "./a/../a/b", True),
        ("a\n!a/b", "a/b/c", False),
        ("a\n!a/b", "a/c", True),
        ("a/b\n!a", "a/b", True),
        ("*", ".", False),
        ("*", "", False),
        ("b", "a/b", False),
        ("a*", "a\n", True),
        ("a.b", "axb", False),
        ("[[:alpha:]]x", "bx", True),
        ("a\n", "a\udcff", False),
        ("a*", "a\udcff", True),
    ],
)
def test_rules_judge_a_path_by_itself(text: str, path: str, excluded: bool) -> None:
    assert IgnoreRules.parse(text).excludes(path) is excluded


def test_an_excluded_folder_is_entered_only_for_a_rule_that_names_something_in_it() -> None:
    rules = IgnoreRules.parse("*\n!a/b/c\n!**/x\n")
    assert [rules.may_descend(folder) for folder in ("a", "a/b", "a/b/c", "a/b/c/d", "ab", "x")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_pattern_made_to_be_slow_is_not() -> None:
    rules = IgnoreRules.parse("**/" + "*a" * 40 + "/**/" * 20 + "*b*c*\n" + "**/a" * 30 + "/x\n")
    assert not rules.excludes("a" * 250 + "/a" * 300)
    assert rules.excludes("z/" + "a" * 50 + "/q" * 20 + "/abc")


@hypothesis.given(
    strategies.text("ab/*?.[]^-!\\{}|#é \n", max_size=40), strategies.lists(strategies.text("ab.é/", max_size=8))
)
def test_any_text_is_either_refused_or_judges_every_path(text: str, paths: list[str]) -> None:
    try:
        rules = IgnoreRules.parse(text)
    except errors.InvalidArgument:
        return
    assert all(rules.excludes(path) in (True, False) for path in paths)


def test_the_dockerfiles_own_ignore_file_is_preferred(tree: Path) -> None:
    (tree / ".dockerignore").write_text("foo\n")
    (tree / "docker" / "Dockerfile.dockerignore").write_text("b.txt\n")
    assert build_context.read_ignore(tree, tree / "docker/Dockerfile").excludes("b.txt")
    assert not build_context.read_ignore(tree, Path("docker/Dockerfile")).excludes("foo")
    assert build_context.read_ignore(tree, tree / "Dockerfile").excludes("foo")
    assert build_context.read_ignore(tree, None).excludes("foo")


def test_an_ignore_file_that_leads_out_of_the_context_is_refused_and_not_quoted(tree: Path) -> None:
    secret = tree.parent / "secret"
    secret.write_text("[password\n")
    (tree / ".dockerignore").symlink_to(secret)
    with pytest.raises(errors.InvalidArgument) as caught:
        build_context.read_ignore(tree, None)
    assert "password" not in caught.value.text()


@pytest.mark.parametrize("kind", ["folder", "circle", "large"])
def test_an_unusable_ignore_file_is_an_error_and_not_no_rules(tree: Path, kind: str) -> None:
    path = tree / ".dockerignore"
    match kind:
        case "folder":
            path.mkdir()
        case "circle":
            path.symlink_to(path.name)
        case _:
            path.write_bytes(b"x\n" * 600_000)
    with pytest.raises(errors.InvalidArgument):
        build_context.read_ignore(tree, None)


def test_an_ignore_link_to_nowhere_is_no_rules_as_for_docker(tree: Path) -> None:
    (tree / ".dockerignore").symlink_to("nowhere")
    assert build_context.read_ignore(tree, None) == IgnoreRules()


# --- finding the Dockerfile ------------------------------------------------------------------------------------------


def test_the_dockerfile_is_found_by_its_usual_names_or_through_links(tree: Path) -> None:
    assert build_context.locate(tree).dockerfile == "Dockerfile"
    assert build_context.locate(tree, Path("docker/Dockerfile")).dockerfile == "docker/Dockerfile"
    (tree / "Dockerfile").unlink()
    (tree / "dockerfile").symlink_to("docker/Dockerfile")
    assert build_context.locate(tree).dockerfile == "docker/Dockerfile"


def test_a_dockerfile_that_is_absent_or_outside_is_an_error(tree: Path) -> None:
    with pytest.raises(errors.NotFound):
        build_context.locate(tree, Path("none"))
    with pytest.raises(errors.NotFound):
        build_context.locate(tree / "none")
    (tree.parent / "outside").write_text("FROM scratch")
    (tree / "leading-out").symlink_to("../outside")
    with pytest.raises(errors.InvalidArgument):
        build_context.locate(tree, Path("leading-out"))


# --- the stream ------------------------------------------------------------------------------------------------------


def test_entries_belong_to_root_and_keep_mode_time_and_link(tree: Path) -> None:
    tar = b"".join(build_context.stream(tree, ignore=IgnoreRules()))
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        infos = {info.name: info for info in opened}
    assert {(info.uid, info.gid, info.uname, info.gname) for info in infos.values()} == {(0, 0, "", "")}
    for name, info in infos.items():
        status = (tree / name).lstat()
        assert (info.mode, info.mtime) == (status.st_mode & 0o7777, int(status.st_mtime)), name
        assert info.issym() == (tree / name).is_symlink()
    assert infos["link-out"].linkname == "../../../etc/passwd"
    assert infos["empty/within"].isdir()
    assert set(infos) == {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


def test_hard_links_are_files_of_their_own(tree: Path) -> None:
    (tree / "twin").hardlink_to(tree / "b.txt")
    found = sent(tree)
    assert found["twin"] == found["b.txt"]
    assert found["twin"].type == tarfile.REGTYPE


def test_sockets_pipes_and_devices_are_left_out(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{short}/socket")
        os.rename(f"{short}/socket", tree / "socket")
        assert {"pipe", "socket"}.isdisjoint(sent(tree))


def test_names_that_are_not_utf8_arrive(docker_cli: DockerCommandLine, session_label: str, tree: Path) -> None:
    odd = os.fsencode(tree) + b"/odd-\xff\xfe"
    Path(os.fsdecode(odd)).mkdir()
    Path(os.fsdecode(odd + b"/in\xff")).write_text("x")
    Path(os.fsdecode(odd + b"/to")).symlink_to(os.fsdecode(b"\xff-there"))
    Path(os.fsdecode(odd + b"/line\nbreak")).write_text("y")
    theirs = copied(docker_cli, session_label, ["--no-cache", tree])
    ours = copied(
        docker_cli, session_label, ["--no-cache", "-"], b"".join(build_context.stream(tree, ignore=IgnoreRules()))
    )
    assert ours == theirs
    assert os.fsdecode(b"odd-\xff\xfe/in\xff") in ours


def test_a_file_far_larger_than_memory_is_streamed(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        chunks = build_context.stream(tmp_path, ignore=IgnoreRules())
        taken = sum(len(next(chunks)) for _ in range(200))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken == 200 * 65536
    assert peak < 2_000_000


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 500_000)
    (tmp_path / "b").write_bytes(b"b" * 500_000)
    chunks = build_context.stream(tmp_path, ignore=IgnoreRules())
    first = next(chunks)
    (tmp_path / "b").write_bytes(b"later")
    assert entries(first + b"".join(chunks))["b"].content == b"later"


@pytest.mark.parametrize("chunk_bytes", [1, 511, 512, 4096, 10**7])
def test_the_size_of_chunks_changes_nothing_but_their_size(tree: Path, chunk_bytes: int) -> None:
    whole = b"".join(build_context.stream(tree, ignore=IgnoreRules()))
    chunks = list(build_context.stream(tree, ignore=IgnoreRules(), chunk_bytes=chunk_bytes))
    assert b"".join(chunks) == whole
    assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_bytes}
    assert len(whole) % 512 == 0


@pytest.mark.parametrize("now_bytes", [0, 100_000, 3_000_000])
def test_a_file_that_changes_size_meanwhile_leaves_the_tar_valid(tmp_path: Path, now_bytes: int) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)
    (tmp_path / "b").write_bytes(b"b")
    chunks = build_context.stream(tmp_path, ignore=IgnoreRules())
    first = next(chunks)
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(now_bytes)
    found = entries(first + b"".join(chunks))
    assert len(found["a"].content) == 1_000_000
    assert found["b"].content == b"b"


def test_what_vanishes_or_becomes_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    for name in ("a", "b", "c"):
        (root / name).write_bytes(name.encode() * 200_000)
    (root / "folder").mkdir()
    (root / "folder" / "x").write_text("x")
    chunks = build_context.stream(root, ignore=IgnoreRules())
    first = next(chunks)
    (root / "b").unlink()
    (root / "c").unlink()
    (root / "c").symlink_to("../secret")
    (root / "folder").rename(tmp_path / "moved")
    (root / "folder").symlink_to("..")
    found = entries(first + b"".join(chunks))
    assert set(found) == {"a", "c", "folder"}
    assert found["folder"].type == tarfile.SYMTYPE
    assert all(b"secret" not in entry.content for entry in found.values())


def test_an_abandoned_stream_closes_its_files(tree: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    chunks = build_context.stream(tree, ignore=IgnoreRules(), chunk_bytes=512)
    for _ in range(40):
        next(chunks)
    del chunks
    assert len(os.listdir("/dev/fd")) == before


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: be someone else for the while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_what_cannot_be_read_is_named_unless_it_is_left_out(locked: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "folder").mkdir()
        (root / "folder" / "file").write_text("x")
        (root / "folder" / locked).chmod(0) if locked == "file" else (root / "folder").chmod(0)
        with as_nobody():
            with pytest.raises(errors.InvalidArgument, match=r"folder.*Permission denied"):
                list(build_context.stream(root, ignore=IgnoreRules()))
            assert names("folder", root) == set()
        (root / "folder").chmod(0o755)


def test_more_than_allowed_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    taken: list[bytes] = []
    with pytest.raises(errors.InvalidArgument, match="1000000"):
        taken.extend(build_context.stream(tmp_path, ignore=IgnoreRules(), max_bytes=1_000_000))
    assert taken == []
    assert b"".join(build_context.stream(tmp_path, ignore=IgnoreRules.parse("sparse"), max_bytes=1024)) == bytes(1024)


@pytest.mark.parametrize("name", ["", "/x", "../x", "a/../b", "a//b", "x/", "a\0b", "."])
def test_a_dockerfile_name_that_leads_elsewhere_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        build_context.stream(tmp_path, ignore=IgnoreRules(), dockerfile_name=name)


def test_a_missing_folder_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        build_context.stream(tmp_path / "none", ignore=IgnoreRules())


def test_measure_counts_what_the_stream_sends(tree: Path) -> None:
    (tree / ".dockerignore").write_text("*\n!src\n")
    rules = build_context.read_ignore(tree, None)
    found = entries(b"".join(build_context.stream(tree, ignore=rules)))
    size = build_context.measure(tree, rules)
    assert size.files == sum(entry.type != tarfile.DIRTYPE for entry in found.values())
    assert size.bytes == sum(len(entry.content) for entry in found.values())
    assert size.complete
    assert not build_context.measure(tree, rules, limit_entries=3).complete


# --- a Dockerfile given as text --------------------------------------------------------------------------------------


def test_a_text_alone_is_a_whole_context(docker_cli: DockerCommandLine, session_label: str) -> None:
    text = b"FROM scratch\nLABEL given=text\n"
    tar = b"".join(build_context.stream(None, ignore=IgnoreRules(), dockerfile_text=text))
    assert {name: entry.content for name, entry in entries(tar).items()} == {"Dockerfile": text}
    with built(docker_cli, session_label, ["-"], tar) as image:
        labels = json.loads(docker_cli(["image", "inspect", "--format", "{{json .Config.Labels}}", image]).stdout)
    assert labels["given"] == "text"


@pytest.mark.parametrize(
    ("ignored", "own"),
    [
        (None, None),
        ("", None),
        ("foo\n", None),
        (".dockerignore\n", None),
        ("*\n!b.txt\n", None),
        ("foo\n", "*\n!b.txt"),
    ],
)
def test_an_added_text_is_built_and_is_not_copied_into_the_image(
    docker_cli: DockerCommandLine, session_label: str, tree: Path, ignored: str | None, own: str | None
) -> None:
    """The docker command does the same for `docker build -f -`, under a name of its own."""
    text = COPY_ALL.encode()
    name = build_context.fresh_name(text)
    if ignored is not None:
        (tree / ".dockerignore").write_text(ignored)
    ignore = IgnoreRules.parse(own) if own else build_context.read_ignore(tree, None)
    tar = b"".join(build_context.stream(tree, ignore=ignore, dockerfile_text=text, dockerfile_name=name))
    ours = copied(docker_cli, session_label, ["--no-cache", "-f", name, "-"], tar)
    assert not any(path.startswith(".dockerfile.") for path in ours)
    if own:
        (tree / ".dockerignore").write_text(own)
    theirs = copied(docker_cli, session_label, ["--no-cache", "-f", "-", tree], text)
    assert ours.keys() == theirs.keys()


def test_rules_of_the_dockerfiles_own_ignore_file_hide_the_files_of_the_build(
    docker_cli: DockerCommandLine, session_label: str, tree: Path
) -> None:
    """The engine knows only `.dockerignore`, so that one is sent with what it has to say."""
    (tree / "Dockerfile.dockerignore").write_text("*\n!b.txt\n")
    for text in (None, "foo\n", "*\n!Dockerfile\n!.dockerignore\n"):
        if text is not None:
            (tree / ".dockerignore").write_text(text)
        ignore = build_context.read_ignore(tree, tree / "Dockerfile")
        tar = b"".join(build_context.stream(tree, ignore=ignore))
        assert set(copied(docker_cli, session_label, ["--no-cache", "-"], tar)) == {"b.txt"}


def test_rules_that_keep_the_files_of_the_build_have_the_last_word(
    docker_cli: DockerCommandLine, session_label: str, tree: Path
) -> None:
    (tree / "Dockerfile.dockerignore").write_text("*\n!Dockerfile\n!.dockerignore\n")
    (tree / ".dockerignore").write_text("*\n")
    ignore = build_context.read_ignore(tree, tree / "Dockerfile")
    tar = b"".join(build_context.stream(tree, ignore=ignore))
    assert set(copied(docker_cli, session_label, ["--no-cache", "-"], tar)) == {"Dockerfile", ".dockerignore"}


def test_a_text_takes_the_place_of_the_file_of_its_name(tree: Path) -> None:
    """What was judged is what is built, even when the file is changed in between."""
    for name in ("Dockerfile", "docker/Dockerfile"):
        before = sent(tree)
        (tree / name).write_text("FROM evil")
        options = {"dockerfile_text": b"FROM good", "dockerfile_name": name}
        found = entries(b"".join(build_context.stream(tree, ignore=IgnoreRules(), **options)))  # type: ignore[arg-type]
        assert found[name].content == b"FROM good"
        assert found.keys() == before.keys()


def test_a_file_in_the_folder_never_replaces_the_text_that_was_given(tree: Path) -> None:
    text = b"FROM good"
    name = build_context.fresh_name(text)
    (tree / name).write_text("FROM evil")
    tar = b"".join(build_context.stream(tree, ignore=IgnoreRules(), dockerfile_text=text, dockerfile_name=name))
    assert b"FROM evil" not in tar
    (tree / name).unlink()
    (tree / name).symlink_to("b.txt")
    tar = b"".join(build_context.stream(tree, ignore=IgnoreRules(), dockerfile_text=text, dockerfile_name=name))
    assert entries(tar)[name] == Entry(tarfile.REGTYPE, 0o644, 0, "", text)


def test_a_text_has_no_place_in_a_folder_that_is_absent_or_a_link(tree: Path) -> None:
    for name in ("none/Dockerfile", "docker/none", "docker"):
        with pytest.raises(errors.InvalidArgument):
            build_context.stream(tree, ignore=IgnoreRules(), dockerfile_text=b"FROM a", dockerfile_name=name)


def test_the_same_text_has_the_same_name_and_another_another() -> None:
    assert build_context.fresh_name(b"a") == build_context.fresh_name(b"a") != build_context.fresh_name(b"b")
