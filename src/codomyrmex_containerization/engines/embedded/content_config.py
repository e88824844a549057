"""What does an image's configuration say, and how is it written? Between its JSON and our own shapes.

Source: https://github.com/opencontainers/image-spec/blob/main/config.md, and what Docker adds to it (Healthcheck, Shell).
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import objects
from codomyrmex_containerization.models.container import Healthcheck
from codomyrmex_containerization.models.details import Layer

Json = Mapping[str, Any]
MOST_JSON_BYTES = 8 * 1024 * 1024
MOST_LAYERS = 127  # Docker's own limit; overlay takes more
_NANOSECONDS = 1_000_000_000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_SHELL = re.compile(r"(?:RUN )?(?:\|\d+ .*?)?/bin/sh -c ", re.DOTALL)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386", "i386": "386"}


def host_architecture() -> str:
    """Return this machine's architecture as images call it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True, slots=True)
class Described:
    """What an image's configuration says; `history` names for each instruction whether it made no layer."""

    config: objects.ImageConfig
    created: datetime | None
    os: str
    architecture: str
    variant: str
    diff_ids: tuple[str, ...]
    history: tuple[tuple[Layer, bool], ...]

    def layers(self, sizes_bytes: Sequence[int]) -> tuple[Layer, ...]:
        """Return the instructions with what each added; layers that no instruction tells of come last."""
        found: list[Layer] = []
        sizes = iter(sizes_bytes)
        for layer, is_empty in self.history:
            size = 0 if is_empty else next(sizes, 0)
            found.append(Layer(size, layer.instruction, layer.created))
        found += [Layer(size, "(imported)", self.created) for size in sizes]
        return tuple(found)


def is_digest(text: object) -> bool:
    """Say whether this is a digest as we keep them."""
    return isinstance(text, str) and bool(_DIGEST.match(text))


def read_json(data: bytes, what: str) -> Any:
    """Read JSON that somebody sent. Raises InvalidArgument."""
    if len(data) > MOST_JSON_BYTES:
        raise bad(what, "it is too long")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise bad(what, "it is no JSON") from error


def bad(what: str, reason: str) -> errors.InvalidArgument:
    """Return the error for a description that cannot be read."""
    return errors.InvalidArgument(f"The image's {what} cannot be used: {reason}.", hint="make or fetch the image again")


# ------------------------------------------------------------------------------------------------------------- reading


def describe(data: bytes) -> Described:
    """Read an image's configuration. Raises InvalidArgument."""
    raw = _table(read_json(data, "configuration"), "it is no object")
    rootfs = _table(raw.get("rootfs"), "it has no rootfs")
    diff_ids = rootfs.get("diff_ids") or []
    if not isinstance(diff_ids, list) or not all(is_digest(one) for one in diff_ids):
        raise bad("configuration", "its layers are not named by sha256 digests")
    if len(diff_ids) > MOST_LAYERS:
        raise bad("configuration", f"it has more than {MOST_LAYERS} layers")
    history = raw.get("history") or []
    if not isinstance(history, list) or not all(isinstance(one, dict) for one in history):
        raise bad("configuration", "its history is no list of objects")
    return Described(
        config=parse_config(_table(raw.get("config") or {}, "its config is no object")),
        created=_instant(raw.get("created")),
        os=_word(raw.get("os")) or "linux",
        architecture=_word(raw.get("architecture")),
        variant=_word(raw.get("variant")),
        diff_ids=tuple(diff_ids),
        history=tuple(
            (
                Layer(0, instruction(_word(one.get("created_by"))), _instant(one.get("created"))),
                bool(one.get("empty_layer")),
            )
            for one in history
        ),
    )


def parse_config(raw: Json) -> objects.ImageConfig:
    """Read the `config` of an image's configuration. Raises InvalidArgument for fields of a wrong kind."""
    labels = _table(raw.get("Labels") or {}, "its Labels are no object")
    if not all(isinstance(value, str) for value in labels.values()):
        raise bad("configuration", "its Labels are not all text")
    return objects.ImageConfig(
        env=_words(raw, "Env"),
        entrypoint=_words(raw, "Entrypoint"),
        command=_words(raw, "Cmd"),
        workdir=_word(raw.get("WorkingDir")),
        user=_word(raw.get("User")),
        labels=dict(labels),
        exposed=tuple(sorted(_table(raw.get("ExposedPorts") or {}, "its ExposedPorts are no object"))),
        volumes=tuple(sorted(_table(raw.get("Volumes") or {}, "its Volumes are no object"))),
        healthcheck=_healthcheck(raw.get("Healthcheck")),
        stop_signal=_word(raw.get("StopSignal")),
        shell=_words(raw, "Shell"),
    )


def instruction(created_by: str) -> str:
    """Return the instruction of a history as a Dockerfile has it, whichever builder wrote it."""
    if not created_by:
        return "(imported)"
    text = created_by.removesuffix("# buildkit").strip()
    if text.startswith("/bin/sh -c #(nop) "):
        return text.removeprefix("/bin/sh -c #(nop) ").strip()
    shell = _SHELL.match(text)
    return f"RUN {text[shell.end() :]}" if shell else text


def _healthcheck(raw: object) -> Healthcheck | None:
    if not raw:
        return None
    table = _table(raw, "its Healthcheck is no object")
    test = _words(table, "Test")
    if not test or test == ("NONE",):
        return None

    def number(key: str) -> int:
        value = table.get(key) or 0
        if not isinstance(value, int) or value < 0:
            raise bad("configuration", f"{key} of its Healthcheck is no number")
        return value

    def seconds(key: str) -> float | None:
        return number(key) / _NANOSECONDS or None

    return Healthcheck(test, seconds("Interval"), seconds("Timeout"), number("Retries") or None, seconds("StartPeriod"))


def _table(raw: object, reason: str) -> Json:
    if not isinstance(raw, dict):
        raise bad("configuration", reason)
    return raw


def _word(raw: object) -> str:
    return raw if isinstance(raw, str) else ""


def _words(raw: Json, key: str) -> tuple[str, ...]:
    value = raw.get(key) or []
    if isinstance(value, str):  # old images have a text here
        return (value,)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise bad("configuration", f"its {key} is no list of texts")
    return tuple(value)


def _instant(raw: object) -> datetime | None:
    match = _TIME.match(raw) if isinstance(raw, str) else None
    if match is None or match[1].startswith("0001"):
        return None
    try:
        zone = "+00:00" if match[4] in "Zz" else match[4]
        return datetime.fromisoformat(f"{match[1]}T{match[2]}{(match[3] or '.0')[:7].ljust(7, '0')}{zone}").astimezone(
            UTC
        )
    except (ValueError, OverflowError):
        return None


# ------------------------------------------------------------------------------------------------------------- writing


def config_json(config: objects.ImageConfig) -> dict[str, Any]:
    """Return the `config` of an image's configuration; what is empty is left out."""
    check = config.healthcheck
    found = {
        "User": config.user,
        "ExposedPorts": {one: {} for one in sorted(config.exposed)},
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.command),
        "Healthcheck": _healthcheck_json(check) if check else {},
        "Volumes": {one: {} for one in sorted(config.volumes)},
        "WorkingDir": config.workdir,
        "Labels": dict(sorted(config.labels.items())),
        "StopSignal": config.stop_signal,
        "Shell": list(config.shell),
    }
    return {key: value for key, value in found.items() if value}


def _healthcheck_json(check: Healthcheck) -> dict[str, Any]:
    def nanoseconds(seconds: float | None) -> int:
        return round((seconds or 0) * _NANOSECONDS)

    found = {
        "Test": list(check.test),
        "Interval": nanoseconds(check.interval_seconds),
        "Timeout": nanoseconds(check.timeout_seconds),
        "StartPeriod": nanoseconds(check.start_period_seconds),
        "Retries": check.retries or 0,
    }
    return {key: value for key, value in found.items() if value}


def write(
    *,
    parent: bytes | None,
    config: objects.ImageConfig,
    diff_id: str | None,
    instruction: str,
    comment: str,
    created: datetime,
    architecture: str = "",
) -> bytes:
    """Return the configuration of an image made from another's, or from nothing, by one instruction; no `diff_id`: it added no layer.

    Raises Conflict (too many layers).
    """
    before: dict[str, Any] = {} if parent is None else read_json(parent, "configuration")
    when = timestamp(created)
    step: dict[str, Any] = {"created": when, "created_by": instruction}
    if comment:
        step["comment"] = comment
    if diff_id is None:
        step["empty_layer"] = True
    diff_ids = list((before.get("rootfs") or {}).get("diff_ids") or [])
    if len(diff_ids) + (diff_id is not None) > MOST_LAYERS:
        raise errors.Conflict(
            f"The image would have more than {MOST_LAYERS} layers.", hint="make it from fewer steps that change files"
        )
    history = _told(list(before.get("history") or []), len(diff_ids))
    kept = {key: before[key] for key in ("author", "os.version", "os.features", "variant") if before.get(key)}
    whole = {
        "architecture": before.get("architecture") or architecture or host_architecture(),
        "os": before.get("os") or "linux",
        **kept,
        "created": when,
        "config": config_json(config),
        "rootfs": {"type": "layers", "diff_ids": [*diff_ids, *([diff_id] if diff_id else [])]},
        "history": [*history, step],
    }
    return encoded(whole)


def _told(history: list[Any], layers: int) -> list[Any]:
    """Return a history that tells of every layer: what comes after it would else be taken for the ones it left out."""
    told = sum(not one.get("empty_layer") for one in history)
    return history + [{"created_by": ""}] * (layers - told)


def timestamp(time: datetime) -> str:
    """Return a time as configurations have it."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def encoded(value: object) -> bytes:
    """Return JSON whose bytes depend on nothing but the value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode(
        "utf-8", "backslashreplace"
    )
