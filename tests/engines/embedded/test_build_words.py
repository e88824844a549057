"""How does the embedded engine's builder read the words of a Dockerfile?"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization.engines.embedded import build_expand, build_steps, build_words
from codomyrmex_containerization.engines.embedded.build_words import Failed

VALUES = {"A": "x y", "B": "", "Ab_1": "z"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$A", "x y"),
        ("${A}b", "x yb"),
        ("$Ab_1", "z"),
        ("'$A'", "$A"),
        ("\"$A 'b'\"", "x y 'b'"),
        (r"\$A", "$A"),
        (r'"\$A \b \" \\"', '$A \\b " \\'),
        (r"a\ b", "a b"),
        ("${A:-q}", "x y"),
        ("${B:-q$A}", "qx y"),
        ("${B-q}", ""),
        ("${C-q}", "q"),
        ("${C:-${B:-deep}}", "deep"),
        ("${A:+set}", "set"),
        ("${B:+set}", ""),
        ("${B+set}", "set"),
        ("${A:?no}", "x y"),
        ("$", "$"),
        ("$1 $@", " "),
        ("$%", "$%"),
        ("trailing\\", "trailing\\"),
    ],
)
def test_variables_and_quotes_are_those_of_dockerfiles(word: str, expected: str) -> None:
    assert build_expand.expand(word, VALUES) == expected


def test_escape_directive_changes_the_escape() -> None:
    read = build_words.parse("# syntax=docker/dockerfile:1\n# escape=`\nFROM a\nENV A=c:\\b`$B\n")
    assert build_expand.expand(read[1].words[1], {"B": "no"}, escape=read[1].escape) == "c:\\b$B"


@pytest.mark.parametrize("word", ["'", '"', "${A", "${", "${A#x}", "${C:?must be}", "${}", "${A:-" * 5000])
def test_word_that_cannot_be_read_is_a_failure(word: str) -> None:
    with pytest.raises(Failed):
        build_expand.expand(word, VALUES)


@given(st.text(max_size=60), st.dictionaries(st.sampled_from("AB"), st.text(max_size=5)))
def test_any_word_is_read_or_is_a_failure(word: str, values: dict[str, str]) -> None:
    with suppress(Failed):
        assert isinstance(build_expand.expand(word, values), str)
    assert isinstance(build_expand.matcher("*")(word), bool)


@given(st.text(alphabet="ab*?[]^-\\/!.é", max_size=20), st.text(alphabet="ab/.é", max_size=20))
def test_any_pattern_is_read_or_is_a_failure(pattern: str, text: str) -> None:
    for deep in (False, True):
        with suppress(Failed):
            assert build_expand.matcher(pattern, deep=deep)(text) in (True, False)


@pytest.mark.parametrize(
    ("pattern", "text", "deep", "fits"),
    [
        ("*.txt", "a.txt", False, True),
        ("*.txt", "a/b.txt", False, False),
        ("a*b*c", "aXbYbZc", False, True),
        ("a*b", "aXbX", False, False),
        ("[^a]x", "bx", False, True),
        ("[^a]x", "ax", False, False),
        ("[a-c]?", "bx", False, True),
        ("\\*", "*", False, True),
        ("\\*", "x", False, False),
        ("**/x", "x", True, True),
        ("**/x", "a/b/x", True, True),
        ("a/**", "a/b/x", True, True),
        ("a/**", "b/x", True, False),
    ],
)
def test_patterns_fit_as_docker_says(pattern: str, text: str, deep: bool, fits: bool) -> None:
    assert build_expand.matcher(pattern, deep=deep)(text) is fits


@pytest.mark.parametrize(("text", "expected"), [("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("0", 0), ("0s", 0)])
def test_durations_are_read(text: str, expected: float) -> None:
    assert build_expand.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "1x", "s", "-1s", "1s "])
def test_what_is_no_duration_is_a_failure(text: str) -> None:
    with pytest.raises(Failed):
        build_expand.seconds(text)


@pytest.mark.parametrize(
    "text", ["FROM a\0\n", "FROM \udcff\n", "", "\n# only words\n", "RUN <<A\n", "FROM a\n" * 200_000]
)
def test_text_that_no_parser_should_see_is_a_failure(text: str) -> None:
    with pytest.raises(Failed):
        build_words.check(build_words.parse(text))


@pytest.mark.parametrize(
    ("machine", "text", "fits"),
    [
        ("x86_64", "linux/amd64", True),
        ("x86_64", "amd64", True),
        ("x86_64", "linux/x86_64", True),
        ("x86_64", "linux/arm64", False),
        ("x86_64", "windows/amd64", False),
        ("aarch64", "linux/arm64/v8", True),
        ("armv7l", "linux/arm/v7", True),
        ("armv7l", "linux/arm/v6", False),
        ("riscv64", "linux/riscv64", True),
    ],
)
def test_platform_of_the_machine_is_recognised(machine: str, text: str, fits: bool) -> None:
    assert build_steps.Platform.of(machine).fits(text) is fits
