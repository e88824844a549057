"""The MCP face; the only room that knows the MCP library."""
