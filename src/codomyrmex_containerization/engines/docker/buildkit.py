"""How is an image built by BuildKit through the buildx program?

`buildx build --progress=rawjson` prints BuildKit's own status messages, one JSON document a line; the context goes straight from the folder
to the engine, with `.dockerignore` applied by buildx itself. Values of build arguments travel in the environment, never in the arguments.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from codomyrmex_containerization import process
from codomyrmex_containerization.engines.docker import errors as docker_errors
from codomyrmex_containerization.models.engine import Endpoint
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec

# Names that docker's own packages and desktop applications use.
_PLUGIN_FOLDERS = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
_PASSED_ON = (
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "DOCKER_CONFIG",
)
_STEP = re.compile(r"\[(?:(?P<stage>\S+) +)?(?P<number>\d+)/(?P<total>\d+)\] (?P<text>.*)\Z", re.DOTALL)
_EXIT = re.compile(r"exit code: (\d+)")
_FAILED = re.compile(r"^ERROR: (?:failed to build: )?(?:failed to solve: )?(.*)")


def find_buildx(named: str | None = None) -> Path | None:
    """Find the buildx program: the one that is named, else the plugin where docker looks for it; None when there is none or it is `off`."""
    if named is not None:
        return Path(named) if named != "off" and os.access(named, os.X_OK) else None
    return _find_plugin(os.environ.get("DOCKER_CONFIG"), os.environ.get("HOME"))


@functools.cache
def _find_plugin(config: str | None, home: str | None) -> Path | None:
    own = Path(config) if config else Path(home or "/nonexistent") / ".docker"
    for folder in (str(own / "cli-plugins"), *_PLUGIN_FOLDERS):
        candidate = Path(folder, "docker-buildx")
        if os.access(candidate, os.X_OK):
            return candidate
    return None


@asynccontextmanager
async def build(
    spec: BuildSpec, *, buildx: Path, endpoint: Endpoint, engine: str, scratch: Path | None = None
) -> AsyncIterator[AsyncIterator[BuildEvent]]:
    """Build, yielding events; leaving the block early ends buildx, and with it the build in the engine.

    What buildx reads and writes on this host lies in a folder of its own below `scratch` (None: the temporary folder).
    """
    if scratch is not None:
        scratch.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cxc-build-", dir=scratch) as private:
        folder = Path(private)
        argv, env = _command(spec, buildx, folder, endpoint)
        async with process.run(argv, env=env) as running:
            yield _events(running, folder, engine)


def _command(spec: BuildSpec, buildx: Path, folder: Path, endpoint: Endpoint) -> tuple[list[str], dict[str, str]]:
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {
        "DOCKER_HOST": endpoint.via or endpoint.url,
        **_tls(endpoint, folder),
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        "NO_COLOR": "1",
    }
    argv = [
        str(buildx),
        "build",
        "--builder",
        "default",
        "--progress=rawjson",
        f"--iidfile={folder / 'image-id'}",
        "--load",
    ]
    argv += [f"--tag={tag}" for tag in spec.tags]
    argv += [f"--label={name}={value}" for name, value in spec.labels.items()]
    for name, value in spec.build_args.items():
        if name in env:
            argv.append(f"--build-arg={name}={value}")
        else:
            argv.append(f"--build-arg={name}")
            env[name] = value
    for secret in spec.secrets:
        if secret.env is not None:
            argv.append(f"--secret=id={secret.id},env={secret.env}")
            env.setdefault(secret.env, os.environ.get(secret.env, ""))
        else:
            argv.append(f"--secret=id={secret.id},src={secret.path}")
    argv += [f"--platform={','.join(spec.platforms)}"] if spec.platforms else []
    argv += [f"--target={spec.target}"] if spec.target else []
    argv += ["--no-cache"] if spec.no_cache else []
    argv += ["--pull"] if spec.pull else []
    argv += [f"--allow={entitlement}" for entitlement in spec.entitlements]
    empty = folder / "context"
    empty.mkdir()
    argv += [f"--file={_private_dockerfile(spec, folder)}", "--", str(spec.context or empty)]
    return argv, env


def _tls(endpoint: Endpoint, folder: Path) -> dict[str, str]:
    """Lay the endpoint's TLS material out as buildx wants to find it."""
    if endpoint.tls is None:
        return {}
    certificates = folder / "certificates"
    certificates.mkdir(mode=0o700)
    for name, source in (("ca", endpoint.tls.ca), ("cert", endpoint.tls.cert), ("key", endpoint.tls.key)):
        if source is not None:
            (certificates / f"{name}.pem").symlink_to(Path(source).absolute())
    verify = "DOCKER_TLS_VERIFY" if endpoint.tls.verify else "DOCKER_TLS"
    return {verify: "1", "DOCKER_CERT_PATH": str(certificates)}


def _private_dockerfile(spec: BuildSpec, folder: Path) -> Path:
    """Write the text that was judged, with its own ignore file beside it, so that just this is what is built."""
    written = folder / "Dockerfile"
    written.write_text(spec.dockerfile_text)
    if spec.dockerfile is not None:
        own = spec.dockerfile.with_name(spec.dockerfile.name + ".dockerignore")
        if own.is_file():
            written.with_name("Dockerfile.dockerignore").write_bytes(own.read_bytes())
    return written


async def _events(running: process.Running, folder: Path, engine: str) -> AsyncIterator[BuildEvent]:
    reader = _Reader()
    async for line in running.lines(running.process.stderr):
        if line.startswith(b"{"):
            try:
                message = json.loads(line)
            except ValueError:
                reader.said.append(line.decode("utf-8", "replace"))
                continue
            for event in reader.read(message):
                yield event
        elif line.strip():
            reader.said.append(line.decode("utf-8", "replace"))
    if await running.wait() == 0:
        image = folder / "image-id"
        yield BuildEvent("image", text=image.read_text().strip() if image.exists() else "")
        return
    failure = reader.failure()
    if failure is None:
        raise docker_errors.from_message(
            reader.last_words() or "buildx failed without a word", engine=engine, what="building the image"
        )
    yield failure


class _Reader:
    """Reads BuildKit's status messages; remembers which step each vertex is."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._partial: dict[tuple[str, int], bytes] = {}
        self._failure: BuildEvent | None = None
        self.said: list[str] = []

    def read(self, message: dict[str, Any]) -> list[BuildEvent]:
        found: list[BuildEvent] = []
        for vertex in message.get("vertexes") or ():
            found += self._vertex(vertex)
        for log in message.get("logs") or ():
            found += self._log(log)
        for warning in message.get("warnings") or ():
            found.append(BuildEvent("warning", text=_decoded(warning.get("short")), line=_line(warning)))
        return found

    def failure(self) -> BuildEvent | None:
        """Return the step that failed, or what buildx said in the end; None when it never got to a step."""
        if self._failure is not None:
            return self._failure
        words = self.last_words()
        engine_is_gone = re.search(
            r"cannot connect to the docker daemon|connection refused|unexpected eof|error reading from server|closing transport",
            words,
            re.I,
        )
        return BuildEvent("error", text=words) if words and not engine_is_gone else None

    def last_words(self) -> str:
        for line in reversed(self.said):
            if match := _FAILED.match(line):
                return match[1]
        return self.said[-1] if self.said else ""

    def _vertex(self, vertex: dict[str, Any]) -> list[BuildEvent]:
        digest, name = str(vertex.get("digest")), str(vertex.get("name") or "")
        step, found = _STEP.match(name), []
        if step:
            self._names[digest] = step["text"]
        if step and vertex.get("started") and digest not in self._begun:
            self._begun.add(digest)
            found.append(BuildEvent("step", text=step["text"], number=int(step["number"]), total=int(step["total"])))
        if vertex.get("cached") and digest not in self._ended and step:
            self._ended.add(digest)
            found.append(BuildEvent("cached", text=step["text"]))
        if vertex.get("error") and "context canceled" not in vertex["error"]:
            code = _EXIT.search(vertex["error"])
            found += self._flush(digest)
            self._failure = BuildEvent(
                "error",
                text=str(vertex["error"]),
                exit_code=int(code[1]) if code else None,
                number=int(step["number"]) if step else None,
                total=int(step["total"]) if step else None,
                step=step["text"] if step else name,
            )
        return found

    def _log(self, log: dict[str, Any]) -> list[BuildEvent]:
        key = (str(log.get("vertex")), int(log.get("stream") or 1))
        data = self._partial.pop(key, b"") + base64.b64decode(log.get("data") or "")
        *lines, rest = data.split(b"\n")
        if rest:
            self._partial[key] = rest
        return [self._line(key[0], line) for line in lines]

    def _flush(self, digest: str) -> list[BuildEvent]:
        return [self._line(digest, self._partial.pop(key)) for key in list(self._partial) if key[0] == digest]

    def _line(self, digest: str, line: bytes) -> BuildEvent:
        return BuildEvent("log", text=line.decode("utf-8", "replace"), step=self._names.get(digest, ""))


def _decoded(data: str | None) -> str:
    return base64.b64decode(data or "").decode("utf-8", "replace")


def _line(warning: dict[str, Any]) -> int | None:
    ranges = warning.get("range") or ()
    return int(ranges[0]["start"]["line"]) if ranges else None
