"""How does a container live on every engine: made, started, paused, ended, removed, and looked at?"""

from __future__ import annotations

from pathlib import Path

import anyio

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import (
    Healthcheck,
    Limits,
    Mount,
    PortMapping,
    RestartPolicy,
    Ulimit,
)
from tests.engines.contract import (
    FOREVER,
    LABELS,
    NOBODY_HAS,
    Bench,
    Elsewhere,
    Ran,
    behaviour,
    eventually,
    or_elsewhere,
    raises,
)

MIB = 1024 * 1024
ENDS_WHEN_ASKED = "trap 'exit 7' TERM; > /ready; while true; do sleep 0.05; done"
ODD_TEXT = "a b=c, 'ä' \"日本\" \\ $HOME;\n\tend"


async def status(bench: Bench, container: str) -> str:
    return (await bench.engine.inspect_container(container)).status


async def listens(bench: Bench, container: str) -> None:
    """Wait until the script has set its trap."""
    await eventually(lambda: bench.exec(container, "test", "-e", "/ready"), lambda ran: ran.exit_code == 0)


# ------------------------------------------------------------------------------------------------------------ life


@behaviour("lifecycle")
async def created_container_waits_to_be_started(bench: Bench) -> None:
    """A created container waits to be started"""
    made = await bench.create(*FOREVER)
    state = await bench.engine.inspect_container(made)
    assert (state.status, state.exit_code, state.started_at) == ("created", None, None)
    assert state.id == made
    assert made in [row.id for row in await bench.engine.list_containers(all=True)]
    assert made not in [row.id for row in await bench.engine.list_containers(all=False)]


@behaviour("lifecycle")
async def started_container_runs(bench: Bench) -> None:
    """A started container runs"""
    made = await bench.started()
    details = await bench.engine.container_details(made)
    assert details.state.status == "running"
    assert details.state.exit_code is None
    assert details.state.started_at is not None
    assert details.state.started_at >= details.state.created
    assert made in [row.id for row in await bench.engine.list_containers(all=False)]


@behaviour("lifecycle")
async def starting_what_runs_changes_nothing(bench: Bench) -> None:
    """Starting what runs changes nothing"""
    made = await bench.started()
    before = await bench.engine.inspect_container(made)
    await bench.engine.start_container(made)
    assert await bench.engine.inspect_container(made) == before


@behaviour("lifecycle")
async def ended_container_keeps_its_exit_code(bench: Bench) -> None:
    """An ended container keeps its exit code and times"""
    for code in (0, 3, 125, 255):
        made = await bench.started("sh", "-c", f"exit {code}")
        assert await bench.engine.wait_container(made) == code
        state = await bench.engine.inspect_container(made)
        assert (state.status, state.exit_code, state.oom_killed) == ("exited", code, False)
        assert state.started_at is not None
        assert state.finished_at is not None


@behaviour("lifecycle")
async def stopped_program_may_end_by_itself(bench: Bench) -> None:
    """A stopped program may end by itself"""
    made = await bench.started("sh", "-c", ENDS_WHEN_ASKED)
    await listens(bench, made)
    await bench.engine.stop_container(made, timeout_seconds=30)
    state = await bench.engine.inspect_container(made)
    assert (state.status, state.exit_code) == ("exited", 7)


@behaviour("lifecycle")
async def program_that_does_not_stop_is_killed(bench: Bench) -> None:
    """A program that does not stop is killed"""
    made = await bench.started()
    await bench.engine.stop_container(made, timeout_seconds=0)
    state = await bench.engine.inspect_container(made)
    assert (state.status, state.exit_code) == ("exited", 137)


@behaviour("lifecycle")
async def stopping_what_does_not_run_changes_nothing(bench: Bench) -> None:
    """Stopping what does not run changes nothing"""
    made = await bench.ended("exit 4")
    await bench.engine.stop_container(made, timeout_seconds=5)
    state = await bench.engine.inspect_container(made)
    assert (state.status, state.exit_code) == ("exited", 4)


@behaviour("lifecycle")
async def stopped_container_can_be_started_again(bench: Bench) -> None:
    """An ended container can be started again and keeps its files"""
    made = await bench.ended("test -e /been && exit 5; echo x > /been")
    assert (await bench.engine.inspect_container(made)).exit_code == 0
    await bench.engine.start_container(made)
    assert await bench.engine.wait_container(made) == 5


@behaviour("lifecycle")
async def restart_starts_anew(bench: Bench) -> None:
    """A restart ends and starts it, also when it had ended"""
    made = await bench.started()
    before = await bench.engine.inspect_container(made)
    await bench.engine.restart_container(made, timeout_seconds=0)
    after = await bench.engine.inspect_container(made)
    assert after.status == "running"
    assert before.started_at is not None
    assert after.started_at is not None
    assert after.started_at > before.started_at
    await bench.engine.stop_container(made, timeout_seconds=0)
    await bench.engine.restart_container(made, timeout_seconds=0)
    assert await status(bench, made) == "running"


@behaviour("lifecycle", "pause")
async def paused_container_goes_on_later(bench: Bench) -> None:
    """A paused container stands still and goes on later"""
    made = await bench.started()
    await bench.engine.pause_container(made)
    assert await status(bench, made) == "paused"
    async with raises(errors.Conflict):
        await bench.engine.pause_container(made)
    await bench.engine.unpause_container(made)
    assert await status(bench, made) == "running"
    async with raises(errors.Conflict):
        await bench.engine.unpause_container(made)


@behaviour("lifecycle", "pause")
async def what_does_not_run_cannot_be_paused(bench: Bench) -> None:
    """What does not run cannot be paused: conflict"""
    made = await bench.create(*FOREVER)
    async with raises(errors.Conflict):
        await bench.engine.pause_container(made)
    async with raises(errors.Conflict):
        await bench.engine.unpause_container(made)


@behaviour("lifecycle", "pause")
async def paused_container_can_be_removed_by_force(bench: Bench) -> None:
    """A paused container can be removed by force"""
    made = await bench.started()
    await bench.engine.pause_container(made)
    await bench.engine.remove_container(made, force=True, volumes=True)
    async with raises(errors.NotFound):
        await bench.engine.inspect_container(made)


@behaviour("lifecycle")
async def signal_reaches_the_program(bench: Bench) -> None:
    """A signal reaches the program"""
    trapping, sleeping = await bench.started("sh", "-c", ENDS_WHEN_ASKED), await bench.started()
    await listens(bench, trapping)
    await bench.engine.kill_container(trapping, "TERM")
    assert await bench.engine.wait_container(trapping) == 7
    await bench.engine.kill_container(sleeping, "SIGKILL")
    assert await bench.engine.wait_container(sleeping) == 137


@behaviour("lifecycle")
async def signal_to_what_does_not_run_is_a_conflict(bench: Bench) -> None:
    """A signal to what does not run is a conflict, an unknown one refused"""
    made = await bench.ended("exit 0")
    async with raises(errors.Conflict):
        await bench.engine.kill_container(made, "KILL")
    async with raises(errors.InvalidArgument):
        await bench.engine.kill_container(await bench.keeper(), "NOSUCH")


@behaviour("lifecycle")
async def everyone_who_waits_gets_the_exit_code(bench: Bench) -> None:
    """Everyone who waits gets the exit code, early and late"""
    made = await bench.started("sh", "-c", "until test -e /go; do sleep 0.05; done; exit 9")
    codes: list[int] = []

    async def wait() -> None:
        codes.append(await bench.engine.wait_container(made))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await bench.touch(made, "/go")
    assert [*codes, await bench.engine.wait_container(made)] == [9, 9, 9]


@behaviour("lifecycle")
async def running_container_is_removed_only_by_force(bench: Bench) -> None:
    """A running container is removed only by force"""
    made = await bench.started()
    async with raises(errors.Conflict):
        await bench.engine.remove_container(made, force=False, volumes=False)
    assert await status(bench, made) == "running"
    await bench.engine.remove_container(made, force=True, volumes=False)
    async with raises(errors.NotFound):
        await bench.engine.inspect_container(made)


@behaviour("lifecycle")
async def removed_name_is_free_again(bench: Bench) -> None:
    """A taken name is a conflict; removed, it is free again"""
    name = bench.fresh()
    made = await bench.create("true", name=name)
    async with raises(errors.Conflict):
        await bench.create("true", name=name)
    await bench.engine.remove_container(made, force=False, volumes=False)
    again = await bench.create("true", name=name)
    assert again != made


@behaviour("lifecycle")
async def restart_policy_is_kept_to(bench: Bench) -> None:
    """A program that fails is started again as often as the policy says"""
    made = await bench.started("sh", "-c", "exit 3", restart=RestartPolicy("on-failure", 2))
    details = await eventually(
        lambda: bench.engine.container_details(made),
        lambda now: now.restart_count == 2 and now.state.status == "exited",
    )
    assert details.restart == RestartPolicy("on-failure", 2)
    assert details.state.exit_code == 3


@behaviour("lifecycle", "health")
async def health_is_watched(bench: Bench) -> None:
    """Health is watched: well and unwell"""
    well = await bench.started(healthcheck=Healthcheck(("CMD", "true"), interval_seconds=1, timeout_seconds=5))
    ill = await bench.started(
        healthcheck=Healthcheck(
            ("CMD-SHELL", "echo it hurts; exit 1"), interval_seconds=1, timeout_seconds=5, retries=1
        )
    )

    async def health(container: str) -> str:
        return (await bench.engine.inspect_container(container)).health

    await eventually(lambda: health(well), lambda now: now == "healthy")
    await eventually(lambda: health(ill), lambda now: now == "unhealthy")
    details = await bench.engine.container_details(ill)
    assert details.health_failures >= 1
    assert "it hurts" in details.health_output
    rows = {row.id: row.health for row in await bench.engine.list_containers(all=False)}
    assert (rows[well], rows[ill]) == ("healthy", "unhealthy")


# ----------------------------------------------------------------------------------------------------- as it was asked for


@behaviour("specification")
async def command_entrypoint_and_the_images_own_are_run(bench: Bench) -> None:
    """Command, entrypoint and the image's own are run as they are"""
    said = await bench.run("a  b", "$HOME", entrypoint=("echo", "-"))
    assert said.stdout == b"- a  b $HOME\n"
    own = await bench.run(stdin=b"echo of the image\n")
    assert own.exit_code == 0
    assert own.stdout == b"of the image\n"


@behaviour("specification")
async def user_and_working_folder_are_set(bench: Bench) -> None:
    """User and working folder are set, numbers and names"""
    assert (await bench.shell("id -u; pwd", user="nobody", workdir="/tmp")).stdout == b"65534\n/tmp\n"
    assert (await bench.shell("id -u; pwd", user="1234:1234")).stdout == b"1234\n/\n"


@behaviour("specification")
async def environment_and_labels_keep_every_character(bench: Bench) -> None:
    """Environment and labels keep every character"""
    env = {"ODD": ODD_TEXT, "EMPTY": "", "LONG": "x" * 20_000}
    made = await bench.create("sh", "-c", 'printf %s "$ODD"', env=env, labels={"odd.label": ODD_TEXT, "ключ": "ä"})
    assert (await bench.attached(made)).stdout == ODD_TEXT.encode()
    state = await bench.engine.inspect_container(made)
    assert {f"{name}={value}" for name, value in env.items()} <= set(state.env)
    assert dict(state.labels).items() >= {"odd.label": ODD_TEXT, "ключ": "ä", **LABELS}.items()
    row = next(one for one in await bench.engine.list_containers(all=True) if one.id == made)
    assert dict(row.labels).items() >= {"odd.label": ODD_TEXT, "ключ": "ä"}.items()


@behaviour("specification")
async def name_that_cannot_be_is_refused(bench: Bench) -> None:
    """A name that cannot be is refused"""
    for name in ("é", "a b", "/a/b", "-a", "a\n"):
        async with raises(errors.InvalidArgument):
            await bench.create("true", name=name)


@behaviour("specification")
async def missing_image_is_not_found(bench: Bench) -> None:
    """A missing image is not found and not pulled"""
    async with raises(errors.NotFound):
        await bench.create("true", image=NOBODY_HAS)


@behaviour("specification")
async def program_that_cannot_be_started_says_so(bench: Bench) -> None:
    """A program that cannot be started: command_failed"""
    for program in ("/no/such/program", "nosuchprogram", "/etc/passwd"):
        made = await bench.create(program)
        async with raises(errors.CommandFailed):
            await bench.engine.start_container(made)
        assert await status(bench, made) in ("created", "exited")


@behaviour("specification")
async def unknown_user_says_so(bench: Bench) -> None:
    """An unknown user is said to be unknown"""
    async with raises(errors.CommandFailed, errors.InvalidArgument):
        await bench.started(user="nosuchuser")


@behaviour("specification", "limits")
async def limits_are_set_and_told(bench: Bench) -> None:
    """Limits are set and told"""
    limits = Limits(
        memory_bytes=64 * MIB, memory_reservation_bytes=32 * MIB, cpus=0.5, pids_limit=50, shm_bytes=8 * MIB,
        ulimits=(Ulimit("nofile", 512, 1024),),
    )  # fmt: skip
    made = await bench.create("true", limits=limits)
    found = (await bench.engine.container_details(made)).limits
    for name in ("memory_bytes", "memory_reservation_bytes", "cpus", "pids_limit", "shm_bytes"):
        assert getattr(found, name) == getattr(limits, name), name
    assert Ulimit("nofile", 512, 1024) in found.ulimits


@behaviour("specification", "limits")
async def memory_limit_is_enforced(bench: Bench) -> None:
    """A program beyond its memory limit is killed (or gets no more, where a note says that single processes are limited)"""
    limits = Limits(memory_bytes=32 * MIB)
    made = await bench.started("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1", limits=limits)
    code = await bench.engine.wait_container(made)
    if any("limited by rlimits" in note and "memory" in note for note in bench.info.notes):
        assert code not in (0, None)
        raise Elsewhere
    assert code == 137


@behaviour("specification", "limits", "exec")
async def lack_of_memory_is_told(bench: Bench) -> None:
    """That memory ran out is told (or a note says that it is not)"""
    # A child of the first process: the engine must not miss the event because the container is gone.
    script = "dd if=/dev/zero of=/dev/null bs=200M count=1; > /ready; until test -e /go; do sleep 0.05; done"
    made = await bench.started("sh", "-c", script, limits=Limits(memory_bytes=32 * MIB))
    if any("ran out of memory" in note for note in bench.info.notes):
        raise Elsewhere
    await listens(bench, made)
    await bench.touch(made, "/go")
    await bench.engine.wait_container(made)
    await eventually(lambda: bench.engine.inspect_container(made), lambda state: state.oom_killed)


@behaviour("specification", "limits", "update")
async def limits_can_be_changed(bench: Bench) -> None:
    """Limits can be changed while it runs; the others stay"""
    limits = Limits(memory_bytes=64 * MIB, cpus=0.5)
    changed = Limits(memory_bytes=96 * MIB, pids_limit=77)
    made = await bench.started(limits=limits)
    await bench.engine.update_container(made, changed)
    found = (await bench.engine.container_details(made)).limits
    assert (found.memory_bytes, found.cpus, found.pids_limit) == (96 * MIB, 0.5, 77)
    async with raises(errors.NotFound):
        await bench.engine.update_container(bench.fresh(), Limits(memory_bytes=96 * MIB))


@behaviour("specification", "limits", "update")
async def limits_of_what_does_not_run_can_be_changed(bench: Bench) -> None:
    """So they can before it runs, or the engine says which one can"""
    made = await bench.create(*FOREVER, limits=Limits(memory_bytes=64 * MIB, cpus=0.5))
    with or_elsewhere("changing the limits of what does not run"):
        await bench.engine.update_container(made, Limits(memory_bytes=96 * MIB))
    found = (await bench.engine.container_details(made)).limits
    assert (found.memory_bytes, found.cpus) == (96 * MIB, 0.5)


@behaviour("specification")
async def root_filesystem_can_be_read_only(bench: Bench) -> None:
    """The root filesystem can be read-only, with a tmpfs to write to"""
    tmpfs = Mount("tmpfs", "/scratch", size_bytes=MIB)
    made = await bench.create(
        "sh", "-c", "echo x 2> /dev/null > /file && exit 3; echo y > /scratch/file && cat /scratch/file",
        read_only_rootfs=True, mounts=(tmpfs,),
    )  # fmt: skip
    assert await bench.attached(made) == Ran(b"y\n", b"", 0)
    details = await bench.engine.container_details(made)
    assert details.security.read_only_rootfs
    assert ("tmpfs", "/scratch") in [(one.type, one.target) for one in details.state.mounts]


@behaviour("specification")
async def folder_of_the_host_can_be_mounted(bench: Bench) -> None:
    """A folder of the host can be mounted, also read-only"""
    folder = bench.folder / bench.fresh("bind")
    _shared_folder(folder)
    mounts = (Mount("bind", "/data", str(folder)), Mount("bind", "/fixed", str(folder), read_only=True))
    script = "cat /data/in; echo out > /data/out; echo x 2> /dev/null > /fixed/no && exit 3; cat /fixed/in"
    with or_elsewhere("mounting folders of the host"):
        made = await bench.create("sh", "-c", script, mounts=mounts)
    said = await bench.attached(made)
    assert (said.stdout, said.exit_code) == (b"in\nin\n", 0)
    assert (folder / "out").read_bytes() == b"out\n"
    found = {one.target: one for one in (await bench.engine.inspect_container(made)).mounts}
    assert {target: (one.type, one.source, one.read_only) for target, one in found.items()} == {
        "/data": ("bind", str(folder), False),
        "/fixed": ("bind", str(folder), True),
    }


def _shared_folder(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)  # a rootless engine's root is another user here
    (folder / "in").write_bytes(b"in\n")


@behaviour("specification", "ports")
async def published_port_is_reached_on_loopback(bench: Bench) -> None:
    """A published port is told and reached on loopback"""
    script = "while true; do nc -l -p 8080 -e echo reached; done"
    made = await bench.started("sh", "-c", script, ports=(PortMapping(8080, host_ip="127.0.0.1"),))
    port = next(one for one in (await bench.engine.inspect_container(made)).ports if one.container_port == 8080)
    assert port.protocol == "tcp"
    assert port.host_ip == "127.0.0.1"
    assert port.host_port
    row = next(one for one in await bench.engine.list_containers(all=False) if one.id == made)
    assert port in row.ports

    await eventually(lambda: bench.dial(port.host_port or 0), lambda answer: answer == b"reached\n")


@behaviour("specification", "ports")
async def taken_port_is_a_conflict(bench: Bench) -> None:
    """A port that is taken is a conflict"""
    first = await bench.started(ports=(PortMapping(8080, host_ip="127.0.0.1"),))
    port = (await bench.engine.inspect_container(first)).ports[0]
    second = await bench.create(*FOREVER, ports=(port,))
    async with raises(errors.Conflict):
        await bench.engine.start_container(second)
    assert (await bench.engine.inspect_container(second)).status != "running"


# ------------------------------------------------------------------------------------------------------------ looked at


@behaviour("inspect")
async def container_is_found_by_name_id_and_short_id(bench: Bench) -> None:
    """A container is found by name, id and short id"""
    name = bench.fresh()
    made = await bench.create("true", name=name)
    for called in (name, made, made[:12]):
        state = await bench.engine.inspect_container(called)
        assert (state.id, state.name) == (made, name)
    assert len(made) == 64


@behaviour("inspect")
async def short_id_that_fits_several_is_ambiguous(bench: Bench) -> None:
    """A short id that fits several is ambiguous"""
    seen: dict[str, str] = {}
    while True:  # at most 17 ids have different first characters
        made = await bench.create("true")
        if made[0] in seen:
            break
        seen[made[0]] = made
    async with raises(errors.Ambiguous):
        await bench.engine.inspect_container(made[0])


@behaviour("inspect")
async def list_is_newest_first_and_chosen_by_label(bench: Bench) -> None:
    """The list is newest first and can be chosen by label"""
    mark = bench.fresh("label")
    older = await bench.create("true", labels={mark: "one"})
    newer = await bench.create("true", labels={mark: "two"})

    async def listed(*labels: str) -> list[str]:
        return [row.id for row in await bench.engine.list_containers(all=True, labels=labels)]

    everything = [one for one in await listed() if one in (older, newer)]
    assert everything == await listed(mark) == [newer, older]
    assert await listed(f"{mark}=one") == [older]
    assert await listed(mark, f"{mark}=two") == [newer]
    assert await listed(f"{mark}=nobody") == []


@behaviour("inspect")
async def row_says_what_the_container_is(bench: Bench) -> None:
    """A row says what the container is"""
    name = bench.fresh()
    made = await bench.started(name=name)
    row = next(one for one in await bench.engine.list_containers(all=False) if one.id == made)
    state = await bench.engine.inspect_container(made)
    assert (row.name, row.status, row.health, row.engine) == (name, "running", "none", bench.engine.name)
    assert row.image == bench.image == state.image
    assert abs((row.created - state.created).total_seconds()) < 1
    assert state.image_id == (await bench.engine.inspect_image(bench.image)).id
    assert row.created.tzinfo is not None


@behaviour("inspect")
async def details_show_how_it_was_made(bench: Bench) -> None:
    """The details show how it was made"""
    made = await bench.started(
        "-c", "sleep 100000", entrypoint=("sh",), workdir="/tmp", user="nobody",
        restart=RestartPolicy("unless-stopped"), cap_drop=("NET_RAW",),
    )  # fmt: skip
    found = await bench.engine.container_details(made)
    assert (found.entrypoint, found.command) == (("sh",), ("-c", "sleep 100000"))
    assert (found.workdir, found.security.user) == ("/tmp", "nobody")
    assert found.restart.name == "unless-stopped"
    assert found.restart_count == 0
    assert found.healthcheck is None
    assert found.hostname
    assert not found.state.privileged
    assert not found.security.privileged
    assert found.state.engine == bench.engine.name
    assert "NET_RAW" in [one.removeprefix("CAP_") for one in found.security.cap_drop]


@behaviour("inspect")
async def written_bytes_are_counted_when_asked_for(bench: Bench) -> None:
    """What was written is counted when asked for"""
    made = await bench.ended("dd if=/dev/zero of=/big bs=1M count=2 2> /dev/null")
    assert (await bench.engine.inspect_container(made)).writable_bytes is None
    found = (await bench.engine.inspect_container(made, size=True)).writable_bytes
    assert found is not None
    assert 2 * MIB <= found < 3 * MIB
