"""What does the OCI runtime have to be told so that a container is as it was asked for?

Source: https://github.com/opencontainers/runtime-spec/blob/main/config.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codomyrmex_containerization.engines.embedded import idmaps, isolation, userns
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import MountPoint

Json = dict[str, Any]

# What a program that is root in a container keeps of root's powers: those that stay inside it.
DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
_TTY = 5
_SHM = "/dev/shm"  # noqa: S108  the container's own
_SHM_BYTES = 64 * 1024 * 1024
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/dev/block", "/sys/devices/virtual/powercap", "/sys/firmware",
    "/sys/fs/selinux",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_FILE = ("ro", "nosuid", "nodev")
_ALL_BELOW = ("rro", "rnosuid", "rnodev")
INIT = "/dev/init"


@dataclass(frozen=True, slots=True)
class User:
    """On whose behalf a program runs, in the container's numbers."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What this host gives a container: paths here, and what was found out about it."""

    root: str
    user: User
    netns: str | None = None
    host_network: bool = False
    cgroup: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)
    rlimits: Sequence[Mapping[str, Any]] = ()
    seccomp: Mapping[str, Any] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    init: str | None = None
    programs: Sequence[tuple[str, str]] = ()
    mounts: Sequence[MountPoint] = ()
    users: idmaps.Range | None = None


def capabilities(record: Record, every: Sequence[str]) -> tuple[str, ...]:
    """Return the capabilities of a container's root; `every` are those that the kernel has, for `ALL` and privileged ones."""
    if record.spec.privileged:
        return tuple(every)
    added, dropped = (
        {one.upper().removeprefix("CAP_") for one in given} for given in (record.spec.cap_add, record.spec.cap_drop)
    )
    start = [] if "ALL" in dropped else [*(every if "ALL" in added else DEFAULT_CAPABILITIES)]
    start += [one for one in sorted(added - {"ALL"}) if one not in start]
    return tuple(one for one in start if one not in dropped or (one in added and "ALL" in dropped))


def config(record: Record, around: Surroundings, *, powers: Sequence[str]) -> Json:
    """Return config.json for a container."""
    spec = record.spec
    linux: Json = {
        "namespaces": _namespaces(around),
        "maskedPaths": list(_MASKED) if isolation.is_filtered(spec) else [],
        # Whoever is root may change the host's kernel by these: at the lowest level they are shut too.
        "readonlyPaths": [] if spec.privileged else list(_READ_ONLY),
    }
    if around.users is not None:
        linux |= {"uidMappings": around.users.mappings(), "gidMappings": around.users.mappings()}
    if around.cgroup:
        linux |= {
            "resources": _resources(around.resources, privileged=spec.privileged),
            "cgroupsPath": around.cgroup,
        }
    if around.seccomp is not None and not spec.privileged:
        linux["seccomp"] = dict(around.seccomp)
    words = [*record.entrypoint, *record.command]
    return {
        "ociVersion": "1.0.2",
        "hostname": record.hostname,
        "root": {"path": around.root, "readonly": spec.read_only_rootfs},
        "process": process(
            [INIT, "--", *words] if around.init else words,
            user=around.user,
            env={"HOSTNAME": record.hostname, "HOME": around.user.home, **record.env},
            workdir=record.workdir,
            powers=powers,
            rlimits=around.rlimits,
            privileged=spec.privileged,
        ),
        "mounts": [*_system_mounts(record, around), *_mounts(record, around.mounts)],
        "annotations": {**around.annotations, "org.opencontainers.image.stopSignal": record.image.config.stop_signal or "SIGTERM"},
        "linux": linux,
    }  # fmt: skip


def process(
    words: Sequence[str],
    *,
    user: User,
    env: Mapping[str, str],
    workdir: str,
    powers: Sequence[str],
    rlimits: Sequence[Mapping[str, Any]] = (),
    privileged: bool = False,
) -> Json:
    """Return the description of a program: the container's own, or a command in it."""
    names = [f"CAP_{one}" for one in powers]
    # A program of an ordinary user has none of them, but what it starts as root may get them.
    effective = names if user.uid == 0 else []
    return {
        "terminal": False,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": list(words),
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": workdir,
        "capabilities": {"bounding": names, "effective": effective, "permitted": effective, "inheritable": []},
        "rlimits": [dict(one) for one in rlimits],
        "noNewPrivileges": not privileged,
    }


def _namespaces(around: Surroundings) -> list[Json]:
    kinds: list[Json] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    if around.users is not None:
        kinds.append({"type": "user"})
    if not around.host_network:
        kinds.append({"type": "network", **({"path": around.netns} if around.netns else {})})
    return kinds


def _resources(given: Mapping[str, Any], *, privileged: bool) -> Json:
    devices: list[Json] = [{"allow": privileged, "access": "rwm"}]
    return {**given, "devices": devices}


def _system_mounts(record: Record, around: Surroundings) -> list[Json]:
    shm_bytes = record.limits.shm_bytes or _SHM_BYTES
    safe = ["nosuid", "noexec", "nodev"]
    read_only = [] if record.spec.privileged else ["ro"]
    found = [
        _mount("/proc", "proc", "proc", safe),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *_tty()]
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", safe),
        _mount(_SHM, "tmpfs", "shm", [*safe, "mode=1777", f"size={shm_bytes}"]),
        _mount("/sys", "sysfs", "sysfs", [*safe, *read_only]),
    ]
    if around.users is None:  # users of its own would be shown the groups of the whole host
        found.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]))
    taken = {mount.target.rstrip("/") for mount in record.mounts}
    found = [one for one in found if one["destination"] not in taken]
    found += [
        # Of a folder, what is mounted in it too; crun takes such words for folders alone.
        _mount(target, "bind", source, ["rbind", "rprivate", *(_ALL_BELOW if os.path.isdir(source) else _FILE)])
        for source, target in around.programs
    ]
    found += [
        _mount(target, "bind", source, ["rbind", "rprivate", "rw" if around.users is None else "ro"])
        for target, source in around.files.items()
        if target not in taken
    ]
    if around.init:
        found.append(_mount(INIT, "bind", around.init, ["bind", "rprivate", "ro", "nosuid", "nodev"]))
    return found


def _tty() -> list[str]:
    return [f"gid={_TTY}"] if userns.has_group(_TTY) else []


def _mounts(record: Record, placed: Sequence[MountPoint]) -> list[Json]:
    sizes = {mount.target: mount.size_bytes for mount in record.spec.mounts}
    # A mount on a folder of another one comes after it.
    return [_own_mount(one, sizes.get(one.target)) for one in sorted(placed, key=lambda one: one.target.count("/"))]


def _own_mount(one: MountPoint, size_bytes: int | None) -> Json:
    if one.type == "tmpfs":
        size = [] if size_bytes is None else [f"size={size_bytes}"]
        read_only = ["ro"] if one.read_only else []
        return _mount(one.target, "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", *size, *read_only])
    access = "ro" if one.read_only else "rw"
    return _mount(one.target, "bind", one.source, ["rbind", "rprivate", "nodev", access])


def _mount(target: str, kind: str, source: str, options: Sequence[str]) -> Json:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def encoded(document: Json) -> bytes:
    """Return a document as it is written to a file; bytes of no text stay what they were."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")
