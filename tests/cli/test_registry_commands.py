"""Do the commands for registries work without a toolset being switched on, and is a password never an argument?

SPEC B141, SPEC B143, SPEC B146.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import embedded, registry
from tests.cli.console import cxc, on_terminal
from tests.registry import PASSWORD, USER


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that wants a password."""
    with registry.started(tmp_path_factory.mktemp("shop"), with_password=True) as found:
        yield found.authority


@pytest.fixture(autouse=True)
def runtime_folder(private_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private_folders / "run"))
    (private_folders / "run").mkdir(mode=0o700)


def test_an_image_goes_there_and_comes_back(shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC B141, SPEC B143, SPEC B146."""
    monkeypatch.setenv("CODOMYRMEX_CONTAINERIZATION_ENGINES", "embedded")
    with embedded.own_folders() as engine:
        image = embedded.base_image(engine, tmp_path)
        assert "cxc login" in cxc("push", image, f"{shop}/a/b:1", "--yes").stderr
        said = cxc("login", shop, "--username", USER, "--password-stdin", stdin=f"{PASSWORD}\n".encode())
        assert (said.status, PASSWORD in said.stdout + said.stderr) == (0, False), said.stderr
        asked = cxc("push", image, f"{shop}/a/b:1")
        assert (asked.status, "--yes" in asked.stderr) == (5, True)
        pushed = cxc("push", image, f"{shop}/a/b:1", "--yes", "--json")
        assert pushed.status == 0, pushed.stdout
        digest = pushed.document["digest"]
        assert digest in cxc("pull", f"{shop}/a/b:1").stdout
        assert cxc("registry", "list", f"{shop}/a/b").stdout == "1\n"
        assert cxc("registry", "list", shop, "--registry").stdout == "a/b\n"
        assert cxc("registry", "inspect", f"{shop}/a/b:1", "--json").document["digest"] == digest
        copied = cxc("registry", "copy", f"{shop}/a/b:1", f"{shop}/c/d:2", "--one-platform", "--yes")
        assert (copied.status, digest in copied.stdout) == (0, True), copied.stderr
        gone = cxc("registry", "delete", f"{shop}/a/b:1", "--yes")
        assert (gone.status, "the tags 1" in gone.stdout) == (0, True), gone.stderr
        assert cxc("registry", "inspect", f"{shop}/a/b:1").status == 3
        assert cxc("logout", shop).status == 0
        assert cxc("registry", "list", f"{shop}/c/d").status == 5


def test_a_wrong_password_is_told_and_not_kept(shop: str, private_folders: Path) -> None:
    """SPEC B146."""
    said = cxc("login", shop, "-u", USER, "--password-stdin", "--json", stdin=b"wrong-0815")
    assert (said.status, said.document["code"]) == (5, "unauthorized")
    assert "wrong-0815" not in said.stdout + said.stderr
    assert not (private_folders / ".docker" / "config.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [("-u", USER), ("--password-stdin",), ("-u", "a:b", "--password-stdin"), ("-u", USER, "--password-stdin")],
)
def test_a_login_without_a_name_or_a_password_is_none(shop: str, arguments: tuple[str, ...]) -> None:
    assert cxc("login", shop, *arguments).status == 2


def test_the_password_is_no_option(shop: str) -> None:
    """SPEC B146."""
    assert cxc("login", shop, "-u", USER, "--password", PASSWORD).status == 2


def test_on_a_terminal_name_and_password_are_asked_for(shop: str, private_folders: Path) -> None:
    """SPEC B146."""
    with on_terminal("login", shop) as terminal:
        terminal.read_until("Username: ")
        terminal.type(f"{USER}\n")
        terminal.read_until("Password of")
        terminal.type(f"{PASSWORD}\n")
        seen = terminal.read_until("logged in")
        assert PASSWORD not in seen
    assert shop in json.loads((private_folders / ".docker" / "config.json").read_text())["auths"]
