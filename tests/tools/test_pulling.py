"""Does a call that needs an image get it from a registry, with the user's credentials, under the policy, and without showing them?

SPEC B137, SPEC B138, SPEC B139.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from codomyrmex_containerization.clients import distribution
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.settings import RegistrySettings
from tests import embedded, registry, tls
from tests.dispatch import harness
from tests.registry import PASSWORD, USER

SETTINGS = {"engines": ("embedded",), "toolsets": ("all",)}


@pytest.fixture
def engine(private_folders: Path) -> Iterator[EmbeddedEngine]:
    """What the servers of a test work on, seen from beside them."""
    with embedded.own_folders() as engine:
        yield engine


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[registry.Registry, tls.Authority]]:
    """A registry with TLS that wants a password, and who vouches for it."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = tls.Authority(folder)
    certificates = authority.issue(folder / "server", "serverAuth")
    with registry.started(folder / "registry", certificates=certificates, with_password=True) as found:
        yield found, authority


@pytest.fixture
async def image(
    engine: EmbeddedEngine,
    guarded: tuple[registry.Registry, tls.Authority],
    private_folders: Path,
    tmp_path: Path,
) -> str:
    """An image that only the registry has; the user is logged in there."""
    found, authority = guarded
    place = private_folders / ".docker" / "certs.d" / found.authority
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(authority.certificate.read_bytes())
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (private_folders / ".docker" / "config.json").write_text(json.dumps({"auths": {found.authority: {"auth": auth}}}))
    engine._registries = distribution.Client(
        RegistrySettings(), environ={"HOME": str(private_folders)}, learn=lambda secret: None
    )
    name = f"{found.authority}/team/app:1"
    await embedded.pushed(engine, embedded.base_image(engine, tmp_path), name)
    await engine.remove_image(embedded.IMAGE, force=True)
    return name


@asynccontextmanager
async def opened(**more: object) -> AsyncIterator[harness.House]:
    async with harness.opened(**SETTINGS, **more) as house:
        yield house


async def test_a_missing_image_is_pulled_and_run_and_the_password_never_shown(image: str) -> None:
    async with opened() as house:
        ran = await house.ok("container_run", image=image, command=["sh", "-c", "printf '%s%s' opensesame -0815; echo"])
        assert (ran["exit_code"], ran["stdout"]) == (0, "***\n")
        (row,) = (await house.ok("image_list"))["images"]
        assert row["tags"] == [image]


async def test_without_credentials_the_answer_says_what_to_do(image: str, private_folders: Path) -> None:
    (private_folders / ".docker" / "config.json").unlink()
    async with opened() as house:
        failing = await house.fails("unauthorized", "container_run", image=image, command="true")
    host = image.partition("/")[0]
    assert f"no credentials for {host} are known" in failing.text


async def test_a_tag_that_is_not_there_is_not_found_with_those_that_are(image: str) -> None:
    async with opened() as house:
        failing = await house.fails("not_found", "container_run", image=f"{image}.5", command="true")
    assert "MANIFEST_UNKNOWN" in failing.text


async def test_a_registry_that_is_not_listed_is_refused(image: str) -> None:
    async with opened(policy__pull_registries=("docker.io",)) as house:
        failing = await house.fails("refused", "container_run", image=image, command="true")
    assert "policy.pull_registries" in failing.text
