"""Is an engine behind ssh reached like one on this host, and what is said when ssh finds no way?"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import endpoints, tunnels
from codomyrmex_containerization.engines.docker import client
from codomyrmex_containerization.models.engine import Endpoint
from tests.endpoints import SshHost

PATIENCE_SECONDS = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "own folder: 100%"  # none of this may mean anything to ssh
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch, ssh_host: SshHost) -> SshHost:
    monkeypatch.setenv("PATH", ssh_host.path)
    return ssh_host


@asynccontextmanager
async def tunnel(endpoint: Endpoint, folder: Path) -> AsyncIterator[tunnels.Tunnel]:
    made = tunnels.Tunnel(endpoints.judge(endpoint), folder=folder)
    try:
        yield made
    finally:
        await made.aclose()
    assert list(folder.iterdir()) == []


def at(host: SshHost, path: str = "") -> Endpoint:
    return Endpoint("far", f"{host.url}{path}", "the setting endpoints.far")


def ping(endpoint: Endpoint, path: Path) -> str:
    made = client.connect(replace(endpoint, via=f"unix://{path}"), timeout_seconds=PATIENCE_SECONDS).client
    try:
        return str(made.version()["ApiVersion"])
    finally:
        made.close()


def ssh_processes(folder: Path) -> list[int]:
    """The programs that work in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == folder.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def failure(endpoint: Endpoint, folder: Path) -> errors.ContainerizationError:
    async with tunnel(endpoint, folder) as made:
        with pytest.raises(errors.ContainerizationError) as caught:
            await made.open(deadline_seconds=PATIENCE_SECONDS)
        assert not made.is_open
        assert ssh_processes(folder) == []
    assert caught.value.hint
    assert "endpoints.far" in caught.value.message
    return caught.value


# ---------------------------------------------------------------------------------------------------------- the way there


async def test_engine_behind_ssh_answers_and_nothing_is_left(
    through: SshHost, docker_socket: Path, folder: Path
) -> None:
    endpoint = at(through, str(docker_socket))
    async with tunnel(endpoint, folder) as made:
        path = await made.open(deadline_seconds=PATIENCE_SECONDS)
        assert ping(endpoint, path)
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        assert await made.open() == path
        assert len(ssh_processes(folder)) == 1
    assert ssh_processes(folder) == []


async def test_two_calls_at_once_start_one_ssh(through: SshHost, docker_socket: Path, folder: Path) -> None:
    async with tunnel(at(through, str(docker_socket)), folder) as made:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(made.open)
        assert len(ssh_processes(folder)) == 1


async def test_tunnel_that_broke_is_made_anew_at_the_next_use(
    through: SshHost, docker_socket: Path, folder: Path
) -> None:
    endpoint = at(through, str(docker_socket))
    async with tunnel(endpoint, folder) as made:
        await made.open(deadline_seconds=PATIENCE_SECONDS)
        (pid,) = ssh_processes(folder)
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(PATIENCE_SECONDS):
            while made.is_open:  # noqa: ASYNC110  the end of a process sets no event of ours
                await anyio.sleep(0.02)
        assert ping(endpoint, await made.open(deadline_seconds=PATIENCE_SECONDS))


async def test_tunnel_that_is_closed_stays_closed(through: SshHost, docker_socket: Path, folder: Path) -> None:
    async with tunnel(at(through, str(docker_socket)), folder) as made:
        await made.aclose()
        with pytest.raises(errors.EngineUnavailable, match="is closed"):
            await made.open()


KILLED = """
import sys, anyio
from pathlib import Path
sys.path[:0] = {path!r}
from codomyrmex_containerization.engines import tunnels
from codomyrmex_containerization.models.engine import Endpoint
async def main():
    made = tunnels.Tunnel(Endpoint("far", sys.argv[1], "x"), folder=Path(sys.argv[2]))
    print(await made.open(deadline_seconds=30), flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends a program with the one that started it")
def test_ssh_ends_with_a_server_that_is_killed(through: SshHost, docker_socket: Path, folder: Path) -> None:
    code = KILLED.format(path=[one for one in sys.path if one])
    command = [sys.executable, "-c", code, at(through, str(docker_socket)).url, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/") as server:
        assert server.stdout is not None
        path = Path(server.stdout.readline().decode().strip())
        assert path.exists()
        (pid,) = ssh_processes(folder)
        gone = os.pidfd_open(pid)
        server.kill()
    try:
        # Readable when the process has ended.
        assert select.select([gone], [], [], PATIENCE_SECONDS)[0] == [gone]
    finally:
        os.close(gone)


# -------------------------------------------------------------------------------------------------------- no way there


async def test_host_that_asks_for_a_password_is_unauthorized(
    monkeypatch: pytest.MonkeyPatch, password_ssh_host: SshHost, folder: Path
) -> None:
    monkeypatch.setenv("PATH", password_ssh_host.path)
    error = await failure(at(password_ssh_host), folder)
    assert isinstance(error, errors.Unauthorized)
    assert "Permission denied" in error.message
    assert "ssh-add" in error.hint
    assert f"ssh -p {password_ssh_host.port}" in error.hint


async def test_key_that_the_host_does_not_know_is_unauthorized(
    monkeypatch: pytest.MonkeyPatch, ssh_host: SshHost, folder: Path, tmp_path: Path
) -> None:
    await anyio.run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")])
    configuration = ssh_host.config_file.read_text().replace(f"IdentityFile {ssh_host.folder}/user_key\n", "")
    use_configuration(monkeypatch, tmp_path, configuration)
    stranger = Endpoint("far", ssh_host.url, "the setting endpoints.far", identity=str(tmp_path / "key"))
    assert isinstance(await failure(stranger, folder), errors.Unauthorized)


async def test_key_file_of_the_setting_is_used(
    monkeypatch: pytest.MonkeyPatch, ssh_host: SshHost, docker_socket: Path, folder: Path, tmp_path: Path
) -> None:
    own = f"IdentityFile {ssh_host.folder}/user_key\n"
    use_configuration(monkeypatch, tmp_path, ssh_host.config_file.read_text().replace(own, ""))
    url, identity = f"{ssh_host.url}{docker_socket}", str(ssh_host.folder / "user_key")
    async with tunnel(Endpoint("far", url, "x", identity=identity), folder) as made:
        assert await made.open(deadline_seconds=PATIENCE_SECONDS)


async def test_host_whose_key_is_not_known_is_unauthorized(
    monkeypatch: pytest.MonkeyPatch, ssh_host: SshHost, folder: Path, tmp_path: Path
) -> None:
    known = f"UserKnownHostsFile {ssh_host.folder}/known_hosts"
    text = ssh_host.config_file.read_text().replace(known, "UserKnownHostsFile /dev/null")
    use_configuration(monkeypatch, tmp_path, text)
    error = await failure(at(ssh_host), folder)
    assert isinstance(error, errors.Unauthorized)
    assert "connect once by hand" in error.hint


async def test_machine_on_this_host_may_have_a_new_key(
    monkeypatch: pytest.MonkeyPatch, ssh_host: SshHost, docker_socket: Path, folder: Path, tmp_path: Path
) -> None:
    known = f"UserKnownHostsFile {ssh_host.folder}/known_hosts"
    text = ssh_host.config_file.read_text().replace(known, "UserKnownHostsFile /dev/null")
    use_configuration(monkeypatch, tmp_path, text)
    machine = Endpoint("far", f"{ssh_host.url}{docker_socket}", "x", insecure=True)
    async with tunnel(machine, folder) as made:
        assert ping(machine, await made.open(deadline_seconds=PATIENCE_SECONDS))


async def test_configuration_that_shares_connections_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, ssh_host: SshHost, docker_socket: Path, folder: Path, tmp_path: Path
) -> None:
    more = f"ControlMaster auto\nControlPersist yes\nControlPath {tmp_path}/c\nRemoteCommand sleep 60\nLogLevel QUIET\n"
    use_configuration(monkeypatch, tmp_path, ssh_host.config_file.read_text() + more)
    endpoint = at(ssh_host, str(docker_socket))
    async with tunnel(endpoint, folder) as made:
        assert ping(endpoint, await made.open(deadline_seconds=PATIENCE_SECONDS))
        assert not (tmp_path / "c").exists()


def use_configuration(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Let ssh read this configuration alone."""
    (folder / "config").write_text(text)
    (folder / "bin").mkdir()
    program = folder / "bin" / "ssh"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")


async def test_socket_that_is_not_there_on_the_host_is_named(through: SshHost, folder: Path) -> None:
    error = await failure(at(through, "/nowhere/docker.sock"), folder)
    assert isinstance(error, errors.EngineUnavailable)
    assert "open failed" in error.message
    assert "/nowhere/docker.sock" in error.hint


async def test_host_that_forbids_passing_sockets_on_is_unavailable_with_the_remedy(
    through: SshHost, folder: Path
) -> None:
    keys = through.folder / "user_key.pub"
    before = keys.read_text()
    keys.write_text(f"restrict {before}")
    try:
        error = await failure(at(through), folder)
    finally:
        keys.write_text(before)
    assert isinstance(error, errors.EngineUnavailable)
    assert "AllowStreamLocalForwarding" in error.hint


async def test_port_where_nobody_listens_is_unavailable(through: SshHost, folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    error = await failure(Endpoint("far", f"ssh://127.0.0.1:{port}", "the setting endpoints.far"), folder)
    assert isinstance(error, errors.EngineUnavailable)
    assert "refused" in error.message


async def test_host_that_says_nothing_costs_the_deadline_and_no_more(through: SshHost, folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        endpoint = Endpoint("far", f"ssh://127.0.0.1:{silent.getsockname()[1]}", "the setting endpoints.far")
        async with tunnel(endpoint, folder) as made:
            with pytest.raises(errors.DeadlineExceeded, match="took longer than") as caught:
                await made.open(deadline_seconds=0.5)
            assert caught.value.hint
            assert ssh_processes(folder) == []


async def test_cancelled_opening_leaves_nothing_behind(through: SshHost, folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        endpoint = Endpoint("far", f"ssh://127.0.0.1:{silent.getsockname()[1]}", "x")
        async with tunnel(endpoint, folder) as made, anyio.create_task_group() as tasks:
            tasks.start_soon(made.open)
            connection, _ = await anyio.to_thread.run_sync(silent.accept)
            with connection:
                tasks.cancel_scope.cancel()
        assert ssh_processes(folder) == []


async def test_folder_with_a_long_path_is_an_error_with_a_next_step(through: SshHost, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    error = await failure_without_source(at(through), long)
    assert isinstance(error, errors.EngineUnavailable)
    assert "too long" in error.message


async def failure_without_source(endpoint: Endpoint, folder: Path) -> errors.ContainerizationError:
    async with tunnel(endpoint, folder) as made:
        with pytest.raises(errors.ContainerizationError) as caught:
            await made.open()
    return caught.value


@pytest.mark.parametrize("url", ["ssh://-oProxyCommand=id/x", "ssh://-l@127.0.0.1/x", "ssh://$(id)@127.0.0.1/x"])
def test_tunnel_itself_refuses_a_host_that_is_an_option(url: str, folder: Path) -> None:
    with pytest.raises(errors.Refused):
        tunnels.Tunnel(Endpoint("far", url, "x"), folder=folder)
