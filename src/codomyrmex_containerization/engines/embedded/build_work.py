"""What does a build work with: the store, mounted layers, its unpacked context, its cache?"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import build_archive, build_scratch, objects
from codomyrmex_containerization.engines.embedded.build_files import Tree
from codomyrmex_containerization.engines.embedded.build_steps import Stage
from codomyrmex_containerization.engines.embedded.build_words import Failed
from codomyrmex_containerization.models.container import Mount, Stream
from codomyrmex_containerization.models.image import BuildSpec

if TYPE_CHECKING:
    from codomyrmex_containerization.engines.embedded import content

_CACHE_VERSION: Final = 1
_LARGEST_DOCKERFILE_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 20


class Steps(Protocol):
    """What runs and mounts for a build. The layers come with the lowest first."""

    def overlay(self, layers: Sequence[Path], upper: Path) -> AbstractContextManager[Path]:
        """Show the layers with `upper` above them as one tree, to be read and written.

        What is written must be a plain layer: neither redirected folders nor files without their content.
        """

    def run(
        self,
        *,
        layers: Sequence[Path],
        upper: Path,
        config: objects.ImageConfig,
        command: Sequence[str],
        env: Mapping[str, str],
        mounts: Sequence[Mount],
        network: str,
        output: Callable[[Stream, bytes], None],
    ) -> int:
        """Run a command in a container whose root is the layers with `upper` above them; return its exit code.

        `env` is all of its environment but for HOME; user and working folder are those of `config`; `network` is none or default;
        a bind mount's source is a path of this host. `output` may block. Raises CommandFailed when the program cannot be started.
        """

    def end(self) -> None:
        """Kill what runs, and let nothing else begin; called from another thread, and perhaps again and again."""


class Work:
    """The store and the folders of one build. `look` raises when the build is to end."""

    def __init__(
        self,
        store: content.ContentStore,
        steps: Steps,
        spec: BuildSpec,
        folder: Path,
        *,
        context: Callable[[], Iterator[bytes]],
        dockerfile_name: str,
        look: Callable[[], None],
    ) -> None:
        self.store = store
        self.steps = steps
        self.spec = spec
        self.look = look
        self._folder = folder
        self._context = context
        self._dockerfile_name = dockerfile_name
        self._kept: Path | None = None
        self._mark = ""
        self._unpacked: Path | None = None
        self._is_bare = False
        self._made = 0

    # --- the context -------------------------------------------------------------------------------------------------

    def dockerfile(self) -> str:
        """Return the Dockerfile: the text that was judged, where there is one, is what is built. Raises Failed, OSError."""
        if self.spec.dockerfile_text:
            return self.spec.dockerfile_text
        with Tree(self._whole_context()) as tree:
            data = tree.read(self._dockerfile_name, most_bytes=_LARGEST_DOCKERFILE_BYTES)
        if data is None:
            raise Failed(f"the build context holds no {self._dockerfile_name}")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Failed("the Dockerfile is no UTF-8 text") from None

    def context(self) -> Path:
        """Return the build context as steps see it. Raises Failed, OSError, and what reading it raises."""
        folder = self._whole_context()
        if not self._is_bare:
            with Tree(folder) as tree:
                build_archive.drop_hidden(tree, self._dockerfile_name)
            self._is_bare = True
        return folder

    def context_mark(self) -> str:
        """Return what the context holds as a digest, without unpacking it. Raises as `context` does."""
        if not self._mark:
            self._kept = self.fresh("sent") / "context.tar"
            with self._kept.open("xb") as file:
                self._mark = build_archive.keep_context(self._context(), file, look=self.look)
        return f"{self._mark} {self._dockerfile_name}"

    def _whole_context(self) -> Path:
        """Unpack the context when it is first wanted."""
        if self._unpacked is None:
            folder = self.fresh("context")
            with Tree(folder) as tree, ExitStack() as stack:
                pieces = self._context() if self._kept is None else _pieces(stack.enter_context(self._kept.open("rb")))
                build_archive.unpack_context(pieces, tree, look=self.look)
            folder.chmod(0o755)
            self._unpacked = folder
        return self._unpacked

    # --- layers ------------------------------------------------------------------------------------------------------

    def layers(self, image: objects.Image | None) -> tuple[Path, ...]:
        """Return an image's layers, the lowest first."""
        folders = self.store.layer_folders(image) if image is not None else ()
        # Equal layers are one folder, and an overlay takes none twice: the upper one hides all of the lower one.
        return tuple(reversed(dict.fromkeys(reversed(folders))))

    def fresh(self, what: str) -> Path:
        """Return a new folder that goes with the build."""
        self._made += 1
        folder = self._folder / f"{what}-{self._made}"
        folder.mkdir(mode=0o700)
        return folder

    def upper(self, image: objects.Image | None) -> Path:
        """Return an empty folder to write a layer into: as the root below it, since it is the root that a container sees."""
        upper = self.fresh("step") / "upper"
        upper.mkdir()
        layers = self.layers(image)
        mode, uid, gid = _who(layers[-1]) if layers else (0o755, os.geteuid(), os.getegid())
        os.chown(upper, uid, gid)
        upper.chmod(mode)
        return upper

    def merged(self, layers: Sequence[Path], stack: ExitStack, upper: Path | None = None) -> Path:
        """Show layers as one tree until the stack is left; without `upper` what is written is lost."""
        if upper is None:
            upper = self.fresh("look") / "upper"
            upper.mkdir()
        return stack.enter_context(self.steps.overlay(layers, upper)) if layers else upper

    def tree(self, layers: Sequence[Path], stack: ExitStack, upper: Path | None = None) -> Tree:
        """Open layers as one tree until the stack is left."""
        return stack.enter_context(Tree(self.merged(layers, stack, upper)))

    # --- the cache ---------------------------------------------------------------------------------------------------

    def key(self, stage: Stage, *parts: object) -> str:
        """Return what a step is remembered under: the image it goes on from, and all that decides what it does."""
        text = json.dumps([_CACHE_VERSION, stage.id, *parts], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def reuse(self, stage: Stage, key: str) -> bool:
        """Go on from the image that was made before from the same; False when there is none, or none is wanted."""
        found = None if self.spec.no_cache else self.store.cached(key)
        if found is None:
            return False
        stage.image, stage.config = found, found.config
        return True

    def commit(self, stage: Stage, key: str, instruction: str, *, upper: Path | None = None) -> None:
        """Make an image of the stage as it is now. Raises Failed for what cannot be in a layer, and what the store raises."""
        self.look()
        written = upper if upper is not None and self._is_written(upper, stage.image) else None
        try:
            stage.image = self.store.commit(
                parent=stage.image, upper=written, config=stage.config, instruction=instruction, move=True
            )
        except errors.InvalidArgument as error:
            raise Failed(error.message) from error
        stage.config = stage.image.config
        self.store.remember(key, stage.image)
        if upper is not None:
            build_scratch.remove_tree(upper.parent)

    def _is_written(self, upper: Path, image: objects.Image | None) -> bool:
        """Say whether a step left anything: a file, or another owner or mode of the root."""
        layers = self.layers(image)
        return not layers or any(upper.iterdir()) or _who(upper) != _who(layers[-1])


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def plain(config: objects.ImageConfig) -> dict[str, object]:
    """Return a configuration as a cache's key holds it."""
    return {**asdict(replace(config, labels={})), "labels": dict(config.labels)}


def _who(folder: Path) -> tuple[int, int, int]:
    status = folder.stat()
    return status.st_mode & 0o7777, status.st_uid, status.st_gid
