"""Which system calls may a container's processes make? A profile for OCI runtimes, and a store of filters compiled from it.

Who asks for what ordinary programs never ask for is refused with EPERM; what is not known here, because it is newer, does not
exist (ENOSYS), so that programs take their other way. What needs a capability is allowed with it. The choice follows what
https://docs.docker.com/engine/security/seccomp/ documents; the names are those of the kernel's system call tables.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import platform
import re
import stat
import tempfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors

ANNOTATION = "run.oci.seccomp_bpf_data"  # where crun takes a compiled filter from, instead of `linux.seccomp`
COMPILED = "seccomp.bpf"  # where crun leaves it, in the container's folder of its state

_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}

_FILES = """
    _llseek access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
    fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64
    fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32 lgetxattr
    link linkat listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod
    mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
    readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64
    setxattr setxattrat splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs
    tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
"""
_EVENTS = """
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
    eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
    io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit pipe pipe2 poll ppoll ppoll_time64 pselect6
    pselect6_time64 select signalfd signalfd4
"""
_MEMORY = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
    mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
_PROCESSES = """
    alarm execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
    get_robust_list get_thread_area getcpu getitimer getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid
    gettid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self nanosleep pause
    pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease restart_syscall rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp set_robust_list set_thread_area set_tid_address setitimer setpgid setpriority setrlimit setsid
    sigaction sigaltstack signal sigpending sigprocmask sigreturn sigsuspend tgkill times tkill ugetrlimit uprobe
    uretprobe vfork wait4 waitid waitpid
"""
_IDENTITY = """
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32
    getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
"""
_TIME = """
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 getrandom gettimeofday sysinfo time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 uname
"""
_COMMUNICATION = """
    accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd recv
    recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg
    sendto setsockopt shmat shmctl shmdt shmget shutdown socketpair
"""
_OF_MACHINE = {
    "x86_64": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
}

_WITH_CAPABILITY = {
    "BPF": "bpf",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "PERFMON": "perf_event_open",
    "SYSLOG": "syslog",
    "SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree
        open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare
    """,
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_NICE": "get_mempolicy mbind process_madvise set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "SYS_TTY_CONFIG": "vhangup",
}
_NEVER = """
    _sysctl add_key create_module get_kernel_syms io_uring_enter io_uring_register io_uring_setup kexec_file_load
    kexec_load keyctl migrate_pages move_pages nfsservctl pivot_root query_module request_key socketcall swapoff swapon
    sysfs userfaultfd uselib ustat vm86 vm86old
"""
# Before Linux 4.8 a process could get round its filter by them.
_SAFE_SINCE_4_8 = "process_vm_readv process_vm_writev ptrace"

# In the order of their numbers: https://man7.org/linux/man-pages/man7/capabilities.7.html
_CAPABILITIES = tuple(
    """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()
)

_NAMESPACE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32 bits, an old version's number, and the question
_NO_RANDOM_ADDRESSES = 0x40000
_WHOLE_INT = 0xFFFFFFFF
_FAMILIES_REFUSED = (38, 40)  # AF_ALG: the kernel's ciphers; AF_VSOCK: virtual machines and their host, in no namespace
_FAMILIES = 46

_DIGEST_BYTES = 32
_INSTRUCTION_BYTES = 8
_MOST_BYTES = 4096 * _INSTRUCTION_BYTES  # BPF_MAXINSNS


def profile(capabilities: Collection[str], *, kernel: str | None = None, machine: str | None = None) -> dict[str, Any]:
    """Return `linux.seccomp` for a container with these capabilities (`CHOWN` or `CAP_CHOWN`, ...).

    `kernel` is a release such as `6.1.0-9-amd64`, `machine` a name as `uname -m` says it; this host's when not given.
    Raises Unsupported for a machine whose system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise errors.Unsupported(
            f"No filter of system calls is known for {machine}.",
            hint=f"use another engine here; this one filters on {' and '.join(_ARCHITECTURES)}",
        )
    allowed, refused = _sorted_out(
        {one.removeprefix("CAP_") for one in capabilities}, kernel or os.uname().release, machine
    )
    # Refused first: libseccomp would otherwise add an opening for `socketcall` to each rule for sockets.
    rules = [_rule(refused, error=errno.EPERM), _rule(allowed), *_personality_rules(), *_socket_rules()]
    if "clone" not in allowed:
        rules += _clone_rules()
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": list(_ARCHITECTURES[machine]),
        "syscalls": rules,
    }


def all_capabilities() -> tuple[str, ...]:
    """Return the capabilities that this process may give away, without `CAP_`: what `ALL` means here. Raises EngineUnavailable."""
    try:
        words = Path("/proc/self/status").read_text("ascii", "replace").split()
    except OSError as error:
        raise errors.EngineUnavailable(
            f"/proc cannot be read: {error.strerror}.", hint="mount /proc, or use another engine"
        ) from error
    powers = int(words[words.index("CapBnd:") + 1], 16) & int(words[words.index("CapPrm:") + 1], 16)
    return tuple(name for number, name in enumerate(_CAPABILITIES) if powers >> number & 1)


def _sorted_out(capabilities: Collection[str], kernel: str, machine: str) -> tuple[list[str], list[str]]:
    common = " ".join((_FILES, _EVENTS, _MEMORY, _PROCESSES, _IDENTITY, _TIME, _COMMUNICATION, _OF_MACHINE[machine]))
    allowed = set(common.split())
    conditional = set(_SAFE_SINCE_4_8.split())
    for capability, names in _WITH_CAPABILITY.items():
        conditional |= set(names.split())
        if capability in capabilities:
            allowed |= set(names.split())
    if _version(kernel) >= (4, 8):
        allowed |= set(_SAFE_SINCE_4_8.split())
    # A refused clone3 would end programs that fall back to clone when there is none.
    refused = (conditional | set(_NEVER.split())) - allowed - {"clone", "clone3"}
    return sorted(allowed), sorted(refused)


def _version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _clone_rules() -> list[dict[str, Any]]:
    no_namespace = _masked("clone", mask=sum(_NAMESPACE_FLAGS), value=0)
    return [no_namespace, *(_masked("clone", mask=one, value=one, error=errno.EPERM) for one in _NAMESPACE_FLAGS)]


def _personality_rules() -> list[dict[str, Any]]:
    # Debuggers ask for the last one and go on without it when it is refused.
    return [
        *(_masked("personality", mask=_WHOLE_INT, value=one) for one in _PERSONALITIES),
        _masked("personality", mask=_WHOLE_INT, value=_NO_RANDOM_ADDRESSES, error=errno.EPERM),
    ]


def _socket_rules() -> list[dict[str, Any]]:
    # By the 32 bits that the kernel looks at: a comparison of all 64 is passed with any bit above them.
    refused = [_masked("socket", mask=_WHOLE_INT, value=one, error=errno.EPERM) for one in _FAMILIES_REFUSED]
    return [*refused, *(_masked("socket", mask=mask, value=first) for first, mask in _family_blocks())]


def _family_blocks() -> Iterable[tuple[int, int]]:
    """Yield the first number and the mask of the largest blocks of address families between those that are refused."""
    first = 0
    while first < _FAMILIES:
        if first in _FAMILIES_REFUSED:
            first += 1
            continue
        size = first & -first or 1 << _FAMILIES.bit_length()
        while first + size > _FAMILIES or any(first <= one < first + size for one in _FAMILIES_REFUSED):
            size //= 2
        yield first, _WHOLE_INT & ~(size - 1)
        first += size


def _masked(name: str, *, mask: int, value: int, error: int | None = None) -> dict[str, Any]:
    condition = {"index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    return {**_rule([name], error=error), "args": [condition]}


def _rule(names: list[str], *, error: int | None = None) -> dict[str, Any]:
    if error is None:
        return {"names": names, "action": "SCMP_ACT_ALLOW"}
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error}


class FilterCache:
    """Filters that crun compiled, kept in a folder of this user: compiling one costs more than all the rest of a start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, profile: Mapping[str, Any], runtime_version: str) -> str | None:
        """Return the filter for the annotation, in base64; None when there is none that can be trusted."""
        try:
            content = _read_own(self._folder / _key(profile, runtime_version))
        except OSError:
            return None
        digest, compiled = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if not _is_filter(compiled) or hashlib.sha256(compiled).digest() != digest:
            return None
        return base64.b64encode(compiled).decode("ascii")

    def put(self, profile: Mapping[str, Any], runtime_version: str, compiled: bytes) -> None:
        """Keep a filter that the runtime compiled from this profile. Raises InternalError for what is none or cannot be kept."""
        if not _is_filter(compiled):
            raise errors.InternalError(
                f"The runtime left {len(compiled)} bytes as its filter of system calls.",
                hint="nothing is lost: it is compiled again at the next start",
            )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self._folder / _key(profile, runtime_version), hashlib.sha256(compiled).digest() + compiled)
        except OSError as error:
            raise errors.InternalError(
                f"{self._folder} cannot be written to: {error.strerror}.",
                hint="make room there, or give it back to this user",
            ) from error

    def put_from(self, profile: Mapping[str, Any], runtime_version: str, state: Path) -> bool:
        """Keep what crun compiled for a container, from the container's folder of its state.

        Says whether it is kept: a container does not depend on it, without it the next one only starts later.
        """
        try:
            self.put(profile, runtime_version, _read_own(state / COMPILED))
        except (OSError, errors.InternalError):
            return False
        return True


def _key(profile: Mapping[str, Any], runtime_version: str) -> str:
    text = json.dumps([profile, platform.machine(), runtime_version], sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()}.bpf"


def _is_filter(compiled: bytes) -> bool:
    return 0 < len(compiled) <= _MOST_BYTES and len(compiled) % _INSTRUCTION_BYTES == 0


def _read_own(path: Path) -> bytes:
    """Read a short file of this user's that nobody else can write to; OSError for any other."""
    with open(path, "rb", opener=_no_link) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "not this user's own", str(path))
        return file.read(_DIGEST_BYTES + _MOST_BYTES + 1)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
