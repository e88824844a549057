"""What does Podman do otherwise than Docker, and does one who asks the engine notice? (SPEC B82)"""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.base import LogQuery
from codomyrmex_containerization.engines.docker import errors as docker_errors
from codomyrmex_containerization.engines.podman import build, health, libpod, logs
from codomyrmex_containerization.engines.podman.engine import PodmanEngine
from codomyrmex_containerization.models.container import ContainerSpec, Healthcheck, Limits, OutputFrame, Ulimit
from codomyrmex_containerization.models.engine import Endpoint
from codomyrmex_containerization.models.event import EventQuery
from codomyrmex_containerization.models.image import BuildSpec
from tests.dispatch import harness
from tests.podman import PodmanService

Run = Callable[..., Awaitable[str]]


@pytest.fixture
async def engine(podman_service: PodmanService) -> AsyncIterator[PodmanEngine]:
    endpoint = Endpoint("podman", podman_service.url, "tests", kind="podman")
    made = PodmanEngine(endpoint, timeout_seconds=60)
    yield made
    await made.aclose()


@pytest.fixture
async def run(engine: PodmanEngine, podman_service: PodmanService) -> AsyncIterator[Run]:
    made: list[str] = []

    async def started(*command: str, healthcheck: Healthcheck | None = None, limits: Limits | None = None) -> str:
        spec = ContainerSpec(
            podman_service.image, command=command, healthcheck=healthcheck, limits=limits or Limits(), network="none"
        )
        made.append(await engine.create_container(spec))
        await engine.start_container(made[-1])
        return made[-1]

    yield started
    for container in made:
        await engine.remove_container(container, force=True, volumes=True)


async def text_of(engine: PodmanEngine, container: str, query: LogQuery) -> bytes:
    async with engine.container_logs(container, query, tty=False) as frames:
        return b"".join([frame.data async for frame in frames])


async def test_info_tells_podmans_own_version_and_what_it_lacks(engine: PodmanEngine) -> None:
    info = await engine.info()
    assert info.product == "podman"
    assert info.version.split(".")[0].isdigit()
    assert info.version != info.api_version
    assert "build_secrets" in info.lacks
    assert info.builder == "classic"


async def test_long_and_unfinished_lines_are_whole_among_the_last_ones(engine: PodmanEngine, run: Run) -> None:
    container = await run("sh", "-c", "echo first; head -c 20000 /dev/zero | tr '\\0' x; echo; printf end")
    await engine.wait_container(container)
    for query in (LogQuery(tail=2), LogQuery(tail=2, follow=True)):
        assert await text_of(engine, container, query) == b"x" * 20_000 + b"\nend"
    assert await text_of(engine, container, LogQuery(tail=1)) == b"end"
    assert await text_of(engine, container, LogQuery(tail=0)) == b""


async def test_events_of_the_past_are_told_in_dockers_words(engine: PodmanEngine, run: Run) -> None:
    since = datetime.now(UTC)
    container = await run("sh", "-c", "exit 3")
    await engine.wait_container(container)
    with anyio.fail_after(30):
        while True:
            async with engine.events(EventQuery(since=since, filters={"container": (container,)})) as events:
                found = [event async for event in events]
            if "die" in (actions := [event.action for event in found]):
                break
    assert actions.index("create") < actions.index("start") < actions.index("die")
    assert next(event for event in found if event.action == "die").attributes["exitCode"] == "3"
    async with engine.events(EventQuery(since=since, filters={"event": ("die",), "container": (container,)})) as events:
        assert {event.action async for event in events} == {"die"}


async def test_health_checks_are_run_while_the_task_lives(engine: PodmanEngine, run: Run) -> None:
    if not health.is_needed(engine):
        pytest.skip("systemd runs them here")
    well = await run("sleep", "60", healthcheck=Healthcheck(("CMD", "true"), interval_seconds=0.5))
    ill = await run("sleep", "60", healthcheck=Healthcheck(("CMD", "false"), interval_seconds=0.5, retries=1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(health.run_health_checks, engine)
        with anyio.fail_after(60):
            while True:
                seen = {row.id: row.health for row in await engine.list_containers(all=False)}
                if (seen[well], seen[ill]) == ("healthy", "unhealthy"):
                    break
                await anyio.sleep(0.05)
        assert any("health checks are run by this server" in note for note in (await engine.info()).notes)
        tasks.cancel_scope.cancel()


async def test_container_with_a_limit_of_its_own_starts_where_others_may_not_be_raised(
    engine: PodmanEngine, run: Run
) -> None:
    container = await run("sleep", "60", limits=Limits(ulimits=(Ulimit("nofile", 256, 512),)))
    limits = (await engine.container_details(container)).limits.ulimits
    assert Ulimit("nofile", 256, 512) in limits


async def test_build_secrets_are_unsupported_and_the_hint_names_docker(engine: PodmanEngine) -> None:
    spec = BuildSpec(
        tags=(),
        context=None,
        dockerfile=None,
        dockerfile_text="FROM scratch\n",
        platforms=("linux/amd64", "linux/arm64"),
    )
    with pytest.raises(errors.Unsupported):
        engine.builder(spec)
    with pytest.raises(errors.Unsupported, match="no build cache") as caught:
        await engine.build_cache()
    assert "docker" in caught.value.hint


async def test_usage_of_all_is_one_request_where_no_files_are(engine: PodmanEngine, run: Run) -> None:
    containers = [await run("sleep", "60") for _ in range(2)]
    found = await engine._counters_from_libpod(containers)
    assert set(found) == set(containers)
    assert all(one.pids >= 1 and one.memory_bytes > 0 for one in found.values())


def test_builders_words_become_events() -> None:
    said = ["[1/2] STEP 1/2: FROM a", "--> Using cache " + "a" * 64, "--> aaaaaaaaaaa", "[1/2] STEP 2/2: RUN x", "out",
            "[2/2] STEP 1/1: FROM b", "[2/2] COMMIT c"]  # fmt: skip
    lines: Iterator[dict[str, str]] = iter(
        [
            *({"stream": f"{one}\n"} for one in said),
            {"error": 'building at STEP "RUN x": while running runtime: exit status 3\n'},
        ]
    )
    found = list(build.events(lines))
    assert [one.kind for one in found] == ["step", "cached", "image", "step", "log", "step", "error"]
    assert [(one.number, one.total) for one in found if one.kind == "step"] == [(1, 2), (2, 2), (3, 3)]
    assert (found[-1].exit_code, found[-1].step) == (3, "RUN x")


def test_lines_in_pieces_are_counted_once() -> None:
    frames = [
        OutputFrame("stdout", b"a"),
        OutputFrame("stderr", b"b\n"),
        OutputFrame("stdout", b"a\n"),
        OutputFrame("stdout", b"c"),
    ]
    assert logs.count_lines(iter(frames)) == 3
    assert list(logs.last_lines(iter(frames), 1)) == frames[3:]
    assert list(logs.without_first_lines(iter(frames), 1)) == [frames[1], frames[3]]


@pytest.mark.parametrize(
    ("name", "familiar"),
    [
        ("docker.io/library/x:1", "x:1"),
        ("docker.io/me/x:1", "me/x:1"),
        ("localhost/x:1", "localhost/x:1"),
        ("x:1", "x:1"),
    ],
)
def test_image_is_named_as_it_was_given(name: str, familiar: str) -> None:
    assert libpod.familiar(name) == familiar


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ('no container with name or ID "x" found: no such container', 404, "not_found"),
        ("failed to find image x: docker.io/library/x: image not known", 404, "not_found"),
        ("no exec session with ID x found: no such exec session", 404, "not_found"),
        ("unable to find network with name or ID x: network not found", 500, "not_found"),
        ("more than one result for container ID 6: container already exists", 404, "ambiguous"),
        ('creating container storage: the container name "x" is already in use by 2: that name is already in use', 500, "conflict"),
        ("image x is in use: image used by 11: image is in use by a container", 409, "conflict"),
        ("can only kill running containers. 69 is in state exited: container state improper", 500, "conflict"),
        (
            'runc: runc create failed: exec: "/x": no such file: OCI runtime attempted to invoke a command that was not found',
            500,
            "command_failed",
        ),
        ('runc: runc create failed: exec: "/etc/passwd": permission denied: OCI permission denied', 500, "command_failed"),
        ("error setting rlimit type 6: operation not permitted: OCI permission denied", 500, "invalid_argument"),
        ("crun: cgroups in hybrid mode not supported, drop all controllers from cgroupv2", 500, "engine_unavailable"),
        ("cannot read logs: this container is not logging output", 500, "unsupported"),
        ("names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*: invalid argument", 500, "invalid_argument"),
    ],
)  # fmt: skip
def test_podmans_words_have_the_codes_of_dockers(message: str, status: int, code: str) -> None:
    assert docker_errors.from_message(message, engine="podman", what="asking", status=status).code == code


def test_read_only_places_are_known_before_podman_writes_there() -> None:
    raw = {
        "HostConfig": {"ReadonlyRootfs": True, "Tmpfs": {"/tmp": ""}},
        "Mounts": [{"Destination": "/data", "RW": True}, {"Destination": "/data/fixed", "RW": False}],
    }
    assert [libpod.refuses_writing(raw, one) for one in ("/etc", "/tmp/x", "/data/", "/data/fixed/x", "/datax")] == [
        True, False, False, True, True,
    ]  # fmt: skip


async def test_archive_goes_to_no_folder_that_is_not_there(engine: PodmanEngine, run: Run) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    container = await run("sleep", "60")
    with pytest.raises(errors.NotFound):
        await engine.write_archive(container, "/nowhere", lambda: iter([buffer.getvalue()]))


IMAGE = "localhost/cxc-test-busybox:1"
STAGE = "FROM {image} AS base\nRUN rm -rf /l && ln -s /etc /l\nFROM {image}\nRUN --mount=type=bind,from=base,source=/l,target=/mnt "


@pytest.mark.parametrize(
    "text",
    [
        STAGE + "cat /mnt/hostname",
        "FROM {image}\nRUN --mount=type=cache,id=../../../../../../../etc,target=/mnt ls /mnt",
        "FROM {image}\nARG X=..\nRUN --mount=type=cache,id=$X/$X/$X/etc,target=/mnt ls /mnt",
        "FROM {image}\nRUN --mount=source=link,target=/mnt ls /mnt",
        "FROM dir:/etc",
        "FROM docker-daemon:busybox:1",
        "ARG A=di\nARG B=r:/etc\nFROM ${A}${B}",
        "ARG A=xdir:/etc\nFROM ${A#x}",
        "FROM {image}\nCOPY --from=oci-archive:/srv/image.tar / /",
    ],
)
async def test_build_reaches_no_files_of_the_host(
    podman_service: PodmanService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", podman_service.url)
    (tmp_path / "link").symlink_to("/etc")
    given = {"image_name": "localhost/cxc-inside:1", "dockerfile_text": text.replace("{image}", IMAGE)}
    async with harness.opened(engines=("podman",), policy__allowed_paths=(str(tmp_path),)) as house:
        await house.fails("refused", "container_build", **given, context=str(tmp_path))


async def test_build_mounts_what_lies_in_its_context_and_a_cache(
    podman_service: PodmanService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", podman_service.url)
    (tmp_path / "word").write_text("from the context")
    text = (
        f"FROM {IMAGE}\nRUN --mount=source=word,target=/word --mount=type=cache,target=/kept "
        '[ "$(cat /word)" = "from the context" ]\n'
    )
    name = "localhost/cxc-inside:1"
    async with harness.opened(engines=("podman",), policy__allowed_paths=(str(tmp_path),)) as house:
        await house.ok("container_build", image_name=name, dockerfile_text=text, context=str(tmp_path))
        await house.ok("image_remove", image=name)


async def test_mount_that_podman_would_read_as_another_one_is_refused(
    podman_service: PodmanService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTAINER_HOST", podman_service.url)
    (tmp_path / "a,source=" / "etc").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a,source=" / "etc")
    async with harness.opened(engines=("podman",), policy__allowed_paths=(str(tmp_path),)) as house:
        for mount in (f"{tmp_path}:/x,source=/etc", f"{tmp_path}/link:/x", "data:/x,type=bind"):
            given = {"image": IMAGE, "command": "ls /x", "mounts": [mount]}
            await house.fails("invalid_argument", "container_run", **given)
        network = "slirp4netns:allow_host_loopback=true"
        await house.fails("refused", "container_run", image=IMAGE, command="true", network=network)


async def test_container_of_a_pod_says_which(podman_service: PodmanService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", podman_service.url)
    podman_service.podman(["pod", "create", "--name", "cxc-pod"])
    try:
        podman_service.podman(["run", "--detach", "--pod", "cxc-pod", "--name", "cxc-in-pod", IMAGE, "sleep", "1000"])
        async with harness.opened(engines=("podman",)) as house:
            rows = {row["name"]: row for row in (await house.ok("container_list"))["containers"]}
            assert rows["cxc-in-pod"]["pod"] == "cxc-pod"
            infra = next(name for name in rows if name != "cxc-in-pod")
            outcome = await house.fails("confirmation_required", "container_remove", container=infra, force=True)
            token = outcome.error_data["confirm_token"]
            outcome = await house.fails(
                "conflict", "container_remove", container=infra, force=True, confirm_token=token
            )
            assert "pod" in outcome.text
    finally:
        podman_service.podman(["pod", "rm", "--force", "cxc-pod"])
