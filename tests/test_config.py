"""Which settings hold, and where does each come from?"""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization import config, errors
from codomyrmex_containerization.models.settings import Settings

PREFIX = config.ENVIRONMENT_PREFIX


class Place:
    """A home and a working folder of their own, and the files in them."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.work = root / "work"
        self.work.mkdir(parents=True)
        self.user_file = self.home / ".config" / config.APPLICATION / config.USER_FILE
        self.user_file.parent.mkdir(parents=True)
        self.working_file = self.work / config.WORKING_FOLDER_FILE

    def write_user_file(self, text: str | bytes) -> None:
        self.user_file.write_bytes(text.encode() if isinstance(text, str) else text)
        self.user_file.chmod(0o600)

    def load(
        self,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
        config_file: Path | None = None,
    ) -> config.LoadedSettings:
        return config.load(
            config_file=config_file,
            environ={"HOME": str(self.home), **{f"{PREFIX}{name}": text for name, text in (environ or {}).items()}},
            flags=flags,
            working_folder=self.work,
        )

    def tightened(self, text: str | bytes, flags: Mapping[str, object] | None = None) -> config.LoadedSettings:
        self.working_file.write_bytes(text.encode() if isinstance(text, str) else text)
        return self.load(flags=flags)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def value(loaded: config.LoadedSettings, key: str) -> object:
    return {row.key: row.value for row in config.rows(loaded)}[key]


# ---------------------------------------------------------------------------------------------------------- strength


def test_settings_without_any_source_are_the_defaults(place: Place) -> None:
    loaded = place.load()
    assert loaded.settings == Settings()
    assert set(loaded.sources.values()) == {config.Source("default")}
    assert loaded.warnings == ()


def test_every_leaf_of_the_model_has_a_source(place: Place) -> None:
    def leaves(table: Mapping[str, object], prefix: str = "") -> set[str]:
        found = set[str]()
        for name, inner in table.items():
            found |= leaves(inner, f"{prefix}{name}.") if isinstance(inner, dict) and inner else {f"{prefix}{name}"}
        return found

    assert set(place.load().sources) == leaves(Settings().model_dump())


def test_each_source_beats_the_weaker_ones_and_is_named(place: Place) -> None:
    place.write_user_file(
        'log_level = "error"\nanswer_characters = 3000\nengine = "podman"\n[policy]\nforeign = "ask"\n'
    )
    loaded = place.load(
        {"ANSWER_CHARACTERS": "4000", "ENGINE": "docker", "POLICY__SECRET_ENV": "TOKEN"}, {"engine": "embedded"}
    )
    settings = loaded.settings
    assert (settings.log_level, settings.answer_characters, settings.engine) == ("error", 4000, "embedded")
    assert (settings.policy.foreign, settings.policy.secret_env) == ("ask", ("TOKEN",))
    file = config.Source("user file", str(place.user_file))
    assert loaded.sources["log_level"] == file
    assert loaded.sources["policy.foreign"] == file
    assert loaded.sources["answer_characters"] == config.Source("environment", f"{PREFIX}ANSWER_CHARACTERS")
    assert loaded.sources["policy.secret_env"] == config.Source("environment", f"{PREFIX}POLICY__SECRET_ENV")
    assert loaded.sources["engine"] == config.Source("flag", "--engine")
    assert loaded.sources["read_only"] == config.Source("default")


def test_a_file_given_by_flag_replaces_the_user_file_and_the_variable(place: Place, tmp_path: Path) -> None:
    place.write_user_file("read_only = true\n")
    by_flag, by_variable = tmp_path / "flag.toml", tmp_path / "variable.toml"
    by_flag.write_text("answer_characters = 1111\n")
    by_variable.write_text("answer_characters = 2222\n")
    for file in (by_flag, by_variable):
        file.chmod(0o600)
    assert place.load({"CONFIG": str(by_variable)}).settings == Settings(answer_characters=2222)
    loaded = place.load({"CONFIG": str(by_variable)}, config_file=by_flag)
    assert loaded.settings == Settings(answer_characters=1111)
    assert loaded.sources["answer_characters"].name == str(by_flag)


def test_the_variable_for_the_file_expands_the_home_folder(place: Place) -> None:
    (place.home / "mine.toml").write_text("read_only = true\n")
    (place.home / "mine.toml").chmod(0o600)
    assert place.load({"CONFIG": "~/mine.toml"}).settings.read_only


def test_a_linked_user_file_is_followed(place: Place, tmp_path: Path) -> None:
    place.write_user_file("read_only = true\n")
    place.user_file.rename(tmp_path / "dotfile.toml")
    place.user_file.symlink_to(tmp_path / "dotfile.toml")
    assert place.load().settings.read_only


def test_the_working_folder_defaults_to_that_of_the_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.working_file.write_text("read_only = true\n")
    monkeypatch.chdir(place.work)
    assert config.load(environ={"HOME": str(place.home)}).settings.read_only


def test_a_working_folder_that_is_gone_has_no_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.work)
    place.work.rmdir()
    loaded = config.load(environ={"HOME": str(place.home)})
    assert (loaded.settings, loaded.warnings) == (Settings(), ())


# ------------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("name", "text", "key", "expected"),
    [
        ("READ_ONLY", "true", "read_only", True),
        ("READ_ONLY", "1", "read_only", True),
        ("READ_ONLY", "Yes", "read_only", True),
        ("REAP_AT_START", "no", "reap_at_start", False),
        ("REAP_AT_START", "0", "reap_at_start", False),
        ("ANSWER_CHARACTERS", " 5000 ", "answer_characters", 5000),
        ("ENGINE_TIMEOUT_SECONDS", "7", "engine_timeout_seconds", 7.0),
        ("ENGINE_TIMEOUT_SECONDS", "2.5", "engine_timeout_seconds", 2.5),
        ("ENGINE", "docker", "engine", "docker"),
        ("TOOLSETS", "core, sandbox,", "toolsets", ["core", "sandbox"]),
        ("TOOLSETS", '["core"]', "toolsets", ["core"]),
        ("TOOLSETS", "[]", "toolsets", []),
        ("POLICY__ALLOWED_PATHS", "/a,/b c", "policy.allowed_paths", ["/a", "/b c"]),
        ("POLICY__ALLOWED_PATHS", '["/a,b"]', "policy.allowed_paths", ["/a,b"]),
        ("POLICY", '{"foreign": "refuse"}', "policy.foreign", "refuse"),
        ("AUDIT__MAX_BYTES", "20000", "audit.max_bytes", 20_000),
        ("LOG_LEVEL", "debug", "log_level", "debug"),
        ("LOG_LEVEL", "", "log_level", "warning"),
        ("TOOLSETS", "", "toolsets", ["default"]),
    ],
)
def test_a_variable_is_read_as_its_key_wants(place: Place, name: str, text: str, key: str, expected: object) -> None:
    loaded = place.load({name: text})
    assert value(loaded, key) == expected
    assert loaded.sources[key] == (config.Source("environment", PREFIX + name) if text else config.Source("default"))


def test_a_variable_of_one_key_beats_its_sections_variable(place: Place) -> None:
    loaded = place.load({"POLICY": '{"foreign": "ask", "allow_engine_socket": true}', "POLICY__FOREIGN": "refuse"})
    assert loaded.settings.policy.foreign == "refuse"
    assert loaded.settings.policy.allow_engine_socket
    assert loaded.sources["policy.allow_engine_socket"].name == f"{PREFIX}POLICY"


def test_the_names_of_folders_and_of_the_file_are_no_settings(place: Place, tmp_path: Path) -> None:
    names = ("STATE_DIR", "DATA_DIR", "CACHE_DIR")
    assert place.load({name: str(tmp_path) for name in names}).settings == Settings()


def test_variables_of_others_are_not_looked_at(place: Place) -> None:
    environ = {"HOME": str(place.home), "DOCKER_HOST": "x", "CODOMYRMEX_OTHER": "y"}
    assert config.load(environ=environ, working_folder=place.work).settings == Settings()


# --------------------------------------------------------------------------------------------------- named endpoints


LAB = """
[endpoints.lab]
url = "tcp://lab.example:2376"
ca = "/lab/ca.pem"
[endpoints."my.other-1"]
url = "ssh://me@lab.example/run/podman/podman.sock"
kind = "podman"
host_paths = true
"""


def test_named_endpoints_are_tables_of_the_user_file(place: Place) -> None:
    place.write_user_file(LAB)
    loaded = place.load()
    lab, other = loaded.settings.endpoints["lab"], loaded.settings.endpoints["my.other-1"]
    assert (lab.url, lab.kind, lab.ca, lab.insecure) == ("tcp://lab.example:2376", "docker", "/lab/ca.pem", False)
    assert (other.kind, other.host_paths) == ("podman", True)
    assert loaded.sources["endpoints"] == config.Source("user file", str(place.user_file))
    assert value(loaded, "endpoints") == {
        "lab": {"url": "tcp://lab.example:2376", "ca": "/lab/ca.pem"},
        "my.other-1": {
            "url": "ssh://me@lab.example/run/podman/podman.sock",
            "kind": "podman",
            "host_paths": True,
        },
    }


def test_named_endpoints_survive_a_file_in_the_working_folder(place: Place) -> None:
    place.write_user_file(LAB)
    before = place.load()
    loaded = place.tightened("read_only = true\n")
    assert loaded.settings.endpoints == before.settings.endpoints
    loaded = place.tightened("[endpoints.lab]\nurl = 'tcp://u:s3cret@evil:1'\n")
    assert loaded.settings.endpoints == before.settings.endpoints
    assert "s3cret" not in loaded.warnings[0]


def test_named_endpoints_can_be_a_json_object_in_the_environment(place: Place) -> None:
    loaded = place.load({"ENDPOINTS": '{"lab": {"url": "unix:///x.sock"}}'})
    assert loaded.settings.endpoints["lab"].url == "unix:///x.sock"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpoints = 3", "endpoints expects tables"),
        ("[endpoints]\nlab = 'tcp://u:s3cret@lab:1'", "endpoints expects tables"),
        ("[endpoints.docker]\nurl = 'unix:///x'", "'docker' cannot be the name of an endpoint"),
        ("[endpoints.embedded]\nurl = 'unix:///x'", "'embedded' cannot be the name"),
        ("[endpoints.Lab]\nurl = 'unix:///x'", "'Lab' cannot be the name"),
        (f"[endpoints.{'x' * 64}]\nurl = 'unix:///x'", "cannot be the name"),
        ("[endpoints.lab]\nkind = 'podman'", "endpoints.lab expects a key url"),
        ("[endpoints.lab]\nurl = 3", "endpoints.lab.url expects a text"),
        ("[endpoints.lab]\nurl = ['tcp://u:s3cret@lab:1']", "endpoints.lab.url expects a text"),
        ("[endpoints.lab]\nurl = 'x'\nkind = 'memory'", "endpoints.lab.kind expects one of docker, podman"),
        ("[endpoints.lab]\nurl = 'x'\ninsecure = 'yes'", "endpoints.lab.insecure expects true or false"),
        ("[endpoints.lab]\nurl = 'x'\nidentiy = 'x'", "the nearest one is endpoints.lab.identity."),
    ],
)
def test_a_wrong_endpoint_is_an_error_that_names_the_key_and_no_password(place: Place, text: str, message: str) -> None:
    place.write_user_file(text)
    with pytest.raises(errors.InvalidArgument) as caught:
        place.load()
    assert message in caught.value.message
    assert str(place.user_file) in caught.value.message
    assert caught.value.hint
    assert "s3cret" not in caught.value.text()


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("read_ony = true", "read_only"),
        ("read-only = true", "read_only"),
        ("Toolset = []", "toolsets"),
        ("allow_privileged = true", "policy.allow_privileged"),
        ("[polcy]\nforeign = 'ask'", "policy"),
        ("[policy]\nalow_privileged = true", "policy.allow_privileged"),
        ("[audit]\nmaxbytes = 1", "audit.max_bytes"),
        ("policy.foreigner.x = 1", "policy.foreign"),
    ],
)
def test_an_unknown_key_in_the_user_file_is_an_error_that_names_the_nearest(
    place: Place, text: str, nearest: str
) -> None:
    place.write_user_file(text)
    with pytest.raises(errors.InvalidArgument) as caught:
        place.load()
    assert str(place.user_file) in caught.value.message
    assert caught.value.message.endswith(f"the nearest one is {nearest}.")
    assert caught.value.details["nearest"] == nearest
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        (f"{PREFIX}READONLY", f"{PREFIX}READ_ONLY"),
        (f"{PREFIX}POLICY_FOREIGN", f"{PREFIX}POLICY__FOREIGN"),
        (f"{PREFIX}STATEDIR", f"{PREFIX}STATE_DIR"),
        (f"{PREFIX}read_only", f"{PREFIX}READ_ONLY"),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_the_nearest(place: Place, name: str, nearest: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        config.load(environ={"HOME": str(place.home), name: "s3cret"}, working_folder=place.work)
    assert caught.value.message.startswith(f"{name}: ")
    assert caught.value.message.endswith(f"the nearest one is {nearest}.")
    assert "s3cret" not in caught.value.text()


def test_an_unknown_flag_key_is_an_error_that_names_the_nearest(place: Place) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"nearest one is exclude_tools\."):
        place.load(flags={"excluded_tools": ()})


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("read_only = 'yes'", "read_only", "true or false"),
        ("read_only = 1", "read_only", "true or false"),
        ("answer_characters = 10", "answer_characters", "a whole number, at least 1000 and at most 200000"),
        ("answer_characters = 2000.0", "answer_characters", "a whole number"),
        ("engine_timeout_seconds = nan", "engine_timeout_seconds", "a number, above 0 and at most 600"),
        ("engine_timeout_seconds = inf", "engine_timeout_seconds", "a number"),
        ("confirmation = 'off'", "confirmation", "one of auto, elicit, token, never"),
        ("toolsets = 'core'", "toolsets", "a list of texts"),
        ("tools = ['a', 1]", "tools", "a list of texts"),
        ("engine = 2020-01-01", "engine", "a text"),
        ("engine.name = 'docker'", "engine", "a text"),
        ("[policy]\nallowed_paths = '/a'", "policy.allowed_paths", "a list of texts"),
        ("answer_characters = 0x1" + "0" * 9000, "answer_characters", "not a very large number"),
    ],
)
def test_a_value_of_the_wrong_form_is_an_error_that_says_what_was_expected(
    place: Place, text: str, key: str, expected: str
) -> None:
    place.write_user_file(text)
    with pytest.raises(errors.InvalidArgument) as caught:
        place.load()
    assert caught.value.message.startswith(f"{place.user_file}: {key} expects ")
    assert expected in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("READ_ONLY", "maybe"),
        ("ANSWER_CHARACTERS", "many"),
        ("ANSWER_CHARACTERS", "true"),
        ("ENGINE_TIMEOUT_SECONDS", "nan"),
        ("TOOLSETS", '["core"'),
        ("TOOLSETS", "[" * 100_000),
        ("POLICY__FOREIGN", "Ask me"),
        ("ENGINE", "\udc80"),
    ],
)
def test_a_variable_of_the_wrong_form_is_an_error_that_names_variable_and_key(
    place: Place, name: str, text: str
) -> None:
    key = name.lower().replace("__", ".")
    with pytest.raises(errors.InvalidArgument, match=f"^{PREFIX}{name}: {re.escape(key)} expects "):
        place.load({name: text})


@pytest.mark.parametrize("text", ["yes", "[]", "{"])
def test_a_variable_of_a_section_wants_an_object(place: Place, text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="policy is a section"):
        place.load({"POLICY": text})


def test_a_section_written_as_a_value_is_an_error(place: Place) -> None:
    place.write_user_file("policy = true")
    with pytest.raises(errors.InvalidArgument, match="policy is a section"):
        place.load()


def test_a_flag_of_the_wrong_form_is_an_error_that_names_the_flag(place: Place) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^--read-only: read_only expects true or false"):
        place.load(flags={"read_only": object()})


def test_flags_take_paths_and_tuples(place: Place) -> None:
    loaded = place.load(flags={"policy.allowed_paths": (Path("/a"), "/b")})
    assert loaded.settings.policy.allowed_paths == ("/a", "/b")


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"read_only = true\nengine = \n", "line 2"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"engine = 'docker'\ntoolsets = [\n", "line 3"),
        (b"engine = 'a'\n# caf\xe9\n", "line 2"),
        (b"\xff\xfe", "line 1"),
        (b"answer_characters = " + b"9" * 5000, "no valid TOML"),
        (b"a = " + b"[" * 30_000, "no valid TOML"),
    ],
)
def test_a_malformed_user_file_is_an_error_that_names_file_and_line(place: Place, content: bytes, where: str) -> None:
    place.write_user_file(content)
    with pytest.raises(errors.InvalidArgument) as caught:
        place.load()
    assert str(place.user_file) in caught.value.message
    assert where in caught.value.message


def test_a_file_that_starts_with_a_byte_order_mark_is_read(place: Place) -> None:
    place.write_user_file(b"\xef\xbb\xbfread_only = true\n")
    assert place.load().settings.read_only


def test_a_file_that_was_asked_for_and_is_missing_is_an_error(place: Place, tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(errors.InvalidArgument, match=r"none\.toml does not exist"):
        place.load(config_file=missing)
    with pytest.raises(errors.InvalidArgument, match=r"none\.toml does not exist"):
        place.load({"CONFIG": str(missing)})


def test_a_pipe_in_place_of_a_file_is_an_error_and_is_not_waited_for(place: Place) -> None:
    os.mkfifo(place.user_file, 0o600)
    with pytest.raises(errors.InvalidArgument, match="no regular file"):
        place.load()


def test_a_folder_in_place_of_a_file_is_an_error(place: Place) -> None:
    with pytest.raises(errors.InvalidArgument, match="cannot be read: is a directory"):
        place.load(config_file=place.home)


def test_a_huge_file_is_an_error(place: Place) -> None:
    place.write_user_file("#" * (config.MOST_FILE_BYTES + 1))
    with pytest.raises(errors.InvalidArgument, match="larger than"):
        place.load()


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_user_file_that_others_may_write_is_refused(place: Place, mode: int) -> None:
    place.write_user_file("read_only = true\n")
    place.user_file.chmod(mode)
    with pytest.raises(errors.Refused, match=f"may be written by others .mode {mode:04o}") as caught:
        place.load()
    assert "chmod go-w" in caught.value.hint


def test_a_user_file_of_another_user_is_refused(place: Place) -> None:
    place.write_user_file("read_only = true\n")
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(place.user_file, 12345, -1)
    with pytest.raises(errors.Refused, match="belongs to user 12345"):
        place.load()


# -------------------------------------------------------------------------------------------- the working folder's file


TIGHTENED: list[tuple[dict[str, object], str, str, object]] = [
    ({}, "read_only = true", "read_only", True),
    ({"answer_characters": 5000}, "answer_characters = 2000", "answer_characters", 2000),
    ({}, "engine_timeout_seconds = 5", "engine_timeout_seconds", 5.0),
    ({"toolsets": ("core", "sandbox")}, "toolsets = ['core']", "toolsets", ["core"]),
    ({"toolsets": ("core", "sandbox")}, "toolsets = []", "toolsets", []),
    ({"toolsets": ("all",)}, "toolsets = ['kubernetes', 'core']", "toolsets", ["kubernetes", "core"]),
    ({"toolsets": ("all",)}, "toolsets = ['default']", "toolsets", ["default"]),
    ({}, "toolsets = ['core']", "toolsets", ["core"]),
    ({"tools": ("a", "b")}, "tools = ['b']", "tools", ["b"]),
    ({"toolsets": ("all",)}, "tools = ['b']", "tools", ["b"]),
    ({"exclude_tools": ("a",)}, "exclude_tools = ['b', 'a']", "exclude_tools", ["a", "b"]),
    ({"policy.allow_privileged": True}, "[policy]\nallow_privileged = false", "policy.allow_privileged", False),
    ({"policy.allow_engine_socket": True}, "policy.allow_engine_socket = false", "policy.allow_engine_socket", False),
    ({}, "isolation = 'strict'", "isolation", "strict"),
    ({"isolation": "minimal"}, "isolation = 'standard'", "isolation", "standard"),
    (
        {"policy.allow_minimal_isolation": True},
        "policy.allow_minimal_isolation = false",
        "policy.allow_minimal_isolation",
        False,
    ),
    ({}, "policy.foreign = 'ask'", "policy.foreign", "ask"),
    ({"policy.foreign": "ask"}, "policy.foreign = 'refuse'", "policy.foreign", "refuse"),
    ({}, "policy.publish_addresses = ['::1']", "policy.publish_addresses", ["::1"]),
    ({"policy.secret_env": ("A", "B")}, "policy.secret_env = ['B']", "policy.secret_env", ["B"]),
    ({}, "policy.allowed_frontends = []", "policy.allowed_frontends", []),
    (
        {"policy.volume_drivers": ("local", "local:nfs")},
        "policy.volume_drivers = ['local']",
        "policy.volume_drivers",
        ["local"],
    ),
    ({"policy.volume_drivers": ("local", "x")}, "policy.volume_drivers = ['x']", "policy.volume_drivers", ["x"]),
    (
        {"policy.allowed_capabilities": ("A", "B")},
        "[policy]\nallowed_capabilities = ['A']",
        "policy.allowed_capabilities",
        ["A"],
    ),
    ({}, "policy.pull_registries = ['a.example']", "policy.pull_registries", ["a.example"]),
    ({"policy.pull_registries": ("a", "b")}, "policy.pull_registries = []", "policy.pull_registries", []),
    ({"policy.push_registries": ("a", "b")}, "policy.push_registries = ['b']", "policy.push_registries", ["b"]),
]


@pytest.mark.parametrize(("before", "text", "key", "after"), TIGHTENED)
def test_the_working_folder_tightens(
    place: Place, before: Mapping[str, object], text: str, key: str, after: object
) -> None:
    loaded = place.tightened(text, before)
    assert value(loaded, key) == after
    assert loaded.sources[key] == config.Source("working folder", str(place.working_file))
    assert loaded.warnings == ()


IGNORED: list[tuple[dict[str, object], str, str]] = [
    ({"read_only": True}, "read_only = false", "read_only"),
    ({"answer_characters": 2000}, "answer_characters = 3000", "answer_characters"),
    ({}, "engine_timeout_seconds = 21", "engine_timeout_seconds"),
    ({}, "toolsets = ['all']", "toolsets"),
    ({"toolsets": ("core",)}, "toolsets = ['all', 'core']", "toolsets"),
    ({"toolsets": ("core",)}, "toolsets = ['kubernetes', 'core']", "toolsets"),
    ({}, "policy.allow_privileged = true", "policy.allow_privileged"),
    ({}, "policy.allow_engine_socket = true", "policy.allow_engine_socket"),
    ({}, "policy.allow_host_namespaces = true", "policy.allow_host_namespaces"),
    ({}, "policy.allow_engine_socket = true", "policy.allow_engine_socket"),
    ({}, "isolation = 'minimal'", "isolation"),
    ({"isolation": "strict"}, "isolation = 'standard'", "isolation"),
    ({}, "policy.allow_minimal_isolation = true", "policy.allow_minimal_isolation"),
    ({"policy.foreign": "ask"}, "policy.foreign = 'allow'", "policy.foreign"),
    ({}, "policy.secret_env = ['AWS_SECRET_ACCESS_KEY']", "policy.secret_env"),
    ({}, "policy.allowed_capabilities = ['SYS_ADMIN']", "policy.allowed_capabilities"),
    ({}, "policy.publish_addresses = ['127.0.0.1', '::1', '0.0.0.0']", "policy.publish_addresses"),
    ({}, "policy.allowed_frontends = ['docker/dockerfile', 'evil/x']", "policy.allowed_frontends"),
    ({}, "policy.volume_drivers = ['local', 'local:nfs']", "policy.volume_drivers"),
    ({}, "policy.volume_drivers = ['local', 'local:nfs']", "policy.volume_drivers"),
    ({}, "policy.allowed_paths = ['/']", "policy.allowed_paths"),
    ({"policy.allowed_paths": ("/a", "/b")}, "policy.allowed_paths = ['/a']", "policy.allowed_paths"),
    ({}, "engine = 'podman'", "engine"),
    ({}, "engines = ['docker']", "engines"),
    ({}, "podman_service = 'never'", "podman_service"),
    ({}, "[endpoints.evil]\nurl = 'tcp://192.0.2.1:2376'", "endpoints"),
    ({}, "confirmation = 'never'", "confirmation"),
    ({}, "confirmation = 'token'", "confirmation"),
    ({}, "log_level = 'debug'", "log_level"),
    ({}, "audit.enabled = false", "audit.enabled"),
    ({}, "reap_at_start = false", "reap_at_start"),
    ({}, "output_schemas = false", "output_schemas"),
    ({}, "audit.max_bytes = 10000", "audit.max_bytes"),
    ({}, "audit.files = 1", "audit.files"),
    ({}, "buildx = '/repository/evil'", "buildx"),
    ({}, "tools = ['container_remove']", "tools"),
    ({"policy.pull_registries": ("a",)}, "policy.pull_registries = ['a', '*']", "policy.pull_registries"),
    ({}, "policy.push_registries = ['evil.example']", "policy.push_registries"),
    ({}, "registries.insecure = ['evil.example']", "registries.insecure"),
    ({}, "registries.mirrors = ['docker.io=evil.example']", "registries.mirrors"),
    ({}, "registries.token_hosts = ['evil.example']", "registries.token_hosts"),
    ({}, "registries.certificates = ['/repository/certs.d']", "registries.certificates"),
]


@pytest.mark.parametrize(("before", "text", "key"), IGNORED)
def test_what_would_open_a_door_in_the_working_folder_is_ignored_with_a_warning(
    place: Place, before: Mapping[str, object], text: str, key: str
) -> None:
    without = place.load(flags=before)
    loaded = place.tightened(text, before)
    assert loaded.settings == without.settings
    assert loaded.sources == without.sources
    (warning,) = loaded.warnings
    assert str(place.working_file) in warning
    assert key in warning
    assert "ignored" in warning


def test_for_every_key_it_is_shown_what_the_working_folder_can_do_with_it(place: Place) -> None:
    tightened, ignored = {key for _, _, key, _ in TIGHTENED}, {key for _, _, key in IGNORED}
    assert tightened | ignored == set(place.load().sources)
    assert tightened - ignored == {"exclude_tools"}, "all others have a loose side too"


def test_an_entry_that_is_not_offered_is_dropped_and_the_others_narrow(place: Place) -> None:
    loaded = place.tightened("toolsets = ['core', 'kubernetes']", {"toolsets": ("core", "sandbox")})
    assert loaded.settings.toolsets == ("core",)
    (warning,) = loaded.warnings
    assert "'kubernetes' is ignored" in warning
    assert "'core'" not in warning


def test_a_toolset_of_which_default_offers_a_part_is_not_opened(place: Place) -> None:
    loaded = place.tightened("toolsets = ['kubernetes']")
    assert loaded.settings.toolsets == ()
    assert "nothing else is left" in loaded.warnings[0]


def test_a_single_tool_is_not_opened_by_the_working_folder(place: Place) -> None:
    loaded = place.tightened("tools = ['container_remove']")
    assert loaded.settings.tools == ()
    assert "'container_remove' is ignored" in loaded.warnings[0]


def test_what_the_working_folder_only_repeats_keeps_its_source(place: Place) -> None:
    loaded = place.tightened("toolsets = ['sandbox', 'core']\nread_only = false\n", {"toolsets": ("core", "sandbox")})
    assert loaded.settings == Settings(toolsets=("core", "sandbox"))
    assert loaded.sources["toolsets"].kind == "flag"
    assert loaded.sources["read_only"].kind == "default"
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense = 1\nread_only = true\n",
        b"engine_timeout_seconds = -1\nread_only = true\n",
        b"answer_characters = 0x1" + b"0" * 9000 + b"\nread_only = true\n",
        b"policy = 3\nread_only = true\n",
    ],
)
def test_a_wrong_key_in_the_working_folder_is_a_warning_and_the_rest_holds(place: Place, content: bytes) -> None:
    loaded = place.tightened(content)
    assert loaded.settings == Settings(read_only=True)
    (warning,) = loaded.warnings
    assert str(place.working_file) in warning
    assert warning.endswith("It is ignored.")


@pytest.mark.parametrize(
    "content", [b"read_only = \n", b"\xff", b"a = " + b"[" * 30_000, b"#" * 70_000, b"a = " + b"9" * 5000]
)
def test_a_file_in_the_working_folder_that_cannot_be_read_stops_nothing(place: Place, content: bytes) -> None:
    loaded = place.tightened(content)
    assert loaded.settings == Settings()
    (warning,) = loaded.warnings
    assert str(place.working_file) in warning


def test_odd_things_in_place_of_the_working_folders_file_stop_nothing(place: Place, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text("read_only = true\n")

    def seen() -> str:
        loaded = place.load()
        assert loaded.settings == Settings()
        (warning,) = loaded.warnings
        assert "It is ignored" in warning
        return warning

    place.working_file.symlink_to(real)
    assert "symbolic link" in seen()
    place.working_file.unlink()
    place.working_file.symlink_to(tmp_path / "nowhere")
    assert "symbolic link" in seen()
    place.working_file.unlink()
    os.mkfifo(place.working_file)
    assert "no regular file" in seen()
    place.working_file.unlink()
    place.working_file.mkdir()
    seen()


def test_a_socket_in_place_of_the_working_folders_file_stops_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.work)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(config.WORKING_FOLDER_FILE)
        assert len(place.load().warnings) == 1


def test_a_hostile_file_does_not_flood_and_sends_no_control_characters(place: Place) -> None:
    keys = "".join(f'"k{number}\\u001b[2J\\u202e" = 1\n' for number in range(2000))
    loaded = place.tightened(keys)
    assert len(loaded.warnings) == config.MOST_WARNINGS + 1
    assert all(warning.isprintable() and len(warning) < 600 for warning in loaded.warnings)
    loaded = place.tightened(f'"{"x" * 50_000}" = "{"y" * 10_000}"\nengine = "\\u001b{"y" * 3000}"\n')
    assert all(warning.isprintable() and len(warning) < 900 for warning in loaded.warnings)


def test_the_file_that_the_user_named_is_theirs_also_in_the_working_folder(place: Place) -> None:
    place.working_file.write_text('engine = "podman"\n')
    place.working_file.chmod(0o600)
    loaded = place.load(config_file=place.working_file)
    assert loaded.settings.engine == "podman"
    assert loaded.warnings == ()


OFFERS = st.lists(st.sampled_from(["default", "all", "core", "sandbox", "kubernetes"]), unique=True).map(tuple)


@given(before=OFFERS, wanted=OFFERS)
def test_narrowing_never_offers_more(
    tmp_path_factory: pytest.TempPathFactory, before: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    tools = {
        "core": {"run", "list"}, "sandbox": {"sandbox_run", "sandbox_x"}, "kubernetes": {"deploy", "undo"},
        "default": {"run", "list", "sandbox_run", "deploy"},
    }  # fmt: skip
    tools["all"] = set[str]().union(*tools.values())

    def offered(toolsets: tuple[str, ...]) -> set[str]:
        return set[str]().union(*(tools[name] for name in toolsets))

    place = Place(tmp_path_factory.mktemp("narrow"))
    loaded = place.tightened(f"toolsets = {list(wanted)}", {"toolsets": before})
    assert offered(loaded.settings.toolsets) <= offered(before)


# ----------------------------------------------------------------------------------------------------- rows and example


def test_rows_tell_value_source_and_description_of_every_key(place: Place) -> None:
    rows = {row.key: row for row in config.rows(place.load({"READ_ONLY": "1"}))}
    assert rows["read_only"] == config.ConfigRow(
        "read_only", True, f"environment {PREFIX}READ_ONLY", "Refuse every call that changes something"
    )
    assert rows["policy.publish_addresses"].value == ["127.0.0.1", "::1"]
    assert rows["policy.allowed_paths"].value is None
    assert rows["engine"].source == "default"
    assert all(row.description for row in rows.values())


def test_the_example_parses_to_the_defaults(place: Place) -> None:
    assert Settings.model_validate(tomllib.loads(config.example())) == Settings()
    place.write_user_file(config.example())
    assert place.load().settings == Settings()


def test_the_example_holds_every_key_with_its_default(place: Place) -> None:
    place.write_user_file(re.sub(r"^#(\w+ = )", r"\1", config.example(), flags=re.MULTILINE))
    loaded = place.load()
    assert {source.kind for source in loaded.sources.values()} == {"user file"}
    defaults = {row.key: row.value for row in config.rows(Place(place.home / "other").load())}
    for row in config.rows(loaded):
        assert row.value == defaults[row.key] or (defaults[row.key] is None and row.value)


def test_the_endpoint_of_the_example_is_one(place: Place) -> None:
    table = config.example().partition("# [endpoints.lab]\n")[2]
    place.write_user_file("[endpoints.lab]\n" + re.sub("^# ", "", table, flags=re.MULTILINE))
    assert place.load().settings.endpoints["lab"].url == "tcp://lab.example:2376"


def test_the_example_describes_every_key(place: Place) -> None:
    words = " ".join(config.example().replace("\n# ", " ").split())
    assert all(row.description in words for row in config.rows(place.load()))


# ------------------------------------------------------------------------------------------------------------- folders


def test_folders_follow_the_given_environment(tmp_path: Path) -> None:
    found = config.folders({"HOME": str(tmp_path), "XDG_CACHE_HOME": "/c", "XDG_DATA_HOME": "relative"})
    if sys.platform == "linux":
        assert found == config.Folders(
            state=tmp_path / ".local/state" / config.APPLICATION,
            data=tmp_path / ".local/share" / config.APPLICATION,
            cache=Path("/c") / config.APPLICATION,
            config=tmp_path / ".config" / config.APPLICATION,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("xdg", ["", "relative", "/somewhere"])
def test_folders_of_the_process_are_those_of_platformdirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("STATE", "DATA", "CACHE"):
        monkeypatch.delenv(f"{PREFIX}{kind}_DIR", raising=False)
    for kind in ("STATE", "DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", xdg)
    own = platformdirs.PlatformDirs(config.APPLICATION, appauthor=False)
    expected = config.Folders(own.user_state_path, own.user_data_path, own.user_cache_path, own.user_config_path)
    assert config.folders() == expected


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_folders_without_a_usable_home_variable_use_the_account(home: str | None) -> None:
    account = Path(pwd.getpwuid(os.getuid()).pw_dir)
    if sys.platform != "linux":
        pytest.skip("elsewhere platformdirs decides")
    assert config.folders({} if home is None else {"HOME": home}).state.is_relative_to(account)


def test_folders_can_be_named_by_variables(tmp_path: Path) -> None:
    found = config.folders(
        {
            "HOME": str(tmp_path),
            f"{PREFIX}STATE_DIR": "/s",
            f"{PREFIX}DATA_DIR": "~/d",
            f"{PREFIX}CACHE_DIR": str(tmp_path / "c"),
        }
    )
    assert (found.state, found.data, found.cache) == (Path("/s"), tmp_path / "d", tmp_path / "c")


def test_a_folder_variable_that_is_not_absolute_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="STATE_DIR expects an absolute path"):
        config.folders({"HOME": str(tmp_path), f"{PREFIX}STATE_DIR": "state"})


def test_a_private_folder_is_made_with_all_above_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    before = os.umask(0)
    try:
        assert config.ensure_private(folder) == folder
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert config.ensure_private(folder) == folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(errors.Refused, match="may be written by others"):
        config.ensure_private(folder)


def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("link", "broken"):
        with pytest.raises(errors.Refused, match="is a symbolic link"):
            config.ensure_private(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.Refused, match="is no folder"):
        config.ensure_private(tmp_path / "file")
    with pytest.raises(errors.Refused, match="cannot be made: not a directory"):
        config.ensure_private(tmp_path / "file" / "below")


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give folders away")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)
    with pytest.raises(errors.Refused, match="belongs to another user"):
        config.ensure_private(folder)


def test_a_folder_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(errors.Refused, match="cannot be made"):
        config.ensure_private(Path("/proc/none/below"))


def test_allowed_paths_are_the_working_and_the_temporary_folder(tmp_path: Path) -> None:
    home, temporary = tmp_path / "users" / "me", tmp_path / "t"
    work = home / "project"
    for folder in (work, temporary):
        folder.mkdir(parents=True)
    assert config.default_allowed_paths(work, home, temporary) == (work, temporary)
    assert config.default_allowed_paths(temporary, home, temporary) == (temporary,)
    for shared in (Path("/"), home, home.parent):
        assert config.default_allowed_paths(shared, home, temporary) == (temporary,)


def test_allowed_paths_see_through_a_link_to_the_home_folder(tmp_path: Path) -> None:
    home, temporary = tmp_path / "me", tmp_path / "t"
    home.mkdir()
    (tmp_path / "alias").symlink_to(home)
    assert config.default_allowed_paths(tmp_path / "alias", home, temporary) == (temporary,)


# --------------------------------------------------------------------------------------------------------------- cost


def test_loading_without_files_imports_nothing_that_only_files_and_errors_need(place: Place) -> None:
    lazy = ["pydantic_settings", "platformdirs", "tomllib", "difflib"]
    code = (
        "import sys; from pathlib import Path; from codomyrmex_containerization import config;"
        "before = set(sys.modules);"
        f"config.load(environ={{'HOME': {str(place.home)!r}}}, working_folder=Path({str(place.work)!r}));"
        f"print(sorted(set(sys.modules) - before), [name for name in {lazy!r} if name in sys.modules])"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout == "[] []\n"
