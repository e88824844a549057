"""Tests of the engines. The parts of the contract suite are no test modules, but their assertions are to be as talkative."""

import pytest

_PARTS = ("containers", "output", "commands", "files", "images", "storage", "faults")
pytest.register_assert_rewrite("tests.engines.contract", *(f"tests.engines.contract_{part}" for part in _PARTS))
