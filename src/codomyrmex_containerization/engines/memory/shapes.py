"""How do this engine's containers and images look to the rest of the package?"""

from __future__ import annotations

from codomyrmex_containerization.engines.memory import objects
from codomyrmex_containerization.engines.memory.containers import Container
from codomyrmex_containerization.models.container import ContainerRow, ContainerState
from codomyrmex_containerization.models.details import ContainerDetails, ImageDetails, ImageRow, SecurityOptions
from codomyrmex_containerization.models.image import ImageState


def labels(one: Container) -> dict[str, str]:
    """Return the image's labels and the container's own."""
    return {**one.image.config.labels, **one.spec.labels}


def container_row(one: Container, engine: str) -> ContainerRow:
    """Return a container as a list shows it."""
    return ContainerRow(
        one.id, one.name, one.spec.image, one.status, one.health, one.created, one.spec.ports, labels(one), engine
    )


def container_state(one: Container, engine: str, *, size: bool) -> ContainerState:
    """Return a container looked at closely."""
    ended = one.started_at is not None and not one.is_alive
    return ContainerState(
        id=one.id,
        name=one.name,
        image=one.spec.image,
        image_id=one.image.id,
        status=one.status,
        exit_code=one.exit_code if ended else None,
        oom_killed=False,
        error=one.error,
        started_at=one.started_at,
        finished_at=one.finished_at,
        created=one.created,
        tty=False,
        env=one.env,
        labels=labels(one),
        mounts=tuple(one.mounts),
        ports=one.spec.ports,
        privileged=False,
        host_namespaces=(),
        health=one.health,
        writable_bytes=one.root.own_bytes() if size else None,
        engine=engine,
    )


def container_details(one: Container, engine: str) -> ContainerDetails:
    """Return a container looked at from all sides; it has no process on a host, hence no pid."""
    spec = one.spec
    return ContainerDetails(
        state=container_state(one, engine, size=False),
        entrypoint=one.entrypoint,
        command=one.command,
        workdir=spec.workdir or one.image.config.workdir,
        hostname=one.hostname,
        pid=0,
        restart=spec.restart,
        restart_count=one.restart_count,
        healthcheck=one.healthcheck,
        health_failures=one.health_failures,
        health_output=one.health_output,
        networks=tuple(one.networks.values()),
        limits=spec.limits,
        security=SecurityOptions(
            user=one.user,
            privileged=False,
            cap_add=spec.cap_add,
            cap_drop=spec.cap_drop,
            seccomp="none",
            apparmor="",
            read_only_rootfs=spec.read_only_rootfs,
            no_new_privileges=True,
            devices=(),
        ),
        log_driver="memory",
    )


def image_state(image: objects.Image, *, system: str, architecture: str) -> ImageState:
    """Return an image looked at closely."""
    config = image.config
    return ImageState(
        image.id,
        tuple(image.tags),
        image.size_bytes,
        image.created,
        system,
        architecture,
        len(image.digests),
        config.labels,
        config.env,
    )


def image_row(image: objects.Image, engine: str) -> ImageRow:
    """Return an image as a list shows it."""
    return ImageRow(image.id, tuple(image.tags), (), image.size_bytes, image.created, image.config.labels, engine)


def image_details(image: objects.Image, *, system: str, architecture: str) -> ImageDetails:
    """Return an image's configuration and layers, the newest first."""
    config = image.config
    return ImageDetails(
        id=image.id,
        tags=tuple(image.tags),
        digests=(),
        size_bytes=image.size_bytes,
        created=image.created,
        os=system,
        architecture=architecture,
        variant="",
        user=config.user,
        env=config.env,
        entrypoint=config.entrypoint,
        command=config.command,
        workdir=config.workdir,
        exposed_ports=config.exposed,
        volumes=config.volumes,
        labels=config.labels,
        healthcheck=config.healthcheck,
        layers=tuple(reversed(image.layers)),
    )
