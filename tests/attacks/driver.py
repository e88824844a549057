"""How is the server attacked? Frame by frame over its pipes, with bytes that no client library would send."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mcp_types as types

from codomyrmex_containerization import errors
from codomyrmex_containerization.server import adapter
from tests.backends import DockerCommandLine
from tests.server import faces
from tests.server.wire import Wire

# Above those that Wire gives out by itself.
FIRST_ID = 1_000_000
CODES = frozenset(
    one.code
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, errors.ContainerizationError) and one is not errors.InternalError
)


@dataclass(frozen=True, slots=True)
class Text:
    """JSON that Python's encoder would not write."""

    text: str


def encode(value: object) -> str:
    """Write JSON; a list of pairs of `Pairs` becomes an object, names that come twice included."""
    match value:
        case Text():
            return value.text
        case Pairs():
            return "{" + ",".join(f"{json.dumps(name)}:{encode(one)}" for name, one in value.pairs) + "}"
        case dict():
            return "{" + ",".join(f"{json.dumps(str(name))}:{encode(one)}" for name, one in value.items()) + "}"
        case list():
            return "[" + ",".join(encode(one) for one in value) + "]"
        case _:
            return json.dumps(value)


@dataclass(frozen=True, slots=True)
class Pairs:
    """An object whose names may come twice."""

    pairs: Sequence[tuple[str, object]]


def frame(era: faces.Era, id: object, method: object, params: object) -> bytes:
    """A request as the era writes it, whatever is in it."""
    if era == "modern" and isinstance(params, dict):
        params = {**params, "_meta": envelope()}
    return encode({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


def call_frame(era: faces.Era, id: object, tool: object, arguments: object) -> bytes:
    """A tool call."""
    return frame(era, id, "tools/call", {"name": tool, "arguments": arguments})


def envelope() -> dict[str, Any]:
    """What every request of the newer era carries."""
    return {
        "io.modelcontextprotocol/protocolVersion": faces.PROTOCOL_VERSIONS["modern"],
        "io.modelcontextprotocol/clientCapabilities": {},
    }


def is_message(line: bytes) -> bool:
    """Whether the protocol library reads a line as a message: what it cannot read it drops without a word."""
    text = line.decode("utf-8", "replace")
    try:
        types.jsonrpc_message_adapter.validate_json(text, by_name=False)
    except ValueError:
        return False
    return True


async def send(wire: Wire, line: bytes) -> None:
    """Send a line of any bytes."""
    assert wire.process.stdin is not None
    await wire.process.stdin.send(line + b"\n")


async def answers(wire: Wire, sent: Mapping[int, str]) -> list[dict[str, Any]]:
    """Wait for these answers, and take them out of the pile."""
    found = []
    for id, said in sent.items():
        try:
            found.append(await wire.answer(id))
        except TimeoutError:
            raise AssertionError(f"no answer to {said}; on stderr: {wire.said()[-3000:]}") from None
        del wire.answers[id]
    return found


def code_of(answer: Mapping[str, Any]) -> str:
    """`success`, the code of a tool's error, or `protocol` and the number of the protocol's."""
    if "error" in answer:
        return f"protocol {answer['error']['code']}"
    result = answer["result"]
    if not result.get("isError"):
        return "success"
    code = result["_meta"][adapter.ERROR_KEY]["code"]
    assert isinstance(code, str)
    return code


def text_of(result: Mapping[str, Any]) -> str:
    """The text of a tool's answer."""
    text = result["content"][0]["text"]
    assert isinstance(text, str)
    return text


def error_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The details of a call that must have failed."""
    assert result.get("isError"), result
    error = result["_meta"][adapter.ERROR_KEY]
    assert isinstance(error, dict)
    return error


def answer_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The structured answer of a call that must have succeeded."""
    assert not result.get("isError"), result
    answer = result["structuredContent"]
    assert isinstance(answer, dict)
    return answer


# ------------------------------------------------------------------------------------------------ what the engine holds


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything that an engine holds: labels by id or name, and what each image name means."""

    containers: Mapping[str, Mapping[str, str]]
    images: Mapping[str, Mapping[str, str]]
    names: Mapping[str, str]
    volumes: Mapping[str, Mapping[str, str]]
    networks: Mapping[str, Mapping[str, str]]


def holdings(docker: DockerCommandLine) -> Holdings:
    """Look at everything. Images that only lie under others are not counted: they are the classic builder's cache."""
    listed = docker(["image", "ls", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]).stdout.splitlines()
    names = {name: id for id, _, name in (line.partition(" ") for line in listed) if name != "<none>:<none>"}
    return Holdings(
        containers=_labels(docker, ["ps", "--all", "--quiet", "--no-trunc"], ["inspect"], "{{.Id}}", ".Config.Labels"),
        images=_labels(
            docker, ["image", "ls", "--quiet", "--no-trunc"], ["image", "inspect"], "{{.Id}}", ".Config.Labels"
        ),
        names=names,
        volumes=_labels(docker, ["volume", "ls", "--quiet"], ["volume", "inspect"], "{{.Name}}", ".Labels"),
        networks=_labels(
            docker, ["network", "ls", "--quiet", "--no-trunc"], ["network", "inspect"], "{{.Id}}", ".Labels"
        ),
    )


def _labels(
    docker: DockerCommandLine, listing: list[str], inspect: list[str], key: str, labels: str
) -> dict[str, dict[str, str]]:
    ids = list(dict.fromkeys(docker(listing).stdout.split()))
    found: dict[str, dict[str, str]] = {}
    for start in range(0, len(ids), 200):
        said = docker([*inspect, "--format", key + " {{json " + labels + "}}", *ids[start : start + 200]], check=False)
        for line in said.stdout.splitlines():
            id, _, text = line.partition(" ")
            found[id] = json.loads(text) or {}
    return found


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -------------------------------------------------------------------------------------------------------------- memory


def memory_kilobytes(pid: int) -> dict[str, int]:
    """`VmRSS` and `VmHWM` (the most it ever was) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in lines)
        if name[:4] in ("VmRS", "VmHW")
    }
