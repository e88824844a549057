"""Which errors may callers of old catch? Their names, arguments, `context` and `to_dict()`, within our own tree of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from codomyrmex_containerization import errors


class ContainerError(errors.ContainerizationError):
    """A container could not be worked with; the base of those below.

    `context` is what the arguments name, and every further keyword. `error_code` is the class's name unless one is given; the stable code
    of this package is `code`.
    """

    code: ClassVar[str] = "command_failed"
    exit_status: ClassVar[int] = 12

    def __init__(
        self,
        message: str,
        container_id: str | None = None,
        container_name: str | None = None,
        *,
        context: Mapping[str, Any] | None = None,
        error_code: str | None = None,
        hint: str = "",
        details: Mapping[str, object] | None = None,
        **more: Any,  # whatever else is to stand in the context: the contract of old
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        named = {"container_id": container_id, "container_name": container_name}
        self.context: dict[str, Any] = {**(context or {}), **more}
        self.context |= {name: value for name, value in named.items() if value is not None}
        self.error_code = error_code or type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """Return `{error_type, error_code, message, context}`."""
        return {
            "error_type": type(self).__name__,
            "error_code": self.error_code,
            "message": self.message,
            "context": self.context,
        }

    def _named(self, **values: object) -> None:
        self.context |= {name: value for name, value in values.items() if value is not None}


class ImageBuildError(errors.BuildFailed, ContainerError):
    """An image build failed."""

    def __init__(
        self,
        message: str,
        image_name: str | None = None,
        image_tag: str | None = None,
        dockerfile_path: str | None = None,
        build_step: int | None = None,
        **more: Any,
    ) -> None:
        ContainerError.__init__(self, message, **more)
        self._named(image_name=image_name, image_tag=image_tag, dockerfile_path=dockerfile_path, build_step=build_step)


class NetworkError(ContainerError):
    """A network could not be worked with."""

    def __init__(
        self,
        message: str,
        network_name: str | None = None,
        network_id: str | None = None,
        driver: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message, **more)
        self._named(network_name=network_name, network_id=network_id, driver=driver)


class VolumeError(ContainerError):
    """A volume could not be worked with."""

    def __init__(
        self,
        message: str,
        volume_name: str | None = None,
        mount_point: str | None = None,
        driver: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message, **more)
        self._named(volume_name=volume_name, mount_point=mount_point, driver=driver)


class RegistryError(ContainerError):
    """A registry could not be worked with."""

    def __init__(
        self, message: str, registry_url: str | None = None, image_reference: str | None = None, **more: Any
    ) -> None:
        super().__init__(message, **more)
        self._named(registry_url=registry_url, image_reference=image_reference)


class KubernetesError(ContainerError):
    """A cluster's resource could not be worked with."""

    def __init__(
        self,
        message: str,
        resource_type: str | None = None,
        resource_name: str | None = None,
        namespace: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message, **more)
        self._named(resource_type=resource_type, resource_name=resource_name, namespace=namespace)
