"""Which settings does Podman need on this machine that nobody wrote down, and how are they put over those that somebody did?

They are found by looking, and only what is needed is set. Podman before version 5 takes them as a whole configuration (CONTAINERS_CONF
replaces all other files, with them a distribution's choice of capabilities): that is therefore made of the files that Podman
would have read. Newer ones put a file of its own over the others (CONTAINERS_CONF_OVERRIDE).

Source: containers.conf(5).
"""

from __future__ import annotations

import json
import os
import resource
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors, process

_CAP_SYS_RESOURCE = 24
_OVERRIDES_SINCE = (5, 0)

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What of this machine decides how Podman has to be set up."""

    rootless: bool
    may_raise_limits: bool
    most_files: int
    most_processes: int
    has_systemd: bool
    has_journal: bool
    has_hybrid_cgroups: bool
    has_runc: bool
    has_tun: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be set, and why, in words for a person."""

    tables: Tables
    notes: tuple[str, ...]


def look() -> Facts:
    """Look at this machine; Linux only."""
    return Facts(
        rootless=os.geteuid() != 0,
        may_raise_limits=_has_capability(_CAP_SYS_RESOURCE),
        most_files=_hard_limit(resource.RLIMIT_NOFILE, Path("/proc/sys/fs/nr_open")),
        # Podman lowers its own limit to the largest process number before it sets those of containers.
        most_processes=_hard_limit(resource.RLIMIT_NPROC, Path("/proc/sys/kernel/pid_max")),
        has_systemd=os.path.isdir("/run/systemd/system"),
        has_journal=os.path.exists("/run/systemd/journal/socket"),
        has_hybrid_cgroups=_holds_something(Path("/sys/fs/cgroup/unified/cgroup.controllers")),
        has_runc=process.find("runc") is not None,
        has_tun=os.access("/dev/net/tun", os.R_OK | os.W_OK),
    )


def needed(facts: Facts, configured: Mapping[str, Any]) -> Settings:
    """Say what has to be set beside what is `configured` already."""
    containers, engine, notes = _table(configured, "containers"), _table(configured, "engine"), []
    tables: Tables = {"containers": {}, "engine": {}}
    if not facts.rootless and not facts.may_raise_limits:
        tables["containers"]["default_ulimits"] = _ulimits(facts, containers.get("default_ulimits"))
        notes.append("limits of files and processes in containers are this process's own: it may not raise any")
    if facts.has_hybrid_cgroups and engine.get("runtime") in (None, "crun"):
        if facts.has_runc:
            tables["engine"]["runtime"] = "runc"
            notes.append("containers are run by runc: crun does not work with this host's hybrid control groups")
        else:
            notes.append("crun does not work with this host's hybrid control groups: apt-get install runc")
    if not facts.has_systemd and engine.get("cgroup_manager") == "systemd":
        tables["engine"]["cgroup_manager"] = "cgroupfs"
        notes.append("control groups are made directly: the configuration names systemd, which does not run")
    if not facts.has_journal and engine.get("events_logger") == "journald":
        tables["engine"]["events_logger"] = "file"
        notes.append("events are kept in a file: the configuration names the journal, which does not run")
    if not facts.has_journal and containers.get("log_driver") == "journald":
        tables["containers"]["log_driver"] = "k8s-file"
        notes.append("logs are kept in files: the configuration names the journal, which does not run")
    if facts.rootless and not facts.has_tun and containers.get("netns") in (None, "", "private"):
        tables["containers"]["netns"] = "none"
        notes.append("containers have no network unless they name one: /dev/net/tun may not be opened by this user")
    return Settings({name: table for name, table in tables.items() if table}, tuple(notes))


def configured(environ: Mapping[str, str], *, rootless: bool) -> Tables:
    """Return what Podman's own files say together, each over those before it. Raises EngineUnavailable for one that is no TOML."""
    found: Tables = {}
    for path in _files(environ, rootless=rootless):
        try:
            read = tomllib.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise errors.EngineUnavailable(
                f"Podman's configuration {path} cannot be read.", hint="mend it: podman info names the mistake"
            ) from error
        found = merged(found, read)
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tables:
    """Put the values of one configuration over another's, key by key."""
    result: Tables = {name: dict(table) for name, table in below.items() if isinstance(table, Mapping)}
    for name, table in above.items():
        if isinstance(table, Mapping):
            result[name] = {**result.get(name, {}), **table}
    return result


def hand_over(
    wanted: Settings, environ: Mapping[str, str], folder: Path, *, version: tuple[int, int]
) -> dict[str, str]:
    """Write the settings into `folder` and return the variables that make Podman read them; none when none are needed."""
    if not wanted.tables:
        return {}
    path = folder / "containers.conf"
    if version >= _OVERRIDES_SINCE:
        theirs = environ.get("CONTAINERS_CONF_OVERRIDE")
        below = configured({"CONTAINERS_CONF": theirs}, rootless=False) if theirs else {}
        _write(path, merged(below, wanted.tables))
        return {"CONTAINERS_CONF_OVERRIDE": str(path)}
    _write(path, merged(configured(environ, rootless=os.geteuid() != 0), wanted.tables))
    return {"CONTAINERS_CONF": str(path)}


def written(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a configuration as TOML."""
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{_quoted(name)}]", *(f"{_quoted(key)} = {_value(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


def _files(environ: Mapping[str, str], *, rootless: bool) -> list[Path]:
    if environ.get("CONTAINERS_CONF"):
        return [Path(environ["CONTAINERS_CONF"])]
    found = [Path("/usr/share/containers/containers.conf"), *_with_parts(Path("/etc/containers/containers.conf"))]
    if rootless:
        home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or '/nonexistent'}/.config"
        found += _with_parts(Path(home, "containers", "containers.conf"))
    return found


def _with_parts(path: Path) -> list[Path]:
    try:
        return [path, *sorted(path.with_name(path.name + ".d").glob("*.conf"))]
    except OSError:
        return [path]


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = tables.get(name)
    return table if isinstance(table, Mapping) else {}


def _ulimits(facts: Facts, theirs: object) -> list[str]:
    """Return those limits that may be set, and one for each that Podman would otherwise set higher than it may."""
    most = {"nofile": facts.most_files, "nproc": facts.most_processes}
    kept = [str(one) for one in theirs if _is_within(str(one), most)] if isinstance(theirs, list) else []
    named = {one.partition("=")[0] for one in kept}
    return kept + [f"{name}={limit}:{limit}" for name, limit in most.items() if name not in named]


def _is_within(ulimit: str, most: Mapping[str, int]) -> bool:
    name, _, values = ulimit.partition("=")
    hard = values.rpartition(":")[2]
    if name not in most:
        return True
    return hard.isdigit() and int(hard) <= most[name]


def _hard_limit(which: int, kernel: Path) -> int:
    _, hard = resource.getrlimit(which)
    try:
        most = int(kernel.read_text())
    except (OSError, ValueError):
        most = 32_768
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


def _has_capability(number: int) -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith("CapEff:")), "CapEff: 0")
    except OSError:
        return False
    return bool(int(line.split()[1], 16) >> number & 1)


def _holds_something(path: Path) -> bool:
    try:
        return bool(path.read_text().strip())
    except OSError:
        return False


def _write(path: Path, tables: Tables) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(written(tables), "utf-8")
    fresh.replace(path)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _quoted(value)
        case int() | float():
            return str(value)
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{_quoted(str(key))} = {_value(one)}' for key, one in value.items())}}}"
        case _:
            return _quoted(str(value))


def parsed_version(text: str) -> tuple[int, int]:
    """Read `podman version 4.3.1` as (4, 3); what cannot be read counts as old."""
    numbers: Sequence[str] = text.split()[-1].split(".") if text.split() else ()
    major, minor = (numbers[0], numbers[1]) if len(numbers) > 1 else ("0", "0")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
