"""Registries of images: pull, push, look, list, copy, remove (toolset `registry`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from codomyrmex_containerization import errors, policy
from codomyrmex_containerization.clients.descriptors import Index
from codomyrmex_containerization.context import Context
from codomyrmex_containerization.core import lifecycle, stored_images
from codomyrmex_containerization.models import cursor as cursors
from codomyrmex_containerization.models import reference as references
from codomyrmex_containerization.registry import images, transfers
from codomyrmex_containerization.tools import _registry_answers as answers
from codomyrmex_containerization.tools._decorator import Plan, mcp_tool

_TRANSFER_SECONDS = 3600.0
_LOOK_SECONDS = 120.0
_LONGEST_TEXT = 400
_MOST_TEXTS = 100
_ATTESTED = "vnd.docker.reference.type"

Engine = Annotated[str | None, Field(description="If not the default", max_length=64)]
Reference = Annotated[str, Field(description="e.g. registry.example/shop/web:1.2, or by digest", max_length=512)]
Target = Annotated[str, Field(description="New name, e.g. registry.example/shop/web:1.2", max_length=512)]
Platform = Annotated[str | None, Field(description="e.g. linux/arm64; else this machine's", max_length=64)]


def _desk(ctx: Context) -> transfers.Desk:
    return transfers.Desk(ctx.settings.registries, ctx.settings.policy, ctx.redactor.learn, os.environ)


# ----------------------------------------------------------------------------------------------------------- with engines


@mcp_tool(
    title="Registries: pull", read_only=False, open_world=True, essential=False, deadline=lambda _: _TRANSFER_SECONDS
)
async def registry_pull(
    ctx: Context, *, image: Reference, platform: Platform = None, engine: Engine = None
) -> answers.PullAnswer:
    """Pull an image from its registry into an engine; what is there already is not fetched again."""
    chosen = await ctx.engines.pick(engine)
    found = await transfers.pull(chosen, image, platform=platform, progress=ctx.progress)
    done = found.transfer
    return answers.PullAnswer(
        image=found.name,
        id=_short(done.id),
        digest=done.digest,
        layers_pulled=done.moved,
        layers_there=done.there,
        pulled_bytes=done.moved_bytes,
        seconds=round(found.seconds, 3),
        engine=chosen.name,
    )


def _push_target(image: str, target: str | None) -> references.ImageReference:
    if target is None and references.is_image_id(image):
        raise errors.InvalidArgument(
            f"{image} is an id and says no registry.", hint="pass target, e.g. registry.example/shop/web:1.2"
        )
    return transfers.target_of(target if target is not None else image)


async def _plan_push(ctx: Context, *, image: str, target: str | None, engine: str | None) -> Plan | None:
    wanted = _push_target(image, target)
    chosen, found = await stored_images.locate(ctx.engines, image, engine=engine)
    if policy.is_push_free(wanted.domain, ctx.settings.policy):
        return None
    action = f"Push image {image} ({_short(found.id)}) of {chosen.name} to {wanted}"
    return Plan(action, _published(image, wanted), f"{found.id}:{wanted}")


def _published(image: str, wanted: references.ImageReference) -> tuple[str, ...]:
    return (
        f"what {wanted} names there now",
        f"control over who reads {image}: whoever may read {wanted.name} there can",
    )


@mcp_tool(
    title="Registries: push",
    read_only=False,
    destructive=True,
    open_world=True,
    essential=False,
    plan=_plan_push,
    deadline=lambda _: _TRANSFER_SECONDS,
)
async def registry_push(
    ctx: Context,
    *,
    image: Annotated[str, Field(description="Reference or id on the engine", max_length=512)],
    target: Annotated[str | None, Field(description="Name there, if not the image's own", max_length=512)] = None,
    engine: Engine = None,
) -> answers.PushAnswer:
    """Push an image of an engine to a registry. One that policy.push_registries does not list asks first."""
    wanted = _push_target(image, target)
    chosen, found = await stored_images.locate(ctx.engines, image, engine=engine)
    done = await transfers.push(chosen, found.id, wanted, _desk(ctx), progress=ctx.progress)
    return answers.PushAnswer(
        image=image,
        target=done.name,
        digest=done.transfer.digest,
        layers_uploaded=done.transfer.moved,
        layers_mounted=done.transfer.mounted if done.transfer.moved is not None else None,
        layers_there=done.transfer.there,
        uploaded_bytes=done.transfer.moved_bytes,
        seconds=round(done.seconds, 3),
        engine=chosen.name,
    )


# -------------------------------------------------------------------------------------------------------- without engines


@mcp_tool(
    title="Registries: inspect",
    read_only=True,
    idempotent=True,
    open_world=True,
    essential=False,
    deadline=lambda _: _LOOK_SECONDS,
)
async def registry_inspect(
    ctx: Context,
    *,
    reference: Reference,
    platform: Platform = None,
    detail: Annotated[
        bool, Field(description="Also layers, configuration, annotations, and signatures, SBOMs and the like")
    ] = False,
) -> answers.RegistryInspectAnswer:
    """Look at an image in its registry without pulling it: digest, platforms, size, age. Needs no engine."""
    desk = _desk(ctx)
    wanted = desk.readable(reference)
    async with desk.work() as work:
        found = await images.inspect(work, wanted, platform=platform, detail=detail)
    _learn(ctx, found)
    return _inspected(str(wanted), found, detail=detail)


def _learn(ctx: Context, found: images.Inspected) -> None:
    """Have the secrets that an image carries masked, wherever they turn up."""
    all_notes = [found.found.annotations, found.image.annotations if found.image is not None else {}]
    if found.described is not None:
        config = found.described.config
        all_notes += [config.labels, dict(entry.split("=", 1) for entry in config.env if "=" in entry)]
    for notes in all_notes:
        ctx.redactor.learn_named(notes)
        ctx.redactor.learn_named({name: lifecycle.shown(value) for name, value in notes.items()})


def _word(text: str) -> str:
    """Return a text of a registry on one line, without what acts on a terminal, and of a length that an answer can hold."""
    return lifecycle.shown(text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}[...]")


def _words(texts: Sequence[str]) -> list[str]:
    more = [f"[{len(texts) - _MOST_TEXTS:,} more]"] if len(texts) > _MOST_TEXTS else []
    return [*map(_word, texts[:_MOST_TEXTS]), *more]


def _notes(notes: Mapping[str, str]) -> dict[str, str]:
    shown = {_word(name): _word(value) for name, value in list(notes.items())[:_MOST_TEXTS]}
    return shown | ({"[...]": f"{len(notes) - _MOST_TEXTS:,} more"} if len(notes) > _MOST_TEXTS else {})


def _inspected(name: str, found: images.Inspected, *, detail: bool) -> answers.RegistryInspectAnswer:
    image, described = found.image, found.described
    is_index = isinstance(found.found, Index)
    kind = "index" if is_index else "image" if described is not None else _kind(found)
    platform = [described.os, described.architecture, described.variant] if described is not None else []
    return answers.RegistryInspectAnswer(
        reference=name,
        digest=found.found.digest,
        media_type=found.found.media_type,
        kind=_word(kind),
        platforms=[
            answers.PlatformRow(
                platform=_word(str(one.platform)) if one.platform is not None else "any",
                digest=one.digest,
                kind=_word(one.annotations.get(_ATTESTED) or one.artifact_type) or None,
            )
            for one in (found.found.manifests if isinstance(found.found, Index) else ())
        ],
        platform=_word("/".join(one for one in platform if one)) or None,
        image_digest=image.digest if image is not None and is_index else None,
        image_id=image.config.digest if image is not None and described is not None else None,
        size_bytes=sum(one.size_bytes for one in image.blobs) if image is not None else None,
        layers_count=len(image.layers) if image is not None else None,
        created=(
            described.created.isoformat(timespec="seconds") if described is not None and described.created else None
        ),
        annotations=(_notes({**(image.annotations if image is not None else {}), **found.found.annotations}) or None)
        if detail
        else None,
        layers=[
            answers.BlobRow(digest=one.digest, size_bytes=one.size_bytes, media_type=_word(one.media_type))
            for one in (image.layers if image is not None and detail else ())
        ],
        configuration=_configuration(found) if detail else None,
        referrers=[
            answers.ReferrerRow(
                artifact_type=_word(one.artifact_type or one.media_type), digest=one.digest, size_bytes=one.size_bytes
            )
            for one in found.referrers
        ],
    )


def _kind(found: images.Inspected) -> str:
    image = found.image
    return (image.artifact_type or image.config.media_type) if image is not None else "image"


def _configuration(found: images.Inspected) -> answers.ConfigurationRow | None:
    if found.described is None:
        return None
    config = found.described.config
    return answers.ConfigurationRow(
        user=_word(config.user) or "root",
        entrypoint=_words(config.entrypoint) or None,
        command=_words(config.command) or None,
        workdir=_word(config.workdir) or None,
        env=_words(config.env),
        exposed_ports=_words(config.exposed),
        volumes=_words(config.volumes),
        labels=_notes(config.labels),
        history=_words([layer.instruction for layer, _ in found.described.history]),
    )


@mcp_tool(
    title="Registries: list",
    read_only=True,
    idempotent=True,
    open_world=True,
    essential=False,
    deadline=lambda _: _LOOK_SECONDS,
)
async def registry_list(
    ctx: Context,
    *,
    repository: Annotated[
        str | None, Field(description="List its tags, e.g. registry.example/shop/web", max_length=512)
    ] = None,
    registry: Annotated[
        str | None, Field(description="List its repositories, e.g. registry.example:5000", max_length=255)
    ] = None,
    filter: Annotated[
        str | None, Field(description="Part of the name, or a pattern such as 1.*", max_length=256)
    ] = None,
    limit: Annotated[int, Field(description="Most rows", ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Field(description="next_cursor of the page before", max_length=256)] = None,
) -> answers.RegistryListAnswer:
    """List a repository's tags, the highest version first, or a registry's repositories. Give one of the two. Needs no engine."""
    given = {"repository": repository, "registry": registry, "filter": filter}
    after = cursors.decode(cursor, "registry_list", given) if cursor is not None else None
    if (repository is None) == (registry is None):
        raise errors.InvalidArgument(
            "Either a repository or a registry is listed.",
            hint="pass repository for its tags, registry for its repositories",
        )
    desk = _desk(ctx)
    if registry is not None:
        name = images.registry_of(registry)
        policy.judge_pull(name, desk.rules)
        async with desk.work() as work:
            page = await images.list_repositories(work, name, filter=filter, limit=limit, after=after)
    else:
        wanted = desk.readable(str(repository))
        async with desk.work() as work:
            page = await images.list_tags(work, wanted, filter=filter, limit=limit, after=after)
    answer = answers.RegistryListAnswer(
        kind="tags" if repository is not None else "repositories",
        names=list(page.names),
        total=page.total,
        complete=page.is_whole,
        next_cursor=cursors.encode("registry_list", given, page.next_key) if page.next_key else None,
    )

    def behind(index: int) -> str:
        return cursors.encode("registry_list", given, images.name_key(page.first + index, page.names[index]))

    return answer.with_cursors(behind)


async def _plan_copy(ctx: Context, *, source: str, target: str, **_: Any) -> Plan | None:
    origin, wanted = _desk(ctx).readable(source), transfers.target_of(target)
    if policy.is_push_free(wanted.domain, ctx.settings.policy):
        return None
    return Plan(f"Copy {origin} to {wanted}", _published(str(origin), wanted), f"{origin}:{wanted}")


@mcp_tool(
    title="Registries: copy",
    read_only=False,
    destructive=True,
    open_world=True,
    essential=False,
    plan=_plan_copy,
    deadline=lambda _: _TRANSFER_SECONDS,
)
async def registry_copy(
    ctx: Context,
    *,
    source: Reference,
    target: Target,
    all_platforms: Annotated[bool, Field(description="Else only the image for this machine's")] = True,
    referrers: Annotated[bool, Field(description="Also its signatures, SBOMs and the like")] = False,
) -> answers.RegistryCopyAnswer:
    """Copy an image from registry to registry, digests kept. Needs no engine. A target not in policy.push_registries asks first."""
    desk = _desk(ctx)
    origin, wanted = desk.readable(source), transfers.target_of(target)
    found, seconds = await transfers.copy(
        desk, origin, wanted, all_platforms=all_platforms, referrers=referrers, progress=ctx.progress
    )
    return answers.RegistryCopyAnswer(
        source=str(origin),
        target=str(wanted),
        digest=found.digest,
        manifests=found.manifests,
        blobs_uploaded=found.uploaded,
        blobs_mounted=found.mounted,
        blobs_there=found.there,
        uploaded_bytes=found.uploaded_bytes,
        seconds=round(seconds, 3),
    )


async def _plan_delete(ctx: Context, *, reference: str) -> Plan:
    desk = _desk(ctx)
    wanted = desk.readable(reference)
    async with desk.work() as work:
        found = await images.plan_deletion(work, wanted)
    lost = [f"{wanted.name}@{found.digest}", *(f"the tag {one}" for one in found.tags)]
    if found.unseen:
        lost.append(f"further tags, if any of the {found.unseen} that were not looked at means it")
    return Plan(f"Remove {wanted} from its registry", tuple(lost), f"{found.digest}:{found.tags}")


@mcp_tool(
    title="Registries: delete",
    read_only=False,
    destructive=True,
    open_world=True,
    essential=False,
    plan=_plan_delete,
    deadline=lambda _: _LOOK_SECONDS,
)
async def registry_delete(ctx: Context, *, reference: Reference) -> answers.RegistryDeleteAnswer:
    """Remove an image from its registry, with every tag that means the same digest. Asks first, naming them. Needs no engine."""
    desk = _desk(ctx)
    wanted = desk.readable(reference)
    async with desk.work() as work:
        found = await images.plan_deletion(work, wanted)
        left = await images.delete(work, wanted, found)
    return answers.RegistryDeleteAnswer(
        reference=str(wanted),
        digest=found.digest,
        tags=[one for one in found.tags if one not in left],
        tags_left=list(left),
    )


def _short(id: str) -> str:
    return id.removeprefix("sha256:")[:12]
