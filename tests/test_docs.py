"""Do the documents say what is so? Generated parts, links, numbers, examples, and nothing that is true of one machine only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from codomyrmex_containerization import __version__
from codomyrmex_containerization.models.settings import Settings
from codomyrmex_containerization.server import adapter
from codomyrmex_containerization.tools import _discovery

ROOT = Path(__file__).parent.parent
GENERATOR = ROOT / "scripts" / "generate_docs.py"
FACES_GENERATOR = ROOT / "scripts" / "generate_mcp_tools.py"
FACES = ROOT / "src" / "codomyrmex_containerization" / "mcp_tools.py"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

_CODE_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|home|Users|work|workspace|mnt|media)\b(?:/[\w.-]+)*")
_PACKAGE_HOSTS = (
    ".".join(("pypi", "org")),
    ".".join(("pythonhosted", "org")),
    ".".join(("npmjs", "org")),
    ".".join(("npmjs", "com")),
    ".".join(("crates", "io")),
    ".".join(("proxy", "golang", "org")),
    ".".join(("rubygems", "org")),
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the generator as scripts/docs does."""
    return subprocess.run([sys.executable, str(GENERATOR), *arguments], capture_output=True, text=True, check=False)


def prose_of(path: Path) -> str:
    """A document without its blocks of code."""
    return _CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))


def code_blocks(language: str) -> Iterator[tuple[str, str]]:
    """The blocks of code in a language, each with its document's name."""
    for path, name in zip(DOCUMENTS, NAMES, strict=True):
        for _, given, text in _CODE_BLOCK.findall(path.read_text(encoding="utf-8")):
            if given == language:
                yield name, text


def anchors_of(path: Path) -> set[str]:
    """The names under which a document's headings can be linked to."""
    titles = [title.replace("`", "").strip().lower() for title in _HEADING.findall(prose_of(path))]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


# ------------------------------------------------------------------------------------------------------- generated parts


def test_generated_parts_are_as_the_code_says() -> None:
    done = run("--check")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_names_the_document_that_is_out_of_date_and_writes_nothing(tmp_path: Path) -> None:
    copy = copied_documents(tmp_path)
    readme = copy / "README.md"
    spoilt = readme.read_text(encoding="utf-8").replace("| `container_list` |", "| `container_lists` |")
    readme.write_text(spoilt, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, str(copy / "scripts" / GENERATOR.name), "--check"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout.split()[0], len(done.stdout.splitlines())) == (1, "README.md", 1)
    assert readme.read_text(encoding="utf-8") == spoilt


def test_writing_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    copy = copied_documents(tmp_path)
    (copy / "tests" / "toollist.json").unlink()
    command = [sys.executable, str(copy / "scripts" / GENERATOR.name)]

    first = subprocess.run(command, capture_output=True, text=True, check=True)
    second = subprocess.run(command, capture_output=True, text=True, check=True)

    assert (first.stdout, second.stdout) == ("tests/toollist.json written\n", "")


def copied_documents(folder: Path) -> Path:
    """The documents and their generator in another place."""
    for path in [
        *DOCUMENTS,
        GENERATOR,
        FACES_GENERATOR,
        FACES,
        ROOT / "pyproject.toml",
        ROOT / "tests" / "toollist.json",
    ]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def test_snapshot_holds_every_tool_by_name() -> None:
    listed = json.loads((ROOT / "tests" / "toollist.json").read_text(encoding="utf-8"))

    assert [tool["name"] for tool in listed] == sorted(_discovery.all_tools())


def test_snapshot_describes_every_argument_of_every_tool() -> None:
    listed = json.loads((ROOT / "tests" / "toollist.json").read_text(encoding="utf-8"))

    assert not [
        f"{tool['name']}.{name}"
        for tool in listed
        for name, field in tool["inputSchema"]["properties"].items()
        if not field.get("description")
    ]


def test_table_of_environment_variables_is_of_real_settings() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"CODOMYRMEX_CONTAINERIZATION_([A-Z_]+[A-Z])", text))
    reserved = {"CONFIG", "STATE_DIR", "DATA_DIR", "CACHE_DIR"}

    assert {name.lower().partition("__")[0] for name in named - reserved} <= set(Settings.model_fields)


# ------------------------------------------------------------------------------------------------------------- behaviours


def test_behaviours_are_numbered_from_one_without_gap_or_repetition() -> None:
    numbers = [int(number) for number in re.findall(r"^- \*\*B(\d+)\*\*", (ROOT / "SPEC.md").read_text(), re.MULTILINE)]

    assert numbers == list(range(1, len(numbers) + 1))


def test_behaviours_that_other_documents_and_tests_name_exist() -> None:
    last = len(re.findall(r"^- \*\*B\d+\*\*", (ROOT / "SPEC.md").read_text(), re.MULTILINE))
    sources = [*DOCUMENTS, *ROOT.glob("tests/**/*.py")]
    named = {
        f"{path.name}: B{number}"
        for path in sources
        for number in re.findall(r"\bSPEC B(\d+)\b", path.read_text(encoding="utf-8"))
        if not 1 <= int(number) <= last
    }

    assert named == set()


# ------------------------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("name", NAMES)
def test_links_between_documents_resolve(name: str) -> None:
    path = ROOT / name
    broken = []
    for target in _LINK.findall(prose_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or not linked.is_relative_to(ROOT) or (anchor and anchor not in anchors_of(linked)):
            broken.append(target)

    assert broken == []


def test_every_document_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        targets = [target.partition("#")[0] for target in _LINK.findall(prose_of(path)) if ".md" in target]
        linked = {(path.parent / target).resolve() for target in targets if not re.match(r"[a-z]+:", target)}
        waiting += sorted(linked - seen)

    assert sorted(set(DOCUMENTS) - seen - {ROOT / "CLAUDE.md"}) == []


def test_scripts_that_documents_name_exist_and_can_be_run() -> None:
    named = {
        script
        for path in DOCUMENTS
        for script in re.findall(r"(?<![\w/])(?:\./)?((?:scripts|\.ci)/[a-z][a-z-]*)(?![\w./-])", path.read_text())
    }

    assert named >= {"scripts/demo", "scripts/test"}
    assert [script for script in sorted(named) if not os.access(ROOT / script, os.X_OK)] == []


# --------------------------------------------------------------------------------------------------- of no machine at all


@pytest.mark.parametrize("name", NAMES)
def test_document_names_no_path_of_one_machine(name: str) -> None:
    assert _MACHINE_PATH.findall((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", NAMES)
def test_document_names_no_package_registry_host(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")

    assert [host for host in _PACKAGE_HOSTS if host in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_document_that_states_a_version_states_the_package_s(name: str) -> None:
    stated = set(re.findall(r"\*\*Version\*\*: v(\S+)", (ROOT / name).read_text(encoding="utf-8")))

    assert stated <= {__version__}


# --------------------------------------------------------------------------------------------------------------- examples


def test_json_examples_are_json() -> None:
    for _, text in code_blocks("json"):
        assert isinstance(json.loads(text), dict)


def test_toml_examples_are_toml() -> None:
    for _, text in code_blocks("toml"):
        assert isinstance(tomllib.loads(text), dict)


def test_client_configurations_start_the_console_script() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    configured = [json.loads(text) for name, text in code_blocks("json") if name == "README.md"]
    servers = [server for one in configured for server in (one.get("mcpServers") or one["servers"]).values()]

    assert len(servers) >= 2
    assert {(server["command"], *server["args"]) for server in servers} == {("uvx", adapter.NAME)}
    assert adapter.NAME in scripts


def test_readme_gives_two_commands_to_start_with() -> None:
    quick_start = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Quick start")[2].partition("\n## ")[0]
    commands = [
        line.partition("#")[0].strip() for _, _, text in _CODE_BLOCK.findall(quick_start) for line in text.splitlines()
    ]

    assert commands == ["./scripts/demo", "./scripts/test"]


@pytest.mark.usefixtures("docker_socket")
def test_example_of_the_python_api_runs() -> None:
    (example,) = [
        text for name, text in code_blocks("python") if name == "API_SPECIFICATION.md" and "anyio.run" in text
    ]

    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "docker (default)" in done.stdout
    assert "'status': 'success'" in done.stdout


def test_markers_are_paired() -> None:
    for path in DOCUMENTS:
        kinds = re.findall(r"^<!-- (generated|end)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert kinds[::2] == ["generated"] * (len(kinds) // 2), path.name
        assert all(first != second for first, second in pairwise(kinds)), path.name
        assert len(kinds) % 2 == 0, path.name
