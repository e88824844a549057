"""Do images go from one registry to another as they are, with nothing sent that is there?"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import descriptors, transfer
from codomyrmex_containerization.clients.descriptors import Descriptor, Platform
from codomyrmex_containerization.models import reference
from tests import registry
from tests.clients import rogue
from tests.clients.conftest import Bench
from tests.clients.rogue import Reply, blob_of, manifest_of
from tests.clients.test_distribution import put_image


@pytest.fixture(scope="module")
def second_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    """Another registry, of another make."""
    with registry.crane_started(tmp_path_factory.mktemp("second")) as found:
        yield found


async def made_index(bench: Bench, name: str) -> str:
    """Push an index of two platforms with a signature; return its digest."""
    entries = []
    for platform in (Platform("linux", "amd64"), Platform("linux", "arm64")):
        made = await put_image(bench, f"{name}:{platform.architecture}", os.urandom(50_000))
        entries.append(Descriptor(made.media_type, made.digest, len(made.data), platform))
    data = descriptors.index_of(entries)
    async with bench.repository(name) as repository:
        digest = await repository.manifests.put("all", data, descriptors.OCI_INDEX)
        subject = {"mediaType": descriptors.OCI_INDEX, "digest": digest, "size": len(data)}
        signature = manifest_of(artifactType="application/x.signature", subject=subject)
        await repository.manifests.put(descriptors.digest_of(signature), signature, descriptors.OCI_MANIFEST)
    return digest


async def copied(bench: Bench, source: str, target: str, **more: bool) -> transfer.Copied:
    async with bench.work() as work:
        return await transfer.copy(
            work, reference.parse(source), reference.parse(target), referrers=more.get("referrers", False)
        )


async def test_an_index_goes_to_another_registry_with_all_that_belongs_to_it(
    bench: Bench, plain_registry: registry.Registry, second_registry: registry.Registry
) -> None:
    """SPEC B131."""
    source, target = f"{plain_registry.authority}/copy/source", f"{second_registry.authority}/copy/target"
    digest = await made_index(bench, source)
    found = await copied(bench, f"{source}:all", f"{target}:new", referrers=True)
    assert (found.digest, found.manifests, found.mounted) == (digest, 4, 0)
    assert (found.uploaded, found.uploaded_bytes) == (3, 100_002)
    assert registry.crane("digest", f"{target}:new").strip() == digest
    async with bench.repository(target) as repository:
        assert [one.artifact_type for one in await repository.manifests.referrers(digest)] == [
            "application/x.signature"
        ]
    again = await copied(bench, f"{source}:all", f"{target}:again", referrers=True)
    assert (again.uploaded, again.uploaded_bytes) == (0, 0)


async def test_within_one_registry_no_bytes_are_sent(bench: Bench, plain_registry: registry.Registry) -> None:
    """SPEC B131."""
    source, target = (f"{plain_registry.authority}/copy/{one}" for one in ("within", "elsewhere"))
    await put_image(bench, f"{source}:1", os.urandom(50_000))
    found = await copied(bench, f"{source}:1", f"{target}:1")
    assert (found.mounted, found.uploaded, found.uploaded_bytes) == (2, 0, 0)


async def test_one_platform_is_copied_alone(
    bench: Bench, plain_registry: registry.Registry, second_registry: registry.Registry
) -> None:
    source, target = f"{plain_registry.authority}/copy/platform", f"{second_registry.authority}/copy/platform"
    await made_index(bench, source)
    async with bench.work() as work:
        found = await transfer.copy(
            work,
            reference.parse(f"{source}:all"),
            reference.parse(f"{target}:arm"),
            platform=Platform("linux", "arm64"),
        )
    assert found.manifests == 1
    assert registry.crane("digest", f"{source}:arm64").strip() == found.digest


async def test_what_is_damaged_on_its_way_does_not_get_a_tag(bench: Bench, second_registry: registry.Registry) -> None:
    """SPEC B133."""
    layer = os.urandom(1000)
    manifest = Reply(200, manifest_of(blob_of(layer)), {"content-type": descriptors.OCI_MANIFEST})

    def answer(request: rogue.Request) -> Reply:
        return manifest if "manifests" in request.path else Reply(200, os.urandom(1000))

    with rogue.running(answer) as found, pytest.raises(errors.InvalidArgument):
        await copied(bench, f"{found.authority}/a/b:1", f"{second_registry.authority}/copy/damaged:1")
    async with bench.repository(f"{second_registry.authority}/copy/damaged") as repository:
        assert await repository.manifests.look("1") is None
