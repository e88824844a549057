"""What are the tools to a program without an event loop? Plain functions that return dictionaries; bridges find them by their decorator.

Written by scripts/generate_mcp_tools.py: change the tools, not this file. A success has `status: "success"` and the tool's structured
answer; an error has `status: "error"`, `code`, `message`, `error` (the same) and `hint`, and nothing is raised. What asks for a
confirmation answers the code `confirmation_required` and a `confirm_token`, with which the call is repeated once the user has agreed.
"""

from __future__ import annotations

from typing import Any, Literal

from codomyrmex_containerization.dispatch import plain
from codomyrmex_containerization.dispatch.plain import mcp_tool

__all__ = [
    "container_build",
    "container_commit",
    "container_control",
    "container_copy",
    "container_create",
    "container_diff",
    "container_events",
    "container_exec",
    "container_export",
    "container_import",
    "container_inspect",
    "container_list",
    "container_logs",
    "container_remove",
    "container_rename",
    "container_run",
    "container_runtime_status",
    "container_top",
    "container_update",
    "engine_prune",
    "image_import",
    "image_inspect",
    "image_list",
    "image_load",
    "image_remove",
    "image_save",
    "image_tag",
    "network_connect",
    "network_create",
    "network_disconnect",
    "network_list",
    "network_remove",
    "registry_copy",
    "registry_delete",
    "registry_inspect",
    "registry_list",
    "registry_pull",
    "registry_push",
    "volume_create",
    "volume_list",
    "volume_remove",
]


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "image_name": {"description": "Repository, e.g. shop/web", "maxLength": 512, "type": "string"},
            "dockerfile_path": {
                "default": ".",
                "description": "Folder (it is the context) or Dockerfile",
                "maxLength": 4096,
                "type": "string",
            },
            "tag": {"default": "latest", "description": "Tag of the image", "maxLength": 128, "type": "string"},
            "context": {"description": "Context folder, if not the Dockerfile's", "maxLength": 4096, "type": "string"},
            "dockerfile_text": {
                "description": "The Dockerfile itself; COPY then needs context",
                "maxLength": 1000000,
                "type": "string",
            },
            "target": {"description": "Stage to build", "maxLength": 128, "type": "string"},
            "build_args": {
                "description": "Values of ARG",
                "additionalProperties": {"type": "string"},
                "maxProperties": 200,
                "type": "object",
            },
            "labels": {
                "description": "Labels of the image",
                "additionalProperties": {"type": "string"},
                "maxProperties": 200,
                "type": "object",
            },
            "platforms": {
                "description": "e.g. linux/arm64; needs BuildKit",
                "items": {"type": "string"},
                "maxItems": 16,
                "type": "array",
            },
            "no_cache": {"description": "Run every step anew", "type": "boolean"},
            "pull": {"description": "Fetch newer base images", "type": "boolean"},
            "secrets": {
                "description": "id: env:NAME or file:PATH",
                "additionalProperties": {"type": "string"},
                "maxProperties": 50,
                "type": "object",
            },
            "timeout_seconds": {
                "default": 1200,
                "description": "Then the build is stopped",
                "maximum": 7200,
                "minimum": 1,
                "type": "number",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["image_name"],
        "type": "object",
    },
)
def container_build(
    image_name: str,
    dockerfile_path: str = ".",
    tag: str = "latest",
    *,
    context: str | None = None,
    dockerfile_text: str | None = None,
    target: str | None = None,
    build_args: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    platforms: list[str] | None = None,
    no_cache: bool = False,
    pull: bool = False,
    secrets: dict[str, str] | None = None,
    timeout_seconds: float = 1200,
    engine: str | None = None,
) -> dict[str, Any]:
    """Build an image from a Dockerfile: a folder, a file, or the text of one.

    A failing step answers with the instruction, its line, exit code and last output.
    """
    return plain.answer(
        "container_build",
        {
            "image_name": image_name,
            "dockerfile_path": dockerfile_path,
            "tag": tag,
            "context": context,
            "dockerfile_text": dockerfile_text,
            "target": target,
            "build_args": build_args,
            "labels": labels,
            "platforms": platforms,
            "no_cache": no_cache,
            "pull": pull,
            "secrets": secrets,
            "timeout_seconds": timeout_seconds,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "tag": {"description": "Its name, e.g. shop/web:1.2", "maxLength": 512, "type": "string"},
            "message": {"description": "Why, for the image's history", "maxLength": 1000, "type": "string"},
            "engine": {"description": "If not the default one", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["container", "tag"],
        "type": "object",
    },
)
def container_commit(
    container: str,
    tag: str,
    *,
    message: str | None = None,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Make an image of a container's files and settings, environment included; it is paused meanwhile. Taking a name asks first."""
    return plain.answer(
        "container_commit",
        {
            "container": container,
            "tag": tag,
            "message": message,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "action": {
                "description": "What to do",
                "enum": ["start", "stop", "restart", "pause", "unpause", "kill"],
                "type": "string",
            },
            "timeout_seconds": {
                "default": 10,
                "description": "stop, restart: then it is killed",
                "maximum": 600,
                "minimum": 0,
                "type": "number",
            },
            "signal": {"description": "kill: e.g. TERM, HUP", "pattern": "^(SIG)?[A-Z0-9+]{1,12}$", "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["container", "action"],
        "type": "object",
    },
)
def container_control(
    container: str,
    action: Literal["start", "stop", "restart", "pause", "unpause", "kill"],
    *,
    timeout_seconds: float = 10,
    signal: str | None = None,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Start, stop, restart, pause, unpause or kill a container; answers its state before and after."""
    return plain.answer(
        "container_control",
        {
            "container": container,
            "action": action,
            "timeout_seconds": timeout_seconds,
            "signal": signal,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "source": {"description": "container:/path, or a host path", "maxLength": 4096, "type": "string"},
            "target": {"description": "container:/path, or a host path", "maxLength": 4096, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["source", "target"],
        "type": "object",
    },
)
def container_copy(
    source: str,
    target: str,
    *,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Copy a file or folder between a container and the host, as `docker cp` does."""
    return plain.answer(
        "container_copy",
        {
            "source": source,
            "target": target,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "image": {"description": "Reference or id", "maxLength": 512, "type": "string"},
            "command": {
                "description": "As container_run's",
                "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "string"}],
                "maxLength": 100000,
            },
            "name": {"description": "Its name", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$", "type": "string"},
            "env": {
                "description": "Environment",
                "additionalProperties": {"type": "string"},
                "maxProperties": 500,
                "type": "object",
            },
            "ports": {
                "description": "As container_run's",
                "items": {"type": "string"},
                "maxItems": 100,
                "type": "array",
            },
            "mounts": {
                "description": "As container_run's",
                "items": {"type": "string"},
                "maxItems": 50,
                "type": "array",
            },
            "network": {"description": "none, or a network's name", "maxLength": 128, "type": "string"},
            "user": {"description": "User or UID[:GID]", "maxLength": 128, "type": "string"},
            "workdir": {"description": "Working folder", "maxLength": 4096, "type": "string"},
            "entrypoint": {
                "description": "As command",
                "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "string"}],
                "maxLength": 100000,
            },
            "memory": {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "'512m' or bytes"},
            "cpus": {"description": "Most CPUs", "exclusiveMinimum": 0, "maximum": 1024, "type": "number"},
            "pids_limit": {"description": "Most processes", "maximum": 4194304, "minimum": 1, "type": "integer"},
            "disk": {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "As memory"},
            "read_only_rootfs": {"description": "Read-only root", "type": "boolean"},
            "cap_drop": {
                "description": "Capabilities, or ALL",
                "items": {"type": "string"},
                "maxItems": 64,
                "type": "array",
            },
            "restart": {
                "default": "no",
                "description": "no, always, unless-stopped, on-failure[:N]",
                "maxLength": 32,
                "type": "string",
            },
            "labels": {
                "description": "Labels",
                "additionalProperties": {"type": "string"},
                "maxProperties": 200,
                "type": "object",
            },
            "pull_policy": {
                "default": "missing",
                "description": "When to fetch the image",
                "enum": ["always", "missing", "never"],
                "type": "string",
            },
            "isolation": {"description": "Its walls", "enum": ["minimal", "standard", "strict"], "type": "string"},
            "engine": {"description": "If not the default one", "maxLength": 64, "type": "string"},
        },
        "required": ["image"],
        "type": "object",
    },
)
def container_create(
    image: str,
    *,
    command: list[str] | str | None = None,
    name: str | None = None,
    env: dict[str, str] | None = None,
    ports: list[str] | None = None,
    mounts: list[str] | None = None,
    network: str | None = None,
    user: str | None = None,
    workdir: str | None = None,
    entrypoint: list[str] | str | None = None,
    memory: str | int | None = None,
    cpus: float | None = None,
    pids_limit: int | None = None,
    disk: str | int | None = None,
    read_only_rootfs: bool = False,
    cap_drop: list[str] | None = None,
    restart: str = "no",
    labels: dict[str, str] | None = None,
    pull_policy: Literal["always", "missing", "never"] = "missing",
    isolation: Literal["minimal", "standard", "strict"] | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Make a container without starting it, to copy files into it first; container_control starts it. It stays until it is removed."""
    return plain.answer(
        "container_create",
        {
            "image": image,
            "command": command,
            "name": name,
            "env": env,
            "ports": ports,
            "mounts": mounts,
            "network": network,
            "user": user,
            "workdir": workdir,
            "entrypoint": entrypoint,
            "memory": memory,
            "cpus": cpus,
            "pids_limit": pids_limit,
            "disk": disk,
            "read_only_rootfs": read_only_rootfs,
            "cap_drop": cap_drop,
            "restart": restart,
            "labels": labels,
            "pull_policy": pull_policy,
            "isolation": isolation,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "path": {"description": "Only this path and what is in it", "maxLength": 4096, "type": "string"},
            "limit": {"default": 100, "description": "Most rows", "maximum": 500, "minimum": 1, "type": "integer"},
            "cursor": {"description": "next_cursor of the page before", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default one", "maxLength": 64, "type": "string"},
        },
        "required": ["container"],
        "type": "object",
    },
)
def container_diff(
    container: str,
    *,
    path: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """List by path what a container added, changed and deleted of its image's files, without what is mounted."""
    return plain.answer(
        "container_diff",
        {
            "container": container,
            "path": path,
            "limit": limit,
            "cursor": cursor,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="monitoring",
    schema={
        "additionalProperties": False,
        "properties": {
            "since": {"default": "10m", "description": "10m, 2h (ago) or a time", "maxLength": 64, "type": "string"},
            "until": {"description": "As since", "maxLength": 64, "type": "string"},
            "follow_seconds": {
                "description": "Wait this long for more events",
                "maximum": 300,
                "minimum": 0,
                "type": "number",
            },
            "filters": {
                "description": "{container: 'web', event: ['die', 'oom']}: all of them, any of a list",
                "additionalProperties": {"anyOf": [{"type": "string"}, {"items": {"type": "string"}, "type": "array"}]},
                "propertyNames": {"enum": ["container", "image", "volume", "network", "type", "event", "label"]},
                "type": "object",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "type": "object",
    },
)
def container_events(
    *,
    since: str = "10m",
    until: str | None = None,
    follow_seconds: float = 0,
    filters: dict[Literal["container", "image", "volume", "network", "type", "event", "label"], str | list[str]]
    | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Show what happened to containers, images, volumes and networks: starts, ends with exit codes, out of memory, pulls, removals."""
    return plain.answer(
        "container_events",
        {
            "since": since,
            "until": until,
            "follow_seconds": follow_seconds,
            "filters": filters,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "command": {
                "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "string"}],
                "description": "A string is split, not run by a shell",
            },
            "stdin": {"description": "Standard input", "maxLength": 4000000, "type": "string"},
            "user": {"description": "User or UID[:GID]", "maxLength": 128, "type": "string"},
            "workdir": {"description": "Working folder", "maxLength": 4096, "type": "string"},
            "env": {
                "description": "Environment variables",
                "additionalProperties": {"type": "string"},
                "maxProperties": 500,
                "type": "object",
            },
            "timeout_seconds": {
                "default": 30,
                "description": "Then it is killed",
                "maximum": 3600,
                "minimum": 0.1,
                "type": "number",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["container", "command"],
        "type": "object",
    },
)
def container_exec(
    container: str,
    command: list[str] | str,
    *,
    stdin: str | None = None,
    user: str | None = None,
    workdir: str | None = None,
    env: dict[str, str] | None = None,
    timeout_seconds: float = 30,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Run a command in a running container: exit code, stdout and stderr apart."""
    return plain.answer(
        "container_exec",
        {
            "container": container,
            "command": command,
            "stdin": stdin,
            "user": user,
            "workdir": workdir,
            "env": env,
            "timeout_seconds": timeout_seconds,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "path": {"description": "Host path", "maxLength": 4096, "minLength": 1, "type": "string"},
            "format": {
                "default": "rootfs",
                "description": "state, for container_import, has image and settings too (embedded only)",
                "enum": ["rootfs", "state"],
                "type": "string",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["container", "path"],
        "type": "object",
    },
)
def container_export(
    container: str,
    path: str,
    *,
    format: Literal["rootfs", "state"] = "rootfs",
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Write a container's root file system, without its mounts, to a tar on the host. Overwriting a file needs a confirmation."""
    return plain.answer(
        "container_export",
        {
            "container": container,
            "path": path,
            "format": format,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "path": {"description": "Host path", "maxLength": 4096, "minLength": 1, "type": "string"},
            "name": {
                "description": "If not the one it had",
                "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$",
                "type": "string",
            },
            "engine": {"description": "If not the default one", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["path"],
        "type": "object",
    },
)
def container_import(
    path: str,
    *,
    name: str | None = None,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Make a container, not started, of a file that container_export wrote with format='state' (embedded). Host mounts ask first."""
    return plain.answer(
        "container_import",
        {
            "path": path,
            "name": name,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["container"],
        "type": "object",
    },
)
def container_inspect(
    container: str,
    *,
    engine: str | None = None,
) -> dict[str, Any]:
    """Show one container: state and health, configuration, mounts, networks, ports, limits, security."""
    return plain.answer(
        "container_inspect",
        {
            "container": container,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "all": {"description": "Also those that do not run", "type": "boolean"},
            "name": {"description": "Part of the name", "maxLength": 256, "type": "string"},
            "label": {"description": "NAME or NAME=VALUE", "maxLength": 512, "type": "string"},
            "image": {"description": "Part of the image", "maxLength": 512, "type": "string"},
            "status": {
                "description": "Only in this state",
                "enum": ["created", "running", "paused", "restarting", "removing", "exited", "dead"],
                "type": "string",
            },
            "usage": {"default": True, "description": "CPU, memory, processes of running ones", "type": "boolean"},
            "limit": {"default": 50, "description": "Most rows", "maximum": 500, "minimum": 1, "type": "integer"},
            "cursor": {"description": "next_cursor of the page before", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "type": "object",
    },
)
def container_list(
    *,
    all: bool = False,
    name: str | None = None,
    label: str | None = None,
    image: str | None = None,
    status: Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"] | None = None,
    usage: bool = True,
    limit: int = 50,
    cursor: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """List containers of all engines, newest first, with what they use."""
    return plain.answer(
        "container_list",
        {
            "all": all,
            "name": name,
            "label": label,
            "image": image,
            "status": status,
            "usage": usage,
            "limit": limit,
            "cursor": cursor,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "tail": {
                "default": 200,
                "description": "Last lines to show",
                "maximum": 5000,
                "minimum": 1,
                "type": "integer",
            },
            "since": {"description": "10m, 2h (ago) or a time", "maxLength": 64, "type": "string"},
            "until": {"description": "As since", "maxLength": 64, "type": "string"},
            "grep": {
                "description": "Only lines with this text, any case; 'a|b' finds either",
                "maxLength": 500,
                "type": "string",
            },
            "stream": {"description": "Only this stream", "enum": ["stdout", "stderr"], "type": "string"},
            "timestamps": {"description": "Show each line's time", "type": "boolean"},
            "follow_seconds": {"description": "Wait so long for more", "maximum": 60, "minimum": 0, "type": "number"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["container"],
        "type": "object",
    },
)
def container_logs(
    container: str,
    *,
    tail: int = 200,
    since: str | None = None,
    until: str | None = None,
    grep: str | None = None,
    stream: Literal["stdout", "stderr"] | None = None,
    timestamps: bool = False,
    follow_seconds: float = 0,
    engine: str | None = None,
) -> dict[str, Any]:
    """Read a container's log: its last lines, filtered."""
    return plain.answer(
        "container_logs",
        {
            "container": container,
            "tail": tail,
            "since": since,
            "until": until,
            "grep": grep,
            "stream": stream,
            "timestamps": timestamps,
            "follow_seconds": follow_seconds,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "force": {"description": "Also when it runs", "type": "boolean"},
            "volumes": {"description": "Also its anonymous volumes", "type": "boolean"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["container"],
        "type": "object",
    },
)
def container_remove(
    container: str,
    *,
    force: bool = False,
    volumes: bool = False,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Remove a container. One that this server run did not create needs a confirmation."""
    return plain.answer(
        "container_remove",
        {
            "container": container,
            "force": force,
            "volumes": volumes,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "name": {"description": "New name", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$", "type": "string"},
            "engine": {"description": "If not the default one", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["container", "name"],
        "type": "object",
    },
)
def container_rename(
    container: str,
    name: str,
    *,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Give a container another name. One that this server run did not create needs a confirmation: others call it by its name."""
    return plain.answer(
        "container_rename",
        {
            "container": container,
            "name": name,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "image": {"description": "Reference or id", "maxLength": 512, "type": "string"},
            "command": {
                "description": "A string is split, not run by a shell",
                "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "string"}],
                "maxLength": 100000,
            },
            "name": {"description": "Its name", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$", "type": "string"},
            "env": {
                "description": "Environment",
                "additionalProperties": {"type": "string"},
                "maxProperties": 500,
                "type": "object",
            },
            "ports": {
                "description": "'80' (a free host port), '8080:80[/udp]'; on 127.0.0.1",
                "items": {"type": "string"},
                "maxItems": 100,
                "type": "array",
            },
            "mounts": {
                "description": "'/path:/target[:ro]', 'VOLUME:/target', 'tmpfs:/target[:64m]'",
                "items": {"type": "string"},
                "maxItems": 50,
                "type": "array",
            },
            "network": {"description": "none, or a network's name", "maxLength": 128, "type": "string"},
            "user": {"description": "User or UID[:GID]", "maxLength": 128, "type": "string"},
            "workdir": {"description": "Working folder", "maxLength": 4096, "type": "string"},
            "entrypoint": {
                "description": "As command",
                "anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "string"}],
                "maxLength": 100000,
            },
            "stdin": {"description": "Standard input", "maxLength": 4000000, "type": "string"},
            "detach": {"description": "Leave it running", "type": "boolean"},
            "timeout_seconds": {
                "default": 60,
                "description": "Then it is stopped, unless detached",
                "maximum": 3600,
                "minimum": 0.1,
                "type": "number",
            },
            "memory": {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "'512m' or bytes"},
            "cpus": {"description": "Most CPUs", "exclusiveMinimum": 0, "maximum": 1024, "type": "number"},
            "pids_limit": {"description": "Most processes", "maximum": 4194304, "minimum": 1, "type": "integer"},
            "disk": {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "As memory"},
            "limits": {
                "additionalProperties": False,
                "description": "More limits",
                "properties": {
                    "memory_reservation": {"description": "As memory", "type": "string"},
                    "cpu_shares": {
                        "description": "Weight; usual: 1024",
                        "maximum": 262144,
                        "minimum": 2,
                        "type": "integer",
                    },
                    "ulimits": {
                        "description": "nofile: 1024 or '1024:2048'",
                        "additionalProperties": {"type": "string"},
                        "maxProperties": 20,
                        "type": "object",
                    },
                    "shm_size": {"description": "As memory", "type": "string"},
                    "disk_read": {"description": "A second", "type": "string"},
                    "disk_write": {"description": "A second", "type": "string"},
                },
                "type": "object",
            },
            "read_only_rootfs": {"description": "Read-only root", "type": "boolean"},
            "cap_drop": {
                "description": "Capabilities, or ALL",
                "items": {"type": "string"},
                "maxItems": 64,
                "type": "array",
            },
            "cap_add": {"description": "Capabilities", "items": {"type": "string"}, "maxItems": 64, "type": "array"},
            "privileged": {"description": "If policy allows", "type": "boolean"},
            "restart": {
                "default": "no",
                "description": "no, always, unless-stopped, on-failure[:N]",
                "maxLength": 32,
                "type": "string",
            },
            "healthcheck": {
                "additionalProperties": False,
                "description": "Is it well?",
                "properties": {
                    "command": {
                        "anyOf": [{"type": "string"}, {"items": {"type": "string"}, "type": "array"}],
                        "description": "A string runs in its shell",
                        "maxLength": 10000,
                    },
                    "interval": {"description": "Seconds, or 30s, 5m", "type": "string"},
                    "timeout": {"description": "As interval", "type": "string"},
                    "retries": {
                        "description": "Failures until unhealthy",
                        "maximum": 1000,
                        "minimum": 1,
                        "type": "integer",
                    },
                    "start_period": {"description": "Grace at the start", "type": "string"},
                },
                "required": ["command"],
                "type": "object",
            },
            "labels": {
                "description": "Labels",
                "additionalProperties": {"type": "string"},
                "maxProperties": 200,
                "type": "object",
            },
            "pull_policy": {
                "default": "missing",
                "description": "When to fetch the image",
                "enum": ["always", "missing", "never"],
                "type": "string",
            },
            "platform": {"description": "e.g. linux/arm64", "maxLength": 64, "type": "string"},
            "isolation": {"description": "Its walls", "enum": ["minimal", "standard", "strict"], "type": "string"},
            "keep": {"description": "Do not remove it", "type": "boolean"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["image"],
        "type": "object",
    },
)
def container_run(
    image: str,
    *,
    command: list[str] | str | None = None,
    name: str | None = None,
    env: dict[str, str] | None = None,
    ports: list[str] | None = None,
    mounts: list[str] | None = None,
    network: str | None = None,
    user: str | None = None,
    workdir: str | None = None,
    entrypoint: list[str] | str | None = None,
    stdin: str | None = None,
    detach: bool = False,
    timeout_seconds: float = 60,
    memory: str | int | None = None,
    cpus: float | None = None,
    pids_limit: int | None = None,
    disk: str | int | None = None,
    limits: dict[str, Any] | None = None,
    read_only_rootfs: bool = False,
    cap_drop: list[str] | None = None,
    cap_add: list[str] | None = None,
    privileged: bool = False,
    restart: str = "no",
    healthcheck: dict[str, Any] | None = None,
    labels: dict[str, str] | None = None,
    pull_policy: Literal["always", "missing", "never"] = "missing",
    platform: str | None = None,
    isolation: Literal["minimal", "standard", "strict"] | None = None,
    keep: bool = False,
    engine: str | None = None,
) -> dict[str, Any]:
    """Run a container to its end (exit code, stdout, stderr) and remove it, or start one with detach=true."""
    return plain.answer(
        "container_run",
        {
            "image": image,
            "command": command,
            "name": name,
            "env": env,
            "ports": ports,
            "mounts": mounts,
            "network": network,
            "user": user,
            "workdir": workdir,
            "entrypoint": entrypoint,
            "stdin": stdin,
            "detach": detach,
            "timeout_seconds": timeout_seconds,
            "memory": memory,
            "cpus": cpus,
            "pids_limit": pids_limit,
            "disk": disk,
            "limits": limits,
            "read_only_rootfs": read_only_rootfs,
            "cap_drop": cap_drop,
            "cap_add": cap_add,
            "privileged": privileged,
            "restart": restart,
            "healthcheck": healthcheck,
            "labels": labels,
            "pull_policy": pull_policy,
            "platform": platform,
            "isolation": isolation,
            "keep": keep,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {"engine": {"description": "If not the default", "maxLength": 64, "type": "string"}},
        "type": "object",
    },
)
def container_runtime_status(
    *,
    engine: str | None = None,
) -> dict[str, Any]:
    """Show which engines and back ends answer right now, and what would make the others available.

    Also the default engine and usable host paths.
    """
    return plain.answer(
        "container_runtime_status",
        {
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "limit": {"default": 50, "description": "Most rows", "maximum": 500, "minimum": 1, "type": "integer"},
            "engine": {"description": "If not the default one", "maxLength": 64, "type": "string"},
        },
        "required": ["container"],
        "type": "object",
    },
)
def container_top(
    container: str,
    *,
    limit: int = 50,
    engine: str | None = None,
) -> dict[str, Any]:
    """List the processes of a running container: pid on the engine's host, user, processor time, command."""
    return plain.answer(
        "container_top",
        {
            "container": container,
            "limit": limit,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "memory": {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "'512m' or bytes"},
            "cpus": {"description": "Most CPUs", "exclusiveMinimum": 0, "maximum": 1024, "type": "number"},
            "pids_limit": {"description": "Most processes", "maximum": 4194304, "minimum": 1, "type": "integer"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["container"],
        "type": "object",
    },
)
def container_update(
    container: str,
    *,
    memory: str | int | None = None,
    cpus: float | None = None,
    pids_limit: int | None = None,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Change the limits of a container, running or not; those that are not named stay."""
    return plain.answer(
        "container_update",
        {
            "container": container,
            "memory": memory,
            "cpus": cpus,
            "pids_limit": pids_limit,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "kind": {
                "description": "Stopped containers, untagged images, volumes and so on without users",
                "enum": ["containers", "images", "volumes", "networks", "build_cache"],
                "type": "string",
            },
            "older_than": {
                "description": "Only what was created before: 30m, 24h, 7d",
                "maxLength": 32,
                "type": "string",
            },
            "dry_run": {"default": True, "description": "Only show it", "type": "boolean"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["kind"],
        "type": "object",
    },
)
def engine_prune(
    kind: Literal["containers", "images", "volumes", "networks", "build_cache"],
    *,
    older_than: str | None = None,
    dry_run: bool = True,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Show what nobody uses, or with dry_run=false remove just that. What others made needs a confirmation."""
    return plain.answer(
        "engine_prune",
        {
            "kind": kind,
            "older_than": older_than,
            "dry_run": dry_run,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "path": {"description": "Host path", "maxLength": 4096, "minLength": 1, "type": "string"},
            "tag": {"description": "Its name, e.g. shop/web:1.2", "maxLength": 512, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["path", "tag"],
        "type": "object",
    },
)
def image_import(
    path: str,
    tag: str,
    *,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Make an image, without a command of its own, of a root file system: a tar or a folder. Taking a name from another asks first."""
    return plain.answer(
        "image_import",
        {
            "path": path,
            "tag": tag,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "image": {"description": "Reference or id", "maxLength": 512, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["image"],
        "type": "object",
    },
)
def image_inspect(
    image: str,
    *,
    engine: str | None = None,
) -> dict[str, Any]:
    """Show an image's configuration and layers, the largest first, and what could shrink it."""
    return plain.answer(
        "image_inspect",
        {
            "image": image,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "name": {"description": "Part of a tag", "maxLength": 512, "type": "string"},
            "dangling": {"description": "Only untagged (true) or tagged (false) ones", "type": "boolean"},
            "limit": {"default": 50, "description": "Most rows", "maximum": 500, "minimum": 1, "type": "integer"},
            "cursor": {"description": "next_cursor of the page before", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "type": "object",
    },
)
def image_list(
    *,
    name: str | None = None,
    dangling: bool | None = None,
    limit: int = 50,
    cursor: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """List images of all engines, newest first, with their size and the containers made of them."""
    return plain.answer(
        "image_list",
        {
            "name": name,
            "dangling": dangling,
            "limit": limit,
            "cursor": cursor,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "path": {"description": "Host path", "maxLength": 4096, "minLength": 1, "type": "string"},
            "tag": {"description": "One more name, for an archive of one image", "maxLength": 512, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["path"],
        "type": "object",
    },
)
def image_load(
    path: str,
    *,
    tag: str | None = None,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Load the images of an archive, as `docker load` does. Taking a name from another image needs a confirmation."""
    return plain.answer(
        "image_load",
        {
            "path": path,
            "tag": tag,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "image": {"description": "Reference or id", "maxLength": 512, "type": "string"},
            "force": {"description": "Also when containers use it or it has several tags", "type": "boolean"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["image"],
        "type": "object",
    },
)
def image_remove(
    image: str,
    *,
    force: bool = False,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Remove an image, or one name of it. One that this server run did not build needs a confirmation."""
    return plain.answer(
        "image_remove",
        {
            "image": image,
            "force": force,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "image": {"description": "Reference or id", "maxLength": 512, "type": "string"},
            "path": {"description": "Host path", "maxLength": 4096, "minLength": 1, "type": "string"},
            "format": {
                "default": "docker-archive",
                "description": "The oci ones are the embedded engine's; oci is a folder",
                "enum": ["docker-archive", "oci-archive", "oci"],
                "type": "string",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["image", "path"],
        "type": "object",
    },
)
def image_save(
    image: str,
    path: str,
    *,
    format: Literal["docker-archive", "oci-archive", "oci"] = "docker-archive",
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Write an image to a host file, as `docker save` does, to be loaded elsewhere. Overwriting a file needs a confirmation."""
    return plain.answer(
        "image_save",
        {
            "image": image,
            "path": path,
            "format": format,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="core",
    schema={
        "additionalProperties": False,
        "properties": {
            "source": {"description": "Reference or id", "maxLength": 512, "type": "string"},
            "target": {"description": "New name, e.g. shop/web:1.2", "maxLength": 512, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["source", "target"],
        "type": "object",
    },
)
def image_tag(
    source: str,
    target: str,
    *,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Give an image another name. Taking a name from another image needs a confirmation."""
    return plain.answer(
        "image_tag",
        {
            "source": source,
            "target": target,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "network": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "aliases": {
                "description": "Further names of it there",
                "items": {"type": "string"},
                "maxItems": 20,
                "type": "array",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["network", "container"],
        "type": "object",
    },
)
def network_connect(
    network: str,
    container: str,
    *,
    aliases: list[str] | None = None,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Connect a container to a network, running or not."""
    return plain.answer(
        "network_connect",
        {
            "network": network,
            "container": container,
            "aliases": aliases,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "name": {"description": "Name", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$", "type": "string"},
            "driver": {
                "default": "bridge",
                "description": "Driver",
                "maxLength": 128,
                "minLength": 1,
                "type": "string",
            },
            "internal": {"description": "Without a way out", "type": "boolean"},
            "subnet": {"description": "e.g. 10.77.1.0/24; else a free one", "maxLength": 64, "type": "string"},
            "gateway": {"description": "Address in subnet", "maxLength": 64, "type": "string"},
            "ipv6": {"description": "IPv6 too", "type": "boolean"},
            "options": {
                "description": "The driver's options",
                "additionalProperties": {"type": "string"},
                "maxProperties": 50,
                "type": "object",
            },
            "labels": {
                "description": "Labels",
                "additionalProperties": {"type": "string"},
                "maxProperties": 200,
                "type": "object",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["name"],
        "type": "object",
    },
)
def network_create(
    name: str,
    *,
    driver: str = "bridge",
    internal: bool = False,
    subnet: str | None = None,
    gateway: str | None = None,
    ipv6: bool = False,
    options: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Create a network; containers on it reach one another by name."""
    return plain.answer(
        "network_create",
        {
            "name": name,
            "driver": driver,
            "internal": internal,
            "subnet": subnet,
            "gateway": gateway,
            "ipv6": ipv6,
            "options": options,
            "labels": labels,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "network": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "container": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "force": {"description": "Even if the container does not answer", "type": "boolean"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["network", "container"],
        "type": "object",
    },
)
def network_disconnect(
    network: str,
    container: str,
    *,
    force: bool = False,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Take a container off a network; its open connections there break."""
    return plain.answer(
        "network_disconnect",
        {
            "network": network,
            "container": container,
            "force": force,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "name": {"description": "Part of the name", "maxLength": 256, "type": "string"},
            "label": {"description": "NAME or NAME=VALUE", "maxLength": 512, "type": "string"},
            "unused": {
                "description": "Only those that no container uses (true) or some does (false)",
                "type": "boolean",
            },
            "limit": {"default": 50, "description": "Most rows", "maximum": 500, "minimum": 1, "type": "integer"},
            "cursor": {"description": "next_cursor of the page before", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "type": "object",
    },
)
def network_list(
    *,
    name: str | None = None,
    label: str | None = None,
    unused: bool | None = None,
    limit: int = 50,
    cursor: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """List networks, newest first, with their subnets and the containers on them."""
    return plain.answer(
        "network_list",
        {
            "name": name,
            "label": label,
            "unused": unused,
            "limit": limit,
            "cursor": cursor,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "network": {"description": "Name, id or short id", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["network"],
        "type": "object",
    },
)
def network_remove(
    network: str,
    *,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Remove a network that no container uses. One that this server run did not create needs a confirmation."""
    return plain.answer(
        "network_remove",
        {
            "network": network,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="registry",
    schema={
        "additionalProperties": False,
        "properties": {
            "source": {
                "description": "e.g. registry.example/shop/web:1.2, or by digest",
                "maxLength": 512,
                "type": "string",
            },
            "target": {
                "description": "New name, e.g. registry.example/shop/web:1.2",
                "maxLength": 512,
                "type": "string",
            },
            "all_platforms": {
                "default": True,
                "description": "Else only the image for this machine's",
                "type": "boolean",
            },
            "referrers": {"description": "Also its signatures, SBOMs and the like", "type": "boolean"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["source", "target"],
        "type": "object",
    },
)
def registry_copy(
    source: str,
    target: str,
    *,
    all_platforms: bool = True,
    referrers: bool = False,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Copy an image from registry to registry, digests kept. Needs no engine. A target not in policy.push_registries asks first."""
    return plain.answer(
        "registry_copy",
        {
            "source": source,
            "target": target,
            "all_platforms": all_platforms,
            "referrers": referrers,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="registry",
    schema={
        "additionalProperties": False,
        "properties": {
            "reference": {
                "description": "e.g. registry.example/shop/web:1.2, or by digest",
                "maxLength": 512,
                "type": "string",
            },
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["reference"],
        "type": "object",
    },
)
def registry_delete(
    reference: str,
    *,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Remove an image from its registry, with every tag that means the same digest. Asks first, naming them. Needs no engine."""
    return plain.answer(
        "registry_delete",
        {
            "reference": reference,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="registry",
    schema={
        "additionalProperties": False,
        "properties": {
            "reference": {
                "description": "e.g. registry.example/shop/web:1.2, or by digest",
                "maxLength": 512,
                "type": "string",
            },
            "platform": {"description": "e.g. linux/arm64; else this machine's", "maxLength": 64, "type": "string"},
            "detail": {
                "description": "Also layers, configuration, annotations, and signatures, SBOMs and the like",
                "type": "boolean",
            },
        },
        "required": ["reference"],
        "type": "object",
    },
)
def registry_inspect(
    reference: str,
    *,
    platform: str | None = None,
    detail: bool = False,
) -> dict[str, Any]:
    """Look at an image in its registry without pulling it: digest, platforms, size, age. Needs no engine."""
    return plain.answer(
        "registry_inspect",
        {
            "reference": reference,
            "platform": platform,
            "detail": detail,
        },
    )


@mcp_tool(
    toolset="registry",
    schema={
        "additionalProperties": False,
        "properties": {
            "repository": {
                "description": "List its tags, e.g. registry.example/shop/web",
                "maxLength": 512,
                "type": "string",
            },
            "registry": {
                "description": "List its repositories, e.g. registry.example:5000",
                "maxLength": 255,
                "type": "string",
            },
            "filter": {"description": "Part of the name, or a pattern such as 1.*", "maxLength": 256, "type": "string"},
            "limit": {"default": 50, "description": "Most rows", "maximum": 500, "minimum": 1, "type": "integer"},
            "cursor": {"description": "next_cursor of the page before", "maxLength": 256, "type": "string"},
        },
        "type": "object",
    },
)
def registry_list(
    *,
    repository: str | None = None,
    registry: str | None = None,
    filter: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """List a repository's tags, the highest version first, or a registry's repositories. Give one of the two. Needs no engine."""
    return plain.answer(
        "registry_list",
        {
            "repository": repository,
            "registry": registry,
            "filter": filter,
            "limit": limit,
            "cursor": cursor,
        },
    )


@mcp_tool(
    toolset="registry",
    schema={
        "additionalProperties": False,
        "properties": {
            "image": {
                "description": "e.g. registry.example/shop/web:1.2, or by digest",
                "maxLength": 512,
                "type": "string",
            },
            "platform": {"description": "e.g. linux/arm64; else this machine's", "maxLength": 64, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["image"],
        "type": "object",
    },
)
def registry_pull(
    image: str,
    *,
    platform: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Pull an image from its registry into an engine; what is there already is not fetched again."""
    return plain.answer(
        "registry_pull",
        {
            "image": image,
            "platform": platform,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="registry",
    schema={
        "additionalProperties": False,
        "properties": {
            "image": {"description": "Reference or id on the engine", "maxLength": 512, "type": "string"},
            "target": {"description": "Name there, if not the image's own", "maxLength": 512, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["image"],
        "type": "object",
    },
)
def registry_push(
    image: str,
    *,
    target: str | None = None,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Push an image of an engine to a registry. One that policy.push_registries does not list asks first."""
    return plain.answer(
        "registry_push",
        {
            "image": image,
            "target": target,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "name": {"description": "Name", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$", "type": "string"},
            "driver": {"default": "local", "description": "Driver", "maxLength": 128, "minLength": 1, "type": "string"},
            "options": {
                "description": "The driver's options",
                "additionalProperties": {"type": "string"},
                "maxProperties": 50,
                "type": "object",
            },
            "labels": {
                "description": "Labels",
                "additionalProperties": {"type": "string"},
                "maxProperties": 200,
                "type": "object",
            },
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "required": ["name"],
        "type": "object",
    },
)
def volume_create(
    name: str,
    *,
    driver: str = "local",
    options: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Create a volume. Options that mount a host path are held to the paths that mounts may use."""
    return plain.answer(
        "volume_create",
        {
            "name": name,
            "driver": driver,
            "options": options,
            "labels": labels,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "name": {"description": "Part of the name", "maxLength": 256, "type": "string"},
            "label": {"description": "NAME or NAME=VALUE", "maxLength": 512, "type": "string"},
            "unused": {
                "description": "Only those that no container uses (true) or some does (false)",
                "type": "boolean",
            },
            "measure": {"description": "Also their sizes, which takes an engine a while", "type": "boolean"},
            "limit": {"default": 50, "description": "Most rows", "maximum": 500, "minimum": 1, "type": "integer"},
            "cursor": {"description": "next_cursor of the page before", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
        },
        "type": "object",
    },
)
def volume_list(
    *,
    name: str | None = None,
    label: str | None = None,
    unused: bool | None = None,
    measure: bool = False,
    limit: int = 50,
    cursor: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """List volumes, newest first, with the containers that mount them."""
    return plain.answer(
        "volume_list",
        {
            "name": name,
            "label": label,
            "unused": unused,
            "measure": measure,
            "limit": limit,
            "cursor": cursor,
            "engine": engine,
        },
    )


@mcp_tool(
    toolset="storage",
    schema={
        "additionalProperties": False,
        "properties": {
            "volume": {"description": "Name", "maxLength": 256, "type": "string"},
            "engine": {"description": "If not the default", "maxLength": 64, "type": "string"},
            "confirm_token": {"type": "string", "description": "From confirmation_required, if the user agrees"},
        },
        "required": ["volume"],
        "type": "object",
    },
)
def volume_remove(
    volume: str,
    *,
    engine: str | None = None,
    confirm_token: str | None = None,
) -> dict[str, Any]:
    """Remove a volume that no container mounts, with all its data. One that this server run did not create needs a confirmation."""
    return plain.answer(
        "volume_remove",
        {
            "volume": volume,
            "engine": engine,
            "confirm_token": confirm_token,
        },
    )
