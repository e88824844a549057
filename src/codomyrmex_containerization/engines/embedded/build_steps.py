"""What do the instructions mean that only change an image's configuration, and which variables does a step see?"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from codomyrmex_containerization.engines.embedded import build_expand, build_files, objects
from codomyrmex_containerization.engines.embedded.build_words import Failed, Instruction
from codomyrmex_containerization.models.container import Healthcheck

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL: Final = ("/bin/sh", "-c")
_PROXIES: Final = frozenset(
    name for one in ("HTTP", "HTTPS", "FTP", "NO", "ALL") for name in (f"{one}_PROXY", f"{one.lower()}_proxy")
)
_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_MOST_PORTS: Final = 2000
_SIGNAL: Final = re.compile(r"(?:SIG)?[A-Z][A-Z0-9]*(?:[+-]\d{1,2})?|\d{1,2}", re.IGNORECASE | re.ASCII)
_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """A machine as images name it."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def of(cls, machine: str) -> Platform:
        """Return the platform of a machine as the kernel names it."""
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    def fits(self, text: str) -> bool:
        """Say whether a platform as a person writes it is this one."""
        parts = text.strip().lower().split("/")
        parts = parts if len(parts) > 1 else ["linux", *parts]
        aliases = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm"}
        variant = parts[2] if len(parts) > 2 else ""
        same = (parts[0], aliases.get(parts[1], parts[1])) == (self.os, self.architecture)
        usual = {"arm64": "v8", "amd64": "v1", "arm": "v7"}.get(self.architecture, "")
        return same and len(parts) < 4 and variant in ("", self.variant or usual)


@dataclass(slots=True)
class Stage:
    """One stage of a build: the image that grows, its configuration, the arguments that were declared in it."""

    image: objects.Image | None
    config: objects.ImageConfig
    name: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    has_command: bool = False

    @property
    def id(self) -> str:
        """The id of the image so far; empty before the first."""
        return self.image.id if self.image is not None else ""

    @property
    def shell(self) -> tuple[str, ...]:
        """What the shell forms of instructions run in."""
        return self.config.shell or _SHELL


class Arguments:
    """The arguments that came with the build, those declared before the first FROM, and those that are always there."""

    def __init__(self, given: Mapping[str, str], platform: Platform, target: str) -> None:
        self._given = given
        self._used: set[str] = set()
        self.proxies = {name: value for name, value in given.items() if name in _PROXIES}
        known = {"TARGETSTAGE": target or "default"}
        for side in ("BUILD", "TARGET"):
            known |= {f"{side}PLATFORM": str(platform), f"{side}OS": platform.os}
            known |= {f"{side}ARCH": platform.architecture, f"{side}VARIANT": platform.variant}
        self._known = {name: given.get(name, value) for name, value in known.items()}
        self.outside = dict(self._known)  # what FROM sees

    def declare(self, step: Instruction, stage: Stage | None) -> None:
        """Carry out an ARG: before the first FROM without a stage. Raises Failed."""
        scope = self.outside if stage is None else stage.arguments
        for word in step.words:
            name, equals, value = word.partition("=")
            seen = self.outside if stage is None else self.visible(stage)
            name = build_expand.expand(name, seen, escape=step.escape)
            if not name:
                raise Failed("ARG has an empty name")
            self._used.add(name)
            if name in self._given:
                scope[name] = self._given[name]
            elif equals:
                scope[name] = build_expand.expand(value, seen, escape=step.escape)
            elif name in self.outside:
                scope[name] = self.outside[name]

    def visible(self, stage: Stage) -> dict[str, str]:
        """Return what a step's variables are replaced by: the environment goes before arguments."""
        return {**self.proxies, **stage.arguments, **environment(stage.config)}

    def unused(self) -> list[str]:
        """Return the names that came with the build and that no ARG asked for."""
        quiet = self._used | self._known.keys() | _PROXIES
        return sorted(name for name in self._given if name not in quiet and not name.startswith("BUILDKIT_"))


def environment(config: objects.ImageConfig) -> dict[str, str]:
    """Return a configuration's variables by name."""
    return dict(one.partition("=")[::2] for one in config.env)


def begun(config: objects.ImageConfig) -> objects.ImageConfig:
    """Return the configuration that a stage begins with: a PATH is always there."""
    if "PATH" in environment(config):
        return config
    return replace(config, env=(*config.env, f"PATH={DEFAULT_PATH}"))


def words(step: Instruction, seen: Mapping[str, str]) -> list[str]:
    """Return an instruction's words with their variables replaced. Raises Failed."""
    return [build_expand.expand(word, seen, escape=step.escape) for word in step.words]


def command(step: Instruction, stage: Stage) -> tuple[str, ...]:
    """Return what CMD, ENTRYPOINT or RUN run: the words of a list, or a line for the shell."""
    return step.words if step.is_json else (*stage.shell, step.words[0])


def configure(step: Instruction, stage: Stage, seen: Mapping[str, str]) -> None:
    """Carry out an instruction that touches no file. Raises Failed."""
    match step.name:
        case "CMD":
            stage.config = replace(stage.config, command=command(step, stage))
            stage.has_command = True
        case "ENTRYPOINT":
            # An inherited CMD was meant for the entrypoint that is replaced.
            kept = stage.config.command if stage.has_command else ()
            stage.config = replace(stage.config, entrypoint=command(step, stage), command=kept)
        case "SHELL":
            if not step.is_json:
                raise Failed('SHELL takes a list: SHELL ["program", "argument"]')
            stage.config = replace(stage.config, shell=step.words)
        case "HEALTHCHECK":
            stage.config = replace(stage.config, healthcheck=_healthcheck(step))
        case "MAINTAINER":
            return
        case _:
            _set(step.name, words(step, seen), stage)


def _set(name: str, given: list[str], stage: Stage) -> None:
    now = stage.config
    match name:
        case "ENV":
            env = {**environment(now), **_pairs(name, given)}
            stage.config = replace(now, env=tuple(f"{one}={value}" for one, value in env.items()))
        case "LABEL":
            stage.config = replace(now, labels={**now.labels, **_pairs(name, given)})
        case "USER":
            stage.config = replace(now, user=_one(name, given))
        case "WORKDIR":
            stage.config = replace(now, workdir=workdir(now, _one(name, given)))
        case "STOPSIGNAL":
            if not _SIGNAL.fullmatch(_one(name, given)):
                raise Failed(f"STOPSIGNAL {given[0][:60]!r} is no signal")
            stage.config = replace(now, stop_signal=given[0])
        case "VOLUME":
            if not all(one.strip() for one in given):
                raise Failed("VOLUME has an empty path")
            stage.config = replace(now, volumes=tuple(sorted({*now.volumes, *given})))
        case "EXPOSE":
            ports = {port for one in given for word in one.split() for port in _ports(word)}
            stage.config = replace(now, exposed=tuple(sorted({*now.exposed, *ports})))
        case _:
            raise Failed(f"the instruction {name} is not supported by this builder")


def workdir(config: objects.ImageConfig, path: str) -> str:
    """Return the folder that a WORKDIR leads to."""
    return build_files.normal(posixpath.join(config.workdir or "/", path))


def _one(name: str, given: list[str]) -> str:
    if len(given) != 1 or not given[0]:
        raise Failed(f"{name} requires exactly one argument")
    return given[0]


def _pairs(name: str, given: list[str]) -> dict[str, str]:
    pairs = dict(zip(given[::2], given[1::2], strict=False))
    if "" in pairs or len(given) % 2:
        raise Failed(f"{name} has an empty name: write {name} name=value")
    return pairs


def _ports(text: str) -> list[str]:
    found = _PORT.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if found is None or not 1 <= first <= last <= 65535 or last - first >= _MOST_PORTS:
        raise Failed(f"EXPOSE {text[:60]!r} is no port: write it as 80, 80/udp or 8000-8010")
    return [f"{port}/{(found[3] or 'tcp').lower()}" for port in range(first, last + 1)]


def _healthcheck(step: Instruction) -> Healthcheck:
    kind, rest = step.words[0].upper(), step.words[1:]
    if kind == "NONE" and not rest:
        return Healthcheck(("NONE",))
    if kind != "CMD" or not rest or not rest[0]:
        raise Failed("HEALTHCHECK takes CMD and a command, or NONE")
    retries = step.flag("retries")
    if retries is not None and not (retries.isascii() and retries.isdecimal() and len(retries) < 7):
        raise Failed(f"--retries={retries[:60]} is no number")

    def seconds(flag: str) -> float | None:
        text = step.flag(flag)
        return build_expand.seconds(text) or None if text is not None else None

    return Healthcheck(
        test=("CMD", *rest) if step.is_json else ("CMD-SHELL", rest[0]),
        interval_seconds=seconds("interval"),
        timeout_seconds=seconds("timeout"),
        retries=int(retries) or None if retries is not None else None,
        start_period_seconds=seconds("start-period"),
    )
