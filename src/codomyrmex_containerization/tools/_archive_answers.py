"""What do the tools answer that make files of images and containers, or change limits?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from codomyrmex_containerization.models import sizes
from codomyrmex_containerization.tools._answer import Answer, Keep, Row


class LoadedRow(Row):
    """An image of an archive, as the engine has it now."""

    id: str
    tags: list[str]
    size_bytes: int


class ImageLoadAnswer(Answer):
    """The images that an archive held."""

    cuttable: ClassVar[Mapping[str, Keep]] = {"images": "first"}

    path: str
    images: list[LoadedRow]
    engine: str

    def text(self) -> str:
        return "\n".join(
            f"loaded {', '.join(one.tags) or '<untagged>'}: image {one.id}, {sizes.show(one.size_bytes)}"
            for one in self.images
        )


class ImageSaveAnswer(Answer):
    """An image and the file that holds it now."""

    id: str
    image: str
    path: str
    format: str
    bytes: int
    engine: str

    def text(self) -> str:
        return f"saved {self.image} (image {self.id}) to {self.path}: {self.format}, {sizes.show(self.bytes)}"


class ImageImportAnswer(Answer):
    """An image that was made of a root file system."""

    id: str
    tag: str
    size_bytes: int
    path: str
    engine: str

    def text(self) -> str:
        return f"{self.tag} is now image {self.id} ({sizes.show(self.size_bytes)}), made of {self.path}"


class ContainerExportAnswer(Answer):
    """A container and the tar of its root file system, or of all that is its own but `left_out`."""

    container: str
    path: str
    format: str
    bytes: int
    left_out: list[str] | None = None

    def text(self) -> str:
        first = f"exported {self.container} to {self.path}: {self.format}, {sizes.show(self.bytes)}"
        return "\n".join([first, *(f"not in it: {one}" for one in self.left_out or ())])


class ContainerUpdateAnswer(Answer):
    """The limits that hold now; none means that there is no such limit."""

    container: str
    memory_bytes: int | None = None
    cpus: float | None = None
    pids_limit: int | None = None

    def text(self) -> str:
        shown = {"memory": sizes.show(self.memory_bytes), "cpus": self.cpus, "pids_limit": self.pids_limit}
        known = ", ".join(f"{name} {value}" for name, value in shown.items() if value not in (None, "-"))
        return f"{self.container}: {known or 'no limits'}"
