"""How does an image get from a registry to an engine, from an engine to a registry, and from a registry to another one?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from codomyrmex_containerization import errors, policy, threads
from codomyrmex_containerization.clients import credentials, descriptors, distribution, registries, transfer
from codomyrmex_containerization.engines import base, guard
from codomyrmex_containerization.engines.embedded import content_config
from codomyrmex_containerization.models import reference
from codomyrmex_containerization.models.settings import PolicySettings, RegistrySettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    Progress = Callable[[float, float | None, str], Awaitable[None]]

_MOST_REPORTS = 1000


@dataclass(frozen=True, slots=True)
class Desk:
    """With what registries are spoken to: the user's settings and credentials, and who hears what nobody may see."""

    settings: RegistrySettings
    rules: PolicySettings
    learn: Callable[[str], None]
    environ: Mapping[str, str]

    def work(self) -> AbstractAsyncContextManager[distribution.Work]:
        """Begin a piece of work without an engine."""
        return distribution.Client(self.settings, environ=self.environ, learn=self.learn).work()

    def readable(self, text: str) -> reference.ImageReference:
        """Return what a text names, where the policy lets it be read. Raises InvalidArgument, Refused."""
        wanted = reference.parse(text)
        policy.judge_pull(wanted.domain, self.rules)
        return wanted

    async def credential(self, wanted: reference.ImageReference) -> credentials.Credential | None:
        """Return the user's credentials for a repository."""
        return await credentials.Keyring(self.environ, learn=self.learn).find(wanted.domain, wanted.path)

    def is_insecure(self, registry: str) -> bool:
        """Say whether TLS may be missing there."""
        site = registries.Places(self.settings).site(registry)
        return site.is_insecure or site.is_loopback


@dataclass(frozen=True, slots=True)
class Done:
    """What was transferred, under which name, and how long it took."""

    name: str
    transfer: base.Transfer
    seconds: float


def host_platform() -> descriptors.Platform:
    """Return what this machine runs."""
    return descriptors.Platform("linux", content_config.host_architecture())


def target_of(text: str) -> reference.ImageReference:
    """Return where something is to go: a tag. Raises InvalidArgument."""
    found = reference.parse(text)
    if found.digest is not None:
        raise errors.InvalidArgument(f"{text[:80]!r} is no tag: it has a digest.", hint="leave out what follows '@'")
    return found


async def pull(engine: guard.GuardedEngine, image: str, *, platform: str | None, progress: Progress) -> Done:
    """Pull an image by its engine. Raises NotFound, Unauthorized, Refused, EngineUnavailable, Unsupported, InvalidArgument."""
    if platform is not None:
        descriptors.platform_of(platform)
    name, began = str(reference.parse(image)), time.monotonic()
    done = await _followed(engine.pull_image(name, platform=platform), f"pulling {name}", progress)
    row = await engine.image_details(name)
    told = next((one.partition("@")[2] for one in row.digests), "")
    done = replace(done, id=row.id, digest=done.digest or told)
    return Done(name, done, time.monotonic() - began)


async def push(
    engine: guard.GuardedEngine, image: str, target: reference.ImageReference, desk: Desk, *, progress: Progress
) -> Done:
    """Push an image by its engine. Raises as `Engine.push_image`."""
    began, name = time.monotonic(), str(target)
    steps = engine.push_image(
        image, name, credential=await desk.credential(target), insecure=desk.is_insecure(target.domain)
    )
    done = await _followed(steps, f"pushing {name}", progress)
    if not done.digest:  # an engine that does not say it: the registry does
        async with desk.work() as work:
            found = await work.repository(target).manifests.look(target.tag or reference.DEFAULT_TAG)
        done = replace(done, digest=found.digest if found is not None else "")
    return Done(name, done, time.monotonic() - began)


async def _followed(
    opened: AbstractAsyncContextManager[AsyncIterator[base.PullProgress]], what: str, progress: Progress
) -> base.Transfer:
    last: base.Transfer | None = None
    async with opened as steps:
        async for step in steps:
            last = step.done or last
            await progress(step.done_bytes, step.total_bytes or None, f"{what}: {step.text}")
    if last is None:
        raise errors.EngineUnavailable(
            f"The engine ended {what} without a word.", hint="see container_runtime_status, then try again"
        )
    return last


async def copy(
    desk: Desk,
    source: reference.ImageReference,
    target: reference.ImageReference,
    *,
    all_platforms: bool,
    referrers: bool,
    progress: Progress,
) -> tuple[transfer.Copied, float]:
    """Copy an image from registry to registry. Raises NotFound, Unauthorized, InvalidArgument, EngineUnavailable."""
    began, sent = time.monotonic(), 0
    results: list[transfer.Copied] = []
    send, receive = anyio.create_memory_object_stream[tuple[str, int]](_MOST_REPORTS)

    def told(text: str, count: int) -> None:
        nonlocal sent
        sent += count
        with suppress(anyio.WouldBlock):  # nobody may listen so fast
            send.send_nowait((text, sent))

    async def carry() -> None:
        platform = None if all_platforms else host_platform()
        async with send, desk.work() as work:
            results.append(await transfer.copy(work, source, target, platform=platform, referrers=referrers, told=told))

    async with threads.task_group() as tasks, receive:
        tasks.start_soon(carry)
        async for text, count in receive:
            await progress(count, None, text)
    return results[0], time.monotonic() - began
