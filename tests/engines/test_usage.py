"""Do both ways to a busy container's usage, files and API, say what the engine's own `stats` says, within 5 %?

Counters only grow, so each of ours is held between two of the engine's: no clock decides.
"""

from __future__ import annotations
