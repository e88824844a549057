"""Are events found after they happened and while one waits, and is what cannot be known said? (SPEC B87)"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from codomyrmex_containerization.core import events
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.event import EventQuery
from tests.backends import DockerCommandLine
from tests.dispatch import harness


@dataclass(slots=True)
class Stage:
    """A container of a name of its own, and what was reported while events were waited for."""

    docker: DockerCommandLine
    image: str
    label: str
    engine: guard.GuardedEngine
    name: str = field(default_factory=lambda: f"cxc-events-{uuid.uuid4().hex[:8]}")
    reported: list[str] = field(default_factory=list)

    def play(self, exit_code: int = 0) -> None:
        """Run a container to its end."""
        how = ["run", "--name", self.name, "--label", self.label, "--network", "none"]
        self.docker([*how, self.image, "sh", "-c", f"exit {exit_code}"], check=False)

    async def read(
        self, *, follow_seconds: float = 0, most: int = 100, since: datetime | None = None, **filters: str
    ) -> events.EventPage:
        wanted = {name: (value,) for name, value in {"container": self.name, **filters}.items()}
        query = EventQuery(since or datetime.now(UTC) - timedelta(minutes=10), None, wanted)

        async def progress(done: float, total: float | None, message: str) -> None:
            self.reported.append(message)

        return await events.read(self.engine, query, follow_seconds=follow_seconds, most=most, progress=progress)


@pytest.fixture
async def stage(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> AsyncIterator[Stage]:
    async with harness.opened(engine="docker") as house:
        engine = await house.application.engines.pick()
        made = Stage(docker_cli, busybox_image, session_label, engine)
        yield made
        docker_cli(["rm", "--force", made.name], check=False)


async def test_life_of_a_container_is_told_in_order_with_its_exit_code(stage: Stage) -> None:
    stage.play(exit_code=3)
    page = await stage.read()
    actions = [one.action for one in page.events]
    assert [one for one in actions if one in ("create", "start", "die")] == ["create", "start", "die"]
    (died,) = [one for one in page.events if one.action == "die"]
    assert died.attributes["exitCode"] == "3"
    assert (died.name, died.type, died.engine) == (stage.name, "container", "docker")
    assert page.total == len(page.events)


async def test_filter_leaves_only_what_it_names(stage: Stage) -> None:
    stage.play()
    page = await stage.read(event="start")
    assert [one.action for one in page.events] == ["start"]


async def test_last_events_are_kept_and_all_are_counted(stage: Stage) -> None:
    stage.play()
    whole = await stage.read()
    page = await stage.read(most=1)
    assert page.events == whole.events[-1:]
    assert page.total == whole.total > 1


async def test_nothing_happened_is_no_events(stage: Stage) -> None:
    page = await stage.read()
    assert (page.events, page.total) == ((), 0)


async def test_event_that_happens_while_it_is_waited_for_is_seen_and_reported(stage: Stage) -> None:
    page: list[events.EventPage] = []

    async def watch() -> None:
        page.append(await stage.read(follow_seconds=6, event="die"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.to_thread.run_sync(stage.play)
    assert [one.action for one in page[0].events] == ["die"]
    assert stage.reported[0].startswith("0 events")


async def test_waiting_ends_though_nothing_happens(stage: Stage) -> None:
    page = await stage.read(follow_seconds=0.5)
    assert page.total == 0
    assert stage.reported


async def test_edge_of_what_the_engine_remembers_is_said(stage: Stage) -> None:
    # Each of these is an event, and none of them makes anything.
    for _ in range(events.DOCKER_KEEPS // 2 + 1):
        await stage.engine.tag_image(stage.image, stage.image)
        await stage.engine.tag_image(stage.image, stage.image)
    page = await stage.read(since=datetime.now(UTC) - timedelta(hours=24))
    assert any("last 256 events" in note for note in page.notes)


async def test_time_that_lies_within_what_the_engine_remembers_has_no_note(stage: Stage) -> None:
    page = await stage.read(since=datetime.now(UTC))
    assert page.notes == ()
