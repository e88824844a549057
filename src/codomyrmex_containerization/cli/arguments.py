"""What do the texts of a command line mean? `K=V`, `id=x,env=Y`, `a:=1` become what tools take."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

Values = Mapping[str, Any]


def pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse `K=V` texts; the last of a name counts."""
    found = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not name or not sign:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE.", context, parameter)
        found[name] = text
    return found


def variables(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse `K=V`, or `K` alone for the value that our own environment gives it (left out where it has none)."""
    found = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE or NAME.", context, parameter)
        if sign:
            found[name] = text
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def labels(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse `NAME=VALUE`, or `NAME` alone for an empty value."""
    return {value.partition("=")[0]: value.partition("=")[2] for value in values if value.partition("=")[0]}


def build_secrets(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse `id=NAME,env=VARIABLE` and `id=NAME,src=FILE`."""
    return dict(_build_secret(context, parameter, value) for value in values)


def _build_secret(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, str]:
    parts = dict(part.partition("=")[::2] for part in value.split(","))
    source = parts.get("src") or parts.get("source")
    if not parts.get("id") or not (source or parts.get("env")) or set(parts) - {"id", "env", "src", "source", "type"}:
        raise click.BadParameter("write id=NAME,env=VARIABLE or id=NAME,src=FILE.", context, parameter)
    return parts["id"], f"file:{source}" if source else f"env:{parts['env']}"


def tool_arguments(texts: tuple[str, ...], document: str | None) -> dict[str, Any]:
    """Join `--args-json` and the `--arg` texts: `name=text`, `name:=JSON`; a name given twice makes a list."""
    found: dict[str, Any] = _json_object(document) if document is not None else {}
    seen: set[str] = set()
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.removesuffix(":"):
            raise click.BadParameter(f"{text!r} is not of the form NAME=TEXT or NAME:=JSON.", param_hint="'--arg'")
        plain = name.removesuffix(":")
        parsed = _json(value, plain) if name.endswith(":") else value
        if plain in seen:
            before = found[plain]
            found[plain] = [*before, parsed] if isinstance(before, list) else [before, parsed]
        else:
            found[plain] = parsed
        seen.add(plain)
    return found


def standard_input(*, what: str) -> str:
    """Read our stdin to its end. Raises UsageError when it is no text."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{what} is no UTF-8 text: it cannot be handed over.") from error


def _json_object(document: str) -> dict[str, Any]:
    text = standard_input(what="stdin") if document == "-" else document
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"it is no JSON: {error}.", param_hint="'--args-json'") from error
    if not isinstance(found, dict):
        raise click.BadParameter("it is no JSON object.", param_hint="'--args-json'")
    return found


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{name}:= expects JSON, not {text[:60]!r}.", param_hint="'--arg'") from error
