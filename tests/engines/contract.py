"""Which behaviours does every engine owe? The frame of the contract suite: what its parts share.

The behaviours are in contract_containers.py, contract_output.py, contract_commands.py, contract_files.py,
contract_images.py, contract_storage.py and contract_faults.py; test_contract.py runs each of them, unchanged, on every engine.

What the containers of the suite run (an engine without real programs must know these, and nothing else):

- The base image: a root filesystem with /bin, /etc (passwd: root 0, nobody 65534; group), /tmp (1777), /root;
  `ENV PATH=...`, `CMD ["sh"]`, no entrypoint, no user, no working folder (so `/`). /dev/null and /dev/zero.
- Programs, found on PATH, by name or as /bin/NAME: sh, true, false, echo, cat, printf, sleep, env, pwd, id, seq, head, yes,
  dd, ls, mkdir, rm, test, kill; `nc` only where the engine claims `ports`.
- Their forms: `echo TEXT...`; `cat` (stdin), `cat FILE...`; `printf FORMAT` with \\n, \\t, \\r, octal \\NNN (also NUL) and
  `printf %s TEXT`; `sleep SECONDS` (fractions too); `pwd`; `id -u`; `seq FIRST LAST`; `head -c N FILE`; `yes` (endless, for
  one who leaves); `dd if=/dev/zero of=FILE bs=N count=N` with suffixes k and M (its statistics on stderr are never looked
  at); `mkdir -p PATH...`; `test -e PATH`, `-f`, `-d`, `-s`.
- The shell, as `sh -c SCRIPT` (or `sh` with the script on stdin): simple commands with '...' and "..." quoting, `$NAME` and
  `"$NAME"`; `;`, newlines, `&&`, `||`; redirections `> FILE`, `>> FILE`, `< FILE`, `2> FILE`, `>&2`, `2>&1`, also without a
  command; `exit N`; `while true; do ...; done`, `until COMMAND; do ...; done` (the usual form:
  `until test -e /go; do sleep 0.05; done`); `sleep N & ...` (a program in the background); `trap 'exit N' TERM` (one script:
  a program that ends by itself when asked to). No pipes, functions, substitutions, arithmetic, globs, `if`, `for`, `case`.
- Builds use: FROM (the base image, `scratch`, `AS NAME`, `FROM NAME`), RUN (shell form, commands as above), COPY and ADD of
  files and folders, ENV, ARG, LABEL, WORKDIR, USER, EXPOSE, VOLUME, CMD and ENTRYPOINT (as JSON).
- A process that is process 1 ignores TERM unless it traps it, as the kernel has it.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.models.container import ContainerSpec, OutputFrame, Stream
from codomyrmex_containerization.models.details import ExecSpec
from codomyrmex_containerization.models.engine import KINDS, Capability, EngineInfo
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec
from tests.backends import SESSION_ID, TEST_LABEL

T = TypeVar("T")

LABELS = {TEST_LABEL: SESSION_ID}
NOBODY_HAS = "localhost:1/none:1"
FOREVER = ("sleep", "100000")
_EVENTUALLY_SECONDS = 30.0
_CLEANUP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program said, stream by stream, and its exit code; None where nobody asked."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None


@dataclass(slots=True)
class Bench:
    """One engine, its base image, and what a behaviour makes there: `clean` takes all of that away again."""

    engine: base.Engine
    info: EngineInfo
    image: str
    folder: Path
    dial: Callable[[int], Awaitable[bytes]]
    _containers: list[str] = field(default_factory=list)
    _images: list[str] = field(default_factory=list)
    _volumes: list[str] = field(default_factory=list)
    _networks: list[str] = field(default_factory=list)
    _keeper: str = ""

    @property
    def is_local(self) -> bool:
        """Whether host paths mean the same to the engine and to the suite."""
        return self.engine.is_local

    def fresh(self, kind: str = "c") -> str:
        """Return a name that nothing else has."""
        return f"cxc-contract-{kind}-{uuid.uuid4().hex[:10]}"

    def hand_over(self, path: Path) -> None:
        """Give a file to whoever the engine runs as: the suite may be another user."""
        owner = self.folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    def tag(self) -> str:
        """Return the name of an image to be made; it is removed after the behaviour."""
        self._images.append(f"localhost/{self.fresh('i')}:1")
        return self._images[-1]

    def volume(self) -> str:
        """Return the name of a volume to be made; it is removed after the behaviour."""
        self._volumes.append(self.fresh("v"))
        return self._volumes[-1]

    def network(self) -> str:
        """Return the name of a network to be made; it is removed after the behaviour."""
        self._networks.append(self.fresh("n"))
        return self._networks[-1]

    # ------------------------------------------------------------------------------------------------------ containers

    def spec(self, *command: str, **more: Any) -> ContainerSpec:
        """Return the specification of a container of the base image that is the session's own."""
        labels = {**LABELS, **more.pop("labels", {})}
        return replace(ContainerSpec(image=self.image, command=command or None, labels=labels), **more)

    async def create(self, *command: str, **more: Any) -> str:
        """Create a container and return its id."""
        made = await self.engine.create_container(self.spec(*command, **more))
        self._containers.append(made)
        return made

    async def started(self, *command: str, **more: Any) -> str:
        """Create and start a container and return its id; without a command it sleeps."""
        made = await self.create(*(command or FOREVER), **more)
        await self.engine.start_container(made)
        return made

    async def ended(self, script: str, **more: Any) -> str:
        """Run a script to its end in a container that stays, and return its id."""
        made = await self.started("sh", "-c", script, **more)
        await self.engine.wait_container(made)
        return made

    async def run(self, *command: str, stdin: bytes | None = None, **more: Any) -> Ran:
        """Run a program in a container, attached from before its start to its end."""
        made = await self.create(*command, stdin_open=stdin is not None, **more)
        return await self.attached(made, stdin=stdin)

    async def shell(self, script: str, **more: Any) -> Ran:
        """Run a script in a container, attached from before its start to its end."""
        return await self.run("sh", "-c", script, **more)

    async def attached(self, container: str, *, stdin: bytes | None = None) -> Ran:
        """Start a container that was created, attached to it."""
        async with self.engine.attach_container(container, stdin=stdin) as attachment:
            await self.engine.start_container(container)
            said = await gathered(attachment.frames())
        return Ran(*said, await self.engine.wait_container(container))

    async def keeper(self) -> str:
        """Return a container that only sleeps, which many behaviours share."""
        if not self._keeper:
            self._keeper = await self.engine.create_container(self.spec(*FOREVER, name=self.fresh("keeper")))
            await self.engine.start_container(self._keeper)
        return self._keeper

    # -------------------------------------------------------------------------------------------------------- commands

    async def exec(self, container: str, *command: str, stdin: bytes | None = None, **more: Any) -> Ran:
        """Run a command in a container that runs."""
        spec = ExecSpec(command, more.pop("env", {}), stdin=stdin is not None, **more)
        made = await self.engine.create_exec(container, spec)
        async with self.engine.start_exec(made, stdin=stdin) as attachment:
            said = await gathered(attachment.frames())
        return Ran(*said, await self.exec_code(made))

    async def exec_code(self, exec_id: str) -> int | None:
        """Return the exit code of a command whose output has ended."""

        async def look() -> int | None:
            state = await self.engine.inspect_exec(exec_id)
            return None if state.running else state.exit_code

        return await eventually(look, lambda code: code is not None)

    async def touch(self, container: str, path: str) -> None:
        """Make an empty file in a container that runs: what its script waits for."""
        assert (await self.exec(container, "sh", "-c", f"> {path}")).exit_code == 0

    # ------------------------------------------------------------------------------------------------ logs, files, builds

    async def logs(self, container: str, **query: Any) -> Ran:
        """Return what a container's log holds, stream by stream."""
        async with self.engine.container_logs(container, base.LogQuery(**query), tty=False) as frames:
            return Ran(*await gathered(frames), None)

    async def read(self, container: str, path: str) -> dict[str, tarfile.TarInfo]:
        """Return the members of a path's archive by name, without a trailing slash."""

        def members(pieces: Iterator[bytes]) -> dict[str, tarfile.TarInfo]:
            with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
                return {one.name.rstrip("/"): one for one in archive}

        return await self.engine.read_archive(container, path, members)

    async def content(self, container: str, path: str) -> bytes:
        """Return the bytes of one file of a container."""

        def first(pieces: Iterator[bytes]) -> bytes:
            with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
                member = archive.extractfile(archive.getmembers()[0])
                assert member is not None, "not a file"
                return member.read()

        return await self.engine.read_archive(container, path, first)

    async def write(self, container: str, folder: str, *entries: tarfile.TarInfo, **files: bytes) -> None:
        """Write files (by name) and other entries into a folder of a container."""
        data = archive_of(files, entries)
        await self.engine.write_archive(container, folder, lambda: iter([data]))

    @asynccontextmanager
    async def opened_build(
        self, text: str, tag: str, *, files: Mapping[str, bytes] | None = None, **more: Any
    ) -> AsyncIterator[AsyncIterator[BuildEvent]]:
        """Begin a build; `files` is the context beside the Dockerfile."""
        name = more.pop("dockerfile_name", "Dockerfile")
        folder = self.context(text, files or {}, name)
        labels = {**LABELS, **more.pop("labels", {})}
        spec = BuildSpec((tag,), context=folder, dockerfile=folder / name, dockerfile_text=text, labels=labels)
        data = archive_of({name: text.encode(), **(files or {})})
        opened = self.engine.build_image(
            replace(spec, **more), context=lambda: iter([data]), dockerfile_name=name
        )  # fmt: skip
        async with opened as events:
            yield events

    async def build(self, text: str, **more: Any) -> list[BuildEvent]:
        """Build and return all events."""
        tags = more.pop("tags", None) or (self.tag(),)
        async with self.opened_build(text, tags[0], tags=tags, **more) as events:
            return [event async for event in events]

    def context(self, text: str, files: Mapping[str, bytes], dockerfile_name: str) -> Path:
        """Write a build's context to a folder too: a builder may read it there."""
        folder = self.folder / self.fresh("context")
        for name, content in {dockerfile_name: text.encode(), **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    async def built(self, text: str, **more: Any) -> str:
        """Build an image that must succeed and return its name."""
        tag = self.tag()
        events = await self.build(text, tags=(tag,), **more)
        assert not [event for event in events if event.kind == "error"], events
        return tag

    # -------------------------------------------------------------------------------------------------------- cleaning

    async def clean(self) -> None:
        """Take away what the last behaviour made; the shared container stays."""
        engine = self.engine
        with anyio.fail_after(_CLEANUP_SECONDS, shield=True):
            for one in _drained(self._containers):
                await quietly(engine.remove_container(one, force=True, volumes=True))
            for one in _drained(self._images):
                await quietly(engine.remove_image(one, force=True))
            for one in _drained(self._volumes):
                await quietly(engine.remove_volume(one, force=True))
            for one in _drained(self._networks):
                await quietly(engine.remove_network(one))

    async def aclose(self) -> None:
        """Take away all that is left and close the engine."""
        if self._keeper:
            self._containers.append(self._keeper)
            self._keeper = ""
        await self.clean()
        await self.engine.aclose()


def _drained(names: list[str]) -> list[str]:
    found = names[::-1]
    names.clear()
    return found


async def quietly(call: Awaitable[object]) -> None:
    """Await a removal of what may be gone already, or never have come to be."""
    try:
        await call
    except (errors.NotFound, errors.Unsupported, NotImplementedError):
        return


# ------------------------------------------------------------------------------------------------------------ small tools


async def gathered(frames: AsyncIterator[OutputFrame]) -> tuple[bytes, bytes]:
    """Return all output, stream by stream."""
    said: dict[Stream, list[bytes]] = {"stdout": [], "stderr": []}
    async for frame in frames:
        said[frame.stream].append(frame.data)
    return b"".join(said["stdout"]), b"".join(said["stderr"])


async def eventually(look: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """Look until it is so; the test fails when it does not come to be."""
    found: list[T] = []
    with anyio.move_on_after(_EVENTUALLY_SECONDS):
        while True:
            found = [await look()]
            if holds(found[0]):
                return found[0]
            await anyio.sleep(0.02)
    pytest.fail(f"did not come to be; last seen: {found}")


def same(found: bytes, wanted: bytes) -> None:
    """Compare what is too long to be shown: where do they part?"""
    if found != wanted:
        first = next((at for at, (one, two) in enumerate(zip(found, wanted, strict=False)) if one != two), None)
        at = min(len(found), len(wanted)) if first is None else first
        pytest.fail(
            f"{len(found)} bytes, not {len(wanted)}; from {at} on: {found[at : at + 60]!r}, not {wanted[at : at + 60]!r}"
        )


def archive_of(files: Mapping[str, bytes], entries: Sequence[tarfile.TarInfo] = ()) -> bytes:
    """Return a tar of files and other entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one in entries:
            archive.addfile(one)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def tar_folder(name: str, *, mode: int = 0o755) -> tarfile.TarInfo:
    """Return the entry of a folder."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    return entry


def tar_link(name: str, target: str) -> tarfile.TarInfo:
    """Return the entry of a symbolic link."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, target
    return entry


@asynccontextmanager
async def raises(*kinds: type[errors.ContainerizationError]) -> AsyncIterator[None]:
    """Expect one of our errors, of just these classes, with a hint that says something."""
    with pytest.raises(kinds) as caught:
        yield
    error = caught.value
    assert type(error) in kinds
    assert error.message.strip()
    assert error.hint.strip(), f"{type(error).__name__} without a next step: {error.message}"


async def no_thread_left(before: int) -> None:
    """Wait until no more calls are in threads than before."""

    async def busy() -> int:
        return threads._limiter().borrowed_tokens

    await eventually(busy, lambda now: now <= before)
    assert threading.active_count() < threads.MOST_THREADS


def busy_threads() -> int:
    """Return how many calls are in threads now."""
    return threads._limiter().borrowed_tokens


# ------------------------------------------------------------------------------------------------------------- behaviours

Check = Callable[[Bench], Awaitable[None]]
HANG_SECONDS = 150.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One thing that an engine owes: the check, its title (the column), and which capabilities it is about."""

    name: str
    title: str
    section: str
    needs: tuple[Capability, ...]
    check: Check

    def lacking(self, info: EngineInfo) -> Capability | None:
        """Return the first capability that it is about and that the engine declares not to have."""
        return next((one for one in self.needs if one in info.lacks), None)


BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(section: str, *needs: Capability) -> Callable[[Check], Check]:
    """Enter a check into the contract: `@behaviour("exec", "exec")`; its docstring's first line is the column."""

    def entered(check: Check) -> Check:
        name = check.__name__
        assert name not in BEHAVIOURS, f"two behaviours are called {name}"
        title = (check.__doc__ or "").strip().splitlines()[0].rstrip(".")
        BEHAVIOURS[name] = Behaviour(name, title, section, needs, check)
        return check

    return entered


class Elsewhere(Exception):
    """A behaviour found out that the engine cannot do it, and that it says which one can."""


async def hold(one: Behaviour, bench: Bench) -> str:
    """Check a behaviour and return `yes`, or `declared` where the engine says that it lacks it and answers so."""
    lacking = one.lacking(bench.info)
    try:
        # A hang is a failure of this one behaviour: the runner's own time limit takes those after it along.
        with anyio.fail_after(HANG_SECONDS):
            if lacking is None:
                await one.check(bench)
                return "yes"
            with pytest.raises((errors.Unsupported, Elsewhere)) as caught:
                await one.check(bench)
        if isinstance(caught.value, errors.Unsupported):
            names_another(caught.value, lacking)
    except Elsewhere:
        pass
    finally:
        await bench.clean()
    return "declared"


@contextmanager
def or_elsewhere(what: str) -> Iterator[None]:
    """Let the engine refuse what is no capability of its own name, as long as it says which engine can."""
    try:
        yield
    except errors.Unsupported as error:
        names_another(error, what)
        raise Elsewhere(what) from error


def names_another(error: errors.Unsupported, capability: str) -> None:
    """Check that a refusal for want of a capability says which engine (or program) has it."""
    text = error.text().lower()
    assert any(name in text for name in (*KINDS, "buildx")), f"names no engine that has {capability}: {text}"
    assert error.hint.strip()
