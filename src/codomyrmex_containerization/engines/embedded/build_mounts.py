"""Which mounts does a RUN ask for, and what is mounted then: memory, a cache that outlives the build, a secret?"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from codomyrmex_containerization.engines.embedded import (
    build_copy,
    build_expand,
    build_files,
    build_run,
    build_words,
    build_work,
    kernel,
    objects,
    overlay,
)
from codomyrmex_containerization.engines.embedded.build_files import Meta, Owner, Tree
from codomyrmex_containerization.engines.embedded.build_words import Failed, Instruction
from codomyrmex_containerization.models.container import Mount
from codomyrmex_containerization.models.image import BuildSecret

_LOOK_SECONDS: Final = 0.1
_LARGEST_SECRET_BYTES: Final = 500 * 1024
_SIZES: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_TARGETS: Final = frozenset({"type", "target", "dst", "destination"})
_READING: Final = frozenset({"readonly", "ro", "readwrite", "rw"})
_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "tmpfs": _TARGETS | {"size"},
    "bind": _TARGETS | _READING | {"source", "src", "from"},
    "cache": _TARGETS | _READING | {"id", "sharing", "mode", "uid", "gid"},
    "secret": _TARGETS | {"id", "source", "src", "required", "mode", "uid", "gid", "env"},
}


@dataclass(frozen=True, slots=True)
class Wish:
    """One --mount of a RUN as it was read; `env` is the variable that a secret is to be in."""

    kind: str
    target: str
    source: str = ""
    origin: str = ""
    id: str = ""
    sharing: str = "shared"
    mode: int = 0o755
    owner: Owner = field(default_factory=Owner)
    size_bytes: int | None = None
    read_only: bool = False
    required: bool = False
    env: str = ""


def wishes(step: Instruction, seen: Mapping[str, str], workdir: str) -> tuple[Wish, ...]:
    """Read the mounts that a RUN asks for. Raises Failed."""
    return tuple(
        _wish(build_words.options(build_expand.expand(value, seen, escape=step.escape)), workdir)
        for value in step.flag_values("mount")
    )


def _wish(given: Mapping[str, str], workdir: str) -> Wish:
    kind = given.get("type", "bind").lower()
    allowed = _OPTIONS.get(kind)
    if allowed is None:
        raise Failed(f"--mount=type={kind[:60]} is not supported by this builder: it has {', '.join(_OPTIONS)}")
    if unknown := sorted(given.keys() - allowed):
        raise Failed(f"--mount=type={kind} has no option {unknown[0][:60]!r} in this builder")
    source = given.get("source", given.get("src", ""))
    id = given.get("id", "") or (source if kind == "secret" else "")
    target = _target(given, kind, id, workdir)
    if (sharing := given.get("sharing", "shared")) not in ("shared", "private", "locked"):
        raise Failed(f"--mount sharing={sharing[:60]} is none of shared, private, locked")
    return Wish(
        kind=kind,
        target=target,
        source=source,
        origin=given.get("from", ""),
        id=id or (posixpath.basename(target) if kind == "secret" else target),
        sharing=sharing,
        mode=_number(given.get("mode", "400" if kind == "secret" else "755"), 8),
        owner=Owner(_number(given.get("uid", "0"), 10), _number(given.get("gid", "0"), 10)),
        size_bytes=_size(given["size"]) if "size" in given else None,
        read_only=_is_set(given, "readonly", "ro") or (kind == "bind" and not _is_set(given, "readwrite", "rw")),
        required=_is_set(given, "required"),
        env=given.get("env", ""),
    )


def _target(given: Mapping[str, str], kind: str, id: str, workdir: str) -> str:
    target = next((given[name] for name in ("target", "dst", "destination") if given.get(name)), "")
    if not target and kind == "secret":
        if not id and not given.get("env"):
            raise Failed("--mount=type=secret has neither an id nor a target")
        return "" if given.get("env") else build_files.normal(f"/run/secrets/{posixpath.basename(id)}")
    if not target:
        raise Failed(f"--mount=type={kind} has no target")
    if (target := build_files.normal(posixpath.join(workdir or "/", target))) == "/":
        raise Failed("--mount cannot take the place of /")
    return target


def _is_set(given: Mapping[str, str], *names: str) -> bool:
    return any(name in given and given[name].lower() in ("", "true", "1") for name in names)


def _number(text: str, base: int) -> int:
    if not re.fullmatch(r"[0-7]{1,5}" if base == 8 else r"[0-9]{1,9}", text):
        raise Failed(f"--mount has {text[:60]!r} where a number is wanted")
    return int(text, base)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15})([bkmg]?)b?", text.lower())
    if found is None:
        raise Failed(f"--mount size={text[:60]} is no size: write it as 64m")
    return int(found[1]) * _SIZES[found[2]]


# --- lending ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lent:
    """What a RUN is given beside its image: mounts, variables, and what of them decides whether it was done before."""

    mounts: list[Mount] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    seen: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lender:
    """Lends steps what they ask for until the stack is left; `named` finds a stage or an image by the name in from=."""

    work: build_work.Work
    named: Callable[[str], objects.Image | None]
    caches: Path
    secrets: tuple[BuildSecret, ...]
    stack: ExitStack

    def lend(self, wishes: Sequence[Wish], script: build_run.Script) -> Lent:
        """Prepare the mounts of a step. Raises Failed, OSError."""
        lent = Lent()
        if script.file is not None:
            folder = self.work.fresh("script")
            with Tree(folder) as tree:
                tree.write(script.file[0], script.file[1].encode(), mode=0o755)
            folder.chmod(0o755)
            lent.mounts.append(Mount("bind", build_run.SCRIPTS, str(folder), read_only=True))
        for wish in wishes:
            lent.seen.append([asdict(wish), self._one(wish, lent)])
        return lent

    def _one(self, wish: Wish, lent: Lent) -> str:
        """Add a mount and return the digest of what is read from it, as far as that makes the step another one."""
        mark = ""
        match wish.kind:
            case "tmpfs":
                lent.mounts.append(Mount("tmpfs", wish.target, size_bytes=wish.size_bytes))
            case "secret":
                self._secret(wish, lent)
            case "cache":
                kept = cache(self.caches, wish, spare=self.work.fresh("cache"), look=self.work.look)
                source = str(self.stack.enter_context(kept))
                lent.mounts.append(Mount("bind", wish.target, source, read_only=wish.read_only))
            case _:
                bound, mark = self._bound(wish)
                lent.mounts.append(Mount("bind", wish.target, str(bound), read_only=wish.read_only))
        return mark

    def _secret(self, wish: Wish, lent: Lent) -> None:
        data = secret(wish, self.secrets)
        if data is None:
            return
        if wish.env:
            lent.env[wish.env] = os.fsdecode(data)
        if wish.target:
            file = self.stack.enter_context(in_memory(self.work.fresh("secret"), data, wish))
            lent.mounts.append(Mount("bind", wish.target, str(file), read_only=True))

    def _bound(self, wish: Wish) -> tuple[Path, str]:
        """Return what a bind mount shows, and its digest. What a step writes to it is gone afterwards."""
        if wish.origin:
            image = self.named(wish.origin)
            layers, mark = self.work.layers(image), image.id if image is not None else ""
        else:
            layers, mark = (self.work.context(),), ""
        is_plain = wish.read_only and len(layers) == 1
        root = layers[0] if is_plain else self.work.merged(layers, self.stack)
        with Tree(root) as tree:
            if not tree.has(wish.source or "/"):
                raise Failed(f"--mount source {wish.source[:200]!r}: no such file")
            place = self.stack.enter_context(tree.find(wish.source or "/"))
            if not mark:
                source = build_copy.Source(tree, place.path, "source")
                mark = build_copy.digest(build_copy.Request((source,), "/", into=False), look=self.work.look)
            return root / place.path.lstrip("/"), mark


# --- caches ----------------------------------------------------------------------------------------------------------


@contextmanager
def cache(folder: Path, wish: Wish, *, spare: Path, look: Callable[[], None]) -> Iterator[Path]:
    """Lend the folder of a cache mount, which outlives the build; `spare` stands in where a private one is lent already."""
    kept = folder / hashlib.sha256(wish.id.encode("utf-8", "surrogateescape")).hexdigest()
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        if wish.sharing != "shared":
            lock = os.open(kept / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, lock)
            if not _locked(lock, look, waits=wish.sharing == "locked"):
                kept = spare
        content = kept / "content"
        with suppress(FileExistsError):
            content.mkdir(mode=0o700)
            os.chown(content, wish.owner.uid, wish.owner.gid)
            content.chmod(wish.mode)
        yield content


def _locked(lock: int, look: Callable[[], None], *, waits: bool) -> bool:
    pause = threading.Event()
    while True:
        look()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits:
                return False
            pause.wait(_LOOK_SECONDS)
        else:
            return True


# --- secrets ---------------------------------------------------------------------------------------------------------


def secret(wish: Wish, secrets: tuple[BuildSecret, ...]) -> bytes | None:
    """Return the secret that a RUN asks for; None when nobody gave it and it need not be there. Raises Failed."""
    given = next((one for one in secrets if one.id == wish.id), None)
    if given is None:
        if wish.required:
            raise Failed(f"secret {wish.id[:60]}: not found: give it with the build")
        return None
    try:
        data = _read(given)
    except OSError as problem:
        raise Failed(f"secret {wish.id[:60]} cannot be read: {problem.strerror}") from problem
    if data is None or len(data) > _LARGEST_SECRET_BYTES:
        raise Failed(f"secret {wish.id[:60]} is not set" if data is None else f"secret {wish.id[:60]} is too large")
    return data


def _read(given: BuildSecret) -> bytes | None:
    if given.path is not None:
        with given.path.open("rb") as file:
            return file.read(_LARGEST_SECRET_BYTES + 1)
    value = os.environ.get(given.env or given.id)
    return os.fsencode(value) if value is not None else None


@contextmanager
def in_memory(folder: Path, data: bytes, wish: Wish) -> Iterator[Path]:
    """Show bytes as a file that is never on a disk, while the block lasts. Raises OSError."""
    kernel.mount("tmpfs", str(folder), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=700,size=1m")
    try:
        with Tree(folder) as tree, tree.find("secret") as place:
            meta = Meta(wish.mode, wish.owner)
            with build_files.new_file(place.folder, place.name, meta) as file:
                build_files.write_all(file, data)
        yield folder / "secret"
    finally:
        overlay.unmount(folder)
