"""Native forms of a few primitives each: rsqrt, sign, is_finite, clamp."""

from __future__ import annotations

import math

from lepton_jit.ir.ops.native.machine import Machine, Scalar, float_format

__all__ = ["clamp", "is_finite", "rsqrt", "sign"]


def rsqrt(m: Machine, x: Scalar) -> Scalar:
    """1 / sqrt(x), each correctly rounded: the bits of NumPy's `1 / np.sqrt(x)`.

    0 gives inf and -0.0 -inf, negative numbers give NaN, inf gives 0.

    Error in ulp: f32 1.5 (1.5 without FMA), f64 1.5 (1.5).
    """
    form = float_format("rsqrt", x)
    return m.divide(m.constant(1.0, dtype=form.dtype), m.sqrt(x))


def sign(m: Machine, x: Scalar) -> Scalar:
    """-1, 0 or 1, exact, for every dtype; zeros keep their sign, NaN stays."""
    dtype = x.dtype.name
    zero, one = m.constant(0, dtype=dtype), m.constant(1, dtype=dtype)
    result = m.select(m.compare(x, zero, direction="GT"), one, x)
    if x.dtype.kind in ("unsigned", "bool"):
        return result
    return m.select(m.compare(x, zero, direction="LT"), m.constant(-1, dtype=dtype), result)


def is_finite(m: Machine, x: Scalar) -> Scalar:
    """Neither infinite nor NaN, as bool; exact. Integers always are."""
    if not x.dtype.is_float:
        return m.compare(x, x, direction="EQ")
    return m.compare(m.abs(x), m.constant(math.inf, dtype=x.dtype.name), direction="LT")


def clamp(m: Machine, low: Scalar, x: Scalar, high: Scalar) -> Scalar:
    """min(max(x, low), high), exact, for every dtype; NaN in any operand gives NaN."""
    return m.minimum(m.maximum(x, low), high)
