"""What does a Podman engine need that a Docker engine does not?"""
