"""Has a person agreed to just this? Tokens that hold for one call, once, for a minute, in this process."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from codomyrmex_containerization.tools._decorator import Plan

TOKEN_SECONDS = 60.0
QUESTION_SECONDS = 600.0
_MOST_TOKENS = 200

TokenKind = Literal["token", "question"]
Verdict = Literal["valid", "unknown", "expired", "other"]


@dataclass(frozen=True, slots=True)
class _Issued:
    kind: TokenKind
    digest: str
    until: float


class Tokens:
    """The tokens that are out."""

    def __init__(self) -> None:
        self._issued: dict[str, _Issued] = {}

    def issue(self, kind: TokenKind, digest: str) -> str:
        """Return a new token for a plan's digest: `token` for a client without questions, `question` as the state of a pending one."""
        now = time.monotonic()
        self._issued = {token: one for token, one in self._issued.items() if one.until > now}
        while len(self._issued) >= _MOST_TOKENS:
            self._issued.pop(next(iter(self._issued)))
        token = secrets.token_urlsafe(12)
        self._issued[token] = _Issued(kind, digest, now + (TOKEN_SECONDS if kind == "token" else QUESTION_SECONDS))
        return token

    def redeem(self, token: str, kind: TokenKind, digest: str) -> Verdict:
        """Use a token up and say whether it was good for this digest."""
        issued = self._issued.pop(token, None)
        if issued is None or issued.kind != kind:
            return "unknown"
        if issued.until <= time.monotonic():
            return "expired"
        return "valid" if hmac.compare_digest(issued.digest, digest) else "other"


def digest(tool: str, arguments: Mapping[str, object], plan: Plan) -> str:
    """Bind a confirmation to the tool, all of its arguments and the state that the person was told of."""
    text = json.dumps([tool, dict(arguments), plan.digest], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def question(plan: Plan) -> str:
    """Return what a person is asked."""
    return f"{plan.action}? Lost would be: {'; '.join(plan.lost)}."
