"""Which tools are there? All marked functions of the public modules of this package, by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from codomyrmex_containerization.tools._decorator import ToolSpec

_PACKAGE = "codomyrmex_containerization.tools"


# Modules (`lifecycle` of the toolset `storage`, the others of their own names) whose tools are in no listing that does not name them.
ON_DEMAND = frozenset({"lifecycle", "monitoring", "registry", "storage"})


class Catalogue(Mapping[str, ToolSpec]):
    """All tools by name. The toolsets on demand are imported when somebody looks for what is not in the others."""

    def __init__(self) -> None:
        package = importlib.import_module(_PACKAGE)
        names = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
        self._waiting = sorted(names & ON_DEMAND)
        self._found = _imported(sorted(names - ON_DEMAND))

    @property
    def usual(self) -> Mapping[str, ToolSpec]:
        """The tools that were imported already: at least those of every toolset that is not on demand."""
        return self._found

    def __getitem__(self, name: str) -> ToolSpec:
        return self._found[name] if name in self._found else self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> Mapping[str, ToolSpec]:
        if self._waiting:
            more = _imported(self._waiting)
            twice = sorted(more.keys() & self._found.keys())
            if twice:
                raise ValueError(f"two tools are named {twice[0]}")
            self._found, self._waiting = dict(sorted({**self._found, **more}.items())), []
        return self._found


@functools.cache
def all_tools() -> Catalogue:
    """Return all tools, sorted by name."""
    return Catalogue()


def _imported(names: Iterable[str]) -> dict[str, ToolSpec]:
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
    if isinstance(tools, Catalogue) and not singles and not sets & {"all", *ON_DEMAND}:
        tools = tools.usual
    return {
        name: spec
        for name, spec in tools.items()
        if name not in out
        and ("all" in sets or spec.toolset in sets or (spec.essential and "default" in sets) or name in singles)
    }
