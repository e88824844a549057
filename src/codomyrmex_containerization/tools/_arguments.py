"""What do the short forms of arguments mean? `8080:80`, `./data:/data:ro`, `on-failure:3`, `10m` become models."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast, get_args

from codomyrmex_containerization import errors
from codomyrmex_containerization.models import reference, sizes
from codomyrmex_containerization.models.container import (
    Healthcheck,
    Limits,
    Mount,
    PortMapping,
    Protocol,
    RestartName,
    RestartPolicy,
    Ulimit,
)

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)\Z")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_PORT = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9]+(?:\.[0-9]+){3}):)?(?:(?P<host>[0-9]{0,5}):)?(?P<inside>[0-9]{1,5})(?:/(?P<protocol>tcp|udp|sctp))?\Z"
)
_LONGEST_COMMAND_CHARACTERS = 32_768
_ENV_NAME = re.compile(r"[^=\s\0][^=\0]*\Z")


def command(value: str | Sequence[str] | None, *, name: str) -> tuple[str, ...] | None:
    """Return a command as a list; a string is split as a shell would and never run through one."""
    if value is None:
        return None
    if not isinstance(value, str):
        return tuple(value)
    if len(value) > _LONGEST_COMMAND_CHARACTERS:
        # Splitting takes time by the square of the length.
        raise errors.InvalidArgument(f"{name} is too long to be split.", hint=f"pass {name} as a list of strings")
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise errors.InvalidArgument(
            f"{name} cannot be split: {error}.", hint=f"pass {name} as a list of strings"
        ) from error


def ports(entries: Sequence[str | int]) -> tuple[PortMapping, ...]:
    """Parse `80`, `8080:80`, `127.0.0.1:8080:80/udp`; without an address the host's loopback is meant."""
    return tuple(_port(str(entry)) for entry in entries)


def mounts(entries: Sequence[str]) -> tuple[Mount, ...]:
    """Parse `PATH:TARGET[:ro]`, `VOLUME:TARGET[:ro]`, `tmpfs:TARGET[:SIZE]`."""
    return tuple(_mount(entry) for entry in entries)


def limits(
    memory: str | int | None,
    cpus: float | None,
    pids_limit: int | None,
    more: Mapping[str, Any],
    *,
    disk: str | int | None = None,
) -> Limits:
    """Join the single limits and the `limits` object."""
    return Limits(
        memory_bytes=sizes.parse(memory, name="memory") if memory is not None else None,
        cpus=cpus,
        pids_limit=pids_limit,
        memory_reservation_bytes=_size(more, "memory_reservation"),
        cpu_shares=more.get("cpu_shares"),
        shm_bytes=_size(more, "shm_size"),
        disk_bytes=sizes.parse(disk, name="disk") if disk is not None else None,
        disk_read_bytes_per_second=_size(more, "disk_read"),
        disk_write_bytes_per_second=_size(more, "disk_write"),
        ulimits=tuple(_ulimit(name, value) for name, value in (more.get("ulimits") or {}).items()),
    )


def _size(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    return sizes.parse(value, name=name) if value is not None else None


def restart(text: str) -> RestartPolicy:
    """Parse `no`, `always`, `unless-stopped`, `on-failure`, `on-failure:3`."""
    name, colon, count = text.partition(":")
    if name not in get_args(RestartName) or (
        colon and (name != "on-failure" or not re.fullmatch(r"[0-9]{1,9}", count))
    ):
        raise errors.InvalidArgument(
            f"restart = {text!r} is no restart policy.",
            hint="use no, always, unless-stopped, on-failure or on-failure:3",
        )
    return RestartPolicy(cast("RestartName", name), int(count) if count else 0)


def healthcheck(value: Mapping[str, Any] | None) -> Healthcheck | None:
    """Make a health check of `{command, interval, timeout, retries, start_period}`; a string command runs in the container's shell."""
    if value is None:
        return None
    test = value["command"]
    return Healthcheck(
        test=("CMD-SHELL", test) if isinstance(test, str) else ("CMD", *test),
        interval_seconds=duration(value.get("interval"), name="interval"),
        timeout_seconds=duration(value.get("timeout"), name="timeout"),
        retries=value.get("retries"),
        start_period_seconds=duration(value.get("start_period"), name="start_period"),
    )


def duration(value: str | float | None, *, name: str) -> float | None:
    """Return seconds of `30`, `30s`, `5m`, `500ms`."""
    if value is None or isinstance(value, int | float):
        return float(value) if value is not None else None
    match = _DURATION.match(value if not re.fullmatch(r"\d+(?:\.\d+)?", value) else f"{value}s")
    if match is None:
        raise errors.InvalidArgument(f"{name} = {value!r} is no duration.", hint="write seconds, or 500ms, 30s, 5m, 2h")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def moment(value: str | None, *, name: str) -> datetime | None:
    """Return the instant of `10m` (ago), `2026-01-31T12:00:00Z` or seconds since 1970."""
    if value is None:
        return None
    try:
        if match := _DURATION.match(value):
            return datetime.now(UTC) - timedelta(seconds=float(match[1]) * _UNIT_SECONDS[match[2]])
        if re.fullmatch(r"[0-9]{9,11}(?:\.[0-9]+)?", value):
            return datetime.fromtimestamp(float(value), tz=UTC)
        fraction = re.sub(r"\.(\d{1,6})\d*", lambda found: f".{found[1]:0<6}", value.replace("Z", "+00:00"))
        found = datetime.fromisoformat(fraction)
    except (ValueError, OverflowError) as error:
        raise errors.InvalidArgument(
            f"{name} = {value!r} is no time.", hint="write 10m, 2h, or 2026-01-31T12:00:00Z"
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def env(entries: Mapping[str, str]) -> dict[str, str]:
    """Check the names of environment variables."""
    for name in entries:
        if not _ENV_NAME.match(name):
            raise errors.InvalidArgument(
                f"{name!r} is no name of an environment variable.", hint="a name has no '=' and no blanks in front"
            )
    return dict(entries)


def word(value: str | None, *, name: str) -> str | None:
    """Refuse what starts with '-' or is empty where a name belongs."""
    if value is not None and (not value or value.startswith("-") or any(ord(char) < 32 for char in value)):
        raise errors.InvalidArgument(
            f"{name} = {value[:60]!r} is no name.", hint=f"a {name} does not start with '-' and is not empty"
        )
    return value


def _port(text: str) -> PortMapping:
    match = _PORT.match(text)
    if match is None or not 0 < int(match["inside"]) < 65536 or int(match["host"] or 0) > 65535:
        raise errors.InvalidArgument(
            f"{text!r} is no port to publish.", hint="write '80', '8080:80' or '127.0.0.1:8080:80/tcp'"
        )
    return PortMapping(
        container_port=int(match["inside"]),
        protocol=cast("Protocol", match["protocol"] or "tcp"),
        host_ip=(match["ip"] or "127.0.0.1").strip("[]"),
        host_port=int(match["host"]) if match["host"] and int(match["host"]) else None,
    )


def _mount(text: str) -> Mount:
    parts = text.split(":")
    source, target, options = parts[0], parts[1] if len(parts) > 1 else "", parts[2:]
    if not target.startswith("/") or len(options) > 1 or ".." in target.split("/"):
        raise _no_mount(text)
    if source == "tmpfs":
        return Mount("tmpfs", target, size_bytes=sizes.parse(options[0], name="tmpfs size") if options else None)
    if options and options[0] not in ("ro", "rw"):
        raise _no_mount(text)
    read_only = options == ["ro"]
    if source.startswith(("/", "./", "../", "~")) or source in (".", ".."):
        return Mount("bind", target, source=str(Path(source).expanduser().absolute()), read_only=read_only)
    if not _VOLUME_NAME.match(source):
        raise _no_mount(text)
    return Mount("volume", target, source=source, read_only=read_only)


def _no_mount(text: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"{text[:120]!r} is no mount.",
        hint="write /host/path:/target[:ro], ./path:/target, VOLUME:/target or tmpfs:/target[:64m]",
    )


def _ulimit(name: str, value: int | str) -> Ulimit:
    soft, _, hard = str(value).partition(":")
    if (
        not re.fullmatch(r"-?[0-9]{1,18}", soft)
        or (hard and not re.fullmatch(r"-?[0-9]{1,18}", hard))
        or not re.fullmatch(r"[a-z]+", name)
    ):
        raise errors.InvalidArgument(
            f"The ulimit {name} = {value!r} cannot be read.", hint="write {'nofile': 1024} or {'nofile': '1024:2048'}"
        )
    return Ulimit(name, int(soft), int(hard or soft))


def host_path(text: str) -> Path:
    """Return a path of this host as it was meant: absolute, from the working folder, or from the home."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def tag(text: str) -> str:
    """Return a name for an image in full. Raises InvalidArgument."""
    parsed = reference.parse(text)
    if parsed.digest is not None:
        raise errors.InvalidArgument("A name for an image has no digest.", hint="leave the part behind '@' out")
    return str(parsed)
