"""What did callers of old do with Docker, and what do they get now? The same methods and keys over the tools; what fails is raised.

Ids are short ones. A size or a number that is not measured is None, never made up. What needs a toolset that is not here is Unsupported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.dispatch import plain
from codomyrmex_containerization.upstream import config as configs
from codomyrmex_containerization.upstream.config import ContainerConfig
from codomyrmex_containerization.upstream.exceptions import ImageBuildError

_MEGABYTE = 1_000_000
_LARGEST_PAGE = 500
# The share of a CPU is measured between two looks.
_LOOKS = 2


class DockerManager:
    """Docker, for a program: build, run, list, stop and remove.

    `docker_host` is another engine's address than the environment names. What this process did not create is removed only with `yes=True`,
    given here for all methods or there for one: a person has agreed. Every method raises ContainerizationError for what fails.
    """

    def __init__(self, docker_host: str | None = None, *, yes: bool = False) -> None:
        self.docker_host = docker_host
        self._yes = yes

    def build_image(
        self, config: ContainerConfig, push: bool = False, registry_auth: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Build an image; returns success, image_id, image_tags, build_logs, build_time. Raises ImageBuildError, Unsupported for `push`."""
        if push:
            raise _no_registry()
        found = self.build(config, configs.build_arguments(config))
        return plain.build_result(found)

    def build(self, config: ContainerConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Build an image with container_build's own arguments and return its answer. Raises ImageBuildError."""
        try:
            return self._call("container_build", arguments)
        except errors.BuildFailed as error:
            step = {name: error.details[name] for name in ("instruction", "line", "exit_code") if name in error.details}
            raise ImageBuildError(
                error.message,
                image_name=config.image_name,
                image_tag=config.tag,
                dockerfile_path=config.dockerfile_path,
                context=step,
                hint=error.hint,
                details=error.details,
            ) from None

    def push_image(self, image_name: str, auth_config: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Raise Unsupported: the tool registry_push does that."""
        raise _no_registry()

    def run_container(self, config: ContainerConfig, detach: bool = True) -> dict[str, Any]:
        """Run a container; returns success, container_id, container_name, status, start_time.

        Without `detach` it is waited for (60 seconds at most) and removed, and exit_code, stdout and stderr are there too.
        """
        began = plain.now()
        found = self._call("container_run", configs.run_arguments(config, detach=detach))
        made = {
            "success": True,
            "container_id": found["id"],
            "container_name": found["name"],
            "status": found.get("state", "exited"),
            "start_time": began,
        }
        if detach:
            return made
        return made | {"exit_code": found.get("exit_code"), "stdout": found["stdout"], "stderr": found["stderr"]}

    def list_containers(self, show_all: bool = False) -> list[dict[str, Any]]:
        """List containers: id, name, image, status, created, ports (`{"80/tcp": [{"HostIp": ..., "HostPort": ...}]}`)."""
        rows = self._pages("container_list", "containers", {"all": show_all, "usage": False})
        keys = ("id", "name", "image", "status", "created")
        return [{**{key: row[key] for key in keys}, "ports": _ports(row.get("ports", ()))} for row in rows]

    def start_container(self, container_id: str) -> dict[str, Any]:
        """Start a container; returns success, container_id, status."""
        return self._control(container_id, "start")

    def restart_container(self, container_id: str) -> dict[str, Any]:
        """Restart a container; returns success, container_id, status."""
        return self._control(container_id, "restart")

    def stop_container(self, container_id: str) -> dict[str, Any]:
        """Stop a container; returns success, container_id, status, stop_time."""
        return self._control(container_id, "stop") | {"stop_time": plain.now()}

    def remove_container(self, container_id: str, force: bool = False, *, yes: bool = False) -> dict[str, Any]:
        """Remove a container; returns success, container_id, removal_time.

        `force` is for one that runs. Raises ConfirmationRequired for one that this process did not create, without `yes`.
        """
        self._call("container_remove", {"container": container_id, "force": force}, yes=yes)
        return {"success": True, "container_id": container_id, "removal_time": plain.now()}

    def get_container_status(self, container_id: str) -> dict[str, Any]:
        """Look at a container; returns success, container_id (the engine's), container_name, status."""
        found = self._call("container_inspect", {"container": container_id})
        return {
            "success": True,
            "container_id": found["id"],
            "container_name": found["name"],
            "status": found["state"],
        }

    def get_container_logs(self, container_id: str, tail: int = 100) -> dict[str, Any]:
        """Read a log's last lines; returns success, container_id, logs, log_count, and truncated where something was cut."""
        found = self._call("container_logs", {"container": container_id, "tail": tail})
        lines = [line["text"] for line in found["lines"]]
        cut = {"truncated": found["truncated"]} if "truncated" in found else {}
        return {"success": True, "container_id": container_id, "logs": lines, "log_count": len(lines), **cut}

    def get_container_stats(self, container_id: str) -> dict[str, Any]:
        """Measure a running container; returns success, container_id, cpu_usage, memory_usage, network_stats, timestamp.

        The network is not measured: network_stats is None. Raises Conflict when it does not run.
        """
        row = self._usage(container_id)
        return {
            "success": True,
            "container_id": container_id,
            "cpu_usage": {"percent": row.get("cpu_percent")},
            "memory_usage": {"usage": row["memory_bytes"], "limit": row.get("memory_limit_bytes")},
            "network_stats": None,
            "timestamp": plain.now(),
        }

    def create_network(self, name: str, driver: str = "bridge") -> dict[str, Any]:
        """Raise Unsupported: nothing here makes networks yet."""
        raise errors.Unsupported(
            f"The network {name!r} was not created: this version makes no networks.",
            hint="create it with the engine's own program; containers can be run in it then",
        )

    def list_images(self) -> list[dict[str, Any]]:
        """List images: id, tags, size (bytes), created."""
        return [
            {"id": row["id"], "tags": row["tags"], "size": row["size_bytes"], "created": row["created"]}
            for row in self._pages("image_list", "images", {})
        ]

    def remove_image(self, image_name: str, force: bool = False, *, yes: bool = False) -> dict[str, Any]:
        """Remove an image or a name of it; returns success, image, removal_time. Raises ConfirmationRequired as remove_container does."""
        self._call("image_remove", {"image": image_name, "force": force}, yes=yes)
        return {"success": True, "image": image_name, "removal_time": plain.now()}

    def get_docker_info(self) -> dict[str, Any]:
        """Describe the engine; available is False, with error and hint, when it does not answer."""
        (engine,) = self._call("container_runtime_status", {"engine": "docker"})["engines"]
        if not engine["available"]:
            return {"available": False, "error": engine.get("reason", ""), "hint": engine.get("remedy", "")}
        keys = (
            "api_version", "containers", "containers_running", "images", "storage_driver", "architecture", "os", "kernel_version",
        )  # fmt: skip
        return {"available": True, "server_version": engine["version"], **{key: engine[key] for key in keys}}

    def analyze_image_size(self, image_name: str) -> dict[str, Any]:
        """Say how large an image is and what could shrink it. Sizes in MB are of 1,000,000 bytes; efficiency is a percentage."""
        found = self._inspect_image(image_name)
        total = found["total_size_bytes"]
        return {
            "image_name": image_name,
            "total_size_bytes": total,
            "total_size_mb": total / _MEGABYTE,
            # Docker has dropped the difference between the two.
            "virtual_size_bytes": total,
            "virtual_size_mb": total / _MEGABYTE,
            "layer_count": found["layers_count"],
            "layer_sizes": [layer["size_bytes"] for layer in found["layers"]],
            "average_layer_size_mb": found["average_layer_size_mb"],
            "largest_layer_mb": found["largest_layer_mb"],
            "size_efficiency": found["size_efficiency"],
            "optimization_suggestions": found["suggestions"],
        }

    def get_image_layers(self, image_name: str) -> list[dict[str, Any]]:
        """List the layers that have a size, the largest first: index, created (not told: None), created_by, size_bytes, size_mb, empty."""
        return [
            {
                "index": index,
                "created": None,
                "created_by": layer["instruction"],
                "size_bytes": layer["size_bytes"],
                "size_mb": layer["size_bytes"] / _MEGABYTE,
                "empty": False,
            }
            for index, layer in enumerate(self._inspect_image(image_name)["layers"])
        ]

    def optimize_container_image(self, base_image: str, requirements: Sequence[str] = ()) -> dict[str, Any]:
        """Say what could shrink an image; it stays as it is. `requirements` are given back, not judged."""
        found = self._inspect_image(base_image)
        return {
            "image_name": base_image,
            "requirements": list(requirements),
            "optimization_applied": False,
            "optimization_score": found["optimization_score"],
            "size_efficiency": found["size_efficiency"],
            "total_size_bytes": found["total_size_bytes"],
            "optimization_suggestions": found["suggestions"],
        }

    def _call(self, tool: str, arguments: Mapping[str, Any], *, yes: bool = False) -> dict[str, Any]:
        outcome = plain.carry_out(tool, arguments, yes=yes or self._yes, docker_host=self.docker_host)
        return dict(outcome.structured or {})

    def _pages(self, tool: str, key: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while True:
            found = self._call(tool, {**arguments, "limit": _LARGEST_PAGE, "cursor": cursor})
            yield from found[key]
            cursor = found.get("next_cursor")
            if cursor is None:
                return

    def _control(self, container: str, action: str) -> dict[str, Any]:
        found = self._call("container_control", {"container": container, "action": action})
        return {"success": True, "container_id": container, "status": found["after"]}

    def _usage(self, container: str) -> dict[str, Any]:
        known = self._call("container_inspect", {"container": container})
        row: dict[str, Any] | None = None
        for _ in range(_LOOKS):
            rows = self._pages("container_list", "containers", {"name": known["name"]})
            row = next((one for one in rows if one["id"] == known["id"]), None)
            if row is None or "cpu_percent" in row:
                break
        if row is None or "memory_bytes" not in row:
            raise errors.Conflict(
                f"Container {known['name']} does not run, so there is nothing to measure.", hint="start it first"
            )
        return row

    def _inspect_image(self, image: str) -> dict[str, Any]:
        return {"suggestions": [], **self._call("image_inspect", {"image": image})}


def _ports(shown: Sequence[str]) -> dict[str, list[dict[str, str]] | None]:
    """Return `127.0.0.1:8080->80/tcp` as the engine itself writes it."""
    found: dict[str, list[dict[str, str]] | None] = {}
    for one in shown:
        host, arrow, inside = one.rpartition("->")
        address, _, port = host.rpartition(":")
        if not arrow:
            found.setdefault(inside, None)
        else:
            found[inside] = [*(found.get(inside) or []), {"HostIp": address.strip("[]"), "HostPort": port}]
    return found


def _no_registry() -> errors.Unsupported:
    return errors.Unsupported(
        "The image was not pushed: this interface has no pushes.",
        hint="push it with the tool registry_push or with cxc push; builds and runs work without",
    )
