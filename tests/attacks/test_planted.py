"""Does a planted secret leave a real server: in its answers, its progress, on stderr, or in a file that it keeps?"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.dispatch import application
from tests import backends, tally
from tests.attacks import driver
from tests.backends import DockerCommandLine
from tests.server import wire
from tests.server.engines import OwnEngine
from tests.server.faces import ERAS, Era

IMAGE = backends.BUSYBOX_IMAGE
CONTAINER, STORED = "planted", "localhost/planted:1"
ENV, LABEL, LOG, HOST, ARGUMENT = "Env", "Label", "Log", "Host", "Argument"


@dataclass(frozen=True, slots=True)
class Planted:
    """A secret for each place, by the place."""

    docker: DockerCommandLine
    secrets: Mapping[str, str]


@pytest.fixture
def planted(attacked_engine: OwnEngine, monkeypatch: pytest.MonkeyPatch, session_label: str) -> Iterator[Planted]:
    """A stranger's image and running container that hold secrets and say them."""
    docker = attacked_engine.docker
    secrets = {place: f"Vw3h{place}{uuid.uuid4().hex[:12]}" for place in (ENV, LABEL, LOG, HOST, ARGUMENT)}
    monkeypatch.setenv("SOME_API_KEY", secrets[HOST])
    text = f"FROM {IMAGE}\nENV STORE_PASSWORD={secrets[ENV]}\nLABEL api-token={secrets[LABEL]}\n"
    docker(["build", "--tag", STORED, "-"], stdin=text.encode())
    say = f"echo $STORE_PASSWORD; echo password={secrets[LOG]} >&2; echo {secrets[HOST]}; exec sleep 600"
    docker(["run", "--detach", "--label", session_label, "--name", CONTAINER, STORED, "sh", "-c", say])
    yield Planted(docker, secrets)
    docker(["rm", "--force", *docker(["ps", "--all", "--quiet"]).stdout.split()])
    docker(["image", "rm", "--force", *[name for name in driver.holdings(docker).names if name != IMAGE]])
    docker(["image", "prune", "--force"])  # the cache of the build that fails


def _calls(given: str) -> dict[str, list[dict[str, Any]]]:
    """What each tool is called with. Some succeed, some fail; all of them have a secret within reach."""
    text = f"FROM {STORED}\nARG TOKEN\nRUN echo $TOKEN $STORE_PASSWORD; echo $TOKEN >&2; exit 3\n"
    env, labels = {"DB_PASSWORD": given}, {"api-token": given}
    lost = f"password={given}"
    named = {"name": "planted-none", "labels": labels}
    script = ["sh", "-c", "env; echo $DB_PASSWORD >&2; exit 3"]
    return {
        "container_runtime_status": [{}, {"engine": lost}],
        "container_build": [
            {"image_name": "localhost/none", "dockerfile_text": text, "build_args": {"TOKEN": given}, "labels": labels}
        ],
        "container_list": [{"all": True}, {"label": f"api-token={given}"}],
        "container_run": [
            {"image": STORED, "env": env, "labels": labels, "command": script},
            {"image": STORED, "env": env, "command": [f"/no/{given}"]},
            {"image": STORED, "env": json.dumps(env), "mounts": [f"../{given}:/x"]},
        ],
        "container_logs": [{"container": CONTAINER}, {"container": CONTAINER, "follow_seconds": 0.2}],
        "container_remove": [{"container": CONTAINER, "force": True}, {"container": lost}],
        "container_inspect": [{"container": CONTAINER}, {"container": lost}],
        "container_exec": [
            {"container": CONTAINER, "env": env, "command": script},
            {"container": CONTAINER, "env": env, "command": [f"/no/{given}"]},
        ],
        "container_control": [{"container": CONTAINER, "action": "restart"}, {"container": lost, "action": "stop"}],
        "container_copy": [
            {"source": f"{CONTAINER}:/etc/passwd", "target": "./out"},
            {"source": lost, "target": f"{CONTAINER}:/"},
        ],
        "container_events": [{"since": "1m"}, {"filters": {"label": f"api-token={given}"}}],
        "image_list": [{}, {"name": lost}],
        "image_inspect": [{"image": STORED}, {"image": lost}],
        "image_tag": [{"source": STORED, "target": IMAGE}, {"source": lost, "target": "localhost/none"}],
        "image_remove": [{"image": STORED}, {"image": lost}],
        "volume_create": [{"name": "planted-none", "options": {"type": "cifs", "o": f"username=x,password={given}"}}],
        "volume_list": [{}, {"label": f"api-token={given}"}],
        "volume_remove": [{"volume": lost}],
        "network_create": [{**named, "driver": "host"}],
        "network_list": [{}, {"label": f"api-token={given}"}],
        "network_remove": [{"network": lost}],
        "network_connect": [{"network": lost, "container": CONTAINER, "aliases": [lost]}],
        "network_disconnect": [{"network": "bridge", "container": lost}],
        "image_load": [{"path": f"../{given}.tar"}, {"path": "none.tar", "tag": lost}],
        "image_save": [{"image": STORED, "path": f"../{given}.tar"}, {"image": lost, "path": "out.tar"}],
        "image_import": [{"path": f"../{given}", "tag": "localhost/none"}, {"path": ".", "tag": f"-{given}"}],
        "container_export": [
            {"container": CONTAINER, "path": f"../{given}.tar"},
            {"container": lost, "path": "out.tar"},
        ],
        "container_rename": [{"container": CONTAINER, "name": f"n{given}"}, {"container": lost, "name": "none"}],
        "container_top": [{"container": CONTAINER}, {"container": lost}],
        "container_diff": [{"container": CONTAINER}, {"container": CONTAINER, "path": f"/{given}"}],
        "container_commit": [
            {"container": CONTAINER, "tag": IMAGE, "message": given},
            {"container": lost, "tag": "localhost/none"},
        ],
        "container_create": [
            {"image": STORED, "env": env, "labels": labels, "command": script},
            {"image": STORED, "env": env, "mounts": [f"../{given}:/x"]},
        ],
        "container_import": [{"path": f"../{given}"}, {"path": "none.tar", "name": f"n{given}"}],
        "container_update": [{"container": CONTAINER, "memory": given}, {"container": lost, "cpus": 1}],
        "engine_prune": [{"kind": "images"}, {"kind": lost}],
        "registry_pull": [{"image": lost}],
        "registry_push": [{"image": STORED, "target": f"localhost:1/none:{given}"}, {"image": lost}],
        "registry_inspect": [{"reference": lost}],
        "registry_list": [{"repository": lost}, {"registry": lost}, {"repository": "localhost:1/x", "cursor": given}],
        "registry_copy": [
            {"source": lost, "target": "localhost:1/none"},
            {"source": "localhost:1/none", "target": f"localhost:1/none:{given}"},
        ],
        "registry_delete": [{"reference": lost}],
    }


@pytest.mark.attack("planted secrets, over every way out of a server")
@pytest.mark.parametrize("era", ERAS)
async def test_planted_secret_leaves_by_no_answer_no_stderr_and_no_file(
    era: Era, planted: Planted, working_folder: Path
) -> None:
    calls = _calls(planted.secrets[ARGUMENT])
    assert calls.keys() == application.tools().keys()
    async with wire.served(era, buildx="off", toolsets='["all"]', log_level="debug") as served:
        for tool, several in calls.items():
            for arguments in several:
                # What is asked about is asked for twice more: with a token that is none, and spelt wrong.
                for more in ({}, {"confirm_token": planted.secrets[ARGUMENT]}, {"pasword": planted.secrets[ARGUMENT]}):
                    await served.call(tool, **arguments, **more)
        assert served.junk == []
        ways = {
            "answers": json.dumps(list(served.answers.values()), ensure_ascii=False),
            "stderr": served.said(),
            "files": _kept_files(),
        }
    assert served.answers
    assert '"tool"' in ways["files"], "no audit was found: the look at it proves nothing"
    for place, value in planted.secrets.items():
        for way, text in ways.items():
            tally.tried()
            tally.got_through(int(value in text))
            assert value not in text, f"{place} by {way}: {_around(text, value)}"


def _kept_files() -> str:
    folders = [Path(os.environ[f"CODOMYRMEX_CONTAINERIZATION_{kind}_DIR"]) for kind in ("STATE", "DATA", "CACHE")]
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    return "\n".join(path.read_text(errors="replace") for path in files)


def _around(text: str, value: str) -> str:
    at = text.index(value)
    return text[max(0, at - 300) : at + 100]
