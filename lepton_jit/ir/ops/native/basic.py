"""Native forms of a few primitives each: rsqrt, sign, is_finite, clamp."""

from __future__ import annotations

import math
from typing import Any

from lepton_jit.ir.ops.native.machine import float_format

__all__ = ["clamp", "is_finite", "rsqrt", "sign"]


def rsqrt(m: Any, x: Any) -> Any:
    """1 / sqrt(x), both correctly rounded: the same bits as NumPy's `1 / np.sqrt(x)`, at most 1.0 ulp.

    0 gives inf, -0.0 gives -inf, negative numbers NaN, inf gives 0.
    """
    form = float_format("rsqrt", x)
    return m.divide(m.constant(1.0, form.dtype), m.sqrt(x))


def sign(m: Any, x: Any) -> Any:
    """-1, 0 or 1, exact, for every dtype; NaN stays NaN and -0.0 gives 0.0, as NumPy has it."""
    dtype = x.dtype.name
    zero, one = m.constant(0, dtype), m.constant(1, dtype)
    positive = m.compare(x, zero, direction="GT")
    if x.dtype.kind in ("unsigned", "bool"):
        return m.select(positive, one, zero)
    # Zero and NaN are what is left: x + 0 turns -0.0 into 0.0.
    rest = m.add(x, zero) if x.dtype.is_float else zero
    negative = m.compare(x, zero, direction="LT")
    return m.select(positive, one, m.select(negative, m.constant(-1, dtype), rest))


def is_finite(m: Any, x: Any) -> Any:
    """Neither infinite nor NaN, as bool; exact. Integers always are."""
    if not x.dtype.is_float:
        return m.compare(x, x, direction="EQ")
    return m.compare(m.abs(x), m.constant(math.inf, x.dtype.name), direction="LT")


def clamp(m: Any, low: Any, x: Any, high: Any) -> Any:
    """min(max(x, low), high), exact, for every dtype; NaN in any operand gives NaN."""
    return m.minimum(m.maximum(x, low), high)
