"""What does a process of ours consist of? Settings, folders, this run, engines and the dispatcher, opened together and closed together."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from codomyrmex_containerization import config, errors, policy, redact
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.dispatch import runs
from codomyrmex_containerization.dispatch.audit import Audit
from codomyrmex_containerization.dispatch.call import Dispatcher
from codomyrmex_containerization.engines import base, guard, opening, selection
from codomyrmex_containerization.models.settings import Settings
from codomyrmex_containerization.tools import _discovery
from codomyrmex_containerization.tools._decorator import ToolSpec

_REAP_SECONDS = 60.0


@dataclass(slots=True)
class Application:
    """One process's parts."""

    settings: Settings
    dispatcher: Dispatcher
    engines: selection.Engines
    redactor: redact.Redactor
    run: runs.Run
    runs_folder: Path
    audit: Audit

    @property
    def has_dead_runs(self) -> bool:
        """Whether there is something to reap."""
        return runs.any_dead(self.runs_folder, self.run.run)

    async def reap(self, *, dry_run: bool = False) -> list[str]:
        """Take away what dead runs left; return a line for each object. Errors of engines leave it for the next start."""
        with anyio.move_on_after(_REAP_SECONDS):
            return await runs.reap(self.engines, self.runs_folder, self.run.host, self.run.run, dry_run=dry_run)
        raise errors.DeadlineExceeded(
            f"Looking for what dead runs left took longer than {_REAP_SECONDS:g} seconds.",
            hint="see container_runtime_status; the next start tries again",
        )

    def log_to_stderr(self) -> None:
        """Have messages written to stderr, which is a way out like any other: libraries that tell what they do tell secrets as well."""
        redactor = self.redactor

        class Redacting(logging.Formatter):
            def format(self, record: logging.LogRecord) -> str:
                return redactor.text(super().format(record))

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Redacting("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=self.settings.log_level.upper(), handlers=[handler])

    async def aclose(self) -> None:
        """Remove what is still to be removed, close everything; may be called twice."""
        if self.run.has_leftovers:
            await self.run.sweep(self.engines)
        await self.engines.aclose()
        self.close_files()

    def close_files(self) -> None:
        """Give up the run's lock and the audit file."""
        self.run.close()
        self.audit.close()

    def let_go(self) -> None:
        """Leave everything to the process that this one was forked from."""
        self.run.let_go()
        self.audit.let_go()


def tools() -> Mapping[str, ToolSpec]:
    """Return all tools there are."""
    return _discovery.all_tools()


def open_application(loaded: config.LoadedSettings, *, environ: Mapping[str, str] | None = None) -> Application:
    """Open what a process needs. Raises Refused when the state folder is not private, InvalidArgument for unknown toolsets and tools."""
    environ = os.environ if environ is None else environ
    settings = loaded.settings
    check_names(loaded)
    folders = config.folders(environ)
    runs_folder = config.ensure_private(folders.state / "runs")
    audit = Audit(config.ensure_private(folders.state / "audit"), settings.audit)
    run = runs.Run(runs_folder)
    paths = _path_rules(settings, folders, environ)
    redactor = redact.Redactor.from_environment(environ)

    def guarded(engine: base.Engine) -> guard.GuardedEngine:
        return guard.GuardedEngine(
            engine,
            rules=settings.policy,
            paths=paths,
            ledger=run,
            redactor=redactor,
            isolation=settings.isolation,
        )

    options = opening.Options(
        timeout_seconds=settings.engine_timeout_seconds,
        buildx=settings.buildx,
        scratch=run.scratch,
        folder=folders.state,
        data=folders.data,
        podman_service=settings.podman_service == "auto",
        named=settings.endpoints,
        registries=settings.registries,
        learn=redactor.learn,
    )
    engines = selection.Engines(
        names=(*settings.engines, *settings.endpoints),
        default=settings.engine,
        opener=opening.Opener(options, environ),
        guarded=guarded,
    )
    sweeping = False

    async def before() -> None:
        nonlocal sweeping
        if run.has_leftovers and not sweeping:
            sweeping = True
            try:
                with anyio.move_on_after(5.0):
                    await run.sweep(engines)
            finally:
                sweeping = False

    context = Context(settings=settings, engines=engines, redactor=redactor, paths=paths)
    dispatcher = Dispatcher(tools=tools(), settings=settings, context=context, audit=audit, before=before)
    return Application(settings, dispatcher, engines, redactor, run, runs_folder, audit)


def check_names(loaded: config.LoadedSettings) -> None:
    """Raise InvalidArgument for engines, toolsets or tools that do not exist, unless only the working folder's file names them."""
    settings = loaded.settings
    engines = {*opening.BUILT_IN, *settings.endpoints}
    _require_known(loaded, "engines", settings.engines, lambda: engines)
    _require_known(loaded, "engine", [settings.engine] if settings.engine else [], lambda: engines)
    # Asking which tools there are imports them all: only for names that are not the usual ones.
    sets = [name for name in settings.toolsets if name not in ("default", "all")]
    _require_known(loaded, "toolsets", sets, lambda: {*_discovery.toolsets(tools()), "default", "all"})
    _require_known(loaded, "tools", settings.tools, lambda: set(tools()))
    _require_known(loaded, "exclude_tools", settings.exclude_tools, lambda: set(tools()))


def _require_known(
    loaded: config.LoadedSettings, key: str, names: Sequence[str], known: Callable[[], Collection[str]]
) -> None:
    if not names or loaded.sources[key].kind == "working folder":
        return
    there_are = known()
    unknown = [name for name in names if name not in there_are]
    if unknown:
        raise errors.InvalidArgument(
            f"{key} names {unknown[0]!r}, which does not exist.", hint=f"there are: {', '.join(sorted(there_are))}"
        )


def _path_rules(settings: Settings, folders: config.Folders, environ: Mapping[str, str]) -> guard.PathRules:
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    named = settings.policy.allowed_paths
    if named is not None:
        allowed = tuple(Path(os.path.realpath(Path(path).expanduser())) for path in named)
    else:
        allowed = config.default_allowed_paths(Path.cwd(), home, Path(tempfile.gettempdir()))
    protected = policy.protected_paths(home, selection.WELL_KNOWN_SOCKETS, (folders.state, folders.data, folders.cache))
    return guard.PathRules(allowed=allowed, named=named is not None, protected=_resolved(protected))


def _resolved(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(one for path in paths for one in (path, Path(os.path.realpath(path)))))
