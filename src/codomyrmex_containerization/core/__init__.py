"""The core room: containers, images and builds on any engine."""
