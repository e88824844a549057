"""Who watches a container where there is no conmon? This program: it stays the container's parent, and writes its log and exit code.

It takes conmon's command line as `runtime.py` uses it and leaves the same files; terminals it has none. Run as a file, and with few
imports: it has to begin in the time of a start. What it does follows https://github.com/containers/conmon.
"""

from __future__ import annotations

import _socket
import ctypes
import fcntl
import os
import select
import sys
import time

VERSION = "1.0"
_READ_BYTES = 8192
_ENTRY_BYTES = 45  # what an entry of the log counts beside its text
_SUBREAPER, _SIGCHLD = 36, 17
_PASSED_SIGNALS = (2, 3, 15)
_OOM_SCORE = b"-999"
_SHUT_RD, _SHUT_WR = 0, 1
_UNKNOWN = -1  # what no process ends with
_MOST_WORDS_BYTES = 65536

_WITH_WORD = {
    "-c": "id", "-u": "uuid", "-n": "name", "-r": "runtime", "-b": "bundle", "-p": "pid_file", "-P": "monitor_pid_file",
    "-l": "log", "--api-version": "api", "--log-size-max": "log_bytes", "--exit-dir": "exits", "--persist-dir": "persist",
    "--socket-dir-path": "sockets", "--log-level": "level", "--exit-command": "exit_command",
}  # fmt: skip
_REPEATED = {"--runtime-arg": "runtime_args", "--exit-command-arg": "exit_args"}
_ALONE = {"-i": "stdin", "--full-attach": "full_attach", "--no-sync-log": "no_sync_log"}


class _Wrong(Exception):
    """What was asked for cannot be done; the message says why."""


def _options(words: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return what the command line says: single words, and lists. Raises _Wrong."""
    single, lists = dict[str, str](), {name: list[str]() for name in _REPEATED.values()}
    left = iter(words)
    for word in left:
        if word in _ALONE:
            single[_ALONE[word]] = "yes"
            continue
        value = next(left, None)
        if value is None or (word not in _WITH_WORD and word not in _REPEATED):
            raise _Wrong(f"{word} is not understood")
        if word in _WITH_WORD:
            single[_WITH_WORD[word]] = value
        else:
            lists[_REPEATED[word]].append(value)
    for name in ("id", "runtime", "bundle", "pid_file", "log", "exits"):
        if name not in single:
            raise _Wrong(f"no {name} was given")
    return single, lists


def main(words: list[str]) -> int:
    """Watch one container, from its creation to its end."""
    if words == ["--version"]:
        sys.stdout.write(f"own monitor version {VERSION}\n")
        return 0
    sync = _pipe_of("_OCI_SYNCPIPE")
    try:
        single, lists = _options(words)
        begin = _pipe_of("_OCI_STARTPIPE")
        if begin is not None:
            os.read(begin, 1)
            os.close(begin)
        pid = os.fork()
        if pid:
            if "monitor_pid_file" in single:
                _write_whole(single["monitor_pid_file"], str(pid))
            return 0
        return _Monitor(single, lists, sync).watch()
    except (OSError, ValueError, _Wrong) as error:
        _tell(sync, -1, f"the monitor failed: {error}")
        sys.stderr.write(f"{error}\n")
        return 1


def _pipe_of(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None or not text.isdigit():
        return None
    os.set_inheritable(int(text), False)
    return int(text)


def _tell(sync: int | None, pid: int, message: str | None = None) -> None:
    if sync is None:
        return
    more = "" if message is None else f', "message": {_quoted(message)}'
    try:
        os.write(sync, f'{{"data": {pid}{more}}}\n'.encode())
    except OSError:
        return  # whoever asked has gone


def _quoted(text: str) -> str:
    plain = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}
    return '"' + "".join(plain.get(one) or (one if one >= " " else f"\\u{ord(one):04x}") for one in text) + '"'


def _write_whole(path: str, text: str) -> None:
    """Write a file so that nobody ever sees a part of it."""
    beside = f"{path}.{os.getpid()}.tmp"
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
    os.rename(beside, path)


class _Log:
    """The file of what a container says; an empty one takes its place when it is full."""

    def __init__(self, wanted: str, most_bytes: int) -> None:
        driver, _, path = wanted.partition(":")
        if driver != "k8s-file" or not path:
            raise _Wrong(f"{wanted} is no log that this monitor writes")
        self._path = path
        self._most_bytes = most_bytes
        self._bytes = 0
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, stream: bytes, data: bytes) -> None:
        """Enter a piece of output, a line for each of its lines."""
        head = _stamp() + b" " + stream
        entries = list[bytes]()
        for line in _lines(data):
            is_part = not line.endswith(b"\n")
            # As conmon counts them: a full file ends at the same line.
            counts = len(line) + _ENTRY_BYTES + is_part
            if 0 < self._most_bytes < self._bytes + counts:
                self._flush(entries)
                self._begin_anew()
            entries.append(head + (b" P " if is_part else b" F ") + line + (b"\n" if is_part else b""))
            self._bytes += counts
        self._flush(entries)

    def _flush(self, entries: list[bytes]) -> None:
        data = b"".join(entries)
        entries.clear()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            sys.stderr.write(f"the log cannot be written: {error}\n")  # no room: the container is not to suffer from it

    def _begin_anew(self) -> None:
        self._bytes = 0
        try:
            beside = f"{self._path}.tmp"
            new = os.open(beside, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.rename(beside, self._path)
        except OSError as error:
            sys.stderr.write(f"no new log can be begun: {error}\n")
            return
        os.close(self._file)
        self._file = new


def _lines(data: bytes) -> list[bytes]:
    found, at = list[bytes](), 0
    while at < len(data):
        end = data.find(b"\n", at) + 1 or len(data)
        found.append(data[at:end])
        at = end
    return found


def _stamp() -> bytes:
    now = time.time_ns()
    local = time.localtime(now // 1_000_000_000)
    minutes = local.tm_gmtoff // 60
    sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
    date = time.strftime("%Y-%m-%dT%H:%M:%S", local)
    return f"{date}.{now % 1_000_000_000:09d}{sign}{minutes // 60:02d}:{minutes % 60:02d}".encode()


class _Client:
    """One who is attached; `rest` is what was sent for the program and not taken yet."""

    def __init__(self, connection: _socket.socket) -> None:
        self.connection = connection
        self.rest = b""
        self.reads = True
        self.writes = True


class _Monitor:
    """Everything about one container."""

    def __init__(self, single: dict[str, str], lists: dict[str, list[str]], sync: int | None) -> None:
        self._single = single
        self._lists = lists
        self._sync = sync
        self._ended: dict[int, int] = {}
        self._poll = select.poll()
        self._clients: dict[int, _Client] = {}
        self._outputs: dict[int, tuple[int, bytes]] = {}
        self._stdin: int | None = None
        self._container = 0
        self._creator = 0

    def watch(self) -> int:
        """Create the container, watch it to its end, leave what is to be known of it; returns this program's own exit code."""
        import _signal  # type: ignore[import-not-found]  # signal takes as long to import as the whole rest

        os.setsid()
        if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        os.umask(0o022)
        self._score = _raised_score()
        self._log = _Log(self._single["log"], int(self._single.get("log_bytes", "-1")))
        self._listener = self._listening()
        self._wake, woken = os.pipe()
        for one in (self._wake, woken):
            os.set_blocking(one, False)
        _signal.signal(_SIGCHLD, lambda _number, _frame: None)
        _signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in _PASSED_SIGNALS:
            _signal.signal(number, lambda number, _frame: self._pass_on(number))
        ends = self._create()
        while self._creator not in self._ended:
            self._turn()
        if self._ended[self._creator] != 0:
            return self._not_created(ends)
        with open(f"{self._single['pid_file']}", "rb") as file:
            self._container = int(file.read())
        memory = _memory_file(self._container)
        # Before the answer: whoever gets it may attach at once, and hears all.
        for number, stream, end in ((2, b"stdout", ends[0]), (3, b"stderr", ends[1])):
            self._outputs[end] = (number, stream)
            self._poll.register(end, select.POLLIN)
        self._poll.register(self._listener.fileno(), select.POLLIN)
        _tell(self._sync, self._container)
        if self._sync is not None:
            os.close(self._sync)
            self._sync = None
        self._reap()
        while self._container not in self._ended:
            self._turn()
        self._drain()
        self._finish(memory)
        return self._exit_command()

    def _listening(self) -> _socket.socket:
        folder = os.open(self._single["bundle"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            os.unlink(f"/proc/self/fd/{folder}/attach")
        except FileNotFoundError:
            pass
        os.fchmod(listener.fileno(), 0o700)
        listener.bind(f"/proc/self/fd/{folder}/attach")
        os.chmod(f"/proc/self/fd/{folder}/attach", 0o700)
        os.close(folder)
        listener.listen(10)
        listener.setblocking(False)
        return listener

    # ------------------------------------------------------------------------------------------------------------ made

    def _create(self) -> tuple[int, int]:
        """Begin the runtime; returns where its container's output, and its own words, will come."""
        out, said = os.pipe()
        errors, complained = os.pipe()
        given, stdin = (
            os.pipe() if "stdin" in self._single else (os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), None)
        )
        single = self._single
        command = [
            *(single["runtime"], *self._lists["runtime_args"], "create", "--bundle", single["bundle"]),
            *("--pid-file", single["pid_file"], single["id"]),
        ]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("_OCI_SYNCPIPE", "_OCI_STARTPIPE")
        }
        self._creator = os.fork()
        if self._creator == 0:
            self._become(command, (given, said, complained), environment)
        for one in (given, said, complained):
            os.close(one)
        if stdin is not None:
            os.set_blocking(stdin, False)
            self._stdin = stdin
        self._poll.register(self._wake, select.POLLIN)
        return out, errors

    def _become(self, command: list[str], streams: tuple[int, int, int], environment: dict[str, str]) -> None:
        import _signal

        try:
            _signal.set_wakeup_fd(-1)
            for number in (_SIGCHLD, *_PASSED_SIGNALS, _signal.SIGPIPE, 25):
                _signal.signal(number, _signal.SIG_DFL)
            _lower_score(self._score)
            high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 3) for one in streams]
            for number, one in enumerate(high):
                os.dup2(one, number)
            os.execvpe(command[0], command, environment)
        except BaseException as error:  # noqa: BLE001  a copy of this program must not go on as if it were the first
            os.write(2, f"{command[0]} could not be started: {error}".encode())
        os._exit(127)

    def _not_created(self, ends: tuple[int, int]) -> int:
        os.set_blocking(ends[1], False)
        words = b""
        try:
            while len(words) < _MOST_WORDS_BYTES and (piece := os.read(ends[1], _READ_BYTES)):
                words += piece
        except BlockingIOError:
            pass
        said = words.decode("utf-8", "replace").strip()
        _tell(self._sync, -1, said or f"the runtime ended with {_code(self._ended[self._creator])}")
        return 1

    # --------------------------------------------------------------------------------------------------------- watched

    def _turn(self) -> None:
        """Wait until something happens, and do what it asks for."""
        for one, what in self._poll.poll():
            if one == self._wake:
                self._reap()
            elif one == self._listener.fileno():
                self._accept()
            elif one == self._stdin:
                self._feed_all()
            elif one in self._outputs:
                if not self._read(one):
                    self._forget_output(one)
            elif one in self._clients:
                self._hear(self._clients[one], what)

    def _reap(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                # Somebody else has heard how it ended: it is not known.
                self._ended.setdefault(self._container, _UNKNOWN)
                return
            if pid == 0:
                return
            self._ended[pid] = status

    def _read(self, end: int) -> bool:
        """Pass on what a program has said; says whether there may be more."""
        number, stream = self._outputs[end]
        try:
            data = os.read(end, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return False
        self._log.write(stream, data)
        self._accept()  # whoever was there before it was said hears it
        for client in list(self._clients.values()):
            if client.writes:
                try:
                    # It waits: whoever is attached hears all, and may be slow.
                    client.connection.send(bytes((number,)) + data)
                except OSError:
                    client.writes = False
                    self._shut(client, _SHUT_WR)
        return True

    def _forget_output(self, end: int) -> None:
        self._poll.unregister(end)
        del self._outputs[end]
        os.close(end)

    def _drain(self) -> None:
        for end in sorted(self._outputs, key=lambda one: self._outputs[one][0]):
            os.set_blocking(end, False)
            while self._read(end):
                pass
        self._accept()  # what is said at the end is said to those too who came for it alone

    def _accept(self) -> None:
        while self._accept_one():
            pass

    def _accept_one(self) -> bool:
        try:
            number, _ = self._listener._accept()  # type: ignore[attr-defined]  # what accept of the module socket calls
        except OSError:
            return False
        os.set_blocking(number, True)
        self._clients[number] = _Client(_socket.socket(fileno=number))
        self._poll.register(number, select.POLLIN)
        return True

    def _hear(self, client: _Client, what: int) -> None:
        data = b""
        if what & select.POLLIN:
            try:
                data = client.connection.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
        if not data:
            self._poll.unregister(client.connection.fileno())
            client.reads = False
            self._shut(client, _SHUT_RD)
            if not client.rest:
                self._end_input()
            return
        if self._stdin is None:
            return
        client.rest = data
        self._poll.unregister(client.connection.fileno())
        self._feed(client)
        if client.rest and self._stdin is not None:
            self._poll.register(self._stdin, select.POLLOUT)

    def _feed(self, client: _Client) -> None:
        """Give a program what was sent for it, as much as it takes; then more may be sent."""
        if self._stdin is not None:
            try:
                client.rest = client.rest[os.write(self._stdin, client.rest) :]
            except BlockingIOError:
                return
            except OSError:
                client.rest = b""  # it reads no further
                self._end_input()
        if not client.rest and client.reads:
            self._poll.register(client.connection.fileno(), select.POLLIN)

    def _feed_all(self) -> None:
        for client in list(self._clients.values()):
            if client.rest:
                self._feed(client)
        if self._stdin is not None and not any(client.rest for client in self._clients.values()):
            self._poll.unregister(self._stdin)

    def _end_input(self) -> None:
        if self._stdin is not None:
            try:
                self._poll.unregister(self._stdin)
            except KeyError:
                pass  # nobody waited for it to take more
            os.close(self._stdin)
            self._stdin = None

    def _shut(self, client: _Client, how: int) -> None:
        try:
            client.connection.shutdown(how)
        except OSError:
            client.writes = client.reads = False
        if not client.writes and not client.reads:
            number = client.connection.fileno()
            try:
                self._poll.unregister(number)
            except KeyError:
                pass  # it was not listened to any more
            self._clients.pop(number, None)
            client.connection.close()

    def _pass_on(self, number: int) -> None:
        for pid in (self._container, self._creator):
            if pid and pid not in self._ended:
                os.kill(pid, number)
                return

    # ----------------------------------------------------------------------------------------------------------- ended

    def _finish(self, memory: int | None) -> None:
        if memory is not None and _has_run_out(memory):
            for folder in {self._single["bundle"], self._single.get("persist", self._single["bundle"])}:
                os.close(os.open(f"{folder}/oom", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        self._listener.close()
        try:
            os.unlink(f"{self._single['bundle']}/attach")
        except OSError:
            pass  # its folder has gone
        code = str(_code(self._ended[self._container]))
        if "persist" in self._single:
            _write_whole(f"{self._single['persist']}/exit", code)
        for client in list(self._clients.values()):
            client.connection.close()
        _write_whole(f"{self._single['exits']}/{self._single['id']}", code)

    def _exit_command(self) -> int:
        """Run what is to be run now, and stay until it has ended: who looks for this program then knows that it still acts."""
        if "exit_command" not in self._single:
            return 0
        command = [self._single["exit_command"], *self._lists["exit_args"]]
        pid = os.fork()
        if pid == 0:
            nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            self._become(command, (nothing, nothing, nothing), dict(os.environ))
        while True:
            try:
                ended, status = os.waitpid(-1, 0)
            except ChildProcessError:
                return 0
            if ended == pid:
                return _code(status)


def _code(status: int) -> int:
    if status == _UNKNOWN:
        return -1
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _raised_score() -> bytes | None:
    """Have the kernel, when memory runs out, take others before this program; returns what the container is to have."""
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            before = file.read().strip()
            file.write(_OOM_SCORE)
            return before
    except OSError:
        return None  # not everybody may


def _lower_score(score: bytes | None) -> None:
    if score is not None:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(score)


def _memory_file(pid: int) -> int | None:
    """Open the file in which a process's control group counts those that were killed for want of memory; None when there is none."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            rows = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return None
    places = [f"/sys/fs/cgroup/memory{row[2]}/memory.oom_control" for row in rows if "memory" in row[1].split(",")]
    places += [f"/sys/fs/cgroup{row[2]}/memory.events" for row in rows if row[0] == "0"]
    for path in places:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return None


def _has_run_out(file: int) -> bool:
    try:
        words = os.pread(file, 4096, 0).split()
    except OSError:
        return False  # the group has gone
    return b"oom_kill" in words and words[words.index(b"oom_kill") + 1] != b"0"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
