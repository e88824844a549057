"""What does an agent get? A transcript of BUILD and EXECUTE: a real MCP client, the real server on stdio, a real engine."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError

if TYPE_CHECKING:
    from codomyrmex_containerization.engines.base import Engine

T = TypeVar("T")

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
class Outside:
    """The engine's own program, for what an agent did not do: the base image, a stranger's container, the clean-up."""

    name: str
    program: tuple[str, ...]

    def __call__(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        """Run a command and return its output. Raises NotReadyError with its last words when it fails."""
        done = subprocess.run([*self.program, *arguments], input=stdin, capture_output=True)
        if check and done.returncode != 0:
            raise NotReadyError(f"{self.name} {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""

    def has_container(self, name: str) -> bool:
        """Say whether there is a container of this name."""
        return bool(self("ps", "--all", "--quiet", "--filter", f"name=^{name}$"))

    def clean(self) -> None:
        """Remove everything that a demo of this user made."""
        left = self("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split()
        if left:
            self("rm", "--force", "--volumes", *left, check=False)
        self("image", "prune", "--all", "--force", "--filter", f"label={LABEL}", check=False)


@dataclass(frozen=True, slots=True)
class Stranger(Outside):
    """The embedded engine has no program of its own: another process uses its folder, as another server would."""

    def _do(self, work: Callable[[Engine], Awaitable[T]]) -> T:
        """Open the engine as a server of this user would, and do something with it."""
        from codomyrmex_containerization.engines.embedded import folders
        from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
        from codomyrmex_containerization.engines.embedded.rootless import RootlessEngine
        from codomyrmex_containerization.models.engine import Endpoint

        data = Path(self.program[0])
        kind = EmbeddedEngine if os.geteuid() == 0 else RootlessEngine
        endpoint = Endpoint(self.name, f"file://{data}", "the demo", kind="embedded")
        engine = kind(endpoint, folders.of(data, os.environ), timeout_seconds=60)

        async def done() -> T:
            try:
                return await work(engine)
            finally:
                await engine.aclose()

        with ThreadPoolExecutor(1) as other:  # an event loop may be running in this thread
            return other.submit(anyio.run, done).result()

    def __call__(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        """Start a container: all that is asked for is `run --detach --name NAME IMAGE COMMAND...`."""
        from codomyrmex_containerization.models.container import ContainerSpec

        _, _, _, name, image, *command = arguments

        async def run(engine: Engine) -> str:
            id = await engine.create_container(ContainerSpec(image=image, name=name, command=tuple(command)))
            await engine.start_container(id)
            return id

        return self._do(run)

    def has_container(self, name: str) -> bool:
        """Say whether there is a container of this name."""

        async def look(engine: Engine) -> bool:
            return any(row.name == name for row in await engine.list_containers(all=True))

        return self._do(look)

    def make_base_image(self) -> None:
        """Build it of a static busybox, on nothing."""
        from codomyrmex_containerization.models.image import BuildSpec

        name, _, value = LABEL.partition("=")
        dockerfile = "FROM scratch\nADD base.tar /\nENV PATH=/bin\n"
        spec = BuildSpec((BASE,), None, None, dockerfile, labels={name: value})
        context = _tar({"Dockerfile": dockerfile.encode(), "base.tar": _root_filesystem(find_busybox())})

        async def build(engine: Engine) -> None:
            async with engine.build_image(
                spec, context=lambda: iter([context]), dockerfile_name="Dockerfile"
            ) as events:
                async for event in events:
                    if event.kind == "error":
                        raise NotReadyError(f"the base image cannot be built: {event.text}")

        self._do(build)

    def clean(self) -> None:
        """Remove everything: the folder is the demo's own."""

        async def clean(engine: Engine) -> None:
            for row in await engine.list_containers(all=True):
                await engine.remove_container(row.id, force=True, volumes=True)

        self._do(clean)


def outside(engine: str, address: str) -> Outside:
    """Return the program that reaches an engine where the server found it, whatever the user's own settings of it are."""
    if engine == "embedded":
        return Stranger(engine, (address.removeprefix("file://"),))
    program = shutil.which(engine)
    if program is None:
        raise NotReadyError(f"there is no {engine} program. {_INSTALL[engine]}")
    remote = ("--remote", "--url") if engine == "podman" else ("--host",)
    return Outside(engine, (program, *remote, address))


_INSTALL = {
    "docker": "Run: sudo scripts/back-ends (or install Docker your system's way)",
    "podman": "Run: sudo scripts/back-ends (or install Podman your system's way)",
    "embedded": "Run: sudo apt-get install crun conmon slirp4netns",
}


def require_engine(engine: str | None) -> None:
    """See that the engine is there; None: any. Raises NotReadyError with what brings it."""
    if engine == "docker":
        _require_docker()
    elif engine == "embedded":
        _require_runtime()
    elif engine is None and _has_runtime():
        return
    elif shutil.which("podman") is None and (engine == "podman" or not _has_docker()):
        raise NotReadyError(f"there is no {engine or 'docker and no podman'} program. {_INSTALL['podman']}")


def _require_runtime() -> None:
    from codomyrmex_containerization.engines.embedded import tiers

    if not tiers.may_work():
        raise NotReadyError(f"this user may make no containers here. {_INSTALL['embedded']}, or as root")


def _has_runtime() -> bool:
    """Say whether containers can be made here; for root, who can have the quicker programs, whether they are there."""
    from codomyrmex_containerization.engines.embedded import tiers

    runtimes = (shutil.which(name, path="/usr/bin:/usr/sbin:/usr/local/bin") for name in ("crun", "runc", "youki"))
    return tiers.may_work() and (os.geteuid() != 0 or (shutil.which("conmon") is not None and any(runtimes)))


def _has_docker() -> bool:
    try:
        _require_docker()
    except NotReadyError:
        return False
    return True


def _require_docker() -> None:
    program = shutil.which("docker")
    if program is None:
        raise NotReadyError(f"there is no docker program. {_INSTALL['docker']}")
    asked = ("version", "--format", "{{.Server.Version}}")
    if Outside("docker", (program,))(*asked, check=False):
        return
    if any(outside("docker", f"unix://{path}")(*asked, check=False) for path in _sockets() if os.path.exists(path)):
        return
    standard = "/var/run/docker.sock"
    if "DOCKER_HOST" not in os.environ and os.path.exists(standard) and not os.access(standard, os.W_OK):
        raise NotReadyError(
            "you may not use the Docker engine here. Run: sudo usermod --append --groups docker $USER, and log in again"
        )
    raise NotReadyError("no Docker engine answers. Start it, for instance with: sudo scripts/back-ends")


def _sockets() -> Iterator[str]:
    yield "/var/run/docker.sock"
    yield f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'}/docker.sock"
    yield str(Path.home() / ".docker/run/docker.sock")


def make_base_image(engine: Outside) -> None:
    """Import a static busybox as an image, unless it is there: no registry is needed."""
    if isinstance(engine, Stranger):
        engine.make_base_image()
        return
    if engine("image", "inspect", "--format", "{{.Id}}", BASE, check=False):
        return
    busybox = find_busybox()
    changes = ("ENV PATH=/bin", f"LABEL {LABEL}")
    engine(
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


def is_ready(engine: str | None) -> bool:
    """Say whether everything is there that the demo needs."""
    try:
        require_engine(engine)
        find_busybox()
        if engine == "embedded" and not _has_runtime():
            return False
    except NotReadyError:
        return False
    return True


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


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
    """The steps as they are told, and how many of them went otherwise than expected.

    `lacks` is what the engine cannot do here, by its own word.
    """

    client: Client
    lacks: Mapping[str, str] = field(default_factory=dict)
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


async def tell(story: Story, engine: Outside, project: Path) -> None:
    """Go through the rest of BUILD, and EXECUTE."""
    await _build(story, project)
    say(paint("\nEXECUTE", "1;35"))
    await _run(story)
    await _serve(story, engine)
    await _stay_within_bounds(story, engine)
    say(paint("\nVERIFY", "1;35"))
    say("     Scanning images is not there yet.")


async def look(story: Story, wanted: str | None) -> Outside:
    """Ask what is there, and return the program that reaches the default engine from outside."""
    say(paint("\nBUILD", "1;35"))
    answer = await story.step(
        "What is there?",
        "container_runtime_status",
        {},
        (
            f"{_PROPER.get(wanted or '', 'an engine')} answers, and is the default",
            lambda answer: succeeds(answer) and _is_default(answer, wanted),
        ),
    )
    default = _default(answer)
    if not default.get("available"):
        raise NotReadyError(
            f"{default.get('name', 'no engine')} does not answer: {default.get('reason')} {default.get('remedy')}"
        )
    story.lacks = {
        what: why.rstrip(")") for what, _, why in (one.partition(" (") for one in default.get("lacks") or ())
    }
    kind = str(default.get("product") or default["name"])
    return outside(kind, str(default["endpoint"]))


_PROPER = {"docker": "Docker", "podman": "Podman", "embedded": "the embedded engine"}


def _default(answer: Answer) -> Mapping[str, Any]:
    return next((row for row in answer.data.get("engines", ()) if row.get("default")), {})


def _is_default(answer: Answer, wanted: str | None) -> bool:
    default = _default(answer)
    return default["available"] is True and default["name"] == (wanted or default["name"])


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


async def _serve(story: Story, engine: Outside) -> None:
    limit = {} if "limits" in story.lacks else {"memory": "64m"}
    started = await story.step(
        "Start a web server, leave it running",
        "container_run",
        {"image": HELLO, "name": WEB, "detach": True, "ports": ["8080"], **limit},
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
            "it is there",
            lambda answer: succeeds(answer) and [row["name"] for row in answer.data["containers"]] == [WEB],
        ),
        _told_usage(story),
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
    story.judge("The web server", [("the engine has it no more", not engine.has_container(WEB))])


def _told_usage(story: Story) -> Expectation:
    """What a list says of usage: the numbers, or that there are none here and why."""
    if "usage" in story.lacks:
        return (
            "usage cannot be had here, and it says why",
            lambda answer: story.lacks["usage"] in answer.text and "memory_bytes" not in answer.data["containers"][0],
        )
    limit = None if "limits" in story.lacks else 64 * 2**20
    return (
        "it says how much memory it uses" + (", and its limit" if limit else ""),
        lambda answer: (
            answer.data["containers"][0]["memory_bytes"] > 0
            and limit in (None, answer.data["containers"][0]["memory_limit_bytes"])
        ),
    )


async def _stay_within_bounds(story: Story, engine: Outside) -> None:
    engine("run", "--detach", "--name", STRANGER, BASE, "sleep", "600")
    say(f"\n     Meanwhile somebody else starts a container: {engine.name} run --name {STRANGER} ...")
    refused = await story.step(
        "Removing a stranger's container needs a person's word",
        "container_remove",
        {"container": STRANGER, "force": True},
        ("the answer is confirmation_required", lambda answer: answer.code == "confirmation_required"),
        ("it says what would be lost", lambda answer: STRANGER in answer.text and "running processes" in answer.text),
    )
    story.judge("The stranger's container", [("it is still there", engine.has_container(STRANGER))])
    token = str(refused.error.get("confirm_token", ""))
    await story.step(
        "The user agrees: the same call with the token",
        "container_remove",
        {"container": STRANGER, "force": True, "confirm_token": token},
        ("it is removed", succeeds),
    )
    story.judge("The stranger's container", [("the engine has it no more", not engine.has_container(STRANGER))])
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


# By these the server finds the engines that the user's own programs find.
_PASSED_ON = ("DOCKER_", "CONTAINER_", "CONTAINERS_", "XDG_RUNTIME_DIR", "TMPDIR")


def server(folder: Path, wanted: str | None) -> StdioServerParameters:
    """The server as a client would start it, with the settings that hold by default and folders of the demo's own."""
    (folder / "config.toml").touch(mode=0o600)
    own = {f"{kind}_DIR": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CACHE")} | {
        "CONFIG": str(folder / "config.toml")
    }
    if wanted is not None:
        own["ENGINE"] = wanted
    passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    return StdioServerParameters(
        command=str(Path(sys.executable).with_name("codomyrmex-containerization")),
        env=passed | {f"CODOMYRMEX_CONTAINERIZATION_{name}": value for name, value in own.items()},
        cwd=folder / "project",
    )


async def demonstrate(wanted: str | None, folder: Path) -> list[str]:
    """Tell the story and return what went otherwise than expected."""
    project = folder / "project"
    project.mkdir()
    (project / "index.html").write_text(PAGE)
    with (folder / "server.log").open("w+") as log:
        try:
            async with Client(
                stdio_client(server(folder, wanted), errlog=log), read_timeout_seconds=REQUEST_SECONDS
            ) as client:
                names = [tool.name for tool in (await client.list_tools()).tools]
                say(f"A client started the server over stdio; it offers {', '.join(names)}.")
                story = Story(client)
                engine = await look(story, wanted)
                engine.clean()
                try:
                    make_base_image(engine)
                    await tell(story, engine, project)
                finally:
                    engine.clean()
                return story.failed
        finally:
            log.seek(0)
            words = log.read().splitlines()[-40:]
            if words:
                say("\nThe last lines of the server's log:\n" + indent("\n".join(words), "|"))


def end_service(folder: Path) -> None:
    """End the Podman service that the server started in its folder: else it would wait for its idle time-out."""
    end = time.monotonic() + 10
    while (running := list(_services(folder))) and time.monotonic() < end:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)


def _services(folder: Path) -> Iterator[int]:
    socket = f"unix://{folder}/".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(one.startswith(socket) for one in (entry / "cmdline").read_bytes().split(b"\0")):
                yield int(entry.name)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for another demo of this user to end: both would use the same names."""
    with (Path(tempfile.gettempdir()) / f"cxc-demo-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cxc-demo-") as name:
        folder = Path(os.path.realpath(name))
        try:
            yield folder
        finally:
            end_service(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--engine",
        choices=("docker", "podman", "embedded"),
        help="the engine to work on; default: the one that the server takes",
    )
    parser.add_argument("--is-ready", action="store_true", help=argparse.SUPPRESS)
    return parser


def _innermost(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """Return the exit status: 0 when everything was as expected, 1 when something was not, 2 when something is missing."""
    given = _parser().parse_args()
    if given.is_ready:
        return 0 if is_ready(given.engine) else 1
    began = time.monotonic()
    try:
        require_engine(given.engine)
        with one_at_a_time(), _own_folder() as folder:
            failed = anyio.run(demonstrate, given.engine, folder)
    except (NotReadyError, ExceptionGroup, MCPError, OSError) as error:
        cause = _innermost(error)
        if isinstance(cause, NotReadyError):
            print(f"demo: {cause}", file=sys.stderr)
            return 2
        print(f"demo: the server could not be talked to: {cause}", file=sys.stderr)
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
