"""Which programs read and write streams of bytes?"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from codomyrmex_containerization.engines.memory import kernel, streams
from codomyrmex_containerization.engines.memory.kernel import Process

_SIZES = {"": 1, "c": 1, "k": 1024, "K": 1024, "kB": 1000, "M": 1024**2, "m": 1024**2, "MB": 1000**2, "G": 1024**3}
_LARGEST_BLOCK_BYTES = 64 * 1024 * 1024
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}
_ESCAPE = re.compile(r"\\(?:([ntrabfve\\])|x([0-9a-fA-F]{1,2})|0?([0-7]{1,3})|(c))")
_FORMAT = re.compile(r"%(?:%|([-+ 0#]*)(\d*)(?:\.(\d+))?([sdiuxXocbfeg]))")


def _unescaped(text: str) -> tuple[bytes, bool]:
    """Return what escapes stand for, and whether `\\c` ended the text."""
    found, at = bytearray(), 0
    for match in _ESCAPE.finditer(text):
        found += kernel.encoded(text[at : match.start()])
        at = match.end()
        letter, hexadecimal, octal, end = match.groups()
        if end:
            return bytes(found), True
        found += (
            _ESCAPES[letter].encode() if letter else bytes([int(hexadecimal or octal, 16 if hexadecimal else 8) & 255])
        )
    return bytes(found + kernel.encoded(text[at:])), False


async def _echo(p: Process) -> int:
    words, options = p.argv[1:], ""
    while words and re.fullmatch("-[neE]+", words[0]):
        options += words.pop(0)[1:]
    data, ended = kernel.encoded(" ".join(words)), False
    if "e" in options:
        data, ended = _unescaped(" ".join(words))
    await p.out(data if "n" in options or ended else data + b"\n")
    return 0


async def _printf(p: Process) -> int:
    if len(p.argv) < 2:
        raise kernel.Usage("usage: printf FORMAT [ARG]...")
    form, words = p.argv[1], p.argv[2:]
    found = bytearray()
    while True:
        left, at = len(words), 0
        for match in _FORMAT.finditer(form):
            found += _unescaped(form[at : match.start()])[0]
            at = match.end()
            found += b"%" if match[0] == "%%" else _formatted(match, words)
        found += _unescaped(form[at:])[0]
        if not words or len(words) == left:
            break
    await p.out(bytes(found))
    return 0


def _formatted(match: re.Match[str], words: list[str]) -> bytes:
    flags, width, precision, kind = match.groups()
    word = words.pop(0) if words else ""
    dot = f".{precision}" if precision else ""
    if kind == "b":
        return _unescaped(word)[0]
    if kind in "sc":
        text = word[:1] if kind == "c" else word
        text = text[: int(precision)] if precision else text
        return kernel.encoded(text.ljust(int(width or 0)) if "-" in flags else text.rjust(int(width or 0)))
    try:
        value = float(word or 0) if kind in "feg" else int(word or "0", 0)
    except ValueError:
        raise kernel.Usage(f"invalid number '{word}'") from None
    return (f"%{flags}{width}{dot}{'d' if kind in 'iu' else kind}" % value).encode()


async def _cat(p: Process) -> int:
    code = 0
    for name in [one for one in p.argv[1:] if one == "-" or not one.startswith("-")] or ["-"]:
        try:
            async for chunk in _chunks(p, [name]):
                await p.out(chunk)
        except BrokenPipeError:
            raise
        except OSError as error:
            await p.err(f"cat: can't open '{name}': {error.strerror}\n")
            code = 1
    return code


async def _chunks(p: Process, names: list[str]) -> AsyncIterator[bytes]:
    """Yield what is in the files, or what comes in; says which cannot be read, and the program's code is 1 then."""
    for name in names or ["-"]:
        if name == "-":
            while chunk := await p.read():
                yield chunk
            continue
        opened = p.open(name, "r")
        try:
            while chunk := await opened.read():
                yield chunk
                await p.tick()
        finally:
            opened.close()


async def _seq(p: Process) -> int:
    try:
        numbers = [int(one) for one in p.argv[1:]]
    except ValueError:
        raise kernel.Usage("only whole numbers") from None
    if not 1 <= len(numbers) <= 3:
        raise kernel.Usage("usage: seq [FIRST [INC]] LAST")
    first = numbers[0] if len(numbers) > 1 else 1
    step = numbers[1] if len(numbers) > 2 else 1
    if step == 0:
        raise kernel.Usage("increment is 0")
    last = numbers[-1] + (1 if step > 0 else -1)
    block = 5_000 * step
    for start in range(first, last, block):
        part = range(start, min(start + block, last) if step > 0 else max(start + block, last), step)
        await p.out("".join(f"{one}\n" for one in part))
        await p.tick()
    return 0


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([a-zA-Z]*)", text)
    if match is None or match[2] not in _SIZES:
        raise kernel.Usage(f"invalid number '{text}'")
    return int(match[1]) * _SIZES[match[2]]


def _counted(p: Process) -> tuple[str, str, list[str]]:
    """Return what `head` and `tail` are to do: `n` or `c`, how many, of which files."""
    kind, count, names = "n", "10", []
    words = p.argv[1:]
    while words:
        word = words.pop(0)
        if word[:2] in ("-n", "-c"):
            kind, count = word[1], word[2:] or (words.pop(0) if words else "")
        elif re.fullmatch(r"-\d+", word):
            count = word[1:]
        elif word in ("-f", "-q"):
            continue
        else:
            names.append(word)
    return kind, count, names


async def _head(p: Process) -> int:
    kind, text, names = _counted(p)
    left = _size(text)
    async for chunk in _chunks(p, names):
        if kind == "c":
            part = chunk[:left]
            left -= len(part)
        else:
            lines = chunk.split(b"\n", left)
            part = chunk if len(lines) <= left else b"\n".join(lines[:left]) + (b"\n" if left else b"")
            left -= part.count(b"\n")
        await p.out(part)
        if left <= 0:
            break
    return 0


async def _tail(p: Process) -> int:
    kind, text, names = _counted(p)
    data = b"".join([chunk async for chunk in _chunks(p, names)])
    count = _size(text.lstrip("+-"))
    if kind == "c":
        await p.out(data[count - 1 :] if text.startswith("+") else data[len(data) - min(count, len(data)) :])
        return 0
    lines = data.splitlines(keepends=True)
    await p.out(b"".join(lines[count - 1 :] if text.startswith("+") else lines[len(lines) - min(count, len(lines)) :]))
    return 0


async def _yes(p: Process) -> int:
    line = kernel.encoded(" ".join(p.argv[1:]) or "y") + b"\n"
    block = line * max(16 * 1024 // len(line), 1)
    while True:
        await p.out(block)
        await p.tick()


async def _dd(p: Process) -> int:
    given = dict(word.split("=", 1) for word in p.argv[1:] if "=" in word)
    size = _size(given.get("bs", "512"))
    if not 0 < size <= _LARGEST_BLOCK_BYTES:
        raise kernel.Usage(f"invalid block size '{given.get('bs')}'")
    count = _size(given["count"]) if "count" in given else None
    source = p.open(given["if"], "r") if "if" in given else None
    target = p.open(given["of"], "w") if "of" in given else None
    blocks = total = 0
    try:
        while count is None or blocks < count:
            data = await (source.read(size) if source is not None else p.read(size))
            if not data:
                break
            blocks, total = blocks + 1, total + len(data)
            await (target.write(data) if target is not None else p.out(data))
            await p.tick()
    finally:
        for one in (source, target):
            if one is not None:
                one.close()
    await p.err(f"{blocks}+0 records in\n{blocks}+0 records out\n{total} bytes copied\n")
    return 0


async def _wc(p: Process) -> int:
    names = [one for one in p.argv[1:] if not one.startswith("-")]
    lines = words = size = 0
    inside = False
    async for chunk in _chunks(p, names):
        lines, size = lines + chunk.count(b"\n"), size + len(chunk)
        words += len(chunk.split()) - (inside and not chunk[:1].isspace())
        inside = not chunk[-1:].isspace()
    options = "".join(one[1:] for one in p.argv[1:] if one.startswith("-"))
    counts = {"l": lines, "w": words, "c": size}
    shown = [str(value) for key, value in counts.items() if not options or key in options]
    await p.out(" ".join([*shown, *names]) + "\n")
    return 0


async def _grep(p: Process) -> int:
    options = "".join(one[1:] for one in p.argv[1:] if one.startswith("-"))
    words = [one for one in p.argv[1:] if not one.startswith("-")]
    if not words:
        raise kernel.Usage("usage: grep PATTERN [FILE]...")
    text = re.escape(words[0]) if "F" in options else words[0]
    try:
        pattern = re.compile(kernel.encoded(text), re.IGNORECASE if "i" in options else 0)
    except re.error as problem:
        raise kernel.Usage(f"bad regex '{words[0]}': {problem}") from None
    found, rest = 0, b""
    async for chunk in _chunks(p, words[1:]):
        *lines, rest = (rest + chunk).split(b"\n")
        found += await _matching(p, pattern, lines, options)
    found += await _matching(p, pattern, [rest] if rest else [], options)
    if "c" in options:
        await p.out(f"{found}\n")
    return int(not found)


async def _matching(p: Process, pattern: re.Pattern[bytes], lines: list[bytes], options: str) -> int:
    chosen = [line for line in lines if bool(pattern.search(line)) != ("v" in options)]
    if chosen and not set(options) & set("qc"):
        await p.out(b"\n".join(chosen) + b"\n")
    return len(chosen)


async def _tee(p: Process) -> int:
    opened: list[streams.Stream] = [p.open(one, "w") for one in p.argv[1:] if not one.startswith("-")]
    try:
        while chunk := await p.read():
            await p.out(chunk)
            for one in opened:
                await one.write(chunk)
    finally:
        for one in opened:
            one.close()
    return 0


PROGRAMS: dict[str, kernel.Program] = {
    "echo": _echo,
    "printf": _printf,
    "cat": _cat,
    "seq": _seq,
    "head": _head,
    "tail": _tail,
    "yes": _yes,
    "dd": _dd,
    "wc": _wc,
    "grep": _grep,
    "tee": _tee,
}
