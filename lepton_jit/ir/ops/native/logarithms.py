"""log and log1p: the exponent, and a polynomial of the mantissa around 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from lepton_jit.ir.ops.native.machine import FloatFormat, Machine, Scalar, float_format, polynomial

__all__ = ["Logarithm", "decompose", "log", "log_plus_one", "log_specials"]


@dataclass(frozen=True)
class _Constants:
    least: int  # the bits of the least mantissa: 2/3, or sqrt(1/2)
    # ln2 = high + low: k*high is exact even without FMA
    high: float
    low: float
    coefficients: tuple[float, ...]


_CONSTANTS = {
    # (log(1 + f) - f + f**2/2) / f**3 on |f| <= 1/3, minimax for the relative error of log(1 + f)
    "f32": _Constants(
        least=0x3F2AAAAB,
        high=float.fromhex("0x1.62e4p-1"),
        low=1.4286068203094173e-06,
        coefficients=(
            0.3333321511745453,
            -0.24999797344207764,
            0.20010410249233246,
            -0.1668047308921814,
            0.14005891978740692,
            -0.12184572964906693,
            0.13984814286231995,
            -0.1289050132036209,
        ),
    ),
    # (log((1 + s)/(1 - s)) - 2*s) / s**3 in powers of s**2, f = 2*s/(1 - s) from sqrt(1/2) - 1 to sqrt(2) - 1
    "f64": _Constants(
        least=0x3FE6A09E667F3BCD,
        high=float.fromhex("0x1.62e42fefa3p-1"),
        low=2.8235290563031577e-13,
        coefficients=(
            0.6666666666666734,
            0.3999999999941394,
            0.2857142874256639,
            0.22222198553419195,
            0.1818356542430405,
            0.15314020708444642,
            0.1479626516469374,
        ),
    ),
}


@dataclass(frozen=True)
class Logarithm:
    """A positive number as 2**k * (1 + f)."""

    exponent: Scalar  # k + bias, as an integer
    f: Scalar


def log(m: Machine, x: Scalar) -> Scalar:
    """The natural logarithm; 0 and -0.0 give -inf, negative numbers NaN, inf gives inf.

    Error in ulp: f32 0.9 (1.0 without FMA), f64 0.9 (0.9).
    """
    form = float_format("log", x)
    parts, k = decompose(m, x, form)
    return log_specials(m, x, _log_of_parts(m, k, parts.f, form), form)


def log_plus_one(m: Machine, x: Scalar) -> Scalar:
    """log(1 + x) without cancellation; -0.0 stays, -1 gives -inf, less gives NaN, inf gives inf.

    Error in ulp: f32 1.6 (1.8 without FMA), f64 1.5 (1.5).
    """
    form = float_format("log_plus_one", x)
    number, integer = partial(m.constant, dtype=form.dtype), partial(m.constant, dtype=form.bits)
    one = number(1.0)
    u = m.add(x, one)
    rest = m.subtract(x, m.subtract(u, one))  # 1 + x = u + rest, exactly
    parts = _split(m, u, form)
    # rest * 2**-k belongs to the mantissa. The largest exponent would overflow; there rest is 0.
    exponent = m.minimum(parts.exponent, integer(2 * form.bias))
    inverse = m.shift_left(m.subtract(integer(2 * form.bias), exponent), integer(form.mantissa))
    f = m.fma(rest, m.bitcast_convert(inverse, dtype=form.dtype), parts.f)
    result = _log_of_parts(m, _as_float(m, parts.exponent, _bias(m, form), form), f, form)
    stays = m.compare(m.add(x, x), x, direction="EQ")  # zeros and infinities
    below = m.select(m.compare(x, number(-1.0), direction="EQ"), number(-math.inf), number(math.nan))
    return m.select(m.compare(x, number(-1.0), direction="GT"), m.select(stays, x, result), below)


def log_specials(m: Machine, x: Scalar, result: Scalar, form: FloatFormat) -> Scalar:
    """`result` for positive finite x; -inf at 0, NaN below, and inf and NaN stay."""
    number = partial(m.constant, dtype=form.dtype)
    zero = number(0.0)
    other = m.select(m.compare(x, zero, direction="EQ"), number(-math.inf), number(math.nan))
    result = m.select(m.compare(x, number(math.inf), direction="LT"), result, x)
    return m.select(m.compare(x, zero, direction="GT"), result, other)


def decompose(m: Machine, x: Scalar, form: FloatFormat) -> tuple[Logarithm, Scalar]:
    """Positive finite x, denormals included, as 2**k * (1 + f); also k as a float."""
    number = partial(m.constant, dtype=form.dtype)
    denormal = m.compare(x, number(form.smallest_normal), direction="LT")
    parts = _split(m, m.select(denormal, m.multiply(x, number(2.0**form.mantissa)), x), form)
    bias = m.select(denormal, _bias(m, form, scaled_by=form.mantissa), _bias(m, form))
    return parts, _as_float(m, parts.exponent, bias, form)


def _split(m: Machine, x: Scalar, form: FloatFormat) -> Logarithm:
    least = _CONSTANTS[form.dtype].least
    integer = partial(m.constant, dtype=form.bits)
    bits = m.add(m.bitcast_convert(x, dtype=form.bits), integer(form.one - least))
    exponent = m.shift_right_logical(bits, integer(form.mantissa))
    mantissa = m.add(m.and_(bits, integer(form.mantissa_mask)), integer(least))
    f = m.subtract(m.bitcast_convert(mantissa, dtype=form.dtype), m.constant(1.0, dtype=form.dtype))
    return Logarithm(exponent, f)


def _as_float(m: Machine, exponent: Scalar, bias: Scalar, form: FloatFormat) -> Scalar:
    """A biased exponent as a float: put into the mantissa of 2**mantissa; `bias` comes from `_bias`."""
    bits = m.or_(exponent, m.constant((form.bias + form.mantissa) << form.mantissa, dtype=form.bits))
    return m.subtract(m.bitcast_convert(bits, dtype=form.dtype), bias)


def _bias(m: Machine, form: FloatFormat, scaled_by: int = 0) -> Scalar:
    """The number `_as_float` takes off: 2**mantissa, the exponent's bias, the power of two that x was scaled by."""
    return m.constant(2.0**form.mantissa + form.bias + scaled_by, dtype=form.dtype)


def _log_of_parts(m: Machine, k: Scalar, f: Scalar, form: FloatFormat) -> Scalar:
    """k*ln2 + log(1 + f)."""
    c = _CONSTANTS[form.dtype]
    number = partial(m.constant, dtype=form.dtype)
    square = m.multiply(f, f)
    if form.dtype == "f32":
        rest = m.fma(f, polynomial(m, f, c.coefficients), number(-0.5))
        small = m.fma(square, rest, m.multiply(k, number(c.low)))
    else:
        # With R = (log(1 + f) - 2*s)/s and 2*s = f - s*f: log(1 + f) = f - f**2/2 + s*(f**2/2 + R).
        s = m.divide(f, m.add(f, number(2.0)))
        half = m.multiply(square, number(0.5))
        z = m.multiply(s, s)
        rest = m.fma(polynomial(m, z, c.coefficients), z, half)
        small = m.subtract(m.fma(s, rest, m.multiply(k, number(c.low))), half)
    return m.fma(k, number(c.high), m.add(f, small))
