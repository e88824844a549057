"""What is left when the server is killed at any moment of any call? After the next start nothing of the call, and all that was to stay."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from codomyrmex_containerization.engines import guard
from tests import backends, tally
from tests.attacks import driver
from tests.attacks.driver import answer_of, error_of
from tests.backends import DockerCommandLine
from tests.server import engines, wire
from tests.server.engines import OwnEngine
from tests.server.wire import Wire

IMAGE = backends.BUSYBOX_IMAGE
MEGABYTE = 1_000_000
KILLS, SOAK_KILLS = 40, 200
KIND = "kill -9 at a random moment"
LATEST_SECONDS = 0.4
ROUND = "localhost.round"
WARM = "warm"
# What an executed command carries among its arguments, so that it is found on this host: `sleep` adds them up.
MARK = "0.00017"


@dataclass(slots=True)
class Scene:
    """The engine, the folders, and what has to be there after every kill."""

    docker: DockerCommandLine
    folder: Path
    temporary: Path
    buildx: Path
    content: bytes
    stays: set[str] = field(default_factory=set)
    may_stay: set[str] = field(default_factory=set)
    # The engine's cache of builds that came to an end before, in other tests.
    cached: frozenset[str] = frozenset()

    @property
    def runs(self) -> Path:
        """Where runs write down what they do."""
        return Path(os.environ["CODOMYRMEX_CONTAINERIZATION_STATE_DIR"]) / "runs"

    def containers(self, *options: str) -> set[str]:
        """The ids of containers."""
        return set(self.docker(["ps", "--all", "--quiet", "--no-trunc", *options]).stdout.split())

    def untagged_images(self) -> set[str]:
        """The ids of images that have no name and that nothing lies on."""
        listed = self.docker(["image", "ls", "--quiet", "--no-trunc", "--filter", "dangling=true"])
        return set(listed.stdout.split())

    def left(self) -> list[str]:
        """What is there and should not be."""
        # A detached container whose start was under way stays, told of or not, if it came to run.
        self.stays |= self.containers(
            "--filter", f"label={guard.LABEL_LIFETIME}=detached", "--filter", "status=running"
        )
        found = [f"container {one}" for one in sorted(self.containers() - self.stays - self.may_stay)]
        found += [f"image {one}" for one in sorted(self.untagged_images() - self.cached)]
        found += [f"command {pid}" for pid in engines.processes(MARK)]
        found += [f"buildx {pid}" for pid in engines.processes(f"{self.buildx}\0build")]
        found += [f"temporary {path.name}" for path in self.temporary.iterdir()]
        locks = list(self.runs.glob("*.lock"))
        found += [f"state {path.name}" for path in self.runs.iterdir() if len(locks) != 1 or path.stem != locks[0].stem]
        found += [f"file {path}" for path in self.folder.rglob("*") if path.is_file() and not self._is_whole(path)]
        return found

    def lost(self) -> list[str]:
        """What is not there and should be."""
        return sorted(self.stays - self.containers() - self.may_stay)

    def _is_whole(self, path: Path) -> bool:
        return path.name in ("source", "copied", "a", "b") and path.read_bytes() == self.content


@pytest.fixture
def scene(
    attacked_engine: OwnEngine,
    buildx_program: Path,
    tmp_path: Path,
    working_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    session_label: str,
) -> Iterator[Scene]:
    """A warm container that everything is done to, and a file to copy."""
    docker = attacked_engine.docker
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    content = os.urandom(MEGABYTE) * 20
    (working_folder / "source").write_bytes(content)
    docker(
        ["run", "--detach", "--label", session_label, "--name", WARM, IMAGE, "sh", "-c", "echo warm; exec sleep 3000"]
    )
    docker(["exec", WARM, "mkdir", "/tmp/f"])
    for name in ("a", "b"):
        docker(["cp", working_folder / "source", f"{WARM}:/tmp/f/{name}"])
    made = Scene(docker, working_folder, temporary, buildx_program, content)
    made.stays = made.containers()
    made.cached = frozenset(made.untagged_images())
    yield made
    engines.end_processes(MARK)
    everything = made.containers()
    docker(["rm", "--force", *everything])
    names = [name for name in driver.holdings(docker).names if name != IMAGE]
    if names:
        docker(["image", "rm", "--force", *names])


# ------------------------------------------------------------------------------------------------- what is interrupted

Start = Callable[[Wire, Scene, int], Awaitable[int]]


async def _run(served: Wire, scene: Scene, number: int) -> int:
    return await served.start_call("container_run", image=IMAGE, command="sleep 60", labels={ROUND: str(number)})


async def _run_detached(served: Wire, scene: Scene, number: int) -> int:
    labels = {ROUND: str(number)}
    return await served.start_call("container_run", image=IMAGE, command="sleep 3000", detach=True, labels=labels)


async def _build(served: Wire, scene: Scene, number: int) -> int:
    text = f"FROM {IMAGE}\nENV N={number}\nRUN echo {number} > /n\nENV M={number}\nRUN sleep 0.1; echo 2 > /m\nRUN sleep 60\n"
    return await served.start_call("container_build", image_name=f"localhost/kill-{number}", dockerfile_text=text)


async def _build_quickly(served: Wire, scene: Scene, number: int) -> int:
    text = f"FROM {IMAGE}\nENV Q={number}\nRUN echo {number} > /n\nENV M={number}\n"
    return await served.start_call("container_build", image_name=f"localhost/kill-{number}", dockerfile_text=text)


async def _exec(served: Wire, scene: Scene, number: int) -> int:
    return await served.start_call(
        "container_exec", container=WARM, command=["sleep", "3000", MARK], timeout_seconds=60
    )


async def _copy_in(served: Wire, scene: Scene, number: int) -> int:
    return await served.start_call("container_copy", source="./source", target=f"{WARM}:/tmp/in")


async def _copy_out(served: Wire, scene: Scene, number: int) -> int:
    (scene.folder / "copied").unlink(missing_ok=True)
    return await served.start_call("container_copy", source=f"{WARM}:/tmp/f/a", target="./copied")


async def _copy_folder_out(served: Wire, scene: Scene, number: int) -> int:
    return await served.start_call("container_copy", source=f"{WARM}:/tmp/f", target=f"./folder-{number}")


async def _follow(served: Wire, scene: Scene, number: int) -> int:
    return await served.start_call("container_logs", container=WARM, follow_seconds=30)


async def _remove(served: Wire, scene: Scene, number: int) -> int:
    made = answer_of(await served.call("container_run", image=IMAGE, command="sleep 3000", detach=True))
    # Killed on the way, either is right: it is removed, or it is still there.
    scene.may_stay |= {id for id in scene.containers() if id.startswith(made["id"])}
    return await served.start_call("container_remove", container=made["id"], force=True)


async def _remove_confirmed(served: Wire, scene: Scene, number: int) -> int:
    id = scene.docker(["run", "--detach", IMAGE, "sleep", "3000"]).stdout.strip()
    scene.may_stay.add(id)
    asked = error_of(await served.call("container_remove", container=id, force=True))
    return await served.start_call("container_remove", container=id, force=True, confirm_token=asked["confirm_token"])


async def _restart(served: Wire, scene: Scene, number: int) -> int:
    return await served.start_call("container_control", container=WARM, action="restart", timeout_seconds=0)


OPERATIONS: Mapping[str, tuple[str, Start]] = {
    "run": ("off", _run),
    "detached run": ("off", _run_detached),
    "build, classic": ("off", _build),
    "quick build, classic": ("off", _build_quickly),
    "build, BuildKit": ("on", _build),
    "quick build, BuildKit": ("on", _build_quickly),
    "exec": ("off", _exec),
    "copy in": ("off", _copy_in),
    "copy out": ("off", _copy_out),
    "copy of a folder out": ("off", _copy_folder_out),
    "log, followed": ("off", _follow),
    "remove": ("off", _remove),
    "confirmed remove": ("off", _remove_confirmed),
    "control": ("off", _restart),
}


@pytest.mark.attack(KIND)
async def test_kill_at_any_moment_leaves_nothing_and_loses_nothing_after_the_next_start(scene: Scene) -> None:
    await _kill_again_and_again(scene, KILLS, random.Random(40))


@pytest.mark.attack(KIND)
@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_two_hundred_kills_leave_nothing_and_lose_nothing(scene: Scene) -> None:
    await _kill_again_and_again(scene, SOAK_KILLS, random.Random(200))


async def _kill_again_and_again(scene: Scene, kills: int, rng: random.Random) -> None:
    interrupted: Counter[str] = Counter()
    order: list[str] = []
    while len(order) < kills:
        order += rng.sample(sorted(OPERATIONS), k=len(OPERATIONS))
    previous = "no call"
    for number, name in enumerate(order[:kills]):
        buildx, start = OPERATIONS[name]
        async with wire.served("modern", buildx="off" if buildx == "off" else str(scene.buildx)) as served:
            await _is_in_order(scene, previous)
            previous = f"{name}, kill {number}"
            call = await start(served, scene, number)
            await anyio.sleep(rng.uniform(0, LATEST_SECONDS))
            served.process.kill()
            await served.process.wait()
            answer = served.answers.get(call)
            tally.tried()
            interrupted[name] += 1
        _note_what_stays(scene, name, number, answer)
    async with wire.served("modern", buildx="off") as served:
        await _is_in_order(scene, previous)
        answer_of(await served.call("container_list"))
    assert interrupted.keys() == OPERATIONS.keys()


def _note_what_stays(scene: Scene, name: str, number: int, answer: Mapping[str, Any] | None) -> None:
    if name == "detached run":
        running = scene.containers("--filter", f"label={ROUND}={number}", "--filter", "status=running")
        told = {answer_of(answer["result"])["id"]} if answer is not None else set()
        assert all(any(id.startswith(one) for id in running) for one in told), "a container that was told of is gone"
        scene.stays |= running


async def _is_in_order(scene: Scene, after: str) -> None:
    """Wait until the start has cleared up, and the engine has ended what it does by itself."""
    problems: list[str] = []

    try:
        with anyio.fail_after(ORDER_SECONDS):
            while True:
                problems = await anyio.to_thread.run_sync(scene.left)
                if not problems:
                    break
                await anyio.sleep(engines.PAUSE_SECONDS)
    except TimeoutError:
        problems = problems or ["no look came to its end"]
    lost = scene.lost()
    tally.got_through(len(problems), "left")
    tally.got_through(len(lost), "lost")
    assert problems == [], f"left after the kill during {after}"
    assert lost == [], f"lost after the kill during {after}"


# Not a measurement: what the engine does by itself (ending a build whose client is gone) has to be over.
ORDER_SECONDS = 60.0  # others run beside it: until then it hangs
