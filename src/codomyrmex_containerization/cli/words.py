"""How does advice that is written for callers of tools read for a person at a command line?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import click

# The command and its options that stand for each tool, and for a tool whose command depends on an argument ('tool name=value').
Commands = Mapping[str, tuple[str, Mapping[str, str]]]

_ARGUMENT = re.compile(r"\b([a-z_]+)=(?:'([^']*)'|([\w.:/-]+))")


def options_of(parameters: Iterable[click.Parameter]) -> dict[str, str]:
    """Return the option that stands for each argument of a command's tool; '' for what is given by its place."""
    options = {
        one.name: max(one.opts, key=len) if isinstance(one, click.Option) else "" for one in parameters if one.name
    }
    return {"engine": "--engine"} | options


def for_a_person(text: str, commands: Commands, own: Mapping[str, str]) -> str:
    """Turn `container_list(all=true)` into `cxc list --all` and `force=true` into `--force`.

    `commands` gives the command and its options for each tool, `own` the options of the command at hand.
    """

    def call(found: re.Match[str]) -> str:
        name, known = commands[found[1]]
        given = found[2] or ""
        for argument in _ARGUMENT.finditer(given):
            own_command = commands.get(f"{found[1]} {argument[1]}={argument[2]}")
            if own_command is not None:
                name, known = own_command
                given = given.replace(argument[0], "")
        arguments = _with_options(given, known).replace(",", "").strip()
        return f"cxc {name} {arguments}".rstrip()

    if commands:
        names = "|".join(map(re.escape, sorted((one for one in commands if " " not in one), key=len, reverse=True)))
        text = re.sub(rf"\b({names})\b(?:\(([^()]*)\))?", call, text)
    text = _with_options(text, own)
    bare = [name for name, option in own.items() if "_" in name and option]
    if bare:
        text = re.sub(rf"(?<![\w-])({'|'.join(map(re.escape, bare))})\b", lambda found: own[found[1]], text)
    return text


def of_argument(message: str, tool: str, own: Mapping[str, str]) -> str:
    """Turn what is said of a tool's argument, `container_list: status: ...`, into what is said of an option."""
    text = message.removeprefix(f"{tool}: ")
    if text == message:
        return message
    return re.sub(r"^(\w+)(?=\b)", lambda found: own.get(found[1]) or found[1], text)


def _with_options(text: str, known: Mapping[str, str]) -> str:
    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2] if found[2] is not None else found[3]
        if name not in known:
            return found[0]
        return known[name] if value == "true" and known[name] else f"{known[name]} {value}".lstrip()

    return _ARGUMENT.sub(option, text)
