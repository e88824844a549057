"""Does every answer stay within its size, say what was cut, and name a call that really gives the rest?"""

from __future__ import annotations

import json
import re
import shlex
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization.dispatch import budget
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.tools import _core_answers as answers
from codomyrmex_containerization.tools._answer import Answer, Keep
from tests.backends import DockerCommandLine
from tests.dispatch import harness

LIMIT = 20_000


def assert_fits(outcome: Any, limit: int = LIMIT) -> None:
    assert outcome.error is None, outcome.text
    assert len(outcome.text) <= limit
    assert len(json.dumps(outcome.structured, ensure_ascii=False, separators=(",", ":"))) <= limit


# ----------------------------------------------------------------------------------------------------------------- pure


class Sample(Answer):
    cuttable: ClassVar[Mapping[str, Keep]] = {"first": "first", "last": "last", "both": "both"}

    first: list[str] = []
    last: list[str] = []
    both: str = ""
    fixed: str = ""

    def text(self) -> str:
        return "\n".join([self.fixed, *self.first, self.both, *self.last])


TEXT = st.text(max_size=300) | st.builds(lambda one, count: one * count, st.text(max_size=20), st.integers(0, 400))


@given(
    answer=st.builds(
        Sample, first=st.lists(TEXT, max_size=40), last=st.lists(TEXT, max_size=40), both=TEXT, fixed=TEXT
    ),
    limit=st.integers(1_000, 5_000),
)
def test_any_answer_is_within_its_limit_in_both_forms_and_says_when_it_was_cut(answer: Sample, limit: int) -> None:
    fitted, text = budget.fit(answer, limit)
    assert len(text) <= limit
    assert len(budget.structured(fitted)) <= limit
    if fitted != answer:
        assert fitted.truncated
    elif text != answer.text():
        assert "cut" in text


def test_answer_that_fits_is_left_as_it_is() -> None:
    answer = Sample(first=["a"], both="b" * 100)
    assert budget.fit(answer, 1_000) == (answer, answer.text())


def test_end_of_what_is_kept_is_the_one_that_matters() -> None:
    rows = [f"row {number}" for number in range(1_000)]
    first, _ = budget.fit(Sample(first=rows), 1_000)
    last, _ = budget.fit(Sample(last=rows), 1_000)
    both, _ = budget.fit(Sample(both="\n".join(rows)), 1_000)
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert isinstance(both, Sample)
    assert first.first[0] == "row 0"
    assert last.last[-1] == "row 999"
    assert both.both.startswith("row 0")
    assert both.both.endswith("row 999")


@pytest.mark.parametrize("rows", [1, 50, 300, 500])
def test_cursor_of_a_list_that_was_cut_stands_behind_its_last_row(rows: int) -> None:
    keys = [(float(-number), f"{number:064x}") for number in range(rows)]
    made = [
        answers.ContainerListRow(
            id=f"{number:012x}",
            name=f"container-{'x' * 40}-{number}",
            image="registry.example/some/long/image:with-a-long-tag",
            status="running",
            created="2026-01-01T00:00:00Z",
            ports=[f"127.0.0.1:{8000 + number}->80/tcp"],
            engine="docker",
        )
        for number in range(rows)
    ]
    answer = answers.ContainerListAnswer(containers=made, total=rows).with_cursors(
        lambda index: cursors.encode("container_list", {}, keys[index])
    )
    fitted, text = budget.fit(answer, LIMIT)
    assert isinstance(fitted, answers.ContainerListAnswer)
    assert len(text) <= LIMIT
    assert len(budget.structured(fitted)) <= LIMIT
    kept = len(fitted.containers)
    if kept == rows:
        assert fitted.next_cursor is None
    else:
        assert fitted.next_cursor is not None
        assert fitted.next_cursor in text
        assert cursors.decode(fitted.next_cursor, "container_list", {})[0] == keys[kept - 1][0]


# ------------------------------------------------------------------------------------------------------- a real engine


async def test_huge_output_of_a_run_fits_and_keeps_both_ends(busybox_image: str) -> None:
    script = "echo begin; yes output | head -n 300000; echo end; yes error | head -n 300000 >&2"
    async with harness.opened() as house:
        outcome = await house.call("container_run", image=busybox_image, command=["sh", "-c", script])
        assert_fits(outcome)
        assert outcome.structured is not None
        assert outcome.structured["stdout"].startswith("begin\n")
        assert outcome.structured["stdout"].endswith("end\n")
        assert "keep=true" in outcome.structured["truncated"]
        assert "container_logs" in outcome.text


async def test_error_of_any_length_fits(labelled_image: str) -> None:
    text = f"FROM {labelled_image}\nRUN yes 'a long line of output' | head -n 5000; exit 9\n"
    async with harness.opened(buildx="off") as house:
        outcome = await house.fails("build_failed", "container_build", image_name="localhost/x", dockerfile_text=text)
        assert len(outcome.text) <= LIMIT
        assert len(json.dumps(outcome.error_data)) <= LIMIT


@pytest.fixture(scope="module")
def talker(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[str]:
    """A container that has said 5,000 numbered lines and ended."""
    name = f"cxc-test-{uuid.uuid4().hex[:8]}"
    script = "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i of a log that is long; done"
    docker_cli(["run", "--name", name, "--label", session_label, busybox_image, "sh", "-c", script])
    yield name
    docker_cli(["rm", "--force", name])


def numbers(answer: dict[str, Any]) -> list[int]:
    return [int(line["text"].split()[1]) for line in answer["lines"]]


async def test_log_that_is_too_long_fits_says_how_many_lines_there_are_and_how_to_go_on(talker: str) -> None:
    async with harness.opened() as house:
        outcome = await house.call("container_logs", container=talker, tail=5000)
        assert_fits(outcome)
        assert outcome.structured is not None
        assert numbers(outcome.structured)[-1] == 5000
        assert outcome.structured["total"] == 5000
        assert "5,000 lines" in outcome.structured["truncated"]


async def test_call_that_a_cut_log_names_gives_the_lines_before(talker: str) -> None:
    seen: list[int] = []
    async with harness.opened() as house:
        arguments: dict[str, Any] = {"container": talker, "tail": 1000}
        for _ in range(40):
            answer = await house.ok("container_logs", arguments)
            found = numbers(answer)
            assert found == list(range(found[0], found[-1] + 1))
            seen = [number for number in found if not seen or number < seen[0]] + seen
            until = re.search(r"until=(\S+)", answer.get("truncated", ""))
            if until is None:
                break
            arguments["until"] = shlex.split(until[1].rstrip(","))[0]
    assert seen == list(range(1, 5001))


@pytest.mark.parametrize("limit", [1_000, 5_000, 100_000])
async def test_setting_is_the_limit(talker: str, limit: int) -> None:
    async with harness.opened(answer_characters=limit) as house:
        outcome = await house.call("container_logs", container=talker, tail=5000)
        assert_fits(outcome, limit)
        assert len(outcome.text) > limit // 4


# ----------------------------------------------------------------------------------------------------------- page by page


@pytest.fixture
def many(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[list[str]]:
    """Nine containers with a label of their own, newest last."""
    mark = f"page={uuid.uuid4().hex[:8]}"
    made = [_create(docker_cli, busybox_image, session_label, mark) for _ in range(9)]
    yield [mark, *made]
    left = docker_cli(["ps", "--all", "--quiet", "--filter", f"label={mark}"]).stdout.split()
    docker_cli(["rm", "--force", *left])


def _create(docker_cli: DockerCommandLine, image: str, session_label: str, mark: str) -> str:
    return docker_cli(["create", "--label", mark, "--label", session_label, image, "true"]).stdout.strip()


async def test_paging_shows_each_container_once_while_others_come_and_go(
    many: list[str], docker_cli: DockerCommandLine, busybox_image: str, session_label: str
) -> None:
    mark, *made = many
    seen: list[str] = []
    async with harness.opened() as house:
        given: dict[str, Any] = {"all": True, "label": mark, "limit": 2}
        answer = await house.ok("container_list", given)
        while True:
            seen += [row["id"] for row in answer["containers"]]
            if "next_cursor" not in answer:
                break
            _create(docker_cli, busybox_image, session_label, mark)  # one that is newer
            docker_cli(["rm", next(id for id in made if id[:12] == seen[0])], check=False)  # one that was shown
            answer = await house.ok("container_list", given, cursor=answer["next_cursor"])
    assert {id[:12] for id in made} <= set(seen)
    assert len(seen) == len(set(seen))


async def test_cursor_of_other_arguments_or_another_tool_is_refused(many: list[str]) -> None:
    async with harness.opened() as house:
        given: dict[str, Any] = {"all": True, "label": many[0], "limit": 2}
        cursor = (await house.ok("container_list", given))["next_cursor"]
        await house.ok("container_list", {**given, "limit": 5}, cursor=cursor)
        for other in ({"all": True, "limit": 2}, {**given, "all": False}, {**given, "name": "x"}):
            await house.fails("cursor_mismatch", "container_list", other, cursor=cursor)
        await house.fails("cursor_mismatch", "image_list", cursor=cursor)
        for broken in ("", "x", cursor[:-3], "=" * 40, "bnVsbA", "WzEsMl0"):
            await house.fails("cursor_mismatch", "container_list", given, cursor=broken)
