"""How does a Dockerfile become an image here: its stages and steps?"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (
    build_copy,
    build_expand,
    build_files,
    build_mounts,
    build_run,
    build_scratch,
    build_sources,
    build_steps,
    build_words,
    build_work,
    objects,
)
from codomyrmex_containerization.engines.embedded.build_files import Meta, Tree
from codomyrmex_containerization.engines.embedded.build_steps import Platform, Stage
from codomyrmex_containerization.engines.embedded.build_words import Failed, Instruction
from codomyrmex_containerization.engines.embedded.build_work import Steps
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec

if TYPE_CHECKING:
    from codomyrmex_containerization.engines.embedded import content

_OTHERS: Final = "build with engine='docker' or engine='podman'"
_DOCKERS_OWN: Final = re.compile(r"(?:docker\.io/)?docker/dockerfile(?:-upstream)?(?:[:@]|$)")
_LONGEST_TEXT: Final = 400
_CACHES: Final = "mounts"


def check(spec: BuildSpec, *, engine: str) -> None:
    """Raise Unsupported for what this builder cannot do at all."""
    platform = Platform.of(os.uname().machine)
    refused = {
        "entitlements (the host's network, insecure steps)": spec.entitlements,
        f"the network {spec.network!r} for a build": spec.network not in (None, "none", "default"),
        f"a frontend such as {spec.frontend!r}": spec.frontend is not None and not _DOCKERS_OWN.match(spec.frontend),
    }
    for what, wanted in refused.items():
        if wanted:
            raise errors.Unsupported(f"{engine}'s builder has no {what}.", hint=_OTHERS)
    if spec.pull:
        raise errors.Unsupported(
            f"{engine}'s builder pulls nothing.", hint="pull the base image first, then build without pull"
        )
    if len(spec.platforms) > 1 or not all(platform.fits(one) for one in spec.platforms):
        raise errors.Unsupported(f"{engine} builds for this machine's platform alone, {platform}.", hint=_OTHERS)


class Builder:
    """One build."""

    def __init__(self, store: content.ContentStore, steps: Steps, *, scratch: Path, engine: str) -> None:
        self._store = store
        self._steps = steps
        self._scratch = scratch
        self._engine = engine
        self._stopped = threading.Event()

    def events(
        self, spec: BuildSpec, *, context: Callable[[], Iterator[bytes]], dockerfile_name: str
    ) -> Iterator[BuildEvent]:
        """Build and yield what happens; blocks. A step that fails is an event of kind `error`, the last one.

        Raises Unsupported before anything was done, Cancelled after `stop`, what opening and reading the context raises, and
        EngineUnavailable when there is no room for the build's own files.
        """
        check(spec, engine=self._engine)
        with build_scratch.folder(self._scratch, engine=self._engine) as folder:
            work = build_work.Work(
                self._store, self._steps, spec, folder,
                context=context, dockerfile_name=dockerfile_name, look=self._look,
            )  # fmt: skip
            yield from _Build(work, spec, self._scratch / _CACHES).events()

    def stop(self) -> None:
        """End a running step and the build, from another thread."""
        self._stopped.set()
        self._steps.end()

    def _look(self) -> None:
        if self._stopped.is_set():
            raise errors.Cancelled("The build was stopped.")


class _Build:
    """The state of one build."""

    def __init__(self, work: build_work.Work, spec: BuildSpec, caches: Path) -> None:
        self._work = work
        self._spec = spec
        self._caches = caches
        self._platform = Platform.of(os.uname().machine)
        self._arguments = build_steps.Arguments(spec.build_args, self._platform, spec.target or "")
        self._stages: list[Stage] = []

    def events(self) -> Iterator[BuildEvent]:
        """Yield what happens."""
        now: Instruction | None = None
        try:
            instructions = self._wanted(build_words.parse(self._work.dockerfile()))
            build_words.check(instructions)
            for number, now in enumerate(instructions, start=1):
                self._work.look()
                yield BuildEvent("step", text=now.text, number=number, total=len(instructions), line=now.line)
                for event in self._step(now):
                    yield replace(event, step=now.text, line=now.line)
                if now.name != "ARG" and self._stage.image is not None:
                    yield BuildEvent("image", text=self._stage.id, step=now.text)
            yield from self._finished()
        except Failed as failure:
            yield _error(failure.text, now, code=failure.code, line=failure.line)
        except OSError as failure:
            named = f": {failure.filename}" if isinstance(failure.filename, str) else ""
            yield _error(f"{failure.strerror or 'a file could not be used'}{named}", now)
        except RecursionError:
            yield _error("folders are nested too deeply", now)
        except (errors.NotFound, errors.Conflict, errors.CommandFailed, errors.Unsupported) as failure:
            yield _error(failure.text(), now)

    def _wanted(self, instructions: Sequence[Instruction]) -> Sequence[Instruction]:
        """Leave out what comes behind the target's stage. Raises Failed when there is no such stage."""
        target = self._spec.target
        if not target:
            return instructions
        starts = [place for place, one in enumerate(instructions) if one.name == "FROM"]
        for number, place in enumerate(starts):
            words = instructions[place].words
            if (len(words) == 3 and words[2].lower() == target.lower()) or str(number) == target:
                return instructions[: starts[number + 1]] if number + 1 < len(starts) else instructions
        raise Failed(f"target stage {target[:200]!r} could not be found")

    @property
    def _stage(self) -> Stage:
        if not self._stages:
            raise Failed("no build stage in current context")
        return self._stages[-1]

    def _step(self, step: Instruction) -> Iterator[BuildEvent]:
        match step.name:
            case "FROM":
                yield from self._from(step)
            case "ARG":
                self._arguments.declare(step, self._stages[-1] if self._stages else None)
            case "RUN":
                yield from self._run(step)
            case "COPY" | "ADD":
                yield from self._copy(step)
            case _:
                yield from self._configure(step)

    def _finished(self) -> Iterator[BuildEvent]:
        stage = self._stage
        if self._spec.labels:
            stage.config = replace(stage.config, labels={**stage.config.labels, **self._spec.labels})
            text = " ".join(f"{name}={value}" for name, value in self._spec.labels.items())
            key = self._work.key(stage, "LABEL", build_work.plain(stage.config))
            if not self._work.reuse(stage, key):
                self._work.commit(stage, key, f"LABEL {text}")
        if stage.image is None:
            raise Failed("No image was generated: the last stage is empty")
        if unused := self._arguments.unused():
            yield BuildEvent("warning", text=f"One or more build-args {unused} were not consumed")
        self._work.look()
        for tag in self._spec.tags:
            self._work.store.tag(stage.id, tag)
        yield BuildEvent("image", text=stage.id)

    # --- FROM --------------------------------------------------------------------------------------------------------

    def _from(self, step: Instruction) -> Iterator[BuildEvent]:
        words, outside = step.words, self._arguments.outside
        if len(words) != 1 and not (len(words) == 3 and words[1].lower() == "as"):
            raise Failed("FROM takes one image, or image AS name")
        name = build_expand.expand(words[0], outside, escape=step.escape)
        if not name:
            raise Failed(f"the base name {words[0][:200]!r} is empty once its variables are replaced")
        platform = build_expand.expand(step.flag("platform") or "", outside, escape=step.escape)
        if platform and not self._platform.fits(platform):
            raise Failed(f"--platform={platform[:60]} is not this machine's platform, {self._platform}")
        own_name = words[2].lower() if len(words) == 3 else ""
        before = next((one for one in reversed(self._stages) if one.name and one.name == name.lower()), None)
        if name == "scratch":
            stage = Stage(None, build_steps.begun(objects.ImageConfig()), own_name)
        elif before is not None:
            stage = Stage(before.image, before.config, own_name, dict(before.arguments))
        else:
            image = self._find(name)
            stage = Stage(image, build_steps.begun(image.config), own_name)
            if image.architecture and image.architecture != self._platform.architecture:
                text = f"{name} is of the platform {image.os}/{image.architecture}, not {self._platform}"
                yield BuildEvent("warning", text=text)
        self._stages.append(stage)

    def _find(self, name: str) -> objects.Image:
        try:
            return self._work.store.image(name)
        except (errors.NotFound, errors.InvalidArgument, errors.Ambiguous) as error:
            raise Failed(f"{error.message} This builder pulls nothing: pull or build that image first.") from error

    def _named(self, origin: str) -> objects.Image | None:
        """Return the image of an earlier stage, by name or number, or of the store; None for a stage without files."""
        for place, one in enumerate(self._stages[:-1]):
            if origin.lower() == (one.name or None) or origin == str(place):
                return one.image
        return self._find(origin)

    # --- RUN ---------------------------------------------------------------------------------------------------------

    def _run(self, step: Instruction) -> Iterator[BuildEvent]:
        stage, work = self._stage, self._work
        script, network = build_run.script(step, stage), build_run.network(step, self._spec.network)
        wishes = build_mounts.wishes(step, self._arguments.visible(stage), stage.config.workdir)
        with ExitStack() as stack:
            lender = build_mounts.Lender(work, self._named, self._caches, self._spec.secrets, stack)
            asked = lender.lend(wishes, script)
            arguments = sorted(stage.arguments.items())
            key = work.key(stage, "RUN", script.command, script.file, network, asked.seen, arguments)
            if work.reuse(stage, key):
                yield BuildEvent("cached")
                return
            layers, upper = work.layers(stage.image), work.upper(stage.image)
            with ExitStack() as looking:
                stubs = build_run.Stubs.before(work.tree(layers, looking), asked.mounts)
            env = {
                "PATH": build_steps.DEFAULT_PATH,
                **self._arguments.proxies,
                **stage.arguments,
                **build_steps.environment(stage.config),
                **asked.env,
            }
            running = build_run.Running(
                run=lambda output: work.steps.run(
                    layers=layers,
                    upper=upper,
                    config=stage.config,
                    command=script.command,
                    env=env,
                    mounts=asked.mounts,
                    network=network,
                    output=output,
                ),
                end=work.steps.end,
                look=work.look,
            )
            try:
                for line in running.lines():
                    yield BuildEvent("log", text=line)
            except errors.CommandFailed as error:
                code = error.details.get("exit_code")
                raise Failed(error.message, code=code if isinstance(code, int) else None) from error
            if running.code:
                shown = " ".join(script.command)[:_LONGEST_TEXT]
                raise Failed(f"The command '{shown}' returned a non-zero code: {running.code}", code=running.code)
        stubs.clear(upper)
        work.commit(stage, key, step.text, upper=upper)

    # --- COPY, ADD ---------------------------------------------------------------------------------------------------

    def _copy(self, step: Instruction) -> Iterator[BuildEvent]:
        stage, work, seen = self._stage, self._work, self._arguments.visible(self._stage)
        words = build_sources.Words.of(step, seen)
        quick = self._quick_key(words)
        if quick and work.reuse(stage, quick):
            yield BuildEvent("cached")
            return
        with ExitStack() as stack:
            inline = build_sources.inline(step, seen, self._empty(stack)) if step.inline else []
            request = words.request(
                stage.config.workdir, files=lambda: self._origin(words.origin, stack), inline=inline
            )
            parts = (request.target, request.into, request.owner, request.mode, request.unpacks)
            key = work.key(stage, step.name, parts, build_copy.digest(request, look=work.look))
            is_cached = work.reuse(stage, key)
            if not is_cached:
                upper = work.upper(stage.image)
                with ExitStack() as mounted:
                    tree = work.tree(work.layers(stage.image), mounted, upper)
                    devices = build_copy.copy(request, tree, look=work.look)
                if devices:
                    text = f"{devices} device files were left out: a container gets its own"
                    yield BuildEvent("warning", text=text)
                work.commit(stage, key, step.text, upper=upper)
        if quick and stage.image is not None:
            work.store.remember(quick, stage.image)
        if is_cached:
            yield BuildEvent("cached")

    def _quick_key(self, words: build_sources.Words) -> str:
        """Return a key that needs no look at single files: those of an image are known by its id, the context's by its digest."""
        if words.step.inline or self._spec.no_cache:
            return ""
        if words.origin:
            image = self._named(words.origin)
            mark = image.id if image is not None else ""
        else:
            mark = self._work.context_mark()
        parts = (words.words, words.owner, words.mode, self._stage.config.workdir, words.origin != "", mark)
        return self._work.key(self._stage, words.step.name, "quick", parts)

    def _origin(self, origin: str, stack: ExitStack) -> Tree:
        """Open what COPY copies from."""
        if origin:
            return self._work.tree(self._work.layers(self._named(origin)), stack)
        return stack.enter_context(Tree(self._work.context()))

    def _empty(self, stack: ExitStack) -> Tree:
        return stack.enter_context(Tree(self._work.fresh("inline")))

    # --- the others --------------------------------------------------------------------------------------------------

    def _configure(self, step: Instruction) -> Iterator[BuildEvent]:
        stage, work = self._stage, self._work
        if step.flag("start-interval") is not None:
            yield BuildEvent("warning", text="--start-interval of HEALTHCHECK has no effect on this engine")
        build_steps.configure(step, stage, self._arguments.visible(stage))
        key = work.key(stage, step.name, build_work.plain(stage.config))
        if work.reuse(stage, key):
            yield BuildEvent("cached")
            return
        upper = self._workdir(stage) if step.name == "WORKDIR" else None
        work.commit(stage, key, step.text, upper=upper)

    def _workdir(self, stage: Stage) -> Path:
        upper = self._work.upper(stage.image)
        with ExitStack() as stack:
            tree = self._work.tree(self._work.layers(stage.image), stack, upper)
            with tree.find(stage.config.workdir, make=build_files.Owner()) as place:
                if place.status is None:
                    build_files.make_folder(place.folder, place.name, Meta(0o755, build_files.Owner()))
                elif not place.is_folder:
                    raise Failed(f"WORKDIR {stage.config.workdir[:200]} is no folder")
        return upper


def _error(text: str, step: Instruction | None, *, code: int | None = None, line: int | None = None) -> BuildEvent:
    line = line or (step.line if step is not None else None)
    return BuildEvent("error", text=text, exit_code=code, line=line, step=step.text if step is not None else "")
