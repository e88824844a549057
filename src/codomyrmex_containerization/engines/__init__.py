"""The engines: Docker, Podman, embedded, memory behind one contract, with the guard round it."""
