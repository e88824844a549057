"""What does the engine of our own do, which needs neither Docker nor Podman? Containers by an OCI runtime and conmon, without a daemon."""
