"""Where are a user's credentials looked for, and what of files and helper programs that are damaged, slow or hostile?"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import credentials

SECRET = "a-password-that-nobody-sees"


def auth(user: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class Home:
    """A home folder with credentials in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "HOME": str(folder),
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "XDG_RUNTIME_DIR": str(folder / "run"),
        }
        self.learned: list[str] = []
        self.docker = folder / ".docker" / "config.json"

    async def find(self, registry: str, path: str = "a/b", *, seconds: float = 20.0) -> credentials.Credential | None:
        keyring = credentials.Keyring(self.environ, learn=self.learned.append, helper_seconds=seconds)
        return await keyring.find(registry, path)

    def helper(self, name: str, script: str) -> None:
        program = write(self.folder / "bin" / f"docker-credential-{name}", f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)


@pytest.fixture
def home(private_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    found = Home(private_folders)
    monkeypatch.setenv("PATH", found.environ["PATH"])
    return found


async def user(home: Home, registry: str, path: str = "a/b") -> str | None:
    found = await home.find(registry, path)
    return None if found is None else found.user


async def test_where_nothing_is_there_is_nothing(home: Home) -> None:
    assert await home.find("r.example") is None
    assert home.learned == []


async def test_credentials_are_found_where_docker_and_podman_keep_them(home: Home) -> None:
    """SPEC B138."""
    write(home.docker, {"auths": {"r.example": auth("docker")}})
    assert await user(home, "r.example") == "docker"
    write(home.folder / ".config/containers/auth.json", {"auths": {"r.example": auth("config")}})
    assert await user(home, "r.example") == "config"
    write(home.folder / "run/containers/auth.json", {"auths": {"r.example": auth("run")}})
    assert await user(home, "r.example") == "run"
    home.environ["REGISTRY_AUTH_FILE"] = str(write(home.folder / "named.json", {"auths": {"r.example": auth("named")}}))
    assert await user(home, "r.example") == "named"
    assert await user(home, "other.example") is None
    assert SECRET in home.learned


async def test_the_closest_entry_counts(home: Home) -> None:
    entries = {"r.example": auth("all"), "r.example/team": auth("team"), "r.example/team/app": auth("app")}
    write(home.docker, {"auths": entries})
    assert [await user(home, "r.example", path) for path in ("x", "team/x", "team/app", "teams/x")] == [
        "all",
        "team",
        "app",
        "all",
    ]


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "https://docker.io"])
async def test_docker_hub_has_many_names(home: Home, key: str) -> None:
    write(home.docker, {"auths": {key: auth("hub")}})
    assert await user(home, "docker.io", "library/x") == "hub"


async def test_every_kind_of_entry_is_read(home: Home) -> None:
    write(home.docker, {"auths": {
        "plain.example": {"username": "plain", "password": SECRET},
        "identity.example": {"identitytoken": "identity-token"},
        "token.example": {"registrytoken": "registry-token"},
        "empty.example": {},
        "https://scheme.example/v2/": auth("scheme"),
    }})  # fmt: skip
    assert await home.find("plain.example") == credentials.Credential("plain", SECRET)
    assert await home.find("identity.example") == credentials.Credential(identity_token="identity-token")
    assert await home.find("token.example") == credentials.Credential(registry_token="registry-token")
    assert await home.find("empty.example") is None
    assert await user(home, "scheme.example") == "scheme"
    assert {"identity-token", "registry-token"} <= set(home.learned)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"auths":[]}',
        '{"auths":{"r.example":3}}',
        '{"auths":{"r.example":{"auth":3}}}',
        '{"auths":{"r.example":{"auth":"/////"}}}',
        '{"credHelpers":[]}',
        '{"credsStore":"../../bin/sh"}',
        '{"credHelpers":{"r.example":"x;reboot"}}',
        "[" * 200_000,
        " " * 2_000_000,
    ],
)
async def test_a_damaged_file_is_an_error_that_shows_nothing_of_it(home: Home, content: str) -> None:
    """SPEC B138."""
    write(home.docker, content)
    with pytest.raises(errors.InvalidArgument, match=r"config\.json cannot be used") as caught:
        await home.find("r.example")
    assert "reboot" not in caught.value.text()


async def test_a_file_that_is_no_file_keeps_nobody_waiting(home: Home) -> None:
    home.docker.parent.mkdir()
    os.mkfifo(home.docker)
    with pytest.raises(errors.InvalidArgument, match="no regular file"):
        await home.find("r.example")


async def test_a_named_file_must_be_there(home: Home) -> None:
    home.environ["REGISTRY_AUTH_FILE"] = "/none/auth.json"
    with pytest.raises(errors.InvalidArgument, match="it is not there"):
        await home.find("r.example")


# ------------------------------------------------------------------------------------------------------------- helpers


async def test_a_helper_is_asked_by_its_standard_input(home: Home) -> None:
    """SPEC B138."""
    home.helper("one", f'printf "%s|" "$*" >>{home.folder}/asked; cat >>{home.folder}/asked; '
                       f"""echo '{{"ServerURL":"x","Username":"helped","Secret":"{SECRET}"}}'""")  # fmt: skip
    write(home.docker, {"credHelpers": {"r.example": "one"}, "auths": {"r.example": auth("file")}})
    assert await home.find("r.example") == credentials.Credential("helped", SECRET)
    assert (home.folder / "asked").read_text() == "get|r.example\n"
    assert SECRET in home.learned


async def test_a_store_is_asked_for_every_registry_and_the_file_where_it_has_nothing(home: Home) -> None:
    home.helper("store", "echo credentials not found in native keychain; exit 1")
    write(home.docker, {"credsStore": "store", "auths": {"r.example": auth("file")}})
    assert await user(home, "r.example") == "file"
    home.helper("store", f"""echo '{{"Username":"<token>","Secret":"{SECRET}"}}'""")
    assert await home.find("r.example") == credentials.Credential(identity_token=SECRET)


@pytest.mark.parametrize(
    "script",
    [f"echo {SECRET}; exit 3", "echo no json", "echo '[]'", """echo '{"Username":1,"Secret":2}'""", "head -c 9000000 /dev/zero"],
)  # fmt: skip
async def test_a_helper_that_fails_or_prints_garbage_is_an_error_without_its_words(home: Home, script: str) -> None:
    """SPEC B138."""
    home.helper("bad", script)
    write(home.docker, {"credsStore": "bad"})
    with pytest.raises(errors.CommandFailed, match="docker-credential-bad failed") as caught:
        await home.find("r.example")
    assert SECRET not in caught.value.text()


async def test_a_helper_that_hangs_is_ended(home: Home) -> None:
    """SPEC B138."""
    home.helper("slow", f"echo $$ >{home.folder}/pid; exec sleep 1000000")
    write(home.docker, {"credsStore": "slow"})
    with pytest.raises(errors.DeadlineExceeded, match="docker-credential-slow took longer"):
        await home.find("r.example", seconds=0.5)
    pid = int((home.folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_helper_that_is_not_there_is_said_to_be_missing(home: Home) -> None:
    write(home.docker, {"credsStore": "nowhere-to-be-found"})
    with pytest.raises(errors.CommandFailed, match="is not installed"):
        await home.find("r.example")
