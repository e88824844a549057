"""How does one call flow? Validate, gate, run, answer, and on the way out redact, trim, audit: for every face, here and nowhere else."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import anyio
from pydantic import BaseModel

from codomyrmex_containerization import errors
from codomyrmex_containerization.context import Context, Progress, no_progress
from codomyrmex_containerization.dispatch import budget, confirm, gate
from codomyrmex_containerization.dispatch.audit import Audit
from codomyrmex_containerization.models.settings import Settings
from codomyrmex_containerization.tools._answer import Answer
from codomyrmex_containerization.tools._decorator import Plan, ToolSpec

logger = logging.getLogger(__name__)

Reply = Literal["accept", "decline", "cancel"]
Ask = Callable[[str], Awaitable[Reply]]

ASK_SECONDS = 600.0
_ERROR_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and how a person behind it can be asked.

    `ask` puts a question now; `can_defer` says that an unanswered question may be the outcome and that the call comes back with `reply` and
    `pending` (the state that went with the question). `agreed` is a person's word given beforehand (`--yes`). `characters` is the room for
    an answer (None: as it is set).
    """

    face: Literal["mcp", "cli", "python"]
    progress: Progress = no_progress
    ask: Ask | None = None
    can_defer: bool = False
    reply: Reply | None = None
    pending: str | None = None
    agreed: bool = False
    characters: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a face shows: text, structured content of a success, or an error's code and details; or a question to put."""

    text: str
    structured: dict[str, Any] | None = None
    error: errors.ContainerizationError | None = None
    error_data: dict[str, Any] = field(default_factory=dict)
    question: str | None = None
    pending: str | None = None


@dataclass(slots=True)
class _Story:
    """What the audit line will say."""

    decision: str = "allowed"
    outcome: str = "success"


class Dispatcher:
    """The one way into the tools."""

    def __init__(
        self,
        *,
        tools: Mapping[str, ToolSpec],
        settings: Settings,
        context: Context,
        audit: Audit,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._tools = tools
        self._settings = settings
        self._context = context
        self._audit = audit
        self._tokens = confirm.Tokens()
        self._before = before
        self.offered = gate.offered(tools, settings)
        self.listed = gate.listed(self.offered, settings)

    def spec(self, name: str) -> ToolSpec:
        """Return an offered tool. Raises NotFound, Refused."""
        return gate.find_tool(name, self._tools, self.offered, self._settings)

    async def call(self, name: str, arguments: Mapping[str, Any] | None, caller: Caller) -> Outcome:
        """Carry a call out. Never raises but for the cancellation of the caller's own scope."""
        began = time.monotonic()
        story = _Story()
        given = dict(arguments or {})
        try:
            outcome = await self._call(name, given, caller, story)
        except errors.ContainerizationError as error:
            story.outcome = error.code
            outcome = self._failed(error)
        except anyio.get_cancelled_exc_class():
            story.outcome = "cancelled"
            raise
        except Exception as error:  # noqa: BLE001  the one place where a defect becomes an answer
            story.outcome = "internal_error"
            outcome = self._failed(_defect(name, error))
        finally:
            self._audit.write(
                tool=name[:128],
                arguments=self._shown(given),
                decision=story.decision,
                outcome=story.outcome,
                seconds=time.monotonic() - began,
                face=caller.face,
            )
        return outcome

    async def _call(self, name: str, given: dict[str, Any], caller: Caller, story: _Story) -> Outcome:
        spec = self.spec(name)
        token = given.pop(gate.CONFIRM, None) if spec.plan is not None else None
        self._context.redactor.learn_arguments(given)
        parsed = gate.parse(spec, given)
        values = arguments_of(parsed)
        gate.judge_access(spec, values, self._settings)
        if self._before is not None:
            await self._before()
        context = replace(self._context, progress=self._redacted(caller.progress))
        limit = spec.deadline(values)
        asked = await self._confirm(spec, context, values, token, caller, story, limit)
        if asked is not None:
            return asked
        try:
            with anyio.fail_after(limit):
                answer = await spec.function(context, **values)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"{name} took longer than {limit:g} seconds and was given up.", hint="see container_runtime_status"
            ) from error
        return self._answered(answer, caller.characters or self._settings.answer_characters)

    async def _confirm(
        self,
        spec: ToolSpec,
        context: Context,
        values: Mapping[str, Any],
        token: object,
        caller: Caller,
        story: _Story,
        limit: float,
    ) -> Outcome | None:
        """Return None when the call may go on, an outcome with a question when it has to be put first."""
        if spec.plan is None or spec.effect(values) == "read":
            return None
        plan = await self._plan(spec, context, values, limit)
        if plan is None:
            story.decision = "own object"
            return None
        if self._settings.confirmation == "never" or caller.agreed:
            story.decision = "confirmed beforehand"
            return None
        digest = confirm.digest(spec.name, values, plan)
        if caller.reply is not None:
            self._replied(caller, digest, plan, story)
            return None
        if self._settings.confirmation != "token" and (caller.ask is not None or caller.can_defer):
            return await self._ask(spec, context, values, plan, digest, caller, story, limit)
        if self._settings.confirmation == "elicit":
            raise errors.Refused(
                "This server confirms destructive calls by asking a person, and this client cannot ask.",
                hint="use a client with elicitation, or have the server started with confirmation = 'token'",
            )
        self._redeem(token, digest, plan, story)
        return None

    async def _ask(
        self,
        spec: ToolSpec,
        context: Context,
        values: Mapping[str, Any],
        plan: Plan,
        digest: str,
        caller: Caller,
        story: _Story,
        limit: float,
    ) -> Outcome | None:
        question = self._context.redactor.text(confirm.question(plan))
        if caller.ask is None:
            story.outcome = "asked"
            return Outcome(text=question, question=question, pending=self._tokens.issue("question", digest))
        with anyio.move_on_after(ASK_SECONDS):
            reply = await caller.ask(question)
            if reply != "accept":
                raise _declined(plan)
            again = await self._plan(spec, context, values, limit)
            if again is not None and confirm.digest(spec.name, values, again) != digest:
                raise errors.Conflict(
                    "What was asked about has changed meanwhile.", hint="call again to be asked about its state of now"
                )
            story.decision = "confirmed by a person"
            return None
        raise errors.Declined("Nobody answered the question in time.", hint="call again when the user is there")

    def _replied(self, caller: Caller, digest: str, plan: Plan, story: _Story) -> None:
        verdict = self._tokens.redeem(caller.pending or "", "question", digest)
        if caller.reply != "accept":
            raise _declined(plan)
        if verdict != "valid":
            raise errors.Conflict(
                "The answer does not belong to this call as it stands now.", hint="call again to be asked anew"
            )
        story.decision = "confirmed by a person"

    def _redeem(self, token: object, digest: str, plan: Plan, story: _Story) -> None:
        verdict = self._tokens.redeem(token, "token", digest) if isinstance(token, str) else None
        if verdict == "valid":
            story.decision = "confirmed by token"
            return
        why = {
            None: "",
            "unknown": "The confirm_token is not one of this server, or was used already. ",
            "expired": "The confirm_token has expired. ",
            "other": "The confirm_token was given for another call, or the state has changed since. ",
        }[verdict]
        story.decision = "not confirmed"
        fresh = self._tokens.issue("token", digest)
        raise errors.ConfirmationRequired(
            f"{why}{confirm.question(plan)}",
            hint=f"ask the user; if they agree, repeat the call with confirm_token (valid {confirm.TOKEN_SECONDS:g} seconds, once)",
            details={"confirm_token": fresh, "lost": list(plan.lost)},
        )

    async def _plan(self, spec: ToolSpec, context: Context, values: Mapping[str, Any], limit: float) -> Plan | None:
        if spec.plan is None:
            return None
        try:
            with anyio.fail_after(limit):
                return await spec.plan(context, **values)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"{spec.name}: finding out what would be lost took longer than {limit:g} seconds.",
                hint="see container_runtime_status",
            ) from error

    def _answered(self, answer: Answer, limit: int) -> Outcome:
        redactor = self._context.redactor
        plain = answer.model_dump(mode="json", exclude_none=True)
        redacted = redactor.value(plain)
        if redacted != plain:
            private = answer.__pydantic_private__
            answer = type(answer).model_validate(redacted)
            object.__setattr__(answer, "__pydantic_private__", private)
        fitted, text = budget.fit(answer, limit)
        structured = _dict(redacted) if fitted is answer else fitted.model_dump(mode="json", exclude_none=True)
        return Outcome(text=redactor.text(text), structured=structured)

    def _failed(self, error: errors.ContainerizationError) -> Outcome:
        redactor = self._context.redactor
        details = dict(error.details)
        token = details.pop("confirm_token", None)
        limit = int(self._settings.answer_characters * _ERROR_SHARE)
        text = budget.cut_text(redactor.text(error.text()), limit)
        data: dict[str, Any] = {
            "code": error.code,
            "message": redactor.text(error.message)[:limit],
            "hint": redactor.text(error.hint),
            "retryable": error.retryable,
        }
        data |= {
            name: value
            for name, value in _dict(redactor.value(cast("Any", details))).items()
            if value is not None and name != "log"
        }
        if isinstance(token, str):
            # The token is for the caller's eyes: the one secret-looking value that leaves.
            data["confirm_token"] = token
            text += f"\nconfirm_token: {token}"
        return Outcome(text=f"{error.code}: {text}", error=error, error_data=data)

    def _redacted(self, progress: Progress) -> Progress:
        async def report(done: float, total: float | None, message: str) -> None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await progress(done, total, self._context.redactor.text(message)[:500])

        return report

    def _shown(self, given: Mapping[str, Any]) -> Any:
        try:
            return self._context.redactor.value(dict(given))
        except Exception:  # noqa: BLE001  an argument that cannot even be shown must not hide the call from the audit
            return "(not shown)"


def arguments_of(parsed: BaseModel) -> dict[str, Any]:
    """Return checked arguments as the tool's function takes them."""
    return {field.alias or name: getattr(parsed, name) for name, field in type(parsed).model_fields.items()}


def _declined(plan: Plan) -> errors.Declined:
    return errors.Declined(
        f"The user did not agree: {plan.action}.", hint="do not repeat the call; ask the user what to do instead"
    )


def _defect(name: str, error: Exception) -> errors.InternalError:
    id = secrets.token_hex(4)
    logger.error("internal error %s in %s", id, name, exc_info=error)
    return errors.InternalError(
        f"A defect of this server stopped {name} (id {id}; its log on stderr says more).",
        hint="try another way; report the id",
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
