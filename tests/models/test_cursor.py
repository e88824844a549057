"""Does a cursor hold what it is for, and nothing else accept it?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization import errors
from codomyrmex_containerization.models import cursor as cursors

KEY = (1_795_266_057.0, "f" * 64)


def test_cursor_comes_back_with_the_beginning_of_the_id() -> None:
    assert cursors.decode(cursors.encode("t", {"a": 1}, KEY), "t", {"a": 1}) == (KEY[0], "f" * 16)


def test_limit_and_cursor_may_change_between_pages() -> None:
    cursor = cursors.encode("t", {"a": 1, "limit": 2}, KEY)
    assert cursors.decode(cursor, "t", {"a": 1, "limit": 9, "cursor": cursor})


@pytest.mark.parametrize(
    ("tool", "arguments"), [("u", {"a": 1}), ("t", {"a": 2}), ("t", {}), ("t", {"a": 1, "b": None})]
)
def test_cursor_of_another_call_is_refused(tool: str, arguments: dict[str, object]) -> None:
    with pytest.raises(errors.CursorMismatch):
        cursors.decode(cursors.encode("t", {"a": 1}, KEY), tool, arguments)


@given(st.text(max_size=80))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(errors.CursorMismatch):
        cursors.decode(text, "t", {})


@pytest.mark.parametrize(
    "text", ["W10", "bnVsbA", "WyJhIiwibmFuIiwieCJd", "WyJhIixudWxsLCJ4Il0", "WzEsMiwzLDRd", "e30", "[" * 10_000]
)
def test_json_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(errors.CursorMismatch):
        cursors.decode(text, "t", {})
