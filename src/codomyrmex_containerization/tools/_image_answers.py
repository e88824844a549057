"""What do the image tools answer?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

from pydantic import Field, PrivateAttr

from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.tools._answer import Answer, Keep, Row, table


class ImageListRow(Row):
    """An image of a list."""

    id: str
    tags: list[str]
    size_bytes: int
    created: str
    platform: str | None = None
    used_by: list[str] = []
    engine: str


class ImageListAnswer(Answer):
    """A page of images, newest first."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"images": "first"}

    images: list[ImageListRow]
    total: int
    next_cursor: str | None = Field(None, description="Pass as cursor for the next page")
    failed: list[str] = []

    _cursor_behind: Callable[[int], str] | None = PrivateAttr(default=None)

    def with_cursors(self, behind: Callable[[int], str]) -> Self:
        """Remember how to make the cursor behind a row (its index), for when rows are cut."""
        self._cursor_behind = behind
        return self

    def text(self) -> str:
        if not self.images:
            return "\n".join(["no images" if self.total == 0 else "no more images", *self.failed])
        header = ("ID", "TAGS", "SIZE", "CREATED", "PLATFORM", "USED BY", "ENGINE")
        engines = {row.engine for row in self.images}
        lines = [table(header, [_cells(row, show_engine=len(engines) > 1) for row in self.images])]
        if self.next_cursor is not None:
            lines.append(
                f"{len(self.images)} of {self.total} shown; next: the same arguments with cursor={self.next_cursor!r}"
            )
        return "\n".join([*lines, *self.failed])

    def cut(self, field: str, keep: int) -> Self:
        keep = max(keep, 1)
        shorter = super().cut(field, keep)
        if self._cursor_behind is None:
            return shorter
        return shorter.model_copy(update={"next_cursor": self._cursor_behind(keep - 1)})


def _cells(row: ImageListRow, *, show_engine: bool) -> tuple[str, ...]:
    return (
        row.id,
        ",".join(row.tags) or "<untagged>",
        sizes.show(row.size_bytes),
        row.created,
        row.platform or "",
        ",".join(row.used_by),
        row.engine if show_engine else "",
    )


class LayerRow(Row):
    """A layer and the instruction that made it."""

    size_bytes: int
    instruction: str


class ImageInspectAnswer(Answer):
    """An image: configuration, layers (largest first), and what could shrink it."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"layers": "first", "env": "first"}

    id: str
    image_name: str
    tags: list[str]
    platform: str
    created: str | None = None
    user: str
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    workdir: str | None = None
    env: list[str] = []
    exposed_ports: list[str] = []
    volumes: list[str] = []
    labels: dict[str, str] = {}
    healthcheck: str | None = None
    total_size_bytes: int
    size_mb: float
    layers_count: int
    average_layer_size_mb: float
    largest_layer_mb: float
    size_efficiency: float
    optimization_score: int
    layers: list[LayerRow]
    suggestions: list[str] = []

    def text(self) -> str:
        skipped = {"status", "truncated", "layers", "suggestions"}
        shown = self.model_dump(mode="json", exclude_none=True, exclude=skipped)
        lines = [f"{key}: {_shown(value)}" for key, value in shown.items() if value not in ("", [], {})]
        lines += [f"layer {sizes.show(layer.size_bytes):>6}  {layer.instruction}" for layer in self.layers]
        lines += [f"could shrink: {one}" for one in self.suggestions]
        return "\n".join(lines)

    def cut_note(self, field: str, kept: int, total: int) -> str:
        return (
            f"the {kept} largest of {total} layers are shown"
            if field == "layers"
            else super().cut_note(field, kept, total)
        )


class ImageTagAnswer(Answer):
    """An image and its new name."""

    id: str
    source: str
    target: str

    def text(self) -> str:
        return f"{self.target} is now image {self.id}"


class ImageRemoveAnswer(Answer):
    """What was removed."""

    id: str
    removed: list[str]

    def text(self) -> str:
        return f"removed {'; '.join(self.removed)}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        return " ".join(str(one) for one in value)
    return str(value)
