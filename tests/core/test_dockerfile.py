"""What does our reading of a Dockerfile say, and does the engine's own builder agree about its steps?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import dockerfile
from tests.backends import DockerCommandLine

STAGES = """\
# a comment
ARG BASE=scratch
ARG UNUSED

FROM ${BASE} AS Build
COPY one \\
     # a comment within
     two \\

     /here/
LABEL a="1" \\
  b=2
FROM scratch as final
COPY --from=build /here /there
ENV X=1
FROM final
ONBUILD COPY . /
CMD ["x"]
"""


def refusal(text: str) -> errors.InvalidArgument:
    with pytest.raises(errors.InvalidArgument) as caught:
        dockerfile.parse(text)
    assert caught.value.hint
    return caught.value


def test_instructions_have_the_lines_that_they_stand_on() -> None:
    lines = [(each.name, each.start_line, each.end_line) for each in dockerfile.parse(STAGES).instructions]
    assert lines == [
        ("ARG", 2, 2), ("ARG", 3, 3), ("FROM", 5, 5), ("COPY", 6, 10), ("LABEL", 11, 12), ("FROM", 13, 13),
        ("COPY", 14, 14), ("ENV", 15, 15), ("FROM", 16, 16), ("ONBUILD", 17, 17), ("CMD", 18, 18),
    ]  # fmt: skip


def test_a_line_is_found_in_its_instruction_and_between_two_there_is_none() -> None:
    parsed = dockerfile.parse(STAGES)
    found = parsed.instruction_at(9)
    assert found is not None
    assert (found.name, found.value.split()) == ("COPY", ["one", "two", "/here/"])
    assert parsed.instruction_at(4) is None
    assert parsed.instruction_at(99) is None


def test_here_documents_are_not_taken_for_instructions() -> None:
    parsed = dockerfile.parse(
        'FROM a\nRUN <<ONE <<-"TWO"\nFROM evil\nONE\n\tRUN --security=insecure x\n\tTWO\nCOPY <<F /f\nhi\nF\nCMD x\n'
    )
    assert [(each.name, each.start_line, each.end_line) for each in parsed.instructions] == [
        ("FROM", 1, 1), ("RUN", 2, 6), ("COPY", 7, 9), ("CMD", 10, 10),
    ]  # fmt: skip
    assert parsed.instructions[1].value == '<<ONE <<-"TWO"'
    assert parsed.entitlements == ()


def test_the_escape_directive_changes_what_continues_a_line() -> None:
    parsed = dockerfile.parse("# escape=`\nFROM a\nRUN dir C:\\\nRUN one `\n  two\n")
    assert [(each.start_line, each.end_line) for each in parsed.instructions] == [(2, 2), (3, 3), (4, 5)]


def test_windows_line_ends_and_a_byte_order_mark_keep_the_line_numbers() -> None:
    parsed = dockerfile.parse("\ufeffFROM a\r\nRUN x \\\r\n y\r\nCMD z\r\n")
    assert [each.start_line for each in parsed.instructions] == [1, 2, 4]


def test_names_are_in_capitals_however_they_were_written() -> None:
    assert [each.name for each in dockerfile.parse("from a\nRun x\n").instructions] == ["FROM", "RUN"]


def test_stages_have_their_names_and_base_images_leave_stages_and_scratch_out() -> None:
    parsed = dockerfile.parse(
        "FROM --platform=$P one:1 AS A\nFROM a\nFROM scratch\nFROM two@sha256:0\nFROM one:1\nCOPY --from=a /x /x\n"
        "COPY --from=0 /x /x\nCOPY --from=three /x /x\nRUN --mount=type=bind,from=four,target=/x y\n"
    )
    assert parsed.stages == ("a", None, None, None, None)
    assert parsed.base_images == ("one:1", "two@sha256:0")
    assert parsed.copied_images == ("three", "four")


@pytest.mark.parametrize(
    ("line", "used"),
    [
        ("COPY a /", True),
        ("copy a /", True),
        ('COPY ["a b", "/"]', True),
        ("COPY --chown=1:1 --link a /", True),
        ("COPY --from=b a /", False),
        ("COPY <<EOF /x\nhello\nEOF", False),
        ("COPY <<EOF a /x/\nhello\nEOF", True),
        ("ADD a /", True),
        ("ADD https://example.test/a /", False),
        ("ADD https://example.test/a b /", True),
        ("ADD git@example.test:a/b.git /", False),
        ("ADD $URL /", True),
        ("RUN COPY a /", False),
        ("RUN --mount=target=/x ls", True),
        ("RUN --mount=type=bind,target=/x ls", True),
        ("RUN --mount=type=bind,from=b,target=/x ls", False),
        ('RUN --mount="type=bind,\\"from=b\\",target=/x" ls', False),
        ("RUN --mount=type=$KIND,target=/x ls", True),
        ("RUN --mount=type=cache,target=/x ls", False),
        ("ONBUILD COPY a /", False),
    ],
)
def test_the_context_is_used_by_what_reads_its_files(line: str, used: bool) -> None:
    assert dockerfile.parse(f"FROM b\n{line}\n").uses_context() is used


@pytest.mark.parametrize(
    ("line", "entitlements", "lent"),
    [
        ("RUN --network=host x", ("network.host",), ()),
        ('RUN --network="host" x', ("network.host",), ()),
        ("RUN --network=none x", (), ()),
        ("RUN --network=$N x", ("network.host",), ()),
        ("RUN --security=insecure \\\n --network=host x", ("network.host", "security.insecure"), ()),
        ("RUN --security=sandbox x", (), ()),
        ("RUN --device=vendor.test/gpu x", ("device",), ()),
        ("RUN --mount=type=ssh x", (), ("ssh",)),
        ("RUN --mount=type=secret,id=a --mount=type=ssh x", (), ("secret", "ssh")),
        ("RUN echo --network=host", (), ()),
        ("ONBUILD RUN --security=insecure x", ("security.insecure",), ()),
        ("onbuild run --mount=type=ssh x", (), ("ssh",)),
    ],
)
def test_what_a_step_asks_for_is_named_for_the_policy(
    line: str, entitlements: tuple[str, ...], lent: tuple[str, ...]
) -> None:
    parsed = dockerfile.parse(f"FROM a\n{line}\n")
    assert parsed.entitlements == entitlements
    assert parsed.lent == lent


def test_the_hosts_that_add_fetches_from_are_named_without_credentials() -> None:
    parsed = dockerfile.parse(
        "FROM a\nADD https://me:pw@One.test:84/x /\nADD git@two.test:a/b.git /\nADD here /\nADD github.com/a/b.git /\n"
    )
    assert parsed.network_hosts == ("github.com", "one.test:84", "two.test")


@pytest.mark.parametrize(
    ("text", "frontend"),
    [
        ("# syntax=docker/dockerfile:1\nFROM a\n", "docker/dockerfile:1"),
        ("#syntax = x/y:1 with more\nFROM a\n", "x/y:1"),
        ("# Syntax=x\r\nFROM a\r\n", "x"),
        ("\ufeff# syntax=x\nFROM a\n", "x"),
        ("#!/usr/bin/env x\n# syntax=x\nFROM a\n", "x"),
        ("# escape=`\n# syntax=x\nFROM a\n", "x"),
        ("# check=skip=all\n# syntax=x\nFROM a\n", "x"),
        ("# unknown=1\n# syntax=x\nFROM a\n", "x"),
        ("// syntax=x\n{}\n", "x"),
        ('{"syntax": "x", "other": [1]}', "x"),
        ('#!shebang\n{"syntax": "x"}', "x"),
        ("# a comment\n# syntax=x\nFROM a\n", None),
        ("\n# syntax=x\nFROM a\n", None),
        (" # syntax=x\nFROM a\n", None),
        ("FROM a\n# syntax=x\n", None),
    ],
)
def test_the_frontend_is_found_in_every_form_that_buildkit_looks_for(text: str, frontend: str | None) -> None:
    assert dockerfile.parse(text).frontend == frontend


def test_another_frontends_language_is_not_read_as_a_dockerfile() -> None:
    for text in ("// syntax=x\nwhat ever\n", '{"syntax": "x"}', "# syntax=x/y\nimage: a\n"):
        parsed = dockerfile.parse(text)
        assert parsed.instructions == ()
        assert parsed.uses_context()


def test_the_official_frontend_does_not_excuse_an_error() -> None:
    assert "line 2" in refusal("# syntax=docker/dockerfile:1\nFRMO a\n").message.lower()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("FROM a\n\nFORM b\n", 3, "FORM is not an instruction"),
        ("FROM a\nRUN x\n  y\n", 3, "Y is not an instruction"),
        ("RUN x\nFROM a\n", 1, "before the first FROM"),
        ("FROM a b\n", 1, "FROM takes one image"),
        ("FROM\n", 1, "FROM takes one image"),
        ("FROM a as\n", 1, "FROM takes one image"),
        ("FROM a\nRUN y\nENV x\nRUN z\n", 3, "ENV needs a name and a value"),
        ('FROM a\n\n\nLABEL a=1 \\\n "b\nRUN x\n', 5, "has no ="),
        ("FROM a\nRUN <<EOF\nx\n", 2, "a here-document has no end"),
        ("FROM a\n\nRUN " + "x" * 70_000 + "\n", 3, "65535"),
        ("# escape=x\nFROM a\n", 1, "escape directive"),
        ("# escape=`\n# escape=`\nFROM a\n", 2, "second escape directive"),
        ("# syntax=a\n# syntax=b\nFROM a\n", 2, "second syntax directive"),
        ("# check=skip=all\n# escape=`\nFROM a\n", 2, "disagree"),
        ("FROM a\nRUN x\0y\n", 2, "NUL"),
        ("FROM a\nRUN \udcff\n", 2, "UTF-8"),
        ("FROM a\nONBUILD ONBUILD RUN x\n", 2, "ONBUILD cannot trigger ONBUILD"),
        ("FROM a\nONBUILD\n", 2, "ONBUILD cannot trigger nothing"),
        ("FROM a\n\\", 2, "nothing in it"),
        ("FROM a\nRUN x\nHEALTHCHECK CMD\x85x\n", 3, "looks like a space"),
        ("FROM a\nONBUILD RAN x\n", 2, "RAN is not an instruction"),
    ],
)
def test_a_bad_dockerfile_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    problem = refusal(text)
    assert words in problem.message
    assert problem.details["line"] == line
    assert f"Line {line} " in problem.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("# nothing\n", "no instruction"),
        ("ARG A\n", "no FROM"),
        ("FROM a\n" + "# long\n" * 200_000, "at most 1048576"),
    ],
)
def test_a_dockerfile_without_a_build_in_it_is_refused(text: str, words: str) -> None:
    assert words in refusal(text).message


def test_a_mistyped_instruction_is_answered_with_the_nearest() -> None:
    assert "COPY" in refusal("FROM a\nCPOY a b\n").hint


def test_reading_a_dockerfile_leaves_signals_programs_and_broken_pipes_as_they_were() -> None:
    """The Go runtime takes over SIGPIPE when it is loaded: what that could break is looked at in a fresh process."""
    program = """
import os, signal, subprocess, sys, threading
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append("term"))
before = {each: signal.getsignal(each) for each in signal.Signals}
from codomyrmex_containerization.core import dockerfile
assert "dockerfile" not in sys.modules, "loaded too early"
dockerfile.parse("FROM a\\nRUN x\\n")
assert {each: signal.getsignal(each) for each in signal.Signals} == before
for end in (None, 1):
    read, write = os.pipe()
    os.close(read)
    if end is not None:
        saved = os.dup(end)
        os.dup2(write, end)
    try:
        os.write(write if end is None else end, b"x")
    except BrokenPipeError:
        pass
    else:
        raise SystemExit("a broken pipe was not noticed")
    if end is not None:
        os.dup2(saved, end)
os.kill(os.getpid(), signal.SIGTERM)
assert caught == ["term"]
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    caught.append("int")
assert caught == ["term", "int"]
done = subprocess.run(["sh", "-c", "kill -PIPE $$; exit 7"], capture_output=True)
assert done.returncode == -signal.SIGPIPE, done
thread = threading.Thread(target=lambda: caught.append(dockerfile.parse("FROM b\\n").base_images))
thread.start()
thread.join()
assert caught[-1] == ("b",)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


STEP = re.compile(r"Step (\d+)/(\d+) : (\w+) (.*)$", re.MULTILINE)


def test_a_target_may_be_a_number_as_for_buildkit() -> None:
    parsed = dockerfile.parse(STAGES)
    assert parsed.step(5, target="0") is not None
    assert parsed.step(6, target="0") is None


@pytest.mark.parametrize("target", [None, "build", "Final"])
def test_a_step_is_the_instruction_that_the_classic_builder_names(
    docker_cli: DockerCommandLine, session_label: str, tmp_path: Path, target: str | None
) -> None:
    (tmp_path / "Dockerfile").write_text(STAGES)
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    chosen = ["--target", target] if target else []
    said = docker_cli(["build", "--no-cache", "--force-rm", "--label", session_label, *chosen, tmp_path]).stdout
    for image in reversed(re.findall(r"^ ---> ([0-9a-f]{12})$", said, re.MULTILINE)):
        docker_cli(["image", "rm", "--force", image], check=False)
    parsed = dockerfile.parse(STAGES)
    steps = STEP.findall(said)
    assert steps[-1][2] == "LABEL", "the label of the command line comes last"
    assert parsed.step(len(steps), target=target) is None
    for number, total, name, value in steps[:-1]:
        found = parsed.step(int(number), target=target)
        assert found is not None
        assert (found.name, found.value.split()) == (name, value.split())
        assert int(total) == len(steps)
