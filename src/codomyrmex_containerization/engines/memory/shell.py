"""How does a script run? The shell of this engine: a small ash, with its built-in commands."""

from __future__ import annotations

import errno
import fnmatch
import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import anyio
import anyio.lowlevel

from codomyrmex_containerization.engines.memory import expansion, files, kernel, parser, streams, syntax

_MOST_SUBSTITUTED_BYTES = 16 * 1024 * 1024
_DEEPEST = 120


Builtin = Callable[["Shell", list[str]], Awaitable[int]]


class _Jump(Exception):
    def __init__(self, kind: str, count: int) -> None:
        super().__init__(kind)
        self.kind = kind
        self.count = count


async def run_shell(process: kernel.Process, special: Mapping[str, Builtin], inner: frozenset[str]) -> int:
    """Run `sh -c SCRIPT`, `sh FILE` or a script from the standard input."""
    words = process.argv[1:]
    options = ""
    while words and words[0].startswith("-") and len(words[0]) > 1:
        options += words.pop(0)[1:]
    if "c" in options:
        if not words:
            await process.err("sh: -c requires an argument\n")
            return 2
        text, name, arguments = words[0], (words[1:2] or ["sh"])[0], words[2:]
    elif words and "s" not in options:
        node = process.view.get(words[0], process.cwd, process.who)
        text = bytes(node.data).decode("utf-8", "surrogateescape") if isinstance(node, files.File) else ""
        name, arguments = words[0], words[1:]
    else:
        data = b""
        while chunk := await process.read():
            data += chunk
        text, name, arguments = data.decode("utf-8", "surrogateescape"), "sh", words
    shell = Shell(process, name=name, arguments=arguments, special=special, inner=inner)
    shell.exits_on_failure = "e" in options
    return await shell.whole(text)


class Shell(expansion.Expander):
    """The state of one shell: variables, functions, the last exit code."""

    def __init__(
        self,
        process: kernel.Process,
        *,
        name: str,
        arguments: Sequence[str],
        special: Mapping[str, Builtin],
        inner: frozenset[str],
    ) -> None:
        super().__init__(process, name=name, arguments=arguments)
        self._special = special
        self._inner_names = inner
        self.exported: set[str] = set(process.env)
        self.functions: dict[str, syntax.Command] = {}
        self.traced = False
        self.jobs: list[kernel.Process] = []
        self._tested = 0
        self._depth = 0
        self.variables.setdefault("PWD", process.cwd)

    async def whole(self, text: str) -> int:
        """Run a script to its end, its traps included."""
        try:
            script = parser.parse(text)
        except syntax.SyntaxProblem as problem:
            await self.process.err(f"{self.name}: {problem}\n")
            return 2
        return await self.run_whole(script)

    async def run_whole(self, script: syntax.Script) -> int:
        """Run a parsed script to its end, its EXIT trap included."""
        try:
            await self.run(script)
            code = self.code
        except kernel.Exit as ended:
            code = ended.code
        except _Jump as jump:
            code = jump.count if jump.kind == "return" else self.code
        action = self.process.traps.pop(0, "")
        if action:
            self.code = code
            try:
                await self.evaluate(action)
            except kernel.Exit as ended:
                code = ended.code
        return code

    async def evaluate(self, text: str) -> int:
        """Run a text in this shell."""
        try:
            script = parser.parse(text)
        except syntax.SyntaxProblem as problem:
            await self.process.err(f"{self.name}: {problem}\n")
            raise kernel.Exit(2) from None
        await self.run(script)
        return self.code

    async def run(self, script: syntax.Script) -> None:
        """Run the items of a script one after the other."""
        for item in script.items:
            if item.background:
                job = self._fork(partial(_run_item, item), {0: streams.Special("null")})
                self.jobs.append(job)
                self.last_background, self.code = job.pid, 0
            else:
                await self._item(item)
            await self.traps()

    async def traps(self) -> None:
        """Run what is due after a signal."""
        while self.process.pending:
            action = self.process.traps.get(self.process.pending.pop(0), "")
            before = self.code
            if action:
                await self.evaluate(action)
            self.code = before

    async def _item(self, item: syntax.Item) -> None:
        last = len(item.pipelines) - 1
        for index, (operator, pipeline) in enumerate(item.pipelines):
            if (operator == "&&" and self.code != 0) or (operator == "||" and self.code == 0):
                continue
            tested = index < last or pipeline.negated
            self._tested += tested
            try:
                await self._pipeline(pipeline)
            finally:
                self._tested -= tested
            if self.code and self.exits_on_failure and not self._tested and not tested:
                raise kernel.Exit(self.code)

    async def _pipeline(self, pipeline: syntax.Pipeline) -> None:
        await self.process.tick()
        if len(pipeline.commands) == 1:
            await self.command(pipeline.commands[0])
        else:
            await self._piped(pipeline.commands)
        if pipeline.negated:
            self.code = int(self.code == 0)

    async def _piped(self, commands: Sequence[syntax.Command]) -> None:
        jobs: list[kernel.Process] = []
        before: streams.Stream | None = None
        for index, command in enumerate(commands):
            changed: dict[int, streams.Stream] = {} if before is None else {0: before}
            before = None
            if index < len(commands) - 1:
                pipe = streams.Pipe()
                changed[1], before = pipe.writer, pipe.reader
            jobs.append(self._fork(partial(_run_command, command), changed))
        for job in jobs:
            self.code = await job.wait()

    def _fork(self, body: Callable[[Shell], Awaitable[None]], changed: Mapping[int, streams.Stream]) -> kernel.Process:
        """Start a copy of this shell in a process of its own; it gets the changed streams as its own."""
        process = self.process

        async def run(child: kernel.Process) -> int:
            inner = self._copy(child)
            with suppress(_Jump):
                await body(inner)
            return inner.code

        fds = {number: held.share() for number, held in process.fds.items() if number not in changed}
        try:
            return process.kernel.fork(
                run,
                argv=process.argv,
                env=process.env,
                cwd=process.cwd,
                who=process.who,
                fds={**fds, **changed},
                parent=process,
            )
        except kernel.CannotStart as problem:
            for held in (*fds.values(), *changed.values()):
                held.close()
            raise files.failure(errno.EAGAIN) from problem

    def _copy(self, process: kernel.Process) -> Shell:
        inner = Shell(process, name=self.name, arguments=self.arguments, special=self._special, inner=self._inner_names)
        inner.variables, inner.exported = dict(self.variables), set(self.exported)
        inner.functions, inner.code = dict(self.functions), self.code
        inner.exits_on_failure, inner.unset_fails = self.exits_on_failure, self.unset_fails
        inner.last_background, inner._tested, inner._depth = self.last_background, self._tested, self._depth
        return inner

    # --------------------------------------------------------------- commands

    async def command(self, command: syntax.Command) -> None:
        """Run one command; its code is `code` then."""
        self._depth += 1
        try:
            if self._depth > _DEEPEST:
                await self.process.err(f"{self.name}: too deeply nested\n")
                raise kernel.Exit(2)
            match command:
                case syntax.Simple():
                    await self._simple(command)
                case syntax.If():
                    await self._if(command)
                case syntax.Loop():
                    await self._loop(command)
                case syntax.For():
                    await self._for(command)
                case syntax.Case():
                    await self._case(command)
                case syntax.Group():
                    if command.own_process:
                        self.code = await self._fork(partial(_run_script, command.body), {}).wait()
                    else:
                        await self.run(command.body)
                case syntax.Function():
                    self.functions[command.name] = command.body
                    self.code = 0
                case syntax.Redirected(inner, redirections):
                    await self._redirected(redirections, lambda: self.command(inner))
        finally:
            self._depth -= 1

    async def _condition(self, script: syntax.Script) -> bool:
        self._tested += 1
        try:
            await self.run(script)
        finally:
            self._tested -= 1
        return self.code == 0

    async def _if(self, command: syntax.If) -> None:
        for condition, body in command.branches:
            if await self._condition(condition):
                await self.run(body)
                return
        self.code = 0
        if command.otherwise is not None:
            await self.run(command.otherwise)

    async def _loop(self, command: syntax.Loop) -> None:
        code = 0
        while await self._condition(command.condition) != command.until:
            if not await self._once(command.body):
                return
            code = self.code
        self.code = code

    async def _for(self, command: syntax.For) -> None:
        values = self.arguments if command.words is None else await self.fields(command.words)
        self.code = 0
        for value in list(values):
            self.variables[command.name] = value
            if not await self._once(command.body):
                return

    async def _once(self, body: syntax.Script) -> bool:
        """Run the body of a loop; False: the loop ends."""
        await self.process.tick()
        try:
            await self.run(body)
        except _Jump as jump:
            if jump.kind == "return":
                raise
            if jump.count > 1:
                raise _Jump(jump.kind, jump.count - 1) from None
            self.code = 0
            return jump.kind == "continue"
        return True

    async def _case(self, command: syntax.Case) -> None:
        value = await self.joined(command.word)
        self.code = 0
        for patterns, body in command.branches:
            for pattern in patterns:
                if fnmatch.fnmatchcase(value, await self.pattern(pattern)):
                    await self.run(body)
                    return

    async def _redirected(
        self, redirections: Sequence[syntax.Redirection], body: Callable[[], Awaitable[None]]
    ) -> None:
        """Run something with other streams; the old ones come back, but for `exec`."""
        before = {number: held.share() for number, held in self.process.fds.items()}
        try:
            if await self.redirect(redirections):
                await body()
        finally:
            self._restore(before)

    def _restore(self, before: dict[int, streams.Stream]) -> None:
        for held in self.process.fds.values():
            held.close()
        self.process.fds = before

    async def redirect(self, redirections: Sequence[syntax.Redirection]) -> bool:
        """Change the process's streams; False (and a message) when one cannot be opened."""
        for one in redirections:
            try:
                self._set(one.fd, await self._opened(one))
            except OSError as error:
                verb = "create" if one.operator[0] == ">" else "open"
                await self.process.err(f"{self.name}: can't {verb} {kernel.said(error)}\n")
                self.code = 1
                return False
        return True

    def _set(self, fd: int, stream: streams.Stream | None) -> None:
        held = self.process.fds.pop(fd, None)
        if held is not None:
            held.close()
        if stream is not None:
            self.process.fds[fd] = stream

    async def _opened(self, one: syntax.Redirection) -> streams.Stream | None:
        target = await self.joined(one.word)
        match one.operator:
            case "<<":
                return streams.Held(kernel.encoded(target))
            case "<":
                return self.process.open(target, "r")
            case ">>":
                return self.process.open(target, "a")
            case "<>":
                return self.process.open(target, "r+")
            case "<&" | ">&":
                if target == "-":
                    return None
                held = self.process.fds.get(int(target)) if target.isdigit() else None
                if held is None:
                    raise files.failure(errno.EBADF, target)
                return held.share()
            case _:
                return self.process.open(target, "w")

    async def _simple(self, command: syntax.Simple) -> None:
        words = await self.fields(command.words)
        if not words:
            self.code = 0
            for name, value in command.assignments:
                self.variables[name] = await self.joined(value)
            if command.redirections:
                await self._redirected(command.redirections, _nothing)
            return
        if self.traced:
            await self.process.err(f"+ {' '.join(words)}\n")
        given = {name: await self.joined(value) for name, value in command.assignments}
        if words[0] == "exec":
            await self._exec(words[1:], given, command.redirections)
        elif command.redirections:
            await self._redirected(command.redirections, lambda: self.call(words, given))
        else:
            await self.call(words, given)

    async def _exec(
        self, words: list[str], given: Mapping[str, str], redirections: Sequence[syntax.Redirection]
    ) -> None:
        if not await self.redirect(redirections):
            raise kernel.Exit(1)
        self.code = 0
        if not words:
            return
        process = self.process
        env = {**self.environment(), **given}
        try:
            program, process.argv = process.kernel.find(words, env=env, cwd=process.cwd, who=process.who)
        except kernel.CannotStart as problem:
            await process.err(f"{self.name}: exec: {self._why(words[0], problem)}\n")
            raise kernel.Exit(problem.code) from None
        process.env = env
        process.traps = {number: action for number, action in process.traps.items() if not action}
        raise kernel.Exit(await program(process))

    async def call(self, words: list[str], given: Mapping[str, str]) -> None:
        """Run a function, a built-in command or a program."""
        if words[0] in self.functions:
            await self._function(words, given)
            return
        builtin = self._special.get(words[0])
        if builtin is not None:
            self.variables.update(given)
            self.code = await builtin(self, words)
            return
        if words[0] in self._inner_names:
            self.code = await self._inner(words, given)
            return
        await self._program(words, given)

    async def _inner(self, words: list[str], given: Mapping[str, str]) -> int:
        """Run a program that the shell has built in, in this very process."""
        process = self.process
        before = process.argv, process.env
        process.argv, process.env = words, {**self.environment(), **given}
        try:
            return await process.kernel.programs[words[0]](process)
        except kernel.Exit as ended:
            return ended.code
        except BrokenPipeError:
            raise
        except OSError as error:
            await process.err(f"{words[0]}: {kernel.said(error)}\n")
            return 1
        finally:
            process.argv, process.env = before

    async def _function(self, words: list[str], given: Mapping[str, str]) -> None:
        before, self.arguments = self.arguments, words[1:]
        self.variables.update(given)
        try:
            await self.command(self.functions[words[0]])
        except _Jump as jump:
            if jump.kind != "return":
                raise
            self.code = jump.count
        finally:
            self.arguments = before

    async def _program(self, words: list[str], given: Mapping[str, str]) -> None:
        process = self.process
        env = {**self.environment(), **given}
        fds = {number: held.share() for number, held in process.fds.items()}
        try:
            child = process.kernel.start(words, env=env, cwd=process.cwd, who=process.who, fds=fds, parent=process)
        except kernel.CannotStart as problem:
            for held in fds.values():
                held.close()
            await process.err(f"{self.name}: {self._why(words[0], problem)}\n")
            self.code = problem.code
            return
        self.code = await child.wait()

    def _why(self, word: str, problem: kernel.CannotStart) -> str:
        if problem.code == 127:
            return f"{word}: not found"
        return f"{word}: {problem.reason.rpartition(': ')[2].capitalize()}"

    def environment(self) -> dict[str, str]:
        """Return what a program gets."""
        return {name: self.variables[name] for name in self.variables if name in self.exported}

    async def substituted(self, script: syntax.Script) -> str:
        pipe = streams.Pipe()
        job = self._fork(partial(_run_script, script), {1: pipe.writer})
        data = bytearray()
        try:
            while chunk := await pipe.reader.read():
                data += chunk
                if len(data) > _MOST_SUBSTITUTED_BYTES:
                    break
        finally:
            pipe.reader.close()
        self.code = await job.wait()
        return bytes(data).replace(b"\0", b"").decode("utf-8", "surrogateescape").rstrip("\n")


async def _run_item(item: syntax.Item, inner: Shell) -> None:
    await inner._item(item)


async def _run_script(script: syntax.Script, inner: Shell) -> None:
    inner.code = await inner.run_whole(script)


async def _run_command(command: syntax.Command, inner: Shell) -> None:
    await inner.command(command)


async def _nothing() -> None:
    await anyio.lowlevel.checkpoint()


def absolute(cwd: str, path: str) -> str:
    """Return a path from the root on, without `.` and `..`."""
    return posixpath.normpath(posixpath.join(cwd, path)).replace("//", "/")


def jump(kind: str, count: int) -> Exception:
    """Return what leaves a loop or a function."""
    return _Jump(kind, count)
