"""What are the programs that make bridges told of the place where they do: the host itself, or an ordinary user's hub?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from codomyrmex_containerization.engines.embedded import lives

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin", "LC_ALL": "C"}
_HOSTS_LOCKS = Path("/run/codomyrmex-containerization/firewall")  # one for this host
_PASSED_ON = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")  # by which systemd, where there is one, is asked


@dataclass(frozen=True, slots=True)
class Ground:
    """Where bridges lie. A hub has a server of names of its own, and the host has not."""

    dns: Path
    locks: Path = _HOSTS_LOCKS
    nameserver: str = ""

    @property
    def is_hub(self) -> bool:
        """Whether it is an ordinary user's."""
        return bool(self.nameserver)

    @property
    def environment(self) -> dict[str, str]:
        """What programs get that change rules."""
        if not self.is_hub:
            return {**_ENVIRONMENT, **lives.mark()}
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # An ordinary user may not write to the lock in /run, which is for rules of the host's.
        return {**_ENVIRONMENT, **lives.mark(), **passed, "XTABLES_LOCKFILE": str(self.locks / "xtables.lock")}
