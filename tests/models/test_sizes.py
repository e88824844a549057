"""How many bytes does a text mean?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization import errors
from codomyrmex_containerization.models import sizes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("64MiB", 64 << 20),
        ("2 KB", 2048),
        ("1T", 1 << 40),
        (7, 7),
        (" 8b ", 8),
    ],
)
def test_size_is_read(value: str | int, expected: int) -> None:
    assert sizes.parse(value) == expected


@pytest.mark.parametrize(
    "value", ["", "m", "-1", "0", "0.1", "1e3", "1x", "1 m m", "1,5g", "٣", 0, -5, 2**63, "9" * 400, "9" * 400 + "g"]
)
def test_text_that_is_no_positive_size_is_refused_by_its_name(value: str | int) -> None:
    with pytest.raises(errors.InvalidArgument, match="memory"):
        sizes.parse(value, name="memory")


@given(st.text(max_size=20) | st.integers())
def test_reading_a_size_never_fails_in_another_way(value: str | int) -> None:
    try:
        assert 0 < sizes.parse(value) < 2**63
    except errors.InvalidArgument:
        return


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0B"), (17, "17B"), (1023, "1023B"), (1024, "1K"), (1_500_000, "1.43M"), (5 << 40, "5T")],
)
def test_size_is_shown_shortly(size: int | None, text: str) -> None:
    assert sizes.show(size) == text
