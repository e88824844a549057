"""Which parts of the documents follow from the code? This writes them between their markers; `--check` says which are out of date."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import generate_mcp_tools

from codomyrmex_containerization import config, errors, pipeline, redact
from codomyrmex_containerization.dispatch import application, call, plain, portal
from codomyrmex_containerization.models.settings import Settings
from codomyrmex_containerization.server import adapter
from codomyrmex_containerization.tools import _decorator, _discovery
from codomyrmex_containerization.tools._decorator import ToolSpec, compact
from codomyrmex_containerization.upstream import config as upstream_config
from codomyrmex_containerization.upstream import functions, manager

ROOT = Path(__file__).resolve().parent.parent
SNAPSHOT = "tests/toollist.json"
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOWHERE = Path("/nonexistent")


class OutOfStepError(Exception):
    """A document and this script do not fit together."""


# --------------------------------------------------------------------------------------------------------------- markdown


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; bars inside cells are escaped, line ends become blanks."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def code(text: str) -> str:
    """Return a text as code within a line."""
    return f"`{text}`" if text else ""


def block(text: str, language: str) -> str:
    """Return a text as a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def summary(text: str | None) -> str:
    """Return the first sentence or paragraph of a docstring on one line."""
    return " ".join(re.split(r"\n\s*\n", inspect.cleandoc(text or ""))[0].split())


# ------------------------------------------------------------------------------------------------------------------ tools


# Tools that may destroy and ask only in some cases.
_ASKS_FOR_OTHERS = 'may destroy; with `policy.foreign = "ask"` asks first'
_ASKS = {
    "container_control": _ASKS_FOR_OTHERS,
    "container_commit": "may destroy: asks before it takes a name from another image",
    "container_copy": "may destroy: asks before it overwrites a host file",
    "container_exec": _ASKS_FOR_OTHERS,
    "container_export": "may destroy: asks before it overwrites a host file",
    "container_import": "may destroy: asks before it mounts what is this machine's",
    "container_rename": "may destroy: asks unless this run created the container",
    "container_update": _ASKS_FOR_OTHERS,
    "image_import": "may destroy: asks before it takes a name from another image",
    "image_load": "may destroy: asks before it takes a name from another image",
    "image_save": "may destroy: asks before it overwrites a host file",
    "registry_copy": "may destroy: asks unless `policy.push_registries` lists the target",
    "registry_push": "may destroy: asks unless `policy.push_registries` lists the registry",
}


def effect(spec: ToolSpec) -> str:
    """Say in a word what the tool's worst call does."""
    if spec.destructive:
        return _ASKS.get(spec.name, "may destroy: asks first")
    return "reads" if spec.read_only else "writes"


def phase(spec: ToolSpec) -> str:
    """Say in which of the phases an agent uses the tool."""
    if spec.toolset == "security":
        return "VERIFY"
    is_for_images = spec.toolset == "registry" or spec.name.startswith("image_") or spec.name == "container_build"
    return "BUILD" if is_for_images else "EXECUTE"


def trust(spec: ToolSpec) -> str:
    """Return the trust level that a bridge may give the tool: what it reads is safe, the rest is not."""
    return "Safe" if spec.read_only else "Destructive" if spec.destructive else "Writes"


def tools_table(tools: Mapping[str, ToolSpec]) -> str:
    """Return README's table."""
    rows = [(code(spec.name), summary(spec.description), effect(spec)) for spec in tools.values()]
    return table(("tool", "what it does", "effect"), rows)


def phases_table(tools: Mapping[str, ToolSpec]) -> str:
    """Return PAI's table."""
    order = ("BUILD", "EXECUTE", "VERIFY")
    rows = [
        (f"**{name}**", code(spec.name), summary(spec.description), trust(spec), plain.CATEGORY)
        for name in order
        for spec in tools.values()
        if phase(spec) == name
    ]
    missing = [
        (f"**{name}**", "-", "not yet", "-", "-") for name in order if not any(f"**{name}**" == row[0] for row in rows)
    ]
    return table(("phase", "tool", "what it does", "trust level", "category"), [*rows, *missing])


def tool_sections(tools: Mapping[str, ToolSpec]) -> str:
    """Return MCP_TOOL_SPECIFICATION's sections."""
    return "\n\n".join(tool_section(spec) for spec in tools.values())


def tool_section(spec: ToolSpec) -> str:
    """Return one tool's section."""
    published = adapter.tool(spec, output_schema=True).model_dump(mode="json", by_alias=True, exclude_none=True)
    notes = {name: value for name, value in published["annotations"].items() if name != "title"}
    answer = compact(spec.answer.model_json_schema(mode="validation"))
    listed = "in the default listing" if spec.essential else "only with its toolset or by name"
    parts = [
        f"## {spec.name}",
        spec.description,
        table(
            ("invocation name", "title", "toolset", *notes),
            [
                (
                    code(spec.name),
                    spec.title,
                    f"{spec.toolset}, {listed}",
                    *(str(value).lower() for value in notes.values()),
                )
            ],
        ),
        "### Input of " + spec.name,
        table(("argument", "type", "default", "meaning"), input_rows(published["inputSchema"])),
        "### Output of " + spec.name,
        table(("field", "type", "present", "meaning"), output_rows(answer)),
        "### Errors of " + spec.name,
        table(("code", "when"), [(code(name), when) for name, when in tool_errors(spec).items()]),
        "### Idempotency of " + spec.name,
        idempotency(spec),
    ]
    return "\n\n".join(parts)


def idempotency(spec: ToolSpec) -> str:
    """Say what calling twice does."""
    if spec.read_only:
        return "Changes nothing: it may be called again at any time."
    if spec.idempotent:
        return "Calling again with the same arguments changes nothing more."
    return "Not idempotent: a second call does it again, or fails because it is done already."


# -- schemas


def input_rows(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Return a row for every argument, and for every field of an argument that is an object."""
    for path, field, required in fields(schema):
        yield code(path), type_name(field), "required" if required else default_of(field), meaning(field)


def default_of(field: Mapping[str, Any]) -> str:
    """Return an optional argument's default; the published schemas leave false and null out."""
    if "default" in field:
        return code(json.dumps(field["default"]))
    return code("false") if field.get("type") == "boolean" else ""


def output_rows(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Return a row for every field of an answer."""
    for path, field, required in fields(schema):
        present = "always" if required or field.get("default") is not None else "when it applies"
        yield code(path), type_name(field), present, meaning(field)


def fields(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield path, schema and whether it is required, of every field at every depth."""
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path, field, name in schema.get("required", ())
        yield from fields(field, f"{path}.")
        yield from fields(field.get("items", {}), f"{path}[].")


def type_name(field: Mapping[str, Any]) -> str:
    """Name a schema's type in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(type_name(one) for one in field["anyOf"]))
    if "const" in field:
        return code(json.dumps(field["const"]))
    if "enum" in field:
        return ", ".join(code(str(one)) for one in field["enum"])
    if field.get("type") == "array":
        return f"list of {type_name(field.get('items', {}))}"
    values = field.get("additionalProperties")
    if field.get("type") == "object" and isinstance(values, dict):
        return f"object of {type_name(values)}"
    return str(field.get("type", "any"))


_BOUNDS = {
    "minimum": "at least {:,}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {:,}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {:,} characters",
    "maxLength": "at most {:,} characters",
    "pattern": "matches `{}`",
}


def meaning(field: Mapping[str, Any]) -> str:
    """Return a field's description and bounds."""
    bounds = ", ".join(words.format(field[key]) for key, words in _BOUNDS.items() if key in field)
    bounds = bounds.replace("at least 1 characters", "not empty")
    return "; ".join(part for part in (field.get("description", ""), bounds) if part)


# -- errors


def tool_errors(spec: ToolSpec) -> dict[str, str]:
    """Return the codes that a call of the tool may answer, with what leads to them; those of every call are named in the document."""
    arguments = spec.input_schema()["properties"]
    found: dict[str, str] = {}
    if "container" in arguments:
        found["not_found"] = "there is no such container; the nearest names are in the answer"
        found["ambiguous"] = "the short id fits several containers; they are in the answer"
    if "cursor" in arguments:
        found["cursor_mismatch"] = "the cursor is of another call"
    if spec.destructive:
        found["confirmation_required"] = (
            "it is not this server run's own and the client cannot ask a person; the answer holds the token"
        )
        found["declined"] = "the person said no, or nobody answered"
    return found | _OWN_ERRORS.get(spec.name, {}) or {"-": "none beyond those of every call"}


_READS_REGISTRY = {
    "not_found": "there is no such image; the nearest tags, or the platforms that there are, are in the answer",
    "unauthorized": "the registry wants credentials, or others",
    "refused": "a registry that `policy.pull_registries` does not list",
    "engine_unavailable": "the registry does not answer",
}
_OWN_ERRORS: dict[str, dict[str, str]] = {
    "container_build": {
        "build_failed": "a step failed: `instruction`, `line`, `exit_code` and its last lines are in the answer",
        "refused": "a path, label, frontend or secret source that the policy does not allow",
        "unsupported": "`secrets` or `platforms` without buildx",
        "deadline_exceeded": "`timeout_seconds` passed; the build was stopped",
    },
    "container_run": {
        "not_found": "no such image and `pull_policy` is never",
        "conflict": "the name or the host port is taken",
        "command_failed": "the engine could not start the command",
        "refused": "a mount, port, capability, namespace or label that the policy does not allow",
        "unauthorized": "the registry of the image wants credentials",
        "engine_unavailable": "also when the registry of an image that is absent does not answer",
    },
    "container_exec": {
        "conflict": "the container does not run",
        "command_failed": "there is no such program in it",
        "refused": "the container is not this server's and the policy would refuse to create it",
    },
    "container_control": {
        "conflict": "the container's state does not allow the action",
        "refused": "the container is not this server's and the policy would refuse to create it",
    },
    "container_copy": {
        "not_found": "there is no such container or path in it",
        "refused": "a host path that the policy does not allow, or a container that it would refuse to create",
    },
    "container_remove": {"conflict": "it runs and `force` is not given, or its state changed since the question"},
    "container_export": {"refused": "a host path that the policy does not allow", "conflict": "`path` is a folder"},
    "container_rename": {
        "conflict": "the name is taken, or is its own",
        "refused": "the container is not this server's and the policy would refuse to create it",
    },
    "container_top": {"conflict": "the container does not run"},
    "container_diff": {
        "cursor_mismatch": "the cursor belongs to other arguments",
        "invalid_argument": "`path` is not absolute",
    },
    "container_commit": {
        "refused": "the container is not this server's and the policy would refuse to create it",
        "conflict": "it is about to run again, or changed meanwhile",
        "unsupported": "it cannot be paused here, or its files are this machine's",
    },
    "container_import": {
        "refused": "a host path, or what the container asks for, that the policy does not allow",
        "invalid_argument": "no archive of a container, damaged or hostile",
        "conflict": "the name is taken",
        "unsupported": "the engine makes no containers of archives, or the archive asks for what is not known here",
    },
    "container_update": {
        "invalid_argument": "nothing is to be changed, or a limit that the engine cannot set",
        "refused": "the container is not this server's and the policy would refuse to create it",
        "unsupported": "the engine cannot change limits, or not of a container that does not run",
    },
    "image_import": {
        "refused": "a host path that the policy does not allow",
        "invalid_argument": "no root file system: damaged, or neither a tar nor a folder",
        "unsupported": "the engine imports nothing, or the folder holds a device",
    },
    "image_load": {
        "refused": "a host path that the policy does not allow",
        "invalid_argument": "no archive of images, damaged, or one of several images and a `tag`",
        "unsupported": "the engine loads nothing, or not from a folder",
    },
    "image_save": {
        "not_found": "there is no such image; the nearest names are in the answer",
        "refused": "a host path that the policy does not allow",
        "conflict": "`path` is a folder, with `oci` one that is not empty",
        "unsupported": "the engine cannot write that `format`",
    },
    "registry_pull": {
        "not_found": "the registry has no such image, or none for the platform",
        "unauthorized": "the registry wants credentials, or others",
        "refused": "a registry that `policy.pull_registries` does not list",
        "unsupported": "the engine speaks to no registry",
    },
    "registry_push": {
        "not_found": "the engine has no such image",
        "unauthorized": "the registry wants credentials, or others",
        "conflict": "on Docker another image has the name `target`",
        "unsupported": "the engine speaks to no registry",
    },
    "registry_inspect": _READS_REGISTRY,
    "registry_list": {**_READS_REGISTRY, "unsupported": "the registry does not tell its repositories"},
    "registry_copy": _READS_REGISTRY,
    "registry_delete": {**_READS_REGISTRY, "unsupported": "the registry removes nothing"},
    "container_logs": {"unsupported": "the container's log driver keeps nothing that can be read"},
}


def errors_table() -> str:
    """Return the table of all error classes."""
    rows = [
        (
            code(one.__name__),
            code(one.code),
            str(one.exit_status),
            "yes" if one.retryable else "no",
            summary(one.__doc__),
        )
        for one in errors.all_errors()
    ]
    return table(("class", "code", "exit status", "retryable", "meaning"), rows)


# ----------------------------------------------------------------------------------------------------------------- Python


def python_api() -> str:
    """Return the documentation of the public functions and classes, one section a module."""
    sections: list[tuple[ModuleType, tuple[object, ...]]] = [
        (pipeline, (pipeline.cli_commands,)),
        (manager, (manager.DockerManager,)),
        (functions, (functions.build_containers, functions.manage_containers)),
        (upstream_config, (upstream_config.ContainerConfig,)),
        (portal, (portal.call, portal.close)),
        (config, (config.load, config.rows, config.example, config.folders, config.LoadedSettings, config.Source)),
        (application, (application.open_application, application.Application)),
        (call, (call.Dispatcher.call, call.Caller, call.Outcome)),
        (redact, (redact.Redactor, redact.Redactor.text, redact.Redactor.value, redact.Redactor.lines)),
    ]
    return "\n\n".join(
        f"### {module.__name__}\n\n{summary(module.__doc__)}\n\n" + "\n\n".join(documented(one) for one in objects)
        for module, objects in sections
    )


def decorator_api() -> str:
    """Return the documentation of mcp_tool."""
    return documented(_decorator.mcp_tool)


def tool_functions(tools: Mapping[str, ToolSpec]) -> str:
    """Return signature and docstring of every tool's function, by module."""
    modules = sorted({spec.function.__module__ for spec in tools.values()})
    return "\n\n".join(
        f"### {module}\n\n"
        + "\n\n".join(documented(spec.function) for spec in tools.values() if spec.function.__module__ == module)
        for module in modules
    )


def documented(subject: object) -> str:
    """Return the signature (of a class: its fields) and the docstring of a function or class."""
    node = definition(subject)
    text = inspect.getdoc(subject) or ""
    shown = class_text(node) if isinstance(node, ast.ClassDef) else function_text(node, subject)
    return f"{block(shown, 'python')}\n\n{text}"


Function = ast.FunctionDef | ast.AsyncFunctionDef


def definition(subject: object) -> ast.ClassDef | Function:
    """Return the source of a class or function, parsed: it reads as it was written, whatever the Python that runs this."""
    node = ast.parse(textwrap.dedent(inspect.getsource(typing.cast("Any", subject)))).body[0]
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        raise OutOfStepError(f"{subject!r} is neither a class nor a function")
    return node


def class_text(node: ast.ClassDef) -> str:
    """Return a class's public fields."""
    lines = [
        f"    {ast.unparse(one)}"
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("_")
    ]
    return "\n".join([f"class {node.name}:", *(lines or ["    ..."])])


def function_text(node: Function, subject: object) -> str:
    """Return a function's signature, one parameter a line when it is long."""
    names = getattr(inspect.getmodule(subject), "__dict__", {})
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    parts = [parameter(one, default, names) for one, default in zip(positional, defaults, strict=True)]
    parts += ["*"] if given.kwonlyargs else []
    parts += [parameter(one, default, names) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    qualified = getattr(subject, "__qualname__", node.name)
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{keyword} {qualified}({', '.join(parts)}){returned}"
    if len(line) <= 100:
        return line
    return f"{keyword} {qualified}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returned}"


def parameter(node: ast.arg, default: ast.expr | None, names: Mapping[str, object]) -> str:
    """Return `name: type = default`."""
    kind = f": {annotation(node.annotation, names)}" if node.annotation else ""
    if default is None:
        return f"{node.arg}{kind}"
    return f"{node.arg}{kind} = {ast.unparse(default)}" if kind else f"{node.arg}={ast.unparse(default)}"


def annotation(node: ast.expr, names: Mapping[str, object]) -> str:
    """Return a type as text, without what `Annotated` adds to it."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Annotated":
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        return ast.unparse(inner)
    alias = names.get(node.id) if isinstance(node, ast.Name) else None
    if typing.get_origin(alias) is typing.Annotated:
        kind = typing.get_args(alias)[0]
        return kind.__name__ if isinstance(kind, type) else str(kind)
    return ast.unparse(node)


# --------------------------------------------------------------------------------------------------------------- settings


def default_settings() -> config.LoadedSettings:
    """Return the settings of a machine on which nothing is set."""
    return config.load(environ={"HOME": str(_NOWHERE)}, working_folder=_NOWHERE)


def settings_table() -> str:
    """Return a table of every setting."""
    rows = [
        (code(row.key), "" if row.value is None else code(json.dumps(row.value)), row.description)
        for row in config.rows(default_settings())
    ]
    return table(("setting", "default", "meaning"), rows)


def settings_example() -> str:
    """Return a settings file of all keys."""
    return block(config.example(), "toml")


# ---------------------------------------------------------------------------------------------------------- command line


def find_reference() -> Callable[[], str] | None:
    """Return the command line's function that describes it, None while there is none."""
    try:
        module = importlib.import_module("codomyrmex_containerization.cli.reference")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("codomyrmex_containerization.cli"):
            raise
        return None
    return typing.cast("Callable[[], str]", module.reference)


# -------------------------------------------------------------------------------------------------------------- documents


def snapshot(tools: Mapping[str, ToolSpec]) -> str:
    """Return tools/list as it is published with all toolsets."""
    listed = [
        adapter.tool(spec, output_schema=True).model_dump(mode="json", by_alias=True, exclude_none=True)
        for spec in tools.values()
    ]
    return json.dumps(listed, indent=2, ensure_ascii=False) + "\n"


def documents() -> dict[str, str]:
    """Return every generated file with the text that it should have."""
    tools = _discovery.all_tools()
    if Settings.model_fields.keys() != {row.key.partition(".")[0] for row in config.rows(default_settings())}:
        raise OutOfStepError("config.rows() does not list every setting")
    blocks: dict[str, dict[str, str]] = {
        "README.md": {"tools": tools_table(tools)},
        "PAI.md": {"phases": phases_table(tools)},
        "MCP_TOOL_SPECIFICATION.md": {"tools": tool_sections(tools)},
        "API_SPECIFICATION.md": {
            "mcp-tool": decorator_api(),
            "errors": errors_table(),
            "tool-functions": tool_functions(tools),
            "python": python_api(),
        },
        "docs/configuration.md": {"settings": settings_table(), "example": settings_example()},
    }
    texts = {name: filled(name, read(name), contents) for name, contents in blocks.items()}
    reference = find_reference()
    if reference is not None:
        texts["docs/cli.md"] = reference()
    return {**texts, SNAPSHOT: snapshot(tools), generate_mcp_tools.NAME: generate_mcp_tools.text()}


def read(name: str) -> str:
    """Return a document's text. Raises OutOfStepError when it is not there."""
    path = ROOT / name
    if not path.exists():
        raise OutOfStepError(f"{name} does not exist; it is written by hand around the generated parts")
    return path.read_text(encoding="utf-8")


def filled(name: str, text: str, contents: Mapping[str, str]) -> str:
    """Return the text with each block filled. Raises OutOfStepError unless markers and contents are the same."""
    marked = [match[2] for match in _BLOCK.finditer(text)]
    if sorted(marked) != sorted(contents):
        raise OutOfStepError(f"{name} has the markers {sorted(marked)}, expected are {sorted(contents)}")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{contents[match[2]].strip()}\n\n{match[3]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what has changed, or with --check name it; return the exit status."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something would change")
    check = parser.parse_args(arguments).check
    try:
        wanted = documents()
    except OutOfStepError as error:
        print(f"generate_docs: {error}", file=sys.stderr)
        return 1
    changed = [name for name, text in wanted.items() if not is_as(ROOT / name, text)]
    for name in changed:
        print(f"{name} {'is out of date: run scripts/docs' if check else 'written'}")
        if not check:
            (ROOT / name).write_text(wanted[name], encoding="utf-8")
    return 1 if check and changed else 0


def is_as(path: Path, text: str) -> bool:
    """Say whether a file has just this text."""
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
