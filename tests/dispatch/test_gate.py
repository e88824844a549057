"""May a call be made? Every tool, called by name, whatever the listing says, and with any arguments a client can send."""

from __future__ import annotations

import json
import math
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import hypothesis
import pytest
from hypothesis import strategies as st

from codomyrmex_containerization import config, errors
from codomyrmex_containerization.dispatch import application, gate
from codomyrmex_containerization.models.settings import Settings
from codomyrmex_containerization.tools._decorator import ToolSpec
from tests import tally
from tests.dispatch import harness
from tests.dispatch.harness import House

TOOLS = application.tools()

# For each tool, arguments that pass its checks, and what such a call does.
VALID: dict[str, tuple[dict[str, Any], str]] = {
    "container_runtime_status": ({}, "read"),
    "container_list": ({}, "read"),
    "container_logs": ({"container": "x"}, "read"),
    "container_inspect": ({"container": "x"}, "read"),
    "image_list": ({}, "read"),
    "image_inspect": ({"image": "x"}, "read"),
    "container_build": ({"image_name": "x", "dockerfile_text": "FROM scratch"}, "write"),
    "container_run": ({"image": "x"}, "write"),
    "container_remove": ({"container": "x"}, "destroy"),
    "container_exec": ({"container": "x", "command": "true"}, "destroy"),
    "container_control": ({"container": "x", "action": "stop"}, "destroy"),
    "container_copy": ({"source": "x:/a", "target": "./b"}, "destroy"),
    "image_tag": ({"source": "x", "target": "y"}, "destroy"),
    "image_remove": ({"image": "x"}, "destroy"),
    "volume_list": ({}, "read"),
    "volume_create": ({"name": "xx"}, "write"),
    "volume_remove": ({"volume": "x"}, "destroy"),
    "network_list": ({}, "read"),
    "network_create": ({"name": "x"}, "write"),
    "network_remove": ({"network": "x"}, "destroy"),
    "network_connect": ({"network": "x", "container": "y"}, "destroy"),
    "network_disconnect": ({"network": "x", "container": "y"}, "destroy"),
    "engine_prune": ({"kind": "images", "dry_run": False}, "destroy"),
    "container_events": ({}, "read"),
    "image_load": ({"path": "."}, "destroy"),
    "image_save": ({"image": "x", "path": "./b"}, "destroy"),
    "image_import": ({"path": ".", "tag": "y"}, "destroy"),
    "container_export": ({"container": "x", "path": "./b"}, "destroy"),
    "container_update": ({"container": "x", "memory": "64m"}, "destroy"),
    "container_rename": ({"container": "x", "name": "yy"}, "destroy"),
    "container_top": ({"container": "x"}, "read"),
    "container_diff": ({"container": "x"}, "read"),
    "container_commit": ({"container": "x", "tag": "y"}, "destroy"),
    "container_import": ({"path": "."}, "destroy"),
    "container_create": ({"image": "x"}, "write"),
    "registry_pull": ({"image": "localhost:1/none:1"}, "write"),
    "registry_push": ({"image": "x"}, "destroy"),
    "registry_inspect": ({"reference": "localhost:1/none:1"}, "read"),
    "registry_list": ({"repository": "localhost:1/none"}, "read"),
    "registry_copy": ({"source": "localhost:1/none", "target": "localhost:1/x"}, "destroy"),
    "registry_delete": ({"reference": "localhost:1/none:1"}, "destroy"),
}
PROPERTIES = "wrong and random arguments, without an engine"
READING = sorted(name for name, (_, effect) in VALID.items() if effect == "read")
WRITING = sorted(name for name, (_, effect) in VALID.items() if effect != "read")


def opened(**flags: Any) -> AbstractAsyncContextManager[House]:
    """Open an application that offers every tool, unless the flags say which."""
    return harness.opened(**{"toolsets": ["all"], **flags})


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where no engine answers, so nothing can be created."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")


def test_every_tool_is_in_the_table_of_this_file() -> None:
    assert set(VALID) == set(TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_annotations_state_the_worst_that_a_call_may_do(name: str) -> None:
    spec, (_, effect) = TOOLS[name], VALID[name]
    assert spec.read_only is (effect == "read")
    assert spec.destructive is (effect == "destroy")
    assert spec.destructive is (spec.plan is not None)


# ---------------------------------------------------------------------------------------------------------- read-only


@pytest.mark.parametrize("name", WRITING)
async def test_read_only_server_refuses_every_tool_that_writes(name: str, no_engine: None) -> None:
    async with opened(read_only=True, confirmation="never") as house:
        outcome = await house.fails("refused", name, VALID[name][0])
        assert "read-only" in outcome.text
        assert "--read-only" in outcome.error_data["hint"]
        assert house.audit()[-1]["outcome"] == "refused"


@pytest.mark.parametrize("name", READING)
async def test_read_only_server_lets_every_tool_read(name: str, no_engine: None) -> None:
    async with opened(read_only=True) as house:
        outcome = await house.call(name, VALID[name][0])
        assert outcome.error_data.get("code") in (None, "engine_unavailable")


@pytest.mark.parametrize(("source", "target"), [("x:/a", "./b"), ("./b", "x:/a")])
async def test_read_only_server_refuses_a_copy_in_either_direction(source: str, target: str, no_engine: None) -> None:
    async with opened(read_only=True) as house:
        await house.fails("refused", "container_copy", source=source, target=target)


# ------------------------------------------------------------------------------------------------------- switched off


@pytest.mark.parametrize("name", TOOLS)
async def test_excluded_tool_is_refused_when_it_is_called_by_name(name: str, no_engine: None) -> None:
    async with opened(exclude_tools=[name]) as house:
        outcome = await house.fails("refused", name, VALID[name][0])
        assert "exclude_tools" in outcome.text


@pytest.mark.parametrize("name", TOOLS)
async def test_tool_beside_the_enabled_ones_is_refused_when_it_is_called_by_name(name: str, no_engine: None) -> None:
    other = next(one for one in TOOLS if one != name)
    async with opened(toolsets=[], tools=[other]) as house:
        outcome = await house.fails("refused", name, VALID[name][0])
        assert TOOLS[name].toolset in outcome.text
        assert list(house.application.dispatcher.offered) == [other]


def test_unknown_toolset_or_tool_in_the_settings_ends_the_start() -> None:
    for flags in ({"toolsets": ["cores"]}, {"tools": ["container_lst"]}, {"exclude_tools": ["x"]}):
        with pytest.raises(errors.InvalidArgument, match="does not exist"):
            application.open_application(config.load(flags=flags))


# ------------------------------------------------------------------------------------------------------------ mistypes


@pytest.mark.parametrize(
    ("name", "near"), [("container_lst", "container_list"), ("containerrun", "container_run"), ("docker_logs", "logs")]
)
async def test_unknown_tool_names_the_nearest(name: str, near: str, no_engine: None) -> None:
    async with opened() as house:
        outcome = await house.fails("not_found", name)
        assert near in outcome.error_data["hint"]


@pytest.mark.parametrize("name", ["", "\x00", "\ud800", "x" * 100_000, "../../etc/passwd", "-", "é", "container_run\n"])
async def test_unknown_tool_of_any_name_is_not_found(name: str, no_engine: None) -> None:
    async with opened() as house:
        outcome = await house.fails("not_found", name)
        assert len(outcome.text) < 2_000


@pytest.mark.parametrize("name", TOOLS)
async def test_unknown_argument_names_the_nearest(name: str, no_engine: None) -> None:
    fields = [field.alias or key for key, field in TOOLS[name].arguments.model_fields.items()]
    async with opened() as house:
        for field in fields:
            outcome = await house.fails("invalid_argument", name, {**VALID[name][0], f"{field}x": 1})
            assert field in outcome.error_data["hint"]
        await house.fails("invalid_argument", name, {**VALID[name][0], "zzzzzzzz": 1})


@pytest.mark.parametrize("name", [name for name, spec in TOOLS.items() if not spec.destructive])
async def test_confirmation_token_is_no_argument_of_a_tool_that_destroys_nothing(name: str, no_engine: None) -> None:
    async with opened() as house:
        await house.fails("invalid_argument", name, {**VALID[name][0], "confirm_token": "x"})


def required(spec: ToolSpec) -> list[str]:
    return [field.alias or key for key, field in spec.arguments.model_fields.items() if field.is_required()]


@pytest.mark.parametrize("name", [name for name, spec in TOOLS.items() if required(spec)])
async def test_missing_argument_is_named(name: str, no_engine: None) -> None:
    async with opened() as house:
        for field in required(TOOLS[name]):
            given = {key: value for key, value in VALID[name][0].items() if key != field}
            outcome = await house.fails("invalid_argument", name, given)
            assert f"{field} is required" in outcome.text


# ----------------------------------------------------------------------------------------------- what clients also send


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"ports": '["80", "8080:80"]'}, {"ports": ["80", "8080:80"]}),
        ({"env": '{"A": "1"}'}, {"env": {"A": "1"}}),
        ({"mounts": "[]"}, {"mounts": []}),
        ({"limits": '{"cpu_shares": 512}'}, {"limits": {"cpu_shares": 512}}),
        ({"healthcheck": '{"command": "true"}'}, {"healthcheck": {"command": "true"}}),
        ({"command": '["sh", "-c", "true"]'}, {"command": '["sh", "-c", "true"]'}),
    ],
)
def test_list_or_object_sent_as_a_json_text_is_read(given: dict[str, Any], expected: dict[str, Any]) -> None:
    parsed = gate.parse(TOOLS["container_run"], {"image": "x", **given})
    shown = json.loads(parsed.model_dump_json(exclude_unset=True))
    for key, value in expected.items():
        assert shown[key] == (value if not isinstance(value, dict) else shown[key] | value)


@pytest.mark.parametrize("text", ["[", '["80"', "{", "[1,,]", "[" * 100_000])
async def test_json_text_that_is_broken_is_an_invalid_argument(text: str, no_engine: None) -> None:
    async with opened() as house:
        await house.fails("invalid_argument", "container_run", image="x", ports=text)


NESTED: Any = "x"
for _ in range(5_000):
    NESTED = [NESTED]

WRONG: dict[str, Any] = {
    "NUL": "a\0b",
    "lone surrogate": "a\ud800",
    "a megabyte": "x" * 1_000_000,
    "control characters": "a\x1b[31mb\x07",
    "leading dash": "--privileged",
    "empty": "",
    "number": 3.5,
    "not a number": math.nan,
    "infinite": math.inf,
    "huge": 10**400,
    "boolean": True,
    "list": [1, None, {}],
    "object": {"a": {"b": [1]}},
    "null": None,
    "nested": NESTED,
    "bytes": b"\xff",
}


def fields_of(name: str) -> list[str]:
    return [field.alias or key for key, field in TOOLS[name].arguments.model_fields.items()]


@pytest.mark.attack(PROPERTIES)
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", TOOLS)
async def test_wrong_value_of_any_argument_is_never_an_internal_error(name: str, wrong: str, no_engine: None) -> None:
    value = WRONG[wrong]
    async with opened(confirmation="never") as house:
        for field in fields_of(name):
            tally.tried()
            outcome = await house.call(name, {**VALID[name][0], field: value})
            code = outcome.error_data.get("code")
            assert code in (None, *EXPECTED), f"{field}: {outcome.text[:500]}"
            if wrong in ("NUL", "lone surrogate", "bytes", "nested"):
                assert code == "invalid_argument", f"{field}: {outcome.text[:500]}"
            assert len(outcome.text) <= 20_000
        assert len(house.audit()) == len(fields_of(name))


# What a call without an engine may come to: never a defect.
EXPECTED = ("invalid_argument", "engine_unavailable", "refused", "not_found", "cursor_mismatch", "unsupported")

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "-", "--rm", "a" * 300, "x:y", "x:/y", "/", "../..", "~", "[1]", "{}", "\0", "*", "$(id)", "`id`"]
    ),
    st.from_regex(r"[a-z0-9:/.@_-]{1,40}", fullmatch=True),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A tool and arguments that begin as valid ones and then go astray."""
    name = draw(st.sampled_from(sorted(TOOLS)))
    arguments = dict(VALID[name][0])
    for field in draw(st.lists(st.sampled_from(fields_of(name)), min_size=1, max_size=4, unique=True)):
        arguments[field] = draw(JSON)
    return name, arguments


@pytest.mark.attack(PROPERTIES)
@hypothesis.settings(
    max_examples=250, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)
@hypothesis.given(called=calls())
def test_no_arguments_whatever_are_an_internal_error(called: tuple[str, dict[str, Any]], no_engine: None) -> None:
    name, arguments = called
    tally.tried()

    async def call() -> None:
        async with opened(confirmation="never") as house:
            outcome = await house.call(name, arguments)
            assert outcome.error_data.get("code") in (None, *EXPECTED), outcome.text
            json.dumps(outcome.error_data).encode()

    anyio.run(call)


# ------------------------------------------------------------------------------------------------------- the pure parts


def test_offered_tools_follow_the_settings() -> None:
    assert set(gate.offered(TOOLS, Settings())) == {name for name, spec in TOOLS.items() if spec.essential}
    assert set(gate.offered(TOOLS, Settings(toolsets=("all",)))) == set(TOOLS)
    assert set(gate.offered(TOOLS, Settings(toolsets=(), tools=("container_list",)))) == {"container_list"}
    assert not gate.offered(TOOLS, Settings(toolsets=()))
    assert "container_run" not in gate.offered(TOOLS, Settings(exclude_tools=("container_run",)))
    assert "container_run" not in gate.offered(
        TOOLS, Settings(tools=("container_run",), exclude_tools=("container_run",))
    )


@pytest.mark.parametrize("default", ["container_list", "container_run", "container_logs"])
def test_names_that_shadow_pythons_own_are_accepted_as_arguments(default: str) -> None:
    spec = TOOLS[default]
    assert fields_of(default) == list(spec.input_schema()["properties"])
