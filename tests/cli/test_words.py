"""Do short forms mean what they should, and is advice for tools turned into words of the command line?"""

from __future__ import annotations

from typing import Any

import click
import pytest

from codomyrmex_containerization.cli import app, arguments, commands, reference, words

TOOLS = app.known_commands()
RUN = next(words.options_of(one.params) for one in app.TABLE if one.name == "run")


@pytest.mark.parametrize(
    ("advice", "wanted"),
    [
        ("container_list(all=true) shows the containers there are", "cxc list --all shows the containers there are"),
        ("see container_runtime_status", "see cxc status"),
        ("pass detach=true, or leave restart out", "pass --detach, or leave restart out"),
        ("pass pull_policy='missing'", "pass --pull missing"),
        ("raise timeout_seconds; finished steps", "raise --timeout; finished steps"),
        ("set policy.allow_privileged=true", "set policy.allow_privileged=true"),
        ("pass engine='docker' or engine='podman'", "pass --engine docker or --engine podman"),
        ("container_control(action='unpause') first", "cxc unpause first"),
        ("container_control(action='stop', timeout_seconds=3)", "cxc stop --timeout 3"),
        ("container_copy(source='web:/a', target='./b')", "cxc cp web:/a ./b"),
        ("", ""),
    ],
)
def test_advice_is_given_in_words_of_the_command_line(advice: str, wanted: str) -> None:
    assert words.for_a_person(advice, TOOLS, RUN) == wanted


def test_what_is_said_of_a_tools_argument_is_said_of_its_option() -> None:
    said = "container_run: timeout_seconds: input should be a number (got 'x')."
    assert words.of_argument(said, "container_run", RUN) == "--timeout: input should be a number (got 'x')."
    assert words.of_argument(said, "container_list", RUN) == said


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(-1, "0s ago"), (59.9, "59s ago"), (119, "119s ago"), (120, "2m ago"), (90_000, "25h ago"), (10**9, "31y ago")],
)
def test_age_is_told_in_the_largest_unit_of_which_there_are_two(seconds: float, wanted: str) -> None:
    assert commands.age(seconds) == wanted


@pytest.mark.parametrize(
    ("texts", "document", "wanted"),
    [
        (("a=b=c", "n:=3", "l:=[1]"), None, {"a": "b=c", "n": 3, "l": [1]}),
        (("p=80", "p=81", "p=82"), None, {"p": ["80", "81", "82"]}),
        (("a=new",), '{"a": "old", "b": 1}', {"a": "new", "b": 1}),
        ((), None, {}),
    ],
)
def test_tool_arguments_are_joined(texts: tuple[str, ...], document: str | None, wanted: dict[str, Any]) -> None:
    assert arguments.tool_arguments(texts, document) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("id=a,env=B", {"a": "env:B"}), ("id=a,src=b/c", {"a": "file:b/c"}), ("type=file,id=a,source=b", {"a": "file:b"})],
)
def test_build_secrets_are_read_as_docker_writes_them(text: str, wanted: dict[str, str]) -> None:
    command = app.root().commands["build"]
    with click.Context(command) as context:
        assert arguments.build_secrets(context, command.params[0], (text,)) == wanted


def test_reference_names_every_command_and_every_option() -> None:
    text = reference.reference()
    assert _missing(app.root(), ["cxc"], text) == []
    assert text == reference.reference()


def _missing(command: click.Command, path: list[str], text: str) -> list[str]:
    missing = [] if len(path) == 1 or f"### {' '.join(path)}\n" in text else [" ".join(path)]
    missing += [
        name for one in command.params if isinstance(one, click.Option) for name in one.opts if name not in text
    ]
    for name, inner in getattr(command, "commands", {}).items():
        missing += _missing(inner, [*path, name], text)
    return missing


def test_every_command_names_a_tool_and_arguments_that_exist() -> None:
    from codomyrmex_containerization.tools import _discovery

    tools = _discovery.all_tools()
    own = {
        "build": {"path", "file", "log"},
        "list": {"no_usage"},
        "run": {"disk_read", "disk_write"},
        "registry copy": {"one_platform"},
    }
    for entry in app.TABLE:
        known = {field.alias or name for name, field in tools[entry.tool].arguments.model_fields.items()}
        assert {one.name for one in entry.params} - own.get(entry.name, set()) <= known
