"""What an agent can ask for: one module a toolset, found by discovery."""
