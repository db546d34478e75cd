"""Interleaved timing: in each round every contender has a block of calls, after a short pause."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Protocol", "interleave"]


@dataclass(frozen=True)
class Protocol:
    """`rounds` blocks of at least `block` seconds per contender, each after `pause` seconds.

    In the pause, workers of the contender before, which spin before they sleep, come to rest.
    """

    rounds: int = 9
    block: float = 0.1
    pause: float = 0.05


def interleave(
    calls: Mapping[str, Callable[[], Any]], protocol: Protocol, between_rounds: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds per call of each contender in each round; who starts changes from round to round."""
    counts = {name: _calls_per_block(call, protocol.block) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for round_ in range(protocol.rounds):
            between_rounds()
            shift = round_ % len(names)
            for name in names[shift:] + names[:shift]:
                time.sleep(protocol.pause)
                times[name].append(_block(calls[name], counts[name]) / counts[name])
    finally:
        gc.enable()
    return times


def _calls_per_block(call: Callable[[], Any], seconds: float) -> int:
    """How many calls fill a block, which also warms the contender up."""
    count = 1
    while (elapsed := _block(call, count)) < seconds:
        count = max(count + 1, int(1.1 * count * min(10.0, seconds / max(elapsed, 1e-9))))
    return count


def _block(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start
