"""Do images come from registries and go there as they are, or not at all? Against a real registry, Docker, crane, and servers that lie."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import descriptors, distribution
from codomyrmex_containerization.clients.descriptors import Descriptor, Platform
from codomyrmex_containerization.engines import base
from codomyrmex_containerization.engines.embedded import content_intake
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.container import ContainerSpec
from codomyrmex_containerization.models.image import BuildSpec
from codomyrmex_containerization.models.settings import RegistrySettings
from tests import embedded, registry, tally
from tests.backends import DockerCommandLine
from tests.clients import rogue
from tests.clients.conftest import QUICK
from tests.clients.rogue import Reply, Request, blob_of
from tests.podman import PodmanService


@pytest.fixture(scope="module")
def local_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    """A registry for everybody."""
    with registry.started(tmp_path_factory.mktemp("registry")) as found:
        yield found


def engine_in(folder: Path) -> EmbeddedEngine:
    folder.mkdir()
    found = embedded.engine(folder)
    found._registries = distribution.Client(
        RegistrySettings(), environ={"HOME": str(folder)}, learn=lambda secret: None, pace=QUICK
    )
    return found


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EmbeddedEngine]:
    found = engine_in(tmp_path / "one")
    yield found
    embedded.swept(found)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[EmbeddedEngine]:
    found = engine_in(tmp_path / "other")
    yield found
    embedded.swept(found)


async def pulled(engine: EmbeddedEngine, name: str, platform: str | None = None) -> list[base.PullProgress]:
    async with engine.pull_image(name, platform=platform) as steps:
        return [step async for step in steps]


def rubbish(engine: EmbeddedEngine) -> list[str]:
    """What lies about in the store of images that no image needs."""
    engine.house.images.sweep()
    folder = engine._folders.images
    found = [*(folder / "blobs/sha256").iterdir(), *(folder / "layers").iterdir(), *(folder / "tmp").iterdir()]
    return [str(one) for one in found]


async def said(engine: EmbeddedEngine, image: str, *command: str) -> str:
    """Run something in a container of an image and return what it says."""
    made = await engine.create_container(ContainerSpec(image=image, command=command, isolation="minimal"))
    try:
        found: list[bytes] = []
        async with engine.attach_container(made, stdin=None) as attachment:
            await engine.start_container(made)
            async for frame in attachment.frames():
                found.append(frame.data)
        return b"".join(found).decode()
    finally:
        await engine.remove_container(made, force=True, volumes=True)


def layer(**files: bytes) -> bytes:
    """Return a layer with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Image:
    """An image of these layers, served by hand."""

    def __init__(self, *layers: bytes, architecture: str = "amd64") -> None:
        import gzip

        plain = [gzip.decompress(one) if one[:2] == b"\x1f\x8b" else one for one in layers]
        config = {
            "os": "linux",
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [descriptors.digest_of(one) for one in plain]},
            "config": {},
        }
        self.config = json.dumps(config).encode()
        kind = f"{content_intake.OCI_LAYER}+gzip"
        self.manifest = rogue.manifest_of(*(blob_of(one, kind) for one in layers), config=self.config)
        self.blobs = {blob_of(one).digest: one for one in (*layers, self.config)}
        self.digest = descriptors.digest_of(self.manifest)

    def __call__(self, request: Request) -> Reply:
        """Answer."""
        if "/manifests/" in request.path:
            return Reply(200, self.manifest, {"content-type": descriptors.OCI_MANIFEST})
        data = self.blobs.get(request.path.rpartition("/")[2])
        return Reply(200, data) if data is not None else Reply(404)


# --------------------------------------------------------------------------------------------------------- round trips


async def test_an_image_goes_to_a_registry_and_comes_back_and_runs(
    engine: EmbeddedEngine, other: EmbeddedEngine, local_registry: registry.Registry, tmp_path: Path
) -> None:
    """SPEC B139."""
    image = embedded.base_image(engine, tmp_path)
    name = f"{local_registry.authority}/round/trip:1"
    pushed = await embedded.pushed(engine, image, name)
    assert (pushed.moved, pushed.mounted, pushed.there) == (1, 0, 0)
    steps = await pulled(other, name)
    assert steps[-1].done_bytes == steps[-1].total_bytes == pushed.moved_bytes
    assert steps[0].text == "1 of 1 layers to download"
    assert (await other.inspect_image(name)).id == pushed.id == (await engine.inspect_image(image)).id
    assert await said(other, name, "echo", "hello") == "hello\n"
    assert registry.crane("digest", name).strip() == pushed.digest
    assert "PASS" in registry.crane("validate", "--remote", name)


async def test_what_is_there_is_neither_sent_nor_fetched_again(
    engine: EmbeddedEngine, local_registry: registry.Registry, tmp_path: Path
) -> None:
    """SPEC B139."""
    image = embedded.base_image(engine, tmp_path)
    first = await embedded.pushed(engine, image, f"{local_registry.authority}/again/one:1")
    again = await embedded.pushed(engine, image, f"{local_registry.authority}/again/one:2")
    assert (again.moved, again.there, again.digest) == (0, 1, first.digest)
    assert (await pulled(engine, f"{local_registry.authority}/again/one:2"))[0].text == "0 of 1 layers to download"
    # Now it is known where the layer is: it is mounted rather than sent.
    mounted = await embedded.pushed(engine, image, f"{local_registry.authority}/again/other:1")
    assert (mounted.moved, mounted.mounted, mounted.moved_bytes) == (0, 1, 0)


async def test_only_the_changed_layer_is_sent(
    engine: EmbeddedEngine, local_registry: registry.Registry, tmp_path: Path
) -> None:
    image = embedded.base_image(engine, tmp_path)
    name = f"{local_registry.authority}/changed/layer"
    await embedded.pushed(engine, image, f"{name}:1")
    spec = BuildSpec(("localhost/changed:2",), tmp_path, None, f"FROM {image}\nCOPY file /file\n")

    def context() -> Iterator[bytes]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for file, data in (("file", b"changed"), ("Dockerfile", spec.dockerfile_text.encode())):
                entry = tarfile.TarInfo(file)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        yield buffer.getvalue()

    async with engine.build_image(spec, context=context, dockerfile_name="Dockerfile") as events:
        assert "error" not in {event.kind async for event in events}
    pushed = await embedded.pushed(engine, "localhost/changed:2", f"{name}:2")
    assert (pushed.moved, pushed.there) == (1, 1)


async def test_docker_pulls_what_was_pushed_and_the_other_way_round(
    engine: EmbeddedEngine,
    local_registry: registry.Registry,
    tmp_path: Path,
    docker_cli: DockerCommandLine,
) -> None:
    """SPEC B139."""
    image = embedded.base_image(engine, tmp_path)
    ours, theirs = (f"{local_registry.authority}/with/docker:{one}" for one in ("ours", "theirs"))
    pushed = await embedded.pushed(engine, image, ours)
    try:
        docker_cli(["pull", "--quiet", ours])
        shown = json.loads(docker_cli(["image", "inspect", ours]).stdout)[0]
        assert shown["Id"] == pushed.id
        assert shown["RepoDigests"] == [f"{local_registry.authority}/with/docker@{pushed.digest}"]
        docker_cli(["build", "--quiet", "--tag", theirs, "-"], stdin=f"FROM {ours}\nLABEL by=docker\n".encode())
        docker_cli(["push", "--quiet", theirs])
        await pulled(engine, theirs)
        found = await engine.inspect_image(theirs)
        assert found.id == json.loads(docker_cli(["image", "inspect", theirs]).stdout)[0]["Id"]
        assert found.labels["by"] == "docker"
    finally:
        docker_cli(["image", "rm", "--force", ours, theirs], check=False)


async def test_an_image_goes_round_through_docker_and_podman_and_stays_the_same(
    engine: EmbeddedEngine,
    other: EmbeddedEngine,
    local_registry: registry.Registry,
    tmp_path: Path,
    docker_cli: DockerCommandLine,
    podman_service: PodmanService,
) -> None:
    """SPEC B139."""
    image = embedded.base_image(engine, tmp_path)
    first, second, third = (f"{local_registry.authority}/round/{one}:1" for one in ("first", "second", "third"))
    pushed = await embedded.pushed(engine, image, first)
    podman = podman_service.podman
    try:
        docker_cli(["pull", "--quiet", first])
        docker_cli(["tag", first, second])
        docker_cli(["push", "--quiet", second])
        podman(["pull", "--quiet", "--tls-verify=false", second])
        (seen,) = json.loads(podman(["image", "inspect", second]).stdout)
        podman(["push", "--quiet", "--tls-verify=false", second, third])
        await pulled(other, third)
    finally:
        docker_cli(["image", "rm", "--force", first, second], check=False)
        podman(["image", "rm", "--force", second], check=False)
    assert f"sha256:{seen['Id'].removeprefix('sha256:')}" == pushed.id
    assert (await other.inspect_image(third)).id == pushed.id


async def test_an_image_is_pulled_by_its_digest(
    engine: EmbeddedEngine, other: EmbeddedEngine, local_registry: registry.Registry, tmp_path: Path
) -> None:
    image = embedded.base_image(engine, tmp_path)
    name = f"{local_registry.authority}/by/digest"
    pushed = await embedded.pushed(engine, image, f"{name}:1")
    await pulled(other, f"{name}@{pushed.digest}")
    (row,) = await other.list_images()
    assert (row.tags, row.digests) == ((), (f"{name}@{pushed.digest}",))
    assert await said(other, f"{name}@{pushed.digest}", "echo", "pinned") == "pinned\n"
    await other.save_image(f"{name}@{pushed.digest}", tmp_path / "saved.tar", format="oci-archive")
    await other.remove_image(f"{name}@{pushed.digest}", force=False)
    assert rubbish(other) == []


async def test_the_image_for_this_machine_is_pulled_or_the_one_that_is_asked_for(
    engine: EmbeddedEngine, other: EmbeddedEngine
) -> None:
    images = {one: Image(layer(arch=one.encode()), architecture=one) for one in ("amd64", "arm64", "s390x")}
    entries = [
        Descriptor(descriptors.OCI_MANIFEST, image.digest, len(image.manifest), Platform("linux", one))
        for one, image in images.items()
    ]
    index = descriptors.index_of(entries)

    def answer(request: Request) -> Reply:
        name = request.path.rpartition("/")[2]
        if name == "1":
            return Reply(200, index, {"content-type": descriptors.OCI_INDEX})
        for image in images.values():
            if name == image.digest or name in image.blobs:
                return image(request)
        return Reply(404)

    with rogue.running(answer) as found:
        name = f"{found.authority}/many/platforms:1"
        await pulled(engine, name)
        await pulled(other, name, "linux/s390x")
        with pytest.raises(errors.NotFound, match="linux/amd64, linux/arm64, linux/s390x"):
            await pulled(engine, name, "linux/riscv64")
        with pytest.raises(errors.InvalidArgument, match="no platform"):
            await pulled(engine, name, "riscv64")
    assert (await engine.inspect_image(name)).architecture in ("amd64", "arm64")
    assert (await other.inspect_image(name)).architecture == "s390x"


# ----------------------------------------------------------------------------------------------- nothing half-written


LAYER = layer(file=os.urandom(2_000_000))
OTHER = layer(other=os.urandom(2_000_000))


class Lying(Image):
    """An image whose layer is not what its digest says."""

    def __init__(self, lie: Reply) -> None:
        super().__init__(LAYER, OTHER)
        self._lie = lie

    def __call__(self, request: Request) -> Reply:
        """Answer."""
        return self._lie if request.path.endswith(blob_of(LAYER).digest) else super().__call__(request)


@pytest.mark.attack(tally.REGISTRIES)
@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (Reply(200, layer(file=b"another")), errors.InvalidArgument),
        (Reply(200, OTHER[: len(LAYER)].ljust(len(LAYER), b"\0")), errors.InvalidArgument),
        (Reply(200, LAYER, cut=500_000), errors.EngineUnavailable),
        (Reply(404), errors.NotFound),
        (Reply(500), errors.EngineUnavailable),
    ],
    ids=["size", "digest", "cut", "missing", "broken"],
)
async def test_of_an_image_that_does_not_come_whole_nothing_is_kept(
    engine: EmbeddedEngine, lie: Reply, error: type[errors.ContainerizationError]
) -> None:
    """SPEC B140."""
    tally.tried()
    if lie.cut is not None:
        lie = Reply(200, LAYER, cut=0)
    with rogue.running(Lying(lie)) as found, pytest.raises(error):
        await pulled(engine, f"{found.authority}/lying/image:1")
    assert await engine.list_images() == []
    assert rubbish(engine) == []


@pytest.mark.attack(tally.REGISTRIES)
async def test_a_layer_that_unpacks_to_something_else_than_the_image_says_is_refused(engine: EmbeddedEngine) -> None:
    """SPEC B140."""
    tally.tried()
    image = Image(LAYER)
    config = json.loads(image.config)
    config["rootfs"]["diff_ids"] = [descriptors.digest_of(b"another")]
    image.config = json.dumps(config).encode()
    image.blobs[blob_of(image.config).digest] = image.config
    image.manifest = rogue.manifest_of(blob_of(LAYER, f"{content_intake.OCI_LAYER}+gzip"), config=image.config)
    with rogue.running(image) as found, pytest.raises(errors.InvalidArgument):
        await pulled(engine, f"{found.authority}/lying/image:1")
    assert rubbish(engine) == []


@pytest.mark.attack(tally.REGISTRIES)
async def test_a_layer_that_leads_out_of_its_folder_is_refused(engine: EmbeddedEngine) -> None:
    """SPEC B140."""
    tally.tried()
    with rogue.running(Image(layer(**{"../../escaped": b"x"}))) as found, pytest.raises(errors.InvalidArgument):
        await pulled(engine, f"{found.authority}/lying/image:1")
    assert rubbish(engine) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
        ("application/vnd.cncf.helm.chart.content.v1", "a layer that is none"),
    ],
)
async def test_what_is_no_image_for_this_engine_is_said_to_be_none(
    engine: EmbeddedEngine, kind: str, words: str
) -> None:
    image = Image(LAYER)
    image.manifest = rogue.manifest_of(blob_of(LAYER, kind), config=image.config)
    with rogue.running(image) as found, pytest.raises(errors.Unsupported, match=words):
        await pulled(engine, f"{found.authority}/other/thing:1")


@pytest.mark.attack(tally.REGISTRIES)
async def test_layers_of_elsewhere_are_fetched_from_the_registry_alone(engine: EmbeddedEngine) -> None:
    """SPEC B135."""
    tally.tried()
    with rogue.running(lambda request: Reply(200, LAYER)) as elsewhere:
        image = Image(LAYER)
        raw = json.loads(image.manifest)
        raw["layers"][0]["urls"] = [f"http://{elsewhere.authority}/layer"]
        image.manifest = json.dumps(raw).encode()
        del image.blobs[blob_of(LAYER).digest]
        with rogue.running(image) as found, pytest.raises(errors.NotFound):
            await pulled(engine, f"{found.authority}/foreign/layer:1")
    assert elsewhere.asked == []


# --------------------------------------------------------------------------------------------------- side by side, ends


async def test_two_pulls_of_one_image_at_once_are_one_download(engine: EmbeddedEngine) -> None:
    """SPEC B139."""
    with rogue.running(Image(LAYER, OTHER)) as found:
        name = f"{found.authority}/same/image:1"
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(pulled, engine, name)
        fetched = [path for path in found.paths() if path.endswith((blob_of(LAYER).digest, blob_of(OTHER).digest))]
    assert len(fetched) == 2
    assert len(await engine.list_images()) == 1


async def test_a_pull_that_is_left_stops_and_keeps_nothing(engine: EmbeddedEngine) -> None:
    """SPEC B140."""
    never = threading.Event()
    image = Image(LAYER, OTHER)

    def answer(request: Request) -> Reply:
        if request.path.endswith(blob_of(OTHER).digest):
            return Reply(200, OTHER, silent=never)
        return image(request)

    with rogue.running(answer) as found:
        try:
            async with engine.pull_image(f"{found.authority}/left/image:1", platform=None) as steps:
                async for step in steps:
                    if step.done_bytes:
                        break
            # Whoever sweeps waits for those who bring something in: then the thread has ended.
            assert await anyio.to_thread.run_sync(rubbish, engine) == []
        finally:
            never.set()
    assert await engine.list_images() == []


_KILLED = """
import anyio, sys
from pathlib import Path
from codomyrmex_containerization.engines.embedded import objects
from codomyrmex_containerization.engines.embedded.engine import EmbeddedEngine
from codomyrmex_containerization.models.engine import Endpoint

async def main():
    data, run, name = sys.argv[1:]
    endpoint = Endpoint("embedded", f"file://{data}", "a test", kind="embedded")
    engine = EmbeddedEngine(endpoint, objects.Folders(Path(data), Path(run)), timeout_seconds=60.0)
    async with engine.pull_image(name, platform=None) as steps:
        async for step in steps:
            sys.stdout.write(f"{step.done_bytes}\\n")  # at once, whatever the environment says of buffers
            sys.stdout.flush()

anyio.run(main)
"""


async def test_what_a_pull_has_left_that_was_killed_is_taken_away(engine: EmbeddedEngine) -> None:
    """SPEC B89, SPEC B140."""
    never, image = threading.Event(), Image(LAYER, OTHER)

    def answer(request: Request) -> Reply:
        if request.path.endswith(blob_of(OTHER).digest):
            return Reply(200, OTHER, silent=never)
        return image(request)

    folders = engine._folders
    with rogue.running(answer) as found:
        name = f"{found.authority}/killed/pull:1"
        command = [sys.executable, "-c", _KILLED, str(folders.data), str(folders.run), name]
        async with await anyio.open_process(command, stderr=None) as process:
            assert process.stdout is not None
            async for line in process.stdout:
                if int(line.split()[-1]):  # something has come, and the other layer does not
                    break
            process.kill()
            await process.wait()
        never.set()
    assert list((folders.images / "tmp").iterdir()) != []
    assert await engine.list_images() == []
    assert list((folders.images / "tmp").iterdir()) == []


async def test_a_layer_that_is_in_an_image_twice_is_fetched_once(engine: EmbeddedEngine) -> None:
    with rogue.running(Image(LAYER, OTHER, LAYER)) as found:
        await pulled(engine, f"{found.authority}/twice/layer:1")
        fetched = [path for path in found.paths() if path.endswith(blob_of(LAYER).digest)]
    assert len(fetched) == 1
    assert (await engine.image_details(f"{found.authority}/twice/layer:1")).size_bytes >= 4_000_000


async def test_a_push_needs_an_image_and_a_tag(engine: EmbeddedEngine, tmp_path: Path) -> None:
    image = embedded.base_image(engine, tmp_path)
    with pytest.raises(errors.NotFound):
        await embedded.pushed(engine, "localhost/none:1", "127.0.0.1:1/a/b:1")
    with pytest.raises(errors.InvalidArgument, match="no tag"):
        await embedded.pushed(engine, image, f"127.0.0.1:1/a/b@{descriptors.digest_of(b'')}")
    with pytest.raises(errors.EngineUnavailable, match="refused"):
        await embedded.pushed(engine, image, "127.0.0.1:1/a/b:1")
