"""Does the audit file tell every call, to its owner only, and without growing for ever?"""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import datetime
from pathlib import Path

import pytest

from codomyrmex_containerization.dispatch.audit import Audit
from codomyrmex_containerization.models.settings import AuditSettings
from tests.dispatch import harness


def write(audit: Audit, number: int = 0, arguments: object = None) -> None:
    audit.write(
        tool=f"tool{number}", arguments=arguments or {}, decision="allowed", outcome="success", seconds=0.1, face="mcp"
    )


def lines(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        for line in path.read_bytes().splitlines()
    ]


def test_line_says_when_what_by_whom_and_how_it_ended(tmp_path: Path) -> None:
    audit = Audit(tmp_path, AuditSettings())
    write(audit, 1, {"a": "ü\n\u2028 line\ud800"})
    audit.close()
    (line,) = lines(tmp_path)
    assert set(line) == {"time", "tool", "face", "arguments", "decision", "outcome", "seconds"}
    assert datetime.fromisoformat(str(line["time"])).tzinfo is not None
    assert (line["tool"], line["face"], line["decision"], line["outcome"]) == ("tool1", "mcp", "allowed", "success")


def test_file_is_its_owners_alone_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        audit = Audit(tmp_path, AuditSettings())
        write(audit)
        audit.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_file_is_rotated_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    settings = AuditSettings(max_bytes=10_000, files=2)
    audit = Audit(tmp_path, settings)
    for number in range(400):
        write(audit, number, {"text": "x" * 100})
    audit.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["audit.1.jsonl", "audit.2.jsonl", "audit.jsonl"]
    assert all(path.stat().st_size <= settings.max_bytes for path in tmp_path.iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    assert (tmp_path / "audit.jsonl").read_text().count("tool399")
    assert not any(line["tool"] == "tool0" for line in lines(tmp_path))


def test_large_arguments_are_cut(tmp_path: Path) -> None:
    audit = Audit(tmp_path, AuditSettings())
    write(audit, 0, {"text": "x" * 1_000_000})
    audit.close()
    assert (tmp_path / "audit.jsonl").stat().st_size < 5_000
    assert len(lines(tmp_path)) == 1


def test_link_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "audit", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "audit.jsonl").symlink_to(elsewhere)
    audit = Audit(folder, AuditSettings())
    write(audit)
    audit.close()
    assert not elsewhere.exists()


def test_full_disk_fails_no_call(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    audit = Audit(folder, AuditSettings())  # the folder is not there
    write(audit)
    audit.close()
    assert not folder.exists()


def test_threads_and_processes_write_whole_lines(tmp_path: Path) -> None:
    audits = [Audit(tmp_path, AuditSettings()) for _ in range(3)]

    def work(audit: Audit) -> None:
        for number in range(100):
            write(audit, number, {"text": "y" * 300})

    threads = [threading.Thread(target=work, args=(audit,)) for audit in audits for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for audit in audits:
        audit.close()
        audit.close()
    assert len(lines(tmp_path)) == 600


async def test_audit_can_be_switched_off() -> None:
    async with harness.opened(audit__enabled=False) as house:
        await house.call("container_list", {"limit": 0})
        assert not house.audit_file.exists()


@pytest.mark.parametrize(
    ("name", "arguments", "outcome"),
    [
        ("container_lst", {}, "not_found"),
        ("container_list", {"limit": 0}, "invalid_argument"),
        ("container_remove", {"container": "--all"}, "invalid_argument"),
        ("x" * 10_000, {}, "not_found"),
    ],
)
async def test_call_that_fails_is_told_as_well(name: str, arguments: dict[str, object], outcome: str) -> None:
    async with harness.opened() as house:
        await house.call(name, arguments)
        (line,) = house.audit()
        assert line["outcome"] == outcome
        assert line["face"] == "mcp"
        assert line["seconds"] >= 0
        assert len(line["tool"]) <= 128
