"""How does the server live and end? On stdio, until EOF, SIGTERM or SIGINT, and then within half a second."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from contextlib import suppress

import anyio
from mcp.server.stdio import stdio_server

from codomyrmex_containerization import __version__, config
from codomyrmex_containerization.dispatch.application import Application, open_application
from codomyrmex_containerization.server import adapter

logger = logging.getLogger(__name__)

# What a running call made is removed in this time, or left, labelled, to the reaper of the next start.
_GRACE_SECONDS = 0.4


def serve(loaded: config.LoadedSettings) -> None:
    """Serve MCP on stdin and stdout; ends the process."""
    application = open_application(loaded)
    application.log_to_stderr()
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    code = 0
    try:
        code = anyio.run(_serve, application)
    finally:
        application.close_files()
        _leave(code)


async def _serve(application: Application) -> int:
    server = adapter.make_server(
        application.dispatcher,
        version=__version__,
        instructions=adapter.instructions(application.dispatcher.listed),
        output_schemas=application.settings.output_schemas,
    )
    # What was imported and built is here to stay; __main__ had stopped the search for garbage in it.
    gc.freeze()
    gc.enable()
    code = 0
    async with anyio.create_task_group() as tasks:

        async def watch_signals() -> None:
            nonlocal code
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for number in signals:
                    code = 128 + number
                    _leave_soon(code)
                    tasks.cancel_scope.cancel()
                    return

        tasks.start_soon(watch_signals)
        # Asking an engine means importing its library: not while the client waits for its first answer, unless there is a reason.
        if application.settings.reap_at_start and application.has_dead_runs:
            tasks.start_soon(_reap, application)
        tasks.start_soon(_attend, application)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())
            _leave_soon(0)
        tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await application.aclose()
    return code


async def _reap(application: Application) -> None:
    try:
        for line in await application.reap():
            done = "" if line.startswith("NOT ") else "removed what a dead run had left: "
            logger.warning("%s%s", done, line)
    except Exception:  # nothing that goes wrong here may end the server
        logger.warning("what dead runs left could not be looked at", exc_info=True)


async def _attend(application: Application) -> None:
    try:
        await application.engines.attend()
    except Exception:  # nothing that goes wrong here may end the server
        logger.warning("health checks are not run any more", exc_info=True)


def _leave_soon(code: int) -> None:
    # A daemon thread, because the event loop may be waiting for an engine that hangs.
    timer = threading.Timer(_GRACE_SECONDS, _leave, [code])
    timer.daemon = True
    timer.start()


def _leave(code: int) -> None:
    # Not sys.exit: the library's reader thread, or an abandoned one, would hold the process.
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)
