"""Is an image built as Docker builds it, by either builder, and does a failed build tell its author where and why?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.backends import DockerCommandLine
from tests.dispatch import harness
from tests.dispatch.conftest import image_name, labelled_image
from tests.dispatch.harness import House

__all__ = ["image_name", "labelled_image"]


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["classic", "buildkit"])
def builder(request: pytest.FixtureRequest) -> str:
    """The setting `buildx` for each builder."""
    return str(request.getfixturevalue("buildx")) if request.param == "buildkit" else "off"


@pytest.fixture
def base(labelled_image: str) -> str:
    return f"FROM {labelled_image}\n"


async def build(builder: str, name: str, **arguments: Any) -> dict[str, Any]:
    async with harness.opened(buildx=builder) as house:
        return await house.ok("container_build", {"image_name": name, **arguments})


async def fails(builder: str, code: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    async with harness.opened(buildx=builder) as house:
        outcome = await house.fails(code, "container_build", {"image_name": "localhost/cxc-test-never", **arguments})
        return outcome.text, outcome.error_data


async def said(image: str, *command: str) -> str:
    async with harness.opened() as house:
        answer = await house.ok("container_run", image=image, command=list(command), pull_policy="never")
        return str(answer["stdout"])


def config(docker_cli: DockerCommandLine, image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker_cli(["image", "inspect", image]).stdout)[0]["Config"]
    return found


# -------------------------------------------------------------------------------------- where the Dockerfile comes from


async def test_folder_is_the_context(builder: str, base: str, image_name: str, project: Path) -> None:
    (project / "app").mkdir()
    (project / "app" / "Dockerfile").write_text(f"{base}COPY file.txt /file.txt\n")
    (project / "app" / "file.txt").write_text("from the folder\n")
    answer = await build(builder, image_name, dockerfile_path="app", tag="1.2")
    assert answer["image"] == f"{image_name}:1.2"
    assert answer["builder"] == ("classic" if builder == "off" else "buildkit")
    assert answer["size_bytes"] > 0
    assert answer["layers"] >= 2
    assert await said(f"{image_name}:1.2", "cat", "/file.txt") == "from the folder\n"


async def test_file_of_any_name_and_a_context_elsewhere(
    builder: str, base: str, image_name: str, project: Path
) -> None:
    (project / "recipes").mkdir()
    (project / "data").mkdir()
    (project / "recipes" / "web.Dockerfile").write_text(f"{base}COPY file.txt /file.txt\n")
    (project / "recipes" / "file.txt").write_text("beside the recipe\n")
    (project / "data" / "file.txt").write_text("from the context\n")
    for context, expected in ((None, "beside the recipe\n"), ("data", "from the context\n")):
        await build(builder, image_name, dockerfile_path="recipes/web.Dockerfile", context=context)
        assert await said(image_name, "cat", "/file.txt") == expected


async def test_text_needs_no_file_and_takes_a_context(builder: str, base: str, image_name: str, project: Path) -> None:
    await build(builder, image_name, dockerfile_text=f"{base}RUN echo made > /made\n")
    assert await said(image_name, "cat", "/made") == "made\n"
    (project / "file.txt").write_text("x\n")
    (project / "Dockerfile").write_text("this is not used\n")
    await build(builder, image_name, dockerfile_text=f"{base}COPY file.txt /\n", context=".")
    assert await said(image_name, "cat", "/file.txt") == "x\n"
    assert sorted(path.name for path in project.iterdir() if path.is_file()) == ["Dockerfile", "file.txt"]
    text, _ = await fails(builder, "invalid_argument", dockerfile_text=f"{base}COPY file.txt /\n")
    assert "context" in text


async def test_ignored_files_stay_out(builder: str, base: str, image_name: str, project: Path) -> None:
    (project / "Dockerfile").write_text(f"{base}COPY . /context\n")
    (project / ".dockerignore").write_text("# comment\n**/*.log\nsecrets\n!keep.log\nDockerfile\n")
    (project / "deep" / "er").mkdir(parents=True)
    (project / "secrets").mkdir()
    for name in ("a.txt", "a.log", "keep.log", "deep/er/b.log", "deep/er/b.txt", "secrets/key"):
        (project / name).write_text("x")
    await build(builder, image_name)
    found = (await said(image_name, "find", "/context", "-type", "f")).split()
    assert sorted(found) == [f"/context/{name}" for name in (".dockerignore", "a.txt", "deep/er/b.txt", "keep.log")]


async def test_dockerfiles_own_ignore_file_comes_first(builder: str, base: str, image_name: str, project: Path) -> None:
    (project / "web.Dockerfile").write_text(f"{base}COPY . /context\n")
    (project / ".dockerignore").write_text("wanted\n")
    (project / "web.Dockerfile.dockerignore").write_text("unwanted\n*ocker*\n")
    for name in ("wanted", "unwanted"):
        (project / name).write_text("x")
    await build(builder, image_name, dockerfile_path="web.Dockerfile", context=".")
    assert (await said(image_name, "ls", "/context")).split() == ["wanted"]


# -------------------------------------------------------------------------------------------------------------- options


async def test_arguments_labels_and_target_reach_the_builder(
    builder: str, base: str, image_name: str, docker_cli: DockerCommandLine
) -> None:
    text = f"{base[:-1]} AS first\nARG WHO=nobody\nRUN echo $WHO > /who\nFROM first AS second\nRUN exit 9\n"
    await build(
        builder,
        image_name,
        dockerfile_text=text,
        target="first",
        build_args={"WHO": "some one's"},
        labels={"team": "a b=c"},
    )
    assert await said(image_name, "cat", "/who") == "some one's\n"
    labels = config(docker_cli, image_name)["Labels"]
    assert labels["team"] == "a b=c"
    assert "codomyrmex.containerization.host" in labels


async def test_second_build_comes_from_the_cache_unless_it_is_not_to(builder: str, base: str, image_name: str) -> None:
    text = f"{base}ENV NAME={image_name}\nRUN echo one > /one\nRUN echo two > /two\n"
    first = await build(builder, image_name, dockerfile_text=text)
    second = await build(builder, image_name, dockerfile_text=text)
    third = await build(builder, image_name, dockerfile_text=text, no_cache=True)
    assert second["cached_steps"] >= 2
    assert second["image_id"] == first["image_id"]
    assert third["cached_steps"] < second["cached_steps"]


async def test_output_of_the_steps_is_in_the_answer_and_the_steps_are_reported(
    builder: str, base: str, image_name: str
) -> None:
    async with harness.opened(buildx=builder) as house:
        text = f"{base}RUN echo said by $((6*7))\nRUN true\n"
        answer = await house.ok("container_build", image_name=image_name, dockerfile_text=text, no_cache=True)
        assert "said by 42" in answer["log"]
        assert [message for message in house.progress if "RUN echo" in message]
        assert all(message.startswith("step ") for message in house.progress)


async def test_secret_is_there_for_its_step_only(
    buildx: Path, base: str, image_name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "token").write_text("file-value-1\n")
    monkeypatch.setenv("BUILD_ONLY", "environment-value-1")
    text = (
        f"{base}RUN --mount=type=secret,id=f --mount=type=secret,id=e "
        "wc -c < /run/secrets/f > /f; wc -c < /run/secrets/e > /e\nRUN ls /run/secrets > /left 2>&1; true\n"
    )
    async with harness.opened(buildx=str(buildx), policy__secret_env=["BUILD_ONLY"]) as house:
        await house.ok(
            "container_build", image_name=image_name, dockerfile_text=text, no_cache=True,
            secrets={"f": "file:token", "e": "env:BUILD_ONLY"},
        )  # fmt: skip
    assert (await said(image_name, "cat", "/f", "/e")).split() == ["13", "19"]
    assert "f\n" not in await said(image_name, "cat", "/left")


@pytest.mark.parametrize("arguments", [{"secrets": {"x": "file:Dockerfile"}}, {"platforms": ["linux/arm64"]}])
async def test_what_only_buildkit_can_do_says_so_without_it(
    base: str, project: Path, docker_socket: Path, arguments: dict[str, Any]
) -> None:
    (project / "Dockerfile").write_text(base)
    text, _ = await fails("off", "unsupported", **arguments)
    assert "buildx" in text


# ------------------------------------------------------------------------------------------------------------- failures


async def test_failing_step_is_named_with_its_line_exit_code_and_last_lines(builder: str, base: str) -> None:
    text = f"{base}RUN echo first\n\n# a comment\nRUN echo why it fails; echo and more >&2; exit 3\nRUN true\n"
    shown, data = await fails(builder, "build_failed", dockerfile_text=text)
    assert data["line"] == 5
    assert data["exit_code"] == 3
    assert data["instruction"].startswith("RUN echo why")
    for part in ("line 5", "RUN echo why it fails", "exit code 3", "why it fails", "and more"):
        assert part in shown


async def test_failing_step_over_several_lines_is_named_by_its_first(builder: str, base: str) -> None:
    text = f"{base}ENV A=1\nRUN echo one \\\n    && echo two \\\n    && exit 4\n"
    shown, data = await fails(builder, "build_failed", dockerfile_text=text)
    assert (data["line"], data["exit_code"]) == (3, 4)
    assert "two" in shown


async def test_failing_here_document_is_named_by_its_line(buildx: Path, base: str) -> None:
    text = f"{base}RUN true\nRUN <<EOF\necho inside\nexit 5\nEOF\n"
    shown, data = await fails(str(buildx), "build_failed", dockerfile_text=text)
    if "exit_code" in data:
        assert (data["line"], data["exit_code"]) == (3, 5)
        assert "inside" in shown
    else:  # an engine whose own frontend is older than here-documents
        assert data["line"] in (3, 4, 5)
        assert f"at line {data['line']}" in shown


async def test_missing_file_of_the_context_is_named(builder: str, base: str, project: Path) -> None:
    (project / "Dockerfile").write_text(f"{base}COPY nothing.txt /\n")
    shown, _ = await fails(builder, "build_failed")
    assert "nothing.txt" in shown
    assert ".dockerignore" in shown


async def test_missing_base_image_is_named(builder: str) -> None:
    shown, _ = await fails(builder, "build_failed", dockerfile_text="FROM localhost:1/none:1\nRUN true\n")
    assert "localhost:1/none:1" in shown
    assert "base image" in shown


@pytest.mark.parametrize("text", ["", "FORM x\n", "RUN true\n", "FROM\n", "FROM x AS\n", "\xff", "FROM x\nNOSUCH y\n"])
async def test_text_that_is_no_dockerfile_never_gets_to_a_builder(builder: str, text: str) -> None:
    shown, data = await fails(builder, "invalid_argument", dockerfile_text=text)
    assert data["hint"]
    assert "cxc-build" not in shown


async def test_unknown_target_is_said_to_be_unknown(builder: str, base: str) -> None:
    async with harness.opened(buildx=builder) as house:
        outcome = await house.call(
            "container_build", image_name="localhost/x", dockerfile_text=f"{base}RUN true\n", target="nope"
        )
        assert outcome.error_data["code"] in ("invalid_argument", "build_failed", "not_found")
        assert "nope" in outcome.text


async def test_build_that_takes_too_long_is_stopped_and_says_where(builder: str, base: str) -> None:
    text = f"{base}RUN echo begun; sleep 61.5\n"
    shown, data = await fails(builder, "deadline_exceeded", dockerfile_text=text, timeout_seconds=2, no_cache=True)
    assert "sleep 61.5" in shown
    assert data["retryable"] is True


@pytest.mark.parametrize("image", ["UPPER", "-x", "a b", "x@sha256:" + "a" * 64, "https://x/y", "x:y:z", "é"])
async def test_name_that_is_no_image_name_is_refused(image: str, docker_socket: Path) -> None:
    async with harness.opened(buildx="off") as house:
        await house.fails("invalid_argument", "container_build", image_name=image, dockerfile_text="FROM scratch\n")


@pytest.mark.parametrize("path", ["nowhere", "nowhere/Dockerfile", "empty"])
async def test_missing_dockerfile_is_said_to_be_missing(project: Path, docker_socket: Path, path: str) -> None:
    (project / "empty").mkdir()
    await fails("off", "invalid_argument", dockerfile_path=path)


async def test_image_that_was_built_here_is_removed_without_a_question(
    builder: str, base: str, image_name: str, docker_cli: DockerCommandLine
) -> None:
    async with harness.opened(buildx=builder) as house:
        text = f"{base}RUN echo {image_name} > /own\n"
        await house.ok("container_build", image_name=image_name, dockerfile_text=text)
        await _remove(house, f"{image_name}:latest")
    assert docker_cli(["image", "inspect", image_name], check=False).returncode != 0


async def _remove(house: House, image: str) -> None:
    await house.ok("image_remove", image=image)
