"""How does a table entry become a command? Options in, a tool called through the gate, an answer shown, an exit status out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from codomyrmex_containerization.cli import options, progress, screen, session, words
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


def show_text(one: Answered, to: Screen) -> None:
    """Print the answer's own text."""
    to.line(one.text)


def usual_status(outcome: Outcome) -> int:
    """Return 0, or what stands for the error's code."""
    return outcome.error.exit_status if outcome.error is not None else 0


def given_arguments(values: Values) -> dict[str, Any]:
    """Return what was given; what was not is left to the tool's own defaults."""
    return {name: _plain(value) for name, value in values.items() if not _is_absent(value)}


def _is_absent(value: object) -> bool:
    return value is None or value is False or value in ((), {})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class ToolCommand:
    """A command that calls a tool.

    A blank in `name` parts a group from the command in it. `params` are named as the tool's arguments, so that most need no
    `to_arguments`; `fixed` are arguments that the command's name implies. `each` is the argument that may be given several times: one
    call for each. `own_errors` is the exit status of errors before the call (None: by the error's code). `on_demand`: the tool is offered
    for this command, whatever toolsets are.
    """

    name: str
    tool: str
    help: str
    params: tuple[click.Parameter, ...] = ()
    to_arguments: Callable[[Values], dict[str, Any]] = given_arguments
    fixed: Data = field(default_factory=dict)
    show: Callable[[Answered, Screen], None] = show_text
    exit_status: Callable[[Outcome], int] = usual_status
    each: str = ""
    interspersed: bool = True
    own_errors: int | None = None
    on_demand: bool = False


# ------------------------------------------------------------------------------------------------- options of an entry


def option(
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
    """Return an option; `flags` are parted by '/', `name` is the tool's argument."""
    more: dict[str, Any] = {"default": default} if default is not None else {}
    return click.Option(
        [*flags.split("/"), name],
        help=help,
        metavar=metavar,
        type=type,
        multiple=multiple,
        is_flag=is_flag or None,  # False would let click make the value optional
        required=required,
        callback=callback,
        **more,
    )


def flag(flags: str, name: str, help: str) -> click.Option:
    """Return an option without a value."""
    return option(flags, name, help, is_flag=True)


def many(
    flags: str,
    name: str,
    metavar: str,
    help: str,
    callback: Callable[[click.Context, click.Parameter, Any], Any] | None = None,
) -> click.Option:
    """Return an option that may be given several times."""
    return option(flags, name, help, metavar=metavar, multiple=True, callback=callback)


# ------------------------------------------------------------------------------------------------------- carrying it out


def click_command(entry: ToolCommand, known: words.Commands) -> options.Command:
    """Return the click command of an entry; called, it returns the exit status. `known` are all commands, for advice."""

    def callback(**values: Any) -> int:
        return carry_out(entry, values, options.given_in(click.get_current_context()), known)

    return options.Command(
        entry.name.rpartition(" ")[2],
        help=entry.help,
        callback=callback,
        params=entry.params,
        interspersed=entry.interspersed,
    )


def carry_out(entry: ToolCommand, values: Values, given: options.Given, known: words.Commands) -> int:
    """Call the tool, once or for each of several objects, and show what it answered. Raises what comes up before the first call."""
    to = Screen(json=given.json)
    plain = {**entry.to_arguments(values), **entry.fixed}
    if entry.on_demand:
        given.settings["tools"] = [*given.settings.get("tools", ()), entry.tool]
    calls = [plain] if not entry.each else [{**plain, entry.each: one} for one in dict.fromkeys(values[entry.each])]

    async def work(application: Application) -> list[Outcome]:
        outcomes = []
        for one in calls:
            outcome = await _call(application, entry, one, given, to)
            outcomes.append(outcome)
            if not to.json:
                _show(entry, outcome, values, to, known)
        return outcomes

    outcomes = session.run(given, to, work)
    if to.json:
        to.document(_document([_json_answer(entry, outcome, known) for outcome in outcomes]))
    return next((status for outcome in outcomes if (status := entry.exit_status(outcome)) != 0), 0)


async def _call(
    application: Application, entry: ToolCommand, given_arguments: Data, given: options.Given, to: Screen
) -> Outcome:
    shown = progress.reporter(to)
    try:
        asked = _with_engine(entry.tool, given_arguments, given)
        return await application.dispatcher.call(entry.tool, asked, session.caller(given, to, shown))
    finally:
        shown.close()


def _with_engine(tool: str, given_arguments: Data, given: options.Given) -> Data:
    """Ask the engine of `--engine` and no other: listings without an engine ask all of them."""
    engine = given.settings.get("engine")
    if engine is None:
        return given_arguments
    from codomyrmex_containerization.dispatch import application

    spec = application.tools().get(tool)
    takes_one = spec is not None and "engine" in spec.arguments.model_fields
    return {"engine": engine, **given_arguments} if takes_one else given_arguments


def _show(entry: ToolCommand, outcome: Outcome, values: Values, to: Screen, known: words.Commands) -> None:
    if outcome.error is not None:
        data = _error_data(entry, outcome, known)
        to.failure(data["code"], screen.with_next_step(data["message"], data["hint"]))
        return
    answer = outcome.structured or {}
    entry.show(Answered(answer, outcome.text, values), to)
    if "truncated" in answer:
        to.note(f"[{_advice(entry, str(answer['truncated']), known)}]")


def _json_answer(entry: ToolCommand, outcome: Outcome, known: words.Commands) -> dict[str, Any]:
    if outcome.error is not None:
        return screen.error_document(_error_data(entry, outcome, known))
    return outcome.structured or {}


def _document(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the one answer as it is, several under `results`."""
    if len(answers) == 1:
        return answers[0]
    failed = any(answer["status"] == "error" for answer in answers)
    return {"status": "error" if failed else "success", "results": list(answers)}


def _error_data(entry: ToolCommand, outcome: Outcome, known: words.Commands) -> dict[str, Any]:
    """Return what is known of an error, its advice in words of the command line."""
    data = dict(outcome.error_data)
    if data["code"] == "confirmation_required":
        # A token dies with this process: here a person agrees on the terminal or beforehand.
        data.pop("confirm_token", None)
        data["hint"] = "if that is what you want, repeat the command with --yes, or on a terminal to be asked"
    elif data["code"] == "declined":
        data["hint"] = ""  # who said no just now needs no advice
    else:
        data["hint"] = _advice(entry, str(data.get("hint", "")), known)
        data["message"] = words.of_argument(str(data.get("message", "")), entry.tool, words.options_of(entry.params))
    return data


def _advice(entry: ToolCommand, text: str, known: words.Commands) -> str:
    return words.for_a_person(text, known, words.options_of(entry.params))
