"""sine and cosine, reduced exactly over the whole range.

x is multiplied by the digits of 1/(2*pi), cut into chunks so narrow that every product is exact in f64. Whole turns are
dropped from each product, and the nearest quarter from their sum before the small products are added to it, so
that nothing is lost where x is close to a multiple of pi/2. This takes the place of Payne and Hanek's integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

from lepton_jit.ir.ops.native.machine import Machine, Scalar, float_format, polynomial, split_f64

__all__ = ["cosine", "sine"]

# (sin(r) - r)/r**3 and (cos(r) - 1 + r**2/2)/r**4 in powers of r**2 on |r| <= pi/4
_SINE = {
    "f32": (-0.16666655242443085, 0.00833215843886137, -0.00019514956511557102),
    "f64": (
        -0.1666666666666663,
        0.008333333333322063,
        -0.00019841269829542387,
        2.755731360443099e-06,
        -2.5050745021758826e-08,
        1.5896066559373722e-10,
    ),
}
_COSINE = {
    "f32": (0.04166664555668831, -0.0013887312961742282, 2.4432814825559035e-05),
    "f64": (
        0.041666666666666595,
        -0.0013888888888872975,
        2.4801587288799977e-05,
        -2.7557314163955983e-07,
        2.0875698705070023e-09,
        -1.1358423314216656e-11,
    ),
}
_TWO_PI = (6.283185307179586, 2.4492935982947064e-16)
_QUARTER_PI = 0.785

# 1/(2*pi) * 2**1248, rounded down
_DIGITS = 1248
_INVERSE_TURN = int(
    "28be60db9391054a7f09d5f47d4d377036d8a5664f10e4107f9458eaf7aef1586dc91b8e909374b801924bba827464873f877ac7"
    "2c4a69cfba208d7d4baed1213a671c09ad17df904e64758e60d4ce7d272117e2ef7e4a0ec7fe25fff7816603fbcbc462d6829b47"
    "db4d9fb3c9f2c26dd3d18fd9a797fa8b5d49eeb1faf97c5ecf41ce7de294a4ba9afed7ec47e357421580cc11bf1edaeafc33ef08",
    16,
)


def _chunks(first: int, width: int, count: int) -> tuple[float, ...]:
    """`count` chunks of `width` bits of 1/(2*pi) from bit `first` + 2 after the point, times 2**first.

    The last one has 53 bits: what it multiplies may be rounded.
    """
    chunks = []
    for i in range(count):
        bits = width if i < count - 1 else 53
        end = first + 2 + width * i + bits
        chunks.append(((_INVERSE_TURN >> (_DIGITS - end)) & ((1 << bits) - 1)) * 2.0 ** (first - end))
    return tuple(chunks)


@dataclass(frozen=True)
class _Window:
    """The chunks that matter for |x| >= lowest, where products with earlier ones are whole turns; the first window
    is for all smaller x too."""

    lowest: float
    scale: float  # x is multiplied by it
    chunks: tuple[float, ...]


# f32: 24 bits of x times 29, up to 2**128. f64: 27 and 26 bits of x times 24; six windows of 14 chunks cover 2**1024.
_WINDOWS = {
    "f32": (_Window(2.0**54, 1.0, _chunks(0, 29, 6)),),
    "f64": tuple(_Window(2.0 ** (first + 54), 2.0**-first, _chunks(first, 24, 14)) for first in range(0, 6 * 168, 168)),
}


def sine(m: Machine, x: Scalar) -> Scalar:
    """sin(x); -0.0 stays, infinities give NaN.

    Error in ulp: f32 1.6 (1.6 without FMA), f64 4.5 (4.5).
    """
    float_format("sine", x)
    is_zero = m.compare(x, m.constant(0.0, dtype=x.dtype.name), direction="EQ")
    return m.select(is_zero, x, _shifted_sine(m, x, "sine", 0))


def cosine(m: Machine, x: Scalar) -> Scalar:
    """cos(x); infinities give NaN.

    Error in ulp: f32 1.6 (1.6 without FMA), f64 4.5 (4.5).
    """
    return _shifted_sine(m, x, "cosine", 1)


def _shifted_sine(m: Machine, x: Scalar, op: str, quarters: int) -> Scalar:
    """sin(x + quarters*pi/2)."""
    form = float_format(op, x)
    r, quadrant = _reduce(m, x)
    number, integer = partial(m.constant, dtype=form.dtype), partial(m.constant, dtype=form.bits)
    z = m.multiply(r, r)
    odd = m.fma(m.multiply(r, z), polynomial(m, z, _SINE[form.dtype]), r)
    cosine = m.fma(polynomial(m, z, _COSINE[form.dtype]), z, number(-0.5))
    even = m.fma(cosine, z, number(1.0))
    if quarters:
        quadrant = m.add(quadrant, integer(quarters))
    is_even = m.compare(m.and_(quadrant, integer(1)), integer(0), direction="EQ")
    sign = m.shift_left(m.and_(quadrant, integer(2)), integer(form.width - 2))
    value = m.bitcast_convert(m.select(is_even, odd, even), dtype=form.bits)
    return m.bitcast_convert(m.xor(value, sign), dtype=form.dtype)


def _reduce(m: Machine, x: Scalar) -> tuple[Scalar, Scalar]:
    """r in [-pi/4, pi/4] and a whole number of quarters, whose low bits are right: x = r + quarters*pi/2."""
    dtype = x.dtype.name
    number = partial(m.constant, dtype="f64")
    window, wide = _choose_window(m, m.convert(x, dtype="f64"), _WINDOWS[dtype])
    pieces = (wide,) if dtype == "f32" else split_f64(m, wide)
    fractions = _fractions(m, pieces, window)
    rounder = number(1.5 * 2.0**52)
    shifted = m.fma(reduce(m.add, fractions), number(4.0), rounder)
    quarters = m.subtract(shifted, rounder)
    turns = reduce(m.add, fractions, m.multiply(quarters, number(-0.25)))
    r = m.fma(turns, number(_TWO_PI[0]), m.multiply(turns, number(_TWO_PI[1])))
    bits = "u32" if dtype == "f32" else "u64"
    quadrant = m.convert(m.bitcast_convert(shifted, dtype="u64"), dtype=bits)
    small = m.compare(m.abs(x), m.constant(_QUARTER_PI, dtype=dtype), direction="LT")
    return m.select(small, x, m.convert(r, dtype=dtype)), quadrant


def _choose_window(m: Machine, x: Scalar, windows: Sequence[_Window]) -> tuple[list[Scalar], Scalar]:
    """The chunks of the window of x, and x scaled to go with them."""
    number = partial(m.constant, dtype="f64")
    first, *others = windows
    chunks, scale = [number(c) for c in first.chunks], number(first.scale)
    for window in others:
        inside = m.compare(m.abs(x), number(window.lowest), direction="GE")
        chunks = [m.select(inside, number(c), old) for c, old in zip(window.chunks, chunks, strict=True)]
        scale = m.select(inside, number(window.scale), scale)
    return chunks, m.multiply(x, scale) if others else x


def _fractions(m: Machine, pieces: Sequence[Scalar], chunks: Sequence[Scalar]) -> list[Scalar]:
    """The products of chunks and pieces without their whole turns, the largest first."""
    pairs = [(i, k - i) for k in range(len(chunks) + len(pieces) - 1) for i in range(len(pieces))]
    products = [m.multiply(pieces[i], chunks[j]) for i, j in pairs if 0 <= j < len(chunks)]
    return [m.subtract(p, m.round_nearest_even(p)) for p in products]
