"""The one way into a tool, for every face."""
