"""Containers for AI agents, pipelines and people: build, run, watch and remove them through one MCP server."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codomyrmex_containerization.errors import ContainerizationError
    from codomyrmex_containerization.pipeline import cli_commands
    from codomyrmex_containerization.tools._decorator import mcp_tool
    from codomyrmex_containerization.upstream.config import ContainerConfig
    from codomyrmex_containerization.upstream.exceptions import (
        ContainerError,
        ImageBuildError,
        KubernetesError,
        NetworkError,
        RegistryError,
        VolumeError,
    )
    from codomyrmex_containerization.upstream.functions import build_containers, manage_containers
    from codomyrmex_containerization.upstream.manager import DockerManager

__version__ = "0.1.0"

# What this version really has of the parts that the codomyrmex project's module names.
HAS_DOCKER_MANAGER = True
HAS_EXCEPTIONS = True
HAS_K8S = False
HAS_REGISTRY = False
HAS_SCANNER = False
HAS_OPTIMIZER = False

__all__ = [
    "__version__",
    "cli_commands",
    "mcp_tool",
    "ContainerizationError",
    "ContainerConfig",
    "DockerManager",
    "build_containers",
    "manage_containers",
    "ContainerError",
    "ImageBuildError",
    "KubernetesError",
    "NetworkError",
    "RegistryError",
    "VolumeError",
    "HAS_DOCKER_MANAGER",
    "HAS_EXCEPTIONS",
    "HAS_K8S",
    "HAS_REGISTRY",
    "HAS_SCANNER",
    "HAS_OPTIMIZER",
]

_HOMES = {
    "cli_commands": "pipeline",
    "mcp_tool": "tools._decorator",
    "ContainerizationError": "errors",
    "ContainerConfig": "upstream.config",
    "DockerManager": "upstream.manager",
    "build_containers": "upstream.functions",
    "manage_containers": "upstream.functions",
    "ContainerError": "upstream.exceptions",
    "ImageBuildError": "upstream.exceptions",
    "KubernetesError": "upstream.exceptions",
    "NetworkError": "upstream.exceptions",
    "RegistryError": "upstream.exceptions",
    "VolumeError": "upstream.exceptions",
}


def __getattr__(name: str) -> object:
    # Each name is imported when first asked for, so that importing the package costs nothing.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
