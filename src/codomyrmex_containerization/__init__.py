"""Containers for AI agents, pipelines and people: build, run, watch and remove them through one MCP server."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__", "mcp_tool"]


def __getattr__(name: str) -> object:
    # Lazy, so that importing the package costs nothing.
    if name == "mcp_tool":
        from codomyrmex_containerization.tools._decorator import mcp_tool

        return mcp_tool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
