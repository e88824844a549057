"""Are credentials that somebody types tried, kept where others look for them, and forgotten again?

SPEC B146.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import credentials, logins
from codomyrmex_containerization.clients.credentials import Credential
from codomyrmex_containerization.models.settings import RegistrySettings
from tests import registry
from tests.clients.conftest import Bench
from tests.registry import PASSWORD, USER

RIGHT = Credential(USER, PASSWORD)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that wants a password."""
    with registry.started(tmp_path_factory.mktemp("guarded"), with_password=True) as found:
        yield found.authority


@pytest.fixture
def home(bench: Bench) -> Path:
    """A home without anybody's credentials; what /run/containers has is not looked at."""
    bench.environ["XDG_RUNTIME_DIR"] = str(bench.home / "run")
    return bench.home


async def login(bench: Bench, name: str, credential: Credential = RIGHT) -> str:
    return await logins.login(name, credential, RegistrySettings(), bench.environ)


async def found(bench: Bench, name: str) -> Credential | None:
    return await credentials.Keyring(bench.environ, learn=lambda secret: None).find(name, "any/thing")


async def test_right_credentials_are_kept_for_their_owner_alone(bench: Bench, home: Path, guarded: str) -> None:
    """SPEC B146."""
    file = home / ".docker" / "config.json"
    assert await login(bench, guarded) == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert await found(bench, guarded) == RIGHT
    async with bench.repository(f"{guarded}/a/b") as repository:
        assert await repository.manifests.look("1") is None  # it is let in


async def test_wrong_credentials_are_not_kept(bench: Bench, home: Path, guarded: str) -> None:
    """SPEC B146."""
    with pytest.raises(errors.Unauthorized) as caught:
        await login(bench, guarded, Credential(USER, "another-one-4711"))
    assert "another-one" not in caught.value.text()
    assert not (home / ".docker" / "config.json").exists()


async def test_what_else_a_file_holds_stays_and_links_are_followed(bench: Bench, home: Path, guarded: str) -> None:
    real = home / "real.json"
    before = {
        "auths": {"other:1": {"auth": "eDp5"}, f"https://{guarded}/v1/": {"auth": "b2xkOm9sZA=="}},
        "detachKeys": "x",
    }
    real.write_text(json.dumps(before))
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").symlink_to(real)
    await login(bench, guarded)
    now = json.loads(real.read_text())
    assert now["detachKeys"] == "x"
    assert now["auths"] == {
        "other:1": {"auth": "eDp5"},
        guarded: {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()},
    }
    assert (home / ".docker" / "config.json").is_symlink()


async def test_the_file_that_counts_is_the_one_that_is_changed(bench: Bench, home: Path, guarded: str) -> None:
    strong = home / "run" / "containers" / "auth.json"
    strong.parent.mkdir(parents=True)
    strong.write_text(json.dumps({"auths": {guarded: {"auth": "b2xkOm9sZA=="}}}))
    assert await login(bench, guarded) == str(strong)
    assert await found(bench, guarded) == RIGHT


async def test_a_file_that_is_named_is_made(bench: Bench, home: Path, guarded: str) -> None:
    bench.environ["REGISTRY_AUTH_FILE"] = str(home / "made" / "auth.json")
    await login(bench, guarded)
    assert await found(bench, guarded) == RIGHT


async def test_logout_forgets_everywhere(bench: Bench, home: Path, guarded: str) -> None:
    """SPEC B146."""
    await login(bench, guarded)
    strong = home / "run" / "containers" / "auth.json"
    strong.parent.mkdir(parents=True)
    strong.write_text(json.dumps({"auths": {guarded: {"auth": "b2xkOm9sZA=="}, "other:1": {}}}))
    assert await logins.logout(guarded, bench.environ) == [str(strong), str(home / ".docker" / "config.json")]
    assert await found(bench, guarded) is None
    assert json.loads(strong.read_text()) == {"auths": {"other:1": {}}}
    with pytest.raises(errors.NotFound):
        await logins.logout(guarded, bench.environ)


@pytest.fixture
def helper(bench: Bench, home: Path) -> Path:
    """A helper program, which keeps what it is told in a folder; its arguments are written down."""
    folder = home / "bin"
    folder.mkdir()
    kept = home / "kept"
    program = folder / "docker-credential-tests"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {home}/arguments\n'
        "case $1 in\n"
        f"store) cat > {kept} ;;\n"
        f"get) test -e {kept} && cat {kept} || {{ echo credentials not found in native keychain; exit 1; }} ;;\n"
        f"erase) cat > {home}/erased; rm {kept} ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    bench.environ["PATH"] = f"{folder}:/usr/bin:/bin"
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text(json.dumps({"credsStore": "tests"}))
    return kept


async def test_a_helper_that_is_set_up_keeps_them(
    bench: Bench, helper: Path, guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPEC B146."""
    monkeypatch.setenv("PATH", f"{helper.parent / 'bin'}:{os.environ['PATH']}")
    assert await login(bench, guarded) == "the credential helper docker-credential-tests"
    assert json.loads(helper.read_text()) == {"ServerURL": guarded, "Username": USER, "Secret": PASSWORD}
    assert await found(bench, guarded) == RIGHT
    assert json.loads((bench.home / ".docker" / "config.json").read_text()) == {"credsStore": "tests"}
    assert await logins.logout(guarded, bench.environ) == ["the credential helper docker-credential-tests"]
    assert (bench.home / "erased").read_text() == guarded
    assert set((bench.home / "arguments").read_text().split()) == {"store", "get", "erase"}
