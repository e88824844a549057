"""Does the real server speak the protocol as its clients expect: what it lists, answers, refuses and asks?"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import anyio
import jsonschema  # type: ignore[import-untyped]  # it ships no types
import mcp_types as types
import pytest

from codomyrmex_containerization import __version__
from codomyrmex_containerization.server import adapter
from tests import backends
from tests.backends import DockerCommandLine
from tests.server import faces
from tests.server.faces import ERAS, Action, Era, Face, Person, answer_of, connected, error_of, every_face, text_of

READING = [
    "container_inspect",
    "container_list",
    "container_logs",
    "container_runtime_status",
    "image_inspect",
    "image_list",
]
DESTROYING = ["container_control", "container_copy", "container_exec", "container_remove", "image_remove", "image_tag"]
REACHING_OUT = ["container_build", "container_exec", "container_run"]
TOOLS = sorted({*READING, *DESTROYING, *REACHING_OUT})
# Of the default listing, without output schemas: what a client puts before its model.
LISTING_BYTES = 24_000

every_era = pytest.mark.parametrize("era", ERAS)


# ---------------------------------------------------------------------------------------------------------- listing


@every_face
async def test_discovery_gives_name_version_and_short_instructions(face: Face) -> None:
    async with connected(face) as client:
        assert client.protocol_version == faces.PROTOCOL_VERSIONS[face.era]
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == (adapter.NAME, __version__)
        assert client.instructions
        assert len(client.instructions) < 2048
        assert client.server_capabilities is not None
        assert client.server_capabilities.tools is not None


@every_face
async def test_listing_is_sorted_annotated_and_described(face: Face) -> None:
    async with connected(face) as client:
        tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == TOOLS
    for tool in tools:
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,63}", tool.name)
        assert tool.title
        assert tool.description
        assert tool.annotations is not None
        assert tool.annotations.title == tool.title
        hints = tool.annotations.model_dump(exclude={"title"})
        assert len(hints) == 4
        assert None not in hints.values(), f"{tool.name} leaves an annotation to the client's default"


async def test_annotations_state_the_worst_case_of_each_tool() -> None:
    async with connected(Face("memory", "modern")) as client:
        tools = (await client.list_tools()).tools
    hints = {tool.name: tool.annotations for tool in tools if tool.annotations is not None}
    assert [name for name, one in hints.items() if one.read_only_hint] == READING
    assert [name for name, one in hints.items() if one.destructive_hint] == DESTROYING
    assert [name for name, one in hints.items() if one.open_world_hint] == REACHING_OUT


async def test_every_argument_is_described_bounded_and_closed() -> None:
    async with connected(Face("memory", "modern")) as client:
        tools = (await client.list_tools()).tools
    for tool in tools:
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        assert tool.input_schema["additionalProperties"] is False
        for place, schema in _properties(tool.input_schema, tool.name):
            assert schema.get("description"), f"{place} is not described"
            assert _is_bounded(schema), f"{place} has no bound"
        for place, schema in _objects(tool.input_schema, tool.name):
            assert "additionalProperties" in schema, f"{place} takes anything"


async def test_listing_stays_within_its_size() -> None:
    async with connected(Face("memory", "modern")) as client:
        tools = (await client.list_tools()).tools
    without_output = [tool.model_copy(update={"output_schema": None}) for tool in tools]
    size = sum(len(tool.model_dump_json(by_alias=True, exclude_none=True)) for tool in without_output)
    assert size <= LISTING_BYTES


@every_face
async def test_output_schemas_can_be_left_out(face: Face) -> None:
    async with connected(face, output_schemas=False) as client:
        assert all(tool.output_schema is None for tool in (await client.list_tools()).tools)


# ---------------------------------------------------------------------------------------------------------- answers


@every_face
async def test_answer_of_every_tool_fits_its_published_schema(face: Face, busybox_image: str) -> None:
    name = _fresh("schema")
    image = f"localhost/{name}"
    calls: list[tuple[str, dict[str, Any]]] = [
        ("container_runtime_status", {}),
        ("container_build", {"image_name": image, "dockerfile_text": f"FROM {busybox_image}\nENV NEW={name}\n"}),
        ("image_list", {"name": name}),
        ("image_inspect", {"image": image}),
        ("image_tag", {"source": image, "target": f"{image}:other"}),
        ("container_run", {"image": image, "command": ["sh", "-c", "echo out; echo err >&2; exit 3"]}),
        ("container_run", {"image": image, "command": "sleep 60", "detach": True, "name": name}),
        ("container_list", {}),
        ("container_list", {"limit": 1, "usage": False, "all": True}),
        ("container_inspect", {"container": name}),
        ("container_exec", {"container": name, "command": "id -u"}),
        ("container_copy", {"source": f"{name}:/etc/passwd", "target": "./passwd"}),
        ("container_logs", {"container": name}),
        ("container_control", {"container": name, "action": "pause"}),
        ("container_remove", {"container": name, "force": True}),
        ("image_remove", {"image": f"{image}:other"}),
        ("image_remove", {"image": image}),
    ]
    async with connected(face) as client:
        published = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}
        for tool, arguments in calls:
            result = await client.call_tool(tool, arguments)
            answer = answer_of(result)
            schema = published[tool]
            assert schema is not None
            jsonschema.validate(answer, schema, cls=jsonschema.Draft202012Validator)
            assert answer["status"] == "success"
            assert text_of(result)
    assert {tool for tool, _ in calls} == set(TOOLS)


@every_face
async def test_run_tells_output_and_exit_code_apart(face: Face, busybox_image: str) -> None:
    async with connected(face) as client:
        result = await client.call_tool(
            "container_run", {"image": busybox_image, "command": ["sh", "-c", "echo out; echo err >&2; exit 3"]}
        )
    answer = answer_of(result)
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("out\n", "err\n", 3)


@every_face
async def test_build_reports_progress_by_step(face: Face, busybox_image: str, docker_cli: DockerCommandLine) -> None:
    name, steps = f"localhost/{_fresh('progress')}", list[str]()

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(message or "")

    dockerfile = f"FROM {busybox_image}\nRUN true\nENV A=1\n"
    async with connected(face) as client:
        answer = answer_of(
            await client.call_tool(
                "container_build", {"image_name": name, "dockerfile_text": dockerfile}, progress_callback=progress
            )
        )
    docker_cli(["image", "rm", "--force", name])
    assert answer["image"] == f"{name}:latest"
    assert any("RUN true" in step for step in steps)


# ----------------------------------------------------------------------------------------------------------- errors


@every_face
@pytest.mark.parametrize(
    ("tool", "arguments", "code", "says"),
    [
        ("container_lst", {}, "not_found", "container_list"),
        ("container_run", {"imge": "x"}, "invalid_argument", "did you mean 'image'?"),
        ("container_run", {}, "invalid_argument", "image is required"),
        ("container_run", {"image": "x", "timeout_seconds": "soon"}, "invalid_argument", "timeout_seconds"),
        ("container_list", {"limit": 0}, "invalid_argument", "limit"),
        ("container_list", {"limit": 501}, "invalid_argument", "limit"),
        ("container_list", {"status": "asleep"}, "invalid_argument", "status"),
        ("container_list", {"cursor": "made-up"}, "cursor_mismatch", "cursor"),
        ("container_list", {"engine": "dokcer"}, "invalid_argument", "docker"),
        ("container_logs", {"container": "-rf"}, "invalid_argument", "-rf"),
        ("container_logs", {"container": "a\0b"}, "invalid_argument", "NUL"),
        ("container_run", {"image": "-v"}, "invalid_argument", "-v"),
        ("container_run", {"image": "x", "limits": {"cpu": 1}}, "invalid_argument", "cpu"),
    ],
)
async def test_call_that_the_model_can_mend_is_an_error_result(
    face: Face, tool: str, arguments: dict[str, Any], code: str, says: str, docker_socket: object
) -> None:
    async with connected(face) as client:
        result = await client.call_tool(tool, arguments)
        error = error_of(result)
        assert error["code"] == code
        assert error["retryable"] is False
        assert says in text_of(result)
        answer_of(await client.call_tool("container_runtime_status", {}))


@every_face
async def test_missing_container_is_named_with_its_nearest(
    face: Face, busybox_image: str, docker_cli: DockerCommandLine, outside: str
) -> None:
    async with connected(face) as client:
        result = await client.call_tool("container_logs", {"container": outside[:-1] + "_"})
    assert error_of(result)["code"] == "not_found"
    assert outside in text_of(result)


@every_face
async def test_failing_build_step_names_instruction_line_and_exit_code(face: Face, busybox_image: str) -> None:
    dockerfile = f"FROM {busybox_image}\n\nRUN echo before && \\\n  exit 7\n"
    async with connected(face) as client:
        result = await client.call_tool("container_build", {"image_name": "localhost/x", "dockerfile_text": dockerfile})
    error = error_of(result)
    assert error["code"] == "build_failed"
    assert (error["line"], error["exit_code"]) == (3, 7)
    assert "before" in text_of(result)


@every_face
async def test_read_only_server_neither_lists_nor_runs_what_writes(face: Face, outside: str) -> None:
    async with connected(face, read_only=True) as client:
        listed = [tool.name for tool in (await client.list_tools()).tools]
        assert [name for name in listed if name not in ("container_copy",)] == READING
        for tool, arguments in (
            ("container_remove", {"container": outside, "force": True}),
            ("container_run", {"image": "localhost/x"}),
            ("container_build", {"image_name": "localhost/x", "dockerfile_text": "FROM scratch\n"}),
            ("container_exec", {"container": outside, "command": "true"}),
            ("container_control", {"container": outside, "action": "stop"}),
            ("container_copy", {"source": "./x", "target": f"{outside}:/tmp"}),
            ("container_copy", {"source": f"{outside}:/etc/passwd", "target": "./passwd"}),
            ("image_tag", {"source": backends.BUSYBOX_IMAGE, "target": "localhost/x:1"}),
            ("image_remove", {"image": backends.BUSYBOX_IMAGE}),
        ):
            error = error_of(await client.call_tool(tool, arguments))
            assert error["code"] == "refused"
            assert "read-only" in error["message"]


# ----------------------------------------------------------------------------------------------------- confirmation


@every_face
async def test_accepted_removal_is_done_after_one_full_question(
    face: Face, outside: str, docker_cli: DockerCommandLine
) -> None:
    docker_cli(["exec", outside, "sh", "-c", "echo 12345678 > /work.txt"])
    person = Person("accept")
    async with connected(face, person=person) as client:
        answer = answer_of(await client.call_tool("container_remove", {"container": outside, "force": True}))
    assert answer["name"] == outside
    assert not _exists(docker_cli, outside)
    (question,) = person.asked
    assert question.startswith(f"Remove container {outside}?")
    for part in (_id(outside, answer), "running", "its running processes", "9 bytes", "its log"):
        assert part in question


@every_face
@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_removal_that_the_person_does_not_want_is_not_done(
    face: Face, action: Action, outside: str, docker_cli: DockerCommandLine
) -> None:
    person = Person(action)
    async with connected(face, person=person) as client:
        error = error_of(await client.call_tool("container_remove", {"container": outside, "force": True}))
    assert error["code"] == "declined"
    assert error["retryable"] is False
    assert len(person.asked) == 1
    assert _exists(docker_cli, outside)


@every_face
async def test_accepted_form_without_the_tick_is_a_no(face: Face, outside: str, docker_cli: DockerCommandLine) -> None:
    async with connected(face, person=Person("accept", confirm=False)) as client:
        error = error_of(await client.call_tool("container_remove", {"container": outside, "force": True}))
    assert error["code"] == "declined"
    assert _exists(docker_cli, outside)


@every_face
async def test_state_that_changes_while_the_person_thinks_is_not_lost(
    face: Face, outside: str, docker_cli: DockerCommandLine
) -> None:
    async def restart() -> None:
        await anyio.to_thread.run_sync(lambda: docker_cli(["restart", "--time", "0", outside]))

    async with connected(face, person=Person("accept", meanwhile=restart)) as client:
        error = error_of(await client.call_tool("container_remove", {"container": outside, "force": True}))
    assert error["code"] == "conflict"
    assert _exists(docker_cli, outside)


@every_face
async def test_client_that_cannot_ask_gets_a_token_that_works_once(
    face: Face, outside: str, docker_cli: DockerCommandLine
) -> None:
    call = {"container": outside, "force": True}
    async with connected(face) as client:
        first = await client.call_tool("container_remove", call)
        error = error_of(first)
        assert error["code"] == "confirmation_required"
        token = _token(first)
        assert f"confirm_token: {token}" in text_of(first)
        assert any(outside in one and "running" in one for one in error["lost"])
        assert _exists(docker_cli, outside)

        answer_of(await client.call_tool("container_remove", {**call, "confirm_token": token}))
        assert not _exists(docker_cli, outside)

        _start(docker_cli, outside)
        replayed = error_of(await client.call_tool("container_remove", {**call, "confirm_token": token}))
        assert replayed["code"] == "confirmation_required"
        assert "used already" in replayed["message"]
        assert _exists(docker_cli, outside)


@every_face
async def test_token_opens_nothing_but_the_call_it_was_given_for(
    face: Face, outside: str, another: str, docker_cli: DockerCommandLine
) -> None:
    async with connected(face) as client:

        async def fresh() -> str:
            return _token(await client.call_tool("container_remove", {"container": outside, "force": True}))

        async def refused(**arguments: Any) -> str:
            error = error_of(await client.call_tool("container_remove", arguments))
            assert error["code"] == "confirmation_required"
            assert _exists(docker_cli, outside)
            assert _exists(docker_cli, another)
            return str(error["message"])

        forged = await refused(container=outside, force=True, confirm_token="forged-token-1234")
        assert "not one of this server" in forged
        assert "another call" in await refused(container=another, force=True, confirm_token=await fresh())
        assert "another call" in await refused(container=outside, force=True, volumes=True, confirm_token=await fresh())
        token = await fresh()
        docker_cli(["restart", "--time", "0", outside])
        assert "the state has changed" in await refused(container=outside, force=True, confirm_token=token)
        token = await fresh()
        docker_cli(["stop", "--time", "0", outside])
        assert "another call" in await refused(container=outside, force=False, confirm_token=token)
        mistyped = await client.call_tool("container_remove", {"container": outside, "confirm_token": 7})
        assert error_of(mistyped)["code"] == "confirmation_required"
        assert _exists(docker_cli, outside)


@every_era
async def test_token_of_another_server_opens_nothing(era: Era, outside: str, docker_cli: DockerCommandLine) -> None:
    call = {"container": outside, "force": True}
    async with connected(Face("memory", era)) as one, connected(Face("memory", era)) as other:
        token = _token(await one.call_tool("container_remove", call))
        error = error_of(await other.call_tool("container_remove", {**call, "confirm_token": token}))
    assert error["code"] == "confirmation_required"
    assert _exists(docker_cli, outside)


@every_face
async def test_own_containers_are_removed_without_a_question(
    face: Face, busybox_image: str, docker_cli: DockerCommandLine
) -> None:
    name, person = _fresh("own"), Person("decline")
    async with connected(face, person=person) as client:
        answer_of(
            await client.call_tool(
                "container_run", {"image": busybox_image, "command": "sleep 600", "detach": True, "name": name}
            )
        )
        answer_of(await client.call_tool("container_remove", {"container": name, "force": True}))
    assert person.asked == []
    assert not _exists(docker_cli, name)


@every_face
async def test_labels_of_ours_on_a_strangers_container_open_nothing(
    face: Face, busybox_image: str, docker_cli: DockerCommandLine, session_label: str
) -> None:
    own, copied = _fresh("own"), _fresh("copied")
    async with connected(face) as client:
        answer_of(
            await client.call_tool(
                "container_run", {"image": busybox_image, "command": "sleep 600", "detach": True, "name": own}
            )
        )
        labels = json.loads(docker_cli(["inspect", "--format", "{{json .Config.Labels}}", own]).stdout)
        options = [option for label in labels.items() for option in ("--label", "=".join(label))]
        docker_cli(
            ["run", "--detach", "--name", copied, *options, "--label", session_label, busybox_image, "sleep", "600"]
        )
        try:
            error = error_of(await client.call_tool("container_remove", {"container": copied, "force": True}))
            assert error["code"] == "confirmation_required"
            assert _exists(docker_cli, copied)
        finally:
            docker_cli(["rm", "--force", own, copied])


@every_face
async def test_mode_elicit_refuses_a_client_that_cannot_ask(
    face: Face, outside: str, docker_cli: DockerCommandLine
) -> None:
    async with connected(face, confirmation="elicit") as client:
        error = error_of(await client.call_tool("container_remove", {"container": outside, "force": True}))
    assert error["code"] == "refused"
    assert "confirm_token" not in error
    assert _exists(docker_cli, outside)


@every_face
async def test_mode_token_asks_no_person(face: Face, outside: str, docker_cli: DockerCommandLine) -> None:
    person, call = Person("decline"), {"container": outside, "force": True}
    async with connected(face, person=person, confirmation="token") as client:
        token = _token(await client.call_tool("container_remove", call))
        answer_of(await client.call_tool("container_remove", {**call, "confirm_token": token}))
    assert person.asked == []
    assert not _exists(docker_cli, outside)


@every_face
async def test_mode_never_removes_at_once(face: Face, outside: str, docker_cli: DockerCommandLine) -> None:
    person = Person("decline")
    async with connected(face, person=person, confirmation="never") as client:
        answer_of(await client.call_tool("container_remove", {"container": outside, "force": True}))
    assert person.asked == []
    assert not _exists(docker_cli, outside)


@every_face
async def test_running_container_is_not_removed_without_force(
    face: Face, outside: str, docker_cli: DockerCommandLine
) -> None:
    person = Person("accept")
    async with connected(face, person=person) as client:
        error = error_of(await client.call_tool("container_remove", {"container": outside}))
    assert error["code"] == "conflict"
    assert "force=true" in error["hint"]
    assert person.asked == []
    assert _exists(docker_cli, outside)


# ---------------------------------------------------------------------------------------------------------- helpers


@pytest.fixture
def outside(docker_cli: DockerCommandLine, busybox_image: str) -> Iterator[str]:
    """A running container that somebody else made."""
    name = _fresh("outside")
    _start(docker_cli, name)
    yield name
    docker_cli(["rm", "--force", name], check=False)


@pytest.fixture
def another(docker_cli: DockerCommandLine, busybox_image: str) -> Iterator[str]:
    """A second one."""
    name = _fresh("another")
    _start(docker_cli, name)
    yield name
    docker_cli(["rm", "--force", name], check=False)


def _start(docker: DockerCommandLine, name: str) -> None:
    label = f"{backends.TEST_LABEL}={backends.SESSION_ID}"
    docker(["run", "--detach", "--name", name, "--label", label, backends.BUSYBOX_IMAGE, "sleep", "600"])


def _exists(docker: DockerCommandLine, name: str) -> bool:
    return docker(["container", "inspect", name], check=False).returncode == 0


def _fresh(what: str) -> str:
    return f"cxc-{what}-{uuid.uuid4().hex[:8]}"


def _token(result: types.CallToolResult) -> str:
    token = error_of(result)["confirm_token"]
    assert isinstance(token, str)
    return token


def _id(name: str, answer: dict[str, Any]) -> str:
    assert answer["name"] == name
    return str(answer["id"])


def _properties(schema: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, one in schema.get("properties", {}).items():
        yield f"{place}.{name}", one
        yield from _properties(one, f"{place}.{name}")


def _objects(schema: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if schema.get("type") == "object":
        yield place, schema
    for name, one in schema.get("properties", {}).items():
        yield from _objects(one, f"{place}.{name}")


def _is_bounded(schema: dict[str, Any]) -> bool:
    match schema.get("type"):
        case "array":
            return "maxItems" in schema
        case "object":
            return "properties" in schema or "maxProperties" in schema
        case "integer" | "number":
            return "maximum" in schema
    return True
