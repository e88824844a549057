"""How does the outcome of a contract run become the tables of docs/engines.md?

CXC_CONTRACT_TABLE=results.json scripts/test tests/engines/test_contract.py
.venv/bin/python -m tests.engines.contract_table results.json [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codomyrmex_containerization.models.engine import EngineInfo
from tests.engines.contract import Behaviour

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
SHOWN = {"yes": "✓", "declared": "lacks", "no": "✗"}
_BLOCK = re.compile(r"(<!-- generated: contract -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Results:
    """A JSON file of outcomes: engine by engine, behaviour by behaviour, in the suite's order."""

    file: Path

    def read(self) -> dict[str, Any]:
        """Return what was written so far."""
        return json.loads(self.file.read_text("utf-8")) if self.file.exists() else {"engines": {}, "behaviours": {}}

    def add(self, engine: str, info: EngineInfo, behaviour: Behaviour, outcome: str) -> None:
        """Write one outcome; a later one of the same replaces it."""
        found = self.read()
        about = {"product": info.product, "version": info.version, "rootless": info.rootless, "lacks": dict(info.lacks)}
        row = found["engines"].setdefault(engine, {**about, "outcomes": {}})
        row.update(about)
        row["outcomes"][behaviour.name] = outcome
        found["behaviours"][behaviour.name] = {"title": behaviour.title, "section": behaviour.section}
        self.file.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8")


def merged(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the outcomes of several runs as those of one; of the same engine the later counts."""
    found: dict[str, Any] = {"engines": {}, "behaviours": {}}
    for one in several:
        for key in found:
            found[key].update(one[key])
    return found


def markdown(found: dict[str, Any]) -> str:
    """Return the tables: one of all sections, then one for each with a column for each behaviour."""
    sections: dict[str, list[str]] = {}
    for name, behaviour in found["behaviours"].items():
        sections.setdefault(behaviour["section"], []).append(name)
    parts = [_summary(found, sections)]
    parts += [_section(found, title, names) for title, names in sections.items()]
    parts.append(_lacking(found))
    return "\n\n".join(part for part in parts if part)


def _summary(found: dict[str, Any], sections: dict[str, list[str]]) -> str:
    rows = [
        [_name(engine, row), *(_count([row["outcomes"].get(name) for name in names]) for names in sections.values())]
        for engine, row in found["engines"].items()
    ]
    return _table(["engine", *sections], rows)


def _count(outcomes: list[str | None]) -> str:
    held, declared = outcomes.count("yes"), outcomes.count("declared")
    text = f"{held} of {len(outcomes)}"
    return f"{text}, {declared} declared" if declared else text


def _section(found: dict[str, Any], title: str, names: list[str]) -> str:
    rows = [
        [_name(engine, row), *(SHOWN.get(row["outcomes"].get(name, ""), "?") for name in names)]
        for engine, row in found["engines"].items()
    ]
    columns = ["engine", *(found["behaviours"][name]["title"] for name in names)]
    return f"### {title.capitalize()}\n\n{_table(columns, rows)}"


def _lacking(found: dict[str, Any]) -> str:
    rows = [
        [_name(engine, row), capability, reason]
        for engine, row in found["engines"].items()
        for capability, reason in row["lacks"].items()
    ]
    return f"### Declared to be lacking\n\n{_table(['engine', 'capability', 'reason'], rows)}" if rows else ""


def _name(engine: str, row: dict[str, Any]) -> str:
    return f"{engine} {row['version']}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(one.replace("|", "\\|") for one in line) + " |" for line in lines)


def filled(text: str, contents: str) -> str:
    """Return the document with its generated block filled."""
    if len(_BLOCK.findall(text)) != 1:
        raise ValueError("the document needs one block between <!-- generated: contract --> and <!-- end -->")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{contents.strip()}\n\n{match[2]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables of a results file into the document, or with --check say whether they are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something would change")
    chosen = parser.parse_args(arguments)
    found = merged([Results(file).read() for file in chosen.results])
    before = DOCUMENT.read_text("utf-8")
    after = filled(before, markdown(found))
    if not chosen.check:
        DOCUMENT.write_text(after, "utf-8")
    return 1 if chosen.check and after != before else 0


if __name__ == "__main__":
    sys.exit(main())
