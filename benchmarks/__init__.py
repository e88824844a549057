"""How fast and how small is the server, beside the plainest thing that does the same? `scripts/bench` runs this."""
