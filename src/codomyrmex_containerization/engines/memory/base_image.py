"""What does an image look like that has all programs of this engine and nothing else?"""

from __future__ import annotations

from codomyrmex_containerization.engines.memory import files, kernel, objects, programs, store

NAME = "localhost/memory-base:1"
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


def make(held: store.Store) -> str:
    """Make the image unless it is there; return its name."""
    if any(NAME in one.tags for one in held.images.values()):
        return NAME
    programs_folder: dict[str, files.AnyNode] = {
        name: files.Link(0o777, target="busybox") for name in programs.PROGRAMS if name != "busybox"
    }
    # Elsewhere it speaks to the network; here it is found and refused.
    programs_folder["nc"] = files.Link(0o777, target="busybox")
    # Only its name counts: it stands for the programs of this package.
    programs_folder["busybox"] = files.File(0o755, data=b"")
    root = files.Folder(
        0o755,
        entries={
            "bin": files.Folder(0o755, entries=programs_folder),
            "etc": files.Folder(0o755, entries={"passwd": files.File(data=_PASSWD), "group": files.File(data=_GROUP)}),
            "root": files.Folder(0o700),
            "tmp": files.Folder(0o1777),
        },
    )
    config = objects.Config(env=(f"PATH={kernel.DEFAULT_PATH}",), command=("sh",))
    image = held.add_image(parent=None, tree=files.Tree(root), config=config, instruction="COPY programs /")
    held.tag(image, NAME)
    return NAME
