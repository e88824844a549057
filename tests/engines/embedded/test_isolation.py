"""Is what runs in a container of the embedded engine shut in? Seen from inside, from the kernel's own files, and by trying to get out.

SPEC B93.
"""

from __future__ import annotations

import asyncio
import ctypes
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import (
    bandwidth,
    binds,
    groups,
    idmaps,
    isolation,
    kernel,
    objects,
    overlay,
)
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import (
    ContainerSpec,
    Isolation,
    Limits,
    Mount,
    MountPoint,
    PortMapping,
    Ulimit,
)
from codomyrmex_containerization.models.details import ExecSpec
from tests import backends, embedded, tally
from tests.engines.embedded import isolation_walls as walls

RESULTS = "CXC_ISOLATION_TABLE"  # a file that the results are added to, for tests/engines/embedded/isolation_table.py
REACHING = "containers that reach for the host"
STARVING = "containers that take all there is"
HOSTILE = "images and folders with links to the host"
MIB = 1024**2
NOBODY = 65_534
EVERY: tuple[Isolation, ...] = ("minimal", "standard", "strict")
_EXCHANGE = 2  # RENAME_EXCHANGE
SECRET = "what the host keeps to itself"


@dataclass(frozen=True, slots=True)
class Lab:
    """An engine, its folder that everybody may enter, and a file of the host beside it."""

    engine: EmbeddedEngine
    folder: Path

    def spec(self, *script: str, level: Isolation | None = None) -> ContainerSpec:
        """A shell's container without a network."""
        command = ("sh", "-c", script[0]) if script else ("sleep", "1000")
        return ContainerSpec(image=embedded.IMAGE, command=command, network="none", isolation=level)

    async def ran(self, spec: ContainerSpec) -> tuple[int, str]:
        """Run a container to its end; returns its exit code and all that it said."""
        id = await self.engine.create_container(spec)
        try:
            await self.engine.start_container(id)
            code = await self.engine.wait_container(id)
            async with self.engine.container_logs(id, base.LogQuery(), tty=False) as frames:
                return code, b"".join([frame.data async for frame in frames]).decode("utf-8", "replace")
        finally:
            await self.engine.remove_container(id, force=True, volumes=True)

    @asynccontextmanager
    async def running(self, spec: ContainerSpec) -> AsyncIterator[tuple[str, int]]:
        """A container that runs; gives its id and its first process."""
        id = await self.engine.create_container(spec)
        try:
            await self.engine.start_container(id)
            yield id, (await self.engine.container_details(id)).pid
        finally:
            await self.engine.remove_container(id, force=True, volumes=True)

    async def said(self, container: str, script: str) -> str:
        """Run a script in a container that runs and return what it said."""
        command = await self.engine.create_exec(container, ExecSpec(("sh", "-c", script), {}))
        async with self.engine.start_exec(command, stdin=None) as attachment:
            return b"".join([frame.data async for frame in attachment.frames()]).decode("utf-8", "replace")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One engine for all tests; its folders are made by itself, in a place that everybody may enter."""
    embedded.require()
    folder = Path(tempfile.mkdtemp(prefix="cxc-walls-"))
    folder.chmod(0o755)
    engine = embedded.engine(folder)
    try:
        embedded.base_image(engine, folder)
        yield Lab(engine, folder)
    finally:
        embedded.swept(engine)
        left = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
        if not left:
            shutil.rmtree(folder)
        assert left == []


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host that nobody was given."""
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return path


# ------------------------------------------------------------------------------------------------------------- the walls


@pytest.mark.parametrize("level", EVERY)
async def test_level_has_the_walls_that_it_promises(lab: Lab, level: Isolation) -> None:
    space, rate = Limits(disk_bytes=walls.DISK_BYTES), Limits(disk_write_bytes_per_second=walls.DISK_RATE)
    has_rates = True
    try:
        bandwidth.require(lab.folder, rate)
    except errors.Unsupported:
        has_rates = False  # this machine's kernel, or its disk, has no such limits
    limits = replace(space, disk_write_bytes_per_second=rate.disk_write_bytes_per_second if has_rates else None)
    async with lab.running(replace(lab.spec(level=level), limits=limits)) as (id, pid):
        found = walls.seen(pid, await lab.said(id, walls.INSIDE))
        stands = {name: wall.stands(found) for name, wall in walls.WALLS.items()}

    if file := os.environ.get(RESULTS):
        network = "" if level == "strict" else await _links(lab, level)
        walls.Results(Path(file)).add(level, {**stands, "no_network": network == ""})
    sure = [
        name
        for name in stands
        if (name, level) not in walls.UNSURE and name not in ("no_network", *(() if has_rates else ("disk_rate",)))
    ]
    assert {name: stands[name] for name in sure} == {name: level in walls.WALLS[name].levels for name in sure}
    assert found.inside["groups"] == "0", "the host's other control groups are seen"


async def _links(lab: Lab, level: Isolation) -> str:
    _, said = await lab.ran(replace(lab.spec("ls /sys/class/net", level=level), network=None))
    return " ".join(word for word in said.split() if word != "lo")


async def test_level_that_nobody_chose_is_standard(lab: Lab) -> None:
    async with lab.running(lab.spec()) as (id, pid):
        found = walls.seen(pid, await lab.said(id, walls.INSIDE))
        promised = [name for name, wall in walls.WALLS.items() if "standard" in wall.levels]
        missing = [name for name in promised if name not in walls.ASKED_FOR and not walls.WALLS[name].stands(found)]

    assert missing == []


@pytest.mark.parametrize("level", EVERY)
async def test_command_has_the_walls_of_its_container(lab: Lab, level: Isolation) -> None:
    kinds = ("pid", "mnt", "ipc", "uts", "net", "user", "cgroup")
    links = f"for one in {' '.join(kinds)}; do readlink /proc/self/ns/$one; done"
    script = f"{links}; cat /proc/self/uid_map; ulimit -n; cat /proc/self/status"
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    async with lab.running(lab.spec(level=level)) as (id, pid):
        lines = (await lab.said(id, script)).splitlines()
        spaces = [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds]
        first = walls.seen(pid, "end .\n")

    inside = dict(line.split(":", 1) for line in lines[9:])
    assert lines[:7] == spaces
    assert tuple(map(int, lines[7].split())) == first.uid_map
    assert lines[8] == str(first.open_files)
    assert {name: inside[name].strip() for name in names} == {name: first.status[name] for name in names}


async def test_ordinary_user_has_no_capabilities(lab: Lab) -> None:
    _, said = await lab.ran(replace(lab.spec("grep Cap /proc/self/status"), user="nobody"))

    found = {line.split(":")[0]: int(line.split()[1], 16) for line in said.splitlines()}
    assert (found["CapEff"], found["CapPrm"], found["CapInh"], found["CapAmb"]) == (0, 0, 0, 0)


async def test_shared_memory_is_as_large_as_asked_for(lab: Lab) -> None:
    script = "df -k /dev/shm | tail -1 | awk '{print $2}'; dd if=/dev/zero of=/dev/shm/x bs=1M count=9 2>&1 | grep -c 'No space'"
    usual = await lab.ran(lab.spec(script))
    small = await lab.ran(replace(lab.spec(script), limits=Limits(shm_bytes=8 * MIB)))

    assert (usual[1].split(), small[1].split()) == (["65536", "0"], ["8192", "1"])


async def test_process_limits_are_as_asked_for(lab: Lab) -> None:
    limits = Limits(ulimits=(Ulimit("nofile", 100, 200),))
    _, said = await lab.ran(replace(lab.spec("ulimit -Sn; ulimit -Hn"), limits=limits))

    assert said.split() == ["100", "200"]


async def test_read_only_root_is_read_only_for_commands_too(lab: Lab) -> None:
    async with lab.running(replace(lab.spec(), read_only_rootfs=True)) as (id, _):
        said = await lab.said(id, "touch /bin/x /x /etc/x; mount -o remount,rw / 2>&1; touch /x && echo written")

    assert "written" not in said


# ------------------------------------------------------------------------------------------------------------- reaching


@pytest.mark.attack(REACHING)
@pytest.mark.parametrize("level", EVERY)
async def test_container_changes_nothing_of_the_host(lab: Lab, level: Isolation) -> None:
    watched = [Path("/proc/sys/kernel") / name for name in ("core_pattern", "hostname", "printk")]
    before = [path.read_text() for path in watched]
    attempts = (
        "echo '|/x' >/proc/sys/kernel/core_pattern", "echo 1 >/proc/sys/kernel/sysrq", "hostname stolen",
        "mount -t proc proc /tmp", "mount -t tmpfs none /etc", "mount -o bind /proc /tmp", "mount -o remount,rw /sys",
        "umount -l /proc/sys", "umount -l /proc/keys && umount -l /proc/keys", "mknod /tmp/disk b 8 0", "mknod /dev/mem c 1 1",
        "nsenter -t 1 -m -u -i -n -p mount", "unshare -m true", "unshare -p true", "swapon /bin/busybox",
        "insmod /bin/sh", "losetup /dev/loop0 /bin/busybox", "dmesg -c", "pivot_root / /tmp",
        "echo c >/proc/sys/kernel/printk",
        "echo 1 >/sys/fs/cgroup/pids/release_agent",
        "echo 1 >/sys/fs/cgroup/pids/cgroup.procs", "echo 1 >/sys/fs/cgroup/memory/cgroup.procs",
    )  # fmt: skip
    script = "\n".join(f"( {one} ) >/dev/null 2>&1 && echo 'through: {one.replace(chr(39), '')}'" for one in attempts)
    async with lab.running(lab.spec(level=level)) as (id, _):
        said = await lab.said(id, f"{script}\ntrue")

    through = [line for line in said.splitlines() if line.startswith("through")]
    tally.tried(len(attempts))
    tally.got_through(len(through))
    assert through == []
    assert [path.read_text() for path in watched] == before


@pytest.mark.attack(REACHING)
@pytest.mark.parametrize("level", EVERY)
async def test_processes_of_the_host_are_neither_seen_nor_killed_nor_traced(lab: Lab, level: Isolation) -> None:
    with _victim() as victim:
        script = f"""kill -9 {victim.pid}; kill -9 -1; cat /proc/{victim.pid}/environ; cat /proc/*/environ | tr '\\0' '\\n'
            ls /proc/{victim.pid}/root; cat /proc/{victim.pid}/mem; ls /proc | grep -c '^[0-9]'"""
        async with lab.running(lab.spec(level=level)) as (id, _):
            with tally.attempt():
                said = await lab.said(id, f"( {script} ) 2>&1")
                assert victim.poll() is None
                assert SECRET not in said


@contextmanager
def _victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"], env={"SECRET": SECRET}, stdin=subprocess.DEVNULL) as victim:
        try:
            yield victim
        finally:
            victim.kill()


@pytest.mark.attack(REACHING)
@pytest.mark.parametrize("level", EVERY)
async def test_files_of_the_host_are_not_seen(lab: Lab, secret: Path, level: Isolation) -> None:
    places = [str(secret), f"/proc/1/root{secret}", f"/proc/self/root/../..{secret}", f"/proc/1/cwd/../../..{secret}", "/dev/vda",
              "/dev/sda", "/proc/kcore", "/dev/mem", str(lab.folder / "embedded"), f"/proc/thread-self/root{secret}"]  # fmt: skip
    script = "; ".join(f"head -c 65536 {place} 2>/dev/null; ls {place} 2>/dev/null" for place in places)
    _, said = await lab.ran(lab.spec(f"{script}; true", level=level))

    tally.tried(len(places))
    tally.got_through(SECRET in said)
    # /proc/kcore may be seen as a name; what is in it may not.
    assert said.replace("/proc/kcore", "").strip() == ""


@pytest.mark.attack(REACHING)
async def test_network_none_has_loopback_alone(lab: Lab) -> None:
    with tally.attempt():
        _, said = await lab.ran(lab.spec("ls /sys/class/net; ip route; ping -c 1 -W 1 10.0.2.2 2>&1; true"))
        assert said.split()[0] == "lo"
        assert "via" not in said
        assert "bytes from" not in said


@pytest.mark.attack(REACHING)
async def test_loopback_of_the_host_is_not_reached_over_a_bridge(lab: Lab) -> None:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(b"somebody")
        writer.write(SECRET.encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        places = ("10.0.2.2", "127.0.0.1", "10.0.2.3", "0.0.0.0")
        script = "; ".join(f"nc -w 2 {place} {port} </dev/null 2>/dev/null" for place in places)
        _, said = await lab.ran(replace(lab.spec(f"{script}; echo end"), network="bridge"))

        tally.tried(len(places))
        tally.got_through(len(heard))
        assert (heard, said.strip()) == ([], "end")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)  # whoever may is heard
        assert await reader.read() == SECRET.encode()
        writer.close()


# ------------------------------------------------------------------------------------------------------------- starving


@pytest.mark.attack(STARVING)
@pytest.mark.parametrize("level", ["standard", "strict"])
async def test_memory_hog_is_killed_and_it_is_said_why(lab: Lab, level: Isolation) -> None:
    spec = replace(lab.spec("tail /dev/zero", level=level), limits=Limits(memory_bytes=24 * MIB))
    id = await lab.engine.create_container(spec)
    try:
        with tally.attempt():
            await lab.engine.start_container(id)
            assert await lab.engine.wait_container(id) != 0
            assert (await lab.engine.inspect_container(id)).oom_killed
    finally:
        await lab.engine.remove_container(id, force=True, volumes=True)


@pytest.mark.attack(STARVING)
async def test_fork_bomb_stops_at_the_limit_of_processes(lab: Lab) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000"
    limits = Limits(pids_limit=48, cpus=0.5, memory_bytes=64 * MIB)
    async with lab.running(replace(lab.spec(bomb), limits=limits)) as (_, pid):
        place = groups.of_process(pid)["pids"].directory
        most = 0
        with tally.attempt():
            # The kernel counts how often it refused.
            while not any(int(word) for word in (place / "pids.events").read_text().split()[1::2]):
                most = max(most, int((place / "pids.current").read_text()))
                await anyio.sleep(0.01)
            most = max(most, int((place / "pids.current").read_text()))
            assert most <= 48
    assert not place.exists() or (place / "cgroup.procs").read_text() == ""


@pytest.mark.attack(STARVING)
async def test_busy_loops_are_held_to_their_processors(lab: Lab) -> None:
    loops = "while :; do :; done & while :; do :; done"
    async with lab.running(replace(lab.spec(loops), limits=Limits(cpus=0.2))) as (_, pid):
        place = groups.of_process(pid)["cpu"]
        used = groups.of_process(pid).get("cpuacct", place)
        with tally.attempt():
            before, start = _periods(place), _used_seconds(used)
            while (now := _periods(place)) - before < 8:  # noqa: ASYNC110  the kernel's own count
                await anyio.sleep(0.02)
            # By the kernel's own clock: a fifth of each tenth of a second, and one more for what was begun.
            spent = _used_seconds(used) - start
            assert 0 < spent <= 0.2 * 0.1 * (now - before + 2) * 1.25


def _periods(place: groups.Place) -> int:
    words = (place.directory / "cpu.stat").read_text().split()
    return int(words[words.index("nr_periods") + 1])


def _used_seconds(place: groups.Place) -> float:
    if place.is_v2:
        words = (place.directory / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6
    return int((place.directory / "cpuacct.usage").read_text()) / 1e9


# ------------------------------------------------------------------------------------------------- hostile images, binds


def _image(lab: Lab, links: dict[str, str], name: str) -> str:
    """The base image with links in the place of some of its folders and files."""
    buffer = io.BytesIO()
    rootfs = backends.root_filesystem(backends.static_busybox())
    with tarfile.open(fileobj=io.BytesIO(rootfs)) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            if any(member.name == one or member.name.startswith(f"{one}/") for one in links):
                continue
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
        for place, target in links.items():
            entry = tarfile.TarInfo(place)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            new.addfile(entry)
    file = lab.folder / f"{name}.tar"
    file.write_bytes(buffer.getvalue())
    config = objects.ImageConfig(env=("PATH=/bin",), command=("sh",))
    lab.engine.house.images.import_rootfs(file, tag=f"localhost/cxc-{name}:1", config=config)
    return f"localhost/cxc-{name}:1"


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize("level", ["standard", "strict"])
@pytest.mark.parametrize("place", ["etc", "proc", "dev", "tmp", "sys", "etc/passwd", "etc/resolv.conf", "target"])
async def test_link_in_an_image_leads_nowhere(lab: Lab, place: str, level: Isolation, secret: Path) -> None:
    outside = secret.parent / "outside"
    outside.mkdir(mode=0o777)
    (outside / "passwd").write_text("mallory:x:1234:1234::/:/bin/sh\n")
    target = outside / "passwd" if place == "etc/passwd" else outside
    before = sorted(outside.iterdir())
    shared = lab.folder / "given"
    shared.mkdir(exist_ok=True)
    leads = (str(target), f"../../../../../../../..{target}")
    for number, lead in enumerate(leads if level == "standard" else leads[:1]):
        image = _image(lab, {place: lead}, f"hostile-{place.replace('/', '-')}-{level}-{number}")
        spec = replace(
            lab.spec(f"cat {secret} /{place} /{place}/passwd 2>/dev/null; touch /{place}/made; true", level=level),
            image=image, mounts=(Mount("tmpfs", "/tmp"), Mount("bind", "/target", str(shared))),
        )  # fmt: skip
        with tally.attempt():
            said = ""
            with suppress(errors.EngineUnavailable, errors.CommandFailed):  # refused is as good
                _, said = await lab.ran(spec)
            assert SECRET not in said
            assert "mallory" not in said
            assert sorted(outside.iterdir()) == before
            if place == "etc/passwd":
                with pytest.raises(errors.InvalidArgument, match="mallory"):
                    await lab.ran(replace(spec, user="mallory"))


@pytest.mark.attack(HOSTILE)
async def test_folder_that_is_a_link_when_its_container_is_created_is_refused(lab: Lab, secret: Path) -> None:
    link = secret.parent / "link"
    link.symlink_to(secret.parent)
    for source in (link, link / "secret"):
        with tally.attempt(), pytest.raises(errors.Refused, match="a part of it is a link"):
            await lab.ran(replace(lab.spec("true"), mounts=(Mount("bind", "/given", str(source)),)))


async def test_data_folder_may_lie_behind_a_link(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    engine = embedded.engine(tmp_path / "link")
    try:
        embedded.base_image(engine, tmp_path)
        spec = replace(
            lab.spec("echo kept >/v/word; cat /v/word", level="strict"), mounts=(Mount("volume", "/v", "own"),)
        )
        assert await Lab(engine, tmp_path).ran(spec) == (0, "kept\n")
    finally:
        embedded.swept(engine)


@pytest.mark.attack(HOSTILE)
@pytest.mark.parametrize("part", ["itself", "its folder"])
async def test_folder_swapped_for_a_link_after_the_check_is_refused(lab: Lab, secret: Path, part: str) -> None:
    given = secret.parent / "above" / "given"
    (given / "secret").parent.mkdir(parents=True)
    elsewhere = secret.parent / "elsewhere"
    (elsewhere / "given").mkdir(parents=True)
    shutil.copy(secret, elsewhere / "given" / "secret")
    spec = replace(lab.spec("cat /given/secret"), mounts=(Mount("bind", "/given", str(given)),))
    id = await lab.engine.create_container(spec)
    try:
        swapped = given if part == "itself" else given.parent
        swapped.rename(secret.parent / "away")
        swapped.symlink_to(elsewhere / "given" if part == "itself" else elsewhere)
        with tally.attempt(), pytest.raises(errors.Refused, match="replaced by a link"):
            await lab.engine.start_container(id)
    finally:
        await lab.engine.remove_container(id, force=True, volumes=True)


@pytest.mark.attack(HOSTILE)
async def test_folder_swapped_while_its_container_starts_never_shows_another(lab: Lab, secret: Path) -> None:
    given, other, spare = (secret.parent / name for name in ("given", "other", "spare"))
    for folder, word in ((given, "given"), (other, SECRET)):
        folder.mkdir()
        (folder / "word").write_text(word)
    spare.symlink_to(other)
    done, swaps = threading.Event(), 0

    def swap() -> None:
        nonlocal swaps
        libc = ctypes.CDLL(None)
        while not done.is_set():
            swaps += libc.renameat2(-100, os.fsencode(given), -100, os.fsencode(spare), _EXCHANGE) == 0

    id = await lab.engine.create_container(replace(lab.spec("cat /g/word"), mounts=(Mount("bind", "/g", str(given)),)))
    swapping = threading.Thread(target=swap)
    swapping.start()
    started = 0
    try:
        for _ in range(10):
            tally.tried()
            with suppress(errors.Refused):
                await lab.engine.start_container(id)
                started += 1
                await lab.engine.wait_container(id)
        async with lab.engine.container_logs(id, base.LogQuery(), tty=False) as frames:
            said = b"".join([frame.data async for frame in frames]).decode()
    finally:
        done.set()
        swapping.join()
        await lab.engine.remove_container(id, force=True, volumes=True)
    tally.got_through(said.count(SECRET))
    assert said == "given" * started
    assert swaps > started


async def test_prepared_container_keeps_the_folder_that_it_was_given(lab: Lab, secret: Path) -> None:
    given = secret.parent / "given"
    given.mkdir()
    (given / "word").write_text("given")
    id = await lab.engine.create_container(replace(lab.spec("cat /g/word"), mounts=(Mount("bind", "/g", str(given)),)))
    try:
        async with lab.engine.attach_container(id, stdin=None) as attachment:
            given.rename(secret.parent / "away")
            given.symlink_to(secret.parent)
            await lab.engine.start_container(id)
            said = b"".join([frame.data async for frame in attachment.frames()])
    finally:
        await lab.engine.remove_container(id, force=True, volumes=True)

    assert said == b"given"


async def test_read_only_folder_is_read_only_with_all_that_is_mounted_in_it(lab: Lab, tmp_path: Path) -> None:
    below = tmp_path / "given" / "below"
    below.mkdir(parents=True)
    kernel.mount("tmpfs", str(below), "tmpfs", 0, "mode=777")
    try:
        mounts = (Mount("bind", "/g", str(below.parent), read_only=True),)
        _, said = await lab.ran(
            replace(lab.spec("touch /g/x /g/below/x 2>/dev/null; ls /g/below; echo end"), mounts=mounts)
        )
    finally:
        overlay.unmount(below)

    assert said.split() == ["end"]


async def test_programs_of_the_host_are_read_only_with_all_that_is_mounted_in_them(lab: Lab) -> None:
    async with lab.running(replace(lab.spec(), image="host")) as (id, pid):
        said = await lab.said(id, "touch /usr/made /usr/bin/made 2>/dev/null || echo refused")
        config = json.loads((lab.engine.house.containers.folder(id) / "config.json").read_text())
        mounted = [
            line.split()[5] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if " /usr" in line
        ]

    options = next(one["options"] for one in config["mounts"] if one["destination"] == "/usr")
    assert said.strip() == "refused"
    assert {"rro", "rnosuid", "rnodev"} <= set(options)
    assert [{"ro", "nosuid", "nodev"} <= set(one.split(",")) for one in mounted] == [True] * len(mounted)


def test_mounts_of_a_killed_server_are_taken_away_and_the_hosts_files_stay(tmp_path: Path) -> None:
    embedded.require()
    given, top = tmp_path / "given", tmp_path / "binds"
    given.mkdir()
    (given / "word").write_text("kept")
    places = binds.Places(top, own=tmp_path / "own")
    point = MountPoint("bind", str(given), "/g", read_only=False)
    code = f"""from pathlib import Path
from codomyrmex_containerization.engines.embedded import binds
from codomyrmex_containerization.models.container import MountPoint
binds.Places(Path({str(top)!r}), own=Path("/nowhere")).put("0" * 64, [{point!r}])"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=embedded.TIMEOUT_SECONDS)
    mounted = [path for path in top.glob("*/0/word") if path.read_text() == "kept"]
    mine = places.put("1" * 64, [point])

    places.sweep()

    assert len(mounted) == 1
    assert [path.name[0] for path in top.iterdir()] == ["1"]
    assert (Path(mine[0].source) / "word").read_text() == "kept"
    places.clear("1" * 64)
    assert list(top.iterdir()) == []
    assert (given / "word").read_text() == "kept"


# ---------------------------------------------------------------------------------------------------------- other users


@pytest.mark.attack(REACHING)
@pytest.mark.parametrize("level", ["standard", "strict"])
async def test_other_users_reach_neither_sockets_nor_files_of_containers(lab: Lab, level: Isolation) -> None:
    busybox = str(backends.static_busybox())
    async with lab.running(replace(lab.spec(level=level), env={"TOKEN": SECRET})) as (id, _):
        folder = lab.engine.house.containers.folder(id)
        config, socket = folder / "config.json", folder / "attach"
        assert SECRET in config.read_text()
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(socket.stat().st_mode)
        shut = [lab.folder / "embedded", lab.folder / "run", folder]
        assert [stat.S_IMODE(one.stat().st_mode) for one in shut] == [0o700] * 3
        passages = list(Path("/run/codomyrmex-containerization-strict").glob(f"{id}*"))
        assert passages == [], "the way in that is only for the start is still there"
        tries: Sequence[Sequence[str]] = (
            ["cat", str(config)], ["cat", str(folder / "container.json")], ["ls", str(folder)], ["ls", str(lab.folder / "run")],
            ["nc", f"local:{socket}"], ["cat", str(folder / "ctr.log")], ["ls", str(folder / "merged")],
        )  # fmt: skip
        for one in tries:
            with tally.attempt():
                assert SECRET.encode() not in _as_nobody([busybox, *one])


def _as_nobody(command: Sequence[str]) -> bytes:
    """What a command says to a user who has nothing to do with it all; it must fail."""
    done = subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.DEVNULL, capture_output=True, cwd="/",
        timeout=embedded.TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    return done.stdout


# --------------------------------------------------------------------------------------------------------------- strict


async def test_strict_containers_have_users_of_their_own_and_change_no_image(lab: Lab) -> None:
    before = _owners(lab)
    async with lab.running(lab.spec(level="strict")) as (_, one), lab.running(lab.spec(level="strict")) as (id, other):
        said = await lab.said(id, "stat -c %u /bin/busybox; id -u; su nobody -s /bin/sh -c 'id -u'")
        users = {Path(f"/proc/{pid}/status").stat().st_uid for pid in (one, other)}

    assert said.split()[:2] == ["0", "0"]
    assert len(users) == 2
    assert min(users) >= 1 << 30
    assert _owners(lab) == before


def _owners(lab: Lab) -> set[int]:
    image = lab.engine.house.images.image(embedded.IMAGE)
    return {path.lstat().st_uid for layer in lab.engine.house.images.layer_folders(image) for path in layer.rglob("*")}


async def test_strict_container_writes_to_its_volumes_and_not_to_the_host(lab: Lab) -> None:
    given = lab.folder / "hosts-own"
    given.mkdir()
    script = "echo kept >/v/word; echo in >/t/word; cat /t/word; touch /g/x /x 2>/dev/null || echo refused"
    mounts = (Mount("volume", "/v", "strict-volume"), Mount("tmpfs", "/t"), Mount("bind", "/g", str(given)))
    code, said = await lab.ran(replace(lab.spec(script, level="strict"), mounts=mounts))
    _, later = await lab.ran(replace(lab.spec("cat /v/word; stat -c %u /v/word"), mounts=mounts[:1]))

    assert (code, said.split()) == (0, ["in", "refused"])
    assert list(given.iterdir()) == []
    assert later.split() == ["kept", "0"]


async def test_strict_container_can_be_started_again_attached_to_and_copied_from(lab: Lab) -> None:
    id = await lab.engine.create_container(lab.spec("cat /etc/hostname", level="strict"))
    try:
        for _ in range(2):
            await lab.engine.start_container(id)
            assert await lab.engine.wait_container(id) == 0
        found = await lab.engine.stat_path(id, "/bin/busybox")
        details = await lab.engine.container_details(id)
    finally:
        await lab.engine.remove_container(id, force=True, volumes=True)

    assert found.size_bytes > 0
    assert (details.security.read_only_rootfs, details.security.cap_drop) == (True, ("ALL",))
    assert details.limits == isolation.STRICT_LIMITS


@pytest.mark.parametrize(
    ("changed", "wall"),
    [
        ({"cap_add": ("CHOWN",)}, "no capabilities"),
        ({"network": "bridge"}, "no network"),
        ({"network": "host"}, "no network"),
        ({"network": "none", "ports": (PortMapping(80),)}, "no network"),
        ({"privileged": True}, "exclude each other"),
        ({"user": "70000"}, "users 0 to 65535"),
    ],
)
async def test_strict_refuses_what_contradicts_it(lab: Lab, changed: dict[str, object], wall: str) -> None:
    spec = replace(lab.spec("true", level="strict"), **changed)  # type: ignore[arg-type]

    with pytest.raises(errors.InvalidArgument, match=wall):
        await lab.ran(spec)


def test_strict_without_limits_names_the_wall_that_is_missing() -> None:
    spec = ContainerSpec(image="any", isolation="strict")

    with pytest.raises(errors.Unsupported, match=r"limits \(memory_bytes, cpus\)"):
        isolation.completed(spec, enforceable={"pids_limit"})


def test_strict_without_idmapped_mounts_names_the_wall_that_is_missing() -> None:
    embedded.require()

    with pytest.raises(errors.Unsupported, match="idmapped mounts"):
        idmaps.require(Path("/proc"))


async def test_standard_refuses_the_hosts_network_and_privileges(lab: Lab) -> None:
    for changed in ({"network": "host"}, {"privileged": True}):
        with pytest.raises(errors.InvalidArgument, match="isolation='standard'"):
            await lab.engine.create_container(replace(lab.spec("true", level="standard"), **changed))


def test_description_of_a_container_holds_its_level(lab: Lab) -> None:
    house = lab.engine.house
    record = house.create(lab.spec("true", level="strict"))
    try:
        kept = json.loads((house.containers.folder(record.id) / "container.json").read_text())
    finally:
        house.remove(record.id, force=True, with_volumes=True)

    assert kept["spec"]["isolation"] == "strict"
