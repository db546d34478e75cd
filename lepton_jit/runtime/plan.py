"""The memory plan of a program at given dimensions, with offsets as the native planner assigns them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lepton_jit.errors import OutOfMemoryError, ShapeError
from lepton_jit.runtime.dimensions import dim_value
from lepton_jit.runtime.manifest import Manifest

__all__ = ["ALIGNMENT", "MemoryPlan", "PlannedBuffer", "lower_bound", "plan_memory", "plan_offsets"]

ALIGNMENT = 64


@dataclass(frozen=True)
class PlannedBuffer:
    """A buffer's place in the arena and in time (both steps included)."""

    name: str
    layer: str
    offset: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """The place and the lifetime of every buffer. `arena`, `lower_bound` (the largest live set) and `gap` are bytes.

    Windows between the kernels of a chain are there once for each of the `threads`.
    """

    program: str
    symbols: Mapping[str, int]
    arena: int
    lower_bound: int
    buffers: tuple[PlannedBuffer, ...]
    threads: int

    @property
    def gap(self) -> int:
        return self.arena - self.lower_bound

    def __str__(self) -> str:
        at = ", ".join(f"{s} = {v}" for s, v in self.symbols.items())
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        share = 100 * self.gap / self.lower_bound if self.lower_bound else 0.0
        lines = [
            f"memory plan of {self.program}{f' at {at}' if at else ''}, {threads}",
            f"arena {self.arena:,} bytes, lower bound {self.lower_bound:,}, gap {self.gap:,} ({share:.2f} %)",
            f"{'buffer':<24} {'offset':>14} {'bytes':>14} {'steps':>9}  layer",
        ]
        for b in sorted(self.buffers, key=lambda b: (b.first, b.offset)):
            lines.append(f"{b.name:<24} {b.offset:>14,} {b.size:>14,} {f'{b.first}-{b.last}':>9}  {b.layer}".rstrip())
        return "\n".join(lines)


def lower_bound(sizes: Sequence[int], first: Sequence[int], last: Sequence[int]) -> int:
    """The most bytes alive at any step, each buffer rounded up to 64 bytes.

    >>> lower_bound([64, 100, 64], [0, 1, 2], [1, 2, 3])
    192
    """
    change: dict[int, int] = {}
    for size, begin, end in zip(sizes, first, last, strict=True):
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        change[begin] = change.get(begin, 0) + rounded
        change[end + 1] = change.get(end + 1, 0) - rounded
    live = peak = 0
    for step in sorted(change):
        live += change[step]
        peak = max(peak, live)
    return peak


def plan_offsets(
    plan: Callable[..., int], sizes: Sequence[int], first: Sequence[int], last: Sequence[int]
) -> tuple[int, list[int]]:
    """The arena's bytes and each buffer's offset, from the native planner `plan`."""
    n = len(sizes)
    if any(not 0 <= size <= 2**46 for size in sizes):
        raise ShapeError(f"memory plan: a buffer of {max(sizes, key=abs):,} bytes; this is beyond any memory")
    offsets = (ctypes.c_int64 * n)()
    total = plan(n, (ctypes.c_int64 * n)(*sizes), (ctypes.c_int32 * n)(*first), (ctypes.c_int32 * n)(*last), offsets)
    if total < 0:
        raise OutOfMemoryError("memory plan: no memory for the planner")
    return total, list(offsets)


def plan_memory(manifest: Manifest, plan: Callable[..., int], symbols: Mapping[str, int], threads: int) -> MemoryPlan:
    """The plan of a program for given symbols, `{"N": 64}`, and a number of threads."""
    sizes = [dim_value(b.size, symbols) * (threads if b.per_thread else 1) for b in manifest.buffers]
    first = [b.first for b in manifest.buffers]
    last = [b.last for b in manifest.buffers]
    total, offsets = plan_offsets(plan, sizes, first, last)
    buffers = tuple(
        PlannedBuffer(b.name, b.layer, offset, size, b.first, b.last)
        for b, offset, size in zip(manifest.buffers, offsets, sizes, strict=True)
    )
    return MemoryPlan(manifest.name, dict(symbols), total, lower_bound(sizes, first, last), buffers, threads)
