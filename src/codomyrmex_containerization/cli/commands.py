"""Which commands are there that call a tool? One table entry each: options, the tool's arguments, how its answer looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import click

from codomyrmex_containerization.cli import arguments, options, progress, screen, session, words
from codomyrmex_containerization.cli.arguments import Values
from codomyrmex_containerization.cli.screen import Screen

if TYPE_CHECKING:
    from codomyrmex_containerization.dispatch.application import Application
    from codomyrmex_containerization.dispatch.call import Outcome

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a command shows of a success: the structured answer, its text, and the words it was asked with."""

    data: Data
    text: str
    asked: Values


# --------------------------------------------------------------------------------------------------------- how it looks


def show_text(one: Answered, to: Screen) -> None:
    """Print the answer's own text."""
    to.line(one.text)


def _show_status(one: Answered, to: Screen) -> None:
    if not options.is_terminal(to.out):
        to.line(one.text)
        return
    engines = one.data["engines"]
    to.table(
        ("ENGINE", "STATE", "VERSION", "API", "BUILDS BY", "STORAGE", "RUNNING", "IMAGES", "ENDPOINT"),
        [_engine_cells(engine) for engine in engines],
    )
    others = [(name, one.data[name]["state"]) for name in ("kubernetes", "registry", "scanners")]
    to.table(("BACK END", "STATE"), others)
    to.line(f"Host paths that may be used: {', '.join(one.data['allowed_paths']) or 'none'}")
    for engine in engines:
        if not engine["available"]:
            to.note(screen.with_next_step(f"{engine['name']}: {engine.get('reason', '')}", engine.get("remedy", "")))


def _engine_cells(engine: Data) -> tuple[str, ...]:
    mark = " (default)" if engine.get("default") else ""
    running = f"{engine['containers_running']} of {engine['containers']}" if "containers" in engine else ""
    state = "available" if engine["available"] else "not available"
    texts = [str(engine.get(key, "")) for key in ("version", "api_version", "builder", "storage_driver")]
    return (engine["name"] + mark, state, *texts, running, str(engine.get("images", "")), engine.get("endpoint", ""))


def _show_build(one: Answered, to: Screen) -> None:
    for line in one.data.get("log", []) if one.asked["log"] else []:
        to.note(line)
    for warning in one.data.get("warnings", []):
        to.warning(warning)
    to.line(one.text.partition("\n")[0])


def _show_list(one: Answered, to: Screen) -> None:
    rows = one.data["containers"]
    header = ("ID", "NAME", "IMAGE", "STATUS", "CREATED", "CPU%", "MEM", "LIMIT", "PIDS", "PORTS", "ENGINE")
    several = len({row["engine"] for row in rows}) > 1
    to.table(header, [_list_cells(row, show_engine=several) for row in rows])
    if not rows:
        more = "" if one.asked["all"] or one.asked["status"] else " running (--all shows the others too)"
        to.note(f"no containers{more}")
    elif "next_cursor" in one.data:
        to.note(f"{len(rows)} of {one.data['total']} shown; the rest: add --cursor {one.data['next_cursor']}")


def _list_cells(row: Data, *, show_engine: bool) -> tuple[str, ...]:
    return (
        row["id"],
        row["name"],
        row["image"],
        f"{row['status']} ({row['health']})" if "health" in row else row["status"],
        row["created"],
        f"{row['cpu_percent']:.1f}" if "cpu_percent" in row else "",
        _size(row.get("memory_bytes")),
        _size(row.get("memory_limit_bytes")),
        str(row.get("pids", "")),
        ",".join(row.get("ports", ())),
        row["engine"] if show_engine else "",
    )


def _size(size_bytes: int | None) -> str:
    from codomyrmex_containerization.models import sizes

    return "" if size_bytes is None else sizes.show(size_bytes)


def _show_run(one: Answered, to: Screen) -> None:
    data = one.data
    if data.get("detached"):
        to.line(data["id"])
        ports = f"; ports: {', '.join(data['ports'])}" if data.get("ports") else ""
        to.note(f"container {data['name']} is {data['state']}{ports}")
        if "hint" in data:
            to.note(f"{data['hint']}:\n{data.get('stdout', '')}".rstrip("\n"))
        return
    to.raw("stdout", data.get("stdout", ""))
    to.raw("stderr", data.get("stderr", ""))
    if data.get("timed_out"):
        _open_line(data, to)
        to.warning(f"timed out after {data['seconds']:.1f} seconds and was stopped; --timeout gives it more")
    elif data.get("oom_killed"):
        _open_line(data, to)
        to.warning("killed because it ran out of memory; --memory gives it more")
    if data.get("kept"):
        _open_line(data, to)
        to.note(f"container {data['name']} ({data['id']}) is kept")


def _open_line(data: Data, to: Screen) -> None:
    """Begin a new line when what the container said last on stderr has no end."""
    if data.get("stderr", "") and not data["stderr"].endswith("\n"):
        to.raw("stderr", "\n")


def _show_logs(one: Answered, to: Screen) -> None:
    for line in one.data["lines"]:
        time = f"{line['time']} " if "time" in line else ""
        to.raw(line["stream"], f"{time}{line['text']}\n")
    if not one.data["lines"]:
        to.note(f"no lines ({one.data['container']} is {one.data['state']})")


def _show_removed(one: Answered, to: Screen) -> None:
    to.line(one.data["name"])


# -------------------------------------------------------------------------------------------------------- exit statuses


def _usual_status(outcome: Outcome) -> int:
    return outcome.error.exit_status if outcome.error is not None else 0


def _status_of_container(outcome: Outcome) -> int:
    """Return the container's own exit code; else what `timeout` and `docker run` use."""
    if outcome.error is not None:
        return _status_of_failed_start(str(outcome.error_data.get("message", "")), outcome.error.code)
    data = outcome.structured or {}
    if data.get("timed_out"):
        return 124
    if data.get("detached"):
        return 0
    return int(data.get("exit_code", 125))


def _status_of_failed_start(message: str, code: str) -> int:
    said = message.lower() if code == "command_failed" else ""
    if "executable file not found" in said or "no such file or directory" in said:
        return 127
    if "permission denied" in said or "is a directory" in said:
        return 126
    return 125


# ------------------------------------------------------------------------------------------------ what stands in an entry


def _given_arguments(values: Values) -> dict[str, Any]:
    """Return what was given; what was not is left to the tool's own defaults."""
    return {name: _plain(value) for name, value in values.items() if value not in (None, False, (), {})}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class ToolCommand:
    """A command that calls a tool.

    `params` are named as the tool's arguments, so that most need no `to_arguments`; `fixed` are arguments that the command's name implies.
    `each` is the argument that may be given several times: one call for each. `own_errors` is the exit status of errors before the call
    (None: by the error's code). `advice` says in whose words advice is given: those of commands, or of tools.
    """

    name: str
    tool: str
    help: str
    params: tuple[click.Parameter, ...] = ()
    to_arguments: Callable[[Values], dict[str, Any]] = _given_arguments
    fixed: Data = field(default_factory=dict)
    show: Callable[[Answered, Screen], None] = show_text
    exit_status: Callable[[Outcome], int] = _usual_status
    each: str = ""
    interspersed: bool = True
    own_errors: int | None = None
    advice: Literal["commands", "tools"] = "commands"


def _option(
    flags: str,
    name: str,
    help: str,
    *,
    metavar: str | None = None,
    type: Any = None,
    default: object = None,
    multiple: bool = False,
    is_flag: bool = False,
    required: bool = False,
    callback: Callable[[click.Context, click.Parameter, Any], Any] | None = None,
) -> click.Option:
    more: dict[str, Any] = {"default": default} if default is not None else {}
    return click.Option(
        [*flags.split("/"), name],
        help=help,
        metavar=metavar,
        type=type,
        multiple=multiple,
        is_flag=is_flag,
        required=required,
        callback=callback,
        **more,
    )


def _flag(flags: str, name: str, help: str) -> click.Option:
    return _option(flags, name, help, is_flag=True)


def _many(
    flags: str, name: str, metavar: str, help: str, callback: Callable[[click.Context, click.Parameter, Any], Any] | None = None
) -> click.Option:
    return _option(flags, name, help, metavar=metavar, multiple=True, callback=callback)


def _containers() -> click.Argument:
    return click.Argument(["container"], nargs=-1, required=True, metavar="CONTAINER...")


def _build_arguments(values: Values) -> dict[str, Any]:
    path, file = values["path"], values["file"]
    given = _given_arguments({name: value for name, value in values.items() if name not in ("path", "file", "log")})
    if path == "-" and file is not None:
        raise click.UsageError("With '-' the Dockerfile is read from stdin, so --file cannot be given too.")
    if path == "-":
        return given | {"dockerfile_text": arguments.standard_input(what="The Dockerfile on stdin")}
    if file == "-":
        return given | {"dockerfile_text": arguments.standard_input(what="The Dockerfile on stdin"), "context": path}
    return given | ({"dockerfile_path": path} if file is None else {"dockerfile_path": file, "context": path})


def _list_arguments(values: Values) -> dict[str, Any]:
    given = _given_arguments({name: value for name, value in values.items() if name != "no_usage"})
    return given | ({"usage": False} if values["no_usage"] else {})


def _run_arguments(values: Values) -> dict[str, Any]:
    given = _given_arguments({name: value for name, value in values.items() if name != "stdin"})
    return given | ({"stdin": arguments.standard_input(what="stdin")} if values["stdin"] else {})


def _complete_status(context: click.Context, parameter: click.Parameter, beginning: str) -> list[str]:
    from codomyrmex_containerization.models import container

    return [one for one in container.STATUSES if one.startswith(beginning)]


def _status_option() -> click.Option:
    one = _option("--status", "status", "Only those in this state: running, exited, ...", metavar="STATUS")
    one._custom_shell_complete = _complete_status
    return one


_SECONDS = click.FloatRange(min=0)
_BUILD = ToolCommand(
    "build",
    "container_build",
    "Build an image. PATH is a folder with a Dockerfile (default: the working folder), a Dockerfile, or '-' for one on stdin.",
    (
        click.Argument(["path"], default=".", required=False, metavar="[PATH]"),
        _option("-t/--tag", "image_name", "Name of the image.", metavar="NAME[:TAG]", required=True),
        _option("-f/--file", "file", "Dockerfile, if not PATH/Dockerfile; '-' for stdin.", metavar="FILE"),
        _option("--target", "target", "Stage to build.", metavar="STAGE"),
        _many("--build-arg", "build_args", "NAME[=VALUE]", "Value of an ARG; without one, our environment's.", arguments.variables),
        _many("--label", "labels", "NAME=VALUE", "Label of the image.", arguments.labels),
        _many("--platform", "platforms", "OS/ARCH", "Platform to build for; needs BuildKit."),
        _flag("--no-cache", "no_cache", "Build every step anew."),
        _flag("--pull", "pull", "Fetch newer base images."),
        _many("--secret", "secrets", "id=NAME,env=VAR|src=FILE", "Secret for RUN --mount=type=secret.", arguments.build_secrets),
        _option("--timeout", "timeout_seconds", "Give up after so long (default 1200).", metavar="SECONDS", type=_SECONDS),
        _flag("--log", "log", "Also show the last lines of the build's output, on stderr."),
    ),
    to_arguments=_build_arguments,
    show=_show_build,
)
_LIST = ToolCommand(
    "list",
    "container_list",
    "List containers, newest first, with what they use.",
    (
        _flag("-a/--all", "all", "Also those that do not run."),
        _option("--name", "name", "Only those with this in their name.", metavar="TEXT"),
        _option("--label", "label", "Only those with this label.", metavar="NAME[=VALUE]"),
        _option("--filter-image", "image", "Only those with this in their image's name.", metavar="TEXT"),
        _status_option(),
        _flag("--no-usage", "no_usage", "Do not measure CPU, memory and processes."),
        _option("--limit", "limit", "Rows of a page (default 50).", metavar="N", type=int),
        _option("--cursor", "cursor", "Where the page before this one ended.", metavar="CURSOR"),
    ),
    to_arguments=_list_arguments,
    show=_show_list,
)
_RUN = ToolCommand(
    "run",
    "container_run",
    "Run a container. It is waited for and removed at its end, or goes on with --detach.\n\n"
    "Options stand before IMAGE; what follows it is the container's command. Exits with the container's exit code, 124 when its time "
    "was up, 125 when it could not be run, 126 and 127 when its command could not be invoked or was not found.",
    (
        _flag("-d/--detach", "detach", "Leave it running and print its id."),
        _option("--name", "name", "Its name.", metavar="NAME"),
        _many("-e/--env", "env", "NAME[=VALUE]", "Environment variable; without a value, our environment's.", arguments.variables),
        _many("-p/--publish", "ports", "[[ADDRESS:]HOST:]PORT", "Port to publish, on 127.0.0.1 unless an address is given."),
        _many("-v/--mount", "mounts", "SOURCE:TARGET[:ro]", "Host path or volume; tmpfs:TARGET[:SIZE] for memory."),
        _option("--network", "network", "none, or a network's name.", metavar="NAME"),
        _option("-u/--user", "user", "User, or uid:gid.", metavar="USER"),
        _option("-w/--workdir", "workdir", "Folder to start in.", metavar="PATH"),
        _option("--entrypoint", "entrypoint", "Instead of the image's.", metavar="COMMAND"),
        _flag("-i/--stdin", "stdin", "Give it our stdin, read to its end."),
        _option("--timeout", "timeout_seconds", "Stop it after so long (default 60).", metavar="SECONDS", type=_SECONDS),
        _option("-m/--memory", "memory", "Most memory: 512m, 2g.", metavar="SIZE"),
        _option("--cpus", "cpus", "Most CPUs: 1.5.", metavar="N", type=float),
        _option("--pids-limit", "pids_limit", "Most processes.", metavar="N", type=int),
        _flag("--read-only-rootfs", "read_only_rootfs", "Make its root file system read-only."),
        _many("--cap-add", "cap_add", "NAME", "Capability to add."),
        _many("--cap-drop", "cap_drop", "NAME", "Capability to drop, or ALL."),
        _flag("--privileged", "privileged", "Without isolation; refused unless the policy allows it."),
        _option("--restart", "restart", "no, always, unless-stopped, on-failure[:N]; with --detach.", metavar="POLICY"),
        _many("-l/--label", "labels", "NAME=VALUE", "Label of the container.", arguments.labels),
        _option("--pull", "pull_policy", "When to pull the image (default missing).", type=click.Choice(["always", "missing", "never"])),
        _option("--platform", "platform", "Platform of the image.", metavar="OS/ARCH"),
        _flag("--keep", "keep", "Do not remove it at its end."),
        click.Argument(["image"]),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
    ),
    to_arguments=_run_arguments,
    show=_show_run,
    exit_status=_status_of_container,
    interspersed=False,
    own_errors=125,
)
_LOGS = ToolCommand(
    "logs",
    "container_logs",
    "Read a container's log. What it said on stderr goes to stderr.",
    (
        click.Argument(["container"]),
        _option("-n/--tail", "tail", "Last lines to show (default 200).", metavar="N", type=int),
        _option("--since", "since", "10m, 2h (ago) or a time.", metavar="TIME"),
        _option("--until", "until", "As --since.", metavar="TIME"),
        _option("--grep", "grep", "Only lines with this text, any case; 'a|b' finds either.", metavar="TEXT"),
        _option("--stream", "stream", "Only what it said there.", type=click.Choice(["stdout", "stderr"])),
        _flag("-t/--timestamps", "timestamps", "Begin each line with its time."),
        _option("-f/--follow", "follow_seconds", "Wait so long for more lines (at most 60).", metavar="SECONDS", type=_SECONDS),
    ),
    show=_show_logs,
)
_RM = ToolCommand(
    "rm",
    "container_remove",
    "Remove containers. Asks first; --yes agrees beforehand.",
    (
        _containers(),
        _flag("-f/--force", "force", "Also when it runs."),
        _flag("-v/--volumes", "volumes", "Also its anonymous volumes."),
    ),
    show=_show_removed,
    each="container",
)
_STATUS = ToolCommand(
    "status",
    "container_runtime_status",
    "Show which engines answer. Of the others, why not and what would make them available.",
    show=_show_status,
)

TABLE: tuple[ToolCommand, ...] = (_STATUS, _BUILD, _LIST, _RUN, _LOGS, _RM)


# ------------------------------------------------------------------------------------------------------- carrying it out


def click_command(entry: ToolCommand) -> options.Command:
    """Return the click command of an entry; called, it returns the exit status."""

    def callback(**values: Any) -> int:
        return carry_out(entry, values, options.given_in(click.get_current_context()))

    return options.Command(entry.name, help=entry.help, callback=callback, params=entry.params, interspersed=entry.interspersed)


def carry_out(entry: ToolCommand, values: Values, given: options.Given) -> int:
    """Call the tool, once or for each of several objects, and show what it answered. Raises what comes up before the first call."""
    to = Screen(json=given.json)
    plain = {**entry.to_arguments(values), **entry.fixed}
    calls = [plain] if not entry.each else [{**plain, entry.each: one} for one in dict.fromkeys(values[entry.each])]

    async def work(application: Application) -> list[Outcome]:
        outcomes = []
        for one in calls:
            outcome = await _call(application, entry, one, given, to)
            outcomes.append(outcome)
            if not to.json:
                _show(entry, outcome, values, to)
        return outcomes

    outcomes = session.run(given, to, work)
    if to.json:
        to.document(_document([_json_answer(entry, outcome) for outcome in outcomes]))
    return next((status for outcome in outcomes if (status := entry.exit_status(outcome)) != 0), 0)


async def _call(application: Application, entry: ToolCommand, given_arguments: Data, given: options.Given, to: Screen) -> Outcome:
    shown = progress.reporter(to)
    try:
        return await application.dispatcher.call(entry.tool, given_arguments, session.caller(given, to, shown))
    finally:
        shown.close()


def _show(entry: ToolCommand, outcome: Outcome, values: Values, to: Screen) -> None:
    if outcome.error is not None:
        data = _error_data(entry, outcome)
        to.failure(data["code"], screen.with_next_step(data["message"], data["hint"]))
        return
    answer = outcome.structured or {}
    entry.show(Answered(answer, outcome.text, values), to)
    if "truncated" in answer:
        to.note(f"[{_advice(entry, str(answer['truncated']))}]")


def _json_answer(entry: ToolCommand, outcome: Outcome) -> dict[str, Any]:
    if outcome.error is not None:
        return screen.error_document(_error_data(entry, outcome))
    return outcome.structured or {}


def _document(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the one answer as it is, several under `results`."""
    if len(answers) == 1:
        return answers[0]
    failed = any(answer["status"] == "error" for answer in answers)
    return {"status": "error" if failed else "success", "results": list(answers)}


def _error_data(entry: ToolCommand, outcome: Outcome) -> dict[str, Any]:
    """Return what is known of an error, its advice in words of the command line."""
    data = dict(outcome.error_data)
    if data["code"] == "confirmation_required":
        # A token dies with this process: here a person agrees on the terminal or beforehand.
        data.pop("confirm_token", None)
        data["hint"] = "if that is what you want, repeat the command with --yes, or on a terminal to be asked"
    else:
        data["hint"] = _advice(entry, str(data.get("hint", "")))
    return data


def _advice(entry: ToolCommand, text: str) -> str:
    if entry.advice == "tools":
        return text
    tools = {one.tool: (one.name, words.options_of(one.params)) for one in TABLE}
    return words.for_a_person(text, tools, words.options_of(entry.params))


def entry_named(name: str, entries: Iterable[ToolCommand] = TABLE) -> ToolCommand | None:
    """Return the entry of a command, None for commands that call no tool."""
    return next((entry for entry in entries if entry.name == name), None)
