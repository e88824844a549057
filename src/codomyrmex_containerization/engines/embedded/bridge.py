"""How are containers joined to a bridge of the host's, with addresses of ours, names for each other and published ports?

Source: https://github.com/containers/netavark, https://github.com/containers/aardvark-dns
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import (
    netns,
    network_guard,
    network_links,
    network_store,
    slirp,
    userns,
)
from codomyrmex_containerization.engines.embedded.network_ground import Ground

REMEDY = "apt-get install netavark aardvark-dns iptables, or use docker or podman"
_FOLDERS = ("/usr/lib/podman", "/usr/libexec/podman", "/usr/local/libexec/podman", "/usr/local/lib/podman")
_OTHERS_RULES = "No chain/target/match by that name"  # what another program's change at the same time leads to
_NOBODY = "255.255.255.255"  # as a server of names: nothing can be sent there
_SECONDS = 60.0
_MOST_WORDS = 400


def require() -> Path:
    """Return the program that joins bridges. Raises Unsupported."""
    found = process.find("netavark", folders=_FOLDERS)
    if found is None:
        raise errors.Unsupported("embedded makes networks of its own with netavark, which is missing.", hint=REMEDY)
    if userns.is_inside():
        slirp.require()  # leads out of an ordinary user's
    return found


def set_up(links: network_links.Links, link: network_links.Link, namespace: Path, *, ground: Ground) -> tuple[str, ...]:
    """Join a container's namespace to a bridge and publish its ports; returns who answers for names.

    Raises Unsupported, EngineUnavailable: then something may be left that only `tear_down` takes away.
    """
    program = require()
    ground.dns.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _firewall(ground):
        if link.bridged is not None:
            own = link.bridged
            network_guard.put_up(own.bridge, own.subnet, internal=own.internal, ground=ground)
        done = _call(program, "setup", links, link, namespace, ground)
        if done.returncode != 0 and _OTHERS_RULES in _words(done):
            _take_down(program, links, link, namespace, ground)
            done = _call(program, "setup", links, link, namespace, ground)
    if done.returncode != 0:
        raise errors.EngineUnavailable(
            f"Network {link.network} cannot be joined: {_words(done)}",
            hint=f"see its message; where a program is missing: {REMEDY}",
        )
    if link.bridged is not None:
        network_guard.shut_ipv6(link.bridged.bridge)
    try:
        answer = json.loads(done.stdout)[link.network]
        named = tuple(str(one) for one in answer.get("dns_server_ips") or ())
        internal = link.bridged is not None and link.bridged.internal
        return named or (() if internal else _nameservers(ground))
    except (ValueError, LookupError, AttributeError) as error:
        raise errors.EngineUnavailable(
            f"Network {link.network} cannot be joined: netavark's answer is not understood.", hint=REMEDY
        ) from error


def tear_down(links: network_links.Links, link: network_links.Link, namespace: Path, *, ground: Ground) -> str:
    """Take a container off a bridge, with the host's rules for it; returns what went wrong, empty when all went well."""
    program = process.find("netavark", folders=_FOLDERS)
    if program is None:
        return "netavark is missing"
    with _firewall(ground):
        return _take_down(program, links, link, namespace, ground)


def _take_down(
    program: Path, links: network_links.Links, link: network_links.Link, namespace: Path, ground: Ground
) -> str:
    failed = _leave(program, links, link, namespace, ground)
    own = link.bridged
    if own is not None and not _is_interface(own.bridge):
        failed = failed or network_guard.take_away(own.bridge, own.subnet, internal=own.internal, ground=ground)
    return failed


def _leave(program: Path, links: network_links.Links, link: network_links.Link, namespace: Path, ground: Ground) -> str:
    done = _call(program, "teardown", links, link, namespace, ground)
    if done.returncode == 0:
        return ""
    # Without an interface on either side the program gives up before the host's rules: give it some to take away.
    _stand_in(namespace, link, ground)
    done = _call(program, "teardown", links, link, namespace, ground)
    if link.bridged is not None:
        _remove_empty_bridge(link.bridged.bridge, ground)
    # It also complains of what was gone already, after somebody else emptied the host's rules for example.
    return _words(done) if done.returncode != 0 and _has_rules(links, link, ground) else ""


@contextmanager
def _firewall(ground: Ground) -> Iterator[None]:
    """Let one at a time change the host's rules, over all data folders: netavark looks at them before it changes them."""
    with network_store.locked(ground.locks):
        yield


def _stand_in(namespace: Path, link: network_links.Link, ground: Ground) -> None:
    program = process.find("ip")
    if link.bridged is None or program is None:
        return
    with suppress(OSError, subprocess.SubprocessError):  # most often it is there, and stays as it is
        _run([str(program), "link", "add", link.bridged.bridge, "type", "bridge"], ground)
    with suppress(errors.ContainerizationError, OSError, subprocess.SubprocessError):
        if not netns.is_there(namespace):
            netns.make(namespace)
        # Both ends in the namespace: with the one the other goes too.
        peer = f"{link.interface}-gone"
        netns.run(namespace, [str(program), "link", "add", link.interface, "type", "veth", "peer", "name", peer])


def _remove_empty_bridge(name: str, ground: Ground) -> None:
    program = process.find("ip")
    with suppress(OSError, subprocess.SubprocessError):
        if program is not None and _is_interface(name):
            ports = _run([str(program), "-o", "link", "show", "master", name], ground)
            if ports.returncode == 0 and not ports.stdout.strip():
                _run([str(program), "link", "delete", name], ground)


def _is_interface(name: str) -> bool:
    try:
        socket.if_nametoindex(name)  # of where this thread is, unlike /sys/class/net
    except OSError:
        return False
    return True


def _has_rules(links: network_links.Links, link: network_links.Link, ground: Ground) -> bool:
    """Whether a rule of the host's still names the container or its address."""
    named = re.compile(rf"{re.escape(links.container_id)}|(?<![\d.]){re.escape(link.address)}(?![\d.])".encode())
    for words in (("iptables-save",), ("nft", "list", "ruleset")):
        program = process.find(words[0])
        with suppress(OSError, subprocess.SubprocessError):
            if program is not None and named.search(_run([str(program), *words[1:]], ground).stdout):
                return True
    return False


def _nameservers(ground: Ground) -> tuple[str, ...]:
    return (ground.nameserver,) if ground.is_hub else host_nameservers()


def host_nameservers() -> tuple[str, ...]:
    """Return the host's own name servers that a container can reach."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        with suppress(OSError):
            words = [line.split() for line in path.read_text("utf-8", "replace").splitlines()]
            found = [one[1] for one in words if len(one) > 1 and one[0] == "nameserver"]
            reachable = tuple(one for one in found if not one.startswith("127.") and ":" not in one)
            if reachable:
                return reachable
    return ()


def _call(
    program: Path, verb: str, links: network_links.Links, link: network_links.Link, namespace: Path, ground: Ground
) -> subprocess.CompletedProcess[bytes]:
    argv = [str(program), "--config", str(ground.dns), *(["--rootless=true"] if ground.is_hub else [])]
    names = process.find("aardvark-dns", folders=_FOLDERS)
    if names is not None:
        argv += ["--aardvark-binary", str(names)]
    question = json.dumps(_question(links, link, ground, names=names is not None)).encode()
    try:
        return _run([*argv, verb, str(namespace)], ground, question)
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(argv, 1, b"", str(error).encode())


def _run(argv: Sequence[str], ground: Ground, question: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    # A session of its own: the server of names that it starts goes on when ours is ended from a terminal.
    return subprocess.run(
        argv,
        input=question,
        capture_output=True,
        timeout=_SECONDS,
        env=ground.environment,
        start_new_session=True,
        check=False,
    )


def _question(
    links: network_links.Links, link: network_links.Link, ground: Ground, *, names: bool
) -> dict[str, object]:
    if link.bridged is None:
        raise errors.InternalError(f"Network {link.network} is no bridge.")
    own = link.bridged
    # Of an internal network: names of its own only, what is asked of others leads out. A hub has not the host's servers.
    asked = _NOBODY if own.internal else ground.nameserver
    return {
        "container_id": links.container_id,
        "container_name": links.name,
        "networks": {
            link.network: {
                "static_ips": [link.address],
                "interface_name": link.interface,
                "aliases": [*link.aliases, links.container_id[:12]],
            }
        },
        "network_info": {
            link.network: {
                "name": link.network,
                "id": own.id,
                "driver": "bridge",
                "network_interface": own.bridge,
                "subnets": [{"subnet": own.subnet, "gateway": link.gateway}],
                "ipv6_enabled": False,
                "internal": own.internal,
                "dns_enabled": names,
                **({"network_dns_servers": [asked]} if asked else {}),
                "ipam_options": {"driver": "host-local"},
                "options": {"isolate": "true"},
            }
        },
        "port_mappings": _mappings(link),
    }


def _mappings(link: network_links.Link) -> Sequence[dict[str, object]]:
    return [
        {
            "container_port": port.container_port,
            "host_ip": "" if port.host_ip in (None, "0.0.0.0") else port.host_ip,  # noqa: S104 - compared only
            "host_port": port.host_port,
            "protocol": port.protocol,
            "range": 1,
        }
        for port in link.inner or link.ports
    ]


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what the program says went wrong: JSON on its output, else lines."""
    try:
        return str(json.loads(done.stdout)["error"])[:_MOST_WORDS]
    except (ValueError, LookupError, TypeError):
        return (done.stderr or done.stdout).decode(errors="replace").strip()[-_MOST_WORDS:]
