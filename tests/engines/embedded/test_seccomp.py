"""Does the filter of system calls keep out what it should, and let ordinary programs work?"""

from __future__ import annotations

import base64
import errno
import json
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import seccomp
from tests import backends, tally
from tests.engines.embedded import oci

PYTHON = "/usr/bin/python3"
CALLS = "system calls that containers have no use for"
ON_X86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="written in the machine's code: x86_64 only")

# What a process gets when it asks: the error's number, 0 for none.
ASK = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = {}
for name, arguments in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_ulong(one) for one in arguments))
    answers[name] = ctypes.get_errno() if result == -1 else 0
print(json.dumps(answers))
"""
THREADS = """
import concurrent.futures, os, socket, subprocess, tempfile
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    total = sum(pool.map(lambda n: n * n, range(100)))
child = subprocess.run(["sh", "-c", "echo child $((6 * 7))"], capture_output=True, text=True, check=True).stdout.strip()
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    client.sendall(b"hello")
    heard = server.accept()[0].recv(5).decode()
with tempfile.TemporaryFile() as file:
    file.write(b"12345")
pid = os.fork()
if pid == 0:
    os._exit(7)
print(total, child, heard, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture(params=["crun", "runc"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[oci.Lab]:
    """Each runtime."""
    with oci.lab(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def crun(tmp_path: Path) -> Iterator[oci.Lab]:
    """crun alone: it takes a compiled filter."""
    with oci.lab("crun", tmp_path) as made:
        yield made


def walls(*capabilities: str) -> dict[str, Any]:
    """The part of a configuration that is tested here."""
    return {"seccomp": seccomp.profile(capabilities)}


def answers(lab: oci.Lab, questions: dict[str, list[int]], *, linux: dict[str, Any], **parts: Any) -> dict[str, int]:
    """What a container's process is answered."""
    if not os.access(PYTHON, os.X_OK):
        backends.missing(f"no {PYTHON}", enable="apt-get install python3")
    done = lab.run(PYTHON, "-c", ASK, json.dumps(questions), linux=linux, **parts)
    assert done.exit_code == 0, done
    found: dict[str, int] = json.loads(done.stdout)
    return found


def attacked(lab: oci.Lab, expected: dict[str, int], questions: dict[str, list[int]], **parts: Any) -> None:
    """Ask for what is refused, and for what is not, and count the former."""
    found = answers(lab, questions, linux=walls(), **parts)
    for name, number in expected.items():
        if number == 0:
            assert found[name] == 0, name
            continue
        with tally.attempt():
            assert found[name] == number, name


def calls() -> dict[str, int]:
    """The numbers of system calls on this machine."""
    by_machine = {
        "x86_64": {"bpf": 321, "chroot": 161, "clone": 56, "clone3": 435, "finit_module": 313, "io_uring_setup": 425,
                   "kexec_load": 246, "keyctl": 250, "mount": 165, "open_by_handle_at": 304, "perf_event_open": 298,
                   "personality": 135, "reboot": 169, "setns": 308, "socket": 41, "unshare": 272, "userfaultfd": 323},
        "aarch64": {"bpf": 280, "chroot": 51, "clone": 220, "clone3": 435, "finit_module": 273, "io_uring_setup": 425,
                    "kexec_load": 104, "keyctl": 219, "mount": 40, "open_by_handle_at": 265, "perf_event_open": 241,
                    "personality": 92, "reboot": 142, "setns": 268, "socket": 198, "unshare": 97, "userfaultfd": 282},
    }  # fmt: skip
    if platform.machine() not in by_machine:
        pytest.skip(f"no numbers for {platform.machine()}")
    return by_machine[platform.machine()]


# -------------------------------------------------------------------------------------------------------- the document


def test_profile_names_every_call_once_but_for_those_with_conditions() -> None:
    rules = seccomp.profile(())["syscalls"]
    names = [name for rule in rules if "args" not in rule for name in rule["names"]]
    conditional = {name for rule in rules if "args" in rule for name in rule["names"]}

    assert len(names) == len(set(names))
    assert conditional == {"clone", "personality", "socket"}
    assert not conditional & set(names)


@pytest.mark.parametrize(
    ("capability", "call"),
    [("CAP_SYS_ADMIN", "mount"), ("CAP_SYS_CHROOT", "chroot"), ("CAP_SYS_TIME", "clock_settime"), ("CAP_BPF", "bpf")],
)
def test_call_is_allowed_with_its_capability_only(capability: str, call: str) -> None:
    def action(*capabilities: str) -> str:
        rules = seccomp.profile(capabilities)["syscalls"]
        return str(next(rule["action"] for rule in rules if call in rule["names"]))

    assert action() == "SCMP_ACT_ERRNO"
    assert action(capability) == "SCMP_ACT_ALLOW"


@pytest.mark.parametrize(("kernel", "action"), [("4.7.10", "SCMP_ACT_ERRNO"), ("4.8.0", "SCMP_ACT_ALLOW")])
def test_tracing_is_refused_where_it_leads_round_the_filter(kernel: str, action: str) -> None:
    rules = seccomp.profile((), kernel=kernel)["syscalls"]

    assert next(rule["action"] for rule in rules if "ptrace" in rule["names"]) == action


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_profile_covers_the_older_calls_of_the_machine_too(machine: str) -> None:
    assert len(seccomp.profile((), machine=machine)["architectures"]) > 1


def test_unknown_machine_is_refused_by_name() -> None:
    with pytest.raises(errors.Unsupported, match="mips"):
        seccomp.profile((), machine="mips")


# -------------------------------------------------------------------------------------------------------------- walls


def test_ordinary_programs_run_behind_the_filter(lab: oci.Lab) -> None:
    done = lab.run(PYTHON, "-c", THREADS, linux=walls(), files={})

    # No interface is up in a network namespace of its own but by its runtime, which brings up the loopback one.
    assert (done.exit_code, done.stdout.split()) == (0, ["328350", "child", "42", "hello", "7"]), done


def test_process_is_filtered_and_so_is_one_that_joins_it(lab: oci.Lab) -> None:
    id, _ = lab.start("sleep", "100", linux=walls())

    first = lab.runtime("exec", id, "sed", "-n", "/^Seccomp:/p", "/proc/1/status").stdout.split()
    joined = lab.runtime("exec", id, "sed", "-n", "/^Seccomp:/p", "/proc/self/status").stdout.split()

    assert (first, joined) == (["Seccomp:", "2"], ["Seccomp:", "2"])


@pytest.mark.attack(CALLS)
@pytest.mark.parametrize(
    "call",
    ["bpf", "chroot", "finit_module", "io_uring_setup", "kexec_load", "keyctl", "mount", "open_by_handle_at",
     "perf_event_open", "reboot", "setns", "unshare", "userfaultfd"],
)  # fmt: skip
def test_call_that_containers_have_no_use_for_is_refused(crun: oci.Lab, call: str) -> None:
    attacked(crun, {call: errno.EPERM}, {call: [calls()[call], 0, 0, 0, 0, 0]})


@pytest.mark.attack(CALLS)
def test_refusals_are_the_filters_own_and_not_for_want_of_a_capability(lab: oci.Lab) -> None:
    everything = [f"CAP_{name}" for name in ("SYS_ADMIN", "SYS_CHROOT", "SYS_BOOT", "SYS_MODULE", "SYS_PTRACE")]
    new_namespace = 0x20000
    questions = {"unshare": [calls()["unshare"], new_namespace], "chroot": [calls()["chroot"], 0]}

    attacked(lab, dict.fromkeys(questions, errno.EPERM), questions, capabilities=everything)
    allowed = answers(lab, questions, linux=walls(*everything), capabilities=everything)

    assert allowed == {"unshare": 0, "chroot": errno.EFAULT}


@pytest.mark.attack(CALLS)
def test_new_namespaces_are_refused_in_every_way_to_ask_for_them(lab: oci.Lab) -> None:
    number, user, beyond = calls()["clone"], 0x10000000, 1 << 40
    child_ends = 17
    questions = {
        "flag": [number, user | child_ends, 0, 0, 0, 0],
        "flags": [number, 0x7E020000 | child_ends, 0, 0, 0, 0],
        "flag and more bits": [number, beyond | user | child_ends, 0, 0, 0, 0],
        "clone3": [calls()["clone3"], 0, 0],
        "newer than any": [4000],
    }

    expected = {
        "flag": errno.EPERM, "flags": errno.EPERM, "flag and more bits": errno.EPERM,
        "clone3": errno.ENOSYS, "newer than any": errno.ENOSYS,
    }  # fmt: skip

    attacked(lab, expected, questions)


@pytest.mark.attack(CALLS)
def test_sockets_to_the_kernels_ciphers_and_to_virtual_machines_are_refused(lab: oci.Lab) -> None:
    number, stream, packet, high = calls()["socket"], 1, 5, 1 << 32
    questions = {
        "AF_ALG": [number, 38, packet, 0], "AF_VSOCK": [number, 40, stream, 0],
        "AF_ALG and a bit above": [number, high | 38, packet, 0], "AF_VSOCK and a bit above": [number, high | 40, stream, 0],
        "AF_INET": [number, 2, stream, 0], "AF_UNIX": [number, 1, stream, 0], "AF_NETLINK": [number, 16, 3, 0],
    }  # fmt: skip

    expected = {
        "AF_ALG": errno.EPERM, "AF_VSOCK": errno.EPERM,
        "AF_ALG and a bit above": errno.EPERM, "AF_VSOCK and a bit above": errno.EPERM,
        "AF_INET": 0, "AF_UNIX": 0, "AF_NETLINK": 0,
    }  # fmt: skip

    attacked(lab, expected, questions)


@pytest.mark.attack(CALLS)
def test_other_personalities_are_refused(lab: oci.Lab) -> None:
    number = calls()["personality"]
    questions = {
        "ask": [number, 0xFFFFFFFF],
        "fixed addresses": [number, 0x40000],
        "bsd": [number, 6],
        "linux": [number, 0],
    }

    expected = {
        "ask": 0, "fixed addresses": errno.EPERM, "bsd": errno.ENOSYS, "linux": 0,
    }  # fmt: skip

    attacked(lab, expected, questions)


@ON_X86_64
@pytest.mark.attack(CALLS)
@pytest.mark.parametrize(
    ("what", "number", "arguments"),
    [
        ("socketcall for AF_VSOCK", 102, (1, "words", 0)),
        ("socket for AF_VSOCK", 359, (40, 1, 0)),
        ("unshare", 310, (0x20000, 0, 0)),
        ("mount", 21, (0, 0, 0)),
        ("keyctl", 288, (0, 0, 0)),
    ],
)
def test_calls_of_32_bits_are_no_way_round(
    lab: oci.Lab, what: str, number: int, arguments: tuple[int | str, int | str, int | str]
) -> None:
    program = elf_that_asks_32_bits(number, arguments, words=(40, 1, 0))

    with tally.attempt():
        assert lab.run("/ask", linux=walls(), files={"ask": program}).exit_code == errno.EPERM, what


@ON_X86_64
def test_calls_of_32_bits_work_as_such(lab: oci.Lab) -> None:
    program = elf_that_asks_32_bits(20, (0, 0, 0), words=())  # getpid

    assert lab.run("/ask", linux=walls(), files={"ask": program}).exit_code == 0


def elf_that_asks_32_bits(
    number: int, arguments: tuple[int | str, int | str, int | str], *, words: tuple[int, ...]
) -> bytes:
    """A program that makes one system call by `int 0x80` and exits with the error's number; "words" is where those lie."""
    base, header_bytes = 0x400000, 64 + 56
    tail = b"\xcd\x80\x89\xc7\xf7\xdf\x79\x02\x31\xff\xb8\x3c\0\0\0\x0f\x05"  # int 0x80; exit(eax < 0 ? -eax : 0)
    code_bytes = 4 * 5 + len(tail)
    where = base + header_bytes + code_bytes
    values = [where if one == "words" else int(one) for one in arguments]
    code = b"".join(
        op + struct.pack("<I", value) for op, value in zip((b"\xbb", b"\xb9", b"\xba"), values, strict=True)
    )
    code += b"\xb8" + struct.pack("<I", number) + tail
    content = code + struct.pack(f"<{len(words)}I", *words)
    size = header_bytes + len(content)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + header_bytes, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, size, size, 0x1000) + content


# -------------------------------------------------------------------------------------------------- compiled filters


def test_compiled_filter_is_as_good_as_the_profile(crun: oci.Lab, tmp_path: Path) -> None:
    profile, cache = seccomp.profile(()), seccomp.FilterCache(tmp_path / "filters")
    id, _ = crun.start("sleep", "100", linux={"seccomp": profile})
    assert cache.put_from(profile, "1.0", crun.state / id)
    compiled = cache.get(profile, "1.0")
    assert compiled is not None

    annotations = {seccomp.ANNOTATION: compiled}
    questions = {name: [calls()[name], 0, 0, 0, 0, 0] for name in ("unshare", "keyctl", "mount", "clone3")}
    found = answers(crun, questions, linux={}, annotations=annotations)
    other, _ = crun.start("sleep", "100", linux={}, annotations=annotations)
    joined = crun.runtime("exec", other, "sed", "-n", "/^Seccomp:/p", "/proc/self/status").stdout.split()
    program = crun.run(PYTHON, "-c", THREADS, linux={}, annotations=annotations)

    assert found == {"unshare": errno.EPERM, "keyctl": errno.EPERM, "mount": errno.EPERM, "clone3": errno.ENOSYS}
    assert joined == ["Seccomp:", "2"]
    assert program.exit_code == 0, program


def test_filter_is_kept_for_its_profile_and_version_alone(tmp_path: Path) -> None:
    cache, profile, compiled = seccomp.FilterCache(tmp_path / "filters"), seccomp.profile(()), bytes(range(16))
    cache.put(profile, "1.8", compiled)

    assert cache.get(profile, "1.8") == base64.b64encode(compiled).decode()
    assert cache.get(profile, "1.9") is None
    assert cache.get(seccomp.profile(["CAP_SYS_CHROOT"]), "1.8") is None


def test_filters_are_readable_by_their_user_alone(tmp_path: Path) -> None:
    cache, folder = seccomp.FilterCache(tmp_path / "filters"), tmp_path / "filters"
    cache.put(seccomp.profile(()), "1.8", bytes(8))

    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize("damage", ["cut", "changed", "longer", "open to others", "link", "empty"])
def test_damaged_filter_is_not_used(tmp_path: Path, damage: str) -> None:
    cache, profile, folder = seccomp.FilterCache(tmp_path / "filters"), seccomp.profile(()), tmp_path / "filters"
    cache.put(profile, "1.8", bytes(range(16)))
    (file,) = folder.iterdir()
    content = file.read_bytes()

    match damage:
        case "cut":
            file.write_bytes(content[:-8])
        case "changed":
            file.write_bytes(content[:-1] + b"\xff")
        case "longer":
            file.write_bytes(content + bytes(8))
        case "open to others":
            file.chmod(0o666)
        case "link":
            file.rename(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        case _:
            file.write_bytes(b"")

    assert cache.get(profile, "1.8") is None


@pytest.mark.parametrize("compiled", [b"", bytes(7), bytes(8 * 4097)])
def test_what_is_no_filter_is_not_kept(tmp_path: Path, compiled: bytes) -> None:
    with pytest.raises(errors.InternalError):
        seccomp.FilterCache(tmp_path).put(seccomp.profile(()), "1.8", compiled)


def test_container_that_left_no_filter_is_told_apart(tmp_path: Path) -> None:
    assert not seccomp.FilterCache(tmp_path).put_from(seccomp.profile(()), "1.8", tmp_path / "none")
