"""Where are engines looked for, in which order, and to which addresses is nothing ever sent? (SPEC B77, SPEC B78)"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import socket
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import endpoints
from codomyrmex_containerization.models.engine import Endpoint, EngineKind, Tls
from codomyrmex_containerization.models.settings import EndpointSettings

UID = 4321


class Place:
    """A system with a home in it, and nobody's engines but those that a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root / "r"
        self.home = root / "h"
        self.root.mkdir()
        self.home.mkdir()

    def found(self, kind: EngineKind, **environ: str) -> list[Endpoint]:
        given = {"HOME": str(self.home), **environ}
        return endpoints.candidates(kind, given, uid=UID, root=self.root)

    def only(self, kind: EngineKind, **environ: str) -> Endpoint:
        (found,) = self.found(kind, **environ)
        return found

    def write(self, path: Path, text: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    def listen(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(socket.socket(socket.AF_UNIX)) as listening:
            listening.bind(str(path))
        return path

    def context(self, name: str, docker: object, *, tls: tuple[str, ...] = ()) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        folder = self.home / ".docker" / "contexts"
        self.write(folder / "meta" / digest / "meta.json", {"Name": name, "Endpoints": {"docker": docker}})
        for file in tls:
            self.write(folder / "tls" / digest / "docker" / file, "")
        return folder / "tls" / digest / "docker"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ------------------------------------------------------------------------------------------------------------ docker


def test_docker_host_is_the_only_candidate_whatever_else_there_is(place: Place) -> None:
    place.listen(place.root / "var/run/docker.sock")
    place.context("mine", {"Host": "unix:///mine.sock"})
    found = place.only("docker", DOCKER_HOST="unix:///x.sock", DOCKER_CONTEXT="mine")
    assert (found.url, found.source, found.kind, found.tls) == ("unix:///x.sock", "DOCKER_HOST", "docker", None)


@pytest.mark.parametrize("how", ["variable", "file"])
def test_dockers_context_comes_next_and_alone(place: Place, how: str) -> None:
    place.listen(place.root / "var/run/docker.sock")
    place.context("mine", {"Host": "unix:///mine.sock"})
    place.write(place.home / ".docker/config.json", {"currentContext": "mine" if how == "file" else ""})
    found = place.only("docker", **({"DOCKER_CONTEXT": "mine"} if how == "variable" else {}))
    assert found.url == "unix:///mine.sock"
    assert "'mine'" in found.source


def test_context_lies_in_the_folder_that_docker_config_names(place: Place, tmp_path: Path) -> None:
    place.context("mine", {"Host": "unix:///mine.sock"})
    (place.home / ".docker").rename(tmp_path / "elsewhere")
    found = place.only("docker", DOCKER_CONTEXT="mine", DOCKER_CONFIG=str(tmp_path / "elsewhere"))
    assert found.url == "unix:///mine.sock"


@pytest.mark.parametrize("docker", [None, {}, [], {"Host": 3}, {"Host": ""}])
def test_context_without_an_endpoint_is_an_error_that_names_it(place: Place, docker: object) -> None:
    place.listen(place.root / "var/run/docker.sock")
    place.context("mine", docker)
    with pytest.raises(errors.EngineUnavailable, match="'mine'") as caught:
        place.found("docker", DOCKER_CONTEXT="mine")
    assert "docker context ls" in caught.value.hint


def test_context_that_is_not_there_is_an_error_and_no_other_engine_is_taken(place: Place) -> None:
    place.listen(place.root / "var/run/docker.sock")
    place.write(place.home / ".docker/config.json", {"currentContext": "gone"})
    with pytest.raises(errors.EngineUnavailable, match="'gone'"):
        place.found("docker")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"currentContext": 3}', '{"currentContext": "default"}', "[" * 99_999]
)
def test_broken_or_plain_file_of_docker_is_no_context(place: Place, text: str) -> None:
    place.write(place.home / ".docker/config.json", text)
    assert place.found("docker") == []


def test_default_context_asks_for_the_usual_sockets_whatever_the_file_says(place: Place) -> None:
    usual = place.listen(place.root / "var/run/docker.sock")
    place.write(place.home / ".docker/config.json", {"currentContext": "other"})
    assert place.only("docker", DOCKER_CONTEXT="default").url == f"unix://{usual}"


def test_context_brings_its_tls_files(place: Place) -> None:
    folder = place.context("far", {"Host": "tcp://far.example:2376"}, tls=("ca.pem", "cert.pem", "key.pem"))
    found = place.only("docker", DOCKER_CONTEXT="far")
    assert found.tls == Tls(str(folder / "ca.pem"), str(folder / "cert.pem"), str(folder / "key.pem"))


def test_context_that_skips_verification_says_so(place: Place) -> None:
    place.context("far", {"Host": "tcp://far.example:2376", "SkipTLSVerify": True})
    assert place.only("docker", DOCKER_CONTEXT="far").tls == Tls(verify=False)


@pytest.mark.parametrize(
    ("there", "missing"),
    [((), "ca.pem"), (("ca.pem", "cert.pem"), "key.pem"), (("ca.pem", "key.pem"), "cert.pem"), (("other",), "ca.pem")],
)
def test_context_whose_tls_files_are_missing_is_an_error_that_names_file_and_context(
    place: Place, there: tuple[str, ...], missing: str
) -> None:
    folder = place.context("far", {"Host": "tcp://far.example:2376"}, tls=there)
    with pytest.raises(errors.EngineUnavailable) as caught:
        place.found("docker", DOCKER_CONTEXT="far")
    assert "'far'" in caught.value.message
    assert str(folder / missing) in caught.value.message
    assert "docker context update" in caught.value.hint


def test_context_on_loopback_needs_no_tls(place: Place) -> None:
    place.context("near", {"Host": "tcp://127.0.0.1:2375"})
    assert place.only("docker", DOCKER_CONTEXT="near").tls is None


def test_variables_of_dockers_tls_go_with_docker_host(place: Place, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    for file in ("ca.pem", "cert.pem", "key.pem"):
        place.write(certs / file, "")
    host = "tcp://far.example:2376"
    full = Tls(str(certs / "ca.pem"), str(certs / "cert.pem"), str(certs / "key.pem"))
    found = place.only("docker", DOCKER_HOST=host, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(certs))
    assert (found.url, found.tls) == (host, full)
    assert place.only("docker", DOCKER_HOST=host, DOCKER_TLS_VERIFY="1", DOCKER_CONFIG=str(certs)).tls == full
    unverified = place.only("docker", DOCKER_HOST=host, DOCKER_TLS="1", DOCKER_CERT_PATH=str(certs)).tls
    assert unverified == Tls(None, full.cert, full.key, verify=False)
    assert place.only("docker", DOCKER_HOST="unix:///x", DOCKER_TLS_VERIFY="1").tls is None
    with pytest.raises(errors.Refused, match="without TLS"):
        place.found("docker", DOCKER_HOST=host, DOCKER_CERT_PATH=str(certs))


@pytest.mark.parametrize("missing", ["ca.pem", "cert.pem", "key.pem"])
def test_tls_file_that_docker_host_lacks_is_named(place: Place, tmp_path: Path, missing: str) -> None:
    for file in {"ca.pem", "cert.pem", "key.pem"} - {missing}:
        place.write(tmp_path / "certs" / file, "")
    with pytest.raises(errors.EngineUnavailable, match=missing):
        place.found(
            "docker",
            DOCKER_HOST="tcp://far.example:2376",
            DOCKER_TLS_VERIFY="1",
            DOCKER_CERT_PATH=str(tmp_path / "certs"),
        )


def test_dockers_usual_sockets_are_all_named_in_their_order(place: Place, tmp_path: Path) -> None:
    runtime = tmp_path / "x"
    expected = [
        place.listen(place.root / "var/run/docker.sock"),
        place.listen(runtime / "docker.sock"),
        place.listen(place.root / f"run/user/{UID}/docker.sock"),
        place.listen(place.home / ".docker/run/docker.sock"),
        place.listen(place.home / ".docker/desktop/docker.sock"),
        place.listen(place.home / ".colima/default/docker.sock"),
        place.listen(place.home / ".config/colima/default/docker.sock"),
        place.listen(place.home / ".rd/docker.sock"),
        place.listen(place.home / ".orbstack/run/docker.sock"),
        place.listen(place.home / ".lima/a/sock/docker.sock"),
        place.listen(place.home / ".lima/b/sock/docker.sock"),
    ]
    found = place.found("docker", XDG_RUNTIME_DIR=str(runtime))
    assert [one.url for one in found] == [f"unix://{path}" for path in expected]
    assert all(one.source for one in found)
    assert {"Colima", "Rancher Desktop", "OrbStack", "Lima", "Docker Desktop"} <= {one.source for one in found}


def test_one_socket_under_two_names_is_one_candidate(place: Place) -> None:
    real = place.listen(place.home / ".docker/run/docker.sock")
    link = place.root / "var/run/docker.sock"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    assert place.only("docker").url == f"unix://{link}"


def test_client_with_an_empty_environment_finds_sockets_all_the_same(place: Place) -> None:
    docker = place.listen(place.root / f"run/user/{os.getuid()}/docker.sock")
    podman = place.listen(place.root / f"run/user/{os.getuid()}/podman/podman.sock")
    kinds: dict[EngineKind, Path] = {"docker": docker, "podman": podman}
    for kind, path in kinds.items():
        found = endpoints.candidates(kind, {}, root=place.root)
        assert f"unix://{path}" in [one.url for one in found]


def test_home_without_its_variable_is_the_accounts() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir
    setting = EndpointSettings(url="ssh://h/x.sock", identity="~/no such key")
    with pytest.raises(errors.EngineUnavailable, match=f"{home}/no such key"):
        endpoints.named("lab", setting, home=Path(home))


def test_user_without_an_account_and_home_has_the_systems_sockets(place: Place) -> None:
    path = place.listen(place.root / "var/run/docker.sock")
    (found,) = endpoints.candidates("docker", {"HOME": "relative"}, uid=2**31 - 7, root=place.root)
    assert found.url == f"unix://{path}"


# ------------------------------------------------------------------------------------------------------------ podman


def test_container_host_is_podmans_only_candidate(place: Place) -> None:
    key = place.write(place.home / "key", "")
    place.listen(place.root / "run/podman/podman.sock")
    found = place.only("podman", CONTAINER_HOST="ssh://root@far.example", CONTAINER_SSHKEY="~/key")
    assert (found.engine, found.kind, found.source) == ("podman", "podman", "CONTAINER_HOST")
    assert (found.url, found.identity) == ("ssh://root@far.example", str(key))


CONF = """
[engine]
active_service = "far"
[engine.service_destinations.far]
uri = "ssh://me@far.example:22/run/user/1000/podman/podman.sock"
[engine.service_destinations.near]
uri = "unix:///near.sock"
"""
FILES = {
    "system": "etc/containers/containers.conf",
    "vendor": "usr/share/containers/containers.conf",
    "drop-in": "etc/containers/containers.conf.d/50-x.conf",
}


@pytest.mark.parametrize("where", FILES)
def test_podmans_active_service_is_read_from_each_of_its_files(place: Place, where: str) -> None:
    place.write(place.root / FILES[where], CONF)
    found = place.only("podman")
    assert found.url == "ssh://me@far.example:22/run/user/1000/podman/podman.sock"
    assert found.kind == "podman"
    assert "'far'" in found.source


def test_users_file_beats_the_systems_and_a_named_file_all_others(place: Place, tmp_path: Path) -> None:
    place.write(place.root / FILES["system"], CONF)
    place.write(place.home / ".config/containers/containers.conf", "[engine]\nactive_service = 'near'")
    assert place.only("podman").url == "unix:///near.sock"
    own = place.write(tmp_path / "own.conf", "[engine.service_destinations.x]\nuri = 'unix:///x.sock'")
    assert place.found("podman", CONTAINERS_CONF=str(own)) == []
    assert place.only("podman", CONTAINERS_CONF=str(own), CONTAINER_CONNECTION="x").url == "unix:///x.sock"
    over = place.write(tmp_path / "over.conf", "[engine]\nactive_service = 'x'")
    found = place.only("podman", CONTAINERS_CONF=str(own), CONTAINERS_CONF_OVERRIDE=str(over))
    assert found.url == "unix:///x.sock"


def test_podmans_connections_file_beats_its_settings(place: Place, tmp_path: Path) -> None:
    key = place.write(place.home / "machine", "")
    connection = {
        "Default": "machine",
        "Connections": {
            "machine": {
                "URI": "ssh://core@127.0.0.1:5000/run/user/1/podman/podman.sock",
                "Identity": "~/machine",
                "IsMachine": True,
            }
        },
    }
    place.write(place.root / FILES["system"], CONF)
    file = place.write(place.home / ".config/containers/podman-connections.json", {"Connection": connection})
    found = place.only("podman")
    assert (found.url, found.identity) == ("ssh://core@127.0.0.1:5000/run/user/1/podman/podman.sock", str(key))
    assert found.insecure, "the host key of a machine on this host is new whenever it is made again"
    file.rename(tmp_path / "c.json")
    assert place.only("podman", PODMAN_CONNECTIONS_CONF=str(tmp_path / "c.json")) == found
    assert place.only("podman", CONTAINER_CONNECTION="near").url == "unix:///near.sock"


def test_machine_on_another_host_is_not_trusted_blindly(place: Place) -> None:
    text = (
        "[engine]\nactive_service='m'\n[engine.service_destinations.m]\nuri='ssh://root@far.example'\nis_machine=true"
    )
    place.write(place.root / FILES["system"], text)
    assert not place.only("podman").insecure


@pytest.mark.parametrize(
    "more", ["", "[engine.service_destinations.gone]\nidentity = 'x'", "[engine.service_destinations]\ngone = 3"]
)
def test_connection_that_is_not_there_is_an_error_that_names_it(place: Place, more: str) -> None:
    place.listen(place.root / "run/podman/podman.sock")
    place.write(place.root / FILES["system"], f"[engine]\nactive_service = 'gone'\n{more}")
    with pytest.raises(errors.EngineUnavailable, match="'gone'") as caught:
        place.found("podman")
    assert "podman system connection list" in caught.value.hint


@pytest.mark.parametrize("text", ["[engine", "a = " + "[" * 9999, "\x00"])
def test_broken_file_of_podman_is_an_error_that_names_it(place: Place, text: str) -> None:
    file = place.write(place.root / FILES["system"], text)
    place.listen(place.root / "run/podman/podman.sock")
    with pytest.raises(errors.EngineUnavailable, match="cannot be read") as caught:
        place.found("podman")
    assert str(file) in caught.value.message


def test_pipe_in_place_of_a_file_of_podman_is_not_waited_for(place: Place) -> None:
    path = place.root / FILES["system"]
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(errors.EngineUnavailable, match="cannot be read"):
        place.found("podman")


def test_podmans_usual_sockets_are_all_named_in_their_order(place: Place, tmp_path: Path) -> None:
    expected = [
        place.listen(tmp_path / "x/podman/podman.sock"),
        place.listen(place.root / f"run/user/{UID}/podman/podman.sock"),
        place.listen(place.root / "run/podman/podman.sock"),
    ]
    found = place.found("podman", XDG_RUNTIME_DIR=str(tmp_path / "x"))
    assert [one.url for one in found] == [f"unix://{path}" for path in expected]
    assert {(one.engine, one.kind) for one in found} == {("podman", "podman")}


def test_nothing_on_a_system_is_no_candidate(place: Place) -> None:
    assert place.found("docker") == []
    assert place.found("podman") == []
    assert place.found("memory") == []


# ----------------------------------------------------------------------------------------------------------- judging


def judged(url: str, **more: object) -> Endpoint:
    return endpoints.judge(Endpoint("docker", url, "DOCKER_HOST", **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "tcp://192.0.2.1:2375",
        "tcp://192.0.2.1",
        "TCP://192.0.2.1:2375",
        "http://example.invalid:2375",
        "tcp://127.0.0.1.example.invalid:1",
        "tcp://localhost.example.invalid:1",
        "tcp://127.1:2375",
        "tcp://0.0.0.0:2375",
        "tcp://[::]:2375",
        "tcp://2130706433:1",
    ],
)
def test_address_beyond_this_host_without_tls_is_refused(url: str) -> None:
    with pytest.raises(errors.Refused, match="not this host") as caught:
        judged(url)
    assert "TLS" in caught.value.hint


def test_address_beyond_this_host_is_allowed_when_its_setting_says_so() -> None:
    setting = EndpointSettings(url="tcp://192.0.2.1", insecure=True, kind="podman", host_paths=True)
    found = endpoints.named("lab", setting)
    assert (found.engine, found.kind, found.url) == ("lab", "podman", "tcp://192.0.2.1:2375")
    assert found.host_paths
    assert "endpoints.lab" in found.source


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("tcp://127.0.0.1:2375", "tcp://127.0.0.1:2375"),
        ("tcp://localhost", "tcp://localhost:2375"),
        ("tcp://[::1]:2375", "tcp://[::1]:2375"),
        ("http://127.0.0.2:1/", "http://127.0.0.2:1"),
        ("unix:///a b/c.sock", "unix:///a b/c.sock"),
        ("unix:/c.sock", "unix:///c.sock"),
    ],
)
def test_address_is_made_whole(url: str, whole: str) -> None:
    assert judged(url).url == whole
    assert judged(whole).url == whole


def test_tls_changes_the_usual_port_and_https_is_tls() -> None:
    assert judged("tcp://192.0.2.1", tls=Tls()).url == "tcp://192.0.2.1:2376"
    assert judged("https://192.0.2.1") == Endpoint("docker", "https://192.0.2.1:443", "DOCKER_HOST", tls=Tls())


def test_certificate_without_its_key_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    with pytest.raises(errors.EngineUnavailable, match="without its key"):
        endpoints.named("lab", EndpointSettings(url="tcp://192.0.2.1", cert=str(tmp_path / "c")))


def test_files_of_a_setting_that_are_missing_are_named_with_it(tmp_path: Path) -> None:
    with pytest.raises(errors.EngineUnavailable, match=r"/no/ca\.pem") as caught:
        endpoints.named("lab", EndpointSettings(url="tcp://192.0.2.1", ca="/no/ca.pem"))
    assert "endpoints.lab" in caught.value.message
    (tmp_path / "ca.pem").touch()
    found = endpoints.named("lab", EndpointSettings(url="tcp://192.0.2.1", ca="~/ca.pem"), home=tmp_path)
    assert found.tls == Tls(ca=str(tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    "url", ["npipe:////./pipe/x", "x", "fd://", "", "/var/run/docker.sock", "vsock://1:2", "file:///x"]
)
def test_other_schemes_are_unsupported(url: str) -> None:
    with pytest.raises(errors.Unsupported, match="DOCKER_HOST"):
        judged(url)


@pytest.mark.parametrize(
    "url",
    [
        "tcp://",
        "tcp://:2375",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:1/?a=b",
        "tcp://[::1",
        "tcp://127.0.0.1:1\n",
        "tcp://127.0.0.1 :1",
        "tcp://" + "a" * 2000,
        "unix://",
        "unix://relative.sock",
        "unix:///a?b",
        "unix:///a\0b",
    ],
)
def test_address_that_is_none_is_an_error_with_an_example(url: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        judged(url)
    assert "://" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "tcp://u:s3cret@127.0.0.1:1",
        "tcp://s3cret@127.0.0.1:1",
        "https://u:s3cret@192.0.2.1",
        "ssh://u:s3cret@host/x.sock",
        "ssh://:s3cret@host/x.sock",
        "npipe://u:s3cret@x",
        "tcp://u:s3cret@127.0.0.1:x",
        "tcp://u:s3cret@[::1",
        "tcp://u:s3 cret@192.0.2.1",
    ],
)
def test_password_in_an_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises((errors.Refused, errors.InvalidArgument)) as caught:
        judged(url)
    assert "cret" not in caught.value.text()
    assert "cret" not in str(caught.value.details)


@given(st.text())
def test_any_text_for_an_address_is_judged_by_our_errors_alone(text: str) -> None:
    for url in (text, f"tcp://{text}", f"ssh://{text}", f"unix://{text}"):
        try:
            found = judged(url)
        except errors.ContainerizationError:
            continue
        assert found.socket_path or found.scheme == "ssh" or found.is_loopback or found.tls


# --------------------------------------------------------------------------------------------------------------- ssh


@pytest.mark.parametrize(
    ("url", "kind", "target"),
    [
        ("ssh://me@Host:2222/run/x.sock", "docker", endpoints.SshTarget("Host", "me", 2222, "/run/x.sock")),
        ("ssh://host", "docker", endpoints.SshTarget("host", None, None, "/var/run/docker.sock")),
        ("ssh://root@host/", "podman", endpoints.SshTarget("host", "root", None, "/run/podman/podman.sock")),
        ("ssh://[2001:db8::1]:22/x", "podman", endpoints.SshTarget("2001:db8::1", None, 22, "/x")),
    ],
)
def test_ssh_address_is_taken_apart(url: str, kind: EngineKind, target: endpoints.SshTarget) -> None:
    endpoint = endpoints.judge(Endpoint("x", url, "the setting", kind=kind))
    assert endpoints.ssh_target(endpoint) == target


def test_rootless_podman_over_ssh_needs_the_sockets_path() -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        endpoints.judge(Endpoint("podman", "ssh://me@host", "CONTAINER_HOST", kind="podman"))
    assert "ssh://me@host/run/user/" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=touch+x/",
        "ssh://-l@host/x",
        "ssh://me@-host/x",
        "ssh://$(id)@host/x",
        "ssh://me@`id`/x",
        "ssh://me@ho%h/x",
        "ssh://",
        "ssh:///x",
        "ssh://@host/x",
        "ssh://a@b@host/x",
    ],
)
def test_host_or_user_that_ssh_could_take_for_something_else_is_refused(url: str) -> None:
    with pytest.raises(errors.Refused):
        judged(url)


@pytest.mark.parametrize("path", ["/a:b", "/a%h", "/${HOME}", "/a\\b", "/a?b", "/a#b", "/a:127.0.0.1:22"])
def test_remote_path_that_would_change_the_forwarding_is_an_error(path: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        judged(f"ssh://me@host{path}")


# ----------------------------------------------------------------------------------------------------------- sockets


def test_socket_that_is_none_is_an_error_that_says_what_it_is(tmp_path: Path) -> None:
    file, folder, loop, dangling = (tmp_path / name for name in ("file", "folder", "loop", "dangling"))
    file.touch()
    folder.mkdir()
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nowhere")
    below, missing, long = file / "x.sock", tmp_path / "missing", tmp_path / ("x" * 108)
    for path, words in (
        (file, "is a file and no socket"),
        (folder, "is a folder and no socket"),
        (loop, "in a circle"),
        (dangling, "is a link to nothing"),
        (below, "is not there"),
        (missing, "is not there"),
        (long, "too long"),
    ):
        with pytest.raises(errors.EngineUnavailable, match=words) as caught:
            endpoints.require_socket(Endpoint("docker", f"unix://{path}", "DOCKER_HOST"))
        assert str(path) in caught.value.message
        assert "DOCKER_HOST" in caught.value.message
        assert caught.value.hint


def test_socket_and_what_is_no_socket_at_all_pass(place: Place) -> None:
    endpoints.require_socket(Endpoint("docker", f"unix://{place.listen(place.root / 's')}", "x"))
    endpoints.require_socket(Endpoint("docker", "tcp://127.0.0.1:1", "x"))
