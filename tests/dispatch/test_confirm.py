"""Is nothing destroyed that a person did not agree to lose, just as it was when they were asked?"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from codomyrmex_containerization.dispatch import confirm
from codomyrmex_containerization.dispatch.call import Caller
from codomyrmex_containerization.tools._decorator import Plan
from tests import tally
from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House, Reply

PLAN = Plan("Remove x", ("x",), "state-1")


# -------------------------------------------------------------------------------------------------------------- tokens


def test_token_is_good_once_for_its_own_digest() -> None:
    tokens = confirm.Tokens()
    token = tokens.issue("token", "d")
    assert tokens.redeem(token, "token", "d") == "valid"
    assert tokens.redeem(token, "token", "d") == "unknown"


def test_token_for_another_digest_or_of_another_kind_is_used_up() -> None:
    tokens = confirm.Tokens()
    for kind, digest, verdict in (("token", "other", "other"), ("question", "d", "unknown")):
        token = tokens.issue("token", "d")
        assert tokens.redeem(token, kind, digest) == verdict  # type: ignore[arg-type]  # kinds of the table above
        assert tokens.redeem(token, "token", "d") == "unknown"


def test_token_of_another_process_is_unknown() -> None:
    assert confirm.Tokens().redeem(confirm.Tokens().issue("token", "d"), "token", "d") == "unknown"


@pytest.mark.attack(tally.TOKENS)
def test_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tokens = confirm.Tokens()
    token, late = tokens.issue("token", "d"), tokens.issue("token", "d")
    now += confirm.TOKEN_SECONDS - 1
    assert tokens.redeem(token, "token", "d") == "valid"
    now += 1
    with tally.attempt():
        assert tokens.redeem(late, "token", "d") == "expired"


def test_tokens_that_are_out_are_bounded_and_the_newest_are_kept() -> None:
    tokens = confirm.Tokens()
    issued = [tokens.issue("token", str(number)) for number in range(1_000)]
    assert tokens.redeem(issued[0], "token", "0") == "unknown"
    assert tokens.redeem(issued[-1], "token", "999") == "valid"


def test_digest_binds_tool_arguments_and_state() -> None:
    given: dict[str, Any] = {"container": "x", "force": False}
    first = confirm.digest("container_remove", given, PLAN)
    assert first == confirm.digest("container_remove", dict(reversed(given.items())), PLAN)
    assert first != confirm.digest("image_remove", given, PLAN)
    assert first != confirm.digest("container_remove", {**given, "force": True}, PLAN)
    assert first != confirm.digest("container_remove", given, Plan("Remove x", ("x",), "state-2"))


# ---------------------------------------------------------------------------------------------- a stranger's container


@pytest.fixture
def stranger(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[str]:
    """A running container with an anonymous volume, which somebody else made."""
    name = f"cxc-test-{uuid.uuid4().hex[:8]}"
    docker_cli(
        [
            *("run", "--detach", "--name", name, "--label", session_label, "--volume", "/data", busybox_image),
            *("sh", "-c", "echo changed > /file; sleep 300"),
        ]
    )
    yield name
    docker_cli(["rm", "--force", "--volumes", name], check=False)


def exists(docker_cli: DockerCommandLine, name: str) -> bool:
    return docker_cli(["inspect", name], check=False).returncode == 0


async def asked(house: House, name: str, **more: Any) -> tuple[str, str]:
    """Ask for a removal without a token; return the token and the text."""
    outcome = await house.fails("confirmation_required", "container_remove", container=name, force=True, **more)
    token = outcome.error_data["confirm_token"]
    assert isinstance(token, str)
    return token, outcome.text


async def test_removal_says_exactly_what_would_be_lost_and_a_token_carries_it_out(
    stranger: str, docker_cli: DockerCommandLine
) -> None:
    async with harness.opened() as house:
        token, text = await asked(house, stranger, volumes=True)
        assert exists(docker_cli, stranger)
        for word in (stranger, "running", "changed files", "anonymous volumes", "log", f"confirm_token: {token}"):
            assert word in text
        answer = await house.ok("container_remove", container=stranger, force=True, volumes=True, confirm_token=token)
        assert answer["name"] == stranger
        assert not exists(docker_cli, stranger)
        assert [line["decision"] for line in house.audit()] == ["not confirmed", "confirmed by token"]
        assert token not in house.audit_file.read_text()


@pytest.mark.attack(tally.TOKENS)
@pytest.mark.parametrize("change", ["arguments", "state", "tool", "used", "forged", "not a text"])
async def test_token_does_not_hold_for_anything_else(stranger: str, docker_cli: DockerCommandLine, change: str) -> None:
    async with harness.opened() as house:
        token, _ = await asked(house, stranger)
        arguments: dict[str, Any] = {"container": stranger, "force": True, "confirm_token": token}
        match change:
            case "arguments":
                arguments["volumes"] = True
            case "state":
                docker_cli(["restart", "--time", "0", stranger])
            case "used":
                await house.fails("confirmation_required", "container_remove", {**arguments, "volumes": True})
            case "forged":
                arguments["confirm_token"] = "A" * 16
            case "not a text":
                arguments["confirm_token"] = [token]
            case _:
                arguments = {"image": docker_cli(["inspect", "--format", "{{.Image}}", stranger]).stdout.strip()}
                arguments["confirm_token"] = token
        tool = "image_remove" if change == "tool" else "container_remove"
        with tally.attempt():
            outcome = await house.call(tool, arguments)
            assert outcome.error is not None
            assert exists(docker_cli, stranger)


async def test_running_container_is_not_even_asked_about_without_force(stranger: str) -> None:
    async with harness.opened() as house:
        outcome = await house.fails("conflict", "container_remove", container=stranger)
        assert "force" in outcome.error_data["hint"]
        assert "confirm_token" not in outcome.text


async def test_own_container_is_removed_without_a_question(busybox_image: str, docker_cli: DockerCommandLine) -> None:
    async with harness.opened() as house:
        made = await house.ok("container_run", image=busybox_image, command="sleep 60", detach=True)
        await house.ok("container_remove", container=made["name"], force=True)
        assert not exists(docker_cli, made["name"])
        assert house.audit()[-1]["decision"] == "own object"


@pytest.mark.attack(tally.LABELS)
async def test_container_that_wears_this_runs_labels_but_is_a_strangers_is_asked_about(
    busybox_image: str, docker_cli: DockerCommandLine
) -> None:
    name = f"cxc-test-{uuid.uuid4().hex[:8]}"
    async with harness.opened() as house:
        run = house.application.run
        labels = {"host": run.host, "run": run.run, "lifetime": "call", "expires": ""}
        options = [f"--label=codomyrmex.containerization.{key}={value}" for key, value in labels.items()]
        docker_cli(["create", "--name", name, *options, busybox_image, "true"])
        with tally.attempt():
            await house.fails("confirmation_required", "container_remove", container=name)
            assert exists(docker_cli, name)


# ----------------------------------------------------------------------------------------------- clients that can ask


@pytest.mark.parametrize(("reply", "code"), [("accept", None), ("decline", "declined"), ("cancel", "declined")])
async def test_answer_to_a_question_decides(
    stranger: str, docker_cli: DockerCommandLine, reply: Reply, code: str | None
) -> None:
    questions: list[str] = []

    async def ask(question: str) -> Reply:
        questions.append(question)
        return reply

    async with harness.opened() as house:
        outcome = await house.call_asking("container_remove", {"container": stranger, "force": True}, ask)
        assert outcome.error_data.get("code") == code
        assert stranger in questions[0]
        assert exists(docker_cli, stranger) is (code is not None)


@pytest.mark.attack(tally.TOKENS)
async def test_what_changed_while_a_person_thought_is_not_removed(stranger: str, docker_cli: DockerCommandLine) -> None:
    async def ask(question: str) -> Reply:
        docker_cli(["restart", "--time", "0", stranger])
        return "accept"

    async with harness.opened() as house:
        with tally.attempt():
            outcome = await house.call_asking("container_remove", {"container": stranger, "force": True}, ask)
            assert outcome.error_data["code"] == "conflict"
            assert exists(docker_cli, stranger)


@pytest.mark.attack(tally.TOKENS)
async def test_deferred_question_is_answered_by_the_next_call(stranger: str, docker_cli: DockerCommandLine) -> None:
    async with harness.opened() as house:
        call = house.application.dispatcher.call
        arguments = {"container": stranger, "force": True}
        first = await call("container_remove", arguments, Caller("mcp", can_defer=True))
        assert first.question is not None
        assert first.pending is not None
        for pending in ("forged", None):
            forged = Caller("mcp", can_defer=True, reply="accept", pending=pending)
            with tally.attempt():
                assert (await call("container_remove", arguments, forged)).error_data["code"] == "conflict"
        other = Caller("mcp", can_defer=True, reply="accept", pending=first.pending)
        with tally.attempt():
            assert (await call("container_remove", {**arguments, "volumes": True}, other)).error is not None
            assert exists(docker_cli, stranger)
        again = await call("container_remove", arguments, Caller("mcp", can_defer=True))
        agreed = Caller("mcp", can_defer=True, reply="accept", pending=again.pending)
        assert (await call("container_remove", arguments, agreed)).error is None
        assert not exists(docker_cli, stranger)


async def test_token_of_a_deferred_question_is_no_confirmation_token(stranger: str) -> None:
    async with harness.opened() as house:
        arguments = {"container": stranger, "force": True}
        first = await house.application.dispatcher.call("container_remove", arguments, Caller("mcp", can_defer=True))
        await house.fails("confirmation_required", "container_remove", {**arguments, "confirm_token": first.pending})


@pytest.mark.parametrize("confirmation", ["elicit", "token", "never"])
async def test_setting_decides_how_is_confirmed(
    stranger: str, docker_cli: DockerCommandLine, confirmation: str
) -> None:
    async def ask(question: str) -> Reply:
        raise AssertionError(question)

    arguments = {"container": stranger, "force": True}
    async with harness.opened(confirmation=confirmation) as house:
        match confirmation:
            case "elicit":
                outcome = await house.call("container_remove", arguments)
                assert outcome.error_data["code"] == "refused"
                assert "confirmation = 'token'" in outcome.text
            case "token":
                outcome = await house.call_asking("container_remove", arguments, ask)
                assert outcome.error_data["code"] == "confirmation_required"
            case _:
                assert (await house.call("container_remove", arguments)).error is None
    assert exists(docker_cli, stranger) is (confirmation != "never")


async def test_question_holds_no_more_than_the_plan(stranger: str) -> None:
    async with harness.opened() as house:
        outcome = await house.call("container_remove", container=stranger, force=True)
        assert set(outcome.error_data) == {"code", "message", "hint", "retryable", "confirm_token", "lost"}
        json.dumps(outcome.error_data)
