"""Images in the engines: list, inspect, tag, remove (toolset `core`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from codomyrmex_containerization import errors
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.core import stored_images
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.tools import _image_answers as answers
from codomyrmex_containerization.tools._decorator import Plan, mcp_tool

_MEGABYTE = 1_000_000
_LONGEST_INSTRUCTION = 200

Engine = Annotated[str | None, Field(description="If not the default", max_length=64)]
Image = Annotated[str, Field(description="Reference or id", max_length=512)]


@mcp_tool(title="Images: list", read_only=True, idempotent=True, toolset="core")
async def image_list(
    ctx: Context,
    *,
    name: Annotated[str | None, Field(description="Part of a tag", max_length=512)] = None,
    dangling: Annotated[bool | None, Field(description="Only untagged (true) or tagged (false) ones")] = None,
    limit: Annotated[int, Field(description="Most rows", ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Field(description="next_cursor of the page before", max_length=256)] = None,
    engine: Engine = None,
) -> answers.ImageListAnswer:
    """List images of all engines, newest first, with their size and the containers made of them."""
    given = {"name": name, "dangling": dangling, "engine": engine}
    page = await stored_images.list_images(
        ctx.engines,
        engine=engine,
        name=name,
        dangling=dangling,
        limit=limit,
        after=cursors.decode(cursor, "image_list", given) if cursor is not None else None,
    )
    answer = answers.ImageListAnswer(
        images=[_row(one) for one in page.images],
        total=page.total,
        next_cursor=cursors.encode("image_list", given, page.next_key) if page.next_key else None,
        failed=list(page.failed),
    )
    return answer.with_cursors(
        lambda index: cursors.encode("image_list", given, stored_images.image_key(page.images[index].row))
    )


@mcp_tool(title="Images: inspect", read_only=True, idempotent=True, toolset="core")
async def image_inspect(ctx: Context, *, image: Image, engine: Engine = None) -> answers.ImageInspectAnswer:
    """Show an image's configuration and layers, the largest first, and what could shrink it."""
    _, found = await stored_images.locate(ctx.engines, image, engine=engine)
    advice = stored_images.advise(found)
    layers = stored_images.largest_first(found)
    total = found.size_bytes
    return answers.ImageInspectAnswer(
        id=_short(found.id),
        image_name=image,
        tags=list(found.tags),
        platform="/".join(part for part in (found.os, found.architecture, found.variant) if part),
        created=found.created.isoformat(timespec="seconds") if found.created else None,
        user=found.user or "root",
        entrypoint=list(found.entrypoint) or None,
        command=list(found.command) or None,
        workdir=found.workdir or None,
        env=list(found.env),
        exposed_ports=list(found.exposed_ports),
        volumes=list(found.volumes),
        labels=dict(found.labels),
        healthcheck=" ".join(found.healthcheck.test[1:]) if found.healthcheck else None,
        total_size_bytes=total,
        size_mb=round(total / _MEGABYTE, 2),
        layers_count=len(layers),
        average_layer_size_mb=round(total / _MEGABYTE / len(layers), 2) if layers else 0.0,
        largest_layer_mb=round(layers[0].size_bytes / _MEGABYTE, 2) if layers else 0.0,
        size_efficiency=stored_images.efficiency(found, advice),
        optimization_score=stored_images.score(found, advice),
        layers=[
            answers.LayerRow(size_bytes=one.size_bytes, instruction=one.instruction[:_LONGEST_INSTRUCTION])
            for one in layers
        ],
        suggestions=[one.text for one in advice],
    )


async def _plan_tag(ctx: Context, *, source: str, target: str, engine: str | None) -> Plan | None:
    chosen, found = await stored_images.locate(ctx.engines, source, engine=engine)
    change = await stored_images.plan_tag(chosen, found, _tagged(target))
    return Plan(f"Move the name {target}", change.lost, change.digest) if change is not None else None


@mcp_tool(title="Images: tag", read_only=False, destructive=True, idempotent=True, plan=_plan_tag, toolset="core")
async def image_tag(
    ctx: Context,
    *,
    source: Image,
    target: Annotated[str, Field(description="New name, e.g. shop/web:1.2", max_length=512)],
    engine: Engine = None,
) -> answers.ImageTagAnswer:
    """Give an image another name. Taking a name from another image needs a confirmation."""
    wanted = _tagged(target)
    chosen, found = await stored_images.locate(ctx.engines, source, engine=engine)
    await chosen.tag_image(found.id, wanted)
    return answers.ImageTagAnswer(id=_short(found.id), source=source, target=wanted)


async def _plan_remove(ctx: Context, *, image: str, force: bool, engine: str | None) -> Plan | None:
    chosen, found = await stored_images.locate(ctx.engines, image, engine=engine)
    change = await stored_images.plan_removal(chosen, found, image, force=force)
    if chosen.owns("image", change.image_id):
        return None
    return Plan(f"Remove image {image}", change.lost, change.digest)


@mcp_tool(title="Images: remove", read_only=False, destructive=True, plan=_plan_remove, toolset="core")
async def image_remove(
    ctx: Context,
    *,
    image: Image,
    force: Annotated[bool, Field(description="Also when containers use it or it has several tags")] = False,
    engine: Engine = None,
) -> answers.ImageRemoveAnswer:
    """Remove an image, or one name of it. One that this server run did not build needs a confirmation."""
    chosen, found = await stored_images.locate(ctx.engines, image, engine=engine)
    change = await stored_images.plan_removal(chosen, found, image, force=force)
    gone = await chosen.remove_image(image, force=force)
    return answers.ImageRemoveAnswer(id=_short(change.image_id), removed=[_gone(one) for one in gone])


def _row(one: stored_images.ListedImage) -> answers.ImageListRow:
    row = one.row
    return answers.ImageListRow(
        id=_short(row.id),
        tags=list(row.tags),
        size_bytes=row.size_bytes,
        created=row.created.isoformat(timespec="seconds").replace("+00:00", "Z"),
        used_by=list(one.used_by),
        engine=row.engine,
    )


def _tagged(text: str) -> str:
    parsed = reference.parse(text)
    if parsed.digest is not None:
        raise errors.InvalidArgument("A name for an image has no digest.", hint="leave the part behind '@' out")
    return str(parsed)


def _gone(one: str) -> str:
    return f"image {_short(one)}" if one.startswith("sha256:") else f"name {one}"


def _short(id: str) -> str:
    return id.removeprefix("sha256:")[:12]
