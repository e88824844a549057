"""What does the runtime of our own do when it is told create, start, exec and so on? The parent's side of it, in crun's words."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module above it takes as long to import as all of this
import os
import sys

from codomyrmex_containerization.engines.embedded import own_calls, own_cgroups, own_init, own_mounts, own_process
from codomyrmex_containerization.engines.embedded.own_containers import ANSWER, BEGIN, Container, folder_of, start_of
from codomyrmex_containerization.engines.embedded.own_init import Said, Talk
from codomyrmex_containerization.engines.embedded.own_namespaces import Namespaces, opened_of
from codomyrmex_containerization.engines.embedded.own_words import Json, Refused, parsed, read, require_known, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VERSION = "1.0"
_WITH_WORD = ("--root", "--bundle", "--pid-file", "--process", "--resources")
_ALONE = ("--force", "--version")
_KNOWN = ("ociVersion", "hostname", "root", "process", "mounts", "annotations", "linux")
_KNOWN_OF_LINUX = (
    "namespaces", "uidMappings", "gidMappings", "cgroupsPath", "resources", "seccomp", "maskedPaths", "readonlyPaths",
)  # fmt: skip
_NOT_FOUND, _NOT_RUN = 127, 126
_MOST_BYTES = 16 * 1024 * 1024
_PASSED_ON = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT)


class _Order:
    """One command line."""

    def __init__(self, words: list[str]) -> None:
        self.options: dict[str, str] = {}
        self.words: list[str] = []
        left = iter(words)
        for word in left:
            if word in _ALONE:
                self.options[word] = "yes"
            elif word in _WITH_WORD:
                self.options[word] = next(left, "")
            elif word.startswith("--"):
                raise Refused(f"this runtime does not know {word}")
            else:
                self.words.append(word)

    def option(self, name: str) -> str:
        """Return what was given. Raises Refused."""
        if not self.options.get(name):
            raise Refused(f"{name} is missing")
        return self.options[name]

    @property
    def root(self) -> str:
        return os.path.abspath(self.option("--root"))

    @property
    def name(self) -> str:
        if len(self.words) < 2:
            raise Refused("no container is named")
        return self.words[1]

    def container(self) -> Container:
        return Container.find(self.root, self.name)


def run(words: list[str]) -> int:
    """Do it; what fails is said in one line, as an exit code says it too."""
    try:
        order = _Order(words)
        if "--version" in order.options:
            sys.stdout.write(f"own runtime version {VERSION}\nspec: 1.0.2\n")
            return 0
        verb = order.words[0] if order.words else ""
        if verb not in _VERBS:
            raise Refused(f"this runtime does not know {verb or 'what to do'}")
        return _VERBS[verb](order)
    except (OSError, Refused, ValueError, KeyError, TypeError) as error:
        said = own_process.words_of(error)
        sys.stderr.write(f"{said}\n")
        return _NOT_FOUND if "not found" in said else _NOT_RUN


# --------------------------------------------------------------------------------------------------------------- made


def _configuration(bundle: str) -> Json:
    found = read(f"{bundle}/config.json")
    require_known("a configuration", found, _KNOWN)
    require_known("a root", found["root"], ("path", "readonly"))
    require_known("linux", found.get("linux") or {}, _KNOWN_OF_LINUX)
    if "run.oci.seccomp_bpf_data" in (found.get("annotations") or {}):
        raise Refused("this runtime takes no filter that was made for another one")
    own_process.check(found["process"])
    own_mounts.check(found.get("mounts") or [])
    return found


def _create(order: _Order) -> int:
    _made(order)
    return 0


def _made(order: _Order) -> Container:
    bundle = os.path.abspath(order.option("--bundle"))
    config = _configuration(bundle)
    folder = folder_of(order.root, order.name)
    os.makedirs(order.root, 0o700, exist_ok=True)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError as error:
        raise Refused(f"container {order.name} exists already") from error
    linux = config.get("linux") or {}
    groups, made = list[own_cgroups.Group](), False
    try:
        namespaces = Namespaces(linux)
        groups = _groups(config, linux, namespaces)
        for name in (BEGIN, ANSWER):
            os.mkfifo(f"{folder}/{name}", 0o600)
        seccomp = linux.get("seccomp")
        program = own_process.Program(config["process"], seccomp)
        trees = tuple(() if one.is_v2 else one.controllers for one in groups)
        birth = own_init.Birth(config, bundle, folder, namespaces, program, trees)
        container = _born(birth, lambda pid: Container(order.name, folder, pid, start_of(pid), bundle, groups, seccomp))
        made = True
    finally:
        if not made:
            own_cgroups.kill(groups)
            own_cgroups.remove(groups)
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
    if "--pid-file" in order.options:
        write(order.option("--pid-file"), str(container.pid))
    return container


def _groups(config: Json, linux: Json, namespaces: Namespaces) -> list[own_cgroups.Group]:
    resources = dict(linux.get("resources") or {})
    devices = resources.pop("devices", [])
    path = linux.get("cgroupsPath") or ""
    groups = own_cgroups.planned(path) if path else []
    powers = (config["process"].get("capabilities") or {}).get("bounding") or []
    own_cgroups.make(groups)
    own_cgroups.limit(groups, resources)
    own_cgroups.limit_devices(groups, devices, powers=powers, has_own_users=namespaces.has_users)
    return groups


def _born(birth: own_init.Birth, known: Callable[[int], Container]) -> Container:
    talk, theirs = Talk.pair()
    first = os.fork()
    if first == 0:
        talk.close()
        birth.be_first(theirs)
    theirs.close()
    container: Container | None = None
    try:
        while True:
            said, word = talk.hear()
            if said == Said.MAPS:
                birth.namespaces.map_users(first)
            elif said == Said.PID:
                os.waitpid(first, 0)
                container = known(int(word))
                container.keep()
                own_cgroups.enter(container.groups, container.pid)
            elif said == Said.READY and container is not None:
                return container
            else:
                raise Refused(word or "the container's process has ended before it was ready")
            talk.say(Said.GO)
    except BaseException:
        if container is not None and container.is_alive:
            container.signal(_signal.SIGKILL)
        raise
    finally:
        talk.close()


# ------------------------------------------------------------------------------------------------------------- begun


def _start(order: _Order) -> int:
    _begin(order.container())
    return 0


def _begin(container: Container) -> None:
    if container.status not in ("created", "paused"):
        raise Refused(f"container {container.name} is {container.status}")
    answer = os.open(f"{container.folder}/{ANSWER}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        begin = os.open(f"{container.folder}/{BEGIN}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"container {container.name} has ended") from error
    os.unlink(f"{container.folder}/{BEGIN}")
    os.write(begin, b"\0")
    os.close(begin)
    # It is closed when the program has begun, or an error was said.
    os.set_blocking(answer, True)
    words = b""
    while piece := os.read(answer, 4096):
        words += piece
    os.close(answer)
    os.unlink(f"{container.folder}/{ANSWER}")
    if words:
        raise Refused(words.decode("utf-8", "replace"))


def _run(order: _Order) -> int:
    own_calls.become_subreaper()
    container = _made(order)
    try:
        _pass_on(container.signal)
        _begin(container)
        return own_process.exit_code(os.waitpid(container.pid, 0)[1])
    finally:
        container.end()
        container.forget()


def _pass_on(send: Callable[[int], None]) -> None:
    def passed(number: int, _frame: Any) -> None:
        try:
            send(number)
        except (Refused, ProcessLookupError):
            pass  # it has ended just now

    for one in _PASSED_ON:
        _signal.signal(one, passed)


# ------------------------------------------------------------------------------------------------------------- inside


def _exec(order: _Order) -> int:
    container = order.container()
    process = read(order.option("--process"))
    if container.status != "running":
        raise Refused(f"container {container.name} is {container.status}, not running")
    program = own_process.Program(process, container.seccomp)
    entered = opened_of(container.pid)
    if not container.is_alive:  # a number of another process by now
        raise Refused(f"container {container.name} has ended")
    own_calls.become_subreaper()
    talk, theirs = Talk.pair()
    first = os.fork()
    if first == 0:
        talk.close()
        own_init.enter(theirs, entered, program)
    theirs.close()
    for one, _ in entered:
        os.close(one)
    pid = 0
    while True:
        said, word = talk.hear()
        if said == Said.PID:
            os.waitpid(first, 0)
            pid = int(word)
            own_cgroups.enter(container.groups, pid)
            talk.say(Said.GO)
        elif said == Said.NOTHING and pid:
            break  # it has become the program
        else:
            raise Refused(word or "the command's process has ended before it ran")
    if "--pid-file" in order.options:
        write(order.option("--pid-file"), str(pid))
    return own_process.exit_code(os.waitpid(pid, 0)[1])


def _state(order: _Order) -> int:
    sys.stdout.write(f"{order.container().shown()}\n")
    return 0


def _kill(order: _Order) -> int:
    name = order.words[2] if len(order.words) > 2 else "TERM"
    number = int(name) if name.isdigit() else getattr(_signal, f"SIG{name.removeprefix('SIG')}", 0)
    if not 0 < number <= _signal.SIGRTMAX:
        raise Refused(f"{name} is no signal")
    order.container().signal(number)
    return 0


def _freeze(order: _Order) -> int:
    container, is_pause = order.container(), order.words[0] == "pause"
    wanted = "running" if is_pause else "paused"
    if container.status != wanted:
        raise Refused(f"container {container.name} is {container.status}, not {wanted}")
    own_cgroups.freeze(container.groups, frozen=is_pause)
    return 0


def _update(order: _Order) -> int:
    if order.option("--resources") != "-":
        raise Refused("resources are taken from stdin")
    resources = parsed(sys.stdin.buffer.read(_MOST_BYTES), "what is on stdin")
    own_cgroups.limit(order.container().groups, resources)
    return 0


def _delete(order: _Order) -> int:
    container = order.container()
    if container.is_alive and "--force" not in order.options:
        raise Refused(f"container {container.name} is {container.status}, not stopped")
    container.end()
    container.forget()
    return 0


_VERBS: dict[str, Callable[[_Order], int]] = {
    "create": _create, "start": _start, "run": _run, "exec": _exec, "state": _state, "kill": _kill,
    "pause": _freeze, "resume": _freeze, "update": _update, "delete": _delete,
}  # fmt: skip
