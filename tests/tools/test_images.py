"""What do the image tools list, show, move and remove, and what do they ask before?"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House

PASSWORD = "correct-horse-battery"


@dataclass(slots=True)
class Shelf:
    """Images that others made, all of names with a beginning of their own."""

    docker: DockerCommandLine
    base: str
    label: str
    name: str
    ids: set[str] = field(default_factory=set)
    containers: list[str] = field(default_factory=list)

    def build(self, tag: str, *instructions: str) -> str:
        """Build an image that is unlike every other and return its id."""
        lines = [f"FROM {self.base}", f"LABEL made={uuid.uuid4().hex} {self.label}", *instructions]
        self.docker(["build", "--tag", f"{self.name}:{tag}", "-"], stdin="\n".join(lines).encode())
        self.ids.add(self.id(tag))
        return self.id(tag)

    def id(self, tag: str) -> str:
        return self.docker(["image", "inspect", "--format", "{{.Id}}", f"{self.name}:{tag}"]).stdout.strip()

    def tag(self, source: str, *targets: str) -> None:
        for target in targets:
            self.docker(["tag", f"{self.name}:{source}", f"{self.name}:{target}"])

    def is_there(self, image: str) -> bool:
        return self.docker(["image", "inspect", image], check=False).returncode == 0

    def use(self, tag: str, *, running: bool = False) -> str:
        """Make a container of an image."""
        name = f"cxc-tools-{uuid.uuid4().hex[:8]}"
        how = ["run", "--detach"] if running else ["create"]
        self.docker([*how, "--name", name, "--label", self.label, f"{self.name}:{tag}", "sleep", "3600"])
        self.containers.append(name)
        return name

    def clear(self) -> None:
        if self.containers:
            self.docker(["rm", "--force", *self.containers], check=False)
        named = self.docker(["images", "--quiet", "--no-trunc", "--filter", f"reference={self.name}"]).stdout.split()
        left = [one for one in {*named, *self.ids} if self.is_there(one)]
        if left:
            self.docker(["rmi", "--force", *left], check=False)


@pytest.fixture
def shelf(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Shelf]:
    made = Shelf(docker_cli, busybox_image, session_label, f"localhost/cxc-tools-{uuid.uuid4().hex[:8]}")
    yield made
    made.clear()


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The process stands in a folder of the test's own, which is therefore an allowed path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def short(id: str) -> str:
    return id.removeprefix("sha256:")[:12]


# -------------------------------------------------------------------------------------------------------------- list


async def test_list_shows_tags_size_and_users(shelf: Shelf) -> None:
    id = shelf.build("1")
    shelf.tag("1", "2")
    user = shelf.use("1")
    async with harness.opened() as house:
        outcome = await house.call("image_list", name=shelf.name)
    assert outcome.structured is not None
    (row,) = outcome.structured["images"]
    assert row["id"] == short(id)
    assert sorted(row["tags"]) == [f"{shelf.name}:1", f"{shelf.name}:2"]
    assert row["size_bytes"] > 500_000
    assert row["used_by"] == [user]
    assert row["created"].endswith("Z")
    assert outcome.structured["total"] == 1
    assert user in outcome.text


async def test_list_of_untagged_images_has_no_tagged_ones(shelf: Shelf) -> None:
    id = shelf.build("1")
    tagged = shelf.build("2")
    shelf.docker(["tag", tagged, f"{shelf.name}:1"])  # the first has no name any more
    async with harness.opened() as house:
        assert (await house.ok("image_list", name=shelf.name, dangling=True))["images"] == []
        rows = await _all(house, dangling=True)
        assert short(id) in rows
        assert short(tagged) not in rows
        rows = await _all(house, dangling=False)
        assert short(id) not in rows
        assert short(tagged) in rows


async def _all(house: House, *, dangling: bool) -> list[str]:
    rows: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await house.ok("image_list", dangling=dangling, limit=500, **cursor)
        rows += [row["id"] for row in page["images"]]
        if "next_cursor" not in page:
            return rows
        cursor = {"cursor": page["next_cursor"]}


async def test_list_pages_without_repeating_or_losing_while_images_come_and_go(shelf: Shelf) -> None:
    for number in range(6):
        shelf.build(str(number))
    ids = [short(shelf.id(str(number))) for number in range(6)]
    seen: list[str] = []
    async with harness.opened() as house:
        page = await house.ok("image_list", name=shelf.name, limit=2)
        seen += [row["id"] for row in page["images"]]
        # One that was seen goes, one that was not goes, a new one comes in front.
        gone = next(id for id in ids if id not in seen)
        for id in (seen[0], gone):
            shelf.docker(["rmi", "--force", id])
        shelf.build("new")
        while "next_cursor" in page:
            page = await house.ok("image_list", name=shelf.name, limit=2, cursor=page["next_cursor"])
            seen += [row["id"] for row in page["images"]]
        assert len(seen) == len(set(seen))
        assert set(seen) >= set(ids) - {gone}
        first = await house.ok("image_list", name=shelf.name, limit=2)
        await house.fails("cursor_mismatch", "image_list", name="other", limit=2, cursor=first["next_cursor"])
        await house.fails("cursor_mismatch", "image_list", name=shelf.name, cursor="nonsense")


async def test_list_that_is_cut_goes_on_behind_its_last_row(shelf: Shelf) -> None:
    shelf.build("0")
    tags = [f"{number:03d}-{'x' * 100}" for number in range(8)]
    for tag in tags:
        shelf.build(tag)
    async with harness.opened(answer_characters=2_000) as house:
        seen: list[str] = []
        cursor: dict[str, str] = {}
        pages = 0
        while True:
            outcome = await house.call("image_list", name=shelf.name, **cursor)
            assert outcome.structured is not None
            assert len(outcome.text) <= 2_000
            assert len(json.dumps(outcome.structured)) <= 2_000
            seen += [row["id"] for row in outcome.structured["images"]]
            pages += 1
            if "next_cursor" not in outcome.structured:
                break
            cursor = {"cursor": outcome.structured["next_cursor"]}
    assert pages > 1
    assert sorted(seen) == sorted(short(shelf.id(tag)) for tag in ("0", *tags))


async def test_list_and_inspect_of_an_image_without_a_date(shelf: Shelf) -> None:
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {}}
    shelf.docker(["load"], stdin=_saved(json.dumps(config).encode(), f"{shelf.name}:undated"))
    async with harness.opened() as house:
        (row,) = (await house.ok("image_list", name=shelf.name))["images"]
        assert row["created"].startswith("0001-01-01")
        found = await house.ok("image_inspect", image=f"{shelf.name}:undated")
        assert (found["layers"], found["layers_count"], found["total_size_bytes"]) == ([], 0, 0)
        assert "created" not in found


def _saved(config: bytes, tag: str) -> bytes:
    buffer = io.BytesIO()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": []}]).encode()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in ((name, config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------------- inspect


async def test_inspect_shows_configuration_and_layers_the_largest_first(shelf: Shelf) -> None:
    id = shelf.build(
        "1",
        "RUN head -c 300000 /dev/urandom > /middle",
        "RUN head -c 4000000 /dev/urandom > /large",
        "RUN echo 1 > /small",
        *["USER 12:34", "WORKDIR /tmp", "EXPOSE 80 53/udp", "VOLUME /data", "LABEL team=blue", "ENV COLOUR=red"],
        'ENTRYPOINT ["sh", "-c"]',
        'CMD ["true"]',
        "HEALTHCHECK CMD true",
    )
    async with harness.opened() as house:
        found = await house.ok("image_inspect", image=f"{shelf.name}:1")
    instructions = [layer["instruction"] for layer in found["layers"]]
    sizes = [layer["size_bytes"] for layer in found["layers"]]
    assert instructions[0] == "RUN head -c 4000000 /dev/urandom > /large"
    assert instructions.index("RUN head -c 300000 /dev/urandom > /middle") < instructions.index("RUN echo 1 > /small")
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes)
    assert sizes[0] == 4_000_000
    assert sum(sizes) == found["total_size_bytes"]
    expected = {
        "id": short(id),
        "image_name": f"{shelf.name}:1",
        "tags": [f"{shelf.name}:1"],
        "user": "12:34",
        "workdir": "/tmp",
        "entrypoint": ["sh", "-c"],
        "command": ["true"],
        "exposed_ports": ["53/udp", "80/tcp"],
        "volumes": ["/data"],
        "healthcheck": "true",
        "layers_count": len(sizes),
        "size_mb": round(sum(sizes) / 1e6, 2),
        "largest_layer_mb": 4.0,
        "suggestions": [],
        "optimization_score": 100,
        "size_efficiency": 100.0,
    }
    assert {key: found[key] for key in expected} == expected
    assert "COLOUR=red" in found["env"]
    assert found["labels"]["team"] == "blue"
    assert found["platform"].startswith("linux/")


async def test_inspect_suggests_what_could_shrink_a_real_image_and_is_not_fooled_by_words(shelf: Shelf) -> None:
    shelf.build(
        "1",
        "RUN printf '#!/bin/sh\\nhead -c 2000000 /dev/urandom > /$2\\n' > /bin/apt-get && chmod +x /bin/apt-get",
        "RUN apt-get install gcc curl",
        "RUN rm -f /install",
        "RUN true # apt-get install x && pip install y",
        "RUN echo 'apt-get install x' > /said",
    )
    async with harness.opened() as house:
        found = await house.ok("image_inspect", image=f"{shelf.name}:1")
    assert [one.rpartition(": ")[0] or one for one in found["suggestions"]]
    about = [one for one in found["suggestions"] if one.startswith("RUN ")]
    assert sorted(about) == [
        "RUN apt-get install gcc curl: build tools (gcc) stay in the image: build in an earlier stage and copy the result",
        "RUN apt-get install gcc curl: remove /var/lib/apt/lists/* in the same RUN",
        "RUN rm -f /install: files removed in a later layer still count: remove them in the RUN that makes them",
    ]
    assert any(one.startswith("runs as root") for one in found["suggestions"])
    assert found["optimization_score"] < 70
    assert found["size_efficiency"] < 70


async def test_inspect_masks_secrets_in_configuration_and_history(shelf: Shelf) -> None:
    shelf.build("1", f"ENV DB_PASSWORD={PASSWORD}", f"RUN echo {PASSWORD} > /x", f"LABEL api-token={PASSWORD}")
    async with harness.opened() as house:
        found = await house.ok("image_inspect", image=f"{shelf.name}:1")
        assert PASSWORD not in house.everything_that_left()
    assert "DB_PASSWORD=***" in found["env"]
    assert found["labels"]["api-token"] == "***"


async def test_inspect_takes_a_name_an_id_and_a_short_id(shelf: Shelf) -> None:
    id = shelf.build("latest")
    async with harness.opened() as house:
        for text in (shelf.name, f"{shelf.name}:latest", id, short(id), id.removeprefix("sha256:")):
            assert (await house.ok("image_inspect", image=text))["id"] == short(id)


async def test_inspect_of_what_is_not_there_names_what_is_near(shelf: Shelf) -> None:
    shelf.build("1")
    async with harness.opened() as house:
        outcome = await house.fails("not_found", "image_inspect", image=f"{shelf.name}:2")
        assert f"did you mean {shelf.name}:1" in outcome.text
        for text in ("", "UPPER", "-x", "a b", "a:b:c", "http://x/y", "x@sha256:short"):
            await house.fails("invalid_argument", "image_inspect", image=text)


@pytest.mark.parametrize("digits", [1, 4, 11])
async def test_a_few_digits_of_an_id_are_no_name_of_an_image(shelf: Shelf, digits: int) -> None:
    id = shelf.build("1").removeprefix("sha256:")
    async with harness.opened(confirmation="never") as house:
        await house.fails("not_found", "image_inspect", image=id[:digits])
        await house.fails("not_found", "image_remove", image=id[:digits], force=True)
    assert shelf.is_there(id)


# --------------------------------------------------------------------------------------------------------------- tag


async def test_tag_gives_a_new_name_and_may_be_repeated(shelf: Shelf) -> None:
    id = shelf.build("1")
    async with harness.opened() as house:
        for _ in range(2):
            found = await house.ok("image_tag", source=f"{shelf.name}:1", target=f"{shelf.name}:new")
            assert (found["id"], found["target"]) == (short(id), f"{shelf.name}:new")
        assert (await house.ok("image_tag", source=short(id), target=shelf.name))["target"] == f"{shelf.name}:latest"
    assert shelf.id("new") == shelf.id("latest") == id


async def test_tag_that_takes_a_name_from_an_image_of_others_asks_and_says_what_it_takes(shelf: Shelf) -> None:
    new, old = shelf.build("new"), shelf.build("old")
    call = {"source": f"{shelf.name}:new", "target": f"{shelf.name}:old"}
    async with harness.opened() as house:
        outcome = await house.fails("confirmation_required", "image_tag", call)
        assert f"{shelf.name}:old, which now means image {short(old)}" in outcome.text
        assert "its only one" in outcome.text
        assert shelf.id("old") == old
        third = shelf.build("old")  # somebody else is quicker
        again = await house.fails(
            "confirmation_required", "image_tag", call, confirm_token=outcome.error_data["confirm_token"]
        )
        assert short(third) in again.text
        await house.ok("image_tag", call, confirm_token=again.error_data["confirm_token"])
    assert shelf.id("old") == new


async def test_tag_that_moves_a_name_of_this_runs_own_image_does_not_ask(shelf: Shelf) -> None:
    shelf.build("other")
    async with harness.opened(buildx="off") as house:
        text = f"FROM {shelf.base}\nLABEL made={uuid.uuid4().hex}\n"
        await house.ok("container_build", dockerfile_text=text, image_name=shelf.name, tag="own")
        shelf.ids.add(shelf.id("own"))
        await house.ok("image_tag", source=f"{shelf.name}:other", target=f"{shelf.name}:own")
    assert shelf.id("own") == shelf.id("other")


@pytest.mark.parametrize("target", ["", "UPPER", "-x", "a:b:c", f"x@sha256:{'0' * 64}", "sha256:abc", "0" * 64, "a b"])
async def test_tag_refuses_what_is_no_name(shelf: Shelf, target: str) -> None:
    async with harness.opened(confirmation="never") as house:
        await house.fails("invalid_argument", "image_tag", source=shelf.base, target=target)
        await house.fails("not_found", "image_tag", source=f"{shelf.name}:none", target=f"{shelf.name}:x")


# ------------------------------------------------------------------------------------------------------------ remove


async def test_remove_of_one_of_several_names_takes_the_name_only(shelf: Shelf) -> None:
    id = shelf.build("1")
    shelf.tag("1", "2")
    shelf.use("1", running=True)
    async with harness.opened() as house:
        outcome = await house.fails("confirmation_required", "image_remove", image=f"{shelf.name}:2")
        assert f"the name {shelf.name}:2 (the image stays as {shelf.name}:1)" in outcome.text
        token = outcome.error_data["confirm_token"]
        found = await house.ok("image_remove", image=f"{shelf.name}:2", confirm_token=token)
    assert found["removed"] == [f"name {shelf.name}:2"]
    assert shelf.id("1") == id


async def test_remove_of_the_last_name_takes_the_image(shelf: Shelf) -> None:
    id = shelf.build("1")
    async with harness.opened() as house:
        outcome = await house.fails("confirmation_required", "image_remove", image=f"{shelf.name}:1")
        assert f"image {short(id)} ({shelf.name}:1, " in outcome.text
        token = outcome.error_data["confirm_token"]
        found = await house.ok("image_remove", image=f"{shelf.name}:1", confirm_token=token)
    assert found["removed"][:2] == [f"name {shelf.name}:1", f"image {short(id)}"]
    assert not shelf.is_there(id)


async def test_remove_by_id_of_an_image_with_several_names_needs_force(shelf: Shelf) -> None:
    id = shelf.build("1")
    shelf.tag("1", "2")
    async with harness.opened(confirmation="never") as house:
        outcome = await house.fails("conflict", "image_remove", image=id)
        assert f"{shelf.name}:1" in outcome.text
        assert "force=true" in outcome.text
        found = await house.ok("image_remove", image=short(id), force=True)
    assert {f"name {shelf.name}:1", f"name {shelf.name}:2", f"image {short(id)}"} <= set(found["removed"])
    assert not shelf.is_there(id)


async def test_remove_of_an_image_in_use_needs_force_and_names_the_containers(shelf: Shelf) -> None:
    id = shelf.build("1")
    user = shelf.use("1")
    async with harness.opened() as house:
        assert user in (await house.fails("conflict", "image_remove", image=f"{shelf.name}:1")).text
        outcome = await house.fails("confirmation_required", "image_remove", image=f"{shelf.name}:1", force=True)
        assert user in outcome.text
        other = shelf.use("1")  # the state has changed: the confirmation does not hold
        token = outcome.error_data["confirm_token"]
        again = await house.fails(
            "confirmation_required", "image_remove", image=f"{shelf.name}:1", force=True, confirm_token=token
        )
        assert other in again.text
        token = again.error_data["confirm_token"]
        found = await house.ok("image_remove", image=f"{shelf.name}:1", force=True, confirm_token=token)
    assert f"name {shelf.name}:1" in found["removed"]
    assert (f"image {short(id)}" in found["removed"]) is not shelf.is_there(id)


async def test_remove_says_what_really_went_when_a_running_container_keeps_the_image(shelf: Shelf) -> None:
    id = shelf.build("1")
    shelf.use("1", running=True)
    async with harness.opened(confirmation="never") as house:
        await house.fails("conflict", "image_remove", image=id, force=True)
        found = await house.ok("image_remove", image=f"{shelf.name}:1", force=True)
    assert found["removed"] == [f"name {shelf.name}:1"]
    assert shelf.is_there(id)


async def test_remove_of_this_runs_own_image_does_not_ask_and_the_next_of_its_name_does(shelf: Shelf) -> None:
    async with harness.opened(buildx="off") as house:
        text = f"FROM {shelf.base}\nLABEL made={uuid.uuid4().hex}\n"
        await house.ok("container_build", dockerfile_text=text, image_name=shelf.name, tag="own")
        await house.ok("image_remove", image=f"{shelf.name}:own")
        assert not shelf.is_there(f"{shelf.name}:own")
        shelf.build("own")
        await house.fails("confirmation_required", "image_remove", image=f"{shelf.name}:own")


async def test_remove_of_what_is_not_there_is_not_found(shelf: Shelf) -> None:
    async with harness.opened(confirmation="never") as house:
        await house.fails("not_found", "image_remove", image=f"{shelf.name}:none")
        await house.fails("not_found", "image_remove", image="0123456789ab")


async def test_a_read_only_server_lists_and_inspects_and_neither_tags_nor_removes(shelf: Shelf) -> None:
    shelf.build("1")
    async with harness.opened(read_only=True, confirmation="never") as house:
        await house.ok("image_list", name=shelf.name)
        await house.ok("image_inspect", image=f"{shelf.name}:1")
        await house.fails("refused", "image_tag", source=f"{shelf.name}:1", target=f"{shelf.name}:2")
        await house.fails("refused", "image_remove", image=f"{shelf.name}:1")
