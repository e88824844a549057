"""What did callers of old say of a container, and which arguments of our tools is that? One class for both of their shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codomyrmex_containerization import errors

# docker-py's forms: a port of the host, an address and a port, several of them, or None for a free one.
HostPort = int | str | tuple[str, int] | None


@dataclass
class ContainerConfig:
    """An image and how to build and run it.

    Two classes of this name are one here: `image_name`, `tag` and what builds are told, or `image` with what `docker run` is told.
    `ports` are `{container: host}`, `volumes` `{host path or volume: container path}`, `networks` the same as `network` with one name
    in it; `resources` may hold `cpu_limit`, `memory_limit`, `cpu_reservation`, `memory_reservation`.
    """

    image_name: str = ""
    tag: str = "latest"
    dockerfile_path: str | None = None
    build_context: str = "."
    build_args: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    ports: Mapping[Any, Any] = field(default_factory=dict)
    volumes: Mapping[str, Any] | Sequence[str] = field(default_factory=dict)
    networks: list[str] = field(default_factory=list)
    restart_policy: str | Mapping[str, Any] = "no"
    labels: dict[str, str] = field(default_factory=dict)
    image: str = ""
    name: str | None = None
    command: list[str] | str | None = None
    entrypoint: list[str] | str | None = None
    network: str | None = None
    working_dir: str | None = None
    user: str | None = None
    memory_limit: str | int | None = None
    cpu_limit: float | None = None
    resources: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Fill in the one of `image_name` and `image` that was not given. Raises InvalidArgument without both."""
        if not (self.image_name or self.image):
            raise errors.InvalidArgument(
                "A ContainerConfig needs an image.", hint="pass image_name='web' or image='web:1'"
            )
        if not self.image_name:
            self.image_name, self.tag = self.image, _tag_of(self.image) or self.tag
        self.image = self.image or self.get_full_image_name()

    def get_full_image_name(self) -> str:
        """Return name and tag; a name that has a tag, a digest or is an id stays as it is."""
        is_whole = "@" in self.image_name or self.image_name.startswith("sha256:") or _tag_of(self.image_name)
        return self.image_name if is_whole else f"{self.image_name}:{self.tag}"

    def to_run_args(self) -> list[str]:
        """Return the arguments that `docker run` takes for this."""
        options: list[tuple[str, str | int | float | None]] = [("--name", self.name)]
        options += [("-e", f"{name}={value}") for name, value in self.environment.items()]
        options += [("-v", volume) for volume in volumes(self.volumes)]
        options += [("-p", port) for port in ports(self.ports)]
        options += [("--label", f"{name}={value}") for name, value in self.labels.items()]
        options += [("--network", network_of(self)), ("-w", self.working_dir), ("-u", self.user)]
        options += [
            ("--memory", self.memory_limit),
            ("--cpus", self.cpu_limit),
            ("--restart", restart(self.restart_policy)),
        ]
        entrypoint = [self.entrypoint] if isinstance(self.entrypoint, str) else list(self.entrypoint or ())
        options += [("--entrypoint", one) for one in entrypoint[:1]]
        command = [self.command] if isinstance(self.command, str) else list(self.command or ())
        shown = [part for name, value in options if value is not None for part in (name, str(value))]
        return [*shown, self.get_full_image_name(), *entrypoint[1:], *command]


def run_arguments(config: ContainerConfig, *, detach: bool) -> dict[str, Any]:
    """Return the arguments of container_run. Raises Unsupported for what it cannot say, InvalidArgument for what it cannot read."""
    resources = dict(config.resources or {})
    memory, cpus = resources.pop("memory_limit", None), resources.pop("cpu_limit", None)
    limits = {
        "memory_reservation": resources.pop("memory_reservation", None),
        "cpu_shares": _shares(resources.pop("cpu_reservation", None)),
    }
    if resources:
        known = "cpu_limit, memory_limit, cpu_reservation, memory_reservation"
        raise errors.InvalidArgument(f"resources has no {next(iter(resources))!r}.", hint=f"it takes: {known}")
    return {
        "image": config.get_full_image_name(),
        "command": config.command,
        "name": config.name,
        "env": dict(config.environment),
        "ports": ports(config.ports),
        "mounts": volumes(config.volumes),
        "network": network_of(config),
        "user": config.user,
        "workdir": config.working_dir,
        "entrypoint": config.entrypoint,
        "memory": config.memory_limit if config.memory_limit is not None else memory,
        "cpus": config.cpu_limit if config.cpu_limit is not None else cpus,
        "limits": {name: value for name, value in limits.items() if value is not None} or None,
        "restart": restart(config.restart_policy),
        "labels": dict(config.labels),
        "detach": detach,
    }


def build_arguments(config: ContainerConfig) -> dict[str, Any]:
    """Return the arguments of container_build."""
    return {
        "image_name": config.get_full_image_name(),
        "dockerfile_path": config.dockerfile_path or config.build_context,
        "context": config.build_context if config.dockerfile_path else None,
        "build_args": dict(config.build_args),
    }


def ports(given: Mapping[Any, Any]) -> list[str]:
    """Return `{container: host}` as `host:container`. Raises InvalidArgument."""
    return [_port(str(inside), host) for inside, hosts in given.items() for host in _each(hosts)]


def volumes(given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return volumes as `source:target[:mode]`: of `{source: target}`, `{source: {bind, mode}}`, or a list of them as they are."""
    if not isinstance(given, Mapping):
        return list(given)
    found = []
    for source, target in given.items():
        if isinstance(target, Mapping):
            mode = f":{target['mode']}" if target.get("mode") else ""
            target = f"{target.get('bind', '')}{mode}"
        found.append(f"{source}:{target}")
    return found


def network_of(config: ContainerConfig) -> str | None:
    """Return the one network. Raises Unsupported for several."""
    names = list(dict.fromkeys([*([config.network] if config.network else []), *config.networks]))
    if len(names) > 1:
        raise errors.Unsupported(
            f"A container is started in one network, and {len(names)} are named.",
            hint=f"name one of {', '.join(names)}",
        )
    return names[0] if names else None


def restart(policy: str | Mapping[str, Any]) -> str:
    """Return a restart policy as one word: of a word, or docker-py's `{Name, MaximumRetryCount}`."""
    if isinstance(policy, str):
        return policy or "no"
    name, count = str(policy.get("Name") or "no"), policy.get("MaximumRetryCount")
    return f"{name}:{count}" if count and name == "on-failure" else name


def _each(hosts: HostPort | Iterable[HostPort]) -> list[HostPort]:
    return list(hosts) if isinstance(hosts, list) else [hosts]  # type: ignore[list-item]  # a list is the only iterable that means several


def _port(inside: str, host: object) -> str:
    match host:
        case None:
            return inside
        case (str(address), int() | str() as number):
            return f"{address}:{number}:{inside}"
        case int() | str():
            return f"{host}:{inside}"
        case _:
            raise errors.InvalidArgument(
                f"{host!r} is no port of the host.",
                hint="write {80: 8080}, {'80/tcp': None} or {80: ('127.0.0.1', 8080)}",
            )


def _shares(cpus: float | str | None) -> int | None:
    # As Kubernetes does: a whole CPU that is reserved weighs 1024.
    return max(2, round(float(cpus) * 1024)) if cpus is not None else None


def _tag_of(image: str) -> str:
    return image.rpartition("/")[2].partition("@")[0].partition(":")[2] if not image.startswith("sha256:") else ""
