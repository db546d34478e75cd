"""Errors in units in the last place, and samples that cover a float format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

FLOAT32_PATTERNS = 2**32


@dataclass(frozen=True)
class Worst:
    """The largest error of a function and where it occurred; a wrong NaN, infinity or sign of zero counts as inf."""

    ulp: float
    argument: tuple[float, ...]
    got: float
    exact: float


def ulp_errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|got - exact| in units of the last place that `exact`, given in a wider format, has in the format of `got`.

    inf where only one of them is NaN, where `exact` overflows and `got` is not that infinity, and where a zero has the
    wrong sign. Below the normal numbers the unit is the smallest denormal.
    """
    limits = np.finfo(got.dtype)
    wide = exact.dtype.type
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(exact)
        unit = np.ldexp(wide(1), np.maximum(exponent - 1, limits.minexp) - limits.nmant)
        errors = np.abs(got.astype(exact.dtype) - exact) / unit
        # Half a unit above the largest number and everything beyond rounds to infinity.
        overflows = np.abs(exact) >= wide(limits.max) * (1 + wide(limits.eps) / 4)
        errors = np.where(overflows, np.where(got == np.copysign(got.dtype.type(np.inf), exact), 0, np.inf), errors)
        errors = np.where(np.isnan(exact) | np.isnan(got), np.where(np.isnan(exact) & np.isnan(got), 0, np.inf), errors)
        return np.where((exact == 0) & (np.signbit(got) != np.signbit(exact)), np.inf, errors)


def max_ulp_error(
    compute: Callable[..., np.ndarray],
    exact: Callable[..., np.ndarray],
    samples: Iterable[np.ndarray | tuple[np.ndarray, ...]],
    wide: type[np.floating] = np.float64,
) -> Worst:
    """The largest error of `compute(*arrays)` over blocks of arguments, against `exact(*arrays)` in a wider format.

    `samples=float32_patterns(1)` is every float32 there is.
    """
    worst = Worst(-1.0, (), math.nan, math.nan)
    for block in samples:
        arrays = block if isinstance(block, tuple) else (block,)
        with np.errstate(all="ignore"):
            right = exact(*(a.astype(wide) for a in arrays))
        got = compute(*arrays)
        errors = ulp_errors(got, right)
        at = int(np.argmax(errors))
        if errors[at] > worst.ulp:
            argument = tuple(float(a[at]) for a in arrays)
            worst = Worst(float(errors[at]), argument, float(got[at]), float(right[at]))
    return worst


def float32_patterns(stride: int, block: int = 2**20) -> Iterator[np.ndarray]:
    """Every `stride`-th of the 2**32 bit patterns as float32, denormals, infinities and NaN in proportion."""
    for start in range(0, FLOAT32_PATTERNS, stride * block):
        stop = min(start + stride * block, FLOAT32_PATTERNS)
        yield np.arange(start, stop, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)


def float64_patterns(count: int) -> np.ndarray:
    """`count` bit patterns of float64, evenly spread."""
    step = 2**64 // count
    return (np.arange(count, dtype=np.uint64) * np.uint64(step) + np.uint64(step // 3)).view(np.float64)


def special_values(dtype: type[np.floating]) -> np.ndarray:
    """Zeros, denormals, the edges of the normal numbers, 1 and its neighbours, infinities and NaN, with both signs."""
    limits = np.finfo(dtype)
    one = dtype(1)
    positive = [
        dtype(0),
        limits.smallest_subnormal,
        limits.smallest_normal - limits.smallest_subnormal,
        limits.smallest_normal,
        limits.eps,
        dtype(0.5),
        np.nextafter(one, dtype(0)),
        one,
        np.nextafter(one, dtype(2)),
        dtype(2),
        dtype(3),
        dtype(88.75),
        limits.max,
        dtype(np.inf),
    ]
    return np.array([*positive, *(-p for p in positive), np.nan], dtype)
