"""Which ways to an engine on another host do the tests use? TLS before the Docker socket, and ssh, both on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import backends, leftovers
from tests.tls import LOOPBACK, Authority, TlsProxy

START_SECONDS = 30.0
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class TlsDocker:
    """The Docker engine of the tests, reached through TLS."""

    proxy: TlsProxy = field(repr=False)
    certificates: Path
    """`ca.pem`, `cert.pem` and `key.pem` of a client that is let in: what DOCKER_CERT_PATH names."""
    strange_certificates: Path
    """The same of a client that an authority unknown to the engine has certified; its `ca.pem` knows the engine."""
    distrusting_certificates: Path
    """The same of a client that is let in, but whose `ca.pem` does not know the engine."""

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return self.proxy.port

    @property
    def url(self) -> str:
        """What DOCKER_HOST is to be."""
        return f"tcp://{LOOPBACK}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a user of it sets."""
        return {"DOCKER_HOST": self.url, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(self.certificates)}


@contextmanager
def open_tls(target: Path, folder: Path) -> Iterator[TlsDocker]:
    """TLS before the socket of any engine; the certificates are put into an empty folder."""
    for name in ("own", "strange"):
        (folder / name).mkdir()
    own, strange = Authority(folder / "own"), Authority(folder / "strange")
    certificates = own.issue(folder / "client", "clientAuth")
    strange_certificates = strange.issue(folder / "strange-client", "clientAuth")
    shutil.copy(own.certificate, strange_certificates / "ca.pem")
    distrusting = own.issue(folder / "distrusting-client", "clientAuth")
    shutil.copy(strange.certificate, distrusting / "ca.pem")
    proxy = TlsProxy(target, own.issue(folder / "server", "serverAuth"))
    try:
        yield TlsDocker(proxy, certificates, strange_certificates, distrusting)
    finally:
        proxy.close()


@pytest.fixture(scope="session")
def tls_docker(docker_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsDocker]:
    """The tests' Docker engine behind TLS on loopback; it asks for a client certificate."""
    with open_tls(docker_socket, tmp_path_factory.mktemp("tls")) as tls:
        yield tls


# ----------------------------------------------------------------------------------------------------------- ssh


@dataclass(frozen=True, slots=True)
class SshHost:
    """A host that is this one, reached through ssh as the user who runs the tests."""

    folder: Path
    user: str
    port: int
    config_file: Path
    """For `ssh -F`: keys and known hosts of the tests, nothing of ~/.ssh."""
    programs: Path
    """A folder for the front of PATH: `ssh` there is the real one with that file, which no variable could tell it."""

    @property
    def url(self) -> str:
        """What DOCKER_HOST is to be."""
        return f"ssh://{self.user}@{LOOPBACK}:{self.port}"

    @property
    def path(self) -> str:
        """PATH with that ssh before all others."""
        return f"{self.programs}{os.pathsep}{os.environ['PATH']}"


@contextmanager
def open_ssh(docker_socket: Path, *, password_only: bool = False) -> Iterator[SshHost]:
    """An sshd of the tests' own on loopback; with `password_only` it lets nobody in who cannot be asked."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    for program in ("ssh", "ssh-keygen"):
        if sshd is None or shutil.which(program) is None:
            backends.missing("no sshd, or no ssh")
    assert sshd is not None
    with leftovers.own_folder("ssh", _end_ssh, name="-password" if password_only else "") as folder:
        host = _set_up_ssh(folder, docker_socket, password_only=password_only)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself in; a service would make it
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", folder / "sshd_config"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait_for_ssh(host, process)
            yield host
        finally:
            leftovers.end(process)
            _end_ssh(folder)


def _set_up_ssh(folder: Path, docker_socket: Path, *, password_only: bool) -> SshHost:
    user = pwd.getpwuid(os.geteuid()).pw_name
    with socket.create_server((LOOPBACK, 0)) as free:
        port: int = free.getsockname()[1]
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, stdin=subprocess.DEVNULL
        )
    (folder / "docker").mkdir()
    (folder / "sshd_config").write_text(
        f"ListenAddress {LOOPBACK}:{port}\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nPermitRootLogin yes\nMaxStartups 100\nMaxSessions 100\n"
        # On that host nothing of the user's own is read either.
        f"SetEnv DOCKER_HOST=unix://{docker_socket} DOCKER_CONFIG={folder}/docker\n"
        f"PasswordAuthentication {'yes' if password_only else 'no'}\nKbdInteractiveAuthentication no\n"
        f"PubkeyAuthentication {'no' if password_only else 'yes'}\n"
    )
    known = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[{LOOPBACK}]:{port} {' '.join(known)}\n")
    config_file = folder / "ssh_config"
    config_file.write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nIdentityAgent none\nUserKnownHostsFile {folder}/known_hosts\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
    )
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config_file} "$@"\n')
    (programs / "ssh").chmod(0o755)
    return SshHost(folder, user, port, config_file, programs)


def _wait_for_ssh(host: SshHost, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError), socket.create_connection((LOOPBACK, host.port), timeout=1) as connection:
            if connection.recv(4) == b"SSH-":
                return
        if process.poll() is not None or time.monotonic() > until:
            backends.missing(f"no sshd of the tests' own: {(host.folder / 'log').read_text(errors='replace')[-1000:]}")
        time.sleep(PAUSE_SECONDS)


def sweep_ssh() -> None:
    """Remove what killed sessions have left."""
    leftovers.sweep("ssh", _end_ssh)


def _end_ssh(folder: Path) -> None:
    """End the daemon, its connections, and what runs for them: the folder is in their arguments or environment."""
    leftovers.end_processes(leftovers.naming(folder))


@pytest.fixture(scope="session")
def ssh_host(docker_socket: Path) -> Iterator[SshHost]:
    """This host through ssh with a key; there, docker reaches the tests' engine."""
    with open_ssh(docker_socket) as host:
        yield host


@pytest.fixture(scope="session")
def password_ssh_host(docker_socket: Path) -> Iterator[SshHost]:
    """This host through ssh that wants a password, which nobody can give."""
    with open_ssh(docker_socket, password_only=True) as host:
        yield host
