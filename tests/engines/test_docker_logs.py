"""Does a log read from a real Docker engine show the lines that were asked for, and count the others truly?"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.harness import House

Speak = Callable[..., str]


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def speak(docker_cli: DockerCommandLine, busybox_image: str, session_label: str) -> Iterator[Speak]:
    """Run a script in a container that stays, ended, with its log."""
    names: list[str] = []

    def run(script: str, *options: str) -> str:
        name = f"cxc-test-{uuid.uuid4().hex[:8]}"
        names.append(name)
        docker_cli(
            ["run", "--name", name, "--label", session_label, *options, busybox_image, "sh", "-c", script], check=False
        )
        return name

    yield run
    if names:
        docker_cli(["rm", "--force", *names], check=False)


@pytest.fixture(scope="module")
def both(speak: Speak) -> str:
    """A container that said 300 numbered lines, every third on stderr."""
    return speak(
        "i=0; while [ $i -lt 300 ]; do i=$((i+1)); if [ $((i%3)) = 0 ]; then echo n $i >&2; else echo n $i; fi; done"
    )


async def texts(container: str, **more: Any) -> list[str]:
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=container, **more)
        return [line["text"] for line in answer["lines"]]


async def test_last_lines_are_shown_of_both_streams_and_the_rest_is_counted(both: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=both, tail=10)
        # Between the streams the engine keeps no order; within each it does.
        for stream in ("stdout", "stderr"):
            found = [int(line["text"].split()[1]) for line in answer["lines"] if line["stream"] == stream]
            assert found == sorted(found)
        assert len(answer["lines"]) == 10
        assert answer["total"] == 300
        assert "300 lines" in answer["truncated"]
        assert not answer["at_least"]


async def test_log_that_is_shown_whole_is_not_called_cut(both: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=both, tail=300)
        assert answer["total"] == len(answer["lines"]) == 300
        assert "truncated" not in answer


@pytest.mark.parametrize(("stream", "count"), [("stdout", 200), ("stderr", 100)])
async def test_one_stream_is_counted_for_itself(both: str, stream: str, count: int) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=both, stream=stream, tail=90)
        assert {line["stream"] for line in answer["lines"]} == {stream}
        assert len(answer["lines"]) == 90
        assert answer["total"] == count


async def test_search_finds_any_alternative_whatever_the_case_and_counts_what_it_found(both: str) -> None:
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=both, grep="N 29|n 1", tail=5)
        assert len(answer["lines"]) == 5
        assert answer["total"] == 11 + 111
        assert await texts(both, grep="no such line") == []


async def test_text_that_would_be_a_pattern_is_searched_as_it_is(speak: Speak) -> None:
    container = speak("echo 'a.c'; echo abc; echo '[x'")
    assert await texts(container, grep="a.c") == ["a.c"]
    assert await texts(container, grep="[x") == ["[x"]


async def test_times_are_shown_when_asked_for_and_bound_what_is_shown(speak: Speak) -> None:
    container = speak("echo one; sleep 1.1; echo two; sleep 1.1; echo three")
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=container, timestamps=True)
        one, two, three = (line["time"] for line in answer["lines"])
        assert one < two < three
        assert await _shown(house, container, since=two) == ["two", "three"]
        assert await _shown(house, container, until=two) == ["one"]
        assert await _shown(house, container, since=two, until=three) == ["two"]
        assert await _shown(house, container, since="1h") == ["one", "two", "three"]
        assert await _shown(house, container, until="1h") == []
        only = await house.ok("container_logs", container=container, since=two, tail=1)
        assert only["total"] == 2
        await house.fails("invalid_argument", "container_logs", container=container, since=three, until=one)
        plain = await house.ok("container_logs", container=container)
        assert all("time" not in line for line in plain["lines"])


async def _shown(house: House, container: str, **more: Any) -> list[str]:
    answer = await house.ok("container_logs", container=container, **more)
    assert answer["total"] == len(answer["lines"])
    return [line["text"] for line in answer["lines"]]


async def test_key_whose_beginning_lies_before_the_time_that_is_asked_for_stays_masked(speak: Speak) -> None:
    body = [f"{chr(65 + number)}bcdefghijklmnopqrstuvwxyz0123456789" for number in range(5)]
    lines = ["-----BEGIN EC PRIVATE KEY-----", *body, "-----END EC PRIVATE KEY-----", "after"]
    container = speak("; sleep 0.05; ".join(f"echo '{line}'" for line in lines))
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=container, timestamps=True)
        for line in answer["lines"]:
            shown = await _shown(house, container, since=line["time"])
            assert shown[-1] == "after"
            assert not set(shown) & set(body)


async def test_bytes_that_are_no_text_and_escapes_become_visible_or_go(speak: Speak) -> None:
    container = speak(r"printf '\033[1;31mred\033[0m\n\377\376\n\303\244\n\033]0;title\007x\nbefore\rafter\n\tq\n'")
    shown = await texts(container)
    assert [shown[0], *shown[2:4]] == ["red", "ä", "x"]
    assert shown[1] in ("\\xff\\xfe", "\ufffd\ufffd")  # the json-file driver replaces them itself
    assert all(char.isprintable() or char in "\t\n" for line in shown for char in line)


async def test_log_of_a_terminal_is_read_as_one_stream(speak: Speak) -> None:
    container = speak("echo out; echo err >&2", "--tty")
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=container)
        assert [(line["stream"], line["text"]) for line in answer["lines"]] == [("stdout", "out"), ("stdout", "err")]


@pytest.mark.parametrize("length", [16_383, 16_384, 16_385, 40_000, 100_000])
async def test_long_line_is_one_line_and_is_cut_in_its_middle(speak: Speak, length: int) -> None:
    container = speak(f"head -c {length} /dev/zero | tr '\\0' x; echo; echo next")
    async with harness.opened() as house:
        answer = await house.ok("container_logs", container=container)
        assert [line["text"] for line in answer["lines"]][1:] == ["next"]
        assert answer["total"] == 2
        assert "left out" in answer["lines"][0]["text"]
        assert len(answer["lines"][0]["text"]) < 5_000


async def test_last_line_without_its_end_is_shown(speak: Speak) -> None:
    assert await texts(speak("echo one; printf two")) == ["one", "two"]


async def test_container_that_said_nothing_says_so(speak: Speak) -> None:
    container = speak("true")
    async with harness.opened() as house:
        outcome = await house.call("container_logs", container=container)
        assert "no lines" in outcome.text
        assert container in outcome.text


async def test_log_that_the_driver_keeps_from_everybody_is_unsupported(speak: Speak) -> None:
    container = speak("echo x", "--log-driver", "none")
    async with harness.opened() as house:
        await house.fails("unsupported", "container_logs", container=container)


async def test_following_ends_with_the_container_or_with_its_time(busybox_image: str) -> None:
    async with harness.opened() as house:
        script = "echo first; sleep 0.5; echo last"
        made = await house.ok("container_run", image=busybox_image, command=["sh", "-c", script], detach=True)
        answer = await house.ok("container_logs", container=made["name"], follow_seconds=60)
        assert [line["text"] for line in answer["lines"]] == ["first", "last"]
        made = await house.ok(
            "container_run", image=busybox_image, command=["sh", "-c", "echo first; sleep 60"], detach=True
        )
        answer = await house.ok("container_logs", container=made["name"], follow_seconds=0.5)
        assert [line["text"] for line in answer["lines"]] == ["first"]
        assert answer["state"] == "running"


# ------------------------------------------------------------------------------------------- how a container is named


async def test_container_is_found_by_name_id_and_short_id(both: str, docker_cli: DockerCommandLine) -> None:
    id = docker_cli(["inspect", "--format", "{{.Id}}", both]).stdout.strip()
    async with harness.opened() as house:
        for name in (both, f"/{both}", id, id[:12], id[:20]):
            assert (await house.ok("container_logs", container=name, tail=1))["container"] == both


async def test_unknown_name_names_the_nearest(both: str) -> None:
    async with harness.opened() as house:
        outcome = await house.fails("not_found", "container_logs", container=f"{both[:-1]}_")
        assert both in outcome.error_data["hint"]


async def test_ambiguous_short_id_lists_the_candidates(docker_cli: DockerCommandLine, speak: Speak) -> None:
    for _ in range(17):
        first: dict[str, str] = {}
        for id in docker_cli(["ps", "--all", "--quiet", "--no-trunc"]).stdout.split():
            if id[0] in first:
                async with harness.opened() as house:
                    outcome = await house.fails("ambiguous", "container_logs", container=id[0])
                    assert id[:12] in outcome.text or first[id[0]][:12] in outcome.text
                return
            first[id[0]] = id
        speak("true")
    raise AssertionError("seventeen ids begin with different digits")


@pytest.mark.parametrize("name", ["-x", "--all", "a b", "a/b", "../x", "é", "a;b", "$(id)", ""])
async def test_what_is_no_name_is_an_invalid_argument(name: str, docker_socket: object) -> None:
    async with harness.opened() as house:
        for tool in ("container_logs", "container_inspect", "container_remove"):
            await house.fails("invalid_argument", tool, container=name)
