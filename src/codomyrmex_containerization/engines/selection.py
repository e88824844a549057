"""Which engines are there, and which one does a call mean? Opened when first asked for, under the guard."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import anyio

from codomyrmex_containerization import errors, threads
from codomyrmex_containerization.engines import base, guard, opening
from codomyrmex_containerization.models.container import ContainerState
from codomyrmex_containerization.models.engine import Endpoint, EngineProbe

PROBE_SECONDS = 2.0
TRIAL_SECONDS = 8.0
# Once one engine has answered, one that hangs gets this long: it keeps nobody from what the others say.
GRACE_SECONDS = 5.0
# One that was too slow lately gets only this, for a while.
_SHORT_GRACE_SECONDS = 0.5
_SLOW_FOR_SECONDS = 60.0
WELL_KNOWN_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")

_DEFAULTS = ("docker", "podman", opening.EMBEDDED)

MakeGuarded = Callable[[base.Engine], guard.GuardedEngine]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """What engines answered, by name, and what went wrong with the others."""

    found: Mapping[str, T]
    failed: Mapping[str, errors.ContainerizationError]


class Engines:
    """The engines of one process, opened when first asked for.

    `names` are those that a call may use and that listings ask; the first one that is there serves calls that name none,
    unless `default` says which does. It stays the same for the life of the process.
    """

    def __init__(
        self,
        *,
        names: Sequence[str] = _DEFAULTS,
        default: str | None,
        opener: opening.Opener,
        guarded: MakeGuarded,
    ) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._setting = default
        self._chosen: str | None = None
        self._opener = opener
        self._guarded = guarded
        self._open: dict[tuple[str, str], guard.GuardedEngine] = {}
        self._opening: dict[str, anyio.Lock] = {}
        self._slow_until: dict[str, float] = {}
        self._identities: dict[tuple[str, str], str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The engines that calls may use."""
        return self._names

    @property
    def opened(self) -> tuple[guard.GuardedEngine, ...]:
        """The engines that were opened so far."""
        return tuple(self._open.values())

    async def default(self) -> str:
        """Return the engine of a call that names none: the setting, else the first that is there."""
        if self._setting is not None:
            return self._setting
        if self._chosen is None:
            for name in self._names:
                if await self._answers(name):
                    self._chosen = name
                    break
        return self._chosen or self._names[0]

    async def pick(self, name: str | None = None) -> guard.GuardedEngine:
        """Return an engine by name, or the default one.

        Raises InvalidArgument (no such engine), Refused (settings), EngineUnavailable (nothing found), Unauthorized.
        """
        wanted = name or await self.default()
        self._require_known(wanted)
        endpoint = await self._opener.locate(wanted)
        if endpoint is None:
            raise opening.not_found(name, self._names)
        return await self._opened(wanted, endpoint)

    async def holding(self, container: str, name: str | None) -> guard.GuardedEngine:
        """Return the engine that has a container: the named one, or the one of all that knows it; raises as `find`."""
        return (await self.find(container, name))[0]

    async def find(self, container: str, name: str | None) -> tuple[guard.GuardedEngine, ContainerState | None]:
        """Return the engine that has a container, and the container where looking for it has shown it already.

        The default engine is returned when none has it: asked for the container, it says so in its own words. Raises
        Ambiguous when several engines have a container of this name.
        """
        if name is not None or len(self._names) == 1:
            return await self.pick(name), None
        known = await self._ask_all(lambda engine: _look_for(engine, container))
        holders = {name: found for name, found in known.found.items() if found is not None}
        if len(holders) > 1:
            one, other = list(holders)[:2]
            raise errors.Ambiguous(
                f"{' and '.join(holders)} each have a container {container!r}.",
                hint=f"pass engine={one!r} or engine={other!r}",
            )
        if holders:
            ((name, states),) = holders.items()
            return await self.pick(name), states[0] if states else None
        if known.failed:
            lost, error = next(iter(known.failed.items()))
            raise type(error)(
                f"No engine that answers has a container {container!r}; {lost} could not be asked. {error.message}",
                hint=error.hint,
            ) from error
        return await self.pick(), None

    async def ask(self, name: str | None, question: Callable[[guard.GuardedEngine], Awaitable[T]]) -> Answers[T]:
        """Put a question to one engine, or to all that are there side by side.

        What one of several says wrong is kept, in `failed`. Raises what the named one raises, EngineUnavailable when there is
        no engine at all, and the first error when all fail.
        """
        if name is not None or len(self._names) == 1:
            engine = await self.pick(name)
            return Answers({engine.name: await question(engine)}, {})
        answers = await self._ask_all(question)
        if not answers.found:
            if answers.failed:
                raise next(iter(answers.failed.values()))
            engine = await self.pick()  # says what keeps it from being used
            return Answers({engine.name: await question(engine)}, {})
        return answers

    async def probe(self, only: str | None = None, *, start: bool = True) -> list[EngineProbe]:
        """Ask all engines (or one) side by side what they are, each for at most two seconds once it is found.

        Where several are asked, the way to an engine counts in; only a service that has to be started gets longer, and without
        `start` none is. Raises InvalidArgument (no such engine), Refused (settings).
        """
        if only is not None:
            self._require_known(only)
        names = [only] if only else list(self._names)
        found: dict[str, EngineProbe] = {}

        async def one(name: str) -> None:
            found[name] = await self._probe(name, start=start, waits=only is not None)

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(one, name)
        answered = [(name, one.endpoint.url) for name, one in found.items() if one.info is not None and one.endpoint]
        repeated = await self._repeated({key: self._open[key] for key in answered if key in self._open})
        return [_noted(found[name], repeated.get(name)) for name in names]

    async def look_ahead(self) -> None:
        """Have a first look at what containers on this host use, if nothing was asked yet: the second one need not wait then."""
        if not self._open:
            await self._opener.look_ahead()

    async def attend(self) -> None:
        """Do what engines leave to their clients (Podman's health checks where nobody runs them), until cancelled."""
        await self._opener.attend()

    async def aclose(self) -> None:
        """Close all; may be called twice."""
        while self._open:
            _, engine = self._open.popitem()
            await engine.aclose()
        await self._opener.aclose()

    async def _ask_all(self, question: Callable[[guard.GuardedEngine], Awaitable[T]]) -> Answers[T]:
        found: dict[str, T] = {}
        failed: dict[str, errors.ContainerizationError] = {}
        asked: dict[tuple[str, str], guard.GuardedEngine] = {}
        scope = anyio.CancelScope()
        waiting = set(self._names)

        async def one(name: str) -> None:
            failed[name] = _too_slow(name)
            try:
                await answered(name)
            finally:
                waiting.discard(name)
            if name in found:
                self._slow_until.pop(name, None)
                scope.deadline = min(scope.deadline, anyio.current_time() + self._grace_seconds(waiting))

        async def answered(name: str, *, was_named: bool = False) -> None:
            try:
                endpoint = await self._opener.locate(name, was_named=was_named)
                if endpoint is None:
                    failed.pop(name, None)
                    return
                engine = await self._opened(name, endpoint)
                found[name] = await question(engine)
                asked[name, engine.endpoint.url] = engine
            except errors.ContainerizationError as error:
                failed[name] = error
                return
            failed.pop(name, None)

        with scope:
            async with threads.task_group() as tasks:
                for name in self._names:
                    tasks.start_soon(one, name)
        if not found and not failed and await self.default() == opening.EMBEDDED:
            await answered(opening.EMBEDDED, was_named=True)  # nothing else is there, and it has held nothing yet
        if scope.cancelled_caught:
            late = anyio.current_time() + _SLOW_FOR_SECONDS
            self._slow_until |= {name: late for name in self._names if name in failed and name not in found}
        repeated = await self._repeated(asked)
        ordered = [name for name in self._names if name in found and name not in repeated]
        return Answers({name: found[name] for name in ordered}, failed)

    def _grace_seconds(self, waiting: Collection[str]) -> float:
        now = anyio.current_time()
        known = waiting and all(self._slow_until.get(name, 0.0) > now for name in waiting)
        return _SHORT_GRACE_SECONDS if known else GRACE_SECONDS

    async def _answers(self, name: str) -> bool:
        try:
            return await self._opener.answers(name)
        except errors.ContainerizationError:
            return True

    async def _located(self, name: str) -> Endpoint:
        endpoint = await self._opener.locate(name)
        if endpoint is None:
            raise opening.not_found(name, self._names)
        return endpoint

    async def _opened(self, name: str, endpoint: Endpoint) -> guard.GuardedEngine:
        key = (name, endpoint.url)
        async with self._opening.setdefault(name, anyio.Lock()):
            if key not in self._open:
                self._open[key] = self._guarded(await self._opener.open(endpoint))
            return self._open[key]

    async def _repeated(self, asked: Mapping[tuple[str, str], guard.GuardedEngine]) -> dict[str, str]:
        """Return the names that mean an engine which another one means too, the default one or an earlier one, with that one."""
        if len(asked) < 2:
            return {}
        first = await self.default()
        repeated: dict[str, str] = {}
        kept: list[guard.GuardedEngine] = []
        for key in sorted(asked, key=lambda key: (key[0] != first, self._rank(key[0]))):
            engine = asked[key]
            same = [one.name for one in kept if one.name != engine.name and await self._is_same(one, engine)]
            if same:
                repeated[engine.name] = same[0]
            else:
                kept.append(engine)
        return repeated

    def _rank(self, name: str) -> int:
        return self._names.index(name) if name in self._names else len(self._names)

    async def _is_same(self, one: guard.GuardedEngine, other: guard.GuardedEngine) -> bool:
        if _place(one.endpoint) == _place(other.endpoint):
            return True
        if one.endpoint.kind != other.endpoint.kind:
            return False
        identity = await self._identity(one)
        return bool(identity) and identity == await self._identity(other)

    async def _identity(self, engine: guard.GuardedEngine) -> str:
        key = (engine.name, engine.endpoint.url)
        if key not in self._identities:
            try:
                self._identities[key] = (await engine.info(deadline_seconds=PROBE_SECONDS)).identity
            except errors.ContainerizationError:
                return ""  # shown twice rather than not at all
        return self._identities[key]

    async def _probe(self, name: str, *, start: bool, waits: bool) -> EngineProbe:
        endpoint = None
        # What is asked there is this machine, at the first time by really running a container.
        seconds = TRIAL_SECONDS if name == opening.EMBEDDED else PROBE_SECONDS
        try:
            is_cold = await self._opener.would_start(name)
            if is_cold and not start:
                return EngineProbe(name, None, None, reason="Its service does not run.", remedy="name it in a call")
            if is_cold or waits:
                endpoint = await self._located(name)
            with anyio.fail_after(seconds):
                endpoint = endpoint or await self._located(name)
                engine = await self._opened(name, endpoint)
                info = await engine.info(deadline_seconds=seconds)
        except TimeoutError:
            reason = f"It did not answer within {seconds:g} seconds."
            remedy = (
                "see whether the engine hangs, and restart it"
                if endpoint is not None
                else f"container_runtime_status(engine={name!r}) waits longer for the way to it"
            )
            with suppress(errors.ContainerizationError):
                endpoint = endpoint or await self._opener.address(name)
            return EngineProbe(name, endpoint, None, reason=reason, remedy=remedy)
        except errors.ContainerizationError as error:
            return EngineProbe(name, endpoint, None, reason=error.message, remedy=error.hint)
        self._identities[name, endpoint.url] = info.identity
        return EngineProbe(name, endpoint, info)

    def _require_known(self, name: str) -> None:
        if self._opener.knows(name):
            if name in _DEFAULTS and name not in self._names:
                raise errors.Refused(
                    f"{name} may not be used: the setting 'engines' leaves it out.",
                    hint=f"use one of: {', '.join(self._names)}",
                )
            return
        raise errors.InvalidArgument(f"There is no engine {name[:80]!r}.", hint=f"use one of: {', '.join(self._names)}")


async def _look_for(engine: guard.GuardedEngine, container: str) -> tuple[ContainerState, ...] | None:
    """Return the container, nothing when several of this engine's are meant, None when it has none."""
    try:
        return (await engine.inspect_container(container.lstrip("/")),)
    except errors.Ambiguous:
        return ()
    except (errors.NotFound, errors.InvalidArgument):
        return None


def _place(endpoint: Endpoint) -> tuple[int, int] | str:
    """Return what is the same for two names of one socket."""
    if endpoint.socket_path is not None:
        with suppress(OSError, ValueError):
            found = os.stat(endpoint.socket_path)
            return found.st_dev, found.st_ino
    return endpoint.url


def _noted(probe: EngineProbe, same: str | None) -> EngineProbe:
    if probe.info is None or same is None:
        return probe
    note = f"this is the same engine as {same}: listings show its objects once, as those of {same}"
    return replace(probe, info=replace(probe.info, notes=(*probe.info.notes, note)))


def _too_slow(name: str) -> errors.ContainerizationError:
    return errors.DeadlineExceeded(
        f"{name} had not answered {GRACE_SECONDS:g} seconds after the others.",
        hint=f"pass engine={name!r} to wait for it, or see container_runtime_status",
    )
