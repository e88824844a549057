"""Does every failure of docker-py, requests, urllib3 or the daemon become one of our errors, in our words?"""

from __future__ import annotations

import http.client
import inspect
import socket
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
import requests
import urllib3.exceptions

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.docker import errors as docker_errors

ADDRESS = "http+docker://localhost:2375/v1.41/containers/json?secret=1"
LIBRARY_TEXT = f"HTTPConnectionPool(host='10.1.2.3', port=2375): Max retries exceeded with url: {ADDRESS}"


def classes(module: Any, base: type[BaseException]) -> list[type[BaseException]]:
    return [
        one
        for _, one in inspect.getmembers(module, inspect.isclass)
        if issubclass(one, base) and not issubclass(one, Warning)
    ]


LIBRARY_ERRORS = sorted(
    {
        *classes(docker.errors, Exception),
        *classes(requests.exceptions, Exception),
        *classes(urllib3.exceptions, Exception),
        *classes(http.client, http.client.HTTPException),
        KeyError,
        AttributeError,
        TypeError,
        ConnectionResetError,
        ConnectionRefusedError,
        BrokenPipeError,
        FileNotFoundError,
        PermissionError,
        TimeoutError,
        socket.gaierror,
        ValueError,
        UnicodeDecodeError,
    },
    key=lambda one: f"{one.__module__}.{one.__name__}",
)


def make(kind: type[BaseException]) -> BaseException:
    """An instance as it is, without asking its constructor, which every class wants to be called differently."""
    error = kind.__new__(kind, LIBRARY_TEXT)
    error.args = (LIBRARY_TEXT,)
    error.__dict__.setdefault("response", None)
    if issubclass(kind, docker.errors.APIError):
        error.__dict__.update(explanation="something of the daemon", response=None)
    return error


def translate(error: BaseException, **more: Any) -> errors.ContainerizationError:
    return docker_errors.translate(error, engine="docker", what="listing containers", **more)


@pytest.mark.parametrize("kind", LIBRARY_ERRORS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_error_of_a_library_becomes_one_of_ours_without_its_text(kind: type[BaseException]) -> None:
    ours = translate(make(kind))
    assert not isinstance(ours, errors.InternalError)
    assert ours.hint
    for foreign in ("HTTPConnectionPool", "10.1.2.3", "Max retries", "http+docker", "secret", "urllib3", "requests"):
        assert foreign not in ours.text()


def test_error_of_ours_stays_what_it_is() -> None:
    ours = errors.Conflict("x")
    assert translate(ours) is ours


def test_error_that_no_library_should_raise_is_a_defect_and_names_its_class_only() -> None:
    ours = translate(ZeroDivisionError(LIBRARY_TEXT))
    assert isinstance(ours, errors.InternalError)
    assert "ZeroDivisionError" in ours.message
    assert "10.1.2.3" not in ours.message


@pytest.mark.parametrize("how", ["cause", "context", "argument", "reason"])
def test_socket_that_may_not_be_opened_is_told_apart_wherever_it_is_hidden(how: str) -> None:
    denied, outer = PermissionError(13, "Permission denied"), requests.exceptions.ConnectionError("x")
    match how:
        case "cause":
            outer.__cause__ = denied
        case "context":
            outer.__context__ = denied
        case "argument":
            outer.args = (denied,)
        case _:
            outer.args = (SimpleNamespace(),)
            wrapped = urllib3.exceptions.MaxRetryError(None, "/", denied)  # type: ignore[arg-type]  # no pool is needed
            outer.args = (wrapped,)
    ours = translate(outer)
    assert isinstance(ours, errors.Unauthorized)
    assert "group" in ours.hint


def test_time_out_is_told_apart_wherever_it_is_hidden() -> None:
    read = urllib3.exceptions.ReadTimeoutError(None, "/", "Read timed out.")  # type: ignore[arg-type]  # as above
    for error in (requests.Timeout("x"), TimeoutError(), requests.exceptions.ConnectionError(read), read):
        assert isinstance(translate(error), errors.DeadlineExceeded)


# ------------------------------------------------------------------------------------------------ what the daemon says

SAID: list[tuple[int, str, type[errors.ContainerizationError]]] = [
    (409, 'Conflict. The container name "/a" is already in use by container "b".', errors.Conflict),
    (500, "driver failed: Bind for 127.0.0.1:80 failed: port is already allocated", errors.Conflict),
    (500, "listen tcp4 127.0.0.1:80: bind: address already in use", errors.Conflict),
    (400, 'OCI runtime create failed: exec: "x": executable file not found in $PATH: unknown', errors.CommandFailed),
    (500, "failed to create shim: OCI runtime create failed: no such file or directory: unknown", errors.CommandFailed),
    (409, "You cannot remove a running container a. Stop the container before attempting removal", errors.Conflict),
    (409, "removal of container a is already in progress", errors.Conflict),
    (409, "conflict: unable to remove repository reference", errors.Conflict),
    (404, "No such container: x", errors.NotFound),
    (404, "No such image: x:latest", errors.NotFound),
    (404, "network x not found", errors.NotFound),
    (404, "pull access denied for x, repository does not exist or may require 'docker login'", errors.NotFound),
    (404, "manifest for x:1 not found: manifest unknown", errors.NotFound),
    (500, "unauthorized: authentication required", errors.Unauthorized),
    (500, "Get https://x/v2/: dial tcp 127.0.0.1:1: connect: connection refused", errors.EngineUnavailable),
    (501, "configured logging driver does not support reading", errors.Unsupported),
    (500, "Multiple IDs found with provided prefix: a", errors.Ambiguous),
    (500, "write /x: no space left on device", errors.EngineUnavailable),
    (400, "invalid reference format", errors.InvalidArgument),
    (409, "something else", errors.Conflict),
    (404, "something else", errors.NotFound),
    (500, "something else", errors.EngineUnavailable),
    (503, "", errors.EngineUnavailable),
    (400, "x" * 100_000, errors.InvalidArgument),
]


@pytest.mark.parametrize(("status", "text", "kind"), SAID, ids=lambda value: str(value)[:40])
def test_daemons_explanation_decides_what_it_is_and_is_passed_on_as_its_own(
    status: int, text: str, kind: type[errors.ContainerizationError]
) -> None:
    error = make(docker.errors.APIError)
    error.__dict__.update(explanation=text, response=SimpleNamespace(status_code=status, reason="x"))
    ours = translate(error)
    assert type(ours) is kind
    assert ours.hint
    assert len(ours.text()) < 1_500
    assert "docker says" in ours.message


def test_missing_object_is_named_as_the_caller_named_it() -> None:
    error = make(docker.errors.NotFound)
    error.__dict__.update(explanation="No such container: x", response=SimpleNamespace(status_code=404, reason="x"))
    ours = translate(error, subject="container 'web'")
    assert isinstance(ours, errors.NotFound)
    assert ours.message == "docker has no container 'web'."
    assert ours.details["missing"] == "container"
