"""How are volumes and networks kept, and what mounts and connections does a container get?"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.memory import files, objects, store
from codomyrmex_containerization.engines.memory.containers import Container
from codomyrmex_containerization.models.container import Mount, MountPoint
from codomyrmex_containerization.models.details import NetworkAttachment
from codomyrmex_containerization.models.storage import NetworkRow, NetworkSpec, VolumeRow, VolumeSpec

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_OWN = (("bridge", "bridge"), ("none", "null"))
_DEFAULT = "bridge"


def prepare(held: store.Store) -> None:
    """Make the networks that every engine has."""
    for name, driver in _OWN:
        subnet = "172.17.0.0/16" if driver == "bridge" else ""
        id, now = objects.new_id(), datetime.now(tz=UTC)
        held.networks[id] = objects.Network(id, NetworkSpec(name, driver), now, subnet, own=True)


# --------------------------------------------------------------------------- volumes


def volume_row(held: store.Store, volume: objects.Volume) -> VolumeRow:
    """Return a volume as a list shows it."""
    users = [one.name for one in held.containers.values() if any(m.name == volume.spec.name for m in one.mounts)]
    spec = volume.spec
    return VolumeRow(
        spec.name,
        spec.driver,
        volume.created,
        spec.labels,
        held.engine,
        options=spec.options,
        users=tuple(sorted(users)),
    )


def create_volume(held: store.Store, spec: VolumeSpec) -> objects.Volume:
    """Create a volume. Raises Conflict (name taken), InvalidArgument."""
    if spec.driver != "local" or spec.options:
        raise errors.InvalidArgument(
            f"Memory has no volume driver {spec.driver!r} and no options.",
            hint="leave both out, or use docker or podman",
        )
    spec = replace(spec, name=spec.name or objects.new_id())
    if not _NAME.match(spec.name):
        raise errors.InvalidArgument(f"{spec.name!r} is no volume name.", hint="use letters, digits, '_', '.', '-'")
    if spec.name in held.volumes:
        raise errors.Conflict(
            f"There is a volume {spec.name!r} already.", hint="choose another name, or remove that one"
        )
    volume = objects.Volume(spec, datetime.now(tz=UTC), files.Tree())
    held.volumes[spec.name] = volume
    held.note("volume", "create", spec.name, spec.name, {"driver": spec.driver, **spec.labels})
    return volume


def remove_volume(held: store.Store, name: str, *, force: bool) -> None:
    """Remove a volume. Raises NotFound (unless forced, as engines have it), Conflict."""
    if name not in held.volumes and force:
        return
    volume = held.volume(name)
    users = volume_row(held, volume).users
    if users:
        raise errors.Conflict(
            f"Volume {name} is in use by {', '.join(users[:5])}.", hint="remove those containers first"
        )
    del held.volumes[name]
    held.note("volume", "destroy", name, name, {"driver": volume.spec.driver})


def attach_mounts(held: store.Store, container: Container) -> None:
    """Give a new container what its specification and its image mount. Raises OSError, Unsupported."""
    container.view.mount("/dev", files.device_tree())
    named = {mount.target.rstrip("/") for mount in container.spec.mounts}
    anonymous = [Mount("volume", path) for path in container.image.config.volumes if path.rstrip("/") not in named]
    for mount in (*container.spec.mounts, *anonymous):
        if mount.type == "tmpfs":
            most = min(mount.size_bytes or files.MOST_BYTES, files.MOST_BYTES)
            container.view.mount(mount.target, files.Tree(files.Folder(0o1777), most_bytes=most))
            container.mounts.append(MountPoint("tmpfs", "", mount.target, mount.read_only))
            continue
        name = mount.source or objects.new_id()
        volume = held.volumes.get(name)
        if volume is None:
            volume = create_volume(held, VolumeSpec(name, labels=mount.labels))
        _fill(container.view, mount.target, volume.tree)
        container.view.mount(mount.target, volume.tree, read_only=mount.read_only)
        container.mounts.append(MountPoint("volume", "", mount.target, mount.read_only, name))


def _fill(view: files.View, path: str, tree: files.Tree) -> None:
    """An empty volume begins with what the image has at that place."""
    try:
        node = view.get(path)
    except OSError:
        return
    if isinstance(node, files.Folder) and node.entries and not tree.root.entries:
        copied = files.Tree(node).copy()
        tree.root.entries, tree.used_bytes = copied.root.entries, copied.used_bytes


# -------------------------------------------------------------------------- networks


def network_row(held: store.Store, network: objects.Network) -> NetworkRow:
    """Return a network as a list shows it."""
    spec = network.spec
    users = [one.name for one in held.containers.values() if spec.name in one.networks]
    subnets = (network.subnet,) if network.subnet else ()
    return NetworkRow(
        network.id,
        spec.name,
        spec.driver,
        network.created,
        spec.internal,
        subnets,
        spec.labels,
        held.engine,
        tuple(sorted(users)),
        own=network.own,
    )


def create_network(held: store.Store, spec: NetworkSpec) -> NetworkRow:
    """Create a network. Raises Conflict (name, subnet), InvalidArgument."""
    if spec.driver != "bridge" or spec.options or spec.ipv6:
        raise errors.InvalidArgument(
            "Memory has only bridge networks, without options and IPv6.", hint="leave them out, or use docker or podman"
        )
    if not _NAME.match(spec.name):
        raise errors.InvalidArgument(f"{spec.name!r} is no network name.", hint="use letters, digits, '_', '.', '-'")
    if any(one.spec.name == spec.name for one in held.networks.values()):
        raise errors.Conflict(
            f"There is a network {spec.name!r} already.", hint="choose another name, or remove that one"
        )
    subnet = _subnet(held, spec)
    network = objects.Network(objects.new_id(), spec, datetime.now(tz=UTC), str(subnet))
    held.networks[network.id] = network
    held.note("network", "create", network.id, spec.name, {"type": spec.driver})
    return network_row(held, network)


def _subnet(held: store.Store, spec: NetworkSpec) -> ipaddress.IPv4Network:
    used = [ipaddress.IPv4Network(one.subnet) for one in held.networks.values() if one.subnet]
    if spec.subnet is None:
        every = ipaddress.IPv4Network("172.16.0.0/12").subnets(new_prefix=16)
        free = next((one for one in every if not any(one.overlaps(other) for other in used)), None)
        if free is None:
            raise errors.Conflict("No address range is left for a network.", hint="remove networks that nothing uses")
        return free
    try:
        wanted = ipaddress.IPv4Network(spec.subnet)
        if spec.gateway is not None and ipaddress.IPv4Address(spec.gateway) not in wanted:
            raise ValueError(f"the gateway {spec.gateway} is not in it")
    except ValueError as problem:
        raise errors.InvalidArgument(
            f"{spec.subnet!r} is no subnet: {problem}.", hint="write it as 10.1.2.0/24"
        ) from problem
    if any(wanted.overlaps(one) for one in used):
        raise errors.Conflict(f"The subnet {spec.subnet} overlaps another network's.", hint="choose another subnet")
    return wanted


def remove_network(held: store.Store, name: str) -> None:
    """Remove a network. Raises NotFound, Conflict."""
    network = held.network(name)
    if network.own:
        raise errors.Conflict(
            f"Network {name} is the engine's own.", hint="only networks that were created can be removed"
        )
    users = network_row(held, network).users
    if users:
        raise errors.Conflict(
            f"Network {name} is in use by {', '.join(users[:5])}.", hint="disconnect those containers first"
        )
    del held.networks[network.id]
    held.note("network", "destroy", network.id, network.spec.name, {"type": network.spec.driver})


def connect(held: store.Store, name: str, container: Container, aliases: Sequence[str] = ()) -> None:
    """Connect a container. Raises NotFound, Conflict."""
    network = held.network(name)
    spec = network.spec
    if spec.name in container.networks:
        raise errors.Conflict(
            f"Container {container.name} is connected to {spec.name} already.", hint="disconnect it first"
        )
    address = gateway = ""
    if network.subnet:
        hosts = ipaddress.IPv4Network(network.subnet)
        gateway = spec.gateway or str(hosts[1])
        network.given += 1
        if network.given >= hosts.num_addresses - 1:
            raise errors.Conflict(
                f"Network {spec.name} has no address left.", hint="use a network with a larger subnet"
            )
        address = str(hosts[network.given])
    container.networks[spec.name] = NetworkAttachment(spec.name, address, gateway, tuple(aliases))
    held.note("network", "connect", network.id, spec.name, {"container": container.id})


def disconnect(held: store.Store, name: str, container: Container) -> None:
    """Disconnect a container. Raises NotFound, Conflict."""
    network = held.network(name)
    if container.networks.pop(network.spec.name, None) is None:
        raise errors.Conflict(
            f"Container {container.name} is not connected to {name}.", hint="look at its networks first"
        )
    held.note("network", "disconnect", network.id, network.spec.name, {"container": container.id})
