"""Which commands make, list, run, read and remove containers? One table entry each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from codomyrmex_containerization.cli import arguments, options, screen
from codomyrmex_containerization.cli.arguments import Values
from codomyrmex_containerization.cli.entry import Answered, Data, ToolCommand, flag, given_arguments, many, option
from codomyrmex_containerization.cli.screen import Screen

if TYPE_CHECKING:
    from codomyrmex_containerization.dispatch.call import Outcome

# --------------------------------------------------------------------------------------------------------- how it looks


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
        for line in engine.get("lacks", ()):
            to.note(f"{engine['name']} cannot: {line}")
        for line in engine.get("notes", ()):
            to.note(f"{engine['name']}: {line}")
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
    from codomyrmex_containerization.tools import _core_answers

    several = len({row["engine"] for row in rows}) > 1
    warn_of_failed(one.data, to)
    to.table(_core_answers.LIST_HEADER, [_list_cells(row, to, show_engine=several) for row in rows])
    if not rows:
        more = "" if one.asked["all"] or one.asked["status"] else " running (--all shows the others too)"
        to.note(f"no containers{more}")
    elif "next_cursor" in one.data:
        to.note(f"{len(rows)} of {one.data['total']} shown; the rest: add --cursor {one.data['next_cursor']}")


def _list_cells(row: Data, to: Screen, *, show_engine: bool) -> tuple[str, ...]:
    from codomyrmex_containerization.tools._core_answers import in_out

    return (
        row["id"],
        row["name"],
        row["image"],
        f"{row['status']} ({row['health']})" if "health" in row else row["status"],
        created(row["created"], to),
        f"{row['cpu_percent']:.1f}" if "cpu_percent" in row else "",
        size(row.get("memory_bytes")),
        size(row.get("memory_limit_bytes")),
        str(row.get("pids", "")),
        in_out(row.get("network_in"), row.get("network_out")),
        in_out(row.get("block_in"), row.get("block_out")),
        ",".join(row.get("ports", ())),
        row["engine"] if show_engine else "",
        row.get("pod", ""),
    )


def warn_of_failed(data: Data, to: Screen) -> None:
    """Say which engines could not be asked."""
    for line in data.get("failed", ()):
        to.warning(line)


def size(size_bytes: int | None) -> str:
    """Show bytes shortly."""
    from codomyrmex_containerization.models import sizes

    return "" if size_bytes is None else sizes.show(size_bytes)


def created(time: str, to: Screen) -> str:
    """Show when something was made: on a terminal by its age, which is shorter."""
    from datetime import UTC, datetime

    if not options.is_terminal(to.out):
        return time
    try:
        return age((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    except (ValueError, TypeError):
        return time


def age(seconds: float) -> str:
    """Show how long ago something was, in the largest unit of which there are two."""
    units = (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("m", 60))
    fitting = ((name, length) for name, length in units if seconds >= 2 * length)
    name, length = next(fitting, ("s", 1))
    return f"{max(0, int(seconds // length))}{name} ago"


def show_run(one: Answered, to: Screen) -> None:
    """Pass on what a command said, each stream to its own."""
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
        end = "could not be killed: it may still run" if data.get("killed") is False else "was stopped"
        to.warning(f"timed out after {data['seconds']:.1f} seconds and {end}; --timeout gives it more")
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


def status_of_container(outcome: Outcome) -> int:
    """Return the container's own exit code; else what `timeout` and `docker run` use."""
    if outcome.error is not None:
        # The whole message decides, and only that: what is shown of it is redacted.
        return _status_of_failed_start(outcome.error.message, outcome.error.code)
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


# ------------------------------------------------------------------------------------------------------------ the table


def containers() -> click.Argument:
    """Return the argument of commands that take several containers."""
    return click.Argument(["container"], nargs=-1, required=True, metavar="CONTAINER...")


def _build_arguments(values: Values) -> dict[str, Any]:
    path, file = values["path"], values["file"]
    given = given_arguments({name: value for name, value in values.items() if name not in ("path", "file", "log")})
    if path == "-" and file is not None:
        raise click.UsageError("With '-' the Dockerfile is read from stdin, so --file cannot be given too.")
    if path == "-":
        return given | {"dockerfile_text": arguments.standard_input(what="The Dockerfile on stdin")}
    if file == "-":
        return given | {"dockerfile_text": arguments.standard_input(what="The Dockerfile on stdin"), "context": path}
    return given | ({"dockerfile_path": path} if file is None else {"dockerfile_path": file, "context": path})


def _list_arguments(values: Values) -> dict[str, Any]:
    given = given_arguments({name: value for name, value in values.items() if name != "no_usage"})
    return given | ({"usage": False} if values["no_usage"] else {})


def _run_arguments(values: Values) -> dict[str, Any]:
    rates = {name: values[name] for name in ("disk_read", "disk_write") if values[name] is not None}
    given = given_arguments({name: value for name, value in values.items() if name not in ("stdin", *rates)})
    given |= {"limits": rates} if rates else {}
    return given | ({"stdin": arguments.standard_input(what="stdin")} if values["stdin"] else {})


def _complete_status(context: click.Context, parameter: click.Parameter, beginning: str) -> list[str]:
    from codomyrmex_containerization.models import container

    return [one for one in container.STATUSES if one.startswith(beginning)]


def _status_option() -> click.Option:
    one = option("--status", "status", "Only those in this state: running, exited, ...", metavar="STATUS")
    one._custom_shell_complete = _complete_status
    return one


SECONDS = click.FloatRange(min=0)
_BUILD = ToolCommand(
    "build",
    "container_build",
    "Build an image. PATH is a folder with a Dockerfile (default: the working folder), a Dockerfile, or '-' for one on stdin.",
    (
        click.Argument(["path"], default=".", required=False, metavar="[PATH]"),
        option("-t/--tag", "image_name", "Name of the image.", metavar="NAME[:TAG]", required=True),
        option("-f/--file", "file", "Dockerfile, if not PATH/Dockerfile; '-' for stdin.", metavar="FILE"),
        option("--target", "target", "Stage to build.", metavar="STAGE"),
        many(
            "--build-arg",
            "build_args",
            "NAME[=VALUE]",
            "Value of an ARG; without one, our environment's.",
            arguments.variables,
        ),
        many("--label", "labels", "NAME=VALUE", "Label of the image.", arguments.labels),
        many("--platform", "platforms", "OS/ARCH", "Platform to build for; needs BuildKit."),
        flag("--no-cache", "no_cache", "Build every step anew."),
        flag("--pull", "pull", "Fetch newer base images."),
        many(
            "--secret",
            "secrets",
            "id=NAME,env=VAR|src=FILE",
            "Secret for RUN --mount=type=secret.",
            arguments.build_secrets,
        ),
        option(
            "--timeout", "timeout_seconds", "Give up after so long (default 1200).", metavar="SECONDS", type=SECONDS
        ),
        flag("--log", "log", "Also show the last lines of the build's output, on stderr."),
    ),
    to_arguments=_build_arguments,
    show=_show_build,
)
_LIST = ToolCommand(
    "list",
    "container_list",
    "List containers, newest first, with what they use.",
    (
        flag("-a/--all", "all", "Also those that do not run."),
        option("--name", "name", "Only those with this in their name.", metavar="TEXT"),
        option("--label", "label", "Only those with this label.", metavar="NAME[=VALUE]"),
        option("--filter-image", "image", "Only those with this in their image's name.", metavar="TEXT"),
        _status_option(),
        flag("--no-usage", "no_usage", "Do not measure CPU, memory and processes."),
        option("--limit", "limit", "Rows of a page (default 50).", metavar="N", type=int),
        option("--cursor", "cursor", "Where the page before this one ended.", metavar="CURSOR"),
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
        flag("-d/--detach", "detach", "Leave it running and print its id."),
        option("--name", "name", "Its name.", metavar="NAME"),
        many(
            "-e/--env",
            "env",
            "NAME[=VALUE]",
            "Environment variable; without a value, our environment's.",
            arguments.variables,
        ),
        many(
            "-p/--publish",
            "ports",
            "[[ADDRESS:]HOST:]PORT",
            "Port to publish, on 127.0.0.1 unless an address is given.",
        ),
        many("-v/--mount", "mounts", "SOURCE:TARGET[:ro]", "Host path or volume; tmpfs:TARGET[:SIZE] for memory."),
        option("--network", "network", "none, or a network's name.", metavar="NAME"),
        option("-u/--user", "user", "User, or uid:gid.", metavar="USER"),
        option("-w/--workdir", "workdir", "Folder to start in.", metavar="PATH"),
        option("--entrypoint", "entrypoint", "Instead of the image's.", metavar="COMMAND"),
        flag("-i/--stdin", "stdin", "Give it our stdin, read to its end."),
        option("--timeout", "timeout_seconds", "Stop it after so long (default 60).", metavar="SECONDS", type=SECONDS),
        option("-m/--memory", "memory", "Most memory: 512m, 2g.", metavar="SIZE"),
        option("--cpus", "cpus", "Most CPUs: 1.5.", metavar="N", type=float),
        option("--pids-limit", "pids_limit", "Most processes.", metavar="N", type=int),
        option("--disk", "disk", "Most that it may write, volumes aside: 256m.", metavar="SIZE"),
        option("--disk-read", "disk_read", "Most that it may read from the disk in a second: 10m.", metavar="SIZE"),
        option("--disk-write", "disk_write", "Most that it may write to the disk in a second.", metavar="SIZE"),
        flag("--read-only-rootfs", "read_only_rootfs", "Make its root file system read-only."),
        many("--cap-add", "cap_add", "NAME", "Capability to add."),
        many("--cap-drop", "cap_drop", "NAME", "Capability to drop, or ALL."),
        option(
            "--isolation",
            "isolation",
            "How strong its walls are (default: the engine's own, or the setting isolation).",
            type=click.Choice(["minimal", "standard", "strict"]),
        ),
        flag("--privileged", "privileged", "Without isolation; refused unless the policy allows it."),
        option("--restart", "restart", "no, always, unless-stopped, on-failure[:N]; with --detach.", metavar="POLICY"),
        many("-l/--label", "labels", "NAME=VALUE", "Label of the container.", arguments.labels),
        option(
            "--pull",
            "pull_policy",
            "When to pull the image (default missing).",
            type=click.Choice(["always", "missing", "never"]),
        ),
        option("--platform", "platform", "Platform of the image.", metavar="OS/ARCH"),
        flag("--keep", "keep", "Do not remove it at its end."),
        click.Argument(["image"]),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
    ),
    to_arguments=_run_arguments,
    show=show_run,
    exit_status=status_of_container,
    interspersed=False,
    own_errors=125,
)
_LOGS = ToolCommand(
    "logs",
    "container_logs",
    "Read a container's log. What it said on stderr goes to stderr.",
    (
        click.Argument(["container"]),
        option("-n/--tail", "tail", "Last lines to show (default 200).", metavar="N", type=int),
        option("--since", "since", "10m, 2h (ago) or a time.", metavar="TIME"),
        option("--until", "until", "As --since.", metavar="TIME"),
        option("--grep", "grep", "Only lines with this text, any case; 'a|b' finds either.", metavar="TEXT"),
        option("--stream", "stream", "Only what it said there.", type=click.Choice(["stdout", "stderr"])),
        flag("-t/--timestamps", "timestamps", "Begin each line with its time."),
        option(
            "-f/--follow",
            "follow_seconds",
            "Wait so long for more lines (at most 60).",
            metavar="SECONDS",
            type=SECONDS,
        ),
    ),
    show=_show_logs,
)
_RM = ToolCommand(
    "rm",
    "container_remove",
    "Remove containers. Asks first; --yes agrees beforehand.",
    (
        containers(),
        flag("-f/--force", "force", "Also when it runs."),
        flag("-v/--volumes", "volumes", "Also its anonymous volumes."),
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
