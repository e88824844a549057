"""Does the reaper take what dead runs of this state folder left, and nothing else?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import codomyrmex_containerization
from codomyrmex_containerization import config
from codomyrmex_containerization.dispatch import runs
from codomyrmex_containerization.engines import guard
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House

DEAD = "0123456789abcdef"


@pytest.fixture
def make(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[object]:
    """Make a container that wears the labels of a run."""
    made: list[str] = []

    def one(house: House, *, run: str, lifetime: str, host: str | None = None, options: Sequence[str] = ()) -> str:
        labels = {
            guard.LABEL_HOST: house.application.run.host if host is None else host,
            guard.LABEL_RUN: run,
            guard.LABEL_LIFETIME: lifetime,
        }
        given = [f"--label={key}={value}" for key, value in labels.items()]
        verb = options or ("create",)
        id = docker_cli([*verb, "--label", session_label, *given, busybox_image, "sleep", "300"]).stdout.strip()
        made.append(id)
        return id

    yield one
    if made:
        docker_cli(["rm", "--force", *made], check=False)


def ids(docker_cli: DockerCommandLine) -> set[str]:
    return set(docker_cli(["ps", "--all", "--quiet", "--no-trunc"]).stdout.split())


def write_dead_run(house: House, *entries: dict[str, str]) -> None:
    """Leave behind what a run leaves that was killed: its lock file, unlocked, and its journal."""
    folder = house.application.runs_folder
    (folder / f"{DEAD}.lock").touch(mode=0o600)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / f"{DEAD}.jsonl").write_text(text + '{"created": "image", "en')  # the last line was cut by the kill


# ------------------------------------------------------------------------------------------------------- the run itself


def test_run_is_alive_while_its_lock_is_held(tmp_path: Path) -> None:
    run = runs.Run(tmp_path)
    assert runs._is_alive(tmp_path, run.run)
    assert not runs.any_dead(tmp_path, "another")
    run.created("container", "docker", "id", "call")
    run.close()
    assert not runs._is_alive(tmp_path, run.run)
    assert runs.any_dead(tmp_path, "another")


def test_run_without_leftovers_leaves_no_file(tmp_path: Path) -> None:
    run = runs.Run(tmp_path)
    run.created("container", "docker", "a", "call")
    run.removed("container", "docker", "a")
    run.created("container", "docker", "b", "detached")
    run.close()
    run.close()
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_run_are_its_owners_alone(tmp_path: Path) -> None:
    run = runs.Run(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    run.close()


def test_host_name_is_stable_differs_by_folder_and_tells_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    assert runs.host_name(one) == runs.host_name(one)
    assert runs.host_name(one) != runs.host_name(other)
    assert os.uname().nodename not in runs.host_name(one)


@pytest.mark.parametrize("run", ["", "../../etc/passwd", "zz", "a/b", "*"])
def test_run_whose_name_is_none_of_ours_counts_as_alive(tmp_path: Path, run: str) -> None:
    assert runs._is_alive(tmp_path, run)


# ----------------------------------------------------------------------------------------------------------- the reaper


async def test_reaper_takes_what_a_dead_run_left_for_one_call(make: object, docker_cli: DockerCommandLine) -> None:
    async with harness.opened() as house:
        write_dead_run(house)
        left = [
            make(house, run=DEAD, lifetime="call"),  # type: ignore[operator]  # a fixture's function
            make(house, run=DEAD, lifetime="call", options=("run", "--detach")),  # type: ignore[operator]
            make(house, run=DEAD, lifetime="detached"),  # type: ignore[operator]  # never started
        ]
        planned = await house.application.reap(dry_run=True)
        assert len(planned) == 3
        assert set(left) <= ids(docker_cli)
        taken = await house.application.reap()
        assert sorted(taken) == sorted(planned)
        assert all(DEAD in line for line in taken)
        assert not set(left) & ids(docker_cli)
        assert not list(house.application.runs_folder.glob(f"{DEAD}*"))
        assert await house.application.reap() == []


async def test_reaper_leaves_what_is_not_a_dead_runs_of_this_folder(
    make: object, docker_cli: DockerCommandLine, tmp_path: Path
) -> None:
    async with harness.opened() as house:
        write_dead_run(house)
        alive = runs.Run(house.application.runs_folder)
        started = ("run", "--detach")
        kept = {
            make(house, run=alive.run, lifetime="call"),  # type: ignore[operator]
            make(house, run=house.application.run.run, lifetime="call"),  # type: ignore[operator]
            make(house, run=DEAD, lifetime="detached", options=started),  # type: ignore[operator]
            make(house, run=DEAD, lifetime="call", host="0" * 16),  # type: ignore[operator]
            make(house, run=DEAD, lifetime="call", host=runs.host_name(tmp_path)),  # type: ignore[operator]
            make(house, run="../x", lifetime="call"),  # type: ignore[operator]
            make(house, run="", lifetime="call"),  # type: ignore[operator]
            make(house, run=DEAD, lifetime="sandbox"),  # type: ignore[operator]
            make(house, run=DEAD, lifetime=""),  # type: ignore[operator]
        }
        try:
            assert await house.application.reap() == []
        finally:
            alive.close()
        assert kept <= ids(docker_cli)


async def test_reaper_takes_half_built_images_and_leaves_tagged_ones(
    docker_cli: DockerCommandLine, busybox_image: str, session_label: str, image_name: str
) -> None:
    def build(number: int, *options: str) -> str:
        text = f"FROM {busybox_image}\nLABEL {session_label} number={uuid.uuid4().hex}\n"
        return docker_cli(["build", "--quiet", *options, "-"], stdin=text.encode()).stdout.strip()

    half, tagged, finished = build(1), build(2, "--tag", image_name), build(3)
    try:
        async with harness.opened() as house:
            created = [
                {"created": "image", "engine": "docker", "id": id, "lifetime": "call"}
                for id in (half, tagged, finished)
            ]
            write_dead_run(house, *created, {"removed": "image", "engine": "docker", "id": finished})
            taken = await house.application.reap()
            assert any(half[:19] in line for line in taken)
            there = set(docker_cli(["images", "--all", "--quiet", "--no-trunc"]).stdout.split())
            assert half not in there
            assert {tagged, finished} <= there
    finally:
        docker_cli(["rmi", "--force", half, finished], check=False)


async def test_container_that_could_not_be_removed_is_removed_by_a_later_call(
    docker_cli: DockerCommandLine, busybox_image: str
) -> None:
    async with harness.opened() as house:
        id = await house.engine.create_container(harness.spec(busybox_image, "true"))
        house.application.run.leftover("container", "docker", id)
        assert house.application.run.has_leftovers
        await house.ok("container_list")
        assert id not in ids(docker_cli)
        assert not house.application.run.has_leftovers


async def test_what_a_killed_process_left_is_gone_after_the_next_start(
    docker_cli: DockerCommandLine, busybox_image: str
) -> None:
    name = f"cxc-test-{uuid.uuid4().hex[:8]}"
    script = textwrap.dedent(
        f"""
        import anyio, os
        from codomyrmex_containerization import config
        from codomyrmex_containerization.dispatch import application, call

        async def main():
            made = application.open_application(config.load())
            given = {{"image": {busybox_image!r}, "command": "sleep 300", "name": {name!r}, "timeout_seconds": 300}}
            await made.dispatcher.call("container_run", given, call.Caller("mcp"))

        anyio.run(main)
        """
    )
    package = str(Path(codomyrmex_containerization.__file__).parents[1])
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": package})  # noqa: ASYNC220
    try:
        while process.poll() is None:
            state = docker_cli(["inspect", "--format", "{{.State.Status}}", name], check=False).stdout.strip()
            if state == "running":
                break
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    async with harness.opened() as house:
        assert runs.any_dead(house.application.runs_folder, house.application.run.run)
        taken = await house.application.reap()
        assert [line for line in taken if name in line]
        assert docker_cli(["inspect", name], check=False).returncode != 0
        assert config.folders(os.environ).state == house.state_folder


async def test_reaper_says_which_engine_it_could_not_look_at_and_keeps_what_is_written_down(
    docker_cli: DockerCommandLine,
) -> None:
    async with harness.opened() as house:
        left = {"created": "container", "id": "a" * 64, "lifetime": "call"}
        write_dead_run(house, {**left, "engine": "lab"}, {"uses": "gone"}, {**left, "engine": "memory"})
        (line,) = await house.application.reap()
        assert line.startswith("NOT looked at: lab")
        assert (house.application.runs_folder / f"{DEAD}.lock").exists()
        write_dead_run(house, {**left, "engine": "docker"}, {"uses": "gone"})
        assert await house.application.reap() == []
        assert not (house.application.runs_folder / f"{DEAD}.lock").exists()
