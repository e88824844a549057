"""How does the Engine API tell of a container's processes and changes, and how does it make an image of one?

Source: https://docs.docker.com/reference/api/engine/ (ContainerTop, ContainerChanges, ImageCommit).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codomyrmex_containerization.engines.docker import archives
from codomyrmex_containerization.models.inside import ChangeKind, FileChange, ProcessRow

if TYPE_CHECKING:
    from docker import APIClient

Json = Mapping[str, Any]

# The engine has its host's `ps` run; the one of busybox knows neither words nor columns, and is asked without.
COLUMNS = "-eo pid,uid,time,args"
_KINDS: Mapping[int, ChangeKind] = {0: "changed", 1: "added", 2: "deleted"}
_CLOCK = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?\Z")
# As Go writes a time: 1h2m3.5s, 120ms.
_GO_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|µs|us|ns|m|s)")
_GO_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}


def top(client: APIClient, container: str) -> list[ProcessRow]:
    """GET /containers/NAME/top."""
    import docker.errors

    try:
        raw = client.top(container, ps_args=COLUMNS)
    except docker.errors.APIError as error:
        if error.status_code != 500 or "ps:" not in str(error.explanation):
            raise
        raw = client.top(container)
    return processes(raw)


def processes(raw: Json) -> list[ProcessRow]:
    """Make rows of the columns that were given: what is missing is not made up. Raises LookupError without a PID.

    Podman's `?` is a process that had ended, or not quite begun, when its number was looked for: it is left out.
    """
    titles = [str(one).upper() for one in raw["Titles"]]
    pid = next(titles.index(one) for one in ("HPID", "PID") if one in titles)
    user = next((titles.index(one) for one in ("USER", "UID") if one in titles), None)
    time = titles.index("TIME") if "TIME" in titles else None
    return [
        ProcessRow(
            int(row[pid]),
            _user(str(row[user])) if user is not None else "",
            str(row[-1]),
            _seconds(str(row[time])) if time is not None else None,
        )
        for row in raw.get("Processes") or ()
        if str(row[pid]).isdecimal()
    ]


def _user(text: str) -> str:
    return "root" if text == "0" else text


def _seconds(text: str) -> float | None:
    clock = _CLOCK.match(text)
    if clock is not None:
        days, hours, minutes, seconds = (int(one or 0) for one in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    parts = _GO_PART.findall(text)
    return sum(float(count) * _GO_SECONDS[unit] for count, unit in parts) if parts else None


def changes(raw: Sequence[Json] | None) -> list[FileChange]:
    """Make changes of GET /containers/NAME/changes, by path. Raises LookupError for a kind that there is not."""
    found = [FileChange(_KINDS[int(one["Kind"])], str(one["Path"])) for one in raw or ()]
    return sorted(found, key=lambda one: one.path)


def commit(client: APIClient, container: str, *, labels: Mapping[str, str], message: str) -> str:
    """POST /commit, paused meanwhile; returns the id of an image without a name."""
    params: dict[str, Any] = {"container": container, "pause": "1", "changes": archives.changes(labels)}
    if message:
        params["comment"] = message
    # What there is to pack may be large: it is waited for.
    response = client.post(client._url("/commit"), params=params, json={}, timeout=None)
    client._raise_for_status(response)
    return str(response.json()["Id"])
