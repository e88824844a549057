"""With which settings does a Podman of the tests' own share nothing with another, and run on a restricted machine?"""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

_HYBRID = Path("/sys/fs/cgroup/unified/cgroup.controllers")


def settings(folder: Path, *, rootless: bool, restricted: bool) -> str:
    """What CONTAINERS_CONF names; `restricted` with what a machine needs that does not let Podman do what it likes."""
    containers, engine = [], [f'tmp_dir = "{folder}/tmp"']
    # The default locks are one segment of memory for all storages of a user.
    engine.append('lock_type = "file"')
    if restricted:
        hard = {
            name: resource.getrlimit(kind)[1]
            for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
        }
        limits = [f'"{name}={_limit(hard[name], most)}"' for name, most in (("nofile", 20000), ("nproc", 32768))]
        containers.append(f"default_ulimits = [{', '.join(limits)}]")
        engine += ['cgroup_manager = "cgroupfs"', 'events_logger = "file"']
        if _HYBRID.exists() and _HYBRID.read_text().strip():
            engine.append('runtime = "runc"')
    network = ['network_backend = "netavark"']
    if not rootless:
        network.append(f'network_config_dir = "{folder}/networks"')
        network.append(f'default_network = "{network_name(folder)}"')
    sections = {"containers": containers, "engine": engine, "network": network}
    return "\n".join(line for name, lines in sections.items() for line in (f"[{name}]", *lines)) + "\n"


def _limit(hard: int, most: int) -> str:
    value = most if hard == resource.RLIM_INFINITY else min(hard, most)
    return f"{value}:{value}"


def storage_settings(folder: Path) -> str:
    """What CONTAINERS_STORAGE_CONF names."""
    lines = ["[storage]", 'driver = "overlay"', f'graphroot = "{folder}/root"', f'runroot = "{folder}/run/storage"']
    # An ordinary user's storage is named by another key.
    return "\n".join([*lines, f'rootless_storage_path = "{folder}/root"', ""])


def network_name(folder: Path) -> str:
    """The name of its network, and of the bridge."""
    return f"cxc{hashlib.sha256(folder.name.encode()).hexdigest()[:8]}"


def default_network(folder: Path) -> str:
    """A network of a name, a bridge and addresses of its own: chains of the firewall are named for the network."""
    digest = hashlib.sha256(folder.name.encode())
    prefix = f"10.{160 + digest.digest()[0] % 64}.{digest.digest()[1]}"
    return json.dumps(
        {
            "name": network_name(folder),
            "id": digest.hexdigest(),
            "driver": "bridge",
            "network_interface": network_name(folder),
            "created": "2026-01-01T00:00:00Z",
            "subnets": [{"subnet": f"{prefix}.0/24", "gateway": f"{prefix}.1"}],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
    )
