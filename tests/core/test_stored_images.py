"""What would make an image smaller? Judged by its instructions, not by words that they merely hold."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from codomyrmex_containerization.core import stored_images
from codomyrmex_containerization.models.details import ImageDetails, Layer

MEGABYTE = 1_000_000

LISTS = "remove /var/lib/apt/lists/* in the same RUN"
APK = "apk add --no-cache"
PIP = "pip install --no-cache-dir"
REMOVED = "files removed in a later layer still count: remove them in the RUN that makes them"
TOOLS = "build tools ({}) stay in the image: build in an earlier stage and copy the result"


def image(*layers: Layer, user: str = "app", size_bytes: int | None = None) -> ImageDetails:
    return ImageDetails(
        id="sha256:" + "0" * 64,
        tags=(),
        digests=(),
        size_bytes=sum(layer.size_bytes for layer in layers) if size_bytes is None else size_bytes,
        created=None,
        os="linux",
        architecture="amd64",
        variant="",
        user=user,
        env=(),
        entrypoint=(),
        command=(),
        workdir="",
        exposed_ports=(),
        volumes=(),
        labels={},
        healthcheck=None,
        layers=layers,
    )


def advice(instruction: str, size_bytes: int = 5 * MEGABYTE) -> list[str]:
    found = stored_images.advise(image(Layer(size_bytes, instruction, None)))
    return [one.text.rpartition(f"{instruction[:57]}")[2].lstrip(".").removeprefix(": ") for one in found]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("apt-get update && apt-get install -y curl", [LISTS]),
        ("apt-get install -y curl && rm -rf /var/lib/apt/lists/*", []),
        ("DEBIAN_FRONTEND=noninteractive apt-get -y install curl > /dev/null 2>&1", [LISTS]),
        ("sudo apt install curl", [LISTS]),
        ("/usr/bin/apt-get install curl", [LISTS]),
        ("if true; then apt-get install curl; fi", [LISTS]),
        ("(apt-get install curl)", [LISTS]),
        ("x=$(apt-get install curl)", [LISTS]),
        ("apt-get update", []),
        ("apk add curl", [APK]),
        ("apk add --no-cache curl", []),
        ("apk add curl && rm -rf /var/cache/apk/*", []),
        ("pip install flask", [PIP]),
        ("python3.12 -m pip install flask", [PIP]),
        ("pip3 --no-cache-dir install flask", []),
        ("pip uninstall flask", []),
        ("apk add --no-cache gcc", [TOOLS.format("gcc")]),
        ("apk add --no-cache gcc=1.2 make~3", [TOOLS.format("gcc, make")]),
        ("apk add --no-cache --virtual .tools gcc && apk del .tools", []),
        ("apk add --no-cache gcc && apk del gcc", []),
        ("apk add --no-cache gcc-doc", []),
        ("make -C /src && gcc x.c", []),
        ("true # apt-get install x", []),
        ("true # apt-get install x && pip install y", []),
        ("echo 'apt-get install x'", []),
        ('echo "pip install x" > /readme', []),
        ("echo apt-get install x", []),
        ("cat /apt-get install", []),
        ("echo '# no comment' && pip install x", [PIP]),
        ("echo http://x/#y && pip install x", [PIP]),
        ("# pip install y\npip install x", [PIP]),
        ("pip \\\n  install \\\n  x", [PIP]),
        ("echo it's && pip install x", [PIP]),
        ("echo \\# && pip install x", [PIP]),
    ],
)
def test_advice_follows_the_commands_of_a_run_not_its_words(script: str, expected: list[str]) -> None:
    assert advice(f"RUN {script}") == expected


@pytest.mark.parametrize(
    ("script", "size_bytes", "expected"),
    [
        ("rm -rf /big", 0, [REMOVED]),
        ("rm -rf /big > /dev/null; find / -name '*.pyc' -delete", 10, [REMOVED]),
        ("make && rm -rf /src", 0, []),
        ("rm -rf /big", 5 * MEGABYTE, []),
        ("echo rm -rf /big", 0, []),
    ],
)
def test_advice_about_removals_that_come_too_late(script: str, size_bytes: int, expected: list[str]) -> None:
    assert advice(f"RUN {script}", size_bytes) == expected


def test_advice_about_large_copies_only() -> None:
    assert advice("COPY . /app", 51 * MEGABYTE) == ["51 MB copied in: check .dockerignore"]
    assert advice("COPY . /app", 50 * MEGABYTE) == []
    assert advice("ADD file:0 in /", 60 * MEGABYTE) == ["60 MB copied in: check .dockerignore"]
    assert advice("CMD apt-get install x") == []
    assert advice("LABEL x=RUN pip install y") == []


@pytest.mark.parametrize("user", ["", "0", "root", "0:0", "root:root"])
def test_advice_against_running_as_root(user: str) -> None:
    (found,) = stored_images.advise(image(Layer(1, "COPY a b", None), user=user))
    assert found.text.startswith("runs as root")


def test_advice_against_very_many_layers() -> None:
    layers = [Layer(1, f"COPY {number} /", None) for number in range(21)]
    assert [one.text[:9] for one in stored_images.advise(image(*layers))] == ["21 layers"]
    assert stored_images.advise(image(*layers[:20])) == []


def test_score_and_efficiency_fall_with_what_could_be_saved() -> None:
    good = image(Layer(100, "COPY a b", None))
    assert (stored_images.score(good, []), stored_images.efficiency(good, [])) == (100, 100.0)
    bad = image(Layer(50, "RUN pip install x", None), Layer(50, "COPY a b", None))
    found = stored_images.advise(bad)
    assert stored_images.efficiency(bad, found) == 50.0
    assert stored_images.score(bad, found) == 75


def test_efficiency_counts_a_layer_once_however_much_is_said_of_it() -> None:
    twice = image(Layer(50, "RUN apt-get install gcc", None), Layer(50, "COPY a b", None))
    found = stored_images.advise(twice)
    assert len(found) == 2
    assert stored_images.efficiency(twice, found) == 50.0


def test_an_empty_image_is_efficient() -> None:
    assert stored_images.efficiency(image(), []) == 100.0
    assert stored_images.score(image(), []) == 100


def test_layers_are_shown_the_largest_first_and_empty_ones_not() -> None:
    layers = [Layer(size, f"COPY {size} /", None) for size in (5, 0, 9, 5, 7)]
    assert [one.size_bytes for one in stored_images.largest_first(image(*layers))] == [9, 7, 5, 5]


@hypothesis.given(st.text(alphabet="ab '\"\\#;|&()<>\n$=-", max_size=60) | st.text(max_size=60), st.integers(0, 10**9))
def test_advice_never_fails_and_stays_in_its_bounds(script: str, size_bytes: int) -> None:
    made = image(Layer(size_bytes, f"RUN {script}", None))
    found = stored_images.advise(made)
    assert 0 <= stored_images.score(made, found) <= 100
    assert 0 <= stored_images.efficiency(made, found) <= 100
