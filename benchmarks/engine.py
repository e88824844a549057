"""What stands in the engine while lists are measured, and what does its API cost without anything of ours?"""

from __future__ import annotations

import http.client
import io
import json
import secrets
import shutil
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote, urlencode

from benchmarks.wire import BenchmarkError

LABEL = "codomyrmex.containerization.test"
LABEL_VALUE = "bench"

LIBPOD = "/v4.0.0/libpod"
_API = "/v1.40"
_SIDE_BY_SIDE = 4
_TIMEOUT_SECONDS = 120.0
_ENDLESS = ["sleep", "2147483647"]
_EMPTY_TAR = bytes(1024)


class Api(http.client.HTTPConnection):
    """One connection to an engine's socket."""

    def __init__(self, path: Path, *, prefix: str = _API) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path
        self._prefix = prefix

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def ask(self, method: str, path: str, *, body: bytes | None = None, kind: str = "application/json") -> Any:
        """Send a request and return the answer's JSON. Raises BenchmarkError for an error status."""
        self.request(method, self._prefix + path, body=body, headers={"Content-Type": kind} if body is not None else {})
        response = self.getresponse()
        data = response.read()
        if response.status >= 400:
            raise BenchmarkError(f"{method} {path} was answered with {response.status}: {data[:300]!r}")
        return json.loads(data) if data and response.headers.get_content_type() == "application/json" else data


def list_path() -> str:
    """Return the request that lists the running containers of benchmarks."""
    return "/containers/json?" + urlencode({"filters": json.dumps({"label": [f"{LABEL}={LABEL_VALUE}"]})})


def list_fresh(path: Path, *, prefix: str = _API) -> list[dict[str, Any]]:
    """List over a connection made for it."""
    api = Api(path, prefix=prefix)
    try:
        return list(api.ask("GET", list_path()))
    finally:
        api.close()


@dataclass(frozen=True, slots=True)
class Population:
    """Idle containers, all from one image; `name` is one of them."""

    image: str
    count: int
    name: str


@contextmanager
def idle_containers(path: Path, count: int) -> Iterator[Population]:
    """Make an image and start so many containers; whatever happens, they are removed at the end."""
    run = secrets.token_hex(4)
    image = f"localhost/cxc-bench-{run}:1"
    with interrupted_by_signals():
        try:
            _import_image(path, image)
            yield start_idle(path, count, prefix=f"cxc-bench-{run}", image=image)
        finally:
            with uninterrupted():
                _remove_all(path, f"cxc-bench-{run}-", image)


def start_idle(path: Path, count: int, *, prefix: str, image: str) -> Population:
    """Start so many containers from an image that is there; the caller removes them."""
    names = [f"{prefix}-{number:03}" for number in range(count)]
    _side_by_side([partial(_start, path, name, image) for name in names])
    return Population(image, count, names[0])


@contextmanager
def images(path: Path, count: int) -> Iterator[str]:
    """Make so many images, and yield what all their names hold; whatever happens, they are removed at the end."""
    name = f"localhost/cxc-bench-{secrets.token_hex(4)}"
    try:
        _side_by_side([partial(_import_empty, path, f"{name}-{number:03}:1") for number in range(count)])
        yield name
    finally:
        with uninterrupted():
            _remove_images(path, name)


def _import_empty(path: Path, image: str) -> None:
    repository, _, tag = image.rpartition(":")
    # The label makes each an image of its own, and they share their one empty layer.
    changes = f"LABEL {LABEL}={LABEL_VALUE} number={repository[-3:]}"
    query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": changes})
    api = Api(path)
    try:
        api.ask("POST", f"/images/create?{query}", body=_EMPTY_TAR, kind="application/x-tar")
    finally:
        api.close()


def _remove_images(path: Path, name: str) -> None:
    api = Api(path)
    tags = [tag for row in api.ask("GET", "/images/json") for tag in row.get("RepoTags") or () if tag.startswith(name)]
    for tag in tags:
        api.ask("DELETE", f"/images/{tag}?force=true")
    api.close()


def _side_by_side(work: Sequence[Callable[[], object]]) -> None:
    pool = ThreadPoolExecutor(_SIDE_BY_SIDE)
    try:
        for done in [pool.submit(one) for one in work]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(path: Path, name: str, image: str) -> None:
    body = {
        "Image": image,
        "Cmd": _ENDLESS,
        "Labels": {LABEL: LABEL_VALUE},
        "HostConfig": {"NetworkMode": "none"},
    }
    api = Api(path)
    try:
        made = api.ask("POST", f"/containers/create?name={name}", body=json.dumps(body).encode())
        api.ask("POST", f"/containers/{made['Id']}/start")
    finally:
        api.close()


def _remove_all(path: Path, prefix: str, image: str) -> None:
    filters = quote(json.dumps({"name": [prefix]}))
    api = Api(path)
    rows = api.ask("GET", f"/containers/json?all=true&filters={filters}")
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        list(pool.map(lambda row: _remove(path, row), rows))
    # By its own name only; it is not there when its import failed.
    if any(image in (row.get("RepoTags") or ()) for row in api.ask("GET", "/images/json")):
        api.ask("DELETE", f"/images/{image}?force=true")
    api.close()


def _remove(path: Path, row: Mapping[str, Any]) -> None:
    api = Api(path)
    try:
        api.ask("DELETE", f"/containers/{row['Id']}?force=true&v=true")
    finally:
        api.close()


def _import_image(path: Path, image: str) -> None:
    repository, _, tag = image.rpartition(":")
    query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": "ENV PATH=/bin"})
    api = Api(path)
    api.ask("POST", f"/images/create?{query}", body=_root_filesystem(), kind="application/x-tar")
    api.close()


def _root_filesystem() -> bytes:
    found = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    if found is None or b"/ld-" in Path(found).read_bytes()[:4096]:  # the name of a dynamic loader
        raise BenchmarkError("no statically linked busybox (scripts/back-ends installs it)")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        program = Path(found).read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(program), 0o755
        archive.addfile(entry, io.BytesIO(program))
        for name in ("sh", "sleep", "true"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Make every ending signal an exception, so that what was made is removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the removal finish."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
