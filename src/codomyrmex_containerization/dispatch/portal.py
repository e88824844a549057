"""How does code without an event loop call a tool? Through one thread of this process, begun by the first call and closed with the process.

It works from any thread, also from one whose own event loop runs (which waits meanwhile). A forked process begins its own and leaves its
parent's alone.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal

from codomyrmex_containerization import config, errors
from codomyrmex_containerization.dispatch.application import Application, open_application
from codomyrmex_containerization.dispatch.call import Caller, Outcome

logger = logging.getLogger(__name__)

# A model's context is small; a program has room.
_ROOM_CHARACTERS = 200_000
# What a call had begun is removed in this time.
_CLOSING_SECONDS = 20.0


def call(
    tool: str,
    arguments: Mapping[str, Any],
    *,
    agreed: bool = False,
    roomy: bool = False,
    docker_host: str | None = None,
) -> Outcome:
    """Carry a call out and wait for its end.

    `agreed` is a person's word given beforehand, `roomy` allows an answer of 200,000 characters unless a bound was set, `docker_host` is
    another engine's address than the environment names. Raises what opening raises: InvalidArgument, Refused.
    """
    return _running().call(tool, arguments, agreed=agreed, roomy=roomy, docker_host=docker_host)


def close() -> None:
    """Cancel what runs, remove what it made, end the thread; may be called twice. The next call begins a new one."""
    global _portal
    with _lock:
        portal, _portal = _portal, None
    if portal is not None:
        portal.close()


class _Portal:
    """The thread, and the applications whose calls run in it: one for each engine address that was asked for."""

    def __init__(self) -> None:
        self._loaded = config.load()
        self._opening = threading.Lock()
        self._applications: dict[str | None, Application] = {}
        self.application(None)
        started: concurrent.futures.Future[BlockingPortal] = concurrent.futures.Future()
        # A daemon, and so are the threads that it begins: none holds up the end of the process.
        self._thread = threading.Thread(target=self._run, args=(started,), name="containerization", daemon=True)
        self._thread.start()
        self._portal = started.result()

    def application(self, docker_host: str | None) -> Application:
        """Return the application for an engine's address, opened when first asked for. Raises InvalidArgument, Refused."""
        with self._opening:
            if docker_host not in self._applications:
                environ = {**os.environ, "DOCKER_HOST": docker_host} if docker_host else None
                opened = open_application(self._loaded, environ=environ)
                if not self._applications:
                    for warning in self._loaded.warnings:
                        logger.warning("%s", opened.redactor.text(warning))
                self._applications[docker_host] = opened
            return self._applications[docker_host]

    def call(
        self, tool: str, arguments: Mapping[str, Any], *, agreed: bool, roomy: bool, docker_host: str | None
    ) -> Outcome:
        """Run one call in the thread."""
        application = self.application(docker_host)
        caller = Caller("python", agreed=agreed, characters=self._room() if roomy else None)
        future: concurrent.futures.Future[Outcome]
        try:
            future = self._portal.start_task_soon(application.dispatcher.call, tool, arguments, caller)
        except RuntimeError as error:
            raise _closed() from error
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise _closed() from error
        except BaseException:  # Control-C: what the call has begun is taken back
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread; may be called twice."""
        with suppress(RuntimeError):
            self._portal.start_task_soon(self._portal.stop, True)
        self._thread.join(_CLOSING_SECONDS + 1.0)
        for application in self._applications.values():
            application.close_files()

    def let_go(self) -> None:
        """Leave all to the process that this one was forked from."""
        for application in self._applications.values():
            application.let_go()

    def _room(self) -> int | None:
        return _ROOM_CHARACTERS if self._loaded.sources["answer_characters"].kind == "default" else None

    def _run(self, started: concurrent.futures.Future[BlockingPortal]) -> None:
        try:
            anyio.run(self._serve, started)
        except BaseException as error:
            # Handed to the one who waits for the start, or written down.
            if started.done():
                logger.error("the thread of the calls ended", exc_info=error)
            else:
                started.set_exception(error)

    async def _serve(self, started: concurrent.futures.Future[BlockingPortal]) -> None:
        try:
            async with BlockingPortal() as portal, anyio.create_task_group() as tasks:
                started.set_result(portal)
                tasks.start_soon(_reap, self._applications[None])
                await portal.sleep_until_stopped()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_CLOSING_SECONDS, shield=True):
                for application in list(self._applications.values()):
                    with suppress(Exception):  # at the end of the process no thread can be begun any more
                        await application.aclose()


_lock = threading.Lock()
_portal: _Portal | None = None
_is_prepared = False
_parents: list[_Portal] = []


def _running() -> _Portal:
    global _portal, _is_prepared
    if not _is_prepared:
        _is_prepared = True
        atexit.register(close)
        os.register_at_fork(after_in_child=_after_fork)
    with _lock:
        if _portal is None:
            _portal = _Portal()
        return _portal


def _after_fork() -> None:
    # The thread does not live here, and whoever held the lock may not either. Nothing of the parent's is closed but the copies of its
    # files; its event loop is kept as it is, since taking it down would reach into the parent's through what both share.
    global _lock, _portal
    _lock = threading.Lock()
    if _portal is not None:
        _portal.let_go()
        _parents.append(_portal)
        _portal = None


async def _reap(application: Application) -> None:
    if not (application.settings.reap_at_start and application.has_dead_runs):
        return
    try:
        for line in await application.reap():
            logger.info("removed what a dead run had left: %s", line)
    except Exception:  # nothing that goes wrong here may end the calls
        logger.warning("what dead runs left could not be looked at", exc_info=True)


def _closed() -> errors.Cancelled:
    return errors.Cancelled("The process was ending, or the portal was closed, during the call.", hint="call again")
