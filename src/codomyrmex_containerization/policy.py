"""What may calls do to this machine? Pure judgements over finished specifications; every refusal names the setting that would allow it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import ContainerSpec, ContainerState, Mount
from codomyrmex_containerization.models.image import BuildSpec
from codomyrmex_containerization.models.settings import PolicySettings
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeSpec

LABEL_PREFIX = "codomyrmex.containerization."

# Source: the default capability list of moby (oci/caps/defaults.go); adding one of these adds nothing.
DEFAULT_CAPABILITIES = frozenset(
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE".split()
)

_SYSTEM_FOLDERS = ("/proc", "/sys", "/dev", "/etc", "/boot", "/run", "/var/run")
# What a local volume may be mounted with; the kernel takes many more, and some of them reach past the mount.
_MOUNT_WORDS = frozenset(
    "bind rbind ro rw nosuid suid nodev noexec exec noatime nodiratime relatime private rprivate slave rslave".split()
)
_TMPFS_WORDS = frozenset("size mode uid gid nr_inodes nr_blocks".split())
# Options of a bridge network that stay on the bridge.
_BRIDGE_OPTIONS = frozenset(
    {
        "com.docker.network.bridge.enable_icc",
        "com.docker.network.bridge.enable_ip_masquerade",
        "com.docker.network.container_iface_prefix",
        "com.docker.network.driver.mtu",
        "isolate",
        "mtu",
    }
)
_HOST_BINDING = ("com.docker.network.bridge.host_binding_ipv4", "com.docker.network.bridge.host_binding_ipv6")
# Addresses that nobody else has: a network of others would take the host's way to them.
_PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(one)
    for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7")
)
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
    if spec.isolation == "minimal" and not rules.allow_minimal_isolation:
        raise _refused(
            "isolation='minimal'",
            "policy.allow_minimal_isolation = true",
            "every system call of such a container reaches this host's kernel",
        )
    _judge_network(spec.network, rules)
    _judge_capabilities(spec.cap_add, rules)
    judge_mount_paths(spec.mounts)
    for port in spec.ports:
        if port.host_ip is not None and port.host_ip not in rules.publish_addresses:
            address = port.host_ip or "0.0.0.0"  # noqa: S104  named in a refusal
            raise _refused(
                f"publishing on {address}",
                f"policy.publish_addresses = [..., {address!r}]",
                "others on the network could reach it",
            )
    judge_labels(spec.labels)


def judge_pull(registry: str, rules: PolicySettings) -> None:
    """Raise Refused for a registry that images may not be pulled from."""
    if not _is_listed(registry, rules.pull_registries):
        raise _refused(
            f"pulling from {registry}",
            f"policy.pull_registries = [..., {registry!r}]",
            "only the registries named there may be pulled from",
        )


def is_push_free(registry: str, rules: PolicySettings) -> bool:
    """Say whether images may be pushed to a registry without anybody being asked."""
    return _is_listed(registry, rules.push_registries)


def _is_listed(registry: str, listed: Sequence[str]) -> bool:
    return "*" in listed or registry.lower() in (one.lower() for one in listed)


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


def bound_path(driver: str, options: Mapping[str, str]) -> PurePath | None:
    """Return the host path that a volume's options mount, None when they mount none."""
    given = {name.lower(): value for name, value in options.items()}
    words = _mount_words(given.get("o", ""))
    if driver not in ("", "local") or not ({"bind", "rbind"} & set(words) or given.get("type", "") in ("none", "bind")):
        return None
    return PurePath(given.get("device", ""))


def judge_volume(spec: VolumeSpec, rules: PolicySettings) -> None:
    """Raise Refused when a volume asks for what the rules do not allow. The path that it binds is judged by `judge_path`."""
    judge_volume_options(spec.driver, spec.options, rules)
    judge_labels(spec.labels)


def judge_volume_options(driver: str, options: Mapping[str, str], rules: PolicySettings) -> None:
    """Raise Refused for a driver or options that mount what the rules do not allow."""
    driver = driver or "local"
    if driver not in rules.volume_drivers and not any(one.startswith(f"{driver}:") for one in rules.volume_drivers):
        raise _refused(
            f"volume driver {driver}",
            f"policy.volume_drivers = [..., {driver!r}]",
            "what it mounts, and from where, is not known here",
        )
    if driver != "local":
        return
    given = {name.lower(): value for name, value in options.items()}
    if len(given) != len(options):
        raise errors.InvalidArgument("Two options have the same name.", hint="give each option once")
    kind, words = given.get("type", ""), _mount_words(given.get("o", ""))
    path = bound_path(driver, options)
    if path is not None:
        if kind not in ("", "none", "bind") or not path.is_absolute():
            raise errors.InvalidArgument(
                "A volume that binds a host path has type=none, o=bind and device=/the/path.", hint="mend the options"
            )
        known = _MOUNT_WORDS
    elif kind == "tmpfs" or not (kind or given.get("device") or words):
        known = _MOUNT_WORDS | _TMPFS_WORDS
    else:
        shown = kind or "auto"
        if f"local:{shown}" in rules.volume_drivers:
            return
        raise _refused(
            f"a volume that mounts a file system of type {shown}",
            f"policy.volume_drivers = [..., 'local:{shown}']",
            "the host's kernel would mount it",
        )
    setting = f"local:{kind or 'none'}"
    for word in words:
        if word not in known and setting not in rules.volume_drivers:
            raise _refused(
                f"the mount option {word}",
                f"policy.volume_drivers = [..., {setting!r}]",
                "it is none of those known to be harmless",
            )


def _mount_words(text: str) -> list[str]:
    return [word.strip().partition("=")[0].lower() for word in text.split(",") if word.strip()]


def judge_network(spec: NetworkSpec, rules: PolicySettings) -> None:
    """Raise Refused when a network asks for more than a bridge of private addresses, unless the rules allow the host's."""
    judge_labels(spec.labels)
    for name in _HOST_BINDING:
        address = spec.options.get(name)
        if address is not None and address not in rules.publish_addresses:
            raise _refused(
                f"publishing on {address}",
                f"policy.publish_addresses = [..., {address!r}]",
                "others on the network could reach it",
            )
    if rules.allow_host_namespaces:
        return
    setting = "policy.allow_host_namespaces = true"
    if spec.driver not in ("", "bridge"):
        raise _refused(f"network driver {spec.driver}", setting, "it joins networks of this host")
    for name in spec.options:
        if name not in _BRIDGE_OPTIONS and name not in _HOST_BINDING:
            raise _refused(f"the network option {name}", setting, "it may reach past the bridge")
    if spec.subnet is not None and not _is_private(spec.subnet):
        raise _refused(f"the subnet {spec.subnet}", setting, "this host would look there for addresses of others")


def _is_private(subnet: str) -> bool:
    try:
        wanted = ipaddress.ip_network(subnet)
    except ValueError as error:
        raise errors.InvalidArgument(
            f"subnet = {subnet[:60]!r} is no network.", hint="write it as 10.77.1.0/24, without bits behind the prefix"
        ) from error
    return any(
        wanted.version == one.version
        and int(one.network_address) <= int(wanted.network_address)
        and int(wanted.broadcast_address) <= int(one.broadcast_address)
        for one in _PRIVATE_NETWORKS
    )


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
    # No network has a colon in its name: what has one joins another's, or gives Podman options that reach the host's.
    if network == "host" or ":" in network:
        raise _refused(
            f"network={network}", "policy.allow_host_namespaces = true", "it joins a network that is not its own"
        )


def judge_mount_paths(mounts: Iterable[Mount]) -> None:
    """Raise InvalidArgument for a path that an engine could read as more than one: to be asked again once links are resolved."""
    # Podman puts a mount together as text, and would take what follows a comma for another source.
    for mount in mounts:
        for path in (mount.source, mount.target):
            if not path.isprintable() or {",", '"'} & set(path):
                raise errors.InvalidArgument(
                    f"{path[:80]!r} cannot be used in a mount: engines read a comma and quotation marks as more than a name.",
                    hint="use a path without them, or copy the files in",
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
