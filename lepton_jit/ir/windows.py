"""Sliding windows, dimension by dimension: which element a tap of a window reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import row_major

__all__ = ["Window", "channel_windows", "pooling_windows"]

# Taps along a line are written out.
LONGEST_LINE = 32


@dataclass(frozen=True)
class Window:
    """One dimension of a window: tap k of result o reads element `(o*stride + k*dilation - low) / base`.

    That is where the quotient is whole and an element exists, 0 <= element < size; other taps are left out.

    >>> Window(size=5, results=5, taps=3, low=1).reads(0)
    [(1, 0), (2, 1)]
    """

    size: int
    results: int
    taps: int
    stride: int = 1
    low: int = 0
    dilation: int = 1
    base: int = 1

    def reads(self, result: int) -> list[tuple[int, int]]:
        """Pairs (tap, element) of one result, in the order of taps."""
        places = [(k, result * self.stride + k * self.dilation - self.low) for k in range(self.taps)]
        return [(k, p // self.base) for k, p in places if p % self.base == 0 and 0 <= p // self.base < self.size]

    @property
    def is_padded(self) -> bool:
        """Some result lacks a tap."""
        last = (self.results - 1) * self.stride + (self.taps - 1) * self.dilation - self.low
        return self.base > 1 or self.low > 0 or last >= self.size


def channel_windows(node: Node) -> tuple[Window, ...] | None:
    """The windows of a convolution of each channel by itself, floats with channels last; None for other nodes.

    x: [N, *space, C], kernel: [*taps, 1, C] or another order in which channels lie side by side.
    """
    a: Any = node.attributes
    if node.op != "convolution" or a["feature_group_count"] == 1:
        return None
    x, kernel = (v.type for v in node.operands)
    between = tuple(range(1, x.rank - 1))
    channels_last = (0, x.rank - 1, *between)
    alone = x.shape[-1] == kernel.shape[a["rhs_spec"][0]] == a["feature_group_count"]
    beside = row_major(kernel.shape)[a["rhs_spec"][0]] == 1
    if not (alone and beside and between and x.dtype.is_float and a["lhs_spec"] == a["out_spec"] == channels_last):
        return None
    windows = []
    for d, axis in enumerate(between):
        size, taps, results = x.shape[axis], kernel.shape[a["rhs_spec"][2 + d]], node.result.type.shape[axis]
        stride, dilation, base = a["strides"][d], a["rhs_dilation"][d], a["lhs_dilation"][d]
        if not (isinstance(size, int) and isinstance(taps, int) and isinstance(results, int)):
            return None
        if base > 1 and (stride > 1 or dilation > 1):
            return None
        windows.append(Window(size, results, taps, stride, a["padding"][d][0], dilation, base))
    return tuple(windows) if windows[-1].taps <= LONGEST_LINE else None


def pooling_windows(node: Node) -> tuple[Window, ...] | None:
    """The windows of a `reduce_window` from the first dimension that has one to the last but one, which are static.

    None where the last dimension, the channels, has one too or is symbolic.
    """
    a: Any = node.attributes
    (x,) = (v.type.shape for v in node.operands)
    parts = list(zip(x, a["window"], a["strides"], a["padding"], a["dilation"], strict=True))
    trivial = [(taps, stride, low, high) == (1, 1, 0, 0) for _, taps, stride, (low, high), _ in parts]
    if all(trivial) or not trivial[-1] or not isinstance(x[-1], int):
        return None
    first = trivial.index(False)
    windows = []
    for (size, taps, stride, (low, _), dilation), results in zip(
        parts[first:-1], node.result.type.shape[first:-1], strict=True
    ):
        if not isinstance(size, int) or not isinstance(results, int):
            return None
        windows.append(Window(size, results, taps, stride, low, dilation))
    return tuple(windows) if windows[-1].taps <= LONGEST_LINE else None
