"""What may volumes mount and networks reach, and does every refusal name the setting that would allow it?"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import pytest

from codomyrmex_containerization import errors, policy
from codomyrmex_containerization.models.settings import PolicySettings
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeSpec

DEFAULTS = PolicySettings()
HOST = {"allow_host_namespaces": True}


def volume(driver: str = "local", **options: str) -> VolumeSpec:
    return VolumeSpec("data", driver, options)


def network(driver: str = "bridge", **more: Any) -> NetworkSpec:
    return NetworkSpec("back", driver, **more)


def drivers(*names: str) -> dict[str, Any]:
    return {"volume_drivers": ("local", *names)}


# ------------------------------------------------------------------------------------------------------------ volumes

REFUSED_VOLUMES: dict[str, tuple[VolumeSpec, dict[str, Any]]] = {
    "another driver": (volume("sshfs"), drivers("sshfs")),
    "a share of the network": (volume(type="nfs", o="addr=10.0.0.1", device=":/x"), drivers("local:nfs")),
    "another share": (volume(type="cifs", o="username=x", device="//a/b"), drivers("local:cifs")),
    "a disk": (volume(type="ext4", device="/dev/sda1"), drivers("local:ext4")),
    "a disk of a type that the kernel finds out": (volume(device="/dev/sda1"), drivers("local:auto")),
    "layers": (volume(type="overlay", o="lowerdir=/etc,upperdir=/a,workdir=/b", device="x"), drivers("local:overlay")),
    "the kernel's own files": (volume(type="proc", device="proc"), drivers("local:proc")),
    "mounts that spread to the host": (volume(type="none", o="bind,rshared", device="/srv"), drivers("local:none")),
    "a memory file system with more": (
        volume(type="tmpfs", device="tmpfs", o="size=1m,shared"),
        drivers("local:tmpfs"),
    ),
}


@pytest.mark.parametrize("what", REFUSED_VOLUMES)
def test_volume_that_mounts_more_than_files_of_its_own_is_refused_until_allowed(what: str) -> None:
    spec, allowing = REFUSED_VOLUMES[what]
    with pytest.raises(errors.Refused) as refusal:
        policy.judge_volume(spec, DEFAULTS)
    assert "policy.volume_drivers" in refusal.value.hint
    assert repr(allowing["volume_drivers"][-1]) in refusal.value.hint
    policy.judge_volume(spec, PolicySettings(**allowing))


@pytest.mark.parametrize(
    "spec",
    [
        volume(),
        volume(type="tmpfs", device="tmpfs", o="size=64m,mode=1777,nosuid"),
        volume(type="none", o="bind,ro", device="/srv"),
        volume(o="rbind", device="/srv"),
        volume(size="1g"),
    ],
)
def test_volume_of_files_memory_or_a_path_passes(spec: VolumeSpec) -> None:
    policy.judge_volume(spec, DEFAULTS)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"type": "none", "o": "bind", "device": "/etc"}, "/etc"),
        ({"o": "ro, RBIND", "device": "/etc"}, "/etc"),
        ({"TYPE": "none", "O": "bind", "Device": "/etc"}, "/etc"),
        ({"type": "bind", "device": "/etc"}, "/etc"),
        ({"type": "tmpfs", "o": "bind", "device": "/etc"}, "/etc"),
        ({"type": "tmpfs", "device": "tmpfs"}, None),
        ({}, None),
    ],
)
def test_path_that_a_volume_binds_is_found_however_it_is_written(options: dict[str, str], path: str | None) -> None:
    assert policy.bound_path("local", options) == (PurePath(path) if path else None)


@pytest.mark.parametrize(
    "options",
    [
        {"type": "none", "o": "bind", "device": "etc"},
        {"type": "none", "o": "bind"},
        {"type": "nfs", "o": "bind", "device": "/etc"},
        {"type": "tmpfs", "TYPE": "none", "device": "/etc"},
    ],
)
def test_options_that_say_two_things_are_no_options(options: dict[str, str]) -> None:
    with pytest.raises(errors.InvalidArgument):
        policy.judge_volume(VolumeSpec("data", options=options), DEFAULTS)


# ----------------------------------------------------------------------------------------------------------- networks

REFUSED_NETWORKS: dict[str, NetworkSpec] = {
    "the host's": network("host"),
    "a card of the host": network("macvlan", options={"parent": "eth0"}),
    "an address of the host's network": network("ipvlan"),
    "other hosts": network("overlay"),
    "a bridge that is there": network(options={"com.docker.network.bridge.name": "docker0"}),
    "a bridge without walls": network(options={"com.docker.network.bridge.gateway_mode_ipv4": "nat-unprotected"}),
    "an option that nobody knows": network(options={"mode": "unmanaged"}),
    "addresses of others": network(subnet="8.8.8.0/24"),
    "all addresses": network(subnet="0.0.0.0/0"),
    "this host's loopback": network(subnet="127.0.0.0/8"),
    "where clouds keep credentials": network(subnet="169.254.169.0/24"),
    "more than the private addresses": network(subnet="10.0.0.0/7"),
    "others' addresses of version 6": network(subnet="2001:4860::/32"),
}


@pytest.mark.parametrize("what", REFUSED_NETWORKS)
def test_network_that_reaches_past_a_bridge_is_refused_until_allowed(what: str) -> None:
    with pytest.raises(errors.Refused) as refusal:
        policy.judge_network(REFUSED_NETWORKS[what], DEFAULTS)
    assert "policy.allow_host_namespaces" in refusal.value.hint
    policy.judge_network(REFUSED_NETWORKS[what], PolicySettings(**HOST))


@pytest.mark.parametrize("name", ["host_binding_ipv4", "host_binding_ipv6"])
def test_network_that_publishes_on_all_addresses_is_refused_until_they_are_allowed(name: str) -> None:
    spec = network(options={f"com.docker.network.bridge.{name}": "0.0.0.0"})
    for rules in (DEFAULTS, PolicySettings(**HOST)):
        with pytest.raises(errors.Refused) as refusal:
            policy.judge_network(spec, rules)
        assert "policy.publish_addresses" in refusal.value.hint
    policy.judge_network(spec, PolicySettings(publish_addresses=("0.0.0.0",)))


@pytest.mark.parametrize(
    "spec",
    [
        network(),
        network(internal=True, ipv6=True),
        network(subnet="10.77.1.0/24", gateway="10.77.1.1"),
        network(subnet="fd00:1::/64"),
        network(options={"com.docker.network.driver.mtu": "1400"}),
        network(options={"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}),
    ],
)
def test_bridge_of_private_addresses_passes(spec: NetworkSpec) -> None:
    policy.judge_network(spec, DEFAULTS)


def test_subnet_that_is_none_is_no_subnet() -> None:
    with pytest.raises(errors.InvalidArgument):
        policy.judge_network(network(subnet="10.0.0.1/99"), DEFAULTS)


def test_label_of_ours_on_a_volume_or_network_is_refused() -> None:
    labels = {f"{policy.LABEL_PREFIX}run": "x"}
    with pytest.raises(errors.Refused):
        policy.judge_volume(VolumeSpec("data", labels=labels), DEFAULTS)
    with pytest.raises(errors.Refused):
        policy.judge_network(NetworkSpec("back", labels=labels), DEFAULTS)
