"""exp and its relatives: one argument reduction, and the power of two applied in two halves.

x = 2h*ln2 + r with an integer h and |r| <= ln2, so that e**x = s * s * e**r with s = 2**h. Neither s nor 1/s overflows
or is denormal where e**x is: multiplying twice by s rounds a denormal result once and overflows to infinity by itself.
The price of |r| <= ln2 instead of ln2/2 is one more coefficient, less than a second power of two would cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from lepton_jit.ir.ops.native.machine import (
    FloatFormat,
    Machine,
    Scalar,
    clamp_to,
    copy_sign,
    float_format,
    polynomial,
)

__all__ = ["Reduced", "exponential", "exponential_minus_one", "exponential_of_sum", "logistic", "tanh"]


@dataclass(frozen=True)
class _Constants:
    # 2*ln2 = high + low: h*high is exact even without FMA, and low is positive
    high: float
    low: float
    # (e**r - 1 - r)/r**2 on |r| <= ln2, minimax for the relative error of e**r, and of e**r - 1
    growth: tuple[float, ...]
    growth_minus_one: tuple[float, ...]
    lowest: float  # below it e**x is 0
    highest: float  # above it e**x is infinite
    saturation: float  # above it tanh(x) is 1


_HALF_LOG2_E = 0.7213475204444817  # 1/(2*ln2)
_CONSTANTS = {
    "f32": _Constants(
        high=float.fromhex("0x1.62e4p+0"),
        low=2.8572136406188345e-06,
        growth=(
            0.5000003576278687,
            0.1666661500930786,
            0.041661202907562256,
            0.00833607092499733,
            0.001410529832355678,
            0.00019614184566307813,
        ),
        growth_minus_one=(
            0.5,
            0.16666671633720398,
            0.041666630655527115,
            0.008332635276019573,
            0.0013890478294342756,
            0.00020097836386412382,
            2.476757435943e-05,
        ),
        lowest=-104.0,
        highest=89.0,
        saturation=9.2,
    ),
    "f64": _Constants(
        high=float.fromhex("0x1.62e42fefa3p+0"),
        low=5.647058112606315e-13,
        growth=(
            0.4999999999999993,
            0.16666666666666938,
            0.041666666666702046,
            0.008333333333269972,
            0.0013888888883581178,
            0.00019841269892745974,
            2.4801590828081187e-05,
            2.7557300658069406e-06,
            2.755615842429894e-07,
            2.5055033099427142e-08,
            2.1062302389946636e-09,
            1.5935543675440835e-10,
        ),
        growth_minus_one=(
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
        saturation=19.5,
    ),
}


@dataclass(frozen=True)
class Reduced:
    """e**x = s * s * e**r; `scale` has the bits of s = 2**h."""

    r: Scalar
    scale: Scalar


def exponential(m: Machine, x: Scalar) -> Scalar:
    """e**x.

    Error in ulp: f32 1.7 (2.0 without FMA), f64 1.5 (1.9).
    """
    form = float_format("exponential", x)
    c = _CONSTANTS[form.dtype]
    return _exponential(m, _reduce(m, clamp_to(m, x, c.lowest, c.highest), form), form)


def exponential_of_sum(m: Machine, x: Scalar, rest: Scalar) -> Scalar:
    """e**(x + rest) of an unevaluated sum with |rest| much less than 1."""
    form = float_format("exponential", x)
    c = _CONSTANTS[form.dtype]
    parts = _reduce(m, clamp_to(m, x, c.lowest, c.highest), form)
    return _exponential(m, Reduced(m.add(parts.r, rest), parts.scale), form)


def exponential_minus_one(m: Machine, x: Scalar) -> Scalar:
    """e**x - 1 = s*(s*(e**r - 1) + (s - 1/s)) without cancellation; -0.0 stays.

    Error in ulp: f32 1.5 (1.6 without FMA), f64 1.6 (1.7).
    """
    form = float_format("exponential_minus_one", x)
    bounded = clamp_to(m, x, -(form.mantissa + 5.0), _CONSTANTS[form.dtype].highest)
    parts = _reduce(m, bounded, form)
    scale = m.bitcast_convert(parts.scale, dtype=form.dtype)
    fraction = m.subtract(scale, _inverse(m, parts.scale, form))
    result = m.multiply(m.fma(scale, _growth_minus_one(m, parts.r, form), fraction), scale)
    return copy_sign(m, result, x, form)


def logistic(m: Machine, x: Scalar) -> Scalar:
    """1 / (1 + e**-x) = (1/s) / (1/s + s*e**r), which neither overflows nor loses denormal results.

    Error in ulp: f32 2.9 (3.8 without FMA), f64 3.2 (3.2).
    """
    form = float_format("logistic", x)
    limit = -_CONSTANTS[form.dtype].lowest
    parts = _reduce(m, clamp_to(m, x, -limit, limit), form, factor=-1.0)
    inverse = _inverse(m, parts.scale, form)
    scale = m.bitcast_convert(parts.scale, dtype=form.dtype)
    return m.divide(inverse, m.fma(scale, _growth(m, parts.r, form), inverse))


def tanh(m: Machine, x: Scalar) -> Scalar:
    """(1 - e**-2|x|) / (1 + e**-2|x|) with the sign of x; -0.0 stays.

    With the negative exponent the numerator is just below a power of two where the result is near 1, and rounds well.

    Error in ulp: f32 2.4 (2.6 without FMA), f64 2.2 (2.4).
    """
    form = float_format("tanh", x)
    size = m.minimum(m.abs(x), m.constant(_CONSTANTS[form.dtype].saturation, dtype=form.dtype))
    parts = _reduce(m, size, form, factor=-2.0)
    inverse = _inverse(m, parts.scale, form)
    scale = m.bitcast_convert(parts.scale, dtype=form.dtype)
    growth = _growth_minus_one(m, parts.r, form)
    numerator = m.fma(m.negate(scale), growth, m.subtract(inverse, scale))
    denominator = m.fma(scale, growth, m.add(inverse, scale))
    return copy_sign(m, m.divide(numerator, denominator), x, form)


def _exponential(m: Machine, parts: Reduced, form: FloatFormat) -> Scalar:
    scale = m.bitcast_convert(parts.scale, dtype=form.dtype)
    return m.multiply(m.multiply(_growth(m, parts.r, form), scale), scale)


def _reduce(m: Machine, x: Scalar, form: FloatFormat, factor: float = 1.0) -> Reduced:
    """The parts of e**(factor*x); |factor*x| has to be within what e**x can represent."""
    c = _CONSTANTS[form.dtype]
    number = partial(m.constant, dtype=form.dtype)
    # The bias of the exponent rides on the rounding constant, so that the low bits are those of s.
    rounder = number(form.rounder + form.bias)
    shifted = m.fma(x, number(factor * _HALF_LOG2_E), rounder)
    h = m.subtract(shifted, rounder)
    r = x if factor == 1.0 else m.multiply(x, number(factor))
    r = m.fma(h, number(-c.low), m.fma(h, number(-c.high), r))
    bits = m.bitcast_convert(shifted, dtype=form.bits)
    return Reduced(r, m.shift_left(bits, m.constant(form.mantissa, dtype=form.bits)))


def _inverse(m: Machine, scale: Scalar, form: FloatFormat) -> Scalar:
    """1/s from the bits of s."""
    return m.bitcast_convert(m.subtract(m.constant(2 * form.one, dtype=form.bits), scale), dtype=form.dtype)


def _growth(m: Machine, r: Scalar, form: FloatFormat) -> Scalar:
    """e**r."""
    return polynomial(m, r, (1.0, 1.0, *_CONSTANTS[form.dtype].growth))


def _growth_minus_one(m: Machine, r: Scalar, form: FloatFormat) -> Scalar:
    """e**r - 1."""
    return m.fma(m.multiply(r, r), polynomial(m, r, _CONSTANTS[form.dtype].growth_minus_one), r)
