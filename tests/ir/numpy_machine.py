"""A machine of NumPy arrays: runs native forms on the CPU that NumPy was built for, and counts their primitives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jit.ir.types import DType, dtype_of

_COMPARE = {
    "EQ": np.equal,
    "NE": np.not_equal,
    "GE": np.greater_equal,
    "GT": np.greater,
    "LE": np.less_equal,
    "LT": np.less,
}


@dataclass(frozen=True)
class Lanes:
    """A value of the machine: an array, or a scalar for a constant."""

    array: np.ndarray

    @property
    def dtype(self) -> DType:
        return dtype_of(self.array.dtype)


class NumpyMachine:
    """The primitives of native forms on arrays.

    `fused=False` is a target without FMA: multiply, round, add, round. `counts` has the number of calls of each
    primitive.
    """

    def __init__(self, *, fused: bool = True) -> None:
        self.fused = fused
        self.counts: Counter[str] = Counter()

    def __call__(self, native: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        """Run a native form on arrays of one shape."""
        with np.errstate(all="ignore"):
            return native(self, *(Lanes(np.asarray(a)) for a in arrays)).array

    def constant(self, value: float | bool, dtype: str | DType) -> Lanes:
        return Lanes(np.asarray(value, dtype_of(dtype).numpy))

    def fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
        self._check("fma", a, b, c)
        if not self.fused:
            return Lanes(np.add(np.multiply(a.array, b.array), c.array))
        return Lanes(_FMA[a.dtype.name](a.array, b.array, c.array))

    def compare(self, a: Lanes, b: Lanes, *, direction: str) -> Lanes:
        self._check("compare", a, b)
        return Lanes(_COMPARE[direction](a.array, b.array))

    def select(self, p: Lanes, a: Lanes, b: Lanes) -> Lanes:
        self._check("select", a, b)
        assert p.dtype.name == "bool"
        return Lanes(np.where(p.array, a.array, b.array))

    def convert(self, x: Lanes, *, dtype: str | DType) -> Lanes:
        if x.dtype == dtype_of(dtype):
            return x
        self.counts["convert"] += 1
        return Lanes(x.array.astype(dtype_of(dtype).numpy))

    def bitcast_convert(self, x: Lanes, *, dtype: str | DType) -> Lanes:
        return Lanes(x.array.view(dtype_of(dtype).numpy))

    def _check(self, name: str, *operands: Lanes) -> None:
        dtypes = {o.dtype.name for o in operands}
        assert len(dtypes) == 1, f"{name} of {dtypes}"
        self.counts[name] += 1


def _fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The product is exact in f64; the sum is rounded to f64, then to f32, which differs from one rounding where the
    f64 lies on a tie of f32: once in 2**29."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _fma_f64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Rounded once: product and sum as exact pairs of longdoubles, their total rounded to odd, then to f64."""
    a, b, c = (v.astype(np.longdouble) for v in (a, b, c))
    product = a * b
    a_high, b_high = (_upper_half(v) for v in (a, b))
    a_low, b_low = a - a_high, b - b_high
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    virtual = total - product
    rest = rest + ((product - (total - virtual)) + (c - virtual))
    # A zero keeps the sign of the sum; infinities have no rest.
    keep = ~np.isfinite(rest) | (rest == 0)
    return np.where(keep, total, _add_to_odd(total, rest)).astype(np.float64)


def _upper_half(x: np.ndarray) -> np.ndarray:
    """The upper 26 of the 53 bits of a float64 in a longdouble."""
    bits = x.astype(np.float64).view(np.uint64) & np.uint64((1 << 64) - (1 << 27))
    return bits.view(np.float64).astype(np.longdouble)


def _add_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b for |a| >= |b|: of the two neighbours of an inexact sum the one with an odd last place."""
    total = np.atleast_1d(a + b)
    lost = (a - total) + b
    last = np.ascontiguousarray(total).view(np.uint8).reshape(*total.shape, -1)[..., 0] & 1
    other = np.nextafter(total, np.copysign(np.longdouble(np.inf), lost))
    return np.where((lost != 0) & (last == 0), other, total).reshape(np.shape(a + b))


_FMA = {"f32": _fma_f32, "f64": _fma_f64}


def _primitive(name: str, function: Callable[..., np.ndarray]) -> Callable[..., Lanes]:
    def apply(self: NumpyMachine, *operands: Lanes) -> Lanes:
        self._check(name, *operands)
        return Lanes(np.asarray(function(*(o.array for o in operands))))

    return apply


for _name, _function in {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "negate": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "round_nearest_even": np.rint,
    "and_": np.bitwise_and,
    "or_": np.bitwise_or,
    "not_": np.bitwise_not,
    "xor": np.bitwise_xor,
    "shift_left": np.left_shift,
    "shift_right_logical": np.right_shift,
}.items():
    setattr(NumpyMachine, _name, _primitive(_name, _function))
