"""How many bytes does a text such as `512m` mean, and how is a number of bytes shown?"""

from __future__ import annotations

import re

from codomyrmex_containerization import errors

_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*(?:([kmgt])?(?:i?b)?)\Z", re.IGNORECASE)
_FACTORS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse(value: str | int, *, name: str = "size") -> int:
    """Return bytes of `512m`, `1.5g`, `64MiB`, `1024` (binary units, as Docker's `--memory`).

    Raises InvalidArgument for anything else, zero and negative numbers included.
    """
    if isinstance(value, int):
        result = value
    else:
        match = _SIZE.match(value.strip())
        if match is None:
            raise _invalid(value, name)
        result = int(float(match[1]) * _FACTORS[(match[2] or "").lower()])
    if not 0 < result < 2**63:
        raise _invalid(value, name)
    return result


def show(size_bytes: int | float | None) -> str:
    """Show bytes shortly: `1.4M`, `512K`, `17B`; `-` for None."""
    if size_bytes is None:
        return "-"
    amount = float(size_bytes)
    for unit in ("B", "K", "M", "G"):
        if amount < 1024:
            return f"{amount:.0f}{unit}" if unit == "B" or amount >= 100 else f"{amount:.3g}{unit}"
        amount /= 1024
    return f"{amount:.3g}T"


def _invalid(value: object, name: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"{name} = {value!r} is no size.", hint="give a positive number of bytes or a text such as '512m' or '1.5g'"
    )
