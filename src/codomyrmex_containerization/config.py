"""Which settings hold, and where does each come from?

Weakest first: defaults, the user's TOML file, environment, flags. Last of all `./containerization.toml`, which may only
tighten: a repository that an agent happens to stand in must neither open a door nor stop the server, so whatever else
that file says, unknown keys and broken TOML included, is ignored with a warning. Everywhere else the same is an error.

The sources are read by hand (tomllib, the environment, one strict pydantic validation): every value needs its origin
and every unknown key an error, which pydantic-settings does not give, and its import adds 40 ms to the server's start.

Environment: `CODOMYRMEX_CONTAINERIZATION_READ_ONLY=true`, sections by `__` (`..._POLICY__FOREIGN=ask`) or as one JSON
object (`..._POLICY={"foreign": "ask"}`; the single key is the stronger). Lists are JSON arrays or separated by commas;
an entry that holds a comma needs JSON. Booleans are true/false, yes/no, on/off, 1/0. An empty variable counts as not
set; `[]` is the empty list.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
import sys
import textwrap
import types
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from codomyrmex_containerization import errors
from codomyrmex_containerization.models.settings import (
    ENDPOINT_NAME,
    RESERVED_ENGINES,
    EndpointSettings,
    Settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pydantic.fields import FieldInfo

APPLICATION = "codomyrmex-containerization"
ENVIRONMENT_PREFIX = "CODOMYRMEX_CONTAINERIZATION_"
USER_FILE = "config.toml"
WORKING_FOLDER_FILE = "containerization.toml"

CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"
STATE_VARIABLE = f"{ENVIRONMENT_PREFIX}STATE_DIR"
DATA_VARIABLE = f"{ENVIRONMENT_PREFIX}DATA_DIR"
CACHE_VARIABLE = f"{ENVIRONMENT_PREFIX}CACHE_DIR"
_RESERVED = (CONFIG_VARIABLE, STATE_VARIABLE, DATA_VARIABLE, CACHE_VARIABLE)

MOST_FILE_BYTES = 65_536
MOST_WARNINGS = 20
_EXCERPT_CHARACTERS = 60

SourceKind = Literal["default", "user file", "environment", "flag", "working folder"]
Value = bool | int | float | str | list[str] | dict[str, dict[str, object]] | None


# ----------------------------------------------------------------------------------------------------- what callers see


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from; `name` is the file, variable or flag (empty for a default)."""

    kind: SourceKind
    name: str = ""

    def text(self) -> str:
        """Say it in a few words: `default`, `environment CODOMYRMEX_...`."""
        return f"{self.kind} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings that hold, the source of each dotted key, and what was ignored in the working folder's file."""

    settings: Settings
    sources: Mapping[str, Source]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigRow:
    """One setting as `cxc config show` prints it; the face that prints it redacts, as it does all text."""

    key: str
    value: Value
    source: str
    description: str


@dataclass(frozen=True, slots=True)
class Folders:
    """The user's own folders of this application; they need not exist."""

    state: Path
    data: Path
    cache: Path
    config: Path


def load(
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    working_folder: Path | None = None,
) -> LoadedSettings:
    """Read every source and return the settings that hold.

    `config_file` (else the variable `..._CONFIG`) must exist; `config.toml` in the user's config folder may be missing.
    `flags` maps dotted keys to the values of the flags that were really given. `environ` and `working_folder` default
    to the process's own.

    Raises InvalidArgument for what cannot be read or is no setting, Refused for a user file that others may write.
    """
    environ = os.environ if environ is None else environ
    user_file = _user_file(config_file, environ)
    given: dict[str, _Given] = {}
    for layer in (_from_user_file(user_file), _from_environment(environ), _from_flags(flags or {})):
        given.update((one.key, one) for one in layer)
    settings = _build({one.key: one.value for one in given.values()})
    sources = {key: given[key].source if key in given else Source("default") for key in _leaves()}
    loaded = LoadedSettings(settings, types.MappingProxyType(sources))
    path = _working_folder_file(working_folder, user_file)
    return loaded if path is None else _tighten(loaded, path)


def rows(loaded: LoadedSettings) -> list[ConfigRow]:
    """List every setting with its value, source and description, in the order of the model."""
    return [
        ConfigRow(
            leaf.key, _plain(_value(loaded.settings, leaf.key)), loaded.sources[leaf.key].text(), leaf.description
        )
        for leaf in _leaves().values()
    ]


def example() -> str:
    """Write a TOML file of all keys, commented out, with their descriptions and defaults."""
    lines = [
        f"# Settings of {APPLICATION}: {USER_FILE} in the user's config folder, or any file given with --config.",
        f"# Every key is also an environment variable, such as {_variable('policy.foreign')}.",
        "# What stands here commented out are the defaults.",
    ]
    section = ""
    for leaf in _leaves().values():
        parent, _, name = leaf.key.rpartition(".")
        if parent != section:
            section = parent
            lines += ["", f"[{section}]", *_comment(_sections()[section])]
        lines += ["", *_comment(f"{leaf.description} ({leaf.expected}).")]
        if leaf.default is None:
            lines += ["# Not set by default; for example:", f"#{name} = {_toml(_illustration(leaf))}"]
        else:
            lines.append(f"#{name} = {_toml(leaf.default)}")
    return "\n".join([*lines, *_example_endpoint()]) + "\n"


def _example_endpoint() -> list[str]:
    """Write an endpoint as it would stand in the file; all of it is commented out, for there is none by default."""
    table = ["[endpoints.lab]"]
    for name, inner in _endpoint_leaves().items():
        shown = _ENDPOINT_ILLUSTRATIONS.get(name, inner.default)
        table += [*_comment(f"{inner.description} ({inner.expected})."), f"{name} = {_toml(shown)}"]
    return ["", *_comment("An engine elsewhere: calls with engine='lab' go there."), *(f"# {line}" for line in table)]


# -------------------------------------------------------------------------------------------------------------- folders


def folders(environ: Mapping[str, str] | None = None) -> Folders:
    """Compute the user's folders; none is created or looked at.

    The variables `..._STATE_DIR`, `..._DATA_DIR` and `..._CACHE_DIR` come first, then the platform's own rules. Raises
    InvalidArgument for a variable that is no absolute path, and when no home folder is known.
    """
    environ = os.environ if environ is None else environ
    return Folders(
        state=_overridden(STATE_VARIABLE, environ) or _standard_folder("state", environ),
        data=_overridden(DATA_VARIABLE, environ) or _standard_folder("data", environ),
        cache=_overridden(CACHE_VARIABLE, environ) or _standard_folder("cache", environ),
        config=_standard_folder("config", environ),
    )


def ensure_private(folder: Path) -> Path:
    """Make a folder, and what is missing above it, with mode 0700, and return it.

    A folder that exists keeps its mode. Raises Refused when it is a symbolic link, no folder, another user's, or
    writable by others, and when it cannot be made.
    """
    try:
        missing = [folder, *folder.parents]
        while missing and os.path.lexists(missing[-1]):
            missing.pop()
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except (OSError, ValueError) as error:
        raise errors.Refused(
            f"The folder {_path_text(folder)} cannot be made: {_reason(error)}.",
            hint=f"make it writable for you, or name others with {', '.join(_RESERVED[1:])}",
        ) from error
    problem = _folder_problem(found)
    if problem:
        raise errors.Refused(
            f"The folder {_path_text(folder)} is not private: it {problem}.",
            hint="remove it, or make it yours with chown and 'chmod go-w'; then start again",
        )
    return folder


def default_allowed_paths(working_folder: Path, home: Path, temporary: Path) -> tuple[Path, ...]:
    """Return the host folders that calls may use when `policy.allowed_paths` is not set, links resolved.

    That is the working folder and the temporary one; only the latter when the working folder is a root or holds the
    home folder, as it does when a desktop program started the server in `/` or in the home folder itself.
    """
    working, own, scratch = working_folder.resolve(), home.resolve(), temporary.resolve()
    if working == Path(working.anchor) or own.is_relative_to(working):
        return (scratch,)
    return tuple(dict.fromkeys((working, scratch)))


_XDG = {"state": ".local/state", "data": ".local/share", "cache": ".cache", "config": ".config"}


def _standard_folder(kind: Literal["state", "data", "cache", "config"], environ: Mapping[str, str]) -> Path:
    if sys.platform == "linux":
        # platformdirs reads the process's environment alone: this is its XDG rule for the environment that was given.
        base = environ.get(f"XDG_{kind.upper()}_HOME", "")
        return (Path(base) if base.startswith("/") else _home(environ) / _XDG[kind]) / APPLICATION
    else:  # noqa: RET505 - mypy takes code after the branch for unreachable
        import platformdirs

        own = platformdirs.PlatformDirs(APPLICATION, appauthor=False)
        return {
            "state": own.user_state_path,
            "data": own.user_data_path,
            "cache": own.user_cache_path,
            "config": own.user_config_path,
        }[kind]


def _home(environ: Mapping[str, str]) -> Path:
    named = environ.get("HOME", "")
    if named.startswith("/"):
        return Path(named)
    import pwd

    try:
        recorded = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        recorded = ""
    if not recorded.startswith("/"):
        raise errors.InvalidArgument(
            "No home folder is known: HOME is not set to an absolute path and the user has no account entry.",
            hint="set HOME",
            details={"variable": "HOME"},
        )
    return Path(recorded)


def _overridden(variable: str, environ: Mapping[str, str]) -> Path | None:
    text = environ.get(variable, "")
    if not text:
        return None
    path = _with_home(text, environ)
    if not path.is_absolute():
        raise errors.InvalidArgument(
            f"{variable} expects an absolute path, not {_excerpt(text)}.",
            hint="write the whole path, or unset the variable",
            details={"variable": variable},
        )
    return path


def _with_home(text: str, environ: Mapping[str, str]) -> Path:
    """Expand a leading `~/`, which no shell does in the environment that a desktop client passes."""
    return _home(environ) / text[2:] if text.startswith("~/") else Path(text)


def _folder_problem(found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_mode & 0o022:
        return f"may be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


# ---------------------------------------------------------------------------------------------- what there is to be set


_Kind = Literal["boolean", "integer", "number", "list", "text", "tables", "json"]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One key, read off the settings model."""

    key: str
    kind: _Kind
    expected: str
    description: str
    default: object


@cache
def _leaves() -> Mapping[str, _Leaf]:
    """Return every dotted key; keys of the top level come before the sections, as TOML needs them."""
    found = dict(_walk(Settings, ""))
    return dict(sorted(found.items(), key=lambda item: item[0].count(".")))


@cache
def _endpoint_leaves() -> Mapping[str, _Leaf]:
    """Return the keys that each table of `endpoints` may hold."""
    return dict(_walk(EndpointSettings, ""))


@cache
def _sections() -> Mapping[str, str]:
    """Return every section with its description."""
    return dict(_walk_sections(Settings, ""))


def _walk_sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        inner = _section(field)
        if inner is not None:
            yield f"{prefix}{name}", (inner.__doc__ or "").partition("\n")[0]
            yield from _walk_sections(inner, f"{prefix}{name}.")


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, _Leaf]]:
    for name, field in model.model_fields.items():
        inner = _section(field)
        if inner is None:
            yield f"{prefix}{name}", _leaf(f"{prefix}{name}", field)
        else:
            yield from _walk(inner, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _leaf(key: str, field: FieldInfo) -> _Leaf:
    annotation: object = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        alternatives = [one for one in get_args(annotation) if one is not type(None)]
        annotation = alternatives[0] if len(alternatives) == 1 else annotation
    default: object = field.get_default(call_default_factory=True)
    description = field.description or ""
    if get_origin(annotation) is dict:
        return _Leaf(key, "tables", f"tables such as [{key}.NAME]", description, default)
    if get_origin(annotation) is tuple:
        return _Leaf(key, "list", "a list of texts", description, default)
    if get_origin(annotation) is Literal:
        names = ", ".join(str(one) for one in get_args(annotation))
        return _Leaf(key, "text", f"one of {names}", description, default)
    kinds: dict[object, tuple[_Kind, str]] = {
        bool: ("boolean", "true or false"),
        int: ("integer", f"a whole number{_range(field)}"),
        float: ("number", f"a number{_range(field)}"),
        str: ("text", "a text"),
    }
    kind, expected = kinds.get(annotation, ("json", "a value as described"))
    return _Leaf(key, kind, expected, description, default)


def _range(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{text} {getattr(one, name)}" for one in field.metadata for name, text in words.items() if hasattr(one, name)
    ]
    return ", " + " and ".join(limits) if limits else ""


def _value(settings: Settings, key: str) -> Any:
    found: object = settings
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _plain(value: Any) -> Value:
    if isinstance(value, dict):
        return {name: one.model_dump(exclude_defaults=True) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


# ----------------------------------------------------------------------------------------------------------- validation


@dataclass(frozen=True, slots=True)
class _Given:
    """A value that some source gave and that fits its key."""

    key: str
    value: Any
    source: Source


def _checked(key: str, value: object, source: Source) -> _Given:
    leaf = _leaves().get(key)
    if leaf is None:
        raise _unknown(key, source)
    if leaf.kind == "tables":
        _check_endpoints(leaf, value, source)
    try:
        settings = _build({key: value})
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(
            f"{source.name}: {key} expects {leaf.expected}, not {_excerpt(value)}.",
            hint=f"correct it or leave it out ({leaf.description})",
            details={"key": key, "source": source.text(), "expected": leaf.expected},
        ) from error.__cause__
    return _Given(key, _value(settings, key), source)


def _check_endpoints(leaf: _Leaf, value: object, source: Source) -> None:
    """Check the tables of `endpoints` one key at a time, so that an error names the very key. Raises InvalidArgument."""
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise _misfit(leaf.key, leaf.expected, source, f"write [{leaf.key}.NAME] above its keys")
    for name, table in value.items():
        if not ENDPOINT_NAME.fullmatch(name) or name in RESERVED_ENGINES:
            raise errors.InvalidArgument(
                f"{source.name}: {_excerpt(name)} cannot be the name of an endpoint.",
                hint="use up to 63 of a-z, 0-9, '_', '.', '-', beginning with a letter or digit, "
                f"and none of {', '.join(RESERVED_ENGINES)}",
                details={"key": leaf.key, "source": source.text()},
            )
        if "url" not in table:
            raise _misfit(f"{leaf.key}.{name}", "a key url", source, 'write url = "tcp://host:2376", unix:// or ssh://')
        for inner, given in table.items():
            _check_endpoint_key(f"{leaf.key}.{name}", inner, given, source)


def _check_endpoint_key(table: str, inner: str, given: object, source: Source) -> None:
    known = _endpoint_leaves().get(inner)
    if known is None:
        nearest = f"{table}.{_most_like(inner, _endpoint_leaves())}"
        raise _no_setting(f"{table}.{inner}", nearest, source)
    try:
        EndpointSettings.model_validate_json(json.dumps({"url": "", inner: given}), strict=True)
    except (ValidationError, TypeError, ValueError, RecursionError) as error:
        # The value is not shown: an address may hold a password.
        raise _misfit(f"{table}.{inner}", known.expected, source, f"correct it ({known.description})") from error


def _misfit(key: str, expected: str, source: Source, hint: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"{source.name}: {key} expects {expected}.",
        hint=hint,
        details={"key": key, "source": source.text(), "expected": expected},
    )


def _build(values: Mapping[str, object]) -> Settings:
    """Validate dotted keys strictly: by way of JSON, since a strict tuple takes a JSON array and no Python list."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        table = nested
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    try:
        return Settings.model_validate_json(json.dumps(nested, default=_as_json), strict=True)
    except (ValidationError, TypeError, ValueError, RecursionError) as error:
        raise errors.InvalidArgument(
            "The settings do not fit together.", hint="look at 'cxc config show' and correct them"
        ) from error


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump()
    raise TypeError


def _unknown(key: str, source: Source) -> errors.InvalidArgument:
    if key in _sections():
        return errors.InvalidArgument(
            f"{source.name}: {key} is a section and expects keys of its own.",
            hint=f"write [{key}] above its keys in TOML; in the environment a JSON object, or {_variable(key)}__...",
            details={"key": key, "source": source.text()},
        )
    return _no_setting(key, _nearest(key, source), source)


def _no_setting(key: str, nearest: str, source: Source) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"{source.name}: {_excerpt(key)} is no setting; the nearest one is {nearest}.",
        hint="correct the name or remove it; 'cxc config example' lists every key",
        details={"key": key[:_EXCERPT_CHARACTERS], "source": source.text(), "nearest": nearest},
    )


def _nearest(key: str, source: Source) -> str:
    """Return the known name most like this one, in the form its source writes it."""
    if source.kind != "environment":
        return _most_like(key, (*_leaves(), *_sections()))
    reserved = {name.removeprefix(ENVIRONMENT_PREFIX).lower(): name for name in _RESERVED}
    found = _most_like(key, (*_leaves(), *_sections(), *reserved))
    return reserved.get(found) or _variable(found)


def _most_like(key: str, names: Iterable[str]) -> str:
    """Return the name most like this one, whole or without its section."""
    from difflib import SequenceMatcher

    written = key[:_EXCERPT_CHARACTERS].lower().replace("-", "_")

    def likeness(known: str) -> float:
        whole = SequenceMatcher(None, written, known).ratio()
        return max(whole, SequenceMatcher(None, written.rpartition(".")[2], known.rpartition(".")[2]).ratio() - 0.01)

    return max(names, key=likeness)


# ---------------------------------------------------------------------------------------------------------- the sources


def _user_file(
    config_file: Path | None, environ: Mapping[str, str]
) -> tuple[Path, Literal["must exist", "may be missing"]] | None:
    """Return the user's file, or None when no home folder is known."""
    if config_file is not None:
        return config_file.absolute(), "must exist"
    if environ.get(CONFIG_VARIABLE):
        return _with_home(environ[CONFIG_VARIABLE], environ).absolute(), "must exist"
    try:
        return _standard_folder("config", environ) / USER_FILE, "may be missing"
    except errors.InvalidArgument:
        return None


def _from_user_file(file: tuple[Path, str] | None) -> Iterator[_Given]:
    if file is None:
        return
    path, presence = file
    try:
        text, found = _read(path)
    except FileNotFoundError as error:
        if presence == "must exist":
            raise errors.InvalidArgument(
                f"The settings file {_path_text(path)} does not exist.",
                hint=f"correct --config or {CONFIG_VARIABLE}; 'cxc config example' prints a file to start from",
                details={"file": str(path)},
            ) from error
        return
    _refuse_shared(path, found)
    source = Source("user file", _path_text(path))
    for key, value in _flatten(_parse(text, path)):
        yield _checked(key, value, source)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    ours = sorted(name for name in environ if name.upper().startswith(ENVIRONMENT_PREFIX))
    single: list[_Given] = []
    for name in ours:
        if name in _RESERVED:
            continue
        source = Source("environment", name)
        key = name[len(ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
        # A name in another case is not read, and what is not read must not look as if it were.
        if name != name.upper() or not (key in _leaves() or key in _sections()):
            raise _unknown(key, source)
        if not environ[name]:
            continue
        if key in _leaves():
            single.append(_checked(key, _decoded(environ[name], _leaves()[key]), source))
            continue
        table = _json(environ[name])
        if not isinstance(table, dict):
            raise _unknown(key, source)
        for inner, value in _flatten(table, f"{key}."):
            yield _checked(inner, value, source)
    yield from single


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in flags.items():
        yield _checked(key, value, Source("flag", _flag(key)))


def _flag(key: str) -> str:
    return "--" + key.replace(".", "-").replace("_", "-")


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.replace(".", "__").upper()


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _decoded(text: str, leaf: _Leaf) -> object:
    """Turn a variable's text into the value it means, or leave it to fail the check as it is."""
    text = text.strip()
    match leaf.kind:
        case "boolean":
            return _BOOLEANS.get(text.lower(), text)
        case "integer" | "number":
            value = _json(text)
            return text if isinstance(value, bool) or not isinstance(value, int | float) else value
        case "list" if not text.startswith("["):
            return [entry.strip() for entry in text.split(",") if entry.strip()]
        case "list" | "tables" | "json":
            return _json(text)
        case _:
            return text


def _json(text: str) -> object:
    """Return what the text means as JSON, or the text itself when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _flatten(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield dotted keys; only known sections are descended into, so that depth is bounded by the model."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if key in _sections() and isinstance(value, dict):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


# ---------------------------------------------------------------------------------------------------------------- files


def _read(path: Path, *, follow_links: bool = True) -> tuple[bytes, os.stat_result]:
    """Read a small regular file; nothing else is waited for, so that a pipe in its place stops nobody.

    Raises FileNotFoundError, and InvalidArgument for everything else that keeps it from being read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow_links else os.O_NOFOLLOW)
    try:
        if not follow_links and path.is_symlink():
            raise _unreadable(path, "it is a symbolic link")
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _unreadable(path, "it is no regular file")
            data = file.read(MOST_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, _reason(error)) from error
    if len(data) > MOST_FILE_BYTES:
        raise _unreadable(path, f"it is larger than {MOST_FILE_BYTES} bytes")
    return data, found


def _unreadable(path: Path, reason: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"The settings file {_path_text(path)} cannot be read: {reason}.",
        hint="make it a plain file that you may read",
        details={"file": str(path)},
    )


def _parse(data: bytes, path: Path) -> dict[str, object]:
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _malformed(path, f"it is not UTF-8 (at line {line})") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if "end of document" in reason:
            last = data.count(b"\n") + 1
            reason = f"{reason}, line {last}"
        raise _malformed(path, reason) from error


def _malformed(path: Path, reason: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"The settings file {_path_text(path)} is no valid TOML: {_printable(reason)}.",
        hint="correct that line; 'cxc config example' prints a file to start from",
        details={"file": str(path)},
    )


def _refuse_shared(path: Path, found: os.stat_result) -> None:
    """Refuse a file that another user could have written: it decides what may be done in this user's name."""
    shared = stat.S_IMODE(found.st_mode) & 0o022
    if found.st_uid not in (0, os.geteuid()) or shared:
        reason = f"mode {stat.S_IMODE(found.st_mode):04o}" if shared else f"it belongs to user {found.st_uid}"
        raise errors.Refused(
            f"The settings file {_path_text(path)} may be written by others ({reason}).",
            hint=f"make it yours and run 'chmod go-w {_path_text(path)}'",
            details={"file": str(path)},
        )


# -------------------------------------------------------------------------------------------- the working folder's file

_LOOSER = "a file in the working folder may only tighten"
_NOT_OFFERED = "your own settings do not offer it"
_USERS_ALONE = "a file in the working folder cannot set it; use your own settings file, the environment or a flag"
_FOREIGN = ("allow", "ask", "refuse")
_LEVELS = ("minimal", "standard", "strict")
# Toolsets whose every tool is a default tool: within 'default' they narrow. Of the others 'default' offers a part, and
# a part has no name: such an entry is ignored.
_WITHIN_DEFAULT = frozenset({"core"})

_Tightened = tuple[Any, str]


def _working_folder_file(folder: Path | None, user_file: tuple[Path, str] | None) -> Path | None:
    """Return where the working folder's file would be; None when the user named that very file as their own."""
    try:
        path = (Path.cwd() if folder is None else folder.absolute()) / WORKING_FOLDER_FILE
    except OSError:  # the working folder was removed
        return None
    with suppress(OSError):
        if user_file is not None and path.samefile(user_file[0]):
            return None
    return path


def _tighten(loaded: LoadedSettings, path: Path) -> LoadedSettings:
    source = Source("working folder", _path_text(path))
    try:
        table = _parse(_read(path, follow_links=False)[0], path)
    except FileNotFoundError:
        return loaded
    except errors.InvalidArgument as error:
        return replace(loaded, warnings=(f"{error.message} It is ignored.",))
    values: dict[str, Any] = {key: _value(loaded.settings, key) for key in _leaves()}
    sources = dict(loaded.sources)
    warnings: list[str] = []
    for key, value in _flatten(table):
        if len(warnings) == MOST_WARNINGS:
            warnings.append(f"{source.name}: it holds more that is ignored.")
            break
        try:
            wanted = _checked(key, value, source).value
        except errors.InvalidArgument as error:
            warnings.append(f"{error.message} It is ignored.")
            continue
        tightened, ignored = _tightened(key, wanted, loaded.settings)
        if ignored:
            warnings.append(f"{source.name}: {key}: {ignored}.")
        if tightened != values[key]:
            values[key], sources[key] = tightened, source
    return LoadedSettings(_build(values), types.MappingProxyType(sources), tuple(warnings))


def _tightened(key: str, wanted: Any, before: Settings) -> _Tightened:
    """Return the value that holds from now on, and what of the wanted one is ignored and why (empty: nothing)."""
    now = _value(before, key)
    match key:
        case "read_only":
            after = now or wanted
        case "answer_characters" | "engine_timeout_seconds":
            after = min(now, wanted)
        case "policy.foreign":
            after = max(now, wanted, key=_FOREIGN.index)
        case "isolation":
            after = max(now, wanted, key=_LEVELS.index)
        case "toolsets" if "all" in wanted:
            return now, "" if "all" in now else f"'all' is ignored: {_NOT_OFFERED}"
        case "toolsets":
            within = _WITHIN_DEFAULT if "default" in now else frozenset[str]()
            return _narrowed(now, wanted, lambda entry: "all" in now or entry in now or entry in within)
        case "tools":
            return _narrowed(now, wanted, lambda entry: "all" in before.toolsets or entry in now)
        case "exclude_tools":
            return tuple(dict.fromkeys((*now, *wanted))), ""
        case (
            "policy.allowed_capabilities"
            | "policy.publish_addresses"
            | "policy.allowed_frontends"
            | "policy.volume_drivers"
            | "policy.secret_env"
        ):
            return _narrowed(now, wanted, lambda entry: entry in now)
        case "policy.pull_registries" | "policy.push_registries":
            return _narrowed(now, wanted, lambda entry: "*" in now or entry in now)
        case _ if key.startswith("policy.allow_") and _leaves()[key].kind == "boolean":
            after = now and wanted
        case _:
            # Of endpoints only the names are shown: an address may hold a password.
            shown = sorted(wanted) if isinstance(wanted, dict) else _plain(wanted)
            return now, f"{_excerpt(shown)} is ignored: {_USERS_ALONE}"
    return after, "" if after == wanted else f"{_excerpt(wanted)} is ignored: {_LOOSER}"


def _narrowed(now: tuple[str, ...], wanted: tuple[str, ...], offered: Callable[[str], bool]) -> _Tightened:
    """Intersect: keep of the wanted entries what is offered already, compared as written."""
    kept = tuple(dict.fromkeys(filter(offered, wanted)))
    beyond = ", ".join(_excerpt(entry) for entry in wanted[:MOST_WARNINGS] if not offered(entry))
    after = now if set(kept) == set(now) else kept
    if not beyond:
        return after, ""
    return after, f"{beyond} is ignored: {_NOT_OFFERED}" + ("" if kept else ", and nothing else is left")


# ----------------------------------------------------------------------------------------------------------------- text


def _excerpt(value: object) -> str:
    """Show any value on one short line; nothing that a stranger wrote into a file reaches a terminal unescaped."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = _EXCERPT_CHARACTERS
    try:
        text = short.repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a very large number"
    return text if len(text) <= 2 * _EXCERPT_CHARACTERS else f"{text[: 2 * _EXCERPT_CHARACTERS]}..."


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _path_text(path: Path) -> str:
    return _printable(str(path))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or "its name is not usable").lower()


_ILLUSTRATIONS = {
    "engine": "docker",
    "buildx": "/usr/libexec/docker/cli-plugins/docker-buildx",
    "policy.allowed_paths": ("/srv/projects",),
}


_ENDPOINT_ILLUSTRATIONS = {
    "url": "tcp://lab.example:2376",
    "ca": "~/lab/ca.pem",
    "cert": "~/lab/cert.pem",
    "key": "~/lab/key.pem",
    "identity": "~/.ssh/lab",
}


def _illustration(leaf: _Leaf) -> object:
    plain: dict[_Kind, object] = {"boolean": True, "integer": 1, "number": 1.0, "list": ("...",)}
    return _ILLUSTRATIONS.get(leaf.key, plain.get(leaf.kind, "..."))


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 100)]


def _toml(value: object) -> str:
    """Write a default; for booleans, numbers, texts and lists of texts JSON and TOML are the same."""
    return json.dumps(_plain(value), ensure_ascii=False)
