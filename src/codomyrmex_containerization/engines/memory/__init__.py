"""How does an engine look that keeps everything in this process's memory? See `engine.py` for what it is and is not."""
