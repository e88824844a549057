"""What is the life of a container here: made, prepared, started, ended, removed, found again after a crash?

Every step is taken under the container's lock and leaves a record that tells the next process how far it came. Nothing watches: whoever
looks at a container whose program has ended takes away what it was surrounded with.
"""

from __future__ import annotations

import functools
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines import process_counters
from codomyrmex_containerization.engines.embedded import (
    bandwidth,
    begun,
    binds,
    bundle,
    content,
    disk,
    events,
    fallback,
    host_image,
    idmaps,
    isolation,
    limits,
    lives,
    mounts,
    network,
    objects,
    overlay,
    probe,
    recovery,
    restarts,
    runtime,
    seccomp,
    shapes,
    state,
    tiers,
    tries,
    users,
    volumes,
)
from codomyrmex_containerization.engines.embedded.state import Record
from codomyrmex_containerization.models.container import (
    ContainerSpec,
    ContainerStatus,
    HealthStatus,
    Limits,
    Mount,
    MountPoint,
)
from codomyrmex_containerization.models.details import NetworkAttachment

_ANONYMOUS = re.compile(r"[0-9a-f]{64}\Z")
_OTHERS = "use docker or podman"
NO_CGROUPS = "there are no control groups that this user may use"
_PASSAGES = Path("/run/codomyrmex-containerization-strict")
_KILL_SECONDS = 10.0
_ENDING_SECONDS = 0.2
_BY_CONTROL_GROUP = frozenset({"memory_bytes", "memory_reservation_bytes", "cpus", "cpu_shares", "pids_limit"})
_NOT_STARTED = re.compile(
    r"executable file|no such file|not found|permission denied|exec format|is a directory|not a directory|exec:|execve|open executable",
    re.IGNORECASE,
)


class House:
    """All of one engine's stores, and what is done to containers in them; every method blocks."""

    def __init__(self, folders: objects.Folders, *, engine: str, tier: tiers.Tier | None = None) -> None:
        self.engine = engine
        self.tier = tier  # None: the best that works
        self.folders = folders
        for folder in (folders.data, folders.run):
            _make_folder(folder)
        lives.show(folders.run, self)
        self.containers = state.Containers(folders, engine=engine)
        self.images = content.ContentStore(folders, engine=engine)
        self.volumes = volumes.VolumeStore(folders, engine=engine)
        self.networks = network.Networks(folders, engine=engine)
        self.journal = events.Journal(folders.data / "events", engine=engine)
        self.places = binds.Places(folders.run / "binds", own=folders.data)
        self.passages = binds.Places(_PASSAGES, own=folders.data)
        self.filters = seccomp.FilterCache(folders.data / "seccomp")
        self.begun = begun.Notes(folders.data / "begun")
        self._found: probe.Runtime | None = None
        self._runtime: runtime.Runtime | None = None

    # ----------------------------------------------------------------------------------------------------- what there is

    @property
    def found(self) -> probe.Runtime:
        """The OCI runtime that works here. Raises EngineUnavailable, naming what to install."""
        if self._found is None:
            self._found = probe.find_runtime(self.folders.data / "probe", tier=self.tier)
        return self._found

    @property
    def runtime(self) -> runtime.Runtime:
        """The runtime and what watches its containers. Raises EngineUnavailable."""
        if self._runtime is None:
            monitor, _ = probe.find_monitor(self.found.tier)
            self._runtime = runtime.Runtime(
                self.found.path,
                monitor,
                self.folders,
                prefix=self.found.prefix,
                is_always_prefixed=self.found.is_always_prefixed,
            )
        return self._runtime

    @functools.cached_property
    def powers(self) -> tuple[str, ...]:
        """The capabilities that a container can be given here."""
        return seccomp.all_capabilities()

    def note(self, record: Record, action: str, **attributes: str) -> None:
        """Remember that something happened to a container."""
        self.journal.note(
            "container", action, record.id, record.name, {"image": record.spec.image, **record.labels, **attributes}
        )

    def look(self, text: str) -> Record:
        """Return a container as it is now. Raises NotFound, Ambiguous."""
        try:
            return self.fresh(self.containers.find(text))
        except errors.NotFound:
            damaged = self.containers.find_damaged(text)
            if damaged is None:
                raise
            return self.containers.stand_in(damaged)

    def all(self) -> list[Record]:
        """Return all containers as they are now, the newest first."""
        found = []
        for record in self.containers.all():
            with suppress(errors.NotFound):
                found.append(self.fresh(record))
        for id in self.containers.damaged():
            with suppress(errors.NotFound):
                found.append(self.containers.stand_in(id))
        return found

    def fresh(self, record: Record) -> Record:
        """Return a record that knows of its program's end. Raises NotFound when it has just gone."""
        if not self._is_other(record):
            return record
        with self.containers.hold(record.id) as now:
            return self._settled(now)

    def first_pids(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of the first processes of those containers that run."""
        found: dict[str, int] = {}
        for one in ids:
            with suppress(errors.NotFound):
                record = self.containers.read(one)
                if record.first is not None and record.first.is_alive:
                    found[record.id] = record.first.pid
        return found

    def process_namespace(self, container_id: str) -> int | None:
        """Return the number of a container's namespace of processes, by which they are known where no control group names it."""
        if self.found.cgroups != "none":
            return None
        first = self.first_pids([container_id]).get(container_id)
        return None if first is None else process_counters.namespace(first)

    def ends(self) -> int:
        """Return a number that changes whenever a container's program ends."""
        try:
            return self.folders.exits.stat().st_mtime_ns
        except OSError:
            return 0

    def _is_other(self, record: Record) -> bool:
        return self._has_ended(record) or _is_stranded(record) or self._is_left(record.id)

    def _is_left(self, container_id: str) -> bool:
        note = self.begun.read(container_id) if self.begun.has(container_id) else None
        return note is not None and note.is_left

    @staticmethod
    def _has_ended(record: Record) -> bool:
        return record.status in ("running", "paused") and not (record.first and record.first.is_alive)

    def image(self, reference: str) -> objects.Image:
        """Return an image of the store, or this machine. Raises NotFound, Ambiguous."""
        return host_image.image() if host_image.is_meant(reference) else self.images.image(reference)

    def layers(self, image: objects.Image) -> Sequence[Path]:
        """Return an image's layers, the lowest first."""
        if image.id == host_image.ID:
            return (host_image.folder(self.folders.data),)
        return self.images.layer_folders(image)

    # ------------------------------------------------------------------------------------------------------------- made

    def create(self, spec: ContainerSpec, *, upper: Path | None = None) -> Record:
        """Enter a container, with what is in `upper` as its own files. What cannot be honoured is refused, never left out."""
        _require_possible(spec)
        spec = isolation.completed(spec, enforceable=self._enforceable(spec))
        if isolation.is_strict(spec):
            idmaps.require(self.folders.data)
        image = self.image(spec.image)
        name = (spec.name or "").removeprefix("/") or self.containers.new_name()
        state.require_name(name)
        self._require_limits(spec, spec.limits)
        disk.require(self.folders.containers, spec.limits.disk_bytes)
        bandwidth.require(self.folders.containers, spec.limits)
        networks = self._networks_of(spec)
        record = Record(
            id=state.new_id(),
            name=name,
            created=state.now(),
            spec=spec,
            image=image,
            networks=networks,
            limits=spec.limits,
            restart=spec.restart,
            ports=spec.ports,
            labels={**image.config.labels, **spec.labels},
        )
        if not (*record.entrypoint, *record.command):
            raise errors.InvalidArgument("No command was given, and the image has none.", hint="pass a command")
        self._require_free(name)
        made: list[str] = []
        try:
            record = self.containers.add(replace(record, mounts=self._mount_points(record, made)), upper=upper)
        except BaseException:
            for volume in made:
                with suppress(errors.ContainerizationError):
                    self.volumes.remove(volume, users={}, force=True)
            raise
        finally:
            self.begun.drop(record.id)
        self.note(record, "create")
        return record

    def _enforceable(self, spec: ContainerSpec) -> frozenset[str]:
        return self.found.limits | fallback.possible(spec, self.powers)

    def _require_limits(self, spec: ContainerSpec, wanted: Limits) -> None:
        limits.resources(wanted)
        given = {name for name, value in limits.plain(wanted).items() if value is not None}
        missing = sorted(given & _BY_CONTROL_GROUP - self._enforceable(spec))
        if missing:
            raise errors.Unsupported(
                f"{self.engine} cannot limit {' and '.join(missing)} here: there is no control group for it.",
                hint="leave the limit out, run as root where control groups are, or use docker or podman",
            )

    def _require_groups(self, what: str) -> None:
        if self.found.cgroups == "none":
            raise errors.Unsupported(
                f"{self.engine} cannot {what} here: {NO_CGROUPS}.",
                hint="run as root, or use engine='docker' or 'podman'",
            )

    def _require_free(self, name: str) -> None:
        # Before volumes are made; whoever is quicker all the same is noticed when the name is taken.
        with suppress(errors.NotFound):
            holder = self.containers.find(name)
            if holder.name == name:
                raise errors.Conflict(
                    f"The name {name!r} is already in use by container {holder.id[:12]}.",
                    hint="choose another name, or remove that container first",
                )

    def _networks_of(self, spec: ContainerSpec) -> tuple[tuple[str, tuple[str, ...]], ...]:
        wanted = "bridge" if spec.network in (None, "default") else str(spec.network)
        return ((self.networks.find(wanted).name, ()),)

    def _mount_points(self, record: Record, made: list[str]) -> tuple[MountPoint, ...]:
        given = {mount.target.rstrip("/") or "/": mount for mount in record.spec.mounts}
        for target in record.image.config.volumes:
            given.setdefault(target.rstrip("/") or "/", Mount("volume", target))
        return tuple(self._mount_point(record, mount, made) for mount in given.values())

    def _mount_point(self, record: Record, mount: Mount, made: list[str]) -> MountPoint:
        if not mount.target.startswith("/") or ".." in mount.target.split("/"):
            raise errors.InvalidArgument(f"{mount.target!r} is no place to mount at.", hint="give an absolute path")
        if mount.type == "tmpfs":
            return MountPoint("tmpfs", "", mount.target, mount.read_only)
        if mount.type == "bind":
            binds.require(mount.source)
            return MountPoint("bind", mount.source, mount.target, mount.read_only)
        name = mount.source
        if name:
            known = {row.name for row in self.volumes.rows({})}
            folder = self.volumes.ensure(name, mount.labels)
            if name not in known:
                made.append(name)
        else:
            name = state.new_id()
            made.append(name)
            unnamed = [one for one in made if _ANONYMOUS.match(one)]
            self.begun.write(record.id, self.containers.folder(record.id), volumes=unnamed)
            folder = self.volumes.ensure(name, mount.labels, made_for=record.id)
        return MountPoint("volume", str(folder), mount.target, mount.read_only, name)

    # --------------------------------------------------------------------------------------------------------- prepared

    def prepare(self, container_id: str, *, stdin: bool = False) -> Record:
        """Give a container its file system, its network and its processes' walls, so that it only waits to be started."""
        with self.containers.hold(container_id) as record:
            return record if record.is_alive else self._prepared(record, stdin=stdin)

    def _prepared(self, record: Record, *, stdin: bool = False) -> Record:
        if record.prepared and record.first and record.first.is_alive:
            return record
        if not _is_untouched(record) or self.begun.has(record.id):
            self._take_down(record)
        self.begun.write(record.id, self.containers.folder(record.id))
        try:
            self.mount(record, as_its_own=True)
            attached = self.connect_networks(record)
            folder = self.containers.folder(record.id)
            uncompiled = self.write_bundle(record, folder, attached)
            command = self._exit_command(record)
            made = self.runtime.create(record.id, folder, stdin=stdin or record.spec.stdin_open, exit_command=command)
            bandwidth.require_held(made.pid, record.limits, folder)
            for places in (self.places, self.passages):
                places.clear(record.id)
            if uncompiled is not None:
                self.filters.put_from(uncompiled, self.found.version, self.folders.runtime / record.id)
        except BaseException as error:
            self._take_down(record)
            self.begun.drop(record.id)
            raise self._said(error, record) from error
        ports, attachments = (attached.ports, attached.networks) if attached else (record.spec.ports, ())
        return self.containers.write(
            replace(
                record,
                prepared=True,
                first=state.process(made.pid),
                monitor=state.process(made.monitor_pid),
                ports=ports,
                attachments=attachments,
            )
        )

    def mount(self, record: Record, *, as_its_own: bool = False) -> None:
        """Put a container's file system together at its folder `merged`, `as_its_own` users see it; the container is held."""
        folder = self.containers.folder(record.id)
        with disk.room(folder, record.limits.disk_bytes) as (upper, work):
            self._mount(record, folder / "merged", upper=upper, work=work, as_its_own=as_its_own)
        for mount in record.mounts if record.started_at is None else ():
            if mount.type == "volume":
                self.volumes.fill(mount.name, folder / "merged", mount.target)

    def _mount(self, record: Record, target: Path, *, upper: Path, work: Path, as_its_own: bool) -> None:
        found = self.layers(record.image)
        if as_its_own and isolation.is_strict(record.spec):
            numbers = idmaps.range_of(record.id)
            idmaps.mount(
                found,
                upper=upper,
                work=work,
                target=target,
                numbers=numbers,
                places=self.places,
                container_id=record.id,
            )
        else:
            overlay.mount(found, upper=upper, work=work, target=target)

    def connect_networks(self, record: Record) -> network.Attached | None:
        """Give a container its network; None for the host's own."""
        if any(name == "host" for name, _ in record.networks):
            return None
        return self.networks.set_up(record.id, name=record.name, networks=record.networks, ports=record.spec.ports)

    def write_bundle(self, record: Record, folder: Path, attached: network.Attached | None) -> Mapping[str, Any] | None:
        """Write down in a folder what the runtime is to make of the file system in its folder `merged`.

        Returns the profile of system calls that the runtime has to compile, where its filter can be kept for the next time.
        """
        merged = folder / "merged"
        words, hidden = [*record.entrypoint, *record.command], [mount.target for mount in record.mounts]
        programs = Path("/") if record.image.id == host_image.ID else merged
        users.require_program(words, programs, env=record.env, workdir=record.workdir, hidden=hidden)
        powers = bundle.capabilities(record, self.powers)
        profile = seccomp.profile(powers) if isolation.is_filtered(record.spec) else None
        numbers = idmaps.range_of(record.id) if isolation.is_strict(record.spec) else None
        user = users.find(record.user, merged)
        if numbers is not None and max(user.uid, user.gid, *user.groups, 0) >= idmaps.SIZE:
            raise errors.InvalidArgument(
                f"isolation='strict' has users 0 to {idmaps.SIZE - 1}; {record.user} is none of them.",
                hint="choose a user with a smaller number",
            )
        keeps = profile is not None and self.found.kind == "crun"
        compiled = self.filters.get(profile, self.found.version) if keeps and profile is not None else None
        around = bundle.Surroundings(
            root=str(self.passages.let_through(record.id, merged, group=numbers.first) if numbers else merged),
            user=user,
            # A namespace of its own users: nobody else's may show it its network's settings.
            netns=str(attached.netns) if attached and attached.netns and numbers is None else None,
            host_network=attached is None,
            cgroup=limits.cgroup_path(record.id) if self.found.cgroups != "none" else "",
            resources={
                **limits.resources(fallback.counted(record.limits, self.found.limits)),
                **bandwidth.resources(record.limits, folder),
            },
            rlimits=fallback.rlimits(record, self.found.limits),
            seccomp=profile if compiled is None else None,
            annotations={} if compiled is None else {seccomp.ANNOTATION: compiled},
            files=self._files(record, folder, attached),
            init=_init(),
            mounts=self._placed(record, numbers),
            users=numbers,
            programs=host_image.binds() if record.image.id == host_image.ID else (),
        )
        # Not forced to the disk: it is written anew for each start.
        described = bundle.encoded(bundle.config(record, around, powers=powers))
        state.write_whole(folder / "config.json", described, forced=False)
        return profile if keeps and compiled is None else None

    def _placed(self, record: Record, numbers: idmaps.Range | None) -> Sequence[MountPoint]:
        if numbers is None:
            return self.places.put(record.id, record.mounts)
        with idmaps.namespace(numbers) as own:
            return self.places.put(record.id, record.mounts, users=own)

    @staticmethod
    def _files(record: Record, folder: Path, attached: network.Attached | None) -> dict[str, str]:
        names = (
            [f"{one.ip_address}\t{record.hostname} {record.name}" for one in attached.networks if one.ip_address]
            if attached
            else []
        )
        lines = {
            "hosts": ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", *names],
            "hostname": [record.hostname],
            "resolv.conf": [f"nameserver {one}" for one in attached.nameservers] if attached else _host_resolver(),
        }
        for name, text in lines.items():
            # Written in place: a container that runs has the file itself.
            (folder / name).write_text("".join(f"{line}\n" for line in text))
            (folder / name).chmod(0o644)
        return {f"/etc/{name}": str(folder / name) for name in lines}

    def _exit_command(self, record: Record) -> Sequence[str]:
        if record.restart.name == "no":
            return ()
        return restarts.command(self.folders, self.engine, record.id)

    def _said(self, error: BaseException, record: Record) -> BaseException:
        if not isinstance(error, runtime.RuntimeFailed):
            return error
        return self.refusal(str(error), f"starting container {record.name}")

    def refusal(self, reason: str, doing: str) -> errors.ContainerizationError:
        """Return the error for what the runtime refused."""
        said = f"{self.engine} says, while {doing}: {reason}"
        if _NOT_STARTED.search(reason):
            return errors.CommandFailed(said, hint=users.PROGRAM_HINT)
        return errors.EngineUnavailable(said, hint="look at the reason; container_runtime_status says what works here")

    # ---------------------------------------------------------------------------------------------------------- started

    def start(self, text: str) -> Record:
        """Start a container; one that runs stays as it is. Raises NotFound, Conflict (frozen, port taken), CommandFailed."""
        with self.containers.hold(self.look(text).id) as record:
            if record.status == "paused":
                raise errors.Conflict(f"Container {record.name} is paused.", hint="unpause it first")
            if record.is_alive:
                return record
            return self.begin(replace(record, restart_count=0))

    def begin(self, record: Record) -> Record:
        """Start a container that is held."""
        if record.stopped_by_hand:
            record = self.containers.write(replace(record, stopped_by_hand=False))
        try:
            ready = replace(self._prepared(record), restart_count=record.restart_count)
            self.begun.write(record.id, self.containers.folder(record.id))
            self.runtime.start(record.id)
        except runtime.RuntimeFailed as error:
            self._take_down(record)
            failure = self.refusal(str(error), f"starting container {record.name}")
            self._not_started(record, failure)
            raise failure from error
        except errors.ContainerizationError as error:
            self._not_started(record, error)
            raise
        health: HealthStatus = "starting" if shapes.healthcheck(record) is not None else "none"
        running = self.containers.write(
            replace(
                ready,
                status="running",
                started_at=state.now(),
                finished_at=None,
                exit_code=None,
                oom_killed=False,
                error="",
                health=health,
                health_failures=0,
                health_output="",
            )
        )
        self.begun.drop(record.id)
        self.note(running, "start")
        return running

    def _not_started(self, record: Record, error: errors.ContainerizationError) -> None:
        code = 127 if isinstance(error, errors.CommandFailed) else 126
        status: ContainerStatus = "created" if record.started_at is None else "exited"
        self.containers.write(
            replace(
                record, status=status, prepared=False, first=None, monitor=None, error=error.message, exit_code=code
            )
        )
        self.begun.drop(record.id)

    # ------------------------------------------------------------------------------------------------------------ ended

    def _finished(self, record: Record, *, is_removed: bool = False) -> Record:
        """Note a program's end and take down what surrounded it; the container is held. One that `is_removed` next needs no record."""
        code, moment = self._exit(record)
        folder = self.containers.folder(record.id)
        oom = limits.oom_killed(record.id, folder)
        with suppress(
            errors.EngineUnavailable
        ):  # a network that cannot be taken down now stays noted, and is tried again
            self.take_down(record.id, folder, first=record.first, keeps_exit=True)
        # It is conmon that has it started again.
        is_watched = record.monitor is not None and record.monitor.is_alive
        is_wanted = restarts.is_to_run_again(record, code)
        again = is_watched and is_wanted
        ended = replace(
            record,
            status="restarting" if again else "exited",
            prepared=False,
            first=None,
            monitor=record.monitor if again else None,
            exit_code=code,
            finished_at=moment,
            oom_killed=oom,
            error=restarts.why_ended(code, is_forsaken=is_wanted and not again),
            ports=record.spec.ports,
            attachments=(),
        )
        try:
            if not is_removed:
                self.containers.write(ended)
        except errors.EngineUnavailable:
            return ended  # no room to write it down: the next look finds the same
        self._forget_exit(record.id)
        with suppress(errors.EngineUnavailable):
            if oom:
                self.note(ended, "oom")
            self.note(ended, "die", exitCode="" if code is None else str(code))
        return ended

    def _exit(self, record: Record) -> tuple[int | None, datetime]:
        path = self.folders.exits / record.id
        if record.monitor is not None and record.monitor.is_alive:
            # It writes the code once the last output was read.
            _wait_for_file(path, record.monitor)
        try:
            moment = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
            return int(path.read_text()), moment
        except (OSError, ValueError):
            return None, state.now()

    def _forget_exit(self, container_id: str) -> None:
        with suppress(OSError):
            (self.folders.exits / container_id).unlink()

    def _take_down(self, record: Record) -> None:
        self.take_down(record.id, self.containers.folder(record.id), first=record.first)

    def take_down(
        self, container_id: str, folder: Path, *, first: state.Process | None = None, keeps_exit: bool = False
    ) -> None:
        """Take away a container's walls, network and mounts; all that is not there is left alone. Raises EngineUnavailable.

        `first` is its first process, where that is known.
        """
        if self._is_left(container_id):
            begun.end_strays(self.folders, container_id)
            self.networks.end_strays()
        self._delete(container_id, first)
        if limits.remove_cgroups(container_id):
            begun.kill_group(container_id)
            limits.remove_cgroups(container_id)
        self.networks.tear_down(container_id)
        for places in (self.places, self.passages):
            places.clear(container_id)
        disk.take_down(folder)
        if not keeps_exit:
            self._forget_exit(container_id)

    def _delete(self, container_id: str, first: state.Process | None) -> None:
        """Have the runtime forget a container; where it cannot, end what is in the container's group and forget it ourselves."""
        known = self.folders.runtime / container_id
        if not known.exists():
            return
        # With a namespace's first process the kernel has ended all others: the runtime has nothing left to end.
        if first is None or first.is_alive:
            try:
                self.runtime.delete(container_id)
            except (runtime.RuntimeFailed, errors.DeadlineExceeded, errors.EngineUnavailable):
                begun.kill_group(container_id)
        shutil.rmtree(known, ignore_errors=True)

    def signal(self, text: str, name: str) -> Record:
        """Send a signal to a container's program. Raises NotFound, Conflict (not running), InvalidArgument (no such signal)."""
        record = self.look(text)
        number = users.signal_number(name)
        if record.status not in ("running", "paused"):
            raise errors.Conflict(f"Container {record.name} is not running.", hint="start it first")
        with suppress(runtime.RuntimeFailed):
            if record.status == "paused" and number == users.KILL:
                self.runtime.resume(record.id)
        try:
            if record.first is not None:
                begun.send(record.first, number)
        except OSError as error:
            reason = error.strerror or str(error)
            raise errors.EngineUnavailable(
                f"{self.engine} cannot send {name} to {record.name}: {reason}.", hint="run as the user who started it"
            ) from error
        self.note(record, "kill", signal=str(number))
        return record

    def stopped_by_hand(self, record: Record) -> None:
        """Remember that somebody wants a container not to run: its restart policy is void until it is started."""
        with self.containers.hold(record.id) as now:
            status: ContainerStatus = "exited" if now.status == "restarting" else now.status
            self.containers.write(replace(now, stopped_by_hand=True, status=status))

    def freeze(self, text: str, *, frozen: bool) -> None:
        """Freeze a container or let it go on. Raises NotFound, Conflict, Unsupported (no control groups)."""
        self._require_groups("pause a container")
        wanted: ContainerStatus = "running" if frozen else "paused"
        other: ContainerStatus = "paused" if frozen else "running"
        with self.containers.hold(self.look(text).id) as record:
            if record.status != wanted:
                raise errors.Conflict(
                    f"Container {record.name} is {record.status}, not {wanted}.",
                    hint="see its state with container_inspect",
                )
            with self._beginning(record.id):
                try:
                    (self.runtime.pause if frozen else self.runtime.resume)(record.id)
                except runtime.RuntimeFailed as error:
                    if record.first is not None and state.wait_for_end(record.first, seconds=_ENDING_SECONDS):
                        raise errors.Conflict(
                            f"Container {record.name} has just ended.", hint="see its state with container_inspect"
                        ) from error
                    raise self.refusal(str(error), f"{'pausing' if frozen else 'unpausing'} {record.name}") from error
                changed = self.containers.write(replace(record, status=other))
            self.note(changed, "pause" if frozen else "unpause")

    def update(self, text: str, changed: Limits) -> None:
        """Change a container's limits, now and for later starts. Raises NotFound, Unsupported, InvalidArgument."""
        self._require_groups("change limits")
        with self.containers.hold(self.look(text).id) as record:
            given = {name: value for name, value in limits.plain(changed).items() if value is not None}
            merged = replace(record.limits, **given)
            self._require_limits(record.spec, merged)
            document = limits.update_document(changed)
            if fixed := fallback.refused(given, is_running=record.is_alive, by_groups=self.found.limits):
                raise errors.Unsupported(
                    f"{' and '.join(fixed)} cannot be changed while a container runs: no control group holds it here.",
                    hint="stop the container, change the limit, and start it again",
                )
            if record.status in ("running", "paused"):
                try:
                    self.runtime.update(record.id, document)
                except runtime.RuntimeFailed as error:
                    raise self.refusal(str(error), f"changing the limits of {record.name}") from error
            self.note(self.containers.write(replace(record, limits=merged)), "update")

    def told_health(self, container_id: str, *, is_well: bool, output: str, retries: int, counts: bool) -> None:
        """Note what a health check has found; `counts` is False for a failure while the program is still given time."""
        with self.containers.hold(container_id) as record:
            if record.status != "running":
                return
            failures = 0 if is_well else record.health_failures + int(counts)
            health: HealthStatus = "healthy" if is_well else ("unhealthy" if failures >= retries else record.health)
            self.containers.write(replace(record, health=health, health_failures=failures, health_output=output))
        if health != record.health:
            self.note(record, f"health_status: {health}")

    # ---------------------------------------------------------------------------------------------------------- removed

    def remove(self, text: str, *, force: bool, with_volumes: bool) -> None:
        """Remove a container. Raises NotFound, Conflict (running and not forced)."""
        found = self.look(text)
        if found.status == "dead":
            self._remove_damaged(found.id, force=force, with_volumes=with_volumes)
            return
        if found.is_alive and not force:
            raise errors.Conflict(f"Container {found.name} is {found.status}.", hint="stop it first or pass force=true")
        with self.containers.hold(found.id) as record:
            record = self._settled(record)
            if record.is_alive:
                if not force:
                    raise errors.Conflict(
                        f"Container {record.name} is {record.status}.", hint="stop it first or pass force=true"
                    )
                record = self._killed(record)
            self._take_down(record)
            if record.restart.name != "no":
                begun.end_strays(self.folders, record.id, restarters=True)
            unnamed = [one.name for one in record.mounts if one.type == "volume" and _ANONYMOUS.match(one.name)]
            # Whether there is room or not: removing is what makes some.
            with suppress(errors.EngineUnavailable):
                self.begun.write(record.id, self.containers.folder(record.id), volumes=unnamed if with_volumes else ())
            self._erase(record.id, name=record.name)
        with suppress(errors.EngineUnavailable):
            self.note(record, "destroy")
        self._remove_volumes(unnamed if with_volumes else ())
        self.begun.drop(record.id)

    def _remove_damaged(self, container_id: str, *, force: bool, with_volumes: bool) -> None:
        if not force:
            raise errors.Conflict(
                f"The record of container {container_id[:12]} is damaged: it may be running.", hint="pass force=true"
            )
        with self.containers.hold_if_free(container_id) as is_free:
            if not is_free:
                raise errors.Conflict(f"Container {container_id[:12]} is in use now.", hint="try again")
            self.take_down(container_id, self.containers.folder(container_id))
            begun.end_strays(self.folders, container_id, restarters=True)
            # Its record would name them: they say themselves whose they are.
            unnamed = self.volumes.made_for(container_id) if with_volumes else ()
            with suppress(errors.EngineUnavailable):
                self.begun.write(container_id, self.containers.folder(container_id), volumes=unnamed)
            self._erase(container_id)
        self._remove_volumes(unnamed)
        self.begun.drop(container_id)

    def _remove_volumes(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(errors.ContainerizationError):
                self.volumes.remove(name, users=self.volume_users(), force=False)

    def _killed(self, record: Record) -> Record:
        record = replace(record, stopped_by_hand=True)
        if record.restart.name != "no":  # else nobody else would start it
            with suppress(errors.EngineUnavailable):  # no room to write it down: it is removed next
                self.containers.write(record)
        if record.first is not None and record.first.is_alive:
            with suppress(runtime.RuntimeFailed, errors.DeadlineExceeded, errors.EngineUnavailable):
                if record.status == "paused":
                    self.runtime.resume(record.id)
            begun.kill(record.first)
            if not state.wait_for_end(record.first, seconds=_KILL_SECONDS):
                raise errors.Conflict(
                    f"Container {record.name} does not end: the kernel holds its processes back.",
                    hint="try again later",
                )
        return self._finished(record, is_removed=True)

    def _erase(self, container_id: str, *, name: str | None = None) -> None:
        if not mounts.clear(self.containers.folder(container_id)):
            raise errors.Conflict(
                f"Something is still mounted in the folder of container {container_id[:12]}.", hint="try again later"
            )
        # The record goes first: what is left without one is nobody's, and is swept away at the next start.
        shutil.rmtree(self.containers.forget(container_id, name=name), ignore_errors=True)

    # ----------------------------------------------------------------------------------------------------- who uses what

    def volume_users(self) -> dict[str, list[str]]:
        """Return the names of the containers that mount each volume."""
        users: dict[str, list[str]] = {}
        for record in self.containers.all():
            for name in sorted({mount.name for mount in record.mounts if mount.type == "volume"}):
                users.setdefault(name, []).append(record.name)
        return users

    def network_users(self) -> dict[str, list[str]]:
        """Return the names of the containers that are connected to each network."""
        users: dict[str, list[str]] = {}
        for record in self.containers.all():
            for name, _ in record.networks:
                users.setdefault(name, []).append(record.name)
        return users

    def image_users(self) -> dict[str, list[str]]:
        """Return the names of the containers made of each image, by image id."""
        users: dict[str, list[str]] = {}
        for record in self.containers.all():
            users.setdefault(record.image.id, []).append(record.name)
        return users

    def connect(self, wanted: str, text: str, *, aliases: Sequence[str]) -> None:
        """Connect a container to a network. Raises NotFound, Conflict."""
        row = self.networks.find(wanted)
        network.check_names(aliases)
        with self.containers.hold(self.look(text).id) as record:
            if row.name in [name for name, _ in record.networks]:
                raise errors.Conflict(
                    f"Container {record.name} is connected to {row.name} already.", hint="there is nothing to do"
                )
            if row.name in ("none", "host") or any(name in ("none", "host") for name, _ in record.networks):
                raise errors.Conflict(
                    f"{row.name} cannot be had beside other networks.", hint="connect to a network that was created"
                )
            attachments = record.attachments
            with self._beginning(record.id):
                if record.is_alive:
                    self.networks.connect(record.id, row.name, aliases=aliases, name=record.name)
                    attachments = self._attachments(record)
                networks = (*record.networks, (row.name, tuple(aliases)))
                self.containers.write(replace(record, networks=networks, attachments=attachments))

    def disconnect(self, wanted: str, text: str, *, force: bool) -> None:
        """Disconnect a container from a network. Raises NotFound, Conflict."""
        row = self.networks.find(wanted)
        with self.containers.hold(self.look(text).id) as record:
            if row.name not in [name for name, _ in record.networks]:
                raise errors.Conflict(
                    f"Container {record.name} is not connected to {row.name}.",
                    hint="see its networks with container_inspect",
                )
            attachments = record.attachments
            with self._beginning(record.id):
                if record.is_alive:
                    self.networks.disconnect(record.id, row.name)
                    attachments = self._attachments(record)
                networks = tuple(one for one in record.networks if one[0] != row.name)
                self.containers.write(replace(record, networks=networks or (("none", ()),), attachments=attachments))

    @contextmanager
    def _beginning(self, container_id: str) -> Iterator[None]:
        """Note while the block lasts that something is done to a container that its record does not tell of yet."""
        self.begun.write(container_id, self.containers.folder(container_id))
        try:
            yield
        finally:
            self.begun.drop(container_id)

    def _attachments(self, record: Record) -> tuple[NetworkAttachment, ...]:
        attached = self.networks.attached(record.id)
        return attached.networks if attached is not None else ()

    # ---------------------------------------------------------------------------------------------------------- recovery

    def recover(self) -> list[str]:
        """After a crash or a reboot: note who has ended, take down what belongs to nobody. Returns what was found."""
        tries.sweep(self.folders.data / "probe")
        found = recovery.recover(self)
        self.images.tidy()
        return found

    def needs_care(self, record: Record) -> bool:
        """Whether a record is not as things are, or something is left that should have gone with its program."""
        if self._is_other(record):
            return True
        places = [self.folders.runtime / record.id, self.folders.run / "netns" / record.id]
        folder = self.containers.folder(record.id)
        return not _lives(record) and (any(one.exists() for one in places) or disk.is_up(folder))

    def care_for(self, record: Record) -> Record:
        """Bring a record and what there is together; the container is held."""
        now = self._settled(record)
        if not _lives(now):
            self._take_down(now)
        return now

    def _settled(self, record: Record) -> Record:
        if self._is_left(record.id):
            record = recovery.pick_up(self, record)
        if self._has_ended(record):
            return self._finished(record)
        if _is_stranded(record):
            return self.containers.write(replace(record, status="exited", monitor=None, error=restarts.FORSAKEN))
        return record


def _lives(record: Record) -> bool:
    return record.is_alive or (record.prepared and record.first is not None and record.first.is_alive)


def _is_untouched(record: Record) -> bool:
    """Whether nothing was ever set up for a container, unless a note tells of something that was begun."""
    return record.status == "created" and record.started_at is None and not record.prepared and record.exit_code is None


def _is_stranded(record: Record) -> bool:
    return record.status == "restarting" and not (record.monitor is not None and record.monitor.is_alive)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise errors.EngineUnavailable(
            f"The folder {path} cannot be made: {error.strerror}.", hint="make room and check the rights above it"
        ) from error


def _wait_for_file(path: Path, monitor: state.Process) -> None:
    step_seconds, left_seconds = 0.002, _KILL_SECONDS
    while not path.exists() and left_seconds > 0:
        if state.wait_for_end(monitor, seconds=step_seconds):
            return
        left_seconds -= step_seconds


def _init() -> str | None:
    return shutil.which("catatonit", path="/usr/libexec/podman:/usr/bin:/usr/local/bin")


def _host_resolver() -> list[str]:
    with suppress(OSError):
        return Path("/etc/resolv.conf").read_text("utf-8", "replace").splitlines()
    return []


def _require_possible(spec: ContainerSpec) -> None:
    if any(mount.type == "image" for mount in spec.mounts):
        raise errors.Unsupported("embedded mounts no images.", hint=_OTHERS)
    if spec.network is not None and spec.network.startswith(("container:", "ns:")):
        raise errors.Unsupported(f"embedded cannot join the network {spec.network!r}.", hint=_OTHERS)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    if spec.platform is not None and spec.platform.split("/")[:2] != ["linux", machine]:
        raise errors.Unsupported(f"embedded has no platform {spec.platform!r}; it is linux/{machine}.", hint=_OTHERS)


def log_file(house: House, record: Record) -> Path:
    """Where a container's log is."""
    return runtime.log_file(house.containers.folder(record.id))
