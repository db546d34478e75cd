"""log and log1p: the exponent, and a polynomial of the mantissa around 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lepton_jit.ir.ops.native.machine import FloatFormat, float_format, polynomial

__all__ = ["log", "log_plus_one"]


@dataclass(frozen=True)
class _Constants:
    lowest: int  # the bits of the least mantissa: 2/3 or sqrt(1/2)
    # ln2 = high + low, where k*high is exact without an fma
    high: float
    low: float
    coefficients: tuple[float, ...]


_CONSTANTS = {
    # (log(1 + f) - f + f**2/2) / f**3 on |f| <= 1/3
    "f32": _Constants(
        lowest=0x3F2AAAAB,
        high=float.fromhex("0x1.62e4p-1"),
        low=1.4286068203094173e-06,
        coefficients=(
            0.3333321511745453,
            -0.24999797344207764,
            0.20010405778884888,
            -0.16680467128753662,
            0.1400587111711502,
            -0.12184583395719528,
            0.13984456658363342,
            -0.12890231609344482,
        ),
    ),
    # (log((1 + s)/(1 - s)) - 2*s) / s**3 in powers of s**2 on |s| <= (sqrt(2) - 1)/(sqrt(2) + 1)
    "f64": _Constants(
        lowest=0x3FE6A09E667F3BCD,
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


def log(m: Any, x: Any) -> Any:
    """The natural logarithm; 0 and -0.0 give -inf, negative numbers NaN, inf gives inf."""
    form = float_format("log", x)
    constant = lambda value: m.constant(value, form.dtype)  # noqa: E731
    denormal = m.compare(x, constant(2.0 ** (1 - form.bias)), direction="LT")
    scaled = m.select(denormal, m.multiply(x, constant(2.0**form.mantissa)), x)
    offset = m.select(denormal, constant(-form.mantissa), constant(0))
    exponent, f = _split(m, scaled, form)
    result = _log_of_parts(m, m.add(_as_float(m, exponent, form), offset), f, form)
    positive = m.compare(x, constant(0.0), direction="GT")
    is_zero = m.compare(x, constant(0.0), direction="EQ")
    result = m.select(positive, result, m.select(is_zero, constant(-math.inf), constant(math.nan)))
    return m.select(m.compare(x, constant(math.inf), direction="LT"), result, x)


def log_plus_one(m: Any, x: Any) -> Any:
    """log(1 + x) without cancellation; -0.0 stays, -1 gives -inf, less gives NaN, inf gives inf."""
    form = float_format("log_plus_one", x)
    constant = lambda value: m.constant(value, form.dtype)  # noqa: E731
    one = constant(1.0)
    u = m.add(x, one)
    rest = m.subtract(x, m.subtract(u, one))  # 1 + x = u + rest, exactly
    exponent, f = _split(m, u, form)
    # rest * 2**-exponent belongs to the mantissa; for u >= 2 it is at most half a unit of f's last place.
    scale = m.subtract(m.constant(2 * form.one, form.bits), m.shift_left(exponent, m.constant(form.mantissa, form.bits)))
    f = m.fma(rest, m.bitcast_convert(scale, dtype=form.dtype), f)
    result = _log_of_parts(m, _as_float(m, exponent, form), f, form)
    is_least = m.compare(x, constant(-1.0), direction="EQ")
    result = m.select(is_least, constant(-math.inf), result)
    result = m.select(m.compare(x, constant(-1.0), direction="LT"), constant(math.nan), result)
    keep = m.or_(m.compare(x, constant(0.0), direction="EQ"), m.compare(m.abs(x), constant(math.inf), direction="GE"))
    return m.select(m.or_(keep, m.compare(x, x, direction="NE")), m.select(m.compare(x, constant(0.0), direction="LT"), result, x), result)


def _split(m: Any, x: Any, form: FloatFormat) -> tuple[Any, Any]:
    """The biased exponent as bits and the mantissa less one: x = 2**(exponent - bias) * (1 + f), lowest <= 1 + f."""
    lowest = _CONSTANTS[form.dtype].lowest
    integer = lambda value: m.constant(value, form.bits)  # noqa: E731
    bits = m.add(m.bitcast_convert(x, dtype=form.bits), integer(form.one - lowest))
    exponent = m.shift_right_logical(bits, integer(form.mantissa))
    mantissa = m.add(m.and_(bits, integer(form.mantissa_mask)), integer(lowest))
    return exponent, m.subtract(m.bitcast_convert(mantissa, dtype=form.dtype), m.constant(1.0, form.dtype))


def _as_float(m: Any, exponent: Any, form: FloatFormat) -> Any:
    """A biased exponent as a float without bias, through the mantissa of 2**mantissa."""
    base = 2.0**form.mantissa
    bits = m.or_(exponent, m.constant((form.bias + form.mantissa) << form.mantissa, form.bits))
    return m.subtract(m.bitcast_convert(bits, dtype=form.dtype), m.constant(base + form.bias, form.dtype))


def _log_of_parts(m: Any, k: Any, f: Any, form: FloatFormat) -> Any:
    """k*ln2 + log(1 + f)."""
    c = _CONSTANTS[form.dtype]
    square = m.multiply(f, f)
    minus_half = m.constant(-0.5, form.dtype)
    if form.dtype == "f32":
        tail = m.fma(f, polynomial(m, f, c.coefficients), minus_half)
        small = m.fma(square, tail, m.multiply(k, m.constant(c.low, form.dtype)))
    else:
        # log(1 + f) = 2s + s*R(s**2) with s = f/(2 + f), and 2s = f - s*f = f - f**2/2 + s*f**2/2
        s = m.divide(f, m.add(f, m.constant(2.0, form.dtype)))
        z = m.multiply(s, s)
        half_square = m.multiply(square, m.constant(0.5, form.dtype))
        correction = m.fma(polynomial(m, z, c.coefficients), z, half_square)
        small = m.fma(s, correction, m.multiply(k, m.constant(c.low, form.dtype)))
        small = m.subtract(small, half_square)
    return m.fma(k, m.constant(c.high, form.dtype), m.add(f, small))
