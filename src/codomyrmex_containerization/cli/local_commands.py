"""What do the commands do that call no tool of their own: `tools`, `config`, `doctor`, `cleanup`, `completion`, `serve`?"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from codomyrmex_containerization import errors
from codomyrmex_containerization.cli import arguments, entry, options, session
from codomyrmex_containerization.cli.screen import Screen

if TYPE_CHECKING:
    from codomyrmex_containerization.dispatch.application import Application
    from codomyrmex_containerization.models.engine import EngineProbe
    from codomyrmex_containerization.tools._decorator import ToolSpec


def all_commands() -> list[click.Command]:
    """Return the commands, in the order in which the help lists them."""
    return [_tools(), _config(), _doctor(), _cleanup(), _completion(), _serve()]


def _given() -> options.Given:
    return options.given_in(click.get_current_context())


def _screen() -> Screen:
    return Screen(json=_given().json)


# ---------------------------------------------------------------------------------------------------------------- tools


def _tools() -> click.Command:
    group = options.Group(
        "tools", help="List the tools that agents get, call one, show its arguments.", callback=_list_when_alone
    )
    group.add_command(
        options.Command(
            "list",
            help="List the tools with their annotations.",
            callback=_list_tools,
            params=[click.Option(["-a", "--all", "show_all"], is_flag=True, help="Also those that are switched off.")],
        )
    )
    group.add_command(
        options.Command(
            "call",
            help="Call a tool by its name.",
            callback=_call_tool,
            params=[
                click.Argument(["name"]),
                click.Option(
                    ["--arg", "args"],
                    multiple=True,
                    metavar="NAME=TEXT",
                    help="Argument; NAME:=JSON for what is no text. Given twice, a list.",
                ),
                click.Option(
                    ["--args-json"], metavar="JSON", help="All arguments as one JSON object; '-' reads it from stdin."
                ),
            ],
        )
    )
    group.add_command(
        options.Command(
            "schema",
            help="Show the JSON schema of a tool's arguments.",
            callback=_show_schema,
            params=[click.Argument(["name"])],
        )
    )
    return group


def _list_when_alone() -> int:
    return _list_tools(show_all=False) if click.get_current_context().invoked_subcommand is None else 0


def _list_tools(*, show_all: bool) -> int:
    tools, offered = _known_tools()
    to = _screen()
    shown = [spec for spec in tools.values() if show_all or spec.name in offered]
    if to.json:
        to.document({"status": "success", "tools": [_tool_row(spec, enabled=spec.name in offered) for spec in shown]})
        return 0
    header = ("TOOL", "TOOLSET", "EFFECT", "IDEMPOTENT", "OPEN WORLD", "ENABLED", "TITLE")
    to.table(header, [_tool_cells(spec, enabled=spec.name in offered) for spec in shown])
    if not shown:
        to.note("no tools are enabled; --all shows what there is")
    elif len(shown) < len(tools):
        to.note(f"{len(tools) - len(shown)} more are switched off; --all shows them, --toolsets switches them on")
    return 0


def _tool_row(spec: ToolSpec, *, enabled: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "toolset": spec.toolset,
        "enabled": enabled,
        "annotations": {
            "readOnlyHint": spec.read_only,
            "destructiveHint": spec.destructive,
            "idempotentHint": spec.idempotent,
            "openWorldHint": spec.open_world,
        },
    }


def _tool_cells(spec: ToolSpec, *, enabled: bool) -> tuple[str, ...]:
    effect = "reads" if spec.read_only else "destroys" if spec.destructive else "writes"
    truth = ["yes" if one else "no" for one in (spec.idempotent, spec.open_world, enabled)]
    return (spec.name, spec.toolset, effect, *truth, spec.title)


def _known_tools() -> tuple[dict[str, ToolSpec], dict[str, ToolSpec]]:
    """Return all tools and those that the settings offer. Raises InvalidArgument."""
    loaded = session.load(_given(), _screen())
    from codomyrmex_containerization.dispatch import application, gate

    application.check_names(loaded)
    tools = dict(application.tools())
    return tools, gate.offered(tools, loaded.settings)


def _call_tool(*, name: str, args: tuple[str, ...], args_json: str | None) -> int:
    called = entry.ToolCommand("tools call", name, "", to_arguments=lambda _: arguments.tool_arguments(args, args_json))
    # No commands are known to it: who calls tools by name gets advice in words of tools.
    return entry.carry_out(called, {}, _given(), {})


def _show_schema(*, name: str) -> int:
    tools, _ = _known_tools()
    if name not in tools:
        from difflib import get_close_matches

        near = get_close_matches(name, tools, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "'cxc tools list --all' shows what there is"
        raise errors.NotFound(f"There is no tool {name[:80]!r}.", hint=hint)
    _screen().document(tools[name].input_schema())
    return 0


# --------------------------------------------------------------------------------------------------------------- config


def _config() -> click.Command:
    group = options.Group(
        "config", help="Show the settings that hold and where each comes from.", callback=_show_when_alone
    )
    group.add_command(
        options.Command(
            "show", help="Show every setting with its value and where it comes from.", callback=_show_config
        )
    )
    group.add_command(
        options.Command("example", help="Print a settings file of all keys, commented out.", callback=_print_example)
    )
    group.add_command(
        options.Command("path", help="Print where your settings file is, or would be.", callback=_print_path)
    )
    return group


def _show_when_alone() -> int:
    return _show_config() if click.get_current_context().invoked_subcommand is None else 0


def _show_config() -> int:
    to = _screen()
    loaded = session.load(_given(), to)
    from codomyrmex_containerization import config, redact

    redactor = redact.Redactor.from_environment(os.environ)
    rows = []
    for row in config.rows(loaded):
        value = redactor.value(cast("redact.JSON", row.value))
        rows.append(
            {"key": row.key, "value": value, "source": redactor.text(row.source), "description": row.description}
        )
    if to.json:
        warnings = [redactor.text(one) for one in loaded.warnings]
        to.document({"status": "success", "settings": rows, "warnings": warnings})
        return 0
    to.table(
        ("KEY", "VALUE", "SOURCE"), [(str(row["key"]), _value_text(row["value"]), str(row["source"])) for row in rows]
    )
    return 0


def _value_text(value: object) -> str:
    if value is None:
        return "(not set)"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _print_example() -> int:
    from codomyrmex_containerization import config

    to = _screen()
    text = config.example()
    if to.json:
        to.document({"status": "success", "example": text})
    else:
        to.line(text.rstrip("\n"))
    return 0


def _print_path() -> int:
    from codomyrmex_containerization import config

    to = _screen()
    named = _given().config_file or os.environ.get(config.CONFIG_VARIABLE)
    folders = config.folders()
    path = Path(named).expanduser().absolute() if named else folders.config / config.USER_FILE
    if to.json:
        own = {"state": str(folders.state), "data": str(folders.data), "cache": str(folders.cache)}
        to.document({"status": "success", "path": str(path), "exists": path.is_file(), "folders": own})
        return 0
    to.line(str(path))
    if not path.is_file():
        to.note("it does not exist; 'cxc config example' prints one to start from")
    return 0


# ----------------------------------------------------------------------------------------------------- cleanup, completion, serve


def _doctor() -> click.Command:
    return options.Command(
        "doctor",
        help="Look closely at the engines. Says what holds here, what does not, and which command would bring it.\n\n"
        "Exits with 0 when an engine can be used.",
        callback=_look_closely,
    )


def _look_closely() -> int:
    given, to = _given(), _screen()

    async def work(application: Application) -> list[dict[str, Any]]:
        engines = application.engines
        probes = await engines.probe()
        # Listings leave it out where it never held anything: here it is asked about all the same.
        if "embedded" in application.settings.engines and all(one.name != "embedded" for one in probes):
            probes += await engines.probe("embedded")
        return [await _examined(application, probe) for probe in probes]

    found = session.run(given, to, work)
    is_well = any(one["available"] for one in found)
    if to.json:
        to.document({"status": "success" if is_well else "error", "engines": found})
    else:
        _show_checks(found, to)
    return 0 if is_well else errors.EngineUnavailable.exit_status


async def _examined(application: Application, probe: EngineProbe) -> dict[str, Any]:
    text = application.redactor.text
    if probe.info is None:
        return {"name": probe.name, "available": False, "reason": text(probe.reason), "remedy": text(probe.remedy)}
    try:
        engine = await application.engines.pick(probe.name)
        checks = await engine.checks()
    except errors.ContainerizationError as error:
        return {"name": probe.name, "available": False, "reason": text(error.message), "remedy": text(error.hint)}
    info = probe.info
    lacks = [{"what": f"capability {name}", "holds": False, "said": why} for name, why in info.lacks.items()]
    shown = [{name: value for name, value in asdict(one).items() if value != ""} for one in checks]
    return {
        "name": probe.name,
        "available": True,
        "version": info.version,
        "endpoint": info.endpoint.url,
        "rootless": info.rootless,
        "checks": [*shown, *lacks],
        "notes": [text(one) for one in info.notes],
    }


def _show_checks(found: list[dict[str, Any]], to: Screen) -> None:
    rows = []
    for one in found:
        state = f"version {one['version']} at {one['endpoint']}" if one["available"] else one["reason"]
        rows.append((one["name"], "engine", "yes" if one["available"] else "no", state))
        rows += [
            ("", check["what"], "yes" if check["holds"] else "no", check["said"]) for check in one.get("checks", ())
        ]
    to.table(("ENGINE", "WHAT", "HOLDS", "HOW"), rows)
    remedies = [one["remedy"] for one in found if one.get("remedy")]
    remedies += [check["remedy"] for one in found for check in one.get("checks", ()) if check.get("remedy")]
    for remedy in dict.fromkeys(remedies):
        to.note(f"to have more of it: {remedy}")


def _cleanup() -> click.Command:
    return options.Command(
        "cleanup",
        help="Remove what dead runs of this program left. That is containers of single calls and half-built images.",
        callback=_clean_up,
        params=[click.Option(["--dry-run"], is_flag=True, help="Only say what would be removed.")],
    )


def _clean_up(*, dry_run: bool) -> int:
    given, to = _given(), _screen()

    async def work(application: Application) -> list[str]:
        if application.settings.read_only and not dry_run:
            raise errors.Refused(
                "cleanup removes things, and --read-only is set.", hint="leave it out, or add --dry-run"
            )
        probes = await application.engines.probe()
        if not any(probe.info is not None for probe in probes):
            first = probes[0]
            raise errors.EngineUnavailable(
                f"No engine answers: {first.name}: {first.reason}", hint=first.remedy or "see 'cxc status'"
            )
        return [application.redactor.text(line) for line in await application.reap(dry_run=dry_run)]

    lines = session.run(given, to, work)
    if to.json:
        to.document({"status": "success", "dry_run": dry_run, "removed": lines})
        return 0
    for line in lines:
        to.line(line)
    if not lines:
        to.note("nothing is left of dead runs")
    elif dry_run:
        to.note("nothing was removed: this was --dry-run")
    return 0


def _completion() -> click.Command:
    return options.Command(
        "completion",
        help="Print a completion script. For bash: source <(cxc completion bash)",
        callback=_print_completion,
        params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
    )


def _print_completion(*, shell: str) -> int:
    from click import shell_completion

    context = click.get_current_context().find_root()
    made = shell_completion.get_completion_class(shell)
    if made is None:
        raise errors.Unsupported(f"There is no completion for {shell}.", hint="use bash, zsh or fish")
    text = made(context.command, {}, "cxc", "_CXC_COMPLETE").source()
    to = _screen()
    if to.json:
        to.document({"status": "success", "script": text})
    else:
        to.line(text.strip("\n"))
    return 0


def _serve() -> click.Command:
    return options.Command(
        "serve", help="Serve the tools over MCP on stdin and stdout, until stdin ends.", callback=serve_now
    )


def serve_now() -> int:
    """Hand over to the server with the settings that the command line gives."""
    given = _given()
    if given.serve is None:
        raise errors.Unsupported(
            "This program was started without its server.", hint="start codomyrmex-containerization serve"
        )
    given.serve(session.load(given, Screen(json=False)))
    return 0
