"""Does the guard judge the finished specification, whatever road it came by, and hold on until the start?"""

from __future__ import annotations

import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors, policy
from codomyrmex_containerization.engines import guard
from codomyrmex_containerization.models.container import ContainerSpec, Mount
from tests import tally
from tests.backends import DockerCommandLine
from tests.dispatch import harness

POWERS = "powers that a container, a build or a stranger's container would lend"

pytestmark = pytest.mark.usefixtures("docker_socket")


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, private_folders: Path) -> Path:
    """The working folder; the folder for temporary files lies elsewhere, so that one may leave the allowed paths."""
    folder, scratch = tmp_path / "project", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(folder)
    (folder / "data").mkdir()
    (folder / "data" / "file.txt").write_text("inside\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file.txt").write_text("outside\n")
    (private_folders / ".ssh").mkdir()
    return folder


@pytest.fixture
def listening(project: Path) -> Iterator[Path]:
    """A folder with a socket deep in it."""
    folder = project / "with-socket" / "a" / "b"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))
        yield project / "with-socket"


def mount(source: str | Path) -> list[str]:
    return [f"{source}:/mnt"]


async def refused(arguments: dict[str, Any], **settings: Any) -> errors.ContainerizationError:
    """Run with these arguments, which must be refused, and return the refusal."""
    async with harness.opened(**settings) as house:
        with tally.attempt():
            outcome = await house.fails("refused", "container_run", {"image": "localhost/none", **arguments})
        assert not await house.engine.list_containers(
            all=True, labels=[f"{guard.LABEL_RUN}={house.application.run.run}"]
        )
        assert outcome.error is not None
        return outcome.error


async def output(arguments: dict[str, Any], **settings: Any) -> str:
    """Run with these arguments, which must be allowed, and return what it said."""
    async with harness.opened(**settings) as house:
        answer = await house.ok("container_run", arguments)
        assert answer["exit_code"] == 0, answer
        return str(answer["stdout"])


# ------------------------------------------------------------------------------------------------------------- mounts


@pytest.mark.parametrize("source", ["data", "./data", "../project/data", "{project}/data", "data/../data"])
async def test_folder_below_the_working_folder_is_mounted(busybox_image: str, project: Path, source: str) -> None:
    path = source.format(project=project)
    path = path if path.startswith(("/", ".")) else f"./{path}"
    assert await output({"image": busybox_image, "command": "cat /mnt/file.txt", "mounts": mount(path)}) == "inside\n"


@pytest.mark.attack(tally.PATHS)
@pytest.mark.parametrize(
    "source",
    [
        *"/ /etc /etc/shadow /proc /sys /dev /dev/kvm /boot /run /var/run/docker.sock /run/docker.sock /usr/share".split(),
        *"../outside ./../outside {project}/../outside/file.txt {project}/.. ~ ~/.ssh ~/.ssh/id_rsa /nowhere/at/all".split(),
    ],
)
async def test_mount_outside_the_allowed_paths_is_refused_whether_it_exists_or_not(project: Path, source: str) -> None:
    await refused({"mounts": mount(source.format(project=project))})


@pytest.mark.attack(tally.LINKS)
@pytest.mark.parametrize("target", ["/var/run/docker.sock", "/", "/etc", "{outside}", "{home}/.ssh"])
@pytest.mark.parametrize("depth", [1, 3])
async def test_link_in_the_working_folder_opens_nothing_that_lies_elsewhere(
    project: Path, private_folders: Path, target: str, depth: int
) -> None:
    goal = Path(target.format(outside=project.parent / "outside", home=private_folders))
    for number in range(depth):
        link = project / f"link{number}"
        link.symlink_to(goal)
        goal = link
    await refused({"mounts": mount(goal)})
    await refused({"mounts": mount(f"{goal}/.")})


@pytest.mark.attack(tally.LINKS)
async def test_folder_reached_through_a_linked_parent_is_judged_where_it_is(project: Path) -> None:
    (project / "up").symlink_to(project.parent)
    await refused({"mounts": mount(project / "up" / "outside")})


@pytest.mark.attack(tally.PATHS)
async def test_home_folder_is_refused_though_a_person_allowed_it(private_folders: Path) -> None:
    refusal = await refused({"mounts": mount(private_folders)}, policy__allowed_paths=[str(private_folders)])
    assert "protected" in refusal.message
    assert "policy.allowed_paths" in refusal.hint


async def test_folder_outside_is_mounted_once_it_is_allowed(busybox_image: str, project: Path) -> None:
    outside = project.parent / "outside"
    refusal = await refused({"mounts": mount(outside)})
    assert "policy.allowed_paths" in refusal.hint
    said = await output(
        {"image": busybox_image, "command": "cat /mnt/file.txt", "mounts": mount(outside)},
        policy__allowed_paths=[str(outside)],
    )
    assert said == "outside\n"


async def test_protected_folder_is_mounted_once_it_is_named(busybox_image: str, private_folders: Path) -> None:
    folder = private_folders / ".ssh"
    (folder / "known_hosts").write_text("hosts\n")
    said = await output(
        {"image": busybox_image, "command": "cat /mnt/known_hosts", "mounts": mount(folder)},
        policy__allowed_paths=[str(folder)],
    )
    assert said == "hosts\n"


@pytest.mark.attack(tally.PATHS)
@pytest.mark.parametrize("part", ["", "a", "a/b", "a/b/s"])
async def test_socket_and_every_folder_above_it_is_refused_until_sockets_are_allowed(
    busybox_image: str, listening: Path, part: str
) -> None:
    arguments = {"image": busybox_image, "command": "true", "mounts": mount(listening / part)}
    refusal = await refused(arguments)
    assert "policy.allow_engine_socket = true" in refusal.hint
    await output(arguments, policy__allow_engine_socket=True)


@pytest.mark.attack(tally.PATHS)
async def test_engine_socket_needs_its_path_and_the_setting(busybox_image: str, docker_socket: Path) -> None:
    arguments = {"image": busybox_image, "command": "test -S /mnt", "mounts": mount(docker_socket)}
    await refused(arguments, policy__allow_engine_socket=True)
    refusal = await refused(arguments, policy__allowed_paths=[str(docker_socket)])
    assert "policy.allow_engine_socket = true" in refusal.hint
    await output(arguments, policy__allowed_paths=[str(docker_socket)], policy__allow_engine_socket=True)


async def test_missing_folder_inside_the_allowed_paths_is_named_as_missing(project: Path) -> None:
    async with harness.opened() as house:
        outcome = await house.fails(
            "invalid_argument", "container_run", image="localhost/none", mounts=mount("./nothing-here")
        )
        assert "does not exist" in outcome.text


@pytest.mark.parametrize("start", ["/", "home", "above home"])
async def test_started_in_the_root_or_home_only_temporary_files_are_allowed(
    monkeypatch: pytest.MonkeyPatch, private_folders: Path, start: str
) -> None:
    monkeypatch.chdir({"/": Path("/"), "home": private_folders, "above home": private_folders.parent}[start])
    async with harness.opened() as house:
        assert [str(path) for path in house.engine._paths.allowed] == [str(Path(tempfile.gettempdir()).resolve())]


def _by_a_link(project: Path) -> None:
    (project / "data").rename(project / "was")
    (project / "data").symlink_to(project.parent / "outside")


def _by_another_folder(project: Path) -> None:
    (project / "data").rename(project / "was")
    (project / "data").mkdir()


def _by_nothing(project: Path) -> None:
    (project / "data").rename(project / "was")


def _by_a_linked_parent(project: Path) -> None:
    (project.parent / "outside" / "data").mkdir()
    project.rename(project.parent / "was")
    project.symlink_to(project.parent / "outside")


@pytest.mark.attack(tally.LINKS)
@pytest.mark.parametrize("replace", [_by_a_link, _by_another_folder, _by_nothing, _by_a_linked_parent])
async def test_folder_replaced_between_create_and_start_is_not_mounted(
    busybox_image: str, project: Path, replace: Callable[[Path], None]
) -> None:
    async with harness.opened() as house:
        spec = ContainerSpec(
            image=busybox_image, command=("true",), mounts=(Mount("bind", "/mnt", source=str(project / "data")),)
        )
        id = await house.engine.create_container(spec)
        replace(project)
        with tally.attempt(), pytest.raises(errors.Refused, match="replaced"):
            await house.engine.start_container(id)
        assert (await house.engine.inspect_container(id)).status == "created"


# ------------------------------------------------------------------------------- what a container may be allowed to do

ALLOWED_BY: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "privileged": ({"privileged": True}, "policy.allow_privileged", {"policy__allow_privileged": True}),
    "capability": (
        {"cap_add": ["SYS_ADMIN"]},
        "policy.allowed_capabilities",
        {"policy__allowed_capabilities": ["SYS_ADMIN"]},
    ),
    "host network": ({"network": "host"}, "policy.allow_host_namespaces", {"policy__allow_host_namespaces": True}),
    "all addresses": (
        {"ports": ["0.0.0.0::80"]},
        "policy.publish_addresses",
        {"policy__publish_addresses": ["0.0.0.0"]},
    ),
}


@pytest.mark.attack(POWERS)
@pytest.mark.parametrize("what", ALLOWED_BY)
async def test_refusal_names_the_setting_that_then_allows_it(busybox_image: str, what: str) -> None:
    arguments, setting, settings = ALLOWED_BY[what]
    refusal = await refused({"image": busybox_image, **arguments})
    assert setting in refusal.hint
    async with harness.opened(**settings) as house:
        allowed = await house.call("container_run", {"image": busybox_image, "command": "true", **arguments})
        # An engine that is itself confined may be unable to give what it was allowed to.
        assert allowed.error is None or (what == "privileged" and allowed.error.code == "command_failed")


@pytest.mark.attack(POWERS)
async def test_network_of_another_container_is_joined_only_when_allowed(
    busybox_image: str, docker_cli: DockerCommandLine, session_label: str
) -> None:
    name = f"cxc-test-{uuid.uuid4().hex[:8]}"
    docker_cli(["run", "--detach", "--name", name, "--label", session_label, busybox_image, "sleep", "60"])
    try:
        arguments = {"image": busybox_image, "command": "true", "network": f"container:{name}"}
        assert "policy.allow_host_namespaces" in (await refused(arguments)).hint
        await output(arguments, policy__allow_host_namespaces=True)
    finally:
        docker_cli(["rm", "--force", name])


async def test_capability_that_docker_gives_anyway_may_be_added(busybox_image: str) -> None:
    await output({"image": busybox_image, "command": "true", "cap_drop": ["ALL"], "cap_add": ["NET_BIND_SERVICE"]})


@pytest.mark.attack(tally.LABELS)
async def test_label_of_our_name_space_is_refused() -> None:
    await refused({"labels": {f"{policy.LABEL_PREFIX}run": "mine"}})
    async with harness.opened(buildx="off") as house:
        with tally.attempt():
            await house.fails(
                "refused",
                "container_build",
                image_name="localhost/none",
                dockerfile_text="FROM scratch\n",
                labels={f"{policy.LABEL_PREFIX}run": "mine"},
            )


@pytest.mark.attack(tally.LABELS)
async def test_labels_that_an_image_carries_do_not_say_whose_the_container_is(
    busybox_image: str, docker_cli: DockerCommandLine
) -> None:
    tag = f"localhost/cxc-test-{uuid.uuid4().hex[:8]}"
    carried = " ".join(f"{policy.LABEL_PREFIX}{name}=forged" for name in ("host", "run", "lifetime", "expires"))
    docker_cli(["build", "--tag", tag, "-"], stdin=f"FROM {busybox_image}\nLABEL {carried}\n".encode())
    try:
        async with harness.opened() as house:
            made = await house.ok("container_run", image=tag, command="true", keep=True)
            state = await house.engine.inspect_container(made["name"])
            with tally.attempt():
                assert state.labels[guard.LABEL_RUN] == house.application.run.run
                assert state.labels[guard.LABEL_HOST] == house.application.run.host
                assert "forged" not in state.labels.values()
    finally:
        docker_cli(["rmi", "--force", tag])


# ------------------------------------------------------------------------------------------------------------- builds


async def build_is_refused(arguments: dict[str, Any], **settings: Any) -> errors.ContainerizationError:
    async with harness.opened(**settings) as house:
        with tally.attempt():
            outcome = await house.fails("refused", "container_build", {"image_name": "localhost/none", **arguments})
        assert outcome.error is not None
        return outcome.error


@pytest.mark.attack(tally.PATHS)
@pytest.mark.parametrize("context", ["../outside", "/usr/share", "/", "~/.ssh", "outside-link", "data/../../outside"])
async def test_build_context_outside_the_allowed_paths_is_refused(project: Path, context: str) -> None:
    (project / "outside-link").symlink_to(project.parent / "outside")
    await build_is_refused({"dockerfile_text": "FROM scratch\nCOPY . /\n", "context": context})
    await build_is_refused({"dockerfile_path": context})


@pytest.mark.attack(tally.LINKS)
async def test_dockerfile_that_is_a_link_to_outside_is_refused(project: Path) -> None:
    (project.parent / "outside" / "Dockerfile").write_text("FROM scratch\n")
    (project / "Dockerfile").symlink_to(project.parent / "outside" / "Dockerfile")
    await build_is_refused({"dockerfile_path": "."})
    await build_is_refused({"dockerfile_path": "Dockerfile"})
    await build_is_refused({"dockerfile_path": "Dockerfile", "context": "data"})


@pytest.mark.attack(POWERS)
@pytest.mark.parametrize(
    "text",
    [
        "# syntax=evil.example/frontend:1\nFROM scratch\n",
        "#syntax = evil.example/frontend\nFROM scratch\n",
        "// syntax=evil.example/frontend\nFROM scratch\n",
        '{"syntax": "evil.example/frontend"}',
    ],
)
async def test_frontend_that_a_dockerfile_asks_for_is_refused(text: str) -> None:
    refusal = await build_is_refused({"dockerfile_text": text, "context": "data"})
    assert "policy.allowed_frontends" in refusal.hint


@pytest.mark.attack(POWERS)
async def test_frontend_that_a_build_argument_asks_for_is_refused() -> None:
    refusal = await build_is_refused(
        {"dockerfile_text": "FROM scratch\n", "build_args": {"BUILDKIT_SYNTAX": "evil.example/frontend"}}
    )
    assert "policy.allowed_frontends" in refusal.hint


@pytest.mark.attack(tally.PATHS)
async def test_secret_variable_and_file_of_a_build_are_refused_unless_allowed(
    buildx: Path, private_folders: Path, project: Path
) -> None:
    (private_folders / ".netrc").write_text("machine x\n")
    text = {"dockerfile_text": "FROM scratch\n"}
    refusal = await build_is_refused({**text, "secrets": {"s": "env:HOME"}}, buildx=str(buildx))
    assert "policy.secret_env" in refusal.hint
    for path in ("~/.netrc", "../outside/file.txt", "/etc/shadow"):
        await build_is_refused({**text, "secrets": {"s": f"file:{path}"}}, buildx=str(buildx))


@pytest.mark.attack(POWERS)
@pytest.mark.parametrize("what", ["RUN --network=host true", "RUN --security=insecure true"])
async def test_entitlement_of_a_build_step_is_refused(busybox_image: str, buildx: Path, what: str) -> None:
    refusal = await build_is_refused({"dockerfile_text": f"FROM {busybox_image}\n{what}\n"}, buildx=str(buildx))
    assert "policy." in refusal.hint


# ------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.attack(tally.PATHS)
async def test_copy_reads_and_writes_under_the_allowed_paths_only(busybox_image: str, project: Path) -> None:
    async with harness.opened() as house:
        made = await house.ok("container_run", image=busybox_image, command="sleep 60", detach=True)
        (project / "link").symlink_to(project.parent / "outside" / "file.txt")
        (project / "linked").symlink_to(project.parent / "outside")
        for source in ("../outside/file.txt", "/etc/passwd", "link", "linked/file.txt"):
            with tally.attempt():
                await house.fails("refused", "container_copy", source=source, target=f"{made['name']}:/tmp/")
        for target in ("../outside/new", "/etc/new", "linked/new", "linked/file.txt", "linked"):
            with tally.attempt():
                await house.fails("refused", "container_copy", source=f"{made['name']}:/etc/passwd", target=target)
        assert (project.parent / "outside" / "file.txt").read_text() == "outside\n"
        assert [one.name for one in (project.parent / "outside").iterdir()] == ["file.txt"]


@pytest.mark.attack(tally.LINKS)
async def test_copy_onto_a_link_replaces_the_link_and_not_what_it_leads_to(busybox_image: str, project: Path) -> None:
    async with harness.opened(confirmation="never") as house:
        made = await house.ok("container_run", image=busybox_image, command="sleep 60", detach=True)
        (project / "link").symlink_to(project.parent / "outside" / "file.txt")
        with tally.attempt():
            await house.ok("container_copy", source=f"{made['name']}:/etc/group", target="link")
            assert (project.parent / "outside" / "file.txt").read_text() == "outside\n"
            assert not (project / "link").is_symlink()


# ------------------------------------------------------------------------------------------- other people's containers


@pytest.mark.attack(POWERS)
@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (["--privileged"], {"policy__allow_privileged": True}),
        (["--network=host"], {"policy__allow_host_namespaces": True}),
        (["--pid=host"], {"policy__allow_host_namespaces": True}),
        (["--volume=/var/run/docker.sock:/s"], {"policy__allow_engine_socket": True}),
        (["--volume=/var/run:/s"], {"policy__allow_engine_socket": True}),
        (["--volume=/:/s"], {"policy__allow_engine_socket": True}),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_strangers_container_that_could_not_be_created_here_is_not_written_to(
    busybox_image: str,
    docker_cli: DockerCommandLine,
    session_label: str,
    options: list[str],
    setting: dict[str, Any],
) -> None:
    id = docker_cli(["create", "--label", session_label, *options, busybox_image, "sleep", "60"]).stdout.strip()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("container_exec", {"container": id, "command": "true"}),
        ("container_control", {"container": id, "action": "pause"}),
        ("container_copy", {"source": "./data/file.txt", "target": f"{id}:/tmp/"}),
    ]
    try:
        async with harness.opened() as house:
            for name, arguments in calls:
                with tally.attempt():
                    refusal = await house.fails("refused", name, arguments)
                assert next(iter(setting)).replace("__", ".") in refusal.text
            await house.ok("container_inspect", container=id)
            await house.ok("container_logs", container=id)
        async with harness.opened(**setting) as house:
            for name, arguments in calls:
                outcome = await house.call(name, arguments)
                assert outcome.error_data.get("code") in (None, "conflict"), outcome.text  # it was never started
    finally:
        docker_cli(["rm", "--force", id])


@pytest.mark.parametrize("foreign", ["allow", "ask", "refuse"])
async def test_writing_to_a_strangers_container_follows_the_setting(
    busybox_image: str, docker_cli: DockerCommandLine, session_label: str, foreign: str
) -> None:
    id = docker_cli(["run", "--detach", "--label", session_label, busybox_image, "sleep", "60"]).stdout.strip()
    expected = {"allow": None, "ask": "confirmation_required", "refuse": "refused"}[foreign]
    try:
        async with harness.opened(policy__foreign=foreign) as house:
            for name, more in (("container_exec", {"command": "true"}), ("container_control", {"action": "pause"})):
                outcome = await house.call(name, {"container": id, **more})
                assert outcome.error_data.get("code") == expected
            await house.ok("container_logs", container=id)
            own = await house.ok("container_run", image=busybox_image, command="sleep 60", detach=True)
            await house.ok("container_exec", container=own["name"], command="true")
    finally:
        docker_cli(["rm", "--force", id])
