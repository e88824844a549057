"""Do frames become bounded text and whole lines, with nothing lost, doubled or invisible?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization.core import output
from codomyrmex_containerization.models.container import OutputFrame


def captured(*pieces: bytes) -> str:
    capture = output.Capture()
    for piece in pieces:
        capture.add(piece)
    return capture.text()


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_short_output_is_whole_however_it_was_split(pieces: list[bytes]) -> None:
    assert captured(*pieces) == captured(b"".join(pieces)) == output.readable(b"".join(pieces))


@pytest.mark.parametrize("size", [1, 7, 4_096, 65_536, 1_000_000])
def test_long_output_keeps_both_ends_by_whole_lines_however_it_was_split(size: int) -> None:
    data = b"".join(b"line %d\n" % number for number in range(100_000))
    text = captured(*(data[at : at + size] for at in range(0, len(data), size)))
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 99998\nline 99999\n")
    head, _, tail = text.partition("\n[... ")
    assert head.splitlines() == [f"line {number}" for number in range(len(head.splitlines()))]
    assert all(line.startswith("line ") for line in tail.splitlines()[1:])
    assert len(text) < output.HEAD_BYTES + output.TAIL_BYTES + 100


def test_no_part_of_the_middle_is_held_in_memory() -> None:
    capture = output.Capture()
    for _ in range(1_000):
        capture.add(b"x" * 65_536)
    assert capture.total_bytes == 65_536_000
    assert len(capture.text()) < 200_000


def frame(data: bytes, stream: str = "stdout") -> OutputFrame:
    return OutputFrame(stream, data)  # type: ignore[arg-type]  # one of the two streams


def assembled(*frames: OutputFrame) -> list[tuple[str, str, bytes]]:
    assembler = output.LineAssembler()
    lines = [line for one in frames for line in assembler.feed(one)]
    lines += assembler.flush()
    return [(line.stream, line.timestamp, line.data) for line in lines]


TIME = b"2026-11-21T13:01:41.857666320Z "


def test_line_is_joined_from_pieces_that_carry_a_time_each() -> None:
    assert assembled(frame(TIME + b"a"), frame(TIME + b"b"), frame(TIME + b"c\n")) == [
        ("stdout", TIME[:-1].decode(), b"abc")
    ]


def test_streams_are_joined_each_for_itself() -> None:
    lines = assembled(frame(TIME + b"a"), frame(TIME + b"x\n", "stderr"), frame(TIME + b"b\n"))
    assert [(stream, data) for stream, _, data in lines] == [("stderr", b"x"), ("stdout", b"ab")]


def test_many_lines_in_one_frame_are_apart_and_the_last_needs_no_end() -> None:
    lines = assembled(frame(TIME + b"a\n" + TIME + b"\n" + TIME + b"b\r\n" + TIME + b"c"))
    assert [data for _, _, data in lines] == [b"a", b"", b"b", b"c"]


def test_line_without_a_time_is_a_line() -> None:
    assert assembled(frame(b"2026 is no time\n"), frame(b"\n")) == [
        ("stdout", "", b"2026 is no time"),
        ("stdout", "", b""),
    ]


def test_very_long_line_is_bounded() -> None:
    ((_, _, data),) = assembled(*(frame(TIME + b"x" * 16_384) for _ in range(1_000)), frame(TIME + b"\n"))
    assert output.LONGEST_LINE_BYTES < len(data) < 2 * output.LONGEST_LINE_BYTES


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=30)), max_size=20))
def test_no_byte_of_any_frames_is_lost(frames: list[tuple[str, bytes]]) -> None:
    lines = assembled(*(frame(data.replace(b"\r", b""), stream) for stream, data in frames))
    for stream in ("stdout", "stderr"):
        whole = b"".join(data.replace(b"\r", b"") for name, data in frames if name == stream)
        joined = b"".join(data for name, _, data in lines if name == stream)
        assert joined.replace(b"\n", b"") == whole.replace(b"\n", b"")


@given(st.binary(max_size=200))
def test_readable_text_holds_no_control_characters_and_any_bytes_can_be_read(data: bytes) -> None:
    assert all(char.isprintable() or char in "\n\t " or ord(char) > 127 for char in output.readable(data))
