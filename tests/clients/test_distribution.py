"""Do we speak to real registries as they expect it? Two of them, with crane as a judge from outside."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import descriptors, manifests
from codomyrmex_containerization.clients.descriptors import Descriptor, Index, Manifest, Platform
from codomyrmex_containerization.models import reference
from tests import registry
from tests.clients import cutting, rogue
from tests.clients.conftest import Bench, Bytes
from tests.clients.rogue import CONFIG, blob_of, manifest_of


async def put_image(bench: Bench, name: str, *layers: bytes, config: bytes = CONFIG) -> Manifest:
    """Push an image by hand."""
    async with bench.repository(name) as repository:
        for data in (*layers, config):
            await repository.blobs.give(blob_of(data), Bytes(data))
        data = manifest_of(*map(blob_of, layers), config=config)
        await repository.manifests.put(reference.parse(name).tag or "", data, descriptors.OCI_MANIFEST)
        found = await repository.manifests.get(reference.parse(name).tag or "")
    assert isinstance(found, Manifest)
    assert found.data == data
    return found


async def test_blobs_and_manifests_come_back_as_they_were_sent(bench: Bench, any_registry: registry.Registry) -> None:
    """SPEC B131."""
    layer = os.urandom(3_000_000)
    sent = await put_image(bench, f"{any_registry.authority}/round/trip:1", layer)
    got = bytearray()
    async with bench.repository(f"{any_registry.authority}/round/trip") as repository:
        await repository.blobs.fetch(blob_of(layer), got.extend)
        found = await repository.manifests.look("1")
        by_digest = await repository.manifests.get(sent.digest)
    assert bytes(got) == layer
    assert found == manifests.Found(sent.digest, descriptors.OCI_MANIFEST, len(sent.data))
    assert by_digest == sent
    assert registry.crane("digest", f"{any_registry.authority}/round/trip:1").strip() == sent.digest


async def test_what_the_registry_has_is_not_sent_again(bench: Bench, any_registry: registry.Registry) -> None:
    data = os.urandom(1000)
    sent: list[int] = []
    async with bench.repository(f"{any_registry.authority}/again/one") as repository:
        first = await repository.blobs.give(blob_of(data), Bytes(data), passed=sent.append)
        second = await repository.blobs.give(blob_of(data), Bytes(b"never read"))
    assert (first, second, sum(sent)) == ("uploaded", "there", 1000)


async def test_a_blob_is_mounted_from_another_repository_of_the_registry(
    bench: Bench, plain_registry: registry.Registry
) -> None:
    """SPEC B131."""
    data = os.urandom(1000)
    async with bench.work() as work:
        one, other = (
            work.repository(reference.parse(f"{plain_registry.authority}/mount/{x}")) for x in ("one", "other")
        )
        await one.blobs.give(blob_of(data), Bytes(data))
        outcome = await other.blobs.give(blob_of(data), Bytes(b"never read"), origins=["mount/none", "mount/one"])
        assert await other.blobs.has(blob_of(data).digest)
    assert outcome == "mounted"


async def test_a_large_blob_goes_in_chunks(
    bench: Bench, plain_registry: registry.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codomyrmex_containerization.clients.blobs._CHUNK_BYTES", 400_000)
    data, got = os.urandom(1_900_001), bytearray()
    async with bench.repository(f"{plain_registry.authority}/chunks/one") as repository:
        assert await repository.blobs.give(blob_of(data), Bytes(data)) == "uploaded"
        await repository.blobs.fetch(blob_of(data), got.extend)
    assert bytes(got) == data


async def test_broken_connections_to_a_real_registry_are_gone_on_from(
    bench: Bench, any_registry: registry.Registry
) -> None:
    """SPEC B134."""
    # A registry may still be at what came before when it is asked how much that is.
    bench.pace = replace(bench.pace, attempts=20, first_wait_seconds=0.02, longest_wait_seconds=0.1)
    data, got = os.urandom(8_000_000), bytearray()
    counts: list[int] = []
    with cutting.cutting(any_registry.authority, up=3_000_000, times=2) as proxy:
        async with bench.repository(f"{proxy.authority}/cut/up") as repository:
            assert await repository.blobs.give(blob_of(data), Bytes(data), passed=counts.append) == "uploaded"
        assert (proxy.cuts, sum(counts)) == (2, len(data))
    with cutting.cutting(any_registry.authority, down=3_000_000, times=2) as proxy:
        async with bench.repository(f"{proxy.authority}/cut/up") as repository:
            await repository.blobs.fetch(blob_of(data), got.extend)
        assert proxy.cuts == 2
    assert bytes(got) == data


async def test_an_empty_blob_is_one_too(bench: Bench, plain_registry: registry.Registry) -> None:
    got = bytearray(b"")
    async with bench.repository(f"{plain_registry.authority}/empty/one") as repository:
        assert await repository.blobs.give(blob_of(b""), Bytes(b"")) == "uploaded"
        await repository.blobs.fetch(blob_of(b""), got.extend)
    assert got == b""


async def test_other_contents_than_their_digest_are_refused_by_the_registry(
    bench: Bench, plain_registry: registry.Registry
) -> None:
    async with bench.repository(f"{plain_registry.authority}/wrong/one") as repository:
        with pytest.raises(errors.InvalidArgument, match="DIGEST_INVALID"):
            await repository.blobs.give(blob_of(b"right"), Bytes(b"wrong"))
        assert not await repository.blobs.has(blob_of(b"right").digest)


async def test_what_is_missing_is_not_found_with_the_registrys_own_code(
    bench: Bench, any_registry: registry.Registry
) -> None:
    """SPEC B132."""
    async with bench.repository(f"{any_registry.authority}/no/thing") as repository:
        with pytest.raises(errors.NotFound) as caught:
            await repository.manifests.get("1")
        assert caught.value.details["registry_code"] in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")
        assert await repository.manifests.look("1") is None
        with pytest.raises(errors.NotFound):
            await repository.blobs.fetch(blob_of(b"none"), lambda piece: None)
        with pytest.raises(errors.NotFound):
            _ = [page async for page in repository.manifests.tags()]


async def test_for_a_tag_that_is_not_there_the_nearest_are_named(bench: Bench, any_registry: registry.Registry) -> None:
    """SPEC B132."""
    name = f"{any_registry.authority}/near/tags"
    for tag in ("1.2.3", "1.2.4", "latest"):
        await put_image(bench, f"{name}:{tag}", b"near")
    async with bench.work() as work:
        with pytest.raises(errors.NotFound) as caught:
            await work.find(reference.parse(f"{name}:1.2.5"), Platform("linux", "amd64"))
    assert "1.2.4" in caught.value.hint


# --------------------------------------------------------------------------------------------------------- platforms


async def test_the_image_for_a_platform_is_picked(bench: Bench, any_registry: registry.Registry) -> None:
    name = f"{any_registry.authority}/many/platforms"
    entries = []
    for number, platform in enumerate(
        (Platform("linux", "amd64"), Platform("linux", "arm64"), Platform("linux", "arm", "v6"))
    ):
        made = await put_image(bench, f"{name}:{number}", f"for {platform}".encode())
        entries.append(Descriptor(made.media_type, made.digest, len(made.data), platform))
    async with bench.work() as work:
        repository = work.repository(reference.parse(name))
        await repository.manifests.put("all", descriptors.index_of(entries), descriptors.OCI_INDEX)
        index = await repository.manifests.get("all")
        assert isinstance(index, Index)
        assert index.platforms == ("linux/amd64", "linux/arm64", "linux/arm/v6")
        for wanted, number in (("linux/amd64", 0), ("linux/arm64/v8", 1), ("linux/arm/v6", 2)):
            _, picked = await work.find(reference.parse(f"{name}:all"), descriptors.platform_of(wanted))
            assert picked.digest == entries[number].digest
        with pytest.raises(errors.NotFound, match="linux/arm/v6") as caught:  # no v7, which arm means
            await work.find(reference.parse(f"{name}:all"), descriptors.platform_of("linux/arm"))
    assert caught.value.details["platforms"] == ["linux/amd64", "linux/arm64", "linux/arm/v6"]


# ------------------------------------------------------------------------------------------- tags, catalogue, deletion


async def test_tags_and_the_catalogue_come_in_pages(
    bench: Bench, plain_registry: registry.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_PAGE_ENTRIES", 3)
    wanted = [f"t{number}" for number in range(7)]
    for tag in wanted:
        await put_image(bench, f"{plain_registry.authority}/paged/tags:{tag}", tag.encode())
    async with bench.work() as work:
        repository = work.repository(reference.parse(f"{plain_registry.authority}/paged/tags"))
        pages = [page async for page in repository.manifests.tags()]
        found = [page async for page in manifests.repositories(work.registry(plain_registry.authority))]
    assert [tag for page in pages for tag in page] == wanted
    assert max(map(len, pages)) == 3
    assert "paged/tags" in [name for page in found for name in page]


async def test_an_image_is_deleted_by_its_digest_with_all_its_tags(
    bench: Bench, any_registry: registry.Registry
) -> None:
    """SPEC B131."""
    name = f"{any_registry.authority}/delete/me"
    made = await put_image(bench, f"{name}:1", b"delete me")
    async with bench.repository(name) as repository:
        await repository.manifests.delete(made.digest)
        assert await repository.manifests.look(made.digest) is None
        with pytest.raises(errors.NotFound):
            await repository.manifests.delete(made.digest)


async def test_a_tag_is_deleted_alone_where_the_registry_can(bench: Bench, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.authority}/delete/tag"
    made = await put_image(bench, f"{name}:1", b"tag")
    async with bench.repository(name) as repository:
        await repository.manifests.delete("1")
        assert await repository.manifests.look("1") is None
        assert await repository.manifests.look(made.digest) is not None


async def test_a_registry_that_deletes_nothing_says_so(bench: Bench) -> None:
    def answer(request: rogue.Request) -> rogue.Reply:
        return rogue.problem(405, "UNSUPPORTED", "The operation is unsupported.")

    with rogue.running(answer) as found:
        async with bench.repository(f"{found.authority}/a") as repository:
            with pytest.raises(errors.Unsupported, match="UNSUPPORTED"):
                await repository.manifests.delete(blob_of(b"").digest)


# ----------------------------------------------------------------------------------------------------------- referrers


async def test_referrers_are_listed_whether_the_registry_does_or_not(
    bench: Bench, any_registry: registry.Registry
) -> None:
    """SPEC B131."""
    name = f"{any_registry.authority}/signed/image"
    made = await put_image(bench, f"{name}:1", b"signed")
    subject = {"mediaType": made.media_type, "digest": made.digest, "size": len(made.data)}
    async with bench.repository(name) as repository:
        assert await repository.manifests.referrers(made.digest) == []
        digests = {}
        for kind in ("application/x.signature", "application/x.sbom"):
            data = manifest_of(artifactType=kind, subject=subject, annotations={"made": kind})
            digests[kind] = descriptors.digest_of(data)
            await repository.manifests.put(digests[kind], data, descriptors.OCI_MANIFEST)
        found = await repository.manifests.referrers(made.digest)
        one = await repository.manifests.referrers(made.digest, artifact_type="application/x.sbom")
    assert {each.artifact_type: each.digest for each in found} == digests
    assert [each.digest for each in one] == [digests["application/x.sbom"]]


# ------------------------------------------------------------------------------------------------- shapes of manifests


def _changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(manifest_of(blob_of(b"x"))), **changes}).encode()


@pytest.mark.parametrize(
    ("data", "kind", "error"),
    [
        (b"", "", errors.InvalidArgument),
        (b"[" * 100_000, "", errors.InvalidArgument),
        (b"[]", "", errors.InvalidArgument),
        (b'{"schemaVersion":1,"fsLayers":[]}', "", errors.Unsupported),
        (manifest_of(), "application/vnd.docker.distribution.manifest.v1+prettyjws", errors.Unsupported),
        (manifest_of(), descriptors.OCI_INDEX, errors.InvalidArgument),
        (_changed(mediaType=""), descriptors.DOCKER_LIST, errors.InvalidArgument),
        (_changed(manifests=[]), descriptors.OCI_MANIFEST, errors.InvalidArgument),
        (_changed(mediaType="application/x.other"), "application/x.other", errors.Unsupported),
        (_changed(schemaVersion=3), "", errors.InvalidArgument),
        (_changed(layers=[{"mediaType": "x", "digest": "sha256:../../x", "size": 1}]), "", errors.InvalidArgument),
        (_changed(layers=[{"mediaType": "x", "digest": blob_of(b"").digest, "size": -1}]), "", errors.InvalidArgument),
        (
            _changed(layers=[{"mediaType": "x", "digest": blob_of(b"").digest, "size": True}]),
            "",
            errors.InvalidArgument,
        ),
        (_changed(layers=[{"mediaType": "x", "digest": "md5:" + "0" * 32, "size": 1}]), "", errors.InvalidArgument),
        (_changed(layers=[blob_of(b"").as_json()] * 1001), "", errors.InvalidArgument),
        (_changed(layers=None), "", errors.InvalidArgument),
        (_changed(config=None), "", errors.InvalidArgument),
        (_changed(subject=3), "", errors.InvalidArgument),
        (_changed(annotations=[]), "", errors.InvalidArgument),
    ],
)
def test_a_manifest_that_is_damaged_or_contradicts_itself_is_refused(
    data: bytes, kind: str, error: type[errors.ContainerizationError]
) -> None:
    with pytest.raises(error):
        descriptors.parse(data, kind, where="a/b:1")


def test_a_manifest_is_known_by_what_it_says_of_itself_where_the_registry_says_nothing() -> None:
    assert isinstance(descriptors.parse(manifest_of(), "application/octet-stream", where="x"), Manifest)
    assert isinstance(descriptors.parse(_changed(mediaType=""), "text/plain; charset=utf-8", where="x"), Manifest)
    assert isinstance(descriptors.parse(descriptors.index_of([]), "", where="x"), Index)


async def test_dots_cannot_lead_out_of_a_repository(bench: Bench) -> None:
    """SPEC B133."""
    for text in ("127.0.0.1:1/../../v2:1", "127.0.0.1:1/a/../b:1", "127.0.0.1:1/a/..:1", "127.0.0.1:1/a/%2e%2e/b"):
        with pytest.raises(errors.InvalidArgument):
            async with bench.repository(text):
                pass
