"""What must not pass between a bridge, this host and the world around it, whatever rights a container has in its own network?

The program that joins bridges lets packets for 127.0.0.1 come in from them, so that ports can be published there, and the host carries
packets on to whoever sends them to a container's address. Both are stopped before anything else is decided about a packet.
Source: https://nvd.nist.gov/vuln/detail/CVE-2020-8558, https://nvd.nist.gov/vuln/detail/CVE-2020-13401
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded.network_ground import Ground

_SECONDS = 60.0
_LOOPBACK = "127.0.0.0/8"
_REMEDY = "apt-get install nftables or iptables, or use docker or podman"


def put_up(bridge: str, subnet: str, *, internal: bool, ground: Ground) -> None:
    """Keep a bridge's containers from the host's loopback, and others from the containers; the bridge need not be there yet.

    From an internal one nothing is let through but what is for its own subnet. Raises EngineUnavailable.
    """
    beyond = f"!= {subnet}" if internal else _LOOPBACK
    said = _nft(
        ground,
        f"{_without(bridge)}add table ip {bridge}\n"
        f"add chain ip {bridge} arriving {{ type filter hook prerouting priority raw; policy accept; }}\n"
        f'add rule ip {bridge} arriving iifname "{bridge}" ip daddr {beyond} drop\n'
        f'add rule ip {bridge} arriving iifname != "{bridge}" ip daddr {subnet} drop\n',
    )
    if not said:
        return
    for rule in _older(bridge, subnet, internal=internal):
        # Older hosts have only the older program.
        failed = _iptables(ground, "-C", rule) and _iptables(ground, "-I", rule)
        if failed:
            raise errors.EngineUnavailable(
                f"The host cannot be kept apart from a network's containers: {said}; {failed}", hint=_REMEDY
            )


def shut_ipv6(bridge: str) -> None:
    """Have the host take no IPv6 from a bridge, whose containers could announce routes by it. Raises EngineUnavailable."""
    try:
        Path(f"/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6").write_text("1", "ascii")
    except FileNotFoundError:
        return  # a host without IPv6
    except OSError as error:
        raise errors.EngineUnavailable(
            f"IPv6 cannot be shut on a network's bridge: {error.strerror}.", hint="check that /proc/sys may be written"
        ) from error


def take_away(bridge: str, subnet: str, *, internal: bool, ground: Ground) -> str:
    """Take away what `put_up` did; returns what went wrong, empty when all went well or nothing was there."""
    said = []
    # Whichever program worked then is found by what is there: it may be the other one that works now.
    if not _run(ground, "nft", ("list", "table", "ip", bridge)).returncode:
        said.append(_nft(ground, f"delete table ip {bridge}\n"))
    # The listing makes no table where there is none; to ask for a rule would.
    if bridge.encode() in _run(ground, "iptables-save", ()).stdout:
        rules = _older(bridge, subnet, internal=internal)
        said += [_iptables(ground, "-D", rule) for rule in rules if not _iptables(ground, "-C", rule)]
    return "; ".join(one for one in said if one)


def _without(bridge: str) -> str:
    # Named before it is deleted: what is not there cannot be.
    return f"add table ip {bridge}\ndelete table ip {bridge}\n"


def _older(bridge: str, subnet: str, *, internal: bool) -> tuple[Sequence[str], ...]:
    beyond = ("!", "-d", subnet) if internal else ("-d", _LOOPBACK)
    return ("-i", bridge, *beyond), ("!", "-i", bridge, "-d", subnet)


def _nft(ground: Ground, script: str) -> str:
    return _said(_run(ground, "nft", ("-f", "-"), script))


def _iptables(ground: Ground, verb: str, rule: Sequence[str]) -> str:
    return _said(_run(ground, "iptables", ("-w", "-t", "raw", verb, "PREROUTING", *rule, "-j", "DROP")))


def _run(ground: Ground, name: str, words: Sequence[str], script: str = "") -> subprocess.CompletedProcess[bytes]:
    program = process.find(name)
    if program is None:
        return subprocess.CompletedProcess(name, 127, b"", f"{name} is missing".encode())
    try:
        return subprocess.run(
            [str(program), *words],
            input=script.encode(),
            capture_output=True,
            timeout=_SECONDS,
            env=ground.environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(name, 126, b"", str(error).encode())


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    """What went wrong; empty when all went well."""
    if done.returncode == 0:
        return ""
    return done.stderr.decode(errors="replace").strip()[:200] or f"it ended with {done.returncode}"
