"""Does a confirmation open just the one door that it was given for, and do labels and links open none?"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from codomyrmex_containerization.engines import guard
from tests import backends, tally
from tests.attacks import driver
from tests.attacks.driver import answer_of, error_of
from tests.backends import DockerCommandLine
from tests.server import wire
from tests.server.engines import OwnEngine
from tests.server.wire import Wire

IMAGE = backends.BUSYBOX_IMAGE
SWAPS = 40


@pytest.fixture
def docker(attacked_engine: OwnEngine) -> DockerCommandLine:
    return attacked_engine.docker


@pytest.fixture
async def server(docker: DockerCommandLine) -> AsyncIterator[Wire]:
    """A server of this test's own."""
    async with wire.served("modern", buildx="off") as served:
        yield served


@pytest.fixture
def strangers(docker: DockerCommandLine, session_label: str) -> Iterator[Any]:
    """Make containers that are not the server's."""

    def make(*options: str, name: str | None = None, image: str = IMAGE) -> str:
        chosen = name or f"stranger-{uuid.uuid4().hex[:8]}"
        docker(["run", "--detach", "--label", session_label, "--name", chosen, *options, image, "sleep", "300"])
        return chosen

    yield make
    left = docker(["ps", "--all", "--quiet"]).stdout.split()
    if left:
        docker(["rm", "--force", *left])


def _exists(docker: DockerCommandLine, container: str) -> bool:
    return docker(["inspect", container], check=False).returncode == 0


async def _token(server: Wire, tool: str, **arguments: Any) -> str:
    error = error_of(await server.call(tool, **arguments))
    assert error["code"] == "confirmation_required", error
    token = error["confirm_token"]
    assert isinstance(token, str)
    return token


async def _still_asks(server: Wire, tool: str, token: object, **arguments: Any) -> None:
    with tally.attempt():
        error = error_of(await server.call(tool, **arguments, confirm_token=token))
        assert error["code"] == "confirmation_required", error
        assert error["confirm_token"] != token


# ----------------------------------------------------------------------------------------------------------- forgery


@pytest.mark.attack(tally.TOKENS)
async def test_token_that_was_not_given_opens_nothing(server: Wire, docker: DockerCommandLine, strangers: Any) -> None:
    victim = strangers()
    token = await _token(server, "container_remove", container=victim, force=True)
    forged: list[object] = [
        "", " ", "true", "yes", "A" * 16, token[:-1], token + "=", token.swapcase(), token[::-1], f" {token}", "*", "%",
        None, True, 1, [token], {"confirm_token": token}, ["*"], "x" * 100_000,
    ]  # fmt: skip
    for one in forged:
        await _still_asks(server, "container_remove", one, container=victim, force=True)
    assert _exists(docker, victim)
    answer_of(await server.call("container_remove", container=victim, force=True, confirm_token=token))
    assert not _exists(docker, victim)


@pytest.mark.attack(tally.TOKENS)
async def test_token_works_once(server: Wire, docker: DockerCommandLine, strangers: Any) -> None:
    victim = strangers()
    arguments = {"container": victim, "force": True}
    token = await _token(server, "container_remove", **arguments)
    calls = [await server.start_call("container_remove", **arguments, confirm_token=token) for _ in range(20)]
    codes = [driver.code_of({"result": await server.result(call)}) for call in calls]
    tally.tried(len(codes) - 1)
    tally.got_through(max(0, codes.count("success") - 1))
    assert codes.count("success") == 1, codes
    strangers(name=victim)
    await _still_asks(server, "container_remove", token, **arguments)
    assert _exists(docker, victim)


@pytest.mark.attack(tally.TOKENS)
async def test_token_is_good_for_just_its_own_arguments(
    server: Wire, docker: DockerCommandLine, strangers: Any
) -> None:
    victim, other = strangers(), strangers()
    id = docker(["inspect", "--format", "{{.Id}}", victim]).stdout.strip()
    base = {"container": victim, "force": True}
    for changed in (
        {"container": other},
        {"volumes": True},
        {"container": id},
        {"container": f"/{victim}"},
        {"engine": "docker"},
    ):
        token = await _token(server, "container_remove", **base)
        await _still_asks(server, "container_remove", token, **{**base, **changed})
    docker(["tag", IMAGE, f"localhost/{victim}:1"])
    token = await _token(server, "container_remove", **base)
    await _still_asks(server, "image_remove", token, image=f"localhost/{victim}:1")
    assert _exists(docker, victim)
    assert _exists(docker, other)
    docker(["image", "rm", f"localhost/{victim}:1"])


@pytest.mark.attack(tally.TOKENS)
async def test_token_of_another_server_opens_nothing(server: Wire, docker: DockerCommandLine, strangers: Any) -> None:
    victim = strangers()
    async with wire.served("legacy") as other:
        token = await _token(other, "container_remove", container=victim, force=True)
        await _still_asks(server, "container_remove", token, container=victim, force=True)
    async with wire.served("legacy") as later:
        await _still_asks(later, "container_remove", token, container=victim, force=True)
    assert _exists(docker, victim)


# ------------------------------------------------------------------------------------------------------ changed state


@pytest.mark.attack(tally.TOKENS)
async def test_token_does_not_reach_another_object_of_the_same_name(
    server: Wire, docker: DockerCommandLine, strangers: Any
) -> None:
    victim = strangers()
    token = await _token(server, "container_remove", container=victim, force=True)
    docker(["rm", "--force", victim])
    strangers(name=victim)
    await _still_asks(server, "container_remove", token, container=victim, force=True)
    assert _exists(docker, victim)


@pytest.mark.attack(tally.TOKENS)
async def test_token_does_not_reach_a_state_that_nobody_was_told_of(
    server: Wire, docker: DockerCommandLine, strangers: Any
) -> None:
    victim = strangers("--volume", "/data")
    for change in (["pause"], ["unpause"], ["kill"], ["start"], ["restart", "--time", "0"]):
        token = await _token(server, "container_remove", container=victim, force=True, volumes=True)
        docker([*change, victim])
        await _still_asks(server, "container_remove", token, container=victim, force=True, volumes=True)
    assert _exists(docker, victim)


@pytest.mark.attack(tally.TOKENS)
async def test_token_for_a_name_does_not_reach_another_image(
    server: Wire, docker: DockerCommandLine, strangers: Any
) -> None:
    name, other = f"localhost/{strangers()}:1", f"localhost/{strangers()}:1"
    first, second, third = (
        docker(["commit", "--change", f"LABEL n={number}", strangers()]).stdout.strip() for number in range(3)
    )
    docker(["tag", first, name])
    token = await _token(server, "image_remove", image=name)
    docker(["tag", second, name])
    await _still_asks(server, "image_remove", token, image=name)
    token = await _token(server, "image_tag", source=third, target=name)
    docker(["tag", first, name])
    await _still_asks(server, "image_tag", token, source=third, target=name)
    docker(["tag", second, other])
    token = await _token(server, "image_tag", source=other, target=name)
    docker(["tag", third, other])
    await _still_asks(server, "image_tag", token, source=other, target=name)
    assert driver.holdings(docker).names[name] == first
    docker(["image", "rm", "--force", name, other, first, second, third])


@pytest.mark.attack(tally.TOKENS)
async def test_token_for_a_file_does_not_reach_another_file(
    server: Wire, working_folder: Path, tmp_path: Path, strangers: Any
) -> None:
    victim = strangers()
    target = working_folder / "notes.txt"
    arguments = {"source": f"{victim}:/etc/passwd", "target": "notes.txt"}
    target.write_text("one\n")
    token = await _token(server, "container_copy", **arguments)
    target.write_text("something longer\n")
    await _still_asks(server, "container_copy", token, **arguments)
    token = await _token(server, "container_copy", **arguments)
    target.rename(tmp_path / "aside")
    target.write_text("something longer\n")
    await _still_asks(server, "container_copy", token, **arguments)
    assert target.read_text() == "something longer\n"


# ------------------------------------------------------------------------------------------------------------- labels


async def _own_labels(server: Wire, docker: DockerCommandLine) -> dict[str, str]:
    """The labels that the server puts on what it makes, with the live run's values."""
    made = answer_of(await server.call("container_run", image=IMAGE, command="sleep 300", detach=True))
    found = driver.holdings(docker).containers
    (labels,) = (dict(one) for id, one in found.items() if id.startswith(made["id"]))
    return {name: value for name, value in labels.items() if name.startswith("codomyrmex.")}


@pytest.mark.attack(tally.LABELS)
async def test_labels_of_the_live_run_worn_by_a_stranger_open_nothing(
    server: Wire, docker: DockerCommandLine, strangers: Any
) -> None:
    labels = await _own_labels(server, docker)
    assert {guard.LABEL_HOST, guard.LABEL_RUN, guard.LABEL_LIFETIME} <= labels.keys()
    for lifetime in ("call", "detached", "sandbox"):
        worn = {**labels, guard.LABEL_LIFETIME: lifetime}
        victim = strangers(*[f"--label={name}={value}" for name, value in worn.items()])
        with tally.attempt():
            error = error_of(await server.call("container_remove", container=victim, force=True))
            assert error["code"] == "confirmation_required"
            assert answer_of(await server.call("container_inspect", container=victim))["own"] is False
            assert _exists(docker, victim)


@pytest.mark.attack(tally.LABELS)
async def test_labels_of_the_live_run_worn_by_a_strangers_image_open_nothing(
    server: Wire, docker: DockerCommandLine
) -> None:
    own = await _own_labels(server, docker)
    built = f"localhost/own-{uuid.uuid4().hex[:8]}"
    text = f"FROM {IMAGE}\nENV A={built}\n"
    answer_of(await server.call("container_build", image_name=built, tag="1", dockerfile_text=text))
    of_a_build = docker(["image", "inspect", "--format", "{{json .Config.Labels}}", f"{built}:1"]).stdout
    worn = {**own, **json.loads(of_a_build)}
    assert {guard.LABEL_HOST, guard.LABEL_RUN} <= worn.keys()
    lines = "".join(f'LABEL {name}="{value}"\n' for name, value in worn.items())
    names = [f"localhost/stranger-{uuid.uuid4().hex[:8]}:1" for _ in range(2)]
    for number, name in enumerate(names):
        docker(["build", "--tag", name, "-"], stdin=f"FROM {IMAGE}\n{lines}ENV N={number}\n".encode())
    before = driver.holdings(docker).names
    for tool, arguments in (
        ("image_remove", {"image": names[0]}),
        ("image_remove", {"image": names[0], "force": True}),
        ("image_remove", {"image": before[names[0]], "force": True}),
        ("image_tag", {"source": names[1], "target": names[0]}),
        ("image_tag", {"source": f"{built}:1", "target": names[0]}),
    ):
        with tally.attempt():
            assert error_of(await server.call(tool, **arguments))["code"] == "confirmation_required", tool
            assert driver.holdings(docker).names == before
    docker(["image", "rm", "--force", *names, f"{built}:1"])


@pytest.mark.attack(tally.LABELS)
async def test_labels_of_the_live_run_worn_by_a_strangers_volume_or_network_open_nothing(
    docker: DockerCommandLine, strangers: Any
) -> None:
    name = f"stranger-{uuid.uuid4().hex[:8]}"
    async with wire.served("modern", buildx="off", toolsets='["all"]') as server:
        worn = {**await _own_labels(server, docker), guard.LABEL_LIFETIME: "detached"}
        options = [f"--label={label}={value}" for label, value in worn.items()]
        for kind in ("volume", "network"):
            docker([kind, "create", *options, name])
            try:
                with tally.attempt():
                    error = error_of(await server.call(f"{kind}_remove", **{kind: name}))
                    assert error["code"] == "confirmation_required"
                    pruned = error_of(await server.call("engine_prune", kind=f"{kind}s", dry_run=False))
                    assert pruned["code"] == "confirmation_required"
                    assert docker([kind, "inspect", name], check=False).returncode == 0
            finally:
                docker([kind, "rm", name])


@pytest.mark.attack(tally.LABELS)
async def test_labels_of_a_built_image_do_not_make_its_containers_ours(
    server: Wire, docker: DockerCommandLine, strangers: Any
) -> None:
    labels = await _own_labels(server, docker)
    worn = {**labels, guard.LABEL_LIFETIME: "call"}
    text = f"FROM {IMAGE}\n" + "".join(f'LABEL {name}="{value}"\n' for name, value in worn.items())
    name = f"localhost/labelled-{uuid.uuid4().hex[:8]}:1"
    answer_of(await server.call("container_build", image_name=name.removesuffix(":1"), tag="1", dockerfile_text=text))
    victim = strangers(image=name)
    with tally.attempt():
        error = error_of(await server.call("container_remove", container=victim, force=True))
        assert error["code"] == "confirmation_required"
    # The server's own container of that image wears what is true of it.
    answer_of(await server.call("container_run", image=name, command="sleep 300", detach=True, name="truly-ours"))
    shown = docker(["inspect", "--format", "{{json .Config.Labels}}", "truly-ours"]).stdout
    assert f'"{guard.LABEL_LIFETIME}":"detached"' in shown
    # Now the run dies, and the next start looks for what it left: a person's container is not that.
    server.process.kill()
    await server.process.wait()
    async with wire.served("modern", buildx="off") as later:
        await _reaped(later, docker)
        with tally.attempt():
            assert _exists(docker, victim)
        assert _exists(docker, "truly-ours")
        answer_of(await later.call("container_list"))
    docker(["rm", "--force", victim, "truly-ours"])
    docker(["image", "rm", "--force", name])


@pytest.mark.attack(tally.LABELS)
async def test_container_committed_and_run_by_a_person_is_not_taken_for_the_dead_runs(
    server: Wire, docker: DockerCommandLine, strangers: Any
) -> None:
    labels = await _own_labels(server, docker)
    image = f"localhost/snapshot-{uuid.uuid4().hex[:8]}:1"
    wearer = strangers(*[f"--label={name}={value}" for name, value in {**labels, guard.LABEL_LIFETIME: "call"}.items()])
    docker(["commit", wearer, image])
    victim = strangers(image=image)
    server.process.kill()
    await server.process.wait()
    async with wire.served("modern", buildx="off") as later:
        await _reaped(later, docker)
        with tally.attempt():
            assert _exists(docker, victim)
    docker(["rm", "--force", victim])
    docker(["image", "rm", "--force", image])


async def _reaped(server: Wire, docker: DockerCommandLine) -> None:
    """Wait until a start has looked for what the dead run left: then its files are gone."""
    folder = Path(os.environ["CODOMYRMEX_CONTAINERIZATION_STATE_DIR"]) / "runs"
    with anyio.fail_after(wire.DEADLINE_SECONDS):
        while len(list(folder.glob("*.lock"))) > 1:
            answer_of(await server.call("container_list"))


@pytest.mark.attack(tally.LABELS)
async def test_own_label_prefix_is_refused_in_arguments(server: Wire) -> None:
    for name in (guard.LABEL_HOST, guard.LABEL_RUN, f"{guard.LABEL_HOST}.x", "codomyrmex.containerization."):
        with tally.attempt():
            refused = error_of(await server.call("container_run", image=IMAGE, command="true", labels={name: "x"}))
            assert refused["code"] == "refused"
        with tally.attempt():
            built = await server.call(
                "container_build", image_name="localhost/x", dockerfile_text=f"FROM {IMAGE}\n", labels={name: "x"}
            )
            assert error_of(built)["code"] == "refused"


# -------------------------------------------------------------------------------------------------------------- links


@pytest.mark.attack(tally.LINKS)
async def test_link_that_becomes_the_engine_socket_is_never_mounted(
    server: Wire, attacked_engine: OwnEngine, working_folder: Path
) -> None:
    """Swapped as fast as can be, between a harmless folder and the engine's socket, while runs that mount it go on."""
    swapped, harmless = working_folder / "swapped", working_folder / "harmless"
    harmless.mkdir()
    (harmless / "marker").write_text("harmless\n")
    with _swapping(swapped, harmless, attacked_engine.socket_path):
        outcomes = [await _look_inside(server, "./swapped") for _ in range(SWAPS)]
    tally.got_through(outcomes.count("socket"))
    assert "socket" not in outcomes
    assert "refused" in outcomes, "the link was never caught pointing at the socket: the attack proves nothing"


@pytest.mark.attack(tally.LINKS)
async def test_folder_that_comes_to_hold_the_engine_socket_is_never_mounted(
    server: Wire, attacked_engine: OwnEngine, working_folder: Path
) -> None:
    swapped, harmless = working_folder / "deep" / "swapped", working_folder / "harmless"
    swapped.parent.mkdir()
    harmless.mkdir()
    with _swapping(swapped, harmless, attacked_engine.socket_path.parent):
        outcomes = [await _look_inside(server, "./deep/swapped") for _ in range(SWAPS // 2)]
    tally.got_through(outcomes.count("socket"))
    assert "socket" not in outcomes
    assert "refused" in outcomes


async def _look_inside(server: Wire, source: str) -> str:
    """Run a container that looks for a socket in what was mounted."""
    command = ["sh", "-c", "ls -ld /seen /seen/* | grep -q ^s && echo socket || echo nothing"]
    tally.tried()
    result = await server.call(
        "container_run", image=IMAGE, command=command, mounts=[f"{source}:/seen"], timeout_seconds=20
    )
    if result.get("isError"):
        error = error_of(result)
        assert error["code"] in ("refused", "invalid_argument", "command_failed", "conflict"), error
        return "refused" if error["code"] == "refused" else "failed"
    return str(answer_of(result)["stdout"]).strip()


class _swapping:  # noqa: N801  reads as what it does in a with statement
    """Make a path a link to one and to the other, by turns, as long as the block lasts."""

    def __init__(self, path: Path, *targets: Path) -> None:
        self._path, self._targets = path, targets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._swap)

    def __enter__(self) -> None:
        self._path.symlink_to(self._targets[0])
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _swap(self) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            spare = self._path.with_name(f"spare-{turn % 2}")
            with suppress(OSError):
                spare.symlink_to(self._targets[turn % len(self._targets)])
                spare.rename(self._path)
            self._stop.wait(0.0005)
