"""The error function."""

from __future__ import annotations

from typing import Any

from lepton_jit.ir.ops.native.exponential import exponential
from lepton_jit.ir.ops.native.machine import copy_sign, float_format, polynomial

__all__ = ["erf"]

# erf(x)/x as a quotient of polynomials in x**2 on |x| <= 3.93
_NUMERATOR_F32 = (
    1.1283791453528624,
    0.19078468414803143,
    0.05279039899579234,
    0.0037796449813864226,
    0.0002848092229156506,
    2.0419622104390367e-06,
)
_DENOMINATOR_F32 = (
    1.0,
    0.5024112435771146,
    0.11425787474708056,
    0.014997510353871058,
    0.0011652209754256793,
    3.800401779976987e-05,
)
_LIMIT_F32 = 3.93

# erf(x)/x - 1 in powers of x**2 on |x| <= 1
_SMALL_F64 = (
    0.1283791670955126,
    -0.3761263890318375,
    0.11283791670954862,
    -0.026866170645073607,
    0.0052239776247865,
    -0.0008548326979018253,
    0.00012055331045746229,
    -1.4925593697624956e-05,
    1.646097560437051e-06,
    -1.6350052454794122e-07,
    1.4658050165407478e-08,
    -1.1366282551838624e-09,
    5.946244299599598e-11,
)
# (1 - erf(x)) * e**x**2 in powers of t = (x - 2)/(x + 2) on 1 <= x <= 6
_LARGE_F64 = (
    0.25539567631050575,
    -0.42718584741395677,
    0.24165819424246692,
    -0.07897858101645583,
    0.003732892398589669,
    0.006997461790082662,
    -0.0008471425724567326,
    -0.000981976583672356,
    4.353531386492043e-05,
    0.00017428769546741935,
    2.76308605207666e-05,
    -2.658705847503577e-05,
    -1.2622107355785559e-05,
)


def erf(m: Any, x: Any) -> Any:
    """2/sqrt(pi) times the integral of e**-t**2 from 0 to x; odd, -0.0 stays."""
    form = float_format("erf", x)
    return _erf_f32(m, x) if form.dtype == "f32" else _erf_f64(m, x)


def _erf_f32(m: Any, x: Any) -> Any:
    x = m.minimum(m.maximum(x, m.constant(-_LIMIT_F32, "f32")), m.constant(_LIMIT_F32, "f32"))
    z = m.multiply(x, x)
    return m.divide(m.multiply(x, polynomial(m, z, _NUMERATOR_F32)), polynomial(m, z, _DENOMINATOR_F32))


def _erf_f64(m: Any, x: Any) -> Any:
    constant = lambda value: m.constant(value, "f64")  # noqa: E731
    small = m.fma(x, polynomial(m, m.multiply(x, x), _SMALL_F64), x)
    size = m.minimum(m.abs(x), constant(6.0))
    t = m.divide(m.subtract(size, constant(2.0)), m.add(size, constant(2.0)))
    tail = m.multiply(exponential(m, m.negate(m.multiply(size, size))), polynomial(m, t, _LARGE_F64))
    large = copy_sign(m, m.subtract(constant(1.0), tail), x, float_format("erf", x))
    return m.select(m.compare(size, constant(1.0), direction="LT"), small, large)
