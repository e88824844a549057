"""Which server is killed in tests/engines/embedded/test_crashes.py? This one: it does one thing after the other until it is gone.

`python -m tests.engines.embedded.crash_program`: the folders on the first line of its input, then a seed and a file on each. For each it
forks a server that plays what the seed says and writes into the file what it was told, and prints that server's number.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from contextlib import suppress
from pathlib import Path

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import (  # noqa: F401  loaded before the forks, not in each of them
    build,
    objects,
    recovery,
    shapes,
    steps,
)
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import ContainerSpec, Mount, PortMapping, RestartPolicy
from codomyrmex_containerization.models.details import ExecSpec
from codomyrmex_containerization.models.engine import Endpoint
from codomyrmex_containerization.models.image import BuildSpec
from codomyrmex_containerization.models.storage import NetworkSpec, VolumeSpec

IMAGE = "localhost/cxc-embedded-base:1"
FOLDER_OF_THE_HOST = "host"
_PLAYERS = 2
_RESTARTED = 0.15
_WEIGHTS = {
    "create": 5, "start": 6, "exec": 2, "pause": 2, "unpause": 2, "stop": 2, "kill": 1, "remove": 3, "build": 2, "commit": 1,
    "volume": 2, "drop_volume": 1, "network": 1, "drop_network": 1, "connect": 1, "disconnect": 1, "read": 1,
}  # fmt: skip


class Player:
    """One of those who use the engine at the same time."""

    def __init__(self, engine: EmbeddedEngine, folder: Path, chance: random.Random, *, name: str, told: int) -> None:
        self._engine, self._folder, self._chance, self._name, self._told = engine, folder, chance, name, told
        self._containers: list[str] = []
        self._volumes: list[str] = []
        self._networks: list[str] = []
        self._count = 0

    async def play(self) -> None:
        """Do one thing after the other."""
        while True:
            what = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
            try:
                await getattr(self, what)()
            except errors.ContainerizationError as error:
                self.tell("refused", what, error.message.replace("\n", " "))

    def tell(self, *words: str) -> None:
        """Write down at once what was told, so that it outlives this process."""
        os.write(self._told, (" ".join(words) + "\n").encode())

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._name}-{self._count}"

    def _one(self, those: list[str]) -> str:
        if not those:
            raise errors.NotFound("There is none yet.")
        return self._chance.choice(those)

    async def create(self) -> None:
        chance = self._chance
        if len(self._containers) >= 4:
            return
        name, net = self._new("c"), chance.choice(["none", "none", "bridge", *self._networks[:1]])
        script = chance.choice(["echo hello; exec sleep 100000"] * 3 + ["echo hello; exit 7"])
        mounts = [Mount("volume", "/data")] if chance.random() < 0.3 else []
        mounts += [Mount("volume", "/named", chance.choice(self._volumes))] if self._volumes else []
        mounts += [Mount("bind", "/host", str(self._folder / FOLDER_OF_THE_HOST))] if chance.random() < 0.3 else []
        ports = (PortMapping(8000, host_ip="127.0.0.1"),) if net != "none" and chance.random() < 0.5 else ()
        restart = RestartPolicy("always" if chance.random() < _RESTARTED else "no")
        spec = ContainerSpec(
            IMAGE,
            name=name,
            command=("sh", "-c", script),
            network=net,
            mounts=tuple(mounts),
            ports=ports,
            restart=restart,
        )
        id = await self._engine.create_container(spec)
        self._containers.append(name)
        self.tell("created", name, id, "lasts" if "sleep" in script else "ends")

    async def start(self) -> None:
        name = self._one(self._containers)
        self.tell("asked", name, "start")
        await self._engine.start_container(name)
        self.tell("started", name)

    async def exec(self) -> None:
        name = self._one(self._containers)
        made = await self._engine.create_exec(name, ExecSpec(("sh", "-c", "echo > /touched"), {}))
        async with self._engine.start_exec(made, stdin=None) as attachment:
            async for _ in attachment.frames():
                pass
        self._engine.forget_exec(made)

    async def pause(self) -> None:
        name = self._one(self._containers)
        self.tell("asked", name, "pause")
        await self._engine.pause_container(name)
        self.tell("paused", name)

    async def unpause(self) -> None:
        name = self._one(self._containers)
        self.tell("asked", name, "unpause")
        await self._engine.unpause_container(name)
        self.tell("started", name)

    async def stop(self) -> None:
        name = self._one(self._containers)
        self.tell("asked", name, "stop")
        await self._engine.stop_container(name, timeout_seconds=0)
        self.tell("stopped", name)

    async def kill(self) -> None:
        name = self._one(self._containers)
        self.tell("asked", name, "kill")
        await self._engine.kill_container(name, "KILL")
        self.tell("stopped", name)

    async def remove(self) -> None:
        name = self._one(self._containers)
        self._containers.remove(name)
        self.tell("asked", name, "remove")
        await self._engine.remove_container(name, force=True, volumes=True)
        self.tell("removed", name)

    async def read(self) -> None:
        name = self._one(self._containers)
        await self._engine.stat_path(name, "/bin")

    async def build(self) -> None:
        text = (
            f"FROM {IMAGE}\nCOPY . /there\nRUN echo {self._new('b')} > /made && sleep 0.05\nENV a=b\nRUN sleep 0.05\n"
        )
        tag = f"localhost/{self._new('i')}:1"
        spec = BuildSpec(
            (tag,), self._folder / FOLDER_OF_THE_HOST, None, text, network=self._chance.choice(["none", None])
        )
        context = (self._folder / "context.tar").read_bytes()
        async with self._engine.build_image(spec, context=lambda: iter([context]), dockerfile_name="") as events:
            last = [event async for event in events][-1]
        self.tell("built" if last.kind == "image" else "refused", tag, last.text.replace("\n", " "))

    async def commit(self) -> None:
        house = self._engine.house
        name = self._one(self._containers)

        def copy() -> None:
            record = house.look(name)
            upper = house.containers.folder(record.id) / "upper"
            with house.containers.hold(record.id):
                if upper.is_dir():
                    config = record.image.config
                    house.images.commit(parent=record.image, upper=upper, config=config, instruction="commit")

        await asyncio.to_thread(copy)

    async def volume(self) -> None:
        name = self._new("v")
        await self._engine.create_volume(VolumeSpec(name))
        self._volumes.append(name)
        self.tell("volume", name)

    async def drop_volume(self) -> None:
        name = self._one(self._volumes)
        self.tell("asked", name, "remove")
        await self._engine.remove_volume(name, force=False)
        self._volumes.remove(name)

    async def network(self) -> None:
        if self._networks:
            return
        name = self._new("n")
        await self._engine.create_network(NetworkSpec(name))
        self._networks.append(name)
        self.tell("network", name)

    async def drop_network(self) -> None:
        name = self._one(self._networks)
        self.tell("asked", name, "remove")
        await self._engine.remove_network(name)
        self._networks.remove(name)

    async def connect(self) -> None:
        await self._engine.connect_network(self._one(self._networks), self._one(self._containers))

    async def disconnect(self) -> None:
        await self._engine.disconnect_network(self._one(self._networks), self._one(self._containers), force=False)


async def play(folders: objects.Folders, seed: int, told: int) -> None:
    """Play what a seed says, until killed."""
    endpoint = Endpoint("embedded", f"file://{folders.data}", "the tests", kind="embedded")
    engine = EmbeddedEngine(endpoint, folders, timeout_seconds=60.0)
    chance = random.Random(seed)
    players = [
        Player(engine, folders.data.parent, random.Random(chance.random()), name=f"{seed}-{number}", told=told)
        for number in range(_PLAYERS)
    ]
    await asyncio.gather(*(player.play() for player in players))


def main() -> int:
    """Fork a server for each line."""
    data, run = sys.stdin.readline().split()
    folders = objects.Folders(Path(data), Path(run))
    for line in sys.stdin:
        seed, file = line.split()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            told = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                asyncio.run(play(folders, int(seed), told))
            finally:
                os.write(told, b"crashed by itself\n")
                os._exit(1)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        sys.stdout.write("gone\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
