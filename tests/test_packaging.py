"""Is what gets installed what was meant: commands, types, pins, and a start that loads nothing it does not need?"""

from __future__ import annotations

import configparser
import email
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from codomyrmex_containerization import __version__

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
BACK_END_LIBRARIES = frozenset({"docker", "requests", "urllib3", "dockerfile"})
FACE_LIBRARIES = frozenset({"mcp", "rich", "click"})


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as it would be published."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def read_from(wheel: zipfile.ZipFile, name: str) -> str:
    """The text of a file in the wheel's metadata folder."""
    (path,) = [entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    """The wheel's METADATA."""
    return email.message_from_string(read_from(wheel, "METADATA"))


def pins_in(lock: str) -> dict[str, str]:
    """Name and version of all that a lock file pins."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE))


def modules_after(statement: str, *, of_interest: Iterable[str]) -> set[str]:
    """Which of the top-level modules `of_interest` a fresh interpreter has loaded after `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    return set(of_interest) & {name.partition(".")[0] for name in json.loads(done.stdout)}


# --------------------------------------------------------------------------------------------------------------- wheel


def test_wheel_installs_both_commands_on_one_entry_point(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(read_from(wheel, "entry_points.txt"))

    assert dict(points["console_scripts"]) == {
        "codomyrmex-containerization": "codomyrmex_containerization.__main__:main",
        "cxc": "codomyrmex_containerization.__main__:main",
    }


def test_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "codomyrmex_containerization/py.typed" in wheel.namelist()


def test_wheel_holds_the_package_and_its_metadata_only(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}

    assert tops == {"codomyrmex_containerization", f"codomyrmex_containerization-{__version__}.dist-info"}


def test_metadata_gives_the_version_that_the_package_gives(wheel: zipfile.ZipFile) -> None:
    assert metadata_of(wheel)["Version"] == __version__


def test_metadata_names_the_distribution_the_licence_and_the_oldest_python(wheel: zipfile.ZipFile) -> None:
    metadata = metadata_of(wheel)

    assert metadata["Name"] == "codomyrmex-containerization"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"


def test_development_tools_are_no_dependency_of_the_wheel(wheel: zipfile.ZipFile) -> None:
    needed = {canonicalize_name(Requirement(text).name) for text in metadata_of(wheel).get_all("Requires-Dist", [])}

    assert needed == {
        "anyio", "click", "docker", "dockerfile", "httpx2", "mcp", "platformdirs", "pydantic", "pydantic-settings", "rich",
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_file_names_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")

    assert not re.findall(
        r"\w+://|--(?:extra-)?index-url|--find-links|--trusted-host|\b[\w.-]+\.(?:org|com|net|io)\b", text
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_of_a_lock_file_has_a_hash(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]

    assert entries
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_pins_satisfy_what_the_wheel_asks_for(wheel: zipfile.ZipFile, lock: str) -> None:
    pins = pins_in(lock)
    asked = [Requirement(text) for text in metadata_of(wheel).get_all("Requires-Dist", [])]

    assert [str(one) for one in asked if not one.specifier.contains(pins[canonicalize_name(one.name)])] == []


def test_pins_satisfy_what_development_and_the_build_ask_for(project: dict[str, dict[str, list[str]]]) -> None:
    pins = pins_in("requirements-dev.lock")
    asked = [Requirement(text) for text in project["dependency-groups"]["dev"] + project["build-system"]["requires"]]

    assert [str(one) for one in asked if not one.specifier.contains(pins[canonicalize_name(one.name)])] == []


def test_development_uses_the_same_versions_as_users_get() -> None:
    for_users, for_development = pins_in("requirements.lock"), pins_in("requirements-dev.lock")

    assert {name: for_development.get(name) for name in for_users} == for_users


# --------------------------------------------------------------------------------------------------------------- start


def test_importing_the_package_loads_no_library_of_a_back_end_or_a_face() -> None:
    loaded = modules_after("import codomyrmex_containerization", of_interest=BACK_END_LIBRARIES | FACE_LIBRARIES)

    assert loaded == set()


def test_importing_the_entry_point_loads_no_library_of_a_back_end() -> None:
    loaded = modules_after(
        "import codomyrmex_containerization.__main__", of_interest=BACK_END_LIBRARIES | FACE_LIBRARIES
    )

    assert loaded == set()
