"""How is an image built here, and what of a Dockerfile is understood?"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import posixpath
import re
import shlex
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from anyio.abc import TaskGroup

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.memory import archive, files, kernel, log, objects, programs, store, streams
from codomyrmex_containerization.models.container import Healthcheck, OutputFrame, Stream
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec

_SHELL = ("/bin/sh", "-c")
_VARIABLE = re.compile(r"\\\$|\$(?:(\w+)|\{(\w+)(?:(:[-+])([^}]*))?\})")
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S*))?\s+")
_DURATION = re.compile(r"(\d+\.?\d*)(ms|s|m|h)")


class _Failed(Exception):
    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction and the line it begins at."""

    name: str
    rest: str
    line: int

    def __str__(self) -> str:
        return f"{self.name} {self.rest}"


def parse(text: str) -> list[Instruction]:
    """Read a Dockerfile into instructions; continued lines are joined."""
    found: list[Instruction] = []
    now, began = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        began = began if now else number
        now += line.rstrip()
        if now.endswith("\\"):
            now = now[:-1]
            continue
        name, _, rest = now.strip().partition(" ")
        found.append(Instruction(name.upper(), rest.strip(), began))
        now = ""
    return found


class Build:
    """One build: its stages, its arguments, the image that grows."""

    def __init__(self, held: store.Store, spec: BuildSpec, context: files.Tree, tasks: TaskGroup) -> None:
        self._store = held
        self._spec = spec
        self._context = files.View(context)
        self._tasks = tasks
        self._stages: dict[str, objects.Image] = {}
        self._arguments: dict[str, str] = {}
        self._image: objects.Image | None = None
        self._config = objects.Config()
        self._tree = files.Tree()
        self._cached = True
        self._started = False
        self._index = -1
        self._name = ""

    async def events(self, text: str) -> AsyncGenerator[BuildEvent, None]:
        """Yield what happens. A failing step is an event of kind `error`, the last one."""
        steps = parse(text)
        now: Instruction | None = None
        try:
            steps = self._wanted(steps)
            for number, now in enumerate(steps, start=1):
                yield BuildEvent("step", text=str(now), number=number, total=len(steps), line=now.line)
                async with contextlib.aclosing(self._step(now)) as events:
                    async for event in events:
                        yield replace(event, step=str(now), line=now.line)
                if self._image is not None:
                    yield BuildEvent("image", text=self._image.id, step=str(now))
            yield BuildEvent("image", text=self._finished().id)
        except _Failed as failure:
            yield BuildEvent(
                "error", failure.text, exit_code=failure.code, line=now.line if now else None, step=str(now or "")
            )
        except OSError as failure:
            yield BuildEvent("error", kernel.said(failure), line=now.line if now else None, step=str(now or ""))
        except errors.ContainerizationError as failure:
            yield BuildEvent("error", failure.message, line=now.line if now else None, step=str(now or ""))

    def _wanted(self, steps: list[Instruction]) -> list[Instruction]:
        """Leave out what comes after the target's stage."""
        if not any(one.name == "FROM" for one in steps):
            raise _Failed("the Dockerfile has no FROM instruction")
        target, inside = self._spec.target, False
        kept: list[Instruction] = []
        if target is None:
            return steps
        for number, one in enumerate(steps):
            if one.name == "FROM":
                if inside:
                    return kept
                words = one.rest.split()
                earlier = sum(step.name == "FROM" for step in steps[:number])
                inside = (len(words) > 2 and words[2].lower() == target.lower()) or target == str(earlier)
            kept.append(one)
        if not inside:
            raise _Failed(f"failed to reach build target {target} in Dockerfile")
        return kept

    def _finished(self) -> objects.Image:
        if self._spec.labels:
            self._config = replace(self._config, labels={**self._config.labels, **self._spec.labels})
            key = objects.digest(["labels", self._parent_id, dict(self._spec.labels)])
            self._commit(f"LABEL {' '.join(f'{name}={value}' for name, value in self._spec.labels.items())}", key)
        if self._image is None:
            self._commit("FROM scratch", None)
        image = self._image
        if image is None:
            raise _Failed("No image was generated. Is your Dockerfile empty?")
        for tag in self._spec.tags:
            self._store.tag(image, tag)
        self._store.note("image", "build", image.id, image.id)
        return image

    @property
    def _parent_id(self) -> str:
        return self._image.id if self._image is not None else ""

    def _commit(self, instruction: str, key: str | None) -> bool:
        """Make an image of the state; True when it was made before from the same."""
        if key and self._reused(key):
            return True
        self._cached = False
        self._image = self._store.add_image(
            parent=self._image, tree=self._tree, config=self._config, instruction=instruction
        )
        if key:
            self._store.cache[key] = self._image.id
        return False

    def _reused(self, key: str) -> bool:
        """Go on from the image that was made before from the same; False when there is none, or none is wanted."""
        known = self._store.images.get(self._store.cache.get(key, ""))
        if known is None or not self._cached or self._spec.no_cache:
            return False
        self._image, self._config, self._tree = known, known.config, known.tree
        return True

    async def _step(self, step: Instruction) -> AsyncGenerator[BuildEvent, None]:
        if step.name == "FROM":
            self._from(step.rest)
            return
        if step.name == "ARG":
            self._argument(step.rest)
            return
        if not self._started:
            raise _Failed(f"no build stage in current context: {step.name} comes before FROM")
        key = objects.digest([self._parent_id, str(step), sorted(self._arguments.items())])
        if step.name == "RUN":
            async with contextlib.aclosing(self._run(step, key)) as events:
                async for event in events:
                    yield event
            return
        if step.name in ("COPY", "ADD"):
            key = self._copy(step, key)
        elif step.name == "WORKDIR":
            path = posixpath.normpath(posixpath.join(self._config.workdir or "/", self._expanded(step.rest)))
            self._tree = self._tree.copy()
            files.View(self._tree).make_folders(path, files.ROOT)
            self._config = replace(self._config, workdir=path)
        else:
            self._configure(step)
        if self._commit(str(step), key):
            yield BuildEvent("cached")

    # ------------------------------------------------------------------ FROM, ARG

    def _from(self, rest: str) -> None:
        while flag := _FLAG.match(rest):
            rest = rest[flag.end() :]
        words = self._expanded(rest).split()
        if not words:
            raise _Failed("FROM requires an image")
        if self._started:
            self._keep()
        self._name = words[2].lower() if len(words) > 2 and words[1].upper() == "AS" else ""
        self._index += 1
        self._started = True
        if words[0] == "scratch":
            self._image, self._config, self._tree = None, objects.Config(), files.Tree()
            return
        stage = self._stages.get(words[0].lower())
        if stage is None:
            try:
                stage = self._store.image(words[0])
            except errors.NotFound as error:
                raise _Failed(
                    f"{error.message} Memory pulls nothing: build it first, or use docker or podman"
                ) from error
        self._image, self._config, self._tree = stage, stage.config, stage.tree

    def _keep(self) -> None:
        """Remember the stage that ends, so that others can copy from it."""
        if self._image is None:
            self._commit("FROM scratch", None)
        if self._image is not None:
            self._stages[str(self._index)] = self._image
            if self._name:
                self._stages[self._name] = self._image

    def _argument(self, rest: str) -> None:
        for word in _words(rest):
            name, equals, value = word.partition("=")
            if name in self._spec.build_args:
                self._arguments[name] = self._spec.build_args[name]
            elif equals:
                self._arguments[name] = self._expanded(value)

    def _expanded(self, text: str) -> str:
        known = {**self._arguments, **dict(one.partition("=")[::2] for one in self._config.env)}

        def value(match: re.Match[str]) -> str:
            if match[0] == "\\$":
                return "$"
            found = known.get(match[1] or match[2], "")
            if match[3] == ":-":
                return found or match[4]
            return (match[4] if found else "") if match[3] == ":+" else found

        return _VARIABLE.sub(value, text)

    # ------------------------------------------------------------------------ RUN

    async def _run(self, step: Instruction, key: str) -> AsyncGenerator[BuildEvent, None]:
        if step.rest.startswith("--"):
            raise _Failed(f"{step.rest.split()[0]} of RUN is unsupported in memory: use docker or podman with BuildKit")
        if self._reused(key):
            yield BuildEvent("cached")
            return
        words = _json_words(step.rest)
        argv = list(words) if words is not None else [*_SHELL, step.rest]
        self._tree = self._tree.copy()
        view = files.View(self._tree)
        had_dev = "dev" in self._tree.root.entries
        view.mount("/dev", files.device_tree())
        env = {
            "PATH": kernel.DEFAULT_PATH,
            **self._arguments,
            **dict(one.partition("=")[::2] for one in self._config.env),
        }
        feed, running = log.Feed(), kernel.Kernel(view, self._tasks, programs.PROGRAMS, hostname="build")
        try:
            who = kernel.find_user(view, self._config.user)
            env.setdefault("HOME", who.home)
            fds = {0: streams.Special("null"), 1: _sink(feed, "stdout"), 2: _sink(feed, "stderr")}
            process = running.start(argv, env=env, cwd=self._config.workdir or "/", who=who, fds=fds)
        except (LookupError, kernel.CannotStart) as problem:
            raise _Failed(f"OCI runtime create failed: {problem}", getattr(problem, "code", None)) from problem
        self._tasks.start_soon(_end_with, process, feed)
        try:
            lines = log.Log()
            async for frame in feed.frames():
                lines.put(frame.stream, frame.data)
                async for event in _taken(lines):
                    yield event
            lines.end()
            async for event in _taken(lines):
                yield event
            code = await process.wait()
        finally:
            feed.leave()
            running.end()
        if code:
            raise _Failed(f"The command '{' '.join(argv)}' returned a non-zero code: {code}", code)
        if not had_dev:
            self._tree.root.entries.pop("dev", None)
        self._commit(str(step), key)

    # ------------------------------------------------------------------ COPY, ADD

    def _copy(self, step: Instruction, key: str) -> str:
        rest, source, owner, mode = step.rest, self._context, "", None
        while flag := _FLAG.match(rest):
            rest = rest[flag.end() :]
            match flag[1]:
                case "from":
                    image = self._stages.get(str(flag[2]).lower()) or self._store.image(self._expanded(str(flag[2])))
                    source = files.View(image.tree)
                case "chown":
                    owner = self._expanded(str(flag[2]))
                case "chmod":
                    if not re.fullmatch("[0-7]{3,4}", flag[2] or ""):
                        raise _Failed(f"--chmod={flag[2]} is unsupported in memory: write it as 755")
                    mode = int(flag[2], 8)
                case _:
                    raise _Failed(f"the flag --{flag[1]} of {step.name} is unsupported in memory: use docker or podman")
        listed = _json_words(rest)
        words = [self._expanded(one) for one in (listed if listed is not None else _words(rest))]
        if len(words) < 2:
            raise _Failed(f"{step.name} requires at least two arguments, a source and a destination")
        if step.name == "ADD" and any("://" in one or one.startswith("git@") for one in words[:-1]):
            raise _Failed("ADD of an address is unsupported in memory: use docker or podman")
        self._tree = self._tree.copy()
        view = files.View(self._tree)
        target = posixpath.join(self._config.workdir or "/", words[-1])
        found = [path for word in words[:-1] for path in _matching(source, word)]
        into = target.endswith("/") or len(found) > 1 or words[-1] in (".", "..")
        packed: list[archive.Entry] = []
        for path in found:
            packed += self._packed(view, source, path, target, into=into, unpacks=step.name == "ADD")
        who = kernel.find_user(view, owner) if owner else files.ROOT
        for entry in packed:
            entry.header.uid, entry.header.gid = who.uid, who.gid
            if mode is not None and not entry.header.issym():
                entry.header.mode = mode
        archive.unpack(view, "/", packed)
        return objects.digest([key, [_shape(one) for one in packed]])

    def _packed(
        self, view: files.View, source: files.View, path: str, target: str, *, into: bool, unpacks: bool
    ) -> list[archive.Entry]:
        node = source.get(path)
        if isinstance(node, files.Folder):
            entries = archive.write(source, path.rstrip("/") + "/.")
            return _below(entries, target)
        if unpacks and isinstance(node, files.File) and _is_tar(node):
            return _below(archive.read(iter((bytes(node.data),))), target)
        there = view.find(posixpath.normpath(target)) if _is_there(view, target) else None
        if into or (there is not None and isinstance(there.node, files.Folder)):
            target = posixpath.join(target, posixpath.basename(path))
        entry = archive.write(source, source.find(path).path)[0]
        entry.header.name = posixpath.normpath(target)
        return [entry]

    # --------------------------------------------------------------- configuration

    def _configure(self, step: Instruction) -> None:
        text, now = step.rest, self._config
        match step.name:
            case "ENV":
                pairs = _pairs(self._expanded(text))
                env = {**dict(one.partition("=")[::2] for one in now.env), **pairs}
                self._config = replace(now, env=tuple(f"{name}={value}" for name, value in env.items()))
            case "LABEL":
                self._config = replace(now, labels={**now.labels, **_pairs(self._expanded(text))})
            case "CMD" | "ENTRYPOINT":
                words = _json_words(text)
                given = words if words is not None else (*_SHELL, text)
                if step.name == "CMD":
                    self._config = replace(now, command=given)
                else:
                    self._config = replace(now, entrypoint=given, command=())
            case "USER":
                self._config = replace(now, user=self._expanded(text))
            case "EXPOSE":
                ports = [one if "/" in one else f"{one}/tcp" for one in self._expanded(text).split()]
                self._config = replace(now, exposed=tuple(sorted({*now.exposed, *ports})))
            case "VOLUME":
                listed = _json_words(text)
                paths = listed if listed is not None else tuple(self._expanded(text).split())
                self._config = replace(now, volumes=tuple(sorted({*now.volumes, *paths})))
            case "STOPSIGNAL":
                self._config = replace(now, stop_signal=self._expanded(text))
            case "MAINTAINER":
                return
            case "HEALTHCHECK":
                self._config = replace(now, healthcheck=_healthcheck(text))
            case _:
                raise _Failed(f"the instruction {step.name} is unsupported in memory: use docker or podman")


def _sink(feed: log.Feed, stream: Stream) -> streams.Stream:
    async def put(data: bytes) -> None:
        await feed.put(OutputFrame(stream, data))

    return streams.Sink(put, lambda: None)


async def _end_with(process: kernel.Process, feed: log.Feed) -> None:
    await process.wait()
    feed.end()


async def _taken(lines: log.Log) -> AsyncGenerator[BuildEvent, None]:
    for entry in lines.drain():
        for line in entry.data.decode("utf-8", "replace").splitlines():
            yield BuildEvent("log", text=line)


def _json_words(text: str) -> tuple[str, ...] | None:
    try:
        found = json.loads(text) if text.startswith("[") else None
    except ValueError:
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as problem:
        raise _Failed(f"the words of {text!r} cannot be told apart: {problem}") from problem


def _pairs(text: str) -> dict[str, str]:
    words = _words(text)
    if words and "=" not in words[0]:
        name, _, value = text.partition(" ")
        return {name: value.strip()}
    return dict(one.partition("=")[::2] for one in words)


def _healthcheck(text: str) -> Healthcheck:
    values: dict[str, str] = {}
    while flag := _FLAG.match(text):
        values[flag[1]], text = flag[2] or "", text[flag.end() :]
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE":
        return Healthcheck(("NONE",))
    words = _json_words(rest.strip())
    return Healthcheck(
        ("CMD", *words) if words is not None else ("CMD-SHELL", rest.strip()),
        _seconds(values.get("interval")),
        _seconds(values.get("timeout")),
        int(values["retries"]) if values.get("retries", "").isdigit() else None,
        _seconds(values.get("start-period")),
    )


def _seconds(text: str | None) -> float | None:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(count) * units[unit] for count, unit in _DURATION.findall(text)) if text else None


def _matching(source: files.View, word: str) -> list[str]:
    path = posixpath.normpath("/" + word)
    if not any(one in path for one in "*?["):
        if not _is_there(source, path):
            raise _Failed(
                f"COPY failed: file not found in build context or excluded by .dockerignore: stat {word}: file does not exist"
            )
        return [path]
    found = [
        f"/{one}"
        for one, _ in files.walk(source.root.root)
        if fnmatch.fnmatchcase(f"/{one}", path) and one.count("/") == path.count("/") - 1
    ]
    if not found:
        raise _Failed(f"COPY failed: no source files were specified: {word} fits nothing")
    return found


def _is_there(view: files.View, path: str) -> bool:
    try:
        return view.find(path).node is not None
    except OSError:
        return False


def _is_tar(file: files.File) -> bool:
    data = bytes(file.data[:512])
    return data[257:262] == b"ustar" or data[:2] == b"\x1f\x8b" or data[:3] == b"BZh" or data[:6] == b"\xfd7zXZ\0"


def _below(entries: list[archive.Entry], target: str) -> list[archive.Entry]:
    for entry in entries:
        if entry.header.islnk():
            entry.header.linkname = posixpath.normpath(posixpath.join(target, entry.header.linkname))
        entry.header.name = posixpath.normpath(posixpath.join(target, entry.header.name.lstrip("/")))
    return entries


def _shape(entry: archive.Entry) -> list[object]:
    one = entry.header
    return [one.name, one.mode, one.uid, one.gid, one.linkname, objects.digest(entry.data.hex()) if entry.data else ""]


def read_context(entries: list[archive.Entry], dockerfile_name: str) -> tuple[files.Tree, str]:
    """Return the context as a tree, and the Dockerfile's text. Raises InvalidArgument."""
    tree = files.Tree()
    archive.unpack(files.View(tree), "/", entries)
    node = files.View(tree).find(dockerfile_name).node
    if not isinstance(node, files.File):
        raise errors.InvalidArgument(f"The context holds no {dockerfile_name}.", hint="name the Dockerfile")
    return tree, io.TextIOWrapper(io.BytesIO(bytes(node.data)), "utf-8-sig", "replace").read()
