"""What goes on in a container here, what has changed in its tree, and what does an image of it say?"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.memory import files, objects
from codomyrmex_containerization.engines.memory.containers import Container
from codomyrmex_containerization.engines.memory.store import Store
from codomyrmex_containerization.models.inside import FileChange, ProcessRow


def top(container: Container) -> list[ProcessRow]:
    """List the processes, by their own numbers: there is no host. Raises Conflict (not running)."""
    running = container.kernel
    if running is None or container.status not in ("running", "paused"):
        raise errors.Conflict(f"Container {container.name} is not running.", hint="start it first")
    alive = [one for one in running.processes.values() if one.exit_code is None]
    return [ProcessRow(one.pid, one.who.name or str(one.who.uid), " ".join(one.argv)) for one in alive]


def changes(container: Container) -> list[FileChange]:
    """List what differs from the image, with the folders that lead there, by path."""
    before, after = objects.manifest(container.image.tree), objects.manifest(container.root)
    # A folder that was made only to mount something at is not the container's doing.
    mounted = {way.strip("/") for path in container.view.mounts for way in _ways(path)}
    found = {path: FileChange("added", f"/{path}") for path in after.keys() - before.keys() - mounted}
    found |= {way: FileChange("added", f"/{way}") for path in list(found) for way in _ways(path) if way not in before}
    found |= {
        path: FileChange("changed", f"/{path}") for path in after.keys() & before.keys() if after[path] != before[path]
    }
    gone = before.keys() - after.keys()
    # Of a folder that is gone, only itself.
    found |= {path: FileChange("deleted", f"/{path}") for path in gone if posixpath.dirname(path) not in gone}
    for path in list(found):
        while (path := posixpath.dirname(path)) and path in before and path not in found:
            found[path] = FileChange("changed", f"/{path}")
    return sorted(found.values(), key=lambda one: one.path)


def _ways(path: str) -> Iterator[str]:
    """Yield a path and the folders above it."""
    while path.strip("/"):
        yield path
        path = posixpath.dirname(path)


def commit(held: Store, container: Container, *, tag: str, labels: Mapping[str, str], message: str) -> str:
    """Make an image of the tree and of what the container was made with; return its id."""
    spec, config = container.spec, container.image.config
    env = {**dict(one.partition("=")[::2] for one in config.env), **spec.env}
    made = replace(
        config,
        env=tuple(f"{name}={value}" for name, value in env.items()),
        entrypoint=container.entrypoint,
        command=container.command,
        workdir=spec.workdir or config.workdir,
        user=container.user,
        labels={**config.labels, **spec.labels, **labels},
        healthcheck=spec.healthcheck or config.healthcheck,
    )
    tree: files.Tree = container.root.copy()
    image = held.add_image(parent=container.image, tree=tree, config=made, instruction=message or "commit")
    held.tag(image, tag)
    return image.id
