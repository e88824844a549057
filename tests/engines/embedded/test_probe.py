"""Is the runtime that works here found by trying, remembered while nothing changes, and is nothing left of the try?"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codomyrmex_containerization import errors, process
from codomyrmex_containerization.engines.embedded import groups, probe
from tests import backends, leftovers

ALL = {"memory_bytes", "memory_reservation_bytes", "cpus", "cpu_shares", "pids_limit"}


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Fails when a test leaves a container's group or a mount behind."""
    before = tried_groups()
    yield
    assert f" {tmp_path}/" not in Path("/proc/self/mounts").read_text()
    until = time.monotonic() + leftovers.DEADLINE_SECONDS
    # Those of other sessions go away by themselves.
    while (left := tried_groups() - before) and time.monotonic() < until:
        time.sleep(leftovers.PAUSE_SECONDS)
    assert not left


@pytest.fixture
def runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> Path:
    """A folder that is searched first for runtimes."""
    if os.geteuid() != 0:
        backends.missing("not root", enable="sudo scripts/test")
    if process.find("crun") is None and process.find("runc") is None:
        backends.missing("no OCI runtime", enable=probe.REMEDY)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    return folder


def tried_groups() -> set[str]:
    """The groups of tries: each has one of its own at the top."""
    return {str(path) for pattern in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{pattern}{groups.PARENT}-*")}


def put(folder: Path, name: str, text: str) -> Path:
    """A program of a shell's making."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_runtime_is_found_and_what_it_limits_was_seen(runtimes: Path, tmp_path: Path) -> None:
    found = probe.find_runtime(tmp_path / "state")

    assert found.path.name == found.kind
    assert found.version.split(".")[0].isdigit()
    assert not found.rootless
    assert found.cgroups == groups.layout()
    assert found.limits == ALL


def test_runtime_that_was_found_runs_with_what_stands_before_it(runtimes: Path, tmp_path: Path) -> None:
    found = probe.find_runtime(tmp_path / "state")
    command = [*found.prefix, str(found.path), "--root", str(tmp_path / "none"), "state", "0" * 64]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "0" * 64 in done.stderr or "does not exist" in done.stderr


def test_outcome_is_remembered_and_no_program_is_started_again(runtimes: Path, tmp_path: Path) -> None:
    started, real = tmp_path / "started", process.find("runc") or process.find("crun")
    assert real is not None
    put(runtimes, "crun", f'echo "$@" >> {started}\nexec false')
    put(runtimes, "runc", f'echo "$@" >> {started}\nexec {real} "$@"')
    first = probe.find_runtime(tmp_path / "state")
    assert started.read_text()
    started.unlink()

    assert probe.find_runtime(tmp_path / "state") == first
    assert not started.exists()


def test_outcome_is_found_out_anew_when_a_program_is_another(runtimes: Path, tmp_path: Path) -> None:
    real = process.find("runc") or process.find("crun")
    first = put(runtimes, "crun", f'exec {real} "$@"')
    before = probe.find_runtime(tmp_path / "state")
    put(runtimes, "crun", "exec false # another")
    after = probe.find_runtime(tmp_path / "state")

    assert before.path == first
    assert after.path != first


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"key": 1}', '{"key": "KEY", "runtime": {}}', '{"key": "KEY", "runtime": 3}']
)
def test_damaged_memory_is_no_hindrance(runtimes: Path, tmp_path: Path, content: str) -> None:
    found = probe.find_runtime(tmp_path / "state")
    memory = tmp_path / "state/runtime.json"
    key = json.loads(memory.read_text())["key"]
    memory.write_text(content.replace("KEY", key))

    assert probe.find_runtime(tmp_path / "state") == found


def test_next_best_runtime_is_taken_when_the_first_fails(runtimes: Path, tmp_path: Path) -> None:
    real = process.find("runc") or process.find("crun")
    put(runtimes, "crun", 'case "$1" in --version) echo crun version 9.9;; *) echo it is broken >&2; exit 1;; esac')
    put(runtimes, "runc", f'exec {real} "$@"')

    found = probe.find_runtime(tmp_path / "state")

    assert (found.kind, found.path) == ("runc", runtimes / "runc")


def test_reason_of_each_is_told_when_none_works(runtimes: Path, tmp_path: Path) -> None:
    for name in probe.KINDS:
        put(runtimes, name, f'case "$1" in --version) echo {name} 9.9;; *) echo {name} is broken >&2; exit 1;; esac')

    with pytest.raises(errors.EngineUnavailable) as caught:
        probe.find_runtime(tmp_path / "state", tier="full")

    assert all(f"{name} is broken" in caught.value.message for name in probe.KINDS)
    assert "apt-get install crun conmon slirp4netns uidmap" in caught.value.hint
    assert not (tmp_path / "state/runtime.json").exists()


def test_runtime_that_lies_about_having_run_a_program_is_not_believed(runtimes: Path, tmp_path: Path) -> None:
    for name in probe.KINDS:
        put(runtimes, name, 'case "$1" in --version) echo 9.9;; *) for last; do :; done; exit 0;; esac')

    with pytest.raises(errors.EngineUnavailable):
        probe.find_runtime(tmp_path / "state", tier="full")


def test_runtime_that_cannot_set_limits_is_taken_with_a_note_and_tried_again(runtimes: Path, tmp_path: Path) -> None:
    real = process.find("runc") or process.find("crun")
    refuse = 'case " $* " in *" create "*) grep -q \'"pids"\' "$5/config.json" && { echo no pids >&2; exit 1; };; esac'
    put(runtimes, "crun", "exec false")
    put(runtimes, "youki", "exec false")
    put(runtimes, "runc", f'{refuse}\nexec {real} "$@"')

    found = probe.find_runtime(tmp_path / "state")

    assert (found.kind, found.limits) == ("runc", frozenset())
    assert any("no pids" in note for note in found.notes)
    assert not (tmp_path / "state/runtime.json").exists()


def test_try_leaves_nothing_but_what_is_remembered(runtimes: Path, tmp_path: Path) -> None:
    probe.find_runtime(tmp_path / "state")

    assert [path.name for path in (tmp_path / "state").iterdir()] == ["runtime.json"]
    assert (tmp_path / "state/runtime.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_monitor_is_found_with_its_version() -> None:
    if process.find("conmon") is None:
        backends.missing("no conmon", enable=probe.REMEDY)
    path, version = probe.find_conmon()

    assert path.name == "conmon"
    assert version.split(".")[0].isdigit()


def test_monitor_that_does_not_run_is_not_available(runtimes: Path) -> None:
    put(runtimes, "conmon", "echo broken >&2; exit 3")

    with pytest.raises(errors.EngineUnavailable, match="broken"):
        probe.find_conmon()
