"""What is every answer able to do? Show itself as compact text, and make itself shorter without lying."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Keep = Literal["first", "last", "both"]


class Row(BaseModel):
    """A part of an answer."""

    # Most of the answers that are imported are never given by this process: validators are built when they are.
    model_config = ConfigDict(frozen=True, defer_build=True)


class Answer(Row):
    """Base of all answers. `cuttable` names the fields that may be shortened and which of their ends is kept."""

    cuttable: ClassVar[Mapping[str, Keep]] = {}

    status: Literal["success"] = "success"
    truncated: str | None = Field(None, description="What was cut and how to get the rest")

    @abstractmethod
    def text(self) -> str:
        """Return the answer as a model or a person reads it."""

    def cut(self, field: str, keep: int) -> Self:
        """Return a copy whose field keeps `keep` characters or rows, with `truncated` saying so."""
        value = getattr(self, field)
        shorter = _shortened(value, keep, self.cuttable[field])
        return self.model_copy(update={field: shorter, "truncated": self.cut_note(field, keep, len(value))})

    def cut_note(self, field: str, kept: int, total: int) -> str:
        """Say what was cut; answers that know the next call say that too."""
        return f"{field}: {kept:,} of {total:,} shown"


def _shortened(value: str | Sequence[object], keep: int, which: Keep) -> str | list[object]:
    if isinstance(value, str):
        return _shortened_text(value, keep, which)
    match which:
        case "first":
            return list(value[:keep])
        case "last":
            return list(value[len(value) - keep :])
        case "both":
            return [*value[: keep // 3], *value[len(value) - (keep - keep // 3) :]]


def _shortened_text(value: str, keep: int, which: Keep) -> str:
    left_out = f"[... {len(value) - keep:,} characters left out ...]"
    match which:
        case "first":
            return f"{value[:keep]}\n{left_out}"
        case "last":
            return f"{left_out}\n{value[len(value) - keep :]}"
        case "both":
            return f"{value[: keep // 3]}\n{left_out}\n{value[len(value) - (keep - keep // 3) :]}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as columns parted by two blanks; columns that are empty in every row are left out."""
    used = [index for index in range(len(header)) if any(row[index] not in ("", "-") for row in rows)]
    widths = {index: max(len(header[index]), *(len(row[index]) for row in rows)) for index in used}
    lines = [[header[index] for index in used], *([row[index] for index in used] for row in rows)]
    return "\n".join(
        "  ".join(cell.ljust(widths[index]) for cell, index in zip(line, used, strict=True)).rstrip() for line in lines
    )
