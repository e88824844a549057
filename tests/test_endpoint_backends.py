"""Do the engines behind TLS and ssh, and the newest Docker, do what tests rely on?"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import docker
import pytest
import requests
from docker.tls import TLSConfig

from tests import backends, leftovers
from tests.backends import DockerCommandLine
from tests.endpoints import SshHost, TlsDocker, sweep_ssh
from tests.modern_docker import ModernDocker, sweep


def _tls_client(tls: TlsDocker, certificates: Path) -> docker.APIClient:
    config = TLSConfig(
        client_cert=(str(certificates / "cert.pem"), str(certificates / "key.pem")),
        ca_cert=str(certificates / "ca.pem"),
        verify=True,
    )
    client = docker.APIClient(base_url=tls.url, tls=config, version="1.41", timeout=20)
    client.trust_env = False  # else REQUESTS_CA_BUNDLE counts for more than the certificates given here
    return client


def test_tls_lets_a_certified_client_in(tls_docker: TlsDocker) -> None:
    client = _tls_client(tls_docker, tls_docker.certificates)
    try:
        assert client.version()["ApiVersion"]
    finally:
        client.close()


@pytest.mark.parametrize("which", ["strange_certificates", "distrusting_certificates"])
def test_tls_refuses_where_one_does_not_know_the_other(tls_docker: TlsDocker, which: str) -> None:
    client = _tls_client(tls_docker, getattr(tls_docker, which))
    try:
        with pytest.raises(requests.exceptions.ConnectionError):
            client.version()
    finally:
        client.close()


def _docker_over_tls(tls: TlsDocker, arguments: Sequence[str], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    files = [f"--tls{name}={tls.certificates}/{name}.pem" for name in ("cert", "key")]
    command: list[str] = [
        "docker",
        "--host",
        tls.url,
        "--tlsverify",
        f"--tlscacert={tls.certificates}/ca.pem",
        *files,
        *arguments,
    ]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60)


def test_tls_streams_both_ways_until_the_input_ends(
    tls_docker: TlsDocker, busybox_image: str, session_label: str
) -> None:
    sent = bytes(range(256)) * 20_000
    script = "sha256sum; head -c 3000000 /dev/zero"
    done = _docker_over_tls(
        tls_docker, ["run", "--rm", "--interactive", "--label", session_label, busybox_image, "sh", "-c", script], sent
    )
    assert done.returncode == 0, done.stderr
    digest, _, zeros = done.stdout.partition(b"  -\n")
    assert digest.decode() == hashlib.sha256(sent).hexdigest()
    assert zeros == bytes(3_000_000)


def _docker_over_ssh(host: SshHost, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": host.path, "DOCKER_CONFIG": str(host.folder / "docker")}
    command = ["docker", "--host", host.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_ssh_reaches_the_engine_with_a_key(ssh_host: SshHost, docker_cli: DockerCommandLine) -> None:
    shown = ["info", "--format", "{{.ID}}"]
    assert _docker_over_ssh(ssh_host, shown).stdout == docker_cli(shown).stdout


def test_ssh_that_wants_a_password_lets_no_batch_in(password_ssh_host: SshHost) -> None:
    command = [str(password_ssh_host.programs / "ssh"), "-o", "BatchMode=yes", "-p", str(password_ssh_host.port)]
    done = subprocess.run([*command, "127.0.0.1", "true"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 255
    assert "Permission denied (password)" in done.stderr


def test_new_docker_runs_containers_from_the_containerd_image_store(modern_docker: ModernDocker) -> None:
    client = docker.APIClient(base_url=modern_docker.url, version="auto")
    try:
        assert tuple(map(int, client.version()["ApiVersion"].split("."))) >= (1, 56)
        assert client.info()["Driver"] == "overlayfs"
    finally:
        client.close()
    assert modern_docker.docker(["run", "--rm", modern_docker.image, "echo", "hello"]).stdout == "hello\n"


ABANDON = """
import os, signal
from tests import modern_docker
with modern_docker.open_modern_docker() as engine:
    engine.docker(["run", "--detach", engine.image, "sleep", "1000"])
    print(engine.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_new_docker_of_a_killed_session_is_removed_by_the_next(modern_docker: ModernDocker) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(backends.__file__).parents[1]),
        "CODOMYRMEX_TEST_MODERN_DOCKER": str(modern_docker.programs),
    }
    killed = subprocess.run([sys.executable, "-c", ABANDON], capture_output=True, text=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(killed.stdout.strip())
    sleeping = list(leftovers.processes(lambda process: _is_a_container_in(process, folder)))
    assert len(sleeping) == 1
    sweep()
    assert not folder.exists()
    assert not leftovers.is_running(sleeping[0])


def _is_a_container_in(process: Path, folder: Path) -> bool:
    return (process / "cmdline").read_bytes() == b"sleep\x001000\0" and str(folder) in (
        process / "mountinfo"
    ).read_text()


def test_published_port_of_new_docker_is_reached_inside_its_network(modern_docker: ModernDocker) -> None:
    serve = ["nc", "-ll", "-p", "8080", "-e", "echo", "hello"]
    made = modern_docker.docker(["run", "--detach", "--publish=127.0.0.1::8080", modern_docker.image, *serve])
    container = made.stdout.strip()
    try:
        port = modern_docker.docker(["port", container, "8080/tcp"]).stdout.strip().rpartition(":")[2]
        ask = modern_docker.inside(["busybox", "nc", "127.0.0.1", port])
        assert subprocess.run(ask, input=b"", capture_output=True, timeout=60).stdout == b"hello\n"
    finally:
        modern_docker.docker(["rm", "--force", container])


ABANDON_SSH = """
import os, signal
from pathlib import Path
from tests import endpoints
with endpoints.open_ssh(Path("/nowhere")) as host:
    print(host.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sshd_of_a_killed_session_is_ended_by_the_next() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(backends.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", ABANDON_SSH], capture_output=True, text=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(killed.stdout.strip())
    [sshd] = leftovers.processes(lambda process: f"{folder}/sshd_config".encode() in (process / "cmdline").read_bytes())
    sweep_ssh()
    assert not folder.exists()
    assert not leftovers.is_running(sshd)
