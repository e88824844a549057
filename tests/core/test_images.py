"""What is asked of a build, and what does it tell when it fails, before and behind any engine?"""

from __future__ import annotations

from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.core import dockerfile, images
from codomyrmex_containerization.models.image import BuildEvent, BuildSecret

TEXT = 'FROM base AS first\nENV A=1\n\n# why\nRUN echo one \\\n  && false\nRUN ["x", "y"]\nCOPY --chown=1 a  b\n'


def book(*events: BuildEvent) -> images._Book:
    made = images._Book(dockerfile.parse(TEXT))
    for event in events:
        made.note(event)
    return made


def failure(*events: BuildEvent) -> errors.BuildFailed:
    return book(*events).error(images.BuildRequest("x:1", Path()))


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("FROM base AS first", 1),
        ("ENV A=1", 2),
        ("RUN echo one   && false", 5),
        ("RUN echo one && false", 5),
        ('RUN ["x", "y"]', 7),
        ("COPY --chown=1 a b", 8),
        ("RUN something else", None),
    ],
)
def test_instruction_is_found_as_the_builders_show_it(step: str, line: int | None) -> None:
    error = failure(
        BuildEvent("step", text=step, number=1, total=5), BuildEvent("error", text="it failed", exit_code=1)
    )
    assert error.details["line"] == line
    assert error.details["instruction"] == step


def test_output_of_other_steps_is_not_the_failing_ones() -> None:
    error = failure(
        BuildEvent("step", text="ENV A=1", number=1, total=2),
        BuildEvent("log", text="of the first", step="ENV A=1"),
        BuildEvent("step", text="RUN echo one && false", number=2, total=2),
        BuildEvent("log", text="of the second", step="RUN echo one && false"),
        BuildEvent("error", text="exit code: 1", exit_code=1, step="RUN echo one && false"),
    )
    assert "of the second" in error.message
    assert "of the first" not in error.message


def test_long_output_is_bounded_to_its_end() -> None:
    made = book(*(BuildEvent("log", text=f"line {number}") for number in range(10_000)))
    assert made.tail()[-1] == "line 9999"
    assert len(made.tail()) == images.LOG_LINES
    error = failure(
        BuildEvent("step", text="ENV A=1", number=1, total=1),
        *(BuildEvent("log", text=f"line {number}") for number in range(1_000)),
        BuildEvent("error", text="x" * 100_000),
    )
    assert "line 999" in error.message
    assert len(error.message) < 3_000


def test_escapes_in_the_output_of_a_step_go() -> None:
    made = book(BuildEvent("log", text="\x1b[31mred\x1b[0m \x07"))
    assert made.tail() == ["red "]


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("COPY failed: file not found in build context", "context"),
        ("pull access denied for x", "base image"),
        ("dial tcp: lookup x: no such host", "base image"),
        ("anything", "mend"),
    ],
)
def test_next_step_fits_the_reason(reason: str, word: str) -> None:
    assert word in failure(BuildEvent("error", text=reason)).hint


def test_line_that_the_builders_own_parser_names_is_the_line() -> None:
    error = failure(BuildEvent("error", text="failed: dockerfile parse error line 12: unknown instruction: X"))
    assert error.details["line"] == 12


def test_our_own_label_is_no_step() -> None:
    made = book(
        BuildEvent("step", text="ENV A=1", number=1, total=1),
        BuildEvent("step", text="LABEL codomyrmex.containerization.host=x", number=2, total=2),
        BuildEvent("cached"),
    )
    assert made.steps == 1
    assert made.cached == 0


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("env:TOKEN", BuildSecret("s", env="TOKEN")),
        ("file:/a/b", BuildSecret("s", path=Path("/a/b"))),
        ("/a/b", BuildSecret("s", path=Path("/a/b"))),
    ],
)
def test_secret_is_read(source: str, expected: BuildSecret) -> None:
    assert images.secrets({"s": source}) == (expected,)


@pytest.mark.parametrize(
    ("id", "source"),
    [
        ("s", ""),
        ("s", "env:"),
        ("s", "env:a b"),
        ("s", "file:"),
        ("s", "a,src=/etc/shadow"),
        ("a,b", "x"),
        ("", "x"),
        ("-s", "x"),
    ],
)
def test_secret_that_could_be_read_as_more_than_one_option_is_refused(id: str, source: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        images.secrets({id: source})


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm64/v8", "wasi/wasm"])
def test_platform_is_read(platform: str) -> None:
    assert images.platforms([platform]) == (platform,)


@pytest.mark.parametrize(
    "platform", ["", "linux", "linux/", "Linux/amd64", "-x/y", "linux/amd64,linux/arm64", "a/b/c/d", "a/b\n"]
)
def test_text_that_is_no_platform_is_refused(platform: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        images.platforms([platform])
