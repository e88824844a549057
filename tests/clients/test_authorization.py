"""Who is let in, and where do the credentials go? Registries with passwords and with tokens, and those that lie about tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.clients import addresses, descriptors, tokens
from codomyrmex_containerization.models import reference
from tests import registry, tally, tls
from tests.clients import rogue
from tests.clients.conftest import Bench, Bytes
from tests.clients.rogue import CONFIG, Reply, Request, blob_of, manifest_of
from tests.registry import PASSWORD, USER

PACKED = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[registry.Registry]:
    """A registry with TLS that wants a password."""
    with registry.started(tmp_path_factory.mktemp("guarded"), certificates=certificates, with_password=True) as found:
        yield found


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory, authority: tls.Authority) -> Iterator[registry.TokenServer]:
    """A server that gives tokens."""
    found = registry.TokenServer(tmp_path_factory.mktemp("token-server"), authority)
    yield found
    found.close()


@pytest.fixture(scope="module")
def tokened(
    tmp_path_factory: pytest.TempPathFactory, certificates: Path, token_server: registry.TokenServer
) -> Iterator[registry.Registry]:
    """A registry with TLS that wants tokens of that server."""
    with registry.started(tmp_path_factory.mktemp("tokened"), certificates=certificates, tokens=token_server) as found:
        yield found


def log_in(bench: Bench, host: str, **entry: str) -> None:
    """Keep credentials as Docker does."""
    (bench.home / ".docker").mkdir(exist_ok=True)
    (bench.home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: entry or {"auth": PACKED}}}))


async def push(bench: Bench, name: str) -> None:
    async with bench.repository(name) as repository:
        await repository.blobs.give(blob_of(CONFIG), Bytes(CONFIG))
        await repository.manifests.put(reference.parse(name).tag or "", manifest_of(), descriptors.OCI_MANIFEST)


async def get(bench: Bench, name: str) -> bytes:
    async with bench.repository(name) as repository:
        return (await repository.manifests.get(reference.parse(name).tag or "")).data


# ------------------------------------------------------------------------------------------------------------ password


async def test_a_password_opens_and_its_lack_or_a_wrong_one_says_what_to_do(
    bench: Bench, guarded: registry.Registry, authority: tls.Authority
) -> None:
    """SPEC B137."""
    bench.trust(authority, guarded.authority)
    name = f"{guarded.authority}/secret/one:1"
    with pytest.raises(errors.Unauthorized) as none:
        await get(bench, name)
    assert f"no credentials for {guarded.authority} are known: run `cxc login {guarded.authority}`" in none.value.hint
    log_in(bench, guarded.authority, auth=base64.b64encode(f"{USER}:wrong-password-99".encode()).decode())
    with pytest.raises(errors.Unauthorized) as wrong:
        await get(bench, name)
    assert "known credentials do not allow it" in wrong.value.hint
    log_in(bench, guarded.authority)
    await push(bench, name)
    assert await get(bench, name) == manifest_of()
    shown = repr((none.value, wrong.value, wrong.value.text(), wrong.value.details))
    assert "wrong-password-99" not in shown
    assert {PASSWORD, PACKED} <= set(bench.learned)


# -------------------------------------------------------------------------------------------------------------- tokens


async def test_tokens_open_with_the_right_that_is_needed(
    bench: Bench, tokened: registry.Registry, token_server: registry.TokenServer, authority: tls.Authority
) -> None:
    """SPEC B137."""
    bench.trust(authority, tokened.authority, token_server.authority)
    name = f"{tokened.authority}/team/app:1"
    with pytest.raises(errors.Unauthorized):  # anonymous may only read
        await push(bench, name)
    log_in(bench, tokened.authority)
    token_server.asked.clear()
    await push(bench, name)
    scopes = [query["scope"] for _, query, _ in token_server.asked]
    assert scopes == [["repository:team/app:pull"], ["repository:team/app:pull,push"]]
    assert {header for _, _, header in token_server.asked} == {f"Basic {PACKED}"}
    (bench.home / ".docker" / "config.json").unlink()
    token_server.asked.clear()
    assert await get(bench, name) == manifest_of()
    assert [header for _, _, header in token_server.asked] == [""]
    assert any(one.startswith("eyJ") for one in bench.learned)


async def test_an_identity_token_is_given_for_a_token_and_to_nobody_else(
    bench: Bench, tokened: registry.Registry, token_server: registry.TokenServer, authority: tls.Authority
) -> None:
    """SPEC B137."""
    bench.trust(authority, tokened.authority, token_server.authority)
    log_in(bench, tokened.authority, auth="", identitytoken=token_server.identity_token)
    token_server.asked.clear()
    await push(bench, f"{tokened.authority}/team/other:1")
    methods = {method for method, _, _ in token_server.asked}
    assert methods == {"POST"}
    assert token_server.asked[0][1]["grant_type"] == ["refresh_token"]
    assert token_server.identity_token in bench.learned


async def test_a_token_that_ran_out_in_the_middle_is_renewed(bench: Bench) -> None:
    """SPEC B137."""
    given: list[str] = []

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            given.append(f"token-number-{len(given)}")
            return Reply(200, json.dumps({"token": given[-1], "expires_in": 3600}).encode())
        # Each token serves for one request only.
        used = request.headers.get("authorization", "")
        if not given or used != f"Bearer {given[-1]}" or used in spent:
            realm = f"http://{found.authority}/token"
            return Reply(401, headers={"www-authenticate": f'Bearer realm="{realm}",service="x"'})
        spent.add(used)
        return Reply(200, manifest_of(), {"content-type": descriptors.OCI_MANIFEST})

    spent: set[str] = set()
    with rogue.running(answer) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            for _ in range(3):
                assert (await repository.manifests.get("1")).data == manifest_of()
    assert len(given) == 3


async def test_a_token_that_ran_out_in_the_middle_of_a_push_is_renewed(bench: Bench) -> None:
    """SPEC B137."""
    data, arrived, given = b"x" * 200_000, bytearray(), list[str]()
    spent = set[str]()

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            given.append(f"token-number-{len(given)}")
            return Reply(200, json.dumps({"token": given[-1]}).encode())
        used = request.headers.get("authorization", "")
        if not given or used != f"Bearer {given[-1]}" or used in spent:
            return Reply(401, headers={"www-authenticate": f'Bearer realm="http://{found.authority}/token"'})
        spent.add(used)
        if request.method == "PATCH":
            arrived.extend(request.body)
        there = {"location": "/v2/a/b/blobs/uploads/1"}
        return {"HEAD": Reply(404), "POST": Reply(202, headers=there), "PATCH": Reply(202, headers=there)}.get(
            request.method, Reply(201)
        )

    with rogue.running(answer) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            assert await repository.blobs.give(blob_of(data), Bytes(data)) == "uploaded"
    assert bytes(arrived) == data
    assert len(given) == 4


@pytest.mark.attack(tally.REGISTRIES)
async def test_what_another_host_wants_is_not_given(bench: Bench) -> None:
    """SPEC B135."""
    tally.tried()
    challenge = {"www-authenticate": 'Basic realm="give me"'}
    with rogue.running(lambda request: Reply(401, headers=challenge)) as elsewhere:
        there = Reply(307, headers={"location": f"http://{elsewhere.authority}/x"})
        with rogue.running(lambda request: there) as found:
            log_in(bench, found.authority)
            async with bench.repository(f"{found.authority}/a/b") as repository:
                with pytest.raises(errors.Unauthorized):
                    await repository.blobs.fetch(blob_of(b"x"), lambda piece: None)
    assert all("authorization" not in one.headers for one in (*elsewhere.asked, *found.asked))


async def test_refusals_without_end_end(bench: Bench) -> None:
    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return Reply(200, b'{"token":"never-good-enough"}')
        realm = f"http://{found.authority}/token"
        return Reply(401, headers={"www-authenticate": f'Bearer realm="{realm}"'})

    with rogue.running(answer) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises(errors.Unauthorized):
                await repository.manifests.get("1")
    assert len(found.paths()) <= 6


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"token":""}', b'{"token":3}', b'{"token":"a b\\r\\nx: y"}', b"x" * 1_000_000],
    ids=["empty", "list", "nothing", "no text", "number", "lines", "long"],
)
async def test_a_token_that_is_none_is_an_error(bench: Bench, body: bytes) -> None:
    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return Reply(200, body)
        return Reply(401, headers={"www-authenticate": f'Bearer realm="http://{found.authority}/token"'})

    with rogue.running(answer) as found:
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises(errors.EngineUnavailable, match="a token"):
                await repository.manifests.get("1")


# -------------------------------------------------------------------------------------- where credentials never go

Realm = Callable[[str], str]


@pytest.mark.attack(tally.REGISTRIES)
@pytest.mark.parametrize(
    ("realm", "words"),
    [
        ("http://127.0.0.1:9/token", "nowhere without TLS"),
        ("https://127.0.0.1:9/token", "another domain"),
        ("https://evil.example/token", "another domain"),
        ("https://169.254.169.254/latest", "another domain"),
        ("https://registry.example.evil.example/token", "another domain"),
        ("https://10.0.0.1/token", "another domain"),
        ("http://auth.registry.example/token", "nowhere without TLS"),
        ("https://user:secret@auth.registry.example/token", "cannot be used"),
        ("file:///etc/passwd", "cannot be used"),
        ("https://auth.registry.example\\@evil.example/", "cannot be used"),
        ("//evil.example/token", "cannot be used"),
        ("nonsense", "cannot be used"),
    ],
)
async def test_credentials_go_to_no_stranger_for_a_token(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    authority: tls.Authority,
    certificates: Path,
    realm: str,
    words: str,
) -> None:
    """SPEC B135."""
    tally.tried()
    answer = Reply(401, headers={"www-authenticate": f'Bearer realm="{realm}",service="x",scope="y"'})
    with rogue.running(lambda request: answer, certificates=certificates) as found:
        bench.trust(authority, found.authority)
        monkeypatch.setattr(f"{tokens.__name__}.registries.Site.host", "hub.registry.example")
        log_in(bench, found.authority)
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises((errors.Refused, errors.InvalidArgument), match=words):
                await repository.manifests.get("1")
    assert all("authorization" not in one.headers for one in found.asked)


@pytest.mark.attack(tally.REGISTRIES)
async def test_a_related_name_at_a_private_address_gets_no_credentials(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, authority: tls.Authority, certificates: Path
) -> None:
    """SPEC B135."""
    tally.tried()
    public, private = addresses.literal("8.8.8.8"), addresses.literal("10.1.2.3")
    assert public is not None
    assert private is not None

    async def resolve(host: str, port: int) -> tuple[addresses.Address, ...]:
        return (private,) if host == "auth.registry.example" else (public,)

    monkeypatch.setattr(addresses, "resolve", resolve)
    headers = {"www-authenticate": 'Bearer realm="https://auth.registry.example/token"'}
    with rogue.running(lambda request: Reply(401, headers=headers), certificates=certificates) as found:
        bench.trust(authority, found.authority)
        monkeypatch.setattr(f"{tokens.__name__}.registries.Site.host", "hub.registry.example")
        log_in(bench, found.authority)
        async with bench.repository(f"{found.authority}/a/b") as repository:
            with pytest.raises(errors.Refused, match="a private address"):
                await repository.manifests.get("1")


@pytest.mark.parametrize(
    ("one", "other", "are"),
    [
        ("registry-1.docker.io", "auth.docker.io", True),
        ("registry.gitlab.com", "gitlab.com", True),
        ("ghcr.io", "ghcr.io", True),
        ("GHCR.io", "ghcr.IO", True),
        ("hub.corp.co.uk", "auth.corp.co.uk", True),
        ("hub.corp.co.uk", "auth.evil.co.uk", False),
        ("a.com.au", "b.com.au", False),
        ("1.dkr.ecr.eu-west-1.amazonaws.com", "2.dkr.ecr.eu-west-1.amazonaws.com", False),
        ("mine.azurecr.io", "yours.azurecr.io", False),
        ("mine.azurecr.io", "mine.azurecr.io", True),
        ("registry", "auth", False),
        ("localhost", "localhost", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("docker.io.evil.example", "docker.io", False),
    ],
)
def test_hosts_of_one_owner_are_known_by_their_names(one: str, other: str, *, are: bool) -> None:
    assert addresses.is_related(one, other) is are


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Bearer realm="https://a/t",service="s",scope="r:x:pull,push"'], [("bearer", "https://a/t")]),
        (['basic Realm="x y"'], [("basic", "x y")]),
        (['Negotiate, Basic realm="a\\"b", Bearer realm=c'], [("negotiate", None), ("basic", 'a"b'), ("bearer", "c")]),
        ([""], []),
        (["=,=,"], []),
        (["x" * 100_000], [("x" * 8000, None)]),
        ([", , ,"], []),
    ],
)
def test_what_a_registry_wants_is_read(headers: list[str], found: list[tuple[str, str | None]]) -> None:
    assert [(one.scheme, one.parameters.get("realm")) for one in tokens.challenges(headers)] == found


def test_credentials_do_not_show_in_any_text() -> None:
    """SPEC B138."""
    from codomyrmex_containerization.clients.credentials import Credential

    one = Credential(USER, PASSWORD, "identity-secret", "registry-secret")
    for text in (repr(one), str(one), f"{one}"):
        assert all(secret not in text for secret in one.secrets())
    assert set(one.secrets()) == {PASSWORD, "identity-secret", "registry-secret", PACKED}
