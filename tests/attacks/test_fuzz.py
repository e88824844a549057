"""Does the server outlive nonsense, and does no nonsense open a door? Calls and frames made at random, always the same ones."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.dispatch import application
from codomyrmex_containerization.engines import guard
from tests import backends, tally
from tests.attacks import driver
from tests.attacks.driver import Pairs, Text, call_frame, encode, frame
from tests.backends import DockerCommandLine
from tests.server import wire
from tests.server.engines import OwnEngine
from tests.server.faces import ERAS, Era

CALLS = 3_600
FRAMES = 2_000
AT_ONCE = 8
SECRET = "tq7Vz0pLk2Xw9RbN4sYd"
IMAGE = backends.BUSYBOX_IMAGE
# It ends when it is told to: `stop` need not wait for its time limit.
PATIENT = 'trap "exit 0" TERM; while :; do sleep 1 & wait; done'

STRINGS: tuple[str, ...] = (
    "", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\uffff", "--help", "--privileged", "-v", "--rm=x", "-", "--",
    "../../../../etc/passwd", "..", ".", "/", "/etc", "/etc/passwd", "/proc/self/environ", "/var/run/docker.sock",
    "~", "~/.ssh", "~/.ssh/id_ed25519", "~root/.ssh", "../outside", "../outside/file", "%s%n%x", "$(reboot)", "`id`",
    "; rm -rf /", "\x1b[31mred", "\u202etxt", "\r\n", "é" * 300, "\U0001d54f" * 50, "precious", "localhost/precious:1",
    "precious:/etc/passwd", "precious-root", "host", "container:precious-root", "none", guard.LABEL_HOST,
    "sha256:" + "0" * 64, "0" * 64, "f", "[1,2", '{"a":1}', "[]", "null", "true", "NaN", "1e309", "-1", "0", "9" * 400,
    "localhost:1/none:1", "LOCALHOST/UPPER:1", "a@sha256:zz", "always", "ALL", "SYS_ADMIN", "0.0.0.0:80:80", "80:80:80:80",
    "/:/host", "/var/run/docker.sock:/s", "../outside:/o", "x:/y:z", "tmpfs:/t:-1", "env:HOME", "file:/etc/shadow",
    "FROM scratch", "# syntax=evil/frontend\nFROM scratch", "ONBUILD", "\\", "'", '"', "a b 'c",
)  # fmt: skip
VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 2**31, 2**63, 2**64, -(2**63), 1e308, float("nan"), float("inf"),
    float("-inf"), Text("1e999"), Text("9" * 400), Text("9" * 5000), Text("-0"), [], {}, [[]], [{}], [None], {"": ""},
    {"a": {"b": {}}}, {"--flag": "x"}, [0] * 600, {str(number): "x" for number in range(600)},
    Text("[" * 60 + "]" * 60), Text('{"a":' * 60 + "1" + "}" * 60), Text("[" * 50_000 + "]" * 50_000),
    Text('{"a":1,"a":[2]}'), Text(r'"\ud83d"'), Text(r'"\u0000"'),
)  # fmt: skip
NAMES = (
    "", "--flag", "-v", "__class__", "self", "ctx", "context", "confirm_token", "_meta", "model_config", "container",
    "image", "engine", "all", "a" * 300, "\ud800", "naïve", "Container", "force", "privileged", "commnd",
)  # fmt: skip

# What a sensible client might send: some succeed, some are refused, some ask.
_CONTAINERS = ("precious", "precious-root", "fuzz-a", "fuzz-b", "nobody", "f")
_IMAGES = (IMAGE, "localhost/precious:1", "localhost/fuzz-a:latest", "localhost:1/none:1")
_NETWORKS = ("fuzz-network", "precious", "bridge", "host")
_REMOTE = ("localhost:1/none:1", "none", "localhost:1/../none", f"localhost:1/none@sha256:{'0' * 64}")
_SOON = (0.1, 0, 1)
PLAUSIBLE: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "container_runtime_status": {"engine": ("docker", None)},
    "container_build": {
        "image_name": ("localhost/fuzz-a", "localhost/fuzz-b", "localhost/precious"),
        "tag": ("latest", "2"),
        "dockerfile_text": (f"FROM {IMAGE}\n", f"FROM {IMAGE}\nENV A=1\n", "FROM scratch\nRUN x\n", f"FROM {IMAGE}\nUSER\n"),
        "dockerfile_path": (".", "../outside", "~/.ssh"),
        "context": (".", "../outside", "/etc"),
        "labels": ({"a": "b"}, {guard.LABEL_RUN: "forged"}),
        "build_args": ({"TOKEN": SECRET}, {"BUILDKIT_SYNTAX": "evil/frontend"}),
        "secrets": ({"a": "env:HOME"}, {"a": "file:../outside/file"}),
        "target": ("final",),
        "timeout_seconds": (30,),
    },
    "container_list": {"all": (True, False), "name": ("fuzz",), "limit": (1, 500), "status": ("running",), "usage": (False,)},
    "container_run": {
        "image": _IMAGES,
        "command": ("true", ["true"], ["sh", "-c", "exit 3"]),
        "name": ("fuzz-a", "fuzz-b", "precious"),
        "env": ({"API_KEY": SECRET},),
        "ports": (["80"], ["0.0.0.0::80"]),
        "mounts": (["fuzz-volume:/v"], ["../outside:/o"], ["~/.ssh:/s"], ["/:/host"], ["/var/run/docker.sock:/s"]),
        "network": ("none", "host", "container:precious-root"),
        "user": ("0", "1000:1000"),
        "detach": (True, False),
        "timeout_seconds": (1,),
        "memory": ("64m", 67108864),
        "privileged": (True, False),
        "cap_add": (["SYS_ADMIN"], ["CHOWN"]),
        "restart": ("no", "on-failure:1"),
        "labels": ({"a": "b"}, {guard.LABEL_LIFETIME: "call"}),
        "pull_policy": ("never", "missing"),
        "keep": (True, False),
    },
    "container_logs": {"container": _CONTAINERS, "tail": (1, 5000), "grep": ("a|b",), "follow_seconds": _SOON, "since": ("10m",)},
    "container_remove": {"container": _CONTAINERS, "force": (True, False), "volumes": (True, False), "confirm_token": ("A" * 16,)},
    "container_inspect": {"container": _CONTAINERS},
    "container_exec": {
        "container": _CONTAINERS,
        "command": ("true", ["id"], "touch /tmp/x"),
        "stdin": ("x",),
        "user": ("0", "-1"),
        "workdir": ("/", "/none"),
        "env": ({"API_KEY": SECRET},),
        "timeout_seconds": (1,),
        "confirm_token": ("A" * 16,),
    },
    "container_control": {
        "container": _CONTAINERS,
        # Mostly what lets it run again: of one that is stopped nobody learns whether commands in it are safe.
        "action": ("start", "start", "restart", "restart", "stop", "unpause", "kill"),
        "timeout_seconds": (0, 1),
        "signal": ("TERM", "KILL"),
    },
    "container_copy": {
        "source": ("precious:/etc/passwd", "./in.txt", "../outside/file", "~/.ssh/id_ed25519", "precious:/etc"),
        "target": ("./out.txt", "precious.txt", "../outside/file", "~/.ssh/id_ed25519", "precious:/tmp/in", "precious-root:/tmp/in"),
        "confirm_token": ("A" * 16,),
    },
    "image_list": {"name": ("fuzz", "precious"), "dangling": (True, False), "limit": (1, 500)},
    "image_inspect": {"image": _IMAGES},
    "image_tag": {"source": _IMAGES, "target": ("localhost/fuzz-a:3", "localhost/precious:1"), "confirm_token": ("A" * 16,)},
    "image_remove": {"image": _IMAGES, "force": (True, False), "confirm_token": ("A" * 16,)},
    "volume_list": {"name": ("fuzz", "precious"), "unused": (True, False), "measure": (True, False), "limit": (1, 500)},
    "volume_create": {
        "name": ("fuzz-volume", "fuzz-other", "precious"),
        "driver": ("local", "none"),
        "options": (
            {"type": "tmpfs", "device": "tmpfs"}, {"type": "none", "o": "bind", "device": "/"}, {"type": "cifs", "o": f"password={SECRET}"},
        ),
        "labels": ({"a": "b"}, {guard.LABEL_RUN: "forged"}),
    },
    "volume_remove": {"volume": ("fuzz-volume", "fuzz-other", "precious", "nobody"), "confirm_token": ("A" * 16,)},
    "network_list": {"name": ("fuzz", "precious"), "unused": (True, False), "limit": (1, 500)},
    "network_create": {
        "name": ("fuzz-network", "precious", "host"),
        "driver": ("bridge", "host", "macvlan", "none"),
        "internal": (True,),
        "subnet": ("10.77.1.0/24", "0.0.0.0/0"),
        "labels": ({"a": "b"}, {guard.LABEL_HOST: "forged"}),
    },
    "network_remove": {"network": ("fuzz-network", "precious", "bridge", "host"), "confirm_token": ("A" * 16,)},
    "network_connect": {"network": _NETWORKS, "container": _CONTAINERS, "aliases": (["db"],), "confirm_token": ("A" * 16,)},
    "network_disconnect": {"network": _NETWORKS, "container": _CONTAINERS, "force": (True, False), "confirm_token": ("A" * 16,)},
    "engine_prune": {
        "kind": ("containers", "images", "volumes", "networks"),
        "older_than": ("1h", "0s"),
        "dry_run": (True, False),
        "confirm_token": ("A" * 16,),
    },
    "image_load": {
        "path": ("./image.tar", "./out.tar", "precious.txt", "../outside/file", "~/.ssh/id_ed25519", "/etc"),
        "tag": ("localhost/fuzz-a:4", "localhost/precious:1"),
        "confirm_token": ("A" * 16,),
    },
    "image_save": {
        "image": (IMAGE, "localhost/precious:1"),
        "path": ("./out.tar", "./out-2.tar", "precious.txt", "../outside/file", "~/.ssh/id_ed25519"),
        "format": ("docker-archive", "oci"),
        "confirm_token": ("A" * 16,),
    },
    "image_import": {
        "path": ("./root.tar", "./root", "precious.txt", "../outside/file", "~/.ssh", "/etc"),
        "tag": ("localhost/fuzz-b:5", "localhost/precious:1"),
        "confirm_token": ("A" * 16,),
    },
    "container_export": {
        "container": ("precious", "fuzz-a", "nobody"),
        "path": ("./out-3.tar", "precious.txt", "../outside/file", "~/.ssh/id_ed25519"),
        "confirm_token": ("A" * 16,),
    },
    "container_update": {
        "container": _CONTAINERS, "memory": ("64m", 67108864), "cpus": (0.5,), "pids_limit": (50,),
    },
    "container_create": {
        "image": _IMAGES, "name": ("fuzz-a", "fuzz-c", "precious"), "command": ("true",),
        "mounts": (["../outside:/o"], ["/:/host"], ["/var/run/docker.sock:/s"]), "network": ("none", "host"),
        "pull_policy": ("never",), "restart": ("no", "always"), "labels": ({guard.LABEL_LIFETIME: "call"},),
    },
    "container_rename": {
        "container": ("precious", "fuzz-a", "fuzz-c"), "name": ("fuzz-a", "fuzz-c", "precious", "precious-2"),
        "confirm_token": ("A" * 16,),
    },
    "container_top": {"container": _CONTAINERS, "limit": (1, 500)},
    "container_diff": {"container": _CONTAINERS, "path": ("/etc", "etc", "/none"), "limit": (1, 500)},
    "container_commit": {
        "container": _CONTAINERS, "tag": ("localhost/fuzz-a:6", "localhost/precious:1"), "message": (SECRET,),
        "confirm_token": ("A" * 16,),
    },
    "container_import": {
        "path": ("./root.tar", "./image.tar", "../outside/file", "~/.ssh"), "name": ("fuzz-d", "precious"),
        "confirm_token": ("A" * 16,),
    },
    "registry_pull": {"image": _IMAGES, "platform": ("linux/arm64", "x")},
    "registry_push": {"image": _IMAGES, "target": ("localhost:1/none:1", "none"), "confirm_token": ("A" * 16,)},
    "registry_inspect": {"reference": _REMOTE, "platform": ("linux/arm64",), "detail": (True, False)},
    "registry_list": {"repository": _REMOTE, "registry": ("localhost:1", "docker.io"), "filter": ("1.*", "["), "limit": (1, 500)},
    "registry_copy": {"source": _REMOTE, "target": _REMOTE, "all_platforms": (True, False), "confirm_token": ("A" * 16,)},
    "registry_delete": {"reference": _REMOTE, "confirm_token": ("A" * 16,)},
    "container_events": {"since": ("1m",), "filters": ({"container": "precious"}, {"type": "image"}), "follow_seconds": _SOON},
}  # fmt: skip
# On another engine than this one, and with a registry, which this server may not read from: none is to be waited for.
ELSEWHERE = frozenset(
    {"container_import", *(f"registry_{one}" for one in ("pull", "push", "inspect", "list", "copy", "delete"))}
)
REQUIRED = {
    name: [field for field, info in spec.arguments.model_fields.items() if info.is_required()]
    for name, spec in application.tools().items()
}


@dataclass(frozen=True, slots=True)
class Treasure:
    """What nobody may touch, and how it was before."""

    docker: DockerCommandLine
    before: driver.Holdings
    folder: Path
    files: Mapping[str, bytes]
    root_state: str
    root_changes: str

    def assert_untouched(self) -> None:
        """Compare with what there is now."""
        try:
            self._compare()
        except AssertionError:
            tally.got_through()
            raise

    def _compare(self) -> None:
        now = driver.holdings(self.docker)
        assert self.before.containers.keys() <= now.containers.keys(), "a stranger's container was removed"
        assert {name: now.names.get(name) for name in self.before.names} == self.before.names, "a name was moved"
        assert self.before.volumes.keys() <= now.volumes.keys()
        assert self.before.networks.keys() <= now.networks.keys(), "a stranger's network was removed"
        for kind in ("containers", "images", "volumes", "networks"):
            had, has = getattr(self.before, kind), getattr(now, kind)
            for one in has.keys() - had.keys():
                assert guard.LABEL_HOST in has[one], f"one of the {kind} was created without our label: {one}"
        assert _root_state(self.docker) == self.root_state, "a container that may not be written to was changed"
        assert self.docker(["diff", "precious-root"]).stdout == self.root_changes
        assert _treasured_files(self.folder) == self.files, "a file of the host was changed"


@pytest.fixture
def treasure(attacked_engine: OwnEngine, tmp_path: Path, private_folders: Path, session_label: str) -> Any:
    """Strangers' containers, an image, a volume, a network, and files of the host."""
    docker = attacked_engine.docker
    run = ["run", "--detach", "--label", session_label]
    docker([*run, "--name", "precious", IMAGE, "sh", "-c", PATIENT])
    socket = f"{attacked_engine.socket_path}:/var/run/docker.sock"
    docker([*run, "--name", "precious-root", "--volume", socket, IMAGE, "sleep", "600"])
    docker(["commit", "--change", "LABEL precious=1", "--change", 'CMD ["true"]', "precious", "localhost/precious:1"])
    docker(["volume", "create", "precious"])
    docker(["network", "create", "precious"])
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("outside\n")
    (private_folders / ".ssh").mkdir()
    (private_folders / ".ssh" / "id_ed25519").write_text(f"{SECRET}\n")
    (tmp_path / "work" / "precious.txt").write_text("precious\n")
    (tmp_path / "work" / "in.txt").write_text("in\n")
    # Without a name: to load it takes nothing from anybody.
    id = docker(["image", "inspect", "--format", "{{.Id}}", IMAGE]).stdout.strip()
    docker(["save", "--output", str(tmp_path / "work" / "image.tar"), id])
    docker(["export", "--output", str(tmp_path / "work" / "root.tar"), "precious"])
    (tmp_path / "work" / "root" / "etc").mkdir(parents=True)
    (tmp_path / "home").symlink_to(private_folders)
    changes = docker(["diff", "precious-root"]).stdout
    yield Treasure(docker, driver.holdings(docker), tmp_path, _treasured_files(tmp_path), _root_state(docker), changes)
    everything = docker(["ps", "--all", "--quiet"]).stdout.split()
    docker(["rm", "--force", "--volumes", *everything])
    docker(["network", "rm", "precious"])
    own = docker(["network", "ls", "--quiet", "--filter", f"label={guard.LABEL_HOST}"]).stdout.split()
    if own:
        docker(["network", "rm", *own])
    docker(["volume", "rm", *docker(["volume", "ls", "--quiet"]).stdout.split()], check=False)
    unused = [name for name in driver.holdings(docker).names if name != IMAGE]
    docker(["image", "rm", "--force", *unused])


def _treasured_files(folder: Path) -> dict[str, bytes]:
    single = {name: (folder / "work" / name).read_bytes() for name in ("precious.txt", "in.txt")}
    return single | driver.files_below(folder / "outside") | driver.files_below(folder / "home" / ".ssh")


def _root_state(docker: DockerCommandLine) -> str:
    return docker(["inspect", "--format", "{{json .State}} {{.RestartCount}}", "precious-root"]).stdout


def _settings(folder: Path) -> dict[str, Any]:
    paths = json.dumps([str(folder / "work")])
    return {
        "buildx": "off",
        "toolsets": '["all"]',
        "policy__allowed_paths": paths,
        "policy__pull_registries": '["none.invalid"]',
    }


# ------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.attack("fuzzed calls")
async def test_server_outlives_fuzzed_calls_and_none_of_them_opens_a_door(treasure: Treasure) -> None:
    rng = random.Random(20_260_728)
    codes: Counter[str] = Counter()
    by_tool: Counter[str] = Counter()
    async with wire.served("modern", **_settings(treasure.folder)) as served:
        for name in ("fuzz-a", "fuzz-b"):
            driver.answer_of(await served.call("container_run", image=IMAGE, command="true", name=name, detach=True))
        for start in range(0, CALLS, AT_ONCE):
            sent: dict[int, tuple[str, str]] = {}
            for number in range(start, start + AT_ONCE):
                tool, arguments = _fuzzed_call(rng, number)
                line = call_frame("modern", driver.FIRST_ID + number, tool, arguments)
                await driver.send(served, line)
                tally.tried()
                if driver.is_message(line):
                    sent[driver.FIRST_ID + number] = (str(tool), line.decode("utf-8", "replace")[:600])
                else:
                    codes["no message"] += 1
            for answer in await driver.answers(served, {id: said for id, (_, said) in sent.items()}):
                tool, said = sent[answer["id"]]
                code = driver.code_of(answer)
                assert code in driver.CODES or code in ("success", "protocol -32602"), (answer, said)
                codes[code] += 1
                by_tool[tool] += code == "success"
        driver.answer_of(await served.call("container_list", all=True))
        assert served.junk == []
        said = served.said()
    treasure.assert_untouched()
    assert "Traceback" not in said, said[:3000]
    tally.got_through(said.count(SECRET))
    assert SECRET not in said
    # Attacks that never come past the first check would prove little.
    assert codes["success"] >= 100, codes
    assert codes["refused"] >= 50, codes
    assert codes["confirmation_required"] >= 20, codes
    assert not [tool for tool in PLAUSIBLE.keys() - ELSEWHERE if not by_tool[tool]], by_tool


def test_every_tool_and_argument_is_fuzzed() -> None:
    assert PLAUSIBLE.keys() == application.tools().keys()


@pytest.mark.attack("file names that are no text")
async def test_file_names_that_are_no_text_do_not_end_the_server(treasure: Treasure) -> None:
    make = "mkdir /f; cd /f; printf 'mkfifo \\377-pipe; echo x > \\376-file; ln -s /etc/passwd \\375-link' | sh"
    treasure.docker(["exec", "precious", "sh", "-c", make])
    (treasure.folder / "work" / "there").mkdir()
    (treasure.folder / "work" / "there" / "f").mkdir()
    (treasure.folder / "work" / "there" / "f" / "\udcfe-file").mkdir()
    for era in ERAS:
        async with wire.served(era, **_settings(treasure.folder)) as served:
            tally.tried()
            made = driver.answer_of(await served.call("container_copy", source="precious:/f", target=f"./new-{era}"))
            assert len(made["skipped"]) == 2
            await served.call("container_copy", source=f"./new-{era}", target="precious:/tmp/")
            asked = await served.call("container_copy", source="precious:/f", target="./there")
            token = driver.error_of(asked)["confirm_token"]
            failed = await served.call("container_copy", source="precious:/f", target="./there", confirm_token=token)
            assert driver.error_of(failed)["code"] == "conflict"
            driver.answer_of(await served.call("container_list"))
            assert served.junk == []
            assert "Traceback" not in served.said()


def _fuzzed_call(rng: random.Random, number: int) -> tuple[object, object]:
    tool = rng.choice(list(PLAUSIBLE))
    kind = rng.random()
    if kind < 0.03:
        return _anything(rng), {}
    if kind < 0.05:
        return tool, _anything(rng)
    if kind < 0.22:
        pairs = [(rng.choice([*NAMES, *PLAUSIBLE[tool]]), _anything(rng)) for _ in range(rng.randrange(6))]
        return tool, Pairs(pairs)
    arguments = _plausible(rng, tool)
    if kind < 0.65:
        for name in rng.sample(sorted(PLAUSIBLE[tool]), k=min(rng.randrange(1, 4), len(PLAUSIBLE[tool]))):
            arguments[name] = _anything(rng, large=number % 100 == 0)
    return tool, Pairs(list(arguments.items()))


def _plausible(rng: random.Random, tool: str) -> dict[str, object]:
    known = PLAUSIBLE[tool]
    # A build without a Dockerfile comes to nothing.
    chosen = [
        name for name in known if name in REQUIRED[tool] or rng.random() < (0.7 if name == "dockerfile_text" else 0.12)
    ]
    return {name: rng.choice(known[name]) for name in chosen}


def _anything(rng: random.Random, *, large: bool = False) -> object:
    if large:
        return rng.choice([rng.choice(STRINGS[7:20]), "x"]) * 1_000_000
    match rng.randrange(5):
        case 0 | 1:
            return rng.choice(STRINGS)
        case 2:
            return rng.choice(VALUES)
        case 3:
            return [rng.choice(STRINGS) for _ in range(rng.randrange(4))]
        case _:
            return {rng.choice(STRINGS): rng.choice([*STRINGS, *VALUES]) for _ in range(rng.randrange(3))}


# ------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.attack("malformed frames")
@pytest.mark.parametrize("era", ERAS)
async def test_server_outlives_malformed_frames(era: Era, treasure: Treasure) -> None:
    rng = random.Random(f"frames of the {era} era")
    async with wire.served(era, **_settings(treasure.folder)) as served:
        for number in range(FRAMES // len(ERAS)):
            await driver.send(served, _malformed(rng, era, number))
            tally.tried()
            if number % 50 == 49:
                driver.answer_of(await served.call("container_list", all=True))
        assert (await served.request("tools/list", {}))["result"]["tools"]
        _assert_no_defect(served)
    treasure.assert_untouched()


@pytest.mark.attack("malformed frames before the handshake")
async def test_server_outlives_malformed_frames_before_the_handshake(treasure: Treasure) -> None:
    rng = random.Random("before the handshake")
    for era in ERAS:
        async with wire.launched(era, **_settings(treasure.folder)) as served:
            for number in range(60):
                await driver.send(served, _malformed(rng, era, number, binding=False))
                tally.tried()
            await served.begin()
            driver.answer_of(await served.call("container_list"))
            _assert_no_defect(served)
    treasure.assert_untouched()


def _assert_no_defect(served: wire.Wire) -> None:
    assert served.junk == []
    for answer in served.answers.values():
        assert answer.get("error", {}).get("code") != -32603, answer
        assert "internal_error" not in json.dumps(answer)[:2000], answer
    assert "Traceback" not in served.said(), served.said()[:3000]
    assert SECRET not in served.said()


def _malformed(rng: random.Random, era: Era, number: int, *, binding: bool = True) -> bytes:
    if number % 250 == 249:
        return b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * 4_000_000
    make = rng.choice(_MAKERS)
    line = make(rng, era)
    if not binding and (b'"initialize"' in line or b"server/discover" in line):
        return line[:-2]
    return line.replace(b"\n", b" ")


def _good(rng: random.Random, era: Era) -> bytes:
    tool = rng.choice(("container_list", "container_remove", "container_inspect", "image_remove"))
    return call_frame(era, _id(rng), tool, {"container": "precious", "image": IMAGE} if rng.random() < 0.5 else {})


def _id(rng: random.Random) -> int:
    return rng.randrange(driver.FIRST_ID, 2 * driver.FIRST_ID)


def _cut(rng: random.Random, era: Era) -> bytes:
    line = _good(rng, era)
    return line[: rng.randrange(len(line))]


def _torn(rng: random.Random, era: Era) -> bytes:
    line = bytearray(_good(rng, era))
    for _ in range(rng.randrange(1, 6)):
        line[rng.randrange(len(line))] = rng.randrange(256)
    return bytes(line)


def _binary(rng: random.Random, era: Era) -> bytes:
    return rng.randbytes(rng.randrange(400))


def _strange_id(rng: random.Random, era: Era) -> bytes:
    ids: tuple[object, ...] = (
        None,
        True,
        1.5,
        -1,
        [],
        {},
        "",
        "x" * 5000,
        2**70,
        Text("1e400"),
        Text("9" * 5000),
        "\0",
        Text(r'"\ud800"'),
    )
    return call_frame(era, rng.choice(ids), "container_remove", {"container": "precious", "force": True})


def _same_id(rng: random.Random, era: Era) -> bytes:
    return call_frame(era, driver.FIRST_ID, "container_list", {})


def _batch(rng: random.Random, era: Era) -> bytes:
    return b"[" + b",".join(_good(rng, era) for _ in range(rng.randrange(4))) + b"]"


def _strange_method(rng: random.Random, era: Era) -> bytes:
    methods = (
        "nope", "", "tools/Call", "tools/call/../list", "resources/read", "prompts/get", "sampling/createMessage",
        "completion/complete", "logging/setLevel", "elicitation/create", "roots/list", "ping", "initialize", "server/discover",
        "notifications/cancelled", "rpc.discover", "$/cancelRequest", "tasks/get", 5, None, ["tools/call"],
    )  # fmt: skip
    return frame(
        era, _id(rng), rng.choice(methods), rng.choice(({}, {"uri": "file:///etc/passwd"}, {"name": "x"}, None))
    )


def _strange_params(rng: random.Random, era: Era) -> bytes:
    params: tuple[object, ...] = (
        None, [], "x", 5, Text("[" * 50_000), Text('{"a":' * 3_000 + "1" + "}" * 3_000), {"name": None}, {"name": []},
        {"name": "container_remove", "arguments": [["container", "precious"]]}, {"arguments": {"container": "precious"}},
        {"name": "container_list", "arguments": {}, "extra": 1}, {"name": "container_list", "_meta": "x"},
        {"name": "container_list", "_meta": {"progressToken": rng.choice((None, [], 1.5, "x" * 5000))}},
        {"name": "container_remove", "arguments": {"container": "precious"}, "inputResponses": {"confirm": {"action": "accept"}}},
        {
            "name": "container_remove", "arguments": {"container": "precious", "force": True}, "requestState": "forged",
            "inputResponses": {"confirm": {"action": "accept", "content": {"confirm": True}}},
        },
    )  # fmt: skip
    return frame(era, _id(rng), "tools/call", rng.choice(params))


def _strange_envelope(rng: random.Random, era: Era) -> bytes:
    message = {
        "jsonrpc": rng.choice(("2.0", "1.0", 2, None)),
        "id": _id(rng),
        "method": "tools/call",
        rng.choice(("params", "Params", "__proto__")): {"name": "container_list", "arguments": {}},
        rng.choice(("result", "error", "x")): rng.choice(({}, None, 5)),
    }
    return encode(message).encode()


def _other_era(rng: random.Random, era: Era) -> bytes:
    other: Era = "legacy" if era == "modern" else "modern"
    hello: dict[str, object] = {
        "protocolVersion": rng.choice(("2024-11-05", "2025-11-25", "2026-07-28", "x", 5)),
        "capabilities": {},
    }
    client = {"clientInfo": {"name": "x", "version": "1"}}
    lines = (
        call_frame(other, _id(rng), "container_remove", {"container": "precious", "force": True}),
        encode({"jsonrpc": "2.0", "id": _id(rng), "method": "initialize", "params": {**hello, **client}}).encode(),
        encode({"jsonrpc": "2.0", "id": _id(rng), "method": "initialize", "params": hello}).encode(),
        frame(other, _id(rng), "server/discover", {}),
    )
    return rng.choice(lines)


def _stray(rng: random.Random, era: Era) -> bytes:
    strays: tuple[object, ...] = (
        {"jsonrpc": "2.0", "id": _id(rng), "result": {"action": "accept", "content": {"confirm": True}}},
        {"jsonrpc": "2.0", "id": _id(rng), "error": {"code": "x"}},
        {"jsonrpc": "2.0", "id": _id(rng), "error": {"code": 1, "message": "m"}},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": rng.choice((1, "1", None, []))}},
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": [], "progress": "x"}},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/roots/list_changed", "params": {}},
        {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "container_remove", "arguments": {"container": "precious"}}},
        Pairs([("jsonrpc", "2.0"), ("id", 1), ("id", 9 * driver.FIRST_ID), ("method", "tools/list"), ("method", "ping")]),
    )  # fmt: skip
    return encode(rng.choice(strays)).encode()


_MAKERS: tuple[Callable[[random.Random, Era], bytes], ...] = (
    _cut, _torn, _binary, _strange_id, _same_id, _batch, _strange_method, _strange_params, _strange_envelope, _other_era, _stray,
)  # fmt: skip
