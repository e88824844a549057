"""What do the short forms of arguments mean, and is everything else refused with the form that would be right?"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.container import Healthcheck, Mount, PortMapping, RestartPolicy, Ulimit
from codomyrmex_containerization.tools import _arguments as arguments

# --------------------------------------------------------------------------------------------------------------- ports


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", PortMapping(80, "tcp", "127.0.0.1", None)),
        (80, PortMapping(80, "tcp", "127.0.0.1", None)),
        ("8080:80", PortMapping(80, "tcp", "127.0.0.1", 8080)),
        ("5:6", PortMapping(6, "tcp", "127.0.0.1", 5)),
        ("8080:80/udp", PortMapping(80, "udp", "127.0.0.1", 8080)),
        ("53/udp", PortMapping(53, "udp", "127.0.0.1", None)),
        ("127.0.0.1:8080:80", PortMapping(80, "tcp", "127.0.0.1", 8080)),
        ("127.0.0.1::80", PortMapping(80, "tcp", "127.0.0.1", None)),
        ("0.0.0.0:8080:80", PortMapping(80, "tcp", "0.0.0.0", 8080)),
        ("[::1]:8080:80/tcp", PortMapping(80, "tcp", "::1", 8080)),
        ("0:80", PortMapping(80, "tcp", "127.0.0.1", None)),
        ("9:9/sctp", PortMapping(9, "sctp", "127.0.0.1", 9)),
    ],
)
def test_port_is_read(text: str | int, expected: PortMapping) -> None:
    assert arguments.ports([text]) == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "8080:",
        ":80:",
        "a:80",
        "80:a",
        "70000:80",
        "80/icmp",
        "-1",
        "80-90",
        "1:2:3",
        "::1:80:80",
        "80\n",
    ],
)
def test_text_that_is_no_port_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        arguments.ports([text])
    assert "8080:80" in refused.value.hint


# -------------------------------------------------------------------------------------------------------------- mounts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/data:/data", Mount("bind", "/data", source="/srv/data")),
        ("/srv/data:/data:ro", Mount("bind", "/data", source="/srv/data", read_only=True)),
        ("/srv/data:/data:rw", Mount("bind", "/data", source="/srv/data")),
        ("my-volume:/data", Mount("volume", "/data", source="my-volume")),
        ("my-volume:/data:ro", Mount("volume", "/data", source="my-volume", read_only=True)),
        ("tmpfs:/tmp", Mount("tmpfs", "/tmp")),
        ("tmpfs:/tmp:64m", Mount("tmpfs", "/tmp", size_bytes=64 << 20)),
    ],
)
def test_mount_is_read(text: str, expected: Mount) -> None:
    assert arguments.mounts([text]) == (expected,)


def test_relative_source_is_meant_from_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("./data:/data", ".:/data", "../x:/data"):
        (mount,) = arguments.mounts([text])
        assert mount.type == "bind"
        assert os.path.isabs(mount.source)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/a",
        "/a:",
        "/a:relative",
        ":/a",
        "/a:/b:rx",
        "/a:/b:ro:z",
        "a b:/c",
        "-v:/c",
        "v:/a/../../etc",
        "tmpfs:/t:x",
    ],
)
def test_text_that_is_no_mount_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        arguments.mounts([text])


# -------------------------------------------------------------------------------------------------- the smaller forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", ("no", 0)),
        ("always", ("always", 0)),
        ("on-failure", ("on-failure", 0)),
        ("on-failure:3", ("on-failure", 3)),
    ],
)
def test_restart_policy_is_read(text: str, expected: tuple[Any, int]) -> None:
    assert arguments.restart(text) == RestartPolicy(*expected)


@pytest.mark.parametrize(
    "text", ["", "never", "always:3", "on-failure:", "on-failure:x", "on-failure:-1", "on-failure:²"]
)
def test_text_that_is_no_restart_policy_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        arguments.restart(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("500ms", 0.5), ("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), (3, 3.0), (0.5, 0.5), (None, None)],
)
def test_duration_is_read(value: str | float | None, seconds: float | None) -> None:
    assert arguments.duration(value, name="interval") == seconds


@pytest.mark.parametrize("value", ["", "s", "-1s", "1 s", "1y", "1e3s", "\u0663s"])
def test_text_that_is_no_duration_is_refused(value: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        arguments.duration(value, name="interval")


def test_moment_ago_is_before_now_and_a_date_is_itself() -> None:
    ago = arguments.moment("10m", name="since")
    assert ago is not None
    assert timedelta(minutes=9) < datetime.now(UTC) - ago < timedelta(minutes=11)
    expected = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
    for text in ("2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:00.123456789Z", "2026-01-31T13:00:00.123456+01:00"):
        assert arguments.moment(text, name="since") == expected
    assert arguments.moment("1769860800", name="since") == expected.replace(microsecond=0)
    assert arguments.moment(None, name="since") is None


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01T00:00:00Z", "10", "-5m", "99999999999999d", "\u0663\u0660m"]
)
def test_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        arguments.moment(text, name="since")


@given(st.text(max_size=40))
def test_reading_a_time_or_a_duration_never_fails_in_another_way(text: str) -> None:
    for read in (arguments.moment, arguments.duration):
        try:
            read(text, name="x")
        except errors.InvalidArgument:
            continue


@given(st.from_regex(r"[0-9.:\[\]/a-z-]{0,30}", fullmatch=True))
def test_reading_a_port_or_a_mount_never_fails_in_another_way(text: str) -> None:
    for read in (arguments.ports, arguments.mounts):
        try:
            read([text])
        except errors.InvalidArgument:
            continue


@pytest.mark.parametrize("name", ["", " A", "A=B", "=", "\n"])
def test_name_of_a_variable_that_holds_no_name_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        arguments.env({name: "x"})


def test_command_is_split_as_a_shell_would_and_a_list_is_left_alone() -> None:
    assert arguments.command("sh -c 'a b' \"c d\"", name="command") == ("sh", "-c", "a b", "c d")
    assert arguments.command(["a b", ""], name="command") == ("a b", "")
    assert arguments.command(None, name="command") is None
    with pytest.raises(errors.InvalidArgument):
        arguments.command("echo 'never closed", name="command")


@pytest.mark.parametrize("value", ["", "-x", "--privileged", "a\x1b[0m", "a\nb"])
def test_word_that_starts_with_a_dash_or_holds_control_characters_is_refused(value: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        arguments.word(value, name="network")


def test_limits_are_joined_and_sizes_become_bytes() -> None:
    made = arguments.limits(
        "512m", 1.5, 10, {"memory_reservation": "1g", "shm_size": 64, "ulimits": {"nofile": "1:2", "core": -1}}
    )
    assert (made.memory_bytes, made.memory_reservation_bytes, made.shm_bytes) == (512 << 20, 1 << 30, 64)
    assert made.ulimits == (Ulimit("nofile", 1, 2), Ulimit("core", -1, -1))


@pytest.mark.parametrize("ulimits", [{"nofile": "x"}, {"nofile": "1:2:3"}, {"NO FILE": 1}, {"": 1}])
def test_ulimit_that_cannot_be_read_is_refused(ulimits: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument):
        arguments.limits(None, None, None, {"ulimits": ulimits})


def test_health_check_by_text_runs_in_the_containers_shell_and_by_list_does_not() -> None:
    assert arguments.healthcheck({"command": "test -f x"}) == Healthcheck(("CMD-SHELL", "test -f x"))
    assert arguments.healthcheck({"command": ["test", "-f", "x"], "interval": "2s", "retries": 3}) == Healthcheck(
        ("CMD", "test", "-f", "x"), interval_seconds=2.0, retries=3
    )
