"""Does the engine in memory do what the shared contract does not ask: its shell, its builder, its bounds, its refusals?"""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.memory import files
from codomyrmex_containerization.engines.memory.engine import MemoryEngine
from codomyrmex_containerization.models.container import (
    ContainerSpec,
    Healthcheck,
    Limits,
    Mount,
    PortMapping,
    RestartPolicy,
)
from codomyrmex_containerization.models.details import ExecSpec
from codomyrmex_containerization.models.event import EventQuery
from codomyrmex_containerization.models.image import BuildEvent, BuildSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> AsyncIterator[MemoryEngine]:
    made = MemoryEngine()
    yield made
    await made.aclose()


async def said(engine: MemoryEngine, *command: str, image: str = "") -> tuple[str, str, int]:
    """Run a command to its end and return what it said and its exit code."""
    found = {"stdout": b"", "stderr": b""}
    made = await engine.create_container(ContainerSpec(image=image or engine.base_image, command=command))
    async with engine.attach_container(made, stdin=None) as attachment:
        await engine.start_container(made)
        async for frame in attachment.frames():
            found[frame.stream] += frame.data
    return found["stdout"].decode(), found["stderr"].decode(), await engine.wait_container(made)


async def became(engine: MemoryEngine, action: str) -> None:
    """Wait until something has happened."""
    now = datetime.now(tz=UTC)
    query = EventQuery(now - timedelta(minutes=1), now + timedelta(minutes=1), {"event": (action,)})
    async with engine.events(query) as events:
        async for _ in events:
            return


def packed(entries: Mapping[str, bytes]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in entries.items():
            header = tarfile.TarInfo(name)
            header.size, header.mode = len(data), 0o755
            archive.addfile(header, io.BytesIO(data))
    yield buffer.getvalue()


async def built(engine: MemoryEngine, text: str, **entries: bytes) -> list[BuildEvent]:
    spec = BuildSpec(("localhost/made:1",), None, None, text)
    context = {"Dockerfile": text.encode(), **entries}
    async with engine.build_image(spec, context=lambda: packed(context), dockerfile_name="Dockerfile") as events:
        return [event async for event in events]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("for n in 1 2 3; do echo $n; done | tail -n 1", "3\n"),
        ("x=$(seq 3 | wc -l); echo $((x * 2 + 1))", "7\n"),
        ("f() { echo \"<$1>\"; return 3; }; f 'a  b'; echo $?", "<a  b>\n3\n"),
        ("if [ -d /tmp ] && ! test -e /none; then echo yes; else echo no; fi", "yes\n"),
        ("case abc.txt in *.md) echo md;; *.txt) echo txt;; esac", "txt\n"),
        ("i=0; while true; do i=$((i+1)); [ $i -lt 3 ] || break; done; echo $i", "3\n"),
        ("cat <<END\nhello $HOME\nEND", "hello /root\n"),
        ("cd /tmp; touch a1 a2; echo a*; echo 'a*'", "a1 a2\na*\n"),
        ("p=/a/b.tar.gz; echo ${p##*/} ${p%.gz} ${none:-other} ${#p}", "b.tar.gz /a/b.tar other 11\n"),
        ("sleep 60 & kill -TERM $!; wait $!; echo $?", "143\n"),
        ("(exit 4); echo $?; false || echo or; set -e; false; echo never", "4\nor\n"),
        ("yes | head -c 4; echo to >&2 2>/dev/null; echo one two > /f; read a b < /f; echo $b", "y\ny\ntwo\n"),
    ],
)
async def test_shell_does_what_a_shell_does(engine: MemoryEngine, script: str, expected: str) -> None:
    assert (await said(engine, "sh", "-c", script))[0] == expected


async def test_shell_reports_what_it_cannot_read_or_find(engine: MemoryEngine) -> None:
    assert (await said(engine, "sh", "-c", "if true; then"))[2] == 2
    assert (await said(engine, "sh", "-c", "no-such-program"))[1:] == ("sh: no-such-program: not found\n", 127)


async def test_busy_loop_leaves_others_their_turn_and_is_killed(engine: MemoryEngine) -> None:
    made = await engine.create_container(
        ContainerSpec(image=engine.base_image, command=("sh", "-c", "while true; do :; done"))
    )
    await engine.start_container(made)
    with anyio.fail_after(30):
        assert (await said(engine, "echo", "beside"))[0] == "beside\n"
        await engine.kill_container(made, "KILL")
        assert await engine.wait_container(made) == 137


async def test_file_system_has_a_bound(engine: MemoryEngine) -> None:
    script = f"dd if=/dev/zero of=/big bs=1M count={files.MOST_BYTES // 1024**2 + 1}"
    _, stderr, code = await said(engine, "sh", "-c", script)
    assert code == 1
    assert "No space left on device" in stderr


@pytest.mark.parametrize(
    "spec",
    [
        ContainerSpec(image="", limits=Limits(memory_bytes=1024**2)),
        ContainerSpec(image="", ports=(PortMapping(80),)),
        ContainerSpec(image="", mounts=(Mount("bind", "/data", "/tmp"),)),
        ContainerSpec(image="", privileged=True),
        ContainerSpec(image="", network="host"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_naming_other_engines(
    engine: MemoryEngine, spec: ContainerSpec
) -> None:
    with pytest.raises(errors.Unsupported) as caught:
        await engine.create_container(spec)
    assert "docker or podman" in caught.value.hint


async def test_bytes_of_a_file_that_another_took_the_place_of_are_free_again(engine: MemoryEngine) -> None:
    once = "head -c 40 /dev/zero >/room/new && mv /room/new /room/old || exit 3; "
    made = await engine.create_container(
        ContainerSpec(
            image=engine.base_image,
            command=("sh", "-c", once * 3),
            mounts=(Mount("tmpfs", "/room", size_bytes=100),),
        )
    )
    await engine.start_container(made)
    assert await engine.wait_container(made) == 0


async def test_owner_of_a_file_that_is_read_only_stays(engine: MemoryEngine) -> None:
    spec = ContainerSpec(image=engine.base_image, command=("chown", "nobody", "/etc/passwd"), read_only_rootfs=True)
    made = await engine.create_container(spec)
    await engine.start_container(made)
    assert await engine.wait_container(made) == 1


async def test_networks_that_the_engine_made_itself_say_so(engine: MemoryEngine) -> None:
    assert {row.name: row.own for row in await engine.list_networks()} == {"bridge": True, "none": True}


async def test_volume_size_is_what_its_files_hold(engine: MemoryEngine) -> None:
    script = "echo 12345 >/data/one; ln /data/one /data/two"
    mount = Mount("volume", "/data", "held")
    made = await engine.create_container(
        ContainerSpec(image=engine.base_image, command=("sh", "-c", script), mounts=(mount,))
    )
    await engine.start_container(made)
    await engine.wait_container(made)
    assert await engine.volume_sizes() == {"held": 6}


async def test_image_made_of_nothing_has_no_program(engine: MemoryEngine) -> None:
    await built(engine, "FROM scratch\nCOPY file /file\n", file=b"x")
    made = await engine.create_container(ContainerSpec(image="localhost/made:1", command=("true",)))
    with pytest.raises(errors.CommandFailed):
        await engine.start_container(made)
    assert (await engine.inspect_container(made)).error


async def test_build_copies_from_another_stage_and_runs_in_its_own_shell(engine: MemoryEngine) -> None:
    text = (
        f"FROM {engine.base_image} AS one\nARG WHO=you\nRUN mkdir /out && echo hello $WHO > /out/said\n"
        "FROM scratch\nCOPY --from=one /out/ /\nADD busybox /bin/\nENV A=b\nCOPY script /bin/script\n"
        'ENTRYPOINT ["/bin/busybox"]\nCMD ["cat", "/said"]\n'
    )
    events = await built(engine, text, busybox=b"\x7fELF", script=b"#!/bin/busybox echo\n")
    assert [event.text for event in events if event.kind == "error"] == []
    made = await engine.create_container(ContainerSpec(image="localhost/made:1"))
    await engine.start_container(made)
    assert await engine.wait_container(made) == 0
    async with engine.container_logs(made, base.LogQuery(), tty=False) as frames:
        assert b"".join([frame.data async for frame in frames]) == b"hello you\n"
    again = await built(engine, text, busybox=b"\x7fELF", script=b"#!/bin/busybox echo\n")
    assert sum(event.kind == "cached" for event in again) == sum(event.kind == "cached" for event in events) + 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('FROM scratch\nSHELL ["/bin/ash"]\n', "SHELL is unsupported"),
        ("FROM scratch\nADD https://localhost:1/x /x\n", "ADD of an address is unsupported"),
        ("FROM scratch\nCOPY none /x\n", "file not found in build context"),
        ("FROM scratch\nCOPY --chmod=u+x Dockerfile /x\n", "--chmod=u+x is unsupported"),
        ("FROM localhost:1/none:1\n", "pulls nothing"),
    ],
)
async def test_build_names_what_it_cannot_do(engine: MemoryEngine, text: str, reason: str) -> None:
    last = (await built(engine, text))[-1]
    assert last.kind == "error"
    assert reason in last.text


async def test_container_is_started_again_as_its_policy_says(engine: MemoryEngine) -> None:
    policy = RestartPolicy("on-failure", 2)
    made = await engine.create_container(
        ContainerSpec(image=engine.base_image, command=("sh", "-c", "exit 5"), restart=policy)
    )
    await engine.start_container(made)
    with anyio.fail_after(30):
        assert await engine.wait_container(made) == 5
    assert (await engine.container_details(made)).restart_count == 2


async def test_health_is_checked_at_its_interval(engine: MemoryEngine) -> None:
    check = Healthcheck(("CMD-SHELL", "test -e /well"), interval_seconds=0.02, retries=2)
    made = await engine.create_container(
        ContainerSpec(image=engine.base_image, command=("sleep", "100"), healthcheck=check)
    )
    await engine.start_container(made)
    with anyio.fail_after(30):
        await became(engine, "health_status: unhealthy")
        exec_id = await engine.create_exec(made, ExecSpec(("touch", "/well"), {}))
        async with engine.start_exec(exec_id, stdin=None) as attachment:
            assert [frame async for frame in attachment.frames()] == []
        await became(engine, "health_status: healthy")
    assert (await engine.inspect_container(made)).health == "healthy"


async def test_archive_never_leaves_its_folder(engine: MemoryEngine) -> None:
    made = await engine.create_container(ContainerSpec(image=engine.base_image))
    with pytest.raises(errors.InvalidArgument):
        await engine.write_archive(made, "/tmp", lambda: packed({"../etc/passwd": b"x"}))


def test_engine_can_be_used_on_one_event_loop_after_another() -> None:
    engine = MemoryEngine()
    assert [anyio.run(said, engine, "echo", "hi") for _ in range(2)] == [("hi\n", "", 0)] * 2
