"""How does what the tests saw of the walls become the table of docs/embedded.md?

CXC_ISOLATION_TABLE=results.json scripts/test tests/engines/embedded/test_isolation.py
.venv/bin/python -m tests.engines.embedded.isolation_table results.json [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.engines.embedded.isolation_walls import LEVELS, UNSURE, WALLS, Results

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "embedded.md"
_BLOCK = re.compile(r"(<!-- generated: isolation -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(found: dict[str, dict[str, bool]]) -> str:
    """Return the table: a row for each wall, a column for each level."""
    rows = [["wall", *LEVELS], ["---"] * (len(LEVELS) + 1)]
    rows += [[wall.title, *(_mark(found, name, level) for level in LEVELS)] for name, wall in WALLS.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _mark(found: dict[str, dict[str, bool]], name: str, level: str) -> str:
    if (name, level) in UNSURE:
        return "the server's own"
    stands = found.get(level, {}).get(name)
    return "?" if stands is None else ("✓" if stands else "")


def filled(text: str, contents: str) -> str:
    """Return the document with its generated block filled."""
    if len(_BLOCK.findall(text)) != 1:
        raise ValueError("the document needs one block between <!-- generated: isolation --> and <!-- end -->")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{contents}\n\n{match[2]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table of a results file into the document, or with --check say whether it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something would change")
    chosen = parser.parse_args(arguments)
    before = DOCUMENT.read_text("utf-8")
    after = filled(before, markdown(Results(chosen.results).read()))
    if not chosen.check:
        DOCUMENT.write_text(after, "utf-8")
    return 1 if chosen.check and after != before else 0


if __name__ == "__main__":
    sys.exit(main())
