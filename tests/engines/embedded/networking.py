"""What do the tests of the embedded engine's networks share: real namespaces, real programs, nothing left behind?"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import netns, network, objects
from codomyrmex_containerization.models.container import PortMapping
from tests import backends

DEADLINE_SECONDS = 30.0
LOOPBACK = "127.0.0.1"


def need_namespaces() -> None:
    """Skip without the right to make network namespaces."""
    if os.geteuid() != 0:
        backends.missing("networks of the embedded engine need root", enable="run the tests as root")
    for program in ("unshare", "nsenter", "ip"):
        if process.find(program) is None:
            backends.missing(f"no program {program}", enable="apt-get install util-linux iproute2")
    here = Path("/run") / f"cxc-test-{secrets.token_hex(4)}"
    try:
        netns.make(here)
    except errors.ContainerizationError as error:
        backends.missing(f"no network namespaces here: {error}", enable="run the tests where namespaces may be made")
    finally:
        netns.remove(here)


def need(program: str) -> None:
    """Skip without a program that networks are made with."""
    if process.find(program, folders=("/usr/lib/podman", "/usr/libexec/podman")) is None:
        backends.missing(f"no program {program}", enable=f"apt-get install {program}")


def need_bridges() -> None:
    """Skip where bridges cannot be made."""
    need_namespaces()
    need("netavark")
    need("aardvark-dns")
    if process.find("iptables-save") is None:
        backends.missing("no program iptables", enable="apt-get install iptables")


@dataclass(slots=True)
class Bench:
    """Networks of folders of their own, and the containers that the test gave networks to."""

    folders: objects.Folders
    networks: network.Networks
    ids: list[str] = field(default_factory=list)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def up(
        self, *names: str, ports: Sequence[PortMapping] = (), name: str = "some", alias: str = ""
    ) -> tuple[str, network.Attached]:
        """Set up a container's network; its id and what it has."""
        container = secrets.token_hex(32)
        self.ids.append(container)
        wanted = [(one, (alias,) if alias else ()) for one in names or ("bridge",)]
        return container, self.networks.set_up(container, name=name, networks=wanted, ports=ports)

    def run(self, attached: network.Attached, *argv: str) -> str:
        """Run a program in a container's namespace; its output."""
        words = ["nsenter", f"--net={kept(attached)}", *argv]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_SECONDS)
        return done.stdout.decode() + done.stderr.decode()

    def serve(self, attached: network.Attached, port: int, answer: str) -> None:
        """Have a program in a container's namespace answer everybody on a port."""
        words = ["nsenter", f"--net={kept(attached)}", str(backends.static_busybox()), "nc", "-ll", "-p", str(port)]
        self.servers.append(subprocess.Popen([*words, "-e", "echo", answer], stdin=subprocess.DEVNULL))

    def fetch(self, attached: network.Attached, address: str, port: int, *, seconds: int = 5) -> str:
        """What a container hears at an address."""
        return self.run(attached, str(backends.static_busybox()), "nc", "-w", str(seconds), address, str(port))


@contextmanager
def bench(data: Path) -> Iterator[Bench]:
    """A bench; everything is taken down in the end."""
    run = Path("/run") / f"cxc-test-{secrets.token_hex(4)}"  # short: paths of sockets are
    folders = objects.Folders(data, run)
    made = Bench(folders, network.Networks(folders, engine="embedded"))
    try:
        yield made
    finally:
        for server in made.servers:
            server.kill()
            server.wait()
        for container in made.ids:
            made.networks.tear_down(container)
        shutil.rmtree(run, ignore_errors=True)
        assert not run.exists()


def kept(attached: network.Attached) -> Path:
    """Where the namespace of a container that is in a network is kept."""
    assert attached.netns is not None
    return attached.netns


def dial(port: int, *, host: str = LOOPBACK) -> bytes:
    """What is answered on a port of this host, once something is."""
    ends = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), DEADLINE_SECONDS) as connection:
                if answer := connection.recv(100):
                    return answer
        except OSError:
            pass
        assert time.monotonic() < ends, f"nothing answers at {host}:{port}"
        time.sleep(0.02)


def rules_about(*texts: str) -> list[str]:
    """The host's firewall rules that hold one of these texts."""
    listings = [["iptables-save"], *([["nft", "list", "ruleset"]] if process.find("nft") else [])]
    found = [subprocess.run(one, capture_output=True, text=True, check=True).stdout for one in listings]
    return [line for one in found for line in one.splitlines() if any(text in line for text in texts)]


def programs_of(folder: Path) -> list[str]:
    """The command lines of programs that run for a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found
