"""How does a command reach the dispatcher? One event loop around one application, closed whatever happens."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from codomyrmex_containerization.cli import options, progress
from codomyrmex_containerization.cli.screen import Screen

if TYPE_CHECKING:
    from codomyrmex_containerization.config import LoadedSettings
    from codomyrmex_containerization.dispatch.application import Application
    from codomyrmex_containerization.dispatch.call import Caller, Reply

T = TypeVar("T")

# A model's context is small; a terminal and a pipe have room.
_ANSWER_CHARACTERS = 200_000
_CLOSING_SECONDS = 30.0


class Interrupted(Exception):
    """A signal ended the command; what it had begun is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def load(given: options.Given, screen: Screen) -> LoadedSettings:
    """Read the settings, flags included, and show what was ignored. Raises InvalidArgument, Refused."""
    from codomyrmex_containerization import config

    loaded = config.load(config_file=given.config_file, flags=given.settings)
    for warning in loaded.warnings:
        screen.warning(redacted(warning))
    return loaded


def run(given: options.Given, screen: Screen, work: Callable[[Application], Awaitable[T]]) -> T:
    """Open an application, do the work in it and close it. Raises Interrupted when a signal ended it, and what opening raises."""
    loaded = _with_room(load(given, screen))
    import anyio

    from codomyrmex_containerization.dispatch import application

    opened = application.open_application(loaded)
    try:
        opened.log_to_stderr()
        return anyio.run(_run, opened, work)
    finally:
        opened.close_files()


async def _run(application: Application, work: Callable[[Application], Awaitable[T]]) -> T:
    import anyio

    from codomyrmex_containerization import threads

    result: list[T] = []
    caught: list[int] = []
    async with threads.task_group() as tasks:

        async def watch() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                async for number in signals:
                    if caught:  # a second time: at once; what is left wears its label and goes with the next cleanup
                        os._exit(128 + number)
                    caught.append(number)
                    scope.cancel()

        tasks.start_soon(watch)
        with anyio.CancelScope() as scope:
            try:
                result.append(await work(application))
            finally:
                with anyio.move_on_after(_CLOSING_SECONDS, shield=True):
                    await application.aclose()
        tasks.cancel_scope.cancel()
    if caught and not result:
        raise Interrupted(caught[0])
    return result[0]


def caller(given: options.Given, screen: Screen, shown: progress.Reporter) -> Caller:
    """Return who calls: a person who can be asked when there is a terminal."""
    from codomyrmex_containerization.dispatch.call import Caller

    async def ask(question: str) -> Reply:
        from codomyrmex_containerization import threads

        return await threads.run(lambda: _ask(screen, question), deadline_seconds=None, what="the answer")

    return Caller("cli", progress=shown.report, ask=ask if options.can_ask() else None, agreed=given.yes)


def redacted(text: str) -> str:
    """Take secrets out of a text that no dispatcher has seen."""
    from codomyrmex_containerization import redact

    return redact.Redactor.from_environment(os.environ).text(text)


def _ask(screen: Screen, question: str) -> Reply:
    screen.flush()
    screen.note(question)
    screen.err.write("Go on? [y/N] ")
    screen.err.flush()
    answer = sys.stdin.readline()
    if not answer:
        screen.note("")
        return "cancel"
    return "accept" if answer.strip().lower() in ("y", "yes") else "decline"


def _with_room(loaded: LoadedSettings) -> LoadedSettings:
    """Raise the bound of an answer, unless somebody set it."""
    from dataclasses import replace

    if loaded.sources["answer_characters"].kind != "default":
        return loaded
    return replace(loaded, settings=loaded.settings.model_copy(update={"answer_characters": _ANSWER_CHARACTERS}))
