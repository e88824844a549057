"""The names of the codomyrmex project's own `containerization` module, served for real: the same names and keys, over the tools."""
