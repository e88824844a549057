"""Images between engines and registries, and what registries hold."""
