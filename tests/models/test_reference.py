"""Which image does a text name? The cases of distribution/reference, and what a shell or a registry would misread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_containerization import errors
from codomyrmex_containerization.models import reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "domain", "path", "tag", "digest"),
    [
        ("nginx", "docker.io", "library/nginx", "latest", None),
        ("nginx:1.27", "docker.io", "library/nginx", "1.27", None),
        ("docker.io/nginx", "docker.io", "library/nginx", "latest", None),
        ("index.docker.io/a/b", "docker.io", "a/b", "latest", None),
        ("a/b", "docker.io", "a/b", "latest", None),
        ("localhost/a", "localhost", "a", "latest", None),
        ("localhost:5000/a/b:c", "localhost:5000", "a/b", "c", None),
        ("ghcr.io/a/b/c", "ghcr.io", "a/b/c", "latest", None),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest", None),
        (f"a@{DIGEST}", "docker.io", "library/a", None, DIGEST),
        (f"a:1@{DIGEST}", "docker.io", "library/a", "1", DIGEST),
        ("a__b/c-d.e:T_1.x-y", "docker.io", "a__b/c-d.e", "T_1.x-y", None),
    ],
)
def test_reference_is_parsed(text: str, domain: str, path: str, tag: str | None, digest: str | None) -> None:
    assert reference.parse(text) == reference.ImageReference(domain, path, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            " a",
            "a ",
            "-a",
            "--privileged",
            "A",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:-x",
            "a:.x",
            "a:x y",
            "a@",
            "a@x",
        ),
        *(
            "a@sha256:12",
            "https://a/b",
            "a\nb",
            "a\0b",
            "é",
            "a:é",
            "a/B",
            "a..b",
            "_a",
            "a___b",
            f"a:{'x' * 129}",
            "a" * 256,
        ),
        *("[::1/a", "-x.com/a", "x..com/a", "a:b:c/d", "a\n", "a:1\n", f"a@{DIGEST}\n"),
    ],
)
def test_text_that_is_no_reference_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        reference.parse(text)
    assert refused.value.hint
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("text", ["nginx:latest", "localhost:5000/a/b:c", f"ghcr.io/a/b@{DIGEST}", "a/b:1"])
def test_name_is_written_as_people_write_it(text: str) -> None:
    assert str(reference.parse(text)) == text


@given(st.from_regex(r"[a-zA-Z0-9:/.@_\[\]-]{0,60}", fullmatch=True))
def test_parsing_is_stable_and_fails_in_one_way_only(text: str) -> None:
    try:
        parsed = reference.parse(text)
    except errors.InvalidArgument:
        return
    assert reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a" * 12, True), ("a" * 64, True), (DIGEST, True), ("a" * 11, False), ("a" * 65, False), ("g" * 12, False)],
)
def test_image_id_is_told_from_a_name(text: str, expected: bool) -> None:
    assert reference.is_image_id(text) is expected
