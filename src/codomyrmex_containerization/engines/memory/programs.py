"""Which programs has this engine? Small ones of its own, with the forms of busybox that scripts use most."""

from __future__ import annotations

import posixpath
import re
from datetime import UTC, datetime

import anyio

from codomyrmex_containerization.engines.memory import builtins, file_programs, files, kernel, stream_programs
from codomyrmex_containerization.engines.memory.kernel import Process


async def _true(_p: Process) -> int:
    return 0


async def _false(_p: Process) -> int:
    return 1


async def _sleep(p: Process) -> int:
    total = 0.0
    for word in p.argv[1:]:
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd]?)", word)
        if match is None and word not in ("inf", "infinity"):
            raise kernel.Usage(f"invalid number '{word}'")
        unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
        total += float(match[1]) * unit[match[2]] if match else float("inf")
    if total == float("inf"):
        await anyio.sleep_forever()
    await anyio.sleep(total)
    return 0


async def _env(p: Process) -> int:
    words, env = p.argv[1:], dict(p.env)
    while words:
        if words[0] in ("-i", "-"):
            env = {}
        elif words[0] == "-u" and len(words) > 1:
            env.pop(words.pop(1), None)
        elif "=" in words[0]:
            name, _, value = words[0].partition("=")
            env[name] = value
        else:
            break
        words.pop(0)
    if words:
        p.env = env
        return await _replaced(p, words)
    await p.out("".join(f"{name}={value}\n" for name, value in env.items()))
    return 0


async def _replaced(p: Process, words: list[str]) -> int:
    """Run another program in this process's place."""
    try:
        program, p.argv = p.kernel.find(words, env=p.env, cwd=p.cwd, who=p.who)
    except kernel.CannotStart as problem:
        await p.err(f"{posixpath.basename(p.argv[0])}: can't execute '{words[0]}': {problem.reason}\n")
        return problem.code
    return await program(p)


async def _pwd(p: Process) -> int:
    await p.out(p.cwd + "\n")
    return 0


async def _id(p: Process) -> int:
    who, option = p.who, "".join(p.argv[1:2])
    texts = {"-u": str(who.uid), "-g": str(who.gid), "-un": who.name or str(who.uid), "-nu": who.name or str(who.uid)}
    name = f"({who.name})" if who.name else ""
    await p.out(texts.get(option, f"uid={who.uid}{name} gid={who.gid}") + "\n")
    return 0


async def _kill(p: Process) -> int:
    words, number = p.argv[1:], kernel.SIGNALS["TERM"]
    if words and words[0].startswith("-") and len(words) > 1:
        name = words.pop(0)[1:] if words[0] != "-s" else (words.pop(0), words.pop(0))[1]
        found = kernel.signal_number(name)
        if found is None:
            raise kernel.Usage(f"bad signal name '{name}'")
        number = found
    code = 0
    for word in words:
        process = p.kernel.processes.get(int(word)) if word.isdigit() else None
        if process is None:
            await p.err(f"kill: can't kill pid {word}: No such process\n")
            code = 1
        elif p.who.uid not in (0, process.who.uid):
            await p.err(f"kill: can't kill pid {word}: Operation not permitted\n")
            code = 1
        elif process.pid != 1 or number in process.traps:
            # The kernel keeps what is inside from ending the first process, be it with KILL.
            process.signal(number)
    await p.tick()
    return code


async def _hostname(p: Process) -> int:
    await p.out(p.kernel.hostname + "\n")
    return 0


async def _uname(p: Process) -> int:
    await p.out("Linux\n" if len(p.argv) == 1 else f"Linux {p.kernel.hostname} memory\n")
    return 0


async def _date(p: Process) -> int:
    now, form = datetime.now(tz=UTC), next((one[1:] for one in p.argv[1:] if one.startswith("+")), "")
    await p.out(
        (now.strftime(form.replace("%s", str(int(now.timestamp())))) if form else f"{now:%a %b %e %H:%M:%S UTC %Y}")
        + "\n"
    )
    return 0


async def _busybox(p: Process) -> int:
    words = p.argv[1:]
    if words[:1] == ["--list"]:
        await p.out("".join(f"{one}\n" for one in sorted(PROGRAMS)))
        return 0
    if words[:1] == ["--install"]:
        folder = next((one for one in words[1:] if not one.startswith("-")), "/bin")
        where = p.argv[0] if p.argv[0].startswith("/") else "/bin/busybox"
        p.view.make_folders(folder, p.who)
        for name in PROGRAMS:
            place = p.view.find(f"{folder}/{name}", "/", p.who, follow=False)
            if place.node is None:
                p.view.add(place, files.Link(0o777, target=where), p.who)
        return 0
    await p.err(f"{words[0]}: applet not found\n" if words else "BusyBox in memory\n")
    return 127 if words else 0


PROGRAMS: dict[str, kernel.Program] = {
    "true": _true,
    "false": _false,
    "sleep": _sleep,
    "env": _env,
    "pwd": _pwd,
    "id": _id,
    "kill": _kill,
    "hostname": _hostname,
    "uname": _uname,
    "date": _date,
    "busybox": _busybox,
    "sh": builtins.main,
    "ash": builtins.main,
    **stream_programs.PROGRAMS,
    **file_programs.PROGRAMS,
}
