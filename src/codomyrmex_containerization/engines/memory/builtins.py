"""Which commands has the shell itself, and which programs does it run without a process of their own?"""

from __future__ import annotations

import anyio

from codomyrmex_containerization.engines.memory import files, kernel, shell

INNER = frozenset(("echo", "printf", "true", "false", "test", "[", "kill"))


async def _colon(_sh: shell.Shell, _words: list[str]) -> int:
    return 0


async def _exit(sh: shell.Shell, words: list[str]) -> int:
    raise kernel.Exit(await _count(sh, words, sh.code) & 255)


async def _count(sh: shell.Shell, words: list[str], default: int) -> int:
    if len(words) < 2:
        return default
    try:
        return int(words[1])
    except ValueError:
        await sh.process.err(f"{sh.name}: {words[0]}: Illegal number: {words[1]}\n")
        raise kernel.Exit(2) from None


async def _jump(sh: shell.Shell, words: list[str]) -> int:
    raise shell.jump(words[0], max(await _count(sh, words, 1), 1))


async def _return(sh: shell.Shell, words: list[str]) -> int:
    raise shell.jump("return", await _count(sh, words, sh.code) & 255)


async def _cd(sh: shell.Shell, words: list[str]) -> int:
    target = words[1] if len(words) > 1 else sh.variables.get("HOME", "/")
    target = sh.variables.get("OLDPWD", "/") if target == "-" else target
    process = sh.process
    path = shell.absolute(process.cwd, target)
    try:
        folder = process.view.folder(path, process.cwd, process.who)
        if not process.who.may(folder, 1):
            raise PermissionError
    except OSError:
        await process.err(f"{sh.name}: cd: can't cd to {target}: No such file or directory\n")
        return 1
    sh.variables["OLDPWD"], process.cwd = process.cwd, path
    sh.variables["PWD"] = path
    return 0


async def _pwd(sh: shell.Shell, _words: list[str]) -> int:
    await sh.process.out(sh.process.cwd + "\n")
    return 0


async def _export(sh: shell.Shell, words: list[str]) -> int:
    for word in words[1:]:
        if word.startswith("-"):
            continue
        name, equals, value = word.partition("=")
        if equals:
            sh.variables[name] = value
        sh.exported.add(name)
    if len(words) == 1:
        for name in sorted(sh.exported & sh.variables.keys()):
            await sh.process.out(f"export {name}='{sh.variables[name]}'\n")
    return 0


async def _local(sh: shell.Shell, words: list[str]) -> int:
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if equals:
            sh.variables[name] = value
    return 0


async def _unset(sh: shell.Shell, words: list[str]) -> int:
    for name in words[1:]:
        sh.variables.pop(name, None)
        sh.exported.discard(name)
        sh.functions.pop(name, None)
    return 0


async def _set(sh: shell.Shell, words: list[str]) -> int:
    rest = words[1:]
    while rest and rest[0][:1] in "-+" and len(rest[0]) > 1:
        option = rest.pop(0)
        if option == "--":
            break
        on = option[0] == "-"
        if "o" in option and rest:
            option += {"errexit": "e", "nounset": "u", "xtrace": "x"}.get(rest.pop(0), "")
        sh.exits_on_failure = on if "e" in option else sh.exits_on_failure
        sh.unset_fails = on if "u" in option else sh.unset_fails
        sh.traced = on if "x" in option else sh.traced
    if rest or "--" in words:
        sh.arguments = rest
    return 0


async def _shift(sh: shell.Shell, words: list[str]) -> int:
    count = await _count(sh, words, 1)
    if count > len(sh.arguments):
        return 1
    sh.arguments = sh.arguments[count:]
    return 0


async def _eval(sh: shell.Shell, words: list[str]) -> int:
    sh.code = 0
    return await sh.evaluate(" ".join(words[1:]))


async def _source(sh: shell.Shell, words: list[str]) -> int:
    process = sh.process
    try:
        node = process.view.get(words[1] if len(words) > 1 else "", process.cwd, process.who)
    except OSError as error:
        await process.err(f"{sh.name}: {words[0]}: {kernel.said(error)}\n")
        raise kernel.Exit(2) from error
    text = bytes(node.data).decode("utf-8", "surrogateescape") if isinstance(node, files.File) else ""
    sh.code = 0
    return await sh.evaluate(text)


async def _read(sh: shell.Shell, words: list[str]) -> int:
    names = [one for one in words[1:] if not one.startswith("-")] or ["REPLY"]
    line = b""
    while not line.endswith(b"\n"):
        one = await sh.process.read(1)
        if not one:
            break
        line += one
    text = line.rstrip(b"\n").decode("utf-8", "surrogateescape")
    values = text.strip().split(None, len(names) - 1)
    for index, name in enumerate(names):
        sh.variables[name] = values[index] if index < len(values) else ""
    return 0 if line.endswith(b"\n") else 1


async def _trap(sh: shell.Shell, words: list[str]) -> int:
    if len(words) < 3:
        return 0
    for word in words[2:]:
        number = 0 if word in ("EXIT", "0") else kernel.signal_number(word)
        if number is None:
            await sh.process.err(f"{sh.name}: trap: {word}: invalid signal specification\n")
            return 1
        if words[1] == "-":
            sh.process.traps.pop(number, None)
        else:
            sh.process.traps[number] = words[1]
    return 0


async def _wait(sh: shell.Shell, words: list[str]) -> int:
    """Wait for processes in the background; a signal with a trap ends the waiting."""
    wanted = [job for job in sh.jobs if len(words) == 1 or str(job.pid) in words[1:]]
    code = 0 if len(words) == 1 or wanted else 127
    for job in wanted:
        if await _ended(sh.process, job):
            return 128 + sh.process.pending[0]
        code = job.exit_code or 0 if len(words) > 1 else 0
    sh.jobs = [job for job in sh.jobs if job not in wanted]
    return code


async def _ended(process: kernel.Process, job: kernel.Process) -> bool:
    """Wait for a process; True: a signal came first."""
    if process.pending:
        return True
    process.signalled = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def until(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(until, job.done)
        tasks.start_soon(until, process.signalled)
    return bool(process.pending)


async def _command(sh: shell.Shell, words: list[str]) -> int:
    if len(words) > 2 and words[1] == "-v":
        return await _type(sh, [words[0], *words[2:]])
    if len(words) > 1:
        await sh.call(words[1:], {})
        return sh.code
    return 0


async def _type(sh: shell.Shell, words: list[str]) -> int:
    process, code = sh.process, 0
    for name in words[1:]:
        if name in SPECIAL or name in INNER or name in sh.functions:
            await process.out(f"{name}\n")
            continue
        try:
            _, found = process.kernel.find([name], env=sh.environment(), cwd=process.cwd, who=process.who)
            await process.out(f"{found[0]}\n")
        except kernel.CannotStart:
            code = 127
    return code


SPECIAL: dict[str, shell.Builtin] = {
    ":": _colon, "exit": _exit, "break": _jump, "continue": _jump, "return": _return, "cd": _cd, "pwd": _pwd,
    "export": _export, "readonly": _export, "local": _local, "unset": _unset, "set": _set, "shift": _shift,
    "eval": _eval, ".": _source, "source": _source, "read": _read, "trap": _trap, "wait": _wait,
    "command": _command, "type": _type, "umask": _colon, "ulimit": _colon,
}  # fmt: skip


async def main(process: kernel.Process) -> int:
    """Be a shell with these commands."""
    return await shell.run_shell(process, SPECIAL, INNER)
