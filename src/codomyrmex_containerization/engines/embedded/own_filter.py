"""How does a profile of system calls become a filter that the kernel runs? Compiled here, to classic BPF, without libseccomp.

Only calls of this machine's own convention are let through as the profile says; a program that makes those of another one, as of 32 bits,
is ended. What a profile says that is not known here is refused, never left out.
Source: https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import struct

from codomyrmex_containerization.engines.embedded import own_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LOAD, _AND, _RETURN, _JUMP = 0x20, 0x54, 0x06, 0x05
_IF_EQUAL, _IF_AT_LEAST, _IF_MORE = 0x15, 0x35, 0x25
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_KILL_PROCESS, _KILL_THREAD, _TRAP, _ERROR, _ALLOW = 0x80000000, 0, 0x00030000, 0x00050000, 0x7FFF0000
_EPERM = 1
_MOST_ERROR = 4095
_MOST_INSTRUCTIONS = 4096
_FARTHEST = 255
_HALF = 0xFFFFFFFF
_NOT_ALLOWED = ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP")

_Instruction = tuple[int, int, int, int]


class Unknown(Exception):
    """A profile says what cannot be said in a filter here."""


def compiled(profile: dict[str, Any], machine: str) -> bytes:
    """Return the filter. Raises Unknown."""
    numbers = own_syscalls.numbers(machine)
    if not numbers:
        raise Unknown(f"the system calls of {machine} are not known")
    if profile.get("defaultAction") not in _NOT_ALLOWED:
        raise Unknown("a profile that allows what it does not name")
    unknown = set(profile) - {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
    if unknown or profile.get("flags"):
        raise Unknown(f"{', '.join(sorted(unknown)) or 'flags'} in a profile of system calls")
    default = [_leave(_action(profile["defaultAction"], profile.get("defaultErrnoRet")))]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, own_syscalls.ARCHITECTURES[machine]),
        _leave(_KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        *_tree(_stretches(_rules(profile, numbers), default)),
    ]
    if len(program) > _MOST_INSTRUCTIONS:
        raise Unknown(f"a profile that needs {len(program)} instructions")
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def _rules(profile: dict[str, Any], numbers: dict[str, int]) -> dict[int, list[dict[str, Any]]]:
    """Return the rules by number, in the order of the profile; names that this machine has not got are never called."""
    found: dict[int, list[dict[str, Any]]] = {}
    for rule in profile.get("syscalls") or ():
        if set(rule) - {"names", "action", "errnoRet", "args"}:
            raise Unknown(f"{', '.join(sorted(rule))} in a rule for system calls")
        for name in rule["names"]:
            if name in numbers:
                found.setdefault(numbers[name], []).append(rule)
    return found


def _action(name: str, error: int | None) -> int:
    match name:
        case "SCMP_ACT_ALLOW":
            return _ALLOW
        case "SCMP_ACT_ERRNO" if 0 <= (_EPERM if error is None else error) <= _MOST_ERROR:
            return _ERROR | (_EPERM if error is None else error)
        case "SCMP_ACT_KILL_PROCESS":
            return _KILL_PROCESS
        case "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD":
            return _KILL_THREAD
        case "SCMP_ACT_TRAP":
            return _TRAP
    raise Unknown(f"{name} in a profile of system calls")


def _leave(action: int) -> _Instruction:
    return (_RETURN, 0, 0, action)


def _stretches(
    rules: dict[int, list[dict[str, Any]]], default: list[_Instruction]
) -> list[tuple[int, list[_Instruction]]]:
    """Return what is done from each number on, up to the next; what is done with one number alike is one stretch."""
    found: list[tuple[int, list[_Instruction]]] = [(0, default)]
    for number in sorted(rules):
        body = _body(rules[number], default)
        if found[-1][0] == number:
            found.pop()
        if not found or found[-1][1] != body:
            found.append((number, body))
        if number + 1 not in rules and body != default:
            found.append((number + 1, default))
    if found[-1][1] != default:  # numbers of no call, and those of the other convention
        raise Unknown("rules that have no end")
    return found


def _body(rules: list[dict[str, Any]], default: list[_Instruction]) -> list[_Instruction]:
    """Return what is done with one call: the first rule counts whose conditions are met."""
    body: list[_Instruction] = []
    for rule in rules:
        action = [_leave(_action(rule["action"], rule.get("errnoRet")))]
        conditions = rule.get("args") or ()
        if not conditions:
            return body + action
        for condition in reversed(conditions):
            action = _condition(condition, action)
        body += action
    return body + default


def _condition(condition: dict[str, Any], then: list[_Instruction]) -> list[_Instruction]:
    """Return what does `then` when the condition is met, and goes on after it when not."""
    index, value, other = condition["index"], condition["value"], condition.get("valueTwo", 0)
    if not 0 <= index < 6 or value >> 64 or other >> 64:
        raise Unknown("a condition of no argument")
    mask, wanted = (value, other) if condition["op"] == "SCMP_CMP_MASKED_EQ" else ((1 << 64) - 1, value)
    if condition["op"] not in ("SCMP_CMP_MASKED_EQ", "SCMP_CMP_EQ"):
        raise Unknown(f"{condition['op']} in a condition")
    # What is compared is a word of 64 bits; this machine has those of 32, the lower half first.
    for half in (0, 1):
        part, expected = mask >> 32 * half & _HALF, wanted >> 32 * half & _HALF
        if part == 0 and expected == 0:
            continue
        if len(then) > _FARTHEST:
            raise Unknown("a rule with too many conditions")
        masked: list[_Instruction] = [] if part == _HALF else [(_AND, 0, 0, part)]
        load = (_LOAD, 0, 0, _ARGUMENTS + 8 * index + 4 * half)
        then = [load, *masked, (_IF_EQUAL, 0, len(then), expected), *then]
    return then


def _tree(stretches: list[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """Return what finds the stretch of a number by halving."""
    if len(stretches) == 1:
        return stretches[0][1]
    middle = len(stretches) // 2
    below, above = _tree(stretches[:middle]), _tree(stretches[middle:])
    first = stretches[middle][0]
    if len(below) <= _FARTHEST:
        return [(_IF_AT_LEAST, len(below), 0, first), *below, *above]
    return [(_IF_AT_LEAST, 0, 1, first), (_JUMP, 0, 0, len(below)), *below, *above]
