"""What becomes of a registry's faults and lies? Nothing but an error, or the very contents after all."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import addresses, descriptors, transport
from codomyrmex_containerization.clients.descriptors import Descriptor, Platform
from codomyrmex_containerization.models import reference
from tests import registry, tally, tls
from tests.clients import rogue
from tests.clients.conftest import Bench, Bytes
from tests.clients.rogue import Reply, Request, blob_of, manifest_of

DATA = os.urandom(300_000)
BLOB = blob_of(DATA)


def ranged(request: Request, data: bytes = DATA) -> tuple[int, dict[str, str], bytes]:
    """Answer as a registry does that can go on in the middle."""
    wanted = request.headers.get("range")
    if wanted is None:
        return 200, {}, data
    begin = int(wanted.removeprefix("bytes=").partition("-")[0])
    return 206, {"content-range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}, data[begin:]


async def fetched(bench: Bench, found: rogue.Rogue, blob: Descriptor = BLOB) -> bytes:
    got = bytearray()
    async with bench.repository(f"{found.authority}/a/b") as repository:
        await repository.blobs.fetch(blob, got.extend)
    return bytes(got)


# ------------------------------------------------------------------------------------------------------------ download


async def test_a_cut_off_download_goes_on_where_it_ended(bench: Bench) -> None:
    """SPEC B134."""

    def answer(request: Request) -> Reply:
        status, headers, body = ranged(request)
        return Reply(status, body, headers, cut=100_000 if len(body) > 100_000 else None)

    with rogue.running(answer) as found:
        assert await fetched(bench, found) == DATA
    ranges = [one.headers.get("range") for one in found.asked if "blobs" in one.path]
    assert ranges == [None, "bytes=100000-299999", "bytes=200000-299999"]


async def test_a_registry_without_ranges_begins_again_and_nothing_comes_twice(bench: Bench) -> None:
    count = itertools.count()

    def answer(request: Request) -> Reply:
        return Reply(200, DATA, cut=100_000 if next(count) == 1 else None)

    with rogue.running(answer) as found:
        assert await fetched(bench, found) == DATA


async def test_a_download_that_gets_nowhere_ends(bench: Bench) -> None:
    with (
        rogue.running(lambda request: Reply(200, DATA, cut=0)) as found,
        pytest.raises(errors.EngineUnavailable, match="after 0 of 300,000 bytes"),
    ):
        await fetched(bench, found)
    assert len([one for one in found.asked if "blobs" in one.path]) == bench.pace.attempts


async def test_a_registry_that_falls_silent_after_the_headers_is_given_up(bench: Bench) -> None:
    bench.pace = replace(bench.pace, silence_seconds=0.05)
    never = threading.Event()
    with rogue.running(lambda request: Reply(200, DATA, silent=never)) as found:
        try:
            with pytest.raises(errors.EngineUnavailable, match="fell silent"):
                await fetched(bench, found)
        finally:
            never.set()


@pytest.mark.attack(tally.REGISTRIES)
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(200, DATA[:-1] + b"x" if DATA[-1:] != b"x" else DATA[:-1] + b"y"), "its digest is"),
        (Reply(200, DATA[:-1]), "299999 bytes where 300000"),
        (Reply(200, DATA + b"more"), "300004 bytes where 300000"),
        (Reply(200, [DATA, b"more"]), "longer than its 300,000"),
        (Reply(200, DATA, {"content-encoding": "gzip"}), "packed on the way"),
    ],
    ids=["digest", "short", "long", "long without length", "packed"],
)
async def test_other_contents_than_asked_for_are_refused(bench: Bench, reply: Reply, words: str) -> None:
    """SPEC B133."""
    tally.tried()
    with rogue.running(lambda request: reply) as found, pytest.raises(errors.InvalidArgument, match=words) as caught:
        await fetched(bench, found)
    assert "nothing of it was kept" in caught.value.hint


@pytest.mark.attack(tally.REGISTRIES)
async def test_a_body_without_end_is_read_no_further_than_it_should_be(bench: Bench) -> None:
    """SPEC B133."""
    tally.tried()
    given = 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 65536
            yield bytes(65536)

    with (
        rogue.running(lambda request: Reply(200, endless())) as found,
        pytest.raises(errors.InvalidArgument, match="longer than"),
    ):
        await fetched(bench, found)
    assert given < 64 * 1024 * 1024  # what buffers between hold


async def test_an_answer_that_goes_on_at_another_place_is_no_answer(bench: Bench) -> None:
    def answer(request: Request) -> Reply:
        status, headers, body = ranged(request)
        if status == 206:
            headers = {"content-range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"}
        return Reply(status, body, headers, cut=1000 if status == 200 else None)

    with rogue.running(answer) as found, pytest.raises(errors.EngineUnavailable, match="another place"):
        await fetched(bench, found)


# -------------------------------------------------------------------------------------------------------------- upload


class Uploads:
    """A registry that takes one blob, and loses connections."""

    def __init__(self, *, loses: Sequence[int] = (), forgets: bool = False, loses_end: bool = False) -> None:
        """Lose the connection in these patches, after half of each; forget what came; lose the answer to the end."""
        self.arrived = b""
        self.patches = 0
        self.is_whole = False
        self._loses = loses
        self._forgets = forgets
        self._loses_end = loses_end

    def __call__(self, request: Request) -> Reply:
        """Answer."""
        there = {"location": "/v2/a/b/blobs/uploads/1?state=x"}
        if request.method == "HEAD":
            return Reply(200 if self.is_whole else 404)
        if request.method == "POST":
            self.arrived = b""
            return Reply(202, headers=there)
        if request.method == "PATCH":
            self.patches += 1
            if self.patches in self._loses:
                self.arrived += request.body[: len(request.body) // 2]
                return Reply(503)
            self.arrived += request.body
            return Reply(202, headers={**there, "range": f"0-{len(self.arrived) - 1}"})
        if request.method == "GET":
            if self._forgets:
                return rogue.problem(404, "BLOB_UPLOAD_UNKNOWN")
            return Reply(204, headers={**there, "range": f"0-{max(len(self.arrived) - 1, 0)}"})
        self.is_whole = self.arrived == DATA
        return Reply(503) if self._loses_end else Reply(201)


async def given(bench: Bench, found: rogue.Rogue) -> tuple[str, int]:
    counts: list[int] = []
    async with bench.repository(f"{found.authority}/a/b") as repository:
        outcome = await repository.blobs.give(BLOB, Bytes(DATA), passed=counts.append)
    return outcome, sum(counts)


async def test_an_upload_goes_on_at_its_offset(bench: Bench) -> None:
    """SPEC B134."""
    uploads = Uploads(loses=(1, 2))
    with rogue.running(uploads) as found:
        assert await given(bench, found) == ("uploaded", len(DATA))
    assert uploads.is_whole
    ranges = [one.headers.get("content-range") for one in found.asked if one.method == "PATCH"]
    assert ranges == [None, "150000-299999", "225000-299999"]


async def test_an_upload_that_the_registry_has_forgotten_begins_again(bench: Bench) -> None:
    uploads = Uploads(loses=(1,), forgets=True)
    with rogue.running(uploads) as found:
        assert await given(bench, found) == ("uploaded", len(DATA))
    assert uploads.is_whole
    assert len(found.paths("POST")) == 2


async def test_an_upload_whose_last_answer_was_lost_is_done(bench: Bench) -> None:
    uploads = Uploads(loses_end=True)
    with rogue.running(uploads) as found:
        assert (await given(bench, found))[0] == "uploaded"
    assert uploads.patches == 1


async def test_an_upload_that_gets_nowhere_ends(bench: Bench) -> None:
    def answer(request: Request) -> Reply:
        if request.method == "POST":
            return Reply(202, headers={"location": "/v2/a/b/blobs/uploads/1"})
        return Reply(404) if request.method in ("HEAD", "GET") else Reply(500)

    with rogue.running(answer) as found, pytest.raises(errors.EngineUnavailable):
        await given(bench, found)
    assert len(found.paths("PATCH")) == bench.pace.attempts


# -------------------------------------------------------------------------------------------------- patience, and its end


async def test_a_registry_that_has_too_much_to_do_is_asked_again_when_it_says(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPEC B134."""
    bench.pace = replace(bench.pace, longest_wait_seconds=90.0)
    waits: list[float] = []
    real = anyio.sleep

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr(f"{transport.__name__}.anyio.sleep", slept)
    replies = iter(
        [
            rogue.problem(429, "TOOMANYREQUESTS", "slow down", {"retry-after": "7"}),
            Reply(503),
            Reply(502),
            Reply(200, manifest_of(), {"content-type": descriptors.OCI_MANIFEST}),
        ]
    )
    bench.pace = replace(bench.pace, attempts=5)
    with rogue.running(lambda request: next(replies) if "manifests" in request.path else Reply(200)) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            assert (await repository.manifests.get("1")).data == manifest_of()
    assert waits[0] == 7.0
    assert waits[1:] == [0.002, 0.004]


async def test_a_registry_that_wants_to_be_left_alone_for_long_is(bench: Bench) -> None:
    with rogue.running(lambda request: rogue.problem(429, "TOOMANYREQUESTS", "", {"retry-after": "3600"})) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises(errors.EngineUnavailable, match="TOOMANYREQUESTS") as caught:
                await repository.manifests.get("1")
    assert "3600 seconds" in caught.value.hint
    assert len(found.paths()) == 1


async def test_a_storm_of_refusals_ends(bench: Bench) -> None:
    with rogue.running(lambda request: rogue.problem(429, "TOOMANYREQUESTS")) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises(errors.EngineUnavailable, match="too many requests"):
                await repository.manifests.get("1")
    assert len(found.paths()) == bench.pace.attempts


async def test_what_was_refused_for_good_is_not_asked_again(bench: Bench) -> None:
    with rogue.running(lambda request: rogue.problem(403, "DENIED", "not \x1b[31myou\n" + "x" * 1000)) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises(errors.Unauthorized, match="DENIED: not") as caught:
                await repository.manifests.get("1")
    assert len(found.paths()) == 1
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 400


async def test_a_registry_that_is_not_there_is_unavailable(bench: Bench) -> None:
    async with bench.repository("127.0.0.1:1/a/b") as repository:
        with pytest.raises(errors.EngineUnavailable, match="refused") as caught:
            await repository.manifests.get("1")
    assert "httpx" not in caught.value.text()


# ----------------------------------------------------------------------------------------------------------- manifests


@pytest.mark.attack(tally.REGISTRIES)
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(200, itertools.repeat(bytes(65536))), "longer than 4,194,304 bytes"),
        (Reply(200, b"<html>hello</html>"), "no JSON"),
        (Reply(200, manifest_of(), {"docker-content-digest": blob_of(b"other").digest}), "its digest is"),
    ],
    ids=["huge", "no manifest", "digest"],
)
async def test_a_manifest_that_is_none_is_an_error(bench: Bench, reply: Reply, words: str) -> None:
    """SPEC B133."""
    tally.tried()
    with rogue.running(lambda request: reply) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises((errors.InvalidArgument, errors.EngineUnavailable), match=words):
                await repository.manifests.get("1")


async def test_a_manifest_asked_for_by_digest_has_that_digest(bench: Bench) -> None:
    with rogue.running(lambda request: Reply(200, manifest_of())) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises(errors.InvalidArgument, match="its digest is"):
                await repository.manifests.get(blob_of(b"other").digest)


@pytest.mark.attack(tally.REGISTRIES)
async def test_indexes_that_lead_round_in_circles_end(bench: Bench) -> None:
    tally.tried()
    depth = itertools.count()

    def answer(request: Request) -> Reply:
        # No index can hold its own digest, so each request makes the next one; the lie in it is its digest.
        entry = Descriptor(
            descriptors.OCI_INDEX, blob_of(str(next(depth)).encode()).digest, 1, Platform("linux", "amd64")
        )
        return Reply(200, descriptors.index_of([entry]), {"content-type": descriptors.OCI_INDEX})

    with rogue.running(answer) as found:
        async with bench.work() as work:
            with pytest.raises(errors.InvalidArgument):
                await work.find(reference.parse(f"{found.authority}/a/b:1"), Platform("linux", "amd64"))
    assert len(found.paths()) <= 6


async def test_lists_that_lead_round_in_circles_or_hold_what_is_no_name_are_errors(bench: Bench) -> None:
    def circles(request: Request) -> Reply:
        return Reply(200, b'{"tags":["a"]}', {"link": '</v2/a/b/tags/list?n=1000&last=a>; rel="next"'})

    def rubbish(request: Request) -> Reply:
        return Reply(200, b'{"tags":["../../etc"]}')

    for answer, words in ((circles, "circles"), (rubbish, "cannot be a name")):
        with rogue.running(answer) as found:
            async with bench.repository(f"{found.authority}/a/b") as repository:
                with pytest.raises(errors.EngineUnavailable, match=words):
                    _ = [page async for page in repository.manifests.tags()]


@pytest.mark.attack(tally.REGISTRIES)
async def test_where_the_next_page_is_the_registry_says_but_not_on_which_host(bench: Bench) -> None:
    tally.tried()

    def answer(request: Request) -> Reply:
        if "last" in request.path:
            return Reply(200, b'{"tags":["b"]}')
        return Reply(200, b'{"tags":["a"]}', {"link": '<http://169.254.169.254/latest/meta-data?last=a>; rel="next"'})

    with rogue.running(answer) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            pages = [page async for page in repository.manifests.tags()]
    assert pages == [["a"], ["b"]]
    assert found.paths()[-1] == "/v2/a/b/tags/list?last=a"


# ----------------------------------------------------------------------------------------------------------- redirects


@pytest.mark.attack(tally.REGISTRIES)
async def test_a_blob_may_come_from_another_host_which_gets_no_credentials(
    bench: Bench, authority: tls.Authority, certificates: Path
) -> None:
    """SPEC B135."""
    tally.tried()
    (bench.home / ".docker").mkdir()
    with rogue.running(lambda request: Reply(200, DATA)) as storage:

        def answer(request: Request) -> Reply:
            if "authorization" not in request.headers:
                return Reply(401, headers={"www-authenticate": 'Basic realm="x"'})
            return Reply(307, headers={"location": f"http://{storage.authority}/data?signature=x"})

        with rogue.running(answer) as found:
            (bench.home / ".docker" / "config.json").write_text(
                json.dumps({"auths": {found.authority: {"auth": "c29tZW9uZTpzZWNyZXQ="}}})
            )
            assert await fetched(bench, found) == DATA
    (asked,) = storage.asked
    assert "authorization" not in asked.headers
    assert any("authorization" in one.headers for one in found.asked)


async def test_a_host_that_a_redirect_names_is_asked_at_the_address_that_was_judged(
    bench: Bench, authority: tls.Authority, certificates: Path
) -> None:
    """SPEC B135."""
    with rogue.running(lambda request: Reply(200, DATA), certificates=certificates) as storage:
        there = f"https://localhost:{storage.port}/data"
        with rogue.running(lambda request: Reply(307, headers={"location": there}), certificates=certificates) as found:
            bench.trust(authority, found.authority, f"localhost:{storage.port}")
            assert await fetched(bench, found) == DATA
    assert storage.asked[0].headers["host"] == f"localhost:{storage.port}"


async def test_a_registry_whose_name_is_none_is_not_waited_for(bench: Bench) -> None:
    """SPEC B134."""
    bench.pace = replace(bench.pace, attempts=5, first_wait_seconds=1000.0, longest_wait_seconds=1000.0)
    async with bench.repository("no-such-host.invalid/a/b") as repository:
        with pytest.raises(errors.EngineUnavailable, match="does not answer"):
            await repository.manifests.get("1")


@pytest.mark.attack(tally.REGISTRIES)
@pytest.mark.parametrize(
    "where",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://0.0.0.0/x",
        "http://224.0.0.1/x",
        "http://[::ffff:169.254.169.254]/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user:secret@127.0.0.1/x",
        "http://127.0.0.1:0/x",
    ],
)
async def test_a_redirect_to_where_no_registry_is_is_refused(bench: Bench, where: str) -> None:
    """SPEC B135."""
    tally.tried()
    with (
        rogue.running(lambda request: Reply(307, headers={"location": where})) as found,
        pytest.raises((errors.Refused, errors.InvalidArgument)),
    ):
        await fetched(bench, found)
    assert len(found.paths()) == 1


@pytest.mark.attack(tally.REGISTRIES)
@pytest.mark.parametrize("place", ["loopback", "private"])
async def test_a_registry_elsewhere_leads_nobody_to_loopback_or_a_private_network(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, place: str, authority: tls.Authority, certificates: Path
) -> None:
    """SPEC B135."""
    tally.tried()
    real = addresses.resolve

    async def resolve(host: str, port: int) -> tuple[addresses.Address, ...]:
        # The registry is on loopback here; as if it were on the internet.
        registry_at = addresses.literal("8.8.8.8")
        assert registry_at is not None
        return (registry_at,) if host == "localhost" else await real(host, port)

    monkeypatch.setattr(addresses, "resolve", resolve)
    target = {"loopback": "http://127.0.0.1:9/x", "private": "http://10.1.2.3/x"}[place]
    with rogue.running(lambda request: Reply(307, headers={"location": target})) as found:
        async with bench.repository(f"localhost:{found.port}/a/b") as repository:
            with pytest.raises(errors.Refused, match=f"a {place} address"):
                await repository.blobs.fetch(BLOB, lambda piece: None)


@pytest.mark.attack(tally.REGISTRIES)
async def test_from_https_nobody_goes_to_http(bench: Bench, authority: tls.Authority, certificates: Path) -> None:
    """SPEC B135."""
    tally.tried()
    with rogue.running(lambda request: Reply(200, DATA)) as storage:
        there = f"http://{storage.authority}/data"
        with rogue.running(lambda request: Reply(307, headers={"location": there}), certificates=certificates) as found:
            bench.trust(authority, found.authority)
            with pytest.raises(errors.Refused, match="from https nobody goes to http"):
                await fetched(bench, found)
    assert storage.asked == []


async def test_redirects_without_end_end(bench: Bench) -> None:
    with (
        rogue.running(lambda request: Reply(307, headers={"location": request.path})) as found,
        pytest.raises(errors.EngineUnavailable, match="without end"),
    ):
        await fetched(bench, found)


# ----------------------------------------------------------------------------------------------------------------- TLS


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(
    bench: Bench, certificates: Path, authority: tls.Authority
) -> None:
    """SPEC B136."""
    with rogue.running(lambda request: Reply(200, DATA), certificates=certificates) as found:
        with pytest.raises(errors.EngineUnavailable, match=r"certificate .* is not accepted") as caught:
            await fetched(bench, found)
        assert f"certs.d/{found.authority}" in caught.value.hint
        assert found.asked == []
        bench.trust(authority, found.authority)
        assert await fetched(bench, found) == DATA


async def test_a_registry_listed_as_insecure_may_have_any_certificate(bench: Bench, certificates: Path) -> None:
    """SPEC B136."""
    with rogue.running(lambda request: Reply(200, DATA), certificates=certificates) as found:
        bench.settings["insecure"] = (found.authority,)
        assert await fetched(bench, found) == DATA


async def test_a_registry_elsewhere_is_never_asked_without_tls(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC B136."""
    monkeypatch.setattr(addresses, "is_loopback_name", lambda host: False)
    with rogue.running(lambda request: Reply(200, DATA)) as found:
        with pytest.raises(errors.EngineUnavailable):
            await fetched(bench, found)
        assert found.asked == []
        bench.settings["insecure"] = (found.authority,)
        assert await fetched(bench, found) == DATA


async def test_own_certificates_are_shown_where_the_registry_wants_them(
    bench: Bench, authority: tls.Authority, certificates: Path
) -> None:
    """SPEC B136."""
    own = authority.issue(bench.home / "own", "clientAuth")
    with rogue.running(lambda request: Reply(200, DATA), certificates=certificates, asks=authority) as found:
        bench.trust(authority, found.authority)
        with pytest.raises(errors.EngineUnavailable):
            await fetched(bench, found)
        folder = bench.home / ".docker" / "certs.d" / found.authority
        (folder / "client.cert").write_bytes((own / "cert.pem").read_bytes())
        (folder / "client.key").write_bytes((own / "key.pem").read_bytes())
        assert await fetched(bench, found) == DATA
        (folder / "client.key").write_text("no key")
        with pytest.raises(errors.InvalidArgument, match=r"client\.cert cannot be used"):
            await fetched(bench, found)


# --------------------------------------------------------------------------------------------------- mirrors, proxies


async def test_a_mirror_is_asked_first_and_the_registry_when_it_lacks_the_image(
    bench: Bench, plain_registry: registry.Registry
) -> None:
    """SPEC B136."""
    manifest = Reply(200, manifest_of(), {"content-type": descriptors.OCI_MANIFEST})
    with (
        rogue.running(lambda request: rogue.problem(404, "MANIFEST_UNKNOWN")) as mirror,
        rogue.running(lambda request: manifest) as origin,
    ):
        bench.settings["mirrors"] = (f"{origin.authority}={mirror.authority}",)
        async with bench.work() as work:
            wanted = reference.parse(f"{origin.authority}/a/b:1")
            repository, found = await work.find(wanted, Platform("linux", "amd64"))
    assert (str(repository), found.data) == (f"{origin.authority}/a/b", manifest_of())
    assert mirror.paths() == origin.paths() == ["/v2/a/b/manifests/1"]


@pytest.mark.parametrize("text", ["x", "=", "a.example=", "a.example=http://b.example", "a.example=b.example/path"])
async def test_a_mirror_that_is_none_is_an_error(bench: Bench, text: str) -> None:
    bench.settings["mirrors"] = (text,)
    with pytest.raises(errors.InvalidArgument, match="no mirror"):
        async with bench.work():
            pass


async def test_the_proxy_of_the_environment_is_asked_unless_the_host_is_excepted(bench: Bench) -> None:
    """SPEC B136."""
    with rogue.running(lambda request: Reply(502)) as proxy:
        bench.environ |= {"HTTPS_PROXY": f"http://{proxy.authority}", "NO_PROXY": "127.0.0.1"}
        async with bench.repository("registry.example/a/b") as repository:
            with pytest.raises(errors.EngineUnavailable):
                await repository.manifests.get("1")
    assert {one.method for one in proxy.asked} <= {"CONNECT"}
    bench.environ["HTTPS_PROXY"] = "nonsense://\x00"
    async with bench.repository("registry.example/a/b") as repository:
        with pytest.raises(errors.InvalidArgument, match="proxy"):
            await repository.manifests.get("1")
