"""Does every engine keep the contract? Each behaviour of the suite, unchanged, on each engine that is there.

SPEC B81, SPEC B83.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from codomyrmex_containerization.models.engine import CAPABILITIES
from tests.engines import (  # noqa: F401  each part enters its behaviours
    contract_commands,
    contract_containers,
    contract_engines,
    contract_faults,
    contract_files,
    contract_images,
    contract_inside,
    contract_output,
    contract_storage,
    contract_table,
)
from tests.engines.contract import BEHAVIOURS, Bench, hold

RESULTS = "CXC_CONTRACT_TABLE"  # a file that the results are added to, for tests/engines/contract_table.py


@pytest.fixture(scope="module", params=contract_engines.PARAMETERS)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """One engine with its base image, for all behaviours; what they leave is taken away with it."""
    with ExitStack() as stack:
        found = stack.enter_context(contract_engines.opened(request.param, request))
        if found.attend is not None:
            stack.callback(asyncio.create_task(found.attend()).cancel)
        made = Bench(found.engine, await found.engine.info(), found.image, found.folder, found.dial)
        try:
            yield made
        finally:
            await made.aclose()


@pytest.fixture
def results() -> contract_table.Results | None:
    """Where the outcome is written, when somebody wants the table."""
    file = os.environ.get(RESULTS)
    return contract_table.Results(Path(file)) if file else None


@pytest.mark.parametrize("name", BEHAVIOURS)
async def test_engine_keeps_the_contract(
    bench: Bench, name: str, results: contract_table.Results | None, request: pytest.FixtureRequest
) -> None:
    engine = request.node.callspec.params["bench"]
    outcome = "no"
    try:
        outcome = await hold(BEHAVIOURS[name], bench)
    finally:
        if results is not None:
            results.add(engine, bench.info, BEHAVIOURS[name], outcome)


def test_suite_covers_every_capability() -> None:
    assert {one for behaviour in BEHAVIOURS.values() for one in behaviour.needs} == set(CAPABILITIES)


def test_every_behaviour_has_a_title_of_its_own() -> None:
    titles = [(behaviour.section, behaviour.title) for behaviour in BEHAVIOURS.values()]
    assert all(title for _, title in titles)
    assert len(set(titles)) == len(titles)
