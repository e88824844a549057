"""How is an engine on another host reached through the user's own ssh?

A tunnel is one `ssh -N` that listens on a socket in a private folder and passes what comes there on to the engine's socket
on the other host. It asks for nothing: keys come from the agent or a file, and host keys must be known. It ends with this
process, and is started again at the next use when it broke.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import SocketStream

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines import endpoints
from codomyrmex_containerization.models.engine import Endpoint

OPEN_SECONDS = 15.0

_LOOK_SECONDS = 0.02
_LONGEST_WORDS = 300
_LAST_BYTES = 4096
_GREETING = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# What concerns this use of ssh, whatever the user's configuration says; -o that comes first is what holds.
_OPTIONS = (
    "BatchMode=yes",
    "ExitOnForwardFailure=yes",
    "StreamLocalBindUnlink=yes",
    "StreamLocalBindMask=0177",
    # A shared connection would open the socket in another process, where nobody ends it.
    "ControlMaster=no",
    "ControlPath=none",
    "RemoteCommand=none",
    "PermitLocalCommand=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "LogLevel=INFO",
)
_FORBIDDEN = (
    "sshd there forbids passing sockets on: set AllowStreamLocalForwarding yes, or use tcp with TLS ('docker system "
    "dial-stdio', which needs no such permission, is not used here)"
)


class Tunnel:
    """The way to one ssh:// endpoint. `folder` is private (0700), exists, and has a short path."""

    def __init__(self, endpoint: Endpoint, *, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self.endpoint = endpoint
        self._target = endpoints.ssh_target(endpoint)
        self._folder = folder
        self._environ = dict(os.environ if environ is None else environ)
        self._name = f"ssh-{secrets.token_hex(4)}"
        self._running: process.Running | None = None
        self._opening = anyio.Lock()
        self._closed = False

    @property
    def socket_path(self) -> Path:
        """The socket on this host; there only while the tunnel is open."""
        return self._folder / f"{self._name}.sock"

    @property
    def is_open(self) -> bool:
        """Whether ssh runs; whether the other host still answers is seen when something is sent."""
        return self._running is not None and self._running.process.returncode is None

    async def open(self, *, deadline_seconds: float = OPEN_SECONDS) -> Path:
        """Start ssh unless it runs, and return the socket once the engine behind it has answered.

        Raises Unauthorized (ssh would have to ask for something), EngineUnavailable (no way to the host or to the engine
        there), Unsupported (the host says that it forbids it), DeadlineExceeded.
        """
        async with self._opening:
            if self._closed:
                raise errors.EngineUnavailable(f"The way to {self._named} is closed.", hint="call again")
            if self.is_open:
                return self.socket_path
            await self._end()
            await self._start(deadline_seconds)
            return self.socket_path

    async def aclose(self) -> None:
        """End ssh and remove its files; may be called twice."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            async with self._opening:
                await self._end()

    async def _start(self, deadline_seconds: float) -> None:
        argv = self._argv(deadline_seconds)
        self._running = await process.start(argv, env=self._environment(), cwd=self._folder, log=self._log)
        try:
            with anyio.fail_after(deadline_seconds):
                await self._until_it_listens(self._running)
                await self._greet()
        except TimeoutError as error:
            words = self._words()
            await self._end()
            raise errors.DeadlineExceeded(
                f"ssh to {self._named} took longer than {deadline_seconds:g} seconds"
                + (f": {words}" if words else "."),
                hint=f"check the way there with: {self._by_hand}",
            ) from error
        except BaseException:
            await self._end()
            raise

    async def _until_it_listens(self, running: process.Running) -> None:
        while not self.socket_path.exists():  # ssh says in no other way that it is ready
            if running.process.returncode is not None:
                raise self._failure()
            await anyio.sleep(_LOOK_SECONDS)

    async def _greet(self) -> None:
        """Ask the engine for a sign of life: ssh takes connections even when it cannot pass them on."""
        answer = b""
        with suppress(anyio.BrokenResourceError, anyio.EndOfStream, OSError):
            stream: SocketStream
            async with await anyio.connect_unix(self.socket_path) as stream:
                await stream.send(_GREETING)
                answer = await stream.receive(1)
        if not answer:
            raise self._failure()

    def _argv(self, deadline_seconds: float) -> list[str]:
        ssh = process.find("ssh")
        if ssh is None:
            raise errors.EngineUnavailable(
                f"{self.endpoint.source} needs ssh, which is not installed.",
                hint="install it (Debian, Ubuntu: apt-get install openssh-client)",
            )
        if len(os.fsencode(self.socket_path)) > endpoints.LONGEST_SOCKET_PATH_BYTES:
            raise errors.EngineUnavailable(
                f"The path {self.socket_path} is too long for a socket.", hint="use a state folder with a shorter path"
            )
        target = self._target
        # ssh works in the private folder: a path written in full could hold what its -L takes for something else.
        argv = [str(ssh), "-N", "-T", "-L", f"./{self.socket_path.name}:{target.path}"]
        for option in (*_OPTIONS, f"ConnectTimeout={max(1, math.ceil(deadline_seconds))}", *self._host_key_options()):
            argv += ["-o", option]
        if self.endpoint.identity:
            argv += ["-i", str(Path(self.endpoint.identity).absolute())]
        if target.port is not None:
            argv += ["-p", str(target.port)]
        if target.user is not None:
            argv += ["-l", target.user]
        return [*argv, "--", target.host]

    def _host_key_options(self) -> tuple[str, ...]:
        # Only a virtual machine on this host is reached so: its key is new whenever it is made again.
        if self.endpoint.insecure and self.endpoint.is_loopback:
            return ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
        return ()

    def _environment(self) -> dict[str, str]:
        return {**self._environ, "LC_ALL": "C", "PATH": self._environ.get("PATH") or os.defpath}

    async def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await process.end(running)
        for path in (self.socket_path, self._log):
            with suppress(OSError):
                path.unlink()

    # ------------------------------------------------------------------------------------------------------- its words

    @property
    def _log(self) -> Path:
        return self._folder / f"{self._name}.log"

    @property
    def _named(self) -> str:
        target = self._target
        return f"{target.user}@{target.host}" if target.user else target.host

    @property
    def _by_hand(self) -> str:
        target = self._target
        port = f" -p {target.port}" if target.port else ""
        identity = f" -i {self.endpoint.identity}" if self.endpoint.identity else ""
        return f"ssh{port}{identity} {self._named}"

    def _words(self) -> str:
        """Return the last lines that ssh said, as one."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, self._log.stat().st_size - _LAST_BYTES))
                said = file.read(_LAST_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""
        lines = ["".join(filter(str.isprintable, line)).strip() for line in said.splitlines()]
        words = " ".join(line for line in lines if line and not line.startswith("Warning: Permanently added"))
        return words[-_LONGEST_WORDS:]

    def _failure(self) -> errors.ContainerizationError:
        words = self._words()
        said = f"ssh to {self._named} ({self.endpoint.source}) failed" + (f": {words}" if words else ".")
        lowered = words.lower()
        if "host key verification failed" in lowered or "host identification has changed" in lowered:
            return errors.Unauthorized(
                said,
                hint=f"the host's key is not known or has changed: check it and connect once by hand: {self._by_hand}",
            )
        if "administratively prohibited" in lowered:
            return errors.Unsupported(said, hint=_FORBIDDEN)
        if "open failed" in lowered:  # sshd says no more of a socket that is absent, closed to the user, or forbidden
            return errors.EngineUnavailable(
                said,
                hint=f"check that the engine there runs and that this user may open {self._target.path} there; or {_FORBIDDEN}",
            )
        if "permission denied" in lowered or "authentication failures" in lowered:
            return errors.Unauthorized(
                said,
                hint="load the key into the agent (ssh-add) or name its file (identity, CONTAINER_SSHKEY); ssh never asks "
                f"for a password here; this must work without a question: {self._by_hand}",
            )
        return errors.EngineUnavailable(said, hint=f"check the way there with: {self._by_hand}")
