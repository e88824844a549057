"""Docker behind the engine contract; the only room that knows docker-py."""
