"""What do the tools do that rename containers, look into them and make images and files of them, and what do they ask before?

SPEC B114, SPEC B115, SPEC B116, SPEC B117, SPEC B120.
"""

from __future__ import annotations

import json
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.dispatch import runs
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from tests import embedded
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House
from tests.engines.contract import eventually
from tests.engines.embedded.test_container_files import digest, packed

MEMORY_BASE = "localhost/memory-base:1"
PATIENT = ["sh", "-c", "echo x > /root/one; rm /etc/group; sleep 99999"]


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The process stands in a folder of the test's own, which is therefore an allowed path."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def engine(private_folders: Path) -> Iterator[EmbeddedEngine]:
    """What the servers of a test work on, seen from beside them."""
    with embedded.own_folders() as engine:
        yield engine


def opened(**more: Any) -> Any:
    return harness.opened(toolsets=("all",), policy__allowed_paths=(str(Path.cwd()),), **more)


@pytest.fixture
async def embedded_house(engine: EmbeddedEngine, tmp_path: Path) -> AsyncIterator[House]:
    embedded.base_image(engine, tmp_path)
    async with opened(engines=("embedded",)) as house:
        yield house


@pytest.fixture(params=["memory", "embedded", "docker"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[tuple[House, str]]:
    """An application on one engine, and an image."""
    async with AsyncExitStack() as stack:
        if request.param == "embedded":
            embedded.base_image(request.getfixturevalue("engine"), request.getfixturevalue("tmp_path"))
            yield await stack.enter_async_context(opened(engines=("embedded",))), embedded.IMAGE
        elif request.param == "memory":
            yield await stack.enter_async_context(opened(engines=("memory",))), MEMORY_BASE
        else:
            image: str = request.getfixturevalue("busybox_image")
            yield await stack.enter_async_context(opened(engine="docker", buildx="off")), image


@pytest.fixture
def stranger(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[str]:
    """A container that others made."""
    name = f"cxc-test-{uuid.uuid4().hex[:12]}"
    docker_cli(["run", "--detach", "--name", name, "--label", session_label, busybox_image, *PATIENT])
    id = docker_cli(["inspect", "--format", "{{.Id}}", name]).stdout.strip()
    yield name
    docker_cli(["rm", "--force", id])


async def confirmed(house: House, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool that asks, and once more with the token that it gives."""
    outcome = await house.fails("confirmation_required", tool, arguments)
    return await house.ok(tool, arguments, confirm_token=outcome.error_data["confirm_token"])


async def changed(house: House, container: str, path: str) -> dict[str, Any]:
    """Return what a container changed at a path, once its program has come to that."""
    return await eventually(
        lambda: house.ok("container_diff", container=container, path=path), lambda found: bool(found["changes"])
    )


# ------------------------------------------------------------------------------------------------ on several engines


async def test_own_container_is_renamed_looked_into_and_committed(bench: tuple[House, str]) -> None:
    house, image = bench
    suffix = uuid.uuid4().hex[:8]
    made = await house.ok("container_run", image=image, command=PATIENT, detach=True, env={"WORD": "said"})
    renamed = await house.ok("container_rename", container=made["name"], name=f"cxc-test-{suffix}")
    assert (renamed["container"], renamed["before"], renamed["id"]) == (f"cxc-test-{suffix}", made["name"], made["id"])
    await house.fails("not_found", "container_top", container=made["name"])
    top = await house.ok("container_top", container=renamed["container"])
    assert any("99999" in row["command"] for row in top["processes"])
    assert top["total"] == len(top["processes"])
    shown = await house.call("container_top", container=made["id"])
    assert "PID" in shown.text
    diff = await changed(house, made["id"], "/etc/group")
    assert diff["changes"] == [{"kind": "deleted", "path": "/etc/group"}]
    tag = f"localhost/cxc-lifecycle-{suffix}:1"
    committed = await house.ok("container_commit", container=made["id"], tag=tag, message="as it was")
    assert committed["tag"] == tag
    assert (await house.ok("container_list"))["containers"][0]["status"] == "running"
    script = "cat /root/one; echo $WORD; test -e /etc/group && echo group; true"
    ran = await house.ok("container_run", image=tag, command=["sh", "-c", script])
    assert ran["stdout"] == "x\nsaid\n"
    await house.ok("container_remove", container=made["id"], force=True)
    await house.ok("image_remove", image=tag)  # our own: nobody is asked


async def test_container_is_made_filled_and_then_started(bench: tuple[House, str]) -> None:
    """SPEC B147."""
    house, image = bench
    name = f"cxc-test-{uuid.uuid4().hex[:8]}"
    made = await house.ok("container_create", image=image, name=name, command=PATIENT, labels={"a": "b"})
    assert made["container"] == name
    (row,) = (await house.ok("container_list", all=True, name=name))["containers"]
    assert row["status"] == "created"
    await house.fails("refused", "container_create", image=image, mounts=["/etc:/x"])
    await house.fails("conflict", "container_create", image=image, name=name)
    await house.ok("container_control", container=name, action="start")
    (row,) = (await house.ok("container_list", name=name))["containers"]
    assert row["status"] == "running"
    await house.ok("container_remove", container=name, force=True)


async def test_changes_come_in_pages(bench: tuple[House, str]) -> None:
    house, image = bench
    script = "cd /root; for_each=1; > a; > b; > c; > d; > e; mkdir f; > f/g"
    made = await house.ok("container_run", image=image, command=["sh", "-c", script], keep=True)
    arguments = {"container": made["name"], "path": "/root"}
    whole = await house.ok("container_diff", arguments)
    paths = [row["path"] for row in whole["changes"]]
    assert paths == ["/root", *(f"/root/{name}" for name in ("a", "b", "c", "d", "e", "f", "f/g"))]
    assert (whole["total"], whole["counts"]) == (8, {"added": 7, "changed": 1})
    seen: list[str] = []
    more: dict[str, Any] = {}
    while True:
        page = await house.ok("container_diff", arguments, limit=3, **more)
        seen += [row["path"] for row in page["changes"]]
        if "next_cursor" not in page:
            break
        more = {"cursor": page["next_cursor"]}
    assert seen == paths
    await house.fails("cursor_mismatch", "container_diff", container=made["name"], cursor=more["cursor"])
    await house.fails("invalid_argument", "container_diff", container=made["name"], path="root")
    await house.fails("conflict", "container_top", container=made["name"])
    await house.ok("container_remove", container=made["name"])


async def test_names_of_processes_and_files_cannot_act_on_a_terminal(embedded_house: House) -> None:
    script = "printf x > \"$(printf '/root/a\\nD etc\\033[2J\\377')\"; exec sh -c 'sleep 99999; :' \"$(printf 'b\\033[31m\\nroot')\""
    made = await embedded_house.ok("container_run", image=embedded.IMAGE, command=["sh", "-c", script], detach=True)
    rows = (await changed(embedded_house, made["id"], "/root"))["changes"]
    assert rows[-1]["path"] == "/root/a\\nD etc\\x1b[2J\\xff"
    top = await embedded_house.ok("container_top", container=made["id"])
    assert any(row["command"].endswith("b\\x1b[31m\\nroot") for row in top["processes"])


# ----------------------------------------------------------------------------------------------------------- of others


async def test_stranger_is_renamed_after_a_confirmation_only(stranger: str) -> None:
    async with opened(engine="docker", buildx="off") as house:
        wanted = f"{stranger}-2"
        outcome = await house.fails("confirmation_required", "container_rename", container=stranger, name=wanted)
        assert stranger in outcome.text
        assert (await house.ok("container_inspect", container=stranger))["name"] == stranger
        await confirmed(house, "container_rename", {"container": stranger, "name": wanted})
        assert (await house.ok("container_inspect", container=wanted))["name"] == wanted


async def test_commit_takes_a_strangers_name_after_a_confirmation_only(
    stranger: str, docker_cli: DockerCommandLine, busybox_image: str, session_label: str
) -> None:
    tag = f"localhost/cxc-lifecycle-{uuid.uuid4().hex[:8]}:1"
    text = f"FROM {busybox_image}\nLABEL {session_label} made={tag}\n".encode()
    docker_cli(["build", "--tag", tag, "-"], stdin=text)
    before = docker_cli(["image", "inspect", "--format", "{{.Id}}", tag]).stdout.strip()
    async with opened(engine="docker", buildx="off") as house:
        made = await confirmed(house, "container_commit", {"container": stranger, "tag": tag})
        assert before.removeprefix("sha256:")[:12] != made["id"]
        labels = json.loads(docker_cli(["image", "inspect", "--format", "{{json .Config.Labels}}", tag]).stdout)
        assert labels["codomyrmex.containerization.lifetime"] == ""
        await house.ok("image_remove", image=tag)
    docker_cli(["rmi", "--force", before])


async def test_asking_policy_asks_before_a_stranger_is_paused_for_an_image(stranger: str) -> None:
    async with opened(engine="docker", buildx="off", policy__foreign="ask") as house:
        outcome = await house.fails(
            "confirmation_required", "container_commit", container=stranger, tag="localhost/none"
        )
        assert "paused" in outcome.text
        # Looking asks nobody.
        assert (await house.ok("container_top", container=stranger))["total"] >= 1
        await house.ok("container_diff", container=stranger)


async def test_read_only_server_looks_and_changes_nothing(stranger: str) -> None:
    async with opened(engine="docker", buildx="off", read_only=True) as house:
        assert (await house.ok("container_top", container=stranger))["total"] >= 1
        await house.ok("container_diff", container=stranger)
        for tool, more in (
            ("container_rename", {"container": stranger, "name": "other"}),
            ("container_commit", {"container": stranger, "tag": "localhost/none"}),
            ("container_import", {"path": "none.tar"}),
        ):
            await house.fails("refused", tool, more)


# -------------------------------------------------------------------------------------------- from machine to machine


async def exported(house: House, **more: Any) -> dict[str, Any]:
    """Write a container with its state to a file and remove it."""
    script = "test -e /root/been && cat /root/been; echo before > /root/been"
    made = await house.ok(
        "container_run", image=embedded.IMAGE, command=["sh", "-c", script], name="shop", keep=True, **more
    )
    found = await house.ok("container_export", container=made["name"], path="shop.tar", format="state")
    await house.ok("container_remove", container=made["name"], volumes=True)
    return found


async def test_container_is_exported_with_its_state_and_imported(embedded_house: House) -> None:
    found = await exported(embedded_house, mounts=["cache:/cache", "tmpfs:/scratch"])
    assert (found["format"], found["bytes"]) == ("state", Path("shop.tar").stat().st_size)
    assert [line.split(" (")[0] for line in found["left_out"]] == [
        "what is mounted at /cache",
        "what is mounted at /scratch",
        "its log",
    ]
    await confirmed(embedded_house, "volume_remove", {"volume": "cache"})
    made = await embedded_house.ok("container_import", path="shop.tar")
    assert (made["container"], made["state"], made["image"]) == ("shop", "created", embedded.IMAGE)
    assert made["mounts"] == ["volume cache:/cache", "tmpfs :/scratch"]
    assert made["left_out"] == ["what was mounted at /cache", "what was mounted at /scratch"]
    await embedded_house.ok("container_control", container="shop", action="start")
    await embedded_house.engine.wait_container("shop")
    lines = (await embedded_house.ok("container_logs", container="shop"))["lines"]
    assert [line["text"] for line in lines] == ["before"]
    await embedded_house.ok("container_remove", container="shop")  # it is this run's own


async def test_imported_container_is_nobodys_leftover_though_it_was_never_started(embedded_house: House) -> None:
    await exported(embedded_house)
    await embedded_house.ok("container_import", path="shop.tar")
    (row,) = await embedded_house.engine.list_containers(all=True)
    assert (row.status, row.labels[guard.LABEL_LIFETIME]) == ("created", "imported")
    assert not runs._is_call_leftover(row)


async def test_import_under_another_name_leaves_the_first_alone(embedded_house: House) -> None:
    await exported(embedded_house)
    await embedded_house.ok("container_import", path="shop.tar")
    await embedded_house.fails("conflict", "container_import", path="shop.tar")
    assert (await embedded_house.ok("container_import", path="shop.tar", name="shop-2"))["container"] == "shop-2"


async def test_export_over_a_file_asks(embedded_house: House) -> None:
    Path("shop.tar").write_text("precious")
    made = await embedded_house.ok("container_run", image=embedded.IMAGE, command="true", keep=True)
    arguments = {"container": made["name"], "path": "shop.tar", "format": "state"}
    await embedded_house.fails("confirmation_required", "container_export", arguments)
    assert Path("shop.tar").read_text() == "precious"
    await confirmed(embedded_house, "container_export", arguments)
    assert tarfile.is_tarfile("shop.tar")


async def test_folder_of_the_host_is_given_after_a_confirmation_only(embedded_house: House) -> None:
    Path("data").mkdir()
    await exported(embedded_house, mounts=[f"{Path.cwd()}/data:/data"])
    outcome = await embedded_house.fails("confirmation_required", "container_import", path="shop.tar")
    assert f"{Path.cwd()}/data" in outcome.text
    made = await confirmed(embedded_house, "container_import", {"path": "shop.tar"})
    assert made["mounts"] == [f"bind {Path.cwd()}/data:/data"]


async def test_volume_that_is_there_is_given_after_a_confirmation_only(embedded_house: House) -> None:
    await exported(embedded_house, mounts=["precious:/data"])
    outcome = await embedded_house.fails("confirmation_required", "container_import", path="shop.tar")
    assert "the volume precious, which is there already" in outcome.text
    await confirmed(embedded_house, "container_import", {"path": "shop.tar"})


def forged(**spec: Any) -> None:
    """Have the archive ask for more, with digests that are right."""
    with tarfile.open("shop.tar") as archive:
        parts = {one.name: archive.extractfile(one).read() for one in archive if one.isfile()}  # type: ignore[union-attr]
    raw = json.loads(parts["container.json"])
    parts["container.json"] = json.dumps({**raw, "spec": {**raw["spec"], **spec}}).encode()
    digests = {name: digest(parts[name]) for name in ("container.json", "layer.tar")}
    Path("forged.tar").write_bytes(packed({**parts, "digests.json": json.dumps(digests).encode()}))


ASKS_TOO_MUCH: dict[str, dict[str, Any]] = {
    "the whole host": {"mounts": [{"type": "bind", "source": "/", "target": "/host"}]},
    "a folder that is not allowed": {"mounts": [{"type": "bind", "source": "/etc", "target": "/host"}]},
    "an engine's socket": {"mounts": [{"type": "bind", "source": "/var/run/docker.sock", "target": "/s"}]},
    "privileges": {"privileged": True},
    "capabilities": {"cap_add": ["SYS_ADMIN"]},
    "the host's network": {"network": "host"},
    "our labels": {"labels": {"codomyrmex.containerization.run": "forged"}},
}


@pytest.mark.parametrize("what", ASKS_TOO_MUCH)
async def test_what_the_policy_would_not_create_is_not_imported(embedded_house: House, what: str) -> None:
    await exported(embedded_house)
    forged(**ASKS_TOO_MUCH[what])
    images = (await embedded_house.ok("image_list", dangling=True))["total"]
    outcome = await embedded_house.call("container_import", path="forged.tar")
    if outcome.error_data.get("code") == "confirmation_required":
        token = outcome.error_data["confirm_token"]
        outcome = await embedded_house.call("container_import", path="forged.tar", confirm_token=token)
    assert outcome.error_data.get("code") in ("refused", "invalid_argument"), outcome.text
    assert (await embedded_house.ok("container_list", all=True))["total"] == 0
    assert (await embedded_house.ok("image_list", dangling=True))["total"] == images


async def test_archive_that_changed_after_the_question_asks_again(embedded_house: House) -> None:
    Path("data").mkdir()
    await exported(embedded_house, mounts=[f"{Path.cwd()}/data:/data"])
    outcome = await embedded_house.fails("confirmation_required", "container_import", path="shop.tar")
    forged(mounts=[{"type": "bind", "source": str(Path.cwd()), "target": "/data"}])
    Path("forged.tar").rename("shop.tar")
    token = outcome.error_data["confirm_token"]
    again = await embedded_house.fails(
        "confirmation_required", "container_import", path="shop.tar", confirm_token=token
    )
    assert str(Path.cwd()) in again.text


async def test_path_that_is_not_allowed_is_neither_read_nor_written(embedded_house: House, tmp_path: Path) -> None:
    await exported(embedded_house)
    outside = tmp_path / "outside.tar"
    Path("shop.tar").rename(outside)
    await embedded_house.fails("refused", "container_import", path=str(outside))
    Path("link.tar").symlink_to(outside)
    await embedded_house.fails("refused", "container_import", path="link.tar")
    made = await embedded_house.ok("container_run", image=embedded.IMAGE, command="true", keep=True)
    await embedded_house.fails(
        "refused", "container_export", container=made["name"], path=f"{outside}.2", format="state"
    )


@pytest.mark.parametrize("bench", ["memory", "docker"], indirect=True)
async def test_engines_that_cannot_say_so_and_name_one_that_can(bench: tuple[House, str]) -> None:
    house, image = bench
    statuses = (await house.ok("container_runtime_status"))["engines"]
    (lacks,) = (one["lacks"] for one in statuses if one["available"] and one["name"] in ("memory", "docker"))
    assert any("container state" in line and "embedded" in line for line in lacks), lacks
    made = await house.ok("container_run", image=image, command="true", keep=True)
    Path("none.tar").write_bytes(b"")
    for tool, more in (
        ("container_export", {"container": made["name"], "path": "out.tar", "format": "state"}),
        ("container_import", {"path": "none.tar"}),
    ):
        outcome = await house.fails("unsupported", tool, more)
        assert "embedded" in outcome.text
    await house.ok("container_remove", container=made["name"])


def test_confirmations_are_about_what_the_archive_says() -> None:
    """Only a mount of this machine's makes a question: everything else comes from the archive itself."""
    from codomyrmex_containerization.core import lifecycle
    from codomyrmex_containerization.models.container import Mount

    bind = Mount("bind", "/data", "/srv")
    assert "to be read and changed" in lifecycle._given(bind, set())
    assert "only to be read" in lifecycle._given(replace(bind, read_only=True), set())
    assert lifecycle._given(Mount("volume", "/data", "new"), {"other"}) == ""
    assert lifecycle._given(Mount("volume", "/data"), {"other"}) == ""
    assert lifecycle._given(Mount("tmpfs", "/data"), {"other"}) == ""
