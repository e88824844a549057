"""Which functions did callers of old have beside the manager? Each takes the arguments of both of its documented shapes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, overload

from codomyrmex_containerization import errors
from codomyrmex_containerization.dispatch import plain
from codomyrmex_containerization.upstream import config as configs
from codomyrmex_containerization.upstream.config import ContainerConfig
from codomyrmex_containerization.upstream.manager import DockerManager

Operation = Literal["create", "start", "stop", "remove", "restart", "logs"]

_MEGABYTE = 1_000_000


@overload
def build_containers(
    config: ContainerConfig, push: bool = False, registry_auth: Mapping[str, str] | None = None
) -> dict[str, Any]: ...


@overload
def build_containers(
    image_name: str,
    dockerfile_path: str = "Dockerfile",
    context_path: str = ".",
    build_args: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]: ...


def build_containers(*given: Any, **named: Any) -> dict[str, Any]:
    """Build an image of a ContainerConfig, or of a name, a Dockerfile and a context with further arguments of container_build.

    Returns the keys of both: success, image_id, image_tags, build_logs; image_name, size_mb, layers; security_scan_passed and
    vulnerabilities_found are None, since nothing is scanned, and optimization_applied is False. build_time is the time of day for a
    ContainerConfig and seconds for a name. Raises ImageBuildError and what container_build answers.
    """
    first = given[0] if given else named.get("config", named.get("image_name"))
    if isinstance(first, ContainerConfig):
        return _build_config(*given, **named)
    if isinstance(first, str):
        return _build_named(*given, **named)
    raise errors.InvalidArgument(
        "build_containers needs a ContainerConfig or an image's name.",
        hint="pass ContainerConfig(...) or image_name='web'",
    )


def _build_config(
    config: ContainerConfig, push: bool = False, registry_auth: Mapping[str, str] | None = None
) -> dict[str, Any]:
    manager = DockerManager()
    if push:
        manager.push_image(config.get_full_image_name(), registry_auth)
    return _built(manager.build(config, configs.build_arguments(config)))


def _build_named(
    image_name: str,
    dockerfile_path: str = "Dockerfile",
    context_path: str = ".",
    build_args: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    config = ContainerConfig(image_name, dockerfile_path=dockerfile_path, build_context=context_path)
    arguments = {
        "image_name": image_name,
        "dockerfile_path": dockerfile_path,
        "context": context_path,
        "build_args": dict(build_args) if build_args else None,
        **more,
    }
    found = DockerManager().build(config, arguments)
    return _built(found) | {"build_time": found["seconds"]}


def _built(found: Mapping[str, Any]) -> dict[str, Any]:
    return plain.build_result(found) | {
        "image_name": found["image"],
        "size_mb": found["size_bytes"] / _MEGABYTE,
        "layers": found["layers"],
        "security_scan_passed": None,
        "vulnerabilities_found": None,
        "optimization_applied": False,
    }


@overload
def manage_containers() -> DockerManager: ...


@overload
def manage_containers(
    operation: Operation,
    container_name: str,
    config: ContainerConfig | Mapping[str, Any] | None = None,
    *,
    yes: bool = False,
) -> dict[str, Any]: ...


def manage_containers(
    operation: Operation | None = None,
    container_name: str | None = None,
    config: ContainerConfig | Mapping[str, Any] | None = None,
    *,
    yes: bool = False,
) -> DockerManager | dict[str, Any]:
    """Return a DockerManager; or carry out an operation on a container.

    `create` also starts it, from a ContainerConfig or its fields. Returns operation, container_name, success, container_id, status,
    execution_time (seconds), logs (None but for `logs`) and error_message (None: what fails is raised).
    """
    if operation is None:
        return DockerManager()
    if operation not in get_args(Operation):
        raise errors.InvalidArgument(
            f"manage_containers has no operation {operation!r}.", hint=f"use one of: {', '.join(get_args(Operation))}"
        )
    if not container_name:
        raise errors.InvalidArgument(f"{operation} needs a container's name.", hint="pass container_name='web'")
    began = time.monotonic()
    done = _operate(DockerManager(yes=yes), operation, container_name, config)
    return {
        "operation": operation,
        "container_name": container_name,
        "success": True,
        "container_id": done["container_id"],
        "status": done["status"],
        "execution_time": round(time.monotonic() - began, 3),
        "logs": done.get("logs"),
        "error_message": None,
    }


def _operate(
    manager: DockerManager, operation: Operation, name: str, config: ContainerConfig | Mapping[str, Any] | None
) -> dict[str, Any]:
    if operation == "create":
        if config is None:
            raise errors.InvalidArgument(
                "create needs a config.", hint="pass config=ContainerConfig(...) or its fields"
            )
        known = config if isinstance(config, ContainerConfig) else ContainerConfig(**config)
        return manager.run_container(replace(known, name=name))
    state = manager.get_container_status(name)
    match operation:
        case "start":
            after = manager.start_container(name)["status"]
        case "stop":
            after = manager.stop_container(name)["status"]
        case "restart":
            after = manager.restart_container(name)["status"]
        case "remove":
            manager.remove_container(name)
            after = "removed"
        case "logs":
            return state | {"logs": manager.get_container_logs(name)["logs"]}
    return state | {"status": after}
