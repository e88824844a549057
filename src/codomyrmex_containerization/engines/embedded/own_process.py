"""How does the runtime of our own become a container's program? With that program's user, powers and limits, and nothing else of its own.

The order is that of https://github.com/opencontainers/runc: what needs power first, then less power, the filter of calls last.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the module above it takes as long to import as all of this
import errno
import os
import resource
import stat
import sys

from codomyrmex_containerization.engines.embedded import own_calls as calls
from codomyrmex_containerization.engines.embedded import own_filter
from codomyrmex_containerization.engines.embedded.own_words import Json, Refused, require_known

# In the order of their numbers: https://man7.org/linux/man-pages/man7/capabilities.7.html
_POWERS = tuple(
    """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()
)
_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_LOCKS = 10  # a limit that the module resource does not name
_ENDLESS = 1 << 63


def check(process: Json) -> None:
    """Refuse what this runtime does not know. Raises Refused."""
    known = ("terminal", "user", "args", "env", "cwd", "capabilities", "rlimits", "noNewPrivileges", "oomScoreAdj")
    require_known("a process", process, known)
    if process.get("terminal"):
        raise Refused("this runtime has no terminals")
    if not process.get("args"):
        raise Refused("there is no program to run")
    require_known("a user", process.get("user") or {}, ("uid", "gid", "additionalGids"))
    powers = process.get("capabilities") or {}
    require_known("capabilities", powers, _SETS)
    for name in _SETS:
        _numbers(powers.get(name) or [])
    for limit in process.get("rlimits") or []:
        _limit(limit)


def _numbers(names: list[str]) -> int:
    known = {f"CAP_{name}": 1 << number for number, name in enumerate(_POWERS)}
    require_known("capabilities", names, known)
    return sum(known[name] for name in set(names))


def _limit(limit: Json) -> tuple[int, int, int]:
    name = limit["type"]
    number = _LOCKS if name == "RLIMIT_LOCKS" else getattr(resource, name, None)
    if not name.startswith("RLIMIT_") or number is None:
        raise Refused(f"there is no limit {name}")
    soft, hard = (-1 if limit[one] >= _ENDLESS else limit[one] for one in ("soft", "hard"))
    return number, soft, hard


def forget_the_host() -> None:
    """Never import anything again: where this program's modules are, a container's files are now."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()


class Program:
    """A program that this process is going to become."""

    def __init__(self, process: Json, seccomp: Json | None) -> None:
        """Prepare what needs the host's modules. Raises Refused."""
        check(process)
        self._process = process
        try:
            self._filter = own_filter.compiled(seccomp, os.uname().machine) if seccomp else b""
        except own_filter.Unknown as error:
            raise Refused(f"the filter of system calls cannot be made: {error}") from error
        self._words = [os.fsencode(one) for one in process["args"]]
        self._environment = dict(one.partition("=")[::2] for one in process.get("env") or [])
        self._path = b""
        # What happens at the first time only, and would import something: in the container it cannot.
        "".encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def prepare(self, *, makes_folder: bool) -> None:
        """Be as the program is to be, but for the filter, and find it. Raises Refused, OSError."""
        process = self._process
        if "oomScoreAdj" in process:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(int(process["oomScoreAdj"])))
        for limit in process.get("rlimits") or []:
            number, soft, hard = _limit(limit)
            try:
                resource.setrlimit(number, (soft, hard))
            except (OSError, ValueError) as error:
                raise Refused(f"{limit['type']} cannot be set to {soft}:{hard}: {error}") from error
        cwd = process.get("cwd") or "/"
        if makes_folder:
            self._make_folder(cwd)
        calls.leave_keyring()
        # Without it a filter needs a power that goes next.
        if process.get("noNewPrivileges"):
            calls.no_new_privileges()
        elif self._filter:
            calls.filter_calls(self._filter)
        self._become_user()
        os.chdir(cwd)
        if not os.getcwd().startswith("/"):
            raise Refused(f"the folder {cwd} is not in the container")
        os.umask(0o022)
        self._path = self._found()

    def _make_folder(self, path: str) -> None:
        try:
            os.makedirs(path, 0o755, exist_ok=True)
        except OSError:
            pass  # the program's user is told, who goes there next

    def _become_user(self) -> None:
        user, wanted = self._process.get("user") or {}, self._process.get("capabilities") or {}
        sets = {name: _numbers(wanted.get(name) or []) for name in _SETS}
        for number in range(64):
            if calls.may_be_bounded(number) and not sets["bounding"] >> number & 1:
                calls.drop_bound(number)
        calls.keep_powers(kept=True)
        uid, gid = user.get("uid", 0), user.get("gid", 0)
        self._set_groups(tuple(user.get("additionalGids") or ()))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        calls.keep_powers(kept=False)
        calls.set_powers(
            effective=sets["effective"], permitted=sets["permitted"], inheritable=sets["inheritable"] | sets["ambient"]
        )
        calls.set_ambient(sets["ambient"])

    @staticmethod
    def _set_groups(groups: tuple[int, ...]) -> None:
        try:
            os.setgroups(groups)
        except PermissionError:
            with open("/proc/self/setgroups") as file:
                if file.read().strip() != "deny" or groups:
                    raise  # users of its own that were made by nobody of power have no others

    def _found(self) -> bytes:
        """Return the path of the program. Raises Refused, in the words that crun and runc have for it."""
        name = self._words[0]
        if b"/" in name:
            places = [name]
        else:
            path = os.fsencode(
                self._environment.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            )
            places = [(one or b".") + b"/" + name for one in path.split(b":")]
        reason = errno.ENOENT
        for one in places:
            try:
                found = os.stat(one)
            except OSError as error:
                if error.errno == errno.EACCES:
                    reason = errno.EACCES
                continue
            if stat.S_ISREG(found.st_mode) and os.access(one, os.X_OK):
                return one
            reason = errno.EISDIR if stat.S_ISDIR(found.st_mode) and b"/" in name else errno.EACCES
        shown = os.fsdecode(name)
        if reason == errno.ENOENT:
            raise Refused(
                f"executable file `{shown}` not found{'' if b'/' in name else ' in $PATH'}: No such file or directory"
            )
        raise Refused(f"open executable {shown}: {os.strerror(reason)}")

    def become(self) -> None:
        """Become the program; comes back only with an error. Raises Refused."""
        try:
            calls.close_all_at_exec()
            _forget_signals()
            if self._filter and self._process.get("noNewPrivileges"):
                calls.filter_calls(self._filter)
            os.execve(self._path, self._words, self._environment)
        except OSError as error:
            raise Refused(f"exec {os.fsdecode(self._path)}: {error.strerror}") from error


def _forget_signals() -> None:
    """Take every signal as a program does that was told nothing: the interpreter ignores some, and those would stay ignored."""
    for number in _signal.valid_signals():
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def exit_code(status: int) -> int:
    """Return what a program's end is told as."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def words_of(error: BaseException) -> str:
    """Return what is said of an error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or error.__class__.__name__}: {error.strerror}"
    return str(error) or type(error).__name__
