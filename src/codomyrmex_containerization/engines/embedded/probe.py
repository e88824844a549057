"""Which OCI runtime works on this machine, and which limits does it really set? Found out by running one container.

What a machine can do depends on its control groups, its kernel's settings and on who asks; no list of conditions is as right as a try.
The outcome is kept until something that it depends on changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import groups, limits, seccomp, tiers, tries, userns
from codomyrmex_containerization.models.container import Limits

Kind = tiers.Kind

KINDS = tiers.INSTALLED
REMEDY = tiers.REMEDY

_FORMAT = 3  # of the kept outcome
_SECONDS = 30.0
_TRIED = Limits(
    memory_bytes=64 * 1024**2, memory_reservation_bytes=32 * 1024**2, cpus=0.5, cpu_shares=512, pids_limit=64
)
_CONTROLLERS = {
    "memory": ("memory_bytes", "memory_reservation_bytes"),
    "cpu": ("cpus", "cpu_shares"),
    "pids": ("pids_limit",),
}
_SYSTEM_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LONGEST_WORDS = 300
_BOOT_ID, _UID_MAP = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/uid_map")

# crun does not know machines that have a second, unified tree with any controller: it must not see that one.
_UNIFIED = "/sys/fs/cgroup/unified"
_HIDE = f"mount -i -n -t tmpfs none {_UNIFIED}"  # covered: what crun writes there must go with it, not stay on the host
_RUN = 'exec "$@"'
_RUN_WITHOUT_CGROUPS = 'runtime="$1" && shift && exec "$runtime" --cgroup-manager=disabled "$@"'


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that ran a container here.

    `prefix` is to stand before each of its commands, `cgroups` is where its containers are counted (`none`: nowhere), `limits` names
    those of a container's limits that were seen in the kernel's files, `notes` tells people what is not as it could be.
    """

    path: Path
    kind: Kind
    version: str
    prefix: tuple[str, ...]
    rootless: bool
    cgroups: groups.Layout
    limits: frozenset[str]
    notes: tuple[str, ...] = ()
    tier: tiers.Tier = "full"

    @property
    def is_always_prefixed(self) -> bool:
        """Whether `prefix` belongs before commands for containers that there are, too."""
        return self.kind == "own" or self.cgroups == "none"


class _Failed(Exception):
    """A runtime did not get a container to run; the message is its reason."""


def find_runtime(folder: Path, *, tier: tiers.Tier | None = None) -> Runtime:
    """Return the best runtime that works here; the outcome is kept in `folder`. Blocks, a tenth of a second at the first time.

    With `tier` only one of that tier. Raises EngineUnavailable with the reason of each that failed.
    """
    reasons: list[str] = []
    for one in tiers.TIERS if tier is None else (tier,):
        try:
            found = _find(folder, one)
        except errors.EngineUnavailable as error:
            reasons.append(error.message)
            continue
        return replace(found, notes=(*found.notes, *reasons))
    raise errors.EngineUnavailable(" ".join(reasons), hint=f"run: {REMEDY}")


def _find(folder: Path, tier: tiers.Tier) -> Runtime:
    found = tiers.candidates(tier)
    key = _key(found) if found else ""
    known = _known(folder, tier, key)
    if known is not None:
        return known
    tries.sweep(folder)
    here = [one.kind for one in found]
    reasons = [f"{kind} is not installed" for kind in KINDS[:2] if tier == "full" and kind not in here]
    possible = _possible()
    for wanted in dict.fromkeys((possible, Limits())):
        for one in found:
            for prefix in _prefixes(one):
                try:
                    version = _version_of([*one.starter, str(one.path)])
                    is_rootless = userns.is_inside()
                    tried = Runtime(one.path, one.kind, version, prefix, is_rootless, "none", frozenset(), tier=tier)
                    runtime = _try(folder, tried, wanted)
                except _Failed as error:
                    is_prepared = len(prefix) > len(one.starter)
                    reasons.append(f"{one.path}{' prepared by a shell' if is_prepared else ''}: {error}")
                    continue
                if wanted == possible:
                    _keep(folder, tier, key, runtime)
                    return runtime
                # Better containers without limits, and saying so, than none. What went wrong may be over at the next start.
                return replace(runtime, notes=(*runtime.notes, f"with limits: {'; '.join(reasons)}"))
    raise errors.EngineUnavailable(
        f"No OCI runtime gets a container to run here: {'; '.join(dict.fromkeys(reasons))}.", hint=f"run: {REMEDY}"
    )


def find_monitor(tier: tiers.Tier) -> tuple[tuple[str, ...], str]:
    """Return the command of the program that watches containers, and its version: conmon, or our own where that does not run."""
    if tier == "full":
        with suppress(errors.EngineUnavailable):
            path, version = find_conmon()
            return (str(path),), version
    command = tiers.own_monitor_command()
    return command, _version_of(command)


def find_conmon() -> tuple[Path, str]:
    """Return conmon, which watches containers, and its version. Raises EngineUnavailable."""
    path = process.find("conmon")
    if path is None:
        raise errors.EngineUnavailable("conmon, which watches containers, is not installed.", hint=f"run: {REMEDY}")
    try:
        return path, version_of(path)
    except _Failed as error:
        raise errors.EngineUnavailable(f"{path} does not run: {error}.", hint=f"run: {REMEDY}") from error


def version_of(program: Path) -> str:
    """Return what a program says of its version."""
    return _version_of([str(program)])


def _version_of(command: Sequence[str]) -> str:
    done = _run([*command, "--version"], said=None)
    match = re.search(r"\d+\.\d+\S*", done)
    if match is None:
        raise _Failed("it does not tell its version")
    return match[0]


# ------------------------------------------------------------------------------------------------------------ the try


def _prefixes(one: tiers.Candidate) -> Sequence[tuple[str, ...]]:
    """Return what may have to stand before a runtime's commands here, the simplest first. All of it is constant text."""
    plain = one.starter
    unshare, shell = process.find("unshare"), process.find("sh")
    if one.kind != "crun" or shell is None:
        return (plain,)
    run = _RUN if groups.cgroup_path("0" * 64) else _RUN_WITHOUT_CGROUPS
    found: list[tuple[str, ...]] = [plain] if run == _RUN else [(str(shell), "-c", run, "sh")]
    if unshare is not None and Path(_UNIFIED, "cgroup.controllers").exists():
        alone = (str(unshare), "--mount", "--propagation", "slave")
        found.append((*alone, str(shell), "-c", f"{_HIDE} && {run}", "sh"))
    return found


def _possible() -> Limits:
    """Return those limits that the control groups here could hold."""
    if not groups.cgroup_path("0" * 64):
        return Limits()
    here = {name for one in groups.hierarchies() for name in one.controllers}
    missing = [name for controller, names in _CONTROLLERS.items() if controller not in here for name in names]
    nothing: Mapping[str, Any] = dict.fromkeys(missing)
    return replace(_TRIED, **nothing)


def _try(folder: Path, runtime: Runtime, wanted: Limits) -> Runtime:
    """Run one container and return what was seen. Raises _Failed."""
    container = uuid.uuid4().hex
    parent = tries.parent_of(container)
    with _bundle(folder, container, parent, wanted) as bundle:
        command = [*runtime.prefix, str(runtime.path), "--root", str(bundle / "state")]
        try:
            _run(
                [*command, "create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), container], said=bundle
            )
            pid = int((bundle / "pid").read_text())
            held = frozenset(name for name, where in limits.enforced(pid, wanted).items() if where == "cgroup")
            is_counted = any(container in str(place.directory) for place in groups.of_process(pid).values())
            status = _status_of_program([*command, "start", container], bundle, pid)
        finally:
            with suppress(_Failed):
                _run([*command, "delete", "--force", container], said=bundle)
            groups.remove_cgroups(container, parent=parent)
            groups.remove_parent(parent)
    if status.get("Seccomp") != "2":
        raise _Failed("its container's program is not behind the filter of system calls")
    return replace(
        runtime,
        cgroups=groups.layout() if is_counted else "none",
        limits=held,
        notes=tuple(filter(None, (tiers.note(runtime.tier, held), *_notes(runtime, held, is_counted=is_counted)))),
    )


def _status_of_program(start: Sequence[str], bundle: Path, pid: int) -> Mapping[str, str]:
    """Let the container's program run to its end; returns what it read of itself."""
    try:
        watched = os.pidfd_open(pid)
    except OSError as error:
        raise _Failed(f"its container cannot be watched ({error.strerror})") from error
    try:
        _run(start, said=bundle)
        if not select.select([watched], [], [], _SECONDS)[0]:
            raise _Failed(f"its container's program did not end within {_SECONDS:g} seconds")
    finally:
        os.close(watched)
    lines = (bundle / "out").read_text("utf-8", "replace").splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if status.get("Pid") != "1":
        raise _Failed(f"its container's program did not run: {_last_words(bundle / 'out') or 'it said nothing'}")
    return status


def _notes(runtime: Runtime, held: frozenset[str], *, is_counted: bool) -> tuple[str, ...]:
    notes = (
        [f"{runtime.kind} works with {_UNIFIED} hidden from it"] if any(_HIDE in one for one in runtime.prefix) else []
    )
    if not is_counted:
        notes.append("containers have no control groups here")
    elif missing := [name for names in _CONTROLLERS.values() for name in names if name not in held]:
        notes.append(f"the kernel does not hold these limits here: {', '.join(missing)}")
    return tuple(notes)


@contextmanager
def _bundle(folder: Path, container: str, parent: str, wanted: Limits) -> Iterator[Path]:
    """Make a bundle whose program is this host's own `cat`, its system folders mounted read-only; removes it."""
    program = _program()
    if program is None:
        raise _Failed("there is no program `cat` to try it with")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tries.place(folder, container) as bundle:
            (bundle / "rootfs").mkdir()
            binds = list(_system_binds(bundle / "rootfs"))
            path = groups.cgroup_path(container, parent=parent)
            document = _document([str(program), "/proc/self/status"], binds, path, wanted)
            (bundle / "config.json").write_text(json.dumps(document))
            yield bundle
    except OSError as error:
        raise _Failed(f"{error.filename or folder}: {error.strerror}") from error
    except errors.Unsupported as error:
        raise _Failed(error.message) from error


def _program() -> Path | None:
    """Return a program that reads a file, at a path that the container has too."""
    found = shutil.which("cat", path=_PATH)
    other = process.find("cat")
    if found is not None:
        return Path(found)
    return other.resolve() if other is not None else None


def _system_binds(root: Path) -> Iterator[dict[str, Any]]:
    for name in _SYSTEM_FOLDERS:
        outside = Path("/", name)
        if outside.is_symlink():
            (root / name).symlink_to(os.readlink(outside))
        elif outside.is_dir():
            (root / name).mkdir()
            options = ["rbind", "rprivate", "ro", "nosuid", "nodev"]
            yield {"destination": f"/{name}", "type": "bind", "source": f"/{name}", "options": options}


def _document(
    command: Sequence[str], binds: Sequence[Mapping[str, Any]], cgroup: str, wanted: Limits
) -> dict[str, Any]:
    devices = [{"allow": False, "access": "rwm"}]
    user = _user_namespace()
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": [f"PATH={_PATH}"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            *binds,
        ],
        "linux": {
            "namespaces": [{"type": one} for one in ("pid", "ipc", "uts", "mount", "network")] + user["namespaces"],
            **user["mappings"],
            **({"cgroupsPath": cgroup} if cgroup else {}),
            "resources": {**limits.resources(wanted), "devices": devices},
            "seccomp": seccomp.profile(()),
        },
    }


def _user_namespace() -> dict[str, Any]:
    """Return what an ordinary user needs: a namespace in which that user is root."""
    if os.geteuid() == 0:
        return {"namespaces": [], "mappings": {}}
    mappings = {
        f"{kind}Mappings": [{"containerID": 0, "hostID": number, "size": 1}]
        for kind, number in (("uid", os.geteuid()), ("gid", os.getegid()))
    }
    return {"namespaces": [{"type": "user"}], "mappings": mappings}


def _run(command: Sequence[str], *, said: Path | None) -> str:
    """Run a program to its end and return what it said; with `said` that goes into files there. Raises _Failed."""
    # Into files: a container keeps its creator's pipes, and waiting for their end would be waiting for the container's.
    with tempfile.TemporaryFile() as nowhere:
        try:
            with (
                open(said / "out", "ab") if said else nowhere as out,
                open(said / "errors", "wb") if said else tempfile.TemporaryFile() as failed,
            ):
                done = subprocess.run(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=failed,
                    timeout=_SECONDS,
                    env={
                        "PATH": _PATH,
                        **{name: os.environ[name] for name in ("XDG_RUNTIME_DIR",) if name in os.environ},
                    },
                )
                output = _text_of(out.fileno())
                words = _text_of(failed.fileno()) if said is None else _last_words(said / "errors")
        except subprocess.TimeoutExpired as error:
            raise _Failed(f"it took longer than {_SECONDS:g} seconds") from error
        except OSError as error:
            raise _Failed(f"it could not be started ({error.strerror})") from error
    if done.returncode != 0:
        raise _Failed(words.strip()[:_LONGEST_WORDS] or f"it ended with {done.returncode}")
    return output


def _text_of(descriptor: int) -> str:
    with suppress(OSError):
        return os.pread(descriptor, 65_536, 0).decode("utf-8", "replace")
    return ""


def _last_words(path: Path) -> str:
    try:
        lines = path.read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:_LONGEST_WORDS] if lines else ""


# --------------------------------------------------------------------------------------------------------- what is kept


def _key(found: Sequence[tiers.Candidate]) -> str:
    """Return a digest of all that the outcome depends on: the programs, the boot, who asks, and the trees of control groups."""
    parts: list[object] = [_FORMAT, os.geteuid(), _text(_BOOT_ID), os.uname().release]
    for one in found:
        with suppress(OSError):
            seen = one.path.stat()
            parts.append([one.kind, *one.starter, str(one.path), seen.st_ino, seen.st_size, seen.st_mtime_ns])
    parts += [[str(tree.mount), tree.root, tree.is_v2, sorted(tree.controllers)] for tree in groups.hierarchies()]
    parts += [_text(_UID_MAP), groups.cgroup_path("0" * 64), seccomp.all_capabilities()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _file(folder: Path, tier: tiers.Tier) -> Path:
    return folder / ("runtime.json" if tier == "full" else f"runtime-{tier}.json")


def _known(folder: Path, tier: tiers.Tier, key: str) -> Runtime | None:
    try:
        kept = json.loads(_file(folder, tier).read_text("utf-8"))
        if kept["key"] != key:
            return None
        one = kept["runtime"]
        return Runtime(
            path=Path(one["path"]),
            kind=one["kind"],
            version=one["version"],
            prefix=tuple(one["prefix"]),
            rootless=one["rootless"],
            cgroups=one["cgroups"],
            limits=frozenset(one["limits"]),
            notes=tuple(one["notes"]),
            tier=tier,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: Path, tier: tiers.Tier, key: str, runtime: Runtime) -> None:
    plain = {**asdict(runtime), "path": str(runtime.path), "limits": sorted(runtime.limits)}
    text = json.dumps({"key": key, "runtime": plain})
    # Not kept, it is found out again at the next start.
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, _file(folder, tier))
