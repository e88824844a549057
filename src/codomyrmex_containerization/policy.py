"""What may calls do to this machine? Pure judgements over finished specifications; every refusal names the setting that would allow it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import ContainerSpec, ContainerState
from codomyrmex_containerization.models.image import BuildSpec
from codomyrmex_containerization.models.settings import PolicySettings

LABEL_PREFIX = "codomyrmex.containerization."

# Source: the default capability list of moby (oci/caps/defaults.go); adding one of these adds nothing.
DEFAULT_CAPABILITIES = frozenset(
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE".split()
)

_SYSTEM_FOLDERS = ("/proc", "/sys", "/dev", "/etc", "/boot", "/run", "/var/run")
_HOME_FOLDERS = ".ssh .gnupg .config .aws .azure .kube .docker .netrc .git-credentials .npmrc .pypirc".split()


def protected_paths(home: Path, sockets: Iterable[str], own_folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return what is never shared without being named: system folders, credentials, engine sockets, our own state."""
    return (
        *(Path(folder) for folder in _SYSTEM_FOLDERS),
        *(home / name for name in _HOME_FOLDERS),
        *(Path(socket) for socket in sockets),
        *own_folders,
    )


def judge_container(spec: ContainerSpec, rules: PolicySettings) -> None:
    """Raise Refused when the specification asks for what the rules do not allow. Host paths are judged by `judge_path`."""
    if spec.privileged and not rules.allow_privileged:
        raise _refused(
            "privileged=true", "policy.allow_privileged = true", "a privileged container is root on this host"
        )
    _judge_network(spec.network, rules)
    _judge_capabilities(spec.cap_add, rules)
    for port in spec.ports:
        if port.host_ip is not None and port.host_ip not in rules.publish_addresses:
            address = port.host_ip or "0.0.0.0"  # noqa: S104  named in a refusal
            raise _refused(
                f"publishing on {address}",
                f"policy.publish_addresses = [..., {address!r}]",
                "others on the network could reach it",
            )
    judge_labels(spec.labels)


def judge_foreign(state: ContainerState, rules: PolicySettings, *, sockets: Sequence[PurePath] = ()) -> None:
    """Raise Refused for writing to somebody else's container where `foreign` says so or its creation would be refused.

    `sockets` are the engine sockets of this host: a folder that holds one is as good as the socket.
    """
    if rules.foreign == "refuse":
        raise _refused(
            f"writing to container {state.name}", "policy.foreign = 'allow'", "this server did not create it"
        )
    if state.privileged and not rules.allow_privileged:
        raise _refused(
            f"writing to the privileged container {state.name}",
            "policy.allow_privileged = true",
            "it is root on this host",
        )
    # Where cgroups are of version 1, every container shares the host's cgroup namespace.
    shared = [name for name in state.host_namespaces if name != "cgroup"]
    if shared and not rules.allow_host_namespaces:
        raise _refused(
            f"writing to container {state.name}, which shares the host's {shared[0]} namespace,",
            "policy.allow_host_namespaces = true",
            "what runs in it reaches the host",
        )
    for mount in state.mounts:
        if mount.type != "bind" or rules.allow_engine_socket:
            continue
        if mount.source.endswith(".sock") or any(socket.is_relative_to(mount.source) for socket in sockets):
            raise _refused(
                f"writing to container {state.name}, which holds an engine's socket ({mount.source}),",
                "policy.allow_engine_socket = true",
                "whoever reaches an engine's socket rules this host",
            )


def judge_build(spec: BuildSpec, rules: PolicySettings) -> None:
    """Raise Refused when a build asks for what the rules do not allow. Paths are judged by `judge_path`."""
    if spec.frontend is not None and _frontend_name(spec.frontend) not in rules.allowed_frontends:
        raise _refused(
            f"the frontend '# syntax={spec.frontend}'",
            f"policy.allowed_frontends = [..., {_frontend_name(spec.frontend)!r}]",
            "a frontend is a program that runs the build",
        )
    if spec.entitlements and not rules.allow_privileged:
        raise _refused(
            f"build entitlement {spec.entitlements[0]}",
            "policy.allow_privileged = true",
            "it lets build steps out of their sandbox",
        )
    _judge_network(spec.network, rules)
    for secret in spec.secrets:
        if secret.env is not None and secret.env not in rules.secret_env:
            raise _refused(
                f"reading the environment variable {secret.env}",
                f"policy.secret_env = [..., {secret.env!r}]",
                "it may hold a credential of this server",
            )
    judge_labels(spec.labels)


def judge_labels(labels: Iterable[str]) -> None:
    """Refuse labels in our own name space: they say who made an object."""
    for name in labels:
        if name.startswith(LABEL_PREFIX):
            raise errors.Refused(
                f"Labels that start with {LABEL_PREFIX} are set by this server only.", hint="choose another label name"
            )


def judge_path(
    path: PurePath, *, allowed: Sequence[Path], named: bool, protected: Sequence[Path], purpose: str
) -> None:
    """Raise Refused unless a resolved host path lies under an allowed one and neither is, lies in nor holds a protected one.

    `named` says that the allowed paths were written down by the user; a protected path that was is allowed.
    """
    if path == PurePath("/"):
        raise errors.Refused(
            f"The whole file system may not be used as {purpose}.", hint="name the folder that is needed"
        )
    if not any(path.is_relative_to(folder) for folder in allowed):
        shown = ", ".join(str(folder) for folder in allowed) or "none"
        raise errors.Refused(
            f"{path} may not be used as {purpose}: it lies outside the allowed paths ({shown}).",
            hint="use a path inside them, or add its folder to the setting policy.allowed_paths in the user's configuration file",
        )
    for guarded in protected:
        if not (path.is_relative_to(guarded) or guarded.is_relative_to(path)):
            continue
        if named and _is_named(path, guarded, allowed):
            continue
        relation = "is" if path == guarded else "lies in" if path.is_relative_to(guarded) else "holds"
        raise errors.Refused(
            f"{path} may not be used as {purpose}: it {relation} {guarded}, which is protected.",
            hint=f"use a narrower folder; only naming {guarded} in policy.allowed_paths would allow it",
        )


def _is_named(path: PurePath, guarded: Path, allowed: Sequence[Path]) -> bool:
    """Say whether what the user wrote down opens a protected path: all of it, or the part that the path lies in."""
    return any(
        folder == guarded or (folder.is_relative_to(guarded) and path.is_relative_to(folder)) for folder in allowed
    )


def _judge_network(network: str | None, rules: PolicySettings) -> None:
    if network is None or rules.allow_host_namespaces:
        return
    if network == "host" or network.startswith(("container:", "ns:")):
        raise _refused(
            f"network={network}", "policy.allow_host_namespaces = true", "it joins a network that is not its own"
        )


def _judge_capabilities(capabilities: Iterable[str], rules: PolicySettings) -> None:
    allowed = DEFAULT_CAPABILITIES | {capability_name(one) for one in rules.allowed_capabilities}
    for one in capabilities:
        name = capability_name(one)
        if name not in allowed:
            raise _refused(
                f"capability {name}",
                f"policy.allowed_capabilities = [..., {name!r}]",
                "it goes beyond Docker's defaults",
            )


def capability_name(text: str) -> str:
    """Return a capability's name without CAP_ and in upper case."""
    return text.strip().upper().removeprefix("CAP_")


def _frontend_name(frontend: str) -> str:
    name = frontend.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    name = head if colon and "/" not in tag else name
    return name.removeprefix("docker.io/")


def _refused(what: str, setting: str, why: str) -> errors.Refused:
    return errors.Refused(
        f"Off until allowed: {what} ({why}).",
        hint=f"do without it; the person who runs this server can allow it with {setting}",
    )
