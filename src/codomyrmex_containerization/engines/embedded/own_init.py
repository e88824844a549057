"""What does a process go through that becomes a container's first one, or a command in it? The child's side of the runtime of our own."""

from __future__ import annotations

import _socket
import os
import sys

from codomyrmex_containerization.engines.embedded import own_calls as calls
from codomyrmex_containerization.engines.embedded import own_mounts, own_process
from codomyrmex_containerization.engines.embedded.own_containers import ANSWER, BEGIN
from codomyrmex_containerization.engines.embedded.own_namespaces import Namespaces
from codomyrmex_containerization.engines.embedded.own_words import Json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_LONGEST_WORDS_BYTES = 4096


class Said:
    """What parent and child tell one another; then follow more words."""

    NOTHING, MAPS, PID, GO, READY, ERROR = b"", b"m", b"p", b"g", b"r", b"e"


class Talk:
    """One end of what parent and child speak by."""

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection

    @classmethod
    def pair(cls) -> tuple[Talk, Talk]:
        """Make both ends."""
        one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    @property
    def descriptor(self) -> int:
        """Its number."""
        return self._connection.fileno()

    def say(self, what: bytes, words: str = "") -> None:
        """Tell the other side. Raises OSError."""
        self._connection.send(what + words.encode("utf-8", "replace")[:_LONGEST_WORDS_BYTES])

    def hear(self) -> tuple[bytes, str]:
        """Wait for what the other side says; nothing when it has gone. Raises OSError."""
        data = self._connection.recv(2 * _LONGEST_WORDS_BYTES)
        return data[:1], data[1:].decode("utf-8", "replace")

    def ask(self, what: bytes, words: str = "") -> None:
        """Tell the other side and wait until it lets one go on; without it, nothing goes on. Raises OSError."""
        self.say(what, words)
        if self.hear()[0] != Said.GO:
            os._exit(1)

    def close(self) -> None:
        """Speak no more."""
        self._connection.close()


class Birth:
    """What a first process needs to know."""

    def __init__(
        self,
        config: Json,
        bundle: str,
        folder: str,
        namespaces: Namespaces,
        program: own_process.Program,
        trees: tuple[tuple[str, ...], ...],
    ) -> None:
        self.namespaces = namespaces
        self._config = config
        self._bundle = bundle
        self._folder = folder
        self._program = program
        self._trees = list(trees)

    def be_first(self, talk: Talk) -> NoReturn:
        """Make the namespaces, and in them the process that stays."""
        try:
            # Both ways: a pipe of one's own has no end, and nobody waits when it is opened.
            begin, answer = (os.open(f"{self._folder}/{one}", os.O_RDWR | os.O_CLOEXEC) for one in (BEGIN, ANSWER))
            self.namespaces.join()
            mounts, is_root = self._config.get("mounts") or [], os.geteuid() == 0
            # Whose users are others may not get everywhere then.
            shown = own_mounts.bound(mounts, self._bundle) if is_root else {}
            if self.namespaces.has_users:
                calls.unshare(calls.NEWUSER)
                talk.ask(Said.MAPS)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
            self.namespaces.make_rest()
            if not is_root:
                shown = own_mounts.bound(mounts, self._bundle)
            pid = os.fork()
            if pid:
                talk.say(Said.PID, str(pid))
                os._exit(0)
            if talk.hear()[0] != Said.GO:
                os._exit(1)
            self._live(talk, shown, begin, answer)
        except BaseException as error:  # noqa: BLE001  a copy of the runtime must not go on as if it were the first
            _give_up(talk, error)

    def _live(self, talk: Talk, shown: dict[int, own_mounts.Bound], begin: int, answer: int) -> NoReturn:
        trees = tuple(one.tree for one in shown.values())
        calls.close_all(but=(talk.descriptor, begin, answer, *trees))
        os.setsid()
        calls.hide()
        if "cgroup" in self.namespaces.kinds:
            calls.unshare(calls.NEWCGROUP)
        config, linux = self._config, self._config.get("linux") or {}
        os.umask(0)
        root = own_mounts.Root(os.path.join(self._bundle, config["root"]["path"]))
        for number, one in enumerate(config.get("mounts") or []):
            root.mount(one, shown.get(number), groups=self._trees)
        root.devices()
        for path in linux.get("readonlyPaths") or []:
            root.make_read_only(path)
        for path in linux.get("maskedPaths") or []:
            root.mask(path)
        own_process.forget_the_host()
        root.enter(read_only=bool(config["root"].get("readonly")))
        if config.get("hostname") and "uts" in self.namespaces.kinds:
            calls.name_host(config["hostname"])
        os.umask(0o022)
        self._program.prepare(makes_folder=True)
        talk.say(Said.READY)
        talk.close()
        os.read(begin, 1)
        try:
            self._program.become()
        except BaseException as error:  # noqa: BLE001  as above
            os.write(answer, own_process.words_of(error).encode("utf-8", "replace")[:_LONGEST_WORDS_BYTES])
        os._exit(127)


def enter(talk: Talk, entered: list[tuple[int, int]], program: own_process.Program) -> NoReturn:
    """Become a program in a container that runs."""
    try:
        calls.close_all(but=(talk.descriptor, *(one for one, _ in entered)))
        calls.hide()
        own_process.forget_the_host()
        for one, kind in entered:
            calls.enter(one, kind, "a namespace")
            os.close(one)
            if kind == calls.NEWUSER:
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
        pid = os.fork()
        if pid:
            talk.say(Said.PID, str(pid))
            os._exit(0)
        if talk.hear()[0] != Said.GO:
            os._exit(1)
        os.setsid()
        program.prepare(makes_folder=False)
        program.become()
    except BaseException as error:  # noqa: BLE001  a copy of the runtime must not go on as if it were the first
        _give_up(talk, error)
    os._exit(127)


def _give_up(talk: Talk, error: BaseException) -> NoReturn:
    try:
        talk.say(Said.ERROR, own_process.words_of(error))
    except OSError:
        sys.stderr.write(f"{error}\n")
    os._exit(127)
