"""How does advice that is written for callers of tools read for a person at a command line?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import click

# The command and its options that stand for each tool.
Commands = Mapping[str, tuple[str, Mapping[str, str]]]

_ARGUMENT = re.compile(r"\b([a-z_]+)=(?:'([^']*)'|([\w.:/-]+))")


def options_of(parameters: Iterable[click.Parameter]) -> dict[str, str]:
    """Return the option that stands for each argument of a command's tool."""
    return {one.name: max(one.opts, key=len) for one in parameters if isinstance(one, click.Option) and one.name}


def for_a_person(text: str, commands: Commands, own: Mapping[str, str]) -> str:
    """Turn `container_list(all=true)` into `cxc list --all` and `force=true` into `--force`.

    `commands` gives the command and its options for each tool, `own` the options of the command at hand.
    """

    def call(found: re.Match[str]) -> str:
        name, known = commands[found[1]]
        arguments = _with_options(found[2] or "", known).replace(",", "")
        return f"cxc {name} {arguments}".rstrip()

    if commands:
        names = "|".join(map(re.escape, sorted(commands, key=len, reverse=True)))
        text = re.sub(rf"\b({names})\b(?:\(([^()]*)\))?", call, text)
    text = _with_options(text, own)
    bare = [name for name in own if "_" in name]
    if bare:
        text = re.sub(rf"(?<![\w-])({'|'.join(map(re.escape, bare))})\b", lambda found: own[found[1]], text)
    return text


def _with_options(text: str, known: Mapping[str, str]) -> str:
    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2] if found[2] is not None else found[3]
        if name not in known:
            return found[0]
        return known[name] if value == "true" else f"{known[name]} {value}"

    return _ARGUMENT.sub(option, text)
