"""The error function, by a polynomial near 0 and 1 less a small exponential further out, and its complement."""

from __future__ import annotations

from functools import partial

from lepton_jit.ir.ops.native.exponentials import exponential, exponential_of_sum
from lepton_jit.ir.ops.native.machine import FloatFormat, Machine, Scalar, copy_sign, float_format, polynomial

__all__ = ["erf", "erfc"]

_SPLIT_F32 = 0.9
# erf(x)/x - 1 in powers of x**2 on |x| <= 0.9
_NEAR_F32 = (
    0.12837915122509003,
    -0.3761252462863922,
    0.1128215491771698,
    -0.026779411360621452,
    0.0050127338618040085,
    -0.00060944480355829,
)
# log2(1 - erf(x)) on 0.9 <= x <= 3.95, where erf(x) becomes 1
_FAR_F32 = (
    -0.00024013521033339202,
    -1.6270674467086792,
    -0.918962299823761,
    -0.15020422637462616,
    0.03219400718808174,
    -0.00442255474627018,
    0.00028596888296306133,
)
# 2**r on |r| <= 1/2
_POWER_OF_TWO_F32 = (
    1.0,
    0.6931469440460205,
    0.24022243916988373,
    0.055507633835077286,
    0.009671504609286785,
    0.0013259721454232931,
)
_LARGEST_F32 = 3.95

# erf(x)/x - 1 in powers of x**2 on |x| <= 1
_NEAR_F64 = (
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
# (1 - erf(x)) * e**x**2 in powers of (x - 2)/(x + 2) on 1 <= x <= 6
_FAR_F64 = (
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

# erfc(x) * e**x**2 * (x + 2) in powers of (x - 2)/(x + 2) on 0 <= x <= 10.06, above which erfc(x) is 0
_TAIL_CENTER_F32 = 2.0
_TAIL_F32 = (
    1.0215827226638794,
    -0.6871609091758728,
    0.2794726490974426,
    -0.03643566370010376,
    -0.021513674408197403,
    0.00643128389492631,
    0.003077401779592037,
    -0.0007071908330544829,
    -0.0005642549367621541,
    -7.267948967637494e-05,
)
# the same with 2.5 in place of 2, on 0 <= x <= 27.3
_TAIL_CENTER_F64 = 2.5
_TAIL_F64 = (
    1.054031820305718,
    -0.8046518494391497,
    0.4539141166480799,
    -0.17125114524596155,
    0.0283615501328515,
    0.008393044299929575,
    -0.0048187855412628105,
    -0.00043920823249668674,
    0.0007026939217096682,
    5.830754072920508e-05,
    -0.00011260611702573646,
    -1.953095771051036e-05,
    1.824965288672154e-05,
    6.7505274236885565e-06,
    -2.346475782623794e-06,
    -1.955673863813018e-06,
    1.9125933587225437e-08,
    4.4033423404380826e-07,
    1.09346719874658e-07,
    -6.543569838823732e-08,
    -3.265249966806598e-08,
    4.0472922826016805e-09,
    3.4173998145194493e-09,
)


def erf(m: Machine, x: Scalar) -> Scalar:
    """2/sqrt(pi) times the integral of e**-t**2 from 0 to x; odd, -0.0 stays.

    Error in ulp: f32 1.6 (1.9 without FMA), f64 1.1 (1.4).
    """
    form = float_format("erf", x)
    number = partial(m.constant, dtype=form.dtype)
    single = form.dtype == "f32"
    near = m.fma(x, polynomial(m, m.multiply(x, x), _NEAR_F32 if single else _NEAR_F64), x)
    size = m.minimum(m.abs(x), number(_LARGEST_F32 if single else 6.0))
    far = copy_sign(m, _far_f32(m, size, form) if single else _far_f64(m, size), x, form)
    return m.select(m.compare(size, number(_SPLIT_F32 if single else 1.0), direction="LT"), near, far)


def _far_f32(m: Machine, x: Scalar, form: FloatFormat) -> Scalar:
    """1 - 2**p(x), where 2**p = 2**n * 2**r with an integer n."""
    number = partial(m.constant, dtype="f32")
    exponent = polynomial(m, x, _FAR_F32)
    # The exponent's bias rides on the rounding constant, and above it the sign bit: the low bits are -(2**n).
    rounder = number(form.rounder + form.bias + 2 * form.bias + 2)
    shifted = m.add(exponent, rounder)
    r = m.subtract(exponent, m.subtract(shifted, rounder))
    bits = m.shift_left(m.bitcast_convert(shifted, dtype="u32"), m.constant(form.mantissa, dtype="u32"))
    return m.fma(polynomial(m, r, _POWER_OF_TWO_F32), m.bitcast_convert(bits, dtype="f32"), number(1.0))


def _far_f64(m: Machine, x: Scalar) -> Scalar:
    """1 - e**-x**2 * p((x - 2)/(x + 2))."""
    number = partial(m.constant, dtype="f64")
    t = m.divide(m.subtract(x, number(2.0)), m.add(x, number(2.0)))
    tail = m.multiply(exponential(m, m.negate(m.multiply(x, x))), polynomial(m, t, _FAR_F64))
    return m.subtract(number(1.0), tail)


def erfc(m: Machine, x: Scalar) -> Scalar:
    """1 - erf(x) without cancellation: e**-x**2 * p((x - c)/(x + c)) / (x + c) for x >= 0, else 2 - erfc(-x).

    Error in ulp: f32 6.0 (70.0 without FMA), f64 6.0 (520.0).
    """
    form = float_format("erfc", x)
    number = partial(m.constant, dtype=form.dtype)
    single = form.dtype == "f32"
    center, limit = (_TAIL_CENTER_F32, 10.06) if single else (_TAIL_CENTER_F64, 27.3)
    # What comes to nothing is not computed: processors take a hundred times as long over products that underflow.
    size = m.abs(x)
    nothing = m.compare(size, number(limit), direction="GT")
    size = m.select(nothing, number(0.0), size)
    square = m.multiply(size, size)
    lost = m.fma(size, size, m.negate(square))
    inverse = m.divide(number(1.0), m.add(size, number(center)))
    p = polynomial(m, m.fma(inverse, number(-2 * center), number(1.0)), _TAIL_F32 if single else _TAIL_F64)
    gaussian = exponential_of_sum(m, m.negate(square), m.negate(lost))
    tail = m.select(nothing, number(0.0), m.multiply(gaussian, m.multiply(p, inverse)))
    return m.select(m.compare(x, number(0.0), direction="LT"), m.subtract(number(2.0), tail), tail)
