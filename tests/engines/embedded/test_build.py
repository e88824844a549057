"""Does the embedded engine's builder carry out a Dockerfile: its stages, steps, variables, its cache, and its end?"""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_containerization import errors
from codomyrmex_containerization.engines.embedded import overlay
from codomyrmex_containerization.models.container import Healthcheck
from codomyrmex_containerization.models.image import BuildEvent, BuildSecret, BuildSpec
from tests.engines.embedded import building
from tests.engines.embedded.building import BASE, Bench, Entry

FROM = f"FROM {BASE}\n"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return building.bench(tmp_path)


def said(events: list[BuildEvent]) -> list[str]:
    return [event.text for event in events if event.kind == "log"]


def kinds(events: list[BuildEvent]) -> list[str]:
    return [event.kind for event in events]


# --------------------------------------------------------------------------------------------------------------- events


def test_build_tells_steps_output_and_image_in_order(bench: Bench) -> None:
    events = bench.build(f"ARG V=1\n{FROM}RUN echo out; echo err >&2; echo made > /made\nENV A=b\n")
    assert [(event.number, event.total, event.text, event.line) for event in events if event.kind == "step"] == [
        (1, 4, "ARG V=1", 1),
        (2, 4, f"FROM {BASE}", 2),
        (3, 4, "RUN echo out; echo err >&2; echo made > /made", 3),
        (4, 4, "ENV A=b", 4),
    ]
    assert sorted(said(events)) == ["err", "out"]
    assert events[-1] == BuildEvent("image", text=bench.store.image("localhost/made:1").id)
    assert bench.read(bench.store.image("localhost/made:1"), "/made") == b"made\n"


def test_layers_carry_their_instructions_the_oldest_first(bench: Bench) -> None:
    image = bench.made(f"{FROM}RUN echo 1 > /one\nENV A=b\n")
    assert [one.instruction for one in image.layers][-2:] == ["RUN echo 1 > /one", "ENV A=b"]


def test_failing_step_is_the_last_event_with_code_and_line(bench: Bench) -> None:
    events = bench.build(f"{FROM}\nRUN echo why; exit 3\nRUN true\n")
    last = events[-1]
    assert (last.kind, last.exit_code, last.line, last.step) == ("error", 3, 3, "RUN echo why; exit 3")
    assert said(events) == ["why"]
    with pytest.raises(errors.NotFound):
        bench.store.image("localhost/made:1")


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("FROM localhost/nobody:1\nRUN true\n", "no image 'localhost/nobody:1'", 1),
        (f"{FROM}ONBUILD RUN true\n", "ONBUILD is not supported", 2),
        (f"{FROM}FROB x\n", "FROB is not supported", 2),
        (f"{FROM}COPY --parents a b\n", "--parents of COPY is not supported", 2),
        ("RUN true\n" + FROM, "no build stage", 1),
        (f"{FROM}RUN <<EOF\ntrue\n", "cannot be parsed", None),
        (f"{FROM}ADD http://localhost:1/x /x\n", "ADD of an address", 2),
        (f"{FROM}RUN --mount=type=ssh true\n", "type=ssh is not supported", 2),
        (f"{FROM}RUN --mount=type=secret,id=x,required true\n", "secret x: not found", 2),
        (f"{FROM}RUN --network=host true\n", "--network=host is not supported", 2),
        (f"{FROM}RUN --security=insecure true\n", "insecure is not supported", 2),
        (f"{FROM}COPY none /x\n", "none: no such file", 2),
        (f"{FROM}COPY *.none /x\n", "fits nothing", 2),
        (f"{FROM}COPY --from=localhost/nobody:1 a /x\n", "no image 'localhost/nobody:1'", 2),
        (f"{FROM}COPY --chown=nobody Dockerfile /x\n", "unable to find user nobody", 2),
        (f"{FROM}COPY --chmod=u+x Dockerfile /x\n", "write it as 755", 2),
        (f"{FROM}USER\n", "USER requires", 2),
        (f"{FROM}EXPOSE 80000\n", "is no port", 2),
        (f"{FROM}SHELL sh\n", "SHELL takes a list", 2),
        (f"{FROM}HEALTHCHECK --interval=x CMD true\n", "is no duration", 2),
        (f"FROM --platform=linux/m68k {BASE}\n", "not this machine's platform", 1),
        ("FROM scratch\n", "No image was generated", 1),
        (f'{FROM}ENV A="x\n', "not closed", 2),
        (f'{FROM}LABEL x="${{Y:?must be}}"\n', "must be", 2),
    ],
)
def test_what_cannot_be_built_is_said_with_its_line(bench: Bench, text: str, reason: str, line: int | None) -> None:
    failure = bench.failure(text)
    assert reason in failure.text
    assert failure.line == line


def test_unknown_instruction_is_refused_before_anything_runs(bench: Bench) -> None:
    assert kinds(bench.build(f"{FROM}RUN echo x\nFROB y\n")) == ["error"]


@pytest.mark.parametrize(
    "more",
    [
        {"pull": True},
        {"platforms": ("linux/m68k",)},
        {"platforms": ("linux/amd64", "linux/arm64")},
        {"entitlements": ("network.host",)},
        {"network": "host"},
        {"frontend": "example/frontend:1"},
    ],
)
def test_what_the_builder_cannot_do_at_all_is_unsupported(bench: Bench, more: dict[str, Any]) -> None:
    with pytest.raises(errors.Unsupported) as caught:
        bench.build(FROM, **more)
    assert caught.value.hint


def test_error_of_reading_the_context_reaches_the_caller(bench: Bench) -> None:
    def context() -> Iterator[bytes]:
        raise errors.InvalidArgument("x cannot be read")

    spec = BuildSpec((), None, None, f"{FROM}COPY . /x\n")
    with pytest.raises(errors.InvalidArgument, match="x cannot be read"):
        list(bench.builder().events(spec, context=context, dockerfile_name="Dockerfile"))


# --------------------------------------------------------------------------------------------------------------- stages


def test_stages_build_on_each_other_and_copy_from_each_other(bench: Bench) -> None:
    image = bench.made(
        f"FROM {BASE} AS First\nRUN echo 1 > /one\nFROM first\nRUN cat /one > /two\n"
        "FROM scratch\nCOPY --from=0 /one /a\nCOPY --from=1 /one /two /b/\nCOPY --from=first one /c\n"
    )
    with bench.root(image) as root:
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        assert names == ["a", "b", "b/one", "b/two", "c"]
        assert (root / "b/two").read_bytes() == b"1\n"


def test_target_ends_the_build_at_its_stage(bench: Bench) -> None:
    text = f"FROM {BASE} AS first\nENV A=1\nFROM first AS second\nRUN exit 9\n"
    events = bench.build(text, target="First")
    assert [event.total for event in events if event.kind == "step"] == [2, 2]
    assert "A=1" in bench.store.image("localhost/made:1").config.env
    assert bench.made(text, target="0").id
    assert "could not be found" in bench.failure(text, target="third").text


def test_image_of_the_store_can_be_copied_from(bench: Bench) -> None:
    image = bench.made(f"FROM scratch\nCOPY --from={BASE} /etc/passwd /p\n")
    assert bench.read(image, "/p") == building.PASSWD.encode()


# ------------------------------------------------------------------------------------------------------------ variables


def test_arguments_come_from_outside_defaults_and_the_build(bench: Bench) -> None:
    text = (
        "ARG IMAGE=localhost/nobody:1\nARG V=global\nFROM $IMAGE AS one\nARG V\nARG W=${V}-w\nARG X\nENV Y=$W Z='$W'\n"
        'RUN echo "$V $W $X $Y $Z"\nFROM one\nARG TARGETARCH\nRUN echo "$V ${TARGETARCH:+set}"\n'
    )
    events = bench.build(text, build_args={"IMAGE": BASE, "X": "x", "NOBODY": "asked"})
    assert said(events) == ["global global-w x global-w $W", "global set"]
    assert [event.text for event in events if event.kind == "warning"] == [
        "One or more build-args ['NOBODY'] were not consumed"
    ]


def test_environment_goes_before_arguments_and_proxies_need_no_declaration(bench: Bench) -> None:
    text = f'{FROM}ENV V=env\nARG V=arg\nRUN echo "$V $HTTP_PROXY $PATH"\n'
    assert said(bench.build(text, build_args={"HTTP_PROXY": "p"})) == ["env p /bin"]


def test_configuration_is_that_of_the_instructions(bench: Bench) -> None:
    image = bench.made(
        f'{FROM}ENV ONE="a b" TWO=x\\ y\nENV OLD the old  form\nLABEL "a b"=c d="$ONE"\nWORKDIR /place\nWORKDIR deep/er\n'
        "USER user:staff\nEXPOSE 8080 53/udp 90-91\nVOLUME /data /more\nSTOPSIGNAL SIGINT\nMAINTAINER me\n"
        'HEALTHCHECK --interval=1m30s --timeout=5s --retries=2 CMD ["true"]\nENTRYPOINT ["sh", "-c"]\nCMD echo x\n',
        labels={"team": "a=b ä"},
    )
    config = image.config
    assert config.env == ("PATH=/bin", "ONE=a b", "TWO=x y", "OLD=the old  form")
    assert dict(config.labels) == {"a b": "c", "d": "a b", "team": "a=b ä"}
    assert (config.workdir, config.user, config.stop_signal) == ("/place/deep/er", "user:staff", "SIGINT")
    assert (config.entrypoint, config.command) == (("sh", "-c"), ("/bin/sh", "-c", "echo x"))
    assert config.exposed == ("53/udp", "8080/tcp", "90/tcp", "91/tcp")
    assert config.volumes == ("/data", "/more")
    assert config.healthcheck == Healthcheck(("CMD", "true"), 90.0, 5.0, 2, None)
    with bench.root(image) as root:
        assert (root / "place/deep/er").is_dir()


def test_entrypoint_drops_the_inherited_command_only(bench: Bench) -> None:
    assert bench.made(f'{FROM}ENTRYPOINT ["x"]\n').config.command == ()
    assert bench.made(f'{FROM}CMD ["y"]\nENTRYPOINT ["x"]\n').config.command == ("y",)


def test_shell_is_that_of_the_shell_instruction(bench: Bench) -> None:
    image = bench.made(f'{FROM}SHELL ["/bin/sh", "-ec"]\nRUN false || echo ok > /ok\nCMD echo $HOME\n')
    assert image.config.command == ("/bin/sh", "-ec", "echo $HOME")
    assert bench.read(image, "/ok") == b"ok\n"


# ------------------------------------------------------------------------------------------------------------------ RUN


def test_run_takes_lists_here_documents_and_scripts(bench: Bench) -> None:
    text = (
        f"{FROM}"
        + 'RUN ["/bin/echo", "$PATH", "a  b"]\n'
        + "RUN <<EOF\necho one\nV=two; echo $V\nEOF\n"
        + "RUN cat <<-A && cat <<'B'\n\ttabs\n\tA\n$HOME\nB\n"
        + "RUN <<EOF\n#!/bin/cat\nin a script\nEOF\n"
    )
    image, events = bench.made(text), bench.build(text, no_cache=True)
    assert said(events) == ["$PATH a  b", "one", "two", "tabs", "$HOME", "#!/bin/cat", "in a script"]
    with bench.root(image) as root:
        assert not (root / "dev").exists()


def test_run_is_done_as_its_user_in_its_folder(bench: Bench) -> None:
    assert said(bench.build(f"{FROM}WORKDIR /tmp\nUSER user\nRUN id -u; pwd; touch /tmp/x && ls -ld / >&2\n"))[:2] == [
        "1000",
        "/tmp",
    ]


def test_run_without_a_network_has_none(bench: Bench) -> None:
    lines = said(bench.build(f"{FROM}RUN --network=none busybox ip -o link\n"))
    assert [line.split()[1] for line in lines] == ["lo:"]


def test_mounts_are_there_for_their_step_only(bench: Bench) -> None:
    text = (
        f"FROM {BASE} AS first\nRUN echo staged > /file\n{FROM}"
        "RUN --mount=type=tmpfs,target=/t,size=1m touch /t/x\n"
        "RUN --mount=type=bind,source=sub,target=/b cat /b/file && ! touch /b/x 2> /tmp/said\n"
        "RUN --mount=source=sub,target=/b,rw echo changed > /b/file && cat /b/file\n"
        "RUN --mount=from=first,source=/file,target=/seen cat /seen\n"
        "RUN --mount=type=cache,target=/c,id=one echo kept >> /c/file; cat /c/file\n"
        "RUN --mount=type=cache,target=/d,id=one,sharing=locked cat /d/file\n"
    )
    entries = (Entry("sub", kind=tarfile.DIRTYPE, mode=0o755), Entry("sub/file", b"of the context\n"))
    events = bench.build(text, *entries)
    assert said(events) == ["of the context", "changed", "staged", "kept", "kept"], events
    with bench.root(bench.store.image("localhost/made:1")) as root:
        assert not [name for name in ("t", "b", "seen", "c", "d") if (root / name).exists()]
    assert said(bench.build(text, *entries, no_cache=True))[-2:] == ["kept", "kept"]


def test_secret_is_there_for_its_step_only_and_on_no_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "not for everybody")
    (bench.folder / "key").write_bytes(b"nor this\n")
    secrets = (BuildSecret("token", env="TOKEN"), BuildSecret("key", path=bench.folder / "key"))
    text = (
        f"{FROM}RUN --mount=type=secret,id=token --mount=type=secret,id=key,target=/k,uid=7,mode=0440 "
        "cat /run/secrets/token /k; stat -c '%u %a' /k\n"
        'RUN --mount=type=secret,id=token,env=T --mount=type=secret,id=none echo " $T"; ls /run /k 2>&1 || true\n'
    )
    events = bench.begin(bench.builder(), text, secrets=secrets)
    seen = [next(event for event in events if event.kind == "log")]
    held = list(bench.scratch.glob("build-*/secret-*/secret"))
    assert [file.stat().st_dev == bench.scratch.stat().st_dev for file in held] == [False, False]
    seen += events
    assert said(seen)[:3] == ["not for everybodynor this", "7 440", " not for everybody"]
    assert "no such file" in said(seen)[-1].lower(), seen
    with bench.root(bench.store.image("localhost/made:1")) as root:
        assert not (root / "run").exists()
        assert not (root / "k").exists()


def test_bind_mount_that_changes_makes_the_step_run_again(bench: Bench) -> None:
    text = f"{FROM}RUN --mount=target=/b cat /b/file\n"
    assert said(bench.build(text, Entry("file", b"1\n"))) == ["1"]
    assert said(bench.build(text, Entry("file", b"1\n"))) == []
    assert said(bench.build(text, Entry("file", b"2\n"))) == ["2"]


def test_layer_holds_what_its_step_did_and_no_mount_points(bench: Bench) -> None:
    text = f"{FROM}RUN --mount=type=tmpfs,target=/etc/deep/t --mount=type=tmpfs,target=/root/t %s\n"
    assert not bench.made(text % "true").layers[-1].size_bytes
    assert bench.made(text % "true").diff_ids == bench.store.image(BASE).diff_ids
    image = bench.made(text % "mkdir /run /opt; touch /etc/mine; chmod 711 /root")
    (layer,) = set(bench.store.layer_folders(image)) - set(bench.store.layer_folders(bench.store.image(BASE)))
    assert sorted(str(path.relative_to(layer)) for path in layer.rglob("*")) == [
        "etc",
        "etc/mine",
        "opt",
        "root",
        "run",
    ]


def test_equal_layers_of_two_steps_are_no_obstacle(bench: Bench) -> None:
    text = f"{FROM}COPY file /f\nRUN echo 2 > /f\nCOPY file /f\nRUN cat /f\n"
    events = bench.build(text, Entry("file", b"1\n"))
    image = bench.store.image("localhost/made:1")
    assert (said(events), len(image.diff_ids) - len(set(image.diff_ids))) == (["1"], 1)


def test_long_output_comes_out_in_pieces(bench: Bench) -> None:
    lines = said(
        bench.build(f"{FROM}RUN i=0; while test $i -lt 3000; do echo line $i; i=$((i+1)); done; echo -n end\n")
    )
    assert (len(lines), lines[-1]) == (3001, "end")


def test_output_that_is_no_text_is_shown(bench: Bench) -> None:
    assert said(bench.build(f"{FROM}RUN echo -e 'a\\xffb\\r'\n")) == ["a\ufffdb"]


def test_deleted_files_are_gone_from_the_image(bench: Bench) -> None:
    image = bench.made(f"{FROM}RUN rm /etc/group && mkdir /gone && touch /gone/x\nRUN rm -r /gone\n")
    with bench.root(image) as root:
        assert not (root / "etc/group").exists()
        assert not (root / "gone").exists()


def test_root_of_the_image_keeps_its_mode(bench: Bench) -> None:
    image = bench.made(f"{FROM}USER user\nRUN touch /tmp/x\nUSER root\nRUN touch /x\n")
    with bench.root(image) as root:
        assert root.stat().st_mode & 0o777 == 0o755


# ---------------------------------------------------------------------------------------------------------------- cache


def test_same_build_comes_from_the_cache(bench: Bench) -> None:
    text = f"{FROM}ENV A=1\nWORKDIR /w\nCOPY file /f\nRUN echo $A > /a\n"
    first, second = bench.build(text, Entry("file", b"x")), bench.build(text, Entry("file", b"x"))
    assert "cached" not in kinds(first)
    assert [event.step.split()[0] for event in second if event.kind == "cached"] == ["ENV", "WORKDIR", "COPY", "RUN"]
    assert first[-1] == second[-1]
    third = bench.build(text, Entry("file", b"x"), no_cache=True)
    assert "cached" not in kinds(third)
    assert third[-1] != first[-1]


@pytest.mark.parametrize(
    "changed",
    [Entry("file", b"y"), Entry("file", b"x", mode=0o755), Entry("file", kind=tarfile.SYMTYPE, target="Dockerfile")],
)
def test_copy_of_changed_content_is_done_again(bench: Bench, changed: Entry) -> None:
    text = f"{FROM}COPY file /f\nRUN cat /f\n"
    bench.build(text, Entry("file", b"x"))
    assert "cached" not in kinds(bench.build(text, changed))


def test_copy_comes_from_the_cache_when_only_other_files_changed(bench: Bench) -> None:
    text = f"{FROM}COPY file /f\nRUN echo ran\n"
    bench.build(text, Entry("file", b"x"), Entry("other", b"1"))
    assert said(bench.build(text, Entry("other", b"2"), Entry("file", b"x"), Entry("more", b"3"))) == []


def test_changed_argument_runs_the_step_again(bench: Bench) -> None:
    text = f"{FROM}ARG A\nRUN echo $A\n"
    assert said(bench.build(text, build_args={"A": "1"})) == ["1"]
    assert said(bench.build(text, build_args={"A": "2"})) == ["2"]
    assert said(bench.build(text, build_args={"A": "1", "http_proxy": "p"})) == []


def test_copy_from_a_stage_comes_from_the_cache_when_its_files_are_the_same(bench: Bench) -> None:
    text = f"FROM {BASE} AS one\nENV A=%s\nRUN echo same > /x\nFROM {BASE}\nCOPY --from=one /x /y\nRUN echo later\n"
    bench.build(text % 1)
    again = bench.build(text % 2)
    assert said(again) == []
    assert [event.step.split()[0] for event in again if event.kind == "cached"] == ["COPY", "RUN"]


# ------------------------------------------------------------------------------------------------------------------ end


def test_stopped_build_ends_its_step_and_leaves_nothing(bench: Bench) -> None:
    builder = bench.builder()
    events = bench.begin(builder, f"{FROM}RUN echo begun; sleep 4321\n")
    for event in events:
        if event.kind == "log":
            threading.Thread(target=builder.stop).start()
            break
    with pytest.raises(errors.Cancelled):
        list(events)
    assert not list(bench.scratch.glob("build-*"))
    with pytest.raises(errors.NotFound):
        bench.store.image("localhost/made:1")


def test_build_that_is_left_ends_its_step_and_leaves_nothing(bench: Bench) -> None:
    before = threading.active_count()
    events = bench.begin(bench.builder(), f"{FROM}RUN while true; do echo again; done\n")
    next(event for event in events if event.kind == "log")
    events.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before
    assert not list(bench.scratch.glob("build-*"))
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(bench.folder) in line]


def test_stop_before_the_beginning_lets_nothing_begin(bench: Bench) -> None:
    builder = bench.builder()
    builder.stop()
    with pytest.raises(errors.Cancelled):
        list(bench.begin(builder, f"{FROM}RUN true\n"))


def test_build_leaves_nothing_behind(bench: Bench) -> None:
    bench.build(f"{FROM}COPY Dockerfile /d\nRUN true\nRUN exit 1\n")
    assert not list(bench.scratch.glob("build-*"))
    assert not [one for one in os.listdir("/proc/self/fd") if _leads_to(one, bench.folder / "scratch")]


def test_what_a_killed_build_left_goes_with_the_next_and_a_living_ones_stays(bench: Bench) -> None:
    living = bench.begin(bench.builder(), f"{FROM}RUN echo mine; cat /etc/group > /mine\n")
    next(event for event in living if event.kind == "log")
    (own,) = bench.scratch.glob("build-*")
    dead = bench.scratch / "build-dead"
    upper = dead / "step" / "upper"
    (upper / "deep").mkdir(parents=True)
    for name in ("work", "merged"):
        upper.with_name(name).mkdir()
    layers = bench.store.layer_folders(bench.store.image(BASE))
    overlay.mount(layers, upper=upper, work=upper.with_name("work"), target=upper.with_name("merged"))
    bench.made(f"{FROM}RUN true\n")
    assert list(bench.scratch.glob("build-*")) == [own]
    assert list(living)[-1].kind == "image"
    assert not list(bench.scratch.glob("build-*"))
    assert str(bench.scratch) not in Path("/proc/self/mountinfo").read_text()


def _leads_to(number: str, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{number}").startswith(str(folder))
    except OSError:
        return False
