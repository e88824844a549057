"""Does a planted secret leave, in any byte, over any tool?"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.dispatch import application
from codomyrmex_containerization.dispatch.call import Caller
from tests import backends, registry, tally
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House

PREFIX = "Zq7kPlanted"
SECRETS = "planted secrets, each over a tool"


def secret(place: str) -> str:
    """A value that looks like nothing in particular: only its name or place says that it is a secret."""
    return f"{PREFIX}{place}{uuid.uuid4().hex[:6]}x"


@dataclass(frozen=True, slots=True)
class World:
    """Where secrets were planted: an image's variable and label, a stranger's container made of it."""

    image: str
    container: str
    label: str
    in_env: str
    in_label: str


def pem_lines() -> list[str]:
    body = ["".join(chr(65 + (row * 7 + column * 3) % 26) for column in range(64)) for row in range(40)]
    return ["-----BEGIN RSA PRIVATE KEY-----", *body, "-----END RSA PRIVATE KEY-----"]


@pytest.fixture(scope="module")
def world(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[World]:
    """An image and a container of a stranger, full of secrets; the container has said all of them and ended."""
    in_env, in_label, tag = secret("Env"), secret("Label"), f"localhost/cxc-test-{uuid.uuid4().hex[:8]}"
    dockerfile = (
        f"FROM {busybox_image}\nENV STORE_PASSWORD={in_env}\nLABEL api-token={in_label} {session_label}\n"
        "CMD echo value $STORE_PASSWORD\n"
    )
    docker_cli(["build", "--tag", tag, "-"], stdin=dockerfile.encode())
    key = "\\n".join(pem_lines())
    half = len(in_env) // 2
    script = (
        f"echo plain $STORE_PASSWORD; echo STORE_PASSWORD=$STORE_PASSWORD; echo label {in_label} >&2;"
        f"printf 'split {in_env[:half]}'; echo between >&2; usleep 20000; printf '{in_env[half:]}\\n';"
        f"head -c {16384 - half} /dev/zero | tr '\\0' x; printf '%s\\n' {in_env};"
        f"head -c {81920 - len(in_env) + 3} /dev/zero | tr '\\0' y; printf '%s\\n' {in_env};"
        f"printf '{key}\\n'; echo the end"
    )
    made = docker_cli(
        ["run", "--detach", "--label", session_label, "--label", f"api-token={in_label}", tag, "sh", "-c", script]
    )
    container = made.stdout.strip()
    docker_cli(["wait", container])
    yield World(tag, container, session_label, in_env, in_label)
    docker_cli(["rm", "--force", container])
    docker_cli(["rmi", "--force", tag])
    # What failed builds left: their layers inherit the label of the image that they began with.
    left = docker_cli(["images", "--quiet", "--filter", f"label={session_label}", "--filter", "dangling=true"])
    if left.stdout.split():
        docker_cli(["rmi", "--force", *left.stdout.split()], check=False)


def assert_kept(house: House, *secrets: str) -> None:
    left = house.everything_that_left()
    for one in secrets:
        tally.tried()
        # Neither half of it, for a secret that was cut in two.
        shown = [part for part in (one, one[: len(PREFIX) + 6], one[-12:]) if part in left]
        tally.got_through(int(bool(shown)))
        assert not shown, one


# ------------------------------------------------------------------------------------------- one scenario for each tool

Scenario = Callable[[House, World, pytest.MonkeyPatch], Awaitable[None]]


async def status(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = secret("Host")
    await house.ok("container_runtime_status")
    monkeypatch.setenv("DOCKER_HOST", f"tcp://someone:{planted}@localhost:1")
    await house.call("container_runtime_status")
    await house.call("container_list")
    assert_kept(house, planted)


async def build(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    argument, label, written = secret("Arg"), secret("BuildLabel"), secret("File")
    text = (
        f"FROM {world.image}\nENV SERVICE_TOKEN={written}\nARG DEPLOY_TOKEN\n"
        "RUN echo $DEPLOY_TOKEN $SERVICE_TOKEN $STORE_PASSWORD; echo $DEPLOY_TOKEN >&2; exit 3\n"
    )
    Path("Dockerfile").write_text(text)
    for how in ({"dockerfile_text": text}, {"dockerfile_path": "."}):
        given: dict[str, Any] = {
            "image_name": "localhost/cxc-test-never",
            "build_args": {"DEPLOY_TOKEN": argument},
            "labels": {"deploy-token": label},
            **how,
        }
        await house.fails("build_failed", "container_build", given)
    assert_kept(house, argument, label, written)


async def listing(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = await house.ok("container_list", all=True, label=f"api-token={world.in_label}")
    assert rows["total"] == 1
    await house.ok("container_list", all=True)


async def run(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = secret("RunEnv")
    script = (
        "echo $STORE_PASSWORD; echo $STORE_PASSWORD >&2; echo $DB_PASSWORD; env; half=${DB_PASSWORD%??????????};"
        "printf $half; echo between >&2; usleep 20000; echo ${DB_PASSWORD#$half}"
    )
    arguments: dict[str, Any] = {"image": world.image, "env": {"DB_PASSWORD": given}, "labels": {"api-token": given}}
    await house.ok("container_run", arguments, command=["sh", "-c", script])
    await house.ok("container_run", arguments, command=["sh", "-c", script], detach=True)
    missing = await house.call("container_run", arguments, command=[f"/no/such/{given}"])
    assert missing.error_data["code"] == "command_failed"
    stdin = await house.ok("container_run", image=world.image, command="cat", stdin=f"password={given}\n")
    assert "***" in stdin["stdout"]
    assert_kept(house, given)


async def logs(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await house.ok("container_logs", container=world.container, tail=5000, timestamps=True)
    assert whole["lines"][-1]["text"] == "the end"
    # The beginning of the key lies before the lines that are asked for.
    for tail in (1, 2, 3, 20):
        await house.ok("container_logs", container=world.container, tail=tail)
    await house.ok("container_logs", container=world.container, stream="stderr")
    for needle in (world.in_env, world.in_env[:12], pem_lines()[3], pem_lines()[3][:20]):
        found = await house.ok("container_logs", container=world.container, grep=needle)
        assert found["lines"] == []
        assert found["total"] == 0
        house.said.clear()
        house.audit_file.write_bytes(b"")  # the needle is the caller's own word, and nothing says that it is a secret
    left = house.everything_that_left()
    assert not [line for line in pem_lines()[1:-1] if line in left]


async def inspect(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await house.ok("container_inspect", container=world.container)
    assert "STORE_PASSWORD=***" in found["env"]
    assert found["labels"]["api-token"] == "***"


async def execute(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = secret("ExecEnv")
    made = await house.ok("container_run", image=world.image, command="sleep 60", detach=True)
    script = "env; echo $STORE_PASSWORD; echo $STORE_PASSWORD >&2; echo $DB_PASSWORD; exit 3"
    said = await house.ok(
        "container_exec", container=made["name"], command=["sh", "-c", script], env={"DB_PASSWORD": given}
    )
    assert said["exit_code"] == 3
    missing = await house.call(
        "container_exec", container=made["name"], command=[f"/no/{given}"], env={"DB_PASSWORD": given}
    )
    assert missing.error is not None
    assert_kept(house, given)


async def control(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.ok("container_run", image=world.image, command="sleep 60", detach=True)
    await house.ok("container_control", container=made["name"], action="kill")
    refused = await house.call("container_control", container=world.container, action="pause")
    assert refused.error is not None


async def copy(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.ok("container_run", image=world.image, command="sleep 60", detach=True)
    Path("settings.env").write_text(f"STORE_PASSWORD={world.in_env}\n")
    await house.ok("container_copy", source="settings.env", target=f"{made['name']}:/tmp/")
    await house.ok("container_copy", source=f"{made['name']}:/tmp/settings.env", target="back.env")
    assert world.in_env in Path("back.env").read_text()  # a copy keeps its bytes; the answer does not show them
    await house.fails(
        "confirmation_required", "container_copy", source=f"{made['name']}:/tmp/settings.env", target="back.env"
    )
    # What is left out is listed by its name, and a file may be named after a secret.
    name = os.environ["SOME_API_KEY"]
    script = f"mkdir /tmp/f; mkfifo /tmp/f/{name} /tmp/f/password={world.in_env}; echo x > /tmp/f/{world.in_label}"
    await house.ok("container_exec", container=made["name"], command=["sh", "-c", script])
    listed = await house.ok("container_copy", source=f"{made['name']}:/tmp/f", target="listed")
    assert len(listed["skipped"]) == 2
    await house.call("container_copy", source=f"{made['name']}:/tmp/f/{name}-none", target="none")


async def images(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await house.ok("image_inspect", image=world.image)
    assert "STORE_PASSWORD=***" in found["env"]


async def image_listing(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await house.ok("image_list", {"name": world.image}))["total"] == 1


async def tagging(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.call("image_tag", source=world.image, target=backends.BUSYBOX_IMAGE)
    await house.call("image_tag", source=world.image, target=f"-{world.in_env}")


async def image_removal(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.call("image_remove", image=world.image, force=True)


async def remove(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def decline(question: str) -> harness.Reply:
        return "decline"

    await house.call("container_remove", container=world.container, force=True)
    await house.call_asking("container_remove", {"container": world.container}, decline)
    await house.call("container_remove", container=world.container, confirm_token=secret("Token"))


def store_name() -> str:
    return f"cxc-secrets-{uuid.uuid4().hex[:8]}"


async def volumes(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    label, password, name = secret("VolumeLabel"), secret("Mount"), store_name()
    made = {
        "name": name,
        "labels": {"api-token": label},
        "options": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"},
    }
    await house.ok("volume_create", made)
    share = {"type": "cifs", "device": "//a/b", "o": f"username=x,password={password}"}
    await house.fails("refused", "volume_create", {"name": store_name(), "options": share})
    (row,) = (await house.ok("volume_list", {"name": name}))["volumes"]
    assert row["labels"]["api-token"] == "***"
    await house.fails("not_found", "volume_remove", volume=f"-{label}")
    await house.ok("volume_remove", volume=name)
    assert_kept(house, label, password)


async def networks(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    label, name = secret("NetworkLabel"), store_name()
    made = await house.ok("container_run", image=world.image, command="sleep 60", detach=True)
    await house.ok("network_create", {"name": name, "labels": {"api-token": label}})
    (row,) = (await house.ok("network_list", {"name": name}))["networks"]
    assert row["labels"]["api-token"] == "***"
    await house.ok("network_connect", network=name, container=made["name"], aliases=["db"])
    await house.ok("network_disconnect", network=name, container=made["name"])
    await house.fails("not_found", "network_remove", network=f"-{world.in_env}")
    await house.ok("network_remove", network=name)
    assert_kept(house, label)


async def pruning(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("containers", "images", "volumes", "networks"):
        await house.ok("engine_prune", kind=kind)
    # Others use this engine too: asked about, and not confirmed.
    await house.call("engine_prune", kind="containers", dry_run=False, confirm_token=secret("Token"))


async def archived(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_path, name = secret("Path"), f"localhost/{store_name()}"
    for number, path in enumerate(("saved.tar", f"api_token={in_path}.tar")):
        saved = await house.ok("image_save", image=world.image, path=path)
        assert saved["bytes"] > 500_000
        await house.fails("confirmation_required", "image_save", image=world.image, path=path)
        # It is a stranger's image, and its name too.
        await house.fails("confirmation_required", "image_load", path=path)
        await house.ok("container_export", container=world.container, path=f"{number}-{path}")
        await house.ok("image_import", path=f"{number}-{path}", tag=name)
    Path("broken.tar").write_bytes(f"password={world.in_env}\n".encode() * 100)
    await house.fails("invalid_argument", "image_load", path="broken.tar")
    await house.fails("invalid_argument", "image_import", path="broken.tar", tag=name)
    await house.fails("invalid_argument", "container_update", container=world.container, memory=f"-{world.in_env}")
    await house.fails("not_found", "container_export", container=world.in_env, path="out.tar")
    await house.ok("image_remove", image=name, force=True)
    for row in (await house.ok("image_list", dangling=True))["images"]:
        if house.engine.owns("image", (await house.engine.inspect_image(row["id"])).id):
            await house.ok("image_remove", image=row["id"])
    assert_kept(house, in_path)


async def updating(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.ok("container_run", image=world.image, command="sleep 60", detach=True)
    now = await house.ok("container_update", container=made["name"], memory="64m", cpus=0.5)
    assert (now["memory_bytes"], now["cpus"]) == (64 * 1024 * 1024, 0.5)
    await house.fails("invalid_argument", "container_update", container=made["name"])
    await house.call("container_update", container=world.container, memory=world.in_env)


async def lifecycle(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_words, in_message, in_file = secret("Words"), secret("Message"), secret("FileName")
    command = ["sh", "-c", f"> /api-token={in_file}; true --password={in_words}; sleep 60"]
    made = await house.ok("container_run", image=world.image, command=command, detach=True)
    name, tag = f"cxc-{store_name()}", f"localhost/{store_name()}"
    await house.ok("container_rename", container=made["name"], name=name)
    created = await house.ok("container_create", image=world.image, env={"DB_PASSWORD": world.in_env})
    await house.ok("container_remove", container=created["container"])
    await house.call("container_create", image=world.image, command=[f"/no/{world.in_env}"], network=world.in_env)
    await house.fails("confirmation_required", "container_rename", container=world.container, name=world.in_env)
    await house.call("container_rename", container=name, name=world.in_env)
    assert (await house.ok("container_top", container=world.in_env))["total"] >= 1
    assert (await house.ok("container_diff", container=world.in_env))["total"] >= 1
    await house.ok("container_diff", container=world.container, path=f"/{world.in_label}")
    message = f"password={in_message}"
    await house.ok("container_commit", container=world.in_env, tag=tag, message=message)
    await house.fails("invalid_argument", "container_commit", container=world.in_env, tag=f"{tag}:-{world.in_label}")
    await house.ok("image_inspect", image=tag)
    await house.ok("image_remove", image=tag)
    Path("broken.tar").write_bytes(message.encode())
    await house.fails("unsupported", "container_import", path="broken.tar", name=world.in_label)
    await house.ok("container_remove", container=world.in_env, force=True)
    assert_kept(house, in_words, in_message, in_file)


async def happenings(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.ok("container_run", image=world.image, command="sleep 60", detach=True)
    said = ["sh", "-c", f"echo password={world.in_env}; true {world.in_label}"]
    await house.ok("container_exec", container=made["name"], command=said)
    found = await house.ok("container_events", filters={"container": made["name"]})
    assert "exec_create" in json.dumps(found)
    await house.ok("container_events", filters={"container": made["name"]}, follow_seconds=0.2)


async def registries(house: House, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_password = secret("Password")
    with registry.started(Path.cwd() / "registry") as found:
        name = f"{found.authority}/shop/app"
        auth = base64.b64encode(f"someone:{in_password}".encode()).decode()
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(Path.cwd() / "auth.json"))
        Path("auth.json").write_text(json.dumps({"auths": {found.authority: {"auth": auth}}}))
        await agreed(house, "registry_push", image=world.image, target=f"{name}:1")
        seen = await house.ok("registry_inspect", reference=f"{name}:1", detail=True)
        assert "STORE_PASSWORD=***" in seen["configuration"]["env"]
        await agreed(house, "registry_copy", source=f"{name}:1", target=f"{name}:2")
        assert (await house.ok("registry_list", repository=name))["total"] == 2
        await house.fails("not_found", "registry_inspect", reference=f"{name}:{world.in_label}")
        await house.ok("registry_pull", image=f"{name}:1")
        await agreed(house, "image_remove", image=f"{name}:1")
        await agreed(house, "registry_delete", reference=f"{name}:1")
    assert_kept(house, in_password, auth)


async def agreed(house: House, tool: str, **arguments: Any) -> None:
    asked = await house.fails("confirmation_required", tool, arguments)
    await house.ok(tool, arguments, confirm_token=asked.error_data["confirm_token"])


SCENARIOS: dict[str, Scenario] = {
    "container_runtime_status": status,
    "container_build": build,
    "container_list": listing,
    "container_run": run,
    "container_logs": logs,
    "container_remove": remove,
    "container_inspect": inspect,
    "container_exec": execute,
    "container_control": control,
    "container_copy": copy,
    "image_inspect": images,
    "image_list": image_listing,
    "image_tag": tagging,
    "image_remove": image_removal,
    **dict.fromkeys(("volume_create", "volume_list", "volume_remove"), volumes),
    **dict.fromkeys(
        ("network_create", "network_list", "network_remove", "network_connect", "network_disconnect"), networks
    ),
    "engine_prune": pruning,
    "container_events": happenings,
    **dict.fromkeys(("image_save", "image_load", "image_import", "container_export"), archived),
    "container_update": updating,
    **dict.fromkeys((f"registry_{one}" for one in ("pull", "push", "inspect", "list", "copy", "delete")), registries),
    **dict.fromkeys(
        (
            "container_create",
            "container_rename",
            "container_top",
            "container_diff",
            "container_commit",
            "container_import",
        ),
        lifecycle,
    ),
}


def test_every_tool_has_a_scenario_with_planted_secrets() -> None:
    assert set(SCENARIOS) == set(application.tools())


@pytest.mark.attack(SECRETS)
@pytest.mark.parametrize("tool", SCENARIOS)
async def test_planted_secret_leaves_in_no_byte(tool: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process = secret("Process")
    monkeypatch.setenv("SOME_API_KEY", in_process)
    async with harness.opened(buildx="off", toolsets=["all"]) as house:
        await SCENARIOS[tool](house, world, monkeypatch)
        assert_kept(house, world.in_env, world.in_label, in_process)
        assert oct(house.audit_file.stat().st_mode & 0o777) == "0o600"
        monkeypatch.undo()


@pytest.mark.attack(SECRETS)
async def test_question_to_a_person_shows_no_planted_secret(
    world: World, docker_cli: DockerCommandLine, session_label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = secret("Asked")
    monkeypatch.setenv("SOME_API_KEY", planted)
    questions: list[str] = []

    async def decline(question: str) -> harness.Reply:
        questions.append(question)
        return "decline"

    container, volume = f"cxc-{planted}", f"cxc-{planted}-store"
    docker_cli(["create", "--name", container, "--label", session_label, world.image, "true"])
    docker_cli(["volume", "create", "--label", session_label, volume])
    Path(f"{planted}.env").write_text("one\n")
    calls: dict[str, dict[str, Any]] = {
        "container_remove": {"container": container},
        "container_copy": {"source": f"{world.container}:/etc/passwd", "target": f"{planted}.env"},
        "volume_remove": {"volume": volume},
    }
    try:
        async with harness.opened(buildx="off", toolsets=["all"]) as house:
            for number, (tool, arguments) in enumerate(calls.items(), 1):
                await house.call_asking(tool, arguments, decline)
                assert len(questions) == number, tool
                deferred = await house.application.dispatcher.call(tool, arguments, Caller("mcp", can_defer=True))
                assert deferred.question is not None
                house.said.append(deferred.question)
                await house.fails("confirmation_required", tool, arguments)
            assert all("***" in question for question in questions)
            assert_kept(house, planted, world.in_env, world.in_label)
    finally:
        docker_cli(["rm", "--force", container])
        docker_cli(["volume", "rm", volume])


@pytest.mark.attack(SECRETS)
async def test_build_through_buildkit_lets_no_planted_secret_out(
    world: World, buildx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness.opened(buildx=str(buildx)) as house:
        await build(house, world, monkeypatch)
        assert_kept(house, world.in_env, world.in_label)


@pytest.mark.attack(SECRETS)
async def test_secret_of_a_successful_build_is_in_no_answer_and_no_progress(
    world: World, image_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = secret("Arg")
    async with harness.opened(buildx="off") as house:
        await house.ok(
            "container_build",
            image_name=image_name,
            dockerfile_text=f"FROM {world.image}\nARG DEPLOY_TOKEN=none\nRUN echo $DEPLOY_TOKEN; echo $STORE_PASSWORD\n",
            build_args={"DEPLOY_TOKEN": planted},
        )
        assert house.progress
        assert_kept(house, planted, world.in_env)


@pytest.mark.attack(SECRETS)
async def test_secret_of_a_running_program_is_masked_while_a_log_is_followed(world: World) -> None:
    async with harness.opened() as house:
        made = await house.ok(
            "container_run",
            image=world.image,
            command=[
                "sh",
                "-c",
                "printf \"a $STORE\"; printf '_'; echo $STORE_PASSWORD; sleep 0.2; echo $STORE_PASSWORD",
            ],
            detach=True,
        )
        answer = await house.ok("container_logs", container=made["name"], follow_seconds=20)
        assert [line["text"] for line in answer["lines"]][-1] == "***"
        assert_kept(house, world.in_env)


@pytest.mark.attack(SECRETS)
async def test_error_of_an_engine_that_repeats_an_argument_masks_it(world: World) -> None:
    planted = secret("Volume")
    async with harness.opened() as house:
        outcome = await house.call(
            "container_run", image=world.image, workdir="relative", env={"DB_PASSWORD": planted}, command=[planted]
        )
        assert outcome.error is not None
        assert_kept(house, planted)


async def test_defect_of_a_tool_says_nothing_but_its_id(monkeypatch: pytest.MonkeyPatch, working_folder: Path) -> None:
    planted = secret("Unknown")
    async with harness.opened() as house:
        # An object that no client can send, to make something break inside.
        outcome = await house.application.dispatcher.call("container_list", {"name": {1, planted}}, Caller("mcp"))
        assert outcome.error is not None
        assert_kept(house)


@pytest.mark.attack(SECRETS)
@pytest.mark.parametrize("name", ["password", "API_KEY", "aws_secret_access_key"])
async def test_secret_in_an_argument_that_is_refused_is_masked_in_answer_and_audit(name: str) -> None:
    planted = secret("Argument")
    async with harness.opened(read_only=True) as house:
        for arguments in (
            {"image": "x", "env": {name: planted}},
            {"image": "x", "env": f'{{"{name}": "{planted}"}}'},
            {"image": "x", "command": ["sh", "-c", f"export {name}={planted}; run"]},
            {"image": "x", name: planted},
            {"image": f"{name}={planted}"},
        ):
            outcome = await house.call("container_run", arguments)
            assert outcome.error is not None
        assert_kept(house, planted)


def test_prefix_of_the_planted_values_is_no_known_shape() -> None:
    assert backends.TEST_LABEL not in PREFIX
