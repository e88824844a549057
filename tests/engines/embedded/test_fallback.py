"""What holds a container where control groups do not, and is what cannot be held refused?

SPEC B109, B110.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import fallback, groups, idmaps, isolation
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import ContainerSpec, Isolation, Limits, Ulimit
from codomyrmex_containerization.models.details import ExecSpec
from tests import backends, embedded, tally

MIB = 1024**2
NO_LIMITS = Limits()
STARVING = "containers that take all there is, without control groups"
HOG = 'awk \'BEGIN { s = "x"; while (length(s) < 500000000) s = s s; print "got", length(s) }\''
FORKS = "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo all of them; sleep 60"


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEngine]:
    """An engine whose runtime was found to have control groups for none, or some, of the limits."""
    embedded.require()
    folder = tmp_path_factory.mktemp("fallback")
    engine = embedded.engine(folder)
    house = engine.house
    house._found = replace(house.found, limits=frozenset(getattr(request, "param", ())))
    try:
        embedded.base_image(engine, folder)
        yield engine
    finally:
        embedded.swept(engine)


SOME = pytest.mark.parametrize("engine", [("cpus",)], indirect=True)


def spec(*script: str, limits: Limits = NO_LIMITS, level: Isolation | None = None) -> ContainerSpec:
    """A container without a network."""
    command = ("sh", "-c", script[0]) if script else ("sleep", "1000")
    return ContainerSpec(embedded.IMAGE, command=command, network="none", limits=limits, isolation=level)


async def ran(engine: EmbeddedEngine, wanted: ContainerSpec) -> tuple[int, str]:
    """Run a container to its end; returns its exit code and all that it said."""
    id = await engine.create_container(wanted)
    await engine.start_container(id)
    code = await engine.wait_container(id)
    async with engine.container_logs(id, base.LogQuery(tail=20), tty=False) as frames:
        return code, b"".join([frame.data async for frame in frames]).decode("utf-8", "replace")


def require_own_users(engine: EmbeddedEngine) -> None:
    """Skip, loudly, where a strict container cannot be."""
    try:
        idmaps.require(engine.house.folders.data)
    except errors.Unsupported as error:
        backends.missing(error.message)


@pytest.mark.attack(STARVING)
async def test_memory_is_held_by_a_limit_of_each_process(engine: EmbeddedEngine) -> None:
    """B109."""
    id = await engine.create_container(spec(limits=Limits(memory_bytes=64 * MIB)))
    await engine.start_container(id)
    details = await engine.container_details(id)

    command = await engine.create_exec(id, ExecSpec(("sh", "-c", f"ulimit -v; {HOG}"), {}))
    async with engine.start_exec(command, stdin=None) as attachment:
        said = b"".join([frame.data async for frame in attachment.frames()]).decode()

    with tally.attempt():
        assert said.startswith(str(64 * 1024))
        assert "got" not in said
    code, said = await ran(engine, spec(HOG, limits=Limits(memory_bytes=64 * MIB)))
    with tally.attempt():
        assert (code != 0, "got" in said) == (True, False)
    assert details.limits_by["memory_bytes"] == "rlimit"
    place = groups.of_process(details.pid)["memory"]
    limit = (place.directory / ("memory.max" if place.is_v2 else "memory.limit_in_bytes")).read_text().strip()
    assert limit == "max" or int(limit) > 2**40, "it was the control group after all"


async def test_default_limit_that_nothing_holds_is_told(engine: EmbeddedEngine) -> None:
    """B110."""
    id = await engine.create_container(spec())
    await engine.start_container(id)

    assert (await engine.container_details(id)).limits_by == {"pids_limit": "no"}
    assert any("not limited" in note and "pids_limit" in note for note in (await engine.info()).notes)


@pytest.mark.parametrize(
    ("limits", "named"),
    [(Limits(pids_limit=10), "pids_limit"), (Limits(cpus=0.5), "cpus"), (Limits(cpu_shares=2), "cpu_shares")],
)
async def test_limit_that_was_asked_for_and_that_nothing_holds_is_refused(
    engine: EmbeddedEngine, limits: Limits, named: str
) -> None:
    """B110."""
    with pytest.raises(errors.Unsupported, match=f"cannot limit {named} here") as caught:
        await engine.create_container(spec(limits=limits))
    assert caught.value.hint
    assert engine.house.containers.ids() == []


async def test_strict_names_what_nothing_holds(engine: EmbeddedEngine) -> None:
    """B110."""
    with pytest.raises(errors.Unsupported, match=r"what is missing: limits \(cpus\)"):
        await engine.create_container(spec(level="strict"))


@pytest.mark.parametrize("more", [{"privileged": True}, {"cap_add": ("SYS_RESOURCE",)}])
async def test_memory_of_one_that_may_raise_its_limits_is_refused(
    engine: EmbeddedEngine, more: dict[str, object]
) -> None:
    wanted = replace(spec(limits=Limits(memory_bytes=64 * MIB)), **more)  # type: ignore[arg-type]  # a few fields of many

    with pytest.raises(errors.Unsupported, match="memory_bytes"):
        await engine.create_container(wanted)


@pytest.mark.attack(STARVING)
@SOME
async def test_processes_of_users_of_their_own_are_held_by_a_limit_of_each_user(engine: EmbeddedEngine) -> None:
    """B109."""
    require_own_users(engine)
    id = await engine.create_container(spec(FORKS, level="strict", limits=Limits(pids_limit=20)))
    other = await engine.create_container(spec(level="strict", limits=Limits(pids_limit=20)))
    await engine.start_container(id)
    await engine.start_container(other)  # other users: the first one's processes do not count here
    assert await engine.wait_container(id) != 0
    async with engine.container_logs(id, base.LogQuery(tail=20), tty=False) as frames:
        said = b"".join([frame.data async for frame in frames]).decode()

    with tally.attempt():
        assert "all of them" not in said
        assert "can't fork" in said
    details = await engine.container_details(other)
    assert details.limits_by == {"memory_bytes": "rlimit", "pids_limit": "rlimit", "cpus": "cgroup"}
    assert details.limits.memory_bytes == isolation.STRICT_LIMITS.memory_bytes


@SOME
async def test_limit_of_processes_that_was_given_is_lowered_never_raised(engine: EmbeddedEngine) -> None:
    require_own_users(engine)
    limits = Limits(pids_limit=20, ulimits=(Ulimit("nproc", 5, 100),))
    code, said = await ran(engine, spec("ulimit -u; ulimit -H -u", level="strict", limits=limits))

    assert (code, said.split()) == (0, ["5", "20"])


async def test_limit_of_processes_cannot_be_changed_while_they_run(engine: EmbeddedEngine) -> None:
    id = await engine.create_container(spec(limits=Limits(memory_bytes=64 * MIB)))
    await engine.start_container(id)

    with pytest.raises(errors.Unsupported, match="cannot be changed while a container runs"):
        await engine.update_container(id, Limits(memory_bytes=32 * MIB))

    await engine.kill_container(id, "KILL")
    await engine.wait_container(id)
    await engine.update_container(id, Limits(memory_bytes=32 * MIB))
    await engine.start_container(id)
    assert (await engine.container_details(id)).limits_by["memory_bytes"] == "rlimit"


def test_all_capabilities_are_those_that_can_be_given() -> None:
    embedded.require()
    wanted = replace(spec(), cap_add=("all",))

    assert fallback.possible(wanted, ("CHOWN", "SYS_RESOURCE")) == frozenset()
    assert fallback.possible(wanted, ("CHOWN",)) == {"memory_bytes"}


def test_nothing_is_said_where_control_groups_hold_all() -> None:
    assert fallback.notes({"memory_bytes", "pids_limit"}) == ()
