"""How is an image built, and what does a failed build tell its author?"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.core import build_context, dockerfile, output
from codomyrmex_containerization.core.containers import Progress
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.image import BuilderName, BuildEvent, BuildSecret, BuildSpec

LOG_LINES = 400
STEP_LINES = 40
_READ_SECONDS = 60.0
_PROBE_SECONDS = 2.0
_LARGEST_DOCKERFILE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What is asked for, before files are looked at.

    `dockerfile` names a folder (it is the context) or a file; with `text` it is not read. `context` None: the Dockerfile's folder, or an
    empty context when there is only `text`.
    """

    reference: str
    dockerfile: Path
    text: str | None = None
    context: Path | None = None
    target: str | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    secrets: tuple[BuildSecret, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build made."""

    reference: str
    image_id: str
    size_bytes: int
    layers: int
    seconds: float
    builder: BuilderName
    steps: int
    cached_steps: int
    warnings: tuple[str, ...]
    log: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Prepared:
    spec: BuildSpec
    content: dockerfile.Dockerfile
    context: Callable[[], Iterator[bytes]]
    dockerfile_name: str


async def build(
    engine: guard.GuardedEngine, request: BuildRequest, *, timeout_seconds: float, progress: Progress
) -> BuildResult:
    """Build an image.

    Raises BuildFailed naming the instruction, its line and the last output; InvalidArgument for a bad Dockerfile or path; Refused;
    DeadlineExceeded (the engine has stopped the build then).
    """
    prepared = await threads.run(
        lambda: _prepare(engine, request), deadline_seconds=_READ_SECONDS, what="reading the Dockerfile"
    )
    began = time.monotonic()
    builder = engine.builder(prepared.spec)
    layers = _HalfBuilt(engine, prepared.content, is_kept=builder == "classic")
    # A step may print what its base image holds: looking at that teaches the redactor.
    for base_image in prepared.content.base_images:
        with suppress(errors.ContainerizationError):
            layers.begin((await engine.inspect_image(base_image)).id)
    book = _Book(prepared.content)
    try:
        with anyio.fail_after(timeout_seconds):
            async with engine.build_image(
                prepared.spec, context=prepared.context, dockerfile_name=prepared.dockerfile_name
            ) as events:
                async for event in events:
                    layers.note(event, is_new=book.is_new_layer)
                    book.note(event)
                    if event.kind == "step" and not _is_our_label(event):
                        await progress(
                            float(event.number or 0),
                            float(event.total or 0) or None,
                            f"step {event.number}/{event.total}: {event.text}",
                        )
    except TimeoutError as error:
        raise errors.DeadlineExceeded(
            f"The build of {request.reference} took longer than {timeout_seconds:g} seconds and was stopped{book.where()}.",
            hint="raise timeout_seconds; finished steps are in the engine's cache",
            details={"log": book.tail()},
        ) from error
    layers.finished()
    if book.failure is not None:
        await _refuse_blame(engine, request, book)
        raise book.error(request)
    return await _result(engine, request, book, builder, time.monotonic() - began)


async def _refuse_blame(engine: guard.GuardedEngine, request: BuildRequest, book: _Book) -> None:
    """Raise EngineUnavailable when the step failed because the engine is being stopped, which ends the step's process."""
    try:
        await engine.info(deadline_seconds=_PROBE_SECONDS)
    except errors.EngineUnavailable as error:
        raise errors.EngineUnavailable(
            f"{engine.name} was stopped during the build of {request.reference}{book.where()}.",
            hint="see container_runtime_status, then build again; finished steps are in the engine's cache",
        ) from error
    except errors.ContainerizationError:
        return


async def _result(
    engine: guard.GuardedEngine, request: BuildRequest, book: _Book, builder: BuilderName, seconds: float
) -> BuildResult:
    if not book.image:
        raise errors.EngineUnavailable(
            f"{engine.name} ended the build of {request.reference} without an image{book.where()}: it was stopped or restarted meanwhile.",
            hint="see container_runtime_status, then build again; finished steps are in the engine's cache",
        )
    image = await engine.inspect_image(request.reference)
    engine.image_built(image.id)
    return BuildResult(
        reference=request.reference,
        image_id=image.id,
        size_bytes=image.size_bytes,
        layers=image.layers,
        seconds=seconds,
        builder=builder,
        steps=book.steps,
        cached_steps=book.cached,
        warnings=tuple(book.warnings),
        log=tuple(book.tail()),
    )


def _prepare(engine: guard.GuardedEngine, request: BuildRequest) -> _Prepared:
    context, file = _places(engine, request)
    text = request.text if request.text is not None else _read(file)
    content = dockerfile.parse(text)
    if context is None and content.uses_context():
        raise errors.InvalidArgument(
            "The Dockerfile copies files from its build context, and dockerfile_text was given without one.",
            hint="pass context='path/of/the/folder'",
        )
    data = text.encode()
    inside = file is not None and context is not None and file.is_relative_to(context)
    name = (
        file.relative_to(context).as_posix()
        if inside and file is not None and context is not None
        else build_context.fresh_name(data)
    )
    ignore = build_context.read_ignore(context, file) if context is not None else build_context.IgnoreRules()
    spec = BuildSpec(
        tags=(request.reference,),
        context=context,
        dockerfile=file,
        dockerfile_text=text,
        target=request.target,
        build_args=request.build_args,
        labels=request.labels,
        platforms=request.platforms,
        no_cache=request.no_cache,
        pull=request.pull,
        secrets=tuple(_resolved(engine, secret) for secret in request.secrets),
        # BuildKit takes its frontend from this argument before it looks at the Dockerfile.
        frontend=request.build_args.get("BUILDKIT_SYNTAX") or content.frontend,
        entitlements=content.entitlements,
        step_mounts=tuple(mount for one in content.instructions for mount in one.flag_values("mount")),
        images=(*content.base_images, *content.copied_images),
    )
    return _Prepared(
        spec,
        content,
        lambda: build_context.stream(context, ignore=ignore, dockerfile_text=data, dockerfile_name=name),
        name,
    )


def _places(engine: guard.GuardedEngine, request: BuildRequest) -> tuple[Path | None, Path | None]:
    """Return the context folder and the Dockerfile, resolved and judged; either may be None."""
    context = engine.resolve_path(request.context, purpose="a build context") if request.context is not None else None
    if context is not None and not context.is_dir():
        raise errors.InvalidArgument(f"The build context {context} is no folder.", hint="name a folder")
    if request.text is not None:
        return context, None
    named = request.dockerfile
    if context is not None and not named.is_absolute():
        # As docker does it: a Dockerfile is named from here, or else from the context.
        beside = context / named
        named = beside if beside.exists() and not named.is_file() else named
    found = engine.resolve_path(named, purpose="a Dockerfile")
    if found.is_dir():
        context = context or engine.resolve_path(found, purpose="a build context")
        found = engine.resolve_path(_in_folder(found), purpose="a Dockerfile")
    return context or engine.resolve_path(found.parent, purpose="a build context"), found


def _in_folder(folder: Path) -> Path:
    for name in ("Dockerfile", "dockerfile", "Containerfile"):
        if (folder / name).is_file():
            return folder / name
    raise errors.InvalidArgument(
        f"{folder} holds no Dockerfile.", hint="name the file with dockerfile_path, or pass the text as dockerfile_text"
    )


def _read(file: Path | None) -> str:
    if file is None:
        raise errors.InvalidArgument("No Dockerfile was given.", hint="pass dockerfile_path or dockerfile_text")
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST_DOCKERFILE_BYTES + 1)
    except OSError as error:
        raise errors.InvalidArgument(f"{file} cannot be read.", hint="check its permissions") from error
    if len(data) > _LARGEST_DOCKERFILE_BYTES:
        raise errors.InvalidArgument(
            f"{file} is larger than 1 MB, which no Dockerfile is.", hint="mend dockerfile_path"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.InvalidArgument(
            f"{file} is no UTF-8 text.", hint="mend dockerfile_path or the file's encoding"
        ) from error


def _resolved(engine: guard.GuardedEngine, secret: BuildSecret) -> BuildSecret:
    if secret.path is None:
        return secret
    return BuildSecret(secret.id, path=engine.resolve_path(secret.path, purpose="a build secret"))


class _HalfBuilt:
    """Has written down what the classic builder would leave behind if this process were killed in the middle."""

    def __init__(self, engine: guard.GuardedEngine, content: dockerfile.Dockerfile, *, is_kept: bool) -> None:
        self._engine = engine
        self._names = [one.name for one in content.instructions]
        self._is_kept = is_kept
        self._images: list[str] = []
        self._under = ""
        self._step = ""

    def begin(self, base_image: str) -> None:
        """Note the first step, on the image that the first stage is built from: it may be done before a word of it is heard."""
        steps = self._names[self._names.index("FROM") + 1 :] if "FROM" in self._names else []
        if self._is_kept and steps and not self._step:
            self._step = self._engine.build_step(base_image, steps[0])

    def note(self, event: BuildEvent, *, is_new: bool) -> None:
        if not self._is_kept:
            return
        if event.kind == "step":
            name = event.text.split(" ", 1)[0].upper()
            if name == "FROM":
                self._under = ""
            elif self._under:
                step = self._engine.build_step(self._under, name)
                self._settle()
                self._step = step
        elif event.kind == "image":
            self._under = event.text
            if is_new:
                self._engine.intermediate_image(event.text)
                self._images.append(event.text)

    def finished(self) -> None:
        """Forget it all: the build has ended, and what is left of it is the engine's cache."""
        self._settle()
        for id in self._images:
            self._engine.intermediate_image(id, finished=True)

    def _settle(self) -> None:
        if self._step:
            self._engine.build_step_ended(self._step)
            self._step = ""


class _Book:
    """Keeps what a build said, for its result or its error."""

    def __init__(self, content: dockerfile.Dockerfile) -> None:
        self._content = content
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._by_step: dict[str, deque[str]] = {}
        self._last: BuildEvent | None = None
        self._step_names: set[str] = set()
        self.is_new_layer = False
        self.cached = 0
        self.warnings: list[str] = []
        self.failure: BuildEvent | None = None
        self.image = ""

    @property
    def steps(self) -> int:
        return len(self._step_names)

    def note(self, event: BuildEvent) -> None:
        match event.kind:
            case "step":
                # The image behind FROM and those of cached steps were there before.
                self.is_new_layer = not event.text.upper().startswith("FROM ")
                self._last = event
                if not _is_our_label(event):
                    self._step_names.add(f"{event.number}/{event.total} {event.text}")
                    self._log.append(f"[{event.number}/{event.total}] {event.text}")
            case "cached":
                self.is_new_layer = False
                if self._last is None or not _is_our_label(self._last):
                    self.cached += 1
                    self._log.append("(cached)")
            case "log":
                line = output.readable(event.text.encode("utf-8", "surrogateescape"))
                self._log.append(line)
                step = event.step or (self._last.text if self._last else "")
                self._by_step.setdefault(step, deque(maxlen=STEP_LINES)).append(line)
            case "warning":
                self.warnings.append(f"{event.text} (line {event.line})" if event.line else event.text)
            case "image":
                self.image = event.text
            case "error":
                self.failure = event

    def tail(self) -> list[str]:
        return list(self._log)

    def where(self) -> str:
        return f", in step {self._last.number}/{self._last.total}: {self._last.text[:200]}" if self._last else ""

    def error(self, request: BuildRequest) -> errors.BuildFailed:
        """Describe the failing step for the one who wrote it."""
        failure = self.failure or BuildEvent("error")
        step = failure.step or (self._last.text if self._last else "")
        instruction = self._find(step)
        line = instruction.start_line if instruction else failure.line or _named_line(failure.text)
        said = list(self._by_step.get(step, ()))
        at = f" at line {line}" if line else ""
        code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
        shown = f"{step[:300]}" if step else "before its first step"
        reason = " ".join(output.readable(failure.text.encode("utf-8", "replace")).split())[:600]
        lines = "".join(f"\n  {one}" for one in said[-20:])
        message = f"The build of {request.reference} failed{at}: {shown}{code}\n{reason}"
        return errors.BuildFailed(
            message + (f"\nIts last lines:{lines}" if said else ""),
            hint=_next_step(failure, reason),
            details={"instruction": step, "line": line, "exit_code": failure.exit_code, "log": said},
        )

    def _find(self, step: str) -> dockerfile.Instruction | None:
        """Find the instruction that a builder's step name stands for: the builders show it with its blanks folded."""
        wanted = _folded(step)
        for one in self._content.instructions:
            if (
                _folded(f"{one.name} {' '.join(one.flags)} {one.value}") == wanted
                or _folded(f"{one.name} {one.value}") == wanted
            ):
                return one
        name = wanted.split(" ", 1)[0]
        alike = [
            one
            for one in self._content.instructions
            if one.name == name and _folded(one.value)[:40] and _folded(one.value)[:40] in wanted
        ]
        return alike[0] if len(alike) == 1 else None


def _named_line(reason: str) -> int | None:
    """Return the line that a builder's own parser names."""
    named = re.search(r"parse error (?:on )?line ([0-9]{1,6})", reason)
    return int(named[1]) if named else None


def _is_our_label(event: BuildEvent) -> bool:
    # The classic builder adds the labels that it is given as one more step.
    return event.text.startswith("LABEL ") and f"{guard.LABEL_HOST}=" in event.text


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\\\n", " ")).strip()


def _next_step(failure: BuildEvent, reason: str) -> str:
    lowered = reason.lower()
    if failure.exit_code is not None:
        return "mend the command of that instruction (its output is above), then build again; the steps before it are cached"
    if 'exec: "' in lowered:
        return "the image has no such program (for a RUN line without brackets: no shell): use one that it has, or another base image"
    if "not found" in lowered or "failed to compute cache key" in lowered or "no such file" in lowered:
        return "check that the path exists in the build context and is not left out by .dockerignore"
    if "pull access denied" in lowered or "dial tcp" in lowered or "manifest" in lowered or "no such host" in lowered:
        return "the base image is not in the engine and could not be fetched: use one that is there, or let the engine reach its registry"
    return "mend the Dockerfile at that instruction, then build again"


def secrets(entries: Mapping[str, str]) -> tuple[BuildSecret, ...]:
    """Parse `{id: "env:NAME" | "file:PATH" | PATH}`. Raises InvalidArgument."""
    return tuple(_secret(id, source) for id, source in entries.items())


def _secret(id: str, source: str) -> BuildSecret:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", id):
        raise errors.InvalidArgument(f"{id!r} is no secret id.", hint="use letters, digits, '.', '_' and '-'")
    if source.startswith("env:"):
        name = source.removeprefix("env:")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise errors.InvalidArgument(f"{name!r} is no variable name.", hint="write env:NAME")
        return BuildSecret(id, env=name)
    path = source.removeprefix("file:")
    if not path or "," in path:
        raise errors.InvalidArgument(
            f"The secret {id!r} has no usable source.", hint="write env:NAME or file:PATH (without a comma)"
        )
    return BuildSecret(id, path=Path(path).expanduser())


def platforms(entries: Sequence[str]) -> tuple[str, ...]:
    """Check `os/architecture[/variant]` texts. Raises InvalidArgument."""
    for one in entries:
        if not re.fullmatch(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9.]+)?", one):
            raise errors.InvalidArgument(f"{one!r} is no platform.", hint="write linux/amd64 or linux/arm64/v8")
    return tuple(entries)
