"""Is a log cut down to what was asked for, with secrets out and counts true, whatever the engine sends?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization import redact
from codomyrmex_containerization.core import containers
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import ContainerRow, OutputFrame

START = datetime(2026, 1, 1, tzinfo=UTC)


def reader(**wanted: Any) -> containers._LogReader:
    query = base.LogQuery(since=wanted.pop("since", None))
    request = containers.LogRequest(query, **{"tail": 200, **wanted})
    return containers._LogReader(request, redact.Redactor(["Zq7kKnownSecret"]))


def frames(*lines: str) -> Iterator[OutputFrame]:
    for number, line in enumerate(lines):
        stamp = (START + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        yield OutputFrame("stdout", f"{stamp} {line}\n".encode())


def read(made: containers._LogReader, *lines: str) -> list[str]:
    for frame in frames(*lines):
        made.feed(frame)
    made.finish()
    return [line.text for line in made.page(0, exact=True).lines]


def test_last_lines_are_kept_and_all_are_counted() -> None:
    made = reader(tail=3)
    assert read(made, *(f"line {number}" for number in range(1_000))) == ["line 997", "line 998", "line 999"]
    assert (made.read, made.matched) == (1_000, 1_000)


def test_search_counts_what_it_finds_and_any_alternative_counts() -> None:
    made = reader(tail=2, grep="ONE|two|")
    assert read(made, "one", "two", "three", "Two", "four") == ["two", "Two"]
    assert made.matched == 3


@pytest.mark.parametrize("grep", ["Zq7kKnownSecret", "Zq7k", "KnownSecret", "zq7kk"])
def test_search_for_a_secret_finds_nothing(grep: str) -> None:
    made = reader(grep=grep)
    assert read(made, "x Zq7kKnownSecret y", "x") == []
    assert made.matched == 0


def test_lines_before_the_time_are_neither_shown_nor_counted_but_remembered() -> None:
    key = ["-----BEGIN PRIVATE KEY-----", "A" * 64, "B" * 64, "-----END PRIVATE KEY-----", "after"]
    made = reader(since=START + timedelta(seconds=2))
    shown = read(made, *key)
    assert shown[-1] == "after"
    assert "B" * 64 not in shown
    assert made.matched == 3


def test_waiting_lines_are_bounded_in_bytes() -> None:
    made = reader(tail=5_000)
    for frame in frames(*("x" * 60_000 for _ in range(400))):
        made.feed(frame)
        assert made._waiting_bytes < containers._MOST_WAITING_BYTES + 100_000
    made.finish()
    lines = made.page(0, exact=True).lines
    assert len(lines) == 400
    assert max(len(line.text) for line in lines) < 5_000


def test_secret_at_the_place_where_a_line_is_cut_leaves_no_part() -> None:
    for before in range(65_500, 65_600, 7):
        (shown,) = read(reader(), "y" * before + "Zq7kKnownSecret" + "z" * 100_000)
        assert "Zq7k" not in shown
    for before in (81_900, 81_910, 81_915):
        made = reader()
        line = "2026-01-01T00:00:00Z " + "y" * before + "Zq7kKnownSecret\n"
        for at in range(0, len(line), 16_384):
            made.feed(OutputFrame("stdout", line[at : at + 16_384].encode()))
        made.finish()
        assert "Zq7k" not in made.page(0, exact=True).lines[0].text


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30), max_size=30),
    st.integers(1, 9),
)
def test_any_log_gives_its_last_lines(lines: list[str], tail: int) -> None:
    made = reader(tail=tail)
    assert len(read(made, *lines)) == min(len(lines), tail)
    assert made.matched == len(lines)


# --------------------------------------------------------------------------------------------------------------- paging


def row(id: str, seconds: float) -> ContainerRow:
    created = START + timedelta(seconds=seconds)
    return ContainerRow(id, f"n{id[:4]}", "image", "running", "none", created, (), {}, "docker")


IDS = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(st.lists(st.tuples(IDS, st.integers(0, 3)), unique_by=lambda pair: pair[0][:16], max_size=20), st.integers(1, 5))
def test_keys_and_cursors_agree_on_an_order_without_gaps(pairs: list[tuple[str, int]], limit: int) -> None:
    rows = sorted((row(id, seconds) for id, seconds in pairs), key=containers._key)
    seen: list[str] = []
    after: tuple[float, str] | None = None
    while True:
        rest = [one for one in rows if after is None or containers._key(one) > containers._after(after)]
        page = rest[:limit]
        seen += [one.id for one in page]
        if len(rest) <= limit:
            break
        after = (page[-1].created.timestamp(), page[-1].id[:16])
    assert seen == [one.id for one in rows]
