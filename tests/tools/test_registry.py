"""Do agents find out what registries hold, and ship images to and from them, with an engine and without?

SPEC B141, SPEC B142, SPEC B143, SPEC B144, SPEC B145, SPEC B146.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization.clients import descriptors
from codomyrmex_containerization.clients.descriptors import Descriptor, Platform
from codomyrmex_containerization.dispatch import application
from codomyrmex_containerization.engines.embedded import content_config
from tests import backends, embedded, registry
from tests.backends import DockerCommandLine
from tests.clients.conftest import Bench, Bytes
from tests.clients.rogue import blob_of, manifest_of
from tests.dispatch import harness
from tests.dispatch.harness import House
from tests.podman import PodmanService
from tests.registry import PASSWORD, USER

TOOLS = sorted(f"registry_{one}" for one in ("pull", "push", "inspect", "list", "copy", "delete"))
HERE = Platform("linux", content_config.host_architecture())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    """A registry for everybody, without TLS."""
    with registry.started(tmp_path_factory.mktemp("shop")) as found:
        yield found


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    """Another registry, of another make."""
    with registry.crane_started(tmp_path_factory.mktemp("other")) as found:
        yield found


@pytest.fixture
def bench(private_folders: Path) -> Bench:
    return Bench(private_folders, {"HOME": str(private_folders), "PATH": "/usr/bin:/bin"})


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A server whose engine speaks to no registry."""
    async with harness.opened(engines=("memory",), toolsets=("all",)) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class Put:
    """An index that was pushed by hand, and the images in it."""

    digest: str
    images: dict[str, str]


def config_of(platform: Platform, *layers: bytes, **config: object) -> bytes:
    return json.dumps(
        {
            "os": platform.os,
            "architecture": platform.architecture,
            "created": "2026-01-02T03:04:05Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [descriptors.digest_of(one) for one in layers]},
            "history": [{"created_by": "ADD rootfs /"} for _ in layers],
        }
    ).encode()


async def put_index(bench: Bench, name: str, *, tag: str = "1", signed: bool = False, **config: object) -> Put:
    """Push an index of two platforms."""
    entries, images = [], {}
    async with bench.repository(name) as repository:
        for platform in (HERE, Platform("linux", "s390x")):
            layer = uuid.uuid4().bytes * 1000
            settings = config_of(platform, layer, **config)
            for data in (layer, settings):
                await repository.blobs.give(blob_of(data), Bytes(data))
            manifest = manifest_of(blob_of(layer), config=settings)
            digest = await repository.manifests.put(descriptors.digest_of(manifest), manifest, descriptors.OCI_MANIFEST)
            images[str(platform)] = digest
            entries.append(Descriptor(descriptors.OCI_MANIFEST, digest, len(manifest), platform))
        data = descriptors.index_of(entries, annotations={"org.opencontainers.image.title": "shop"})
        digest = await repository.manifests.put(tag, data, descriptors.OCI_INDEX)
        if signed:
            subject = {"mediaType": descriptors.OCI_INDEX, "digest": digest, "size": len(data)}
            await repository.blobs.give(blob_of(b"{}"), Bytes(b"{}"))
            signature = manifest_of(artifactType="application/x.signature", subject=subject)
            await repository.manifests.put(descriptors.digest_of(signature), signature, descriptors.OCI_MANIFEST)
    return Put(digest, images)


async def confirmed(house: House, tool: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Call a tool that asks, and once more with the token that it gives; return the answer and the question."""
    outcome = await house.fails("confirmation_required", tool, arguments)
    return await house.ok(tool, arguments, confirm_token=outcome.error_data["confirm_token"]), outcome.text


def test_the_toolset_is_six_tools_none_of_them_offered_by_default() -> None:
    tools = application.tools()
    assert sorted(name for name, spec in tools.items() if spec.toolset == "registry") == TOOLS
    assert not [name for name in TOOLS if tools[name].essential]


# -------------------------------------------------------------------------------------------------------- pull and push


@pytest.fixture(params=["embedded", "docker", "podman"])
async def shipper(
    request: pytest.FixtureRequest, private_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[House, str]]:
    """A server on each real engine, and an image that the engine has."""
    name: str = request.param
    async with AsyncExitStack() as stack:
        if name == "embedded":
            engine = stack.enter_context(embedded.own_folders())
            image = embedded.base_image(engine, tmp_path)
        elif name == "docker":
            request.getfixturevalue("docker_cli")
            image = request.getfixturevalue("busybox_image")
        else:
            service: PodmanService = request.getfixturevalue("podman_service")
            monkeypatch.setenv("CONTAINER_HOST", service.url)
            (tmp_path / "root.tar").write_bytes(backends.root_filesystem(backends.static_busybox()))
            image = f"localhost/cxc-test-{uuid.uuid4().hex[:8]}:1"
            service.podman(["import", tmp_path / "root.tar", image])
            stack.callback(service.podman, ["image", "rm", "--force", image], check=False)
        yield await stack.enter_async_context(harness.opened(engines=(name,), toolsets=("all",))), image


async def test_an_image_is_pushed_after_a_question_and_the_engine_keeps_its_names(
    shipper: tuple[House, str], shop: registry.Registry
) -> None:
    """SPEC B141."""
    house, image = shipper
    target = f"{shop.authority}/pushed/{uuid.uuid4().hex[:8]}:1"
    pushed, question = await confirmed(house, "registry_push", {"image": image, "target": target})
    assert target in question
    assert pushed["digest"] == registry.crane("digest", target).strip()
    assert pushed["target"] == target
    if house.engine.name == "embedded":
        assert pushed["layers_uploaded"] == 1
        assert pushed["uploaded_bytes"] > 0
    names = await house.engine.list_image_names()
    assert (image in names, target in names) == (True, False)
    seen = await house.ok("registry_inspect", reference=target)
    assert (seen["digest"], seen["layers_count"]) == (pushed["digest"], 1)


async def test_to_a_listed_registry_it_is_pushed_at_once_and_there_it_is_not_sent_again(
    private_folders: Path, tmp_path: Path, shop: registry.Registry
) -> None:
    """SPEC B141."""
    name = f"{shop.authority}/listed/app"
    with embedded.own_folders() as engine:
        image = embedded.base_image(engine, tmp_path)
        async with harness.opened(
            engines=("embedded",), toolsets=("registry",), policy__push_registries=(shop.authority,)
        ) as house:
            first = await house.ok("registry_push", image=image, target=f"{name}:1")
            again = await house.ok("registry_push", image=image, target=f"{name}:2")
            assert (again["layers_uploaded"], again["layers_there"], again["digest"]) == (0, 1, first["digest"])
            await engine.remove_image(image, force=True)
            pulled = await house.ok("registry_pull", image=f"{name}:2")
            assert (pulled["digest"], pulled["layers_pulled"], pulled["layers_there"]) == (first["digest"], 1, 0)
            assert pulled["pulled_bytes"] == first["uploaded_bytes"]
            assert any("layer" in line for line in house.progress)
            there = await house.ok("registry_pull", image=f"{name}:1")
            assert (there["layers_pulled"], there["layers_there"], there["id"]) == (0, 1, pulled["id"])


async def test_docker_pulls_by_the_tool_and_says_the_digest(
    docker_cli: DockerCommandLine, busybox_image: str, shop: registry.Registry
) -> None:
    """SPEC B141."""
    target = f"{shop.authority}/docker/{uuid.uuid4().hex[:8]}:1"
    async with harness.opened(engine="docker", toolsets=["registry"], policy__push_registries=["*"]) as house:
        pushed = await house.ok("registry_push", image=busybox_image, target=target)
        try:
            pulled = await house.ok("registry_pull", image=target)
            assert pulled["digest"] == pushed["digest"]
            await house.fails("not_found", "registry_pull", image=f"{target}.0")
        finally:
            docker_cli(["image", "rm", target])


async def test_a_name_that_another_image_has_is_not_taken_from_it_to_push(
    docker_cli: DockerCommandLine, busybox_image: str, labelled: Callable[[str], str], shop: registry.Registry
) -> None:
    """SPEC B141."""
    target = f"{shop.authority}/taken/{uuid.uuid4().hex[:8]}:1"
    id = labelled(target)
    async with harness.opened(engine="docker", toolsets=["registry"], policy__push_registries=["*"]) as house:
        failing = await house.fails("conflict", "registry_push", image=busybox_image, target=target)
    assert target in failing.text
    assert docker_cli(["image", "inspect", "--format", "{{.Id}}", target]).stdout.strip() == id


@pytest.fixture
def labelled(docker_cli: DockerCommandLine, busybox_image: str) -> Iterator[Callable[[str], str]]:
    """Have Docker make an image of its own under a name, and say its id."""
    made: list[str] = []

    def make(name: str) -> str:
        docker_cli(["build", "--tag", name, "-"], stdin=f"FROM {busybox_image}\nLABEL one={name}\n".encode())
        made.append(name)
        return docker_cli(["image", "inspect", "--format", "{{.Id}}", name]).stdout.strip()

    yield make
    for name in made:
        docker_cli(["image", "rm", "--force", name])


async def test_an_engine_without_registries_says_which_have_them(house: House) -> None:
    made = await house.ok(
        "container_build", image_name="localhost/mine", dockerfile_text="FROM localhost/memory-base:1\n"
    )
    arguments = {"image": "localhost/mine", "target": "localhost:1/mine:1"}
    asked = await house.fails("confirmation_required", "registry_push", arguments)
    failing = await house.fails(
        "unsupported", "registry_push", arguments, confirm_token=asked.error_data["confirm_token"]
    )
    assert "embedded" in failing.text
    assert made["image_id"]
    await house.fails("unsupported", "registry_pull", image="localhost:1/none:1")
    await house.fails("invalid_argument", "registry_push", image=made["image_id"])


# -------------------------------------------------------------------------------------------------------------- inspect


async def test_an_index_is_looked_at_without_an_engine(house: House, bench: Bench, shop: registry.Registry) -> None:
    """SPEC B142."""
    name = f"{shop.authority}/look/index"
    put = await put_index(bench, name, signed=True, Env=["DB_PASSWORD=opensesame-4711", "A=b"], Labels={"team": "shop"})
    seen = await house.ok("registry_inspect", reference=f"{name}:1")
    assert (seen["kind"], seen["digest"], seen["platform"]) == ("index", put.digest, str(HERE))
    assert {row["platform"]: row["digest"] for row in seen["platforms"]} == put.images
    assert (seen["image_digest"], seen["layers_count"], seen["created"][:10]) == (
        put.images[str(HERE)],
        1,
        "2026-01-02",
    )
    assert "configuration" not in seen
    whole = await house.ok("registry_inspect", reference=f"{name}:1", platform="linux/s390x", detail=True)
    assert (whole["platform"], whole["image_digest"]) == ("linux/s390x", put.images["linux/s390x"])
    assert whole["configuration"]["env"] == ["DB_PASSWORD=***", "A=b"]
    assert whole["configuration"]["labels"] == {"team": "shop"}
    assert whole["annotations"] == {"org.opencontainers.image.title": "shop"}
    assert [one["artifact_type"] for one in whole["referrers"]] == ["application/x.signature"]
    assert len(whole["layers"]) == 1
    assert "opensesame" not in house.everything_that_left()
    failing = await house.fails("not_found", "registry_inspect", reference=f"{name}:1", platform="linux/riscv64")
    assert "linux/s390x" in failing.text


async def test_a_tag_that_is_not_there_is_answered_with_those_that_are(
    house: House, bench: Bench, shop: registry.Registry
) -> None:
    """SPEC B142."""
    name = f"{shop.authority}/look/tags"
    await put_index(bench, name, tag="release-1")
    failing = await house.fails("not_found", "registry_inspect", reference=f"{name}:release-2")
    assert "MANIFEST_UNKNOWN" in failing.text
    assert "release-1" in failing.text


async def test_what_an_image_says_of_itself_fits_into_an_answer_and_acts_on_no_terminal(
    house: House, bench: Bench, shop: registry.Registry
) -> None:
    """SPEC B142."""
    name = f"{shop.authority}/look/hostile"
    labels = {"x" * 100_000: "y", "\ud800": "\x1b[31mred\nline", **{f"n{number}": "z" * 5000 for number in range(300)}}
    secret = "first-line-4711\nsecond-line-0815"
    await put_index(bench, name, Labels=labels, Env=[f"DB_PASSWORD={secret}"], Cmd=["sh", "-c", f"echo {secret}"])
    outcome = await house.call("registry_inspect", reference=f"{name}:1", detail=True)
    assert outcome.error is None
    assert len(json.dumps(outcome.structured)) < 100_000
    assert outcome.structured is not None
    assert all(one.isprintable() for one in outcome.text.replace("\n", ""))
    left = house.everything_that_left()
    for part in ("first-line", "second-line"):
        assert part not in left


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("registry_inspect", {"reference": "{}/a/b:1"}),
        ("registry_list", {"repository": "{}/a/b"}),
        ("registry_list", {"registry": "{}"}),
        ("registry_copy", {"source": "{}/a/b:1", "target": "localhost:1/x:1"}),
        ("registry_delete", {"reference": "{}/a/b:1"}),
    ],
)
async def test_a_registry_that_is_not_listed_is_not_read(
    tool: str, arguments: dict[str, str], shop: registry.Registry
) -> None:
    """SPEC B142."""
    asked = {name: value.format(shop.authority) for name, value in arguments.items()}
    async with harness.opened(
        engines=("memory",), toolsets=("registry",), policy__pull_registries=("docker.io",)
    ) as house:
        failing = await house.fails("refused", tool, asked)
    assert "policy.pull_registries" in failing.text


# ---------------------------------------------------------------------------------------------------------------- lists


async def test_tags_come_in_pages_the_highest_version_first(
    house: House, bench: Bench, shop: registry.Registry
) -> None:
    """SPEC B143."""
    name = f"{shop.authority}/list/tags"
    put = await put_index(bench, name, tag="1.9")
    async with bench.repository(name) as repository:
        found = await repository.manifests.get(put.digest)
        for tag in ("1.10", "1.2", "latest", "1.10-slim"):
            await repository.manifests.put(tag, found.data, found.media_type)
    whole = await house.ok("registry_list", repository=name)
    assert whole["names"] == ["1.10-slim", "1.10", "1.9", "1.2", "latest"]
    assert (await house.ok("registry_list", repository=name, filter="1.1*"))["names"] == ["1.10-slim", "1.10"]
    assert (await house.ok("registry_list", repository=name, filter="test"))["names"] == ["latest"]
    seen, cursor = list[str](), None
    while True:
        page = await house.ok("registry_list", repository=name, limit=2, cursor=cursor)
        seen += page["names"]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert seen == whole["names"]
    await house.fails("not_found", "registry_list", repository=f"{name}-none")


async def test_repositories_are_listed_by_name(house: House, bench: Bench, shop: registry.Registry) -> None:
    """SPEC B143."""
    for one in ("b", "a"):
        await put_index(bench, f"{shop.authority}/catalogue/{one}")
    found = await house.ok("registry_list", registry=shop.authority, filter="catalogue/")
    assert (found["kind"], found["names"]) == ("repositories", ["catalogue/a", "catalogue/b"])


@pytest.mark.parametrize(
    "arguments", [{}, {"repository": "a/b", "registry": "c:1"}, {"registry": "https://x"}, {"registry": "x/y"}]
)
async def test_a_list_is_of_one_thing(house: House, arguments: dict[str, str]) -> None:
    await house.fails("invalid_argument", "registry_list", arguments)


# ------------------------------------------------------------------------------------------------------------- deletion


@pytest.mark.parametrize("make", ["shop", "other"])
async def test_a_removal_names_every_tag_that_goes_and_takes_no_other(
    make: str, request: pytest.FixtureRequest, house: House, bench: Bench
) -> None:
    """SPEC B144."""
    found_there: registry.Registry = request.getfixturevalue(make)
    name = f"{found_there.authority}/gone/app"
    put, kept = await put_index(bench, name, tag="1"), await put_index(bench, name, tag="2")
    async with bench.repository(name) as repository:
        found = await repository.manifests.get(put.digest)
        await repository.manifests.put("stable", found.data, found.media_type)
    removed, question = await confirmed(house, "registry_delete", {"reference": f"{name}:stable"})
    assert "the tag 1" in question
    assert "the tag stable" in question
    assert put.digest in question
    assert "the tag 2" not in question
    assert (removed["digest"], removed["tags"], removed["tags_left"]) == (put.digest, ["1", "stable"], [])
    assert (await house.ok("registry_list", repository=name))["names"] == ["2"]
    await house.fails("not_found", "registry_inspect", reference=f"{name}@{put.digest}")
    assert (await house.ok("registry_inspect", reference=f"{name}:2"))["digest"] == kept.digest
    await house.fails("not_found", "registry_delete", reference=f"{name}:stable")


async def test_a_token_for_a_removal_is_worth_nothing_once_the_tag_means_something_else(
    house: House, bench: Bench, shop: registry.Registry
) -> None:
    """SPEC B144."""
    name = f"{shop.authority}/gone/moved"
    await put_index(bench, name)
    asked = await house.fails("confirmation_required", "registry_delete", reference=f"{name}:1")
    now = await put_index(bench, name)
    token = asked.error_data["confirm_token"]
    await house.fails("confirmation_required", "registry_delete", reference=f"{name}:1", confirm_token=token)
    assert (await house.ok("registry_inspect", reference=f"{name}:1"))["digest"] == now.digest


# ----------------------------------------------------------------------------------------------------------------- copy


async def test_an_index_is_copied_to_another_registry_after_a_question(
    house: House, bench: Bench, shop: registry.Registry, other: registry.Registry
) -> None:
    """SPEC B145."""
    source, target = f"{shop.authority}/copied/from:1", f"{other.authority}/copied/to:2"
    put = await put_index(bench, source.rpartition(":")[0], signed=True)
    copied, question = await confirmed(house, "registry_copy", {"source": source, "target": target, "referrers": True})
    assert target in question
    assert (copied["digest"], copied["manifests"]) == (put.digest, 4)
    assert copied["uploaded_bytes"] > 0
    seen = await house.ok("registry_inspect", reference=target, detail=True)
    assert seen["digest"] == put.digest
    assert [one["artifact_type"] for one in seen["referrers"]] == ["application/x.signature"]


async def test_one_platform_is_copied_and_within_a_registry_nothing_is_sent(
    bench: Bench, shop: registry.Registry
) -> None:
    """SPEC B145."""
    source, target = f"{shop.authority}/copied/whole:1", f"{shop.authority}/copied/part:1"
    put = await put_index(bench, source.rpartition(":")[0])
    async with harness.opened(engines=("memory",), toolsets=("registry",), policy__push_registries=("*",)) as house:
        copied = await house.ok("registry_copy", source=source, target=target, all_platforms=False)
        assert (copied["digest"], copied["uploaded_bytes"]) == (put.images[str(HERE)], 0)
        assert copied["blobs_mounted"] == 2
        await house.fails("invalid_argument", "registry_copy", source=source, target=f"{target}@{put.digest}")


# ---------------------------------------------------------------------------------------------------------- credentials


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that wants a password."""
    with registry.started(tmp_path_factory.mktemp("guarded"), with_password=True) as found:
        yield found.authority


async def test_every_engine_pushes_with_the_users_credentials_and_none_shows_them(
    shipper: tuple[House, str], guarded: str, private_folders: Path
) -> None:
    """SPEC B138, SPEC B141."""
    house, image = shipper
    arguments = {"image": image, "target": f"{guarded}/secret/{uuid.uuid4().hex[:8]}:1"}
    asked = await house.fails("confirmation_required", "registry_push", arguments)
    failing = await house.fails(
        "unauthorized", "registry_push", arguments, confirm_token=asked.error_data["confirm_token"]
    )
    assert "cxc login" in failing.text
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    file = private_folders / ".docker" / "config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"auths": {guarded: {"auth": auth}}}))
    pushed, _ = await confirmed(house, "registry_push", arguments)
    assert (await house.ok("registry_inspect", reference=arguments["target"]))["digest"] == pushed["digest"]
    left = house.everything_that_left()
    assert PASSWORD not in left
    assert auth not in left


async def test_a_registry_that_does_not_answer_is_told_by_every_engine(shipper: tuple[House, str]) -> None:
    """SPEC B141."""
    house, image = shipper
    arguments = {"image": image, "target": "localhost:1/none/none:1"}
    asked = await house.fails("confirmation_required", "registry_push", arguments)
    await house.fails("engine_unavailable", "registry_push", arguments, confirm_token=asked.error_data["confirm_token"])
    names = await house.engine.list_image_names()
    assert (image in names, arguments["target"] in names) == (True, False)
