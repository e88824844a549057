"""How does a list go on? Opaque cursors that hold the tool, a digest of its arguments and the last row's key.

Paging is by key (created, id), so rows neither repeat nor vanish when others come and go.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping

from codomyrmex_containerization import errors

Key = tuple[float, str]


def encode(tool: str, arguments: Mapping[str, object], key: Key) -> str:
    """Return the cursor of the page that follows the row with this key."""
    return _packed([_digest(tool, arguments), key[0], key[1][:16]])


def decode(cursor: str, tool: str, arguments: Mapping[str, object]) -> Key:
    """Return the key that a cursor holds. Raises CursorMismatch when it was made elsewhere or for other arguments."""
    try:
        digest, created, id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        key = (float(created), str(id))
    except (ValueError, TypeError) as error:
        raise errors.CursorMismatch(
            "The cursor is no cursor of this server.", hint="call again without cursor"
        ) from error
    if digest != _digest(tool, arguments):
        raise errors.CursorMismatch(
            "The cursor belongs to a call with other arguments.",
            hint="repeat the first call's arguments with it, or call again without cursor",
        )
    return key


def _packed(body: list[object]) -> str:
    text = json.dumps(body, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _digest(tool: str, arguments: Mapping[str, object]) -> str:
    kept = {name: value for name, value in arguments.items() if name not in ("cursor", "limit")}
    return hashlib.sha256(json.dumps([tool, kept], sort_keys=True, default=str).encode()).hexdigest()[:12]
