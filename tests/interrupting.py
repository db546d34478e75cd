"""Exceptions wherever signal handlers can raise them."""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import lepton_jit

PACKAGE = str(Path(lepton_jit.__file__).parent)


class Interrupted(BaseException):
    """What the tests raise; nobody catches it by accident."""


def at_every_boundary(action: Callable[[], object], check: Callable[[], object], *, step: int = 1) -> int:
    """Run `action` with an exception at its first boundary, the one `step` later, and so on until it ends well.

    A boundary is where Python runs signal handlers: behind every call, at the start of every function and at every jump
    backwards, in the package's files; of one that is passed often, the first two times. `check` runs after each.
    Returns the number of boundaries.
    """
    for last in itertools.count(0, step):
        ended = _ends_before(last, action)
        check()
        if ended:
            return last
    raise AssertionError("not reached")


def _ends_before(last: int, action: Callable[[], object]) -> bool:
    """Whether `action` ends before its boundary of this number, where an exception is raised."""
    passed = itertools.count()
    times: Counter[tuple[CodeType, int]] = Counter()

    def visit(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in _boundaries(frame.f_code):
            place = (frame.f_code, frame.f_lasti)
            times[place] += 1
            if times[place] <= 2 and next(passed) == last:
                raise Interrupted
        return visit

    before = sys.gettrace()
    sys.settrace(visit)
    try:
        action()
    except Interrupted:
        return False
    finally:
        sys.settrace(before)
    return True


@functools.cache
def _boundaries(code: CodeType) -> frozenset[int]:
    """The offsets of instructions before which a handler may have raised.

    Left out are those with another exception handler than the instruction before, which Python would blame.
    """
    instructions = list(dis.get_instructions(code))
    guards = _guards(code)
    return frozenset(
        after.offset
        for before, after in itertools.pairwise(instructions)
        if before.opname.startswith("CALL") or before.opname in ("RESUME", "JUMP_BACKWARD")
        if _guard_at(guards, before.offset) == _guard_at(guards, after.offset)
    )


def _guards(code: CodeType) -> list[tuple[int, int, int]]:
    """Start, end and handler of each entry of the exception table: numbers of 6 bits a byte, most significant first."""
    content = iter(code.co_exceptiontable)

    def number() -> int:
        byte = next(content)
        value = byte & 63
        while byte & 64:
            byte = next(content)
            value = value << 6 | byte & 63
        return value

    found = []
    with contextlib.suppress(StopIteration):  # behind the last entry
        while True:
            start, length, handler, _depth = 2 * number(), 2 * number(), 2 * number(), number()
            found.append((start, start + length, handler))
    return found


def _guard_at(guards: list[tuple[int, int, int]], offset: int) -> int | None:
    return next((handler for start, end, handler in guards if start <= offset < end), None)


def under_alarms(action: Callable[[], object], seconds: float, *, interval: float = 0.0015) -> int:
    """Run `action` again and again while a timer's signal handler raises in it; how often that was."""
    assert threading.current_thread() is threading.main_thread()

    def raise_here(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    count = 0
    before = signal.signal(signal.SIGALRM, raise_here)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, interval)
                while True:
                    action()
            except Interrupted:
                count += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return count
