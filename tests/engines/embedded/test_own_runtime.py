"""Is a container of the runtime of our own shut in, does it obey, and does it refuse what it does not know?

SPEC B127, SPEC B129, SPEC B130. Seen from outside, in the kernel's own files; the contract suite has a row for it too.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import process
from codomyrmex_containerization.engines.embedded import (
    bundle,
    groups,
    life,
    limits,
    own_filter,
    own_syscalls,
    seccomp,
    state,
    tiers,
)
from codomyrmex_containerization.models.container import Limits
from tests import backends

SECONDS = 30.0
HELD = Limits(memory_bytes=64 * 1024**2, cpus=0.5, pids_limit=32)
FORMAT = struct.Struct("=HBBI")
DATA = struct.Struct("=IIQ6Q")
KILLED, NO_SUCH_CALL, REFUSED, ALLOWED = 0x80000000, 0x50000 | errno.ENOSYS, 0x50000 | errno.EPERM, 0x7FFF0000
MACHINES = ("x86_64", "aarch64")
NOBODY = 65_534
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "env",
)  # env: setpriv itself still may all


@dataclass(frozen=True, slots=True)
class Bench:
    """A bundle of a static busybox, and the runtime with a state folder."""

    folder: Path
    id: str
    config: dict[str, Any]

    @property
    def pid(self) -> int:
        """The container's first process."""
        return int((self.folder / "pid").read_text())

    @property
    def state(self) -> Path:
        """What the runtime keeps of its containers."""
        return self.folder / "state"

    def put(self, name: str, value: Mapping[str, Any] | list[Any]) -> Path:
        """Write a document."""
        (self.folder / name).write_text(json.dumps(value))
        return self.folder / name

    def told(self, *words: str, stdin: str = "", prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Tell the runtime something and return what it answers."""
        command = [*prefix, *tiers.own_runtime_command(), "--root", str(self.state), *words]
        (self.folder / "stdin").write_text(stdin)
        # A container keeps its creator's output: into files, or its end would be waited for.
        with (
            open(self.folder / "stdin", "rb") as given,
            open(self.folder / "out", "wb") as out,
            open(self.folder / "errors", "wb") as said,
        ):
            done = subprocess.run(command, stdin=given, stdout=out, stderr=said, timeout=SECONDS, check=False)
        texts = [(self.folder / name).read_text("utf-8", "replace") for name in ("out", "errors")]
        return subprocess.CompletedProcess(command, done.returncode, *texts)

    def ok(self, *words: str, stdin: str = "") -> str:
        """Tell it something that works."""
        done = self.told(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def created(self, *args: str, **config: Any) -> int:
        """Create the container; returns its first process."""
        self.config["process"]["args"] = list(args or ("sleep", "1000"))
        self.put("config.json", {**self.config, **config})
        self.ok("create", "--bundle", str(self.folder), "--pid-file", str(self.folder / "pid"), self.id)
        return self.pid

    def running(self, *args: str) -> int:
        """Create and start it."""
        pid = self.created(*args)
        self.ok("start", self.id)
        return pid

    def said(self, *args: str) -> tuple[int, str]:
        """Run it to its end and return its exit code and what it said."""
        self.config["process"]["args"] = list(args)
        self.put("config.json", self.config)
        done = self.told("run", "--bundle", str(self.folder), self.id)
        return done.returncode, done.stdout + done.stderr

    def executed(self, *args: str, **other: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        path = self.put("process.json", {**self.config["process"], "args": list(args), **other})
        return self.told("exec", "--process", str(path), "--pid-file", str(self.folder / "exec.pid"), self.id)

    def status(self) -> str:
        """How it says that the container stands."""
        return str(json.loads(self.ok("state", self.id))["status"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bundle; what is left of its container is taken away."""
    if os.geteuid() != 0:
        backends.missing("not root", enable="sudo scripts/test")
    busybox = backends.static_busybox()
    root = tmp_path / "rootfs"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    found = Bench(tmp_path, uuid.uuid4().hex * 2, _config(root))
    found.config["linux"] |= {"cgroupsPath": limits.cgroup_path(found.id)}
    try:
        yield found
    finally:
        with suppress(AssertionError):
            if (found.state / found.id).exists():
                found.ok("delete", "--force", found.id)
        groups.remove_cgroups(found.id)
    assert not (found.state / found.id).exists()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def _config(root: Path) -> dict[str, Any]:
    safe = ["nosuid", "noexec", "nodev"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]},
    ]
    program = bundle.process(
        ["true"], user=bundle.User(), env={"PATH": "/bin"}, workdir="/", powers=bundle.DEFAULT_CAPABILITIES
    )
    return {
        "ociVersion": "1.0.2",
        "hostname": "within",
        "root": {"path": str(root), "readonly": True},
        "process": program,
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup", "network")],
            "resources": {**limits.resources(HELD), "devices": [{"allow": False, "access": "rwm"}]},
            "seccomp": seccomp.profile(bundle.DEFAULT_CAPABILITIES),
            "maskedPaths": ["/proc/keys", "/proc/scsi", "/sys/firmware", "/nothing"],
            "readonlyPaths": ["/proc/sys", "/nothing"],
        },
    }


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# ------------------------------------------------------------------------------------------------------------- the walls


def test_kernel_shows_every_wall_round_a_program_and_a_command(bench: Bench) -> None:
    """SPEC B127."""
    first = bench.running()
    script = "cat /proc/self/status; sleep 1000 >/dev/null 2>&1 & true"
    assert bench.executed("sh", "-c", script).returncode == 0
    second = int(bench.executed("sh", "-c", "grep NSpid: /proc/self/status >/dev/null; pidof sleep").stdout.split()[0])
    assert second > 1
    inside = [int(one) for one in Path(f"/proc/{first}/task/{first}/children").read_text().split()] or [first]
    powers = sum(1 << seccomp._CAPABILITIES.index(one) for one in bundle.DEFAULT_CAPABILITIES)
    assert status_of(first)["SigIgn"] == "0" * 16
    for pid in {first, *inside}:
        found = status_of(pid)
        assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")
        assert [int(found[one], 16) for one in ("CapBnd", "CapEff", "CapPrm")] == [powers] * 3
        assert [int(found[one], 16) for one in ("CapInh", "CapAmb", "SigBlk")] == [0] * 3
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
        for kind in ("pid", "mnt", "uts", "ipc", "cgroup", "net"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        assert set(limits.enforced(pid, HELD).values()) == {"cgroup"}


def test_what_tells_of_the_host_is_hidden_and_its_settings_are_read_only(bench: Bench) -> None:
    script = (
        "wc -c < /proc/keys; ls /sys/firmware | wc -l; hostname; ls /dev | tr '\\n' ' '; echo; ls -A /oldroot /.old 2>&1 | wc -l;"
        "for one in 'echo 1 > /proc/sys/kernel/domainname' 'touch /made' 'mount -t tmpfs none /tmp' 'mknod /dev/sda b 8 0'"
        " 'umount /proc/keys' 'cat /dev/mem' 'unshare -U true' 'hostname other' 'echo 1 > /sys/kernel/uevent_helper'; do"
        ' sh -c "$one" >/dev/null 2>&1 && echo "done: $one"; done; true'
    )
    code, said = bench.said("sh", "-c", script)
    lines = said.splitlines()
    assert (code, lines[:3]) == (0, ["0", "0", "within"])
    assert set(lines[3].split()) == {
        *("core", "fd", "full", "null", "ptmx", "random", "stderr", "stdin", "stdout", "tty", "urandom", "zero")
    }
    assert lines[5:] == []


def test_interpreter_of_the_host_cannot_be_written_to_by_what_it_becomes(bench: Bench) -> None:
    """SPEC B130: not by the file that the container's first process still is, nor by what becomes of it."""
    waiting = f"/proc/{bench.created()}/exe"
    assert os.path.samefile(waiting, sys.executable)
    for change in (
        lambda: os.open(waiting, os.O_WRONLY),
        lambda: os.chmod(waiting, 0o777),
        lambda: os.truncate(waiting, 0),
    ):
        with pytest.raises(OSError, match=r"Read-only file system|Text file busy"):
            change()
    # What runs is busy: it is what comes afterwards that counts.
    assert os.statvfs(waiting).f_flag & os.ST_RDONLY
    with pytest.raises(OSError, match="Read-only file system"):
        os.chmod(waiting, 0o777)


def test_program_that_waits_is_shut_to_its_equals(bench: Bench) -> None:
    pid = bench.created()
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "cat", f"/proc/{pid}/environ"]
    if shutil.which("setpriv") is None:
        backends.missing("no setpriv", enable="apt-get install util-linux")
    done = subprocess.run(powerless, capture_output=True, check=False)
    assert done.returncode != 0
    assert done.stdout == b""


def test_links_of_an_image_lead_nowhere_else(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = Path(bench.config["root"]["path"])
    (root / "data").symlink_to(outside)
    (root / "file").write_text("")
    shown = tmp_path / "shown"
    shown.write_text("of the host")
    bench.config["mounts"].append(
        {"destination": "/data/in", "type": "bind", "source": str(shown), "options": ["bind", "ro"]}
    )
    code, said = bench.said("cat", "/data/in")
    assert list(outside.iterdir()) == []
    assert (code, said) == (0, "of the host") or code != 0


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_processes_and_devices_are_not_shown_where_a_link_leads(bench: Bench, name: str) -> None:
    root = Path(bench.config["root"]["path"])
    (root / name).rmdir()
    (root / name).symlink_to("tmp")
    code, said = bench.said("true")
    assert code != 0
    assert f"/{name}" in said


def test_user_groups_folder_and_limits_are_those_that_were_asked_for(bench: Bench) -> None:
    root = Path(bench.config["root"]["path"])
    bench.config["process"] |= {
        "user": {"uid": 1234, "gid": 77, "additionalGids": [5, 6]},
        "cwd": "/new/folder",
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
        "capabilities": {"bounding": ["CAP_CHOWN"], "effective": [], "permitted": [], "inheritable": []},
    }
    bench.config["root"]["readonly"] = False
    code, said = bench.said("sh", "-c", "id -u; id -g; id -G; pwd; ulimit -n; ulimit -Hn; grep Cap /proc/self/status")
    assert (code, said.split()[:8]) == (0, ["1234", "77", "77", "5", "6", "/new/folder", "100", "200"])
    assert [int(word, 16) for word in said.split()[9::2]] == [0, 0, 0, 1, 0]
    assert (root / "new/folder").stat().st_mode & 0o7777 == 0o755


def test_container_runs_among_users_of_another_namespace(bench: Bench) -> None:
    """As root of a namespace only: no device can be made there, and the host's are shown."""
    unshare = process.find("unshare")
    if unshare is None:
        backends.missing("no unshare", enable="apt-get install util-linux")
    bench.config["process"]["args"] = [
        "sh",
        "-c",
        "echo word > /dev/null && cat /proc/self/uid_map && grep Secc /proc/self/status",
    ]
    bench.config["linux"].pop("cgroupsPath")
    bench.config["linux"]["resources"].pop("memory")
    bench.config["linux"]["resources"] = {"devices": bench.config["linux"]["resources"]["devices"]}
    bench.put("config.json", bench.config)
    inside = (str(unshare), "--user", "--map-root-user", "--mount", "--propagation", "slave")
    done = bench.told("run", "--bundle", str(bench.folder), bench.id, prefix=inside)
    assert (done.returncode, done.stdout.split()[:5]) == (0, ["0", "0", "1", "Seccomp:", "2"]), done.stderr


def test_users_of_its_own_are_nobody_outside(bench: Bench) -> None:
    root = Path(bench.config["root"]["path"])
    for one in (bench.folder, *bench.folder.parents[:-2]):
        if one.stat().st_mode & 0o005 != 0o005:
            one.chmod(one.stat().st_mode | 0o055)
    mapping = [{"containerID": 0, "hostID": 1 << 30, "size": 65536}]
    bench.config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    bench.config["linux"]["namespaces"].append({"type": "user"})
    assert root.exists()
    pid = bench.running()
    assert status_of(pid)["Uid"].split() == [str(1 << 30)] * 4
    done = bench.executed("sh", "-c", "id -u; touch /proc/sys/kernel/core_pattern 2>/dev/null || echo refused")
    assert done.stdout.split() == ["0", "refused"]


def _python_of_everybody() -> tuple[str, ...]:
    """The command of the runtime for a user who may not get to where this interpreter is."""
    program = tiers.own_runtime_command()[-1]
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        command = (python, "-I", "-S", program)
        if subprocess.run([*AS_NOBODY, *command, "--version"], capture_output=True, check=False).returncode == 0:
            break
    else:
        backends.missing("no Python that every user may start", enable="apt-get install python3")
    return command


@pytest.mark.parametrize("is_root_inside", [True, False], ids=["root_of_a_namespace", "plain"])
def test_ordinary_user_has_containers_with_the_same_walls(bench: Bench, is_root_inside: bool) -> None:
    """SPEC B127: both as root of a namespace that was made before, and with one that the runtime makes."""
    for program in ("setpriv", "unshare"):
        if process.find(program) is None:
            backends.missing(f"no {program}", enable="apt-get install util-linux")
    runtime = _python_of_everybody()
    with tempfile.TemporaryDirectory(prefix="cxc-nobody-") as name:
        folder = Path(name)
        shutil.copytree(bench.config["root"]["path"], folder / "rootfs", symlinks=True)
        config = {**bench.config, "root": {"path": "rootfs", "readonly": True}, "linux": {**bench.config["linux"]}}
        config["linux"]["resources"] = {"devices": config["linux"]["resources"]["devices"]}
        del config["linux"]["cgroupsPath"]
        script = "id -u; echo > /dev/null && cat /proc/keys && (touch /x || echo > /proc/sys/kernel/hostname); cat /proc/self/status"
        config["process"]["args"] = ["sh", "-c", f"({script}) 2>/dev/null"]
        if not is_root_inside:
            one = [{"containerID": 0, "hostID": NOBODY, "size": 1}]
            config["linux"] |= {"uidMappings": one, "gidMappings": one}
            config["linux"]["namespaces"] = [*config["linux"]["namespaces"], {"type": "user"}]
        (folder / "config.json").write_text(json.dumps(config))
        for one_path in (folder, *folder.rglob("*")):
            os.chown(one_path, NOBODY, NOBODY, follow_symlinks=False)
        inside = ("unshare", "--map-root-user", "--mount", "--propagation", "slave") if is_root_inside else ()
        command = [*AS_NOBODY, *inside, *runtime, "--root", f"{folder}/state", "run", "--bundle", str(folder), "x"]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    found = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert (first, found["Seccomp"], found["NoNewPrivs"]) == ("0", "2", "1")
    assert int(found["CapBnd"], 16) == sum(1 << seccomp._CAPABILITIES.index(one) for one in bundle.DEFAULT_CAPABILITIES)


# ------------------------------------------------------------------------------------------------------------- its life


def test_life_of_a_container_is_told_step_by_step(bench: Bench) -> None:
    pid = bench.created()
    assert bench.status() == "created"
    bench.ok("start", bench.id)
    assert bench.status() == "running"
    assert bench.told("start", bench.id).returncode != 0
    assert "not stopped" in bench.told("delete", bench.id).stderr
    found = state.process(pid)
    assert found is not None
    bench.ok("kill", bench.id, "KILL")
    assert state.wait_for_end(found, seconds=SECONDS)
    assert bench.status() == "stopped"
    assert "not running" in bench.told("kill", bench.id, "TERM").stderr
    bench.ok("delete", bench.id)
    assert "does not exist" in bench.told("state", bench.id).stderr
    assert list(bench.state.iterdir()) == []
    assert groups.of_container(bench.id) == []


def test_frozen_container_stands_still_until_it_goes_on(bench: Bench) -> None:
    bench.running()
    bench.ok("pause", bench.id)
    assert bench.status() == "paused"
    assert "paused, not running" in bench.executed("true").stderr
    bench.ok("resume", bench.id)
    assert bench.executed("true").returncode == 0
    bench.ok("pause", bench.id)
    bench.ok("delete", "--force", bench.id)


def test_limits_change_while_it_runs(bench: Bench) -> None:
    pid = bench.running()
    for changed in (Limits(memory_bytes=256 * 1024**2, pids_limit=99), Limits(memory_bytes=32 * 1024**2, cpus=1.0)):
        bench.ok("update", "--resources", "-", bench.id, stdin=json.dumps(limits.update_document(changed)))
        assert set(limits.enforced(pid, changed).values()) == {"cgroup"}
    assert bench.told("update", "--resources", "-", bench.id, stdin='{"network": {}}').returncode != 0


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 77", 77), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_exit_code_of_a_run_and_of_a_command_is_the_programs(bench: Bench, script: str, code: int) -> None:
    bench.running()
    assert bench.executed("sh", "-c", script).returncode == code
    bench.ok("delete", "--force", bench.id)
    # The first process of its own is not ended by signals that it does not wait for.
    if code < 128:
        assert bench.said("sh", "-c", script)[0] == code


def test_command_is_written_down_once_it_runs(bench: Bench) -> None:
    bench.running()
    assert bench.executed("true").returncode == 0
    assert int((bench.folder / "exec.pid").read_text()) > 1
    (bench.folder / "exec.pid").unlink()
    assert bench.executed("nothing").returncode == 127
    assert not (bench.folder / "exec.pid").exists()


def _not_executable(root: Path) -> str:
    (root / "text").write_text("x")
    return "/text"


def _no_program(root: Path) -> str:
    (root / "garbage").write_bytes(b"\x7fELF" + bytes(100))
    (root / "garbage").chmod(0o755)
    return "/garbage"


UNSTARTED: dict[str, Callable[[Path], str]] = {
    "missing": lambda _: "nothing",
    "missing_path": lambda _: "/no/thing",
    "folder": lambda _: "/bin",
    "not_executable": _not_executable,
    "no_program": _no_program,
}


@pytest.mark.parametrize("kind", UNSTARTED)
def test_program_that_cannot_be_started_is_told_in_words_that_are_understood(bench: Bench, kind: str) -> None:
    name = UNSTARTED[kind](Path(bench.config["root"]["path"]))
    code, said = bench.said(name)
    assert code in (126, 127)
    assert life._NOT_STARTED.search(said), said
    bench.running()
    done = bench.executed(name)
    assert done.returncode in (126, 127)
    assert life._NOT_STARTED.search(done.stderr), done.stderr


def test_failed_creation_leaves_nothing(bench: Bench) -> None:
    bench.config["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]})
    code, said = bench.said("true")
    assert code != 0
    assert "/no/such" in said
    assert list(bench.state.iterdir()) == []
    assert groups.of_container(bench.id) == []


def test_two_containers_of_one_name_are_refused(bench: Bench) -> None:
    bench.running()
    done = bench.told("create", "--bundle", str(bench.folder), bench.id)
    assert done.returncode != 0
    assert "exists already" in done.stderr
    assert bench.status() == "running"


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\nb", "."])
def test_name_that_is_none_is_refused(bench: Bench, name: str) -> None:
    bench.put("config.json", {**bench.config})
    assert bench.told("create", "--bundle", str(bench.folder), name).returncode != 0
    assert bench.told("state", name).returncode != 0


# --------------------------------------------------------------------------------------------------- what is not known

UNKNOWN: dict[str, dict[str, Any]] = {
    "hooks": {"hooks": {"prestart": []}},
    "terminal": {"process": {"terminal": True}},
    "label": {"process": {"selinuxLabel": "x"}},
    "no_program": {"process": {"args": []}},
    "power": {"process": {"capabilities": {"bounding": ["CAP_EVERYTHING"]}}},
    "limit": {"process": {"rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]}},
    "umask": {"process": {"user": {"uid": 0, "gid": 0, "umask": 7}}},
    "sysctl": {"linux": {"sysctl": {"a": "b"}}},
    "device": {"linux": {"devices": [{"path": "/dev/sda"}]}},
    "namespace": {"linux": {"namespaces": [{"type": "time"}]}},
    "host_processes": {"linux": {"namespaces": [{"type": "mount"}]}},
    "device_rule": {"linux": {"resources": {"devices": [{"allow": True, "access": "r", "type": "c"}]}}},
    "resource": {"linux": {"resources": {"hugepageLimits": [{}]}}},
    "open_filter": {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}},
    "compiled_filter": {"annotations": {seccomp.ANNOTATION: "AAAA"}},
    "mount_kind": {"mounts": [{"destination": "/x", "type": "ext4", "source": "/dev/sda", "options": []}]},
    "mount_option": {"mounts": [{"destination": "/x", "type": "tmpfs", "source": "x", "options": ["tmpcopyup"]}]},
    "mount_place": {"mounts": [{"destination": "x", "type": "tmpfs", "source": "x", "options": []}]},
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_is_refused(bench: Bench, what: str) -> None:
    """SPEC B129."""
    for name, value in UNKNOWN[what].items():
        known = bench.config.get(name)
        bench.config[name] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
    bench.put("config.json", bench.config)
    done = bench.told("create", "--bundle", str(bench.folder), bench.id)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not bench.state.exists() or list(bench.state.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{", "{} x", '{"process": 3}', "\udc80", "[" * 10_000])
def test_configuration_that_is_damaged_is_refused(bench: Bench, text: str) -> None:
    (bench.folder / "config.json").write_text(text, "utf-8", "surrogateescape")
    done = bench.told("create", "--bundle", str(bench.folder), bench.id)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------------- the filter of calls


def answered(filter: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the kernel would answer: the filter is run as it runs it."""
    program = list(FORMAT.iter_unpack(filter))
    data = DATA.pack(
        number, own_syscalls.ARCHITECTURES.get(machine, 0x40000003), 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6]
    )
    at = word = 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        match code:
            case 0x20:
                word = struct.unpack_from("=I", data, value)[0]
            case 0x54:
                word &= value
            case 0x05:
                at += value
            case 0x15:
                at += yes if word == value else no
            case 0x35:
                at += yes if word >= value else no
            case 0x06:
                return int(value)


def wanted(profile: Mapping[str, Any], name: str, *arguments: int) -> int:
    """What the profile says, read as it is written."""
    for rule in profile["syscalls"]:
        if name not in rule["names"]:
            continue
        met = [
            (arguments[one["index"]] if one["index"] < len(arguments) else 0) & one["value"] == one["valueTwo"]
            for one in rule.get("args", ())
        ]
        if all(met):
            return ALLOWED if rule["action"] == "SCMP_ACT_ALLOW" else 0x50000 | int(rule["errnoRet"])
    return 0x50000 | int(profile["defaultErrnoRet"])


ARGUMENTS = (0, 1, 2, 8, 16, 17, 38, 40, 45, 46, 0x20000, 0x40000, 0x10000000, 0x7E020000, 2**32 - 1, 2**32, 2**64 - 1)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("powers", [(), bundle.DEFAULT_CAPABILITIES, ("SYS_ADMIN",), ("SYS_PTRACE", "BPF", "SYS_NICE")])
def test_filter_answers_every_call_as_its_profile_says(machine: str, powers: tuple[str, ...]) -> None:
    profile = seccomp.profile(powers, machine=machine)
    made = own_filter.compiled(profile, machine)
    for name, number in own_syscalls.numbers(machine).items():
        for argument in ARGUMENTS:
            assert answered(made, machine, number, argument) == wanted(profile, name, argument), (name, argument)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_convention_and_of_no_name_are_never_let_through(machine: str) -> None:
    made = own_filter.compiled(seccomp.profile((), machine=machine), machine)
    known = set(own_syscalls.numbers(machine).values())
    for number in (*range(1000), own_syscalls.FIRST_OF_X32, own_syscalls.FIRST_OF_X32 + 1, 2**32 - 1):
        assert answered(made, "another", number) == KILLED
        if number not in known:
            assert answered(made, machine, number) == NO_SUCH_CALL
    assert answered(made, machine, own_syscalls.numbers(machine)["mount"]) == REFUSED


def test_names_in_the_profile_are_those_of_the_table() -> None:
    """A call that is refused by name must have a number here, or be one of another machine."""
    every = set(own_syscalls.numbers("x86_64")) | set(own_syscalls.numbers("aarch64"))
    names = {name for rule in seccomp.profile((), machine="x86_64")["syscalls"] for name in rule["names"]}
    assert {"read", "mount", "io_uring_setup", "landlock_create_ruleset", "file_setattr"} <= every & names
    assert len(own_syscalls.numbers("x86_64")) == len(set(own_syscalls.numbers("x86_64").values()))


@pytest.mark.parametrize(
    "rule",
    [
        {"names": ["read"], "action": "SCMP_ACT_NOTIFY"},
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GT"}]},
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "more": 1},
    ],
)
def test_rule_that_is_not_known_is_refused(rule: dict[str, Any]) -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}
    with pytest.raises(own_filter.Unknown):
        own_filter.compiled(profile, "x86_64")


def test_runtime_imports_nothing_that_takes_long() -> None:
    script = (
        f"import sys; sys.path.append({str(Path(tiers.__file__).parents[3])!r})\n"
        "from codomyrmex_containerization.engines.embedded import own_commands\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert not {"re", "json", "pathlib", "enum", "signal", "socket", "subprocess", "dataclasses"} & set(
        done.stdout.split()
    )
