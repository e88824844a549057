"""Which of our errors is behind a failure of docker-py or of the Docker daemon?

The library's own messages never leave (they are long and name addresses); the daemon's explanation does, marked as such, because it often
is the only thing that helps.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from codomyrmex_containerization import errors

_NO_SUCH = re.compile(
    r"no such (container|image|network|volume|exec (?:instance|session))|(image) not known|(network|volume) not found",
    re.IGNORECASE,
)
_LONGEST_EXPLANATION = 600
_LONG_ID = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")

Make = Callable[[str], errors.ContainerizationError]


def _make(kind: type[errors.ContainerizationError], hint: str) -> Make:
    return lambda message: kind(message, hint=hint)


_LISTED_BY = {"volume": "volume_list", "network": "network_list", "image": "image_list"}
# What the daemon says (its message, lower case) -> what it means. The first match counts.
_SAID: tuple[tuple[re.Pattern[str], Make], ...] = (
    # Podman and its runtimes
    (
        re.compile(r"cgroups in hybrid mode not supported"),
        _make(
            errors.EngineUnavailable,
            'apt-get install runc, and set runtime = "runc" in the table [engine] of Podman\'s containers.conf',
        ),
    ),
    (
        re.compile(r"unable to find (user|group) |no matching entries in (passwd|group) file"),
        _make(errors.InvalidArgument, "name a user that the image has, or a number"),
    ),
    (
        re.compile(r"error creating file at .*file exists|cannot overwrite (non-)?directory"),
        _make(errors.Conflict, "a file and a folder of the same name meet: name another target"),
    ),
    (
        re.compile(r"setting rlimit"),
        _make(errors.InvalidArgument, "the engine may not raise a limit that high: ask for less in ulimits"),
    ),
    (
        re.compile(r"slirp4netns failed|/dev/net/tun|setup network: "),
        _make(
            errors.EngineUnavailable,
            "the engine cannot make a network for this container: pass network='none' or 'host', or have /dev/net/tun opened to its user",
        ),
    ),
    (
        re.compile(
            r"command that was not found|oci permission denied|crun: executable file|(runc|crun): runc create failed"
        ),
        _make(
            errors.CommandFailed,
            "check the command and the entrypoint: the program must exist and be executable in the image",
        ),
    ),
    (
        re.compile(r"more than one result for|is ambiguous"),
        _make(errors.Ambiguous, "give more of the id, or the name"),
    ),
    (
        re.compile(r"name .* (is (already )?in use|already used)|(network|volume|container) already exists$"),
        _make(errors.Conflict, "choose another name, or remove the one that has it first"),
    ),
    (
        re.compile(r"cannot be removed without force|as it is (running|paused)"),
        _make(errors.Conflict, "stop it first or pass force=true"),
    ),
    (
        re.compile(r"image used by|image is in use by"),
        _make(errors.Conflict, "remove the containers that use it first or pass force=true"),
    ),
    (
        re.compile(r"container state improper|has no defined healthcheck"),
        _make(errors.Conflict, "look at its state with container_inspect; container_control changes it"),
    ),
    (
        re.compile(r"is not logging output|cannot read logs"),
        _make(errors.Unsupported, "this container's log driver keeps no log that the engine can read"),
    ),
    (
        re.compile(r"must be lowercase|invalid reference format|invalid filter|names must match|: invalid argument$"),
        _make(errors.InvalidArgument, "mend the argument that the message names"),
    ),
    (
        re.compile(r"did not resolve to an alias"),
        _make(errors.NotFound, "name the registry too, as in localhost:5000/NAME:TAG"),
    ),
    # Docker
    (
        re.compile(r"storage-opt|storage option"),
        _make(
            errors.Unsupported,
            "leave disk out, or use engine='embedded', which holds a container to it on any file system",
        ),
    ),
    (
        re.compile(r"port is already allocated|address already in use"),
        _make(errors.Conflict, "publish another host port, or none to get a free one"),
    ),
    (
        re.compile(r"is already in use by container"),
        _make(errors.Conflict, "choose another name, or remove that container first"),
    ),
    (
        re.compile(
            r"executable file not found|no such file or directory.*unknown|permission denied.*unknown|oci runtime create failed"
        ),
        _make(
            errors.CommandFailed,
            "check the command and the entrypoint: the program must exist and be executable in the image",
        ),
    ),
    (
        re.compile(r"unable to find (user|group) |no matching entries in (passwd|group) file"),
        _make(errors.CommandFailed, "check the user: its name must be in the image's /etc/passwd, a number need not"),
    ),
    (
        re.compile(r"you cannot remove a running container|stop the container before|container is running"),
        _make(errors.Conflict, "stop it first or pass force=true"),
    ),
    (
        re.compile(r"is the infra container of pod"),
        _make(errors.Conflict, "it keeps its pod together and goes with it: podman pod rm"),
    ),
    (
        re.compile(r"removal of container .* is already in progress"),
        _make(errors.Conflict, "it is being removed already; look again in a moment"),
    ),
    (
        re.compile(r"image is being used|conflict: unable to"),
        _make(errors.Conflict, "remove the containers that use it first or pass force=true"),
    ),
    (
        re.compile(r"configured logging driver does not support reading"),
        _make(errors.Unsupported, "this container's log driver keeps no log that the engine can read"),
    ),
    (
        re.compile(r"unauthorized|authentication required|no basic auth credentials|denied: "),
        _make(errors.Unauthorized, "log in to the registry: cxc login REGISTRY, or with the engine's own client"),
    ),
    (
        re.compile(r"pull access denied|manifest unknown|manifest for .* not found|repository does not exist"),
        _make(errors.NotFound, "check the image's name and tag"),
    ),
    (
        re.compile(
            r"dial tcp|no such host|i/o timeout|connection refused|tls handshake|temporary failure in name resolution|proxyconnect|eof$"
        ),
        _make(
            errors.EngineUnavailable,
            "the registry does not answer the engine: check the network, or use an image that the engine already has",
        ),
    ),
    (
        re.compile(r"multiple ids found with provided prefix|id prefix is ambiguous"),
        _make(errors.Ambiguous, "give more of the id, or the name"),
    ),
    (re.compile(r"network .* not found"), _make(errors.NotFound, "check the network's name")),
    (
        re.compile(r"predefined|pre-defined|operation is not permitted on"),
        _make(errors.Conflict, "the engine made that network for itself: choose another name"),
    ),
    (
        re.compile(r"network with name .* already exists"),
        _make(errors.Conflict, "choose another name; network_list shows what there is"),
    ),
    (
        re.compile(r"pool overlaps|subnet .* is already used"),
        _make(errors.Conflict, "choose another subnet, or none to get a free one; network_list shows those in use"),
    ),
    (
        re.compile(r"has active endpoints|network is being used|volume is (in use|being used)"),
        _make(errors.Conflict, "disconnect or remove the containers that use it first"),
    ),
    (
        re.compile(
            r"endpoint with name .* already exists|is already connected to network|is not connected to( the)? network"
        ),
        _make(errors.Conflict, "container_inspect shows the networks of a container"),
    ),
    (
        re.compile(r"volume options .* not supported"),
        _make(
            errors.Unsupported, "leave those options out: the file system under this engine's volumes cannot do that"
        ),
    ),
    (
        re.compile(r"volume plugin|plugin .* not found|unsupported (volume|network) driver"),
        _make(
            errors.InvalidArgument,
            "use a driver that the engine has, such as local for volumes and bridge for networks",
        ),
    ),
    (
        re.compile(r"failed to parse|invalid subnet|failed to allocate gateway"),
        _make(errors.InvalidArgument, "mend the argument that the message names"),
    ),
    (
        re.compile(r"is not running|is not paused|is already paused|is paused|is restarting"),
        _make(errors.Conflict, "look at its state with container_inspect; container_control changes it"),
    ),
    (
        re.compile(r"could not find the file|no such file or directory|not a directory"),
        _make(errors.NotFound, "check the path inside the container"),
    ),
    (
        re.compile(r"marked read-only"),
        _make(errors.Conflict, "that place is read-only: copy to one of the container's writable folders or mounts"),
    ),
    (
        re.compile(r"invalid repository name|invalid signal"),
        _make(errors.InvalidArgument, "mend the argument that the message names"),
    ),
    (
        re.compile(r"cannot overwrite (non-)?directory"),
        _make(errors.Conflict, "a file and a folder of the same name meet: name another target"),
    ),
    (re.compile(r"no space left on device"), _make(errors.EngineUnavailable, "free disk space on the engine's host")),
)


def translate(error: BaseException, *, engine: str, what: str, subject: str = "") -> errors.ContainerizationError:
    """Return our error for whatever docker-py, requests, urllib3 or a socket raised while doing `what`."""
    import http.client

    import docker.errors
    import requests

    if isinstance(error, errors.ContainerizationError):
        return error
    if isinstance(error, docker.errors.APIError):
        return _from_daemon(error, engine=engine, what=what, subject=subject)
    if _is_timeout(error):
        return errors.DeadlineExceeded(
            f"{engine} did not answer in time while {what}.",
            hint="call container_runtime_status to see whether it answers at all",
        )
    broken = docker.errors.DockerException | docker.errors.StreamParseError | http.client.HTTPException
    if isinstance(error, broken | requests.RequestException | OSError | ValueError | RecursionError) or _is_urllib3(
        error
    ):
        return unavailable(error, engine=engine, what=what)
    if isinstance(error, TypeError | AttributeError | LookupError):
        # Its answer was JSON, but not what the Engine API describes: something else listens there.
        return errors.EngineUnavailable(
            f"What answers in {engine}'s place does not speak as it should (while {what}).",
            hint="check that DOCKER_HOST or the socket is the engine's; container_runtime_status shows where it was found",
        )
    return errors.InternalError(f"An unexpected {type(error).__name__} came up while {what}.")


def unavailable(error: BaseException | None, *, engine: str, what: str) -> errors.ContainerizationError:
    """Return EngineUnavailable, or Unauthorized when the socket may not be opened."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError):
            return errors.Unauthorized(
                f"{engine}'s socket may not be opened by this user.",
                hint="join the group that owns the socket (often 'docker') or use a rootless engine",
            )
        cause = _inner(cause)
    return errors.EngineUnavailable(
        f"{engine} stopped answering or is not running (while {what}).",
        hint="start it ('systemctl start docker', or podman.socket), then call again; container_runtime_status shows every engine",
    )


def explanation(text: str) -> str:
    """Shorten what the daemon said to one line."""
    line = _LONG_ID.sub(r"\1", " ".join(text.split()))
    return line if len(line) <= _LONGEST_EXPLANATION else line[:_LONGEST_EXPLANATION] + "..."


def from_message(text: str, *, engine: str, what: str, status: int | None = None) -> errors.ContainerizationError:
    """Return our error for a message of the daemon (an HTTP body or an error line inside a stream)."""
    doing = _LONG_ID.sub(r"\1", what)
    said = f"{engine} says, while {doing}: {explanation(text)}"
    lowered = text.lower().strip()
    for pattern, make in _SAID:
        if pattern.search(lowered):
            return make(said)
    if status == 404 or _NO_SUCH.search(text):
        return errors.NotFound(said, hint="check the name; container_list(all=true) shows what there is")
    if status == 409:
        return errors.Conflict(said, hint="look at the object's state first")
    if status is not None and 400 <= status < 500:
        return errors.InvalidArgument(said, hint="mend the argument that the message names")
    return errors.EngineUnavailable(said, hint="the engine failed at this; its own log says more")


def _from_daemon(error: BaseException, *, engine: str, what: str, subject: str) -> errors.ContainerizationError:
    status = getattr(error, "status_code", None)
    text = getattr(error, "explanation", None) or getattr(getattr(error, "response", None), "reason", None) or ""
    text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    missing = _NO_SUCH.search(text)
    kind = next((one.lower() for one in missing.groups() if one), "") if missing else ""
    # What is missing may be another thing than the one that the call is about: a network for a container.
    if status == 404 and kind and subject.startswith(kind):
        return errors.NotFound(
            f"{engine} has no {subject}.",
            hint=f"check the name; {_LISTED_BY.get(kind, 'container_list(all=true)')} shows what there is",
            details={"missing": kind},
        )
    return from_message(text, engine=engine, what=what, status=status if isinstance(status, int) else None)


def _is_timeout(error: BaseException) -> bool:
    import requests

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError | requests.Timeout):
            return True
        if type(cause).__name__ in {"ReadTimeoutError", "ConnectTimeoutError"}:
            return True
        cause = _inner(cause)
    return False


def _is_urllib3(error: BaseException) -> bool:
    import urllib3.exceptions

    return isinstance(error, urllib3.exceptions.HTTPError)


def _inner(error: BaseException) -> BaseException | None:
    # requests and urllib3 keep what happened in their arguments and not always in __cause__.
    for candidate in (error.__cause__, error.__context__, getattr(error, "reason", None), *error.args):
        if isinstance(candidate, BaseException) and candidate is not error:
            return candidate
    return None
