"""What do the pure judgements allow, and does every refusal name the setting that would?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors, policy
from codomyrmex_containerization.models.container import ContainerSpec, Mount, PortMapping
from codomyrmex_containerization.models.image import BuildSecret, BuildSpec
from codomyrmex_containerization.models.settings import PolicySettings

DEFAULTS = PolicySettings()
HOME = Path("/home/someone")
SOCKET = "/var/run/docker.sock"
OWN = Path("/home/someone/.local/state/codomyrmex-containerization")
PROTECTED = policy.protected_paths(HOME, [SOCKET], [OWN])


def container(**more: Any) -> ContainerSpec:
    return ContainerSpec(image="x", **more)


def build(**more: Any) -> BuildSpec:
    return BuildSpec(tags=("x:1",), context=None, dockerfile=None, dockerfile_text="FROM x\n", **more)


def judge(path: str, *allowed: str, named: bool = False) -> None:
    policy.judge_path(
        Path(path), allowed=[Path(one) for one in allowed], named=named, protected=PROTECTED, purpose="a mount"
    )


# --------------------------------------------------------------------------------------------------------- containers

REFUSED_CONTAINERS: dict[str, tuple[ContainerSpec, str, dict[str, Any]]] = {
    "privileged": (container(privileged=True), "policy.allow_privileged", {"allow_privileged": True}),
    "minimal isolation": (
        container(isolation="minimal"),
        "policy.allow_minimal_isolation",
        {"allow_minimal_isolation": True},
    ),
    "host network": (container(network="host"), "policy.allow_host_namespaces", {"allow_host_namespaces": True}),
    "another container's network": (
        container(network="container:db"),
        "policy.allow_host_namespaces",
        {"allow_host_namespaces": True},
    ),
    "a namespace by path": (
        container(network="ns:/proc/1/ns/net"),
        "policy.allow_host_namespaces",
        {"allow_host_namespaces": True},
    ),
    "Podman's way to the host's loopback": (
        container(network="slirp4netns:allow_host_loopback=true"),
        "policy.allow_host_namespaces",
        {"allow_host_namespaces": True},
    ),
    "options for Podman's pasta": (
        container(network="pasta:-T,auto"),
        "policy.allow_host_namespaces",
        {"allow_host_namespaces": True},
    ),
    "SYS_ADMIN": (
        container(cap_add=("SYS_ADMIN",)),
        "policy.allowed_capabilities",
        {"allowed_capabilities": ("SYS_ADMIN",)},
    ),
    "cap_sys_admin": (
        container(cap_add=(" cap_sys_admin ",)),
        "policy.allowed_capabilities",
        {"allowed_capabilities": ("sys_admin",)},
    ),
    "ALL": (container(cap_add=("ALL",)), "policy.allowed_capabilities", {"allowed_capabilities": ("ALL",)}),
    "0.0.0.0": (
        container(ports=(PortMapping(80, host_ip="0.0.0.0"),)),
        "policy.publish_addresses",
        {"publish_addresses": ("0.0.0.0",)},
    ),
    "::": (
        container(ports=(PortMapping(80, host_ip="::"),)),
        "policy.publish_addresses",
        {"publish_addresses": ("::",)},
    ),
    "all addresses": (
        container(ports=(PortMapping(80, host_ip=""),)),
        "policy.publish_addresses",
        {"publish_addresses": ("", "0.0.0.0")},
    ),
}


@pytest.mark.parametrize("what", REFUSED_CONTAINERS)
def test_container_is_refused_until_its_setting_allows_it(what: str) -> None:
    spec, setting, values = REFUSED_CONTAINERS[what]
    with pytest.raises(errors.Refused) as refused:
        policy.judge_container(spec, DEFAULTS)
    assert setting in refused.value.hint
    policy.judge_container(spec, PolicySettings(**values))


@pytest.mark.parametrize("name", sorted(policy.DEFAULT_CAPABILITIES))
def test_capability_that_every_container_has_may_be_added(name: str) -> None:
    policy.judge_container(container(cap_add=(name, f"CAP_{name}", name.lower())), DEFAULTS)


@pytest.mark.parametrize("network", [None, "none", "bridge", "default", "my-network", "hostile", "containers"])
def test_network_that_is_the_containers_own_is_allowed(network: str | None) -> None:
    policy.judge_container(container(network=network), DEFAULTS)


@pytest.mark.parametrize(
    "mount",
    [
        Mount("bind", "/x,source=/etc", source="/srv"),
        Mount("bind", "/x", source="/srv/a,source=/etc"),
        Mount("volume", "/x,bind-propagation=shared", source="data"),
        Mount("tmpfs", '/x"y'),
        Mount("bind", "/x\ny", source="/srv"),
    ],
)
def test_mount_that_an_engine_could_read_as_another_one_is_refused(mount: Mount) -> None:
    with pytest.raises(errors.InvalidArgument):
        policy.judge_container(container(mounts=(mount,)), PolicySettings(allow_privileged=True))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_port_on_loopback_is_allowed(address: str) -> None:
    policy.judge_container(container(ports=(PortMapping(80, host_ip=address),)), DEFAULTS)


@pytest.mark.parametrize("name", ["run", "host", "lifetime", "expires", "anything"])
def test_label_in_our_name_space_is_refused_whatever_the_settings(name: str) -> None:
    labels = {policy.LABEL_PREFIX + name: "1"}
    with pytest.raises(errors.Refused):
        policy.judge_container(container(labels=labels), PolicySettings(allow_privileged=True))
    with pytest.raises(errors.Refused):
        policy.judge_build(build(labels=labels), PolicySettings(allow_privileged=True))


# ------------------------------------------------------------------------------------------------------------- builds

REFUSED_BUILDS: dict[str, tuple[BuildSpec, str, dict[str, Any]]] = {
    "frontend": (
        build(frontend="evil.example/frontend:1"),
        "policy.allowed_frontends",
        {"allowed_frontends": ("evil.example/frontend",)},
    ),
    "frontend that begins as the allowed one": (
        build(frontend="docker/dockerfile-upstream:master"),
        "policy.allowed_frontends",
        {"allowed_frontends": ("docker/dockerfile-upstream",)},
    ),
    "entitlement": (
        build(entitlements=("security.insecure",)),
        "policy.allow_privileged",
        {"allow_privileged": True},
    ),
    "secret variable": (
        build(secrets=(BuildSecret("s", env="HOME"),)),
        "policy.secret_env",
        {"secret_env": ("HOME",)},
    ),
    "network": (build(network="host"), "policy.allow_host_namespaces", {"allow_host_namespaces": True}),
}


@pytest.mark.parametrize("what", REFUSED_BUILDS)
def test_build_is_refused_until_its_setting_allows_it(what: str) -> None:
    spec, setting, values = REFUSED_BUILDS[what]
    with pytest.raises(errors.Refused) as refused:
        policy.judge_build(spec, DEFAULTS)
    assert setting in refused.value.hint
    policy.judge_build(spec, PolicySettings(**values))


@pytest.mark.parametrize(
    "frontend",
    [
        "docker/dockerfile",
        "docker/dockerfile:1",
        "docker.io/docker/dockerfile:1.7",
        f"docker/dockerfile@sha256:{'a' * 64}",
    ],
)
def test_dockers_own_frontend_is_allowed_in_every_spelling(frontend: str) -> None:
    policy.judge_build(build(frontend=frontend), DEFAULTS)


@pytest.mark.parametrize("frontend", ["localhost:5000/docker/dockerfile:1", "evil.example/docker/dockerfile"])
def test_frontend_of_another_registry_is_another_frontend(frontend: str) -> None:
    with pytest.raises(errors.Refused):
        policy.judge_build(build(frontend=frontend), DEFAULTS)


# -------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("path", ["/srv/project", "/srv/project/data", "/tmp/x"])
def test_path_under_an_allowed_folder_is_allowed(path: str) -> None:
    judge(path, "/srv/project", "/tmp")


@pytest.mark.parametrize("path", ["/srv", "/srv/project2", "/srv/projec", "/usr/share", "/home/someone"])
def test_path_outside_the_allowed_folders_is_refused_naming_them_and_the_setting(path: str) -> None:
    with pytest.raises(errors.Refused) as refused:
        judge(path, "/srv/project")
    assert "/srv/project" in refused.value.message
    assert "policy.allowed_paths" in refused.value.hint


@pytest.mark.parametrize("named", [False, True])
def test_whole_file_system_is_refused_whatever_is_allowed(named: bool) -> None:
    with pytest.raises(errors.Refused):
        judge("/", "/", named=named)


NEVER_UNNAMED = (
    *"/proc /proc/1 /sys /dev /dev/sda /etc /etc/shadow /boot /run /run/user/0 /var/run/docker.sock".split(),
    *(f"{HOME}/{name}" for name in ".ssh .ssh/id_ed25519 .gnupg .config .aws .azure .kube .docker .netrc".split()),
    *(f"{HOME}/{name}" for name in ".git-credentials .npmrc .pypirc".split()),
    str(OWN),
    str(OWN / "audit"),
)


@pytest.mark.parametrize("path", NEVER_UNNAMED)
@pytest.mark.parametrize("named", [False, True])
def test_protected_path_is_refused_though_a_folder_above_it_is_allowed(path: str, named: bool) -> None:
    with pytest.raises(errors.Refused) as refused:
        judge(path, "/", str(HOME), named=named)
    assert "protected" in refused.value.message
    assert "policy.allowed_paths" in refused.value.hint


@pytest.mark.parametrize("path", [str(HOME), "/home", "/var"])
def test_folder_that_holds_a_protected_path_is_refused(path: str) -> None:
    with pytest.raises(errors.Refused, match="holds"):
        judge(path, "/home", "/var")


@pytest.mark.parametrize("path", NEVER_UNNAMED)
def test_protected_path_that_was_named_is_allowed(path: str) -> None:
    judge(path, path, named=True)
    with pytest.raises(errors.Refused):
        judge(path, path, named=False)


def test_naming_one_file_opens_neither_its_neighbours_nor_the_folders_above() -> None:
    allowed = (str(HOME), f"{HOME}/.ssh/known_hosts")
    judge(f"{HOME}/.ssh/known_hosts", *allowed, named=True)
    for path in (f"{HOME}/.ssh/id_ed25519", f"{HOME}/.ssh", str(HOME)):
        with pytest.raises(errors.Refused):
            judge(path, *allowed, named=True)


# ----------------------------------------------------------------------------------- the words of a capability's name


@pytest.mark.parametrize(
    ("text", "name"),
    [("sys_admin", "SYS_ADMIN"), ("CAP_NET_RAW", "NET_RAW"), ("cap_chown", "CHOWN"), ("  Kill ", "KILL")],
)
def test_capability_is_known_in_every_spelling(text: str, name: str) -> None:
    assert policy.capability_name(text) == name


def test_images_are_pulled_from_listed_registries_alone() -> None:
    rules = PolicySettings(pull_registries=("a.example", "b.example:5000"))
    policy.judge_pull("A.example", rules)
    policy.judge_pull("b.example:5000", rules)
    policy.judge_pull("c.example", PolicySettings())
    for other in ("c.example", "b.example", "docker.io"):
        with pytest.raises(errors.Refused, match=f"pulling from {other}") as caught:
            policy.judge_pull(other, rules)
        assert "policy.pull_registries" in caught.value.hint


def test_pushing_is_free_to_listed_registries_alone() -> None:
    assert not policy.is_push_free("a.example", PolicySettings())
    assert policy.is_push_free("a.example", PolicySettings(push_registries=("a.example",)))
    assert policy.is_push_free("a.example", PolicySettings(push_registries=("*",)))
