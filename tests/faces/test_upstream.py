"""Do the names of the codomyrmex project's module work for real, with the keys that it documents, and raise what fails?"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import codomyrmex_containerization as package
from codomyrmex_containerization import (
    ContainerConfig,
    ContainerError,
    DockerManager,
    ImageBuildError,
    KubernetesError,
    NetworkError,
    RegistryError,
    VolumeError,
    build_containers,
    errors,
    manage_containers,
    mcp_tools,
)
from tests.backends import DockerCommandLine
from tests.faces.conftest import NOBODY

BUILT = {"success", "image_id", "image_tags", "build_logs", "build_time"}
BUILT_BY_NAME = BUILT | {
    "image_name",
    "size_mb",
    "layers",
    "security_scan_passed",
    "vulnerabilities_found",
    "optimization_applied",
}
MANAGED = {
    "operation",
    "container_name",
    "success",
    "container_id",
    "status",
    "execution_time",
    "logs",
    "error_message",
}


@pytest.fixture
def context(tmp_path: Path, busybox_image: str) -> Path:
    """A folder with a Dockerfile."""
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox_image}\nARG WHO=nobody\nRUN echo hello $WHO\n")
    return tmp_path


def config_of(image: str, name: str, *, command: str = "sleep 600") -> ContainerConfig:
    """A container that runs as an init would run it: it ends when it is told to."""
    return ContainerConfig(image=image, name=name, command=["sh", "-c", f"trap exit TERM; {command} & wait"])


# ---------------------------------------------------------------------------------------------------------------- names


def test_flags_are_true_for_what_is_there_and_for_nothing_else() -> None:
    flags = {name: getattr(package, name) for name in package.__all__ if name.startswith("HAS_")}

    assert flags == {
        "HAS_DOCKER_MANAGER": True,
        "HAS_EXCEPTIONS": True,
        "HAS_K8S": False,
        "HAS_REGISTRY": False,
        "HAS_SCANNER": False,
        "HAS_OPTIMIZER": False,
    }


def test_every_public_name_is_there_and_listed() -> None:
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        package.Nonsense  # noqa: B018  asking is the test


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "context"),
    [
        (ContainerError("no", "abc", "web"), {"container_id": "abc", "container_name": "web"}),
        (
            ImageBuildError("no", "web", "1", "Dockerfile", 3),
            {"image_name": "web", "image_tag": "1", "dockerfile_path": "Dockerfile", "build_step": 3},
        ),
        (NetworkError("no", "net", "id", "bridge"), {"network_name": "net", "network_id": "id", "driver": "bridge"}),
        (
            VolumeError("no", "data", "/data", "local"),
            {"volume_name": "data", "mount_point": "/data", "driver": "local"},
        ),
        (RegistryError("no", "host", "host/web:1"), {"registry_url": "host", "image_reference": "host/web:1"}),
        (
            KubernetesError("no", "pod", "web-1", "shop"),
            {"resource_type": "pod", "resource_name": "web-1", "namespace": "shop"},
        ),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
def test_error_keeps_what_its_arguments_name(error: ContainerError, context: dict[str, object]) -> None:
    kind = type(error).__name__

    assert error.to_dict() == {"error_type": kind, "error_code": kind, "message": "no", "context": context}
    assert isinstance(error, ContainerError)
    assert isinstance(error, errors.ContainerizationError)
    assert error.code in {one.code for one in errors.all_errors()}


def test_error_takes_a_context_a_code_and_further_keywords() -> None:
    error = NetworkError("no", network_name="net", context={"a": 1}, error_code="E7", attempt=2)

    assert error.to_dict()["error_code"] == "E7"
    assert error.context == {"a": 1, "attempt": 2, "network_name": "net"}


def test_error_survives_being_sent_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(ImageBuildError("no", "web", hint="mend it")))

    assert (again.message, again.hint, again.context) == ("no", "mend it", {"image_name": "web"})


def test_build_error_is_our_build_failure_too() -> None:
    assert issubclass(ImageBuildError, errors.BuildFailed)
    assert (ImageBuildError("no").code, ContainerError("no").code) == ("build_failed", "command_failed")


def test_errors_of_old_are_no_new_codes_of_the_tree() -> None:
    assert ContainerError not in errors.all_errors()


# --------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("config", "full"),
    [
        (ContainerConfig("web"), "web:latest"),
        (ContainerConfig("web", "2"), "web:2"),
        (ContainerConfig("host:5000/web", "2"), "host:5000/web:2"),
        (ContainerConfig("web:3"), "web:3"),
        (ContainerConfig(image="web:3", name="one"), "web:3"),
        (ContainerConfig(image="web"), "web:latest"),
        (ContainerConfig(image="web@sha256:" + "0" * 64), "web@sha256:" + "0" * 64),
    ],
)
def test_config_of_either_shape_names_its_image(config: ContainerConfig, full: str) -> None:
    assert config.get_full_image_name() == full
    assert config.image_name


def test_config_without_an_image_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument):
        ContainerConfig()


def test_config_says_what_docker_run_takes() -> None:
    config = ContainerConfig(
        image="web:1",
        name="one",
        command=["serve", "-v"],
        environment={"A": "b"},
        volumes={"/data": "/srv"},
        ports={80: 8080},
        labels={"x": "y"},
        network="net",
        working_dir="/srv",
        user="1000",
        memory_limit="64m",
        cpu_limit=0.5,
    )

    assert " ".join(config.to_run_args()) == (
        "--name one -e A=b -v /data:/srv -p 8080:80 --label x=y --network net -w /srv -u 1000 "
        "--memory 64m --cpus 0.5 --restart no web:1 serve -v"
    )


@pytest.mark.parametrize(
    ("ports", "shown"),
    [
        ({80: 8080}, ["8080:80"]),
        ({"80/udp": "8080"}, ["8080:80/udp"]),
        ({80: None}, ["80"]),
        ({"80/tcp": ("127.0.0.1", 8080)}, ["127.0.0.1:8080:80/tcp"]),
        ({80: [8080, 8081]}, ["8080:80", "8081:80"]),
    ],
)
def test_config_takes_ports_as_both_shapes_write_them(ports: dict[Any, Any], shown: list[str]) -> None:
    arguments = ContainerConfig("web", ports=ports).to_run_args()

    assert [arguments[at + 1] for at, one in enumerate(arguments) if one == "-p"] == shown


def test_config_takes_resources_and_docker_pys_forms(busybox_image: str, name: str, tmp_path: Path) -> None:
    config = ContainerConfig(
        image=busybox_image,
        name=name,
        command="sleep 600",
        volumes={str(tmp_path): {"bind": "/data", "mode": "ro"}},
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
        resources={"cpu_limit": 0.5, "memory_limit": "64m", "cpu_reservation": 0.25, "memory_reservation": "32m"},
    )
    manager = DockerManager()
    manager.run_container(config)
    found = mcp_tools.container_inspect(name)
    manager.remove_container(name, force=True)

    assert found["limits"] == {
        "memory_bytes": 64 * 2**20,
        "memory_reservation_bytes": 32 * 2**20,
        "cpus": 0.5,
        "cpu_shares": 256,
        "shm": found["limits"]["shm"],
    }
    assert found["mounts"] == [f"bind {tmp_path}:/data:ro"]
    assert found["restart"] == "on-failure:2"


def test_config_of_unknown_resources_or_several_networks_is_refused(busybox_image: str) -> None:
    manager = DockerManager()

    with pytest.raises(errors.InvalidArgument, match="gpus"):
        manager.run_container(ContainerConfig(image=busybox_image, resources={"gpus": 1}))
    with pytest.raises(errors.Unsupported):
        manager.run_container(ContainerConfig(image=busybox_image, networks=["a", "b"]))


# -------------------------------------------------------------------------------------------------------------- manager


def test_manager_builds_runs_reads_measures_stops_and_removes(context: Path, image: str, name: str) -> None:
    manager = DockerManager()
    built = manager.build_image(ContainerConfig(image, "1", build_context=str(context)))
    ran = manager.run_container(config_of(f"{image}:1", name, command="echo said; sleep 600"))
    stats = manager.get_container_stats(name)
    logs = manager.get_container_logs(name, tail=10)
    stopped = manager.stop_container(name)
    removed = manager.remove_container(name)
    image_removed = manager.remove_image(f"{image}:1")

    assert built.keys() == BUILT
    assert built["image_tags"] == [f"{image}:1"]
    assert ran.keys() == {"success", "container_id", "container_name", "status", "start_time"}
    assert (ran["container_name"], ran["status"]) == (name, "running")
    assert stats.keys() == {"success", "container_id", "cpu_usage", "memory_usage", "network_stats", "timestamp"}
    assert stats["memory_usage"]["usage"] > 0
    assert stats["network_stats"] is None
    assert logs.keys() == {"success", "container_id", "logs", "log_count"}
    assert (logs["logs"], logs["log_count"]) == (["said"], 1)
    assert (stopped["success"], stopped["container_id"], stopped["status"]) == (True, name, "exited")
    assert stopped["stop_time"]
    assert removed.keys() == {"success", "container_id", "removal_time"}
    assert image_removed.keys() == {"success", "image", "removal_time"}


def test_manager_waits_for_a_container_that_is_not_detached(busybox_image: str) -> None:
    ran = DockerManager().run_container(
        ContainerConfig(image=busybox_image, command=["sh", "-c", "echo hi; exit 2"]), False
    )

    assert (ran["success"], ran["status"], ran["exit_code"], ran["stdout"]) == (True, "exited", 2, "hi\n")


def test_manager_lists_containers_with_dockers_own_ports(
    docker_cli: DockerCommandLine, busybox_image: str, name: str, session_label: str
) -> None:
    docker_cli(
        ["run", "--detach", "--name", name, "--label", session_label, "--publish", "127.0.0.1::80", "--expose", "81",
         busybox_image, "sleep", "600"]
    )  # fmt: skip
    (row,) = [one for one in DockerManager().list_containers() if one["name"] == name]
    docker_cli(["rm", "--force", name])

    assert row.keys() == {"id", "name", "image", "status", "created", "ports"}
    assert row["image"] == busybox_image
    assert row["ports"]["80/tcp"][0]["HostIp"] == "127.0.0.1"
    assert int(row["ports"]["80/tcp"][0]["HostPort"]) > 0
    assert row["ports"]["81/tcp"] is None


def test_manager_shows_stopped_containers_only_when_asked(foreign: str) -> None:
    manager = DockerManager()
    manager.stop_container(foreign)

    assert foreign not in [row["name"] for row in manager.list_containers()]
    assert foreign in [row["name"] for row in manager.list_containers(show_all=True)]


def test_manager_lists_and_analyses_real_images(busybox_image: str) -> None:
    manager = DockerManager()
    (row,) = [one for one in manager.list_images() if busybox_image in one["tags"]]
    analysis = manager.analyze_image_size(busybox_image)
    layers = manager.get_image_layers(busybox_image)
    advice = manager.optimize_container_image(busybox_image, ["python"])

    assert row.keys() == {"id", "tags", "size", "created"}
    assert analysis.keys() == {
        "image_name",
        "total_size_bytes",
        "total_size_mb",
        "virtual_size_bytes",
        "virtual_size_mb",
        "layer_count",
        "layer_sizes",
        "average_layer_size_mb",
        "largest_layer_mb",
        "size_efficiency",
        "optimization_suggestions",
    }
    assert analysis["total_size_bytes"] == row["size"] == sum(analysis["layer_sizes"])
    assert [layer["size_bytes"] for layer in layers] == analysis["layer_sizes"]
    assert advice["optimization_applied"] is False
    assert advice["optimization_suggestions"]


def test_manager_describes_the_engine(docker_cli: DockerCommandLine) -> None:
    found = DockerManager().get_docker_info()

    assert found.keys() == {
        "available",
        "server_version",
        "api_version",
        "containers",
        "containers_running",
        "images",
        "storage_driver",
        "architecture",
        "os",
        "kernel_version",
    }
    assert found["server_version"] == docker_cli(["version", "--format", "{{.Server.Version}}"]).stdout.strip()
    assert found["kernel_version"] == docker_cli(["info", "--format", "{{.KernelVersion}}"]).stdout.strip()


def test_manager_of_an_engine_that_is_not_there_says_so_and_lists_nothing() -> None:
    manager = DockerManager(NOBODY)
    info = manager.get_docker_info()

    assert info["available"] is False
    assert info["error"]
    with pytest.raises(errors.EngineUnavailable):
        manager.list_containers()
    with pytest.raises(errors.EngineUnavailable):
        manager.list_images()


def test_manager_asks_before_it_removes_what_is_not_its_own(foreign: str, docker_cli: DockerCommandLine) -> None:
    with pytest.raises(errors.ConfirmationRequired) as caught:
        DockerManager().remove_container(foreign, force=True)
    still_there = docker_cli(["ps", "--quiet", "--filter", f"name={foreign}"]).stdout
    DockerManager().remove_container(foreign, force=True, yes=True)

    assert "yes=True" in caught.value.hint
    assert still_there != ""


def test_manager_told_yes_asks_nothing(foreign: str) -> None:
    assert DockerManager(yes=True).remove_container(foreign, force=True)["success"] is True


def test_manager_measures_no_container_that_does_not_run(foreign: str) -> None:
    manager = DockerManager()
    manager.stop_container(foreign)

    with pytest.raises(errors.Conflict):
        manager.get_container_stats(foreign)


@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.push_image("web", {}),
        lambda manager: manager.create_network("net"),
        lambda manager: manager.build_image(ContainerConfig("web"), push=True),
        lambda _: build_containers(ContainerConfig("web"), True),
    ],
)
def test_what_is_not_there_yet_is_unsupported_and_not_simulated(call: Callable[[DockerManager], object]) -> None:
    with pytest.raises(errors.Unsupported) as caught:
        call(DockerManager())

    assert caught.value.hint


def test_failed_build_raises_upstreams_error_with_its_context(context: Path, busybox_image: str, image: str) -> None:
    (context / "Broken").write_text(f"FROM {busybox_image}\nRUN exit 5\n")
    with pytest.raises(ImageBuildError) as caught:
        DockerManager().build_image(ContainerConfig(image, "2", dockerfile_path="Broken", build_context=str(context)))

    assert caught.value.context == {
        "image_name": image,
        "image_tag": "2",
        "dockerfile_path": "Broken",
        "instruction": "RUN exit 5",
        "line": 2,
        "exit_code": 5,
    }
    assert caught.value.hint


# ------------------------------------------------------------------------------------------------------------ functions


def test_build_containers_takes_a_config(context: Path, image: str) -> None:
    found = build_containers(ContainerConfig(image, build_context=str(context), build_args={"WHO": "you"}))

    assert found.keys() == BUILT_BY_NAME
    assert isinstance(found["build_time"], str)


def test_build_containers_takes_a_name_a_dockerfile_and_a_context(context: Path, image: str) -> None:
    found = build_containers(image, "Dockerfile", str(context), {"WHO": "you"}, tag="7", no_cache=True)

    assert found.keys() == BUILT_BY_NAME
    assert found["image_name"] == f"{image}:7"
    assert isinstance(found["build_time"], float)
    assert (found["security_scan_passed"], found["vulnerabilities_found"]) == (None, None)


def test_build_containers_takes_names_of_arguments(context: Path, image: str) -> None:
    found = build_containers(image_name=image, context_path=str(context))

    assert found["image_tags"] == [f"{image}:latest"]


def test_build_containers_refuses_what_it_does_not_know(context: Path, image: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="no_cach"):
        build_containers(image, "Dockerfile", str(context), no_cach=True)
    with pytest.raises(errors.InvalidArgument):
        build_containers(7)  # type: ignore[call-overload]  # what no type checker saw


def test_manage_containers_without_arguments_is_a_manager() -> None:
    assert isinstance(manage_containers(), DockerManager)


def test_manage_containers_carries_operations_out(busybox_image: str, name: str) -> None:
    config = config_of(busybox_image, "another-name", command="echo said; sleep 600")
    done = [
        manage_containers("create", name, config),
        manage_containers("logs", name),
        manage_containers("restart", name),
        manage_containers("stop", name),
        manage_containers("start", name),
        manage_containers("stop", name),
        manage_containers("remove", name),
    ]

    assert all(one.keys() == MANAGED for one in done)
    assert [one["status"] for one in done] == [
        "running",
        "running",
        "running",
        "exited",
        "running",
        "exited",
        "removed",
    ]
    assert len({one["container_id"] for one in done}) == 1
    assert done[1]["logs"] == ["said"]
    assert {one["container_name"] for one in done} == {name}


def test_manage_containers_creates_from_fields(busybox_image: str, name: str) -> None:
    manage_containers("create", name, {"image": busybox_image, "command": ["sleep", "600"]})

    assert DockerManager().get_container_status(name)["status"] == "running"
    DockerManager().remove_container(name, force=True)


def test_manage_containers_raises_what_fails(docker_socket: Path, name: str) -> None:
    with pytest.raises(errors.NotFound):
        manage_containers("stop", name)
    with pytest.raises(errors.InvalidArgument, match="explode"):
        manage_containers("explode", name)  # type: ignore[call-overload]  # what no type checker saw
    with pytest.raises(errors.InvalidArgument):
        manage_containers("create", name)
