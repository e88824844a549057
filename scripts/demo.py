"""What does an agent get? A transcript of BUILD and EXECUTE: a real MCP client, the real server on stdio, a real engine."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError

BASE = "localhost/cxc-demo/base:1"
HELLO = "localhost/cxc-demo/hello"
LABEL = f"localhost.cxc-demo={os.getuid()}"  # the base image wears it, so all that is made from it does
WEB, STRANGER = "cxc-demo-web", "cxc-demo-stranger"
PASSWORD = "correct-horse-battery-staple"
ERROR_KEY = "codomyrmex.containerization/error"
REQUEST_SECONDS = 60.0

DOCKERFILE = f"""\
FROM {BASE}
COPY index.html /www/index.html
RUN echo "pages:" && ls /www
EXPOSE 8080
CMD ["sh", "-c", "echo serving /www on 8080; exec httpd -f -v -p 8080 -h /www"]
"""
BROKEN_DOCKERFILE = f"""\
FROM {BASE}

RUN echo "looking for the settings" && \\
    cat /app/settings.toml
"""
PAGE = "<h1>Hello from a container</h1>\n"


class NotReadyError(Exception):
    """What the demo needs is missing; the text says what brings it."""


# ------------------------------------------------------------------------------------------------------ what is printed

_COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, code: str) -> str:
    """Colour a text, on a terminal only."""
    return f"\033[{code}m{text}\033[0m" if _COLOURED else text


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def indent(text: str, mark: str) -> str:
    """Put a mark before every line."""
    return "\n".join(f"    {mark} {line}".rstrip() for line in text.splitlines())


def shown_call(tool: str, arguments: Mapping[str, object]) -> str:
    """Show a call as one would write it; longer texts stand below it, as they are."""
    short = {name: value for name, value in arguments.items() if not _is_long(value)}
    long = {name: str(value) for name, value in arguments.items() if _is_long(value)}
    listed = [f"{name}={_literal(value)}" for name, value in short.items()] + [f"{name}=..." for name in long]
    call = f"{tool}({', '.join(listed)})"
    return "\n".join([call, *(f"  {line}" for text in long.values() for line in text.splitlines())])


def _is_long(value: object) -> bool:
    return isinstance(value, str) and "\n" in value


def _literal(value: object) -> str:
    return json.dumps(value).replace("true", "True") if value is True else repr(value)


# --------------------------------------------------------------------------------------------------------- the back end


@dataclass(frozen=True, slots=True)
class Docker:
    """The docker program, for what an agent did not do: the base image, a stranger's container, the clean-up."""

    program: str
    host: str

    def __call__(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        """Run a command and return its output. Raises NotReadyError with its last words when it fails."""
        done = subprocess.run([self.program, "--host", self.host, *arguments], input=stdin, capture_output=True)
        if check and done.returncode != 0:
            raise NotReadyError(f"docker {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""

    def has_container(self, name: str) -> bool:
        """Say whether there is a container of this name."""
        return bool(self("ps", "--all", "--quiet", "--filter", f"name=^/{name}$"))

    def clean(self) -> None:
        """Remove everything that a demo of this user made."""
        left = self("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split()
        if left:
            self("rm", "--force", "--volumes", *left, check=False)
        self("image", "prune", "--all", "--force", "--filter", f"label={LABEL}", check=False)


def find_docker() -> Docker:
    """Find the docker program and an engine that answers it on this host."""
    program = shutil.which("docker")
    if program is None:
        raise NotReadyError(
            "there is no docker program. Run: sudo scripts/back-ends (or install Docker your system's way)"
        )
    hosts = [f"unix://{path}" for path in _sockets() if os.path.exists(path)]
    named = os.environ.get("DOCKER_HOST", "")
    for host in [named] if named else hosts:
        docker = Docker(program, host)
        if docker("version", "--format", "{{.Server.Version}}", check=False):
            return docker
    standard = "/var/run/docker.sock"
    if not named and os.path.exists(standard) and not os.access(standard, os.W_OK):
        raise NotReadyError(
            "you may not use the Docker engine here. Run: sudo usermod --append --groups docker $USER, and log in again"
        )
    raise NotReadyError("no Docker engine answers. Start it, for instance with: sudo scripts/back-ends")


def _sockets() -> Iterator[str]:
    yield "/var/run/docker.sock"
    yield f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'}/docker.sock"
    yield str(Path.home() / ".docker/run/docker.sock")


def make_base_image(docker: Docker) -> None:
    """Import a static busybox as an image, unless it is there: no registry is needed."""
    if docker("image", "inspect", "--format", "{{.Id}}", BASE, check=False):
        return
    busybox = find_busybox()
    changes = ("ENV PATH=/bin", f"LABEL {LABEL}")
    docker(
        "import", *(part for one in changes for part in ("--change", one)), "-", BASE, stdin=_root_filesystem(busybox)
    )


def find_busybox() -> str:
    """Find a busybox that needs no libraries."""
    busybox = shutil.which("busybox", path=f"{os.environ.get('PATH', '')}:/bin:/usr/bin")
    if busybox is None or b"/ld-" in Path(busybox).read_bytes()[:4096]:  # the name of a dynamic loader
        raise NotReadyError(
            "there is no static busybox, from which the demo makes its base image. Run: sudo apt-get install busybox-static"
            f" (or give the engine any image with sh and busybox's httpd under the name {BASE}, with the label {LABEL})"
        )
    return busybox


def is_ready() -> bool:
    """Say whether everything is there that the demo needs."""
    try:
        docker = find_docker()
        return bool(docker("image", "inspect", "--format", "{{.Id}}", BASE, check=False) or find_busybox())
    except NotReadyError:
        return False


def _root_filesystem(busybox: str) -> bytes:
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder, mode in (("bin", 0o755), ("tmp", 0o1777), ("www", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        program = Path(busybox).read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, len(program)
        archive.addfile(entry, io.BytesIO(program))
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------- calls and judgements


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gave: text, structured content, or an error's code and details; `everything` is each byte of it as JSON."""

    text: str
    data: Mapping[str, Any]
    error: Mapping[str, Any]
    everything: str

    @property
    def code(self) -> str:
        """The error's code; empty for a success."""
        return str(self.error.get("code", ""))


Expectation = tuple[str, Callable[[Answer], bool]]


def succeeds(answer: Answer) -> bool:
    """Whether the tool did its work."""
    return not answer.error and answer.data.get("status") == "success"


def _holds(check: Callable[[Answer], bool], answer: Answer) -> bool:
    try:
        return check(answer)
    except LookupError:  # an answer of another kind than the expected one
        return False


@dataclass(slots=True)
class Story:
    """The steps as they are told, and how many of them went otherwise than expected."""

    client: Client
    number: int = 0
    failed: list[str] = field(default_factory=list)

    async def step(self, title: str, tool: str, arguments: Mapping[str, object], *expected: Expectation) -> Answer:
        """Make a call, print it and its answer, and check what is expected of it."""
        self.number += 1
        say(f"\n {self.number:2}. {paint(title, '1')}")
        say(paint(indent(shown_call(tool, arguments), ">"), "36"))
        began = time.monotonic()
        result = await self.client.call_tool(tool, dict(arguments), read_timeout_seconds=REQUEST_SECONDS)
        seconds = time.monotonic() - began
        text = "\n".join(getattr(block, "text", "") for block in result.content)
        meta = result.meta or {}
        answer = Answer(
            text, result.structured_content or {}, meta.get(ERROR_KEY) or {}, result.model_dump_json(by_alias=True)
        )
        say(indent(text, "|"))
        self.judge(title, [(words, _holds(check, answer)) for words, check in expected], seconds)
        return answer

    def judge(self, title: str, verdicts: list[tuple[str, bool]], seconds: float | None = None) -> None:
        """Print what was seen and what was not."""
        took = f" ({seconds:.2f} s)" if seconds is not None else ""
        for words, good in verdicts:
            say(f"    {paint('ok', '32') if good else paint('NOT AS EXPECTED', '31')}: {words}{took}")
            took = ""
            if not good:
                self.failed.append(f"{title}: {words}")


# ------------------------------------------------------------------------------------------------------------ the story


async def tell(story: Story, docker: Docker, project: Path) -> None:
    """Go through BUILD and EXECUTE."""
    say(paint("\nBUILD", "1;35"))
    await story.step(
        "What is there?",
        "container_runtime_status",
        {},
        ("a Docker engine answers", lambda answer: succeeds(answer) and answer.data["runtimes"]["docker"] is True),
    )
    await _build(story, project)
    say(paint("\nEXECUTE", "1;35"))
    await _run(story)
    await _serve(story, docker)
    await _stay_within_bounds(story, docker)
    say(paint("\nVERIFY", "1;35"))
    say("     Scanning images is not there yet.")


async def _build(story: Story, project: Path) -> None:
    build = {"image_name": HELLO, "context": str(project), "dockerfile_text": DOCKERFILE}
    await story.step(
        "Build an image from a Dockerfile that was just written",
        "container_build",
        build,
        ("the image is built", lambda answer: succeeds(answer) and answer.data["image"] == f"{HELLO}:latest"),
    )
    await story.step(
        "A build that fails says where and why",
        "container_build",
        {"image_name": f"{HELLO}-broken", "dockerfile_text": BROKEN_DOCKERFILE},
        ("the answer is build_failed", lambda answer: answer.code == "build_failed"),
        (
            "it names line 3 and exit code 1",
            lambda answer: (answer.error.get("line"), answer.error.get("exit_code")) == (3, 1),
        ),
        ("it holds what the command said", lambda answer: "/app/settings.toml" in answer.text),
    )
    await story.step(
        "The same image again comes from the cache",
        "container_build",
        build,
        ("steps were cached", lambda answer: succeeds(answer) and answer.data["cached_steps"] > 0),
    )


async def _run(story: Story) -> None:
    await story.step(
        "Run something to its end",
        "container_run",
        {"image": HELLO, "command": ["sh", "-c", "cat /www/index.html; echo 'a complaint' >&2; exit 3"]},
        ("the exit code is 3", lambda answer: succeeds(answer) and answer.data["exit_code"] == 3),
        (
            "stdout and stderr come apart",
            lambda answer: answer.data.get("stdout") == PAGE and answer.data.get("stderr") == "a complaint\n",
        ),
    )
    await story.step(
        "A secret does not come back",
        "container_run",
        {
            "image": HELLO,
            "command": ["sh", "-c", "env | grep DB_; echo connecting with $DB_PASSWORD"],
            "env": {"DB_PASSWORD": PASSWORD},
        },
        ("the name stays, the value is ***", lambda answer: succeeds(answer) and "DB_PASSWORD=***" in answer.text),
        ("the value is in no byte of the answer", lambda answer: PASSWORD not in answer.everything),
    )
    await story.step(
        "What takes too long is stopped, and what it had said is kept",
        "container_run",
        {"image": HELLO, "command": ["sh", "-c", "echo begun; sleep 600"], "timeout_seconds": 1},
        ("timed out", lambda answer: succeeds(answer) and answer.data["timed_out"] is True),
        ("its words are there", lambda answer: answer.data.get("stdout") == "begun\n"),
    )
    await story.step(
        "A slip of the pen is met with the right word",
        "container_run",
        {"image": HELLO, "comand": "true"},
        ("the answer is invalid_argument", lambda answer: answer.code == "invalid_argument"),
        ("it names the argument that was meant", lambda answer: "'command'" in answer.text),
    )


async def _serve(story: Story, docker: Docker) -> None:
    started = await story.step(
        "Start a web server, leave it running",
        "container_run",
        {"image": HELLO, "name": WEB, "detach": True, "ports": ["8080"], "memory": "64m"},
        ("it runs", lambda answer: succeeds(answer) and answer.data["state"] == "running"),
        ("its port is published on 127.0.0.1", lambda answer: "127.0.0.1:" in "".join(answer.data.get("ports") or ())),
    )
    address = f"http://{''.join(started.data.get('ports') or ()).partition('->')[0]}/"
    page = await anyio.to_thread.run_sync(fetch, address)
    story.judge("The web server", [(f"{address} answers with the page that was built in", page == PAGE)])
    await story.step(
        "List containers with what they use",
        "container_list",
        {"name": WEB},
        (
            "it is there, with its memory and its limit",
            lambda answer: (
                succeeds(answer)
                and [(row["name"], row["memory_limit_bytes"]) for row in answer.data["containers"]]
                == [(WEB, 64 * 2**20)]
                and answer.data["containers"][0]["memory_bytes"] > 0
            ),
        ),
    )
    await story.step(
        "Read its log",
        "container_logs",
        {"container": WEB, "tail": 20},
        ("it says what it serves", lambda answer: succeeds(answer) and "serving /www on 8080" in answer.text),
        (
            "and the request that was just made",
            lambda answer: any(row["stream"] == "stderr" for row in answer.data["lines"]),
        ),
    )
    await story.step(
        "Remove it: this server started it, so nobody is asked",
        "container_remove",
        {"container": WEB, "force": True},
        ("it is removed", succeeds),
    )
    story.judge("The web server", [("the engine has it no more", not docker.has_container(WEB))])


async def _stay_within_bounds(story: Story, docker: Docker) -> None:
    docker("run", "--detach", "--name", STRANGER, BASE, "sleep", "600")
    say(f"\n     Meanwhile somebody else starts a container: docker run --name {STRANGER} ...")
    refused = await story.step(
        "Removing a stranger's container needs a person's word",
        "container_remove",
        {"container": STRANGER, "force": True},
        ("the answer is confirmation_required", lambda answer: answer.code == "confirmation_required"),
        ("it says what would be lost", lambda answer: STRANGER in answer.text and "running processes" in answer.text),
    )
    story.judge("The stranger's container", [("it is still there", docker.has_container(STRANGER))])
    token = str(refused.error.get("confirm_token", ""))
    await story.step(
        "The user agrees: the same call with the token",
        "container_remove",
        {"container": STRANGER, "force": True, "confirm_token": token},
        ("it is removed", succeeds),
    )
    story.judge("The stranger's container", [("the engine has it no more", not docker.has_container(STRANGER))])
    await story.step(
        "What the policy does not allow is refused, with the setting that would",
        "container_run",
        {"image": HELLO, "command": "id", "privileged": True},
        ("the answer is refused", lambda answer: answer.code == "refused"),
        ("it names policy.allow_privileged", lambda answer: "policy.allow_privileged" in answer.text),
    )
    await story.step(
        "So is a folder of this machine that nobody opened",
        "container_run",
        {"image": HELLO, "command": "cat /host/shadow", "mounts": ["/etc:/host:ro"]},
        ("the answer is refused", lambda answer: answer.code == "refused"),
        ("it names policy.allowed_paths", lambda answer: "policy.allowed_paths" in answer.text),
    )


def fetch(address: str) -> str:
    """Get a page from a server that may not listen yet."""
    end = time.monotonic() + 10
    while True:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5) as response:
                return str(response.read().decode())
        except (OSError, ValueError, urllib.error.URLError) as error:
            if time.monotonic() > end:
                return f"no answer: {error}"
            time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------- the frame


def server(folder: Path, docker: Docker) -> StdioServerParameters:
    """The server as a client would start it, with the settings that hold by default and folders of the demo's own."""
    (folder / "config.toml").touch(mode=0o600)
    own = {f"{kind}_DIR": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CACHE")} | {
        "CONFIG": str(folder / "config.toml")
    }
    passed = {name: os.environ[name] for name in ("DOCKER_CONFIG", "XDG_RUNTIME_DIR", "TMPDIR") if name in os.environ}
    return StdioServerParameters(
        command=str(Path(sys.executable).with_name("codomyrmex-containerization")),
        env=passed
        | {"DOCKER_HOST": docker.host}
        | {f"CODOMYRMEX_CONTAINERIZATION_{name}": value for name, value in own.items()},
        cwd=folder / "project",
    )


async def demonstrate(docker: Docker, folder: Path) -> list[str]:
    """Tell the story and return what went otherwise than expected."""
    project = folder / "project"
    project.mkdir()
    (project / "index.html").write_text(PAGE)
    with (folder / "server.log").open("w+") as log:
        try:
            async with Client(
                stdio_client(server(folder, docker), errlog=log), read_timeout_seconds=REQUEST_SECONDS
            ) as client:
                names = [tool.name for tool in (await client.list_tools()).tools]
                say(f"A client started the server over stdio; it offers {', '.join(names)}.")
                story = Story(client)
                await tell(story, docker, project)
                return story.failed
        finally:
            log.seek(0)
            words = log.read().splitlines()[-40:]
            if words:
                say("\nThe last lines of the server's log:\n" + indent("\n".join(words), "|"))


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for another demo of this user to end: both would use the same names."""
    with (Path(tempfile.gettempdir()) / f"cxc-demo-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _innermost(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """Return the exit status: 0 when everything was as expected, 1 when something was not, 2 when something is missing."""
    if sys.argv[1:] == ["--is-ready"]:
        return 0 if is_ready() else 2
    began = time.monotonic()
    try:
        docker = find_docker()
        with one_at_a_time(), tempfile.TemporaryDirectory(prefix="cxc-demo-") as folder:
            docker.clean()
            try:
                make_base_image(docker)
                failed = anyio.run(demonstrate, docker, Path(os.path.realpath(folder)))
            finally:
                docker.clean()
    except NotReadyError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except (ExceptionGroup, MCPError, OSError) as error:
        print(f"demo: the server could not be talked to: {_innermost(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say()
    for line in failed:
        say(f"{paint('NOT AS EXPECTED', '31')}: {line}")
    seconds = time.monotonic() - began
    if failed:
        say(f"done in {seconds:.1f} s: {len(failed)} not as expected")
    else:
        say(f"{paint('done', '32')} in {seconds:.1f} s: every answer was as expected, and nothing was left behind")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
