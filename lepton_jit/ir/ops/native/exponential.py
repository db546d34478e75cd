"""exp and its relatives: one argument reduction, one polynomial, and the power of two applied in two halves.

x = 2h*ln2 + r with an integer h and |r| <= ln2, so that e**x = s*s*(1 + q) with s = 2**h and q = e**r - 1. Neither s
nor 1/s ever overflows or is denormal, although s*s may: e**x comes out infinite or denormal by multiplying twice by s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepton_jit.ir.ops.native.machine import FloatFormat, copy_sign, float_format, polynomial

__all__ = ["Reduced", "exponential", "exponential_minus_one", "logistic", "reduce_exponential", "tanh"]


@dataclass(frozen=True)
class _Constants:
    # 1/(2*ln2); 2*ln2 = high + low, where h*high is exact without an fma and low is positive
    inverse: float
    high: float
    low: float
    # (e**r - 1 - r)/r**2 on |r| <= ln2, minimax for the relative error of e**r - 1
    coefficients: tuple[float, ...]
    lowest: float  # below it e**x is 0
    highest: float  # above it e**x is infinite


_CONSTANTS = {
    "f32": _Constants(
        inverse=0.7213475204444817,
        high=float.fromhex("0x1.62e4p+0"),
        low=2.8572136406188345e-06,
        coefficients=(
            0.5000002384185791,
            0.16666647791862488,
            0.04166191443800926,
            0.00833425484597683,
            0.0014094188809394836,
            0.00019855199207086116,
        ),
        lowest=-104.0,
        highest=89.0,
    ),
    "f64": _Constants(
        inverse=0.7213475204444817,
        high=float.fromhex("0x1.62e42fefa3p+0"),
        low=5.647058112606315e-13,
        coefficients=(
            0.5,
            0.1666666666666666,
            0.04166666666666682,
            0.008333333333336416,
            0.0013888888888862632,
            0.0001984126983708294,
            2.4801587319834776e-05,
            2.7557321833883016e-06,
            2.755731344503759e-07,
            2.505128706699529e-08,
            2.08774980537998e-09,
            1.6185988968528523e-10,
            1.1468756481190006e-11,
        ),
        lowest=-746.0,
        highest=710.0,
    ),
}


@dataclass(frozen=True)
class Reduced:
    """e**x = scale*scale*(1 + q), with scale a power of two and inverse = 1/scale."""

    q: Any
    scale: Any
    inverse: Any


def exponential(m: Any, x: Any) -> Any:
    """e**x."""
    form = float_format("exponential", x)
    c = _CONSTANTS[form.dtype]
    parts = reduce_exponential(m, _clamped(m, x, c.lowest, c.highest), form)
    return m.multiply(m.multiply(m.add(parts.q, m.constant(1.0, form.dtype)), parts.scale), parts.scale)


def exponential_minus_one(m: Any, x: Any) -> Any:
    """e**x - 1 without cancellation; -0.0 stays."""
    form = float_format("exponential_minus_one", x)
    c = _CONSTANTS[form.dtype]
    parts = reduce_exponential(m, _clamped(m, x, -(form.mantissa + 5.0), c.highest), form)
    half_way = m.fma(parts.scale, parts.q, m.subtract(parts.scale, parts.inverse))
    return copy_sign(m, m.multiply(half_way, parts.scale), x, form)


def logistic(m: Any, x: Any) -> Any:
    """1 / (1 + e**-x) = (1/s) / (1/s + s*(1 + q)), which neither overflows nor loses denormal results."""
    form = float_format("logistic", x)
    c = _CONSTANTS[form.dtype]
    bounded = _clamped(m, x, c.lowest, -c.lowest)
    parts = reduce_exponential(m, bounded, form, factor=-1.0)
    growth = m.add(parts.q, m.constant(1.0, form.dtype))
    return m.divide(parts.inverse, m.fma(parts.scale, growth, parts.inverse))


def tanh(m: Any, x: Any) -> Any:
    """(e**2x - 1) / (e**2x + 1); -0.0 stays."""
    form = float_format("tanh", x)
    limit = 0.4 * (form.mantissa + 2)
    parts = reduce_exponential(m, _clamped(m, x, -limit, limit), form, factor=2.0)
    numerator = m.fma(parts.scale, parts.q, m.subtract(parts.scale, parts.inverse))
    denominator = m.fma(parts.scale, parts.q, m.add(parts.scale, parts.inverse))
    return copy_sign(m, m.divide(numerator, denominator), x, form)


def _clamped(m: Any, x: Any, low: float, high: float) -> Any:
    dtype = x.dtype.name
    return m.minimum(m.maximum(x, m.constant(low, dtype)), m.constant(high, dtype))


def reduce_exponential(m: Any, x: Any, form: FloatFormat, factor: float = 1.0) -> Reduced:
    """The parts of e**(factor*x), for finite x in the range of the format; factor is -1, 1 or 2."""
    c = _CONSTANTS[form.dtype]
    constant = lambda value: m.constant(value, form.dtype)  # noqa: E731
    # The bias of the exponent rides on the rounding constant, so that the low bits are those of the scale.
    shifted = m.fma(x, constant(factor * c.inverse), constant(form.rounder + form.bias))
    h = m.subtract(shifted, constant(form.rounder + form.bias))
    # r/factor, with the signs that keep -0.0 where factor is positive
    r = m.fma(h, constant(-c.high / factor), x)
    r = m.fma(h, constant(-c.low / factor), r)
    if factor != 1.0:
        r = m.multiply(r, constant(factor))
    q = m.fma(m.multiply(r, r), polynomial(m, r, c.coefficients), r)
    bits = m.bitcast_convert(shifted, dtype=form.bits)
    scale = m.shift_left(bits, m.constant(form.mantissa, form.bits))
    inverse = m.subtract(m.constant(2 * form.one, form.bits), scale)
    return Reduced(q, m.bitcast_convert(scale, dtype=form.dtype), m.bitcast_convert(inverse, dtype=form.dtype))
