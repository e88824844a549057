"""Which options does every command know, and what was given of them, before or after the command's name?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from codomyrmex_containerization.config import LoadedSettings

Serve = Callable[["LoadedSettings"], None]

HELP_NAMES = ("-h", "--help")
# What people type who know other programs, and what it is here.
_STORAGE = "cxc --toolsets all tools call {}"
_OTHER_WORDS = {
    "ps": "cxc list",
    "ls": "cxc list",
    "info": "cxc status",
    "stats": "cxc list",
    "help": "cxc --help",
    "version": "cxc --version",
    "volume": _STORAGE.format("volume_list"),
    "network": _STORAGE.format("network_list"),
    "prune": _STORAGE.format("engine_prune"),
    "system": _STORAGE.format("engine_prune"),
    "events": _STORAGE.format("container_events"),
}
_NOT_YET = ("compose",)
_OTHER_OPTIONS = {
    ("run", "--rm"): "A container is removed at its end unless --keep is given.",
    ("run", "-t"): "A container gets no terminal; -i hands it our stdin.",
    ("run", "--tty"): "A container gets no terminal; -i hands it our stdin.",
    ("exec", "-t"): "A command gets no terminal; -i hands it our stdin.",
    ("exec", "--tty"): "A command gets no terminal; -i hands it our stdin.",
}
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(slots=True)
class Given:
    """What was given of the global options; what stands after the command's name is the stronger.

    `settings` maps the settings that were really given as flags to their values. `serve` is how the process serves MCP.
    """

    serve: Serve | None = None
    config_file: Path | None = None
    json: bool = False
    yes: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def given_in(context: click.Context) -> Given:
    """Return what was given so far."""
    found = context.find_object(Given)
    if found is None:
        found = context.find_root().obj = Given()
    return found


def _keep_config_file(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        given_in(context).config_file = Path(value)


def _keep_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        given_in(context).json = True


def _keep_yes(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        given_in(context).yes = True


def _keep_setting(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value not in (None, False, ()) and parameter.name is not None:
        given_in(context).settings[parameter.name] = _list(value) if isinstance(value, tuple) else value


def _list(values: Iterable[str]) -> list[str]:
    return [entry.strip() for value in values for entry in value.split(",") if entry.strip()]


def _setting(
    flag: str,
    help: str,
    *,
    metavar: str | None = None,
    type: click.ParamType[Any] | None = None,
    is_flag: bool = False,
    multiple: bool = False,
) -> click.Option:
    return click.Option(
        [flag],
        help=help,
        metavar=metavar,
        type=type,
        is_flag=is_flag or None,  # False would let click make the value optional
        multiple=multiple,
        callback=_keep_setting,
        expose_value=False,
    )


def global_options() -> list[click.Parameter]:
    """Return the options that every command has. Eager ones first: `--json` counts for errors of the others too."""
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_keep_json,
            help="Print one JSON document, errors included.",
        ),
        click.Option(
            ["-y", "--yes"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_keep_yes,
            help="Agree beforehand to what a destructive command asks.",
        ),
        click.Option(
            ["--config"],
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_keep_config_file,
            help="Settings file, instead of the one in your config folder.",
        ),
        _setting("--engine", "Engine to use.", metavar="NAME"),
        _setting("--read-only", "Refuse everything that changes something.", is_flag=True),
        _setting("--toolsets", "Toolsets to offer: names, default or all.", metavar="NAMES", multiple=True),
        _setting("--tools", "Single tools to offer beside the toolsets.", metavar="NAMES", multiple=True),
        _setting("--exclude-tools", "Tools never to offer.", metavar="NAMES", multiple=True),
        _setting("--log-level", "Which messages of the program go to stderr.", type=click.Choice(LOG_LEVELS)),
    ]


class Command(click.Command):
    """A command that knows the global options and lists them by name only: the help of `cxc` explains them."""

    def __init__(
        self,
        name: str,
        *,
        help: str,
        callback: Callable[..., object],
        params: Sequence[click.Parameter] = (),
        interspersed: bool = True,
    ) -> None:
        settings = {"help_option_names": list(HELP_NAMES), "allow_interspersed_args": interspersed}
        everything = [*params, *global_options()]
        super().__init__(name, help=help, callback=callback, params=everything, context_settings=settings)
        self.own_params = tuple(params)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Raises UsageError, which says what stands here for an option of other programs."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            instead = _OTHER_OPTIONS.get((self.name or "", error.option_name))
            if instead is None:
                raise
            raise click.UsageError(f"There is no option {error.option_name!r}. {instead}", ctx) from error
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click does not say of all of them which command they are about
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the names of the global ones."""
        _write_own(self, self.own_params, ctx, formatter)


class Group(click.Group):
    """A group of commands; a mistyped name is answered with the nearest."""

    def __init__(
        self,
        name: str,
        *,
        help: str,
        callback: Callable[..., object],
        params: Sequence[click.Parameter] = (),
        is_root: bool = False,
    ) -> None:
        super().__init__(
            name,
            help=help,
            callback=callback,
            params=[*params, *global_options()],
            context_settings={"help_option_names": list(HELP_NAMES)},
            invoke_without_command=True,
            subcommand_metavar="COMMAND [ARGUMENT]...",
        )
        self.own_params = tuple(self.params if is_root else params)
        self.is_root = is_root

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they were added, which is the order of use."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UsageError with the nearest name."""
        name = args[0]
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"There is no command {name!r}.{self._instead(name)}", ctx)

    def _instead(self, name: str) -> str:
        if self.is_root and name in _OTHER_WORDS:
            return f" Try '{_OTHER_WORDS[name]}'."
        if self.is_root and name in _NOT_YET:
            return " This program cannot do that yet."
        near = get_close_matches(name, self.commands, n=1, cutoff=0.5)
        return f" Did you mean {near[0]!r}?" if near else ""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options (all of them for the root), then the commands."""
        if self.is_root:
            click.Command.format_options(self, ctx, formatter)
        else:
            _write_own(self, self.own_params, ctx, formatter)
        self.format_commands(ctx, formatter)


def _write_own(
    command: click.Command, own: Iterable[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    rows = help_records(own, ctx)
    if rows:
        with formatter.section("Options"):
            formatter.write_dl(rows)
    names = [max(one.opts, key=len) for one in global_options()]
    with formatter.section("Options of every command (see cxc --help)"):
        formatter.write_text(" ".join([*names, "--help"]))


def help_records(parameters: Iterable[click.Parameter], ctx: click.Context) -> list[tuple[str, str]]:
    """Return each option with what it means; the usage line shows the arguments."""
    options = [one for one in parameters if isinstance(one, click.Option)]
    return [record for one in options if (record := one.get_help_record(ctx)) is not None]


def wants_json(arguments: Sequence[str]) -> bool:
    """Guess from unparsed arguments whether errors are wanted as JSON; for when parsing them was what failed."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in before


def is_terminal(stream: object) -> bool:
    """Say whether a stream is a terminal; one that is closed or missing is none."""
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]  # sys.stdin and the like may also be None
    except (AttributeError, ValueError):
        return False


def can_ask() -> bool:
    """Say whether there is a person to ask: stdin and stderr are terminals."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)
