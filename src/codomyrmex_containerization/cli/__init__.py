"""The face of a person's terminal and of scripts: `cxc`."""
