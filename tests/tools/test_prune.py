"""Does a confirmed prune remove what the question named and nothing else? On an engine of the tests' own: all of it is at stake.

SPEC B86.
"""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dispatch import harness
from tests.dispatch.harness import House
from tests.server import engines
from tests.server.engines import OwnEngine


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    engine = engines.open_own_engine(tmp_path_factory.mktemp("engine"))
    try:
        yield engine
    finally:
        engine.end()


@pytest.fixture
def own(started: OwnEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OwnEngine:
    """An engine without volumes, networks and images of anybody; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{started.socket_path}")
    for kind in ("volume", "network", "image"):
        left = there(started, kind)
        if left:
            started.docker([kind, "rm", *left])
    return started


@pytest.fixture
async def house(own: OwnEngine) -> AsyncIterator[House]:
    async with harness.opened(engine="docker", toolsets=["all"]) as opened:
        yield opened


def there(engine: OwnEngine, kind: str) -> set[str]:
    """The names of the volumes or networks, or the ids of the images, that others made."""
    form = ["--quiet", "--no-trunc"] if kind == "image" else ["--format", "{{.Name}}"]
    return set(engine.docker([kind, "ls", *form]).stdout.split()) - {"bridge", "host", "none"}


def untagged(engine: OwnEngine) -> str:
    """Import an image without a name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = 3000
        archive.addfile(entry, io.BytesIO(uuid.uuid4().bytes.ljust(3000, b"x")))
    return engine.docker(["import", "-"], stdin=packed.getvalue()).stdout.strip()


async def token(house: House, arguments: dict[str, Any]) -> str:
    outcome = await house.fails("confirmation_required", "engine_prune", arguments)
    return str(outcome.error_data["confirm_token"])


@pytest.mark.parametrize("kind", ["volume", "network"])
async def test_confirmed_prune_removes_what_it_named(own: OwnEngine, house: House, kind: str) -> None:
    for name in ("first", "second"):
        own.docker([kind, "create", name])
    given = {"kind": f"{kind}s", "dry_run": False}
    outcome = await house.fails("confirmation_required", "engine_prune", given)
    assert sorted(one.partition(" ")[0] for one in outcome.error_data["lost"]) == ["first", "second"]
    assert there(own, kind) == {"first", "second"}
    done = await house.ok("engine_prune", given, confirm_token=outcome.error_data["confirm_token"])
    assert {row["name"] for row in done["objects"]} == {"first", "second"}
    assert there(own, kind) == set()


async def test_confirmed_prune_of_images_frees_their_bytes(own: OwnEngine, house: House) -> None:
    image = untagged(own)
    given = {"kind": "images", "dry_run": False}
    done = await house.ok("engine_prune", given, confirm_token=await token(house, given))
    assert [row["name"] for row in done["objects"]] == [image.removeprefix("sha256:")[:12]]
    assert done["freed_bytes"] >= 3000
    assert done["at_most"] is True
    assert image not in there(own, "image")


async def test_object_that_came_after_the_question_makes_the_token_worthless(own: OwnEngine, house: House) -> None:
    own.docker(["volume", "create", "first"])
    given = {"kind": "volumes", "dry_run": False}
    held = await token(house, given)
    own.docker(["volume", "create", "second"])
    outcome = await house.fails("confirmation_required", "engine_prune", given, confirm_token=held)
    assert "the state has changed" in outcome.text
    assert there(own, "volume") == {"first", "second"}


async def test_object_that_came_while_a_person_thought_stops_the_prune(own: OwnEngine, house: House) -> None:
    own.docker(["volume", "create", "first"])

    async def accept(question: str) -> harness.Reply:
        assert "first" in question
        own.docker(["volume", "create", "second"])
        return "accept"

    outcome = await house.call_asking("engine_prune", {"kind": "volumes", "dry_run": False}, accept)
    assert outcome.error_data["code"] == "conflict"
    assert there(own, "volume") == {"first", "second"}


async def test_prune_of_this_runs_own_objects_asks_nothing(own: OwnEngine, house: House) -> None:
    await house.ok("volume_create", {"name": "mine"})
    done = await house.ok("engine_prune", kind="volumes", dry_run=False)
    assert [row["name"] for row in done["objects"]] == ["mine"]
    await house.ok("volume_create", {"name": "mine"})
    own.docker(["volume", "create", "others"])
    await house.fails("confirmation_required", "engine_prune", kind="volumes", dry_run=False)


async def test_prune_of_an_empty_build_cache_frees_nothing_and_asks_nothing(house: House) -> None:
    done = await house.ok("engine_prune", kind="build_cache", dry_run=False)
    assert (done["total"], done.get("freed_bytes")) == (0, 0)
