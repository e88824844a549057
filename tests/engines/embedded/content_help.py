"""What the tests of the image store need: tars with just these entries, archives of images, a store."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codomyrmex_containerization.engines.embedded import content, layers, objects

HOSTILE = "images and layers that reach out, mislead or blow up"
CONFIG = objects.ImageConfig(env=("PATH=/bin",), command=("sh",))


def entry(
    name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644, **more: Any
) -> tarfile.TarInfo:
    """One header."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.mtime = kind, target, mode, more.get("mtime", 1_600_000_000)
    made.uid, made.gid = more.get("uid", 0), more.get("gid", 0)
    made.pax_headers = dict(more.get("pax", {}))
    return made


def tar(
    *entries: tarfile.TarInfo | tuple[str, bytes] | tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT
) -> bytes:
    """A tar with these entries, in this order; a pair is a file and what is in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for one in entries:
            header, data = one if isinstance(one, tuple) else (one, b"")
            header = entry(header) if isinstance(header, str) else header
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    """The digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config(*layers_: bytes, **more: Any) -> bytes:
    """The configuration of an image with these layers, given as plain tars."""
    whole = {
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05.678901234Z",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers_]},
        "history": [{"created_by": f"RUN step {number}"} for number, _ in enumerate(layers_)],
    }  # fmt: skip
    return json.dumps({**whole, **more}).encode()


def docker_archive(*layers_: bytes, names: Sequence[str] | None = ("made:1",), about: bytes | None = None) -> bytes:
    """What `docker save` writes for one image."""
    about = about if about is not None else config(*layers_)
    files = [(f"{number}/layer.tar", data) for number, data in enumerate(layers_)]
    manifest = [{"Config": "config.json", "RepoTags": names, "Layers": [name for name, _ in files]}]
    return tar(*files, ("config.json", about), ("manifest.json", json.dumps(manifest).encode()))


def oci_files(
    *layers_: bytes,
    names: Sequence[str] = ("made:1",),
    about: bytes | None = None,
    pack: Callable[[bytes], bytes] = gzip.compress,
    suffix: str = "+gzip",
) -> dict[str, bytes]:
    """The files of an OCI layout with one image."""
    about = about if about is not None else config(*layers_)
    packed = [pack(one) for one in layers_]
    kind = f"application/vnd.oci.image.layer.v1.tar{suffix}"
    manifest = json.dumps({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **_descriptor(about)},
        "layers": [{"mediaType": kind, **_descriptor(one)} for one in packed],
    }, indent=3).encode()  # fmt: skip
    entry_ = {"mediaType": "application/vnd.oci.image.manifest.v1+json", **_descriptor(manifest)}
    entries = [{**entry_, "annotations": {"org.opencontainers.image.ref.name": name}} for name in names] or [entry_]
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
        **{f"blobs/sha256/{digest(one)[7:]}": one for one in (about, manifest, *packed)},
    }


def _descriptor(data: bytes) -> dict[str, Any]:
    return {"digest": digest(data), "size": len(data)}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def store(folder: Path, *, bounds: layers.Bounds | None = None) -> content.ContentStore:
    """A store in a folder."""
    return content.ContentStore(objects.Folders(folder / "data", folder / "run"), engine="embedded", bounds=bounds)


def images_folder(folder: Path) -> Path:
    """Where `store` keeps its images."""
    return objects.Folders(folder / "data", folder / "run").images


def listing(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What a folder holds: for each path its kind and mode, owner, time, size or target, extended attributes."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(base, name)
            state = path.lstat()
            about = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else state.st_rdev
            attributes = {
                one: os.getxattr(path, one, follow_symlinks=False) for one in os.listxattr(path, follow_symlinks=False)
            }
            mark = (oct(state.st_mode), state.st_uid, state.st_gid, int(state.st_mtime), about, attributes)
            found[str(path.relative_to(folder))] = mark
    return found
