"""x**y = e**(y * log(x)): for f32 in f64, for f64 with a logarithm of about 65 bits."""

from __future__ import annotations

import math
from functools import partial

from lepton_jit.ir.ops.native.exponentials import exponential, exponential_of_sum
from lepton_jit.ir.ops.native.logarithms import decompose, log, log_specials
from lepton_jit.ir.ops.native.machine import (
    FloatFormat,
    Machine,
    Scalar,
    fast_two_sum,
    float_format,
    polynomial,
    two_product,
    two_sum,
)

__all__ = ["power"]

# (log((1 + s)/(1 - s)) - 2*s - 2/3*s**3) / s**5 in powers of s**2, |s| <= (sqrt(2) - 1)/(sqrt(2) + 1)
_TAIL = (
    0.3999999999999998,
    0.28571428571445123,
    0.22222222217534054,
    0.1818181887061365,
    0.15384556850402206,
    0.1333631821812333,
    0.11674802162234117,
    0.11989150244707845,
)
_TWO_THIRDS = (2 / 3, 3.700743415417188e-17)
_LOG_2 = (float.fromhex("0x1.62e42fefa3p-1"), 2.8235290563031577e-13)

Pair = tuple[Scalar, Scalar]  # an unevaluated sum, the larger part first


def power(m: Machine, x: Scalar, y: Scalar) -> Scalar:
    """x**y with the special cases of C's `pow`; UnsupportedError for integers.

    Error in ulp: f32 0.6 (0.6 without FMA), f64 2.0 (2.3).
    """
    form = float_format("power", x)
    if form.dtype == "f32":
        wide_x, wide_y = (m.convert(v, dtype="f64") for v in (m.abs(x), y))
        size = m.convert(exponential(m, m.multiply(wide_y, log(m, wide_x))), dtype="f32")
    else:
        size = _size(m, m.abs(x), y, form)
    return _with_sign(m, x, y, size, form)


def _with_sign(m: Machine, x: Scalar, y: Scalar, size: Scalar, form: FloatFormat) -> Scalar:
    """|x|**y with its sign; NaN for negative finite x and fractional y; 1 where C's `pow` has it whatever the rest."""
    number = partial(m.constant, dtype=form.dtype)
    half = m.multiply(y, number(0.5))
    is_integer = m.compare(m.floor(y), y, direction="EQ")
    is_odd = m.and_(is_integer, m.compare(m.floor(half), half, direction="NE"))
    sign = m.and_(m.bitcast_convert(x, dtype=form.bits), m.constant(form.sign_mask, dtype=form.bits))
    signed = m.bitcast_convert(m.or_(m.bitcast_convert(size, dtype=form.bits), sign), dtype=form.dtype)
    result = m.select(is_odd, signed, size)

    negative = m.compare(x, number(0.0), direction="LT")
    finite = m.compare(x, number(-math.inf), direction="GT")
    undefined = m.and_(m.and_(negative, finite), m.not_(is_integer))
    result = m.select(undefined, number(math.nan), result)

    infinite = m.compare(m.abs(y), number(math.inf), direction="EQ")
    is_one = m.or_(
        m.or_(m.compare(x, number(1.0), direction="EQ"), m.compare(y, number(0.0), direction="EQ")),
        m.and_(m.compare(x, number(-1.0), direction="EQ"), infinite),
    )
    return m.select(is_one, number(1.0), result)


def _size(m: Machine, x: Scalar, y: Scalar, form: FloatFormat) -> Scalar:
    """x**y for f64, x >= 0."""
    high, low = _log(m, x, form)
    high = log_specials(m, x, high, form)
    product, rest = two_product(m, y, high)
    rest = m.add(rest, m.multiply(y, low))
    # Where e**product is 0 or infinite anyway, the rest may be NaN.
    in_range = m.compare(m.abs(product), m.constant(1000.0, dtype="f64"), direction="LT")
    rest = m.select(in_range, rest, m.constant(0.0, dtype="f64"))
    return exponential_of_sum(m, product, rest)


def _log(m: Machine, x: Scalar, form: FloatFormat) -> Pair:
    """log(x) for positive finite x."""
    number = partial(m.constant, dtype="f64")
    parts, k = decompose(m, x, form)
    s = _quotient(m, parts.f, fast_two_sum(m, number(2.0), parts.f))
    z = _product(m, s, s)
    tail = m.multiply(m.multiply(z[0], z[0]), polynomial(m, z[0], _TAIL))
    cubic, rest = _product(m, z, (number(_TWO_THIRDS[0]), number(_TWO_THIRDS[1])))
    factor = _sum(m, (cubic, rest), tail)
    third = _product(m, s, factor)
    doubled = (m.add(s[0], s[0]), m.add(s[1], s[1]))
    high, low = two_sum(m, m.multiply(k, number(_LOG_2[0])), doubled[0])
    low = m.add(low, m.fma(k, number(_LOG_2[1]), m.add(doubled[1], third[1])))
    high, more = two_sum(m, high, third[0])
    return fast_two_sum(m, high, m.add(low, more))


def _sum(m: Machine, a: Pair, b: Scalar) -> Pair:
    """a + b for |a| >= |b|."""
    high, low = fast_two_sum(m, a[0], b)
    return high, m.add(low, a[1])


def _product(m: Machine, a: Pair, b: Pair) -> Pair:
    high, low = two_product(m, a[0], b[0])
    return high, m.add(low, m.fma(a[0], b[1], m.multiply(a[1], b[0])))


def _quotient(m: Machine, a: Scalar, b: Pair) -> Pair:
    high = m.divide(a, b[0])
    product, rest = two_product(m, high, b[0])
    remainder = m.subtract(m.subtract(m.subtract(a, product), rest), m.multiply(high, b[1]))
    return high, m.divide(remainder, b[0])
