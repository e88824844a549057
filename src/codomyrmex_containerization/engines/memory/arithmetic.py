"""What does `$((...))` come to?"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

_TOKEN = re.compile(r"\s*(0[xX][0-9a-fA-F]+|\d+|[A-Za-z_]\w*|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%]=|[-+*/%<>!~&|^()=?:])")
_LEVELS = (("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"), ("+", "-"))
_TIMES = ("*", "/", "%")
_LARGEST_SHIFT = 63


class Problem(Exception):
    """Text that is no arithmetic."""


def evaluate(text: str, variables: MutableMapping[str, str]) -> int:
    """Return the value; assignments change the variables. Raises Problem."""
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise Problem("arithmetic syntax error")
        tokens.append(match[1])
        at = match.end()
    if not tokens:
        return 0
    reader = _Reader(tokens, variables)
    value = reader.assignment()
    if reader.peek():
        raise Problem("arithmetic syntax error")
    return value


class _Reader:
    def __init__(self, tokens: list[str], variables: MutableMapping[str, str]) -> None:
        self._tokens = tokens[::-1]
        self._variables = variables

    def peek(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def assignment(self) -> int:
        operators = ("=", "+=", "-=", "*=", "/=", "%=")
        if len(self._tokens) > 1 and self._tokens[-2] in operators and self.peek().isidentifier():
            name, operator = self._tokens.pop(), self._tokens.pop()
            value = self.assignment()
            if operator != "=":
                value = _apply(operator[0], self._variable(name), value)
            self._variables[name] = str(value)
            return value
        value = self._level(0)
        if self.peek() == "?":
            self._tokens.pop()
            yes = self.assignment()
            if self.peek() != ":":
                raise Problem("arithmetic syntax error")
            self._tokens.pop()
            no = self.assignment()
            return yes if value else no
        return value

    def _level(self, level: int) -> int:
        operators = _LEVELS[level] if level < len(_LEVELS) else _TIMES
        value = self._below(level)
        while self.peek() in operators:
            operator = self._tokens.pop()
            value = _apply(operator, value, self._below(level))
        return value

    def _below(self, level: int) -> int:
        return self._level(level + 1) if level < len(_LEVELS) else self._unary()

    def _unary(self) -> int:
        if not self._tokens:
            raise Problem("arithmetic syntax error")
        token = self._tokens.pop()
        match token:
            case "-":
                return -self._unary()
            case "+":
                return self._unary()
            case "!":
                return int(not self._unary())
            case "~":
                return ~self._unary()
            case "(":
                value = self.assignment()
                if self.peek() != ")":
                    raise Problem("arithmetic syntax error")
                self._tokens.pop()
                return value
        if token[0].isdigit():
            return int(token, 16) if token[:2].lower() == "0x" else int(token)
        if token.isidentifier():
            return self._variable(token)
        raise Problem("arithmetic syntax error")

    def _variable(self, name: str) -> int:
        text = self._variables.get(name, "").strip()
        try:
            return int(text or "0", 0)
        except ValueError:
            return int(text) if text.lstrip("-").isdigit() else 0


def _apply(operator: str, left: int, right: int) -> int:
    if operator in ("/", "%") and right == 0:
        raise Problem("divide by zero")
    if operator in ("<<", ">>") and not 0 <= right <= _LARGEST_SHIFT:
        raise Problem("shift out of range")
    match operator:
        case "||":
            value = int(bool(left or right))
        case "&&":
            value = int(bool(left and right))
        case "|":
            value = left | right
        case "^":
            value = left ^ right
        case "&":
            value = left & right
        case "==" | "!=":
            value = int((left == right) == (operator == "=="))
        case "<" | ">" | "<=" | ">=":
            value = int({"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}[operator])
        case "<<":
            value = left << right
        case ">>":
            value = left >> right
        case "+":
            value = left + right
        case "-":
            value = left - right
        case "*":
            value = left * right
        case _:
            quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            value = quotient if operator == "/" else left - quotient * right
    return (value + 2**63) % 2**64 - 2**63
