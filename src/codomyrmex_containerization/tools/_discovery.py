"""Which tools are there? All marked functions of the public modules of this package, by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType

from codomyrmex_containerization.tools._decorator import ToolSpec

_PACKAGE = "codomyrmex_containerization.tools"


@functools.cache
def all_tools() -> Mapping[str, ToolSpec]:
    """Import the toolsets and return their tools, sorted by name."""
    package = importlib.import_module(_PACKAGE)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))
    return collect(importlib.import_module(f"{_PACKAGE}.{name}") for name in names)


def collect(modules: Iterable[ModuleType]) -> dict[str, ToolSpec]:
    """Return the tools that the modules define themselves. Raises ValueError for a name that stands twice."""
    found: dict[str, ToolSpec] = {}
    for module in modules:
        for _, function in inspect.getmembers(module, inspect.isfunction):
            spec = getattr(function, "__mcp_tool__", None)
            if not isinstance(spec, ToolSpec) or function.__module__ != module.__name__:
                continue
            if spec.name in found:
                raise ValueError(
                    f"two tools are named {spec.name}: in {found[spec.name].function.__module__} and {module.__name__}"
                )
            found[spec.name] = spec
    return dict(sorted(found.items()))


def toolsets(tools: Mapping[str, ToolSpec]) -> tuple[str, ...]:
    """Return the names of the toolsets."""
    return tuple(sorted({spec.toolset for spec in tools.values()}))


def enabled(
    tools: Mapping[str, ToolSpec], *, wanted: Iterable[str], extra: Iterable[str], excluded: Iterable[str]
) -> dict[str, ToolSpec]:
    """Return the tools that the settings offer: of the toolsets (`default`: the essential ones, `all`), beside single ones."""
    sets, singles, out = set(wanted), set(extra), set(excluded)
    return {
        name: spec
        for name, spec in tools.items()
        if name not in out
        and ("all" in sets or spec.toolset in sets or (spec.essential and "default" in sets) or name in singles)
    }
