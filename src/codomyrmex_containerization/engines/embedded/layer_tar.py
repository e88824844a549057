"""What does a tar say, header by header, and how is one written so that equal contents give equal bytes?

Not `tarfile`: it believes sizes before it has seen them, and what it writes may change with the Python that runs it, and digests with it.
Formats: POSIX.1-2001 pax, ustar, GNU long names, v7; sparse files are refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from codomyrmex_containerization import errors

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
XATTR = "SCHILY.xattr."
_PIECE_BYTES = 1024 * 1024
_MOST_HEADER_BYTES = 1024 * 1024  # of one extended header: names, links, extended attributes
_MOST_SECONDS = 2**62 // 10**9

Kind = Literal["file", "folder", "link", "hard link", "fifo", "device"]
_KINDS: Mapping[bytes, Kind] = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "hard link", b"2": "link", b"3": "device", b"4": "device",
    b"5": "folder", b"6": "fifo",
}  # fmt: skip


class Stream(Protocol):
    """Where a tar comes from: `read` returns at most so many bytes, none at the end."""

    def read(self, count: int, /) -> bytes:
        """Return the next bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: names as they stand in the tar (bytes that are no UTF-8 escaped as Python does), times in nanoseconds."""

    name: str
    kind: Kind
    size_bytes: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    target: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


class Reader:
    """Reads a tar once, from its beginning to its end. Raises InvalidArgument for what is no tar, Unsupported for a sparse file."""

    def __init__(self, stream: Stream, *, skip: Callable[[int], None] | None = None) -> None:
        self._stream = stream
        self._skip = skip  # passes over bytes without reading them, where the stream can do that
        self._left = 0  # of the entry's data that nobody has read yet
        self._padding = 0
        self._common: dict[str, bytes] = {}
        self.has_end = False
        self.place = 0  # where the data of the entry that was read last begins

    def next(self) -> Entry | None:
        """Return the next entry, None at the end. What was not read of the one before is passed over."""
        self._pass_over()
        own: dict[str, bytes] = {}
        long_name = long_target = None
        for _ in range(16):
            block = self._block()
            if block is None:
                if own or long_name is not None or long_target is not None:
                    raise damaged("it ends with a header of nothing")
                return None
            size, flag = _number(block[124:136]), block[156:157]
            if flag in b"xgLKX" and flag:
                text = self._extended(size)
                if flag == b"L":
                    long_name = text.split(b"\0", 1)[0]
                elif flag == b"K":
                    long_target = text.split(b"\0", 1)[0]
                elif flag == b"g":
                    self._common.update(_records(text))
                    if sum(map(len, self._common.values())) > _MOST_HEADER_BYTES:
                        raise damaged("its common headers are too long")
                else:
                    own = _records(text)
                continue
            return self._entry(block, {**self._common, **own}, long_name, long_target)
        raise damaged("it has too many headers for one entry")

    def read(self, count: int) -> bytes:
        """Return the next bytes of the entry's data, none at its end."""
        piece = self._stream.read(min(count, self._left, _PIECE_BYTES)) if self._left else b""
        if not piece and self._left:
            raise damaged("it ends inside of a file")
        self._left -= len(piece)
        self.place += len(piece)
        return piece

    def _entry(
        self, block: bytes, pax: Mapping[str, bytes], long_name: bytes | None, long_target: bytes | None
    ) -> Entry:
        flag = block[156:157]
        if flag == b"S" or any(key.startswith("GNU.sparse.") for key in pax):
            raise errors.Unsupported("The archive holds a sparse file.", hint="make it without: tar without --sparse")
        kind = _KINDS.get(flag)
        if kind is None:
            raise damaged(f"it has an entry of an unknown kind, {flag!r}")
        name = pax.get("path") or long_name or _name(block)
        target = pax.get("linkpath") or long_target or block[157:257].split(b"\0", 1)[0]
        size = _decimal(pax["size"]) if "size" in pax else _number(block[124:136])
        if kind == "file" and flag != b"7" and name.endswith(b"/"):
            kind = "folder"  # as v7 wrote them
        if kind != "file":
            size = 0  # the others have no data, whatever their header says
        self._left, self._padding = size, -size % BLOCK_BYTES
        return Entry(
            name=_text(name),
            kind=kind,
            size_bytes=size,
            mode=_number(block[100:108]) & 0o7777,
            uid=_owner(_decimal(pax["uid"]) if "uid" in pax else _number(block[108:116])),
            gid=_owner(_decimal(pax["gid"]) if "gid" in pax else _number(block[116:124])),
            mtime_ns=_nanoseconds(pax["mtime"]) if "mtime" in pax else _time(block[136:148]),
            target=_text(target) if kind in ("link", "hard link") else "",
            xattrs={key.removeprefix(XATTR): value for key, value in pax.items() if key.startswith(XATTR)},
        )

    def _pass_over(self) -> None:
        if self._skip is not None and self._left:
            self._skip(self._left)
            self.place += self._left
            self._left = 0
        while self._left:
            self.read(_PIECE_BYTES)
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _block(self) -> bytes | None:
        block = self._stream.read(BLOCK_BYTES)
        while block and len(block) < BLOCK_BYTES and (more := self._stream.read(BLOCK_BYTES - len(block))):
            block += more
        self.place += len(block)
        if not block:
            return None
        if len(block) < BLOCK_BYTES:
            raise damaged("it ends inside of a header")
        if not any(block):
            self.has_end = True
            return None
        stated = _number(block[148:156])
        plain = block[:148] + b" " * 8 + block[156:]
        # Some very old ones added up signed bytes.
        if stated != sum(plain) and stated != sum(plain) - 256 * sum(byte > 127 for byte in plain):
            raise damaged("a header's checksum is wrong")
        return block

    def _extended(self, size: int) -> bytes:
        if size > _MOST_HEADER_BYTES:
            raise damaged("it has a header of more than 1 MiB")
        text = self._exactly(size)
        self._exactly(-size % BLOCK_BYTES)
        return text

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            piece = self._stream.read(count - len(found))
            if not piece:
                raise damaged("it ends too early")
            found += piece
        self.place += count
        return found


def damaged(reason: str) -> errors.InvalidArgument:
    """Return the error for a tar that cannot be read."""
    return errors.InvalidArgument(f"The archive is damaged or is no tar: {reason}.", hint="make or fetch it again")


def _number(field_: bytes) -> int:
    """Read a header's number: octal digits, or base 256 as GNU writes large ones."""
    if field_[0] & 0x80:
        value = int.from_bytes(field_, "big", signed=False) & ((1 << (8 * len(field_) - 1)) - 1)
        if field_[0] & 0x40 or value >= 1 << 62:
            raise damaged("it has a number that is negative or too large")
        return value
    digits = field_.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise damaged("it has a number that is none")
    return int(digits, 8)


def _time(field_: bytes) -> int:
    # A time before 1970 is written as a negative number in base 256; a file may well have one.
    if field_[0] == 0xFF:
        return max(int.from_bytes(field_, "big", signed=True), -_MOST_SECONDS) * 10**9
    return min(_number(field_), _MOST_SECONDS) * 10**9


def _owner(number: int) -> int:
    if number >= 2**32 - 1:  # the last one means "leave it as it is"
        raise damaged("it has an owner that cannot be")
    return number


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise damaged("it has a number that is none")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    sign, digits = (-1, text[1:]) if text.startswith(b"-") else (1, text)
    whole, _, part = digits.partition(b".")
    if not whole.isdigit() or (part and not part.isdigit()) or len(whole) > 19:
        raise damaged("it has a time that is none")
    return sign * (min(int(whole), _MOST_SECONDS) * 10**9 + int(part[:9].ljust(9, b"0")))


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(text: bytes) -> dict[str, bytes]:
    """Read the records of a pax header: `LENGTH KEY=VALUE\\n`, where the length counts all of it."""
    found: dict[str, bytes] = {}
    place = 0
    while place < len(text) and text[place]:
        blank = text.find(b" ", place, place + 20)
        length = _decimal(text[place:blank]) if blank > place else 0
        record = text[blank + 1 : place + length]
        key, equals, value = record.partition(b"=")
        if length <= 0 or place + length > len(text) or not equals or value[-1:] != b"\n":
            raise damaged("it has an extended header that cannot be read")
        found[_text(key)] = value[:-1]
        place += length
    return found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


# -------------------------------------------------------------------------------------------------------------- writing


def header(entry: Entry) -> bytes:
    """Return the header of an entry: ustar where it fits, with a pax header before it where it does not. Times are whole seconds."""
    name, target = _bytes(entry.name), _bytes(entry.target)
    if entry.kind == "folder" and not name.endswith(b"/"):
        name += b"/"
    seconds = entry.mtime_ns // 10**9
    pax: dict[bytes, bytes] = {}
    if len(name) > 100 or not name.isascii():
        pax[b"path"] = name
    if len(target) > 100 or not target.isascii():
        pax[b"linkpath"] = target
    for key, number, most in ((b"uid", entry.uid, 8**7), (b"gid", entry.gid, 8**7), (b"size", entry.size_bytes, 8**11)):
        if number >= most:
            pax[key] = b"%d" % number
    if not 0 <= seconds < 8**11:
        pax[b"mtime"] = b"%d" % seconds
    pax |= {_bytes(XATTR + key): value for key, value in entry.xattrs.items()}
    block = _ustar(entry, name, target, seconds if b"mtime" not in pax else 0)
    if not pax:
        return block
    text = b"".join(_record(key, pax[key]) for key in sorted(pax))
    before = _ustar(Entry("PaxHeader", "file", size_bytes=len(text)), b"PaxHeader", b"", 0, flag=b"x")
    return before + text + bytes(-len(text) % BLOCK_BYTES) + block


def _ustar(entry: Entry, name: bytes, target: bytes, seconds: int, *, flag: bytes = b"") -> bytes:
    flags: Mapping[Kind, bytes] = {"file": b"0", "hard link": b"1", "link": b"2", "folder": b"5", "fifo": b"6"}
    block = bytearray(BLOCK_BYTES)
    block[:100] = _padded(name, 100)
    block[100:108] = b"%07o\0" % entry.mode
    block[108:116] = b"%07o\0" % (entry.uid if entry.uid < 8**7 else 0)
    block[116:124] = b"%07o\0" % (entry.gid if entry.gid < 8**7 else 0)
    block[124:136] = b"%011o\0" % (entry.size_bytes if entry.size_bytes < 8**11 else 0)
    block[136:148] = b"%011o\0" % seconds
    block[156:157] = flag or flags[entry.kind]
    block[157:257] = _padded(target, 100)
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


def _padded(text: bytes, width: int) -> bytes:
    return text[:width].ljust(width, b"\0")


def _record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    total = length + len(str(length))
    if len(str(total)) > len(str(length)):
        total += 1
    return b"%d %s=%s\n" % (total, key, value)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class FromPieces(io.RawIOBase):
    """Bytes that come in pieces, as something to read from."""

    def __init__(self, next_piece: Callable[[], bytes]) -> None:
        self._next = next_piece
        self._rest = memoryview(b"")

    def read(self, count: int = -1) -> bytes:
        """Return at most so many of the next bytes, none at the end."""
        if not self._rest:
            self._rest = memoryview(self._next())
        part = self._rest[:count] if count >= 0 else self._rest
        self._rest = self._rest[len(part) :]
        return bytes(part)
