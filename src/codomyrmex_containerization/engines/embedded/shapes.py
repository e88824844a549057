"""How do this engine's containers and images look to the rest of the package?"""

from __future__ import annotations

from codomyrmex_containerization.engines.embedded import objects
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import ContainerRow, ContainerState, Healthcheck
from codomyrmex_containerization.models.details import ContainerDetails, ImageDetails, ImageRow, SecurityOptions
from codomyrmex_containerization.models.image import ImageState

LOG_DRIVER = "k8s-file"


def container_row(one: Record, engine: str) -> ContainerRow:
    """Return a container as a list shows it."""
    return ContainerRow(
        one.id, one.name, one.spec.image, one.status, one.health, one.created, one.ports, one.labels, engine
    )


def container_state(one: Record, engine: str, *, writable_bytes: int | None = None) -> ContainerState:
    """Return a container looked at closely."""
    ended = one.started_at is not None and not one.is_alive
    return ContainerState(
        id=one.id,
        name=one.name,
        image=one.spec.image,
        image_id=one.image.id,
        status=one.status,
        exit_code=one.exit_code if ended else None,
        oom_killed=one.oom_killed,
        error=one.error,
        started_at=one.started_at,
        finished_at=one.finished_at if not one.is_alive else None,
        created=one.created,
        tty=False,
        env=tuple(f"{name}={value}" for name, value in one.env.items()),
        labels=one.labels,
        mounts=one.mounts,
        ports=one.ports,
        privileged=one.spec.privileged,
        host_namespaces=("network",) if any(name == "host" for name, _ in one.networks) else (),
        health=one.health,
        writable_bytes=writable_bytes,
        engine=engine,
    )


def healthcheck(one: Record) -> Healthcheck | None:
    """Return a container's health check, its own or its image's; None where it has none."""
    check = one.spec.healthcheck or one.image.config.healthcheck
    return check if check is not None and check.test and check.test[0] != "NONE" else None


def container_details(one: Record, engine: str) -> ContainerDetails:
    """Return a container looked at from all sides."""
    return ContainerDetails(
        state=container_state(one, engine),
        entrypoint=one.entrypoint,
        command=one.command,
        workdir=one.workdir,
        hostname=one.hostname,
        pid=one.first.pid if one.first is not None and one.is_alive else 0,
        restart=one.restart,
        restart_count=one.restart_count,
        healthcheck=healthcheck(one),
        health_failures=one.health_failures,
        health_output=one.health_output,
        networks=one.attachments,
        limits=one.limits,
        security=SecurityOptions(
            user=one.user,
            privileged=one.spec.privileged,
            cap_add=one.spec.cap_add,
            cap_drop=one.spec.cap_drop,
            seccomp="unconfined" if one.spec.privileged else "built in",
            apparmor="",
            read_only_rootfs=one.spec.read_only_rootfs,
            no_new_privileges=not one.spec.privileged,
            devices=(),
        ),
        log_driver=LOG_DRIVER,
    )


def _tags(image: objects.Image) -> tuple[str, ...]:
    return tuple(one for one in image.tags if "@" not in one)


def _digests(image: objects.Image) -> tuple[str, ...]:
    """Return the names that an image was pulled under by its digest."""
    return tuple(one for one in image.tags if "@" in one)


def image_state(image: objects.Image) -> ImageState:
    """Return an image looked at closely."""
    return ImageState(
        image.id,
        _tags(image),
        image.size_bytes,
        image.created,
        image.os,
        image.architecture,
        len(image.diff_ids),
        image.config.labels,
        image.config.env,
    )


def image_row(image: objects.Image, engine: str) -> ImageRow:
    """Return an image as a list shows it."""
    created = image.created or objects.NO_TIME
    return ImageRow(image.id, _tags(image), _digests(image), image.size_bytes, created, image.config.labels, engine)


def image_details(image: objects.Image) -> ImageDetails:
    """Return an image's configuration and layers, the newest first."""
    config = image.config
    return ImageDetails(
        id=image.id,
        tags=_tags(image),
        digests=_digests(image),
        size_bytes=image.size_bytes,
        created=image.created,
        os=image.os,
        architecture=image.architecture,
        variant=image.variant,
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
