"""What is the life of a container here: made, started, checked, stopped, started again?"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
from anyio.abc import TaskGroup

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.memory import files, kernel, log, objects, programs, streams
from codomyrmex_containerization.models.container import (
    ContainerSpec,
    ContainerStatus,
    Healthcheck,
    HealthStatus,
    MountPoint,
    Stream,
)
from codomyrmex_containerization.models.details import ExecSpec, NetworkAttachment

_COMMAND_HINT = "check the command and the entrypoint: the program must exist and be executable in the image"
_FOREIGN_HINT = "memory runs only programs of its own: use docker or podman"
_RESTART_SECONDS, _LONGEST_RESTART_SECONDS, _STEADY_SECONDS = 0.1, 60.0, 10.0
_HEALTH_SECONDS, _HEALTH_RETRIES, _HEALTH_OUTPUT_CHARACTERS = 30.0, 3, 4096


@dataclass(slots=True)
class Exec:
    """A command in a container."""

    id: str
    spec: ExecSpec
    output: log.Output = field(default_factory=log.Output)
    process: kernel.Process | None = None
    exit_code: int | None = None


class Container:
    """One container."""

    def __init__(self, held: objects.Keeper, spec: ContainerSpec, image: objects.Image, *, name: str) -> None:
        self.id = objects.new_id()
        self.name = name
        self.spec = spec
        self.image = image
        self.created = datetime.now(tz=UTC)
        self.status: ContainerStatus = "created"
        self.exit_code = 0
        self.error = ""
        self.started_at: datetime | None = None
        self.finished_at: datetime | None = None
        self.restart_count = 0
        self.health: HealthStatus = "none"
        self.health_failures = 0
        self.health_output = ""
        self.log = log.Log()
        self.output = log.Output(self.log)
        self.execs: dict[str, Exec] = {}
        self.networks: dict[str, NetworkAttachment] = {}
        self.mounts: list[MountPoint] = []
        self.kernel: kernel.Kernel | None = None
        self.given: bytes | None = None
        self.root = image.tree.copy()
        self.view = files.View(self.root, read_only=spec.read_only_rootfs)
        self._store = held
        self._first: kernel.Process | None = None
        self._stopped_by_hand = False
        self._pause_seconds = _RESTART_SECONDS
        self._changed = anyio.Event()

    # ------------------------------------------------------------------- what it is

    @property
    def is_alive(self) -> bool:
        """Whether it runs, is frozen, or is about to run again."""
        return self.status in ("running", "paused", "restarting")

    @property
    def hostname(self) -> str:
        """What it is called inside."""
        return self.id[:12]

    @property
    def env(self) -> tuple[str, ...]:
        """The image's variables and its own."""
        found = dict(one.partition("=")[::2] for one in self.image.config.env)
        found = {"PATH": kernel.DEFAULT_PATH, **found, **self.spec.env}
        return tuple(f"{name}={value}" for name, value in found.items())

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """The words before the command."""
        given = self.spec.entrypoint if self.spec.entrypoint is not None else self.image.config.entrypoint
        return () if given == ("",) else given

    @property
    def command(self) -> tuple[str, ...]:
        """The command; an entrypoint of its own makes the image's command void."""
        if self.spec.command is not None:
            return self.spec.command
        return () if self.spec.entrypoint is not None else self.image.config.command

    @property
    def workdir(self) -> str:
        """The folder it starts in."""
        return self.spec.workdir or self.image.config.workdir or "/"

    @property
    def user(self) -> str:
        """On whose behalf it runs."""
        return self.spec.user if self.spec.user is not None else self.image.config.user

    @property
    def healthcheck(self) -> Healthcheck | None:
        """Its check, if it has one."""
        check = self.spec.healthcheck or self.image.config.healthcheck
        return check if check is not None and check.test and check.test[0] != "NONE" else None

    def note(self, action: str, **attributes: str) -> None:
        """Remember that something happened to it."""
        labels = {**self.image.config.labels, **self.spec.labels}
        self._store.note("container", action, self.id, self.name, {"image": self.spec.image, **labels, **attributes})

    def _become(self, status: ContainerStatus) -> None:
        self.status = status
        self._changed.set()
        self._changed = anyio.Event()

    # ----------------------------------------------------------------------- start

    def start(self, tasks: TaskGroup) -> None:
        """Start it. Raises Conflict (frozen), CommandFailed, InvalidArgument."""
        if self.status == "paused":
            raise errors.Conflict(f"Container {self.name} is paused.", hint="unpause it first")
        if self.status in ("running", "restarting"):
            return
        self._stopped_by_hand, self._pause_seconds = False, _RESTART_SECONDS
        self.restart_count = 0
        self._run(tasks)

    def _run(self, tasks: TaskGroup) -> None:
        words = [*self.entrypoint, *self.command]
        env = dict(one.partition("=")[::2] for one in self.env)
        running = kernel.Kernel(self.view, tasks, programs.PROGRAMS, hostname=self.hostname)
        try:
            who = kernel.find_user(self.view, self.user)
            self.view.make_folders(self.workdir, files.ROOT, force=True)
            running.find(words, env=env, cwd=self.workdir, who=who)
        except LookupError as problem:
            raise self._not_started(126, str(problem), errors.InvalidArgument) from problem
        except kernel.CannotStart as problem:
            kind = errors.Unsupported if isinstance(problem, kernel.Foreign) else errors.CommandFailed
            raise self._not_started(problem.code, problem.reason, kind) from problem
        except OSError as problem:
            raise self._not_started(126, kernel.said(problem), errors.InvalidArgument) from problem
        env = {"PATH": env.pop("PATH"), "HOSTNAME": self.hostname, **env}
        env.setdefault("HOME", who.home)
        self.kernel = running
        self.log.begin()
        fds = {0: self._stdin(), 1: self._sink("stdout"), 2: self._sink("stderr")}
        self._first = running.start(words, env=env, cwd=self.workdir, who=who, fds=fds)
        self.started_at, self.finished_at, self.error, self.exit_code = datetime.now(tz=UTC), None, "", 0
        self.health = "starting" if self.healthcheck is not None else "none"
        self.health_failures = 0
        self._become("running")
        self.note("start")
        tasks.start_soon(self._watch, self._first, tasks)
        if self.healthcheck is not None:
            tasks.start_soon(self._check, self.healthcheck, running)

    def _not_started(
        self, code: int, reason: str, kind: type[errors.ContainerizationError]
    ) -> errors.ContainerizationError:
        self.exit_code, self.error = code, reason
        self.output.end()
        hints = {errors.CommandFailed: _COMMAND_HINT, errors.Unsupported: _FOREIGN_HINT}
        hint = hints.get(kind, "mend the argument that the message names")
        return kind(f"{self._store.engine} says, while starting the container: {reason}", hint=hint)

    def _stdin(self) -> streams.Stream:
        if self.given is not None:
            data, self.given = self.given, None
            return streams.Held(data)
        if self.spec.stdin_open:
            return streams.Pipe().reader
        return streams.Special("null")

    def _sink(self, stream: Stream) -> streams.Stream:
        async def put(data: bytes) -> None:
            await self.output.put(stream, data)

        return streams.Sink(put, lambda: None)

    # ------------------------------------------------------------------------- end

    async def _watch(self, first: kernel.Process, tasks: TaskGroup) -> None:
        code = 137
        try:
            code = await first.wait()
        except BaseException:
            self._stopped_by_hand = True  # the event loop ends
            raise
        finally:
            if self.kernel is not None:
                self.kernel.end()
            self._ended(code)
        await self._restart(tasks)

    def _ended(self, code: int) -> None:
        self.exit_code, self.finished_at = code, datetime.now(tz=UTC)
        self.log.flush()
        self.note("die", exitCode=str(code))
        for command in self.execs.values():
            command.exit_code = 137 if command.process is not None and command.exit_code is None else command.exit_code
        self._become("restarting" if self._starts_again(code) else "exited")
        if self.status == "exited":
            self.output.end()

    def _starts_again(self, code: int) -> bool:
        policy = self.spec.restart
        if self._stopped_by_hand or not self._store.keeps(self.id):
            return False
        if policy.name == "on-failure":
            return code != 0 and not 0 < policy.maximum_retry_count <= self.restart_count
        return policy.name in ("always", "unless-stopped")

    async def _restart(self, tasks: TaskGroup) -> None:
        if self.status != "restarting":
            return
        ran = (datetime.now(tz=UTC) - (self.started_at or datetime.now(tz=UTC))).total_seconds()
        self._pause_seconds = _RESTART_SECONDS if ran > _STEADY_SECONDS else self._pause_seconds
        await anyio.sleep(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_RESTART_SECONDS)
        # Somebody may have stopped it meanwhile.
        if not self.is_alive:
            return
        self.restart_count += 1
        try:
            self._run(tasks)
        except errors.ContainerizationError:
            self._become("exited")

    async def wait(self) -> int:
        """Wait until it does not run; return its exit code."""
        while self.is_alive:
            await self._changed.wait()
        return self.exit_code

    async def stop(self, timeout_seconds: float) -> None:
        """Ask it to end, and kill it when it does not."""
        if not self.is_alive:
            return
        self._stopped_by_hand = True
        if self.status == "restarting":
            self._end_restarting()
        else:
            self.signal(self.image.config.stop_signal, "kill")
            with anyio.move_on_after(timeout_seconds):
                await self.wait()
            if self.is_alive:
                self.signal("KILL", "kill")
                await self.wait()
        self.note("stop")

    def _end_restarting(self) -> None:
        self._become("exited")
        self.output.end()

    async def kill(self, signal: str) -> None:
        """Send it a signal; KILL is waited for. Raises Conflict, InvalidArgument."""
        number = kernel.signal_number(signal)
        if number is None:
            raise errors.InvalidArgument(f"There is no signal {signal!r}.", hint="use a name such as TERM, KILL or HUP")
        if not self.is_alive or self.status == "restarting":
            if self.status == "restarting" and number == kernel.SIGNALS["KILL"]:
                self._stopped_by_hand = True
                self._end_restarting()
                return
            raise errors.Conflict(f"Container {self.name} is not running.", hint="start it first")
        if number == kernel.SIGNALS["KILL"]:
            self._stopped_by_hand = True
        self.signal(str(number), "kill")
        if number == kernel.SIGNALS["KILL"]:
            await self.wait()

    def signal(self, signal: str, action: str) -> None:
        """Send a signal to the first process."""
        number = kernel.signal_number(signal) or kernel.SIGNALS["TERM"]
        self.note(action, signal=str(number))
        if self._first is not None:
            self._first.signal(number)

    def freeze(self, frozen: bool) -> None:
        """Freeze or thaw it. Raises Conflict."""
        wanted: ContainerStatus = "running" if frozen else "paused"
        if self.status != wanted or self.kernel is None:
            state = "is already paused" if self.status == "paused" else "is not " + ("running" if frozen else "paused")
            raise errors.Conflict(
                f"Container {self.name} {state}.", hint="look at its state, container_control changes it"
            )
        self.kernel.freeze(frozen)
        self._become("paused" if frozen else "running")
        self.note("pause" if frozen else "unpause")

    # -------------------------------------------------------------------- commands

    def prepare(self, spec: ExecSpec) -> Exec:
        """Prepare a command. Raises Conflict (it does not run)."""
        if self.status != "running":
            state = "paused: unpause it before" if self.status == "paused" else "not running"
            raise errors.Conflict(
                f"Container {self.name} is {state}.", hint="look at its state, container_control changes it"
            )
        made = Exec(objects.new_id(), spec)
        self.execs[made.id] = made
        return made

    def run(self, command: Exec, *, stdin: bytes | None, tasks: TaskGroup) -> log.Feed:
        """Start a prepared command. Raises CommandFailed, InvalidArgument, Conflict."""
        spec = command.spec
        if self.status != "running" or self.kernel is None:
            raise errors.Conflict(f"Container {self.name} is not running.", hint="start it first")
        feed = log.Feed()
        command.output.feeds.append(feed)
        left = {"stdout", "stderr"}

        def sink(stream: Stream) -> streams.Stream:
            async def put(data: bytes) -> None:
                await command.output.put(stream, data)

            def ended() -> None:
                left.discard(stream)
                if not left:
                    feed.end()

            return streams.Sink(put, ended)

        env = {**dict(one.partition("=")[::2] for one in self.env), **spec.env}
        fds = {0: streams.Held(stdin or b""), 1: sink("stdout"), 2: sink("stderr")}
        cwd = spec.workdir or self.workdir
        try:
            who = kernel.find_user(self.view, spec.user if spec.user is not None else self.user)
            if not cwd.startswith("/"):
                raise NotADirectoryError(0, "Cwd must be an absolute path", cwd)
            self.view.folder(cwd, "/", who)
            env.setdefault("HOME", who.home)
            command.process = self.kernel.start(spec.command, env=env, cwd=posixpath.normpath(cwd), who=who, fds=fds)
        except LookupError as problem:
            command.exit_code = 126
            raise errors.InvalidArgument(
                f"There is no user {spec.user!r} in the container: {problem}",
                hint="use a name in its /etc/passwd, or numbers",
            ) from problem
        except OSError as problem:
            command.exit_code = 126
            raise errors.InvalidArgument(
                f"The command could not be started in {cwd!r}: {kernel.said(problem)}",
                hint="workdir is an absolute path of a folder that is in the container",
            ) from problem
        except kernel.Foreign as problem:
            command.exit_code = problem.code
            raise errors.Unsupported(
                f"{spec.command[0]!r} could not be started: {problem.reason}", hint=_FOREIGN_HINT
            ) from problem
        except kernel.CannotStart as problem:
            command.exit_code = problem.code
            raise errors.CommandFailed(
                f"{spec.command[0] if spec.command else ''!r} could not be started: {problem.reason}",
                hint="check that the program is in the container (its path, its shell) and executable",
                details={"exit_code": problem.code},
            ) from problem
        tasks.start_soon(self._exec_ended, command, command.process)
        return feed

    async def _exec_ended(self, command: Exec, process: kernel.Process) -> None:
        command.exit_code = await process.wait()

    # ---------------------------------------------------------------------- health

    async def _check(self, check: Healthcheck, running: kernel.Kernel) -> None:
        shell = check.test[0] == "CMD-SHELL"
        words = ("/bin/sh", "-c", *check.test[1:]) if shell else check.test[1:]
        began = anyio.current_time()
        while True:
            await anyio.sleep(check.interval_seconds or _HEALTH_SECONDS)
            if running.ended or self.kernel is not running:
                return
            if self.status != "running":
                continue
            code = await self._checked(words, check.timeout_seconds or _HEALTH_SECONDS)
            if running.ended or self.kernel is not running:
                return
            if code == 0:
                self.health_failures, now = 0, "healthy"
            else:
                early = self.health == "starting" and anyio.current_time() - began < (check.start_period_seconds or 0)
                self.health_failures += not early
                now = "unhealthy" if self.health_failures >= (check.retries or _HEALTH_RETRIES) else self.health
            if now != self.health:
                self.health = "healthy" if now == "healthy" else "unhealthy"
                self.note(f"health_status: {now}")

    async def _checked(self, words: tuple[str, ...], timeout_seconds: float) -> int:
        said = bytearray()
        running = self.kernel

        async def put(data: bytes) -> None:
            said.extend(data[: _HEALTH_OUTPUT_CHARACTERS - len(said)])

        if running is None:
            return 1
        env = dict(one.partition("=")[::2] for one in self.env)
        fds = {0: streams.Special("null"), 1: streams.Sink(put, lambda: None), 2: streams.Sink(put, lambda: None)}
        try:
            who = kernel.find_user(self.view, self.user)
            process = running.start(words, env=env, cwd=self.workdir, who=who, fds=fds)
        except (LookupError, kernel.CannotStart) as problem:
            self.health_output = str(problem)
            return 1
        code = 1
        with anyio.move_on_after(timeout_seconds) as scope:
            code = await process.wait()
        if scope.cancelled_caught:
            running.end_tree(process)
            self.health_output = f"Health check exceeded timeout ({timeout_seconds:g}s)"
        else:
            self.health_output = bytes(said).decode("utf-8", "replace")
        return code
