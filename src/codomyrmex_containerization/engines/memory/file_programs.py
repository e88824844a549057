"""Which programs work on names, folders and permissions?"""

from __future__ import annotations

import errno
import posixpath
import re
import time
from datetime import UTC, datetime

from codomyrmex_containerization.engines.memory import files, kernel
from codomyrmex_containerization.engines.memory.kernel import Process


async def _ls(p: Process) -> int:
    options = "".join(one[1:] for one in p.argv[1:] if one.startswith("-"))
    names = [one for one in p.argv[1:] if not one.startswith("-")] or ["."]
    code = 0
    for name in names:
        try:
            node = p.view.get(name, p.cwd, p.who)
            if isinstance(node, files.Folder) and "d" not in options:
                if not p.who.may(node, 4):
                    raise files.failure(errno.EACCES, name)
                shown = {one: node.entries[one] for one in sorted(node.entries)}
                if "a" in options:
                    shown = {".": node, "..": node, **shown}
                elif "A" not in options:
                    shown = {one: shown[one] for one in shown if not one.startswith(".")}
            else:
                shown = {name: node}
        except OSError as error:
            await p.err(f"ls: {name}: {error.strerror}\n")
            code = 1
            continue
        if len(names) > 1 and isinstance(node, files.Folder):
            await p.out(f"{name}:\n")
        await p.out("".join(_line(one, below) if "l" in options else f"{one}\n" for one, below in shown.items()))
    return code


def _line(name: str, node: files.AnyNode) -> str:
    kind = {files.Folder: "d", files.Link: "l", files.Device: "c"}.get(type(node), "-")
    bits = "".join(letter if node.mode >> (8 - index) & 1 else "-" for index, letter in enumerate("rwxrwxrwx"))
    size = len(node.data) if isinstance(node, files.File) else 0
    link = f" -> {node.target}" if isinstance(node, files.Link) else ""
    when = datetime.fromtimestamp(node.mtime, tz=UTC)
    return f"{kind}{bits} 1 {node.uid} {node.gid} {size} {when:%b %e %H:%M} {name}{link}\n"


async def _mkdir(p: Process) -> int:
    options = "".join(one[1:] for one in p.argv[1:] if one.startswith("-"))
    code = 0
    for name in [one for one in p.argv[1:] if not one.startswith("-")]:
        try:
            if "p" in options:
                p.view.make_folders(name, p.who, cwd=p.cwd)
                continue
            place = p.view.find(name.rstrip("/") or "/", p.cwd, p.who)
            if place.node is not None:
                raise files.failure(errno.EEXIST)
            p.view.add(place, files.Folder(0o755, p.who.uid, p.who.gid), p.who)
        except OSError as error:
            await p.err(f"mkdir: can't create directory '{name}': {error.strerror}\n")
            code = 1
    return code


async def _rm(p: Process) -> int:
    options = "".join(one[1:] for one in p.argv[1:] if one.startswith("-"))
    code = 0
    for name in [one for one in p.argv[1:] if not one.startswith("-")]:
        try:
            place = p.view.find(name.rstrip("/") or "/", p.cwd, p.who, follow=False)
            if place.node is None:
                raise files.failure(errno.ENOENT)
            if isinstance(place.node, files.Folder) and "r" not in options.lower():
                raise files.failure(errno.EISDIR)
            if not place.name:
                raise files.failure(errno.EBUSY)
            p.view.remove(place, p.who)
        except OSError as error:
            if error.errno != errno.ENOENT or "f" not in options:
                await p.err(f"rm: can't remove '{name}': {error.strerror}\n")
                code = 1
    return code


async def _rmdir(p: Process) -> int:
    for name in p.argv[1:]:
        place = p.view.find(name.rstrip("/"), p.cwd, p.who, follow=False)
        if not isinstance(place.node, files.Folder):
            raise files.failure(errno.ENOTDIR if place.node is not None else errno.ENOENT, name)
        if place.node.entries:
            raise files.failure(errno.ENOTEMPTY, name)
        p.view.remove(place, p.who)
    return 0


async def _touch(p: Process) -> int:
    for name in [one for one in p.argv[1:] if not one.startswith("-")]:
        p.open(name, "a").close()
        p.view.get(name, p.cwd, p.who).mtime = time.time()
    return 0


async def _ln(p: Process) -> int:
    options = "".join(one[1:] for one in p.argv[1:] if one.startswith("-"))
    words = [one for one in p.argv[1:] if not one.startswith("-")]
    if len(words) != 2:
        raise kernel.Usage("usage: ln [-sf] TARGET LINK")
    place = p.view.find(words[1], p.cwd, p.who, follow=False)
    if isinstance(place.node, files.Folder):
        place = p.view.find(f"{words[1]}/{posixpath.basename(words[0])}", p.cwd, p.who, follow=False)
    if place.node is not None:
        if "f" not in options:
            raise files.failure(errno.EEXIST, words[1])
        p.view.remove(place, p.who)
    if "s" in options:
        p.view.add(place, files.Link(0o777, p.who.uid, p.who.gid, target=words[0]), p.who)
        return 0
    node = p.view.get(words[0], p.cwd, p.who)
    if isinstance(node, files.Folder):
        raise files.failure(errno.EPERM, words[0])
    p.view.add(place, node, p.who)
    return 0


async def _chmod(p: Process) -> int:
    words = [one for one in p.argv[1:] if one != "-R"]
    for name in words[1:]:
        place = p.view.find(name, p.cwd, p.who)
        node = p.view.get(name, p.cwd, p.who)
        if place.read_only or p.who.uid not in (0, node.uid):
            raise files.failure(errno.EROFS if place.read_only else errno.EPERM, name)
        node.mode = _mode(words[0], node.mode)
        if isinstance(node, files.File):
            node.own = True
    return 0


def _mode(text: str, mode: int) -> int:
    if re.fullmatch("[0-7]{1,4}", text):
        return int(text, 8)
    match = re.fullmatch("([ugoa]*)([-+=])([rwx]*)", text)
    if match is None:
        raise kernel.Usage(f"invalid mode '{text}'")
    bits = sum({"r": 4, "w": 2, "x": 1}[one] for one in set(match[3]))
    shifts = [{"u": 6, "g": 3, "o": 0}[one] for one in ("ugo" if match[1] in ("", "a") else match[1]) if one in "ugo"]
    mask = sum(bits << shift for shift in shifts)
    if match[2] == "=":
        return mode & ~sum(7 << shift for shift in shifts) | mask
    return mode | mask if match[2] == "+" else mode & ~mask


async def _chown(p: Process) -> int:
    words = [one for one in p.argv[1:] if not one.startswith("-")]
    if len(words) < 2:
        raise kernel.Usage("usage: chown USER[:GROUP] FILE...")
    if p.who.uid != 0:
        raise files.failure(errno.EPERM, "".join(words[1:2]))
    try:
        who = kernel.find_user(p.view, words[0])
    except LookupError as problem:
        raise kernel.Usage(str(problem)) from None
    for name in words[1:]:
        node = p.view.get(name, p.cwd, p.who)
        if p.view.find(name, p.cwd, p.who).read_only:
            raise files.failure(errno.EROFS, name)
        below = [one for _, one in files.walk(node)] if isinstance(node, files.Folder) and "-R" in p.argv else []
        for one in (node, *below):
            one.uid, one.gid = who.uid, who.gid
    return 0


async def _cp(p: Process) -> int:
    words = [one for one in p.argv[1:] if not one.startswith("-")]
    for name in words[:-1]:
        target = words[-1]
        there = p.view.find(target, p.cwd, p.who)
        if isinstance(there.node, files.Folder):
            target = f"{target}/{posixpath.basename(name.rstrip('/'))}"
        node = p.view.get(name, p.cwd, p.who)
        await _copied(p, name, target, node)
    return 0


async def _copied(p: Process, name: str, target: str, node: files.AnyNode) -> None:
    if isinstance(node, files.Folder):
        if not any("r" in one.lower() or "a" in one for one in p.argv[1:] if one.startswith("-")):
            raise files.failure(errno.EISDIR, name)
        entries = dict(node.entries)
        p.view.make_folders(target, p.who, cwd=p.cwd)
        for one, below in entries.items():
            await _copied(p, f"{name}/{one}", f"{target}/{one}", below)
        return
    if isinstance(node, files.Link):
        place = p.view.find(target, p.cwd, p.who, follow=False)
        p.view.add(place, files.Link(0o777, p.who.uid, p.who.gid, target=node.target), p.who)
        return
    source, made = p.open(name, "r"), p.open(target, "w")
    try:
        while chunk := await source.read():
            await made.write(chunk)
            await p.tick()
    finally:
        source.close()
        made.close()
    copy = p.view.get(target, p.cwd, p.who)
    if isinstance(copy, files.File):
        copy.mode = node.mode


async def _mv(p: Process) -> int:
    words = [one for one in p.argv[1:] if not one.startswith("-")]
    for name in words[:-1]:
        source = p.view.find(name.rstrip("/"), p.cwd, p.who, follow=False)
        target = p.view.find(words[-1], p.cwd, p.who)
        if isinstance(target.node, files.Folder):
            target = p.view.find(f"{words[-1]}/{source.name}", p.cwd, p.who)
        if source.node is None:
            raise files.failure(errno.ENOENT, name)
        if target.tree is not source.tree or f"{target.path}/".startswith(f"{source.path}/"):
            raise files.failure(errno.EXDEV if target.tree is not source.tree else errno.EINVAL, name)
        node = source.node
        p.view.require_writable(source, p.who)
        p.view.add(target, node, p.who)
        del source.folder.entries[source.name]
        if target.node is not None:
            target.tree.recount()
    return 0


async def _test(p: Process) -> int:
    words = p.argv[1:]
    if p.argv[0].endswith("["):
        if not words or words[-1] != "]":
            raise kernel.Usage("missing ]")
        words = words[:-1]
    try:
        return int(not _holds(p, words))
    except ValueError as problem:
        await p.err(f"{p.argv[0]}: {problem}\n")
        return 2


def _holds(p: Process, words: list[str]) -> bool:
    for joint in ("-o", "-a"):
        if joint in words[1:-1] and len(words) > 3:
            at = words.index(joint, 1)
            one_holds, other_holds = _holds(p, words[:at]), _holds(p, words[at + 1 :])
            return (one_holds or other_holds) if joint == "-o" else (one_holds and other_holds)
    match words:
        case []:
            return False
        case [one]:
            return bool(one)
        case ["!", *rest]:
            return not _holds(p, rest)
        case [left, operator, right]:
            return _compared(left, operator, right)
        case ["-n", text]:
            return bool(text)
        case ["-z", text]:
            return not text
        case [operator, path] if re.fullmatch("-[defhLrswx]", operator):
            return _is(p, operator, path)
    raise ValueError(f"{' '.join(words)}: unknown operand")


def _compared(left: str, operator: str, right: str) -> bool:
    if operator in ("=", "==", "!="):
        return (left == right) == (operator != "!=")
    order = {"-eq": (0,), "-ne": (-1, 1), "-lt": (-1,), "-le": (-1, 0), "-gt": (1,), "-ge": (0, 1)}
    if operator not in order:
        raise ValueError(f"{operator}: unknown operand")
    try:
        one, two = int(left), int(right)
    except ValueError:
        raise ValueError(f"{left} {operator} {right}: bad number") from None
    return (one > two) - (one < two) in order[operator]


def _is(p: Process, operator: str, path: str) -> bool:
    try:
        place = p.view.find(path, p.cwd, p.who, follow=operator not in ("-h", "-L"))
    except OSError:
        return False
    node = place.node
    if node is None:
        return False
    wants = {"-r": 4, "-w": 2, "-x": 1}
    if operator in wants:
        return p.who.may(node, wants[operator]) and not (operator == "-w" and place.read_only)
    if operator == "-s":
        return isinstance(node, files.Folder) or (isinstance(node, files.File) and len(node.data) > 0)
    kinds = {"-d": files.Folder, "-f": files.File, "-h": files.Link, "-L": files.Link}
    return isinstance(node, kinds.get(operator, files.Node))


async def _readlink(p: Process) -> int:
    words = [one for one in p.argv[1:] if not one.startswith("-")]
    place = p.view.find("".join(words[:1]), p.cwd, p.who, follow="-f" in p.argv)
    if "-f" in p.argv:
        await p.out(place.path + "\n")
    elif isinstance(place.node, files.Link):
        await p.out(place.node.target + "\n")
    else:
        return 1
    return 0


async def _basename(p: Process) -> int:
    text = "".join(p.argv[1:2])
    await p.out(
        (posixpath.basename(text.rstrip("/")) if p.argv[0].endswith("basename") else posixpath.dirname(text) or ".")
        + "\n"
    )
    return 0


PROGRAMS: dict[str, kernel.Program] = {
    "ls": _ls,
    "mkdir": _mkdir,
    "rm": _rm,
    "rmdir": _rmdir,
    "touch": _touch,
    "ln": _ln,
    "chmod": _chmod,
    "chown": _chown,
    "cp": _cp,
    "mv": _mv,
    "test": _test,
    "readlink": _readlink,
    "basename": _basename,
    "dirname": _basename,
    "[": _test,
}
