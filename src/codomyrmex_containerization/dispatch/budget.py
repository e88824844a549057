"""How is an answer kept within its size? The longest parts that may be cut are cut, and the answer says so."""

from __future__ import annotations

import json
from typing import Any

from codomyrmex_containerization.tools._answer import Answer

_ROUNDS = 24
_ROOM_FOR_THE_NOTE = 300
_SHARES = (4, 8, 16, 32, 64, 128)
_CHARACTERS_A_ROW = 20


def fit(answer: Answer, limit: int) -> tuple[Answer, str]:
    """Return the answer and its text, both within `limit` characters, structured content included."""
    for _ in range(_ROUNDS):
        text = with_note(answer)
        size = max(len(text), len(structured(answer)))
        if size <= limit:
            return answer, text
        shorter = _shorter(answer, limit, size)
        if shorter is None:
            break
        answer = shorter
    return _clamped_answer(answer, limit)


def structured(answer: Answer) -> str:
    """Return the answer as compact JSON."""
    return answer.model_dump_json(exclude_none=True)


def with_note(answer: Answer) -> str:
    """Return the answer's text with what was cut at its end."""
    return f"{answer.text()}\n[{answer.truncated}]" if answer.truncated else answer.text()


def cut_text(text: str, limit: int) -> str:
    """Cut a text at the end, saying so."""
    if len(text) <= limit:
        return text
    note = f"\n[cut: {len(text):,} characters in all]"
    return text[: max(limit - len(note), 0)] + note


def _clamped_answer(answer: Answer, limit: int) -> tuple[Answer, str]:
    """Cut whatever is long, wherever it stands: for answers whose size is in parts that no tool meant to be long."""
    whole = answer.model_dump(mode="json", exclude_none=True)
    for share in _SHARES:
        note = f"long parts were cut to about {limit // share:,} characters each"
        answer = type(answer).model_validate({**_clamped(whole, limit // share), "truncated": note})
        if len(structured(answer)) <= limit:
            break
    return answer, cut_text(with_note(answer), limit)


def _clamped(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[:longest]}[... {len(value) - longest:,} more]"
    if isinstance(value, list):
        return [_clamped(one, longest) for one in value[: max(longest // _CHARACTERS_A_ROW, 1)]]
    if isinstance(value, dict):
        return {key: _clamped(one, longest) for key, one in list(value.items())[: max(longest // 2, 40)]}
    return value


def _shorter(answer: Answer, limit: int, size: int) -> Answer | None:
    sizes = {field: len(json.dumps(_plain(getattr(answer, field)), ensure_ascii=False)) for field in answer.cuttable}
    sizes = {field: size for field, size in sizes.items() if len(getattr(answer, field)) > 1}
    if not sizes:
        return None
    field = max(sizes, key=lambda name: sizes[name])
    second = max((other for name, other in sizes.items() if name != field), default=0)
    # Cut the longest part, but not below the next one, which is then cut as well.
    target = max(sizes[field] - (size - limit) - _ROOM_FOR_THE_NOTE, min(second, sizes[field] // 2), 0)
    value = getattr(answer, field)
    keep = min(int(len(value) * target / sizes[field]), len(value) - 1)
    return answer.cut(field, keep)


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [one.model_dump(mode="json", exclude_none=True) if hasattr(one, "model_dump") else one for one in value]
    return value
